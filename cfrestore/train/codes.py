"""Codes of clean faces, computed once; the training data of priors over codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cfrestore.device import CPU
from cfrestore.train import checkpoint
from cfrestore.train.data import Order, face_names, load_faces

if TYPE_CHECKING:
    from cfrestore.train.teacher import Teacher

BATCH, SAVE_EVERY = 8, 200
"""Faces per batch, and faces after which the file is written again."""


@dataclass(frozen=True, eq=False)
class CodeMaps:
    """The codes of clean faces.

    Attributes:
        maps: (N,2,s,s) int64, of each face and of its mirror image.
        names: file names, in the order of maps.
    """

    maps: Tensor
    names: tuple[str, ...]

    def split(self, every: int) -> tuple[CodeMaps, CodeMaps]:
        """Training and held-out codes: every `every`-th face is held out."""
        kept = torch.arange(len(self.names)) % every == every - 1
        first, second = (
            CodeMaps(self.maps[some], tuple(self.names[n] for n in some.nonzero()[:, 0].tolist()))
            for some in (~kept, kept)
        )
        return first, second


def load_codes(
    sources: Sequence[Path],
    teacher: Teacher,
    file: Path,
    device: torch.device,
    say: Callable[[str], None],
    mixed: bool = False,
    keep: bool = True,
) -> CodeMaps:
    """The codes of all faces of folders and tar shards, read from the file or computed.

    Args:
        sources: see `load_faces`.
        teacher: the autoencoder that defines the codes, on the device.
        file: stores the codes, also those of an interrupted run; it is reused if the autoencoder
            and the names of the faces are the same.
        say: called with lines of progress.
        mixed: encode in bfloat16, which is faster and changes one code in fifty.
        keep: whether to write the file; of several processes only one should.
    Raises:
        ImageError, CheckpointError: a source, or the file, cannot be read.
        OutputError: the file cannot be written.
    """
    names, digest = face_names(sources), teacher.digest
    found: list[Tensor] = []
    if checkpoint.exists(file):
        kept = checkpoint.read(file)
        if kept.get("digest") == digest and kept.get("names") == list(names):
            found = [kept["maps"]]
            if len(kept["maps"]) == len(names):
                return CodeMaps(kept["maps"].long(), names)
    shape = teacher.autoencoder.config
    faces = load_faces(sources, shape.image_size, device)
    for start in range(sum(map(len, found)), len(names), BATCH):
        images = faces.images[start : start + BATCH].to(device).float() / 127.5 - 1
        both = torch.cat((images, images.flip(-1)))
        codes = teacher.codes(both.contiguous(memory_format=torch.channels_last), mixed)
        maps = codes.view(2, -1, shape.code_side, shape.code_side)
        found.append(maps.transpose(0, 1).short().cpu())
        done = start + len(images)
        if keep and (done % SAVE_EVERY == 0 or done == len(names)):
            content = {"digest": digest, "names": list(names), "maps": torch.cat(found)}
            checkpoint.write(file, content)
            say(f"codes of {done} of {len(names)} faces")
    return CodeMaps(torch.cat(found).long(), names)


class CodeSampler(Order[CodeMaps]):
    """Supplies batches of code maps for any iteration, of faces or of their mirror images.

    Of the augmentation, only `mirror` and `repeats` apply.
    """

    def batch(self, t: int, device: torch.device) -> Tensor:
        """Code maps of iteration t, (B,s,s) int64 on the device."""
        generator = self.generator(t, 1, CPU)
        draws = self._part.of(torch.rand(self._part.whole, generator=generator))
        mirrored = (draws < self.augmentation.mirror).long()
        return self.shown.maps[self.indices(t), mirrored].to(device)

    def first(self, count: int, device: torch.device) -> Tensor:
        """Code maps of the first few faces, not mirrored: (count,s,s) int64 on the device."""
        return self.shown.maps[:count, 0].to(device)
