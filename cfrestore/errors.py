"""The ways cfrestore can fail, and nothing else. The command line catches CFRestoreError only."""

from __future__ import annotations


class CFRestoreError(Exception):
    """Base of every failure a caller can act on; its text is one complete sentence."""


class ImageError(CFRestoreError):
    """A picture is unreadable, empty or too large; the text names the path or "<stdin>"."""


class OutputError(CFRestoreError):
    """A result would overwrite something, collide with another result, or cannot be written."""


class WeightsError(CFRestoreError):
    """A weight file is missing, cannot be fetched, or does not have the expected hash."""


class CheckpointError(CFRestoreError):
    """A weight file was read, but is not the network that was expected."""


class ConfigError(CFRestoreError):
    """A setting is unknown or out of range."""


class DegenerateFaceError(CFRestoreError):
    """Five landmarks that no similarity transform can be fitted to: not finite, or coincident."""
