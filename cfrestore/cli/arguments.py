"""The options shared by all commands on pictures, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cfrestore.cli.parameters import (
    FACES,
    FILES,
    MANY,
    NETWORKS,
    TALK,
    Device,
    Offline,
    WeightsDir,
)
from cfrestore.cli.settings import use_settings
from cfrestore.errors import ConfigError
from cfrestore.options import (
    Options,
    Upsampling,
    parse_batch_size,
    parse_faces,
    parse_max_face,
    parse_quality,
)

DEFAULTS = Options()
UPSAMPLING = Upsampling()

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class CommonArguments:
    """The arguments shared by all commands that restore, fill or colour faces."""

    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            rich_help_panel=FILES,
            help="Where to write: a file for one input, else a folder, which exists or ends with a "
            "slash; or a template such as out/{stem}_w{w}.{ext}, also with {dir} and {name}; for a "
            "picture also - for stdout. By default beside the input.",
        ),
    ] = None
    recursive: Annotated[
        bool,
        typer.Option(
            "--recursive",
            "-r",
            rich_help_panel=FILES,
            help="Include sub-folders; results keep their tree.",
        ),
    ] = False
    suffix: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            rich_help_panel=FILES,
            help="Write photo_TEXT.jpg, and name all other files likewise.",
        ),
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            rich_help_panel=FILES,
            help="Replace existing results, but never inputs.",
        ),
    ] = False
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=MANY,
            help="How many pictures, or frames of a video, to read, and as many to write, at "
            "once; by default up to 4, or with pictures up to 16 if a card paints. Results do not "
            "depend on it.",
        ),
    ] = None
    faces: Annotated[
        str,
        typer.Option(
            metavar="WHICH",
            rich_help_panel=FACES,
            help="all, center, largest, or numbers such as 0,2, where 0 is the face that the "
            "detector is surest of.",
        ),
    ] = "all"
    min_face: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="PIXELS",
            rich_help_panel=FACES,
            help="Leave out faces whose box has a shorter side below this.",
        ),
    ] = DEFAULTS.min_face
    max_face: Annotated[
        str,
        typer.Option(
            metavar="auto|PIXELS|none",
            rich_help_panel=FACES,
            help="Leave out faces whose box has a shorter side above this. auto: restoration "
            "leaves out faces that are larger and sharper than the network can paint; inpaint "
            "and colorize leave out none.",
        ),
    ] = str(DEFAULTS.max_face)
    detector: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH",
            rich_help_panel=FACES,
            help="What finds faces: auto, retinaface, mobilenet, mtcnn or a RetinaFace file; auto "
            "takes the first whose weights are on this machine.",
        ),
    ] = "auto"
    det_threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            rich_help_panel=FACES,
            help="How sure the detector must be; by default 0.8, for mtcnn 0.9, or 0.7 if the face "
            "is large.",
        ),
    ] = None
    device: Device = "auto"
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=NETWORKS,
            help="Precision of painting: fp32 (also auto), bf16 or fp16, and on CUDA tf32. Faces "
            "that less than fp32 spoils are painted again. Unless it is fp32, CPUs that multiply "
            "bf16 compute masks of faces in it.",
        ),
    ] = "auto"
    code_precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=NETWORKS,
            help="Precision of choosing the codes of a face: fp32 (also auto), or on CUDA tf32 or "
            "fp16, which are faster and change about one and two codes in a thousand, each a patch "
            "of the face.",
        ),
    ] = "auto"
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            rich_help_panel=NETWORKS,
            help="Compile the network first, on CUDA only; pays off for many faces.",
        ),
    ] = False
    backend: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=NETWORKS,
            help="What runs the network that paints faces: torch, or on the CPU onnx or openvino, "
            "which are optional packages; weights are exported for them once.",
        ),
    ] = "torch"
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="auto|N",
            rich_help_panel=NETWORKS,
            help="Faces in the network at once, from any pictures; halved if there is not enough "
            "memory. On the CPU always 1.",
        ),
    ] = str(DEFAULTS.batch_size)
    weights_dir: WeightsDir = None
    offline: Offline = False
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            is_eager=True,
            callback=use_settings,
            rich_help_panel=TALK,
            help="Settings, one `option = value` per line, for options set neither here nor by "
            "variables such as CFRESTORE_W; by default cfrestore.toml here, else in your "
            "settings folder.",
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            rich_help_panel=TALK,
            help="Show what would be read and written, and do nothing.",
        ),
    ] = False
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=TALK,
            help="Write a line of JSON for each input to stdout; see docs/json.md.",
        ),
    ] = False
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            rich_help_panel=TALK,
            help="Exit code 1 also if less was done than asked for, such as a face left alone.",
        ),
    ] = False
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", rich_help_panel=TALK, help="Report failures only."),
    ] = False
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            rich_help_panel=TALK,
            help="Also show where the weights are, and how long each stage took.",
        ),
    ] = False

    def options(self, **more: Any) -> Options:
        """The options of the pipeline; `more` are those that only some commands have.

        Raises:
            ConfigError: a value is invalid or out of range.
        """
        return Options(
            batch_size=parse_batch_size(self.batch_size),
            faces=parse_faces(self.faces),
            min_face=self.min_face,
            max_face=parse_max_face(self.max_face),
            **more,
        )


@dataclass(frozen=True)
class PictureArguments(CommonArguments):
    """The arguments shared by all commands on pictures."""

    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="Pictures, folders, patterns, or - for stdin."),
    ] = None
    files_from: Annotated[
        str | None,
        typer.Option(
            "--files-from",
            metavar="FILE|-",
            rich_help_panel=FILES,
            help="Names of more pictures, one a line; -o is then a folder, which keeps their tree.",
        ),
    ] = None
    null: Annotated[
        bool,
        typer.Option(
            "--null",
            "-0",
            rich_help_panel=FILES,
            help="Names in --files-from end with a zero byte, as `find -print0` writes them.",
        ),
    ] = False
    in_place: Annotated[
        bool,
        typer.Option("--in-place", rich_help_panel=FILES, help="Replace each input by its result."),
    ] = False
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=FILES,
            help="Format to write: jpeg, png, webp, tiff, bmp, gif, ppm, avif or heif. By default "
            "that of the output's name, else that of the input.",
        ),
    ] = None
    quality: Annotated[
        str | None,
        typer.Option(
            metavar="1..100|keep",
            rich_help_panel=FILES,
            help="Quality of JPEG, WebP (100 is lossless), AVIF and HEIF; keep uses that of the "
            "input JPEG. By default the same, but at least 90; for other inputs 95, or 90.",
        ),
    ] = None
    metadata: Annotated[
        str,
        typer.Option(
            metavar="keep|strip",
            rich_help_panel=FILES,
            help="Keep EXIF, XMP and the like, and record in XMP what was done; or strip all but "
            "resolution and colour profile.",
        ),
    ] = "keep"
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=FILES,
            help="Refuse pictures with more pixels; by default 500 million.",
        ),
    ] = None
    save_crops: Annotated[
        bool,
        typer.Option(
            "--save-crops",
            rich_help_panel=FILES,
            help="Save each face as the network saw it, in cropped_faces/ beside the result.",
        ),
    ] = False
    save_restored: Annotated[
        bool,
        typer.Option(
            "--save-restored",
            rich_help_panel=FILES,
            help="Save each face as the network painted it, in restored_faces/ beside the result.",
        ),
    ] = False
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            rich_help_panel=FILES,
            help="Save input and result side by side, in compared/ beside the result.",
        ),
    ] = False
    samples: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            rich_help_panel=FILES,
            help="Write N more results, in restored_samples/ beside the result, with codes drawn "
            "from those that the network finds likely.",
        ),
    ] = DEFAULTS.samples
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            rich_help_panel=MANY,
            help="Do only the I-th of N parts, so that N machines share the work.",
        ),
    ] = None
    engine: Annotated[
        str,
        typer.Option(
            metavar="local|ray",
            rich_help_panel=MANY,
            help="Where to work: on this machine, or on a Ray cluster whose machines share the "
            "folders.",
        ),
    ] = "local"
    address: Annotated[
        str | None,
        typer.Option(
            metavar="auto|HOST:PORT",
            rich_help_panel=MANY,
            help="The Ray cluster; by default one is started on this machine and stopped again.",
        ),
    ] = None
    actors: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=MANY,
            help="Copies of the networks in the Ray cluster; by default one per GPU or, without "
            "GPUs, one per two cores.",
        ),
    ] = None
    gpus_per_actor: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="F",
            rich_help_panel=MANY,
            help="GPUs, or part of one, for each copy of the networks; by default 1 if there are "
            "any.",
        ),
    ] = None
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            rich_help_panel=MANY,
            help="Keep working on pictures that arrive in the folders, until interrupted.",
        ),
    ] = False
    turns: Annotated[
        bool,
        typer.Option(
            "--turns/--no-turns",
            rich_help_panel=FACES,
            help="Whether to search a picture turned as well if few of its faces are certain and "
            "upright, or none is found. It takes at least eight searches.",
        ),
    ] = True
    aligned: Annotated[
        bool,
        typer.Option(
            "--aligned",
            rich_help_panel=FACES,
            help="Each picture is one aligned face; the result is square.",
        ),
    ] = DEFAULTS.aligned
    temperature: Annotated[
        float,
        typer.Option(
            metavar="T",
            rich_help_panel=FACES,
            help="For --samples: below 1 they are more alike, above 1 less.",
        ),
    ] = DEFAULTS.temperature
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            rich_help_panel=FACES,
            help="For --samples: other seeds give other samples.",
        ),
    ] = DEFAULTS.seed

    def options(self, **more: Any) -> Options:
        return super().options(
            aligned=self.aligned,
            samples=self.samples,
            temperature=self.temperature,
            seed=self.seed,
            **more,
        )


def check(args: PictureArguments, parser: Path | None = None) -> None:
    """Raises ConfigError if the arguments contradict each other; looks at nothing else."""
    searched = args.detector == "auto" and args.det_threshold is None and parser is None
    if args.aligned and not searched:
        raise ConfigError(
            "an aligned face is neither searched for nor outlined, so there is no detector, "
            "threshold or parser"
        )
    inputs = args.inputs or []
    if not inputs and args.files_from is None:
        raise ConfigError("there is no INPUT; `cfrestore --help` shows the options")
    if "" in (*inputs, args.output):
        raise ConfigError("an input or output has an empty name, as an unset variable gives it")
    if args.metadata not in ("keep", "strip"):
        raise ConfigError(f"metadata must be keep or strip, found {args.metadata!r}")
    if args.null and args.files_from is None:
        raise ConfigError("--null is for the names in --files-from, which is not given")
    if args.files_from == "-" and "-" in inputs:
        raise ConfigError("stdin cannot be both a picture and a list of them")
    if args.output == "-" and args.json:
        raise ConfigError("stdout cannot have both the picture and JSON")
    if args.watch and ("-" in inputs or args.files_from is not None or args.dry_run):
        raise ConfigError("--watch is for folders and patterns, not for stdin or a list")
    if args.engine not in ENGINES:
        raise ConfigError(f"engine must be local or ray, found {args.engine!r}")
    ray = {
        "--address": args.address,
        "--actors": args.actors,
        "--gpus-per-actor": args.gpus_per_actor,
    }
    if args.engine != "ray" and (given := [k for k, v in ray.items() if v is not None]):
        raise ConfigError(f"{' and '.join(given)} needs --engine ray")
    if args.engine == "ray" and ("-" in inputs or args.output == "-"):
        raise ConfigError("a cluster reads and writes files, not stdin or stdout")
    urls = [word for word in (*inputs, args.output or "") if "://" in word]
    if urls and args.engine != "ray":
        raise ConfigError(f"{urls[0]} is a URL, which --engine ray reads and writes")
    if urls and (args.watch or args.in_place or not args.output or "{" in args.output):
        raise ConfigError("with URLs -o is a file or folder, and nothing is watched or replaced")
    if args.samples and args.backend != "torch":
        raise ConfigError(
            f"only the backend torch can draw samples: {args.backend} does not say how likely "
            "codes are"
        )
    parse_quality(args.quality)
