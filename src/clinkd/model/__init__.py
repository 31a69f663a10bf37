"""Records to tensors to records: the package that knows transformers."""

__all__ = [
    "additions", "encode", "eyes", "families", "flops", "folders", "generate", "positions", "vision", "vlm",
]  # fmt: skip
