"""cfrestore export: writes weights as a file that ONNX Runtime and OpenVINO run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfrestore.cli.output import prepare_output
from cfrestore.cli.parameters import Model, Offline, Overwrite, WeightsDir
from cfrestore.cli.report import make_console
from cfrestore.cli.work import set_up
from cfrestore.errors import ConfigError

if TYPE_CHECKING:
    from cfrestore.parity import Row

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def export(
    target: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="What to write.")],
    model: Model = "auto",
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Paint in 8 bits: faster but less exact; refused below 35 dB.",
        ),
    ] = False,
    faces: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Pictures of aligned faces for --int8, which uses up to 64: half to calibrate, "
            "half to measure.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    weights_dir: WeightsDir = None,
    offline: Offline = False,
) -> None:
    """Exports a network to ONNX, for any batch size and w, and compares it with torch.

    The file is kept only if it gives the same codes, and the same values within a thousandth; a
    table shows the differences. Use it with --backend onnx or openvino.
    """
    if target.suffix != ".onnx":
        raise ConfigError(f"{target} should end in .onnx")
    if int8 != (faces is not None):
        raise ConfigError("--int8 and --faces go together: calibration needs real faces")
    prepare_output(target, [Path(model)], overwrite=overwrite)
    set_up(weights_dir, offline)
    from cfrestore import parity
    from cfrestore.backends import graph_of, installed
    from cfrestore.cli.supply import supply_weights
    from cfrestore.export import drafted, facts_of
    from cfrestore.weights import load_codeformer

    backend, console = installed(), make_console()
    path, name = supply_weights(model, console)
    network = load_codeformer(path)
    seen = None
    if faces is not None:  # before the export, which takes most of a minute
        from cfrestore import quantize

        seen = quantize.read_faces(faces, network.config.image_size)
    graph = graph_of(network, path)
    with drafted(graph, target) as draft:
        rows = []
        for row in parity.compare(network, draft, backend):
            console.print(_line(row, backend))
            rows.append(row)
        parity.check(tuple(rows), target)
        if seen is not None:
            graph, agreement = quantize.quantize(network, graph, seen, backend)
            quantize.check(agreement)
            console.print(
                f"int8: {agreement.psnr:.1f} dB against fp32 on {agreement.faces} faces that were "
                "held out, codes equal"
            )
            draft.write_bytes(graph.SerializeToString())
    licence = facts_of(graph).get("licence", "not on record")
    console.print(f"{name} -> {target}  ({facts_of(graph)['precision']}, licence: {licence})")


def _line(row: Row, backend: str) -> str:
    """A row of the table."""
    codes = "equal" if row.equal_codes else "not equal"
    return (
        f"{backend} against torch: w {row.w:g}, {row.batch} face{'s' * (row.batch > 1)}: "
        f"largest difference {row.difference:.1e}, codes {codes}"
    )
