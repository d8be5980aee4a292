"""Priors over code maps: they give the likelihood of a map, and maps can be drawn from them.

Both kinds factorise a map's likelihood in raster order, p(s) = prod_u p(s_u | s_<u, condition), so
that likelihoods are exact and codes are drawn one after the other.

Shapes: B batch, n side of the trained map, N = n*n codes in row-major order, K codebook size,
F width.
Sources: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders" (2016), over
codes as in "Neural Discrete Representation Learning" (2017); Esser et al., "Taming Transformers for
High-Resolution Image Synthesis" (2021), the sliding window included.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfrestore.errors import ConfigError

Kind: TypeAlias = Literal["pixelcnn", "transformer"]

Memory: TypeAlias = list[tuple[Tensor, ...]]
"""State of each layer between one code and the next: in a transformer, the keys and values
(B,heads,T,F/heads) of the tokens so far; in a PixelCNN, the vertical stack's output for the row."""


@dataclass(frozen=True)
class PriorConfig:
    """Configuration of a prior.

    Attributes:
        kind: pixelcnn or transformer.
        codebook_size: K.
        side: n.
        width: F, channels of each stack, or of each token.
        layers: gated layers, or transformer layers.
        kernel: side of the PixelCNN's masked convolutions, odd.
        heads: attention heads of the transformer; must divide the width.
        dropout: dropout rate in training.
        symbols: number of different condition symbols; 0: unconditional.
        prefix: number of symbols that condition one map; 1, a class, for a PixelCNN.

    Raises:
        ConfigError: the values are inconsistent.
    """

    kind: Kind
    codebook_size: int = 1024
    side: int = 16
    width: int = 64
    layers: int = 8
    kernel: int = 5
    heads: int = 4
    dropout: float = 0.0
    symbols: int = 0
    prefix: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("pixelcnn", "transformer"):
            raise ConfigError(f"a prior is a pixelcnn or a transformer, found {self.kind!r}")
        if self.kind == "transformer" and self.width % self.heads:
            raise ConfigError(f"heads must divide width {self.width}, found {self.heads}")
        if self.kind == "pixelcnn":
            if self.kernel % 2 == 0:
                raise ConfigError(f"kernel must be odd, found {self.kernel}")
            if self.layers * (self.kernel // 2) < self.side - 1:
                raise ConfigError(
                    f"{self.layers} layers of kernel {self.kernel} do not see all of a map of "
                    f"side {self.side}"
                )
            if self.symbols and self.prefix != 1:
                raise ConfigError(f"a PixelCNN has one class a map, found {self.prefix}")

    def to_json(self) -> str:
        """The configuration as it is stored in a weight file's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> PriorConfig:
        """The configuration stored by `to_json`.

        Raises:
            ConfigError: it is invalid.
        """
        try:
            return cls(**json.loads(text))
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ConfigError(f"the stored configuration is that of no prior: {error}") from error


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees only earlier positions in raster order.

    Its k x k kernel is masked. The vertical stack sees the rows above, the horizontal stack the
    positions to the left in the same row. With mask B, in all layers but the first, they also see
    their own row or position, whose features then depend only on earlier codes. Only the unmasked
    part of the kernel is stored.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stack: Literal["vertical", "horizontal"],
        mask: Literal["A", "B"],
    ) -> None:
        half, own = kernel // 2, int(mask == "B")
        vertical = stack == "vertical"
        super().__init__(
            in_channels, out_channels, (half + own, kernel) if vertical else (1, half + own)
        )
        # Left, right, top, bottom; -1 crops the positions after the last visible one.
        self.border = (half, half, half, own - 1) if vertical else (half, own - 1, 0, 0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.border))


class GatedLayer(nn.Module):
    """One layer of both stacks: y = tanh(W_f * x + V_f c) sigmoid(W_g * x + V_g c), and x + y.

    The vertical stack contains nothing of its own row, so it may pass everything to the horizontal
    one at the same position: together they have no blind spot.
    """

    def __init__(self, config: PriorConfig, first: bool) -> None:
        super().__init__()
        width, kernel = config.width, config.kernel
        mask: Literal["A", "B"] = "A" if first else "B"
        self.first = first
        self.vertical = MaskedConv2d(width, 2 * width, kernel, "vertical", mask)
        self.horizontal = MaskedConv2d(width, 2 * width, kernel, "horizontal", mask)
        self.across = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        self.by_class = nn.Embedding(config.symbols, 4 * width) if config.symbols else None
        self.dropout = nn.Dropout(config.dropout)

    def go_down(self, v: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """The next layer's vertical stack (B,F,h,w), and what it passes to the horizontal one.

        Args:
            condition: (B,1), classes.
        """
        above = self.vertical(v)  # (B, 2F, h, w)
        told = self.across(above)
        if self.by_class is not None:
            shifts = self.by_class(condition).mT[..., None].chunk(2, dim=1)  # (B, 2F, 1, 1) each
            above, told = above + shifts[0], told + shifts[1]
        return self._onward(v, _gate(above)), told

    def go_along(self, h: Tensor, told: Tensor) -> Tensor:
        """The next layer's horizontal stack (B,F,h,w); rows are independent.

        Args:
            told: what `go_down` passes to it.
        """
        beside = self.horizontal(h) + told
        return self._onward(h, self.out(self.dropout(_gate(beside))))

    def _onward(self, x: Tensor, y: Tensor) -> Tensor:
        return y if self.first else x + y  # the first layer's input is each position's own code


def _gate(x: Tensor) -> Tensor:
    signal, gate = x.chunk(2, dim=1)
    return torch.tanh(signal) * torch.sigmoid(gate)


class PixelCNN(nn.Module):
    """The convolutional prior, with learned positions, because faces are aligned."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.tokens = nn.Embedding(config.codebook_size, width)
        self.position = nn.Parameter(0.02 * torch.randn(width, config.side, config.side))
        self.layers = nn.ModuleList(GatedLayer(config, n == 0) for n in range(config.layers))
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 1),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Conv2d(2 * width, config.codebook_size, 1),
        )

    def forward(self, codes: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits of each code, given all codes before it.

        Args:
            codes: (B,h,n) int64, the first h rows of maps.
            condition: (B,1) int64, their classes, if the prior is conditional.
        Returns:
            (B,h*n,K).
        """
        told = self._tell(codes, condition)
        return self._read(codes, told, self.position[:, : codes.shape[1]])

    def predict(
        self, codes: Tensor, t: int, condition: Tensor | None, memory: Memory | None
    ) -> tuple[Tensor, Memory | None]:
        """Logits (B,K) of code t of maps (B,n,n), whose codes before t are known.

        Args:
            memory: as returned for t - 1; None: all known codes are read again.
        Returns:
            the logits, and the memory for t + 1: what the vertical stack passes to the row.
        """
        row, column = divmod(t, self.config.side)
        if memory is None or column == 0:
            told = self._tell(codes[:, : row + 1], condition)
            memory = [(layer[:, :, row : row + 1],) for layer in told]
        now = slice(row, row + 1)
        logits = self._read(codes[:, now], [layer for (layer,) in memory], self.position[:, now])
        return logits[:, column], memory

    def _tell(self, codes: Tensor, condition: Tensor | None) -> list[Tensor]:
        """What the vertical stack passes to the horizontal one in each layer, (B,2F,h,n)."""
        v, all_told = self._embed(codes), []
        for layer in self.layers:
            assert isinstance(layer, GatedLayer)
            v, told = layer.go_down(v, condition)
            all_told.append(told)
            if layer.first:
                v = v + self.position[:, : codes.shape[1]]
        return all_told

    def _read(self, codes: Tensor, told: list[Tensor], position: Tensor) -> Tensor:
        """Logits (B,h*n,K) of some rows of codes (B,h,n), given what the vertical stack passes."""
        h = self._embed(codes)
        for layer, passed in zip(self.layers, told, strict=True):
            assert isinstance(layer, GatedLayer)
            h = layer.go_along(h, passed)
            if layer.first:
                h = h + position
        return self.head(h).flatten(2).mT

    def _embed(self, codes: Tensor) -> Tensor:
        return self.tokens(codes).permute(0, 3, 1, 2)  # (B, F, h, n)


class CausalLayer(nn.Module):
    """Pre-norm causal self-attention and feed-forward."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(config.dropout),
        )

    def forward(
        self, x: Tensor, past: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Transforms tokens (B,T,F); also returns their keys and values.

        Args:
            past: keys and values of all earlier tokens, if x is the one token after them.
        """
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, F/heads)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        dropout = self.dropout if self.training else 0.0
        # y = softmax(q kT / sqrt(F/heads) + mask) v
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=past is None)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x)), (k, v)


class CodeTransformer(nn.Module):
    """The decoder-only transformer: start, condition prefix, then the codes."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.lead = 1 + (config.prefix if config.symbols else 0)  # tokens before the first code
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.symbols = nn.Embedding(config.symbols, width) if config.symbols else None
        self.tokens = nn.Embedding(config.codebook_size, width)
        length = self.lead + config.side**2 - 1  # the last code is never an input
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(CausalLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.codebook_size, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, codes: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits of each code, given all codes before it.

        Args:
            codes: (B,n,n) int64.
            condition: (B,M) int64, the prefix, if the prior has one.
        Returns:
            (B,N,K).
        """
        x = self._begin(codes.flatten(1)[:, :-1], condition)
        for layer in self.layers:
            x, _ = layer(x)
        return self.head(self.norm(x[:, self.lead - 1 :]))

    def predict(
        self, codes: Tensor, t: int, condition: Tensor | None, memory: Memory | None
    ) -> tuple[Tensor, Memory | None]:
        """Logits (B,K) of code t of maps (B,n,n), whose codes before t are known.

        Args:
            memory: as returned for t - 1; None: all known codes are read again.
        Returns:
            the logits, and the memory for t + 1.
        """
        known = codes.flatten(1)[:, :t]
        if memory is None:
            x = self._begin(known, condition)
        else:
            x = self.tokens(known[:, -1:]) + self.position[self.lead + t - 1]
        pasts = memory or (None,) * len(self.layers)
        kept: Memory = []
        for layer, past in zip(self.layers, pasts, strict=True):
            x, seen = layer(x, past)
            kept.append(seen)
        return self.head(self.norm(x[:, -1])), kept

    def _begin(self, codes: Tensor, condition: Tensor | None) -> Tensor:
        """Embeds start, prefix and codes (B,t) as tokens (B,lead+t,F) with their positions."""
        parts = [self.start.expand(len(codes), 1, -1)]
        if self.symbols is not None:
            parts.append(self.symbols(condition))
        x = torch.cat((*parts, self.tokens(codes)), dim=1)
        return self.dropout(x + self.position[: x.shape[1]])


Prior: TypeAlias = PixelCNN | CodeTransformer


def build_prior(config: PriorConfig) -> Prior:
    """Builds a prior with random weights."""
    return PixelCNN(config) if config.kind == "pixelcnn" else CodeTransformer(config)


def bits_per_code(logits: Tensor, codes: Tensor) -> Tensor:
    """Mean negative log-likelihood of codes (B,N) under logits (B,N,K), in bits per code."""
    return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten()) / math.log(2)


def draw(
    logits: Tensor, generator: torch.Generator, temperature: float = 1.0, top_k: int | None = None
) -> Tensor:
    """Draws codes (...) from logits (...,K), on the CPU.

    Args:
        generator: on the CPU, so that all devices draw the same codes.
        temperature: logits are divided by it; below 1 likely codes become likelier.
        top_k: draw only from that many of the likeliest codes.
    """
    logits = logits.float().cpu() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    p = logits.softmax(-1)
    return torch.multinomial(p.flatten(0, -2), 1, generator=generator).view(p.shape[:-1])


def window_start(position: int, length: int, side: int) -> int:
    """Start, along one axis, of the window in which a position is as central as possible.

    Source: Esser et al. (2021): local index i < n/2: i; H - i < n/2: n - (H - i); else n/2.
    """
    return min(max(position - side // 2, 0), length - side)


@torch.no_grad()
def sample_codes(
    prior: Prior,
    count: int,
    size: tuple[int, int],
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    condition: Tensor | None = None,
) -> Tensor:
    """Draws code maps from a prior, code by code.

    In a map larger than the trained one, each code is drawn given the earlier codes, in raster
    order, of the n x n window around it.

    Args:
        prior: in evaluation mode.
        size: height and width H, W of the maps, at least n each.
        generator, temperature, top_k: see `draw`.
        condition: (B,M) int64, the same in all windows; or (B,H,W), of which each window takes the
            part that it covers as its prefix; only if the prior is conditional.
    Returns:
        (B,H,W) int64, on the prior's device.
    Raises:
        ConfigError: a map is smaller than the trained one.
    """
    n, (height, width) = prior.config.side, size
    if min(size) < n:
        raise ConfigError(f"the prior knows maps from {n}x{n} codes on, found {height}x{width}")
    device = prior.position.device
    codes = torch.zeros(count, height, width, dtype=torch.long, device=device)
    memory: Memory | None = None
    last = (-1, -1)
    for i in range(height):
        for j in range(width):
            top, left = window_start(i, height, n), window_start(j, width, n)
            rows, columns = slice(top, top + n), slice(left, left + n)
            if (top, left) != last:
                memory, last = None, (top, left)
            prefix = condition
            if condition is not None and condition.ndim == 3:
                prefix = condition[:, rows, columns].flatten(1)
            t = (i - top) * n + j - left
            logits, memory = prior.predict(codes[:, rows, columns], t, prefix, memory)
            codes[:, i, j] = draw(logits, generator, temperature, top_k).to(device)
    return codes
