"""cfrestore degrade: damages aligned faces as in training; seed and face name decide how."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfrestore.cli.output import prepare_output, write_json
from cfrestore.cli.report import make_console, progress
from cfrestore.errors import CFRestoreError, ConfigError
from cfrestore.files import is_folder

if TYPE_CHECKING:
    from cfrestore.batch import Job

SCHEMA = 1

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def degrade(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="An aligned face, or a folder with its sub-folders."),
    ],
    target: Annotated[
        str, typer.Argument(metavar="OUT", help="A file for one face, else a folder.")
    ],
    preset: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="How much damage: small, large, or paper (as published)."
        ),
    ] = "small",
    seed: Annotated[
        int, typer.Option(min=0, help="Decides the damage, together with each face's name.")
    ] = 0,
    size: Annotated[
        int | None,
        typer.Option(min=32, max=8192, metavar="PIXELS", help="Resize faces to this side first."),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Format to write; by default that of OUT's extension, and in folders png, which "
            "adds no damage.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Faces processed at once; by default up to 4. Results do not depend on it.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write a record of what was done; see docs/evaluation.md.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing results, but never inputs.")
    ] = False,
) -> None:
    """Damages aligned faces by blur, downsampling, noise and JPEG, and resizes them back.

    The damage depends on the seed and the face's name in the folder, with extension, but not on
    the other faces or the machine. Exit code 1 if a face could not be damaged.
    """
    if not target:
        raise ConfigError("OUT has an empty name, as an unset variable gives it")
    if target == "-" or str(source) == "-" or set("{}") & set(target):
        raise ConfigError("IN is a picture or a folder, and so is OUT")
    from cfrestore.batch import WORKERS, plan
    from cfrestore.device import one_thread
    from cfrestore.evaluate import find_preset
    from cfrestore.image.photo import printable

    ranges = find_preset(preset)
    jobs = plan(
        [source],
        target,
        overwrite=overwrite,
        recursive=True,
        format=format or (None if _named(source, target) else "png"),
    )
    prepare_output(json_file, [job.source for job in jobs], overwrite=overwrite)
    work = partial(_degrade, source, preset, seed, size)
    console, failed, files = make_console(), [], []
    pool = ThreadPoolExecutor(workers or WORKERS)
    try:
        with one_thread(), progress(len(jobs), console, shown=True) as advance:
            for job, done in zip(jobs, pool.map(partial(_tried, work), jobs), strict=True):
                advance(1)
                if isinstance(done, CFRestoreError):
                    console.print(printable(f"error: {done}"))
                    failed.append({"file": str(job.source), "error": str(done)})
                else:
                    files.append(done)
    finally:
        pool.shutdown(cancel_futures=True)
    console.print(f"{len(files)} of {len(jobs)} faces degraded, {preset}, seed {seed}")
    if json_file is not None:
        from dataclasses import asdict

        facts = {"schema": SCHEMA, "preset": preset, "ranges": asdict(ranges), "seed": seed}
        write_json(json_file, facts | {"size": size, "files": files, "failed": failed})
    if failed:
        raise typer.Exit(1)


def _named(source: Path, target: str) -> bool:
    """Whether OUT names a file, whose extension then decides the format."""
    return not (is_folder(source) or is_folder(Path(target)) or target.endswith(("/", os.sep)))


def _tried(work: Callable[[Job], dict[str, str]], job: Job) -> dict[str, str] | CFRestoreError:
    """What the work returns, or the error that it raises."""
    try:
        return work(job)
    except CFRestoreError as error:
        return error


def _degrade(root: Path, preset: str, seed: int, size: int | None, job: Job) -> dict[str, str]:
    """Reads, damages and writes a face; returns its record."""
    from cfrestore.batch.drafts import put
    from cfrestore.evaluate import damage, read_face
    from cfrestore.image import Photo, write_photo

    assert isinstance(job.source, Path) and isinstance(job.target, Path)
    inner = job.source.relative_to(root) if is_folder(root) else Path(job.source.name)
    face = read_face(job.source, size)
    damaged = Photo(damage(face, preset, seed, inner))
    put([(job.target, damaged)], job, write_photo, lambda prints, notes: None)
    return {"source": inner.as_posix(), "target": str(job.target)}
