"""What the network costs on one thread of the CPU, compared with the plain published network.

    python benchmarks/network.py [--rounds 3] [--chart network.png]

The published size has random weights, which cost the same as trained ones. `as a library` is for
programs that call cfrestore; the commands also make the C library keep memory
(cfrestore.device.reuse_memory). Each row is a separate process, which computes one face after one
as a warm-up. Differences are those of images clamped to [-1, 1]. Compact networks are compared with
the published one in time per face, and with their own plain versions in results.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import stopwatch
import torch
from baseline import PlainCodeFormer, random_face, random_state
from safetensors.torch import save_file

from cfrestore.checkpoint import read_checkpoint
from cfrestore.device import inference, reuse_memory
from cfrestore.models.codeformer import CodeFormerConfig
from cfrestore.weights import load_codeformer

CONFIGS = {
    "published": CodeFormerConfig(),
    "compact": CodeFormerConfig.compact(),
    "tiny": CodeFormerConfig.tiny(),
}
ROWS = [
    ("published", "plain", 0.5),
    ("published", "plain", 0.0),
    ("published", "library", 0.5),
    ("published", "library", 0.0),
    ("published", "ours", 0.5),
    ("published", "ours", 0.0),
    ("compact", "plain", 0.5),
    ("compact", "ours", 0.5),
    ("tiny", "plain", 0.5),
    ("tiny", "ours", 0.5),
]
SPOKEN = {
    "plain": "plain",
    "library": "cfrestore, as a library",
    "ours": "cfrestore, as a command",
}
SIZES = {
    "published": "published, 512 px",
    "compact": "compact, 256 px",
    "tiny": "tiny, 128 px",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chart", type=Path)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
        return
    print(stopwatch.machine() + ", one thread\n")
    with tempfile.TemporaryDirectory() as folder:
        for size in CONFIGS:
            metadata = {"config": CONFIGS[size].to_json()}
            save_file(random_state(CONFIGS[size]), f"{folder}/{size}.safetensors", metadata)
        workers = {
            f"{size} {how} {w}": [__file__, "--worker", size, how, str(w), folder]
            for size, how, w in ROWS
        }
        found = stopwatch.in_turn(workers, options.rounds, stopwatch.ONE_THREAD)
        rows = [row(found, folder, *key) for key in ROWS]
    head = [
        "network",
        "how",
        "w",
        "CPU s a face (range)",
        "ratio",
        "peak MB",
        "ratio",
        "difference",
    ]
    print(stopwatch.table([*head, "codes"], rows))
    if options.chart:
        yardstick = found["published plain 0.5"].middle
        ratios = {
            f"{SIZES[size]}, {SPOKEN[how]}, w = {w:g}": found[f"{size} {how} {w}"].middle
            / yardstick
            for size, how, w in ROWS[1:6]
        }
        stopwatch.chart(
            options.chart, "CPU time of one face over the plain network's", ratios, 0.65
        )


def row(
    found: dict[str, stopwatch.Measured], folder: str, size: str, how: str, w: float
) -> list[str]:
    own, yardstick = found[f"{size} {how} {w}"], found["published plain 0.5"]
    cells = [
        SIZES[size],
        SPOKEN[how],
        f"{w:g}",
        own.range(),
        f"{own.middle / yardstick.middle:.3g}",
    ]
    cells += [f"{own.peak / 1e6:.0f}", f"{own.peak / yardstick.peak:.2f}"]
    if how == "plain":
        return [*cells, "", ""]
    plain, ours = (np.load(f"{folder}/{size} {kind} {w}.npz") for kind in ("plain", how))
    difference = np.abs(plain["image"] - ours["image"]).max()
    equal = (plain["codes"] == ours["codes"]).mean()
    return [*cells, f"{difference:.1e}", "equal" if equal == 1 else f"{equal:.2%} equal"]


def work(size: str, how: str, w: str, folder: str) -> None:
    """Computes one face, with the weights in the form that the implementation takes."""
    torch.set_num_threads(1)
    if how == "ours":
        reuse_memory()
    config, fidelity = CONFIGS[size], float(w)
    path = Path(folder) / f"{size}.safetensors"
    warm, face = (random_face(config.image_size, seed) for seed in range(2))
    match = config.match_statistics
    if how == "plain":
        state = {key: value.float() for key, value in read_checkpoint(path)[0].items()}
        plain = PlainCodeFormer(state, config)
        plain(warm, fidelity, match)
        images: list[torch.Tensor] = []
        stopwatch.tell(*stopwatch.time_of(lambda: images.append(plain(face, fidelity, match))))
        codes = plain.codes(face)
    else:
        network = load_codeformer(path)
        warm, face = (x.contiguous(memory_format=torch.channels_last) for x in (warm, face))
        with inference():
            network(warm, fidelity, match)
            images = []
            stopwatch.tell(
                *stopwatch.time_of(lambda: images.append(network(face, fidelity, match)))
            )
            codes = network.choose(network.predict_codes(network.encode(face)[0]))
    image = images[0].clamp(-1, 1).numpy()
    np.savez(f"{folder}/{size} {how} {fidelity}.npz", image=image, codes=codes.numpy())


if __name__ == "__main__":
    main()
