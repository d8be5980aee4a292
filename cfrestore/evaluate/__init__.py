"""Measures restored faces: metrics, the networks they use, published protocols."""

from cfrestore.evaluate.damage import PRESETS, damage, find_preset
from cfrestore.evaluate.evaluation import (
    Evaluation,
    Kind,
    Restorer,
    Row,
    Sample,
    as_record,
    evaluate,
    read_pair,
)
from cfrestore.evaluate.frechet import Statistics, frechet_distance, read_statistics
from cfrestore.evaluate.judge import METRICS, Judge, Metric, MetricFiles
from cfrestore.evaluate.pairs import PairedFaces, find_faces, match_faces, read_face
from cfrestore.evaluate.protocols import PROTOCOLS, Protocol, check_protocol, find_protocol

__all__ = [
    "METRICS",
    "PRESETS",
    "PROTOCOLS",
    "Evaluation",
    "Judge",
    "Kind",
    "Metric",
    "MetricFiles",
    "PairedFaces",
    "Protocol",
    "Restorer",
    "Row",
    "Sample",
    "Statistics",
    "as_record",
    "check_protocol",
    "damage",
    "evaluate",
    "find_faces",
    "find_preset",
    "find_protocol",
    "frechet_distance",
    "match_faces",
    "read_face",
    "read_pair",
    "read_statistics",
]
