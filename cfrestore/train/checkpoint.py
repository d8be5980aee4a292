"""Training checkpoints: single files, or shards where files must stay small."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfrestore import files
from cfrestore.checkpoint import DAMAGE, read_checkpoint
from cfrestore.errors import CheckpointError, ConfigError, OutputError


def exists(path: Path) -> bool:
    """Whether a checkpoint exists, whole or in shards."""
    return files.exists(path) or files.exists(_shard(path, 0))


def write(path: Path, content: dict[str, Any], shard_mb: int | None = None) -> None:
    """Writes a checkpoint, whole or in shards, replacing an earlier one.

    Its folder need not exist. With shard_mb its bytes are split into `path.0`, `path.1`, ...;
    concatenated they are the file.

    Raises:
        OutputError: it cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shard_mb is None:
            _replace(path, data)
        else:
            size = shard_mb * 2**20
            count = -(-len(data) // size)
            for n in range(count):
                _replace(_shard(path, n), data[n * size : (n + 1) * size])
            path.unlink(missing_ok=True)
        while _shard(path, count).exists():
            _shard(path, count).unlink()
            count += 1
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def read(path: Path) -> dict[str, Any]:
    """Reads a checkpoint, whole or in shards, to the CPU, without executing code.

    Raises:
        CheckpointError: it is missing, damaged or cannot be read.
    """
    data = _bytes_of(path)
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise CheckpointError(f"{path} is damaged or holds more than tensors") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no checkpoint")
    return content


def averaged(path: Path) -> dict[str, Tensor]:
    """Reads the averaged weights (`params_ema`) of a checkpoint, ours or a published one.

    Exported weights (.safetensors) have only one set of weights, which is read in float32.

    Raises:
        CheckpointError: the file is missing or damaged, or has no averaged weights.
    """
    if path.suffix == ".safetensors":
        return {key: value.float() for key, value in read_checkpoint(path)[0].items()}
    content = read(path)
    if "params_ema" not in content:
        raise CheckpointError(f"{path} holds no averaged weights (params_ema)")
    weights: dict[str, Tensor] = content["params_ema"]
    return weights


def mean(own: dict[str, Tensor], others: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """The weighted mean of the weights of several networks.

    Args:
        own: weights whose share is what the shares of the others leave of 1.
        others: files, see `averaged`, each with the share of its weights as typed.
    Raises:
        ConfigError: the shares are not numbers of sum at most 1.
        CheckpointError: a file cannot be read, or holds another network.
    Source: Wortsman et al., "Robust fine-tuning of zero-shot models" (2022).
    """
    try:
        shares = [float(share) for _, share in others]
    except ValueError:
        shares = [math.nan]
    rest = 1 - sum(shares)
    if not all(share >= 0 for share in (*shares, rest)):
        raise ConfigError(f"the shares of --mean must be numbers of sum at most 1, found {others}")
    total = {key: rest * value.float() for key, value in own.items()}
    for (path, _), share in zip(others, shares, strict=True):
        weights = averaged(Path(path))
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in own.items()}:
            raise CheckpointError(f"{path} holds another network")
        total = {key: value + share * weights[key].float() for key, value in total.items()}
    return total


def _bytes_of(path: Path) -> bytes:
    if files.exists(path):
        return _read(path)
    parts: list[bytes] = []
    while files.exists(part := _shard(path, len(parts))):
        parts.append(_read(part))
    if not parts:
        raise CheckpointError(f"{path} does not exist")
    return b"".join(parts)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _replace(path: Path, data: bytes) -> None:
    with files.drafted(path) as draft:
        draft.write_bytes(data)


def _shard(path: Path, n: int) -> Path:
    return path.with_name(f"{path.name}.{n}")
