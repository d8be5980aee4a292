"""What the environment says about weight files: their folders, and whether to open connections."""

from __future__ import annotations

import os
from pathlib import Path


def offline() -> bool:
    """Whether $CFRESTORE_OFFLINE forbids to open connections."""
    said = os.environ.get("CFRESTORE_OFFLINE", "")
    return said.strip().lower() not in ("", "0", "f", "false", "n", "no", "off")


def cache_folder() -> Path:
    """This program's folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "cfrestore"


def store_folder() -> Path:
    """Where fetched files are put: $CFRESTORE_HOME if set, else the cache."""
    home = os.environ.get("CFRESTORE_HOME")
    return Path(home).absolute() if home else cache_folder()


def search_folders() -> tuple[Path, ...]:
    """Where weight files are looked for, first hit wins: $CFRESTORE_HOME, ./weights, the cache.

    All are absolute, so that a message means the same wherever it is read.
    """
    folders = (store_folder(), Path("weights").absolute(), cache_folder())
    return folders if os.environ.get("CFRESTORE_HOME") else folders[1:]
