"""Training of priors: codes computed once, bits per code, resuming, the command."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import CPU, HOW, MODEL, autoencoder, faces
from torch import Tensor

from cfrestore.errors import CheckpointError
from cfrestore.image import Photo, write_photo
from cfrestore.models.prior import PriorConfig
from cfrestore.train import checkpoint
from cfrestore.train.codes import CodeMaps, CodeSampler, load_codes
from cfrestore.train.command import main
from cfrestore.train.config import Augmentation, Optimisation, PriorRecipe, with_iterations
from cfrestore.train.loop import End, Schedule, read_state, save_state, train
from cfrestore.train.presets import PRIOR
from cfrestore.train.prior import CodePrior, unigram_bits
from cfrestore.train.teacher import Teacher

SHAPES = {
    "pixelcnn": PriorConfig("pixelcnn", side=8, width=8, layers=7, kernel=3, dropout=0.1),
    "transformer": PriorConfig("transformer", width=8, layers=1, heads=2, dropout=0.1),
}
KINDS = pytest.mark.parametrize("kind", list(SHAPES))


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / "last.pt"
    save_state(path, autoencoder(), 1)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    for image, name in zip(faces().images, faces().names, strict=True):
        write_photo(Photo(np.ascontiguousarray(image.permute(1, 2, 0).numpy())), folder / name)
    return folder


def stripes(count: int = 40) -> CodeMaps:
    """Maps in which every row repeats its first code."""
    rows = torch.randint(32, (count, 2, 8, 1), generator=torch.Generator().manual_seed(0))
    return CodeMaps(rows.expand(-1, -1, -1, 8), tuple(f"a{n:03d}.png" for n in range(count)))


def stage(kind: str, stage_one: Path, how: Optimisation = HOW) -> CodePrior:
    torch.manual_seed(0)
    recipe = PriorRecipe(MODEL, how, SHAPES[kind], held_out=4, evaluations=2)
    seen, held_out = stripes().split(4)
    return CodePrior(recipe, Teacher(stage_one, MODEL), seen, held_out, CPU)


def source(batch: int = 4) -> CodeSampler:
    return CodeSampler(stripes().split(4)[0], Augmentation(), batch, seed=1)


def test_codes_are_the_teachers_and_computed_once(
    stage_one: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, file = Teacher(stage_one, MODEL), tmp_path / "codes.pt"
    found = load_codes([pictures], teacher, file, CPU, print)
    clean = faces().images.float() / 127.5 - 1
    for n, images in enumerate((clean, clean.flip(-1))):
        assert torch.equal(found.maps[:, n].flatten(1), teacher.codes(images))
    assert found.names == faces().names
    calls: list[Tensor] = []
    codes = teacher.codes
    monkeypatch.setattr(teacher, "codes", lambda x, mixed=False: calls.append(x) or codes(x))
    again = load_codes([pictures], teacher, file, CPU, print)
    assert not calls
    assert torch.equal(again.maps, found.maps)
    with torch.no_grad():
        teacher.autoencoder.quantize.embedding.weight.add_(0.1)
    load_codes([pictures], teacher, file, CPU, print)
    assert calls  # another codebook, other codes


def test_held_out_faces_are_never_drawn() -> None:
    codes = CodeMaps(torch.arange(20).view(10, 2, 1, 1), tuple(f"{n}.png" for n in range(10)))
    seen, held_out = codes.split(5)
    assert held_out.names == ("4.png", "9.png")
    drawn = torch.cat([CodeSampler(seen, Augmentation(), 8, 0).batch(t, CPU) for t in range(1, 13)])
    assert set(drawn.flatten().tolist()) == set(range(20)) - {8, 9, 18, 19}  # both sides of each
    plain = CodeSampler(seen, Augmentation(mirror=0), 8, 0).batch(1, CPU)
    assert set(plain.flatten().tolist()) == {0, 2, 4, 6, 10, 12, 14, 16}


def test_unigram_bits() -> None:
    seen = torch.tensor([0, 0, 0, 1])
    expected = -(math.log2(4 / 7) + math.log2(1 / 7)) / 2  # counts 4, 2, 1 with one added to each
    assert unigram_bits(seen, torch.tensor([0, 2]), 3).item() == pytest.approx(expected)


@KINDS
def test_a_prior_learns_what_a_unigram_model_cannot(kind: str, stage_one: Path) -> None:
    """Rows that repeat one of 32 codes have 5 / 8 bits per code."""
    how = Optimisation(120, 8, 2e-2, 1e-3, ema_decay=0.9)
    learner, batches = stage(kind, stage_one, how), source(8)
    reports = [
        learner.step(t, batches.batch(t, CPU), batches.generator(t, 2, CPU)) for t in range(1, 121)
    ]
    assert [t for t, report in enumerate(reports, 1) if "held_out" in report] == [60, 120]
    last = {key: float(value) for key, value in reports[-1].items()}
    assert reports[0]["bits"] == pytest.approx(5, abs=0.8)
    assert last["unigram"] == pytest.approx(5, abs=0.5)
    assert last["held_out"] < 4


@KINDS
def test_stopping_and_resuming_changes_nothing(kind: str, stage_one: Path, tmp_path: Path) -> None:
    straight, first, second = (stage(kind, stage_one) for _ in range(3))
    assert train(straight, source(), tmp_path / "a", Schedule(), print) is End.DONE
    torch.manual_seed(7)
    assert train(first, source(), tmp_path / "b", Schedule(max_minutes=0), print) is End.OUT_OF_TIME
    assert train(second, source(), tmp_path / "b", Schedule(), print, resume=True) is End.DONE
    a, b = (read_state(tmp_path / folder / "last.pt")["params_ema"] for folder in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_another_kinds_checkpoint_is_refused(stage_one: Path, tmp_path: Path) -> None:
    train(stage("pixelcnn", stage_one), source(), tmp_path, Schedule(), print)
    with pytest.raises(CheckpointError, match="another recipe"):
        train(stage("transformer", stage_one), source(), tmp_path, Schedule(), print, resume=True)


def test_presets_fit_the_codes_of_all_models() -> None:
    for recipe in PRIOR.values():
        for side in (8, 16):
            replace(recipe.prior, side=side)
        assert with_iterations(recipe, 50).optimisation.iterations == 50


@KINDS
def test_the_command_trains_and_exports(
    kind: str, stage_one: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(PRIOR[kind], prior=SHAPES[kind], held_out=4)
    monkeypatch.setitem(PRIOR, kind, small)
    out, weights = tmp_path / "out", tmp_path / "prior.safetensors"
    words = ["prior", "--kind", kind, "--data", str(pictures), "--output", str(out)]
    words += ["--autoencoder", str(stage_one), "--device", "cpu", "--batch-size", "2"]
    assert main([*words, "--iterations", "3", "--log-every", "3"]) == 0
    (line,) = [json.loads(text) for text in (out / "log.jsonl").read_text().splitlines()]
    assert 0 < line["held_out"] < 10
    assert line["unigram"] <= 5.5
    assert (out / "samples-000003.png").is_file()
    assert checkpoint.read(out / "codes.pt")["maps"].shape == (12, 2, 8, 8)
    assert main(["export", str(out / "last.pt"), str(weights), "--licence", "mine"]) == 0
    from cfrestore.checkpoint import read_checkpoint

    state, said = read_checkpoint(weights)
    config = PriorConfig.from_json(said["prior"])
    assert (config.kind, config.codebook_size, config.side) == (kind, 32, 8)
    assert len(said["codebook"]) == 64
    assert said["licence"] == "mine"
    assert set(state) == set(read_state(out / "last.pt")["params_ema"])
