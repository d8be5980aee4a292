"""From aligned crops to restored ones: the only place where the network is run on photographs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cfrestore.device import inference
from cfrestore.image import from_tensor, match_statistics, to_gray, to_tensor

if TYPE_CHECKING:
    from torch import Tensor

    from cfrestore.align import AlignedFace
    from cfrestore.detect import Face
    from cfrestore.models.codeformer import CodeFormer

SOFTENED_FROM = 1.25
"""Photograph pixels to one of the crop, from which the loss of detail can be seen."""


@dataclass(frozen=True, eq=False)
class RestoredFace:
    """One face as the network painted it.

    Attributes:
        crop: (S, S, 3) uint8 RGB.
        aligned: what the network was given.
        fidelity: w it was painted with.
    """

    crop: NDArray[np.uint8]
    aligned: AlignedFace
    fidelity: float

    @property
    def softened(self) -> bool:
        """Whether the photograph shows the face larger than the network paints it, by a quarter."""
        return math.hypot(*self.aligned.to_crop[:, 0]) < 1 / SOFTENED_FROM


@dataclass(frozen=True, eq=False)
class FailedFace:
    """One face that was left as it is.

    Attributes:
        face: what the detector said, in image pixels.
        reason: why, as half a sentence.
    """

    face: Face
    reason: str


def restore_faces(
    network: CodeFormer,
    aligned: Sequence[AlignedFace],
    *,
    fidelity: float,
    batch_size: int = 4,
    gray: bool = False,
    device: str | torch.device = "cpu",
) -> tuple[RestoredFace | FailedFace, ...]:
    """Restores faces in batches; what becomes of one does not depend on the others.

    Args:
        network: on the device, in evaluation mode; S is its image size.
        aligned: crops (S, S, 3) uint8 RGB.
        fidelity: w, see Options.
        batch_size: faces in one forward pass.
        gray: the picture is gray: the results are, and keep their crop's brightness and contrast.
    Returns:
        one value per face, in the same order; FailedFace where the network gave no picture.
    """
    results: list[RestoredFace | FailedFace] = []
    for start in range(0, len(aligned), batch_size):
        batch = aligned[start : start + batch_size]
        crops = to_tensor(np.stack([face.crop for face in batch])).to(device)  # (B, 3, S, S)
        with inference():
            images = network(crops, fidelity, network.config.match_statistics).float().cpu()
        results += (
            _judge(image, face, fidelity, gray, network.config.keep_colours)
            for image, face in zip(images, batch, strict=True)
        )
    return tuple(results)


def _judge(
    image: Tensor, aligned: AlignedFace, fidelity: float, gray: bool, colours: bool
) -> RestoredFace | FailedFace:
    """The network's image (3, S, S) as a result, if it is a picture at all."""
    if not image.isfinite().all():
        return FailedFace(aligned.face, "the network's output is not finite")
    crop = from_tensor(image[None])[0]
    if not np.ptp(crop, axis=(0, 1)).any():
        return FailedFace(aligned.face, "the network's output is one flat colour")
    if colours:
        crop = keep_colours(crop, aligned.crop)
    if gray:
        crop = _like_gray(crop, aligned.crop)
    return RestoredFace(crop, aligned, fidelity)


def keep_colours(crop: NDArray[np.uint8], original: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The crop with the low frequencies of the original, so that colours and light stay.

    What a degradation leaves intact are the low frequencies; what a restoration adds are the high.

    Args:
        crop, original: (S, S, 3) uint8.
    Source: the colour fix of Wang et al., "Exploiting Diffusion Prior for Real-World Image
    Super-Resolution" (2023), with one Gaussian of S / 16 instead of wavelets.
    """
    difference = original.astype(np.float32) - crop
    low = cv2.GaussianBlur(difference, (0, 0), crop.shape[0] / 16)
    return np.asarray(np.rint((crop + low).clip(0, 255)), np.uint8)


def _like_gray(crop: NDArray[np.uint8], original: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The crop without colours of its own, with the original's statistics, and so its tint."""
    matched = match_statistics(to_gray(crop), original)
    return np.asarray(np.rint(matched.clip(0, 255)), np.uint8)
