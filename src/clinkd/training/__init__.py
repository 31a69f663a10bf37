"""Fit a model to samples under an objective, resumably."""

from clinkd.training.feature_cache import FeatureCache, cache_features
from clinkd.training.fit import FitRun, Fitted, fit
from clinkd.training.stored import StoredTeacher, identity_of, store
from clinkd.training.teachers import LiveTeacher, Teacher
from clinkd.training.tensor_store import finished

__all__ = [
    "FeatureCache",
    "FitRun",
    "Fitted",
    "LiveTeacher",
    "StoredTeacher",
    "Teacher",
    "cache_features",
    "finished",
    "fit",
    "identity_of",
    "store",
]
