"""The Hugging Face hub as a fallback source, and the user's local cache of it.

The package is imported only where it is used, because few runs need it.
"""

from __future__ import annotations

from pathlib import Path

from cfrestore.weights.table import HubFile


def hub_url(file: HubFile) -> str | None:
    """The URL of a file on the hub, at $HF_ENDPOINT if set; None if $HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return None
    return hf_hub_url(
        file.repository, file.path, repo_type=file.kind, revision=file.revision or "main"
    )


def hub_cached(file: HubFile) -> Path | None:
    """The copy of a file in the user's local cache of the hub, without a connection."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(
            file.repository, file.path, repo_type=file.kind, revision=file.revision
        )
    except OSError:  # an unreadable cache counts as empty
        return None
    return Path(found) if isinstance(found, str) else None
