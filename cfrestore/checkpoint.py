"""Files of tensors, read without running anything that is in them."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfrestore.errors import CheckpointError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a file of tensors without running anything that is in it.

    Args:
        path: a torch file (of `params_ema`, else `params`, else the file itself) or safetensors.
    Returns:
        the tensors by key, on the CPU; the metadata, empty for torch files.
    Raises:
        WeightsError: the file cannot be read.
        CheckpointError: it is damaged, or is no such file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    if head.startswith((b"PK\x03\x04", b"\x80")):  # zip, and the bare pickle of old files
        return _read_torch(path), {}
    if head.endswith(b"{") and len(head) == 9:  # after eight bytes of header length
        return _read_safetensors(path)
    raise CheckpointError(f"{path} is neither a torch file nor safetensors")


# What unpickling damaged bytes raises, according to the documentation of pickle, and to trials.
_DAMAGE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    OverflowError,
    ImportError,
    struct.error,
    OSError,
)


def _read_torch(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path} is damaged or holds more than weights, so it was not opened"
        ) from error
    if isinstance(content, Mapping):
        for key in ("params_ema", "params"):
            if key in content:
                content = content[key]
                break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no table of tensors")
    for key, value in content.items():
        if not (isinstance(key, str) and isinstance(value, torch.Tensor)):
            raise CheckpointError(f"{path} holds no table of tensors: {key!r} is none")
    return dict(content)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
