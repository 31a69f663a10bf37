"""Records to tensors to records: the room that knows transformers."""

__all__ = ["encode", "flops", "generate", "vision", "vlm"]
