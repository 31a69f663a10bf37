"""Drawings of plain things, and the base that learns from them: no medicine, tight boxes, one stage for all runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clinkd.config import GeneralConfig
from clinkd.data import phantoms
from clinkd.data.general_drawings import LETTERS, SHAPES, write_drawings
from clinkd.experiments import small
from clinkd.pipeline.stages import plan
from clinkd.records import Task
from clinkd.settings import override

GENERAL = "model.tiny.pretrain.general={images: 12}"


def test_drawings_are_the_same_anywhere_and_hold_no_medical_word(tmp_path: Path) -> None:
    config = GeneralConfig(images=70)
    samples = write_drawings(tmp_path / "a", config)
    assert samples == write_drawings(tmp_path / "b", config, workers=2)
    assert len({s.images[0].path for s in samples}) == 70
    pictures = [(tmp_path / part / samples[0].images[0].path).read_bytes() for part in "ab"]
    assert pictures[0] == pictures[1]
    words = {w.strip(".,?").lower() for s in samples for w in f"{s.question.words} {s.answer.words}".split()}
    medical = {w for name in phantoms.NAMES for w in name.split()}
    assert not words & medical and not SHAPES.keys() & set(phantoms.NAMES)


@pytest.mark.parametrize("name", [*SHAPES][::3])
def test_a_shape_reaches_the_four_sides_of_its_box_and_not_beyond(name: str) -> None:
    levels = np.zeros((200, 200))
    plan = phantoms._StructurePlacement("large", 0.45, 0.55, 0.2, 0.15)
    box = phantoms._draw_shape(levels, SHAPES[name], plan, 1.0)
    assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx((0.25, 0.4, 0.65, 0.7), abs=0.008)  # a pixel and a half
    inside = levels[80:140, 50:130]
    assert 0.25 < inside.mean() < 0.8 and levels.sum() - inside.sum() < 0.02 * levels.sum()


def test_a_lone_thing_is_asked_for_by_a_word_that_stands_nowhere_else(tmp_path: Path) -> None:
    samples = write_drawings(tmp_path, GeneralConfig(images=40))
    invented = [s for s in samples if s.names[0] not in SHAPES]
    words = [s.names[0] for s in invented]
    assert 8 < len(words) == len({*words}) and all(set(word) <= set(LETTERS) for word in words)
    for asked in invented:
        (other,) = {
            s.answer.boxes for s in samples if s.images == asked.images and s.task is Task.VG and s is not asked
        }
        assert asked.answer.boxes == other and len(other) == 1
    assert len({s.id for s in samples}) == len(samples)
    lone = {s.images for s in samples} - {s.images for s in samples if s.id.endswith("-roc2")}
    assert {s.images for s in invented} == lone


def test_runs_share_one_general_stage_whatever_their_seed_and_positions() -> None:
    changes = ([], ["seed=3"], ["model.positions=sequential"], ["model.layout=sections"])
    plans = [{s.name: s for s in plan(override(small(), [GENERAL, *changed]))} for changed in changes]
    general = [stages["general"].identity for stages in plans]
    assert len({*general[:3]}) == 1
    assert general[3] != general[0]  # it learns with the layout of the run
    assert len({stages["base"].identity for stages in plans}) == 4
    assert "general" not in {s.name for s in plan(small())}
