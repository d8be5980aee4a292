"""The published network and pipeline without optimisations: the reference of all measurements here.

Written from the specification alone; only the shape of a network is taken from cfrestore. It is
eager, float32, NCHW, one face at a time, with every warp and blur over the whole frame and ParseNet
for each face. tests/test_parity.py and tests/test_models.py compare cfrestore's results with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cfrestore.models.codeformer import CodeFormer, CodeFormerConfig

Image = NDArray[np.uint8]
Floats = NDArray[np.floating]

TEMPLATE = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ],
    np.float32,
)
KEPT = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15)


class PlainCodeFormer:
    """The network as formulas over the tensors of a checkpoint."""

    def __init__(self, state: Mapping[str, Tensor], config: CodeFormerConfig) -> None:
        self.state, self.config = state, config
        with torch.device("meta"):
            shape = CodeFormer(config)
        self.seen_after = {index: side for side, index in shape.encoder.taps.items()}
        self.fused_after = {index: side for side, index in shape.generator.taps.items()}

    @torch.inference_mode()
    def __call__(self, x: Tensor, w: float, adain: bool = True) -> Tensor:
        """Maps (1,3,S,S) in [-1, 1] to the same shape and range."""
        x, skips = self._encode(x)
        codes = self._choose(x)
        q = F.embedding(codes, self.state["quantize.embedding.weight"])
        q = q.permute(0, 2, 1).reshape(x.shape)
        if adain:
            (mq, sq), (mx, sx) = (
                (f.mean((2, 3), keepdim=True), (f.var((2, 3), keepdim=True) + 1e-5).sqrt())
                for f in (q, x)
            )
            q = (q - mq) / sq * sx + mx
        x = q
        for index, block in enumerate(self._blocks("generator.blocks")):
            x = self._block(block, x, doubles=True)
            side = self.fused_after.get(index)
            if w > 0 and side in self.config.connect:
                x = self._fuse(f"fuse_convs_dict.{side}", skips[side], x, w)
        return x

    @torch.inference_mode()
    def codes(self, x: Tensor) -> Tensor:
        """The codes (1,T) that the network looks up for a face."""
        return self._choose(self._encode(x)[0])

    def _encode(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        skips: dict[int, Tensor] = {}
        for index, block in enumerate(self._blocks("encoder.blocks")):
            x = self._block(block, x, doubles=False)
            if index in self.seen_after:
                skips[self.seen_after[index]] = x
        return x, skips

    def _blocks(self, prefix: str) -> Iterator[str]:
        count = 1 + max(int(k.split(".")[2]) for k in self.state if k.startswith(prefix))
        yield from (f"{prefix}.{index}" for index in range(count))

    def _block(self, key: str, x: Tensor, *, doubles: bool) -> Tensor:
        """Any kind of block; the names of its tensors tell which."""
        if f"{key}.conv1.weight" in self.state:
            return self._residual(key, x)
        if f"{key}.q.weight" in self.state:
            return self._attention(key, x)
        if f"{key}.conv.weight" in self.state:
            if doubles:
                return self._conv(f"{key}.conv", F.interpolate(x, scale_factor=2.0))
            return self._conv(f"{key}.conv", F.pad(x, (0, 1, 0, 1)), padding=0, stride=2)
        if self.state[f"{key}.weight"].ndim == 1:
            return self._norm(key, x)
        return self._conv(key, x)

    def _conv(self, key: str, x: Tensor, padding: int = 1, stride: int = 1) -> Tensor:
        s = self.state
        return F.conv2d(x, s[f"{key}.weight"], s[f"{key}.bias"], stride=stride, padding=padding)

    def _norm(self, key: str, x: Tensor) -> Tensor:
        groups, s = self.config.autoencoder.norm_groups, self.state
        return F.group_norm(x, groups, s[f"{key}.weight"], s[f"{key}.bias"], eps=1e-6)

    def _residual(self, key: str, x: Tensor) -> Tensor:
        y = self._norm(f"{key}.norm1", x)
        y = self._conv(f"{key}.conv1", y * torch.sigmoid(y))
        y = self._norm(f"{key}.norm2", y)
        y = self._conv(f"{key}.conv2", y * torch.sigmoid(y))
        if f"{key}.conv_out.weight" in self.state:
            x = self._conv(f"{key}.conv_out", x, padding=0)
        return x + y

    def _attention(self, key: str, x: Tensor) -> Tensor:
        n = self._norm(f"{key}.norm", x)
        q, k, v = (self._conv(f"{key}.{name}", n, padding=0).flatten(2) for name in "qkv")
        weights = torch.bmm(q.permute(0, 2, 1), k) / math.sqrt(x.shape[1])
        mixed = torch.bmm(v, weights.softmax(-1).permute(0, 2, 1)).reshape(x.shape)
        return x + self._conv(f"{key}.proj_out", mixed, padding=0)

    def _choose(self, latent: Tensor) -> Tensor:
        config, vectors = self.config, self.state["quantize.embedding.weight"]

        def expected(temperature: float) -> Tensor:
            return torch.matmul((logits / temperature).softmax(-1), vectors)  # (B, T, d)

        logits = self._predict(latent)
        for _ in range(config.recycles):
            mean = expected(1).permute(0, 2, 1).reshape(latent.shape)
            logits = self._predict((latent + mean) / 2)
        if not config.consensus:
            return logits.argmax(-1)
        return torch.cdist(expected(config.consensus), vectors[None]).argmin(-1)

    def _predict(self, latent: Tensor) -> Tensor:
        s, config = self.state, self.config
        h = self._linear("feat_emb", latent.flatten(2).permute(2, 0, 1))  # (T, B, D)
        position = s["position_emb"].unsqueeze(1)
        for index in range(config.layers):
            key = f"ft_layers.{index}"
            u = self._layer_norm(f"{key}.norm1", h)
            a = f"{key}.self_attn"
            mixed, _ = F.multi_head_attention_forward(
                u + position,
                u + position,
                u,
                config.width,
                config.heads,
                s[f"{a}.in_proj_weight"],
                s[f"{a}.in_proj_bias"],
                None,
                None,
                False,
                0.0,
                s[f"{a}.out_proj.weight"],
                s[f"{a}.out_proj.bias"],
                training=False,
            )
            h = h + mixed
            u = self._layer_norm(f"{key}.norm2", h)
            h = h + self._linear(f"{key}.linear2", F.gelu(self._linear(f"{key}.linear1", u)))
        h = self._layer_norm("idx_pred_layer.0", h)
        return F.linear(h, s["idx_pred_layer.1.weight"]).permute(1, 0, 2)

    def _linear(self, key: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{key}.weight"], self.state[f"{key}.bias"])

    def _layer_norm(self, key: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{key}.weight"], self.state[f"{key}.bias"])

    def _fuse(self, key: str, seen: Tensor, painted: Tensor, w: float) -> Tensor:
        both = self._residual(f"{key}.encode_enc", torch.cat((seen, painted), dim=1))
        scale, shift = (
            self._conv(f"{key}.{name}.2", F.leaky_relu(self._conv(f"{key}.{name}.0", both), 0.2))
            for name in ("scale", "shift")
        )
        return painted + w * (painted * scale + shift)


def is_gray(bgr: Image, threshold: float = 10) -> bool:
    a, b, c = (bgr[..., i].astype(np.int64) for i in range(3))
    return bool((np.var(a - b) + np.var(b - c) + np.var(c - a)) / 3 <= threshold)


def gray_face(bgr: Image | Floats, crop: Image) -> Floats:
    """Gray, with the crop's statistics; float64, neither clipped nor rounded."""
    gray = 0.2989 * bgr[..., 2] + 0.5870 * bgr[..., 1] + 0.1140 * bgr[..., 0]
    content, style = np.stack([gray] * 3, axis=-1), crop.astype(np.float64)
    (mc, sc), (ms, ss) = (
        (x.mean((0, 1)), np.sqrt(((x - x.mean((0, 1))) ** 2).mean((0, 1)) + 1e-5))
        for x in (content, style)
    )
    return (content - mc) / sc * ss + ms


def to_input(bgr: Image | Floats) -> Tensor:
    """(1, 3, S, S), RGB in [-1, 1]."""
    rgb = bgr[..., ::-1].astype(np.float32) / 255
    return torch.from_numpy(((rgb - 0.5) / 0.5).transpose(2, 0, 1)[None].copy())


def to_image(y: Tensor) -> Image:
    values = (y[0].clamp(-1, 1).numpy().transpose(1, 2, 0)[..., ::-1] + 1) / 2
    return (values * 255).round().astype(np.uint8)


def inverse_of(matrix: Floats, scale: int) -> Floats:
    inverse = np.asarray(cv2.invertAffineTransform(matrix)) * scale
    if scale > 1:
        inverse[:, 2] += 0.5 * scale
    return inverse


def square_mask(
    inverse: Floats, size: tuple[int, int], scale: int, side: int = 512
) -> tuple[Floats, Floats]:
    """m1, which multiplies the face, and the soft mask m; size is (width, height)."""
    m0 = cv2.warpAffine(np.ones((side, side), np.float32), inverse, size)
    m1 = cv2.erode(m0, np.ones((int(2 * scale),) * 2, np.uint8))
    e = int(math.sqrt(m1.sum(dtype=np.float64))) // 20
    m2 = cv2.erode(m1, np.ones((2 * e, 2 * e), np.uint8) if e else None)
    return m1, cv2.GaussianBlur(m2, (2 * e + 1, 2 * e + 1), 0)


def parsing_mask(classes: NDArray[np.integer]) -> Floats:
    mask = np.where(np.isin(classes, KEPT), 255.0, 0.0)
    mask = cv2.GaussianBlur(cv2.GaussianBlur(mask, (101, 101), 11), (101, 101), 11)
    mask[:10], mask[-10:], mask[:, :10], mask[:, -10:] = 0, 0, 0, 0
    return mask / 255


def paste(
    canvas: Image | Floats, face: Image | Floats, inverse: Floats, scale: int, limit: Floats | None
) -> tuple[Floats, Floats, Floats]:
    """The canvas with one more face, not rounded; the face's coverage m1 and its mask."""
    size = canvas.shape[1::-1]
    m1, mask = square_mask(inverse, size, scale, len(face))
    if limit is not None:
        mask = np.minimum(mask, cv2.warpAffine(limit, inverse, size))
    premultiplied = m1[..., None] * cv2.warpAffine(face, inverse, size)
    return mask[..., None] * premultiplied + (1 - mask[..., None]) * canvas, m1, mask


@dataclass(frozen=True, eq=False)
class Published:
    """The published pipeline's result for a picture, before its last step.

    Attributes:
        values: (H, W, 3), BGR, not rounded.
        touched: (H, W), where a mask is above 0, and the pixels next to those.
        faded: (H, W), where a face's coverage lies strictly between 0 and 1.
    """

    values: Image | Floats
    touched: NDArray[np.bool_]
    faded: NDArray[np.bool_]


def align(bgr: Image, points: NDArray[np.float32], side: int) -> tuple[Image, Floats]:
    """The crop, and the matrix from the picture to it."""
    matrix, _ = cv2.estimateAffinePartial2D(points, TEMPLATE * side / 512, method=cv2.LMEDS)
    border = (135, 133, 132)
    return cv2.warpAffine(bgr, matrix, (side, side), borderMode=0, borderValue=border), matrix


def restore(
    bgr: Image,
    landmarks: Sequence[NDArray[np.float32]],
    network: Callable[[Tensor], Tensor],
    scale: int = 1,
    parser: Callable[[Tensor], Tensor] | None = None,
    side: int = 512,
) -> Published:
    """Restores a picture whose short side is at least 512, without up-samplers.

    The published network has crops of 512 px; with another side everything else is as published.
    """
    gray, height, width = is_gray(bgr), bgr.shape[0] * scale, bgr.shape[1] * scale
    canvas = cv2.resize(bgr, (width, height), interpolation=cv2.INTER_LINEAR)
    touched, faded = np.zeros((2, height, width), bool)
    for points in landmarks:
        crop, matrix = align(bgr, points, side)
        face: Floats | Image = to_image(network(to_input(crop)))
        if gray:
            face = gray_face(face, crop)
        limit = None
        if parser is not None:
            limit = parsing_mask(parser(to_input(face))[0].argmax(0).numpy())
        canvas, m1, mask = paste(canvas, face, inverse_of(matrix, scale), scale, limit)
        touched |= cv2.dilate((mask > 0).astype(np.uint8), np.ones((3, 3))) > 0
        faded |= (m1 > 0) & (m1 < 1)
    return Published(canvas, touched, faded)


def random_state(config: CodeFormerConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a network, scaled so that values keep their size from layer to layer."""
    with torch.device("meta"):
        shapes = CodeFormer(config).state_dict()
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in shapes.items():
        n = torch.randn(value.shape, generator=generator)
        if value.ndim == 1:
            state[key] = 1 + 0.2 * n if key.endswith("weight") else 0.1 * n
        else:
            looked_up = key in ("position_emb", "quantize.embedding.weight")
            state[key] = n if looked_up else n / math.prod(value.shape[1:]) ** 0.5
    return state


def random_face(side: int, seed: int = 0) -> Tensor:
    """(1,3,S,S) in [-1, 1] with detail of every size, as a face has."""
    generator, x = torch.Generator().manual_seed(seed), torch.zeros(1, 3, side, side)
    for cells, amplitude in ((4, 0.5), (16, 0.3), (64, 0.15)):
        noise = torch.randn(1, 3, cells, cells, generator=generator)
        x += amplitude * F.interpolate(noise, size=(side, side), mode="bicubic")
    return x.clamp(-1, 1)
