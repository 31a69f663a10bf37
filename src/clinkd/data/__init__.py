"""From files to records and back: readers, writers, checks, phantoms, box codecs, images, splits."""

from clinkd.data.checks.stats import count_samples
from clinkd.data.codecs import Codec, Decoded, make_codec
from clinkd.data.dataset import SampleFile, dataset_identity
from clinkd.data.images import open_image
from clinkd.data.images.identifying import has_burnt_in_text, identifying_texts
from clinkd.data.loose import read_loosely
from clinkd.data.modality import read_modality
from clinkd.data.questions import make_bare_pairs
from clinkd.data.readers import FORMS, RowError, RowResult, Source, detect_form, read_rows, read_samples
from clinkd.data.split import count_sampled_images, sample_share, split_samples

__all__ = [
    "FORMS",
    "Codec",
    "Decoded",
    "RowError",
    "RowResult",
    "SampleFile",
    "Source",
    "count_sampled_images",
    "count_samples",
    "dataset_identity",
    "detect_form",
    "has_burnt_in_text",
    "identifying_texts",
    "make_bare_pairs",
    "make_codec",
    "open_image",
    "read_loosely",
    "read_modality",
    "read_rows",
    "read_samples",
    "sample_share",
    "split_samples",
]
