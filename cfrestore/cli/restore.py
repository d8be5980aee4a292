"""The command without a verb: restores pictures."""

from __future__ import annotations

from typing import Annotated

import typer

from cfrestore import __version__
from cfrestore.cli import VERBS
from cfrestore.cli.arguments import DEFAULTS, UPSAMPLING, PictureArguments
from cfrestore.cli.parameters import (
    BgTile,
    BgUpsampler,
    FaceUpsample,
    Fidelity,
    Model,
    Parser,
    Upscale,
)
from cfrestore.cli.picture import PictureCommand, with_arguments
from cfrestore.cli.work import work
from cfrestore.errors import ConfigError
from cfrestore.options import parse_upsampling
from cfrestore.task import RESTORATION

app = typer.Typer(pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cfrestore {__version__}")
        raise typer.Exit


@app.command(
    cls=PictureCommand,
    epilog=f"Other commands: cfrestore {'|'.join(VERBS)} --help",
)
@with_arguments(PictureArguments)
def restore(
    args: PictureArguments,
    w: Fidelity = DEFAULTS.fidelity,
    upscale: Upscale = DEFAULTS.upscale,
    bg_upsampler: BgUpsampler = "none",
    face_upsample: FaceUpsample = UPSAMPLING.faces,
    bg_tile: BgTile = UPSAMPLING.tile,
    draw_box: Annotated[
        bool, typer.Option("--draw-box", help="Draw a green frame around what was pasted.")
    ] = DEFAULTS.draw_box,
    parser: Parser = None,
    model: Model = "auto",
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            allow_from_autoenv=False,
            help="Show the version.",
        ),
    ] = False,
) -> None:
    """Restores the faces in photographs.

    photo.jpg becomes photo.restored.jpg, a folder becomes folder.restored; nothing is overwritten.
    """
    options = args.options(fidelity=w, upscale=upscale, draw_box=draw_box)
    upsampling = parse_upsampling(bg_upsampler, face_upsample, bg_tile)
    if args.aligned and upsampling.network:
        raise ConfigError("an aligned face always gets the network's size, without up-samplers")
    work(
        args,
        RESTORATION,
        model,
        lambda pipeline: pipeline.restoring(options),
        parser=parser,
        fidelity=w,
        upsampling=upsampling,
    )
