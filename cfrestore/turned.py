"""Finds faces that lie in the picture or stand on their heads, by searching it turned.

Detectors are trained on faces that are nearly upright. Many others they miss, and to many they give
the landmarks of an upright face; but then they are less certain.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import cv2
import numpy as np

from cfrestore.align import FFHQ_TEMPLATE, rescale
from cfrestore.detect import Face
from cfrestore.image import resize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from cfrestore.detect import Detector

TURNS = (90, 270, 180, 45, 315, 135, 225)
"""Angles in degrees, counter-clockwise, by which pictures are turned; the first one wins a draw."""

CERTAIN = 0.995
"""Score from which an upright face leaves no reason to turn the picture."""

CREDIBLE = 0.98
"""Lowest score of a face in a turned picture; most of what is no face stays below."""

UPRIGHT = 30.0
"""Largest tilt of an upright face, in degrees: half the distance of two turns, and some error."""

NUDGE = 10.0
"""Degrees by which a turned picture is turned further, to see whether its faces stay."""

STEADY = 0.1
"""How far the landmarks of a face that stays move, divided by the distance of its eyes."""

LONG_SIDE = 2048
"""Longest side in pixels of the pictures that are turned, which bounds time and memory."""


def find_faces(detector: Detector, pixels: NDArray[np.uint8]) -> tuple[Face, ...]:
    """The faces of a picture, whichever way up they are.

    If the detector finds nothing, or fewer than half of what it finds are certain and upright
    faces, it searches the picture turned by each of TURNS too. Among these pictures and the
    original, the one counts in which the scores of upright faces have the largest sum. A turned
    picture counts only if half of its faces are found in the same place when it is turned a little
    further: what detectors see in damaged faces that stand on their heads moves.

    Args:
        pixels: (H, W, 3) uint8 RGB.
    Returns:
        faces in descending order of score and in pixels of the picture as it is. Left and right in
        their landmarks are those of the face when it is upright.
    """
    found = detector(pixels)
    scores = [face.score for face in found if tilt(face) <= UPRIGHT]
    if found and 2 * sum(score >= CERTAIN for score in scores) >= len(found):
        return found
    scale = min(1.0, LONG_SIDE / max(pixels.shape))
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    search = partial(_search, detector, resize(pixels, height, width), 1 / scale)
    best, most = found, sum(scores)
    for angle in TURNS:
        faces = tuple(
            face
            for face in search(angle)
            if face.score >= CREDIBLE and tilt(face, angle) <= UPRIGHT
        )
        total = sum(face.score for face in faces)
        if total > most and any(_stay(faces, search(angle + by)) for by in (NUDGE, -NUDGE)):
            best, most = faces, total
    return best


def tilt(face: Face, angle: float = 0.0) -> float:
    """Angle in degrees, in [0, 180], between a face and an upright one.

    Args:
        angle: degrees by which the picture is turned first, counter-clockwise.
    """
    points = (face.landmarks - face.landmarks.mean(axis=0)) @ (1, 1j)  # as complex numbers
    there = np.vdot(FFHQ_TEMPLATE @ (1, 1j), points)
    return abs(math.degrees(np.angle(there * np.exp(-1j * math.radians(angle)))))


def turn(size: tuple[int, int], angle: float) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Turns a picture counter-clockwise so that all of it stays visible.

    Args:
        size: height and width of the picture.
        angle: degrees.
    Returns:
        (2, 3) float64, picture px -> turned px, without rounding errors for quarters of a turn;
        height and width of the turned picture.
    """
    old = np.array(size[::-1])
    cos, sin = (round(f(math.radians(angle)), 12) for f in (math.cos, math.sin))
    linear = np.array([[cos, sin], [-sin, cos]])
    width, height = np.ceil(np.abs(linear) @ old).astype(int).tolist()
    shift = (np.array([width, height]) - 1) / 2 - linear @ (old - 1) / 2
    return np.column_stack([linear, shift]), (height, width)


def move(face: Face, matrix: NDArray[np.float64]) -> Face:
    """The same face where a similarity (2, 3) takes it.

    The box encloses the ellipse that was inscribed in the old box, so that it does not grow when
    it is turned.
    """
    corners = face.box.reshape(2, 2)
    centre = matrix @ (*corners.mean(axis=0), 1)
    half = np.sqrt(matrix[:, :2] ** 2 @ ((corners[1] - corners[0]) / 2) ** 2)
    return Face(
        np.concatenate([centre - half, centre + half]).astype(np.float32),
        face.score,
        (face.landmarks @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32),
    )


def _search(
    detector: Detector, pixels: NDArray[np.uint8], scale: float, angle: float
) -> tuple[Face, ...]:
    """The faces of the turned picture, in pixels of `scale` times the unturned one."""
    matrix, (height, width) = turn(pixels.shape[:2], angle)
    view = cv2.warpAffine(pixels, matrix, (width, height), borderValue=(127, 127, 127))
    back = rescale(np.asarray(cv2.invertAffineTransform(matrix)), scale)
    return tuple(move(face, back) for face in detector(np.asarray(view, np.uint8)))


def _stay(faces: Sequence[Face], others: Sequence[Face]) -> bool:
    """Whether at least half of the faces are, by their landmarks, among the others."""
    staying = sum(any(_distance(face, other) <= STEADY for other in others) for face in faces)
    return 2 * staying >= len(faces)


def _distance(face: Face, other: Face) -> float:
    """Mean distance of the landmarks of two faces, divided by that of the first one's eyes."""
    apart = np.linalg.norm(face.landmarks - other.landmarks, axis=1).mean()
    return float(apart / np.linalg.norm(face.landmarks[1] - face.landmarks[0]))
