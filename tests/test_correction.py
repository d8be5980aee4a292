from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stubs import SMALL, StubDetector, StubNetwork, face_at, picture

from cfrestore.correction import (
    _blur,
    _blur_between,
    back_project,
    correct,
    keep_colours,
    keep_hues,
    keep_rim,
    mix_in,
    tone_of,
)
from cfrestore.detail import within_face
from cfrestore.image import Photo, is_gray, read_photo, to_gray
from cfrestore.options import Options
from cfrestore.pipeline import Pipeline, load_pipeline

Levels = NDArray[np.uint8]


def test_colours_are_kept_where_the_model_asks_for_it() -> None:
    random = np.random.default_rng(0)
    original = np.full((64, 64, 3), (60, 120, 200), np.uint8)
    detail = random.integers(-20, 21, (64, 64, 1))
    shift = np.array((40, -30, -50))
    shifted = np.clip(original.astype(int) + shift + detail, 0, 255).astype(np.uint8)
    kept = keep_colours(shifted, original)
    left = kept.mean((0, 1)) - original.mean((0, 1))
    assert np.abs(left - shift / 10).max() < 1  # a tenth comes from the network
    assert np.corrcoef(kept[..., 1].ravel(), detail.ravel())[0, 1] > 0.95
    assert (keep_colours(original, original) == original).all()


def test_the_colour_of_lips_is_kept_unless_the_original_is_badly_blurred() -> None:
    lips = np.zeros((256, 256), np.float32)
    cv2.ellipse(lips, (128, 190), (30, 10), 0, 0, 360, (1.0,), -1)
    red = np.array((50, -20, -20))  # of hardly any brightness
    painted = detailed(256)
    clean = np.clip(painted + lips[..., None] * red, 0, 255).astype(np.uint8)

    def left(original: Levels) -> float:
        """The share of the red that the lips get from the original."""
        change = keep_hues(painted, original).astype(float) - painted
        return float((change[lips > 0] @ red / (red @ red)).mean())

    assert 0.5 < left(clean) < 0.9
    assert 0.4 < left(blurred(clean, 2)) < 0.9
    assert left(blurred(clean, 9)) < 0.1
    change = keep_hues(painted, clean).astype(float) - painted
    assert np.abs(to_gray(change)).mean() < 0.5


def test_a_crop_fades_into_the_original_at_its_border(repository: Path) -> None:
    original, crop = np.full((128, 128, 3), 200, np.uint8), np.full((128, 128, 3), 40, np.uint8)
    found = keep_rim(crop, original)
    assert found[0, 0, 0] > 180 and found[0, 64, 0] > 150
    assert found[1, 64, 0] < found[0, 64, 0]
    assert (found[2:-2, 2:-2] == crop[2:-2, 2:-2]).all()
    assert (found == found[::-1]).all() and (found == found.transpose(1, 0, 2)).all()

    # The shipped network paints corners that are up to 200 levels off.
    collins = read_photo(repository / "examples/collins.jpg").pixels
    face = np.asarray(cv2.resize(collins, (256, 256)), np.uint8)
    pipeline = load_pipeline(model=repository / "weights/compact.safetensors", aligned=True)
    restored = pipeline(Photo(face), Options(fidelity=0, aligned=True)).photo.pixels
    corners = [each[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int) for each in (restored, face)]
    assert np.abs(corners[0] - corners[1]).max() < 40


def sepia(side: int = 128, noise: float = 6) -> Levels:
    """Detail in a tone that runs from brown to cream, with the noise of a scan."""
    gray = to_gray(detailed(side))[..., :1] / 255
    toned = 255 * np.concatenate([gray**0.6, gray, gray**1.8], 2)
    grain = np.random.default_rng(2).normal(0, noise, toned.shape)
    return np.asarray((toned + grain).clip(0, 255), np.uint8)


def test_sepia_has_a_tone_and_colours_have_none(repository: Path) -> None:
    assert tone_of(sepia()) is not None
    assert tone_of(np.full((32, 32, 3), (200, 180, 120), np.uint8)) is not None
    assert tone_of(detailed()) is None
    pale = to_gray(detailed()) * 0.75 + detailed() * 0.25
    for light in (1, 0.1):  # too little light makes the differences between channels small
        assert tone_of(np.rint(light * pale).astype(np.uint8)) is None
        assert tone_of(np.rint(light * sepia()).astype(np.uint8)) is not None
    spotted = sepia()
    spotted[60:80, 50:90, 0] += 40  # lips
    assert tone_of(spotted) is None
    collins = read_photo(repository / "examples/collins.jpg").pixels
    assert tone_of(np.asarray(collins[:128, :128], np.uint8)) is None


def test_faces_in_sepia_stay_so_and_as_bright_as_they_are_painted() -> None:
    photo = Photo(sepia(32, noise=1))
    assert not is_gray(photo.pixels)
    network = StubNetwork(lambda x: (x * torch.tensor([0.6, 1.0, 0.4]).view(3, 1, 1)).flip(-1))
    result = Pipeline(network, StubDetector(face_at(0, 0, 32)))(photo, Options(aligned=True))
    red, _, blue = (result.photo.pixels[..., n].astype(float) for n in range(3))
    original = photo.pixels.astype(float)
    brightness = to_gray(result.photo.pixels)[..., 0]
    for channel, own in ((red, original[..., 0]), (blue, original[..., 2])):
        painted = np.polyfit(brightness.ravel(), channel.ravel(), 2)
        seen = np.polyfit(to_gray(original)[..., 0].ravel(), own.ravel(), 2)
        difference = np.polyval(painted, brightness) - np.polyval(seen, brightness)
        assert np.abs(difference).mean() < 1.5
    ((x, _, _),) = network.calls
    painted = network.paint(x)[0].permute(1, 2, 0).numpy() * 127.5 + 127.5
    assert np.abs(brightness - to_gray(painted)[..., 0]).mean() < 1.5


def test_a_gray_face_is_as_bright_as_its_surroundings_whatever_contrast_is_painted() -> None:
    """The contrast of a grainy original, given to all that is painted, shifted its light."""
    y = np.mgrid[:128, :128][0]
    light = np.where(y < 80, 200.0, 60.0)[..., None]
    grain = np.random.default_rng(3).normal(0, 40, (128, 128, 1))
    original, crop = (
        np.repeat(np.rint(each.clip(0, 255)), 3, 2).astype(np.uint8)
        for each in (light + grain, light)
    )
    config = replace(SMALL, keep_colours=True)
    found = correct(crop, original, fidelity=0.5, config=config, gray=True)
    for rows in (slice(8, 60), slice(100, 120)):
        shift = found[rows].astype(float).mean() - original[rows].mean()
        assert abs(shift) < 2
    assert np.ptp(found, axis=2).max() == 0


def test_a_face_that_the_border_of_a_sepia_print_cuts_stays_sepia_up_to_it() -> None:
    """What lies beyond the border counted as another colour, and the painted ones were kept."""
    print_ = sepia(64, noise=1)
    network = StubNetwork(lambda x: x * torch.tensor([0.2, 1.0, 0.2]).view(3, 1, 1))
    result = Pipeline(network, StubDetector(face_at(-16, -8, 64)))(Photo(print_)).photo.pixels
    assert not np.array_equal(result, print_)
    tone = [
        np.polyfit(to_gray(print_)[..., 0].ravel(), c.ravel(), 2) for c in print_.T.swapaxes(1, 2)
    ]
    wanted = np.stack([np.polyval(each, to_gray(result)[..., 0]) for each in tone], -1)
    assert np.abs(result - wanted).mean(axis=2)[:48, :48].max() < 12
    assert np.abs(result - wanted).mean() < 3


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


@pytest.mark.parametrize("sigma", [0.5, 1.4, 3, 9, 25.6])
def test_a_wide_blur_by_cosine_transforms_is_the_same_blur(sigma: float) -> None:
    face = detailed(256).astype(np.float32)
    wanted = cv2.GaussianBlur(face, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    for image, goal in ((face, wanted), (face[..., 1].copy(), wanted[..., 1])):
        found = _blur(image, sigma / 256)
        assert found.shape == image.shape
        assert found.dtype == np.float32
        assert np.abs(found - goal).max() < 0.02


@pytest.mark.parametrize("sigma", [0.8, 2.2, 6.5])
def test_the_blur_between_two_crops_is_that_of_the_nearest(sigma: float) -> None:
    noise = np.random.default_rng(4).normal(0, 5, (256, 256))
    face = to_gray(detailed(256))[..., 0].astype(np.float32)
    seen = (cv2.GaussianBlur(face, (0, 0), sigma) + noise).astype(np.float32)
    found = 256 * _blur_between(face, seen + 30)
    assert found == pytest.approx(sigma, rel=0.08)
    errors = {
        blur: np.square(cv2.GaussianBlur(face, (0, 0), blur) - seen).mean()
        for blur in (0.8 * found, found, 1.25 * found)
    }
    assert min(errors, key=errors.__getitem__) == found


def bump(side: int = 128) -> NDArray[np.float64]:
    """Structure where the network is wrong, wider than the blur and narrower than low."""
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
    assert np.ptp(added, axis=2).max() <= 1  # brightness only, except for rounding
    tinted = np.clip(face + np.array([30.0, 0, -30]), 0, 255).astype(np.uint8)
    assert np.abs(back_project(face, tinted, 1).astype(int) - face).mean() < 1


def test_a_crop_that_is_its_original_stays_and_so_does_one_without_structure() -> None:
    face = detailed()
    assert np.array_equal(back_project(face, face, 1), face)
    flat = np.full((32, 32, 3), 90, np.uint8)
    assert np.array_equal(back_project(flat, flat + np.uint8(20), 1), flat)


def mixed_share(sigma: float) -> float:
    """Of a mistaken bump, the share that a blurred original removes."""
    face = detailed()
    mistaken = np.clip(face + bump()[..., None], 0, 255).astype(np.uint8)
    mixed = mix_in(mistaken, blurred(face, sigma), 0.8)
    right, wrong, result = (
        blurred(each, 6)[bump() > 20].astype(float).mean() for each in (face, mistaken, mixed)
    )
    return float((wrong - result) / (wrong - right))


def test_the_original_is_mixed_in_by_how_little_it_is_blurred() -> None:
    sharp, hardly, blurry, vague = map(mixed_share, (0.5, 1, 2, 4))
    assert 0.7 < sharp < 0.9
    assert 0.7 < hardly < 0.9
    assert 0.3 < blurry < 0.55
    assert 0.1 < vague < 0.35


def test_the_share_does_not_jump_when_the_blur_changes_a_little() -> None:
    steps = np.diff([mixed_share(sigma) for sigma in (1.6, 1.75, 1.9, 2.05, 2.2, 2.35)])
    assert (steps < 0).all()
    assert (steps > -0.08).all()


@pytest.mark.parametrize("sigma", [2, 4])
def test_a_blurred_original_brings_no_haze(sigma: float) -> None:
    face = detailed()
    contrast = [
        float(within_face(np.asarray(gray - cv2.GaussianBlur(gray, (0, 0), sigma))).std())
        for gray in (
            to_gray(each)[..., 0].astype(np.float32)
            for each in (face, mix_in(face, blurred(face, sigma), 0.8), blurred(face, sigma))
        )
    ]
    assert contrast[2] < 0.6 * contrast[0]
    assert 0.93 < contrast[1] / contrast[0] < 1.02


def test_noise_of_the_original_is_not_mixed_in() -> None:
    flat = np.full((128, 128, 3), 120, np.uint8)
    face = np.where(within_ring(128)[..., None], detailed(), flat)  # smooth skin in the middle
    noise = np.random.default_rng(1).normal(0, 12, face.shape)
    mixed = mix_in(face, (face + noise).clip(0, 255).astype(np.uint8), 0.8).astype(float)
    skin = ~within_ring(128)
    own = to_gray(noise)[..., 0][skin].std()
    assert to_gray(mixed - face)[..., 0][skin].std() < own / 3


def within_ring(side: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[:side, :side] - side / 2
    return np.asarray(np.hypot(x, y) > side / 6)


def test_colours_of_a_sharp_original_are_mixed_in_by_the_square() -> None:
    face = detailed()
    tint = bump()[..., None] * np.array((1.0, 0, -1)) * 0.7
    tint -= to_gray(tint)
    original = np.clip(face + tint, 0, 255).astype(np.uint8)
    centre = np.s_[60:68, 60:68]
    for strength in (0.4, 0.8):
        change = mix_in(face, original, strength)[centre].astype(float) - face[centre]
        expected = strength**2 * tint[centre].mean((0, 1))
        assert np.abs(change.mean((0, 1)) - expected).max() < 2


def test_mixing_in_leaves_what_is_the_same_and_what_has_no_structure() -> None:
    face = detailed()
    assert np.array_equal(mix_in(face, face, 1), face)
    flat = np.full((32, 32, 3), 90, np.uint8)
    assert np.array_equal(mix_in(flat, flat, 0.7), flat)
    assert np.array_equal(mix_in(face, blurred(face, 2), 0), face)


@pytest.mark.parametrize("config", [{}, {"back_projection": 1.0}])
def test_the_pipeline_corrects_the_more_the_larger_w_is(config: dict[str, float]) -> None:
    network = StubNetwork(lambda x: x.flip(-1))  # wrong everywhere
    network.config = replace(network.config, **config)
    pipeline, photo = Pipeline(network, StubDetector(face_at(0, 0, 32))), Photo(picture(32, 32))
    mirrored = photo.pixels[:, ::-1].astype(int)
    changes = [
        float(np.abs(pipeline(photo, Options(w, aligned=True)).photo.pixels - mirrored).mean())
        for w in (0.0, 0.5, 1.0)
    ]
    if config:
        assert 1 < changes[0] < changes[1] < changes[2]
    else:
        assert changes == [0, 0, 0]


def test_a_little_fidelity_suffices_for_what_is_hardly_blurred(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares: list[float] = []

    def note(crop: NDArray[np.uint8], original: object, share: float) -> NDArray[np.uint8]:
        shares.append(share)
        return crop

    monkeypatch.setattr("cfrestore.correction.mix_in", note)
    config = replace(SMALL, back_projection=0.8)
    face = detailed()
    for w in (0, 0.25, 1):
        correct(face, blurred(face, 1), fidelity=w, config=config, gray=False)
    assert shares == pytest.approx([0, 0.4, 0.8])
