"""Everything a caller may ask of one run, each default written once. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cfrestore.errors import ConfigError

MAX_FIDELITY = 1.3
"""Largest w the library accepts: the largest value the published training used."""

UPSCALES = (1, 2, 4)


@dataclass(frozen=True)
class Options:
    """How one photograph is to be restored.

    Attributes:
        fidelity: w of the controllable feature transformation; 0 trusts the codebook alone
            (clean, but identity may drift), 1 follows the input closely. In [0, 1.3].
        upscale: output size is exactly this many times the input's, 1, 2 or 4.
        aligned: the picture already is one aligned face; nothing is detected or pasted.
        batch_size: faces restored in one forward pass, at least 1.

    Raises:
        ConfigError: a value is out of range, or two contradict each other.
    """

    fidelity: float = 0.5
    upscale: int = 1
    aligned: bool = False
    batch_size: int = 4

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fidelity) and 0 <= self.fidelity <= MAX_FIDELITY):
            raise ConfigError(f"fidelity must lie in [0, {MAX_FIDELITY}], found {self.fidelity}")
        if self.upscale not in UPSCALES:
            raise ConfigError(f"upscale must be one of {UPSCALES}, found {self.upscale}")
        if self.aligned and self.upscale != 1:
            raise ConfigError("an aligned face always gets the network's size, without upscale")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, found {self.batch_size}")
