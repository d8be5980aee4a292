"""Files that a command writes besides pictures: whether they may be written, and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfrestore.errors import OutputError
from cfrestore.files import drafted


def check_free(file: Path | None, inputs: Sequence[object], *, overwrite: bool) -> None:
    """Raises OutputError if writing a file would destroy something."""
    if file is None or not file.exists():
        return
    if not overwrite:
        raise OutputError(f"{file} exists; only --overwrite replaces it")
    if not file.is_file() or any(_is(file, place) for place in inputs):
        raise OutputError(f"{file} is an input or no file, and is not overwritten")


def _is(file: Path, place: object) -> bool:
    return isinstance(place, Path) and place.exists() and place.samefile(file)


def write_json(file: Path, record: dict[str, Any]) -> None:
    """Writes a record in one step; raises OutputError if it cannot be written."""
    text = json.dumps(record, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with drafted(file) as draft:
            draft.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror or error}") from error
