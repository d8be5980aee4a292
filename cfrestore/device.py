"""What the numbers are computed on: the only file that says cuda, mps, bf16 or inference mode."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext

import torch

from cfrestore.errors import ConfigError


def available_devices() -> tuple[str, ...]:
    """What choose_device accepts here besides auto, the fastest first; cpu is always the last."""
    cards = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    metal = ["mps"] if torch.backends.mps.is_available() else []
    return (*cards, *metal, "cpu")


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name, if this machine has it.

    Args:
        name: auto (CUDA, else Metal, else CPU), cpu, cuda (the current card), cuda:N or mps.
    Raises:
        ConfigError: the name is unknown or the device is absent; the text lists what there is.
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


def describe(device: torch.device) -> str:
    """One line for people: kind of device, its name, and memory or threads."""
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return f"{device} ({card.name}, {card.total_memory / 2**30:.0f} GiB)"
    if device.type == "mps":
        return "mps (Apple GPU)"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'' if threads == 1 else 's'})"


def inference() -> AbstractContextManager[object]:
    """The context every network call outside training runs in: no gradients are recorded."""
    return torch.inference_mode()


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[object]:
    """The context of mixed precision: bfloat16 on CUDA when enabled, else float32 throughout."""
    if enabled and device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def synchronize(device: torch.device) -> None:
    """Returns when everything queued on the device is done, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a CUDA card; 0 elsewhere, where main memory serves."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def autotune() -> None:
    """Lets cuDNN try its algorithms once for each shape; for work whose shapes repeat."""
    torch.backends.cudnn.benchmark = True


def own_device(device: torch.device, index: int) -> torch.device:
    """The index-th device of that kind, made this process's current one."""
    own = torch.device(device.type, index)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    return own
