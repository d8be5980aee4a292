"""From face crops to masks of what belongs to the face: skin, features, hair, glasses, ears."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np
import torch
from torch.nn.functional import interpolate

from cfrestore.checkpoint import load_network
from cfrestore.device import Precision, download, inference, reduced, upload
from cfrestore.image import from_levels
from cfrestore.models.parsenet import ParseNet

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Scalar = TypeVar("_Scalar", bound=np.generic)

PARSE_SIZE = 512
"""Side of the pictures the parsing network was trained for; the blur and frame below fit it."""

FACE_CLASSES = (*range(1, 14), 15)
"""Skin, glasses, eyes, brows, ears, mouth, nose, hair, earrings; not hat, neck, necklace, cloth.

Order of CelebAMask-HQ, 19 classes, 0 is the background.
"""

_BLUR = (101, 101)
_SIGMA = 11.0
_FRAME = 10


class FaceParser:
    """A ParseNet, which finds the pixels of a crop that belong to the face.

    Args:
        path: a ParseNet weight file, `parsing_parsenet.pth` or one with the same keys.
        device: where to compute.
        side: side of the pictures that the network sees, a multiple of 16; a side smaller than the
            published one costs less and gives other masks, see benchmarks/parsing.py.
        precision: what the network computes in, see `choose_parsing_precision`.
    Raises:
        WeightsError: the file cannot be read.
        CheckpointError: the file holds something else; the first differing keys are named.
    """

    def __init__(
        self,
        path: str | Path,
        device: str | torch.device = "cpu",
        *,
        side: int = PARSE_SIZE,
        precision: Precision = Precision.FP32,
    ) -> None:
        self.network: torch.nn.Module = load_network(path, lambda _: ParseNet()).to(device)
        self.device = torch.device(device)
        self.side = side
        self.precision = precision

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Soft masks of faces.

        Args:
            crops: (N, S, S, 3) uint8 RGB, any S.
        Returns:
            (N, S, S) float32 in [0, 1], 0 along all four sides.
        """
        masks = np.empty(crops.shape[:3], dtype=np.float32)
        for mask, crop in zip(masks, crops, strict=True):  # one by one: each takes about a gigabyte
            with inference(), reduced(self.device, self.precision):
                batch = from_levels(upload([_resize(crop, self.side)], self.device))
                logits = self.network(batch)  # (1, 3, side, side) to (1, 19, side, side)
                if self.side != PARSE_SIZE:
                    logits = interpolate(logits, size=(PARSE_SIZE,) * 2, mode="bilinear")
                classes = download(logits[0].argmax(dim=0).byte())
            mask[...] = _resize(mask_from_classes(classes), crop.shape[0])
        return masks


def mask_from_classes(classes: NDArray[np.integer]) -> NDArray[np.float32]:
    """The soft mask of the pixels whose class belongs to the face.

    Args:
        classes: (512, 512) integers from 0 to 18, see FACE_CLASSES.
    Returns:
        (512, 512) float32 in [0, 1]; 0 within 10 pixels of the sides.
    Source: the published pipeline: two Gaussian blurs, each of sigma 11.
    """
    mask = np.isin(classes, FACE_CLASSES).astype(np.float32)
    for _ in range(2):
        mask = np.asarray(cv2.GaussianBlur(mask, _BLUR, _SIGMA), np.float32)
    inner = slice(_FRAME, -_FRAME)
    framed = np.zeros_like(mask)
    framed[inner, inner] = mask[inner, inner].clip(0, 1)
    return framed


def _resize(image: NDArray[_Scalar], side: int) -> NDArray[_Scalar]:
    """The square image at another side, bilinearly."""
    return np.asarray(
        cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR), dtype=image.dtype
    )
