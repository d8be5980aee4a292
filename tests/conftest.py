from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The material that is developed against but not part of the project."""
    path = REPOSITORY.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the folder ../shared (specification, golden outputs, faces)")
    return path


@pytest.fixture(autouse=True)
def _on_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither reach out nor touch the user's cache; downloads come from a local server."""
    monkeypatch.setenv("CFRESTORE_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
