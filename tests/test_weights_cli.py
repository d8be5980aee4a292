"""`cfrestore weights`, and the messages of other commands while they fetch."""

import hashlib
import io
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import bad_server
import pytest
import torch
from bad_server import BadServer
from rich.console import Console
from stubs import save_network, small_network

from cfrestore.checkpoint import read_checkpoint
from cfrestore.cli import main
from cfrestore.cli.supply import supply
from cfrestore.errors import WeightsError
from cfrestore.weights import (
    MIT,
    S_LAB,
    TERMS,
    WEIGHT_FILES,
    WeightFile,
    fetching,
    locate,
    table,
)

CONTENT = b"\x80" + bytes(100_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Result:
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CFRESTORE_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BadServer]:
    """A server with the only two files of the table, `big` and `small`."""
    monkeypatch.delenv("CFRESTORE_OFFLINE")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetching, "PAUSES", (0.001,))
    with BadServer(CONTENT).running() as made:
        rows = tuple(
            WeightFile(
                name,
                f"{name}.pth",
                (made.url(f"{name}.pth"),),
                len(CONTENT),
                SHA256,
                licence,
                f"{name} faces",
            )
            for name, licence in (("big", S_LAB), ("small", MIT))
        )
        monkeypatch.setattr(table, "WEIGHT_FILES", rows)
        yield made


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr(os, "environ", os.environ.copy())  # options change it

    def call(*words: str) -> Result:
        capsys.readouterr()
        try:
            code = main(("weights", *words))
        except SystemExit as left:
            code = int(left.code or 0)
        said = capsys.readouterr()
        return Result(code, said.out, said.err)

    return call


# Without any files


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        ((), 2, "Usage: cfrestore weights", ""),
        (("--help",), 0, "convert", ""),
        (("wipe",), 2, "", "No such command"),
        (("fetch", "nothing"), 2, "", "called 'nothing'; choose one of: codeformer, codeformer-in"),
        (("fetch", "--offline"), 4, "", "error: codeformer.pth was not found in "),
        (("fetch", "mobilenet"), 4, "", "--offline or CFRESTORE_OFFLINE forbids that"),
        (("verify",), 0, "compact.safetensors is as published\n", ""),
        (("verify", "compact"), 0, "compact.safetensors is as published\n", ""),
        (("fetch", "compact"), 0, "compact.safetensors\n", "comes with cfrestore"),
        (("verify", "parsenet"), 4, "", "error: parsing_parsenet.pth was not found in "),
        (("verify", "nothing"), 2, "", "error: there is no weight file called 'nothing'"),
        (("path", "codeformer"), 4, "", "error: codeformer.pth was not found in "),
        (("path", "codeforner"), 2, "", "did you mean 'codeformer'"),
        (("path", "compact"), 0, "compact.safetensors\n", ""),
        (("remove", "codeformer"), 4, "", "error: codeformer.pth is not in "),
        (("remove", "compact"), 2, "", "error: compact.safetensors comes with cfrestore"),
        (("remove", "compact.safetensors"), 2, "", "error: compact.safetensors comes with"),
        (("licence", "codeformer"), 0, "NON-COMMERCIAL purposes only", ""),
        (("license", "codeformer"), 0, "In full: https://github.com/sczhou/CodeFormer/", ""),
        (("licence", "compact"), 0, "Apache-2.0", ""),
        (("licence", "nothing"), 2, "", "error: "),
        (("convert", "nothing.pth", "out.safetensors"), 4, "", "nothing.pth cannot be read"),
        (("convert", "nothing.pth", "out.pth"), 2, "", "should end in .safetensors"),
    ],
)
def test_words_codes_and_streams(
    command: Command, home: Path, words: tuple[str, ...], code: int, out: str, err: str
) -> None:
    result = command(*words)
    assert result.code == code
    assert out in result.out
    assert err in result.err
    assert bool(result.out) == bool(out)
    assert bool(result.err) == bool(err)


def test_every_licence_is_explained() -> None:
    for row in WEIGHT_FILES:
        terms = TERMS[row.licence]
        assert terms.words
        assert terms.text.startswith("https://")
        repository = "/".join(terms.text.split("/")[3:5])
        assert row.shipped or repository in row.urls[0]
    assert "NON-COMMERCIAL" in TERMS[S_LAB].words
    assert "also commercially" in TERMS[MIT].words


# List


def test_list_shows_every_file_in_a_line(command: Command, home: Path) -> None:
    result = command("list")
    head, *lines = result.out.splitlines()
    assert head.split() == ["name", "file", "size", "licence", "for", "where"]
    assert [line.split()[0] for line in lines] == [row.name for row in WEIGHT_FILES]
    assert "376.6 MB" in lines[0]
    assert "non-commercial" in lines[0]
    assert all(line.endswith("not here") for line in lines[:-2])
    assert lines[-2].endswith("compact.safetensors")
    assert lines[-1].endswith("compact-upsampler.safetensors")
    assert len({line.index(row.file) for line, row in zip(lines, WEIGHT_FILES, strict=True)}) == 1


def test_list_as_json_is_the_table(command: Command, shared: Path) -> None:
    rows = json.loads(command("list", "--json", "--weights-dir", str(shared / "weights")).out)
    by_name = {row["name"]: row for row in rows}
    assert set(by_name) == {row.name for row in WEIGHT_FILES}
    detector = shared / "weights/detection_mobilenet0.25_Final.pth"
    assert by_name["mobilenet"]["path"] == str(detector)
    codeformer = by_name["codeformer"]
    assert codeformer["path"] is None
    assert codeformer["bytes"] == 376637898
    assert [url.split("/")[2] for url in codeformer["urls"]] == ["github.com", "huggingface.co"]
    assert Path(by_name["compact"]["path"]).is_file()


def test_list_tells_what_is_wrong(command: Command, home: Path) -> None:
    (home / "codeformer.pth").write_bytes(b"no")
    result = command("list")
    assert result.code == 0
    assert result.out.splitlines()[1].endswith("here, but wrong")
    assert "error: " in result.err
    assert "expected 1009e537e0c2a07d" in result.err


# Fetch


def test_fetch_says_what_comes_and_shows_where_it_is(
    command: Command, server: BadServer, home: Path
) -> None:
    result = command("fetch", "big", "small")
    assert result.code == 0
    assert result.out == f"{home}/big.pth\n{home}/small.pth\n"
    first, second = result.err.splitlines()
    assert first == (
        f"fetching big.pth: big faces; 0.1 MB; {S_LAB}; from {server.url('big.pth')} to {home}"
    )
    assert second.startswith("fetching small.pth: ")
    again = command("fetch", "--all")
    assert (again.out, again.err) == (result.out, "")
    assert len(server.asked) == 2
    assert command("path", "big").out == f"{home}/big.pth\n"
    assert command("verify").out == "".join(
        f"{name}: {home}/{name}.pth is as published\n" for name in ("big", "small")
    )
    assert command("list").out.splitlines()[1].endswith(f"{home}/big.pth")
    removed = command("remove", "big")
    assert (removed.code, removed.out) == (0, "")
    assert removed.err == f"removed {home}/big.pth\n"
    assert not (home / "big.pth").exists()


def test_by_default_what_the_published_model_needs_is_fetched(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "cfrestore.cli.supply.supply", lambda names, console, required: asked.extend(names)
    )
    command("fetch")
    assert asked == ["codeformer", "retinaface", "parsenet"]


def test_fetch_goes_to_the_folder_that_is_named(
    command: Command, server: BadServer, tmp_path: Path
) -> None:
    place = tmp_path / "new/folder"
    assert command("fetch", "small", "--weights-dir", str(place)).code == 0
    assert (place / "small.pth").read_bytes() == CONTENT


def test_one_failure_does_not_stop_the_others(
    command: Command, server: BadServer, home: Path
) -> None:
    url = server.will(bad_server.status(404), path="big.pth")
    result = command("fetch", "--all")
    assert result.code == 4
    assert result.out == f"{home}/small.pth\n"
    assert f"error: big.pth could not be fetched: {url} answered 404 Not Found\n" in result.err


def test_without_network_the_others_are_not_tried(
    command: Command, server: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = table.WEIGHT_FILES
    monkeypatch.setattr(table, "WEIGHT_FILES", (replace(first, urls=(closed_port(),)), second))
    result = command("fetch", "--all")
    assert result.code == 4
    assert "cannot be reached" in result.err
    assert server.asked == []


def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/weights.pth"


def test_a_wrong_file_fails_every_check(command: Command, server: BadServer, home: Path) -> None:
    (home / "big.pth").write_bytes(b"no")
    for words in (("path", "big"), ("verify",), ("verify", "big"), ("fetch", "big")):
        result = command(*words)
        assert result.code == 4
        assert result.out == ""
        assert hashlib.sha256(b"no").hexdigest() in result.err
        assert SHA256 in result.err


# Convert


def test_a_file_is_converted_and_the_command_says_so(command: Command, home: Path) -> None:
    torch.save({"x": torch.ones(2)}, "a.pth")
    result = command("convert", "a.pth", "a.safetensors")
    assert (result.code, result.out, result.err) == (0, "", "a.pth -> a.safetensors\n")
    assert torch.equal(read_checkpoint("a.safetensors")[0]["x"], torch.ones(2))
    assert command("convert", "a.pth", "a.safetensors").code == 2
    assert command("convert", "a.pth", "a.safetensors", "--overwrite").code == 0


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch was-run",)


@pytest.mark.parametrize("words", [("weights", "convert", "a.pth", "a.safetensors"), ("load",)])
def test_a_hostile_file_is_refused_and_not_run(
    home: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    torch.save({"params_ema": {"x": Hostile()}}, "a.pth")
    if words == ("load",):
        Path("photo.png").write_bytes(b"not looked at, because the network comes first")
        words = ("photo.png", "--model", "a.pth", "--device", "cpu")
    assert main(words) == 4
    assert "a.pth is damaged or holds more than weights" in capsys.readouterr().err
    assert not Path("was-run").exists()
    assert not Path("a.safetensors").exists()


# Supply


def speak(terminal: bool = False) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=100, soft_wrap=True, highlight=False
    )


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_only_a_terminal_shows_a_bar(server: BadServer, home: Path) -> None:
    plain, terminal = speak(), speak(terminal=True)
    supply(["big"], plain, required=False)
    supply(["small"], terminal, required=False)
    assert said(plain).count("\n") == 1
    assert "━" in said(terminal)
    assert locate("big")
    assert locate("small")


def test_what_is_optional_may_fail(server: BadServer, home: Path) -> None:
    url = server.will(bad_server.status(503), path="big.pth")
    console = speak()
    supply(["big", "small"], console, required=False)
    fetching_big, retry, note, fetching_small = said(console).splitlines()
    assert fetching_big.startswith("fetching big.pth: ")
    assert retry.startswith(f"note: {url} answered 503")
    assert note.startswith(f"note: big.pth could not be fetched: {url} answered 503")
    assert "--offline" in note
    assert fetching_small.startswith("fetching small.pth: ")
    assert locate("small")
    with pytest.raises(WeightsError, match="503"):
        supply(["big"], console, required=True)


def test_without_network_one_note_is_enough(
    server: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = table.WEIGHT_FILES
    monkeypatch.setattr(table, "WEIGHT_FILES", (replace(first, urls=(closed_port(),)), second))
    console = speak()
    supply(["big", "small"], console, required=False)
    assert said(console).count("note: ") == 1
    assert server.asked == []


def test_offline_is_silent_unless_the_file_is_required(
    server: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFRESTORE_OFFLINE", "1")
    console = speak()
    supply(["big", "small"], console, required=False)
    assert said(console) == ""
    with pytest.raises(WeightsError, match=r"big\.pth was not found in .*offline"):
        supply(["big"], console, required=True)
    assert said(console) == ""
    assert server.asked == []


def test_a_wrong_file_is_an_error_even_where_none_is_required(
    server: BadServer, home: Path
) -> None:
    save_network(home / "big.pth", small_network())
    with pytest.raises(WeightsError, match="SHA-256"):
        supply(["big"], speak(), required=False)
