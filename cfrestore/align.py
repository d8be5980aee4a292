"""From a face in a picture to the upright crop a network restores: (pixels, Face) -> AlignedFace.

Coordinates are those of pixel centres: the centre of the first pixel is (0, 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

from cfrestore.errors import DegenerateFaceError
from cfrestore.image import to_uint8

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cfrestore.detect import Face
    from cfrestore.image import Pixels

PUBLISHED_SIZE = 512
"""Side of the published model's crops, at which alignment and pasting are as published."""

FFHQ_TEMPLATE: NDArray[np.float32] = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ],
    dtype=np.float32,
)
"""Positions of the five landmarks in a 512 px crop, x then y, order as in Face."""

FACE_ELLIPSE = (0.5, 0.56), (0.26, 0.34)
"""Centre and half axes of the face proper in its crop, x then y, as shares of the side."""

BORDER_COLOR = (132, 133, 135)
"""RGB colour of a crop of 512 px where the picture has no pixels."""

_MIN_SPREAD = 1.0  # px; landmarks closer together than one pixel say nothing about a direction
_MAX_SUPERSAMPLING = 16  # limits memory in case of absurd landmarks: 4096 px for a crop of 256 px
_MARGIN = 2  # px; zeros around masks, so that erosion and blur see the same as in the full frame
_MAX_SIDE = 4096  # px; the same limit for cut_finely


@dataclass(frozen=True, eq=False)
class AlignedFace:
    """One face, upright and of the network's size.

    Attributes:
        crop: (S, S, 3) uint8 RGB.
        to_crop: (2, 3) float64; multiply by (x, y, 1) in image pixels to get crop pixels.
        face: the detected face, in image pixels.
        kept: (S, S) float32 in [0, 1], share of the picture's detail finer than the crop that is
            kept when a new crop is pasted; None: only the new crop is pasted.
    """

    crop: NDArray[np.uint8]
    to_crop: NDArray[np.float64]
    face: Face
    kept: NDArray[np.float32] | None = None

    @property
    def shrink(self) -> float:
        """Image pixels per crop pixel, along a line."""
        return 1 / _scale(self.to_crop)


def estimate_similarity(
    landmarks: NDArray[np.floating], template: NDArray[np.floating] = FFHQ_TEMPLATE
) -> NDArray[np.float64]:
    """Rotation, uniform scale and shift that take landmarks onto template.

    Args:
        landmarks: (5, 2), x then y, image pixels, order as in Face.
        template: (5, 2), same order, crop pixels.
    Returns:
        (2, 3) float64; multiply by (x, y, 1) in image pixels to get crop pixels.
    Raises:
        DegenerateFaceError: the points coincide or are not finite.
    Source: least median of squares, as in the published pipeline (CodeFormer, NeurIPS 2022), so
        that one bad landmark of five does not tilt the face.
    """
    if not np.isfinite(landmarks).all():
        raise DegenerateFaceError(f"landmarks must be finite, found {landmarks.tolist()}")
    spread = np.ptp(landmarks, axis=0).max()
    if spread < _MIN_SPREAD:
        raise DegenerateFaceError(f"landmarks lie within one pixel: {landmarks.tolist()}")
    matrix, _ = cv2.estimateAffinePartial2D(
        landmarks.astype(np.float32), template.astype(np.float32), method=cv2.LMEDS
    )
    fits = matrix is not None and np.isfinite(matrix).all()
    if not fits or _scale(matrix) * spread < _MIN_SPREAD:  # the scale is nearly 0, rarely exactly
        raise DegenerateFaceError(f"no similarity fits the landmarks {landmarks.tolist()}")
    return np.asarray(matrix, dtype=np.float64)


def align_face(pixels: Pixels, face: Face, size: int = PUBLISHED_SIZE) -> AlignedFace:
    """Cuts the upright crop of one face out of a picture.

    Args:
        pixels: (H, W, 3) uint8 or uint16 RGB; only the face's own part of it is read.
        face: landmarks in pixels of this picture; they may lie outside it.
        size: S, side of the crop; the template scales by S/512.
    Raises:
        DegenerateFaceError: the landmarks coincide or are not finite.
    """
    to_crop = estimate_similarity(face.landmarks, FFHQ_TEMPLATE * (size / PUBLISHED_SIZE))
    return AlignedFace(crop=cut_crop(pixels, to_crop, size), to_crop=to_crop, face=face)


def cut_crop(
    pixels: Pixels,
    to_crop: NDArray[np.float64],
    size: int,
    border: tuple[int, ...] = BORDER_COLOR,
) -> NDArray[np.uint8]:
    """Samples the (size, size, 3) uint8 crop that to_crop describes.

    At 512 px this is the published bilinear warp, which skips pixels of faces larger than the crop.
    It would skip more pixels for smaller crops. These are sampled at up to 16 times their size, a
    power of two at which no pixel of the picture is skipped, and averaged down. Beyond the picture
    they show its mirror image, as in the training of this project's networks. Beside a constant
    colour these networks paint a rim, and a print in one tone would seem to have two.

    Args:
        pixels: (H, W, 3) uint8 or uint16 RGB, or one channel (H, W) for a (size, size) crop.
        to_crop: (2, 3), image px -> crop px.
        size: side of the crop.
        border: 8-bit colour beyond the picture, for crops from 512 px on.
    """
    published = size >= PUBLISHED_SIZE
    factor = 1 if published else _supersampling(to_crop, _MAX_SUPERSAMPLING)
    unit = int(np.iinfo(pixels.dtype).max) // 255
    crop = cv2.warpAffine(
        pixels,
        rescale(to_crop, factor),
        (size * factor, size * factor),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT if published else _beyond(pixels.shape, to_crop, size),
        borderValue=[channel * unit for channel in border],
    )
    return _average(crop, size)


def cut_finely(pixels: Pixels, to_crop: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """Samples the brightness of a crop, sharply and without gaps, to measure its detail.

    Unlike `cut_crop` it always uses the Lanczos kernel, also at 512 px, and repeats the picture's
    outermost pixels beyond the border, so that the border does not look like an edge.

    Args:
        pixels: (H, W, 3) uint8 or uint16 RGB; only the crop's own part of it is read.
        to_crop: (2, 3), image px -> crop px.
        size: side of the crop.
    Returns:
        (size, size) uint8.
    """
    factor = _supersampling(to_crop, max(1, _MAX_SIDE // size))
    side, to_crop = size * factor, rescale(to_crop, factor)
    box = bounding_box(side, np.asarray(cv2.invertAffineTransform(to_crop)), pixels.shape[:2])
    if box is None:
        return np.zeros((size, size), np.uint8)
    rows, columns = box
    to_crop[:, 2] += to_crop[:, :2] @ (columns.start, rows.start)
    crop = cv2.warpAffine(
        np.asarray(cv2.cvtColor(pixels[rows, columns], cv2.COLOR_RGB2GRAY)),
        to_crop,
        (side, side),
        flags=cv2.INTER_LANCZOS4,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return _average(crop, size)


def rescale(to_crop: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """The matrix of the same crop at factor times the size.

    Pixel areas coincide, so centres move: x becomes factor * (x + 0.5) - 0.5.
    """
    larger = to_crop * factor
    larger[:, 2] += (factor - 1) / 2
    return larger


def bounding_box(
    size: int, to_picture: NDArray[np.float64], shape: tuple[int, ...]
) -> tuple[slice, slice] | None:
    """Rows and columns of the picture that a warped crop can touch, or None if there are none."""
    points = _corners(size) @ to_picture.T  # (4, 2)
    limit = (shape[1], shape[0])
    low = np.clip(np.floor(points.min(axis=0)) - _MARGIN, 0, limit).astype(int)
    high = np.clip(np.ceil(points.max(axis=0)) + 1 + _MARGIN, 0, limit).astype(int)
    if (low >= high).any():
        return None
    return slice(low[1], high[1]), slice(low[0], high[0])


@cache
def face_ellipse(side: int) -> NDArray[np.bool_]:
    """Which pixels of a crop (side, side) show the face, not hair or background; read-only."""
    centre, half_axes = FACE_ELLIPSE
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    within = np.hypot((x - centre[0]) / half_axes[0], (y - centre[1]) / half_axes[1]) < 1
    within.flags.writeable = False
    return np.asarray(within, np.bool_)


def _beyond(shape: tuple[int, ...], to_crop: NDArray[np.float64], size: int) -> int:
    """OpenCV's border mode: mirrored or, where one mirror image is not enough, edge repeated.

    OpenCV takes a step for each mirror image, thousands of them if landmarks are absurd.
    """
    corners = _corners(size) @ cv2.invertAffineTransform(to_crop).T  # (4, 2)
    last = np.array([shape[1], shape[0]]) - 1
    once = (corners >= -last).all() and (corners <= 2 * last).all()
    return cv2.BORDER_REFLECT_101 if once else cv2.BORDER_REPLICATE


def _corners(size: int) -> NDArray[np.int_]:
    """Corners of a crop, one pixel outside it, in homogeneous coordinates x, y, 1: (4, 3)."""
    return np.array([[-1, -1, 1], [size, -1, 1], [-1, size, 1], [size, size, 1]])


def _average(crop: Pixels, size: int) -> NDArray[np.uint8]:
    """The square crop, averaged down to the side `size` and converted to 8 bits."""
    if len(crop) > size:
        crop = np.asarray(cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA))
    return to_uint8(crop)


def _supersampling(to_crop: NDArray[np.float64], limit: int) -> int:
    """The smallest power of two at which neighbouring samples are at most one image pixel apart."""
    shrink = 1 / _scale(to_crop)
    return 1 if shrink <= 1 else int(2 ** math.ceil(math.log2(min(shrink, limit))))


def _scale(matrix: NDArray[np.float64]) -> float:
    """Crop pixels per image pixel of a similarity."""
    return math.hypot(matrix[0, 0], matrix[1, 0])
