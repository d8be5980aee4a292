"""EXIF, XMP and colour profiles as Pillow finds them, and the orientation that two of them hold.

An EXIF block is b"Exif\\0\\0" and then a small TIFF file, whose first directory is read here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from PIL import Image

EXIF_HEAD = b"Exif\x00\x00"
ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb"(?<=tiff:Orientation)(=[\"']|>)([1-8])")

# Tags of a TIFF directory that describe the photograph rather than the layout of the file.
DESCRIPTIVE_TAGS = frozenset(
    (270, 271, 272, 274, 282, 283, 296, 305, 306, 315, 316, 33432, 34665, 34853)
) | frozenset(range(40091, 40096))


def info_bytes(image: Image.Image, key: str) -> bytes | None:
    """What Pillow keeps of a file under a key, as bytes; None when it is absent or empty."""
    value = image.info.get(key)
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) and value else None


def exif_of(image: Image.Image) -> bytes | None:
    """The EXIF block that Pillow finds beside the pixels, with its head, or None.

    Raises:
        ValueError: the block is text, as old PNG files have it, and damaged.
    """
    exif = info_bytes(image, "exif")
    old_style = image.info.get("Raw profile type exif")
    if exif is None and isinstance(old_style, str):
        exif = bytes.fromhex("".join(old_style.split("\n")[3:]))
    if exif is None or exif.startswith(EXIF_HEAD):
        return exif
    return EXIF_HEAD + exif


def tiff_exif(image: Image.Image) -> bytes | None:
    """The descriptive part of a TIFF's own directory, as the EXIF block other formats hold."""
    exif = image.getexif()
    for tag in set(exif) - DESCRIPTIVE_TAGS:
        del exif[tag]
    for directory in {34665, 34853} & set(exif):
        exif.get_ifd(directory)
    exif.bigtiff = False  # the block has 32-bit offsets whatever the file had
    return exif.tobytes() if len(exif) else None


def exif_entries(block: bytes) -> Iterator[tuple[int, int, int]]:
    """Tag, type and offset of each entry of the first directory of a TIFF block.

    Raises:
        struct.error: the block is cut short or something else.
    """
    if block[:4] not in (b"II*\0", b"MM\0*"):
        raise struct.error("no TIFF head")
    order = "<" if block[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", block, 4)
    (count,) = struct.unpack_from(order + "H", block, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, _, _ = struct.unpack_from(order + "HHI4s", block, at)
        yield tag, kind, at


def take_orientation(
    exif: bytes | None, xmp: bytes | None
) -> tuple[int, bytes | None, bytes | None]:
    """The orientation, of EXIF before XMP, and both blocks with it reset to 1, else unchanged."""
    orientations: list[int] = []
    if exif is not None:
        block = exif[len(EXIF_HEAD) :]
        order = "<" if block[:2] == b"II" else ">"
        try:
            places = [(at, kind) for tag, kind, at in exif_entries(block) if tag == ORIENTATION]
        except struct.error:
            places = []
        for at, kind in places:
            layout = order + {1: "B", 4: "I"}.get(kind, "H")
            orientations += struct.unpack_from(layout, block, at + 8)
            start, reset = len(EXIF_HEAD) + at + 8, struct.pack(layout, 1)
            exif = exif[:start] + reset + exif[start + len(reset) :]
    if xmp is not None:
        orientations += [int(digit) for _, digit in _XMP_ORIENTATION.findall(xmp)]
        xmp = _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)
    orientation = orientations[0] if orientations else 1
    return (orientation if 1 <= orientation <= 8 else 1), exif, xmp
