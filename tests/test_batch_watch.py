"""Watching a folder for new pictures."""

from functools import partial
from pathlib import Path

import pytest
from stubs import StubDetector, StubNetwork, face_at, picture

from cfrestore.batch import Job, plan, run, watch
from cfrestore.image import Photo, read_photo, write_photo
from cfrestore.pipeline import Pipeline

LOOK = partial(plan, ["in"], "out", isolate=True)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder, with an empty folder in it."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()


class Days:
    """Events between looks at the folder; watching ends after the last one."""

    def __init__(self, *events: object) -> None:
        self.events = list(events)

    def stop(self) -> bool:
        return not self.events

    def wait(self, seconds: float) -> None:
        assert seconds == 2
        event = self.events.pop(0)
        if callable(event):
            event()


def names(batches: list[tuple[Job, ...]]) -> list[list[str]]:
    return [[job.source.name for job in jobs] for jobs in batches]  # type: ignore[union-attr]


def write(name: str, data: bytes) -> object:
    return lambda: Path("in", name).write_bytes(data)


def test_a_picture_is_taken_when_it_has_stopped_growing() -> None:
    days = Days(write("a.jpg", b"1"), write("a.jpg", b"12"), write("b.jpg", b"1"), 0, 0, 0)
    assert names(list(watch(LOOK, stop=days.stop, wait=days.wait))) == [["a.jpg"], ["b.jpg"]]


def test_what_is_there_from_the_beginning_is_taken_together_and_once() -> None:
    for name in ("a.jpg", "b.jpg"):
        Path("in", name).write_bytes(b"1")
    days = Days(0, 0, 0, 0)
    assert names(list(watch(LOOK, stop=days.stop, wait=days.wait))) == [["a.jpg", "b.jpg"]]


def test_a_picture_that_changes_is_taken_again_and_one_that_goes_is_forgotten() -> None:
    Path("in/a.jpg").write_bytes(b"1")
    days = Days(0, 0, write("a.jpg", b"22"), 0, Path("in/a.jpg").unlink, 0, 0)
    assert names(list(watch(LOOK, stop=days.stop, wait=days.wait))) == [["a.jpg"], ["a.jpg"]]


def test_a_watch_that_is_stopped_at_once_looks_at_nothing() -> None:
    def look() -> tuple[Job, ...]:
        raise AssertionError

    assert list(watch(look, stop=lambda: True)) == []


def test_pictures_that_arrive_are_restored_and_a_bad_one_stops_nothing() -> None:
    restoring = Pipeline(StubNetwork(lambda x: -x), StubDetector(face_at(4, 4, 32))).restoring()

    def arrive(name: str) -> object:
        return lambda: write_photo(Photo(picture(40, 50)), f"in/{name}")

    Path("out").mkdir()
    Path("out/c.png").write_bytes(b"somebody's")
    days = Days(arrive("a.png"), write("b.png", b"no picture"), arrive("c.png"), 0, 0, 0)
    days.events += [arrive("b.png"), 0, 0]
    outcomes = [
        outcome
        for jobs in watch(LOOK, stop=days.stop, wait=days.wait)
        for outcome in run(jobs, restoring)
    ]
    assert [(outcome.job.source.name, outcome.code) for outcome in outcomes] == [  # type: ignore[union-attr]
        ("a.png", None),
        ("b.png", "unreadable"),
        ("c.png", "refused"),
        ("b.png", None),
    ]
    assert Path("out/c.png").read_bytes() == b"somebody's"
    assert read_photo("out/b.png").size == (40, 50)
    assert [outcome.status for outcome in run(LOOK(), restoring)] == [
        "unchanged",
        "unchanged",
        "failed",
    ]
