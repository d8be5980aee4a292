"""Records for programs: every key that docs/json.md promises, in every record."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Command, detect, make
from stubs import StubDetector, StubNetwork, face_at, leaves, picture

from cfrestore import pipeline
from cfrestore.batch import REASONS, SCHEMA, FaceReport, Job, Outcome
from cfrestore.cli.record import UNKNOWN, provenance_of, record_of, record_of_plan
from cfrestore.detect import Face
from cfrestore.image import Photo, read_photo, write_photo
from cfrestore.options import Options
from cfrestore.pipeline import Pipeline

ROW = re.compile(r"\| `(\w+)` \|")


def table(repository: Path, head: str) -> list[str]:
    """The first column of the document's table with this head."""
    text = (repository / "docs/json.md").read_text(encoding="utf-8")
    lines = text.split(f"| {head} |")[1].splitlines()[2:]
    found = [ROW.match(line) for line in lines[: lines.index("")]]
    return [match[1] for match in found if match]


def records(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def promised(repository: Path) -> list[str]:
    return table(repository, "key")


def check(record: dict[str, Any], promised: list[str], repository: Path) -> None:
    """Checks a record against the document."""
    assert list(record) == promised
    assert record["schema"] == SCHEMA == 1
    assert record["status"] in ("done", "unchanged", "failed", "planned")
    failed = record["status"] == "failed"
    assert isinstance(record["path"], str)
    assert (record["output"] is None, record["code"] is None, record["error"] is None) == (
        failed,
        not failed,
        not failed,
    )
    for face in record["faces"]:
        assert list(face) == table(repository, "key of a face")
        assert face["status"] in ("restored", "failed", "skipped")
        assert len(face["box"]) == 4
        assert [len(point) for point in face["landmarks"]] == [2] * 5
        restored = face["status"] == "restored"
        assert (face["w"] is None, face["reason"] is None) == (not restored, restored)
    assert all(isinstance(number, int) for number in record["missing"])
    assert all(isinstance(text, str) for text in record["remarks"] + record["notes"])
    assert set(record["seconds"]) <= {"read", "find", "paint", "paste", "write"}


def test_every_input_has_its_record_in_order(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch, promised: list[str], repository: Path
) -> None:
    broken = Face(np.zeros(4, np.float32), 0.5, np.full((5, 2), 9, np.float32))
    detect(monkeypatch, face_at(0, 0, 32), broken, face_at(20, 10, 12))
    make("in/a.png", "in/z.png")
    Path("in/bad.png").write_text("no picture")
    words = ["in", "--json", "--quiet", "--min-face", "20", "--w", "0.25"]
    result = cfrestore_(*words, "--model", "compact", "--device", "cpu")
    assert result.code == 1
    a, bad, z = found = records(result.out)
    for record in found:
        check(record, promised, repository)
    assert [record["path"] for record in found] == ["in/a.png", "in/bad.png", "in/z.png"]
    assert [record["status"] for record in found] == ["done", "failed", "done"]
    assert a["output"] == "in.restored/a.png"
    assert set(a["seconds"]) == {"read", "find", "paint", "paste", "write"}
    assert (a["model"], a["detector"], a["precision"]) == ("compact (32 px)", "stub", "fp32")
    assert a["code_precision"] == "fp32"
    assert a["device"].startswith("cpu")
    assert re.fullmatch("[0-9a-f]{64}", a["weights"])
    first, second, third = a["faces"]
    assert (first["status"], first["w"], first["score"]) == ("restored", 0.25, 0.9)
    assert first["box"] == [0, 0, 32, 32]
    assert second["status"] == "skipped"
    assert third["reason"] == "smaller than 20 px"
    assert bad["code"] == "unreadable"
    assert bad["error"].startswith("in/bad.png is not a picture")
    assert result.err.splitlines()[0] == f"error: {bad['error']}"
    assert z["faces"] == a["faces"]
    again = records(cfrestore_(*words, "--model", "compact", "--device", "cpu").out)
    assert [record["status"] for record in again] == ["unchanged", "failed", "unchanged"]
    assert again[0]["faces"] == a["faces"]
    check(again[0], promised, repository)


def test_a_large_face_says_what_was_kept_or_why_it_was_left_alone(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch, promised: list[str], repository: Path
) -> None:
    detect(monkeypatch, face_at(10, 10, 160), face_at(150, 120, 30))
    Path("in").mkdir()
    write_photo(Photo(leaves(200, 220)), "in/a.png")
    words = ("in", "--json", "-q", "--model", "compact", "--device", "cpu")
    (record,) = records(cfrestore_(*words).out)
    check(record, promised, repository)
    large, small = record["faces"]
    assert (large["status"], large["reason"]) == ("skipped", "sharper than the network paints")
    assert (large["detail_kept"], small["detail_kept"]) == (None, None)
    (again,) = records(cfrestore_(*words).out)
    assert (again["status"], again["faces"]) == ("unchanged", record["faces"])
    (other,) = records(cfrestore_(*words, "--max-face", "none").out)  # what was asked for counts
    assert other["status"] == "done"
    large, small = other["faces"]
    assert (large["status"], large["softened"]) == ("restored", False)
    assert 0.1 < large["detail_kept"] <= 1
    assert small["detail_kept"] is None
    (again,) = records(cfrestore_(*words, "--max-face", "none").out)
    assert (again["status"], again["faces"]) == ("unchanged", other["faces"])


def test_records_of_before_there_was_detail_are_still_read() -> None:
    face = FaceReport("restored", 0.9, (0, 0, 1, 1), ((0, 0),) * 5, 0.5)
    older = face.to_json()
    del older["detail_kept"]
    assert FaceReport.from_json(older) == face


def test_stdout_has_nothing_but_records(cfrestore_: Command) -> None:
    make("a.png", "b.png")
    result = cfrestore_("a.png", "b.png", "--json", "-v")
    assert len(records(result.out)) == 2
    assert "2 of 2 pictures written" in result.err
    result = cfrestore_("a.png", "--json", "--unknown")
    assert (result.code, result.out) == (2, "")


@pytest.mark.parametrize("verb", ["inpaint", "colorize"])
def test_other_commands_have_records_too(
    cfrestore_: Command,
    monkeypatch: pytest.MonkeyPatch,
    promised: list[str],
    repository: Path,
    verb: str,
) -> None:
    def load(*values: object, **others: object) -> Pipeline:
        return Pipeline(StubNetwork(), StubDetector(face_at(8, 8, 32)))  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "load_pipeline", load)
    holes = picture(48, 64)
    holes[20:24, 20:24] = 255
    holes[47, 63] = 255
    write_photo(Photo(holes), "a.png")
    result = cfrestore_(verb, "a.png", "--json", "--model", "mine")
    (record,) = records(result.out)
    check(record, promised, repository)
    assert record["output"] == f"a.{verb.removesuffix('e')}ed.png"
    assert record["faces"][0]["status"] == "restored"
    assert bool(record["remarks"]) is (verb == "inpaint")


def test_a_plan_has_records_and_does_nothing(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch, promised: list[str], repository: Path
) -> None:
    def never(*values: object, **others: object) -> None:
        raise AssertionError

    monkeypatch.setattr("cfrestore.cli.supply.supply", never)
    monkeypatch.setattr(pipeline, "load_pipeline", never)
    make("in/a.png", "in/sub/b.png")
    result = cfrestore_("in", "-r", "--json", "--dry-run", "--compare", "--save-crops", "-o", "out")
    found = records(result.out)
    for record in found:
        check(record, promised, repository)
    assert [(record["path"], record["output"]) for record in found] == [
        ("in/a.png", "out/a.png"),
        ("in/sub/b.png", "out/sub/b.png"),
    ]
    assert {record["status"] for record in found} == {"planned"}
    assert not Path("out").exists()
    assert result.err.splitlines() == [
        "in/a.png -> out/a.png",
        "  and out/compared/a.png",
        "  and out/cropped_faces/a_00.png, and so on, one for each face",
        "in/sub/b.png -> out/sub/b.png",
        "  and out/sub/compared/b.png",
        "  and out/sub/cropped_faces/b_00.png, and so on, one for each face",
        "2 pictures would be written",
    ]
    assert cfrestore_("in", "--dry-run").out == ""


def test_a_plan_is_refused_as_the_work_would_be(cfrestore_: Command) -> None:
    make("a.png", "a.restored.png")
    result = cfrestore_("a.png", "--dry-run", "--json")
    assert (result.code, result.out) == (2, "")
    assert "a.restored.png exists" in result.err


def test_records_are_pure_values(promised: list[str]) -> None:
    job = Job(Path("a\udcff.png"), Path("b.png"))
    planned = record_of_plan(job)
    assert list(planned) == promised
    assert json.loads(json.dumps(planned))["path"] == "a\udcff.png"
    facts = {**UNKNOWN, "model": "mine"}
    failed = record_of(Outcome(job, "failed", "memory", "It is large."), facts)
    assert (failed["code"], failed["model"], failed["output"]) == ("memory", "mine", None)


def test_every_code_is_documented(repository: Path) -> None:
    assert table(repository, "code") == list(REASONS)
    text = (repository / "docs/json.md").read_text(encoding="utf-8")
    for code, meaning in REASONS.items():
        assert f"| `{code}` | {meaning} |" in text


# The record in each result


def test_results_say_how_they_came_to_be(cfrestore_: Command) -> None:
    make("a.png")
    assert cfrestore_("a.png", "--w", "0.25", "--model", "compact").code == 0
    xmp = read_photo("a.restored.png").xmp or b""
    for name, value in (
        ("task", "restoration"),
        ("model", r"compact \(32 px\)"),
        ("weights", "[0-9a-f]{64}"),
        ("fidelity", "0.25"),
        ("version", r"[\w.]+"),
    ):
        assert re.search(rf"<cfrestore:{name}>{value}</cfrestore:{name}>".encode(), xmp)
    assert cfrestore_("a.png", "--metadata", "strip", "--overwrite").code == 0
    assert read_photo("a.restored.png").xmp is None


def test_what_does_not_use_w_does_not_claim_one() -> None:
    known = Pipeline(StubNetwork(), StubDetector(), identity={"model": "ab"})  # type: ignore[arg-type]
    colorizing = provenance_of(known, known.colorizing(Options()))
    assert (colorizing["task"], colorizing["weights"]) == ("colorization", "ab")
    assert "fidelity" not in colorizing
    assert provenance_of(known, known.restoring(Options(fidelity=0)))["fidelity"] == "0.0"
