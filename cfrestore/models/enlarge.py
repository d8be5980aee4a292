"""Nearest-neighbour doubling and a 3x3 convolution, in one step."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def enlarge(
    x: Tensor, weight: Tensor, bias: Tensor | None, border: Literal["zeros", "edge"] = "zeros"
) -> Tensor:
    """Doubles the side by nearest neighbour, then convolves, with one pixel of padding.

    Both steps are one transposed convolution, which takes 4 instead of 9 products per pixel and
    channel and never stores the enlarged input.

    Args:
        x: (B,C,h,w).
        weight, bias: of the convolution, (D,C,3,3) and (D,).
        border: padding of the enlarged input. Repeating its edge is the same as reflecting it,
            because its two outermost pixels are equal.
    Returns:
        (B,D,2h,2w).
    """
    kernel, padding = enlarging_kernel(weight), 1
    if border == "edge":
        x, padding = F.pad(x, (1, 1, 1, 1), mode="replicate"), 3
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=padding)


def enlarging_kernel(weight: Tensor) -> Tensor:
    """The convolution's weight (D,C,3,3) as the transposed convolution's, (C,D,4,4)."""
    return _spread(_spread(weight, 2), 3).transpose(0, 1)


def _spread(weight: Tensor, axis: int) -> Tensor:
    """Converts, along one axis, three taps over doubled pixels to four over the original pixels.

    An even output pixel sees its neighbour through the first tap and its own pixel through the
    other two, an odd one its own pixel through the first two; a transposed convolution reverses
    this.
    """
    first, middle, last = weight.unbind(axis)
    return torch.stack((last, middle + last, first + middle, first), axis)
