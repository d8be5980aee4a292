"""MTCNN's three networks, each of which examines the previous one's candidates more closely.

Attribute names are the keys of the weights that come with facenet-pytorch. Pictures are RGB, scaled
to [-1, 1); scores are probabilities; offsets move a box's corners, as fractions of its sides.
Source: Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional
Networks" (2016); layers as in facenet-pytorch (MIT).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _pool(x: Tensor, size: int) -> Tensor:
    return F.max_pool2d(x, size, 2, ceil_mode=True)


def _pool_pairs(x: Tensor) -> Tensor:
    """As _pool(x, 2), but five times as fast on the CPU for few channels, channels last."""
    odd_rows, odd_columns = x.shape[2] % 2, x.shape[3] % 2
    if odd_rows or odd_columns:
        x = F.pad(x, (0, odd_columns, 0, odd_rows), value=-torch.inf)
    x = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
    return torch.maximum(x[..., ::2], x[..., 1::2])


def _flatten(x: Tensor) -> Tensor:
    """(B,C,H,W) to (B,W*H*C), the order in which the weights were trained."""
    return x.permute(0, 3, 2, 1).flatten(1)


class PNet(nn.Module):
    """Proposes boxes: one of 12 px at every second pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1 = nn.Conv2d(32, 2, 1)
        self.conv4_2 = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (1,3,H,W) to scores (h,w) and offsets (h,w,4)."""
        x = _pool_pairs(self.prelu1(self.conv1(x)))
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_1(x).softmax(1)[0, 1], self.conv4_2(x)[0].permute(1, 2, 0)


class RNet(nn.Module):
    """Refines boxes, from pictures of 24 px."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1 = nn.Linear(128, 2)
        self.dense5_2 = nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B,3,24,24) to scores (B,) and offsets (B,4)."""
        x = _pool(self.prelu1(self.conv1(x)), 3)
        x = _pool(self.prelu2(self.conv2(x)), 3)
        x = self.prelu4(self.dense4(_flatten(self.prelu3(self.conv3(x)))))
        return self.dense5_1(x).softmax(1)[:, 1], self.dense5_2(x)


class ONet(nn.Module):
    """Scores boxes and finds landmarks, from pictures of 48 px."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1 = nn.Linear(256, 2)
        self.dense6_2 = nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B,3,48,48) to scores (B,), offsets (B,4), landmarks (B,5,2) as fractions of sides."""
        x = _pool(self.prelu1(self.conv1(x)), 3)
        x = _pool(self.prelu2(self.conv2(x)), 3)
        x = _pool(self.prelu3(self.conv3(x)), 2)
        x = self.prelu5(self.dense5(_flatten(self.prelu4(self.conv4(x)))))
        points = self.dense6_3(x).unflatten(1, (2, 5)).mT  # all x come before all y
        return self.dense6_1(x).softmax(1)[:, 1], self.dense6_2(x), points
