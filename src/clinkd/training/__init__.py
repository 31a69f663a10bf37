"""Fit a model to samples under an objective, resumably."""

from clinkd.training.fit import Fitted, LiveTeacher, Teacher, fit

__all__ = ["Fitted", "LiveTeacher", "Teacher", "fit"]
