"""Writes a new file: new frames, and everything else copied from the original."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av

from cfrestore.errors import OutputError
from cfrestore.video.coding import CodedFrame, Coding, decode_times, set_up
from cfrestore.video.source import Video, is_copied, reading, reason_in, video_stream

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream

CONTAINERS: Mapping[str, str] = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
}
"""FFmpeg's name of the container, by the ending of a file that can be written."""


def check_container(video: Video, coding: Coding, target: Path) -> None:
    """Checks that a file of the target's ending can hold all that will be written to it.

    Raises:
        OutputError: it cannot.
        VideoError: the video cannot be read.
    """
    with reading(video.path) as source:
        names = [s.codec_context.name for s in source.streams if is_copied(s)]
        try:
            with av.open(BytesIO(), "w", format=CONTAINERS[target.suffix.lower()]) as out:
                _lay_out(out, source, video, coding)
                out.start_encoding()
        except (av.error.FFmpegError, ValueError) as error:
            held = " and ".join([coding.encoder, *names])
            other = ".mp4" if target.suffix.lower() == ".mkv" else ".mkv"
            why = f"{target} cannot hold {held} ({reason_in(error)})"
            raise OutputError(f"{why}; a name that ends with {other} may") from error


def join(
    video: Video,
    coding: Coding,
    shown: Sequence[int],
    coded: Iterable[CodedFrame],
    draft: Path,
    format: str,
    comment: str,
) -> int:
    """Writes a new file: the coded frames, and everything else from the original.

    Packets of the original that the container refuses, because they are damaged, are left out.

    Args:
        shown: the times of all coded frames, in the order in which they are decoded.
        coded: the frames, in the same order.
        draft: the file to write.
        format: one of CONTAINERS.
        comment: added to the comment in the file's metadata.
    Returns:
        how many packets were left out.
    Raises:
        OSError: the file cannot be written.
        OutputError: the container does not take what is written to it.
        VideoError: the original cannot be read.
    """
    options = {"movflags": "+faststart"} if format in ("mp4", "mov") else {}
    refused = 0
    with reading(video.path) as source:
        try:
            with av.open(f"file:{draft}", "w", format=format, options=options) as out:
                stream, copies = _lay_out(out, source, video, coding)
                out.metadata.update(_metadata(source, comment))
                out.set_chapters(source.chapters())
                ours = _coded_packets(shown, coded, stream, video)
                theirs = _copied_packets(source, copies)
                for _, packet in heapq.merge(ours, theirs, key=lambda pair: pair[0]):
                    is_ours = packet.stream is stream
                    try:
                        out.mux_one(packet)
                    except (av.error.InvalidDataError, av.error.ArgumentError):
                        if is_ours:
                            raise
                        refused += 1
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, OSError):  # as FFmpeg's, `reading` would take it for a read error
                raise OSError(error.errno, error.strerror) from error
            raise OutputError(
                f"the container {format} refuses what is written: {reason_in(error)}"
            ) from error
    return refused


def _lay_out(
    out: OutputContainer, source: InputContainer, video: Video, coding: Coding
) -> tuple[Stream, Mapping[int, Stream]]:
    """Adds the streams of the new file: that of the frames, and copies by the original's index."""
    stream: Any = out.add_stream(coding.encoder, rate=video.rate)
    set_up(stream.codec_context, video, coding)
    if coding.encoder == "libx265" and out.format.name in ("mp4", "mov"):
        stream.codec_context.codec_tag = "hvc1"  # Apple's players play no other
    stream.time_base = video.time_base
    before = video_stream(source, video.path).metadata
    kept = ("language", "title", "handler_name")  # other entries say how the original is coded
    stream.metadata.update({key: before[key] for key in kept if key in before})
    copies: dict[int, Stream] = {}
    for original in filter(is_copied, source.streams):
        copy = out.add_stream_from_template(original)
        copy.metadata.update(original.metadata)  # such as its language
        copy.disposition = original.disposition
        copies[original.index] = copy
    return stream, copies


def _metadata(source: InputContainer, comment: str) -> dict[str, str]:
    """The metadata of the original, with a comment added to its own."""
    key = next((name for name in source.metadata if name.lower() == "comment"), "comment")
    before = source.metadata.get(key)
    return {**source.metadata, key: f"{before}; {comment}" if before else comment}


def _coded_packets(
    shown: Sequence[int], coded: Iterable[CodedFrame], stream: Stream, video: Video
) -> Iterator[tuple[float, av.Packet[Any]]]:
    ordered = sorted(shown)
    ends = [*ordered, ordered[-1] + video.step]
    durations = {time: after - time for time, after in pairwise(ends)}
    for frame, time in zip(coded, decode_times(shown, video.step), strict=True):
        packet = av.Packet(frame.data)
        packet.pts, packet.dts, packet.duration = frame.pts, time, durations[frame.pts]
        packet.time_base, packet.stream, packet.is_keyframe = video.time_base, stream, frame.is_key
        yield float(time * video.time_base), packet


def _copied_packets(
    source: InputContainer, copies: Mapping[int, Stream]
) -> Iterator[tuple[float, av.Packet[Any]]]:
    if not copies:
        return
    last = 0.0
    for packet in source.demux([source.streams[index] for index in copies]):
        if packet.size == 0:  # the end of a stream
            continue
        if packet.dts is not None and packet.time_base is not None:
            last = float(packet.dts * packet.time_base)
        packet.stream = copies[packet.stream_index]
        yield last, packet
