"""Makes the example photograph, and README's picture of it before and after.

    python examples/make.py

The photograph is NASA's portrait of Eileen Collins (1999, public domain), which comes with
scikit-image as `skimage.data.astronaut`, reduced to 160 px and compressed hard.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from skimage.data import astronaut

import cfrestore
from cfrestore.options import Upsampling

SIDE, QUALITY, UPSCALE = 160, 30, 4
HERE = Path(__file__).parent


def main() -> None:
    reduced = cv2.resize(astronaut(), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    parameters = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    _, data = cv2.imencode(".jpg", reduced[..., ::-1], parameters)
    (HERE / "collins.jpg").write_bytes(data.tobytes())

    photo = cfrestore.read_photo(HERE / "collins.jpg")
    options = cfrestore.Options(fidelity=0.7, upscale=UPSCALE)
    pipeline = cfrestore.load_pipeline("compact", upsampling=Upsampling("compact"))
    after = pipeline(photo, options).photo.pixels
    before = cv2.resize(photo.pixels, after.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    upper = slice(0, after.shape[0] * 2 // 3)
    pair = np.hstack((before[upper], after[upper]))
    (HERE / "before-after.png").write_bytes(cv2.imencode(".png", pair[..., ::-1])[1].tobytes())


if __name__ == "__main__":
    main()
