"""After the three stages: trains generator and fusion again, together, on fixed codes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from cfrestore.align import PUBLISHED_SIZE
from cfrestore.checkpoint import load_strictly
from cfrestore.degrade import LARGE, gaussian_blur
from cfrestore.device import autocast
from cfrestore.errors import ConfigError
from cfrestore.models.codeformer import CodeFormer
from cfrestore.part import Part, place
from cfrestore.train import checkpoint
from cfrestore.train.comparison import Comparison
from cfrestore.train.config import PolishRecipe
from cfrestore.train.critic import Critic, CriticInput
from cfrestore.train.data import to_network
from cfrestore.train.learner import Learner, Report
from cfrestore.train.perceptual import IdentityDistance
from cfrestore.train.stages import (
    RestoringStage,
    degrade_parts,
    detached,
    shared_out,
)
from cfrestore.train.teacher import Teacher


class Polish(RestoringStage):
    """The polish, starting from the network of stage III.

    Args:
        recipe: the settings.
        fusion: path of stage III's checkpoint, whose averaged weights initialise the network.
        autoencoder: path of stage I's checkpoint, which gives the codes of clean faces.
        perceptual, device, mixed: as in `Autoencoder`.
        identity: a recogniser's distances; None: they are not used.
    Raises:
        ConfigError: no face of a batch would be fused; or some processes would have more faces to
            paint without their input than others, so that the mean of their losses would not be
            that of the batch.
    """

    name = "polish"

    def __init__(
        self,
        recipe: PolishRecipe,
        fusion: Path,
        autoencoder: Path,
        perceptual: nn.Module | None,
        device: torch.device,
        mixed: bool = False,
        identity: IdentityDistance | None = None,
    ) -> None:
        self.recipe, self.device, self.mixed = recipe, device, mixed
        batch_size = recipe.optimisation.batch_size
        _, *fused, unfused = self._dealt(batch_size // place()[1])
        if not any(part.whole for part in fused):
            raise ConfigError(f"no face of a batch of {batch_size} would be fused")
        if unfused.whole % unfused.world:
            raise ConfigError(
                f"batch size {batch_size} has {unfused.whole} faces that are painted without their "
                f"input, which cannot be split over {unfused.world}"
            )
        size, weight = recipe.model.image_size, recipe.perceptual.weight
        self.compare = Comparison(
            size,
            perceptual,
            weight,
            eyes=recipe.eyes,
            irises=recipe.irises,
            regularity=recipe.regularity,
            identity=identity,
        ).to(device)
        self.network = CodeFormer(recipe.model)
        load_strictly(self.network, checkpoint.averaged(fusion), fusion, "CodeFormer")
        self.network.requires_grad_(False)
        for part in (self.network.generator, self.network.fuse_convs_dict):
            part.requires_grad_(True)
        self.teacher = Teacher(autoencoder, recipe.model).to(device)
        self.learner = Learner(self.network.to(device), recipe.optimisation)
        self.critic = Critic(recipe.adversary).to(device) if recipe.adversary else None

    def step(self, t: int, clean: Tensor, generator: torch.Generator) -> Report:
        """Runs iteration t on clean faces; returns its losses."""
        how, x = self.recipe, to_network(clean)
        damages = [damage for damage, _ in how.degradations]
        own, *fused, unfused = self._dealt(len(x))
        a, b = len(own), len(x) - len(unfused)
        with torch.no_grad():
            codes = self.teacher.codes(x[:a])
            damaged = degrade_parts(clean[a:], (*fused, unfused), (*damages, LARGE), generator)
        with autocast(self.device, self.mixed):
            with torch.no_grad():
                latent, skips = self.network.encode(to_network(damaged))
                predicted = self.network.choose(self.network.predict_codes(latent))
            # The skips require gradient for the reason given in Fusion.step.
            kept = {side: skip[: b - a].requires_grad_() for side, skip in skips.items()}
            fakes = (
                self.network.decode(self.network.lookup(codes), {}, 0),
                self.network.decode(self.network.lookup(predicted[: b - a]), kept, 1),
            )
        fake = torch.cat(fakes).float()
        goal = torch.cat((self.goal(x[:a]), self.goal(x[a:b], fused=True)))
        total, rec, report = self.compare(fake, goal, x[:b])
        if len(unfused):
            with autocast(self.device, self.mixed):
                rough = self.network.decode(self.network.lookup(predicted[b - a :]), {}, 0)
            report["unfused"] = self.compare.tint(rough, x[b:])
            total = total + how.unfused * how.irises * report["unfused"]
        last = self.network.generator.last_weight
        self.update(t, total, report, CriticInput(fake, goal, rec, last))
        self.learner.follow(t)
        return detached(report)

    def _dealt(self, count: int) -> list[Part]:
        """Splits this process's faces: painted from their own codes, fused by damage, unfused."""
        recipe, shares = self.recipe, [share for _, share in self.recipe.degradations]
        rest = (1 - recipe.own - recipe.unfused) / sum(shares)
        return shared_out((recipe.own, *(rest * share for share in shares), recipe.unfused), count)

    def goal(self, x: Tensor, fused: bool = False) -> Tensor:
        """The target for clean faces (B,3,S,S) in [-1, 1]; the same shape and range.

        Args:
            fused: they are painted at w = 1, see `Sharpening.fused`.
        """
        mask = self.recipe.sharpening
        if mask is None:
            return x
        amount = mask.amount if mask.fused is None or not fused else mask.fused
        return unsharp_mask(x, amount, mask.sigma * x.shape[-1] / PUBLISHED_SIZE)


def unsharp_mask(x: Tensor, amount: float, sigma: float) -> Tensor:
    """Sharpens the brightness of pictures (B,3,S,S) in [-1, 1]; the colour differences stay.

    Args:
        amount: factor on the difference from the blurred brightness, which is added.
        sigma: of the Gaussian blur, pixels.
    Source: the sharpened targets of Wang et al. (2021), "Real-ESRGAN".
    """
    gray = x.mean(1, keepdim=True)
    return (x + amount * (gray - gaussian_blur(gray, sigma))).clamp(-1, 1)
