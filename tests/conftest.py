from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from command import Command

REPOSITORY = Path(__file__).parents[1]


def pytest_configure() -> None:
    """Heeds interruptions, which the background of a shell ignores, for processes of tests too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Material that is used for development but is not part of the project."""
    path = REPOSITORY.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the folder ../shared (specification, golden outputs, faces)")
    return path


@pytest.fixture(autouse=True)
def _on_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Isolates tests from the network and the user's files; downloads use a local server."""
    for name in [name for name in os.environ if name.startswith("CFRESTORE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CFRESTORE_OFFLINE", "1")
    for name in ("cache", "config"):
        folder = tmp_path_factory.getbasetemp() / name
        monkeypatch.setenv(f"XDG_{name.upper()}_HOME", str(folder))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cfrestore_(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The command in an empty folder, with one face found in each picture."""
    from command import Command, detect
    from stubs import face_at, save_network, small_network

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CFRESTORE_HOME", str(tmp_path / "home"))
    detect(monkeypatch, face_at(8, 8, 32))
    shipped = save_network(tmp_path / "compact.safetensors", small_network())
    monkeypatch.setattr("cfrestore.network.shipped", lambda: shipped)
    return Command(capsys)
