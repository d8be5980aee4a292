"""Segments of coded frames on the disk, from which a run that was cut short continues."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cfrestore.files import drafted
from cfrestore.video.coding import CodedFrame


@dataclass(frozen=True, eq=False)
class Header:
    """What is known of a segment without its frames.

    Attributes:
        shown: when its frames are shown, in the order in which they are decoded.
        failures: how often a face was left as it was, by track and reason.
    """

    shown: tuple[int, ...]
    failures: Counter[tuple[int, str]]


def write_segment(
    path: Path, coded: Sequence[CodedFrame], failures: Counter[tuple[int, str]]
) -> None:
    """Writes coded frames, and the failures in them, to a file in one step.

    Raises:
        OSError: the system refuses.
    """
    tensors = {
        "pts": np.array([frame.pts for frame in coded], np.int64),
        "is_key": np.array([frame.is_key for frame in coded], np.bool_),
        "length": np.array([len(frame.data) for frame in coded], np.int64),
        "data": np.frombuffer(b"".join(frame.data for frame in coded), np.uint8),
    }
    counts = [[track, reason, count] for (track, reason), count in failures.items()]
    with drafted(path) as draft:
        draft.write_bytes(save(tensors, {"failures": json.dumps(counts)}))


def read_header(path: Path) -> Header | None:
    """What is known of a segment; None if there is no such file."""
    try:
        with safe_open(path, "numpy") as file:
            counts = json.loads(file.metadata()["failures"])
            failures = Counter({(track, reason): count for track, reason, count in counts})
            return Header(tuple(map(int, file.get_tensor("pts"))), failures)
    except (OSError, SafetensorError):
        return None


def read_segment(path: Path) -> Iterator[CodedFrame]:
    """The coded frames in a file.

    Raises:
        OSError: it cannot be read.
    """
    with safe_open(path, "numpy") as file:
        pts, is_key, length, data = map(file.get_tensor, ("pts", "is_key", "length", "data"))
    ends = np.cumsum(length)
    for time, key, start, end in zip(pts, is_key, ends - length, ends, strict=True):
        yield CodedFrame(int(time), bool(key), data[start:end].tobytes())
