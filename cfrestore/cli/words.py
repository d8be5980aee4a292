"""The words that every command on pictures understands, and what they are by default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

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
from cfrestore.options import Options, parse_batch_size, parse_faces, parse_max_face, parse_quality

DEFAULTS = Options()

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Words:
    """What was said to a command, as far as every command on pictures understands it."""

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
    recursive: Annotated[
        bool,
        typer.Option(
            "--recursive",
            "-r",
            rich_help_panel=FILES,
            help="Folders with their sub-folders, whose tree is kept.",
        ),
    ] = False
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            rich_help_panel=FILES,
            help="Where to write: a file for one picture, else a folder, which exists or ends "
            "with a slash; - for stdout; or a template such as out/{stem}_w{w}.{ext}, which knows "
            "{dir} and {name} too. By default beside the input.",
        ),
    ] = None
    in_place: Annotated[
        bool,
        typer.Option("--in-place", rich_help_panel=FILES, help="Replace each input by its result."),
    ] = False
    suffix: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            rich_help_panel=FILES,
            help="Write photo_TEXT.jpg, and call all else that is written so too.",
        ),
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            rich_help_panel=FILES,
            help="Replace results that exist; inputs never are.",
        ),
    ] = False
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=FILES,
            help="What to write: jpeg, png, webp, tiff, bmp, gif, ppm, avif or heif. By default "
            "what the name of the output says, else what the input is.",
        ),
    ] = None
    quality: Annotated[
        str | None,
        typer.Option(
            metavar="1..100|keep",
            rich_help_panel=FILES,
            help="Of JPEG, WebP (100 is lossless), AVIF and HEIF; keep codes a JPEG as finely as "
            "it came. By default so too, but never coarser than 90; else 95, or 90.",
        ),
    ] = None
    metadata: Annotated[
        str,
        typer.Option(
            metavar="keep|strip",
            rich_help_panel=FILES,
            help="Keep EXIF, XMP and the like, and record in XMP what was done, or write nothing "
            "but resolution and colour profile beside the pixels.",
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
            help="Keep each face as the network saw it, in cropped_faces/ beside the result.",
        ),
    ] = False
    save_restored: Annotated[
        bool,
        typer.Option(
            "--save-restored",
            rich_help_panel=FILES,
            help="Keep each face as the network painted it, in restored_faces/ beside the result.",
        ),
    ] = False
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            rich_help_panel=FILES,
            help="Keep input and result side by side, in compared/ beside the result.",
        ),
    ] = False
    samples: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            rich_help_panel=FILES,
            help="Write N more results, in restored_samples/ beside the result: faces of codes "
            "that were drawn from what the network holds for likely.",
        ),
    ] = DEFAULTS.samples
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=MANY,
            help="Pictures that are read, and as many that are written, at once; by default up to "
            "4. Results do not depend on it.",
        ),
    ] = None
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
            help="What does the work: this machine, or a Ray cluster whose machines share the "
            "folders.",
        ),
    ] = "local"
    address: Annotated[
        str | None,
        typer.Option(
            metavar="auto|HOST:PORT",
            rich_help_panel=MANY,
            help="The Ray cluster; by default one that is started on this machine and stopped "
            "again.",
        ),
    ] = None
    actors: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=MANY,
            help="Copies of the networks in the Ray cluster; by default one for each GPU, or "
            "without any, for every two cores.",
        ),
    ] = None
    gpus_per_actor: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="F",
            rich_help_panel=MANY,
            help="GPUs, or part of one, for each copy of the networks; by default 1 where there "
            "is any.",
        ),
    ] = None
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            rich_help_panel=MANY,
            help="Go on with pictures that come into the folders, until interrupted.",
        ),
    ] = False
    aligned: Annotated[
        bool,
        typer.Option(
            "--aligned",
            rich_help_panel=FACES,
            help="Each picture is one aligned face; the result is square.",
        ),
    ] = DEFAULTS.aligned
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
            help="Leave faces alone whose box has a shorter side below this.",
        ),
    ] = DEFAULTS.min_face
    max_face: Annotated[
        str,
        typer.Option(
            metavar="auto|PIXELS|none",
            rich_help_panel=FACES,
            help="Leave faces alone whose box has a shorter side above this. auto: in restoration, "
            "those that are larger than the network paints and sharper than it can.",
        ),
    ] = str(DEFAULTS.max_face)
    temperature: Annotated[
        float,
        typer.Option(
            metavar="T",
            rich_help_panel=FACES,
            help="Of --samples: below 1 they are more alike, above 1 less.",
        ),
    ] = DEFAULTS.temperature
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            rich_help_panel=FACES,
            help="Of --samples: other numbers, other samples.",
        ),
    ] = DEFAULTS.seed
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
            help="How sure the detector must be; by default 0.8, and for mtcnn 0.9, or 0.7 if the "
            "face is large.",
        ),
    ] = None
    device: Device = "auto"
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=NETWORKS,
            help="What faces are painted in: fp32 (also auto), bf16 or fp16, and on CUDA tf32. A "
            "face that less than fp32 spoils is painted again. Unless it is fp32, a CPU that "
            "multiplies bf16 computes masks of faces in it.",
        ),
    ] = "auto"
    code_precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=NETWORKS,
            help="What the codes of a face are chosen in: fp32 (also auto), or on CUDA tf32, which "
            "is faster and changes about one code in a thousand, each a patch of the face.",
        ),
    ] = "auto"
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            rich_help_panel=NETWORKS,
            help="Compile the network first, on CUDA only; meant for many faces.",
        ),
    ] = False
    backend: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=NETWORKS,
            help="What runs the network that paints faces: torch, or on the CPU onnx or openvino, "
            "which come as extras and for which weights are exported once.",
        ),
    ] = "torch"
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="auto|N",
            rich_help_panel=NETWORKS,
            help="Faces in the network at once, of whatever pictures; halved where memory does "
            "not suffice. On the CPU always 1.",
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
            help="Settings, one `option = value` a line, for what is said neither here nor by "
            "variables such as CFRESTORE_W; by default cfrestore.toml here, else in your folder "
            "of settings.",
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
            help="Tell where the weights are, and how long each stage took.",
        ),
    ] = False

    def options(
        self, *, fidelity: float = DEFAULTS.fidelity, upscale: int = 1, draw_box: bool = False
    ) -> Options:
        """What is asked of the pipeline, with what only some commands understand.

        Raises:
            ConfigError: as Options.
        """
        return Options(
            fidelity=fidelity,
            upscale=upscale,
            aligned=self.aligned,
            batch_size=parse_batch_size(self.batch_size),
            faces=parse_faces(self.faces),
            min_face=self.min_face,
            max_face=parse_max_face(self.max_face),
            draw_box=draw_box,
            samples=self.samples,
            temperature=self.temperature,
            seed=self.seed,
        )


def check(words: Words, parser: Path | None = None) -> None:
    """Raises ConfigError if the words contradict each other; looks at nothing else."""
    searched = words.detector == "auto" and words.det_threshold is None and parser is None
    if words.aligned and not searched:
        raise ConfigError(
            "an aligned face is neither searched for nor outlined, so there is no detector, "
            "threshold or parser"
        )
    inputs = words.inputs or []
    if not inputs and words.files_from is None:
        raise ConfigError("there is no INPUT; `cfrestore --help` shows what can be said")
    if words.metadata not in ("keep", "strip"):
        raise ConfigError(f"metadata must be keep or strip, found {words.metadata!r}")
    if words.null and words.files_from is None:
        raise ConfigError("--null is said of the names in --files-from, and there is none")
    if words.files_from == "-" and "-" in inputs:
        raise ConfigError("stdin cannot be both a picture and a list of them")
    if words.output == "-" and words.json:
        raise ConfigError("stdout cannot have both the picture and JSON")
    if words.watch and ("-" in inputs or words.files_from is not None or words.dry_run):
        raise ConfigError("--watch looks at folders and patterns, neither at stdin nor at a list")
    if words.engine not in ENGINES:
        raise ConfigError(f"engine must be local or ray, found {words.engine!r}")
    ray = {
        "--address": words.address,
        "--actors": words.actors,
        "--gpus-per-actor": words.gpus_per_actor,
    }
    if words.engine != "ray" and (said := [k for k, v in ray.items() if v is not None]):
        raise ConfigError(f"{' and '.join(said)} is said of --engine ray")
    if words.engine == "ray" and ("-" in inputs or words.output == "-"):
        raise ConfigError("a cluster reads and writes files, neither stdin nor stdout")
    urls = [word for word in (*inputs, words.output or "") if "://" in word]
    if urls and words.engine != "ray":
        raise ConfigError(f"{urls[0]} is a URL, which --engine ray reads and writes")
    if urls and (words.watch or words.in_place or not words.output or "{" in words.output):
        raise ConfigError("with URLs -o is a file or folder, and nothing is watched or replaced")
    if words.samples and words.backend != "torch":
        raise ConfigError(
            f"only the backend torch can draw samples: {words.backend} does not tell how likely "
            "codes are"
        )
    parse_quality(words.quality)
