"""Synthetic damage, batched: blur, downsampling, noise and JPEG on the device of the faces.

The strength is drawn for each face of a batch. To allow a different size for each face, bilinear
resizing is a matrix product, so that nothing loops over faces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from cfrestore.part import Part

Range = tuple[float, float]


@dataclass(frozen=True)
class Degradation:
    """Ranges of the synthetic damage; each value is drawn uniformly for each face.

    Attributes:
        blur_sigma: sigma of the Gaussian blur, pixels.
        downsample: factor by which the side shrinks.
        noise: standard deviation of the Gaussian noise, in 1/255.
        jpeg_quality: 1 to 100.
        kernel_size: side of the blur kernel, pixels, odd.
    """

    blur_sigma: Range
    downsample: Range
    noise: Range
    jpeg_quality: Range
    kernel_size: int = 41

    def scaled(self, image_size: int) -> Degradation:
        """The same damage for faces of a side other than 512 px; only the blur depends on it."""
        factor = image_size / 512
        low, high = self.blur_sigma
        kernel = max(3, round(self.kernel_size * factor) // 2 * 2 + 1)
        return replace(self, blur_sigma=(low * factor, high * factor), kernel_size=kernel)


SMALL = Degradation((0.1, 10), (1, 12), (0, 15), (60, 100))
MILD = Degradation((0.1, 3), (1, 3), (0, 8), (50, 100))
LARGE = Degradation((1, 15), (4, 30), (0, 20), (30, 80))
PAPER = Degradation((1, 15), (1, 30), (0, 20), (30, 90))

# ITU-T T.81, tables K.1 and K.2.
_LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
_TO_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)
_TO_RGB = tuple(map(tuple, torch.linalg.inv(torch.tensor(_TO_YCBCR)).tolist()))
_BLOCK = 16  # two 8x8 blocks: chroma is stored at half size


@torch.no_grad()
def degrade(
    images: Tensor, damage: Degradation, generator: torch.Generator, part: Part | None = None
) -> Tensor:
    """Damages faces.

    Args:
        images: (B,3,S,S) float32 RGB in [0, 1].
        damage: the ranges to draw from, in pixels of S (see `Degradation.scaled`).
        generator: on the images' device; the same state gives the same result.
        part: which part of a batch the images are. Random numbers are drawn for the whole batch, so
            that the number of processes changes no result. None: this process's part.
    Returns:
        (B,3,S,S) float32 in [0, 1], multiples of 1/255.
    Source: the published training: Resize_S(JPEG_q(clip(Resize_{S/r}(x * k) + n))).
    """
    batch, _, size, _ = images.shape
    device = images.device
    part = Part.own(batch) if part is None else part
    if not batch:  # random numbers are drawn all the same, so that all processes stay in step
        degrade(
            images.new_zeros(1, 3, size, size), damage, generator, Part(part.whole, 0, part.whole)
        )
        return images

    def draw(bounds: Range) -> Tensor:
        low, high = bounds
        drawn = part.of(torch.rand(part.whole, generator=generator, device=device))
        return low + (high - low) * drawn

    x = blur(images, part.of(gaussian_kernels(damage, part.whole, generator, device)))
    sides = (size / draw(damage.downsample)).long().clamp_(1, size)  # (B,)
    largest = min(size, int(size / damage.downsample[0]))  # reading `sides` would wait for the GPU
    canvas = -(-largest // _BLOCK) * _BLOCK
    shrink = resize_matrix(torch.full_like(sides, size), sides, size, canvas)
    x = _resize(x, shrink)

    # Positions past a face's own side repeat its last row and column, noise included, like the
    # padding of a JPEG encoder; noise of the full size is independent of the batch's sizes.
    shape = (part.whole, *images.shape[1:])
    noise = part.of(torch.randn(shape, generator=generator, device=device))
    inside = torch.arange(canvas, device=device).expand(batch, -1).clamp(max=sides[:, None] - 1)
    rows = inside[:, None, :, None].expand(-1, 3, -1, size)
    noise = noise.gather(2, rows).gather(3, inside[:, None, None].expand(-1, 3, canvas, -1))
    x = (x + noise * (draw(damage.noise) / 255)[:, None, None, None]).clamp_(0, 1)

    x = jpeg(x, draw(damage.jpeg_quality).floor())
    x = _resize(x, resize_matrix(sides, torch.full_like(sides, size), canvas, size))
    return x.mul_(255).round_().clamp_(0, 255).div_(255)


def gaussian_kernels(
    damage: Degradation, count: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Draws blur kernels (count,k,k) of sum 1, isotropic or anisotropic with equal probability."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, device=device)

    round_ = uniform(0, 1) < 0.5
    sigma_x = uniform(*damage.blur_sigma)
    sigma_y = torch.where(round_, sigma_x, uniform(*damage.blur_sigma))
    angle = uniform(-math.pi, math.pi)
    radius = damage.kernel_size // 2
    offset = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    y, x = torch.meshgrid(offset, offset, indexing="ij")
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    # v^T Sigma^-1 v in the axes of the ellipse
    along = (cos * x + sin * y) / sigma_x[:, None, None]
    across = (cos * y - sin * x) / sigma_y[:, None, None]
    kernel = torch.exp(-0.5 * (along.square() + across.square()))
    return kernel / kernel.sum((1, 2), keepdim=True)


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Filters each image (B,C,H,W) with its own kernel (B,k,k); borders are reflected."""
    batch, channels, height, width = images.shape
    radius = kernels.shape[-1] // 2
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    stacked = padded.transpose(0, 1).reshape(channels, batch, *padded.shape[2:])
    blurred = F.conv2d(stacked, kernels[:, None], groups=batch)  # one group per face
    return blurred.reshape(channels, batch, height, width).transpose(0, 1)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blurs images (B,C,H,W) by a Gaussian of sigma pixels; borders are reflected."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    bump = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = torch.outer(bump, bump) / bump.sum() ** 2
    return blur(images, kernel.expand(len(images), -1, -1))


def resize_matrix(source: Tensor, target: Tensor, columns: int, rows: int) -> Tensor:
    """Matrices for bilinear resizing of one axis, without anti-aliasing, as in OpenCV.

    Args:
        source, target: (B,) int64, number of valid positions before and after.
        columns, rows: size of each matrix; rows past the target repeat the last valid one.
    Returns:
        (B, rows, columns) float32.
    """
    index = torch.arange(rows, device=source.device).minimum(target[:, None] - 1)  # (B, rows)
    position = (index + 0.5) * (source / target)[:, None] - 0.5
    position = position.clamp(min=0).minimum((source - 1)[:, None].float())
    at = torch.arange(columns, device=source.device)
    return (1 - (position[..., None] - at).abs()).clamp_(min=0)


def _resize(images: Tensor, matrix: Tensor) -> Tensor:
    rows = matrix[:, None]  # (B, 1, out, in)
    return rows @ images @ rows.mT


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Applies baseline JPEG compression with 4:2:0 chroma, and decompression.

    Args:
        images: (B,3,H,W) RGB in [0, 1]; H and W are multiples of 16.
        quality: (B,) in [1, 100], converted to tables as in libjpeg.
    Returns:
        (B,3,H,W) in [0, 1], multiples of 1/255.
    """
    device = images.device
    to_ycbcr = _constant(_TO_YCBCR, device)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None, None]

    def table(values: tuple[tuple[int, ...], ...]) -> Tensor:
        return ((_constant(values, device) * scale + 50) / 100).floor().clamp_(1, 255)

    ycbcr = torch.einsum("ij,bjhw->bihw", to_ycbcr, (images * 255).round())
    luma = _quantise_blocks(ycbcr[:, :1] - 128, table(_LUMA_TABLE)) + 128
    chroma = _quantise_blocks(F.avg_pool2d(ycbcr[:, 1:], 2).round(), table(_CHROMA_TABLE))
    chroma = F.interpolate(chroma, scale_factor=2.0, mode="bilinear", align_corners=False)
    decoded = torch.cat((luma, chroma), dim=1)
    rgb = torch.einsum("ij,bjhw->bihw", _constant(_TO_RGB, device), decoded)
    return rgb.round().clamp(0, 255) / 255


@cache
def _constant(values: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """The values on the device, cached, because copying them each time would wait for the GPU."""
    return torch.tensor(values, device=device, dtype=torch.float32)


def _quantise_blocks(planes: Tensor, table: Tensor) -> Tensor:
    """Quantises planes (B,C,H,W) in their 8x8 cosine transform by table (B,8,8)."""
    batch, channels, height, width = planes.shape
    n = torch.arange(8, device=planes.device, dtype=torch.float32)
    dct = torch.cos(math.pi / 8 * (n + 0.5) * n[:, None]) / 2
    dct[0] /= math.sqrt(2)
    blocks = planes.reshape(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    step = table[:, None, None, None]
    coefficients = (dct @ blocks @ dct.T / step).round() * step
    blocks = (dct.T @ coefficients @ dct).round()
    return blocks.transpose(3, 4).reshape(batch, channels, height, width)
