"""The CUDA kernels against torch's group norm: on a GPU, else in Triton's interpreter."""

import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_on_a_card(silu: bool, kind: torch.dtype) -> None:
    compare("cuda", silu, kind)


@pytest.mark.slow
@pytest.mark.parametrize("silu", [False, True])
def test_values_and_gradients_in_the_interpreter(silu: bool) -> None:
    """In a separate process: Triton reads the variable when it is imported."""
    code = f"import torch, test_fused; test_fused.compare('cpu', {silu}, torch.float32)"
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])  # noqa: PTH120
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
