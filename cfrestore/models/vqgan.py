"""The autoencoder with a discrete codebook (VQGAN) with which CodeFormer restores faces.

Attribute names are the published checkpoints' keys (`encoder.blocks.N`, `quantize.embedding`,
`generator.blocks.N`, ...), so that a strict load needs no translation.

Shapes: B batch, S image side, s side of the code grid, d latent channels, K codebook size.
Source: Esser et al., "Taming Transformers for High-Resolution Image Synthesis" (CVPR 2021), in the
variant of Zhou et al. (NeurIPS 2022): no activation before the last convolutions, no 1x1
convolutions around the quantiser.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from cfrestore.errors import ConfigError
from cfrestore.models.enlarge import enlarge, enlarging_kernel

NORM_EPS = 1e-6


@dataclass(frozen=True)
class VQGANConfig:
    """Configuration of the autoencoder; the defaults are the published 512 px model.

    Attributes:
        image_size: S, side of input and output in pixels.
        base_channels: channels at full resolution.
        channel_multipliers: one per level, finest first; every level but the last halves the side.
        res_blocks: residual blocks per level, in the encoder and in the generator.
        attention_sides: feature sides at which each residual block is followed by attention.
        norm_groups: groups of every group normalisation; must divide every channel count.
        latent_channels: d, width of latent and codes.
        codebook_size: K, number of codes.

    Raises:
        ConfigError: the values are inconsistent.
    """

    image_size: int = 512
    base_channels: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4, 4, 8)
    res_blocks: int = 2
    attention_sides: tuple[int, ...] = (16,)
    norm_groups: int = 32
    latent_channels: int = 256
    codebook_size: int = 1024

    def __post_init__(self) -> None:
        if self.image_size % 2 ** (len(self.channel_multipliers) - 1):
            raise ConfigError(
                f"image_size must be divisible by {2 ** (len(self.channel_multipliers) - 1)}, "
                f"found {self.image_size}"
            )
        for channels in self.level_channels:
            if channels % self.norm_groups:
                raise ConfigError(
                    f"norm_groups must divide every level's channels {self.level_channels}, "
                    f"found {self.norm_groups}"
                )

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.base_channels * m for m in self.channel_multipliers)

    @property
    def level_sides(self) -> tuple[int, ...]:
        """Feature side of each level in pixels, finest first."""
        return tuple(self.image_size >> level for level in range(len(self.channel_multipliers)))

    @property
    def code_side(self) -> int:
        """s, side of the code grid."""
        return self.level_sides[-1]


class GroupNorm(nn.GroupNorm):
    """Group normalisation with accurate statistics in channels-last memory too.

    On the CPU torch 2.14 adds up such a map value by value, which costs four digits at 512 px. So,
    outside training, each row is averaged first, and then the rows' averages. On other devices, at
    any precision, this saves two reorderings of the map. On the CPU below float32, torch's kernel
    is used instead, which is ten times as fast.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(groups, channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_fused(x):
            return self.fused(x, silu=False)
        last = x.is_contiguous(memory_format=torch.channels_last)
        if torch.is_grad_enabled() or not last or (x.is_cpu and x.dtype != torch.float32):
            return super().forward(x)
        rows = x.permute(0, 2, 3, 1).float()  # (B, H, W, C)
        squares = (part.square().mean(2) for part in rows.split(64, 1))  # saves a map of memory
        mean, power = (
            self._over_groups(means) for means in (rows.mean(2), torch.cat((*squares,), 1))
        )
        # y = (x - mean) / sqrt(variance) * weight + bias
        scale = self.weight * (power - mean.square() + self.eps).rsqrt()  # (B, C)
        shift = self.bias - mean * scale
        return torch.addcmul(shift[..., None, None], x, scale[..., None, None]).to(x.dtype)

    @staticmethod
    def is_fused(x: Tensor) -> bool:
        """Whether the device and memory order of x suit the kernels of `fused`.

        Compiled networks use them too, so that torch compiles only the steps around them, but not
        in training.
        """
        if not (x.is_cuda and x.is_contiguous(memory_format=torch.channels_last)):
            return False
        if torch.compiler.is_compiling():
            return not torch.is_grad_enabled()
        return has_triton()

    def fused(self, x: Tensor, *, silu: bool, offset: Tensor | None = None) -> Tensor:
        from cfrestore.models.fused import group_norm

        norm = self.num_groups, self.weight, self.bias, self.eps
        return group_norm(x, *norm, silu=silu, offset=offset)

    def _over_groups(self, of_rows: Tensor) -> Tensor:
        """Averages (B, H, C) over rows and over the channels of each group, to (B, C)."""
        groups = of_rows.mean(1).unflatten(1, (self.num_groups, -1))
        return groups.mean(2, keepdim=True).expand_as(groups).flatten(1)


@cache
def has_triton() -> bool:
    """Whether Triton, in which the CUDA kernels are written, is installed."""
    return find_spec("triton") is not None


def activated(norm: nn.Module, x: Tensor) -> Tensor:
    """SiLU of the normalised x.

    Outside training it works in place, as nothing else uses the normalised x; on CUDA in one step.
    """
    if isinstance(norm, GroupNorm) and norm.is_fused(x):
        return norm.fused(x, silu=True)
    return F.silu(norm(x), inplace=not torch.is_grad_enabled())


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B,height*width,C), row-major, as a map (B,C,height,width) sharing their memory."""
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two pre-activated 3x3 convolutions with an identity or 1x1 shortcut."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_out = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        exported = not isinstance(self.norm1, GroupNorm)
        if not exported and not torch.is_grad_enabled() and self.norm1.is_fused(x):
            return self._fused(x)
        residual = self.conv1(activated(self.norm1, x))
        residual = self.conv2(activated(self.norm2, residual))
        residual += x if self.conv_out is None else self.conv_out(x)
        return residual

    def _fused(self, x: Tensor) -> Tensor:
        """The same on CUDA, with each bias added in the step after its convolution."""
        from cfrestore.models.fused import add

        residual = _convolved(self.conv1, self.norm1.fused(x, silu=True))
        residual = self.norm2.fused(residual, silu=True, offset=self.conv1.bias)
        residual = _convolved(self.conv2, residual)
        shortcut = x if self.conv_out is None else self.conv_out(x)
        assert self.conv2.bias is not None
        return add(residual, shortcut, self.conv2.bias)


def _convolved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution without its bias, in channels-last order."""
    y = F.conv2d(x, layer.weight, stride=layer.stride, padding=layer.padding)
    return y.contiguous(memory_format=torch.channels_last)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions of a feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        # The axis of the single head is needed because torch exports no attention without one.
        q, k, v = (
            layer(n).flatten(2).mT.contiguous().unsqueeze(1)  # (B, 1, H*W, C)
            for layer in (self.q, self.k, self.v)
        )
        # y = x + P(softmax(q kT / sqrt(C)) v)
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + self.proj_out(to_map(attended, *x.shape[2:]))


class Downsample(nn.Module):
    """Halves the side; zeros are padded on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the side by nearest neighbour, followed by a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return enlarge(x, self.conv.weight, self.conv.bias)

    def as_layer(self) -> nn.ConvTranspose2d:
        """The same layer with a constant kernel, for exported networks."""
        kernel = enlarging_kernel(self.conv.weight).detach()
        layer = nn.ConvTranspose2d(len(kernel), len(kernel), 4, stride=2, padding=1)
        layer.load_state_dict({**self.conv.state_dict(), "weight": kernel})
        return layer


class Encoder(nn.Module):
    """Image (B,3,S,S) in [-1, 1] to latent (B,d,s,s).

    Attributes:
        taps: feature side -> index of the block whose output the fusion there uses: the last
            residual block of the level.
    """

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        channels = config.base_channels
        blocks: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
        self.taps: dict[int, int] = {}
        for side, width in zip(config.level_sides, config.level_channels, strict=True):
            if side != config.image_size:
                blocks.append(Downsample(channels))
            for _ in range(config.res_blocks):
                blocks.append(ResidualBlock(channels, width, groups))
                channels = width
                self.taps[side] = len(blocks) - 1
                if side in config.attention_sides:
                    blocks.append(AttentionBlock(width, groups))
        blocks += [
            ResidualBlock(channels, channels, groups),
            AttentionBlock(channels, groups),
            ResidualBlock(channels, channels, groups),
            GroupNorm(channels, groups),
            nn.Conv2d(channels, config.latent_channels, 3, padding=1),
        ]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, sides: tuple[int, ...] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """Encodes x and keeps the features at the given sides.

        Args:
            x: (B,3,S,S), RGB in [-1, 1].
            sides: feature sides to keep, each a key of `taps`.
        Returns:
            latent (B,d,s,s), and {side: (B,C,side,side)}.
        """
        wanted = {self.taps[side]: side for side in sides}
        skips: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in wanted:
                skips[wanted[index]] = x
        return x, skips


class Quantized(NamedTuple):
    """A quantised latent."""

    values: Tensor  # (B,d,s,s), gradients pass straight through to the latent
    codes: Tensor  # (B,s*s) int64, row-major
    vectors: Tensor  # (B,d,s,s), of the codes, with gradient to the codebook


class VectorQuantizer(nn.Module):
    """The codebook: K vectors of d channels; finds the nearest one for each latent position."""

    def __init__(self, codebook_size: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, channels)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)

    def nearest(self, latent: Tensor) -> Tensor:
        """Finds the codes nearest to the latent, in squared distance; the lowest index wins a tie.

        Args:
            latent: (B,d,s,s).
        Returns:
            (B,s*s) int64, row-major.
        """
        z = latent.flatten(2).mT.float()  # (B, s*s, d)
        e = self.embedding.weight.float()  # (K, d)
        # |z - e|^2 = |z|^2 + |e|^2 - 2 z.e
        distance = z.square().sum(-1, keepdim=True) + e.square().sum(-1) - 2 * z @ e.T
        return distance.argmin(-1)

    def lookup(self, codes: Tensor, side: int) -> Tensor:
        """The vectors of codes (B,side*side), arranged as (B,d,side,side)."""
        return to_map(self.embedding(codes), side, side)

    def forward(self, latent: Tensor) -> Quantized:
        codes = self.nearest(latent.detach())
        vectors = self.lookup(codes, latent.shape[-1])
        return Quantized(latent + (vectors - latent).detach(), codes, vectors)


class Decoder(nn.Module):
    """Quantised latent (B,d,s,s) to image (B,3,S,S), nominally in [-1, 1]; no output activation.

    Attributes:
        taps: feature side -> index of the block after which the fusion acts there: the first
            residual block of a level, but the last one at the side of the code grid.
    """

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        channels = config.level_channels[-1]
        blocks: list[nn.Module] = [
            nn.Conv2d(config.latent_channels, channels, 3, padding=1),
            ResidualBlock(channels, channels, groups),
            AttentionBlock(channels, groups),
            ResidualBlock(channels, channels, groups),
        ]
        self.taps: dict[int, int] = {}
        for side, width in zip(config.level_sides[::-1], config.level_channels[::-1], strict=True):
            if side != config.code_side:
                blocks.append(Upsample(channels))
            for _ in range(config.res_blocks):
                blocks.append(ResidualBlock(channels, width, groups))
                channels = width
                if side not in self.taps or side == config.code_side:
                    self.taps[side] = len(blocks) - 1
                if side in config.attention_sides:
                    blocks.append(AttentionBlock(width, groups))
        blocks += [GroupNorm(channels, groups), nn.Conv2d(channels, 3, 3, padding=1)]
        self.blocks = nn.ModuleList(blocks)

    @property
    def last_weight(self) -> Tensor:
        """Weight of the last convolution, at which the adaptive GAN weight compares gradients."""
        last = self.blocks[-1]
        assert isinstance(last, nn.Conv2d)
        return last.weight

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class VQGAN(nn.Module):
    """The autoencoder alone, as stage I trains it."""

    def __init__(self, config: VQGANConfig | None = None) -> None:
        super().__init__()
        self.config = config or VQGANConfig()
        self.encoder = Encoder(self.config)
        self.quantize = VectorQuantizer(self.config.codebook_size, self.config.latent_channels)
        self.generator = Decoder(self.config)

    def encode(self, x: Tensor) -> Tensor:
        """Image (B,3,S,S) in [-1, 1] to latent (B,d,s,s), not yet quantised."""
        latent, _ = self.encoder(x)
        return latent

    def decode(self, quantized: Tensor) -> Tensor:
        """Quantised latent (B,d,s,s) to image (B,3,S,S)."""
        return self.generator(quantized)

    def forward(self, x: Tensor) -> Tensor:
        """Image to its reconstruction through the codebook."""
        return self.decode(self.quantize(self.encode(x)).values)


class PatchDiscriminator(nn.Module):
    """Classifies overlapping patches: images (B,C,S,S) to logits (B,1,h,w), positive for real.

    Args:
        channels: width of the first layer; layer n has min(2^n, 8) times as many.
        layers: stride-2 convolutions; each doubles the patch.
        spectral: instead of BatchNorm, divide every convolution by its largest singular value, so
            that the logits cannot change faster than the image.
        inputs: C.

    Source: Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks" (2017);
    Miyato et al., "Spectral Normalization for Generative Adversarial Networks" (2018).
    """

    def __init__(
        self, channels: int = 64, layers: int = 4, spectral: bool = False, inputs: int = 3
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(inputs, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = channels
        for n in range(1, layers + 1):
            wider = channels * min(2**n, 8)
            stride = 2 if n < layers else 1
            blocks += [
                nn.Conv2d(width, wider, 4, stride, 1, bias=spectral),
                *([] if spectral else [nn.BatchNorm2d(wider)]),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        blocks.append(nn.Conv2d(width, 1, 4, 1, 1))
        if spectral:
            blocks = [spectral_norm(b) if isinstance(b, nn.Conv2d) else b for b in blocks]
        self.main = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


def histogram(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs, (K,) float32; unlike bincount this does not wait for the GPU."""
    counts = torch.zeros(codebook_size, device=codes.device)
    return counts.index_add_(
        0, codes.flatten(), torch.ones_like(codes.flatten(), dtype=torch.float)
    )


def perplexity(counts: Tensor) -> Tensor:
    """Effective number of codes in use, in [1, K]: exp of the entropy of a histogram (K,)."""
    p = counts / counts.sum()
    return torch.exp(-(p * torch.log(p + 1e-10)).sum())
