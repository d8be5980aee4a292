"""Measures how sharp a large face is in its photograph: (pixels, AlignedFace) -> Detail. No torch.

A face that spans more pixels than the crop a network restores has detail that the network can
neither see nor paint. It is worth keeping if it is real sharpness, not if it is noise, or almost
nothing because the photograph is blurred. The octave just finer than the crop tells these apart:

- Blur: in sharp photographs each octave has about the energy of the next (Field, "Relations between
  the statistics of natural images and the response properties of cortical cells", 1987); in blurred
  ones the finer octave has less. The finer octave is compared with the stronger of the next two,
  because in a picture that was enlarged and then saved as JPEG, or in a frame of a video, the two
  finest octaves hold hardly more than coding artefacts, of similar energy in both.
- Noise: detail is strong in few places, such as lashes and hair, while noise is the same
  everywhere, so the median shows the level of the noise (Donoho and Johnstone, "Ideal spatial
  adaptation by wavelet shrinkage", 1994).

The energy around a pixel and the level of the noise decide what is kept there (Lee, "Digital image
enhancement and noise filtering by use of local statistics", 1980).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np

from cfrestore.align import cut_finely, face_ellipse, rescale
from cfrestore.select import SkippedFace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cfrestore.align import AlignedFace
    from cfrestore.image import Pixels
    from cfrestore.options import MaxFace

_Depth = TypeVar("_Depth", np.uint8, np.float32)

LARGE_FROM = 1.25
"""Photograph pixels per crop pixel above which a loss of detail is visible."""

SHARP_FROM = 0.055
"""Sharpness from which a large face is better left alone; found by benchmarks/large_faces.py."""

SIGNAL_FROM = 0.3
"""Least share of a sharp face's detail that is not noise; halftone dots of prints have less."""

TOO_SHARP = "sharper than the network paints"

_REACH = 3 / 256  # of an octave's side: sigma of the Gaussian by which energy is averaged
_LEAST_PART = 0.5  # of the finer octave: filters pass this much even if it is hardly resolved
_LEAST = 1e-6  # energy, prevents division by 0
_NORMAL_MEDIAN = 0.6745  # median magnitude of a standard normal variable


@dataclass(frozen=True, eq=False)
class Detail:
    """The detail of a face that is finer than its crop.

    Attributes:
        sharpness: energy of the octave just finer than the crop, without noise, divided by the
            energy expected of it: that of the stronger of the crop's two finest octaves, or less if
            the photograph resolves only part of the octave. 0 if all is blur or noise, about 0.1 in
            a sharp photograph.
        share: part of the finer octave's energy that is not noise, in [0, 1].
        kept: (S, S) float32 in [0, 1], the share worth keeping at each pixel of the crop.
    """

    sharpness: float
    share: float
    kept: NDArray[np.float32]

    @property
    def sharp(self) -> bool:
        """Whether the photograph is sharper than the crop can be."""
        return self.sharpness >= SHARP_FROM and self.share >= SIGNAL_FROM


def measure_detail(pixels: Pixels, aligned: AlignedFace) -> Detail | None:
    """Measures the detail of a face that the photograph shows but its crop does not, in brightness.

    Args:
        pixels: (H, W, 3) uint8 or uint16 RGB, the picture in which the face was aligned.
        aligned: crop (S, S, 3).
    Returns:
        the detail, or None if the photograph has no more pixels than the crop.
    """
    octaves = math.log2(aligned.shrink)
    if octaves <= 0:
        return None
    size = aligned.crop.shape[0]
    cut = cut_finely(pixels, rescale(aligned.to_crop, 2), 2 * size)
    octave = finest_octave(cut)
    crop = _halve(cut)
    coarser = max(_energy(within_face(finest_octave(part))) for part in (crop, _halve(crop)))
    energy, noise = _energy(within_face(octave)), noise_energy(octave)
    detail = max(0.0, energy - noise)
    expected = coarser * min(1.0, max(_LEAST_PART, octaves))
    return Detail(
        sharpness=detail / expected if expected > 0 else 0.0,
        share=detail / energy if energy > 0 else 0.0,
        kept=_halve(signal_share(octave, noise)),
    )


def weigh(
    pixels: Pixels, max_face: MaxFace, aligned: Sequence[AlignedFace]
) -> list[AlignedFace | SkippedFace]:
    """The same faces; large ones keep some of their detail, or are skipped if that is too sharp."""
    weighed: list[AlignedFace | SkippedFace] = []
    for face in aligned:
        detail = measure_detail(pixels, face)
        if detail is None:
            weighed.append(face)
        elif max_face == "auto" and face.shrink > LARGE_FROM and detail.sharp:
            weighed.append(SkippedFace(face.face, TOO_SHARP))
        else:
            weighed.append(replace(face, kept=detail.kept))
    return weighed


def finest_octave(crop: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The part of a brightness image (T, T) that is lost at half its side.

    Args:
        crop: (T, T), T even.
    """
    size = crop.shape[0]
    image = crop.astype(np.float32)
    coarse = cv2.resize(_halve(image), (size, size), interpolation=cv2.INTER_CUBIC)
    return np.asarray(image - coarse, np.float32)


def noise_energy(octave: NDArray[np.float32]) -> float:
    """Energy of the noise in an octave (T, T) of an aligned face.

    Source: Donoho and Johnstone (1994): the median is that of noise alone, since detail is sparse.
    """
    return (float(np.median(np.abs(within_face(octave)))) / _NORMAL_MEDIAN) ** 2


def signal_share(octave: NDArray[np.float32], noise: float) -> NDArray[np.float32]:
    """The share of an octave (T, T) that is not noise, at each pixel: (T, T) in [0, 1].

    Args:
        noise: energy of the octave's noise, see `noise_energy`.
    Source: Lee (1980).
    """
    around = cv2.GaussianBlur(np.square(octave), (0, 0), _REACH * len(octave))
    return (1 - noise / np.maximum(around, _LEAST)).clip(0, 1)


def within_face(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The pixels (N,) of a crop (T, T) that show the face."""
    return np.asarray(image[face_ellipse(len(image))], np.float32)


def _halve(image: NDArray[_Depth]) -> NDArray[_Depth]:
    half = image.shape[0] // 2
    return np.asarray(cv2.resize(image, (half, half), interpolation=cv2.INTER_AREA), image.dtype)


def _energy(values: NDArray[np.float32]) -> float:
    return float(np.mean(np.square(values)))
