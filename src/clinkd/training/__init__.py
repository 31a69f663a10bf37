"""Fit a model to samples under an objective, resumably."""

from clinkd.training.fit import Fitted, LiveTeacher, Teacher, fit
from clinkd.training.shelf import finished
from clinkd.training.stored import StoredTeacher, identity_of, store

__all__ = ["Fitted", "LiveTeacher", "StoredTeacher", "Teacher", "finished", "fit", "identity_of", "store"]
