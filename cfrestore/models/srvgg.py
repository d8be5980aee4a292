"""SRVGGNetCompact: enlarges pictures by a plain chain of convolutions, all at the input's size.

Attribute names are the published checkpoints' keys.

Shapes: B batch, H and W of the input, F features.
Source: the network of realesr-general-x4v3, after Wang et al., "Real-ESRGAN" (2021).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SRVGGConfig:
    """Shape of an SRVGGNetCompact; the defaults are those of realesr-general-x4v3.

    Attributes:
        scale: output side divided by input side.
        features: channels of the chain.
        depth: number of convolutions between the first and the last.
    """

    scale: int = 4
    features: int = 64
    depth: int = 32

    def to_json(self) -> str:
        """The configuration as it is stored in a weight file's metadata."""
        return json.dumps(asdict(self))


class SRVGGNetCompact(nn.Module):
    """Adds what it paints to the input, enlarged by nearest neighbour."""

    multiple = 1

    def __init__(self, config: SRVGGConfig = SRVGGConfig()) -> None:
        super().__init__()
        self.scale = config.scale
        self.body = nn.ModuleList()
        channels = 3
        for _ in range(config.depth + 1):
            self.body += (_conv(channels, config.features), nn.PReLU(config.features))
            channels = config.features
        self.body.append(_conv(channels, 3 * config.scale**2))

    def forward(self, x: Tensor) -> Tensor:
        """x (B,3,H,W) RGB in [0, 1] to (B,3,scale*H,scale*W)."""
        painted = x
        for layer in self.body:
            painted = layer(painted)  # (B,F,H,W), and at last (B,3*scale*scale,H,W)
        painted = F.pixel_shuffle(painted, self.scale)
        return painted + F.interpolate(x, scale_factor=self.scale)


def _conv(inner: int, outer: int) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, padding=1)
