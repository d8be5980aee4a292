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

from cfrestore.detect import Detector, load_detector
from cfrestore.device import choose_device, describe, inference
from cfrestore.image import from_tensor, read_photo
from cfrestore.models.codeformer import CodeFormer, adaptive_instance_norm
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
class Judge:
    """The measures that need a network."""

    detector: Detector
    onet: torch.nn.Module

    @torch.no_grad()
    def features(self, face: Pixels) -> list[Tensor]:
        x = (torch.from_numpy(face).permute(2, 0, 1)[None].float() - 127.5) / 128
        taps = []
        for n in (1, 2, 3):
            x = self.onet.get_submodule(f"conv{n}")(x)
            x = self.onet.get_submodule(f"prelu{n}")(x)
            taps.append(x)
            x = self.onet.get_submodule(f"pool{n}")(x)
        return taps

    def landmarks(self, face: Pixels) -> NDArray[np.float32] | None:
        """Five points at 512, of the face nearest to the middle."""
        large = cv2.resize(face, (512, 512), interpolation=cv2.INTER_CUBIC)
        found = self.detector(large)
        if not found:
            return None
        return min(found, key=lambda f: float(np.abs(f.landmarks.mean(0) - 256).sum())).landmarks


def face_ellipse(size: int) -> NDArray[np.bool_]:
    (cx, cy), (rx, ry) = ELLIPSE
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1


def gradient(face: Pixels) -> NDArray[np.float32]:
    luma = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.hypot(cv2.Sobel(luma, cv2.CV_32F, 1, 0), cv2.Sobel(luma, cv2.CV_32F, 0, 1))


def measure(judge: Judge, restored: Sequence[Pixels], clean: Sequence[Pixels]) -> dict[str, float]:
    """The row of the table for faces (S,S,3) against their clean versions."""
    size = clean[0].shape[0]
    inside = face_ellipse(size)
    cut = slice(size // 32, -(size // 32))
    rows: dict[str, list[float]] = {
        k: [] for k in ("psnr", "ssim", "sharpness", "landmarks", "features", "colour")
    }
    for ours, theirs in zip(restored, clean, strict=True):
        a, b = ours[cut, cut], theirs[cut, cut]
        rows["psnr"].append(peak_signal_noise_ratio(b, a))
        rows["ssim"].append(
            structural_similarity(
                b, a, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
        )
        rows["sharpness"].append(
            float(gradient(ours)[inside].mean() / gradient(theirs)[inside].mean())
        )
        rows["features"].append(
            float(
                np.mean(
                    [
                        ((x - y).abs().mean() / y.abs().mean()).item()
                        for x, y in zip(judge.features(ours), judge.features(theirs), strict=True)
                    ]
                )
            )
        )
        shift = (rgb2lab(ours)[inside] - rgb2lab(theirs)[inside]).mean(0)
        rows["colour"].append(float(np.linalg.norm(shift)))
        points = judge.landmarks(ours), judge.landmarks(theirs)
        if points[0] is not None and points[1] is not None:
            distance = np.linalg.norm(points[0] - points[1], axis=1).mean()
            rows["landmarks"].append(float(distance))
    means = {k: float(np.mean(v)) if v else float("nan") for k, v in rows.items()}
    return means | {"found": len(rows["landmarks"]) / len(clean)}


def restorations(net: CodeFormer, damaged: Tensor, match: bool) -> dict[str, Tensor]:
    """Images (N,3,S,S) in [-1, 1] by the name of their row."""
    images: dict[str, list[Tensor]] = {}
    for x in (damaged * 2 - 1).split(8):
        latent, skips = net.encode(x)
        codes = net.predict_codes(latent).argmax(-1)
        nearest, predicted = net.quantize(latent).values, net.lookup(codes)
        if match:
            nearest, predicted = (adaptive_instance_norm(q, latent) for q in (nearest, predicted))
        images.setdefault("nearest codes, w = 0", []).append(net.decode(nearest, skips, 0))
        for w in FIDELITIES:
            images.setdefault(f"w = {w:g}", []).append(net.decode(predicted, skips, w))
    return {k: torch.cat(v) for k, v in images.items()}


def pictures(images: Tensor) -> list[Pixels]:
    return list(from_tensor(images))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("faces", type=Path, help="folder of aligned clean faces")
    parser.add_argument("--model", type=Path, help="weight file (default: the shipped ones)")
    parser.add_argument("--limit", type=int, help="only the first N faces")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-match", action="store_true", help="without latent AdaIN")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG)")
    parser.add_argument("--json", type=Path, help="write the figures (JSON)")
    arguments = parser.parse_args()

    device = choose_device(arguments.device)
    net = load_codeformer(arguments.model or shipped(), device)
    size = net.config.image_size
    paths = sorted(p for p in arguments.faces.iterdir() if p.suffix in (".jpg", ".png"))
    clean = [
        cv2.resize(read_photo(path).pixels, (size, size), interpolation=cv2.INTER_AREA)
        for path in paths[: arguments.limit]
    ]
    batch = torch.from_numpy(np.stack(clean)).permute(0, 3, 1, 2).float().to(device) / 255
    detector = load_detector("mtcnn", device)
    judge = Judge(detector, MTCNN().onet)

    results: dict[str, dict[str, dict[str, float]]] = {}
    columns = [batch[:SHEET_FACES]]
    with inference():
        for name, damage in (("small", SMALL), ("large", LARGE)):
            damaged = damage_all(batch, damage.scaled(size), arguments.seed)
            images = restorations(net, damaged, not arguments.no_match)
            rows = {"degraded input": measure(judge, pictures(damaged * 2 - 1), clean)}
            rows |= {k: measure(judge, pictures(v), clean) for k, v in images.items()}
            results[name] = rows
            columns.append(damaged[:SHEET_FACES])
            columns += [
                ((images[f"w = {w}"][:SHEET_FACES] + 1) / 2).clamp(0, 1) for w in ("0", "0.5", "1")
            ]
    columns.append(((images["nearest codes, w = 0"][:SHEET_FACES] + 1) / 2).clamp(0, 1))
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
