"""What parsing costs on one thread, and whether its masks are those of the published ParseNet.

    python benchmarks/parsing.py [--weights parsing_parsenet.pth] [--faces FOLDER] [--limit 20]

Aligned faces of the folder, or the example's face, are parsed by facexlib's plain network at 512 px
and by cfrestore's at several sizes. Agreement is the intersection over the union of the soft masks,
cut at a half, over all faces. If no weights are given, they are random except for the last layer,
which is fitted to classes by position and brightness on the last faces of the folder, half as many
as are measured. Then time and the agreement at 512 px are meaningful, but the agreement at smaller
sizes is not, since how a network sees a smaller face is learned.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import baseline
import cv2
import numpy as np
import stopwatch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pipeline import plain_parser, random_parser
from torch import Tensor

from cfrestore.device import Precision, reuse_memory
from cfrestore.image import from_levels, read_photo
from cfrestore.models.parsenet import CLASSES, ParseNet
from cfrestore.parse import FaceParser

EXAMPLE = Path(__file__).parents[1] / "examples" / "collins.jpg"
SIDES = (512, 384, 256)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--faces", type=Path)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    crops = read_faces(options.faces, options.limit)
    if options.worker:
        how, weights, folder = options.worker
        work(how, Path(weights), Path(folder), crops)
        return
    print(f"{stopwatch.machine()}, one thread, {len(crops)} faces\n")
    with tempfile.TemporaryDirectory() as folder:
        weights = options.weights or Path(folder) / "random.pth"
        if options.weights is None:
            torch.save(
                fitted_parser(read_faces(options.faces, -max(1, options.limit // 2))), weights
            )
        faces = ["--faces", str(options.faces)] if options.faces else []
        words = [__file__, *faces, "--limit", str(options.limit), "--worker"]
        workers = {
            name: [*words, name, str(weights), folder]
            for name in ("plain", "ours 512 bf16", *(f"ours {side}" for side in SIDES))
        }
        found = stopwatch.in_turn(workers, 1, stopwatch.ONE_THREAD)
        masks = {name: np.load(f"{folder}/{name}.npy") > 0.5 for name in workers}
    plain, rows = found["plain"], []
    for name, times in found.items():
        both, either = masks[name] & masks["plain"], masks[name] | masks["plain"]
        agreement = both.sum() / max(1, either.sum())
        ratio = f"{times.middle / plain.middle:.3f}"
        rows.append([name, times.range(), ratio, f"{times.peak / 1e6:.0f}", f"{agreement:.4f}"])
    kind = "published" if options.weights else "fitted"
    head = [f"{kind} weights", "CPU s a face", "ratio", "peak MB", "intersection over union"]
    print(stopwatch.table(head, rows))


def read_faces(folder: Path | None, limit: int) -> NDArray[np.uint8]:
    """The first `limit` faces of the folder, or the last if the limit is negative."""
    part = slice(limit) if limit >= 0 else slice(limit, None)
    paths = sorted(folder.glob("*.[jp][pn]g"))[part] if folder else [EXAMPLE]
    return np.stack([cv2.resize(read_photo(path).pixels, (512, 512)) for path in paths])


def fitted_parser(crops: NDArray[np.uint8]) -> dict[str, Tensor]:
    """Random weights of ParseNet, with the last layer fitted to classes of crops by least squares.

    So its logits have margins, which random logits do not have.
    """
    network, seen = ParseNet(), list[Tensor]()
    network.load_state_dict(random_parser())
    network.eval().out_mask_conv.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    products, targets = torch.tensor(0.0), torch.tensor(0.0)
    for crop in crops:
        with torch.inference_mode():
            network(from_levels(torch.from_numpy(crop[None])))
            # The contents (576, N) of every third 3x3 window, whose centres are at 0, 3, 6, ...
            windows = F.unfold(F.pad(seen.pop(), (1,) * 4, mode="reflect"), 3, stride=3)[0]
            x = F.pad(windows, (0, 0, 0, 1), value=1).double()
            y = F.one_hot(torch.from_numpy(classes_of(crop)[::3, ::3].copy()).flatten(), CLASSES)
            products, targets = products + x @ x.T, targets + x @ y.double()
    ridge = 1e-3 * products.diagonal().mean() * torch.eye(len(products))
    solved = torch.linalg.solve(products + ridge, targets).float().T  # (19, 577)
    state = network.state_dict()
    kernel = solved[:, :-1].reshape(state["out_mask_conv.conv2d.weight"].shape)
    return {
        **state,
        "out_mask_conv.conv2d.weight": kernel.clone(),
        "out_mask_conv.conv2d.bias": solved[:, -1].clone(),
    }


def classes_of(crop: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Classes (S, S) of a crop, roughly: bright (1) and dark (13) within an ellipse, else 0."""
    y, x = (np.mgrid[: len(crop), : len(crop)] + 0.5) / len(crop)
    inside = ((y - 0.53) / 0.43) ** 2 + ((x - 0.5) / 0.31) ** 2 < 1
    gray = cv2.GaussianBlur(crop, (0, 0), len(crop) / 128).mean(2)
    return np.where(inside, np.where(gray > 0.8 * np.median(gray[inside]), 1, 13), 0)


def work(how: str, weights: Path, folder: Path, crops: NDArray[np.uint8]) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    masks: list[NDArray[np.floating]] = []
    if how == "plain":
        network = plain_parser(weights)

        def parse(crop: NDArray[np.uint8]) -> None:
            logits = network(baseline.to_input(crop[..., ::-1]))
            masks.append(baseline.parsing_mask(logits[0].argmax(0).numpy()))
    else:
        reuse_memory()
        precision = Precision.BF16 if how.endswith("bf16") else Precision.FP32
        parser = FaceParser(weights, side=int(how.split()[1]), precision=precision)

        def parse(crop: NDArray[np.uint8]) -> None:
            masks.append(parser(crop[None])[0])

    parse(crops[0])
    masks.clear()
    spent = [stopwatch.time_of(partial(parse, crop)) for crop in crops]
    np.save(folder / f"{how}.npy", np.stack(masks))
    stopwatch.tell(*(median(kind) for kind in zip(*spent, strict=True)))


if __name__ == "__main__":
    main()
