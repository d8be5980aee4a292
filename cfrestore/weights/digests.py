"""SHA-256 of weight files: computes them, caches them while a file does not change, pins them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from cfrestore import files
from cfrestore.errors import WeightsError
from cfrestore.weights.environment import cache_folder, store_folder
from cfrestore.weights.table import WeightFile


def sha256_of(path: Path) -> str:
    """Computes the digest of a file from all its bytes, and remembers it.

    Raises:
        WeightsError: the file cannot be read.
    """
    stamp = _stamp(path)
    try:
        digest = files.sha256_of(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if _stamp(path) == stamp:
        remember(path, digest)
    return digest


def known_sha256(path: Path) -> str:
    """The digest of a file, which is read only if its size or time has changed since the last time.

    Raises:
        WeightsError: the file cannot be read.
    """
    stamp = _stamp(path)
    match _ledger().get(str(path.resolve())):
        case [size, time, str(digest)] if [size, time] == stamp:
            return digest
    return sha256_of(path)


def remember(path: Path, digest: str) -> None:
    """Caches the digest of a file; does nothing where the cache is not writable."""
    with contextlib.suppress(OSError):
        ledger = {key: entry for key, entry in _ledger().items() if files.exists(Path(key))}
        ledger[str(path.resolve())] = [*_stamp(path), digest]
        _write(cache_folder() / "verified.json", json.dumps(ledger, indent=1))


def expected_sha256(row: WeightFile) -> str | None:
    """The digest on record, or else the one first seen here, or else None."""
    if row.sha256 is not None:
        return row.sha256
    try:
        words = pin_file(row).read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return words[0] if words else None


def pin(row: WeightFile, digest: str) -> None:
    """Records the digest of a file first seen, unless the folder is read-only."""
    with contextlib.suppress(OSError):
        _write(pin_file(row), f"{digest}  {row.file}\n")


def pin_file(row: WeightFile) -> Path:
    """Path of the pinned digest of a file, in the format of `sha256sum --check`."""
    return store_folder() / f"{row.file}.sha256"


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return [status.st_size, status.st_mtime_ns]


def _unreadable(path: Path, error: OSError) -> WeightsError:
    return WeightsError(f"{path} cannot be read: {error.strerror or error}")


def _ledger() -> dict[str, Any]:
    """Size, time and digest by path; empty if the ledger is missing or damaged."""
    try:
        ledger = json.loads((cache_folder() / "verified.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return ledger if isinstance(ledger, dict) else {}


def _write(path: Path, text: str) -> None:
    """Replaces a file by text, creating its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.drafted(path) as draft:
        draft.write_text(text, encoding="utf-8")
