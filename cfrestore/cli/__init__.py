"""The command line: turns arguments into calls, and errors into exit codes.

0: every picture was written. 1: a picture failed, or under --strict one of its faces, or there is
not enough memory, or stdout cannot be written. 2: the arguments make no sense, or results would
destroy something. 4: weights are missing or wrong. 130: interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from cfrestore.errors import CFRestoreError

VERBS = (
    "inpaint",
    "colorize",
    "weights",
    "doctor",
    "export",
    "degrade",
    "eval",
    "sample",
    "train",
)
"""First arguments that name another command; a picture of that name can be given as ./train."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command `cfrestore` with arguments, by default the process's; returns its exit code.

    A verb in front selects another command than restoration. Each is imported only when needed,
    and torch only when there is work for it. Its threads are told before that to sleep while they
    wait for each other: spinning, their default, makes them ten times slower when something else
    is running.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    verb = words.pop(0) if words[:1] and words[0] in VERBS else "restore"
    try:
        if verb == "train":
            from cfrestore.train import main as train

            return train(words)
        command = importlib.import_module(f"cfrestore.cli.{verb}")
        command.app(words, prog_name="cfrestore" if verb == "restore" else f"cfrestore {verb}")
    except CFRestoreError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except MemoryError as error:  # of whatever device, see device.inference
        reason = str(error).partition("\n")[0]
        sys.stderr.write(f"error: there is not enough memory{reason and f': {reason}'}\n")
        return 1
    except OSError as error:
        if error.filename is not None:  # of a file, then, and no fault of whoever reads stdout
            raise
        _give_up_stdout()
        sys.stderr.write(f"error: stdout cannot be written: {error.strerror or error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


def _give_up_stdout() -> None:
    """Lets what stdout still holds go nowhere, else leaving the process would fail once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
