"""What can be done to faces, and how each task differs from the others. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from cfrestore.errors import ConfigError

TaskName: TypeAlias = Literal["restoration", "inpainting", "colorization"]


@dataclass(frozen=True)
class Task:
    """One task, which has published weights of its own.

    Attributes:
        name: what callers and records call it.
        weights: name of its published weights in the table of weight files.
        participle: what has been done to a face, in one word.
        fidelity: the w that faces are always painted with; None: Options.fidelity.
        matched: whether the codes' features get the statistics of the input's, by latent AdaIN;
            None: as the network's configuration says.
        parses: whether a face parser limits what is pasted.
        has_compact: whether cfrestore comes with compact weights for it.

    Source: the published commands.
    """

    name: TaskName
    weights: str
    participle: str
    fidelity: float | None
    matched: bool | None
    parses: bool
    has_compact: bool

    @property
    def mark(self) -> str:
        """What the names of results end with, before the extension."""
        return f".{self.participle}"

    def matches(self, otherwise: bool) -> bool:
        """Whether latent AdaIN is used; if the task leaves that open, the value of `otherwise`."""
        return otherwise if self.matched is None else self.matched


RESTORATION = Task(
    "restoration",
    "codeformer",
    "restored",
    fidelity=None,
    matched=None,
    parses=True,
    has_compact=True,
)
INPAINTING = Task(
    "inpainting",
    "codeformer-inpainting",
    "inpainted",
    fidelity=1,
    matched=False,
    parses=False,  # the holes say what is pasted
    has_compact=False,
)
COLORIZATION = Task(
    "colorization",
    "codeformer-colorization",
    "colorized",
    fidelity=0,
    matched=True,
    parses=True,
    has_compact=False,
)

TASKS = (RESTORATION, INPAINTING, COLORIZATION)


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ConfigError: there is none.
    """
    for task in TASKS:
        if task.name == name:
            return task
    raise ConfigError(f"there is no task {name!r}, only {', '.join(task.name for task in TASKS)}")
