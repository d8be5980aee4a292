"""Writes bytes: files in one step, streams completely or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO


def exists(path: Path) -> bool:
    """Whether a file or folder exists; false if the system refuses to tell, as for long names.

    pathlib's methods raise OSError then, but no longer in Python 3.14.
    """
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: Path) -> bool:
    """Whether a path is an existing file; false, too, if the system refuses to tell."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Whether a path is an existing folder; false, too, if the system refuses to tell."""
    return os.path.isdir(path)  # noqa: PTH112


def seen(path: Path) -> bool:
    """Whether a file or folder exists; raises OSError if the system refuses to tell."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, hexadecimal; raises OSError if it cannot be read."""
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def plain(path: Path) -> Path:
    """The path; if its folder is missing, without `..`.

    Making the folder would otherwise change what the path means.
    """
    missing = ".." in path.parts and not exists(path.parent)
    return Path(os.path.realpath(path)) if missing else path


@contextmanager
def drafted(target: Path, folder: Path | None = None) -> Iterator[Path]:
    """Yields an empty file, which replaces target at the end unless there is an error.

    So target is always either the old or the complete new file. Links are followed. The caller may
    replace the draft by another file of that name. A new target has the mode that the umask gives,
    see also `settle`.

    Args:
        folder: for the draft, in the target's file system; by default the target's.
    Raises:
        OSError: the system refuses.
    """
    from secrets import token_hex

    target = Path(os.path.realpath(target))
    draft = (folder or target.parent) / f".cfrestore-{token_hex(8)}.tmp"
    try:
        with draft.open("xb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
        yield draft
        if draft.stat().st_mode != mode:
            draft.chmod(mode)
        with draft.open("rb+") as stream:
            os.fsync(stream.fileno())
        settle(draft, target)
    finally:
        with suppress(OSError):  # so as not to hide the original error
            draft.unlink(missing_ok=True)


def settle(draft: Path, target: Path) -> None:
    """Gives a finished draft its name, and the mode of the file that it replaces.

    Args:
        draft: in the file system of target.
        target: its name; links are followed.
    Raises:
        OSError: the system refuses.
    """
    target = Path(os.path.realpath(target))
    if target.exists() and draft.stat().st_mode != target.stat().st_mode:
        shutil.copymode(target, draft)
    draft.replace(target)


def replace_file(target: Path, encode: Callable[[BinaryIO], None]) -> None:
    """Replaces target with what is encoded, see `drafted`.

    A device or pipe is written to directly.

    Args:
        encode: writes to a binary stream that can seek.
    Raises:
        OSError: the system refuses.
    """
    if target.exists() and not target.is_file():
        with target.open("wb") as stream:
            fill_stream(stream, encode)
        return
    with drafted(target) as draft, draft.open("wb") as stream:
        encode(stream)


def fill_stream(target: BinaryIO, encode: Callable[[BinaryIO], None]) -> None:
    """Writes what is encoded to a stream that need not seek, or nothing if encoding fails.

    Raises:
        OSError: the system refuses, or the stream is closed.
    """
    buffer = BytesIO()
    encode(buffer)
    rest = buffer.getbuffer()
    try:
        while rest:
            written = target.write(rest)  # an unbuffered stream may take a part
            if not written:
                raise OSError(errno.EAGAIN, "the stream takes no more")
            rest = rest[written:]
        target.flush()
    except ValueError as error:
        raise OSError(errno.EBADF, str(error)) from error
