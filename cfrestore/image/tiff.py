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
from PIL.ExifTags import Base as Tag

from cfrestore.image.directory import EXIF_HEAD, DirectoryWriter, overwritten, read_directory
from cfrestore.image.photo import Photo, bands
from cfrestore.image.stored import Stored, interleaved

if TYPE_CHECKING:
    from numpy.typing import NDArray

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, INKS = 0, 1, 2, 5
"""Photometric interpretations."""

_DESCRIPTIVE = frozenset(
    (
        Tag.ImageDescription,
        Tag.Make,
        Tag.Model,
        Tag.Orientation,
        Tag.XResolution,
        Tag.YResolution,
        Tag.ResolutionUnit,
        Tag.Software,
        Tag.DateTime,
        Tag.Artist,
        Tag.HostComputer,
        Tag.Copyright,
        Tag.IPTCNAA,
        Tag.ExifOffset,
        Tag.GPSInfo,
        Tag.XPTitle,
        Tag.XPComment,
        Tag.XPAuthor,
        Tag.XPKeywords,
        Tag.XPSubject,
    )
)
"""Tags that describe the photograph rather than the layout of the file."""

_UNCOMPRESSED, _PACK_BITS, _DEFLATE = 1, 32773, 8
_PREDICTED = (5, _DEFLATE, 32946, 34925, 50000)
"""Compressions that allow a predictor: LZW, Deflate by its two numbers, LZMA, Zstandard."""

_PIECES = {Tag.StripOffsets, Tag.StripByteCounts, Tag.TileOffsets, Tag.TileByteCounts}
"""Tags that say where strips or tiles are, and how long."""

_LAYOUT = (*range(Tag.NewSubfileType, Tag.SampleFormat + 1), Tag.YCbCrSubSampling)
"""Tags that are read, among them all that describe the layout of the pixels."""

_EMPTY = b"II*\0\0\0\0\0"


def exif_of(image: TiffImagePlugin.TiffImageFile) -> bytes | None:
    """The descriptive tags of an opened TIFF, as an EXIF block like that of other formats."""
    exif = image.getexif()
    for tag in set(exif) - _DESCRIPTIVE:
        del exif[tag]
    for directory in {Tag.ExifOffset, Tag.GPSInfo} & set(exif):
        exif.get_ifd(directory)
    exif.bigtiff = False  # the block has 32-bit offsets in any case
    return exif.tobytes() if len(exif) else None


def photoshop_of(image: TiffImagePlugin.TiffImageFile) -> bytes | None:
    """The Photoshop resources of an opened TIFF, or None."""
    value = image.tag_v2.get(Tag.ImageResources)
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
    return {tag: tags[tag] for tag in _LAYOUT if tag in tags}


def without_alpha_of_inks(data: bytes) -> bytes:
    """A CMYK TIFF whose alpha is declared unspecified, because Pillow reads no CMYK with alpha."""
    (entry,) = (e for e in read_directory(data).entries if e.tag == Tag.ExtraSamples)
    return overwritten(data, entry.at, bytes(2))


def is_deep(tags: dict[int, Any]) -> bool:
    """Whether a TIFF holds 16-bit unsigned gray or RGB samples; 16-bit CMYK is left to Pillow."""
    whole = set(tags.get(Tag.SampleFormat, (1,))) <= {1, 4}  # unsigned, or not said
    kinds = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB)
    deep = set(tags.get(Tag.BitsPerSample, (1,))) == {16}
    return deep and whole and tags.get(Tag.PhotometricInterpretation) in kinds


def deep_samples(data: bytes, tags: dict[int, Any]) -> Stored:
    """The 16-bit samples of a TIFF's first page.

    Raises:
        ValueError: the samples are compressed in a way that mixes their channels.
        OSError: Pillow finds the file damaged.
    """
    compression = tags.get(Tag.Compression, _UNCOMPRESSED)
    if compression not in (_UNCOMPRESSED, _PACK_BITS, *_PREDICTED):
        raise ValueError(f"16-bit samples compressed by method {compression} are not supported")
    channels, gray = tags.get(Tag.SamplesPerPixel, 1), tags[Tag.PhotometricInterpretation] != RGB
    colours = 1 if gray else 3
    if not colours <= channels <= 16:
        raise ValueError(f"{channels} channels are not supported")
    planes = [None] if tags.get(Tag.PlanarConfiguration, 1) == 1 else [*range(channels)]
    kinds = tags.get(Tag.ExtraSamples)
    unnamed = kinds is None and channels == colours + 1  # as OpenCV writes alpha
    transparent = unnamed or (channels > colours and kinds is not None and kinds[0] in (1, 2))
    return Stored(
        size=(tags[Tag.ImageLength], tags[Tag.ImageWidth]),
        dtype=np.dtype(np.uint16),
        gray=gray,
        transparent=transparent,
        bands=_deep_bands(_gray_views(data, tags, planes), tags, colours + transparent),
    )


def _deep_bands(
    views: list[Image.Image], tags: dict[int, Any], wanted: int
) -> Iterator[NDArray[np.uint16]]:
    """Rows of the first `wanted` channels, from one view of all channels or one view each."""
    height, width = tags[Tag.ImageLength], tags[Tag.ImageWidth]
    channels, step = tags.get(Tag.SamplesPerPixel, 1), tags.get(Tag.TileWidth, width)
    differences = tags.get(Tag.Predictor, 1) == 2 and tags.get(Tag.Compression, 1) in _PREDICTED
    for rows in bands((height, width, channels)):
        box = (0, rows.start, views[0].width, rows.stop)
        parts = [np.asarray(view.crop(box), np.uint16) for view in views]
        shape = (rows.stop - rows.start, width, channels // len(parts))
        samples = np.concatenate([part.reshape(shape) for part in parts], axis=2)
        for left in range(0, width if differences else 0, step):
            tile = samples[:, left : left + step]
            np.cumsum(tile, axis=1, dtype=np.uint16, out=tile)
        samples = samples[..., :wanted]
        if tags[Tag.PhotometricInterpretation] == WHITE_IS_ZERO:
            samples[..., 0] ^= 0xFFFF
        if wanted in (2, 4) and tags.get(Tag.ExtraSamples, (2,))[0] == 1:
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
    channels = tags.get(Tag.SamplesPerPixel, 1) if plane is None else 1
    height = tags[Tag.ImageLength]
    directory.numbers(Tag.ImageWidth, "I", tags[Tag.ImageWidth] * channels)
    directory.numbers(Tag.ImageLength, "I", height)
    directory.numbers(Tag.BitsPerSample, "H", 16)
    directory.numbers(Tag.Compression, "H", tags.get(Tag.Compression, _UNCOMPRESSED))
    directory.numbers(Tag.PhotometricInterpretation, "H", BLACK_IS_ZERO)
    directory.numbers(Tag.FillOrder, "H", tags.get(Tag.FillOrder, 1))
    directory.numbers(Tag.SamplesPerPixel, "H", 1)
    directory.numbers(Tag.RowsPerStrip, "I", min(tags.get(Tag.RowsPerStrip, height), height))
    if Tag.TileWidth in tags:
        directory.numbers(Tag.TileWidth, "I", tags[Tag.TileWidth] * channels)
        directory.numbers(Tag.TileLength, "I", tags[Tag.TileLength])
    for tag in _PIECES & set(tags):
        pieces = tags[tag]
        if plane is not None:
            each = len(pieces) // tags[Tag.SamplesPerPixel]
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
    directory.numbers(Tag.ImageWidth, "I", photo.size[1])
    directory.numbers(Tag.ImageLength, "I", photo.size[0])
    directory.numbers(Tag.BitsPerSample, "H", *[8 * photo.pixels.itemsize] * channels)
    directory.numbers(Tag.Compression, "H", _DEFLATE)
    directory.numbers(Tag.PhotometricInterpretation, "H", BLACK_IS_ZERO if photo.gray else RGB)
    directory.numbers(Tag.StripOffsets, "I", *(start for start, _ in strips))
    directory.numbers(Tag.SamplesPerPixel, "H", channels)
    directory.numbers(Tag.RowsPerStrip, "I", step)
    directory.numbers(Tag.StripByteCounts, "I", *(size for _, size in strips))
    directory.numbers(Tag.PlanarConfiguration, "H", 1)
    directory.numbers(Tag.Predictor, "H", 2)
    if photo.alpha is not None:
        directory.numbers(Tag.ExtraSamples, "H", 2)
    if photo.dpi is not None and Tag.XResolution not in kept:
        for tag, dots in zip((Tag.XResolution, Tag.YResolution), photo.dpi, strict=True):
            directory.put(tag, 5, 1, struct.pack(directory.order + "II", round(dots * 1000), 1000))
        directory.numbers(Tag.ResolutionUnit, "H", 2)
    blocks = {
        Tag.XMLPacket: photo.xmp,
        Tag.ImageResources: photo.photoshop,
        Tag.InterColorProfile: photo.icc,
    }
    for tag, content in blocks.items():
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
