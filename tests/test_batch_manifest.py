"""What the manifest records, how the next run uses it, and what is never lost."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from stubs import StubDetector, StubNetwork, face_at, picture, small_network
from torch import Tensor

from cfrestore.batch import (
    COMPARED,
    CROPS,
    RESTORED,
    SAMPLES,
    Manifest,
    Outcome,
    plan,
    run,
)
from cfrestore.detect import Face
from cfrestore.errors import OutputError
from cfrestore.image import Photo, read_photo, write_photo
from cfrestore.options import Options
from cfrestore.pipeline import Pipeline

REPOSITORY = Path(__file__).parents[1]
MANIFEST = Path("out/.cfrestore.jsonl")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with three pictures of one face each."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for index, name in enumerate("abc"):
        write_photo(Photo(picture(40, 50, seed=index)), f"in/{name}.png")
    return tmp_path


class Darker(StubNetwork):
    """A network whose results depend on w."""

    def decode(self, features: Tensor, skips: dict[int, Tensor], w: float) -> Tensor:
        return super().decode(features, skips, w) * (1 - w)


class Shop:
    """Restores pictures and remembers which were decoded."""

    def __init__(self, fidelity: float = 0.5) -> None:
        pipeline = Pipeline(Darker(), StubDetector(face_at(4, 4, 32)))
        self.procedure = pipeline.restoring(Options(fidelity=fidelity))
        self.read: list[str] = []

    def __call__(self, *words: str, output: str | None = "out", **options: object) -> list[Outcome]:
        self.read = []
        jobs = plan(words or ["in"], output, **options)  # type: ignore[arg-type]
        return list(run(jobs, self.procedure, read=self._read))

    def _read(self, source: Path | BinaryIO) -> Photo:
        assert isinstance(source, Path)
        self.read.append(source.name)
        return read_photo(source)


def statuses(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.status for outcome in outcomes]


def lines() -> list[dict[str, object]]:
    return [json.loads(line) for line in MANIFEST.read_text().splitlines()]


def contents(folder: str = "out") -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.suffix != ".jsonl"
    }


def test_the_same_command_again_does_nothing_and_says_so() -> None:
    shop = Shop()
    first = shop()
    assert statuses(first) == ["done"] * 3
    assert sorted(shop.read) == ["a.png", "b.png", "c.png"]
    before, manifest = contents(), MANIFEST.read_bytes()
    times = [path.stat().st_mtime_ns for path in sorted(Path("out").iterdir())]
    second = shop()
    assert statuses(second) == ["unchanged"] * 3
    assert shop.read == []
    assert (contents(), MANIFEST.read_bytes()) == (before, manifest)
    assert [path.stat().st_mtime_ns for path in sorted(Path("out").iterdir())] == times
    assert [outcome.faces for outcome in second] == [outcome.faces for outcome in first]
    assert second[0].restored == 1
    assert second[0].complete


def test_only_what_is_missing_or_changed_is_done() -> None:
    shop = Shop()
    shop()
    before = contents()
    Path("out/b.png").unlink()
    write_photo(Photo(picture(40, 50, seed=9)), "in/c.png")
    write_photo(Photo(picture(40, 50, seed=8)), "in/d.png")
    assert statuses(shop()) == ["unchanged", "done", "done", "done"]
    assert sorted(shop.read) == ["b.png", "c.png", "d.png"]
    after = contents()
    assert after["a.png"] == before["a.png"]
    assert after["b.png"] == before["b.png"]
    assert after["c.png"] != before["c.png"]
    assert statuses(shop()) == ["unchanged"] * 4


def test_a_picture_that_was_touched_but_not_changed_is_not_done_again() -> None:
    shop = Shop()
    shop()
    Path("in/a.png").touch()
    Path("out/b.png").touch()
    assert statuses(shop()) == ["unchanged"] * 3
    assert shop.read == []


def test_other_settings_are_done_anew_and_their_results_replace_ours() -> None:
    Shop(0.5)()
    assert statuses(Shop(0.6)()) == ["done"] * 3
    assert statuses(Shop(0.6)()) == ["unchanged"] * 3
    assert statuses(Shop(0.5)()) == ["done"] * 3
    settings = {line["settings"] for line in lines()}
    assert len(settings) == 2
    # Options that do not change results are not settings.
    pipeline = Pipeline(StubNetwork(lambda x: -x), StubDetector(face_at(4, 4, 32)))
    (one, two) = (pipeline.restoring(Options(batch_size=size)).settings for size in (1, 7))
    assert one == two


def test_weights_are_part_of_the_settings() -> None:
    network, detector = StubNetwork(), StubDetector()
    digests = [
        Pipeline(network, detector, identity={"model": model}).restoring().settings
        for model in ("1", "2")
    ]
    assert digests[0] != digests[1]


def test_what_a_run_did_not_write_is_refused_before_work() -> None:
    Path("out").mkdir()
    Path("out/b.png").write_bytes(b"somebody's")
    shop = Shop()
    with pytest.raises(OutputError, match=r"out/b\.png exists; only --overwrite"):
        shop()
    assert contents() == {"b.png": b"somebody's"}
    assert statuses(shop(overwrite=True)) == ["done"] * 3


def test_a_result_made_from_another_picture_is_refused() -> None:
    shop = Shop()
    shop()
    Path("other").mkdir()
    write_photo(Photo(picture(40, 50, seed=5)), "other/a.png")
    with pytest.raises(OutputError, match=r"out/a\.png exists"):
        shop("other")


def test_an_edited_result_is_left_as_it_is() -> None:
    shop = Shop()
    shop()
    Path("out/a.png").write_bytes(b"retouched")
    outcomes = shop()
    assert statuses(outcomes) == ["unchanged"] * 3
    assert outcomes[0].notes == ("out/a.png has been edited since it was written, and is left so.",)
    assert Path("out/a.png").read_bytes() == b"retouched"
    other = Shop(0.9)()
    assert statuses(other) == ["failed", "done", "done"]
    assert other[0].code == "exists"
    assert "out/a.png was edited" in str(other[0].error)
    assert Path("out/a.png").read_bytes() == b"retouched"
    assert statuses(shop(overwrite=True)) == ["done"] * 3
    assert statuses(shop(overwrite=True)) == ["unchanged"] * 3


@pytest.mark.parametrize("left", [0.0, 0.6])
@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_a_result_that_is_empty_or_cut_short_is_no_edit(format: str, left: float) -> None:
    shop = Shop()
    shop(kept=[CROPS], format=format)
    whole = contents()
    for name in (f"b.{format}", "cropped_faces/c_00.png"):
        (Path("out") / name).write_bytes(whole[name][: int(left * len(whole[name]))])
    assert statuses(shop(kept=[CROPS], format=format)) == ["unchanged", "done", "done"]
    assert contents() == whole


def test_what_may_be_an_edit_is_never_replaced() -> None:
    """Nor is what cannot be read, unless it begins as a result of that name does."""
    shop = Shop()
    shop()
    text, longer = b"see the other folder", Path("out/b.png").read_bytes() + b"more"
    smaller = Path("smaller.png")
    write_photo(Photo(picture(20, 20)), smaller)
    for content in (text, longer, smaller.read_bytes(), b"\xff\xd8\xff\xe0 a JPEG", b"II*\0"):
        Path("out/b.png").write_bytes(content)
        (_, outcome, _) = shop()
        assert outcome.status == "unchanged"
        assert "has been edited" in outcome.notes[-1]
        assert Path("out/b.png").read_bytes() == content


def test_a_file_that_appears_during_the_run_is_not_overwritten() -> None:
    jobs = plan(["in"], "out")
    Path("out").mkdir()
    Path("out/a.png").write_bytes(b"somebody's")
    outcomes = list(run(jobs, Shop().procedure))
    assert statuses(outcomes) == ["failed", "done", "done"]
    assert outcomes[0].code == "exists"
    assert Path("out/a.png").read_bytes() == b"somebody's"


def test_what_is_kept_beside_results_is_taken_up_too() -> None:
    shop = Shop()
    shop(kept=[CROPS, COMPARED])
    assert statuses(shop(kept=[CROPS, COMPARED])) == ["unchanged"] * 3
    assert statuses(shop()) == ["done"] * 3  # these settings differ
    assert statuses(shop(kept=[CROPS, COMPARED])) == ["unchanged"] * 3
    Path("out/cropped_faces/b_00.png").unlink()
    assert statuses(shop(kept=[CROPS, COMPARED])) == ["unchanged", "done", "unchanged"]
    Path("out/cropped_faces/b_07.png").write_bytes(b"somebody's")
    with pytest.raises(OutputError, match=r"b_07\.png exists"):
        shop(kept=[CROPS])


def test_samples_that_are_no_longer_asked_for_go_unless_somebody_has_edited_them() -> None:
    def samples(count: int, **options: object) -> list[Outcome]:
        network = small_network()
        pipeline = Pipeline(network, StubDetector(face_at(4, 4, 32)))
        jobs = plan(["in"], "out", kept=[SAMPLES], **options)  # type: ignore[arg-type]
        return list(run(jobs, pipeline.restoring(Options(samples=count, max_face=None))))

    folder = Path("out/restored_samples")
    samples(4)
    assert len(list(folder.iterdir())) == 12
    (folder / "b_03.png").write_bytes(b"edited")
    outcomes = samples(2)
    expected = [*(f"{name}_0{k}.png" for name in "abc" for k in (0, 1)), "b_03.png"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(expected)
    assert (folder / "b_03.png").read_bytes() == b"edited"
    notes = [[note for note in outcome.notes if "earlier" in note] for outcome in outcomes]
    assert notes == [[], ["out/restored_samples/b_03.png is left from an earlier run."], []]
    assert statuses(samples(2)) == ["unchanged"] * 3
    outcomes = samples(4, overwrite=True)
    assert statuses(outcomes) == ["done"] * 3
    assert len(list(folder.iterdir())) == 12


def test_faces_that_are_no_longer_found_go() -> None:
    def crops(*faces: Face, name: str = "in") -> list[Outcome]:
        pipeline = Pipeline(Darker(), StubDetector(*faces))
        jobs = plan([name], "out/", kept=[CROPS, RESTORED])
        return list(run(jobs, pipeline.restoring(Options(fidelity=len(faces) / 4))))

    shutil.copy("in/a.png", "in/a_00.png")  # its crops are a_00_00.png and so on
    crops(face_at(4, 4, 32), face_at(10, 4, 24))
    one = ["a_00.png", "a_00_00.png", "b_00.png", "c_00.png"]
    two = ["a_00_01.png", "a_01.png", "b_01.png", "c_01.png"]
    for folder in ("out/cropped_faces", "out/restored_faces"):
        assert sorted(contents(folder)) == sorted(one + two)
    crops(face_at(4, 4, 32))
    for folder in ("out/cropped_faces", "out/restored_faces"):
        assert sorted(contents(folder)) == one


def test_without_a_record_nothing_is_removed_but_it_is_said() -> None:
    def crop(*faces: Face) -> Outcome:
        pipeline = Pipeline(Darker(), StubDetector(*faces))
        jobs = plan(["in/a.png"], kept=[CROPS], overwrite=True)
        return next(iter(run(jobs, pipeline.restoring())))

    assert not crop(face_at(4, 4, 32), face_at(10, 4, 24)).notes
    kept = Path("in/cropped_faces/a_01.png").read_bytes()
    assert crop(face_at(4, 4, 32)).notes == (
        "in/cropped_faces/a_01.png is left from an earlier run.",
    )
    assert Path("in/cropped_faces/a_01.png").read_bytes() == kept


def test_failures_are_recorded_and_tried_again() -> None:
    Path("in/b.png").write_bytes(b"no picture")
    shop = Shop()
    outcomes = shop()
    assert statuses(outcomes) == ["done", "failed", "done"]
    assert [(line["code"], line["source"]) for line in lines() if line["status"] == "failed"] == [
        ("unreadable", "../in/b.png")
    ]
    assert sum(outcome.restored for outcome in outcomes) == 2
    assert outcomes[1].code == "unreadable"
    assert "in/b.png is not a picture" in str(outcomes[1].error)
    assert statuses(shop()) == ["unchanged", "failed", "unchanged"]
    assert shop.read == ["b.png"]
    write_photo(Photo(picture(40, 50)), "in/b.png")
    assert statuses(shop()) == ["unchanged", "done", "unchanged"]


def test_a_record_says_what_became_of_a_picture() -> None:
    Shop()("in/a.png", output="out/")
    (line,) = lines()
    assert line["schema"] == 1
    assert (line["status"], line["source"], line["path"]) == ("done", "../in/a.png", "in/a.png")
    ((name, (size, time, digest)),) = line["outputs"].items()  # type: ignore[attr-defined]
    status = Path("out/a.png").stat()
    assert (name, size, time) == ("a.png", status.st_size, status.st_mtime_ns)
    assert len(digest) == len(line["input"][2]) == 64  # type: ignore[index]
    (face,) = line["faces"]  # type: ignore[misc]
    assert face["status"] == "restored"
    assert face["box"] == [4, 4, 36, 36]
    assert (face["w"], face["score"], len(face["landmarks"])) == (0.5, 0.9, 5)
    assert set(line["seconds"]) == {"read", "find", "paint", "paste", "write"}  # type: ignore[call-overload]


@pytest.mark.parametrize("cut", [1, 2, 100, 400])
def test_a_last_line_that_was_cut_short_costs_one_picture(cut: int) -> None:
    shop = Shop()
    shop()
    before = contents()
    MANIFEST.write_bytes(MANIFEST.read_bytes()[:-cut])
    outcomes = shop(overwrite=True)
    assert sorted(statuses(outcomes)) == (
        ["unchanged"] * 3 if cut == 1 else ["done", "unchanged", "unchanged"]
    )
    assert contents() == before
    assert statuses(shop()) == ["unchanged"] * 3


def _line(fingerprint: list[object]) -> bytes:
    """A line that is whole but for the fingerprint of its result."""
    lists: dict[str, object] = {key: [] for key in ("faces", "missing", "remarks", "notes")}
    values = {"schema": 1, "status": "done", "path": "in/a.png", "output": "out/a.png"}
    values |= {"code": None, "error": None, **lists, "seconds": {}, "source": "../in/a.png"}
    values |= {"settings": "", "input": None, "outputs": {"a.png": fingerprint}}
    return json.dumps(values).encode()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe\x00",
        b"[]",
        b"1",
        b"null",
        b'{"schema": 1}',
        b'{"schema": 2, "status": "done"}',
        b'{"schema": 1, "status": "done", "outputs": 3, "input": []}',
        b"[" * 100_000,
        *(_line(fingerprint) for fingerprint in (["x", 1, ""], [9, None, ""], [9, 1, 2], [9, 1])),
    ],
)
def test_damaged_lines_count_for_nothing(line: bytes) -> None:
    shop = Shop()
    shop()
    MANIFEST.write_bytes(line + b"\n" + MANIFEST.read_bytes() + line)
    assert statuses(shop()) == ["unchanged"] * 3
    Path("out/a.png").unlink()
    assert statuses(shop()) == ["done", "unchanged", "unchanged"]
    assert statuses(shop()) == ["unchanged"] * 3
    Path("out/a.png").write_bytes(b"")
    assert statuses(shop()) == ["done", "unchanged", "unchanged"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_manifest_that_is_a_pipe_is_not_read() -> None:
    Path("out").mkdir()
    os.mkfifo(MANIFEST)
    assert Manifest.read(Path("out")).records == {}


def test_shards_are_taken_for_done_by_the_whole() -> None:
    for index in range(6):
        write_photo(Photo(picture(40, 50, seed=index)), f"in/{index}.png")
    shop = Shop()
    for index in (1, 2, 3):
        shop(shard=(index, 3))
    assert len(list(Path("out").glob(".cfrestore-?-of-3.jsonl"))) == 3
    assert statuses(shop()) == ["unchanged"] * 9
    assert statuses(shop(shard=(1, 2)) + shop(shard=(2, 2))) == ["unchanged"] * 9


def test_results_may_move_to_another_place_with_their_manifest(here: Path) -> None:
    shop = Shop()
    shop()
    Path("elsewhere").mkdir()
    shutil.copytree("in", "elsewhere/in")
    shutil.copytree("out", "elsewhere/out", copy_function=shutil.copyfile)
    assert statuses(shop("elsewhere/in", output="elsewhere/out")) == ["unchanged"] * 3
    assert statuses(shop(str(here / "in"), output=str(here / "out"))) == ["unchanged"] * 3
    assert shop.read == []


def test_names_may_be_any_bytes() -> None:
    name = b"in/\xff \n'\".png".decode(errors="surrogateescape")
    write_photo(Photo(picture(40, 50)), "in/a.png")
    Path("in/a.png").rename(name)
    shop = Shop()
    assert statuses(shop()) == ["done"] * 3
    assert statuses(shop()) == ["unchanged"] * 3
    assert len(MANIFEST.read_bytes().splitlines()) == 3


# In place


_RECORD = """
(job,) = plan(["given"], "out")
shutil.copy(job.source, job.target)
prints = [Fingerprint.of(path) for path in (job.source, job.target)]
record_outcome(Outcome(job), "settings", prints[0], {job.target: prints[1]})
"""
_LOOK = """
(job,) = plan(["given"], "out")
print(Manifest.read(Path("out")).finished(job, "settings") is not None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the locale decides how names are decoded")
@pytest.mark.parametrize(("first", "then"), [("C", "C.UTF-8"), ("C.UTF-8", "C")])
@pytest.mark.parametrize("name", ["caf\u00e9.png", "caf\udcff.png"])
def test_a_manifest_is_the_same_in_every_locale(first: str, then: str, name: str) -> None:
    head = (
        "import shutil\nfrom pathlib import Path\n"
        "from cfrestore.batch import Manifest, Outcome, plan\n"
        "from cfrestore.batch.manifest import Fingerprint, record_outcome\n"
    )
    for folder in ("given", "out"):
        Path(folder).mkdir()
    Path("in/a.png").rename(f"given/{name}")

    def python(code: str, locale: str) -> str:
        own = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(
            [sys.executable, "-c", head + code],
            env=os.environ | own | {"LC_ALL": locale},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    python(_RECORD, first)
    assert python(_LOOK, then) == "True\n"
    assert python(_LOOK, first) == "True\n"


def test_names_that_earlier_versions_recorded_in_another_locale_are_known() -> None:
    shop = Shop()
    Path("in/a.png").rename("in/caf\u00e9.png")
    shop()
    text = MANIFEST.read_text()
    assert "caf\\u00e9" in text
    MANIFEST.write_text(text.replace("\\u00e9", "\\udcc3\\udca9"))
    assert [outcome.status for outcome in shop()] == ["unchanged"] * 3


def test_in_place_a_picture_is_restored_once() -> None:
    shop = Shop()
    Path("in/a.png").chmod(0o600)
    originals = contents("in")
    assert statuses(shop(output=None, in_place=True)) == ["done"] * 3
    results = contents("in")
    assert results.keys() == originals.keys()
    assert all(results[name] != originals[name] for name in results)
    assert stat.S_IMODE(Path("in/a.png").stat().st_mode) == 0o600
    assert statuses(shop(output=None, in_place=True)) == ["unchanged"] * 3
    assert contents("in") == results
    Path("in/b.png").write_bytes(originals["b.png"])
    assert statuses(shop(output=None, in_place=True)) == ["unchanged", "done", "unchanged"]
    assert contents("in") == results


def test_in_place_a_result_is_not_restored_again_unless_asked_to() -> None:
    """With other settings its faces would be painted, and a JPEG compressed, twice."""
    Shop(0.5)(output=None, in_place=True)
    results = contents("in")
    other = Shop(0.7)
    write_photo(Photo(picture(40, 50, seed=9)), "in/d.png")
    outcomes = other(output=None, in_place=True)
    assert statuses(outcomes) == ["unchanged"] * 3 + ["done"]
    assert other.read == ["d.png"]
    said = ("it is a result of an earlier run already, which only --overwrite replaces",)
    assert [outcome.remarks for outcome in outcomes] == [said] * 3 + [()]
    assert [outcome.restored for outcome in outcomes] == [1] * 4
    assert not outcomes[0].complete
    assert contents("in").items() >= results.items()
    write_photo(Photo(picture(40, 50, seed=8)), "in/b.png")  # another picture of that name
    assert statuses(other(output=None, in_place=True))[:2] == ["unchanged", "done"]
    done = other(output=None, in_place=True, overwrite=True)
    assert statuses(done) == ["done", "unchanged", "done", "unchanged"]


@pytest.mark.parametrize("recorded", [True, False])
def test_in_place_a_result_of_another_task_is_worked_on(recorded: bool) -> None:
    def work(task: str) -> list[str]:
        shop = Shop()
        procedure = replace(shop.procedure, settings={**shop.procedure.settings, "task": task})
        jobs = plan(["in/a.png"], in_place=True)
        write = partial(write_photo, provenance={"task": task})
        outcomes = list(run(jobs, procedure, write=write))
        if not recorded:
            Path("in/.cfrestore.jsonl").unlink(
                missing_ok=True
            )  # the picture's own metadata still says it
        return statuses(outcomes)

    assert work("restoration") == ["done"]
    assert work("colorization") == ["done"]
    assert work("colorization") == ["unchanged"]
    assert work("restoration") == ["done"]


def test_in_place_a_picture_without_faces_is_tried_again() -> None:
    def work(*faces: Face, fidelity: float) -> list[str]:
        procedure = Pipeline(Darker(), StubDetector(*faces)).restoring(Options(fidelity=fidelity))
        write = partial(write_photo, provenance={"task": "restoration"})
        return statuses(list(run(plan(["in/a.png"], in_place=True), procedure, write=write)))

    assert work(fidelity=0.5) == ["done"]
    assert work(face_at(4, 4, 32), fidelity=0.6) == ["done"]
    assert work(face_at(4, 4, 32), fidelity=0.7) == ["unchanged"]


# Writing


class Full:
    """A disk that is full after a given number of bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, photo: Photo, target: BinaryIO, *, format: str | None) -> tuple[str, ...]:
        disk = self

        class Stream:
            name = target.name

            def write(self, data: bytes) -> int:
                if len(data) > disk.room:
                    target.write(data[: disk.room])
                    raise OSError(errno.ENOSPC, "No space left on device")
                disk.room -= len(data)
                return target.write(data)

            def flush(self) -> None:
                target.flush()

        return write_photo(photo, Stream(), format=format)  # type: ignore[arg-type]


def test_a_full_disk_leaves_whole_files_and_the_rest_fails_with_its_reason() -> None:
    Shop()("in/a.png", output="enough/", kept=[COMPARED])
    room = sum(map(len, contents("enough").values())) + 100
    jobs = plan(["in"], "out", kept=[COMPARED])
    outcomes = list(run(jobs, Shop().procedure, write=Full(room), workers=1))
    assert statuses(outcomes) == ["done", "failed", "failed"]
    for outcome in outcomes[1:]:
        assert outcome.code == "unwritable"
        assert "No space left on device" in str(outcome.error)
        assert f"out/compared/{outcome.job.name}.png" in str(outcome.error)
    assert set(contents()) == {"a.png", "compared/a.png"}
    for name in contents():
        read_photo(f"out/{name}")
    assert statuses(Shop()(kept=[COMPARED])) == ["unchanged", "done", "done"]


def test_a_manifest_that_cannot_be_written_fails_the_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = plan(["in"], "out")
    MANIFEST.mkdir(parents=True)
    outcomes = list(run(jobs, Shop().procedure))
    assert [outcome.code for outcome in outcomes] == ["unwritable"] * 3
    assert all(f"its record in {MANIFEST} cannot be: " in str(each.error) for each in outcomes)
    assert contents() == {}
    assert list(Path("out").iterdir()) == [MANIFEST]


def test_a_name_that_is_too_long_fails_alone() -> None:
    Path("in/a.png").rename(Path("in") / f"{'x' * 251}.png")
    outcomes = list(run(plan(sorted(Path("in").iterdir())), Shop().procedure))
    assert sorted(statuses(outcomes)) == ["done", "done", "failed"]
    (failed,) = [outcome for outcome in outcomes if outcome.status == "failed"]
    assert failed.code == "unwritable"
    assert str(failed.error).endswith(".restored.png cannot be written: File name too long")


def test_drafts_of_a_run_that_was_killed_are_removed_and_never_taken_for_pictures() -> None:
    shop = Shop()
    shop(kept=[CROPS])
    jobs = {job.source.name: job for job in plan(["in"], "out", kept=[CROPS])}  # type: ignore[union-attr]
    from cfrestore.batch.drafts import _key

    ours = [
        Path("out", f".cfrestore-{_key(jobs['a.png'])}-0123abcd.tmp"),
        Path("out/cropped_faces", f".cfrestore-{_key(jobs['b.png'])}-0123abcd.tmp"),
    ]
    others = [Path("out/.cfrestore-0123456789abcdef-0123abcd.tmp"), Path("out/.tmp")]
    for path in ours + others:
        path.write_bytes(b"half a picture")
    assert statuses(shop(kept=[CROPS])) == ["unchanged"] * 3
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in others)
    assert len(plan(["out"], "new", recursive=True)) == 3


def test_a_picture_that_changes_while_it_is_read_fails_alone() -> None:
    def read(source: Path | BinaryIO) -> Photo:
        photo = read_photo(source)
        if source == Path("in/b.png"):
            write_photo(Photo(picture(30, 30)), source)
        return photo

    outcomes = list(run(plan(["in"], "out"), Shop().procedure, read=read))
    assert [outcome.code for outcome in outcomes] == [None, "modified", None]


def test_a_manifest_tells_what_it_holds() -> None:
    Shop()()
    manifest = Manifest.read(Path("out"))
    assert sorted(manifest.records) == ["a.png", "b.png", "c.png"]
    ((record,),) = [manifest.records["b.png"]]
    assert record.outcome.restored == 1
    assert np.array_equal(record.outcome.faces[0].box, [4, 4, 36, 36])
