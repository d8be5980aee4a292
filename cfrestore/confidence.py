"""How sure the network was of a face's codes, by region of the face. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

REGIONS = ("face", "eyes", "nose", "mouth")

REACH = 0.35
"""How far a region reaches around its landmarks, in distances between the eyes."""


def confidence_by_region(
    certainty: NDArray[np.floating], landmarks: NDArray[np.floating]
) -> Mapping[str, float | None]:
    """Mean certainty of the codes of each of REGIONS.

    The eyes are the area near either eye, the nose the area near the line from between the eyes to
    its tip, and the mouth the area near the line between its corners; the face is the whole crop.

    Args:
        certainty: (s,s) in [0, 1]: for each code, 1 - its entropy / the largest possible entropy.
        landmarks: (5,2) x and y in the crop, whose side is 1; order as in Face.
    Returns:
        in [0, 1]; None for a region that lies outside the crop.
    """
    left, right, nose, *mouth = np.asarray(landmarks, np.float64)
    centres = (np.arange(len(certainty)) + 0.5) / len(certainty)
    places = np.stack(np.meshgrid(centres, centres), axis=-1)  # (s, s, 2), x then y
    reach = REACH * float(np.linalg.norm(right - left))
    lines = {
        "eyes": ((left, left), (right, right)),
        "nose": (((left + right) / 2, nose),),
        "mouth": ((mouth[0], mouth[1]),),
    }
    means: dict[str, float | None] = {"face": float(certainty.mean())}
    for name, parts in lines.items():
        near = np.min([_distance(places, *part) for part in parts], axis=0) <= reach
        means[name] = float(certainty[near].mean()) if near.any() else None
    return means


def _distance(
    places: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Distance of points (...,2) from the line segment between two others."""
    along = end - start
    length = float(along @ along)
    share = (
        ((places - start) @ along / length).clip(0, 1) if length else np.zeros(places.shape[:-1])
    )
    return np.asarray(np.linalg.norm(places - start - share[..., None] * along, axis=-1))
