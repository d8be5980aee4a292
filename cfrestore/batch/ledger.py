"""The records of earlier runs: what need not be repeated, what may be replaced, what is added."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cfrestore import __version__
from cfrestore.batch.job import Job
from cfrestore.batch.manifest import Fingerprint, Manifest, digest_of, record_outcome
from cfrestore.batch.outcome import Outcome
from cfrestore.errors import CFRestoreError, ConfigError, OutputError
from cfrestore.files import exists
from cfrestore.image import task_in

if TYPE_CHECKING:
    from cfrestore.image import Photo

Done = TypeVar("Done")


class FailureError(Exception):
    """Why a picture cannot be done: a code of REASONS and a sentence."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code, self.sentence = code, sentence


@contextmanager
def failing(job: Job, code: str) -> Iterator[None]:
    """Turns any error of one picture into a FailureError."""
    try:
        yield
    except (ConfigError, FailureError):
        raise
    except CFRestoreError as error:
        raise FailureError(code, str(error)) from error
    except MemoryError as error:
        raise FailureError("memory", f"{job.source} needs more memory than there is") from error
    except Exception as error:  # whatever it is, one picture never ends a batch
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = " ".join(f"{type(error).__name__}: {error}".split())
        where = f"{Path(place.filename).name}:{place.lineno}"
        raise FailureError("unexpected", f"{job.source} met a fault, {what} ({where})") from error


def manifests_of(jobs: Iterable[Job]) -> dict[Path, Manifest]:
    """What earlier runs have recorded, by the folders of the jobs' manifests."""
    folders = {job.manifest.parent for job in jobs if job.manifest}
    return {folder: Manifest.read(folder) for folder in folders}


@dataclass(frozen=True, eq=False)
class Ledger:
    """Knows what earlier runs have done, and records what this one does.

    Attributes:
        settings: everything that decides the results, except the version and the job's own fields.
        manifests: what earlier runs have recorded, by folder.
    """

    settings: Mapping[str, object]
    manifests: Mapping[Path, Manifest]

    def earlier(self, job: Job) -> Outcome | None:
        """The outcome that planning (a refusal) or an earlier run has decided, if still valid."""
        if job.refusal:
            return self.failed(job, FailureError("refused", job.refusal))
        return self.tried(job, "unreadable", lambda: self._earlier(job))

    def _earlier(self, job: Job) -> Outcome | None:
        manifest = self.manifest_of(job)
        if manifest is None or not isinstance(job.target, Path):
            return None
        record = manifest.finished(job, self.digest(job))
        if record is None:
            before = manifest.replaced(job, self.task) if job.once else None
            return left_as_it_is(job, before.outcome) if before else None
        notes = record.outcome.notes
        if not manifest.wrote(job.target, job):
            notes += (f"{job.target} has been edited since it was written, and is left so.",)
        return replace(record.outcome, job=job, status="unchanged", notes=notes, seconds={})

    def manifest_of(self, job: Job) -> Manifest | None:
        """The records of earlier runs in the folder of the job's manifest; None if it has none."""
        return self.manifests[job.manifest.parent] if job.manifest else None

    def tried(self, job: Job, code: str, work: Callable[[], Done]) -> Done | Outcome:
        """What the work returns or, if it meets an error, the outcome of the failed job."""
        try:
            with failing(job, code):
                return work()
        except FailureError as failure:
            return self.failed(job, failure)

    def check_free(self, paths: Iterable[Path], job: Job) -> None:
        """Raises FailureError if a result would replace a file that must be kept."""
        manifest = self.manifest_of(job)
        for path in paths:
            is_source = job.in_place and path == job.target
            if exists(path) and not (job.overwrite or is_source):
                if manifest is None or not manifest.knows(path, job):
                    text = f"{path} exists; only --overwrite replaces it"
                    raise FailureError("exists", text)
                if not (manifest.wrote(path, job) or manifest.lost(path, job)):
                    text = f"{path} was edited since it was written; only --overwrite replaces it"
                    raise FailureError("exists", text)

    def earlier_files(
        self, job: Job, written: Sequence[Path], faces: int
    ) -> tuple[list[Path], list[Path]]:
        """Numbered faces and samples on the disk that do not belong to the new result.

        Args:
            written: the files of the new result.
            faces: number of faces of the new result.
        Returns:
            files unchanged since a run wrote them, which can be removed; and all others, which may
            be edited or somebody else's, and stay.
        """
        numbers = range(1 + max(faces, len(written)))
        places = [job.numbered(first.parent.name, k) for first in job.series for k in numbers]
        found = [path for path in places if path not in written and exists(path)]
        manifest = self.manifest_of(job)
        if manifest is None:
            return [], found
        known = manifest.outdated(job, written)
        ours = [path for path in known if manifest.wrote(path, job)]
        return ours, [path for path in dict.fromkeys((*known, *found)) if path not in ours]

    def has_made(self, photo: Photo, job: Job) -> bool:
        """Whether a picture's metadata says that it is a result of this task.

        False if the manifest records the file, because the manifest was asked before: it alone
        tells whether any face was restored.
        """
        manifest = self.manifest_of(job)
        assert isinstance(job.source, Path)
        known = manifest is not None and manifest.wrote(job.source, job)
        return not known and photo.xmp is not None and task_in(photo.xmp) == self.task is not None

    @property
    def task(self) -> str | None:
        """Name of the task, if the procedure has one."""
        return None if (task := self.settings.get("task")) is None else str(task)

    def record(
        self, outcome: Outcome, input: Fingerprint | None, outputs: Mapping[Path, Fingerprint]
    ) -> None:
        """Records that a job is done, see `record_outcome`."""
        record_outcome(outcome, self.digest(outcome.job), input, outputs, self.task)

    def failed(self, job: Job, failure: FailureError) -> Outcome:
        """Records that a job failed, and returns its outcome."""
        outcome = Outcome(job, "failed", failure.code, failure.sentence)
        if failure.code != "refused":
            with suppress(OutputError):  # without a record the picture is tried again
                record_outcome(outcome, self.digest(job))
        return outcome

    def digest(self, job: Job) -> str:
        """The digest of all settings of a job, as it is recorded."""
        of_job = {"version": __version__, "kept": sorted(job.kept), "format": job.format}
        return digest_of({**self.settings, **of_job})


def left_as_it_is(job: Job, before: Outcome) -> Outcome:
    """The outcome of a picture that is already a result, and so is not worked on again."""
    text = "it is a result of an earlier run already, which only --overwrite replaces"
    return replace(before, job=job, status="unchanged", remarks=(text,), seconds={})
