"""Whether an exported file gives the same results as its network in torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cfrestore.backends import ExportedNetwork
from cfrestore.device import inference
from cfrestore.errors import CheckpointError

if TYPE_CHECKING:
    from cfrestore.models.codeformer import CodeFormer

TOLERANCE = 1e-3
"""Largest accepted difference of values in [-1, 1]; one level of 255 is eight times as much."""

TRIALS = ((0.0, 1), (0.5, 1), (1.0, 1), (0.5, 3))
"""w and batch size of each comparison."""


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        w: fidelity.
        batch: number of faces in the batch.
        difference: largest difference of values clamped to [-1, 1].
        equal_codes: whether every code is the same.
    """

    w: float
    batch: int
    difference: float
    equal_codes: bool


def compare(network: CodeFormer, path: Path, backend: str) -> Iterator[Row]:
    """Compares a file with its network in torch, on gray with noise of three strengths.

    Args:
        network: on the CPU, in evaluation mode.
        path: written by `export`, in fp32.
        backend: onnx or openvino.
    """
    exported = ExportedNetwork(path, backend)
    side = network.config.image_size
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((3, 3, side, side), generator=generator) * 2 - 1
    images = noise * torch.tensor((1, 0.5, 0.1))[:, None, None, None]
    for w, batch in TRIALS:
        with inference():
            x = images[:batch]
            latent, _ = network.encode(x)
            codes = network.choose(network.predict_codes(latent))
            expected = network(x, w, exported.match_statistics).clamp(-1, 1)
        found = exported(x.numpy(), w)
        difference = (torch.from_numpy(found.restored).clamp(-1, 1) - expected).abs().max()
        equal = bool((torch.from_numpy(found.codes) == codes).all())
        yield Row(w, batch, float(difference), equal)


def check(rows: tuple[Row, ...], path: Path) -> None:
    """Raises CheckpointError if a file does not give the same results as torch."""
    if not all(row.equal_codes and row.difference <= TOLERANCE for row in rows):
        raise CheckpointError(
            f"{path} does not give what torch gives: the largest difference is "
            f"{max(row.difference for row in rows):.2g}, at most {TOLERANCE:g} is accepted, and "
            f"the codes are {'equal' if all(row.equal_codes for row in rows) else 'not equal'}"
        )
