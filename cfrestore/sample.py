"""Draws faces of no real person: codes from a prior, painted by a network's generator at w = 0."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from cfrestore.device import inference
from cfrestore.errors import ConfigError
from cfrestore.image import from_tensor
from cfrestore.models.prior import sample_codes

if TYPE_CHECKING:
    from cfrestore.models.codeformer import CodeFormer
    from cfrestore.models.prior import Prior


def sample_faces(
    network: CodeFormer,
    prior: Prior,
    count: int,
    size: tuple[int, int] | None = None,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> NDArray[np.uint8]:
    """Draws faces of no real person; the same seed gives the same faces on one machine.

    Args:
        network: in evaluation mode, with the codebook that the prior was trained on.
        prior: unconditional, in evaluation mode, on the network's device.
        count: number of faces.
        size: height and width in pixels, multiples of the pixels per code and at least the
            network's side; None: the network's side for both.
        seed: decides what is drawn.
        temperature, top_k: see `draw`.
    Returns:
        (count, height, width, 3) uint8 RGB.
    Raises:
        ConfigError: the size, the temperature or top_k is out of range, or the prior needs
            conditions.
    """
    shape = network.config.autoencoder
    height, width = size or (shape.image_size, shape.image_size)
    cell = shape.image_size // shape.code_side
    if height % cell or width % cell or min(height, width) < shape.image_size:
        raise ConfigError(
            f"sides must be multiples of {cell} from {shape.image_size} on, found {width}x{height}"
        )
    check_drawing(temperature, top_k)
    if prior.config.symbols:
        raise ConfigError("the prior needs conditions, and there are none here")
    generator = torch.Generator().manual_seed(seed)
    with inference():
        codes = sample_codes(
            prior,
            count,
            (height // cell, width // cell),
            generator,
            temperature=temperature,
            top_k=top_k,
        )
        vectors = network.quantize.embedding(codes).permute(0, 3, 1, 2)  # (B, d, h, w)
        return np.concatenate([from_tensor(network.decode(one, {}, 0)) for one in vectors.split(1)])


def check_drawing(temperature: float, top_k: int | None = None) -> None:
    """Raises ConfigError if the temperature or top_k is out of range."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"temperature must be above 0, found {temperature}")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k must be at least 1, found {top_k}")
