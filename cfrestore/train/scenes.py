"""Drawn pictures: leaves, shapes, stripes, text and textures, for what faces do not show."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from cfrestore.train.data import Faces

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float32]

LETTERS = np.array(
    list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;!?&%()/")
)
FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_PLAIN,
)


def draw_scenes(count: int, side: int, seed: int) -> Faces:
    """Pictures of layers, each a paint seen through a stencil; the same for the same seed.

    Args:
        side: of the pictures, pixels.
    Returns:
        `count` pictures, called scene00000 and so on.
    """
    images = torch.empty(count, 3, side, side, dtype=torch.uint8)
    for n in range(count):
        images[n] = torch.from_numpy(draw_scene(side, np.random.default_rng((seed, n))))
    return Faces(images, tuple(f"scene{n:05d}" for n in range(count)))


def draw_scene(side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One picture, (3, side, side) RGB; two of three are of leaves, with little else."""
    bare = rng.random() < 1 / 3
    canvas = _paint(side, rng) if bare else _leaves(side, rng)
    for _ in range(rng.integers(3, 16) if bare else rng.integers(0, 4)):
        opacity = _stencil(side, rng) * rng.uniform(0.4, 1)
        canvas += opacity * (_paint(side, rng) - canvas)
    return np.rint(canvas.clip(0, 1) * 255).astype(np.uint8)


def _leaves(side: int, rng: np.random.Generator) -> Values:
    """(3, side, side): leaves of all sizes that cover one another, in a few colours, with texture.

    Source: the dead leaves model (Matheron, 1968), whose statistics are like those of photographs.
        Restoring networks trained on such pictures alone come near to others (Achddou et al.,
        "Synthetic images as a regularity prior for image restoration", 2021).
    """
    ground = _paint(side, rng).clip(0, 1).transpose(1, 2, 0)
    canvas = np.ascontiguousarray(np.rint(ground * 255), np.uint8)
    count = int(side * side / rng.uniform(15, 200))
    smallest, largest = rng.uniform(0.8, 4), side / rng.uniform(2, 8)
    # The density of leaves falls with the third power of their radius.
    span = 1 - (smallest / largest) ** 2
    radii = smallest / np.sqrt(1 - span * rng.random(count))
    # A few large leaves come first, so that small ones lie on them.
    radii[: count // 50] = largest * rng.uniform(0.3, 1, count // 50)
    palette = np.stack([_colour(rng).ravel() for _ in range(rng.integers(2, 7))])
    palette = palette.mean(0) + rng.uniform(0.2, 1) * (palette - palette.mean(0))
    colours = palette[rng.integers(len(palette), size=count)] + rng.normal(0, 0.03, (count, 3))
    colours = (colours + rng.normal(0, 0.08, (count, 1))).clip(0, 1) * 255
    middles = rng.uniform(-largest / 2, side + largest / 2, (count, 2))
    stretches, angles = rng.uniform(0.3, 1, count), rng.uniform(0, 180, count)
    corners = rng.choice((3, 4, 5, 12), count)
    for n in range(count):
        axes = 256, int(256 * stretches[n])
        step = 360 // int(corners[n])
        outline = np.asarray(cv2.ellipse2Poly((0, 0), axes, int(angles[n]), 0, 359, step)) / 256
        place = np.rint((outline * radii[n] + middles[n]) * 16).astype(np.int32)  # sixteenths
        cv2.fillConvexPoly(canvas, place, colours[n].tolist(), cv2.LINE_AA, 4)
    texture = rng.uniform(0, 0.3) * (_noise(side, rng) - 0.5)
    return np.asarray(canvas.transpose(2, 0, 1) / 255 + texture, np.float32)


def _paint(side: int, rng: np.random.Generator) -> Values:
    """(3, side, side): two colours, mixed evenly, by a gradient, in stripes or by noise."""
    first, second = _colour(rng), _colour(rng)
    mixture: Values = np.zeros((side, side), np.float32)
    match rng.integers(7):
        case 0 | 1:
            pass
        case 2:
            mixture = np.asarray(_ramp(side, rng) / side % 1, np.float32)
        case 3:
            wave = np.sin(_ramp(side, rng) * (2 * math.pi / rng.uniform(2.5, 24)))
            mixture = 0.5 + 0.5 * (wave * rng.choice((1, 8))).clip(-1, 1)  # sines or bars
        case _:
            second = first + rng.uniform(0.1, 1) * (second - first)
            mixture = _noise(side, rng)
    return np.asarray(first + mixture * (second - first), np.float32)


def _colour(rng: np.random.Generator) -> Values:
    """(3, 1, 1) in [0, 1], more often dull than bright."""
    gray, saturation = rng.random(), rng.random() ** 2
    colour = gray + saturation * (rng.random((3, 1, 1)) - gray)
    return np.asarray(colour, np.float32)


def _ramp(side: int, rng: np.random.Generator) -> Values:
    """Distance in pixels along a random direction, straight or slightly curved."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    angle, bend = rng.uniform(0, 2 * math.pi), rng.choice((0, 0, 1)) * rng.uniform(-2, 2) / side
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    return np.asarray(along + bend * across**2 + side * rng.random(), np.float32)


def _noise(side: int, rng: np.random.Generator) -> Values:
    """Noise of spectrum 1/f^a around 0.5, as of clouds (a = 2) or grass (a = 1)."""
    stretch = rng.choice((1, 1, 3))  # threefold in one direction, as of hair
    frequency = np.hypot(np.fft.fftfreq(side)[:, None] * stretch, np.fft.rfftfreq(side))
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.normal(size=(side, side))) / frequency ** rng.uniform(0.6, 2)
    spectrum[0, 0] = 0
    values = np.fft.irfft2(spectrum, (side, side))
    return np.asarray(0.5 + 0.25 * values / values.std(), np.float32)


def _stencil(side: int, rng: np.random.Generator) -> Values:
    """Opacity (side, side) of a shape with smooth edges."""
    mask = np.zeros((side, side), np.uint8)
    low, high = -side // 8, side + side // 8
    points = rng.integers(low, high, (rng.integers(3, 7), 2)).astype(np.int32)
    middle, end = tuple(points[0].tolist()), tuple(points[1].tolist())
    match rng.integers(6):
        case 0:
            cv2.fillPoly(mask, [points], 255, cv2.LINE_AA)
        case 1:
            axes = tuple(rng.integers(3, side // 3, 2).tolist())
            thickness = int(rng.choice((-1, 1, 2, 4)))
            cv2.ellipse(
                mask, middle, axes, rng.uniform(0, 180), 0, 360, 255, thickness, cv2.LINE_AA
            )
        case 2:
            for point in points[1:].tolist():  # twigs
                cv2.line(mask, middle, tuple(point), 255, int(rng.integers(1, 5)), cv2.LINE_AA)
        case 3:
            cv2.rectangle(mask, middle, end, 255, int(rng.choice((-1, 2, 5))), cv2.LINE_AA)
        case 4:
            cv2.polylines(mask, [points], True, 255, int(rng.integers(1, 9)), cv2.LINE_AA)
        case _:
            _write(mask, rng)
    return mask.astype(np.float32) / np.float32(255)


def _write(mask: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Lines of random letters."""
    side = len(mask)
    font, size = FONTS[rng.integers(len(FONTS))], rng.uniform(0.35, 1.6)
    left, top = rng.integers(-side // 8, side // 2, 2).tolist()
    for line in range(rng.integers(1, 6)):
        words = "".join(rng.choice(LETTERS, rng.integers(3, 24)))
        origin = (left, int(top + 20 + 36 * size * line))
        cv2.putText(mask, words, origin, font, size, 255, int(rng.integers(1, 4)), cv2.LINE_AA)
