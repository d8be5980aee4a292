"""The upsampler that comes with cfrestore, next to interpolation, which it replaces."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from upsample import DAMAGES, interpolation, middle

from cfrestore.evaluate.figures import psnr
from cfrestore.image import to_uint8
from cfrestore.upsample import Upsampler, load_upsampler

Picture = NDArray[np.uint8]

lanczos = interpolation(cv2.INTER_LANCZOS4)


@pytest.fixture(scope="module")
def upsampler() -> Upsampler:
    return load_upsampler("compact")


def drawn() -> Picture:
    """Text and shapes on a gradient, 256 px."""
    canvas = np.empty((256, 256, 3), np.uint8)
    canvas[:] = np.linspace(60, 200, 256)[:, None, None]
    cv2.circle(canvas, (180, 170), 50, (150, 60, 40), -1, cv2.LINE_AA)
    cv2.line(canvas, (10, 240), (120, 120), (20, 30, 60), 3, cv2.LINE_AA)
    for n, words in enumerate(("Only what", "is there,", "a little", "sharper")):
        place = (12, 36 + 30 * n)
        cv2.putText(canvas, words, place, cv2.FONT_HERSHEY_SIMPLEX, 0.9, (245, 240, 230), 2, 16)
    return canvas


def gain(upsampler: Upsampler, sharp: Picture, wear: Callable[[Picture], Picture]) -> float:
    """By how many decibels the upsampler is nearer to the sharp picture than Lanczos is."""
    small = wear(sharp)
    return psnr(to_uint8(upsampler(small, 2)), sharp) - psnr(lanczos(small), sharp)


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_it_is_nearer_to_a_drawing_than_interpolation(upsampler: Upsampler, damage: str) -> None:
    assert gain(upsampler, drawn(), DAMAGES[damage]) > 1


def test_it_is_nearer_to_photographs_than_interpolation(upsampler: Upsampler, shared: Path) -> None:
    files = sorted((shared / "faces/valid-512").glob("*.jpg"))[:4]
    gains = {
        damage: np.mean([gain(upsampler, middle(file), wear) for file in files])
        for damage, wear in DAMAGES.items()
    }
    assert gains["reduced"] > 0
    assert gains["compressed"] > 0.15
    assert gains["worn"] > 0.5


def test_what_is_even_stays_even_in_its_colour(upsampler: Upsampler) -> None:
    for colour in ((0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 40, 90), (30, 90, 160)):
        small = np.full((40, 40, 3), colour, np.uint8)
        assert np.abs(upsampler(small, 2)[16:-16, 16:-16].astype(int) - colour).max() <= 2
    ramp = np.broadcast_to(np.arange(40, 200, 2)[None, :, None], (40, 80, 3)).astype(np.uint8)
    steps = np.diff(upsampler(ramp, 2)[16:-16, 16:-16].astype(int), axis=1)
    assert steps.min() >= 0  # no ripple of the pixel grid
    assert steps.max() <= 3
