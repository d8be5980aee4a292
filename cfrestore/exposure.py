"""Brightens dark faces before a network paints them, and darkens what it paints. No torch.

Networks see little in faces much darker than most of those they were trained on, be it for the
light or for the skin, and paint hazy and unequal eyes. Such faces are brought to a usual
brightness. A gain, like a longer exposure, does as much as it can without turning anything near the
face white; a power of the brightness does the rest. The painted face is darkened by the inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from cfrestore.align import face_ellipse
from cfrestore.image import to_gray

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DARKEST = 16  # levels: darker faces are brightened like one of this mean brightness
_LEVELS = np.arange(256.0).clip(1)  # 0 counts as 1, so that it can be divided by
_SHARES = to_gray(np.eye(3))[:, :1].T  # (1, 3), of the channels in brightness
_WHITE = 200.0  # levels: no gain makes the brightest part of a crop brighter than this
_BRIGHTEST = 99.5  # percentile that is the brightest part of a crop; pixels above are reflections


@dataclass(frozen=True)
class Exposure:
    """How a face is shown to the network.

    Attributes:
        exponent: the power to which gain * brightness / 255 is raised; 1: it is not changed.
        gain: factor of the brightness, at least 1.
    """

    exponent: float = 1.0
    gain: float = 1.0

    @classmethod
    def of(cls, crop: NDArray[np.uint8], least: float) -> Exposure:
        """The exposure that brings the face in a crop to a mean brightness of at least `least`.

        Args:
            crop: (S, S, 3).
            least: levels, below 255; 0: the crop is shown unchanged.
        """
        if not least:
            return cls()
        means = cv2.mean(crop, face_ellipse(len(crop)).view(np.uint8))[:3]
        found = max(_DARKEST, float(to_gray(np.array(means))[0]))
        if found >= least:
            return cls()
        red, green, blue = cv2.split(crop)
        highest = cv2.max(cv2.max(red, green), blue)
        brightest = max(1.0, float(np.percentile(highest, _BRIGHTEST)))
        gain = max(1.0, min(least / found, _WHITE / brightest))
        return cls(math.log(least / 255) / math.log(min(least, gain * found) / 255), gain)

    def shown(self, crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The crop as the network sees it, (S, S, 3)."""
        return self._changed(crop, (self.gain * _LEVELS / 255).clip(0, 1) ** self.exponent)

    def undone(self, painted: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The painted crop (S, S, 3), darkened to the brightness of the original crop."""
        return self._changed(painted, (_LEVELS / 255) ** (1 / self.exponent) / self.gain)

    def _changed(
        self, values: NDArray[np.uint8], brightness: NDArray[np.float64]
    ) -> NDArray[np.uint8]:
        """Changes the brightness; the ratios of the channels stay, and so do colours.

        Args:
            brightness: (256,), the new brightness, in [0, 1], of each old level.
        """
        if self == Exposure():
            return values
        factors = (255 * brightness / _LEVELS).astype(np.float32)
        levels = cv2.transform(values, _SHARES)  # (S, S) uint8, rounded
        changed = values * factors[levels][..., np.newaxis]
        return np.asarray(np.rint(changed.clip(0, 255)), np.uint8)
