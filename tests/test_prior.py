"""Priors over code maps: causality, exact likelihood, sampling, and the sliding window."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from cfrestore.errors import ConfigError
from cfrestore.models.prior import (
    MaskedConv2d,
    PriorConfig,
    bits_per_code,
    build_prior,
    draw,
    sample_codes,
    window_start,
)

N, K = 6, 7
PIXELCNN = PriorConfig("pixelcnn", K, N, width=8, layers=5, kernel=3)
TRANSFORMER = PriorConfig("transformer", K, N, width=8, layers=2, heads=2)
BOTH = pytest.mark.parametrize("config", [PIXELCNN, TRANSFORMER], ids=lambda c: c.kind)


def prior(config: PriorConfig) -> nn.Module:
    torch.manual_seed(0)
    return build_prior(config).eval()


def maps(count: int = 1, height: int = N, width: int = N) -> Tensor:
    return torch.randint(K, (count, height, width), generator=torch.Generator().manual_seed(1))


@BOTH
def test_each_position_depends_on_all_earlier_codes_and_on_no_later_one(
    config: PriorConfig,
) -> None:
    net = prior(config).double()
    seen: list[Tensor] = []

    def remember(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    net.tokens.register_forward_hook(remember)
    logits = net(maps())
    for t in range(N * N):
        felt = torch.zeros(N * N, dtype=torch.bool)
        target = logits[0, t].square().sum()
        for gradient in torch.autograd.grad(target, seen, retain_graph=True, allow_unused=True):
            if gradient is not None:
                by_position = gradient[0].flatten(0, -2).abs().sum(-1)
                felt[: len(by_position)] |= by_position > 0
        assert felt.tolist() == [u < t for u in range(N * N)], t


def test_a_pixelcnn_that_could_not_see_the_whole_map_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not see all"):
        replace(PIXELCNN, layers=4)
    with pytest.raises(ConfigError, match="odd"):
        replace(PIXELCNN, kernel=4)
    with pytest.raises(ConfigError, match="heads"):
        replace(TRANSFORMER, heads=3)


@pytest.mark.parametrize("mask", ["A", "B"])
def test_masked_convolutions_are_those_of_the_textbook(mask: str) -> None:
    """W * M with the mask written out; the two stacks together are the raster order's mask."""
    k, c = 5, 2
    x = torch.randn(1, 3, 7, 6)
    for stack in ("vertical", "horizontal"):
        conv = MaskedConv2d(3, 4, k, stack, mask)  # type: ignore[arg-type]
        whole = torch.zeros(4, 3, k, k)
        own = c + (mask == "B")
        if stack == "vertical":
            whole[:, :, :own] = conv.weight.detach()
        else:
            whole[:, :, c : c + 1, :own] = conv.weight.detach()
        expected = nn.functional.conv2d(x, whole, conv.bias, padding=c)
        torch.testing.assert_close(conv(x), expected)


@BOTH
def test_likelihood_is_exact(config: PriorConfig) -> None:
    """Probabilities of all maps of 2x2 codes add up to one; the mean of their logs is the loss."""
    tiny = replace(config, codebook_size=3, side=2)
    net = prior(tiny)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 2, 2)
    with torch.no_grad():
        logits = net(every)
    chosen = logits.log_softmax(-1).gather(2, every.flatten(1)[..., None])[..., 0]
    assert chosen.sum(1).exp().sum().item() == pytest.approx(1, abs=1e-5)
    expected = -chosen.mean().item() / math.log(2)
    assert bits_per_code(logits, every.flatten(1)).item() == pytest.approx(expected, abs=1e-5)


@BOTH
def test_conditions_change_what_is_likely(config: PriorConfig) -> None:
    conditional = replace(config, symbols=3, prefix=1)
    net = prior(conditional)
    zero, two = (net(maps(), torch.tensor([[c]])) for c in (0, 2))
    assert (zero - two).abs().amax(-1).gt(1e-6).all()  # at every position, the first included
    with pytest.raises(ConfigError, match="one class"):
        replace(PIXELCNN, symbols=3, prefix=2)


@BOTH
def test_codes_are_drawn_one_after_the_other(config: PriorConfig) -> None:
    """Codes drawn step by step, with the memory, have the likelihood that one whole pass gives."""
    net = prior(config)
    codes = maps(2)
    whole, memory = net(codes), None
    for t in range(N * N):
        known = codes.clone()
        known.flatten(1)[:, t:] = 0
        logits, memory = net.predict(known, t, None, memory)
        torch.testing.assert_close(logits, whole[:, t], rtol=1e-4, atol=1e-5)
        if t % 7 == 0:  # also without the memory
            alone, _ = net.predict(known, t, None, None)
            torch.testing.assert_close(alone, whole[:, t], rtol=1e-4, atol=1e-5)


def brute_force(
    net: nn.Module, height: int, width: int, seed: int, condition: Tensor | None = None
) -> Tensor:
    """The sliding window as in the specification, with a whole pass for each code."""
    generator = torch.Generator().manual_seed(seed)
    n = N
    codes = torch.zeros(2, height, width, dtype=torch.long)

    def local(i: int, size: int) -> int:
        if i < n / 2:
            return i
        if size - i < n / 2:
            return n - (size - i)
        return n // 2

    for i in range(height):
        for j in range(width):
            i_, j_ = local(i, height), local(j, width)
            window = (slice(None), slice(i - i_, i - i_ + n), slice(j - j_, j - j_ + n))
            patch = codes[window].clone()
            assert patch.shape == (2, n, n)
            patch[:, i_ + 1 :] = 3  # not to be seen
            patch[:, i_, j_:] = 3
            own = None if condition is None else condition[window].flatten(1)
            logits = net(patch, own)[:, i_ * n + j_]
            codes[:, i, j] = draw(logits, generator)
    return codes


@BOTH
@pytest.mark.parametrize("size", [(N, N), (N, 11), (9, N), (10, 13)])
def test_larger_maps_slide_a_window_by_the_centring_rule(
    config: PriorConfig, size: tuple[int, int]
) -> None:
    net = prior(config)
    expected = brute_force(net, *size, seed=4)
    found = sample_codes(net, 2, size, torch.Generator().manual_seed(4))
    assert torch.equal(found, expected)


def test_conditions_are_cropped_to_the_window() -> None:
    net = prior(replace(TRANSFORMER, symbols=3, prefix=N * N))
    condition = maps(2, 8, 9) % 3
    expected = brute_force(net, 8, 9, 4, condition)
    generator = torch.Generator().manual_seed(4)
    assert torch.equal(sample_codes(net, 2, (8, 9), generator, condition=condition), expected)


@pytest.mark.parametrize("n", [5, 6, 16])
def test_windows_stay_within_the_map(n: int) -> None:
    for length in range(n, 3 * n):
        starts = [window_start(i, length, n) for i in range(length)]
        assert starts[0] == 0
        assert starts[-1] == length - n
        assert all(b - a in (0, 1) for a, b in pairwise(starts))
        assert all(0 <= i - start < n for i, start in enumerate(starts))


@BOTH
def test_a_map_smaller_than_the_trained_one_is_refused(config: PriorConfig) -> None:
    with pytest.raises(ConfigError, match="6x6"):
        sample_codes(prior(config), 1, (N, N - 1), torch.Generator())


def test_temperature_and_top_k() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(40_000, 4)

    def shares(**how: float | int) -> list[float]:
        codes = draw(logits, torch.Generator().manual_seed(0), **how)  # type: ignore[arg-type]
        return (codes.bincount(minlength=4) / len(codes)).tolist()

    for temperature in (0.5, 1.0, 2.0):
        expected = (logits[0] / temperature).softmax(-1).tolist()
        assert shares(temperature=temperature) == pytest.approx(expected, abs=0.01)
    expected = [*logits[0, :2].softmax(-1).tolist(), 0, 0]
    assert shares(top_k=2) == pytest.approx(expected, abs=0.01)
    assert shares(top_k=1) == [1, 0, 0, 0]


NO_HEADS = '{"kind": "transformer", "heads": 0}'


def test_configurations_survive_storing() -> None:
    assert PriorConfig.from_json(PIXELCNN.to_json()) == PIXELCNN
    for text in (
        "no json",
        '{"kind": "nonsense"}',
        '{"kind": "pixelcnn", "depth": 3}',
        "[1]",
        NO_HEADS,
    ):
        with pytest.raises(ConfigError):
            PriorConfig.from_json(text)
