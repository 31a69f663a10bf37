"""The papers' scripts: their recorded outputs, and the faults they are known for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clinkd.records import Task
from clinkd.scoring import official
from clinkd.scoring.captions import NotComputed
from clinkd.scoring.official import (
    ReleasedAnswer,
    boxes,
    clean_released_answer,
    count_boxes,
    count_classes,
    evaluate,
)
from clinkd.scoring.reading.released import read_lines


def answered(truth: str, response: str) -> ReleasedAnswer:
    return ReleasedAnswer("1", "ct_00--set--1.png", truth, response)


def golden(shared: Path, name: str) -> list[ReleasedAnswer]:
    return read_lines(shared / "data" / "golden" / "official" / name).rows


@pytest.mark.parametrize(
    ("file", "task", "counts", "mean"),
    [
        ("vg.jsonl", Task.VG, "vg_hits_total_by_modality", "vg_mean_over_8"),
        ("roc.jsonl", Task.ROC, "roc_hits_total_by_modality", "roc_mean_over_non_empty"),
    ],
)
def test_hits_equal_the_scripts(shared: Path, file: str, task: Task, counts: str, mean: str) -> None:
    expected = json.loads((shared / "data/golden/official/expected.json").read_text())
    outcome = evaluate(golden(shared, file), task, 0)
    recorded = {modality: hits for modality, hits in expected[counts].items() if hits[1]}
    assert {m: [outcome.hits[m], total] for m, total in outcome.totals.items()} == recorded
    assert outcome.score() == pytest.approx(100 * expected[mean])


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("A liver.<|im_end|>\nmore", "A liver."),
        ("A liver<|im_end|>\n", "A liver"),
        ("A liver<|im_end|>", "A liver<|im_end|>"),  # not followed by a newline: it stays
        ("A.\n\nB.\n\nC.", ""),
        ("A\nB\n", "B"),
        ("A liver<|endoftext|> ", "A liver"),
    ],
)
def test_clean_up(raw: str, cleaned: str) -> None:
    assert clean_released_answer(raw) == cleaned


def test_bare_boxes_count_only_where_no_tagged_one_is() -> None:
    assert boxes("at (1,2),(3,4)") == [(1, 2, 3, 4)]
    assert boxes("at <box>(5,6),(7,8)</box> and (1,2),(3,4)") == [(5, 6, 7, 8)]


TRUTH = "<box>(100,100),(300,300)</box>"


@pytest.mark.parametrize(
    ("response", "hits"),
    [
        ("<box>(100,100),(300,300)</box>", 1),
        ("<box>(300,300),(100,100)</box>", 0),  # corners the other way round
        ("[100, 100, 300, 300]", 0),
        ("(100, 100), (300, 300)", 0),
        ("<box>(100,100),(300,200)</box>", 0),  # IoU exactly 0.5: the scripts ask for more
        ("".join(f"<box>({x},{y}),({x + 200},{y + 200})</box>" for x in range(0, 800, 50) for y in range(0, 800, 50)),
         1),
    ],
    ids=["right", "swapped", "list", "spaces", "half", "sprayed"],
)  # fmt: skip
def test_grounding_probes(response: str, hits: int) -> None:
    assert count_boxes(answered(TRUTH, response)) == (1, hits)


def test_one_box_may_find_two() -> None:
    assert count_boxes(answered(TRUTH * 2, TRUTH)) == (2, 2)


@pytest.mark.parametrize("response", ["This is not the liver", "liver, spleen, kidney", "deliverance"])
def test_classification_is_easily_pleased(response: str) -> None:
    assert count_classes(answered("Liver", response)) == (1, 1)


def test_an_interval_is_of_images_and_its_middle_is_the_score() -> None:
    rows = [ReleasedAnswer(str(n), f"ct_{n // 4}.png", TRUTH, TRUTH if (n // 4) % 2 else "no") for n in range(160)]
    found = evaluate(rows, Task.VG)
    assert found.score() == 50 and found.unparsed == 80 and found.interval
    low, high = found.interval
    assert 50 - 20 < low < 40 and 60 < high < 50 + 20  # 40 images: +-15.5; were answers drawn, +-7.7
    assert evaluate(rows, Task.VG, 0).interval is None


def test_what_cannot_be_computed_has_a_reason_and_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise NotComputed("no SPICE")

    monkeypatch.setattr(official, "spice_counts", missing)
    rows = [answered("no box at all", "no")]
    for task, why in ((Task.RC, "no SPICE"), (Task.QA, "mode strict"), (Task.VG, "no truth has a box")):
        found = evaluate(rows, task)
        assert found.score() is None and why in (found.why or "") and found.to_json()["by_modality"]["ct"]["total"] == 1


def test_captions_of_boxes_are_scored_by_the_mean_of_spice(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of SPICE itself are recorded; what is made of them is ours."""
    folder = shared / "data/golden/official"
    each = {str(r["id"]): r["SPICE"] for r in map(json.loads, (folder / "mia_spice_official.jsonl").open())}

    rows = golden(shared, "mia.jsonl")
    monkeypatch.setattr(official, "spice_counts", lambda *_: np.array([[1.0, each[r.id]] for r in rows]))
    outcome, expected = evaluate(rows, Task.RC), json.loads((folder / "expected.json").read_text())
    by_modality = {m: (outcome.score(m) or 0) / 100 for m in outcome.totals}
    assert by_modality == pytest.approx(expected["rc_spice_by_modality"], abs=1e-7)
    mean = outcome.score()
    assert mean == pytest.approx(100 * expected["rc_spice_mean_over_modalities"])
    assert mean and outcome.interval and outcome.interval[0] < mean < outcome.interval[1]
