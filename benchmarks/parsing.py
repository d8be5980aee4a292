"""What parsing costs on one thread, and whether its masks are those of the published ParseNet.

    python benchmarks/parsing.py [--weights parsing_parsenet.pth] [--faces FOLDER] [--limit 20]

Aligned faces of the folder, or the example's face, are parsed by facexlib's network run plainly at
512 px, and by cfrestore's at several sizes. Agreement is the intersection over the union of the
soft masks, cut at a half, over all faces, and the share of equal classes. Without weights they are
random: then time and the agreement at 512 px mean something, those of smaller sizes nothing, since
what a network makes of a smaller face is learned.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

import baseline
import cv2
import numpy as np
import stopwatch
import torch
from numpy.typing import NDArray
from pipeline import plain_parser, random_parser

from cfrestore.device import reuse_memory
from cfrestore.image import read_photo
from cfrestore.parse import FaceParser

EXAMPLE = Path(__file__).parents[1] / "examples" / "collins.jpg"
SIDES = (512, 384, 256)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--faces", type=Path)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    crops = read_faces(options.faces, options.limit)
    if options.worker:
        how, weights, folder = options.worker
        work(how, Path(weights), Path(folder), crops)
        return
    print(f"{stopwatch.machine()}, one thread, {len(crops)} faces\n")
    with tempfile.TemporaryDirectory() as folder:
        weights = options.weights or Path(folder) / "random.pth"
        if options.weights is None:
            torch.save(random_parser(), weights)
        faces = ["--faces", str(options.faces)] if options.faces else []
        words = [__file__, *faces, "--limit", str(options.limit), "--worker"]
        workers = {
            name: [*words, name, str(weights), folder]
            for name in ("plain", *(f"ours {side}" for side in SIDES))
        }
        found = stopwatch.in_turn(workers, 1, stopwatch.ONE_THREAD)
        masks = {name: np.load(f"{folder}/{name}.npy") > 0.5 for name in workers}
    plain, rows = found["plain"], []
    for name, times in found.items():
        both, either = masks[name] & masks["plain"], masks[name] | masks["plain"]
        agreement = both.sum() / max(1, either.sum())
        ratio = f"{times.middle / plain.middle:.3f}"
        rows.append([name, times.range(), ratio, f"{times.peak / 1e6:.0f}", f"{agreement:.4f}"])
    kind = "published" if options.weights else "random"
    head = [f"{kind} weights", "CPU s a face", "ratio", "peak MB", "intersection over union"]
    print(stopwatch.table(head, rows))


def read_faces(folder: Path | None, limit: int) -> NDArray[np.uint8]:
    paths = sorted(folder.glob("*.[jp][pn]g"))[:limit] if folder else [EXAMPLE]
    return np.stack([cv2.resize(read_photo(path).pixels, (512, 512)) for path in paths])


def work(how: str, weights: Path, folder: Path, crops: NDArray[np.uint8]) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    masks: list[NDArray[np.floating]] = []
    if how == "plain":
        network = plain_parser(weights)

        def parse(crop: NDArray[np.uint8]) -> None:
            logits = network(baseline.to_input(crop[..., ::-1]))
            masks.append(baseline.parsing_mask(logits[0].argmax(0).numpy()))
    else:
        reuse_memory()
        parser = FaceParser(weights, side=int(how.split()[1]))

        def parse(crop: NDArray[np.uint8]) -> None:
            masks.append(parser(crop[None])[0])

    parse(crops[0])
    masks.clear()
    spent = [stopwatch.time_of(lambda crop=crop: parse(crop)) for crop in crops]
    np.save(folder / f"{how}.npy", np.stack(masks))
    stopwatch.tell(*(median(kind) for kind in zip(*spent, strict=True)))


if __name__ == "__main__":
    main()
