"""Checks the documents against the tests and the help."""

import ast
import re
from pathlib import Path

import pytest
import typer

from cfrestore.cli import restore
from cfrestore.cli import video as video_command

NAMED = re.compile(r"`(tests/\w+\.py)::(\w+)`")


def functions_of(path: Path) -> set[str]:
    """Names of the test functions of a file, without importing it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.fixture
def parity(repository: Path) -> str:
    return (repository / "docs/parity.md").read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of every row of every table, without heads and separators."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] != "what" and set(row[0]) != {"-"}]


def test_every_test_that_parity_names_exists(parity: str, repository: Path) -> None:
    named = NAMED.findall(parity)
    assert len(named) > 50
    absent = [
        f"{file}::{name}"
        for file, name in named
        if not (repository / file).is_file() or name not in functions_of(repository / file)
    ]
    assert absent == []


def test_every_row_of_parity_names_a_test_and_nothing_else_in_its_last_column(parity: str) -> None:
    found = rows(parity)
    assert len(found) > 40
    for row in found:
        assert len(row) in (3, 5), row
        assert re.fullmatch(rf"{NAMED.pattern}(, {NAMED.pattern})*", row[-1]), row
        assert row[1], row


def test_no_row_of_parity_is_there_twice(parity: str) -> None:
    found = [tuple(row[:3]) for row in rows(parity)]
    assert len(set(found)) == len(found)


def test_the_readme_links_the_documents(repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    for document in sorted((repository / "docs").glob("*.md")):
        assert f"docs/{document.name}" in readme


def test_options_stand_in_the_groups_and_the_order_of_the_help(repository: Path) -> None:
    command = typer.main.get_command(restore.app)
    helped: dict[str, list[str]] = {}
    for option in command.params:
        long = max(option.opts, key=len)
        if long.startswith("--") and "completion" not in long:
            helped.setdefault(getattr(option, "rich_help_panel", None) or "", []).append(long)
    helped[""].append("--help")
    text = (repository / "docs/options.md").read_text(encoding="utf-8").partition("\n## ")[0]
    parts = re.split(r"^\*\*(.+)\*\*$", text, flags=re.MULTILINE)
    documented = {
        title: [name for row in rows(table) for name in re.findall(r"`(--[\w-]+)`", row[0])]
        for title, table in zip(["", *parts[1::2]], parts[::2], strict=True)
    }
    assert list(documented) == ["", "Files", "Many pictures", "Faces", "Networks", "Messages"]
    assert documented == helped


def test_every_option_of_videos_is_documented_and_no_other(repository: Path) -> None:
    command = typer.main.get_command(video_command.app)
    helped = {name for option in command.params for name in option.opts if name.startswith("-")}
    text = (repository / "docs/video.md").read_text(encoding="utf-8").partition("## Options")[2]
    documented = {name for row in rows(text) for name in re.findall(r"`(-[\w-]+)`", row[0])}
    assert documented - {"--help"} == helped
