"""What a photograph costs on this machine, and so what a billion photographs would need.

    python benchmarks/scale.py measure --json costs.json [--ray] [--megapixels 4] [--rounds 5]
    python benchmarks/scale.py plan costs.json [--faces-a-second 181] [--faces 1.5] [--cores 16] ...

`measure` restores one photograph, step by step, in one thread of this machine, and gives the CPU
seconds of each step (medians) and the bytes read and written. With --ray, it also restores many
tiny pictures on a Ray cluster of this machine, which shows what a picture costs the driver.

`plan` simulates runs on clusters of several sizes: machines fail at random, the pictures that they
were working on are repeated, and they come back. Between such events, all work at the pace of the
bottleneck: cores, GPUs, the network card of a machine, the driver, or the shared storage.
Everything that was not measured is an option, and is printed.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from stopwatch import machine, table, time_of

from cfrestore import Options, load_pipeline, read_photo, write_photo
from cfrestore.image import Photo

EXAMPLE = Path(__file__).parents[1] / "examples" / "collins.jpg"

RUNS = 15
"""Number of simulated runs of each size."""


@dataclass(frozen=True)
class Costs:
    """What one photograph costs.

    Attributes:
        read, find, paint, paste, write: CPU seconds, with the shipped weights.
        faces: number of faces found.
        bytes_in, bytes_out: sizes of the files.
        pixels: number of pixels of the photograph.
        passing: CPU seconds of the driver of a Ray cluster.
    """

    read: float
    find: float
    paint: float
    paste: float
    write: float
    faces: int
    bytes_in: int
    bytes_out: int
    pixels: int
    passing: float | None = None


@dataclass(frozen=True)
class Assumed:
    """What is assumed instead of measured.

    Attributes:
        pictures: number of pictures in the whole archive.
        faces: faces per photograph, on average.
        faces_a_second: faces that one GPU paints, without finding and parsing; 0: there is no GPU.
        cores: cores of a machine, each as fast as one here.
        card: bytes a second of a machine's network card, each way.
        requests: reads and writes a second that the storage serves in total.
        drivers: runs that share the archive, each with its own shard and driver.
        passing: seconds of a driver's time per picture; 0: the measured time, else 0.01.
        hours_to_failure: mean time until a machine fails.
        minutes_away: time until it is back.
        in_hand: pictures that a machine has begun but not finished, per core.
        fatal: share of the pictures that kill their workers twice.
    """

    pictures: float = 1e9
    faces: float = 1.5
    faces_a_second: float = 181.0
    cores: int = 16
    card: float = 3.1e9
    requests: float = 9000.0
    drivers: int = 0
    passing: float = 0.0
    hours_to_failure: float = 1000.0
    minutes_away: float = 10.0
    in_hand: int = 8
    fatal: float = 1e-6


@dataclass(frozen=True)
class Run:
    """One simulated run."""

    hours: float
    failures: int
    again: float


def cpu_seconds(costs: Costs, assumed: Assumed) -> float:
    """CPU seconds per photograph, without painting if GPUs paint."""
    for_faces = costs.paste + (0.0 if assumed.faces_a_second else costs.paint)
    return costs.read + costs.find + costs.write + for_faces * assumed.faces / costs.faces


def paces(costs: Costs, assumed: Assumed, machines: int, drivers: int) -> dict[str, float]:
    """Photographs a second that each part of a cluster could process."""
    apart = (machines - 1) / machines  # pictures that another machine paints
    carried = max(costs.bytes_in, costs.bytes_out) + 2 * 3 * costs.pixels * apart  # each way
    found = {
        "cores": machines * assumed.cores / cpu_seconds(costs, assumed),
        "network cards": machines * assumed.card / carried,
        "drivers": drivers / (assumed.passing or costs.passing or 0.01),
        "storage": assumed.requests / 2,
    }
    if assumed.faces_a_second:
        found["GPUs"] = machines * assumed.faces_a_second / assumed.faces
    return found


def simulate(
    pace: Callable[[int], float], machines: int, assumed: Assumed, chance: random.Random
) -> Run:
    """Simulates one run.

    Args:
        pace: photographs a second for a number of machines.
    """
    left, now, failures, again, away = assumed.pictures, 0.0, 0, 0.0, list[float]()
    rate = 1 / (assumed.hours_to_failure * 3600)
    in_hand = assumed.in_hand * assumed.cores
    while True:
        there = machines - len(away)
        speed = pace(there) if there else 0.0
        fails = now + chance.expovariate(rate * there) if there else float("inf")
        back = away[0] if away else float("inf")
        then = min(fails, back)
        if speed and now + left / speed <= then:
            return Run((now + left / speed) / 3600, failures, again)
        left -= speed * (then - now)
        now = then
        if back <= fails:
            heapq.heappop(away)
        else:
            failures += 1
            again += in_hand
            left += in_hand
            heapq.heappush(away, now + assumed.minutes_away * 60)


def plan(costs: Costs, assumed: Assumed) -> None:
    rows = []
    for machines in (1, 4, 16, 64, 256, 1024):
        drivers = assumed.drivers or max(1, machines // 16)

        def pace(there: int, drivers: int = drivers) -> float:
            return min(paces(costs, assumed, there, drivers).values())

        found = paces(costs, assumed, machines, drivers)
        part = min(found, key=lambda name: found[name])
        chance = random.Random(machines)
        runs = [simulate(pace, machines, assumed, chance) for _ in range(RUNS)]
        hours = [run.hours for run in runs]
        speed = found[part]
        rows.append(
            [
                f"{machines}",
                f"{drivers}",
                f"{speed:,.0f}",
                part,
                f"{speed * costs.bytes_in / 1e9:.2f}, {speed * costs.bytes_out / 1e9:.2f}",
                f"{median(hours):,.0f} ({min(hours):,.0f} to {max(hours):,.0f})",
                f"{median(hours) * machines:,.0f}",
                f"{median(run.failures for run in runs):,.0f}",
                f"{median(run.again for run in runs) / assumed.pictures:.1e}",
            ]
        )
    print("measured: " + ", ".join(f"{k} {v:.3g}" for k, v in asdict(costs).items() if v))
    print("assumed: " + ", ".join(f"{k} {v:g}" for k, v in asdict(assumed).items()) + "\n")
    head = ["machines", "drivers", "photographs/s", "bound by", "GB/s in, out"]
    head += ["hours (range)", "machine hours", "machines that fail", "done again"]
    print(table(head, rows))
    read, written = (assumed.pictures * size / 1e12 for size in (costs.bytes_in, costs.bytes_out))
    crashed = assumed.pictures * assumed.fatal
    print(f"\n{read:,.0f} TB read, {written:,.0f} TB written, {crashed:,.0f} pictures crashed")


def measure(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    pipeline = load_pipeline("compact", "mtcnn", device="cpu")
    procedure = pipeline.restoring(Options())
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.jpg"), Path(folder, "out.jpg")
        write_photo(photograph(options.megapixels), source, quality=90)
        steps: dict[str, list[float]] = {}

        def timed(step: str, work: Callable[..., Any], *values: Any) -> Any:
            found: list[Any] = []
            seconds, _ = time_of(lambda: found.append(work(*values)))
            steps.setdefault(step, []).append(seconds)
            return found[0]

        for _ in range(options.rounds + 1):  # the first to warm up
            photo = timed("read", read_photo, source)
            prepared = timed("find", procedure.prepare, photo)
            painted = timed("paint", procedure.paint, prepared.faces)
            restored = timed("paste", prepared.finish, painted)
            timed("write", write_photo, restored.photo, target)
        costs = Costs(
            **{step: median(values[1:]) for step, values in steps.items()},
            faces=len(prepared.faces),
            bytes_in=source.stat().st_size,
            bytes_out=target.stat().st_size,
            pixels=photo.size[0] * photo.size[1],
            passing=passing(Path(folder)) if options.ray else None,
        )
    print(machine())
    for name, value in asdict(costs).items():
        print(f"{name}: {value if value is None else format(value, '.4g')}")
    if options.json:
        options.json.write_text(json.dumps(asdict(costs)))


def photograph(megapixels: float) -> Photo:
    """A portrait of that size with grain; its face is about 500 pixels wide at any size."""
    face = read_photo(EXAMPLE).pixels
    side = round((megapixels * 1e6) ** 0.5)
    face = cv2.resize(face, (1000, 1000), interpolation=cv2.INTER_CUBIC)
    rim = max(0, side - 1000)
    before, after = rim // 2, rim - rim // 2
    whole = cv2.copyMakeBorder(face, before, after, before, after, cv2.BORDER_REFLECT_101)
    grain = np.random.default_rng(0).normal(0, 4, (*whole.shape[:2], 1))
    return Photo((whole + grain).round().clip(0, 255).astype(np.uint8))


def passing(folder: Path) -> float:
    """CPU seconds of the driver for each of 200 tiny pictures, painted by one Ray actor."""
    from cfrestore.batch import cluster, plan

    source = folder / "tiny"
    source.mkdir()
    pixels = cv2.resize(read_photo(EXAMPLE).pixels, (30, 24))
    for index in range(200):
        write_photo(Photo(pixels), source / f"{index}.png")
    options = Options(aligned=True)

    def load() -> Any:
        return load_pipeline("compact", "mtcnn", "cpu").restoring(options)

    seconds = []
    with cluster.connected(None):
        staff = cluster.hire(1, None, 1)
        for count in (40, 160):  # the first measures what does not depend on their number
            jobs = plan(sorted(source.iterdir())[:count], folder / f"out{count}")
            start = time.process_time()
            outcomes = list(cluster.run(jobs, load, staff, {}))
            seconds.append(time.process_time() - start)
            assert all(outcome.error is None for outcome in outcomes)
    return (seconds[-1] - seconds[-2]) / 120


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    measuring = verbs.add_parser("measure")
    measuring.add_argument("--megapixels", type=float, default=4)
    measuring.add_argument("--rounds", type=int, default=5)
    measuring.add_argument("--ray", action="store_true")
    measuring.add_argument("--json", type=Path)
    planning = verbs.add_parser("plan")
    planning.add_argument("costs", type=Path)
    for name, value in asdict(Assumed()).items():
        planning.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = parser.parse_args()
    if options.verb == "measure":
        return measure(options)
    costs = Costs(**json.loads(options.costs.read_text()))
    values = vars(options)
    return plan(costs, Assumed(**{name: values[name] for name in asdict(Assumed())}))


if __name__ == "__main__":
    main()
