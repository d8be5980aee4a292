import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from compare import assert_close, rarely
from facexlib.parsing.parsenet import ParseNet
from numpy.typing import NDArray
from parsing import fitted_parser
from torch import Tensor, nn

from cfrestore.device import Precision
from cfrestore.errors import CheckpointError, WeightsError
from cfrestore.parse import FACE_CLASSES, FaceParser, mask_from_classes
from cfrestore.paste import paste_faces


class Painted(nn.Module):
    """Stands in for the network: bright pixels are skin (1), the others background (0)."""

    seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        logits = torch.zeros(len(x), 19, *x.shape[2:])
        logits[:, 1] = x.mean(dim=1)
        return logits


def read(path: Path) -> NDArray[np.uint8]:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].copy()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ParseNet file with random weights."""
    path = tmp_path_factory.mktemp("parse") / "parsenet.pth"
    torch.manual_seed(0)
    torch.save(ParseNet(in_size=512, out_size=512, parsing_ch=19).state_dict(), path)
    return path


@pytest.fixture
def painted(checkpoint: Path) -> FaceParser:
    parser = FaceParser(checkpoint)
    parser.network = Painted()
    return parser


def golden_classes() -> NDArray[np.int64]:
    y, x = np.mgrid[:512, :512]
    classes = np.zeros((512, 512), np.int64)
    classes[((y - 290) / 190) ** 2 + ((x - 256) / 140) ** 2 < 1] = 1
    classes[((y - 150) / 110) ** 2 + ((x - 256) / 170) ** 2 < 1] = 13
    classes[y > 470] = 17
    return classes


@pytest.mark.parametrize("scale", [1, 2])
def test_masked_pasting_is_the_published_one(shared: Path, scale: int) -> None:
    golden = shared / "golden" / "geometry"
    to_crop = np.load(golden / "geometry.npz")["matrix0"]
    face = SimpleNamespace(
        crop=read(golden / "restored0.png"),
        aligned=SimpleNamespace(to_crop=to_crop, kept=None),
        opacity=1.0,
    )
    masks = [mask_from_classes(golden_classes())]
    picture = read(golden / "input.png")
    background = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    found = paste_faces(picture, [face], scale=scale, masks=masks, background=background)
    expected = read(golden / f"pasted_x{scale}_parse.png")
    assert_close(found, expected, tolerance=2)
    assert rarely(found.astype(int) - expected, 2)


@pytest.mark.parametrize("label", range(19))
def test_hat_neck_necklace_cloth_and_background_are_no_face(label: int) -> None:
    mask = mask_from_classes(np.full((512, 512), label))
    kept = label not in (0, 14, 16, 17, 18)
    assert (label in FACE_CLASSES) == kept
    assert mask[256, 256] == pytest.approx(float(kept), abs=1e-6)
    assert mask.max() <= 1


def test_masks_are_soft_and_end_before_the_sides() -> None:
    classes = np.where(np.arange(512)[None, :] < 256, 1, 18) * np.ones((512, 1), np.int64)
    mask = mask_from_classes(classes)
    assert mask.dtype == np.float32
    frame = np.ones((512, 512), bool)
    frame[10:-10, 10:-10] = False
    assert (mask[frame] == 0).all()
    assert (mask[10:-10, 10] > 0.9).all()
    assert mask[256, 256] == pytest.approx(0.5, abs=0.02)
    assert (np.diff(mask[256, 10:-10]) <= 0).all()
    assert ((mask[256] > 0.05) & (mask[256] < 0.95)).sum() > 40


def test_masks_are_the_published_formula() -> None:
    """Two Gaussians of 101 taps and sigma 11, then a frame of ten pixels, in double precision."""
    noise = np.random.default_rng(0).random((16, 16))
    classes = (cv2.resize(noise, (512, 512), interpolation=cv2.INTER_CUBIC) * 19).astype(int) % 19
    kept = np.isin(classes, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15])
    taps = np.exp(-((np.arange(101) - 50) ** 2) / (2 * 11**2))
    taps /= taps.sum()
    expected = 255.0 * kept
    for _ in range(2):
        for axis in (0, 1):  # mirrored without repeating the edge, OpenCV's default
            wide = np.pad(expected, [(50, 50) if a == axis else (0, 0) for a in (0, 1)], "reflect")
            windows = np.lib.stride_tricks.sliding_window_view(wide, 101, axis)
            expected = windows @ taps
    expected[:10], expected[-10:], expected[:, :10], expected[:, -10:] = 0, 0, 0, 0
    np.testing.assert_allclose(mask_from_classes(classes), expected / 255, atol=2e-6)


def test_a_file_in_the_published_layout_loads_strictly(shared: Path, tmp_path: Path) -> None:
    table = json.loads((shared / "spec" / "statedict_parsenet.json").read_text())
    state = {key: torch.tensor(0.5).expand(row["shape"]) for key, row in table.items()}
    assert len(state) == 238
    torch.save(state, tmp_path / "whole.pth")
    loaded = FaceParser(tmp_path / "whole.pth").network.state_dict()
    assert list(loaded) == list(table)
    assert all((value == 0.5).all() for value in loaded.values())
    del state["body.4.conv2.norm.norm.running_var"]
    torch.save(state, tmp_path / "lacking.pth")
    with pytest.raises(
        CheckpointError, match=r"1 missing: body\.4\.conv2\.norm\.norm\.running_var"
    ):
        FaceParser(tmp_path / "lacking.pth")


def test_the_network_has_the_published_keys(shared: Path, checkpoint: Path) -> None:
    text = (shared / "spec" / "statedict_parsenet.json").read_text()
    expected = {key: tuple(row["shape"]) for key, row in json.loads(text).items()}
    state = FaceParser(checkpoint).network.state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == expected
    assert list(state) == list(expected)
    saved = torch.load(checkpoint, weights_only=True)
    assert all(torch.equal(value, saved[key]) for key, value in state.items())


def test_the_parser_is_ready_for_inference(checkpoint: Path) -> None:
    network = FaceParser(checkpoint).network
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("size", [64, 176])
def test_the_network_is_facexlib_s(checkpoint: Path, size: int) -> None:
    theirs = ParseNet(in_size=512, out_size=512, parsing_ch=19)
    state = {
        key: value.uniform_(0.5, 2) if key.endswith("var") else value
        for key, value in torch.load(checkpoint, weights_only=True).items()
    }
    theirs.load_state_dict(state)
    ours = FaceParser(checkpoint).network
    ours.load_state_dict(state)
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        expected, _ = theirs.eval()(x)
        for layout in (torch.contiguous_format, torch.channels_last):
            found = ours(x.contiguous(memory_format=layout))
            assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
            assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.999


def test_a_smaller_view_gives_masks_of_the_same_shape(checkpoint: Path) -> None:
    seen, crops = [], np.full((2, 64, 64, 3), 20, np.uint8)
    crops[:, 16:48, 20:44] = 230
    masks = []
    for side in (256, 512):
        parser = FaceParser(checkpoint, side=side)
        parser.network = Painted()
        masks.append(parser(crops))
        seen.append(parser.network.seen.shape[-1])
    assert seen == [256, 512]
    assert masks[0].shape == (2, 64, 64)
    small, full = (mask > 0.5 for mask in masks)
    assert (small & full).sum() / (small | full).sum() > 0.95


def test_bf16_gives_nearly_the_same_masks(shared: Path, tmp_path: Path) -> None:
    """Intersection over union of at least 0.98, on faces that the last layer was not fitted to."""
    paths = sorted((shared / "faces" / "valid-512").glob("*.[jp][pn]g"))[:4]
    if not paths:
        pytest.skip("shared holds no faces")
    faces = np.stack([cv2.resize(read(path), (224, 224)) for path in paths])
    torch.save(fitted_parser(faces[:2]), tmp_path / "parsenet.pth")
    full, half = (
        FaceParser(tmp_path / "parsenet.pth", side=224, precision=precision)(faces[2:])
        for precision in (Precision.FP32, Precision.BF16)
    )
    assert (full != half).any()
    assert np.abs(full - half).max() < 0.1
    full, half = full > 0.5, half > 0.5
    assert 0.1 < full.mean() < 0.8
    assert (full & half).sum() / (full | half).sum() > 0.98


@pytest.mark.parametrize(("precision", "kind"), [("FP32", torch.float32), ("BF16", torch.bfloat16)])
def test_the_network_computes_in_what_is_asked_for(
    checkpoint: Path, precision: str, kind: torch.dtype
) -> None:
    parser, found = FaceParser(checkpoint, side=64, precision=Precision[precision]), []
    parser.network.out_mask_conv.register_forward_hook(lambda _, x, y: found.append(y.dtype))
    parser(np.zeros((1, 64, 64, 3), np.uint8))
    assert found == [kind]


@pytest.mark.slow
def test_random_weights_give_masks(checkpoint: Path) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), dtype=np.uint8)
    masks = FaceParser(checkpoint)(crops)
    assert masks.shape == (1, 128, 128)
    assert masks.dtype == np.float32
    assert masks.min() >= 0
    assert masks.max() <= 1


@pytest.mark.parametrize("size", [128, 256, 512])
def test_masks_have_the_size_and_place_of_their_crops(painted: FaceParser, size: int) -> None:
    crops = np.zeros((2, size, size, 3), np.uint8)
    crops[0, : size // 2] = 255
    crops[1, :, size // 2 :] = 255
    masks = painted(crops)
    assert masks.shape == (2, size, size)
    assert masks.dtype == np.float32
    half, tenth = size // 2, size // 10
    middle = (masks[0, half - 1, half] + masks[0, half, half]) / 2
    assert middle == pytest.approx(0.5, abs=0.02)
    assert masks[0, half - 2 * tenth, half] > 0.99
    assert masks[0, half + 2 * tenth, half] < 0.01
    np.testing.assert_allclose(masks[1], masks[0].T[:, ::-1], atol=1e-3)
    assert (masks[:, 0] == 0).all()
    assert (masks[:, :, -1] == 0).all()
    assert (painted(crops[1:])[0] == masks[1]).all()


def test_the_network_sees_rgb_between_minus_one_and_one(painted: FaceParser) -> None:
    crop = np.zeros((1, 64, 64, 3), np.uint8)
    crop[..., 0] = 255
    painted(crop)
    seen = painted.network.seen
    assert seen.shape == (1, 3, 512, 512)
    assert (seen[0, 0] == 1).all()
    assert (seen[0, 1:] == -1).all()


def test_no_crops_give_no_masks(painted: FaceParser) -> None:
    assert painted(np.zeros((0, 256, 256, 3), np.uint8)).shape == (0, 256, 256)


def test_a_file_of_another_network_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    state["extra.weight"] = state.pop("encoder.0.conv2d.bias")
    state["out_mask_conv.conv2d.bias"] = torch.zeros(7)
    path = tmp_path / "other.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        FaceParser(path)
    text = str(caught.value)
    assert "1 missing: encoder.0.conv2d.bias" in text
    assert "1 unexpected: extra.weight" in text
    assert "1 of another shape: out_mask_conv.conv2d.bias (7,) instead of (19,)" in text


def test_only_the_first_differing_keys_are_named(tmp_path: Path) -> None:
    path = tmp_path / "small.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="238 missing") as caught:
        FaceParser(path)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_files_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.pth"):
        FaceParser(tmp_path / "absent.pth")
    path = tmp_path / "text.pth"
    path.write_text("no weights")
    with pytest.raises(CheckpointError, match=r"text\.pth"):
        FaceParser(path)
