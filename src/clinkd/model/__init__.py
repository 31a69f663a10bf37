"""Records to tensors to records: the only room that knows transformers."""

from clinkd.model.encode import Batch, Labelled, OpenImage, TokenCount, rows_of, template_identity
from clinkd.model.generate import Leading, finished
from clinkd.model.sight import Sight
from clinkd.model.vlm import Head, VisionLanguageModel, load, new_tiny, texts_of

__all__ = [
    "Batch",
    "Head",
    "Labelled",
    "Leading",
    "OpenImage",
    "Sight",
    "TokenCount",
    "VisionLanguageModel",
    "finished",
    "load",
    "new_tiny",
    "rows_of",
    "template_identity",
    "texts_of",
]
