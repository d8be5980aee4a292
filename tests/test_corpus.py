"""Bad input: every file of the corpus gives the result stated in docs/formats.md."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import CASES, NAMES, WHOLE, Case, describe

from cfrestore.errors import ImageError, OutputError
from cfrestore.image import Photo, read_photo, write_photo

posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")
PHOTO = Photo(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_every_bad_file_gives_what_it_is_said_to_give(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if case.file == "secret.jpg" and (os.name != "posix" or os.geteuid() == 0):
        pytest.skip("nothing is forbidden to this user")
    if "link" in case.name and os.name != "posix":
        pytest.skip("needs symbolic links")
    given = describe(case.put(tmp_path))
    expected = ".*".join(map(re.escape, case.gives.split("...")))
    assert re.fullmatch(expected, given), given
    assert given.isprintable()
    assert capfd.readouterr() == ("", "")


def test_the_documented_table_is_the_corpus(repository: Path) -> None:
    text = (repository / "docs/formats.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    found = {tuple(cell.strip() for cell in row) for row in rows if len(row) == 3}
    wanted = {(f"`{case.file}`", case.name, case.gives) for case in CASES}
    assert found == wanted


@posix
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_are_taken_as_they_are_and_told_on_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(WHOLE)
    photo = read_photo(path)
    assert photo.size == (24, 40) and photo.notes == ()
    write_photo(photo, path)
    assert os.listdir(tmp_path) == [name]  # noqa: PTH208, as the system calls it
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=r" is empty$") as caught:
        read_photo(path)
    assert str(caught.value).isprintable()
    str(caught.value).encode("utf-8")
    with pytest.raises(OutputError, match=r" cannot be written: ") as refused:
        write_photo(photo, path / "below.png")
    assert str(refused.value).isprintable()


# ---- sources and targets that fail


def test_an_endless_source_that_is_no_picture_is_given_up_soon() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            return bytes(size)

    source = Endless()
    with pytest.raises(ImageError, match="is not a picture of a known kind"):
        read_photo(source)  # type: ignore[arg-type]
    assert source.given < 100_000_000


def test_a_source_longer_than_any_picture_is_given_up() -> None:
    class Long(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            block = WHOLE[:33].ljust(size, b"\0")
            self.given += size
            return block

    source = Long()
    with pytest.raises(ImageError, match="has more bytes than a picture of 1,000 pixels can"):
        read_photo(source, max_pixels=1000)  # type: ignore[arg-type]
    assert source.given < 200_000_000


def test_a_source_that_fails_midway_is_named() -> None:
    class Failing(io.RawIOBase):
        name = "<stdin>"

        def read(self, size: int = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(ImageError, match=r"^<stdin> cannot be read: Input/output error$"):
        read_photo(Failing())  # type: ignore[arg-type]


def run(program: str, cwd: Path, **settings: Any) -> str:
    """The output of a program in its own process."""
    head = "import sys; from cfrestore.errors import *; from cfrestore.image import *\n"
    code = head + textwrap.dedent(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        **settings,
    )
    return done.stdout.strip()


@posix
def test_standard_input_that_is_closed(tmp_path: Path) -> None:
    program = """
        assert sys.stdin is None
        import os
        try: os.close(0)  # which a library may have opened in the meantime
        except OSError: pass
        for source in ("/dev/stdin", "/dev/fd/0"):
            try: read_photo(source)
            except ImageError as error: print(error)
    """
    said = run(program, tmp_path, preexec_fn=lambda: os.close(0)).splitlines()
    assert len(said) == 2 and all("cannot be read: " in line for line in said)


@posix
def test_standard_input_that_can_only_be_written_to(tmp_path: Path) -> None:
    program = """
        try: read_photo(sys.stdin.buffer)
        except ImageError as error: print(error)
    """
    with (tmp_path / "out").open("wb") as only:
        assert run(program, tmp_path, stdin=only) == "<stdin> cannot be read: Bad file descriptor"


class Full(io.RawIOBase):
    """A stream on a disk with room for some bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(data)
        return len(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_a_full_disk_is_said_to_be_full(format: str, tmp_path: Path) -> None:
    for room in (0, 100):
        with pytest.raises(OutputError, match=r"cannot be written: No space left on device$"):
            write_photo(PHOTO, Full(room), format=format)  # type: ignore[arg-type]
    if Path("/dev/full").exists():
        with pytest.raises(OutputError, match=r"^/dev/full cannot be written: No space left"):
            write_photo(PHOTO, "/dev/full", format=format)


@posix
@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif", ".bmp", ".gif", ".ppm"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_file_that_does_not_fit_leaves_the_old_one_and_no_other(
    ending: str, deep: bool, tmp_path: Path
) -> None:
    target = tmp_path / f"photo{ending}"
    target.write_bytes(b"old")
    program = f"""
        import numpy as np, resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
        photo = Photo(noise.astype(np.uint16) * 200 if {deep} else noise)
        try: write_photo(photo, "photo{ending}")
        except OutputError as error: print(error)
    """
    assert run(program, tmp_path) == f"photo{ending} cannot be written: File too large"
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


@posix
def test_a_folder_that_may_not_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.geteuid() == 0:  # root may do everything

        def refuse(path: Path, mode: str) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

        monkeypatch.setattr(Path, "open", refuse)
    try:
        with pytest.raises(OutputError, match=r"photo\.png cannot be written: Permission denied$"):
            write_photo(PHOTO, folder / "photo.png")
        assert not list(folder.iterdir())
    finally:
        folder.chmod(0o700)


@posix
def test_a_reader_that_went_away_is_said(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "wb", buffering=0)
    with stream, pytest.raises(OutputError, match="cannot be written: Broken pipe") as caught:
        write_photo(PHOTO, stream, format="PNG")
    assert isinstance(caught.value.__cause__, BrokenPipeError)


@posix
def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "photo.png"
    target.write_bytes(b"old")
    program = """
        import numpy as np, os, signal
        import cfrestore.files as files
        files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        write_photo(Photo(np.zeros((9, 9, 3), np.uint8)), "photo.png")
    """
    assert run(program, tmp_path) == ""
    assert target.read_bytes() == b"old"
    left = [path.name for path in tmp_path.iterdir() if path != target]
    assert all(re.fullmatch(r"\.cfrestore-[0-9a-f]{16}\.tmp", name) for name in left)


def test_a_stream_gets_everything_or_nothing() -> None:
    class Slow(io.RawIOBase):
        def __init__(self) -> None:
            self.got = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.got += bytes(data[:1000])
            return min(1000, len(data))

    slow, whole = Slow(), io.BytesIO()
    for target in (slow, whole):
        write_photo(PHOTO, target, format="TIFF")  # type: ignore[arg-type]
    assert slow.got == whole.getvalue()
    nothing = io.BytesIO()
    with pytest.raises(OutputError):
        write_photo(Photo(np.zeros((1, 17_000, 3), np.uint8)), nothing, format="WEBP")
    assert nothing.getvalue() == b""
