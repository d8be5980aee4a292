import numpy as np
import pytest

from cfrestore.detect import Face
from cfrestore.errors import ConfigError
from cfrestore.options import Options, parse_faces, parse_max_face
from cfrestore.select import SkippedFace, missing_faces, select_faces

SIZE = (100, 200)  # height, width


def box(x0: float, y0: float, x1: float, y1: float) -> Face:
    return Face(np.array([x0, y0, x1, y1], np.float32), 0.9, np.zeros((5, 2), np.float32))


CORNER = box(0, 0, 40, 50)  # 2000 px, 110 px from the middle
WIDE = box(90, 0, 190, 20)  # 2000 px, 57 px away
MIDDLE = box(95, 60, 115, 90)  # 600 px, 26 px away
OUTSIDE = box(150, 50, 250, 150)  # 10000 px, 2500 in the picture, 111 px away
FACES = (CORNER, WIDE, MIDDLE, OUTSIDE)


def chosen(wanted, min_face: int = 0, faces=FACES) -> list[int]:
    selected = select_faces(faces, SIZE, wanted, min_face)
    assert len(selected) == len(faces)
    for face, result in zip(faces, selected, strict=True):
        assert result is face or (isinstance(result, SkippedFace) and result.face is face)
    return [k for k, face in enumerate(selected) if isinstance(face, Face)]


def test_all_faces_unless_told_otherwise() -> None:
    assert select_faces(FACES, SIZE) == FACES
    for wanted in ("all", "center", "largest", (0,)):
        assert chosen(wanted, faces=()) == []


def test_the_centre_is_that_of_box_and_picture() -> None:
    assert chosen("center") == [2]
    assert chosen("center", faces=FACES[:2]) == [1]
    # With the axes of the picture exchanged, its middle would be (50, 100), nearest to CORNER.
    assert chosen("center", faces=(CORNER, WIDE)) == [1]


def test_the_largest_is_that_with_most_within_the_picture() -> None:
    assert chosen("largest") == [3]
    far_out = box(190, 90, 400, 400)  # 100 px of it in the picture
    assert chosen("largest", faces=(MIDDLE, far_out)) == [0]
    assert chosen("largest", faces=(far_out, box(300, 300, 500, 500))) == [0]
    # Both corners left of the picture and above it: the product of two negative sides is no area.
    assert chosen("largest", faces=(box(-90, -90, -10, -10), MIDDLE)) == [1]


def test_of_equals_the_surer_is_taken() -> None:
    assert chosen("largest", faces=(CORNER, WIDE)) == [0]
    assert chosen("center", faces=(MIDDLE, MIDDLE)) == [0]


def test_indices_are_those_of_the_detectors_order() -> None:
    assert chosen((3, 0)) == [0, 3]
    assert chosen((1, 1, 7)) == [1]
    reasons = [f.reason for f in select_faces(FACES, SIZE, (1,)) if isinstance(f, SkippedFace)]
    assert reasons == ["not selected"] * 3


def test_indices_that_no_face_has_are_told() -> None:
    assert missing_faces(4, (9, 0, 4, 9)) == (4, 9)
    assert missing_faces(0, (0,)) == (0,)
    for wanted in ("all", "center", "largest", (0, 3)):
        assert missing_faces(4, wanted) == ()


def test_small_faces_are_left_alone_by_the_shorter_side_of_their_boxes() -> None:
    assert chosen("all", 20) == [0, 1, 2, 3]
    assert chosen("all", 21) == [0, 3]
    (skipped,) = select_faces((WIDE,), SIZE, "all", 30)
    assert isinstance(skipped, SkippedFace)
    assert skipped.reason == "smaller than 30 px"
    assert chosen("center", 30) == [0]  # MIDDLE and WIDE do not count
    assert chosen((0, 2), 30) == [0]  # and the indices do not move
    assert chosen("largest", 1000) == []


def test_large_faces_are_left_alone_by_the_same_side() -> None:
    reasons = [
        f.reason if isinstance(f, SkippedFace) else None
        for f in select_faces(FACES, SIZE, "all", 0, 20)
    ]
    assert reasons == ["larger than 20 px", None, None, "larger than 20 px"]
    both = [isinstance(f, SkippedFace) for f in select_faces(FACES, SIZE, "largest", 20, 20)]
    assert both == [True, False, True, True]  # WIDE is the larger of the two that are left


# The choice as text, and as an option


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("all", "all"), ("center", "center"), ("largest", "largest"), ("0", (0,)), ("2, 0", (2, 0))],
)
def test_a_wish_is_read(text: str, wanted: object) -> None:
    assert parse_faces(text) == wanted
    assert Options(faces=parse_faces(text)).faces == wanted


@pytest.mark.parametrize("text", ["", "left", "0,", "1.5", "0;1", "ALL", "-1", "0,-2"])
def test_a_wish_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="^--faces must be all, center, largest or numbers such"):
        parse_faces(text)


@pytest.mark.parametrize("wanted", [(), [0], 0, "0", (-1,), (0.5,), None])
def test_options_hold_parsed_wishes_only(wanted) -> None:
    with pytest.raises(ConfigError, match="faces must be .* or a tuple of whole numbers from 0"):
        Options(faces=wanted)


@pytest.mark.parametrize(("text", "limit"), [("auto", "auto"), ("none", None), ("900", 900)])
def test_the_largest_face_is_read(text: str, limit: object) -> None:
    assert parse_max_face(text) == limit
    assert Options(max_face=parse_max_face(text)).max_face == limit


@pytest.mark.parametrize("text", ["", "big", "0", "-1", "1.5"])
def test_a_largest_face_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="^--max-face must be auto, none or a whole number"):
        parse_max_face(text)


def test_an_aligned_face_is_not_chosen() -> None:
    for options in ({"faces": (0,)}, {"min_face": 9}, {"max_face": 9}, {"draw_box": True}):
        with pytest.raises(ConfigError, match="aligned"):
            Options(aligned=True, **options)
    with pytest.raises(ConfigError, match="min_face"):
        Options(min_face=-1)
