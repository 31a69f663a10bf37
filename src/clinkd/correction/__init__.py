"""Find wrong answers, rewrite them from the truth, and verify the rewrites."""

__all__ = ["chat", "correctors", "embedding", "phrasing", "review", "similarity", "summary", "verify"]
