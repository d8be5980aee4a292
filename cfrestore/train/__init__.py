"""Trains restorers in stages, priors over their codes, and up-samplers.

Needs only torch, numpy, OpenCV and Pillow.
"""

from __future__ import annotations

from cfrestore.train.command import main

__all__ = ["main"]
