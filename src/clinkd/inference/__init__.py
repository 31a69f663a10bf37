"""Answer samples with several candidates, choose one by looking at the image."""

from clinkd.inference.answer import answer
from clinkd.inference.rerank import ClipScorer, FirstBeam, RandomScorer, Scorer, rerank

__all__ = ["ClipScorer", "FirstBeam", "RandomScorer", "Scorer", "answer", "rerank"]
