"""Records to tensors to records: the package that knows transformers."""

import logging
import os

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # weights come from a local path; nothing here may reach for a network
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it; it misses kernels that are on a hub

__all__ = [
    "activations", "additions", "encode", "exported", "eyes", "families", "flops", "folders", "generate", "positions",
    "quantized", "shortened", "vision", "vlm",
]  # fmt: skip
