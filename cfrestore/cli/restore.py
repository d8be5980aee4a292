"""The command without a verb: pictures to restored pictures."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfrestore import __version__
from cfrestore.options import Options

if TYPE_CHECKING:
    from rich.console import Console

    from cfrestore.batch import Job, Outcome
    from cfrestore.pipeline import Pipeline

DEFAULTS = Options()

app = typer.Typer(pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cfrestore {__version__}")
        raise typer.Exit


@app.command(epilog="To train a network: cfrestore train autoencoder|codes|fusion --help")
def restore(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT", help="Pictures, or folders of pictures.")
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Where to write: a file for one picture, else a folder, which exists or ends "
            "with a slash. By default photo.restored.jpg beside photo.jpg.",
        ),
    ] = None,
    w: Annotated[
        float,
        typer.Option(
            "--w", min=0.0, max=1.0, help="Fidelity: 0 is cleanest, 1 is truest to the input."
        ),
    ] = DEFAULTS.fidelity,
    upscale: Annotated[
        int, typer.Option(metavar="1|2|4", help="Size of the result over that of the input.")
    ] = DEFAULTS.upscale,
    aligned: Annotated[
        bool,
        typer.Option("--aligned", help="Each picture is one aligned face; the result is square."),
    ] = DEFAULTS.aligned,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH",
            help="Weights: auto, published, compact or a file; auto takes the published ones if "
            "they are on this machine, else the compact ones.",
        ),
    ] = "auto",
    detector: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH",
            help="What finds faces: auto, retinaface, mobilenet, mtcnn or a RetinaFace file; auto "
            "takes the first whose weights are on this machine.",
        ),
    ] = "auto",
    device: Annotated[
        str, typer.Option(metavar="NAME", help="What computes: auto, cpu, cuda or mps.")
    ] = "auto",
    weights_dir: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder to look for weights in first, instead of $CFRESTORE_HOME.",
        ),
    ] = None,
    parser: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="ParseNet file, by which only the face proper is pasted; by default the "
            "published one if it is on this machine.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results that exist; inputs never are.")
    ] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Faces restored at once.")
    ] = DEFAULTS.batch_size,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Report failures only.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Restores the faces in photographs.

    photo.jpg becomes photo.restored.jpg, a folder becomes folder.restored; nothing is overwritten.
    """
    options = Options(fidelity=w, upscale=upscale, aligned=aligned, batch_size=batch_size)
    if weights_dir is not None:
        os.environ["CFRESTORE_HOME"] = str(weights_dir)
    from rich.console import Console

    from cfrestore.batch import plan

    jobs = plan(inputs, output, overwrite=overwrite)
    console = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
    try:
        from cfrestore.pipeline import load_pipeline

        pipeline = load_pipeline(model, detector, device, parser)
        if not quiet:
            _introduce(pipeline, console)
        outcomes = _work(jobs, pipeline, options, console, quiet)
    except KeyboardInterrupt:
        console.print("interrupted")
        raise typer.Exit(130) from None
    if not all(outcome.complete for outcome in outcomes):
        raise typer.Exit(1)


def _introduce(pipeline: Pipeline, console: Console) -> None:
    from cfrestore.device import describe

    console.print(
        f"model {pipeline.model_name}, detector {pipeline.detector.name}, "
        f"device {describe(pipeline.device)}"
    )
    for note in pipeline.notes:
        console.print(f"note: {note}")


def _work(
    jobs: tuple[Job, ...], pipeline: Pipeline, options: Options, console: Console, quiet: bool
) -> list[Outcome]:
    """Does the jobs and reports each, with a bar that only a terminal shows."""
    from rich.progress import Progress

    from cfrestore.batch import run

    outcomes: list[Outcome] = []
    hidden = quiet or not console.is_terminal
    with Progress(console=console, transient=True, disable=hidden) as progress:
        work = run(jobs, partial(pipeline, options=options))
        for outcome in progress.track(work, total=len(jobs), description="restoring"):
            outcomes.append(outcome)
            if not (quiet and outcome.complete):
                console.print(_line(outcome))
    if len(jobs) > 1 and not quiet:
        failed = sum(outcome.error is not None for outcome in outcomes)
        console.print(f"{len(jobs) - failed} of {len(jobs)} pictures written")
    return outcomes


def _line(outcome: Outcome) -> str:
    """What became of one job, in one line."""
    if outcome.error is not None:
        return f"error: {outcome.error}"
    restored, others = outcome.restored, outcome.left_alone
    line = f"{outcome.job.source} -> {outcome.job.target}  "
    line += f"{restored} face{'' if restored == 1 else 's'} restored"
    if outcome.softened:
        line += f" ({outcome.softened} larger than the network paints, so softer now)"
    if others:
        reasons = "; ".join(dict.fromkeys(others))
        line += f" of {restored + len(others)}, {len(others)} left alone: {reasons}"
    return line
