"""What processing pictures in parallel saves, and what painting faces singly costs on the CPU.

    python benchmarks/batch.py [--pictures 24] [--side 1600] [--device auto] [--model compact]

Pictures of one face each are written as PNG, whose encoding takes as long as any other step. They
are then restored one after the other, by the batch engine with several numbers of workers, and once
more when nothing is left to do. The network alone paints faces in batches of several sizes; on the
CPU the pipeline always uses batches of 1, so that results are the same to the bit. Times are the
best of three, in seconds per picture and per face.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from cfrestore import Options, load_pipeline, read_photo, write_photo
from cfrestore.align import AlignedFace
from cfrestore.batch import plan, run
from cfrestore.detect import Face
from cfrestore.device import Execution, describe, synchronize
from cfrestore.image import Photo
from cfrestore.pipeline import Pipeline
from cfrestore.restore import Painter

EXAMPLE = Path(__file__).parents[1] / "examples" / "collins.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--side", type=int, default=1600, help="of each picture, in pixels")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default="compact")
    options = parser.parse_args()
    pipeline = load_pipeline(options.model, device=options.device)
    print(f"{pipeline.model_name}, {pipeline.detector_name}, {describe(pipeline.device)}\n")
    with tempfile.TemporaryDirectory() as folder:
        measure_runs(pipeline, Path(folder), options.pictures, options.side)
    measure_batches(pipeline)


def measure_runs(pipeline: Pipeline, folder: Path, pictures: int, side: int) -> None:
    source = folder / "in"
    source.mkdir()
    face = read_photo(EXAMPLE).pixels
    pixels = cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC)
    for index in range(pictures):
        write_photo(Photo(np.roll(pixels, index, axis=1)), source / f"{index}.png")

    def alone() -> None:
        target = folder / "alone"
        target.mkdir(exist_ok=True)
        for path in source.iterdir():
            write_photo(pipeline(read_photo(path)).photo, target / path.name)

    def together(workers: int, output: str) -> None:
        outcomes = list(run(plan([source], folder / output), pipeline.restoring(), workers=workers))
        assert not any(outcome.error for outcome in outcomes)

    print(f"| {pictures} PNG of {side}x{side}, one face each | s a picture |\n|---|---|")
    print(f"| one after the other | {best(alone) / pictures:.3f} |")
    for workers in (1, 2, 4):
        rounds = iter("abc")
        seconds = best(lambda w=workers, r=rounds: together(w, f"{w}{next(r)}"))  # type: ignore[misc]
        print(f"| side by side, {workers} workers | {seconds / pictures:.3f} |")
    print(f"| nothing left to do | {best(lambda: together(4, '4a')) / pictures:.4f} |\n")


def measure_batches(pipeline: Pipeline) -> None:
    side, nobody = pipeline.crop_size, np.zeros((5, 2), np.float32)
    crops = np.random.default_rng(0).integers(0, 256, (16, side, side, 3), np.uint8)
    faces = [AlignedFace(c, np.eye(2, 3), Face(nobody[:2].ravel(), 1.0, nobody)) for c in crops]
    print("| faces in the network at once | s a face |\n|---|---|")
    for size in (1, 2, 4, 8, 16):
        paint = Painter(
            pipeline.network,
            fidelity=Options().fidelity,
            match_statistics=pipeline.network.config.match_statistics,
            batch_size=size,
            execution=Execution(pipeline.device, pipeline.execution.precision),
        )

        def painted(paint: Painter = paint) -> None:
            paint(faces)
            synchronize(pipeline.device)

        print(f"| {size} | {best(painted) / len(faces):.4f} |")


def best(work: Callable[[], None]) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
