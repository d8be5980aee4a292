"""Records for programs: one per input, and one in the metadata of each result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cfrestore import __version__

if TYPE_CHECKING:
    from cfrestore.batch import Job, Outcome
    from cfrestore.pipeline import Pipeline
    from cfrestore.procedure import Procedure

Facts = Mapping[str, "str | None"]
"""The part shared by all records of a run."""

UNKNOWN: Facts = dict.fromkeys(
    (
        "model",
        "weights",
        "detector",
        "device",
        "precision",
        "code_precision",
        "backend",
        "upsampler",
    )
)
"""Facts of a run in which nothing was loaded."""


def facts_of(pipeline: Pipeline) -> Facts:
    """Names and hashes of the networks, and the device and precision that run them."""
    from cfrestore.device import describe

    weights = pipeline.identity.get("model")
    return {
        "model": pipeline.model_name,
        "weights": None if weights is None else str(weights),
        "detector": pipeline.detector_name,
        "device": describe(pipeline.device),
        "precision": pipeline.painted_in,
        "code_precision": pipeline.execution.code_precision.value,
        "backend": pipeline.execution.backend,
        "upsampler": None if pipeline.upsampler is None else pipeline.upsampler.path.name,
    }


def record_of(outcome: Outcome, facts: Facts) -> dict[str, Any]:
    """The record of one input, as described in docs/json.md."""
    return {**outcome.to_json(), **facts}


def record_of_plan(job: Job) -> dict[str, Any]:
    """The record of an input that was only planned."""
    from cfrestore.batch import Outcome

    return {**record_of(Outcome(job), UNKNOWN), "status": "planned"}


def provenance_of(pipeline: Pipeline, procedure: Procedure) -> dict[str, str]:
    """The provenance that results record, as `write_photo` takes it."""
    facts = {
        "version": __version__,
        "task": procedure.settings.get("task"),
        "model": pipeline.model_name,
        "weights": pipeline.identity.get("model"),
        "backend": pipeline.execution.backend,
        "upsampler": None if pipeline.upsampler is None else pipeline.upsampler.path.name,
        "fidelity": procedure.settings.get("fidelity"),
    }
    return {name: str(value) for name, value in facts.items() if value is not None}
