"""What every command on pictures shares: its options, its way of working, what it says."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from cfrestore.cli.published import translate
from cfrestore.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from rich.console import Console

    from cfrestore.batch import Job, Outcome
    from cfrestore.image import Photo
    from cfrestore.pipeline import Pipeline, Restoration, Task

FILES, FACES, NETWORKS = "Files", "Faces", "Networks"
"""Headings in the help."""

Inputs = Annotated[
    list[Path], typer.Argument(metavar="INPUT", help="Pictures, or folders of pictures.")
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        rich_help_panel=FILES,
        help="Where to write: a file for one picture, else a folder, which exists or ends with a "
        "slash. By default beside the input.",
    ),
]
Suffix = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        rich_help_panel=FILES,
        help="Write photo_TEXT.jpg, and call all else that is written so too.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", rich_help_panel=FILES, help="Replace results that exist; inputs never are."
    ),
]
SaveCrops = Annotated[
    bool,
    typer.Option(
        "--save-crops",
        rich_help_panel=FILES,
        help="Keep each face as the network saw it, in cropped_faces/ beside the result.",
    ),
]
SaveRestored = Annotated[
    bool,
    typer.Option(
        "--save-restored",
        rich_help_panel=FILES,
        help="Keep each face as the network painted it, in restored_faces/ beside the result.",
    ),
]
Compare = Annotated[
    bool,
    typer.Option(
        "--compare",
        rich_help_panel=FILES,
        help="Keep input and result side by side, in compared/ beside the result.",
    ),
]
Aligned = Annotated[
    bool,
    typer.Option(
        "--aligned",
        rich_help_panel=FACES,
        help="Each picture is one aligned face; the result is square.",
    ),
]
Faces = Annotated[
    str,
    typer.Option(
        metavar="WHICH",
        rich_help_panel=FACES,
        help="all, center, largest, or numbers such as 0,2, where 0 is the face that the detector "
        "is surest of.",
    ),
]
MinFace = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="PIXELS",
        rich_help_panel=FACES,
        help="Leave faces alone whose box has a shorter side below this.",
    ),
]
DrawBox = Annotated[
    bool,
    typer.Option(
        "--draw-box", rich_help_panel=FACES, help="Draw a green frame around what was pasted."
    ),
]
Detector = Annotated[
    str,
    typer.Option(
        metavar="NAME|PATH",
        rich_help_panel=FACES,
        help="What finds faces: auto, retinaface, mobilenet, mtcnn or a RetinaFace file; auto "
        "takes the first whose weights are on this machine.",
    ),
]
DetThreshold = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        rich_help_panel=FACES,
        help="How sure the detector must be; by default 0.8, and for mtcnn 0.9, or 0.7 if the "
        "face is large.",
    ),
]
Parser = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        rich_help_panel=FACES,
        help="ParseNet file, by which only the face proper is pasted; by default the published "
        "one if it is on this machine.",
    ),
]
TaskModel = Annotated[
    str,
    typer.Option(
        metavar="NAME|PATH",
        rich_help_panel=NETWORKS,
        help="Weights: auto or published, which are downloaded once, or a file. No compact ones "
        "come with cfrestore for this.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=NETWORKS,
        help="What computes: auto, cpu, cuda or mps.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=NETWORKS,
        help="What faces are painted in: fp32 (also auto), bf16 or fp16. The codes of a face are "
        "always chosen in fp32, and a face that bf16 or fp16 spoils is painted again.",
    ),
]
WeightsDir = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        file_okay=False,
        rich_help_panel=NETWORKS,
        help="Folder to look for weights in first, instead of $CFRESTORE_HOME.",
    ),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        rich_help_panel=NETWORKS,
        help="Download nothing, as CFRESTORE_OFFLINE=1 says for every command.",
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, rich_help_panel=NETWORKS, help="Faces in the network at once.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit code 1 if a face was found and left alone.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Report failures only.")]


class PictureCommand(TyperCommand):
    """A command that understands the published spellings too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, translate(args))


def check_threshold(threshold: float | None, aligned: bool) -> None:
    """Raises ConfigError if a threshold is given where nothing is detected."""
    if aligned and threshold is not None:
        raise ConfigError("nothing is detected in an aligned face, so there is no threshold")


def set_up(weights_dir: Path | None, offline: bool) -> None:
    """Tells the library, through the environment, where weights are and whether to fetch any."""
    if weights_dir is not None:
        os.environ["CFRESTORE_HOME"] = str(weights_dir)
    if offline:
        os.environ["CFRESTORE_OFFLINE"] = "1"


def make_console() -> Console:
    """Where everything is said: stderr, text as it is, lines unbroken."""
    from rich.console import Console

    return Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


def kept(crops: bool, restored: bool, compared: bool) -> tuple[str, ...]:
    """The folders that `plan` is to fill beside the results."""
    from cfrestore.batch import COMPARED, CROPS, RESTORED

    wanted = {CROPS: crops, RESTORED: restored, COMPARED: compared}
    return tuple(folder for folder, asked in wanted.items() if asked)


def load(
    task: Task,
    model: str,
    *,
    detector: str,
    threshold: float | None,
    parser: Path | None,
    device: str,
    precision: str,
    aligned: bool,
) -> Pipeline:
    """The pipeline of a task, its weights downloaded first where they are wanted and absent.

    With published weights comes what they are published with, as far as nothing else is named.

    Raises:
        WeightsError: what the user named, or what nothing can replace, cannot be had.
        CheckpointError, ConfigError: as `load_pipeline`.
    """
    from cfrestore.cli.supply import supply
    from cfrestore.pipeline import TASKS, load_pipeline
    from cfrestore.weights import locate

    console = make_console()
    network = TASKS[task]
    if model in ("auto", "published"):
        try:
            supply([network], console, required=model == "published" or task != "restoration")
        except WeightsError as error:
            if task == "restoration":
                raise
            raise WeightsError(f"{error}; there are no compact weights for {task}") from error
        if not aligned and locate(network):
            wanted = {"retinaface": detector == "auto", "parsenet": parser is None}
            if task == "inpainting":
                del wanted["parsenet"]
            supply([name for name, yes in wanted.items() if yes], console, required=False)
    if detector in ("retinaface", "mobilenet"):
        supply([detector], console, required=True)
    return load_pipeline(
        model, detector, device, parser, threshold=threshold, precision=precision, task=task
    )


def work(
    jobs: Sequence[Job],
    load: Callable[[], Pipeline],
    process: Callable[[Pipeline, Photo], Restoration],
    *,
    quiet: bool,
    strict: bool,
    done: str = "restored",
) -> None:
    """Does the jobs and reports each, with a bar that only a terminal shows.

    Args:
        jobs: of `plan`.
        load: makes the pipeline, downloads included.
        process: what to do with one photograph.
        quiet: only failures are reported.
        strict: a face left alone is a failure.
        done: what was done to the faces.
    Raises:
        typer.Exit: code 1 if something failed, 130 if interrupted.
    """
    from rich.progress import Progress

    from cfrestore.batch import run

    console = make_console()
    outcomes: list[Outcome] = []
    hidden = quiet or not console.is_terminal
    try:
        pipeline = load()
        if not quiet:
            _introduce(pipeline, console)
        with Progress(console=console, transient=True, disable=hidden) as progress:
            running = run(jobs, partial(process, pipeline))
            for outcome in progress.track(running, total=len(jobs), description="working"):
                outcomes.append(outcome)
                if not (quiet and outcome.complete):
                    console.print(describe(outcome, done))
    except KeyboardInterrupt:
        console.print("interrupted")
        raise typer.Exit(130) from None
    if len(jobs) > 1 and not quiet:
        written = sum(outcome.error is None for outcome in outcomes)
        console.print(f"{written} of {len(jobs)} pictures written")
    if any(outcome.error or (strict and not outcome.complete) for outcome in outcomes):
        raise typer.Exit(1)


def _introduce(pipeline: Pipeline, console: Console) -> None:
    from cfrestore.device import describe

    console.print(
        f"model {pipeline.model_name}, detector {pipeline.detector.name}, "
        f"device {describe(pipeline.device)}, {pipeline.precision.value}"
    )
    for note in pipeline.notes:
        console.print(f"note: {note}")


def describe(outcome: Outcome, done: str) -> str:
    """What became of one job, in one line."""
    if outcome.error is not None:
        return f"error: {outcome.error}"
    count = outcome.restored
    line = f"{outcome.job.source} -> {outcome.job.target}  "
    line += f"{count} face{'' if count == 1 else 's'} {done}"
    others = len(outcome.skipped + outcome.left_alone)
    if others:
        line += f" of {count + others}"
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
