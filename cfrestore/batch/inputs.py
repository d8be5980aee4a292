"""Finds the pictures that each input stands for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from cfrestore.batch.job import KEPT, MARKS, Place, Stream
from cfrestore.batch.naming import PICTURES, Kind, Naming
from cfrestore.errors import ConfigError, ImageError
from cfrestore.files import is_folder


@dataclass(frozen=True)
class FoundPicture:
    """One picture that was found.

    Attributes:
        source: the picture.
        root: the folder that was searched for it, or below which its result keeps its sub-folder;
            None if the picture itself was named.
        named: whether the root itself was named, and not deduced from a pattern or a list.
    """

    source: Place
    root: Path | None = None
    named: bool = False

    @property
    def inner(self) -> Path:
        """The picture's folder, relative to the root."""
        if self.root is None or isinstance(self.source, Stream):
            return Path()
        return self.source.parent.relative_to(self.root)

    def belongs(self, part: int, parts: int) -> bool:
        """Whether the picture is in shard `part` (from 1) of `parts`, wherever the root lies."""
        source = self.source
        if self.root is not None and isinstance(source, Path):
            source = source.relative_to(self.root)
        name = source.as_posix() if isinstance(source, Path) else str(source)
        number = int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big")
        return number % parts == part - 1


def read_list(stream: BinaryIO, *, null: bool = False) -> tuple[Path, ...]:
    """Reads a list of names, one a line, or each ended by a zero byte.

    Names are taken literally, not as patterns.

    Args:
        stream: read to its end; names may be of any bytes.
        null: zero bytes end names, which can then contain line ends.
    Raises:
        ImageError: the stream cannot be read.
        ConfigError: the list has zero bytes, but `null` is not set.
    """
    try:
        data = stream.read()
    except (OSError, ValueError) as error:
        raise ImageError(f"the list of pictures cannot be read: {error}") from error
    if not null and b"\0" in data:
        raise ConfigError("the list of pictures has zero bytes, which -0 takes as ends of names")
    names = data.split(b"\0") if null else [line.rstrip(b"\r") for line in data.split(b"\n")]
    return tuple(Path(os.fsdecode(name)) for name in names if name)


def find_pictures(
    word: str | Path,
    naming: Naming,
    *,
    recursive: bool = False,
    without: Path | None = None,
    skipped: Callable[[Path], object] = lambda folder: None,
) -> tuple[FoundPicture, ...]:
    """The pictures that one input stands for, sorted; finding none is no error.

    In a folder or a pattern, files count as pictures by their extension. Hidden files are left out,
    and so are earlier results: files with a mark, and `photo_suffix.jpg` beside `photo.jpg`.

    Args:
        word: a file, which may be absent, or a folder; if it is a str, also `-`, or a pattern
            with *, ? or [ that names no existing file; ** goes through folders.
        recursive: search sub-folders too, each once, following links to folders.
        without: a folder of results, not to be searched.
        skipped: called with each other folder that is not searched because its name is one of
            KEPT; a user may have chosen that name independently.
    Raises:
        OSError: the folder is unreadable. An unreadable sub-folder is listed among the pictures,
            so that it alone fails.
        ConfigError: the pattern is invalid.
    """
    if word == "-":
        return (FoundPicture(Stream.STDIN),)
    path = Path(word)
    if path.is_dir():
        parts = _walk(path, recursive, naming.kind, without, skipped)
        found = sorted(_without_results(chain.from_iterable(parts), naming))
        return tuple(FoundPicture(picture, path, named=True) for picture in found)
    if isinstance(word, str) and _has_sign(word) and not path.exists():
        return _matching(path, naming, skipped)
    return (FoundPicture(path),)


def has_deeper(folder: Path, kind: Kind = PICTURES) -> bool:
    """Whether sub-folders, however deep, hold files of the kind that are no results."""
    parts = islice(_walk(folder, recursive=True, kind=kind), 1, None)
    return any(not path.stem.endswith(MARKS) for part in parts for path in part)


def rooted(pictures: Sequence[FoundPicture]) -> tuple[FoundPicture, ...]:
    """The same pictures; those named directly get the folder that they have in common as root.

    They get no root if relative names are mixed with absolute ones, or if .. leads out of it again.
    """
    parents = [p.source.parent for p in pictures if p.root is None and isinstance(p.source, Path)]
    try:
        root = Path(os.path.commonpath(parents))
    except ValueError:
        return tuple(pictures)
    if any(".." in parent.relative_to(root).parts for parent in parents):
        return tuple(pictures)
    return tuple(p if p.root is not None else replace(p, root=root) for p in pictures)


def _has_sign(text: str) -> bool:
    """Whether a text has a character that makes it a pattern."""
    return any(sign in text for sign in "*?[")


def _matching(
    pattern: Path, naming: Naming, skipped: Callable[[Path], object]
) -> tuple[FoundPicture, ...]:
    """The pictures that a pattern stands for."""
    parts = (*pattern.parts, *(["*"] if pattern.name == "**" else []))
    fixed = next(index for index, part in enumerate(parts) if _has_sign(part))
    root = Path(*parts[:fixed])
    try:
        matches = sorted(root.glob("/".join(parts[fixed:])))
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"{pattern} is no pattern: {error}") from error
    found = []
    kept: dict[Path, None] = {}
    for path in matches:
        if not _is_of(path, naming.kind):
            continue
        folders = path.relative_to(root).parts[:-1]
        index = next((i for i, name in enumerate(folders) if not _is_searched(name)), None)
        if index is None:
            found.append(path)
        elif folders[index] in KEPT:
            kept[root.joinpath(*folders[: index + 1])] = None
    for folder in kept:
        skipped(folder)
    return tuple(FoundPicture(path, root) for path in _without_results(found, naming))


def _walk(
    root: Path,
    recursive: bool,
    kind: Kind,
    without: Path | None = None,
    skipped: Callable[[Path], object] = lambda folder: None,
) -> Iterator[list[Path]]:
    """Yields the pictures of a folder, then, if recursive, those of each folder below it.

    For an unreadable folder below, the folder itself is yielded. Each folder is searched once,
    however many links lead there.
    """
    seen = {_identity(root)}
    if without is not None and without.is_dir():
        seen.add(_identity(without))
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            if folder is root:
                raise
            yield [folder]
            continue
        yield [path for path in entries if _is_of(path, kind)]
        for path in entries if recursive else ():
            if not is_folder(path) or _identity(path) in seen:
                continue
            if _is_searched(path.name):
                seen.add(_identity(path))
                waiting.append(path)
            elif path.name in KEPT:
                skipped(path)


def _is_of(path: Path, kind: Kind) -> bool:
    """Whether a path is a file with an extension of the kind, and is not hidden.

    Broken links and paths that cannot be inspected count too: reading them fails, and is reported.
    """
    if path.suffix.lower() not in kind.endings or path.name.startswith("."):
        return False
    try:
        return path.is_file() or (path.is_symlink() and not path.exists())
    except OSError:
        return True


def _is_searched(name: str) -> bool:
    """Whether sub-folders of that name are searched: not hidden ones, and not those of results."""
    return not (name.startswith(".") or name.endswith(MARKS) or name in KEPT)


def _without_results(pictures: Iterable[Path], naming: Naming) -> list[Path]:
    """The pictures without earlier results among them."""
    found = [path for path in pictures if not path.stem.endswith(MARKS)]
    results = {naming.within(path.parent, path) for path in found} if naming.suffix else set()
    return [path for path in found if path not in results]


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
