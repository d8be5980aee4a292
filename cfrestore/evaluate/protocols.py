"""The test sets of the published comparisons: number of faces, and where to get them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cfrestore.errors import ConfigError


@dataclass(frozen=True)
class Protocol:
    """A published test.

    Attributes:
        name: its name in the option.
        faces: number of faces.
        clean: whether it includes clean faces to compare with.
        metrics: those that are published for it, by their names in METRICS.
        source: what to download, in words.
    """

    name: str
    faces: int
    clean: bool
    metrics: tuple[str, ...]
    source: str


def _real(name: str, faces: int, source: str) -> Protocol:
    return Protocol(name, faces, False, ("fid", "niqe"), source)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "celeba-test",
            3000,
            True,
            ("psnr", "ssim", "lpips", "fid", "niqe", "ids", "lmd"),
            "CelebA-Test: 3000 faces of CelebA-HQ, 512 px, damaged, and the same clean; offered by "
            "the projects GFP-GAN and VQFR",
        ),
        _real(
            "lfw-test",
            1711,
            "LFW-Test: the first face of each person of Labeled Faces in the Wild, cut out and "
            "aligned, 512 px; offered by the project GFP-GAN",
        ),
        _real(
            "webphoto-test",
            407,
            "WebPhoto-Test: 407 faces of old photographs from the web, cut out and aligned, "
            "512 px; offered by the project GFP-GAN",
        ),
        _real(
            "wider-test",
            970,
            "WIDER-Test: 970 badly damaged faces of WIDER Face, cut out and aligned, 512 px; "
            "offered by the project CodeFormer",
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name; raises ConfigError if there is none."""
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol {name!r} is unknown; choose one of: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def check_protocol(
    protocol: Protocol, faces: Sequence[str], *, clean: bool, any_count: bool = False
) -> None:
    """Checks a set of faces against a published test.

    Args:
        faces: names of the faces to be measured.
        clean: whether they are compared with clean ones.
        any_count: accept a part of the set.
    Raises:
        ConfigError: the number of faces differs, or clean faces are missing or not expected; the
            text says what to get.
    """
    if clean != protocol.clean:
        wanted = "is compared with clean faces" if protocol.clean else "has no clean faces"
        raise ConfigError(f"{protocol.name} {wanted}. {protocol.source}")
    if len(faces) != protocol.faces and not any_count:
        raise ConfigError(
            f"{protocol.name} has {protocol.faces} faces, found {len(faces)}; --any-count measures "
            f"them nevertheless. {protocol.source}"
        )
