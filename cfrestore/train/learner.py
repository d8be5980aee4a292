"""A network in training, with its optimiser and the moving average of its weights."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cfrestore.models.codeformer import ControllableFeatureTransform, TransformerLayer
from cfrestore.models.vqgan import AttentionBlock, ResidualBlock
from cfrestore.train.config import Optimisation
from cfrestore.train.distributed import average_gradients

BLOCKS = (ResidualBlock, AttentionBlock, ControllableFeatureTransform, TransformerLayer)

Report = dict[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)


class Learner(Generic[Network]):
    """A network in training, its optimiser and the moving average of its weights."""

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
        """Takes an Adam step at the learning rate of iteration t."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.network)
        for group in self.optimiser.param_groups:
            group["lr"] = self.how.rate(t)
        self.optimiser.step()

    @torch.no_grad()
    def follow(self, t: int) -> None:
        """Moves the averaged weights toward the network's."""
        move = get_ema_multi_avg_fn(self.how.decay(t))  # all weights in a few launches
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


def compile_blocks(network: nn.Module) -> None:
    """Lets torch compile each block of the network, once for each shape of its input.

    The steps between convolutions then take one pass instead of six. Compiling the network as a
    whole takes several times as long and gains little more.
    """
    # The adaptive weight differentiates through the same graph more than once.
    torch._functorch.config.donated_buffer = False
    torch._dynamo.config.recompile_limit = 64  # shapes per block
    for block in network.modules():
        if isinstance(block, BLOCKS):
            block.compile(dynamic=False)
