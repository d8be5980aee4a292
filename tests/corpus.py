"""Files as people, networks and disks damage them, and the result of reading each of them.

As a program: python tests/corpus.py FOLDER writes them there, to try other things on them.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Case:
    """One bad file.

    Attributes:
        name: what is wrong with it.
        file: its name.
        make: the file's contents, or a function that makes the file at a path.
        gives: the message of reading it; NAME stands for its path, ... for the decoder's words.
            For a picture that can be read, its size and its notes.
    """

    name: str
    file: str
    make: bytes | Callable[[Path], object]
    gives: str

    def put(self, folder: Path) -> Path:
        """Makes the file in a folder."""
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(self.make, bytes):
            path.write_bytes(self.make)
        else:
            self.make(path)
        return path


def picture(format: str, mode: str = "RGB", **settings: Any) -> bytes:
    """A whole file of 40x24 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 4), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format, **settings)
    return buffer.getvalue()


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png(width: int, height: int, *extra: bytes, samples: bytes = b"") -> bytes:
    """An 8-bit RGB PNG whose header gives any size."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(samples, 9))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + body + chunk(b"IEND", b"")


def tiff(content: bytes, *entries: tuple[int, int, int, int]) -> bytes:
    """A TIFF with one directory of (tag, type, count, value), and with content at 1024."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)
    return head.ljust(1024, b"\0") + content


def plain_tiff(
    content: bytes, width: int, height: int, bits: int, photometric: int, *others: tuple[int, ...]
) -> bytes:
    return tiff(
        content,
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, bits),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, 1024),
        (278, 4, 1, height),
        (279, 4, 1, len(content)),
        *others,  # type: ignore[arg-type]
    )


def sized(data: bytes, mark: bytes, offset: int, layout: str, *numbers: int) -> bytes:
    """The file with other numbers at an offset after a mark."""
    at = data.index(mark) + offset
    return data[:at] + struct.pack(layout, *numbers) + data[at + struct.calcsize(layout) :]


NANS = np.full((24, 40), np.nan, "<f4").tobytes()
INKS = np.zeros((24, 40, 5), np.uint8).tobytes()
TILED = (
    (256, 4, 1, 16),
    (257, 4, 1, 16),
    (258, 3, 1, 8),
    (259, 3, 1, 8),
    (262, 3, 1, 1),
    (322, 4, 1, 60_000),
    (323, 4, 1, 60_000),
    (324, 4, 1, 1024),
    (325, 4, 1, 11),
)
WHOLE = png(40, 24, samples=bytes(24 * 121))
LAUGHS = (
    b'<!DOCTYPE x [<!ENTITY a "haha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>&b;&b;</x:xmpmeta>"
)
MANY = f"{60_000}x{60_000} = {60_000**2:,} pixels, more than the limit of 500,000,000"
UNKNOWN = "NAME is not a picture of a known kind (JPEG, PNG, WEBP, TIFF, BMP, GIF, PPM, AVIF, HEIF)"

CASES = (
    Case("nothing in it", "empty.jpg", b"", "NAME is empty"),
    Case("text", "letter.jpg", b"Dear sir, this is a letter.", UNKNOWN),
    Case("a page that says 404", "404.jpg", b"<!DOCTYPE html><html>Not found</html>", UNKNOWN),
    Case("a drawing", "logo.svg.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", UNKNOWN),
    Case(
        "a film",
        "film.jpg",
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        "NAME is a video, whose faces `cfrestore video` restores",
    ),
    Case("zeros", "zeros.png", bytes(100_000), UNKNOWN),
    Case("another ending", "really-png.jpg", WHOLE, "40x24. It is PNG, though it is called .jpg."),
    Case(
        "a JPEG cut short",
        "cut.jpg",
        cut(picture("JPEG")),
        "NAME is JPEG, but cannot be decoded: ...truncated...",
    ),
    Case(
        "a progressive JPEG cut short",
        "waves.jpg",
        cut(picture("JPEG", progressive=True)),
        "NAME is JPEG, but cannot be decoded: ...truncated...",
    ),
    Case(
        "a PNG cut short",
        "cut.png",
        cut(picture("PNG")),
        "NAME is PNG, but cannot be decoded: ...truncated...",
    ),
    Case(
        "a WebP cut short",
        "cut.webp",
        cut(picture("WEBP")),
        "NAME is WEBP, but cannot be decoded: ...",
    ),
    Case(
        "a TIFF cut short",
        "cut.tif",
        cut(picture("TIFF")),
        "NAME is TIFF, but cannot be decoded: ...",
    ),
    Case(
        "a GIF cut short",
        "cut.gif",
        cut(picture("GIF", "P")),
        "NAME is GIF, but cannot be decoded: ...truncated...",
    ),
    Case(
        "a BMP cut short",
        "cut.bmp",
        cut(picture("BMP")),
        "NAME is BMP, but cannot be decoded: ...truncated...",
    ),
    Case(
        "a PPM cut short",
        "cut.ppm",
        cut(picture("PPM")),
        "NAME is PPM, but cannot be decoded: it is cut short",
    ),
    Case("the first bytes of a PNG", "head.png", b"\x89PNG\r\n\x1a\n", "NAME is ...PNG..."),
    Case("a PNG that says it is huge", "bomb.png", png(60_000, 60_000), f"NAME has {MANY}"),
    Case(
        "a JPEG that says it is huge",
        "bomb.jpg",
        sized(picture("JPEG"), b"\xff\xc0", 5, ">HH", 60_000, 60_000),
        f"NAME has {MANY}",
    ),
    Case(
        "a GIF that says it is huge",
        "bomb.gif",
        sized(picture("GIF", "P"), b"GIF8", 6, "<HH", 60_000, 60_000),
        f"NAME has {MANY}",
    ),
    Case(
        "a BMP that says it is huge",
        "bomb.bmp",
        sized(picture("BMP"), b"BM", 18, "<ii", 60_000, 60_000),
        f"NAME has {MANY}",
    ),
    Case("a PPM that says it is huge", "bomb.ppm", b"P6 60000 60000 255\n", f"NAME has {MANY}"),
    Case(
        "a TIFF of one huge tile",
        "tile.tif",
        tiff(zlib.compress(bytes(99)), *TILED),
        f"NAME has {MANY}",
    ),
    Case(
        "a profile that unpacks to a gigabyte",
        "profile.png",
        png(40, 24, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**26), 9) * 2)),
        "NAME is PNG, but cannot be decoded: Decompressed data too large...",
    ),
    Case("a single pixel", "1x1.png", png(1, 1, samples=bytes(4)), "1x1."),
    Case("a line down", "1x20000.png", png(1, 20_000, samples=bytes(80_000)), "1x20000."),
    Case("a line across", "20000x1.png", png(20_000, 1, samples=bytes(60_001)), "20000x1."),
    Case("no pixels at all", "0x0.png", png(0, 0), "NAME is ...PNG..."),
    Case(
        "numbers that are none (NaN)",
        "nan.tif",
        plain_tiff(NANS, 40, 24, 32, 1, (339, 3, 1, 3)),
        "NAME is TIFF, but cannot be decoded: samples that are floating-point numbers are not read",
    ),
    Case(
        "32-bit integers",
        "integers.tif",
        picture("TIFF", "I"),
        "NAME is TIFF, but cannot be decoded: samples of this kind (I) are not read",
    ),
    Case(
        "CMYK with alpha",
        "inks.tif",
        plain_tiff(INKS, 40, 24, 8, 5, (277, 3, 1, 5), (338, 3, 1, 2)),
        "40x24. Its inks (CMYK) were converted to sRGB without a profile that can be used. Its "
        "channels beside the colours were not read.",
    ),
    Case(
        "CMYK with a broken profile",
        "inks.jpg",
        picture("JPEG", "CMYK", icc_profile=b"garbage" * 40),
        "40x24. Its inks (CMYK) were converted to sRGB without a profile that can be used.",
    ),
    Case("an ICC profile of garbage", "icc.jpg", picture("JPEG", icc_profile=b"x" * 300), "40x24."),
    Case("an EXIF block of garbage", "exif.jpg", picture("JPEG", exif=b"Exif\0\0junk"), "40x24."),
    Case(
        "an EXIF block that points nowhere",
        "nowhere.jpg",
        picture("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"),
        "40x24.",
    ),
    Case(
        "an EXIF block that points to itself",
        "itself.jpg",
        picture(
            "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0i\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
        ),
        "40x24.",
    ),
    Case("XMP that would unpack endlessly", "xmp.webp", picture("WEBP", xmp=LAUGHS), "40x24."),
    Case(
        "a TIFF whose pages go round in circles",
        "circle.tif",
        sized(plain_tiff(bytes(960), 40, 24, 8, 1), b"II*\0", 10 + 12 * 8, "<I", 8),
        "40x24.",
    ),
    Case(
        "an animation whose second frame is broken",
        "second.gif",
        picture("GIF", "P", save_all=True, append_images=[Image.new("P", (40, 24))])[:-20],
        "40x24. ...",
    ),
    Case("a folder called like a picture", "folder.jpg", Path.mkdir, "NAME cannot be read: ..."),
    Case(
        "a link to itself",
        "loop.jpg",
        lambda path: path.symlink_to(path),
        "NAME cannot be read: Too many levels of symbolic links",
    ),
    Case(
        "a link to nothing",
        "dangling.jpg",
        lambda path: path.symlink_to("nothing.jpg"),
        "NAME cannot be read: No such file or directory",
    ),
    Case(
        "no permission",
        "secret.jpg",
        lambda path: (path.write_bytes(WHOLE), path.chmod(0)),
        "NAME cannot be read: Permission denied",
    ),
)

NAMES = (
    "with spaces  .png",
    "'single' \"double\" `back`.png",
    "$(touch x); rm -rf *.png",
    "-o.png",
    "%s{0}{stem}[bold].png",
    "new\nline\ttab.png",
    "\x1b[31mred\x07.png",
    "Großmutter 👵🏽.png",
    "\u202egnp.exe.png",
    os.fsdecode(b"caf\xe9 \xff.png"),
    "a" * 200 + ".png",
)
"""Names that have broken programs before, for whole pictures; the last but one is not UTF-8."""


def describe(path: Path) -> str:
    """The result of reading a file, in the form of `Case.gives`."""
    from cfrestore.errors import ImageError
    from cfrestore.image import read_photo

    try:
        photo = read_photo(path)
    except ImageError as error:
        return str(error).replace(str(path), "NAME")
    height, width = photo.size
    return " ".join([f"{width}x{height}.", *photo.notes])


if __name__ == "__main__":
    for case in CASES:
        case.put(Path(sys.argv[1]))
    for name in NAMES:
        (Path(sys.argv[1]) / name).write_bytes(WHOLE)
