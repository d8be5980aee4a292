"""Runs Pillow with our limits instead of its own, and without output.

Its limits and its log are global, and so are Python's warning filters.
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
from typing import cast

import PIL
from PIL import Image, PngImagePlugin

_LONGEST_PROFILE = 1 << 25
"""Largest colour profile or text in a PNG, in bytes; printer profiles have a few million."""

_LIBRARIES = ("../pillow.libs", ".dylibs")
"""Where Pillow's wheels keep their bundled libraries, relative to Pillow's own folder."""


class _Limits:
    """Pillow's own limits, saved here while a picture is being read."""

    lock = threading.Lock()
    readers = 0
    pixels: int | None = None
    text = 0


class _Quiet:
    """The filter that ignores Pillow's warnings while any thread uses Pillow.

    `warnings.catch_warnings` would not do: it saves and restores the filters of all threads, so if
    two overlap, the filter stays, and those that the program sets meanwhile are lost.
    """

    lock = threading.Lock()
    users = 0
    filter: object = None


@contextmanager
def reading() -> Iterator[None]:
    """Lifts Pillow's size limits, as the caller checks sizes itself, and silences Pillow."""
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
    """Keeps Pillow's messages off stderr; the user gets our errors and notes instead."""
    _silence()
    with _Quiet.lock:
        if _Quiet.users == 0:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _Quiet.filter = warnings.filters[0]
        _Quiet.users += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.users -= 1
            filters = cast("list[object]", warnings.filters)
            if _Quiet.users == 0 and _Quiet.filter in filters:
                filters.remove(_Quiet.filter)


@cache
def _silence() -> None:
    """Adds a handler to Pillow's log, and removes those of the libtiff bundled with it; runs once.

    That library prints problems of a file directly to stderr. A libtiff that is part of the
    system, or of Pillow's own binary, is out of reach and still does.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    for folder in _LIBRARIES:
        for path in (Path(PIL.__file__).parent / folder).glob("libtiff*"):
            with suppress(OSError, AttributeError):
                library = ctypes.CDLL(str(path.resolve()))
                library.TIFFSetErrorHandler(None)
                library.TIFFSetWarningHandler(None)
