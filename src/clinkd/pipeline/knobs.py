"""The group of knobs that reads the stored config of each kind of stage, also of an older version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clinkd.config import (
    AnswerConfig,
    ClipConfig,
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    ModelConfig,
    ReflectConfig,
    SelectConfig,
    TeacherConfig,
)
from clinkd.settings import Knobs, complete


class PseudoKnobs(DistillConfig):
    """The knobs that decide pseudo-labels."""

    answer: AnswerConfig = AnswerConfig()


KNOBS: dict[str, type[Knobs]] = {
    "prepare": DataConfig, "general": ModelConfig, "tower": ModelConfig, "base": ModelConfig,
    "teacher": TeacherConfig, "pseudo": PseudoKnobs, "distill": DistillConfig,
    "reflect": ReflectConfig, "clip": ClipConfig, "answer": AnswerConfig,
    "select": SelectConfig, "shuffle": AnswerConfig, "score": EvaluateConfig,
}  # fmt: skip


def complete_stage_config(name: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """All knobs of a stored stage (perhaps of an older version) by the names of today."""
    return complete(config, KNOBS.get(name.partition("-")[0], Knobs))
