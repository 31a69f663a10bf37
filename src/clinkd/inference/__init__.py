"""Answer samples with several candidates each, and choose one by the image."""

from clinkd.inference.answer import answer
from clinkd.inference.rerank import Agreement, ClipScorer, FirstBeam, RandomScorer, Scorer, judged, rerank

__all__ = [
    "Agreement", "ClipScorer", "FirstBeam", "RandomScorer", "Scorer", "answer", "hosted", "judged", "rerank",
    "self_consistency",
]  # fmt: skip
