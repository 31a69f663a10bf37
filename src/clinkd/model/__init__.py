"""Records to tensors to records: the package that knows transformers."""

__all__ = [
    "activations", "additions", "encode", "eyes", "families", "flops", "folders", "generate", "licence", "positions",
    "served", "vision", "vlm", "written",
]  # fmt: skip
