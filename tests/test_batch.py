import os
from collections.abc import Callable
from pathlib import Path

import pytest
from stubs import face_at, picture

from cfrestore.batch import Job, Outcome, plan, run
from cfrestore.errors import ConfigError, ImageError, OutputError
from cfrestore.image import Photo, read_photo, write_photo
from cfrestore.pipeline import Restoration
from cfrestore.restore import FailedFace


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def planned(
    *inputs: str, output: str | None = None, overwrite: bool = False
) -> list[tuple[str, str]]:
    jobs = plan(inputs, output, overwrite=overwrite)
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
    make(source)
    assert planned(source) == [(source, target)]


def test_a_file_goes_where_it_is_told() -> None:
    make("a.jpg", "folder/x")
    assert planned("a.jpg", output="b.png") == [("a.jpg", "b.png")]
    assert planned("a.jpg", output="new/b.png") == [("a.jpg", "new/b.png")]
    assert planned("a.jpg", output="folder") == [("a.jpg", "folder/a.jpg")]
    assert planned("a.jpg", output="new/") == [("a.jpg", "new/a.jpg")]
    assert planned("a.jpg", output="new" + os.sep) == [("a.jpg", "new/a.jpg")]


def test_several_files_go_beside_themselves_or_into_a_folder() -> None:
    make("a.jpg", "b/b.jpg")
    assert planned("a.jpg", "b/b.jpg") == [
        ("a.jpg", "a.restored.jpg"),
        ("b/b.jpg", "b/b.restored.jpg"),
    ]
    assert planned("a.jpg", "b/b.jpg", output="new") == [
        ("a.jpg", "new/a.jpg"),
        ("b/b.jpg", "new/b.jpg"),
    ]


def test_a_folder_gives_its_pictures_sorted_and_no_earlier_results() -> None:
    make(
        "in/b.JPG",
        "in/a.png",
        "in/c.tiff",
        "in/a.restored.png",
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
    make("x/a.jpg", "y/a.jpg", "a.jpg")
    assert planned("x", "y", "a.jpg", output="out") == [
        ("x/a.jpg", "out/x/a.jpg"),
        ("y/a.jpg", "out/y/a.jpg"),
        ("a.jpg", "out/a.jpg"),
    ]


@pytest.mark.parametrize("name", [".", "..", "../in"])
def test_a_folder_may_be_named_by_dots(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("in/a.jpg", "in/sub/b", "a.jpg")
    monkeypatch.chdir(here / ("in/sub" if name == ".." else "in"))
    ((_, target),) = planned(name)
    assert Path(target).resolve() == here / "in.restored/a.jpg"


# Refusals, before any work


def test_nothing_is_overwritten_unless_asked_for() -> None:
    make("a.jpg", "a.restored.jpg", "b.jpg")
    with pytest.raises(OutputError, match=r"a\.restored\.jpg exists"):
        planned("a.jpg", "b.jpg")
    assert len(planned("a.jpg", "b.jpg", overwrite=True)) == 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_overwritten(overwrite: bool) -> None:
    make("a.jpg", "a.restored.jpg", "in/x.jpg")
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
    make("x/a.jpg", "y/a.jpg")
    with pytest.raises(OutputError, match=r"x/a\.jpg and y/a\.jpg would both"):
        planned("x/a.jpg", "y/a.jpg", output="out", overwrite=True)
    with pytest.raises(OutputError, match="both"):
        planned("x/a.jpg", "x/../x/a.jpg")


def test_several_results_do_not_fit_one_file() -> None:
    make("a.jpg", "b.jpg", "in/c.jpg", "file")
    for inputs in (["a.jpg", "b.jpg"], ["in"]):
        for output in ("new.jpg", "file"):
            with pytest.raises(OutputError, match="needs a folder"):
                planned(*inputs, output=output)


def test_a_folder_without_pictures_says_so() -> None:
    make("in/notes.txt")
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


def outcomes(
    jobs: list[tuple[str, str]], restore: Callable[[Photo], Restoration] = unchanged
) -> list[Outcome]:
    return list(run([Job(Path(source), Path(target)) for source, target in jobs], restore))


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


def test_faces_left_alone_are_counted_with_their_reasons() -> None:
    write_photo(Photo(picture(20, 30)), "a.png")
    failed = FailedFace(face_at(0, 0, 8), "it is odd")
    (outcome,) = outcomes([("a.png", "b.png")], lambda photo: Restoration(photo, (failed,)))
    assert outcome.left_alone == ("it is odd",)
    assert outcome.error is None
    assert not outcome.complete
    assert Path("b.png").exists()


@pytest.mark.parametrize("kind", [ConfigError, ZeroDivisionError])
def test_errors_that_are_not_the_pictures_are_not_swallowed(kind: type[Exception]) -> None:
    write_photo(Photo(picture(20, 30)), "a.png")

    def restore(photo: Photo) -> Restoration:
        raise kind("wrong")

    with pytest.raises(kind):
        outcomes([("a.png", "b.png")], restore)


def test_a_result_that_cannot_be_written_fails_alone() -> None:
    write_photo(Photo(picture(20, 30)), "a.png")
    Path("file").touch()
    first, second = outcomes([("a.png", "file/b.png"), ("a.png", "b.png")])
    assert "file" in str(first.error)
    assert second.complete
