"""Pictures behind URLs of fsspec, by way of a local folder that mirrors what is there.

`s3://bucket/in/a.jpg` as a path is `s3:/bucket/in/a.jpg`, a name below the current folder. Files
are fetched to such names, worked on there like any others, and sent from there. Planning sees
stand-ins of sources and of results of earlier runs: files without content, but with size and time.
The time of a result behind a URL cannot be relied on, so a result counts as ours while its size is
the recorded one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cfrestore.batch.job import named
from cfrestore.batch.manifest import Manifest, native
from cfrestore.errors import ConfigError, ImageError
from cfrestore.extras import require

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/+", re.IGNORECASE)  # two letters: not a drive of Windows
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")


def is_remote(place: object) -> bool:
    """Whether a word or a path is a URL."""
    return _URL.match(str(place)) is not None


def mirror(inputs: Sequence[str | Path], output: str | None, *, recursive: bool) -> None:
    """Creates stand-ins of what planning looks at, and fetches manifests, below the current folder.

    Args:
        inputs: files, folders and patterns; those that are no URLs are ignored.
        output: a file or folder; ignored if it is None or no URL.
    Raises:
        ConfigError: fsspec, or what it needs for this kind of URL, is not there.
        ImageError: what is behind a URL cannot be looked at.
    """
    for word in filter(is_remote, inputs):
        fixed, *pattern = re.split(r"[*?\[]", str(word), maxsplit=1)
        folder = fixed.rpartition("/")[0] if pattern else fixed
        for path, info in _files(Path(folder), None if recursive or pattern else 1):
            _stand_in(path, info["size"], _time_of(info))
    if output is None or not is_remote(output):
        return
    for path, info in _files(Path(output), None):
        if re.fullmatch(r"\.cfrestore.*\.jsonl", path.name):
            fetch(path)
        else:
            _stand_in(path, info["size"], 0)
    for folder in {path.parent for path in Path().glob(f"{Path(output)}/**/.cfrestore*.jsonl")}:
        _date(Manifest.read(folder))


def fetch(path: Path) -> None:
    """Downloads a file, with its modification time.

    Raises:
        ImageError: it cannot be read.
    """
    system, there = _open(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        system.get_file(there, str(path.absolute()))  # file: is a kind of URL to fsspec
        time = _time_of(system.info(there))
    except (OSError, ValueError) as error:
        raise ImageError(f"{named(path)} cannot be read: {error}") from error
    os.utime(path, ns=(time, time))


def send(paths: Iterable[Path]) -> None:
    """Uploads files to their URLs, in this order, each completely or not at all.

    Raises:
        OSError: one cannot be written; those after it are not.
    """
    for path in paths:
        system, there = _open(path)
        system.makedirs(system._parent(there), exist_ok=True)
        with path.open("rb") as own, system.transaction, system.open(there, "wb") as other:
            shutil.copyfileobj(own, other, 1 << 20)


def remove(path: Path) -> None:
    """Removes the file behind the URL."""
    system, there = _open(path)
    system.rm_file(there)


def listed(folder: Path, pattern: str) -> list[Path]:
    """The files of the folder behind the URL that match a pattern."""
    system, there = _open(folder)
    found = system.glob(f"{there.rstrip('/')}/{pattern}")
    return sorted(folder / str(name).rpartition("/")[2] for name in found)


def _open(path: Path) -> tuple[Any, str]:
    """The file system that a path belongs to, and its name there."""
    require("fsspec", extra="ray")
    import fsspec

    try:
        return fsspec.core.url_to_fs(named(path))
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{named(path)} cannot be reached: {error}") from error


def _files(path: Path, depth: int | None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files behind the URL of a file or folder, each with its facts."""
    system, there = _open(path)
    try:
        found: dict[str, dict[str, Any]] = system.find(there, maxdepth=depth, detail=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ImageError(f"{named(path)} cannot be looked at: {error}") from error
    root = there.strip("/")
    for name, info in found.items():
        inner = str(name).strip("/").removeprefix(root).strip("/")
        yield path / inner if inner else path, info


def _stand_in(path: Path, size: int, time: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    os.utime(path, ns=(time, time))


def _date(manifest: Manifest) -> None:
    """Gives stand-ins of results that have their recorded size their recorded time as well."""
    for name, records in manifest.records.items():
        path = manifest.folder / native(name)
        for record in records:
            written = record.outputs[name]
            if path.is_file() and path.stat().st_size == written.size:
                os.utime(path, ns=(written.time, written.time))


def _time_of(info: dict[str, Any]) -> int:
    """When a file was changed, in nanoseconds; 0 if unknown."""
    value = next((info[key] for key in _TIMES if info.get(key) is not None), 0)
    if isinstance(value, str):
        value = datetime.fromisoformat(value.replace("Z", "+00:00"))
    if isinstance(value, datetime):
        value = value.timestamp()
    return round(value * 1_000_000) * 1000  # to the microsecond; no source is more exact
