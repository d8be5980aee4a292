from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from stubs import StubDetector, StubNetwork, face_at, picture

from cfrestore.correction import back_project, keep_colours
from cfrestore.image import Photo, to_gray
from cfrestore.options import Options
from cfrestore.pipeline import Pipeline

Levels = NDArray[np.uint8]


def test_colours_are_kept_where_the_model_asks_for_it() -> None:
    random = np.random.default_rng(0)
    original = np.full((64, 64, 3), (60, 120, 200), np.uint8)
    detail = random.integers(-20, 21, (64, 64, 1))
    shift = np.array((40, -30, -50))
    shifted = np.clip(original.astype(int) + shift + detail, 0, 255).astype(np.uint8)
    kept = keep_colours(shifted, original)
    left = kept.mean((0, 1)) - original.mean((0, 1))
    assert np.abs(left - shift / 10).max() < 1  # a tenth is the network's
    assert np.corrcoef(kept[..., 1].ravel(), detail.ravel())[0, 1] > 0.95
    assert (keep_colours(original, original) == original).all()


def blurred(crop: Levels, sigma: float) -> Levels:
    return np.asarray(cv2.GaussianBlur(crop, (0, 0), sigma))


def detailed(side: int = 128) -> Levels:
    """A picture with structure of every size, in colour, that no correction clips."""
    random = np.random.default_rng(0)
    sides = (4, 8, 16, 32, 64, side)
    layers = [
        cv2.resize(random.normal(0, 1, (n, n, 3)), (side, side), interpolation=cv2.INTER_CUBIC)
        for n in sides
    ]
    return np.asarray((128 + 14 * np.sum(layers, 0)).clip(30, 225), np.uint8)


def bump(side: int = 128) -> NDArray[np.float64]:
    """Structure where the network is mistaken, wider than the blur and narrower than low."""
    y, x = np.mgrid[:side, :side] - side / 2
    return np.asarray(40 * np.exp(-(x**2 + y**2) / (2 * 4**2)))


def test_structure_that_the_blur_has_left_is_put_back() -> None:
    face = detailed()
    original = blurred(face, 2)
    mistaken = np.clip(face + bump()[..., None], 0, 255).astype(np.uint8)
    results = [mistaken, *(back_project(mistaken, original, share) for share in (0.5, 1))]
    error = [float(np.square(to_gray(x.astype(float) - face)).mean()) for x in results]
    assert error[2] < 0.5 * error[0]
    assert error[2] < error[1] < error[0]


def test_details_finer_than_the_blur_stay() -> None:
    face = detailed()
    result = back_project(face, blurred(face, 3), 1)
    assert np.abs(result.astype(int) - face).mean() < 2
    fine = [each.astype(float) - blurred(each, 1.5) for each in (result, face)]
    assert np.corrcoef(fine[0].ravel(), fine[1].ravel())[0, 1] > 0.99


def test_noise_and_colours_of_the_original_are_not_put_in() -> None:
    face = detailed()
    noise = np.random.default_rng(1).normal(0, 12, face.shape)
    original = (blurred(face, 3) + noise).clip(0, 255).astype(np.uint8)
    added = back_project(face, original, 1).astype(float) - back_project(face, blurred(face, 3), 1)
    assert added.std() < 12 / 8
    assert np.ptp(added, axis=2).max() <= 1  # brightness only, but for rounding
    tinted = np.clip(face + np.array([30.0, 0, -30]), 0, 255).astype(np.uint8)
    assert np.abs(back_project(face, tinted, 1).astype(int) - face).mean() < 1


def test_a_crop_that_is_its_original_stays_and_so_does_one_without_structure() -> None:
    face = detailed()
    assert np.array_equal(back_project(face, face, 1), face)
    flat = np.full((32, 32, 3), 90, np.uint8)
    assert np.array_equal(back_project(flat, flat + np.uint8(20), 1), flat)


@pytest.mark.parametrize("config", [{}, {"back_projection": 1.0}])
def test_the_pipeline_projects_back_in_proportion_to_w(config: dict[str, float]) -> None:
    network = StubNetwork(lambda x: x.flip(-1))  # mistaken everywhere
    network.config = replace(network.config, **config)
    pipeline, photo = Pipeline(network, StubDetector(face_at(0, 0, 32))), Photo(picture(32, 32))
    mirrored = photo.pixels[:, ::-1].astype(int)
    changes = [
        float(np.abs(pipeline(photo, Options(w, aligned=True)).photo.pixels - mirrored).mean())
        for w in (0.0, 0.5, 1.0)
    ]
    assert changes[0] == 0
    if config:
        assert 0.4 < changes[1] / changes[2] < 0.6
        assert changes[2] > 1
    else:
        assert changes == [0, 0, 0]
