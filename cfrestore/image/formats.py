"""The file formats: their extensions, signatures and capabilities."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A file format as it is written here.

    Attributes:
        extensions: its file name extensions, lower case.
        holds: fields of Photo besides the pixels that it can store.
        deep: it can have 16 bits per channel.
        alpha: bits of alpha: 0 is none, 1 is all or nothing, 8 is the depth of the colours.
        side: longest side that can be written, in pixels.
    """

    extensions: tuple[str, ...]
    holds: frozenset[str] = frozenset()
    deep: bool = False
    alpha: int = 0
    side: int = 2**31 - 1


_EXCHANGED = frozenset(("icc", "exif", "xmp"))

FORMATS = {
    "JPEG": Format(
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        _EXCHANGED | {"dpi", "photoshop", "comment"},
        side=65_500,
    ),
    "PNG": Format((".png",), _EXCHANGED | {"dpi", "texts", "colours"}, deep=True, alpha=8),
    "WEBP": Format((".webp",), _EXCHANGED, alpha=8, side=16_383),
    "TIFF": Format((".tif", ".tiff"), _EXCHANGED | {"dpi", "photoshop"}, deep=True, alpha=8),
    "BMP": Format((".bmp",), frozenset(("dpi",))),
    "GIF": Format((".gif",), frozenset(("comment",)), alpha=1, side=65_535),
    "PPM": Format((".ppm", ".pgm", ".pbm", ".pnm"), deep=True),
    "AVIF": Format((".avif",), _EXCHANGED, alpha=8, side=65_536),
    "HEIF": Format((".heic", ".heif", ".hif"), _EXCHANGED, alpha=8),
}
"""All formats that are read and written, by Pillow's names."""

EXTENSIONS = {ending: name for name, format in FORMATS.items() for ending in format.extensions}
"""Format name by file name extension, lower case."""

_BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"GIF8": "GIF",
    **{b"P%d" % digit: "PPM" for digit in range(1, 7)},
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_ANY_BRANDS = (b"mif1", b"msf1")


def kind_of(data: bytes) -> str | None:
    """The format by the signature of the bytes, or None."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _kind_of_brands(data)
    return next((kind for start, kind in _BEGINNINGS.items() if data.startswith(start)), None)


def is_video(data: bytes) -> bool:
    """Whether the signature is that of a common video file, for data known to be no picture."""
    iso = data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free")
    return iso or data[:4] == b"\x1aE\xdf\xa3" or (data[:4], data[8:12]) == (b"RIFF", b"AVI ")


def _kind_of_brands(data: bytes) -> str | None:
    """AVIF or HEIF by the brands in the first box of an ISO file; None for videos and the like."""
    box = data[8 : min(int.from_bytes(data[:4], "big"), 1024)]
    brands = {box[at : at + 4] for at in range(0, len(box), 4)}
    if box[:4] in (b"avif", b"avis") or (box[:4] in _ANY_BRANDS and b"avif" in brands):
        return "AVIF"
    return "HEIF" if box[:4] in (*_HEIF_BRANDS, *_ANY_BRANDS) else None
