"""From files to records and back: phantoms, readers, box codecs, images, splits."""

from clinkd.data.boxes_jsonl import Problem, Reading, image_paths, read
from clinkd.data.codecs import Codec, Decoded, codec
from clinkd.data.images import open_image
from clinkd.data.modality import read_modality
from clinkd.data.questions import bare_pairs
from clinkd.data.split import divide, draw_share
from clinkd.data.stats import counts

__all__ = [
    "Codec",
    "Decoded",
    "Problem",
    "Reading",
    "bare_pairs",
    "codec",
    "counts",
    "divide",
    "draw_share",
    "image_paths",
    "open_image",
    "read",
    "read_modality",
]
