"""Reads files of tensors without running anything in them, and writes them."""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cfrestore.errors import CheckpointError, OutputError, WeightsError
from cfrestore.files import drafted

if TYPE_CHECKING:
    from torch import Tensor, nn

Network = TypeVar("Network", bound="nn.Module")


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a file of tensors without running anything in it.

    Args:
        path: a safetensors file, or a torch file, of which `params_ema` is read if it is there,
            else `params`, else everything.
    Returns:
        the tensors by key, on the CPU; the metadata, empty for torch files.
    Raises:
        WeightsError: the file cannot be read.
        CheckpointError: the file is damaged, or of another kind.
    """
    path = Path(path)
    return _read_safetensors(path) if _is_safetensors(path) else (_read_torch(path), {})


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a file of tensors, which are not read; empty for torch files.

    Raises:
        WeightsError, CheckpointError: as `read_checkpoint`.
    """
    path = Path(path)
    return _read_safetensors(path, tensors=False)[1] if _is_safetensors(path) else {}


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors as safetensors, in one step.

    Args:
        tensors: contiguous, no two sharing memory.
    Raises:
        OutputError: the file cannot be written.
        ValueError, KeyError, RuntimeError: safetensors cannot hold the tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with drafted(path) as draft:
            save_file(tensors, draft, None if metadata is None else dict(metadata))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path} cannot be written: {reason}") from error


@contextmanager
def unfilled() -> Iterator[None]:
    """Networks built within this context have shapes only, and are filled later.

    The device that torch's layers leave open is the meta device here. That of `torch.device` would
    pass each call through a second function. Random initialisation is skipped separately, because
    for it torch would import modules that take a second of CPU time, even on the meta device.
    """
    from torch.overrides import TorchFunctionMode

    class Unfilled(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if getattr(func, "__module__", None) == "torch.nn.init":
                return args[0] if args else kwargs["tensor"]
            if kwargs.get("device", "given") is None:
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    with Unfilled():
        yield


def load_strictly(
    network: nn.Module, state: Mapping[str, Tensor], path: str | Path, kind: str
) -> None:
    """Gives a network exactly the tensors of a file, floating point ones as float32.

    Args:
        network: may be on the meta device; the tensors are not copied where they need no change.
        path, kind: names of the file and the network for error messages.
    Raises:
        CheckpointError: keys or shapes differ, or a floating-point tensor is stored as another type
            or sparsely; the first five of each kind of difference are named.
    """
    template = network.state_dict()
    expected, found = (
        {key: tuple(value.shape) for key, value in table.items()} for table in (template, state)
    )
    kinds = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "of another shape": [
            f"{key} {found[key]} instead of {shape}"
            for key, shape in expected.items()
            if key in found and found[key] != shape
        ],
        "of another type": [
            f"{key} {str(value.dtype).removeprefix('torch.')}{' sparse' * value.is_sparse}"
            for key, value in state.items()
            if key in template and template[key].is_floating_point()
            if value.is_sparse or not value.is_floating_point()
        ],
    }
    differences = "; ".join(
        f"{len(keys)} {name}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
        for name, keys in kinds.items()
        if keys
    )
    if differences:
        raise CheckpointError(f"{path} is not the {kind} that was expected: {differences}")
    network.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in state.items()}, assign=True
    )


def load_network(path: str | Path, build: Callable[[Mapping[str, Tensor]], Network]) -> Network:
    """The network of a file of tensors, in evaluation mode, on the CPU.

    Args:
        build: makes a network to hold these tensors, by key; its initial values are not used.
    Raises:
        WeightsError, CheckpointError: as `read_checkpoint` and `load_strictly`.
    """
    state, _ = read_checkpoint(path)
    with unfilled():
        network = build(state)
    load_strictly(network, state, path, type(network).__name__)
    return network.eval().requires_grad_(False)


def digest_of(tensors: Iterable[Tensor]) -> str:
    """Hexadecimal SHA-256 of tensors in half precision, in which weight files store them."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()


# Exceptions that unpickling damaged bytes raises, by pickle's documentation and by experiment.
DAMAGE = (
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


def _is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors rather than a torch file; raises as `read_checkpoint`."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    # Eight bytes of header length, which may look like a pickle's start, then the header's "{".
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return True
    if head.startswith((b"PK\x03\x04", b"\x80")):  # zip, and the bare pickle of old files
        return False
    raise CheckpointError(f"{path} is neither a torch file nor safetensors")


def _read_torch(path: Path) -> dict[str, Tensor]:
    import torch

    with path.open("rb") as file:
        mapped = file.read(2) == b"PK"  # not the bare pickle of old files
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except DAMAGE as error:
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


def _read_safetensors(
    path: Path, *, tensors: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            keys = file.keys() if tensors else ()
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
