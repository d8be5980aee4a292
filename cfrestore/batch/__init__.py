"""Batches of pictures: jobs are planned before any work, overlapped, recorded, and resumed."""

from cfrestore.batch.engine import PIXELS_AHEAD, WORKERS, run
from cfrestore.batch.inputs import find_pictures, read_list
from cfrestore.batch.job import COMPARED, CROPS, MARK, MARKS, RESTORED, SAMPLES, Job, Stream
from cfrestore.batch.manifest import Manifest
from cfrestore.batch.outcome import REASONS, SCHEMA, FaceReport, Outcome
from cfrestore.batch.planning import parse_shard, plan
from cfrestore.batch.watching import watch

__all__ = [
    "COMPARED",
    "CROPS",
    "MARK",
    "MARKS",
    "PIXELS_AHEAD",
    "REASONS",
    "RESTORED",
    "SAMPLES",
    "SCHEMA",
    "WORKERS",
    "FaceReport",
    "Job",
    "Manifest",
    "Outcome",
    "Stream",
    "find_pictures",
    "parse_shard",
    "plan",
    "read_list",
    "run",
    "watch",
]
