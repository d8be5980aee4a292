import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer

from cfrestore.cli import colorize, degrade, export, inpaint, main, restore, sample, weights
from cfrestore.cli import eval as evaluation
from cfrestore.cli.published import ABSENT, FLAGS, INPUTS, VALUED
from cfrestore.image import read_photo


@pytest.fixture
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text()


@pytest.fixture
def options(repository: Path) -> str:
    return (repository / "docs/options.md").read_text()


@pytest.fixture
def training(repository: Path) -> str:
    return (repository / "docs/training.md").read_text()


def options_of(app: typer.Typer) -> set[str]:
    command = typer.main.get_command(app)
    commands = [command, *getattr(command, "commands", {}).values()]
    parameters = [parameter for each in commands for parameter in each.params]
    return {name for parameter in parameters for name in parameter.opts if name[0] == "-"}


def block(readme: str, before: str) -> str:
    found = re.search(re.escape(before) + r"\n```\w+\n(.*?)```", readme, re.DOTALL)
    assert found, f"README has no block after {before!r}"
    return found[1]


@pytest.fixture
def elsewhere(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the examples, and with no weights but the shipped ones."""
    results = shutil.ignore_patterns("*.restored.*")
    shutil.copytree(repository / "examples", tmp_path / "examples", ignore=results)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CFRESTORE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_first_command_restores_the_example(
    readme: str, elsewhere: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = block(readme, "<!-- command: restore -->").split("&&")[1]
    words = shlex.split(command)
    assert words.pop(0) == "cfrestore"
    with pytest.raises(SystemExit) as ended:
        main([*words, "--device", "cpu"])
    assert not ended.value.code
    out, err = capfd.readouterr()
    assert out == ""
    assert "1 face restored" in err
    assert "compact" in err
    before = read_photo(elsewhere / "examples/collins.jpg")
    after = read_photo(elsewhere / "examples/collins.restored.jpg")
    assert after.size == (4 * before.size[0], 4 * before.size[1])


def test_the_python_example_runs(
    readme: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(block(readme, "From Python:\n"), "README.md", "exec"), {})
    assert capsys.readouterr().out == "restored: 1, left alone: 0\n"
    assert (elsewhere / "collins.png").is_file()


def test_the_examples_of_the_library_run(
    repository: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (repository / "docs/python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"\n```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {"__name__": "example"}
    for block in blocks:
        exec(compile(block, "python.md", "exec"), names)
    assert len(blocks) == 7
    assert (elsewhere / "collins.png").is_file()
    assert "'eyes'" in capsys.readouterr().out


def test_the_errors_of_the_library_are_documented(repository: Path) -> None:
    import cfrestore

    text = (repository / "docs/python.md").read_text(encoding="utf-8")
    for name in cfrestore.__all__:
        if name.endswith("Error"):
            assert name in text


COMPLETION = {"--install-completion", "--show-completion"}


def spoken(text: str) -> set[str]:
    """The options that a text names."""
    return set(re.findall(r"`(--?[a-z0-9-]+)`", text))


@pytest.mark.parametrize("app", [restore.app, inpaint.app, colorize.app])
def test_every_option_on_pictures_is_documented(options: str, app: typer.Typer) -> None:
    assert options_of(app) - spoken(options) - COMPLETION == set()


@pytest.mark.parametrize(
    ("app", "page"),
    [
        (export.app, "export"),
        (sample.app, "training"),
        (evaluation.app, "evaluation"),
        (degrade.app, "evaluation"),
        (weights.app, "options"),
    ],
)
def test_every_option_is_documented(repository: Path, app: typer.Typer, page: str) -> None:
    text = (repository / f"docs/{page}.md").read_text()
    assert options_of(app) - spoken(text) == set()


def test_every_option_of_training_is_documented(training: str) -> None:
    from cfrestore.train.arguments import make_parser

    (stages,) = (a.choices for a in make_parser()._actions if a.dest == "stage")
    words = {word for stage in stages.values() for a in stage._actions for word in a.option_strings}
    words -= {"-h", "--help", "--no-bf16"}
    assert words - spoken(training) == set()


def test_every_published_word_is_documented(options: str) -> None:
    spoken = {name.replace("-", "_") for name in re.findall(r"`-(-?[a-z_]+)", options)}
    names = {*ABSENT, *FLAGS, *INPUTS, *VALUED} - {"--save-video-fps"}
    assert {name[1:].replace("-", "_") for name in names} <= spoken


def test_documented_training_commands_are_understood(training: str) -> None:
    from cfrestore.train.arguments import make_parser

    lines = "".join(re.findall(r"\n```sh\n(.*?)```", training, re.DOTALL)).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in lines.splitlines()]
    stages = [
        make_parser().parse_args(words[2:]).stage for words in commands if words[1] == "train"
    ]
    one_by_one = ["autoencoder", "codes", "fusion", "polish", "export"]
    further = ["autoencoder", "codes", "polish"]
    assert stages == ["compact", *one_by_one, *further, "upsampler", "export", "prior", "export"]
