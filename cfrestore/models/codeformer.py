"""CodeFormer: an autoencoder's codes predicted by a transformer, with controllable fidelity.

Attribute names are the published checkpoints' keys (`position_emb`, `feat_emb`, `ft_layers`,
`idx_pred_layer`, `fuse_convs_dict`, ...), so that a strict load needs no translation.

Shapes: B batch, S image side, s side of the code grid, d latent channels, K codebook size,
D transformer width, T = s*s tokens in row-major order.
Source: Zhou et al., "Towards Robust Blind Face Restoration with Codebook Lookup Transformer"
(NeurIPS 2022).
"""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfrestore.errors import ConfigError
from cfrestore.models.vqgan import (
    Decoder,
    Encoder,
    ResidualBlock,
    VectorQuantizer,
    VQGANConfig,
    to_map,
)

STATISTICS_EPS = 1e-5


@dataclass(frozen=True)
class CodeFormerConfig:
    """Configuration of the network; the defaults are the published 512 px restoration model.

    Attributes:
        autoencoder: configuration of encoder, codebook and generator.
        width: D, transformer width.
        heads: attention heads; must divide the width.
        layers: transformer layers.
        mlp_width: hidden width of each layer's feed-forward part.
        connect: feature sides at which encoder features may be fused into the generator.
        match_statistics: whether restoration uses latent AdaIN, as the published model does; the
            models trained here do not, see NOTES.md.
        keep_colours: whether the pipeline gives each result the low frequencies, the colours and
            the border of its input, which the models trained here, with fewer codes and pictures,
            do not reproduce well.
        back_projection: share, in [0, 1], that the pipeline restores of the input's structure that
            a painted face lacks, at any w, see `correction.back_project`; 0: none, as in the
            published pipeline. Multiplied by the root of w, it is also the share of a sharp input
            that the pipeline mixes in, see `correction.mix_in`.
        recycles: how often the transformer reads the latent again, averaged with the vectors that
            it expects, see `CodeFormer.predictions`; 0: never, as in the published model.
        consensus: temperature of the distribution over codes; the code nearest to its mean vector
            is chosen, see `CodeFormer.choose`; 0: the likeliest code, as in the published model.
        second_look: mean certainty of a face's codes, in [0, 1], below which the pipeline looks at
            the face again, see `CodeFormer.reconsider`; 0: never, as with the published model.
        least_brightness: mean level, in [0, 255), to which the pipeline brightens darker faces
            before they are painted, see `exposure`; 0: never, as with the published model.

    Raises:
        ConfigError: the values are inconsistent.
    """

    autoencoder: VQGANConfig = field(default_factory=VQGANConfig)
    width: int = 512
    heads: int = 8
    layers: int = 9
    mlp_width: int = 1024
    connect: tuple[int, ...] = (32, 64, 128, 256)
    match_statistics: bool = True
    keep_colours: bool = False
    back_projection: float = 0.0
    recycles: int = 0
    consensus: float = 0.0
    second_look: float = 0.0
    least_brightness: float = 0.0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"heads must divide width {self.width}, found {self.heads}")
        for name in ("back_projection", "second_look"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in [0, 1], found {getattr(self, name)}")
        if not 0 <= self.least_brightness < 255:
            raise ConfigError(
                f"least_brightness must be in [0, 255), found {self.least_brightness}"
            )
        if self.recycles < 0 or not 0 <= self.consensus < math.inf:
            raise ConfigError(
                "recycles and consensus must be 0 or more, "
                f"found {self.recycles} and {self.consensus}"
            )
        unknown = set(self.connect) - set(self.autoencoder.level_sides)
        if unknown:
            raise ConfigError(
                f"connect must be among the feature sides {self.autoencoder.level_sides}, "
                f"found {sorted(unknown)}"
            )

    @property
    def image_size(self) -> int:
        """S, side of input and output in pixels."""
        return self.autoencoder.image_size

    @property
    def tokens(self) -> int:
        """T, number of codes of one face."""
        return self.autoencoder.code_side**2

    @classmethod
    def compact(cls) -> CodeFormerConfig:
        """256 px, a 16x16 code grid: a fourteenth of the published model's operations per face."""
        return cls(
            autoencoder=VQGANConfig(
                image_size=256,
                base_channels=32,
                channel_multipliers=(1, 2, 2, 4, 4),
                latent_channels=128,
            ),
            width=384,
            heads=8,
            layers=6,
            mlp_width=768,
            connect=(32, 64, 128),
            match_statistics=False,
            keep_colours=True,
            back_projection=0.7,
            recycles=1,
            consensus=0.3,
            second_look=0.35,
            least_brightness=110.0,
        )

    @classmethod
    def tiny(cls) -> CodeFormerConfig:
        """128 px, a 16x16 code grid: small enough to train on two CPU cores in hours."""
        return cls(
            autoencoder=VQGANConfig(
                image_size=128,
                base_channels=16,
                channel_multipliers=(1, 2, 4, 4),
                res_blocks=1,
                norm_groups=8,
                latent_channels=64,
                codebook_size=512,
            ),
            width=256,
            heads=8,
            layers=5,
            mlp_width=512,
            connect=(16, 32, 64),
            match_statistics=False,
            keep_colours=True,
        )

    def to_json(self) -> str:
        """The configuration as it is stored in a weight file's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> CodeFormerConfig:
        """The configuration stored by `to_json`.

        Raises:
            ConfigError: not JSON, a key is unknown (the nearest known one is named), or a value
                is invalid.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"the stored configuration is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError("the stored configuration is not a JSON object")
        try:
            autoencoder = _from_dict(VQGANConfig, values.pop("autoencoder", {}))
            return _from_dict(cls, values | {"autoencoder": autoencoder})
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ConfigError(f"the stored configuration does not fit: {error}") from error


Config = TypeVar("Config", VQGANConfig, CodeFormerConfig)


def _from_dict(kind: type[Config], values: dict[str, Any]) -> Config:
    known = [f.name for f in fields(kind)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown key {key!r} in the configuration{hint}")
    arguments: dict[str, Any]
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**arguments)


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and feed-forward; the position enters queries and keys only."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1 = nn.Linear(width, mlp_width)
        self.linear2 = nn.Linear(mlp_width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, h: Tensor, position: Tensor) -> Tensor:
        """h (B,T,D) and position (T,D) to (B,T,D)."""
        u = self.norm1(h)
        qk = u + position
        h = h + self.self_attn(qk, qk, u, need_weights=False)[0]
        return h + self.linear2(F.gelu(self.linear1(self.norm2(h))))


class ControllableFeatureTransform(nn.Module):
    """Scales and shifts decoder features by encoder features, with strength w."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.encode_enc = ResidualBlock(2 * channels, channels, groups)
        self.scale = self._branch(channels)
        self.shift = self._branch(channels)

    @staticmethod
    def _branch(channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(
        self, encoder_feature: Tensor, decoder_feature: Tensor, w: float | Tensor
    ) -> Tensor:
        """Both features (B,C,side,side); returns the decoder feature, transformed."""
        # Concatenating two types would give the wider one; the generator computes in this one.
        encoder_feature = encoder_feature.to(decoder_feature.dtype)
        fused = self.encode_enc(torch.cat((encoder_feature, decoder_feature), dim=1))
        # F_d <- F_d + w (F_d * alpha + beta)
        change = torch.addcmul(self.shift(fused), decoder_feature, self.scale(fused))
        return decoder_feature + w * change


class Features(NamedTuple):
    """The features of faces before painting; none of them depends on w.

    Attributes:
        quantized: (B,d,s,s), the input of the generator.
        skips: encoder features for fusion, {side: (B,C,side,side)}.
        latent: (B,d,s,s), not quantised; None if a runtime does not provide it.
        logits: (B,T,K), by which the codes were chosen; None if a runtime does not provide them.
    """

    quantized: Tensor
    skips: dict[int, Tensor]
    latent: Tensor | None = None
    logits: Tensor | None = None


class CodeFormer(nn.Module):
    """Restores aligned faces.

    `net(x, w)` is predict_features (encode, predict_codes, choose, lookup, match_statistics), then
    decode. Features do not depend on w, so painting a face at several w encodes it once.

    Attributes:
        config: the network's configuration.
    """

    def __init__(self, config: CodeFormerConfig | None = None) -> None:
        super().__init__()
        self.config = config or CodeFormerConfig()
        shape = self.config.autoencoder
        width = self.config.width
        self.position_emb = nn.Parameter(torch.zeros(self.config.tokens, width))
        self.encoder = Encoder(shape)
        self.quantize = VectorQuantizer(shape.codebook_size, shape.latent_channels)
        self.generator = Decoder(shape)
        self.feat_emb = nn.Linear(shape.latent_channels, width)
        self.ft_layers = nn.ModuleList(
            TransformerLayer(width, self.config.heads, self.config.mlp_width)
            for _ in range(self.config.layers)
        )
        self.idx_pred_layer = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, shape.codebook_size, bias=False)
        )
        channels = dict(zip(shape.level_sides, shape.level_channels, strict=True))
        self.fuse_convs_dict = nn.ModuleDict(
            {
                str(side): ControllableFeatureTransform(channels[side], shape.norm_groups)
                for side in self.config.connect
            }
        )

    def encode(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Encodes degraded faces.

        Args:
            x: (B,3,S,S), RGB in [-1, 1].
        Returns:
            latent (B,d,s,s), and the features for fusion, {side: (B,C,side,side)}.
        """
        return self.encoder(x, self.config.connect)

    def predict_codes(self, latent: Tensor) -> Tensor:
        """Logits (B,T,K) of the codes of the clean face, from the latent (B,d,s,s)."""
        return self.predictions(latent)[-1]

    def predictions(self, latent: Tensor) -> list[Tensor]:
        """Logits (B,T,K) of each reading of the latent (B,d,s,s); the last is the best.

        Each reading after the first sees the mean of the latent and of the vectors that the
        previous reading expects; no gradient flows through these vectors.
        Source: recycling, Jumper et al., "Highly accurate protein structure prediction with
        AlphaFold" (2021).
        """
        logits = [self._read(latent)]
        for _ in range(self.config.recycles):
            logits.append(self._read((latent + self.expected(logits[-1].detach())) / 2))
        return logits

    def expected(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Mean vectors (B,d,s,s) of the distributions over codes with logits (B,T,K)."""
        vectors = (logits / temperature).softmax(-1) @ self.quantize.embedding.weight
        side = self.config.autoencoder.code_side
        return to_map(vectors, side, side)

    def choose(self, logits: Tensor) -> Tensor:
        """Chooses codes (B,T) by logits (B,T,K).

        Without `config.consensus` these are the likeliest codes. With it they are the codes nearest
        to the expected vectors; their expected squared distance from the right codes is the least
        (minimum Bayes risk). Where many codes are plausible, the likeliest codes of neighbouring
        positions may not fit together, and each may differ from all other likely ones.
        """
        if not self.config.consensus:
            return logits.argmax(-1)
        return self.quantize.nearest(self.expected(logits, self.config.consensus))

    def reconsider(self, logits: Tensor) -> Tensor:
        """Logits (B,T,K) after a second look at faces with predicted logits (B,T,K).

        The expected face, which is coherent, is painted at w = 0 and read as if it were the input.
        The logits of both readings are averaged: the result is the geometric mean of their
        probabilities, normalised.
        Source: products of experts, Hinton (2002).
        """
        expected = self.quantize.nearest(self.expected(logits))
        latent, _ = self.encode(self.decode(self.lookup(expected), {}, 0))
        return (logits + self.predict_codes(latent)) / 2

    def _read(self, latent: Tensor) -> Tensor:
        h = self.feat_emb(latent.flatten(2).mT)  # (B, T, D)
        for layer in self.ft_layers:
            h = layer(h, self.position_emb)
        return self.idx_pred_layer(h)

    def lookup(self, codes: Tensor) -> Tensor:
        """Converts codes (B,T) to quantised features (B,d,s,s)."""
        return self.quantize.lookup(codes, self.config.autoencoder.code_side)

    def predict_features(self, x: Tensor, match_statistics: bool) -> Features:
        """Computes everything before painting: `encode`, then `choose_features`.

        Args:
            x: (B,3,S,S), RGB in [-1, 1].
            match_statistics: see `forward`.
        """
        return self.choose_features(*self.encode(x), match_statistics)

    def choose_features(
        self, latent: Tensor, skips: dict[int, Tensor], match_statistics: bool
    ) -> Features:
        """Computes what lies between encoding and painting.

        Args:
            latent, skips: the results of `encode`; the latent in float32.
            match_statistics: see `forward`.
        """
        logits = self.predict_codes(latent)
        quantized = self.quantized(self.choose(logits), latent, match_statistics)
        return Features(quantized, skips, latent, logits)

    def quantized(self, codes: Tensor, latent: Tensor, match_statistics: bool) -> Tensor:
        """The features (B,d,s,s) to paint for codes (B,T) of faces with the latent (B,d,s,s)."""
        quantized = self.lookup(codes)
        return adaptive_instance_norm(quantized, latent) if match_statistics else quantized

    def decode(self, quantized: Tensor, skips: dict[int, Tensor], w: float | Tensor) -> Tensor:
        """Paints the faces.

        Args:
            quantized: (B,d,s,s).
            skips: encoder features by side, from `encode`; not read if w is 0.
            w: fidelity, usually in [0, 1]; training has used up to 1.3. With a tensor (), as in
                exported graphs, the fusion runs whatever its value.
        Returns:
            (B,3,S,S), nominally in [-1, 1].
        Raises:
            ConfigError: see `check_w`.
        """
        check_w(w)
        fuses = isinstance(w, Tensor) or w > 0
        fuse_after = {self.generator.taps[side]: side for side in self.config.connect}
        x = quantized
        for index, block in enumerate(self.generator.blocks):
            x = block(x)
            if fuses and index in fuse_after:
                side = fuse_after[index]
                x = self.fuse_convs_dict[str(side)](skips[side], x, w)
        return x

    def forward(self, x: Tensor, w: float = 0.5, match_statistics: bool | None = None) -> Tensor:
        """Restores faces.

        Args:
            x: (B,3,S,S), RGB in [-1, 1].
            w: fidelity; 0 trusts the codebook alone, 1 follows the input closely.
            match_statistics: whether the codes' features get the mean and standard deviation of the
                input's latent (latent AdaIN), as in published restoration; None: as the
                configuration says.
        Returns:
            (B,3,S,S), nominally in [-1, 1].
        Raises:
            ConfigError: see `check_w`.
        """
        uses_adain = self.config.match_statistics if match_statistics is None else match_statistics
        features = self.predict_features(x, uses_adain)
        return self.decode(features.quantized, features.skips, w)


def check_w(w: float | Tensor) -> None:
    """Raises ConfigError if w is a number, but not a finite one.

    Comparisons with NaN are false, so it would pass for 0. Tensors are not looked at, because that
    would wait for their device.
    """
    if not (isinstance(w, Tensor) or -math.inf < w < math.inf):
        raise ConfigError(f"w must be finite, found {w}")


def adaptive_instance_norm(content: Tensor, style: Tensor) -> Tensor:
    """Gives content (B,C,H,W) the style's mean and deviation, per sample and channel (AdaIN).

    The variance is unbiased, and 1e-5 is added to it.
    Source: Huang & Belongie, "Arbitrary Style Transfer in Real-time with AdaIN" (2017).
    """
    content_mean, content_std = _statistics(content)
    style_mean, style_std = _statistics(style)
    return (content - content_mean) / content_std * style_std + style_mean


def _statistics(feature: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(feature, dim=(2, 3), keepdim=True)
    return mean, (variance + STATISTICS_EPS).sqrt()
