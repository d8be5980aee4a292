"""Runs jobs on a Ray cluster, with the same PictureIO and FaceProcessor as on one machine.

    driver: what earlier runs have done   tasks: open   actors: find, paint, paste   tasks: close

Ray Data moves pictures between the stages in blocks and applies back-pressure. It retries nothing.
If a worker dies, its block is lost; a second pass repeats the pictures one at a time, so that the
one that kills its worker again is identified and the others succeed.

As always, a result is recorded before it appears. Each worker records in a file of its own, because
machines cannot be relied on to append to a shared one; at the end these files are merged.
"""

from __future__ import annotations

import logging
import os
import secrets
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from cfrestore.batch.ahead import ahead
from cfrestore.batch.drafts import Writer, sweep
from cfrestore.batch.engine import (
    PIXELS_AHEAD,
    FaceProcessor,
    Opened,
    Pasted,
    PictureIO,
    Reader,
    in_progress,
)
from cfrestore.batch.job import Job, named
from cfrestore.batch.ledger import FailureError, Ledger, manifests_of
from cfrestore.batch.manifest import Manifest, collect
from cfrestore.batch.outcome import Outcome
from cfrestore.batch.remote import fetch, is_remote, listed, remove, send
from cfrestore.errors import CFRestoreError, ConfigError, ImageError
from cfrestore.extras import require
from cfrestore.image import read_photo, write_photo

if TYPE_CHECKING:
    from cfrestore.procedure import Procedure

Answer = TypeVar("Answer")
Item = TypeVar("Item", Opened | Outcome, Pasted | Outcome)

BLOCK = 32
"""Most pictures that one worker is given at once."""

TASK_CORES = 0.5
"""CPU cores that a reading or writing task reserves: it waits for storage half of the time."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """The context in which this process is the driver of a cluster.

    Args:
        address: auto, host:port or ray://..., of a running cluster; None: one is started here and
            stopped at the end.
    Raises:
        ConfigError: there is no Ray, or no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else Ray prints about our actors
    require("ray.data", extra="ray")
    import ray

    variables = {k: v for k, v in os.environ.items() if k.startswith("CFRESTORE_")}
    local = {} if address else {"include_dashboard": False}
    address = address or "local"  # else Ray would look for a running cluster
    try:
        ray.init(
            address,
            runtime_env={"env_vars": variables},
            log_to_driver=False,
            logging_level=logging.ERROR,
            **local,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"there is no Ray cluster at {address}: {error}") from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # lost blocks are reported as outcomes
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Staff:
    """The actors of a cluster.

    Attributes:
        actors: how many.
        gpus, cpus: how many of the cluster's each actor reserves.
        threads: how many each actor has to find and paste faces.
    """

    actors: int
    gpus: float
    cpus: float
    threads: int


def hire(actors: int | None, gpus: float | None, threads: int | None) -> Staff:
    """Decides how many actors there are and what each reserves; starts none.

    The actors get half of the cores; the other half is left to the tasks that read and write.

    Args:
        actors: how many; None: as many as the GPUs allow with `gpus` each or, if that is 0, one
            for every two cores.
        gpus: GPUs, or part of one, for each actor; None: 1 if the cluster has any, else 0.
        threads: for each actor; None: one for each of its cores.
    Raises:
        ConfigError: the cluster is too small.
    """
    import ray

    there = ray.cluster_resources()
    cores, cards = there.get("CPU", 0.0), there.get("GPU", 0.0)
    gpus = min(cards, 1.0) if gpus is None else gpus
    if gpus * (actors or 1) > cards or cores < 1:
        raise ConfigError(
            f"{actors or 1} actors with {gpus:g} GPUs each do not fit into the cluster, which has "
            f"{cards:g} GPUs and {cores:g} cores"
        )
    actors = actors or max(1, int(cards / gpus if gpus else cores / 2))
    share = cores / 2 / actors
    return Staff(
        actors, gpus, float(int(share)) if share > 1 else share, threads or int(share) or 1
    )


def ask(question: Callable[[], Answer], staff: Staff, home: Path | None = None) -> Answer:
    """Calls a function once on the cluster, with the resources of an actor; returns its result.

    Args:
        home: the folder in which it is called; None: the current one, which must exist there.
    Raises:
        CFRestoreError: the function raised it.
        ConfigError: the current folder is not on that machine.
    """
    import ray

    place = _Place("", str(home or Path.cwd()), apart=home is not None)

    def answer() -> Answer | CFRestoreError:
        try:
            place.enter()
            return question()
        except CFRestoreError as error:
            return error

    found = ray.get(ray.remote(num_cpus=staff.cpus, num_gpus=staff.gpus)(answer).remote())
    if isinstance(found, CFRestoreError):
        raise found
    return found


def run(
    jobs: Sequence[Job],
    load: Callable[[], Procedure],
    staff: Staff,
    settings: Mapping[str, object],
    *,
    home: Path | None = None,
    read: Reader = read_photo,
    write: Writer = write_photo,
) -> Generator[Outcome, None, None]:
    """Does the jobs as `engine.run` does, on the cluster that this process is connected to.

    Paths are the same on all machines of the cluster, relative ones from the current folder. If
    some are URLs, see `remote`, all other paths are absolute.
    If the iterator is closed or interrupted, pictures in progress are given up.

    Args:
        jobs: from `plan`, without streams.
        load: makes the procedure, once in each actor.
        settings: everything that decides the results: the procedure's settings, and the options of
            read and write.
        home: the folder in which load is called, if it is not the current one.
    Yields:
        an outcome per job, in the order in which they finish.
    Raises:
        CFRestoreError: the settings suit no picture, or an actor lacks something it needs.
    """
    mark = secrets.token_hex(8)
    apart = any(is_remote(place) for job in jobs for place in (job.source, job.target))
    place = _Place(mark, str(home or Path.cwd()), apart)
    lost: list[Job] = []
    try:
        for alone in (False, True):
            io = PictureIO(read, write, Ledger(settings, manifests_of(jobs)))
            sweep(lost if alone else jobs)
            waiting: dict[int, Job] = {}
            for index, job in enumerate(lost if alone else jobs):
                outcome = io.ledger.earlier(job)
                if outcome is None:
                    waiting[index] = job
                elif alone:  # recorded by a worker that died before it could return the outcome
                    yield replace(outcome, status="done")
                else:
                    yield outcome
            for index, outcome in _pass(waiting, io, load, staff, place, alone=alone):
                yield replace(outcome, job=waiting.pop(index))
            lost = list(waiting.values())
            if not lost:
                return
        for job in lost:
            text = f"{job.source} was given up: its worker died twice"
            yield io.ledger.failed(job, FailureError("crashed", text))
        sweep(lost)
    finally:
        for manifest in {job.manifest for job in jobs if job.manifest}:
            with suppress(OSError):  # `Manifest.read` finds the workers' files unmerged, too
                _collect(manifest, f".cfrestore-{mark}-*.jsonl")


def _collect(manifest: Path, pattern: str) -> None:
    """Merges the manifests of all workers."""
    if not is_remote(manifest):
        return collect(manifest, pattern)
    parts = listed(manifest.parent, pattern)
    for part in parts:
        fetch(part)
    if parts:
        collect(manifest, pattern)
        send([manifest])
    for part in parts:
        remove(part)
    return None


def _pass(
    jobs: Mapping[int, Job],
    io: PictureIO,
    load: Callable[[], Procedure],
    staff: Staff,
    place: _Place,
    *,
    alone: bool,
) -> Iterator[tuple[int, Outcome]]:
    """Yields the number and the outcome of each job, except of those whose worker died.

    Args:
        alone: each worker has one picture at a time, and no more are waiting for it.
    """
    if not jobs:
        return
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    rows = [(index, job, _known(io, job)) for index, job in jobs.items()]
    size = 1 if alone else max(1, min(BLOCK, len(rows) // (4 * staff.actors)))
    plain_io = io.knowing({})
    task = {"num_cpus": TASK_CORES, "ray_remote_args_fn": lambda: {"max_retries": 0}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of ray_remote_args_fn, see pyproject
        pictures = (
            ray.data.from_items(rows, override_num_blocks=-(-len(rows) // size))
            .map(_Opening(plain_io, place), **task)
            .map_batches(
                _Painting,
                batch_size=None,
                fn_constructor_args=(plain_io, place, load, staff.threads),
                compute=ray.data.ActorPoolStrategy(
                    size=staff.actors, max_tasks_in_flight_per_actor=1 if alone else 2
                ),
                num_cpus=staff.cpus,
                num_gpus=staff.gpus,
                ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": 0},
            )
            .map_batches(_Closing(plain_io, place), batch_size=None, **task)
        )
    for row in pictures.iter_rows():
        index, item = row["item"]
        if isinstance(item, CFRestoreError):
            raise item
        yield index, item


def _known(io: PictureIO, job: Job) -> Mapping[Path, Manifest]:
    """The part of the manifests that concerns a job."""
    folder = job.manifest and job.manifest.parent
    return {folder: io.ledger.manifests[folder].part(job)} if folder else {}


@dataclass(frozen=True)
class _Place:
    """Where a worker works and records.

    Attributes:
        mark: identifies this run in the names of its workers' manifests.
        folder: the folder that relative paths start from.
        apart: whether pictures are behind URLs; each task then works in a temporary folder.
    """

    mark: str
    folder: str
    apart: bool = False

    def enter(self) -> None:
        """Changes to the folder; raises ConfigError if it is missing, unless `apart` is set."""
        try:
            os.chdir(self.folder)
        except OSError as error:
            if self.apart:
                return
            raise ConfigError(f"{self.folder} is not on every machine of the cluster") from error

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Within this context, the current folder is the one that paths of jobs start from."""
        if not self.apart:
            self.enter()
            yield
            return
        before = Path.cwd()
        with TemporaryDirectory(prefix="cfrestore-") as folder:
            os.chdir(folder)
            try:
                yield
            finally:
                os.chdir(before)

    def job(self, job: Job) -> Job:
        """The job, to be recorded in the manifest of this worker."""
        import ray

        if job.manifest is None:
            return job
        worker = ray.get_runtime_context().get_worker_id()
        return replace(
            job, manifest=job.manifest.with_name(f".cfrestore-{self.mark}-{worker}.jsonl")
        )

    def item(self, item: Item) -> Item:
        """The picture, its job to be recorded in the manifest of this worker."""
        return item if isinstance(item, Outcome) else replace(item, job=self.job(item.job))


@dataclass(frozen=True)
class _Opening:
    """A task that reads."""

    io: PictureIO
    place: _Place

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        index, job, known = row["item"]
        io, job = self.io.knowing(known), self.place.job(job)
        try:
            with self.place.entered():
                opened = self._open(io, job)
        except CFRestoreError as error:
            return {"item": (index, known, error)}
        return {"item": (index, known, opened)}

    def _open(self, io: PictureIO, job: Job) -> Opened | Outcome:
        if isinstance(job.source, Path) and is_remote(job.source):
            try:
                fetch(job.source)
            except ImageError as error:
                return io.ledger.failed(job, FailureError("unreadable", str(error)))
        return io.open(job)


class _Painting:
    """An actor: a pipeline, and threads that keep it busy within a block."""

    def __init__(
        self, io: PictureIO, place: _Place, load: Callable[[], Procedure], threads: int
    ) -> None:
        self.io, self.place, self.threads = io, place, threads
        self.pool = ThreadPoolExecutor(threads)
        self.processor: FaceProcessor | CFRestoreError
        try:
            place.enter()
            self.processor = FaceProcessor(io, load())
        except CFRestoreError as error:
            self.processor = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = list(batch["item"])
        done: list[Any]
        try:
            with self.place.entered():
                done = list(self._work([item for _, _, item in rows]))
        except CFRestoreError as error:
            done = [error] * len(rows)
        return {"item": [(*row[:2], item) for row, item in zip(rows, done, strict=True)]}

    def _work(
        self, items: Iterable[Opened | Outcome | CFRestoreError]
    ) -> Iterator[Pasted | Outcome]:
        if isinstance(self.processor, CFRestoreError):
            raise self.processor
        processor, opened = self.processor, list[Opened | Outcome]()
        for item in items:
            if isinstance(item, CFRestoreError):
                raise item
            opened.append(self.place.item(item))
        count, weight = in_progress(self.threads, processor.procedure), PIXELS_AHEAD
        begun = ahead(self.pool, processor.find, opened, lambda _: 0, count=count, weight=weight)
        painted, size = processor.painted(begun), processor.pixels_to_write
        return ahead(self.pool, processor.paste, painted, size, count=count, weight=weight)


@dataclass(frozen=True)
class _Closing:
    """A task that writes a block."""

    io: PictureIO
    place: _Place

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = list(batch["item"])
        done: list[Any]
        try:
            with self.place.entered():
                done = self._close(rows)
        except CFRestoreError as error:
            done = [error] * len(rows)
        return {"item": [(row[0], item) for row, item in zip(rows, done, strict=True)]}

    def _close(self, rows: Sequence[tuple[int, Mapping[Path, Manifest], Any]]) -> list[Outcome]:
        done = []
        for _, known, item in rows:
            if isinstance(item, CFRestoreError):
                raise item
            io = self.io.knowing(known)
            done.append(io.close(self.place.item(item)))
        return self._sent(done) if self.place.apart else done

    def _sent(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Uploads the files below the current folder: manifests first, then the other files.

        Args:
            outcomes: of the block; if an upload fails, all that were done become failed.
        """
        files = [path for path in Path().rglob("*") if path.is_file() and is_remote(path)]
        manifests = [path for path in files if path.suffix == ".jsonl"]
        try:
            send(
                path.rename(path.with_stem(f"{path.stem}-{secrets.token_hex(4)}"))
                for path in manifests
            )
            send(path for path in files if path not in manifests)
        except OSError as error:
            text = f"cannot be written: {error}"
            return [
                replace(
                    o, status="failed", code="unwritable", error=f"{named(o.job.target)} {text}"
                )
                if o.status == "done"
                else o
                for o in outcomes
            ]
        return list(outcomes)
