"""Answer samples with several candidates each, and choose one by the image."""

from clinkd.inference.answer import answer
from clinkd.inference.crop_scorer import CropScorer
from clinkd.inference.likelihood import measure_likelihoods
from clinkd.inference.rerank import (
    Agreement,
    ClipScorer,
    FirstBeam,
    RandomScorer,
    Scorer,
    TimedScorer,
    rerank,
)

__all__ = [
    "Agreement",
    "ClipScorer",
    "CropScorer",
    "FirstBeam",
    "RandomScorer",
    "Scorer",
    "TimedScorer",
    "answer",
    "confidence",
    "disagreement",
    "hosted",
    "measure_likelihoods",
    "probe",
    "rerank",
    "self_consistency",
]  # fmt: skip
