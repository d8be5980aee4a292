"""How well a face's confidence predicts the error of its restoration.

    python benchmarks/confidence.py ../shared/faces/valid-512 [--model compact] [--plot FILE.png]

Takes a folder of clean aligned faces. Each is damaged by the small and by the large degradation of
the published training, as `cfrestore degrade` does it with seed 0, and restored as an aligned face
at w = 0, which uses the codes alone, and at w = 0.5. The error of a region is the mean absolute
difference from the clean face over its pixels, in levels; its confidence is that in the record of
`--json`. Prints Spearman's rank correlation of confidence and error, for each degradation and for
both together; at -1, confidence would order faces exactly by their errors.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cfrestore import Options, Photo, load_pipeline
from cfrestore.align import FFHQ_TEMPLATE, PUBLISHED_SIZE
from cfrestore.confidence import REGIONS, confidence_by_region
from cfrestore.evaluate import damage, find_faces, read_face

FIDELITIES = (0.0, 0.5)
PRESETS = ("small", "large")
LANDMARKS = FFHQ_TEMPLATE / PUBLISHED_SIZE


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks."""

    def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def plot(path: Path, confidence: NDArray[np.float64], error: NDArray[np.float64]) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(REGIONS), figsize=(12, 3.2), layout="constrained")
    for column, (region, axis) in enumerate(zip(REGIONS, axes, strict=True)):
        for row, preset in enumerate(PRESETS):
            where = confidence[row, :, column], error[row, :, column]
            axis.scatter(*where, s=8, label=f"{preset} degradation")
        axis.set(title=region, xlabel="confidence")
    axes[0].set_ylabel("mean error, levels")
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces", type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    pipeline = load_pipeline(arguments.model, "mtcnn", "cpu")
    files = sorted(find_faces(arguments.faces).values())
    shape = (len(PRESETS), len(files), len(REGIONS))
    confidence, error = np.zeros(shape), {w: np.zeros(shape) for w in FIDELITIES}
    for column, file in enumerate(files):
        clean = read_face(file, pipeline.crop_size)
        for row, preset in enumerate(PRESETS):
            photo = Photo(damage(clean, preset, 0, file.name))
            for w in FIDELITIES:
                (face,) = pipeline(photo, Options(fidelity=w, aligned=True)).restored
                known = face.confidence
                assert known is not None
                confidence[row, column] = [known[region] for region in REGIONS]
                wrong = np.abs(face.crop.astype(np.float64) - clean).mean(-1)
                means = confidence_by_region(wrong, LANDMARKS)
                error[w][row, column] = [means[region] for region in REGIONS]
    print(f"{pipeline.model_name}, {len(files)} faces")
    print("| w | faces | " + " | ".join(REGIONS) + " |")
    print("|---" * (2 + len(REGIONS)) + "|")
    for w in FIDELITIES:
        for name, rows in (("small", [0]), ("large", [1]), ("both", [0, 1])):
            sure, wrong = (of[rows].reshape(-1, len(REGIONS)).T for of in (confidence, error[w]))
            cells = [f"{rank_correlation(*pair):.2f}" for pair in zip(sure, wrong, strict=True)]
            print(f"| {w:g} | {name} | " + " | ".join(cells) + " |")
    for row, preset in enumerate(PRESETS):
        sure, wrong = confidence[row, :, 0], error[0.0][row, :, 0]
        print(
            f"{preset}: confidence {sure.min():.2f} to {sure.max():.2f}, mean {sure.mean():.2f};"
            f" error at w = 0 {wrong.min():.1f} to {wrong.max():.1f} levels"
        )
    if arguments.plot:
        plot(arguments.plot, confidence, error[0.0])


if __name__ == "__main__":
    main()
