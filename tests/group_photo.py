"""Composes a group photo of known people at known positions.

As a program: python tests/group_photo.py FACES_DIR OUT.png, where FACES_DIR holds valid-512/.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

TEMPLATE = np.array(
    [[192.98, 239.95], [318.90, 240.19], [256.63, 314.02], [201.26, 371.41], [313.09, 371.15]]
)
"""Eyes, nose and mouth corners of the faces of valid-512; correct within about 12 px."""

SIDES = (60, 260)  # smallest and largest side of a pasted 512 px crop
TILTS = (-25, 25)  # degrees


def compose_group(
    faces_dir: Path, seed: int = 0, count: int = 5, size: tuple[int, int] = (900, 1400)
) -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
    """Different people of valid-512 on one smooth canvas, the largest cut by the left border.

    Returns:
        (H, W, 3) uint8 RGB pixels, and the (5, 2) landmarks of each face in the order of Face,
        largest face first, correct within about a tenth of the distance between the eyes.
    """
    random = np.random.default_rng(seed)
    height, width = size
    files = sorted((faces_dir / "valid-512").glob("neutral_front__*.jpg"))
    canvas = _backdrop(random, height, width)
    landmarks: list[NDArray[np.float32]] = []
    taken: list[tuple[float, float, float]] = []
    chosen = random.choice(np.array(files), count, replace=False)
    sides = np.linspace(*SIDES, count)[::-1]
    angles = random.permutation(np.linspace(*TILTS, count))
    for file, side, angle in zip(chosen, sides, angles, strict=True):
        for _ in range(1000):
            x = random.uniform(side / 2, width - side / 2) if taken else 0.27 * side
            y = random.uniform(side / 2, height - side / 2)
            if all(np.hypot(x - u, y - v) > (side + s) / 2 for u, v, s in taken):
                break
        else:
            raise ValueError(f"{count} faces do not fit into {size}")
        taken.append((x, y, side))
        place = cv2.getRotationMatrix2D((256, 256), angle, side / 512)
        place[:, 2] += (x - 256, y - 256)
        pixels = np.array(Image.open(file).convert("RGB"), np.float32)
        canvas = _paste(canvas, pixels, place)
        landmarks.append((TEMPLATE @ place[:, :2].T + place[:, 2]).astype(np.float32))
    return np.clip(canvas + random.normal(0, 1.5, canvas.shape), 0, 255).astype(np.uint8), landmarks


def _backdrop(random: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    coarse = random.uniform(175, 225, (3, 4, 1)) + random.uniform(-12, 12, (3, 4, 3))
    return cv2.resize(coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)


def _paste(
    canvas: NDArray[np.float32], pixels: NDArray[np.float32], place: NDArray[np.float64]
) -> NDArray[np.float32]:
    """The canvas with the head of a 512 px crop moved onto it by an affine map, softly cut out."""
    y, x = np.mgrid[0:512, 0:512]
    radius = np.hypot((x - 256) / 185, (y - 262) / 245)
    mask = np.clip((1 - radius) / 0.15, 0, 1).astype(np.float32)[..., None]
    # The blur keeps a strong reduction from aliasing.
    shrink = np.sqrt(abs(np.linalg.det(place[:, :2])))
    layer = cv2.GaussianBlur(np.concatenate([pixels * mask, mask], 2), (0, 0), 0.4 / shrink)
    layer = cv2.warpAffine(layer, place, canvas.shape[1::-1], flags=cv2.INTER_LINEAR)
    return layer[..., :3] + canvas * (1 - layer[..., 3:])


if __name__ == "__main__":
    Image.fromarray(compose_group(Path(sys.argv[1]))[0]).save(sys.argv[2])
