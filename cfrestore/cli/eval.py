"""cfrestore eval: measures restored faces, by published and by simple metrics."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfrestore.cli.measured import (
    FIDELITIES,
    EvalArguments,
    protocol_of,
    show,
    write_faces,
)
from cfrestore.cli.output import prepare_output, write_json
from cfrestore.cli.parameters import Device, Offline, Overwrite, WeightsDir
from cfrestore.cli.report import make_console, progress
from cfrestore.cli.work import set_up
from cfrestore.errors import ConfigError
from cfrestore.files import is_folder

if TYPE_CHECKING:
    from rich.console import Console

    from cfrestore.evaluate import MetricFiles, PairedFaces, Sample
    from cfrestore.pipeline import Pipeline

SHEET_FACES = 10

MODEL, WEIGHTS, OUTPUT = "Restoring here", "Weights of metrics", "Output"
"""Headings of the help."""

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


def _file(name: str, panel: str, help: str) -> Any:
    return typer.Option(f"--{name}", metavar="FILE", rich_help_panel=panel, help=help)


@app.command()
def evaluate(
    restored: Annotated[
        Path | None,
        typer.Argument(metavar="RESTORED", help="Restored faces, a folder or one picture."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The same faces, clean, found by their names."),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Hold the faces to a published test: celeba-test, lfw-test, webphoto-test or "
            "wider-test.",
        ),
    ] = None,
    any_count: Annotated[
        bool, typer.Option("--any-count", help="Measure a part of a published test too.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the first N faces, by name.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            rich_help_panel=MODEL,
            help="Aligned faces to be restored here, in place of RESTORED.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            rich_help_panel=MODEL,
            help="What restores them: auto, which is the default, published, compact or a file.",
        ),
    ] = None,
    degrade: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            rich_help_panel=MODEL,
            help="Damage them first, as `cfrestore degrade` does, and compare with what they were: "
            "small, large or paper, or several with commas.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, rich_help_panel=MODEL, help="Of the damage.")] = 0,
    w: Annotated[
        str | None,
        typer.Option(
            "--w",
            metavar="NUMBERS",
            rich_help_panel=MODEL,
            help=f"Fidelities, with commas; by default {FIDELITIES}.",
        ),
    ] = None,
    match: Annotated[
        bool | None,
        typer.Option(
            "--match/--no-match",
            rich_help_panel=MODEL,
            help="Whether codes get the statistics of the input's features, latent AdaIN; by "
            "default as the model says.",
        ),
    ] = None,
    nearest: Annotated[
        bool,
        typer.Option(
            "--nearest",
            rich_help_panel=MODEL,
            help="Paint the nearest codes too, in place of the predicted ones.",
        ),
    ] = False,
    autoencoder: Annotated[
        bool,
        typer.Option(
            "--autoencoder",
            rich_help_panel=MODEL,
            help="Paint the clean faces of their nearest codes too, at w = 0.",
        ),
    ] = False,
    vgg: Annotated[Path | None, _file("vgg", WEIGHTS, "LPIPS: torchvision's VGG-16.")] = None,
    lpips: Annotated[
        Path | None, _file("lpips", WEIGHTS, "LPIPS: the calibration 0.1 for VGG.")
    ] = None,
    arcface: Annotated[
        Path | None,
        _file(
            "arcface",
            WEIGHTS,
            "Identity: facexlib's recognition_arcface_ir_se50, or InsightFace's .onnx.",
        ),
    ] = None,
    inception: Annotated[
        Path | None, _file("inception", WEIGHTS, "FID: pt_inception-2015-12-05-6726825d.")
    ] = None,
    statistics: Annotated[
        Path | None,
        _file("statistics", WEIGHTS, "FID: statistics of clean faces, or a folder of these."),
    ] = None,
    json_file: Annotated[
        Path | None,
        _file("json", OUTPUT, "Where to write the figures of each face; - for stdout."),
    ] = None,
    sheet: Annotated[
        Path | None,
        _file("sheet", OUTPUT, f"Write the first {SHEET_FACES} faces, in columns."),
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    weights_dir: WeightsDir = None,
    offline: Offline = False,
) -> None:
    """Measures restored faces, or restores faces and measures them.

    A table of means goes to stderr, and JSON with every face to stdout unless that is a terminal.
    Metrics whose weights or packages are not here are reported as not computed. Exit code 1 if a
    face could not be measured, or has no partner.
    """
    args = EvalArguments(
        restored, reference, data, model, degrade, seed, w, match, nearest, autoencoder, protocol
    )
    _check(args)
    set_up(weights_dir, offline)
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):  # packages' output goes to stderr
        console = make_console()
        from cfrestore.evaluate import MetricFiles
        from cfrestore.image import writable_format

        files = MetricFiles(vgg, lpips, arcface, inception, statistics)
        faces = _find(args, limit, any_count)
        inputs = [path for pair in faces.pairs.values() for path in pair]
        target = None if json_file == Path("-") else json_file
        if sheet is not None:
            writable_format(sheet.suffix or "png", str(sheet))
        for written in (target, sheet):
            prepare_output(written, [*inputs, *_given(files)], overwrite=overwrite)
        record, columns = _measure(args, faces, files, device, console)
        show(record, console)
    if target is not None:
        write_json(target, record)
    elif stdout is not None and (json_file is not None or not stdout.isatty()):
        stdout.write(json.dumps(record, indent=1, allow_nan=False) + "\n")
    if sheet is not None and columns:
        write_faces(sheet, columns)
    if record["failed"] or any(record["unmatched"].values()):
        raise typer.Exit(1)


def _check(args: EvalArguments) -> None:
    """Raises ConfigError if the arguments contradict each other."""
    if (args.restored is None) == (args.data is None):
        raise ConfigError("say either RESTORED, or --data and what restores it")
    here = {
        "--model": args.model is not None,
        "--degrade": args.degrade is not None,
        "--w": args.w is not None,
        "--match": args.match is not None,
        "--nearest": args.nearest,
        "--autoencoder": args.autoencoder,
    }
    present = [name for name, yes in here.items() if yes]
    if args.data is None and present:
        raise ConfigError(f"{', '.join(present)} is said of faces that are restored here, --data")
    if args.degrade is not None and args.reference is not None:
        raise ConfigError("faces that --degrade damages are compared with what they were")
    if args.autoencoder and args.degrade is None and args.reference is None:
        raise ConfigError("--autoencoder needs clean faces: --degrade, or --reference")
    _ = args.fidelities  # reading them checks them
    if args.degrade is not None or args.protocol is not None:
        from cfrestore.evaluate import find_preset, find_protocol

        for name in args.degradations:
            find_preset(name)
        if args.protocol is not None:
            find_protocol(args.protocol)


def _given(files: MetricFiles) -> Iterator[Path]:
    paths = (getattr(files, field.name) for field in fields(files))
    return (path for path in paths if path is not None)


def _find(args: EvalArguments, limit: int | None, any_count: bool) -> PairedFaces:
    """Finds the faces; raises ImageError or ConfigError for none, or other than the protocol's."""
    from cfrestore.evaluate import (
        PairedFaces,
        check_protocol,
        find_faces,
        find_protocol,
        match_faces,
    )

    place = args.restored or args.data
    assert place is not None
    faces = (
        PairedFaces({name: (path, None) for name, path in find_faces(place).items()})
        if args.reference is None
        else match_faces(place, args.reference)
    )
    faces = replace(faces, pairs=dict(islice(faces.pairs.items(), limit)))
    if args.protocol is not None:
        clean = args.reference is not None or args.degrade is not None
        check_protocol(
            find_protocol(args.protocol), tuple(faces.pairs), clean=clean, any_count=any_count
        )
    return faces


def _measure(
    args: EvalArguments, faces: PairedFaces, files: MetricFiles, device: str, console: Console
) -> tuple[dict[str, Any], list[list[Any]]]:
    """Measures the faces; returns the record, and the columns of the sheet."""
    from cfrestore.device import choose_device, describe
    from cfrestore.evaluate import Judge, as_record, evaluate
    from cfrestore.image.photo import printable

    place = choose_device(device)
    pipeline = None if args.data is None else _load(args, device, console)
    judge = Judge(files, place)
    make = partial(_pair, faces) if pipeline is None else _maker(pipeline, args, faces)
    columns: list[list[Any]] = []
    with progress(len(faces.pairs), console, shown=True) as advance:

        def after(name: str, sample: Sample) -> None:
            advance(1)
            if len(columns) < SHEET_FACES:
                clean = () if sample.clean is None else (sample.clean,)
                columns.append([*clean, *sample.images.values()])

        evaluation = evaluate(faces.pairs, make, judge, after)
    unmatched = {
        "without_reference": faces.without_reference,
        "without_restored": faces.without_restored,
    }
    for error in evaluation.failed.values():
        console.print(printable(f"error: {error}"))
    for where, names in unmatched.items():
        if names:
            console.print(printable(f"{where.replace('_', ' ')}: {', '.join(names)}"))
    clean = args.reference is not None or args.degrade is not None
    protocol = protocol_of(args, faces, evaluation, describe(place), pipeline)
    record = as_record(evaluation, protocol, judge.facts(clean=clean))
    record["unmatched"] = {where: list(names) for where, names in unmatched.items()}
    return record, columns


def _pair(faces: PairedFaces, name: str) -> Sample:
    from cfrestore.evaluate import read_pair

    return read_pair(*faces.pairs[name])


def _maker(pipeline: Pipeline, args: EvalArguments, faces: PairedFaces) -> Callable[[str], Sample]:
    """A function from a face's name to its Sample; the path below --data decides the damage."""
    from cfrestore.evaluate import Restorer

    restore = Restorer(
        pipeline, args.fidelities, args.degradations, args.seed, args.nearest, args.autoencoder
    )
    assert args.data is not None
    root = args.data

    def make(name: str) -> Sample:
        path, clean = faces.pairs[name]
        inner = path.relative_to(root).as_posix() if is_folder(root) else path.name
        return restore(path, clean, inner)

    return make


def _load(args: EvalArguments, device: str, console: Console) -> Pipeline:
    """Loads the pipeline of the model, after downloading its weights if needed."""
    from cfrestore.cli.supply import supply
    from cfrestore.pipeline import load_pipeline

    model = args.model or "auto"
    if model in ("auto", "published"):
        supply(["codeformer"], console, required=model == "published")
    pipeline = load_pipeline(model, device=device, aligned=True)
    for note in pipeline.notes:
        console.print(f"note: {note}")
    return replace(pipeline, match_statistics=args.match)
