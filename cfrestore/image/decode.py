"""Bytes to Photo.

Pillow decodes 8-bit pictures. Pictures of 16 bits are decoded by OpenCV, from bytes and never from
a path, because Pillow reduces 16-bit colour to 8 bits. Binary PPM of any depth is decoded here.
"""

from __future__ import annotations

import math
import os
import re
import struct
import threading
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, TiffImagePlugin

from cfrestore.errors import ImageError
from cfrestore.image.metadata import ORIENTATION, exif_of, info_bytes, take_orientation, tiff_exif
from cfrestore.image.photo import FORMATS, Photo, Pixels, equal_channels, name_of, reason_of

_GRAY_MODES = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")
_WIDE_NUMBER_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")

# No decoder documents what it lets out when the bytes are damaged; these kinds have been seen.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    cv2.error,
    Image.DecompressionBombError,
)

_GAP = rb"(?:\s|#[^\n]*\n)+"
_PPM_HEAD = re.compile(rb"P([56])" + (_GAP + rb"(\d+)") * 3 + rb"\s")

_OPENING = threading.Lock()


def read_photo(source: str | Path | bytes | BinaryIO, *, max_pixels: int = 500_000_000) -> Photo:
    """The photograph in a file, in bytes, or in a binary stream that need not seek.

    Of several pages or frames the first is read. CMYK is converted to sRGB, through its profile
    when it has one. 16-bit gray and RGB stay 16 bits in PNG, TIFF and PPM.

    Args:
        source: path, encoded bytes, or an open binary stream, read to its end.
        max_pixels: largest height times width that is decoded.
    Raises:
        ImageError: missing, unreadable, empty, unknown, damaged, cut short or too large.
    """
    name = name_of(source)
    data = _read(source, name)
    try:
        image = _open(data)
    except _DECODER_ERRORS as error:
        known = ", ".join(FORMATS)
        raise ImageError(f"{name} is damaged or not a picture of a known kind ({known})") from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            found = f"{width}x{height} = {width * height:,} pixels"
            raise ImageError(f"{name} has {found}, more than the limit of {max_pixels:,}")
        try:
            return _decode(image, data)
        except _DECODER_ERRORS as error:
            raise ImageError(f"{name} cannot be decoded: {reason_of(error)}") from error


def _read(source: str | Path | bytes | BinaryIO, name: str) -> bytes:
    try:
        if isinstance(source, bytes):
            data = source
        elif isinstance(source, (str, os.PathLike)):
            data = Path(source).read_bytes()
        else:
            data = source.read()
    except (OSError, ValueError, MemoryError) as error:
        raise ImageError(f"{name} cannot be read: {reason_of(error)}") from error
    if not isinstance(data, bytes):
        raise ImageError(f"{name} cannot be read: it is no source of bytes")
    if not data:
        raise ImageError(f"{name} is empty")
    return data


def _open(data: bytes) -> Image.Image:
    """The file's head, read. Pillow's limit on sizes is global, so it is lifted only meanwhile."""
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(BytesIO(data), formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _decode(image: Image.Image, data: bytes) -> Photo:
    if image.format == "PPM" and (head := _PPM_HEAD.match(data)) is not None:
        return _decode_ppm(data, head)
    wide, exif, turned = _is_wide(image, data), None, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        exif = tiff_exif(image)
        # Decoders turn TIFF and nothing else themselves, Pillow by XMP too, OpenCV by the tag only.
        turned = not wide or ORIENTATION in image.tag_v2
    image.load()  # of 16 bits too: it finds what is cut short, and metadata behind the pixels
    exif = exif or exif_of(image)
    xmp, icc = info_bytes(image, "xmp"), info_bytes(image, "icc_profile")
    orientation, exif, xmp = take_orientation(exif, xmp)
    if wide:
        planes, alpha, gray = _wide_planes(image, data)
    else:
        planes, alpha, gray = _planes(image, icc)
        if image.mode == "CMYK":
            icc = None  # it described the inks, and the pixels are sRGB now
    if turned:
        orientation = 1
    pixels = np.repeat(planes, 3, axis=2) if gray else planes
    return Photo(
        pixels=_upright(pixels, orientation),
        alpha=None if alpha is None else _upright(alpha, orientation),
        gray=gray,
        icc=icc,
        exif=exif,
        xmp=xmp,
        format="JPEG" if image.format == "MPO" else str(image.format),
    )


def _decode_ppm(data: bytes, head: re.Match[bytes]) -> Photo:
    """A binary PPM or PGM, stretched from its own largest value to 8 or 16 bits.

    Pillow is passed over because it decodes other depths than 8 bits sample by sample in Python.
    """
    kind, width, height, largest = map(int, head.groups())
    stored, top = (np.dtype(np.uint8), 255) if largest < 256 else (np.dtype(">u2"), 65535)
    shape = (height, width, 1 if kind == 5 else 3)
    samples: NDArray[Any] = np.frombuffer(data, stored, math.prod(shape), head.end()).reshape(shape)
    if largest != top:
        samples = np.rint(samples * np.float32(top / largest)).clip(0, top)
    planes = samples.astype(stored.newbyteorder("="))
    pixels = np.repeat(planes, 3, axis=2) if kind == 5 else planes
    return Photo(pixels, gray=kind == 5, format="PPM")


def _is_wide(image: Image.Image, data: bytes) -> bool:
    """Whether the file holds 16-bit gray or RGB samples; 16-bit CMYK is left to Pillow."""
    if image.format == "PNG":
        return data[24] == 16
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        return set(tags.get(258, (1,))) == {16} and tags.get(262) in (0, 1, 2)
    return False


def _wide_planes(image: Image.Image, data: bytes) -> tuple[Pixels, Pixels | None, bool]:
    """Colour (H, W, 1 or 3) and alpha (H, W) uint16 as stored, and whether the colour is gray."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(284, 1) != 1:
        raise ValueError("16-bit samples in separate planes are not supported")
    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise ValueError("its 16-bit samples are damaged or of an unsupported kind")
    gray = samples.ndim == 2 or (image.format == "PNG" and data[25] == 4)
    samples = samples.reshape(*samples.shape[:2], -1)
    planes: NDArray[np.uint16] = samples[..., :1] if gray else samples[..., 2::-1]
    if tags.get(262) == 0:
        planes = 65535 - planes
    alpha = None
    if "transparency" in image.info:
        clear = (planes == image.info["transparency"]).all(axis=2)
        alpha = np.where(clear, 0, 65535).astype(np.uint16)
    elif samples.shape[2] == 4 and image.has_transparency_data:
        alpha = samples[..., 3]
        if tags.get(338) == (1,):  # colour was stored multiplied with alpha
            divided = planes / np.maximum(alpha, 1)[..., None] * 65535
            planes = divided.round().clip(0, 65535).astype(np.uint16)
    return planes, alpha, gray


def _planes(image: Image.Image, icc: bytes | None) -> tuple[Pixels, Pixels | None, bool]:
    """Colour (H, W, 1 or 3) and alpha (H, W) uint8, and whether the colour is gray."""
    if image.mode in _WIDE_NUMBER_MODES:
        raise ValueError(f"samples of this kind ({image.mode}) are not supported")
    gray, palette = image.mode in _GRAY_MODES, image.mode == "P"
    transparent = image.has_transparency_data
    mode = ("L" if gray else "RGB") + ("A" if transparent else "")
    if image.mode == "CMYK":
        image = _from_cmyk(image, icc)
    samples: NDArray[np.uint8] = np.asarray(image if image.mode == mode else image.convert(mode))
    samples = samples.reshape(*samples.shape[:2], -1)
    planes, alpha = (samples[..., :-1], samples[..., -1]) if transparent else (samples, None)
    if palette and icc is None and equal_channels(planes):
        gray, planes = True, planes[..., :1]  # GIF has no other way to hold a gray picture
    return planes, alpha, gray


def _from_cmyk(image: Image.Image, icc: bytes | None) -> Image.Image:
    """RGB in sRGB; without a usable profile by plain complement."""
    if icc is None:
        return image.convert("RGB")
    try:
        inks = ImageCms.ImageCmsProfile(BytesIO(icc))
        converted = ImageCms.profileToProfile(
            image,
            inks,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError):
        return image.convert("RGB")
    return converted or image.convert("RGB")


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turned and mirrored as the EXIF orientation, 1 to 8, asks for; C-contiguous and writable."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.require(pixels, requirements=("C", "W"))
