"""Faces larger than the crop: what is measured, what is kept, and which are left alone."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stubs import StubDetector, StubNetwork, face_at, leaves

from cfrestore.align import AlignedFace, align_face
from cfrestore.degrade import LARGE, degrade
from cfrestore.detail import TOO_SHARP, Detail, measure_detail
from cfrestore.image import Photo, read_photo
from cfrestore.options import Options
from cfrestore.paste import paste_faces
from cfrestore.pipeline import Pipeline
from cfrestore.restore import RestoredFace
from cfrestore.select import SkippedFace
from cfrestore.weights import load_codeformer, shipped


def blurred(pixels: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma), np.uint8)


def grainy(pixels: NDArray[np.uint8], sigma: float, seed: int = 1) -> NDArray[np.uint8]:
    grain = np.random.default_rng(seed).normal(0, sigma, (*pixels.shape[:2], 1))
    return np.rint(pixels + grain).clip(0, 255).astype(np.uint8)


def measured(pixels: NDArray, size: int, side: float, x: float = 0, y: float = 0) -> Detail:
    detail = measure_detail(pixels, align_face(pixels, face_at(x, y, side), size))
    assert detail is not None
    return detail


# What is measured


@pytest.mark.parametrize("side", [160, 200, 256, 400, 512])
def test_sharp_and_blurred_are_told_apart_whatever_the_size(side: int) -> None:
    sharp = leaves(side, side)
    assert measured(sharp, 128, side).sharp
    for blur in (1, 2, 3):  # px of the crop
        soft = measured(blurred(sharp, blur * side / 128), 128, side)
        assert soft.sharpness < 0.4 * measured(sharp, 128, side).sharpness
        assert side == 160 or not soft.sharp  # which has only a third of an octave more


@pytest.mark.parametrize("sigma", [6, 12, 25])
def test_noise_is_no_detail(sigma: float) -> None:
    detail = measured(grainy(blurred(leaves(512, 512), 8), sigma), 128, 512)
    assert not detail.sharp
    assert detail.share < 0.1
    assert detail.kept.mean() < 0.1


@pytest.mark.parametrize("quality", [30, 50, 75])
@pytest.mark.parametrize("factor", [4, 6, 8])
def test_traces_of_coding_are_no_detail(factor: int, quality: int) -> None:
    """A small picture that was enlarged and only then saved, like an upload of an upload."""
    sharp = leaves(512, 512)
    side = 512 // factor
    small = cv2.resize(sharp, (side, side), interpolation=cv2.INTER_AREA)
    large = cv2.resize(small, (512, 512), interpolation=cv2.INTER_CUBIC)
    coded = cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    assert not measured(np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8), 256, 512).sharp
    saved = cv2.imencode(".jpg", sharp, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    assert measured(np.asarray(cv2.imdecode(saved, cv2.IMREAD_COLOR), np.uint8), 256, 512).sharp


def test_detail_is_kept_where_it_is_and_noise_is_not() -> None:
    pixels = grainy(leaves(512, 512), 6)
    flat = np.s_[200:300, 200:312]
    pixels[flat] = grainy(np.full((100, 112, 3), 128, np.uint8), 6)
    kept = measured(pixels, 128, 512).kept
    assert kept.shape == (128, 128)
    assert kept.dtype == np.float32
    assert kept.min() >= 0
    assert kept.max() <= 1
    assert kept[56:69, 56:72].mean() < 0.2
    assert kept[90:110, 40:90].mean() > 0.5


def test_a_face_the_crop_can_show_wholly_has_no_finer_detail() -> None:
    for side in (40, 127.5):
        pixels = leaves(256, 256)
        assert measure_detail(pixels, align_face(pixels, face_at(9, 9, side), 128)) is None


def test_the_border_of_a_picture_is_no_detail() -> None:
    flat = np.full((300, 300, 3), 220, np.uint8)
    detail = measured(flat, 64, 300, x=-140, y=120)
    assert (detail.sharpness, detail.share) == (0, 0)


def test_depth_makes_no_difference() -> None:
    pixels = leaves(300, 300)
    deep, plain = (measured(p, 64, 300) for p in (pixels.astype(np.uint16) * 257, pixels))
    assert deep.sharpness == pytest.approx(plain.sharpness, rel=0.02)
    assert np.abs(deep.kept - plain.kept).max() < 0.1


@pytest.mark.parametrize("size", [128, 256])
def test_all_sharp_validation_photographs_are_sharp(shared: Path, size: int) -> None:
    found = {
        path.name: measured(read_photo(path).pixels, size, 512)
        for path in sorted((shared / "faces" / "valid-512").glob("*.jpg"))
    }
    assert len(found) == 102
    assert [name for name, detail in found.items() if not detail.sharp] == []


# What is pasted


def paste(
    pixels: NDArray,
    change: float,
    kept: float | None,
    *,
    size: int = 64,
    scale: int = 1,
    times: int = 1,
) -> NDArray:
    """Pastes faces of 400 px onto each other, each brighter than its crop by a given amount."""
    plain = align_face(pixels, face_at(30, 20, 400), size)
    share = None if kept is None else np.full((size, size), kept, np.float32)
    aligned = AlignedFace(plain.crop, plain.to_crop, plain.face, share)
    face = RestoredFace(np.rint(plain.crop + change).astype(np.uint8), aligned, 0.5)
    return paste_faces(pixels, [face] * times, scale=scale)


MIDDLE = np.s_[120:320, 130:330]


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_where_all_detail_is_kept_only_what_the_network_changed_changes(
    size: int, dtype: type
) -> None:
    unit = np.iinfo(dtype).max // 255
    pixels = leaves(440, 460).astype(dtype) * unit
    assert (paste(pixels, 0, 1, size=size) == pixels).all()
    brighter = paste(pixels, 10, 1, size=size)
    assert brighter.dtype == dtype
    assert np.abs(brighter[MIDDLE] / unit - pixels[MIDDLE] / unit - 10).max() <= 1
    softer = np.abs(paste(pixels, 0, None, size=size) / unit - pixels / unit)
    assert softer.max() > 40


def test_where_none_is_kept_it_is_pasting_as_ever() -> None:
    pixels = leaves(440, 460)
    assert (paste(pixels, 10, 0) == paste(pixels, 10, None)).all()


def test_half_of_the_detail_can_be_kept() -> None:
    pixels = leaves(440, 460)
    none, half, all_ = (paste(pixels, 10, kept)[MIDDLE].astype(float) for kept in (0, 0.5, 1))
    inside = (none > 0) & (none < 255)  # not clipped
    assert np.abs(half - (none + all_) / 2)[inside].max() < 2.5


@pytest.mark.parametrize("scale", [1, 2])
def test_faces_on_one_another_do_not_add_up(scale: int) -> None:
    pixels = leaves(440, 460)
    once, twice = (paste(pixels, 10, 1, scale=scale, times=times) for times in (1, 2))
    inner = tuple(slice(s.start * scale, s.stop * scale) for s in MIDDLE)
    assert np.abs(once[inner].astype(int) - twice[inner]).max() <= 1


# Results for faces


def pipeline(*faces: object, paint: object = None) -> Pipeline:
    network = StubNetwork() if paint is None else StubNetwork(paint)
    return Pipeline(network, StubDetector(*faces))


def test_a_sharp_large_face_is_left_alone_with_its_reason() -> None:
    photo = Photo(leaves(200, 220))
    restore = pipeline(face_at(10, 10, 160), face_at(150, 120, 30))
    result = restore(photo)
    large, small = result.faces
    assert isinstance(large, SkippedFace)
    assert large.reason == TOO_SHARP
    assert isinstance(small, RestoredFace)
    assert len(restore.network.calls) == 1  # faces that are left alone are not painted
    for limit in (None, 500):
        everything = restore(photo, Options(max_face=limit))
        assert len(everything.restored) == 2


def test_a_sharp_face_little_larger_than_the_crop_is_restored_and_keeps_its_detail() -> None:
    (face,) = pipeline(face_at(10, 10, 38))(Photo(leaves(60, 60))).restored
    assert face.aligned.kept is not None
    assert not face.softened


def test_a_blurred_large_face_is_restored() -> None:
    photo = Photo(blurred(leaves(200, 220), 8))
    (face,) = pipeline(face_at(10, 10, 160))(photo).restored
    assert face.aligned.kept is not None
    assert face.aligned.kept.shape == (32, 32)
    assert not face.softened


@pytest.mark.parametrize("side", [20, 31.9])
def test_a_face_within_the_crop_is_treated_as_ever(side: float) -> None:
    photo = Photo(leaves(60, 60))
    result = pipeline(face_at(10, 10, side), paint=lambda x: -x)(photo)
    (face,) = result.restored
    assert face.aligned.kept is None
    plain = align_face(photo.pixels, face_at(10, 10, side), 32)
    expected = paste_faces(photo.pixels, [RestoredFace(255 - plain.crop, plain, 0.5)])
    assert np.abs(face.crop.astype(int) + plain.crop - 255).max() <= 1
    assert (result.photo.pixels == paste_faces(photo.pixels, [face])).all()
    assert np.abs(result.photo.pixels.astype(int) - expected).max() <= 1


def test_other_tasks_leave_no_face_alone_for_being_sharp() -> None:
    photo = Photo(leaves(200, 220))
    make = pipeline(face_at(10, 10, 160))
    (coloured,) = make.colorize(photo).restored
    assert coloured.aligned.kept is None
    assert coloured.softened
    holes = np.zeros((200, 220), bool)
    holes[60:90, 60:90] = True
    (filled,) = make.inpaint(photo, holes).restored
    assert filled.aligned.kept is None
    assert [f.reason for f in make.colorize(photo, Options(max_face=100)).skipped] == [
        "larger than 100 px"
    ]


def test_an_aligned_face_is_restored_however_sharp() -> None:
    assert len(pipeline()(Photo(leaves(160, 160)), Options(aligned=True)).restored) == 1


def test_the_limit_is_part_of_the_settings_of_a_batch() -> None:
    limits = {pipeline().restoring(Options(max_face=m)).settings["max_face"] for m in (None, 9)}
    assert limits == {None, 9}
    assert pipeline().restoring().settings["max_face"] == "auto"


def test_real_photographs_sharp_and_damaged(shared: Path) -> None:
    """A sharp one is returned unchanged; a damaged one is restored, and becomes sharper."""
    path = shared / "faces" / "valid-512" / "neutral_front__007_03.jpg"
    sharp = read_photo(path).pixels
    network = load_codeformer(shipped(), "cpu")
    restore = Pipeline(network, StubDetector(face_at(0, 0, 512)))
    result = restore(Photo(sharp), Options(fidelity=1))
    assert [face.reason for face in result.skipped] == [TOO_SHARP]
    assert (result.photo.pixels == sharp).all()

    batch = torch.from_numpy(sharp).permute(2, 0, 1)[None].float() / 255
    damaged = degrade(batch, LARGE, torch.Generator().manual_seed(0))[0]
    damaged = (damaged * 255).byte().permute(1, 2, 0).numpy().copy()
    found = restore(Photo(damaged), Options(fidelity=0.5))
    assert len(found.restored) == 1
    assert gradient(found.photo.pixels) > 1.1 * gradient(damaged)


def test_a_restored_sharp_photograph_is_nearer_to_what_it_was(shared: Path) -> None:
    path = shared / "faces" / "valid-512" / "neutral_front__007_03.jpg"
    sharp = read_photo(path).pixels
    restore = Pipeline(load_codeformer(shipped(), "cpu"), StubDetector(face_at(0, 0, 512)))
    result = restore(Photo(sharp), Options(fidelity=1, max_face=None))
    plain = [
        RestoredFace(f.crop, align_face(sharp, f.aligned.face, 128), 1) for f in result.restored
    ]
    before = paste_faces(sharp, plain)
    assert gradient(result.photo.pixels) > 1.3 * gradient(before)
    ours, theirs = (
        np.square(p.astype(float) - sharp).mean() for p in (result.photo.pixels, before)
    )
    assert ours < 0.8 * theirs


def gradient(pixels: NDArray[np.uint8]) -> float:
    """Mean gradient of the face, in levels per pixel."""
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)[120:440, 130:380]
    return float(np.hypot(*np.gradient(luma)).mean())
