"""Training one network in several processes, started by `torchrun`, or in a single one.

The number of processes does not change what is learnt. A batch is dealt out to them like cards, so
that each has faces of every kind of damage. Each draws the random numbers of the whole batch and
uses those of its own faces. Losses are means over equal parts, so that the mean of their gradients
is the gradient of the whole batch. Only the last bits differ, because sums have another order, and
with a discriminator the statistics of its BatchNorm, which each process computes from its own part.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cfrestore.device import own_device
from cfrestore.errors import CFRestoreError
from cfrestore.part import place


def start(device: torch.device) -> tuple[torch.device, int, int]:
    """Joins the processes started by torchrun.

    Args:
        device: the choice for a single process; with GPUs each process takes its own.
    Returns:
        this process's device, its rank, and the number of processes.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return device, 0, 1
    # This module's functions have the process group as a default argument. If it is imported only
    # after the group is made (optimizers import it), they keep the group alive beyond stop(), and
    # the group's threads can abort a process that is ending.
    importlib.import_module("torch.distributed.nn.functional")

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


def _together(operation: Callable[..., object], *values: Any) -> None:
    """Runs a collective operation.

    Raises:
        CFRestoreError: another process has ended.
    """
    try:
        operation(*values)
    except RuntimeError as error:
        raise CFRestoreError(
            "another process of this training has ended; --resume continues from the last "
            f"checkpoint ({str(error).splitlines()[0]})"
        ) from error


def all_sum(x: Tensor) -> Tensor:
    """Sums x over all processes, in place."""
    if dist.is_initialized():
        _together(dist.all_reduce, x)
    return x


def all_mean(x: Tensor) -> Tensor:
    """Averages x over all processes, in place."""
    return all_sum(x).div_(place()[1]) if dist.is_initialized() else x


def from_first(x: Tensor) -> Tensor:
    """Broadcasts the first process's x to all processes."""
    if dist.is_initialized():
        _together(dist.broadcast, x, 0)
    return x


def whole(x: Tensor) -> Tensor:
    """Gathers the whole batch in every process from each one's part x (B,...)."""
    if not dist.is_initialized():
        return x
    parts = [torch.empty_like(x) for _ in range(place()[1])]
    _together(dist.all_gather, parts, x.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Takes rows of the whole batch, the same in every process.

    Args:
        x: (B,T,d), this process's part of the batch.
        index: (N,) int64, below B * world * T, the same in every process.
    Returns:
        (N,d).
    """
    rank, world = place()
    face, row = index // x.shape[1], index % x.shape[1]
    is_here = face % world == rank
    return all_sum(torch.where(is_here[:, None], x[face // world, row], 0))


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process, so that all stop together."""
    if not dist.is_initialized():
        return flag
    return bool(all_sum(torch.tensor(float(flag), device=device)) > 0)


def average_gradients(network: nn.Module) -> None:
    """Averages every gradient over all processes."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    all_mean(flat)
    pieces: Iterable[Tensor] = flat.split([g.numel() for g in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))
