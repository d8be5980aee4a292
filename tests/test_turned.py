import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image
from stubs import StubDetector, StubNetwork, face_at, leaves, picture
from torch import from_numpy

from cfrestore import pipeline
from cfrestore.align import FFHQ_TEMPLATE
from cfrestore.degrade import LARGE, degrade
from cfrestore.detect import Face, load_detector
from cfrestore.device import CPU, generator_for
from cfrestore.image import Photo
from cfrestore.options import Options
from cfrestore.pipeline import Pipeline, load_pipeline
from cfrestore.turned import LONG_SIDE, TURNS, find_faces, move, tilt, turn

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255]])
"""Of the dots that are the landmarks of a drawn face."""


def tilted(face, angle):
    """The face turned clockwise about its middle, on the screen."""
    x, y = face.box.reshape(2, 2).mean(0).tolist()
    return move(face, cv2.getRotationMatrix2D((x, y), -angle, 1))


def draw(size, *faces):
    """A gray picture with five coloured dots for each face."""
    pixels = np.full((*size, 3), 90, np.uint8)
    for face in faces:
        for point, colour in zip(face.landmarks, COLOURS, strict=True):
            centre = np.round(point * 16).astype(int).tolist()
            cv2.circle(pixels, centre, 5 * 16, colour.tolist(), -1, cv2.LINE_AA, 4)
    return pixels


MOBILENET = "weights/detection_mobilenet0.25_Final.pth"


class DotDetector:
    """Finds drawn faces, one in a picture, if it is nearly upright."""

    name = "dots"

    def __init__(self, score=0.999, widest=25.0):
        self.score, self.widest, self.looks = score, widest, 0

    def __call__(self, pixels):
        self.looks += 1
        dots = [np.argwhere(cv2.inRange(pixels, c - 60, c + 60)) for c in COLOURS]  # y, x
        if not all(map(len, dots)):
            return ()
        landmarks = np.array([dot.mean(0)[::-1] for dot in dots])
        low, high = landmarks.min(0), landmarks.max(0)
        face = Face(np.float32([*low, *high]), self.score, landmarks.astype(np.float32))
        return (face,) if tilt(face) <= self.widest else ()


@pytest.mark.parametrize("angle", [0, 5, 40, 90, 150, 180, 225, 270, 300])
@pytest.mark.parametrize("size", [(420, 560), (2600, 900)])
def test_a_face_is_found_where_it_is_whichever_way_up(angle, size):
    truth = tilted(face_at(90, 110, 200), angle)
    detector = DotDetector()
    if max(size) > LONG_SIDE:
        truth = move(truth, np.array([[2.0, 0, 100], [0, 2, 1500]]))
    (face,) = find_faces(detector, draw(size, truth))
    assert np.abs(face.landmarks - truth.landmarks).max() < 1
    low, high = face.box.reshape(2, 2)
    assert (low < face.landmarks.mean(0)).all() and (face.landmarks.mean(0) < high).all()
    assert detector.looks in ((1,) if angle in (0, 5) else (9, 10))


@pytest.mark.parametrize("angle", TURNS)
def test_a_turned_picture_is_wholly_visible_and_its_points_are_known(angle):
    pixels = draw((61, 90), face_at(5, 0, 60))
    matrix, (height, width) = turn(pixels.shape[:2], angle)
    corners = np.array([[0, 0, 1], [89, 0, 1], [0, 60, 1], [89, 60, 1]]) @ matrix.T
    assert (corners > -0.51).all() and (corners < (width - 0.49, height - 0.49)).all()
    if angle % 90 == 0:
        view = cv2.warpAffine(pixels, matrix, (width, height))
        assert np.array_equal(view, np.rot90(pixels, angle // 90))


def test_a_certain_face_is_enough():
    detector = StubDetector(replace(face_at(9, 9, 60), score=0.996))
    assert find_faces(detector, picture(90, 90)) == detector.faces
    assert len(detector.seen) == 1


def test_the_tilt_is_that_of_the_whole_face():
    for angle in (0, 17, 90, 180, 270):
        face = tilted(face_at(10, 20, 70), angle)
        assert tilt(face) == pytest.approx(min(angle, 360 - angle), abs=0.01)
        assert tilt(face, angle + 8) == pytest.approx(8, abs=0.01)


def test_a_box_turns_with_its_face_and_does_not_grow():
    face = Face(np.float32([10, 20, 40, 70]), 1.0, FFHQ_TEMPLATE)
    matrix, _ = turn((100, 200), 90)  # x, y becomes y, 199 - x
    assert np.allclose(move(face, matrix).box, [20, 199 - 40, 70, 199 - 10])
    low, high = tilted(face, 45).box.reshape(2, 2)
    assert np.allclose(low + high, [50, 90]) and np.prod(high - low) == pytest.approx(1700)


class Seen:
    """A detector that finds given faces in the picture as it is, and others in the turned one.

    In a turned picture that is turned further it finds them where they then are, or moved.
    """

    name = "seen"

    def __init__(self, moving=0.0, **faces):
        self.moving, self.faces = moving, faces

    def __call__(self, pixels):
        height, width = pixels.shape[:2]
        y, x = np.argwhere(pixels[..., 0] > 200).mean(0) - ((height - 1) / 2, (width - 1) / 2)
        angle = math.degrees(np.angle(complex(-146, -96) / complex(x, y)))  # counter-clockwise
        quarter = round(angle / 90) % 4
        further = (angle + 45) % 90 - 45
        faces = self.faces.get(("upright", "by_90", "by_180", "by_270")[quarter], ())
        if abs(further) < 0.5:
            return tuple(faces)
        if abs(further) > 20:
            return ()
        there = turn((300, 200) if quarter % 2 else (200, 300), further)[0]
        return tuple(move(shifted(face, self.moving), there) for face in faces)


def shifted(face, by):
    """The face, moved to the right by a multiple of the distance of its eyes."""
    eyes = np.linalg.norm(face.landmarks[1] - face.landmarks[0])
    return move(face, np.array([[1, 0, by * eyes], [0, 1, 0]]))


def marked(size=(200, 300)):
    pixels = np.full((*size, 3), 90, np.uint8)
    pixels[:8, :8] = 255
    return pixels


def of(score, angle=0.0, at=40.0):
    return replace(tilted(face_at(at, 40, 80), angle), score=score)


@pytest.mark.parametrize(
    ("faces", "winner"),
    [
        ({"upright": [of(0.9)]}, "upright"),
        ({"upright": [of(0.9)], "by_90": [of(0.99)]}, "by_90"),
        ({"upright": [of(0.9)], "by_90": [of(0.97)]}, "upright"),
        ({"upright": [of(0.994)], "by_90": [of(0.99)]}, "upright"),
        ({"upright": [of(0.994, 40)], "by_90": [of(0.99)]}, "by_90"),
        ({"upright": [of(0.994, 40)], "by_90": [of(0.99, 40)]}, "upright"),
        ({"by_90": [of(0.985)], "by_180": [of(0.99)]}, "by_180"),
        ({"by_90": [of(0.99), of(0.985, at=150)], "by_180": [of(1.0)]}, "by_90"),
        ({"upright": [of(0.999)], "by_180": [of(1.0), of(1.0, at=150)]}, "upright"),
        ({"upright": [of(0.999), of(0.9), of(0.8)], "by_180": [of(1.0)] * 3}, "by_180"),
        ({"by_270": [of(0.97)]}, None),
        ({}, None),
    ],
)
def test_the_picture_with_the_most_credible_upright_faces_wins(faces, winner):
    found = find_faces(Seen(**faces), marked())
    expected = faces.get(winner, ())
    assert [face.score for face in found] == [face.score for face in expected]
    for face, seen in zip(found, expected, strict=True):
        angle = {"by_90": 90, "by_180": 180, "by_270": 270}.get(winner, 0)
        assert tilt(face) == pytest.approx(min(angle, 360 - angle) or tilt(seen), abs=0.01)


def test_faces_that_do_not_stay_when_a_turned_picture_is_turned_further_do_not_count():
    of_both = {"upright": [of(0.9)], "by_180": [of(0.999)]}
    for moving, score in ((0.05, 0.999), (-0.05, 0.999), (0.2, 0.9), (-0.2, 0.9)):
        (face,) = find_faces(Seen(moving, **of_both), marked())
        assert face.score == score


@pytest.fixture(scope="module")
def mtcnn():
    return load_detector("mtcnn")


@pytest.fixture(params=["mtcnn", "mobilenet"], scope="module")
def detector(request, shared):
    return load_detector("mtcnn" if request.param == "mtcnn" else str(shared / MOBILENET))


def apart(landmarks, expected):
    """The mean error of landmarks, divided by the distance of the eyes."""
    unit = np.linalg.norm(expected[1] - expected[0])
    return np.linalg.norm(landmarks - expected, axis=1).mean() / unit


@pytest.mark.parametrize("angle", [40, 90, 180])
@pytest.mark.parametrize("name", ["old-photos/007698.jpg", "valid-512/neutral_front__001_03.jpg"])
def test_faces_of_photographs_are_found_whichever_way_up(detector, shared, name, angle):
    path = shared / "faces" / name
    pixels = np.array(Image.open(path).convert("RGB"))
    (upright,) = detector(pixels)
    matrix, (height, width) = turn(pixels.shape[:2], angle)
    turned = cv2.warpAffine(pixels, matrix, (width, height), borderValue=(255, 255, 255))
    (face,) = find_faces(detector, turned)
    expected = move(upright, matrix).landmarks
    assert apart(face.landmarks, expected) < 0.15


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("neutral_front__141_03", 1048),
        ("smiling_front__003_08", 1052),
        ("smiling_front__011_08", 1056),
    ],
)
def test_a_damaged_upright_face_is_not_taken_for_one_on_its_head(shared, name, seed):
    detector = load_detector(str(shared / MOBILENET))
    pixels = np.array(Image.open(shared / f"faces/valid-512/{name}.jpg").convert("RGB"))
    clean = from_numpy(pixels).permute(2, 0, 1)[None] / 255
    damaged = degrade(clean, LARGE, generator_for(CPU, seed))[0].permute(1, 2, 0) * 255
    (face,) = find_faces(detector, damaged.round().byte().numpy())
    (expected,) = detector(pixels)
    assert apart(face.landmarks, expected.landmarks) < 0.25


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_found_whichever_way_up_where_nothing_is(mtcnn, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for pixels in (noise, leaves(300, 400, seed), picture(300, 400, seed=seed), noise[:1, :1]):
        assert find_faces(mtcnn, pixels) == ()


def test_a_face_that_lies_is_restored_where_it_lies():
    truth = tilted(face_at(90, 110, 200), 90)
    photo = Photo(draw((420, 560), truth), exif=b"Exif\0\0e")
    restore = Pipeline(StubNetwork(lambda x: -x), DotDetector())  # type: ignore[arg-type]
    assert restore(photo).faces == ()
    result = replace(restore, turns=True)(photo, Options(max_face=None))
    (face,) = result.restored
    assert result.photo.pixels.shape == photo.pixels.shape and result.photo.exif == photo.exif
    x, y = (face.aligned.to_crop @ (*truth.landmarks[0], 1)) * 16
    assert np.allclose((x, y), FFHQ_TEMPLATE[0], atol=6)
    changed = (result.photo.pixels != photo.pixels).any(axis=2)
    assert changed[110:310, 90:290].mean() > 0.5
    changed[100:320, 80:300] = False
    assert not changed.any()


def test_faces_that_are_given_are_not_searched_for():
    detector = DotDetector()
    restore = Pipeline(StubNetwork(), detector, turns=True)  # type: ignore[arg-type]
    prepared = restore.restoring().prepare(Photo(picture(90, 90)), [face_at(5, 5, 60)])
    assert len(prepared.faces) == 1 and detector.looks == 0


def test_a_detector_of_ones_own_is_asked_once(monkeypatch):
    monkeypatch.setattr(pipeline, "load_detector", lambda *_: StubDetector())
    assert load_pipeline("compact", "mtcnn").turns
    assert not load_pipeline("compact", "mtcnn", turns=False).turns
    own = StubDetector()
    load_pipeline("compact", own)(Photo(picture(50, 60)))
    assert len(own.seen) == 1
