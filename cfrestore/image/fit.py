"""Adapts a Photo to a file format, and reports the losses in whole sentences."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cfrestore.image import xmp
from cfrestore.image.directory import EXIF_HEAD, read_directory
from cfrestore.image.formats import FORMATS
from cfrestore.image.jpeg import LONGEST
from cfrestore.image.photo import Photo, Pixels, bands, equal_channels, printable, to_uint8

_WORDS = {
    "icc": "its ICC profile",
    "colours": "what its PNG said of its colours",
    "exif": "its EXIF",
    "xmp": "its XMP",
    "photoshop": "its IPTC and other Photoshop resources",
    "texts": "its PNG texts",
    "comment": "its comment",
}
"""Fields of Photo whose loss is reported, with their names in the report."""

_LONGEST = {"exif": LONGEST, "xmp": LONGEST - 29, "comment": LONGEST}
"""Largest size of a field in a JPEG, in bytes; a segment of XMP begins with 29 of its own."""


def fit(
    photo: Photo, format: str, provenance: Mapping[str, str] | None = None
) -> tuple[Photo, tuple[str, ...]]:
    """Returns the photograph as the format can hold it, and sentences on what it cannot hold.

    Transparency is blended with white if the format has none. In the result, `gray` means that one
    channel is to be written. A lost resolution is not reported, as the picture does not suffer.

    Args:
        format: one of FORMATS.
        provenance: names and values to record in XMP.
    """
    notes: list[str] = []
    if photo.pixels.dtype == np.uint16 and not FORMATS[format].deep:
        alpha = None if photo.alpha is None else to_uint8(photo.alpha)
        photo = replace(photo, pixels=to_uint8(photo.pixels), alpha=alpha)
        notes.append(f"{format} has 8 bits a channel, to which its 16 were rounded.")
    photo = _fit_alpha(photo, format, notes)
    photo = _fit_colours(photo, format, notes)
    photo = _fit_metadata(photo, format, notes)
    if provenance and "xmp" not in FORMATS[format].holds:
        notes.append(f"{format} has no place for a record of the restoration.")
    elif provenance:
        photo = _recorded(photo, format, provenance, notes)
    return photo, tuple(notes)


def _fit_alpha(photo: Photo, format: str, notes: list[str]) -> Photo:
    bits, alpha = FORMATS[format].alpha, photo.alpha
    if alpha is None or bits == 8:
        return photo
    top = np.iinfo(alpha.dtype).max
    if (alpha == top).all():
        return photo if bits else replace(photo, alpha=None)
    if bits:
        whole = np.where(alpha > top // 2, top, 0).astype(alpha.dtype)
        if not np.array_equal(whole, alpha):
            notes.append(f"{format} has no half transparency: it was made whole or none.")
        return replace(photo, alpha=whole)
    notes.append(f"{format} has no transparency: the picture was laid on white.")
    return replace(photo, pixels=_on_white(photo.pixels, alpha), alpha=None)


def _on_white(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Blends pixels with white, on the values as they are stored."""
    top = np.iinfo(pixels.dtype).max
    result = np.empty_like(pixels)
    for rows in bands(pixels.shape):
        share = alpha[rows, :, None] / np.float32(top)
        result[rows] = np.rint(top - (top - pixels[rows]) * share)
    return result


def _fit_colours(photo: Photo, format: str, notes: list[str]) -> Photo:
    gray = photo.gray and equal_channels(photo.pixels)
    if gray and format == "TIFF" and photo.pixels.dtype == np.uint16 and photo.alpha is not None:
        gray = False
        notes.append("It was written in colour, for few programs open 16-bit gray with alpha.")
    if format == "GIF" and not gray:
        notes.append("GIF has 256 colours, of which the nearest were taken.")
    icc = photo.icc
    if icc is not None and icc[16:20] == b"GRAY" and not gray:
        icc = None
        notes.append("Its profile for gray was left out, for the picture is written in colour.")
    return replace(photo, gray=gray, icc=icc)


def _recorded(photo: Photo, format: str, provenance: Mapping[str, str], notes: list[str]) -> Photo:
    record = {key: printable(value) for key, value in provenance.items()}
    packet = xmp.with_record(photo.xmp, record)
    if packet is None:
        notes.append("Its XMP is damaged, so that the restoration was not recorded in it.")
    elif format == "JPEG" and len(packet) > _LONGEST["xmp"]:
        notes.append("Its XMP is too long for a record of the restoration.")
    else:
        photo = replace(photo, xmp=packet)
    return photo


def _fit_metadata(photo: Photo, format: str, notes: list[str]) -> Photo:
    """Drops the metadata that the format cannot hold."""
    if photo.exif is not None and format in ("TIFF", "AVIF", "HEIF") and not _sound(photo.exif):
        notes.append("Its EXIF is damaged and was left out.")
        photo = replace(photo, exif=None)
    longest = _LONGEST if format == "JPEG" else {}
    lost = []
    for field, word in _WORDS.items():
        value = getattr(photo, field)
        if value and (field not in FORMATS[format].holds or len(value) > longest.get(field, 2**32)):
            lost.append(word)
            nothing: Any = () if field in ("texts", "colours") else None
            photo = replace(photo, **{field: nothing})
    if lost:
        notes.append(f"{format} does not hold {', '.join(lost)}.")
    return photo


def _sound(exif: bytes) -> bool:
    """Whether an EXIF block can be parsed, which some formats need."""
    try:
        return not read_directory(exif.removeprefix(EXIF_HEAD)).big
    except struct.error:
        return False
