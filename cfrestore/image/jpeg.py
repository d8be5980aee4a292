"""JPEG specifics: quantisation tables, colour sampling, and Photoshop resources."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import JpegImagePlugin

_SAMPLINGS = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0"}
_THUMBNAILS = (0x0409, 0x040C)
_PHOTOSHOP = b"Photoshop 3.0\0"
LONGEST = 65_533
"""Most bytes of content in one segment."""

_FINE = 737
"""Sum of the 64 luminance divisors at quality 90, by the formula of the IJG library."""


@dataclass(frozen=True)
class JpegCoding:
    """Quantisation and sampling of a JPEG, to be reused when it is written again.

    Attributes:
        tables: divisors of luminance and, in colour, of chrominance; 64 each, row by row.
        sampling: 4:4:4, 4:2:2 or 4:2:0.
    """

    tables: tuple[tuple[int, ...], ...]
    sampling: str

    @property
    def fine(self) -> bool:
        """Whether it is at least as fine as quality 90, and so does not harm restored faces."""
        return sum(self.tables[0]) <= _FINE

    def turned(self) -> JpegCoding:
        """The coding for the picture turned by 90 degrees; 4:2:2 has no counterpart there."""
        tables = tuple(tuple(t[8 * (k % 8) + k // 8] for k in range(64)) for t in self.tables)
        return JpegCoding(tables, "4:4:4" if self.sampling == "4:2:2" else self.sampling)


def coding_of(image: JpegImagePlugin.JpegImageFile) -> JpegCoding | None:
    """The coding of an opened gray or colour JPEG, or None if it cannot be reused."""
    layers = image.layer  # each: id, horizontal and vertical sampling, table
    if len(layers) not in (1, 3) or any(layer[3] not in image.quantization for layer in layers):
        return None
    tables = [tuple(image.quantization[layer[3]]) for layer in layers]
    samplings = [layer[1:3] for layer in layers]
    if tables[1:2] != tables[2:3] or samplings[1:] not in ([], [(1, 1), (1, 1)]):
        return None
    sampling = _SAMPLINGS.get(samplings[0]) if len(layers) == 3 else "4:4:4"
    usable = all(0 < divisor < 256 for table in tables for divisor in table)
    return JpegCoding(tuple(tables[:2]), sampling) if sampling and usable else None


def photoshop_of(image: JpegImagePlugin.JpegImageFile) -> bytes | None:
    """The Photoshop resources of an opened JPEG, including IPTC, or None."""
    parts = [content for kind, content in image.applist if kind == "APP13"]
    found = [part[len(_PHOTOSHOP) :] for part in parts if part.startswith(_PHOTOSHOP)]
    return b"".join(found) or None


def without_thumbnails(resources: bytes) -> bytes:
    """Photoshop resources without thumbnails, which show the unrestored photograph.

    Source: Adobe Photoshop File Formats Specification, image resource blocks.
    """
    return b"".join(resources[a:b] for kind, a, b in _blocks(resources) if kind not in _THUMBNAILS)


def _blocks(resources: bytes) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each block; everything from a damaged one on is number 0."""
    start = 0
    while start < len(resources):
        kind, end = 0, len(resources)
        try:
            mark, number, name = struct.unpack_from(">4sHB", resources, start)
            content = start + 6 + (name + 2) // 2 * 2 + 4
            (size,) = struct.unpack_from(">I", resources, content - 4)
        except struct.error:
            mark = b""
        if mark == b"8BIM":
            kind, end = number, content + (size + 1) // 2 * 2
        yield kind, start, end
        start = end


def photoshop_segments(resources: bytes) -> bytes:
    """Photoshop resources as JPEG segments."""
    size = LONGEST - len(_PHOTOSHOP)
    parts = [_PHOTOSHOP + resources[at : at + size] for at in range(0, len(resources), size)]
    return b"".join(b"\xff\xed" + struct.pack(">H", 2 + len(part)) + part for part in parts)
