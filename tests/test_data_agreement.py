"""Boxes of several readers of one image: kept apart, united, or decided by vote."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from statistics import median

import pytest
from PIL import Image

from clinkd.boxes import iou
from clinkd.data.readers.agreement import OVERLAP, STAY_NOTE, HowToMerge, find_findings, merge_readers
from clinkd.data.readers.forms import read_rows
from clinkd.data.readers.rows import FieldError
from clinkd.data.readers.source import Source
from clinkd.records import Box, Modality, Task

A, B, C = Box(0.1, 0.1, 0.5, 0.5), Box(0.1, 0.1, 0.5, 0.44), Box(0.14, 0.1, 0.54, 0.5)  # each pair overlaps by half
FAR = Box(0.7, 0.7, 0.9, 0.9)
TWICE = "boxes that stand twice under one name, taken once"


def merge(
    boxes: list[Box], readers: list[str], how: HowToMerge, panel: frozenset[str] = frozenset()
) -> tuple[list[Box], Counter[str]]:
    notes: Counter[str] = Counter()
    merged = merge_readers([("nodule", box) for box in boxes], readers, panel, how, notes)
    assert {name for name, _ in merged} <= {"nodule"}
    return [box for _, box in merged], notes


def test_three_readers_of_one_finding() -> None:
    boxes, readers = [A, B, C, FAR], ["R1", "R2", "R3", "R3"]
    assert merge(boxes, readers, "keep") == (boxes, {STAY_NOTE: 3})
    united, notes = merge(boxes, readers, "union")
    assert united == [Box(0.1, 0.1, 0.54, 0.5), FAR]
    assert notes == {"boxes of several readers that --readers union made part of another": 2}
    voted, notes = merge(boxes, readers, "vote")
    assert voted == [Box(0.1, 0.1, 0.5, 0.5)] and notes == {
        "boxes of several readers that --readers vote made part of another": 2,
        "boxes that half of the readers of their image or fewer drew, left out by --readers vote": 1,
    }


def test_who_drew_nothing_votes_too() -> None:
    assert merge([A, B], ["R1", "R2"], "vote", frozenset({"R3"}))[0] == [Box(0.1, 0.1, 0.5, 0.47)]
    assert merge([A, B], ["R1", "R2"], "vote", frozenset({"R3", "R4"}))[0] == []
    assert merge([A], ["R1"], "vote")[0] == [A]


def test_two_boxes_of_one_reader_are_two_findings() -> None:
    assert merge([A, B], ["R1", "R1"], "union")[0] == [A, B] and not merge([A, B], ["R1", "R1"], "keep")[1]
    assert merge([A, A], ["R1", "R1"], "union") == ([A], {TWICE: 1})
    assert merge([A, A], ["R1", "R2"], "keep") == ([A], {TWICE: 1})
    assert merge([A, A, B], ["R1", "R1", "R2"], "vote")[0] == [Box(0.1, 0.1, 0.5, 0.47)]


def test_boxes_without_readers_are_united_only_where_that_is_asked() -> None:
    assert merge([A, B, FAR], [], "keep") == ([A, B, FAR], {STAY_NOTE: 2})
    assert merge([A, B, FAR], [], "union")[0] == [A, FAR]
    for readers in ([], ["R1", ""]):
        with pytest.raises(FieldError) as caught:
            merge([A, B], readers, "vote")
        assert "give --readers union" in caught.value.why
    many = [Box(k / 500, 0.1, k / 500 + 0.3, 0.4) for k in range(300)]  # cells: nothing is told, and nothing lost
    assert merge(many, [], "keep") == (many, {})


def test_findings_do_not_depend_on_the_order_and_part_all_boxes() -> None:
    rng = random.Random(0)
    for _ in range(60):
        boxes, readers = [], []
        for _ in range(rng.randint(2, 9)):
            x, y = rng.choice((0.1, 0.15, 0.2, 0.5)), rng.choice((0.1, 0.13, 0.4))
            boxes.append(Box(x, y, x + rng.choice((0.3, 0.34)), y + rng.choice((0.3, 0.33))))
            readers.append(rng.choice("abc"))
        drawn = list(dict.fromkeys(zip(boxes, readers, strict=True)))  # a box twice of one reader counts once
        boxes, readers = [box for box, _ in drawn], [reader for _, reader in drawn]
        findings = find_findings(range(len(boxes)), boxes, readers)
        assert sorted(place for finding in findings for place in finding) == list(range(len(boxes)))
        for finding in findings:
            assert len({readers[k] for k in finding}) == len(finding)
            assert all(iou(boxes[i], boxes[j]) >= OVERLAP for i in finding for j in finding)
        shuffled = rng.sample(range(len(boxes)), len(boxes))
        again = find_findings(range(len(boxes)), [boxes[k] for k in shuffled], [readers[k] for k in shuffled])
        told = [{(boxes[k], readers[k]) for k in finding} for finding in findings]
        assert all({(boxes[shuffled[k]], readers[shuffled[k]]) for k in finding} in told for finding in again)
        united = {
            tuple(side([boxes[k].corners[i] for k in f]) for i, side in enumerate((min, min, max, max)))
            for f in findings
        }
        assert {box.corners for box in merge(boxes, readers, "union")[0]} == united


def test_a_vote_lies_at_the_medians() -> None:
    (box,) = merge([A, B, C], ["a", "b", "c"], "vote")[0]
    assert box.corners == tuple(median(v) for v in zip(A.corners, B.corners, C.corners, strict=True))


def written(folder: Path, form: str) -> Path:
    """Two readers see a nodule; the third says that there is no finding, where the form can say so."""
    Image.new("L", (100, 100)).save(folder / "a.png")
    drawn = [("R1", (10, 10, 50, 50)), ("R2", (10, 10, 50, 44))]
    if form == "sheet":
        lines = [f"a.png,nodule,{who},{','.join(map(str, box))}" for who, box in drawn]
        text = "\n".join(
            ["image,name,reader,x1,y1,x2,y2", *lines, "a.png,No finding,R3,,,,", "a.png,No finding,R4,,,,"]
        )
    elif form == "coco":
        marks = [
            {"id": k, "image_id": 1, "category_id": 1, "bbox": [a, b, c - a, d - b], "rad_id": who}
            for k, (who, (a, b, c, d)) in enumerate(drawn)
        ]
        images = [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}]
        text = json.dumps({"images": images, "annotations": marks, "categories": [{"id": 1, "name": "nodule"}]})
    else:
        objects = [{"name": "nodule", "box": box, "reader": who} for who, box in drawn]
        text = json.dumps({"id": "a", "image": "a.png", "modality": "ct", "objects": objects})
    file = folder / {"sheet": "s.csv", "coco": "c.json", "boxes": "records.jsonl"}[form]
    file.write_text(text)
    return file


@pytest.mark.parametrize("form", ["sheet", "coco", "boxes"])
@pytest.mark.parametrize("how", ["keep", "union", "vote"])
def test_every_form_with_readers_has_the_choice(tmp_path: Path, form: str, how: HowToMerge) -> None:
    notes: Counter[str] = Counter()
    rows = list(read_rows(Source(written(tmp_path, form), form, readers=how, modality=Modality.CT), notes))
    assert not [row.problem for row in rows if row.problem]
    samples = [s for row in rows for s in row.samples]
    wanted = {"keep": [A, B], "union": [A], "vote": [Box(0.1, 0.1, 0.5, 0.47)]}[how]
    if form == "sheet" and how == "vote":
        wanted = []  # two of four
    assert [s.question.boxes[0] for s in samples if s.task is Task.ROC] == wanted
    assert {frozenset(s.answer.boxes) for s in samples if s.task is Task.VG} == (
        {frozenset(wanted)} if wanted else set()
    )
    assert (notes[STAY_NOTE] > 0) is (how == "keep")
