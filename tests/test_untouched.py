"""From file to file: pixels outside the faces equal those of the input, bit for bit."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stubs import StubDetector, StubNetwork, face_at, picture

from cfrestore.image import Photo, read_photo, write_photo
from cfrestore.pipeline import Pipeline

FORMATS = {  # lossless ones: whether they hold 16 bits, and alpha
    "PNG": (True, True),
    "TIFF": (True, True),
    "WEBP": (False, True),
    "PPM": (True, False),
    "BMP": (False, False),
}


def as_file(photo: Photo, format: str) -> io.BytesIO:
    stream = io.BytesIO()
    write_photo(photo, stream, format=format, quality=100)
    stream.seek(0)
    return stream


@pytest.mark.parametrize("format", FORMATS)
@settings(deadline=None, max_examples=20)
@given(
    deep=st.booleans(),
    transparent=st.booleans(),
    gray=st.booleans(),
    seed=st.integers(0, 2**16),
    x=st.integers(-10, 40),
    y=st.integers(-10, 30),
)
def test_pixels_outside_the_faces_stay_bit_for_bit(
    format: str, deep: bool, transparent: bool, gray: bool, seed: int, x: int, y: int
) -> None:
    holds_16, holds_alpha = FORMATS[format]
    dtype = np.uint16 if deep and holds_16 else np.uint8
    pixels = picture(48, 64, dtype, seed)
    if gray:
        pixels = np.repeat(pixels[..., :1], 3, axis=2)
    alpha = np.random.default_rng(seed).integers(0, 256, (48, 64)).astype(dtype)
    photo = Photo(pixels, alpha if transparent and holds_alpha else None, gray=gray)
    before = read_photo(as_file(photo, format))
    assert np.array_equal(before.pixels, pixels)

    pipeline = Pipeline(StubNetwork(lambda crops: -crops), StubDetector(face_at(x, y, 24)))
    after = read_photo(as_file(pipeline(before).photo, format))

    assert after.pixels.dtype == before.pixels.dtype
    changed = (after.pixels != before.pixels).any(axis=2)
    assert changed.any()
    changed[max(0, y) : max(0, y + 24), max(0, x) : max(0, x + 24)] = False
    assert not changed.any()
    if before.alpha is None:
        assert after.alpha is None
    else:
        assert np.array_equal(after.alpha, before.alpha)
