"""Watches folders: pictures are taken as they arrive, once they are complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cfrestore.batch.job import Job


def watch(
    look: Callable[[], Sequence[Job]],
    *,
    interval: float = 2.0,
    stop: Callable[[], bool] = lambda: False,
    wait: Callable[[float], object] = time.sleep,
) -> Iterator[tuple[Job, ...]]:
    """The jobs whose pictures are new or have changed, each time that there are any.

    A picture is taken when two successive looks find the same size and modification time, and
    again when these change. Pictures that are there from the beginning are taken too.

    Args:
        look: plans; `partial(plan, [folder], ..., isolate=True)`.
        interval: seconds from one look to the next.
        stop: asked before every look.
        wait: sleeps.
    """
    before: dict[Path, tuple[int, int]] = {}
    taken: dict[Path, tuple[int, int]] = {}
    while not stop():
        jobs = [(job, job.source) for job in look() if isinstance(job.source, Path)]
        now = {source: state for _, source in jobs if (state := _state(source)) is not None}
        stable = {source for source in now if now[source] == before.get(source)}
        ready = tuple(
            job for job, source in jobs if source in stable and now[source] != taken.get(source)
        )
        taken.update((source, now[source]) for source in stable)
        if ready:
            yield ready
        before = now
        wait(interval)


def _state(path: Path) -> tuple[int, int] | None:
    """Size and modification time; None if the system does not say."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
