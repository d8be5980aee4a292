"""What whole photographs cost, compared with the plain published pipeline.

    python benchmarks/pipeline.py one [--rounds 3] [--openvino FACES]
    python benchmarks/pipeline.py group [--faces 40] [--rounds 1]
    python benchmarks/pipeline.py folder [--pictures 200] [--published] [--rounds 1] [--device cuda]
    python benchmarks/pipeline.py folder --published --openvino FACES [--pictures 200]
    python benchmarks/pipeline.py folder --waiting 0.01 [--pictures 200]

`one` measures the network, parsing and pasting of one face of 600 px in a picture of 12 MP, on one
thread. With FACES, a folder of aligned faces, it also runs the network in OpenVINO, in fp32 and in
int8 calibrated on them; both are exported first, which takes minutes, and parsing is still done by
torch. `group` measures a picture of 20 MP with that many faces, from file to file, on all cores.
Both use random weights of the published sizes; the places of faces are given, since random weights
find none.

`folder` measures a folder of mixed pictures, JPEG and PNG of 0.3 to 6 MP with none to three faces,
with the shipped weights and no parser, or with --published like the others. Here `ours` is the
batch engine, and the plain pipeline finds faces with facenet-pytorch's own MTCNN, in a picture
reduced as much as ours. The plain pipeline reads, finds, paints, parses, pastes and writes one
picture after the other. Neither searches pictures that are turned. With FACES, the network also
runs in OpenVINO, whose compiling counts. With --device cuda network and parser are on the card, and
ours also runs in fp16. How long its threads took for each step is printed too. With --waiting, only
ours runs, and instead of painting waits so many seconds for each face, as for a card: the more the
cores are busy, the better the steps overlap.

`network busy` is the share of the elapsed time in which faces were being painted; `cores busy` is
CPU time divided by the elapsed time and the number of cores.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import baseline
import cv2
import numpy as np
import stopwatch
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from cfrestore import export, quantize
from cfrestore.align import FFHQ_TEMPLATE, AlignedFace
from cfrestore.backends import ExportedNetwork, export_file
from cfrestore.batch import plan, run
from cfrestore.checkpoint import read_checkpoint, unfilled
from cfrestore.detect import Face
from cfrestore.device import CPU, FACES_AT_ONCE, choose_parsing_precision, reuse_memory
from cfrestore.image import Photo, read_photo, write_photo
from cfrestore.models.codeformer import CodeFormerConfig
from cfrestore.models.parsenet import ParseNet
from cfrestore.network import Network
from cfrestore.parse import FaceParser
from cfrestore.pipeline import Pipeline, load_pipeline
from cfrestore.restore import RestoredFace
from cfrestore.weights import load_codeformer, shipped

EXAMPLE = Path(__file__).parents[1] / "examples" / "collins.jpg"
SIZES = {"one": (3000, 4000), "group": (3872, 5168)}  # 12 and 20 megapixels
STEPS = ("read", "find", "paint", "paste", "write")
HALVED = "ours, fp16"
OPENVINO = "ours, openvino"
Points = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("one", "group", "folder"))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--faces", type=int, default=40)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--openvino", type=Path, metavar="FACES")
    parser.add_argument("--waiting", type=float, default=0, metavar="SECONDS")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if (options.waiting or options.device != "cpu") and options.what != "folder":
        parser.error("--waiting and --device are for a folder")
    if options.waiting and options.device != "cpu":
        parser.error("--waiting takes the place of a card")
    on_cpu = options.device == "cpu" and not options.waiting
    if options.openvino and not (
        options.what == "one" or (options.what == "folder" and options.published and on_cpu)
    ):
        parser.error("--openvino is for one, and for folder --published on the CPU")
    faces = 1 if options.what == "one" else options.faces
    if options.worker:
        how, folder = options.worker
        if options.what == "folder":
            work_folder(how, Path(folder), options.published, options.device, options.waiting)
        else:
            work_picture(how, Path(folder), options.what, faces)
        return
    print(stopwatch.machine() + (", one thread\n" if options.what == "one" else "\n"))
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "folder":
            make_folder(Path(folder), options.pictures)
        else:
            make_picture(Path(folder), options.what, faces)
        if options.what != "folder" or options.published:
            make_weights(Path(folder))
        hows = ["ours"] if options.waiting else ["plain", "ours"]
        if options.openvino:
            hows += export_network(Path(folder), options.openvino)
        if options.device == "cuda":
            hows.append(HALVED)
        words = [__file__, options.what, "--faces", str(faces)]
        words += ["--device", options.device, "--waiting", str(options.waiting)]
        words += [*["--published"] * options.published, "--worker"]
        rounds = options.rounds or (3 if options.what == "one" else 1)
        environment = stopwatch.ONE_THREAD if options.what == "one" else {}
        found = stopwatch.in_turn({how: [*words, how, folder] for how in hows}, rounds, environment)
    show(found)


def show(found: dict[str, stopwatch.Measured]) -> None:
    first, cores = next(iter(found.values())), os.cpu_count() or 1
    rows = []
    for how, times in found.items():
        wall, busy = min(times.wall), times.said.get("painting")
        rows.append(
            [
                how,
                times.range(),
                f"{times.middle / first.middle:.3f}",
                f"{wall:.1f}",
                f"{wall / min(first.wall):.3f}",
                f"{times.peak / 1e6:.0f}",
                "" if busy is None else f"{busy / times.wall[0]:.0%}",
                f"{times.seconds[0] / times.wall[0] / cores:.0%}",
            ]
        )
        rows[-1] += [str(times.said["faces"])] if "faces" in times.said else []
        rows[-1] += [f"{seconds:.2f}" for seconds in times.said.get("stages", {}).values()]
    stages = list(first.said.get("stages", {}))
    head = ["how", "CPU s (range)", "ratio", "s that passed", "ratio", "peak MB", "network busy"]
    head += ["cores busy", *(["faces"] if "faces" in first.said else [])]
    print(stopwatch.table([*head, *(f"{stage}, CPU s" for stage in stages)], rows))
    if steps := {how: t.said["steps"] for how, t in found.items() if "steps" in t.said}:
        rows = [[how, *(f"{s[name]:.1f}" for name in STEPS)] for how, s in steps.items()]
        print(f"\n{stopwatch.table(['how', *(f'{name}, s of threads' for name in STEPS)], rows)}")


# ---- one picture with faces at known places, networks with random weights


def place_faces(what: str, count: int) -> list[Points]:
    """Landmarks of faces in rows, of sides from 250 to 600 px."""
    height, width = SIZES[what]
    columns = int(np.ceil((count * width / height) ** 0.5))
    cell = min(width // columns, height // -(-count // columns))
    sides = np.linspace(min(600, 0.8 * cell), min(250, 0.8 * cell), count)
    corners = [divmod(index, columns)[::-1] for index in range(count)]
    return [
        (FFHQ_TEMPLATE * (side / 512) + np.array(corner) * cell + 20).astype(np.float32)
        for side, corner in zip(sides, corners, strict=True)
    ]


def make_picture(folder: Path, what: str, faces: int) -> None:
    height, width = SIZES[what]
    noise = np.random.default_rng(0).integers(40, 216, (60, 80, 3), np.uint8)
    pixels = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    crop = read_photo(EXAMPLE).pixels[5:105, 46:146]
    for points in place_faces(what, faces):
        side = int(np.linalg.norm(points[1] - points[0]) * 512 / 126)
        left, top = (points[2] - 0.5 * side).astype(int).clip(0)
        region = pixels[top : top + side, left : left + side]
        region[...] = cv2.resize(crop, region.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    write_photo(Photo(pixels), folder / "picture.jpg")


def make_weights(folder: Path) -> None:
    """Writes random weights of the published sizes."""
    config = CodeFormerConfig()
    save_file(
        baseline.random_state(config), folder / "net.safetensors", {"config": config.to_json()}
    )
    torch.save(random_parser(), folder / "parsenet.pth")


def export_network(folder: Path, faces: Path) -> list[str]:
    """Writes the network for OpenVINO, in both precisions; returns the names of the rows."""
    graph = export_file(folder / "net.safetensors")
    export.write(graph, folder / "fp32.onnx")
    seen = quantize.read_faces(faces, CodeFormerConfig().image_size, most=8)
    network = load_codeformer(folder / "net.safetensors")
    export.write(quantize.quantize(network, graph, seen, "openvino")[0], folder / "int8.onnx")
    return [f"{OPENVINO} fp32", f"{OPENVINO} int8"]


def random_parser() -> dict[str, Tensor]:
    """Random weights of ParseNet, scaled so that values keep their size from layer to layer."""
    with unfilled():
        shapes = ParseNet().state_dict()
    generator, state = torch.Generator().manual_seed(0), {}
    for key, value in shapes.items():
        n = torch.randn(value.shape, generator=generator)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(0)
        elif key.endswith(("running_var", "norm.weight")):
            state[key] = 1 + 0.2 * n.abs()
        elif value.ndim == 1:
            state[key] = 0.1 * n
        else:
            state[key] = n / value[0].numel() ** 0.5
    return state


def plain_detector() -> Callable[[NDArray[np.uint8]], list[Points]]:
    """facenet-pytorch's, RGB to landmarks; in full-size pictures it would take much longer."""
    from facenet_pytorch import MTCNN

    network = MTCNN(keep_all=True, thresholds=[0.6, 0.7, 0.9])

    def find(pixels: NDArray[np.uint8]) -> list[Points]:
        scale = min(1, 1024 / min(pixels.shape[:2]))
        small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        _, _, landmarks = network.detect(small, landmarks=True)
        return [] if landmarks is None else list(np.asarray(landmarks, np.float32) / scale)

    return find


def read_bgr(path: Path) -> NDArray[np.uint8]:
    """A picture as OpenCV reads it."""
    return np.asarray(cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR))


def plain_parser(path: Path, device: torch.device = CPU) -> Callable[[Tensor], Tensor]:
    from facexlib.parsing.parsenet import ParseNet as TheirParseNet

    network = TheirParseNet(in_size=512, out_size=512, parsing_ch=19).eval()
    network.load_state_dict(torch.load(path, weights_only=True))
    network.to(device)

    @torch.inference_mode()
    def parse(x: Tensor) -> Tensor:
        return network(x.to(device))[0].cpu()

    return parse


class Known:
    """A detector that returns known faces."""

    name = "known"

    def __init__(self, landmarks: list[Points]) -> None:
        self.faces = tuple(Face(np.zeros(4, np.float32), 1.0, points) for points in landmarks)

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[Face, ...]:
        return self.faces


class Clock:
    """Adds up the CPU seconds of stages."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self.wall: dict[str, float] = {}

    def timed(self, stage: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            results: list[object] = []
            cpu, wall = stopwatch.time_of(lambda: results.append(function(*arguments, **named)))
            self.stages[stage] = self.stages.get(stage, 0) + cpu
            self.wall[stage] = self.wall.get(stage, 0) + wall
            return results[0]

        return call


def work_picture(how: str, folder: Path, what: str, faces: int) -> None:
    """Works from file to file, or in `one` from pixels to pixels, with everything loaded before."""
    if what == "one":
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
    if how != "plain":
        reuse_memory()
    landmarks, clock = place_faces(what, faces), Clock()
    weights, parsing = folder / "net.safetensors", folder / "parsenet.pth"
    work: Callable[[], object]
    source = folder / "picture.jpg"
    if how == "plain":
        network = baseline.PlainCodeFormer(read_checkpoint(weights)[0], CodeFormerConfig())
        paint = clock.timed("network", lambda x: network(x, 0.5))
        parse = clock.timed("parsing", plain_parser(parsing))

        def plainly(bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
            values = baseline.restore(bgr, landmarks, paint, 1, parse).values  # type: ignore[arg-type]
            return values.clip(0, 255).astype(np.uint8)

        pixels = read_bgr(source)

        def from_file_to_file() -> None:
            bgr = read_bgr(source)
            (folder / "plain.png").write_bytes(cv2.imencode(".png", plainly(bgr))[1].tobytes())

        work = (lambda: plainly(pixels)) if what == "one" else from_file_to_file
    else:
        if how == "ours":
            painter: Network = load_codeformer(weights)
        else:
            painter = exported = ExportedNetwork(folder / f"{how.split()[-1]}.onnx", "openvino", 1)
            exported(baseline.random_face(exported.config.image_size).numpy(), 0.5)  # compiles it
        precision = choose_parsing_precision("auto", torch.device("cpu"))
        pipeline = Pipeline(painter, Known(landmarks), FaceParser(parsing, precision=precision))
        for part in ("encode", "choose_features", "decode"):
            setattr(painter, part, clock.timed("network", getattr(painter, part)))
        parser = pipeline.parser
        assert parser is not None
        parser.network.forward = clock.timed("parsing", parser.network.forward)
        photo = read_photo(source)
        jobs = plan([source], folder / "ours.png", overwrite=True)
        work = (
            (lambda: pipeline(photo))
            if what == "one"
            else (lambda: list(run(jobs, pipeline.restoring())))
        )
    spent = stopwatch.time_of(work)
    clock.stages["the rest"] = spent[0] - sum(clock.stages.values())
    stopwatch.tell(*spent, stages=clock.stages, painting=clock.wall["network"])


# ---- a folder of mixed pictures, the shipped network or one with random weights


def make_folder(folder: Path, pictures: int) -> None:
    """JPEG and PNG of 0.3 to 6 MP with none to three faces."""
    random, source = np.random.default_rng(0), folder / "in"
    source.mkdir()
    face = read_photo(EXAMPLE).pixels
    for index in range(pictures):
        width = int(random.choice([640, 1000, 1600, 2400, 2900]))
        height = int(width * random.uniform(0.6, 0.8))
        noise = random.integers(60, 196, (6, 8, 3), np.uint8)
        pixels = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        for column in range(int(random.integers(0, 4))):
            side = int(random.uniform(0.4, 1) * min(width // 3, height))
            left, top = column * (width // 3), int(random.integers(0, height - side + 1))
            shown = cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC)
            pixels[top : top + side, left : left + side] = shown
        grain = random.normal(0, 3, pixels.shape)
        pixels = (pixels + grain).clip(0, 255).astype(np.uint8)
        write_photo(Photo(pixels), source / f"{index:03}.{'jpg' if index % 4 else 'png'}")


def waiting(seconds: float, faces: Sequence[AlignedFace]) -> list[RestoredFace]:
    """Returns the faces unchanged, after so many seconds for each."""
    time.sleep(seconds * len(faces))
    return [RestoredFace(face.crop, face, 0.5) for face in faces]


def work_folder(how: str, folder: Path, published: bool, device: str, seconds: float) -> None:
    source, target = folder / "in", folder / f"{how}-{time.time_ns()}"
    weights, parsing = folder / "net.safetensors", folder / "parsenet.pth"
    place = torch.device(device)
    if how.startswith("ours"):
        reuse_memory()
        exported = folder / f"{how.split()[-1]}.onnx" if OPENVINO in how else None
        model, parser = (exported or weights, parsing) if published else ("compact", None)
        precision = "fp16" if how == HALVED else "auto"
        pipeline = load_pipeline(
            *(model, "mtcnn", place, parser),
            precision=precision,
            code_precision=precision,
            backend="openvino" if exported else "torch",
            turns=False,
        )
        procedure = pipeline.restoring()
        if seconds:
            procedure = replace(
                procedure,
                paint=partial(waiting, seconds),
                batch_size=FACES_AT_ONCE,
                spares_processor=True,
            )
        jobs, steps, faces = plan([source], target), dict.fromkeys(STEPS, 0.0), 0

        def engine() -> None:
            nonlocal faces
            for outcome in run(jobs, procedure):
                assert outcome.error is None, outcome.error
                for step, taken in outcome.seconds.items():
                    steps[step] += taken
                faces += len(outcome.faces)

        spent = stopwatch.time_of(engine)
        stopwatch.tell(*spent, painting=steps["paint"], faces=faces, steps=steps)
        return
    config = CodeFormerConfig() if published else CodeFormerConfig.compact()
    state = read_checkpoint(weights if published else shipped())[0]
    state = {key: value.to(place, torch.float32) for key, value in state.items()}
    network, find, clock = baseline.PlainCodeFormer(state, config), plain_detector(), Clock()
    faces = 0
    paint = clock.timed(
        "network", lambda x: network(x.to(place), 0.5, config.match_statistics).cpu()
    )
    parse = plain_parser(parsing, place) if published else None

    def one_by_one() -> None:
        nonlocal faces
        target.mkdir()
        for path in sorted(source.iterdir()):
            bgr = read_bgr(path)
            points = find(np.ascontiguousarray(bgr[..., ::-1]))
            faces += len(points)
            side = config.image_size
            values = baseline.restore(bgr, points, paint, 1, parse, side).values  # type: ignore[arg-type]
            result = values.clip(0, 255).astype(np.uint8)
            quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else []
            (target / path.name).write_bytes(
                cv2.imencode(path.suffix, result, quality)[1].tobytes()
            )

    spent = stopwatch.time_of(one_by_one)
    stopwatch.tell(*spent, painting=clock.wall["network"], faces=faces)


if __name__ == "__main__":
    main()
