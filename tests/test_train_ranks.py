"""Several processes learn the same as one, and none waits for a process that is gone."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import ranks
import torch

from cfrestore.degrade import LARGE, degrade
from cfrestore.part import Part
from cfrestore.train.data import augment

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="needs torch with gloo"
)

REPOSITORY = Path(__file__).parents[1]

WAIT = 240  # seconds until a test that would hang fails

TOLERANCE = 1e-4
"""For losses after six steps of Adam, because sums are taken in another order."""


def torchrun(*words: str) -> list[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launch, "--nproc-per-node", "2", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def losses(folder: Path) -> list[dict[str, float]]:
    """The log of each iteration, without the speed."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    for value in values:
        del value["images_per_second"]
    return values


# Parts


def test_a_batch_is_dealt_out_with_every_piece_of_it() -> None:
    whole = torch.arange(10)
    for world in (1, 2, 3, 4, 11):
        parts = [Part(10, rank, world) for rank in range(world)]
        assert sorted(torch.cat([part.of(whole) for part in parts]).tolist()) == list(range(10))
        for part in parts:
            pieces = part.split([3, 0, 7])
            assert [piece.whole for piece in pieces] == [3, 0, 7]
            own = [piece.of(x) for piece, x in zip(pieces, whole.split([3, 0, 7]), strict=True)]
            assert [len(x) for x in own] == list(map(len, pieces))
            assert torch.equal(torch.cat(own), part.of(whole))


@pytest.mark.parametrize("world", [2, 4])
def test_a_face_is_damaged_and_augmented_alike_whoever_has_it(world: int) -> None:
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    damage = LARGE.scaled(32)
    together = degrade(images, damage, torch.Generator().manual_seed(1))
    for rank in range(world):
        part, generator = Part(6, rank, world), torch.Generator().manual_seed(1)
        own = degrade(part.of(images), damage, generator, part)
        torch.testing.assert_close(own, part.of(together), rtol=0, atol=2 / 255)
        looks = augment(part.of(images), ranks.LOOKS, torch.Generator().manual_seed(2), part)
        every = augment(images, ranks.LOOKS, torch.Generator().manual_seed(2))
        torch.testing.assert_close(looks, part.of(every))
        after = torch.rand(1, generator=generator)
        none = torch.Generator().manual_seed(1)
        assert degrade(images[:0], damage, none, Part(6, 7, 8)).shape == (0, 3, 32, 32)
        assert torch.equal(after, torch.rand(1, generator=none))


# Two processes


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The results of one process, and those of two for the same training."""
    alone, folder = (tmp_path_factory.mktemp(name) for name in ("alone", "two"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ranks.NAMES:
        assert ranks.run(name, alone, alone)
    assert not ranks.run("autoencoder", alone, folder / "taken", minutes=0)
    done = subprocess.run(
        torchrun(str(REPOSITORY / "tests/ranks.py"), str(alone), str(folder)),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    yield alone, folder
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", ranks.NAMES)
def test_two_processes_with_half_the_batch_each_have_the_losses_of_one(
    pair: tuple[Path, Path], name: str
) -> None:
    alone, folder = pair
    expected, found = losses(alone / name), losses(folder / "whole" / name)
    assert len(found) == len(expected) == 6
    # Remembered pictures are in half precision, which amplifies differences in the last bits.
    tolerance = 10 * TOLERANCE if name == "judged" else TOLERANCE
    for one, two in zip(expected, found, strict=True):
        assert two == pytest.approx(one, rel=tolerance, abs=1e-6)
    if name == "judged":
        assert all("lambda" in values and "critic" in values for values in expected[3:])


@pytest.mark.slow
def test_training_is_resumed_by_another_number_of_processes(pair: tuple[Path, Path]) -> None:
    alone, folder = pair
    expected = losses(alone / "autoencoder")
    for name in ("taken", "begun"):  # two continue what one began, and the other way round
        assert len(losses(folder / name / "autoencoder")) == (6 if name == "taken" else 1)
        if name == "begun":
            state = torch.load(folder / "begun/autoencoder/last.pt", weights_only=True)
            assert [len(latents) for latents in state["waiting"]] == [ranks.BATCH]
            assert ranks.run("autoencoder", alone, folder / "begun", resume=True)
        for one, other in zip(expected, losses(folder / name / "autoencoder"), strict=True):
            assert other == pytest.approx(one, rel=TOLERANCE, abs=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_ends_ends_all_with_a_message(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "faces").mkdir()
    for n in range(4):
        pixels = np.random.default_rng(n).integers(0, 256, (64, 64, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"faces/{n}.png"), pixels)
    words = ["-m", "cfrestore.train", "autoencoder", "--device", "cpu", "--perceptual", "none"]
    words += ["--data", str(tmp_path / "faces"), "--output", str(tmp_path / "out")]
    words += ["--batch-size", "2", "--log-every", "1", "--samples-every", "1000000"]
    log = tmp_path / "out/log.jsonl"
    with subprocess.Popen(
        torchrun(*words), env=environment(), stderr=subprocess.PIPE, text=True
    ) as launcher:
        try:
            deadline = time.monotonic() + WAIT
            while not (log.exists() and log.read_text()):
                assert launcher.poll() is None, launcher.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.1)
            os.kill(rank_of(launcher.pid, 1), number)
            _, err = launcher.communicate(timeout=WAIT)
        finally:
            launcher.kill()
    assert launcher.returncode != 0
    if number == signal.SIGTERM:
        assert "stopped at iteration" in err
        assert (tmp_path / "out/last.pt").is_file()
    else:
        assert "error: another process of this training has ended; --resume continues" in err


def rank_of(launcher: int, rank: int) -> int:
    """The process with that rank among the children of torchrun."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for pid in children:
        told = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in told:
            return int(pid)
    raise AssertionError(children)
