"""Messages about the work: for people on stderr, for programs on stdout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from cfrestore.batch import Job, Outcome
    from cfrestore.pipeline import Pipeline


def make_console() -> Console:
    """The console for messages: stderr, without markup or line wrapping."""
    from rich.console import Console

    return Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


def write_record(record: dict[str, Any], stream: TextIO) -> None:
    """Writes one line of JSON and flushes it."""
    import json

    stream.write(json.dumps(record, ensure_ascii=True) + "\n")
    stream.flush()


def introduction(pipeline: Pipeline, settings: Path | None, *, verbose: bool) -> tuple[str, ...]:
    """Lines on model, device and precision, and on the settings file used."""
    from cfrestore.device import Precision, describe

    execution = pipeline.execution
    codes, enlarge = execution.code_precision, pipeline.upsampler
    return (
        *([f"settings of {settings}"] if settings is not None else ()),
        f"model {pipeline.model_name}, "
        f"{f'detector {pipeline.detector_name}, ' if pipeline.detector else ''}"
        f"device {describe(pipeline.device)}, {pipeline.painted_in}"
        f"{'' if codes is Precision.FP32 else f', codes in {codes.value}'}"
        f"{', compiled' if execution.compile else ''}"
        f"{'' if execution.backend == 'torch' else f' by {execution.backend}'}"
        f"{f', up-sampler {enlarge.path.name}' if enlarge else ''}",
        *(f"note: {note}" for note in pipeline.notes),
        *(f"  {purpose}: {path}" for purpose, path in pipeline.files.items() if verbose),
    )


def show_plan(jobs: Sequence[Job], console: Console, noun: str) -> None:
    """Prints what would be read and written; noun is what the inputs are called, plural."""
    from cfrestore.batch import SAMPLES
    from cfrestore.batch.job import named
    from cfrestore.image.photo import printable

    for job in jobs:
        replaces = " (replaces it)" if job.in_place else ""
        console.print(printable(f"{named(job.source)} -> {named(job.target)}{replaces}"))
        for path in job.singles:
            if path != job.target:
                console.print(printable(f"  and {path}"))
        for path in job.series:
            what = "sample" if path.parent.name == SAMPLES else "face"
            console.print(printable(f"  and {path}, and so on, one for each {what}"))
    console.print(f"{_count(len(jobs), noun.removesuffix('s'))} would be written")


@contextmanager
def progress(
    total: int | None, console: Console, *, shown: bool
) -> Iterator[Callable[[int], None]]:
    """A progress bar, on terminals only: pictures, faces, faces per second, remaining time.

    Args:
        total: number of pictures, if known.
    Yields:
        a function to call after each picture with the number of its restored faces.
    """
    counts = "pictures, {task.fields[faces]} faces, {task.fields[rate]:.1f} a second,"
    with _bar(console, shown, counts) as bar:
        task = bar.add_task("", total=total, faces=0, rate=0.0)

        def advance(faces: int) -> None:
            row = bar.tasks[0]
            faces += row.fields["faces"]
            rate = faces / row.elapsed if row.elapsed else 0.0
            bar.update(task, advance=1, faces=faces, rate=rate)

        yield advance


@contextmanager
def frame_progress(
    console: Console, *, shown: bool
) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar, on terminals only, for the frames of videos.

    Yields:
        a function to call with a stage, how many frames more it has done, and the number of all
        frames, if known.
    """
    with _bar(console, shown, "frames,", "{task.description}") as bar:
        task = bar.add_task("", total=None)
        stage = ""

        def advance(now: str, more: int, total: int | None) -> None:
            nonlocal stage
            if now != stage:
                stage = now
                bar.reset(task, description=now, total=total)
            bar.update(task, advance=more)

        yield advance


def _bar(console: Console, shown: bool, counts: str, *title: str) -> Progress:
    """A bar, on terminals only, with a title before it and counts and the remaining time after."""
    from rich import progress as rich

    visible = shown and console.is_terminal and not console.is_dumb_terminal
    return rich.Progress(
        *title,
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        counts,
        rich.TimeRemainingColumn(),
        console=console if visible else silent(),
        transient=True,
        disable=not visible,
    )


def silent() -> Console:
    """A console that prints nothing: before rich 15, a disabled bar ends with an empty line."""
    from rich.console import Console

    return Console(quiet=True)


def describe(outcome: Outcome, done: str, *, verbose: bool = False) -> str:
    """The outcome of a job on one line, followed by its notes and, if verbose, its times.

    Args:
        done: what was done to the faces, a participle.
    """
    from cfrestore.batch.job import named
    from cfrestore.image.photo import printable

    if outcome.error is not None:
        return printable(f"error: {outcome.error}")
    way = f"{named(outcome.job.source)} -> {named(outcome.job.target)}"
    lines = [f"{way}  {_faces(outcome, done)}"]
    lines += outcome.notes
    if verbose and outcome.seconds:
        times = ", ".join(f"{stage} {time:.2f} s" for stage, time in outcome.seconds.items())
        lines.append(times)
    return "\n  ".join(map(printable, lines))


def _faces(outcome: Outcome, done: str) -> str:
    line = "unchanged, " if outcome.status == "unchanged" else ""
    line += f"{_count(outcome.restored, 'face')} {done}"
    others = len(outcome.skipped + outcome.left_alone)
    if others:
        line += f" of {outcome.restored + others}"
    if outcome.softened:
        line += f" ({outcome.softened} larger than the network paints, so softer now)"
    for reason, times in Counter(outcome.skipped).items():
        line += f", {times} {reason}"
    if outcome.left_alone:
        reasons = "; ".join(dict.fromkeys(outcome.left_alone))
        line += f", {len(outcome.left_alone)} left alone: {reasons}"
    for index in outcome.missing:
        line += f"; there is no face {index}"
    for remark in outcome.remarks:
        line += f"; {remark}"
    return line


def conclude(outcomes: Sequence[Outcome], total: int, console: Console, noun: str) -> None:
    """Prints a summary of many jobs, and the reason of each failure; noun as in `show_plan`."""
    from cfrestore.image.photo import printable

    for outcome in outcomes:
        if outcome.status == "failed":
            console.print(printable(f"failed: {outcome.error}"))
    times = Counter(outcome.status for outcome in outcomes)
    line = f"{times['done']} of {total} {noun} written"
    if times["unchanged"]:
        line += f", {times['unchanged']} unchanged"
    if times["failed"]:
        line += f", {times['failed']} failed"
    console.print(line)


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
