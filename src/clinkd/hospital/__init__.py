"""Into the hospital: images that an archive sends wait with their answers in a worklist until a person decides."""

__all__ = ["worklist"]
