"""Compares pictures so that a failure shows how wrong they are, and where."""

import cv2
import numpy as np
from numpy.typing import NDArray

EXACT = int(cv2.__version__.split(".")[0]) >= 5
"""OpenCV 5 interpolates at any place between two pixels, OpenCV 4 at 32."""

ROUNDING = 1 if EXACT else 2
"""Levels by which pictures that OpenCV has warped may differ from recorded ones."""


def rarely(apart: NDArray, levels: int) -> bool:
    """Whether hardly any of these differences, in levels, is so large."""
    return bool((np.abs(apart) == levels).sum() < (10 if EXACT else apart.size / 1000))


def assert_close(found: NDArray, expected: NDArray, tolerance: int) -> None:
    """Passes if no value differs by more than `tolerance` levels; else shows the histogram."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    error = np.abs(found.astype(np.int64) - expected.astype(np.int64))
    if error.max(initial=0) > tolerance:
        levels, counts = np.unique(error, return_counts=True)
        rows = [f"{n:9d} values differ by {v}" for v, n in zip(levels, counts, strict=True)]
        shown = rows if len(rows) <= 12 else [*rows[:10], "      ...", rows[-1]]
        where = tuple(map(int, np.unravel_index(error.argmax(), error.shape)))
        raise AssertionError("\n".join([f"tolerance {tolerance}, worst at {where}", *shown]))
