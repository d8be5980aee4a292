import numpy as np
import pytest
from stubs import face_at, picture

from cfrestore.align import align_face
from cfrestore.image import Photo
from cfrestore.show import draw_frames, sheet, side_by_side


def changed(before, after):
    return (before != after).any(axis=2)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("size", [32, 128, 512])
def test_a_green_frame_runs_just_within_the_square(size: int, scale: int) -> None:
    pixels = picture(300, 400)
    face = align_face(pixels, face_at(100, 60, 160), size)
    large = np.repeat(np.repeat(pixels, scale, axis=0), scale, axis=1)
    result = draw_frames(large, [face], scale=scale)
    lines = changed(large, result)
    y, x = np.nonzero(lines)
    left, top, side = 100 * scale, 60 * scale, 160 * scale
    for found, expected in ((x, left), (y, top)):
        near = (1 + 80 / size) * scale  # half a pixel of the crop, by which its square is shifted
        assert abs(found.min() - expected) <= near
        assert abs(found.max() - (expected + side)) <= near
    inner = slice(top + 9, top + side - 9), slice(left + 9, left + side - 9)
    assert not lines[inner].any()
    assert 2 <= lines[top + side // 2, : left + 20].sum() <= 5
    middle = result[top + side // 2, left - 8 : left + 8].astype(int)
    assert (abs(middle - (0, 255, 0)).sum(axis=1) < 12).any()
    assert np.array_equal(large[~lines], result[~lines])


def test_the_frame_turns_with_the_face() -> None:
    upright = face_at(100, 60, 160)
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    middle = np.array([180, 140])
    tilted = type(upright)(
        upright.box, 0.9, ((upright.landmarks - middle) @ turn.T + middle).astype(np.float32)
    )
    pixels = np.zeros((300, 400, 3), np.uint8)
    result = draw_frames(pixels, [align_face(pixels, tilted)])
    for corner in ([-77, -77], [77, -77], [-77, 77], [77, 77]):
        x, y = np.rint(np.array(corner) @ turn.T + middle).astype(int)
        assert result[y - 3 : y + 4, x - 3 : x + 4, 1].max() > 200
    assert not result[60:66, 170:190].any()  # where the side of the upright square would be


def test_sixteen_bits_stay_and_the_input_is_not_touched() -> None:
    pixels = picture(100, 100, np.uint16)
    before = pixels.copy()
    result = draw_frames(pixels, [align_face(pixels, face_at(20, 20, 60))])
    assert result.dtype == np.uint16
    assert result[..., 1].max() == 65535
    assert np.array_equal(pixels, before)
    assert np.array_equal(draw_frames(pixels, []), pixels)


@pytest.mark.parametrize("side", [4, 12, 1500, 3000])
def test_faces_of_every_size_get_a_frame(side: int) -> None:
    pixels = np.zeros((side + 20, side + 20, 3), np.uint8)
    lines = draw_frames(pixels, [align_face(pixels, face_at(10, 10, side))])[..., 1] > 128
    assert 4 * side * 0.5 < lines.sum() < 4 * side * 6


def test_a_face_outside_gets_none_and_one_at_the_border_a_part() -> None:
    pixels = picture(60, 60)
    assert np.array_equal(draw_frames(pixels, [align_face(pixels, face_at(200, 0, 40))]), pixels)
    lines = changed(pixels, draw_frames(pixels, [align_face(pixels, face_at(-20, 10, 40))]))
    assert lines[:, :21].any()
    assert not lines[:, 25:].any()


# Before and after


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_before_is_left_and_after_right(dtype: type) -> None:
    before = Photo(picture(30, 40, dtype), icc=b"profile", format="JPEG")
    after = Photo(picture(60, 80, dtype, seed=1))
    result = side_by_side(before, after)
    assert result.pixels.dtype == dtype
    assert result.size == (60, 160)
    assert np.array_equal(result.pixels[:, 80:], after.pixels)
    coarse = result.pixels[:, :80].astype(float).reshape(30, 2, 40, 2, 3).mean(axis=(1, 3))
    unit = np.iinfo(dtype).max / 255
    assert np.abs(coarse - before.pixels).mean() < 5 * unit
    assert result.icc == b"profile"
    assert side_by_side(before, before).pixels[:, :40].tolist() == before.pixels.tolist()


def test_a_picture_is_averaged_down_to_a_smaller_result() -> None:
    fine = np.zeros((64, 64, 3), np.uint8)
    fine[::2] = 200
    result = side_by_side(Photo(fine), Photo(picture(16, 16)))
    assert (result.pixels[:, :16] == 100).all()


def test_alpha_and_gray_are_shown_too() -> None:
    alpha = np.full((20, 20), 9, np.uint8)
    gray = np.repeat(picture(20, 20)[..., :1], 3, axis=2)
    result = side_by_side(Photo(gray, alpha, gray=True), Photo(gray, alpha, gray=True))
    assert result.alpha is not None
    assert (result.alpha == 9).all()
    assert result.alpha.shape == (20, 40)
    assert result.gray
    assert side_by_side(Photo(gray, gray=True), Photo(picture(20, 20))).gray is False


def test_sheets_are_as_square_as_they_can_be_or_have_the_columns_that_are_asked() -> None:
    tiles = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((2, 3, 3), np.uint8)
    whole = sheet(tiles)
    assert whole.shape == (4, 9, 3)
    assert whole[::2, ::3, 0].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert sheet(tiles, 2)[::2, ::3, 0].tolist() == [[1, 2], [3, 4], [5, 0]]
