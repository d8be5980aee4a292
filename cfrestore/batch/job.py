"""One picture to work on: where it comes from, and what its results are called."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeAlias

from cfrestore.task import RESTORATION, TASKS

MARK = RESTORATION.mark
"""Stands in the name of every result that lies beside its source."""

MARKS = tuple(task.mark for task in TASKS)

CROPS, RESTORED, COMPARED = "cropped_faces", "restored_faces", "compared"
SAMPLES = "restored_samples"
"""Folders beside the results: faces before and after, numbered; pictures before and after; other
results that are as plausible, numbered."""

KEPT = (CROPS, RESTORED, COMPARED, SAMPLES)


class Stream(Enum):
    """A place that is no file."""

    STDIN = "<stdin>"
    STDOUT = "<stdout>"

    def __str__(self) -> str:
        return self.value


Place: TypeAlias = Path | Stream


def named(place: Place) -> str:
    """The text of a place; a URL gets back the slash that its path lacks, see `remote`."""
    return re.sub(r"^([a-zA-Z][a-zA-Z0-9+.-]+):/(?!/)", _slashes, str(place))


def _slashes(match: re.Match[str]) -> str:
    return f"{match[1]}://{'/' if match[1] == 'file' else ''}"


@dataclass(frozen=True)
class Job:
    """One picture to work on and the file its result goes to.

    Attributes:
        source: the picture.
        target: where its result goes.
        kept: which of KEPT are written beside the result.
        name: what the files in those folders are called, without number and extension.
        format: of the result; None: that of the target's name, see `ending`.
        in_place: whether the result replaces the picture itself, which then is its target.
        overwrite: whether files that exist may be replaced.
        manifest: the file in which the outcome is recorded, if a manifest is kept.
        refusal: why the job must not be done, one sentence; None if it may be.
    """

    source: Place
    target: Place
    kept: tuple[str, ...] = ()
    name: str = ""
    format: str | None = None
    in_place: bool = False
    overwrite: bool = False
    manifest: Path | None = None
    refusal: str | None = None

    @property
    def singles(self) -> tuple[Path, ...]:
        """The files written whatever is found: the result and the comparison."""
        result = (self.target,) if isinstance(self.target, Path) else ()
        return (*result, *([self.comparison] if COMPARED in self.kept else []))

    @property
    def once(self) -> bool:
        """Whether a picture that is already a result is left as it is."""
        return self.in_place and not self.overwrite

    @property
    def ending(self) -> str:
        """The format or extension that the result is written as; empty: that of the picture."""
        if self.format or self.in_place or isinstance(self.target, Stream):
            return self.format or ""
        return "" if self.target.suffix in (".", *MARKS) else self.target.suffix

    @property
    def comparison(self) -> Path:
        return self.folder(COMPARED) / f"{self.name}.png"

    @property
    def series(self) -> tuple[Path, ...]:
        """The first file of each numbered series; a series has a file per face, or per sample."""
        series = (CROPS, RESTORED, SAMPLES)
        return tuple(self.numbered(folder, 0) for folder in series if folder in self.kept)

    def numbered(self, folder: str, index: int) -> Path:
        """The file of one face in CROPS or RESTORED, or of one result in SAMPLES."""
        return self.folder(folder) / f"{self.name}_{index:02d}.png"

    def has_numbered(self, path: Path) -> bool:
        """Whether a file belongs to one of the series, whatever its number."""
        number = path.name.removeprefix(f"{self.name}_").removesuffix(".png")
        named = number.isdecimal() and path.name == f"{self.name}_{number}.png"
        folders = {os.path.realpath(first.parent) for first in self.series}
        return named and os.path.realpath(path.parent) in folders

    def folder(self, name: str) -> Path:
        """One of the folders beside the result."""
        if isinstance(self.target, Stream):
            raise ValueError(f"there are no folders beside {self.target}")
        return self.target.parent / name
