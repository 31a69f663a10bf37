"""Answer samples with several candidates each, and choose one by the image."""

from clinkd.inference.answer import answer
from clinkd.inference.rerank import Agreement, ClipScorer, FirstBeam, RandomScorer, Scorer, rerank, rerank_batch

__all__ = [
    "Agreement",
    "ClipScorer",
    "FirstBeam",
    "RandomScorer",
    "Scorer",
    "answer",
    "hosted",
    "rerank",
    "rerank_batch",
    "self_consistency",
]  # fmt: skip
