"""What is done with finished runs and models: ask, answer, compare, ablate, evaluate, export, review, forecast."""

__all__ = ["ablate", "answer", "ask", "compare", "evaluate", "export", "forecast", "review"]
