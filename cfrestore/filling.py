"""Fills the holes of a photograph: chooses the faces to paint, and pastes them into the holes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from cfrestore.align import cut_crop
from cfrestore.correction import without_colours
from cfrestore.errors import ImageError
from cfrestore.holes import blank, enlarge_holes, fill, share_holes
from cfrestore.image import equal_channels, resize
from cfrestore.paste import paste_faces
from cfrestore.select import SkippedFace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from cfrestore.align import AlignedFace
    from cfrestore.holes import Holes
    from cfrestore.image import Photo, Pixels
    from cfrestore.restore import RestoredFace

NOTHING_TO_FILL = "with nothing to fill"


@dataclass(frozen=True, eq=False)
class Filling:
    """How the holes of one photograph are filled; the network sees white where they are.

    Attributes:
        photo: the photograph.
        holes: (H, W) bool, of the photograph's size; true where it is to be filled.
        crop_size: S, side of the crops in pixels.
        scale: size of the result divided by that of the photograph.
        aligned: whether the photograph is one aligned face; then the whole crop is the result.
    Raises:
        ImageError: the holes do not have the photograph's size.
    """

    photo: Photo
    holes: Holes
    crop_size: int
    scale: int = 1
    aligned: bool = False

    def __post_init__(self) -> None:
        shapes = self.holes.shape, self.photo.size
        if shapes[0] != shapes[1]:
            found, wanted = (f"{width}x{height}" for height, width in shapes)
            raise ImageError(f"the mask has {found} pixels and the photograph {wanted}")

    def choose(self, aligned: Sequence[AlignedFace]) -> list[AlignedFace | SkippedFace]:
        """The faces that fill a hole, with the holes in their crops white; others are skipped."""
        owners = set(np.unique(share_holes(self.holes, aligned)))
        return [
            replace(face, crop=blank(face.crop, self._gap_of(face)))
            if index in owners
            else SkippedFace(face.face, NOTHING_TO_FILL)
            for index, face in enumerate(aligned)
        ]

    def correct(self, face: RestoredFace) -> RestoredFace:
        """Prepares a painted face for pasting: in a gray photograph it becomes gray.

        If the photograph is one aligned face, the crop is the whole result, so it gets back its
        original pixels outside the holes. Otherwise `paste` leaves those pixels as they are.
        """
        crop = without_colours(face.crop) if self._gray else face.crop
        if self.aligned:
            crop = fill(crop, face.aligned.crop, self._gap_of(face.aligned))
        return replace(face, crop=crop)

    def paste(self, faces: Sequence[RestoredFace]) -> Pixels:
        """The photograph at `scale` times its size, with its holes filled from the faces."""
        larger = enlarge_holes(self.holes, self.scale)
        owners = share_holes(larger, [face.aligned for face in faces], scale=self.scale)
        return paste_faces(self.photo.pixels, faces, scale=self.scale, owners=owners)

    def remarks(self, faces: Sequence[RestoredFace]) -> tuple[str, ...]:
        """Half a sentence if these faces leave hole pixels unfilled, or if there is no hole."""
        wanted = int(self.holes.sum())
        if not wanted:
            return ("there is no hole",)
        filled = share_holes(self.holes, [face.aligned for face in faces]) >= 0
        left = wanted - int(filled.sum())
        if not left:
            return ()
        return (f"{left:,} of {wanted:,} hole pixels ({left / wanted:.1%}) are left as they were",)

    @cached_property
    def _gray(self) -> bool:
        return equal_channels(self.photo.pixels)

    @cached_property
    def _shown(self) -> NDArray[np.uint8]:
        """The holes as a picture, white on black."""
        return self.holes.astype(np.uint8) * 255

    def _gap_of(self, face: AlignedFace) -> Holes:
        """The pixels of a crop (S, S) that show any part of a hole."""
        if self.aligned:
            return resize(self._shown, self.crop_size, self.crop_size) > 0
        return cut_crop(self._shown, face.to_crop, self.crop_size, border=(0,)) > 0
