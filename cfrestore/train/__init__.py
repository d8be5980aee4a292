"""Training in three stages. Needs only torch, numpy, OpenCV and Pillow."""

from __future__ import annotations

from cfrestore.train.command import main

__all__ = ["main"]
