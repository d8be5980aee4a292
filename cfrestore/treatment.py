"""What a task does with one photograph around painting: chooses, corrects and pastes its faces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from cfrestore.align import AlignedFace
from cfrestore.image import keep_neutral, to_depth
from cfrestore.procedure import PaintedFace, Restoration, Result
from cfrestore.restore import FailedFace, RestoredFace
from cfrestore.select import SkippedFace, missing_faces
from cfrestore.show import draw_frames

if TYPE_CHECKING:
    from cfrestore.image import Photo, Pixels
    from cfrestore.options import Options

Candidate: TypeAlias = AlignedFace | FailedFace | SkippedFace
"""A detected face before painting."""

Value = TypeVar("Value", bound=Candidate | PaintedFace)


@dataclass(frozen=True, eq=False)
class Treatment:
    """The steps in which tasks differ, for one photograph.

    Attributes:
        paste: makes the whole result from painted faces.
        choose: prepares aligned faces for painting; others become SkippedFaces, with a reason.
        correct: prepares a painted face for pasting.
        remarks: says, for the pasted faces, what was requested but not done, see Restoration.
        gray_stays: whether gray pixels stay gray.
    """

    paste: Callable[[Sequence[RestoredFace]], Pixels]
    choose: Callable[[Sequence[AlignedFace]], Sequence[Candidate]] = tuple
    correct: Callable[[RestoredFace], RestoredFace] = lambda face: face
    remarks: Callable[[Sequence[RestoredFace]], tuple[str, ...]] = lambda faces: ()
    gray_stays: bool = True


@dataclass(frozen=True, eq=False)
class Finishing:
    """Makes the result for one photograph from its painted faces.

    Attributes:
        photo: the photograph.
        options: of the task.
        treatment: of the photograph.
        faces: all its detected faces; the aligned ones are painted.
        whole: the photograph itself, if it is one aligned face.
    """

    photo: Photo
    options: Options
    treatment: Treatment
    faces: Sequence[Candidate]
    whole: AlignedFace | None = None

    def __call__(self, painted: Sequence[PaintedFace]) -> Restoration:
        """The result; `painted` has one value for each aligned face, in the same order."""
        correct = self.treatment.correct
        new = [face for face in painted if isinstance(face, RestoredFace)]
        samples = tuple(
            self._result([correct(replace(face, crop=face.samples[n])) for face in new])
            for n in range(self.options.samples)
        )
        done = [correct(f) if isinstance(f, RestoredFace) else f for f in painted]
        faces: tuple[Result, ...] = each(self.faces, lambda _: done)
        restored = [face for face in faces if isinstance(face, RestoredFace)]
        return Restoration(
            self._result(restored),
            faces,
            missing_faces(len(faces), self.options.faces),
            self.treatment.remarks(restored),
            samples,
        )

    def _result(self, restored: Sequence[RestoredFace]) -> Photo:
        """The photograph with these faces."""
        photo = self.photo
        if self.whole:
            crop = restored[0].crop if restored else self.whole.crop
            result = to_depth(crop, photo.pixels.dtype)
        else:
            result = self.treatment.paste(restored)
        if self.treatment.gray_stays:
            result = keep_neutral(result, photo.pixels)
        if self.options.draw_box:
            drawn = [face.aligned for face in restored]
            result = draw_frames(result, drawn, scale=self.options.upscale)
        return photo.with_pixels(result)


def each(
    faces: Sequence[Candidate], apply: Callable[[Sequence[AlignedFace]], Sequence[Value]]
) -> tuple[Value | FailedFace | SkippedFace, ...]:
    """Applies a function to the aligned faces; the others stay unchanged in their places."""
    outcomes = iter(apply([face for face in faces if isinstance(face, AlignedFace)]))
    return tuple(next(outcomes) if isinstance(face, AlignedFace) else face for face in faces)
