"""Restores the faces of a video: find them in all frames, follow them, paint, code, join.

Until the result is complete, a folder beside it holds the work: the faces that were found, and the
coded frames in segments. So the same call continues a run that was cut short, for whatever reason.
Of all that is in memory, only the positions of faces grow with the length of the video.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import av
from filelock import FileLock, Timeout

from cfrestore import __version__
from cfrestore.batch import WORKERS
from cfrestore.batch.engine import timed
from cfrestore.batch.manifest import digest_of
from cfrestore.errors import ConfigError, OutputError, VideoError
from cfrestore.files import drafted, exists, is_file
from cfrestore.options import Options
from cfrestore.video.coding import Coding, FrameConverter, choose_coding, code, enlarged
from cfrestore.video.container import CONTAINERS, check_container, join
from cfrestore.video.finding import Found, find_faces
from cfrestore.video.painting import FramePainter, RestoredFrame
from cfrestore.video.segments import read_header, read_segment, write_segment
from cfrestore.video.source import Video, probe
from cfrestore.video.tracks import Plan, PlannedFace, plan_faces

if TYPE_CHECKING:
    from cfrestore.pipeline import Pipeline
    from cfrestore.procedure import Procedure

SEGMENT = 100
"""Frames in a segment; the most that is done again after a run was cut short."""

Stage: TypeAlias = Literal["finding", "painting"]

Progress: TypeAlias = Callable[[Stage, int, int | None], object]
"""Called with a stage, how many frames more it has done, and the number of all, if known."""


@dataclass(frozen=True, eq=False)
class VideoRestoration:
    """What became of a video.

    Attributes:
        video: the properties of the original.
        plan: which faces were followed and restored.
        failures: in how many frames a face was left as it is, by the index of its track and the
            reason.
        damaged: number of packets that were left out, as they could not be decoded or copied.
        seconds: time spent in this run, by stage: find, paint, write.
    """

    video: Video
    plan: Plan
    failures: Mapping[tuple[int, str], int]
    damaged: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)


def restore_video(
    source: str | Path,
    target: str | Path,
    pipeline: Pipeline,
    options: Options = Options(fidelity=1.0),  # noqa: B008
    *,
    codec: str = "auto",
    crf: int | None = None,
    workers: int = WORKERS,
    progress: Progress = lambda stage, more, total: None,
    record: Callable[[VideoRestoration, Path], object] = lambda result, draft: None,
) -> VideoRestoration:
    """Restores the faces of a video.

    Frames keep their times; sound, subtitles, chapters and metadata are copied. Samples of pixels
    outside the faces reach the encoder as they were decoded, unless frames are enlarged.

    Args:
        source: the video.
        target: the result, one of CONTAINERS by its ending; replaced in one step at the end.
        pipeline: of `load_pipeline`, for restoration, with a detector.
        options: for each frame; which faces are restored is decided once for a whole track.
            aligned, draw_box and samples must not be set.
        codec, crf: see `choose_coding`.
        workers: threads that search frames, and as many that paste.
        progress: see Progress.
        record: called with what became of the video and the complete file, just before the file
            gets its name.
    Raises:
        VideoError: the video cannot be read.
        OutputError: the result cannot be written, or another run is writing it.
        ConfigError: the options do not suit a video, or codec or crf are out of range.
        TypeError: the options are of another type.
    """
    check_options(options)
    source, target = Path(source), Path(target)
    if exists(target) and not is_file(target):
        raise OutputError(f"{target} is not a file, so no video replaces it")
    video = probe(source)
    larger = enlarged(video, options.upscale)
    coding = choose_coding(larger, target.suffix, codec, crf)
    check_container(larger, coding, target)
    before = _state(source)
    settings = _settings(source, before, pipeline.restoring(options), coding)
    seconds: dict[str, float] = {}
    try:
        with workshop(target, digest_of(settings)) as folder:
            converter = FrameConverter.of(video, coding)
            with timed(seconds, "find"):
                found = find_faces(
                    video,
                    pipeline,
                    converter,
                    folder / "faces.jsonl",
                    workers,
                    lambda more: progress("finding", more, video.count),
                )
            work = _planned(video, larger, found, pipeline, options, converter, workers)
            with timed(seconds, "paint"):
                paths = paint_segments(work, coding, folder, partial(progress, "painting"))
            if _state(source) != before:
                raise VideoError(f"{source} was written to while it was read")
            with drafted(target, folder) as draft:  # the next run removes what a killed one leaves
                with timed(seconds, "write"):
                    container = CONTAINERS[target.suffix.lower()]
                    comment = _comment(pipeline, options)
                    failures, refused = _join(larger, coding, paths, draft, container, comment)
                damaged = found.damaged + refused
                result = VideoRestoration(video, work.plan, failures, damaged, seconds)
                record(result, draft)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}") from error
    return result


def check_options(options: Options) -> None:
    """Raises ConfigError if the options do not suit a video, TypeError if they are none."""
    if not isinstance(options, Options):
        raise TypeError(f"options must be Options, found {type(options).__name__}")
    if options.aligned or options.draw_box or options.samples:
        raise ConfigError("a video is restored without aligned, draw_box and samples")


def _settings(
    source: Path, state: tuple[int, int], procedure: Procedure, coding: Coding
) -> dict[str, object]:
    """What decides whether an earlier run's work can be continued, as JSON values."""
    return {
        **procedure.settings,
        "version": __version__,
        "video": [str(source.absolute()), *state],
        "pyav": av.__version__,  # segments of different encoders may not fit together
        "coding": [coding.encoder, coding.pix_fmt, *map(list, sorted(coding.options.items()))],
    }


def _planned(
    video: Video,
    larger: Video,
    found: Found,
    pipeline: Pipeline,
    options: Options,
    converter: FrameConverter,
    workers: int,
) -> FramePainter:
    """Plans which of the found faces are restored; returns what paints them, at the larger size."""
    unfiltered = replace(options, faces="all", min_face=0, max_face=None)  # the plan has chosen
    return FramePainter(
        video,
        larger,
        plan_faces(found.frames, video.size, options),
        pipeline.restoring(unfiltered),
        converter,
        anew=options.upscale > 1 or pipeline.bg_upsampler is not None,
        gray=2 * sum(frame.gray for frame in found.frames) > len(found.frames),
        workers=workers,
    )


def _join(
    video: Video, coding: Coding, paths: Sequence[Path], draft: Path, container: str, comment: str
) -> tuple[Mapping[tuple[int, str], int], int]:
    """Joins segments to a file; returns their failures, and how many packets `join` left out."""
    headers = [header for path in paths if (header := read_header(path))]
    refused = join(
        video,
        coding,
        [time for header in headers for time in header.shown],
        chain.from_iterable(map(read_segment, paths)),
        draft,
        container,
        comment,
    )
    return sum((header.failures for header in headers), Counter[tuple[int, str]]()), refused


def _state(source: Path) -> tuple[int, int]:
    """Size and time of the last change, in ns; raises VideoError if the file is gone."""
    try:
        found = source.stat()
    except OSError as error:
        raise VideoError(f"{source} cannot be read: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns


def _comment(pipeline: Pipeline, options: Options) -> str:
    """The comment in the metadata of the result."""
    enlarge = pipeline.upsampler
    return (
        f"faces restored by cfrestore {__version__}, "
        f"model {pipeline.model_name}, w = {options.fidelity:g}"
        f"{f', up-sampler {enlarge.path.name}' if enlarge else ''}; their detail is generated"
    )


@contextmanager
def workshop(target: Path, digest: str) -> Iterator[Path]:
    """Locks the folder beside a result in which it is made; removes it unless an error occurs.

    Files of an earlier run are kept if its settings were the same, except drafts of the result.
    Links in target are followed, so that the result only needs to be renamed.

    Raises:
        OutputError: another process works in it.
        OSError: it cannot be made.
    """
    place = Path(os.path.realpath(target))
    folder = place.with_name(f".{place.name}.cfrestore")
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "settings"
    try:
        with FileLock(folder / "lock", timeout=0):
            same = stamp.exists() and stamp.read_text() == digest
            for path in folder.iterdir():
                if path.name != "lock" and not (same and path.suffix != ".tmp"):
                    path.unlink()
            if not same:
                stamp.write_text(digest)
            yield folder
            shutil.rmtree(folder, ignore_errors=True)  # on Windows the held lock file remains
    except Timeout:
        raise OutputError(f"another run is writing {target}") from None
    shutil.rmtree(folder, ignore_errors=True)


def paint_segments(
    work: FramePainter, coding: Coding, folder: Path, advance: Callable[[int, int], object]
) -> list[Path]:
    """Restores and codes all frames, in segments; existing segments are kept.

    Args:
        folder: where the segments are.
        advance: called with the number of frames done since the last call, and that of all.
    Returns:
        the files, in order.
    Raises:
        VideoError: the video is not the one that was planned.
        OSError: a segment cannot be written.
    """
    total = len(work.plan.frames)
    firsts = range(0, total, SEGMENT)
    paths = [folder / f"{first:08d}.safetensors" for first in firsts]
    ready = len(list(takewhile(read_header, paths)))
    advance(min(ready * SEGMENT, total), total)
    frames = work.restored(ready * SEGMENT)
    for first, path in list(zip(firsts, paths, strict=True))[ready:]:
        failures: Counter[tuple[int, str]] = Counter()
        part = _counted(islice(frames, SEGMENT), failures, partial(advance, 1, total))
        coded = code(part, work.result, coding)
        if len(coded) < min(SEGMENT, total - first):
            raise VideoError(f"{work.video.path} has fewer frames than before")
        write_segment(path, coded, failures)
    return paths


def _counted(
    frames: Iterable[RestoredFrame],
    failures: Counter[tuple[int, str]],
    advance: Callable[[], object],
) -> Iterator[av.VideoFrame]:
    """Yields the frames; counts the faces that were left as they were, see Header."""
    for restored in frames:
        for failed in restored.failed:
            assert isinstance(failed.face, PlannedFace)
            failures[failed.face.track, failed.reason] += 1
        yield restored.frame
        advance()
