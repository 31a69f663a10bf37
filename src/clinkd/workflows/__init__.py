"""What is done with finished runs and models: ask, compare, ablate, correct, evaluate, export, review, forecast."""

__all__ = [
    "ablate",
    "answer",
    "answer_warnings",
    "ask",
    "batch",
    "compare",
    "correct",
    "evaluate",
    "examples",
    "export",
    "forecast",
    "review",
]
