"""How fast faces are painted on a GPU, compared with the shortest time that is possible there.

    python benchmarks/gpu.py [--minutes 8] [--json FILE]
    python benchmarks/gpu.py --hasty                          # fills the compiler's caches
    python benchmarks/gpu.py --floors --card "NVIDIA H200"    # counts only, needs no card
    python benchmarks/gpu.py --device cpu --small             # tries the script itself

Networks of the published and the compact shape (tiny with --only), with random weights from a seed,
paint random crops at w = 0.5. `network` is encode, choose_features and decode on data that is
already on the GPU, `replayed` is the same as a CUDA graph, without the time for launching, and
`Painter` is all that the pipeline does with crops: stacking, upload, network, judging, download.
Each figure is the median of several rounds after a warm-up; the spread is the slowest round's time
divided by the fastest's.

The floor of a part is its operations divided by the GPU's peak, or its bytes divided by the GPU's
bandwidth, whichever takes longer: each convolution and each product outside attention reads its
operands and writes its result once, and everything else counts as free. Peaks are those of the
GPU's datasheet, without sparsity; other GPUs need --peaks. The speeds that a large convolution and
a large copy reach are measured as well. Needs only torch, numpy, OpenCV, Pillow and safetensors.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from cfrestore.align import AlignedFace, align_face
from cfrestore.correction import correct
from cfrestore.detect import Face
from cfrestore.device import (
    Execution,
    Precision,
    after_encoding,
    autotune,
    check_compiling,
    compiled,
    describe,
    inference,
    reduced,
    settle,
    synchronize,
)
from cfrestore.errors import ConfigError
from cfrestore.image import read_photo, to_tensor
from cfrestore.models.codeformer import CodeFormer, CodeFormerConfig, adaptive_instance_norm
from cfrestore.models.vqgan import GroupNorm
from cfrestore.parse import PARSE_SIZE, mask_from_classes
from cfrestore.paste import paste_faces
from cfrestore.restore import Painter, RestoredFace
from cfrestore.weights import load_codeformer, shipped

FP32, TF32, BF16, FP16 = Precision.FP32, Precision.TF32, Precision.BF16, Precision.FP16
W = 0.5
SHAPES = {
    "published": CodeFormerConfig(),
    "compact": CodeFormerConfig.compact(),
    "tiny": CodeFormerConfig.tiny(),
}
EXAMPLE = Path(__file__).parents[1] / "examples" / "collins.jpg"


@dataclass(frozen=True)
class Peaks:
    """Peaks of a GPU per second: 1e12 operations of each kind, 1e12 bytes of memory traffic."""

    fp32: float
    tf32: float
    half: float
    bandwidth: float

    def of(self, precision: Precision) -> float:
        return {FP32: self.fp32, TF32: self.tf32}.get(precision, self.half)


# NVIDIA's datasheets of these cards, dense; the beginning of the name that torch gives them.
CARDS = {
    "NVIDIA H200": Peaks(67, 494.5, 989.5, 4.8),
    "NVIDIA H100 PCIe": Peaks(51, 378, 756, 2.0),
    "NVIDIA H100": Peaks(67, 494.5, 989.5, 3.35),
    "NVIDIA A100": Peaks(19.5, 156, 312, 2.0),
}


@dataclass(frozen=True)
class Setting:
    """How a network is run."""

    codes: Precision
    painting: Precision
    batch: int = 16
    compile: bool = False

    def __str__(self) -> str:
        kernels = "compiled" if self.compile else "eager"
        return f"{self.codes.value} | {self.painting.value} | {kernels} | {self.batch}"


PLAIN, MIXED, FAST = Setting(FP32, FP32), Setting(FP32, BF16), Setting(TF32, BF16)
COMPILED = Setting(TF32, BF16, compile=True)
HALVED = Setting(FP16, FP16, compile=True)
BATCHES = {"published": (32, 16), "compact": (128, 32), "tiny": (64, 32)}
"""What to paint at once; the last is also measured without compiling."""

OTHERS = (MIXED, PLAIN, Setting(TF32, TF32), Setting(TF32, FP16))
NATIVE, BY_ROWS, TRIED = "torch's group norm", "group norm by rows", "algorithms tried"


# Counting


@dataclass
class Work:
    """Operations, and the numbers that must be read or written."""

    convolutions: float = 0
    products: float = 0
    numbers: float = 0

    def __sub__(self, other: Work) -> Work:
        return Work(
            *(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def seconds(self, precision: Precision, peaks: Peaks) -> tuple[float, float]:
        """The shortest time for the operations, and for the bytes."""
        operations = (self.convolutions + self.products) / peaks.of(precision)
        width = 4 if precision in (FP32, TF32) else 2
        return operations / 1e12, self.numbers * width / peaks.bandwidth / 1e12


class Counting(TorchDispatchMode):
    """Counts the work that is done within its context."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.overloadpacket
        if name in flop_registry:
            count = flop_registry[name](*args, **(kwargs or {}), out_val=out)
            if name is torch.ops.aten.convolution:
                self.work.convolutions += count
            else:
                self.work.products += count
            if name is not torch.ops.aten.bmm:  # attention, whose operands the products around move
                tensors = [value for value in (*args, out) if isinstance(value, Tensor)]
                self.work.numbers += sum(tensor.numel() for tensor in tensors)
        return out


Parts = dict[str, Callable[[], object]]


def parts_of(network: CodeFormer, x: Tensor) -> Parts:
    """The parts of the network, each as a call; `generator, fusion` is decode at w = 0.5."""
    latent, skips = network.encode(x)
    tokens = network.predict_codes(latent)
    features = network.lookup(network.choose(tokens))

    def transformer() -> Tensor:
        found = network.lookup(network.choose(network.predict_codes(latent)))
        return adaptive_instance_norm(found, latent)

    return {
        "encoder": lambda: network.encode(x),
        "transformer": transformer,
        "generator": lambda: network.decode(features, skips, 0),
        "generator, fusion": lambda: network.decode(features, skips, W),
    }


def count(config: CodeFormerConfig, batch: int) -> dict[str, Work]:
    """The work of each part for a batch."""
    side = config.image_size
    found = {}
    with torch.device("meta"), torch.no_grad():  # in inference mode convolutions have other names
        network = CodeFormer(config).eval()
        x = torch.empty(batch, 3, side, side)
        for name, part in parts_of(network, x).items():
            with Counting() as counting:
                part()
            found[name] = counting.work
    found["fusion"] = found.pop("generator, fusion") - found["generator"]
    return found


def precision_of(part: str, setting: Setting) -> Precision:
    if part == "transformer":
        return after_encoding(setting.codes)
    return setting.codes if part == "encoder" else setting.painting


# Measuring


@dataclass
class Bench:
    """Where, until when and how thoroughly to measure, and the results.

    Attributes:
        device, deadline: where, and when to stop, by the monotonic clock.
        small: whether this only tries the script, with tiny sizes.
        compiling: seconds that must be left before something is compiled.
        least: seconds of a round.
        hasty: whether everything is called as seldom as possible.
        target: file for the results.
        record, left_out: the results, and what there was no time for.
    """

    device: torch.device
    deadline: float
    small: bool
    compiling: float = 75
    least: float = 0.3
    hasty: bool = False
    target: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def has_time(self, what: str, seconds: float = 0) -> bool:
        if time.monotonic() + seconds < self.deadline:
            return True
        self.left_out.append(what)
        return False

    @contextmanager
    def surviving(self, what: str) -> Iterator[None]:
        """Reports an error of one measurement and lets the others go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - those of Triton and of the compiler vary
            said = f"{type(error).__name__}: {error}"
            print(f"\n({what} failed: {said.splitlines()[0]})\n", flush=True)
            self.note("failures", what=what, error=said)

    def measure(self, call: Callable[[], object]) -> tuple[float, float]:
        """Median seconds of a call, and the slowest round divided by the fastest."""
        warmups, rounds, least = (1, 1, 0.0) if self.hasty else (3, 5, self.least)
        for _ in range(warmups):
            synchronize(self.device)
            start = time.perf_counter()
            call()
            synchronize(self.device)
        repeats = max(1, round(least / max(time.perf_counter() - start, 1e-6)))
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            synchronize(self.device)
            times.append((time.perf_counter() - start) / repeats)
        return statistics.median(times), max(times) / min(times)

    def save(self) -> None:
        if self.target is not None:
            self.target.write_text(json.dumps(self.record, indent=1) + "\n")

    def note(self, table: str, **values: object) -> None:
        self.record.setdefault(table, []).append(values)


def make(config: CodeFormerConfig, device: torch.device) -> CodeFormer:
    """A random network whose output fills the range, as a trained one's does.

    Random logits are unsure of every face, so the second look, for the few unsure ones, is off.
    """
    torch.manual_seed(0)
    network = CodeFormer(replace(config, second_look=0.0)).eval().requires_grad_(False)
    network.generator.last_weight.mul_(4)
    settle(network, device)
    return network


def random_faces(side: int, count: int) -> list[AlignedFace]:
    crops = np.random.default_rng(0).integers(0, 256, (count, side // 8, side // 8, 3), np.uint8)
    nobody = Face(np.zeros(4, np.float32), 1.0, np.zeros((5, 2), np.float32))
    return [AlignedFace(enlarged(crop, side), np.eye(2, 3), nobody) for crop in crops]


def enlarged(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


def step_of(network: CodeFormer, x: Tensor, setting: Setting) -> Callable[[], Tensor]:
    """All that the network does with a batch, to be called within `inference`."""
    encode, choose, decode = network.encode, network.choose_features, network.decode
    if setting.compile:
        encode, choose, decode = compiled(encode), compiled(choose), compiled(decode)
    matched = network.config.match_statistics

    def step() -> Tensor:
        with reduced(x.device, setting.codes):
            latent, skips = encode(x)
        with reduced(x.device, after_encoding(setting.codes)):
            features, skips, *_ = choose(latent.float(), skips, matched)
        with reduced(x.device, setting.painting):
            return decode(features, skips, W)

    return step


def measure_replayed(bench: Bench, step: Callable[[], Tensor]) -> float | None:
    """Seconds of a step whose launches were recorded; None if that is not possible."""
    if bench.device.type != "cuda":
        return None
    with bench.surviving("recording a CUDA graph"):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return bench.measure(graph.replay)[0]
    return None


def measure_setting(
    bench: Bench, name: str, network: CodeFormer, setting: Setting, remark: str = ""
) -> None:
    """Prints a row of the first table, if there is time."""
    remark = f", {remark}" if remark else ""
    label = f"{name} | {setting}{remark}"
    if bench.has_time(label, bench.compiling if setting.compile else 0):
        with bench.surviving(label):
            show_setting(bench, name, network, setting, remark)
        bench.save()


def show_setting(
    bench: Bench, name: str, network: CodeFormer, setting: Setting, remark: str
) -> None:
    device, batch, side = bench.device, setting.batch, network.config.image_size
    faces = random_faces(side, (1 if bench.hasty else 2) * batch)
    if setting.compile:
        torch._dynamo.reset()  # otherwise a second batch size is compiled for any size
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    paint = Painter(
        network,
        fidelity=W,
        match_statistics=network.config.match_statistics,
        batch_size=batch,
        execution=Execution(device, setting.painting, setting.codes, setting.compile),
    )
    start = time.perf_counter()
    results = paint(faces[:batch])
    first = time.perf_counter() - start
    failed = sum(not isinstance(result, RestoredFace) for result in results)
    whole, whole_spread = bench.measure(lambda: paint(faces))
    memory = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0
    with inference():  # where Painter makes its batches too; others would be compiled again
        x = to_tensor(np.stack([face.crop for face in faces[:batch]])).to(device)
        step = step_of(network, x, setting)
        alone, spread = bench.measure(step)
        replayed = measure_replayed(bench, step)
    rates = [batch / alone, batch / replayed if replayed else 0, len(faces) / whole]
    shown = " | ".join(f"{rate:.1f}" if rate else "" for rate in rates)
    print(
        f"| {name} | {setting}{remark} | {shown} | {max(spread, whole_spread):.2f} | {memory:.0f} "
        f"| {first:.1f} | {failed} |",
        flush=True,
    )
    bench.note(
        "rates",
        network=name,
        remark=remark,
        codes=setting.codes.value,
        painting=setting.painting.value,
        compiled=setting.compile,
        batch=batch,
        network_faces_per_second=rates[0],
        replayed_faces_per_second=rates[1],
        painter_faces_per_second=rates[2],
        spread=max(spread, whole_spread),
        peak_mib=memory,
        first_seconds=first,
        failed=failed,
        bytes_up_per_face=side * side * 3,
        bytes_down_per_face=side * side * 3 + 1,
    )


RATES = (
    "\n| network | codes | painting | kernels | batch | network, faces/s | replayed, faces/s "
    "| Painter, faces/s | spread | peak, MiB | first batch, s | no picture |\n|" + "---|" * 12
)


@contextmanager
def varied(remark: str) -> Iterator[None]:
    """The context of a remark: without our kernels for group normalisation, or with a switch."""
    own = GroupNorm.forward, GroupNorm.is_fused
    if remark in (NATIVE, BY_ROWS):
        GroupNorm.is_fused = staticmethod(lambda x: False)  # type: ignore[method-assign]
    if remark == NATIVE:
        GroupNorm.forward = nn.GroupNorm.forward  # type: ignore[method-assign, assignment]
    if remark == TRIED:
        autotune()
    try:
        yield
    finally:
        GroupNorm.forward = own[0]  # type: ignore[method-assign]
        GroupNorm.is_fused = staticmethod(own[1])  # type: ignore[method-assign]
        torch.backends.cudnn.benchmark = False


def measure_parts(
    bench: Bench, name: str, network: CodeFormer, setting: Setting, peaks: Peaks
) -> None:
    """Prints the roofline table of a setting: each part's floor, its time, and their ratio."""
    label = f"parts of {name} | {setting}"
    if bench.has_time(label, bench.compiling if setting.compile else 0):
        with bench.surviving(label):
            times = times_of_parts(bench, network, setting)
            show_parts(bench, name, setting, peaks, count(network.config, setting.batch), times)


def times_of_parts(bench: Bench, network: CodeFormer, setting: Setting) -> dict[str, float]:
    """Seconds of each part for a batch."""
    batch, side = setting.batch, network.config.image_size
    x = to_tensor(np.stack([face.crop for face in random_faces(side, batch)])).to(bench.device)
    times = {}
    if setting.compile:
        torch._dynamo.reset()
    with inference():
        for part, call in parts_of(network, x).items():
            own = compiled(call) if setting.compile else call
            with reduced(bench.device, precision_of(part, setting)):
                times[part] = bench.measure(own)[0]
    times["fusion"] = times.pop("generator, fusion") - times["generator"]
    return times


def show_parts(
    bench: Bench,
    name: str,
    setting: Setting,
    peaks: Peaks,
    work: dict[str, Work],
    times: dict[str, float] | None = None,
) -> None:
    """Prints a roofline table, leaving out what was not measured."""
    batch = setting.batch
    print(
        f"\n{name}, codes in {setting.codes.value}, painting in {setting.painting.value}, batch "
        f"{batch}{', compiled' if setting.compile else ''}\n\n| part | convolutions, GFLOP a face "
        "| products, GFLOP a face | least traffic, MB a face | floor, ms a face | bound by "
        "| measured, ms a face | share |\n|" + "---|" * 8
    )
    floors = {}
    for part, own in work.items():
        precision = precision_of(part, setting)
        operations, traffic = (1e3 * s / batch for s in own.seconds(precision, peaks))
        floors[part] = max(operations, traffic)
        width = 4 if precision in (FP32, TF32) else 2
        found = 1e3 * times[part] / batch if times else None
        measured = f"{found:.4f} | {floors[part] / found:.0%}" if found else " | "
        bound = "operations" if operations >= traffic else "bytes"
        print(
            f"| {part} | {own.convolutions / batch / 1e9:.2f} | {own.products / batch / 1e9:.2f} "
            f"| {own.numbers * width / batch / 1e6:.1f} | {floors[part]:.4f} | {bound} "
            f"| {measured} |"
        )
        values = asdict(setting) | {
            "codes": setting.codes.value,
            "painting": setting.painting.value,
        }
        bench.note("parts", network=name, part=part, **values, **asdict(own), measured_ms=found)
    floor = sum(floors.values())
    found = 1e3 * sum(times.values()) / batch if times else None
    measured = f"{found:.4f} | {floor / found:.0%}" if found else " | "
    print(
        f"| all | | | | {floor:.4f}, so {1e3 / floor:.0f} faces/s | | {measured} |",
        flush=True,
    )


def measure_ceilings(bench: Bench) -> Peaks:
    """Prints and returns what a large convolution and a large copy reach."""
    side, channels, batch = (64, 32, 1) if bench.small else (128, 256, 16)
    x = torch.randn(batch, channels, side, side, device=bench.device)
    x = x.contiguous(memory_format=torch.channels_last)
    layer = nn.Conv2d(channels, channels, 3, padding=1).to(bench.device)
    layer = layer.to(memory_format=torch.channels_last)
    operations = 2 * 9 * channels**2 * side**2 * batch
    rates = []
    for precision in (FP32, TF32, BF16):
        kind = torch.bfloat16 if precision is BF16 else torch.float32
        values, kernel = x.to(kind), layer.to(kind)
        with inference(), reduced(bench.device, TF32 if precision is TF32 else FP32):
            rates.append(operations / bench.measure(partial(kernel, values))[0] / 1e12)
    source = torch.zeros(2**24 if bench.small else 2**31, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() / bench.measure(lambda: target.copy_(source))[0] / 1e12
    print(
        f"A 3x3 convolution of {channels} channels reaches {rates[0]:.3g} TFLOP/s in fp32, "
        f"{rates[1]:.3g} in tf32 and {rates[2]:.3g} in bf16; a copy moves {moved:.3g} TB/s.",
        flush=True,
    )
    fp32, tf32, half = rates
    found = Peaks(fp32, tf32, half, moved)
    bench.note("ceilings", **asdict(found))
    return found


def measure_equality(bench: Bench) -> None:
    """Prints how much the precisions change the results of the shipped, trained network."""
    if not bench.has_time("equality of results"):
        return
    network = load_codeformer(shipped(), bench.device)
    faces = damaged_faces(network.config.image_size, 2 if bench.small else 64)
    x = to_tensor(np.stack([face.crop for face in faces])).to(bench.device)

    def codes(precision: Precision) -> Tensor:
        with inference():
            with reduced(bench.device, precision):
                latent, _ = network.encode(x)
            with reduced(bench.device, after_encoding(precision)):
                return network.choose(network.predict_codes(latent.float()))

    exact, shares = codes(FP32), {}
    print(f"\nCodes equal to those in fp32, shipped weights, {len(faces)} faces:")
    for precision in (TF32, FP16):
        shares[precision.value] = share = float((exact == codes(precision)).double().mean())
        print(f"- {precision.value}: {share:.4%}")
    print("\n| codes | painting | mean, levels | largest, levels |\n|---|---|---|---|")
    bench.note("codes", **shares)

    def painted(setting: Setting) -> np.ndarray:
        paint = Painter(
            network,
            fidelity=W,
            match_statistics=False,
            batch_size=setting.batch,
            execution=Execution(bench.device, setting.painting, setting.codes),
        )
        results = [face for face in paint(faces) if isinstance(face, RestoredFace)]
        return np.stack([face.crop for face in results]).astype(int)

    full = painted(PLAIN)
    pairs = (FP32, TF32), (TF32, FP32), (FP32, BF16), (FP32, FP16), (TF32, BF16), (FP16, FP16)
    for codes_in, painting in pairs[: 1 if bench.small else None]:
        difference = np.abs(painted(Setting(codes_in, painting)) - full)
        shown = f"{difference.mean():.3f} | {difference.max()}"
        print(f"| {codes_in.value} | {painting.value} | {shown} |", flush=True)
        bench.note(
            "differences",
            codes=codes_in.value,
            painting=painting.value,
            mean=float(difference.mean()),
            largest=int(difference.max()),
        )


def damaged_faces(side: int, count: int) -> list[AlignedFace]:
    """The example face, shifted, darkened and made noisy, each in a different way."""
    random = np.random.default_rng(0)
    example = enlarged(read_photo(EXAMPLE).pixels, side)
    faces = random_faces(side, 1) * count
    for index, face in enumerate(faces):
        shifted = np.roll(example, random.integers(-side // 14, side // 14, 2), (0, 1))
        noisy = shifted * random.uniform(0.6, 1) + random.normal(0, index / 6, shifted.shape)
        faces[index] = AlignedFace(noisy.clip(0, 255).astype(np.uint8), face.to_crop, face.face)
    return faces


def measure_surroundings(bench: Bench) -> None:
    """Prints what one face costs the CPU: cutting out, mask, pasting; each on one thread."""
    if not bench.has_time("cost of alignment and pasting"):
        return
    pixels = enlarged(read_photo(EXAMPLE).pixels, 1600)
    points = np.array(((620, 700), (960, 700), (790, 930), (650, 1080), (930, 1080)), np.float32)
    face = Face(np.array([400, 300, 1200, 1300], np.float32), 1.0, points)
    classes = np.zeros((PARSE_SIZE, PARSE_SIZE), np.uint8)
    classes[100:400, 120:390] = 1
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    print("\n| of one face, on the processor, one thread | ms |\n|---|---|")
    for size in (512, 256):
        aligned = align_face(pixels, face, size)
        painted = RestoredFace(aligned.crop, aligned, W)
        mask = enlarged(mask_from_classes(classes) * 255, size).astype(np.float32) / np.float32(255)
        calls: dict[str, Callable[[], object]] = {
            "cutting out": partial(align_face, pixels, face, size),
            "pasting into 1600x1600": partial(paste_faces, pixels, [painted]),
            "the same with a mask": partial(paste_faces, pixels, [painted], masks=[mask]),
        }
        if size == SHAPES["compact"].image_size:
            crops, config = (aligned.crop[::-1], aligned.crop), SHAPES["compact"]
            calls["correcting"] = partial(correct, *crops, fidelity=W, config=config, gray=False)
        for what, call in calls.items():
            seconds, _ = bench.measure(call)
            print(f"| {what}, {size} px | {1e3 * seconds:.2f} |", flush=True)
            bench.note("surroundings", what=what, size=size, ms=1e3 * seconds)
    seconds, _ = bench.measure(lambda: mask_from_classes(classes))
    print(f"| mask from parsed classes | {1e3 * seconds:.2f} |", flush=True)
    bench.note("surroundings", what="mask", size=PARSE_SIZE, ms=1e3 * seconds)
    cv2.setNumThreads(threads)


# In order


def measure_all(bench: Bench, peaks: Peaks, names: list[str]) -> None:
    """Measures everything, the most important first, and writes intermediate results."""
    try:
        check_compiling(bench.device)
        compiles = True
    except ConfigError as error:
        compiles = False
        print(f"\nNothing is compiled: {error}.")
    networks = {name: make(SHAPES[name], bench.device) for name in names}
    print(RATES)
    for name, setting, remark in first_rates(names, compiles, bench.small):
        with varied(remark):
            measure_setting(bench, name, networks[name], setting, remark)
    for name, network in networks.items():
        setting = Setting(TF32, TF32, 1) if bench.small else replace(FAST, compile=compiles)
        measure_parts(bench, name, network, setting, peaks)
        bench.save()
    with bench.surviving("equality of results"):
        measure_equality(bench)
    bench.save()
    if not bench.small:
        print(RATES)
        for name, setting, remark in more_rates(names, compiles):
            with varied(remark):
                measure_setting(bench, name, networks[name], setting, remark)
    with bench.surviving("surroundings"):
        measure_surroundings(bench)


Row = tuple[str, Setting, str]
"""Name of a network, setting, remark."""


def first_rates(names: list[str], compiles: bool, small: bool) -> Iterator[Row]:
    """What the goals are about: fast settings, compiled in two ways, and eager."""
    if small:
        yield from ((name, Setting(TF32, TF32, 2), "") for name in names)
        return
    for name in names:
        many, few = BATCHES[name]
        if compiles:
            yield name, replace(COMPILED, batch=many), ""
            yield name, replace(HALVED, batch=many), ""
            yield name, replace(COMPILED, batch=few), ""
        yield name, replace(FAST, batch=few), ""
    for name in names if compiles else ():
        yield name, replace(COMPILED, batch=BATCHES[name][0]), TRIED
    for name in names if compiles else ():
        yield name, replace(COMPILED, batch=BATCHES[name][0]), NATIVE


def more_rates(names: list[str], compiles: bool) -> Iterator[Row]:
    """Codes in fp16, other precisions, other batches, and what is known to be slower."""
    for name in names:
        many, few = BATCHES[name]
        yield name, replace(HALVED, batch=few, compile=False), ""
        yield name, replace(FAST, batch=few), TRIED
        if compiles:
            yield name, replace(HALVED, painting=BF16, batch=many), ""
    for name in names:
        for setting in (*OTHERS, *(replace(FAST, batch=batch) for batch in (1, 4, 8, 32))):
            yield name, setting, ""
        yield name, FAST, NATIVE
        if compiles:
            yield name, COMPILED, BY_ROWS


def peaks_of(name: str, given: list[float] | None) -> Peaks | None:
    """The given peaks, else those of the GPU of that name, else None."""
    if given:
        return Peaks(*given)
    return next((peaks for card, peaks in CARDS.items() if name.startswith(card)), None)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8, help="when to stop at the latest")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=["published", "compact"])
    parser.add_argument(
        "--small", action="store_true", help="the tiny network, and hardly measured"
    )
    parser.add_argument("--floors", action="store_true", help="count, and measure nothing")
    parser.add_argument("--card", default="", help="whose peaks to take; by default this one's")
    parser.add_argument(
        "--peaks",
        nargs=4,
        type=float,
        metavar=("FP32", "TF32", "BF16", "BANDWIDTH"),
        help="of a card, in TFLOP/s and TB/s",
    )
    parser.add_argument(
        "--compiling",
        type=float,
        default=75,
        metavar="SECONDS",
        help="left before something is compiled; less is enough with full caches",
    )
    parser.add_argument(
        "--round", type=float, default=0.3, metavar="SECONDS", help="length of each of five rounds"
    )
    parser.add_argument(
        "--hasty", action="store_true", help="call everything once or twice, to fill caches"
    )
    parser.add_argument("--json", type=Path, help="file for all numbers")
    options = parser.parse_args()
    names = ["tiny"] if options.small else options.only
    deadline = time.monotonic() + 60 * options.minutes
    bench = Bench(
        torch.device("cpu"),
        deadline,
        options.small,
        options.compiling,
        options.round,
        hasty=options.small or options.hasty,
        target=options.json,
    )
    if options.floors:
        peaks = peaks_of(options.card, options.peaks)
        if peaks is None:
            parser.error(f"--floors needs --peaks, or --card of {', '.join(CARDS)}")
        for name in names:
            work = count(SHAPES[name], FAST.batch)
            for setting in (PLAIN, MIXED, FAST):
                show_parts(bench, name, setting, peaks, work)
    else:
        if options.device.startswith("cuda") and not torch.cuda.is_available():
            print("There is no CUDA device here, so there is nothing to measure.", file=sys.stderr)
            return 2
        bench.device = torch.device(options.device)
        description = describe(bench.device)
        print(f"{description}, torch {torch.__version__}\n")
        bench.note("machine", device=description, torch=torch.__version__)
        ceilings = measure_ceilings(bench)
        card = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else ""
        peaks = peaks_of(options.card or card, options.peaks)
        if peaks is None:
            print("The peaks of this device are not known; floors are of what was reached.")
        measure_all(bench, peaks or ceilings, names)
    for what in bench.left_out:
        print(f"left out for want of time: {what}")
    bench.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
