"""What starting costs: the help, a whole command on one photograph, and opening the network.

    python benchmarks/startup.py [--rounds 5] [--chart startup.png]

CPU seconds are those of all threads, including the start of the interpreter. The photograph has
2 MP and one face, and is restored with the shipped weights. Opening the published network, with
random weights here, is compared with building it with random numbers, torch.load, and copying.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import stopwatch
import torch
from baseline import random_state

from cfrestore.image import Photo, read_photo, write_photo
from cfrestore.models.codeformer import CodeFormer, CodeFormerConfig
from cfrestore.weights import load_codeformer

EXAMPLE = Path(__file__).parents[1] / "examples" / "collins.jpg"
SIZE = (1200, 1700)
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "cfrestore --help": ["-m", "cfrestore", "--help"],
    "cfrestore weights list": ["-m", "cfrestore", "weights", "list"],
    "python -c 'import torch'": ["-c", "import torch"],
    "cfrestore two-megapixels.png": [
        *("-m", "cfrestore", "two-megapixels.png", "-o", "result.png"),
        *("--model", "compact", "--offline", "--overwrite", "--device", "cpu"),
    ],
}
OPENINGS = (
    "torch.load, random numbers, copy",
    "load_codeformer, .pth",
    "load_codeformer, safetensors",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chart", type=Path)
    parser.add_argument("--command", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--opening", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.command:
        run(*options.command)
    elif options.opening:
        open_network(*options.opening)
    else:
        measure(options.rounds, options.chart)


def measure(rounds: int, chart: Path | None) -> None:
    print(stopwatch.machine() + "\n")
    with tempfile.TemporaryDirectory() as folder:
        photograph(Path(folder) / "two-megapixels.png")
        state = random_state(CodeFormerConfig())
        torch.save({"params_ema": state}, Path(folder) / "random.pth")
        subprocess.run(
            [
                sys.executable,
                "-m",
                "cfrestore",
                "weights",
                "convert",
                "random.pth",
                "random.safetensors",
            ],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        commands = {name: [__file__, "--command", name, folder] for name in COMMANDS}
        found = stopwatch.in_turn(commands, rounds)
        rows = [[name, times.range(), f"{min(times.wall):.2f}"] for name, times in found.items()]
        print(stopwatch.table(["command", "CPU s (range)", "s that passed, least"], rows), "\n")
        openings = {name: [__file__, "--opening", name, folder] for name in OPENINGS}
        found = stopwatch.in_turn(openings, rounds, stopwatch.ONE_THREAD)
    yardstick = found[OPENINGS[0]]
    ratios = {name: times.middle / yardstick.middle for name, times in found.items()}
    rows = [
        [name, times.range(), f"{ratios[name]:.2f}", f"{times.said['resident'] / 1e6:.0f}"]
        for name, times in found.items()
    ]
    print(stopwatch.table(["opening", "CPU s (range)", "ratio", "MB resident more"], rows))
    if chart:
        stopwatch.chart(chart, "CPU time of opening the network", ratios, 0.1)


def photograph(path: Path) -> None:
    face = cv2.resize(read_photo(EXAMPLE).pixels, SIZE[:1] * 2, interpolation=cv2.INTER_CUBIC)
    pixels = np.full((*SIZE, 3), 128, np.uint8)
    pixels[:, 250 : 250 + SIZE[0]] = face
    write_photo(Photo(pixels), path)


def run(name: str, folder: str) -> None:
    """Runs a command and reports what it took."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *COMMANDS[name]], cwd=folder, check=True, capture_output=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    stopwatch.tell(used.ru_utime + used.ru_stime, time.perf_counter() - start)


def open_network(name: str, folder: str) -> None:
    """Opens the network in one of three ways; its imports count, except torch."""
    torch.set_num_threads(1)
    kind = "safetensors" if name.endswith("safetensors") else "pth"
    path = Path(folder) / f"random.{kind}"

    def plainly() -> CodeFormer:
        network = CodeFormer()
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state["params_ema"])
        return network

    kept: list[CodeFormer] = []
    before = stopwatch.resident()
    work = plainly if name == OPENINGS[0] else lambda: load_codeformer(path)
    spent = stopwatch.time_of(lambda: kept.append(work()))
    stopwatch.tell(*spent, resident=stopwatch.resident() - before)


if __name__ == "__main__":
    main()
