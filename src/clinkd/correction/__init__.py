"""Wrong answers are found, rewritten from the truth, and verified."""

__all__ = ["chat", "correctors", "embedding", "phrasing", "review", "similarity", "summary", "verify"]
