"""HEIC and AVIF support, which not every installation has."""

from __future__ import annotations

from PIL import Image, features

from cfrestore.extras import install


def missing_codec(kind: str) -> str | None:
    """What must be installed for pictures of that kind, as the end of a sentence, or None.

    Registers HEIC with Pillow when the first one is met.
    """
    if kind == "AVIF" and not features.check("avif"):
        return "a Pillow that was built with AVIF"
    if kind != "HEIF" or "HEIF" in Image.OPEN:
        return None
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return f"the extra cfrestore[heif] ({install('heif')})"
    register_heif_opener()
    return None


def bits_of(image: Image.Image, data: bytes) -> int:
    """Bits per channel of an opened HEIC or AVIF."""
    if image.format == "HEIF":
        return int(image.info.get("bit_depth", 8))
    at = data.find(b"av1C")
    flags = data[at + 6] if 0 <= at < len(data) - 6 else 0
    return 8 + 2 * bool(flags & 0x40) + 2 * bool(flags & 0x20)
