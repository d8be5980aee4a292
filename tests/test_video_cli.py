"""The command `cfrestore video`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from clips import SIZE, frames_of, samples_of, times_of, write_clip
from command import Command, detect, make
from stubs import face_at

from cfrestore.cli import report
from cfrestore.models.srvgg import SRVGGConfig, SRVGGNetCompact
from cfrestore.video import restoration


def records(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_video_is_written_beside_its_source(cfrestore_: Command) -> None:
    source = write_clip(Path("clip.mkv"))
    before = source.read_bytes()
    result = cfrestore_("video", "clip.mkv")
    assert result.code == 0, result.err
    assert "clip.mkv -> clip.restored.mkv  1 face restored" in result.err
    assert result.out == ""
    assert times_of(Path("clip.restored.mkv")) == times_of(source)
    assert source.read_bytes() == before
    assert not list(Path().glob(".clip*"))


def test_the_fidelity_is_1_unless_it_is_given(cfrestore_: Command) -> None:
    write_clip(Path("clip.mkv"))
    for words, w in (((), 1.0), (("--w", "0.25"), 0.25)):
        result = cfrestore_("video", "clip.mkv", "--json", "--overwrite", *words)
        (record,) = records(result.out)
        assert record["faces"][0]["w"] == w


def test_the_record_tells_where_each_face_was_seen(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect(monkeypatch, face_at(8, 8, 32), face_at(40, 20, 9))
    write_clip(Path("clip.mkv"))
    result = cfrestore_("video", "clip.mkv", "--json", "--min-face", "20", "-q")
    assert result.err == ""
    (record,) = records(result.out)
    assert record["status"] == "done"
    assert record["output"] == "clip.restored.mkv"
    assert [face["status"] for face in record["faces"]] == ["restored", "skipped"]
    assert [face["reason"] for face in record["faces"]] == [None, "smaller than 20 px"]
    assert [face["frames"] for face in record["faces"]] == [[0, 11], [0, 11]]
    assert record["faces"][0]["box"] == pytest.approx([8, 8, 40, 40], abs=0.1)
    assert set(record["seconds"]) == {"find", "paint", "write"}


def test_w_changes_the_picture(cfrestore_: Command) -> None:
    write_clip(Path("clip.mkv"))
    found = []
    for w in ("0", "1"):
        result = cfrestore_("video", "clip.mkv", "-o", f"w{w}.mkv", "--w", w, "--max-face", "none")
        assert result.code == 0, result.err
        found.append(samples_of(Path(f"w{w}.mkv")))
    luma = [frames[5][0][8:40, 8:40].astype(int) for frames in found]
    assert abs(luma[0] - luma[1]).mean() > 1


def test_the_words_of_the_published_command_enlarge_a_video(cfrestore_: Command) -> None:
    write_clip(Path("clip.mkv"))
    torch.save(SRVGGNetCompact(SRVGGConfig(2, features=4, depth=0)).state_dict(), "net.pth")
    words = "--input_path clip.mkv -w 1.0 -s 2 --bg_upsampler net.pth --face_upsample --json -q"
    result = cfrestore_("video", *words.split(), "--model", "compact")
    assert (result.code, result.err) == (0, "")
    assert records(result.out)[0]["upsampler"] == "net.pth"
    assert frames_of(Path("clip.restored.mkv"))[0].height == 2 * SIZE[0]


def test_nothing_is_overwritten_unless_asked(cfrestore_: Command) -> None:
    write_clip(Path("clip.mkv"))
    Path("clip.restored.mkv").write_bytes(b"mine")
    result = cfrestore_("video", "clip.mkv")
    assert result.code == 2
    assert "clip.restored.mkv exists; only --overwrite replaces it" in result.err
    assert Path("clip.restored.mkv").read_bytes() == b"mine"
    assert cfrestore_("video", "clip.mkv", "--overwrite").code == 0
    assert len(times_of(Path("clip.restored.mkv"))) == 12


def test_a_folder_is_done_once_and_a_broken_video_stops_no_other(cfrestore_: Command) -> None:
    Path("in").mkdir()
    for name in ("a.mkv", "c.mkv"):
        write_clip(Path("in") / name)
    Path("in/b.mkv").write_bytes(b"broken")
    make("in/picture.png")
    result = cfrestore_("video", "in")
    assert result.code == 1
    assert "in/b.mkv cannot be read as a video: Invalid data" in result.err
    assert "2 of 3 videos written, 1 failed" in result.err
    names = sorted(path.name for path in Path("in.restored").iterdir())
    assert names == [".cfrestore.jsonl", "a.mkv", "c.mkv"]
    times = {name: Path("in.restored", name).stat().st_mtime_ns for name in ("a.mkv", "c.mkv")}
    again = cfrestore_("video", "in", "--json")
    assert [record["status"] for record in records(again.out)] == [
        "unchanged",
        "failed",
        "unchanged",
    ]
    assert {n: Path("in.restored", n).stat().st_mtime_ns for n in times} == times
    other = cfrestore_("video", "in", "--w", "0.5", "--json")
    assert [record["status"] for record in records(other.out)] == ["done", "failed", "done"]


def test_an_edited_result_of_a_folder_is_kept(cfrestore_: Command) -> None:
    Path("in").mkdir()
    write_clip(Path("in/a.mkv"))
    assert cfrestore_("video", "in").code == 0
    result = Path("in.restored/a.mkv")
    shutil.copy("in/a.mkv", result)
    edited = result.read_bytes()
    cfrestore_("video", "in", "--w", "0.5")
    assert result.read_bytes() == edited


def test_other_containers_become_matroska(cfrestore_: Command) -> None:
    write_clip(Path("clip.avi"), codec="mpeg4", sound="pcm_s16le")
    result = cfrestore_("video", "clip.avi", "--dry-run")
    assert result.err.splitlines() == [
        "clip.avi -> clip.restored.mkv",
        "1 video would be written",
    ]
    assert not Path("clip.restored.mkv").exists()
    assert cfrestore_("video", "clip.avi").code == 0
    assert len(times_of(Path("clip.restored.mkv"))) == 12


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "there is no INPUT"),
        (("clip.mkv", "-o", "clip.gif"), 2, "clip.gif must end with one of .m4v, .mkv, .mov, "),
        (("clip.mkv", "-o", "-"), 2, "videos are files, not stdin or stdout"),
        (("-",), 2, "videos are files, not stdin or stdout"),
        (("",), 2, "has an empty name"),
        (("absent.mkv",), 1, "absent.mkv cannot be read: there is no such file"),
        (("empty",), 1, "empty holds no videos"),
        (("clip.mkv", "--codec", "xvid"), 2, "--codec must be auto, h264"),
        (("clip.mkv", "--crf", "99"), 2, "63"),
        (("clip.mkv", "--faces", "some"), 2, "--faces must be all, center"),
        (("clip.mkv", "-o", "clip.mkv"), 2, "clip.mkv is an input"),
    ],
)
def test_bad_arguments_get_one_sentence(
    cfrestore_: Command, words: tuple[str, ...], code: int, said: str
) -> None:
    Path("empty").mkdir()
    write_clip(Path("clip.mkv"))
    before = Path("clip.mkv").read_bytes()
    result = cfrestore_("video", *words)
    assert result.code == code, result.err
    assert said in " ".join(result.err.replace("│", " ").split())
    assert Path("clip.mkv").read_bytes() == before
    assert sorted(path.name for path in Path().glob("*.*") if path.suffix != ".safetensors") == [
        "clip.mkv"
    ]


def test_a_video_given_as_a_picture_is_called_one(cfrestore_: Command) -> None:
    for ending in ("mp4", "mkv", "avi"):
        write_clip(Path(f"clip.{ending}"), codec="mpeg4")
        result = cfrestore_(f"clip.{ending}")
        assert result.code == 1
        assert f"clip.{ending} is a video, whose faces `cfrestore video` restores" in result.err


def test_an_interrupted_run_says_how_it_goes_on_and_does(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(Path("clip.mkv"))

    def interrupt(*others: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(restoration, "join", interrupt)
        result = cfrestore_("video", "clip.mkv")
    assert result.code == 130
    assert "interrupted; the same command continues" in result.err
    assert not Path("clip.restored.mkv").exists()
    assert cfrestore_("video", "clip.mkv").code == 0
    assert len(times_of(Path("clip.restored.mkv"))) == 12
    assert not list(Path().glob(".clip*"))


def test_less_than_everything_is_a_failure_under_strict(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect(monkeypatch, face_at(8, 8, 32))
    write_clip(Path("clip.mkv"))
    assert cfrestore_("video", "clip.mkv", "--strict").code == 0
    result = cfrestore_("video", "clip.mkv", "--strict", "--faces", "0,3", "--overwrite")
    assert result.code == 1
    assert "there is no face 3" in result.err


def test_without_pyav_the_extra_is_named(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    result = cfrestore_("video", "clip.mkv")
    assert result.code == 2
    assert 'pip install "cfrestore[video]" brings it' in result.err


def test_a_terminal_sees_the_frames_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from io import StringIO

    from rich.console import Console

    stream = StringIO()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    with report.frame_progress(console, shown=True) as advance:
        advance("finding", 5, 20)
        advance("painting", 7, 20)
    assert "painting" in stream.getvalue()
    assert "7/20" in stream.getvalue()
