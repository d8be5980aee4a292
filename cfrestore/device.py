"""Chooses device, precision and inference mode; no other module does.

Codes are chosen in float32 by default: a code is an argmax, and rounding errors change some codes,
each of which repaints a patch of the face. Painting is two thirds of the operations, and errors do
not grow there, so it may use a lower precision. A separate option chooses codes in less too.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from enum import Enum
from importlib.util import find_spec
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np
import torch

from cfrestore.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from cfrestore.options import BatchSize

P = ParamSpec("P")
R = TypeVar("R")

CPU = torch.device("cpu")

FACES_AT_ONCE = 16
"""The first batch size that auto tries where batches save time."""

_COMPUTING = threading.RLock()

_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio, which scatters the keys of `generator_for`."""


@dataclass
class _OneThread:
    """The state of `one_thread`.

    Attributes:
        users: number of open contexts.
        before: number of torch's threads before the first was opened.
        lock: held while these change.
        own: of each thread; `own.reduced` is true if it left a context that was not the last, so
            that its own number may still be 1.
    """

    users: int = 0
    before: int = 1
    lock: threading.Lock = field(default_factory=threading.Lock)
    own: threading.local = field(default_factory=threading.local)


_ONE_THREAD = _OneThread()

_TRIMMING = list[Callable[[int], int]]()
"""glibc's malloc_trim once `reuse_memory` has been called; else empty."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # in malloc.h

# Parts of the messages by which torch reports a lack of memory without an exception type for it.
# The last is oneDNN's, if there is no room for the code or the scratch space of a convolution.
_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "ALLOC_FAILED",
    "could not create a primitive",
)


class Precision(Enum):
    """The precision of convolutions and, for bf16 and fp16, of all other matrix products."""

    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"


@dataclass(frozen=True)
class Execution:
    """How a network computes; `network.choose_execution` makes one from names.

    Attributes:
        device: where the network is.
        precision: precision of painting.
        code_precision: precision of choosing codes; fp16 is the encoder's, see `after_encoding`.
        compile: whether the network is compiled for full batches.
        backend: the runtime, see `backends.PACKAGES`.
    """

    device: torch.device = CPU
    precision: Precision = Precision.FP32
    code_precision: Precision = Precision.FP32
    compile: bool = False
    backend: str = "torch"


ON_CPU = Execution()
"""Float32 on the CPU, with torch."""


_REDUCED = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}

_Offered = dict[Precision, tuple[str, ...]]
"""The kinds of devices that offer each precision."""

_EVERYWHERE = ("cuda", "cpu", "mps")

_FOR_PAINTING: _Offered = {
    Precision.FP32: _EVERYWHERE,
    Precision.TF32: ("cuda",),
    **dict.fromkeys(_REDUCED, ("cuda", "cpu")),
}

_FOR_CODES: _Offered = {
    Precision.FP32: _EVERYWHERE,
    Precision.TF32: ("cuda",),
    Precision.FP16: ("cuda",),  # most CPUs are many times slower in it
}


def available_devices() -> tuple[str, ...]:
    """The names besides auto that choose_device accepts here, fastest first, cpu last."""
    cards = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    metal = ["mps"] if torch.backends.mps.is_available() else []
    return (*cards, *metal, "cpu")


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name, if this machine has it.

    Args:
        name: auto (CUDA, else Metal, else CPU), cpu, cuda (the current card), cuda:N or mps.
    Raises:
        ConfigError: the name is unknown or the device is absent; the text lists the choices.
    """
    available = available_devices()
    wanted = available[0] if name == "auto" else name
    if wanted == "cuda" or (name == "auto" and wanted.startswith("cuda")):
        wanted = f"cuda:{torch.cuda.current_device()}" if "cuda:0" in available else "cuda"
    if wanted in available:
        return torch.device(wanted)
    known = re.fullmatch(r"cpu|mps|cuda(:\d+)?", name) is not None
    problem = "is not available here" if known else "is unknown"
    raise ConfigError(f"device {name!r} {problem}; choose one of: auto, {', '.join(available)}")


def choose_precision(name: str, device: torch.device) -> Precision:
    """The precision of that name for painting, if the device offers it.

    Args:
        name: auto, fp32, tf32, bf16 or fp16; auto is fp32 everywhere.
        device: where the faces are painted.
    Raises:
        ConfigError: the name is unknown, or the device does not offer it.
    """
    return _precision(name, device, _FOR_PAINTING)


def choose_code_precision(name: str, device: torch.device) -> Precision:
    """The precision of that name for choosing codes, if the device offers it.

    Args:
        name: auto, fp32, tf32 or fp16; auto is fp32 everywhere.
        device: where the codes are chosen.
    Raises:
        ConfigError: as `choose_precision`.
    """
    return _precision(name, device, _FOR_CODES)


def choose_parsing_precision(name: str, device: torch.device) -> Precision:
    """The precision for parsing faces, given the name of the requested precision.

    Only the largest logit counts, and the mask is blurred, so bf16 is used on CPUs that compute in
    it natively, unless fp32 was requested. Elsewhere it is always fp32.
    """
    reduces = name != "fp32" and device.type == "cpu" and _has_native_bf16()
    return Precision.BF16 if reduces else Precision.FP32


def _has_native_bf16() -> bool:
    """Whether this processor multiplies bf16; others are slower in bf16 than in float32."""
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public ones
    return any(getattr(torch.cpu, question, bool)() for question in questions)


def _precision(name: str, device: torch.device, offered: _Offered) -> Precision:
    known = ["auto", *(precision.value for precision in offered)]
    if name not in known:
        raise ConfigError(f"precision {name!r} is unknown; choose one of: {', '.join(known)}")
    precision = Precision.FP32 if name == "auto" else Precision(name)
    if device.type not in offered[precision]:
        raise ConfigError(f"precision {name} is not offered on {device.type}; choose fp32")
    return precision


def choose_mixed(wanted: bool | None, device: torch.device) -> bool:
    """Whether to train in mixed precision: as requested, by default on CUDA."""
    return device.type == "cuda" if wanted is None else wanted


def check_compiling(device: torch.device) -> None:
    """Raises ConfigError if networks cannot be compiled for the device, or should not be."""
    if device.type != "cuda":
        raise ConfigError(
            f"compile is for CUDA, not for {device.type}; on the CPU it took a minute, and the "
            "result was slower"
        )
    if find_spec("triton") is None:
        raise ConfigError("compiling needs the package triton, which is not installed")
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise ConfigError("compiling needs a C compiler: gcc, clang, or what the variable CC names")


def faces_at_once(wanted: BatchSize, device: torch.device) -> int:
    """The number of faces per batch, given the requested number.

    On the CPU always one: there the last bits of a result depend on whether its batch had one face
    or more, and batches of 512 px save no time.
    """
    if device.type == "cpu":
        return 1
    return FACES_AT_ONCE if wanted == "auto" else wanted


def reuse_memory() -> None:
    """Tells glibc to keep freed blocks of up to 256 MiB for reuse.

    By default it returns each to the system, which then supplies zeroed pages one by one: for a
    network on the CPU that takes a third of the time. The setting affects the whole process, so
    programs should make it, not libraries. With other C libraries nothing happens.
    """
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            library = ctypes.CDLL(None)
            library.mallopt(_MMAP_THRESHOLD, 256 << 20)
            library.mallopt(_TRIM_THRESHOLD, 1 << 30)
            _TRIMMING[:] = [library.malloc_trim]


def spare_memory(layer: nn.Module) -> None:
    """Returns free memory to the system whenever inference reaches the layer.

    For a layer that needs larger blocks than those that `reuse_memory` keeps, these would stay
    allocated unused, just when the network needs the most memory. In programs that do not call
    `reuse_memory`, and in training, nothing happens.
    """
    layer.register_forward_pre_hook(_trim)


def _trim(*_: object) -> None:
    if _TRIMMING and torch.is_inference_mode_enabled():
        _TRIMMING[0](0)


def describe(device: torch.device) -> str:
    """One line for display: kind of device, its name, and memory or threads."""
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return f"{device} ({card.name}, {card.total_memory / 2**30:.0f} GiB)"
    if device.type == "mps":
        return "mps (Apple GPU)"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'' if threads == 1 else 's'})"


def cuda_version() -> str | None:
    """The CUDA version that torch was built with, or None."""
    return torch.version.cuda


@contextmanager
def inference(*, alone: bool = True) -> Iterator[None]:
    """The context of every network call outside training, for one thread at a time.

    No gradients are recorded, and float32 is exact: by default torch rounds the factors of
    convolutions on CUDA to TF32, whose 10 bits are too few to keep the codes the same. That setting
    affects the whole process, so two threads cannot have different ones.

    Args:
        alone: false for a small network on the CPU, which may run beside others.
    Raises:
        MemoryError: the device, GPU or CPU, is out of memory.
        ConfigError: compiling the network failed.
    """
    with _alone() if alone else nullcontext(), torch.inference_mode():
        try:
            yield
        except RuntimeError as error:
            if any(words in str(error) for words in _OUT_OF_MEMORY):
                raise MemoryError(str(error)) from error
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                lines = (line for line in str(error).splitlines() if not line.endswith("raised:"))
                reason = next(lines, type(error).__name__)
                raise ConfigError(f"the network cannot be compiled here: {reason}") from error
            raise


@contextmanager
def one_thread() -> Iterator[None]:
    """The context in which torch uses a single thread for each thread of the program.

    The last bits of a sum depend on how many threads share it, so this makes results the same on
    machines with different numbers of cores. The setting affects the whole process until the last
    such context is left.
    """
    with _ONE_THREAD.lock:
        if not _ONE_THREAD.users and not getattr(_ONE_THREAD.own, "reduced", False):
            _ONE_THREAD.before = torch.get_num_threads()
        _ONE_THREAD.users += 1
    try:
        torch.set_num_threads(1)  # in each thread, as torch may keep the number per thread
        yield
    finally:
        with _ONE_THREAD.lock:
            _ONE_THREAD.users -= 1
            _ONE_THREAD.own.reduced = _ONE_THREAD.users > 0
            if not _ONE_THREAD.users:
                torch.set_num_threads(_ONE_THREAD.before)


@contextmanager
def _alone() -> Iterator[None]:
    """The context of one thread at a time, with float32 exact everywhere."""
    with _COMPUTING, _tf32(allowed=False):
        yield


@contextmanager
def _tf32(*, allowed: bool) -> Iterator[None]:
    """Switches TF32 on or off for convolutions and matrix products; restores both later.

    Since torch 2.9, products have a new switch besides the old one. Where the two differ, reading
    the old one raises, as torch's compiler does; so it is changed too, but only if it differs.
    """
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    switches = (cudnn.conv, products) if hasattr(cudnn, "conv") else (cudnn, products)
    new = switches[0] is not cudnn
    name = "fp32_precision" if new else "allow_tf32"
    value = ("tf32" if allowed else "ieee") if new else allowed
    before = [getattr(switch, name) for switch in switches]
    differs = new and (before[1] == "tf32") != allowed
    try:
        if differs:
            products.allow_tf32 = allowed
        for switch in switches:
            setattr(switch, name, value)
        yield
    finally:
        if differs:
            products.allow_tf32 = not allowed
        for switch, earlier in zip(switches, before, strict=True):
            setattr(switch, name, earlier)


def reduced(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which the device computes in that precision, used within `inference`.

    Each precision applies to convolutions and matrix products.
    """
    if precision in _REDUCED:
        return torch.autocast(device.type, dtype=_REDUCED[precision])
    return _tf32(allowed=True) if precision is Precision.TF32 else nullcontext()


def after_encoding(precision: Precision) -> Precision:
    """The precision of choosing codes behind the encoder, if the encoder computes in that one.

    The transformer's products lose more codes in fp16 than the encoder's convolutions do.
    """
    return Precision.TF32 if precision is Precision.FP16 else precision


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compiles a function, at its first call for each set of shapes, to fuse elementwise steps.

    CUDA graphs are not used: for the batches that justify compiling, kernel launches cost little,
    and torch's CUDA graphs belong to one thread and overwrite their earlier results.
    """
    return torch.compile(function, fullgraph=True)


def settle(network: nn.Module, device: torch.device) -> None:
    """Moves a network to the device; on CUDA its weights become channels last, like the faces.

    Otherwise each convolution there would reorder its weights at every call.
    """
    network.to(device)
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)


def generator_for(device: torch.device, *keys: int) -> torch.Generator:
    """A generator whose stream depends on the keys alone, so that no state needs to be saved."""
    seed = 0
    for key in keys:
        seed = (seed ^ key) * _GOLDEN % 2**64
        seed ^= seed >> 29
    return torch.Generator(device).manual_seed(seed)


def upload(arrays: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """Copies arrays of one shape to the device as one tensor, in a single asynchronous transfer."""
    shape, pinned = (len(arrays), *arrays[0].shape), device.type == "cuda"
    host = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
    np.stack(arrays, out=host.numpy())
    return host.to(device, non_blocking=pinned)


def download(values: Tensor) -> NDArray[np.uint8]:
    """Copies bytes from the device to main memory, in a single transfer, and waits for it."""
    host = values.to("cpu", non_blocking=values.device.type == "cuda")  # torch then pins the memory
    synchronize(values.device)
    return np.asarray(host.numpy(), np.uint8)


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[object]:
    """The context of mixed-precision training: bfloat16 if enabled, else float32 throughout."""
    return reduced(device, Precision.BF16 if enabled else Precision.FP32)


def synchronize(device: torch.device) -> None:
    """Waits until everything queued on the device is done, so that it can be timed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a CUDA card; 0 elsewhere, where main memory is used."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def autotune() -> None:
    """Lets cuDNN benchmark its algorithms once per shape, for work whose shapes repeat."""
    torch.backends.cudnn.benchmark = True


def own_device(device: torch.device, index: int) -> torch.device:
    """Makes the device of that kind and index the current one of this process; returns it."""
    own = torch.device(device.type, index)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    return own
