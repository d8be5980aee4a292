"""Small stubs: a CodeFormer of 32 px, networks that do one thing, detectors with known faces."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from cfrestore.align import FFHQ_TEMPLATE
from cfrestore.detect import Face
from cfrestore.models.codeformer import CodeFormer, CodeFormerConfig, Features
from cfrestore.models.vqgan import VQGANConfig

SMALL = CodeFormerConfig(
    autoencoder=VQGANConfig(
        image_size=32,
        base_channels=8,
        channel_multipliers=(1, 2),
        norm_groups=4,
        latent_channels=16,
        codebook_size=32,
    ),
    width=16,
    heads=2,
    layers=1,
    mlp_width=32,
    connect=(16,),
)


def small_network() -> CodeFormer:
    """A random network whose output fills the range, as a trained one's does."""
    torch.manual_seed(0)
    network = CodeFormer(SMALL).eval()
    with torch.no_grad():
        network.generator.last_weight.mul_(4)
    return network


def save_network(path: Path, network: CodeFormer, config: str | None = None) -> Path:
    metadata = {"config": config or network.config.to_json(), "recipe": "{}"}
    state = {k: v.half().contiguous() for k, v in network.state_dict().items()}
    save_file(state, path, metadata=metadata)
    return path


class StubNetwork(nn.Module):
    """A network that paints by applying a function to the crops, and remembers its calls."""

    def __init__(self, paint: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.config = SMALL
        self.paint = paint
        self.calls: list[tuple[Tensor, float, bool]] = []
        self.matched = True

    def encode(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        return x, {}

    def choose_features(
        self, latent: Tensor, skips: dict[int, Tensor], match_statistics: bool
    ) -> Features:
        self.matched = match_statistics
        return Features(latent, skips)

    def decode(self, features: Tensor, skips: dict[int, Tensor], w: float) -> Tensor:
        assert torch.is_inference_mode_enabled()
        self.calls.append((features, w, self.matched))
        return self.paint(features)


class StubDetector:
    """A detector that finds the given faces in every picture, and remembers what it saw."""

    name = "stub"

    def __init__(self, *faces: Face) -> None:
        self.faces = faces
        self.seen: list[NDArray[np.uint8]] = []

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[Face, ...]:
        self.seen.append(pixels)
        return self.faces


class LeftParser:
    """A parser for which the left half of a crop of 32 px is the face."""

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        masks = np.zeros(crops.shape[:3], np.float32)
        masks[:, :, :16] = 1
        return masks


def face_at(x: float, y: float, side: float) -> Face:
    """An upright face whose crop is the square of that side with that upper left corner."""
    landmarks = FFHQ_TEMPLATE * (side / 512) + (x, y)
    box = np.array([x, y, x + side, y + side], np.float32)
    return Face(box, 0.9, landmarks.astype(np.float32))


def picture(height: int, width: int, dtype: type = np.uint8, seed: int = 0) -> NDArray:
    """Smooth colours with noise, none of them at the ends of the range."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = [np.sin(x / 9 + phase) + np.cos(y / 7 - phase) for phase in (0, 1, 2)]
    values = 128 + 40 * np.stack(planes, axis=-1) + rng.normal(0, 6, (height, width, 3))
    scale = 257 if dtype == np.uint16 else 1
    return (values.clip(8, 247) * scale).astype(dtype)


def leaves(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Overlapping discs, which are as sharp as photographs at every scale.

    Source: Lee, Mumford and Huang, "Occlusion models for natural images" (2001): radii r as r^-3.
    """
    random = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128, np.uint8)
    for radius in 2 / np.sqrt(random.uniform(0.0025, 1, 12 * height * width // 200)):
        centre = random.integers(0, (width, height)).tolist()
        colour = random.integers(20, 236, 3).tolist()
        cv2.circle(pixels, centre, round(float(radius)), colour, -1, cv2.LINE_AA)
    return pixels
