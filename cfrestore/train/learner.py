"""Networks that learn: with their optimiser and moving average, or as discriminator."""

from __future__ import annotations

import copy
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cfrestore.models.codeformer import ControllableFeatureTransform, TransformerLayer
from cfrestore.models.vqgan import AttentionBlock, PatchDiscriminator, ResidualBlock
from cfrestore.train import losses
from cfrestore.train.config import Adversary, Optimisation
from cfrestore.train.distributed import average_gradients

BLOCKS = (ResidualBlock, AttentionBlock, ControllableFeatureTransform, TransformerLayer)

Report = dict[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)


class Painted(NamedTuple):
    """Pictures that a discriminator may judge.

    Attributes:
        fake: what the network made, (B,3,S,S) in [-1, 1], with gradient.
        real: what it should have made.
        reconstruction: the loss between them.
        weight: the parameter at which the gradients of that and of the judgement are balanced.
    """

    fake: Tensor
    real: Tensor
    reconstruction: Tensor
    weight: Tensor


class Learner(Generic[Network]):
    """A network that learns, its optimiser and the moving average of its weights."""

    def __init__(self, network: Network, how: Optimisation) -> None:
        self.network = network.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.how = how
        self.optimiser = torch.optim.Adam(
            [p for p in network.parameters() if p.requires_grad],
            lr=how.learning_rate,
            betas=how.betas,
        )

    def update(self, loss: Tensor, t: int) -> None:
        """One Adam step at the rate of iteration t."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.network)
        for group in self.optimiser.param_groups:
            group["lr"] = self.how.rate(t)
        self.optimiser.step()

    @torch.no_grad()
    def follow(self, t: int) -> None:
        """Moves the averaged weights toward the network's."""
        move = get_ema_multi_avg_fn(self.how.decay(t))  # all in a few launches
        move(list(self.average.parameters()), list(self.network.parameters()), t)

    def state(self) -> dict[str, Any]:
        return {
            "params": self.network.state_dict(),
            "params_ema": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["params"])
        self.average.load_state_dict(state["params_ema"])
        self.optimiser.load_state_dict(state["optimiser"])


class Critic:
    """The discriminator and its optimiser."""

    def __init__(self, recipe: Adversary) -> None:
        self.recipe = recipe
        self.network = PatchDiscriminator(recipe.channels, recipe.layers, recipe.spectral)
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99)
        )

    def to(self, device: torch.device) -> Critic:
        self.network.to(device).to(memory_format=torch.channels_last)
        return self

    def heard(self, t: int) -> bool:
        """Whether the generator listens at iteration t."""
        return t > self.recipe.start

    def learns(self, t: int) -> bool:
        return t > self.recipe.start - self.recipe.lead

    def judge(self, painted: Painted) -> tuple[Tensor, Tensor]:
        """The adversarial term, weighted adaptively, and that weight."""
        self.network.requires_grad_(False)
        loss = losses.hinge_generator(self.network(painted.fake).float())
        factor = losses.adaptive_weight(
            painted.reconstruction, loss, painted.weight, self.recipe.largest
        )
        return self.recipe.scale * factor * loss, factor

    def learn(self, real: Tensor, fake: Tensor, pace: float) -> Tensor:
        """One step of the discriminator; real and fake pass separately, as BatchNorm demands.

        Args:
            pace: learning rate over that at the start.
        """
        self.network.requires_grad_(True)
        loss = losses.hinge_discriminator(
            self.network(real).float(), self.network(fake.detach()).float()
        )
        if self.recipe.halved:
            loss = loss / 2
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.network)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * pace
        self.optimiser.step()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        return {"params": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["params"])
        self.optimiser.load_state_dict(state["optimiser"])


def compile_blocks(network: nn.Module) -> None:
    """Has torch compile the network's blocks, each once for each shape, when it first sees it.

    What is between convolutions is then done in one pass instead of six. Compiling the network as a
    whole takes several times as long, and gives little more.
    """
    # The adaptive weight differentiates through the same graph more than once.
    torch._functorch.config.donated_buffer = False
    torch._dynamo.config.recompile_limit = 64  # shapes of a block
    for block in network.modules():
        if isinstance(block, BLOCKS):
            block.compile(dynamic=False)
