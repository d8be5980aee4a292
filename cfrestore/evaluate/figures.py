"""Metrics of aligned faces that need no network: fidelity, sharpness and colour."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from cfrestore.align import face_ellipse
from cfrestore.device import inference
from cfrestore.extras import require
from cfrestore.image import to_tensor
from cfrestore.regularity import regularity

Face: TypeAlias = NDArray[np.uint8]
"""(S,S,3) RGB."""

BORDER = 4
"""Pixels at each side that PSNR and SSIM ignore, as in the published evaluation."""

LEAST_SIDE = 32
"""Smallest side that can be measured: within the border, SSIM needs 11 px."""


def psnr(face: Face, clean: Face) -> float:
    """Peak signal-to-noise ratio within the border, dB; infinite for equal faces.

    Source: the published evaluation: RGB, float64.
    """
    a, b = (_within(x).astype(np.float64) for x in (face, clean))
    error = np.square(a - b).mean()
    return 20 * math.log10(255 / math.sqrt(error)) if error else math.inf


def regular_share(face: Face) -> float:
    """The share of fine detail that is a regular pattern, such as a weave; see `regularity`."""
    with inference():
        return float(regularity(to_tensor(face[None])))


def load_ssim() -> Callable[[Face, Face], float]:
    """Loads structural similarity (SSIM) within the border, averaged over RGB, from scikit-image.

    Raises:
        ConfigError: scikit-image is not installed.
    Source: the published evaluation: Gaussian window of 11x11 with sigma 1.5.
    """
    require("skimage.metrics", extra="eval")
    from skimage.metrics import structural_similarity

    def ssim(face: Face, clean: Face) -> float:
        return float(
            structural_similarity(
                _within(clean),
                _within(face),
                channel_axis=2,
                data_range=255,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
        )

    return ssim


def gradient(face: Face) -> float:
    """Mean gradient magnitude (Sobel, luma) in the face's ellipse."""
    luma = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32)
    dx, dy = (cv2.Sobel(luma, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    return float(np.hypot(dx, dy)[face_ellipse(len(face))].mean())


def mean_colour(face: Face) -> NDArray[np.float64]:
    """Mean L, a and b (CIE, D65) in the face's ellipse."""
    lab = cv2.cvtColor(face.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return np.asarray(lab[face_ellipse(len(face))].mean(0, dtype=np.float64))


def _within(face: Face) -> Face:
    return face[BORDER:-BORDER, BORDER:-BORDER]
