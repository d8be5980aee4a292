"""Options shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfrestore.options import SMALLEST_TILE

FILES, MANY, FACES, NETWORKS, TALK = "Files", "Many pictures", "Faces", "Networks", "Messages"
"""Headings of the help."""

Fidelity = Annotated[
    float,
    typer.Option(
        "--w",
        "-w",
        min=0.0,
        max=1.0,
        help="Fidelity: 0 is cleanest, 1 is closest to the input.",
    ),
]
Upscale = Annotated[
    int,
    typer.Option(
        "--upscale",
        "-s",
        metavar="1|2|4",
        help="How many times larger than the input the result is.",
    ),
]
BgUpsampler = Annotated[
    str,
    typer.Option(
        metavar="NAME|PATH",
        help="What enlarges the picture around the faces, or at --upscale 1 cleans it: realesrgan, "
        "realesr-general (faster), both downloaded, compact (fastest; comes with cfrestore), or a "
        "file of such a network; none interpolates.",
    ),
]
FaceUpsample = Annotated[
    bool,
    typer.Option(
        "--face-upsample",
        help="Enlarge restored faces by the same network, or by realesrgan, where the result shows "
        "them larger than they were painted.",
    ),
]
BgTile = Annotated[
    int,
    typer.Option(
        min=SMALLEST_TILE,
        metavar="PX",
        help="Side of the tiles that are enlarged at once; smaller ones need less memory.",
    ),
]
WeightsDir = Annotated[
    Path | None,
    typer.Option(
        file_okay=False,
        envvar=["CFRESTORE_WEIGHTS_DIR", "CFRESTORE_HOME"],
        show_envvar=False,
        rich_help_panel=NETWORKS,
        help="Folder that is searched for weights first and to which they are downloaded, instead "
        "of $CFRESTORE_HOME.",
    ),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        envvar="CFRESTORE_OFFLINE",
        show_envvar=False,
        rich_help_panel=NETWORKS,
        help="Download nothing; CFRESTORE_OFFLINE=1 sets this for every command.",
    ),
]
Parser = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        rich_help_panel=FACES,
        help="ParseNet file; with it only the face itself is pasted. By default the published one "
        "if it is on this machine.",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        metavar="NAME|PATH",
        rich_help_panel=NETWORKS,
        help="Weights: auto, published, compact or a file; auto downloads the published ones "
        "once, or uses the compact ones that come with cfrestore if it cannot.",
    ),
]
TaskModel = Annotated[
    str,
    typer.Option(
        metavar="NAME|PATH",
        rich_help_panel=NETWORKS,
        help="Weights: auto or published, which are downloaded once, or a file. There are no "
        "compact ones for this.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=NETWORKS,
        help="Device that computes: auto, cpu, cuda or mps.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
