"""From files to records and back: images, readers, checks, writers, phantoms, box codecs, splits."""

__all__ = [
    "checks",
    "codecs",
    "dataset",
    "dicom_objects",
    "general_drawings",
    "grids",
    "images",
    "importing",
    "modality",
    "phantoms",
    "questions",
    "readers",
    "split",
    "worker",
    "writers",
]
