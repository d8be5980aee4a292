"""The CUDA kernels against torch's group norm: on a GPU, else in Triton's interpreter."""

import copy
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from cfrestore.device import inference
from cfrestore.models.vqgan import ResidualBlock

SHAPES = [(2, 32, 8, 24, 32), (3, 64, 40, 36, 32), (1, 24, 5, 7, 8), (2, 16, 70, 66, 4)]
"""B, C, H, W, G; among them channels and groups that are no powers of two, and more rows than one
program holds."""

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


def drawn(generator: torch.Generator, device: str, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator).to(device)


def compare(device: str, silu: bool, kind: torch.dtype) -> None:
    """Compares values and all gradients, in units of the largest."""
    from cfrestore.models.fused import group_norm

    for batch, channels, height, width, groups in SHAPES:
        generator = torch.Generator().manual_seed(batch)
        draw = partial(drawn, generator, device)
        x = (draw(batch, channels, height, width) * 2 + 1).to(kind)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        weight, bias = (draw(channels).requires_grad_() for _ in range(2))
        seen = draw(batch, channels, height, width).to(kind)
        y = group_norm(x, groups, weight, bias, 1e-6, silu=silu)
        assert y.dtype == kind
        assert y.is_contiguous(memory_format=torch.channels_last)
        found = (y, *torch.autograd.grad(y, (x, weight, bias), seen))
        exact = [v.detach().double().requires_grad_() for v in (x, weight, bias)]
        z = F.group_norm(exact[0], groups, exact[1], exact[2], 1e-6)
        z = F.silu(z) if silu else z
        expected = (z, *torch.autograd.grad(z, exact, seen.double()))
        bound = 2e-5 if kind == torch.float32 else 1e-2
        for one, other in zip(found, expected, strict=True):
            assert (one - other).abs().max() < bound * other.abs().max()


def compare_blocks(device: str, backend: str, kind: torch.dtype) -> None:
    """Compares residual blocks with plain ones, eager and compiled, in units of the largest."""
    torch._dynamo.reset()
    for channels in ((16, 16), (16, 24)):
        torch.manual_seed(0)
        plain = ResidualBlock(*channels, 8).requires_grad_(False)
        for parameter in plain.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        x = torch.randn(2, channels[0], 40, 24).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            expected = plain(x)
        block = copy.deepcopy(plain).to(device, memory_format=torch.channels_last)
        if device == "cpu":  # in the interpreter
            for norm in (block.norm1, block.norm2):
                norm.is_fused = lambda _: True
        on_device = x.to(device)
        compiled = torch.compile(block.forward, fullgraph=True, backend=backend)
        with inference(), torch.autocast(device, kind, enabled=kind != torch.float32):
            compiled(on_device)
            with profile(activities=[ProfilerActivity.CPU]) as watched:
                both = block(on_device), compiled(on_device)
        assert sum(event.name == "cfrestore::group_norm" for event in watched.events()) == 2
        for found in both:
            assert found.dtype == kind
            assert found.is_contiguous(memory_format=torch.channels_last)
            error = (found.cpu() - expected).abs().max() / expected.abs().max()
            assert error < (1e-5 if kind == torch.float32 else 2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_on_a_card(silu: bool, kind: torch.dtype) -> None:
    compare("cuda", silu, kind)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_blocks_on_a_card(kind: torch.dtype) -> None:
    compare_blocks("cuda", "inductor", kind)


@pytest.mark.slow
@pytest.mark.parametrize("silu", [False, True])
def test_values_and_gradients_in_the_interpreter(silu: bool) -> None:
    """In a separate process: Triton reads the variable when it is imported."""
    interpret(f"compare('cpu', {silu}, torch.float32)")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_blocks_in_the_interpreter(kind: torch.dtype) -> None:
    interpret(f"compare_blocks('cpu', 'aot_eager', {kind})")


def interpret(call: str) -> None:
    code = f"import torch, test_fused; test_fused.{call}"
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])  # noqa: PTH120
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
