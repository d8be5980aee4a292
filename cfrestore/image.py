"""Bytes to Photo and back, Photo to tensor and back, and the gray test.

Pillow decodes and encodes 8-bit pictures. Pictures of 16 bits are decoded by OpenCV, from bytes
and never from a path, and encoded here, because Pillow reduces 16-bit colour to 8 bits.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from cfrestore.errors import ConfigError, ImageError, OutputError

if TYPE_CHECKING:
    import torch

Pixels: TypeAlias = NDArray[np.uint8 | np.uint16]
"""(H, W, 3) RGB or (H, W) alpha; the depth is the dtype and never guessed from the values."""

EXTENSIONS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pnm": "PPM",
    ".avif": "AVIF",
}
"""File name extension, lower case, to Pillow's format name: all that is read and written."""

FORMATS = tuple(dict.fromkeys(EXTENSIONS.values()))
_DEEP_FORMATS = ("PNG", "TIFF", "PPM")
_OPAQUE_FORMATS = ("JPEG", "BMP", "PPM")

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
_ENCODER_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
)

_EXIF_HEAD = b"Exif\x00\x00"
_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb"(?<=tiff:Orientation)(=[\"']|>)([1-8])")

_GAP = rb"(?:\s|#[^\n]*\n)+"
_PPM_HEAD = re.compile(rb"P([56])" + (_GAP + rb"(\d+)") * 3 + rb"\s")

# Tags of a TIFF directory that describe the photograph rather than the layout of the file.
_DESCRIPTIVE_TAGS = frozenset(
    (270, 271, 272, 274, 282, 283, 296, 305, 306, 315, 316, 33432, 34665, 34853)
) | frozenset(range(40091, 40096))

_OPENING = threading.Lock()


@dataclass(frozen=True, eq=False)
class Photo:
    """One decoded photograph, upright, with everything that is to reach the written file.

    Attributes:
        pixels: (H, W, 3) uint8 or uint16, RGB, C-contiguous, in the picture's own colour space.
        alpha: (H, W), dtype of pixels, 0 is transparent; None for a picture without alpha.
        gray: the file held a single colour channel; it is written as such while R = G = B.
        icc: colour profile, or None.
        exif: EXIF block starting with b"Exif\\0\\0", its orientation reset to 1, or None.
        xmp: XMP packet, its orientation reset to 1, or None.
        format: Pillow's name of the file format, one of FORMATS.

    Raises:
        ValueError: shapes or dtypes are not as above.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    gray: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    format: str = "PNG"

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pixels must be (H, W, 3) uint8 or uint16, found {shape} {dtype}")
        if not self.pixels.flags.c_contiguous:
            raise ValueError("pixels must be C-contiguous, found a strided view")
        if self.alpha is not None and (self.alpha.shape, self.alpha.dtype) != (shape[:2], dtype):
            found = f"{self.alpha.shape} {self.alpha.dtype}"
            raise ValueError(f"alpha must be {shape[:2]} {dtype}, found {found}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


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
    name = _name(source)
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
            raise ImageError(f"{name} cannot be decoded: {_reason(error)}") from error


def write_photo(
    photo: Photo,
    target: str | Path | BinaryIO,
    *,
    format: str | None = None,
    quality: int = 95,
) -> None:
    """Writes a photograph so that the target is at every moment the old file or the whole new one.

    An existing file is replaced; whether it may be is the caller's to decide. A format without
    16 bits gets 8; BMP, GIF and PPM hold no EXIF, ICC or XMP.

    Args:
        photo: what to write, its metadata included.
        target: path, or a binary stream that need not seek.
        format: one of FORMATS or an extension, any case; None takes it from the target's
            extension, and photo.format for a stream or a name without one.
        quality: 1 to 100 for JPEG (always 4:4:4), AVIF and WebP; 100 makes WebP lossless.
    Raises:
        OutputError: format unknown, alpha that the format cannot hold, or the target not writable.
        ConfigError: quality out of range.
    """
    if not 1 <= quality <= 100:
        raise ConfigError(f"quality must lie in [1, 100], found {quality}")
    name = _name(target)
    chosen = _choose_format(photo, target, format, name)
    try:
        data = _encode(photo, chosen, quality, name)
    except _ENCODER_ERRORS as error:
        raise OutputError(f"{name} cannot be encoded as {chosen}: {_reason(error)}") from error
    try:
        if isinstance(target, (str, os.PathLike)):
            _replace(Path(os.path.realpath(target)), data)
        else:
            target.write(data)
    except (OSError, ValueError) as error:
        raise OutputError(f"{name} cannot be written: {_reason(error)}") from error


def is_gray(pixels: Pixels, threshold: float = 10.0) -> bool:
    """Whether a picture is gray up to a uniform cast: its channel differences hardly vary.

    Args:
        pixels: (H, W, 3) uint8 or uint16.
        threshold: largest mean of the three variances, in squared 8-bit steps.
    Source: specification 02, section 8.1.
    """
    wide = pixels.dtype == np.uint16
    depth = cv2.CV_32S if wide else cv2.CV_16S
    pixels = np.ascontiguousarray(pixels)
    differences = cv2.subtract(pixels, np.roll(pixels, -1, axis=2), dtype=depth)
    _, deviations = cv2.meanStdDev(differences)
    step = 257 if wide else 1
    return bool(np.mean((deviations / step) ** 2) <= threshold)


def to_gray(pixels: NDArray[Any]) -> NDArray[np.float64]:
    """Brightness of RGB pixels, repeated on three equal channels.

    Args:
        pixels: (..., 3), any real dtype.
    Returns:
        (..., 3) float64 in the units of pixels.
    Source: specification 02, section 8.2.
    """
    brightness = 0.2989 * pixels[..., 0] + 0.5870 * pixels[..., 1] + 0.1140 * pixels[..., 2]
    return np.repeat(np.asarray(brightness, np.float64)[..., None], 3, axis=-1)


def match_statistics(content: NDArray[Any], style: NDArray[Any]) -> NDArray[np.float64]:
    """Content with the mean and the spread of style, each channel for itself.

    Args:
        content: (H, W, C), any real dtype.
        style: (H', W', C), any real dtype.
    Returns:
        (H, W, C) float64, neither clipped nor rounded.
    Source: specification 02, section 8.3.
    """
    content, style = content.astype(np.float64), style.astype(np.float64)
    spread, wanted = (np.sqrt(image.var(axis=(0, 1)) + 1e-5) for image in (content, style))
    matched = (content - content.mean(axis=(0, 1))) / spread * wanted + style.mean(axis=(0, 1))
    return np.asarray(matched, np.float64)


def to_tensor(crops: NDArray[np.uint8]) -> torch.Tensor:
    """Crops as the networks take them: (N, S, S, 3) uint8 to (N, 3, S, S) float32 in [-1, 1]."""
    import torch

    values = torch.tensor(np.ascontiguousarray(crops)).permute(0, 3, 1, 2).contiguous()
    return (values.float() / 255 - 0.5) / 0.5


def from_tensor(images: torch.Tensor) -> NDArray[np.uint8]:
    """What a network gave, clamped and rounded: (N, 3, S, S) in [-1, 1] to (N, S, S, 3) uint8."""
    import torch

    values = ((images.detach().float().clamp(-1, 1) + 1) / 2 * 255).round().to(torch.uint8)
    return np.asarray(values.permute(0, 2, 3, 1).contiguous().cpu().numpy(), np.uint8)


def to_uint8(pixels: Pixels) -> NDArray[np.uint8]:
    """Pixels in 8 bits: 16-bit values divided by 257 and rounded, 8-bit pixels unchanged."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


# ---- reading


def _name(place: object) -> str:
    """How messages call a source or a target."""
    if isinstance(place, (str, os.PathLike)):
        return os.fspath(place)
    name = getattr(place, "name", None)
    return name if isinstance(name, str) else "<bytes>"


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def _read(source: str | Path | bytes | BinaryIO, name: str) -> bytes:
    try:
        if isinstance(source, bytes):
            data = source
        elif isinstance(source, (str, os.PathLike)):
            data = Path(source).read_bytes()
        else:
            data = source.read()
    except (OSError, ValueError, MemoryError) as error:
        raise ImageError(f"{name} cannot be read: {_reason(error)}") from error
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
        exif = _tiff_exif(image)
        # Decoders turn TIFF and nothing else themselves, Pillow by XMP too, OpenCV by the tag only.
        turned = not wide or _ORIENTATION in image.tag_v2
    image.load()  # of 16 bits too: it finds what is cut short, and metadata behind the pixels
    exif = exif or _exif(image)
    xmp, icc = _bytes(image.info.get("xmp")), _bytes(image.info.get("icc_profile"))
    orientation, exif, xmp = _take_orientation(exif, xmp)
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
    if palette and icc is None and _equal_channels(planes):
        gray, planes = True, planes[..., :1]  # GIF has no other way to hold a gray picture
    return planes, alpha, gray


def _equal_channels(pixels: Pixels) -> bool:
    return np.array_equal(pixels[..., :2], pixels[..., 1:])


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


# ---- metadata


def _bytes(value: object) -> bytes | None:
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) and value else None


def _exif(image: Image.Image) -> bytes | None:
    exif = _bytes(image.info.get("exif"))
    old_style = image.info.get("Raw profile type exif")
    if exif is None and isinstance(old_style, str):
        exif = bytes.fromhex("".join(old_style.split("\n")[3:]))
    if exif is None or exif.startswith(_EXIF_HEAD):
        return exif
    return _EXIF_HEAD + exif


def _tiff_exif(image: Image.Image) -> bytes | None:
    """The descriptive part of a TIFF's own directory, as the EXIF block other formats hold."""
    exif = image.getexif()
    for tag in set(exif) - _DESCRIPTIVE_TAGS:
        del exif[tag]
    for directory in {34665, 34853} & set(exif):
        exif.get_ifd(directory)
    exif.bigtiff = False  # the block has 32-bit offsets whatever the file had
    return exif.tobytes() if len(exif) else None


def _exif_entries(block: bytes) -> Iterator[tuple[int, int, int]]:
    """Tag, type and offset of each entry of the first directory of a TIFF block.

    Raises:
        struct.error: the block is cut short or something else.
    """
    if block[:4] not in (b"II*\0", b"MM\0*"):
        raise struct.error("no TIFF head")
    order = "<" if block[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", block, 4)
    (count,) = struct.unpack_from(order + "H", block, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, _, _ = struct.unpack_from(order + "HHI4s", block, at)
        yield tag, kind, at


def _take_orientation(
    exif: bytes | None, xmp: bytes | None
) -> tuple[int, bytes | None, bytes | None]:
    """The orientation, of EXIF before XMP, and both blocks with it reset to 1, else unchanged."""
    orientations: list[int] = []
    if exif is not None:
        block = exif[len(_EXIF_HEAD) :]
        order = "<" if block[:2] == b"II" else ">"
        try:
            places = [(at, kind) for tag, kind, at in _exif_entries(block) if tag == _ORIENTATION]
        except struct.error:
            places = []
        for at, kind in places:
            layout = order + {1: "B", 4: "I"}.get(kind, "H")
            orientations += struct.unpack_from(layout, block, at + 8)
            start, reset = len(_EXIF_HEAD) + at + 8, struct.pack(layout, 1)
            exif = exif[:start] + reset + exif[start + len(reset) :]
    if xmp is not None:
        orientations += [int(digit) for _, digit in _XMP_ORIENTATION.findall(xmp)]
        xmp = _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)
    orientation = orientations[0] if orientations else 1
    return (orientation if 1 <= orientation <= 8 else 1), exif, xmp


# ---- writing


def _choose_format(
    photo: Photo, target: str | Path | BinaryIO, asked: str | None, name: str
) -> str:
    extension = Path(target).suffix if isinstance(target, (str, os.PathLike)) else ""
    wanted = asked or extension or photo.format
    chosen = EXTENSIONS.get("." + wanted.lower().lstrip("."), wanted.upper())
    if chosen not in FORMATS:
        known = ", ".join(FORMATS)
        raise OutputError(f"{name} cannot be written as {wanted!r}: known formats are {known}")
    return chosen


def _encode(photo: Photo, format: str, quality: int, name: str) -> bytes:
    samples = _samples(photo, format, name)
    if format == "PPM":
        return _encode_ppm(samples)
    icc = photo.icc
    if icc is not None and icc[16:20] == b"GRAY" and samples.shape[2] >= 3:
        icc = None  # the picture has become a colour picture, which a gray profile cannot describe
    if format == "TIFF":
        return _encode_tiff(samples, icc, photo.exif, photo.xmp)
    if format == "PNG" and samples.dtype == np.uint16:
        return _encode_wide_png(samples, icc, photo.exif, photo.xmp)
    settings: dict[str, Any] = {"icc_profile": icc, "exif": photo.exif or b""}
    if photo.xmp is not None:
        settings["xmp"] = photo.xmp
    if format == "PNG":
        settings["pnginfo"] = PngImagePlugin.PngInfo()
        if photo.xmp is not None:
            settings["pnginfo"].add_itxt("XML:com.adobe.xmp", photo.xmp)
    elif format in ("JPEG", "AVIF"):
        settings.update(quality=quality, subsampling="4:4:4")
    elif format == "WEBP":
        settings.update(quality=quality, lossless=quality == 100, exact=True)
    buffer = BytesIO()
    Image.fromarray(samples.squeeze(axis=2) if samples.shape[2] == 1 else samples).save(
        buffer, format, **settings
    )
    return buffer.getvalue()


def _samples(photo: Photo, format: str, name: str) -> Pixels:
    """(H, W, 1 to 4) in the depth and with the channels that the format is to store."""
    pixels, alpha = photo.pixels, photo.alpha
    if alpha is not None and format in (*_OPAQUE_FORMATS, "GIF"):
        opaque = alpha == np.iinfo(alpha.dtype).max
        if not np.all(opaque | (alpha == 0) if format == "GIF" else opaque):
            raise OutputError(
                f"{name} cannot be written as {format}, which would lose the picture's "
                "transparency; write PNG or WebP instead"
            )
        if format != "GIF":
            alpha = None
    if photo.gray and _equal_channels(pixels):
        pixels = pixels[..., :1]
    if alpha is not None:
        if format == "TIFF" and pixels.dtype == np.uint16 and pixels.shape[2] == 1:
            pixels = photo.pixels  # few readers, Pillow not among them, open 16-bit gray with alpha
        pixels = np.concatenate([pixels, alpha[..., None]], axis=2)
    if format not in _DEEP_FORMATS:
        pixels = to_uint8(pixels)
    return np.ascontiguousarray(pixels)


def _encode_ppm(samples: Pixels) -> bytes:
    height, width, channels = samples.shape
    kind, largest = ("P5" if channels == 1 else "P6"), np.iinfo(samples.dtype).max
    stored = samples.astype(samples.dtype.newbyteorder(">"), copy=False)
    return f"{kind}\n{width} {height}\n{largest}\n".encode() + stored.tobytes()


def _encode_wide_png(
    samples: Pixels, icc: bytes | None, exif: bytes | None, xmp: bytes | None
) -> bytes:
    """A 16-bit PNG with each row as differences to the pixel on the left.

    Source: Portable Network Graphics (third edition), sections 5, 9 and 11.
    """
    height, width, channels = samples.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    stored = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    rows = np.empty((height, 1 + stored.shape[1]), np.uint8)
    rows[:, 0] = 1
    rows[:, 1:] = stored
    rows[:, 1 + 2 * channels :] -= stored[:, : -2 * channels]
    body = zlib.compress(rows.data)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    if icc is not None:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc)))
    if exif is not None:
        chunks.append((b"eXIf", exif.removeprefix(_EXIF_HEAD)))
    if xmp is not None:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    chunks += [(b"IDAT", body[at : at + (1 << 24)]) for at in range(0, len(body), 1 << 24)]
    chunks.append((b"IEND", b""))
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        check = zlib.crc32(content, zlib.crc32(kind))
        parts += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", check)]
    return b"".join(parts)


def _encode_tiff(
    samples: Pixels, icc: bytes | None, exif: bytes | None, xmp: bytes | None
) -> bytes:
    """A deflated TIFF built onto the EXIF block, which is a small TIFF file itself.

    The block stays where it is, so every offset in it (makers' notes too) remains valid; only the
    first directory is written anew, with the layout of the pixels added.

    Source: TIFF revision 6.0, sections 2, 8, 14 and 18; technical note 3 for lossless predictors.
    """
    height, width, channels = samples.shape
    block = exif.removeprefix(_EXIF_HEAD) if exif is not None else b""
    entries: dict[int, bytes] = {}
    try:
        for tag, _, at in _exif_entries(block):
            if tag in _DESCRIPTIVE_TAGS:
                entries[tag] = block[at : at + 12]
    except struct.error:
        block, entries = b"II*\0\0\0\0\0", {}
    order: Literal["<", ">"] = "<" if block[:2] == b"II" else ">"
    file = bytearray(block)

    def append(content: bytes) -> int:
        file.extend(b"\0" * (len(file) % 2))
        file.extend(content)
        return len(file) - len(content)

    def put(tag: int, kind: str, *values: int) -> None:
        content = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(content) > 4:
            content = struct.pack(order + "I", append(content))
        code = {"B": 7, "H": 3, "I": 4}[kind]
        entries[tag] = struct.pack(order + "HHI4s", tag, code, len(values), content.ljust(4, b"\0"))

    differences = samples.copy()
    differences[:, 1:] -= samples[:, :-1]
    stored = differences.astype(samples.dtype.newbyteorder(order), copy=False)
    rows = max(1, (1 << 20) // (width * channels * samples.itemsize))
    strips = [zlib.compress(stored[top : top + rows].data) for top in range(0, height, rows)]
    put(256, "I", width)
    put(257, "I", height)
    put(258, "H", *[8 * samples.itemsize] * channels)
    put(259, "H", 8)
    put(262, "H", 2 if channels >= 3 else 1)
    put(273, "I", *[append(strip) for strip in strips])
    put(277, "H", channels)
    put(278, "I", rows)
    put(279, "I", *map(len, strips))
    put(284, "H", 1)
    put(317, "H", 2)
    if channels in (2, 4):
        put(338, "H", 2)
    if icc is not None:
        put(34675, "B", *icc)
    if xmp is not None:
        put(700, "B", *xmp)
    directory = b"".join(entries[tag] for tag in sorted(entries))
    start = append(struct.pack(order + "H", len(entries)) + directory + b"\0\0\0\0")
    struct.pack_into(order + "I", file, 4, start)
    return bytes(file)


def _replace(target: Path, data: bytes) -> None:
    """Puts data in the place of target in one step; a device or pipe is written to directly."""
    if target.exists() and not target.is_file():
        target.write_bytes(data)
        return
    temporary = target.with_name(f".cfrestore-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
