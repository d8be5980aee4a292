"""Follows faces through a shot: (faces of each frame) -> Track..., and steadies them. No torch.

A detector's landmarks tremble by a pixel from frame to frame although the face does not, and a face
is missed in some frames. Restored frame by frame, such a face swims and flickers. So the faces of
the whole video are found first; those that belong together become a track, whose landmarks are
smoothed over time and whose short gaps are filled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from cfrestore.detail import TOO_SHARP
from cfrestore.detect import Face
from cfrestore.select import SkippedFace, missing_faces, select_faces

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cfrestore.options import Options

REACH = 0.5
"""Farthest that a face moves between two sightings, in sides of its box."""

GROWTH = 1.5
"""Most that a face grows or shrinks between two sightings."""

GAP = 0.5
"""Longest time in seconds for which a face that is missed is still the same face."""

SMOOTHING = 0.08
"""Standard deviation in seconds of the window in which landmarks are smoothed."""

_WINDOW = 6  # standard deviations, beyond which weights are below 2e-8

FADING = 0.16
"""Time in seconds in which opacity rises or falls by 1 where a face comes or goes in a shot."""

FAINTEST = 0.2
"""Opacity of the first and last frame of a face that comes or goes."""

FEWEST = 4
"""Fewest sightings of a track that does not count as a false detection; in short shots, half of
their frames suffice."""


@dataclass(frozen=True, eq=False)
class Sighting:
    """A face that was found in one frame.

    Attributes:
        face: as the detector found it.
        sharp: whether it is sharper there than the network paints, see `detail.weigh`.
    """

    face: Face
    sharp: bool = False


@dataclass(frozen=True, eq=False)
class Frame:
    """What was found in one frame.

    Attributes:
        time: when it is shown, in seconds.
        sightings: the faces, in the detector's order.
        cut: whether it begins a shot.
        gray: whether it is gray, see `image.is_gray`.
    """

    time: float
    sightings: tuple[Sighting, ...] = ()
    cut: bool = False
    gray: bool = False


@dataclass(frozen=True, eq=False)
class Track:
    """One face through the frames of a shot.

    Attributes:
        sightings: by the index of their frame, ascending.
        shot: indices of the first frame of the shot and of the first one after it.
    """

    sightings: Mapping[int, Sighting]
    shot: tuple[int, int]

    @property
    def first(self) -> int:
        """Index of the first frame in which it was seen."""
        return next(iter(self.sightings))

    @property
    def last(self) -> int:
        """Index of the last frame in which it was seen."""
        return max(self.sightings)

    @cached_property
    def typical(self) -> Face:
        """A face with the medians of its box, score and landmarks."""
        faces = [sighting.face for sighting in self.sightings.values()]
        box, landmarks = (
            np.median([getattr(face, name) for face in faces], axis=0).astype(np.float32)
            for name in ("box", "landmarks")
        )
        return Face(box, float(np.median([face.score for face in faces])), landmarks)

    @property
    def fleeting(self) -> bool:
        """Whether it was seen in so few frames that restoring it would only be a flash."""
        return len(self.sightings) < min(FEWEST, (self.shot[1] - self.shot[0]) / 2)

    @property
    def sharp(self) -> bool:
        """Whether it is too sharp to be restored in at least half of its sightings."""
        return 2 * sum(s.sharp for s in self.sightings.values()) >= len(self.sightings)


@dataclass(frozen=True, eq=False)
class PlannedFace(Face):
    """A face to be restored in one frame, steadied.

    Attributes:
        opacity: how much of the restored face shows, in (0, 1].
        track: index of its track.
    """

    opacity: float
    track: int


@dataclass(frozen=True, eq=False)
class Plan:
    """What is restored in a video.

    Attributes:
        tracks: all tracks; fleeting ones come last; within both groups in descending order of the
            median score.
        chosen: for each of them its typical face, or why it is left out.
        frames: for each frame the faces to restore.
        missing: indices of Options.faces that no track has.
    """

    tracks: tuple[Track, ...]
    chosen: tuple[Face | SkippedFace, ...]
    frames: tuple[tuple[PlannedFace, ...], ...]
    missing: tuple[int, ...] = ()


def plan_faces(frames: Sequence[Frame], size: tuple[int, int], options: Options) -> Plan:
    """Decides which faces of a video are restored, and where they are in each frame.

    Every choice is made once for a whole track, by the medians of its boxes and scores.

    Args:
        frames: all frames of the video.
        size: height and width of the frames.
        options: only faces, min_face and max_face matter; indices in faces are those of tracks.
    """
    tracks = sorted(link(frames), key=lambda track: (track.fleeting, -track.typical.score))
    lasting = [track.typical for track in tracks if not track.fleeting]
    largest = options.max_face if isinstance(options.max_face, int) else None
    chosen = list(select_faces(lasting, size, options.faces, options.min_face, largest))
    for track in tracks[len(lasting) :]:
        count = len(track.sightings)
        seen = f"seen in {count} frame{'' if count == 1 else 's'} only"
        chosen.append(SkippedFace(track.typical, seen))
    planned: list[list[PlannedFace]] = [[] for _ in frames]
    for index, track in enumerate(tracks):
        if isinstance(chosen[index], Face) and options.max_face == "auto" and track.sharp:
            chosen[index] = SkippedFace(track.typical, TOO_SHARP)
        if isinstance(chosen[index], Face):
            times = [frame.time for frame in frames[track.first : track.last + 1]]
            for frame, (face, opacity) in enumerate(steady(track, times), track.first):
                planned[frame].append(
                    PlannedFace(face.box, face.score, face.landmarks, opacity, index)
                )
    missing = missing_faces(len(lasting), options.faces)
    return Plan(tuple(tracks), tuple(chosen), tuple(map(tuple, planned)), missing)


def link(frames: Sequence[Frame]) -> tuple[Track, ...]:
    """The tracks of a video, in the order of their first sightings.

    In each frame the nearest pairs of a track and a sighting are joined first.
    """
    tracks: list[Track] = []
    for start, stop in _shots(frames):
        in_shot: list[dict[int, Sighting]] = []
        for index in range(start, stop):
            frame = frames[index]
            active = [t for t in in_shot if frame.time - frames[next(reversed(t))].time <= GAP]
            known = [next(reversed(track.values())).face for track in active]
            joined = _pairs(known, [sighting.face for sighting in frame.sightings])
            for number, sighting in enumerate(frame.sightings):
                if number in joined:
                    active[joined[number]][index] = sighting
                else:
                    in_shot.append({index: sighting})
        tracks += (Track(sightings, (start, stop)) for sightings in in_shot)
    return tuple(tracks)


def steady(track: Track, times: Sequence[float]) -> Iterator[tuple[Face, float]]:
    """The steadied face of a track, and its opacity, in each frame from the track's first to last.

    Landmarks and box are those of a local linear regression with Gaussian weights over time, which
    reproduces motion at constant speed exactly. Where the track begins or ends within a shot, the
    face fades in or out; at cuts it does not.

    Args:
        times: of these frames, in seconds.
    Source: Cleveland, "Robust locally weighted regression and smoothing scatterplots" (1979),
        without its robust weights.
    """
    moments = np.asarray(times, np.float64)
    seen = moments[[index - track.first for index in track.sightings]]
    faces = [sighting.face for sighting in track.sightings.values()]
    values = np.array([np.concatenate((f.box, f.landmarks.ravel(), [f.score])) for f in faces])
    smooth = _regress(seen, values, moments)
    opacity = np.ones(len(moments))
    if track.first > track.shot[0]:
        opacity = np.minimum(opacity, FAINTEST + (moments - moments[0]) / FADING)
    if track.last + 1 < track.shot[1]:
        opacity = np.minimum(opacity, FAINTEST + (moments[-1] - moments) / FADING)
    for row, alpha in zip(smooth.astype(np.float32), opacity, strict=True):
        yield Face(row[:4], float(np.clip(row[14], 0, 1)), row[4:14].reshape(5, 2)), float(alpha)


def _regress(
    seen: NDArray[np.float64], values: NDArray[np.float64], times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Local linear regression: values (N, C) seen at times (N,), at other times (M,): (M, C)."""
    result = np.empty((len(times), values.shape[1]))
    after = np.searchsorted(seen, times)
    last = len(seen) - 1
    nearest = np.minimum(
        np.abs(seen[np.minimum(after, last)] - times),
        np.abs(seen[np.maximum(after - 1, 0)] - times),
    )
    widths = SMOOTHING + nearest  # in a gap the window is widened to its edges
    starts = np.searchsorted(seen, times - _WINDOW * widths)
    stops = np.searchsorted(seen, times + _WINDOW * widths, side="right")
    for row, (time, width) in enumerate(zip(times, widths, strict=True)):
        window = slice(starts[row], stops[row])
        offset = seen[window] - time
        weight = np.exp(-0.5 * (offset / width) ** 2)
        weight /= weight.sum()
        centre = weight @ offset
        spread = weight @ (offset - centre) ** 2
        lean = weight * (offset - centre) / spread if spread > 0 else np.zeros_like(weight)
        result[row] = (weight - centre * lean) @ values[window]
    return result


def _shots(frames: Sequence[Frame]) -> Iterator[tuple[int, int]]:
    """First frame of each shot, and the first one after it."""
    starts = [index for index, frame in enumerate(frames) if frame.cut or index == 0]
    return pairwise([*starts, len(frames)])


def _pairs(known: Sequence[Face], found: Sequence[Face]) -> dict[int, int]:
    """Joins found faces to known ones, nearest pairs first: {found index: known index}."""
    distances = sorted(
        (distance, new, old)
        for new, face in enumerate(found)
        for old, before in enumerate(known)
        if (distance := _distance(before, face)) <= REACH
    )
    joined: dict[int, int] = {}
    for _, new, old in distances:
        if new not in joined and old not in joined.values():
            joined[new] = old
    return joined


def _distance(one: Face, other: Face) -> float:
    """Distance of two boxes in sides of the larger one; infinite if their sizes differ too much."""
    sides = sorted(float(np.mean(face.box[2:] - face.box[:2])) for face in (one, other))
    if sides[1] > GROWTH * sides[0]:
        return float("inf")
    centres = [(face.box[:2] + face.box[2:]) / 2 for face in (one, other)]
    return float(np.linalg.norm(centres[1] - centres[0])) / sides[1]
