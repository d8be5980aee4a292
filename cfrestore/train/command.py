"""`cfrestore train` and `python -m cfrestore.train`: turns arguments into calls."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from cfrestore.train.arguments import make_parser

if TYPE_CHECKING:
    import torch

    from cfrestore.train.codes import CodeSampler
    from cfrestore.train.config import ImageRecipe, PriorRecipe, Recipe, UpsamplerRecipe
    from cfrestore.train.data import Faces, Sampler
    from cfrestore.train.loop import End, Source, Stage

EXIT_INTERRUPTED = 130

SHARES = {"autoencoder": 0.45, "codes": 0.2, "fusion": 0.25, "polish": 0.1}
"""Each stage's share of the time; later stages cannot repair what the generator cannot paint."""


@dataclass(frozen=True)
class Place:
    """Where a stage is trained.

    Attributes:
        device: of this process.
        mixed: whether in mixed precision.
        rank, world: index of this process, and the number of processes.
    """

    device: torch.device
    mixed: bool
    rank: int
    world: int


def main(argv: Sequence[str]) -> int:
    """Runs a training command; returns its exit code, see docs/options.md."""
    arguments = make_parser().parse_args(argv)
    from cfrestore.errors import CFRestoreError

    commands = {"export": export, "all": course, "compact": course}
    try:
        return commands.get(arguments.stage, train)(arguments)
    except CFRestoreError as error:
        _say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted")
        return EXIT_INTERRUPTED


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _say_nothing(line: str) -> None:
    pass


def train(arguments: argparse.Namespace) -> int:
    """Builds the stage that the arguments describe, and runs it; returns the exit code.

    Mixed precision is used if the arguments say so, by default on CUDA.
    """
    import time

    from cfrestore.device import autotune, choose_device, choose_mixed, reuse_memory
    from cfrestore.train import distributed
    from cfrestore.train.loop import End

    began = time.monotonic()
    autotune()
    reuse_memory()
    device, rank, world = distributed.start(choose_device(arguments.device))
    place = Place(device, choose_mixed(arguments.bf16, device), rank, world)
    try:
        end = _run(arguments, place, began)
    finally:
        distributed.stop()
    return EXIT_INTERRUPTED if end is End.INTERRUPTED else 0


def _run(arguments: argparse.Namespace, place: Place, began: float) -> End:
    """Trains the stage.

    Args:
        began: start of the command, on the monotonic clock.
    """
    import time

    import torch

    from cfrestore.device import describe
    from cfrestore.train import distributed
    from cfrestore.train.config import UpsamplerRecipe, with_iterations
    from cfrestore.train.loop import Schedule, fitting
    from cfrestore.train.loop import train as loop

    say = _say if place.rank == 0 else _say_nothing
    recipe = _recipe(arguments, place.world)
    build, sampler = _ingredients(arguments, recipe, place, say)

    def begin(recipe: Recipe) -> Stage:
        torch.manual_seed(arguments.seed)
        return build(recipe)

    stage = begin(recipe)
    shape = stage.recipe if isinstance(stage.recipe, UpsamplerRecipe) else stage.recipe.model
    say(
        f"stage {stage.name}, preset {arguments.preset}: {len(sampler.shown.names)} pictures of "
        f"{shape.image_size} px, batch {recipe.optimisation.batch_size}, {describe(place.device)}"
    )
    if arguments.minutes:
        deadline = began + 60 * arguments.minutes
        fit = torch.tensor(fitting(stage, sampler, lambda: deadline - time.monotonic()))
        iterations = int(distributed.from_first(fit.to(place.device)))
        stage = begin(with_iterations(recipe, iterations))
        say(f"{iterations} iterations fit into {arguments.minutes:.1f} minutes")
    schedule = Schedule(
        arguments.log_every,
        arguments.save_every,
        arguments.samples_every,
        arguments.max_minutes,
        arguments.shard_mb,
    )
    return loop(stage, sampler, arguments.output, schedule, say, arguments.resume)


def _ingredients(
    arguments: argparse.Namespace, recipe: Recipe, place: Place, say: Callable[[str], None]
) -> tuple[Callable[[Recipe], Stage], Source]:
    """A function that builds the stage of a recipe, and this process's share of its batches."""
    from cfrestore.train.config import PriorRecipe, UpsamplerRecipe

    per_process = recipe.optimisation.batch_size // place.world
    share = per_process, arguments.seed, place.rank, place.world
    if isinstance(recipe, PriorRecipe):
        return _prior(arguments, recipe, place, share, say)
    if isinstance(recipe, UpsamplerRecipe):
        return _upsampler(arguments, recipe, place, share)
    return _images(arguments, recipe, place, share)


def _images(
    arguments: argparse.Namespace,
    recipe: ImageRecipe,
    place: Place,
    share: tuple[int, int, int, int],
) -> tuple[Callable[[Recipe], Stage], Sampler]:
    """A function that builds a stage on images, and its batches."""
    from cfrestore.train.config import PriorRecipe, UpsamplerRecipe
    from cfrestore.train.data import Sampler

    faces = _faces(tuple(arguments.data), recipe.model.image_size, place.device)

    def build(recipe: Recipe) -> Stage:
        assert not isinstance(recipe, PriorRecipe | UpsamplerRecipe)
        return _stage(arguments, recipe, place)

    return build, Sampler(faces, recipe.augmentation, *share)


def _prior(
    arguments: argparse.Namespace,
    recipe: PriorRecipe,
    place: Place,
    share: tuple[int, int, int, int],
    say: Callable[[str], None],
) -> tuple[Callable[[Recipe], Stage], CodeSampler]:
    """A function that builds a prior's stage, and its batches; faces are encoded only once.

    The autoencoder's checkpoint holds its configuration; one without is taken to be the published
    network.
    """
    from cfrestore.models.codeformer import CodeFormerConfig
    from cfrestore.train import checkpoint
    from cfrestore.train.codes import CodeSampler, load_codes
    from cfrestore.train.config import PriorRecipe
    from cfrestore.train.prior import CodePrior
    from cfrestore.train.teacher import Teacher

    content = checkpoint.read(arguments.autoencoder)
    stored = content.get("config")
    model = CodeFormerConfig.from_json(stored) if stored else CodeFormerConfig()
    teacher = Teacher(arguments.autoencoder, model).to(place.device)
    file = arguments.code_file or arguments.output / "codes.pt"
    settings = place.device, say, place.mixed, place.rank == 0
    codes = load_codes(arguments.data, teacher, file, *settings)
    seen, held_out = codes.split(recipe.held_out)

    def build(recipe: Recipe) -> Stage:
        assert isinstance(recipe, PriorRecipe)
        adapted = replace(recipe, model=model)
        return CodePrior(adapted, teacher, seen, held_out, place.device, place.mixed)

    return build, CodeSampler(seen, recipe.augmentation, *share)


def _upsampler(
    arguments: argparse.Namespace,
    recipe: UpsamplerRecipe,
    place: Place,
    share: tuple[int, int, int, int],
) -> tuple[Callable[[Recipe], Stage], Sampler]:
    """A function that builds an upsampler's stage, and batches of the pictures read and drawn."""
    from cfrestore.train.config import UpsamplerRecipe
    from cfrestore.train.data import Sampler, load_faces
    from cfrestore.train.scenes import draw_scenes
    from cfrestore.train.upsampler import SuperResolution

    pictures = load_faces(arguments.data, recipe.image_size, place.device)
    pictures += draw_scenes(recipe.scenes, recipe.image_size, arguments.seed)

    def build(recipe: Recipe) -> Stage:
        assert isinstance(recipe, UpsamplerRecipe)
        return SuperResolution(recipe, place.device, place.mixed)

    return build, Sampler(pictures, recipe.augmentation, *share)


@lru_cache(maxsize=1)
def _faces(sources: tuple[Path, ...], size: int, device: torch.device) -> Faces:
    """The faces, read once for all stages of a run."""
    from cfrestore.train.data import load_faces

    return load_faces(sources, size, device)


def course(arguments: argparse.Namespace) -> int:
    """Runs the commands of all stages of the preset, then the export; returns the exit code.

    When resuming, complete stages are not repeated; with --minutes, a stage that was begun keeps
    its number of iterations.
    """
    import time

    from cfrestore.errors import ConfigError
    from cfrestore.train import checkpoint
    from cfrestore.train.loop import iterations_of
    from cfrestore.train.presets import PRESETS, recipe

    began, whole = time.monotonic(), arguments.output
    recipe("fusion", arguments.preset)  # raises ConfigError, before any work, if it is unknown
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
    words = {"checkpoint": files[names[-1]], "output": target, "mean": []}
    words["licence"] = arguments.licence
    return export(argparse.Namespace(**words))


def _recipe(arguments: argparse.Namespace, world: int) -> Recipe:
    """The preset with the changes from the arguments."""
    from cfrestore.errors import ConfigError
    from cfrestore.train import config, presets

    recipe = presets.recipe(arguments.stage, arguments.preset)
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
    if isinstance(recipe, config.PriorRecipe | config.UpsamplerRecipe) or not arguments.perceptual:
        return recipe
    if not isinstance(recipe, config.CodesRecipe):
        return replace(recipe, perceptual=replace(recipe.perceptual, kind=arguments.perceptual))
    if appearance := recipe.appearance:
        appearance = replace(
            appearance, perceptual=replace(appearance.perceptual, kind=arguments.perceptual)
        )
    return replace(recipe, appearance=appearance)


def _stage(arguments: argparse.Namespace, recipe: ImageRecipe, place: Place) -> Stage:
    """Builds a stage with everything that it starts from."""
    from cfrestore.train.config import AutoencoderRecipe, CodesRecipe, PolishRecipe
    from cfrestore.train.learner import compile_blocks
    from cfrestore.train.perceptual import build_identity, build_perceptual
    from cfrestore.train.polish import Polish
    from cfrestore.train.stages import Autoencoder, CodePrediction, Fusion

    stage: Stage
    where = place.device, place.mixed
    frozen = arguments.retinaface, arguments.vgg, arguments.lpips
    if isinstance(recipe, CodesRecipe):
        perceptual = identity = None
        if recipe.appearance:
            perceptual = build_perceptual(recipe.appearance.perceptual, *frozen)
            identity = build_identity(recipe.appearance.identity, arguments.recogniser)
        begun = arguments.autoencoder, *where, arguments.start
        stage = CodePrediction(recipe, *begun, perceptual, identity)
    else:
        perceptual = build_perceptual(recipe.perceptual, *frozen)
        if isinstance(recipe, AutoencoderRecipe):
            identity = build_identity(recipe.identity, arguments.recogniser)
            stage = Autoencoder(recipe, perceptual, *where, identity, arguments.start)
        elif isinstance(recipe, PolishRecipe):
            start = arguments.fusion, arguments.autoencoder
            identity = build_identity(recipe.identity, arguments.recogniser)
            stage = Polish(recipe, *start, perceptual, *where, identity)
        else:
            start = arguments.codes, arguments.autoencoder
            stage = Fusion(recipe, *start, perceptual, *where)
    if arguments.compile:
        compile_blocks(stage.network)
    return stage


def export(arguments: argparse.Namespace) -> int:
    """Writes weights for cfrestore: fp16 safetensors that describe themselves."""
    import torch

    from cfrestore.checkpoint import write_tensors
    from cfrestore.errors import CheckpointError
    from cfrestore.train.checkpoint import mean
    from cfrestore.train.loop import read_state

    content = read_state(arguments.checkpoint)
    if content["stage"] not in ("fusion", "polish", "prior", "upsampler"):
        raise CheckpointError(
            f"{arguments.checkpoint} is of stage {content['stage']}; only fusion and polish have a "
            "whole network; priors and upsamplers are exported too"
        )
    averaged = mean(content["params_ema"], arguments.mean)
    weights = {k: v.to(torch.float16).contiguous() for k, v in averaged.items()}
    metadata = {
        "format": "pt",
        "config": content["config"],
        "recipe": json.dumps(
            {
                "stage": content["stage"],
                "iteration": content["iteration"],
                "mean": [(Path(path).name, share) for path, share in arguments.mean],
            }
            | json.loads(content["recipe"])
        ),
        "licence": arguments.licence,
    }
    metadata |= {key: content[key] for key in ("prior", "codebook") if key in content}
    write_tensors(arguments.output, weights, metadata)
    _say(f"{arguments.output}: {sum(v.numel() for v in weights.values()):,} parameters in fp16")
    return 0
