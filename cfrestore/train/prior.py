"""The training stage of a prior over the codes of clean faces."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cfrestore.device import autocast
from cfrestore.models.prior import bits_per_code, build_prior, sample_codes
from cfrestore.models.vqgan import histogram
from cfrestore.train.codes import CodeMaps
from cfrestore.train.config import PriorRecipe
from cfrestore.train.learner import Learner, Report
from cfrestore.train.teacher import Teacher

BATCH = 32
"""Held-out maps per forward pass."""


class CodePrior:
    """A PixelCNN or a transformer that learns the likelihood of code maps.

    Args:
        recipe: the settings.
        teacher: the autoencoder of stage I, which defines the codes.
        seen: the codes to learn from, used here only for their frequencies.
        held_out: the codes on which the likelihood is measured.
        device, mixed: as in `stages.Autoencoder`.
    """

    name = "prior"

    def __init__(
        self,
        recipe: PriorRecipe,
        teacher: Teacher,
        seen: CodeMaps,
        held_out: CodeMaps,
        device: torch.device,
        mixed: bool = False,
    ) -> None:
        shape = teacher.autoencoder.config
        prior = replace(recipe.prior, codebook_size=shape.codebook_size, side=shape.code_side)
        self.recipe, self.device, self.mixed = replace(recipe, prior=prior), device, mixed
        self.teacher = teacher
        self.held_out = held_out.maps[:, 0].to(device)
        self.unigram = unigram_bits(seen.maps, held_out.maps[:, 0], shape.codebook_size)
        self.network = build_prior(prior).to(device)
        self.learner = Learner(self.network, recipe.optimisation)

    def step(self, t: int, codes: Tensor, generator: torch.Generator) -> Report:
        """Runs iteration t on code maps (B,s,s); returns bits per code.

        At evaluations, also returns those of the held-out faces, and their unigram bits.
        """
        torch.manual_seed(generator.initial_seed())  # dropout takes no generator
        with autocast(self.device, self.mixed):
            bits = bits_per_code(self.network(codes), codes.flatten(1))
        self.learner.update(bits * math.log(2), t)
        self.learner.follow(t)
        report = {"bits": bits.detach()}
        if self.recipe.evaluates(t):
            report |= {"held_out": self.evaluate(), "unigram": self.unigram}
        return report

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """Bits per code of the held-out faces under the averaged weights."""
        parts = self.held_out.split(BATCH)
        bits = [
            bits_per_code(self.learner.average(part), part.flatten(1)) * len(part) for part in parts
        ]
        return torch.stack(bits).sum() / len(self.held_out)

    @torch.no_grad()
    def pictures(self, codes: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Columns of a sample sheet: faces painted from real and from drawn codes."""
        cpu_generator = torch.Generator().manual_seed(generator.initial_seed())
        size = codes.shape[1], codes.shape[2]
        drawn = sample_codes(self.learner.average, len(codes), size, cpu_generator)
        return [self.teacher.paint(some) for some in (codes, drawn)]

    def state(self) -> dict[str, Any]:
        return self.learner.state() | {
            "prior": self.recipe.prior.to_json(),
            "codebook": self.teacher.codebook_digest,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.learner.load(state)


def unigram_bits(seen: Tensor, codes: Tensor, codebook_size: int) -> Tensor:
    """Bits per code under the add-one-smoothed frequencies of `seen`."""
    counts = histogram(seen, codebook_size) + 1
    return -(counts / counts.sum()).log2()[codes.flatten()].mean()
