"""LPIPS, a perceptual distance of pictures (B,3,S,S) RGB in [-1, 1]."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfrestore.checkpoint import read_checkpoint
from cfrestore.errors import CheckpointError

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LPIPS_SHIFT, _LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]


class LPIPS(nn.Module):
    """Learned perceptual distance on VGG-16 features.

    Args:
        vgg: state dict of torchvision's VGG-16 (`features.N.weight`, ...).
        linear: state dict of the calibration (`linN.model.1.weight`).
        double_normalisation: apply ImageNet's normalisation before LPIPS's own, as the published
            CodeFormer training did.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features" (CVPR 2018), v0.1.
    """

    shift: Tensor
    scale: Tensor
    mean: Tensor
    std: Tensor

    _WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

    def __init__(
        self, vgg: dict[str, Tensor], linear: dict[str, Tensor], double_normalisation: bool
    ) -> None:
        super().__init__()
        self.double_normalisation = double_normalisation
        self.stages = nn.ModuleList()
        channels, index = 3, 0
        for widths in self._WIDTHS:
            stage = nn.Sequential(*([nn.MaxPool2d(2)] if index else []))
            index += bool(index)
            for width in widths:
                convolution = nn.Conv2d(channels, width, 3, padding=1)
                convolution.load_state_dict(
                    {k: vgg[f"features.{index}.{k}"] for k in ("weight", "bias")}
                )
                stage.extend((convolution, nn.ReLU()))
                channels, index = width, index + 2
            self.stages.append(stage)
        for n in range(len(self._WIDTHS)):
            self.register_buffer(f"linear{n}", linear[f"lin{n}.model.1.weight"])
        self.register_buffer("shift", _channels(_LPIPS_SHIFT))
        self.register_buffer("scale", _channels(_LPIPS_SCALE))
        self.register_buffer("mean", _channels(_IMAGENET_MEAN))
        self.register_buffer("std", _channels(_IMAGENET_STD))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        both = torch.cat((x, y))
        if self.double_normalisation:
            both = ((both + 1) / 2 - self.mean) / self.std
        both = (both - self.shift) / self.scale
        distance = both.new_zeros(())
        for n, stage in enumerate(self.stages):
            both = stage(both)
            a, b = F.normalize(both, dim=1, eps=1e-10).chunk(2)
            distance = distance + F.conv2d((a - b).square(), getattr(self, f"linear{n}")).mean()
        return distance


def load_lpips(vgg: Path, linear: Path, double_normalisation: bool) -> LPIPS:
    """Loads LPIPS with the weights from two files.

    Raises:
        WeightsError, CheckpointError: a file cannot be read, or is the wrong one.
    """
    features, calibration = read_checkpoint(vgg)[0], read_checkpoint(linear)[0]
    try:
        return LPIPS(features, calibration, double_normalisation)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{vgg} and {linear} are not VGG-16 and its calibration") from error
