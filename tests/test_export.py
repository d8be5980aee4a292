"""Exported networks: the contents of the file, and that both runtimes agree with torch."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from command import Command, make
from stubs import picture, save_network, small_network

from cfrestore import backends, export, parity, quantize
from cfrestore.backends import ExportedNetwork, export_file, exported
from cfrestore.errors import CheckpointError, ConfigError, OutputError, WeightsError
from cfrestore.image import Photo, read_photo, write_photo
from cfrestore.models.codeformer import CodeFormer
from cfrestore.pipeline import load_pipeline
from cfrestore.weights import load_codeformer, shipped
from cfrestore.weights.digests import sha256_of

if TYPE_CHECKING:
    import onnx

pytest.importorskip("onnx", reason="needs the extra onnx or openvino")
pytest.importorskip("onnxscript", reason="needs the extra onnx or openvino")


def needs(backend: str) -> pytest.MarkDecorator:
    absent = importlib.util.find_spec(backends.PACKAGES[backend]) is None
    return pytest.mark.skipif(absent, reason=f"needs the extra {backend}")


each_backend = pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=needs(name)) for name in ("onnx", "openvino")]
)


@pytest.fixture(scope="module", autouse=True)
def _each_network_is_exported_once() -> Iterator[None]:
    """Exporting even a small network takes a quarter of a minute."""
    make_, made = export.export, {}

    def export_(
        network: CodeFormer, *, match_statistics: bool, facts: dict[str, str] | None = None
    ) -> onnx.ModelProto:
        weight = network.generator.last_weight.detach().numpy()
        key = (network.config.to_json(), match_statistics, weight.tobytes())
        if key not in made:
            made[key] = make_(network, match_statistics=match_statistics)
        graph = copy.deepcopy(made[key])
        export.describe(graph, facts or {})
        return graph

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export", export_)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small random network, and the exported network."""
    folder = tmp_path_factory.mktemp("exported")
    weights = save_network(folder / "small.safetensors", small_network())
    export.write(export_file(weights), folder / "small.onnx")
    return folder


@pytest.fixture(scope="module")
def network(folder: Path) -> CodeFormer:
    return load_codeformer(folder / "small.safetensors")


def faces(network: CodeFormer, count: int) -> np.ndarray:
    side = network.config.image_size
    images = [picture(side, side, seed=seed) for seed in range(count)]
    return np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1


# What is in the file


def test_the_file_says_what_it_is(folder: Path, network: CodeFormer) -> None:
    graph = export.read(folder / "small.onnx")
    facts = export.facts_of(graph)
    assert export.config_of(facts, folder) == network.config
    assert facts["source_sha256"] == sha256_of(folder / "small.safetensors")
    assert (facts["precision"], facts["match_statistics"]) == ("fp32", "true")
    assert [value.name for value in graph.graph.input] == ["image", "w"]
    assert [value.name for value in graph.graph.output] == ["restored", "codes"]
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert not graph.graph.input[1].type.tensor_type.shape.dim


def test_the_file_tells_nothing_of_the_machine_it_was_made_on(
    folder: Path, repository: Path
) -> None:
    content = (folder / "small.onnx").read_bytes()
    for path in (repository, Path(torch.__file__).parents[1], Path.home()):
        assert str(path).encode() not in content
    assert b"stack_trace" not in content


def test_kernels_are_constants(folder: Path) -> None:
    graph = export.read(folder / "small.onnx").graph
    constants = {value.name for value in graph.initializer}
    kernels = [n.input[1] for n in graph.node if n.op_type in ("Conv", "ConvTranspose")]
    assert set(kernels) <= constants
    assert [n.op_type for n in graph.node].count("ConvTranspose") == 1


def test_exporting_leaves_the_network_as_it_is(network: CodeFormer) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    export.export(network, match_statistics=False)
    assert all(value.requires_grad for value in network.parameters())
    assert not network.training
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_w_as_a_tensor_fuses_as_a_number_does(network: CodeFormer) -> None:
    x = torch.from_numpy(faces(network, 1))
    with torch.inference_mode():
        features, skips, *_ = network.predict_features(x, True)
        for w in (0.0, 0.7):
            one, other = (network.decode(features, skips, v) for v in (w, torch.tensor(w)))
            assert torch.allclose(one, other, atol=1e-6)


def test_a_graph_without_fusion_has_no_w(folder: Path) -> None:
    graph = export.read(folder / "small.onnx")
    before = len(graph.graph.node)
    export.without_fusion(graph)
    assert [value.name for value in graph.graph.input] == ["image"]
    assert len(graph.graph.node) < before
    assert not any("fuse_convs_dict" in value.name for value in graph.graph.initializer)


# What runs it


@each_backend
def test_w_changes_pixels(folder: Path, network: CodeFormer, backend: str) -> None:
    run = ExportedNetwork(folder / "small.onnx", backend)
    images = faces(network, 1)
    low, middle, high = (run(images, w).restored for w in (0, 0.5, 1))
    assert np.square(low - high).mean() > 1e-4
    assert np.square(low - middle).mean() > 1e-5
    assert np.square(middle - high).mean() > 1e-5


@each_backend
def test_w_must_be_finite(folder: Path, network: CodeFormer, backend: str) -> None:
    run = ExportedNetwork(folder / "small.onnx", backend)
    with pytest.raises(ConfigError, match="w must be finite, found nan"):
        run(faces(network, 1), float("nan"))


@each_backend
def test_a_batch_is_its_faces_one_by_one(folder: Path, network: CodeFormer, backend: str) -> None:
    run = ExportedNetwork(folder / "small.onnx", backend)
    images = faces(network, 3)
    together = run(images, 0.5)
    for index in range(3):
        alone = run(images[index : index + 1], 0.5)
        assert np.abs(together.restored[index] - alone.restored[0]).max() < 1e-4
        assert np.array_equal(together.codes[index], alone.codes[0])
    assert np.abs(together.restored[0] - together.restored[1]).max() > 0.01


@each_backend
def test_two_runs_give_the_same_bits(folder: Path, network: CodeFormer, backend: str) -> None:
    images = faces(network, 1)
    one, other = (ExportedNetwork(folder / "small.onnx", backend) for _ in range(2))
    assert np.array_equal(one(images, 0.5).restored, other(images, 0.5).restored)
    assert np.array_equal(one(images, 0.5).restored, one(images, 0.5).restored)


@each_backend
@pytest.mark.parametrize("matches", [True, False])
def test_a_small_network_gives_what_torch_gives(
    network: CodeFormer, tmp_path: Path, backend: str, matches: bool
) -> None:
    export.write(export.export(network, match_statistics=matches), tmp_path / "a.onnx")
    rows = tuple(parity.compare(network, tmp_path / "a.onnx", backend))
    parity.check(rows, tmp_path)
    assert [(row.w, row.batch) for row in rows] == [(0, 1), (0.5, 1), (1, 1), (0.5, 3)]
    assert all(row.difference < 1e-4 for row in rows)


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return export_file(shipped())


@each_backend
@pytest.mark.slow
def test_the_shipped_weights_give_what_torch_gives(
    compact: onnx.ModelProto, tmp_path: Path, backend: str
) -> None:
    export.write(compact, tmp_path / "a.onnx")
    rows = tuple(parity.compare(load_codeformer(shipped()), tmp_path / "a.onnx", backend))
    parity.check(rows, tmp_path)
    assert all(row.difference < 1e-4 for row in rows)
    assert export.facts_of(compact)["licence"] == "Apache-2.0"


@needs("openvino")
@pytest.mark.slow
def test_a_network_of_the_published_size_gives_what_torch_gives(
    shared: Path, tmp_path: Path
) -> None:
    from published import random_published_file

    weights = random_published_file(shared, "codeformer", tmp_path / "published.pth")
    export.write(export_file(weights), tmp_path / "a.onnx")
    network = load_codeformer(weights)
    run = ExportedNetwork(tmp_path / "a.onnx", "openvino")
    x = torch.rand((1, 3, 512, 512), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        expected = network(x, 0.5).clamp(-1, 1).numpy()
    assert np.abs(run(x.numpy(), 0.5).restored.clip(-1, 1) - expected).max() < 1e-3


def test_a_difference_from_torch_is_an_error() -> None:
    good = parity.Row(0.5, 1, 1e-6, True)
    parity.check((good,), Path("a.onnx"))
    for bad in (replace(good, difference=0.002), replace(good, equal_codes=False)):
        with pytest.raises(CheckpointError, match=r"a\.onnx does not give what torch gives"):
            parity.check((good, bad), Path("a.onnx"))


# int8


@needs("onnx")
def test_int8_changes_what_paints_and_no_codes(folder: Path, network: CodeFormer) -> None:
    graph = export.read(folder / "small.onnx")
    rounded, agreement = quantize.quantize(network, graph, faces(network, 8), "onnx")
    assert agreement.faces == 4
    assert agreement.equal_codes
    assert 20 < agreement.psnr < np.inf
    facts = export.facts_of(rounded)
    assert facts["precision"] == "int8"
    assert float(facts["psnr"]) == pytest.approx(agreement.psnr, abs=0.01)
    assert facts["config"] == network.config.to_json()
    eight_bits = {value.name for value in rounded.graph.initializer if value.data_type == 3}
    kernels = [name for name in eight_bits if name.endswith(".weight_quantized")]
    assert kernels
    assert all(name.startswith(export.PAINTING) for name in kernels)
    assert export.facts_of(graph)["precision"] == "fp32"
    looked_at = quantize.watch_convolutions(network, faces(network, 8)[0::2], True)
    exact = quantize.choose_exact(looked_at)
    assert exact
    assert {name.removesuffix("_quantized") for name in kernels} == set(looked_at) - exact


def test_the_error_of_rounding_an_input_is_foreseen(network: CodeFormer) -> None:
    images = faces(network, 3)
    found = quantize.watch_convolutions(network, images, True)
    network = export.for_runtimes(network)
    last = f"generator.blocks.{len(network.generator.blocks) - 1}"
    for name in (last, "generator.blocks.1.conv2", "fuse_convs_dict.16.shift.2"):
        seen = found[f"network.{name}.weight"]
        step = (seen.most - seen.least) / 255
        errors = []
        with torch.inference_mode():
            for image, w in zip(torch.from_numpy(images), quantize.FIDELITIES, strict=True):
                features = network.predict_features(image[None], True)
                w_ = torch.tensor(w)
                exact = network.decode(features.quantized, features.skips, w_)
                hook = network.get_submodule(name).register_forward_pre_hook(
                    lambda _, inputs, step=step: ((inputs[0] / step).round() * step,)
                )
                rounded = network.decode(features.quantized, features.skips, w_)
                hook.remove()
                errors.append((rounded - exact).square().sum().item())
        assert seen.error == pytest.approx(sum(errors), rel=0.5), name


def test_looking_at_a_network_leaves_it_as_it_is(network: CodeFormer) -> None:
    before = [len(module._forward_pre_hooks) for module in network.modules()]
    quantize.watch_convolutions(network, faces(network, 1), True)
    assert [len(module._forward_pre_hooks) for module in network.modules()] == before
    assert all(value.grad is None for value in network.parameters())


def test_convolutions_that_save_most_for_their_cost_stay_exact() -> None:
    def convolution(operations: int, error: float) -> quantize.Convolution:
        found = quantize.Convolution(operations, 0, 255, 12 * error)
        assert found.error == pytest.approx(error)
        return found

    all_ = {
        "cheap": convolution(2, 10),
        "worst": convolution(60, 200),
        "harmless": convolution(30, 1),
        "good": convolution(8, 16),
    }
    assert quantize.choose_exact(all_, 0) == set()
    assert quantize.choose_exact(all_, 0.02) == {"cheap"}
    assert quantize.choose_exact(all_, 0.1) == {"cheap", "good"}
    assert quantize.choose_exact(all_, 0.62) == {"cheap", "worst"}
    assert quantize.choose_exact(all_, 1) == set(all_)


@needs("onnx")
@pytest.mark.slow
def test_int8_of_the_shipped_weights_is_offered(compact: onnx.ModelProto, shared: Path) -> None:
    network = load_codeformer(shipped())
    # Pictures of noise would not do: the fusion of real faces has larger values.
    seen = quantize.read_faces(shared / "faces/valid-512", network.config.image_size, most=24)
    _, agreement = quantize.quantize(network, compact, seen, "onnx")
    quantize.check(agreement)
    assert agreement.psnr > 40


def test_int8_is_refused_under_its_limit() -> None:
    quantize.check(quantize.Agreement(4, 35, True))
    with pytest.raises(
        CheckpointError, match=r"not offered: on 4 faces .* 34\.9 dB .* at least 35"
    ):
        quantize.check(quantize.Agreement(4, 34.9, True))
    with pytest.raises(CheckpointError, match="other codes"):
        quantize.check(quantize.Agreement(4, 50, False))


def test_faces_are_read_damaged_and_alike_each_time(tmp_path: Path) -> None:
    for index in range(5):
        write_photo(Photo(picture(40, 40, seed=index)), tmp_path / f"{index}.png")
    for name in ("readme.txt", "._0.png", "broken.png"):
        (tmp_path / name).write_text("no picture")
    seen = quantize.read_faces(tmp_path, 32)
    assert seen.shape == (5, 3, 32, 32)
    assert seen.min() >= -1 and seen.max() <= 1
    assert np.array_equal(seen, quantize.read_faces(tmp_path, 32))
    assert len(quantize.read_faces(tmp_path, 32, most=4)) == 4


# The file on disk


def test_a_draft_becomes_the_file_or_vanishes(folder: Path, tmp_path: Path) -> None:
    graph = export.read(folder / "small.onnx")
    target = tmp_path / "new" / "a.onnx"
    with pytest.raises(ConfigError), export.drafted(graph, target) as draft:
        assert draft.is_file()
        raise ConfigError("no")
    assert list(target.parent.iterdir()) == []
    export.write(graph, target)
    assert [path.name for path in target.parent.iterdir()] == ["a.onnx"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        export.write(graph, tmp_path / "file" / "a.onnx")


def test_exports_are_kept_in_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = exported(folder / "small.safetensors")
    assert path.is_relative_to(tmp_path)
    first = path.stat().st_mtime_ns
    assert exported(folder / "small.safetensors").stat().st_mtime_ns == first
    assert exported(folder / "small.safetensors", match_statistics=False) != path


def test_other_files_are_no_exports(folder: Path, tmp_path: Path) -> None:
    assert export.is_exported(folder / "small.onnx")
    assert not export.is_exported(folder / "small.safetensors")
    assert not export.is_exported(tmp_path / "none.onnx")
    with pytest.raises(WeightsError, match="cannot be read"):
        export.read(tmp_path / "none.onnx")
    (tmp_path / "a.onnx").write_bytes(b"\x08\x08 something else \xff\xff")
    with pytest.raises(CheckpointError, match="damaged"):
        export.read(tmp_path / "a.onnx")
    graph = export.read(folder / "small.onnx")
    del graph.metadata_props[:]
    with pytest.raises(CheckpointError, match="was not exported by cfrestore"):
        export.config_of(export.facts_of(graph), tmp_path)
    with pytest.raises(CheckpointError, match="by a later cfrestore"):
        export.config_of({"layout": "99", "cfrestore": "9.9"}, tmp_path)


# The commands


def faces_in(folder: Path, count: int = 8) -> Path:
    folder.mkdir()
    for index in range(count):
        write_photo(Photo(picture(32, 32, seed=index)), folder / f"{index}.png")
    return folder


@each_backend
def test_the_command_exports_compares_and_restores(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr("cfrestore.backends.installed", lambda: backend)
    opened: list[Path] = []
    with monkeypatch.context() as patch:
        for module in ("weights", "backends"):
            patch.setattr(
                f"cfrestore.{module}.load_codeformer",
                lambda path: opened.append(path) or load_codeformer(path),
            )
        result = cfrestore_("export", "small.onnx", "--model", "compact")
    assert result.code == 0
    assert len(opened) == 1
    lines = result.err.splitlines()
    assert len(lines) == 5
    assert all(f"{backend} against torch: w " in line for line in lines[:4])
    assert all(line.endswith("codes equal") for line in lines[:4])
    assert lines[-1] == "compact -> small.onnx  (fp32, licence: not on record)"
    make("a.png")
    words = ["a.png", "--json", "-q", "--w", "0.7"]
    assert cfrestore_(*words, "--model", "compact", "-o", "torch.png").code == 0
    for model in ("compact", "small.onnx"):
        result = cfrestore_(*words, "--model", model, "--backend", backend, "-o", f"{model}.png")
        assert result.code == 0
        assert f'"backend": "{backend}"' in result.out
        assert '"confidence": null' in result.out  # the graph does not report it, so it is null
        ours, theirs = (read_photo(name).pixels for name in ("torch.png", f"{model}.png"))
        assert np.abs(ours.astype(int) - theirs).max() <= 1
    xmp = read_photo("small.onnx.png").xmp or b""
    assert backend.encode() in xmp


@needs("onnx")
def test_changing_the_backend_redoes_a_batch(cfrestore_: Command) -> None:
    make("in/a.png", "in/b.png")
    words = ["in", "-o", "out", "--model", "compact"]
    assert "unchanged" not in cfrestore_(*words).err
    assert "2 unchanged" in cfrestore_(*words).err
    assert "unchanged" not in cfrestore_(*words, "--backend", "onnx").err
    assert "2 unchanged" in cfrestore_(*words, "--backend", "onnx").err


@needs("onnx")
def test_the_command_refuses_int8_that_is_too_far_off(
    cfrestore_: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["export", "a.onnx", "--model", "compact", "--int8", "--faces"]
    faces_in(tmp_path / "faces")
    monkeypatch.setattr(quantize, "LEAST_PSNR", 90.0)
    result = cfrestore_(*words, "faces")
    assert result.code == 4
    assert "int8 is not offered" in result.err
    assert not list(tmp_path.glob("*.onnx")) + list(tmp_path.glob(".*.onnx"))
    monkeypatch.setattr(quantize, "LEAST_PSNR", 20.0)
    assert cfrestore_(*words, "faces").code == 0
    assert export.facts_of(export.read(Path("a.onnx")))["precision"] == "int8"
    make("b.png")
    result = cfrestore_("b.png", "--model", "a.onnx", "--backend", "onnx", "--json", "-q")
    assert '"precision": "int8"' in result.out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["a.pth"], 2, "should end in .onnx"),
        (["there.onnx"], 2, "there.onnx exists; only --overwrite replaces it"),
        (["a.onnx", "--int8"], 2, "--int8 and --faces go together"),
        (["a.onnx", "--model", "none.pth"], 4, "model 'none.pth' is neither a file nor one of"),
        (["a.onnx", "--model", "published"], 4, "was not found"),
        (["a.onnx", "--int8", "--faces", "none"], 2, "none is no folder of faces"),
    ],
)
def test_what_cannot_be_exported_is_told(
    cfrestore_: Command, words: list[str], code: int, said: str
) -> None:
    Path("there.onnx").write_text("")
    result = cfrestore_("export", "--model", "compact", *words)
    assert (result.code, Path("a.onnx").exists()) == (code, False)
    assert said in result.err
    assert "against torch" not in result.err  # told before the export, which takes its time


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backend", "tensorrt"], "backend 'tensorrt' is unknown; choose one of: torch, onnx"),
        pytest.param(
            ["--backend", "onnx", "--device", "cuda"], "runs on the CPU", marks=needs("onnx")
        ),
        pytest.param(
            ["--backend", "onnx", "--precision", "bf16"], "not in bf16", marks=needs("onnx")
        ),
        (["--model", "small.onnx"], "small.onnx is an exported network; --backend"),
    ],
)
def test_what_does_not_go_together_is_told(
    cfrestore_: Command, folder: Path, words: list[str], said: str
) -> None:
    make("a.png")
    Path("small.onnx").write_bytes((folder / "small.onnx").read_bytes())
    result = cfrestore_("a.png", *words)
    assert result.code == 2
    assert said in result.err


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_backend_that_is_absent_says_how_to_get_it(
    cfrestore_: Command, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setitem(sys.modules, backends.PACKAGES[backend], None)
    make("a.png")
    result = cfrestore_("a.png", "--backend", backend)
    assert result.code == 2
    assert f'pip install "cfrestore[{backend}]"' in result.err


@needs("onnx")
def test_a_graph_for_another_task_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="was exported with latent AdaIN"):
        load_pipeline(folder / "small.onnx", "mtcnn", task="inpainting", backend="onnx")


@needs("onnx")
def test_onnxruntime_leaves_nothing_in_the_cache_to_be_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    code = "from cfrestore.backends import check_backend; check_backend('onnx')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not list(tmp_path.iterdir())


@needs("openvino")
def test_an_interruption_is_survived_after_openvino_networks_are_freed(folder: Path) -> None:
    code = (
        "import gc, signal, sys\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from cfrestore.backends import ExportedNetwork\n"
        "network = ExportedNetwork(Path(sys.argv[1]), 'openvino')\n"
        "side = network.config.image_size\n"
        "for batch in (1, 2, 1):\n"
        "    network(np.zeros((batch, 3, side, side), np.float32), 1.0)\n"
        "del network\n"
        "gc.collect()\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('alive')\n"
    )
    command = [sys.executable, "-c", code, str(folder / "small.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_openvino_reports_nothing_to_its_makers() -> None:
    pytest.importorskip("openvino")
    code = (
        "import sys, socket, threading\n"
        "socket.socket.connect = lambda *a: sys.exit('a connection was opened')\n"
        "from cfrestore.backends import check_backend\n"
        "check_backend('openvino')\n"
        "print(sys.modules['openvino_telemetry'], threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "1"]
