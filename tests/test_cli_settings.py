"""Options take precedence over variables, these over cfrestore.toml, and that over defaults."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from command import Command, make

from cfrestore.cli import inpaint, restore
from cfrestore.cli.settings import RESERVED, find_settings, option_names, read_settings
from cfrestore.errors import ConfigError
from cfrestore.options import Options
from cfrestore.pipeline import Pipeline

RESERVED_VALUES = {
    "files_from": '"list"',
    "output": '"elsewhere/"',
    "overwrite": "true",
    "engine": '"ray"',
    "address": '"ray://elsewhere:10001"',
    "actors": "1",
    "gpus_per_actor": "1",
    "weights_dir": '"weights"',
}


@pytest.fixture
def seen(cfrestore_: Command, monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """The options that the pipeline receives."""
    asked: list[Options] = []
    restoring = Pipeline.restoring

    def spy(self: Pipeline, options: Options = Options()) -> Any:  # noqa: B008
        asked.append(options)
        return restoring(self, options)

    monkeypatch.setattr(Pipeline, "restoring", spy)
    monkeypatch.setenv("CFRESTORE_OVERWRITE", "1")
    make("a.png")
    return asked


def test_flags_are_above_variables_above_the_file(
    cfrestore_: Command, seen: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("cfrestore.toml").write_text("w = 0.25\n")
    assert cfrestore_("a.png").err.startswith("settings of cfrestore.toml\n")
    monkeypatch.setenv("CFRESTORE_W", "0.75")
    assert cfrestore_("a.png").code == 0
    assert cfrestore_("a.png", "--w", "1").code == 0
    assert [options.fidelity for options in seen] == [0.25, 0.75, 1.0]


@pytest.mark.parametrize("value", ["1", "true", "yes", "on", "True"])
def test_a_variable_switches_a_flag_on(
    cfrestore_: Command, seen: list[Options], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CFRESTORE_DRAW_BOX", value)
    assert cfrestore_("a.png").code == 0
    assert seen[0].draw_box


@pytest.mark.parametrize("value", ["0", "false", "no", "off", ""])
def test_a_variable_switches_a_flag_off_that_the_file_switches_on(
    cfrestore_: Command, seen: list[Options], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    Path("cfrestore.toml").write_text("draw-box = true")
    monkeypatch.setenv("CFRESTORE_DRAW_BOX", value)
    assert cfrestore_("a.png").code == 0
    assert seen[0].draw_box is (value == "")  # an empty variable has no effect


def test_a_variable_that_makes_no_sense_is_refused(
    cfrestore_: Command, seen: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    Path("cfrestore.toml").write_text("min-face = -1")
    result = cfrestore_("a.png")
    assert result.code == 2
    assert re.search(r"'--min-face'.*; it is set by cfrestore.toml", result.err)
    monkeypatch.setenv("CFRESTORE_W", "much")
    result = cfrestore_("a.png", "--min-face", "1")
    assert result.code == 2
    assert re.search(r"'--w'.*; it is set by CFRESTORE_W", result.err)
    assert "set by" not in cfrestore_("a.png", "--w", "much", "--min-face", "1").err
    monkeypatch.setenv("CFRESTORE_HOME", "cfrestore.toml")
    result = cfrestore_("a.png", "--min-face", "1", "--w", "1")
    assert "'cfrestore.toml' is a file; it is set by CFRESTORE_HOME" in result.err
    assert seen == []


@pytest.mark.parametrize("app", [restore.app, inpaint.app])
def test_every_option_has_its_variable(app: typer.Typer) -> None:
    """Each is named after its option; only options that show something and exit have none."""
    command: Any = typer.main.get_command(app)
    options = [option for option in command.params if option.param_type_name == "option"]
    silent = [option.name for option in options if not option.allow_from_autoenv]
    assert silent == (["version"] if app is restore.app else [])
    for option in options:
        assert f"--{option.name.replace('_', '-')}" in option.opts


def test_values_of_every_kind(cfrestore_: Command, seen: list[Options]) -> None:
    Path("cfrestore.toml").write_text(
        'faces = [1, 0]\nmin_face = 9\nbatch-size = 3\nmodel = "compact"\ndraw-box = true\n'
    )
    assert cfrestore_("a.png").code == 0
    assert seen == [Options(faces=(1, 0), min_face=9, batch_size=3, draw_box=True)]


def test_an_option_of_another_command_is_no_mistake(
    cfrestore_: Command, seen: list[Options]
) -> None:
    Path("cfrestore.toml").write_text('mask = "holes.png"\nw = 1')
    assert cfrestore_("a.png").code == 0
    assert seen[0].fidelity == 1


def test_the_file_of_the_user_counts_where_there_is_none_here(
    cfrestore_: Command, seen: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(typer, "get_app_dir", lambda name: str(Path("mine") / name))
    assert find_settings() is None
    own = Path("mine/cfrestore/cfrestore.toml")
    own.parent.mkdir(parents=True)
    own.write_text("w = 0.1")
    assert cfrestore_("a.png").code == 0
    Path("cfrestore.toml").write_text("w = 0.2")
    assert cfrestore_("a.png").code == 0
    assert [options.fidelity for options in seen] == [0.1, 0.2]


def test_a_file_cannot_have_originals_replaced(cfrestore_: Command) -> None:
    Path("cfrestore.toml").write_text("in-place = true")
    result = cfrestore_("a.png")
    assert result.code == 2
    assert "only --in-place itself replaces originals" in result.err


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_file_found_in_the_working_folder_may_not_say_what_is_read_and_sent_where(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The working folder may be somebody else's; the user's own or a named file may set it."""
    key, value = name.replace("_", "-"), RESERVED_VALUES[name]
    Path("cfrestore.toml").write_text(f"{key} = {value}\n")
    make("a.png")
    result = cfrestore_("a.png", "--dry-run")
    assert result.code == 2
    assert result.err.startswith(f"error: cfrestore.toml sets '{key}', which a file in the working")
    assert len(result.err.splitlines()) == 1
    assert read_settings(Path("cfrestore.toml")).keys() == {name}
    words = ("a.png", "--dry-run", "--output", "there/")
    assert "may not" not in cfrestore_(*words, "--config", "cfrestore.toml").err
    monkeypatch.setattr(typer, "get_app_dir", lambda name: str(Path("mine").absolute()))
    Path("mine").mkdir()
    Path("cfrestore.toml").rename("mine/cfrestore.toml")
    assert "may not" not in cfrestore_(*words).err


def test_the_document_names_what_is_reserved(repository: Path) -> None:
    text = (repository / "docs/options.md").read_text(encoding="utf-8")
    paragraph = text.partition("must not set")[2].partition(":")[0]
    assert {n.replace("-", "_") for n in re.findall(r"`([\w-]+)`", paragraph)} == RESERVED


def test_a_file_may_begin_with_a_byte_order_mark(cfrestore_: Command, seen: list[Options]) -> None:
    """Editors on Windows write one."""
    Path("cfrestore.toml").write_text("w = 0.25", encoding="utf-8-sig")
    assert cfrestore_("a.png").code == 0
    assert seen[0].fidelity == 0.25


def test_a_file_can_be_named(
    cfrestore_: Command, seen: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("cfrestore.toml").write_text("w = 0.2")
    Path("other").write_text("w = 0.3")
    assert cfrestore_("a.png", "--config", "other").code == 0
    monkeypatch.setenv("CFRESTORE_CONFIG", "other")
    assert cfrestore_("a.png").code == 0
    assert [options.fidelity for options in seen] == [0.3, 0.3]
    monkeypatch.setenv("CFRESTORE_CONFIG", "lost")
    assert cfrestore_("a.png").err.endswith("; CFRESTORE_CONFIG sets config\n")
    result = cfrestore_("a.png", "--config", "none")
    assert (result.code, result.err) == (
        2,
        "error: none cannot be read: No such file or directory\n",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fidelty = 1", "sets 'fidelty', which is not an option; the nearest is '"),
        ("batchsize = 1", "sets 'batchsize', which is not an option; the nearest is 'batch-size'"),
        ("version = true", "sets 'version', which is not an option"),
        ('inputs = "a.png"', "sets 'inputs', which is not an option"),
        ("[inpaint]\nw = 1", "sets 'inpaint', which is not an option"),
        ("w = 2000-01-01", "must set 'w' to text, a number, true, false or a list"),
        ("faces = [0.5]", "must set 'faces' to text, a number"),
        ("w = true", "sets 'w' to true, but it has a value"),
        ("draw-box = true\ndraw_box = false", "sets 'draw_box' twice, with - and with _"),
        ('suffix = "\\u0000"', "sets 'suffix' to a text with a zero character"),
        ("w = ", "is not TOML: "),
        ("w = '\udcff'", "is not TOML: "),
    ],
)
def test_what_the_file_gets_wrong_is_one_sentence(
    cfrestore_: Command, seen: list[Options], text: str, said: str
) -> None:
    Path("cfrestore.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    result = cfrestore_("a.png")
    assert result.code == 2
    assert result.err.startswith(f"error: cfrestore.toml {said}")
    assert len(result.err.splitlines()) == 1
    assert seen == []


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("quality", "500", "quality must be a number from 1 to 100, or keep, found '500'"),
        ("batch-size", "x", "--batch-size must be auto or a whole number from 1, found 'x'"),
        ("upscale", "3", "upscale must be 1, 2 or 4, found 3"),
        ("code-precision", "x", "precision 'x' is unknown; choose one of: auto, fp32, tf32, fp16"),
        (
            "compile",
            "true",
            "compile is for CUDA, not for cpu; on the CPU it took a minute, and the"
            " result was slower",
        ),
        ("model", "x", "model 'x' is neither a file nor one of auto, published, compact"),
        ("backend", "onyx", "backend 'onyx' is unknown; choose one of: torch, onnx, openvino"),
    ],
)
def test_an_unsuitable_value_is_reported_with_its_place(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch, key: str, value: str, found: str
) -> None:
    """Also one that is only checked with others, or when it is used."""
    make("a.png")
    Path("cfrestore.toml").write_text(f'{key} = "{value}"\ndevice = "cpu"\n')
    said = cfrestore_("a.png").err
    assert said.startswith(f"error: {found}; ")
    assert re.search(f"; cfrestore.toml sets (device, )?{key}\\b", said)
    Path("cfrestore.toml").write_text('device = "cpu"\n')
    variable = f"CFRESTORE_{key.replace('-', '_').upper()}"
    monkeypatch.setenv(variable, value)
    said = cfrestore_("a.png").err
    assert said.startswith(f"error: {found}; ")
    assert f"; {variable} sets {key}" in said


def test_contradictions_are_reported_with_the_places_of_their_options(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("a.png")
    Path("cfrestore.toml").write_text("max-face = 3\nw = 1")
    monkeypatch.setenv("CFRESTORE_MIN_FACE", "5")
    assert set(cfrestore_("a.png").err.strip().split("; ")) == {
        "error: no face is at least 5 and at most 3 pixels large",
        "cfrestore.toml sets max-face",
        "CFRESTORE_MIN_FACE sets min-face",
    }


def test_an_error_in_an_argument_has_no_place_but_the_command_line(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("a.png")
    Path("cfrestore.toml").write_text("w = 1")
    monkeypatch.setenv("CFRESTORE_DEVICE", "cpu")
    assert cfrestore_("a.png", "--quality", "500").err.endswith("found '500'\n")
    assert cfrestore_("none.png").err.endswith("no such file\n")


def test_every_shared_option_can_be_set(tmp_path: Path) -> None:
    names = option_names()
    assert {"w", "mask", "output", "batch_size", "weights_dir", "offline", "strict"} <= names
    assert not names & {"version", "config", "help", "inputs"}
    names -= {"in_place"}
    path = tmp_path / "all.toml"
    path.write_text("\n".join(f'{name.replace("_", "-")} = "x"' for name in names))
    assert read_settings(path) == dict.fromkeys(names, "x")
    path.write_text("no = 1")
    with pytest.raises(ConfigError, match="not an option"):
        read_settings(path)


# Older variables


def test_the_folder_of_weights_may_be_told_in_each_way(
    cfrestore_: Command, seen: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("settings").write_text('weights-dir = "file"')
    monkeypatch.setenv("CFRESTORE_CONFIG", "settings")
    assert cfrestore_("a.png").code == 0
    assert os.environ["CFRESTORE_HOME"].endswith("home")
    monkeypatch.setenv("CFRESTORE_WEIGHTS_DIR", "variable")
    assert cfrestore_("a.png").code == 0
    assert os.environ["CFRESTORE_HOME"] == "variable"
    monkeypatch.delenv("CFRESTORE_WEIGHTS_DIR")
    monkeypatch.delenv("CFRESTORE_HOME")
    assert cfrestore_("a.png").code == 0
    assert os.environ["CFRESTORE_HOME"] == "file"


@pytest.mark.parametrize(
    ("variable", "file", "offline"),
    [("1", "false", True), ("0", "true", False), ("false", "true", False), ("", "true", True)],
)
def test_offline_may_be_told_in_each_way(
    cfrestore_: Command,
    seen: list[Options],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    file: str,
    offline: bool,
) -> None:
    from cfrestore import weights

    Path("cfrestore.toml").write_text(f"offline = {file}\nmodel = 'compact'")
    monkeypatch.setenv("CFRESTORE_OFFLINE", variable)
    assert cfrestore_("a.png").code == 0
    assert weights.offline() is offline
