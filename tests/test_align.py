import math
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from compare import ROUNDING, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cfrestore.align import (
    BORDER_COLOR,
    FFHQ_TEMPLATE,
    align_face,
    cut_crop,
    estimate_similarity,
    rescale,
)
from cfrestore.detect import Face
from cfrestore.errors import DegenerateFaceError


def similarity(scale: float, angle: float, x: float, y: float) -> NDArray[np.float64]:
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[c, -s, x], [s, c, y]])


def apply(matrix: NDArray, points: NDArray) -> NDArray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def face_at(landmarks: NDArray) -> Face:
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    return Face(np.concatenate([low, high]).astype(np.float32), 1.0, landmarks.astype(np.float32))


def face_of_size(side: float, centre: tuple[float, float], angle: float = 0.0) -> Face:
    """A face whose crop covers about side x side pixels around centre."""
    to_picture = similarity(side / 512, angle, 0, 0)
    to_picture[:, 2] = np.array(centre) - apply(to_picture, np.array([255.5, 255.5]))
    return face_at(apply(to_picture, FFHQ_TEMPLATE.astype(np.float64)))


def read(path: Path) -> NDArray[np.uint8]:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].copy()


def test_matrix_and_crop_are_the_published_ones(shared: Path) -> None:
    golden = shared / "golden" / "geometry"
    values = np.load(golden / "geometry.npz")
    aligned = align_face(read(golden / "input.png"), face_at(values["landmarks"][0]))
    np.testing.assert_allclose(aligned.to_crop, values["matrix0"], atol=1e-6)
    assert_close(aligned.crop, read(golden / "crop0.png"), ROUNDING)


@settings(deadline=None)
@given(
    st.floats(0.05, 20),
    st.floats(-math.pi, math.pi),
    st.floats(-2000, 2000),
    st.floats(-2000, 2000),
)
def test_estimate_inverts_any_similarity(scale: float, angle: float, x: float, y: float) -> None:
    landmarks = apply(similarity(scale, angle, x, y), FFHQ_TEMPLATE.astype(np.float64))
    found = apply(estimate_similarity(landmarks), landmarks)
    np.testing.assert_allclose(found, FFHQ_TEMPLATE, atol=0.2)


def test_one_bad_landmark_of_five_does_not_tilt_the_face() -> None:
    landmarks = FFHQ_TEMPLATE.copy()
    landmarks[2] += (90, -70)
    matrix = estimate_similarity(landmarks)
    np.testing.assert_allclose(matrix, [[1, 0, 0], [0, 1, 0]], atol=0.02)


def least_squares(points: NDArray, target: NDArray) -> NDArray[np.float64]:
    """The least-squares similarity, as one complex factor and one complex shift."""
    plane = points.astype(np.float64) @ (1, 1j)
    columns = np.stack([plane, np.ones(len(plane))], axis=1)
    (factor, shift), *_ = np.linalg.lstsq(columns, target.astype(np.float64) @ (1, 1j))
    return np.array(
        [[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]]
    )


@pytest.mark.parametrize("bad", range(5))
@pytest.mark.parametrize("scale", [0.3, 1.7])
def test_four_good_landmarks_are_fitted_by_least_squares_and_the_bad_one_by_none(
    bad: int, scale: float
) -> None:
    uneven = [[1, 1], [-1, 0], [0.5, -1], [0, 1], [-0.5, 0.5]]
    landmarks = apply(similarity(scale, 0.4, 30, 80), FFHQ_TEMPLATE + uneven).astype(np.float32)
    landmarks[bad] += scale * np.float32([60, -45])
    good = np.arange(5) != bad
    expected = least_squares(landmarks[good], FFHQ_TEMPLATE[good])
    found = estimate_similarity(landmarks)
    np.testing.assert_allclose(apply(found, landmarks), apply(expected, landmarks), atol=1e-2)
    plain = least_squares(landmarks, FFHQ_TEMPLATE)
    assert np.abs(apply(found, landmarks) - apply(plain, landmarks)).max() > 10


@pytest.mark.parametrize(
    ("side", "centre"), [(300, (400, 310)), (900, (400, 310)), (500, (40, 600)), (100, (790, 5))]
)
def test_a_crop_of_512_px_is_the_published_warp(side: float, centre: tuple[float, float]) -> None:
    """Bilinear, and 135, 133, 132 in blue, green and red beyond the picture."""
    picture = np.random.default_rng(3).integers(0, 256, (640, 800, 3), dtype=np.uint8)
    aligned = align_face(picture, face_of_size(side, centre, angle=0.2))
    bgr = cv2.warpAffine(
        np.ascontiguousarray(picture[..., ::-1]),
        aligned.to_crop,
        (512, 512),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(135, 133, 132),
    )
    assert_close(aligned.crop, np.ascontiguousarray(bgr[..., ::-1]), tolerance=0)


@pytest.mark.parametrize("size", [128, 256, 512])
def test_template_scales_with_the_crop(size: int) -> None:
    face = face_of_size(300, (400.3, 310.7), angle=0.5)
    aligned = align_face(np.zeros((640, 800, 3), np.uint8), face, size)
    assert aligned.crop.shape == (size, size, 3)
    assert aligned.face is face
    landed = apply(aligned.to_crop, face.landmarks)
    np.testing.assert_allclose(landed, FFHQ_TEMPLATE * (size / 512), atol=0.01)


@pytest.mark.parametrize(
    "landmarks",
    [
        np.zeros((5, 2)),
        np.full((5, 2), 300.0),
        FFHQ_TEMPLATE * 1e-6 + 300,
        np.where(np.arange(10).reshape(5, 2) == 3, np.nan, FFHQ_TEMPLATE),
        np.where(np.arange(10).reshape(5, 2) == 3, np.inf, FFHQ_TEMPLATE),
        FFHQ_TEMPLATE.astype(np.float64) * 1e60,
    ],
)
def test_landmarks_no_similarity_fits_are_refused(landmarks: NDArray) -> None:
    with np.errstate(over="ignore"), pytest.raises(DegenerateFaceError, match="landmarks"):
        estimate_similarity(landmarks)


@pytest.mark.parametrize("place", [0.0, 3.0, 256.0])
def test_a_template_that_is_one_point_is_refused(place: float) -> None:
    """The best similarity shrinks the face to nothing, and has no inverse."""
    with pytest.raises(DegenerateFaceError, match="no similarity fits"):
        estimate_similarity(FFHQ_TEMPLATE, np.full((5, 2), place))


def test_landmarks_that_are_no_face_at_any_scale_are_refused() -> None:
    """Uncorrelated with the template, so that the best scale is 0, and about 1e-7 as computed."""
    face = (FFHQ_TEMPLATE - FFHQ_TEMPLATE.mean(axis=0)).astype(float) @ (1, 1j)
    points = np.array([30, 12j, -20 + 5j, -9, -3 - 30j])
    points -= points.mean()
    points -= face * np.vdot(face, points) / np.vdot(face, face)
    with pytest.raises(DegenerateFaceError, match="no similarity fits"):
        estimate_similarity(np.stack([points.real, points.imag], axis=1) + 100)


def test_wild_landmarks_neither_hang_nor_exhaust_memory() -> None:
    picture = np.full((50, 60, 3), 200, np.uint8)
    far = face_at(FFHQ_TEMPLATE * np.float32(1e6))
    assert align_face(picture, far, 128).crop.shape == (128, 128, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_outside_the_picture_lies_the_border_colour(dtype: type) -> None:
    picture = np.zeros((100, 100, 3), dtype)
    crop = align_face(picture, face_of_size(1500, (5000, 50)), 512).crop
    assert (crop == BORDER_COLOR).all()


@pytest.mark.parametrize("size", [128, 256])
def test_smaller_crops_show_the_mirror_image_of_the_picture_outside(size: int) -> None:
    picture = np.random.default_rng(5).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    around = np.pad(picture, ((250, 250), (250, 250), (0, 0)), "reflect")
    face = face_of_size(280, (30, 200), angle=0.3)
    moved = face_at(face.landmarks + np.float32(250))
    assert_close(
        align_face(picture, face, size).crop, align_face(around, moved, size).crop, ROUNDING
    )


@pytest.mark.parametrize("size", [128, 256])
def test_far_outside_the_picture_its_border_is_repeated(size: int) -> None:
    """Mirroring the picture thousands of times would take minutes."""
    picture = np.full((100, 100, 3), 40, np.uint8)
    picture[:, -1] = 90
    crop = align_face(picture, face_of_size(1500, (5000, 50)), size).crop
    assert (crop == 90).all()


@pytest.mark.parametrize("size", [128, 512])
def test_16_bit_pictures_give_the_same_8_bit_crop(size: int) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    face = face_of_size(280, (190, 160), angle=-0.3)
    deep = align_face(picture.astype(np.uint16) * 257, face, size).crop
    assert_close(deep, align_face(picture, face, size).crop, tolerance=1)


def test_only_the_crop_of_a_16_bit_picture_is_converted() -> None:
    picture = np.zeros((2000, 2000, 3), np.uint16)
    tracemalloc.start()
    align_face(picture, face_of_size(300, (500, 500)), 256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < picture.nbytes / 5


@pytest.mark.parametrize("size", [128, 256])
@pytest.mark.parametrize("shrink", [0.6, 1.0, 1.7, 2.4, 4.5, 9.0])
def test_content_lies_where_the_matrix_says(size: int, shrink: float) -> None:
    side = size * shrink
    picture = np.zeros((int(side * 1.1),) * 2, np.float32)
    spot = np.array([side * 0.47 + 0.3, side * 0.61 - 0.2])
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    distance = ((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / (5 * max(shrink, 1)) ** 2
    picture = (255 * np.exp(-distance / 2)).round().astype(np.uint8)
    to_crop = similarity(1 / shrink, 0.2, 12.3, -3.4)
    crop = cut_crop(np.repeat(picture[..., None], 3, axis=2), to_crop, size)[..., 1]
    expected = apply(to_crop, spot)
    y, x = np.mgrid[:size, :size]
    near = np.hypot(x - expected[0], y - expected[1]) < min(25 / min(shrink, 1), 0.2 * size)
    weight = crop * near.astype(np.float64)
    found = np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()
    np.testing.assert_allclose(found, expected, atol=0.1)


def test_rescale_keeps_pixel_areas() -> None:
    to_crop = similarity(0.7, 0.4, 3, -8)
    corner = np.array([[11.0, 5.0]])
    larger = apply(rescale(to_crop, 4), corner)
    np.testing.assert_allclose(larger, 4 * (apply(to_crop, corner) + 0.5) - 0.5)


@pytest.mark.parametrize("shrink", [1.5, 2.5, 4.0, 7.0])
def test_small_crops_of_large_faces_do_not_alias(shrink: float) -> None:
    y, x = np.mgrid[:1000, :1000]
    checks = np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    to_crop = similarity(1 / shrink, 0.03, -3, -3)
    inner = slice(15, 113)
    plain = cv2.warpAffine(checks, to_crop, (128, 128))[inner, inner].astype(float)
    crop = cut_crop(checks, to_crop, 128)[inner, inner].astype(float)
    assert crop.mean() == pytest.approx(127.5, abs=2)
    assert crop.std() < plain.std() / 3


def test_two_runs_agree_and_the_picture_is_left_alone() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    before = picture.copy()
    face = face_of_size(250, (150, 90), angle=0.7)
    first, second = (align_face(picture, face, 128) for _ in range(2))
    assert (first.crop == second.crop).all()
    assert (first.to_crop == second.to_crop).all()
    assert (picture == before).all()
