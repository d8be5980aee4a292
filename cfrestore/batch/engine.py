"""Runs jobs so that reading and detection, painting, and pasting and writing overlap.

Pictures pass through these stages in the order of their jobs. Threads read them and cut out their
faces; the caller's thread gives faces of several pictures to the network together; other threads
paste and write. Which faces share a batch depends on the order of the pictures alone, not on time.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from PIL import Image

from cfrestore.batch.ahead import ahead, completed, grouped, threads
from cfrestore.batch.drafts import Writer, put, sweep
from cfrestore.batch.job import COMPARED, CROPS, RESTORED, SAMPLES, Job, Place, Stream
from cfrestore.batch.ledger import (
    FailureError,
    Ledger,
    failing,
    left_as_it_is,
    manifests_of,
)
from cfrestore.batch.manifest import Fingerprint, Manifest
from cfrestore.batch.outcome import Outcome, outcome_of
from cfrestore.errors import CheckpointError, ConfigError, ImageError
from cfrestore.image import Photo, read_photo, writable_format, write_photo
from cfrestore.show import side_by_side

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cfrestore.align import AlignedFace
    from cfrestore.procedure import PaintedFace, Prepared, Procedure, Restoration

Reader: TypeAlias = Callable[[Path | BinaryIO], Photo]

WORKERS = min(4, os.cpu_count() or 1)
"""Threads that read, and as many that write, if painting needs the processor too."""

MOST_WORKERS = min(16, os.cpu_count() or 1)
"""The same if the faces are painted on a card."""

PIXELS_AHEAD = 100_000_000
"""Most pixels in the pictures of each stage: being read, waiting for the network, being written."""

PICTURES_AHEAD = 64
"""Most pictures that wait for the network."""

_UNKNOWN_PIXELS = 25_000_000
"""Pixels that a picture is assumed to have if its header does not tell."""


def run(
    jobs: Sequence[Job],
    procedure: Procedure,
    *,
    workers: int | None = None,
    read: Reader = read_photo,
    write: Writer = write_photo,
    settings: Mapping[str, object] | None = None,
    stdin: BinaryIO | None = None,
    stdout: BinaryIO | None = None,
) -> Generator[Outcome, None, None]:
    """Runs the jobs; one that fails is reported, and the others go on.

    Results do not depend on the number of workers, nor, on the CPU, on what shares a batch. A
    picture is written with all its files or with none, and recorded; what an earlier run has done
    with the same settings is not repeated. If the iterator is closed or interrupted, pictures that
    are being written are still completed, but no others. KeyboardInterrupt, also if it is thrown
    into the iterator, is raised again after the outcomes of these.

    If a card paints more than a few pictures, torch uses one CPU thread in each thread of the
    process, the caller's too, until the iterator ends or is closed.

    Args:
        jobs: from `plan`.
        procedure: what is done to each picture; a Pipeline makes it.
        workers: threads that read, and as many that write; None: WORKERS or MOST_WORKERS.
        read: `read_photo` with its options.
        write: `write_photo` with its options.
        settings: the options of read and write that decide the results, as the procedure's
            settings do.
        stdin, stdout: for jobs that read or write one.
    Yields:
        an outcome per job, in their order.
    Raises:
        ConfigError: the settings suit no picture, or a stream is missing.
    """
    all_settings = {**procedure.settings, **(settings or {})}
    io = PictureIO(read, write, Ledger(all_settings, manifests_of(jobs)), stdin, stdout)
    processor = FaceProcessor(io, procedure)
    sweep(jobs)
    spared = procedure.spares_processor
    if workers is None:
        workers = MOST_WORKERS if spared else WORKERS
    count, weight = in_progress(workers, procedure), PIXELS_AHEAD
    writing: deque[tuple[Future[Outcome], int]] = deque()
    try:
        with ExitStack() as stack:
            if spared and min(workers, len(jobs)) >= WORKERS:  # they keep the cores busy themselves
                from cfrestore.device import one_thread

                stack.enter_context(one_thread())
            # The caller's thread reads a single picture, since reading stdin can be interrupted.
            readers, writers = (
                stack.enter_context(threads(workers)) if len(jobs) > 1 else None
                for _ in ("read", "write")
            )
            begun = ahead(readers, processor.begin, jobs, _pixels_of, count=count, weight=weight)
            painted, size = processor.painted(begun), processor.pixels_to_write
            yield from ahead(
                writers,
                processor.finish,
                painted,
                size,
                count=count,
                weight=weight,
                prompt=True,
                begun=writing,
            )
    except KeyboardInterrupt:
        yield from completed(writing)
        raise


def in_progress(workers: int, procedure: Procedure) -> int:
    """Most pictures that are in a step, or wait for the next one.

    They are more than a batch of faces comes from, so that others are read while it is painted, and
    it can be handed on while earlier ones are written.
    """
    return 2 * workers + min(procedure.batch_size, PICTURES_AHEAD)


@dataclass(frozen=True, eq=False)
class Opened:
    """A picture that has been read.

    Attributes:
        holder: a list of one photograph, which the next stage pops, see `_Begun`.
    """

    job: Job
    fingerprint: Fingerprint | None
    holder: list[Photo]
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class _Begun:
    """A picture that has been read, and its faces cut out.

    Attributes:
        holder: a list of one (photo, prepared) pair, which pasting pops, so that its memory is
            freed.
        faces: those of the prepared photograph.
        pixels: how many the photograph has.
    """

    job: Job
    fingerprint: Fingerprint | None
    holder: list[tuple[Photo, Prepared]]
    faces: Sequence[AlignedFace]
    pixels: int
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class _PaintedPicture:
    """A picture whose faces have been painted."""

    begun: _Begun
    faces: Sequence[PaintedFace]


@dataclass(frozen=True, eq=False)
class Pasted:
    """A picture that is to be written.

    Attributes:
        fingerprint: of the file that was read.
        files: what is to be written where, the result of the job last.
        outcome: of the job, once the files are written.
    """

    job: Job
    fingerprint: Fingerprint | None
    files: list[tuple[Place, Photo]]
    outcome: Outcome


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the seconds spent in this context to those of a stage."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0) + time.perf_counter() - start


@dataclass(frozen=True, eq=False)
class PictureIO:
    """Reads, writes and records pictures; needs no network. See `run`.

    Attributes:
        stdin, stdout: for jobs that read or write one.
    """

    read: Reader
    write: Writer
    ledger: Ledger
    stdin: BinaryIO | None = None
    stdout: BinaryIO | None = None

    def knowing(self, manifests: Mapping[Path, Manifest]) -> PictureIO:
        """A copy whose ledger has these manifests."""
        return replace(self, ledger=replace(self.ledger, manifests=manifests))

    def open(self, job: Job) -> Opened | Outcome:
        """Reads a picture."""
        return self.ledger.tried(job, "unreadable", lambda: self._open(job))

    def _open(self, job: Job) -> Opened | Outcome:
        self.ledger.check_free(job.singles, job)
        seconds: dict[str, float] = {}
        source = job.source if isinstance(job.source, Path) else None
        with timed(seconds, "read"):
            fingerprint = _fingerprint(source) if source and job.manifest else None
            photo = self.read(source or self._given(self.stdin, job.source))
            if source and fingerprint and not fingerprint.is_recent(source):
                raise FailureError("modified", f"{source} was written to while it was read")
        with failing(job, "unwritable"):  # checked now, so that no face is painted in vain
            writable_format(job.ending or photo.format, str(job.target))
        if job.once and self.ledger.has_made(photo, job):
            return left_as_it_is(job, Outcome(job, notes=photo.notes))
        if job.in_place and photo.lost:
            lost = " and ".join(text[0].lower() + text[1:].rstrip(".") for text in photo.lost)
            text = f"{job.source} is not replaced, because its result holds less: {lost}"
            raise FailureError("refused", f"{text}; write it elsewhere with -o")
        return Opened(job, fingerprint, [photo], seconds)

    def close(self, picture: Pasted | Outcome) -> Outcome:
        """Writes a result and records it."""
        if isinstance(picture, Outcome):
            return picture
        return self.ledger.tried(picture.job, "unwritable", lambda: self._close(picture))

    def _close(self, picture: Pasted) -> Outcome:
        job, start = picture.job, time.perf_counter()

        def outcome(notes: Sequence[str]) -> Outcome:
            seconds = {**picture.outcome.seconds, "write": time.perf_counter() - start}
            return replace(picture.outcome, notes=(*picture.outcome.notes, *notes), seconds=seconds)

        if isinstance(job.target, Stream):
            photo = picture.files[-1][1]
            stream = self._given(self.stdout, job.target)
            return outcome(self.write(photo, stream, format=job.format or photo.format))

        files = [(path, photo) for path, photo in picture.files if isinstance(path, Path)]
        written = [path for path, _ in files]
        self.ledger.check_free(written, job)
        outdated, left = self.ledger.earlier_files(job, written, len(picture.outcome.faces))

        def record(prints: Mapping[Path, Fingerprint], notes: Sequence[str]) -> Outcome:
            ended = outcome((*notes, *(f"{path} is left from an earlier run." for path in left)))
            self.ledger.record(ended, picture.fingerprint, prints)
            for path in outdated:  # before the renaming; if the run dies here, all is made again
                path.unlink(missing_ok=True)
            return ended

        return put(files, job, self.write, record)

    def _given(self, stream: BinaryIO | None, place: Place) -> BinaryIO:
        if stream is None:
            raise ConfigError(f"{place} is closed or was not given, but a picture needs it")
        return stream


@dataclass(frozen=True, eq=False)
class FaceProcessor:
    """Finds, paints and pastes faces."""

    io: PictureIO
    procedure: Procedure

    def begin(self, job: Job) -> _Begun | Outcome:
        """Reads a picture and cuts out its faces, unless its outcome is already known."""
        return self.io.ledger.earlier(job) or self.find(self.io.open(job))

    def find(self, picture: Opened | Outcome) -> _Begun | Outcome:
        """Cuts out the faces of a picture."""
        if isinstance(picture, Outcome):
            return picture
        return self.io.ledger.tried(picture.job, "unsuitable", lambda: self._find(picture))

    def _find(self, picture: Opened) -> _Begun:
        job, photo = picture.job, picture.holder.pop()
        with timed(picture.seconds, "find"):
            try:
                prepared = self.procedure.prepare(photo)
            except ImageError as error:
                text = f"{job.source} cannot be worked on: {error}"
                raise ImageError(text) from error
        holder, pixels = [(photo, prepared)], math.prod(photo.size)
        return _Begun(job, picture.fingerprint, holder, prepared.faces, pixels, picture.seconds)

    def painted(self, pictures: Iterable[_Begun | Outcome]) -> Iterator[_PaintedPicture | Outcome]:
        """Paints pictures in order, in groups with enough faces for a batch where possible."""
        groups = grouped(
            pictures,
            lambda picture: len(picture.faces) if isinstance(picture, _Begun) else 0,
            lambda picture: picture.pixels if isinstance(picture, _Begun) else 0,
            enough=self.procedure.batch_size,
            count=PICTURES_AHEAD,
            weight=PIXELS_AHEAD,
        )
        return chain.from_iterable(map(self.paint, groups))

    def paint(self, pictures: Sequence[_Begun | Outcome]) -> Iterator[_PaintedPicture | Outcome]:
        """Paints the faces of several pictures together; if that fails, one picture at a time."""
        try:
            painted = iter(self._paint([p for p in pictures if isinstance(p, _Begun)]))
        except FailureError as failure:
            if len(pictures) > 1:
                for picture in pictures:
                    yield from self.paint([picture])
            else:
                yield self.io.ledger.failed(pictures[0].job, failure)
            return
        for picture in pictures:
            yield next(painted) if isinstance(picture, _Begun) else picture

    def _paint(self, pictures: Sequence[_Begun]) -> list[_PaintedPicture]:
        faces = [face for picture in pictures for face in picture.faces]
        if not faces:
            return [_PaintedPicture(picture, ()) for picture in pictures]
        seconds: dict[str, float] = {}
        with timed(seconds, "paint"), failing(pictures[0].job, "unsuitable"):
            painted = iter(self.procedure.paint(faces))
        results = []
        for picture in pictures:
            in_picture = tuple(islice(painted, len(picture.faces)))
            picture.seconds["paint"] = seconds["paint"] * len(in_picture) / len(faces)
            results.append(_PaintedPicture(picture, in_picture))
        return results

    def paste(self, picture: _PaintedPicture | Outcome) -> Pasted | Outcome:
        """Pastes the faces of a picture."""
        if isinstance(picture, Outcome):
            return picture
        begun, faces = picture.begun, picture.faces
        return self.io.ledger.tried(begun.job, "unwritable", lambda: self._paste(begun, faces))

    def _paste(self, begun: _Begun, faces: Sequence[PaintedFace]) -> Pasted:
        job, seconds = begun.job, begun.seconds
        photo, prepared = begun.holder.pop()
        with timed(seconds, "paste"):
            restoration = self._finished(job, prepared, faces)
            files: list[tuple[Place, Photo]] = [*_kept(job, photo, restoration)]
        files.append((job.target, restoration.photo))
        outcome = outcome_of(job, restoration, photo.notes, seconds)
        return Pasted(job, begun.fingerprint, files, outcome)

    def _finished(self, job: Job, prepared: Prepared, faces: Sequence[PaintedFace]) -> Restoration:
        with failing(job, "unsuitable"):
            try:
                return prepared.finish(faces)
            except CheckpointError as error:
                raise CheckpointError(f"{job.source} cannot be worked on: {error}") from error

    def finish(self, picture: _PaintedPicture | Outcome) -> Outcome:
        """Pastes faces, writes the result and records it."""
        return self.io.close(self.paste(picture))

    def pixels_to_write(self, picture: _PaintedPicture | Outcome) -> int:
        """How many pixels the result has."""
        if isinstance(picture, Outcome):
            return 0
        return picture.begun.pixels * self.procedure.upscale**2


def _fingerprint(source: Path) -> Fingerprint | None:
    """The fingerprint of a file; None if it is no regular file or cannot be read."""
    with suppress(OSError):
        if source.is_file():
            return Fingerprint.of(source)
    return None


def _pixels_of(job: Job) -> int:
    """Number of pixels according to the file's header, or _UNKNOWN_PIXELS if it does not tell."""
    if job.refusal or not isinstance(job.source, Path):
        return _UNKNOWN_PIXELS
    try:
        if not job.source.is_file():
            return _UNKNOWN_PIXELS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(job.source) as image:
                return image.width * image.height
    except Image.DecompressionBombError:
        return PIXELS_AHEAD
    except Exception:  # noqa: BLE001, reported when it is read
        return _UNKNOWN_PIXELS


def _kept(job: Job, photo: Photo, restoration: Restoration) -> Iterator[tuple[Path, Photo]]:
    """The pictures for the folders beside the result."""
    for index, face in restoration.numbered:
        if CROPS in job.kept:
            yield job.numbered(CROPS, index), _portrait(face.aligned.crop, photo)
        if RESTORED in job.kept:
            yield job.numbered(RESTORED, index), _portrait(face.crop, photo)
    if COMPARED in job.kept:
        yield job.comparison, side_by_side(photo, restoration.photo)
    if SAMPLES in job.kept:
        for index, sample in enumerate(restoration.samples):
            yield job.numbered(SAMPLES, index), sample


def _portrait(crop: NDArray[np.uint8], photo: Photo) -> Photo:
    """One face as a picture of its own, in the colour space of the photograph."""
    return Photo(crop, gray=photo.gray, icc=photo.icc)
