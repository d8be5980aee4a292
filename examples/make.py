"""Makes the example: a reduced, JPEG-compressed copy of NASA's portrait of Eileen Collins.

    python examples/make.py

The original (NASA, public domain, 1999) comes with scikit-image as `skimage.data.astronaut`.
"""

from __future__ import annotations

from pathlib import Path

import cv2
from skimage.data import astronaut

SIDE = 256
QUALITY = 40


def main() -> None:
    reduced = cv2.resize(astronaut(), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    parameters = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    _, data = cv2.imencode(".jpg", reduced[..., ::-1], parameters)
    Path(__file__).with_name("collins.jpg").write_bytes(data.tobytes())


if __name__ == "__main__":
    main()
