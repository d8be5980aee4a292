"""The degradations of the published training, reproducible from seed and file name."""

from __future__ import annotations

import hashlib
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np
import torch

from cfrestore.degrade import LARGE, PAPER, SMALL, Degradation, degrade
from cfrestore.device import generator_for, one_thread
from cfrestore.errors import ConfigError

if TYPE_CHECKING:
    from cfrestore.evaluate.figures import Face

PRESETS = {"small": SMALL, "large": LARGE, "paper": PAPER}
"""For 512 px; the blur is scaled to each face's side."""


def find_preset(name: str) -> Degradation:
    """The degradation of that name; raises ConfigError if there is none."""
    if name not in PRESETS:
        raise ConfigError(f"degradation {name!r} is unknown; choose one of: {', '.join(PRESETS)}")
    return PRESETS[name]


def damage(face: Face, preset: str, seed: int, name: str | PurePath) -> Face:
    """Damages a face at random, as decided by seed and name, independently of other faces.

    Computed on the CPU by one thread, because the number of threads affects the last bits.

    Args:
        face: (S,S,3) uint8 RGB.
        preset: one of PRESETS.
        seed: one for the whole set of faces.
        name: of the file in its folder, with extension.
    Returns:
        (S,S,3) uint8 RGB.
    Raises:
        ConfigError: there is no such preset.
    """
    ranges = find_preset(preset).scaled(len(face))
    images = torch.tensor(face.transpose(2, 0, 1).copy())[None].float() / 255
    generator = generator_for(images.device, seed, _number(name))
    with one_thread():
        damaged = degrade(images, ranges, generator)
    return np.asarray((damaged[0] * 255).round().byte().permute(1, 2, 0).numpy().copy(), np.uint8)


def _number(name: str | PurePath) -> int:
    """A number that depends on the name alone."""
    text = name.as_posix() if isinstance(name, PurePath) else name
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")
