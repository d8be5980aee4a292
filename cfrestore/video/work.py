"""Runs jobs on videos one after the other; one that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cfrestore.batch import FaceReport, Outcome
from cfrestore.batch.ledger import FailureError, Ledger, manifests_of
from cfrestore.batch.manifest import Fingerprint
from cfrestore.batch.naming import Kind
from cfrestore.batch.outcome import located
from cfrestore.errors import OutputError
from cfrestore.select import SkippedFace
from cfrestore.video.container import CONTAINERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from cfrestore.batch import Job
    from cfrestore.video.restoration import VideoRestoration

VIDEOS = Kind(
    "videos",
    frozenset(CONTAINERS)
    | {".avi", ".wmv", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv", ".3gp", ".ogv", ".vob"},
    frozenset(CONTAINERS),
    ".mkv",  # which holds nearly every kind of sound
)


class Restore(Protocol):
    """Restores a video, see `restore_video`."""

    def __call__(
        self, source: Path, target: Path, *, record: Callable[[VideoRestoration, Path], object]
    ) -> VideoRestoration: ...


def run_videos(
    jobs: Sequence[Job], restore: Restore, settings: Mapping[str, object], fidelity: float
) -> Generator[Outcome, None, None]:
    """Restores and records videos; what an earlier run did with the same settings is not repeated.

    Args:
        jobs: from `plan`, with files as sources and targets.
        restore: restores one video.
        settings: everything that decides the results.
        fidelity: w, for the reports.
    Yields:
        an outcome per job, in their order; faces are tracks, see FaceReport.
    Raises:
        ConfigError: the settings suit no video.
    """
    ledger = Ledger(settings, manifests_of(jobs))
    for job in jobs:
        yield ledger.earlier(job) or _run(job, restore, ledger, fidelity)


def _run(job: Job, restore: Restore, ledger: Ledger, fidelity: float) -> Outcome:
    """Restores one video."""
    source, target = job.source, job.target
    assert isinstance(source, Path) and isinstance(target, Path)
    outcomes: list[Outcome] = []

    def record(result: VideoRestoration, draft: Path) -> None:
        ledger.check_free([target], job)
        outcomes.append(outcome_of(job, result, fidelity))
        if job.manifest:
            prints = {target: Fingerprint.of(draft)}
            ledger.record(outcomes[0], Fingerprint.of(source), prints)

    def work() -> Outcome:
        ledger.check_free([target], job)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            restore(source, target, record=record)
        except OutputError as error:
            raise FailureError("unwritable", str(error)) from error
        return outcomes[0]

    return ledger.tried(job, "unreadable", work)


def outcome_of(job: Job, result: VideoRestoration, fidelity: float) -> Outcome:
    """What became of a job that is done."""
    faces: list[FaceReport] = []
    remarks: list[str] = []
    for index in range(len(result.plan.tracks)):
        report, remark = _report(result, index, fidelity)
        faces.append(report)
        remarks += remark
    if result.damaged:
        packets = "1 damaged packet" if result.damaged == 1 else f"{result.damaged} damaged packets"
        remarks.append(f"{packets} left out")
    return Outcome(
        job,
        faces=tuple(faces),
        missing=result.plan.missing,
        remarks=tuple(remarks),
        notes=result.video.notes,
        seconds=result.seconds,
    )


def _report(
    result: VideoRestoration, index: int, fidelity: float
) -> tuple[FaceReport, tuple[str, ...]]:
    """What became of a track, and a remark if it was left alone in some frames."""
    track, choice = result.plan.tracks[index], result.plan.chosen[index]
    face = track.typical
    report = FaceReport(
        "restored",
        *located(face),
        fidelity,
        frames=(track.first, track.last),
    )
    if isinstance(choice, SkippedFace):
        return replace(report, status="skipped", fidelity=None, reason=choice.reason), ()
    reasons = {
        reason: count for (number, reason), count in result.failures.items() if number == index
    }
    planned = sum(face.track == index for frame in result.plan.frames for face in frame)
    left, why = sum(reasons.values()), "; ".join(reasons)
    if left == planned:
        return replace(report, status="failed", fidelity=None, reason=why), ()
    if left:
        return report, (f"face {index} was left alone in {left} of {planned} frames: {why}",)
    return report, ()
