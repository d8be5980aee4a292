"""Results are written under temporary names, then renamed, so that none is ever partial."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from cfrestore.batch.job import KEPT, Job
from cfrestore.batch.manifest import Fingerprint
from cfrestore.errors import OutputError
from cfrestore.files import settle
from cfrestore.image import Photo

Ended = TypeVar("Ended")

_DRAFT = re.compile(r"\.cfrestore-([0-9a-f]{16})-[0-9a-f]{8}\.tmp")


class Writer(Protocol):
    """Encodes a photograph to a stream, and says in sentences what was lost; as `write_photo`."""

    def __call__(self, photo: Photo, target: BinaryIO, *, format: str | None) -> Sequence[str]: ...


def put(
    files: Iterable[tuple[Path, Photo]],
    job: Job,
    write: Writer,
    record: Callable[[Mapping[Path, Fingerprint], Sequence[str]], Ended],
) -> Ended:
    """Writes all files of a job or, if one cannot be written, none.

    Args:
        files: what is to be written where, the result of the job last.
        job: whose files they are.
        write: encodes a photograph.
        record: called just before the renaming, with the fingerprint of each file, if the job has
            a manifest, and the writer's notes.
    Returns:
        what record returned.
    Raises:
        OutputError: something cannot be encoded or written.
    """
    drafts: dict[Path, Path] = {}
    notes: list[str] = []
    try:
        for path, photo in files:
            if path.exists() and not path.is_file():  # a device or a pipe
                with path.open("wb") as stream:
                    notes += write(photo, stream, format=_format(path, photo, job))
                continue
            place = Path(os.path.realpath(path))
            _make_folder(place.parent)
            drafts[path] = place.with_name(f".cfrestore-{_key(job)}-{secrets.token_hex(4)}.tmp")
            notes += _write(photo, drafts[path], path, write, _format(path, photo, job))
        prints = {path: Fingerprint.of(draft) for path, draft in drafts.items() if job.manifest}
        ended = record(prints, tuple(dict.fromkeys(notes)))  # samples all have the same notes
        for path, draft in drafts.items():
            settle(draft, path)
        return ended
    except OSError as error:
        raise OutputError(f"{job.target} cannot be written: {error.strerror or error}") from error
    finally:
        for draft in drafts.values():
            with suppress(OSError):
                draft.unlink(missing_ok=True)


def sweep(jobs: Iterable[Job]) -> None:
    """Removes the temporary files that killed runs of these jobs left behind.

    A run of the same jobs that is still alive loses its drafts, and those jobs fail.
    """
    keys: dict[Path, set[str]] = {}
    for job in jobs:
        for folder in _folders(job):
            keys.setdefault(folder, set()).add(_key(job))
    for folder, in_folder in keys.items():
        with suppress(OSError):
            for path in folder.iterdir():
                match = _DRAFT.fullmatch(path.name)
                if match and match[1] in in_folder:
                    path.unlink(missing_ok=True)


def _folders(job: Job) -> Iterator[Path]:
    if isinstance(job.target, Path):
        yield Path(os.path.realpath(job.target)).parent
        for name in KEPT:
            if name in job.kept:
                yield Path(os.path.realpath(job.folder(name)))


def _key(job: Job) -> str:
    """The part of a job's draft names that identifies the job, in any folder."""
    name = job.target.name if isinstance(job.target, Path) else str(job.target)
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def _write(photo: Photo, draft: Path, path: Path, write: Writer, format: str) -> Sequence[str]:
    """Writes a draft and syncs it to the disk."""
    with draft.open("xb", buffering=0) as stream:
        stream.name = str(path)  # the name in messages
        notes = write(photo, stream, format=format)
        os.fsync(stream.fileno())
    return notes


def _format(path: Path, photo: Photo, job: Job) -> str:
    return (job.ending or photo.format) if path == job.target else path.suffix


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made: {error.strerror}") from error
