"""Colouring faces: the library, then the command."""

from pathlib import Path

import numpy as np
import pytest
from command import Command, detect
from numpy.typing import NDArray
from published import random_published_file
from stubs import (
    LeftParser,
    StubDetector,
    StubNetwork,
    face_at,
    picture,
    save_network,
    small_network,
)

from cfrestore import weights
from cfrestore.device import inference
from cfrestore.image import Photo, from_tensor, read_photo, to_tensor, write_photo
from cfrestore.models.codeformer import CodeFormer
from cfrestore.options import Options
from cfrestore.pipeline import Pipeline


def gray_picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.repeat(picture(height, width)[..., :1], 3, axis=2)


def direct(network: CodeFormer, crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The published formula: w = 0, with matched statistics."""
    with inference():
        return from_tensor(network(to_tensor(crop[None]), 0.0, True))[0]


def coloured(pixels: NDArray) -> NDArray[np.bool_]:
    return np.ptp(pixels, axis=2) > 0


def test_an_aligned_face_gets_what_the_published_formula_gives() -> None:
    network, pixels = small_network(), gray_picture(32, 32)
    colour = Pipeline(network, StubDetector()).colorize
    result = colour(Photo(pixels, gray=True), Options(aligned=True, fidelity=1))
    assert np.array_equal(result.photo.pixels, direct(network, pixels))
    assert coloured(result.photo.pixels).mean() > 0.9


def test_the_network_works_at_w_0_with_matched_statistics() -> None:
    network = StubNetwork()
    Pipeline(network, StubDetector(face_at(8, 8, 32))).colorize(Photo(gray_picture(48, 48)))
    assert [call[1:] for call in network.calls] == [(0, True)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_faces_become_coloured_and_the_rest_stays(dtype: type) -> None:
    pixels = np.repeat(picture(100, 140, dtype)[..., :1], 3, axis=2)
    detector = StubDetector(face_at(60, 20, 64), face_at(2, 30, 40))
    result = Pipeline(small_network(), detector).colorize(Photo(pixels, gray=True))
    assert len(result.restored) == 2
    found = result.photo.pixels
    assert found.dtype == dtype
    for rows, columns in ((slice(35, 70), slice(75, 110)), (slice(40, 60), slice(12, 32))):
        assert coloured(found[rows, columns]).mean() > 0.9
    changed = (found != pixels).any(axis=2)
    changed[20:84, 60:124] = changed[30:70, 2:42] = False
    assert not changed.any()


def test_a_face_that_has_colours_gets_the_networks() -> None:
    network, pixels = small_network(), picture(32, 32)
    result = Pipeline(network, StubDetector()).colorize(Photo(pixels), Options(aligned=True))
    assert np.array_equal(result.photo.pixels, direct(network, pixels))


def test_our_own_models_do_not_take_the_gray_for_a_colour() -> None:
    network = small_network()
    network.config = type(network.config)(
        autoencoder=network.config.autoencoder,
        width=16,
        connect=(16,),
        match_statistics=False,
        keep_colours=True,
    )
    pixels = gray_picture(32, 32)
    result = Pipeline(network, StubDetector()).colorize(Photo(pixels), Options(aligned=True))
    assert np.array_equal(result.photo.pixels, direct(network, pixels))


@pytest.mark.parametrize("scale", [2, 4])
def test_the_size_is_exactly_scale_times_the_input(scale: int) -> None:
    colour = Pipeline(small_network(), StubDetector(face_at(4, 4, 32))).colorize
    result = colour(Photo(gray_picture(40, 57)), Options(upscale=scale))
    assert result.photo.size == (40 * scale, 57 * scale)
    assert coloured(result.photo.pixels).any()


def test_the_parser_decides_what_is_pasted() -> None:
    detector = StubDetector(face_at(0, 0, 64))
    colour = Pipeline(small_network(), detector, parser=LeftParser()).colorize  # type: ignore[arg-type]
    result = colour(Photo(gray_picture(64, 64)))
    assert coloured(result.photo.pixels[10:54, 10:28]).mean() > 0.9
    assert not coloured(result.photo.pixels[:, 36:]).any()


# The command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with weights and a gray photograph with one face."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CFRESTORE_HOME", str(tmp_path / "home"))
    detect(monkeypatch, face_at(16, 16, 48))
    save_network(tmp_path / "net.safetensors", small_network())
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    """Exit code of `cfrestore colorize` and the lines that it printed."""
    result = Command(capsys)("colorize", "--device", "cpu", *words)
    return result.code, result.err.splitlines()


NET = ("--model", "net.safetensors")


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.tif"])
def test_a_gray_photograph_is_written_in_colour(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write_photo(Photo(gray_picture(80, 100), gray=True), name)
    assert read_photo(name).gray
    code, lines = run(capsys, name, *NET)
    assert code == 0, lines
    target = name.replace("photo.", "photo.colorized.")
    assert lines[-1].startswith(f"{name} -> {target}  1 face colorized")
    result = read_photo(target)
    assert not result.gray
    assert coloured(result.pixels[26:54, 26:54]).mean() > 0.9
    if not name.endswith("jpg"):
        assert not coloured(result.pixels[:, 66:]).any()


def test_an_aligned_face_is_the_whole_picture(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photo(Photo(gray_picture(32, 32), gray=True), "face.png")
    assert run(capsys, "face.png", "--aligned", *NET, "-o", "done.png")[0] == 0
    expected = direct(weights.load_codeformer("net.safetensors"), gray_picture(32, 32))
    assert np.array_equal(read_photo("done.png").pixels, expected)


@pytest.mark.slow
def test_published_layout_gives_the_published_formula(
    shared: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = random_published_file(shared, "colorization", folder / "codeformer_colorization.pth")
    network = weights.load_codeformer(path)
    assert network.config.autoencoder.codebook_size == 1024
    assert network.config.connect == (32, 64, 128)
    source = sorted((shared / "faces/valid-512").glob("*.jpg"))[0]
    pixels = np.repeat(read_photo(source).pixels[..., 1:2], 3, axis=2)
    write_photo(Photo(pixels, gray=True), "face.png")
    code, lines = run(capsys, "face.png", "--aligned", "--model", str(path))
    assert code == 0, lines
    found = read_photo("face.colorized.png").pixels
    assert np.abs(found.astype(int) - direct(network, pixels)).max() <= 1
    assert coloured(found).mean() > 0.9
