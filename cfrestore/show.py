"""Draws pictures for viewing: frames, comparisons side by side, contact sheets. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from cfrestore.align import PUBLISHED_SIZE, bounding_box, rescale
from cfrestore.image import Photo, resize
from cfrestore.paste import invert

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cfrestore.align import AlignedFace
    from cfrestore.image import Pixels

GREEN = (0, 255, 0)


def draw_frames(pixels: Pixels, faces: Sequence[AlignedFace], *, scale: int = 1) -> Pixels:
    """Draws a green frame just inside the square from which each face was cut.

    Args:
        pixels: (H * scale, W * scale, 3) uint8 or uint16 RGB.
        faces: aligned in the (H, W) picture.
        scale: how many times that picture was enlarged.
    Returns:
        The same shape and dtype, newly allocated.
    Source: the published pipeline, whose lines are about 3 px wide; but it draws none around faces
    larger than 1400 px, and its result is floating point.
    """
    canvas = pixels.copy()
    green = np.array(GREEN, np.float32) * (np.iinfo(pixels.dtype).max / 255)
    for face in faces:
        to_picture = invert(rescale(face.to_crop, PUBLISHED_SIZE / face.crop.shape[0]), scale)
        box = bounding_box(PUBLISHED_SIZE, to_picture, canvas.shape[:2])
        if box is None:
            continue
        rows, columns = box
        side = PUBLISHED_SIZE * math.hypot(to_picture[0, 0], to_picture[1, 0])
        width = max(1, int(1400 / side))
        frame = np.ones((PUBLISHED_SIZE, PUBLISHED_SIZE), np.float32)
        frame[width:-width, width:-width] = 0
        origin = np.array([[0, 0, columns.start], [0, 0, rows.start]])
        extent = (columns.stop - columns.start, rows.stop - rows.start)
        opacity = cv2.warpAffine(frame, to_picture - origin, extent)[..., None]
        region = canvas[rows, columns]
        region[...] = np.rint(region + (green - region) * opacity)
    return canvas


def side_by_side(before: Photo, after: Photo) -> Photo:
    """One picture: before, resized to the size of after, on the left and after on the right.

    It has the depth of after and the colour space of before.
    """

    def beside(left: Pixels, right: Pixels) -> Pixels:
        left = resize(left, *after.size).astype(right.dtype, copy=False)
        return np.concatenate([left, right], axis=1)

    alpha = None
    if before.alpha is not None and after.alpha is not None:
        alpha = beside(before.alpha, after.alpha)
    pixels = beside(before.pixels, after.pixels)
    return Photo(pixels, alpha, gray=before.gray and after.gray, icc=before.icc)


def sheet(pictures: NDArray[np.uint8], columns: int | None = None) -> NDArray[np.uint8]:
    """Pictures (N,h,w,3) tiled into one, row by row, in a grid as close to square as possible.

    Args:
        columns: number of columns, in place of the default.
    """
    count, height, width, _ = pictures.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    whole = np.zeros((rows * columns, height, width, 3), np.uint8)
    whole[:count] = pictures
    tiles = whole.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles.reshape(rows * height, columns * width, 3))
