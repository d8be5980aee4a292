"""A process's part of a batch that several processes share; alone, it is the whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """A process's part of a batch: every world-th face, starting at rank.

    Attributes:
        whole: number of faces in the whole batch.
    """

    whole: int
    rank: int = 0
    world: int = 1

    @classmethod
    def own(cls, count: int) -> Part:
        """This process's part of a batch in which each process has `count` faces."""
        rank, world = place()
        return cls(count * world, rank, world)

    def __len__(self) -> int:
        return len(range(self.rank, self.whole, self.world))

    def of(self, x: Tensor) -> Tensor:
        """The part's rows of x, which has a row for each face of the whole batch."""
        return x[self.rank :: self.world]

    def split(self, counts: Sequence[int]) -> list[Part]:
        """This process's part of each piece, if the whole batch is cut into pieces of counts."""
        starts = (sum(counts[:n]) for n in range(len(counts)))
        return [
            Part(count, (self.rank - start) % self.world, self.world)
            for start, count in zip(starts, counts, strict=True)
        ]


def place() -> tuple[int, int]:
    """This process's rank, and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
