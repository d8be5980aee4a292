"""Clean faces: decoded once, kept as uint8, drawn in an order decided by seed and iteration."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cfrestore.device import CPU, free_memory, generator_for
from cfrestore.errors import ImageError
from cfrestore.files import is_file, is_folder
from cfrestore.image import is_picture, pictures_in, read_photo, resize, to_uint8
from cfrestore.part import Part
from cfrestore.train.config import Augmentation

WARP_POINTS = 4
"""Points along a side at which the displacement of a warp is drawn."""


@dataclass(frozen=True, eq=False)
class Faces:
    """Aligned clean faces.

    Attributes:
        images: (N,3,S,S) uint8 RGB, on the training device if they fit, else in main memory.
        names: file names, in the order of images.
    """

    images: Tensor
    names: tuple[str, ...]

    def __add__(self, others: Faces) -> Faces:
        """These faces and others of the same size, on the device of these."""
        images = torch.cat((self.images, others.images.to(self.images.device)))
        return Faces(images, self.names + others.names)


def load_faces(sources: Sequence[Path], size: int, device: torch.device) -> Faces:
    """Reads all faces of folders (searched recursively) and tar shards, resized to size.

    Faces are kept on the device if they fit into half of its free memory, else in main memory.

    Args:
        sources: folders or .tar files; hidden files in them are left out.
        size: S, to which other sizes are resampled.
    Raises:
        ImageError: a source is missing or holds no picture, or a picture is unreadable.
    """

    files = sorted(_files(sources), key=lambda item: item[0])
    if not files:
        raise ImageError(f"no pictures in {', '.join(map(str, sources))}")
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)

    def decode(n: int) -> None:
        name, content = files[n]
        try:
            pixels = to_uint8(read_photo(content).pixels)
        except ImageError as error:
            raise ImageError(f"{name} cannot be read: {error}") from error
        images[n] = torch.from_numpy(resize(pixels, size, size)).permute(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode, range(len(files))))
    if images.nbytes < free_memory(device) // 2:
        images = images.to(device)
    return Faces(images, tuple(name for name, _ in files))


def face_names(sources: Sequence[Path]) -> tuple[str, ...]:
    """The names that `load_faces` returns, without decoding pictures; raises the same errors."""
    return tuple(sorted(name for name, _ in _files(sources)))


def _files(sources: Sequence[Path]) -> Iterator[tuple[str, Path | bytes]]:
    """Names of all pictures, each with its path or, from a shard, its bytes."""
    for source in sources:
        if is_folder(source):
            yield from ((path.name, path) for path in pictures_in(source))
        elif is_file(source):
            yield from _members(source)
        else:
            raise ImageError(f"{source} does not exist")


def _members(shard: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all pictures of a shard."""
    try:
        with tarfile.open(shard) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if is_picture(name) and (data := archive.extractfile(member)) is not None:
                    yield name.name, data.read()
    except tarfile.TarError as error:
        raise ImageError(f"{shard} is neither a folder nor a tar file") from error
    except (OSError, EOFError, KeyError, zlib.error) as error:
        raise ImageError(f"{shard} cannot be read: {error}") from error


class Named(Protocol):
    """A collection whose members have names."""

    @property
    def names(self) -> Sequence[str]: ...


Shown = TypeVar("Shown", bound=Named)


class Order(Generic[Shown]):
    """Decides which faces an iteration sees, independently of earlier iterations.

    Args:
        shown: the faces, or data computed from them.
        augmentation: how they are changed, and how often each is shown.
        batch_size: B of this process.
        seed: decides everything, together with the iteration.
        rank, world: index of this process and number of processes; each has its own part of every
            batch, see `Part`.
    """

    def __init__(
        self,
        shown: Shown,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        times = [
            next((n for pattern, n in augmentation.repeats if re.match(pattern, name)), 1)
            for name in shown.names
        ]
        count = torch.arange(len(times))
        self.epoch = count.repeat_interleave(torch.tensor(times))
        self.shown = shown
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.seed, self.rank, self.world = seed, rank, world
        self._part = Part(batch_size * world, rank, world)

    def indices(self, t: int) -> Tensor:
        """Indices (B,) int64 of the faces that iteration t (from 1) of this process sees."""
        position = (t - 1) * self._part.whole + self._part.of(torch.arange(self._part.whole))
        epochs = position // len(self.epoch)
        chosen = torch.empty_like(position)
        for epoch in epochs.unique().tolist():
            generator = generator_for(CPU, self.seed, epoch)
            order = self.epoch[torch.randperm(len(self.epoch), generator=generator)]
            here = epochs == epoch
            chosen[here] = order[position[here] % len(self.epoch)]
        return chosen

    def generator(self, t: int, purpose: int, device: torch.device) -> torch.Generator:
        """The generator of iteration t for one purpose, the same in every process."""
        return generator_for(device, self.seed, t, purpose)


class Sampler(Order[Faces]):
    """Supplies batches of clean faces for any iteration."""

    def batch(self, t: int, device: torch.device) -> Tensor:
        """Clean faces of iteration t, augmented: (B,3,S,S) float32 in [0, 1] on the device."""
        images = self.shown.images
        picked = (
            images[self.indices(t).to(images.device, non_blocking=True)].to(device).float() / 255
        )
        return augment(picked, self.augmentation, self.generator(t, 1, device), self._part)

    def first(self, count: int, device: torch.device) -> Tensor:
        """The first few faces, unchanged: (count,3,S,S) float32 in [0, 1] on the device."""
        return self.shown.images[:count].to(device).float() / 255


def augment(
    images: Tensor, how: Augmentation, generator: torch.Generator, part: Part | None = None
) -> Tensor:
    """Augments clean faces (B,3,S,S) in [0, 1]; keeps shape and range.

    Args:
        part: as in `degrade`.
    """
    batch, _, size, _ = images.shape
    part = Part.own(batch) if part is None else part

    def draw(*shape: int) -> Tensor:
        shape = (part.whole, *shape, 1, 1)
        return part.of(torch.rand(shape, generator=generator, device=images.device))

    def around(strength: float, channels: int = 1) -> Tensor:
        return 1 + strength * (2 * draw(channels) - 1)

    x = torch.where(draw(1) < how.mirror, images.flip(-1), images)
    if how.shift:
        padded = F.pad(x, (how.shift,) * 4, mode="reflect")
        steps = torch.arange(size, device=images.device)
        dy, dx = ((draw(1).flatten() * (2 * how.shift + 1)).long() for _ in range(2))
        rows = (dy[:, None] + steps)[:, None, :, None].expand(-1, 3, -1, padded.shape[-1])
        columns = (dx[:, None] + steps)[:, None, None].expand(-1, 3, size, -1)
        x = padded.gather(2, rows).gather(3, columns)
    if how.warp:
        field = 2 * draw(2 * WARP_POINTS**2).view(-1, 2, WARP_POINTS, WARP_POINTS) - 1
        x = warped(x, how.warp * draw(1) * field)
    red, green, blue = x.unbind(1)
    luma = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
    saturation = torch.where(draw(1) < how.gray, 0.0, around(how.saturation))
    x = luma + saturation * (x - luma)
    # A tint would colour gray faces again.
    x = x * torch.where(saturation > 0, around(how.tint, 3), 1.0)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * around(how.contrast) + mean * around(how.brightness)
    return x.clamp(0, 1)


def warped(images: Tensor, field: Tensor) -> Tensor:
    """Bends images by smooth fields; borders are reflected.

    Args:
        images: (B,3,S,S).
        field: (B,2,n,n), displacements to the right and downwards at n x n points, as shares of S.
    """
    side = images.shape[-1]
    at = (torch.arange(side, device=images.device) * 2 + 1) / side - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    moved = F.interpolate(field, (side, side), mode="bicubic", align_corners=True)
    grid = torch.stack((x, y), -1) + 2 * moved.permute(0, 2, 3, 1)
    # Bilinear sampling would blur the faces.
    return F.grid_sample(images, grid, "bicubic", "reflection", align_corners=False)


def to_network(faces: Tensor) -> Tensor:
    """Converts faces (B,3,S,S) in [0, 1] to network input: in [-1, 1], channels last."""
    return (faces * 2 - 1).to(memory_format=torch.channels_last)


def to_picture(x: Tensor) -> Tensor:
    """Converts network output (B,3,S,S) to pictures in [0, 1], float32."""
    return ((x.float() + 1) / 2).clamp(0, 1)
