"""Records to tensors to records: the package that knows transformers."""

__all__ = ["encode", "eyes", "families", "flops", "folders", "generate", "positions", "served", "vision", "vlm"]
