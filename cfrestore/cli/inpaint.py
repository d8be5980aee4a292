"""cfrestore inpaint: fills holes in faces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfrestore.cli.arguments import PictureArguments
from cfrestore.cli.parameters import TaskModel
from cfrestore.cli.picture import PictureCommand, with_arguments
from cfrestore.cli.work import work
from cfrestore.task import INPAINTING

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command(cls=PictureCommand)
@with_arguments(PictureArguments)
def inpaint(
    args: PictureArguments,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Picture of the input's size whose bright pixels are the holes: those at least "
            "half as bright as its brightest one; transparent pixels count as dark. By default the "
            "pure white pixels (255, 255, 255) of the input are the holes.",
        ),
    ] = None,
    model: TaskModel = "auto",
) -> None:
    """Fills holes in faces; every other pixel stays as it is.

    photo.jpg becomes photo.inpainted.jpg, a folder becomes folder.inpainted; nothing is
    overwritten. Parts of holes outside all faces stay as they are, and are reported.
    """
    options = args.options()
    from cfrestore.holes import mask_holes
    from cfrestore.image import MAX_PIXELS, read_photo

    limit = args.max_pixels or MAX_PIXELS
    holes = None if mask is None else mask_holes(read_photo(mask, max_pixels=limit))
    work(
        args,
        INPAINTING,
        model,
        lambda pipeline: pipeline.inpainting(holes, options),
        spared=() if mask is None else (mask.absolute(),),
    )
