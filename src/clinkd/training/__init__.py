"""Fit a model to samples under an objective, resumably."""

from clinkd.training.feature_cache import CellCache, FeatureCache, cache_cells, cache_features
from clinkd.training.fit import FitRun, Fitted, fit
from clinkd.training.stored import StoredTeacher, identify_store, store_teacher
from clinkd.training.teachers import AveragedTeacher, LiveTeacher, Teacher, match_student
from clinkd.training.tensor_store import is_store_full

__all__ = [
    "AveragedTeacher",
    "CellCache",
    "FeatureCache",
    "FitRun",
    "Fitted",
    "LiveTeacher",
    "StoredTeacher",
    "Teacher",
    "cache_cells",
    "cache_features",
    "fit",
    "identify_store",
    "is_store_full",
    "match_student",
    "store_teacher",
]
