import io
import math
import socket
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from group_photo import TEMPLATE, compose_group
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cfrestore import detect, weights
from cfrestore.detect import Face, decode, load_detector, make_priors
from cfrestore.errors import CheckpointError, ConfigError, WeightsError

MOBILENET = "weights/detection_mobilenet0.25_Final.pth"


def read(path):
    return np.array(Image.open(path).convert("RGB"))


@pytest.fixture(scope="module")
def mtcnn():
    return load_detector("mtcnn")


@pytest.fixture(scope="module")
def mobilenet(shared):
    return load_detector(str(shared / MOBILENET))


@pytest.fixture(params=["mtcnn", "mobilenet"])
def detector(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def portraits(shared):
    return [read(path) for path in sorted((shared / "faces/valid-512").glob("*.jpg"))[::17]]


@pytest.fixture(scope="module")
def state(shared):
    return torch.load(shared / MOBILENET, map_location="cpu", weights_only=True)


def save(state, path):
    torch.save(state, path)
    return str(path)


def test_each_portrait_holds_one_face_in_the_place_it_is_aligned_to(detector, portraits):
    for pixels in portraits:
        (face,) = detector(pixels)
        assert face.score > 0.9
        assert np.linalg.norm(face.landmarks - TEMPLATE, axis=1).mean() < 20
        x0, y0, x1, y1 = face.box
        assert 80 < x0 < 193 and 319 < x1 < 440 and 50 < y0 < 200 and 400 < y1 < 500
        assert face.box.dtype == face.landmarks.dtype == np.float32
        assert face.box.shape == (4,) and face.landmarks.shape == (5, 2)


def test_the_detectors_agree_on_landmarks(mtcnn, mobilenet, portraits):
    distances = [
        np.linalg.norm(mtcnn(pixels)[0].landmarks - mobilenet(pixels)[0].landmarks, axis=1)
        for pixels in portraits
    ]
    assert np.median(distances) < 6
    assert np.max(np.mean(distances, axis=1)) < 15


def test_left_and_right_are_those_of_the_picture(detector, portraits):
    for pixels in (portraits[0], np.ascontiguousarray(portraits[0][:, ::-1])):
        left_eye, right_eye, nose, left_mouth, right_mouth = detector(pixels)[0].landmarks
        assert left_eye[0] < nose[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


@pytest.mark.parametrize("photo", ["000513.jpg", "001466.jpg", "007698.jpg", "009811.jpg"])
def test_the_face_of_an_old_photograph_is_found(detector, shared, photo):
    pixels = read(shared / "faces/old-photos" / photo)
    (face,) = detector(pixels)
    height, width = pixels.shape[:2]
    assert (face.landmarks > 0).all() and (face.landmarks < (width, height)).all()


def test_mtcnn_finds_the_face_of_a_coarse_halftone(mtcnn, shared):
    (face,) = mtcnn(read(shared / "faces/old-photos/001450.jpg"))
    assert 0.7 < face.score < 0.9


@pytest.mark.parametrize(("name", "smallest"), [("mtcnn", 60), ("mobilenet", 110)])
def test_everyone_in_a_group_photo_is_found_and_nobody_else(request, shared, name, smallest):
    pixels, people = compose_group(shared / "faces")
    people = people[: sum(side >= smallest for side in (260, 210, 160, 110, 60))]
    faces = request.getfixturevalue(name)(pixels)
    assert len(faces) == len(people)
    for truth in people:
        eye_distance = np.linalg.norm(truth[1] - truth[0])
        errors = [np.linalg.norm(face.landmarks - truth, axis=1).mean() for face in faces]
        assert min(errors) < 0.2 * eye_distance
    scores = [face.score for face in faces]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("name", ["mtcnn", "mobilenet"])
def test_the_threshold_decides_who_is_a_face(request, shared, name):
    pixels, _ = compose_group(shared / "faces")
    faces = request.getfixturevalue(name)(pixels)
    path = name if name == "mtcnn" else str(shared / MOBILENET)
    middle = (faces[0].score + faces[1].score) / 2
    assert len(load_detector(path, threshold=middle)(pixels)) == 1
    assert load_detector(path, threshold=1)(pixels) == ()
    assert len(load_detector(path, threshold=0.2)(pixels)) >= len(faces)


def test_a_threshold_holds_for_large_faces_of_mtcnn_too(mtcnn, shared):
    pixels = read(shared / "faces/old-photos/001450.jpg")
    (face,) = mtcnn(pixels)
    assert load_detector("mtcnn", threshold=face.score + 0.01)(pixels) == ()
    assert len(load_detector("mtcnn", threshold=face.score - 0.01)(pixels)) == 1


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), "0.5", True])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(ConfigError, match="threshold must lie in"):
        load_detector("mtcnn", threshold=threshold)


def test_a_face_has_a_box_and_five_points():
    box, points = np.zeros(4), np.zeros((5, 2))
    assert Face(box, 0.9, points).box is box
    for wrong in (points.T, points.ravel(), np.zeros((68, 2))):
        with pytest.raises(ValueError, match=r"^landmarks must have the shape \(5, 2\), found "):
            Face(box, 0.9, wrong)
    with pytest.raises(ValueError, match=r"^box must have the shape \(4,\), found \(5,\)$"):
        Face(np.zeros(5), 0.9, points)
    with pytest.raises(TypeError, match="^landmarks must be a numpy array, found list$"):
        Face(box, 0.9, points.tolist())


def test_two_faces_side_by_side_are_two(detector, portraits):
    faces = detector(np.concatenate([portraits[0], portraits[1]], axis=1))
    assert sorted(int(face.box.reshape(2, 2).mean(0)[0] // 512) for face in faces) == [0, 1]


def test_an_enlarged_picture_gives_the_same_face_larger(detector, portraits):
    small = detector(portraits[0])[0]
    large = detector(cv2.resize(portraits[0], None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC))[0]
    assert np.abs(large.landmarks / 3 - small.landmarks).max() < 8


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_found_where_nothing_is(detector, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    assert detector(noise) == ()
    assert detector(np.full((300, 400, 3), 80 * seed, np.uint8)) == ()


@pytest.mark.parametrize(
    "size", [(1, 1), (3, 2), (12, 12), (19, 400), (1, 20000), (20000, 1), (7, 4000)]
)
def test_tiny_and_extreme_pictures_are_no_error(detector, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert isinstance(detector(pixels), tuple)


def test_two_calls_give_the_same_faces(detector, portraits):
    before = portraits[0].copy()
    first, second = detector(portraits[0]), detector(portraits[0])
    for one, other in zip(first, second, strict=True):
        assert one.score == other.score
        assert np.array_equal(one.box, other.box)
        assert np.array_equal(one.landmarks, other.landmarks)
    assert np.array_equal(before, portraits[0])


def test_faces_too_small_to_restore_are_left_out(mobilenet, portraits):
    # RetinaFace enlarges this to 640 px, where the face is large; its eyes are 4 px apart here.
    tiny = np.full((40, 40, 3), 210, np.uint8)
    tiny[8:24, 8:24] = cv2.resize(portraits[0], (16, 16), interpolation=cv2.INTER_AREA)
    assert mobilenet(tiny) == ()


def test_the_eye_distance_is_that_of_the_two_eyes():
    # Columns shifted by one, as the published pipeline reads them, would keep the first face.
    landmarks = np.float32(
        [
            [[100, 100], [104, 100], [102, 103], [100, 105], [104, 105]],
            [[100, 100], [106, 100], [103, 103], [100, 105], [106, 105]],
        ]
    )
    boxes = np.float32([[98, 98, 106, 107]] * 2)
    (face,) = detect._to_faces(boxes, np.float32([0.9, 0.8]), landmarks)
    assert face.score == pytest.approx(0.8)


def test_the_short_side_becomes_640_by_truncation():
    for size, expected in [((480, 640), (640, 853)), ((2000, 1500), (853, 640))]:
        scale, resized = detect._resize(
            np.zeros((*size, 3), np.uint8), short_side=640, enlarge=True
        )
        assert resized.shape[:2] == expected
        assert scale == 640 / min(size)


def test_the_long_side_is_bounded():
    for size in [(100, 20000), (1, 50000), (50000, 3)]:
        _, resized = detect._resize(np.zeros((*size, 3), np.uint8), short_side=640, enlarge=True)
        assert max(resized.shape) == 4096


def test_there_are_two_anchors_per_cell_in_the_published_order():
    priors = make_priors(640, 853)
    assert priors.shape == (22520, 4) and priors.dtype == np.float32
    pixels = priors * (853, 640, 853, 640)
    assert np.allclose(pixels[0], (4, 4, 16, 16)) and np.allclose(pixels[1], (4, 4, 32, 32))
    assert np.allclose(pixels[2], (12, 4, 16, 16))
    assert np.allclose(pixels[2 * 107], (4, 12, 16, 16))
    assert np.allclose(pixels[2 * 107 * 80], (8, 8, 64, 64))
    assert np.allclose(pixels[-1], (26 * 32 + 16, 19 * 32 + 16, 512, 512))


def test_decoding_moves_the_centre_and_scales_the_size():
    priors = np.float32([[0.5, 0.4, 0.2, 0.1]])
    offsets = np.float32([[1, -2, math.log(2) / 0.2, 0]])
    points = np.float32([[0, 0, 10, 0, 0, 10, -10, 0, 0, -10]])
    boxes, landmarks = decode(priors, offsets, points)
    assert np.allclose(boxes, [[0.52 - 0.2, 0.38 - 0.05, 0.52 + 0.2, 0.38 + 0.05]])
    assert np.allclose(landmarks, [[[0.5, 0.4], [0.7, 0.4], [0.5, 0.5], [0.3, 0.4], [0.5, 0.3]]])


def test_the_result_is_that_of_facexlib(mobilenet, shared):
    pixels = read(shared / "faces/old-photos/000050.jpg")
    scale, resized = detect._resize(pixels, short_side=640, enlarge=True)
    mobilenet._network.device = torch.device("cpu")
    mobilenet._network.mean_tensor = torch.tensor([104.0, 117.0, 123.0]).view(1, 3, 1, 1)
    with torch.no_grad():
        (row,) = mobilenet._network.detect_faces(np.ascontiguousarray(resized[..., ::-1]), 0.8)
    (face,) = mobilenet(pixels)
    assert np.allclose(row[:4] / scale, face.box, atol=1e-2)
    assert np.allclose(row[5:].reshape(5, 2) / scale, face.landmarks, atol=1e-2)
    assert row[4] == pytest.approx(face.score, abs=1e-5)


def test_names_tell_the_backbone(mtcnn, mobilenet):
    assert mtcnn.name == "mtcnn"
    assert mobilenet.name == "retinaface-mobilenet0.25"


def test_the_cascade_s_result_is_that_of_facenet_pytorch(shared):
    from facenet_pytorch import MTCNN

    from cfrestore.cascade import Cascade

    theirs, ours, faces = MTCNN(keep_all=True, thresholds=[0.6, 0.7, 0.7]), Cascade(), 0
    paths = sorted((shared / "faces/old-photos").iterdir())[:6]
    pictures = [read(path) for path in paths]
    height, width = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
    group = np.full((height, width * len(pictures), 3), 127, np.uint8)
    for index, picture in enumerate(pictures):
        group[: picture.shape[0], index * width : index * width + picture.shape[1]] = picture
    for pixels in (*pictures, group):
        padded = np.pad(pixels, ((32, 32), (32, 32), (0, 0)), constant_values=127)
        with torch.inference_mode():
            boxes, scores, points = theirs.detect(padded, landmarks=True)
            found = ours(padded, 20, 0.7)
        expected = np.argsort(-np.asarray(scores, np.float32), kind="stable")
        order = np.argsort(-found.scores, kind="stable")
        faces += len(order)
        for values, of in ((boxes, found.boxes), (points, found.landmarks)):
            assert np.allclose(np.asarray(values, np.float32)[expected], of[order], atol=0.02)
    assert faces >= 12


@settings(deadline=None)
@given(
    picture=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    seed=st.integers(0, 99),
)
def test_sums_from_a_table_average_as_torch_does(picture, size, seed):
    from cfrestore.cascade import _averaged

    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (*picture, 3), dtype=np.uint8)
    low = random.integers(0, picture[::-1], (5, 2))
    high = random.integers(low + 1, np.array(picture[::-1]) + 1)
    seen = _averaged(cv2.integral(pixels, sdepth=cv2.CV_32S), np.hstack([low, high]), size)
    whole = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    for part, (x0, y0), (x1, y1) in zip(seen, low, high, strict=True):
        expected = F.interpolate(whole[..., y0:y1, x0:x1], size, mode="area")[0]
        assert (part * 128 + 127.5 - expected).abs().max() < 1e-4


def test_the_table_holds_the_sums_of_the_largest_picture_that_is_searched():
    from cfrestore.cascade import Cascade, _averaged

    sides = (1024 + 64, detect.LONG_SIDE + 64)
    table = cv2.integral(np.full((*sides, 3), 255, np.uint8), sdepth=cv2.CV_32S)
    whole = np.array([[0, 0, *sides[::-1]]])
    assert (_averaged(table, whole, (3, 7)) == (255 - 127.5) / 128).all()
    assert Cascade()(np.full((*sides, 3), 255, np.uint8), 400, 0.7).boxes.shape == (0, 4)


@pytest.mark.parametrize("size", [(6, 8), (7, 8), (6, 9), (7, 9), (1, 1)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_pooling_pairs_is_pooling(size, order):
    from cfrestore.models.mtcnn import _pool, _pool_pairs

    x = torch.randn(2, 10, *size, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=order)
    assert torch.equal(_pool_pairs(x), _pool(x, 2))


@pytest.mark.parametrize("size", [(1, 1), (11, 400), (30, 30)])
def test_the_cascade_finds_nothing_in_next_to_nothing(size):
    from cfrestore.cascade import Cascade

    found = Cascade()(np.zeros((*size, 3), np.uint8), 20, 0.7)
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == (0,)
    assert found.landmarks.shape == (0, 5, 2)


def test_weights_of_a_package_that_is_absent_are_named(monkeypatch):
    monkeypatch.setattr("cfrestore.extras.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="facenet-pytorch"):
        load_detector("mtcnn")


def test_overlapping_boxes_are_suppressed_as_torchvision_does():
    from torchvision.ops import nms

    from cfrestore.cascade import suppress

    random = np.random.default_rng(0)
    corners = random.uniform(0, 100, (300, 2))
    boxes = np.concatenate([corners, corners + random.uniform(1, 40, (300, 2))], 1)
    boxes, scores = boxes.astype(np.float32), random.random(300).astype(np.float32)
    expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.4).numpy()
    assert suppress(boxes, scores, 0.4).tolist() == expected.tolist()
    inner = np.float32([[0, 0, 99, 99], [10, 10, 39, 39]])
    assert suppress(inner, np.float32([0.9, 0.8]), 0.7).tolist() == [0, 1]
    assert suppress(inner, np.float32([0.9, 0.8]), 0.7, of_smaller=True).tolist() == [0]


def test_auto_takes_the_best_detector_whose_weights_are_there(monkeypatch, shared):
    here = {"mobilenet": shared / MOBILENET}
    monkeypatch.setattr(weights, "locate", here.get)
    assert load_detector("auto").name == "retinaface-mobilenet0.25"
    assert load_detector("mobilenet").name == "retinaface-mobilenet0.25"
    here.clear()
    assert load_detector("auto").name == "mtcnn"


def test_a_torchvision_for_another_torch_is_an_import_error(monkeypatch, tmp_path):
    class Broken(ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "facexlib.detection.retinaface", Broken("retinaface"))
    with pytest.raises(ImportError, match="torchvision::nms does not exist") as found:
        detect._load_retinaface(tmp_path / "retinaface.pth", torch.device("cpu"))
    assert found.value.name == "facexlib"


def test_absent_weights_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "locate", lambda name: None)
    with pytest.raises(WeightsError, match=r"detection_Resnet50_Final\.pth"):
        load_detector("retinaface")
    with pytest.raises(WeightsError, match=r"nothing\.pth' is neither a file nor one of auto, ret"):
        load_detector(str(tmp_path / "nothing.pth"))


def test_an_absent_device_is_refused():
    with pytest.raises(ConfigError):
        load_detector("mtcnn", "tpu")


def test_loading_opens_no_connection(monkeypatch, shared):
    def refuse(*_arguments):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_detector("mtcnn")
    load_detector(str(shared / MOBILENET))


def test_loading_leaves_the_random_state_alone(shared):
    before = torch.get_rng_state()
    load_detector(str(shared / MOBILENET))
    assert torch.equal(before, torch.get_rng_state())


def test_keys_may_carry_the_prefix_of_parallel_training(state, tmp_path, mobilenet, portraits):
    path = save({f"module.{key}": value for key, value in state.items()}, tmp_path / "m.pth")
    (face,) = load_detector(path)(portraits[0])
    assert np.array_equal(face.landmarks, mobilenet(portraits[0])[0].landmarks)


def test_a_missing_tensor_is_named(state, tmp_path):
    path = save(
        {k: v for k, v in state.items() if k != "ssh1.conv3X3.0.weight"}, tmp_path / "a.pth"
    )
    with pytest.raises(CheckpointError, match=r"1 missing: ssh1\.conv3X3\.0\.weight"):
        load_detector(path)


def test_a_tensor_of_another_shape_is_named(state, tmp_path):
    path = save(state | {"ClassHead.0.conv1x1.bias": torch.zeros(6)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"ClassHead\.0.* \(6,\) instead of \(4,\)"):
        load_detector(path)


def test_another_network_is_refused(tmp_path):
    path = save({"conv.weight": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"holds no RetinaFace; it begins with conv\.weight$"):
        load_detector(path)


@pytest.mark.parametrize("content", [[1, 2], 3, {"a": 1}, {1: torch.zeros(1)}])
def test_what_is_no_table_of_tensors_is_refused(tmp_path, content):
    with pytest.raises(CheckpointError):
        load_detector(save(content, tmp_path / "a.pth"))


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_weight_file_is_not_run(tmp_path):
    path = save({"body.stage1.0.0.weight": Trap(tmp_path / "sprung")}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError):
        load_detector(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kept", [0, 1, 30, 500, 3000, 100_000, 0.5, 0.999])
def test_a_truncated_file_is_refused(state, shared, tmp_path, kept):
    modern = io.BytesIO()
    torch.save(state, modern)
    for content in (modern.getvalue(), (shared / MOBILENET).read_bytes()):
        path = tmp_path / "cut.pth"
        path.write_bytes(content[: int(kept * len(content)) if kept < 1 and kept else int(kept)])
        with pytest.raises(CheckpointError):
            load_detector(str(path))


@pytest.mark.slow
def test_a_resnet_file_is_recognised_and_runs(tmp_path):
    from facexlib.detection.retinaface import RetinaFace

    torch.manual_seed(0)
    network = RetinaFace("resnet50", device=torch.device("cpu"))
    detector = load_detector(save(network.state_dict(), tmp_path / "r.pth"))
    assert detector.name == "retinaface-resnet50"
    assert isinstance(detector(np.zeros((32, 32, 3), np.uint8)), tuple)
