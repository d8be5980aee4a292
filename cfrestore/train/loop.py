"""The training loop of a stage: takes batches, writes checkpoints, logs and sample sheets."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfrestore.device import generator_for, synchronize
from cfrestore.errors import CFRestoreError, CheckpointError, OutputError
from cfrestore.image import Photo, write_photo
from cfrestore.show import sheet
from cfrestore.train import checkpoint
from cfrestore.train.codes import CodeSampler
from cfrestore.train.data import Sampler
from cfrestore.train.distributed import all_mean, any_process
from cfrestore.train.learner import Report
from cfrestore.train.polish import Polish
from cfrestore.train.prior import CodePrior
from cfrestore.train.stages import Autoencoder, CodePrediction, Fusion
from cfrestore.train.upsampler import SuperResolution

SAMPLES = 8

STATE = {"stage", "iteration", "config", "recipe", "params_ema"}
"""Keys of every training checkpoint."""

Stage = Autoencoder | CodePrediction | Fusion | Polish | CodePrior | SuperResolution

Source = Sampler | CodeSampler
"""The source of a stage's batches: faces, or for a prior their codes."""


class End(Enum):
    """Why the loop ended."""

    DONE = auto()
    OUT_OF_TIME = auto()
    INTERRUPTED = auto()


PARTS, EACH = 5, 4
"""Number of points of a schedule at which iterations are timed, and of iterations at each."""


@dataclass(frozen=True)
class Schedule:
    """When the loop logs, saves, draws samples and stops; in iterations unless stated otherwise.

    Attributes:
        max_minutes: stop, with a checkpoint, after this many minutes; None for no limit.
        shard_mb: split checkpoints into files of at most this many MiB; None for one file.
    """

    log_every: int = 50
    save_every: int = 1000
    samples_every: int = 1000
    max_minutes: float | None = None
    shard_mb: int | None = None

    def is_over(self, seconds: float) -> bool:
        """Whether training that has taken so long must stop."""
        return self.max_minutes is not None and seconds > self.max_minutes * 60


def train(
    stage: Stage,
    sampler: Source,
    folder: Path,
    schedule: Schedule,
    say: Callable[[str], None],
    resume: bool = False,
) -> End:
    """Trains a stage until its recipe ends, the time is up, or SIGINT or SIGTERM arrives.

    Batches, augmentation and damage of an iteration depend on seed and iteration alone, so that
    stopping and resuming gives the same result as a single run.

    Args:
        folder: for `last.pt` (replaced atomically unless in shards), `log.jsonl`, `samples-*.png`.
        say: called with the lines of progress.
        resume: continue from the folder's checkpoint, if there is one; else there must be none.
    Returns:
        why it ended.
    Raises:
        CheckpointError: the checkpoint to resume from is damaged or of another recipe.
        OutputError: there is a checkpoint that is not to be resumed, or writing failed.
        CFRestoreError: a loss is no longer finite.
    """
    target = folder / "last.pt"
    total = stage.recipe.optimisation.iterations
    t = _begin(target, stage, resume)
    if t:
        say(f"resumed {target} at iteration {t}")
    started = time.monotonic()
    log = _Log(folder, stage, sampler, t, say)
    with _Interruption() as interruption:
        while t < total:
            t += 1
            clean = sampler.batch(t, stage.device)
            report = stage.step(t, clean, sampler.generator(t, 2, stage.device))
            log.add(report)
            if t % schedule.log_every == 0 or t == total:
                log.write(t)
            late = schedule.is_over(time.monotonic() - started)
            stop = any_process(late or interruption.seen, stage.device)
            if t % schedule.save_every == 0 or t == total or stop:
                losses = {key: float(value) for key, value in report.items()}
                _check_finite(losses, t, stage.device)
                save_state(target, stage, t, schedule.shard_mb, writes=sampler.rank == 0)
            if sampler.rank == 0 and (t % schedule.samples_every == 0 or t == total):
                write_sheet(folder / f"samples-{t:06d}.png", samples(stage, sampler))
            if stop and t < total:
                say(f"stopped at iteration {t} of {total}; --resume continues")
                interrupted = any_process(interruption.seen, stage.device)
                return End.INTERRUPTED if interrupted else End.OUT_OF_TIME
    return End.DONE


def _begin(target: Path, stage: Stage, resume: bool) -> int:
    """Makes the folder, or loads the checkpoint to resume; returns the iterations that are done."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{target.parent} cannot be made: {error.strerror or error}") from error
    if not checkpoint.exists(target):
        return 0
    if not resume:
        raise OutputError(f"{target} exists; resume it, or choose another folder")
    return load_state(target, stage)


def fitting(stage: Stage, sampler: Source, left: Callable[[], float]) -> int:
    """Measures how many iterations fit into the remaining time; at least one.

    Some iterations of each part of the schedule are run twice, the first time to warm up; the stage
    must not be used afterwards. A fiftieth of the time is reserved for checkpoints and sample
    sheets.

    Args:
        left: returns the remaining seconds.
    """
    total = stage.recipe.optimisation.iterations
    tried = {
        min(total, round(total * (part + 0.5) / PARTS) + n)
        for part in range(PARTS)
        for n in range(EACH)
    }
    started = 0.0
    for _ in range(2):
        synchronize(stage.device)
        started = time.monotonic()
        for t in sorted(tried):
            clean = sampler.batch(t, stage.device)
            stage.step(t, clean, sampler.generator(t, 2, stage.device))
    synchronize(stage.device)
    seconds = (time.monotonic() - started) / len(tried)
    return max(1, int(0.98 * left() / seconds))


def samples(stage: Stage, sampler: Source) -> list[Tensor]:
    """The columns of a sample sheet; always of the same few faces."""
    picked = sampler.first(SAMPLES, stage.device)
    return stage.pictures(picked, generator_for(stage.device, sampler.seed))


def write_sheet(path: Path, columns: list[Tensor]) -> None:
    """Writes columns of pictures (B,3,S,S) in [0, 1] side by side as a PNG."""
    pictures = torch.stack([column.cpu() for column in columns], 1).flatten(0, 1)  # row by row
    pixels = (pictures * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    write_photo(Photo(sheet(pixels, len(columns))), path, format="PNG")


def save_state(
    path: Path, stage: Stage, t: int, shard_mb: int | None = None, *, writes: bool = True
) -> None:
    """Writes everything needed for resuming, and the recipe.

    All processes must call it, since some of the state is gathered from them; one of them writes.
    """
    content = stage.state() | {
        "stage": stage.name,
        "iteration": t,
        "config": stage.recipe.model.to_json(),
        "recipe": json.dumps(asdict(stage.recipe)),
    }
    if writes:
        checkpoint.write(path, content, shard_mb)


def read_state(path: Path) -> dict[str, Any]:
    """Reads a checkpoint written by `save_state`.

    Raises:
        CheckpointError: it is missing, damaged or not a training checkpoint.
    """
    content = checkpoint.read(path)
    if not content.keys() >= STATE:
        raise CheckpointError(f"{path} is no training checkpoint")
    return content


def iterations_of(path: Path) -> int:
    """The number of iterations in the recipe of a checkpoint.

    Raises:
        CheckpointError: as `read_state`.
    """
    return int(json.loads(read_state(path)["recipe"])["optimisation"]["iterations"])


def load_state(path: Path, stage: Stage) -> int:
    """Loads a checkpoint into the stage; returns the iteration after which it was written.

    Raises:
        CheckpointError: it is damaged, or of another stage or network.
    """
    content = read_state(path)
    if content["stage"] != stage.name or content["config"] != stage.recipe.model.to_json():
        raise CheckpointError(
            f"{path} was written by stage {content['stage']} of {content['config']}, "
            f"not by stage {stage.name} of {stage.recipe.model.to_json()}"
        )
    try:
        stage.load(content)
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} was written with another recipe: {error}") from error
    return int(content["iteration"])


class _Log:
    """Writes the mean losses and the speed since its last line to `log.jsonl`.

    Args:
        t: the iteration after which it begins.
        say: called with each line.
    """

    def __init__(
        self, folder: Path, stage: Stage, sampler: Source, t: int, say: Callable[[str], None]
    ) -> None:
        self._path = folder / "log.jsonl"
        self._stage, self._sampler, self._say = stage, sampler, say
        self._begin(t)

    def _begin(self, t: int) -> None:
        self._since, self._first = time.monotonic(), t
        self._seen: dict[str, list[Tensor]] = {}

    def add(self, report: Report) -> None:
        """Takes in the losses of an iteration, without waiting for them to be computed."""
        for key, value in report.items():
            self._seen.setdefault(key, []).append(value)

    def write(self, t: int) -> None:
        """Writes a line, from the first process only; all must call it, see `all_mean`.

        Raises:
            OutputError: it cannot be written.
            CFRestoreError: a loss is not finite.
        """
        device = self._stage.device
        synchronize(device)
        images = (t - self._first) * self._sampler.batch_size * self._sampler.world
        speed = images / (time.monotonic() - self._since)
        means = all_mean(torch.stack([torch.stack(v).float().mean() for v in self._seen.values()]))
        losses = dict(zip(self._seen, means.tolist(), strict=True))
        if self._sampler.rank == 0:
            self._append({"iteration": t, "images_per_second": speed} | losses)
            total = self._stage.recipe.optimisation.iterations
            numbers = "  ".join(f"{k} {v:.4g}" for k, v in losses.items())
            self._say(f"{self._stage.name} {t}/{total}  {speed:.1f} images/s  {numbers}")
        _check_finite(losses, t, device)
        self._begin(t)

    def _append(self, line: dict[str, float]) -> None:
        try:
            with self._path.open("a") as log:
                log.write(json.dumps(line) + "\n")
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"{self._path} cannot be written: {reason}") from error


def _check_finite(values: dict[str, float], t: int, device: torch.device) -> None:
    """Raises CFRestoreError, in all processes, if a loss is not finite in any of them.

    Called before checkpoints are written, so that the last one stays usable for resuming.
    """
    if any_process(not all(map(math.isfinite, values.values())), device):
        raise CFRestoreError(f"a loss is not finite at iteration {t}: {values}")


class _Interruption:
    """Records SIGINT and SIGTERM, so that the loop can end with a checkpoint."""

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> _Interruption:
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def _note(self, number: int, frame: object) -> None:
        self.seen = True

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
