"""Decodes bytes to a Photo.

Pillow decodes pictures of 8 bits. It reduces 16 bits to 8, so 16-bit pictures are decoded by
png.py, tiff.py and ppm.py.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.ExifTags import Base as Tag

from cfrestore.errors import ImageError
from cfrestore.image import directory, png, ppm, tiff
from cfrestore.image.formats import EXTENSIONS, FORMATS
from cfrestore.image.heif import missing_codec
from cfrestore.image.metadata import Metadata, metadata_of
from cfrestore.image.photo import Photo, bands, equal_channels, name_of, reason_of
from cfrestore.image.pillow import reading
from cfrestore.image.remarks import remarks_on
from cfrestore.image.source import read_bytes
from cfrestore.image.stored import Stored

MAX_PIXELS = 500_000_000

_GRAY_MODES = ("1", "L", "LA", "La")

# No decoder documents what it raises when the bytes are damaged; these have been seen.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    cv2.error,
)


def read_photo(source: str | Path | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Reads a photograph from a file, bytes, or a binary stream that need not seek.

    The bytes decide the format, not the name. Of several pages or frames the first is read. CMYK
    is converted to sRGB, through its profile if it has one. 16-bit gray and RGB stay 16 bits in
    PNG, TIFF and PPM. The photograph's notes say what was not read.

    Args:
        source: path, encoded bytes, or an open binary stream, read to its end.
        max_pixels: largest height times width that is decoded.
    Raises:
        ImageError: missing, unreadable, empty, unknown, damaged, truncated or too large.
        TypeError: the source is of another type, or max_pixels is no number.
    """
    if not isinstance(max_pixels, (int, float)):  # or the error would blame the picture
        raise TypeError(f"max_pixels must be a number, found {type(max_pixels).__name__}")
    name = name_of(source)
    data, kind = read_bytes(source, max_pixels)
    if needed := missing_codec(kind):
        raise ImageError(f"{name} is {kind}, for which cfrestore needs {needed}")

    def check(height: int, width: int) -> None:
        if height * width > max_pixels:
            found = f"{width}x{height} = {height * width:,} pixels"
            raise ImageError(f"{name} has {found}, more than the limit of {max_pixels:,}")

    try:
        with reading():
            photo = _decode(data, kind, check)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is a damaged {kind}, or of a sort that is not read") from error
    except _DECODER_ERRORS as error:
        raise ImageError(f"{name} is {kind}, but cannot be decoded: {_reason(error)}") from error
    ending = Path(source).suffix.lower() if isinstance(source, (str, os.PathLike)) else ""
    if EXTENSIONS.get(ending, kind) == kind:
        return photo
    return replace(photo, notes=(f"It is {kind}, though it is called {ending}.", *photo.notes))


def _reason(error: Exception) -> str:
    """A decoder's own explanation of an error, if it is readable."""
    spoken = isinstance(error, (OSError, SyntaxError, ValueError, RuntimeError, MemoryError))
    reason = reason_of(error)
    return reason if spoken and not reason.startswith("decoder error") else "it is damaged"


def _decode(data: bytes, kind: str, check: Callable[[int, int], None]) -> Photo:
    if kind == "PPM" and (stored := ppm.samples_of(data)) is not None:
        check(*stored.size)
        return _photo(stored, Metadata(), kind)
    if kind == "TIFF":
        return _decode_tiff(data, check)
    with Image.open(BytesIO(data), formats=(kind,)) as image:
        check(image.height, image.width)
        image.load()  # 16 bits too: this detects truncation, and finds metadata after the pixels
        metadata = metadata_of(image, data)
        if kind == "PNG" and png.is_deep(data):
            key = image.info.get("transparency")
            image.close()
            photo = _photo(png.deep_samples(data, key), metadata, kind)
        else:
            photo = _shallow(image, metadata, kind)
        return _remarked(photo, image, data)


def _decode_tiff(data: bytes, check: Callable[[int, int], None]) -> Photo:
    turned, data = directory.take_orientation(data)
    tags = tiff.tags_of(data)
    check(tags[Tag.ImageLength], tags[Tag.ImageWidth])
    # Tiles are decoded whole, even in a small picture.
    check(tags.get(Tag.TileLength, 1), tags.get(Tag.TileWidth, 1))
    if 3 in tags.get(Tag.SampleFormat, ()):
        raise ValueError("samples that are floating-point numbers are not read")
    inks = tags.get(Tag.PhotometricInterpretation) == tiff.INKS
    if inks and tags.get(Tag.ExtraSamples) in ((1,), (2,)):
        data = tiff.without_alpha_of_inks(data)
    deep = tiff.deep_samples(data, tags) if tiff.is_deep(tags) else None
    try:
        image = Image.open(BytesIO(data), formats=("TIFF",))
    except UnidentifiedImageError:
        if deep is None:
            raise
        photo = _photo(deep, Metadata(turned or 1), "TIFF")  # 16-bit gray with alpha
        return _losing(photo, "Its metadata were not read.")
    with image:
        metadata = metadata_of(image, data, turned)
        image.getexif()[Tag.Orientation] = 1  # or Pillow turns by the XMP orientation
        if deep is None:
            image.load()
            photo = _shallow(image, metadata, "TIFF")
        else:
            photo = _photo(deep, metadata, "TIFF")
        return _remarked(photo, image, data)


def _shallow(image: Image.Image, metadata: Metadata, kind: str) -> Photo:
    """The photograph in a loaded image of 8 bits per channel."""
    if image.mode == "CMYK":
        inks = _inks(metadata.icc)
        through = "without a profile that can be used" if inks is None else "through its profile"
        photo = _photo(_samples(image, inks), replace(metadata, icc=None), kind)
        return _losing(photo, f"Its inks (CMYK) were converted to sRGB {through}.")
    photo = _photo(_samples(image), metadata, kind)
    if image.mode == "P" and photo.icc is None and equal_channels(photo.pixels):
        return replace(photo, gray=True)  # GIF has no other way to hold a gray picture
    return photo


def _remarked(photo: Photo, image: Image.Image, data: bytes) -> Photo:
    transparent = photo.alpha is not None
    photo = _losing(photo, *remarks_on(image, data, photo.format, transparent=transparent))
    if photo.alpha is not None and not FORMATS[photo.format].alpha and photo.alpha.min() < 255:
        gone = f"Its transparency cannot be written as {photo.format}."
        return replace(photo, lost=(*photo.lost, gone))
    return photo


def _losing(photo: Photo, *sentences: str) -> Photo:
    """The photograph with sentences added to its notes, and to what it has lost of the file."""
    return replace(photo, notes=(*photo.notes, *sentences), lost=(*photo.lost, *sentences))


def _photo(stored: Stored, metadata: Metadata, kind: str) -> Photo:
    pixels, alpha = stored.upright(metadata.orientation)
    return Photo(
        pixels,
        alpha,
        stored.gray,
        icc=metadata.icc,
        exif=metadata.exif,
        xmp=metadata.xmp,
        format=kind,
        dpi=metadata.dpi,
        photoshop=metadata.photoshop,
        comment=metadata.comment,
        texts=metadata.texts,
        colours=metadata.colours,
        jpeg=metadata.jpeg,
        lossless=metadata.lossless,
        notes=metadata.notes,
    )


def _samples(image: Image.Image, inks: ImageCms.ImageCmsTransform | None = None) -> Stored:
    """The samples of a loaded image, gray or RGB, with alpha if it has any transparency."""
    if image.mode == "F" or image.mode.startswith("I"):
        raise ValueError(f"samples of this kind ({image.mode}) are not read")
    gray, transparent = image.mode in _GRAY_MODES, image.has_transparency_data
    mode = ("L" if gray else "RGB") + ("A" if transparent else "")
    size = image.height, image.width

    def convert() -> Iterator[NDArray[np.uint8]]:
        for rows in bands((*size, 4)):
            part = image.crop((0, rows.start, image.width, rows.stop))
            if inks is not None:
                part = ImageCms.applyTransform(part, inks) or part
            samples = np.asarray(part if part.mode == mode else part.convert(mode))
            yield samples.reshape(*samples.shape[:2], -1)

    return Stored(size, np.dtype(np.uint8), gray, transparent, convert())


def _inks(icc: bytes | None) -> ImageCms.ImageCmsTransform | None:
    """The transform from CMYK through a profile to sRGB; None without a usable profile."""
    if icc is None:
        return None
    try:
        return ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(icc)),
            ImageCms.createProfile("sRGB"),
            "CMYK",
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError):
        return None
