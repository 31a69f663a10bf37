"""Records to tensors to records: the package that knows transformers."""

__all__ = [
    "additions", "encode", "eyes", "families", "flops", "folders", "generate", "licence", "positions", "vision", "vlm",
    "written",
]  # fmt: skip
