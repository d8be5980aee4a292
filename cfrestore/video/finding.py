"""Finds the faces of all frames of a video, and records them for runs that continue this one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from cfrestore.align import align_face
from cfrestore.batch import PIXELS_AHEAD
from cfrestore.batch.ahead import ahead, threads
from cfrestore.detail import weigh
from cfrestore.detect import Face
from cfrestore.errors import DegenerateFaceError
from cfrestore.image import is_gray, to_uint8
from cfrestore.select import SkippedFace
from cfrestore.video.source import Video, decode
from cfrestore.video.tracks import Frame, Sighting

if TYPE_CHECKING:
    import av
    from numpy.typing import NDArray

    from cfrestore.pipeline import Pipeline
    from cfrestore.video.coding import FrameConverter

CUT_FROM = 25.0
"""Mean change of a thumbnail, in 8-bit levels, from which a frame begins a new shot."""

_THUMBNAIL = (32, 18)  # width and height, px


@dataclass(frozen=True, eq=False)
class _Look:
    """What one frame shows.

    Attributes:
        pts: when it is shown, in units of the video's time base.
        thumbnail: (18, 32, 3) uint8.
    """

    pts: int
    thumbnail: NDArray[np.uint8]
    gray: bool
    sightings: tuple[Sighting, ...]


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in a video.

    Attributes:
        frames: all frames, with the faces in each.
        damaged: number of packets that could not be decoded.
    """

    frames: tuple[Frame, ...]
    damaged: int


def find_faces(
    video: Video,
    pipeline: Pipeline,
    converter: FrameConverter,
    notes: Path,
    workers: int,
    advance: Callable[[int], object] = lambda count: None,
) -> Found:
    """Finds the faces of all frames.

    Args:
        notes: a file of JSON lines, one a frame, to which each is added as it is known; the frames
            that it has already are not searched again.
        workers: threads that search frames; the detector itself runs in one of them at a time.
        advance: called with the number of frames that became known.
    Raises:
        VideoError: the video cannot be read.
        OSError: the notes cannot be written.
    """
    known = _known(notes)
    damaged = 0

    def note_damage() -> None:
        nonlocal damaged
        damaged += 1

    begun = len(known)
    first = max(0, begun - 1)  # the last known frame shows whether the next one begins a shot
    frames = islice(decode(video, note_damage), first, None)
    height, width = video.size
    advance(begun)
    previous: NDArray[np.uint8] | None = None
    with threads(workers) as pool, notes.open("ab") as stream:
        looks = ahead(
            pool,
            partial(_look, pipeline, converter),
            frames,
            lambda _: height * width,
            count=2 * workers,
            weight=PIXELS_AHEAD,
        )
        for index, seen in enumerate(looks, first):
            if index >= begun:
                cut = previous is None or _differs(previous, seen.thumbnail)
                values = _to_json(seen, cut)
                stream.write(json.dumps(values).encode() + b"\n")
                stream.flush()
                known.append(values)
                advance(1)
            previous = seen.thumbnail
    return Found(tuple(_from_json(values, video) for values in known), damaged)


def _look(pipeline: Pipeline, converter: FrameConverter, frame: av.VideoFrame) -> _Look:
    """Searches one frame."""
    assert pipeline.detector is not None
    pixels = converter.to_pixels(converter.prepare(frame))
    levels = to_uint8(pixels)
    sightings = []
    for face in pipeline.detector(levels):
        try:
            aligned = align_face(levels, face, pipeline.crop_size)
        except DegenerateFaceError:
            continue
        (weighed,) = weigh(pixels, "auto", [aligned])
        sightings.append(Sighting(face, isinstance(weighed, SkippedFace)))
    thumbnail = np.asarray(cv2.resize(levels, _THUMBNAIL, interpolation=cv2.INTER_AREA), np.uint8)
    return _Look(frame.pts or 0, thumbnail, is_gray(levels), tuple(sightings))


def _differs(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    return bool(np.abs(one.astype(np.int16) - other).mean() > CUT_FROM)


def _to_json(look: _Look, cut: bool) -> dict[str, Any]:
    faces = [
        {
            "box": sighting.face.box.tolist(),
            "score": float(sighting.face.score),
            "landmarks": sighting.face.landmarks.tolist(),
            "sharp": sighting.sharp,
        }
        for sighting in look.sightings
    ]
    return {"pts": look.pts, "cut": cut, "gray": look.gray, "faces": faces}


def _from_json(values: Mapping[str, Any], video: Video) -> Frame:
    sightings = (
        Sighting(
            Face(
                np.array(face["box"], np.float32),
                face["score"],
                np.array(face["landmarks"], np.float32),
            ),
            face["sharp"],
        )
        for face in values["faces"]
    )
    time = float(values["pts"] * video.time_base)
    return Frame(time, tuple(sightings), values["cut"], values["gray"])


def _known(notes: Path) -> list[Mapping[str, Any]]:
    """The complete lines at the head of an earlier run's notes; truncates the file after them."""
    if not notes.exists():
        return []
    known, size = [], 0
    for line in notes.read_bytes().splitlines(keepends=True):
        try:
            values = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        known.append(values)
        size += len(line)
    with notes.open("rb+") as stream:
        stream.truncate(size)
    return known
