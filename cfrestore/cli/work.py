"""The steps of every command on pictures: plan, load, work, report."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import typer

from cfrestore.cli import report, uncollected
from cfrestore.cli.arguments import CommonArguments, PictureArguments, check
from cfrestore.cli.record import Facts, facts_of, provenance_of, record_of, record_of_plan
from cfrestore.errors import ConfigError, ImageError, OutputError, WeightsError
from cfrestore.options import Upsampling, parse_quality
from cfrestore.task import Task

if TYPE_CHECKING:
    from cfrestore.batch import Job, Outcome
    from cfrestore.pipeline import Pipeline
    from cfrestore.procedure import Procedure


PICTURES = "pictures"


def set_up(weights_dir: Path | None, offline: bool) -> None:
    """Sets the environment variables for the weights folder and for offline use."""
    if weights_dir is not None:
        os.environ["CFRESTORE_HOME"] = str(weights_dir)
    if offline:
        os.environ["CFRESTORE_OFFLINE"] = "1"


def work(
    args: PictureArguments,
    task: Task,
    model: str,
    procedure_of: Callable[[Pipeline], Procedure],
    *,
    parser: Path | None = None,
    fidelity: float | None = None,
    spared: Sequence[Path] = (),
    upsampling: Upsampling = Upsampling(),  # noqa: B008
) -> None:
    """Plans, loads the pipeline, downloading weights if needed, runs the jobs, and reports each.

    Args:
        procedure_of: makes the procedure from the pipeline.
        fidelity: the value of {w} in a template.
        spared: absolute paths of other files that are read, and so must not be overwritten.
    Raises:
        typer.Exit: code 1 if something failed, 130 if interrupted.
    """
    check(args, parser)
    stdout = sys.stdout
    if args.json and stdout is None:
        raise ConfigError("stdout is closed, but --json is to be written there")
    try:
        with redirect_stdout(sys.stderr), ExitStack() as stack:  # packages' output goes to stderr
            places = stack.enter_context(_reached(args))
            look = _planner(args, places, task, fidelity, spared)
            jobs = look()
            if args.dry_run:
                return show_jobs(jobs, args, stdout, PICTURES)
            if not (jobs or args.watch):
                return report.make_console().print("there is nothing to do")
            if not args.watch:
                check_there(jobs)
            prepare = partial(_prepare, args, task, model, parser, procedure_of, upsampling)
            engine = _on_cluster if args.engine == "ray" else _here
            with engine(args, prepare, jobs, stdout, places.home) as (do, about):
                if not args.quiet:
                    for line in about.lines:
                        report.make_console().print(line)
                parts = _arriving(look) if args.watch else (jobs,)
                done = task.participle
                fine = [_report(part, do(part), args, done, about.facts, stdout) for part in parts]
    except KeyboardInterrupt:
        report.make_console().print("interrupted")
        raise typer.Exit(130) from None
    if not all(fine):
        raise typer.Exit(1)
    return None


@dataclass(frozen=True)
class Places:
    """Inputs and output, as planning takes them.

    Attributes:
        listed: the names of --files-from.
        home: the folder in which the command was run, if that is no longer the current one.
    """

    inputs: Sequence[str]
    listed: Sequence[Path]
    output: str | None
    home: Path | None = None


@contextmanager
def _reached(args: PictureArguments) -> Iterator[Places]:
    """Mirrors remote files in a temporary current folder if there are URLs, see `batch.remote`.

    Raises:
        ConfigError, ImageError: as `mirror`.
    """
    from tempfile import TemporaryDirectory

    from cfrestore.batch.remote import is_remote, mirror

    listed = () if args.files_from is None else _listed(args.files_from, null=args.null)
    inputs, output = args.inputs or [], args.output
    if not any(map(is_remote, (*inputs, *listed, output))):
        yield Places(inputs, listed, output)
        return
    home = Path.cwd()

    def absolute(word: str) -> str:
        # Path would drop a trailing slash, which marks a folder.
        return word if is_remote(word) else os.path.join(home, word)  # noqa: PTH118

    with TemporaryDirectory(prefix="cfrestore-") as folder:
        os.chdir(folder)
        try:
            mirror([*inputs, *listed], output, recursive=args.recursive)
            target = output if output is None else absolute(output)
            names = [name if is_remote(name) else home / name for name in listed]
            yield Places([absolute(word) for word in inputs], names, target, home)
        finally:
            os.chdir(home)


def _planner(
    args: PictureArguments,
    places: Places,
    task: Task,
    fidelity: float | None,
    spared: Sequence[Path],
) -> Callable[[], Sequence[Job]]:
    """A function that plans the jobs of the arguments, afresh at each call."""
    from cfrestore.batch import COMPARED, CROPS, RESTORED, SAMPLES, parse_shard, plan
    from cfrestore.image.photo import printable

    output = places.output
    files = args.files_from is not None and output not in (None, "-")
    if files and not set("{}") & set(str(output)):
        output = f"{output}/"  # a folder, however many names there are
    wanted = {
        CROPS: args.save_crops,
        RESTORED: args.save_restored,
        COMPARED: args.compare,
        SAMPLES: args.samples > 0,
    }
    said: set[str] = set()

    def say(sentence: str) -> None:
        if not args.quiet and sentence not in said:  # --watch plans repeatedly
            report.make_console().print(printable(sentence))
        said.add(sentence)

    return partial(
        plan,
        places.inputs,
        output,
        overwrite=args.overwrite,
        mark=task.mark,
        suffix=args.suffix,
        kept=tuple(folder for folder, asked in wanted.items() if asked),
        recursive=args.recursive,
        in_place=args.in_place,
        format=args.format,
        fidelity=fidelity,
        shard=None if args.shard is None else parse_shard(args.shard),
        isolate=args.watch,
        listed=places.listed,
        spared=spared,
        say=say,
    )


def check_there(jobs: Sequence[Job]) -> None:
    """Raises ImageError if no picture exists, before any weights are downloaded."""
    absent = [
        job.source for job in jobs if isinstance(job.source, Path) and not _exists(job.source)
    ]
    if len(absent) == len(jobs):
        raise ImageError(f"{', '.join(map(str, absent))} cannot be read: there is no such file")


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:  # reported when it is read
        return True
    return True


def _listed(file: str, *, null: bool) -> Sequence[Path]:
    """The pictures named in a file, or on stdin for `-`."""
    from cfrestore.batch import read_list

    if file == "-":
        if sys.stdin is None:
            raise ConfigError("stdin is closed, but --files-from is to read it")
        return read_list(sys.stdin.buffer, null=null)
    try:
        with Path(file).open("rb") as stream:
            return read_list(stream, null=null)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error


def show_jobs(jobs: Sequence[Job], args: CommonArguments, stdout: TextIO, noun: str) -> None:
    """Prints the plan and, with --json, its records; noun is what inputs are called, plural."""
    report.show_plan(jobs, report.make_console(), noun)
    if args.json:
        for job in jobs:
            report.write_record(record_of_plan(job), stdout)


@contextmanager
def _streams(
    jobs: Sequence[Job], stdout: TextIO | None
) -> Iterator[tuple[BinaryIO | None, BinaryIO | None]]:
    """Stdin and stdout for jobs that use them; None if closed.

    A reader that closes the pipe ends the process, as with any other filter.

    Raises:
        OutputError: a picture would go to a terminal.
    """
    from cfrestore.batch import Stream

    source = None if sys.stdin is None else sys.stdin.buffer
    if not any(job.target is Stream.STDOUT for job in jobs):
        yield source, None
        return
    if stdout is not None and stdout.isatty():
        raise OutputError(
            "a picture is not written to a terminal; name a file with -o, or redirect with > or |"
        )
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL) if hasattr(signal, "SIGPIPE") else None
    try:
        yield source, None if stdout is None else stdout.buffer
    finally:
        if hasattr(signal, "SIGPIPE"):
            signal.signal(signal.SIGPIPE, before)


@dataclass(frozen=True)
class About:
    """Facts about a pipeline and a procedure, which may be on another machine.

    Attributes:
        facts, provenance: see `facts_of` and `provenance_of`.
        lines: introductory messages.
        settings: the procedure's.
    """

    facts: Facts
    provenance: Mapping[str, str]
    lines: tuple[str, ...]
    settings: Mapping[str, object]


def _prepare(
    args: PictureArguments,
    task: Task,
    model: str,
    parser: Path | None,
    procedure_of: Callable[[Pipeline], Procedure],
    upsampling: Upsampling,
) -> tuple[Procedure, About]:
    """Loads the pipeline and makes the procedure, on this machine."""
    set_up(args.weights_dir, args.offline)
    pipeline = load(
        args,
        task,
        model,
        parser,
        aligned=args.aligned,
        turns=args.turns,
        upsampling=upsampling,
    )
    procedure = procedure_of(pipeline)
    about = About(
        facts_of(pipeline),
        provenance_of(pipeline, procedure),
        report.introduction(pipeline, args.config, verbose=args.verbose),
        procedure.settings,
    )
    return procedure, about


Prepare = Callable[[], "tuple[Procedure, About]"]
Do = Callable[["Sequence[Job]"], "Generator[Outcome, None, None]"]


@contextmanager
def _here(
    args: PictureArguments,
    prepare: Prepare,
    jobs: Sequence[Job],
    stdout: TextIO | None,
    home: Path | None,
) -> Iterator[tuple[Do, About]]:
    """Runs jobs on this machine."""
    from cfrestore.batch import run

    with _streams(jobs, stdout) as (source, sink):
        procedure, about = prepare()
        yield (
            partial(
                run,
                procedure=procedure,
                workers=args.jobs,
                stdin=source,
                stdout=sink,
                **_ends(args, about),
            ),
            about,
        )


@contextmanager
def _on_cluster(
    args: PictureArguments,
    prepare: Prepare,
    jobs: Sequence[Job],
    stdout: TextIO | None,
    home: Path | None,
) -> Iterator[tuple[Do, About]]:
    """Runs jobs on a Ray cluster; networks are loaded only there.

    Args:
        home: see Places.
    """
    from cfrestore.batch import cluster

    with cluster.connected(args.address):
        staff = cluster.hire(args.actors, args.gpus_per_actor, args.jobs)
        about = cluster.ask(lambda: prepare()[1], staff, home)
        ends = _ends(args, about)
        settings = {**about.settings, **ends.pop("settings")}
        load = lambda: prepare()[0]  # noqa: E731
        do = partial(cluster.run, load=load, staff=staff, settings=settings, home=home, **ends)
        yield do, about


def _ends(args: PictureArguments, about: About) -> dict[str, Any]:
    """The arguments `read`, `write` and `settings` of both engines."""
    from cfrestore.image import MAX_PIXELS, read_photo, write_photo

    quality = parse_quality(args.quality)
    return {
        "read": partial(read_photo, max_pixels=args.max_pixels or MAX_PIXELS),
        "write": partial(
            write_photo,
            quality=quality,
            metadata="strip" if args.metadata == "strip" else "keep",
            provenance=about.provenance,
        ),
        "settings": {"quality": quality, "metadata": args.metadata},
    }


def _arriving(look: Callable[[], Sequence[Job]]) -> Iterator[Sequence[Job]]:
    """Jobs as their pictures arrive, until interrupted."""
    from cfrestore.batch import watch

    return watch(look)


def _report(
    jobs: Sequence[Job],
    running: Generator[Outcome, None, None],
    args: PictureArguments,
    done: str,
    facts: Facts,
    stdout: TextIO,
) -> bool:
    """Reports each picture as it ends; returns whether all succeeded."""
    with report.progress(len(jobs), report.make_console(), shown=not args.quiet) as advance:
        return report_outcomes(
            len(jobs), running, args, done, facts, stdout, advance=advance, noun=PICTURES
        )


def report_outcomes(
    total: int,
    running: Generator[Outcome, None, None],
    args: CommonArguments,
    done: str,
    facts: Facts,
    stdout: TextIO,
    *,
    advance: Callable[[int], object],
    noun: str,
) -> bool:
    """Reports each job as it ends, and in the end all of them; returns whether all succeeded.

    Args:
        total: number of jobs.
        done: what has been done to a face, a participle.
        facts: see `facts_of`.
        advance: called with the number of faces of each job.
        noun: what the inputs are called, plural.
    """
    console = report.make_console()
    outcomes: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        advance(outcome.restored)
        if args.json:
            report.write_record(record_of(outcome, facts), stdout)
        if not (args.quiet and outcome.complete):
            console.print(report.describe(outcome, done, verbose=args.verbose))

    try:
        with closing(running):
            outcome = next(running, None)
            while outcome is not None:
                try:
                    tell(outcome)
                    outcome = next(running, None)
                except KeyboardInterrupt as interruption:  # pictures being written are told of, too
                    outcome = running.throw(interruption)
    finally:
        if total > 1 and not args.quiet:
            report.conclude(outcomes, total, console, noun)
    return not any(o.error or (args.strict and not o.complete) for o in outcomes)


@uncollected()
def load(
    args: CommonArguments,
    task: Task,
    model: str,
    parser: Path | None,
    *,
    aligned: bool = False,
    turns: bool,
    upsampling: Upsampling = Upsampling(),  # noqa: B008
) -> Pipeline:
    """Loads the pipeline of a task, after downloading missing weights.

    Published weights are used with the detector and the parser that they are published with,
    unless others are named.

    Raises:
        WeightsError: weights that the user named, or that have no substitute, are unavailable.
        CheckpointError, ConfigError: as `load_pipeline`.
    """
    from cfrestore.device import reuse_memory
    from cfrestore.network import choose_execution
    from cfrestore.pipeline import load_pipeline

    reuse_memory()
    # Fails before a long download, not after.
    choose_execution(
        args.backend,
        args.device,
        args.precision,
        args.code_precision,
        compile=args.compile,
    )
    _supply(task, model, args.detector, parser, upsampling.network, aligned=aligned)
    return load_pipeline(
        model,
        args.detector,
        args.device,
        parser,
        threshold=args.det_threshold,
        precision=args.precision,
        code_precision=args.code_precision,
        compile=args.compile,
        task=task.name,
        backend=args.backend,
        aligned=aligned,
        turns=turns,
        upsampling=upsampling,
    )


def _supply(
    task: Task,
    model: str,
    detector: str,
    parser: Path | None,
    upsampler: str | Path | None,
    *,
    aligned: bool,
) -> None:
    """Downloads the weights that `load_pipeline` would miss; raises WeightsError as `load`."""
    from cfrestore.cli.supply import supply
    from cfrestore.upsample import UPSAMPLERS
    from cfrestore.weights import locate

    console = report.make_console()
    if detector in ("retinaface", "mobilenet"):
        supply([detector], console, required=True)
    if upsampler in UPSAMPLERS:
        supply([UPSAMPLERS[upsampler]], console, required=True)
    if model not in ("auto", "published"):
        return
    try:
        supply([task.weights], console, required=model == "published" or not task.has_compact)
    except WeightsError as error:
        if task.has_compact:
            raise
        raise WeightsError(f"{error}; there are no compact weights for {task.name}") from error
    if not aligned and locate(task.weights):
        wanted = {
            "retinaface": detector == "auto",
            "parsenet": task.parses and parser is None,
        }
        supply([name for name, yes in wanted.items() if yes], console, required=False)
