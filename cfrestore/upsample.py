"""Enlarges pictures of any content with a network: pixels -> pixels x scale."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np
import torch
from torch.nn.functional import pad

from cfrestore.align import rescale
from cfrestore.checkpoint import load_network
from cfrestore.device import Precision, inference, reduced
from cfrestore.errors import CheckpointError, WeightsError
from cfrestore.files import exists
from cfrestore.image import resize, to_uint8
from cfrestore.models.rrdbnet import RRDBNet, RRDBNetConfig
from cfrestore.models.srvgg import SRVGGConfig, SRVGGNetCompact
from cfrestore.options import SMALLEST_TILE, TILE, check_tile
from cfrestore.stopping import check_wanted
from cfrestore.weights import locate, missing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from cfrestore.image import Photo, Pixels
    from cfrestore.restore import RestoredFace

UPSAMPLERS = {
    "realesrgan": "realesrgan",
    "realesr-general": "realesr-general",
    "compact": "compact-upsampler",
}
"""Names of upsamplers, and the names of their files in the table of weight files."""

PADDING = 40
"""How many pixels around a tile the network sees, as published."""

_Network: TypeAlias = RRDBNet | SRVGGNetCompact
_Area: TypeAlias = tuple[slice, slice]


class Upsampler:
    """Enlarges pictures tile by tile, so that the memory it needs does not grow with the picture.

    Args:
        path: weights of an RRDBNet or an SRVGGNetCompact: Real-ESRGAN's, or trained here.
        device: where to compute.
        tile: side of the tiles in pixels, halved while there is not enough memory for one.
        precision: what the network computes in.
    Raises:
        WeightsError: the file cannot be read.
        CheckpointError: the file holds something else.
        ConfigError: as `check_tile`.
    """

    def __init__(
        self,
        path: str | Path,
        device: str | torch.device = "cpu",
        tile: int = TILE,
        precision: Precision = Precision.FP32,
    ) -> None:
        check_tile(tile)
        self.path = Path(path)
        self.network = load_network(path, partial(_deduced, path=path))
        self.device = torch.device(device)
        self.network.to(self.device).to(memory_format=torch.channels_last)
        self.tile = tile
        self.precision = precision

    def __call__(self, pixels: Pixels, scale: int) -> Pixels:
        """The picture at exactly `scale` times its size.

        If the network's own scale is larger, its output is averaged down; if it is smaller, the
        output is interpolated further. At scale 1 the picture is only cleaned.

        Args:
            pixels: (H, W, 3) uint8 or uint16 RGB.
            scale: whole number from 1.
        Returns:
            (scale * H, scale * W, 3) of the same dtype.
        Raises:
            MemoryError: there is not enough memory for the smallest tiles either.
            CheckpointError: what the network paints is not finite.
        Source: the published tiles and paddings. The published code, unlike this, replaces a tile
            that fails by the one before it, and reduces a result without averaging.
        """
        height, width = pixels.shape[:2]
        result = np.empty((height * scale, width * scale, 3), pixels.dtype)
        tile = self.tile
        while True:
            try:
                for area in _tiles(height, width, tile):
                    around = _grown(area, height, width)
                    enlarged = self._enlarge(pixels[around], scale)
                    result[_scaled(area, scale)] = enlarged[_scaled(area, scale, around)]
            except MemoryError:
                if tile // 2 < SMALLEST_TILE:
                    raise
                tile //= 2
            else:
                return result

    def _enlarge(self, pixels: Pixels, scale: int) -> Pixels:
        """Enlarges a picture without tiling; raises Stopped as `check_wanted` does."""
        top = np.float32(np.iinfo(pixels.dtype).max)
        height, width = pixels.shape[:2]
        values = torch.from_numpy(pixels.astype(np.float32) / top)
        factor = self.network.scale
        with inference():
            check_wanted()  # within inference, for which the thread may have waited
            x = values.to(self.device).permute(2, 0, 1)[None]  # (1, 3, h, w), channels last
            painted = self._paint(_completed(x, self.network.multiple))
            painted = painted[0, :, : factor * height, : factor * width].permute(1, 2, 0)
            result = np.ascontiguousarray(painted.clamp(0, 1).cpu().numpy())
        result = resize(result, height * scale, width * scale, enlarge=cv2.INTER_LANCZOS4)
        return np.rint(result.clip(0, 1) * top).astype(pixels.dtype)

    def _paint(self, x: Tensor) -> Tensor:
        """The network's output as float32, computed again in it if reduced precision spoils it."""
        for precision in dict.fromkeys((self.precision, Precision.FP32)):
            with reduced(self.device, precision):
                painted: Tensor = self.network(x).float()
            if painted.isfinite().all():
                return painted
        raise CheckpointError(f"what the network of {self.path} paints is not finite")


def load_upsampler(
    name: str | Path,
    device: str | torch.device = "cpu",
    tile: int = TILE,
    precision: Precision = Precision.FP32,
) -> Upsampler:
    """The upsampler that has a name in UPSAMPLERS or is in a file.

    Raises:
        WeightsError: the weights are missing, or differ from the published ones; or there is
            neither such a name nor such a file.
        CheckpointError, ConfigError: as Upsampler.
    """
    row = UPSAMPLERS.get(str(name))
    path = locate(row) if row else Path(name)
    if path is None:
        raise missing(str(row))
    if not exists(path):
        raise WeightsError(
            f"up-sampler {str(name)!r} is neither a file nor one of {', '.join(UPSAMPLERS)}"
        )
    return Upsampler(path, device, tile, precision)


@dataclass(frozen=True, eq=False)
class Background:
    """The enlarged photograph into which faces are pasted; computed when it is first taken.

    Attributes:
        photo: the photograph.
        upsampler: enlarges it.
        scale: size of the result divided by that of the photograph.
        once: whether it is taken a single time; else every time a copy is.
    """

    photo: Photo
    upsampler: Upsampler
    scale: int
    once: bool = True

    def take(self) -> Pixels:
        """The pixels, which the caller may overwrite."""
        return self._pixels if self.once else self._pixels.copy()

    @cached_property
    def _pixels(self) -> Pixels:
        return self.upsampler(self.photo.pixels, self.scale)


def with_more_pixels(face: RestoredFace, upsampler: Upsampler, scale: int) -> RestoredFace:
    """The face, enlarged for pasting if the result shows it larger than it was painted.

    A face that keeps detail of the picture is not enlarged, as that detail comes from the picture.

    Args:
        scale: size of the result divided by that of the picture.
    """
    wanted = scale * face.aligned.shrink  # result px per crop px
    factor = 1
    while factor < min(wanted, upsampler.network.scale):
        factor *= 2
    if factor == 1 or face.aligned.kept is not None:
        return face
    aligned = replace(face.aligned, to_crop=rescale(face.aligned.to_crop, factor))
    return replace(face, crop=to_uint8(upsampler(face.crop, factor)), aligned=aligned)


def _deduced(state: Mapping[str, Tensor], path: str | Path) -> _Network:
    """A network of the kind and size that the tensors' keys and shapes imply.

    Raises:
        CheckpointError: they imply none.
    """
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    count = len({key.split(".")[1] for key in shapes if key.startswith("body.")})
    match shapes:
        case {
            "conv_first.weight": (features, inner, 3, 3),
            "body.0.rdb1.conv1.weight": (growth, *_),
        }:
            scale = {3: 4, 12: 2, 48: 1}.get(inner)
            if scale:
                return RRDBNet(RRDBNetConfig(scale, features, growth, count))
        case {"body.0.weight": (features, 3, 3, 3)}:
            painted, *_ = shapes.get(f"body.{count - 1}.weight", (0,))
            scale = math.isqrt(painted // 3)
            if scale:
                return SRVGGNetCompact(SRVGGConfig(scale, features, (count - 3) // 2))
    raise CheckpointError(
        f"{path} holds no upsampler; an RRDBNet or an SRVGGNetCompact was expected"
    )


def _tiles(height: int, width: int, side: int) -> Iterator[_Area]:
    """Squares that cover a picture; at its lower and right border they are cut off."""
    side -= side % 4  # so that pixel_unshuffle forms the same blocks in all tiles
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield slice(top, min(top + side, height)), slice(left, min(left + side, width))


def _grown(area: _Area, height: int, width: int) -> _Area:
    """The area with PADDING on all sides, cut off at the picture's borders."""
    rows, columns = (
        slice(max(0, span.start - PADDING), min(span.stop + PADDING, side))
        for span, side in zip(area, (height, width), strict=True)
    )
    return rows, columns


def _scaled(area: _Area, scale: int, origin: _Area = (slice(0, 0), slice(0, 0))) -> _Area:
    """The area in the enlarged picture or, given an origin, in that enlarged part of it."""
    rows, columns = (
        slice((span.start - start.start) * scale, (span.stop - start.start) * scale)
        for span, start in zip(area, origin, strict=True)
    )
    return rows, columns


def _completed(x: Tensor, multiple: int) -> Tensor:
    """The picture (1, 3, h, w), its last row and column repeated until its sides are multiples."""
    height, width = x.shape[2:]
    return pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
