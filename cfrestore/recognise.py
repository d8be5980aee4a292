"""Descriptors of aligned faces, by which dlib's recogniser tells people apart.

The weights come with the package face_recognition_models, which is not imported because it would
need setuptools. dlib itself is not needed; a test compares with descriptors that dlib computed.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cfrestore.align import PUBLISHED_SIZE
from cfrestore.checkpoint import load_strictly, unfilled
from cfrestore.errors import CheckpointError, ConfigError, WeightsError
from cfrestore.extras import install, package_folder
from cfrestore.models.recogniser import SIDE, Recogniser

PACKAGE = "face_recognition_models"

SHA256 = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"
"""SHA-256 of the weight file."""

REGION = (90, 144, 332)
"""The region of an aligned face of 512 px that is used: left, top, side, in pixels.

It is the median, made symmetrical, of the regions that dlib cuts out of real portraits by its own
landmarks.
"""

MEAN = (122.782, 117.001, 104.298)
"""Mean RGB colour, which the recogniser subtracts."""


def recogniser_file() -> Path:
    """The path of the weights.

    Raises:
        ConfigError: the package that contains them is not installed.
    """
    folder = package_folder(PACKAGE)
    if folder is None:
        raise ConfigError(f"{PACKAGE} is not installed; {install('identity')} brings it")
    return folder / "models/dlib_face_recognition_resnet_model_v1.dat"


def load_recogniser(path: Path) -> Recogniser:
    """The recogniser, on the CPU.

    Args:
        path: `dlib_face_recognition_resnet_model_v1.dat`.
    Raises:
        WeightsError: the file cannot be read.
        CheckpointError: it is a different file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise CheckpointError(
            f"{path} is not dlib's face recognition model: its SHA-256 is {found}, not {SHA256}"
        )
    with unfilled():
        network = Recogniser()
    load_strictly(network, _state_from(data, network), path, "recogniser")
    return network.eval().requires_grad_(False)


def look_at(faces: Tensor) -> Tensor:
    """The recogniser's input (B,3,150,150) from aligned faces (B,3,S,S); differentiable."""
    left, top, side = (round(value * faces.shape[-1] / PUBLISHED_SIZE) for value in REGION)
    seen = faces[..., top : top + side, left : left + side]
    return F.interpolate(seen, (SIDE, SIDE), mode="bilinear", antialias=True)


def _state_from(data: bytes, network: Recogniser) -> dict[str, Tensor]:
    """The state dict from the content of dlib's file, with normalisations merged into convolutions.

    The file holds for each convolution, from first to last, its weights and biases in one tensor,
    then scales and shifts of the normalisation after it in another.
    """
    position = 0

    def following(*sizes: int) -> Tensor:
        nonlocal position
        # The version, 2, and four sizes; before each integer stands its length in bytes.
        header = b"".join(_integer(value) for value in (2, *sizes, *(1,) * (4 - len(sizes))))
        at = data.index(header, position) + len(header)
        position = at + 4 * math.prod(sizes)
        return torch.from_numpy(np.frombuffer(data[at:position], "<f4").astype(np.float32))

    state = {"mean": torch.tensor(MEAN).view(3, 1, 1)}
    for key, value in network.state_dict().items():
        layer, _, kind = key.rpartition(".")
        if value.ndim == 4 and kind == "weight":
            weight, bias = following(value.numel() + len(value)).split((value.numel(), len(value)))
            scale, shift = following(2 * len(value)).chunk(2)
            state[key] = weight.view(value.shape) * scale.view(-1, 1, 1, 1)
            state[f"{layer}.bias"] = bias * scale + shift
    length, inner = network.head.weight.shape
    state["head.weight"] = following(inner, length).view(inner, length).T.contiguous()
    return state


def _integer(value: int) -> bytes:
    size = (value.bit_length() + 7) // 8
    return bytes((size,)) + value.to_bytes(size, "little")
