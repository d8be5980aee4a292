"""Which faces larger than the network's crop are left alone, and which are restored.

    python benchmarks/large_faces.py ../shared/faces/valid-512 [--sizes 128 256] [--model compact]

Takes a folder of sharp aligned faces of 512 px, whose names contain the person's number (`_007_`).
Each is shown to MTCNN and to `measure_detail` as it is, saved as a JPEG file, and damaged in four
ways with fixed seeds: by the small and by the large degradation of the published training, by the
latter printed in dots, like a picture in a newspaper, and reduced, enlarged again and only then
saved as a JPEG file, whose blocks are then the finest detail there is. All sharp faces should be
left alone, or give at least 35 dB against the picture when restored at w = 1, and all damaged ones
should be restored. `errors` counts the faces for which this fails, of all kinds and sizes.

Thresholds of sharpness are compared on the people with odd numbers; the last row shows those with
even numbers, which were not used to choose the threshold in cfrestore/detail.py.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import stopwatch
import torch
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio

from cfrestore import Options, Photo, load_pipeline, read_photo, write_photo
from cfrestore.align import align_face, cut_finely, rescale
from cfrestore.degrade import LARGE, SMALL, degrade
from cfrestore.detail import (
    SHARP_FROM,
    SIGNAL_FROM,
    Detail,
    finest_octave,
    measure_detail,
    within_face,
)
from cfrestore.detect import load_detector
from cfrestore.device import generator_for
from cfrestore.image import to_uint8

Pixels = NDArray[np.uint8]
LITTLE = 35.0  # dB
THRESHOLDS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.25)
SHARP = ("sharp", "saved")
KINDS = (*SHARP, "small", "large", "printed", "enlarged")


@dataclass(frozen=True)
class Seen:
    """One picture as measured.

    Attributes:
        size: side of the crop.
        odd: whether the person's number is odd.
        remains: amplitude of the octave finer than the crop, relative to that of the sharp face, by
            regression.
        psnr: PSNR of the result at w = 1 against the picture, if it was restored.
    """

    kind: str
    size: int
    odd: bool
    detail: Detail
    remains: float
    psnr: float | None = None

    def alone(self, threshold: float) -> bool:
        return self.detail.sharpness >= threshold and self.detail.share >= SIGNAL_FROM

    def wrong(self, threshold: float) -> bool:
        if self.kind not in SHARP:
            return self.alone(threshold)
        return not self.alone(threshold) and (self.psnr is None or self.psnr < LITTLE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("faces", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--model", default="compact", help="what paints sharp faces at its size")
    parser.add_argument("--limit", type=int, help="only the first N faces")
    options = parser.parse_args()

    pipeline, detector = load_pipeline(options.model, "mtcnn"), load_detector("mtcnn")
    seen: list[Seen] = []
    for n, path in enumerate(sorted(options.faces.glob("*.jpg"))[: options.limit]):
        sharp = to_uint8(read_photo(path).pixels)
        number = re.search(r"_(\d+)_", path.stem)
        assert number is not None, f"{path} has no person's number"
        pictures = {"sharp": sharp, **changed(sharp, n)}
        found = {kind: detector(pixels) for kind, pixels in pictures.items()}
        for size in options.sizes:
            to_fine = rescale(align_face(sharp, found["sharp"][0], size).to_crop, 2)
            clean = within_face(finest_octave(cut_finely(sharp, to_fine, 2 * size)))
            for kind, pixels in pictures.items():
                if not found[kind]:
                    continue
                detail = measure_detail(pixels, align_face(pixels, found[kind][0], size))
                assert detail is not None, "the faces must be larger than the crop"
                octave = within_face(finest_octave(cut_finely(pixels, to_fine, 2 * size)))
                remains = float(octave @ clean) / float(clean @ clean)
                seen.append(Seen(kind, size, int(number[1]) % 2 == 1, detail, remains))
        if pipeline.crop_size in options.sizes:
            result = pipeline(Photo(sharp), Options(fidelity=1, max_face=None))
            psnr = float(peak_signal_noise_ratio(sharp, result.photo.pixels))
            seen = [
                replace(s, psnr=psnr)
                if s.kind == "sharp" and s.size == pipeline.crop_size and s.psnr is None
                else s
                for s in seen
            ]

    halves = {name: [s for s in seen if s.odd == (name == "odd")] for name in ("odd", "even")}
    rows = [row("odd", halves["odd"], threshold) for threshold in sorted({*THRESHOLDS, SHARP_FROM})]
    rows.append(row("even", halves["even"], SHARP_FROM))
    head = [f"{kind}, {size} px" for size in options.sizes for kind in KINDS]
    print(stopwatch.machine() + "\n\nleft alone, of those that MTCNN finds:\n")
    print(stopwatch.table(["people", "threshold", *head, "errors"], rows))
    left = max(s.remains for s in seen if s.kind not in SHARP)
    print(f"\nDamaged faces have at most {left:.2f} of the amplitude finer than the crop.")
    if painted := [s.psnr for s in seen if s.psnr is not None]:
        low, high = min(painted), max(painted)
        print(f"Sharp faces restored all the same, at w = 1: {low:.1f} to {high:.1f} dB.")


def changed(sharp: Pixels, n: int) -> dict[str, Pixels]:
    """The face saved, and with every kind of damage, each face with its own seed."""
    batch = torch.from_numpy(sharp).permute(2, 0, 1)[None].float() / 255
    found: dict[str, Pixels] = {}
    for kind, damage in (("small", SMALL), ("large", LARGE)):
        image = degrade(batch, damage, generator_for(batch.device, 0, n))[0]
        found[kind] = (image * 255).round().byte().permute(1, 2, 0).numpy().copy()
    rng = np.random.default_rng(n)
    factor, quality = rng.choice([2, 3, 4, 6, 8]), int(rng.integers(20, 91))
    side = len(sharp) // factor
    small = cv2.resize(sharp, (side, side), interpolation=cv2.INTER_AREA)
    large = cv2.resize(small, sharp.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return {
        "saved": saved(sharp, int(rng.integers(50, 96))),
        **found,
        "printed": printed(found["large"]),
        "enlarged": saved(np.asarray(large, np.uint8), quality),
    }


def saved(pixels: Pixels, quality: int) -> Pixels:
    """The picture after a JPEG file of that quality."""
    stream = BytesIO()
    write_photo(Photo(pixels), stream, format="JPEG", quality=quality)
    return to_uint8(read_photo(BytesIO(stream.getvalue())).pixels)


def printed(pixels: Pixels) -> Pixels:
    """The picture in dots, 7 px apart along diagonals, as in a soft scan."""
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]] * (np.pi / 5)
    screen = (np.cos(x + y) * np.cos(x - y) + 1) / 2
    ink = 1 / (1 + np.exp(-6 * (pixels / 255 - screen[..., None])))
    return np.asarray(np.rint(255 * ink), np.uint8)


def row(half: str, people: Sequence[Seen], threshold: float) -> list[str]:
    """One row of the table."""
    sizes = dict.fromkeys(s.size for s in people)
    groups = [[s for s in people if (s.kind, s.size) == (k, z)] for z in sizes for k in KINDS]
    alone = [f"{sum(s.alone(threshold) for s in group)} of {len(group)}" for group in groups]
    return [half, f"{threshold:g}", *alone, str(sum(s.wrong(threshold) for s in people))]


if __name__ == "__main__":
    main()
