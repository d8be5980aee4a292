"""Encodes a Photo, and replaces the target file in one step.

Pillow encodes 8-bit pictures. PPM, TIFF and 16-bit PNG are encoded in modules of their own.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from cfrestore.errors import ConfigError, OutputError
from cfrestore.files import fill_stream, replace_file
from cfrestore.image.fit import fit
from cfrestore.image.formats import EXTENSIONS, FORMATS
from cfrestore.image.heif import missing_codec
from cfrestore.image.jpeg import photoshop_segments
from cfrestore.image.photo import Photo, name_of, reason_of
from cfrestore.image.pillow import silent
from cfrestore.image.png import write_deep_png, xmp_chunk
from cfrestore.image.ppm import write_ppm
from cfrestore.image.stored import interleaved
from cfrestore.image.tiff import write_tiff

Quality: TypeAlias = int | Literal["keep"]

QUALITIES = {"JPEG": 95, "WEBP": 95, "AVIF": 90, "HEIF": 90}
"""Defaults where no quality is requested and the input suggests none."""

_PNG_LEVEL = 3
"""For zlib; its default, 6, takes twice the time for files that are 4 to 14 per cent smaller."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*")

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
    quality: Quality | None = None,
    metadata: Literal["keep", "strip"] = "keep",
    provenance: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Writes a photograph; at every moment the target is the old file or the complete new one.

    An existing file is replaced; the caller decides whether it may be.

    Args:
        photo: what to write, its metadata included.
        target: path, or a binary stream that need not seek.
        format: one of FORMATS or an extension, any case; None takes it from the target's
            extension, and photo.format for a stream or a name without one.
        quality: 1 to 100 for JPEG (always 4:4:4), WebP (where 100 is lossless), AVIF and HEIC;
            "keep" reuses the coding of a JPEG, and acts as None for other inputs. None keeps a
            JPEG's coding if that is at least as fine as quality 90, keeps a lossless WebP lossless,
            and otherwise takes the default in QUALITIES.
        metadata: "strip" writes only pixels, resolution and colour space, and no provenance.
        provenance: names and values of a record of the restoration for XMP; names consist of
            letters and digits.
    Returns:
        Whole sentences on what the format cannot hold of the photograph.
    Raises:
        OutputError: the format is unknown or too small for the picture, or the target is not
            writable.
        ConfigError: another argument is out of range.
        TypeError: the photo is none, or the target is of another type.
    """
    if not isinstance(photo, Photo):  # easily a Restoration, or the target
        raise TypeError(f"photo must be a Photo, found {type(photo).__name__}")
    if not (isinstance(target, (str, os.PathLike)) or hasattr(target, "write")):
        found = type(target).__name__
        raise TypeError(f"target must be a path or a binary stream, found {found}")
    _check(quality, metadata, provenance or {})
    name = name_of(target)
    chosen = _choose_format(photo, target, format, name)
    height, width = photo.size
    if max(height, width) > FORMATS[chosen].side:
        found = f"{FORMATS[chosen].side:,} pixels a side, and it has {width}x{height}"
        raise OutputError(f"{name} cannot be written as {chosen}, which holds {found}")
    if metadata == "strip":
        photo, provenance = _stripped(photo), None
    try:
        fitted, notes = fit(photo, chosen, provenance)
        encode = partial(_encode, fitted, chosen, quality)
        if isinstance(target, (str, os.PathLike)):
            replace_file(Path(target), encode)
        else:
            fill_stream(target, encode)
    except _ENCODER_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise OutputError(f"{name} cannot be written: {reason_of(error)}") from error
        raise OutputError(f"{name} cannot be encoded as {chosen}: {reason_of(error)}") from error
    return notes


def _check(quality: object, metadata: str, provenance: Mapping[str, str]) -> None:
    whole = isinstance(quality, int) and not isinstance(quality, bool) and 1 <= quality <= 100
    if not (quality is None or quality == "keep" or whole):
        raise ConfigError(f'quality must lie in [1, 100] or be "keep", found {quality!r}')
    if metadata not in ("keep", "strip"):
        raise ConfigError(f'metadata must be "keep" or "strip", found {metadata!r}')
    for key, value in provenance.items():
        if not _NAME.fullmatch(key):
            raise ConfigError(f"names in provenance must be of letters and digits, found {key!r}")
        if not isinstance(value, str):  # easily a number, such as w
            raise ConfigError(f"values in provenance must be text, found {value!r} for {key}")


def _choose_format(
    photo: Photo, target: str | Path | BinaryIO, asked: str | None, name: str
) -> str:
    extension = Path(target).suffix if isinstance(target, (str, os.PathLike)) else ""
    return writable_format(asked or extension or photo.format, name)


def writable_format(wanted: str, name: str) -> str:
    """The one of FORMATS that a name of a format or an extension means, in any case.

    Args:
        name: what is to be written, for messages.
    Raises:
        OutputError: it is unknown, or cannot be written on this machine.
    """
    chosen = EXTENSIONS.get("." + wanted.lower().lstrip("."), wanted.upper())
    if chosen not in FORMATS:
        known = ", ".join(FORMATS)
        raise OutputError(f"{name} cannot be written as {wanted!r}: known formats are {known}")
    if needed := missing_codec(chosen):
        raise OutputError(f"{name} cannot be written as {chosen}, which needs {needed}")
    return chosen


def _stripped(photo: Photo) -> Photo:
    """The photograph with only pixels, resolution and colour space."""
    return replace(photo, exif=None, xmp=None, photoshop=None, comment=None, texts=())


def _encode(photo: Photo, format: str, quality: Quality | None, stream: BinaryIO) -> None:
    """Writes a photograph that fits the format to a seekable binary stream."""
    if format == "PPM":
        return write_ppm(photo, stream)
    if format == "TIFF":
        return write_tiff(photo, stream)
    if format == "PNG" and photo.pixels.dtype == np.uint16:
        return write_deep_png(photo, stream)
    samples = interleaved(photo)
    if format == "GIF" and samples.shape[2] == 2:
        image = _gray_with_holes(samples)
    else:
        image = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
    sink: Any = _Sink(stream)
    with silent():
        image.save(sink, format, **_settings(photo, format, quality))
    return None


def _gray_with_holes(samples: NDArray[np.uint8 | np.uint16]) -> Image.Image:
    """Gray with alpha for a GIF: a palette of grays, one of which stands for transparent.

    Pillow would drop the alpha, or keep only a few of the grays. The rarest gray is given up;
    its pixels take the neighbouring gray.
    """
    gray, clear = samples[..., 0], samples[..., 1] == 0
    spare = int(np.bincount(gray[~clear], minlength=256).argmin())
    entries = np.where(gray == spare, spare - 1 if spare else 1, gray)
    entries[clear] = spare
    image = Image.fromarray(entries.astype(np.uint8))
    image.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
    image.info["transparency"] = spare
    return image


class _Sink:
    """Hides the file descriptor, to which Pillow would write directly.

    Pillow reports "encoder error" where the system reports a full disk.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.write, self.flush = stream.write, stream.flush
        self.seek, self.tell = stream.seek, stream.tell


def _settings(photo: Photo, format: str, quality: Quality | None) -> dict[str, Any]:
    """Arguments for Pillow's encoder; each format ignores those of others."""
    fields = {
        "icc_profile": photo.icc,
        "exif": photo.exif,
        "xmp": photo.xmp,
        "dpi": photo.dpi,
        "comment": photo.comment,
    }
    settings: dict[str, Any] = {key: value for key, value in fields.items() if value is not None}
    level = quality if isinstance(quality, int) else QUALITIES.get(format, 0)
    if format == "PNG":
        settings["compress_level"] = _PNG_LEVEL
        info = settings["pnginfo"] = PngImagePlugin.PngInfo()
        xmp = [xmp_chunk(photo.xmp)] if photo.xmp is not None else []
        for kind, content in (*photo.colours, *photo.texts, *xmp):
            info.add(kind, content)
    elif format == "JPEG":
        settings["extra"] = photoshop_segments(photo.photoshop or b"")
        coding = photo.jpeg
        if coding is not None and (quality == "keep" or (quality is None and coding.fine)):
            settings.update(qtables=coding.tables, subsampling=coding.sampling)
        else:
            settings.update(quality=level, subsampling="4:4:4")
    elif format == "WEBP":
        kept = photo.lossless and not isinstance(quality, int)
        settings.update(quality=level, lossless=kept or level == 100, exact=True)
    elif format == "AVIF":
        settings.update(quality=level, subsampling="4:4:4")
    elif format == "HEIF":
        settings.update(quality=level, chroma=444)
    return settings
