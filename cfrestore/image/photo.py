"""The Photo class, and pixel operations: gray test, statistics, tensors."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from cfrestore.image.jpeg import JpegCoding

Pixels: TypeAlias = NDArray[np.uint8 | np.uint16]
"""(H, W, 3) RGB or (H, W) alpha; the dtype gives the depth, which is never guessed from values."""

Chunks: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Type and content of PNG chunks."""

_SAMPLES = 1 << 23
"""Number of samples in a band."""

_DIM = 64.0
"""Mean level below which a picture counts as dim."""

Depth = TypeVar("Depth", bound=np.uint8 | np.uint16 | np.float32)


@dataclass(frozen=True, eq=False)
class Photo:
    """A decoded photograph, upright, with everything that belongs in the written file.

    Attributes:
        pixels: (H, W, 3) uint8 or uint16, RGB, C-contiguous, in the picture's own colour space.
        alpha: (H, W), dtype of pixels, 0 is transparent; None for a picture without alpha.
        gray: the file had a single colour channel; it is written as such as long as R = G = B.
        icc: colour profile, or None.
        exif: EXIF block starting with b"Exif\\0\\0", its orientation reset to 1, or None.
        xmp: XMP packet, its orientation reset to 1, or None.
        format: Pillow's name of the file format, one of FORMATS.
        dpi: pixels per inch, across and down, or None.
        photoshop: Photoshop's resources, IPTC among them, or None.
        comment: of a JPEG or GIF, or None.
        texts: text chunks of a PNG.
        colours: chunks of a PNG that define its colour space.
        jpeg: quantisation and sampling of a JPEG, if they can be reused for writing.
        lossless: the file was a lossless WebP.
        notes: whole sentences on what of the file was not read.
        lost: whole sentences on what would be lost for good if the photograph, written in its own
            format, replaced the file; data that no picture needs do not count.

    Raises:
        ValueError: shapes or dtypes, or the beginning of exif, differ from the above.
        TypeError: pixels or alpha are no array of numpy.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    gray: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    format: str = "PNG"
    dpi: tuple[float, float] | None = None
    photoshop: bytes | None = None
    comment: bytes | None = None
    texts: Chunks = ()
    colours: Chunks = ()
    jpeg: JpegCoding | None = None
    lossless: bool = False
    notes: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.pixels, np.ndarray):  # easily a picture of Pillow, or a tensor
            raise TypeError(f"pixels must be a numpy array, found {type(self.pixels).__name__}")
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pixels must be (H, W, 3) uint8 or uint16, found {shape} {dtype}")
        if not self.pixels.flags.c_contiguous:
            raise ValueError("pixels must be C-contiguous, found a strided view")
        if not isinstance(self.alpha, (np.ndarray, NoneType)):
            raise TypeError(f"alpha must be a numpy array, found {type(self.alpha).__name__}")
        if self.alpha is not None and (self.alpha.shape, self.alpha.dtype) != (shape[:2], dtype):
            found = f"{self.alpha.shape} {self.alpha.dtype}"
            raise ValueError(f"alpha must be {shape[:2]} {dtype}, found {found}")
        if self.exif is not None and not self.exif.startswith(b"Exif\0\0"):  # a JPEG would lose it
            raise ValueError(f'exif must start with b"Exif\\0\\0", found {self.exif[:6]!r}')

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def with_pixels(self, pixels: Pixels) -> Photo:
        """A copy with other pixels; its alpha is resized to match."""
        alpha = None if self.alpha is None else resize(self.alpha, *pixels.shape[:2])
        return replace(self, pixels=np.ascontiguousarray(pixels), alpha=alpha)


def bands(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of rows, top to bottom, that cover an array of the given shape."""
    step = max(1, _SAMPLES // math.prod(shape[1:]))
    return (slice(top, min(top + step, shape[0])) for top in range(0, shape[0], step))


def is_gray(pixels: Pixels, threshold: float = 10.0) -> bool:
    """Whether a picture is gray up to a uniform cast, so that its channel differences hardly vary.

    Args:
        pixels: (H, W, 3) uint8 or uint16.
        threshold: largest mean of the three variances, in squared 8-bit steps; in a dim picture,
            whose colours differ as little as its brightness does, proportionally less.
    Source: the published pipeline, which would take dim pictures for gray.
    """
    wide = pixels.dtype == np.uint16
    depth, step = (cv2.CV_32S, 257) if wide else (cv2.CV_16S, 1)
    sums, brightness = np.zeros((2, 3, 1)), 0.0
    for rows in bands(pixels.shape):
        band = np.ascontiguousarray(pixels[rows])
        turned = np.empty_like(band)
        cv2.mixChannels([band], [turned], [1, 0, 2, 1, 0, 2])  # green, blue, red
        differences = cv2.subtract(band, turned, dtype=depth)
        mean, deviation = (value / step for value in cv2.meanStdDev(differences))
        sums += len(band) * np.array([mean, deviation**2 + mean**2])
        brightness += len(band) * float(band.mean()) / step
    mean, square = sums / len(pixels)
    light = min(1.0, brightness / len(pixels) / _DIM)
    return bool(np.mean(square - mean**2) <= threshold * light**2)


def equal_channels(pixels: Pixels) -> bool:
    """Whether R = G = B in every pixel of an (H, W, 3) picture."""
    parts = (pixels[rows] for rows in bands(pixels.shape))
    return all(np.array_equal(part[..., 0], part[..., other]) for part in parts for other in (1, 2))


def to_gray(pixels: NDArray[Any]) -> NDArray[np.float64]:
    """Brightness of RGB pixels, repeated on three equal channels.

    Args:
        pixels: (..., 3), any real dtype.
    Returns:
        (..., 3) float64 in the units of the input.
    Source: the published pipeline.
    """
    return np.repeat(brightness_of(pixels)[..., None], 3, axis=-1)


def brightness_of(pixels: NDArray[Any]) -> NDArray[np.float64]:
    """Brightness (...) of RGB pixels (..., 3), see `to_gray`."""
    weighted = 0.2989 * pixels[..., 0] + 0.5870 * pixels[..., 1] + 0.1140 * pixels[..., 2]
    return np.asarray(weighted, np.float64)


def match_statistics(content: NDArray[Any], style: NDArray[Any]) -> NDArray[np.float64]:
    """Gives content the mean and standard deviation of style, per channel.

    Args:
        content: (H, W, C), any real dtype.
        style: (H', W', C), any real dtype.
    Returns:
        (H, W, C) float64, neither clipped nor rounded.
    Source: the published pipeline.
    """
    content, style = content.astype(np.float64), style.astype(np.float64)
    spread, wanted = (np.sqrt(image.var(axis=(0, 1)) + 1e-5) for image in (content, style))
    matched = (content - content.mean(axis=(0, 1))) / spread * wanted + style.mean(axis=(0, 1))
    return np.asarray(matched, np.float64)


def to_tensor(crops: NDArray[np.uint8]) -> torch.Tensor:
    """Converts crops to network input: (N, S, S, 3) uint8 to (N, 3, S, S) float32 in [-1, 1].

    The memory layout stays channels last, in which convolutions are fastest.
    """
    import torch

    return from_levels(torch.tensor(np.ascontiguousarray(crops)))


def from_levels(values: torch.Tensor) -> torch.Tensor:
    """As `to_tensor`, for crops that are a tensor already; stays on its device."""
    return (values.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def from_tensor(images: torch.Tensor) -> NDArray[np.uint8]:
    """Clamps and rounds network output: (N, 3, S, S) in [-1, 1] to (N, S, S, 3) uint8."""
    return np.asarray(to_levels(images.detach()).cpu().numpy(), np.uint8)


def to_levels(images: torch.Tensor) -> torch.Tensor:
    """As `from_tensor`, but returns a tensor on the images' device."""
    import torch

    values = ((images.float().clamp(-1, 1) + 1) / 2 * 255).round().to(torch.uint8)
    return values.permute(0, 2, 3, 1).contiguous()


def to_uint8(pixels: Pixels) -> NDArray[np.uint8]:
    """Converts to 8 bits: 16-bit values are divided by 257 and rounded, 8-bit pixels unchanged."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    narrow = np.empty(pixels.shape, np.uint8)
    for rows in bands(pixels.shape):
        narrow[rows] = (pixels[rows] * np.uint32(255) + np.uint32(32895)) >> 16  # exact for all
    return narrow


def to_depth(pixels: NDArray[np.uint8], depth: np.dtype[Any]) -> Pixels:
    """Converts 8-bit pixels to 8 or 16 bits; `to_uint8` restores them exactly."""
    return pixels.astype(np.uint16) * 257 if depth == np.uint16 else pixels


def keep_neutral(result: Pixels, original: Pixels) -> Pixels:
    """Makes the result's channels equal if the original's are.

    The border colour of a crop is not quite neutral, so its statistics can tint a face.
    """
    return np.repeat(result[..., 1:2], 3, axis=2) if equal_channels(original) else result


def resize(
    image: NDArray[Depth], height: int, width: int, *, enlarge: int = cv2.INTER_LINEAR
) -> NDArray[Depth]:
    """Resizes (H, W) or (H, W, 3) to (height, width), by averaging if neither side grows.

    Args:
        enlarge: OpenCV's method if a side grows.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    method = cv2.INTER_AREA if shrinks else enlarge
    resized = cv2.resize(image, (width, height), interpolation=method)
    return np.asarray(resized, image.dtype)


def name_of(place: object) -> str:
    """The name of a source or target for messages, always on one line."""
    if isinstance(place, (str, os.PathLike)):
        return printable(os.fspath(place)) or "''"
    name = getattr(place, "name", None)
    return printable(name) if isinstance(name, str) else "<bytes>"


def reason_of(error: BaseException) -> str:
    """The message of a decoder, encoder or system error, on one line, never empty."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(" ".join(text.split()).rstrip(".") or type(error).__name__)


def printable(text: str) -> str:
    """Escapes unprintable characters as in a Python string: \\n, \\udcff."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
