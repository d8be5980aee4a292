"""Compares our pipeline with the published one, as written down in benchmarks/baseline.py.

The reference works on whole frames in BGR, as described in specification 02, and is slow. What
differs on purpose is listed in docs/parity.md; each row there names the test that shows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import baseline
import cv2
import numpy as np
import pytest
import torch
from compare import ROUNDING, assert_close
from numpy.typing import NDArray
from stubs import SMALL, StubDetector, StubNetwork, face_at, picture
from torch import Tensor, nn

from cfrestore import detect, parse
from cfrestore.align import FFHQ_TEMPLATE
from cfrestore.detect import Face, RetinaFaceDetector, load_detector
from cfrestore.errors import WeightsError
from cfrestore.image import Photo
from cfrestore.models.codeformer import CodeFormerConfig
from cfrestore.options import Options
from cfrestore.parse import FaceParser
from cfrestore.paste import paste_faces
from cfrestore.pipeline import Pipeline

CPU = torch.device("cpu")

# ---- detection: specification 02 section 3, 01 section 12.2


def published_priors(height: int, width: int) -> NDArray[np.float64]:
    """(N, 4) centre x and y, width and height in pixels of the network's input."""
    rows = []
    for stride, sizes in ((8, (16, 32)), (16, (64, 128)), (32, (256, 512))):
        cells = product(range(math.ceil(height / stride)), range(math.ceil(width / stride)), sizes)
        rows += [((x + 0.5) * stride, (y + 0.5) * stride, size, size) for y, x, size in cells]
    return np.array(rows)


@dataclass(frozen=True, eq=False)
class Found:
    """A face for the stub RetinaFace to find; in pixels of the network's input."""

    probability: float
    box: tuple[float, float, float, float]
    landmarks: NDArray[np.floating]


def framed(x: float, y: float, width: float, height: float, probability: float = 0.9) -> Found:
    """A face with that upper left corner, its landmarks where an aligned face has them."""
    landmarks = FFHQ_TEMPLATE / 512 * (width, height) + (x, y)
    return Found(probability, (x, y, x + width, y + height), landmarks)


class Heads:
    """A stub RetinaFace that finds given faces, through offsets to evenly spread anchors."""

    def __init__(self, *found: Found) -> None:
        self.found = found
        self.seen: Tensor | None = None

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.seen = batch
        priors = published_priors(*batch.shape[2:])
        offsets, points = np.zeros((len(priors), 4)), np.zeros((len(priors), 5, 2))
        probabilities = np.full(len(priors), 0.1)
        for index, face in enumerate(self.found):
            anchor = 1000 + 97 * index
            centre, size = priors[anchor, :2], priors[anchor, 2:]
            low, high = np.array(face.box[:2]), np.array(face.box[2:])
            offsets[anchor, :2] = ((low + high) / 2 - centre) / (0.1 * size)
            offsets[anchor, 2:] = np.log((high - low) / size) / 0.2
            points[anchor] = (face.landmarks - centre) / (0.1 * size)
            probabilities[anchor] = face.probability
        scores = np.stack([1 - probabilities, probabilities], axis=1)
        heads = (offsets, scores, points.reshape(-1, 10))
        return tuple(torch.from_numpy(head.astype(np.float32))[None] for head in heads)  # type: ignore[return-value]


@pytest.fixture
def retinaface(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[RetinaFaceDetector, Heads]]:
    """Makes detectors whose network finds given faces."""

    def make(*found: Found) -> tuple[RetinaFaceDetector, Heads]:
        heads = Heads(*found)
        monkeypatch.setattr(detect, "_load_retinaface", lambda path, device: ("stub", heads))
        return RetinaFaceDetector("any.pth", CPU), heads

    return make


@pytest.mark.parametrize(
    ("size", "expected", "interpolation"),
    [
        ((310, 491), (640, 1013), cv2.INTER_LINEAR),
        ((512, 811), (640, 1013), cv2.INTER_LINEAR),
        ((838, 726), (738, 640), cv2.INTER_AREA),
        ((645, 1204), (640, 1194), cv2.INTER_AREA),
        ((606, 700), (639, 739), cv2.INTER_LINEAR),  # 606 * (640 / 606) is below 640 in floats
    ],
)
def test_the_detector_sees_the_published_picture(
    retinaface, size: tuple[int, int], expected: tuple[int, int], interpolation: int
) -> None:
    pixels = picture(*size)
    detector, heads = retinaface()
    assert detector(pixels) == ()
    resized = cv2.resize(pixels[..., ::-1], expected[::-1], interpolation=interpolation)
    mean = np.array([104, 117, 123], np.float32)  # blue, green, red
    assert heads.seen is not None
    assert heads.seen.shape == (1, 3, *expected)
    assert np.array_equal(heads.seen[0].permute(1, 2, 0).numpy(), resized - mean)


def test_anchors_are_the_published_ones() -> None:
    for size in ((640, 853), (739, 640), (33, 1)):
        ours = detect.make_priors(*size)
        expected = published_priors(*size) / (size[1], size[0], size[1], size[0])
        np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert len(detect.make_priors(640, 853)) == 22_520 == 2 * (80 * 107 + 40 * 54 + 20 * 27)


def test_faces_count_above_a_probability_of_four_fifths(retinaface) -> None:
    levels = (0.5, 0.79, 0.8, 0.81, 0.97)
    found = [framed(110 * i + 5, 100, 80, 100, p) for i, p in enumerate(levels)]
    detector, _ = retinaface(*found)
    faces = detector(np.zeros((640, 640, 3), np.uint8))
    assert [face.score for face in faces] == pytest.approx([0.97, 0.81])
    for face, expected in zip(faces, found[:2:-1], strict=True):
        np.testing.assert_allclose(face.box, expected.box, atol=1e-3)
        np.testing.assert_allclose(face.landmarks, expected.landmarks, atol=1e-3)


@pytest.mark.parametrize(("overlap", "count"), [(0.41, 1), (0.39, 2)])
def test_of_faces_that_overlap_by_two_fifths_the_likelier_stays(
    retinaface, overlap: float, count: int
) -> None:
    shift = 200 * (1 - overlap) / (1 + overlap)  # of two equal boxes with that intersection
    detector, _ = retinaface(
        framed(100, 100, 200, 240, 0.85), framed(100 + shift, 100, 200, 240, 0.95)
    )
    faces = detector(np.zeros((640, 640, 3), np.uint8))
    assert [face.score for face in faces] == pytest.approx([0.95, 0.85][:count])


@pytest.mark.parametrize("side", [320, 640, 1280])
def test_positions_are_those_of_the_picture_and_scores_stay(retinaface, side: int) -> None:
    """The published code also divides the score by the picture's scale factor."""
    detector, _ = retinaface(framed(96, 64, 320, 400, 0.9))
    (face,) = detector(np.zeros((side, side, 3), np.uint8))
    np.testing.assert_allclose(face.box, np.array([96, 64, 416, 464]) * side / 640, atol=1e-3)
    landmarks = (FFHQ_TEMPLATE / 512 * (320, 400) + (96, 64)) * side / 640
    np.testing.assert_allclose(face.landmarks, landmarks, atol=1e-3)
    assert face.score == pytest.approx(0.9)


@pytest.mark.parametrize("side", [320, 640, 1280])
@pytest.mark.parametrize(("distance", "kept"), [(4.99, False), (5.01, True)])
def test_eyes_lie_five_pixels_of_the_picture_apart(
    retinaface, side: int, distance: float, kept: bool
) -> None:
    eyes = np.array([[0, 0], [0.6, 0.8]]) * distance * 640 / side + 200
    landmarks = np.concatenate([eyes, [[500, 100], [100, 500], [500, 500]]])
    detector, _ = retinaface(Found(0.9, (100, 100, 500, 500), landmarks))
    assert len(detector(np.zeros((side, side, 3), np.uint8))) == kept


def test_the_published_order_of_columns_is_shifted_by_one() -> None:
    """It reads the heights of the left and right eye, and x of the right eye and of the nose."""
    tilted = np.array([[100, 100], [108, 100.5], [107, 103], [100, 108], [106, 108]])
    row = np.concatenate([np.zeros(5), tilted.ravel()])
    assert np.hypot(row[6] - row[8], row[7] - row[9]) < 5  # dropped there
    assert np.hypot(row[5] - row[7], row[6] - row[8]) > 5  # and kept here
    boxes, scores = np.zeros((1, 4), np.float32), np.array([0.9], np.float32)
    assert len(detect._to_faces(boxes, scores, tilted[None].astype(np.float32))) == 1


@pytest.mark.parametrize("name", ["YOLOv5l", "YOLOv5n", "dlib", "x" * 300])
def test_detectors_that_are_not_offered_are_refused(name: str) -> None:
    with pytest.raises(WeightsError, match=f"'{name}' is neither a file nor one of auto, "):
        load_detector(name)


# ---- from picture to picture: sections 2 and 4 to 8

Image = NDArray[np.uint8]
Floats = NDArray[np.floating]


class Bands(nn.Module):
    """Stands in for ParseNet: the class is the band of the local brightness."""

    def forward(self, x: Tensor) -> Tensor:
        coarse = nn.functional.avg_pool2d(x.mean(1, keepdim=True), 32)
        smooth = nn.functional.interpolate(coarse, scale_factor=32, mode="bilinear")
        return -(smooth - torch.linspace(-0.5, 0.5, 19).view(1, 19, 1, 1)).abs()


def rounded(values: Floats) -> Image:
    """BGR values rounded to RGB bytes."""
    return np.ascontiguousarray(np.rint(values).clip(0, 255).astype(np.uint8)[..., ::-1])


def landmarks_of(side: float, centre: tuple[float, float], angle: float) -> NDArray[np.float32]:
    """Landmarks of a face whose crop covers side x side pixels; slightly uneven, like real ones."""
    turn = side / 512 * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    uneven = [[2, -3], [-1, 2], [4, 1], [-3, 0], [1, -2]]
    return ((baseline.TEMPLATE - 255.5 + uneven) @ turn + centre).astype(np.float32)


def published_network(paint: Callable[[Tensor], Tensor]) -> StubNetwork:
    """A network of 512 px with the published settings that paints with the given function."""
    network = StubNetwork(paint)
    network.config = CodeFormerConfig()
    return network


def repaint(x: Tensor) -> Tensor:
    """Mirrored, channels swapped, beyond the range: a mistake in any order would show."""
    return (1.15 * x.flip(3)[:, (1, 2, 0)] + 0.1).contiguous()


PLACES = {
    "one": [landmarks_of(260, (300, 280), 0.2)],
    "over the border": [landmarks_of(420, (40, 500), -0.4)],
    "two that overlap": [landmarks_of(330, (200, 210), 0.1), landmarks_of(280, (390, 330), -0.3)],
}


@pytest.fixture
def bands(monkeypatch: pytest.MonkeyPatch) -> FaceParser:
    monkeypatch.setattr(parse, "load_network", lambda path, build: Bands())
    return FaceParser("any.pth")


def whole(gray: bool) -> Image:
    """A photograph of 600 x 560 in RGB, in gray with a tint if asked for."""
    pixels = picture(600, 560)
    if gray:
        pixels = (pixels[..., 1:2] // 2 + np.array([70, 60, 50])).astype(np.uint8)
    return pixels


def bilinear(pixels: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Enlarges the background as published; ours is bicubic."""
    return cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize(
    ("scale", "places"),
    [*product((1, 2), PLACES), (4, "one")],
    ids=lambda value: str(value).replace(" ", "-"),
)
@pytest.mark.parametrize("gray", [False, True], ids=["colour", "gray"])
@pytest.mark.parametrize("parsed", [False, True], ids=["square", "parsed"])
def test_a_whole_photograph_is_the_published_one(
    bands: FaceParser, scale: int, places: str, gray: bool, parsed: bool
) -> None:
    pixels, network = whole(gray), published_network(repaint)
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    faces = [Face(np.zeros(4, np.float32), 0.9, points) for points in PLACES[places]]
    restore = Pipeline(
        network,
        StubDetector(*faces),
        parser=bands if parsed else None,
        bg_upsampler=bilinear,  # type: ignore[arg-type]
    )
    result = restore(Photo(pixels), Options(upscale=scale, fidelity=0.7))
    found = result.photo.pixels
    assert len(result.restored) == len(faces)
    assert {(w, adain) for _, w, adain in network.calls} == {(0.7, True)}

    expected = baseline.restore(bgr, PLACES[places], repaint, scale, Bands() if parsed else None)
    assert baseline.is_gray(bgr) == gray
    nearest = rounded(expected.values)
    assert_close(found, np.where(expected.faded[..., None], found, nearest), ROUNDING)
    assert_close(found, nearest, tolerance=2)
    inside = expected.touched & ~expected.faded
    error = found[inside].astype(float) - expected.values[inside][:, ::-1]
    assert abs(error.mean()) < 0.05
    assert expected.touched.mean() < 0.8
    assert (found[~expected.touched] == nearest[~expected.touched]).all()


def test_the_composition_is_rounded_where_the_published_one_truncates() -> None:
    pixels = whole(False)
    bgr, points = np.ascontiguousarray(pixels[..., ::-1]), PLACES["one"]
    restore = Pipeline(
        published_network(repaint), StubDetector(Face(np.zeros(4, np.float32), 1.0, points[0]))
    )
    found = restore(Photo(pixels)).photo.pixels
    expected = baseline.restore(bgr, points, repaint, 1, None)
    inside = expected.touched & ~expected.faded
    exact = expected.values[inside][:, ::-1]
    fractional = exact[np.abs(exact - np.rint(exact)) > 0.01]
    truncated = exact.astype(np.uint8)
    assert abs((found[inside] - exact).mean()) < 0.02
    assert fractional.size > 1000
    assert (truncated - exact).mean() < -0.05
    assert (found[inside].astype(int) - truncated).mean() > 0.05


@pytest.mark.parametrize("gray", [False, True], ids=["colour", "gray"])
def test_an_aligned_face_is_the_published_one(gray: bool) -> None:
    pixels = picture(512, 512)
    if gray:
        pixels = np.repeat(pixels[..., 1:2], 3, axis=2)
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    expected: Floats | Image = baseline.to_image(repaint(baseline.to_input(bgr)))
    if gray:
        expected = baseline.gray_face(expected, bgr)
    restore = Pipeline(published_network(repaint), StubDetector())
    found = restore(Photo(pixels), Options(aligned=True)).photo.pixels
    assert_close(found, rounded(expected), tolerance=0)


# ---- what differs on purpose and shows in the whole pipeline only


@pytest.mark.parametrize(
    ("size", "published"),
    [((310, 491), (512, 811)), ((838, 726), (838, 726)), ((645, 1204), (645, 1204))],
)
def test_small_pictures_are_not_enlarged_first(
    size: tuple[int, int], published: tuple[int, int]
) -> None:
    """Sizes of the specification's numeric reference points."""
    factor = max(1.0, 512 / min(size))
    assert (round(size[0] * factor), round(size[1] * factor)) == published
    detector = StubDetector(face_at(20, 20, 200))
    restore = Pipeline(StubNetwork(lambda x: -x), detector)
    for scale in (1, 2, 4):
        result = restore(Photo(picture(*size)), Options(upscale=scale))
        assert result.photo.size == (size[0] * scale, size[1] * scale)
    assert detector.seen[0].shape[:2] == size


def test_the_size_of_a_picture_is_kept_by_default() -> None:
    assert Options().upscale == 1
    assert Options().fidelity == 0.5


def test_depth_is_what_the_file_says_and_never_guessed() -> None:
    """The published code takes these pixels for 8 bits, and brighter ones for 16."""
    dark = picture(80, 80).astype(np.uint16)
    assert dark.max() < 256
    detector = StubDetector(face_at(20, 20, 40))
    result = Pipeline(published_network(lambda x: -x), detector)(Photo(dark))
    assert detector.seen[0].max() == 1
    assert result.photo.pixels.dtype == np.uint16
    assert (result.photo.pixels[:15] == dark[:15]).all()


@pytest.mark.parametrize("wanted", [False, True])
def test_the_model_says_whether_it_wants_its_latent_matched(wanted: bool) -> None:
    from dataclasses import replace

    network = StubNetwork()
    network.config = replace(SMALL, match_statistics=wanted)
    Pipeline(network, StubDetector(face_at(8, 8, 32)))(Photo(picture(48, 48)))
    assert [adain for _, _, adain in network.calls] == [wanted]
    published = CodeFormerConfig()
    assert published.match_statistics and not published.keep_colours
    assert published.back_projection == 0
    for own in (CodeFormerConfig.compact(), CodeFormerConfig.tiny()):
        assert own.keep_colours and not own.match_statistics


def test_an_aligned_picture_is_averaged_down() -> None:
    """The published bilinear resize skips pixels: of these stripes it would see one colour."""
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, 1::4] = stripes[:, 2::4] = 255
    assert np.ptp(cv2.resize(stripes, (32, 32), interpolation=cv2.INTER_LINEAR)) == 0
    network = StubNetwork()
    Pipeline(network, StubDetector())(Photo(stripes), Options(aligned=True))
    ((seen, _, _),) = network.calls
    assert seen.abs().max() < 0.01


def test_pasting_twice_is_pasting_once() -> None:
    """The published code multiplies the stored matrices in place, each time it pastes."""
    pixels = picture(90, 90)
    (face,) = Pipeline(StubNetwork(lambda x: -x), StubDetector(face_at(20, 20, 48)))(
        Photo(pixels)
    ).restored
    matrix = face.aligned.to_crop.copy()
    first, second = (paste_faces(pixels, [face], scale=2) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(face.aligned.to_crop, matrix)


def test_the_golden_crop_is_what_this_reference_cuts(shared: Path) -> None:
    """The reference of this file against recorded outputs of the published one."""
    golden = shared / "golden" / "geometry"
    values = np.load(golden / "geometry.npz")
    bgr = cv2.imdecode(np.frombuffer((golden / "input.png").read_bytes(), np.uint8), 1)
    restored = cv2.imdecode(np.frombuffer((golden / "restored0.png").read_bytes(), np.uint8), 1)
    points = values["landmarks"].astype(np.float32)
    for scale in (1, 2):
        expected = baseline.restore(bgr, points, lambda x: baseline.to_input(restored), scale, None)
        name = f"pasted_x{scale}_square.png"
        recorded = cv2.imdecode(np.frombuffer((golden / name).read_bytes(), np.uint8), 1)
        assert_close(expected.values.astype(np.uint8), recorded, ROUNDING)
