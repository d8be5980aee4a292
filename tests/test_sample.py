"""Generating new faces: the library's function, and the command `cfrestore sample`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from command import Command
from safetensors.torch import save_file
from stubs import save_network, small_network

from cfrestore.checkpoint import digest_of
from cfrestore.errors import CheckpointError, ConfigError
from cfrestore.image import read_photo
from cfrestore.models.prior import PriorConfig, build_prior, sample_codes
from cfrestore.sample import sample_faces
from cfrestore.weights import load_prior

CONFIG = PriorConfig("transformer", 32, 16, width=8, layers=1, heads=2)


def save_prior(path: Path, config: PriorConfig = CONFIG, **said: str) -> Path:
    torch.manual_seed(0)
    prior = build_prior(config)
    codebook = digest_of([small_network().quantize.embedding.weight])
    metadata = {"prior": config.to_json(), "codebook": codebook} | said
    save_file({k: v.half() for k, v in prior.state_dict().items()}, path, metadata)
    return path


def test_faces_are_their_codes_painted() -> None:
    network, prior = small_network(), build_prior(CONFIG).eval()
    faces = sample_faces(network, prior, 2, seed=3)
    codes = sample_codes(prior, 2, (16, 16), torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = network.decode(network.lookup(codes.flatten(1)), {}, 0)
    levels = ((expected.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(faces - levels).max() <= 1
    assert faces.dtype == np.uint8
    assert not np.array_equal(faces[0], faces[1])


def test_seed_temperature_and_top_k_decide() -> None:
    network, prior = small_network(), build_prior(CONFIG).eval()
    one, again, other = (sample_faces(network, prior, 1, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    likeliest = [sample_faces(network, prior, 1, seed=seed, top_k=1) for seed in (1, 2)]
    assert np.array_equal(*likeliest)
    cold = sample_faces(network, prior, 1, seed=2, temperature=1e-4)
    assert np.array_equal(cold, likeliest[0])


def test_sizes() -> None:
    network, prior = small_network(), build_prior(CONFIG).eval()
    assert sample_faces(network, prior, 1, (34, 40)).shape == (1, 34, 40, 3)
    for size in ((33, 32), (30, 32)):
        with pytest.raises(ConfigError, match="multiples of 2 from 32"):
            sample_faces(network, prior, 1, size)
    for wrong in ({"temperature": 0.0}, {"temperature": float("nan")}, {"top_k": 0}):
        with pytest.raises(ConfigError):
            sample_faces(network, prior, 1, **wrong)  # type: ignore[arg-type]


def test_a_file_that_is_no_prior_of_this_network_is_refused(tmp_path: Path) -> None:
    codebook = small_network().quantize.embedding.weight
    assert load_prior(save_prior(tmp_path / "a"), codebook).config == CONFIG
    with pytest.raises(CheckpointError, match="another network"):
        load_prior(tmp_path / "a", codebook + 0.1)
    network = save_network(tmp_path / "b", small_network())
    with pytest.raises(CheckpointError, match="no prior"):
        load_prior(network, codebook)
    for broken in ("{}", '{"kind": "pixelcnn", "width": "wide"}'):
        save_prior(tmp_path / "c", prior=broken)
        with pytest.raises(CheckpointError, match="describes no prior"):
            load_prior(tmp_path / "c", codebook)


def test_the_command(cfrestore_: Command) -> None:
    save_prior(Path("prior.safetensors"))
    words = ["sample", "--prior", "prior.safetensors", "--device", "cpu"]
    done = cfrestore_(*words, "-n", "5", "--size", "40x34", "--seed", "7", "-o", "sheet.png")
    assert (done.code, done.out) == (0, "")
    assert "5 faces of 40x34 px, seed 7" in done.err
    first = read_photo("sheet.png")
    assert first.size == (2 * 34, 3 * 40)
    again = cfrestore_(*words, "-n", "5", "--size", "40x34", "--seed", "7", "-o", "sheet.png")
    assert again.code == 2
    assert "sheet.png exists" in again.err
    assert (
        cfrestore_(*words, *("-n", "5", "--size", "40x34", "--seed", "7"), "-o", "b.png").code == 0
    )
    assert np.array_equal(read_photo("b.png").pixels, first.pixels)
    assert cfrestore_(*words, "-o", "sheet.png", "--overwrite", "-n", "1").code == 0
    assert read_photo("sheet.png").size == (32, 32)


@pytest.mark.parametrize(
    ("wrong", "code", "said"),
    [
        (("--size", "big"), 2, "size must be like 256x256"),
        (("--size", "16x16"), 2, "multiples of 2 from 32"),
        (("--temperature", "0"), 2, "temperature must be above 0"),
        (("--prior", "absent"), 4, "absent cannot be read"),
        (
            ("--prior", "prior.safetensors", "-o", "prior.safetensors", "--overwrite"),
            2,
            "is an input",
        ),
        (("-n", "0"), 2, ""),
        (("--seed", str(2**64)), 2, "18446744073709551615"),
    ],
)
def test_wrong_words(cfrestore_: Command, wrong: tuple[str, ...], code: int, said: str) -> None:
    save_prior(Path("prior.safetensors"))
    words = ["sample", "--prior", "prior.safetensors", "-o", "sheet.png", "--device", "cpu"]
    done = cfrestore_(*words, *wrong)
    assert (done.code, said in done.err) == (code, True), done.err
    assert not Path("sheet.png").exists()
