"""Evaluation: figures against closed forms and known implementations, and the command."""

import json
import math
import pickle
import re
import shutil
import sys
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import typer
from command import Command
from numpy.typing import NDArray
from rich.console import Console
from stubs import StubDetector, picture, small_network

from cfrestore import recognise
from cfrestore.align import (
    FFHQ_TEMPLATE,
    align_face,
    cut_crop,
    estimate_similarity,
    face_ellipse,
)
from cfrestore.cli import degrade as degrade_command
from cfrestore.cli import eval as eval_command
from cfrestore.cli.measured import show
from cfrestore.detect import load_detector
from cfrestore.errors import CheckpointError, ConfigError, ImageError, OutputError, WeightsError
from cfrestore.evaluate import (
    METRICS,
    PROTOCOLS,
    Evaluation,
    Judge,
    Kind,
    MetricFiles,
    Row,
    Statistics,
    as_record,
    check_protocol,
    find_faces,
    frechet_distance,
    match_faces,
    read_face,
    read_statistics,
)
from cfrestore.evaluate.figures import gradient, load_ssim, mean_colour, psnr
from cfrestore.evaluate.networks import (
    ARCFACE_TEMPLATE,
    DROPPED,
    Landmarks,
    load_arcface,
    load_distance,
    load_inception,
    load_niqe,
)
from cfrestore.image import Photo, from_tensor, read_photo, to_tensor, write_photo

CPU = torch.device("cpu")


def save(pixels: NDArray[np.uint8], name: str | Path) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_photo(Photo(np.ascontiguousarray(pixels)), path)
    return path


def noisy(face: NDArray[np.uint8], strength: float, seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, strength, face.shape)
    return (face + noise).round().clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def person(repository: Path) -> NDArray[np.uint8]:
    """An aligned face of 128 px."""
    pixels = read_photo(repository / "examples/collins.jpg").pixels
    face = load_detector("mtcnn")(pixels)[0]
    return align_face(pixels, face, 128).crop


@pytest.fixture(scope="module")
def judge() -> Judge:
    """A judge that has no weights but MTCNN's."""
    return Judge()


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detection finds no face anywhere, which is fast, for pictures that show none."""
    monkeypatch.setattr("cfrestore.evaluate.networks.load_detector", lambda name: StubDetector())


# Figures without networks


def test_psnr_is_its_definition_within_the_border() -> None:
    clean = np.full((64, 64, 3), 100, np.uint8)
    face = clean + np.uint8(10)
    assert psnr(face, clean) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr(clean, clean) == math.inf
    framed = clean.copy()
    framed[:4], framed[-4:], framed[:, :4], framed[:, -4:] = 0, 0, 0, 0
    assert psnr(framed, clean) == math.inf
    framed[4, 4] = 0
    assert psnr(framed, clean) < 60


def test_ssim_is_the_specified_sum() -> None:
    clean = picture(64, 64)
    face = noisy(clean, 12)
    a, b = (x[4:-4, 4:-4].astype(np.float64) for x in (face, clean))

    def mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return cv2.GaussianBlur(x, (11, 11), 1.5)[5:-5, 5:-5]

    first, second = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    middle = mean(a), mean(b)
    spread = mean(a * a) - middle[0] ** 2, mean(b * b) - middle[1] ** 2
    shared = mean(a * b) - middle[0] * middle[1]
    above = (2 * middle[0] * middle[1] + first) * (2 * shared + second)
    below = (middle[0] ** 2 + middle[1] ** 2 + first) * (spread[0] + spread[1] + second)
    assert load_ssim()(face, clean) == pytest.approx((above / below).mean(), abs=1e-4)
    assert load_ssim()(clean, clean) == 1


def test_colours_are_those_of_scikit_image() -> None:
    color = pytest.importorskip("skimage.color")
    face = picture(64, 64)
    theirs = color.rgb2lab(face)[face_ellipse(64)].mean(0)
    np.testing.assert_allclose(mean_colour(face), theirs, atol=0.15)  # OpenCV approximates


def test_regularity_tells_a_weave_from_a_face(judge: Judge, person: NDArray[np.uint8]) -> None:
    def share(face: NDArray[np.uint8]) -> Any:
        return judge.measure(face, None)["regularity"]

    weave = 6 * np.sin(np.arange(128) * 1.4) * np.sin(np.arange(128)[:, None] * 1.2)
    woven = (person + weave[..., None]).round().clip(0, 255).astype(np.uint8)
    assert share(person) < 0.05
    assert share(woven) > 2 * share(person) + 0.02
    assert share(np.full_like(person, 128)) < 1e-9


def test_sharpness_falls_with_blur(judge: Judge) -> None:
    clean = picture(64, 64)
    look = judge.look(clean)
    shares = [
        judge.measure(cv2.GaussianBlur(clean, (0, 0), s), look)["sharpness"] for s in (0.5, 1, 2)
    ]
    assert 1 > shares[0] > shares[1] > shares[2] > 0  # type: ignore[operator]
    assert judge.measure(clean, look)["sharpness"] == 1
    flat = np.full((64, 64, 3), 9, np.uint8)
    assert gradient(flat) == 0
    assert judge.measure(clean, judge.look(flat))["sharpness"] is None
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    assert gradient(ramp) == pytest.approx(8)  # Sobel's weights of a slope of 1


# The Frechet distance


def test_frechet_distance_has_its_closed_form_for_axes_in_common() -> None:
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    spreads = rng.uniform(0.1, 4, (2, 5))
    means = rng.normal(size=(2, 5))
    a, b = (Statistics(m, turn @ np.diag(s) @ turn.T) for m, s in zip(means, spreads, strict=True))
    expected = np.square(means[0] - means[1]).sum()
    expected += np.square(np.sqrt(spreads[0]) - np.sqrt(spreads[1])).sum()
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_statistics_are_the_mean_and_the_unbiased_covariance() -> None:
    statistics = Statistics.of([np.array([0.0, 1.0]), np.array([2.0, 5.0])])
    np.testing.assert_allclose(statistics.mean, [1, 3])
    np.testing.assert_allclose(statistics.covariance, [[2, 4], [4, 8]])


def test_frechet_distance_is_that_of_scipy_for_any_axes() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(1)
    a, b = (Statistics.of(list(rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)))) for _ in "ab")
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    expected = np.square(a.mean - b.mean).sum()
    expected += np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_frechet_distance_of_fewer_faces_than_features_is_finite() -> None:
    rng = np.random.default_rng(2)
    few = Statistics.of(list(rng.normal(size=(3, 50))))
    many = Statistics.of(list(rng.normal(size=(500, 50))))
    assert 0 < frechet_distance(few, many) < math.inf
    with pytest.raises(ConfigError, match="2 faces at least"):
        Statistics.of([np.zeros(3)])
    with pytest.raises(ConfigError, match="3 and 50 features"):
        frechet_distance(Statistics(np.zeros(3), np.eye(3)), many)


def test_statistics_are_read_as_they_are_published(tmp_path: Path) -> None:
    mean, covariance = np.arange(3.0), np.eye(3)
    np.savez(tmp_path / "a.npz", mu=mean, sigma=covariance)
    torch.save({"name": "x", "size": 512, "mean": mean, "cov": covariance}, tmp_path / "b.pth")
    tensors = {"mean": torch.from_numpy(mean), "cov": torch.from_numpy(covariance)}
    torch.save(tensors, tmp_path / "c.pth")
    for path in tmp_path.iterdir():
        found = read_statistics(path)
        assert np.array_equal(found.mean, mean)
        assert np.array_equal(found.covariance, covariance)


def test_other_files_than_statistics_are_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "run",)

    (tmp_path / "a.npz").write_bytes(b"no zip")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Trap()))
    np.savez(tmp_path / "c.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    np.savez(tmp_path / "d.npz", other=np.zeros(3))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(CheckpointError):
            read_statistics(path)
    assert not (tmp_path / "run").exists()
    with pytest.raises(WeightsError, match="cannot be read"):
        read_statistics(tmp_path / "absent.npz")


# Networks


def vgg(tmp_path: Path) -> tuple[Path, Path]:
    """Random weights in the shape of VGG-16, and of its calibration."""
    torch.manual_seed(0)
    widths = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
    state, channels, index = {}, 3, 0
    for stage in widths:
        for width in stage:
            scale = math.sqrt(2 / (9 * channels))
            state[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3) * scale
            state[f"features.{index}.bias"] = torch.zeros(width)
            channels, index = width, index + 2
        index += 1
    lines = {f"lin{n}.model.1.weight": torch.rand(1, w[0], 1, 1) for n, w in enumerate(widths)}
    paths = tmp_path / "vgg.pth", tmp_path / "lpips.pth"
    for content, path in zip((state, lines), paths, strict=True):
        torch.save(content, path)
    return paths


def test_lpips_sums_calibrated_differences_once_normalised(tmp_path: Path) -> None:
    features, calibration = vgg(tmp_path)
    distance = load_distance(features, calibration, CPU)
    clean = picture(32, 32)
    face = noisy(clean, 20)
    assert distance(clean, clean) == 0
    assert distance(noisy(clean, 60), clean) > distance(face, clean) > 0

    state, lines = (torch.load(path, weights_only=True) for path in (features, calibration))
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    both = to_tensor(np.stack((face, clean)))
    both = (both - shift[:, None, None]) / scale[:, None, None]
    expected, index = 0.0, 0
    for stage, count in enumerate((2, 2, 3, 3, 3)):
        both = torch.nn.functional.max_pool2d(both, 2) if stage else both
        for _ in range(count):
            weights = (state[f"features.{index}.{kind}"] for kind in ("weight", "bias"))
            both = torch.nn.functional.conv2d(both, *weights, padding=1).relu()
            index += 2
        index += 1
        a, b = both / both.norm(dim=1, keepdim=True).clamp_min(1e-10)
        expected += ((a - b).square() * lines[f"lin{stage}.model.1.weight"][0]).sum(0).mean().item()
    assert distance(face, clean) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(CheckpointError, match="not VGG-16"):
        load_distance(calibration, features, CPU)


def arcface(tmp_path: Path) -> Path:
    from facexlib.recognition.arcface_arch import Backbone

    torch.manual_seed(0)
    path = tmp_path / "arcface.pth"
    torch.save(Backbone(50, 0.6, "ir_se").state_dict(), path)
    return path


def test_arcface_looks_where_its_template_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = load_arcface(arcface(tmp_path), CPU)
    face = picture(128, 128)
    vector = embed(face)
    assert vector.shape == (512,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    outside = face.copy()
    outside[:8], outside[:, :8], outside[:, -8:] = 0, 0, 0  # of 512: 32 px of the border
    assert np.array_equal(embed(outside), vector)
    inside = face.copy()
    inside[56:72, 56:72] = 0
    assert not np.allclose(embed(inside), vector)
    with pytest.raises(CheckpointError, match="not the ArcFace ResNet-50"):
        load_arcface(vgg(tmp_path)[1], CPU)


def insightface(path: Path, side: int = 112) -> NDArray[np.float32]:
    """Writes a recogniser of InsightFace's layout, one linear map; returns its matrix."""
    onnx = pytest.importorskip("onnx")
    make = onnx.helper
    matrix = np.random.default_rng(0).normal(size=(3 * side * side, 8)).astype(np.float32)
    graph = make.make_graph(
        [
            make.make_node("Flatten", ["input.1"], ["flat"]),
            make.make_node("MatMul", ["flat", "matrix"], ["516"]),
        ],
        "recogniser",
        [make.make_tensor_value_info("input.1", onnx.TensorProto.FLOAT, [None, 3, side, side])],
        [make.make_tensor_value_info("516", onnx.TensorProto.FLOAT, [None, 8])],
        [onnx.numpy_helper.from_array(matrix, "matrix")],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return matrix


def test_arcface_may_be_an_onnx_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "gesichter ä.onnx"
    matrix = insightface(path)
    face = picture(128, 128)
    vector = load_arcface(path, CPU)(face)
    to_crop = estimate_similarity(FFHQ_TEMPLATE / 4, ARCFACE_TEMPLATE)
    crop = (cut_crop(face, to_crop, 112).astype(np.float32) - 127.5) / 127.5
    expected = crop.transpose(2, 0, 1).reshape(-1) @ matrix
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-4)
    insightface(path, side=224)
    with pytest.raises(CheckpointError, match="not a recogniser of faces of 112 px"):
        load_arcface(path, CPU)
    path.write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match="gesichter"):
        load_arcface(path, CPU)
    with pytest.raises(WeightsError, match="absent"):
        load_arcface(tmp_path / "absent.onnx", CPU)


def inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights of Inception V3, which the package itself would download."""
    package = pytest.importorskip("torch_fidelity")
    path = tmp_path / "inception.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    kind = package.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(kind, "load_state_dict", lambda self, state: None)
        network = kind("inception-v3-compat", ["2048"], feature_extractor_weights_path=path)
    for layer in network.modules():  # otherwise their outputs vanish in the end
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("blind")
def test_fid_is_the_distance_of_what_inception_makes_of_faces(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = inception(Path(), monkeypatch)
    for n in range(3):
        save(picture(32, 32, seed=n), f"clean/{n}.png")
        save(noisy(picture(32, 32, seed=n), 40), f"noisy/{n}.png")
    words = ("--inception", str(weights), "--statistics", "clean")
    record = measured(cfrestore_, "noisy", *words)
    embed = load_inception(weights, CPU)
    features = [
        np.stack([embed(read_face(Path(f"{folder}/{n}.png"))) for n in range(3)]).astype(float)
        for folder in ("noisy", "clean")
    ]
    assert features[0].shape == (3, 2048)
    axes = np.linalg.qr(np.concatenate(features).T)[0]  # they differ only in these
    parts = [Statistics.of(list(table @ axes)) for table in features]
    expected = frechet_distance(*parts)
    assert expected > 1e-3 * np.trace(parts[1].covariance)
    assert totals(record)["fid"] == pytest.approx(expected, rel=1e-3)
    assert record["rows"][0]["counts"]["fid"] == 3
    fid = record["metrics"]["fid"]
    assert fid["computed"]
    assert fid["files"]["inception"]["sha256"] == sha256(weights.read_bytes()).hexdigest()
    with pytest.raises(CheckpointError, match="not the Inception V3"):
        load_inception(vgg(Path())[1], CPU)


def test_niqe_prefers_a_clean_picture_and_leaves_nothing_behind(repository: Path) -> None:
    if find_spec("basicsr") is None:
        pytest.skip("needs basicsr, the extra niqe")
    niqe, parameters = load_niqe()
    assert parameters.is_file()
    assert DROPPED not in sys.modules
    face = read_photo(repository / "examples/before-after.png").pixels[100:388, 740:1028].copy()
    values = [niqe(x) for x in (face, cv2.GaussianBlur(face, (0, 0), 3), noisy(face, 40))]
    assert 0 < values[0] < values[1] < values[2]  # type: ignore[operator]
    assert niqe(face[:128, :128]) is None
    assert niqe(np.full((288, 288, 3), 9, np.uint8)) is None


def test_descriptors_are_farther_the_worse_a_face_is(
    judge: Judge, person: NDArray[np.uint8]
) -> None:
    if "descriptor" in judge.reasons:
        pytest.skip("needs face_recognition_models, the extra identity")
    clean = judge.look(person)
    faces = (person, cv2.GaussianBlur(person, (0, 0), 2), cv2.GaussianBlur(person, (0, 0), 6))
    same, near, far = (judge.measure(face, clean)["descriptor"] for face in faces)
    assert same == 0
    assert 0.05 < near < 0.6 < far  # type: ignore[operator]
    weights = judge.facts(clean=True)["descriptor"]["files"]["recogniser"]
    assert weights["sha256"] == recognise.SHA256


def test_landmarks_and_features_tell_faces_apart(judge: Judge, person: NDArray[np.uint8]) -> None:
    clean = judge.look(person)
    same = judge.measure(person, clean)
    assert same["found"] is True
    assert (same["lmd"], same["features"], same["colour"], same["psnr"]) == (0, 0, 0, None)
    moved = np.roll(person, 4, axis=1)  # 16 px of 512
    assert judge.measure(moved, clean)["lmd"] == pytest.approx(16, abs=3)
    red = person.copy()
    red[..., 0] = np.minimum(red[..., 0] + 30.0, 255)
    tinted = judge.measure(red, clean)
    assert tinted["colour"] > 5  # type: ignore[operator]
    flat = judge.measure(np.full_like(person, 99), clean)
    assert (flat["found"], flat["lmd"], flat["sharpness"]) == (False, None, 0)


def test_features_are_those_of_the_packages_own_network() -> None:
    package = pytest.importorskip("facenet_pytorch")
    face, network = picture(64, 64), package.MTCNN().onet
    x = (torch.from_numpy(face).permute(2, 0, 1)[None].float() - 127.5) / 128
    theirs = []
    with torch.inference_mode():
        for n in (1, 2, 3):
            for layer in ("conv", "prelu"):
                x = network.get_submodule(f"{layer}{n}")(x)
                theirs.append(x)
            x = network.get_submodule(f"pool{n}")(x)
    for a, b in zip(Landmarks().features(face), theirs, strict=True):
        torch.testing.assert_close(a, b)


# Names


def test_faces_have_the_names_of_their_paths(tmp_path: Path) -> None:
    for name in ("b.png", "a.restored.jpg", "sub/a.png", ".hidden/c.png", ".d.png"):
        save(picture(32, 32), tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    assert list(find_faces(tmp_path)) == ["a", "b", "sub/a"]
    save(picture(32, 32), tmp_path / "b.webp")
    with pytest.raises(ConfigError, match="the same name"):
        find_faces(tmp_path)
    with pytest.raises(ImageError, match="does not exist"):
        find_faces(tmp_path / "absent")


def test_faces_are_matched_by_name(tmp_path: Path) -> None:
    for name in ("r/a.png", "r/sub/b.restored.png", "r/c.png", "k/a.jpg", "k/sub/b.jpg", "k/d.jpg"):
        save(picture(32, 32), tmp_path / name)
    matched = match_faces(tmp_path / "r", tmp_path / "k")
    assert {n: (p.name, q.name) for n, (p, q) in matched.pairs.items()} == {
        "a": ("a.png", "a.jpg"),
        "sub/b": ("b.restored.png", "b.jpg"),
    }
    assert (matched.without_reference, matched.without_restored) == (("c",), ("d",))
    assert list(match_faces(tmp_path / "r/a.png", tmp_path / "k/d.jpg").pairs) == ["a"]


# Protocols


def test_protocols_have_the_published_counts() -> None:
    counts = {name: (p.faces, p.clean) for name, p in PROTOCOLS.items()}
    assert counts == {
        "celeba-test": (3000, True),
        "lfw-test": (1711, False),
        "webphoto-test": (407, False),
        "wider-test": (970, False),
    }
    known = {metric.name for metric in METRICS}
    for protocol in PROTOCOLS.values():
        names = [str(n) for n in range(protocol.faces)]
        check_protocol(protocol, names, clean=protocol.clean)
        check_protocol(protocol, names[:3], clean=protocol.clean, any_count=True)
        with pytest.raises(ConfigError, match=f"found {protocol.faces - 1}; --any-count"):
            check_protocol(protocol, names[1:], clean=protocol.clean)
        with pytest.raises(ConfigError, match="clean faces"):
            check_protocol(protocol, names, clean=not protocol.clean)
        assert set(protocol.metrics) <= known


@pytest.mark.usefixtures("blind")
def test_a_set_of_another_count_is_refused_unless_told_otherwise(cfrestore_: Command) -> None:
    save(picture(32, 32), "r/a.png")
    result = cfrestore_("eval", "r", "--protocol", "wider-test")
    assert (result.code, result.out) == (2, "")
    assert "wider-test has 970 faces, found 1" in result.err
    assert "offered by the project CodeFormer" in result.err
    result = cfrestore_("eval", "r", "--protocol", "wider-test", "--any-count")
    assert result.code == 0
    protocol = json.loads(result.out)["protocol"]
    assert (protocol["name"], protocol["faces"]) == ("wider-test", 1)
    assert protocol["published"]["faces"] == 970


# The command, on faces restored elsewhere


def totals(record: dict, row: int = 0) -> dict:
    return record["rows"][row]["totals"]


def measured(command: Command, *words: str, code: int = 0) -> dict:
    result = command("eval", *words)
    assert result.code == code, result.err
    return json.loads(result.out, parse_constant=lambda text: pytest.fail(f"{text} in JSON"))


def pairs() -> None:
    for n in range(3):
        clean = np.rot90(picture(64, 64, seed=n), n)
        save(clean, f"clean/{n}.png")
        save(noisy(clean, 8), f"restored/{n}.png")


def test_figures_of_other_faces_than_the_input_s_are_compared_on_those_of_both(
    capsys: pytest.CaptureFixture[str],
) -> None:
    nothing = dict.fromkeys(metric.name for metric in METRICS)
    lmds = {"input": [4.0, None, 8.0], "w = 0": [2.0, 90.0, 4.0], "w = 1": [3.0, None, 3.0]}
    evaluation = Evaluation()
    for name, values in lmds.items():
        kind = Kind(name, "large", None)
        files = [{**nothing, "file": str(n), "lmd": lmd} for n, lmd in enumerate(values)]
        evaluation.rows[kind] = Row(kind, files)
    facts = {name: {"computed": name == "lmd", "reason": "no weights"} for name in nothing}
    protocol = {"faces": 3, "side": 64, "seed": 0, "device": "cpu"}
    record = as_record(evaluation, protocol, facts)
    damaged, restored, faithful = record["rows"]
    assert restored["totals"]["lmd"] == 32
    assert restored["beside_input"] == {"lmd": {"value": 3, "input": 6, "faces": 2}}
    assert damaged["beside_input"] == faithful["beside_input"] == {}
    show(record, Console(width=200))
    said = capsys.readouterr().out
    assert "LMD px, large: w = 0: 3.00 for the input's 6.00 on the 2 faces that have both" in said
    assert "large: w = 1:" not in said


@pytest.mark.usefixtures("blind")
def test_faces_restored_elsewhere_are_measured(cfrestore_: Command) -> None:
    pairs()
    record = measured(cfrestore_, "restored", "--reference", "clean")
    [row] = record["rows"]
    assert [file["file"] for file in row["files"]] == ["0", "1", "2"]
    expected = [
        psnr(read_face(Path(f"restored/{n}.png")), read_face(Path(f"clean/{n}.png")))
        for n in range(3)
    ]
    assert [file["psnr"] for file in row["files"]] == pytest.approx(expected, abs=1e-6)
    assert row["totals"]["psnr"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert row["counts"]["psnr"] == 3
    assert row["totals"]["found"] == 0
    assert row["totals"]["lmd"] is None
    assert record["metrics"]["lmd"]["reason"] == "no face was found in both"
    assert record["unmatched"] == {"without_reference": [], "without_restored": []}
    assert record["protocol"]["w"] is None
    assert set(record) == {"schema", "protocol", "metrics", "rows", "failed", "unmatched"}
    for path in Path("clean").iterdir():
        shutil.copy(path, "restored")
    same = measured(cfrestore_, "restored", "--reference", "clean")
    assert (totals(same)["psnr"], totals(same)["ssim"]) == (None, 1)
    assert all(file["identical"] for file in same["rows"][0]["files"])
    assert "infinite" in same["metrics"]["psnr"]["reason"]


@pytest.mark.usefixtures("blind")
def test_without_any_face_nothing_is_said_of_faces(cfrestore_: Command) -> None:
    write_photo(Photo(np.zeros((48, 64, 3), np.uint8)), "wide.png")
    shutil.copy("wide.png", "clean.png")
    result = cfrestore_("eval", "wide.png", "--reference", "clean.png")
    assert result.code == 1
    reasons = {name: m["reason"] for name, m in json.loads(result.out)["metrics"].items()}
    assert {reasons["psnr"], reasons["lmd"]} == {"there was no face that could be measured"}


@pytest.mark.usefixtures("blind")
def test_swapped_faces_are_noticed(cfrestore_: Command) -> None:
    pairs()
    right = measured(cfrestore_, "restored", "--reference", "clean")
    for old, new in (("0", "x"), ("1", "0"), ("x", "1")):
        Path(f"restored/{old}.png").rename(f"restored/{new}.png")
    swapped = measured(cfrestore_, "restored", "--reference", "clean")
    before, after = (
        {f["file"]: f["psnr"] for f in r["rows"][0]["files"]} for r in (right, swapped)
    )
    assert after["2"] == before["2"]
    assert after["0"] < before["0"] - 3
    assert after["1"] < before["1"] - 3
    assert totals(swapped)["ssim"] < totals(right)["ssim"]


@pytest.mark.usefixtures("blind")
def test_two_runs_give_the_same_bytes(cfrestore_: Command) -> None:
    pairs()
    first = cfrestore_("eval", "restored", "--reference", "clean")
    assert first.out == cfrestore_("eval", "restored", "--reference", "clean").out
    words = ("--data", "clean", "--model", "compact", "--degrade", "small")
    first = cfrestore_("eval", *words)
    assert first.code == 0
    assert first.out == cfrestore_("eval", *words).out


@pytest.mark.usefixtures("blind")
def test_what_cannot_be_measured_is_told_and_costs_no_other(cfrestore_: Command) -> None:
    pairs()
    Path("restored/1.png").write_bytes(b"no picture")
    save(picture(64, 64), "restored/extra.png")
    save(picture(64, 64), "clean/lonely.png")
    record = measured(cfrestore_, "restored", "--reference", "clean", code=1)
    assert [file["file"] for file in record["rows"][0]["files"]] == ["0", "2"]
    assert [failure["file"] for failure in record["failed"]] == ["1"]
    assert "restored/1.png" in record["failed"][0]["error"]
    unmatched = {"without_reference": ["extra"], "without_restored": ["lonely"]}
    assert record["unmatched"] == unmatched
    assert record["protocol"]["faces"] == 2


@pytest.mark.usefixtures("blind")
def test_faces_of_different_sizes_are_not_compared(cfrestore_: Command) -> None:
    pairs()
    save(picture(32, 32), "restored/1.png")
    save(picture(64, 48), "restored/2.png")
    record = measured(cfrestore_, "restored", "--reference", "clean", code=1)
    errors = [failure["error"] for failure in record["failed"]]
    assert "only faces of one size are compared" in errors[0]
    assert "an aligned face is square" in errors[1]


@pytest.mark.usefixtures("blind")
def test_without_clean_faces_only_what_needs_none_is_measured(cfrestore_: Command) -> None:
    pairs()
    record = measured(cfrestore_, "restored")
    for metric in METRICS:
        fact = record["metrics"][metric.name]
        assert fact["computed"] == (metric.name in ("found", "regularity")), metric.name
        assert fact["computed"] or fact["reason"]
        assert (totals(record)[metric.name] is None) != fact["computed"]
    assert record["metrics"]["psnr"]["reason"] == "there are no clean faces to compare with"
    assert record["rows"][0]["files"][0]["identical"] is None


@pytest.mark.usefixtures("blind")
def test_missing_weights_and_packages_are_reported(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs()
    for package in ("skimage.metrics", "basicsr", "basicsr.metrics.niqe", "torch_fidelity"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(
        "cfrestore.extras.find_spec",
        lambda name: None if name == recognise.PACKAGE else find_spec(name),
    )
    result = cfrestore_("eval", "restored", "--reference", "clean")
    assert result.code == 0
    record = json.loads(result.out)
    reasons = {name: fact["reason"] for name, fact in record["metrics"].items()}
    assert "--vgg and --lpips" in reasons["lpips"]
    assert "--arcface" in reasons["ids"]
    assert "--inception and --statistics" in reasons["fid"]
    assert 'pip install "cfrestore[eval]"' in reasons["ssim"]
    assert 'pip install "cfrestore[niqe]"' in reasons["niqe"]
    assert 'pip install "cfrestore[identity]"' in reasons["descriptor"]
    for name in ("lpips", "ids", "fid", "ssim", "niqe", "descriptor"):
        assert totals(record)[name] is None
        assert record["rows"][0]["counts"][name] == 0
    assert "LPIPS not computed: needs --vgg and --lpips" in result.err
    save(picture(32, 32), "s/a.png")
    torch.save({"x": torch.zeros(1)}, "i.pth")
    result = cfrestore_("eval", "restored", "--inception", "i.pth", "--statistics", "s")
    assert (result.code, result.out) == (2, "")
    assert 'pip install "cfrestore[eval]"' in result.err


@pytest.mark.usefixtures("blind")
def test_weights_of_metrics_are_used_and_named_by_their_hash(cfrestore_: Command) -> None:
    pairs()
    features, calibration = vgg(Path())
    identity = arcface(Path())
    words = ("--vgg", str(features), "--lpips", str(calibration), "--arcface", str(identity))
    record = measured(cfrestore_, "restored", "--reference", "clean", *words)
    assert totals(record)["lpips"] > 0
    assert totals(record)["ids"] <= 1
    own = measured(cfrestore_, "clean", "--reference", "clean", *words)
    assert totals(own)["lpips"] == 0
    assert totals(own)["ids"] == pytest.approx(1, abs=1e-5)
    for name, purpose, path in (
        ("lpips", "vgg", features),
        ("lpips", "calibration", calibration),
        ("ids", "arcface", identity),
    ):
        fact = record["metrics"][name]
        assert fact["computed"]
        assert fact["files"][purpose] == {
            "file": path.name,
            "sha256": sha256(path.read_bytes()).hexdigest(),
        }


@pytest.mark.usefixtures("blind")
def test_wrong_weights_of_a_metric_are_refused(cfrestore_: Command) -> None:
    pairs()
    Path("bad.pth").write_bytes(b"no weights")
    result = cfrestore_("eval", "restored", "--reference", "clean", "--arcface", "bad.pth")
    assert (result.code, result.out) == (4, "")
    assert "bad.pth" in result.err
    result = cfrestore_("eval", "restored", "--arcface", "absent.pth")
    assert result.code == 4
    with pytest.raises(ConfigError, match="--vgg and --lpips are said together"):
        MetricFiles(vgg=Path("a"))


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "either RESTORED, or --data"),
        (["restored", "--data", "clean"], "either RESTORED, or --data"),
        (["restored", "--w", "1"], "--w is said of faces that are restored here"),
        (["restored", "--no-match"], "--match is said of faces"),
        (["restored", "--degrade", "small"], "--degrade is said of faces"),
        (["--data", "clean", "--w", "1,2"], "fidelity must lie in"),
        (["--data", "clean", "--w", "a"], "--w takes numbers"),
        (["--data", "clean", "--degrade", "medium"], "'medium' is unknown"),
        (["--data", "clean", "--degrade", "small", "--reference", "clean"], "what they were"),
        (["--data", "clean", "--autoencoder"], "needs clean faces"),
        (["restored", "--protocol", "ffhq"], "'ffhq' is unknown"),
        (["restored", "--reference", "other"], "is called like one in"),
        (["restored", "--vgg", "a"], "said together"),
        (["restored", "--json", "there.json"], "only --overwrite replaces it"),
        (["restored", "--json", "new/../there.json"], "only --overwrite replaces it"),
        (["restored", "--json", "restored/0.png", "--overwrite"], "is an input"),
    ],
)
def test_words_that_make_no_sense_are_told(
    cfrestore_: Command, words: list[str], said: str
) -> None:
    pairs()
    save(picture(32, 32), "other/x.png")
    Path("there.json").write_text("mine")
    result = cfrestore_("eval", *words)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert Path("there.json").read_text() == "mine"


@pytest.mark.usefixtures("blind")
def test_figures_go_to_a_file_and_faces_to_a_sheet(cfrestore_: Command) -> None:
    pairs()
    words = ("restored", "--reference", "clean", "--json", "new/e.json", "--sheet", "s.png")
    result = cfrestore_("eval", *words)
    assert (result.code, result.out) == (0, "")
    assert "| restored | " in result.err
    assert json.loads(Path("new/e.json").read_text())["schema"] == 1
    sheet = read_photo("s.png").pixels
    assert sheet.shape == (3 * 64, 2 * 64, 3)
    assert np.array_equal(sheet[:64, :64], read_photo("clean/0.png").pixels)
    assert np.array_equal(sheet[128:, 64:], read_photo("restored/2.png").pixels)
    assert cfrestore_("eval", *words).code == 2
    save(picture(32, 32), "restored/1.png")
    save(picture(32, 32), "clean/1.png")
    assert cfrestore_("eval", *words, "--overwrite").code == 0
    assert read_photo("s.png").pixels.shape == sheet.shape
    assert cfrestore_("eval", *words[:-1], "s.jpg", "--overwrite").code == 0
    assert read_photo("s.jpg").format == "JPEG"
    unknown = cfrestore_("eval", *words[:-1], "absent/s.xyz", "--overwrite")
    assert unknown.code == 2 and "s.xyz cannot be written as '.xyz'" in unknown.err
    assert not Path("absent").exists()
    assert "| restored | " not in unknown.err
    shown = cfrestore_("eval", "restored", "--json", "-")
    assert json.loads(shown.out)["schema"] == 1
    assert not Path("-").exists()


@pytest.mark.usefixtures("blind")
def test_files_that_cannot_be_written_are_told_before_anything_is_measured(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs()
    words = ("restored", "--reference", "clean", "--sheet", "missing/s.png", "--json", "a/e.json")
    result = cfrestore_("eval", *words)
    assert (result.code, Path("missing/s.png").exists(), Path("a/e.json").exists()) == (0, 1, 1)
    monkeypatch.setattr("cfrestore.evaluate.evaluate", None)
    for option in ("--sheet", "--json"):
        result = cfrestore_("eval", "restored", option, "a/e.json/new")
        assert result.code == 2
        assert result.err.startswith("error: a/e.json/new cannot be written")


@pytest.mark.usefixtures("blind")
def test_figures_are_written_before_the_sheet(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(photo: Photo, file: Path, **how: str) -> None:
        raise OutputError(f"{file} cannot be written: No space left on device")

    pairs()
    monkeypatch.setattr("cfrestore.image.write_photo", full)
    result = cfrestore_("eval", "restored", "--sheet", "s.png", "--json", "e.json")
    assert (result.code, Path("e.json").exists()) == (2, True)


@pytest.mark.usefixtures("blind")
def test_a_face_that_memory_does_not_suffice_for_costs_no_other(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs()
    measure, poor = Judge.measure, iter((False, True, False))

    def measure_or_fail(judge: Judge, *faces: Any) -> Any:
        if next(poor):
            raise MemoryError
        return measure(judge, *faces)

    monkeypatch.setattr(Judge, "measure", measure_or_fail)
    record = measured(cfrestore_, "restored", "--reference", "clean", code=1)
    assert [file["file"] for file in record["rows"][0]["files"]] == ["0", "2"]
    assert record["failed"] == [{"file": "1", "error": "1 was not measured: not enough memory"}]


# The command, restoring


@pytest.mark.usefixtures("blind")
def test_w_changes_the_result(cfrestore_: Command) -> None:
    pairs()
    words = ("--data", "clean", "--model", "compact", "--degrade", "small,large", "--w", "0,1,1")
    record = measured(cfrestore_, *words)
    names = [(row["degradation"], row["name"], row["w"]) for row in record["rows"]]
    assert names == [
        (preset, *kind)
        for preset in ("small", "large")
        for kind in (("input", None), ("w = 0", 0), ("w = 1", 1))
    ]
    figures = [totals(record, n)["psnr"] for n in range(6)]
    assert len(set(figures)) == 6
    assert figures[0] > figures[3]
    protocol = record["protocol"]
    assert (protocol["w"], protocol["seed"], protocol["side"]) == ([0, 1], 0, 32)
    assert (
        protocol["model"]["sha256"] == sha256(Path("compact.safetensors").read_bytes()).hexdigest()
    )
    assert set(protocol["degradations"]) == {"small", "large"}
    assert protocol["versions"]["torch"] == torch.__version__.split("+")[0]
    other = measured(cfrestore_, *words, "--seed", "1")
    assert totals(other)["psnr"] != figures[0]
    few = measured(cfrestore_, *words, "--limit", "1")
    assert few["rows"][2]["files"] == record["rows"][2]["files"][:1]


@pytest.mark.usefixtures("blind")
def test_it_damages_and_restores_as_the_other_commands_do(cfrestore_: Command) -> None:
    for n in range(2):
        save(picture(32, 32, seed=n), f"clean/sub/{n}.png")
    words = ("--data", "clean", "--model", "compact", "--w", "0.5")
    here = measured(cfrestore_, *words, "--degrade", "large", "--seed", "3")
    assert cfrestore_("degrade", "clean", "bad", "--preset", "large", "--seed", "3").code == 0
    damaged = measured(cfrestore_, "bad", "--reference", "clean")
    assert damaged["rows"][0]["files"] == here["rows"][0]["files"]
    shown = ("--aligned", "--w", "0.5", "--model", "compact", "-r")
    assert cfrestore_("bad", "-o", "good/", *shown).code == 0
    restored = measured(cfrestore_, "good", "--reference", "clean")
    assert restored["rows"][0]["files"] == here["rows"][1]["files"]
    given = measured(
        cfrestore_, "--data", "bad", "--model", "compact", "--w", "0.5", "--reference", "clean"
    )
    assert [row["files"] for row in given["rows"]] == [row["files"] for row in here["rows"]]
    assert given["protocol"]["seed"] is None


@pytest.mark.usefixtures("blind")
def test_larger_faces_are_reduced_to_the_networks_side(cfrestore_: Command) -> None:
    large = picture(96, 96)
    save(large, "large/a.png")
    save(cv2.resize(large, (32, 32), interpolation=cv2.INTER_AREA), "small/a.png")
    words = ("--model", "compact", "--degrade", "small")
    rows = [measured(cfrestore_, "--data", folder, *words)["rows"] for folder in ("large", "small")]
    assert rows[0] == rows[1]


@pytest.mark.usefixtures("blind")
def test_no_detector_is_loaded_for_faces_that_are_aligned(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*values: object, **others: object) -> None:
        raise AssertionError("nothing is searched for")

    monkeypatch.setattr("cfrestore.pipeline.load_detector", refuse)
    save(picture(32, 32), "faces/a.png")
    assert measured(cfrestore_, "--data", "faces", "--model", "compact", "--w", "0")["rows"]


@pytest.mark.usefixtures("blind")
def test_nearest_codes_and_the_autoencoder_are_painted_too(cfrestore_: Command) -> None:
    face = picture(32, 32)
    save(face, "clean/a.png")
    words = ("--data", "clean", "--model", "compact", "--degrade", "small", "--w", "0")
    record = measured(cfrestore_, *words, "--nearest", "--autoencoder")
    assert [row["name"] for row in record["rows"]] == [
        "input",
        "w = 0",
        "nearest codes",
        "autoencoder",
    ]
    network = small_network().half().float()
    with torch.inference_mode():
        latent, skips = network.encode(to_tensor(face[None]))
        painted = network.decode(network.quantize(latent).values, skips, 0)
    expected = psnr(from_tensor(painted)[0], face)
    assert totals(record, 3)["psnr"] == pytest.approx(expected, abs=0.01)
    assert totals(record, 2)["psnr"] != totals(record, 1)["psnr"]


@pytest.mark.usefixtures("blind")
def test_statistics_of_codes_are_matched_as_the_model_says_or_as_is_asked(
    cfrestore_: Command,
) -> None:
    pairs()
    words = ("--data", "clean", "--model", "compact", "--degrade", "large", "--w", "0")
    own, yes, no = (
        measured(cfrestore_, *words, *more) for more in ((), ("--match",), ("--no-match",))
    )
    assert own == yes  # the published layout's default
    assert yes["protocol"]["model"]["match_statistics"] is True
    assert no["protocol"]["model"]["match_statistics"] is False
    assert totals(yes, 0) == totals(no, 0)
    assert totals(yes, 1) != totals(no, 1)


@pytest.mark.usefixtures("blind")
def test_a_face_that_the_network_spoils_fails(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs()
    monkeypatch.setattr(
        "cfrestore.models.codeformer.CodeFormer.decode",
        lambda self, features, skips, w: torch.zeros(len(features), 3, 32, 32),
    )
    record = measured(cfrestore_, "--data", "clean", "--model", "compact", code=1)
    assert record["rows"] == []
    assert "was not restored at w = 0: the network's output is one flat" in str(record["failed"])


def test_the_shipped_weights_restore_a_damaged_face(
    person: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save(person, "faces/collins.png")
    words = ("--data", "faces", "--model", "compact", "--degrade", "large", "--device", "cpu")
    record = measured(Command(capsys), *words, "--autoencoder")
    rows = {row["name"]: row["totals"] for row in record["rows"]}
    assert rows["w = 0"]["found"] == 1
    assert rows["w = 0"]["sharpness"] > rows["input"]["sharpness"]
    assert rows["w = 1"]["psnr"] > rows["w = 0"]["psnr"]
    assert rows["autoencoder"]["psnr"] > rows["w = 0"]["psnr"]  # the same, from better codes
    assert record["metrics"]["lmd"]["computed"]
    assert record["metrics"]["lmd"]["files"]["onet"]["sha256"]


def test_every_option_and_field_is_documented(repository: Path) -> None:
    text = (repository / "docs/evaluation.md").read_text(encoding="utf-8")
    spoken = set(re.findall(r"`(--?[a-z0-9-]+)`", text))
    for app in (eval_command.app, degrade_command.app):
        command = typer.main.get_command(app)
        options = {n for p in command.params for n in p.opts if n[0] == "-"}
        assert options <= spoken
    for metric in METRICS:
        assert f"`{metric.name}`" in text
    for name, protocol in PROTOCOLS.items():
        assert re.search(rf"\| `{name}` \| {protocol.faces} \|", text), name
