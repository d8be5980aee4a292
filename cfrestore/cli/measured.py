"""The arguments of an evaluation, and its output: a record, a table, a sheet of faces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfrestore import __version__
from cfrestore.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from cfrestore.evaluate import Evaluation, PairedFaces
    from cfrestore.pipeline import Pipeline

FIDELITIES = "0,0.5,1"

TABLE_WIDTH = 200
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python", "pillow")
"""Packages whose versions are recorded in addition to those of the metrics' packages."""


@dataclass(frozen=True)
class EvalArguments:
    """The arguments that affect the figures."""

    restored: Path | None
    reference: Path | None
    data: Path | None
    model: str | None
    degrade: str | None
    seed: int
    w: str | None
    match: bool | None
    nearest: bool
    autoencoder: bool
    protocol: str | None

    @property
    def fidelities(self) -> tuple[float, ...]:
        """The values of w, in order, without duplicates; raises ConfigError if one is invalid."""
        from cfrestore.options import Options

        try:
            values = tuple(float(text) for text in (self.w or FIDELITIES).split(","))
        except ValueError as error:
            raise ConfigError(f"--w takes numbers with commas, found {self.w!r}") from error
        return tuple(dict.fromkeys(Options(fidelity=value).fidelity for value in values))

    @property
    def degradations(self) -> tuple[str, ...]:
        """The names of presets, in order, without duplicates."""
        return () if self.degrade is None else tuple(dict.fromkeys(self.degrade.split(",")))


def protocol_of(
    args: EvalArguments,
    faces: PairedFaces,
    evaluation: Evaluation,
    device: str,
    pipeline: Pipeline | None,
) -> dict[str, Any]:
    """How the faces were measured, as plain values that do not vary between runs."""
    from cfrestore.evaluate import METRICS, PROTOCOLS, find_preset

    used = dict.fromkeys([*PACKAGES, *(p for metric in METRICS for p in metric.packages)])
    network = None
    if pipeline is not None:
        config = pipeline.network.config
        network = {
            "name": pipeline.model_name,
            "sha256": pipeline.identity["model"],
            "image_size": config.image_size,
            "match_statistics": pipeline.matches,
            "keep_colours": config.keep_colours,
            "back_projection": config.back_projection,
            "precision": pipeline.painted_in,
        }
    preset = PROTOCOLS[args.protocol] if args.protocol else None
    return {
        "name": args.protocol,
        "published": None if preset is None else asdict(preset),
        "restored": _text(args.restored),
        "data": _text(args.data),
        "reference": _text(args.reference),
        "faces": len(faces.pairs) - len(evaluation.failed),
        "side": None if pipeline is None else pipeline.crop_size,
        "model": network,
        "w": list(args.fidelities) if pipeline is not None else None,
        "seed": args.seed if args.degradations else None,
        "degradations": {name: asdict(find_preset(name)) for name in args.degradations},
        "device": device,
        "versions": {"cfrestore": __version__, **dict(_versions(used))},
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _versions(packages: Mapping[str, object]) -> Iterator[tuple[str, str | None]]:
    for package in packages:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, None


def show(record: Mapping[str, Any], console: Console) -> None:
    """Prints a table of the totals, in Markdown, and the reasons for missing figures."""
    from rich import box
    from rich.table import Table

    from cfrestore.evaluate import METRICS

    facts = record["metrics"]
    shown = [metric for metric in METRICS if facts[metric.name]["computed"]]
    table = Table(box=box.MARKDOWN)
    for heading in ("", *(metric.heading for metric in shown)):
        table.add_column(heading, no_wrap=True)
    for row in record["rows"]:
        values = [row["totals"][metric.name] for metric in shown]
        table.add_row(
            _title(row),
            *(
                "" if value is None else f"{value:.{metric.digits}f}"
                for metric, value in zip(shown, values, strict=True)
            ),
        )
    protocol = record["protocol"]
    side = f" of {protocol['side']} px" if protocol["side"] else ""
    seed = "" if protocol["seed"] is None else f", seed {protocol['seed']}"
    console.print(f"{protocol['faces']} faces{side}{seed}, {protocol['device']}")
    console.width = TABLE_WIDTH  # no line is wrapped
    console.print(table)
    for metric in METRICS:
        for row in record["rows"]:
            if means := row["beside_input"].get(metric.name):
                console.print(
                    f"{metric.heading}, {_title(row)}: {means['value']:.{metric.digits}f} for the "
                    f"input's {means['input']:.{metric.digits}f} on the {means['faces']} faces "
                    "that have both"
                )
    for metric in METRICS:
        if not facts[metric.name]["computed"]:
            console.print(f"{metric.heading} not computed: {facts[metric.name]['reason']}")


def _title(row: Mapping[str, Any]) -> str:
    return f"{row['degradation']}: {row['name']}" if row["degradation"] else str(row["name"])


def write_faces(file: Path, faces: Sequence[Sequence[NDArray[np.uint8]]]) -> None:
    """Writes a row per face, its versions in columns, all resized to the first's size.

    Args:
        file: its extension is the format; PNG if it has none.
    Raises:
        OutputError: it cannot be written.
    """
    import numpy as np

    from cfrestore.image import Photo, resize, write_photo
    from cfrestore.show import sheet

    side = len(faces[0][0])
    pictures = np.stack([resize(picture, side, side) for row in faces for picture in row])
    write_photo(Photo(sheet(pictures, len(faces[0]))), file)
