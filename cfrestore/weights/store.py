"""Locates, verifies and removes weight files on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cfrestore.errors import ConfigError, WeightsError
from cfrestore.files import is_file
from cfrestore.weights.digests import expected_sha256, known_sha256, pin, pin_file, sha256_of
from cfrestore.weights.environment import offline, search_folders, store_folder
from cfrestore.weights.hub import hub_cached
from cfrestore.weights.table import WeightFile, weight_file

PACKAGE = Path(__file__).parents[1]


def locate(name: str) -> Path | None:
    """The verified path of a weight file; None if the file is not on this machine.

    A file is read in full once, and again when its size or time has changed. Where no SHA-256 is
    on record, the first one seen is pinned. The user's cache of the Hugging Face hub is searched
    last; files there with another SHA-256 are ignored.

    Raises:
        ConfigError: the table has no such name.
        WeightsError: the file does not match the recorded or pinned SHA-256, or cannot be read; or
            one that comes with cfrestore is missing.
    """
    return _checked(weight_file(name), known_sha256)


def verify(name: str) -> Path | None:
    """As `locate`, but always reads the file in full."""
    return _checked(weight_file(name), sha256_of)


def remove(name: str) -> tuple[Path, ...]:
    """Removes a file, its partial download, and its pinned SHA-256 from the store.

    Returns:
        the removed paths; other search folders are not touched.
    Raises:
        ConfigError: the table has no such name, or the file comes with cfrestore.
        WeightsError: it cannot be removed.
    """
    row, folder = weight_file(name), store_folder()
    if row.shipped:
        raise ConfigError(f"{row.file} comes with cfrestore and is not removed")
    paths = [folder / row.file, folder / f"{row.file}.part"]
    if row.sha256 is None:
        paths.append(pin_file(row))
    try:
        removed = tuple(path for path in paths if path.is_file())
        for path in removed:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise WeightsError(
            f"{row.file} cannot be removed from {folder}: {error.strerror or error}"
        ) from error
    return removed


def missing(name: str) -> WeightsError:
    """The error for a missing file: where it was sought, and how to fetch it."""
    row = weight_file(name)
    folders = ", ".join(map(str, search_folders()))
    way = f"`cfrestore weights fetch {row.name}` fetches it from {row.urls[0]}"
    if offline():
        way += ", but --offline or CFRESTORE_OFFLINE forbids that"
    return WeightsError(f"{row.file} was not found in {folders}; {way}")


def shipped(name: str = "compact") -> Path:
    """The path of weights that come with this package.

    Raises:
        WeightsError: the installation is incomplete.
    """
    file = f"{name}.safetensors"
    places = (PACKAGE / "_shipped" / file, PACKAGE.parent / "weights" / file)
    for path in places:
        if path.is_file():
            return path
    raise WeightsError(f"{file} is missing from this installation, sought as {places[0]}")


def _checked(row: WeightFile, digest_of: Callable[[Path], str]) -> Path | None:
    places = [folder / row.file for folder in search_folders()]
    for path in [shipped(row.name)] if row.shipped else places:
        if is_file(path):
            _check(row, path, digest_of(path))
            return path
    cached = hub_cached(row.hub) if row.hub else None
    return cached if cached and digest_of(cached) == row.sha256 else None


def _check(row: WeightFile, path: Path, digest: str) -> None:
    expected = expected_sha256(row)
    if expected is None:
        pin(row, digest)
    elif digest != expected:
        known = "the published file" if row.sha256 else "the file that was first seen here"
        text = f"{path} is not {known}: its SHA-256 is {digest}, expected {expected}"
        if path.parent == store_folder():
            text += f"; `cfrestore weights remove {row.name}` removes it"
        elif row.sha256 is None:
            text += f"; `cfrestore weights remove {row.name}` forgets the first"
        raise WeightsError(text)
