"""Small videos, and what is in them."""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from stubs import picture

from cfrestore.video.coding import planes

SIZE = (48, 64)
TIMES = tuple(range(12))


def moving(count: int, size: tuple[int, int] = SIZE) -> Iterator[NDArray[np.uint8]]:
    """Pictures that move to the right by a pixel a frame."""
    whole = picture(size[0], size[1] + count)
    return (whole[:, count - n : count - n + size[1]] for n in range(count))


def write_clip(
    path: Path,
    frames: Iterable[NDArray[np.uint8]] | None = None,
    *,
    times: Sequence[int] = TIMES,
    time_base: Fraction = Fraction(1, 25),
    codec: str = "ffv1",
    pix_fmt: str = "yuv420p",
    sound: str | None = None,
    metadata: dict[str, str] | None = None,
    chapters: bool = False,
    turn: int = 0,
    colours: tuple[int, int] = (2, 0),
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a video whose frames are shown at these times, in units of the time base.

    Args:
        sound: name of the encoder of one second of sound; None: there is none.
        turn: degrees by which players turn the frames.
        colours: FFmpeg's numbers of matrix and range.
    """
    pictures = list(moving(len(times)) if frames is None else frames)
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.time_base = pix_fmt, time_base
        stream.codec_context.time_base = time_base
        stream.codec_context.colorspace, stream.codec_context.color_range = colours
        if turn:
            stream.set_display_rotation(turn)
        out.metadata.update(metadata or {})
        if chapters:
            chapter = {"id": 1, "start": 0, "end": 400, "time_base": Fraction(1, 1000)}
            out.set_chapters([{**chapter, "metadata": {"title": "one"}}])  # type: ignore[list-item]
        voice: Any = out.add_stream(sound, rate=48_000) if sound else None
        if voice:
            voice.layout = "mono"
            voice.metadata["language"] = "ita"
            for n in range(40):
                tone = np.sin(np.arange(1024) * 0.05 + n)[None].astype(np.float32)
                wave = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
                wave.sample_rate, wave.pts = 48_000, n * 1024
                out.mux(voice.encode(wave))
            out.mux(voice.encode())
        for pixels, time in zip(pictures, times, strict=True):
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            matrix, span = colours
            frame = rgb.reformat(
                format=pix_fmt,
                dst_colorspace=None if matrix == 2 else matrix,
                dst_color_range=span or None,
            )
            frame.pts, frame.time_base = time, time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def frames_of(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as source:
        return list(source.decode(video=0))


def times_of(path: Path) -> list[Fraction]:
    """When the frames are shown, in seconds."""
    return [frame.pts * frame.time_base for frame in frames_of(path)]  # type: ignore[operator]


def samples_of(path: Path) -> list[list[NDArray[Any]]]:
    """The planes of each frame."""
    return [[plane.copy() for plane in planes(frame)] for frame in frames_of(path)]


def packets_of(path: Path, kind: str) -> list[bytes]:
    with av.open(str(path)) as source:
        streams = [stream for stream in source.streams if stream.type == kind]
        return [bytes(packet) for packet in source.demux(streams) if packet.size]
