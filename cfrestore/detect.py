"""Detects faces: three detectors with one type of result.

RetinaFace (ResNet-50 or MobileNet-0.25) needs a weight file; MTCNN's weights come with its package.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from cfrestore.errors import CheckpointError, ConfigError, WeightsError
from cfrestore.files import is_file

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]

NAMES = ("auto", "retinaface", "mobilenet", "mtcnn")

MIN_EYE_DISTANCE = 5.0
"""Faces whose eyes are closer together, in pixels of the picture, are not worth restoring."""

RETINAFACE_THRESHOLD = 0.8
"""Score above which a face counts, as in the published pipeline."""

RETINAFACE_OVERLAP = 0.4
"""Largest intersection over union of two faces, as in the published pipeline."""

LONG_SIDE = 4096
"""Longest side that is searched, so that a picture of 1 x 20000 costs no more than others."""

PRIOR_SIZES = {8: (16, 32), 16: (64, 128), 32: (256, 512)}  # stride: sides of its anchors, px
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2


@dataclass(frozen=True, eq=False)
class Face:
    """A detected face, in pixels of the picture given to the detector.

    Attributes:
        box: (4,) float32, x0 y0 x1 y1; may extend beyond the picture.
        score: the detector's confidence, in [0, 1].
        landmarks: (5, 2) float32, x then y: image-left eye, image-right eye, nose, image-left and
            image-right mouth corner; left and right when the face is upright.

    Raises:
        TypeError: box or landmarks are not a numpy array.
        ValueError: their shapes differ from the above.
    """

    box: Floats
    score: float
    landmarks: Floats

    def __post_init__(self) -> None:
        for name, shape in (("box", (4,)), ("landmarks", (5, 2))):
            value = getattr(self, name)
            if not isinstance(value, np.ndarray):
                raise TypeError(f"{name} must be a numpy array, found {type(value).__name__}")
            if value.shape != shape:
                raise ValueError(f"{name} must have the shape {shape}, found {value.shape}")


@runtime_checkable
class Detector(Protocol):
    """Finds the faces of a picture.

    Called with (H, W, 3) uint8 RGB pixels of any size; returns faces in descending order of score,
    possibly none. Two calls with the same pixels give the same faces.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[Face, ...]: ...


def load_detector(
    name: str | Path = "auto",
    device: str | torch.device = "cpu",
    threshold: float | None = None,
) -> Detector:
    """Loads the detector of that name, ready to be called.

    Args:
        name: retinaface (ResNet-50), mobilenet (RetinaFace on MobileNet-0.25) or mtcnn; auto, the
            first of these three whose weights are present; or the path of a RetinaFace file.
        device: where RetinaFace computes; a name is resolved by choose_device.
        threshold: the score above which a face counts, in [0, 1]; None: RETINAFACE_THRESHOLD, or as
            in MTCNNDetector.
    Raises:
        WeightsError: the weight file is missing.
        CheckpointError: the file is not a RetinaFace.
        ConfigError: the device is unknown or absent, or the threshold no number or out of range.
    """
    from cfrestore.device import choose_device
    from cfrestore.weights import locate, missing

    if threshold is not None and not (_is_number(threshold) and 0 <= threshold <= 1):
        raise ConfigError(f"the detector's threshold must lie in [0, 1], found {threshold!r}")
    place = choose_device(device) if isinstance(device, str) else device
    path: str | Path | None = None
    if name == "auto":
        path = locate("retinaface") or locate("mobilenet")
    elif name not in NAMES:
        if not is_file(Path(name)):
            raise WeightsError(
                f"detector {str(name)!r} is neither a file nor one of {', '.join(NAMES)}"
            )
        path = name
    elif name != "mtcnn":
        path = locate(str(name))
        if path is None:
            raise missing(str(name))
    return MTCNNDetector(threshold) if path is None else RetinaFaceDetector(path, place, threshold)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


class RetinaFaceDetector:
    """RetinaFace with the published pipeline's preprocessing and thresholds.

    Source: network and weights of facexlib (MIT). The picture's short side becomes 640 px, and the
    long side at most LONG_SIDE, a bound that the published pipeline does not have.
    """

    def __init__(
        self, path: str | Path, device: torch.device, threshold: float | None = None
    ) -> None:
        """Loads the file at path, which determines the backbone; raises as load_detector does."""
        self.name, self._network = _load_retinaface(path, device)
        self._threshold = RETINAFACE_THRESHOLD if threshold is None else threshold
        self._device = device

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[Face, ...]:
        import torch

        from cfrestore.cascade import suppress
        from cfrestore.device import inference

        scale, resized = _resize(pixels, short_side=640, enlarge=True)
        bgr = resized[..., ::-1].astype(np.float32) - np.array((104, 117, 123), np.float32)
        batch = torch.from_numpy(bgr.transpose(2, 0, 1)[None].copy()).to(self._device)
        with inference():
            raw = [output[0].float().cpu().numpy() for output in self._network(batch)]
        offsets, probabilities, landmark_offsets = raw  # (N,4), (N,2), (N,10)

        scores = probabilities[:, 1]
        likely = scores > self._threshold
        boxes, landmarks = decode(
            make_priors(*resized.shape[:2])[likely], offsets[likely], landmark_offsets[likely]
        )
        unit = np.array(resized.shape[1::-1], np.float32)
        boxes, landmarks, scores = boxes * np.tile(unit, 2), landmarks * unit, scores[likely]
        keep = suppress(boxes, scores, RETINAFACE_OVERLAP)
        return _to_faces(boxes[keep] / scale, scores[keep], landmarks[keep] / scale)


class MTCNNDetector:
    """MTCNN, whose weights are always installed.

    Large pictures are searched in a copy with a short side of 1024 px and a long side of at most
    LONG_SIDE; faces below 20 px there are not found. It always runs on the CPU: its networks are
    tiny, and some devices lack the area pooling it relies on.

    A doubtful face (score 0.7 to 0.9) counts only if its box is at least a quarter as high as the
    picture's short side: then it is more likely the only face of a degraded portrait than an ear or
    a pattern. On 40 old photographs, 102 portraits and 25 pictures without faces this kept every
    face and dropped every false one. A threshold given by the caller replaces both scores, for
    faces of all sizes.
    Source: `cascade`.
    """

    name = "mtcnn"

    def __init__(self, threshold: float | None = None) -> None:
        from cfrestore.cascade import Cascade

        doubtful, sure = (0.7, 0.9) if threshold is None else (threshold, threshold)
        self._cascade = Cascade()
        self._doubtful, self._sure = doubtful, sure

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[Face, ...]:
        from cfrestore.device import inference

        scale, resized = _resize(pixels, short_side=1024, enlarge=False)
        margin = 32  # px, so that faces at the border are not cut
        padded = np.pad(resized, ((margin, margin), (margin, margin), (0, 0)), constant_values=127)
        with inference(alone=False):
            boxes, scores, landmarks = self._cascade(padded, least=20, threshold=self._doubtful)
        heights = boxes[:, 3] - boxes[:, 1]
        accepted = (scores >= self._sure) | (heights >= min(resized.shape[:2]) / 4)
        boxes, landmarks = (boxes - margin) / scale, (landmarks - margin) / scale
        return _to_faces(boxes[accepted], scores[accepted], landmarks[accepted])


def make_priors(height: int, width: int) -> Floats:
    """RetinaFace's anchors for an input of that size.

    Returns:
        (N, 4) float32, centre x and y, width and height, as fractions of the input's size; ordered
        by stride, then row, then column, then size.
    """
    levels = []
    for stride, sides in PRIOR_SIZES.items():
        rows, columns = -(-height // stride), -(-width // stride)
        y, x, side = np.meshgrid(
            (np.arange(rows) + 0.5) * stride,
            (np.arange(columns) + 0.5) * stride,
            np.array(sides, np.float64),
            indexing="ij",
        )
        level = np.stack([x / width, y / height, side / width, side / height], axis=-1)
        levels.append(level.reshape(-1, 4))
    return np.concatenate(levels).astype(np.float32)


def decode(priors: Floats, offsets: Floats, landmark_offsets: Floats) -> tuple[Floats, Floats]:
    """Boxes and landmarks from the network's offsets to its anchors.

    Args:
        priors: (N, 4), as make_priors returns them.
        offsets: (N, 4), centre and logarithm of the size.
        landmark_offsets: (N, 10), x then y of five points.
    Returns:
        Boxes (N, 4) x0 y0 x1 y1 and landmarks (N, 5, 2), float32, as fractions of the input's size.
    """
    centres, sizes = priors[:, :2], priors[:, 2:]
    middle = centres + CENTRE_VARIANCE * offsets[:, :2] * sizes
    # The bound prevents overflow on values that no trained network produces.
    half = sizes * np.exp(np.minimum(SIZE_VARIANCE * offsets[:, 2:], 10)) / 2
    landmarks = (
        centres[:, None] + CENTRE_VARIANCE * landmark_offsets.reshape(-1, 5, 2) * sizes[:, None]
    )
    return np.concatenate([middle - half, middle + half], axis=1), landmarks


def _resize(
    pixels: NDArray[np.uint8], *, short_side: int, enlarge: bool
) -> tuple[float, NDArray[np.uint8]]:
    """Resizes the picture to a short side, or smaller if its long side would exceed LONG_SIDE.

    Returns:
        the scale factor, and the picture, whose sides are rounded down, as published.
    """
    height, width = pixels.shape[:2]
    scale = min(short_side / min(height, width), LONG_SIDE / max(height, width))
    if scale == 1 or (scale > 1 and not enlarge):
        return 1.0, pixels
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    resized = cv2.resize(
        pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    return scale, resized


def _to_faces(boxes: Floats, scores: Floats, landmarks: Floats) -> tuple[Face, ...]:
    """Faces in descending order of score, without those too small to restore."""
    eye_distances = np.linalg.norm(landmarks[:, 0] - landmarks[:, 1], axis=1)
    order = np.argsort(-scores, kind="stable")
    return tuple(
        Face(boxes[i].astype(np.float32), float(scores[i]), landmarks[i].astype(np.float32))
        for i in order
        if eye_distances[i] >= MIN_EYE_DISTANCE
    )


def _load_retinaface(path: str | Path, device: torch.device) -> tuple[str, Any]:
    """Name and network of a RetinaFace weight file, its backbone deduced from the keys."""
    try:
        from facexlib.detection.retinaface import RetinaFace
    except RuntimeError as error:  # torchvision's, if built for another version of torch
        raise ImportError(str(error), name="facexlib") from error

    from cfrestore.checkpoint import load_strictly, read_checkpoint, unfilled

    state = {key.removeprefix("module."): value for key, value in read_checkpoint(path)[0].items()}
    if "body.layer1.0.conv1.weight" in state:
        name, backbone = "retinaface-resnet50", "resnet50"
    elif "body.stage1.0.0.weight" in state:
        name, backbone = "retinaface-mobilenet0.25", "mobile0.25"
    else:
        raise CheckpointError(
            f"{path} holds no RetinaFace; it begins with {', '.join(list(state)[:5])}"
        )
    with warnings.catch_warnings(), unfilled():
        warnings.simplefilter("ignore", UserWarning)  # facexlib calls torchvision the old way
        network = RetinaFace(network_name=backbone, device="meta")
    load_strictly(network, state, path, name)
    return name, network.to(device).eval()
