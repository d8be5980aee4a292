"""Reports, in whole sentences, what of a file's picture is missing from its Photo."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image, JpegImagePlugin, TiffImagePlugin
from PIL.ExifTags import Base as Tag

from cfrestore.image.directory import count_pages
from cfrestore.image.heif import bits_of

_COLOURS = {2: 3, 5: 4, 6: 3, 8: 3}  # by photometric interpretation; others have one
_PARTS = {"TIFF": "pages", "JPEG": "pictures", "HEIF": "pictures"}


def remarks_on(image: Image.Image, data: bytes, kind: str, *, transparent: bool) -> Iterator[str]:
    """Sentences on an opened image; its loaded pixels are lost afterwards.

    Args:
        transparent: the Photo has alpha.
    """
    bits = _bits_of(image, data)
    if bits > 8:
        yield f"Its {bits} bits a channel were read as 8."
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _has_more_channels(image, transparent):
        yield "Its channels beside the colours were not read."
    count = count_pages(data) if kind == "TIFF" else _count_frames(image)
    if count is None:
        yield "What follows its first frame is damaged and was not read."
    elif count > 1:
        yield f"Only the first of its {count} {_PARTS.get(kind, 'frames')} was read."
    elif _has_companions(image):
        yield "Only its main picture was read, without a gain map or others in the file."


def _has_more_channels(image: TiffImagePlugin.TiffImageFile, transparent: bool) -> bool:
    """Whether a TIFF has channels besides colours and alpha."""
    tags = image.tag_v2
    colours = _COLOURS.get(tags.get(Tag.PhotometricInterpretation, 1), 1)
    channels = tags.get(Tag.SamplesPerPixel, 1)
    return (Tag.ExtraSamples in tags and not transparent) or channels > colours + transparent


def _has_companions(image: Image.Image) -> bool:
    """Whether a JPEG or HEIC holds more than its picture: a gain map, a depth map and the like."""
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        return "mp" in image.info
    return bool(image.info.get("aux") or image.info.get("depth_images"))


def _bits_of(image: Image.Image, data: bytes) -> int:
    if image.mode == "CMYK" and isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(Tag.BitsPerSample, (8,)))
    return bits_of(image, data) if image.format in ("AVIF", "HEIF") else 8


def _count_frames(image: Image.Image) -> int | None:
    """Number of frames, or None if their sequence is damaged."""
    try:
        return int(getattr(image, "n_frames", 1))
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError):
        return None
