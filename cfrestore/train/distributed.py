"""Several processes training one network: what `torchrun` started, or a single process."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cfrestore.device import own_device


def start(device: torch.device) -> tuple[torch.device, int, int]:
    """Joins the processes torchrun started.

    Args:
        device: what a process alone would use; on a GPU each process takes its own.
    Returns:
        this process's device, its rank, and the number of processes.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return device, 0, 1
    if device.type == "cpu":
        dist.init_process_group("gloo")
    else:
        device = own_device(device, int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(device_id=device)
    return device, dist.get_rank(), world


def stop() -> None:
    """Leaves the group of processes, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def all_sum(x: Tensor) -> Tensor:
    """x summed over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(x)
    return x


def from_first(x: Tensor) -> Tensor:
    """The first process's x, in every process."""
    if dist.is_initialized():
        dist.broadcast(x, 0)
    return x


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process, so that all stop together."""
    if not dist.is_initialized():
        return flag
    return bool(all_sum(torch.tensor(float(flag), device=device)) > 0)


def average_gradients(network: nn.Module) -> None:
    """Every gradient becomes its mean over all processes."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    all_sum(flat).div_(dist.get_world_size())
    pieces: Iterable[Tensor] = flat.split([g.numel() for g in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))
