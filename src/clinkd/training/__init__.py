"""Fit a model to samples under an objective, resumably."""

from clinkd.training.fit import FitRun, Fitted, fit
from clinkd.training.gallery import Gallery, fill_gallery
from clinkd.training.shelf import finished
from clinkd.training.stored import StoredTeacher, identity_of, store
from clinkd.training.teachers import LiveTeacher, Teacher

__all__ = [
    "FitRun",
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
