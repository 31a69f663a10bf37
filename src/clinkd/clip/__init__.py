"""Models that score how well a text fits an image, and models that embed a text."""

__all__ = ["captions", "crops", "embedder", "model"]
