"""cfrestore colorize: pictures with gray faces to pictures with coloured ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cfrestore.cli import work
from cfrestore.options import Options, parse_faces

if TYPE_CHECKING:
    from cfrestore.image import Photo
    from cfrestore.pipeline import Pipeline, Restoration

DEFAULTS = Options()

app = typer.Typer(pretty_exceptions_enable=False)


@app.command(cls=work.PictureCommand)
def colorize(
    inputs: work.Inputs,
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
    parser: work.Parser = None,
    model: work.TaskModel = "auto",
    device: work.Device = "auto",
    precision: work.Precision = "auto",
    batch_size: work.BatchSize = DEFAULTS.batch_size,
    weights_dir: work.WeightsDir = None,
    offline: work.Offline = False,
    strict: work.Strict = False,
    quiet: work.Quiet = False,
) -> None:
    """Gives faces colours; the rest of the picture stays as it is, gray or not.

    photo.jpg becomes photo.colorized.jpg, a folder becomes folder.colorized; nothing is
    overwritten. A face that has colours gets new ones.
    """
    options = Options(
        aligned=aligned, batch_size=batch_size, faces=parse_faces(faces), min_face=min_face
    )
    work.check_threshold(det_threshold, aligned)
    work.set_up(weights_dir, offline)
    from cfrestore.batch import plan

    kept = work.kept(save_crops, save_restored, compare)
    jobs = plan(inputs, output, overwrite=overwrite, mark=".colorized", suffix=suffix, kept=kept)

    def load() -> Pipeline:
        return work.load(
            "colorization",
            model,
            detector=detector,
            threshold=det_threshold,
            parser=parser,
            device=device,
            precision=precision,
            aligned=aligned,
        )

    def process(pipeline: Pipeline, photo: Photo) -> Restoration:
        return pipeline.colorize(photo, options)

    work.work(jobs, load, process, quiet=quiet, strict=strict, done="colorized")
