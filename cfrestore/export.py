"""Exports a CodeFormer as an ONNX graph: image and w in, restored image and codes out.

onnx, and onnxscript, which torch needs for exporting, are optional, so they are imported on demand.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cfrestore import __version__, files
from cfrestore.errors import CheckpointError, ConfigError, OutputError, WeightsError
from cfrestore.extras import require
from cfrestore.models.codeformer import CodeFormer, CodeFormerConfig
from cfrestore.models.vqgan import GroupNorm, Upsample

if TYPE_CHECKING:
    import onnx

LAYOUT = 1
"""Version of an exported file's content; newer versions are rejected."""

OPSET = 18
IMAGE, FIDELITY, RESTORED, CODES = "image", "w", "restored", "codes"

PAINTING = ("network.generator.", "network.fuse_convs_dict.")
"""Name prefixes of the weights for painting; the others decide which codes are chosen."""


class _Graph(nn.Module):
    """The module that is exported; w is an input, so the fusion is always part of it."""

    def __init__(self, network: CodeFormer, match_statistics: bool) -> None:
        super().__init__()
        self.network = network
        self.match_statistics = match_statistics

    def forward(self, image: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """image (B,3,S,S) in [-1, 1] and w () to restored (B,3,S,S) and codes (B,T) int64."""
        latent, skips = self.network.encode(image)
        codes = self.network.choose(self.network.predict_codes(latent))
        quantized = self.network.quantized(codes, latent, self.match_statistics)
        return self.network.decode(quantized, skips, w), codes


class _WholeMapNorm(nn.Module):
    """Group normalisation that never reshapes maps.

    The exporter's group normalisation flattens maps to groups, which needs NCHW memory, while
    OpenVINO's convolutions use channels last. Each normalisation would cost two copies, in all 6 %
    of the CPU time.
    """

    weight: Tensor
    bias: Tensor
    group_of: Tensor

    def __init__(self, norm: GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.register_buffer("weight", norm.weight.detach()[:, None, None])  # (C, 1, 1)
        self.register_buffer("bias", norm.bias.detach()[:, None, None])
        group_of = torch.arange(norm.num_channels) // (norm.num_channels // norm.num_groups)
        self.register_buffer("group_of", group_of)  # (C,)

    def forward(self, x: Tensor) -> Tensor:
        mean = self._over_groups(x.mean((2, 3), keepdim=True))
        variance = self._over_groups((x - mean).square().mean((2, 3), keepdim=True))
        # y = (x - mean) / sqrt(variance) * weight + bias
        scale = self.weight * (variance + self.eps).rsqrt()
        return x * scale + (self.bias - mean * scale)

    def _over_groups(self, of_maps: Tensor) -> Tensor:
        """Averages (B, C, 1, 1) over the channels of each group; keeps the shape."""
        means = of_maps.reshape(-1, self.groups, len(self.group_of) // self.groups).mean(2)
        return means.index_select(1, self.group_of)[..., None, None]


def export(
    network: CodeFormer, *, match_statistics: bool, facts: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """Exports the graph of a network, for any batch size and w.

    Inputs are image (B,3,S,S) float32 RGB in [-1, 1] and w () float32; outputs are restored
    (B,3,S,S) float32, nominally in [-1, 1], and codes (B,T) int64. The metadata hold the network's
    configuration, so that the file is self-contained.

    Args:
        network: on the CPU, in evaluation mode; not changed.
        match_statistics: see `CodeFormer.forward`; fixed in the graph.
        facts: more metadata, such as licence and SHA-256 of the weights.
    Raises:
        ConfigError: a required package is not installed.
    """
    require("onnx", "onnxscript", extra="onnx")
    graph = _Graph(for_runtimes(network), match_statistics)
    side = network.config.image_size
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    with quiet(), torch.enable_grad():  # without gradients SiLU works in place
        program = torch.onnx.export(
            graph,
            (torch.zeros(2, 3, side, side), torch.tensor(0.5)),
            dynamo=True,
            opset_version=OPSET,
            input_names=[IMAGE, FIDELITY],
            output_names=[RESTORED, CODES],
            dynamic_shapes={IMAGE: {0: batch}, FIDELITY: None},
            optimize=False,  # takes minutes, and runtimes do the same in seconds
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _forget_origin(model)
    describe(
        model,
        {
            "layout": str(LAYOUT),
            "cfrestore": __version__,
            "config": network.config.to_json(),
            "match_statistics": json.dumps(match_statistics),
            "precision": "fp32",
            **(facts or {}),
        },
    )
    return model


def describe(model: onnx.ModelProto, facts: Mapping[str, str]) -> None:
    """Adds facts to the metadata of a graph, replacing those of the same name."""
    known = {**facts_of(model), **facts}
    del model.metadata_props[:]
    for key, value in known.items():
        model.metadata_props.add(key=key, value=value)


def facts_of(model: onnx.ModelProto) -> dict[str, str]:
    """The metadata of a graph."""
    return {entry.key: entry.value for entry in model.metadata_props}


def config_of(facts: Mapping[str, str], path: Path) -> CodeFormerConfig:
    """The configuration in an exported file's metadata.

    Raises:
        CheckpointError: the metadata do not describe a CodeFormer, or have a newer layout.
    """
    try:
        if int(facts["layout"]) > LAYOUT:
            raise CheckpointError(f"{path} was exported by a later cfrestore, {facts['cfrestore']}")
        return CodeFormerConfig.from_json(facts["config"])
    except (KeyError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path} was not exported by cfrestore: {error!r}") from error


def without_fusion(model: onnx.ModelProto) -> None:
    """Removes the fusion, a quarter of the graph, which w = 0 does not need.

    Each x + w * change becomes x.

    Raises:
        CheckpointError: the graph was not made by `export`.
    """
    nodes = model.graph.node
    scaled = {node.output[0] for node in nodes if FIDELITY in node.input}
    plain: dict[str, str] = {}
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = plain.get(name, name)
        if node.op_type == "Add" and len(scaled & set(node.input)) == 1:
            (plain[node.output[0]],) = set(node.input) - scaled
    if len(plain) != len(scaled):
        raise CheckpointError("the exported graph does not scale by w what it adds")
    _keep_reachable(model)


def _keep_reachable(model: onnx.ModelProto) -> None:
    """Removes the nodes, weights and inputs on which no output depends."""
    graph = model.graph
    wanted = {output.name for output in graph.output}
    for node in reversed(graph.node):  # nodes are in topological order
        if wanted & set(node.output):
            wanted |= set(node.input)
    kept = [node for node in graph.node if wanted & set(node.output)]
    for field, entries in (
        (graph.node, kept),
        (graph.initializer, [value for value in graph.initializer if value.name in wanted]),
        (graph.input, [value for value in graph.input if value.name in wanted]),
    ):
        del field[:]
        field.extend(entries)


def write(model: onnx.ModelProto, path: Path) -> None:
    """Writes a graph in one step, so that the file is complete at every moment.

    Raises:
        OutputError: it cannot be written.
    """
    with drafted(model, path):
        pass


@contextmanager
def drafted(model: onnx.ModelProto, path: Path) -> Iterator[Path]:
    """Writes a graph to a draft beside path; it replaces path at the end, or is removed on error.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.drafted(path) as draft:
            draft.write_bytes(model.SerializeToString(deterministic=True))
            yield draft
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def read(path: Path) -> onnx.ModelProto:
    """Reads an exported file as a graph.

    Raises:
        ConfigError: onnx is not installed.
        WeightsError, CheckpointError: the file cannot be read, or is not a graph.
    """
    require("onnx", extra="onnx")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load_from_string(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except DecodeError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def is_exported(path: str | Path) -> bool:
    """Whether a file is an ONNX graph rather than a file of tensors; false if unreadable."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(9)
    except OSError:
        return False
    # A graph begins with its field 1, the version. A safetensors file may begin with the same byte,
    # but its ninth is "{".
    return head[:1] == b"\x08" and head[8:] != b"{"


def for_runtimes(network: CodeFormer) -> CodeFormer:
    """A copy of a network for other runtimes: up-sampling kernels computed, no maps reshaped."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Upsample):
                setattr(parent, name, child.as_layer().requires_grad_(False))
            elif isinstance(child, GroupNorm):
                setattr(parent, name, _WholeMapNorm(child))
    return network


def _forget_origin(model: onnx.ModelProto) -> None:
    """Removes what torch records about the calling code: names, lines and folders."""
    graph = model.graph
    for thing in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        thing.doc_string = ""
        if thing is not model:
            del thing.metadata_props[:]
    del graph.value_info[:]


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter's messages, which do not help users."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
