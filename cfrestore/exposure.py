"""Brightens dark faces before a network paints them, and darkens what it paints. No torch.

Networks see little in faces much darker than most of those they were trained on, be it for the
light or for the skin, and paint hazy and unequal eyes. A power of the brightness brings such faces
to a usual one; its inverse brings the painted face back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cfrestore.detail import within_face
from cfrestore.image import to_gray

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DARKEST = 16  # levels: darker faces are brightened like one of this mean brightness


@dataclass(frozen=True, eq=False)
class Exposure:
    """How a face is shown to the network.

    Attributes:
        exponent: of brightness / 255; 1: as it is.
    """

    exponent: float

    @classmethod
    def of(cls, crop: NDArray[np.uint8], least: float) -> Exposure:
        """The exposure that gives the face in a crop at least some mean brightness.

        Args:
            crop: (S, S, 3).
            least: levels, below 255; 0: the crop is shown as it is.
        """
        if not least:
            return cls(1.0)
        brightness = to_gray(crop)[..., 0].astype(np.float32)
        found = max(_DARKEST, float(within_face(brightness).mean()))
        return cls(math.log(least / 255) / math.log(found / 255) if found < least else 1.0)

    def shown(self, crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The crop as the network sees it, (S, S, 3)."""
        return self._power(crop, self.exponent)

    def undone(self, painted: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What the network painted, (S, S, 3), in the brightness of the crop."""
        return self._power(painted, 1 / self.exponent)

    def _power(self, values: NDArray[np.uint8], exponent: float) -> NDArray[np.uint8]:
        """Raises the brightness to a power; the ratios of the channels stay, and so do colours."""
        if self.exponent == 1:
            return values
        levels = np.arange(256).clip(1)
        factors = 255 * (levels / 255) ** exponent / levels
        brightness = np.rint(to_gray(values)[..., :1]).astype(np.uint8)
        return np.asarray(np.rint((values * factors[brightness]).clip(0, 255)), np.uint8)
