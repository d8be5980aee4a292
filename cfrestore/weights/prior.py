"""Loads a prior over the codes of a network from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cfrestore.checkpoint import digest_of, load_strictly, read_checkpoint
from cfrestore.errors import CheckpointError, ConfigError
from cfrestore.weights.codeformer import MISFIT

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cfrestore.models.prior import Prior


def load_prior(path: str | Path, codebook: Tensor, device: str | torch.device = "cpu") -> Prior:
    """Loads a prior that `cfrestore train export` wrote.

    Args:
        codebook: (K,d), the vectors of the codes to be drawn.
    Returns:
        the prior in evaluation mode, float32, on the device.
    Raises:
        WeightsError: the file cannot be read.
        CheckpointError: it is damaged, not a prior, or one over the codes of another codebook.
    """
    from cfrestore.models.prior import PriorConfig, build_prior

    state, metadata = read_checkpoint(path)
    if "prior" not in metadata:
        raise CheckpointError(f"{path} is no prior; `cfrestore train export` writes them")
    if metadata.get("codebook") != digest_of([codebook]):
        raise CheckpointError(f"{path} is a prior over the codes of another network")
    try:
        prior = build_prior(PriorConfig.from_json(metadata["prior"]))
    except (ConfigError, *MISFIT) as error:
        raise CheckpointError(f"{path} describes no prior: {error}") from error
    load_strictly(prior, state, path, "prior")
    return prior.to(device).eval()
