import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from folders import touch
from stubs import StubDetector, StubNetwork, face_at, picture

from cfrestore.batch import COMPARED, CROPS, RESTORED, Job, Outcome, plan, run
from cfrestore.errors import ConfigError, ImageError, OutputError
from cfrestore.image import Photo, read_photo, write_photo
from cfrestore.options import Options
from cfrestore.pipeline import Pipeline
from cfrestore.procedure import Prepared, Procedure, Restoration
from cfrestore.restore import FailedFace
from cfrestore.select import SkippedFace

pytestmark = pytest.mark.usefixtures("here")


def planned(
    *inputs: str,
    output: str | None = None,
    overwrite: bool = False,
    mark: str = ".restored",
    suffix: str | None = None,
) -> list[tuple[str, str]]:
    jobs = plan(inputs, output, overwrite=overwrite, mark=mark, suffix=suffix)
    return [(job.source.as_posix(), job.target.as_posix()) for job in jobs]


# Names


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("photo.jpg", "photo.restored.jpg"),
        ("a/b/photo.PNG", "a/b/photo.restored.PNG"),
        ("my photo.v1.2.jpeg", "my photo.v1.2.restored.jpeg"),
        ("3月9日 größer.webp", "3月9日 größer.restored.webp"),
        ("no extension", "no extension.restored"),
        ("[brackets].tif", "[brackets].restored.tif"),
    ],
)
def test_a_file_goes_beside_itself(source: str, target: str) -> None:
    touch(source)
    assert planned(source) == [(source, target)]


def test_a_file_goes_where_it_is_told() -> None:
    touch("a.jpg", "folder/x")
    assert planned("a.jpg", output="b.png") == [("a.jpg", "b.png")]
    assert planned("a.jpg", output="new/b.png") == [("a.jpg", "new/b.png")]
    assert planned("a.jpg", output="folder") == [("a.jpg", "folder/a.jpg")]
    assert planned("a.jpg", output="new/") == [("a.jpg", "new/a.jpg")]
    assert planned("a.jpg", output="new" + os.sep) == [("a.jpg", "new/a.jpg")]


def test_several_files_go_beside_themselves_or_into_a_folder() -> None:
    touch("a.jpg", "b/b.jpg")
    assert planned("a.jpg", "b/b.jpg") == [
        ("a.jpg", "a.restored.jpg"),
        ("b/b.jpg", "b/b.restored.jpg"),
    ]
    assert planned("a.jpg", "b/b.jpg", output="new") == [
        ("a.jpg", "new/a.jpg"),
        ("b/b.jpg", "new/b.jpg"),
    ]


def test_a_folder_gives_its_pictures_sorted_and_no_earlier_results() -> None:
    touch(
        "in/b.JPG",
        "in/a.png",
        "in/c.tiff",
        "in/a.restored.png",
        "in/a.inpainted.png",
        "in/a.colorized.png",
        "in/.hidden.jpg",
        "in/notes.txt",
        "in/sub/d.jpg",
    )
    Path("in/folder.jpg").mkdir()
    assert planned("in") == [
        ("in/a.png", "in.restored/a.png"),
        ("in/b.JPG", "in.restored/b.JPG"),
        ("in/c.tiff", "in.restored/c.tiff"),
    ]
    assert planned("in/", output="out")[0] == ("in/a.png", "out/a.png")


def test_folders_among_several_inputs_keep_their_names() -> None:
    touch("x/a.jpg", "y/a.jpg", "a.jpg")
    assert planned("x", "y", "a.jpg", output="out") == [
        ("x/a.jpg", "out/x/a.jpg"),
        ("y/a.jpg", "out/y/a.jpg"),
        ("a.jpg", "out/a.jpg"),
    ]


@pytest.mark.parametrize("name", [".", "..", "../in"])
def test_a_folder_may_be_named_by_dots(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch("in/a.jpg", "in/sub/b", "a.jpg")
    monkeypatch.chdir(here / ("in/sub" if name == ".." else "in"))
    ((_, target),) = planned(name)
    assert Path(target).resolve() == here / "in.restored/a.jpg"


def test_other_work_leaves_another_mark() -> None:
    touch("a.jpg", "in/a.jpg", "in/b.inpainted.jpg")
    assert planned("a.jpg", "in", mark=".inpainted") == [
        ("a.jpg", "a.inpainted.jpg"),
        ("in/a.jpg", "in.inpainted/a.jpg"),
    ]


def test_a_suffix_is_in_every_name() -> None:
    touch("a.v1.jpg", "plain", "in/a.jpg", "out/x")
    assert planned("a.v1.jpg", "plain", "in", suffix="new") == [
        ("a.v1.jpg", "a.v1_new.jpg"),
        ("plain", "plain_new"),
        ("in/a.jpg", "in.restored/a_new.jpg"),
    ]
    assert planned("a.v1.jpg", output="out", suffix="new") == [("a.v1.jpg", "out/a.v1_new.jpg")]
    assert planned("in", output="out", suffix="new") == [("in/a.jpg", "out/a_new.jpg")]
    (job,) = plan(["a.v1.jpg"], suffix="new", kept=[CROPS, COMPARED])
    assert job.numbered(CROPS, 3) == Path("cropped_faces/a.v1_new_03.png")
    assert job.comparison == Path("compared/a.v1_new.png")


def test_results_with_the_suffix_are_no_inputs_of_the_next_run() -> None:
    touch(
        "in/a.jpg", "in/a_old.jpg", "in/a_old_old.jpg", "in/b_old.jpg", "in/c.png", "in/c_old.jpg"
    )
    sources = [source for source, _ in planned("in", suffix="old")]
    assert sources == ["in/a.jpg", "in/b_old.jpg", "in/c.png", "in/c_old.jpg"]
    assert len(planned("in")) == len(planned("in", suffix="new")) == 6
    with pytest.raises(OutputError, match="is an input"):
        planned("in/a.jpg", "in/a_old.jpg", suffix="old", overwrite=True)


@pytest.mark.parametrize("suffix", ["", "a/b", "/", "../x", "."])
def test_a_suffix_is_a_part_of_a_name(suffix: str) -> None:
    touch("a.jpg")
    with pytest.raises(ConfigError, match="suffix"):
        planned("a.jpg", suffix=suffix)


def test_a_whole_name_takes_no_suffix() -> None:
    touch("a.jpg")
    with pytest.raises(OutputError, match=r"b\.jpg is the whole name"):
        planned("a.jpg", output="b.jpg", suffix="new")


# Additional files next to the results


def beside(*inputs: str, output: str | None = None) -> list[str]:
    return [job.comparison.as_posix() for job in plan(inputs, output, kept=[COMPARED])]


def test_what_is_kept_lies_in_folders_beside_the_result() -> None:
    touch("x/a.v1.jpg")
    (job,) = plan(["x/a.v1.jpg"], kept=[CROPS, RESTORED, COMPARED])
    assert job.numbered(CROPS, 0) == Path("x/cropped_faces/a.v1_00.png")
    assert job.numbered(RESTORED, 123) == Path("x/restored_faces/a.v1_123.png")
    assert beside("x/a.v1.jpg") == ["x/compared/a.v1.png"]
    assert beside("x/a.v1.jpg", output="out/b.png") == ["out/compared/a.v1.png"]
    assert beside("x", output="out") == ["out/compared/a.v1.png"]


def test_pictures_that_differ_in_their_extension_keep_it() -> None:
    touch("a.jpg", "a.png", "b.jpg", "y/b.png")
    assert beside("a.jpg", "./a.png", "b.jpg", "y/b.png") == [
        "compared/a.jpg.png",
        "compared/a.png.png",
        "compared/b.png",
        "y/compared/b.png",
    ]
    assert beside("b.jpg", "y/b.png", output="out") == [
        "out/compared/b.jpg.png",
        "out/compared/b.png.png",
    ]


def test_the_next_run_does_not_take_what_was_kept() -> None:
    touch("in/a.jpg", "in/cropped_faces/a_00.png", "in/compared/a.png")
    assert [source for source, _ in planned("in")] == ["in/a.jpg"]


@pytest.mark.parametrize(
    ("kind", "there", "refused"),
    [
        (CROPS, "cropped_faces/a_00.png", True),
        (CROPS, "cropped_faces/a_17.png", True),
        (CROPS, "cropped_faces/a_100.png", True),
        (CROPS, "cropped_faces/a_1.png", False),
        (CROPS, "cropped_faces/ba_00.png", False),
        (CROPS, "cropped_faces/a_00_00.png", False),
        (CROPS, "restored_faces/a_00.png", False),
        (RESTORED, "restored_faces/a_00.png", True),
        (COMPARED, "compared/a.png", True),
        (COMPARED, "compared/a_00.png", False),
    ],
)
def test_what_is_kept_replaces_nothing_unless_asked_to(
    kind: str, there: str, refused: bool
) -> None:
    touch("a.jpg", there)
    if refused:
        with pytest.raises(OutputError, match=f"{there} exists; only --overwrite"):
            plan(["a.jpg"], kept=[kind])
    else:
        plan(["a.jpg"], kept=[kind])
    plan(["a.jpg"], kept=[kind], overwrite=True)
    plan(["a.jpg"])


@pytest.mark.parametrize(
    ("kind", "there"), [(CROPS, "cropped_faces/a_03.png"), (COMPARED, "compared/a.png")]
)
def test_what_is_kept_never_replaces_an_input(kind: str, there: str) -> None:
    touch("a.jpg", there)
    with pytest.raises(OutputError, match=f"{there} is an input"):
        plan(["a.jpg", there], kept=[kind], overwrite=True)
    Path(there).unlink()
    Path(there).symlink_to(Path("a.jpg").resolve())
    with pytest.raises(OutputError, match=f"{there} is an input"):
        plan(["a.jpg"], kept=[kind], overwrite=True)


def test_a_result_and_what_is_kept_never_have_one_name() -> None:
    touch("a.jpg", "cropped_faces/a_00.png", "compared/a.png")
    for kind in (CROPS, COMPARED):
        plan([kind, "a.jpg"], "out")
        with pytest.raises(OutputError, match="would both be written to"):
            plan([kind, "a.jpg"], "out", kept=[kind])


def test_what_is_kept_needs_a_folder() -> None:
    touch("a.jpg", "cropped_faces")
    with pytest.raises(OutputError, match="cropped_faces is a file"):
        plan(["a.jpg"], kept=[CROPS])


# Refusals, before any work


def test_nothing_is_overwritten_unless_asked_for() -> None:
    touch("a.jpg", "a.restored.jpg", "b.jpg")
    with pytest.raises(OutputError, match=r"a\.restored\.jpg exists"):
        planned("a.jpg", "b.jpg")
    assert len(planned("a.jpg", "b.jpg", overwrite=True)) == 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_overwritten(overwrite: bool) -> None:
    touch("a.jpg", "a.restored.jpg", "in/x.jpg")
    Path("link.jpg").symlink_to("a.jpg")
    for inputs, output in (
        (["a.jpg"], "a.jpg"),
        (["a.jpg"], "in/../a.jpg"),
        (["a.jpg"], "link.jpg"),
        (["link.jpg"], "a.jpg"),
        (["a.jpg"], "."),
        (["a.jpg", "a.restored.jpg"], None),
        (["in"], "in"),
    ):
        with pytest.raises(OutputError, match="is an input"):
            planned(*inputs, output=output, overwrite=overwrite)


def test_two_pictures_never_have_one_result() -> None:
    touch("x/a.jpg", "y/a.jpg")
    with pytest.raises(OutputError, match=r"x/a\.jpg and y/a\.jpg would both"):
        planned("x/a.jpg", "y/a.jpg", output="out", overwrite=True)
    with pytest.raises(OutputError, match="both"):
        planned("x/a.jpg", "x/../x/a.jpg")


def test_several_results_do_not_fit_one_file() -> None:
    touch("a.jpg", "b.jpg", "in/c.jpg", "file")
    for inputs in (["a.jpg", "b.jpg"], ["in"]):
        for output in ("new.jpg", "file"):
            with pytest.raises(OutputError, match="needs a folder"):
                planned(*inputs, output=output)


def test_a_folder_without_pictures_says_so() -> None:
    touch("in/notes.txt")
    with pytest.raises(ImageError, match="in holds no pictures"):
        planned("in")


def test_a_path_that_cannot_be_looked_at_is_an_image_error() -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        planned("x" * 300 + ".jpg", output="y" * 5000)


def test_a_missing_file_is_planned_and_fails_alone_later() -> None:
    assert planned("nowhere.jpg") == [("nowhere.jpg", "nowhere.restored.jpg")]


# The run


def unchanged(photo: Photo) -> Restoration:
    return Restoration(photo, ())


def procedure(restore: Callable[[Photo], Restoration] = unchanged) -> Procedure:
    """A procedure without networks, which does all its work in `finish`."""

    def prepare(photo: Photo) -> Prepared:
        return Prepared((), lambda painted: restore(photo))

    return Procedure(prepare, lambda faces: [])


def outcomes(
    jobs: list[tuple[str, str]], restore: Callable[[Photo], Restoration] = unchanged
) -> list[Outcome]:
    planned = [Job(Path(source), Path(target)) for source, target in jobs]
    return list(run(planned, procedure(restore)))


def test_results_are_written_into_new_folders() -> None:
    write_photo(Photo(picture(20, 30)), "a.png")
    (outcome,) = outcomes([("a.png", "new/folder/b.png")])
    assert outcome.complete
    assert outcome.restored == 0
    assert read_photo("new/folder/b.png").size == (20, 30)


def test_one_bad_picture_does_not_stop_the_others() -> None:
    Path("bad.jpg").write_text("no picture")
    Path("empty.jpg").touch()
    for name in ("a.png", "z.png"):
        write_photo(Photo(picture(20, 30)), name)
    names = ["a.png", "bad.jpg", "empty.jpg", "nowhere.jpg", "z.png"]
    results = outcomes([(name, f"out/{name}") for name in names])
    assert [outcome.error is None for outcome in results] == [True, False, False, False, True]
    for outcome in results[1:4]:
        assert outcome.job.source.name in str(outcome.error)
        assert "\n" not in str(outcome.error)
        assert not outcome.job.target.exists()
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "z.png"]


def test_too_large_a_picture_fails_alone() -> None:
    write_photo(Photo(picture(20, 30)), "a.png")

    def restore(photo: Photo) -> Restoration:
        raise MemoryError

    (outcome,) = outcomes([("a.png", "b.png")], restore)
    assert "a.png needs more memory" in str(outcome.error)
    assert outcome.code == "memory"


def test_faces_left_alone_are_counted_with_their_reasons() -> None:
    write_photo(Photo(picture(20, 30)), "a.png")
    failed = FailedFace(face_at(0, 0, 8), "it is odd")
    (outcome,) = outcomes([("a.png", "b.png")], lambda photo: Restoration(photo, (failed,)))
    assert outcome.left_alone == ("it is odd",)
    assert outcome.error is None
    assert not outcome.complete
    assert Path("b.png").exists()


def test_faces_that_were_not_to_be_restored_are_no_failures() -> None:
    write_photo(Photo(picture(20, 30)), "a.png")
    skipped = SkippedFace(face_at(0, 0, 8), "not selected")
    (outcome,) = outcomes([("a.png", "b.png")], lambda photo: Restoration(photo, (skipped,)))
    assert outcome.skipped == ("not selected",)
    assert outcome.left_alone == ()
    assert outcome.complete
    (outcome,) = outcomes([("a.png", "c.png")], lambda photo: Restoration(photo, (), (2,)))
    assert outcome.missing == (2,)
    assert outcome.error is None
    assert not outcome.complete


def test_faces_and_comparisons_are_kept() -> None:
    photo = Photo(picture(60, 80), np.full((60, 80), 200, np.uint8), icc=b"profile")
    write_photo(photo, "a.png")
    broken = type(face_at(0, 0, 1))(np.zeros(4, np.float32), 0.5, np.zeros((5, 2), np.float32))
    detector = StubDetector(face_at(0, 0, 32), broken, face_at(40, 20, 32), face_at(0, 20, 32))
    pipeline = Pipeline(StubNetwork(lambda x: -x), detector)
    restoring = pipeline.restoring(Options(upscale=2, faces=(0, 1, 2)))
    result = restoring(photo)
    jobs = plan(["a.png"], "out/b.png", kept=[CROPS, RESTORED, COMPARED])
    assert [outcome.error for outcome in run(jobs, restoring)] == [None]
    written = sorted(path.as_posix() for path in Path("out").rglob("*.png"))
    assert written == [
        "out/b.png",
        "out/compared/a.png",
        "out/cropped_faces/a_00.png",
        "out/cropped_faces/a_02.png",
        "out/restored_faces/a_00.png",
        "out/restored_faces/a_02.png",
    ]
    first, last = result.restored
    for face, number in ((first, "00"), (last, "02")):
        crop = read_photo(f"out/cropped_faces/a_{number}.png")
        assert np.array_equal(crop.pixels, face.aligned.crop)
        assert crop.icc == b"profile"
        restored = read_photo(f"out/restored_faces/a_{number}.png")
        assert np.array_equal(restored.pixels, face.crop)
        assert restored.alpha is None
    compared = read_photo("out/compared/a.png")
    assert compared.size == (120, 320)
    assert np.array_equal(compared.pixels[:, 160:], result.photo.pixels)


def test_an_aligned_face_is_kept_too_and_sixteen_bits_are_compared() -> None:
    write_photo(Photo(picture(32, 32, np.uint16)), "a.png")
    pipeline = Pipeline(StubNetwork(lambda x: -x), StubDetector())
    jobs = plan(["a.png"], kept=[CROPS, RESTORED, COMPARED])
    (outcome,) = run(jobs, pipeline.restoring(Options(aligned=True)))
    assert outcome.complete
    result = read_photo("a.restored.png").pixels
    assert np.array_equal(read_photo("restored_faces/a_00.png").pixels.astype(int) * 257, result)
    compared = read_photo("compared/a.png").pixels
    assert compared.dtype == np.uint16
    expected = np.concatenate([read_photo("a.png").pixels, result], axis=1)
    assert np.array_equal(compared, expected)
    assert Path("cropped_faces/a_00.png").is_file()


def test_the_result_is_written_last(monkeypatch: pytest.MonkeyPatch) -> None:
    write_photo(Photo(picture(20, 30)), "a.png")
    jobs = plan(["a.png"], kept=[COMPARED])
    Path("compared").touch()  # after the planning
    (outcome,) = run(jobs, procedure())
    assert "compared" in str(outcome.error)
    assert not Path("a.restored.png").exists()


def test_what_fits_no_picture_ends_the_run() -> None:
    write_photo(Photo(picture(20, 30)), "a.png")

    def restore(photo: Photo) -> Restoration:
        raise ConfigError("wrong")

    with pytest.raises(ConfigError):
        outcomes([("a.png", "b.png")], restore)


def test_a_result_that_cannot_be_written_fails_alone() -> None:
    write_photo(Photo(picture(20, 30)), "a.png")
    Path("file").touch()
    first, second = outcomes([("a.png", "file/b.png"), ("a.png", "b.png")])
    assert "file" in str(first.error)
    assert second.complete
