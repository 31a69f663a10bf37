"""One file a family of vision-language models; nothing outside knows its name."""

__all__ = ["qwen2_vl"]
