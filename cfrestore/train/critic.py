"""The discriminator: its input, its training, and the weight of its loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cfrestore.models.vqgan import PatchDiscriminator
from cfrestore.part import Part, place
from cfrestore.train import losses
from cfrestore.train.config import Adversary
from cfrestore.train.distributed import average_gradients, whole

MEMORY = 64
"""Number of earlier pictures, real ones and as many fake ones, that are kept for replays."""

DETAIL_GAIN = 4
"""Factor on detail, whose values are small compared with whole pictures."""


class CriticInput(NamedTuple):
    """Pictures for the discriminator.

    Attributes:
        fake: the network's output, (B,3,S,S) in [-1, 1], with gradient.
        real: the target.
        reconstruction: the loss between them.
        weight: the parameter at which the gradients of that and of the adversarial loss are
            balanced.
    """

    fake: Tensor
    real: Tensor
    reconstruction: Tensor
    weight: Tensor


class Critic:
    """The discriminator and its optimiser."""

    def __init__(self, recipe: Adversary) -> None:
        self.recipe = recipe
        self.network = PatchDiscriminator(
            recipe.channels, recipe.layers, recipe.spectral, inputs=6 if recipe.detail else 3
        )
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=recipe.learning_rate, betas=recipe.betas
        )
        self.memory: list[tuple[Tensor, Tensor]] = []  # batches of earlier iterations

    def to(self, device: torch.device) -> Critic:
        self.network.to(device).to(memory_format=torch.channels_last)
        return self

    def heard(self, t: int) -> bool:
        """Whether the generator learns from the discriminator at iteration t."""
        return t > self.recipe.start

    def learns(self, t: int) -> bool:
        """Whether the discriminator is trained at iteration t."""
        return t > self.recipe.start - self.recipe.lead

    def judge(self, painted: CriticInput) -> tuple[Tensor, Tensor]:
        """The adversarial term, with its adaptive weight applied, and that weight."""
        self.network.requires_grad_(False)
        loss = losses.hinge_generator(self._logits(painted.fake, painted.real))
        factor = losses.adaptive_weight(
            painted.reconstruction, loss, painted.weight, self.recipe.largest
        )
        return self.recipe.scale * factor * loss, factor

    def learn(self, real: Tensor, fake: Tensor, t: int, pace: float) -> Tensor:
        """Trains on the pictures of iteration t, then on replayed ones; returns the first loss.

        Args:
            real, fake: (B,3,S,S) in [-1, 1].
            pace: factor on the learning rate.
        """
        self.network.requires_grad_(True)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * pace
        fake = fake.detach()
        loss = self._step(real, fake)
        if self.recipe.replays:
            for n in range(self.recipe.replays if self.memory else 0):
                again = self.memory[(t * self.recipe.replays + n) % len(self.memory)]
                self._step(*(x.float() for x in again))
            self._remember(real, fake)
        return loss

    def _step(self, real: Tensor, fake: Tensor) -> Tensor:
        """Takes a step; returns its loss.

        Real and fake pictures pass separately, because BatchNorm would mix their statistics.
        """
        loss = losses.hinge_discriminator(self._logits(real, real), self._logits(fake, real))
        if self.recipe.halved:
            loss = loss / 2
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.network)
        self.optimiser.step()
        return loss.detach()

    def _logits(self, image: Tensor, real: Tensor) -> Tensor:
        """Logits of an image; with `detail`, of its detail beside the rest of the real picture."""
        if self.recipe.detail:
            real_rest, image_rest = (coarse(x.float(), self.recipe.detail) for x in (real, image))
            image = torch.cat((real_rest, DETAIL_GAIN * (image - image_rest)), 1)
        return self.network(image).float()

    def _remember(self, real: Tensor, fake: Tensor) -> None:
        batches = max(1, MEMORY // (len(real) * place()[1]))
        self.memory = [*self.memory, (real.half(), fake.half())][-batches:]

    def state(self) -> dict[str, Any]:
        return {
            "params": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "memory": [tuple(whole(x) for x in batch) for batch in self.memory],
        }

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["params"])
        self.optimiser.load_state_dict(state["optimiser"])
        device = next(self.network.parameters()).device
        rank, world = place()

        def part_of(x: Tensor) -> Tensor:
            return Part(len(x), rank, world).of(x).to(device)

        self.memory = [(part_of(real), part_of(fake)) for real, fake in state.get("memory", ())]


def coarse(x: Tensor, side: int) -> Tensor:
    """Removes detail finer than side pixels from x (B,C,S,S); side must divide S."""
    return F.interpolate(F.avg_pool2d(x, side), scale_factor=side, mode="bilinear")
