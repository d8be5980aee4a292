"""Encoded bytes into places: a file in one step, a stream in whole."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO


def replace_file(target: Path, encode: Callable[[BinaryIO], None]) -> None:
    """Puts what is encoded in the place of target, which is at every moment old or new and whole.

    Links are followed; a device or pipe is written to directly.

    Args:
        target: where to.
        encode: writes to a binary stream that can seek.
    Raises:
        OSError: the system refuses.
    """
    target = Path(os.path.realpath(target))
    if target.exists() and not target.is_file():
        with target.open("wb") as stream:
            fill_stream(stream, encode)
        return
    temporary = target.with_name(f".cfrestore-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as stream:
            encode(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def fill_stream(target: BinaryIO, encode: Callable[[BinaryIO], None]) -> None:
    """Writes what is encoded to a stream that need not seek, and nothing if encoding fails.

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
