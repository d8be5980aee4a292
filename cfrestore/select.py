"""Selects which detected faces to process. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cfrestore.detect import Face
    from cfrestore.options import Choice


@dataclass(frozen=True, eq=False)
class SkippedFace:
    """A face that was left out on purpose.

    Attributes:
        face: as the detector found it, in image pixels.
        reason: why, as half a sentence.
    """

    face: Face
    reason: str


def select_faces(
    faces: Sequence[Face],
    size: tuple[int, int],
    wanted: Choice | tuple[int, ...] = "all",
    min_face: int = 0,
    max_face: int | None = None,
) -> tuple[Face | SkippedFace, ...]:
    """The same faces in the same order; unwanted ones as SkippedFace with the reason.

    Args:
        faces: in the detector's order.
        size: height and width of the picture.
        wanted: see Options.faces.
        min_face, max_face: see Options; center and largest choose among the faces in between.
    Source: the published pipeline for center and largest.
    """
    unfit = {k: reason for k, f in enumerate(faces) if (reason := _unfit(f, min_face, max_face))}
    fit = [k for k in range(len(faces)) if k not in unfit]
    if isinstance(wanted, tuple):
        chosen = set(wanted)
    elif wanted == "all" or not fit:
        chosen = set(fit)
    elif wanted == "center":
        chosen = {min(fit, key=lambda k: _distance(faces[k], size))}
    else:
        chosen = {max(fit, key=lambda k: _visible_area(faces[k], size))}
    return tuple(
        SkippedFace(face, unfit[k])
        if k in unfit
        else (face if k in chosen else SkippedFace(face, "not selected"))
        for k, face in enumerate(faces)
    )


def missing_faces(count: int, wanted: Choice | tuple[int, ...]) -> tuple[int, ...]:
    """The wanted indices that exceed the number of faces, ascending."""
    if not isinstance(wanted, tuple):
        return ()
    return tuple(sorted({index for index in wanted if index >= count}))


def _unfit(face: Face, min_face: int, max_face: int | None) -> str | None:
    """Why a face is excluded by its size, or None."""
    side = _shorter_side(face)
    if side < min_face:
        return f"smaller than {min_face} px"
    if max_face is not None and side > max_face:
        return f"larger than {max_face} px"
    return None


def _shorter_side(face: Face) -> float:
    return float(min(face.box[2:] - face.box[:2]))


def _distance(face: Face, size: tuple[int, int]) -> float:
    """Distance between the centres of the box and the picture."""
    middle = (face.box[:2] + face.box[2:]) / 2
    return float(np.linalg.norm(middle - np.array(size[::-1]) / 2))


def _visible_area(face: Face, size: tuple[int, int]) -> float:
    """Area of the part of the box that lies in the picture."""
    corners = np.clip(face.box.reshape(2, 2), 0, size[::-1])
    return float(np.prod(corners[1] - corners[0]))
