"""cfrestore restores faces in photographs. Public names are resolved on first use (PEP 562)."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Options": "cfrestore.options",
    "Upsampling": "cfrestore.options",
    "Photo": "cfrestore.image",
    "read_photo": "cfrestore.image",
    "write_photo": "cfrestore.image",
    "Face": "cfrestore.detect",
    "Detector": "cfrestore.detect",
    "Pipeline": "cfrestore.pipeline",
    "Restoration": "cfrestore.procedure",
    "RestoredFace": "cfrestore.restore",
    "FailedFace": "cfrestore.restore",
    "SkippedFace": "cfrestore.select",
    "load_pipeline": "cfrestore.pipeline",
    "CodeFormer": "cfrestore.models.codeformer",
    "CodeFormerConfig": "cfrestore.models.codeformer",
    "load_codeformer": "cfrestore.weights",
    "restore_video": "cfrestore.video.restoration",
    "reuse_memory": "cfrestore.device",
    "CFRestoreError": "cfrestore.errors",
    "CheckpointError": "cfrestore.errors",
    "ConfigError": "cfrestore.errors",
    "ImageError": "cfrestore.errors",
    "OutputError": "cfrestore.errors",
    "VideoError": "cfrestore.errors",
    "WeightsError": "cfrestore.errors",
}

__all__ = [
    "CFRestoreError",
    "CheckpointError",
    "CodeFormer",
    "CodeFormerConfig",
    "ConfigError",
    "Detector",
    "Face",
    "FailedFace",
    "ImageError",
    "Options",
    "OutputError",
    "Photo",
    "Pipeline",
    "Restoration",
    "RestoredFace",
    "SkippedFace",
    "Upsampling",
    "VideoError",
    "WeightsError",
    "__version__",
    "load_codeformer",
    "load_pipeline",
    "read_photo",
    "restore_video",
    "reuse_memory",
    "write_photo",
]

if TYPE_CHECKING:
    from cfrestore.detect import Detector, Face
    from cfrestore.device import reuse_memory
    from cfrestore.errors import (
        CFRestoreError,
        CheckpointError,
        ConfigError,
        ImageError,
        OutputError,
        VideoError,
        WeightsError,
    )
    from cfrestore.image import Photo, read_photo, write_photo
    from cfrestore.models.codeformer import CodeFormer, CodeFormerConfig
    from cfrestore.options import Options, Upsampling
    from cfrestore.pipeline import Pipeline, load_pipeline
    from cfrestore.procedure import Restoration
    from cfrestore.restore import FailedFace, RestoredFace
    from cfrestore.select import SkippedFace
    from cfrestore.video.restoration import restore_video
    from cfrestore.weights import load_codeformer
else:  # a type checker that saw __getattr__ would let any name pass

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'cfrestore' has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            if error.name != "av":
                raise
            text = f'cfrestore.{name} needs PyAV: pip install "cfrestore[video]" brings it'
            raise ImportError(text, name="av") from error

    if find_spec("av") is None:  # or `from cfrestore import *` and help would fail
        __all__.remove("restore_video")


def __dir__() -> list[str]:
    return sorted(__all__)
