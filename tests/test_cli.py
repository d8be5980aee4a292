import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Command, detect, make
from stubs import StubDetector, StubNetwork, face_at, leaves, picture

import cfrestore
from cfrestore import pipeline
from cfrestore.detect import Face
from cfrestore.errors import CheckpointError, ConfigError, OutputError, WeightsError
from cfrestore.image import Photo, read_photo, write_photo
from cfrestore.options import Upsampling
from cfrestore.pipeline import Pipeline


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

    def load(*values: object, **others: object) -> Any:
        seen["load"] = (*values, others)
        seen["home"] = os.environ["CFRESTORE_HOME"]

        class Spy(Pipeline):
            def restoring(self, options: Any = None) -> Any:
                seen["options"] = options
                return super().restoring(options)

        return Spy(StubNetwork(), StubDetector())  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "load_pipeline", load)
    words = "a.png --output out/b.png --w 0.25 --upscale 2 --model m --detector d --device cpu"
    words += (
        " --weights-dir folder --parser p --batch-size 3 --faces 1,0 --min-face 9 --max-face 90"
    )
    words += " --draw-box --det-threshold 0.4 --precision bf16 --code-precision fp32 --no-turns"
    words += " --bg_upsampler u.pth --face_upsample --bg_tile 200"
    assert cfrestore_(*words.split(), "--strict").code == 1  # as there is neither face 0 nor face 1
    others = {"threshold": 0.4, "precision": "bf16", "code_precision": "fp32", "compile": False}
    others |= {"task": "restoration", "backend": "torch", "aligned": False, "turns": False}
    others |= {"upsampling": Upsampling("u.pth", True, 200)}
    assert seen["load"] == ("m", "d", "cpu", Path("p"), others)
    assert seen["home"] == "folder"
    assert seen["options"] == cfrestore.Options(
        fidelity=0.25,
        upscale=2,
        batch_size=3,
        faces=(1, 0),
        min_face=9,
        max_face=90,
        draw_box=True,
    )
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
    result = cfrestore_("photo.png", "--quiet")
    assert "  2 faces restored of 3, 1 left alone: landmarks " in result.err
    assert result.code == 0
    assert Path("photo.restored.png").exists()
    assert cfrestore_("photo.png", "--strict", "--overwrite").code == 1


def test_faces_can_be_chosen_and_the_others_are_counted(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect(monkeypatch, face_at(0, 0, 30), face_at(20, 8, 20), face_at(30, 0, 32))
    make("a.png")
    result = cfrestore_("a.png", "--strict", "--faces", "0,1", "--min-face", "24")
    assert result.code == 0
    line = "a.png -> a.restored.png  1 face restored of 3, 1 smaller than 24 px, 1 not selected"
    assert result.err.splitlines()[-1] == line
    changed = (read_photo("a.png").pixels != read_photo("a.restored.png").pixels).any(axis=2)
    assert changed[:, :30].any()
    assert not changed[:, 30:].any()
    assert cfrestore_("a.png", "--faces", "center", "-o", "c.png", "--quiet").err == ""


def test_a_sharp_large_face_is_left_alone_unless_asked_for(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect(monkeypatch, face_at(10, 10, 160), face_at(150, 120, 30))
    write_photo(Photo(leaves(200, 220)), "a.png")
    result = cfrestore_("a.png", "--strict")
    assert result.code == 0
    line = "a.png -> a.restored.png  1 face restored of 2, 1 sharper than the network paints"
    assert result.err.splitlines()[-1] == line
    words = ("a.png", "--overwrite", "--max-face")
    assert cfrestore_(*words, "none").err.splitlines()[-1].endswith("  2 faces restored")
    alone = cfrestore_(*words, "100").err.splitlines()[-1]
    assert alone.endswith("  1 face restored of 2, 1 larger than 100 px")


def test_a_face_that_there_is_not_is_told(cfrestore_: Command) -> None:
    make("a.png", "b.png")
    result = cfrestore_("a.png", "b.png", "--faces", "0,3", "--quiet")
    assert result.code == 0
    assert result.err.splitlines() == [
        f"{name}.png -> {name}.restored.png  1 face restored; there is no face 3" for name in "ab"
    ]
    assert cfrestore_("a.png", "--faces", "3", "--overwrite", "--strict").code == 1


def test_frames_are_drawn_and_a_gray_picture_gets_colours_only_then(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    gray = np.repeat(picture(48, 64)[..., :1], 3, axis=2)
    write_photo(Photo(gray, gray=True), "a.png")
    assert cfrestore_("a.png", "--draw-box").code == 0
    result = read_photo("a.restored.png")
    assert not result.gray
    green = (result.pixels == (0, 255, 0)).all(axis=2)
    assert green[8:40, 8:12].any() and green[8:40, 36:40].any()
    detect(monkeypatch)
    assert cfrestore_("a.png", "--draw-box", "--overwrite").code == 0
    assert read_photo("a.restored.png").gray


def test_more_is_kept_where_asked_for(cfrestore_: Command) -> None:
    make("a.png")
    words = ["a.png", "-o", "out/", "--save-crops", "--save-restored", "--compare"]
    assert cfrestore_(*words, "--suffix", "v2").code == 0
    assert sorted(path.as_posix() for path in Path("out").rglob("*.png")) == [
        "out/a_v2.png",
        "out/compared/a_v2.png",
        "out/cropped_faces/a_v2_00.png",
        "out/restored_faces/a_v2_00.png",
    ]
    Path("new/cropped_faces").mkdir(parents=True)
    Path("new/cropped_faces/a_v2_07.png").write_text("precious")
    result = cfrestore_("a.png", "-o", "new/", "--save-crops", "--suffix", "v2")
    assert result.code == 2
    assert "a_v2_07.png exists" in result.err


def test_the_words_of_the_published_command_do_the_same(cfrestore_: Command) -> None:
    make("in/a.png")
    published = "-i in --output_path out -w 0.7 -s 2 --only_center_face --draw_box --suffix x"
    published += " --bg_upsampler None"
    ours = "in -o out2/ --w 0.7 --upscale 2 --faces center --draw-box --suffix x"
    assert cfrestore_(*published.split()).code == 0
    assert cfrestore_(*ours.split()).code == 0
    assert Path("out/a_x.png").read_bytes() == Path("out2/a_x.png").read_bytes()


# Weights to be fetched


@dataclass
class Supplied:
    """Records the requests, and whether the published weights exist afterwards."""

    asked: list[tuple[str, bool]]
    published: bool = False


@pytest.fixture
def supplied(cfrestore_: Command, monkeypatch: pytest.MonkeyPatch) -> Supplied:
    seen = Supplied([])

    def supply(names: list[str], console: object, *, required: bool) -> None:
        seen.asked += [(name, required) for name in names]
        if required and not seen.published:
            raise WeightsError("No network is here")

    def load(*values: object, **others: object) -> Pipeline:
        return Pipeline(StubNetwork(), StubDetector())  # type: ignore[arg-type]

    monkeypatch.setattr("cfrestore.cli.supply.supply", supply)
    monkeypatch.setattr(
        "cfrestore.weights.locate", lambda name: Path(name) if seen.published else None
    )
    monkeypatch.setattr(pipeline, "load_pipeline", load)
    make("a.png")
    return seen


def test_auto_asks_for_the_published_weights_and_does_without(
    cfrestore_: Command, supplied: Supplied
) -> None:
    assert cfrestore_("a.png").code == 0
    assert supplied.asked == [("codeformer", False)]


@pytest.mark.parametrize(
    ("words", "companions"),
    [
        ("", ["retinaface", "parsenet"]),
        ("--detector mtcnn", ["parsenet"]),
        ("--parser p", ["retinaface"]),
        ("--aligned", []),
        ("--bg_upsampler None", ["retinaface", "parsenet"]),
    ],
)
@pytest.mark.parametrize("model", ["auto", "published"])
def test_with_the_published_weights_come_their_companions(
    cfrestore_: Command, supplied: Supplied, model: str, words: str, companions: list[str]
) -> None:
    supplied.published = True
    assert cfrestore_("a.png", "--model", model, *words.split()).code == 0
    expected = [("codeformer", model == "published"), *((name, False) for name in companions)]
    assert supplied.asked == expected


@pytest.mark.parametrize("words", ["--model published", "--detector retinaface"])
def test_what_is_named_must_be_had(cfrestore_: Command, supplied: Supplied, words: str) -> None:
    result = cfrestore_("a.png", *words.split())
    assert (result.code, result.err) == (4, "error: No network is here\n")
    assert not Path("a.restored.png").exists()


def test_nothing_is_downloaded_for_pictures_that_are_not_there(
    cfrestore_: Command, supplied: Supplied
) -> None:
    result = cfrestore_("typo.jpg", "other.jpg")
    assert result.code == 1
    assert result.err == "error: typo.jpg, other.jpg cannot be read: there is no such file\n"
    assert not supplied.asked
    make("there.png")
    assert cfrestore_("typo.jpg", "there.png").code == 1
    assert Path("there.restored.png").exists()


@pytest.mark.parametrize(
    ("words", "code", "asked"),
    [
        ("--detector mobilenet", 4, [("mobilenet", True)]),
        ("--bg-upsampler realesrgan", 4, [("realesrgan", True)]),
        ("--bg-upsampler realesr-general", 4, [("realesr-general", True)]),
        ("--face-upsample", 4, [("realesrgan", True)]),
        ("--device abacus", 2, []),
        ("--precision fp8", 2, []),
        ("--device cpu --code-precision tf32", 2, []),
        ("--device cpu --compile", 2, []),
    ],
)
def test_what_must_fail_does_so_before_a_long_download(
    cfrestore_: Command, supplied: Supplied, words: str, code: int, asked: list[tuple[str, bool]]
) -> None:
    assert cfrestore_("a.png", *words.split()).code == code
    assert supplied.asked == asked


@pytest.mark.parametrize(
    "words",
    [
        "--model compact",
        "--model mine.safetensors",
        "--model compact --bg-upsampler mine.pth --face-upsample",
    ],
)
def test_other_weights_need_nothing(cfrestore_: Command, supplied: Supplied, words: str) -> None:
    assert cfrestore_("a.png", *words.split()).code == 0
    assert supplied.asked == []


def test_offline_is_said_to_all(cfrestore_: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFRESTORE_OFFLINE", "0")
    make("a.png")
    assert cfrestore_("a.png", "--offline", "-q").err == ""
    assert os.environ["CFRESTORE_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("verb", "task"), [("inpaint", "inpainting"), ("colorize", "colorization")]
)
def test_other_tasks_need_weights_and_there_are_no_compact_ones(
    cfrestore_: Command, verb: str, task: str
) -> None:
    make("photo.png")
    for model in ("auto", "published"):
        result = cfrestore_(verb, "photo.png", "--model", model)
        (line,) = result.err.splitlines()
        assert result.code == 4
        assert f"codeformer_{task}.pth" in line
        assert line.endswith(f"; there are no compact weights for {task}")
    result = cfrestore_(verb, "photo.png", "--model", "compact")
    said = f"error: there are no compact weights for {task}, only published ones\n"
    assert (result.code, result.err) == (2, said)


def test_a_folder_of_weights_need_not_be_there_yet(cfrestore_: Command) -> None:
    make("a.png")
    result = cfrestore_("a.png", "--weights-dir", "new")
    assert result.code == 0
    assert f"(codeformer.pth) are not in {Path('new').absolute()}, " in result.err
    assert os.environ["CFRESTORE_HOME"] == "new"


def test_a_folder_gives_a_folder(cfrestore_: Command) -> None:
    make("in/b.png", "in/a.png")
    result = cfrestore_("in")
    assert result.code == 0
    assert [line.split(" -> ")[0] for line in result.err.splitlines()[2:4]] == [
        str(Path("in/a.png")),
        str(Path("in/b.png")),
    ]
    assert sorted(path.name for path in Path("in.restored").glob("*.png")) == ["a.png", "b.png"]
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
    *_, first, second, last = result.err.splitlines()
    assert first.startswith("failed: bad.jpg is not a picture")
    assert second.startswith("failed: nowhere.png cannot be read")
    assert last == "2 of 4 pictures written, 2 failed"


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
    result = cfrestore_("a.png", "--aligned", "--json")
    assert result.code == 0
    assert read_photo("a.restored.png").size == (32, 32)
    assert "detector" not in result.err
    assert json.loads(result.out)["detector"] is None


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
        "a.png --weights-dir there.png",
        "a.png --unknown",
        "",
        "a.png -o a.png",
        "a.png a.png",
        "a.png there.png",
        "a.png there.png -o file.png",
        "a.png --faces left",
        "a.png --faces -1",
        "a.png --min-face -1",
        "a.png --max-face huge",
        "a.png --max-face 0",
        "a.png --min-face 9 --max-face 8",
        "a.png --aligned --max-face none",
        "a.png --det-threshold 1.01",
        "a.png --aligned --faces center",
        "a.png --aligned --min-face 9",
        "a.png --aligned --draw-box",
        "a.png --aligned --det-threshold 0.5",
        "a.png --aligned --detector mtcnn",
        "a.png --aligned --parser there.png",
        "a.png --suffix a/b",
        "a.png --suffix x -o file.png",
        "-i a.png --output_path there.png",
        "-i a.png --detection_model dlib",
        "-i a.png --detection_model YOLOv5l",
        "-i a.png --save_video_fps 24",
        "a.png --bg-upsampler",
        "a.png --bg_tile 63",
        "a.png --aligned --face-upsample",
        "a.png --aligned --bg-upsampler there.png",
        "a.png --fidelity_weight",
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


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("LONG", 1),
        ("a.png -o LONG", 1),
        ("a.png --model LONG", 4),
        ("a.png --config LONG", 2),
        ("--files-from LONG", 2),
        ("degrade LONG out.png", 1),
        ("degrade a.png LONG", 1),
        ("degrade a.png out.png --json LONG", 2),
        ("eval LONG", 1),
        ("eval a.png --reference LONG", 1),
        ("eval a.png --json LONG", 2),
        ("export LONG.onnx --model compact", 2),
        ("sample --prior LONG -o out.png", 4),
        ("sample --prior a.png -o LONG", 2),
        ("weights convert LONG out.safetensors", 4),
        ("weights convert compact.safetensors LONG.safetensors", 2),
        ("train autoencoder --output out --data LONG", 1),
        ("train codes --output out --data . --autoencoder LONG", 4),
        ("train export LONG out.safetensors", 4),
    ],
)
def test_names_longer_than_the_system_allows_are_one_sentence(
    cfrestore_: Command, words: str, code: int
) -> None:
    make("a.png")
    result = cfrestore_(*words.replace("LONG", "x" * 300).split())
    assert result.code == code
    assert "error: " in result.err
    assert "Traceback" not in result.err


def test_a_settings_folder_that_cannot_be_looked_into_holds_no_settings(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("a.png")
    monkeypatch.setenv("XDG_CONFIG_HOME", "x" * 300)
    assert cfrestore_("a.png", "--dry-run").code == 0


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


@pytest.mark.parametrize("where", ["batch.plan", "pipeline.load_pipeline", "image.read_photo"])
def test_an_interruption_is_exit_code_130(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def interrupt(*values: object, **others: object) -> None:
        raise KeyboardInterrupt

    make("a.png")
    monkeypatch.setattr(f"cfrestore.{where}", interrupt)
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
    for word in ("INPUT", "weights|doctor|export|degrade|eval|sample|train --help"):
        assert word in result.out
    names = "output w upscale aligned model detector device weights-dir parser overwrite batch-size"
    names += (
        " quiet version suffix save-crops save-restored compare faces min-face max-face draw-box"
    )
    for name in (*names.split(), "det-threshold", "offline", "strict"):
        assert f"--{name}" in result.out
    assert not re.search(r"--\w+_|--input|--fidelity", result.out)


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


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "error: there is not enough memory\n"),
        (
            MemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nand more"),
            "error: there is not enough memory: CUDA out of memory. Tried to allocate 2 GiB.\n",
        ),
    ],
)
@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("sample", "--prior", "p", "-o", "s.png"), "sample.check_drawing"),
        (("export", "out.onnx", "--model", "compact"), "backends.installed"),
        (("degrade", "a.png", "out.png"), "evaluate.find_preset"),
        (("eval", "a.png"), "evaluate.find_faces"),
    ],
)
def test_too_little_memory_is_one_sentence(
    cfrestore_: Command,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    where: str,
    error: MemoryError,
    said: str,
) -> None:
    def fail(*values: object, **others: object) -> None:
        raise error

    make("a.png")
    monkeypatch.setattr(f"cfrestore.{where}", fail)
    result = cfrestore_(*words)
    assert (result.code, result.err) == (1, said)


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


@pytest.mark.parametrize(
    ("module", "text", "said"),
    [
        (
            "cv2",
            "raise ImportError('libGL.so.1: cannot open shared object file', name='cv2')",
            "cv2 cannot be imported (libGL.so.1: cannot open shared object file); without a "
            "desktop's libraries, OpenCV needs another build: pip uninstall -y opencv-python && "
            "pip install opencv-python-headless",
        ),
        (
            "typer",
            "import nowhere",
            "nowhere cannot be imported (No module named 'nowhere'); cfrestore doctor checks all "
            "packages",
        ),
    ],
)
def test_a_package_that_cannot_be_imported_is_told_in_a_sentence(
    tmp_path: Path, module: str, text: str, said: str
) -> None:
    """As OpenCV in a container without a desktop's libraries."""
    (tmp_path / f"{module}.py").write_text(text)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from cfrestore.cli import main; sys.exit(main(['a.png']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"error: {said}\n")
