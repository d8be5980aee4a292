"""Weight files: lists, locates and fetches them, and loads them as networks.

Torch is imported only where a file is opened, so that looking up a path costs nothing.
"""

from cfrestore.weights.codeformer import deduce_config, load_codeformer
from cfrestore.weights.conversion import convert
from cfrestore.weights.digests import expected_sha256
from cfrestore.weights.environment import offline, search_folders, store_folder
from cfrestore.weights.fetching import Progress, UnreachableError, fetch, sources
from cfrestore.weights.licences import TERMS, Terms
from cfrestore.weights.prior import load_prior
from cfrestore.weights.store import locate, missing, remove, shipped, verify
from cfrestore.weights.table import (
    APACHE,
    MIT,
    S_LAB,
    WEIGHT_FILES,
    HubFile,
    WeightFile,
    weight_file,
)

__all__ = [
    "APACHE",
    "MIT",
    "S_LAB",
    "TERMS",
    "WEIGHT_FILES",
    "HubFile",
    "Progress",
    "Terms",
    "UnreachableError",
    "WeightFile",
    "convert",
    "deduce_config",
    "expected_sha256",
    "fetch",
    "load_codeformer",
    "load_prior",
    "locate",
    "missing",
    "offline",
    "remove",
    "search_folders",
    "shipped",
    "sources",
    "store_folder",
    "verify",
    "weight_file",
]
