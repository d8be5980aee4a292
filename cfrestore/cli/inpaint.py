"""cfrestore inpaint: pictures with holes in faces to pictures without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfrestore.cli import work
from cfrestore.options import Options, parse_faces

if TYPE_CHECKING:
    from cfrestore.image import Photo
    from cfrestore.pipeline import Pipeline, Restoration

DEFAULTS = Options()

app = typer.Typer(pretty_exceptions_enable=False)


@app.command(cls=work.PictureCommand)
def inpaint(
    inputs: work.Inputs,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Picture of the input's size, whose bright pixels are the holes: at least half "
            "as bright as its brightest; transparent ones are dark. By default the pure white "
            "pixels (255, 255, 255) of the input are.",
        ),
    ] = None,
    output: work.Output = None,
    suffix: work.Suffix = None,
    overwrite: work.Overwrite = False,
    save_crops: work.SaveCrops = False,
    save_restored: work.SaveRestored = False,
    compare: work.Compare = False,
    aligned: work.Aligned = DEFAULTS.aligned,
    faces: work.Faces = "all",
    min_face: work.MinFace = DEFAULTS.min_face,
    detector: work.Detector = "auto",
    det_threshold: work.DetThreshold = None,
    model: work.TaskModel = "auto",
    device: work.Device = "auto",
    precision: work.Precision = "auto",
    batch_size: work.BatchSize = DEFAULTS.batch_size,
    weights_dir: work.WeightsDir = None,
    offline: work.Offline = False,
    strict: work.Strict = False,
    quiet: work.Quiet = False,
) -> None:
    """Fills holes in faces; every other pixel stays as it is.

    photo.jpg becomes photo.inpainted.jpg, a folder becomes folder.inpainted; nothing is
    overwritten. Of a hole, what lies outside every face stays, and is reported.
    """
    options = Options(
        aligned=aligned, batch_size=batch_size, faces=parse_faces(faces), min_face=min_face
    )
    work.check_threshold(det_threshold, aligned)
    work.set_up(weights_dir, offline)
    from cfrestore.batch import plan
    from cfrestore.holes import mask_holes
    from cfrestore.image import read_photo

    kept = work.kept(save_crops, save_restored, compare)
    jobs = plan(inputs, output, overwrite=overwrite, mark=".inpainted", suffix=suffix, kept=kept)
    holes = None if mask is None else mask_holes(read_photo(mask))

    def load() -> Pipeline:
        return work.load(
            "inpainting",
            model,
            detector=detector,
            threshold=det_threshold,
            parser=None,
            device=device,
            precision=precision,
            aligned=aligned,
        )

    def process(pipeline: Pipeline, photo: Photo) -> Restoration:
        return pipeline.inpaint(photo, holes, options)

    work.work(jobs, load, process, quiet=quiet, strict=strict, done="inpainted")
