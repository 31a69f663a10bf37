"""What is done with finished runs and models: ask, compare, ablate, evaluate, export, pack, review."""

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
    "inventory",
    "packing",
    "review",
    "verify",
]
