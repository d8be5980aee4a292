"""CPU time per face of each backend, compared with the plain network.

    python benchmarks/backends.py [FACES] [--shipped] [--rounds 3] [--chart backends.png]

Restores one face of 512 px, on one thread, with random weights of the published size; with
--shipped one of 256 px and the weights that come with cfrestore. Each backend runs in its own
process, after one face as a warm-up. Speed does not depend on the weights, but the PSNR of int8
does, so PSNR is measured with the shipped weights, on FACES, a folder of aligned faces, which is
also used to calibrate int8; without FACES, int8 is left out. Differences are those of images
clamped to [-1, 1]; codes are compared with those of the plain network.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import stopwatch
import torch
from baseline import PlainCodeFormer, random_face, random_state
from safetensors.torch import save_file

from cfrestore import export, quantize
from cfrestore.backends import ExportedNetwork, export_file, installed
from cfrestore.checkpoint import read_checkpoint
from cfrestore.device import inference, reuse_memory
from cfrestore.models.codeformer import CodeFormerConfig
from cfrestore.weights import load_codeformer, shipped

BACKENDS = {
    "plain torch": ("plain", ""),
    "torch (ours)": ("torch", ""),
    "onnx fp32": ("onnx", "fp32.onnx"),
    "openvino fp32": ("openvino", "fp32.onnx"),
    "onnx int8": ("onnx", "int8.onnx"),
    "openvino int8": ("openvino", "int8.onnx"),
}
FIDELITIES = (0.5, 0.0)
CALIBRATED_ON = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("faces", nargs="?", type=Path)
    parser.add_argument("--shipped", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chart", type=Path)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, folder, w = options.worker
        work(name, Path(folder), float(w))
        return
    print(stopwatch.machine() + ", one thread\n")
    if options.faces:
        print(psnr(options.faces) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), options.faces, options.shipped)
        names = [n for n, (_, file) in BACKENDS.items() if Path(folder, file).exists()]
        workers = {
            f"{name}, w = {w:g}": [__file__, "--worker", name, folder, str(w)]
            for w in FIDELITIES
            for name in names
        }
        found = stopwatch.in_turn(workers, options.rounds, stopwatch.ONE_THREAD)
        parity = {key: compare(Path(folder), key) for key in found}
    yardstick = found["plain torch, w = 0.5"].middle
    ratios = {key: times.middle / yardstick for key, times in found.items()}
    rows = [
        [key, times.range(), f"{ratios[key]:.3f}", f"{times.peak / 1e6:.0f}", *parity[key]]
        for key, times in found.items()
    ]
    head = ["backend", "CPU s a face (range)", "ratio", "peak MB", "difference", "codes"]
    print(stopwatch.table(head, rows))
    if options.chart:
        del ratios["plain torch, w = 0.5"]
        title = "CPU time of one face by backend over the plain network's"
        stopwatch.chart(options.chart, title, ratios, 0.57)


def psnr(faces: Path) -> str:
    network, graph = load_codeformer(shipped()), export_file(shipped())
    side = network.config.image_size
    seen = quantize.read_faces(faces, side)
    _, agreement = quantize.quantize(network, graph, seen, installed())
    codes = "equal" if agreement.equal_codes else "not equal"
    return (
        f"int8 of the shipped weights ({side} px): {agreement.psnr:.2f} dB against fp32 on "
        f"{agreement.faces} faces held out, codes {codes}"
    )


def prepare(folder: Path, faces: Path | None, own: bool) -> None:
    """Writes weights (random ones of the published size, or our own) and their graphs."""
    weights = folder / "net.safetensors"
    if own:
        shutil.copy(shipped(), weights)
    else:
        config = CodeFormerConfig()
        save_file(random_state(config), weights, {"config": config.to_json()})
    network, graph = load_codeformer(weights), export_file(weights)
    export.write(graph, folder / "fp32.onnx")
    side = network.config.image_size
    image = random_face(side).numpy()
    if faces:
        seen = quantize.read_faces(faces, side, most=2 * CALIBRATED_ON)
        rounded, _ = quantize.quantize(network, graph, seen, installed())
        export.write(rounded, folder / "int8.onnx")
        image = seen[:1]
    np.save(folder / "image.npy", image)


def work(name: str, folder: Path, w: float) -> None:
    """Restores one face with one backend."""
    torch.set_num_threads(1)
    backend, file = BACKENDS[name]
    image, weights = np.load(folder / "image.npy"), folder / "net.safetensors"
    results: list[torch.Tensor | np.ndarray] = []
    if backend == "plain":
        state, facts = read_checkpoint(weights)
        config = CodeFormerConfig.from_json(facts["config"])
        plain = PlainCodeFormer({key: value.float() for key, value in state.items()}, config)
        x, adain = torch.from_numpy(image), config.match_statistics
        plain(x, w, adain)
        spent = stopwatch.time_of(lambda: results.append(plain(x, w, adain)))
        codes = plain.codes(x)
    elif backend == "torch":
        reuse_memory()
        network = load_codeformer(weights)
        x = torch.from_numpy(image).contiguous(memory_format=torch.channels_last)
        with inference():
            adain = network.config.match_statistics
            network(x, w, adain)
            spent = stopwatch.time_of(lambda: results.append(network(x, w, adain)))
            codes = network.choose(network.predict_codes(network.encode(x)[0]))
    else:
        exported = ExportedNetwork(folder / file, backend, threads=1)
        codes = torch.from_numpy(exported(image, w).codes)
        spent = stopwatch.time_of(lambda: results.append(exported(image, w).restored))
    stopwatch.tell(*spent)
    np.savez(folder / f"{name}, w = {w:g}.npz", image=results[0], codes=codes)


def compare(folder: Path, key: str) -> tuple[str, str]:
    """The largest difference from the plain network, and whether the codes are the same."""
    name, w = key.split(", ")
    own, plain = (np.load(folder / f"{who}, {w}.npz") for who in (name, "plain torch"))
    if name == "plain torch":
        return "", ""
    difference = np.abs(own["image"].clip(-1, 1) - plain["image"].clip(-1, 1)).max()
    equal = np.array_equal(own["codes"], plain["codes"])
    return f"{difference:.1e}", "equal" if equal else "not equal"


if __name__ == "__main__":
    main()
