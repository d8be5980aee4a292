"""Finds the pixels of a picture to be filled, and which face fills each of them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from cfrestore.align import bounding_box
from cfrestore.paste import invert

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cfrestore.align import AlignedFace
    from cfrestore.image import Photo, Pixels

    Holes = NDArray[np.bool_]
    """(H, W), true where a picture is to be filled."""


def white_holes(pixels: Pixels) -> Holes:
    """The pure white pixels of a picture (H, W, 3), which are holes to the published command."""
    return np.asarray((pixels == np.iinfo(pixels.dtype).max).all(axis=2))


def mask_holes(mask: Photo) -> Holes:
    """The bright pixels of a mask: at least half as bright as its brightest one.

    So a mask may have the values 0 and 1 as well as 0 and 255, and may be a JPEG, whose black is
    not quite black. Transparent pixels count as black.
    """
    brightness = mask.pixels.max(axis=2).astype(np.float32)
    if mask.alpha is not None:
        brightness *= mask.alpha
    return np.asarray((brightness > 0) & (brightness >= brightness.max() / 2))


def enlarge_holes(holes: Holes, scale: int) -> Holes:
    """The holes of the bicubically enlarged picture: every pixel that a hole contributes to."""
    height, width = holes.shape
    size, shown = (width * scale, height * scale), holes.astype(np.float32)
    return np.asarray(cv2.resize(shown, size, interpolation=cv2.INTER_CUBIC) != 0)


def share_holes(holes: Holes, faces: Sequence[AlignedFace], *, scale: int = 1) -> NDArray[np.int16]:
    """Decides which face fills each pixel: of all crops containing it, the one with nearest centre.

    So a face at the edge of its neighbour's crop is filled from its own, whatever their order.

    Args:
        holes: (H * scale, W * scale).
        faces: aligned in the (H, W) picture.
        scale: how many times the picture was enlarged.
    Returns:
        (H * scale, W * scale), indices of faces, -1 where there is no hole or no face.
    """
    owners = np.full(holes.shape, -1, np.int16)
    nearest = np.full(holes.shape, np.inf, np.float32)
    for index, face in enumerate(faces):
        size = face.crop.shape[0]
        to_picture = invert(face.to_crop, scale)
        box = bounding_box(size, to_picture, holes.shape)
        if box is None:
            continue
        y, x = np.ogrid[box]
        to_crop = cv2.invertAffineTransform(to_picture)
        across, down = (abs(a * x + b * y + c - (size - 1) / 2) for a, b, c in to_crop)
        distance = np.maximum(across, down).astype(np.float32)  # from the middle of the crop
        claimed = holes[box] & (distance <= size / 2) & (distance < nearest[box])
        owners[box][claimed] = index
        nearest[box][claimed] = distance[claimed]
    return owners


def blank(crop: NDArray[np.uint8], gap: Holes) -> NDArray[np.uint8]:
    """Paints the gap (S, S) of a crop (S, S, 3) white, as inpainting networks expect it."""
    return np.where(gap[..., None], np.uint8(255), crop)


def fill(crop: NDArray[np.uint8], original: NDArray[np.uint8], gap: Holes) -> NDArray[np.uint8]:
    """The original (S, S, 3), which the network was given, with the painted crop in the gap (S, S).

    Source: the published inpainting command.
    """
    return np.where(gap[..., None], crop, original)
