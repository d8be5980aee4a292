"""Restores aligned crops; no other module runs the network on photographs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from cfrestore.confidence import confidence_by_region
from cfrestore.correction import correct
from cfrestore.detail import LARGE_FROM
from cfrestore.device import (
    ON_CPU,
    Execution,
    Precision,
    after_encoding,
    compiled,
    download,
    inference,
    reduced,
    upload,
)
from cfrestore.errors import ConfigError
from cfrestore.exposure import Exposure
from cfrestore.image import from_levels, to_levels
from cfrestore.models.codeformer import CodeFormer
from cfrestore.models.prior import draw

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from cfrestore.align import AlignedFace
    from cfrestore.detect import Face
    from cfrestore.models.codeformer import CodeFormerConfig, Features
    from cfrestore.network import Network

FLAWS = (
    None,
    "the network's output is one flat colour",
    "the network's output is not finite",
)
"""What can be wrong with a painted face, by the index that `_pack` appends to its pixels."""


@dataclass(frozen=True, eq=False)
class RestoredFace:
    """A face as the network painted it.

    Attributes:
        crop: (S, S, 3) uint8 RGB.
        aligned: the network's input.
        fidelity: the w that it was painted with.
        certainty: (s, s) float32, how sure the network was of each code, before any second look
            (`CodeFormer.reconsider`): 1 - the entropy of the code's distribution / the largest
            possible entropy; None if the runtime does not provide it.
        samples: further versions of the crop, (S, S, 3) uint8 each, with randomly drawn codes; see
            Options.samples.
        opacity: weight of the face where it is pasted, in [0, 1]; the rest is the picture's.
    """

    crop: NDArray[np.uint8]
    aligned: AlignedFace
    fidelity: float
    certainty: NDArray[np.float32] | None = None
    samples: tuple[NDArray[np.uint8], ...] = ()
    opacity: float = 1.0

    @property
    def confidence(self) -> Mapping[str, float | None] | None:
        """Mean certainty by region of the face, see `confidence_by_region`; None if unknown."""
        if self.certainty is None:
            return None
        to_crop, landmarks = self.aligned.to_crop, self.aligned.face.landmarks
        in_crop = landmarks @ to_crop[:, :2].T + to_crop[:, 2]
        return confidence_by_region(self.certainty, (in_crop + 0.5) / len(self.crop))

    @property
    def softened(self) -> bool:
        """Whether visible detail of the photograph was lost.

        That is so if the face is larger than LARGE_FROM times its crop, and none of its detail was
        kept.
        """
        return self.aligned.kept is None and self.aligned.shrink > LARGE_FROM


@dataclass(frozen=True, eq=False)
class FailedFace:
    """A face that could not be restored, and was left unchanged.

    Attributes:
        face: as the detector found it, in image pixels.
        reason: why, as half a sentence.
    """

    face: Face
    reason: str


class Painter:
    """Paints aligned faces with a network and fixed settings.

    Attributes:
        batch_size: faces in one forward pass; halved permanently if there is not enough memory.
    """

    def __init__(
        self,
        network: Network,
        *,
        fidelity: float,
        match_statistics: bool,
        batch_size: int = 4,
        execution: Execution = ON_CPU,
        samples: int = 0,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        """Stores the settings; computes nothing yet.

        Args:
            network: on the device, in evaluation mode; S is its image size.
            fidelity: w, see Options.
            match_statistics: see `CodeFormer.forward`.
            batch_size: faces in one forward pass.
            execution: how to compute; if the network is compiled, it is for this batch size, and
                smaller batches are padded.
            samples, temperature, seed: see Options.
        Raises:
            ConfigError: samples are requested of an exported network.
        """
        if samples and not isinstance(network, CodeFormer):
            raise ConfigError(
                "only the backend torch can draw samples: an exported network does not say how "
                "likely codes are"
            )
        self._samples, self._temperature, self._seed = samples, temperature, seed
        self.batch_size = batch_size
        self._network = network
        self._fidelity = fidelity
        self._match_statistics = match_statistics
        self._execution = execution
        self._encode, self._decode = network.encode, network.decode
        self._choose_features = network.choose_features
        if execution.compile:
            self._encode, self._decode = compiled(self._encode), compiled(self._decode)
            self._choose_features = compiled(self._choose_features)

    def __call__(self, aligned: Sequence[AlignedFace]) -> tuple[RestoredFace | FailedFace, ...]:
        """Paints each face independently of the others.

        A face that comes out broken at reduced precision is painted once more in float32.

        Args:
            aligned: crops (S, S, 3) uint8 RGB.
        Returns:
            one value per face, in the same order; FailedFace if the network's output is unusable.
        Raises:
            MemoryError: there is not enough memory even for a single face.
            ConfigError: the network cannot be compiled.
        """
        results: list[RestoredFace | FailedFace] = []
        while len(results) < len(aligned):
            batch = aligned[len(results) :][: self.batch_size]
            size = self.batch_size if self._execution.compile else len(batch)
            least = self._network.config.least_brightness
            exposures = [Exposure.of(face.crop, least) for face in batch]
            crops = [e.shown(face.crop) for e, face in zip(exposures, batch, strict=True)]
            try:
                painted = self._paint(crops + crops[-1:] * (size - len(batch)))
            except MemoryError:
                if size == 1:
                    raise
                self.batch_size = size // 2
                continue
            rows = painted[:, : len(batch)].swapaxes(0, 1)
            results += (
                _judge(values, face, exposure, self._fidelity)
                for values, face, exposure in zip(rows, batch, exposures, strict=True)
            )
        return tuple(results)

    def _paint(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Paints crops with the codes chosen, then with each sample's: (1 + samples, B, ...).

        The values per face are those of `_pack`, in main memory.
        """
        device = self._execution.device
        with inference():
            x = from_levels(upload(crops, device))  # (B, 3, S, S)
            encoded = self._encoded(x)
            with reduced(device, after_encoding(self._execution.code_precision)):
                features = self._choose_features(*encoded, self._match_statistics)
                certainty = None if features.logits is None else _certainty(features.logits)
                features = self._look_again(features, certainty)
            painted = [self._decoded(features, certainty)]
            if self._samples:
                for codes in self._draw(crops, features):  # (B, T)
                    quantized = self._requantized(codes, features)
                    drawn = features._replace(quantized=quantized)
                    painted.append(self._decoded(drawn, certainty))
        return np.stack(painted) if self._samples else painted[0][np.newaxis]

    def _encoded(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Encodes images (B, 3, S, S); those that overflow in fp16 are encoded again in float32.

        The batch's skips are then float32, so a compiled network is compiled for these once more.
        """
        precision = self._execution.code_precision
        with reduced(self._execution.device, precision):
            latent, skips = self._encode(x)
        latent = latent.float()
        if precision is not Precision.FP16:
            return latent, skips
        spoiled = ~latent.isfinite().flatten(1).all(1)  # (B,)
        if not spoiled.any():
            return latent, skips
        exact, exact_skips = self._network.encode(x[spoiled])
        latent[spoiled] = exact
        skips = {side: skip.float() for side, skip in skips.items()}
        for side, skip in skips.items():
            skip[spoiled] = exact_skips[side]
        return latent, skips

    def _look_again(self, features: Features, certainty: Tensor | None) -> Features:
        """The features, reconsidered for faces whose certainty is below `config.second_look`."""
        network = self._network
        least = network.config.second_look
        if certainty is None or not least or not isinstance(network, CodeFormer):
            return features
        unsure = certainty.mean(1) < least  # (B,)
        if not unsure.any():
            return features
        assert features.logits is not None
        assert features.latent is not None
        logits, quantized = features.logits.clone(), features.quantized.clone()
        logits[unsure] = network.reconsider(logits[unsure]).to(logits.dtype)
        codes = network.choose(logits[unsure])
        changed = network.quantized(codes, features.latent[unsure], self._match_statistics)
        quantized[unsure] = changed.to(quantized.dtype)
        return features._replace(quantized=quantized, logits=logits)

    def _decoded(self, features: Features, certainty: Tensor | None) -> NDArray[np.uint8]:
        """Paints faces; those that reduced precision spoils are painted again in float32.

        Returns:
            (B, ...), the values of `_pack`, in main memory.
        """
        quantized, skips = features.quantized, features.skips
        with reduced(self._execution.device, self._execution.precision):
            images = self._decode(quantized, skips, self._fidelity)
        painted = download(_pack(images, certainty))
        if self._execution.precision is Precision.FP32:
            return painted
        for index in painted[:, -1].nonzero()[0]:
            one = slice(index, index + 1)
            skips_of_one = {side: skip[one] for side, skip in skips.items()}
            image = self._network.decode(quantized[one], skips_of_one, self._fidelity)
            painted[one] = download(_pack(image, None if certainty is None else certainty[one]))
        return painted

    def _draw(self, crops: Sequence[NDArray[np.uint8]], features: Features) -> Tensor:
        """Draws codes (samples, B, T); a face's depend on the seed and its crop, not on others."""
        assert features.logits is not None
        drawn = []
        for crop, logits in zip(crops, features.logits, strict=True):
            digest = hashlib.sha256(f"{self._seed} ".encode() + crop.tobytes()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            repeated = logits.expand(self._samples, -1, -1)
            drawn.append(draw(repeated, generator, self._temperature))
        return torch.stack(drawn, 1).to(self._execution.device)

    def _requantized(self, codes: Tensor, features: Features) -> Tensor:
        assert isinstance(self._network, CodeFormer)
        assert features.latent is not None
        return self._network.quantized(codes, features.latent, self._match_statistics)


def corrected(face: RestoredFace, *, config: CodeFormerConfig, gray: bool) -> RestoredFace:
    """Prepares a painted face for pasting, see `correction.correct`."""
    crops = face.crop, face.aligned.crop
    return replace(face, crop=correct(*crops, fidelity=face.fidelity, config=config, gray=gray))


def restore_faces(
    network: Network,
    aligned: Sequence[AlignedFace],
    *,
    fidelity: float,
    batch_size: int = 4,
    gray: bool = False,
    execution: Execution = ON_CPU,
) -> tuple[RestoredFace | FailedFace, ...]:
    """Restores faces in batches; no result depends on the other faces.

    Args:
        gray: whether the picture is gray; then the results are too, see `correction.correct`.
        others: see `Painter`; the network's configuration decides whether latent AdaIN is used.
    """
    paint = Painter(
        network,
        fidelity=fidelity,
        match_statistics=network.config.match_statistics,
        batch_size=batch_size,
        execution=execution,
    )
    return tuple(
        corrected(face, config=network.config, gray=gray)
        if isinstance(face, RestoredFace)
        else face
        for face in paint(aligned)
    )


def _pack(images: Tensor, certainty: Tensor | None) -> Tensor:
    """Packs images (B, 3, S, S) and facts about them for one download from their device.

    Returns:
        (B, S * S * 3 + T + 1) uint8: for each image its pixels, the certainty of its T codes in
        units of 1/255 (no values if unknown), and the index in FLAWS of what is wrong with it.
    """
    pixels = to_levels(images).flatten(1, 2)  # (B, S * S, 3)
    flat = (pixels.amax(1) == pixels.amin(1)).all(1)  # (B,)
    finite = images.isfinite().flatten(1).all(1)
    flaws = flat.byte().masked_fill(~finite, 2)
    certainties = () if certainty is None else ((certainty * 255).round().byte(),)
    return torch.cat((pixels.flatten(1), *certainties, flaws[:, None]), 1)


def _certainty(logits: Tensor) -> Tensor:
    """1 - the entropy of each code's distribution (B, T, K) / log K: (B, T) in [0, 1]."""
    log_p = logits.float().log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1) / math.log(logits.shape[-1])
    return (1 - entropy).clamp(0, 1)


def _judge(
    values: NDArray[np.uint8], aligned: AlignedFace, exposure: Exposure, fidelity: float
) -> RestoredFace | FailedFace:
    """Converts a face's rows of `_pack` to a result that shares no memory with them.

    Args:
        values: the face with the codes chosen, then its samples. Any flaw makes a FailedFace.
    """
    if reason := FLAWS[values[:, -1].max()]:
        return FailedFace(aligned.face, reason)
    shape, size = aligned.crop.shape, aligned.crop.size
    crop, *samples = (exposure.undone(row[:size].reshape(shape)).copy() for row in values)
    levels = values[0, size:-1]
    side = math.isqrt(len(levels))
    certainty = np.asarray(levels.reshape(side, side) / 255, np.float32) if side else None
    return RestoredFace(crop, aligned, fidelity, certainty, tuple(samples))
