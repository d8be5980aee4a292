"""How steady restored faces are in a video, against restoring each frame by itself.

    python benchmarks/video.py ../shared/faces/valid-512 [--limit 6] [--frames 30] [--w 1]

Each face of the folder becomes a clip in which it turns, moves and comes nearer. The clip is
reduced and coded with H.264 at a high rate factor; that is the damage. It is restored frame by
frame, as the published pipeline does it, and as `cfrestore video` does it, without calming and
with it, into a lossless file. The movement is known, so that every frame can be turned back onto
the first one: what still changes from one frame to the next is trembling and flicker, given as the
mean absolute change in 8-bit levels within the face. Sharpness is the standard deviation of the
Laplacian there, over that of the clean frames.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import av
import cv2
import numpy as np
import stopwatch
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio

from cfrestore import Options, Photo, load_pipeline, read_photo, restore_video, write_photo
from cfrestore.align import face_ellipse
from cfrestore.image import to_uint8
from cfrestore.pipeline import Pipeline
from cfrestore.video import painting
from cfrestore.video.calming import calm

Pixels = NDArray[np.uint8]
SIDE = 384
REDUCED = 3  # times that each side of a clip is smaller than the face it shows
CRF = 30


@dataclass(frozen=True)
class Clip:
    """A clip and how it was made.

    Attributes:
        clean: the frames before the damage.
        moves: (2, 3) each, from the face to the frame.
    """

    clean: list[Pixels]
    moves: list[NDArray[np.float64]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("faces", type=Path)
    parser.add_argument("--limit", type=int, default=6, help="only the first N faces")
    parser.add_argument("--frames", type=int, default=30, help="of each clip")
    parser.add_argument("--w", type=float, default=1.0)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--detector", default="mtcnn")
    parser.add_argument("--sheet", type=Path, help="frames of the first face, damaged and restored")
    options = parser.parse_args()

    pipeline = load_pipeline(options.model, options.detector)
    wanted = Options(fidelity=options.w, max_face=None)
    rows: dict[str, list[tuple[float, ...]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(options.faces.glob("*.jpg"))[: options.limit]:
            face = cv2.resize(
                to_uint8(read_photo(path).pixels), (SIDE, SIDE), interpolation=cv2.INTER_AREA
            )
            clip = moving(np.asarray(face, np.uint8), options.frames)
            source = damaged(clip.clean, Path(folder) / "clip.mkv")
            results = restored(source, pipeline, wanted)
            if options.sheet and not rows:
                draw(results["damaged"], results["cfrestore video"], options.sheet)
            for name, frames in results.items():
                rows.setdefault(name, []).append(measured(frames, clip))
            rows.setdefault("clean", []).append(measured(clip.clean, clip))
    print(stopwatch.machine() + f"\n\n{options.limit} faces, {options.frames} frames each\n")
    means = {name: np.mean(found, axis=0) for name, found in rows.items()}
    table = [
        [name, f"{change:.2f}", f"{sharpness / means['clean'][1]:.2f}", f"{psnr:.1f}"]
        for name, (change, sharpness, psnr) in means.items()
    ]
    print(stopwatch.table(["frames", "change, levels", "sharpness", "PSNR, dB"], table))


def moving(face: Pixels, count: int) -> Clip:
    """The face on its way."""
    moves, clean = [], []
    for n in range(count):
        phase = 2 * np.pi * n / 40
        move = cv2.getRotationMatrix2D(
            (SIDE / 2, SIDE / 2), 8 * np.sin(phase), 0.8 + 0.1 * np.sin(phase / 2)
        )
        move[:, 2] += 16 * np.sin(phase), 8 * np.cos(phase)
        moves.append(np.asarray(move, np.float64))
        frame = cv2.warpAffine(
            face, move, (SIDE, SIDE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
        clean.append(np.asarray(frame, np.uint8))
    return Clip(clean, moves)


def damaged(frames: Sequence[Pixels], path: Path) -> Path:
    """Writes a clip, reduced, enlarged again and coded."""
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=25, options={"crf": str(CRF)})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for n, frame in enumerate(frames):
            side = SIDE // REDUCED
            small = cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA)
            large = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
            coded = av.VideoFrame.from_ndarray(np.asarray(large, np.uint8), format="rgb24")
            coded.pts, coded.time_base = n, Fraction(1, 25)
            out.mux(stream.encode(coded))
        out.mux(stream.encode())
    return path


def restored(source: Path, pipeline: Pipeline, options: Options) -> dict[str, list[Pixels]]:
    """The frames of the damaged clip, and restored in both ways."""
    target = source.with_name("restored.mkv")
    frames = decoded(source)
    found = {
        "damaged": frames,
        "frame by frame": [
            to_uint8(pipeline(Photo(frame), options).photo.pixels) for frame in frames
        ],
    }
    for name, calming in (("followed", uncalmed), ("cfrestore video", calm)):
        with mock.patch.object(painting, "calm", calming):
            restore_video(source, target, pipeline, options, codec="ffv1")
        found[name] = decoded(target)
    return found


def draw(before: Sequence[Pixels], after: Sequence[Pixels], path: Path) -> None:
    """Writes every sixth frame, before above after."""
    sheet = np.vstack([np.hstack(list(frames)[::6]) for frames in (before, after)])
    write_photo(Photo(np.ascontiguousarray(sheet), format="JPEG"), path, quality=85)


def uncalmed(own: tuple[Pixels, Pixels], others: object) -> tuple[Pixels, Pixels]:
    """The crops as they are."""
    return own


def decoded(path: Path) -> list[Pixels]:
    with av.open(str(path)) as source:
        frames = [
            frame.reformat(format="yuv444p", interpolation="BICUBIC")
            for frame in source.decode(video=0)
        ]
        return [np.ascontiguousarray(f.to_ndarray(format="rgb24"), np.uint8) for f in frames]


def measured(frames: Sequence[Pixels], clip: Clip) -> tuple[float, ...]:
    """Change from frame to frame within the face, sharpness there, and PSNR of the frames."""
    within = face_ellipse(SIDE)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    still = [
        cv2.warpAffine(frame.astype(np.float32), move, (SIDE, SIDE), flags=flags)
        for frame, move in zip(frames, clip.moves, strict=True)
    ]
    change = [np.abs(after - before)[within].mean() for before, after in pairwise(still)]
    sharpness = [cv2.Laplacian(frame, cv2.CV_32F)[within].std() for frame in still]
    same = frames is clip.clean
    psnr = [
        np.inf if same else peak_signal_noise_ratio(clean, frame)
        for clean, frame in zip(clip.clean, frames, strict=True)
    ]
    return float(np.mean(change)), float(np.mean(sharpness)), float(np.mean(psnr))


if __name__ == "__main__":
    main()
