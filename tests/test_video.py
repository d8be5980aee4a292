"""Videos from file to file: what is kept, what is restored, and what happens if it goes wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from clips import SIZE, frames_of, moving, packets_of, samples_of, times_of, write_clip
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from stubs import StubDetector, StubNetwork, face_at, picture

from cfrestore import Options, Photo, restore_video
from cfrestore.align import align_face
from cfrestore.detect import Face
from cfrestore.errors import ConfigError, OutputError, VideoError
from cfrestore.image import resize
from cfrestore.models.srvgg import SRVGGConfig, SRVGGNetCompact
from cfrestore.pipeline import Pipeline
from cfrestore.upsample import Upsampler
from cfrestore.video import finding, painting, restoration
from cfrestore.video.coding import FrameConverter, choose_coding, code, decode_times, planes
from cfrestore.video.container import join
from cfrestore.video.restoration import VideoRestoration
from cfrestore.video.source import decode, probe

BT601 = 5
FACE = face_at(10, 6, 24)
INVERTED = StubNetwork(lambda x: -x)


def pipeline(
    network: StubNetwork = INVERTED, faces: Sequence[Face] = (FACE,), **others: object
) -> Pipeline:
    return Pipeline(network, StubDetector(*faces), **others)  # type: ignore[arg-type]


def restored(source: Path, target: str = "result.mkv", **options: object) -> Path:
    path = source.with_name(target)
    restore_video(source, path, pipeline(), **options)  # type: ignore[arg-type]
    return path


def hidden(folder: Path) -> list[str]:
    """Names of what a run has left beside its result."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_the_face_is_restored_and_all_other_samples_are_those_of_the_input(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mkv")
    before, after = samples_of(source), samples_of(restored(source))
    assert len(after) == len(before) == 12
    for old, new in zip(before, after, strict=True):
        for plane, part in zip(range(3), (1, 2, 2), strict=True):
            changed = old[plane] != new[plane]
            inside = np.zeros_like(changed)
            inside[4 // part : 34 // part, 8 // part : 38 // part] = True
            assert not changed[~inside].any()
            assert changed[inside].mean() > 0.5
    assert hidden(tmp_path) == []


def test_a_frame_looks_as_if_it_were_restored_as_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 4:4:4, where colours are not halved, and uncalmed."""
    monkeypatch.setattr(painting, "calm", lambda own, others: own)
    source = write_clip(tmp_path / "clip.mkv", pix_fmt="yuv444p")
    target = restored(source)
    video = probe(source)
    converter = FrameConverter.of(video, choose_coding(video, ".mkv"))
    for old, new in zip(frames_of(source), frames_of(target), strict=True):
        photo = Photo(converter.to_pixels(old))  # type: ignore[arg-type]
        expected = pipeline()(photo, Options(fidelity=1, max_face=None)).photo.pixels
        difference = np.abs(converter.to_pixels(new).astype(int) - expected)
        assert difference.max() <= 2


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
def test_times_sound_metadata_and_chapters_are_kept(tmp_path: Path, ending: str) -> None:
    times = (0, 40, 50, 90, 200, 240, 280, 330, 331, 390, 480, 520)
    source = write_clip(
        tmp_path / f"clip.{ending}",
        times=times,
        time_base=Fraction(1, 1000),
        codec="libx264",
        sound="aac",
        metadata={"title": "Grüße", "comment": "mine"},
        chapters=True,
    )
    target = restored(source, f"result.{ending}")
    assert times_of(target) == times_of(source)
    assert len(set(np.diff(times_of(target)))) > 3
    assert packets_of(target, "audio") == packets_of(source, "audio")
    with av.open(str(target)) as result, av.open(str(source)) as original:
        metadata = {key.lower(): value for key, value in result.metadata.items()}
        assert metadata["title"] == "Grüße"
        assert metadata["comment"].startswith("mine; faces restored by cfrestore")
        assert [c["metadata"]["title"] for c in result.chapters()] == ["one"]
        assert result.streams.audio[0].metadata["language"] == "ita"
        streams = (original.streams.video[0], result.streams.video[0])
        assert len({stream.codec_context.name for stream in streams}) == 1
        assert result.duration == pytest.approx(original.duration, abs=45_000)


def test_a_result_of_several_segments_has_every_frame_at_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoration, "SEGMENT", 5)
    times = tuple(n * 40 + (n % 3) * 7 for n in range(23))
    for codec, ending in (("libx264", "mp4"), ("libx265", "mp4"), ("libvpx-vp9", "webm")):
        source = write_clip(
            tmp_path / f"clip.{ending}", times=times, time_base=Fraction(1, 1000), codec=codec
        )
        target = restored(source, f"result.{ending}")
        assert times_of(target) == times_of(source)
        # Each frame is at its own place: it differs least from the input's frame of that time.
        old, new = (
            [frame.to_ndarray(format="gray").astype(float)[40:] for frame in frames_of(p)]
            for p in (source, target)
        )
        distances = [[np.abs(a - b).mean() for b in old] for a in new]
        assert np.argmin(distances, axis=1).tolist() == list(range(23))
        target.unlink()


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=40, unique=True), st.integers(1, 50))
def test_frames_are_decoded_in_order_and_before_they_are_shown(shown: list[int], step: int) -> None:
    decoded = decode_times(shown, step)
    assert len(decoded) == len(shown)
    assert all(np.diff(decoded) > 0)
    assert all(early <= time for early, time in zip(decoded, shown, strict=True))


def test_frames_in_order_are_decoded_when_they_are_shown() -> None:
    assert decode_times([3, 5, 9], 2) == [3, 5, 9]
    assert decode_times([3, 9, 5], 2) == [1, 3, 5]


@pytest.mark.parametrize("colours", [(1, 1), (5, 1), (6, 1), (9, 1), (1, 2), (2, 0)])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
def test_colours_survive_the_way_to_pixels_and_back(
    tmp_path: Path, pix_fmt: str, colours: tuple[int, int]
) -> None:
    """Full range is converted less exactly by FFmpeg, by half a level more in its colours."""
    source = write_clip(
        tmp_path / "clip.mkv", times=(0,), pix_fmt=pix_fmt, colours=colours, codec="ffv1"
    )
    video = probe(source)
    converter = FrameConverter.of(video, choose_coding(video, ".mkv"))
    assert converter.pix_fmt == pix_fmt
    (frame,) = frames_of(source)
    pixels = converter.to_pixels(frame)
    assert pixels.dtype == (np.uint16 if "10" in pix_fmt else np.uint8)
    (true,) = moving(1)
    scale = 257 if "10" in pix_fmt else 1
    cast = (pixels / scale - true).mean(axis=(0, 1))
    if converter.matrix in (colours[0], BT601):  # else it is one that an old PyAV cannot use
        assert np.abs(cast).max() < 1.5
    again = converter.to_frame(pixels, np.zeros_like(pixels), frame)
    unit = 4 if "10" in pix_fmt else 1
    for one, other in zip(planes(frame), planes(again), strict=True):
        error = np.abs(one.astype(int) - other)
        assert error.mean() <= 0.75 * unit
        assert error.max() <= 3 * unit


@pytest.mark.parametrize("faces", [(FACE,), ()])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le"])
def test_a_video_can_be_enlarged(tmp_path: Path, faces: tuple[Face, ...], pix_fmt: str) -> None:
    source = write_clip(tmp_path / "clip.mkv", times=(0, 1, 2, 5, 9, 10), pix_fmt=pix_fmt)
    target = tmp_path / "result.mkv"
    restore_video(source, target, pipeline(faces=faces), Options(upscale=2))
    assert times_of(target) == times_of(source)
    for old, new in zip(frames_of(source), frames_of(target), strict=True):
        assert (new.height, new.width) == (2 * old.height, 2 * old.width)
        assert (new.format.name, new.colorspace) == (pix_fmt, BT601)  # which the size denies
        small, large = (
            frame.reformat(format="rgb24", src_colorspace=BT601).to_ndarray().astype(np.float32)
            for frame in (old, new)
        )
        error = np.abs(resize(large, *small.shape[:2]) - small)
        assert error[:, 40:].mean() < 3
        assert (error[14:24, 18:28].mean() > 20) == bool(faces)


def test_a_network_enlarges_or_cleans_whole_frames(tmp_path: Path) -> None:
    network = SRVGGNetCompact(SRVGGConfig(2, features=4, depth=0))
    torch.nn.init.zeros_(network.body[-1].weight)
    torch.nn.init.constant_(network.body[-1].bias, 0.1)  # brighter
    torch.save(network.state_dict(), tmp_path / "brighter.pth")
    brighter = Upsampler(tmp_path / "brighter.pth")
    source = write_clip(tmp_path / "clip.mkv")
    for faces in ((FACE,), ()):
        for scale in (1, 2):
            target = tmp_path / "result.mkv"
            options = Options(upscale=scale)
            restore_video(source, target, pipeline(faces=faces, bg_upsampler=brighter), options)
            for old, new in zip(frames_of(source), frames_of(target), strict=True):
                assert new.height == scale * old.height
                small, large = planes(old)[0].astype(int), planes(new)[0].astype(int)
                gain = large[::scale, ::scale][:, 40:] - small[:, 40:]
                assert abs(gain.mean() - 0.1 * 219) < 2


def test_a_matrix_is_told_to_players(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mp4", codec="libx264", colours=(1, 1))
    (frame, *_) = frames_of(restored(source, "result.mp4"))
    assert (frame.colorspace, frame.color_range) == (1, 1)


def test_ten_bits_are_kept(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mkv", pix_fmt="yuv420p10le")
    target = restored(source)
    (frame, *_) = frames_of(target)
    assert frame.format.name == "yuv420p10le"
    assert any(plane.max() > 255 for plane in samples_of(target)[0])


@pytest.mark.parametrize(("codec", "pix_fmt"), [("png", "rgba"), ("libx264rgb", "rgb24")])
def test_rgb_becomes_colours_that_players_understand(
    tmp_path: Path, codec: str, pix_fmt: str
) -> None:
    source = write_clip(tmp_path / "clip.mov", codec=codec, pix_fmt=pix_fmt)
    target = tmp_path / "result.mov"
    restore_video(source, target, pipeline(faces=()), codec="h264", crf=4)
    old, new = (
        np.stack([frame.to_ndarray(format="rgb24") for frame in frames_of(path)]).astype(int)
        for path in (source, target)
    )
    assert np.abs(new - old).mean() < 3


def test_a_gray_video_stays_gray(tmp_path: Path) -> None:
    gray = [np.repeat(frame[..., :1], 3, axis=2) for frame in moving(12)]
    source = write_clip(tmp_path / "clip.mkv", gray)
    for luma, *colours in samples_of(restored(source)):
        assert luma.std() > 5
        for plane in colours:
            assert np.abs(plane.astype(int) - 128).max() <= 1


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [("h264", "yuv444p"), ("hevc", "yuv444p"), ("vp9", "yuv420p"), ("ffv1", "yuv420p")],
)
def test_odd_sides_are_kept(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    frames = list(moving(6, (49, 63)))
    source = write_clip(tmp_path / "clip.mkv", frames, times=range(6))
    video = probe(source)
    assert video.size == (49, 63)
    target = restored(source, codec=codec)
    found = {(f.height, f.width, f.format.name) for f in frames_of(target)}
    assert found == {(49, 63, pix_fmt)}
    if codec == "ffv1":
        for old, new in zip(samples_of(source), samples_of(target), strict=True):
            for plane in range(3):
                same = old[plane] == new[plane]
                assert same[-4:].all()
                assert same[:, -4:].all()
                assert not same.all()


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_video_that_players_turn_is_restored_and_written_upright(
    tmp_path: Path, turn: int
) -> None:
    upright = list(moving(12))
    lying = [np.rot90(frame, -turn // 90) for frame in upright]
    source = write_clip(
        tmp_path / "clip.mp4", lying, codec="libx264", turn=turn, options={"crf": "1"}
    )
    assert probe(source).size == SIZE
    target = restored(source, "result.mp4", crf=1)
    for frame, true in zip(frames_of(target), upright, strict=True):
        assert frame.rotation == 0
        pixels = frame.to_ndarray(format="rgb24")
        assert pixels.shape == true.shape
        assert np.abs(pixels[36:].astype(int) - true[36:]).mean() < 6
        crop = align_face(true, FACE, 32).crop
        new = align_face(pixels, FACE, 32).crop  # type: ignore[arg-type]
        assert np.corrcoef(crop[8:-8, 8:-8].ravel(), new[8:-8, 8:-8].ravel())[0, 1] < -0.9


def test_memory_does_not_hold_the_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In both passes, few frames are decoded but not yet done with."""
    ahead = {"finding": 0, "painting": 0}
    most = dict(ahead)

    def counted(stage: str) -> Callable[..., Iterator[av.VideoFrame]]:
        def decode_counted(*args: object) -> Iterator[av.VideoFrame]:
            for frame in decode(*args):  # type: ignore[arg-type]
                ahead[stage] += 1
                most[stage] = max(most[stage], ahead[stage])
                yield frame

        return decode_counted

    def progress(stage: str, more: int, total: int | None) -> None:
        ahead[stage] -= more

    monkeypatch.setattr(finding, "decode", counted("finding"))
    monkeypatch.setattr(painting, "decode", counted("painting"))
    source = write_clip(tmp_path / "clip.mkv", times=range(60))
    target = tmp_path / "result.mkv"
    restore_video(str(source), str(target), pipeline(), workers=2, progress=progress)
    assert len(frames_of(target)) == 60  # names may be texts, as those of photographs
    assert ahead == {"finding": 0, "painting": 0}
    assert 0 < most["finding"] <= 8
    assert 0 < most["painting"] <= 20


def test_frames_without_times_follow_at_the_usual_distance(tmp_path: Path) -> None:
    source = tmp_path / "clip.mkv"
    with (
        av.open(str(write_clip(tmp_path / "timed.mp4", codec="libx264"))) as timed,
        av.open(str(source), "w", format="h264") as out,
    ):
        stream = out.add_stream_from_template(timed.streams.video[0])
        for packet in timed.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    assert {frame.pts for frame in frames_of(source)} == {None}
    assert times_of(restored(source)) == [Fraction(n, 25) for n in range(12)]


def test_sound_that_is_damaged_is_left_out(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.ts", codec="libx264", sound="aac")
    data = bytearray(source.read_bytes())
    whole = packets_of(source, "audio")
    start = data.index(whole[9][:20])
    data[start : start + 2] = bytes(2)  # where a packet begins
    source.write_bytes(data)
    target = tmp_path / "result.mkv"
    result = restore_video(source, target, pipeline())
    assert result.damaged == 1
    copied = [whole[n][7:] for n in range(len(whole)) if n != 9]  # the rest without its headers
    assert packets_of(target, "audio") == copied


class CutError(Exception):
    """The end of a run, as by a power cut."""


def test_a_run_that_was_cut_short_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoration, "SEGMENT", 4)
    source = write_clip(tmp_path / "clip.mkv", times=range(14))
    straight = samples_of(restored(source, "straight.mkv"))
    target = tmp_path / "result.mkv"
    calls = 0

    def fail_late(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise CutError
        return -x

    with pytest.raises(CutError):
        restore_video(source, target, pipeline(StubNetwork(fail_late)), workers=1)
    assert not target.exists()
    assert hidden(tmp_path) == [".result.mkv.cfrestore"]

    again, detector = StubNetwork(lambda x: -x), StubDetector(FACE)
    restore_video(source, target, Pipeline(again, detector))  # type: ignore[arg-type]
    # Two segments of four frames were whole; two frames before the third calm its first ones.
    assert len(again.calls) == 14 - 8 + 2
    assert len(detector.seen) <= 1  # what was found is known; the last frame is looked at again
    for one, other in zip(samples_of(target), straight, strict=True):
        assert all(map(np.array_equal, one, other))
    assert hidden(tmp_path) == []


@pytest.mark.parametrize(
    "rest", [b'{"pts": 8, "cu', b"{}", b"\0\0\n{}\n"], ids=["cut", "unended", "power cut"]
)
def test_a_search_that_was_cut_short_is_continued(tmp_path: Path, rest: bytes) -> None:
    source = write_clip(tmp_path / "clip.mkv", times=range(14))
    target = tmp_path / "result.mkv"
    straight = samples_of(restored(source, "straight.mkv"))

    class Failing(StubDetector):
        def __call__(self, pixels: np.ndarray) -> tuple[Face, ...]:
            if len(self.seen) == 8:
                raise CutError
            return super().__call__(pixels)

    with pytest.raises(CutError):
        restore_video(source, target, Pipeline(INVERTED, Failing(FACE)), workers=1)  # type: ignore[arg-type]
    notes = tmp_path / ".result.mkv.cfrestore/faces.jsonl"
    known = len(notes.read_bytes().splitlines())
    assert 4 <= known <= 8
    with notes.open("ab") as stream:
        stream.write(rest)
    detector = StubDetector(FACE)
    restore_video(source, target, Pipeline(INVERTED, detector))  # type: ignore[arg-type]
    assert len(detector.seen) == 14 - known + 1
    for one, other in zip(samples_of(target), straight, strict=True):
        assert all(map(np.array_equal, one, other))


def test_a_draft_of_a_run_that_was_killed_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write_clip(tmp_path / "clip.mkv"), tmp_path / "result.mkv"

    def fail(path: Path, *others: object) -> None:
        raise CutError

    monkeypatch.setattr(restoration, "join", fail)
    folder = tmp_path / ".result.mkv.cfrestore"
    for _ in range(2):
        with pytest.raises(CutError):
            restore_video(source, target, pipeline())
        assert {path.suffix for path in folder.iterdir()} == {"", ".jsonl", ".safetensors"}
        (folder / ".cfrestore-0123.tmp").write_bytes(b"half")


def test_other_settings_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoration, "SEGMENT", 4)
    source = write_clip(tmp_path / "clip.mkv")
    target = tmp_path / "result.mkv"

    def fail(path: Path, *others: object) -> None:
        raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(restoration, "join", fail)
        with pytest.raises(CutError):
            restore_video(source, target, pipeline(), Options(fidelity=1))
    network = StubNetwork(lambda x: -x)
    restore_video(source, target, pipeline(network), Options(fidelity=0.5))
    assert {w for _, w, _ in network.calls} == {0.5}
    assert len(network.calls) == 12


def test_a_face_that_cannot_be_painted_is_reported_and_left_as_it_is(tmp_path: Path) -> None:
    """Every third frame's."""
    calls = 0

    def sometimes(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return torch.full_like(x, torch.nan) if calls % 3 == 0 else -x

    source = write_clip(tmp_path / "clip.mkv")
    target = tmp_path / "result.mkv"
    result = restore_video(source, target, pipeline(StubNetwork(sometimes)), workers=1)
    assert dict(result.failures) == {(0, "the network's output is not finite"): 4}
    same = [
        all(map(np.array_equal, one, other))
        for one, other in zip(samples_of(source), samples_of(target), strict=True)
    ]
    assert same == [n % 3 == 2 for n in range(12)]


def test_failures_of_an_earlier_run_are_reported_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoration, "SEGMENT", 4)
    source, target = write_clip(tmp_path / "clip.mkv"), tmp_path / "result.mkv"
    broken = pipeline(StubNetwork(lambda x: x * torch.nan))

    def fail(path: Path, *others: object) -> None:
        raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(restoration, "join", fail)
        with pytest.raises(CutError):
            restore_video(source, target, broken)
    result = restore_video(source, target, pipeline())
    assert dict(result.failures) == {(0, "the network's output is not finite"): 12}


def test_damage_is_reported_and_the_rest_is_restored(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mkv", times=range(60), codec="libx264")
    data = bytearray(source.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = os.urandom(600)
    source.write_bytes(data)
    target = tmp_path / "result.mkv"
    result = restore_video(source, target, pipeline())
    assert len(frames_of(target)) == len(result.plan.frames) == len(frames_of_damaged(source))
    assert len(result.plan.frames) < 60 or result.damaged


def frames_of_damaged(path: Path) -> list[av.VideoFrame]:
    return list(decode(probe(path)))


def test_the_result_replaces_nothing_until_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write_clip(tmp_path / "clip.mkv"), tmp_path / "result.mkv"
    target.write_bytes(b"precious")

    def full(*others: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(restoration, "join", full)
    with pytest.raises(OutputError, match=r"result.mkv cannot be written: No space left"):
        restore_video(source, target, pipeline())
    assert target.read_bytes() == b"precious"
    assert hidden(tmp_path) == [".result.mkv.cfrestore"]


def test_a_link_is_followed_and_the_work_lies_where_it_leads(tmp_path: Path) -> None:
    source, target = write_clip(tmp_path / "clip.mkv"), tmp_path / "result.mkv"
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    target.symlink_to(elsewhere / "true.mkv")
    seen = set()

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.update(path.name for path in (*tmp_path.iterdir(), *elsewhere.iterdir()))
        return -x

    restore_video(source, target, pipeline(StubNetwork(look)))
    assert seen == {"clip.mkv", "result.mkv", "disk", ".true.mkv.cfrestore"}
    assert target.is_symlink()
    assert len(times_of(elsewhere / "true.mkv")) == 12


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_not_a_file_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    source, pipe = write_clip(tmp_path / "clip.mkv"), tmp_path / "pipe.mkv"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="pipe.mkv is not a file"):
        restore_video(source, pipe, pipeline())
    assert pipe.is_fifo()
    with pytest.raises(VideoError, match="pipe.mkv cannot be read as a video: it is not a file"):
        restore_video(pipe, tmp_path / "result.mkv", pipeline())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_not_taken_for_an_unreadable_video(tmp_path: Path) -> None:
    video = probe(write_clip(tmp_path / "clip.mkv"))
    coding = choose_coding(video, ".mkv")
    coded = code(decode(video), video, coding)
    shown = [frame.pts for frame in coded]
    with pytest.raises(OSError, match="No space left on device"):
        join(video, coding, shown, coded, Path("/dev/full"), "matroska", "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: os.utime(path, ns=(1, 1)), "clip.mkv was written to while it was read"),
        (Path.unlink, "clip.mkv cannot be read: No such file or directory"),
    ],
)
def test_a_video_that_changes_while_it_is_read_is_not_passed_off(
    tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    source, target = write_clip(tmp_path / "clip.mkv"), tmp_path / "result.mkv"

    def paint(x: torch.Tensor) -> torch.Tensor:
        if source.exists():
            change(source)
        return -x

    with pytest.raises(VideoError, match=said):
        restore_video(source, target, pipeline(StubNetwork(paint)))
    assert not target.exists()


def test_two_runs_do_not_write_one_result(tmp_path: Path) -> None:
    source, target = write_clip(tmp_path / "clip.mkv"), tmp_path / "result.mkv"
    folder = tmp_path / ".result.mkv.cfrestore"
    folder.mkdir()
    with FileLock(folder / "lock"), pytest.raises(OutputError, match="another run is writing"):
        restore_video(source, target, pipeline())
    restore_video(source, target, pipeline())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read as a video: No such file or directory"),
        (b"", "cannot be read as a video: "),
        (b"no video at all" * 100, "cannot be read as a video: Invalid data"),
    ],
)
def test_what_is_no_video_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    source = tmp_path / "clip.mp4"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(VideoError) as caught:
        restore_video(source, tmp_path / "result.mp4", pipeline())
    assert str(caught.value).startswith(f"{source} {said}")
    assert {path.name for path in tmp_path.iterdir()} <= {"clip.mp4"}


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as out:
        voice = out.add_stream("pcm_s16le", rate=48_000)
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), layout="mono")
        wave.sample_rate = 48_000
        out.mux(voice.encode(wave))  # type: ignore[attr-defined]
    with pytest.raises(VideoError, match="holds no video"):
        restore_video(path, tmp_path / "result.mkv", pipeline())


def test_sound_that_the_container_cannot_hold_is_refused_before_any_work(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mkv", sound="pcm_s16le")
    network = StubNetwork()
    with pytest.raises(OutputError, match=r"result.webm cannot hold libvpx-vp9 and pcm_s16le"):
        restore_video(source, tmp_path / "result.webm", pipeline(network))
    assert not network.calls
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mkv"]
    target = restored(source)
    assert packets_of(target, "audio") == packets_of(source, "audio")


def test_another_container_is_named_if_matroska_cannot_hold_a_stream(tmp_path: Path) -> None:
    source = tmp_path / "clip.mp4"
    with (
        av.open(str(write_clip(tmp_path / "plain.mp4", codec="libx264"))) as plain,
        av.open(str(source), "w") as out,
    ):
        frames = out.add_stream_from_template(plain.streams.video[0])
        words = out.add_stream("mov_text")
        words.codec_context.subtitle_header = b"[Script Info]\nScriptType: v4.00+\n[Events]\n"
        for packet in plain.demux(video=0):
            if packet.size:
                packet.stream = frames
                out.mux(packet)
        word = av.Packet(b"\x00\x05Hello")
        word.pts = word.dts = 0
        word.duration, word.time_base, word.stream = 300, Fraction(1, 1000), words
        out.mux(word)
    with pytest.raises(OutputError, match=r"libx264 and mov_text .*ends with \.mp4 may"):
        restored(source)
    target = restored(source, "result.mp4")
    assert packets_of(target, "subtitle") == packets_of(source, "subtitle")


def test_options_that_suit_no_video_are_refused(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mkv")
    for options in (
        Options(aligned=True),
        Options(draw_box=True),
        Options(samples=1),
    ):
        with pytest.raises(ConfigError, match="a video is restored without"):
            restore_video(source, tmp_path / "result.mkv", pipeline(), options)
    with pytest.raises(TypeError, match="^options must be Options, found float$"):
        restore_video(source, tmp_path / "result.mkv", pipeline(), 0.7)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"--codec must be auto, h264.*found 'xvid'"):
        restored(source, codec="xvid")
    with pytest.raises(ConfigError, match="ffv1 is lossless, so it takes no --crf"):
        restored(source, codec="ffv1", crf=3)


def test_the_codec_is_that_of_the_input_unless_another_is_named(tmp_path: Path) -> None:
    for codec, ending, asked, found in (
        ("libx264", "mp4", "auto", "h264"),
        ("libx265", "mp4", "auto", "hevc"),
        ("libvpx-vp9", "webm", "auto", "vp9"),
        ("mpeg4", "mp4", "auto", "h264"),
        ("libx264", "webm", "auto", "vp9"),
        ("libx264", "mkv", "ffv1", "ffv1"),
        ("libx264", "mp4", "hevc", "hevc"),
    ):
        source = write_clip(tmp_path / f"clip.{'mkv' if ending == 'webm' else ending}", codec=codec)
        target = restored(source, f"result.{ending}", codec=asked)
        with av.open(str(target)) as result:
            assert result.streams.video[0].codec_context.codec.canonical_name == found


def test_encoders_do_not_talk(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = write_clip(tmp_path / "clip.mkv", moving(12, (64, 64)))
    capfd.readouterr()
    for codec in ("av1", "hevc", "h264", "vp9"):
        restored(source, codec=codec)
    assert capfd.readouterr() == ("", "")


def test_apple_plays_hevc(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mkv")
    for ending in ("mp4", "mov", "mkv"):
        target = restored(source, f"result.{ending}", codec="hevc")
        assert len(times_of(target)) == 12
        with av.open(str(target)) as result:
            tag = result.streams.video[0].codec_context.codec_tag
            assert (tag == "hvc1") == (ending != "mkv")


def test_progress_counts_every_frame_once(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mkv")
    done = {"finding": 0, "painting": 0}

    def progress(stage: str, more: int, total: int | None) -> None:
        done[stage] += more
        assert stage == "finding" or total == 12

    restore_video(source, tmp_path / "result.mkv", pipeline(), progress=progress)
    assert done == {"finding": 12, "painting": 12}


def test_a_video_without_faces_is_written_as_it_is(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mkv")
    target = tmp_path / "result.mkv"
    result = restore_video(source, target, pipeline(faces=()))
    assert isinstance(result, VideoRestoration)
    assert not result.plan.tracks
    for one, other in zip(samples_of(source), samples_of(target), strict=True):
        assert all(map(np.array_equal, one, other))


def test_what_flickers_is_calmed_within_a_track_and_never_across(tmp_path: Path) -> None:
    """Two still faces, painted lighter and darker in turns, one always lighter than the other."""
    faces = (face_at(4, 8, 24), face_at(34, 8, 24))
    calls = 0

    def flicker(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        frame, face = divmod(calls, 2)
        calls += 1
        wave = torch.sin(torch.arange(32) * 1.7) * 0.4  # fine, so that colours are not corrected
        return x.clamp(-0.4, 0.4) + (wave if frame % 2 else -wave) * (1 if face else 0)

    still = [picture(*SIZE)] * 10
    source = write_clip(tmp_path / "clip.mkv", still, times=range(10), pix_fmt="yuv444p")
    target = tmp_path / "result.mkv"
    restore_video(source, target, pipeline(StubNetwork(flicker), faces), workers=1)
    luma = np.stack([frames[0].astype(int) for frames in samples_of(target)])
    change = np.abs(np.diff(luma, axis=0)).mean(axis=0)
    assert change[12:28, 8:24].max() <= 1  # the first face does not take over the other's flicker
    calls = 0
    network = StubNetwork(flicker)
    photo = Photo(np.ascontiguousarray(still[0]))
    alone = [
        pipeline(network, faces)(photo, Options(fidelity=1, max_face=None)).photo.pixels
        for _ in range(2)
    ]
    before = np.abs(alone[0].astype(int) - alone[1]).mean(axis=2)[12:28, 38:54].mean()
    assert before > 10
    assert change[12:28, 38:54].mean() < 0.4 * before


def test_a_note_says_what_is_not_kept_and_only_that(tmp_path: Path) -> None:
    for name, codec, pix_fmt, notes in (
        ("clip.mp4", "libx264", "yuv420p", ()),  # its chapters are a data stream
        ("clip.mov", "png", "rgba", ("Its transparency is not kept.",)),
        ("clip.webm", "libvpx-vp9", "yuva420p", ("Its transparency is not kept.",)),
    ):
        chapters = not name.endswith("webm")
        source = write_clip(tmp_path / name, codec=codec, pix_fmt=pix_fmt, chapters=chapters)
        assert probe(source).notes == notes
    with av.open(str(restored(source, "result.webm"))) as result:
        assert "alpha_mode" not in result.streams.video[0].metadata


def test_cuts_are_found(tmp_path: Path) -> None:
    other = [255 - picture(*SIZE, seed=5) for _ in range(6)]
    source = write_clip(tmp_path / "clip.mkv", [*moving(6), *other])
    result = restore_video(source, tmp_path / "result.mkv", pipeline())
    assert [track.shot for track in result.plan.tracks] == [(0, 6), (6, 12)]
