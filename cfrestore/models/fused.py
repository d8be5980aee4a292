"""Group normalisation followed by SiLU, as CUDA kernels for maps in channels-last order.

torch's own kernel converts such maps to channels-first order and back, in float32, and applies SiLU
in another pass: it moves 46 bytes per 16-bit number. These kernels move 6 bytes, and 10 for the
gradient. Outside training, they can also add the bias of the convolution before a normalisation or
before a sum, for which torch needs a pass of its own.
Written in Triton, which comes with torch for CUDA on Linux; imported only where it is used.

In each image and group, with mean and std over the n numbers of the group's channels:

    y = u sigmoid(u),  u = x scale + shift,  scale = weight / std,  shift = bias - mean scale

and with v = dL/du, and A and B the group's sums of weight v and weight v (x - mean) / std:

    dL/dx = v scale - (A + B (x - mean) / std) / (n std)

Shapes: B images, R = H*W rows of C channels each, G groups of K = C/G channels.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Numbers held by a program instance at a time."""

PROGRAMS = 1024
"""Program instances that share the sums over all rows; enough to occupy a whole card."""


@triton.jit
def _tile(b, first, rows, C: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr):
    """Memory offsets of the values in some rows of an image, and which exist: (HEIGHT, WIDTH)."""
    channel = tl.arange(0, WIDTH)
    row = first + tl.arange(0, HEIGHT)
    place = (b * rows + row).to(tl.int64)[:, None] * C + channel[None, :]
    return place, (row < rows)[:, None] & (channel < C)[None, :]


@triton.jit
def _channels(pointer, b, C: tl.constexpr, WIDTH: tl.constexpr):
    """Loads the coefficients of one image, from those of all (B,C), as (1, WIDTH)."""
    channel = tl.arange(0, WIDTH)
    return tl.load(pointer + b * C + channel, mask=channel < C, other=0.0)[None, :]


@triton.jit
def _sums(
    x, dy, scale, shift, partial, rows, each,
    C: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    GRADIENT: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Partial sums (B,parts,2,C) over rows: of x and x^2 or, with GRADIENT, of v and v x."""
    b, part = tl.program_id(0), tl.program_id(1)
    one = tl.zeros([WIDTH], tl.float32)
    two = tl.zeros([WIDTH], tl.float32)
    for start in range(0, each, HEIGHT):
        place, exists = _tile(b, part * each + start, rows, C, WIDTH, HEIGHT)
        value = tl.load(x + place, mask=exists, other=0.0).to(tl.float32)
        first = value
        if GRADIENT:
            first = tl.load(dy + place, mask=exists, other=0.0).to(tl.float32)
            if SILU:
                u = value * _channels(scale, b, C, WIDTH) + _channels(shift, b, C, WIDTH)
                s = tl.sigmoid(u)
                first = first * s * (1 + u * (1 - s))
        one += tl.sum(first, 0)
        two += tl.sum(first * value, 0)
    channel = tl.arange(0, WIDTH)
    to = partial + (b * tl.num_programs(1) + part) * 2 * C + channel
    tl.store(to, one, mask=channel < C)
    tl.store(to + C, two, mask=channel < C)


@triton.jit
def _added(partial, b, g, parts, C: tl.constexpr, K: tl.constexpr, KS: tl.constexpr):
    """Both sums (KS,) over all parts for a group's channels; their indices, and which exist."""
    STEP: tl.constexpr = 32
    within = tl.arange(0, KS)
    channel = g * K + within
    one = tl.zeros([KS], tl.float32)
    two = tl.zeros([KS], tl.float32)
    for start in range(0, parts, STEP):
        part = start + tl.arange(0, STEP)
        place = (b * parts + part)[:, None] * 2 * C + channel[None, :]
        exists = (part < parts)[:, None] & (within < K)[None, :]
        one += tl.sum(tl.load(partial + place, mask=exists, other=0.0), 0)
        two += tl.sum(tl.load(partial + place + C, mask=exists, other=0.0), 0)
    return one, two, channel, within < K


@triton.jit
def _coefficients(
    partial, weight, bias, offset, scale, shift, mean, rstd, parts, n, eps,
    C: tl.constexpr, G: tl.constexpr, K: tl.constexpr, KS: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """For each group: scale and shift (B,C) of its channels, mean and 1/std (B,G).

    With OFFSET they are those of x + offset (C,), computed from the sums of x.
    """
    b, g = tl.program_id(0), tl.program_id(1)
    one, two, channel, exists = _added(partial, b, g, parts, C, K, KS)
    o = tl.zeros([KS], tl.float32)
    if OFFSET:
        o = tl.load(offset + channel, mask=exists, other=0.0).to(tl.float32)
        rows = n / K
        two += o * (2 * one + rows * o)
        one += rows * o
    m = tl.sum(one, 0) / n
    r = 1 / tl.sqrt(tl.maximum(tl.sum(two, 0) / n - m * m, 0.0) + eps)
    a = tl.load(weight + channel, mask=exists, other=0.0) * r
    c = tl.load(bias + channel, mask=exists, other=0.0) + (o - m) * a
    tl.store(scale + b * C + channel, a, mask=exists)
    tl.store(shift + b * C + channel, c, mask=exists)
    tl.store(mean + b * G + g, m)
    tl.store(rstd + b * G + g, r)


@triton.jit
def _apply(
    x, y, scale, shift, rows,
    C: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1)
    place, exists = _tile(b, tl.program_id(0) * HEIGHT, rows, C, WIDTH, HEIGHT)
    u = tl.load(x + place, mask=exists, other=0.0).to(tl.float32)
    u = u * _channels(scale, b, C, WIDTH) + _channels(shift, b, C, WIDTH)
    if SILU:
        u = u * tl.sigmoid(u)
    tl.store(y + place, u.to(y.dtype.element_ty), mask=exists)


@triton.jit
def _add(x, other, offset, rows, C: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr):
    """x += other + offset (C,)."""
    place, exists = _tile(tl.program_id(1), tl.program_id(0) * HEIGHT, rows, C, WIDTH, HEIGHT)
    value = tl.load(x + place, mask=exists, other=0.0).to(tl.float32)
    value += tl.load(other + place, mask=exists, other=0.0).to(tl.float32)
    value += _channels(offset, 0, C, WIDTH).to(tl.float32)
    tl.store(x + place, value.to(x.dtype.element_ty), mask=exists)


@triton.jit
def _gradient_coefficients(
    partial, weight, mean, rstd, slope, offset, to_weight, to_bias, parts, n,
    C: tl.constexpr, G: tl.constexpr, K: tl.constexpr, KS: tl.constexpr,
):  # fmt: skip
    """slope and offset (B,C) in dL/dx = v scale + x slope + offset; parameter gradients (B,C)."""
    b, g = tl.program_id(0), tl.program_id(1)
    one, two, channel, exists = _added(partial, b, g, parts, C, K, KS)
    m = tl.load(mean + b * G + g)
    r = tl.load(rstd + b * G + g)
    two = (two - m * one) * r
    w = tl.load(weight + channel, mask=exists, other=0.0)
    c = tl.sum(w * two, 0) * r * r / n
    nothing = tl.zeros([KS], tl.float32)
    tl.store(slope + b * C + channel, nothing - c, mask=exists)
    tl.store(offset + b * C + channel, nothing + m * c - tl.sum(w * one, 0) * r / n, mask=exists)
    tl.store(to_weight + b * C + channel, two, mask=exists)
    tl.store(to_bias + b * C + channel, one, mask=exists)


@triton.jit
def _apply_gradient(
    x, dy, dx, scale, shift, slope, offset, rows,
    C: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1)
    place, exists = _tile(b, tl.program_id(0) * HEIGHT, rows, C, WIDTH, HEIGHT)
    value = tl.load(x + place, mask=exists, other=0.0).to(tl.float32)
    v = tl.load(dy + place, mask=exists, other=0.0).to(tl.float32)
    a = _channels(scale, b, C, WIDTH)
    if SILU:
        u = value * a + _channels(shift, b, C, WIDTH)
        s = tl.sigmoid(u)
        v = v * s * (1 + u * (1 - s))
    v = v * a + value * _channels(slope, b, C, WIDTH) + _channels(offset, b, C, WIDTH)
    tl.store(dx + place, v.to(dx.dtype.element_ty), mask=exists)


class _Plan:
    """Divides the work on maps of one shape."""

    def __init__(self, x: Tensor, groups: int) -> None:
        batch, channels, height, width = x.shape
        self.rows, self.n = height * width, height * width * channels // groups
        tall = max(1, TILE // triton.next_power_of_2(channels))
        parts = min(triton.cdiv(self.rows, tall), max(1, PROGRAMS // batch))
        self.each = triton.cdiv(triton.cdiv(self.rows, parts), tall) * tall
        self.parts = triton.cdiv(self.rows, self.each)
        self.by_rows = {
            "C": channels,
            "WIDTH": triton.next_power_of_2(channels),
            "HEIGHT": tall,
        }
        each = channels // groups
        self.by_groups = {"C": channels, "G": groups, "K": each, "KS": triton.next_power_of_2(each)}
        self.over_parts, self.over_groups = (batch, self.parts), (batch, groups)
        self.over_rows = triton.cdiv(self.rows, tall), batch
        self.partial = x.new_empty(batch, self.parts, 2, channels, dtype=torch.float32)


def _normalised(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    silu: bool,
    offset: Tensor | None,
) -> tuple[Tensor, ...]:
    """The result; scale and shift (B,C); mean and 1/std (B,G)."""
    plan = _Plan(x, groups)
    batch, channels = x.shape[:2]
    scale, shift = x.new_empty(2, batch, channels, dtype=torch.float32)
    mean, rstd = x.new_empty(2, batch, groups, dtype=torch.float32)
    _sums[plan.over_parts](
        x, x, x, x, plan.partial, plan.rows, plan.each, **plan.by_rows, GRADIENT=False, SILU=False
    )
    _coefficients[plan.over_groups](
        plan.partial, weight, bias, bias if offset is None else offset, scale, shift, mean, rstd,
        plan.parts, plan.n, eps, **plan.by_groups, OFFSET=offset is not None,
    )  # fmt: skip
    y = torch.empty_like(x)
    _apply[plan.over_rows](x, y, scale, shift, plan.rows, **plan.by_rows, SILU=silu)
    return y, scale, shift, mean, rstd


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool
    ) -> Tensor:
        y, *statistics = _normalised(x, groups, weight, bias, eps, silu, None)
        ctx.save_for_backward(x, weight, *statistics)
        ctx.groups, ctx.silu = groups, silu
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, shift, mean, rstd = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        plan = _Plan(x, ctx.groups)
        slope, offset, to_weight, to_bias = scale.new_empty(4, *scale.shape)
        _sums[plan.over_parts](
            x, dy, scale, shift, plan.partial, plan.rows, plan.each, **plan.by_rows,
            GRADIENT=True, SILU=ctx.silu,
        )  # fmt: skip
        _gradient_coefficients[plan.over_groups](
            plan.partial, weight, mean, rstd, slope, offset, to_weight, to_bias, plan.parts, plan.n,
            **plan.by_groups,
        )  # fmt: skip
        dx = torch.empty_like(x)
        _apply_gradient[plan.over_rows](
            x, dy, dx, scale, shift, slope, offset, plan.rows, **plan.by_rows, SILU=ctx.silu
        )
        return dx, None, to_weight.sum(0), to_bias.sum(0), None, None


@torch.library.custom_op(
    "cfrestore::group_norm",
    mutates_args=(),
    schema="(Tensor x, int groups, Tensor weight, Tensor bias, float eps, bool silu, "
    "Tensor? offset) -> Tensor",
)
def _operator(x: Tensor, *others: Any) -> Tensor:
    """`group_norm` as one operator of compiled networks, into which torch.compile does not look."""
    return _normalised(x.contiguous(memory_format=torch.channels_last), *others)[0]


@_operator.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    silu: bool,
    offset: Tensor | None = None,
) -> Tensor:
    """Group normalisation, optionally followed by SiLU; differentiable once, unless compiled.

    Args:
        x: (B,C,H,W) in channels-last order, float32 or a 16-bit type, on a CUDA device.
        groups: G; must divide C.
        weight, bias: (C,) float32.
        offset: (C,), added to x first; only where no gradients are recorded.
    Returns:
        a tensor of the shape, memory order and type of x; computed in float32.
    """
    if torch.compiler.is_compiling():
        values = (x, groups, weight, bias, eps, silu, offset)
        return torch.ops.cfrestore.group_norm.default(*values)
    if torch.is_grad_enabled():
        assert offset is None
        return _GroupNorm.apply(x, groups, weight, bias, eps, silu)
    return _normalised(x, groups, weight, bias, eps, silu, offset)[0]


def add(x: Tensor, other: Tensor, offset: Tensor) -> Tensor:
    """x + other + offset, in the memory of x unless compiled; without gradients.

    Args:
        x: (B,C,H,W) in channels-last order, on a CUDA device.
        other: of the same shape and order.
        offset: (C,).
    Returns:
        a tensor of the shape, memory order and type of x; computed in float32.
    """
    if torch.compiler.is_compiling():
        return (x.float() + other + offset[:, None, None]).to(x.dtype)
    plan = _Plan(x, 1)
    other = other.contiguous(memory_format=torch.channels_last)
    _add[plan.over_rows](x, other, offset, plan.rows, **plan.by_rows)
    return x
