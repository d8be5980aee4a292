import contextlib
import hashlib
import importlib.util
import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from stubs import SMALL, save_network, small_network
from torch import Tensor

from cfrestore import weights
from cfrestore.checkpoint import read_checkpoint
from cfrestore.errors import CheckpointError, ConfigError, WeightsError
from cfrestore.models.codeformer import CodeFormer, CodeFormerConfig
from cfrestore.models.vqgan import VQGANConfig
from cfrestore.weights import WEIGHT_FILES, deduce_config, load_codeformer, locate, shipped

INPAINTING = CodeFormerConfig(autoencoder=VQGANConfig(codebook_size=512), connect=(32, 64, 128))
COLORIZATION = CodeFormerConfig(connect=(32, 64, 128))
LAYOUTS = {
    "codeformer": CodeFormerConfig(),
    "inpainting": INPAINTING,
    "colorization": COLORIZATION,
}


def hollow(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of these shapes that store one number each, so that a file of them is small."""
    return {key: torch.full((1,), 0.5).expand(shape) for key, shape in shapes.items()}


def shapes_of(config: CodeFormerConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {k: tuple(v.shape) for k, v in CodeFormer(config).state_dict().items()}


def published(shared: Path, name: str) -> dict[str, Tensor]:
    table = json.loads((shared / f"spec/statedict_{name}.json").read_text())
    return hollow({key: tuple(entry["shape"]) for key, entry in table.items()})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weights folder, the only one that is searched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("CFRESTORE_HOME", str(home))
    return home


# The table


def test_table_is_the_recorded_one(shared: Path) -> None:
    lines = (shared / "spec/weights.md").read_text().splitlines()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if ".pth |" in line]
    assert {row[0] for row in rows} == {entry.file for entry in WEIGHT_FILES}
    for file, source, size, digest, licence in rows:
        entry = weights.weight_file(file)
        assert str(entry.bytes).replace("None", "not recorded") == size
        assert (entry.sha256 or "not recorded") == digest.removesuffix(")").split(" (")[0]
        assert licence.split()[0] in entry.licence
        assert entry.urls[0].endswith(f"/{file}")
        assert source.split()[2] in entry.urls[0]
        assert entry.purpose


def test_names_and_files_are_unique() -> None:
    keys = [key for entry in WEIGHT_FILES for key in (entry.name, entry.file)]
    assert len(set(keys)) == len(keys)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mobilenet'"):
        locate("mobilnet")


# Where files lie


def test_folders_are_searched_in_order(folder: Path, tmp_path: Path) -> None:
    name, file = "vqgan", "vqgan_code1024.pth"
    assert locate(name) is None
    for place in (tmp_path / "cache/cfrestore", tmp_path / "weights", folder):
        place.mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(b"x")
        found = locate(name)
        assert found is not None
        assert found.resolve() == (place / file).resolve()
        assert locate(file) == found


def test_a_wrong_hash_is_refused_and_both_are_shown(folder: Path) -> None:
    (folder / "codeformer.pth").write_bytes(b"not the network")
    found = hashlib.sha256(b"not the network").hexdigest()
    with pytest.raises(WeightsError) as error:
        locate("codeformer")
    assert found in str(error.value)
    assert str(weights.weight_file("codeformer").sha256) in str(error.value)


def test_the_real_detector_file_is_verified(
    shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CFRESTORE_HOME", str(shared / "weights"))
    found = locate("mobilenet")
    assert found == shared / "weights/detection_mobilenet0.25_Final.pth"


def test_what_is_missing_says_where_it_was_sought_and_is_published(folder: Path) -> None:
    text = str(weights.missing("codeformer"))
    assert "codeformer.pth" in text
    assert str(folder) in text
    assert "https://github.com/sczhou/CodeFormer/releases/download/v0.1.0/codeformer.pth" in text


def test_shipped_weights_are_found_installed_and_in_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "cfrestore"
    monkeypatch.setattr(weights, "__file__", str(package / "weights.py"))
    with pytest.raises(WeightsError, match="compact"):
        shipped("compact")
    for place in (tmp_path / "weights", package / "_shipped"):
        place.mkdir(parents=True)
        (place / "compact.safetensors").touch()
        assert shipped("compact") == place / "compact.safetensors"


# Our own files


def test_our_files_come_back_in_float32_with_their_configuration(tmp_path: Path) -> None:
    network = small_network()
    loaded = load_codeformer(save_network(tmp_path / "a.safetensors", network))
    assert loaded.config == SMALL
    assert not loaded.training
    for key, value in network.state_dict().items():
        assert loaded.state_dict()[key].dtype == torch.float32
        torch.testing.assert_close(loaded.state_dict()[key], value.half().float(), rtol=0, atol=0)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        assert loaded(x, w=0.5).shape == x.shape
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    path = save_network(tmp_path / "looks like a.pth", small_network())
    assert load_codeformer(path).config == SMALL


def test_a_configuration_that_does_not_fit_the_tensors_names_the_keys(tmp_path: Path) -> None:
    network = small_network()
    wider = replace(SMALL, layers=2, width=32)
    path = save_network(tmp_path / "a.safetensors", network, wider.to_json())
    with pytest.raises(CheckpointError) as error:
        load_codeformer(path)
    text = str(error.value)
    assert "missing: ft_layers.1.self_attn.in_proj_weight" in text
    assert "position_emb (256, 16) instead of (256, 32)" in text
    assert "unexpected" not in text


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        '{"layer": 1}',
        '{"width": "wide"}',
        '{"heads": 0}',
        '{"mlp_width": -1}',
        '{"autoencoder": 5}',
        '{"autoencoder": {"norm_groups": 0}}',
        '{"autoencoder": {"channel_multipliers": []}}',
    ],
)
def test_a_broken_configuration_is_refused(tmp_path: Path, config: str) -> None:
    path = save_network(tmp_path / "a.safetensors", small_network(), config)
    with pytest.raises(CheckpointError, match="describes no CodeFormer"):
        load_codeformer(path)


# Published files


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts_are_recognised_by_their_shapes(shared: Path, name: str) -> None:
    assert deduce_config(published(shared, name)) == LAYOUTS[name]


@pytest.mark.parametrize(
    "config",
    [
        CodeFormerConfig(layers=3, connect=(16, 512)),
        CodeFormerConfig(autoencoder=VQGANConfig(image_size=256, codebook_size=77)),
    ],
)
def test_other_sizes_of_the_published_layout_are_recognised(config: CodeFormerConfig) -> None:
    assert deduce_config(hollow(shapes_of(config))) == config


@pytest.mark.parametrize("key", ["params_ema", "params"])
def test_a_published_file_opens(shared: Path, tmp_path: Path, key: str) -> None:
    decoy = {"params": {"other": torch.zeros(1)}} if key == "params_ema" else {}
    path = tmp_path / "renamed.bin"
    torch.save({**decoy, key: published(shared, "inpainting")}, path)
    network = load_codeformer(path)
    assert network.config == INPAINTING
    assert network.position_emb.shape == (256, 512)
    assert network.position_emb.eq(0.5).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_full_published_file_keeps_every_number(shared: Path, tmp_path: Path, name: str) -> None:
    spec = importlib.util.spec_from_file_location("random_state", shared / "golden/random_state.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    state = module.state(str(shared / f"spec/statedict_{name}.json"), 7)
    path = tmp_path / "codeformer.pth"
    torch.save({"params_ema": {k: torch.from_numpy(v) for k, v in state.items()}}, path)
    loaded = load_codeformer(path).state_dict()
    assert list(loaded) == list(state)
    assert all(np.array_equal(loaded[key].numpy(), value) for key, value in state.items())


def tag_as_cuda(source: Path, target: Path) -> None:
    """Rewrites a torch file as if its tensors had been saved from a graphics card."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in content
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            new.writestr(name, content)


def test_a_file_saved_on_a_graphics_card_opens_without_one(shared: Path, tmp_path: Path) -> None:
    torch.save({"params_ema": published(shared, "codeformer")}, tmp_path / "cpu.pth")
    tag_as_cuda(tmp_path / "cpu.pth", tmp_path / "cuda.pth")
    network = load_codeformer(tmp_path / "cuda.pth")
    assert network.config == CodeFormerConfig()
    assert {p.device.type for p in network.parameters()} == {"cpu"}


def test_another_network_is_refused_with_the_first_five_keys(shared: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        load_codeformer(shared / "weights/detection_mobilenet0.25_Final.pth")
    text = str(error.value)
    assert "missing: position_emb, encoder.blocks.0.weight, encoder.blocks.0.bias, " in text
    assert text.count("encoder.blocks") == 4
    assert "unexpected: " in text
    assert "of another shape" not in text


def test_the_autoencoder_alone_is_no_codeformer(shared: Path, tmp_path: Path) -> None:
    torch.save({"params_ema": published(shared, "vqgan512")}, tmp_path / "vqgan.pth")
    with pytest.raises(CheckpointError, match="missing: position_emb, feat_emb"):
        load_codeformer(tmp_path / "vqgan.pth")


# Hostile and damaged files


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (self.marker,))  # type: ignore[return-value]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    marker, path = tmp_path / "was run", tmp_path / "codeformer.pth"
    content = {"params_ema": {"position_emb": Hostile(marker)}}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError, match="more than weights"):
        load_codeformer(path)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80", b"<html>404</html>", b"\0" * 99])
def test_what_is_no_weight_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not opened|neither"):
        load_codeformer(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [[1], {"params": 3}, {"params": {}}, {"params": {"a": 1}}])
def test_a_file_without_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="no table of tensors"):
        load_codeformer(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", ["ours", "zip", "legacy"])
def test_damaged_files_are_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "ours":
        save_network(path, small_network())
    else:
        state = {"params_ema": hollow(shapes_of(SMALL))}
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for part in (1, 2, 5, 10, 90):
        path.write_bytes(whole[: len(whole) * part // 100])
        with pytest.raises(CheckpointError) as error:
            load_codeformer(path)
        assert "\n" not in str(error.value)
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 4000), 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):  # damage in the numbers alone cannot be seen
            load_codeformer(path)


def test_an_absent_file_is_a_weights_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        load_codeformer(tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_codeformer(tmp_path)


def test_safetensors_whose_length_begins_like_a_pickle(tmp_path: Path) -> None:
    """The file begins with the header's length, and 0x80 is also how a pickle begins."""
    for extra in range(256):
        path = tmp_path / "weights.safetensors"
        save_file({"x": torch.zeros(1)}, path, metadata={"config": "c" * (8 * extra)})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    tensors, metadata = read_checkpoint(path)
    assert list(tensors) == ["x"]
    assert set(metadata) == {"config"}
