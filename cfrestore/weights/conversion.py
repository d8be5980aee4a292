"""Any table of tensors as safetensors, which load faster and can run nothing."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from cfrestore.checkpoint import read_checkpoint
from cfrestore.errors import CheckpointError, ConfigError, OutputError
from cfrestore.weights import table
from cfrestore.weights.digests import sha256_of


def convert(source: str | Path, target: str | Path, *, overwrite: bool = False) -> None:
    """Writes the tensors of a file as safetensors, in one step.

    The metadata record the source's SHA-256 as `source_sha256`, and if it is a published file, its
    licence; metadata that the source has of its own are kept.

    Args:
        source: what `read_checkpoint` reads.
        target: ends in `.safetensors`.
        overwrite: whether target may exist; it never is the source.
    Raises:
        WeightsError: the source cannot be read.
        CheckpointError: it holds no table of tensors, or one that safetensors cannot hold.
        ConfigError: the target is called something else.
        OutputError: the target exists, or cannot be written.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target} should end in .safetensors")
    if target.exists():
        if source.exists() and target.samefile(source):
            raise OutputError(f"{target} is what is to be converted")
        if not overwrite:
            raise OutputError(f"{target} exists; only --overwrite replaces it")
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state, metadata = read_checkpoint(source)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        # Separate copies, because tensors of a torch file may share memory and have any strides.
        state = {key: state.pop(key).clone().contiguous() for key in list(state)}
        save_file(state, temporary, metadata={**origin_of(source), **metadata})
        shutil.copymode(source, temporary)  # else it could be only its owner's
        temporary.replace(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{target} cannot be written: {reason}") from error
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{source} holds tensors that safetensors cannot: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def origin_of(source: Path) -> dict[str, str]:
    """The SHA-256 of a weight file, and its licence if it is a published one."""
    digest = sha256_of(source)
    licences = {row.sha256: row.licence for row in table.WEIGHT_FILES if row.sha256 is not None}
    licence = {"licence": licences[digest]} if digest in licences else {}
    return {"source_sha256": digest, **licence}
