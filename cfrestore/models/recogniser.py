"""A face recogniser: pictures of the same person get similar descriptors.

Source: the residual network of dlib's `dnn_face_recognition_ex` (King, 2017; its weights are in the
public domain), after He et al., "Deep Residual Learning" (2016). The normalisations are fixed, and
here merged into the convolutions before them.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 150
"""Side of the input in pixels."""

DEPTHS = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))
"""(channels, blocks) of each level; each level but the first begins by halving the side."""

LENGTH = 128
"""Length of a descriptor."""


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut.

    If the block halves the side, average pooling halves the shortcut. Where the two branches then
    differ, in side or in channels, the smaller one is padded with zeros.
    """

    def __init__(self, inner: int, outer: int, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        stride, padding = (2, 0) if halves else (1, 1)
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, padding)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,C,H,W) to (B,outer,H,W), or half the side, rounded down."""
        y = self.conv2(F.relu(self.conv1(x)))
        if self.halves:
            x = F.avg_pool2d(x, 2)
            y = F.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]))
            x = F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        return F.relu(x + y)


class Recogniser(nn.Module):
    """Maps faces to descriptors."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        inner = DEPTHS[0][0]
        self.stem = nn.Conv2d(3, inner, 7, stride=2)
        self.levels = nn.ModuleList()
        for level, (outer, count) in enumerate(DEPTHS):
            blocks = [Block(inner, outer, halves=level > 0)]
            blocks += [Block(outer, outer, halves=False) for _ in range(count - 1)]
            self.levels.append(nn.Sequential(*blocks))
            inner = outer
        self.head = nn.Linear(inner, LENGTH, bias=False)
        self.register_buffer("mean", torch.empty(3, 1, 1))

    def features(self, x: Tensor) -> list[Tensor]:
        """x (B,3,150,150) RGB in [-1, 1] to one map per level, from 35 px down to 2 px."""
        x = ((x + 1) * 127.5 - self.mean) / 256
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2)  # (B,32,35,35)
        return list(itertools.accumulate(self.levels, lambda x, level: level(x), initial=x))[1:]

    def descriptor(self, features: list[Tensor]) -> Tensor:
        """The descriptor (B,128) of a face's features.

        dlib considers two faces the same person if their Euclidean distance is below 0.6.
        """
        return self.head(features[-1].mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """x (B,3,150,150) RGB in [-1, 1] to descriptors (B,128)."""
        return self.descriptor(self.features(x))
