"""Where pictures are read from and written to, and in which format."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from command import Command, Result, make
from PIL import Image
from stubs import StubDetector, picture

from cfrestore.batch import Job
from cfrestore.image import Photo, read_photo, write_photo


def names(folder: str) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*.png"))


class Pipe(io.TextIOWrapper):
    """A standard stream of bytes, which may be a terminal."""

    def __init__(self, data: bytes = b"", terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data))
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def encoded(name: str) -> bytes:
    make(name)
    return Path(name).read_bytes()


# Inputs


def test_the_tree_of_a_folder_is_kept(cfrestore_: Command) -> None:
    make("in/a.png", "in/sub/b.png")
    assert cfrestore_("in", "-o", "flat").code == 0
    assert names("flat") == ["a.png"]
    assert cfrestore_("in", "--recursive", "-o", "deep").code == 0
    assert names("deep") == ["a.png", "sub/b.png"]


def test_patterns_work_without_a_shell(cfrestore_: Command) -> None:
    make("in/a1.png", "in/a2.png", "in/b1.png")
    assert cfrestore_("in/a*.png", "-o", "out/").code == 0
    assert names("out") == ["a1.png", "a2.png"]
    result = cfrestore_("in/c*.png", "-o", "out/")
    assert (result.code, result.err) == (1, "error: in/c*.png matches no pictures\n")


@pytest.mark.parametrize("null", [False, True])
def test_names_come_from_a_list(cfrestore_: Command, null: bool) -> None:
    listed = ["in/a.png", "in/b [1].png"] + (["in/c\n.png"] if null else [])
    make(*listed)
    end = "\0" if null else "\n"
    Path("list").write_text("".join(name + end for name in listed), newline="")
    words = ["--files-from", "list", "-o", "out"] + (["-0"] if null else [])
    assert cfrestore_(*words).code == 0
    assert names("out") == sorted(Path(name).name for name in listed)


def test_a_list_from_stdin_of_one_name_still_gives_a_folder(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("a.png")
    monkeypatch.setattr(sys, "stdin", Pipe(b"a.png\n"))
    assert cfrestore_("--files-from", "-", "-o", "out").code == 0
    assert names("out") == ["a.png"]


def test_a_tree_is_found_and_restored_twice(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like `find . -name '*.png' -print0 | cfrestore --files-from - -0 -o restored/`."""
    make("a/x.png", "b/x.png", "y.png")
    before = names(".")

    def again() -> Result:
        found = "".join(f"./{name}\0" for name in names("."))
        monkeypatch.setattr(sys, "stdin", Pipe(found.encode()))
        return cfrestore_("--files-from", "-", "-0", "-o", "restored/")

    first = again()
    assert first.code == 0
    assert "b/x.png -> restored/b/x.png  1 face restored" in first.err.splitlines()
    assert names("restored") == before
    second = again()
    assert (second.code, names("restored")) == (0, before)
    assert "skipped 3 listed names in restored, which is where results go" in second.err
    assert second.err.splitlines()[-1] == "0 of 3 pictures written, 3 unchanged"


def test_what_is_skipped_is_said_once_and_quietly_not_at_all(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("in/a.png", "in/compared/mine.png")

    def watch(look: Callable[[], Sequence[Job]]) -> Iterator[Sequence[Job]]:
        look()
        yield look()

    monkeypatch.setattr("cfrestore.batch.watch", watch)
    assert cfrestore_("in", "-r", "--watch").err.count("skipped in/compared") == 1
    assert cfrestore_("in", "-r", "--quiet").err == ""


def test_an_empty_list_is_nothing_to_do(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Pipe())
    result = cfrestore_("--files-from", "-")
    assert (result.code, result.err) == (0, "there is nothing to do\n")


# Outputs


def test_a_template_names_results(cfrestore_: Command) -> None:
    make("in/a.png", "in/b.png")
    assert cfrestore_("in", "-o", "out/{stem}_w{w}.{ext}", "--w", "0.7").code == 0
    assert names("out") == ["a_w0.7.png", "b_w0.7.png"]
    result = cfrestore_("in", "-o", "{what}.png")
    assert result.code == 2
    assert result.err.startswith("error: {what} in {what}.png is unknown")


def test_pictures_are_replaced_only_if_asked_for(cfrestore_: Command) -> None:
    make("a.png")
    before = Path("a.png").read_bytes()
    assert cfrestore_("a.png", "-o", "a.png", "--overwrite").code == 2
    assert Path("a.png").read_bytes() == before
    assert cfrestore_("a.png", "--in-place", "-o", "b.png").code == 2
    assert cfrestore_("a.png", "--in-place").code == 0
    assert Path("a.png").read_bytes() != before


def test_in_place_a_picture_that_would_lose_something_is_left(cfrestore_: Command) -> None:
    frames = [Image.fromarray(picture(48, 64, seed=seed)) for seed in range(3)]
    for name in ("a.gif", "a.tif", "a.webp", "a.png", "a.mpo.jpg"):
        kind = "MPO" if "mpo" in name else None
        frames[0].save(name, kind, save_all=True, append_images=frames[1:])
    frames[0].convert("CMYK").save("inks.jpg")
    cv2.imwrite("clear.bmp", np.dstack([picture(48, 64), np.full((48, 64), 100, np.uint8)]))
    make("b.png")
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    for name, lost in (
        ("a.gif", "only the first of its 3 frames was read"),
        ("a.tif", "only the first of its 3 pages was read"),
        ("a.webp", "only the first of its 3 frames was read"),
        ("a.png", "only the first of its 3 frames was read"),
        ("a.mpo.jpg", "only the first of its 3 pictures was read"),
        ("inks.jpg", "its inks (CMYK) were converted to sRGB without a profile that can be used"),
        ("clear.bmp", "its transparency cannot be written as BMP"),
    ):
        result = cfrestore_(name, "--in-place", "-q")
        told = f"error: {name} is not replaced, because its result holds less: {lost}"
        assert (result.code, result.err) == (1, f"{told}; write it elsewhere with -o\n")
        assert Path(name).read_bytes() == before[Path(name)]
        assert cfrestore_(name, "-q", "-o", "elsewhere/").code == 0
    assert cfrestore_("a.gif", "b.png", "--in-place", "-q").code == 1
    assert Path("b.png").read_bytes() != before[Path("b.png")]


def test_in_place_a_picture_stays_what_it_is_whatever_it_is_called(cfrestore_: Command) -> None:
    clear = Image.fromarray(picture(48, 64))
    clear.putalpha(100)
    clear.save("a.jpg", "PNG")
    assert cfrestore_("a.jpg", "--in-place").code == 0
    photo = read_photo("a.jpg")
    assert photo.format == "PNG" and photo.xmp is not None
    assert photo.alpha is not None and (photo.alpha == 100).all()


def test_stdin_to_stdout(cfrestore_: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("a.png")
    sink = Pipe()
    monkeypatch.setattr(sys, "stdin", Pipe(data))
    monkeypatch.setattr(sys, "stdout", sink)
    result = cfrestore_("-", "-o", "-")
    assert result.code == 0
    assert result.err.splitlines()[-1] == "<stdin> -> <stdout>  1 face restored"
    assert cfrestore_("a.png").code == 0
    written = read_photo(sink.buffer.getvalue())  # type: ignore[attr-defined]
    assert np.array_equal(written.pixels, read_photo("a.restored.png").pixels)


def test_no_picture_goes_to_a_terminal(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("a.png")
    sink = Pipe(terminal=True)
    monkeypatch.setattr(sys, "stdout", sink)
    result = cfrestore_("a.png", "-o", "-")
    assert result.code == 2
    assert result.err.startswith("error: a picture is not written to a terminal")
    assert sink.buffer.getvalue() == b""  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("- -o - --json", "stdout cannot have both the picture and JSON"),
        ("- --files-from -", "stdin cannot be both a picture and a list of them"),
        ("a.png -0", "--null is for the names in --files-from, which is not given"),
        ("a.png --watch --files-from x", "--watch is for folders and patterns"),
        ("- --watch", "--watch is for folders and patterns"),
        ("--files-from none", "none cannot be read: No such file or directory"),
        ("a.png a.png -o -", "<stdout> is for one picture"),
        ("a.png --quality 0", "quality must be a number from 1 to 100, or keep, found '0'"),
        ("a.png --quality good", "quality must be a number"),
        ("a.png --metadata some", "metadata must be keep or strip, found 'some'"),
        ("a.png --format doc", "format 'doc' is unknown; known formats are JPEG, "),
        ("a.png --shard 3/2", "a shard must be one of 1/N to N/N, found 3/2"),
        ("a.png -o a.jp2", "a.jp2 cannot be written as '.jp2': known formats are JPEG, "),
        ("- -o a.jp2", "a.jp2 cannot be written as '.jp2': known formats are JPEG, "),
        ("a.png -o {stem}_{w}", "a_0.5 cannot be written as '.5': known formats are JPEG, "),
        ("", "there is no INPUT"),
    ],
)
def test_words_that_contradict_each_other(cfrestore_: Command, words: str, said: str) -> None:
    make("a.png")
    result = cfrestore_(*words.split())
    assert result.code == 2
    assert result.err.startswith(f"error: {said}")
    assert len(result.err.splitlines()) == 1
    assert not Path("a.restored.png").exists()


def test_a_format_that_needs_a_missing_package_is_refused_before_any_work(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("a.png")
    monkeypatch.setattr("cfrestore.image.encode.missing_codec", lambda kind: "a package")
    for words in ("-o a.heic", "--format heif", "--format avif -o -"):
        result = cfrestore_("a.png", *words.split())
        assert result.code == 2
        assert result.err.endswith("which needs a package\n")
        assert len(result.err.splitlines()) == 1  # no model was loaded


def test_a_picture_whose_extension_is_no_format_fails_alone_before_its_faces_are_painted(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be read, but its result would be called so too."""
    make("a.png", "b.png")
    Path("b.png").rename("b.dat")
    Path("c.txt").write_text("no picture")
    assert cfrestore_("a.png", "b.dat", "c.txt", "--format", "png", "-o", "out/").code == 1
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["a.png", "b.png"]
    monkeypatch.setattr(StubDetector, "__call__", lambda *_: pytest.fail("it was searched"))
    result = cfrestore_("b.dat")
    assert result.code == 1
    assert "error: b.restored.dat cannot be written as '.dat'" in result.err
    assert "error: c.txt is not a picture" in cfrestore_("c.txt").err


@pytest.mark.parametrize("words", [("", "--in-place"), ("a.png", ""), ("a.png", "-o", "")])
def test_an_empty_name_is_not_the_current_folder(
    cfrestore_: Command, words: tuple[str, ...]
) -> None:
    make("a.png")
    before = Path("a.png").read_bytes()
    result = cfrestore_(*words)
    assert result.code == 2
    assert result.err.startswith("error: an input or output has an empty name")
    assert [path.name for path in Path().glob("*.png")] == ["a.png"]
    assert Path("a.png").read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a folder that is somebody's")
@pytest.mark.parametrize("words", [("a.png",), ("weights", "list"), ("doctor",)])
def test_a_deleted_working_folder_is_named(
    cfrestore_: Command, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("gone").mkdir()
    monkeypatch.chdir("gone")
    Path("../gone").rmdir()
    result = cfrestore_(*words)
    assert result.code == 1
    assert result.err == "error: the working folder has been deleted; change to another\n"


# What is written


def test_the_format_can_be_chosen(cfrestore_: Command) -> None:
    make("a.png")
    assert cfrestore_("a.png", "--format", "webp", "--quality", "100").code == 0
    lossless = Path("a.restored.webp")
    assert read_photo(lossless).format == "WEBP"
    pixels = read_photo(lossless).pixels
    assert cfrestore_("a.png").code == 0
    assert np.array_equal(pixels, read_photo("a.restored.png").pixels)
    size = lossless.stat().st_size
    assert cfrestore_("a.png", "--format", "webp", "--quality", "1", "--overwrite").code == 0
    assert lossless.stat().st_size < size / 4


def test_the_coding_of_a_jpeg_can_be_kept(cfrestore_: Command) -> None:
    Image.fromarray(picture(48, 64)).save("a.jpg", quality=20)
    tables = Image.open("a.jpg").quantization  # type: ignore[attr-defined]
    assert cfrestore_("a.jpg", "--quality", "keep").code == 0
    assert Image.open("a.restored.jpg").quantization == tables  # type: ignore[attr-defined]
    assert cfrestore_("a.jpg", "--overwrite").code == 0
    assert Image.open("a.restored.jpg").quantization != tables  # type: ignore[attr-defined]


def test_metadata_can_be_stripped(cfrestore_: Command) -> None:
    write_photo(Photo(picture(48, 64), exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"), "a.png")
    assert cfrestore_("a.png").code == 0
    assert read_photo("a.restored.png").exif is not None
    assert cfrestore_("a.png", "--metadata", "strip", "--overwrite").code == 0
    assert read_photo("a.restored.png").exif is None


def test_large_pictures_are_refused_on_demand(cfrestore_: Command) -> None:
    make("a.png")
    result = cfrestore_("a.png", "--max-pixels", "3071")
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith("error: a.png ")
    assert "3,071" in result.err
    assert cfrestore_("a.png", "--max-pixels", "3072").code == 0


def test_what_is_lost_is_said_with_the_picture(cfrestore_: Command) -> None:
    frames = [Image.fromarray(picture(48, 64, seed=seed)) for seed in (0, 1)]
    frames[0].save("a.tif", save_all=True, append_images=frames[1:])
    line, note = cfrestore_("a.tif").err.splitlines()[-2:]
    assert line == "a.tif -> a.restored.tif  1 face restored"
    assert note == "  Only the first of its 2 pages was read."
    assert cfrestore_("a.tif", "--overwrite", "--quiet").err == ""


# Many pictures


def test_parts_of_a_batch_make_the_whole(cfrestore_: Command) -> None:
    make(*(f"in/{number}.png" for number in range(6)))
    parts = []
    for part in ("1/2", "2/2"):
        assert cfrestore_("in", "-o", "out", "--shard", part).code == 0
        parts.append(names("out"))
    assert 0 < len(parts[0]) < len(parts[1]) == 6
    result = cfrestore_("in", "-o", "out", "--jobs", "1")
    assert result.err.splitlines()[-1] == "0 of 6 pictures written, 6 unchanged"
    assert "in/0.png -> out/0.png  unchanged, 1 face restored" in result.err


def test_other_settings_are_another_result(cfrestore_: Command) -> None:
    make("in/a.png")
    assert cfrestore_("in").code == 0
    for words in (["--metadata", "strip"], ["--w", "1"], []):
        assert "unchanged" not in cfrestore_("in", *words).err
        assert "unchanged" in cfrestore_("in", *words, "--jobs", "3").err


def test_a_folder_is_watched_until_interrupted(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("in/a.png")

    def watch(look: object) -> Iterator[Sequence[Job]]:
        assert callable(look)
        yield look()
        make("in/b.png")
        Path("in.restored/b.png").write_text("precious")
        make("in/c.png")
        yield look()
        raise KeyboardInterrupt

    monkeypatch.setattr("cfrestore.batch.watch", watch)
    result = cfrestore_("in", "--watch")
    assert result.code == 130
    assert "in/a.png -> in.restored/a.png  1 face restored" in result.err
    assert "error: in.restored/b.png exists; only --overwrite replaces it" in result.err
    assert "in/c.png -> in.restored/c.png  1 face restored" in result.err
    assert result.err.splitlines()[-1] == "interrupted"
    assert Path("in.restored/b.png").read_text() == "precious"


# Through a real shell


@pytest.fixture
def shell(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an old photograph, in which `cfrestore` runs the command."""
    monkeypatch.chdir(tmp_path)
    Path("old.jpg").write_bytes((repository / "examples/collins.jpg").read_bytes())
    command = Path("bin/cfrestore")
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cfrestore "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent.absolute()}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.setenv("CFRESTORE_MODEL", "compact")
    monkeypatch.setenv("CFRESTORE_DEVICE", "cpu")
    return tmp_path


def run(line: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["bash", "-c", line], capture_output=True, timeout=300)


posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")


@posix
def test_a_pipeline_through_a_shell(shell: Path) -> None:
    done = run("cat old.jpg | cfrestore - -o - > new.jpg && cfrestore old.jpg -o file.jpg --json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b'{"schema": 1, "path": "old.jpg", "output": "file.jpg", ')
    assert b"<stdin> -> <stdout>  1 face restored" in done.stderr
    new, file, old = (read_photo(name) for name in ("new.jpg", "file.jpg", "old.jpg"))
    assert np.array_equal(new.pixels, file.pixels)
    assert not np.array_equal(new.pixels, old.pixels)
    assert new.size == old.size


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize("words", ["old.jpg --json -q", "weights list", "--version", "--help"])
def test_a_full_stdout_is_one_sentence(shell: Path, words: str) -> None:
    done = run(f"cfrestore {words} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == b"error: stdout cannot be written: No space left on device\n"


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_picture_that_stdout_does_not_take_is_one_sentence(shell: Path) -> None:
    done = run("cfrestore old.jpg -q -o - > /dev/full")
    assert done.returncode == 1
    assert done.stderr == b"error: <stdout> cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(24, "Too many open files"), "error: Too many open files\n"),
        (OSError(28, "No space left", "/tmp/x"), "error: /tmp/x: No space left\n"),
        (OSError("all is lost"), "error: all is lost\n"),
    ],
)
def test_what_the_system_refuses_is_one_sentence_that_does_not_blame_stdout(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch, error: OSError, said: str
) -> None:
    def load(*_: object, **__: object) -> None:
        raise error

    make("a.png")
    monkeypatch.setattr("cfrestore.pipeline.load_pipeline", load)
    result = cfrestore_("a.png", "-q")
    assert (result.code, result.err) == (1, said)


@posix
def test_a_reader_who_goes_away_ends_the_command_quietly(shell: Path) -> None:
    done = run("cfrestore old.jpg -q -o - | true; echo ${PIPESTATUS[0]}")
    assert (done.stdout, done.stderr) == (b"141\n", b"")
    done = run("cfrestore old.jpg bin/none.jpg -q --json | true; echo ${PIPESTATUS[0]}")
    assert (done.stdout, done.stderr) == (b"1\n", b"")


@posix
def test_closed_streams_are_one_sentence(shell: Path) -> None:
    lines = ["cfrestore - -q -o x.jpg <&-", "cfrestore old.jpg -q -o - >&-"]
    for line in (*lines, "cfrestore old.jpg --json >&-", "cfrestore --files-from - <&-"):
        done = run(line)
        assert done.returncode in (1, 2)
        assert done.stderr.startswith(b"error: ")
        assert len(done.stderr.splitlines()) == 1
    assert not Path("x.jpg").exists()
