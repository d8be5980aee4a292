"""The outcome of a job, as a value and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from cfrestore.batch.job import Job, named

if TYPE_CHECKING:
    from cfrestore.detect import Face
    from cfrestore.procedure import Restoration, Result
    from cfrestore.restore import RestoredFace

SCHEMA = 1
"""Version of the JSON layout; adding a field does not change it."""

Status: TypeAlias = Literal["done", "unchanged", "failed"]

REASONS = {
    "unreadable": "the picture is missing, damaged or of no known kind, or may not be read",
    "unsuitable": "the picture can be read, but not be worked on as asked for",
    "modified": "the picture was written to while it was read",
    "memory": "it needs more memory than there is",
    "refused": "its result would destroy something, or has no place to go to",
    "exists": "a file exists where a result was to be written, or a result was edited",
    "unwritable": "a result cannot be encoded or written",
    "crashed": "the processes that worked on it died; on a cluster only",
    "unexpected": "something else went wrong, which is a fault of this program",
}
"""Codes of Outcome.code, which do not change, and what they say."""


@dataclass(frozen=True)
class FaceReport:
    """What became of one face, without its pixels.

    Attributes:
        status: restored, failed (it should have been) or skipped (it was not asked for).
        score: the detector's.
        box: x0, y0, x1, y1 in pixels of the picture.
        landmarks: x and y of five points, order as in Face.
        fidelity: w it was painted with, if it was.
        softened: see RestoredFace.
        kept: mean of AlignedFace.kept.
        confidence: see RestoredFace.
        reason: why it was not restored, half a sentence.
        frames: of a video, indices of the first and last frame in which it was seen; box, score and
            landmarks are then medians.
    """

    status: Literal["restored", "failed", "skipped"]
    score: float
    box: tuple[float, ...]
    landmarks: tuple[tuple[float, ...], ...]
    fidelity: float | None = None
    softened: bool = False
    kept: float | None = None
    reason: str | None = None
    confidence: Mapping[str, float | None] | None = None
    frames: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "score": self.score,
            "box": list(self.box),
            "landmarks": [list(point) for point in self.landmarks],
            "w": self.fidelity,
            "softened": self.softened,
            "detail_kept": self.kept,
            "confidence": None if self.confidence is None else dict(self.confidence),
            "reason": self.reason,
            "frames": None if self.frames is None else list(self.frames),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FaceReport:
        return cls(
            values["status"],
            values["score"],
            tuple(values["box"]),
            tuple(map(tuple, values["landmarks"])),
            values["w"],
            values["softened"],
            values.get("detail_kept"),  # records of before 2026-11-26 lack it
            values["reason"],
            values.get("confidence"),  # older records lack this, too
            tuple(values["frames"]) if values.get("frames") else None,
        )


def report(result: Result) -> FaceReport:
    """What became of a face of a restoration."""
    from cfrestore.restore import RestoredFace  # here, so that planning needs no torch
    from cfrestore.select import SkippedFace

    painted = result if isinstance(result, RestoredFace) else None
    face = result.aligned.face if isinstance(result, RestoredFace) else result.face
    kept = painted.aligned.kept if painted else None
    return FaceReport(
        "restored" if painted else "skipped" if isinstance(result, SkippedFace) else "failed",
        *located(face),
        painted.fidelity if painted else None,
        painted is not None and painted.softened,
        None if kept is None else round(float(kept.mean()), 3),
        None if isinstance(result, RestoredFace) else result.reason,
        _confidence(painted),
    )


def _confidence(painted: RestoredFace | None) -> Mapping[str, float | None] | None:
    if painted is None or painted.confidence is None:
        return None
    return {
        region: None if value is None else round(value, 3)
        for region, value in painted.confidence.items()
    }


def located(face: Face) -> tuple[float, tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Score, box and landmarks of a face, rounded as they are reported."""
    box, *points = (
        tuple(round(float(value), 2) for value in values) for values in (face.box, *face.landmarks)
    )
    return round(float(face.score), 4), box, tuple(points)


@dataclass(frozen=True)
class Outcome:
    """What became of one job.

    Attributes:
        job: the job.
        status: done; unchanged (an earlier run has already done the same); failed (nothing was
            written).
        code: one of REASONS, if the job failed.
        error: one sentence, if the job failed.
        faces: every face that was found, in the detector's order.
        missing: requested indices that no face has.
        remarks: what else was requested but not done, each half a sentence.
        notes: whole sentences, such as on parts of the file that the result lacks.
        seconds: time spent, by stage: read, find, paint, paste, write. Pictures that were painted
            together share the time in proportion to their faces. Finding includes waiting while
            other pictures are painted, because networks compute one at a time.
    """

    job: Job
    status: Status = "done"
    code: str | None = None
    error: str | None = None
    faces: tuple[FaceReport, ...] = ()
    missing: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def restored(self) -> int:
        """How many faces were restored."""
        return sum(face.status == "restored" for face in self.faces)

    @property
    def softened(self) -> int:
        """How many restored faces are larger than the network paints them."""
        return sum(face.softened for face in self.faces)

    @property
    def left_alone(self) -> tuple[str, ...]:
        """The reason of each face that should have been restored but was not."""
        return tuple(str(face.reason) for face in self.faces if face.status == "failed")

    @property
    def skipped(self) -> tuple[str, ...]:
        """The reason of each face that was not to be restored."""
        return tuple(str(face.reason) for face in self.faces if face.status == "skipped")

    @property
    def complete(self) -> bool:
        """Whether the picture was written with every face restored that was to be."""
        return not (self.error or self.left_alone or self.missing or self.remarks)

    def to_json(self) -> dict[str, Any]:
        """Plain values; paths as text, with undecodable bytes escaped as Python does it."""
        return {
            "schema": SCHEMA,
            "path": named(self.job.source),
            "output": None if self.status == "failed" else named(self.job.target),
            "status": self.status,
            "code": self.code,
            "error": self.error,
            "faces": [face.to_json() for face in self.faces],
            "missing": list(self.missing),
            "remarks": list(self.remarks),
            "notes": list(self.notes),
            "seconds": {stage: round(time, 4) for stage, time in self.seconds.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Outcome:
        """The outcome that `to_json` wrote; of the job, only the paths."""
        return cls(
            Job(Path(values["path"]), Path(values["output"] or "")),
            values["status"],
            values["code"],
            values["error"],
            tuple(map(FaceReport.from_json, values["faces"])),
            tuple(values["missing"]),
            tuple(values["remarks"]),
            tuple(values["notes"]),
            dict(values["seconds"]),
        )


def outcome_of(
    job: Job, restoration: Restoration, notes: Sequence[str], seconds: Mapping[str, float]
) -> Outcome:
    """What became of a job that is done."""
    return Outcome(
        job,
        faces=tuple(map(report, restoration.faces)),
        missing=restoration.missing,
        remarks=restoration.remarks,
        notes=tuple(notes),
        seconds=seconds,
    )
