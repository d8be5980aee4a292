"""Networks that compute metrics of faces, loaded from given files.

Only MTCNN, dlib's recogniser and the parameters of NIQE come with packages.
"""

from __future__ import annotations

import io
import math
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfrestore import export
from cfrestore.align import FFHQ_TEMPLATE, PUBLISHED_SIZE, cut_crop, estimate_similarity
from cfrestore.backends import check_backend, onnx_session
from cfrestore.cascade import Cascade
from cfrestore.checkpoint import load_strictly, read_checkpoint, unfilled
from cfrestore.detect import load_detector
from cfrestore.device import inference
from cfrestore.errors import CheckpointError
from cfrestore.evaluate.figures import Face
from cfrestore.extras import require
from cfrestore.image import resize, to_tensor
from cfrestore.lpips import load_lpips
from cfrestore.recognise import load_recogniser, look_at

Floats = NDArray[np.float32]

ARCFACE_SIDE = 112
ARCFACE_TEMPLATE: Floats = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655],
     [70.7299, 92.2041]],
    np.float32,
)  # fmt: skip
"""Where ArcFace expects the five landmarks (x, y) in its input of 112 px; order as in Face."""

NIQE_BLOCK = 96
"""Side, in pixels, of the blocks whose statistics NIQE compares."""

DROPPED = "torchvision.transforms.functional_tensor"
"""A module that basicsr imports, but torchvision no longer has."""


class Landmarks:
    """MTCNN on an aligned face."""

    def __init__(self) -> None:
        self._detector = load_detector("mtcnn")
        self._features = Cascade().decide

    def find(self, face: Face) -> Floats | None:
        """Five points (5,2), in pixels of 512, of the most central face; None if none is found."""
        side = PUBLISHED_SIZE
        found = self._detector(resize(face, side, side, enlarge=cv2.INTER_CUBIC))
        if not found:
            return None
        middle = side / 2
        return min(found, key=lambda f: float(np.abs(f.landmarks.mean(0) - middle).sum())).landmarks

    def features(self, face: Face) -> list[Tensor]:
        """Feature maps of MTCNN's last network, before and after each of three activations."""
        x = (torch.from_numpy(face).permute(2, 0, 1)[None].float() - 127.5) / 128
        maps = []
        with inference(alone=False):
            for n, side in ((1, 3), (2, 3), (3, 2)):
                for layer in ("conv", "prelu"):
                    x = self._features.get_submodule(f"{layer}{n}")(x)
                    maps.append(x)
                x = torch.nn.functional.max_pool2d(x, side, 2, ceil_mode=True)
        return maps


def load_distance(vgg: Path, linear: Path, device: torch.device) -> Callable[[Face, Face], float]:
    """Loads LPIPS 0.1 on VGG-16, without the second normalisation of the published training.

    Args:
        vgg: torchvision's VGG-16 weights.
        linear: the calibration.
    Raises:
        WeightsError, CheckpointError: a file cannot be read, or is the wrong one.
    """
    network = load_lpips(vgg, linear, double_normalisation=False).to(device).eval()

    def distance(face: Face, clean: Face) -> float:
        with inference():
            a, b = to_tensor(np.stack((face, clean))).to(device).chunk(2)
            return float(network(a, b))

    return distance


def load_arcface(path: Path, device: torch.device) -> Callable[[Face], Floats]:
    """Loads ArcFace's embedding of an aligned face: a vector of length 1.

    Faces are cut by the template, not by their own landmarks, so that a bad restoration cannot
    influence which part is compared. Channels are RGB, values (x - 127.5) / 127.5.

    Args:
        path: weights of facexlib's ResNet-50, IR or IR-SE, or a recogniser of InsightFace, whose
            name ends in .onnx.
        device: of the ResNet-50; ONNX Runtime uses the CPU.
    Raises:
        WeightsError, CheckpointError: the file cannot be read, or is the wrong one.
        ConfigError: it is an ONNX file, and onnx or onnxruntime is not installed.
    """
    network = _insightface(path) if path.suffix.lower() == ".onnx" else _resnet(path, device)

    def embed(face: Face) -> Floats:
        landmarks = FFHQ_TEMPLATE * (len(face) / PUBLISHED_SIZE)
        to_crop = estimate_similarity(landmarks, ARCFACE_TEMPLATE)
        crop = cut_crop(face, to_crop, ARCFACE_SIDE)
        with inference():
            return network(to_tensor(crop[None]).contiguous())

    return embed


def _resnet(path: Path, device: torch.device) -> Callable[[Tensor], Floats]:
    from facexlib.recognition.arcface_arch import Backbone

    state = read_checkpoint(path)[0]
    squeezes = any(".fc1." in key for key in state)
    with unfilled():
        network = Backbone(50, 0.6, "ir_se" if squeezes else "ir")
    load_strictly(network, state, path, "ArcFace ResNet-50")
    network.to(device).eval()
    return lambda crops: np.asarray(network(crops.to(device))[0].cpu().numpy())


def _insightface(path: Path) -> Callable[[Tensor], Floats]:
    check_backend("onnx")
    graph = export.read(path)
    try:
        session = onnx_session(graph.SerializeToString())
    except RuntimeError as error:
        raise CheckpointError(f"{path} cannot be compiled: {error}") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shapes = [list(value.shape[1:]) for value in (*inputs, *outputs)]
    if len(shapes) != 2 or shapes[0] != [3, ARCFACE_SIDE, ARCFACE_SIDE] or len(shapes[1]) != 1:
        raise CheckpointError(f"{path} is not a recogniser of faces of {ARCFACE_SIDE} px")

    def embed(crops: Tensor) -> Floats:
        vector = np.asarray(session.run(None, {inputs[0].name: crops.numpy()})[0][0], np.float32)
        return vector / np.float32(np.linalg.norm(vector))

    return embed


def load_descriptor(path: Path, device: torch.device) -> Callable[[Face], Floats]:
    """Loads dlib's descriptor of an aligned face: a vector (128,); see `recognise`.

    Raises:
        WeightsError, CheckpointError: the file cannot be read, or is the wrong one.
    """
    recogniser = load_recogniser(path).to(device)

    def descriptor(face: Face) -> Floats:
        with inference():
            seen = look_at(to_tensor(face[None]).to(device))
            return np.asarray(recogniser(seen)[0].cpu().numpy())

    return descriptor


def load_inception(path: Path, device: torch.device) -> Callable[[Face], Floats]:
    """Loads the features (2048,) for Frechet distances, by torch-fidelity's Inception V3.

    Args:
        path: `pt_inception-2015-12-05-6726825d.pth` or the like, not torchvision's own weights.
    Raises:
        ConfigError: torch-fidelity is not installed.
        WeightsError, CheckpointError: the file cannot be read, or is the wrong one.
    """
    require("torch_fidelity", extra="eval")
    from torch_fidelity import FeatureExtractorInceptionV3

    safe = io.BytesIO()  # the package would execute pickled code in a file
    torch.save(read_checkpoint(path)[0], safe)
    safe.seek(0)
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=safe
        )
    except RuntimeError as error:
        raise CheckpointError(f"{path} is not the Inception V3 of the Frechet distance") from error
    network.to(device)

    def features(face: Face) -> Floats:
        batch = torch.from_numpy(face).permute(2, 0, 1)[None].to(device)
        with inference():
            return np.asarray(network(batch)[0][0].cpu().numpy())

    return features


def load_niqe() -> tuple[Callable[[Face], float | None], Path]:
    """Loads NIQE of a face, None if too small or too smooth; also returns its parameter file.

    Computed by basicsr 1.4.2, which imports a module that torchvision has dropped; the module with
    its present content stands in for it during the import.

    Raises:
        ConfigError: basicsr is not installed; on Python 3.13 and later it cannot be.
    """
    require("torchvision.transforms.functional", extra="niqe")
    lent = DROPPED not in sys.modules
    sys.modules.setdefault(DROPPED, import_module("torchvision.transforms.functional"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            require("basicsr.metrics.niqe", extra="niqe")
    finally:
        if lent:
            del sys.modules[DROPPED]
    module = import_module("basicsr.metrics.niqe")

    def niqe(face: Face) -> float | None:
        if len(face) < 2 * NIQE_BLOCK:  # NIQE needs the variation between blocks
            return None
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                value = float(module.calculate_niqe(face[..., ::-1], crop_border=0))
        except np.linalg.LinAlgError:
            return None
        return value if math.isfinite(value) else None

    return niqe, Path(str(module.__file__)).with_name("niqe_pris_params.npz")
