"""Many pictures: which goes where, decided before any work, and one after the other done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cfrestore.errors import CFRestoreError, ConfigError, ImageError, OutputError
from cfrestore.image import EXTENSIONS, read_photo, write_photo

if TYPE_CHECKING:
    from cfrestore.image import Photo
    from cfrestore.pipeline import Restoration

MARK = ".restored"
"""Stands in the name of every result that lies beside its source."""


@dataclass(frozen=True)
class Job:
    """One picture to restore and the file its result goes to."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Outcome:
    """What became of one job.

    Attributes:
        job: the job.
        restored: how many faces were restored.
        left_alone: why each of the other faces was not.
        softened: how many restored faces are larger than the network paints them.
        error: one sentence, if the job failed; then nothing was written.
    """

    job: Job
    restored: int = 0
    left_alone: tuple[str, ...] = ()
    softened: int = 0
    error: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the picture was written with every face that was found restored."""
        return self.error is None and not self.left_alone


def plan(
    inputs: Sequence[str | Path], output: str | Path | None = None, *, overwrite: bool = False
) -> tuple[Job, ...]:
    """Decides what is read and what is written; looks at the disk, changes nothing.

    `photo.jpg` becomes `photo.restored.jpg` beside it, a folder becomes `folder.restored` beside
    it, with the names unchanged. Of a folder its pictures are taken, by their extension, sorted,
    without those of sub-folders, hidden ones and earlier results.

    Args:
        inputs: files and folders, at least one.
        output: a file for one file; else, or if it exists as one or ends with a slash, a folder.
            With several inputs each input folder gets a folder of its name in it.
        overwrite: whether existing files may be replaced. Inputs never are.
    Raises:
        ImageError: a folder holds no pictures, or a path cannot be looked at.
        OutputError: two jobs have one target, or a target is an input, exists, or is misplaced.
    """
    try:
        jobs = tuple(job for path in inputs for job in _jobs(Path(path), output, len(inputs)))
        _check(jobs, overwrite)
    except OSError as error:
        raise ImageError(f"{error.filename} cannot be read: {error.strerror}") from error
    return jobs


def run(jobs: Iterable[Job], restore: Callable[[Photo], Restoration]) -> Iterator[Outcome]:
    """Does the jobs in turn; one that fails is reported and the next is begun.

    Args:
        jobs: of `plan`.
        restore: a photograph to its restoration, a Pipeline with its options for instance.
    Yields:
        an outcome per job, as soon as it is done.
    Raises:
        ConfigError: what was asked for fits no picture.
    """
    for job in jobs:
        try:
            restoration = restore(read_photo(job.source))
            _make_folder(job.target.parent)
            photo = restoration.photo
            unnamed = job.target.suffix == MARK  # then nothing but the source tells the format
            write_photo(photo, job.target, format=photo.format if unnamed else None)
        except ConfigError:
            raise
        except CFRestoreError as error:
            yield Outcome(job, error=str(error))
        except MemoryError:
            yield Outcome(job, error=f"{job.source} needs more memory than there is")
        else:
            reasons = tuple(face.reason for face in restoration.failed)
            softened = sum(face.softened for face in restoration.restored)
            yield Outcome(job, len(restoration.restored), reasons, softened)


def _jobs(source: Path, output: str | Path | None, inputs: int) -> Iterator[Job]:
    """The jobs of one input of several."""
    if source.is_dir():
        named = source.resolve() if source.name in ("", "..") else source
        if output is None:
            folder = named.parent / f"{named.name}{MARK}"
        else:
            folder = _folder(output) / (named.name if inputs > 1 else "")
        for picture in _pictures(source):
            yield Job(picture, folder / picture.name)
    elif output is None:
        yield Job(source, source.with_name(f"{source.stem}{MARK}{source.suffix}"))
    elif inputs > 1 or Path(output).is_dir() or str(output).endswith(("/", os.sep)):
        yield Job(source, _folder(output) / source.name)
    else:
        yield Job(source, Path(output))


def _folder(output: str | Path) -> Path:
    """The output as a folder, which need not exist yet."""
    path = Path(output)
    if path.is_file() or (path.suffix.lower() in EXTENSIONS and not path.exists()):
        raise OutputError(f"{path} names one file, but what is to be written needs a folder")
    return path


def _pictures(folder: Path) -> list[Path]:
    pictures = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS
        and not path.name.startswith(".")
        and not path.stem.endswith(MARK)
        and path.is_file()
    )
    if not pictures:
        raise ImageError(f"{folder} holds no pictures")
    return pictures


def _check(jobs: Sequence[Job], overwrite: bool) -> None:
    """Raises OutputError if doing these jobs would destroy anything."""
    inputs = {_identity(job.source) for job in jobs}
    taken: dict[object, Path] = {}
    for job in jobs:
        key = _identity(job.target)
        if key in inputs:
            raise OutputError(f"{job.target} is an input, and inputs are never overwritten")
        if key in taken:
            raise OutputError(
                f"{taken[key]} and {job.source} would both be written to {job.target}"
            )
        taken[key] = job.source
        if job.target.exists() and not overwrite:
            raise OutputError(f"{job.target} exists; only --overwrite replaces it")


def _identity(path: Path) -> object:
    """What two paths of one file have in common."""
    if path.exists():
        status = path.stat()
        return status.st_dev, status.st_ino
    return path.resolve()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made: {error.strerror}") from error
