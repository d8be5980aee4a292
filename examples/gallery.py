"""Whole photographs before and after, as a folder of small pictures with a page that lists them.

    python examples/gallery.py PHOTO... --output docs/gallery [--note TEXT] [--fidelity 0.7]

Each photograph is restored as by the command, shown next to its result, and reduced to at most SIDE
pixels. The page says how many faces were found, restored and left alone. Nothing is left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

import cfrestore
from cfrestore.image import to_uint8
from cfrestore.restore import RestoredFace
from cfrestore.show import side_by_side

SIDE, QUALITY = 900, 85


def small(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    factor = SIDE / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    size = (round(pixels.shape[1] * factor), round(pixels.shape[0] * factor))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--fidelity", type=float, default=0.7)
    parser.add_argument("--note", default="", help="what the pictures are, for the page")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    restore = cfrestore.load_pipeline(options.model, "mtcnn", "cpu")
    lines = [
        "# Gallery\n",
        f"Before, after with `--w {options.fidelity}`, by `python examples/gallery.py PHOTO... "
        "--output FOLDER`.",
        options.note,
    ]
    for path in options.photos:
        photo = cfrestore.read_photo(path)
        result = restore(photo, cfrestore.Options(fidelity=options.fidelity))
        pair = to_uint8(side_by_side(photo, result.photo).pixels)
        name = f"{path.stem}.jpg"
        parameters = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        _, data = cv2.imencode(".jpg", small(pair)[..., ::-1], parameters)
        (options.output / name).write_bytes(data.tobytes())
        reasons = sorted(
            {face.reason for face in result.faces if not isinstance(face, RestoredFace)}
        )
        alone = f"; left alone: {', '.join(reasons)}" if reasons else ""
        faces = f"{len(result.restored)} of {len(result.faces)} faces restored"
        lines.append(f"\n**{path.stem}**: {faces}{alone}\n\n![{path.stem}]({name})")
    (options.output / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
