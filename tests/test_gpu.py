"""What CUDA devices must do, beyond the tests for every device in other files."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from stubs import face_at, picture
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from cfrestore.align import AlignedFace
from cfrestore.device import (
    Execution,
    Precision,
    after_encoding,
    check_compiling,
    compiled,
    inference,
    reduced,
    settle,
)
from cfrestore.errors import ConfigError
from cfrestore.image import read_photo, to_tensor
from cfrestore.models.codeformer import CodeFormer, CodeFormerConfig
from cfrestore.models.rrdbnet import RRDBNet
from cfrestore.models.vqgan import GroupNorm
from cfrestore.restore import Painter, RestoredFace
from cfrestore.upsample import Upsampler
from cfrestore.weights import load_codeformer, shipped

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def faces(repository: Path, network: CodeFormer) -> list[AlignedFace]:
    """Forty different crops of one face, shifted, darkened, and made noisy."""
    side = network.config.image_size
    example = read_photo(repository / "examples/collins.jpg").pixels
    example = cv2.resize(example, (side, side), interpolation=cv2.INTER_AREA)
    random = np.random.default_rng(0)
    crops = []
    for index in range(40):
        shifted = np.roll(example, random.integers(-side // 14, side // 14 + 1, 2), (0, 1))
        noisy = shifted * random.uniform(0.6, 1) + random.normal(0, index / 4, shifted.shape)
        crops.append(noisy.clip(0, 255).astype(np.uint8))
    return [AlignedFace(crop, np.eye(2, 3), face_at(0, 0, side)) for crop in crops]


@pytest.fixture(scope="module")
def network() -> CodeFormer:
    """The shipped network; dark faces are not brightened, since undoing it magnifies rounding."""
    network = load_codeformer(shipped(), CUDA)
    network.config = replace(network.config, least_brightness=0.0)
    return network


LEVELS = {Precision.FP32: 2, Precision.TF32: 2, Precision.FP16: 3, Precision.BF16: 24}
"""By how many levels of 255 a pixel may differ between ways to compute in this precision."""


@pytest.fixture
def painter(network: CodeFormer) -> Iterator[Callable[..., Painter]]:
    """Makes painters of the shipped network on the GPU, by default with batches of 8."""
    torch._dynamo.reset()

    def make(batch_size: int = 8, **how: Any) -> Painter:
        return Painter(
            network,
            fidelity=0.5,
            match_statistics=False,
            batch_size=batch_size,
            execution=Execution(CUDA, **how),
        )

    yield make
    torch._dynamo.reset()


def levels(paint: Painter, faces: list[AlignedFace]) -> np.ndarray:
    """(N, S, S, 3) int64."""
    results = paint(faces)
    assert all(isinstance(result, RestoredFace) for result in results)
    return np.stack([result.crop for result in results]).astype(int)  # type: ignore[union-attr]


def codes_of(network: CodeFormer, faces: list[AlignedFace], precision: Precision) -> Tensor:
    """(N, T) on the CPU."""
    device = network.position_emb.device
    x = to_tensor(np.stack([face.crop for face in faces])).to(device)
    with inference():
        with reduced(device, precision):
            latent, _ = network.encode(x)
        with reduced(device, after_encoding(precision)):
            return network.predict_codes(latent.float()).argmax(-1).cpu()


def test_codes_in_float32_are_those_of_the_cpu(
    network: CodeFormer, faces: list[AlignedFace]
) -> None:
    on_card = codes_of(network, faces, Precision.FP32)
    on_cpu = codes_of(load_codeformer(shipped()), faces, Precision.FP32)
    assert (on_card == on_cpu).double().mean() >= 0.999  # two codes may be equally likely


@pytest.mark.parametrize("precision", [Precision.TF32, Precision.FP16])
def test_nearly_all_codes_are_those_in_float32(
    network: CodeFormer, faces: list[AlignedFace], precision: Precision
) -> None:
    full, less = (codes_of(network, faces, p) for p in (Precision.FP32, precision))
    assert (full == less).double().mean() > 0.99


def test_tf32_rounds_convolutions_and_products() -> None:
    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("this card has no TF32")
    generator = torch.Generator(CUDA).manual_seed(0)
    matrix = torch.randn(256, 256, device=CUDA, generator=generator)
    maps = torch.randn(1, 64, 32, 32, device=CUDA, generator=generator)
    kernel = torch.randn(64, 64, 3, 3, device=CUDA, generator=generator)

    def both() -> tuple[Tensor, Tensor]:
        return matrix @ matrix, torch.nn.functional.conv2d(maps, kernel)

    with inference():
        product, convolution = both()
        with reduced(CUDA, Precision.TF32):
            rounded = both()
        again = both()
    for exact, less, same in zip((product, convolution), rounded, again, strict=True):
        assert 1e-5 < (less - exact).norm() / exact.norm() < 1e-2
        assert torch.equal(exact, same)


@pytest.mark.parametrize("precision", list(Precision))
def test_each_batch_is_copied_once_each_way_and_pinned(
    painter: Callable[..., Painter], faces: list[AlignedFace], precision: Precision
) -> None:
    paint = painter(precision=precision, code_precision=Precision.TF32)
    paint(faces[:16])
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as watched:
        paint(faces[:16])
    copies = Counter(event.name for event in watched.events() if event.name.startswith("Memcpy"))
    across = {name: count for name, count in copies.items() if "DtoD" not in name}
    # Besides the pictures, one number per batch: whether any face needs a second look.
    assert across == {"Memcpy HtoD (Pinned -> Device)": 2, "Memcpy DtoH (Device -> Pinned)": 4}


@pytest.mark.parametrize("precision", list(Precision))
def test_faces_together_are_faces_alone(
    painter: Callable[..., Painter], faces: list[AlignedFace], precision: Precision
) -> None:
    together, alone = (
        levels(painter(precision=precision, batch_size=size), faces[:16]) for size in (16, 1)
    )
    worst = np.abs(together - alone).max((1, 2, 3))
    assert (worst <= LEVELS[precision]).sum() >= 15  # two codes may be equally likely


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "codes"),
    [
        (Precision.FP32, Precision.FP32),
        (Precision.BF16, Precision.FP32),
        (Precision.FP16, Precision.FP16),
    ],
)
def test_compiled_is_as_plain(
    painter: Callable[..., Painter],
    faces: list[AlignedFace],
    precision: Precision,
    codes: Precision,
) -> None:
    try:
        check_compiling(CUDA)
    except ConfigError as error:
        pytest.skip(str(error))
    how = {"precision": precision, "code_precision": codes}
    exact = levels(painter(), faces[:20])
    plain, fused = (
        np.abs(levels(painter(**how, compile=compile), faces[:20]) - exact)
        for compile in (False, True)
    )
    assert fused.mean() < 1.2 * plain.mean() + 0.02
    assert (fused.max((1, 2, 3)) <= LEVELS[precision]).sum() >= 18  # two codes may be as likely


@pytest.mark.slow
def test_the_published_shape_compiles_in_one_piece() -> None:
    try:
        check_compiling(CUDA)
    except ConfigError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    network = CodeFormer().eval()
    settle(network, CUDA)
    x = torch.rand(2, 3, 512, 512, device=CUDA).contiguous(memory_format=torch.channels_last)
    with inference():
        features, skips, *_ = network.predict_features(x * 2 - 1, True)
        with reduced(CUDA, Precision.BF16):
            plain = network.decode(features, skips, 0.5).float()
            fused = compiled(network.decode)(features, skips, 0.5).float()
    assert (plain - fused).norm() < 0.1 * plain.norm()


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_maps_stay_channels_last_on_a_card(precision: Precision) -> None:
    torch.manual_seed(0)
    network = CodeFormer(CodeFormerConfig.tiny()).eval()
    settle(network, CUDA)
    broken = []

    def check(module: torch.nn.Module, _: object, y: object) -> None:
        if isinstance(y, Tensor) and y.ndim == 4:
            last = y.is_contiguous(memory_format=torch.channels_last)
            broken.extend([] if last else [type(module).__name__])

    for module in network.modules():
        module.register_forward_hook(check)
    x = to_tensor(np.zeros((2, 128, 128, 3), np.uint8)).to(CUDA)
    with inference(), reduced(CUDA, precision):
        network(x, 0.5)
    assert broken == []


@pytest.mark.parametrize(
    ("kind", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)]
)
def test_normalisation_keeps_its_digits_on_a_card(kind: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    layer = GroupNorm(16, 4).to(CUDA)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = (torch.randn(2, 16, 512, 512, device=CUDA) * 2 + 1).to(kind)
    weight, bias = layer.weight.double(), layer.bias.double()
    exact = torch.nn.functional.group_norm(x.double(), 4, weight, bias, layer.eps)
    with inference():
        found = layer(x.contiguous(memory_format=torch.channels_last))
    assert found.dtype == kind
    assert (found - exact).abs().max() < bound * exact.abs().max()


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_pictures_are_enlarged_as_on_the_cpu(tmp_path: Path, precision: Precision) -> None:
    torch.manual_seed(0)
    torch.save(RRDBNet().state_dict(), tmp_path / "x2.pth")
    pixels = picture(300, 450)
    on_cpu = Upsampler(tmp_path / "x2.pth", tile=200)(pixels, 2).astype(int)
    found = Upsampler(tmp_path / "x2.pth", CUDA, 200, precision)(pixels, 2)
    assert np.ptp(on_cpu) > 10
    error = np.abs(found - on_cpu)
    assert error.mean() < 0.5
    assert precision is Precision.FP16 or error.max() <= 1
