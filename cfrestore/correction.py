"""Corrects a painted face by the crop that it was painted from. No torch.

The network paints what is likely. Where the photograph shows something else, the photograph wins:
in colours and light, in structure that its blur has not removed, and in being gray or toned.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from cfrestore.detail import noise_energy, signal_share, within_face
from cfrestore.image import brightness_of, match_statistics, to_gray

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cfrestore.models.codeformer import CodeFormerConfig

_LOW = 1 / 10  # of a crop's side: sigma of the Gaussian that leaves colours and light
_RIM = 1 / 64  # of a crop's side: width in which the original fades in
_KEPT = 0.9  # share of the original's low frequencies in a restored crop
_TONED = 2.0  # levels, RMS: least deviation from a tone that is colour; scans have 1, photos 10
_DIM = 128.0  # mean level below which _TONED shrinks, as colours do in too little light
_OCTAVES = (1 / 256, 2 / 256)  # of a crop's side: sigmas that remove one octave, and two
_BLURS = tuple(2 ** (k / 2) / 512 for k in range(10))  # of a crop's side: sigmas to choose from
_SHARP = 2 / 256  # of a crop's side: blur up to which the original has its full share
_HUES = 6 / 256  # of a crop's side: least sigma of the blur of the colours that `keep_hues` takes
_SMOOTH = 1.5 / 256  # of a crop's side: sigma of the blur of the colours that `mix_in` adds
_REGAIN = 1.2  # exponent of the ratio of contrasts; with 1, only four fifths of a loss is regained
_WIDE = 3.0  # pixels: sigma from which a blur costs less by cosine transforms
_LEAST = 1e-6  # levels, prevents division by 0


def correct(
    crop: NDArray[np.uint8],
    original: NDArray[np.uint8],
    *,
    fidelity: float,
    config: CodeFormerConfig,
    gray: bool,
) -> NDArray[np.uint8]:
    """Corrects the painted crop by the original, as the network's configuration requires.

    Args:
        crop, original: (S, S, 3) uint8.
        fidelity: the w that the crop was painted with.
        config: the network's, see `keep_colours` and `back_projection` there.
        gray: whether the picture is gray. Then the result is too, with the original's tint; without
            `config.keep_colours`, which keeps the light, it also gets the original's brightness and
            contrast. An original with a tone instead of colours gives it to the result in any case,
            see `tone_of`.
    """
    if config.keep_colours:
        crop = keep_colours(crop, original)
        crop = keep_hues(crop, original)
        crop = keep_rim(crop, original)
    if strength := config.back_projection:
        crop = back_project(crop, original, strength)
        crop = mix_in(crop, original, strength * math.sqrt(fidelity))
    if gray and not config.keep_colours:
        return _like_gray(crop, original)
    tone = tone_of(original, certain=gray)
    return crop if tone is None else _to_levels(_powers(brightness_of(crop)) @ tone)


def tone_of(crop: NDArray[np.uint8], *, certain: bool = False) -> NDArray[np.float64] | None:
    """The tone that a crop has instead of colours, such as that of sepia or yellowed paper.

    In such a crop each channel is a function of brightness, fitted here by a parabola. The crop is
    blurred first, so that noise does not count as colour.

    Args:
        crop: (S, S, 3).
        certain: the crop is known to have no colours, however much it deviates from a tone.
    Returns:
        (3, 3), rows for the powers 0, 1 and 2 of brightness, columns for channels; None if the
        crop has colours.
    """
    seen = _blur(crop.astype(np.float32), 1 / 64)[::4, ::4].reshape(-1, 3)
    brightness = brightness_of(seen)
    powers = _powers(brightness)
    tone: NDArray[np.float64] = np.linalg.lstsq(powers, seen, rcond=None)[0]
    limit = _TONED * min(1.0, float(brightness.mean()) / _DIM)
    return tone if certain or np.square(seen - powers @ tone).mean() <= limit**2 else None


def _powers(brightness: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.ones_like(brightness), brightness, np.square(brightness)], -1)


def keep_colours(crop: NDArray[np.uint8], original: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Takes nine tenths of the low frequencies from the original, to keep colours and light.

    Degradation leaves low frequencies nearly intact, and restoration adds high ones. A tenth is
    left to the network, whose errors differ from the original's.

    Args:
        crop, original: (S, S, 3) uint8.
    Source: the colour fix of Wang et al., "Exploiting Diffusion Prior for Real-World Image
    Super-Resolution" (2023), with one Gaussian of S / 10 instead of wavelets.
    """
    low = _blur(original.astype(np.float32) - crop, _LOW)
    return _to_levels(crop + _KEPT * low)


def keep_hues(crop: NDArray[np.uint8], original: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Takes colours of small areas, such as lips, from the original; less, the more it is blurred.

    Colours vary more coarsely than structure, so more of them survives the blur. The difference in
    colour is blurred, since noise and JPEG leave blotches. Brightness is not changed.

    Args:
        crop, original: (S, S, 3) uint8.
    """
    painted, seen = _brightness(crop), _brightness(original)
    blur = _blur_between(painted, seen)
    share = _KEPT * min(1.0, _SHARP / blur) ** 2
    colour = original.astype(np.float32) - crop - (seen - painted)[..., None]
    return _to_levels(crop + share * _blur(colour, max(_HUES, 3 * blur)))


def keep_rim(crop: NDArray[np.uint8], original: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fades the crop into the original at its border.

    Networks paint spots there, most of all in the corners, because convolutions are padded.

    Args:
        crop, original: (S, S, 3) uint8.
    """
    place = np.arange(len(crop), dtype=np.float32) + 0.5
    ramp = (np.minimum(place, place[::-1]) / (_RIM * len(crop))).clip(0, 1)
    opacity = np.multiply.outer(ramp, ramp)[..., None]
    return _to_levels(original + opacity * (crop.astype(np.float32) - original))


def back_project(
    crop: NDArray[np.uint8], original: NDArray[np.uint8], strength: float
) -> NDArray[np.uint8]:
    """Changes the crop so that, if blurred like the original, it would look like the original.

    The blur is estimated as the Gaussian that brings the crop nearest to the original. The
    remaining difference is structure that the network painted differently from the original. It is
    denoised, blurred once more and added. This changes brightness only, since the colours of
    degraded pictures are noisy, and leaves out the low frequencies, which `keep_colours` sets.

    Args:
        crop, original: (S, S, 3) uint8.
        strength: share of the difference that is added, in [0, 1].
    Returns:
        (S, S, 3) uint8; details finer than the blur are the crop's.
    Source: one step of iterative back-projection, Irani & Peleg, "Improving Resolution by Image
    Registration" (1991), with the estimated blur and its adjoint; denoised as in `detail`.
    """
    painted, seen = _brightness(crop), _brightness(original)
    blur = _blur_between(painted, seen)
    missed = seen - _blur(painted, blur)
    missed -= _blur(missed, _LOW)
    return _to_levels(crop + strength * _blur(_denoised(missed), blur)[..., None])


def mix_in(
    crop: NDArray[np.uint8], original: NDArray[np.uint8], strength: float
) -> NDArray[np.uint8]:
    """Mixes the original into the crop, more of it the sharper it is, and restores the contrast.

    A blurred original adds little to what `back_project` has brought already, and would be a haze
    over the face. A sharp one shows the person better than any network. The difference in
    brightness is denoised. The difference in colour is added by the square of the share only, since
    JPEG leaves blotches of colour. Mixing lowers the contrast of structure finer than the blur;
    unsharp masking brings it back to the crop's.

    Args:
        crop, original: (S, S, 3) uint8.
        strength: share of the original in the mixture, in [0, 1], if it is not blurred.
    Returns:
        (S, S, 3) uint8.
    """
    painted, seen = _brightness(crop), _brightness(original)
    blur = _blur_between(painted, seen)
    share = strength * min(1.0, _SHARP / blur)
    missed = seen - painted
    colour = original.astype(np.float32) - crop - missed[..., None]
    mixed = painted + share * _denoised(missed)
    wanted, found = painted - _blur(painted, blur), mixed - _blur(mixed, blur)
    spread = [max(_LEAST, float(within_face(each).std())) for each in (wanted, found)]
    mixed += max(0.0, (spread[0] / spread[1]) ** _REGAIN - 1) * found
    return _to_levels(crop + (mixed - painted)[..., None] + share**2 * _blur(colour, _SMOOTH))


def _brightness(crop: NDArray[Any]) -> NDArray[np.float32]:
    """The brightness (S, S) of a crop (S, S, 3)."""
    return brightness_of(crop).astype(np.float32)


def _blur_between(sharp: NDArray[np.float32], blurred: NDArray[np.float32]) -> float:
    """Sigma / S of the Gaussian that brings the sharp picture (S, S) nearest to the blurred one.

    The errors around the best sigma of _BLURS are interpolated by a parabola, so that the result
    does not jump between the frames of a video.
    """
    response = _responses(len(sharp), _BLURS)  # (K, S)
    spectrum, wanted = (cv2.dct(each).astype(np.float64) for each in (sharp, blurred))
    spectrum[0, 0] = wanted[0, 0] = 0  # means, which no blur changes
    # The squared differences by Parseval's theorem, without those of wanted alone.
    power, common = response**2 @ spectrum**2, response @ (spectrum * wanted)
    errors = (power * response**2 - 2 * common * response).sum(1)
    best = 1 + int(errors[1:-1].argmin())
    before, least, after = errors[best - 1 : best + 2]
    bend = before - 2 * least + after
    step = (before - after) / (2 * bend) if bend > 0 else 0.0
    return float(_BLURS[best] * 2 ** (min(1.0, max(-1.0, step)) / 2))


def _denoised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weakens the two finest octaves of an image (S, S) where they are hardly more than noise."""
    result, finer = np.zeros_like(values), values
    for sigma in _OCTAVES:
        coarser = _blur(values, sigma)
        octave = finer - coarser
        result += signal_share(octave, noise_energy(octave)) * octave
        finer = coarser
    return result + finer


def without_colours(crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The crop (S, S, 3) in gray, of the same brightness."""
    return _to_levels(to_gray(crop))


def _like_gray(crop: NDArray[np.uint8], original: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The crop in gray, with the original's statistics and so its tint."""
    return _to_levels(match_statistics(to_gray(crop), original))


def _blur(values: NDArray[Any], sigma: float) -> NDArray[Any]:
    """A Gaussian blur of an image (S, S) or (S, S, 3); sigma is a fraction of the side.

    Beyond its border the image is reflected, the outermost pixels repeated.
    """
    pixels = sigma * len(values)
    if pixels < _WIDE:
        blurred = cv2.GaussianBlur(values, (0, 0), pixels, borderType=cv2.BORDER_REFLECT)
        return np.asarray(blurred)
    response = _responses(len(values), (sigma,))[0].astype(np.float32)
    share = np.multiply.outer(response, response)
    planes = [cv2.idct(cv2.dct(plane) * share) for plane in cv2.split(values)]
    return np.asarray(cv2.merge(planes)) if values.ndim == 3 else planes[0]


@lru_cache(maxsize=64)
def _responses(side: int, sigmas: tuple[float, ...]) -> NDArray[np.float64]:
    """Frequency responses of Gaussian blurs along an axis, for the frequencies of `cv2.dct`.

    Args:
        side: S, in pixels.
        sigmas: K fractions of the side, at most an eighth.
    Returns:
        (K, S), read-only.
    """
    kernels = np.zeros((len(sigmas), 2 * side))
    for kernel, sigma in zip(kernels, sigmas, strict=True):
        reach = min(side - 1, math.ceil(4 * sigma * side))
        half = cv2.getGaussianKernel(2 * reach + 1, sigma * side)[reach:, 0]
        kernel[: reach + 1] = half
        kernel[-reach:] = half[:0:-1]
    responses = np.fft.rfft(kernels).real[:, :side]
    responses.flags.writeable = False
    return responses


def _to_levels(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.rint(values.clip(0, 255)).astype(np.uint8)
