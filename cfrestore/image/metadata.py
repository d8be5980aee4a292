"""Extracts the metadata of a file from an image that Pillow has opened."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from PIL import Image, JpegImagePlugin, TiffImagePlugin
from PIL.ExifTags import Base as Tag

from cfrestore.image import directory, jpeg, png, tiff, xmp
from cfrestore.image.photo import Chunks

_EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"

_BROKEN = (ArithmeticError, LookupError, OSError, RuntimeError, SyntaxError, TypeError, ValueError)
"""Exceptions that Pillow has been seen to raise on damaged metadata, besides struct.error."""


@dataclass(frozen=True)
class Metadata:
    """Fields of Photo, with the same names, and the orientation before exif and xmp were reset."""

    orientation: int = 1
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    photoshop: bytes | None = None
    comment: bytes | None = None
    texts: Chunks = ()
    colours: Chunks = ()
    jpeg: jpeg.JpegCoding | None = None
    lossless: bool = False
    notes: tuple[str, ...] = ()


def metadata_of(image: Image.Image, data: bytes, turned: int | None = None) -> Metadata:
    """The metadata of a file, with orientation reset and without thumbnails.

    Args:
        image: the opened file; already loaded if it is a PNG.
        data: the file's bytes.
        turned: the orientation that was reset in the file before it was opened.
    """
    notes = []
    try:
        block = _exif_of(image)
    except (*_BROKEN, struct.error):
        block = None
        notes.append("Its EXIF is damaged and was not read.")
    by_exif, exif = _upright_exif(block)
    by_xmp, packet = _upright_xmp(image)
    stated = turned or by_exif or by_xmp
    orientation = stated if stated is not None and 1 <= stated <= 8 else 1
    resources, coding = None, None
    colours: Chunks = ()
    texts: Chunks = ()
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        resources, coding = jpeg.photoshop_of(image), jpeg.coding_of(image)
        if coding is not None and orientation > 4:
            coding = coding.turned()
        if any(content.startswith(_EXTENDED_XMP) for _, content in image.applist):
            notes.append("The extended part of its XMP was not read.")
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        resources = tiff.photoshop_of(image)
    elif image.format == "PNG":
        colours, texts = png.chunks_of(data)
    dpi = _dpi_of(image)
    return Metadata(
        orientation=orientation,
        icc=_bytes_of(image, "icc_profile"),
        exif=exif,
        xmp=packet,
        dpi=dpi[::-1] if dpi is not None and orientation > 4 else dpi,
        photoshop=jpeg.without_thumbnails(resources) if resources else None,
        comment=_bytes_of(image, "comment") if image.format in ("JPEG", "MPO", "GIF") else None,
        texts=texts,
        colours=colours,
        jpeg=coding,
        lossless=image.format == "WEBP" and _has_chunk(data, b"VP8L"),
        notes=tuple(notes),
    )


def _upright_exif(block: bytes | None) -> tuple[int | None, bytes | None]:
    """The orientation in an EXIF block, and the block with it reset, without its thumbnail."""
    if block is None:
        return None, None
    found, content = directory.take_orientation(block[len(directory.EXIF_HEAD) :])
    return found, directory.EXIF_HEAD + directory.without_thumbnail(content)


def _upright_xmp(image: Image.Image) -> tuple[int | None, bytes | None]:
    """The orientation in XMP, and the packet with it reset, without thumbnails.

    The XMP orientation of AVIF and HEIF is ignored: these formats store the rotation themselves.
    """
    packet = _bytes_of(image, "xmp")
    if packet is None:
        return None, None
    found, packet = xmp.take_orientation(packet)
    return found if image.format not in ("AVIF", "HEIF") else 1, xmp.without_thumbnails(packet)


def _bytes_of(image: Image.Image, key: str) -> bytes | None:
    """An entry of Pillow's info as bytes; None if it is absent or empty."""
    value = image.info.get(key)
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) and value else None


def _exif_of(image: Image.Image) -> bytes | None:
    """The EXIF block that Pillow finds, with its header, or None."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return tiff.exif_of(image)
    exif = _bytes_of(image, "exif")
    old_style = image.info.get("Raw profile type exif")
    if exif is None and isinstance(old_style, str):
        exif = bytes.fromhex("".join(old_style.split("\n")[3:]))
    if exif is None or exif.startswith(directory.EXIF_HEAD):
        return exif
    return directory.EXIF_HEAD + exif


def _dpi_of(image: Image.Image) -> tuple[float, float] | None:
    """Pixels per inch, if the file states a plausible value."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and Tag.XResolution not in image.tag_v2:
        return None  # Pillow reports 1 if there is none
    try:
        across, down = map(float, image.info["dpi"])
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return None
    usable = all(math.isfinite(value) and 0 < value < 65_000 for value in (across, down))
    return (across, down) if usable else None


def _has_chunk(data: bytes, wanted: bytes) -> bool:
    """Whether a RIFF file has a chunk of that name."""
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        if name == wanted:
            return True
        at += 8 + size + size % 2
    return False
