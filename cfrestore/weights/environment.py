"""Environment settings for weight files: their folders, and whether connections are allowed."""

from __future__ import annotations

import os
from pathlib import Path


def offline() -> bool:
    """Whether $CFRESTORE_OFFLINE forbids opening connections."""
    value = os.environ.get("CFRESTORE_OFFLINE", "")
    return value.strip().lower() not in ("", "0", "f", "false", "n", "no", "off")


def cache_folder() -> Path:
    """This program's folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "cfrestore"


def store_folder() -> Path:
    """The folder for fetched files: $CFRESTORE_HOME if set, else the cache."""
    home = os.environ.get("CFRESTORE_HOME")
    return Path(home).absolute() if home else cache_folder()


def search_folders() -> tuple[Path, ...]:
    """The folders searched for weight files, in order: $CFRESTORE_HOME, ./weights, the cache.

    All are absolute, so that messages are unambiguous.
    """
    folders = (store_folder(), Path("weights").absolute(), cache_folder())
    return folders if os.environ.get("CFRESTORE_HOME") else folders[1:]
