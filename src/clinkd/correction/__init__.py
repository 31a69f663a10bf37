"""Decide which answers miss the truth, rewrite those, and verify each rewrite by code."""

from clinkd.correction.correctors import Corrector, OfflineCorrector, Rewrite, correct, fed_back
from clinkd.correction.review import review
from clinkd.correction.similarity import LexicalSimilarity, Similarity
from clinkd.correction.summary import summary
from clinkd.correction.verify import verify

__all__ = [
    "Corrector",
    "LexicalSimilarity",
    "OfflineCorrector",
    "Rewrite",
    "Similarity",
    "correct",
    "fed_back",
    "review",
    "summary",
    "verify",
]
