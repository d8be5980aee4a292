"""Downloads weight files before the work begins, with messages and a progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cfrestore.cli.report import silent
from cfrestore.errors import WeightsError
from cfrestore.weights import (
    Progress,
    UnreachableError,
    WeightFile,
    fetch,
    locate,
    missing,
    offline,
    store_folder,
    weight_file,
)

if TYPE_CHECKING:
    from rich.console import Console


def supply(names: Sequence[str], console: Console, *, required: bool) -> None:
    """Fetches the published files that are not on this machine, after announcing each.

    Args:
        names: the files' names in the table of weight files.
        console: for messages; a terminal also shows a bar.
        required: whether a failure is an error or only a note; without a network, only the first
            failure is noted.
    Raises:
        ConfigError: the table has no such name.
        WeightsError: a local file is wrong, or a required one cannot be obtained.
    """
    for row in (weight_file(name) for name in names):
        if locate(row.name) is not None:
            continue
        if offline():
            if required:
                raise missing(row.name)
            continue
        console.print(
            f"fetching {row.file}: {row.purpose}; {size_of(row)}; {row.licence}; "
            f"from {row.urls[0]} to {store_folder()}"
        )
        try:
            fetch_with_bar(row, console)
        except WeightsError as error:
            if required:
                raise
            console.print(f"note: {error} (--offline does without)")
            if isinstance(error, UnreachableError):
                return


def supply_weights(model: str, console: Console) -> tuple[Path, str]:
    """Path and name of the restoration weights that --model selects, fetched if needed.

    Prints notes on the choice.

    Raises:
        WeightsError, CheckpointError, ConfigError: as `choose_weights`.
    """
    from cfrestore.network import choose_weights

    if model in ("auto", "published"):
        supply(["codeformer"], console, required=model == "published")
    path, name, notes = choose_weights(model)
    for note in notes:
        console.print(f"note: {note}")
    return path, name


def fetch_with_bar(row: WeightFile, console: Console) -> Path:
    """Fetches a file, with a progress bar on terminals; raises as `fetch` does."""
    from rich import progress as rich

    bar = rich.Progress(
        "{task.description}",
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
        console=console if console.is_terminal else silent(),
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(row.file, total=row.bytes)

        def report(progress: Progress) -> None:
            if progress.remark:
                console.print(f"note: {progress.remark}")
            else:
                bar.update(task, completed=progress.done, total=progress.total)

        return fetch(row.name, report)


def size_of(row: WeightFile) -> str:
    """The size of a file, for display."""
    return "size not recorded" if row.bytes is None else f"{row.bytes / 1e6:.1f} MB"
