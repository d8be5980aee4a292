"""cfrestore colorize: gives faces colours."""

from __future__ import annotations

import typer

from cfrestore.cli.arguments import PictureArguments
from cfrestore.cli.parameters import Parser, TaskModel
from cfrestore.cli.picture import PictureCommand, with_arguments
from cfrestore.cli.work import work
from cfrestore.task import COLORIZATION

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command(cls=PictureCommand)
@with_arguments(PictureArguments)
def colorize(args: PictureArguments, parser: Parser = None, model: TaskModel = "auto") -> None:
    """Gives faces new colours; the rest of the picture stays as it is, gray or not.

    photo.jpg becomes photo.colorized.jpg, a folder becomes folder.colorized; nothing is
    overwritten.
    """
    options = args.options()
    work(
        args,
        COLORIZATION,
        model,
        lambda pipeline: pipeline.colorizing(options),
        parser=parser,
    )
