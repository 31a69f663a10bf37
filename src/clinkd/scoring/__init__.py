"""Numbers of answers: metrics, scores, image-blind baselines, captions, the papers' own scripts. No pages, no torch."""

__all__ = [
    "blind",
    "captions",
    "detection",
    "intervals",
    "jars",
    "likelihood",
    "measure",
    "metrics",
    "official",
    "outcome",
    "outside",
    "plotted",
    "reading",
    "score",
    "spice",
]
