"""Decide which answers miss the truth, rewrite those, and verify each rewrite by code."""

from clinkd.correction.chat import ChatCorrector
from clinkd.correction.correctors import (
    HUMAN,
    Corrector,
    OfflineCorrector,
    ReplayCorrector,
    Rewrite,
    RewriteProposals,
    Wrong,
    correct,
    fed_back,
    first_from,
    to_do,
)
from clinkd.correction.embedding import EmbeddingSimilarity
from clinkd.correction.review import at_random, review
from clinkd.correction.similarity import LexicalSimilarity, Similarity
from clinkd.correction.summary import reflection_tables, summary
from clinkd.correction.verify import presentable, verify

__all__ = [
    "HUMAN",
    "ChatCorrector",
    "Corrector",
    "EmbeddingSimilarity",
    "LexicalSimilarity",
    "OfflineCorrector",
    "ReplayCorrector",
    "Rewrite",
    "RewriteProposals",
    "Similarity",
    "Wrong",
    "at_random",
    "correct",
    "fed_back",
    "first_from",
    "presentable",
    "reflection_tables",
    "review",
    "summary",
    "to_do",
    "verify",
]
