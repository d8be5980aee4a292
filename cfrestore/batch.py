"""Many pictures: which goes where, decided before any work, and one after the other done."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cfrestore.errors import CFRestoreError, ConfigError, ImageError, OutputError
from cfrestore.image import EXTENSIONS, Photo, read_photo, write_photo
from cfrestore.show import side_by_side

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cfrestore.pipeline import Restoration

MARK = ".restored"
"""Stands in the name of every result that lies beside its source."""

MARKS = (MARK, ".inpainted", ".colorized")

CROPS, RESTORED, COMPARED = "cropped_faces", "restored_faces", "compared"
"""Folders beside the results: faces before and after, numbered; pictures before and after."""

_NUMBERED = re.compile(r"(.*)_\d{2,}\.png", re.DOTALL)


@dataclass(frozen=True)
class Job:
    """One picture to restore and the file its result goes to.

    Attributes:
        source: the picture.
        target: where its result goes.
        kept: which of CROPS, RESTORED and COMPARED are written beside the result.
        name: what the files in those folders are called, without number and extension.
    """

    source: Path
    target: Path
    kept: tuple[str, ...] = ()
    name: str = ""

    @property
    def singles(self) -> tuple[Path, ...]:
        """The files written whatever is found: the result and the comparison."""
        return (self.target, *([self.comparison] if COMPARED in self.kept else []))

    @property
    def comparison(self) -> Path:
        return self.target.parent / COMPARED / f"{self.name}.png"

    @property
    def series(self) -> tuple[Path, ...]:
        """The first of each series of files, of which there are as many as faces."""
        return tuple(
            self.numbered(folder, 0) for folder in (CROPS, RESTORED) if folder in self.kept
        )

    def numbered(self, folder: str, index: int) -> Path:
        """The file of one face in CROPS or RESTORED."""
        return self.target.parent / folder / f"{self.name}_{index:02d}.png"


@dataclass(frozen=True)
class Outcome:
    """What became of one job.

    Attributes:
        job: the job.
        restored: how many faces were restored.
        left_alone: why each face that should have been restored was not.
        skipped: why each of the other faces was not to be restored.
        missing: indices that were asked for and that no face has.
        softened: how many restored faces are larger than the network paints them.
        remarks: what else was asked for and is not done, each half a sentence.
        error: one sentence, if the job failed; then its result was not written.
    """

    job: Job
    restored: int = 0
    left_alone: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    missing: tuple[int, ...] = ()
    softened: int = 0
    remarks: tuple[str, ...] = ()
    error: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the picture was written with every face restored that was to be."""
        return not (self.error or self.left_alone or self.missing or self.remarks)


def plan(
    inputs: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
    mark: str = MARK,
    suffix: str | None = None,
    kept: Sequence[str] = (),
) -> tuple[Job, ...]:
    """Decides what is read and what is written; looks at the disk, changes nothing.

    `photo.jpg` becomes `photo.restored.jpg` beside it, a folder becomes `folder.restored` beside
    it, with the names unchanged. Of a folder its pictures are taken, by their extension, sorted,
    without those of sub-folders, hidden ones and earlier results: those with a mark, and
    `photo_suffix.jpg` where `photo.jpg` is there too.

    Args:
        inputs: files and folders, at least one.
        output: a file for one file; else, or if it exists as one or ends with a slash, a folder.
            With several inputs each input folder gets a folder of its name in it.
        overwrite: whether existing files may be replaced. Inputs never are.
        mark: one of MARKS, in place of `.restored`.
        suffix: `photo.jpg` becomes `photo_suffix.jpg`, in whatever folder.
        kept: which of CROPS, RESTORED and COMPARED are to be written beside the results. Their
            files are called like the source, or by its full name where two would be called so.
    Raises:
        ImageError: a folder holds no pictures, or a path cannot be looked at.
        OutputError: two jobs have one target, or a target is an input, exists, or is misplaced.
        ConfigError: the suffix is no part of a name.
    """
    if suffix is not None and (not suffix or Path(suffix).name != suffix):
        raise ConfigError(f"a suffix must be a part of a file's name, found {suffix!r}")
    naming = _Naming(mark, f"_{suffix}" if suffix else "")
    try:
        pairs = [p for path in inputs for p in _pairs(Path(path), output, len(inputs), naming)]
        jobs = _named([Job(source, target, tuple(kept)) for source, target in pairs], naming)
        _check(jobs, overwrite)
    except OSError as error:
        raise ImageError(f"{error.filename} cannot be read: {error.strerror}") from error
    return jobs


def run(jobs: Iterable[Job], restore: Callable[[Photo], Restoration]) -> Iterator[Outcome]:
    """Does the jobs in turn; one that fails is reported and the next is begun.

    The result is the last file of a job to be written: where it is, all the others are.

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
            outcome = _do(job, restore)
        except ConfigError:
            raise
        except CFRestoreError as error:
            outcome = Outcome(job, error=str(error))
        except MemoryError:
            outcome = Outcome(job, error=f"{job.source} needs more memory than there is")
        yield outcome


def _do(job: Job, restore: Callable[[Photo], Restoration]) -> Outcome:
    """Reads, restores and writes one picture."""
    photo = read_photo(job.source)
    restoration = _apply(restore, photo, job.source)
    for path, kept in _kept(job, photo, restoration):
        _make_folder(path.parent)
        write_photo(kept, path)
    _make_folder(job.target.parent)
    # Without an extension nothing but the source tells the format.
    format = restoration.photo.format if job.target.suffix in MARKS else None
    write_photo(restoration.photo, job.target, format=format)
    return Outcome(
        job,
        len(restoration.restored),
        left_alone=tuple(face.reason for face in restoration.failed),
        skipped=tuple(face.reason for face in restoration.skipped),
        missing=restoration.missing,
        softened=sum(face.softened for face in restoration.restored),
        remarks=restoration.remarks,
    )


def _apply(restore: Callable[[Photo], Restoration], photo: Photo, source: Path) -> Restoration:
    """The restoration; the error of a photograph that does not suit names it."""
    try:
        return restore(photo)
    except ImageError as error:
        raise ImageError(f"{source} cannot be worked on: {error}") from error


def _kept(job: Job, photo: Photo, restoration: Restoration) -> Iterator[tuple[Path, Photo]]:
    """What goes into the folders beside the result."""
    for index, face in restoration.numbered:
        if CROPS in job.kept:
            yield job.numbered(CROPS, index), _portrait(face.aligned.crop, photo)
        if RESTORED in job.kept:
            yield job.numbered(RESTORED, index), _portrait(face.crop, photo)
    if COMPARED in job.kept:
        yield job.comparison, side_by_side(photo, restoration.photo)


def _portrait(crop: NDArray[np.uint8], photo: Photo) -> Photo:
    """One face as a picture of its own, in the colour space of the photograph."""
    return Photo(crop, gray=photo.gray, icc=photo.icc)


@dataclass(frozen=True)
class _Naming:
    """How results are called: by the mark beside their source, by the suffix anywhere."""

    mark: str
    suffix: str

    def beside(self, source: Path) -> Path:
        return source.with_name(source.stem + (self.suffix or self.mark) + source.suffix)

    def within(self, folder: Path, source: Path) -> Path:
        return folder / (source.stem + self.suffix + source.suffix)


def _pairs(
    source: Path, output: str | Path | None, inputs: int, naming: _Naming
) -> Iterator[tuple[Path, Path]]:
    """Sources and targets of one input of several."""
    if source.is_dir():
        named = source.resolve() if source.name in ("", "..") else source
        if output is None:
            folder = named.parent / f"{named.name}{naming.mark}"
        else:
            folder = _folder(output) / (named.name if inputs > 1 else "")
        for picture in _pictures(source, naming):
            yield picture, naming.within(folder, picture)
    elif output is None:
        yield source, naming.beside(source)
    elif inputs > 1 or Path(output).is_dir() or str(output).endswith(("/", os.sep)):
        yield source, naming.within(_folder(output), source)
    elif naming.suffix:
        raise OutputError(f"{output} is the whole name of the result, so no suffix can be added")
    else:
        yield source, Path(output)


def _named(jobs: Sequence[Job], naming: _Naming) -> tuple[Job, ...]:
    """The jobs with names that tell them apart within each folder."""
    places = [(job.target.parent.resolve(), job.source.stem) for job in jobs]
    times = Counter(places)
    return tuple(
        replace(
            job, name=(job.source.stem if times[place] == 1 else job.source.name) + naming.suffix
        )
        for job, place in zip(jobs, places, strict=True)
    )


def _folder(output: str | Path) -> Path:
    """The output as a folder, which need not exist yet."""
    path = Path(output)
    if path.is_file() or (path.suffix.lower() in EXTENSIONS and not path.exists()):
        raise OutputError(f"{path} names one file, but what is to be written needs a folder")
    return path


def _pictures(folder: Path, naming: _Naming) -> list[Path]:
    pictures = {
        path
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS
        and not path.name.startswith(".")
        and not path.stem.endswith(MARKS)
        and path.is_file()
    }
    if naming.suffix:
        pictures -= {naming.within(folder, path) for path in pictures}
    if not pictures:
        raise ImageError(f"{folder} holds no pictures")
    return sorted(pictures)


def _check(jobs: Sequence[Job], overwrite: bool) -> None:
    """Raises OutputError if doing these jobs would destroy anything."""
    taken: dict[object, Path] = {}
    singles = [(path, job.source) for job in jobs for path in job.singles]
    series = [(path, job.source) for job in jobs for path in job.series]
    for path, source in series:
        _claim(taken, _series(path), path, source)
    for path, source in singles:
        _claim(taken, _identity(path), path, source)
        if _series(path) in taken:
            _claim(taken, _series(path), path, source)
    folders = sorted({path.parent for path, _ in series})
    members = [path for folder in folders for path in _list(folder) if _series(path) in taken]
    inputs = {_identity(job.source) for job in jobs}
    for path in (*(path for path, _ in singles), *members):
        if _identity(path) in inputs:
            raise OutputError(f"{path} is an input, and inputs are never overwritten")
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists; only --overwrite replaces it")


def _claim(taken: dict[object, Path], key: object, path: Path, source: Path) -> None:
    if key in taken:
        raise OutputError(f"{taken[key]} and {source} would both be written to {path}")
    taken[key] = source


def _series(path: Path) -> object:
    """What numbered files of one picture have in common; None if this is not numbered."""
    match = _NUMBERED.fullmatch(path.name)
    return (_identity(path.parent), match[1]) if match else None


def _list(folder: Path) -> list[Path]:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, but what is to be written needs a folder")
    return sorted(folder.iterdir()) if folder.exists() else []


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
