"""The Hugging Face hub as a second source, and the user's own cache of it as a first one.

The package is imported where the hub is asked, because few runs need to.
"""

from __future__ import annotations

from pathlib import Path

from cfrestore.weights.table import HubFile


def hub_url(file: HubFile) -> str | None:
    """Where the hub has a file, at $HF_ENDPOINT if set; None if $HF_HUB_OFFLINE forbids to ask."""
    from huggingface_hub import constants, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return None
    return hf_hub_url(
        file.repository, file.path, repo_type=file.kind, revision=file.revision or "main"
    )


def hub_cached(file: HubFile) -> Path | None:
    """The copy of a file in the user's own cache of the hub, without asking the hub."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(
            file.repository, file.path, repo_type=file.kind, revision=file.revision
        )
    except OSError:  # a cache that cannot be read holds nothing for us
        return None
    return Path(found) if isinstance(found, str) else None
