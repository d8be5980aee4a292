"""cfrestore video: restores the faces in videos."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from cfrestore.cli import report
from cfrestore.cli.arguments import DEFAULTS, UPSAMPLING, CommonArguments
from cfrestore.cli.parameters import (
    FILES,
    BgTile,
    BgUpsampler,
    FaceUpsample,
    Fidelity,
    Model,
    Parser,
    Upscale,
)
from cfrestore.cli.picture import PictureCommand, with_arguments
from cfrestore.cli.record import facts_of
from cfrestore.cli.work import check_there, load, report_outcomes, set_up, show_jobs
from cfrestore.errors import ConfigError
from cfrestore.extras import require
from cfrestore.options import Options, Upsampling, parse_upsampling
from cfrestore.task import RESTORATION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfrestore.batch import Job

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@dataclass(frozen=True)
class VideoArguments(CommonArguments):
    """The arguments shared with other commands, and those of inputs and coding."""

    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="Videos, folders or patterns."),
    ] = None
    codec: Annotated[
        str,
        typer.Option(
            metavar="auto|NAME",
            rich_help_panel=FILES,
            help="How to code the result: h264, hevc, vp9, av1 or ffv1, which is lossless; auto: "
            "like the input if it is one of these, else h264.",
        ),
    ] = "auto"
    crf: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=63,
            metavar="N",
            rich_help_panel=FILES,
            help="Rate factor of the codec: lower is better and larger. By default nothing is seen "
            "to be lost: 16 for h264, 18 for hevc, 20 for vp9 and av1.",
        ),
    ] = None


@app.command(cls=PictureCommand)
@with_arguments(VideoArguments)
def video(
    args: VideoArguments,
    w: Fidelity = 1.0,
    upscale: Upscale = DEFAULTS.upscale,
    bg_upsampler: BgUpsampler = "none",
    face_upsample: FaceUpsample = UPSAMPLING.faces,
    bg_tile: BgTile = UPSAMPLING.tile,
    parser: Parser = None,
    model: Model = "auto",
) -> None:
    """Restores the faces in videos.

    clip.mp4 becomes clip.restored.mp4, with its sound, subtitles and times. Each face is followed
    through a shot, so that it neither trembles nor flickers. A run that was cut short is continued
    by the same command.
    """
    require("av", extra="video")
    stdout = sys.stdout
    if args.json and stdout is None:
        raise ConfigError("stdout is closed, but --json is to be written there")
    options = args.options(fidelity=w, upscale=upscale)
    upsampling = parse_upsampling(bg_upsampler, face_upsample, bg_tile)
    try:
        with redirect_stdout(sys.stderr):
            jobs = _plan(args, w)
            if args.dry_run:
                return show_jobs(jobs, args, stdout, "videos")
            check_there(jobs)
            fine = _run(jobs, args, options, upsampling, parser, model, stdout)
    except KeyboardInterrupt:
        report.make_console().print("interrupted; the same command continues")
        raise typer.Exit(130) from None
    if not fine:
        raise typer.Exit(1)
    return None


def _plan(args: VideoArguments, w: float) -> Sequence[Job]:
    """The jobs of the arguments.

    Raises:
        ConfigError, ImageError, OutputError: as `plan`.
    """
    from cfrestore.batch import plan
    from cfrestore.video.work import VIDEOS

    inputs = args.inputs or []
    if not inputs:
        raise ConfigError("there is no INPUT; `cfrestore video --help` shows the options")
    if "" in (*inputs, args.output):
        raise ConfigError("an input or output has an empty name, as an unset variable gives it")
    if "-" in (*inputs, args.output):
        raise ConfigError("videos are files, not stdin or stdout")
    return plan(
        inputs,
        args.output,
        overwrite=args.overwrite,
        suffix=args.suffix,
        recursive=args.recursive,
        fidelity=w,
        kind=VIDEOS,
    )


def _run(
    jobs: Sequence[Job],
    args: VideoArguments,
    options: Options,
    upsampling: Upsampling,
    parser: Path | None,
    model: str,
    stdout: TextIO,
) -> bool:
    """Restores the videos and reports them; returns whether all succeeded."""
    from cfrestore.batch import WORKERS
    from cfrestore.video.restoration import restore_video
    from cfrestore.video.work import run_videos

    set_up(args.weights_dir, args.offline)
    console = report.make_console()
    pipeline = load(args, RESTORATION, model, parser, turns=False, upsampling=upsampling)
    if not args.quiet:
        for line in report.introduction(pipeline, args.config, verbose=args.verbose):
            console.print(line)
    settings = {
        **pipeline.restoring(options).settings,
        "codec": args.codec,
        "crf": args.crf,
    }
    with report.frame_progress(console, shown=not args.quiet) as progress:
        restore = partial(
            restore_video,
            pipeline=pipeline,
            options=options,
            codec=args.codec,
            crf=args.crf,
            workers=args.jobs or WORKERS,
            progress=progress,
        )
        return report_outcomes(
            len(jobs),
            run_videos(jobs, restore, settings, options.fidelity),
            args,
            RESTORATION.participle,
            facts_of(pipeline),
            stdout,
            advance=lambda faces: None,
            noun="videos",
        )
