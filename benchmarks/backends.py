"""CPU time of one face by backend, against the published network run plainly.

    python benchmarks/backends.py [FACES] [--rounds 3]

One face of 512 px, one thread, weights of the published size drawn from a fixed seed: the medians
of CPU-seconds over several rounds, in each of which every backend has a process of its own. Speed
does not depend on the weights, but int8's PSNR does, so it is measured with the weights that come
with cfrestore, on FACES, a folder of aligned faces, on which int8 is calibrated too; without it
there is no int8.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cfrestore import export, quantize
from cfrestore.backends import ExportedNetwork, export_file, installed
from cfrestore.models.codeformer import CodeFormer, adaptive_instance_norm
from cfrestore.weights import load_codeformer, shipped

PLAIN = "plain torch"
SETTINGS = {
    PLAIN: ("plain", None),
    "torch": ("torch", None),
    "onnx fp32": ("onnx", "fp32.onnx"),
    "openvino fp32": ("openvino", "fp32.onnx"),
    "onnx int8": ("onnx", "int8.onnx"),
    "openvino int8": ("openvino", "int8.onnx"),
}
FIDELITIES = (0.0, 0.5)
REPEATS = 2
SIDE = 512
CALIBRATED_ON = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.one:
        name, folder, w = words.one
        measure(name, Path(folder), float(w))
        return
    if words.faces:
        print_psnr(words.faces)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), words.faces)
        names = [n for n, (_, file) in SETTINGS.items() if not file or Path(folder, file).exists()]
        for w in FIDELITIES:
            print_table(Path(folder), names, w, words.rounds)


def prepare(folder: Path, faces: Path | None) -> None:
    """Writes random weights of the published size, their graph, and with faces its int8 one."""
    torch.manual_seed(0)
    network = CodeFormer().eval()
    with torch.no_grad():
        network.generator.last_weight.mul_(4)  # so that the output fills the range
    torch.save({"params_ema": network.state_dict()}, folder / "weights.pth")
    graph = export_file(folder / "weights.pth")
    export.write(graph, folder / "fp32.onnx")
    image = torch.rand((1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)) * 2 - 1
    if faces:
        seen = quantize.read_faces(faces, SIDE, most=2 * CALIBRATED_ON)
        rounded, _ = quantize.quantize(graph, seen, installed())
        export.write(rounded, folder / "int8.onnx")
        image = torch.from_numpy(seen[:1])
    np.save(folder / "image.npy", image.numpy())


def print_psnr(faces: Path) -> None:
    graph = export_file(shipped())
    side = load_codeformer(shipped()).config.image_size
    _, agreement = quantize.quantize(graph, quantize.read_faces(faces, side), installed())
    codes = "equal" if agreement.equal_codes else "not equal"
    print(
        f"int8 of the shipped weights ({side} px): {agreement.psnr:.2f} dB against fp32 on "
        f"{agreement.faces} faces held out, codes {codes}\n"
    )


def print_table(folder: Path, names: list[str], w: float, rounds: int) -> None:
    """Measures every backend in turn, round by round, because the machine is not always as fast."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            seconds[name] += in_own_process(name, folder, w)
    plain = statistics.median(seconds[PLAIN])
    print(f"w = {w:g}\n")
    print("| backend | CPU-seconds | from..to | of plain | largest difference | codes |")
    print("|---|---|---|---|---|---|")
    for name in names:
        middle, times = statistics.median(seconds[name]), seconds[name]
        print(
            f"| {name} | {middle:.2f} | {min(times):.2f}..{max(times):.2f} | {middle / plain:.2f} "
            f"| {' | '.join(parity(folder, name))} |",
            flush=True,
        )
    print()


def in_own_process(name: str, folder: Path, w: float) -> list[float]:
    done = subprocess.run(
        [sys.executable, __file__, "--one", name, str(folder), str(w)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    return list(json.loads(done.stdout.splitlines()[-1]))


def measure(name: str, folder: Path, w: float) -> None:
    """Prints CPU-seconds of a face as JSON, after one that does not count; keeps the result."""
    torch.set_num_threads(1)
    paint = painter(name, folder, w)
    restored, codes = paint()
    np.savez(folder / f"{name}.npz", restored=restored, codes=codes)
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        paint()
        seconds.append(time.process_time() - start)
    print(json.dumps(seconds))


def painter(
    name: str, folder: Path, w: float
) -> Callable[[], tuple[np.ndarray, np.ndarray | list[int]]]:
    """What makes the result and, for exported networks and ours, the codes."""
    backend, file = SETTINGS[name]
    image = np.load(folder / "image.npy")
    if file:
        exported = ExportedNetwork(folder / file, backend, threads=1)
        return lambda: exported(image, w)
    network = load_codeformer(folder / "weights.pth")
    x = torch.from_numpy(image)
    if backend == "plain":
        from baseline import PlainCodeFormer

        plain = PlainCodeFormer(network.state_dict(), network.config)
        return lambda: (plain(x, w).numpy(), [])

    def restore() -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():  # as CodeFormer.forward, but the codes are kept
            latent, skips = network.encode(x)
            codes = network.predict_codes(latent).argmax(-1)
            features = adaptive_instance_norm(network.lookup(codes), latent)
            return network.decode(features, skips, w).numpy(), codes.numpy()

    return restore


def parity(folder: Path, name: str) -> tuple[str, str]:
    """The largest difference from plain torch, clamped, and whether codes are those of torch."""
    result, plain, ours = (np.load(folder / f"{key}.npz") for key in (name, PLAIN, "torch"))
    if name == PLAIN:
        return "", ""
    difference = np.abs(result["restored"].clip(-1, 1) - plain["restored"].clip(-1, 1)).max()
    equal = np.array_equal(result["codes"], ours["codes"])
    return f"{difference:.1e}", "equal" if equal else "not equal"


if __name__ == "__main__":
    main()
