"""Numbers of answers: metrics, scores, image-blind baselines, captions, the papers' own scripts. No pages, no torch."""

__all__ = [
    "answer_files",
    "baselines",
    "blind_choice",
    "captions",
    "detection",
    "intervals",
    "jars",
    "measure",
    "metrics",
    "official",
    "outcome",
    "outside",
    "plotted",
    "released",
    "results",
    "score",
    "spice",
]
