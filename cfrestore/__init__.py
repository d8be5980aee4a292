"""cfrestore restores faces in photographs. Public names are resolved on first use (PEP 562)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Options": "cfrestore.options",
    "Photo": "cfrestore.image",
    "read_photo": "cfrestore.image",
    "write_photo": "cfrestore.image",
    "Face": "cfrestore.detect",
    "Pipeline": "cfrestore.pipeline",
    "Restoration": "cfrestore.procedure",
    "load_pipeline": "cfrestore.pipeline",
    "CodeFormer": "cfrestore.models.codeformer",
    "CodeFormerConfig": "cfrestore.models.codeformer",
    "load_codeformer": "cfrestore.weights",
    "restore_video": "cfrestore.video.restoration",
}

__all__ = [
    "CodeFormer",
    "CodeFormerConfig",
    "Face",
    "Options",
    "Photo",
    "Pipeline",
    "Restoration",
    "__version__",
    "load_codeformer",
    "load_pipeline",
    "read_photo",
    "restore_video",
    "write_photo",
]

if TYPE_CHECKING:
    from cfrestore.detect import Face
    from cfrestore.image import Photo, read_photo, write_photo
    from cfrestore.models.codeformer import CodeFormer, CodeFormerConfig
    from cfrestore.options import Options
    from cfrestore.pipeline import Pipeline, load_pipeline
    from cfrestore.procedure import Restoration
    from cfrestore.video.restoration import restore_video
    from cfrestore.weights import load_codeformer


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cfrestore' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
