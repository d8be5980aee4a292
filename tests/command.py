"""Runs the command in this process, for tests of its output and effects."""

import gc
from dataclasses import dataclass
from pathlib import Path

import pytest
from stubs import StubDetector, picture

from cfrestore import pipeline
from cfrestore.cli import main
from cfrestore.detect import Face
from cfrestore.image import Photo, write_photo


@dataclass
class Result:
    code: int
    out: str
    err: str


class Command:
    """Runs the command in this process and returns its exit code and output."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: str) -> Result:
        self.capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as left:
            code = int(left.code or 0)
        finally:
            gc.unfreeze()  # this process does more than one command
        said = self.capsys.readouterr()
        return Result(code, said.out, said.err)


def detect(monkeypatch: pytest.MonkeyPatch, *faces: Face) -> None:
    monkeypatch.setattr(
        pipeline, "load_detector", lambda name, device, threshold: StubDetector(*faces)
    )


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        write_photo(Photo(picture(48, 64)), name)
