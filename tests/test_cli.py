import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stubs import StubDetector, StubNetwork, face_at, picture, save_network, small_network

import cfrestore
from cfrestore import pipeline
from cfrestore.cli import main
from cfrestore.detect import Face
from cfrestore.errors import CheckpointError, ConfigError, OutputError, WeightsError
from cfrestore.image import Photo, read_photo, write_photo
from cfrestore.pipeline import Pipeline


@dataclass
class Result:
    code: int
    out: str
    err: str


class Command:
    """The command, in this process; its exit code and what it said."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: str) -> Result:
        self.capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as left:
            code = int(left.code or 0)
        said = self.capsys.readouterr()
        return Result(code, said.out, said.err)


@pytest.fixture
def cfrestore_(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The command in an empty folder, with one face found in each picture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CFRESTORE_HOME", str(tmp_path / "home"))
    detect(monkeypatch, face_at(8, 8, 32))
    shipped = save_network(tmp_path / "compact.safetensors", small_network())
    monkeypatch.setattr(pipeline, "shipped", lambda: shipped)
    return Command(capsys)


def detect(monkeypatch: pytest.MonkeyPatch, *faces: Face) -> None:
    monkeypatch.setattr(pipeline, "load_detector", lambda name, device: StubDetector(*faces))


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        write_photo(Photo(picture(48, 64)), name)


def test_a_picture_is_restored_beside_itself(cfrestore_: Command) -> None:
    make("photo.png")
    result = cfrestore_("photo.png", "--w", "0.7", "--device", "cpu")
    assert result.code == 0
    assert result.out == ""
    first, note, line = result.err.splitlines()
    assert first.startswith("model compact (32 px), detector stub, device cpu")
    assert note.startswith("note: The published weights (codeformer.pth) are not in ")
    assert "compact ones" in note
    assert line == "photo.png -> photo.restored.png  1 face restored"
    before, after = read_photo("photo.png"), read_photo("photo.restored.png")
    changed = (before.pixels != after.pixels).any(axis=2)
    assert changed[12:36, 12:36].mean() > 0.5
    changed[8:40, 8:40] = False
    assert not changed.any()


def test_options_before_and_after_the_inputs(cfrestore_: Command) -> None:
    make("a.png", "b.png")
    assert cfrestore_("--w", "0.7", "a.png", "-q", "b.png").code == 0
    assert Path("a.restored.png").exists()
    assert Path("b.restored.png").exists()


def test_every_option_reaches_the_pipeline(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("a.png")
    Path("folder").mkdir()
    seen: dict[str, Any] = {}

    def load(*values: object) -> Any:
        seen["load"] = values
        seen["home"] = os.environ["CFRESTORE_HOME"]

        class Spy(Pipeline):
            def __call__(self, photo: Photo, options: Any = None) -> Any:
                seen["options"] = options
                return super().__call__(photo, options)

        return Spy(StubNetwork(), StubDetector())  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "load_pipeline", load)
    words = "a.png --output out/b.png --w 0.25 --upscale 2 --model m --detector d --device cpu"
    words += " --weights-dir folder --parser p --batch-size 3"
    assert cfrestore_(*words.split()).code == 0
    assert seen["load"] == ("m", "d", "cpu", Path("p"))
    assert seen["home"] == "folder"
    assert seen["options"] == cfrestore.Options(fidelity=0.25, upscale=2, batch_size=3)
    assert read_photo("out/b.png").size == (96, 128)


def test_no_face_is_no_failure(cfrestore_: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    detect(monkeypatch)
    make("photo.png")
    result = cfrestore_("photo.png")
    assert result.code == 0
    assert result.err.splitlines()[-1] == "photo.png -> photo.restored.png  0 faces restored"
    assert np.array_equal(read_photo("photo.png").pixels, read_photo("photo.restored.png").pixels)


def test_a_face_left_alone_is_told_with_its_reason(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Face(np.zeros(4, np.float32), 0.5, np.full((5, 2), 9, np.float32))
    detect(monkeypatch, face_at(0, 0, 32), broken, face_at(20, 10, 32))
    make("photo.png")
    result = cfrestore_("photo.png")
    assert "  2 faces restored of 3, 1 left alone: landmarks " in result.err
    assert result.code == 1
    assert Path("photo.restored.png").exists()


def test_a_face_that_loses_detail_is_told(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect(monkeypatch, face_at(0, 0, 30), face_at(0, 0, 90))
    make("a.png")
    result = cfrestore_("a.png")
    assert result.code == 0
    assert "2 faces restored (1 larger than the network paints, so softer now)" in result.err


def test_a_folder_gives_a_folder(cfrestore_: Command) -> None:
    make("in/b.png", "in/a.png")
    result = cfrestore_("in")
    assert result.code == 0
    assert [line.split(" -> ")[0] for line in result.err.splitlines()[2:4]] == [
        str(Path("in/a.png")),
        str(Path("in/b.png")),
    ]
    assert sorted(path.name for path in Path("in.restored").iterdir()) == ["a.png", "b.png"]
    assert result.err.splitlines()[-1] == "2 of 2 pictures written"


def test_an_unreadable_picture_is_one_sentence_and_the_others_proceed(cfrestore_: Command) -> None:
    make("a.png", "z.png")
    Path("bad.jpg").write_text("no picture")
    result = cfrestore_("a.png", "bad.jpg", "nowhere.png", "z.png")
    assert result.code == 1
    assert result.out == ""
    assert "Traceback" not in result.err
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert [error.split()[1] for error in errors] == ["bad.jpg", "nowhere.png"]
    assert Path("a.restored.png").exists()
    assert Path("z.restored.png").exists()
    assert result.err.splitlines()[-1] == "2 of 4 pictures written"


def test_quiet_reports_failures_only(cfrestore_: Command) -> None:
    make("a.png")
    assert cfrestore_("a.png", "-q").err == ""
    result = cfrestore_("nowhere.png", "--quiet")
    assert result.code == 1
    assert result.err.startswith("error: nowhere.png cannot be read")
    assert len(result.err.splitlines()) == 1


def test_names_are_shown_and_written_as_they_are(cfrestore_: Command) -> None:
    name = "3月9日 [bold]größer[/bold] :smile: v1.2.png"
    make(name)
    result = cfrestore_(name)
    assert result.code == 0
    assert f"{name} -> {name[:-4]}.restored.png  1 face restored" in result.err
    assert Path(f"{name[:-4]}.restored.png").exists()


def test_an_aligned_picture_becomes_a_square(cfrestore_: Command) -> None:
    make("a.png")
    assert cfrestore_("a.png", "--aligned").code == 0
    assert read_photo("a.restored.png").size == (32, 32)


# Refusals


@pytest.mark.parametrize(
    "words",
    [
        "a.png --w 1.01",
        "a.png --w -0.1",
        "a.png --w nan",
        "a.png --w much",
        "a.png --upscale 3",
        "a.png --batch-size 0",
        "a.png --device abacus",
        "a.png --aligned --upscale 2",
        "a.png --weights-dir nowhere",
        "a.png --unknown",
        "",
        "a.png -o a.png",
        "a.png a.png",
        "a.png there.png",
        "a.png there.png -o file.png",
    ],
)
def test_words_that_make_no_sense_are_refused_before_work(cfrestore_: Command, words: str) -> None:
    make("a.png", "there.png", "there.restored.png")
    before = sorted(Path().iterdir())
    result = cfrestore_(*words.split())
    assert result.code == 2
    assert result.out == ""
    assert result.err
    assert "Traceback" not in result.err
    assert sorted(Path().iterdir()) == before


def test_results_are_replaced_only_on_demand(cfrestore_: Command) -> None:
    make("a.png")
    Path("a.restored.png").write_text("precious")
    result = cfrestore_("a.png")
    assert result.code == 2
    assert "a.restored.png exists" in result.err
    assert Path("a.restored.png").read_text() == "precious"
    assert cfrestore_("a.png", "--overwrite").code == 0
    assert read_photo("a.restored.png").size == (48, 64)


def test_weights_that_are_missing_or_wrong_are_exit_code_4(cfrestore_: Command) -> None:
    make("a.png")
    result = cfrestore_("a.png", "--model", "published")
    assert result.code == 4
    assert "https://github.com/sczhou/CodeFormer/releases" in result.err
    assert len(result.err.splitlines()) == 1
    Path("weights").mkdir()
    Path("weights/codeformer.pth").write_bytes(b"PK\x03\x04 cut")
    result = cfrestore_("a.png")
    assert result.code == 4
    assert "SHA-256" in result.err
    result = cfrestore_("a.png", "--model", "weights/codeformer.pth")
    assert result.code == 4
    assert "damaged" in result.err
    assert not Path("a.restored.png").exists()


def test_a_folder_without_pictures_is_exit_code_1(cfrestore_: Command) -> None:
    Path("in").mkdir()
    result = cfrestore_("in")
    assert result.code == 1
    assert result.err == "error: in holds no pictures\n"


@pytest.mark.parametrize("where", ["load_pipeline", "read_photo"])
def test_an_interruption_is_exit_code_130(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def interrupt(*values: object) -> None:
        raise KeyboardInterrupt

    make("a.png")
    home = "cfrestore.pipeline" if where == "load_pipeline" else "cfrestore.batch"
    monkeypatch.setattr(f"{home}.{where}", interrupt)
    result = cfrestore_("a.png")
    assert result.code == 130
    assert result.err.splitlines()[-1] == "interrupted"


# The rest of the words


def test_the_version(cfrestore_: Command) -> None:
    result = cfrestore_("--version")
    assert (result.code, result.out) == (0, f"cfrestore {cfrestore.__version__}\n")


def test_help_shows_every_option_and_the_training_verb(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    result = cfrestore_("--help")
    assert result.code == 0
    for word in ("INPUT", "cfrestore train autoencoder|codes|fusion"):
        assert word in result.out
    names = "output w upscale aligned model detector device weights-dir parser overwrite batch-size"
    for name in (*names.split(), "quiet", "version"):
        assert f"--{name}" in result.out


@pytest.mark.parametrize("code", [0, 3])
def test_train_hands_its_words_on(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    seen: list[str] = []
    import cfrestore.train

    def train(words: list[str]) -> int:
        seen.extend(words)
        return code

    monkeypatch.setattr(cfrestore.train, "main", train)
    assert cfrestore_("train", "codes", "--help", "--w", "x").code == code
    assert seen == ["codes", "--help", "--w", "x"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError, 2), (OutputError, 2), (WeightsError, 4), (CheckpointError, 4)],
)
def test_errors_of_training_are_one_sentence_too(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch, error: type[Exception], code: int
) -> None:
    import cfrestore.train

    def train(words: list[str]) -> int:
        raise error("Something is wrong")

    monkeypatch.setattr(cfrestore.train, "main", train)
    result = cfrestore_("train")
    assert (result.code, result.err) == (code, "error: Something is wrong\n")


def test_a_picture_called_train_can_be_meant(cfrestore_: Command) -> None:
    write_photo(Photo(picture(40, 40)), "train", format="PNG")
    assert cfrestore_("./train").code == 0
    assert read_photo("train.restored").size == (40, 40)


def test_the_module_is_the_command(repository: Path) -> None:
    for words, code in ((["--version"], 0), (["--w", "2"], 2), ([], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "cfrestore", *words], cwd=repository, capture_output=True
        )
        assert done.returncode == code
