"""Finds the faces to measure, and the clean face of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2

from cfrestore.batch import MARKS
from cfrestore.errors import ConfigError, ImageError
from cfrestore.evaluate.figures import LEAST_SIDE, Face
from cfrestore.files import is_file, is_folder
from cfrestore.image import pictures_in, read_photo, resize, to_uint8


@dataclass(frozen=True)
class PairedFaces:
    """Restored faces, each with the clean one of the same name, if clean ones are given.

    Attributes:
        pairs: restored and clean file by name, sorted by name.
        without_reference, without_restored: names only among the restored, or only among the clean.
    """

    pairs: Mapping[str, tuple[Path, Path | None]]
    without_reference: tuple[str, ...] = ()
    without_restored: tuple[str, ...] = ()


def find_faces(place: Path) -> dict[str, Path]:
    """Finds the pictures of a folder and its sub-folders, by name.

    Args:
        place: a folder, or one picture.
    Returns:
        files sorted by name: the path below the folder with `/`, without extension, and without
        marks such as `.restored`. Hidden files and folders are left out.
    Raises:
        ImageError: it does not exist, cannot be read, or has no pictures.
        ConfigError: two pictures have the same name.
    """
    if is_file(place):
        return {_name(Path(place.name)): place}
    if not is_folder(place):
        raise ImageError(f"{place} does not exist")
    faces: dict[str, Path] = {}
    for path in pictures_in(place):
        if (name := _name(path.relative_to(place))) in faces:
            raise ConfigError(f"{faces[name]} and {path} have the same name without extension")
        faces[name] = path
    if not faces:
        raise ImageError(f"{place} holds no pictures")
    return dict(sorted(faces.items()))


def _name(path: Path) -> str:
    stem = path.stem
    for mark in MARKS:
        stem = stem.removesuffix(mark)
    return path.with_name(stem).as_posix()


def match_faces(restored: Path, reference: Path) -> PairedFaces:
    """Matches restored and clean faces by name; two single files match whatever their names.

    Raises:
        ImageError, ConfigError: as `find_faces`; or they have no name in common.
    """
    ours, clean = find_faces(restored), find_faces(reference)
    if is_file(restored) and is_file(reference):
        clean = dict(zip(ours, clean.values(), strict=True))
    pairs = {name: (path, clean[name]) for name, path in ours.items() if name in clean}
    if not pairs:
        raise ConfigError(f"no picture in {restored} is called like one in {reference}")
    return PairedFaces(
        pairs,
        tuple(name for name in ours if name not in clean),
        tuple(name for name in clean if name not in ours),
    )


def read_face(path: Path, side: int | None = None) -> Face:
    """Reads an aligned face.

    Args:
        path: a picture of any depth; transparency is ignored.
        side: S, to which larger faces are averaged down and smaller ones interpolated; None: the
            face's own.
    Returns:
        (S,S,3) uint8 RGB.
    Raises:
        ImageError: it cannot be read, is not square, or is too small to be measured.
    """
    pixels = to_uint8(read_photo(path).pixels)
    height, width = pixels.shape[:2]
    if height != width:
        raise ImageError(f"{path} is {width}x{height}; an aligned face is square")
    if height < LEAST_SIDE:
        raise ImageError(f"{path} has a side of {height} px; {LEAST_SIDE} px are the least")
    side = side or height
    return resize(pixels, side, side, enlarge=cv2.INTER_CUBIC)
