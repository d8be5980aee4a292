"""Pillow while it works for us: held to our limits instead of its own, and silent.

Its limits and its log are global, as Python's filter of warnings is.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import PIL
from PIL import Image, PngImagePlugin

_LONGEST_PROFILE = 1 << 25
"""Bytes of a colour profile or a text in a PNG; printers' profiles have a few million."""

_LIBRARIES = ("../pillow.libs", ".dylibs")
"""Where wheels of Pillow bring their libraries, from Pillow's own folder."""


class _Limits:
    """Pillow's own limits, kept here while anyone reads."""

    lock = threading.Lock()
    readers = 0
    pixels: int | None = None
    text = 0


@contextmanager
def reading() -> Iterator[None]:
    """Lifts Pillow's limits on sizes, for what passes one of the caller's, and silences it."""
    with _Limits.lock:
        if _Limits.readers == 0:
            _Limits.pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            _Limits.text, PngImagePlugin.MAX_TEXT_CHUNK = (
                PngImagePlugin.MAX_TEXT_CHUNK,
                _LONGEST_PROFILE,
            )
        _Limits.readers += 1
    try:
        with silent():
            yield
    finally:
        with _Limits.lock:
            _Limits.readers -= 1
            if _Limits.readers == 0:
                Image.MAX_IMAGE_PIXELS = _Limits.pixels
                PngImagePlugin.MAX_TEXT_CHUNK = _Limits.text


@contextmanager
def silent() -> Iterator[None]:
    """Keeps Pillow's remarks off stderr: the user is told by errors and notes."""
    _silence()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@cache
def _silence() -> None:
    """Once: a handler for Pillow's log, and none for the libtiff that its wheels bring along.

    That library writes straight to stderr what is amiss in a file, and Pillow lets it. One that is
    part of the system, or of Pillow's own binary, cannot be reached and goes on doing so.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    for folder in _LIBRARIES:
        for path in (Path(PIL.__file__).parent / folder).glob("libtiff*"):
            with suppress(OSError, AttributeError):
                library = ctypes.CDLL(str(path.resolve()))
                library.TIFFSetErrorHandler(None)
                library.TIFFSetWarningHandler(None)
