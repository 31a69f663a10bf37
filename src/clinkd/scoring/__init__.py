"""Numbers of answers: metrics, scores, image-blind baselines, captions, the papers' own scripts. No pages, no torch."""

__all__ = [
    "answer_files",
    "baselines",
    "captions",
    "intervals",
    "jars",
    "measure",
    "metrics",
    "official",
    "outcome",
    "released",
    "results",
    "score",
    "spice",
]
