"""Models that score an image against a text, and models that embed a text."""

__all__ = ["captions", "embedder", "model"]
