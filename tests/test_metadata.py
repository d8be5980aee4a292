"""Metadata is kept, updated or left out, but never silently."""

from __future__ import annotations

import io
import struct
import threading
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin, PngImagePlugin
from test_image import (
    READABLE,
    SRGB,
    UPRIGHT,
    XMP,
    cmyk_profile,
    exif_block,
    needs_avif,
    needs_heif,
    noise,
    picture,
    png_chunk,
    saved,
    wide_tiff,
)

from cfrestore.errors import ConfigError, ImageError
from cfrestore.image import Photo, read_photo, task_in, to_uint8, write_photo
from cfrestore.image.directory import EXIF_HEAD, count_pages
from cfrestore.image.heif import bits_of
from cfrestore.image.remarks import remarks_on

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
OURS = "{urn:cfrestore:1.0:}"
RECORD = {"model": "compact", "weights": "0" * 64, "fidelity": "0.7", "version": "1.2"}
PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
    ' <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
    "  <!-- </rdf:RDF> is not here -->\n"
    '  <rdf:Description rdf:about="uuid:1&amp;2" xmlns:dc="http://purl.org/dc/elements/1.1/">\n'
    "   <dc:title><rdf:Alt><rdf:li xml:lang='x-default'>Großmutter</rdf:li></rdf:Alt></dc:title>\n"
    "  </rdf:Description>\n"
    " </rdf:RDF>\n"
    "</x:xmpmeta>\n" + " " * 200 + '\n<?xpacket end="w"?>'
).encode()


def put(photo: Photo, format: str, **settings: Any) -> tuple[bytes, tuple[str, ...]]:
    """The bytes that write_photo writes, and its notes."""
    buffer = io.BytesIO()
    notes = write_photo(photo, buffer, format=format, **settings)
    return buffer.getvalue(), notes


def again(photo: Photo, format: str, **settings: Any) -> Photo:
    return read_photo(put(photo, format, **settings)[0])


def records(packet: bytes | None) -> list[dict[str, str]]:
    """The records of restorations in a packet, as an XML parser finds them."""
    if packet is None:
        return []
    found = ElementTree.fromstring(packet).iter(f"{OURS}Restoration")
    return [{item.tag.removeprefix(OURS): item.text or "" for item in record} for record in found]


# ---- provenance


@pytest.mark.parametrize("format", sorted({"JPEG", "PNG", "WEBP", "TIFF", "AVIF"} & {*READABLE}))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("packet", [None, PACKET])
def test_the_restoration_is_recorded_in_xmp(format: str, dtype: Any, packet: bytes | None) -> None:
    photo = Photo(picture(dtype=dtype), xmp=packet)
    back = again(photo, format, provenance=RECORD)
    assert records(back.xmp) == [RECORD]
    assert records(again(photo, format).xmp) == []
    assert records(again(back, format, provenance=RECORD, metadata="strip").xmp) == []
    assert again(back, format, metadata="strip").xmp is None


def test_a_packet_is_otherwise_kept_byte_for_byte() -> None:
    data, notes = put(Photo(picture(), xmp=PACKET), "PNG", provenance=RECORD)
    packet = read_photo(data).xmp
    assert notes == () and packet is not None
    start = packet.index(b'<rdf:Description rdf:about="uuid:1&amp;2" xmlns:cfrestore=')
    end = packet.index(b"</rdf:Description>", start) + len(b"</rdf:Description>")
    assert packet[:start] + packet[end:] == PACKET
    assert packet[end:].startswith(b"</rdf:RDF>")


def test_a_second_restoration_takes_the_place_of_the_first() -> None:
    once = again(Photo(picture(), xmp=PACKET), "PNG", provenance=RECORD)
    other = {"model": 'a <b> & "c"', "note": "line\nbreak \x00 \udcff"}
    twice = again(once, "PNG", provenance=other)
    shown = {"model": 'a <b> & "c"', "note": r"line\nbreak \x00 \udcff"}
    assert records(twice.xmp) == [shown]
    assert records(again(twice, "PNG", provenance=RECORD).xmp) == [RECORD]
    assert again(twice, "PNG", provenance=RECORD).xmp == once.xmp


@pytest.mark.parametrize("format", READABLE)
def test_the_task_is_read_from_a_record(format: str) -> None:
    back = again(Photo(picture()), format, provenance={"task": "colorization", **RECORD})
    assert (None if back.xmp is None else task_in(back.xmp)) == (
        None if format in ("BMP", "GIF", "PPM") else "colorization"
    )
    assert task_in(PACKET) is None
    assert task_in(b'<cfrestore:Restoration cfrestore:task="restoration"/>') == "restoration"


def test_other_prefixes_than_the_usual_are_understood() -> None:
    packet = PACKET.replace(b"rdf:", b"r:").replace(b":rdf=", b":r=")
    merged = again(Photo(picture(), xmp=packet), "PNG", provenance=RECORD).xmp
    assert records(merged) == [RECORD]
    assert merged is not None and b"rdf:" not in merged.replace(b"22-rdf-syntax", b"")
    about = [element.get(f"{RDF}about") for element in ElementTree.fromstring(merged).iter()]
    assert about.count("uuid:1&2") == 2


BOMB = (
    b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>' + PACKET[58:]
).replace("Großmutter".encode(), b"&b;")


@pytest.mark.parametrize(
    "packet",
    [
        b"<broken",
        b"no xml at all",
        PACKET.replace(b"</x:xmpmeta>", b""),
        PACKET.replace(b"rdf:RDF", b"rdf:Other"),
        PACKET.decode().encode("utf-16"),
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF/></x:xmpmeta>',
        BOMB,
    ],
)
def test_a_packet_that_cannot_be_changed_safely_is_left_alone_and_that_is_said(
    packet: bytes,
) -> None:
    data, notes = put(Photo(picture(), xmp=packet), "TIFF", provenance=RECORD)
    assert notes == ("Its XMP is damaged, so that the restoration was not recorded in it.",)
    assert read_photo(data).xmp == packet


def test_a_record_that_does_not_fit_is_said() -> None:
    long = PACKET.replace(b" " * 200, b" " * (65_400 - len(PACKET)))
    data, notes = put(Photo(picture(), xmp=long), "JPEG", provenance=RECORD)
    assert notes == ("Its XMP is too long for a record of the restoration.",)
    assert read_photo(data).xmp == long
    for format in ("BMP", "GIF", "PPM"):
        _, notes = put(Photo(picture()), format, provenance=RECORD)
        assert f"{format} has no place for a record of the restoration." in notes


def test_names_and_values_in_the_record_are_checked() -> None:
    for name in ("", "a b", "x:y", "1a", "ä", "a>"):
        with pytest.raises(ConfigError, match="names in provenance"):
            put(Photo(picture()), "PNG", provenance={name: "1"})
    with pytest.raises(ConfigError, match=r"values in provenance must be text, found 0\.5 for w$"):
        put(Photo(picture()), "PNG", provenance={"w": 0.5})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="metadata must be"):
        put(Photo(picture()), "PNG", metadata="some")


# ---- what is stripped, and what a format cannot hold


def full_photo(**changes: Any) -> Photo:
    photo = Photo(
        picture(),
        icc=SRGB,
        exif=exif_block(),
        xmp=UPRIGHT,
        dpi=(300.0, 150.0),
        photoshop=IPTC,
        comment=b"Gr\xc3\xbc\xc3\x9fe",
        texts=((b"tEXt", b"Author\0Oma"),),
        colours=((b"gAMA", struct.pack(">I", 45455)),),
    )
    return replace(photo, **changes)


def block(number: int, content: bytes, name: bytes = b"") -> bytes:
    """One of Photoshop's resources."""
    pascal = bytes([len(name)]) + name
    return (
        b"8BIM"
        + struct.pack(">H", number)
        + pascal
        + b"\0" * (len(pascal) % 2)
        + struct.pack(">I", len(content))
        + content
        + b"\0" * (len(content) % 2)
    )


IPTC = block(0x0404, b"\x1c\x02\x78\x00\x03Oma") + block(0x03EC, b"odd", b"named")
HOLDS = {
    "JPEG": {"icc", "exif", "xmp", "dpi", "photoshop", "comment"},
    "PNG": {"icc", "exif", "xmp", "dpi", "texts", "colours"},
    "WEBP": {"icc", "exif", "xmp"},
    "TIFF": {"icc", "exif", "xmp", "dpi", "photoshop"},
    "BMP": {"dpi"},
    "GIF": {"comment"},
    "PPM": set(),
    "AVIF": {"icc", "exif", "xmp"},
    "HEIF": {"icc", "exif", "xmp"},
}
FIELDS = {
    "icc": "its ICC profile",
    "exif": "its EXIF",
    "xmp": "its XMP",
    "photoshop": "its IPTC and other Photoshop resources",
    "comment": "its comment",
    "texts": "its PNG texts",
    "colours": "what its PNG said of its colours",
}


@pytest.mark.parametrize("format", READABLE)
def test_what_a_format_has_no_place_for_is_said_and_the_rest_comes_back(format: str) -> None:
    photo = full_photo()
    data, notes = put(photo, format)
    back = read_photo(data)
    (said,) = [note for note in notes if "does not hold" in note] or [""]
    for field, words in FIELDS.items():
        kept = field in HOLDS[format]
        assert (words in said) is not kept, field
        if field == "exif" and format in ("TIFF", "AVIF"):
            assert back.exif is not None and bytes(range(256)) in back.exif
        elif kept:
            assert getattr(back, field) == getattr(photo, field), field
        else:
            assert not getattr(back, field), field
    if "dpi" in HOLDS[format]:
        assert back.dpi == pytest.approx(photo.dpi, abs=0.03)


@pytest.mark.parametrize("format", READABLE)
def test_strip_leaves_pixels_their_colours_and_their_resolution(format: str) -> None:
    data, notes = put(full_photo(), format, metadata="strip", provenance=RECORD)
    back = read_photo(data)
    assert back.xmp is None and back.photoshop is None and back.comment is None
    assert back.texts == () and (back.exif is None or b"Kamera" not in back.exif)
    assert not any("EXIF" in note or "restoration" in note for note in notes)
    if "icc" in HOLDS[format]:
        assert back.icc == SRGB
    if "dpi" in HOLDS[format]:
        assert back.dpi == pytest.approx((300, 150), abs=0.03)
    if format == "PNG":
        assert back.colours == full_photo().colours
    for secret in (b"Kamera", b"Oma", b"cfrestore", b"Gr\xc3\xbc\xc3\x9fe"):
        assert secret not in data


@pytest.mark.parametrize("field", ["exif", "xmp", "comment"])
def test_what_is_too_long_for_a_jpeg_is_said(field: str) -> None:
    content = {"exif": exif_block() + bytes(70_000), "xmp": bytes(66_000), "comment": bytes(66_000)}
    data, notes = put(Photo(picture(), **{field: content[field]}), "JPEG")
    assert notes == (f"JPEG does not hold {FIELDS[field]}.",)
    assert getattr(read_photo(data), field) is None


def test_sixteen_bits_into_eight_and_colours_into_a_palette_are_said() -> None:
    _, notes = put(Photo(picture(dtype=np.uint16)), "WEBP")
    assert notes == ("WEBP has 8 bits a channel, to which its 16 were rounded.",)
    _, notes = put(Photo(picture()), "GIF")
    assert notes == ("GIF has 256 colours, of which the nearest were taken.",)
    gray = SRGB[:16] + b"GRAY" + SRGB[20:]
    _, notes = put(Photo(picture(), gray=True, icc=gray), "PNG")
    assert notes == ("Its profile for gray was left out, for the picture is written in colour.",)
    flat = np.repeat(noise(4, 5, 1, dtype=np.uint16), 3, axis=2)
    _, notes = put(Photo(flat, flat[..., 0], gray=True), "TIFF")
    assert notes == ("It was written in colour, for few programs open 16-bit gray with alpha.",)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("exif", [EXIF_HEAD, EXIF_HEAD + b"junk" * 9, EXIF_HEAD + b"II*\0" * 2])
def test_a_damaged_exif_block_prevents_nothing(format: str, exif: bytes) -> None:
    if format not in READABLE:
        pytest.skip(f"{format} cannot be written here")
    data, notes = put(Photo(picture(), exif=exif), format)
    assert read_photo(data).size == (24, 40)
    said = notes == ("Its EXIF is damaged and was left out.",)
    assert said == (format in ("TIFF", "AVIF", "HEIF"))


# ---- resolution, texts, comments, resources


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "BMP"])
def test_resolution_turns_with_the_picture(format: str) -> None:
    upright = read_photo(saved(Image.fromarray(picture()), format, dpi=(300, 150)))
    assert upright.dpi == pytest.approx((300, 150), abs=0.03)
    if format != "BMP":
        image = Image.fromarray(picture())
        turned = read_photo(saved(image, format, dpi=(300, 150), exif=exif_block(6)))
        assert turned.dpi == pytest.approx((150, 300), abs=0.03)


@pytest.mark.parametrize("dpi", [(0, 300), (float("nan"), 1), (float("inf"), 1), (1e9, 1), (72,)])
def test_a_resolution_that_cannot_be_true_is_none(
    dpi: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = saved(Image.fromarray(picture()), "PNG")
    real = Image.open

    def lying(*args: Any, **settings: Any) -> Image.Image:
        image = real(*args, **settings)
        image.info["dpi"] = dpi
        return image

    monkeypatch.setattr(Image, "open", lying)
    assert read_photo(data).dpi is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_texts_and_colours_of_a_png_are_kept(dtype: Any) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "Oma")
    text.add_text("Title", "Großmutter", zip=True)
    text.add_itxt("Title", "Großmutter", "de", "Titel")
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    text.add(b"gAMA", struct.pack(">I", 55555))
    text.add(b"sRGB", b"\0")
    data = saved(Image.fromarray(picture()), "PNG", pnginfo=text)
    photo = read_photo(data)
    assert [content.partition(b"\0")[0] for _, content in photo.texts] == [
        b"Author",
        *2 * [b"Title"],
    ]
    assert dict(photo.colours) == {b"gAMA": struct.pack(">I", 55555), b"sRGB": b"\0"}
    wide = replace(photo, pixels=photo.pixels.astype(dtype))
    back = again(wide, "PNG")
    assert (back.texts, back.colours, back.xmp) == (photo.texts, photo.colours, UPRIGHT)
    opened = Image.open(io.BytesIO(put(wide, "PNG")[0]))
    assert opened.info["Author"] == "Oma" and opened.info["gamma"] == pytest.approx(0.55555)


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG with the given segments after its first."""
    data = saved(Image.fromarray(picture()), "JPEG")
    extra = b"".join(struct.pack(">HH", 0xFF00 + kind, 2 + len(c)) + c for kind, c in segments)
    return data[:20] + extra + data[20:]


def test_iptc_goes_from_jpeg_to_tiff_and_back_without_thumbnails() -> None:
    resources = IPTC + block(0x040C, b"old face" * 9) + block(0x0409, b"older face", b"x") + IPTC
    photo = read_photo(jpeg_with((0xED, b"Photoshop 3.0\0" + resources)))
    assert photo.photoshop == IPTC + IPTC
    for format in ("JPEG", "TIFF", "JPEG"):
        photo = again(photo, format)
        assert photo.photoshop == IPTC + IPTC
    image = Image.open(io.BytesIO(put(photo, "JPEG")[0]))
    assert image.info["photoshop"][0x0404] == b"\x1c\x02\x78\x00\x03Oma"


def test_long_resources_take_several_segments_and_damaged_ones_are_kept() -> None:
    long = block(0x0404, np.random.default_rng(1).bytes(150_000))
    assert again(Photo(picture(), photoshop=long), "JPEG").photoshop == long
    for damaged in (b"8BIM", b"8BIM\x04\x04\0\0\xff", b"nothing of the kind", IPTC[:-3]):
        photo = read_photo(jpeg_with((0xED, b"Photoshop 3.0\0" + IPTC + damaged)))
        assert photo.photoshop == IPTC + damaged


def test_an_extended_packet_and_further_pictures_are_said_to_be_gone() -> None:
    extended = b"http://ns.adobe.com/xmp/extension/\0" + bytes(40)
    photo = read_photo(jpeg_with((0xE1, extended)))
    assert photo.notes == ("The extended part of its XMP was not read.",)
    assert photo.lost == ()  # no part of the picture
    first, second = (Image.fromarray(picture(seed=seed)) for seed in (1, 2))
    mpo = saved(first, "MPO", save_all=True, append_images=[second])
    assert read_photo(mpo).notes == ("Only the first of its 2 pictures was read.",)
    gain = b'http://ns.adobe.com/xap/1.0/\0<x hdrgm:Version="1.0"/>'
    segment = struct.pack(">HH", 0xFFE1, 2 + len(gain)) + gain
    photo = read_photo(mpo[:2] + segment + mpo[2:])
    (note,) = photo.notes
    assert "gain map" in note or "2 pictures" in note
    assert photo.lost == (note,)


# ---- thumbnails


def with_thumbnail(exif: bytes, order: str, thumbnail: bytes, after: bytes = b"") -> bytes:
    """An EXIF block with one directory, followed by a second one for a thumbnail."""
    tiff = bytearray(exif.removeprefix(EXIF_HEAD))
    second = len(tiff) + len(tiff) % 2
    tiff += bytes(len(tiff) % 2)
    start = second + 2 + 2 * 12 + 4
    tiff += struct.pack(order + "H", 2)
    tiff += struct.pack(order + "HHII", 513, 4, 1, start)
    tiff += struct.pack(order + "HHII", 514, 4, 1, len(thumbnail))
    tiff += bytes(4) + thumbnail + after
    (count,) = struct.unpack_from(order + "H", tiff, 8)
    struct.pack_into(order + "I", tiff, 10 + 12 * count, second)
    return EXIF_HEAD + bytes(tiff)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("after", [b"", b"a maker's note"])
def test_the_small_picture_in_exif_goes_and_nothing_else(order: str, after: bytes) -> None:
    small = saved(Image.fromarray(picture(12, 16)), "JPEG")
    before = with_thumbnail(exif_block(6, order), order, small, after)
    assert Image.open(io.BytesIO(saved(Image.fromarray(picture()), "JPEG", exif=before))).getexif()
    photo = read_photo(saved(Image.fromarray(picture()), "JPEG", exif=before))
    assert photo.exif is not None and small not in photo.exif and small[:4] not in photo.exif
    whole = with_thumbnail(exif_block(1, order), order, small, after)
    kept = len(whole) - len(small) - len(after)
    differences = [i for i in range(kept) if photo.exif[i] != whole[i]]
    pointer = len(EXIF_HEAD) + 10 + 12 * 3
    assert set(differences) <= {*range(pointer, pointer + 4)}
    assert photo.exif[kept:] == (bytes(len(small)) + after if after else b"")
    exif = Image.open(io.BytesIO(put(photo, "JPEG")[0])).getexif()
    assert exif[271] == "Kamera & Sohn" and not exif.get_ifd(1)


def test_a_small_picture_that_lies_nowhere_does_no_harm() -> None:
    small = with_thumbnail(exif_block(), "<", b"\xff\xd8")
    for place, value in [(-14, 2**31), (-14, 2**32 - 1), (-26, 2**31), (-26, 0)]:
        wrong = small[:place] + struct.pack("<I", value) + small[place + 4 :]
        photo = read_photo(saved(Image.fromarray(picture()), "JPEG", exif=wrong))
        assert photo.exif is not None and b"Kamera & Sohn" in photo.exif


def test_the_small_pictures_in_xmp_go_and_nothing_else() -> None:
    for prefix in ("xmp", "xap"):
        small = (
            f"<{prefix}:Thumbnails><rdf:Alt><rdf:li><xmpGImg:image>AAAA</xmpGImg:image></rdf:li>"
            f"</rdf:Alt></{prefix}:Thumbnails>"
        ).encode()
        packet = PACKET.replace(b"   <dc:title>", b"   " + small + b"<dc:title>")
        assert read_photo(put(Photo(picture(), xmp=packet), "PNG")[0]).xmp == PACKET


def test_pages_that_overlap_are_counted_without_reading_them() -> None:
    # Every fourth byte begins a page of 65,535 entries: a billion in total.
    starts = range(8, 8 + 4 * 20_000, 4)
    data = bytearray(b"II*\0" + struct.pack("<I", 8) + bytes(900_000))
    for start in starts:
        struct.pack_into("<H", data, start, 65_535)
        struct.pack_into("<I", data, start + 2 + 12 * 65_535, start + 4)
    struct.pack_into("<I", data, starts[-1] + 2 + 12 * 65_535, 0)
    assert count_pages(bytes(data)) == 20_000


# ---- quality


def tables_of(data: bytes) -> tuple[list[list[int]], int]:
    image = Image.open(io.BytesIO(data))
    assert isinstance(image, JpegImagePlugin.JpegImageFile)
    tables = [image.quantization[key] for key in sorted(image.quantization)]
    return tables, JpegImagePlugin.get_sampling(image)


@pytest.mark.parametrize("sampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [90, 97])
def test_a_fine_jpeg_is_coded_as_it_was_and_so_hardly_changes(sampling: int, quality: int) -> None:
    source = saved(Image.fromarray(picture(64, 64)), "JPEG", quality=quality, subsampling=sampling)
    photo = read_photo(source)
    data, _ = put(photo, "JPEG")
    assert tables_of(data) == tables_of(source)
    change = np.abs(read_photo(data).pixels.astype(int) - photo.pixels)
    other = np.abs(again(photo, "JPEG", quality=quality - 1).pixels.astype(int) - photo.pixels)
    assert change.mean() < 0.2 and change.mean() < other.mean()


def test_a_coarse_jpeg_is_coded_finely_for_the_new_faces_sake_unless_asked_to_keep() -> None:
    source = saved(Image.fromarray(picture(64, 64)), "JPEG", quality=60)
    photo = read_photo(source)
    expected = tables_of(saved(Image.fromarray(picture()), "JPEG", quality=95, subsampling=0))
    assert tables_of(put(photo, "JPEG")[0]) == expected
    assert tables_of(put(photo, "JPEG", quality="keep")[0]) == tables_of(source)
    assert tables_of(put(Photo(picture()), "JPEG", quality="keep")[0]) == expected
    asked = saved(Image.fromarray(picture()), "JPEG", quality=70, subsampling=0)
    assert tables_of(put(photo, "JPEG", quality=70)[0]) == tables_of(asked)


def test_the_coding_turns_with_the_picture() -> None:
    tables = [[1 + (k % 8) * 2 + k // 8 for k in range(64)] for _ in range(2)]
    for sampling, turned in [(0, 0), (1, 0), (2, 2)]:
        source = saved(
            Image.fromarray(picture()),
            "JPEG",
            qtables=tables,
            subsampling=sampling,
            exif=exif_block(6),
        )
        found, kept = tables_of(put(read_photo(source), "JPEG", quality="keep")[0])
        assert kept == turned
        assert np.array_equal(np.reshape(found[0], (8, 8)), np.reshape(tables[0], (8, 8)).T)


def test_gray_and_progressive_jpegs_keep_their_coding_too() -> None:
    gray = saved(Image.fromarray(picture()[..., 0]), "JPEG", quality=96)
    data, _ = put(read_photo(gray), "JPEG")
    assert Image.open(io.BytesIO(data)).mode == "L" and tables_of(data) == tables_of(gray)
    waves = saved(Image.fromarray(picture()), "JPEG", quality=96, progressive=True)
    assert tables_of(put(read_photo(waves), "JPEG")[0]) == tables_of(waves)


def test_a_lossless_webp_stays_lossless() -> None:
    pixels = noise(9, 11, 3)
    exact = read_photo(saved(Image.fromarray(pixels), "WEBP", lossless=True, exif=exif_block(6)))
    assert np.array_equal(again(exact, "WEBP").pixels, exact.pixels)
    assert not np.array_equal(again(exact, "WEBP", quality=90).pixels, exact.pixels)
    lossy = read_photo(saved(Image.fromarray(pixels), "WEBP", quality=90))
    assert not lossy.lossless and len(put(lossy, "WEBP")[0]) < len(put(exact, "WEBP")[0])
    assert put(Photo(pixels), "WEBP")[0] == put(Photo(pixels), "WEBP", quality=95)[0]


@needs_avif
def test_default_qualities_are_the_documented_ones() -> None:
    photo = Photo(picture())
    for format, quality in [("JPEG", 95), ("WEBP", 95), ("AVIF", 90)]:
        assert put(photo, format) == put(photo, format, quality=quality)
    for quality in (0, 101, "best", 90.5):
        with pytest.raises(ConfigError, match="quality must"):
            put(photo, "JPEG", quality=quality)


# ---- inks


def test_inks_as_adobe_stores_them_and_as_luminance_and_chrominance() -> None:
    colours = np.full((16, 16, 3), (200, 90, 40), np.uint8)
    y, cb, cr = Image.fromarray(255 - colours).convert("YCbCr").split()
    black = Image.new("L", (16, 16), 255)
    # Pillow stores CMYK inverted, as Adobe does, and can store only the mark of YCCK.
    parts = [part.point(lambda v: 255 - v) for part in (y, cb, cr, black)]
    data = saved(Image.merge("CMYK", parts), "JPEG", quality=100)
    mark = data.index(b"Adobe") + 11
    ycck = data[:mark] + b"\2" + data[mark + 1 :]
    photo = read_photo(ycck)
    assert np.abs(photo.pixels.astype(int) - colours).max() <= 3
    assert photo.notes == (
        "Its inks (CMYK) were converted to sRGB without a profile that can be used.",
    )
    plain = saved(Image.fromarray(255 - colours).convert("CMYK"), "JPEG", quality=100)
    assert np.abs(read_photo(plain).pixels.astype(int) - (255 - colours)).max() <= 3


def test_what_becomes_of_inks_is_said() -> None:
    inks = Image.fromarray(np.full((16, 16, 4), (0, 255, 0, 0), np.uint8), "CMYK")
    through = read_photo(saved(inks, "TIFF", icc_profile=cmyk_profile()))
    assert through.notes == ("Its inks (CMYK) were converted to sRGB through its profile.",)
    assert through.icc is None and through.format == "TIFF"
    garbage = read_photo(saved(inks, "TIFF", icc_profile=b"no profile"))
    assert garbage.notes[0].endswith("without a profile that can be used.")
    deep = read_photo(wide_tiff(noise(5, 6, 4, dtype=np.uint16), photometric="separated"))
    assert "Its 16 bits a channel were read as 8." in deep.notes
    clear = read_photo(
        wide_tiff(noise(5, 6, 5), photometric="separated", extrasamples=["unassalpha"])
    )
    assert "Its channels beside the colours were not read." in clear.notes and clear.alpha is None


# ---- bit depth of the newest formats


@needs_avif
def test_avif_of_more_than_8_bits_is_recognised() -> None:
    data = bytearray(saved(Image.fromarray(picture()), "AVIF"))
    image = Image.open(io.BytesIO(data))
    at = data.index(b"av1C") + 6
    assert bits_of(image, bytes(data)) == 8
    for flags, bits in [(0x40, 10), (0x60, 12)]:
        data[at] = data[at] & ~0x60 | flags
        assert bits_of(image, bytes(data)) == bits


@needs_heif
def test_heic_of_ten_bits_is_read_as_eight_and_said_so() -> None:
    import pillow_heif

    file = pillow_heif.from_bytes("RGB;16", (40, 24), picture(dtype=np.uint16).tobytes())
    file.save(buffer := io.BytesIO())
    assert read_photo(buffer.getvalue()).notes == ("Its 10 bits a channel were read as 8.",)


@pytest.mark.parametrize("key", ["aux", "depth_images"])
def test_what_lies_beside_the_picture_of_a_heic_is_said_to_be_gone(key: str) -> None:
    image = Image.fromarray(picture())
    image.format = "HEIF"
    assert list(remarks_on(image, b"", "HEIF", transparent=False)) == []
    image.info[key] = {"urn:com:apple:photo:2020:aux:hdrgainmap": [2]}
    (note,) = remarks_on(image, b"", "HEIF", transparent=False)
    assert note == "Only its main picture was read, without a gain map or others in the file."


# ---- names and limits


def test_a_name_that_misleads_is_said(tmp_path: Path) -> None:
    path = tmp_path / "photo.JPG"
    path.write_bytes(put(Photo(picture()), "PNG")[0])
    photo = read_photo(path)
    assert photo.format == "PNG" and photo.notes == ("It is PNG, though it is called .jpg.",)
    for name in ("photo.png", "photo", "photo.xyz"):
        (tmp_path / name).write_bytes(path.read_bytes())
        assert read_photo(tmp_path / name).notes == ()


def test_a_long_colour_profile_is_kept() -> None:
    profile = SRGB[:128] + np.random.default_rng(2).bytes(3_000_000)
    for format in ("PNG", "JPEG", "TIFF"):
        assert again(Photo(picture(), icc=profile), format).icc == profile


def test_damaged_exif_in_an_old_png_is_left_behind_and_that_is_said() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n10\nno hexadecimal")
    photo = read_photo(saved(Image.fromarray(picture()), "PNG", pnginfo=text))
    assert photo.notes == ("Its EXIF is damaged and was not read.",)
    assert photo.exif is None and photo.texts == ()


def test_reading_in_many_threads_leaves_pillows_limits_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    limit = PngImagePlugin.MAX_TEXT_CHUNK
    data = put(Photo(noise(60, 70, 3)), "TIFF")[0]
    sizes: list[tuple[int, int]] = []

    def read() -> None:
        for _ in range(20):
            sizes.append(read_photo(data).size)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [(60, 70)] * 160
    assert Image.MAX_IMAGE_PIXELS == 10
    assert limit == PngImagePlugin.MAX_TEXT_CHUNK


def test_remarks_of_pillow_do_not_reach_the_user(recwarn: pytest.WarningsRecorder) -> None:
    image = Image.fromarray(picture())
    data = bytearray(saved(image, "TIFF", description="x" * 99))
    data[data.index(b"x" * 99) :] = b""
    with pytest.raises(ImageError):
        read_photo(bytes(data))
    apng = png_chunk(b"acTL", struct.pack(">II", 0, 0))
    still = saved(image, "PNG")
    assert read_photo(still[:33] + apng + still[33:]).size == (24, 40)
    assert not [warning for warning in recwarn if "PIL" in warning.filename]


def test_eight_bits_of_sixteen_are_the_nearest() -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(to_uint8(every), np.rint(every / 257))
