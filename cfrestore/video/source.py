"""Reads videos: what is in a file, and its frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import av.filter
from av.stream import Disposition

from cfrestore.errors import VideoError

if TYPE_CHECKING:
    from av.container import InputContainer

_RGB, _BT709 = 0, 1  # FFmpeg's numbers of matrices
_FULL_RANGE = 2  # FFmpeg's number

_LENIENT: Mapping[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
)
"""Lets PyAV read metadata that is not UTF-8; from version 19 on it does so by default."""

_TURNS: Mapping[int, tuple[tuple[str, str | None], ...]] = {
    90: (("transpose", "cclock"),),
    180: (("hflip", None), ("vflip", None)),
    270: (("transpose", "clock"),),
}
"""FFmpeg's filters that turn a frame by so many degrees counter-clockwise."""


@dataclass(frozen=True)
class Video:
    """What is known of a video before its frames are decoded.

    Attributes:
        path: the file.
        size: height and width of the frames, upright.
        turn: degrees, counter-clockwise, by which decoded frames are turned to be upright.
        time_base: unit of all times, in seconds.
        rate: frames a second, on average.
        count: number of frames that the file claims to have, or that its duration suggests; None
            if it says neither.
        codec: FFmpeg's name of the format in which the frames are coded.
        pix_fmt: FFmpeg's name of the format of their pixels.
        matrix, span, primaries, transfer: colour properties, as FFmpeg's numbers; span is the
            range. For an RGB video, matrix is the one with which the result is coded.
        aspect: width of a pixel over its height.
        notes: whole sentences on what of the file a result does not keep.
    """

    path: Path
    size: tuple[int, int]
    turn: int
    time_base: Fraction
    rate: Fraction
    count: int | None
    codec: str
    pix_fmt: str
    matrix: int
    span: int
    primaries: int
    transfer: int
    aspect: Fraction
    notes: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Usual time from one frame to the next, in units of `time_base`."""
        return max(1, round(1 / self.rate / self.time_base))


def probe(path: Path) -> Video:
    """Reads what is in a video file, up to its first frame.

    Raises:
        VideoError: it cannot be read, or holds no video.
    """
    if path.exists() and not path.is_file():  # a pipe can only be read once
        raise VideoError(f"{path} cannot be read as a video: it is not a file")
    with reading(path) as source:
        stream = video_stream(source, path)
        frame = next(_decoded(source, stream, lambda: None), None)
        if frame is None:
            raise VideoError(f"{path} has no frame that can be decoded")
        turn = round(frame.rotation) % 360 if round(frame.rotation) % 90 == 0 else 0
        height, width = frame.height, frame.width
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        if turn % 180:
            height, width, aspect = width, height, 1 / aspect
        rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        seconds = float((stream.duration or 0) * (stream.time_base or 0)) or (
            float(source.duration or 0) / av.time_base
        )
        assert stream.time_base is not None
        return Video(
            path,
            (height, width),
            turn,
            stream.time_base,
            rate,
            stream.frames or round(seconds * rate) or None,
            stream.codec_context.codec.canonical_name,
            frame.format.name,
            _BT709 if frame.colorspace == _RGB or frame.format.is_rgb else frame.colorspace,
            _FULL_RANGE if frame.format.name.startswith("yuvj") else frame.color_range,
            frame.color_primaries,
            frame.color_trc,
            aspect,
            tuple(_notes(source, stream, frame)),
        )


def _notes(source: InputContainer, stream: Any, frame: av.VideoFrame) -> Iterator[str]:
    for other in source.streams:
        chapters = other.type == "data" and other.name == "bin_data" and source.chapters()
        if other is not stream and not is_copied(other) and not chapters:  # `join` copies these
            what = "cover picture" if _is_cover(other) else f"{other.type} stream"
            yield f"The {what} {other.index} is not kept."
    if frame.interlaced_frame:
        yield "The video is interlaced; its frames are restored and written as whole pictures."
    alpha = any(component.is_alpha for component in frame.format.components)
    if alpha or stream.metadata.get("alpha_mode") == "1":  # beside the frames of VP8 and VP9
        yield "Its transparency is not kept."


def decode(video: Video, on_damage: Callable[[], None] = lambda: None) -> Iterator[av.VideoFrame]:
    """The frames of a video, in order, upright, each with a time later than the one before.

    A frame without a time follows the one before at the usual distance. Every call gives the same
    frames, with the same `pts` in units of `time_base`.

    Args:
        on_damage: called for each packet that cannot be decoded, which is left out.
    Raises:
        VideoError: the file cannot be read.
    """
    last: int | None = None
    with reading(video.path) as source:
        stream = video_stream(source, video.path)
        stream.thread_type = "AUTO"
        turned = _turner(video, stream)
        for frame in _decoded(source, stream, on_damage):
            time = frame.pts if frame.pts is not None else frame.dts
            if time is None:
                time = 0 if last is None else last + video.step
            last = time if last is None else max(time, last + 1)
            upright = turned(frame)
            upright.pts, upright.time_base = last, video.time_base
            yield upright


def _decoded(
    source: InputContainer, stream: Any, on_damage: Callable[[], None]
) -> Iterator[av.VideoFrame]:
    packets = source.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            frames = [] if packet is None else packet.decode()
        except (av.error.InvalidDataError, av.error.EOFError):
            on_damage()
            continue
        if packet is None:
            return
        yield from frames


def _turner(video: Video, stream: Any) -> Callable[[av.VideoFrame], av.VideoFrame]:
    """A function that turns the frames of a stream upright."""
    if not video.turn:
        return lambda frame: frame
    graph = av.filter.Graph()
    filters = (graph.add(name, value) for name, value in _TURNS[video.turn])
    graph.link_nodes(graph.add_buffer(template=stream), *filters, graph.add("buffersink"))
    graph.configure()

    def turn(frame: av.VideoFrame) -> av.VideoFrame:
        graph.push(frame)
        upright = graph.pull()
        assert isinstance(upright, av.VideoFrame)
        return upright

    return turn


@contextmanager
def reading(path: Path) -> Iterator[InputContainer]:
    """Opens a file; any error in it, then or later, becomes a VideoError."""
    try:
        with av.open(f"file:{path.absolute()}", **_LENIENT) as source:
            yield source
    except av.error.FFmpegError as error:
        raise VideoError(f"{path} cannot be read as a video: {error.strerror}") from error


def video_stream(source: InputContainer, path: Path) -> Any:
    """The video stream of a file that a player would show."""
    streams = [stream for stream in source.streams.video if not _is_cover(stream)]
    if not streams:
        raise VideoError(f"{path} holds no video")
    return source.streams.best("video") if source.streams.best("video") in streams else streams[0]


def is_copied(stream: Any) -> bool:
    """Whether a stream is copied to the result: sound and subtitles are."""
    return stream.type in ("audio", "subtitle") and stream.codec_context is not None


def _is_cover(stream: Any) -> bool:
    return bool(stream.type == "video" and Disposition.attached_pic in stream.disposition)


def reason_in(error: Exception) -> str:
    """The text of an error of FFmpeg, without its number."""
    return str(getattr(error, "strerror", None) or error)
