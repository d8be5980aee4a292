"""PNG specifics: text and colour chunks, and 16-bit samples, which Pillow reduces to 8.

OpenCV decodes 16-bit samples, from bytes that Pillow found intact; it is never given a path.

Source: Portable Network Graphics (third edition), sections 5, 9 and 11.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from cfrestore.image.photo import Chunks, Photo, Pixels, bands
from cfrestore.image.stored import Stored, interleaved

COLOURS = (b"cICP", b"sRGB", b"gAMA", b"cHRM")
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
XMP_KEYWORD = b"XML:com.adobe.xmp"

_HEAD = b"\x89PNG\r\n\x1a\n"
_ELSEWHERE = (XMP_KEYWORD, b"Raw profile type exif", b"Raw profile type APP1")
_GRAY, _GRAY_ALPHA = 0, 4


def chunks_of(data: bytes) -> tuple[Chunks, Chunks]:
    """The chunks that define the colour space, and the text chunks that are not EXIF or XMP."""
    colours, texts = [], []
    at = len(_HEAD)
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + 8 + size]
        if kind in COLOURS:
            colours.append((kind, content))
        elif kind in TEXTS and content.partition(b"\0")[0] not in _ELSEWHERE:
            texts.append((kind, content))
        at += 12 + size
    return tuple(dict(colours).items()), tuple(texts)


def xmp_chunk(packet: bytes) -> tuple[bytes, bytes]:
    """The chunk that holds an XMP packet."""
    return b"iTXt", XMP_KEYWORD + bytes(5) + packet


def is_deep(data: bytes) -> bool:
    """Whether a PNG holds 16-bit samples."""
    return data[24] == 16


def deep_samples(data: bytes, key: object) -> Stored:
    """The samples of a 16-bit PNG that Pillow found intact.

    Args:
        data: the file.
        key: the transparent colour, as Pillow returns it, or None.
    Raises:
        ValueError: the file is damaged after all.
    """
    samples = cv2.imdecode(np.frombuffer(_bare(data), np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise ValueError("its 16-bit samples are damaged")
    samples = samples.reshape(*samples.shape[:2], -1)  # gray, BGR or BGRA
    gray = data[25] in (_GRAY, _GRAY_ALPHA)
    return Stored(
        size=samples.shape[:2],
        dtype=samples.dtype,
        gray=gray,
        transparent=key is not None or bool(data[25] & 4),
        bands=_deep_bands(samples, gray, key),
    )


def _bare(data: bytes) -> bytes:
    """The file with its samples only; OpenCV's decoder comments on other chunks on stderr."""
    parts, at, kind = [data[: len(_HEAD)]], len(_HEAD), b""
    if any(data[26:28]) or data[28] > 1:
        raise ValueError("its samples are stored in an unknown way")
    while kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + size
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            parts.append(data[at : end + 4])
            if struct.unpack_from(">I", data, end) != (zlib.crc32(data[at + 4 : end]),):
                raise ValueError("its 16-bit samples are damaged")
        at = end + 4
    return b"".join(parts)


def _deep_bands(
    samples: NDArray[np.uint16], gray: bool, key: object
) -> Iterator[NDArray[np.uint16]]:
    for rows in bands(samples.shape):
        colours = samples[rows, :, :1] if gray else samples[rows, :, 2::-1]
        if key is not None:
            opaque = (colours != np.asarray(key)).any(axis=2, keepdims=True)
            yield np.concatenate([colours, opaque * np.uint16(65535)], axis=2)
        elif samples.shape[2] == 4:
            yield np.concatenate([colours, samples[rows, :, 3:]], axis=2)
        else:
            yield colours


def write_deep_png(photo: Photo, stream: BinaryIO) -> None:
    """Writes a 16-bit PNG, each row as differences from the pixel on the left."""
    height, width = photo.size
    kind = (_GRAY if photo.gray else 2) + (0 if photo.alpha is None else 4)
    stream.write(_HEAD)
    _write(stream, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    for name, content in photo.colours:
        _write(stream, name, content)
    if photo.icc is not None:
        _write(stream, b"iCCP", b"ICC Profile\0\0" + zlib.compress(photo.icc))
    if photo.dpi is not None:
        metres = [round(dots / 0.0254) for dots in photo.dpi]
        _write(stream, b"pHYs", struct.pack(">IIB", *metres, 1))
    if photo.exif is not None:
        _write(stream, b"eXIf", photo.exif.removeprefix(b"Exif\0\0"))
    texts = [*photo.texts, *([xmp_chunk(photo.xmp)] if photo.xmp is not None else [])]
    for name, content in texts:
        _write(stream, name, content)
    compressor = zlib.compressobj()
    for rows in bands((height, width, 4)):
        _write(stream, b"IDAT", compressor.compress(_filtered(interleaved(photo, rows)).data))
    _write(stream, b"IDAT", compressor.flush())
    _write(stream, b"IEND", b"")


def _filtered(samples: Pixels) -> NDArray[np.uint8]:
    """Rows of bytes; the first byte of each names the filter Sub, the others are differences."""
    height, _, channels = samples.shape
    stored = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    rows = np.empty((height, 1 + stored.shape[1]), np.uint8)
    rows[:, 0] = 1
    rows[:, 1:] = stored
    rows[:, 1 + 2 * channels :] -= stored[:, : -2 * channels]
    return rows


def _write(stream: BinaryIO, kind: bytes, content: bytes) -> None:
    check = zlib.crc32(content, zlib.crc32(kind))
    stream.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check))
