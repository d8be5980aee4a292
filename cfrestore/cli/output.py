"""Files that a command writes besides pictures: checks before the work, and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfrestore.errors import OutputError
from cfrestore.files import drafted, exists, plain, seen


def prepare_output(file: Path | None, inputs: Sequence[object], *, overwrite: bool) -> None:
    """Checks that a file can be written, and creates its folder, before the work begins.

    Raises:
        OutputError: the file cannot be written there, or would overwrite something.
    """
    if file is None:
        return
    file = plain(file)
    try:
        if seen(file):
            if not overwrite:
                raise OutputError(f"{file} exists; only --overwrite replaces it")
            if not file.is_file() or any(_is(file, place) for place in inputs):
                raise OutputError(f"{file} is an input or no file, and is not overwritten")
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror or error}") from error
    if not os.access(file.parent, os.W_OK):
        raise OutputError(f"{file} cannot be written: its folder is read-only")


def _is(file: Path, place: object) -> bool:
    return isinstance(place, Path) and exists(place) and place.samefile(file)


def write_json(file: Path, record: dict[str, Any]) -> None:
    """Writes a record in one step; raises OutputError if it cannot be written."""
    text = json.dumps(record, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
    try:
        with drafted(file) as draft:
            draft.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror or error}") from error
