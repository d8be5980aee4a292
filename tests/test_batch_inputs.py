"""Which pictures the arguments mean, how results are named, and how work is divided."""

import os
from io import BytesIO
from itertools import chain
from pathlib import Path

import pytest
from folders import touch
from hypothesis import given
from hypothesis import strategies as st

from cfrestore.batch import CROPS, Job, Stream, parse_shard, plan, read_list
from cfrestore.batch.naming import fill
from cfrestore.errors import ConfigError, ImageError, OutputError

pytestmark = pytest.mark.usefixtures("here")


def pairs(jobs: tuple[Job, ...]) -> list[tuple[str, str]]:
    return [
        tuple(p.as_posix() if isinstance(p, Path) else str(p) for p in (job.source, job.target))
        for job in jobs
    ]


def sayings(words: list[str], output: str | None = None, recursive: bool = True) -> list[str]:
    """The messages of planning about what it leaves out."""
    said: list[str] = []
    plan(words, output, recursive=recursive, say=said.append)
    return said


def sources(*words: str | Path, recursive: bool = False) -> list[str]:
    return [source for source, _ in pairs(plan(words, "out/", recursive=recursive))]


# Folders


def test_sub_folders_keep_their_tree_if_they_are_asked_for() -> None:
    touch("in/a.jpg", "in/x/a.jpg", "in/x/y/b.png", "in/notes/read.txt")
    assert pairs(plan(["in"], recursive=True)) == [
        ("in/a.jpg", "in.restored/a.jpg"),
        ("in/x/a.jpg", "in.restored/x/a.jpg"),
        ("in/x/y/b.png", "in.restored/x/y/b.png"),
    ]
    assert pairs(plan(["in", "in/x"], "out", recursive=True))[1:] == [
        ("in/x/a.jpg", "out/in/x/a.jpg"),
        ("in/x/y/b.png", "out/in/x/y/b.png"),
        ("in/x/a.jpg", "out/x/a.jpg"),
        ("in/x/y/b.png", "out/x/y/b.png"),
    ]
    assert sources("in") == ["in/a.jpg"]


def test_sub_folders_of_results_and_hidden_ones_are_not_searched() -> None:
    touch("in/a.jpg", "in/x.restored/a.jpg", "in/cropped_faces/a_00.png", "in/.git/a.jpg")
    touch("in/results/a.jpg", "in/x/compared/a.png", "in/x/a.inpainted.jpg", "in/x/.a.jpg")
    assert pairs(plan(["in"], "in/results", recursive=True, overwrite=True)) == [
        ("in/a.jpg", "in/results/a.jpg")
    ]


def test_folders_that_are_called_as_ours_are_skipped_aloud() -> None:
    touch("in/a.jpg", "in/compared/mine.jpg", "in/x/cropped_faces/b.jpg", "in/.git/compared/c.jpg")
    why = "folders of that name hold what earlier runs have kept; name one to have it searched"
    both = f"skipped in/compared, in/x/cropped_faces: {why}"
    assert sayings(["in"]) == sayings(["in/**/*.jpg"], "out") == [both]
    assert sayings(["in", "in/compared"], "out") == [f"skipped in/x/cropped_faces: {why}"]
    assert sayings(["in/x/../compared/", "in/a.jpg"], "out") == []
    assert sayings(["in"], recursive=False) == []
    assert sayings(["in/**/a.jpg"], "out") == []
    assert f"skipped in/x/cropped_faces: {why}" in sayings(["in"], "in/compared")
    assert sources("in", "in/compared") == ["in/a.jpg", "in/compared/mine.jpg"]


def test_missing_folders_and_points_hide_no_loss(here: Path) -> None:
    touch("a.jpg", "out/b.restored.jpg", "b.jpg")
    for output in ("new/../a.jpg", "new/../", "{dir}/{stem}/../{name}"):
        with pytest.raises(OutputError, match="an input, and inputs are never overwritten"):
            plan(["a.jpg"], output)
    with pytest.raises(OutputError, match="exists"):
        plan(["b.jpg"], "out/new/../b.restored.jpg")
    (job,) = plan(["a.jpg"], "new/../c.jpg")
    assert job.target == here / "c.jpg"


def test_a_slash_makes_a_folder_of_any_name() -> None:
    touch("a.jpg")
    assert pairs(plan(["a.jpg"], "b.png/")) == [("a.jpg", "b.png/a.jpg")]


def test_a_folder_whose_sub_folders_alone_have_pictures_says_so() -> None:
    touch("in/x/y/a.jpg", "in/a.restored.jpg", "empty/x/a.restored.jpg", "empty/compared/a.png")
    with pytest.raises(ImageError, match="^in holds no pictures; -r looks into sub-folders$"):
        plan(["in"])
    for recursive in (False, True):
        with pytest.raises(ImageError, match="^empty holds no pictures$"):
            plan(["empty"], recursive=recursive)


def test_links_in_a_circle_are_harmless_and_each_folder_comes_once() -> None:
    touch("in/a.jpg", "in/x/b.jpg", "elsewhere/c.jpg")
    Path("in/x/up").symlink_to("..")
    Path("in/x/self").symlink_to(".")
    Path("in/again").symlink_to("x")
    Path("in/other").symlink_to("../elsewhere")
    Path("in/round.jpg").symlink_to("round.jpg")
    found = sources("in", recursive=True)
    assert sorted(Path(name).name for name in found) == ["a.jpg", "b.jpg", "c.jpg", "round.jpg"]


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="root may look everywhere")
def test_a_sub_folder_that_cannot_be_looked_at_fails_alone() -> None:
    touch("in/a.jpg", "in/closed/b.jpg")
    Path("in/closed").chmod(0)
    assert sources("in", recursive=True) == ["in/a.jpg", "in/closed"]


def test_a_folder_that_cannot_be_listed_stands_among_the_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    touch("in/a.jpg", "in/closed/b.jpg")
    listed = Path.iterdir

    def iterdir(folder: Path):
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert sources("in", recursive=True) == ["in/a.jpg", "in/closed"]
    with pytest.raises(ImageError, match=r"in/closed cannot be read: Permission denied"):
        plan(["in/closed"])


def test_a_picture_that_may_not_be_looked_at_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    touch("in/a.jpg", "in/closed/b.jpg")
    looked = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        if path == Path("in/closed/b.jpg"):
            raise PermissionError(13, "Permission denied", str(path))
        return looked(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert sources("in", recursive=True) == ["in/a.jpg", "in/closed/b.jpg"]


# Patterns


def test_patterns_that_name_nothing_are_expanded_sorted() -> None:
    touch("b.jpg", "a.jpg", "c.png", "a.restored.jpg", ".d.jpg", "text.txt")
    Path("folder.jpg").mkdir()
    assert sources("*.jpg") == ["a.jpg", "b.jpg"]
    assert sources("*") == ["a.jpg", "b.jpg", "c.png"]
    assert sources("[bc].*") == ["b.jpg", "c.png"]
    assert sources("?.png") == ["c.png"]


def test_what_exists_is_no_pattern_and_a_path_never_is() -> None:
    touch("[a].jpg", "a.jpg")
    assert sources("[a].jpg") == ["[a].jpg"]
    assert sources(Path("?.jpg")) == ["?.jpg"]


def test_two_stars_go_through_folders_and_the_tree_is_kept() -> None:
    touch(
        "in/a.jpg", "in/x/y/a.jpg", "in/x.restored/a.jpg", "in/.x/a.jpg", "in/cropped_faces/b.jpg"
    )
    Path("in/x/round").symlink_to("..")
    assert pairs(plan(["in/**/*.jpg"], "out")) == [
        ("in/a.jpg", "out/a.jpg"),
        ("in/x/y/a.jpg", "out/x/y/a.jpg"),
    ]
    assert plan(["in/**"], "out") == plan(["in/**/*.jpg"], "out")
    assert pairs(plan(["in/*/y/*.jpg"], "out")) == [("in/x/y/a.jpg", "out/x/y/a.jpg")]
    assert pairs(plan(["in/**/*.jpg"])) == [
        ("in/a.jpg", "in/a.restored.jpg"),
        ("in/x/y/a.jpg", "in/x/y/a.restored.jpg"),
    ]


def test_an_absolute_pattern(here: Path) -> None:
    touch("in/a.jpg")
    assert pairs(plan([f"{here}/i?/*.jpg"], "out")) == [(f"{here}/in/a.jpg", "out/in/a.jpg")]


@pytest.mark.parametrize("pattern", ["*.jpg", "nowhere/**/*.jpg", "[abc]"])
def test_a_pattern_without_pictures_says_so(pattern: str) -> None:
    with pytest.raises(ImageError, match="matches no pictures"):
        plan([pattern])
    assert plan([pattern], isolate=True) == ()


# Lists


def test_lists_hold_names_that_mean_just_themselves() -> None:
    lines = b"a.jpg\n\n two words.jpg\r\n*.jpg\n-\nnot utf-8 \xff.jpg"
    names = read_list(BytesIO(lines))
    assert [os.fsencode(name) for name in names] == [
        b"a.jpg",
        b" two words.jpg",
        b"*.jpg",
        b"-",
        b"not utf-8 \xff.jpg",
    ]
    touch("a.jpg")
    assert [job.source for job in plan(names, "out")] == list(names)
    ended = read_list(BytesIO(b"two\nlines.jpg\0b.jpg\0"), null=True)
    assert ended == (Path("two\nlines.jpg"), Path("b.jpg"))
    assert read_list(BytesIO(b"")) == ()


def test_zero_bytes_in_a_list_of_lines_are_named() -> None:
    """As `find -print0` writes them, where -0 was forgotten."""
    with pytest.raises(ConfigError, match="the list of pictures has zero bytes, which -0 takes"):
        read_list(BytesIO(b"a.jpg\0b.jpg\0"))


def test_a_list_that_cannot_be_read_is_an_image_error() -> None:
    closed = BytesIO()
    closed.close()
    with pytest.raises(ImageError, match="list"):
        read_list(closed)


def listed(*names: str, output: str | None = "out/") -> list[tuple[str, str]]:
    return pairs(plan([], output, listed=[Path(name) for name in names]))


def test_listed_names_keep_their_folders_below_the_common_one(here: Path) -> None:
    names = ("in/a/x.jpg", "in/b/x.jpg", "in/y.jpg")
    touch(*names, "z.jpg")
    expected = ["out/a/x.jpg", "out/b/x.jpg", "out/y.jpg"]
    assert [target for _, target in listed(*names)] == expected
    assert [target for _, target in listed(*(f"{here}/{name}" for name in names))] == expected
    assert [target for _, target in listed(*(f"in/../{name}" for name in names))] == expected
    assert listed("in/a/x.jpg", "z.jpg")[0][1] == "out/in/a/x.jpg"
    assert listed("in/a/x.jpg") == [("in/a/x.jpg", "out/x.jpg")]
    assert listed("in/a/x.jpg", output=None) == [("in/a/x.jpg", "in/a/x.restored.jpg")]
    jobs = plan([], "out/", listed=[Path(name) for name in names], suffix="new")
    assert pairs(jobs)[0][1] == "out/a/x_new.jpg"
    assert jobs[0].manifest == Path("out/.cfrestore.jsonl")
    jobs = plan([], in_place=True, listed=[Path(name) for name in names])
    assert jobs[0].manifest == Path("in/a/.cfrestore.jsonl")


def test_listed_names_without_a_common_folder_must_differ(here: Path) -> None:
    touch("in/a/x.jpg", "in/b/x.jpg")
    for names in (("in/a/x.jpg", f"{here}/in/b/x.jpg"), ("in/a/x.jpg", "in/../in/b/x.jpg")):
        with pytest.raises(OutputError, match=r"would both be written to out/x\.jpg"):
            listed(*names)


def test_listed_names_in_the_folder_of_results_are_skipped_aloud(here: Path) -> None:
    touch("in/a.jpg", "in/b/a.jpg", "out/a.jpg", "out/b/a.jpg", "output/c.jpg")
    names = ["in/a.jpg", "in/b/a.jpg", "out/a.jpg", f"{here}/out/b/a.jpg", "output/c.jpg"]
    said: list[str] = []
    found = plan([], "./out/", listed=[Path(n) for n in names], say=said.append, overwrite=True)
    assert [job.source.as_posix() for job in found] == ["in/a.jpg", "in/b/a.jpg", "output/c.jpg"]  # type: ignore[union-attr]
    assert said == ["skipped 2 listed names in out, which is where results go"]
    found = plan([], "./", listed=[Path("in/a.jpg")], suffix="new", say=said.append)
    assert pairs(found) == [("in/a.jpg", "a_new.jpg")]
    assert len(said) == 1


# Streams


def test_stdin_goes_to_stdout_or_where_it_is_told() -> None:
    assert pairs(plan(["-"])) == pairs(plan(["-"], "-")) == [("<stdin>", "<stdout>")]
    assert pairs(plan(["-"], "a.png")) == [("<stdin>", "a.png")]
    assert pairs(plan(["-"], "{stem}.png")) == [("<stdin>", "stdin.png")]
    assert pairs(plan(["a.jpg"], "-")) == [("a.jpg", "<stdout>")]
    assert plan(["-"])[0].source is Stream.STDIN
    assert pairs(plan([Path("-")])) == [("-", "-.restored")]


@pytest.mark.parametrize(
    ("words", "output", "match"),
    [
        (["-"], "out/", "has no name"),
        (["-", "a.jpg"], "out", "has no name"),
        (["-", "-"], None, "<stdin> is for one picture"),
        (["a.jpg", "b.jpg"], "-", "<stdout> is for one picture"),
        (["-", "a.jpg"], "-", "<stdout> is for one picture"),
    ],
)
def test_streams_take_one_picture(words: list[str], output: str | None, match: str) -> None:
    touch("a.jpg", "b.jpg", "out/x")
    with pytest.raises(OutputError, match=match):
        plan(words, output)


def test_nothing_lies_beside_a_stream() -> None:
    touch("a.jpg")
    with pytest.raises(ConfigError, match="no folder beside <stdout> for cropped_faces"):
        plan(["a.jpg"], "-", kept=[CROPS])


# Templates


def test_a_template_names_every_result() -> None:
    touch("in/a.b.jpg", "in/x/c.png")
    planned = plan(["in"], "out/{dir}/{stem}_{w}.{ext}", recursive=True, fidelity=0.70)
    assert pairs(planned) == [
        ("in/a.b.jpg", "out/in/a.b_0.7.jpg"),
        ("in/x/c.png", "out/in/x/c_0.7.png"),
    ]
    assert pairs(plan(["in"], "{dir}/new/{name}"))[0][1] == "in/new/a.b.jpg"
    assert pairs(plan(["in"], "new{{{w}}}/", fidelity=1))[0][1] == "new{1}/a.b.jpg"
    assert pairs(plan(["in"], "{stem}.{ext}", format="png"))[0][1] == "a.b.png"
    assert pairs(plan(["in"], Path("{stem}")))[0][1] == "{stem}/a.b.jpg"


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{nothing}.png", r"\{nothing\} .* known are \{stem\}, \{ext\}, \{name\}, \{dir\}, and"),
        ("{}.png", "unknown"),
        ("{0}.png", "unknown"),
        ("{w}.png", r"\{w\} in \{w\}.png is unknown"),
        ("{stem!r}", r"\{stem!r\} in .* is unknown"),
        ("{stem:>9}", r"\{stem:>9\} in .* is unknown"),
        ("{stem:9}", "unknown"),
        ("{stem.upper}", "unknown"),
        ("{stem", "single brace"),
        ("stem}", "single brace"),
    ],
)
def test_a_template_that_makes_no_sense_is_refused(template: str, match: str) -> None:
    touch("a.jpg")
    with pytest.raises(ConfigError, match=match):
        plan(["a.jpg"], template)


def test_two_results_of_one_name_are_refused_before_work() -> None:
    touch("a.jpg", "a.png")
    with pytest.raises(OutputError, match=r"a\.jpg and a\.png would both be written to a_new"):
        plan(["a.jpg", "a.png"], "{stem}_new")
    with pytest.raises(OutputError, match="takes no suffix"):
        plan(["a.jpg"], "{stem}", suffix="x")
    with pytest.raises(OutputError, match="is an input"):
        plan(["a.jpg"], "{name}", overwrite=True)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXTS)
def test_doubled_braces_stand_for_braces(text: str) -> None:
    assert fill(text.replace("{", "{{").replace("}", "}}"), {}) == text


@given(
    st.lists(st.tuples(TEXTS, st.sampled_from(["a", "b"]))),
    st.fixed_dictionaries({"a": TEXTS, "b": TEXTS}),
)
def test_fields_are_replaced_by_their_values(
    parts: list[tuple[str, str]], fields: dict[str, str]
) -> None:
    template = "".join(
        f"{text.replace('{', '{{').replace('}', '}}')}{{{field}}}" for text, field in parts
    )
    assert fill(template, fields) == "".join(text + fields[field] for text, field in parts)


@given(TEXTS)
def test_no_template_gives_anything_but_text_or_a_config_error(template: str) -> None:
    try:
        assert isinstance(fill(template, {"stem": "x"}), str)
    except ConfigError as error:
        assert "{" in template or "}" in template
        assert str(error)


# Formats


def test_a_format_gives_the_extension() -> None:
    touch("in/a.jpg", "in/b.png")
    assert pairs(plan(["in"], format="png")) == [
        ("in/a.jpg", "in.restored/a.png"),
        ("in/b.png", "in.restored/b.png"),
    ]
    assert pairs(plan(["in/a.jpg"], format="JPEG")) == [("in/a.jpg", "in/a.restored.jpeg")]
    assert pairs(plan(["in/a.jpg"], format=".tif", suffix="x")) == [("in/a.jpg", "in/a_x.tif")]
    assert pairs(plan(["in/a.jpg"], "b.dat", format="png")) == [("in/a.jpg", "b.dat")]
    assert plan(["in/a.jpg"], format="png")[0].format == "png"
    with pytest.raises(ConfigError, match="format 'docx' is unknown"):
        plan(["in/a.jpg"], format="docx")
    touch("in/b.jpg")
    with pytest.raises(OutputError, match="both"):
        plan(["in"], format="png")


# In place


def test_in_place_the_picture_is_the_target() -> None:
    touch("in/a.jpg", "b.jpg")
    jobs = plan(["in", "b.jpg"], in_place=True, recursive=True)
    assert pairs(jobs) == [("in/a.jpg", "in/a.jpg"), ("b.jpg", "b.jpg")]
    assert all(job.in_place for job in jobs)


def test_in_place_two_names_of_one_picture_are_refused() -> None:
    touch("a.jpg")
    Path("b.jpg").symlink_to("a.jpg")
    with pytest.raises(OutputError, match="would both be written"):
        plan(["a.jpg", "b.jpg"], in_place=True)


@pytest.mark.parametrize("words", [{"output": "out"}, {"suffix": "x"}, {"format": "png"}])
def test_in_place_nothing_is_named(words: dict[str, str]) -> None:
    touch("a.jpg")
    with pytest.raises(ConfigError, match="in place"):
        plan(["a.jpg"], in_place=True, **words)
    with pytest.raises(OutputError, match="<stdin> is no file"):
        plan(["-"], in_place=True)


# Manifests


@pytest.mark.parametrize(
    ("words", "output", "folder"),
    [
        (["in"], None, "in.restored"),
        (["in"], "out", "out"),
        (["in/a.jpg"], "out/", "out"),
        (["in/*.jpg"], "out", "out"),
        (["in"], "out/{w}/{name}", "out"),
        (["in/a.jpg"], None, None),
        (["in/*.jpg"], None, None),
        (["in/a.jpg"], "b.jpg", None),
        (["in/a.jpg"], "-", None),
        (["in"], "{dir}/{stem}_new.jpg", None),
        (["in"], "/{stem}_new.jpg", None),
        (["-"], "out/{stem}.jpg", None),
    ],
)
def test_manifests_lie_in_folders_of_results(
    words: list[str], output: str | None, folder: str | None
) -> None:
    touch("in/a.jpg")
    (job,) = plan(words, output, fidelity=0.5)
    assert (job.manifest and job.manifest.as_posix()) == (folder and f"{folder}/.cfrestore.jsonl")


def test_in_place_the_folder_that_was_asked_for_has_the_manifest() -> None:
    touch("in/x/a.jpg")
    for word in ("in", "in/**/*.jpg"):
        (job,) = plan([word], in_place=True, recursive=True)
        assert job.manifest == Path("in/.cfrestore.jsonl")
    (job,) = plan(["in/x/a.jpg"], in_place=True)
    assert job.manifest == Path("in/x/.cfrestore.jsonl")


# Shards


@given(count=st.integers(1, 9))
def test_shards_are_disjoint_and_together_the_whole(
    tmp_path_factory: pytest.TempPathFactory, count: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    for name in ("a", "b", "x/a", "x/b", "größer", "c", "d", "e"):
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / f"{name}.jpg").touch()

    def planned(shard: tuple[int, int] | None) -> list[Path]:
        jobs = plan([folder / "in"], folder / "out", recursive=True, shard=shard)
        return [job.source for job in jobs if isinstance(job.source, Path)]

    parts = [planned((index, count)) for index in range(1, count + 1)]
    assert sorted(chain.from_iterable(parts)) == planned(None)
    assert parts == [planned((index, count)) for index in range(1, count + 1)]


def test_a_shard_depends_on_the_names_below_its_folder_alone(here: Path) -> None:
    names = [f"{letter}.jpg" for letter in "abcdefghij"]
    touch(*[f"in/{name}" for name in names], *[f"mount/photos/{name}" for name in names])
    touch("mount/photos/new.jpg")
    one = [source.split("/")[-1] for source, _ in pairs(plan(["in"], "out", shard=(1, 3)))]
    two = [job.source.name for job in plan([here / "mount/photos"], "out", shard=(1, 3))]  # type: ignore[union-attr]
    assert one == [name for name in two if name != "new.jpg"]
    assert 0 < len(one) < 10


def test_each_shard_has_a_manifest_of_its_own_and_may_be_empty() -> None:
    touch("in/a.jpg")
    parts = [plan(["in"], "out", shard=(index, 2)) for index in (1, 2)]
    assert sorted(map(len, parts)) == [0, 1]
    (job,) = parts[0] + parts[1]
    assert str(job.manifest) in ("out/.cfrestore-1-of-2.jsonl", "out/.cfrestore-2-of-2.jsonl")


def test_collisions_are_found_in_every_shard_but_files_of_the_others_do_not_matter() -> None:
    touch("x/a.jpg", "y/a.jpg", "in/a.jpg", "in/b.jpg", "in/c.jpg", "in/d.jpg")
    for shard in ((1, 2), (2, 2)):
        with pytest.raises(OutputError, match="both"):
            plan(["x/a.jpg", "y/a.jpg"], "out", shard=shard)
    first, second = (plan(["in"], "out", shard=(index, 2)) for index in (1, 2))
    touch(*[str(job.target) for job in first])
    assert plan(["in"], "out", shard=(2, 2)) == second
    with pytest.raises(OutputError, match="exists"):
        plan(["in"], "out", shard=(1, 2))


def test_shards_are_written_as_fractions() -> None:
    assert parse_shard("2/4") == (2, 4)
    for text in ("", "2", "-1/4", "1/4/4", "a/b", "1.5/4"):
        with pytest.raises(ConfigError, match="1/N to N/N"):
            parse_shard(text)
    for text in ("0/4", "5/4", "1/0"):
        with pytest.raises(ConfigError, match=f"1/N to N/N, found {text}"):
            plan([], shard=parse_shard(text))


# Isolation


def test_what_would_be_refused_is_planned_with_its_reason() -> None:
    touch("in/a.jpg", "in/b.jpg", "in/b.png", "out/a.jpg")
    jobs = plan(["in"], "out/{stem}.jpg", isolate=True)
    assert [(str(job.source), bool(job.refusal)) for job in jobs] == [
        ("in/a.jpg", True),
        ("in/b.jpg", False),
        ("in/b.png", True),
    ]
    assert jobs[0].refusal == "out/a.jpg exists; only --overwrite replaces it"
    assert "both" in str(jobs[2].refusal)
