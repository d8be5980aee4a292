"""MTCNN finds faces in three stages: boxes are proposed on an image pyramid, refined, and judged.

The weights come with the package facenet-pytorch, which is not imported: it would load torchvision
and torch's compiler, which wastes two CPU seconds.
Source: Zhang et al. (2016), with the thresholds and rounding of facenet-pytorch (MIT); a test
checks that the faces are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfrestore.checkpoint import load_network
from cfrestore.errors import WeightsError
from cfrestore.extras import package_folder
from cfrestore.models.mtcnn import ONet, PNet, RNet

Floats = NDArray[np.float32]
Table = NDArray[np.int32]

CELL, STRIDE = 12, 2
"""Side and spacing of the boxes that the first network proposes, in pixels of its input."""

SHRINKAGE = 0.709
"""Ratio of the sides of one level of the pyramid and the level before."""

LIKELY, LIKELIER = 0.6, 0.7
"""Lowest scores that pass the first two stages."""

MOST_SHARED, MOST_SHARED_AT_FIRST = 0.7, 0.5
"""Largest overlap of two boxes after each stage, and before that within one level of the pyramid;
see `suppress`."""

AT_ONCE = 512
"""Boxes given to a network at a time, which bounds memory."""


class Detected(NamedTuple):
    """The faces that the cascade found."""

    boxes: Floats  # (N, 4) x0 y0 x1 y1, px
    scores: Floats  # (N,)
    landmarks: Floats  # (N, 5, 2) x then y, px; order as in Face


def _nothing() -> Detected:
    return Detected(*(np.zeros((0, *shape), np.float32) for shape in ((4,), (), (5, 2))))


def weight_files() -> dict[str, Path]:
    """The weights of the three networks; raises WeightsError if their package is not installed."""
    package = package_folder("facenet_pytorch")
    if package is None:
        raise WeightsError("MTCNN's weights come with facenet-pytorch, which is not installed")
    return {name: package / "data" / f"{name}.pt" for name in ("pnet", "rnet", "onet")}


class Cascade:
    """The three networks with their weights, on the CPU."""

    def __init__(self) -> None:
        """Opens the weights.

        Raises:
            WeightsError: the package that contains them is not installed.
            CheckpointError: they are damaged.
        """
        files = weight_files()
        self.propose = load_network(files["pnet"], lambda _: PNet())
        self.refine = load_network(files["rnet"], lambda _: RNet())
        self.decide = load_network(files["onet"], lambda _: ONet())

    def __call__(self, pixels: NDArray[np.uint8], least: int, threshold: float) -> Detected:
        """Finds faces.

        Args:
            pixels: (H, W, 3) uint8 RGB; sums over it must fit into int32, so at most 8.4 MP.
            least: side of the smallest faces, px.
            threshold: score above which a face passes the last stage.
        """
        table = cv2.integral(pixels, sdepth=cv2.CV_32S)
        boxes = self._proposed(table, least)
        boxes, seen = _looked_at(table, _squared(boxes), 24)
        if not len(boxes):
            return _nothing()
        scores, offsets = _in_parts(self.refine, seen)
        passed = scores > LIKELIER
        boxes, scores, offsets = boxes[passed], scores[passed], offsets[passed]
        kept = suppress(boxes, scores, MOST_SHARED)
        boxes = _squared(_moved(boxes[kept], offsets[kept]))
        boxes, seen = _looked_at(table, boxes, 48)
        if not len(boxes):
            return _nothing()
        scores, offsets, points = _in_parts(self.decide, seen)
        passed = scores > threshold
        boxes, scores, offsets, points = (x[passed] for x in (boxes, scores, offsets, points))
        corner, sides = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2] + 1)[:, None]
        landmarks = corner + sides * points - 1
        boxes = _moved(boxes, offsets)
        kept = suppress(boxes, scores, MOST_SHARED, of_smaller=True)
        return Detected(boxes[kept], scores[kept], landmarks[kept])

    def _proposed(self, table: Table, least: int) -> Floats:
        """Boxes (N, 4) that the first network finds likely, of all sizes from least upwards."""
        height, width = _size_of(table)
        whole = np.array([[0, 0, width, height]])
        scale = CELL / least
        found: list[tuple[Floats, Floats, Floats]] = []
        while min(height, width) * scale >= CELL:
            size = int(height * scale + 1), int(width * scale + 1)
            scores, offsets = self.propose(_averaged(table, whole, size))
            found.append(_cells(scores.numpy(), offsets.numpy(), np.float32(scale)))
            scale *= SHRINKAGE
        if not found:
            return np.zeros((0, 4), np.float32)
        boxes, scores_, offsets_ = (np.concatenate(parts) for parts in zip(*found, strict=True))
        kept = suppress(boxes, scores_, MOST_SHARED)
        boxes, offsets_ = boxes[kept], offsets_[kept]
        return boxes + offsets_ * np.tile(boxes[:, 2:] - boxes[:, :2], 2)


def suppress(
    boxes: Floats, scores: Floats, most: float, *, of_smaller: bool = False
) -> NDArray[np.intp]:
    """Non-maximum suppression: drops boxes that overlap a better one too much.

    Args:
        boxes: (N, 4) x0 y0 x1 y1.
        scores: (N,).
        most: largest accepted overlap, as a share of the union.
        of_smaller: measure the overlap as a share of the smaller box instead, with sides that
            count the last pixel.
    Returns:
        indices of the boxes that are kept, the best first.
    """
    rim = 1 if of_smaller else 0
    low, high = boxes[:, :2], boxes[:, 2:]
    areas = (high - low + rim).prod(1)
    kept, rest = [], np.argsort(-scores, kind="stable")
    while len(rest):
        best, rest = rest[0], rest[1:]
        kept.append(best)
        sides = np.minimum(high[best], high[rest]) - np.maximum(low[best], low[rest]) + rim
        shared = sides.clip(0).prod(1)
        smaller, union = np.minimum(areas[best], areas[rest]), areas[best] + areas[rest] - shared
        rest = rest[shared <= most * (smaller if of_smaller else union)]
    return np.array(kept, np.intp)


def _cells(scores: Floats, offsets: Floats, scale: np.float32) -> tuple[Floats, Floats, Floats]:
    """Boxes (N, 4) px, scores and offsets of the likely cells of one level, without duplicates."""
    rows, columns = np.nonzero(scores >= LIKELY)
    corners = np.stack([columns, rows], 1).astype(np.float32) * STRIDE
    boxes = np.floor(np.concatenate([(corners + 1) / scale, (corners + CELL) / scale], 1))
    scores, offsets = scores[rows, columns], offsets[rows, columns]
    kept = suppress(boxes, scores, MOST_SHARED_AT_FIRST)
    return boxes[kept], scores[kept], offsets[kept]


def _squared(boxes: Floats) -> Floats:
    """Squares with the longer side and the centre of each box."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.max(1, keepdims=True)
    low = boxes[:, :2] + sides / 2 - longer / 2
    return np.concatenate([low, low + longer], 1)


def _moved(boxes: Floats, offsets: Floats) -> Floats:
    """Boxes whose corners are moved by offsets (N, 4), fractions of the sides."""
    return boxes + offsets * np.tile(boxes[:, 2:] - boxes[:, :2] + 1, 2)


def _looked_at(table: Table, boxes: Floats, side: int) -> tuple[Floats, Tensor]:
    """The boxes that overlap the picture, and what they show of it, resized: (N,3,side,side)."""
    height, width = _size_of(table)
    corners = np.trunc(boxes).astype(int)
    low, high = np.maximum(corners[:, :2], 1) - 1, np.minimum(corners[:, 2:], (width, height))
    inside = (high > low).all(1)
    return boxes[inside], _averaged(table, np.hstack([low, high])[inside], (side, side))


def _size_of(table: Table) -> tuple[int, int]:
    return table.shape[0] - 1, table.shape[1] - 1


def _averaged(table: Table, boxes: NDArray[np.intp], size: tuple[int, int]) -> Tensor:
    """Parts of the picture, resized to one size for the networks.

    This is torch's area interpolation with exact sums: a part is divided as evenly as possible into
    areas of whole pixels, which are averaged. The sum over any area comes from four numbers of the
    table.

    Args:
        table: (H+1, W+1, 3), sums over all pixels above and to the left of each corner.
        boxes: (N, 4) x0 y0 x1 y1, within the picture, none empty.
        size: height and width.
    Returns:
        (N,3,height,width) in channels-last order, in which the networks are fastest; [-1, 1).
    Source: Crow, "Summed-Area Tables for Texture Mapping" (1984).
    """
    (top, bottom), (left, right) = (
        _cut(boxes[:, axis], boxes[:, axis + 2], parts)
        for axis, parts in ((1, size[0]), (0, size[1]))
    )
    sums, width = table.reshape(-1, 3), table.shape[1]

    def until(y: NDArray[np.intp], x: NDArray[np.intp]) -> Table:
        """Sums over all pixels above y (N, height) and to the left of x (N, width)."""
        return sums.take((y * width)[:, :, None] + x[:, None], 0)

    of_areas = until(bottom, right)
    of_areas -= until(top, right)
    of_areas -= until(bottom, left)
    of_areas += until(top, left)
    pixels = torch.from_numpy((bottom - top)[:, :, None] * (right - left)[:, None])
    seen = torch.from_numpy(of_areas).permute(0, 3, 1, 2).float()
    return seen.div_(pixels[:, None].float()).sub_(127.5).div_(128)


def _cut(
    low: NDArray[np.intp], high: NDArray[np.intp], parts: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where each of the parts of N ranges of pixels begins and ends, both (N, parts)."""
    length, index = (high - low)[:, None], np.arange(parts)
    return low[:, None] + index * length // parts, low[:, None] - -(index + 1) * length // parts


def _in_parts(network: torch.nn.Module, seen: Tensor) -> list[Floats]:
    """The network's outputs for all pictures, computed for AT_ONCE of them at a time."""
    outputs = [network(part) for part in seen.split(AT_ONCE)]
    return [torch.cat(values).numpy() for values in zip(*outputs, strict=True)]
