"""What is done with finished runs and models: ask, compare, ablate, correct, evaluate, export, review, forecast."""

__all__ = ["ablate", "answer", "ask", "batch", "compare", "correct", "evaluate", "export", "forecast", "review"]
