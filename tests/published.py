"""Weight files in the published layouts, with random instead of published numbers."""

import importlib.util
from pathlib import Path
from types import ModuleType

import torch


def random_state(shared: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("random_state", shared / "golden/random_state.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_published_file(shared: Path, name: str, path: Path, seed: int = 1001) -> Path:
    """A file in the published layout of that name, with random numbers."""
    state = random_state(shared).state(str(shared / f"spec/statedict_{name}.json"), seed)
    torch.save({"params_ema": {k: torch.from_numpy(v) for k, v in state.items()}}, path)
    return path
