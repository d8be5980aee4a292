"""Finds the pictures of a folder."""

from __future__ import annotations

from pathlib import Path, PurePath

from cfrestore.errors import ImageError
from cfrestore.image.formats import EXTENSIONS
from cfrestore.image.photo import name_of, reason_of


def is_picture(name: PurePath) -> bool:
    """Whether a file name, or path below a folder, has a picture's extension and is not hidden.

    A file or folder whose name begins with a dot is hidden, and so is everything in it.
    """
    hidden = any(part.startswith(".") for part in name.parts)
    return name.suffix.lower() in EXTENSIONS and not hidden


def pictures_in(folder: Path, *, below: bool = True) -> list[Path]:
    """The files of a folder that have a picture's extension and are not hidden, sorted.

    Links are followed, but each folder is visited only once, however many links lead there.

    Args:
        below: include sub-folders.
    Raises:
        ImageError: a folder is missing or cannot be read.
    """
    found: list[Path] = []
    waiting, seen = [folder], set[tuple[int, int]]()
    while waiting:
        place = waiting.pop()
        try:
            status = place.stat()
            if (identity := (status.st_dev, status.st_ino)) in seen:
                continue
            seen.add(identity)
            for path in sorted(place.iterdir()):
                if is_picture(PurePath(path.name)) and path.is_file():
                    found.append(path)
                elif below and not path.name.startswith(".") and path.is_dir():
                    waiting.append(path)
        except OSError as error:
            raise ImageError(f"{name_of(place)} cannot be read: {reason_of(error)}") from error
    return sorted(found)
