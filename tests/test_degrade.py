import math

import cv2
import numpy as np
import pytest
import torch

from cfrestore.degrade import (
    LARGE,
    SMALL,
    Degradation,
    blur,
    degrade,
    gaussian_kernels,
    jpeg,
    resize_matrix,
)

CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_faces(count: int = 2, size: int = 64) -> torch.Tensor:
    coarse = torch.rand(count, 3, 6, 6, generator=seeded(7))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("damage", [SMALL, LARGE])
def test_same_seed_same_damage(damage: Degradation) -> None:
    clean = smooth_faces()
    first = degrade(clean, damage.scaled(64), seeded(3))
    assert torch.equal(first, degrade(clean, damage.scaled(64), seeded(3)))
    assert not torch.equal(first, degrade(clean, damage.scaled(64), seeded(4)))
    assert first.shape == clean.shape
    assert torch.equal(first, (first * 255).round() / 255)


def test_large_damage_is_larger() -> None:
    clean = smooth_faces(8, 128)
    errors = [
        (degrade(clean, d.scaled(128), seeded(1)) - clean).square().mean() for d in (SMALL, LARGE)
    ]
    assert errors[0] < errors[1]


def test_ranges_scale_with_the_face() -> None:
    half = LARGE.scaled(256)
    assert half.blur_sigma == (0.5, 7.5)
    assert half.kernel_size == 21
    assert (half.downsample, half.noise, half.jpeg_quality) == (
        LARGE.downsample,
        LARGE.noise,
        LARGE.jpeg_quality,
    )
    assert LARGE.scaled(512) == LARGE


def test_kernels_have_the_drawn_width() -> None:
    kernels = gaussian_kernels(Degradation((3, 3), (1, 1), (0, 0), (90, 90)), 4, seeded(), CPU)
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(4))
    offset = torch.arange(-20, 21.0)
    torch.testing.assert_close((kernels.sum(1) * offset.square()).sum(1), torch.full((4,), 9.0))


def test_anisotropic_kernels_occur_about_half_the_time() -> None:
    kernels = gaussian_kernels(Degradation((1, 5), (1, 1), (0, 0), (90, 90)), 400, seeded(), CPU)
    isotropic = (kernels - kernels.mT.flip(1)).abs().amax((1, 2)) < 1e-6  # quarter-turn symmetric
    assert 0.4 < isotropic.float().mean() < 0.6


def test_blur_equals_opencv() -> None:
    clean = smooth_faces(2, 48)
    kernels = gaussian_kernels(LARGE.scaled(128), 2, seeded(), CPU)
    blurred = blur(clean, kernels)
    for image, kernel, ours in zip(clean, kernels, blurred, strict=True):
        theirs = cv2.filter2D(image.permute(1, 2, 0).numpy(), -1, kernel.numpy())
        np.testing.assert_allclose(ours.permute(1, 2, 0).numpy(), theirs, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), [(64, 21), (64, 64), (13, 64), (64, 1)])
def test_resizing_equals_opencv(source: int, target: int) -> None:
    image = smooth_faces(1, source)[0, 0].numpy()
    theirs = cv2.resize(image, (target, target), interpolation=cv2.INTER_LINEAR)
    matrix = resize_matrix(torch.tensor([source]), torch.tensor([target]), source, target)[0]
    ours = matrix @ torch.from_numpy(image) @ matrix.T
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_jpeg_is_close_to_a_real_encoder(quality: int) -> None:
    texture = torch.rand(1, 3, 64, 64, generator=seeded(2)) * 0.2
    image = (smooth_faces(1)[:1] * 0.8 + texture).clamp(0, 1)
    pixels = (image[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    theirs = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(float)
    ours = jpeg(image, torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy() * 255
    damage = math.sqrt(((theirs - pixels) ** 2).mean())
    assert math.sqrt(((theirs - ours) ** 2).mean()) < 0.25 * damage


def test_a_face_does_not_depend_on_its_batch() -> None:
    """The canvas grows with the largest face of a batch; this must not affect smaller ones."""
    fixed = Degradation((1, 1), (4, 4), (0, 0), (50, 50), kernel_size=9)
    clean = smooth_faces(3)
    together = degrade(clean, fixed, seeded())
    alone = degrade(clean[:1], fixed, seeded())
    assert (together[:1] - alone).abs().max() <= 1.5 / 255
