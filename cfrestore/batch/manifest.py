"""What earlier runs have done, so that the next does only what is missing or has changed.

A manifest is kept in a folder of results or, where pictures are replaced in place, in the folder
that was given. Results beside their sources, single files and streams have none.

It is a JSON Lines file, one line per picture that was written or failed, and only ever grows. A
line, with the SHA-256 of its results, is on the disk before the results get their names: so any
recorded file that exists is complete and ours, even after `kill -9`; a line whose result never
appeared has no effect. Each shard has a file of its own, because machines cannot be relied on to
append to a shared one. All files are read together, as a set without order.

A result is made again, and replaced without --overwrite, if its source or a setting has changed
since, or if it is empty or cut short. A result that somebody has edited is no longer ours, and
stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cfrestore.batch.job import Job
from cfrestore.batch.outcome import SCHEMA, Outcome
from cfrestore.errors import ImageError, OutputError
from cfrestore.files import exists, is_file, sha256_of
from cfrestore.image import EXTENSIONS, read_photo
from cfrestore.image.formats import kind_of

_ALWAYS_READ = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")
"""Formats of which every undamaged picture can be read; the others have variants that cannot."""

_APPENDING = threading.Lock()


def manifest_in(folder: Path, shard: tuple[int, int] | None = None) -> Path:
    """The file that a run records in; each shard has its own."""
    name = f".cfrestore-{shard[0]}-of-{shard[1]}.jsonl" if shard else ".cfrestore.jsonl"
    return folder / name


@dataclass(frozen=True)
class Fingerprint:
    """Identifies one version of a file's content.

    Attributes:
        size: in bytes.
        time: of its last change, in nanoseconds.
        sha256: of its bytes, hexadecimal.
    """

    size: int
    time: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Fingerprint:
        """The fingerprint of a file now; raises OSError if it cannot be read."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, sha256_of(path))

    def fits(self, path: Path) -> bool:
        """Whether a file has this content; its bytes are hashed only if its time differs."""
        try:
            status = path.stat()
            if status.st_size != self.size or not path.is_file():
                return False
            return status.st_mtime_ns == self.time or sha256_of(path) == self.sha256
        except OSError:
            return False

    def is_cut(self, path: Path) -> bool:
        """Whether a file seems to be a truncated copy of this content, and not an edited one.

        It is either empty, or shorter and too damaged to be read. Files in formats of which not
        every picture can be read (all but _ALWAYS_READ) do not count: they may be undamaged.
        """
        try:
            status = path.stat()
            if not path.is_file() or status.st_size >= self.size:
                return False
            if status.st_size == 0:
                return True
            with path.open("rb") as stream:
                kind = kind_of(stream.read(64))
            if kind not in _ALWAYS_READ or kind != EXTENSIONS.get(path.suffix.lower()):
                return False
            read_photo(path)
        except ImageError:
            return True
        except OSError:
            return False
        return False

    def is_recent(self, path: Path) -> bool:
        """Whether a file still has this size and time of change."""
        try:
            status = path.stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.size, self.time)

    def to_json(self) -> list[Any]:
        return [self.size, self.time, self.sha256]

    @classmethod
    def from_json(cls, values: Any) -> Fingerprint:
        """The fingerprint that `to_json` wrote; raises TypeError or ValueError for others."""
        size, time, sha256 = values
        if not (isinstance(size, int) and isinstance(time, int) and isinstance(sha256, str)):
            raise TypeError(f"no fingerprint: {values!r}")
        return cls(size, time, sha256)


def digest_of(settings: Mapping[str, object]) -> str:
    """SHA-256 of settings, whatever their order."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """One picture that an earlier run has written.

    Attributes:
        source: path of the picture, relative to the folder of the manifest.
        settings: digest of the settings that it was made with.
        input: fingerprint of the picture; None if it was no file.
        outputs: fingerprints of what was written, by path relative to the folder of the manifest.
        outcome: what was reported.
        task: name of the task; None in records of earlier versions.
    """

    source: str
    settings: str
    input: Fingerprint | None
    outputs: Mapping[str, Fingerprint]
    outcome: Outcome
    task: str | None = None


@dataclass(frozen=True)
class Manifest:
    """All that is recorded in one folder.

    Attributes:
        folder: where.
        records: by path of a result, relative to the folder.
    """

    folder: Path
    records: Mapping[str, tuple[Record, ...]]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifests of all shards in a folder together.

        Damaged lines, such as the last one after a crash, are ignored.
        """
        records: dict[str, tuple[Record, ...]] = {}
        for path in sorted(folder.glob(".cfrestore*.jsonl")):
            for record in _read(path):
                for output in record.outputs:
                    records[output] = (*records.get(output, ()), record)
        return cls(folder, records)

    @cached_property
    def _by_source(self) -> Mapping[str, tuple[str, ...]]:
        """Paths of results by the picture that they were made from."""
        outputs: dict[str, dict[str, None]] = {}
        for output, records in self.records.items():
            for record in records:
                outputs.setdefault(record.source, {})[output] = None
        return {source: tuple(names) for source, names in outputs.items()}

    def part(self, job: Job) -> Manifest:
        """The part that concerns a job."""
        names = self._by_source.get(self._source_of(job), ())
        return Manifest(self.folder, {name: self.records[name] for name in names})

    def knows(self, path: Path, job: Job) -> bool:
        """Whether a run wrote that file from the job's picture, even if it was edited since."""
        return any(self._records(path, job))

    def wrote(self, path: Path, job: Job) -> bool:
        """Whether the file is still as a run wrote it from the job's picture."""
        name = relative(path, self.folder)
        return any(record.outputs[name].fits(path) for record in self._records(path, job))

    def lost(self, path: Path, job: Job) -> bool:
        """Whether a run wrote that file from the job's picture, and it has been cut short since."""
        name = relative(path, self.folder)
        return any(record.outputs[name].is_cut(path) for record in self._records(path, job))

    def outdated(self, job: Job, written: Iterable[Path]) -> tuple[Path, ...]:
        """Existing numbered files that runs made from the job's picture, other than `written`.

        Files that were edited since are among them; `wrote` tells which.
        """
        now = {relative(path, self.folder) for path in written}
        names = self._by_source.get(self._source_of(job), ())
        old = (self.folder / native(name) for name in names if name not in now)
        numbered = (job.folder(p.parent.name) / p.name for p in old if job.has_numbered(p))
        return tuple(filter(exists, numbered))

    def finished(self, job: Job, settings: str) -> Record | None:
        """The record of a run of this job with these settings, if all it wrote is still intact.

        A result that was edited since counts as well, unless files may be overwritten: the edit is
        not ours to undo. A result that was cut short does not. The source is not compared if it was
        replaced in place, because it now is the result.
        """
        assert isinstance(job.target, Path)
        edited = (
            job.target.exists()
            and not (job.overwrite or job.in_place)
            and not self.wrote(job.target, job)
            and not self.lost(job.target, job)
        )
        for record in self.records.get(relative(job.target, self.folder), ()):
            same = record.settings == settings and (job.in_place or self._same_input(record, job))
            if same and (edited or self._intact(record)):
                return record
        return None

    def replaced(self, job: Job, task: str | None) -> Record | None:
        """The record of a run that restored faces in place and wrote the picture as it is now.

        Args:
            task: that of the run; a run whose task is not on record counts too, to be safe.
        """
        assert isinstance(job.target, Path)
        name = relative(job.target, self.folder)
        for record in self._records(job.target, job):
            alike = record.task in (task, None) and record.outcome.restored
            if alike and record.outputs[name].fits(job.target):
                return record
        return None

    def _records(self, path: Path, job: Job) -> Iterator[Record]:
        source = self._source_of(job)
        for record in self.records.get(relative(path, self.folder), ()):
            if record.source == source:
                yield record

    def _source_of(self, job: Job) -> str:
        """The job's picture, spelled as in Record.source; empty if it is no file."""
        return relative(job.source, self.folder) if isinstance(job.source, Path) else ""

    def _intact(self, record: Record) -> bool:
        return all(
            written.fits(self.folder / native(name)) for name, written in record.outputs.items()
        )

    def _same_input(self, record: Record, job: Job) -> bool:
        return (
            record.input is not None
            and isinstance(job.source, Path)
            and record.input.fits(job.source)
        )


def _read(path: Path) -> Iterator[Record]:
    if not is_file(path):  # a pipe would never end
        return
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        record = _parse(line)
        if record is not None:
            yield record


def _parse(line: bytes) -> Record | None:
    try:
        values = json.loads(line)
        if values["schema"] != SCHEMA or values["status"] != "done":
            return None
        before = values["input"]
        return Record(
            _portable(values["source"]),
            values["settings"],
            Fingerprint.from_json(before) if before else None,
            {_portable(k): Fingerprint.from_json(v) for k, v in values["outputs"].items()},
            Outcome.from_json(values),
            values.get("task"),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def record_outcome(
    outcome: Outcome,
    settings: str,
    input: Fingerprint | None = None,
    outputs: Mapping[Path, Fingerprint] | None = None,
    task: str | None = None,
) -> None:
    """Appends a line to the manifest of the outcome's job, if it has one, and syncs it to disk.

    Raises:
        OutputError: it cannot be written.
    """
    path, source = outcome.job.manifest, outcome.job.source
    if path is None:
        return
    folder = path.parent
    values = outcome.to_json() | {
        "source": relative(source, folder) if isinstance(source, Path) else str(source),
        "settings": settings,
        "task": task,
        "input": input.to_json() if input else None,
        "outputs": {
            relative(name, folder): value.to_json() for name, value in (outputs or {}).items()
        },
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _append(path, json.dumps(values, ensure_ascii=True).encode() + b"\n")
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"{outcome.job.target} is not written, because its record in {path} cannot be: {reason}"
        ) from error


def collect(path: Path, pattern: str) -> None:
    """Moves the lines of neighbouring manifests, which are no longer written to, into one."""
    for part in sorted(path.parent.glob(pattern)):
        _append(path, part.read_bytes())
        part.unlink()


def _append(path: Path, lines: bytes) -> None:
    with _APPENDING, path.open("ab+", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a line was cut short
                lines = b"\n" + lines
        if file.write(lines) != len(lines):
            raise OSError(f"{path} could not be written to its end")
        os.fsync(file.fileno())


def relative(path: Path, folder: Path) -> str:
    """The path relative to a folder as manifests hold it; absolute if there is no relative one."""
    try:
        name = Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # two drives of Windows
        name = path.absolute().as_posix()
    return _portable(os.fsencode(name))


def _portable(name: str | bytes) -> str:
    """A file name as manifests hold it, the same in every locale: UTF-8, other bytes escaped."""
    data = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
    return data.decode("utf-8", "surrogateescape")


def native(name: str) -> Path:
    """The path of a name in a manifest, as this process spells it."""
    return Path(os.fsdecode(name.encode("utf-8", "surrogateescape")))
