"""Every stage of training at small size, in one process or in several started by torchrun.

    python -m torch.distributed.run --nproc-per-node 2 tests/ranks.py ALONE FOLDER

ALONE is the folder with the results of one process; see test_train_ranks.py.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from test_train import CPU, CRITIC, HOW, MODEL, MOVING, Features, faces

from cfrestore.train import distributed
from cfrestore.train.config import (
    LARGE,
    SMALL,
    Augmentation,
    AutoencoderRecipe,
    CodesRecipe,
    FusionRecipe,
    Phase,
    PolishRecipe,
)
from cfrestore.train.data import Sampler
from cfrestore.train.loop import End, Schedule, Stage, train
from cfrestore.train.polish import Polish
from cfrestore.train.stages import Autoencoder, CodePrediction, Fusion

BATCH = 8

NAMES = ("autoencoder", "codes", "fusion", "polish", "judged")

LOOKS = Augmentation(shift=2, brightness=0.1, contrast=0.1, saturation=0.2, gray=0.3)


def build(name: str, alone: Path) -> Stage:
    """A stage that starts from one process's results of the stages before it."""
    torch.manual_seed(0)
    one, two, three = (alone / stage / "last.pt" for stage in ("autoencoder", "codes", "fusion"))
    if name == "autoencoder":
        return Autoencoder(AutoencoderRecipe(MODEL, HOW, MOVING), Features(), CPU)
    if name == "judged":
        # Without BatchNorm, whose statistics each process computes on its own.
        judge = replace(CRITIC, lead=1, spectral=True, detail=8, replays=2)
        recipe = AutoencoderRecipe(MODEL, HOW, MOVING, adversary=judge)
        return Autoencoder(recipe, Features(), CPU)
    if name == "codes":
        mixture = ((LARGE, 0.4), (SMALL, 0.6))
        return CodePrediction(CodesRecipe(MODEL, HOW, degradations=mixture), one, CPU)
    if name == "fusion":
        fusing = FusionRecipe(MODEL, HOW, (Phase(6, (1, 2)),))
        return Fusion(fusing, two, one, Features(), CPU)
    how = replace(HOW, batch_size=BATCH)
    return Polish(PolishRecipe(MODEL, how, unfused=0.25, irises=9), three, one, Features(), CPU)


def run(
    name: str,
    alone: Path,
    folder: Path,
    *,
    rank: int = 0,
    world: int = 1,
    resume: bool = False,
    minutes: float | None = None,
) -> bool:
    """Trains a stage with BATCH faces over all processes; returns whether it was completed."""
    sampler = Sampler(faces(), LOOKS, BATCH // world, 1, rank, world)
    schedule = Schedule(log_every=1, max_minutes=minutes)
    end = train(build(name, alone), sampler, folder / name, schedule, lambda _: None, resume)
    return end is End.DONE


def main() -> None:
    torch.set_num_threads(1)
    alone, folder = map(Path, sys.argv[1:])
    _, rank, world = distributed.start(CPU)
    for name in NAMES:
        assert run(name, alone, folder / "whole", rank=rank, world=world)
    # One iteration, for others to continue, and the continuation of what others began.
    assert not run("autoencoder", alone, folder / "begun", rank=rank, world=world, minutes=0)
    assert run("autoencoder", alone, folder / "taken", rank=rank, world=world, resume=True)
    distributed.stop()
    tasks = Path("/proc/self/task").glob("*/comm")  # none where there is no such folder
    assert not [name for task in tasks if "gloo" in (name := task.read_text())]


if __name__ == "__main__":
    main()
