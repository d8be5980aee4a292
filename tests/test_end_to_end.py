"""The command, with the shipped weights, on a real face that the test degrades."""

import io
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.data import astronaut

from cfrestore.cli import main
from cfrestore.degrade import SMALL, degrade
from cfrestore.detect import load_detector
from cfrestore.image import read_photo

Pixels = NDArray[np.uint8]
FACE = (slice(25, 95), slice(85, 140))  # of the 256 px portrait


@pytest.fixture(scope="module")
def clean() -> Pixels:
    return cv2.resize(astronaut(), (256, 256), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def degraded(clean: Pixels) -> Pixels:
    """Blurred, noisy, compressed and reduced to a quarter, while the face can still be found."""
    damage = replace(SMALL.scaled(128), downsample=(3, 3), noise=(12, 12), jpeg_quality=(60, 60))
    batch = torch.from_numpy(clean).permute(2, 0, 1)[None].float() / 255
    out = degrade(batch, damage, torch.Generator().manual_seed(0))
    return (out[0] * 255).round().byte().permute(1, 2, 0).numpy()


def restore(pixels: Pixels, folder: Path, *words: str) -> Pixels:
    source = folder / "in.png"
    Image.fromarray(pixels).save(source)
    target = folder / "out.png"
    common = ("--device", "cpu", "--detector", "mtcnn", "--model", "compact", "--overwrite")
    with pytest.raises(SystemExit) as ended:
        main([str(source), "-o", str(target), *common, *words])
    assert not ended.value.code
    return np.asarray(read_photo(target).pixels)


def error(a: Pixels, b: Pixels) -> float:
    """Mean absolute difference in the face region."""
    return float(np.abs(a[FACE].astype(float) - b[FACE]).mean())


def sharpness(pixels: Pixels) -> float:
    luma = cv2.cvtColor(np.ascontiguousarray(pixels[FACE]), cv2.COLOR_RGB2GRAY)
    return float(np.hypot(cv2.Sobel(luma, 5, 1, 0), cv2.Sobel(luma, 5, 0, 1)).mean())


def test_a_degraded_face_comes_nearer_to_the_clean_one(
    clean: Pixels, degraded: Pixels, tmp_path: Path
) -> None:
    restored = restore(degraded, tmp_path, "--w", "0.7")
    assert restored.shape == degraded.shape
    assert error(restored, clean) < error(degraded, clean)
    assert abs(sharpness(restored) - sharpness(clean)) < abs(sharpness(degraded) - sharpness(clean))


def test_the_rest_of_the_picture_is_untouched(degraded: Pixels, tmp_path: Path) -> None:
    restored = restore(degraded, tmp_path)
    changed = (restored != degraded).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert changed[FACE].mean() > 0.9
    (face,) = load_detector("mtcnn")(degraded)
    reach = 2.2 * (face.box[2:] - face.box[:2]).max()
    middle = (face.box[:2] + face.box[2:]) / 2
    assert np.abs(columns - middle[0]).max() < reach / 1.4
    assert np.abs(rows - middle[1]).max() < reach / 1.4


def test_w_changes_pixels(degraded: Pixels, tmp_path: Path) -> None:
    low, high = (restore(degraded, tmp_path, "--w", w) for w in ("0", "1"))
    assert error(low, high) > 1


def test_two_runs_give_the_same_bytes(degraded: Pixels, tmp_path: Path) -> None:
    first, second = (restore(degraded, tmp_path) for _ in range(2))
    assert (first == second).all()


def test_a_gray_photograph_stays_gray(clean: Pixels, tmp_path: Path) -> None:
    gray = cv2.cvtColor(cv2.cvtColor(clean, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    restored = restore(gray, tmp_path)
    assert (restored == restored[..., :1]).all()
    assert (restored != gray).any()


@pytest.mark.parametrize("scale", ["2", "4"])
def test_upscaling_gives_exactly_that_size(degraded: Pixels, tmp_path: Path, scale: str) -> None:
    odd = degraded[:231, :249]
    restored = restore(np.ascontiguousarray(odd), tmp_path, "--upscale", scale)
    assert restored.shape == (231 * int(scale), 249 * int(scale), 3)


def test_everyone_in_a_group_is_restored(shared: Path, tmp_path: Path) -> None:
    from group_photo import compose_group

    pixels, people = compose_group(shared / "faces", seed=0)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=50)
    worse = read_photo(data.getvalue()).pixels
    restored = restore(np.asarray(worse), tmp_path, "--max-face", "none")  # some are still sharp
    changed = (restored != worse).any(axis=2)
    for landmarks in people:
        x, y = landmarks.mean(axis=0).astype(int)
        assert changed[y, x]
    assert changed.mean() < 0.5
