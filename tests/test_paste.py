import math
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from compare import assert_close, rarely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cfrestore.align import FFHQ_TEMPLATE, align_face
from cfrestore.detect import Face
from cfrestore.paste import Layer, face_layer, invert, paste_faces, soften
from cfrestore.restore import RestoredFace


@dataclass(frozen=True)
class Published:
    """One face in the full frame, by the formulas of the published pipeline."""

    face: NDArray  # (H, W, 3), black beyond the crop
    coverage: NDArray  # (H, W), m1
    opacity: NDArray  # (H, W), m

    def over(self, background: NDArray) -> NDArray:
        opacity = self.opacity[..., None]
        return opacity * self.coverage[..., None] * self.face + (1 - opacity) * background


def published(
    crop: NDArray,
    to_picture: NDArray,
    shape: tuple[int, int],
    scale: int,
    mask: NDArray | None = None,
) -> Published:
    def warp(image: NDArray) -> NDArray:
        return cv2.warpAffine(image.astype(np.float32), to_picture, shape[::-1])

    coverage = cv2.erode(warp(np.ones(crop.shape[:2])), np.ones((2 * scale, 2 * scale)))
    edge = int(math.sqrt(coverage.sum(dtype=np.float64))) // 20
    core = cv2.erode(coverage, np.ones((2 * edge, 2 * edge)) if edge else None)
    opacity = cv2.GaussianBlur(core, (2 * edge + 1, 2 * edge + 1), 0)
    if mask is not None:
        opacity = np.minimum(opacity, warp(mask))
    return Published(warp(crop), coverage, opacity)


def in_frame(part: NDArray | None, rows: slice, columns: slice, shape: tuple[int, int]) -> NDArray:
    frame = np.zeros((*shape, *part.shape[2:]), part.dtype)
    frame[rows, columns] = part
    return frame


def face_of(layer: Layer) -> NDArray[np.float32]:
    """All of the warped face; that of no layer here depends on the picture."""
    height, width = layer.opacity.shape
    return layer.face(slice(0, height), slice(0, width), np.zeros((height, width, 3), np.uint8))


def similarity(scale: float, angle: float, x: float, y: float) -> NDArray[np.float64]:
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[c, -s, x], [s, c, y]])


def placed(
    size: int, side: float, centre: tuple[float, float], angle: float = 0.0
) -> NDArray[np.float64]:
    """Crop px -> picture px: the crop becomes side x side pixels around centre."""
    matrix = similarity(side / size, angle, 0, 0)
    matrix[:, 2] = np.array(centre) - matrix[:, :2].sum(axis=1) * (size - 1) / 2
    return matrix


def restored(
    crop: NDArray, to_picture: NDArray, kept: float | None = None, original: NDArray | None = None
) -> SimpleNamespace:
    """The part of a RestoredFace that pasting uses."""
    to_crop = cv2.invertAffineTransform(to_picture)
    aligned = SimpleNamespace(to_crop=to_crop, kept=kept, crop=original)
    return SimpleNamespace(crop=crop, aligned=aligned, opacity=1.0)


def smooth(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def read(path: Path) -> NDArray[np.uint8]:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].copy()


@pytest.mark.parametrize("scale", [1, 2])
def test_pasting_is_the_published_one(shared: Path, scale: int) -> None:
    golden = shared / "golden" / "geometry"
    values = np.load(golden / "geometry.npz")
    to_picture = invert(values["matrix0"], scale)
    # The recorded matrix lacks the shift of half a pixel, which the recorded picture has.
    shift = [[0, 0, 0.5 * scale * (scale > 1)]] * 2
    np.testing.assert_allclose(to_picture, values[f"inverse0_x{scale}"] + shift, atol=1e-6)
    face = SimpleNamespace(
        crop=read(golden / "restored0.png"),
        aligned=SimpleNamespace(to_crop=values["matrix0"], kept=None),
        opacity=1.0,
    )
    picture = read(golden / "input.png")
    background = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    found = paste_faces(picture, [face], scale=scale, background=background)
    expected = read(golden / f"pasted_x{scale}_square.png")
    assert_close(found, expected, tolerance=2)
    assert rarely(found.astype(int) - expected, 2)


# Matrices whose inverses have exact binary fractions: there OpenCV's float32 coordinates are exact.
EXACT = [(1, 0), (0, 1), (-1, 0), (0.5, 0), (0, -0.5), (2, 0), (0.5, 0.5), (0.25, -0.25), (1, 1)]


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(EXACT),
    st.integers(-600, 5000),
    st.integers(-600, 4000),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
)
def test_region_equals_full_frame(
    linear: tuple[float, float], x: int, y: int, scale: int, masked: bool
) -> None:
    a, b = linear
    shape = (230, 310)
    to_picture = np.array([[a, -b, x / 8], [b, a, y / 8]])
    crop = noise(512, 512)
    mask = cv2.GaussianBlur(noise(512, 512, 1)[..., 0] / np.float32(255), (0, 0), 3)
    expected = published(crop, to_picture, shape, scale, mask if masked else None)
    layer = face_layer(crop, to_picture, shape, scale=scale, mask=mask if masked else None)
    if layer is None:
        assert expected.coverage.max() == 0
        return
    opacity = in_frame(layer.opacity, layer.rows, layer.columns, shape)
    face = in_frame(face_of(layer), layer.rows, layer.columns, shape)
    np.testing.assert_allclose(opacity, expected.opacity * expected.coverage, atol=1e-5)
    background = noise(*shape, 2).astype(np.float32)
    found = opacity[..., None] * face + (1 - opacity[..., None]) * background
    covered = (expected.coverage == 1) | (expected.opacity == 0)
    np.testing.assert_allclose(found[covered], expected.over(background)[covered], atol=1e-3)


@settings(deadline=None, max_examples=60)
@given(
    st.floats(15, 900),
    st.floats(-math.pi, math.pi),
    st.tuples(st.floats(-50, 750), st.floats(-50, 550)),
    st.sampled_from([1, 2, 4]),
)
def test_any_face_is_masked_and_placed_as_published(
    side: float, angle: float, centre: tuple[float, float], scale: int
) -> None:
    """0.1 levels: OpenCV's float32 coordinates are coarser in the full frame."""
    shape = (500, 700)
    to_picture = placed(512, side, centre, angle)
    crop = smooth(512, 512)
    expected = published(crop, to_picture, shape, scale)
    layer = face_layer(crop, to_picture, shape, scale=scale)
    if layer is None:
        assert expected.coverage.max() == 0
        return
    opacity = in_frame(layer.opacity, layer.rows, layer.columns, shape)
    face = in_frame(face_of(layer), layer.rows, layer.columns, shape)
    wide = expected.coverage.sum() > 400**2  # see the third test after this one
    expected_opacity = expected.opacity * expected.coverage
    np.testing.assert_allclose(opacity, expected_opacity, atol=1.5 / 255 if wide else 2e-3)
    covered = expected.coverage == 1
    np.testing.assert_allclose(face[covered], expected.face[covered], atol=0.1)


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("angle", [0, 0.03, 0.4])
@pytest.mark.parametrize("side", [200, 350, 480])
def test_the_edge_of_a_larger_face_is_the_published_one(
    side: float, angle: float, scale: int
) -> None:
    shape = (700, 700)
    to_picture = placed(512, side, (350.4, 349.3), angle)
    crop, background = smooth(512, 512), smooth(*shape, 1).astype(np.float32)
    layer = face_layer(crop, to_picture, shape, scale=scale)
    assert layer is not None
    opacity = in_frame(layer.opacity, layer.rows, layer.columns, shape)[..., None]
    face = in_frame(face_of(layer), layer.rows, layer.columns, shape)
    found = opacity * face + (1 - opacity) * background
    expected = published(crop, to_picture, shape, scale).over(background)
    assert np.abs(found - expected).max() < 0.65


@settings(deadline=None, max_examples=40)
@given(
    st.floats(420, 1400),
    st.floats(-math.pi, math.pi),
    st.tuples(st.floats(-0.6, 1.2), st.floats(-0.6, 1.2)),
)
def test_wide_fades_are_blurred_closely_in_a_smaller_picture(
    side: float, angle: float, place: tuple[float, float]
) -> None:
    frame = np.array((int(side * 1.2), int(side)))
    to_picture = placed(512, side, tuple(np.array(place) * frame[::-1]), angle)
    expected = published(np.zeros((512, 512, 3), np.uint8), to_picture, tuple(frame), 1)
    assert np.abs(soften(expected.coverage) - expected.opacity).max() < 1.5 / 255


@pytest.mark.parametrize("size", [128, 256, 512])
@pytest.mark.parametrize("side", [12, 30, 65, 140, 300])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_face_of_the_background_s_colour_is_invisible(size: int, side: float, scale: int) -> None:
    picture = np.full((320, 330, 3), 230, np.uint8)
    face = restored(np.full((size, size, 3), 230, np.uint8), placed(size, side, (160.3, 158), 0.2))
    assert (paste_faces(picture, [face], scale=scale) == 230).all()


def test_the_published_formula_draws_a_dark_frame_around_small_faces() -> None:
    picture = np.full((320, 330, 3), 230, np.float32)
    darkest = []
    for side in (30, 200):
        face = published(
            picture[:1, :1].repeat(512, 0).repeat(512, 1),
            placed(512, side, (160.3, 158), 0.2),
            (320, 330),
            1,
        )
        darkest.append((picture - face.over(picture)).max())
    assert darkest[0] > 50
    assert darkest[1] < 1


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("angle", [0.0, 0.6])
def test_the_half_pixel_is_that_of_the_published_pipeline(scale: int, angle: float) -> None:
    """N is the inverse of the similarity, in closed form; all of it times the scale, then 0.5 s."""
    to_crop = similarity(1.7, angle, -40, 95)
    c, s = math.cos(angle) / 1.7, math.sin(angle) / 1.7
    linear = np.array([[c, s], [-s, c]])
    expected = np.column_stack([linear, -linear @ to_crop[:, 2]]) * scale
    if scale > 1:
        expected[:, 2] += 0.5 * scale
    np.testing.assert_allclose(invert(to_crop, scale), expected, atol=1e-9)


@pytest.mark.parametrize("size", [128, 256, 512])
@pytest.mark.parametrize(
    ("centre", "side"),
    [((300, 200), 150), ((0, 200), 300), ((599, 399), 500), ((300, 10), 60), ((300, 200), 2000)],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_only_pixels_under_the_mask_change(
    size: int, centre: tuple[float, float], side: float, dtype: type
) -> None:
    picture = noise(400, 600).astype(dtype) * (257 if dtype is np.uint16 else 1)
    before = picture.copy()
    to_picture = placed(size, side, centre, 0.3)
    crop = 255 - smooth(size, size, 3)
    face = restored(crop, to_picture)
    found = paste_faces(picture, [face])
    layer = face_layer(crop, invert(face.aligned.to_crop, 1), (400, 600))
    assert layer is not None
    outside = in_frame(layer.opacity, layer.rows, layer.columns, (400, 600)) == 0
    assert found.dtype == dtype
    assert (found[outside] == before[outside]).all()
    assert (found != before).any()
    assert (picture == before).all()
    assert found is not picture
    assert (paste_faces(picture, [face]) == found).all()


@pytest.mark.parametrize("size", [128, 512])
@pytest.mark.parametrize("side", [90, 700])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_blending_in_bands_and_where_it_shows_is_blending_everywhere(
    size: int, side: float, dtype: type
) -> None:
    """Half a level is rounding, the rest OpenCV's coordinates in float32."""
    level = 257 if dtype is np.uint16 else 1
    picture = noise(600, 900).astype(dtype) * dtype(level)
    crop = smooth(size, size, 3)
    face = restored(crop, placed(size, side, (420.3, 310), 0.3))
    spot = np.zeros((size, size), np.float32)
    cv2.circle(spot, (size // 2, size // 3), size // 5, 1, -1)
    mask = cv2.GaussianBlur(spot, (0, 0), size / 40)
    layer = face_layer(
        crop * np.float32(level), invert(face.aligned.to_crop, 1), (600, 900), mask=mask
    )
    assert layer is not None
    below = picture[layer.rows, layer.columns].astype(np.float64)
    whole = face_of(layer).clip(0, 255 * level) - below
    expected = picture.astype(np.float64)
    expected[layer.rows, layer.columns] += layer.opacity[..., None] * whole
    found = paste_faces(picture, [face], masks=[mask])
    assert np.abs(found - expected).max() <= 0.5 + 0.02 * level


def test_faces_at_a_border_are_not_faded_there() -> None:
    picture = np.zeros((300, 300, 3), np.uint8)
    white = np.full((512, 512, 3), 255, np.uint8)
    found = paste_faces(picture, [restored(white, placed(512, 200, (0, 150)))])
    assert (found[120:180, 0] == 255).all()
    assert (found[:, 105:] == 0).all()


@pytest.mark.parametrize("centre", [(-400, 100), (900, 100), (100, -400), (1e7, 1e7)])
def test_a_face_outside_the_picture_changes_nothing(centre: tuple[float, float]) -> None:
    picture = noise(200, 300)
    face = restored(noise(256, 256), placed(256, 300, centre))
    assert (paste_faces(picture, [face]) == picture).all()


@pytest.mark.parametrize("size", [128, 512])
@pytest.mark.parametrize("scale", [1, 2])
def test_zero_mask_gives_the_background_exactly(size: int, scale: int) -> None:
    picture = noise(150, 170)
    face = restored(noise(size, size, 1), placed(size, 120, (80, 80), 0.4))
    zero = np.zeros((size, size), np.float32)
    found = paste_faces(picture, [face], scale=scale, masks=[zero])
    assert (found == paste_faces(picture, [], scale=scale)).all()


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("shape", [(37, 53), (1, 1), (200, 31)])
def test_size_is_exactly_scale_times_the_picture_s(scale: int, shape: tuple[int, int]) -> None:
    picture = noise(*shape)
    face = restored(smooth(256, 256), placed(256, 40, (20, 20)))
    found = paste_faces(picture, [face], scale=scale)
    assert found.shape == (shape[0] * scale, shape[1] * scale, 3)
    enlarged = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    assert (paste_faces(picture, [], scale=scale) == enlarged).all()


@pytest.mark.parametrize("scale", [1, 2])
def test_overlapping_faces_lie_on_one_another_in_order(scale: int) -> None:
    picture = smooth(300, 420, 5)
    places = [placed(512, 220, (150, 140), 0.2), placed(512, 180, (240, 170), -0.5)]
    places.append(placed(512, 260, (330, 139), 0.1))
    faces = [restored(smooth(512, 512, seed), place) for seed, place in enumerate(places)]
    shape = (300 * scale, 420 * scale)
    expected = paste_faces(picture, [], scale=scale).astype(np.float32)
    for face in faces:
        to_picture = invert(face.aligned.to_crop, scale)
        expected = published(face.crop, to_picture, shape, scale).over(expected)
    found = paste_faces(picture, faces, scale=scale)
    assert_close(found, np.rint(expected).astype(np.uint8), tolerance=1)
    assert (found != paste_faces(picture, faces[::-1], scale=scale)).any()


@pytest.mark.parametrize("size", [128, 512])
def test_16_bit_pictures_are_blended_in_16_bits(size: int) -> None:
    picture = noise(200, 200).astype(np.uint16) * 257
    picture[:, :, 1] = 40_001  # not an 8-bit value
    face = restored(smooth(size, size), placed(size, 150, (100, 100), 0.2))
    found = paste_faces(picture, [face])
    coarse = paste_faces(np.rint(picture / 257).astype(np.uint8), [face])
    error = np.abs(found / 257 - coarse)
    assert found.dtype == np.uint16
    assert error.max() <= 1.01
    assert (found[0] == picture[0]).all()
    white = restored(np.full((size, size, 3), 255, np.uint8), placed(size, 150, (100, 100)))
    assert (paste_faces(picture, [white])[100, 100] == 65535).all()


def test_a_given_background_is_used() -> None:
    picture, upsampled = noise(50, 60), smooth(201, 239)
    found = paste_faces(picture, [], scale=4, background=upsampled)
    assert (found == cv2.resize(upsampled, (240, 200), interpolation=cv2.INTER_LANCZOS4)).all()
    same = smooth(100, 120)
    assert paste_faces(picture, [], scale=2, background=same) is same


def test_arguments_that_do_not_fit_are_refused() -> None:
    picture = noise(50, 60)
    face = restored(noise(128, 128), placed(128, 40, (30, 30)))
    with pytest.raises(ValueError, match="background must be uint8"):
        paste_faces(picture, [face], background=picture.astype(np.uint16))
    with pytest.raises(ValueError, match="mask must be"):
        paste_faces(picture, [face], masks=[np.ones((512, 512), np.float32)])
    with pytest.raises(ValueError, match="zip"):
        paste_faces(picture, [face], masks=[])


@pytest.mark.parametrize("size", [128, 256, 512])
@pytest.mark.parametrize("side", [60, 100, 250, 500, 900])
def test_the_untouched_crop_pasted_back_changes_nearly_nothing(size: int, side: float) -> None:
    picture = smooth(int(1.5 * side), int(1.6 * side))
    place = placed(512, side, (0.79 * side, 0.76 * side), 0.3)
    landmarks = FFHQ_TEMPLATE @ place[:, :2].T + place[:, 2]
    face = Face(np.zeros(4, np.float32), 1.0, landmarks.astype(np.float32))
    aligned = align_face(picture, face, size)
    back = paste_faces(picture, [RestoredFace(aligned.crop, aligned, 0.5)])
    change = back.astype(np.float64) - picture
    assert np.abs(change).max() <= 3
    # A shift by d changes the picture by its gradient times d: the fit of d must vanish.
    gradients = np.gradient(picture.astype(np.float64), axis=(1, 0))
    shift = [(change * g).sum() / (g * g).sum() for g in gradients]
    np.testing.assert_allclose(shift, 0, atol=0.02)


def test_small_crops_of_small_faces_do_not_alias() -> None:
    y, x = np.mgrid[:256, :256]
    checks = np.repeat(((x // 2 + y // 2) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    picture = np.full((200, 200, 3), 127, np.uint8)
    found = paste_faces(picture, [restored(checks, placed(256, 60, (100, 100), 0.1))])
    assert np.abs(found.astype(int) - 127).max() < 15


def test_a_small_face_in_a_large_picture_costs_little() -> None:
    picture = np.zeros((3000, 3000, 3), np.uint8)
    face = restored(noise(512, 512), placed(512, 150, (1500, 1500)))
    tracemalloc.start()
    paste_faces(picture, [face])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < picture.nbytes * 1.3


def test_pasting_imports_no_torch() -> None:
    code = "import sys, cfrestore.paste; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_face_shows_as_much_as_it_is_opaque() -> None:
    picture, crop = smooth(200, 200), noise(64, 64)
    face = restored(crop, placed(64, 90, (100, 100)))
    whole = paste_faces(picture, [face]).astype(float)
    face.opacity = 0.25
    quarter = paste_faces(picture, [face]).astype(float)
    np.testing.assert_allclose(quarter, picture + 0.25 * (whole - picture), atol=1)
    face.opacity = 0.0
    assert np.array_equal(paste_faces(picture, [face]), picture)
