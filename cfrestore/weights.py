"""Weight files: which there are, where they lie, and how one becomes a network.

Torch is imported where a file is opened, so that asking for a path costs nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cfrestore.checkpoint import load_strictly, read_checkpoint
from cfrestore.errors import CheckpointError, ConfigError, WeightsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cfrestore.models.codeformer import CodeFormer, CodeFormerConfig

S_LAB = "S-Lab License 1.0, non-commercial use only"
MIT = "MIT"
BSD = "BSD-3-Clause"


@dataclass(frozen=True)
class WeightFile:
    """One published file; none is part of this package, each keeps its own licence.

    Attributes:
        name: what the file is called here.
        file: what the file is called on disk.
        urls: where it is published; all give the same bytes.
        bytes: size, None where none is on record.
        sha256: lower-case hex digest, None where none is on record.
        licence: terms of the file.
        purpose: what it is for.

    Source: public records that agree; the inpainting and x4v3 digests rest on few of them.
    """

    name: str
    file: str
    urls: tuple[str, ...]
    bytes: int | None
    sha256: str | None
    licence: str
    purpose: str


def _release(repository: str, tag: str, file: str) -> str:
    return f"https://github.com/{repository}/releases/download/{tag}/{file}"


WEIGHT_FILES = (
    WeightFile(
        "codeformer",
        "codeformer.pth",
        (
            _release("sczhou/CodeFormer", "v0.1.0", "codeformer.pth"),
            "https://huggingface.co/datasets/Gourieff/ReActor/resolve/main/"
            "models/facerestore_models/codeformer-v0.1.0.pth",
        ),
        376_637_898,
        "1009e537e0c2a07d4cabce6355f53cb66767cd4b4297ec7a4a64ca4b8a5684b7",
        S_LAB,
        "face restoration, 512 px",
    ),
    WeightFile(
        "codeformer-inpainting",
        "codeformer_inpainting.pth",
        (_release("sczhou/CodeFormer", "v0.1.0", "codeformer_inpainting.pth"),),
        370_786_611,
        "b0d1b868c3dacf75d637bbcc0d4b3dd4ce2a064a338dfb4d35c740d3b4ae8797",
        S_LAB,
        "face inpainting",
    ),
    WeightFile(
        "codeformer-colorization",
        "codeformer_colorization.pth",
        (_release("sczhou/CodeFormer", "v0.1.0", "codeformer_colorization.pth"),),
        None,
        None,
        S_LAB,
        "face colorization",
    ),
    WeightFile(
        "vqgan",
        "vqgan_code1024.pth",
        (_release("sczhou/CodeFormer", "v0.1.0", "vqgan_code1024.pth"),),
        None,
        None,
        S_LAB,
        "the autoencoder alone",
    ),
    WeightFile(
        "retinaface",
        "detection_Resnet50_Final.pth",
        (_release("xinntao/facexlib", "v0.1.0", "detection_Resnet50_Final.pth"),),
        109_497_761,
        "6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d",
        MIT,
        "face detection",
    ),
    WeightFile(
        "mobilenet",
        "detection_mobilenet0.25_Final.pth",
        (_release("xinntao/facexlib", "v0.1.0", "detection_mobilenet0.25_Final.pth"),),
        1_789_735,
        "2979b33ffafda5d74b6948cd7a5b9a7a62f62b949cef24e95fd15d2883a65220",
        MIT,
        "face detection, small",
    ),
    WeightFile(
        "parsenet",
        "parsing_parsenet.pth",
        (_release("xinntao/facexlib", "v0.2.2", "parsing_parsenet.pth"),),
        85_331_193,
        "3d558d8d0e42c20224f13cf5a29c79eba2d59913419f945545d8cf7b72920de2",
        MIT,
        "face parsing",
    ),
    WeightFile(
        "realesrgan-x2",
        "RealESRGAN_x2plus.pth",
        (_release("xinntao/Real-ESRGAN", "v0.2.1", "RealESRGAN_x2plus.pth"),),
        67_061_725,
        "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
        BSD,
        "background enlargement",
    ),
    WeightFile(
        "realesrgan-x4v3",
        "realesr-general-x4v3.pth",
        (_release("xinntao/Real-ESRGAN", "v0.2.5.0", "realesr-general-x4v3.pth"),),
        4_885_111,
        "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
        BSD,
        "background enlargement, small",
    ),
)


def weight_file(name: str) -> WeightFile:
    """The row of the table with this name or file name.

    Raises:
        ConfigError: there is none; the nearest name is given.
    """
    rows = {key: row for row in WEIGHT_FILES for key in (row.name, row.file)}
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"there is no weight file called {name!r}{hint}")
    return rows[name]


def search_folders() -> tuple[Path, ...]:
    """Where weight files are looked for, first hit wins: $CFRESTORE_HOME, ./weights, the cache."""
    home = os.environ.get("CFRESTORE_HOME")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cfrestore"
    return (*([Path(home)] if home else []), Path("weights"), cache)


def locate(name: str) -> Path | None:
    """The path of a published file that is on this machine, verified; None if it is not.

    Raises:
        ConfigError: the table has no such name.
        WeightsError: the file differs from the SHA-256 on record, or cannot be read.
    """
    row = weight_file(name)
    path = next((p for folder in search_folders() if (p := folder / row.file).is_file()), None)
    if path is not None and row.sha256 is not None:
        found = _sha256(path)
        if found != row.sha256:
            raise WeightsError(
                f"{path} is not the published file: its SHA-256 is {found}, expected {row.sha256}"
            )
    return path


def missing(name: str) -> WeightsError:
    """The error that says that a published file is not here, where it was sought, where it is."""
    row = weight_file(name)
    folders = ", ".join(map(str, search_folders()))
    return WeightsError(f"{row.file} was not found in {folders}; it is published at {row.urls[0]}")


def shipped(name: str = "compact") -> Path:
    """The path of weights that come with this package.

    Raises:
        WeightsError: the installation is incomplete.
    """
    here = Path(__file__).parent
    file = f"{name}.safetensors"
    places = (here / "_shipped" / file, here.parent / "weights" / file)
    for path in places:
        if path.is_file():
            return path
    raise WeightsError(f"{file} is missing from this installation, sought as {places[0]}")


# What building a network from numbers that fit no network raises, in Python and in torch.
_MISFIT = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


def load_codeformer(path: str | Path, device: str | torch.device = "cpu") -> CodeFormer:
    """Opens a published `.pth`, or weights written by this project, as a network ready to use.

    The content decides, not the name. Weights written here carry their configuration; of a
    published file codebook size, layers, fused and image sides are read off the shapes.

    Returns:
        the network in evaluation mode, float32, on the device.
    Raises:
        WeightsError: the file cannot be read.
        CheckpointError: it is damaged, or is not a CodeFormer; the first five differing keys of
            each kind are named.
    """
    import torch

    from cfrestore.models.codeformer import CodeFormer, CodeFormerConfig

    state, metadata = read_checkpoint(path)
    try:
        if "config" in metadata:
            config = CodeFormerConfig.from_json(metadata["config"])
        else:
            config = deduce_config(state)
        # On the meta device nothing is allocated or drawn, only to be overwritten.
        with torch.device("meta"):
            network = CodeFormer(config)
    except (ConfigError, *_MISFIT) as error:
        raise CheckpointError(f"{path} describes no CodeFormer: {error}") from error
    load_strictly(network, state, path, "CodeFormer")
    return network.to(device).eval()


def deduce_config(state: Mapping[str, Tensor]) -> CodeFormerConfig:
    """The configuration of a checkpoint in the published layout, from its keys and shapes.

    Codebook size, layers, fused sides and image side are read off; the rest, and what a foreign
    file lacks, keeps the published value.

    Raises:
        ConfigError: no network has such shapes.
    """
    from cfrestore.models.codeformer import CodeFormerConfig
    from cfrestore.models.vqgan import VQGANConfig

    published = CodeFormerConfig()
    shape = published.autoencoder
    codebook, tokens = state.get("quantize.embedding.weight"), state.get("position_emb")
    code_side = shape.code_side if tokens is None else math.isqrt(len(tokens))
    shrinkage = shape.image_size // shape.code_side
    layers, sides = _numbers(state, "ft_layers."), _numbers(state, "fuse_convs_dict.")
    return CodeFormerConfig(
        autoencoder=VQGANConfig(
            image_size=code_side * shrinkage,
            codebook_size=published.autoencoder.codebook_size
            if codebook is None
            else len(codebook),
        ),
        layers=len(layers) or published.layers,
        connect=tuple(sides) or published.connect,
    )


def _numbers(keys: Mapping[str, Tensor], prefix: str) -> list[int]:
    """The distinct integers that follow the prefix in the keys, ascending."""
    parts = {key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix)}
    return sorted(int(part) for part in parts if part.isdecimal())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()
