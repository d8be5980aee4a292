"""The Frechet distance between two sets of features, each modelled as a Gaussian."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cfrestore.checkpoint import DAMAGE
from cfrestore.errors import CheckpointError, ConfigError, WeightsError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Statistics:
    """The Gaussian that models a set of features.

    Attributes:
        mean: (D,).
        covariance: (D,D).
    """

    mean: Floats
    covariance: Floats

    @classmethod
    def of(cls, features: Sequence[NDArray[Any]]) -> Statistics:
        """The mean of features (D,) and their covariance over N - 1.

        Raises:
            ConfigError: there are fewer than two.
        """
        if len(features) < 2:
            raise ConfigError(f"statistics need 2 faces at least, found {len(features)}")
        table = np.stack(features).astype(np.float64)
        return cls(table.mean(0), np.cov(table, rowvar=False))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^(1/2)), A and B being the covariances.

    The trace of (A B)^(1/2) is computed from A^(1/2) B A^(1/2), which has the same eigenvalues and
    is symmetric, so that the result is always real.

    Raises:
        ConfigError: the numbers of dimensions differ.
    Source: Heusel et al. (2017).
    """
    if a.mean.shape != b.mean.shape:
        found = f"{len(a.mean)} and {len(b.mean)}"
        raise ConfigError(f"statistics of different networks cannot be compared: {found} features")
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(0)).sum()
    distance = np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance)
    return float(max(0.0, distance - 2 * shared))


def read_statistics(path: Path) -> Statistics:
    """Reads statistics from a file: .npz with `mu` and `sigma`, or .pth with `mean` and `cov`.

    Statistics of clean faces, such as FFHQ, are published in both forms. No code in the file is
    run.

    Raises:
        WeightsError: it cannot be read.
        CheckpointError: it holds no statistics.
    """
    try:
        content = _read_npz(path) if path.suffix == ".npz" else _read_torch(path)
        names = ("mu", "sigma") if "mu" in content else ("mean", "cov")
        mean, covariance = (np.asarray(content[name], np.float64) for name in names)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except (*DAMAGE, BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path} holds neither mu and sigma nor mean and cov") from error
    if mean.ndim != 1 or covariance.shape != mean.shape * 2 or not np.isfinite(covariance).all():
        raise CheckpointError(f"{path} has statistics of shapes {mean.shape}, {covariance.shape}")
    return Statistics(mean, covariance)


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_torch(path: Path) -> dict[str, Any]:
    import torch

    # The function by which arrays are unpickled, under the old and the new name of its module.
    rebuild: Any = np.ones(1).__reduce__()[0]
    names = [f"{module}.multiarray._reconstruct" for module in ("numpy.core", "numpy._core")]
    allowed: list[Any] = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8"))]
    allowed += [(rebuild, name) for name in names]
    with torch.serialization.safe_globals(allowed):
        content = torch.load(path, map_location="cpu", weights_only=True)
    return dict(content)
