from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stubs import StubNetwork, face_at, picture, small_network
from torch import Tensor

from cfrestore import restore
from cfrestore.align import AlignedFace, align_face
from cfrestore.device import (
    Execution,
    Precision,
    available_devices,
    choose_device,
    inference,
    reduced,
)
from cfrestore.image import read_photo, to_tensor
from cfrestore.models.codeformer import CodeFormer, Features
from cfrestore.restore import FailedFace, RestoredFace, restore_faces
from cfrestore.weights import load_codeformer, shipped

REDUCED = (Precision.BF16, Precision.FP16)


def aligned(crop: NDArray[np.uint8]) -> AlignedFace:
    return AlignedFace(crop, np.eye(2, 3), face_at(0, 0, 32))


def crops(count: int) -> list[AlignedFace]:
    return [aligned(picture(32, 32, seed=seed)) for seed in range(count)]


def test_faces_come_back_in_order_whatever_the_batch() -> None:
    faces = crops(5)
    for batch_size, batches in ((1, [1] * 5), (2, [2, 2, 1]), (8, [5])):
        network = StubNetwork()
        results = restore_faces(network, faces, fidelity=0.7, batch_size=batch_size)
        assert [len(x) for x, _, _ in network.calls] == batches
        assert all(call[1:] == (0.7, True) for call in network.calls)
        for face, result in zip(faces, results, strict=True):
            assert isinstance(result, RestoredFace)
            assert result.aligned is face
            assert result.fidelity == 0.7
            assert np.array_equal(result.crop, face.crop)


def test_the_network_sees_rgb_from_minus_one_to_one() -> None:
    crop = np.zeros((32, 32, 3), np.uint8)
    crop[..., 0], crop[0, 0] = 255, 51
    network = StubNetwork()
    restore_faces(network, [aligned(crop)], fidelity=1)
    ((x, _, _),) = network.calls
    assert x.shape == (1, 3, 32, 32)
    assert x[0, :, 1, 1].tolist() == [1, -1, -1]
    assert x[0, :, 0, 0].tolist() == pytest.approx([-0.6] * 3)


def test_a_batch_is_as_good_as_its_faces_alone_and_runs_are_equal() -> None:
    network, faces = small_network(), crops(4)
    together = restore_faces(network, faces, fidelity=0.5, batch_size=4)
    again = restore_faces(network, faces, fidelity=0.5, batch_size=4)
    alone = restore_faces(network, faces, fidelity=0.5, batch_size=1)
    for one, two, three in zip(together, again, alone, strict=True):
        assert isinstance(one, RestoredFace)
        assert isinstance(two, RestoredFace)
        assert isinstance(three, RestoredFace)
        assert np.array_equal(one.crop, two.crop)
        assert np.abs(one.crop.astype(int) - three.crop).max() <= 1


def test_no_faces_are_no_work() -> None:
    network = StubNetwork()
    assert restore_faces(network, [], fidelity=0.5) == ()
    assert network.calls == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_face_that_is_not_finite_fails_alone(value: float) -> None:
    def paint(x: Tensor) -> Tensor:
        y = x.clone()
        y[1, 2, 3, 4] = value
        return y

    faces = crops(3)
    first, second, third = restore_faces(StubNetwork(paint), faces, fidelity=0.5)
    assert isinstance(second, FailedFace)
    assert second.face is faces[1].face
    assert "finite" in second.reason
    assert isinstance(first, RestoredFace)
    assert isinstance(third, RestoredFace)
    assert np.array_equal(third.crop, faces[2].crop)


@pytest.mark.parametrize("level", [0.0, -3.0])
def test_a_flat_face_fails(level: float) -> None:
    network = StubNetwork(lambda x: torch.full_like(x, level))
    (result,) = restore_faces(network, crops(1), fidelity=0.5)
    assert isinstance(result, FailedFace)
    assert "flat" in result.reason


# Reduced precision


def spoil(
    index: int, how: Callable[[Tensor], Tensor], times: int = 1
) -> Callable[[Tensor], Tensor]:
    """A painting that spoils one face in each of its first `times` calls."""
    left = [times]

    def paint(x: Tensor) -> Tensor:
        y = x.clone()
        if left[0]:
            left[0] -= 1
            bad = index if len(x) > 1 else 0
            y[bad] = how(y[bad])
        return y

    return paint


SPOILS = [
    lambda face: face.where(face != face[0, 3, 4], torch.nan),
    lambda face: face.where(face != face[0, 3, 4], -torch.inf),
    lambda face: torch.full_like(face, 0.25),
]


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("how", SPOILS, ids=["nan", "inf", "flat"])
def test_a_face_that_reduced_precision_spoils_is_redone_alone(
    how: Callable[[Tensor], Tensor], precision: Precision
) -> None:
    faces, network = crops(3), StubNetwork(spoil(1, how))
    results = restore_faces(network, faces, fidelity=0.5, execution=Execution(precision=precision))
    assert [len(x) for x, _, _ in network.calls] == [3, 1]
    redone = network.calls[1][0]
    assert torch.equal(redone, network.calls[0][0][1:2])
    for face, result in zip(faces, results, strict=True):
        assert isinstance(result, RestoredFace)
        assert np.array_equal(result.crop, face.crop)


@pytest.mark.parametrize("how", SPOILS, ids=["nan", "inf", "flat"])
def test_a_face_is_redone_once_and_then_left_alone(how: Callable[[Tensor], Tensor]) -> None:
    faces, network = crops(3), StubNetwork(spoil(2, how, times=9))
    results = restore_faces(
        network, faces, fidelity=0.5, execution=Execution(precision=Precision.FP16)
    )
    assert [len(x) for x, _, _ in network.calls] == [3, 1]
    assert [type(result) for result in results] == [RestoredFace, RestoredFace, FailedFace]


@pytest.mark.parametrize("how", SPOILS, ids=["nan", "inf", "flat"])
def test_float32_is_not_redone(how: Callable[[Tensor], Tensor]) -> None:
    network = StubNetwork(spoil(0, how))
    results = restore_faces(network, crops(2), fidelity=0.5)
    assert [len(x) for x, _, _ in network.calls] == [2]
    assert [type(result) for result in results] == [FailedFace, RestoredFace]


def test_only_the_painting_is_reduced_and_the_redoing_is_not() -> None:
    kinds: list[tuple[str, torch.dtype]] = []

    def kind(where: str) -> None:
        kinds.append((where, (torch.ones(2, 2) @ torch.ones(2, 2)).dtype))

    class Spy(StubNetwork):
        def choose_features(
            self, latent: Tensor, skips: dict[int, Tensor], match_statistics: bool
        ) -> Features:
            kind("features")
            return super().choose_features(latent, skips, match_statistics)

        def decode(self, features: Tensor, skips: dict[int, Tensor], w: float) -> Tensor:
            kind("painting")
            return super().decode(features, skips, w)

    network = Spy(spoil(0, SPOILS[0]))
    restore_faces(network, crops(2), fidelity=0.5, execution=Execution(precision=Precision.BF16))
    assert kinds == [
        ("features", torch.float32),
        ("painting", torch.bfloat16),
        ("painting", torch.float32),
    ]


@pytest.mark.parametrize("w", [0.0, 1.0])
def test_a_real_network_overflows_in_half_precision_and_is_redone(w: float) -> None:
    """Shortcuts of 1e6 exceed float16; the following normalisations bring them back."""
    network = small_network()
    with torch.no_grad():
        network.generator.blocks[0].weight.mul_(1e6)
    faces = crops(2)
    in_full, in_half, in_bf16 = (
        restore_faces(
            network, faces, fidelity=w, execution=Execution(precision=precision), batch_size=1
        )
        for precision in (Precision.FP32, Precision.FP16, Precision.BF16)
    )
    with inference(), reduced(torch.device("cpu"), Precision.FP16):
        assert not network(to_tensor(np.stack([face.crop for face in faces])), w).isfinite().all()
    for full, half, bf16 in zip(in_full, in_half, in_bf16, strict=True):
        assert isinstance(full, RestoredFace)
        assert isinstance(half, RestoredFace)
        assert isinstance(bf16, RestoredFace)
        assert np.array_equal(half.crop, full.crop)
        assert not np.array_equal(bf16.crop, full.crop)


def validation_faces(shared: Path, count: int, size: int) -> list[AlignedFace]:
    paths = sorted((shared / "faces/valid-512").glob("*.jpg"))[:count]
    photos = [read_photo(path).pixels for path in paths]
    return [align_face(pixels, face_at(0, 0, 512), size) for pixels in photos]


def compare_with_float32(faces: list[AlignedFace], device: str, precision: Precision) -> None:
    """Shipped weights: limits on the difference in levels, from NOTES.md with some tolerance."""
    network = load_codeformer(shipped(), device)
    for w in (0, 0.5, 1):
        pair = [
            restore_faces(
                network, faces, fidelity=w, execution=Execution(torch.device(device), kind)
            )
            for kind in (Precision.FP32, precision)
        ]
        for full, less in zip(*pair, strict=True):
            assert isinstance(full, RestoredFace)
            assert isinstance(less, RestoredFace)
            difference = np.abs(full.crop.astype(int) - less.crop)
            assert difference.any()
            assert difference.max() <= (36 if precision is Precision.BF16 else 24)
            assert difference.mean() < (3 if precision is Precision.BF16 else 0.8)


@pytest.mark.parametrize("precision", REDUCED)
def test_reduced_precision_on_the_cpu_stays_near_float32(
    shared: Path, precision: Precision
) -> None:
    compare_with_float32(validation_faces(shared, 3, 256), "cpu", precision)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", REDUCED)
def test_reduced_precision_on_a_card_stays_near_float32(shared: Path, precision: Precision) -> None:
    compare_with_float32(validation_faces(shared, 20, 256), "cuda", precision)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_card_gives_what_the_cpu_gives(shared: Path) -> None:
    faces = validation_faces(shared, 20, 256)
    on_cpu, on_card = (
        restore_faces(
            load_codeformer(shipped(), device),
            faces,
            fidelity=0.5,
            execution=Execution(torch.device(device)),
        )
        for device in ("cpu", "cuda")
    )
    near = 0
    for one, two in zip(on_cpu, on_card, strict=True):
        assert isinstance(one, RestoredFace)
        assert isinstance(two, RestoredFace)
        near += int(np.abs(one.crop.astype(int) - two.crop).max()) <= 1
    assert near >= 18  # of 20: if two codes are equally likely, either may be taken


# Copies and compiling


def test_bytes_go_up_and_come_back_once_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    up: list[tuple[int, ...]] = []
    down: list[tuple[int, ...]] = []

    def upload(crops: list[NDArray[np.uint8]], device: torch.device) -> Tensor:
        tensor = device_upload(crops, device)
        assert tensor.dtype == torch.uint8
        up.append(tuple(tensor.shape))
        return tensor

    def download(values: Tensor) -> NDArray[np.uint8]:
        assert values.dtype == torch.uint8
        down.append(tuple(values.shape))
        return device_download(values)

    device_upload, device_download = restore.upload, restore.download
    monkeypatch.setattr(restore, "upload", upload)
    monkeypatch.setattr(restore, "download", download)
    restore_faces(StubNetwork(), crops(5), fidelity=0.5, batch_size=2)
    assert up == [(2, 32, 32, 3), (2, 32, 32, 3), (1, 32, 32, 3)]
    assert down == [(2, 32 * 32 * 3 + 1), (2, 32 * 32 * 3 + 1), (1, 32 * 32 * 3 + 1)]


def test_a_result_does_not_hold_its_batch() -> None:
    for result in restore_faces(StubNetwork(), crops(3), fidelity=0.5):
        assert isinstance(result, RestoredFace)
        assert result.crop.base is None or result.crop.base.size == result.crop.size


@pytest.mark.parametrize(("precision", "mean"), [(Precision.FP32, 0), (Precision.BF16, 1)])
def test_what_is_compiled_is_taken_and_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, mean: float
) -> None:
    """Except for rounding in other places, which affects bf16 anyway: 1.4 with this network."""
    graphs: list[tuple[int, ...]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        def call(*values: Tensor) -> object:
            graphs.append(max((tuple(v.shape) for v in values if v.ndim == 4), key=len))
            return graph(*values)

        return call

    def compiled(verb: Callable[..., object]) -> Callable[..., object]:
        return torch.compile(verb, backend=backend, fullgraph=True)

    monkeypatch.setattr(restore, "compiled", compiled)
    torch._dynamo.reset()
    network, faces = small_network(), crops(4)
    for w in (0.5, 0.0):
        graphs.clear()
        plain, fused = (
            restore_faces(
                network,
                faces,
                fidelity=w,
                batch_size=2,
                execution=Execution(precision=precision, compile=compile),
            )
            for compile in (False, True)
        )
        assert len(graphs) == 3 * 2  # three verbs of two batches, each a single graph
        for one, two in zip(plain, fused, strict=True):
            assert isinstance(one, RestoredFace)
            assert isinstance(two, RestoredFace)
            assert np.abs(one.crop.astype(int) - two.crop).mean() <= mean


@pytest.fixture
def stub_compiler(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the compiler, and remembers which verbs were called after it."""
    called: list[str] = []

    def compiled(verb: Callable[..., object]) -> Callable[..., object]:
        def call(*values: object) -> object:
            called.append(verb.__name__)
            return verb(*values)

        return call

    monkeypatch.setattr(restore, "compiled", compiled)
    return called


def test_compiled_batches_are_filled_up(stub_compiler: list[str]) -> None:
    faces, network = crops(5), StubNetwork()
    results = restore_faces(
        network, faces, fidelity=0.5, batch_size=3, execution=Execution(compile=True)
    )
    assert [len(x) for x, _, _ in network.calls] == [3, 3]
    assert stub_compiler == ["encode", "choose_features", "decode"] * 2
    for face, result in zip(faces, results, strict=True):
        assert isinstance(result, RestoredFace)
        assert np.array_equal(result.crop, face.crop)


def test_one_face_is_redone_without_compiling(stub_compiler: list[str]) -> None:
    network = StubNetwork(spoil(1, SPOILS[0]))
    results = restore_faces(
        network,
        crops(2),
        fidelity=0.5,
        batch_size=2,
        execution=Execution(precision=Precision.BF16, compile=True),
    )
    assert [len(x) for x, _, _ in network.calls] == [2, 1]
    assert stub_compiler == ["encode", "choose_features", "decode"]
    assert all(isinstance(result, RestoredFace) for result in results)


def test_batches_that_are_filled_up_are_halved_where_memory_lacks(
    stub_compiler: list[str],
) -> None:
    def paint(x: Tensor) -> Tensor:
        if len(x) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return x

    network = StubNetwork(paint)
    results = restore_faces(
        network, crops(1), fidelity=0.5, batch_size=8, execution=Execution(compile=True)
    )
    assert [len(x) for x, _, _ in network.calls] == [8, 4, 2]
    assert [type(result) for result in results] == [RestoredFace]

    def refuse(x: Tensor) -> Tensor:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(MemoryError):
        restore_faces(
            StubNetwork(refuse),
            crops(1),
            fidelity=0.5,
            batch_size=2,
            execution=Execution(compile=True),
        )


def test_codes_in_half_precision_are_the_encoder_s() -> None:
    network = small_network()
    seen: dict[str, set[torch.dtype]] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.setdefault(name, set()).add(output.dtype)

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(watch(name.split(".")[0]))
    execution = Execution(code_precision=Precision.FP16)
    (result,) = restore_faces(network, crops(1), fidelity=0.5, execution=execution)
    assert isinstance(result, RestoredFace)
    assert seen.pop("encoder") == {torch.float16}
    assert {"feat_emb", "idx_pred_layer", "generator", "fuse_convs_dict"} <= seen.keys()
    assert set().union(*seen.values()) == {torch.float32}


@pytest.mark.parametrize("precision", [Precision.FP32, *REDUCED])
def test_a_face_that_overflows_in_the_encoder_is_encoded_again(precision: Precision) -> None:
    """Its picture is that of float32, and the other face is painted as if it were alone."""
    network = small_network()
    with torch.no_grad():
        network.encoder.blocks[0].weight.mul_(1e5)
    calm = aligned(np.full((32, 32, 3), 127, np.uint8) + picture(32, 32, seed=3) // 128)
    (rough,) = crops(1)

    def painted(*faces: AlignedFace, codes: Precision = Precision.FP16) -> list[NDArray[np.uint8]]:
        execution = Execution(precision=precision, code_precision=codes)
        results = restore_faces(network, faces, fidelity=1, execution=execution)
        assert all(isinstance(result, RestoredFace) for result in results)
        return [result.crop for result in results]  # type: ignore[union-attr]

    with inference(), reduced(torch.device("cpu"), Precision.FP16):
        latent, _ = network.encode(to_tensor(np.stack([calm.crop, rough.crop])))
    assert latent.isfinite().flatten(1).all(1).tolist() == [True, False]
    first, second = painted(calm, rough)
    (alone,) = painted(calm)
    (full,) = painted(rough, codes=Precision.FP32)
    for found, wanted in ((first, alone), (second, full)):
        difference = np.abs(found.astype(int) - wanted)
        assert difference.mean() < 0.5 if precision is Precision.BF16 else difference.max() <= 1


@pytest.mark.parametrize("codes", [Precision.FP32, Precision.TF32])
def test_codes_have_a_precision_of_their_own(
    monkeypatch: pytest.MonkeyPatch, codes: Precision
) -> None:
    asked: list[Precision] = []

    def spy(device: torch.device, precision: Precision) -> object:
        asked.append(precision)
        return reduced(device, precision)

    monkeypatch.setattr(restore, "reduced", spy)
    restore_faces(
        StubNetwork(),
        crops(1),
        fidelity=0.5,
        execution=Execution(precision=Precision.BF16, code_precision=codes),
    )
    assert asked == [codes, codes, Precision.BF16]


# Fidelity, on every device


@pytest.mark.parametrize("name", available_devices())
@pytest.mark.parametrize("make", [small_network, lambda: load_codeformer(shipped())])
def test_w_changes_pixels_and_w0_never_reads_the_fusion(
    name: str, make: Callable[[], CodeFormer]
) -> None:
    device = choose_device(name)
    network = make().to(device)
    size = network.config.image_size
    faces = [aligned(picture(size, size, seed=seed)) for seed in range(2)]

    def restored(w: float) -> list[RestoredFace | FailedFace]:
        return list(restore_faces(network, faces, fidelity=w, execution=Execution(device)))

    before = {w: restored(w) for w in (0, 0.5, 1)}
    for low, high in ((0, 0.5), (0.5, 1)):
        for one, two in zip(before[low], before[high], strict=True):
            assert isinstance(one, RestoredFace)
            assert isinstance(two, RestoredFace)
            assert np.abs(one.crop.astype(int) - two.crop).mean() > 0.1
    with torch.no_grad():
        for parameter in network.fuse_convs_dict.parameters():
            parameter.fill_(torch.nan)
    for one, two in zip(before[0], restored(0), strict=True):
        assert isinstance(one, RestoredFace)
        assert isinstance(two, RestoredFace)
        assert np.array_equal(one.crop, two.crop)
    assert all(isinstance(face, FailedFace) for face in restored(0.01))


def test_gray_faces_stay_gray_and_as_bright() -> None:
    original = np.repeat(picture(32, 32)[..., :1], 3, axis=2)
    network = StubNetwork(lambda x: x * torch.tensor([0.2, -0.5, 0.9]).view(3, 1, 1) + 0.3)
    (result,) = restore_faces(network, [aligned(original)], fidelity=0.5, gray=True)
    assert isinstance(result, RestoredFace)
    assert result.crop.dtype == np.uint8
    assert np.ptp(result.crop, axis=2).max() == 0
    assert result.crop.mean() == pytest.approx(original.mean(), abs=0.5)
    assert result.crop.std() == pytest.approx(original.std(), abs=0.5)


def test_a_gray_face_that_leaves_the_range_is_clipped_not_wrapped() -> None:
    # Nearly all of the crop is black or white, the painting has one peak: matching overshoots.
    original = np.zeros((32, 32, 3), np.uint8)
    original[:16] = 255

    def paint(x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[..., :3, :3], y[..., -3:, -3:] = 1, -1
        return y

    (result,) = restore_faces(StubNetwork(paint), [aligned(original)], fidelity=0.5, gray=True)
    assert isinstance(result, RestoredFace)
    assert (result.crop[:3, :3] == 255).all()
    assert (result.crop[-3:, -3:] == 0).all()


def test_a_tint_of_the_whole_picture_is_kept() -> None:
    original = np.repeat(picture(32, 32)[..., :1], 3, axis=2).clip(0, 200) + np.uint8([40, 20, 0])
    (result,) = restore_faces(StubNetwork(), [aligned(original)], fidelity=0.5, gray=True)
    assert isinstance(result, RestoredFace)
    tint = result.crop.astype(float).mean((0, 1)) - original.astype(float).mean((0, 1))
    assert np.abs(tint).max() < 0.6


@pytest.mark.parametrize(("side", "softened"), [(20, False), (32, False), (64, True), (400, True)])
def test_a_face_larger_than_the_networks_is_known_to_be_softened(side: int, softened: bool) -> None:
    face = align_face(picture(420, 420), face_at(4, 4, side), 32)
    (restored,) = restore_faces(StubNetwork(), [face], fidelity=0.5)
    assert isinstance(restored, RestoredFace)
    assert restored.softened is softened
