import gzip
import json
import math
import shutil
import signal
import struct
import tarfile
import zlib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cfrestore import recognise
from cfrestore.checkpoint import read_checkpoint, write_tensors
from cfrestore.degrade import LARGE, SMALL, Degradation, degrade
from cfrestore.errors import (
    CFRestoreError,
    CheckpointError,
    ConfigError,
    ImageError,
    OutputError,
    WeightsError,
)
from cfrestore.image import Photo
from cfrestore.lpips import LPIPS
from cfrestore.models.codeformer import CodeFormer, CodeFormerConfig
from cfrestore.models.recogniser import Recogniser
from cfrestore.models.vqgan import VQGANConfig
from cfrestore.options import Options
from cfrestore.recognise import look_at
from cfrestore.regularity import regularity
from cfrestore.train import losses
from cfrestore.train.arguments import make_parser
from cfrestore.train.codebook import MovingCodebook
from cfrestore.train.command import _recipe, main
from cfrestore.train.comparison import Comparison, eye_map
from cfrestore.train.config import (
    Adversary,
    Appearance,
    Augmentation,
    AutoencoderRecipe,
    Codebook,
    CodesRecipe,
    FusionRecipe,
    Identity,
    Optimisation,
    Perceptual,
    Phase,
    PolishRecipe,
    Sharpening,
    with_iterations,
)
from cfrestore.train.critic import Critic
from cfrestore.train.data import (
    WARP_POINTS,
    Faces,
    Sampler,
    augment,
    load_faces,
    to_network,
    warped,
)
from cfrestore.train.learner import compile_blocks
from cfrestore.train.loop import (
    End,
    Schedule,
    Stage,
    fitting,
    load_state,
    read_state,
    save_state,
    train,
)
from cfrestore.train.perceptual import FaceFeatures, IdentityDistance, build_perceptual
from cfrestore.train.polish import Polish, unsharp_mask
from cfrestore.train.presets import AUTOENCODER, CODES, FUSION, PRESETS, recipe
from cfrestore.train.stages import Autoencoder, CodePrediction, Fusion, predict

CPU = torch.device("cpu")
MODEL = CodeFormerConfig(
    autoencoder=VQGANConfig(
        image_size=32,
        base_channels=8,
        channel_multipliers=(1, 2, 2),
        res_blocks=1,
        attention_sides=(8,),
        norm_groups=4,
        latent_channels=8,
        codebook_size=32,
    ),
    width=32,
    heads=4,
    layers=2,
    mlp_width=32,
    connect=(8, 16),
)
HOW = Optimisation(6, 4, 1e-3, 1e-4, ema_decay=0.9)
CRITIC = Adversary(start=2, scale=0.5, learning_rate=1e-3, channels=4, layers=2)


class Features(nn.Module):
    """A stand-in perceptual distance."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x.diff() - y.diff()).abs().mean()


def faces(count: int = 12) -> Faces:
    images = torch.randint(
        0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(5)
    ).byte()
    return Faces(images, tuple(f"a{n:03d}.png" for n in range(count)))


def sampler(batch: int = 4) -> Sampler:
    return Sampler(faces(), Augmentation(shift=2, brightness=0.1), batch, seed=1)


def autoencoder(codebook: Codebook | None = None, model: CodeFormerConfig = MODEL) -> Autoencoder:
    torch.manual_seed(0)
    book = codebook or Codebook()
    return Autoencoder(AutoencoderRecipe(model, HOW, book, adversary=CRITIC), Features(), CPU)


MOVING = Codebook(
    update="ema", beta_on="commitment", spherical=True, kmeans_after=2, revive_below=0.1
)


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    assert train(autoencoder(MOVING), sampler(), folder, Schedule(log_every=2), print) is End.DONE
    return folder / "last.pt"


@pytest.fixture(scope="module")
def stage_two(stage_one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    stage = CodePrediction(CodesRecipe(MODEL, HOW), stage_one, CPU)
    assert train(stage, sampler(), folder, Schedule(log_every=2), print) is End.DONE
    return folder / "last.pt"


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--minutes", "0", "must be a number above 0, found '0'"),
        ("--minutes", "nan", "must be a number above 0, found 'nan'"),
        ("--max-minutes", "-1", "must be a number above 0, found '-1'"),
        ("--learning-rate", "inf", "must be a number above 0, found 'inf'"),
        ("--batch-size", "x", "must be a whole number from 1, found 'x'"),
        ("--seed", "-1", "must be a whole number below 2^64, found '-1'"),
        ("--seed", str(2**64), "must be a whole number below 2^64, found '1844"),
        ("--output", "", "has an empty name, as an unset variable gives it"),
    ],
)
def test_values_that_make_no_sense_are_refused_at_once(
    option: str, value: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["codes", "--data", "a", "--output", "b", "--autoencoder", "c", option, value])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_every_reading_is_taught_alike() -> None:
    torch.manual_seed(0)
    network = CodeFormer(replace(MODEL, recycles=1))
    latent, targets = torch.randn(2, 8, 8, 8), torch.randint(32, (2, 64))
    total, report = predict(network, latent, targets, 1.0, 0.5)
    readings = network.predictions(latent)
    each = [nn.functional.cross_entropy(logits.mT, targets) for logits in readings]
    assert each[0] != each[1]
    torch.testing.assert_close(report["code"], (each[0] + each[1]) / 2)
    torch.testing.assert_close(total, report["feature"] + 0.5 * report["code"])
    torch.testing.assert_close(report["logits"], readings[1])


def test_stage_two_goes_on_from_a_later_stage(stage_one: Path, stage_two: Path) -> None:
    fresh = CodePrediction(CodesRecipe(MODEL, HOW), stage_one, CPU)
    further = CodePrediction(CodesRecipe(MODEL, HOW), stage_one, CPU, start=stage_two)
    known = read_state(stage_two)["params_ema"]
    assert changed(known, parameters(further)) == set()
    assert "ft_layers" in changed(known, parameters(fresh))


def test_another_codebook_comes_with_its_generator(stage_two: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    other = autoencoder()  # its codes are learned by gradient, and so are others
    assert train(other, sampler(), folder, Schedule(), print) is End.DONE
    further = CodePrediction(CodesRecipe(MODEL, HOW), folder / "last.pt", CPU, start=stage_two)
    begun, taught = (read_state(path)["params_ema"] for path in (stage_two, folder / "last.pt"))
    assert changed(begun, parameters(further)) == {"quantize", "generator"}
    shared = {k: v for k, v in taught.items() if k.startswith(("quantize", "generator"))}
    assert changed(shared, parameters(further)) == set()


@pytest.mark.parametrize("exported", [False, True])
def test_stage_one_goes_on_from_a_whole_network(
    stage_two: Path, tmp_path: Path, exported: bool
) -> None:
    known = read_state(stage_two)["params_ema"]
    start = stage_two
    if exported:
        start = tmp_path / "w.safetensors"
        write_tensors(start, {k: v.half().contiguous() for k, v in known.items()}, {})
        known = {k: v.half().float() for k, v in known.items()}
    further = Autoencoder(AutoencoderRecipe(MODEL, HOW, MOVING), None, CPU, start=start)
    assert not changed({k: known[k] for k in parameters(further)}, parameters(further))
    assert further.codebook is not None
    torch.testing.assert_close(further.codebook.sums, known["quantize.embedding.weight"])


def fusion(stage_one: Path, stage_two: Path, phases: tuple[Phase, ...]) -> Fusion:
    how = FusionRecipe(MODEL, HOW, phases, adversary=CRITIC, zero_start=True)
    return Fusion(how, stage_two, stage_one, Features(), CPU)


def parameters(stage: Stage) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in stage.network.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}


def step(stage: Stage, t: int) -> dict[str, Tensor]:
    source = sampler()
    return stage.step(t, source.batch(t, CPU), source.generator(t, 2, CPU))


# --- recipes -------------------------------------------------------------------------------------


def test_the_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    how = Optimisation(iterations=100, batch_size=1, learning_rate=1.0, final_learning_rate=0.2)
    assert [how.rate(t) for t in (1, 51, 101, 200)] == pytest.approx([1, 0.6, 0.2, 0.2])
    warm = replace(how, final_learning_rate=None, warm_up=10)
    assert [warm.rate(t) for t in (1, 5, 10, 11)] == pytest.approx([0.1, 0.5, 1, 1])
    assert warm.pace(5) == pytest.approx(0.5)


def test_averaged_weights_follow_faster_at_first() -> None:
    how = Optimisation(100, 1, 1.0, ema_decay=0.9)
    assert [how.decay(t) for t in (1, 1000)] == [0.9, 0.9]
    warm = replace(how, ema_warm_up=True)
    assert [warm.decay(t) for t in (1, 1000)] == pytest.approx([2 / 11, 0.9])


def test_published_recipes_hold_the_published_numbers() -> None:
    one, two, three = AUTOENCODER["published"], CODES["published"], FUSION["published"]
    assert one.optimisation.rate(1) == 7e-5
    assert one.optimisation.rate(1_600_001) == pytest.approx(6e-5)
    assert one.adversary is not None
    assert one.adversary.start == 30_001
    assert [two.optimisation.rate(t) for t in (400_000, 400_001, 450_001)] == [1e-4, 5e-5, 2.5e-5]
    assert (two.feature_weight, two.code_weight) == (1.0, 0.5)
    assert three.optimisation.rate(1) == 5e-5
    assert three.optimisation.ema_decay == 0.997
    assert three.adversary is not None
    assert (three.adversary.start, three.adversary.scale) == (5_001, 0.1)
    assert (one.adversary.scale, one.adversary.largest, one.adversary.halved) == (0.8, 1.0, False)
    for stage, batch, decay in ((one, 32, 0.995), (two, 32, 0.995), (three, 24, 0.997)):
        assert (stage.optimisation.batch_size, stage.optimisation.ema_decay) == (batch, decay)
        assert stage.optimisation.betas == (0.9, 0.99)
        assert stage.augmentation == Augmentation()
    assert (one.codebook.beta, one.codebook.beta_on) == (0.25, "codebook")
    assert Degradation((1, 15), (4, 30), (0, 20), (30, 80), 41) == LARGE
    assert Degradation((0.1, 10), (1, 12), (0, 15), (60, 100), 41) == SMALL
    assert two.degradations == ((LARGE, 1.0),)
    assert (three.small, three.large) == (SMALL, LARGE)


def test_published_fusion_schedule() -> None:
    w = FUSION["published"].fidelity
    assert [w(t) for t in (1, 40_000, 40_001, 80_000)] == [1.0, 1.0, 1.3, 1.3]
    assert [w(t) for t in (80_001, 119_999, 120_000)] == [None, None, None]
    assert [w(t) for t in (120_001, 120_015, 150_000)] == [None, 1.3, 1.3]


def test_some_of_every_few_iterations_fuse() -> None:
    how = FusionRecipe(MODEL, HOW, (Phase(6, (2, 3)),))
    assert [how.fidelity(t) for t in range(1, 7)] == [None, 1.0, 1.0, None, 1.0, 1.0]


def test_presets_are_found_by_name_and_stretch() -> None:
    assert [stage for stage, presets in PRESETS.items() if "compact" in presets] == [
        *("autoencoder", "codes", "fusion", "polish", "upsampler")
    ]
    assert list(PRESETS["prior"]) == ["pixelcnn", "transformer"]
    with pytest.raises(ConfigError, match="compact"):
        recipe("codes", "nonsense")
    compact = with_iterations(AUTOENCODER["compact"], 1200)
    assert isinstance(compact, AutoencoderRecipe)
    assert (compact.codebook.kmeans_after, compact.optimisation.warm_up) == (60, 40)
    short = with_iterations(FUSION["published"], 1500)
    assert isinstance(short, FusionRecipe)
    assert [p.until for p in short.phases] == [400, 800, 1200, 1500]
    assert short.adversary is not None
    assert short.adversary.start == 50


# --- losses --------------------------------------------------------------------------------------


def test_beta_weighs_the_named_term() -> None:
    latent = torch.randn(1, 4, 2, 2, requires_grad=True)
    vectors = torch.randn(1, 4, 2, 2, requires_grad=True)
    for named, weights in (("codebook", (1.0, 0.25)), ("commitment", (0.25, 1.0))):
        latent.grad = vectors.grad = None
        losses.codebook_loss(latent, vectors, 0.25, named).backward()  # type: ignore[arg-type]
        difference = 2 * (latent - vectors).detach() / latent.numel()
        torch.testing.assert_close(latent.grad, weights[0] * difference)
        torch.testing.assert_close(vectors.grad, -weights[1] * difference)


def test_hinge_losses() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    assert losses.hinge_discriminator(real, fake) == 0.5 + 1.0
    assert losses.hinge_generator(fake) == 1.0


def test_a_wave_is_regular_and_noise_and_edges_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 3, 128, 128, generator=generator) - 0.5
    at = torch.arange(128.0)
    wave = (torch.sin(2 * math.pi * at / 4.6) / 10).expand_as(noise).clone().requires_grad_()
    edge = (at > 60).float().expand_as(noise)
    slow = torch.sin(2 * math.pi * at / 20).expand_as(noise)
    assert regularity(noise) < 0.03
    assert regularity(edge) < 0.01
    assert regularity(slow) < 0.02
    assert regularity(torch.zeros(1, 3, 64, 64)) == 0
    share = regularity(wave)
    assert share > 0.3
    assert regularity(wave + noise / 10) > 0.25
    green = torch.stack((noise[:, 0], wave[:, 1], noise[:, 2]), 1)
    assert regularity(green) > 0.1
    share.backward()
    assert wave.grad is not None
    assert (wave * wave.grad).sum() > 0  # a fainter wave has a smaller share


def test_adaptive_weight_is_the_clamped_ratio_of_gradients() -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    rec, adv = weight.sum(), 10 * weight.sum()
    assert losses.adaptive_weight(rec, adv, weight, 1.0).item() == pytest.approx(0.1, rel=1e-3)
    assert losses.adaptive_weight(adv, rec, weight, 1.0) == 1
    assert losses.adaptive_weight(adv, rec, weight, 1e4).item() == pytest.approx(10, rel=1e-3)


def test_face_features_are_the_detectors_backbone(shared: Path) -> None:
    path = shared / "weights/detection_mobilenet0.25_Final.pth"
    network = build_perceptual(Perceptual("retinaface"), path, None, None)
    assert isinstance(network, FaceFeatures)
    x = torch.rand(1, 3, 64, 64, requires_grad=True) * 2 - 1
    assert [f.shape[1:] for f in network.features(x)] == [
        (16, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
        (128, 4, 4),
    ]
    assert network(x, x).item() == 0
    blurred = nn.functional.avg_pool2d(x, 3, 1, 1)
    assert network(blurred, x) > network(0.9 * x + 0.1 * blurred, x) > 0


def test_lpips_of_the_paper(shared: Path) -> None:
    """Compared with the formula, for random VGG weights and the real calibration."""
    torch.manual_seed(0)
    vgg, channels, index = {}, 3, 0
    for widths in ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3):
        for width in widths:
            vgg[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3) / (
                (9 * channels) ** 0.5
            )
            vgg[f"features.{index}.bias"] = torch.zeros(width)
            channels, index = width, index + 2
        index += 1
    path = shared / "weights/lpips_v0.1/vgg.pth"
    linear = torch.load(path, map_location="cpu", weights_only=True)
    x, y = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1

    def features(image: Tensor) -> list[Tensor]:
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        h, found = (image - shift[:, None, None]) / scale[:, None, None], []
        for n in range(31):
            if f"features.{n}.weight" in vgg:
                h = nn.functional.conv2d(
                    h, vgg[f"features.{n}.weight"], vgg[f"features.{n}.bias"], padding=1
                ).relu()
            if n in (2, 7, 14, 21, 28):
                found.append(h / h.norm(dim=1, keepdim=True))
            if n in (4, 9, 16, 23):
                h = nn.functional.max_pool2d(h, 2)
        return found

    expected = sum(
        ((a - b).square() * linear[f"lin{n}.model.1.weight"]).sum(1).mean()
        for n, (a, b) in enumerate(zip(features(x), features(y), strict=True))
    )
    torch.testing.assert_close(LPIPS(vgg, linear, False)(x, y), expected, rtol=1e-4, atol=1e-6)
    assert LPIPS(vgg, linear, True)(x, y) != LPIPS(vgg, linear, False)(x, y)


def test_a_missing_perceptual_file_is_said() -> None:
    with pytest.raises(WeightsError, match="--retinaface"):
        build_perceptual(Perceptual("retinaface"), None, None, None)
    with pytest.raises(WeightsError, match="nowhere"):
        build_perceptual(Perceptual("retinaface"), Path("nowhere.pth"), None, None)


@pytest.mark.parametrize("kind", ["retinaface", "lpips"])
def test_another_file_than_the_perceptual_one_is_refused(
    kind: Literal["retinaface", "lpips"], tmp_path: Path
) -> None:
    other = tmp_path / "other.pth"
    torch.save({"body.stage1.0.0.weight": torch.zeros(8, 3, 5, 5)}, other)
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        build_perceptual(Perceptual(kind), other, other, other)


# --- codebook ------------------------------------------------------------------------------------


def test_kmeans_finds_clusters_and_dead_codes_are_revived() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 4, generator=generator) * 10
    points = centres[torch.randint(0, 8, (800,), generator=generator)]
    points += 0.01 * torch.randn(800, 4, generator=generator)
    codes = torch.zeros(16, 4)
    book = MovingCodebook(codes, Codebook(update="ema", revive_below=0.1, decay=0.5))
    faces = points[:, None]
    book.start(faces, generator)
    assert torch.cdist(points, codes).amin(1).max() < 1
    codes[3] = book.sums[3] = 1e4  # far from everything
    for _ in range(20):
        book.follow(faces, torch.cdist(points, codes).argmin(1), generator)
    assert codes.abs().max() < 100


def test_codes_begin_from_no_fewer_latents() -> None:
    book = MovingCodebook(torch.zeros(16, 4), Codebook(update="ema"))
    with pytest.raises(ConfigError, match="16 codes cannot begin from 15 latents"):
        book.start(torch.randn(15, 1, 4), torch.Generator())


def test_a_code_that_is_never_chosen_stays_finite() -> None:
    codes = torch.randn(4, 3)
    book = MovingCodebook(codes, Codebook(update="ema", decay=0.5))
    latents = torch.randn(8, 3)
    for _ in range(200):
        book.follow(latents[:, None], torch.arange(8) % 3, torch.Generator())
    assert codes.isfinite().all()
    torch.testing.assert_close(codes[0], latents[[0, 3, 6]].mean(0), rtol=1e-4, atol=1e-4)


def test_spherical_codes_keep_their_length() -> None:
    codes = torch.randn(16, 9)
    book = MovingCodebook(codes, Codebook(update="ema", spherical=True))
    latents = torch.randn(64, 9)
    book.follow(latents[:, None], torch.arange(64) % 16, torch.Generator())
    torch.testing.assert_close(codes.norm(dim=1), torch.full((16,), 3.0))


# --- data ----------------------------------------------------------------------------------------


def test_faces_come_from_folders(tmp_path: Path) -> None:
    png = cv2.imencode(".png", np.full((64, 64, 3), (10, 20, 30), np.uint8))[1]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/x.png").write_bytes(png.tobytes())
    loaded = load_faces([tmp_path], 32, CPU)
    assert loaded.names == ("x.png",)
    assert loaded.images[0, :, 0, 0].tolist() == [30, 20, 10]  # RGB
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no pictures"):
        load_faces([tmp_path / "empty"], 32, CPU)
    (tmp_path / "bad.tar").write_bytes(b"not a tar file")
    with pytest.raises(ImageError, match=r"bad\.tar is neither a folder nor a tar file$"):
        load_faces([tmp_path / "bad.tar"], 32, CPU)
    (tmp_path / "sub/y.png").write_bytes(png.tobytes()[:40])
    with pytest.raises(ImageError, match="y.png"):
        load_faces([tmp_path], 32, CPU)


def test_faces_are_decoded_as_everywhere_else(tmp_path: Path) -> None:
    level = 78
    deep = np.full((32, 32), level * 257, np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    turned = np.zeros((32, 32, 3), np.uint8)
    turned[:16] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees clockwise: the bright half comes to the right
    Image.fromarray(turned).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    loaded = load_faces([tmp_path], 32, CPU)
    assert loaded.names == ("deep.png", "turned.jpg")
    assert (loaded.images[0] == level).all()
    assert loaded.images[1, :, :, 20:].min() > 150 > 50 > loaded.images[1, :, :, :12].max()


def test_faces_are_files_that_are_not_hidden(tmp_path: Path) -> None:
    png = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    for name in ("dir.jpg/a.png", "dir.jpg/._a.png", ".trash/b.png", ".b.jpg", "c.PNG", "d.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"nothing" if name[0] == "." else png)
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        shard.add(tmp_path / "in", "in")
    for source in ("in", "shard.tar"):
        assert load_faces([tmp_path / source], 8, CPU).names == ("a.png", "c.PNG")


def test_a_decompression_bomb_and_a_shard_cut_short_get_one_sentence(tmp_path: Path) -> None:
    head = struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(ImageError, match="bomb.png"):
        load_faces([tmp_path], 8, CPU)
    (tmp_path / "all.tgz").write_bytes(gzip.compress(bytes(range(256)) * 400)[:200])
    with pytest.raises(ImageError, match="all.tgz"):
        load_faces([tmp_path / "all.tgz"], 8, CPU)


@pytest.mark.slow
def test_the_real_shards_are_read(shared: Path) -> None:
    loaded = load_faces([shared / "faces/train-256-0.tar"], 64, CPU)
    assert len(loaded.names) == 2741
    assert loaded.images.shape == (2741, 3, 64, 64)


def test_an_epoch_shows_every_face_as_often_as_asked() -> None:
    some = Faces(faces(6).images, ("a1", "a2", "a3", "b1", "b2", "c1"))
    source = Sampler(some, Augmentation(repeats=(("b", 3),)), 2, seed=0)
    seen = torch.cat([source.indices(t) for t in range(1, 6)])
    assert torch.bincount(seen, minlength=6).tolist() == [1, 1, 1, 3, 3, 1]
    assert not torch.equal(seen, torch.cat([source.indices(t) for t in range(6, 11)]))


def test_processes_share_an_epoch() -> None:
    alone = Sampler(faces(), Augmentation(), 4, seed=0)
    pair = [Sampler(faces(), Augmentation(), 2, seed=0, rank=r, world=2) for r in (0, 1)]
    for t in (1, 2, 5):
        dealt = torch.stack([p.indices(t) for p in pair], 1).flatten()
        assert torch.equal(alone.indices(t), dealt)


def test_augmentation_keeps_gray_gray_and_range() -> None:
    images = torch.rand(64, 3, 32, 32)
    how = Augmentation(shift=3, brightness=0.3, contrast=0.3, saturation=0.5, tint=0.1, gray=1.0)
    out = augment(images, how, torch.Generator().manual_seed(0))
    assert out.amin() >= 0
    assert out.amax() <= 1
    torch.testing.assert_close(out[:, 0], out[:, 2])
    nothing = augment(images, Augmentation(mirror=0), torch.Generator())
    torch.testing.assert_close(nothing, images)
    mirrored = augment(images, Augmentation(mirror=1), torch.Generator())
    torch.testing.assert_close(mirrored, images.flip(-1))


def test_a_field_says_where_each_pixel_comes_from() -> None:
    images = torch.rand(2, 3, 32, 32)
    still = torch.zeros(2, 2, WARP_POINTS, WARP_POINTS)
    torch.testing.assert_close(warped(images, still), images)
    moved = still.clone()
    moved[0, 0], moved[1, 1] = 3 / 32, 2 / 32
    right, down = warped(images, moved)
    torch.testing.assert_close(right[:, :, :-3], images[0, :, :, 3:])
    torch.testing.assert_close(down[:, :-2], images[1, :, 2:])


def test_warps_are_smooth_bounded_and_each_faces_own() -> None:
    at = (torch.arange(64) + 0.5) / 64
    ramps = torch.stack((*torch.meshgrid(at, at, indexing="ij"), torch.zeros(64, 64)))
    how = Augmentation(mirror=0, warp=0.05)
    out = augment(ramps.expand(16, -1, -1, -1), how, torch.Generator().manual_seed(0))
    moved = (out - ramps)[:, :2, 8:-8, 8:-8]  # the border is reflected
    largest = moved.abs().amax((1, 2, 3))
    assert 0.02 < largest.amax() < 0.07  # bicubic interpolation overshoots a little
    assert largest.amin() < 0.02
    assert moved.diff().abs().amax() < 0.01


# --- stages --------------------------------------------------------------------------------------


def test_stage_one_moves_what_its_recipe_says() -> None:
    gradient = autoencoder()
    before = parameters(gradient)
    report = step(gradient, 1)
    assert changed(before, parameters(gradient)) == {"encoder", "quantize", "generator"}
    assert {"pixel", "perceptual", "codebook", "perplexity"} <= set(report)
    moving = autoencoder(MOVING)
    before = parameters(moving)
    assert "codebook" not in step(moving, 1)
    assert changed(before, parameters(moving)) == {"encoder", "generator"}
    step(moving, 2)
    assert "quantize" in changed(before, parameters(moving))


def test_the_adversary_starts_one_iteration_after_its_start() -> None:
    stage = autoencoder()
    assert "lambda" not in step(stage, CRITIC.start)
    assert {"lambda", "critic"} <= set(step(stage, CRITIC.start + 1))


def test_a_plain_vqvae_has_no_discriminator() -> None:
    how = replace(AUTOENCODER["vqvae"], model=MODEL)
    stage = Autoencoder(how, None, CPU)
    assert stage.critic is None
    report = step(stage, 100_000)
    assert set(report) == {"pixel", "codebook", "perplexity", "bits"}
    assert report["bits"] == pytest.approx(64 * float(report["perplexity"].log2()))


def textbook(preset: str, update: str) -> Autoencoder:
    """A textbook preset, for a few iterations of the small network."""
    torch.manual_seed(0)
    how = with_iterations(replace(AUTOENCODER[preset], model=MODEL), 40)
    assert isinstance(how, AutoencoderRecipe)
    optimisation = replace(how.optimisation, batch_size=4, learning_rate=3e-3, ema_decay=0.5)
    book = replace(how.codebook, update=update)  # type: ignore[arg-type]
    perceptual = None if how.perceptual.kind == "none" else Features()
    return Autoencoder(replace(how, optimisation=optimisation, codebook=book), perceptual, CPU)


@pytest.mark.parametrize(
    ("preset", "update"), [("vqvae", "gradient"), ("vqvae", "ema"), ("vqgan", "gradient")]
)
def test_textbook_presets_run_resume_and_reconstruct(
    preset: str, update: str, tmp_path: Path
) -> None:
    coarse = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    smooth = nn.functional.interpolate(coarse, 32, mode="bilinear")
    some = Faces((smooth * 255).byte(), tuple(f"a{n}.png" for n in range(8)))

    def source() -> Sampler:
        return Sampler(some, Augmentation(mirror=0), 4, seed=1)

    def error(stage: Autoencoder) -> float:
        clean, painted = stage.pictures(source().first(8, CPU), torch.Generator())
        return float((clean - painted).abs().mean())

    straight, first, second = (textbook(preset, update) for _ in range(3))
    before = error(straight)
    schedule = Schedule(log_every=20)
    assert train(straight, source(), tmp_path / "a", schedule, print) is End.DONE
    assert error(straight) < 0.8 * before
    assert train(first, source(), tmp_path / "b", Schedule(max_minutes=0), print) is End.OUT_OF_TIME
    assert train(second, source(), tmp_path / "b", schedule, print, resume=True) is End.DONE
    for key, value in parameters(straight).items():
        assert torch.equal(value, parameters(second)[key]), key
    lines = [json.loads(text) for text in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    assert all(1 <= line["perplexity"] <= 32 and 0 <= line["bits"] <= 64 * 5 for line in lines)
    assert ("lambda" in lines[-1]) == ("critic" in lines[-1]) == (preset == "vqgan")


def test_the_original_vqgan_halves_what_the_discriminator_learns_from() -> None:
    how = AUTOENCODER["vqgan"].adversary
    assert how is not None
    assert (how.halved, how.largest, how.scale) == (True, 1e4, 0.8)
    real, fake = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = []
    for halved in (True, False):
        torch.manual_seed(0)
        critic = Critic(replace(how, halved=halved, channels=4))
        found.append(float(critic.learn(real, fake, 1, 1.0)))
    assert found[0] == pytest.approx(found[1] / 2)


JUDGE = replace(CRITIC, start=1, lead=1, spectral=True, detail=8, replays=2)


def test_a_discriminator_of_detail_has_no_say_in_the_rest() -> None:
    torch.manual_seed(0)
    critic = Critic(JUDGE)
    critic.network.eval()  # no power iteration in between
    real, fake = torch.rand(2, 2, 3, 32, 32)
    logits = critic._logits(fake, real)
    torch.testing.assert_close(critic._logits(fake + 0.3, real), logits)
    assert not torch.allclose(critic._logits(fake, real + 0.3), logits)
    stripes = torch.tensor([0.3, -0.3]).repeat(16)
    assert not torch.allclose(critic._logits(fake + stripes, real), logits)


def test_a_spectral_discriminator_stretches_nothing() -> None:
    torch.manual_seed(0)
    network = Critic(JUDGE).network
    for module in network.modules():
        assert not isinstance(module, nn.BatchNorm2d)
    for _ in range(30):  # each a step of the power iteration
        network(torch.rand(2, 6, 32, 32))
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == JUDGE.layers + 2
    for convolution in convolutions:
        largest = torch.linalg.matrix_norm(convolution.weight.flatten(1), 2)
        assert largest.item() == pytest.approx(1, abs=0.02)


def test_a_discriminator_sees_earlier_pictures_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("cfrestore.train.critic.MEMORY", 6)  # three batches of two
    critic, seen = Critic(JUDGE), list[float]()
    forward = critic.network.forward
    monkeypatch.setattr(
        critic.network, "forward", lambda x: seen.append(float(x[0, 0, 0, 0])) or forward(x)
    )
    for t in range(1, 8):
        picture = torch.full((2, 3, 32, 32), t / 8)
        critic.learn(picture, picture, t, 1.0)
        steps = 1 if t == 1 else 1 + JUDGE.replays
        assert len(seen) == 2 * steps  # real and fake
        first, *again = [8 * value for value in seen[::2]]
        assert first == t
        assert all(max(1, t - 3) <= earlier < t for earlier in again)
        seen.clear()
    assert len(critic.memory) == 3


def polish(stage_one: Path, stage_two: Path, **how: Any) -> Polish:
    path = stage_two.with_name("fusion.pt")
    if not path.exists():
        save_state(path, fusion(stage_one, stage_two, (Phase(6),)), 1)
    torch.manual_seed(0)
    recipe = PolishRecipe(MODEL, how.pop("optimisation", HOW), **how)
    return Polish(recipe, path, stage_one, None, CPU)


def test_the_polish_hears_its_discriminator_and_resumes(
    stage_one: Path, stage_two: Path, tmp_path: Path
) -> None:
    straight, first, second = (polish(stage_one, stage_two, adversary=JUDGE) for _ in range(3))
    deaf = polish(stage_one, stage_two, adversary=replace(JUDGE, start=100, lead=0))
    schedule = Schedule(log_every=1)
    assert train(straight, sampler(), tmp_path / "a", schedule, print) is End.DONE
    assert train(deaf, sampler(), tmp_path / "deaf", schedule, print) is End.DONE
    for _ in range(3):
        end = train(first, sampler(), tmp_path / "b", Schedule(max_minutes=0), print, True)
        assert end is End.OUT_OF_TIME
    assert train(second, sampler(), tmp_path / "b", schedule, print, resume=True) is End.DONE
    assert second.critic is not None
    assert straight.critic is not None
    torch.testing.assert_close(second.state(), straight.state(), rtol=0, atol=0)
    lines = (tmp_path / "a/log.jsonl").read_text().splitlines()
    assert ["lambda" in json.loads(line) for line in lines] == [False, *[True] * 5]
    assert all("critic" in json.loads(line) for line in lines)
    moved = changed(parameters(deaf), parameters(straight))
    assert moved == {"generator", "fuse_convs_dict"}


def test_the_codebook_follows_as_the_words_say() -> None:
    words = ["autoencoder", "--preset", "vqvae", "--data", "a", "--output", "b"]
    for said, update in ((["--codebook", "ema"], "ema"), ([], "gradient")):
        found = _recipe(make_parser().parse_args([*words, *said]), 1)
        assert isinstance(found, AutoencoderRecipe)
        assert found.codebook == replace(AUTOENCODER["vqvae"].codebook, update=update)


@pytest.mark.parametrize(
    ("stage", "preset", "words"),
    [
        ("autoencoder", "further", ""),
        ("codes", "further", "--autoencoder a"),
        ("fusion", "compact", "--autoencoder a --codes b"),
        ("polish", "further", "--autoencoder a --fusion b"),
    ],
)
def test_the_perceptual_distance_is_as_the_words_say(stage: str, preset: str, words: str) -> None:
    words = f"{stage} --preset {preset} --data a --output b {words}"
    for said, kind in (("--perceptual none", "none"), ("", "retinaface")):
        found = _recipe(make_parser().parse_args(f"{words} {said}".split()), 1)
        own = found.appearance if isinstance(found, CodesRecipe) else found
        assert own.perceptual.kind == kind


def test_codes_that_are_not_compared_have_no_perceptual_distance() -> None:
    words = "codes --data a --output b --autoencoder a --perceptual none"
    assert _recipe(make_parser().parse_args(words.split()), 1) == CODES["compact"]


def test_mixed_precision_chooses_the_same_codes(
    stage_one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The codebook is searched in float32, whatever the precision of the convolutions."""
    monkeypatch.setattr(
        "cfrestore.train.teacher.autocast",
        lambda device, enabled: torch.autocast("cpu", torch.bfloat16, enabled=enabled),
    )
    stage = CodePrediction(CodesRecipe(MODEL, HOW), stage_one, CPU, mixed=True)
    seen = []
    codes = stage.teacher.codes
    monkeypatch.setattr(stage.teacher, "codes", lambda x: seen.append(codes(x)) or seen[-1])
    step(stage, 1)
    assert torch.equal(seen[0], codes(sampler().batch(1, CPU) * 2 - 1))
    moving = autoencoder(MOVING)
    moving.mixed = True
    for t in (1, 2, 3, 4):
        assert all(value.isfinite() for value in step(moving, t).values())


def test_stage_one_learns() -> None:
    torch.manual_seed(0)
    how = Optimisation(60, 4, 5e-3, 5e-4)
    book = replace(MOVING, kmeans_after=10)
    stage = Autoencoder(AutoencoderRecipe(MODEL, how, book), Features(), CPU)
    clean = nn.functional.interpolate(torch.rand(4, 3, 4, 4), 32, mode="bilinear")
    generator = torch.Generator().manual_seed(0)
    values = [float(stage.step(t, clean, generator)["pixel"]) for t in range(1, 41)]
    assert values[-1] < 0.7 * values[0]


def test_stage_two_starts_from_stage_one_and_leaves_the_prior_alone(stage_one: Path) -> None:
    stage = CodePrediction(CodesRecipe(MODEL, HOW), stage_one, CPU)
    average = read_state(stage_one)["params_ema"]
    for key, value in average.items():
        assert torch.equal(stage.network.state_dict()[key], value)
    before = parameters(stage)
    report = step(stage, 1)
    assert changed(before, parameters(stage)) == {
        "encoder",
        "position_emb",
        "feat_emb",
        "ft_layers",
        "idx_pred_layer",
    }
    assert set(report) == {"feature", "code", "accuracy"}


def test_stage_two_targets_are_the_trained_autoencoders_codes(stage_one: Path) -> None:
    stage = CodePrediction(CodesRecipe(MODEL, HOW), stage_one, CPU)
    clean = sampler().batch(1, CPU) * 2 - 1
    trained = autoencoder(MOVING)
    trained.load(read_state(stage_one))
    average = trained.learner.average
    assert torch.equal(stage.teacher.codes(clean), average.quantize.nearest(average.encode(clean)))


def test_image_losses_teach_the_fusion_alone(stage_one: Path, stage_two: Path) -> None:
    """The gradient of everything else is the same with and without the image."""
    with_image = fusion(stage_one, stage_two, (Phase(6),))
    before = parameters(with_image)
    gradients = []
    for phases in ((Phase(6),), (Phase(6, (0, 1)),)):
        stage = fusion(stage_one, stage_two, phases)
        stage.recipe = replace(stage.recipe, large=stage.recipe.small)
        step(stage, 1)
        gradients.append({k: p.grad for k, p in stage.network.named_parameters()})
    image, codes_only = gradients
    for key, gradient in image.items():
        if key.startswith("fuse_convs_dict"):
            assert codes_only[key] is None
        elif gradient is not None:
            torch.testing.assert_close(gradient, codes_only[key])
    assert any(g is not None for k, g in image.items() if k.startswith("fuse_convs_dict"))
    assert all(image[k] is None for k in image if k.startswith(("generator", "quantize")))
    step(with_image, 1)
    assert "generator" not in changed(before, parameters(with_image))
    assert "quantize" not in changed(before, parameters(with_image))


def test_a_zero_fusion_changes_nothing_at_first(stage_one: Path, stage_two: Path) -> None:
    stage = fusion(stage_one, stage_two, (Phase(6),))
    x = sampler().batch(1, CPU) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(stage.network(x, 0.0), stage.network(x, 1.0))
    step(stage, 1)
    step(stage, 2)
    with torch.no_grad():
        assert (stage.network(x, 0.0) - stage.network(x, 1.0)).abs().max() > 1e-5


def test_stage_three_takes_the_discriminator_of_stage_one(stage_one: Path, stage_two: Path) -> None:
    stage = fusion(stage_one, stage_two, (Phase(6),))
    assert stage.critic is not None
    trained = read_state(stage_one)["critic"]["params"]
    for key, value in stage.critic.network.state_dict().items():
        assert torch.equal(value, trained[key])


# --- loop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gradient", "moving", "codes", "fusion"])
def test_stopping_and_resuming_changes_nothing(
    name: str, tmp_path: Path, stage_one: Path, stage_two: Path
) -> None:
    def build() -> Autoencoder | CodePrediction | Fusion:
        torch.manual_seed(0)
        if name == "codes":
            return CodePrediction(CodesRecipe(MODEL, HOW), stage_one, CPU)
        if name == "fusion":
            return fusion(stage_one, stage_two, (Phase(3), Phase(6, (1, 2), w=1.3)))
        return autoencoder(MOVING if name == "moving" else None)

    straight, first, second = build(), build(), build()
    assert train(straight, sampler(), tmp_path / "a", Schedule(), print) is End.DONE
    folder = tmp_path / "b"
    assert train(first, sampler(), folder, Schedule(max_minutes=0), print) is End.OUT_OF_TIME
    assert read_state(folder / "last.pt")["iteration"] == 1
    assert train(second, sampler(), folder, Schedule(), print, resume=True) is End.DONE
    for key, value in parameters(straight).items():
        assert torch.equal(value, parameters(second)[key]), key
    a, b = (read_state(tmp_path / f / "last.pt")["params_ema"] for f in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_leaves_log_samples_and_checkpoint(tmp_path: Path) -> None:
    schedule = Schedule(log_every=3, save_every=2, samples_every=6)
    train(autoencoder(), sampler(), tmp_path, schedule, print)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [3, 6]
    assert all(line["images_per_second"] > 0 and line["pixel"] > 0 for line in lines)
    sheet = cv2.imdecode(np.frombuffer((tmp_path / "samples-000006.png").read_bytes(), "u1"), 1)
    assert sheet.shape == (8 * 32, 2 * 32, 3)


def test_a_log_that_cannot_be_written_ends_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"log\.jsonl cannot be written: "):
        train(autoencoder(), sampler(), tmp_path, Schedule(log_every=1), print)


def test_a_checkpoint_that_cannot_be_written_ends_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"last\.pt cannot be written: "):
        save_state(tmp_path / "file/last.pt", autoencoder(), 1)
    save_state(tmp_path / "new/folder/last.pt", autoencoder(), 1)
    assert read_state(tmp_path / "new/folder/last.pt")["iteration"] == 1


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_loss_that_is_not_finite_ends_training_before_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    stage = autoencoder()
    own = stage.step

    def step(t: int, clean: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return own(t, clean, generator) | ({"pixel": torch.tensor(math.nan)} if t == 4 else {})

    monkeypatch.setattr(stage, "step", step)
    with pytest.raises(CFRestoreError, match="not finite at iteration 4"):
        train(stage, sampler(), tmp_path, Schedule(log_every, save_every=2), print)
    assert read_state(tmp_path / "last.pt")["iteration"] == 2


def test_shards_of_a_checkpoint_resume_like_the_whole(tmp_path: Path) -> None:
    stage = autoencoder()
    save_state(tmp_path / "last.pt", stage, 4, shard_mb=1)
    whole = tmp_path / "whole.pt"
    save_state(whole, stage, 4)
    assert not (tmp_path / "last.pt").exists()
    assert load_state(tmp_path / "last.pt", autoencoder()) == load_state(whole, autoencoder()) == 4


def test_a_checkpoint_is_not_overwritten_by_a_new_run(tmp_path: Path) -> None:
    save_state(tmp_path / "last.pt", autoencoder(), 4)
    with pytest.raises(OutputError, match="resume"):
        train(autoencoder(), sampler(), tmp_path, Schedule(), print)


def test_shards_replace_a_whole_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_state(path, autoencoder(), 4)
    save_state(path, autoencoder(), 5, shard_mb=1)
    assert read_state(path)["iteration"] == 5
    save_state(path, autoencoder(), 6)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_logged_means_are_over_the_iterations_that_have_the_value(
    tmp_path: Path, stage_one: Path, stage_two: Path
) -> None:
    stage = fusion(stage_one, stage_two, (Phase(6, (1, 3)),))
    train(stage, sampler(), tmp_path, Schedule(log_every=6), print)
    (line,) = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    direct = [
        float(step(fusion(stage_one, stage_two, (Phase(6, (1, 3)),)), t)["pixel"]) for t in (3, 6)
    ]
    assert line["pixel"] == pytest.approx(sum(direct) / 2, rel=0.1)


def test_a_checkpoint_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    for name in ("whole.pt", "parts.pt.0"):
        (tmp_path / name).mkdir()
    for name in ("whole.pt", "parts.pt"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_state(tmp_path / name)


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path, stage_two: Path) -> None:
    path = tmp_path / "last.pt"
    save_state(path, autoencoder(), 4)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(path, autoencoder())
    with pytest.raises(CheckpointError, match="stage codes"):
        load_state(stage_two, autoencoder())
    torch.save({"iteration": 4, "params_ema": {}}, path)  # from other software
    with pytest.raises(CheckpointError, match="no training checkpoint"):
        load_state(path, autoencoder())
    other = replace(MODEL, layers=3)
    with pytest.raises(CheckpointError, match="not the CodeFormer"):
        Fusion(FusionRecipe(other, HOW, (Phase(6),)), stage_two, stage_two, None, CPU)


# --- command -------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments for a run on a few tiny pictures, with presets of the small network."""
    data = tmp_path / "faces"
    data.mkdir()
    rng = np.random.default_rng(0)
    for n in range(4):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        (data / f"{n}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    for presets in (presets for presets in PRESETS.values() if "compact" in presets):
        small = replace(presets["compact"], model=MODEL)
        if isinstance(small, AutoencoderRecipe):
            small = replace(small, codebook=replace(small.codebook, kmeans_after=1))
        monkeypatch.setitem(presets, "compact", small)
    detector = str(shared / "weights/detection_mobilenet0.25_Final.pth")
    return [
        *("--data", str(data), "--device", "cpu", "--batch-size", "4"),
        *("--retinaface", detector),
    ]


def loads_what_was_trained(weights: Path, checkpoint: Path) -> None:
    from cfrestore.weights import load_codeformer

    net = load_codeformer(weights)
    assert isinstance(net, CodeFormer)
    assert net.config == MODEL
    average = read_state(checkpoint)["params_ema"]
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, average[key].half().float())


def test_stages_one_by_one_give_weights_that_load(tmp_path: Path, small: list[str]) -> None:
    one, two, three, four = (str(tmp_path / name) for name in "1234")
    first, second, third = (f"{folder}/last.pt" for folder in (one, two, three))
    common = [*small, "--iterations", "2"]
    stages = (
        ["autoencoder", *common, "--output", one],
        ["codes", *common[:-4], *common[-2:], "--output", two, "--autoencoder", first],
        ["fusion", *common, "--output", three, "--autoencoder", first, "--codes", second],
        ["polish", *common, "--output", four, "--autoencoder", first, "--fusion", third],
        ["export", f"{four}/last.pt", str(tmp_path / "out.safetensors")],
    )
    assert [main(stage) for stage in stages] == [0, 0, 0, 0, 0]
    loads_what_was_trained(tmp_path / "out.safetensors", Path(four) / "last.pt")
    (tmp_path / "plain").touch()
    assert (tmp_path / "out.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert main(["export", second, str(tmp_path / "no.safetensors")]) == 4
    fourth, five = f"{four}/last.pt", str(tmp_path / "5")
    again = [*stages[1], "--output", five, "--start"]
    assert main([*again, first]) == 4
    assert main([*again, fourth]) == 0
    polished, further = (read_state(Path(x) / "last.pt")["params_ema"] for x in (four, five))
    assert changed(polished, further) >= {"encoder", "ft_layers"}
    assert not changed(polished, further) & {"generator", "fuse_convs_dict"}
    assert main(["export", f"{four}/last.pt", str(tmp_path / "nowhere/no.safetensors")]) == 2


def test_weights_are_averaged_by_shares(
    stage_one: Path, stage_two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = fusion(stage_one, stage_two, (Phase(6),))
    save_state(tmp_path / "last.pt", done, 1)
    target = tmp_path / "out.safetensors"
    words = ["export", str(tmp_path / "last.pt"), str(target), "--mean", str(stage_two)]
    assert main([*words, "0.75"]) == 0
    own, other = (read_state(p)["params_ema"] for p in (tmp_path / "last.pt", stage_two))
    found, metadata = read_checkpoint(target)
    for key, value in found.items():
        expected = 0.25 * own[key] + 0.75 * other[key]
        torch.testing.assert_close(value.float(), expected, rtol=1e-3, atol=1e-3)
    assert changed(own, other)
    assert json.loads(metadata["recipe"])["mean"] == [["last.pt", "0.75"]]
    assert main([*words, "1.5"]) == 2
    assert main([*words, "x"]) == 2
    assert "must be numbers of sum at most 1" in capsys.readouterr().err
    assert main([*words[:-1], str(stage_one), "0.5"]) == 4
    assert "holds another network" in capsys.readouterr().err


def test_the_exit_code_says_whether_time_or_a_signal_ended_a_run(
    tmp_path: Path,
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["autoencoder", *small, "--iterations", "2", "--max-minutes"]
    assert main([*words, "1e-9", "--output", str(tmp_path / "late")]) == 0
    assert "stopped at iteration 1 of 2" in capsys.readouterr().err
    step = Autoencoder.step

    def step_and_interrupt(*arguments: Any) -> dict[str, Tensor]:
        signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(Autoencoder, "step", step_and_interrupt)
    assert main([*words, "60", "--output", str(tmp_path / "stopped")]) == 130
    assert "stopped at iteration 1 of 2" in capsys.readouterr().err
    assert main([*words, "60", "--output", str(tmp_path / "stopped"), "--resume"]) == 0


def test_an_interruption_before_the_first_iteration_is_130_too(
    tmp_path: Path,
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*arguments: Any) -> Faces:
        raise KeyboardInterrupt

    monkeypatch.setattr("cfrestore.train.data.load_faces", interrupt)
    assert main(["autoencoder", *small, "--output", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_folder_that_cannot_be_made_is_exit_code_2(
    tmp_path: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    words = ["autoencoder", *small, "--iterations", "1", "--output", str(tmp_path / "file/out")]
    assert main(words) == 2
    assert "file/out cannot be made: Not a directory" in capsys.readouterr().err


def test_the_polish_asks_for_its_recogniser(
    tmp_path: Path,
    small: list[str],
    stage_one: Path,
    stage_two: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = replace(PRESETS["polish"]["identity"], model=MODEL)
    monkeypatch.setitem(PRESETS["polish"], "identity", own)
    begun = ["--autoencoder", str(stage_one), "--fusion", str(stage_two)]
    words = ["polish", *small, "--preset", "identity", *begun, "--iterations", "1"]
    assert main([*words, "--output", str(tmp_path / "a"), "--recogniser", str(stage_one)]) == 4
    assert "is not dlib's face recognition model" in capsys.readouterr().err
    if find_spec(recognise.PACKAGE):
        assert main([*words, "--output", str(tmp_path / "a"), "--log-every", "1"]) == 0
        (line,) = (tmp_path / "a/log.jsonl").read_text().splitlines()
        assert json.loads(line)["identity"] > 0
    monkeypatch.setattr("cfrestore.extras.find_spec", lambda name: None)
    assert main([*words, "--output", str(tmp_path / "b")]) == 2
    assert 'pip install "cfrestore[identity]"' in capsys.readouterr().err


def test_all_stages_in_one_command_resume_and_restore(
    tmp_path: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from cfrestore.pipeline import load_pipeline

    runs = tmp_path / "runs"
    words = ["compact", *small, "--output", str(runs), "--iterations", *("2" * 4)]
    assert main(words[:-1]) == 2
    assert "4 numbers" in capsys.readouterr().err
    assert main(words) == 0
    (runs / "compact.safetensors").unlink()
    for name in ("fusion", "polish"):
        (runs / name / "last.pt").unlink()
    kept = (runs / "codes/last.pt").read_bytes()
    assert main(words) == 2
    assert "resume" in capsys.readouterr().err
    assert main(["all", *words[1:], "--resume"]) == 0  # compact by another name
    assert (runs / "codes/last.pt").read_bytes() == kept
    loads_what_was_trained(runs / "compact.safetensors", runs / "polish/last.pt")
    restore = load_pipeline(runs / "compact.safetensors", device="cpu")
    photo = Photo(np.full((32, 32, 3), 90, np.uint8))
    assert len(restore(photo, Options(aligned=True)).faces) == 1


def test_as_many_iterations_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage whose last fifth is five times as slow, by a clock that only the stage advances."""
    now = 0.0

    class Slow:
        device = CPU
        recipe = AutoencoderRecipe(MODEL, Optimisation(100, 4, 1e-3))

        def step(self, t: int, clean: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            nonlocal now
            now += 0.5 if t > 80 else 0.1
            return {}

    monkeypatch.setattr("cfrestore.train.loop.time.monotonic", lambda: now)
    assert fitting(Slow(), sampler(), lambda: 180.0) == int(0.98 * 180 / 0.18)  # type: ignore[arg-type]
    assert fitting(Slow(), sampler(), lambda: -1.0) == 1  # type: ignore[arg-type]


def test_the_polish_teaches_generator_and_fusion_alone(stage_one: Path, stage_two: Path) -> None:
    stage = polish(stage_one, stage_two, eyes=10.0)
    before = parameters(stage)
    report = step(stage, 1)
    moved = changed(before, parameters(stage))
    assert {key.split(".")[0] for key in moved} == {"generator", "fuse_convs_dict"}
    assert {key for key, value in report.items() if value > 0} == {"pixel", "eyes"}


def test_the_polish_damages_half_of_its_faces_in_several_ways(
    stage_one: Path, stage_two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = polish(stage_one, stage_two, degradations=((SMALL, 0.75), (LARGE, 0.25)))
    damaged = []

    def degrade_(images: Tensor, damage: Degradation, *others: Any) -> Tensor:
        damaged.append((len(images), damage))
        return images

    monkeypatch.setattr("cfrestore.train.stages.degrade", degrade_)
    stage.step(1, sampler(8).batch(1, CPU), torch.Generator())
    assert damaged == [(3, SMALL.scaled(32)), (1, LARGE.scaled(32))]


def test_the_polish_aims_at_sharpened_faces(stage_one: Path, stage_two: Path) -> None:
    """Its target is OpenCV's unsharp masking of the brightness; its losses compare with that."""
    plain = polish(stage_one, stage_two)
    sharp = polish(stage_one, stage_two, sharpening=Sharpening(0.6, 24.0))
    x = to_network(sampler().batch(1, CPU))
    picture = x[0].permute(1, 2, 0).numpy()
    sigma = 24.0 * len(picture) / 512  # it is given in pixels at 512
    side = 2 * math.ceil(3 * sigma) + 1
    gray = picture.mean(2)
    blurred = cv2.GaussianBlur(gray, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)
    expected = (picture + 0.6 * (gray - blurred)[..., None]).clip(-1, 1)
    np.testing.assert_allclose(sharp.goal(x)[0].permute(1, 2, 0), expected, atol=1e-5)
    assert (sharp.goal(x) - x).abs().max() > 0.01
    torch.testing.assert_close(plain.goal(x), x, rtol=0, atol=0)
    assert step(sharp, 1)["pixel"] > step(plain, 1)["pixel"]


def test_the_polish_hears_of_regular_patterns(stage_one: Path, stage_two: Path) -> None:
    plain, warned = polish(stage_one, stage_two), polish(stage_one, stage_two, regularity=5.0)
    assert "regularity" not in step(plain, 1)
    assert step(warned, 1)["regularity"] > 0
    assert "generator" in changed(plain.network.state_dict(), warned.network.state_dict())


@pytest.fixture
def recogniser() -> Recogniser:
    """An untrained recogniser."""
    torch.manual_seed(0)
    network = Recogniser()
    network.mean.fill_(120)
    return network


def test_a_comparison_is_the_weighted_sum_of_what_is_wanted(recogniser: Recogniser) -> None:
    fake, goal, clean = (to_network(sampler(8).batch(t, CPU)) for t in (1, 2, 3))
    identity = IdentityDistance(recogniser, Identity(descriptor=2, features=3))
    plain = Comparison(32, None, 0.0)(fake, goal)
    assert plain.report.keys() == {"pixel"}
    torch.testing.assert_close(plain.total, (fake - goal).abs().mean())
    wanted = {"eyes": 10.0, "irises": 7.0, "regularity": 4.0}
    compare = Comparison(32, Features(), 0.5, **wanted, identity=identity)
    total, reconstruction, terms = compare(fake, goal, clean)
    assert terms.keys() == {
        "pixel", "perceptual", "eyes", "irises", "regularity", "identity", "face"
    }  # fmt: skip
    torch.testing.assert_close(reconstruction, terms["pixel"] + 0.5 * terms["perceptual"])
    others = 10 * terms["eyes"] + 7 * terms["irises"] + 4 * terms["regularity"]
    others = others + identity(fake, clean)[0]
    torch.testing.assert_close(terms["irises"], compare.tint(fake, goal))
    torch.testing.assert_close(total, reconstruction + others)
    torch.testing.assert_close(terms["eyes"], (eye_map(32) * (fake - goal).abs()).mean())


def test_a_tint_is_a_difference_of_colours_in_the_eyes() -> None:
    goal = torch.zeros(1, 3, 256, 256)
    eye, cheek = (slice(110, 130), slice(86, 106)), (slice(200, 220), slice(86, 106))

    def tint(at: tuple[slice, slice], *colour: float) -> float:
        fake = goal.clone()
        fake[0, :, at[0], at[1]] += torch.tensor(colour)[:, None, None]
        return float(Comparison(256, None, 0.0).tint(fake, goal))

    blue = tint(eye, 0, 0, 0.2)
    assert blue > 0
    assert tint(eye, 0, 0, 0.4) == pytest.approx(4 * blue)
    assert tint(eye, 0.2, 0.2, 0.2) < 1e-3 * blue
    assert tint(cheek, 0, 0, 0.2) < 1e-3 * blue


def test_the_polish_learns_colours_only_from_faces_painted_without_their_input(
    stage_one: Path, stage_two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"own": 0.25, "unfused": 0.25, "irises": 300.0}
    plain, tinted = polish(stage_one, stage_two), polish(stage_one, stage_two, **how)
    compared: list[int] = []
    damages = []

    def spy(images: Tensor, damage: Degradation, *others: Any) -> Tensor:
        damages.append((len(images), damage))
        return degrade(images, damage, *others)

    monkeypatch.setattr("cfrestore.train.stages.degrade", spy)
    tinted.compare.register_forward_pre_hook(lambda _, given: compared.append(len(given[0])))
    report = tinted.step(1, sampler(8).batch(1, CPU), torch.Generator())
    assert damages == [(4, SMALL.scaled(32)), (2, LARGE.scaled(32))]
    assert compared == [6]
    assert report["unfused"] > 0
    assert "unfused" not in step(plain, 1)
    assert "generator" in changed(plain.network.state_dict(), tinted.network.state_dict())


def test_faces_without_their_input_are_dealt_out_evenly_or_not_at_all(
    stage_one: Path, stage_two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(batch_size: int) -> Polish:
        how = replace(HOW, batch_size=batch_size)
        return polish(stage_one, stage_two, optimisation=how, own=0.25, unfused=0.25)

    of(8)
    monkeypatch.setattr("cfrestore.part.place", lambda: (0, 4))
    monkeypatch.setattr("cfrestore.train.polish.place", lambda: (0, 4))
    of(16)
    with pytest.raises(ConfigError, match="batch size 8 has 2 faces .* cannot be split over 4"):
        of(8)


def test_a_polish_needs_faces_to_fuse(stage_one: Path, stage_two: Path) -> None:
    how = replace(HOW, batch_size=2)
    step(polish(stage_one, stage_two, optimisation=how, own=0.0), 1)
    for own, unfused in ((1.0, 0.0), (0.1, 0.8)):
        with pytest.raises(ConfigError, match="no face of a batch of 2 would be fused"):
            polish(stage_one, stage_two, optimisation=how, own=own, unfused=unfused)


def test_fused_faces_may_be_sharpened_by_another_amount(stage_one: Path, stage_two: Path) -> None:
    stage = polish(stage_one, stage_two, sharpening=Sharpening(0.6, 24.0, fused=0.2))
    x = to_network(sampler().batch(1, CPU))
    torch.testing.assert_close(stage.goal(x), unsharp_mask(x, 0.6, 24.0 * 32 / 512))
    torch.testing.assert_close(stage.goal(x, fused=True), unsharp_mask(x, 0.2, 24.0 * 32 / 512))


def test_what_a_recogniser_says_is_weighed(recogniser: Recogniser) -> None:
    distance = IdentityDistance(recogniser, Identity(descriptor=2, features=3))
    fake, clean = (to_network(sampler(8).batch(t, CPU)) for t in (1, 2))
    total, terms = distance(fake, clean)
    a, b = (recogniser(look_at(x)) for x in (fake, clean))
    apart = torch.linalg.vector_norm(a - b, dim=1)
    torch.testing.assert_close(terms["identity"], torch.hypot(apart, torch.tensor(1e-3)).mean())
    maps = zip(*(recogniser.features(look_at(x))[:4] for x in (fake, clean)), strict=True)
    relative = [(a - b).abs().mean() / b.abs().mean() for a, b in maps]
    torch.testing.assert_close(terms["face"], torch.stack(relative).mean())
    torch.testing.assert_close(total, 2 * terms["identity"] + 3 * terms["face"])
    _, same = distance(clean, clean)
    assert same["face"] == 0
    assert same["identity"] == pytest.approx(1e-3)


def test_the_polish_learns_from_a_recogniser(
    stage_one: Path, stage_two: Path, recogniser: Recogniser
) -> None:
    how = Identity(descriptor=1, features=1)
    deaf, taught = polish(stage_one, stage_two), polish(stage_one, stage_two)
    taught.compare.identity = IdentityDistance(recogniser, how)
    known = [value.clone() for value in recogniser.parameters()]
    reports = [step(stage, 1) for stage in (deaf, taught)]
    assert "identity" not in reports[0]
    assert {"identity", "face"} <= set(reports[1])
    assert changed(deaf.network.state_dict(), taught.network.state_dict()) == {
        "generator",
        "fuse_convs_dict",
    }
    torch.testing.assert_close(list(recogniser.parameters()), known, rtol=0, atol=0)


def test_stage_one_learns_from_a_recogniser(recogniser: Recogniser) -> None:
    distance = IdentityDistance(recogniser, Identity(descriptor=1, features=1))
    made = []
    for identity in (None, distance):
        torch.manual_seed(0)
        made.append(Autoencoder(AutoencoderRecipe(MODEL, HOW), None, CPU, True, identity))
    deaf, taught = made
    assert "identity" not in step(deaf, 1)
    assert step(taught, 1)["identity"] > 0
    assert "generator" in changed(deaf.network.state_dict(), taught.network.state_dict())


def test_stage_two_learns_from_what_its_codes_look_like(
    stage_one: Path, recogniser: Recogniser
) -> None:
    model = replace(MODEL, consensus=0.3)
    how = Appearance(2.0, 10.0, Perceptual(weight=0.5), Identity(descriptor=1, features=1))
    plain = CodesRecipe(model, HOW, feature_weight=0, code_weight=0)
    distance = IdentityDistance(recogniser, how.identity)
    blind = CodePrediction(plain, stage_one, CPU)
    seeing = CodePrediction(
        replace(plain, appearance=how), stage_one, CPU, False, None, Features(), distance
    )
    before, known = parameters(blind), parameters(seeing)
    assert "pixel" not in step(blind, 1)
    report = step(seeing, 1)
    assert {"pixel", "perceptual", "eyes", "identity", "face"} <= set(report)
    assert changed(before, parameters(blind)) == set()
    assert changed(known, parameters(seeing)) >= {"encoder", "ft_layers", "idx_pred_layer"}
    assert not changed(known, parameters(seeing)) & {"quantize", "generator", "fuse_convs_dict"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_blocks_compute_the_same(stage_one: Path) -> None:
    plain, compiled = (CodePrediction(CodesRecipe(MODEL, HOW), stage_one, CPU) for _ in range(2))
    compiled.load(plain.state())
    compile_blocks(compiled.network)
    first, second = step(plain, 1), step(compiled, 1)
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-3, atol=1e-5)


def test_eyes_are_where_aligned_faces_have_them() -> None:
    eyes = eye_map(256)
    assert eyes.max() > 0.99
    assert (eyes[120, 96], eyes[120, 159]) > (0.95, 0.95)
    assert eyes[120, 128] < 0.1
    assert eyes[200].max() < 1e-6


def test_wrong_words_get_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["autoencoder", "--data", str(tmp_path), "--output", str(tmp_path), "--device", "cpu"]
    assert main([*words, "--preset", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err
    assert main([*words, "--preset", "vqvae"]) == 1
    assert "no pictures" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none.pt"), "out.safetensors"]) == 4
