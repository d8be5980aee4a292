"""cfrestore doctor: checks whether this installation works on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cfrestore.doctor import Choice, Device, Folder, Report

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Shows versions, devices, folders and weights, and tests each once; downloads nothing.

    Exit code 4 if weights are wrong, 1 if anything else is, else 0.
    """
    from cfrestore.doctor import examine

    with redirect_stdout(sys.stderr):  # packages that fail to import may print to stdout
        report = examine()
    if as_json:
        found = {"problems": report.problems, "notes": report.notes, "exit_code": report.exit_code}
        plain = asdict(report) | {**found, "problems": [asdict(p) for p in report.problems]}
        typer.echo(json.dumps(plain, indent=2))
    else:
        for line in _lines(report):
            typer.echo(line)
    raise typer.Exit(report.exit_code)


def _lines(report: Report) -> Iterator[str]:
    yield f"cfrestore {report.cfrestore}, Python {report.python}, {report.platform}"
    memory = "memory unknown" if report.memory is None else f"{_gib(report.memory)} of memory"
    cuda = f"CUDA {report.cuda_version}" if report.cuda_version else "torch without CUDA"
    yield f"{report.cpus} CPUs, {memory}, {cuda}, NVIDIA driver {report.driver or 'not found'}"
    yield from _section(
        "packages",
        [
            (p.name, p.version or "-", f"PROBLEM: {p.error}" if p.error else "")
            for p in report.packages
        ],
    )
    yield from _section("devices", [(d.description, _trial(d)) for d in report.devices])
    yield from _section("folders", [(f.path, *_place(f)) for f in report.folders])
    yield from _section("environment", [(k, v) for k, v in report.environment.items()])
    yield from _section(
        "weights",
        [
            (w.name, w.state, f"PROBLEM: {w.error}" if w.error else w.path or "")
            for w in report.weights
        ],
    )
    yield from _section("by default", list(_chosen(report.auto)))
    yield ""
    yield from (f"note: {note}" for note in report.notes)
    yield from (f"problem: {problem.text}" for problem in report.problems)
    count = len(report.problems)
    yield f"{count} problem{'' if count == 1 else 's'} found" if count else "no problems found"


def _chosen(auto: Choice) -> Iterator[tuple[str, str]]:
    if auto.error:
        yield "PROBLEM", auto.error
        return
    yield "model", auto.model or ""
    yield "detector", auto.detector or ""
    yield "parser", auto.parser or "none, a whole soft square is pasted"
    yield "device", auto.device or ""


def _section(title: str, rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """A title and rows in aligned columns, except the last."""
    yield f"\n{title}"
    widths = [max(map(len, column)) for column in zip(*(row[:-1] for row in rows), strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)]
        yield f"  {'  '.join(cells)}".rstrip()
    if not rows:
        yield "  none"


def _trial(device: Device) -> str:
    if device.error:
        return f"PROBLEM: {device.error}"
    return f"w changes pixels (by {device.change} levels on average), {device.seconds:.1f} s"


def _place(folder: Folder) -> tuple[str, ...]:
    there = "exists" if folder.exists else "absent"
    writable = "writable" if folder.writable else "not writable"
    free = "free space unknown" if folder.free is None else f"{_gib(folder.free)} free"
    return there, writable, free, folder.purpose


def _gib(count: int) -> str:
    return f"{count / 2**30:.0f} GiB"
