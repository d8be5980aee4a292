"""Painted faces calmed over time: arrays only."""

import numpy as np
from stubs import picture

from cfrestore.video.calming import REACH, calm


def neighbours(before: np.ndarray, painted: list[np.ndarray]) -> list:
    """The crops of the frames around one, whose inputs are all alike."""
    distances = [d for d in range(-REACH, REACH + 1) if d]
    return [(d, before, crop) for d, crop in zip(distances, painted, strict=True)]


def test_what_flickers_while_the_input_is_still_is_averaged() -> None:
    rng = np.random.default_rng(0)
    before = picture(64, 64)
    truth = picture(64, 64, seed=1).astype(int)
    own, *others = [
        (truth + rng.normal(0, 8, truth.shape)).clip(0, 255).astype(np.uint8)
        for _ in range(2 * REACH + 1)
    ]
    _, calmed = calm((before, own), neighbours(before, others))
    assert (calmed - truth).std() < 0.6 * (own - truth).std()
    assert abs((calmed - truth).mean()) < 0.5


def test_what_moves_in_the_input_stays_the_frame_s_own() -> None:
    before, own = picture(64, 64), picture(64, 64, seed=1)
    moved, other = before.copy(), 255 - own
    moved[16:48, 16:48] = 255 - moved[16:48, 16:48]
    _, calmed = calm((before, own), [(1, moved, other)])
    assert np.abs(calmed[20:44, 20:44].astype(int) - own[20:44, 20:44]).mean() < 2
    assert np.abs(calmed[:8].astype(int) - own[:8]).mean() > 10


def test_noise_of_the_input_is_no_movement() -> None:
    rng = np.random.default_rng(0)
    before = picture(64, 64)
    noisy = (before + rng.normal(0, 3, before.shape)).clip(0, 255).astype(np.uint8)
    black, white = np.zeros_like(before), np.full_like(before, 200)
    assert 40 < calm((before, black), [(1, noisy, white)])[1].mean() < 100


def test_a_face_without_neighbours_and_one_that_stays_the_same_are_unchanged() -> None:
    before, own = picture(64, 64), picture(64, 64, seed=1)
    assert np.array_equal(calm((before, own), []), (before, own))
    assert np.array_equal(
        calm((before, own), neighbours(before, [own] * (2 * REACH))), (before, own)
    )


def test_noise_of_the_input_is_averaged_too() -> None:
    rng = np.random.default_rng(0)
    truth, painted = picture(64, 64).astype(int), picture(64, 64, seed=1)
    own, *others = [
        (truth + rng.normal(0, 3, truth.shape)).clip(0, 255).astype(np.uint8)
        for _ in range(2 * REACH + 1)
    ]
    distances = [d for d in range(-REACH, REACH + 1) if d]
    near = [(d, crop, painted) for d, crop in zip(distances, others, strict=True)]
    before, after = calm((own, painted), near)
    assert (before - truth).std() < 0.7 * (own - truth).std()
    assert np.array_equal(after, painted)
