"""Converts weight files to safetensors, which load faster and cannot execute code."""

from __future__ import annotations

from pathlib import Path

from cfrestore.checkpoint import read_checkpoint, write_tensors
from cfrestore.errors import CheckpointError, ConfigError, OutputError
from cfrestore.files import exists, plain
from cfrestore.weights import table
from cfrestore.weights.digests import sha256_of


def convert(source: str | Path, target: str | Path, *, overwrite: bool = False) -> None:
    """Writes the tensors of a file as safetensors, in one step.

    The metadata record the source's SHA-256 as `source_sha256` and, for a published file, its
    licence; the source's own metadata are kept.

    Args:
        source: any file that `read_checkpoint` reads.
        target: ends in `.safetensors`.
        overwrite: whether target may exist; it may never be the source.
    Raises:
        WeightsError: the source cannot be read.
        CheckpointError: it holds no tensors, or tensors that safetensors cannot hold.
        ConfigError: the target has another extension.
        OutputError: the target exists, or cannot be written.
    """
    source, target = Path(source), plain(Path(target))
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target} should end in .safetensors")
    if exists(target):
        if exists(source) and target.samefile(source):
            raise OutputError(f"{target} is what is to be converted")
        if not overwrite:
            raise OutputError(f"{target} exists; only --overwrite replaces it")
    state, metadata = read_checkpoint(source)
    try:
        # Copies, because tensors of a torch file may share memory and have any strides.
        state = {key: state.pop(key).clone().contiguous() for key in list(state)}
        write_tensors(target, state, {**origin_of(source), **metadata})
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{source} holds tensors that safetensors cannot: {error}") from error


def origin_of(source: Path) -> dict[str, str]:
    """The SHA-256 of a weight file, and its licence if it is a published one."""
    digest = sha256_of(source)
    licences = {row.sha256: row.licence for row in table.WEIGHT_FILES if row.sha256 is not None}
    licence = {"licence": licences[digest]} if digest in licences else {}
    return {"source_sha256": digest, **licence}
