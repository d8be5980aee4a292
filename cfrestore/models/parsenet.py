"""ParseNet: classifies each pixel of a face crop into 19 classes.

Attribute names are the published checkpoint's keys. The second output, a picture of the face, is
not computed, because nothing uses it.

Shapes: B batch, S image side.
Source: network and weights of facexlib (MIT), from PSFRGAN (Chen et al., CVPR 2021).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from cfrestore.models.enlarge import enlarge

CLASSES = 19
WIDTHS = (64, 128, 256, 256, 256)
"""Channels from full resolution down to a sixteenth of it."""
BODY_BLOCKS = 10

Mode = Literal["same", "down", "up"]


class _Norm(nn.Module):
    """Batch normalisation, nested one level deeper to match the checkpoint's keys."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class ConvUnit(nn.Module):
    """A 3x3 convolution with reflection padding, which may halve or double the side."""

    def __init__(
        self, in_channels: int, out_channels: int, mode: Mode = "same", *, normalised: bool = False
    ) -> None:
        super().__init__()
        stride = 2 if mode == "down" else 1
        self.conv2d = nn.Conv2d(in_channels, out_channels, 3, stride, bias=not normalised)
        self.norm = _Norm(out_channels) if normalised else None
        self._doubles = mode == "up"

    def forward(self, x: Tensor) -> Tensor:
        if self._doubles:
            x = enlarge(x, self.conv2d.weight, self.conv2d.bias, border="edge")
        else:
            x = self.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"))
        return x if self.norm is None else self.norm(x)


class ParsingBlock(nn.Module):
    """Two convolution units and a shortcut, which is the identity or another unit.

    In mode up the first unit doubles the side, in mode down the second one halves it.
    """

    def __init__(self, in_channels: int, out_channels: int, mode: Mode = "same") -> None:
        super().__init__()
        plain = mode == "same" and in_channels == out_channels
        self.shortcut_func = None if plain else ConvUnit(in_channels, out_channels, mode)
        first: Mode = "up" if mode == "up" else "same"
        second: Mode = "down" if mode == "down" else "same"
        self.conv1 = ConvUnit(in_channels, out_channels, first, normalised=True)
        self.conv2 = ConvUnit(out_channels, out_channels, second, normalised=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.leaky_relu(self.conv1(x), 0.2, inplace=True))
        y += x if self.shortcut_func is None else self.shortcut_func(x)
        return y


class ParseNet(nn.Module):
    """Classifies the pixels of faces."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(pairwise(WIDTHS))
        self.encoder = nn.Sequential(
            ConvUnit(3, WIDTHS[0]), *(ParsingBlock(a, b, "down") for a, b in pairs)
        )
        self.body = nn.Sequential(
            *(ParsingBlock(WIDTHS[-1], WIDTHS[-1]) for _ in range(BODY_BLOCKS))
        )
        self.decoder = nn.Sequential(*(ParsingBlock(b, a, "up") for a, b in reversed(pairs)))
        self.out_img_conv = ConvUnit(WIDTHS[0], 3)
        self.out_mask_conv = ConvUnit(WIDTHS[0], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B,3,S,S), RGB in [-1, 1], S a multiple of 16, to logits (B,19,S,S)."""
        features = self.encoder(x)
        return self.out_mask_conv(self.decoder(features + self.body(features)))
