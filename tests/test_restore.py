import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stubs import StubNetwork, face_at, picture, small_network
from torch import Tensor

from cfrestore.align import AlignedFace, align_face
from cfrestore.restore import FailedFace, RestoredFace, keep_colours, restore_faces


def aligned(crop: NDArray[np.uint8]) -> AlignedFace:
    return AlignedFace(crop, np.eye(2, 3), face_at(0, 0, 32))


def crops(count: int) -> list[AlignedFace]:
    return [aligned(picture(32, 32, seed=seed)) for seed in range(count)]


def test_faces_come_back_in_order_whatever_the_batch() -> None:
    faces = crops(5)
    for batch_size, batches in ((1, [1] * 5), (2, [2, 2, 1]), (8, [5])):
        network = StubNetwork()
        results = restore_faces(network, faces, fidelity=0.7, batch_size=batch_size)
        assert [len(x) for x, _, _ in network.calls] == batches
        assert all(call[1:] == (0.7, True) for call in network.calls)
        for face, result in zip(faces, results, strict=True):
            assert isinstance(result, RestoredFace)
            assert result.aligned is face
            assert result.fidelity == 0.7
            assert np.array_equal(result.crop, face.crop)


def test_the_network_sees_rgb_from_minus_one_to_one() -> None:
    crop = np.zeros((32, 32, 3), np.uint8)
    crop[..., 0], crop[0, 0] = 255, 51
    network = StubNetwork()
    restore_faces(network, [aligned(crop)], fidelity=1)
    ((x, _, _),) = network.calls
    assert x.shape == (1, 3, 32, 32)
    assert x[0, :, 1, 1].tolist() == [1, -1, -1]
    assert x[0, :, 0, 0].tolist() == pytest.approx([-0.6] * 3)


def test_a_batch_is_as_good_as_its_faces_alone_and_runs_are_equal() -> None:
    network, faces = small_network(), crops(4)
    together = restore_faces(network, faces, fidelity=0.5, batch_size=4)
    again = restore_faces(network, faces, fidelity=0.5, batch_size=4)
    alone = restore_faces(network, faces, fidelity=0.5, batch_size=1)
    for one, two, three in zip(together, again, alone, strict=True):
        assert isinstance(one, RestoredFace)
        assert isinstance(two, RestoredFace)
        assert isinstance(three, RestoredFace)
        assert np.array_equal(one.crop, two.crop)
        assert np.abs(one.crop.astype(int) - three.crop).max() <= 1


def test_no_faces_are_no_work() -> None:
    network = StubNetwork()
    assert restore_faces(network, [], fidelity=0.5) == ()
    assert network.calls == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_face_that_is_not_finite_fails_alone(value: float) -> None:
    def paint(x: Tensor) -> Tensor:
        y = x.clone()
        y[1, 2, 3, 4] = value
        return y

    faces = crops(3)
    first, second, third = restore_faces(StubNetwork(paint), faces, fidelity=0.5)
    assert isinstance(second, FailedFace)
    assert second.face is faces[1].face
    assert "finite" in second.reason
    assert isinstance(first, RestoredFace)
    assert isinstance(third, RestoredFace)
    assert np.array_equal(third.crop, faces[2].crop)


@pytest.mark.parametrize("level", [0.0, -3.0])
def test_a_flat_face_fails(level: float) -> None:
    network = StubNetwork(lambda x: torch.full_like(x, level))
    (result,) = restore_faces(network, crops(1), fidelity=0.5)
    assert isinstance(result, FailedFace)
    assert "flat" in result.reason


def test_gray_faces_stay_gray_and_as_bright() -> None:
    original = np.repeat(picture(32, 32)[..., :1], 3, axis=2)
    network = StubNetwork(lambda x: x * torch.tensor([0.2, -0.5, 0.9]).view(3, 1, 1) + 0.3)
    (result,) = restore_faces(network, [aligned(original)], fidelity=0.5, gray=True)
    assert isinstance(result, RestoredFace)
    assert result.crop.dtype == np.uint8
    assert np.ptp(result.crop, axis=2).max() == 0
    assert result.crop.mean() == pytest.approx(original.mean(), abs=0.5)
    assert result.crop.std() == pytest.approx(original.std(), abs=0.5)


def test_a_gray_face_that_leaves_the_range_is_clipped_not_wrapped() -> None:
    # Nearly all of the crop is black or white, the painting has one peak: matching overshoots.
    original = np.zeros((32, 32, 3), np.uint8)
    original[:16] = 255

    def paint(x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[..., :3, :3], y[..., -3:, -3:] = 1, -1
        return y

    (result,) = restore_faces(StubNetwork(paint), [aligned(original)], fidelity=0.5, gray=True)
    assert isinstance(result, RestoredFace)
    assert (result.crop[:3, :3] == 255).all()
    assert (result.crop[-3:, -3:] == 0).all()


def test_a_tint_of_the_whole_picture_is_kept() -> None:
    original = np.repeat(picture(32, 32)[..., :1], 3, axis=2).clip(0, 200) + np.uint8([40, 20, 0])
    (result,) = restore_faces(StubNetwork(), [aligned(original)], fidelity=0.5, gray=True)
    assert isinstance(result, RestoredFace)
    tint = result.crop.astype(float).mean((0, 1)) - original.astype(float).mean((0, 1))
    assert np.abs(tint).max() < 0.6


def test_colours_are_kept_where_the_model_asks_for_it() -> None:
    random = np.random.default_rng(0)
    original = np.full((64, 64, 3), (60, 120, 200), np.uint8)
    detail = random.integers(-20, 21, (64, 64, 1))
    shifted = np.clip(original.astype(int) + np.array((40, -30, -50)) + detail, 0, 255).astype(
        np.uint8
    )
    kept = keep_colours(shifted, original)
    assert np.abs(kept.mean((0, 1)) - original.mean((0, 1))).max() < 2
    assert np.corrcoef(kept[..., 1].ravel(), detail.ravel())[0, 1] > 0.95
    assert (keep_colours(original, original) == original).all()


@pytest.mark.parametrize(("side", "softened"), [(20, False), (32, False), (64, True), (400, True)])
def test_a_face_larger_than_the_networks_is_known_to_be_softened(side: int, softened: bool) -> None:
    face = align_face(picture(420, 420), face_at(4, 4, side), 32)
    (restored,) = restore_faces(StubNetwork(), [face], fidelity=0.5)
    assert isinstance(restored, RestoredFace)
    assert restored.softened is softened
