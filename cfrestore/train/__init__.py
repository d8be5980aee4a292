"""Training in three stages. Needs torch, numpy, OpenCV and Pillow, and nothing else."""

from __future__ import annotations

from cfrestore.train.command import main

__all__ = ["main"]
