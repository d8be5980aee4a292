"""RRDBNet: enlarges pictures of any content 1, 2 or 4 times; the network of Real-ESRGAN.

Attribute names are the published checkpoints' keys.

Shapes: B batch, H and W of the input, F features.
Source: Wang et al., "ESRGAN" (2018) and "Real-ESRGAN" (2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfrestore.models.enlarge import enlarge

_SLOPE = 0.2
_RESIDUE = 0.2
"""Share of a residual branch that is added to its input."""


@dataclass(frozen=True)
class RRDBNetConfig:
    """Shape of an RRDBNet; the defaults are those of RealESRGAN_x2plus.

    Attributes:
        scale: output side divided by input side: 1, 2 or 4.
        features: channels of the trunk.
        growth: channels that each convolution of a dense unit adds.
        blocks: length of the trunk.
    """

    scale: int = 2
    features: int = 64
    growth: int = 32
    blocks: int = 23


class ResidualDenseUnit(nn.Module):
    """Five 3x3 convolutions, each of which sees the input and all earlier outputs."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _conv(features, growth)
        self.conv2 = _conv(features + growth, growth)
        self.conv3 = _conv(features + 2 * growth, growth)
        self.conv4 = _conv(features + 3 * growth, growth)
        self.conv5 = _conv(features + 4 * growth, features)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,F,h,w) to the same shape."""
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat((seen, F.leaky_relu(conv(seen), _SLOPE)), 1)
        return x + _RESIDUE * self.conv5(seen)


class ResidualInResidualBlock(nn.Module):
    """Three dense units and a shortcut."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseUnit(features, growth)
        self.rdb2 = ResidualDenseUnit(features, growth)
        self.rdb3 = ResidualDenseUnit(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,F,h,w) to the same shape."""
        return x + _RESIDUE * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """Enlarges pictures; at scales below 4, `pixel_unshuffle` first turns blocks into channels."""

    def __init__(self, config: RRDBNetConfig = RRDBNetConfig()) -> None:
        super().__init__()
        self.scale = config.scale
        self.multiple = 4 // config.scale
        features = config.features
        self.conv_first = _conv(3 * self.multiple**2, features)
        self.body = nn.Sequential(
            *(ResidualInResidualBlock(features, config.growth) for _ in range(config.blocks))
        )
        self.conv_body = _conv(features, features)
        self.conv_up1 = _conv(features, features)
        self.conv_up2 = _conv(features, features)
        self.conv_hr = _conv(features, features)
        self.conv_last = _conv(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,3,H,W) RGB in [0, 1], sides multiples of `multiple`, to (B,3,scale*H,scale*W)."""
        x = self.conv_first(F.pixel_unshuffle(x, self.multiple))
        x = x + self.conv_body(self.body(x))
        for conv in (self.conv_up1, self.conv_up2):
            x = F.leaky_relu(enlarge(x, conv.weight, conv.bias), _SLOPE)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), _SLOPE))


def _conv(inner: int, outer: int) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, padding=1)
