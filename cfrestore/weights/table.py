"""The table of weight files: where each is published, and under which terms."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from cfrestore.errors import ConfigError

S_LAB = "S-Lab License 1.0, non-commercial use only"
MIT = "MIT"
BSD = "BSD-3-Clause"
APACHE = "Apache-2.0"


@dataclass(frozen=True)
class HubFile:
    """A file on the Hugging Face hub.

    Attributes:
        repository: owner and name.
        path: of the file in the repository.
        kind: model or dataset.
        revision: commit; None: the newest, because none is on record. The SHA-256 of the row is
            checked in any case.
    """

    repository: str
    path: str
    kind: str = "model"
    revision: str | None = None


@dataclass(frozen=True)
class WeightFile:
    """A published file, which has its own licence, or one that comes with cfrestore.

    Attributes:
        name: its name in cfrestore.
        file: its name on disk.
        urls: where it is published, best first; all supply the same bytes. Empty: it comes with
            cfrestore.
        bytes: size, None if not on record.
        sha256: lower-case hex digest, None if not on record.
        licence: terms of the file.
        purpose: what it is for.
        hub: the same bytes on the Hugging Face hub, tried when the urls fail.

    Source: several public records, which agree; few of them list the digest of
        codeformer-inpainting, and only one lists that of realesr-general.
    """

    name: str
    file: str
    urls: tuple[str, ...]
    bytes: int | None
    sha256: str | None
    licence: str
    purpose: str
    hub: HubFile | None = None

    @property
    def shipped(self) -> bool:
        """Whether it comes with cfrestore, so that it is neither fetched nor removed."""
        return not self.urls


def _release(repository: str, tag: str, file: str) -> str:
    return f"https://github.com/{repository}/releases/download/{tag}/{file}"


WEIGHT_FILES = (
    WeightFile(
        "codeformer",
        "codeformer.pth",
        (_release("sczhou/CodeFormer", "v0.1.0", "codeformer.pth"),),
        376_637_898,
        "1009e537e0c2a07d4cabce6355f53cb66767cd4b4297ec7a4a64ca4b8a5684b7",
        S_LAB,
        "face restoration, 512 px",
        HubFile(  # no revision of this mirror is on record
            "Gourieff/ReActor", "models/facerestore_models/codeformer-v0.1.0.pth", "dataset"
        ),
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
        "realesrgan",
        "RealESRGAN_x2plus.pth",
        (_release("xinntao/Real-ESRGAN", "v0.2.1", "RealESRGAN_x2plus.pth"),),
        67_061_725,
        "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
        BSD,
        "up-sampling",
    ),
    WeightFile(
        "realesr-general",
        "realesr-general-x4v3.pth",
        (_release("xinntao/Real-ESRGAN", "v0.2.5.0", "realesr-general-x4v3.pth"),),
        4_885_111,
        "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
        BSD,
        "up-sampling, small",
    ),
    WeightFile(
        "compact",
        "compact.safetensors",
        (),
        29_767_702,
        "7cdbd3218b2421b1d079e2acc3c7db2851524bcc00a34004c97e718a49fe13f8",
        APACHE,
        "face restoration, small; comes with cfrestore",
    ),
    WeightFile(
        "compact-upsampler",
        "compact-upsampler.safetensors",
        (),
        235_656,
        "d33a925bc5e12b2a2832df56e67f4b0cc394486e0a261d919db4353a811ae562",
        APACHE,
        "up-sampling, smallest; comes with cfrestore",
    ),
)


def weight_file(name: str) -> WeightFile:
    """The row of the table with this name or file name.

    Raises:
        ConfigError: there is none; the nearest name is given, or all of them.
    """
    rows = {key: row for row in WEIGHT_FILES for key in (row.name, row.file)}
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=1)
        names = ", ".join(row.name for row in WEIGHT_FILES)
        hint = f", did you mean {near[0]!r}?" if near else f"; choose one of: {names}"
        raise ConfigError(f"there is no weight file called {name!r}{hint}")
    return rows[name]
