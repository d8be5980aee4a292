"""The command without a verb: pictures to restored pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cfrestore import __version__
from cfrestore.cli import work
from cfrestore.options import Options, parse_faces

if TYPE_CHECKING:
    from cfrestore.image import Photo
    from cfrestore.pipeline import Pipeline, Restoration

DEFAULTS = Options()

app = typer.Typer(pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cfrestore {__version__}")
        raise typer.Exit


@app.command(
    cls=work.PictureCommand,
    epilog="Other commands: cfrestore inpaint|colorize|weights|doctor --help, "
    "cfrestore train autoencoder|codes|fusion --help",
)
def restore(
    inputs: work.Inputs,
    output: work.Output = None,
    w: Annotated[
        float,
        typer.Option(
            "--w",
            "-w",
            min=0.0,
            max=1.0,
            help="Fidelity: 0 is cleanest, 1 is truest to the input.",
        ),
    ] = DEFAULTS.fidelity,
    upscale: Annotated[
        int,
        typer.Option(
            "--upscale",
            "-s",
            metavar="1|2|4",
            help="Size of the result over that of the input.",
        ),
    ] = DEFAULTS.upscale,
    suffix: work.Suffix = None,
    overwrite: work.Overwrite = False,
    save_crops: work.SaveCrops = False,
    save_restored: work.SaveRestored = False,
    compare: work.Compare = False,
    aligned: work.Aligned = DEFAULTS.aligned,
    faces: work.Faces = "all",
    min_face: work.MinFace = DEFAULTS.min_face,
    draw_box: work.DrawBox = DEFAULTS.draw_box,
    detector: work.Detector = "auto",
    det_threshold: work.DetThreshold = None,
    parser: work.Parser = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH",
            rich_help_panel=work.NETWORKS,
            help="Weights: auto, published, compact or a file; auto downloads the published ones "
            "once, and takes the compact ones that come with cfrestore if it cannot.",
        ),
    ] = "auto",
    device: work.Device = "auto",
    precision: work.Precision = "auto",
    batch_size: work.BatchSize = DEFAULTS.batch_size,
    weights_dir: work.WeightsDir = None,
    offline: work.Offline = False,
    strict: work.Strict = False,
    quiet: work.Quiet = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Restores the faces in photographs.

    photo.jpg becomes photo.restored.jpg, a folder becomes folder.restored; nothing is overwritten.
    """
    options = Options(
        fidelity=w,
        upscale=upscale,
        aligned=aligned,
        batch_size=batch_size,
        faces=parse_faces(faces),
        min_face=min_face,
        draw_box=draw_box,
    )
    work.check_threshold(det_threshold, aligned)
    work.set_up(weights_dir, offline)
    from cfrestore.batch import plan

    kept = work.kept(save_crops, save_restored, compare)
    jobs = plan(inputs, output, overwrite=overwrite, suffix=suffix, kept=kept)

    def process(pipeline: Pipeline, photo: Photo) -> Restoration:
        return pipeline(photo, options)

    def load() -> Pipeline:
        return work.load(
            "restoration",
            model,
            detector=detector,
            threshold=det_threshold,
            parser=parser,
            device=device,
            precision=precision,
            aligned=aligned,
        )

    work.work(jobs, load, process, quiet=quiet, strict=strict)
