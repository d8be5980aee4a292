"""Converts samples as files hold them to upright pixels and back, a band of rows at a time.

A hundred megapixels should be in memory once, not once more for every step of the conversion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfrestore.image.photo import Photo, Pixels


@dataclass(frozen=True, eq=False)
class Stored:
    """The samples of a picture as its file holds them, not yet turned upright.

    Attributes:
        size: height and width as stored.
        dtype: uint8 or uint16.
        gray: there is one colour channel, not three.
        transparent: there is one more channel, the last, which is alpha.
        bands: (h, W, channels) each, top to bottom; can be consumed once.
    """

    size: tuple[int, int]
    dtype: np.dtype[np.uint8] | np.dtype[np.uint16]
    gray: bool
    transparent: bool
    bands: Iterator[Pixels]

    def upright(self, orientation: int) -> tuple[Pixels, Pixels | None]:
        """Pixels (H, W, 3) and alpha (H, W), turned by the EXIF orientation, 1 to 8."""
        size = self.size if orientation < 5 else self.size[::-1]
        pixels: Pixels = np.empty((*size, 3), self.dtype)
        alpha: Pixels | None = np.empty(size, self.dtype) if self.transparent else None
        top = 0
        for band in self.bands:
            rows = slice(top, top + len(band))
            colours = 1 if self.gray else 3
            _as_stored(pixels, orientation)[rows] = band[..., :colours]
            if alpha is not None:
                _as_stored(alpha, orientation)[rows] = band[..., colours]
            top = rows.stop
        return pixels, alpha


def _as_stored(upright: NDArray[np.generic], orientation: int) -> NDArray[np.generic]:
    """A view of an upright picture in the order of its file."""
    if orientation in (2, 3, 6, 7):
        upright = upright[:, ::-1]
    if orientation in (3, 4, 7, 8):
        upright = upright[::-1]
    return upright.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else upright


def interleaved(photo: Photo, rows: slice = slice(None)) -> Pixels:
    """Rows of a photograph, gray or RGB and alpha interleaved: (h, W, 1 to 4)."""
    pixels = photo.pixels[rows, :, :1] if photo.gray else photo.pixels[rows]
    if photo.alpha is None:
        return np.ascontiguousarray(pixels)
    return np.concatenate([pixels, photo.alpha[rows, :, None]], axis=2)
