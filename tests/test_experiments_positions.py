"""The arms of positions and layouts: each changes what it says alone, and an image stands where the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from clinkd.config import Positions
from clinkd.experiments import CLAIMS, ROWS, laptop, small
from clinkd.experiments.arms import layouts, positions
from clinkd.experiments.rows import BASE_ROWS, passes
from clinkd.model.families import qwen
from clinkd.model.positions import position_scheme
from clinkd.pipeline.stages import plan
from clinkd.records import BadInput
from clinkd.settings import change_knobs, override

PAGE = (Path(__file__).parent.parent / "docs" / "POSITIONS.md").read_text()
TOLD = {  # the page's table of arms: first and last patch of an axis, and where the text goes on
    row[0]: tuple(map(float, row[1:]))
    for row in re.findall(r"^\| `([a-z]+)` (?:\|[^|]+){3}\| ([\d.]+), ([\d.]+)[^|]*\| ([\d.]+) \|$", PAGE, re.MULTILINE)
}
SCRATCH = [name for name in positions.ROWS if not name.endswith(positions.GENERAL)]
LAST_TEXT = 2


def place(setting: Positions, side: int) -> torch.Tensor:
    """Positions [3, tokens] of three words, an image of side x side patches and a word."""
    image = torch.tensor([[False] * (LAST_TEXT + 1) + [True] * side**2 + [False]])
    scheme = position_scheme(setting, qwen.NATIVE)
    return scheme.positions(image, torch.arange(image.shape[1])[None], torch.tensor([[side, side]]))[:, 0]


@pytest.mark.parametrize("name", SCRATCH)
def test_an_arm_places_the_image_of_the_small_task_as_the_page_says(name: str) -> None:
    run = ROWS[name].make(small())
    side = run.model.tiny.image_pixels // (2 * run.model.tiny.patch)
    places = place(run.model.positions, side) - LAST_TEXT
    image = places[1:, LAST_TEXT + 1 : -1]
    assert side == 4 and TOLD[name] == (image.min(), image.max(), places[0, -1])


def test_the_page_tells_every_arm() -> None:
    assert list(TOLD) == SCRATCH


def test_arms_differ_in_positions_alone_and_each_has_a_twin_from_the_general_base() -> None:
    runs = {name: row.make(small()) for name, row in positions.ROWS.items()}
    for name in SCRATCH:
        twin = runs[f"{name}{positions.GENERAL}"]
        assert twin.model.positions == runs[name].model.positions and passes(twin) == passes(runs[name])
    settings = [runs[name].model.positions for name in SCRATCH]
    assert all(settings.count(setting) == 1 for setting in settings)
    for names in (SCRATCH, [*runs][len(SCRATCH) :]):
        models = [change_knobs(runs[n].model, positions="mrope") for n in names]
        same = [override(change_knobs(runs[n], model=m), ["name=same"]) for n, m in zip(names, models, strict=True)]
        assert all(run == same[0] for run in same)
    assert passes(runs["tied"]) == passes(small()) and runs["tied"].model.layout == small().model.layout
    assert runs["tied"].teacher is None and runs["tied"].reflect is None and runs["tied"].select.scorer == "first"


def test_one_general_base_serves_every_arm_and_seed() -> None:
    runs = [positions.ROWS[n].make(override(small(), [f"seed={s}"])) for n in positions.ROWS for s in (0, 3)]
    general = [s.key for run in runs for s in plan(run) if s.name == "general"]
    assert len(general) == len(runs) // 2 and len({*general}) == 1


def test_a_pretrained_base_has_no_general_one() -> None:
    with pytest.raises(BadInput, match=r"stride-general: model\.base=models/x .*--rows"):
        positions.ROWS["stride-general"].make(laptop(base=Path("models/x")))


def test_layouts_differ_in_the_layout_alone() -> None:
    for name, row in layouts.ROWS.items():
        place_name, _, layout = name.partition("-")
        assert row.make(small()).model == change_knobs(ROWS[place_name].make(small()).model, layout=layout)


def test_a_name_means_one_row_in_all_claims() -> None:
    groups = [claim.rows for claim in CLAIMS.values()] + [BASE_ROWS]
    makers = {name: {rows[name].make for rows in groups if name in rows} for rows in groups for name in rows}
    assert [name for name, made in makers.items() if len(made) > 1] == []


def test_primary_comparisons_are_of_rows_of_the_claim() -> None:
    for claim in CLAIMS.values():
        if claim.primary:
            assert {claim.primary.row, claim.primary.against} <= claim.rows.keys()
