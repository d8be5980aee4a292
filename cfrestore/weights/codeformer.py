"""Loads a weight file as a network. Torch is imported only where a file is opened."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cfrestore.checkpoint import load_strictly, read_checkpoint, unfilled
from cfrestore.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cfrestore.models.codeformer import CodeFormer, CodeFormerConfig

# Raised by Python and torch when a network is built from an impossible configuration.
MISFIT = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


def load_codeformer(path: str | Path, device: str | torch.device = "cpu") -> CodeFormer:
    """Loads a published `.pth`, or weights written by this project, as a network ready to use.

    The content decides, not the name. Weights written here carry their configuration; for a
    published file, codebook size, layers, fused sides and image side follow from the shapes.

    Args:
        path: the file.
        device: one of torch's, or a name, see `choose_device`.
    Returns:
        the network in evaluation mode, float32, on the device.
    Raises:
        ConfigError: the device is unknown or absent.
        WeightsError: the file cannot be read.
        CheckpointError: it is damaged, or not a CodeFormer; the first five differing keys of each
            kind are named.
    """
    import torch

    from cfrestore.device import choose_device, settle, spare_memory
    from cfrestore.models.codeformer import CodeFormer, CodeFormerConfig
    from cfrestore.models.vqgan import Upsample

    place = device if isinstance(device, torch.device) else choose_device(str(device))
    state, metadata = read_checkpoint(path)
    try:
        if "config" in metadata:
            config = CodeFormerConfig.from_json(metadata["config"])
        else:
            config = deduce_config(state)
        with unfilled():
            network = CodeFormer(config)
    except (ConfigError, *MISFIT) as error:
        raise CheckpointError(f"{path} describes no CodeFormer: {error}") from error
    load_strictly(network, state, path, "CodeFormer")
    if place.type != "cpu":
        settle(network, place)
    else:  # where it is already
        enlargements = [block for block in network.generator.blocks if isinstance(block, Upsample)]
        for largest in enlargements[-1:]:  # a network of one level has none
            spare_memory(largest)
    return network.eval()


def deduce_config(state: Mapping[str, Tensor]) -> CodeFormerConfig:
    """Deduces the configuration of a checkpoint in the published layout from its keys and shapes.

    These give codebook size, layers, fused sides and image side; everything else, and what a
    foreign file lacks, keeps its published value.

    Raises:
        ConfigError: no network has such shapes.
    """
    from cfrestore.models.codeformer import CodeFormerConfig
    from cfrestore.models.vqgan import VQGANConfig

    published = CodeFormerConfig()
    shape = published.autoencoder
    codebook, tokens = state.get("quantize.embedding.weight"), state.get("position_emb")
    code_side = shape.code_side if tokens is None else math.isqrt(len(tokens))
    shrinkage = shape.image_size // shape.code_side
    layers, sides = _numbers(state, "ft_layers."), _numbers(state, "fuse_convs_dict.")
    return CodeFormerConfig(
        autoencoder=VQGANConfig(
            image_size=code_side * shrinkage,
            codebook_size=published.autoencoder.codebook_size
            if codebook is None
            else len(codebook),
        ),
        layers=len(layers) or published.layers,
        connect=tuple(sides) or published.connect,
    )


def _numbers(keys: Mapping[str, Tensor], prefix: str) -> list[int]:
    """The distinct integers that follow the prefix in the keys, ascending."""
    parts = {key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix)}
    return sorted(int(part) for part in parts if part.isdecimal())
