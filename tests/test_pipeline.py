import json
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from stubs import (
    LeftParser,
    StubDetector,
    StubNetwork,
    face_at,
    picture,
    save_network,
    small_network,
)

from cfrestore import device, pipeline, restore, weights
from cfrestore.checkpoint import read_checkpoint, read_metadata
from cfrestore.detect import Face
from cfrestore.device import Precision
from cfrestore.errors import ConfigError, WeightsError
from cfrestore.image import Photo
from cfrestore.options import Options
from cfrestore.pipeline import Pipeline, load_pipeline
from cfrestore.restore import FailedFace, RestoredFace
from cfrestore.select import SkippedFace
from cfrestore.task import TaskName, find_task

BROKEN = Face(np.zeros(4, np.float32), 0.9, np.full((5, 2), 20, np.float32))


def negative() -> StubNetwork:
    return StubNetwork(lambda x: -x)


def gray_picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.repeat(picture(height, width)[..., :1], 3, axis=2)


# Whole photographs


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("size", [(40, 57), (1, 1), (3, 500)])
def test_the_size_is_exactly_scale_times_the_input(scale: int, size: tuple[int, int]) -> None:
    restore = Pipeline(negative(), StubDetector(face_at(4, 4, 32)))
    result = restore(Photo(picture(*size)), Options(upscale=scale))
    assert result.photo.size == (size[0] * scale, size[1] * scale)


def test_latent_adain_is_the_networks_to_say_unless_the_pipeline_does() -> None:
    network = StubNetwork()
    own = Pipeline(network, StubDetector(face_at(4, 4, 32)))
    says = network.config.match_statistics
    for asked, matched in ((None, says), (says, says), (not says, not says)):
        restore = replace(own, match_statistics=asked)
        restore(Photo(picture(40, 40)))
        assert network.matched is matched
        assert (restore.restoring().settings == own.restoring().settings) is (matched is says)
    assert network.config.match_statistics is says


def test_a_face_is_restored_and_the_rest_untouched() -> None:
    photo = Photo(picture(100, 140))
    result = Pipeline(negative(), StubDetector(face_at(60, 20, 64)))(photo)
    (face,) = result.restored
    assert result.failed == ()
    assert face.crop.shape == (32, 32, 3)
    changed = (result.photo.pixels != photo.pixels).any(axis=2)
    assert changed[30:70, 75:110].mean() > 0.9
    changed[20:84, 60:124] = False
    assert not changed.any()
    middle = result.photo.pixels[52, 92].astype(int) + photo.pixels[52, 92]
    assert np.abs(middle - 255).max() < 40


def test_no_face_is_a_value_and_the_photograph_comes_back() -> None:
    photo = Photo(picture(50, 60), icc=b"profile", format="PNG")
    result = Pipeline(negative(), StubDetector())(photo)
    assert result.faces == ()
    assert np.array_equal(result.photo.pixels, photo.pixels)
    assert result.photo.icc == b"profile"


def test_fidelity_reaches_the_network_and_changes_pixels() -> None:
    photo, detector = Photo(picture(64, 64)), StubDetector(face_at(10, 10, 40))
    restore = Pipeline(small_network(), detector)
    at_zero, at_one = (restore(photo, Options(fidelity=w)) for w in (0, 1))
    assert at_zero.restored[0].fidelity == 0
    assert not np.array_equal(at_zero.photo.pixels, at_one.photo.pixels)
    again = restore(photo, Options(fidelity=1))
    assert np.array_equal(again.photo.pixels, at_one.photo.pixels)


def test_sixteen_bits_and_alpha_and_metadata_are_kept() -> None:
    pixels = picture(80, 90, np.uint16)
    alpha = np.arange(80 * 90, dtype=np.uint16).reshape(80, 90) * 9
    photo = Photo(pixels, alpha, icc=b"i", exif=b"Exif\0\0e", xmp=b"x", format="TIFF")
    detector = StubDetector(face_at(20, 20, 48))
    result = Pipeline(negative(), detector)(photo)
    assert detector.seen[0].dtype == np.uint8
    assert result.photo.pixels.dtype == np.uint16
    outside = np.ones((80, 90), bool)
    outside[20:68, 20:68] = False
    assert np.array_equal(result.photo.pixels[outside], pixels[outside])
    assert np.abs(result.photo.pixels[44, 44].astype(int) + pixels[44, 44] - 65535).max() < 10000
    assert result.photo.alpha is alpha
    found = result.photo
    assert (found.icc, found.exif, found.xmp, found.format) == (b"i", b"Exif\0\0e", b"x", "TIFF")


def test_alpha_grows_with_the_picture() -> None:
    alpha = np.zeros((20, 30), np.uint8)
    alpha[:, 15:] = 255
    photo = Photo(picture(20, 30), alpha)
    result = Pipeline(negative(), StubDetector())(photo, Options(upscale=2))
    assert result.photo.alpha is not None
    assert result.photo.alpha.shape == (40, 60)
    assert (result.photo.alpha[:, :28] == 0).all()
    assert (result.photo.alpha[:, 32:] == 255).all()


@pytest.mark.parametrize("aligned", [False, True])
def test_gray_pictures_stay_exactly_gray(aligned: bool) -> None:
    # The face reaches over the border, where the crop's colour is not neutral.
    painter = StubNetwork(lambda x: x * torch.tensor([0.4, -0.5, 0.9]).view(3, 1, 1))
    restore = Pipeline(painter, StubDetector(face_at(-10, -10, 50)))
    photo = Photo(gray_picture(60, 60), format="JPEG")
    result = restore(photo, Options(aligned=aligned))
    assert len(result.restored) == 1
    assert np.ptp(result.photo.pixels, axis=2).max() == 0
    assert not np.array_equal(result.photo.pixels, photo.pixels)


def test_colour_pictures_get_colour_faces() -> None:
    result = Pipeline(StubNetwork(), StubDetector(face_at(8, 8, 32)))(Photo(picture(48, 48)))
    assert np.ptp(result.restored[0].crop, axis=2).max() > 20


def test_a_face_that_cannot_be_aligned_is_named_and_the_others_proceed() -> None:
    detector = StubDetector(face_at(0, 0, 32), BROKEN, face_at(40, 40, 32))
    result = Pipeline(negative(), detector)(Photo(picture(80, 80)))
    assert [type(face) for face in result.faces] == [RestoredFace, FailedFace, RestoredFace]
    (failed,) = result.failed
    assert failed.face is BROKEN
    assert failed.reason
    assert [face.aligned.face for face in result.restored] == [detector.faces[0], detector.faces[2]]


def test_only_the_chosen_faces_are_restored() -> None:
    faces = (face_at(0, 0, 32), face_at(44, 44, 32), BROKEN)
    restore = Pipeline(negative(), StubDetector(*faces))
    photo = Photo(picture(80, 80))
    result = restore(photo, Options(faces=(1, 5)))
    assert [type(face) for face in result.faces] == [SkippedFace, RestoredFace, SkippedFace]
    assert [face.face for face in result.skipped] == [faces[0], BROKEN]
    assert result.failed == ()
    assert result.missing == (5,)
    assert [(index, face.aligned.face) for index, face in result.numbered] == [(1, faces[1])]
    changed = (result.photo.pixels != photo.pixels).any(axis=2)
    assert changed[50:70, 50:70].mean() > 0.9
    assert not changed[:40, :40].any()
    assert len(restore(photo, Options(faces="largest", min_face=33)).skipped) == 3


def test_frames_are_drawn_around_the_restored_faces_alone() -> None:
    restore = Pipeline(negative(), StubDetector(face_at(10, 10, 40), face_at(100, 20, 60)))
    photo = Photo(picture(120, 200, np.uint16))
    plain, framed = (
        restore(photo, Options(upscale=2, faces=(1,), draw_box=draw)).photo.pixels
        for draw in (False, True)
    )
    assert framed.dtype == np.uint16
    y, x = np.nonzero((plain != framed).any(axis=2))
    assert abs(np.array([x.min(), x.max(), y.min(), y.max()]) - (200, 320, 40, 160)).max() <= 4


def test_a_failed_network_leaves_the_photograph_as_it_was() -> None:
    network = StubNetwork(lambda x: x * float("nan"))
    photo = Photo(picture(64, 64))
    result = Pipeline(network, StubDetector(face_at(8, 8, 40)))(photo)
    assert result.restored == ()
    assert len(result.failed) == 1
    assert np.array_equal(result.photo.pixels, photo.pixels)


def test_the_parser_decides_what_is_pasted() -> None:
    photo = Photo(picture(64, 64))
    detector = StubDetector(face_at(0, 0, 64))
    result = Pipeline(negative(), detector, parser=LeftParser())(photo)  # type: ignore[arg-type]
    changed = (result.photo.pixels != photo.pixels).any(axis=2)
    assert changed[10:54, 10:28].mean() > 0.9
    assert not changed[:, 36:].any()
    none = Pipeline(negative(), StubDetector(), parser=LeftParser())  # type: ignore[arg-type]
    assert np.array_equal(none(photo).photo.pixels, photo.pixels)


# Aligned pictures


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (20, 70), (9, 9)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_aligned_picture_becomes_one_square_face(size: tuple[int, int], dtype: type) -> None:
    detector = StubDetector()
    alpha = np.full(size, np.iinfo(dtype).max, dtype)
    photo = Photo(picture(*size, dtype=dtype), alpha)
    result = Pipeline(negative(), detector)(photo, Options(aligned=True))
    assert detector.seen == []
    assert result.photo.size == (32, 32)
    assert result.photo.pixels.dtype == dtype
    assert result.photo.alpha is not None
    assert (result.photo.alpha == np.iinfo(dtype).max).all()
    unit = np.iinfo(dtype).max // 255
    assert np.array_equal(result.photo.pixels, result.restored[0].crop.astype(dtype) * unit)


def test_an_aligned_picture_of_the_networks_size_is_not_resampled() -> None:
    photo = Photo(picture(32, 32))
    result = Pipeline(StubNetwork(), StubDetector())(photo, Options(aligned=True))
    assert np.array_equal(result.photo.pixels, photo.pixels)
    (face,) = result.restored
    assert np.array_equal(face.aligned.to_crop, np.eye(2, 3))
    np.testing.assert_allclose(face.aligned.face.landmarks, face_at(0, 0, 32).landmarks, atol=1e-4)


def test_an_aligned_picture_cannot_be_enlarged() -> None:
    with pytest.raises(ConfigError, match="upscale"):
        Pipeline(negative(), StubDetector())(
            Photo(picture(32, 32)), Options(aligned=True, upscale=2)
        )


# Loading


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with shipped weights of 32 px and an empty folder for published ones."""
    package = tmp_path / "cfrestore"
    (package / "_shipped").mkdir(parents=True)
    save_network(package / "_shipped/compact.safetensors", small_network())
    monkeypatch.setattr(weights.store, "PACKAGE", package)
    monkeypatch.setattr(pipeline, "load_detector", lambda name, device, threshold: StubDetector())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CFRESTORE_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path


def test_w_alone_is_no_options() -> None:
    restore = Pipeline(StubNetwork(), StubDetector())
    for method in (restore, restore.colorize, partial(restore.inpaint, holes=None)):
        with pytest.raises(TypeError, match="options must be Options, found float"):
            method(Photo(picture(40, 50)), options=0.7)  # type: ignore[operator]
    with pytest.raises(TypeError, match="holes must be a numpy array, found Options"):
        restore.inpaint(Photo(picture(40, 50)), Options())  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
def test_numbers_of_other_libraries_are_settings_as_pythons_own(number: float) -> None:
    restore = Pipeline(StubNetwork(), StubDetector())
    options = Options(fidelity=number, samples=1, temperature=number)
    settings = Pipeline(small_network(), restore.detector).restoring(options).settings
    assert json.loads(json.dumps(settings))["fidelity"] == 0.5
    assert settings["temperature"] == 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": None},
        {"model": b"compact"},
        {"detector": None},
        {"detector": 3},
        {"detector": lambda pixels: ()},  # a detector has a name
        {"threshold": "0.5"},
        {"threshold": True},
        {"parser": 3},
        {"parser": ""},
        {"compile": "no"},
        {"aligned": "no"},
        {"upsampling": None},
        {"upsampling": "compact"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_arguments_of_other_types_are_refused_by_name(wrong: dict[str, object]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"{name} must .* found ") as refused:
        load_pipeline(**{"model": "compact", "detector": "mtcnn", "device": "cpu", **wrong})  # type: ignore[arg-type]
    assert repr(value) in str(refused.value)


def test_a_model_without_a_name_is_no_folder(machine: Path) -> None:
    with pytest.raises(WeightsError, match="^model '' is neither a file nor one of auto"):
        load_pipeline("", device="cpu")


def test_a_detector_of_ones_own_is_taken_and_named(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "load_detector", None)
    own = StubDetector(face_at(4, 4, 32))
    loaded = load_pipeline("compact", own, "cpu")
    assert len(loaded(Photo(picture(48, 48))).restored) == 1
    assert loaded.restoring().settings["detector"] == "stub"
    assert set(loaded.files) == {"model"}
    other = StubDetector()
    other.name = "other"
    assert replace(loaded, detector=other).restoring().settings["detector"] == "other"
    assert load_pipeline("compact", own, "cpu", aligned=True).detector is None
    with pytest.raises(ConfigError, match="has its own threshold"):
        load_pipeline("compact", own, "cpu", threshold=0.5)


def test_a_pipeline_does_only_what_it_was_loaded_for(machine: Path) -> None:
    loaded = load_pipeline("compact", device="cpu")
    refused = r"loaded for restoration; load_pipeline\(task='{}'\) loads one for {}"
    with pytest.raises(ConfigError, match=refused.format("colorization", "colorization")):
        loaded.colorize(Photo(picture(48, 48)))
    with pytest.raises(ConfigError, match=refused.format("inpainting", "inpainting")):
        loaded.inpaint(Photo(picture(48, 48)))
    assert loaded(Photo(picture(48, 48))).faces == ()


def test_auto_takes_the_compact_weights_and_says_why(machine: Path) -> None:
    restore = load_pipeline(device="cpu")
    assert restore.crop_size == 32
    assert restore.model_name == "compact (32 px)"
    assert restore.device == torch.device("cpu")
    assert restore.parser is None
    (note,) = restore.notes
    assert "codeformer.pth" in note
    assert str(machine / "home") in note
    assert load_pipeline("compact", device=torch.device("cpu")).notes == ()


def test_auto_takes_the_published_weights_where_they_are(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = machine / "home/codeformer.pth"
    save_network(path, small_network())
    with pytest.raises(WeightsError, match="SHA-256"):
        load_pipeline(device="cpu")
    monkeypatch.setattr(
        weights.store, "known_sha256", lambda path: weights.weight_file("codeformer").sha256
    )
    for model in ("auto", "published"):
        restore = load_pipeline(model, device="cpu")
        assert restore.model_name == "published (32 px)"
        assert "non-commercial" in restore.notes[0]


@pytest.mark.parametrize(
    ("detector", "found", "note"),
    [
        ("auto", "retinaface-resnet50", "Without parsing_parsenet.pth, a whole soft square"),
        ("mtcnn", "mtcnn", "Without parsing_parsenet.pth, a whole soft square"),
        (
            "auto",
            "mtcnn",
            "Without detection_Resnet50_Final.pth and parsing_parsenet.pth, MTCNN finds the "
            "faces and a whole soft square",
        ),
    ],
)
def test_published_weights_without_their_companions_are_told(
    machine: Path, monkeypatch: pytest.MonkeyPatch, detector: str, found: str, note: str
) -> None:
    save_network(machine / "home/codeformer.pth", small_network())
    monkeypatch.setattr(
        weights.store, "known_sha256", lambda path: weights.weight_file("codeformer").sha256
    )
    stub = StubDetector()
    stub.name = found
    monkeypatch.setattr(pipeline, "load_detector", lambda name, device, threshold: stub)
    notes = load_pipeline("published", detector, "cpu").notes
    assert len(notes) == 2
    assert notes[1].startswith(note)
    assert load_pipeline("compact", detector, "cpu").notes == ()


@pytest.mark.parametrize("task", ["restoration", "colorization"])
def test_what_aligned_faces_do_not_need_is_neither_loaded_nor_missed(
    machine: Path, monkeypatch: pytest.MonkeyPatch, task: TaskName
) -> None:
    def refuse(*values: object, **others: object) -> None:
        raise AssertionError("nothing is searched for or pasted")

    row = weights.weight_file(find_task(task).weights)
    save_network(machine / "home" / row.file, small_network())
    monkeypatch.setattr(weights.store, "known_sha256", lambda path: row.sha256 or "0" * 64)
    monkeypatch.setattr(pipeline, "load_detector", refuse)
    monkeypatch.setattr(pipeline, "FaceParser", refuse)
    loaded = load_pipeline("published", device="cpu", task=task, aligned=True)
    assert len(loaded.notes) == 1
    assert (loaded.detector, loaded.detector_name, loaded.parser) == (None, None, None)
    for_all = replace(loaded, task=None)
    assert for_all.restoring(Options(aligned=True)).settings["detector"] is None
    procedures = (for_all.restoring, for_all.inpainting, for_all.colorizing)
    for make in procedures:
        make(options=Options(aligned=True))
        with pytest.raises(ConfigError, match="loaded for aligned faces"):
            make()
    result = for_all(Photo(picture(48, 48)), Options(aligned=True))
    assert result.photo.size == (32, 32)


def test_published_weights_that_are_absent_are_an_error_that_helps(machine: Path) -> None:
    with pytest.raises(WeightsError) as error:
        load_pipeline("published", device="cpu")
    text = str(error.value)
    assert "codeformer.pth" in text
    assert str(machine / "home") in text
    assert "https://github.com/sczhou/CodeFormer/releases" in text


@pytest.mark.parametrize("task", ["inpainting", "colorization"])
def test_other_tasks_take_their_own_published_weights_and_have_no_compact_ones(
    machine: Path, monkeypatch: pytest.MonkeyPatch, task: TaskName
) -> None:
    for model in ("auto", "published"):
        with pytest.raises(WeightsError, match=f"codeformer_{task}.pth was not found"):
            load_pipeline(model, device="cpu", task=task)
    with pytest.raises(ConfigError, match=f"no compact weights for {task}"):
        load_pipeline("compact", device="cpu", task=task)
    path = save_network(machine / f"home/codeformer_{task}.pth", small_network())
    monkeypatch.setattr(
        weights.store,
        "known_sha256",
        lambda path: weights.weight_file(f"codeformer-{task}").sha256 or "0" * 64,
    )
    for model in ("auto", "published"):
        loaded = load_pipeline(model, device="cpu", task=task)
        assert loaded.model_name == "published (32 px)"
        assert ("parsing_parsenet" in " ".join(loaded.notes)) is (task == "colorization")
    assert load_pipeline(path, device="cpu", task=task).model_name == path.name + " (32 px)"


def test_what_a_file_says_of_its_licence_is_passed_on(tmp_path: Path) -> None:
    plain = save_network(tmp_path / "plain.safetensors", small_network())
    state, metadata = read_checkpoint(plain)
    save_file(state, tmp_path / "a.safetensors", metadata={**metadata, "licence": "Free as air"})
    path = tmp_path / "a.safetensors"
    assert load_pipeline(path, device="cpu").notes == (f"{path} says of its licence: Free as air.",)
    assert load_pipeline(plain, device="cpu").notes == ()
    torch.save(state, tmp_path / "a.pth")
    assert read_metadata(tmp_path / "a.pth") == {}


@pytest.mark.parametrize("name", ["auto", "fp32", "bf16", "fp16"])
def test_the_precision_reaches_the_painting(
    machine: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    loaded = load_pipeline(device="cpu", precision=name)
    assert loaded.execution.precision.value == {"auto": "fp32"}.get(name, name)
    asked = []
    monkeypatch.setattr(
        restore, "reduced", lambda _, precision: asked.append(precision) or nullcontext()
    )
    loaded = replace(loaded, detector=StubDetector(face_at(4, 4, 32)), task=None)
    for task in (loaded, loaded.colorize, loaded.inpaint):
        holed = picture(48, 48)
        holed[20:25, 20:25] = 255
        task(Photo(holed))
    codes = loaded.execution.code_precision
    assert asked == [codes, codes, loaded.execution.precision] * 3


@pytest.mark.parametrize("photo", ["photo.png", Path("photo.png"), picture(40, 50), None])
def test_what_is_no_photograph_is_refused_by_name(photo: object) -> None:
    restore = Pipeline(StubNetwork(), StubDetector())
    for method in (restore, restore.inpaint, restore.colorize):
        with pytest.raises(TypeError, match=f"must be a Photo, .* found {type(photo).__name__}$"):
            method(photo)


@pytest.mark.parametrize("name", ["auto", "fp32", "fp16"])
def test_masks_are_exact_if_fp32_is_asked_for(
    machine: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked: list[Precision] = []
    monkeypatch.setattr(device, "_has_native_bf16", lambda: True)
    monkeypatch.setattr(
        pipeline, "FaceParser", lambda path, place, *, precision: asked.append(precision)
    )
    parser = save_network(machine / "parser.safetensors", small_network())
    loaded = load_pipeline(device="cpu", parser=parser, precision=name)
    assert asked == [Precision.FP32 if name == "fp32" else Precision.BF16]
    assert loaded.identity["parser_precision"] == ("fp32" if name == "fp32" else "auto")


def test_what_codes_are_chosen_in_decides_results(machine: Path) -> None:
    loaded = load_pipeline(device="cpu")
    assert loaded.execution.code_precision is Precision.FP32
    assert not loaded.execution.compile
    assert loaded.identity["code_precision"] == "fp32"
    for refused in ({"code_precision": "tf32"}, {"code_precision": "bf16"}, {"compile": True}):
        with pytest.raises(ConfigError):
            load_pipeline(device="cpu", **refused)


def test_a_path_is_opened(machine: Path) -> None:
    path = save_network(machine / "mine.safetensors", small_network())
    assert load_pipeline(path, device="cpu").model_name == "mine.safetensors (32 px)"
    with pytest.raises(WeightsError, match="nowhere"):
        load_pipeline("nowhere.pth", device="cpu")
