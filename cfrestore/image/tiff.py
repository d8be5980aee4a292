"""TIFF specifics: metadata mixed with layout tags, and 16-bit samples in many arrangements.

Pillow reads 8-bit TIFF. Of 16-bit TIFF it reads gray only, so colour is presented to it as a gray
picture whose rows hold the samples of all channels side by side. TIFF is written here, because
Pillow reduces 16-bit colour to 8 bits, and because offsets inside an EXIF block must stay valid.

Source: TIFF revision 6.0, sections 2, 8, 14, 15 and 18; technical note 3 for predictors.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from PIL import Image, TiffImagePlugin

from cfrestore.image.directory import EXIF_HEAD, DirectoryWriter, overwritten, read_directory
from cfrestore.image.photo import Photo, bands
from cfrestore.image.stored import Stored, interleaved

if TYPE_CHECKING:
    from numpy.typing import NDArray

XMP = 700
PHOTOSHOP = 34377
ICC = 34675
EXTRA_SAMPLES = 338
INKS = 5

_DESCRIPTIVE = frozenset(
    (270, 271, 272, 274, 282, 283, 296, 305, 306, 315, 316, 33432, 33723, 34665, 34853)
) | frozenset(range(40091, 40096))
"""Tags that describe the photograph rather than the layout of the file."""

_PREDICTED = (5, 8, 32946, 34925, 50000)
"""Lempel-Ziv compressions, which allow a predictor."""

_EMPTY = b"II*\0\0\0\0\0"


def exif_of(image: TiffImagePlugin.TiffImageFile) -> bytes | None:
    """The descriptive tags of an opened TIFF, as an EXIF block like that of other formats."""
    exif = image.getexif()
    for tag in set(exif) - _DESCRIPTIVE:
        del exif[tag]
    for directory in {34665, 34853} & set(exif):
        exif.get_ifd(directory)
    exif.bigtiff = False  # the block has 32-bit offsets in any case
    return exif.tobytes() if len(exif) else None


def photoshop_of(image: TiffImagePlugin.TiffImageFile) -> bytes | None:
    """The Photoshop resources of an opened TIFF, or None."""
    value = image.tag_v2.get(PHOTOSHOP)
    if isinstance(value, tuple) and len(value) == 1:
        (value,) = value  # as Pillow returns the bytes of unknown tags
    return value if isinstance(value, bytes) and value else None


# ---- reading 16 bits


def tags_of(data: bytes) -> dict[int, Any]:
    """The first directory of a TIFF file; several values of a tag are a tuple.

    Raises:
        struct.error: it is missing or truncated.
    """
    read_directory(data)  # raises where Pillow would accept a truncated one
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if b"+" in data[2:4] else 8])
    stream = BytesIO(data)
    stream.seek(tags.next)
    tags.load(stream)
    return {tag: tags[tag] for tag in (*range(254, 340), 530) if tag in tags}


def without_alpha_of_inks(data: bytes) -> bytes:
    """A CMYK TIFF with its extra channel unspecified, because Pillow reads no CMYK with alpha."""
    (entry,) = (e for e in read_directory(data).entries if e.tag == EXTRA_SAMPLES)
    return overwritten(data, entry.at, bytes(2))


def is_deep(tags: dict[int, Any]) -> bool:
    """Whether a TIFF holds 16-bit unsigned gray or RGB samples; 16-bit CMYK is left to Pillow."""
    whole = set(tags.get(339, (1,))) <= {1, 4}
    return set(tags.get(258, (1,))) == {16} and tags.get(262) in (0, 1, 2) and whole


def deep_samples(data: bytes, tags: dict[int, Any]) -> Stored:
    """The 16-bit samples of a TIFF's first page.

    Raises:
        ValueError: the samples are compressed in a way that mixes their channels.
        OSError: Pillow finds the file damaged.
    """
    compression = tags.get(259, 1)
    if compression not in (1, 32773, *_PREDICTED):
        raise ValueError(f"16-bit samples compressed by method {compression} are not supported")
    channels, gray = tags.get(277, 1), tags[262] != 2
    colours = 1 if gray else 3
    if not colours <= channels <= 16:
        raise ValueError(f"{channels} channels are not supported")
    planes = [None] if tags.get(284, 1) == 1 else [*range(channels)]
    kinds = tags.get(EXTRA_SAMPLES)
    unnamed = kinds is None and channels == colours + 1  # as OpenCV writes alpha
    transparent = unnamed or (channels > colours and kinds is not None and kinds[0] in (1, 2))
    return Stored(
        size=(tags[257], tags[256]),
        dtype=np.dtype(np.uint16),
        gray=gray,
        transparent=transparent,
        bands=_deep_bands(_gray_views(data, tags, planes), tags, colours + transparent),
    )


def _deep_bands(
    views: list[Image.Image], tags: dict[int, Any], wanted: int
) -> Iterator[NDArray[np.uint16]]:
    """Rows of the first `wanted` channels, from one view of all channels or one view each."""
    height, width, channels = tags[257], tags[256], tags.get(277, 1)
    differences = tags.get(317, 1) == 2 and tags.get(259, 1) in _PREDICTED
    step = tags.get(322, width)
    for rows in bands((height, width, channels)):
        box = (0, rows.start, views[0].width, rows.stop)
        parts = [np.asarray(view.crop(box), np.uint16) for view in views]
        shape = (rows.stop - rows.start, width, channels // len(parts))
        samples = np.concatenate([part.reshape(shape) for part in parts], axis=2)
        for left in range(0, width if differences else 0, step):
            tile = samples[:, left : left + step]
            np.cumsum(tile, axis=1, dtype=np.uint16, out=tile)
        samples = samples[..., :wanted]
        if tags[262] == 0:
            samples[..., 0] ^= 0xFFFF
        if wanted in (2, 4) and tags.get(EXTRA_SAMPLES, (2,))[0] == 1:
            samples = _divided(samples)
        yield samples


def _divided(samples: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Divides premultiplied colours by alpha, the last channel."""
    alpha = samples[..., -1:]
    colours = samples[..., :-1] / np.maximum(alpha, 1, dtype=np.float32) * 65535
    return np.dstack([colours.round().clip(0, 65535).astype(np.uint16), alpha])


def _gray_views(
    data: bytes, tags: dict[int, Any], planes: list[int] | list[None]
) -> list[Image.Image]:
    """The file as gray pictures: one per plane, or one whose rows hold the samples of all channels.

    The strips or tiles stay where they are; directories appended to the file redefine them.
    """
    order: Literal["<", ">"] = "<" if data[:2] == b"II" else ">"
    file = BytesIO()
    file.write(data)
    file.seek(0)
    file.write(b"II*\0" if order == "<" else b"MM\0*")
    pointer = 4
    for plane in planes:
        pointer = _gray_directory(DirectoryWriter(file, order), tags, plane).finish(pointer)
    whole, views = file.getvalue(), list[Image.Image]()
    for page in range(len(planes)):
        stream = BytesIO(whole)
        view = Image.open(stream, formats=("TIFF",))
        view.seek(page)
        view.load()
        stream.truncate(0)  # the file may be as large as its pixels
        views.append(view)
    return views


def _gray_directory(
    directory: DirectoryWriter, tags: dict[int, Any], plane: int | None
) -> DirectoryWriter:
    channels = tags.get(277, 1) if plane is None else 1
    directory.numbers(256, "I", tags[256] * channels)
    directory.numbers(257, "I", tags[257])
    directory.numbers(258, "H", 16)
    directory.numbers(259, "H", tags.get(259, 1))
    directory.numbers(262, "H", 1)
    directory.numbers(266, "H", tags.get(266, 1))
    directory.numbers(277, "H", 1)
    directory.numbers(278, "I", min(tags.get(278, tags[257]), tags[257]))
    if 322 in tags:
        directory.numbers(322, "I", tags[322] * channels)
        directory.numbers(323, "I", tags[323])
    for tag in {273, 279, 324, 325} & set(tags):
        pieces = tags[tag]
        if plane is not None:
            each = len(pieces) // tags[277]
            pieces = pieces[plane * each : (plane + 1) * each]
        directory.numbers(tag, "I", *pieces)
    return directory


# ---- writing


def write_tiff(photo: Photo, stream: BinaryIO) -> None:
    """Writes a deflated TIFF that begins with the EXIF block, which is a small TIFF file itself.

    The block stays in place, so every offset in it (maker notes too) remains valid; only the
    first directory is rewritten, with the layout of the pixels added.
    """
    block, kept = _descriptive(photo.exif)
    directory = DirectoryWriter(stream, "<" if block[:2] == b"II" else ">")
    directory.append(block)
    directory.entries.update(kept)
    channels = (1 if photo.gray else 3) + (photo.alpha is not None)
    step = max(1, (1 << 20) // (photo.size[1] * channels * photo.pixels.itemsize))
    strips = [(directory.append(strip), len(strip)) for strip in _strips(photo, step, directory)]
    directory.numbers(256, "I", photo.size[1])
    directory.numbers(257, "I", photo.size[0])
    directory.numbers(258, "H", *[8 * photo.pixels.itemsize] * channels)
    directory.numbers(259, "H", 8)
    directory.numbers(262, "H", 1 if photo.gray else 2)
    directory.numbers(273, "I", *(start for start, _ in strips))
    directory.numbers(277, "H", channels)
    directory.numbers(278, "I", step)
    directory.numbers(279, "I", *(size for _, size in strips))
    directory.numbers(284, "H", 1)
    directory.numbers(317, "H", 2)
    if photo.alpha is not None:
        directory.numbers(338, "H", 2)
    if photo.dpi is not None and 282 not in kept:
        for tag, dots in zip((282, 283), photo.dpi, strict=True):
            directory.put(tag, 5, 1, struct.pack(directory.order + "II", round(dots * 1000), 1000))
        directory.numbers(296, "H", 2)
    for tag, content in ((XMP, photo.xmp), (PHOTOSHOP, photo.photoshop), (ICC, photo.icc)):
        if content is not None:
            directory.put(tag, 7, len(content), content)
    directory.finish()


def _descriptive(exif: bytes | None) -> tuple[bytes, dict[int, bytes]]:
    """An EXIF block without its header, and the directory entries to keep."""
    block = (exif or b"").removeprefix(EXIF_HEAD)
    try:
        directory = read_directory(block)
    except struct.error:
        return _EMPTY, {}
    sound = (e for e in directory.entries if e.tag in _DESCRIPTIVE and directory.holds(e))
    return block, {e.tag: block[e.at - 8 : e.at + 4] for e in sound}


def _strips(photo: Photo, step: int, directory: DirectoryWriter) -> Iterator[bytes]:
    """Deflated rows, in which each pixel but the first is the difference from the one before."""
    for top in range(0, photo.size[0], step):
        samples = interleaved(photo, slice(top, top + step))
        differences = samples.copy()
        differences[:, 1:] -= samples[:, :-1]
        ordered = samples.dtype.newbyteorder(directory.order)
        yield zlib.compress(differences.astype(ordered, copy=False))
