"""What the environment says about weight files: their folders, and whether to open connections."""

from __future__ import annotations

import os
from pathlib import Path


def offline() -> bool:
    """Whether $CFRESTORE_OFFLINE forbids to open connections."""
    return os.environ.get("CFRESTORE_OFFLINE", "") not in ("", "0")


def cache_folder() -> Path:
    """This program's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cfrestore"


def store_folder() -> Path:
    """Where fetched files are put: $CFRESTORE_HOME if set, else the cache."""
    home = os.environ.get("CFRESTORE_HOME")
    return Path(home) if home else cache_folder()


def search_folders() -> tuple[Path, ...]:
    """Where weight files are looked for, first hit wins: $CFRESTORE_HOME, ./weights, the cache."""
    folders = (store_folder(), Path("weights"), cache_folder())
    return folders if os.environ.get("CFRESTORE_HOME") else folders[1:]
