import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import pickle
import stat
import zipfile
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from stubs import SMALL, save_network, small_network
from torch import Tensor, nn

from cfrestore import weights
from cfrestore.checkpoint import read_checkpoint, unfilled, write_tensors
from cfrestore.device import choose_device
from cfrestore.errors import CheckpointError, ConfigError, OutputError, WeightsError
from cfrestore.models.codeformer import CodeFormer, CodeFormerConfig
from cfrestore.models.parsenet import ParseNet
from cfrestore.models.rrdbnet import RRDBNet
from cfrestore.models.srvgg import SRVGGNetCompact
from cfrestore.models.vqgan import VQGANConfig
from cfrestore.weights import (
    WEIGHT_FILES,
    convert,
    deduce_config,
    digests,
    load_codeformer,
    locate,
    remove,
    shipped,
    store,
    verify,
)

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
    """An empty weights folder, and the only one that is searched."""
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
    assert {row[0] for row in rows} == {row.file for row in WEIGHT_FILES if not row.shipped}
    for file, source, size, digest, licence in rows:
        entry = weights.weight_file(file)
        assert str(entry.bytes).replace("None", "not recorded") == size
        assert (entry.sha256 or "not recorded") == digest.removesuffix(")").split(" (")[0]
        assert licence.split()[0] in entry.licence
        _, _, repository, tag = source.replace(";", " ").split()[:4]
        assert entry.urls == (f"https://github.com/{repository}/releases/download/{tag}/{file}",)
        mirror = f"dataset repo {entry.hub.repository}, {entry.hub.path}" if entry.hub else ""
        assert mirror in source
        assert ("Hugging Face" in source) == bool(mirror)
        assert entry.purpose


def test_names_and_files_are_unique() -> None:
    keys = [key for entry in WEIGHT_FILES for key in (entry.name, entry.file)]
    assert len(set(keys)) == len(keys)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mobilenet'"):
        locate("mobilnet")


# Where files are


def test_folders_are_searched_in_order(folder: Path, tmp_path: Path) -> None:
    name, file = "vqgan", "vqgan_code1024.pth"
    assert locate(name) is None
    for place in (tmp_path / "cache/cfrestore", tmp_path / "weights", folder):
        place.mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(b"x")
        found = locate(name)
        assert found is not None
        assert found == place / file
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
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = locate("mobilenet")
    assert found == shared / "weights/detection_mobilenet0.25_Final.pth"


# Files are read once


@pytest.fixture
def known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the right SHA-256, in a table with one row."""
    digest = hashlib.sha256(b"right").hexdigest()
    row = weights.WeightFile("known", "known.pth", ("https://a.invalid",), 5, digest, "MIT", "")
    monkeypatch.setattr(weights.table, "WEIGHT_FILES", (row,))
    (folder / "known.pth").write_bytes(b"right")
    return folder / "known.pth"


def test_a_file_is_read_again_only_when_it_has_changed(
    known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(digests, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    sha256_of = weights.store.sha256_of
    assert locate("known") == locate("known") == known
    assert read == [known]
    os.utime(known, ns=(0, 0))
    assert locate("known") == known
    assert read == [known, known]
    known.write_bytes(b"wrong")
    for _ in range(2):
        with pytest.raises(WeightsError, match="SHA-256"):
            locate("known")
    assert len(read) == 3


def test_a_file_that_changes_while_it_is_read_is_read_again(
    known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = chain([0], repeat(1))
    monkeypatch.setattr(digests, "_stamp", lambda path: [5, next(times)])
    digests.sha256_of(known)
    known.write_bytes(b"wrong")
    assert digests.known_sha256(known) == hashlib.sha256(b"wrong").hexdigest()


def test_a_wrong_file_is_told_with_the_way_out(known: Path, tmp_path: Path) -> None:
    known.write_bytes(b"wrong")
    with pytest.raises(WeightsError, match="`cfrestore weights remove known` removes it"):
        locate("known")
    (tmp_path / "weights").mkdir()
    known.rename(tmp_path / "weights/known.pth")
    with pytest.raises(WeightsError, match=r"expected [0-9a-f]{64}$"):
        locate("known")


@pytest.mark.usefixtures("known")
def test_a_folder_that_cannot_be_looked_into_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFRESTORE_HOME", "x" * 300)  # longer than a name is allowed to be
    assert locate("known") is None


def test_verifying_reads_what_looks_unchanged(known: Path) -> None:
    assert verify("known") == known
    times = known.stat()
    known.write_bytes(b"wrong")
    os.utime(known, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert locate("known") == known
    with pytest.raises(WeightsError, match="SHA-256"):
        verify("known")
    with pytest.raises(WeightsError, match="SHA-256"):
        locate("known")


@pytest.mark.parametrize("ledger", ["", "{", "[1]", '{"PATH": 1}', '{"PATH": [5, 1]}', "\xff"])
def test_a_damaged_memory_does_no_harm(known: Path, tmp_path: Path, ledger: str) -> None:
    path = tmp_path / "cache/cfrestore/verified.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(ledger.replace("PATH", str(known)).encode("latin1"))
    assert locate("known") == known
    assert json.loads(path.read_bytes())[str(known)][2] == hashlib.sha256(b"right").hexdigest()


def test_a_cache_that_cannot_be_written_does_no_harm(
    known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert locate("known") == locate("known") == known


def test_removing_takes_what_was_fetched_and_nothing_else(known: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    elsewhere = tmp_path / "weights/known.pth"
    other = known.with_name("other.pth")
    part, digest = known.with_name("known.pth.part"), known.with_name("known.pth.sha256")
    for path in (elsewhere, other, part, digest):
        path.write_bytes(b"right")
    assert remove("known") == (known, part)
    assert not known.exists()
    assert not part.exists()
    assert elsewhere.exists()
    assert other.exists()
    assert digest.exists()  # not ours: the file has a recorded digest
    assert remove("known") == ()
    assert locate("known") is not None


def test_what_cannot_be_removed_is_told(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(WeightsError, match=r"known.pth cannot be removed from .*Permission denied"):
        remove("known")


def test_what_is_missing_says_where_it_was_sought_and_is_published(folder: Path) -> None:
    text = str(weights.missing("codeformer"))
    assert "codeformer.pth" in text
    assert str(folder) in text
    assert "https://github.com/sczhou/CodeFormer/releases/download/v0.1.0/codeformer.pth" in text


def test_shipped_weights_are_found_installed_and_in_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "cfrestore"
    monkeypatch.setattr(store, "PACKAGE", package)
    with pytest.raises(WeightsError, match="compact"):
        shipped("compact")
    for place in (tmp_path / "weights", package / "_shipped"):
        place.mkdir(parents=True)
        (place / "compact.safetensors").touch()
        assert shipped("compact") == place / "compact.safetensors"


@pytest.mark.parametrize("name", ["compact", "compact-upsampler"])
def test_the_shipped_file_is_the_one_in_the_table(
    repository: Path, folder: Path, name: str
) -> None:
    path = repository / f"weights/{name}.safetensors"
    row = weights.weight_file(name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == row.sha256
    assert path.stat().st_size == row.bytes
    assert locate(name) == weights.verify(name) == weights.fetch(name) == path


def test_a_shipped_file_that_was_changed_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PACKAGE", folder)
    (folder / "_shipped").mkdir()
    (folder / "_shipped/compact.safetensors").write_bytes(b"other")
    with pytest.raises(WeightsError, match="its SHA-256 is"):
        weights.verify("compact")


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


@pytest.mark.parametrize("build", [CodeFormer, ParseNet, RRDBNet, SRVGGNetCompact])
def test_a_network_that_is_filled_later_takes_no_memory_for_its_layers(
    build: type[nn.Module],
) -> None:
    before = torch.get_rng_state()
    with unfilled():
        network = build()
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.GroupNorm)]
    assert layers
    assert all(t.is_meta for layer in layers for t in layer.parameters())
    assert torch.equal(torch.get_rng_state(), before)


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
    """Rewrites a torch file as if its tensors had been saved from a GPU."""
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


# As safetensors


def numbers(config: CodeFormerConfig, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(s, generator=generator) for k, s in shapes_of(config).items()}


def test_a_converted_file_opens_as_the_same_network(tmp_path: Path) -> None:
    config = CodeFormerConfig(autoencoder=VQGANConfig(codebook_size=32), layers=1, connect=(32,))
    source, target = tmp_path / "a.pth", tmp_path / "b.safetensors"
    torch.save({"params_ema": numbers(config)}, source)
    convert(source, target)
    before, after = load_codeformer(source), load_codeformer(target)
    assert after.config == before.config
    for key, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[key], value)


def test_converting_keeps_what_is_known_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "a.pth", tmp_path / "b.safetensors"
    torch.save({"x": torch.arange(3)}, source)
    convert(source, target)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    tensors, metadata = read_checkpoint(target)
    assert torch.equal(tensors["x"], torch.arange(3))
    assert metadata == {"source_sha256": digest}
    row = replace(weights.weight_file("codeformer"), sha256=digest)
    monkeypatch.setattr(weights.table, "WEIGHT_FILES", (row,))
    convert(source, target, overwrite=True)
    assert read_checkpoint(target)[1] == {"source_sha256": digest, "licence": row.licence}
    convert(target, tmp_path / "c.safetensors")
    assert read_checkpoint(tmp_path / "c.safetensors")[1]["licence"] == row.licence


@pytest.mark.skipif(os.name != "posix", reason="needs a umask")
def test_written_tensors_are_open_to_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "a.safetensors", {"x": torch.arange(3)}, {"said": "so"})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o640
    tensors, metadata = read_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(tensors["x"], torch.arange(3))
    assert metadata == {"said": "so"}


@pytest.mark.parametrize("broken", ["cfrestore.files.os.fsync", "pathlib.Path.replace"])
def test_tensors_that_cannot_be_written_leave_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "a.safetensors"
    target.write_bytes(b"old")
    monkeypatch.setattr(broken, fail)
    with pytest.raises(OutputError, match=r"a\.safetensors cannot be written: No space left"):
        write_tensors(target, {"x": torch.arange(3)})
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_our_own_files_keep_their_configuration(tmp_path: Path) -> None:
    save_network(tmp_path / "a.safetensors", small_network())
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert load_codeformer(tmp_path / "b.safetensors").config == SMALL


def test_tensors_that_share_memory_or_have_strides_are_converted(tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    torch.save({"x": x, "y": x, "z": x.T, "half": x[0].half()}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    tensors = read_checkpoint(tmp_path / "b.safetensors")[0]
    assert torch.equal(tensors["x"], x)
    assert torch.equal(tensors["y"], x)
    assert torch.equal(tensors["z"], x.T)
    assert tensors["half"].dtype == torch.float16


def test_the_real_detector_file_is_converted_and_works(shared: Path, tmp_path: Path) -> None:
    from cfrestore.detect import load_detector

    convert(shared / "weights/detection_mobilenet0.25_Final.pth", tmp_path / "a.safetensors")
    metadata = read_checkpoint(tmp_path / "a.safetensors")[1]
    assert metadata["licence"] == "MIT"
    assert load_detector(str(tmp_path / "a.safetensors")).name == "retinaface-mobilenet0.25"


def test_converting_destroys_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"x": torch.zeros(1)}, source)
    target.write_text("dear")
    with pytest.raises(OutputError, match="only --overwrite replaces it"):
        convert(source, target)
    with pytest.raises(OutputError, match="is what is to be converted"):
        convert(source, source, overwrite=True)
    with pytest.raises(OutputError, match="is what is to be converted"):
        convert(source, tmp_path / "new/../a.safetensors", overwrite=True)
    with pytest.raises(ConfigError, match="should end in .safetensors"):
        convert(source, tmp_path / "b.pth")
    with pytest.raises(OutputError, match="cannot be written"):
        convert(source, tmp_path / "nowhere/b.safetensors")
    torch.save({"x": torch.zeros(2).to_sparse()}, tmp_path / "sparse.pth")
    with pytest.raises(CheckpointError, match="tensors that safetensors cannot"):
        convert(tmp_path / "sparse.pth", target, overwrite=True)
    assert target.read_text() == "dear"
    assert {path.name for path in tmp_path.iterdir()} == {source.name, target.name, "sparse.pth"}


def test_a_target_that_is_in_no_folder_is_named_and_nothing_else(tmp_path: Path) -> None:
    """A draft next to it cannot be removed either, but this is not reported."""
    source = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1)}, source)
    with pytest.raises(OutputError, match=r"a\.safetensors/b\.safetensors cannot be written"):
        convert(source, source / "b.safetensors")


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
    with pytest.raises(CheckpointError, match="more than weights"):
        convert(path, tmp_path / "b.safetensors")
    assert not marker.exists()
    assert not (tmp_path / "b.safetensors").exists()


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
        with contextlib.suppress(CheckpointError):  # damage to the numbers alone is not detectable
            load_codeformer(path)


def test_an_absent_file_is_a_weights_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        load_codeformer(tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_codeformer(tmp_path)


def test_a_device_is_named_as_anywhere(tmp_path: Path) -> None:
    path = save_network(tmp_path / "a.safetensors", small_network())
    place = next(load_codeformer(path, "auto").parameters()).device
    assert place == next(load_codeformer(path, choose_device("auto")).parameters()).device
    with pytest.raises(ConfigError, match="^device 'gpu' is unknown; choose one of: auto, "):
        load_codeformer(path, "gpu")


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
