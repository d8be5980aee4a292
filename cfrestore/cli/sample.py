"""cfrestore sample: draws faces of no real person from a prior of `cfrestore train prior`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from cfrestore.cli.output import prepare_output
from cfrestore.cli.parameters import Device, Offline, Overwrite, WeightsDir
from cfrestore.cli.report import make_console
from cfrestore.cli.work import set_up
from cfrestore.errors import ConfigError

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def sample(
    prior: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="The prior, as written by `cfrestore train export`.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The sheet to write.")
    ],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many faces.")] = 16,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="Size of each face in pixels, at least the network's, which is the default.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Decides what is drawn.")] = 0,
    temperature: Annotated[
        float, typer.Option(help="Below 1, likely codes become likelier and faces more alike.")
    ] = 1.0,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, metavar="K", help="Draw only from the K likeliest codes."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH",
            help="Weights whose codes the prior was trained on: published, compact or a file.",
        ),
    ] = "compact",
    device: Device = "auto",
    overwrite: Overwrite = False,
    weights_dir: WeightsDir = None,
    offline: Offline = False,
) -> None:
    """Draws faces of nobody: codes from a prior, painted by a network at w = 0.

    The same seed gives the same sheet on the same machine.
    """
    sides = None if size is None else _sides(size)
    prepare_output(output, [prior], overwrite=overwrite)
    set_up(weights_dir, offline)
    from cfrestore.cli.supply import supply_weights
    from cfrestore.device import choose_device
    from cfrestore.image import Photo, writable_format, write_photo
    from cfrestore.sample import check_drawing, sample_faces
    from cfrestore.show import sheet
    from cfrestore.weights import load_codeformer, load_prior

    check_drawing(temperature, top_k)
    writable_format(output.suffix or "png", str(output))
    place, console = choose_device(device), make_console()
    path, name = supply_weights(model, console)
    network = load_codeformer(path, place)
    source = load_prior(prior, network.quantize.embedding.weight, place)
    faces = sample_faces(
        network, source, count, sides, seed=seed, temperature=temperature, top_k=top_k
    )
    for note in write_photo(Photo(sheet(faces)), output):
        console.print(f"note: {note}")
    console.print(
        f"{prior} with {name} -> {output}  ({count} face{'s' * (count > 1)} of "
        f"{faces.shape[2]}x{faces.shape[1]} px, seed {seed})"
    )


def _sides(text: str) -> tuple[int, int]:
    """Height and width from a size such as 256x512, which has the width first."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise ConfigError(f"size must be like 256x256, found {text!r}")
    return int(match[2]), int(match[1])
