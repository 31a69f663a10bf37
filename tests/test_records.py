"""The nouns as JSON: what 0.1.0 wrote opens and is written again the same, and what is wrong is named by its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clinkd import records
from clinkd.records import (
    BadInput,
    Box,
    BoxedText,
    Candidate,
    Correction,
    Fact,
    ImageRef,
    Prediction,
    Sample,
    Task,
    Turn,
)
from clinkd.storage import JsonLines

STORED = Path(__file__).parent / "data" / "records_0_1_0.jsonl"  # random ones, written by the code of that version


def test_stored_records_open_and_are_written_again_the_same(tmp_path: Path) -> None:
    lines = list(JsonLines(STORED).read())
    assert {line["kind"] for line in lines} == {"Sample", "Prediction", "Correction", "Score"}
    with JsonLines(tmp_path / "again.jsonl") as again:
        for line in lines:
            record = getattr(records, line["kind"]).from_json(line["record"])
            again.append({"kind": line["kind"], "record": record.to_json()})
            assert type(record).from_json(record.to_json()) == record
    assert (tmp_path / "again.jsonl").read_bytes() == STORED.read_bytes()


BOX = Box(0.1234567, 0, 0.5, 1)
TEXT = BoxedText("the [box] here", (BOX,))
WRITTEN: list[tuple[records.Record | Box | BoxedText, Any]] = [
    (BOX, [0.123457, 0, 0.5, 1]),
    (BoxedText("words"), "words"),
    (TEXT, {"text": "the [box] here", "boxes": [[0.123457, 0, 0.5, 1]]}),
    (Fact("lung", side="left", count=0), {"name": "lung", "side": "left", "count": 0}),
    (ImageRef("a.png"), {"path": "a.png", "width": None, "height": None}),
    (
        ImageRef("a.dcm", 2, 1, 6, "lung"),
        {"path": "a.dcm", "width": 2, "height": 1, "orientation": 6, "window": "lung"},
    ),
    (
        ImageRef("a.dcm", laterality=records.Laterality("none", "ViewPosition")),
        {"path": "a.dcm", "width": None, "height": None, "laterality": {"left": "none", "rule": "ViewPosition"}},
    ),
    (Turn(Task.QA, BoxedText("q"), BoxedText("a")), {"task": "QA", "question": "q", "answer": "a"}),
    (
        Prediction("s", (Candidate("r", BoxedText("a"), 0, {"clip": 1}),)),
        {
            "id": "s", "chosen": 0, "by": "",
            "candidates": [
                {"raw": "r", "answer": "a", "logprob": 0, "scores": {"clip": 1}, "unread": [], "truncated": False}
            ],
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("record", "value"), WRITTEN)
def test_a_record_is_written_as_plain_values_in_their_order(
    record: records.Record | Box | BoxedText, value: Any
) -> None:
    plain = record.to_json()
    assert json.dumps(plain) == json.dumps(value)
    assert repr(plain) == repr(value)  # no enumeration in it: seeds and hashes are drawn from such texts
    assert records.read_json(type(record), plain).to_json() == plain


def test_what_a_later_version_adds_is_left_out_and_what_has_a_default_may_be_absent() -> None:
    value = {"id": "s", "images": [{"path": "a.png", "new": 1}], "modality": "ct", "turns": [], "group": "g", "new": 2}
    assert Sample.from_json(value) == Sample("s", (ImageRef("a.png"),), records.Modality.CT, (), "g")
    correction = {"id": "s", "round": 1, "before": "b", "truth": "t", "similarity": 0.5}
    assert Correction.from_json(correction) == Correction("s", 1, BoxedText("b"), BoxedText("t"), 0.5)


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        (Sample, {"id": "s"}, "^images: "),
        (Sample, [1], "Sample"),
        (Prediction, {"id": "s", "candidates": [{}]}, r"^candidates\.0\.raw: "),
        (Prediction, {"id": "s", "candidates": 3}, "^candidates: "),
        (Turn, {"task": "XG", "question": "", "answer": ""}, "^task: .*'VG'"),
        (Turn, {"task": "VG", "question": 3, "answer": ""}, "^question: "),
        (Turn, {"task": "VG", "question": "[box]", "answer": ""}, "^question: 1 .box. marks but 0 boxes"),
        (Turn, {"task": "VG", "question": {"text": "[box]", "boxes": [[9, 0, 1, 1]]}, "answer": ""},
         r"^question\.boxes\.0: box \(9, 0, 1, 1\) is empty or outside"),
        (Box, [0, 0, 1], "^3: "),
        (Box, [0, 0, 1, float("nan")], "empty or outside"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_place(kind: type, value: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        records.read_json(kind, value)
