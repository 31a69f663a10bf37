"""From files to records and back: readers, writers, checks, phantoms, box codecs, images, splits."""

from clinkd.data.checks.stats import counts
from clinkd.data.codecs import Codec, Decoded, codec
from clinkd.data.dataset import Samples, identity
from clinkd.data.images import open_image
from clinkd.data.images.identifying import burnt_in, told_by
from clinkd.data.loose import read_loosely
from clinkd.data.modality import read_modality
from clinkd.data.questions import bare_pairs
from clinkd.data.readers import FORMS, Entry, Problem, Source, demand, detect, read
from clinkd.data.split import divide, draw_share, drawn

__all__ = [
    "FORMS",
    "Codec",
    "Decoded",
    "Entry",
    "Problem",
    "Samples",
    "Source",
    "bare_pairs",
    "burnt_in",
    "codec",
    "counts",
    "demand",
    "detect",
    "divide",
    "draw_share",
    "drawn",
    "identity",
    "open_image",
    "read",
    "read_loosely",
    "read_modality",
    "told_by",
]
