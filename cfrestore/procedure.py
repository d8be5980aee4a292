"""A task in three steps, prepare, paint and finish; several photographs can share a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from cfrestore.image import Photo
from cfrestore.restore import FailedFace, RestoredFace
from cfrestore.select import SkippedFace

if TYPE_CHECKING:
    from cfrestore.align import AlignedFace
    from cfrestore.detect import Face

PaintedFace: TypeAlias = RestoredFace | FailedFace
"""The result for one aligned face."""

Result: TypeAlias = PaintedFace | SkippedFace
"""The result for one detected face."""


@dataclass(frozen=True, eq=False)
class Restoration:
    """The result for one photograph.

    Attributes:
        photo: the result, with the input's metadata, alpha and bit depth.
        faces: one value per detected face, in the detector's order; empty if there was none.
        missing: indices of Options.faces that no detected face has.
        remarks: what else was requested but not done, each half a sentence.
        samples: the additional results, see Options.samples.
    """

    photo: Photo
    faces: tuple[Result, ...]
    missing: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()
    samples: tuple[Photo, ...] = ()

    @property
    def numbered(self) -> tuple[tuple[int, RestoredFace], ...]:
        """The restored faces, each with its index among all detected faces."""
        return tuple((k, f) for k, f in enumerate(self.faces) if isinstance(f, RestoredFace))

    @property
    def restored(self) -> tuple[RestoredFace, ...]:
        """The faces that were painted and pasted."""
        return tuple(face for _, face in self.numbered)

    @property
    def failed(self) -> tuple[FailedFace, ...]:
        """The faces that were to be restored, but were left as they are."""
        return tuple(face for face in self.faces if isinstance(face, FailedFace))

    @property
    def skipped(self) -> tuple[SkippedFace, ...]:
        """The faces that were left out on purpose; each says why."""
        return tuple(face for face in self.faces if isinstance(face, SkippedFace))


@dataclass(frozen=True, eq=False)
class Prepared:
    """One photograph with its faces found and cut out.

    Attributes:
        faces: the faces for the network to paint.
        finish: makes the result from the painted faces, in the same order; call it once, in any
            thread.
    """

    faces: tuple[AlignedFace, ...]
    finish: Callable[[Sequence[PaintedFace]], Restoration]


class Prepare(Protocol):
    """Finds the faces of a photograph and cuts them out."""

    def __call__(self, photo: Photo, faces: Sequence[Face] | None = None, /) -> Prepared:
        """Prepares a photograph.

        Args:
            faces: the faces to take instead of those that the detector would find.
        """


@dataclass(frozen=True, eq=False)
class Procedure:
    """One task with its options; calling it with a photograph takes all three steps.

    Attributes:
        prepare: see Prepare; may be called in any thread.
        paint: lets the network paint faces, from any number of photographs.
        batch_size: number of faces worth waiting for before painting.
        upscale: size of the result divided by that of the photograph.
        settings: everything besides the photograph that determines the result, as JSON values.
        spares_processor: whether painting leaves the processor to the other steps.
    """

    prepare: Prepare
    paint: Callable[[Sequence[AlignedFace]], Sequence[PaintedFace]]
    batch_size: int = 1
    upscale: int = 1
    settings: Mapping[str, object] = field(default_factory=dict)
    spares_processor: bool = False

    def __call__(self, photo: Photo) -> Restoration:
        if not isinstance(photo, Photo):  # a likely mistake: a path or an array
            found = type(photo).__name__
            raise TypeError(f"photo must be a Photo, as read_photo gives it, found {found}")
        prepared = self.prepare(photo)
        return prepared.finish(self.paint(prepared.faces))
