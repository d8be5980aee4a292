"""Networks that enlarge pictures of any content, and what they are used for."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command import Command, detect, make
from numpy.typing import NDArray
from published import random_published_file, random_state
from stubs import LeftParser, StubDetector, StubNetwork, face_at, picture, small_network
from torch import Tensor

from cfrestore.align import align_face
from cfrestore.batch.ahead import threads
from cfrestore.device import CPU, Precision
from cfrestore.errors import CheckpointError, ConfigError, WeightsError
from cfrestore.image import Photo, read_photo, resize, to_uint8
from cfrestore.models.rrdbnet import RRDBNet, RRDBNetConfig
from cfrestore.models.srvgg import SRVGGConfig, SRVGGNetCompact
from cfrestore.options import Options, Upsampling
from cfrestore.paste import paste_faces
from cfrestore.pipeline import Pipeline, load_pipeline
from cfrestore.restore import RestoredFace
from cfrestore.stopping import Stopped
from cfrestore.upsample import Upsampler, load_upsampler, with_more_pixels

Network = RRDBNet | SRVGGNetCompact


def saved(path: Path, network: Network) -> Path:
    torch.save({"params_ema": network.state_dict()}, path)
    return path


def random_rrdbnet(scale: int = 2) -> RRDBNet:
    torch.manual_seed(scale)
    return RRDBNet(RRDBNetConfig(scale, features=8, growth=4, blocks=2))


def random_srvgg(scale: int = 2, depth: int = 2) -> SRVGGNetCompact:
    torch.manual_seed(scale)
    return SRVGGNetCompact(SRVGGConfig(scale, features=8, depth=depth))


def plain_srvgg(scale: int = 2, shift: float = 0.0) -> SRVGGNetCompact:
    """A network that repeats each pixel, made brighter by shift."""
    network = random_srvgg(scale)
    with torch.no_grad():
        network.body[-1].weight.zero_()
        network.body[-1].bias.fill_(shift)
    return network


@pytest.fixture
def upsampler(tmp_path: Path) -> Callable[..., Upsampler]:
    """Makes the upsampler of a network."""

    def make(network: Network, *values: Any) -> Upsampler:
        return Upsampler(saved(tmp_path / "network.pth", network), *values)

    return make


# The networks


def plain_rrdbnet(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network as its specification has it, step by step."""

    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def act(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    b, _, h, w = x.shape
    x = x.reshape(b, 3, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 12, h // 2, -1)
    x = first = conv("conv_first", x)
    for block in range(23):
        start = x
        for unit in ("rdb1", "rdb2", "rdb3"):
            seen = [x]
            for k in range(1, 5):
                seen.append(act(conv(f"body.{block}.{unit}.conv{k}", torch.cat(seen, 1))))
            x = 0.2 * conv(f"body.{block}.{unit}.conv5", torch.cat(seen, 1)) + x
        x = 0.2 * x + start
    x = first + conv("conv_body", x)
    for name in ("conv_up1", "conv_up2"):
        x = act(conv(name, x.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    return conv("conv_last", act(conv("conv_hr", x)))


def test_the_published_layout_computes_what_the_specification_says(shared: Path) -> None:
    layout = shared / "spec/statedict_rrdbnet_x2.json"
    arrays = random_state(shared).state(str(layout), 3)
    state = {key: torch.from_numpy(value) for key, value in arrays.items()}
    network = RRDBNet()
    assert list(network.state_dict()) == list(json.loads(layout.read_text(encoding="utf-8")))
    network.load_state_dict(state)
    x = torch.rand(1, 3, 12, 20, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = network(x), plain_rrdbnet(state, x)
    assert found.shape == (1, 3, 24, 40)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_published_file_is_opened(shared: Path, tmp_path: Path) -> None:
    path = random_published_file(shared, "rrdbnet_x2", tmp_path / "x2.pth")
    found = Upsampler(path)(picture(9, 13), 2)
    assert found.shape == (18, 26, 3)


def test_a_srvgg_adds_to_the_repeated_pixels() -> None:
    network = random_srvgg(4)
    x = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        painted = x
        for layer in network.body:
            painted = layer(painted)
        found = network(x)
    assert len(network.body) == 2 * 3 + 1
    for row, column in ((0, 0), (7, 22), (19, 27)):
        channel = 4 * (row % 4) + column % 4
        added = painted[0, [channel, 16 + channel, 32 + channel], row // 4, column // 4]
        expected = x[0, :, row // 4, column // 4] + added
        torch.testing.assert_close(found[0, :, row, column], expected)


@pytest.mark.parametrize("make", [random_rrdbnet, random_srvgg])
@pytest.mark.parametrize("own", [1, 2, 4])
def test_shape_and_scale_follow_from_the_tensors(
    upsampler: Callable[..., Upsampler], make: Callable[[int], Network], own: int
) -> None:
    network = make(own).eval()
    enlarge = upsampler(network)
    assert type(enlarge.network) is type(network)
    assert enlarge.network.scale == own
    pixels = picture(12, 16)
    with torch.no_grad():
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        expected = (network(x)[0].permute(1, 2, 0).clamp(0, 1) * 255).round().numpy()
    assert np.abs(enlarge(pixels, own) - expected).max() <= 1


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {"encoder.weight": torch.zeros(1)},
        lambda state: {k: v for k, v in state.items() if not k.startswith("body.0")},
        lambda state: {**state, "conv_first.weight": torch.zeros(8, 5, 3, 3)},
        lambda state: {**state, "conv_first.weight": torch.zeros(8)},
        lambda state: {**state, "body.999999999999.rdb1.conv1.weight": torch.zeros(1)},
        lambda state: {"body.0.weight": torch.zeros(8, 3, 3, 3)},
        lambda state: {"body.0.weight": torch.zeros(0, 3, 3, 3), "body.1.weight": torch.zeros(0)},
    ],
)
def test_other_files_are_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    path = tmp_path / "other.pth"
    torch.save(change(random_rrdbnet().state_dict()), path)
    with pytest.raises(
        CheckpointError, match=r"other\.pth (holds no upsampler|is not the \w+ that)"
    ):
        Upsampler(path)


def test_published_weights_that_are_absent_are_an_error_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFRESTORE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"RealESRGAN_x2plus\.pth was not found in .*fetch"):
        load_upsampler("realesrgan")
    with pytest.raises(
        WeightsError, match=r"'mine\.pth' is neither a file nor one of realesrgan, realesr-general"
    ):
        load_upsampler("mine.pth")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda value: value.long(), "int64"),
        (lambda value: value.to(torch.complex64), "complex64"),
        (lambda value: value.to_sparse(), "float32 sparse"),
    ],
)
def test_numbers_of_another_type_are_refused(
    tmp_path: Path, change: Callable[[Tensor], Tensor], found: str
) -> None:
    path = tmp_path / "other.pth"
    torch.save({key: change(value) for key, value in plain_srvgg().state_dict().items()}, path)
    with pytest.raises(CheckpointError, match=rf"of another type: body\.0\.weight {found},"):
        Upsampler(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"background": ""}, "the up-sampler has an empty name"),
        ({"tile": 63}, "tile must be a whole number from 64, found 63"),
        ({"tile": 100.0}, "tile must be a whole number from 64, found 100.0"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Upsampling(**values)


# Pictures


def test_nobody_waits_for_tiles_after_an_interruption(
    upsampler: Callable[..., Upsampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    enlarge = upsampler(plain_srvgg(), CPU, 64)
    forward, begun, interrupted = enlarge.network.forward, Event(), Event()
    tiles: list[Tensor] = []

    def slow(x: Tensor) -> Tensor:
        tiles.append(x)
        begun.set()
        assert interrupted.wait(20)
        time.sleep(0.1)  # until the pool is told
        return forward(x)

    monkeypatch.setattr(enlarge.network, "forward", slow)
    with pytest.raises(KeyboardInterrupt), threads(2) as pool:
        both = [pool.submit(enlarge, picture(300, 300), 2) for _ in range(2)]
        assert begun.wait(20)
        interrupted.set()
        raise KeyboardInterrupt
    assert len(tiles) < 3  # of 50
    assert all(isinstance(each.exception(), Stopped) for each in both)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("own", [1, 2, 4])
@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 1), (7, 130), (131, 67)])
def test_the_size_is_exactly_scale_times_the_input(
    upsampler: Callable[..., Upsampler], size: tuple[int, int], scale: int, own: int, dtype: type
) -> None:
    enlarge = upsampler(random_rrdbnet(own), CPU, 64)
    found = enlarge(picture(*size).astype(dtype), scale)
    assert found.shape == (size[0] * scale, size[1] * scale, 3)
    assert found.dtype == dtype


@pytest.mark.parametrize("own", [2, 4])
def test_what_is_too_large_is_averaged_and_no_depth_is_lost(
    upsampler: Callable[..., Upsampler], own: int
) -> None:
    fine = np.random.default_rng(0).integers(0, 65536, (70, 90, 3)).astype(np.uint16)
    enlarge = upsampler(plain_srvgg(own))
    assert np.array_equal(enlarge(fine, 1), fine)
    assert np.array_equal(enlarge(fine, own), fine.repeat(own, 0).repeat(own, 1))


def test_what_is_too_small_is_interpolated_further(upsampler: Callable[..., Upsampler]) -> None:
    pixels = picture(40, 50)
    found = upsampler(random_srvgg(1))(pixels, 4)
    once = upsampler(random_srvgg(1))(pixels, 1)
    assert found.shape == (160, 200, 3)
    assert np.abs(resize(found, 40, 50).astype(int) - once).mean() < 4


@pytest.mark.parametrize("make", [random_rrdbnet, random_srvgg])
def test_tiles_leave_no_seams(
    upsampler: Callable[..., Upsampler], make: Callable[[], Network]
) -> None:
    pixels = picture(150, 210)
    whole, tiled = (upsampler(make(), CPU, tile)(pixels, 2) for tile in (400, 67))
    difference = np.abs(whole.astype(int) - tiled)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_tiles_shrink_while_there_is_not_enough_memory(
    upsampler: Callable[..., Upsampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    enlarge = upsampler(random_srvgg(), CPU, 256)
    pixels = picture(300, 300)
    expected = enlarge(pixels, 2)
    sides: list[int] = []
    forward = enlarge.network.forward

    def limited(x: Tensor) -> Tensor:
        sides.append(max(x.shape[2:]))
        if sides[-1] > limit:
            raise RuntimeError("CUDA out of memory")
        return forward(x)

    monkeypatch.setattr(enlarge.network, "forward", limited)
    limit = 150
    assert np.abs(enlarge(pixels, 2).astype(int) - expected).max() <= 1
    assert sides[:3] == [296, 168, 104]
    limit = 50
    with pytest.raises(MemoryError):
        enlarge(pixels, 2)
    assert sides[-1] == 104


def test_what_is_not_finite_is_painted_again_in_full_precision_or_is_an_error(
    upsampler: Callable[..., Upsampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    enlarge = upsampler(plain_srvgg(), CPU, 400, Precision.BF16)
    forward = enlarge.network.forward

    def spoiled(x: Tensor) -> Tensor:
        painted = forward(x)
        return painted * float("nan") if torch.is_autocast_enabled("cpu") else painted

    monkeypatch.setattr(enlarge.network, "forward", spoiled)
    pixels = picture(8, 8)
    assert np.array_equal(enlarge(pixels, 1), pixels)
    monkeypatch.setattr(enlarge.network, "forward", lambda x: forward(x) * float("inf"))
    with pytest.raises(CheckpointError, match=r"network\.pth paints is not finite"):
        enlarge(pixels, 1)


def test_small_tiles_are_refused(upsampler: Callable[..., Upsampler]) -> None:
    with pytest.raises(ConfigError, match="whole number from 64, found 63"):
        upsampler(plain_srvgg(), CPU, 63)


# Faces


def restored(box: tuple[int, int, int], pixels: NDArray[np.uint8]) -> RestoredFace:
    aligned = align_face(pixels, face_at(*box), 32)
    return RestoredFace(aligned.crop, aligned, 0.5)


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 2, columns * 2, rows + columns], 2).astype(np.uint8)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_more_pixels_do_not_move_a_face(upsampler: Callable[..., Upsampler], scale: int) -> None:
    pixels = smooth(100, 100)
    face = restored((10, 20, 60), pixels)
    more = with_more_pixels(face, upsampler(plain_srvgg(4)), scale)
    assert more.crop.shape[0] == {1: 64, 2: 128, 4: 128}[scale]
    plain, finer = (paste_faces(pixels, [each], scale=scale).astype(int) for each in (face, more))
    inside = np.s_[30 * scale : 70 * scale, 20 * scale : 60 * scale]
    assert np.abs((plain - finer)[inside].mean((0, 1))).max() < 0.2  # a pixel is two levels


def test_faces_that_gain_nothing_stay_as_they_are(upsampler: Callable[..., Upsampler]) -> None:
    enlarge = upsampler(plain_srvgg(2, shift=0.1))
    small = restored((10, 20, 20), smooth(100, 100))
    assert with_more_pixels(small, enlarge, 1) is small
    assert with_more_pixels(small, enlarge, 2) is not small
    large = restored((10, 20, 60), smooth(100, 100))
    detailed = replace(large.aligned, kept=np.ones((32, 32), np.float32))
    detailed_face = replace(large, aligned=detailed)
    assert with_more_pixels(detailed_face, enlarge, 4) is detailed_face


# Photographs


def test_the_background_is_enlarged_by_the_network_and_the_face_is_pasted(
    upsampler: Callable[..., Upsampler],
) -> None:
    pixels = picture(90, 120)
    network, detector = StubNetwork(lambda x: -x), StubDetector(face_at(24, 24, 31))
    plain = Pipeline(network, detector)
    enlarge = upsampler(plain_srvgg(2, shift=0.1))
    for scale in (1, 2, 4):
        options = Options(upscale=scale)
        found = replace(plain, bg_upsampler=enlarge)(Photo(pixels), options)
        before = plain(Photo(pixels), options).photo.pixels
        background = enlarge(pixels, scale)
        outside = np.s_[70 * scale :, 70 * scale :]
        assert np.array_equal(found.photo.pixels[outside], background[outside])
        assert not np.array_equal(before[outside], background[outside])
        middle = np.s_[38 * scale : 42 * scale, 38 * scale : 42 * scale]
        assert np.abs(found.photo.pixels[middle].astype(int) - before[middle]).max() <= 1
        assert len(found.restored) == 1


def test_a_picture_without_faces_is_enlarged_too(upsampler: Callable[..., Upsampler]) -> None:
    enlarge = upsampler(plain_srvgg(2, shift=0.1))
    pixels = picture(30, 40)
    found = Pipeline(StubNetwork(), StubDetector(), bg_upsampler=enlarge)(
        Photo(pixels), Options(upscale=2)
    )
    assert np.array_equal(found.photo.pixels, enlarge(pixels, 2))


def test_samples_share_one_background_and_gray_stays_gray(
    upsampler: Callable[..., Upsampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    enlarge = upsampler(random_srvgg())
    calls: list[Tensor] = []
    forward = enlarge.network.forward

    def counted(x: Tensor) -> Tensor:
        calls.append(x)
        return forward(x)

    monkeypatch.setattr(enlarge.network, "forward", counted)
    gray = np.repeat(picture(40, 40)[..., :1], 3, 2)
    network, detector = small_network(), StubDetector(face_at(4, 4, 32))
    restore = Pipeline(network, detector, bg_upsampler=enlarge)
    found = restore(Photo(gray), Options(upscale=2, samples=2))
    assert len(found.samples) == 2
    assert len({photo.pixels.tobytes() for photo in (found.photo, *found.samples)}) == 3
    for sample in found.samples:  # without what was pasted into the others
        assert np.array_equal(sample.pixels[-4:], found.photo.pixels[-4:])
    alone = restore(Photo(gray), Options(upscale=2))
    assert np.array_equal(alone.photo.pixels, found.photo.pixels)
    calls.pop()
    for photo in (found.photo, *found.samples):
        assert np.ptp(photo.pixels.astype(int), axis=2).max() == 0
    assert len(calls) == 1


def test_faces_are_enlarged_within_their_masks_and_kept_as_painted(
    upsampler: Callable[..., Upsampler],
) -> None:
    pixels = smooth(100, 100)
    network, detector = StubNetwork(), StubDetector(face_at(40, 40, 31))
    enlarge = upsampler(plain_srvgg(4, shift=0.2))
    plain = Pipeline(network, detector, parser=LeftParser())  # type: ignore[arg-type]
    options = Options(upscale=2)
    before = plain(Photo(pixels), options)
    after = replace(plain, face_upsampler=enlarge)(Photo(pixels), options)
    assert np.array_equal(before.restored[0].crop, after.restored[0].crop)
    brighter = after.photo.pixels.astype(int) - before.photo.pixels
    assert brighter[110, 95].min() > 40
    assert not brighter[:, 114:].any()  # the right half is not the face's
    assert not brighter[:, :80].any()


def test_loading_names_the_network_in_files_and_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFRESTORE_HOME", str(tmp_path / "home"))
    path = saved(tmp_path / "mine.pth", random_srvgg())
    plain = load_pipeline("compact", "mtcnn", "cpu")
    assert (plain.upsampler, plain.bg_upsampler, plain.face_upsampler) == (None, None, None)
    both = load_pipeline("compact", "mtcnn", "cpu", upsampling=Upsampling(str(path), True, 100))
    assert both.bg_upsampler is both.face_upsampler is not None
    assert both.files["upsampler"] == path
    assert both.upsampler.tile == 100
    behind = load_pipeline("compact", "mtcnn", "cpu", upsampling=Upsampling(str(path)))
    assert behind.face_upsampler is None
    identities = [plain.identity, both.identity, behind.identity]
    assert all(identities.count(identity) == 1 for identity in identities)
    same = saved(tmp_path / "same.pth", random_rrdbnet(1))
    with pytest.raises(ConfigError, match=r"same\.pth enlarges nothing"):
        load_pipeline("compact", "mtcnn", "cpu", upsampling=Upsampling(str(same), True))
    for wrong in ({"aligned": True}, {"task": "colorization"}):
        with pytest.raises(ConfigError, match="only the restoration of whole photographs"):
            load_pipeline("compact", device="cpu", upsampling=Upsampling(str(path)), **wrong)


def test_levels_are_those_of_the_picture(upsampler: Callable[..., Upsampler]) -> None:
    deep = picture(20, 20).astype(np.uint16) * 257
    enlarge = upsampler(random_srvgg())
    assert np.abs(to_uint8(enlarge(deep, 2)).astype(int) - enlarge(picture(20, 20), 2)).max() <= 1


# The command


def test_the_command_says_what_enlarged_a_picture_and_does_it_again_with_another(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect(monkeypatch)
    make("in/a.png")
    saved(Path("bright.pth"), plain_srvgg(2, shift=0.1))
    saved(Path("plain.pth"), plain_srvgg(2))
    before = read_photo("in/a.png").pixels
    means = []
    for network in ("bright.pth", "plain.pth"):
        words = f"in -o out/ --upscale 2 --model compact --bg_upsampler {network} --json -q"
        result = cfrestore_(*words.split())
        assert (result.code, result.err) == (0, "")
        record = json.loads(result.out)
        assert (record["status"], record["upsampler"]) == ("done", network)
        found = read_photo("out/a.png")
        assert f"<cfrestore:upsampler>{network}<".encode() in (found.xmp or b"")
        means.append(found.pixels.mean() - before.mean())
        again = cfrestore_(*words.removesuffix(" -q").split())
        assert json.loads(again.out)["status"] == "unchanged"
        assert f"fp32, up-sampler {network}\n" in again.err
    assert means[0] > 20
    assert abs(means[1]) < 1
    assert json.loads(cfrestore_("in/a.png", "--json", "-q").out)["upsampler"] is None


def test_a_network_that_spoils_a_picture_fails_that_picture_by_name(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect(monkeypatch)
    make("a.png")
    saved(Path("nan.pth"), plain_srvgg(2, shift=float("nan")))
    result = cfrestore_("a.png", "--model", "compact", "--bg-upsampler", "nan.pth", "--json", "-q")
    record = json.loads(result.out)
    assert (result.code, record["status"], record["code"]) == (1, "failed", "unsuitable")
    expected = "a.png cannot be worked on: what the network of nan.pth paints is not finite"
    assert record["error"] == expected
    assert not Path("a.restored.png").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--bg-upsampler=", 2, "error: the up-sampler has an empty name"),
        ("--bg-upsampler=realesrgn", 4, "error: up-sampler 'realesrgn' is neither a file nor one"),
    ],
)
def test_a_name_that_names_nothing_is_one_sentence(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch, words: str, code: int, message: str
) -> None:
    detect(monkeypatch)
    make("a.png")
    result = cfrestore_("a.png", "--model", "compact", "-q", words)
    assert result.code == code
    assert result.err.startswith(message)
    assert result.err.count("\n") == 1
