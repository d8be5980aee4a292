"""cfrestore degrade: aligned faces damaged as in training, each by what its name draws."""

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

if TYPE_CHECKING:
    from cfrestore.batch import Job

SCHEMA = 1

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def degrade(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="An aligned face, or a folder, with those below.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="OUT", help="A file for one face, else a folder.")
    ],
    preset: Annotated[
        str, typer.Option(metavar="NAME", help="How much: small, large, or paper.")
    ] = "small",
    seed: Annotated[int, typer.Option(min=0, help="With each name it decides the damage.")] = 0,
    size: Annotated[
        int | None,
        typer.Option(min=32, metavar="PIXELS", help="Bring faces to this side first."),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What to write; by default what OUT is called, and in folders png, for others "
            "would damage faces further.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Faces at once; by default up to 4. Results do not depend on it.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write what was done; see docs/evaluation.md."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results that exist; inputs never are.")
    ] = False,
) -> None:
    """Damages aligned faces: blur, fewer pixels, noise, JPEG, and back to their size.

    What becomes of a face depends on the seed and on its name in the folder, with extension: not on
    the other faces, nor on the machine. Exit code 1 if a face could not be damaged.
    """
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
    """Whether OUT is the name of a file, which then says its format."""
    return not (source.is_dir() or Path(target).is_dir() or target.endswith(("/", os.sep)))


def _tried(work: Callable[[Job], dict[str, str]], job: Job) -> dict[str, str] | CFRestoreError:
    try:
        return work(job)
    except CFRestoreError as error:
        return error


def _degrade(root: Path, preset: str, seed: int, size: int | None, job: Job) -> dict[str, str]:
    """One face read, damaged and written; what is recorded of it."""
    from cfrestore.batch.drafts import put
    from cfrestore.evaluate import damage, read_face
    from cfrestore.image import Photo, write_photo

    assert isinstance(job.source, Path) and isinstance(job.target, Path)
    inner = job.source.relative_to(root) if root.is_dir() else Path(job.source.name)
    face = read_face(job.source, size)
    damaged = Photo(damage(face, preset, seed, inner))
    put([(job.target, damaged)], job, write_photo, lambda prints, notes: None)
    return {"source": inner.as_posix(), "target": str(job.target)}
