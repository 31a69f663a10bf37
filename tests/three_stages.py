"""A run of three stages that take no time, in the place of the method's eleven."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clinkd import pipeline
from clinkd.config import RunConfig
from clinkd.pipeline.graph import Stage, StageContext

Work = Callable[[StageContext], None]


def plan_three_stages(monkeypatch: pytest.MonkeyPatch, prepare: Work, teach: Work, score: Work) -> None:
    """From now on a run is these three, under the names of stages that verbs know."""

    def plan(config: RunConfig) -> list[Stage]:
        data = Stage("prepare", 1, {}, (), prepare)
        teacher = Stage("teacher", 1, config.teacher or {}, (data,), teach, config.seed)
        return [data, teacher, Stage("score", 1, config.evaluate, (data, teacher), score, config.seed)]

    monkeypatch.setattr(pipeline, "plan", plan)
