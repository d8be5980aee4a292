"""How well a model restores aligned faces: a table, and a sheet to look at.

    python benchmarks/quality.py ../shared/faces/valid-512 [--model compact] [--sheet sheet.png]

Every face of the folder is reduced to the model's side, damaged with fixed seeds by the small and
the large degradation of the published training (blur scaled to the side), and restored. Compared
with the clean face are: the damaged input, the nearest codes instead of the predicted ones (w = 0),
and the restoration at w = 0, 0.25, 0.5, 0.75, 1.

    PSNR, SSIM    scikit-image; SSIM with an 11x11 Gaussian window; a border of 1/32 is left out
    sharpness     mean gradient magnitude (Sobel, luma) in the face's ellipse, over the clean face's
    landmarks     mean distance of the five points found by MTCNN to those of the clean face, in
                  pixels at 512, over the faces found in both; `found` says how many
    features      mean relative difference of MTCNN O-Net's feature maps, a network that no loss
                  of the training used
    colour        length of the mean Lab difference in the face's ellipse, averaged over faces

Identity similarity is not computed: no recogniser's weights can be had offline.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from facenet_pytorch import MTCNN
from numpy.typing import NDArray
from skimage.color import rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from cfrestore.detect import load_detector
from cfrestore.device import choose_device, describe, inference
from cfrestore.image import from_tensor, read_photo
from cfrestore.models.codeformer import CodeFormer, adaptive_instance_norm
from cfrestore.restore import keep_colours
from cfrestore.train.config import LARGE, SMALL, Degradation
from cfrestore.train.data import generator_for
from cfrestore.train.degrade import degrade
from cfrestore.train.loop import write_sheet
from cfrestore.weights import load_codeformer, shipped

Pixels = NDArray[np.uint8]
FIDELITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
SHEET_FACES = 10
# Centre and half axes of the face in the FFHQ template, as shares of the side.
ELLIPSE = ((0.5, 0.56), (0.26, 0.34))


@dataclass(frozen=True)
class Look:
    """What is measured of one face (S,S,3) on its own."""

    pixels: Pixels
    gradient: float
    lab: NDArray[np.float64]
    features: list[Tensor]
    landmarks: NDArray[np.float32] | None


class Judge:
    """Looks at faces, with two networks."""

    def __init__(self) -> None:
        self.detector = load_detector("mtcnn")
        self.onet = MTCNN().onet

    def __call__(self, face: Pixels) -> Look:
        inside = face_ellipse(face.shape[0])
        luma = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32)
        dx, dy = (cv2.Sobel(luma, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
        return Look(
            face,
            float(np.hypot(dx, dy)[inside].mean()),
            rgb2lab(face)[inside].mean(0),
            self._features(face),
            self._landmarks(face),
        )

    def _features(self, face: Pixels) -> list[Tensor]:
        x = (torch.from_numpy(face).permute(2, 0, 1)[None].float() - 127.5) / 128
        taps = []
        for n in (1, 2, 3):
            for layer in ("conv", "prelu"):
                x = self.onet.get_submodule(f"{layer}{n}")(x)
            taps.append(x)
            x = self.onet.get_submodule(f"pool{n}")(x)
        return taps

    def _landmarks(self, face: Pixels) -> NDArray[np.float32] | None:
        """Five points at 512, of the face nearest to the middle."""
        found = self.detector(cv2.resize(face, (512, 512), interpolation=cv2.INTER_CUBIC))
        if not found:
            return None
        return min(found, key=lambda f: float(np.abs(f.landmarks.mean(0) - 256).sum())).landmarks


def face_ellipse(size: int) -> NDArray[np.bool_]:
    (cx, cy), (rx, ry) = ELLIPSE
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1


def compare(a: Look, b: Look) -> dict[str, float]:
    """The figures of one face against its clean version; landmarks only if found in both."""
    border = b.pixels.shape[0] // 32
    cut = slice(border, -border)
    ours, clean = a.pixels[cut, cut], b.pixels[cut, cut]
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    distances = [
        ((x - y).abs().mean() / y.abs().mean()).item()
        for x, y in zip(a.features, b.features, strict=True)
    ]
    figures = {
        "psnr": float(peak_signal_noise_ratio(clean, ours)),
        "ssim": float(structural_similarity(clean, ours, channel_axis=2, **window)),
        "sharpness": a.gradient / b.gradient,
        "features": float(np.mean(distances)),
        "colour": float(np.linalg.norm(a.lab - b.lab)),
    }
    if a.landmarks is not None and b.landmarks is not None:
        distance = np.linalg.norm(a.landmarks - b.landmarks, axis=1).mean()
        figures["landmarks"] = float(distance)
    return figures


def row(judge: Judge, faces: Sequence[Pixels], clean: Sequence[Look]) -> dict[str, float]:
    """A row of the table: means over the faces."""
    pairs = zip(faces, clean, strict=True)
    figures = [compare(judge(face), reference) for face, reference in pairs]
    found = [f["landmarks"] for f in figures if "landmarks" in f]
    means = {k: float(np.mean([f[k] for f in figures])) for k in figures[0] if k != "landmarks"}
    return means | {
        "landmarks": float(np.mean(found)) if found else float("nan"),
        "found": len(found) / len(figures),
    }


def restorations(
    net: CodeFormer, damaged: Tensor, match: bool, device: torch.device
) -> dict[str, list[Pixels]]:
    """Faces as the pipeline would give them, by the name of their row."""
    images: dict[str, list[Tensor]] = {}
    for x in (damaged * 2 - 1).split(8):
        latent, skips = net.encode(x.to(device))
        nearest = net.quantize(latent).values
        predicted = net.lookup(net.predict_codes(latent).argmax(-1))
        if match:
            nearest, predicted = (adaptive_instance_norm(q, latent) for q in (nearest, predicted))
        images.setdefault("nearest codes, w = 0", []).append(net.decode(nearest, skips, 0).cpu())
        for w in FIDELITIES:
            images.setdefault(f"w = {w:g}", []).append(net.decode(predicted, skips, w).cpu())
    faces = {k: list(from_tensor(torch.cat(v))) for k, v in images.items()}
    if not net.config.keep_colours:
        return faces
    inputs = list(from_tensor(damaged * 2 - 1))
    return {
        k: [keep_colours(*pair) for pair in zip(v, inputs, strict=True)] for k, v in faces.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("faces", type=Path, help="folder of aligned clean faces")
    parser.add_argument("--model", type=Path, help="weight file (default: the shipped ones)")
    parser.add_argument("--limit", type=int, help="only the first N faces")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--match",
        action=argparse.BooleanOptionalAction,
        help="latent AdaIN (default: what the model wants)",
    )
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG)")
    parser.add_argument("--json", type=Path, help="write the figures (JSON)")
    arguments = parser.parse_args()

    device = choose_device(arguments.device)
    net = load_codeformer(arguments.model or shipped(), device)
    size = net.config.image_size
    match = net.config.match_statistics if arguments.match is None else arguments.match
    paths = sorted(p for p in arguments.faces.iterdir() if p.suffix in (".jpg", ".png"))
    clean = [
        cv2.resize(read_photo(path).pixels, (size, size), interpolation=cv2.INTER_AREA)
        for path in paths[: arguments.limit]
    ]
    batch = torch.from_numpy(np.stack(clean)).permute(0, 3, 1, 2).float() / 255
    judge = Judge()

    results: dict[str, dict[str, dict[str, float]]] = {}
    columns = [batch[:SHEET_FACES]]
    with inference():
        references = [judge(face) for face in clean]
        for name, damage in (("small", SMALL), ("large", LARGE)):
            damaged = damage_all(batch, damage.scaled(size), arguments.seed)
            images = restorations(net, damaged, match, device)
            every = {"degraded input": list(from_tensor(damaged * 2 - 1))} | images
            results[name] = {k: row(judge, v, references) for k, v in every.items()}
            columns.append(damaged[:SHEET_FACES])
            columns += [column(images[f"w = {w}"]) for w in ("0", "0.5", "1")]
    columns.append(column(images["nearest codes, w = 0"]))
    print(f"{len(clean)} faces of {size} px, seed {arguments.seed}, {describe(device)}")
    for name, rows in results.items():
        print(f"\n{name} degradation\n\n{table(rows)}")
    if arguments.sheet:
        write_sheet(arguments.sheet, columns)
        print(
            "\nsheet: clean | small damage, w = 0, 0.5, 1 | large damage, w = 0, 0.5, 1, nearest",
            file=sys.stderr,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


def column(faces: Sequence[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(faces[:SHEET_FACES])).permute(0, 3, 1, 2) / 255


def damage_all(batch: Tensor, damage: Degradation, seed: int) -> Tensor:
    """Each face damaged with a seed of its own, so that --limit changes nothing."""
    return torch.cat(
        [
            degrade(face[None], damage, generator_for(batch.device, seed, n))
            for n, face in enumerate(batch)
        ]
    )


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = [
        "| | PSNR dB | SSIM | sharpness | landmarks px | found | features | colour |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, r in rows.items():
        lines.append(
            f"| {name} | {r['psnr']:.2f} | {r['ssim']:.3f} | {r['sharpness']:.2f} | "
            f"{r['landmarks']:.1f} | {r['found']:.0%} | {r['features']:.3f} | {r['colour']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
