"""Pastes restored faces into the picture: (pixels, RestoredFace, mask) -> pixels. No torch.

Every face is warped, masked and blurred within its own bounding box only. The result is that of the
published full-frame formulas with two corrections: it is rounded, not truncated, and the outermost
pixels of a face are blended with the picture, where the published code multiplies them by their
coverage and so draws a dark frame (86 levels around a face of 30 px, 0.6 at 200 px).

A face that is larger than its crop can keep detail finer than the crop. Then
restored + k (picture - input) is pasted, where `restored` and `input` are the network's output and
input crops, warped into the picture, and k is the share of detail that is kept at a pixel. Where
k = 1, that is the picture plus what the network changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from cfrestore.align import PUBLISHED_SIZE, bounding_box

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from cfrestore.image import Pixels
    from cfrestore.restore import RestoredFace

_EXACT_FADE = 20  # px; wider fades are computed in a smaller picture
_SMALL_FADE = 15  # px; width of a fade in the smaller picture, which keeps its error within 1.5/255


@dataclass(frozen=True, eq=False)
class Layer:
    """A face in the picture's geometry, within its bounding box.

    Attributes:
        rows, columns: the bounding box in the picture.
        opacity: (h, w) float32 in [0, 1]; exactly 0 where the picture stays untouched.
        crop: (s, s, 3) float32, the face, not yet warped.
        to_box: (2, 3) float64, crop px -> px of the bounding box.
        interpolation: one of OpenCV's, for the warp.
        kept: (s, s) float32, share of the picture's detail that is added to the face; or None.
    """

    rows: slice
    columns: slice
    opacity: NDArray[np.float32]
    crop: NDArray[np.float32]
    to_box: NDArray[np.float64]
    interpolation: int
    kept: NDArray[np.float32] | None = None

    def face(self, rows: slice, columns: slice, original: Pixels) -> NDArray[np.float32]:
        """Warps a part of the face.

        Args:
            rows, columns: the part, within the bounding box.
            original: (h, w, 3), what the picture shows there, in the crop's units.
        Returns:
            (h, w, 3) float32, newly allocated, in [0, white] for crops in that range, unless
            bicubic warping or kept detail overshoots.
        """
        to_part, extent = _part(self.to_box, rows, columns)
        border = cv2.BORDER_REPLICATE
        face = cv2.warpAffine(
            self.crop, to_part, extent, flags=self.interpolation, borderMode=border
        )
        if self.kept is not None:
            kept = cv2.warpAffine(self.kept, to_part, extent, borderMode=border)
            face += original * kept[..., None]
        return np.asarray(face, np.float32)


def _part(
    to_box: NDArray[np.float64], rows: slice, columns: slice
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """A matrix into a part of the bounding box, and the part's (width, height)."""
    extent = (columns.stop - columns.start, rows.stop - rows.start)
    return to_box - [[0, 0, columns.start], [0, 0, rows.start]], extent


def paste_faces(
    pixels: Pixels,
    faces: Sequence[RestoredFace],
    *,
    scale: int = 1,
    masks: Iterable[NDArray[np.float32]] | None = None,
    background: Pixels | None = None,
    owners: NDArray[np.int16] | None = None,
) -> Pixels:
    """Pastes restored faces into the picture they were cut from, each onto the previous result.

    Overlapping faces are rounded in between, which costs at most one level.

    Args:
        pixels: (H, W, 3) uint8 or uint16 RGB, the picture in which the faces were aligned.
        faces: in pasting order; 8-bit faces are scaled to the full range of a 16-bit picture.
            Those with AlignedFace.kept keep detail of the picture.
        scale: the result is exactly this many times the picture's size.
        masks: one (S, S) float32 in [0, 1] per face, which further limits what is pasted; or None.
        background: picture of the same content and dtype at any size, used in place of pixels. One
            that has the result's size becomes the result: it is overwritten.
        owners: (H * scale, W * scale), see `share_holes`: each face fully replaces exactly the
            pixels that have its index; masks are not used.
    Returns:
        (H * scale, W * scale, 3) of the dtype of pixels, newly allocated unless the background
        becomes the result. Outside the masks it is the background, bit for bit.
    Raises:
        ValueError: masks do not match the faces, or the background has another dtype.
    """
    canvas = _enlarge(pixels, scale, background)
    if canvas.dtype != pixels.dtype:
        raise ValueError(f"background must be {pixels.dtype} like the picture, not {canvas.dtype}")
    original = pixels if scale == 1 and background is None else canvas
    if original is canvas and len(faces) > 1 and any(f.aligned.kept is not None for f in faces):
        original = canvas.copy()  # a single face reads each pixel before changing it
    limits = masks if masks is not None else [None] * len(faces)
    level = np.float32(np.iinfo(canvas.dtype).max / 255)
    for index, (face, mask) in enumerate(zip(faces, limits, strict=True)):
        to_picture = invert(face.aligned.to_crop, scale)
        kept = face.aligned.kept
        crop = face.crop if kept is None else face.crop - kept[..., None] * face.aligned.crop
        crop = crop * level
        layer = face_layer(crop, to_picture, canvas.shape[:2], scale=scale, mask=mask, kept=kept)
        if layer is not None:
            region = canvas[layer.rows, layer.columns]
            opacity = layer.opacity
            if face.opacity != 1:
                opacity *= np.float32(face.opacity)
            if owners is not None:
                opacity = (owners[layer.rows, layer.columns] == index).astype(np.float32)
            _blend(region, replace(layer, opacity=opacity), original[layer.rows, layer.columns])
    return canvas


def _blend(region: Pixels, layer: Layer, original: Pixels) -> None:
    """Blends a layer into a region of its size, which is overwritten.

    Takes a few rows at a time, which stay in the processor's cache, and of these the columns from
    the first to the last in which opacity is enough to change any pixel.

    Args:
        original: the region before anything was pasted, whose detail faces may keep.
    """
    white = np.iinfo(region.dtype).max
    depth = cv2.CV_8U if region.dtype == np.uint8 else cv2.CV_16U  # to which OpenCV rounds
    height = max(1, 40_000 // max(1, region.shape[1]))
    for top in range(0, len(region), height):
        rows = slice(top, min(top + height, len(region)))
        opacity = layer.opacity[rows]
        visible = np.flatnonzero(cv2.reduce(opacity, 0, cv2.REDUCE_MAX) >= 0.5 / white)
        if not len(visible):
            continue
        columns = slice(visible[0], visible[-1] + 1)
        below = region[rows, columns]
        before = below.astype(np.float32)
        blend = layer.face(rows, columns, original[rows, columns])
        if layer.kept is not None or layer.interpolation == cv2.INTER_CUBIC:  # overshoots
            np.clip(blend, 0, white, out=blend)
        blend -= before
        blend *= cv2.cvtColor(opacity[:, columns], cv2.COLOR_GRAY2RGB)
        below[...] = cv2.add(blend, before, dtype=depth)


def invert(to_crop: NDArray[np.float64], scale: int) -> NDArray[np.float64]:
    """The (2, 3) float64 matrix from crop pixels to pixels of the picture enlarged by scale.

    Source: the published pipeline. For scale > 1 it moves the face by scale/2 pixels, but the
    enlarged background moves by (scale - 1)/2: half an output pixel too far, kept for parity.
    """
    to_picture = np.asarray(cv2.invertAffineTransform(to_crop), dtype=np.float64) * scale
    if scale > 1:
        to_picture[:, 2] += 0.5 * scale
    return to_picture


def face_layer(
    crop: NDArray[np.uint8] | NDArray[np.float32],
    to_picture: NDArray[np.float64],
    shape: tuple[int, ...],
    *,
    scale: int = 1,
    mask: NDArray[np.float32] | None = None,
    kept: NDArray[np.float32] | None = None,
) -> Layer | None:
    """Warps a crop and its mask into the picture, within the crop's bounding box.

    Crops under 512 px are warped bicubically and, if the face is smaller than half the crop,
    averaged down first; at 512 px the warp is the published bilinear one.

    Args:
        crop: (S, S, 3) uint8 or float32, in any units; a difference of crops if detail is kept.
        to_picture: (2, 3), crop px -> picture px.
        shape: (height, width) of the picture.
        scale: how many times the picture was enlarged; widens the erosion.
        mask: (S, S) float32 in [0, 1], or None.
        kept: (S, S) float32 in [0, 1], see Layer, or None.
    Returns:
        the layer, or None if no part of the face lies in the picture.
    """
    if mask is not None and mask.shape != crop.shape[:2]:
        raise ValueError(f"mask must be {crop.shape[:2]} like its crop, found {mask.shape}")
    small, small_to_picture = _reduce(crop, to_picture)
    size = small.shape[0]
    box = bounding_box(size, small_to_picture, shape)
    if box is None:
        return None
    rows, columns = box

    to_box, extent = _part(small_to_picture, rows, columns)
    coverage = _erode(_cover(size, to_box, extent), 2 * scale)
    opacity = soften(coverage)
    if mask is not None:
        limit = cv2.warpAffine(mask, *_part(to_picture, rows, columns))
        opacity = np.minimum(opacity, limit, out=limit)
    opacity *= coverage
    interpolation = cv2.INTER_LINEAR if crop.shape[0] >= PUBLISHED_SIZE else cv2.INTER_CUBIC
    if kept is not None:
        kept, _ = _reduce(kept, to_picture)
    return Layer(rows, columns, opacity, small, to_box, interpolation, kept)


def _cover(size: int, to_box: NDArray[np.float64], extent: tuple[int, int]) -> NDArray[np.float32]:
    """The share of each pixel that a warped square covers.

    Only what surrounds the largest rectangle inside the square is warped.

    Args:
        size: side of the square in the crop.
        to_box: (2, 3), crop px -> px of the result.
        extent: (width, height) of the result.
    Returns:
        (h, w) float32 in [0, 1].
    """
    half = (size - 1) / 2
    center = to_box @ [half, half, 1]
    reach = half / np.abs(np.linalg.inv(to_box[:, :2])).sum(axis=1).max()
    left, top = np.clip(np.ceil(center - reach), 0, extent).astype(int)
    right, bottom = np.clip(np.floor(center + reach) + 1, (left, top), extent).astype(int)
    width, height = extent
    ones = np.ones((size, size), np.float32)
    cover = np.ones((height, width), np.float32)
    for rows, columns in (
        (slice(0, top), slice(0, width)),
        (slice(top, bottom), slice(0, left)),
        (slice(top, bottom), slice(right, width)),
        (slice(bottom, height), slice(0, width)),
    ):
        if rows.start < rows.stop and columns.start < columns.stop:
            cover[rows, columns] = cv2.warpAffine(ones, *_part(to_box, rows, columns))
    return cover


def soften(coverage: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fades the coverage of a warped square towards its edges, by a twentieth of its side.

    Args:
        coverage: (h, w) float32 in [0, 1].
    Returns:
        (h, w) float32 in [0, 1]. Where the picture's border cuts the square, nothing fades.
    Source: the published pipeline: erosion, then Gaussian blur with OpenCV's sigma.
    """
    edge = math.isqrt(int(cv2.sumElems(coverage)[0])) // 20
    if edge > _EXACT_FADE:
        return _soften_widely(coverage, edge)
    core = _erode(coverage, 2 * edge or 3)  # OpenCV takes an empty kernel as 3 x 3
    return np.asarray(cv2.GaussianBlur(core, (2 * edge + 1, 2 * edge + 1), 0), dtype=np.float32)


def _soften_widely(coverage: NDArray[np.float32], edge: int) -> NDArray[np.float32]:
    """Fades a large face, in time that does not grow with the fade's width.

    The core is eroded in 8 bits and averaged down until the blur is narrow, first along columns
    and then, with few rows left, along rows; the blurred result is enlarged again.
    """
    step = edge // _SMALL_FADE  # so many rows are averaged exactly, which is fast
    rows, columns = coverage.shape
    height, width = math.ceil((rows + 2 * edge) / step) * step, columns + 2 * edge
    size = tuple(math.ceil(side * _SMALL_FADE / edge) for side in (width, height))
    core = cv2.convertScaleAbs(coverage, alpha=255)
    core = _least(core, edge)
    below = height - rows - edge
    core = cv2.copyMakeBorder(core, edge, below, 0, 0, cv2.BORDER_REFLECT_101)  # as the blur would
    core = core.reshape(-1, step, columns).sum(axis=1, dtype=np.uint16)  # step is below 257
    core = cv2.resize(core, (columns, size[1]), interpolation=cv2.INTER_AREA)
    core = _least(core.T, edge).T
    core = cv2.copyMakeBorder(core, 0, 0, edge, edge, cv2.BORDER_REFLECT_101)
    small = cv2.resize(core, size, interpolation=cv2.INTER_AREA) / np.float32(255 * step)
    sigma = 0.3 * (edge - 1) + 0.8  # what OpenCV derives from a kernel of 2 * edge + 1
    small = cv2.GaussianBlur(
        small,
        (2 * _SMALL_FADE + 1,) * 2,
        sigmaX=sigma * size[0] / width,
        sigmaY=sigma * size[1] / height,
    )
    soft = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(soft[edge : edge + rows, edge : edge + columns], np.float32)


def _least(mask: NDArray[Any], reach: int) -> NDArray[Any]:
    """The minimum over 2 * reach rows, in steps whose number is the logarithm of that.

    Args:
        mask: (h, w); everything beyond it is ignored, as by `_erode`.
    """
    mask = np.pad(mask, ((reach, reach - 1), (0, 0)), constant_values=mask.max())
    done = 1
    while done < 2 * reach:
        step = min(done, 2 * reach - done)
        mask = np.minimum(mask[:-step], mask[step:])
        done += step
    return mask


def _erode(mask: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """The minimum over a square of that side; ignores everything beyond the picture."""
    kernel = np.ones((side, side), dtype=np.uint8)
    return np.asarray(cv2.erode(mask, kernel), dtype=np.float32)


def _enlarge(pixels: Pixels, scale: int, background: Pixels | None) -> Pixels:
    """The picture to paste into, `scale` times the size of pixels.

    It is the background, resized unless it has that size, or else the enlarged pixels.
    """
    height, width = pixels.shape[:2]
    size = (width * scale, height * scale)
    if background is None:
        enlarged = cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC)
    elif background.shape[1::-1] == size:
        return background
    else:
        enlarged = cv2.resize(background, size, interpolation=cv2.INTER_LANCZOS4)
    return np.asarray(enlarged)


def _reduce(
    crop: NDArray[np.uint8] | NDArray[np.float32], to_picture: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Halves a crop under 512 px until the warp keeps at least half of its side.

    A warp that shrinks more would skip pixels of the crop.
    """
    size = crop.shape[0]
    if size >= PUBLISHED_SIZE:
        return crop.astype(np.float32, copy=False), to_picture
    while size % 2 == 0 and math.hypot(to_picture[0, 0], to_picture[1, 0]) < 0.5:
        size //= 2
        to_picture = to_picture @ [[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]]
    reduced = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    return reduced.astype(np.float32, copy=False), to_picture
