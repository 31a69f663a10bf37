"""Answer samples with several candidates each, and choose one by the image."""

from clinkd.inference.answer import answer
from clinkd.inference.disagreement import count_disagreement, explain_disagreement
from clinkd.inference.rerank import Agreement, ClipScorer, FirstBeam, RandomScorer, Scorer, rerank, rerank_batch
from clinkd.inference.self_consistency import measure_supports

__all__ = [
    "Agreement",
    "ClipScorer",
    "FirstBeam",
    "RandomScorer",
    "Scorer",
    "answer",
    "count_disagreement",
    "explain_disagreement",
    "hosted",
    "measure_supports",
    "probe",
    "rerank",
    "rerank_batch",
    "self_consistency",
]  # fmt: skip
