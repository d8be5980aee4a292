"""What pasting costs on one thread, compared with warps, erosions and blurs of the whole frame.

    python benchmarks/paste.py [--rounds 5] [--chart paste.png]

Faces of 512 px are pasted into smooth pictures, each within its parsing mask, as published. The
side is that of the square in the picture. The last rows paste one face into larger and larger
pictures. Differences are in levels of 255; our composition is rounded, the plain one is not.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

import baseline
import cv2
import numpy as np
import stopwatch

from cfrestore.align import FFHQ_TEMPLATE, align_face
from cfrestore.detect import Face
from cfrestore.device import reuse_memory
from cfrestore.image import to_uint8
from cfrestore.paste import paste_faces
from cfrestore.restore import RestoredFace

MEGAPIXELS = {3: (1500, 2000), 12: (3000, 4000), 48: (6000, 8000)}
CASES = [(12, 1, 300), (12, 1, 600), (12, 1, 900), (12, 1, 2000), (12, 10, 300), (12, 10, 600)]
GROWING = [(3, 1, 600), (12, 1, 600), (48, 1, 600)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chart", type=Path)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        how, *numbers = options.worker
        work(how, *map(int, numbers))
        return
    print(stopwatch.machine() + ", one thread\n")
    cases = list(dict.fromkeys(CASES + GROWING))
    workers = {
        f"{how} {case}": [__file__, "--worker", how, *map(str, case)]
        for case in cases
        for how in ("plain", "ours")
    }
    found = stopwatch.in_turn(workers, options.rounds)
    rows, ratios = [], {}
    for case in cases:
        plain, ours = (found[f"{how} {case}"] for how in ("plain", "ours"))
        ratio = plain.middle / ours.middle
        ratios["{} MP, {} of {} px".format(*case)] = ratio
        sizes = [f"{case[0]} MP", str(case[1]), str(case[2])]
        difference = f"{ours.said['difference']:.2f}"
        rows.append([*sizes, plain.range(), ours.range(), f"{ratio:.0f}", difference])
    head = ["picture", "faces", "side, px", "plain, CPU s (range)", "ours, CPU s (range)"]
    print(stopwatch.table([*head, "times faster", "largest difference"], rows))
    if options.chart:
        stopwatch.chart(options.chart, "How many times faster faces are pasted", ratios)


def work(how: str, megapixels: int, faces: int, side: int) -> None:
    cv2.setNumThreads(1)
    if how == "ours":
        reuse_memory()
    height, width = MEGAPIXELS[megapixels]
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    pixels = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    painted = []
    for index in range(faces):
        row, column = divmod(index, 5)
        corner = (100.3 + column * (side + 50), 80.6 + row * (side + 50))
        points = (FFHQ_TEMPLATE * (side / 512) + corner).astype(np.float32)
        aligned = align_face(pixels, Face(np.zeros(4, np.float32), 1.0, points))
        crop = cv2.GaussianBlur(aligned.crop, (0, 0), 2).astype(np.float32) * 0.9 + 12
        painted.append(RestoredFace(crop.astype(np.uint8), aligned, 0.5))
    shape = np.zeros((512, 512), np.uint8)
    cv2.ellipse(shape, (256, 270), (150, 200), 0, 0, 360, 1, -1)
    mask = baseline.parsing_mask(shape)

    def composed() -> baseline.Image | baseline.Floats:
        canvas: baseline.Image | baseline.Floats = pixels
        for face in painted:
            inverse = baseline.inverse_of(face.aligned.to_crop, 1)
            canvas, _, _ = baseline.paste(canvas, face.crop, inverse, 1, mask)
        return canvas

    def plain() -> baseline.Image:
        return composed().clip(0, 255).astype(np.uint8)

    def ours() -> baseline.Image:
        return to_uint8(paste_faces(pixels, painted, masks=[mask.astype(np.float32)] * faces))

    do = {"plain": plain, "ours": ours}[how]
    do()
    spent = [stopwatch.time_of(do) for _ in range(3)]
    difference = float(np.abs(composed() - ours()).max()) if how == "ours" else 0.0
    stopwatch.tell(*(median(kind) for kind in zip(*spent, strict=True)), difference=difference)


if __name__ == "__main__":
    main()
