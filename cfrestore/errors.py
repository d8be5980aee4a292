"""The failures that a caller can act on; the command line ends each with its exit code."""

from __future__ import annotations

from typing import ClassVar


class CFRestoreError(Exception):
    """Base of every failure a caller can act on; its text is one complete sentence.

    Attributes:
        exit_code: exit code of a command that fails in this way.
    """

    exit_code: ClassVar[int] = 1


class ImageError(CFRestoreError):
    """A picture is unreadable, empty or too large; the text names the path or "<stdin>"."""


class VideoError(CFRestoreError):
    """A video is unreadable, or holds no frames; the text names the path."""


class OutputError(CFRestoreError):
    """A result would overwrite something, collide with another result, or cannot be written."""

    exit_code = 2


class WeightsError(CFRestoreError):
    """A weight file is missing, cannot be fetched, or does not have the expected hash."""

    exit_code = 4


class CheckpointError(CFRestoreError):
    """A weight file was read, but is not the network that was expected."""

    exit_code = 4


class ConfigError(CFRestoreError):
    """A setting is unknown or out of range."""

    exit_code = 2


class DegenerateFaceError(CFRestoreError):
    """Five landmarks that no similarity transform can be fitted to: not finite, or coincident."""
