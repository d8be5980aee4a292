"""Loss curves of a training run, as a PNG.

    python benchmarks/curves.py runs/*/log.jsonl --chart curves.png
    python benchmarks/curves.py docs/training/first-h100/*.jsonl --chart first-h100.png

Reads the logs of `cfrestore train`: one JSON object for every few iterations. Each file becomes a
column, and each of its losses a line over the iterations; perplexity and accuracy have their own
axis below.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib import pyplot

LOSSES = (
    *("pixel", "perceptual", "eyes", "regularity", "identity", "face"),
    *("codebook", "feature", "code", "critic", "lambda"),
)
OTHERS = ("perplexity", "accuracy", "images_per_second")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--chart", type=Path, required=True)
    options = parser.parse_args()
    size = (4.5 * len(options.logs), 6)
    figure, axes = pyplot.subplots(2, len(options.logs), squeeze=False, figsize=size)
    for column, log in zip(axes.T, options.logs, strict=True):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        for axis, keys in zip(column, (LOSSES, OTHERS), strict=True):
            for key in keys:
                points = [(row["iteration"], row[key]) for row in rows if key in row]
                if points:
                    axis.plot(*zip(*points, strict=True), label=key)
            axis.set_yscale("log")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7)
        column[0].set_title(log.stem if log.stem != "log" else log.parent.name)
        column[1].set_xlabel("iteration")
    figure.tight_layout()
    figure.savefig(options.chart, dpi=90)


if __name__ == "__main__":
    main()
