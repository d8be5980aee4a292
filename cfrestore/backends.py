"""Runs exported networks with ONNX Runtime or OpenVINO, which are imported only on demand.

Both are set to compute in float32 (OpenVINO would choose bfloat16 where the processor has it), and
both give the same bits for the same input.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from cfrestore import export
from cfrestore.checkpoint import read_metadata
from cfrestore.errors import CheckpointError, ConfigError
from cfrestore.export import CODES, FIDELITY, IMAGE, RESTORED, config_of, facts_of
from cfrestore.extras import install, load_package, require
from cfrestore.models.codeformer import Features, check_w
from cfrestore.weights import load_codeformer
from cfrestore.weights.conversion import origin_of
from cfrestore.weights.digests import known_sha256
from cfrestore.weights.environment import cache_folder

if TYPE_CHECKING:
    import onnx
    import onnxruntime
    from numpy.typing import NDArray
    from torch import Tensor

    from cfrestore.models.codeformer import CodeFormer, CodeFormerConfig

PACKAGES = {"torch": "torch", "onnx": "onnxruntime", "openvino": "openvino"}
"""The package of each backend."""


class ExportedOutputs(NamedTuple):
    """The outputs of an exported network."""

    restored: NDArray[np.float32]  # (B,3,S,S), nominally in [-1, 1]
    codes: NDArray[np.int64]  # (B,T)


def check_backend(name: str) -> None:
    """Raises ConfigError if the backend is unknown or not installed."""
    if name not in PACKAGES:
        raise ConfigError(f"backend {name!r} is unknown; choose one of: {', '.join(PACKAGES)}")
    require(PACKAGES[name], extra=name)


def installed() -> str:
    """The installed backend other than torch; the faster one if there are two.

    Raises:
        ConfigError: none is installed.
    """
    for name in ("openvino", "onnx"):
        if importlib.util.find_spec(PACKAGES[name]):
            check_backend(name)
            return name
    raise ConfigError(
        f"neither openvino nor onnxruntime is installed; {install('openvino')} or "
        f"{install('onnx')} brings one"
    )


class ExportedNetwork:
    """A CodeFormer run by another runtime on the CPU, with the interface of one in torch.

    Attributes:
        config: the network's configuration.
        facts: the metadata of the file.
    """

    def __init__(self, path: Path, backend: str, threads: int | None = None) -> None:
        """Reads the file; compiling needs w and, with OpenVINO, the batch size, so it comes later.

        Args:
            path: written by `export`.
            backend: onnx or openvino.
            threads: None: as many as the processor has cores.
        Raises:
            ConfigError: the backend, or the package onnx, is not installed.
            WeightsError, CheckpointError: the file cannot be read, or is something else.
        """
        check_backend(backend)
        model = export.read(path)
        self.facts = facts_of(model)
        self.config: CodeFormerConfig = config_of(self.facts, path)
        self._path, self._backend, self._threads = path, backend, threads
        self._compiled: dict[tuple[bool, int], Callable[[Mapping[str, Any]], ExportedOutputs]] = {}

    def check(self, match_statistics: bool) -> None:
        """Raises ConfigError if latent AdaIN is wanted but not in the graph, or vice versa."""
        if match_statistics != self.match_statistics:
            raise ConfigError(
                f"{self._path} was exported {'with' if self.match_statistics else 'without'} "
                "latent AdaIN, which this task does otherwise"
            )

    @property
    def match_statistics(self) -> bool:
        """Whether latent AdaIN is part of the graph."""
        return self.facts["match_statistics"] == "true"

    @property
    def precision(self) -> str:
        """The precision in which the graph paints: fp32 or int8."""
        return self.facts["precision"]

    def __call__(self, images: NDArray[np.float32], w: float) -> ExportedOutputs:
        """Restores faces (B,3,S,S), RGB in [-1, 1]; at w = 0 nothing is fused, as in torch.

        Raises:
            ConfigError: see `check_w`.
            CheckpointError: the runtime cannot compile the graph.
        """
        check_w(w)
        inputs = {IMAGE: np.ascontiguousarray(images)} | (
            {FIDELITY: np.array(w, np.float32)} if w > 0 else {}
        )
        key = (w > 0, len(images))
        if key not in self._compiled:
            self._compiled = {key: self._compile(*key)}  # only one, to save memory
        return self._compiled[key](inputs)

    def encode(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Returns the images unchanged, because `decode` runs the whole graph at once."""
        return x, {}

    def choose_features(
        self, latent: Tensor, skips: dict[int, Tensor], match_statistics: bool
    ) -> Features:
        """Returns the images unchanged, as `encode`.

        Raises:
            ConfigError: as `check`.
        """
        self.check(match_statistics)
        return Features(latent, skips)

    def decode(self, quantized: Tensor, skips: dict[int, Tensor], w: float, /) -> Tensor:
        """Restores images (B,3,S,S) from the output of `choose_features`."""
        return torch.from_numpy(self(quantized.numpy(), w).restored)

    def _compile(self, fuses: bool, batch: int) -> Callable[[Mapping[str, Any]], ExportedOutputs]:
        model: Path | bytes = self._path
        if not fuses:
            graph = export.read(self._path)
            export.without_fusion(graph)
            model = graph.SerializeToString()
        compile_ = _compile_onnx if self._backend == "onnx" else _compile_openvino
        try:
            return compile_(model, batch, self._threads)
        except RuntimeError as error:  # both runtimes raise subclasses of it
            raise CheckpointError(f"{self._path} cannot be compiled: {error}") from error


def _compile_onnx(
    model: Path | bytes, batch: int, threads: int | None
) -> Callable[[Mapping[str, Any]], ExportedOutputs]:
    session = onnx_session(model, threads)
    return lambda inputs: ExportedOutputs(*session.run([RESTORED, CODES], dict(inputs)))


def onnx_session(model: Path | bytes, threads: int | None = None) -> onnxruntime.InferenceSession:
    """A session of ONNX Runtime on the CPU.

    Args:
        model: path or content of an ONNX file.
        threads: None: as many as the processor has cores.
    Raises:
        RuntimeError: a subclass of it, if the file is not a graph that can be run.
    """
    runtime = load_package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    return runtime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        options,
        providers=["CPUExecutionProvider"],
    )


def _compile_openvino(
    model: Path | bytes, batch: int, threads: int | None
) -> Callable[[Mapping[str, Any]], ExportedOutputs]:
    """Compiles for fixed shapes, because OpenVINO then fuses more."""
    core = _openvino_core()
    graph = core.read_model(model)
    shape = list(graph.input(IMAGE).partial_shape)[1:]
    graph.reshape({IMAGE: [batch, *shape]})
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
    }
    compiled = core.compile_model(graph, "CPU", settings)

    def run(inputs: Mapping[str, Any]) -> ExportedOutputs:
        results = compiled(dict(inputs))
        return ExportedOutputs(results[RESTORED].copy(), results[CODES].copy())

    return run


@cache
def _openvino_core() -> Any:
    """The only Core of this process, which is never freed.

    At its first network a Core gives the calling thread a stack for signal handlers. If Cores are
    freed in another order than their networks, the thread keeps a stack that has been unmapped, and
    the next signal, such as an interrupt, causes a segmentation fault (seen in 2026.4).
    """
    return load_package("openvino").Core()


def exported(weights: Path, *, match_statistics: bool | None = None) -> Path:
    """The path of a weight file's graph, which is exported to the user's cache once.

    If two processes export at once, the second replaces the file with an equal one.

    Args:
        match_statistics: whether latent AdaIN is part of the graph; None: as the network's
            configuration says.
    Raises:
        WeightsError, CheckpointError: the weights cannot be read, or are something else.
        ConfigError: a package needed for exporting is not installed.
        OutputError: the cache is not writable.
    """
    digest = known_sha256(weights)
    kind = {None: "own", True: "matched", False: "unmatched"}[match_statistics]
    path = cache_folder() / "exported" / f"{digest}-{kind}-{export.LAYOUT}.onnx"
    if not path.is_file():
        export.write(export_file(weights, match_statistics=match_statistics), path)
    return path


def exported_facts(path: Path) -> dict[str, str]:
    """The metadata of an exported file; raises as `export.read` does."""
    return facts_of(export.read(path))


def export_file(weights: Path, *, match_statistics: bool | None = None) -> onnx.ModelProto:
    """The graph of a weight file, with the origin and licence of the weights in its metadata.

    Args:
        match_statistics: as in `exported`, which raises the same errors.
    """
    return graph_of(load_codeformer(weights), weights, match_statistics=match_statistics)


def graph_of(
    network: CodeFormer, weights: Path, *, match_statistics: bool | None = None
) -> onnx.ModelProto:
    """The graph of a network that was loaded from a weight file; see `export_file`."""
    uses_adain = network.config.match_statistics if match_statistics is None else match_statistics
    metadata = read_metadata(weights)
    licence = {"licence": metadata["licence"]} if "licence" in metadata else {}
    facts = {**origin_of(weights), **licence}
    return export.export(network, match_statistics=uses_adain, facts=facts)
