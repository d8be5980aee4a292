"""Bytes to Photo and back, Photo to tensor and back, and the gray test."""

from cfrestore.image.decode import read_photo
from cfrestore.image.encode import write_photo
from cfrestore.image.photo import (
    EXTENSIONS,
    FORMATS,
    Photo,
    Pixels,
    from_tensor,
    is_gray,
    match_statistics,
    to_gray,
    to_tensor,
    to_uint8,
)

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "Photo",
    "Pixels",
    "from_tensor",
    "is_gray",
    "match_statistics",
    "read_photo",
    "to_gray",
    "to_tensor",
    "to_uint8",
    "write_photo",
]
