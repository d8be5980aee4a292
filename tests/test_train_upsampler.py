"""Training of upsamplers: drawn pictures, small worn versions, learning, resuming, the command."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_train import CPU, faces, sampler
from torch import Tensor

from cfrestore.checkpoint import read_checkpoint
from cfrestore.degrade import Degradation
from cfrestore.device import generator_for
from cfrestore.errors import CheckpointError
from cfrestore.image import Photo, write_photo
from cfrestore.models.srvgg import SRVGGConfig
from cfrestore.part import Part
from cfrestore.train import checkpoint
from cfrestore.train.command import main
from cfrestore.train.config import Optimisation, UpsamplerRecipe, with_iterations
from cfrestore.train.loop import End, Schedule, read_state, train
from cfrestore.train.presets import UPSAMPLER
from cfrestore.train.scenes import draw_scenes
from cfrestore.train.upsampler import SuperResolution, averaging, cut, reductions, season, wear
from cfrestore.upsample import Upsampler

RECIPE = UpsamplerRecipe(
    SRVGGConfig(scale=2, features=8, depth=1),
    Optimisation(6, 4, 2e-3, 1e-4, ema_decay=0.9),
    Degradation((0.1, 1.5), (2, 2), (0, 8), (40, 100), kernel_size=9),
    image_size=64,
    patch=32,
    shrink=(1.25, 2),
    scenes=4,
)
FINE = replace(RECIPE, image_size=32, shrink=(1, 1))
"""For the noise of 32 px of test_train, which is not to be averaged."""


def stage(recipe: UpsamplerRecipe = FINE) -> SuperResolution:
    torch.manual_seed(0)
    return SuperResolution(recipe, CPU)


def generator(seed: int) -> torch.Generator:
    return generator_for(CPU, seed)


def scenes(count: int = 8) -> Tensor:
    return draw_scenes(count, 64, 0).images.float() / 255


def test_drawn_pictures_depend_on_the_seed_and_have_edges() -> None:
    drawn = draw_scenes(12, 64, 3)
    assert torch.equal(drawn.images, draw_scenes(12, 64, 3).images)
    assert torch.equal(drawn.images[:5], draw_scenes(5, 64, 3).images)
    assert not torch.equal(drawn.images, draw_scenes(12, 64, 4).images)
    assert drawn.names[11] == "scene00011"
    steps = drawn.images.float().diff(dim=-1).abs().amax((1, 2, 3))
    assert (steps > 20).float().mean() > 0.8


def test_averaging_is_that_of_whole_and_of_parts_of_pixels() -> None:
    x = torch.rand(2, 1, 12)
    whole = averaging(torch.tensor([0.0, 2]), torch.tensor([2.0, 2]), 12, 5)
    torch.testing.assert_close(
        x @ whole.mT, torch.stack((F.avg_pool1d(x[0], 2)[:, :5], F.avg_pool1d(x[1], 2)[:, 1:]))
    )
    (part,) = averaging(torch.tensor([0.5]), torch.tensor([1.5]), 4, 2)
    assert (part * 3).tolist() == [[1, 2, 0, 0], [0, 0, 2, 1]]


def test_reductions_keep_means_and_ramps() -> None:
    matrices = reductions(32, 2, CPU)
    torch.testing.assert_close(matrices.sum(-1), torch.ones(3, 16))
    x = torch.rand(1, 32)
    torch.testing.assert_close(x @ matrices[0].T, F.avg_pool1d(x, 2))
    ramp = torch.arange(32.0)
    for matrix in matrices:
        torch.testing.assert_close((matrix @ ramp)[3:-3], torch.arange(16.0)[3:-3] * 2 + 0.5)
    assert (matrices[2] < 0).any()  # the cubic one sharpens


def test_patches_and_their_wear_are_decided_by_the_seed() -> None:
    def pair(seed: int) -> tuple[Tensor, Tensor]:
        own = generator(seed)
        sharp = season(cut(scenes(), RECIPE, own), RECIPE, own)
        return sharp, wear(sharp, RECIPE, own)

    sharp, small = pair(1)
    assert sharp.shape == (8, 3, 32, 32)
    assert small.shape == (8, 3, 16, 16)
    for one, other in zip((sharp, small), pair(1), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(sharp, pair(2)[0])
    assert small.min() >= 0
    assert small.max() <= 1
    torch.testing.assert_close(small * 255, (small * 255).round(), rtol=0, atol=1e-4)


def test_what_is_spared_all_damage_is_only_reduced() -> None:
    sharp = scenes()[..., :32, :32]
    one, other = (
        wear(sharp, replace(RECIPE, spared=spared), generator(1)) for spared in (1.0, 0.0)
    )
    reduced = [(matrix @ sharp @ matrix.T).clamp(0, 1) for matrix in reductions(32, 2, CPU)]
    nearest = torch.stack([(one - x).abs().amax((1, 2, 3)) for x in reduced]).amin(0)
    assert (nearest < 0.501 / 255).all()
    assert ((one - other).abs().amax((1, 2, 3)) > 4 / 255).all()


def test_grain_is_gray_and_as_strong_as_the_recipe_says() -> None:
    sharp = torch.full((16, 3, 32, 32), 0.5)
    rough = season(sharp, replace(RECIPE, grain=(6, 6), soft=0), generator(0))
    torch.testing.assert_close(rough[:, 0], rough[:, 2])
    strength = 255 * (rough - sharp).std((1, 2, 3))
    assert strength[strength > 0].tolist() == pytest.approx(
        [6] * int((strength > 0).sum()), rel=0.4
    )
    assert 0 < (strength == 0).sum() < 16  # some are spared
    assert (season(sharp, replace(RECIPE, spared=0), generator(0)) != sharp).any()


def test_soft_patches_are_blurred() -> None:
    sharp = scenes()[..., :32, :32]
    calm = replace(RECIPE, grain=(0, 0))
    assert torch.equal(season(sharp, replace(calm, soft=0), generator(0)), sharp)
    soft = season(sharp, replace(calm, soft=1), generator(0))
    steps = [x.diff(dim=-1).square().mean((1, 2, 3)) for x in (soft, sharp)]
    assert (steps[0] < 1.001 * steps[1]).all()
    assert steps[0].mean() < 0.8 * steps[1].mean()


def test_processes_share_a_batch_like_cards() -> None:
    images = scenes()
    whole_generator = generator(5)
    sharp = season(cut(images, RECIPE, whole_generator), RECIPE, whole_generator)
    small = wear(sharp, RECIPE, whole_generator)
    for rank in range(2):
        own, part = generator(5), Part(8, rank, 2)
        some = season(cut(images[rank::2], RECIPE, own, part), RECIPE, own, part)
        torch.testing.assert_close(some, sharp[rank::2])
        torch.testing.assert_close(wear(some, RECIPE, own, part), small[rank::2])


def test_the_loss_falls_below_that_of_a_network_that_paints_nothing() -> None:
    recipe = replace(RECIPE, optimisation=replace(RECIPE.optimisation, iterations=60))
    learner, images = stage(recipe), scenes(16)
    reports = [learner.step(t, images, generator(t)) for t in range(1, 61)]
    first, last = (
        torch.stack([report["pixel"] / report["bicubic"] for report in some]).mean()
        for some in (reports[:5], reports[-5:])
    )
    assert last < 0.95 * first
    columns = learner.pictures(images[:3], generator(0))
    assert [column.shape for column in columns] == [(3, 3, 32, 32)] * 4


def test_stopping_and_resuming_changes_nothing(tmp_path: Path) -> None:
    straight, first, second = (stage() for _ in range(3))
    assert train(straight, sampler(), tmp_path / "a", Schedule(), print) is End.DONE
    torch.manual_seed(7)
    late = Schedule(max_minutes=0)
    assert train(first, sampler(), tmp_path / "b", late, print) is End.OUT_OF_TIME
    assert train(second, sampler(), tmp_path / "b", Schedule(), print, resume=True) is End.DONE
    a, b = (read_state(tmp_path / folder / "last.pt")["params_ema"] for folder in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    other = stage(replace(FINE, model=SRVGGConfig(2, 8, 2)))
    with pytest.raises(CheckpointError, match="was written by stage upsampler of"):
        train(other, sampler(), tmp_path / "b", Schedule(), print, resume=True)


def test_the_preset_costs_an_eighth_of_the_published_network() -> None:
    def products(config: SRVGGConfig) -> int:
        inner = (3, *(config.features,) * (config.depth + 1))
        return 9 * sum(a * b for a, b in zip(inner, (*inner[1:], 3 * config.scale**2), strict=True))

    recipe = UPSAMPLER["compact"]
    assert 8 * products(recipe.model) < products(SRVGGConfig())
    assert with_iterations(recipe, 50).optimisation.iterations == 50
    assert recipe.patch % (16 * recipe.model.scale) == 0  # blocks of JPEG
    assert recipe.patch * recipe.shrink[1] <= recipe.image_size


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a small run."""
    monkeypatch.setitem(UPSAMPLER, "compact", RECIPE)
    for image, name in zip(faces(3).images, faces(3).names, strict=True):
        (tmp_path / "data").mkdir(exist_ok=True)
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        write_photo(Photo(pixels), tmp_path / "data" / name)
    return ["upsampler", "--data", str(tmp_path / "data"), "--device", "cpu", "--iterations", "3"]


def test_the_command_trains_and_exports_what_the_upsampler_opens(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "out", tmp_path / "up.safetensors"
    assert main([*words, "--output", str(out), "--log-every", "3"]) == 0
    assert "7 pictures of 64 px" in capsys.readouterr().err  # with the drawn ones
    (line,) = [json.loads(text) for text in (out / "log.jsonl").read_text().splitlines()]
    assert line["pixel"] > 0
    assert (out / "samples-000003.png").is_file()
    assert main(["export", str(out / "last.pt"), str(file), "--licence", "mine"]) == 0
    state, said = read_checkpoint(file)
    assert SRVGGConfig(**json.loads(said["config"])) == RECIPE.model
    assert said["licence"] == "mine"
    assert json.loads(said["recipe"])["scenes"] == RECIPE.scenes
    average = checkpoint.averaged(out / "last.pt")
    assert all(torch.equal(state[key].half(), average[key].half()) for key in average)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert Upsampler(file)(pixels, 2).shape == (40, 60, 3)
    assert Upsampler(file).network.scale == 2


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--preset", "huge"], 2, "stage upsampler has the presets compact; found 'huge'"),
        (["--data", "nowhere"], 1, "nowhere does not exist"),
    ],
)
def test_bad_arguments_are_told(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    code: int,
    message: str,
) -> None:
    assert main([*words, "--output", str(tmp_path / "out"), *more]) == code
    assert message in capsys.readouterr().err
