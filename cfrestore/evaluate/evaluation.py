"""Measures sets of faces; the result has rows of figures and the failures, also as plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfrestore.correction import keep_colours
from cfrestore.device import inference
from cfrestore.errors import ConfigError, ImageError
from cfrestore.evaluate.damage import damage
from cfrestore.evaluate.figures import Face
from cfrestore.evaluate.frechet import Statistics, frechet_distance
from cfrestore.evaluate.judge import METRICS, NO_FACE, UNMET, Judge, Value
from cfrestore.evaluate.pairs import read_face
from cfrestore.image import Photo, from_tensor, to_tensor, to_uint8
from cfrestore.models.codeformer import CodeFormer, adaptive_instance_norm
from cfrestore.options import Options

if TYPE_CHECKING:
    from cfrestore.pipeline import Pipeline

SCHEMA = 1
"""Incremented when a field of the result changes its meaning or is removed."""

DIGITS = 6
"""Decimal places of figures in the result."""


@dataclass(frozen=True)
class Kind:
    """A way to get pictures from a set of faces; a row of the table.

    Attributes:
        name: for display.
        degradation: the preset that damaged the faces first; None: they were not damaged here.
        fidelity: w, if the faces were restored here.
    """

    name: str
    degradation: str | None = None
    fidelity: float | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """A face to measure.

    Attributes:
        clean: the face to compare with, if any.
        images: the pictures to measure.
    """

    clean: Face | None
    images: Mapping[Kind, Face]


@dataclass(eq=False)
class Row:
    """The figures of one kind.

    Attributes:
        files: the figures of each face, in order, by the names of METRICS, and `identical`: whether
            it equals the clean one.
        features: of each face, for the Frechet distance.
        distance: the Frechet distance; None until computed.
    """

    kind: Kind
    files: list[dict[str, Any]] = field(default_factory=list)
    features: list[NDArray[np.float32]] = field(default_factory=list)
    distance: float | None = None

    @property
    def totals(self) -> dict[str, float | None]:
        """The mean of each figure over the faces that have it; for booleans, the share of true."""
        return {name: float(np.mean(v)) if v else None for name, v in self.values.items()} | {
            "fid": self.distance
        }

    @property
    def counts(self) -> dict[str, int]:
        """Number of faces in each total."""
        counts = {name: len(values) for name, values in self.values.items()}
        return counts | {"fid": len(self.features) if self.distance is not None else 0}

    @property
    def values(self) -> dict[str, list[float]]:
        """The figures of the faces that have them."""
        return {
            metric.name: [f[metric.name] for f in self.files if f[metric.name] is not None]
            for metric in METRICS
            if metric.wants != "set"
        }


@dataclass(eq=False)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        rows: by kind, in order of appearance.
        failed: why faces could not be measured, by name.
    """

    rows: dict[Kind, Row] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def beside_input(self, row: Row) -> dict[str, dict[str, float]]:
        """Compares a row with its damaged input, over the faces that have a figure in both.

        Only for metrics whose figure some faces have in just one of the two, such as landmarks that
        are found only after restoration: the totals are of different faces, and so not comparable.

        Returns:
            by metric: the mean of the row, the mean of the input, and the number of faces.
        """
        damaged = self.rows.get(Kind("input", row.kind.degradation))
        if damaged is None:
            return {}
        compared = {}
        for name in damaged.values:
            pairs = [
                (after[name], before[name])
                for after, before in zip(row.files, damaged.files, strict=True)
            ]
            both = [pair for pair in pairs if None not in pair]
            if both and any((after is None) != (before is None) for after, before in pairs):
                value, before = np.mean(both, 0).tolist()
                compared[name] = {"value": value, "input": before, "faces": len(both)}
        return compared


def evaluate(
    names: Iterable[str],
    make: Callable[[str], Sample],
    judge: Judge,
    after: Callable[[str, Sample], None] = lambda name, sample: None,
) -> Evaluation:
    """Measures faces one by one; failures are recorded, and do not affect the other faces.

    Args:
        names: of the faces.
        make: makes the sample of a name; fails with ImageError or MemoryError.
        judge: computes the figures.
        after: called with each face that was measured.
    """
    result = Evaluation()
    for name in names:
        try:
            sample = make(name)
            measured = _measure(sample, judge)
        except ImageError as error:
            result.failed[name] = str(error)
            continue
        except MemoryError:
            result.failed[name] = f"{name} was not measured: not enough memory"
            continue
        for kind, (figures, features) in measured.items():
            row = result.rows.setdefault(kind, Row(kind))
            row.files.append({"file": name, **figures})
            row.features += features
        after(name, sample)
    if judge.statistics is not None:
        for row in result.rows.values():
            if len(row.features) > 1:
                row.distance = frechet_distance(Statistics.of(row.features), judge.statistics)
    return result


def _measure(
    sample: Sample, judge: Judge
) -> dict[Kind, tuple[dict[str, Value], list[NDArray[np.float32]]]]:
    """The figures of each picture of a face, and its features if Frechet distances are wanted."""
    clean = None if sample.clean is None else judge.look(sample.clean)
    measured = {}
    for kind, image in sample.images.items():
        same = None if sample.clean is None else bool(np.array_equal(image, sample.clean))
        features = [] if judge.inception is None else [judge.inception(image)]
        measured[kind] = {"identical": same, **judge.measure(image, clean)}, features
    return measured


def read_pair(restored: Path, clean: Path | None) -> Sample:
    """Reads a face that was restored elsewhere, and its clean one, if any.

    Raises:
        ImageError: one cannot be read, or their sizes differ.
    """
    face = read_face(restored)
    if clean is None:
        return Sample(None, {Kind("restored"): face})
    reference = read_face(clean)
    if face.shape != reference.shape:
        raise ImageError(
            f"{restored} has a side of {len(face)} px and {clean} of {len(reference)}; only faces "
            "of one size are compared"
        )
    return Sample(reference, {Kind("restored"): face})


@dataclass(frozen=True, eq=False)
class Restorer:
    """Damages faces, and restores them as `cfrestore --aligned` does.

    Attributes:
        pipeline: restores the faces.
        fidelities: each w.
        degradations: each preset; if empty, the faces are restored as they are.
        seed: of the degradations.
        nearest: whether faces are also painted, at w = 0, from the codes nearest to their latents
            instead of the predicted ones.
        autoencoder: whether the clean face is also painted, at w = 0, from its nearest codes,
            without correction of colours.
    """

    pipeline: Pipeline
    fidelities: Sequence[float]
    degradations: Sequence[str] = ()
    seed: int = 0
    nearest: bool = False
    autoencoder: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.pipeline.network, CodeFormer) and (self.nearest or self.autoencoder):
            raise ConfigError("nearest codes are to be had of torch's networks only")

    def __call__(self, path: Path, clean: Path | None, name: str) -> Sample:
        """Makes all pictures to measure of a face, at the network's size.

        Args:
            path: the face that is damaged, or restored as it is.
            clean: the face to compare with, if any, where nothing is damaged here.
            name: of the file; decides its damage.
        Raises:
            ImageError: a file cannot be read, or restoring the face failed.
        """
        side = self.pipeline.crop_size
        face = read_face(path, side)
        images: dict[Kind, Face] = {}
        if self.degradations:
            reference: Face | None = face
            for preset in self.degradations:
                images |= self._restored(damage(face, preset, self.seed, name), preset, path)
        else:
            reference = None if clean is None else read_face(clean, side)
            images |= self._restored(face, None, path)
        if self.autoencoder:
            if reference is None:
                raise ConfigError("--autoencoder needs clean faces")
            images[Kind("autoencoder")] = self._of_nearest_codes(reference, matched=False)
        return Sample(reference, images)

    def _restored(self, face: Face, preset: str | None, path: Path) -> dict[Kind, Face]:
        images = {Kind("input", preset): face}
        for w in self.fidelities:
            result = self.pipeline(Photo(face), Options(fidelity=w, aligned=True))
            for failed in result.failed:
                raise ImageError(f"{path} was not restored at w = {w:g}: {failed.reason}")
            images[Kind(f"w = {w:g}", preset, w)] = to_uint8(result.photo.pixels)
        if self.nearest:
            painted = self._of_nearest_codes(face, matched=self.pipeline.matches)
            keeps = self.pipeline.network.config.keep_colours
            nearest = keep_colours(painted, face) if keeps else painted
            images[Kind("nearest codes", preset, 0.0)] = nearest
        return images

    def _of_nearest_codes(self, face: Face, *, matched: bool) -> Face:
        network = self.pipeline.network
        assert isinstance(network, CodeFormer)
        with inference():
            latent, skips = network.encode(to_tensor(face[None]).to(self.pipeline.device))
            quantized = network.quantize(latent).values
            if matched:
                quantized = adaptive_instance_norm(quantized, latent)
            return from_tensor(network.decode(quantized, skips, 0))[0]


def as_record(
    evaluation: Evaluation, protocol: Mapping[str, Any], metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """Converts an evaluation to JSON values, without NaN and infinities; see docs/evaluation.md.

    Args:
        protocol: how the faces were measured, as JSON values.
        metrics: from `Judge.facts`; those without a value for any face become not computed.
    """
    rows = list(evaluation.rows.values())
    facts = {name: dict(fact) for name, fact in metrics.items()}
    for name, fact in facts.items():
        if fact["computed"] and not any(row.counts[name] for row in rows):
            reason = UNMET.get(name, "no face allowed it") if rows else NO_FACE
            fact |= {"computed": False, "reason": reason}
    return {
        "schema": SCHEMA,
        "protocol": dict(protocol),
        "metrics": facts,
        "rows": [
            {
                "name": row.kind.name,
                "degradation": row.kind.degradation,
                "w": row.kind.fidelity,
                "totals": {name: _rounded(value) for name, value in row.totals.items()},
                "counts": row.counts,
                "beside_input": {
                    name: {key: _rounded(value) for key, value in means.items()}
                    for name, means in evaluation.beside_input(row).items()
                },
                "files": [
                    {name: _rounded(value) for name, value in file.items()} for file in row.files
                ],
            }
            for row in rows
        ],
        "failed": [{"file": name, "error": error} for name, error in evaluation.failed.items()],
    }


def _rounded(value: Any) -> Any:
    return round(value, DIGITS) if isinstance(value, float) else value
