"""Calms a painted face over time: (crops of neighbouring frames) -> crops. No torch, no video.

The network paints each frame by itself, so that a lash or a strand of hair is somewhere else in the
next frame: it flickers. Steadied crops show a face at the same place, so the mean of what is
painted in neighbouring frames is as sharp as one of them wherever the face itself does not change.
Where it does change, like a mouth or a lid that moves, the crops before painting show it, and the
frame keeps its own pixels. This is a bilateral filter along time (Tomasi and Manduchi, "Bilateral
filtering for gray and color images", 1998), guided by the input (as in Eisemann and Durand, "Flash
photography enhancement via intrinsic relighting", 2004).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Crops: TypeAlias = "tuple[NDArray[np.uint8], NDArray[np.uint8]]"
"""A face before and after painting, (S, S, 3) each."""

REACH = 2
"""Number of neighbouring frames that are averaged, before and as many after."""

FALLOFF = 1.5
"""Standard deviation, in frames, of the Gaussian that weights neighbours by their distance."""

TOLERANCE = 6.0
"""Difference of two crops, in 8-bit levels, at which a neighbour has lost most of its weight."""

_AREA = 1 / 64  # sigma, in sides of the crop, of the Gaussian that averages differences


def calm(own: Crops, others: Iterable[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]]) -> Crops:
    """The crops of a frame, averaged with those of its neighbours.

    The crop before painting is averaged too, because the painted crop is corrected by it, and its
    noise would flicker.

    Args:
        own: the frame's crop before painting and its painted crop, (S, S, 3) each.
        others: of each neighbour its distance in frames, and the same two crops.
    Returns:
        the two averaged crops, in the same order.
    """
    before, painted = own
    totals = [crop.astype(np.float32) for crop in own]
    weights = np.ones((*painted.shape[:2], 1), np.float32)
    for distance, other_before, other_painted in others:
        difference = cv2.absdiff(before, other_before).astype(np.float32).mean(axis=2)
        difference = cv2.GaussianBlur(difference, (0, 0), _AREA * len(before))
        nearness = np.exp(-0.5 * (distance / FALLOFF) ** 2)
        weight = nearness * np.exp(-np.square(difference / TOLERANCE))[..., None]
        totals[0] += weight * other_before
        totals[1] += weight * other_painted
        weights += weight
    calmed = [np.rint(total / weights).astype(np.uint8) for total in totals]
    return calmed[0], calmed[1]
