"""Chooses the network of a task, and how it computes, by name; and opens it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cfrestore.backends import ExportedNetwork, check_backend, exported, exported_facts
from cfrestore.checkpoint import read_metadata
from cfrestore.device import (
    Execution,
    check_compiling,
    choose_code_precision,
    choose_device,
    choose_precision,
)
from cfrestore.errors import ConfigError, WeightsError
from cfrestore.export import is_exported
from cfrestore.files import exists
from cfrestore.task import RESTORATION, Task
from cfrestore.weights import load_codeformer, locate, missing, search_folders, shipped, weight_file

if TYPE_CHECKING:
    from torch import Tensor

    from cfrestore.models.codeformer import CodeFormerConfig, Features


class Network(Protocol):
    """A network that paints faces: a CodeFormer, or one exported to another runtime.

    Attributes:
        config: its configuration.
    """

    config: CodeFormerConfig

    def encode(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Converts images (B,3,S,S) to the input of `choose_features`."""

    def choose_features(
        self, latent: Tensor, skips: dict[int, Tensor], match_statistics: bool
    ) -> Features:
        """Converts the output of `encode`, its latent in float32, to the input of `decode`.

        It does not depend on w.
        """

    def decode(self, quantized: Tensor, skips: dict[int, Tensor], w: float, /) -> Tensor:
        """Paints images (B,3,S,S)."""


def choose_execution(
    backend: str, device: str, precision: str, code_precision: str = "auto", *, compile: bool
) -> Execution:
    """Chooses how to compute, by names; only torch can use devices other than the CPU.

    Raises:
        ConfigError: a name is unknown, the backend or the device is absent, or they are
            incompatible.
    """
    check_backend(backend)
    if backend == "torch":
        place = choose_device(device)
        if compile:
            check_compiling(place)
        codes = choose_code_precision(code_precision, place)
        return Execution(place, choose_precision(precision, place), codes, compile, backend)
    if device not in ("auto", "cpu"):
        raise ConfigError(f"the backend {backend} runs on the CPU, not on {device}")
    for name in (precision, code_precision):
        if name not in ("auto", "fp32"):
            raise ConfigError(
                f"the backend {backend} computes in fp32, or paints in int8 if it is given a file "
                f"that was exported so, not in {name}"
            )
    if compile:
        raise ConfigError(f"--compile is torch's; the backend {backend} always compiles")
    return Execution(backend=backend)


def open_network(path: Path, task: Task, execution: Execution) -> Network:
    """Opens the network of a file; for backends other than torch, an exported one.

    Raises:
        ConfigError: an exported file does not suit the backend or the task.
        WeightsError, CheckpointError, OutputError: as `load_codeformer` and `exported`.
    """
    ready = is_exported(path)
    if execution.backend == "torch":
        if ready:
            raise ConfigError(f"{path} is an exported network; --backend openvino or onnx runs it")
        return load_codeformer(path, execution.device)
    graph = path if ready else exported(path, match_statistics=task.matched)
    network = ExportedNetwork(graph, execution.backend)
    network.check(task.matches(network.config.match_statistics))
    return network


def choose_weights(model: str) -> tuple[Path, str, tuple[str, ...]]:
    """Path and name of the restoration weights that a name selects, and notes on the choice.

    Raises:
        WeightsError, CheckpointError: as `choose_model`.
        ConfigError: the name is that of an exported file.
    """
    path, name, notes = choose_model(model, RESTORATION)
    if is_exported(path):
        raise ConfigError(f"{path} is an exported network already")
    return path, name, notes


def choose_model(model: str, task: Task) -> tuple[Path, str, tuple[str, ...]]:
    """Path and name of the weights that a name selects, and notes on the choice.

    Args:
        model: see `load_pipeline`.
    Raises:
        WeightsError: the weights are missing, or differ from the published ones.
        CheckpointError: a named file cannot be read.
        ConfigError: the task has no such weights.
    """
    if model == "compact" and not task.has_compact:
        raise ConfigError(f"there are no compact weights for {task.name}, only published ones")
    if model == "compact":
        return shipped(), "compact", ()
    if model not in ("auto", "published"):
        if not model or not exists(Path(model)):
            names = "auto, published" + ", compact" * task.has_compact
            raise WeightsError(f"model {model!r} is neither a file nor one of {names}")
        metadata = exported_facts(Path(model)) if is_exported(model) else read_metadata(model)
        licence = metadata.get("licence")
        notes = (f"{model} says of its licence: {licence}.",) if licence else ()
        return Path(model), Path(model).name, notes
    row = weight_file(task.weights)
    if path := locate(row.name):
        return path, "published", (f"{path} comes under the {row.licence}.",)
    if model == "published" or not task.has_compact:
        raise missing(row.name)
    folders = ", ".join(map(str, search_folders()))
    note = (
        f"The published weights ({row.file}) are not in {folders}, so the compact ones that come "
        "with cfrestore are used; their faces have less detail."
    )
    return shipped(), "compact", (note,)
