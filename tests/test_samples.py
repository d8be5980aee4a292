"""Several plausible restorations of one face, and how sure the network is of its codes."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import Command, make
from numpy.typing import NDArray
from stubs import SMALL, StubDetector, StubNetwork, face_at, picture, small_network
from test_cli_json import records

from cfrestore.align import FFHQ_TEMPLATE, AlignedFace
from cfrestore.confidence import REGIONS, confidence_by_region
from cfrestore.errors import ConfigError
from cfrestore.evaluate import damage
from cfrestore.image import Photo, from_levels, read_photo, to_levels
from cfrestore.models.codeformer import CodeFormer
from cfrestore.models.prior import draw
from cfrestore.options import Options
from cfrestore.pipeline import Pipeline, load_pipeline
from cfrestore.restore import FailedFace, Painter, RestoredFace

SIDE = SMALL.autoencoder.code_side
LANDMARKS = FFHQ_TEMPLATE / 512


def aligned(count: int) -> list[AlignedFace]:
    crops = [picture(32, 32, seed=seed) for seed in range(count)]
    return [AlignedFace(crop, np.eye(2, 3), face_at(0, 0, 32)) for crop in crops]


def undecided() -> CodeFormer:
    """A network whose codes are far from certain."""
    network = small_network()
    with torch.no_grad():
        network.idx_pred_layer[1].weight.mul_(2)
    return network


def painted(faces: Sequence[AlignedFace], **how: int | float) -> list[RestoredFace]:
    paint = Painter(undecided(), fidelity=0.5, match_statistics=True, **how)  # type: ignore[arg-type]
    results = paint(faces)
    assert all(isinstance(result, RestoredFace) for result in results)
    return [result for result in results if isinstance(result, RestoredFace)]


# --- confidence ----------------------------------------------------------------------------------


def test_certainty_is_one_less_the_entropy() -> None:
    (face,) = painted(aligned(1))
    network = undecided()
    with torch.no_grad():
        x = from_levels(torch.from_numpy(face.aligned.crop[None]))
        p = network.predict_codes(network.encode(x)[0]).softmax(-1)[0].double()
    expected = 1 + (p * p.log()).sum(-1) / np.log(SMALL.autoencoder.codebook_size)
    assert face.certainty is not None
    assert face.certainty.shape == (SIDE, SIDE)
    assert np.abs(face.certainty.ravel() - expected.numpy()).max() <= 0.5 / 255 + 1e-6
    assert face.certainty.std() > 0.005


def test_only_faces_that_are_unsure_are_looked_at_again() -> None:
    network, faces = undecided(), aligned(4)
    sure = [float(face.certainty.mean()) for face in painted(faces)]  # type: ignore[union-attr]
    least = float(np.mean(sorted(sure)[1:3]))
    assert len({value < least for value in sure}) == 2

    def looked_at(second_look: float) -> list[bytes]:
        network.config = replace(SMALL, second_look=second_look)
        results = Painter(network, fidelity=0.5, match_statistics=True)(faces)
        return [face.crop.tobytes() for face in results if isinstance(face, RestoredFace)]

    once, some, every = looked_at(0), looked_at(least), looked_at(1)
    assert all(a != b for a, b in zip(once, every, strict=True))
    assert some == [
        b if value < least else a for a, b, value in zip(once, every, sure, strict=True)
    ]

    network.config = replace(SMALL, second_look=1)
    (face,) = Painter(network, fidelity=0, match_statistics=True)(faces[:1])
    with torch.no_grad():
        x = from_levels(torch.from_numpy(faces[0].crop[None]))
        latent, _ = network.encode(x)
        logits = network.reconsider(network.predict_codes(latent))
        codes = network.choose(logits)
        image = network.decode(network.quantized(codes, latent, True), {}, 0)
    assert isinstance(face, RestoredFace)
    assert face.certainty is not None
    assert float(face.certainty.mean()) == sure[0]
    assert np.abs(face.crop - to_levels(image)[0].numpy().astype(int)).max() <= 1


@pytest.mark.parametrize(("scale", "sure"), [(0.0, 0.0), (1e4, 1.0)])
def test_certainty_at_its_ends(scale: float, sure: float) -> None:
    network = small_network()
    with torch.no_grad():
        network.idx_pred_layer[1].weight.mul_(scale)
    (face,) = Painter(network, fidelity=0.5, match_statistics=True)(aligned(1))
    assert isinstance(face, RestoredFace)
    assert face.confidence == pytest.approx(dict.fromkeys(REGIONS, sure), abs=0.01)


def test_regions_are_where_the_landmarks_are() -> None:
    """One region at a time is certain; positions are those of the aligned template."""
    places = {
        "eyes": [(0.47, 0.38), (0.47, 0.62)],
        "nose": [(0.56, 0.5)],
        "mouth": [(0.72, 0.42), (0.72, 0.5), (0.72, 0.58)],
    }
    for name, spots in places.items():
        certainty = np.zeros((16, 16), np.float32)
        for y, x in spots:
            certainty[int(y * 16), int(x * 16)] = 1
        found = confidence_by_region(certainty, LANDMARKS)
        assert found[name] == max(found[region] or 0 for region in REGIONS), name
        assert found["face"] == pytest.approx(len(spots) / 256)
    corner = np.zeros((16, 16), np.float32)
    corner[0, 0] = 1  # in no region but the face
    found = confidence_by_region(corner, LANDMARKS)
    assert found == {"face": 1 / 256, "eyes": 0, "nose": 0, "mouth": 0}


def test_a_region_outside_the_crop_is_unknown() -> None:
    away = LANDMARKS.copy()
    away[3:, 1] += 2
    found = confidence_by_region(np.ones((16, 16), np.float32), away)
    assert found == {"face": 1, "eyes": 1, "nose": 1, "mouth": None}


def test_landmarks_are_taken_to_the_crop() -> None:
    face = aligned(1)[0]
    moved = AlignedFace(face.crop, np.array([[2, 0, -20.0], [0, 2, -40]]), face_at(10, 20, 16))
    certainty = np.random.default_rng(0).random((16, 16)).astype(np.float32)
    here, there = (RestoredFace(face.crop, a, 0.5, certainty).confidence for a in (face, moved))
    assert here == pytest.approx(there)
    assert RestoredFace(face.crop, face, 0.5).confidence is None


def test_a_runtime_that_does_not_tell_gives_no_confidence() -> None:
    (face,) = Painter(StubNetwork(), fidelity=0.5, match_statistics=False)(aligned(1))
    assert isinstance(face, RestoredFace)
    assert face.certainty is None
    assert face.confidence is None


def test_the_shipped_weights_are_less_sure_of_what_is_damaged_more(repository: Path) -> None:
    pipeline = load_pipeline("compact", "mtcnn", "cpu")
    photo = read_photo(repository / "examples/collins.jpg")
    (found,) = pipeline(photo, Options(max_face=None)).restored
    sure = []
    for preset in (None, "small", "large"):
        crops = [
            damage(found.aligned.crop, preset, n, "a") if preset else found.aligned.crop
            for n in range(3)
        ]
        faces = [pipeline(Photo(crop), Options(aligned=True)).restored[0] for crop in crops]
        known = [face.confidence for face in faces]
        sure.append(np.mean([values["face"] for values in known if values is not None]))
    assert sure[0] > sure[1] > sure[2]


# --- samples -------------------------------------------------------------------------------------


def test_samples_are_codes_drawn_and_painted() -> None:
    face = painted(aligned(1), samples=3, temperature=0.8, seed=5)[0]
    assert len(face.samples) == 3
    network = undecided()
    digest = hashlib.sha256(b"5 " + face.aligned.crop.tobytes()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    with torch.no_grad():
        x = from_levels(torch.from_numpy(face.aligned.crop[None]))
        features = network.predict_features(x, True)
        assert features.logits is not None
        assert features.latent is not None
        codes = draw(features.logits.expand(3, -1, -1), generator, 0.8)
        for sample, own in zip(face.samples, codes, strict=True):
            quantized = network.quantized(own[None], features.latent, True)
            image = network.decode(quantized, features.skips, 0.5)[0].permute(1, 2, 0)
            levels = ((image.clamp(-1, 1) + 1) * 127.5).numpy()
            assert np.abs(levels - sample).max() <= 1
    assert not np.array_equal(face.samples[0], face.samples[1])


def test_the_result_does_not_change_with_samples() -> None:
    faces = aligned(2)
    for plain, sampled in zip(painted(faces), painted(faces, samples=2), strict=True):
        assert np.array_equal(plain.crop, sampled.crop)
        assert plain.samples == ()


def test_samples_depend_on_seed_and_face_and_not_on_the_batch() -> None:
    faces = aligned(3)

    def pixels(seed: int = 0, batch: int = 3, some: Sequence[AlignedFace] = faces) -> NDArray:
        return np.stack([f.samples for f in painted(some, samples=2, seed=seed, batch_size=batch)])

    assert np.array_equal(pixels(), pixels())
    assert not np.array_equal(pixels(), pixels(seed=1))
    together = pixels()
    apart = pixels(batch=1, some=faces[::-1])[::-1]
    # A batch may change the last bits of logits, and so one code in thousands.
    assert np.mean(together == apart) > 0.99


def test_a_cold_sample_is_the_result() -> None:
    face = painted(aligned(1), samples=1, temperature=1e-6)[0]
    assert np.array_equal(face.samples[0], face.crop)


def test_a_sample_that_is_no_picture_fails_the_face() -> None:
    network = undecided()
    with torch.no_grad():
        x = from_levels(torch.from_numpy(aligned(1)[0].crop[None]))
        likeliest = network.predict_codes(network.encode(x)[0]).argmax(-1).unique()
        others = [code for code in range(32) if code not in likeliest]
        network.quantize.embedding.weight[others] = torch.nan
    paint = Painter(network, fidelity=0.5, match_statistics=True, samples=2)
    (face,) = paint(aligned(1))
    assert isinstance(face, FailedFace)
    assert "not finite" in face.reason


@pytest.mark.parametrize(
    "wrong", [{"samples": -1}, {"temperature": 0.0}, {"temperature": float("inf")}, {"seed": -1}]
)
def test_options_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Options(**wrong)  # type: ignore[arg-type]


def test_whole_photographs_are_sampled() -> None:
    pipeline = Pipeline(undecided(), StubDetector(face_at(8, 8, 32)))
    photo = Photo(picture(48, 64))
    options = Options(samples=2, max_face=None)
    result = pipeline(photo, options)
    assert len(result.samples) == 2
    outside = np.ones((48, 64), bool)
    outside[8:40, 8:40] = False
    for sample in result.samples:
        assert np.array_equal(sample.pixels[outside], photo.pixels[outside])
        assert not np.array_equal(sample.pixels, result.photo.pixels)
    assert not np.array_equal(*(sample.pixels for sample in result.samples))
    assert pipeline(photo, Options(max_face=None)).samples == ()
    whole = pipeline(photo, Options(aligned=True, samples=1))
    assert whole.samples[0].size == (32, 32)
    gray = Photo(np.repeat(picture(48, 64)[..., :1], 3, axis=2), gray=True)
    (sample,) = pipeline(gray, Options(samples=1)).samples
    assert (sample.pixels == sample.pixels[..., :1]).all()


def test_only_torch_samples() -> None:
    pipeline = Pipeline(StubNetwork(), StubDetector())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="only the backend torch"):
        pipeline.restoring(Options(samples=1))


def test_settings_count_only_where_samples_are_drawn() -> None:
    pipeline = Pipeline(undecided(), StubDetector())
    plain, seeded = (pipeline.restoring(Options(seed=seed)).settings for seed in (0, 1))
    assert plain == seeded
    one, other = (pipeline.restoring(Options(samples=1, seed=seed)).settings for seed in (0, 1))
    assert one != other


# --- command -------------------------------------------------------------------------------------

WORDS = ("--model", "compact", "--device", "cpu", "--max-face", "none")


def test_the_command_writes_samples_and_overwrites_nothing(cfrestore_: Command) -> None:
    make("a.png")
    done = cfrestore_("a.png", "--samples", "2", "--json", "-q", *WORDS)
    assert done.code == 0
    names = ["a_00.png", "a_01.png"]
    folder = Path("restored_samples")
    assert sorted(path.name for path in folder.iterdir()) == names
    results = [read_photo(folder / name).pixels for name in names]
    result = read_photo("a.restored.png").pixels
    assert not any(np.array_equal(sample, result) for sample in results)
    (record,) = records(done.out)
    (face,) = record["faces"]
    assert list(face["confidence"]) == list(REGIONS)
    assert all(0 <= value <= 1 for value in face["confidence"].values())
    Path("a.restored.png").unlink()
    again = cfrestore_("a.png", "--samples", "2", *WORDS)
    assert again.code == 2
    assert "a_00.png exists; only --overwrite replaces it" in again.err
    assert cfrestore_("a.png", "--samples", "2", "--overwrite", *WORDS).code == 0
    assert np.array_equal(read_photo(folder / names[1]).pixels, results[1])  # the same seed
    words = ("--samples", "1", "--seed", "1", "--suffix", "other")
    assert cfrestore_("a.png", *words, *WORDS).code == 0
    assert not np.array_equal(read_photo(folder / "a_other_00.png").pixels, results[0])


def test_a_folder_with_samples_is_done_once(cfrestore_: Command) -> None:
    make("in/a.png")
    words = ("in", "--samples", "1", "--json", "-q", *WORDS)
    (first,) = records(cfrestore_(*words).out)
    (again,) = records(cfrestore_(*words).out)
    assert (first["status"], again["status"]) == ("done", "unchanged")
    assert again["faces"] == first["faces"]
    (other,) = records(cfrestore_(*words, "--temperature", "0.5").out)
    assert other["status"] == "done"


def test_the_plan_names_the_samples(cfrestore_: Command) -> None:
    make("a.png")
    done = cfrestore_("a.png", "--samples", "3", "--dry-run")
    assert "restored_samples/a_00.png, and so on, one for each sample" in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--samples", "2", "--backend", "onnx"), "only the backend torch can draw samples"),
        (("--samples", "2", "-o", "-"), "no folder beside <stdout> for restored_samples"),
        (("--samples", "2", "--temperature", "0"), "temperature must be above 0"),
        (("--samples", "-1"), ""),
    ],
)
def test_wrong_words(cfrestore_: Command, words: tuple[str, ...], said: str) -> None:
    make("a.png")
    done = cfrestore_("a.png", *words)
    assert (done.code, said in done.err) == (2, True), done.err
    assert sorted(path.name for path in Path().iterdir() if path.suffix == ".png") == ["a.png"]
