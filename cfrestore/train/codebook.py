"""A codebook that follows the latents assigned to it, instead of a gradient."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cfrestore.errors import ConfigError
from cfrestore.models.vqgan import histogram
from cfrestore.part import place
from cfrestore.train.config import Codebook
from cfrestore.train.distributed import all_sum, take

KMEANS_ROUNDS = 10

SMOOTHING = 1e-5
"""Added to the count of each code (Laplace), so that a code that is never chosen stays finite."""


class MovingCodebook:
    """Codes as exponential moving averages, initialised by k-means; dead codes are revived.

    Args:
        codes: (K,d), the embedding's weight, changed in place.
        recipe: decay, spherical, revive_below.

    Source: van den Oord et al. (2017), appendix A.1; revival: Dhariwal et al., "Jukebox" (2020);
    codes on a sphere: Yu et al., "Vector-quantized Image Modeling with Improved VQGAN" (2022).
    """

    def __init__(self, codes: Tensor, recipe: Codebook) -> None:
        self.codes = codes
        self.recipe = recipe
        self.counts = torch.ones(len(codes), device=codes.device)
        self.sums = codes.detach().clone()

    def state(self) -> dict[str, Tensor]:
        return {"counts": self.counts, "sums": self.sums}

    def load(self, state: dict[str, Tensor]) -> None:
        self.counts.copy_(state["counts"])
        self.sums.copy_(state["sums"])

    @torch.no_grad()
    def start(self, latents: Tensor, generator: torch.Generator) -> None:
        """Initialises the codes by k-means.

        Args:
            latents: (B,T,d), from many faces; at least K latents in all processes together.
            generator: draws the initial centres, the same in each process.
        """
        faces = self._directions(latents)
        points = faces.flatten(0, 1)
        count = len(points) * place()[1]
        if count < len(self.codes):
            raise ConfigError(
                f"{len(self.codes)} codes cannot begin from {count} latents; "
                "more iterations or larger batches give more"
            )
        first = torch.randperm(count, generator=generator, device=points.device)
        centres = take(faces, first[: len(self.codes)])
        for _ in range(KMEANS_ROUNDS):
            nearest = torch.cdist(points, centres).argmin(1)
            counts, sums = (all_sum(x) for x in _tally(points, nearest, len(centres)))
            centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
        self.counts.copy_(counts.mean())
        self.sums.copy_(centres * self.counts[:, None])
        self._write()

    @torch.no_grad()
    def follow(self, latents: Tensor, codes: Tensor, generator: torch.Generator) -> None:
        """One step: N_k <- g N_k + (1-g) n_k, m_k <- g m_k + (1-g) sum z, e_k = m_k / N_k.

        Args:
            latents: (B,T,d) of the batch.
            codes: (B * T,) int64, the nearest code of each latent.
            generator: picks the latents that replace dead codes, the same in each process.
        """
        faces = self._directions(latents)
        points = faces.flatten(0, 1)
        counts, sums = (all_sum(x) for x in _tally(points, codes, len(self.codes)))
        self.counts.lerp_(counts, 1 - self.recipe.decay)
        self.sums.lerp_(sums, 1 - self.recipe.decay)
        if self.recipe.revive_below:
            dead = self.counts < self.recipe.revive_below * self.counts.mean()
            count = len(points) * place()[1]
            picked = torch.randint(
                count, (len(self.codes),), generator=generator, device=points.device
            )
            fresh = take(faces, picked)
            level = self.counts.mean()
            self.sums = torch.where(dead[:, None], fresh * level, self.sums)
            self.counts = torch.where(dead, level, self.counts)
        self._write()

    def _directions(self, latents: Tensor) -> Tensor:
        """Latents in float32; if the codebook is spherical, scaled to length sqrt(d)."""
        latents = latents.detach().float()
        if not self.recipe.spherical:
            return latents
        return F.normalize(latents, dim=-1) * math.sqrt(latents.shape[-1])

    def _write(self) -> None:
        """Sets the codes to the smoothed means of their latents."""
        total = self.counts.sum()
        share = (self.counts + SMOOTHING) / (total + SMOOTHING * len(self.counts))
        self.codes.copy_(self._directions(self.sums / (share * total)[:, None]))


def _tally(points: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Number (K,) and sum (K,d) of the points (N,d) that each of `size` codes has."""
    counts = histogram(codes, size)
    sums = points.new_zeros(size, points.shape[1]).index_add_(0, codes, points)
    return counts, sums
