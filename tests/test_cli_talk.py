"""Messages during the work, where they go, and exit codes."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from command import Command, detect, make
from stubs import save_network, small_network

from cfrestore import network
from cfrestore.batch import FaceReport, Job, Outcome
from cfrestore.cli import restore
from cfrestore.cli.report import describe, progress
from cfrestore.image import read_photo


def test_verbose_tells_files_and_times(cfrestore_: Command) -> None:
    make("a.png")
    compact = network.shipped()  # type: ignore[call-arg]
    lines = cfrestore_("a.png", "-v", "--model", "compact").err.splitlines()
    assert f"  model: {compact}" in lines
    stages = [rf"{stage} \d+\.\d\d s" for stage in ("read", "find", "paint", "paste", "write")]
    assert re.fullmatch(f"  {', '.join(stages)}", lines[-1])
    lines = cfrestore_("a.png", "--overwrite", "--model", "compact").err.splitlines()
    assert len(lines) == 2


def test_the_end_names_each_failure_and_why(cfrestore_: Command) -> None:
    make("in/a.png", "in/b.png")
    Path("in/c.png").write_bytes(b"")
    Path("in/d.png").write_text("no picture")
    result = cfrestore_("in")
    assert result.code == 1
    assert result.err.splitlines()[-3:] == [
        "failed: in/c.png is empty",
        "failed: in/d.png is not a picture of a known kind (JPEG, PNG, WEBP, TIFF, BMP, GIF, PPM, "
        "AVIF, HEIF)",
        "2 of 4 pictures written, 2 failed",
    ]


def test_an_interrupted_batch_says_how_far_it_came(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("in/a.png", "in/b.png")

    def read(source: Any, **others: object) -> Any:
        if source.name == "b.png":
            raise KeyboardInterrupt
        return read_photo(source)

    monkeypatch.setattr("cfrestore.image.read_photo", read)
    result = cfrestore_("in", "--jobs", "1")
    assert result.code == 130
    assert re.fullmatch(r"[01] of 2 pictures written", result.err.splitlines()[-2])
    assert result.err.splitlines()[-1] == "interrupted"


def test_an_interruption_while_a_picture_is_told_of_hides_no_other(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("in/a.png", "in/b.png")

    def run(jobs: Sequence[Job], **others: object) -> Generator[Outcome, None, None]:
        first, second = map(Outcome, jobs)
        try:
            yield first
        except KeyboardInterrupt:
            yield second
            raise

    def interrupted_first(outcome: Outcome, *others: object, **more: object) -> str:
        if outcome.job.source == Path("in/a.png"):
            raise KeyboardInterrupt
        return describe(outcome, "restored")

    monkeypatch.setattr("cfrestore.batch.run", run)
    monkeypatch.setattr("cfrestore.cli.report.describe", interrupted_first)
    result = cfrestore_("in")
    assert result.code == 130
    line, *end = result.err.splitlines()[-3:]
    assert line.startswith("in/b.png -> ")
    assert end == ["2 of 2 pictures written", "interrupted"]


@pytest.mark.parametrize("name", ["a\nb.png", "a\x1b[31mb.png", "a\udcffb.png"])
def test_names_cannot_play_tricks_on_a_terminal(cfrestore_: Command, name: str) -> None:
    line = describe(Outcome(Job(Path(name), Path("c.png"))), "restored")
    assert line.isprintable()
    assert describe(Outcome(Job(Path(name), Path("c.png")), error=name), "restored").isprintable()


def test_an_unchanged_picture_is_told() -> None:
    face = FaceReport("restored", 0.9, (0, 0, 1, 1), ((0, 0),) * 5, 0.5)
    outcome = Outcome(Job(Path("a"), Path("b")), "unchanged", faces=(face, face))
    assert describe(outcome, "restored") == "a -> b  unchanged, 2 faces restored"


def test_faces_that_lost_detail_are_told() -> None:
    face = FaceReport("restored", 0.9, (0, 0, 1, 1), ((0, 0),) * 5, 0)
    outcome = Outcome(Job(Path("a"), Path("b")), faces=(face, replace(face, softened=True)))
    line = "a -> b  2 faces colorized (1 larger than the network paints, so softer now)"
    assert describe(outcome, "colorized") == line


# On a terminal


def on_terminal(capture: Any, **environment: str) -> str:
    """The progress bar's output, up to the end."""
    from rich.console import Console

    console = Console(
        file=capture, force_terminal=True, width=120, _environ={"TERM": "xterm", **environment}
    )
    with progress(2, console, shown=True) as advance:
        advance(1)
        advance(2)
    return capture.getvalue()


def test_the_bar_counts_pictures_and_faces() -> None:
    from io import StringIO

    shown = on_terminal(StringIO())
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert re.search(r"2/2 pictures, 3 faces, \d+\.\d a second, 0:00:00", plain)
    assert "\x1b[32m" in shown
    assert "\x1b[32m" not in on_terminal(StringIO(), NO_COLOR="1")
    assert on_terminal(StringIO(), TERM="dumb") == ""


def test_no_bar_without_a_terminal(cfrestore_: Command) -> None:
    make("in/a.png", "in/b.png")
    result = cfrestore_("in", "-o", "out")
    assert "\x1b" not in result.err
    assert "a second" not in result.err


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_the_whole_command_on_a_terminal(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pty

    monkeypatch.chdir(tmp_path)
    make("in/a.png", "in/b.png")
    network = save_network(tmp_path / "small.safetensors", small_network())
    words = ["in", "--model", str(network), "--aligned", "--device", "cpu"]

    def shown(*more: str) -> tuple[str, bytes]:
        ours, theirs = pty.openpty()
        environment = {**os.environ, "PYTHONPATH": str(repository), "TERM": "xterm"}
        environment.pop("NO_COLOR", None)
        command = [sys.executable, "-m", "cfrestore", *words, *more]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=theirs
        ) as process:
            os.close(theirs)
            seen = b""
            while part := _read(ours):
                seen += part
            assert process.stdout is not None
            out = process.stdout.read()
        os.close(ours)
        assert process.returncode == 0
        return seen.decode(), out

    seen, out = shown("-o", "1", "--json")
    assert "2/2" in seen and "a second" in seen
    assert "2 of 2 pictures written" in seen
    assert out.count(b"\n") == out.count(b'{"schema"') == 2
    assert shown("-o", "2", "--quiet") == ("", b"")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the other side is closed
        return b""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_a_signal_ends_a_batch_cleanly(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make("in/0.png")
    for number in range(1, 400):
        shutil.copy("in/0.png", f"in/{number}.png")
    network = save_network(tmp_path / "small.safetensors", small_network())
    words = ["in", "-o", "out", "--model", str(network), "--aligned", "--device", "cpu"]
    with subprocess.Popen(
        [sys.executable, "-m", "cfrestore", *words, "--json"],
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith('{"schema": 1, ')
        process.send_signal(signal.SIGINT)
        told = 1 + len(process.stdout.readlines())
        said = process.stderr.read().splitlines()
    assert process.returncode == 130
    assert said[-1] == "interrupted"
    match = re.fullmatch(r"(\d+) of 400 pictures written", said[-2])
    written = list(Path("out").glob("*.png"))
    assert match and int(match[1]) == len(written) < 400
    assert told in (len(written) - 1, len(written))  # the signal may come just before a record
    assert not list(Path("out").glob(".*.tmp"))
    assert all(read_photo(path).size == (32, 32) for path in written)


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_can_complete(repository: Path, shell: str) -> None:
    environment = {**os.environ, "_CFRESTORE_COMPLETE": f"complete_{shell}"}
    typed = {"COMP_WORDS": "cfrestore --save", "COMP_CWORD": "1"}
    typed |= {"_TYPER_COMPLETE_ARGS": "cfrestore --save", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(
        [sys.executable, "-c", "from cfrestore.cli import main; main([])"],
        cwd=repository,
        env=environment | typed,
        capture_output=True,
        text=True,
    )
    assert "--save-crops" in done.stdout
    assert "--save-restored" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_completion_can_be_shown() -> None:
    command: Any = typer.main.get_command(restore.app)
    names = {name for parameter in command.params for name in parameter.opts}
    assert {"--show-completion", "--install-completion"} <= names


# Exit codes


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["a.png"], 0),
        (["a.png", "none.png"], 1),
        (["a.png", "--faces", "7"], 0),
        (["a.png", "--faces", "7", "--strict"], 1),
        (["a.png", "--w", "2"], 2),
        (["there.png"], 2),
        (["a.png", "--model", "published"], 4),
        (["a.png", "--model", "none.safetensors"], 4),
    ],
)
def test_exit_codes_are_as_documented(
    cfrestore_: Command, words: list[str], code: int, repository: Path
) -> None:
    make("a.png", "there.png", "there.restored.png")
    assert cfrestore_(*words).code == code
    options = (repository / "docs/options.md").read_text(encoding="utf-8")
    assert f"\n| {code} | " in options.split("## Exit codes\n")[1]


def test_without_faces_all_is_done(cfrestore_: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    detect(monkeypatch)
    make("a.png")
    assert cfrestore_("a.png", "--strict", "--json", "-q").code == 0
