"""Records to tensors to records: the room that knows transformers."""

__all__ = ["encode", "families", "flops", "generate", "vision", "vlm"]
