"""Fetches published files: complete and verified, or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from cfrestore.errors import WeightsError
from cfrestore.weights.digests import expected_sha256, pin, remember
from cfrestore.weights.environment import offline, store_folder
from cfrestore.weights.hub import hub_url
from cfrestore.weights.store import locate, missing
from cfrestore.weights.table import WeightFile, weight_file
from cfrestore.weights.transport import (
    BrokenError,
    RangeError,
    RefusedError,
    SilentError,
    answer,
    blocks,
    start_of,
)

PAUSES = (0.5, 1.0, 2.0)
"""Seconds before each retry with a server whose transfers break."""

LARGEST = 1 << 32
"""Largest file accepted, in bytes, where no size is on record."""

_STEP = 1 << 20  # an attempt that transferred this many bytes does not count as failed


class UnreachableError(WeightsError):
    """A weight file cannot be fetched because no server that has it can be reached."""


@dataclass(frozen=True)
class Progress:
    """The progress of a download.

    Attributes:
        file: its name on disk.
        done: bytes received.
        total: bytes in all, None while unknown.
        remark: one sentence for the user, or empty.
    """

    file: str
    done: int = 0
    total: int | None = None
    remark: str = ""


Report = Callable[[Progress], None]


def sources(row: WeightFile) -> tuple[str, ...]:
    """The URLs of a file, in the order in which they are tried."""
    mirror = hub_url(row.hub) if row.hub else None
    return (*row.urls, mirror) if mirror else row.urls


def fetch(name: str, report: Report | None = None) -> Path:
    """Returns the path of a published file, after fetching it if it is not on this machine.

    The download is `FILE.part` in the store, resumes there after an interruption, and gets its
    final name only once its SHA-256 is verified. Several processes may fetch one file at once.

    Args:
        name: the file's name in the table of weight files.
        report: called with every block that arrives, and with remarks.
    Raises:
        ConfigError: the table has no such name.
        UnreachableError: no server that has it can be reached.
        WeightsError: fetching is forbidden, no server has the right bytes, they cannot be stored,
            or a local file of this name has the wrong ones.
    """
    row, folder, tell = weight_file(name), store_folder(), report or _ignore
    here = locate(name)
    if here is not None:
        return here
    if offline():
        raise missing(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(row, folder, tell):
            return locate(name) or _download(row, folder, tell)
    except OSError as error:  # a disk error; network errors are converted further down
        raise WeightsError(
            f"{row.file} of {row.urls[0]} cannot be stored in {folder}: {error.strerror or error}"
        ) from error


def _ignore(progress: Progress) -> None:
    pass


@contextmanager
def _alone(row: WeightFile, folder: Path, tell: Report) -> Iterator[None]:
    """Locks out other processes; the system releases the lock if this process dies."""
    lock = FileLock(folder / f".{row.file}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(Progress(row.file, remark=f"Another process is fetching {row.file}; waiting for it."))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(row: WeightFile, folder: Path, tell: Report) -> Path:
    part, target = folder / f"{row.file}.part", folder / row.file
    failures: list[tuple[str, RefusedError]] = []
    for url in sources(row):
        try:
            digest = _obtain(row, url, part, tell)
        except RefusedError as error:
            failures.append((url, error))
            continue
        part.replace(target)
        remember(target, digest)
        if expected_sha256(row) is None:
            pin(row, digest)
            tell(Progress(row.file, remark=_first_sight(row, digest)))
        return target
    silent = all(isinstance(error, SilentError) for _, error in failures)
    kind = UnreachableError if silent else WeightsError
    reasons = "; ".join(f"{url} {error}" for url, error in failures)
    raise kind(f"{row.file} could not be fetched: {reasons}")


def _first_sight(row: WeightFile, digest: str) -> str:
    return (
        f"No SHA-256 of {row.file} is on record, so it could not be verified; from now on only "
        f"the one it has is accepted: {digest}."
    )


def _obtain(row: WeightFile, url: str, part: Path, tell: Report) -> str:
    """Downloads the whole file from one server into the part, and returns its verified SHA-256.

    Raises:
        RefusedError: this server does not supply it.
    """
    expected = expected_sha256(row)
    while True:
        continued = expected is not None and part.exists()
        digest = _persist(row, url, part, tell)
        if expected is None and not _looks_like_weights(part):
            part.unlink()
            raise RefusedError(f"sent no weight file, but something of SHA-256 {digest}")
        if expected in (None, digest):
            return digest
        part.unlink()
        if not continued:
            pinned = (
                ""
                if row.sha256
                else f" as first seen here, which `cfrestore weights remove {row.name}` forgets"
            )
            raise RefusedError(f"sent a file of SHA-256 {digest}, expected {expected}{pinned}")
        tell(Progress(row.file, remark=f"{part} was not of this file; starting anew."))


def _looks_like_weights(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80" or zipfile.is_zipfile(path)


def _persist(row: WeightFile, url: str, part: Path, tell: Report) -> str:
    """Continues the part until it is complete, retrying broken transfers; returns its SHA-256."""
    pauses, most = iter(PAUSES), 0
    while True:
        try:
            return _continue(row, url, part, tell)
        except BrokenError as error:
            size = part.stat().st_size if part.exists() else 0
            if size >= most + _STEP:
                pauses, most = iter(PAUSES), size
            pause = next(pauses, None)
            if pause is None:
                raise RefusedError(f"{error}, again and again") from error
            tell(Progress(row.file, remark=f"{url} {error}; trying again in {pause:g} s."))
            time.sleep(pause)


def _continue(row: WeightFile, url: str, part: Path, tell: Report) -> str:
    """Requests the rest of the part once, appends it, and returns the SHA-256 of the whole.

    Raises:
        RefusedError: the size is not the expected one.
        BrokenError: the part is still incomplete.
    """
    digest, done = hashlib.sha256(), 0
    if expected_sha256(row):  # a part that cannot be verified is not continued
        done = _read(part, digest)
    if row.bytes is not None and done >= row.bytes:
        return digest.hexdigest()
    try:
        with answer(url, done) as response:
            start = start_of(response)
            if start not in (0, done):
                raise RangeError(f"sent bytes from {start} instead of {done} on")
            if start != done:
                digest, done = hashlib.sha256(), 0
            total = _total(row, done, response.length)
            _make_room(row, part, total - done)
            with part.open("ab" if done else "wb") as file:
                for block in blocks(response):
                    done += len(block)
                    if done > total:
                        file.truncate(0)
                        raise RefusedError(f"sends more than the {total} bytes expected")
                    file.write(block)
                    digest.update(block)
                    tell(Progress(row.file, done, total))
                file.flush()
                os.fsync(file.fileno())
    except RangeError:
        part.unlink(missing_ok=True)
        raise
    if done < total:
        raise BrokenError(f"broke off after {done} of {total} bytes")
    return digest.hexdigest()


def _read(part: Path, digest: hashlib._Hash) -> int:
    """Feeds the existing part to the digest, and returns its length."""
    if not part.exists():
        return 0
    with part.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
        return file.tell()


def _total(row: WeightFile, done: int, length: int | None) -> int:
    """The file's full size by the table and the server, which must agree."""
    offered = None if length is None else done + length
    if offered is not None and row.bytes not in (None, offered):
        raise RefusedError(f"offers a file of {offered} bytes, expected {row.bytes}")
    total = row.bytes or offered
    if total is None:
        raise RefusedError("does not say how long the file is")
    if total > LARGEST:
        raise RefusedError(f"offers a file of {total} bytes, expected less than {LARGEST}")
    return total


def _make_room(row: WeightFile, part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise WeightsError(
            f"{row.file} needs {needed} more bytes in {part.parent}, where {free} are free"
        )
