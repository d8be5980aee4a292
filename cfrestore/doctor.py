"""Examines this installation and this machine, and tests whether they work.

Heavy packages are imported inside functions, so that a failing import is reported as a finding.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cfrestore import __version__
from cfrestore.errors import CFRestoreError, CheckpointError, WeightsError
from cfrestore.extras import HEADLESS, load_package
from cfrestore.files import exists, is_folder
from cfrestore.weights import (
    WEIGHT_FILES,
    WeightFile,
    search_folders,
    shipped,
    store_folder,
    verify,
)

if TYPE_CHECKING:
    from cfrestore.restore import FailedFace, RestoredFace

SCHEMA = 1
"""Version of the layout of Report; adding a field does not change it."""

PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "opencv-python": "cv2",
    "pillow": "PIL",
    "facexlib": "facexlib",
    "facenet-pytorch": "facenet_pytorch",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface_hub",
}
"""Distributions and the names of their modules."""

EXTRAS = {"av": "av", "onnx": "onnx", "onnxruntime": "onnxruntime", "openvino": "openvino"}
"""Distributions and modules of optional packages, which are examined only if installed."""

VARIABLES = (
    "CFRESTORE_HOME",
    "CFRESTORE_OFFLINE",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
)
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")

LOOKED_FOR, FETCHED_TO = "weights are looked for", "weights are looked for and fetched to"

BROKEN = (
    ImportError,
    OSError,
    RuntimeError,
    AttributeError,
    TypeError,
    ValueError,
    SyntaxError,
    MemoryError,
)
"""Raised by a package that is incompatible with others, or by a device whose memory is full."""


@dataclass(frozen=True)
class Package:
    """A package that this program needs; version or error is None if there is none."""

    name: str
    version: str | None
    error: str | None


@dataclass(frozen=True)
class Device:
    """A device that networks can run on, and the result of a trial with the shipped weights.

    Attributes:
        name, description: as `choose_device` takes it, and for display.
        seconds: for one face at w = 1, after one at w = 0.
        change: mean difference of the two, in levels of 255.
        error: why there are no figures, or what is wrong with them.
        weights: whether the weights cause the error.
    """

    name: str
    description: str
    seconds: float | None = None
    change: float | None = None
    error: str | None = None
    weights: bool = False


@dataclass(frozen=True)
class Folder:
    """A folder where weights are searched or stored; if missing, its nearest parent is examined.

    Attributes:
        purpose: what it is for.
        path: absolute.
        exists, writable: whether it exists, and can be written to.
        free: free bytes on its disk.
    """

    purpose: str
    path: str
    exists: bool
    writable: bool
    free: int | None


@dataclass(frozen=True)
class Weights:
    """A weight file.

    Attributes:
        name, file, licence, purpose: see WeightFile.
        state: absent, verified (it has the SHA-256 on record), pinned (none is on record; it is the
            file first seen here), shipped, wrong, or unknown because a package is missing.
        path: where it is.
        sha256: on record.
        error: what is wrong.
    """

    name: str
    file: str
    licence: str
    purpose: str
    state: str
    path: str | None = None
    sha256: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Choice:
    """What the command uses by default; if that fails to load, only the error is set."""

    model: str | None = None
    detector: str | None = None
    parser: str | None = None
    device: str | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None
    weights: bool = False


@dataclass(frozen=True)
class Problem:
    """A problem to be fixed, and its exit code."""

    code: int
    text: str


@dataclass(frozen=True)
class Report:
    """All findings; `dataclasses.asdict` converts it to plain values.

    Attributes:
        schema: SCHEMA.
        python, platform, cpus: versions, and the number of CPUs.
        memory: bytes of main memory, None if the system does not say.
        cuda_version, driver: of the CUDA that torch was built with, and of the NVIDIA driver.
        environment: variables that are set, without credentials.
    """

    schema: int
    cfrestore: str
    python: str
    platform: str
    cpus: int
    memory: int | None
    cuda_version: str | None
    driver: str | None
    packages: tuple[Package, ...]
    devices: tuple[Device, ...]
    folders: tuple[Folder, ...]
    environment: Mapping[str, str]
    weights: tuple[Weights, ...]
    auto: Choice

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems to be fixed, without repetitions."""
        return tuple({problem.text: problem for problem in self._problems()}.values())

    def _problems(self) -> Iterator[Problem]:
        for package in self.packages:
            if package.error:
                text = f"{package.name} cannot be imported: {package.error}"
                opencv = package.name == "opencv-python"
                yield Problem(1, f"{text}; {HEADLESS}" if opencv else text)
        for row in self.weights:
            if row.error:
                yield Problem(4, row.error)
        if self.auto.error:
            yield Problem(4 if self.auto.weights else 1, self.auto.error)
        for device in self.devices:
            if device.error:
                code = 4 if device.weights else 1
                yield Problem(code, f"{device.name} fails: {device.error}")

    @property
    def notes(self) -> tuple[str, ...]:
        """Findings that are worth knowing, but not problems."""
        closed = (
            f"{folder.path} cannot be written to, so nothing can be fetched to it"
            for folder in self.folders
            if folder.purpose == FETCHED_TO and not folder.writable
        )
        return (*self.auto.notes, *closed)

    @property
    def exit_code(self) -> int:
        """0 if all is well, 4 if weights are wrong, else 1."""
        return max((problem.code for problem in self.problems), default=0)


def examine() -> Report:
    """Examines and tests everything once; takes seconds, opens no connection."""
    extras = {n: module for n, module in EXTRAS.items() if importlib.util.find_spec(module)}
    packages = tuple(_package(name, module) for name, module in (PACKAGES | extras).items())
    return Report(
        schema=SCHEMA,
        cfrestore=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cpus=os.cpu_count() or 1,
        memory=_memory(),
        cuda_version=_cuda_version(),
        driver=_driver(),
        packages=packages,
        devices=tuple(_devices()),
        folders=tuple(_folders()),
        environment=_environment(),
        weights=tuple(map(_weights, WEIGHT_FILES)),
        auto=_auto(),
    )


def _package(name: str, module: str) -> Package:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = None
    try:
        loaded = load_package(module)
    except BROKEN as error:
        return Package(name, version, _reason(error))
    # The module's own version is preferred: OpenCV has several distributions, torch adds its CUDA.
    return Package(name, getattr(loaded, "__version__", version), None)


def _devices() -> Iterator[Device]:
    try:
        import torch

        from cfrestore.device import available_devices, describe
    except BROKEN:  # reported by _package
        return
    for name in available_devices():
        try:
            yield _trial(name, describe(torch.device(name)))
        except (WeightsError, CheckpointError) as error:
            yield Device(name, name, error=str(error), weights=True)
        except (CFRestoreError, *BROKEN) as error:
            yield Device(name, name, error=_reason(error))


def _trial(name: str, description: str) -> Device:
    """Restores one random crop at both ends of w with the shipped weights."""
    import numpy as np
    import torch

    from cfrestore.align import AlignedFace
    from cfrestore.detect import Face
    from cfrestore.device import Execution
    from cfrestore.restore import restore_faces
    from cfrestore.weights import load_codeformer

    device = torch.device(name)
    network = load_codeformer(shipped(), device)
    side = network.config.image_size
    crop = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    nobody = Face(np.zeros(4, np.float32), 1.0, np.zeros((5, 2), np.float32))
    aligned = AlignedFace(crop, np.eye(2, 3), nobody)
    execution = Execution(device)
    (low,) = restore_faces(network, [aligned], fidelity=0, execution=execution)
    start = time.perf_counter()
    (high,) = restore_faces(network, [aligned], fidelity=1, execution=execution)
    seconds = time.perf_counter() - start
    change, error = _difference(low, high)
    return Device(name, description, round(seconds, 3), change, error)


def _difference(
    low: RestoredFace | FailedFace, high: RestoredFace | FailedFace
) -> tuple[float | None, str | None]:
    """Mean difference between two paintings of a face, and what is wrong, if anything is."""
    import numpy as np

    from cfrestore.restore import FailedFace

    if isinstance(low, FailedFace):
        return None, low.reason
    if isinstance(high, FailedFace):
        return None, high.reason
    change = float(np.abs(low.crop.astype(int) - high.crop).mean())
    return round(change, 2), None if change else "w changes no pixels"


def _auto() -> Choice:
    """Loads what the command loads by default."""
    try:
        from cfrestore.device import describe
        from cfrestore.pipeline import load_pipeline

        pipeline = load_pipeline()
        return Choice(
            model=pipeline.model_name,
            detector=pipeline.detector_name,
            parser="parsenet" if pipeline.parser else None,
            device=describe(pipeline.device),
            notes=pipeline.notes,
        )
    except (WeightsError, CheckpointError) as error:
        return Choice(error=str(error), weights=True)
    except (CFRestoreError, *BROKEN) as error:
        return Choice(error=f"the default choice cannot be loaded: {_reason(error)}")


def _weights(row: WeightFile) -> Weights:
    path, error = None, None
    try:
        path = verify(row.name)
        state = "absent" if path is None else _state(row)
    except WeightsError as problem:
        state, error = "wrong", str(problem)
    except ImportError:  # reported by _package; the hub's cache cannot be searched
        state = "unknown"
    return Weights(
        row.name,
        row.file,
        row.licence,
        row.purpose,
        state,
        str(path.absolute()) if path else None,
        row.sha256,
        error,
    )


def _state(row: WeightFile) -> str:
    """The state of a file that is present and correct."""
    if row.shipped:
        return "shipped"
    return "verified" if row.sha256 else "pinned"


def _folders() -> Iterator[Folder]:
    for path in search_folders():
        yield _folder(FETCHED_TO if path == store_folder() else LOOKED_FOR, path)
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except BROKEN:  # reported by _package
        return
    yield _folder("cache of the Hugging Face hub", Path(HF_HUB_CACHE))


def _folder(purpose: str, path: Path) -> Folder:
    path = path.absolute()
    there = next(place for place in (path, *path.parents) if exists(place))
    try:
        free = shutil.disk_usage(there).free
    except OSError:
        free = None
    writable = is_folder(there) and os.access(there, os.W_OK)
    return Folder(purpose, str(path), there == path and is_folder(path), writable, free)


def _environment() -> dict[str, str]:
    names = (*VARIABLES, *PROXIES, *(name.lower() for name in PROXIES))
    values = {name: os.environ[name] for name in names if os.environ.get(name)}
    return {
        name: hide_credentials(value) if name.upper() in PROXIES else value
        for name, value in values.items()
    }


def hide_credentials(address: str) -> str:
    """Removes user and password from a proxy's address, whatever characters they contain."""
    _, found, host = address.rpartition("@")
    scheme, colon, _ = address.partition("://")
    return f"{scheme + colon if colon else ''}***@{host}" if found else address


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def _cuda_version() -> str | None:
    try:
        from cfrestore.device import cuda_version
    except BROKEN:  # reported by _package
        return None
    return cuda_version()


def _driver() -> str | None:
    """Version of the NVIDIA driver, according to nvidia-smi."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    words = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None


def _reason(error: BaseException) -> str:
    """The message of an error, on one line, never empty."""
    return " ".join(str(error).split()) or type(error).__name__
