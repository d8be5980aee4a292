"""Restores frames in overlapping stages: their faces are cut out, painted, calmed and pasted."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeAlias

from cfrestore.batch import PIXELS_AHEAD
from cfrestore.batch.ahead import ahead, grouped, threads
from cfrestore.batch.engine import PICTURES_AHEAD
from cfrestore.errors import VideoError
from cfrestore.image import Photo
from cfrestore.restore import FailedFace, RestoredFace
from cfrestore.video.calming import REACH, calm
from cfrestore.video.source import Video, decode
from cfrestore.video.tracks import Plan, PlannedFace

if TYPE_CHECKING:
    import av

    from cfrestore.align import AlignedFace
    from cfrestore.procedure import PaintedFace, Prepared, Procedure
    from cfrestore.video.coding import FrameConverter


@dataclass(frozen=True, eq=False)
class _Begun:
    """A frame whose faces are cut out.

    Attributes:
        frame: in the format that is coded.
        photo: the frame in RGB, and what was prepared from it; None if the frame stays as it is.
    """

    frame: av.VideoFrame
    photo: tuple[Photo, Prepared] | None = None

    @property
    def faces(self) -> tuple[AlignedFace, ...]:
        return self.photo[1].faces if self.photo else ()


@dataclass(frozen=True, eq=False)
class _Painted:
    """A frame whose faces are painted."""

    begun: _Begun
    faces: Sequence[PaintedFace]


_Window: TypeAlias = tuple[_Painted | None, ...]
"""A frame with REACH frames before and after it."""


@dataclass(frozen=True, eq=False)
class RestoredFrame:
    """A frame, and the faces in it that were left as they are."""

    frame: av.VideoFrame
    failed: tuple[FailedFace, ...] = ()


@dataclass(frozen=True, eq=False)
class FramePainter:
    """Restores the frames of a video.

    Attributes:
        result: the video as it is coded, which may be larger.
        anew: whether all pixels of a frame are new, not only those of faces.
        gray: whether the video is gray, though single frames may not look it.
        workers: threads that cut faces out, and as many that paste them.
    """

    video: Video
    result: Video
    plan: Plan
    procedure: Procedure
    converter: FrameConverter
    anew: bool
    gray: bool
    workers: int

    def restored(self, first: int) -> Iterator[RestoredFrame]:
        """The restored frames from index `first` on.

        Raises:
            VideoError: the video does not have as many frames as before.
        """
        height, width = self.result.size
        on = partial(
            ahead, weigh=lambda _: height * width, count=2 * self.workers, weight=PIXELS_AHEAD
        )
        begin = max(0, first - REACH)  # frames before `first` calm it
        frames = islice(enumerate(decode(self.video)), begin, None)
        with threads(self.workers) as readers, threads(self.workers) as writers:
            begun = on(readers, self._begin, frames)
            groups = grouped(
                begun,
                lambda frame: len(frame.faces),
                lambda _: height * width,
                enough=self.procedure.batch_size,
                count=PICTURES_AHEAD,
                weight=PIXELS_AHEAD,
            )
            painted = chain.from_iterable(map(self._paint, groups))
            windows = islice(_windows(painted), first - begin, None)
            yield from on(writers, self._finish, windows)

    def _begin(self, item: tuple[int, av.VideoFrame]) -> _Begun:
        index, decoded = item
        if index >= len(self.plan.frames):
            raise VideoError(f"{self.video.path} has more frames than before")
        frame = self.converter.prepare(decoded)
        if not (self.plan.frames[index] or self.anew):
            return _Begun(frame)
        photo = Photo(self.converter.to_pixels(frame), gray=self.gray)
        return _Begun(frame, (photo, self.procedure.prepare(photo, self.plan.frames[index])))

    def _paint(self, frames: Sequence[_Begun]) -> Iterator[_Painted]:
        faces = [face for frame in frames for face in frame.faces]
        painted = iter(self.procedure.paint(faces) if faces else ())
        for frame in frames:
            yield _Painted(frame, tuple(islice(painted, len(frame.faces))))

    def _finish(self, window: _Window) -> RestoredFrame:
        middle = window[REACH]
        assert middle is not None
        frame = middle.begun.frame
        if middle.begun.photo is None:
            return RestoredFrame(frame)
        photo, prepared = middle.begun.photo
        restoration = prepared.finish(
            [_calmed(window, f) if isinstance(f, RestoredFace) else f for f in middle.faces]
        )
        before = None if self.anew else photo.pixels
        frame = self.converter.to_frame(restoration.photo.pixels, before, frame)
        return RestoredFrame(frame, restoration.failed)


def _windows(painted: Iterable[_Painted]) -> Iterator[_Window]:
    """A window around each frame; None stands for frames before the first and after the last."""
    window: deque[_Painted | None] = deque(maxlen=2 * REACH + 1)
    for item in chain([None] * REACH, painted, [None] * REACH):
        window.append(item)
        if len(window) == window.maxlen and window[REACH] is not None:
            yield tuple(window)


def _calmed(window: _Window, face: RestoredFace) -> RestoredFace:
    """A face of the middle frame, calmed by those of the same track in the other frames."""
    crops = face.aligned.crop, face.crop
    others = (
        (index - REACH, other.aligned.crop, other.crop)
        for index, item in enumerate(window)
        if item is not None and index != REACH
        for other in item.faces
        if isinstance(other, RestoredFace) and _planned(other).track == _planned(face).track
    )
    before, painted = calm(crops, others)
    aligned = replace(face.aligned, crop=before)
    return replace(face, crop=painted, aligned=aligned, opacity=_planned(face).opacity)


def _planned(face: RestoredFace) -> PlannedFace:
    assert isinstance(face.aligned.face, PlannedFace)
    return face.aligned.face
