"""The command `cfrestore degrade`: damage depends on the face's name, and nothing is lost."""

import json
import shutil
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pytest
from command import Command
from stubs import picture

from cfrestore.errors import ConfigError
from cfrestore.evaluate import PRESETS, damage
from cfrestore.image import Photo, read_photo, write_photo


def faces(*names: str, side: int = 64) -> None:
    for seed, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        write_photo(Photo(picture(side, side, seed=seed)), name)


def contents(folder: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


NAMES = ("in/a.png", "in/b.png", "in/sub/a.png", "in/sub/c.jpg", "in/d.webp")


def test_results_do_not_depend_on_the_number_of_workers(cfrestore_: Command) -> None:
    faces(*NAMES)
    for workers in ("1", "2", "5"):
        assert cfrestore_("degrade", "in", f"out{workers}", "--workers", workers).code == 0
    assert contents("out1") == contents("out2") == contents("out5")
    assert sorted(contents("out1")) == ["a.png", "b.png", "d.png", "sub/a.png", "sub/c.png"]


def test_an_empty_name_is_not_the_current_folder(cfrestore_: Command) -> None:
    faces("in/a.png")
    result = cfrestore_("degrade", "in", "")
    assert (result.code, result.err.startswith("error: OUT has an empty name")) == (2, True)
    assert not Path("a.png").exists()


def test_a_size_that_fits_no_memory_is_refused(cfrestore_: Command) -> None:
    faces("in/a.png")
    result = cfrestore_("degrade", "in", "out", "--size", "10000000")
    assert (result.code, "8192" in result.err) == (2, True)


def test_a_face_does_not_depend_on_the_others(cfrestore_: Command) -> None:
    faces(*NAMES)
    cfrestore_("degrade", "in", "all")
    Path("few/sub").mkdir(parents=True)
    shutil.copy("in/sub/a.png", "few/sub/a.png")
    cfrestore_("degrade", "few", "alone")
    assert contents("alone")["sub/a.png"] == contents("all")["sub/a.png"]


def test_seed_name_and_preset_decide() -> None:
    face = picture(64, 64)
    first = damage(face, "small", 0, "a.png")
    assert np.array_equal(first, damage(face, "small", 0, PurePosixPath("a.png")))
    others = [
        damage(face, "small", 1, "a.png"),
        damage(face, "small", 0, "sub/a.png"),
        damage(face, "large", 0, "a.png"),
        damage(face, "paper", 0, "a.png"),
    ]
    assert not any(np.array_equal(first, other) for other in others)
    errors = [
        np.mean([np.abs(damage(face, p, 0, f"{n}.png") * 1.0 - face).mean() for n in range(12)])
        for p in ("small", "large")
    ]
    assert 0 < errors[0] < errors[1]


def test_an_unknown_preset_is_refused(cfrestore_: Command) -> None:
    with pytest.raises(ConfigError, match="choose one of: small, large, paper"):
        damage(picture(64, 64), "medium", 0, "a.png")
    faces("a.png")
    result = cfrestore_("degrade", "a.png", "b.png", "--preset", "medium")
    assert (result.code, Path("b.png").exists()) == (2, False)
    assert set(PRESETS) == {"small", "large", "paper"}


def test_size_and_format_are_as_asked(cfrestore_: Command) -> None:
    faces("in/a.png")
    assert cfrestore_("degrade", "in/a.png", "b.jpg").code == 0
    assert read_photo("b.jpg").format == "JPEG"
    assert cfrestore_("degrade", "in/a.png", "c.png", "--size", "32").code == 0
    assert read_photo("c.png").size == (32, 32)
    assert cfrestore_("degrade", "in", "out", "--format", "webp").code == 0
    assert sorted(contents("out")) == ["a.webp"]
    small = cv2.resize(read_photo("in/a.png").pixels, (32, 32), interpolation=cv2.INTER_AREA)
    assert np.array_equal(read_photo("c.png").pixels, damage(small, "small", 0, "a.png"))


def test_nothing_is_overwritten_unasked_and_inputs_never(cfrestore_: Command) -> None:
    faces("in/a.png", "in/b.png")
    before = contents("in")
    assert cfrestore_("degrade", "in", "out").code == 0
    again = cfrestore_("degrade", "in", "out", "--seed", "1")
    assert again.code == 2
    assert "only --overwrite replaces it" in again.err
    first = contents("out")
    assert cfrestore_("degrade", "in", "out", "--seed", "1", "--overwrite").code == 0
    assert contents("out").keys() == first.keys()
    assert contents("out") != first
    onto = cfrestore_("degrade", "in", "in", "--overwrite")
    assert onto.code == 2
    assert "inputs are never overwritten" in onto.err
    record = cfrestore_("degrade", "in", "new", "--json", "in/a.png", "--overwrite")
    assert record.code == 2
    assert contents("in") == before
    assert not Path("new").exists()


def test_one_bad_face_costs_no_other(cfrestore_: Command) -> None:
    faces("in/a.png", "in/c.png")
    Path("in/b.png").write_bytes(b"no picture")
    write_photo(Photo(picture(64, 48)), "in/d.png")
    write_photo(Photo(picture(16, 16)), "in/e.png")
    result = cfrestore_("degrade", "in", "out", "--json", "done.json")
    assert result.code == 1
    assert sorted(contents("out")) == ["a.png", "c.png"]
    assert "an aligned face is square" in result.err
    assert "2 of 5 faces degraded, small, seed 0" in result.err
    record = json.loads(Path("done.json").read_text())
    assert [file["source"] for file in record["files"]] == ["a.png", "c.png"]
    assert [Path(f["file"]).name for f in record["failed"]] == ["b.png", "d.png", "e.png"]
    assert (record["schema"], record["preset"], record["seed"]) == (1, "small", 0)
    assert record["ranges"]["downsample"] == [1, 12]


@pytest.mark.parametrize(
    ("words", "code"),
    [(["-", "out"], 2), (["in", "-"], 2), (["in", "{stem}.png"], 2), (["absent", "out"], 1)],
)
def test_what_makes_no_sense_is_told(cfrestore_: Command, words: list[str], code: int) -> None:
    faces("in/a.png")
    result = cfrestore_("degrade", *words)
    assert result.code == code
    assert "error: " in result.err
    assert not Path("out").exists() or not contents("out")
