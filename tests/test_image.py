"""Reading and writing photographs: nothing is lost, half read or half written."""

from __future__ import annotations

import errno
import io
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin

from cfrestore.errors import ConfigError, ImageError, OutputError
from cfrestore.image import (
    FORMATS,
    Photo,
    Pixels,
    equal_channels,
    from_tensor,
    is_gray,
    match_statistics,
    pictures_in,
    read_photo,
    resize,
    to_gray,
    to_tensor,
    to_uint8,
    write_photo,
)
from cfrestore.image.heif import missing_codec
from cfrestore.image.pillow import silent

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description '
    b'tiff:Orientation="6" dc:title="Gr\xc3\xbc\xc3\x9fe"/></rdf:RDF></x:xmpmeta>'
)
UPRIGHT = XMP.replace(b'"6"', b'"1"')
LOSSLESS = ("PNG", "TIFF", "BMP", "PPM", "WEBP")
READABLE = tuple(format for format in FORMATS if missing_codec(format) is None)
PLAIN = tuple(format for format in FORMATS if format not in ("AVIF", "HEIF"))
needs_avif = pytest.mark.skipif("AVIF" not in READABLE, reason="this Pillow has no AVIF")
needs_heif = pytest.mark.skipif("HEIF" not in READABLE, reason="pillow-heif is not installed")


def exif_block(orientation: int = 1, order: str = "<") -> bytes:
    """An EXIF block written by hand: orientation, a camera, a maker note full of odd bytes."""
    note = bytes(range(256))
    make = b"Kamera & Sohn\0"
    make_at = 8 + 2 + 3 * 12 + 4
    sub_at = make_at + len(make)
    note_at = sub_at + 2 + 12 + 4
    return (
        b"Exif\0\0"
        + (b"II*\0" if order == "<" else b"MM\0*")
        + struct.pack(order + "I", 8)
        + struct.pack(order + "H", 3)
        + struct.pack(order + "HHII", 271, 2, len(make), make_at)
        + struct.pack(order + "HHIHH", 274, 3, 1, orientation, 0)
        + struct.pack(order + "HHII", 34665, 4, 1, sub_at)
        + struct.pack(order + "I", 0)
        + make
        + struct.pack(order + "H", 1)
        + struct.pack(order + "HHII", 37500, 7, len(note), note_at)
        + struct.pack(order + "I", 0)
        + note
    )


def picture(height: int = 24, width: int = 40, dtype: Any = np.uint8, seed: int = 7) -> Pixels:
    """A smooth colour picture with grain, so that lossy formats stay near it."""
    y, x = np.mgrid[:height, :width]
    planes = np.stack([x / width, y / height, (x + y) / (width + height)], axis=2)
    grain = np.random.default_rng(seed).normal(0, 0.01, planes.shape)
    return ((planes * 0.9 + 0.05 + grain).clip(0, 1) * np.iinfo(dtype).max).astype(dtype)


def noise(*shape: int, dtype: Any = np.uint8, seed: int = 3) -> Pixels:
    largest = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, largest, shape, dtype, endpoint=True)


def saved(image: Image.Image, format: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


def written(photo: Photo, format: str, quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    write_photo(photo, buffer, format=format, quality=quality)
    return buffer.getvalue()


def gray_photo(values: NDArray[Any], alpha: NDArray[Any] | None = None) -> Photo:
    return Photo(np.repeat(values[..., None], 3, axis=2), alpha=alpha, gray=True)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def wide_png(samples: NDArray[np.uint16], colour_type: int, extra: bytes = b"") -> bytes:
    """A 16-bit PNG of unfiltered rows, written without the code under test."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", head)
        + extra
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def wide_tiff(samples: NDArray[np.uint16], **tags: Any) -> bytes:
    """A 16-bit TIFF as tifffile, an independent writer, makes it."""
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **tags)
    return buffer.getvalue()


# ---- formats


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_every_format_comes_back_near_what_was_written(format: str) -> None:
    photo = Photo(picture())
    back = read_photo(written(photo, format))
    assert back.format == format
    assert back.size == (24, 40)
    assert back.pixels.flags.writeable
    assert back.pixels.flags.c_contiguous and back.pixels.dtype == np.uint8
    assert not back.gray and back.alpha is None
    difference = np.abs(back.pixels.astype(int) - photo.pixels)
    assert difference.mean() < (12 if format == "GIF" else 3)


@pytest.mark.parametrize(
    "format", [pytest.param("AVIF", marks=needs_avif), pytest.param("HEIF", marks=needs_heif)]
)
def test_avif_and_heic_come_back_with_their_metadata(format: str) -> None:
    photo = Photo(picture(), alpha=noise(24, 40), icc=SRGB, exif=exif_block(), xmp=UPRIGHT)
    back = read_photo(written(photo, format))
    assert back.format == format and back.notes == ()
    assert np.abs(back.pixels.astype(int) - photo.pixels).mean() < 3
    assert back.alpha is not None and np.abs(back.alpha.astype(int) - photo.alpha).mean() < 12
    assert (back.icc, back.xmp) == (SRGB, UPRIGHT)
    assert back.exif is not None and b"Kamera & Sohn" in back.exif
    for orientation, size in [(1, (32, 48)), (3, (32, 48)), (6, (48, 32)), (8, (48, 32))]:
        data = saved(Image.fromarray(picture(32, 48)), format, exif=exif_block(orientation))
        assert read_photo(data).size == size


def test_heic_without_its_extra_is_one_sentence_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    picture = tmp_path / "a.heic"
    picture.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    sentence = rf"^{re.escape(str(picture))} .*needs the extra cfrestore\[heif\]"
    with pytest.raises(ImageError, match=sentence):
        read_photo(picture)
    with pytest.raises(OutputError, match=sentence):
        write_photo(Photo(noise(4, 5, 3)), picture)


@st.composite
def photos(draw: st.DrawFn) -> Photo:
    """Any small photograph: gray or colour, 8 or 16 bits, with or without alpha."""
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    gray = draw(st.booleans())
    values = draw(hnp.arrays(dtype, (height, width, 1 if gray else 3)))
    alpha = draw(st.none() | hnp.arrays(dtype, (height, width)))
    return Photo(np.repeat(values, 3, axis=2) if gray else values, alpha=alpha, gray=gray)


@settings(deadline=None, max_examples=150)
@given(photo=photos(), format=st.sampled_from(LOSSLESS))
def test_lossless_formats_keep_every_bit(photo: Photo, format: str) -> None:
    alpha = None if format in ("BMP", "PPM") else photo.alpha
    shallow = format in ("BMP", "WEBP")
    back = read_photo(written(Photo(photo.pixels, alpha, photo.gray), format, quality=100))
    assert np.array_equal(back.pixels, to_uint8(photo.pixels) if shallow else photo.pixels)
    assert back.pixels.dtype == (np.uint8 if shallow else photo.pixels.dtype)
    if alpha is None:
        assert back.alpha is None
    elif format == "WEBP" and (to_uint8(alpha) == 255).all():
        assert back.alpha is None or (back.alpha == 255).all()
    else:
        assert back.alpha is not None
        assert np.array_equal(back.alpha, to_uint8(alpha) if shallow else alpha)


def test_jpeg_keeps_full_colour_resolution_and_takes_a_quality() -> None:
    photo = Photo(picture())
    fine, coarse = written(photo, "JPEG"), written(photo, "JPEG", quality=30)
    assert len(coarse) < len(fine)
    image = Image.open(io.BytesIO(fine))
    assert [component[1:3] for component in image.layer] == [(1, 1)] * 3


def test_the_first_frame_and_the_first_page_are_read() -> None:
    first, second = Image.new("RGB", (6, 5), (200, 30, 20)), Image.new("RGB", (6, 5), (1, 2, 250))
    for format, word in [
        ("GIF", "frames"),
        ("TIFF", "pages"),
        ("WEBP", "frames"),
        ("PNG", "frames"),
        ("MPO", "pictures"),
    ]:
        data = saved(first, format, save_all=True, append_images=[second])
        photo = read_photo(data)
        assert np.abs(photo.pixels[2, 3].astype(int) - (200, 30, 20)).max() < 9
        assert photo.notes == (f"Only the first of its 2 {word} was read.",)
        assert read_photo(saved(first, format)).notes == ()


# ---- kinds of pixels


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "PPM"])
def test_gray_stays_gray(format: str) -> None:
    photo = gray_photo(picture()[..., 0])
    data = written(photo, format)
    assert Image.open(io.BytesIO(data)).mode == ("P" if format == "GIF" else "L")
    back = read_photo(data)
    assert back.gray
    assert np.abs(back.pixels.astype(int) - photo.pixels).max() <= (9 if format == "JPEG" else 0)


@pytest.mark.parametrize("channel", range(3))
def test_one_value_of_one_channel_makes_a_picture_coloured(channel: int) -> None:
    pixels = np.repeat(picture()[..., :1], 3, axis=2)
    assert equal_channels(pixels)
    pixels[-1, -1, channel] ^= 1
    assert not equal_channels(pixels)


def test_a_gray_photo_that_gained_colour_is_written_in_colour_without_its_gray_profile() -> None:
    pixels = np.repeat(picture()[..., :1], 3, axis=2)
    pixels[3, 4] = (255, 0, 0)
    gray_profile = SRGB[:16] + b"GRAY" + SRGB[20:]
    back = read_photo(written(Photo(pixels, gray=True, icc=gray_profile), "PNG"))
    assert not back.gray and back.icc is None
    assert np.array_equal(back.pixels, pixels)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_and_the_colour_under_it_are_kept(format: str) -> None:
    photo = Photo(noise(7, 9, 3), alpha=noise(7, 9, seed=5))
    photo.alpha[:3] = 0
    back = read_photo(written(photo, format, quality=100))
    assert np.array_equal(back.alpha, photo.alpha)
    assert np.array_equal(back.pixels, photo.pixels)


@pytest.mark.parametrize("format", ["JPEG", "BMP", "PPM"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparency_is_laid_on_white_where_there_is_none_and_said_so(
    format: str, dtype: Any
) -> None:
    top = np.iinfo(dtype).max
    opaque, half = np.full((16, 16), top, dtype), np.full((16, 16), top // 5 * 3, dtype)
    pixels = np.full((16, 16, 3), top // 5, dtype)
    buffer = io.BytesIO()
    notes = write_photo(Photo(pixels, alpha=opaque), buffer, format=format)
    assert not any("transparency" in note for note in notes)
    assert read_photo(buffer.getvalue()).alpha is None
    notes = write_photo(Photo(pixels, alpha=half), buffer := io.BytesIO(), format=format)
    assert f"{format} has no transparency: the picture was laid on white." in notes
    back = to_uint8(read_photo(buffer.getvalue()).pixels)
    assert np.abs(back.astype(int) - (255 - 204 * 3 / 5)).max() <= 1


def test_gif_holds_only_full_transparency() -> None:
    alpha = np.where(noise(5, 6) > 127, 255, 0).astype(np.uint8)
    flat = np.full((5, 6, 3), 80, np.uint8)
    buffer = io.BytesIO()
    notes = write_photo(Photo(flat, alpha=alpha), buffer, format="GIF")
    assert not any("transparency" in note for note in notes)
    assert np.array_equal(read_photo(buffer.getvalue()).alpha, alpha)
    half = np.where(alpha > 0, 128, 127).astype(np.uint8)
    notes = write_photo(Photo(flat, alpha=half), buffer := io.BytesIO(), format="GIF")
    assert "GIF has no half transparency: it was made whole or none." in notes
    assert np.array_equal(read_photo(buffer.getvalue()).alpha, alpha)


@pytest.mark.parametrize("format", [name for name in FORMATS if FORMATS[name].alpha])
def test_gray_keeps_its_transparency(format: str) -> None:
    if missing_codec(format):
        pytest.skip(f"{format} needs {missing_codec(format)}")
    gray = np.arange(32 * 64).reshape(32, 64).astype(np.uint8)  # all levels
    alpha = np.full(gray.shape, 255, np.uint8)
    alpha[:3] = 0
    buffer = io.BytesIO()
    assert write_photo(gray_photo(gray, alpha), buffer, format=format, quality=100) == ()
    back = read_photo(buffer.getvalue())
    assert np.array_equal(back.alpha, alpha)
    seen = back.pixels[3:].astype(int) - gray[3:, :, None]
    assert np.abs(seen).max() <= {"PNG": 0, "TIFF": 0, "WEBP": 0, "GIF": 1}.get(format, 9)
    assert back.gray or format in ("WEBP", "AVIF", "HEIF")  # which have no gray


def test_palette_pictures_become_colour_with_their_transparency() -> None:
    image = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5) % 3, "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    opaque = read_photo(saved(image, "PNG"))
    assert opaque.alpha is None and not opaque.gray
    assert opaque.pixels[0, :3].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    clear = read_photo(saved(image, "PNG", transparency=1))
    assert clear.alpha[0, :3].tolist() == [255, 0, 255]
    assert np.array_equal(clear.pixels, opaque.pixels)


def test_one_bit_and_gray_alpha_pictures_are_gray() -> None:
    bits = noise(9, 11) > 127
    for format in ("PNG", "TIFF", "BMP", "PPM"):
        photo = read_photo(saved(Image.fromarray(bits), format))
        assert photo.gray, format
        assert np.array_equal(photo.pixels[..., 1], bits * np.uint8(255))
    values, alpha = noise(4, 6), noise(4, 6, seed=8)
    photo = read_photo(saved(Image.fromarray(np.dstack([values, alpha]), "LA"), "PNG"))
    assert photo.gray
    assert np.array_equal(photo.pixels[..., 2], values)
    assert np.array_equal(photo.alpha, alpha)


def test_a_transparent_gray_value_becomes_alpha() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    photo = read_photo(saved(Image.fromarray(values), "PNG", transparency=5))
    assert photo.gray
    assert np.array_equal(photo.alpha == 0, values == 5)


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_without_a_profile_is_the_plain_complement(format: str) -> None:
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[..., 1] = 255
    back = read_photo(saved(Image.fromarray(inks, "CMYK"), format))
    assert np.abs(back.pixels[8, 8].astype(int) - (255, 0, 255)).max() <= 3
    assert back.alpha is None and not back.gray and back.icc is None


def test_cmyk_goes_through_its_profile() -> None:
    inks = Image.fromarray(np.full((16, 16, 4), (0, 255, 0, 0), np.uint8), "CMYK")
    back = read_photo(saved(inks, "TIFF", icc_profile=cmyk_profile()))
    # This profile has no magenta: its inks darken all three channels equally, to half.
    red, green, blue = back.pixels[8, 8].astype(int)
    assert max(abs(red - green), abs(green - blue)) <= 2
    assert 100 < red < 220
    assert back.icc is None
    garbage = read_photo(saved(inks, "TIFF", icc_profile=b"no profile at all" * 20))
    assert garbage.pixels[8, 8].tolist() == [255, 0, 255]


def cmyk_profile() -> bytes:
    """A minimal ICC v2 printer profile: any full ink is a middle gray (L* 60), no ink is white."""
    grid = np.full((2, 2, 2, 2, 3), (153, 128, 128), np.uint8)
    grid[0, 0, 0, 0] = (255, 128, 128)
    identity = np.tile(np.arange(256, dtype=np.uint8), 4).tobytes()
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = (
        struct.pack(">4s4xBBBx", b"mft1", 4, 3, 2) + matrix + identity + grid.tobytes()
    ) + identity[:768]
    table += b"\0" * (-len(table) % 4)
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 79
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags, offset, directory = {b"A2B0": table, b"desc": text, b"wtpt": white}, 128 + 4 + 3 * 12, b""
    body = b""
    for name, content in tags.items():
        directory += struct.pack(">4sII", name, offset + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", offset + len(body), b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab "
    )
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + b"\0" * 28
    head += struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", 3) + directory + body


# ---- 16 bits


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("transparent", [False, True])
def test_sixteen_bits_and_metadata_come_back(format: str, gray: bool, transparent: bool) -> None:
    pixels = noise(300, 700, 3, dtype=np.uint16)
    pixels = np.repeat(pixels[..., :1], 3, axis=2) if gray else pixels
    alpha = noise(300, 700, dtype=np.uint16, seed=4) if transparent else None
    photo = Photo(pixels, alpha, gray, icc=SRGB, exif=exif_block(), xmp=XMP)
    back = read_photo(written(photo, format))
    assert back.pixels.dtype == np.uint16
    assert np.array_equal(back.pixels, pixels)
    assert back.alpha is None if alpha is None else np.array_equal(back.alpha, alpha)
    assert back.gray == (gray and not (format == "TIFF" and transparent))
    assert back.icc == SRGB
    assert back.exif is not None and back.xmp is not None
    assert b"Kamera & Sohn" in back.exif and bytes(range(256)) in back.exif
    assert back.xmp == UPRIGHT


def test_sixteen_bit_png_kinds_of_other_writers() -> None:
    values, colour = noise(5, 6, dtype=np.uint16), noise(5, 6, 3, dtype=np.uint16)
    gray = read_photo(wide_png(values, 0))
    assert gray.gray and np.array_equal(gray.pixels[..., 0], values)
    with_alpha = read_photo(wide_png(np.dstack([values, colour[..., 0]]), 4))
    assert with_alpha.gray and np.array_equal(with_alpha.pixels[..., 2], values)
    assert np.array_equal(with_alpha.alpha, colour[..., 0])
    rgba = read_photo(wide_png(np.dstack([colour, values]), 6))
    assert np.array_equal(rgba.pixels, colour) and np.array_equal(rgba.alpha, values)
    key = png_chunk(b"tRNS", struct.pack(">3H", *colour[2, 3]))
    assert np.argwhere(read_photo(wide_png(colour, 2, key)).alpha == 0).tolist() == [[2, 3]]
    key = png_chunk(b"tRNS", struct.pack(">H", values[1, 4]))
    assert np.argwhere(read_photo(wide_png(values, 0, key)).alpha == 0).tolist() == [[1, 4]]


def test_sixteen_bit_tiff_kinds_of_other_writers() -> None:
    values, colour = noise(5, 6, dtype=np.uint16), noise(5, 6, 3, dtype=np.uint16)
    motorola = read_photo(wide_tiff(colour, byteorder=">", photometric="rgb"))
    assert np.array_equal(motorola.pixels, colour)
    negative = read_photo(wide_tiff(values, photometric="miniswhite"))
    assert negative.gray and np.array_equal(negative.pixels[..., 0], 65535 - values)
    spare = wide_tiff(np.dstack([colour, values]), photometric="rgb", extrasamples=["unspecified"])
    assert read_photo(spare).alpha is None
    alpha = np.full((5, 6), 32768, np.uint16)
    multiplied = np.dstack([colour // 2, alpha])
    photo = read_photo(wide_tiff(multiplied, photometric="rgb", extrasamples=["assocalpha"]))
    assert np.abs(photo.pixels.astype(int) - colour).max() <= 3
    big = read_photo(
        wide_tiff(colour, bigtiff=True, photometric="rgb", description="Oma", metadata=None)
    )
    assert np.array_equal(big.pixels, colour)
    assert big.exif is not None and big.exif[6:10] == b"II*\0" and b"Oma" in big.exif
    sideways = wide_tiff(colour, photometric="rgb", extratags=[(700, 7, len(XMP), XMP, True)])
    assert np.array_equal(read_photo(sideways).pixels, np.rot90(colour, -1))
    grayed = wide_tiff(
        np.dstack([values, alpha]), photometric="minisblack", extrasamples=["unassalpha"]
    )
    photo = read_photo(grayed)
    assert photo.gray and np.array_equal(photo.pixels[..., 1], values)
    assert np.array_equal(photo.alpha, alpha)


def test_a_fourth_channel_that_nothing_names_is_alpha() -> None:
    """OpenCV writes it this way."""
    samples = noise(5, 6, 4, dtype=np.uint16)
    photo = read_photo(cv2.imencode(".tif", samples[..., [2, 1, 0, 3]])[1].tobytes())
    assert np.array_equal(photo.pixels, samples[..., :3])
    assert np.array_equal(photo.alpha, samples[..., 3])
    assert photo.lost == ()


def test_further_channels_of_a_tiff_count_as_lost() -> None:
    samples = noise(5, 6, 4, dtype=np.uint16)
    photo = read_photo(wide_tiff(samples, photometric="rgb", extrasamples=["unspecified"]))
    assert photo.alpha is None
    assert photo.lost == ("Its channels beside the colours were not read.",)
    five = wide_tiff(noise(5, 6, 5, dtype=np.uint16), photometric="rgb", extrasamples=[2, 0])
    assert read_photo(five).lost != ()


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_sixteen_bit_tiff_in_every_arrangement(
    byteorder: str, tile: tuple[int, int] | None, planarconfig: str, compression: str | None
) -> None:
    colour = noise(37, 53, 4, dtype=np.uint16)
    stored = colour if planarconfig == "contig" else np.moveaxis(colour, 2, 0)
    data = wide_tiff(
        stored,
        photometric="rgb",
        extrasamples=["unassalpha"],
        planarconfig=planarconfig,
        byteorder=byteorder,
        tile=tile,
        compression=compression,
    )
    photo = read_photo(data)
    assert np.array_equal(photo.pixels, colour[..., :3])
    assert np.array_equal(photo.alpha, colour[..., 3])


@pytest.mark.parametrize("method", [1, 5, 8, 32773])
def test_sixteen_bit_tiff_in_every_usual_compression(method: int) -> None:
    colour = noise(37, 53, 3, dtype=np.uint16)
    kind = [cv2.IMWRITE_TIFF_COMPRESSION, method]
    _, data = cv2.imencode(".tiff", colour[..., ::-1], kind)  # with a predictor if possible
    assert np.array_equal(read_photo(data.tobytes()).pixels, colour)


@pytest.mark.parametrize("method", ["raw", "tiff_lzw", "tiff_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_eight_bit_tiff_in_every_usual_kind(method: str, mode: str) -> None:
    image = Image.fromarray(noise(21, 34, 4)).convert(mode)
    photo = read_photo(saved(image, "TIFF", compression=method))
    expected = np.asarray(image.convert("RGBA"))
    assert np.array_equal(photo.pixels, expected[..., :3])
    assert photo.gray == (mode in ("1", "L", "LA"))
    assert np.array_equal(photo.alpha, expected[..., 3]) if mode[-1] == "A" else not photo.alpha


def test_eight_bit_tiff_in_planes() -> None:
    colour = noise(21, 34, 3)
    for tile in (None, (16, 16)):
        apart = wide_tiff(
            np.moveaxis(colour, 2, 0), photometric="rgb", planarconfig="separate", tile=tile
        )
        assert np.array_equal(read_photo(apart).pixels, colour)


def test_ppm_of_any_depth_is_stretched_to_8_or_16_bits() -> None:
    photo = read_photo(b"P6 # drawn by hand\n2 1\n#\n100\n" + bytes([0, 50, 100, 100, 25, 1]))
    assert photo.pixels.dtype == np.uint8 and not photo.gray
    assert photo.pixels.ravel().tolist() == [0, 128, 255, 255, 64, 3]
    photo = read_photo(b"P5\n3 1\n1023\n" + struct.pack(">3H", 0, 512, 1023))
    assert photo.pixels.dtype == np.uint16 and photo.gray
    assert photo.pixels[0, :, 1].tolist() == [0, 32800, 65535]
    assert read_photo(b"P2\n2 1\n255\n7 200\n").pixels[0, :, 0].tolist() == [7, 200]
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_photo(b"P5\n3 1\n1023\n" + b"\0" * 5)


def test_sixteen_bits_are_written_to_shallow_formats_as_eight() -> None:
    photo = Photo(noise(6, 7, 3, dtype=np.uint16))
    back = read_photo(written(photo, "BMP"))
    assert np.array_equal(back.pixels, np.rint(photo.pixels / 257))
    assert read_photo(written(photo, "JPEG")).pixels.dtype == np.uint8


def test_numbers_that_are_no_photograph_are_refused() -> None:
    for mode in ("I", "F"):
        with pytest.raises(ImageError, match="are not read"):
            read_photo(saved(Image.new(mode, (4, 4)), "TIFF"))
    for shape in ((4, 5), (4, 5, 3)):
        with pytest.raises(ImageError, match="floating-point numbers are not read"):
            read_photo(wide_tiff(np.full(shape, np.nan, np.float32)))


# ---- orientation and metadata


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_baked_in_and_reset(format: str, orientation: int) -> None:
    stored = picture(32, 48)
    raw = exif_block(orientation)
    settings = {"quality": 98} if format == "JPEG" else {"lossless": True}
    data = saved(Image.fromarray(stored), format, exif=raw, **settings)
    expected = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]
    photo = read_photo(data)
    assert photo.size == expected.shape[:2]
    difference = np.abs(photo.pixels.astype(int) - expected)
    assert difference.max() <= 30 if format == "JPEG" else difference.max() == 0
    assert photo.exif is not None
    assert Image.open(io.BytesIO(written(photo, format))).getexif().get(274) == 1
    if format != "TIFF":
        assert photo.exif == exif_block(1)
    again = read_photo(written(photo, format))
    assert again.size == photo.size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_orientation_of_sixteen_bits(format: str, orientation: int) -> None:
    narrow = Photo(noise(5, 8, 3), alpha=noise(5, 8, seed=9), exif=exif_block(orientation))
    wide = Photo(
        narrow.pixels.astype(np.uint16) * 257,
        alpha=narrow.alpha.astype(np.uint16) * 257,
        exif=exif_block(orientation),
    )
    shallow, deep = read_photo(written(narrow, format)), read_photo(written(wide, format))
    assert deep.pixels.dtype == np.uint16
    assert np.array_equal(to_uint8(deep.pixels), shallow.pixels)
    assert np.array_equal(to_uint8(deep.alpha), shallow.alpha)


@pytest.mark.parametrize("order", ["<", ">"])
def test_only_the_orientation_of_the_exif_block_changes(order: str) -> None:
    before = exif_block(6, order)
    photo = read_photo(saved(Image.fromarray(picture()), "JPEG", exif=before))
    assert photo.exif == exif_block(1, order)
    assert sum(a != b for a, b in zip(before, photo.exif, strict=True)) == 1


def test_orientation_in_xmp_alone_counts_and_is_reset() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP)
    photo = read_photo(saved(Image.fromarray(picture()), "PNG", pnginfo=text))
    assert photo.size == (40, 24)
    assert photo.xmp == UPRIGHT


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_metadata_is_kept_byte_for_byte(format: str) -> None:
    photo = Photo(picture(), icc=SRGB, exif=exif_block(), xmp=UPRIGHT)
    back = read_photo(written(photo, format))
    assert (back.icc, back.exif, back.xmp) == (SRGB, exif_block(), UPRIGHT)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_keeps_metadata_and_opens_elsewhere(order: str, dtype: Any) -> None:
    photo = Photo(picture(dtype=dtype), icc=SRGB, exif=exif_block(1, order), xmp=XMP)
    data = written(photo, "TIFF")
    back = read_photo(data)
    assert back.icc == SRGB and back.xmp is not None and back.xmp.startswith(b"<x:xmpmeta")
    assert back.exif is not None and bytes(range(256)) in back.exif
    assert Image.open(io.BytesIO(data)).getexif()[271] == "Kamera & Sohn"
    tifffile = pytest.importorskip("tifffile")
    assert np.array_equal(tifffile.imread(io.BytesIO(data)), photo.pixels)
    assert np.array_equal(back.pixels, photo.pixels)


def test_metadata_survives_a_change_of_format() -> None:
    jpeg = saved(Image.fromarray(picture()), "JPEG", exif=exif_block(8), icc_profile=SRGB)
    photo = read_photo(jpeg)
    for format in ("PNG", "TIFF", "WEBP", "JPEG"):
        back = read_photo(written(photo, format))
        assert back.icc == SRGB, format
        assert back.exif is not None and bytes(range(256)) in back.exif, format
        assert back.size == photo.size, format


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0junk" * 9]
)
def test_a_broken_exif_block_does_no_harm(exif: bytes) -> None:
    photo = read_photo(saved(Image.fromarray(picture()), "JPEG", exif=exif))
    assert photo.size == (24, 40)
    for format in ("TIFF", "PNG", "JPEG"):
        assert read_photo(written(photo, format)).size == (24, 40)


# ---- bad input


@pytest.mark.parametrize("format", PLAIN)
def test_no_cut_file_is_half_decoded(format: str) -> None:
    photo = Photo(noise(20, 30, 3), exif=exif_block())
    data = written(photo, format)
    whole = read_photo(data).pixels
    for length in [*range(1, 60), *np.linspace(60, len(data) - 1, 40).astype(int)]:
        try:
            pixels = read_photo(data[:length]).pixels
        except ImageError:
            continue
        assert np.array_equal(pixels, whole), f"{length} of {len(data)} bytes"


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_no_cut_file_of_sixteen_bits_is_half_decoded(format: str) -> None:
    data = written(Photo(noise(20, 30, 3, dtype=np.uint16)), format)
    for length in np.linspace(1, len(data) - 20, 40).astype(int):
        with pytest.raises(ImageError):
            read_photo(data[:length])


def test_progressive_and_cut_jpeg() -> None:
    data = saved(Image.fromarray(picture(64, 64)), "JPEG", progressive=True)
    assert read_photo(data).size == (64, 64)
    with pytest.raises(ImageError, match="truncated"):
        read_photo(data[: len(data) * 3 // 4])


@settings(deadline=None, max_examples=300)
@given(
    format=st.sampled_from(PLAIN),
    wide=st.booleans(),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    length=st.floats(0.2, 1),
)
def test_damaged_bytes_give_image_errors_only(
    format: str, wide: bool, changes: list[tuple[float, int]], length: float
) -> None:
    dtype = np.uint16 if wide else np.uint8
    photo = Photo(noise(6, 7, 3, dtype=dtype), exif=exif_block(5), icc=SRGB[:300], xmp=XMP)
    data = bytearray(written(photo, format))
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    try:
        read_photo(bytes(data[: int(length * len(data))]), max_pixels=1_000_000)
    except ImageError as error:
        assert str(error).startswith("<bytes> ") and "\n" not in str(error)


def test_bad_files_are_named(tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("Dear sir, this is a letter.")
    empty = tmp_path / "empty.png"
    empty.touch()
    folder = tmp_path / "folder.jpg"
    folder.mkdir()
    loop = tmp_path / "loop.jpg"
    loop.symlink_to(loop)
    missing = tmp_path / "missing.jpg"
    for path, reason in [
        (text, "not a picture"),
        (empty, "is empty"),
        (folder, "directory"),
        (missing, "No such file"),
        (loop, "symbolic links"),
    ]:
        with pytest.raises(ImageError, match=reason) as caught:
            read_photo(path)
        assert str(caught.value).startswith(f"{path} ")
        with pytest.raises(ImageError):
            read_photo(str(path))


def test_a_file_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match=r"secret\.png cannot be read: Permission denied"):
        read_photo(tmp_path / "secret.png")


@pytest.mark.parametrize(
    "source", [b"", b"\0", b"\xff\xd8\xff", b"GIF89a", b"P6\n0 0\n255\n", "a\0b"]
)
def test_hopeless_sources_are_refused(source: bytes | str) -> None:
    with pytest.raises(ImageError):
        read_photo(source)


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", b"") * 2
    with pytest.raises(
        ImageError, match=r"3,600,000,000 pixels, more than the limit of 500,000,000"
    ):
        read_photo(bomb)
    small = written(Photo(noise(10, 10, 3)), "PNG")
    assert read_photo(small, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError, match="more than the limit of 99"):
        read_photo(small, max_pixels=99)


def test_pillows_own_limit_is_neither_used_nor_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for format in PLAIN:
        assert read_photo(written(Photo(noise(10, 10, 3)), format)).size == (10, 10)
    assert Image.MAX_IMAGE_PIXELS == 10


class Pipe(io.RawIOBase):
    """A stream that can only be read in order."""

    def __init__(self, data: bytes) -> None:
        self._rest = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._rest.readinto(buffer)


def test_streams_need_not_seek() -> None:
    photo = Photo(noise(10, 12, 3))
    for data in (written(photo, "PNG"), written(photo, "TIFF")):
        assert np.array_equal(read_photo(io.BufferedReader(Pipe(data))).pixels, photo.pixels)
        assert np.array_equal(read_photo(io.BytesIO(data)).pixels, photo.pixels)


def test_standard_input_is_called_by_its_name() -> None:
    program = (
        "import sys\n"
        "from cfrestore.errors import ImageError\n"
        "from cfrestore.image import read_photo\n"
        "try: print(read_photo(sys.stdin.buffer).size)\n"
        "except ImageError as error: print(error)"
    )
    command = [sys.executable, "-c", program]
    good = written(Photo(noise(3, 4, 3)), "PNG")
    answers = [
        subprocess.run(command, input=data, capture_output=True, check=True).stdout.decode().strip()
        for data in (good, b"", b"letter")
    ]
    assert answers[0] == "(3, 4)"
    assert answers[1] == "<stdin> is empty"
    assert answers[2].startswith("<stdin> is not a picture of a known kind")


def test_a_stream_of_text_or_a_closed_one_is_refused() -> None:
    closed = io.BytesIO(b"x")
    closed.close()
    for stream in (io.StringIO("text"), closed):
        with pytest.raises(ImageError, match=r"^<bytes> cannot be read"):
            read_photo(stream)  # type: ignore[arg-type]


# ---- writing


def test_the_extension_chooses_the_format_unless_one_is_asked_for(tmp_path: Path) -> None:
    photo = Photo(noise(4, 5, 3), format="WEBP")
    for name, asked, expected in [
        ("a.jpg", None, "JPEG"),
        ("a.PNG", None, "PNG"),
        ("a", None, "WEBP"),
        ("b.jpg", "png", "PNG"),
        ("c", ".TIF", "TIFF"),
    ]:
        write_photo(photo, tmp_path / name, format=asked)
        assert read_photo(tmp_path / name).format == expected
    for name, asked in [("a.xyz", None), ("a.png", "pdf")]:
        with pytest.raises(OutputError, match="known formats are JPEG"):
            write_photo(photo, tmp_path / name, format=asked)
    assert read_photo(written_by_itself(photo)).format == "WEBP"


def written_by_itself(photo: Photo) -> bytes:
    buffer = io.BytesIO()
    write_photo(photo, buffer)
    return buffer.getvalue()


def test_writing_is_repeatable() -> None:
    photo = Photo(picture(), icc=SRGB, exif=exif_block(), xmp=XMP)
    for format in ("JPEG", "PNG", "TIFF", "WEBP"):
        assert written(photo, format) == written(photo, format)


@pytest.mark.parametrize("broken", ["cfrestore.files.os.fsync", "pathlib.Path.replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "photo.png"
    target.write_bytes(b"old")
    monkeypatch.setattr(broken, fail)
    with pytest.raises(OutputError, match=r"photo\.png cannot be written: No space left"):
        write_photo(Photo(noise(4, 5, 3)), target)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_a_failing_encoder_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("encoder error -2")

    target = tmp_path / "photo.jpg"
    target.write_bytes(b"old")
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OutputError, match="cannot be encoded as JPEG: encoder error -2"):
        write_photo(Photo(noise(4, 5, 3)), target)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_an_interrupted_write_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr("cfrestore.files.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_photo(Photo(noise(4, 5, 3)), tmp_path / "photo.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="needs a umask")
def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_photo(Photo(noise(4, 5, 3)), tmp_path / "photo.png")
    finally:
        os.umask(before)
    assert (tmp_path / "photo.png").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path) -> None:
    for mode in (0o600, 0o444):
        path = tmp_path / f"{mode}.png"
        path.touch()
        path.chmod(mode)
        write_photo(Photo(noise(4, 5, 3)), path)
        assert path.stat().st_mode & 0o777 == mode


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links and pipes")
def test_links_are_followed_and_devices_survive(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "deep" / "real.png")
    write_photo(Photo(noise(4, 5, 3)), link)
    assert link.is_symlink() and read_photo(tmp_path / "deep" / "real.png").size == (4, 5)
    write_photo(Photo(noise(4, 5, 3)), os.devnull, format="PNG")
    assert Path(os.devnull).is_char_device()


def test_targets_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    photo = Photo(noise(4, 5, 3))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    closed = io.BytesIO()
    closed.close()
    for target in (
        tmp_path / "folder.png",
        tmp_path / "none" / "a.png",
        tmp_path / "file" / "a.png",
    ):
        with pytest.raises(OutputError, match="cannot be written") as caught:
            write_photo(photo, target)
        assert str(caught.value).startswith(f"{target} ")
    with pytest.raises(OutputError, match=r"^<bytes> cannot be written"):
        write_photo(photo, closed)
    for quality in (0, 101):
        with pytest.raises(ConfigError, match="quality"):
            write_photo(photo, tmp_path / "a.jpg", quality=quality)


def test_what_a_format_cannot_hold_is_an_output_error() -> None:
    with pytest.raises(OutputError, match=r"WEBP, which holds 16,383 .*, and it has 20000x1$"):
        written(Photo(np.zeros((1, 20_000, 3), np.uint8)), "WEBP")
    with pytest.raises(OutputError, match=r"JPEG, which holds 65,500 .*, and it has 1x65501$"):
        written(Photo(np.zeros((65_501, 1, 3), np.uint8)), "JPEG")
    assert read_photo(written(Photo(np.zeros((65_500, 1, 3), np.uint8)), "JPEG")).size[0] == 65_500


def test_a_photo_is_checked_when_it_is_made() -> None:
    pixels = noise(4, 5, 3)
    for wrong in (pixels[..., 0], pixels.astype(np.float32), pixels[:, ::2], pixels[:0]):
        with pytest.raises(ValueError, match="pixels must be"):
            Photo(wrong)
    for wrong in (noise(4, 4), noise(4, 5, dtype=np.uint16)):
        with pytest.raises(ValueError, match="alpha must be"):
            Photo(pixels, alpha=wrong)


# ---- tensors, gray test, colour statistics


def test_tensor_round_trip_is_exact_for_every_value() -> None:
    crops = np.stack([np.arange(768, dtype=np.uint32).reshape(16, 16, 3) % 256] * 2).astype(
        np.uint8
    )
    crops[1] = crops[1, ::-1]
    tensor = to_tensor(crops[:, :, ::-1])
    assert tensor.shape == (2, 3, 16, 16) and str(tensor.dtype) == "torch.float32"
    assert tensor.min() == -1 and tensor.max() == 1
    assert tensor[0, 1, 0, 15] == pytest.approx(1 / 255 * 2 - 1)
    back = from_tensor(tensor)
    assert back.dtype == np.uint8 and np.array_equal(back, crops[:, :, ::-1])


def test_from_tensor_clamps_and_rounds() -> None:
    import torch

    values = torch.tensor([-3.0, 7.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1]).view(1, 1, 1, 4)
    assert from_tensor(values.expand(1, 3, 1, 4))[0, 0, :, 0].tolist() == [0, 255, 100, 101]


@settings(deadline=None, max_examples=60)
@given(
    pixels=hnp.arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8), st.just(3))),
    threshold=st.floats(0, 5000),
)
def test_gray_test_is_the_formula(pixels: NDArray[np.uint8], threshold: float) -> None:
    red, green, blue = (pixels[..., channel].astype(float) for channel in range(3))
    mean = (np.var(red - green) + np.var(green - blue) + np.var(blue - red)) / 3
    limit = threshold * min(1.0, pixels.mean() / 64) ** 2
    if abs(mean - limit) > 1e-6:
        assert is_gray(pixels, threshold) == (mean <= limit)
        assert is_gray(pixels.astype(np.uint16) * 257, threshold) == (mean <= limit)


def test_gray_test_on_photographs_and_on_the_threshold() -> None:
    gray = np.repeat(noise(20, 30, 1), 3, axis=2)
    assert is_gray(gray)
    cast = (gray // 2).astype(np.uint8)
    cast[..., 0] += 60
    assert is_gray(cast)
    assert not is_gray(picture())
    # R - G is 0 and 6: variance 9; G - B is 0; B - R as the first: the mean is exactly 6.
    step = np.array([[[90, 90, 90], [96, 90, 90]]], np.uint8)
    assert is_gray(step, 6.0) and not is_gray(step, 5.999999)


@pytest.mark.parametrize("light", [1.0, 0.25, 0.1])
def test_a_colour_photograph_in_too_little_light_is_not_gray(
    light: float, repository: Path
) -> None:
    photo = read_photo(repository / "examples/collins.jpg").pixels
    muted = to_gray(photo) + 0.3 * (photo - to_gray(photo))
    dim = np.rint(muted * light).astype(np.uint8)
    assert not is_gray(dim)
    assert is_gray(np.rint(to_gray(dim)).astype(np.uint8))


def test_gray_test_sees_all_of_a_large_picture() -> None:
    pixels = np.full((3000, 1500, 3), 100, np.uint8)
    assert is_gray(pixels)
    pixels[1700:, :, 0] = 200
    expected = np.var(pixels[..., 0].astype(float)) * 2 / 3
    assert is_gray(pixels, expected + 1e-3) and not is_gray(pixels, expected - 1e-3)


def test_to_gray_weighs_the_channels() -> None:
    brightness = to_gray(np.array([[[200.0, 100.0, 50.0]]]))
    assert brightness.shape == (1, 1, 3)
    assert brightness[0, 0] == pytest.approx([0.2989 * 200 + 58.7 + 5.7] * 3)


def test_match_statistics_is_the_formula() -> None:
    generator = np.random.default_rng(5)
    content, style = generator.normal(90, 20, (9, 8, 3)), generator.normal(160, 45, (6, 5, 3))
    matched = match_statistics(content, style)
    for channel in range(3):
        c, s = content[..., channel].ravel(), style[..., channel].ravel()
        spread_c = np.sqrt(((c - c.sum() / 72) ** 2).sum() / 72 + 1e-5)
        spread_s = np.sqrt(((s - s.sum() / 30) ** 2).sum() / 30 + 1e-5)
        expected = (c - c.sum() / 72) / spread_c * spread_s + s.sum() / 30
        assert matched[..., channel].ravel() == pytest.approx(expected, abs=1e-9)
    assert matched.dtype == np.float64
    assert match_statistics(style, style) == pytest.approx(style)
    flat = match_statistics(np.full((4, 4, 3), 7, np.uint8), style)
    assert np.isfinite(flat).all()


def test_to_uint8_rounds() -> None:
    every = np.resize(np.arange(65536, dtype=np.uint16), (256, 257, 3))
    assert np.array_equal(to_uint8(every), np.rint(every / 257))
    shallow = noise(3, 4, 3)
    assert to_uint8(shallow) is shallow or np.array_equal(to_uint8(shallow), shallow)


# Sizes and folders


def test_resizing_averages_to_shrink_and_enlarges_as_asked() -> None:
    checks = np.indices((8, 8)).sum(0).astype(np.uint8) % 2 * 200
    assert (resize(checks, 4, 4) == 100).all()
    step = np.repeat(np.array([[100, 200]], np.uint8), 8, axis=1)
    for method in (cv2.INTER_LINEAR, cv2.INTER_CUBIC):
        expected = cv2.resize(step, (32, 2), interpolation=method)
        assert np.array_equal(resize(step, 2, 32, enlarge=method), expected)
    assert resize(step, 2, 32).max() == 200 < resize(step, 2, 32, enlarge=cv2.INTER_CUBIC).max()


def test_pictures_of_a_folder_are_files_called_so_and_not_hidden(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.heic", "d.txt", ".e.png", "f.png/g.gif", ".h/i.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "linked.png").symlink_to(tmp_path / "d.txt")
    outside = tmp_path.with_name(f"{tmp_path.name}-outside")
    outside.mkdir()
    (outside / "k.png").touch()
    (outside / "back").symlink_to(tmp_path)
    (tmp_path / "to").symlink_to(outside)

    def names(**how: bool) -> list[str]:
        return [path.relative_to(tmp_path).as_posix() for path in pictures_in(tmp_path, **how)]

    own = ["a.JPG", "b.png", "c.heic", "linked.png"]
    assert names(below=False) == own
    assert names() == [*own[:3], "f.png/g.gif", "linked.png", "to/k.png"]
    with pytest.raises(ImageError, match="nowhere cannot be read: No such file"):
        pictures_in(tmp_path / "nowhere")


def test_threads_that_use_pillow_at_once_leave_the_filters_of_warnings() -> None:
    before = list(warnings.filters)
    first, second = silent(), silent()
    with warnings.catch_warnings():
        first.__enter__()
        second.__enter__()
        warnings.filterwarnings("ignore", message="of the program")
        assert warnings.filters[1:] != before
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        assert warnings.filters[1:] == before
        assert "of the program" in str(warnings.filters[0])
    assert warnings.filters == before


def test_an_exif_block_without_its_head_is_refused() -> None:
    pixels, block = np.zeros((4, 4, 3), np.uint8), b"II*\0\x08\0\0\0\0\0\0\0\0\0"
    with pytest.raises(ValueError, match=r'^exif must start with b"Exif\\0\\0", found b\'II\*'):
        Photo(pixels, exif=block)  # as Pillow gives it for WebP; a JPEG would be without it
    target = io.BytesIO()
    assert write_photo(Photo(pixels, exif=b"Exif\0\0" + block, format="JPEG"), target) == ()
    assert b"Exif\0\0" + block in target.getvalue()


def test_an_empty_name_is_seen_in_messages() -> None:
    with pytest.raises(ImageError, match="^'' cannot be read: "):
        read_photo("")


def test_other_types_are_refused_by_name(tmp_path: Path) -> None:
    drawn = Image.new("RGB", (4, 4))
    pixels = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(TypeError, match="^alpha must be a numpy array, found list$"):
        Photo(pixels, pixels[..., 0].tolist())  # type: ignore[arg-type]
    for limit in (None, "9"):
        with pytest.raises(
            TypeError, match=f"^max_pixels must be a number, found {type(limit).__name__}$"
        ):
            read_photo(b"", max_pixels=limit)  # type: ignore[arg-type]
    for target in (None, b"a.png", Photo(pixels)):
        with pytest.raises(TypeError, match=f"^target must be .*, found {type(target).__name__}$"):
            write_photo(Photo(pixels), target)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="^quality must .* found True$"):
        write_photo(Photo(pixels), io.BytesIO(), quality=True)
    with pytest.raises(TypeError, match="^pixels must be a numpy array, found Image$"):
        Photo(drawn)  # type: ignore[arg-type]
    for source in (None, drawn, np.zeros((4, 4, 3), np.uint8)):
        with pytest.raises(TypeError, match=f"^source must be .*, found {type(source).__name__}$"):
            read_photo(source)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^photo must be a Photo, found str$"):
        write_photo("a.png", Photo(np.zeros((4, 4, 3), np.uint8)))  # type: ignore[arg-type]
