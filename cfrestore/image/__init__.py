"""Converts bytes to Photo and Photo to tensor, and back; and the gray test."""

from cfrestore.image.decode import MAX_PIXELS, read_photo
from cfrestore.image.encode import QUALITIES, Quality, writable_format, write_photo
from cfrestore.image.folder import is_picture, pictures_in
from cfrestore.image.formats import EXTENSIONS, FORMATS
from cfrestore.image.photo import (
    Photo,
    Pixels,
    brightness_of,
    equal_channels,
    from_levels,
    from_tensor,
    is_gray,
    keep_neutral,
    match_statistics,
    resize,
    to_depth,
    to_gray,
    to_levels,
    to_tensor,
    to_uint8,
)
from cfrestore.image.xmp import task_in

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "MAX_PIXELS",
    "QUALITIES",
    "Photo",
    "Pixels",
    "Quality",
    "brightness_of",
    "equal_channels",
    "from_levels",
    "from_tensor",
    "is_gray",
    "is_picture",
    "keep_neutral",
    "match_statistics",
    "pictures_in",
    "read_photo",
    "resize",
    "task_in",
    "to_depth",
    "to_gray",
    "to_levels",
    "to_tensor",
    "to_uint8",
    "writable_format",
    "write_photo",
]
