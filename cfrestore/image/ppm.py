"""Binary PPM and PGM of any depth; Pillow decodes all but 8 bits sample by sample in Python.

Source: the manual pages ppm(5) and pgm(5) of Netpbm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cfrestore.image.photo import Photo, Pixels, bands
from cfrestore.image.stored import Stored, interleaved

_GAP = rb"(?:\s|#[^\n]*\n)+"
_HEAD = re.compile(rb"P([56])" + (_GAP + rb"(\d{1,10})") * 3 + rb"\s")
_GRAY = 5


def samples_of(data: bytes) -> Stored | None:
    """The samples, scaled from the file's maximum to 8 or 16 bits; None for other kinds of file.

    Raises:
        ValueError: the file is truncated, or its header is impossible.
    """
    head = _HEAD.match(data)
    if head is None:
        return None
    kind, width, height, largest = map(int, head.groups())
    if not (width and height and 0 < largest < 65536):
        raise ValueError(f"it says {width}x{height} pixels of at most {largest}")
    shape = (height, width, 1 if kind == _GRAY else 3)
    return Stored(
        size=(height, width),
        dtype=np.dtype(np.uint8) if largest < 256 else np.dtype(np.uint16),
        gray=kind == _GRAY,
        transparent=False,
        bands=_stretched(data, head.end(), shape, largest),
    )


def _stretched(
    data: bytes, start: int, shape: tuple[int, int, int], largest: int
) -> Iterator[Pixels]:
    stored, top = (np.dtype(np.uint8), 255) if largest < 256 else (np.dtype(">u2"), 65535)
    if len(data) - start < math.prod(shape) * stored.itemsize:
        raise ValueError("it is cut short")
    whole: NDArray[Any] = np.frombuffer(data, stored, math.prod(shape), start).reshape(shape)
    for rows in bands(shape):
        samples = whole[rows]
        if largest != top:
            samples = np.rint(samples * np.float32(top / largest)).clip(0, top)
        yield samples.astype(stored.newbyteorder("="), copy=False)


def write_ppm(photo: Photo, stream: BinaryIO) -> None:
    """Writes a binary PGM if the photograph is gray, else a binary PPM."""
    height, width = photo.size
    kind, largest = (b"P5" if photo.gray else b"P6"), np.iinfo(photo.pixels.dtype).max
    stream.write(b"%s\n%d %d\n%d\n" % (kind, width, height, largest))
    for rows in bands(photo.pixels.shape):
        samples = interleaved(photo, rows)
        stream.write(samples.astype(samples.dtype.newbyteorder(">"), copy=False).tobytes())
