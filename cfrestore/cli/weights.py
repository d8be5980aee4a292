"""Weight files: list, download, check, locate, remove and convert them."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from cfrestore.cli.parameters import Offline, Overwrite, WeightsDir
from cfrestore.cli.report import make_console
from cfrestore.cli.work import set_up
from cfrestore.errors import WeightsError
from cfrestore.weights import (
    TERMS,
    UnreachableError,
    WeightFile,
    convert,
    expected_sha256,
    locate,
    missing,
    remove,
    sources,
    store_folder,
    table,
    verify,
    weight_file,
)

PUBLISHED = ("codeformer", "retinaface", "parsenet")
"""The files that restoration with the published model needs."""

app = typer.Typer(
    pretty_exceptions_enable=False, no_args_is_help=True, add_completion=False, help=__doc__
)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name or file name, see `cfrestore weights list`.")
]


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    weights_dir: WeightsDir = None,
) -> None:
    """Lists the known files with size, licence, purpose and location."""
    set_up(weights_dir, False)
    rows = [_describe(row) for row in table.WEIGHT_FILES]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    _print_table(rows)
    for row in rows:
        if row["error"]:
            make_console().print(f"error: {row['error']}")


@app.command("fetch")
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help=f"By default {', '.join(PUBLISHED)}."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All files of the list.")] = False,
    weights_dir: WeightsDir = None,
    offline: Offline = False,
) -> None:
    """Downloads missing files, and shows where they are."""
    from cfrestore.cli.supply import supply

    set_up(weights_dir, offline)
    console, failed = make_console(), False
    wanted = [row.name for row in table.WEIGHT_FILES] if everything else names or PUBLISHED
    for row in [weight_file(name) for name in wanted]:
        if row.shipped:
            console.print(f"{row.file} comes with cfrestore")
        try:
            supply([row.name], console, required=True)
            typer.echo(locate(row.name))
        except WeightsError as error:
            failed = True
            console.print(f"error: {error}")
            if isinstance(error, UnreachableError):
                break
    if failed:
        raise typer.Exit(4)


@app.command("verify")
def verify_(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="By default all that are on this machine."),
    ] = None,
    weights_dir: WeightsDir = None,
) -> None:
    """Reads files in full and compares their SHA-256 with the recorded one."""
    set_up(weights_dir, False)
    console, failed = make_console(), False
    rows = [weight_file(name) for name in names] if names else table.WEIGHT_FILES
    for row in rows:
        try:
            path = verify(row.name)
            if path is not None:
                known = "as published" if row.sha256 else "as first seen, none is on record"
                typer.echo(f"{row.name}: {path} is {known}")
            elif names:
                raise missing(row.name)
        except WeightsError as error:
            failed = True
            console.print(f"error: {error}")
    if failed:
        raise typer.Exit(4)


@app.command("path")
def path_(name: Name, weights_dir: WeightsDir = None) -> None:
    """Shows where a file is, after checking it."""
    set_up(weights_dir, False)
    path = locate(name)
    if path is None:
        raise missing(name)
    typer.echo(path)


@app.command("remove")
def remove_(name: Name, weights_dir: WeightsDir = None) -> None:
    """Removes a downloaded file; ./weights is not touched."""
    set_up(weights_dir, False)
    removed = remove(name)
    if not removed:
        raise WeightsError(f"{weight_file(name).file} is not in {store_folder()}")
    for path in removed:
        make_console().print(f"removed {path}")


@app.command("licence")
@app.command("license", hidden=True)
def licence(name: Name) -> None:
    """Explains what the licence of a file allows."""
    row = weight_file(name)
    terms = TERMS[row.licence]
    typer.echo(f"{row.file}: {row.licence}")
    typer.echo(textwrap.fill(terms.words, 88))
    typer.echo(f"In full: {terms.text}")


@app.command("convert")
def convert_(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .pth file of tensors.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="What to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Converts a file to safetensors, which load faster and cannot contain code."""
    convert(source, target, overwrite=overwrite)
    make_console().print(f"{source} -> {target}")


def _describe(row: WeightFile) -> dict[str, Any]:
    """A row of the table, with its state on this machine."""
    path, error = None, None
    try:
        path = locate(row.name)
    except WeightsError as problem:
        error = str(problem)
    return {
        "name": row.name,
        "file": row.file,
        "bytes": row.bytes,
        "sha256": row.sha256,
        "pinned": None if row.sha256 else expected_sha256(row),
        "licence": row.licence,
        "purpose": row.purpose,
        "urls": list(sources(row)),
        "path": None if path is None else str(path),
        "error": error,
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    """Prints a table with a few broad columns on terminals, else one aligned line per file."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False, highlight=False)
    if console.is_terminal:
        shown = Table(box=box.HORIZONTALS, show_lines=True)
        shown.add_column("name, file", no_wrap=True)
        shown.add_column("size", no_wrap=True, justify="right")
        shown.add_column("for, licence, where", overflow="fold")
        for name, file, size, licence, purpose, where in map(_cells, rows):
            shown.add_row(f"{name}\n{file}", size, f"{purpose}\n{licence}\n{where}")
        console.print(shown)
        return
    lines = [("name", "file", "size", "licence", "for", "where"), *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    size = "unknown" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f} MB"
    where = "here, but wrong" if row["error"] else row["path"] or "not here"
    return row["name"], row["file"], size, row["licence"], row["purpose"], where
