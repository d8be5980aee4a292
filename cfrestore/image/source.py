"""Reads the bytes of a picture from a file, a stream or memory."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from cfrestore.errors import ImageError
from cfrestore.image.formats import FORMATS, is_video, kind_of
from cfrestore.image.photo import name_of, reason_of

_BLOCK = 1 << 24
_LONGEST_PIXEL = 8  # bytes: four channels of 16 bits
_METADATA = 1 << 26  # bytes allowed in a file besides its pixels


def read_bytes(source: str | Path | bytes | BinaryIO, max_pixels: int) -> tuple[bytes, str]:
    """Returns all bytes of a picture, and the format that their signature names.

    Data without a known signature are rejected after the first block, however long they are.

    Raises:
        ImageError: missing, unreadable, empty, unknown, or longer than max_pixels allow.
        TypeError: the source is of another type.
    """
    if not (isinstance(source, (str, os.PathLike, bytes)) or hasattr(source, "read")):
        found = type(source).__name__
        raise TypeError(f"source must be a path, bytes or a binary stream, found {found}")
    name = name_of(source)
    try:
        if isinstance(source, bytes):
            data = source
        elif isinstance(source, (str, os.PathLike)):
            with Path(source).open("rb") as stream:
                data = _take(stream, name, max_pixels)
        else:
            data = _take(source, name, max_pixels)
    except (OSError, ValueError, TypeError, MemoryError) as error:
        raise ImageError(f"{name} cannot be read: {reason_of(error)}") from error
    if not data:
        raise ImageError(f"{name} is empty")
    return data, _known_kind(data, name)


def _take(stream: BinaryIO, name: str, max_pixels: int) -> bytes:
    buffer = BytesIO()
    while block := stream.read(_BLOCK):
        if buffer.tell() == 0 and len(block) == _BLOCK:
            _known_kind(block, name)
        buffer.write(block)
        if buffer.tell() > _LONGEST_PIXEL * max_pixels + _METADATA:
            raise ImageError(f"{name} has more bytes than a picture of {max_pixels:,} pixels can")
    return buffer.getvalue()


def _known_kind(data: bytes, name: str) -> str:
    kind = kind_of(data)
    if kind is None and is_video(data):
        raise ImageError(f"{name} is a video, whose faces `cfrestore video` restores")
    if kind is None:
        raise ImageError(f"{name} is not a picture of a known kind ({', '.join(FORMATS)})")
    return kind
