"""Codes frames: av.VideoFrame <-> pixels, and frames -> packets.

Video is stored as luma and two chroma planes, these mostly at half the resolution, so that going to
RGB and back changes every pixel a little. Only pixels that the restoration changed go that way:
every other sample of a frame reaches the encoder as it was decoded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.codec.codec import find_best_pix_fmt_of_list
from av.codec.context import Flags

from cfrestore.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cfrestore.image import Pixels
    from cfrestore.video.source import Video

ENCODERS: Mapping[str, tuple[str, int | None, Mapping[str, str]]] = {
    "h264": ("libx264", 16, {"preset": "medium"}),
    "hevc": ("libx265", 18, {"preset": "medium", "x265-params": "log-level=error"}),
    "vp9": ("libvpx-vp9", 20, {"b": "0", "row-mt": "1"}),
    "av1": ("libsvtav1", 20, {"preset": "6"}),
    "ffv1": ("ffv1", None, {"level": "3"}),
}
"""FFmpeg's encoder, its usual CRF (None: lossless) and other options, by the name of the codec."""

_PLANAR = tuple(
    f"yuv{sampling}p{depth}" for depth in ("", "10le", "12le") for sampling in ("420", "422", "444")
)
"""Pixel formats in which frames are restored: planar luma and chroma, 8 to 12 bits."""

_BT709, _BT601 = 1, 5  # FFmpeg's numbers of matrices
_MATRICES = {1, 4, 5, 6, 7, 9}  # those with which FFmpeg can convert to RGB and back
if int(av.__version__.partition(".")[0]) < 18:
    _MATRICES -= {9}  # BT.2020, with which PyAV 17 converts to RGB, but not back
_LIMITED = 1  # FFmpeg's number of the limited range, in which black is 16


@dataclass(frozen=True)
class Coding:
    """How frames are coded.

    Attributes:
        encoder: FFmpeg's name of the encoder.
        pix_fmt: pixel format of the frames, one of _PLANAR.
        options: of the encoder.
    """

    encoder: str
    pix_fmt: str
    options: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class CodedFrame:
    """A coded frame.

    Attributes:
        pts: when it is shown, in units of the video's time base.
        is_key: whether decoding can begin with it.
        data: its bytes.
    """

    pts: int
    is_key: bool
    data: bytes


def choose_coding(video: Video, ending: str, codec: str = "auto", crf: int | None = None) -> Coding:
    """Chooses how the frames of a result are coded.

    Args:
        ending: of the result's name, one of CONTAINERS.
        codec: one of ENCODERS, or auto: the video's own if it is one of them, else vp9 in webm and
            h264 elsewhere.
        crf: constant rate factor, lower is better; None: the encoder's in ENCODERS.
    Raises:
        ConfigError: the codec is unknown or is not part of this FFmpeg, or the factor is out of
            range.
    """
    webm = ending.lower() == ".webm"
    if codec == "auto":
        kept = video.codec in ENCODERS and not (webm and video.codec not in ("vp9", "av1"))
        codec = video.codec if kept else "vp9" if webm else "h264"
    if codec not in ENCODERS:
        raise ConfigError(f"--codec must be auto, {', '.join(ENCODERS)}, found {codec!r}")
    encoder, usual, others = ENCODERS[codec]
    if crf is not None and usual is None:
        raise ConfigError(f"{codec} is lossless, so it takes no --crf")
    if encoder not in av.codecs_available:
        raise ConfigError(f"the FFmpeg of PyAV lacks the encoder {encoder} for {codec}")
    factor = usual if crf is None else crf
    options = dict(others) if factor is None else {**others, "crf": str(factor)}
    return Coding(encoder, _format(video, encoder), options)


def _format(video: Video, encoder: str) -> str:
    """The encoder's pixel format that loses least of the video's.

    Frames with an odd side get 4:4:4 in H.264 and HEVC, whose subsampled chroma needs even sides.
    """
    known = [form.name for form in av.Codec(encoder, "w").video_formats or ()]
    odd = encoder in ("libx264", "libx265") and any(side % 2 for side in video.size)
    names = [name for name in _PLANAR if name in known and not (odd and "444" not in name)]
    best, _ = find_best_pix_fmt_of_list(names or known, video.pix_fmt)
    assert best is not None
    return best.name


def enlarged(video: Video, scale: int) -> Video:
    """The properties of the video when it is coded at a multiple of its size.

    An enlarged video always states its colour matrix, because players guess it from the size.
    """
    if scale == 1:
        return video
    height, width = (side * scale for side in video.size)
    return replace(video, size=(height, width), matrix=_matrix_of(video))


def _matrix_of(video: Video) -> int:
    """The video's colour matrix; if it states none of _MATRICES, the usual one for its size."""
    usual = _BT709 if min(video.size) >= 720 else _BT601
    return video.matrix if video.matrix in _MATRICES else usual


def set_up(context: Any, video: Video, coding: Coding) -> None:
    """Prepares an encoder for frames of a video."""
    os.environ.setdefault("SVT_LOG", "1")  # errors only; read when the encoder is first opened
    context.height, context.width = video.size
    context.pix_fmt, context.options = coding.pix_fmt, dict(coding.options)
    context.time_base, context.framerate = video.time_base, video.rate
    context.sample_aspect_ratio = video.aspect
    context.colorspace, context.color_range = video.matrix, video.span
    context.color_primaries, context.color_trc = video.primaries, video.transfer


@dataclass(frozen=True)
class FrameConverter:
    """Converts frames of a video to pixels and back.

    Attributes:
        pix_fmt: pixel format of the frames that are coded.
        matrix, span: FFmpeg's numbers of the matrix and the range of the colours.
    """

    pix_fmt: str
    matrix: int
    span: int

    @classmethod
    def of(cls, video: Video, coding: Coding) -> FrameConverter:
        """The converter of a video."""
        return cls(coding.pix_fmt, _matrix_of(video), video.span or _LIMITED)

    def prepare(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame converted to `pix_fmt`."""
        return self._reformat(frame, self.pix_fmt)

    def to_pixels(self, frame: av.VideoFrame) -> Pixels:
        """(H, W, 3) uint8 RGB of a prepared frame; uint16 if it has more than 8 bits."""
        # Through full-resolution chroma, since FFmpeg truncates when it converts directly.
        full = self._reformat(frame, self._full)
        return np.ascontiguousarray(self._reformat(full, self._rgb).to_ndarray(), self.dtype)

    def to_frame(
        self, pixels: Pixels, before: Pixels | None, original: av.VideoFrame
    ) -> av.VideoFrame:
        """The frame with new pixels; samples of pixels that did not change stay as they are.

        Args:
            pixels: (H, W, 3) RGB of the dtype that `to_pixels` gives.
            before: the pixels of the original frame; None: all pixels are new, and the size may be.
            original: the prepared frame.
        """
        rgb = av.VideoFrame.from_ndarray(pixels, format=self._rgb)  # type: ignore[arg-type]
        frame = self._reformat(self._reformat(rgb, self._full), self.pix_fmt)
        if before is not None:
            same = np.asarray((pixels == before).all(axis=2))
            for new, old in zip(planes(frame), planes(original), strict=True):
                unchanged = _shrink(same, new.shape)
                new[unchanged] = old[unchanged]
        frame.pts, frame.time_base = original.pts, original.time_base
        return frame

    @property
    def dtype(self) -> type[np.uint8 | np.uint16]:
        """The dtype of the pixels."""
        return np.uint8 if self.pix_fmt.endswith("p") else np.uint16

    @property
    def _full(self) -> str:
        return "yuv444p" + self.pix_fmt.partition("p")[2]

    @property
    def _rgb(self) -> str:
        return "rgb24" if self.dtype is np.uint8 else "rgb48le"

    def _reformat(self, frame: av.VideoFrame, name: str) -> av.VideoFrame:
        return frame.reformat(
            format=name,
            src_colorspace=self.matrix,
            dst_colorspace=self.matrix,
            src_color_range=self.span,
            dst_color_range=self.span,
            interpolation="BICUBIC",
            threads=1,  # frames are converted side by side already
        )


def planes(frame: av.VideoFrame) -> list[NDArray[Any]]:
    """The planes of a planar frame, (h, w) each, as views of its memory."""
    wide = frame.format.components[0].bits > 8
    dtype = np.dtype("<u2" if wide else "u1")
    views = []
    for plane in frame.planes:
        buffer: Any = plane  # PyAV does not declare it as one
        rows = np.frombuffer(buffer, dtype).reshape(plane.height, -1)
        views.append(rows[:, : plane.width])
    return views


def _shrink(same: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Reduces a mask of pixels to a plane of that shape: true where all pixels of a sample are."""
    if same.shape == shape:
        return same
    height, width = (-(-whole // part) for whole, part in zip(same.shape, shape, strict=True))
    rest = (height * shape[0] - same.shape[0], width * shape[1] - same.shape[1])
    padded = np.pad(same, ((0, rest[0]), (0, rest[1])), constant_values=True)
    return np.asarray(padded.reshape(shape[0], height, shape[1], width).all(axis=(1, 3)))


def code(frames: Iterable[av.VideoFrame], video: Video, coding: Coding) -> list[CodedFrame]:
    """Codes frames into a segment that can be decoded on its own.

    Returns:
        the coded frames, in the order in which they are decoded.
    """
    context: Any = av.CodecContext.create(coding.encoder, "w")
    set_up(context, video, coding)
    context.flags |= Flags.global_header  # our containers store the header once, not in frames
    packets = []
    for frame in frames:
        frame.pict_type = 0  # the encoder's choice, not the original's
        packets += context.encode(frame)
    packets += context.encode()
    return [CodedFrame(packet.pts, packet.is_keyframe, bytes(packet)) for packet in packets]


def decode_times(shown: Sequence[int], step: int) -> list[int]:
    """The decoding times of frames, in the order in which they are decoded.

    An encoder computes these times too, but only for the frames that it was given; here the coded
    frames of several encoders follow each other. Each frame is decoded no later than it is shown,
    and later than the frame before it.

    Args:
        shown: when each frame is shown, in decoding order; all different.
        step: usual time from one frame to the next.
    """
    ordered = sorted(shown)
    rank = {time: index for index, time in enumerate(ordered)}
    delay = max((index - rank[time] for index, time in enumerate(shown)), default=0)
    early = [ordered[0] - count * step for count in range(delay, 0, -1)]
    return [*early, *ordered][: len(shown)]
