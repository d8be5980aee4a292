"""What is done to photographs, in three steps, so that faces of several can be painted together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from cfrestore.restore import FailedFace, RestoredFace
from cfrestore.select import SkippedFace

if TYPE_CHECKING:
    from cfrestore.align import AlignedFace
    from cfrestore.image import Photo

Painted: TypeAlias = RestoredFace | FailedFace
"""What the network makes of one aligned face."""

Result: TypeAlias = Painted | SkippedFace
"""What becomes of one detected face."""


@dataclass(frozen=True, eq=False)
class Restoration:
    """What became of one photograph.

    Attributes:
        photo: the result, with the input's metadata, alpha and bit depth.
        faces: one value per detected face, in the detector's order; empty if there was none.
        missing: indices of Options.faces that no detected face has.
        remarks: what else was asked for and is not done, each half a sentence.
        samples: as many more results as Options.samples asks for.
    """

    photo: Photo
    faces: tuple[Result, ...]
    missing: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()
    samples: tuple[Photo, ...] = ()

    @property
    def numbered(self) -> tuple[tuple[int, RestoredFace], ...]:
        """The faces that are new in the result, each with its index among all."""
        return tuple((k, f) for k, f in enumerate(self.faces) if isinstance(f, RestoredFace))

    @property
    def restored(self) -> tuple[RestoredFace, ...]:
        """The faces that are new in the result."""
        return tuple(face for _, face in self.numbered)

    @property
    def failed(self) -> tuple[FailedFace, ...]:
        """The faces that were to be restored, but were left as they are."""
        return tuple(face for face in self.faces if isinstance(face, FailedFace))

    @property
    def skipped(self) -> tuple[SkippedFace, ...]:
        """The faces that the options do not ask for."""
        return tuple(face for face in self.faces if isinstance(face, SkippedFace))


@dataclass(frozen=True, eq=False)
class Prepared:
    """One photograph with its faces found and cut out.

    Attributes:
        faces: what the network is to paint.
        finish: makes the result of what it painted, in the same order; to be called once, in
            whatever thread.
    """

    faces: tuple[AlignedFace, ...]
    finish: Callable[[Sequence[Painted]], Restoration]


@dataclass(frozen=True, eq=False)
class Procedure:
    """One task with its options: called with a photograph, it does all of it at once.

    Attributes:
        prepare: finds faces and cuts them out, in whatever thread.
        paint: faces, of however many photographs, to what the network makes of each.
        batch_size: faces that are worth waiting for before painting.
        upscale: sides of the result over those of the photograph.
        settings: all that decides the result beside the photograph, as values that JSON knows.
    """

    prepare: Callable[[Photo], Prepared]
    paint: Callable[[Sequence[AlignedFace]], Sequence[Painted]]
    batch_size: int = 1
    upscale: int = 1
    settings: Mapping[str, object] = field(default_factory=dict)

    def __call__(self, photo: Photo) -> Restoration:
        prepared = self.prepare(photo)
        return prepared.finish(self.paint(prepared.faces))
