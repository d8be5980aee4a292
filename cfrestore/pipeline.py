"""From photograph to photograph: detect, align, restore, parse, paste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np
import torch

from cfrestore.align import FFHQ_TEMPLATE, PUBLISHED_SIZE, AlignedFace, align_face
from cfrestore.detect import Detector, Face, load_detector
from cfrestore.device import choose_device
from cfrestore.errors import DegenerateFaceError
from cfrestore.image import is_gray, to_uint8
from cfrestore.options import Options
from cfrestore.parse import FaceParser
from cfrestore.paste import paste_faces
from cfrestore.restore import FailedFace, RestoredFace, restore_faces
from cfrestore.weights import load_codeformer, locate, missing, search_folders, shipped, weight_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cfrestore.image import Photo, Pixels
    from cfrestore.models.codeformer import CodeFormer

CPU = torch.device("cpu")

Depth = TypeVar("Depth", bound=np.uint8 | np.uint16)


@dataclass(frozen=True, eq=False)
class Restoration:
    """What became of one photograph.

    Attributes:
        photo: the result, with the input's metadata, alpha and bit depth.
        faces: one value per detected face, in the detector's order; empty if there was none.
    """

    photo: Photo
    faces: tuple[RestoredFace | FailedFace, ...]

    @property
    def restored(self) -> tuple[RestoredFace, ...]:
        """The faces that are new in the result."""
        return tuple(face for face in self.faces if isinstance(face, RestoredFace))

    @property
    def failed(self) -> tuple[FailedFace, ...]:
        """The faces that were left as they are."""
        return tuple(face for face in self.faces if isinstance(face, FailedFace))


@dataclass(frozen=True, eq=False)
class Pipeline:
    """Restores the faces of photographs; `load_pipeline` makes one.

    Attributes:
        network: a CodeFormer in evaluation mode, on the device.
        detector: finds the faces.
        parser: limits what is pasted to the face proper; None: all of a soft square is pasted.
        device: where the network runs.
        model_name: what to call the network when speaking to people.
        notes: sentences the user should read about the choice of weights.
    """

    network: CodeFormer
    detector: Detector
    parser: FaceParser | None = None
    device: torch.device = CPU
    model_name: str = "custom"
    notes: tuple[str, ...] = ()

    @property
    def crop_size(self) -> int:
        """S, side of the crops in pixels."""
        return self.network.config.image_size

    def __call__(self, photo: Photo, options: Options = Options()) -> Restoration:  # noqa: B008
        """Restores every face of a photograph.

        The network and the detector see 8 bits; pasting keeps 16. The size is exactly
        `options.upscale` times the input's. With `options.aligned` the picture is stretched to
        S x S, S being the network's side, and the result is the restored face, S x S.
        """
        if options.aligned:
            return self._restore_aligned(photo, options)
        pixels = to_uint8(photo.pixels)
        gray = photo.gray or is_gray(pixels)
        faces = self._restore(_align(pixels, self.detector(pixels), self.crop_size), gray, options)
        restored = [face for face in faces if isinstance(face, RestoredFace)]
        result = paste_faces(
            photo.pixels, restored, scale=options.upscale, masks=self._masks(restored)
        )
        if gray:
            result = _keep_neutral(result, photo.pixels)
        return Restoration(_with_pixels(photo, result), faces)

    def _restore(
        self, aligned: Sequence[AlignedFace | FailedFace], gray: bool, options: Options
    ) -> tuple[RestoredFace | FailedFace, ...]:
        """The outcomes in the same order; what has failed already stays so."""
        outcomes = iter(
            restore_faces(
                self.network,
                [face for face in aligned if isinstance(face, AlignedFace)],
                fidelity=options.fidelity,
                batch_size=options.batch_size,
                gray=gray,
                device=self.device,
            )
        )
        return tuple(f if isinstance(f, FailedFace) else next(outcomes) for f in aligned)

    def _masks(self, faces: Sequence[RestoredFace]) -> list[NDArray[np.float32]] | None:
        if self.parser is None or not faces:
            return None
        return list(self.parser(np.stack([face.crop for face in faces])))

    def _restore_aligned(self, photo: Photo, options: Options) -> Restoration:
        pixels = to_uint8(photo.pixels)
        aligned = _stretch(pixels, self.crop_size)
        gray = photo.gray or is_gray(pixels)
        (face,) = self._restore([aligned], gray, options)
        result: Pixels = face.crop if isinstance(face, RestoredFace) else aligned.crop
        if gray:
            result = _keep_neutral(result, pixels)
        if photo.pixels.dtype == np.uint16:
            result = result.astype(np.uint16) * 257
        return Restoration(_with_pixels(photo, result), (face,))


def load_pipeline(
    model: str | Path = "auto",
    detector: str = "auto",
    device: str = "auto",
    parser: Path | None = None,
) -> Pipeline:
    """A pipeline ready to be called.

    Args:
        model: auto (published weights if they are on this machine, else those shipped here),
            published, compact (those shipped here), or the path of a weight file.
        detector: see `load_detector`.
        device: see `choose_device`.
        parser: a ParseNet file; None: the published one if it is on this machine.
    Raises:
        WeightsError: a weight file is not there, or differs from the published one.
        CheckpointError: a weight file holds something else.
        ConfigError: a name is unknown or the device is absent.
    """
    place = choose_device(device)
    path, name, notes = _choose_model(str(model))
    network = load_codeformer(path, place)
    parsing = parser or locate("parsenet")
    return Pipeline(
        network,
        load_detector(detector, place),
        parser=FaceParser(parsing, place) if parsing else None,
        device=place,
        model_name=f"{name} ({network.config.image_size} px)",
        notes=notes,
    )


def _choose_model(model: str) -> tuple[Path, str, tuple[str, ...]]:
    """Path of the weights, their name, and what there is to say about the choice."""
    if model == "compact":
        return shipped(), "compact", ()
    if model not in ("auto", "published"):
        return Path(model), Path(model).name, ()
    row = weight_file("codeformer")
    if path := locate(row.name):
        return path, "published", (f"{path} comes under the {row.licence}.",)
    if model == "published":
        raise missing(row.name)
    folders = ", ".join(map(str, search_folders()))
    note = (
        f"The published weights ({row.file}) are not in {folders}, so the compact ones that come "
        "with cfrestore are used; their faces have less detail."
    )
    return shipped(), "compact", (note,)


def _align(
    pixels: NDArray[np.uint8], faces: Sequence[Face], size: int
) -> list[AlignedFace | FailedFace]:
    aligned: list[AlignedFace | FailedFace] = []
    for face in faces:
        try:
            aligned.append(align_face(pixels, face, size))
        except DegenerateFaceError as error:
            aligned.append(FailedFace(face, str(error)))
    return aligned


def _stretch(pixels: NDArray[np.uint8], size: int) -> AlignedFace:
    """The whole picture as one aligned face, its aspect ratio given up as published."""
    fy, fx = (size / side for side in pixels.shape[:2])
    to_crop = np.array([[fx, 0, (fx - 1) / 2], [0, fy, (fy - 1) / 2]])  # pixel areas coincide
    landmarks = (FFHQ_TEMPLATE * (size / PUBLISHED_SIZE) - to_crop[:, 2]) / (fx, fy)
    box = np.array([0, 0, *pixels.shape[1::-1]], np.float32)
    return AlignedFace(
        _resize(pixels, size, size), to_crop, Face(box, 1.0, landmarks.astype(np.float32))
    )


def _with_pixels(photo: Photo, pixels: Pixels) -> Photo:
    """The photograph with other pixels, its alpha brought to their size."""
    alpha = photo.alpha
    if alpha is not None:
        alpha = _resize(alpha, *pixels.shape[:2])
    return replace(photo, pixels=np.ascontiguousarray(pixels), alpha=alpha)


def _resize(image: NDArray[Depth], height: int, width: int) -> NDArray[Depth]:
    """(H, W) or (H, W, 3) to (height, width), averaging where both sides shrink."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=method)
    return np.asarray(resized, image.dtype)


def _keep_neutral(result: Pixels, original: Pixels) -> Pixels:
    """Makes the result's channels equal if the original's are.

    The crop's border colour is not quite neutral, so that its statistics can tint a face.
    """
    neutral = (original == original[..., :1]).all()
    return np.repeat(result[..., 1:2], 3, axis=2) if neutral else result
