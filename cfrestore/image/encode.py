"""Photo to bytes, and bytes to a file in one step.

Pillow encodes 8-bit pictures. PPM, TIFF and 16-bit PNG are encoded here, because Pillow
reduces 16-bit colour to 8 bits and a TIFF is to keep the offsets inside its EXIF block.
"""

from __future__ import annotations

import os
import secrets
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image, PngImagePlugin

from cfrestore.errors import ConfigError, OutputError
from cfrestore.image.metadata import DESCRIPTIVE_TAGS, EXIF_HEAD, exif_entries
from cfrestore.image.photo import (
    EXTENSIONS,
    FORMATS,
    Photo,
    Pixels,
    equal_channels,
    name_of,
    reason_of,
    to_uint8,
)

_DEEP_FORMATS = ("PNG", "TIFF", "PPM")
_OPAQUE_FORMATS = ("JPEG", "BMP", "PPM")

_ENCODER_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
)


def write_photo(
    photo: Photo,
    target: str | Path | BinaryIO,
    *,
    format: str | None = None,
    quality: int = 95,
) -> None:
    """Writes a photograph so that the target is at every moment the old file or the whole new one.

    An existing file is replaced; whether it may be is the caller's to decide. A format without
    16 bits gets 8; BMP, GIF and PPM hold no EXIF, ICC or XMP.

    Args:
        photo: what to write, its metadata included.
        target: path, or a binary stream that need not seek.
        format: one of FORMATS or an extension, any case; None takes it from the target's
            extension, and photo.format for a stream or a name without one.
        quality: 1 to 100 for JPEG (always 4:4:4), AVIF and WebP; 100 makes WebP lossless.
    Raises:
        OutputError: format unknown, alpha that the format cannot hold, or the target not writable.
        ConfigError: quality out of range.
    """
    if not 1 <= quality <= 100:
        raise ConfigError(f"quality must lie in [1, 100], found {quality}")
    name = name_of(target)
    chosen = _choose_format(photo, target, format, name)
    try:
        data = _encode(photo, chosen, quality, name)
    except _ENCODER_ERRORS as error:
        raise OutputError(f"{name} cannot be encoded as {chosen}: {reason_of(error)}") from error
    try:
        if isinstance(target, (str, os.PathLike)):
            _replace(Path(os.path.realpath(target)), data)
        else:
            target.write(data)
    except (OSError, ValueError) as error:
        raise OutputError(f"{name} cannot be written: {reason_of(error)}") from error


def _choose_format(
    photo: Photo, target: str | Path | BinaryIO, asked: str | None, name: str
) -> str:
    extension = Path(target).suffix if isinstance(target, (str, os.PathLike)) else ""
    wanted = asked or extension or photo.format
    chosen = EXTENSIONS.get("." + wanted.lower().lstrip("."), wanted.upper())
    if chosen not in FORMATS:
        known = ", ".join(FORMATS)
        raise OutputError(f"{name} cannot be written as {wanted!r}: known formats are {known}")
    return chosen


def _encode(photo: Photo, format: str, quality: int, name: str) -> bytes:
    samples = _samples(photo, format, name)
    if format == "PPM":
        return _encode_ppm(samples)
    icc = photo.icc
    if icc is not None and icc[16:20] == b"GRAY" and samples.shape[2] >= 3:
        icc = None  # the picture has become a colour picture, which a gray profile cannot describe
    if format == "TIFF":
        return _encode_tiff(samples, icc, photo.exif, photo.xmp)
    if format == "PNG" and samples.dtype == np.uint16:
        return _encode_wide_png(samples, icc, photo.exif, photo.xmp)
    settings: dict[str, Any] = {"icc_profile": icc, "exif": photo.exif or b""}
    if photo.xmp is not None:
        settings["xmp"] = photo.xmp
    if format == "PNG":
        settings["pnginfo"] = PngImagePlugin.PngInfo()
        if photo.xmp is not None:
            settings["pnginfo"].add_itxt("XML:com.adobe.xmp", photo.xmp)
    elif format in ("JPEG", "AVIF"):
        settings.update(quality=quality, subsampling="4:4:4")
    elif format == "WEBP":
        settings.update(quality=quality, lossless=quality == 100, exact=True)
    buffer = BytesIO()
    Image.fromarray(samples.squeeze(axis=2) if samples.shape[2] == 1 else samples).save(
        buffer, format, **settings
    )
    return buffer.getvalue()


def _samples(photo: Photo, format: str, name: str) -> Pixels:
    """(H, W, 1 to 4) in the depth and with the channels that the format is to store."""
    pixels, alpha = photo.pixels, photo.alpha
    if alpha is not None and format in (*_OPAQUE_FORMATS, "GIF"):
        opaque = alpha == np.iinfo(alpha.dtype).max
        if not np.all(opaque | (alpha == 0) if format == "GIF" else opaque):
            raise OutputError(
                f"{name} cannot be written as {format}, which would lose the picture's "
                "transparency; write PNG or WebP instead"
            )
        if format != "GIF":
            alpha = None
    if photo.gray and equal_channels(pixels):
        pixels = pixels[..., :1]
    if alpha is not None:
        if format == "TIFF" and pixels.dtype == np.uint16 and pixels.shape[2] == 1:
            pixels = photo.pixels  # few readers, Pillow not among them, open 16-bit gray with alpha
        pixels = np.concatenate([pixels, alpha[..., None]], axis=2)
    if format not in _DEEP_FORMATS:
        pixels = to_uint8(pixels)
    return np.ascontiguousarray(pixels)


def _encode_ppm(samples: Pixels) -> bytes:
    height, width, channels = samples.shape
    kind, largest = ("P5" if channels == 1 else "P6"), np.iinfo(samples.dtype).max
    stored = samples.astype(samples.dtype.newbyteorder(">"), copy=False)
    return f"{kind}\n{width} {height}\n{largest}\n".encode() + stored.tobytes()


def _encode_wide_png(
    samples: Pixels, icc: bytes | None, exif: bytes | None, xmp: bytes | None
) -> bytes:
    """A 16-bit PNG with each row as differences to the pixel on the left.

    Source: Portable Network Graphics (third edition), sections 5, 9 and 11.
    """
    height, width, channels = samples.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    stored = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    rows = np.empty((height, 1 + stored.shape[1]), np.uint8)
    rows[:, 0] = 1
    rows[:, 1:] = stored
    rows[:, 1 + 2 * channels :] -= stored[:, : -2 * channels]
    body = zlib.compress(rows.data)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    if icc is not None:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc)))
    if exif is not None:
        chunks.append((b"eXIf", exif.removeprefix(EXIF_HEAD)))
    if xmp is not None:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    chunks += [(b"IDAT", body[at : at + (1 << 24)]) for at in range(0, len(body), 1 << 24)]
    chunks.append((b"IEND", b""))
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        check = zlib.crc32(content, zlib.crc32(kind))
        parts += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", check)]
    return b"".join(parts)


def _encode_tiff(
    samples: Pixels, icc: bytes | None, exif: bytes | None, xmp: bytes | None
) -> bytes:
    """A deflated TIFF built onto the EXIF block, which is a small TIFF file itself.

    The block stays where it is, so every offset in it (makers' notes too) remains valid; only the
    first directory is written anew, with the layout of the pixels added.

    Source: TIFF revision 6.0, sections 2, 8, 14 and 18; technical note 3 for lossless predictors.
    """
    height, width, channels = samples.shape
    block = exif.removeprefix(EXIF_HEAD) if exif is not None else b""
    entries: dict[int, bytes] = {}
    try:
        for tag, _, at in exif_entries(block):
            if tag in DESCRIPTIVE_TAGS:
                entries[tag] = block[at : at + 12]
    except struct.error:
        block, entries = b"II*\0\0\0\0\0", {}
    order: Literal["<", ">"] = "<" if block[:2] == b"II" else ">"
    file = bytearray(block)

    def append(content: bytes) -> int:
        file.extend(b"\0" * (len(file) % 2))
        file.extend(content)
        return len(file) - len(content)

    def put(tag: int, kind: str, *values: int) -> None:
        content = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(content) > 4:
            content = struct.pack(order + "I", append(content))
        code = {"B": 7, "H": 3, "I": 4}[kind]
        entries[tag] = struct.pack(order + "HHI4s", tag, code, len(values), content.ljust(4, b"\0"))

    differences = samples.copy()
    differences[:, 1:] -= samples[:, :-1]
    stored = differences.astype(samples.dtype.newbyteorder(order), copy=False)
    rows = max(1, (1 << 20) // (width * channels * samples.itemsize))
    strips = [zlib.compress(stored[top : top + rows].data) for top in range(0, height, rows)]
    put(256, "I", width)
    put(257, "I", height)
    put(258, "H", *[8 * samples.itemsize] * channels)
    put(259, "H", 8)
    put(262, "H", 2 if channels >= 3 else 1)
    put(273, "I", *[append(strip) for strip in strips])
    put(277, "H", channels)
    put(278, "I", rows)
    put(279, "I", *map(len, strips))
    put(284, "H", 1)
    put(317, "H", 2)
    if channels in (2, 4):
        put(338, "H", 2)
    if icc is not None:
        put(34675, "B", *icc)
    if xmp is not None:
        put(700, "B", *xmp)
    directory = b"".join(entries[tag] for tag in sorted(entries))
    start = append(struct.pack(order + "H", len(entries)) + directory + b"\0\0\0\0")
    struct.pack_into(order + "I", file, 4, start)
    return bytes(file)


def _replace(target: Path, data: bytes) -> None:
    """Puts data in the place of target in one step; a device or pipe is written to directly."""
    if target.exists() and not target.is_file():
        target.write_bytes(data)
        return
    temporary = target.with_name(f".cfrestore-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
