"""Quantises exported networks to paint in 8 bits, calibrated on real faces.

Encoder and transformer stay in float32, so that the codes of a face do not change, and so do the
few convolutions that 8 bits would harm most.
Source: static quantisation of onnxruntime; int8 weights, scaled per output channel, and uint8
inputs of convolutions, between the smallest and the largest value seen in calibration.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cfrestore import export
from cfrestore.backends import ExportedNetwork
from cfrestore.degrade import LARGE, SMALL, degrade
from cfrestore.errors import CheckpointError, ConfigError, ImageError
from cfrestore.export import FIDELITY, IMAGE, PAINTING
from cfrestore.extras import require
from cfrestore.files import is_folder
from cfrestore.image import pictures_in, read_photo, resize, to_uint8
from cfrestore.models.codeformer import CodeFormer

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

LEAST_PSNR = 35.0
"""PSNR in dB of int8 against fp32 below which no file is written."""

EXACT_SHARE = 0.14
"""Largest share of the multiply-adds of painting at w > 0 that stay in float32."""

LEAST_FACES = 4
MOST_FACES = 64
"""Limits on the number of faces used from a folder: half to calibrate, half to measure."""

FIDELITIES = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Agreement:
    """How well int8 agrees with fp32 on faces that were not used for calibration.

    Attributes:
        faces: number of faces.
        psnr: dB over all of them, values clamped to [-1, 1], at the w where it is lowest.
        equal_codes: whether int8 chose the same codes as fp32.
    """

    faces: int
    psnr: float
    equal_codes: bool


def read_faces(folder: Path, side: int, most: int = MOST_FACES) -> NDArray[np.float32]:
    """Reads aligned faces of a folder and damages them, one half slightly, the other severely.

    Args:
        side: S; pictures of other sizes are resized.
        most: largest number of faces, the first by name.
    Returns:
        (N,3,S,S) RGB in [-1, 1]; the slightly damaged half comes first.
    Raises:
        ConfigError: fewer than LEAST_FACES pictures can be read.
    """
    faces = [resize(face, side, side) for face in islice(_read(folder), most)]
    if len(faces) < LEAST_FACES:
        raise ConfigError(
            f"{folder} has {len(faces)} pictures, and {LEAST_FACES} aligned faces are the least"
        )
    clean = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2).float() / 255
    generator = torch.Generator().manual_seed(0)
    # Alternating, so that each half of the folder gets both kinds of damage.
    kinds = (clean[0::2], SMALL.scaled(side)), (clean[1::2], LARGE.scaled(side))
    damaged = [degrade(images, damage, generator) for images, damage in kinds]
    return (torch.cat(damaged) * 2 - 1).numpy()


def _read(folder: Path) -> Iterator[NDArray[np.uint8]]:
    if not is_folder(folder):
        raise ConfigError(f"{folder} is no folder of faces")
    for path in pictures_in(folder, below=False):
        try:
            pixels = to_uint8(read_photo(path).pixels)
        except ImageError:
            continue
        yield pixels


def quantize(
    network: CodeFormer, model: onnx.ModelProto, faces: NDArray[np.float32], backend: str
) -> tuple[onnx.ModelProto, Agreement]:
    """Quantises the convolutions of generator and fusion to int8, and measures the agreement.

    Args:
        network: the network that was exported; not changed.
        model: from `export`; not changed.
        faces: from `read_faces`; every other one is held out for measuring.
        backend: the runtime for measuring, onnx or openvino.
    Returns:
        the new graph, whose metadata hold the agreement, and the agreement.
    Raises:
        ConfigError: onnxruntime is not installed.
    """
    require("onnxruntime", extra="onnx")
    facts = export.facts_of(model)
    seen, held_out = faces[0::2], faces[1::2]
    convolutions = watch_convolutions(network, seen, facts["match_statistics"] == "true")
    with tempfile.TemporaryDirectory() as folder:
        exact, rounded = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        export.write(model, exact)
        _quantize(model, exact, rounded, seen, choose_exact(convolutions))
        agreement = _compare(exact, rounded, held_out, backend)
        result = export.read(rounded)
    facts |= {"precision": "int8", "psnr": f"{agreement.psnr:.2f}", "faces": str(agreement.faces)}
    export.describe(result, facts)
    return result, agreement


@dataclass
class Convolution:
    """Statistics of a convolution used for painting.

    Attributes:
        operations: multiply-adds for one face.
        least, most: range of its input, over all faces.
        squared_slope: sum of the squared derivatives of all painted values with respect to all
            values of its input, through this convolution alone; summed over all faces.
    """

    operations: int = 0
    least: float = 0.0
    most: float = 0.0
    squared_slope: float = 0.0

    @property
    def error(self) -> float:
        """Squared error of the painted values if the input is rounded to 256 levels.

        Rounding counts as independent noise, uniform within a step, so of variance step^2 / 12.
        """
        return ((self.most - self.least) / 255) ** 2 / 12 * self.squared_slope


def watch_convolutions(
    network: CodeFormer, faces: NDArray[np.float32], match_statistics: bool
) -> dict[str, Convolution]:
    """Statistics of the painting convolutions, by the names of their exported weights.

    One backward pass per face gives all slopes: with random signs v for the painted values,
    E |J^T v|^2 is the sum of squares of the derivatives J (Hutchinson's estimator).

    Args:
        network: not changed.
        faces: (N,3,S,S) RGB in [-1, 1]; w is each of FIDELITIES in turn.
        match_statistics: see `CodeFormer.forward`.
    """
    network = export.for_runtimes(network)
    found: dict[str, Convolution] = {}
    for name, layer in network.named_modules():
        weight = f"network.{name}.weight"
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and weight.startswith(PAINTING):
            found[weight] = Convolution()
            layer.register_forward_pre_hook(_watch(found[weight]))
    generator = torch.Generator().manual_seed(0)
    for index, face in enumerate(torch.from_numpy(faces)):
        with torch.no_grad():
            features = network.predict_features(face[None], match_statistics)
        with torch.enable_grad():
            quantized = features.quantized.clone().requires_grad_()
            w = torch.tensor(FIDELITIES[index % len(FIDELITIES)])
            painted = network.decode(quantized, features.skips, w)
        signs = torch.randint(0, 2, painted.shape, generator=generator) * 2.0 - 1
        painted.backward(signs)
    return found


def _watch(convolution: Convolution) -> Any:
    """A forward pre-hook for a layer, which records statistics of its input."""

    def watch(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        x = inputs[0].view_as(inputs[0])  # other layers may use the same input
        least, most = x.detach().aminmax()
        convolution.least = min(convolution.least, least.item())
        convolution.most = max(convolution.most, most.item())
        assert isinstance(layer.weight, Tensor)
        # All strides are 1.
        convolution.operations = layer.weight.numel() * x.shape[2] * x.shape[3]

        def add(gradient: Tensor) -> None:
            convolution.squared_slope += gradient.square().sum().item()

        x.register_hook(add)
        return (x,)

    return watch


def choose_exact(
    convolutions: Mapping[str, Convolution], share: float = EXACT_SHARE
) -> frozenset[str]:
    """Chooses the convolutions that stay in float32: those that save most error per multiply-add.

    Args:
        convolutions: from `watch_convolutions`.
        share: the largest share that they may have of all multiply-adds.
    """
    left = share * sum(convolution.operations for convolution in convolutions.values())
    chosen = set()
    for name, convolution in sorted(
        convolutions.items(), key=lambda item: item[1].error / item[1].operations, reverse=True
    ):
        if convolution.operations <= left:
            left -= convolution.operations
            chosen.add(name)
    return frozenset(chosen)


def check(agreement: Agreement) -> None:
    """Raises CheckpointError if int8 falls short of LEAST_PSNR or chooses different codes."""
    if agreement.psnr >= LEAST_PSNR and agreement.equal_codes:
        return
    codes = "the same" if agreement.equal_codes else "other"
    raise CheckpointError(
        f"int8 is not offered: on {agreement.faces} faces it has {codes} codes and "
        f"{agreement.psnr:.1f} dB against fp32, at least {LEAST_PSNR:g} are wanted"
    )


def _quantize(
    model: onnx.ModelProto,
    source: Path,
    target: Path,
    faces: NDArray[np.float32],
    exact: frozenset[str],
) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    kinds = ["Conv", "ConvTranspose"]
    nodes = [
        node.name
        for node in model.graph.node
        if node.op_type in kinds
        and node.input[1].startswith(PAINTING)
        and node.input[1] not in exact
    ]
    with export.quiet():
        quantize_static(
            source,
            target,
            _Feed(faces),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=kinds,
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"OpTypesToExcludeOutputQuantization": kinds},
        )


class _Feed:
    """Supplies faces one by one, each with the next w, as onnxruntime requests them."""

    def __init__(self, faces: NDArray[np.float32]) -> None:
        self._inputs = iter(
            {
                IMAGE: face[None],
                FIDELITY: np.array(FIDELITIES[index % len(FIDELITIES)], np.float32),
            }
            for index, face in enumerate(faces)
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._inputs, None)


def _compare(exact: Path, rounded: Path, faces: NDArray[np.float32], backend: str) -> Agreement:
    networks = [ExportedNetwork(path, backend) for path in (exact, rounded)]
    worst, equal = np.inf, True
    for w in FIDELITIES:
        squares = []
        for face in faces:
            one, other = (network(face[None], w) for network in networks)
            difference = one.restored.clip(-1, 1) - other.restored.clip(-1, 1)
            squares.append(float(np.square(difference / 2, dtype=np.float64).mean()))
            equal &= bool((one.codes == other.codes).all())
        mean = float(np.mean(squares))
        worst = min(worst, -10 * np.log10(mean) if mean else np.inf)
    return Agreement(len(faces), float(worst), equal)
