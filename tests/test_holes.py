import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from stubs import face_at, picture

from cfrestore.align import AlignedFace, align_face
from cfrestore.holes import enlarge_holes, mask_holes, share_holes, white_holes
from cfrestore.image import Photo


def aligned(x: float, y: float, side: float, height: int = 100, width: int = 200) -> AlignedFace:
    return align_face(picture(height, width), face_at(x, y, side), 32)


def mask(values: NDArray, alpha: NDArray | None = None) -> Photo:
    return Photo(np.ascontiguousarray(np.repeat(values[..., None], 3, axis=2)), alpha)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_only_pure_white_is_a_hole(dtype: type) -> None:
    top = np.iinfo(dtype).max
    pixels = np.full((2, 3, 3), top, dtype)
    pixels[0, 1, 2] = top - 1
    pixels[1, 2] = 0
    assert white_holes(pixels).tolist() == [[True, False, True], [True, True, False]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 255, 128, 127], [False, True, True, False]),
        ([0, 1, 0, 1], [False, True, False, True]),
        ([3, 250, 0, 244], [False, True, False, True]),
        ([0, 0, 0, 0], [False] * 4),
        ([7, 7, 7, 7], [True] * 4),
    ],
    ids=["bytes", "ones", "JPEG", "black", "even"],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_says_it_by_brightness(values: list[int], expected: list[bool], dtype: type) -> None:
    assert mask_holes(mask(np.array([values], dtype))).tolist() == [expected]


def test_a_mask_may_have_any_colour_and_transparency_is_black() -> None:
    pixels = np.zeros((1, 3, 3), np.uint8)
    pixels[0, :, 0] = 255
    alpha = np.array([[255, 0, 127]], np.uint8)
    assert mask_holes(Photo(pixels)).tolist() == [[True, True, True]]
    assert mask_holes(Photo(pixels, alpha)).tolist() == [[True, False, False]]


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_enlarged_holes_take_in_all_that_shows_them(scale: int) -> None:
    holes = np.random.default_rng(0).random((13, 17)) < 0.1
    dark, light = (Photo(np.where(holes[..., None], v, picture(13, 17))) for v in (0, 255))
    from cfrestore.paste import paste_faces

    larger = [paste_faces(photo.pixels, [], scale=scale) for photo in (dark, light)]
    differ = (larger[0] != larger[1]).any(axis=2)
    found = enlarge_holes(holes, scale)
    near = cv2.dilate(holes.astype(np.uint8), np.ones((5, 5)))  # bicubically, two pixels count
    assert not (differ & ~found).any()
    assert not (found & ~near.repeat(scale, 0).repeat(scale, 1).astype(bool)).any()


def test_a_hole_belongs_to_the_face_it_is_most_central_to() -> None:
    left, right = aligned(10, 10, 80), aligned(60, 10, 80)
    holes = np.zeros((100, 200), bool)
    holes[40:60, 5:195] = True
    for faces, (first, second) in (((left, right), (0, 1)), ((right, left), (1, 0))):
        owners = share_holes(holes, faces)
        assert (owners[~holes] == -1).all()
        assert (owners[40:60, 12:74] == first).all()
        assert (owners[40:60, 76:138] == second).all()
        assert (owners[40:60, 5:9] == -1).all()
        assert (owners[40:60, 142:195] == -1).all()


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_every_pixel_of_a_crop_is_its_faces(scale: int) -> None:
    face = aligned(20, 10, 64)
    owners = share_holes(np.ones((100 * scale, 200 * scale), bool), [face], scale=scale)
    rows, columns = np.nonzero(owners == 0)
    assert abs(len(rows) - (64 * scale) ** 2) <= 130 * scale
    assert rows.min() == pytest.approx(10 * scale, abs=scale)
    assert columns.max() == pytest.approx(84 * scale, abs=scale)


def test_faces_outside_and_no_faces_fill_nothing() -> None:
    holes = np.ones((100, 200), bool)
    assert (share_holes(holes, []) == -1).all()
    assert (share_holes(holes, [aligned(400, 10, 64)]) == -1).all()
