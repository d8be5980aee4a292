"""Compares pictures so that a failure shows how wrong they are, and where."""

import numpy as np
from numpy.typing import NDArray


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
