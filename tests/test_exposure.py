from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from stubs import SMALL, StubNetwork, face_at, picture

from cfrestore.align import AlignedFace, align_face
from cfrestore.detail import within_face
from cfrestore.detect import load_detector
from cfrestore.exposure import Exposure
from cfrestore.image import Photo, from_tensor, read_photo, to_gray
from cfrestore.options import Options
from cfrestore.pipeline import Pipeline, load_pipeline
from cfrestore.restore import RestoredFace, restore_faces


def brightness(crop: NDArray[np.uint8]) -> float:
    return float(within_face(to_gray(crop)[..., 0].astype(np.float32)).mean())


def dark(level: float, side: int = 64) -> NDArray[np.uint8]:
    """A picture with colours, white at the top, whose middle has about that mean level."""
    pixels = picture(side, side)
    pixels[:4] = 255
    return np.rint((pixels * (level / brightness(pixels))).clip(0, 255)).astype(np.uint8)


def test_dark_faces_become_as_bright_as_wanted_and_others_stay() -> None:
    for level in (30, 60, 90):
        crop = dark(level)
        shown = Exposure.of(crop, 110).shown(crop)
        assert brightness(shown) == pytest.approx(110, abs=12)
    bright = dark(125)
    assert Exposure.of(bright, 110).shown(bright) is bright
    assert Exposure.of(crop, 0).shown(crop) is crop
    black = np.zeros((64, 64, 3), np.uint8)
    assert brightness(Exposure.of(black, 110).shown(black)) < 10


def test_an_underexposed_picture_is_only_exposed_longer() -> None:
    """A power would show the network a haze, and undo the usual contrast that it paints."""
    crop = np.rint(picture(64, 64).clip(0, 190) * 0.25).astype(np.uint8)
    exposure = Exposure.of(crop, 110)
    assert exposure.exponent == pytest.approx(1, abs=0.001)
    assert exposure.gain == pytest.approx(110 / brightness(crop), rel=0.01)


def test_what_is_bright_beside_a_dark_face_does_not_turn_white() -> None:
    crop = dark(40).clip(0, 150)
    crop[:4] = 150
    exposure = Exposure.of(crop, 110)
    assert exposure.gain == pytest.approx(200 / 150)
    assert exposure.exponent < 1
    assert exposure.shown(crop).max() < 255
    crop[0, :2] = 255  # reflections do not count
    assert Exposure.of(crop, 110).gain == exposure.gain
    crop[:4] = 230
    assert Exposure.of(crop, 110).gain == 1


def test_colours_stay_as_strong_as_they_were() -> None:
    crop = np.full((64, 64, 3), (60, 40, 20), np.uint8)
    red, green, blue = Exposure.of(crop, 110).shown(crop)[0, 0].tolist()
    assert red / green == pytest.approx(1.5, abs=0.02)
    assert green / blue == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("level", [30, 60, 90])
def test_brightening_is_undone(level: float) -> None:
    crop = dark(level)
    exposure = Exposure.of(crop, 110)
    back = exposure.undone(exposure.shown(crop))
    assert np.abs(back.astype(int) - crop).max() <= 2


def test_the_network_sees_bright_faces_and_results_are_as_dark_as_they_were() -> None:
    crops = [dark(50, 32), dark(140, 32)]
    faces = [AlignedFace(crop, np.eye(2, 3), face_at(0, 0, 32)) for crop in crops]
    network = StubNetwork()
    network.config = replace(SMALL, least_brightness=110)
    results = restore_faces(network, faces, fidelity=0.5)
    seen = np.concatenate([from_tensor(x) for x, _, _ in network.calls])
    assert brightness(seen[0]) == pytest.approx(110, abs=12)
    assert (seen[1] == crops[1]).all()
    for result, crop in zip(results, crops, strict=True):
        assert isinstance(result, RestoredFace)
        assert np.abs(result.crop.astype(int) - crop).max() <= 1


def test_an_underexposed_face_is_restored_like_a_bright_one(repository: Path) -> None:
    collins = read_photo(repository / "examples/collins.jpg").pixels
    bright = align_face(collins, load_detector("mtcnn")(collins)[0], 256).crop
    dim = np.rint(bright * 0.25).astype(np.uint8)
    pipeline = load_pipeline(model=repository / "weights/compact.safetensors", aligned=True)

    def restored(crop: NDArray[np.uint8], pipeline: Pipeline) -> NDArray[np.float64]:
        return pipeline(Photo(crop), Options(fidelity=0, aligned=True)).photo.pixels.astype(float)

    wanted = restored(bright, pipeline) * 0.25
    found = restored(dim, pipeline)
    network = pipeline.network
    network.config = replace(network.config, least_brightness=0)
    before = restored(dim, pipeline)
    errors = [np.square(each - wanted).mean() for each in (found, before)]
    assert errors[0] < 0.25 * errors[1]
