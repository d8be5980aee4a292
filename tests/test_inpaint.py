"""Filling holes in faces: the library, then the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command import Command, detect
from numpy.typing import NDArray
from published import random_published_file
from stubs import StubDetector, StubNetwork, face_at, picture, save_network, small_network
from torch import Tensor

from cfrestore import weights
from cfrestore.device import Execution, Precision, inference
from cfrestore.errors import ImageError
from cfrestore.image import Photo, from_tensor, read_photo, to_tensor, write_photo
from cfrestore.models.codeformer import CodeFormer
from cfrestore.options import Options
from cfrestore.pipeline import Pipeline
from cfrestore.restore import RestoredFace
from cfrestore.select import SkippedFace

WHITE = np.uint8(255)


def hole(height: int, width: int, *boxes: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """A mask of holes, each given as (first row, end row, first column, end column)."""
    holes = np.zeros((height, width), bool)
    for top, bottom, left, right in boxes:
        holes[top:bottom, left:right] = True
    return holes


def direct(network: CodeFormer, crop: NDArray[np.uint8], gap: NDArray[np.bool_]) -> NDArray:
    """The published formula: (1 - mask) x + mask y, where x is white in the mask."""
    x = to_tensor(np.where(gap[..., None], WHITE, crop)[None])
    with inference():
        y = network(x, 1.0, False)
    mask = torch.from_numpy(gap).float()
    return from_tensor((1 - mask) * x + mask * y)[0]


def teal() -> StubNetwork:
    """A network that paints every face in one colour except for one corner."""

    def paint(x: Tensor) -> Tensor:
        y = torch.tensor([-0.5, 0.25, 0.5]).view(3, 1, 1).expand(x.shape).clone()
        y[..., :2, :2] = -1
        return y

    return StubNetwork(paint)


TEAL = from_tensor(torch.tensor([-0.5, 0.25, 0.5]).view(1, 3, 1, 1))[0, 0, 0]


def test_an_aligned_face_gets_what_the_published_formula_gives() -> None:
    network, pixels, gap = small_network(), picture(32, 32), hole(32, 32, (8, 20, 5, 25))
    result = Pipeline(network, StubDetector()).inpaint(Photo(pixels), gap, Options(aligned=True))
    assert np.array_equal(result.photo.pixels, direct(network, pixels, gap))
    assert np.array_equal(result.photo.pixels[~gap], pixels[~gap])
    assert (result.photo.pixels[gap] != pixels[gap]).any(axis=1).mean() > 0.9
    assert result.remarks == ()


def test_white_is_the_hole_where_no_mask_is_given() -> None:
    network, gap = small_network(), hole(32, 32, (3, 9, 20, 32))
    pixels = np.where(gap[..., None], WHITE, picture(32, 32))
    fill = Pipeline(network, StubDetector())
    result = fill.inpaint(Photo(pixels), options=Options(aligned=True))
    assert np.array_equal(result.photo.pixels, direct(network, pixels, gap))


def test_the_network_sees_white_holes_and_works_without_matched_statistics_at_w_1() -> None:
    network, gap = teal(), hole(80, 90, (30, 50, 30, 50))
    Pipeline(network, StubDetector(face_at(16, 16, 48))).inpaint(Photo(picture(80, 90)), gap)
    ((x, w, matched),) = network.calls
    assert (w, matched) == (1, False)
    assert (x[0, :, 12:20, 12:20] == 1).all()
    assert (x[0, :, :6] < 1).all()


@pytest.mark.parametrize("size", [(64, 64), (48, 100), (20, 20)])
def test_an_aligned_picture_of_another_size_is_stretched_with_its_hole(
    size: tuple[int, int],
) -> None:
    height, width = size
    gap = hole(height, width, (height // 2, height, 0, width // 4))
    result = Pipeline(teal(), StubDetector()).inpaint(
        Photo(picture(*size)), gap, Options(aligned=True)
    )
    assert result.photo.size == (32, 32)
    assert (result.photo.pixels[17:, :8] == TEAL).all()
    assert not (result.photo.pixels[:15] == TEAL).all(axis=2).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("side", [20, 48, 150])
def test_a_photograph_is_filled_wholly_within_its_holes_and_nowhere_else(
    dtype: type, side: int
) -> None:
    pixels = picture(200, 220, dtype)
    x, y = 30, 25
    gap = hole(200, 220, (y + side // 2, y + side - 3, x + 3, x + side // 2))
    top = np.iinfo(dtype).max
    holed = Photo(np.where(gap[..., None], dtype(top), pixels), icc=b"i", format="TIFF")
    result = Pipeline(teal(), StubDetector(face_at(x, y, side))).inpaint(holed, gap)
    found = result.photo.pixels
    assert found.dtype == dtype
    assert result.photo.icc == b"i"
    assert np.array_equal(found[~gap], pixels[~gap])
    assert (found[gap] // (top // 255) == TEAL).all()
    assert result.remarks == ()


def test_what_is_under_the_mask_does_not_shine_through() -> None:
    gap = hole(100, 100, (41, 66, 38, 59))
    fill = Pipeline(small_network(), StubDetector(face_at(10, 10, 70)))
    results = [
        fill.inpaint(Photo(np.where(gap[..., None], np.uint8(v), picture(100, 100))), gap)
        for v in (0, 90, 255)
    ]
    for result in results[1:]:
        assert np.array_equal(result.photo.pixels, results[0].photo.pixels)


@pytest.mark.parametrize("scale", [2, 4])
def test_an_enlarged_photograph_keeps_no_seam_of_the_hole(scale: int) -> None:
    gap = hole(60, 70, (20, 40, 25, 45))
    holed = np.where(gap[..., None], WHITE, np.uint8([140, 90, 60])).astype(np.uint8)
    holed = np.ascontiguousarray(np.broadcast_to(holed, (60, 70, 3)))
    fill = Pipeline(teal(), StubDetector(face_at(10, 10, 48)))
    result = fill.inpaint(Photo(holed), gap, Options(upscale=scale))
    assert result.photo.size == (60 * scale, 70 * scale)
    allowed = np.maximum(TEAL, [140, 90, 60]).astype(int)
    assert (result.photo.pixels <= allowed).all()
    assert (result.photo.pixels[20 * scale : 40 * scale, 25 * scale : 45 * scale] == TEAL).all()


def test_a_hole_outside_every_face_stays_and_is_counted() -> None:
    gap = hole(100, 200, (40, 60, 30, 40), (40, 60, 150, 160))
    pixels = picture(100, 200)
    result = Pipeline(teal(), StubDetector(face_at(10, 20, 60))).inpaint(Photo(pixels), gap)
    assert np.array_equal(result.photo.pixels[:, 100:], pixels[:, 100:])
    assert (result.photo.pixels[40:60, 30:40] == TEAL).all()
    assert result.remarks == ("200 of 400 hole pixels (50.0%) are left as they were",)


def test_without_faces_or_holes_that_is_said() -> None:
    photo, gap = Photo(picture(50, 60)), hole(50, 60, (0, 50, 0, 1))
    nobody = Pipeline(teal(), StubDetector()).inpaint(photo, gap)
    assert nobody.faces == ()
    assert nobody.remarks == ("50 of 50 hole pixels (100.0%) are left as they were",)
    network = teal()
    whole = Pipeline(network, StubDetector(face_at(0, 0, 50))).inpaint(photo)
    assert network.calls == []
    assert isinstance(whole.faces[0], SkippedFace)
    assert whole.remarks == ("there is no hole",)
    for result in (nobody, whole):
        assert np.array_equal(result.photo.pixels, photo.pixels)


def test_each_face_is_filled_from_its_own_crop_and_whole_ones_are_passed_over() -> None:
    faces = face_at(0, 20, 60), face_at(40, 20, 60), face_at(130, 20, 60)
    gap = hole(100, 200, (40, 60, 25, 75))
    pixels, network = picture(100, 200), small_network()
    fill = Pipeline(network, StubDetector(*faces))
    result = fill.inpaint(Photo(pixels), gap)
    assert [type(face) for face in result.faces] == [RestoredFace, RestoredFace, SkippedFace]
    assert result.skipped[0].reason == "with nothing to fill"
    backwards = Pipeline(network, StubDetector(*faces[::-1])).inpaint(Photo(pixels), gap)
    assert np.abs(backwards.photo.pixels.astype(int) - result.photo.pixels).max() <= 1
    for k, columns in ((0, slice(25, 49)), (1, slice(51, 75))):
        alone = Pipeline(network, StubDetector(faces[k])).inpaint(Photo(pixels), gap)
        difference = alone.photo.pixels[40:60, columns].astype(int)
        assert np.abs(difference - result.photo.pixels[40:60, columns]).max() <= 1


def test_a_gray_photograph_is_filled_with_gray() -> None:
    pixels = np.repeat(picture(80, 80)[..., :1], 3, axis=2)
    gap = hole(80, 80, (30, 50, 30, 50))
    result = Pipeline(teal(), StubDetector(face_at(16, 16, 48))).inpaint(
        Photo(pixels, gray=True), gap
    )
    assert (np.ptp(result.photo.pixels, axis=2) == 0).all()
    brightness = TEAL @ (0.2989, 0.5870, 0.1140)
    assert np.abs(result.photo.pixels[gap] - brightness).max() <= 1
    assert np.array_equal(result.photo.pixels[~gap], pixels[~gap])


def test_a_face_that_fails_keeps_its_hole_which_is_counted() -> None:
    gap = hole(80, 80, (30, 50, 30, 50))
    photo = Photo(picture(80, 80))
    broken = StubNetwork(lambda x: x * torch.nan)
    for precision in Precision:
        fill = Pipeline(
            broken, StubDetector(face_at(16, 16, 48)), execution=Execution(precision=precision)
        )
        result = fill.inpaint(photo, gap)
        assert "finite" in result.failed[0].reason
        assert result.remarks == ("400 of 400 hole pixels (100.0%) are left as they were",)
        assert np.array_equal(result.photo.pixels, photo.pixels)


def test_colours_are_not_taken_from_the_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restoration with our own models keeps low frequencies, which here would be a white hole's."""
    network = teal()
    network.config = type(network.config).tiny()
    assert network.config.keep_colours
    photo, gap = Photo(picture(128, 128)), hole(128, 128, (40, 90, 40, 90))
    result = Pipeline(network, StubDetector()).inpaint(photo, gap, Options(aligned=True))
    assert (result.photo.pixels[gap] == TEAL).all()


def test_holes_of_another_size_are_refused() -> None:
    with pytest.raises(ImageError, match="mask has 32x31 pixels and the photograph 40x30"):
        Pipeline(teal(), StubDetector()).inpaint(Photo(picture(30, 40)), hole(31, 32))


@pytest.mark.parametrize("wrong", [np.zeros((40, 50)), np.ones((40, 50, 1), bool)])
def test_holes_are_truth_values_of_two_dimensions(wrong: NDArray) -> None:
    with pytest.raises(ValueError, match=r"^holes must be \(H, W\) bool, found \(40, 50"):
        Pipeline(StubNetwork(), StubDetector()).inpaint(Photo(picture(40, 50)), wrong)


# The command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with weights, a photograph with one face, and a mask of two holes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CFRESTORE_HOME", str(tmp_path / "home"))
    detect(monkeypatch, face_at(16, 16, 48))
    save_network(tmp_path / "net.safetensors", small_network())
    write_photo(Photo(picture(80, 100)), "photo.png")
    gap = hole(80, 100, (30, 50, 30, 50), (0, 4, 90, 100))
    write_photo(Photo(np.repeat(gap[..., None] * WHITE, 3, axis=2), gray=True), "mask.png")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    """Exit code of `cfrestore inpaint` and the lines that it printed."""
    result = Command(capsys)("inpaint", "--device", "cpu", *words)
    return result.code, result.err.splitlines()


NET = ("--model", "net.safetensors")


def test_a_photograph_is_filled_beside_itself(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = run(capsys, "photo.png", "--mask", "mask.png", *NET)
    assert code == 0
    assert lines[-1] == (
        "photo.png -> photo.inpainted.png  1 face inpainted "
        "(1 larger than the network paints, so softer now); "
        "40 of 440 hole pixels (9.1%) are left as they were"
    )
    before, after = (read_photo(f"photo{mark}.png").pixels for mark in ("", ".inpainted"))
    changed = (before != after).any(axis=2)
    assert changed[30:50, 30:50].mean() > 0.9
    changed[30:50, 30:50] = False
    assert not changed.any()


def test_what_stays_unfilled_is_a_failure_when_strict(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "photo.png", "--mask", "mask.png", *NET, "--strict")[0] == 1
    assert Path("photo.inpainted.png").exists()


def test_no_face_is_no_failure(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    detect(monkeypatch)
    code, lines = run(capsys, "photo.png", "--mask", "mask.png", *NET)
    assert code == 0
    assert "  0 faces inpainted; 440 of 440 hole pixels (100.0%) are left" in lines[-1]


def test_aligned_faces_and_white_holes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gap = hole(32, 32, (9, 20, 0, 14))
    pixels = np.where(gap[..., None], WHITE, picture(32, 32))
    write_photo(Photo(pixels), "face.png")
    code, lines = run(capsys, "face.png", "--aligned", *NET, "-o", "out/", "--suffix", "x")
    assert code == 0, lines
    network = weights.load_codeformer("net.safetensors")
    expected = direct(network, pixels, gap)
    assert np.array_equal(read_photo("out/face_x.png").pixels, expected)


@pytest.mark.parametrize("kind", ["1", "L", "LA", "JPEG"])
def test_masks_of_every_kind_mean_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    from PIL import Image

    gap = hole(80, 100, (30, 50, 30, 50))
    gray = Image.fromarray(gap * WHITE)
    if kind == "LA":
        gray = Image.merge("LA", (Image.new("L", gray.size, 255), gray))
    elif kind == "1":
        gray = gray.convert("1")
    gray.save("m.jpg" if kind == "JPEG" else "m.png", quality=40)
    name = "m.jpg" if kind == "JPEG" else "m.png"
    assert run(capsys, "photo.png", "--mask", name, *NET)[0] == 0
    before, after = (read_photo(f"photo{mark}.png").pixels for mark in ("", ".inpainted"))
    changed = (before != after).any(axis=2)
    assert changed[gap].mean() > 0.9
    assert not changed[~gap].any()


def test_a_mask_that_does_not_fit_is_one_sentence_and_the_others_proceed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photo(Photo(picture(50, 60)), "other.png")
    code, lines = run(capsys, "other.png", "photo.png", "--mask", "mask.png", *NET)
    assert code == 1
    assert lines[1] == (
        "error: other.png cannot be worked on: the mask has 100x80 pixels and the photograph 60x50"
    )
    assert Path("photo.inpainted.png").exists()
    assert not Path("other.inpainted.png").exists()


@pytest.mark.parametrize("text", ["", "no picture"])
def test_a_mask_that_is_no_picture_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    Path("bad.png").write_text(text)
    for name in ("bad.png", "nowhere.png"):
        code, lines = run(capsys, "photo.png", "--mask", name, *NET)
        assert code == 1
        assert len(lines) == 1
        assert lines[0].startswith(f"error: {name} ")


@pytest.mark.parametrize(
    "words", ["photo.png -o mask.png", "photo.png -o mask.png --overwrite", ". --in-place"]
)
def test_the_mask_is_never_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    before = Path("mask.png").read_bytes()
    code, lines = run(capsys, *words.split(), "--mask", "mask.png", *NET)
    assert (code, lines) == (2, ["error: mask.png is an input, and inputs are never overwritten"])
    assert Path("mask.png").read_bytes() == before


@pytest.mark.slow
def test_published_layout_gives_the_published_formula(
    shared: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = random_published_file(shared, "inpainting", folder / "codeformer_inpainting.pth")
    network = weights.load_codeformer(path)
    assert network.config.autoencoder.codebook_size == 512
    assert network.config.connect == (32, 64, 128)
    source = sorted((shared / "faces/valid-512").glob("*.jpg"))[0]
    gap = hole(512, 512, (200, 260, 150, 360), (300, 380, 240, 250))
    pixels = np.where(gap[..., None], WHITE, read_photo(source).pixels.clip(0, 254))
    write_photo(Photo(pixels), "face.png")
    code, lines = run(capsys, "face.png", "--aligned", "--model", str(path))
    assert code == 0, lines
    found = read_photo("face.inpainted.png").pixels
    assert np.abs(found.astype(int) - direct(network, pixels, gap)).max() <= 1
    assert np.array_equal(found[~gap], pixels[~gap])
    layout = json.loads((shared / "spec/statedict_inpainting.json").read_text())
    assert set(network.state_dict()) == set(layout)
