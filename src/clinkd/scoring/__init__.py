"""Numbers of answers: metrics, scores, image-blind baselines, captions, the papers' own scripts. No pages, no torch."""

__all__ = [
    "answer_files",
    "baselines",
    "captions",
    "jars",
    "measure",
    "metrics",
    "official",
    "outcome",
    "outside",
    "released",
    "results",
    "score",
    "spice",
]
