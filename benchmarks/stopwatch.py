"""Measures pieces of work, each in its own process, in turn, so that drift affects all equally.

CPU seconds are those of all threads of the process; a table gives their median over the rounds and
their range, and ratios of medians.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
AS_A_COMMAND = {"OMP_WAIT_POLICY": "PASSIVE"}
"""What the command `cfrestore` sets for itself, see cfrestore/cli/__init__.py."""


@dataclass(frozen=True)
class Measured:
    """One piece of work, over several rounds.

    Attributes:
        seconds: CPU seconds of each round.
        wall: elapsed seconds of each round.
        peak: largest number of bytes that the process had resident.
        said: what else the worker reported, in the first round.
    """

    seconds: tuple[float, ...]
    wall: tuple[float, ...]
    peak: int
    said: Mapping[str, Any]

    @property
    def middle(self) -> float:
        return median(self.seconds)

    def range(self) -> str:
        return f"{self.middle:.3g} ({min(self.seconds):.3g} to {max(self.seconds):.3g})"


def time_of(work: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds and elapsed seconds that the work takes in this process."""
    start = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - start[0], time.perf_counter() - start[1]


def tell(seconds: float, wall: float, **more: Any) -> None:
    """Prints a worker's report when it is done."""
    print(json.dumps({"seconds": seconds, "wall": wall, "peak": peak(), **more}))


def peak() -> int:
    """The most memory, in bytes, that this process ever had resident."""
    return _status("VmHWM")


def resident() -> int:
    """The memory, in bytes, that this process has resident."""
    return _status("VmRSS")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def in_turn(
    workers: Mapping[str, Sequence[str]], rounds: int, environment: Mapping[str, str] | None = None
) -> dict[str, Measured]:
    """Runs workers, each a script with its arguments, one after the other, for several rounds.

    Those whose name contains `ours` run as the command does. Python keeps its bytecode, as it does
    where packages are installed.
    """
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for index in range(rounds):
        for name, words in workers.items():
            print(f"round {index + 1} of {rounds}: {name}", file=sys.stderr)
            command, own = [sys.executable, *words], AS_A_COMMAND if "ours" in name else {}
            variables = {**os.environ, **(environment or {}), **own}
            variables.pop("PYTHONDONTWRITEBYTECODE", None)
            done = subprocess.run(command, env=variables, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
            answers[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        name: Measured(
            tuple(answer["seconds"] for answer in all_),
            tuple(answer["wall"] for answer in all_),
            max(answer["peak"] for answer in all_),
            all_[0],
        )
        for name, all_ in answers.items()
    }


def machine() -> str:
    """One line about the machine of the measurement."""
    import torch

    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return (
        f"{len(names)} x {names[0]}, {torch.backends.cpu.get_cpu_capability()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def chart(path: Path, title: str, ratios: Mapping[str, float], limit: float | None = None) -> None:
    """Draws ratios to the reference, which is 1, as bars, with the target as a line."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.5 + 0.4 * len(ratios)), layout="constrained")
    names = list(ratios)[::-1]
    bars = axes.barh(names, [ratios[name] for name in names], color="#4878a8")
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.axvline(1, color="#888888", linewidth=1)
    if limit is not None:
        axes.axvline(limit, color="#c04040", linewidth=1, linestyle="--")
    figure.suptitle(title, fontsize=10)
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
