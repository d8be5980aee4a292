"""The batch engine: work overlaps and faces share batches, but results do not depend on it."""

import gc
import os
import re
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from folders import make_pictures
from numpy.typing import NDArray
from stubs import StubDetector, StubNetwork, face_at, picture, small_network
from torch import Tensor

from cfrestore.align import AlignedFace
from cfrestore.batch import COMPARED, CROPS, REASONS, Job, Outcome, engine, plan, run
from cfrestore.detect import Face, MTCNNDetector
from cfrestore.device import Execution, faces_at_once, inference
from cfrestore.errors import ConfigError, ImageError
from cfrestore.image import Photo, read_photo, write_photo
from cfrestore.options import Options, parse_batch_size
from cfrestore.pipeline import Pipeline
from cfrestore.procedure import PaintedFace, Prepared, Procedure, Restoration
from cfrestore.restore import Painter, RestoredFace
from cfrestore.weights import load_codeformer, shipped

WAIT = 20  # seconds until a test that would hang fails


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Lets networks compute in one thread, which is faster for tiny ones on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def aligned(count: int) -> tuple[AlignedFace, ...]:
    crops = [picture(32, 32, seed=seed) for seed in range(count)]
    return tuple(AlignedFace(crop, np.eye(2, 3), face_at(0, 0, 32)) for crop in crops)


class Painting:
    """A procedure whose pictures have given numbers of faces; it remembers its batches."""

    def __init__(
        self,
        faces: Sequence[int],
        batch_size: int = 1,
        paint: Callable[[Sequence[AlignedFace]], None] = lambda faces: None,
    ) -> None:
        self.batches: list[int] = []
        counts = iter(faces)
        lock = threading.Lock()

        def prepare(photo: Photo) -> Prepared:
            with lock:
                own = aligned(next(counts))
            return Prepared(own, lambda painted: Restoration(photo, tuple(painted)))

        def painted(faces: Sequence[AlignedFace]) -> Sequence[PaintedFace]:
            self.batches.append(len(faces))
            paint(faces)
            return [RestoredFace(face.crop, face, 0.5) for face in faces]

        self.procedure = Procedure(prepare, painted, batch_size)

    def __call__(self, workers: int = 2) -> list[Outcome]:
        return list(run(plan(["in"], "out"), self.procedure, workers=workers))


# Batches


@pytest.mark.parametrize(
    ("faces", "batches"),
    [
        ([1, 1, 1, 1, 1], [4, 1]),
        ([3, 2, 2, 1], [5, 3]),
        ([0, 1, 0, 0, 3, 0, 9], [4, 9]),
        ([0, 0], []),
        ([], []),
    ],
)
def test_faces_of_different_pictures_share_batches(faces: list[int], batches: list[int]) -> None:
    make_pictures(len(faces))
    # One worker: with several, it is not certain which picture gets which number of faces.
    painting = Painting(faces, batch_size=4)
    jobs = plan(["in"], "out", isolate=True)
    outcomes = list(run(jobs, painting.procedure, workers=1))
    assert painting.batches == batches
    assert [outcome.restored for outcome in outcomes] == faces
    assert [outcome.job for outcome in outcomes] == list(jobs)


def test_large_pictures_do_not_wait_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    make_pictures(6)
    monkeypatch.setattr(engine, "PIXELS_AHEAD", 2 * 40 * 50)
    painting = Painting([1] * 6, batch_size=100)
    assert len(painting()) == 6
    assert painting.batches == [2, 2, 2]


def test_a_batch_too_large_is_halved_and_no_face_is_lost() -> None:
    def paint(x: Tensor) -> Tensor:
        if len(x) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return -x

    network, faces = StubNetwork(paint), aligned(13)
    painter = Painter(network, fidelity=0.5, match_statistics=False, batch_size=8)
    results = painter(faces)
    assert [len(x) for x, _, _ in network.calls] == [8, 4, 2, 2, 2, 2, 2, 2, 1]
    assert [result.aligned for result in results if isinstance(result, RestoredFace)] == list(faces)
    network.calls.clear()
    assert len(painter(faces[:4])) == 4
    assert [len(x) for x, _, _ in network.calls] == [2, 2]  # it has learned


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("could not create a primitive"),
        MemoryError(),
    ],
    ids=str,
)
def test_whatever_lacks_memory_is_a_memory_error(error: Exception) -> None:
    with pytest.raises(MemoryError), inference():
        raise error
    with pytest.raises(RuntimeError, match="another"), inference():
        raise RuntimeError("another")


def test_a_face_that_finds_no_memory_alone_fails_its_picture_alone() -> None:
    make_pictures(5)

    def paint(faces: Sequence[AlignedFace]) -> None:
        if len(faces) > 1 or np.array_equal(faces[0].crop, picture(32, 32, seed=0)):
            raise MemoryError

    painting = Painting([1, 0, 1, 1, 0], batch_size=4, paint=paint)
    outcomes = painting(workers=1)
    assert [outcome.code for outcome in outcomes] == ["memory", None, "memory", "memory", None]
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["001.png", "004.png"]


def test_on_the_cpu_faces_are_painted_singly() -> None:
    cpu, card = torch.device("cpu"), torch.device("cuda:0")
    assert faces_at_once("auto", cpu) == faces_at_once(8, cpu) == 1
    assert faces_at_once("auto", card) > 1
    assert faces_at_once(3, card) == 3
    network = StubNetwork()
    restore = Pipeline(network, StubDetector(*[face_at(0, 0, 32)] * 3))
    restore(Photo(picture(40, 50)), Options(batch_size=3))
    assert [len(x) for x, _, _ in network.calls] == [1, 1, 1]


def test_batch_sizes_are_numbers_or_auto() -> None:
    assert parse_batch_size("auto") == "auto"
    assert parse_batch_size("7") == 7
    for text in ("", "many", "1.5", "0"):
        with pytest.raises(ConfigError, match="^--batch-size must be auto or a whole number"):
            parse_batch_size(text)
    with pytest.raises(ConfigError, match="batch_size"):
        Options(batch_size=0)


# Independence


class Anywhere:
    """A detector that finds one to three faces, depending on the picture."""

    name = "anywhere"

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[Face, ...]:
        rng = np.random.default_rng(int(pixels.sum()))
        count = int(rng.integers(1, 4))
        return tuple(face_at(*rng.uniform(-5, 20, 2), rng.uniform(12, 60)) for _ in range(count))


def bytes_of(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.png"))}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("which", ["small", "shipped", "shipped with mtcnn"])
def test_results_do_not_depend_on_batches_order_or_workers(which: str, repository: Path) -> None:
    if which == "shipped with mtcnn":
        Path("in").mkdir()
        portrait = read_photo(repository / "examples/collins.jpg")
        for index, rows in enumerate((slice(None), slice(None, -20), slice(10, None))):
            write_photo(Photo(portrait.pixels[rows].copy()), f"in/{index}.png")
    else:
        make_pictures(7, 50, 60)
    network = small_network() if which == "small" else load_codeformer(shipped())
    detector = MTCNNDetector() if which == "shipped with mtcnn" else Anywhere()
    pipeline = Pipeline(network, detector)
    expected = {
        path.name: pipeline(read_photo(path)).photo.pixels for path in Path("in").glob("*.png")
    }
    reference: dict[str, bytes] = {}
    for number, (batch_size, workers, backwards) in enumerate(
        [("auto", 1, False), (1, 2, True), (3, 3, False), (100, 4, True)]
    ):
        jobs = plan(["in"], f"out{number}")
        jobs = jobs[::-1] if backwards else jobs
        procedure = pipeline.restoring(Options(batch_size=batch_size))  # type: ignore[arg-type]
        outcomes = list(run(jobs, procedure, workers=workers))
        assert all(outcome.restored for outcome in outcomes)
        found = bytes_of(f"out{number}")
        reference = reference or found
        assert found == reference
    for name, pixels in expected.items():
        assert np.array_equal(read_photo(f"out0/{name}").pixels, pixels)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("task", ["inpainting", "colorizing"])
def test_the_other_tasks_give_what_they_give_alone(task: str) -> None:
    Path("in").mkdir()
    for index in range(3):
        pixels = picture(50, 60, seed=index)
        pixels[20:30, 20:30] = 255
        write_photo(Photo(pixels), f"in/{index}.png")
    pipeline = Pipeline(small_network(), StubDetector(face_at(10, 5, 40)))
    procedure = pipeline.inpainting() if task == "inpainting" else pipeline.colorizing()
    alone = pipeline.inpaint if task == "inpainting" else pipeline.colorize
    for outcome in run(plan(["in"], "out"), procedure):
        assert outcome.restored == 1
        expected = alone(read_photo(outcome.job.source))  # type: ignore[arg-type]
        assert np.array_equal(read_photo(outcome.job.target).pixels, expected.photo.pixels)  # type: ignore[arg-type]


# Overlap, and its bounds


def test_pictures_are_read_while_others_are_painted_and_painted_while_others_are_written() -> None:
    make_pictures(3)
    read, painted = threading.Event(), threading.Event()

    def reading(source: Path | BinaryIO) -> Photo:
        if source == Path("in/001.png"):
            read.set()
        return read_photo(source)

    count = 0

    def paint(faces: Sequence[AlignedFace]) -> None:
        nonlocal count
        count += 1
        if count == 1:
            assert read.wait(WAIT)
        if count == 2:
            painted.set()

    def writing(photo: Photo, target: BinaryIO, *, format: str | None) -> tuple[str, ...]:
        assert painted.wait(WAIT)
        return write_photo(photo, target, format=format)

    painting = Painting([1, 1, 1], paint=paint)
    outcomes = list(run(plan(["in"], "out"), painting.procedure, read=reading, write=writing))
    assert [outcome.error for outcome in outcomes] == [None] * 3


def test_only_so_many_pictures_are_in_memory() -> None:
    make_pictures(40)
    alive: weakref.WeakSet[NDArray[np.uint8]] = weakref.WeakSet()
    most = 0

    class Pixels(np.ndarray):  # which can be referred to weakly
        pass

    def reading(source: Path | BinaryIO) -> Photo:
        nonlocal most
        photo = Photo(read_photo(source).pixels.view(Pixels))
        alive.add(photo.pixels)  # type: ignore[arg-type]
        gc.collect()
        most = max(most, len(alive))
        return photo

    outcomes = run(plan(["in"], "out"), Painting([1] * 40).procedure, read=reading, workers=2)
    next(outcomes)
    assert len(list(outcomes)) == 39
    assert most <= 12


def test_the_next_batch_is_read_while_one_is_painted() -> None:
    make_pictures(24)
    changed, read, begun, lacking = threading.Condition(), 0, 0, list[int]()

    def reading(source: Path | BinaryIO) -> Photo:
        nonlocal read
        photo = read_photo(source)
        with changed:
            read += 1
            changed.notify()
        return photo

    def paint(faces: Sequence[AlignedFace]) -> None:
        nonlocal begun
        begun += len(faces)
        wanted = min(24, begun + 6)
        with changed:
            if not changed.wait_for(lambda: read >= wanted, 0 if lacking else WAIT):
                lacking.append(wanted - read)

    painting = Painting([1] * 24, batch_size=6, paint=paint)
    outcomes = list(run(plan(["in"], "out"), painting.procedure, read=reading, workers=1))
    assert not lacking
    assert [outcome.error for outcome in outcomes] == [None] * 24
    assert painting.batches == [6] * 4


@pytest.mark.parametrize("spared", [True, False])
def test_beside_a_card_each_core_has_a_thread_that_computes_alone(
    spared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pictures(6)
    monkeypatch.setattr(engine, "MOST_WORKERS", 3)
    monkeypatch.setattr(engine, "WORKERS", 2)
    before = torch.get_num_threads()
    workers = 3 if spared else 2
    together = threading.Barrier(workers)
    numbers, threads = set[int](), set[int]()

    def prepare(photo: Photo) -> Prepared:
        numbers.add(torch.get_num_threads())
        threads.add(threading.get_ident())
        together.wait(WAIT)
        return Prepared((), lambda painted: Restoration(photo, ()))

    procedure = Procedure(prepare, lambda faces: (), spares_processor=spared)
    torch.set_num_threads(2)
    try:
        outcomes = list(run(plan(["in"], "out"), procedure))
        assert len(threads) == workers
        assert torch.get_num_threads() == 2
        together = threading.Barrier(1)  # those that are stopped do not wait for the rest
        with closing(run(plan(["in"], "again"), procedure)) as stopped:
            next(stopped)
            assert torch.get_num_threads() == (1 if spared else 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert [outcome.error for outcome in outcomes] == [None] * 6
    assert numbers == {1 if spared else 2}


@pytest.mark.parametrize(("device", "spares"), [("cpu", False), ("cuda", True), ("mps", True)])
def test_a_card_spares_the_processor(device: str, spares: bool) -> None:
    execution = Execution(torch.device(device))
    pipeline = Pipeline(StubNetwork(), StubDetector(), execution=execution)
    assert pipeline.restoring().spares_processor == spares


@pytest.mark.parametrize("count", [1, 3])
def test_a_photograph_is_let_go_before_its_result_is_encoded(count: int) -> None:
    make_pictures(count)
    read: list[weakref.ref[Photo]] = []

    def reading(source: Path | BinaryIO) -> Photo:
        photo = read_photo(source)
        read.append(weakref.ref(photo))
        return photo

    def writing(photo: Photo, target: BinaryIO, *, format: str | None) -> tuple[str, ...]:
        assert read[0]() is None  # the first picture is the first to be written
        return write_photo(photo, target, format=format)

    procedure = Pipeline(StubNetwork(), StubDetector(face_at(4, 4, 32))).restoring()
    jobs = plan(["in"], "out")
    (first, *_) = run(jobs, procedure, read=reading, write=writing, workers=1)
    assert first.error is None, first.error


def test_one_picture_is_done_by_the_thread_that_asks() -> None:
    make_pictures(1)
    threads: list[threading.Thread] = []

    def reading(source: Path | BinaryIO) -> Photo:
        threads.append(threading.current_thread())
        return read_photo(source)

    list(run(plan(["in"], "out"), Painting([1]).procedure, read=reading))
    assert threads == [threading.main_thread()]


def test_only_so_many_pixels_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    make_pictures(10)
    monkeypatch.setattr(engine, "PIXELS_AHEAD", 40 * 50)
    at_once, most, lock = 0, 0, threading.Lock()

    def reading(source: Path | BinaryIO) -> Photo:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        photo = read_photo(source)
        with lock:
            at_once -= 1
        return photo

    outcomes = list(run(plan(["in"], "out"), Painting([1] * 10).procedure, read=reading, workers=4))
    assert [outcome.status for outcome in outcomes] == ["done"] * 10
    assert most == 1


# Failures


def test_a_fault_in_one_picture_is_told_with_its_place_and_costs_no_other() -> None:
    make_pictures(4)

    def prepare(photo: Photo) -> Prepared:
        if np.array_equal(photo.pixels, picture(40, 50, seed=1)):
            raise ZeroDivisionError("nobody thought\nof this")
        if np.array_equal(photo.pixels, picture(40, 50, seed=2)):
            raise ImageError("it has no head")
        return Prepared((), lambda painted: Restoration(photo, ()))

    outcomes = list(run(plan(["in"], "out"), Procedure(prepare, lambda faces: [])))
    assert [outcome.code for outcome in outcomes] == [None, "unexpected", "unsuitable", None]
    assert "in/001.png met a fault, ZeroDivisionError: nobody thought of this (test_batch_" in str(
        outcomes[1].error
    )
    assert outcomes[2].error == "in/002.png cannot be worked on: it has no head"
    assert all("\n" not in str(outcome.error) for outcome in outcomes)


def test_no_kind_of_exception_in_one_picture_ends_a_batch() -> None:
    make_pictures(2)

    class OddError(Exception):
        pass

    def prepare(photo: Photo) -> Prepared:
        if np.array_equal(photo.pixels, picture(40, 50, seed=0)):
            raise OddError("of some library")
        return Prepared((), lambda painted: Restoration(photo, ()))

    outcomes = list(run(plan(["in"], "out"), Procedure(prepare, lambda faces: [])))
    assert [outcome.code for outcome in outcomes] == ["unexpected", None]


def test_a_fault_in_the_network_is_traced_to_its_picture() -> None:
    make_pictures(4)

    def paint(faces: Sequence[AlignedFace]) -> None:
        if len(faces) == 4 or len(faces) == 2:
            raise ValueError("this face")

    painting = Painting([1, 1, 2, 0], batch_size=4, paint=paint)
    outcomes = painting(workers=1)
    assert [outcome.code for outcome in outcomes] == [None, None, "unexpected", None]


def test_a_picture_that_may_not_be_read_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    make_pictures(2)
    opened = Path.open

    def deny(path: Path, *values: object, **others: object) -> object:
        if path.name == "000.png":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *values, **others)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", deny)
    outcomes = Painting([0])()
    assert [outcome.code for outcome in outcomes] == ["unreadable", None]
    assert outcomes[0].error == "in/000.png cannot be read: Permission denied"


def test_what_a_plan_refused_fails_alone() -> None:
    make_pictures(2)
    Path("out").mkdir()
    Path("out/000.png").write_bytes(b"somebody's")
    outcomes = list(run(plan(["in"], "out", isolate=True), Painting([0, 0]).procedure))
    assert [outcome.code for outcome in outcomes] == ["refused", None]
    assert "out/000.png exists" in str(outcomes[0].error)


def test_every_code_is_explained() -> None:
    folder = Path(engine.__file__).parent
    files = [folder / f"{name}.py" for name in ("engine", "ledger", "cluster")]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    codes = set(re.findall(r'(?:FailureError\(|(?:failing|tried)\([\w.\[\]]+, )"(\w+)"', source))
    assert codes == set(REASONS)


# Streams


def test_a_picture_from_stdin_goes_to_stdout() -> None:
    make_pictures(1)
    out = BytesIO()
    data = Path("in/000.png").read_bytes()
    (outcome,) = run(plan(["-"]), Painting([1]).procedure, stdin=BytesIO(data), stdout=out)
    assert (outcome.status, outcome.restored) == ("done", 1)
    assert out.getvalue().startswith(b"\x89PNG")
    assert np.array_equal(read_photo(out.getvalue()).pixels, read_photo(data).pixels)
    out = BytesIO()
    list(run(plan(["-"], format="bmp"), Painting([0]).procedure, stdin=BytesIO(data), stdout=out))
    assert out.getvalue().startswith(b"BM")
    (outcome,) = run(plan(["-"]), Painting([1]).procedure, stdin=BytesIO(b""), stdout=out)
    assert (outcome.code, outcome.error) == ("unreadable", "<bytes> is empty")
    for job in (*plan(["in/000.png"], "-"), *plan(["-"], "b.png")):
        with pytest.raises(ConfigError, match="<std.* is closed or was not given"):
            list(run([job], Painting([1]).procedure))


def test_a_device_is_written_to_and_not_replaced() -> None:
    make_pictures(1)
    job = Job(Path("in/000.png"), Path(os.devnull), overwrite=True)
    (outcome,) = run([job], Painting([0]).procedure)
    assert outcome.status == "done"
    assert not Path(os.devnull).is_file()


# Interruption


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interruption_leaves_whole_results_that_are_recorded() -> None:
    make_pictures(12)
    count = 0

    def paint(faces: Sequence[AlignedFace]) -> None:
        nonlocal count
        count += 1
        if count == 6:
            os.kill(os.getpid(), signal.SIGINT)

    painting = Painting([1] * 12, paint=paint)
    jobs = plan(["in"], "out", kept=[CROPS, COMPARED])
    with pytest.raises(KeyboardInterrupt):
        list(run(jobs, painting.procedure))
    written = {path.name for path in Path("out").glob("*.png")}
    assert 0 < len(written) < 12
    assert not list(Path("out").rglob(".cfrestore-*.tmp"))
    for folder in ("cropped_faces", "compared"):
        assert {path.name[:3] for path in Path("out", folder).iterdir()} == {
            name[:3] for name in written
        }
    outcomes = list(run(plan(["in"], "out", kept=[CROPS, COMPARED]), Painting([1] * 12).procedure))
    done = {outcome.job.target.name for outcome in outcomes if outcome.status == "unchanged"}  # type: ignore[union-attr]
    assert done == written


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupted_run_still_tells_of_the_pictures_that_were_being_written() -> None:
    make_pictures(12)
    begun, interrupted = threading.Semaphore(0), threading.Event()

    def paint(faces: Sequence[AlignedFace]) -> None:
        if len(painting.batches) == 3:
            assert all(begun.acquire(timeout=WAIT) for _ in range(2))
            interrupted.set()
            os.kill(os.getpid(), signal.SIGINT)

    def write(photo: Photo, target: BinaryIO, *, format: str | None) -> Sequence[str]:
        begun.release()
        assert interrupted.wait(WAIT)
        return write_photo(photo, target, format=format)

    painting = Painting([1] * 12, paint=paint)
    told = []
    with pytest.raises(KeyboardInterrupt):
        for outcome in run(plan(["in"], "out"), painting.procedure, workers=2, write=write):
            told.append(outcome.job.target)
    assert told == sorted(Path("out").glob("*.png"))
    assert len(told) == 2


def test_an_interruption_of_the_listener_can_be_thrown_into_the_run() -> None:
    make_pictures(12)
    second, interrupted = threading.Event(), threading.Event()

    def write(photo: Photo, target: BinaryIO, *, format: str | None) -> Sequence[str]:
        if target.name.endswith("000.png"):
            assert second.wait(WAIT)
        else:
            second.set()
            assert interrupted.wait(WAIT)
        return write_photo(photo, target, format=format)

    jobs = plan(["in"], "out")
    outcomes = run(jobs, Painting([1] * 12).procedure, workers=2, write=write)
    told = [next(outcomes)]
    interrupted.set()
    with pytest.raises(KeyboardInterrupt):
        told.append(outcomes.throw(KeyboardInterrupt()))
        told.extend(outcomes)
    targets = [outcome.job.target for outcome in told]
    assert targets == sorted(Path("out").glob("*.png"))
    assert 1 < len(targets) < 12


def test_who_stops_listening_stops_the_run() -> None:
    make_pictures(30)
    before = threading.active_count()
    outcomes: Iterator[Outcome] = run(plan(["in"], "out"), Painting([1] * 30).procedure)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert 0 < len(list(Path("out").glob("*.png"))) < 30
    assert threading.active_count() == before
