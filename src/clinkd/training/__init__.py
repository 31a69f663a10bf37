"""Fit a model to samples under an objective, resumably."""

from clinkd.training.fit import Fitted, LiveTeacher, Teacher, fit
from clinkd.training.gallery import Gallery, fill_gallery
from clinkd.training.shelf import finished
from clinkd.training.stored import StoredTeacher, identity_of, store

__all__ = [
    "Fitted",
    "Gallery",
    "LiveTeacher",
    "StoredTeacher",
    "Teacher",
    "fill_gallery",
    "finished",
    "fit",
    "identity_of",
    "store",
]
