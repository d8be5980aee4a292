"""A process that runs batches in child processes, to be killed; see test_batch_kill.py.

It reads lines `FOLDER OUTPUT CRASH`, and restores FOLDER/in to FOLDER/OUTPUT. It prints the id of
the child that does it and, when the child has ended, its exit code. At CRASH, if it is not `-`, the
child dies at once.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from stubs import StubDetector, face_at, small_network

from cfrestore.batch import COMPARED, CROPS, drafts, ledger, plan, run
from cfrestore.image import Photo, write_photo
from cfrestore.pipeline import Pipeline


def die(*_: object) -> None:
    os._exit(9)


def after(function: Callable[..., Any], times: int = 1) -> Callable[..., Any]:
    """The function, except that the process dies after the given number of calls."""
    left = [times]

    def dying(*values: Any, **others: Any) -> Any:
        result = function(*values, **others)
        left[0] -= 1
        if left[0] == 0:
            die()
        return result

    return dying


def write_half(photo: Photo, target: BinaryIO, *, format: str | None) -> tuple[str, ...]:
    write_photo(photo, target, format=format)
    target.truncate(target.tell() // 2)
    die()
    return ()


def work(folder: str, output: str, crash: str, pipeline: Pipeline) -> None:
    os.chdir(folder)
    jobs = plan(["in"], output, kept=[CROPS, COMPARED] if crash != "-" else [])
    options: dict[str, Any] = {}
    if crash == "drafted":
        options["write"] = write_half
    elif crash == "written":
        drafts._write = after(drafts._write)
    elif crash == "recorded":
        ledger.record_outcome = after(ledger.record_outcome)
    elif crash.startswith("renamed"):
        Path.replace = after(Path.replace, int(crash[-1]))  # type: ignore[method-assign]
    for outcome in run(jobs, pipeline.restoring(), workers=2, **options):
        assert outcome.error is None, outcome.error


def say(word: object) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main() -> None:
    torch.set_num_threads(1)  # several would not survive the fork
    pipeline = Pipeline(small_network(), StubDetector(face_at(2, 2, 20)))
    say("ready")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(*line.split(), pipeline)
                code = 0
            finally:
                os._exit(code)
        say(child)
        _, status = os.waitpid(child, 0)
        say(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
