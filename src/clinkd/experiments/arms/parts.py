"""Arms of a claim: the whole method, and each part of it left out, beside plain tuning."""

from __future__ import annotations

from collections.abc import Mapping

from clinkd.config import DistillConfig, RunConfig
from clinkd.experiments.recipes import demo
from clinkd.experiments.rows import AblationRow, train_on_truths, unreflected, whole
from clinkd.settings import change_knobs, override


def untied(base: RunConfig | None = None) -> RunConfig:
    """The whole method with the stock positions of Qwen2-VL in the place of the tied ones; layout and square stay."""
    return override(base or demo(), ["name=untied", "model.positions=mrope"])


def undistilled(base: RunConfig | None = None) -> RunConfig:
    """The whole method with plain tuning in the place of distillation: as many steps, less compute, no teacher."""
    base = base or demo()
    assert base.distill is not None, "a method without distillation has no such row"
    distill = DistillConfig(kd_weight=0, fit=base.distill.fit)
    reflect = base.reflect and change_knobs(base.reflect, objective="ce")
    return change_knobs(base, name="undistilled", teacher=None, teachers={}, distill=distill, reflect=reflect)


def unselected(base: RunConfig | None = None) -> RunConfig:
    """The whole method without a choice among the beams: the first one is the answer."""
    return override(base or demo(), ["name=unselected", "select.scorer=first"])


def plain(base: RunConfig | None = None) -> RunConfig:
    """Plain tuning: stock positions, no teacher, no rewrites, the first beam. It trains in the stages of the whole
    method, so that steps, rows and learning rates are the same."""
    base = undistilled(base)
    return change_knobs(untied(unselected(base)), name="plain", reflect=train_on_truths(base.reflect, "ce"))


ROWS: Mapping[str, AblationRow] = {
    "plain": AblationRow("Plain tuning", "stock positions, no teacher, no rewrites, first beam", plain, None),
    "whole": AblationRow("ClinKD", "the whole method", whole, "plain", "ClinKD"),
    "untied": AblationRow("ClinKD, stock positions", "M-RoPE in the place of the tied positions", untied, "whole"),
    "undistilled": AblationRow(
        "ClinKD, no distillation", "plain tuning: as many steps, less compute", undistilled, "whole"
    ),
    "unreflected": AblationRow("ClinKD, no reflection", "its rounds distil on the truths", unreflected, "whole"),
    "unselected": AblationRow("ClinKD, first beam", "no choice among the beams", unselected, "whole"),
}
