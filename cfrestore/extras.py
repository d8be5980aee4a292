"""Optional packages, imported when they are needed, and what to do about broken ones."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from cfrestore.errors import ConfigError

HEADLESS = (
    "without a desktop's libraries, OpenCV needs another build: "
    "pip uninstall -y opencv-python && pip install opencv-python-headless"
)
"""What helps if OpenCV is installed but cannot be imported, as in many containers."""


def require(*packages: str, extra: str) -> None:
    """Imports packages of an extra; raises ConfigError with the command that installs it."""
    try:
        for package in packages:
            load_package(package)
    except ImportError as error:
        raise ConfigError(
            f"{package} cannot be imported ({error}); {install(extra)} brings it"
        ) from error


def install(extra: str) -> str:
    """The command that installs the packages of an extra."""
    return f'pip install "cfrestore[{extra}]"'


def explained(error: ImportError) -> str:
    """Why a package cannot be imported, and what helps."""
    broken = error.name == "cv2" and not isinstance(error, ModuleNotFoundError)
    advice = HEADLESS if broken else "cfrestore doctor checks all packages"
    return f"{error.name or 'a package'} cannot be imported ({error}); {advice}"


def load_package(name: str) -> ModuleType:
    """Imports a package; openvino and onnxruntime without telemetry.

    openvino reports each import to its vendor unless its telemetry package cannot be imported.
    onnxruntime, from 1.32, keeps an identifier and a database in the user's cache and uploads from
    its own threads, unless it is told not to; ORT_DISABLE_TELEMETRY=0 allows it to.
    """
    if name == "onnxruntime":
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if name == "openvino":
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module(name)


def package_folder(name: str) -> Path | None:
    """The folder of a package, found without importing it; None if it is not installed."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])
