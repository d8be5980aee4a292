"""The command line: turns arguments into calls, and errors into exit codes.

0: every picture was written. 1: a picture failed, or under --strict one of its faces, or memory
ran out, or stdout is not writable, or a package cannot be imported. 2: the arguments are invalid,
or results would overwrite something. 4: weights are missing or wrong. 130: interrupted.
"""

from __future__ import annotations

import errno
import gc
import importlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cfrestore.errors import CFRestoreError
from cfrestore.extras import explained

VERBS = (
    "inpaint",
    "colorize",
    "video",
    "weights",
    "doctor",
    "export",
    "degrade",
    "eval",
    "sample",
    "train",
)
"""First arguments that select another command; a picture of that name can be given as ./train."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command `cfrestore` with arguments, by default the process's; returns its exit code.

    A leading verb selects a command other than restoration. Each command is imported only when
    needed, and torch only when there is work for it. Before torch is imported, OpenMP threads are
    set to sleep while they wait for each other: spinning, the default, makes them ten times slower
    when another process is running.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    verb = words.pop(0) if words[:1] and words[0] in VERBS else "restore"
    try:
        _check_working_folder()
        with _stdout_by_name():
            if verb == "train":
                from cfrestore.train import main as train

                return train(words)
            with uncollected():
                command = importlib.import_module(f"cfrestore.cli.{verb}")
            command.app(words, prog_name="cfrestore" if verb == "restore" else f"cfrestore {verb}")
    except CFRestoreError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except ImportError as error:  # the installation is incomplete or broken
        sys.stderr.write(f"error: {explained(error)}\n")
        return 1
    except MemoryError as error:  # of the CPU or another device, see device.inference
        reason = str(error).partition("\n")[0]
        sys.stderr.write(f"error: there is not enough memory{reason and f': {reason}'}\n")
        return 1
    except OSError as error:
        if error.filename == _STDOUT and error.errno == errno.EPIPE:  # its reader has had enough
            return 1
        what = f"{error.filename}: " if error.filename is not None else ""
        sys.stderr.write(f"error: {what}{error.strerror or error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


@contextmanager
def uncollected() -> Iterator[None]:
    """Within this context, garbage in cycles is not looked for, nor later in what it has made.

    That takes a tenth of the time of importing torch. It is for what lives as long as the process.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _check_working_folder() -> None:
    """Checks, before any other work, that the working folder exists.

    An OSError that it causes later names no file.

    Raises:
        CFRestoreError: the working folder has been deleted.
    """
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise CFRestoreError("the working folder has been deleted; change to another") from error


_STDOUT = "stdout cannot be written"


class _Stdout(io.BufferedWriter):
    """A buffer of stdout that gives its errors a file name, and drops its bytes after the first.

    The raw file below the buffer is not the place for this: if a signal arrived during a raw write
    that is implemented in Python, the buffer would write the same bytes again.
    """

    _failed = False

    def write(self, data: Any) -> int:
        with self._named():
            return super().write(data)

    def flush(self) -> None:
        if not self._failed:
            with self._named():
                super().flush()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = True
            error.filename = _STDOUT
            raise


@contextmanager
def _stdout_by_name() -> Iterator[None]:
    """Within this context, errors of writing to stdout have the file name _STDOUT.

    So `main` can tell them from all other errors, whoever writes: argument parsers and --help
    included. A terminal, or an object that has replaced stdout, is left as it is. Bytes that cannot
    be written are dropped; otherwise the process would fail again at exit, which Python 3.14 shows.
    """
    before = sys.stdout
    if not isinstance(before, io.TextIOWrapper) or before is not sys.__stdout__ or before.isatty():
        yield
        return
    raw = io.FileIO(before.fileno(), "wb", closefd=False)
    raw.name = before.name
    stream = io.TextIOWrapper(_Stdout(raw), before.encoding, before.errors)
    sys.stdout = stream
    try:
        yield
    finally:
        sys.stdout = before
        try:
            stream.flush()
        finally:
            raw.close()  # with nothing left to flush; the descriptor stays open
