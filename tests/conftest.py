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
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests never reach out; those of downloading ask a server of their own."""
    monkeypatch.setenv("CFRESTORE_OFFLINE", "1")
