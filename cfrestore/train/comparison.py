"""How painted faces are compared with the clean ones in all stages on images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cfrestore.align import FFHQ_TEMPLATE, PUBLISHED_SIZE
from cfrestore.degrade import gaussian_blur
from cfrestore.regularity import regularity
from cfrestore.train.learner import Report
from cfrestore.train.perceptual import IdentityDistance

EYE = 20
"""Sigma of the Gaussian around each eye in `eye_map`, about the size of an eye, px at 512."""

IRIS = 3.0
"""Sigma of a blur that keeps the colour of an iris, but not lashes and highlights, px at 512."""


class Difference(NamedTuple):
    """How painted faces differ from the clean ones.

    Attributes:
        total: the weighted sum of all terms.
        reconstruction: the weighted sum of the pixel and the perceptual term alone, with which an
            adversarial loss is balanced.
        report: the terms, without their weights.
    """

    total: Tensor
    reconstruction: Tensor
    report: Report


class Comparison(nn.Module):
    """Compares painted faces (B,3,S,S) in [-1, 1] with their goals.

    The terms are the mean absolute difference of the pixels, and those that the arguments add. A
    term without a weight or without a network is not computed.

    Args:
        size: S.
        perceptual: a frozen network, called with painted faces and goals; None: no such term.
        weight: of the perceptual distance.
        eyes: how much more a pixel in the middle of an eye counts than one far from the eyes.
        irises: weight of the squared difference of colours in the eyes, see `tint`.
        regularity: weight of the share of regular patterns in fine detail.
        identity: a recogniser's distances; None: no such terms.
    """

    eye_map: Tensor

    def __init__(
        self,
        size: int,
        perceptual: nn.Module | None,
        weight: float,
        *,
        eyes: float = 0.0,
        irises: float = 0.0,
        regularity: float = 0.0,
        identity: IdentityDistance | None = None,
    ) -> None:
        super().__init__()
        self.perceptual, self.weight = perceptual, weight
        self.eyes, self.irises, self.regularity = eyes, irises, regularity
        self.identity = identity
        self.register_buffer("eye_map", eye_map(size), persistent=False)

    def forward(self, fake: Tensor, goal: Tensor, clean: Tensor | None = None) -> Difference:
        """Compares painted faces with goals.

        Args:
            fake: the painted faces.
            goal: what they should look like.
            clean: the clean faces, for the recogniser, if they are not the goals.
        """
        fake = fake.float()
        apart = (fake - goal).abs()
        total = apart.mean()
        report: Report = {"pixel": total}
        if self.perceptual:
            report["perceptual"] = self.perceptual(fake, goal)
            total = total + self.weight * report["perceptual"]
        reconstruction = total
        if self.eyes:
            report["eyes"] = (self.eye_map * apart).mean()
            total = total + self.eyes * report["eyes"]
        if self.irises:
            report["irises"] = self.tint(fake, goal)
            total = total + self.irises * report["irises"]
        if self.regularity:
            report["regularity"] = regularity(fake)
            total = total + self.regularity * report["regularity"]
        if self.identity:
            distance, terms = self.identity(fake, goal if clean is None else clean)
            total = total + distance
            report |= terms
        return Difference(total, reconstruction, report)

    def tint(self, fake: Tensor, goal: Tensor) -> Tensor:
        """The mean squared difference of blurred colours, without brightness, in the eyes.

        Squared, since two faces with a slightly wrong colour are better than one with one blue eye.
        """
        apart = fake.float() - goal
        colours = apart - apart.mean(1, keepdim=True)
        seen = gaussian_blur(colours, IRIS * fake.shape[-1] / PUBLISHED_SIZE)
        return (self.eye_map * seen.square()).mean()


def eye_map(side: int) -> Tensor:
    """A map (side, side) of an aligned face: 1 in the middle of an eye, falling to 0 around it."""
    at = (torch.arange(side) + 0.5) * PUBLISHED_SIZE / side  # px at 512
    bumps = [
        torch.exp(-((at[:, None] - y) ** 2 + (at - x) ** 2) / (2 * EYE**2))
        for x, y in FFHQ_TEMPLATE[:2].tolist()
    ]
    return torch.stack(bumps).amax(0)
