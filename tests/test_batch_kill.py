"""A killed batch loses no finished results and leaves no half-finished ones."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from folders import contents, make_pictures

from cfrestore.batch import Manifest, plan
from cfrestore.image import read_photo

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

FILES, KILLS = 200, 10


class Victim:
    """Starts batches in a separate process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self._line() == "ready"

    def start(self, output: str, crash: str = "-") -> int:
        """Starts a process that restores in/ to output; returns its id."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{Path.cwd()} {output} {crash}\n")
        self._process.stdin.flush()
        return int(self._line())

    def end(self) -> int:
        """Waits for that process and returns its exit code."""
        return int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    script = Path(__file__).with_name("batch_victim.py")
    with subprocess.Popen(
        [sys.executable, script], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield Victim(process)
        assert process.stdin is not None
        process.stdin.close()


pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.slow
def test_a_batch_killed_ten_times_ends_as_one_that_was_not(victim: Victim) -> None:
    make_pictures(FILES, 24, 30)
    victim.start("whole")
    assert victim.end() == 0
    whole = contents("whole")
    assert len(whole) == FILES

    chance = random.Random()
    for _ in range(KILLS):
        before = len(contents("parts")) if Path("parts").exists() else 0
        child = victim.start("parts")
        wanted = before + chance.randint(0, 12)
        while not Path("parts").exists() or len(list(Path("parts").glob("*.png"))) < wanted:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert victim.end() == -signal.SIGKILL  # it had not ended by itself
        parts = contents("parts")
        assert before <= len(parts) < FILES
        assert parts.items() <= whole.items()
        assert len(plan(["in"], "parts")) == FILES

    started = time.time_ns()
    done = {path.name for path in Path("parts").glob("*.png")}
    victim.start("parts")
    assert victim.end() == 0
    assert contents("parts") == whole
    assert [path.name for path in Path("parts").glob(".*")] == [".cfrestore.jsonl"]
    touched = {p.name for p in Path("parts").glob("*.png") if p.stat().st_mtime_ns > started}
    assert touched == set(whole) - done
    assert len(Manifest.read(Path("parts")).records) == FILES


@pytest.mark.parametrize(
    ("crash", "files"),
    [
        ("drafted", 0),
        ("written", 0),
        ("recorded", 0),
        ("renamed1", 1),
        ("renamed2", 2),
        ("renamed3", 3),
    ],
)
def test_a_crash_at_any_step_is_made_good(victim: Victim, crash: str, files: int) -> None:
    make_pictures(1, 24, 30)
    victim.start("whole", "never")
    assert victim.end() == 0
    whole = contents("whole")
    assert list(whole) == ["000.png", "compared/000.png", "cropped_faces/000_00.png"]
    victim.start("parts", crash)
    assert victim.end() == 9
    parts = contents("parts")
    assert len(parts) == files
    assert parts.items() <= whole.items()
    assert ("000.png" in parts) == (files == 3)
    assert any(Path("parts").rglob(".cfrestore-*.tmp")) == (files < 3)
    victim.start("parts", "never")
    assert victim.end() == 0
    assert contents("parts") == whole
    assert not any(Path("parts").rglob(".cfrestore-*.tmp"))
    assert read_photo("parts/000.png").size == (24, 30)
