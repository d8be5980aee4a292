"""How much memory a photograph of 100 megapixels takes, in multiples of the size of its pixels.

    python benchmarks/memory.py [--megapixels 100] [--faces 6] [--only TEXT] [--work FOLDER]

A picture with faces in it is composed and written in several formats. Each time, a separate process
reads it, restores its faces with the shipped weights on the CPU, and writes it in the same format;
another process does this with a picture of one megapixel and as many faces. The difference between
their peaks is the memory for the picture, without interpreter, libraries and network. Divided by
the bytes of the picture's samples, three per pixel as in Photo, this is the number of copies. The
table also shows reading alone, and reading and writing without a restoration.

`portrait` is one face that fills the picture, the hardest case for pasting.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from stopwatch import peak

from cfrestore.image import Photo, read_photo, to_uint8, write_photo

HERE = Path(__file__).parent
Depth: TypeAlias = type[np.uint8] | type[np.uint16]
CASES: dict[str, tuple[str, Depth, dict[str, bool]]] = {
    "jpeg": (".jpg", np.uint8, {}),
    "png": (".png", np.uint8, {}),
    "tiff": (".tif", np.uint8, {}),
    "gray jpeg": (".jpg", np.uint8, {"gray": True}),
    "png with alpha": (".png", np.uint8, {"alpha": True}),
    "16-bit png": (".png", np.uint16, {}),
    "16-bit tiff": (".tif", np.uint16, {}),
    "jpeg, portrait": (".jpg", np.uint8, {"portrait": True}),
    "16-bit tiff, portrait": (".tif", np.uint16, {"portrait": True}),
}
PORTRAIT = np.s_[5:105, 46:146]
"""Part of the example that its aligned face covers completely."""

STEPS = ("read", "write", "restore")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, default=100)
    parser.add_argument("--faces", type=int, default=6)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--work", type=Path, help="where the pictures are put for the time")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(measure(*options.measure))
        return
    print(
        "| case | file, MB | read | read, write | read, restore, write | faces |\n|---|"
        + "---|" * 5
    )
    for name, (ending, dtype, kind) in CASES.items():
        if options.only not in name:
            continue
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            large, small = Path(folder) / f"large{ending}", Path(folder) / f"small{ending}"
            bytes_of_pixels = make(large, options.megapixels, options.faces, dtype, **kind)
            make(small, 1, options.faces, dtype, **kind)
            copies = []
            for step in STEPS:
                (peak, found), (floor, _) = (run(step, path) for path in (large, small))
                copies.append(f"{(peak - floor) / bytes_of_pixels:.2f}")
            size = large.stat().st_size / 1e6
        print(f"| {name} | {size:.0f} | {' | '.join(copies)} | {found} |", flush=True)


def make(
    path: Path,
    megapixels: float,
    faces: int,
    dtype: Depth,
    *,
    gray: bool = False,
    alpha: bool = False,
    portrait: bool = False,
) -> int:
    """Writes a picture with faces of different sizes, and returns the bytes of its pixels."""
    side = round((megapixels * 1e6) ** 0.5)
    face = to_uint8(read_photo(HERE.parent / "examples" / "collins.jpg").pixels)
    pixels: NDArray[np.uint8 | np.uint16] = np.empty((side, side, 3), np.uint8)
    pixels[:] = np.linspace(60, 200, side).astype(np.uint8)[:, None, None]
    if portrait:
        pixels = resized(face[PORTRAIT], side)
    else:
        columns = int(np.ceil(faces**0.5))
        cell = side // columns
        for index in range(faces):
            row, column = divmod(index, columns)
            edge = int(cell * (0.4 + 0.6 * index / faces))
            place = np.s_[row * cell : row * cell + edge, column * cell : column * cell + edge]
            pixels[place] = resized(face, edge)
    for top in range(0, side, 500):  # grain, without which files would be much too small
        rows = pixels[top : top + 500]
        grain = np.random.default_rng(top).integers(-4, 5, rows.shape[:2])[..., None]
        rows[...] = (rows + grain).clip(0, 255)
    if gray:
        pixels[...] = pixels[..., 1:2]
    if dtype is np.uint16:
        pixels = pixels.astype(np.uint16) * 256 + pixels[::-1]
    opacity = np.full((side, side), 200, dtype) if alpha else None
    write_photo(Photo(np.ascontiguousarray(pixels), opacity, gray), path)
    return pixels.nbytes


def resized(face: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


def run(step: str, path: Path) -> tuple[float, int]:
    """Peak in bytes and number of restored faces of a process that does one step."""
    command = [sys.executable, __file__, "--measure", step, str(path)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent)
    peak, faces = json.loads(answer.stdout)
    return peak, faces


def measure(step: str, path: str) -> str:
    """Does one step; reports the memory it took and how many faces were restored."""
    restored = 0
    if step == "restore":
        from cfrestore import load_pipeline

        pipeline = load_pipeline("compact", "mtcnn", "cpu")
        photo = read_photo(path)
        restoration = pipeline(photo)
        restored, photo = len(restoration.restored), restoration.photo
    else:
        photo = read_photo(path)
    if step != "read":
        target = Path(path)
        write_photo(photo, target.with_name(f"result{target.suffix}"), provenance={"model": "m"})
    return json.dumps([peak(), restored])


if __name__ == "__main__":
    main()
