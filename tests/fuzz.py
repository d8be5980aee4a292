"""Damages small pictures of every kind at random and reads them; only ImageError may come out.

What can be read is written and read again.

As a program: python tests/fuzz.py COUNT [FIRST]. It reads the files of numbers FIRST to
FIRST + COUNT - 1, which are the same in every run, and prints the results as JSON.
"""

from __future__ import annotations

import faulthandler
import io
import json
import random
import struct
import sys
import time
import traceback
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

sys.path.insert(0, str(Path(__file__).parents[1]))

from cfrestore.errors import ImageError
from cfrestore.image import FORMATS, Photo, read_photo, write_photo
from cfrestore.image.heif import missing_codec

PIXELS = 1_000_000
SECONDS = 20
"""Seconds that one file may take before the run is ended; the slowest take less than one."""

NUMBERS = (0, 1, 2, 7, 8, 16, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1)


def kinds() -> list[bytes]:
    """Whole files, as different from each other as a few lines can make them."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (9, 13, 4), np.uint8)
    image = Image.fromarray(colours)
    exif = Image.Exif()
    exif[271], exif[274], exif[0x9C9B] = "Kamera", 6, "Titel".encode("utf-16le")
    exif.get_ifd(0x8769)[37500] = b"a maker's note" * 9
    extras: dict[str, Any] = {"exif": exif, "xmp": b"<x:xmpmeta/>", "icc_profile": bytes(200)}
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "x" * 90, zip=True)
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>")
    files = [
        save(image.convert(mode), "JPEG", **settings)
        for mode in ("RGB", "L", "CMYK")
        for settings in ({}, {"progressive": True}, {**extras, "comment": b"Oma"})
    ]
    files += [save(image.convert("RGB"), "MPO", save_all=True, append_images=[second()])]
    files += [
        save(image.convert(mode), "PNG", **settings)
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA")
        for settings in ({}, {**extras, "pnginfo": text})
    ]
    files += [save(image.convert("RGB"), "PNG", save_all=True, append_images=[second()])]
    files += [
        save(image.convert(mode), "TIFF", compression=method)
        for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK")
        for method in ("raw", "tiff_lzw", "packbits", "tiff_deflate", "jpeg")
        if method != "jpeg" or mode in ("L", "RGB")
    ]
    files += [save(image, "TIFF", save_all=True, append_images=[second()], **extras)]
    files += [save(image, "WEBP", **settings) for settings in ({}, {"lossless": True}, {**extras})]
    files += [save(image.convert("RGB"), "WEBP", save_all=True, append_images=[second()])]
    files += [save(image.convert(mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")]
    files += [save(image.convert(mode), "GIF", comment=b"Oma") for mode in ("1", "L", "P", "RGBA")]
    files += [save(image.convert("RGB"), "GIF", save_all=True, append_images=[second()])]
    files += [save(image.convert(mode), "PPM") for mode in ("1", "L", "RGB")]
    files += [b"P3 2 2 255 1 2 3 4 5 6 7 8 9 10 11 12\n", b"P1\n3 2\n1 0 1\n0 1 0\n"]
    if missing_codec("AVIF") is None:
        files += [save(image, "AVIF", **settings) for settings in ({}, extras)]
    deep = colours.astype(np.uint16) * 257
    gray = np.repeat(deep[..., :1], 3, axis=2)
    for photo in (
        Photo(np.ascontiguousarray(deep[..., :3]), deep[..., 3].copy()),
        Photo(gray, gray=True, dpi=(300, 300), photoshop=b"8BIM\4\4\0\0\0\0\0\4Oma "),
    ):
        for format in FORMATS:
            if missing_codec(format) is None:
                buffer = io.BytesIO()
                write_photo(photo, buffer, format=format)
                files.append(buffer.getvalue())
        flat = replace(photo, alpha=None)
        for format in ("PNG", "TIFF"):
            buffer = io.BytesIO()
            write_photo(flat, buffer, format=format, provenance={"model": "compact"})
            files.append(buffer.getvalue())
    return files


def second() -> Image.Image:
    """A second page or frame; a new one each time, as Pillow leaves settings in what it saves."""
    return Image.new("RGB", (13, 9), (9, 90, 200))


def save(image: Image.Image, format: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


def damaged(files: list[bytes], number: int) -> bytes:
    """One of the files with up to eight damages, always the same for the same number."""
    chance = random.Random(number)
    data = bytearray(chance.choice(files))
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        damage(data, files, chance)
    if data[:4] == b"\x89PNG" and chance.random() < 0.8:
        mend_png(data)
    return bytes(data)


def damage(data: bytearray, files: list[bytes], chance: random.Random) -> None:
    # Headers matter more than pixels, so half of the damages are near the beginning.
    end = max(1, len(data) if chance.random() < 0.5 else min(len(data), 120))
    at, length = chance.randrange(end), chance.choice((1, 2, 4, 8, 40))
    match chance.randrange(9):
        case 0:
            data[at : at + 1] = bytes([chance.randrange(256)])
        case 1 if data:
            data[min(at, len(data) - 1)] ^= 1 << chance.randrange(8)
        case 2:
            layout = chance.choice(("<H", ">H", "<I", ">I", "B"))
            number = chance.choice(NUMBERS) & (256 ** struct.calcsize(layout) - 1)
            content = struct.pack(layout, number)
            data[at : at + len(content)] = content
        case 3:
            del data[at : at + length]
        case 4:
            data[at:at] = data[at : at + length] * chance.choice((1, 2, 100))
        case 5:
            del data[chance.randrange(max(1, len(data))) :]
        case 6:
            other = chance.choice(files)
            start = chance.randrange(len(other))
            data[at : at + length] = other[start : start + length]
        case 7:
            data[at : at + length] = bytes(length)
        case _:
            data[at:at] = chance.randbytes(length)


def mend_png(data: bytearray) -> None:
    """Corrects the checksums of a PNG's chunks, so that their contents are read."""
    at = 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        if at + 12 + size > len(data):
            return
        check = zlib.crc32(data[at + 4 : at + 8 + size])
        struct.pack_into(">I", data, at + 8 + size, check)
        at += 12 + size


def outcome(data: bytes) -> str:
    """The result of reading a file: "read" or "refused".

    What can be read is written and read again, whatever its metadata are like now.

    Raises:
        AssertionError: the error is not a sentence on one line, or the size differs.
    """
    try:
        photo = read_photo(data, max_pixels=PIXELS)
    except ImageError as error:
        text = str(error)
        assert text.startswith("<bytes> ") and text.isprintable() and len(text) < 400, text
        return "refused"
    assert photo.size[0] * photo.size[1] <= PIXELS
    if photo.pixels.size < 100_000:
        buffer = io.BytesIO()
        write_photo(photo, buffer, provenance={"model": "compact"})
        assert read_photo(buffer.getvalue()).size == photo.size
    return "read"


def peak() -> float:
    """The most memory that this process ever had, in MB; 0 if the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main(count: int, first: int = 0) -> int:
    files = kinds()
    outcomes: Counter[str] = Counter(outcome(data) for data in files)
    assert outcomes == {"read": len(files)}, "a file is bad before it is damaged"
    outcomes.clear()
    before, slowest = peak(), 0.0
    for number in range(first, first + count):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        start = time.perf_counter()
        try:
            outcomes[outcome(damaged(files, number))] += 1
        except Exception:  # noqa: BLE001, exactly what is looked for
            sys.stderr.write(f"file {number}\n")
            traceback.print_exc()
            outcomes["wrong"] += 1
        slowest = max(slowest, time.perf_counter() - start)
    faulthandler.cancel_dump_traceback_later()
    result = {**outcomes, "kinds": len(files), "slowest": round(slowest, 3)}
    sys.stdout.write(json.dumps({**result, "grown": round(peak() - before, 1)}) + "\n")
    return 1 if outcomes["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
