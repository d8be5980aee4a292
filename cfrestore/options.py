"""Everything a caller can choose, each default written once. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Literal, TypeAlias

from cfrestore.errors import ConfigError

if TYPE_CHECKING:
    from cfrestore.image import Quality

MAX_FIDELITY = 1.3
"""Largest w the library accepts: the largest value the published training used."""

UPSCALES = (1, 2, 4)

TILE, SMALLEST_TILE = 400, 64
"""Side of an upsampler's tiles in pixels, as published, and the smallest one offered."""

Choice: TypeAlias = Literal["all", "center", "largest"]

BatchSize: TypeAlias = int | Literal["auto"]

MaxFace: TypeAlias = int | Literal["auto"] | None

CHOICES: tuple[Choice, ...] = ("all", "center", "largest")


@dataclass(frozen=True)
class Options:
    """How to restore one photograph.

    Attributes:
        fidelity: w of the controllable feature transformation; 0 trusts the codebook alone
            (clean, but identity may drift), 1 follows the input closely. In [0, 1.3].
        upscale: output size is exactly this many times the input's, 1, 2 or 4.
        aligned: the picture is one aligned face; nothing is detected or pasted.
        batch_size: faces restored in one forward pass, at least 1, or auto; halved if there is not
            enough memory. On the CPU it is always 1, see `device.faces_at_once`.
        faces: all; center, the one nearest to the middle of the picture; largest, the one whose box
            covers most of it; or indices from 0, in descending order of the detector's score.
        min_face: leaves out faces whose box has a shorter side below this, in picture pixels;
            center and largest choose among the others. Indices count all detected faces.
        max_face: leaves out faces whose box has a shorter side above this; None: no face is too
            large; auto: restoration leaves out faces that are larger than the network paints and
            sharper than it can paint, see `detail.measure_detail`; other tasks take it as None.
        draw_box: draws a green frame around what was pasted.
        samples: number of additional results, whose codes are drawn from the distribution that the
            network predicts; the main result has the codes that the network chooses.
        temperature: that of the distribution for samples; below 1 they are more alike.
        seed: determines, together with the crop of a face, what is drawn for it.

    Raises:
        ConfigError: a value is of another type or out of range, or two contradict each other.
    """

    fidelity: float = 0.5
    upscale: int = 1
    aligned: bool = False
    batch_size: BatchSize = "auto"
    faces: Choice | tuple[int, ...] = "all"
    min_face: int = 0
    max_face: MaxFace = "auto"
    draw_box: bool = False
    samples: int = 0
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_flags(aligned=self.aligned, draw_box=self.draw_box)
        if not (_is_finite(self.fidelity) and 0 <= self.fidelity <= MAX_FIDELITY):
            raise ConfigError(f"fidelity must lie in [0, {MAX_FIDELITY}], found {self.fidelity!r}")
        if not _is_count(self.upscale) or self.upscale not in UPSCALES:
            raise ConfigError(f"upscale must be 1, 2 or 4, found {self.upscale!r}")
        if self.aligned and self.upscale != 1:
            raise ConfigError("an aligned face always gets the network's size, without upscale")
        if not _is_word(self.batch_size, "auto") and not _is_count(self.batch_size, 1):
            raise ConfigError(
                f"batch_size must be auto or a whole number from 1, found {self.batch_size!r}"
            )
        if not _is_word(self.faces, *CHOICES) and not _are_indices(self.faces):
            raise ConfigError(
                "faces must be all, center, largest or a tuple of whole numbers from 0, "
                f"found {self.faces!r}"
            )
        if not _is_count(self.min_face):
            raise ConfigError(f"min_face must be a whole number from 0, found {self.min_face!r}")
        limited = self.max_face is not None and not _is_word(self.max_face, "auto")
        if limited and not _is_count(self.max_face, 1):
            raise ConfigError(
                f"max_face must be auto, None or a whole number from 1, found {self.max_face!r}"
            )
        if isinstance(self.max_face, int) and self.max_face < self.min_face:
            raise ConfigError(
                f"no face is at least {self.min_face} and at most {self.max_face} pixels large"
            )
        if not _is_count(self.samples):
            raise ConfigError(f"samples must be a whole number from 0, found {self.samples!r}")
        if not (_is_finite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"temperature must be above 0 and finite, found {self.temperature!r}")
        if not _is_count(self.seed):
            raise ConfigError(f"seed must be a whole number from 0, found {self.seed!r}")
        for name in ("fidelity", "temperature"):  # numpy's numbers are no JSON values
            object.__setattr__(self, name, float(getattr(self, name)))
        chosen = self.faces != "all" or self.min_face or self.max_face != "auto"
        if self.aligned and (chosen or self.draw_box):
            raise ConfigError(
                "an aligned face is not searched for, so there is no choice of faces and no box"
            )


@dataclass(frozen=True)
class Upsampling:
    """Which network enlarges what is not painted, see `upsample`.

    Attributes:
        background: name or file of the network that enlarges the picture around the faces; None:
            the picture is interpolated.
        faces: whether a network also enlarges painted faces that the result shows larger than they
            were painted. It is the background's or, if there is none, realesrgan.
        tile: side in pixels of the parts of a picture that are enlarged at once, at least 64.
    Raises:
        ConfigError: a value is of another type, the name is empty, or the side is too small.
    """

    background: str | Path | None = None
    faces: bool = False
    tile: int = TILE

    def __post_init__(self) -> None:
        check_flags(faces=self.faces)
        if not isinstance(self.background, (str, Path, NoneType)):
            found = repr(self.background)
            raise ConfigError(f"the up-sampler must be a name or a path, found {found}")
        if self.background == "":
            raise ConfigError("the up-sampler has an empty name, as an unset variable gives it")
        check_tile(self.tile)

    @property
    def network(self) -> str | Path | None:
        """Name or file of the network; None: none is needed."""
        return self.background or ("realesrgan" if self.faces else None)


def check_flags(**flags: object) -> None:
    """Raises ConfigError if a flag is not a bool; any non-empty text would count as true."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be True or False, found {value!r}")


def check_tile(tile: object) -> None:
    """Raises ConfigError if an upsampler's tiles cannot have that side."""
    if not _is_count(tile, SMALLEST_TILE):
        raise ConfigError(f"tile must be a whole number from {SMALLEST_TILE}, found {tile!r}")


def parse_batch_size(text: str) -> BatchSize:
    """The batch size that a text such as auto or 4 means.

    Raises:
        ConfigError: the text has no such meaning.
    """
    if text == "auto":
        return "auto"
    try:
        return _whole(text, 1)
    except ValueError:
        raise ConfigError(
            f"--batch-size must be auto or a whole number from 1, found {text!r}"
        ) from None


def parse_max_face(text: str) -> MaxFace:
    """The largest face that a text such as auto, none or 900 means.

    Raises:
        ConfigError: the text has no such meaning.
    """
    if text == "auto":
        return "auto"
    if text == "none":
        return None
    try:
        return _whole(text, 1)
    except ValueError:
        raise ConfigError(
            f"--max-face must be auto, none or a whole number from 1, found {text!r}"
        ) from None


def parse_upsampling(background: str, faces: bool, tile: int) -> Upsampling:
    """The Upsampling that the arguments mean.

    A background of none, in upper or lower case, is None, as published.

    Raises:
        ConfigError: as Upsampling.
    """
    return Upsampling(None if background.lower() == "none" else background, faces, tile)


def parse_faces(text: str) -> Choice | tuple[int, ...]:
    """The choice of faces that a text such as center or 0,2 means.

    Raises:
        ConfigError: the text has no such meaning.
    """
    for choice in CHOICES:
        if text == choice:
            return choice
    try:
        return tuple(_whole(index, 0) for index in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--faces must be all, center, largest or numbers such as 0,2, found {text!r}"
        ) from None


def parse_quality(text: str | None) -> Quality | None:
    """The quality that a text such as 90 or keep means; None stays None.

    Raises:
        ConfigError: the text has no such meaning.
    """
    if text is None:
        return None
    if text == "keep":
        return "keep"
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 100:
        return int(text)
    raise ConfigError(f"quality must be a number from 1 to 100, or keep, found {text!r}")


def _whole(text: str, least: int) -> int:
    """The whole number that a text means; raises ValueError if it is not one, or below `least`."""
    number = int(text)
    if number < least:
        raise ValueError
    return number


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_word(value: object, *words: str) -> bool:
    """Whether a value is one of the words; an array is not compared, since that gives no bool."""
    return isinstance(value, str) and value in words


def _is_count(value: object, least: int = 0) -> bool:
    """Whether a value is a whole number (not a bool) and at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _are_indices(faces: object) -> bool:
    return isinstance(faces, tuple) and len(faces) > 0 and all(map(_is_count, faces))
