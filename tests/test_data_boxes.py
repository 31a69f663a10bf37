"""The reader of records.jsonl: what it asks, what it counts, and one line for each fault of a row."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clinkd.boxes import iou
from clinkd.data.checks.stats import count_samples
from clinkd.data.codecs import make_codec
from clinkd.data.readers import boxes
from clinkd.data.readers.forms import read_rows as read_entries
from clinkd.data.readers.forms import read_samples
from clinkd.data.readers.rows import RowError
from clinkd.data.readers.source import Source
from clinkd.data.split import split_samples
from clinkd.records import BadInput, Box, BoxedText, Modality, Sample, Task


@dataclass
class Reading:
    """What a file gave."""

    source: Source
    samples: tuple[Sample, ...]
    problems: list[RowError]
    told: Counter[str]

    def demand(self) -> list[Sample]:
        return read_samples(self.source, Counter())


def read(path: Path, seed: int = 0, max_questions: int | None = 12, max_boxes: int = 4) -> Reading:
    source = Source(path, max_questions=max_questions, max_boxes=max_boxes, seed=seed)
    told: Counter[str] = Counter()
    entries = list(read_entries(source, told))
    samples = tuple(s for e in entries for s in e.samples)
    return Reading(source, samples, [e.problem for e in entries if e.problem], told)


def record(name: str = "cxr_1", **changes: Any) -> dict[str, Any]:
    row = {
        "id": name, "image": f"images/{name}.png", "modality": "X-ray", "width": 100, "height": 50,
        "objects": [
            {"name": "left lung", "box": [60, 5, 90, 45]}, {"name": "nodule", "box": [50, 10, 60, 20]},
            {"name": "nodule", "box": [10, 30, 20, 40]},
        ],
        "qa": [{"question": "Is there a nodule?", "answer": "yes"}],
    }  # fmt: skip
    return row | changes


def folder(root: Path, *rows: Any) -> Path:
    (root / "images").mkdir(exist_ok=True)
    Image.new("RGB", (100, 50)).save(root / "images" / "shared.png")
    lines = []
    for row in rows:
        if isinstance(row, dict):
            if isinstance(row.get("image"), str) and row["image"].startswith("images/cxr"):
                Image.new("RGB", (100, 50)).save(root / row["image"])
            lines.append(json.dumps(row))
        else:
            lines.append(row)
    (root / "records.jsonl").write_text("\n".join(lines) + "\n")
    return root


def test_boxes_and_questions_become_samples(tmp_path: Path) -> None:
    samples = read(folder(tmp_path, record())).demand()
    assert Counter(s.task for s in samples) == {Task.VG: 2, Task.ROC: 3, Task.QA: 1}
    vg = next(s for s in samples if s.task is Task.VG and s.names == ("nodule",))
    assert vg.answer == BoxedText(
        "Here is the nodule[box] and [box].", (Box(0.1, 0.6, 0.2, 0.8), Box(0.5, 0.2, 0.6, 0.4))
    )
    assert vg.images[0].to_json() == {"path": "images/cxr_1.png", "width": 100, "height": 50}
    roc = next(s for s in samples if s.task is Task.ROC)
    assert roc.question.boxes == (Box(0.6, 0.1, 0.9, 0.9),) and roc.answer.text == "left lung" == roc.names[0]
    qa = next(s for s in samples if s.task is Task.QA)
    assert (qa.question.text, qa.answer.text) == ("Is there a nodule?", "yes")
    for s in samples:
        assert (s.modality, s.side, s.group, s.source, s.split) == (Modality.XRAY, "patient", "cxr_1", "cxr", None)
        assert Sample.from_json(json.loads(json.dumps(s.to_json()))) == s
    assert len({s.id for s in samples}) == 6


def fault(field: str, value: Any) -> dict[str, Any]:
    return record("cxr_bad", **({"image": "images/shared.png"} | {field: value}))


FAULTS = [
    (fault("objects", [{"name": "lung", "box": [10, 10, 101, 20]}]), "objects[0].box", "[10, 10, 101, 20]"),
    (fault("objects", [{"name": "lung", "box": [10, 10, 10, 20]}]), "objects[0].box", "empty in"),
    (fault("objects", [{"name": "lung", "box": [20, 10, 10, 20]}]), "objects[0].box", "give --box-form xywh"),
    (fault("objects", [{"name": "lung", "box": [-1, 10, 10, 20]}]), "objects[0].box", "100x50"),
    (fault("objects", [{"name": "lung", "box": [1, 10, 10]}]), "objects[0].box", "four numbers"),
    (fault("objects", [{"name": "lung", "box": [1, 10, "10", 20]}]), "objects[0].box", "four numbers"),
    (fault("objects", [{"name": "lung", "box": [1, 10, True, 20]}]), "objects[0].box", "four numbers"),
    (fault("objects", [{"name": "lung", "box": [1, 10, float("nan"), 20]}]), "objects[0].box", "four numbers"),
    (fault("objects", [{"name": "", "box": [1, 10, 10, 20]}]), "objects[0].name", "empty"),
    (fault("objects", [{"name": "a [box]", "box": [1, 10, 10, 20]}]), "objects[0].name", "kept for"),
    (fault("objects", ["lung"]), "objects[0]", "an object"),
    (fault("objects", {"lung": 1}), "objects", "a list"),
    (fault("qa", [{"question": "What?", "answer": " "}]), "qa[0].answer", "empty"),
    (fault("qa", [{"question": "What?", "answer": 3}]), "qa[0].answer", "3"),
    (fault("qa", [{"answer": "yes"}]), "qa[0].question", "null"),
    (fault("modality", "thermography"), "modality", "thermography"),
    (fault("modality", None), "modality", "null"),
    (fault("image", "images/none.png"), "image", "no such file"),
    (fault("image", "../records.jsonl"), "image", "leads out"),
    (fault("image", "records.jsonl"), "image", "not an image"),
    (fault("width", 200), "width", "100 pixels"),
    (fault("id", ""), "id", "empty"),
    (record("cxr_ok", image="images/shared.png"), "id", "already used by row 1"),
    (record("cxr_new", image="images/cxr_ok.png"), "image", "already used by row 1"),
    ("{not json", "row", "not JSON"),
    ("[1, 2]", "row", "not a JSON object"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "field", "told"), FAULTS, ids=[f"{k}-{f[1]}" for k, f in enumerate(FAULTS)])
def test_a_faulty_row_is_left_out_whole_and_named(tmp_path: Path, row: Any, field: str, told: str) -> None:
    root = folder(tmp_path, record("cxr_ok"), row, record("cxr_last"))
    found = read(root)
    assert {s.group for s in found.samples} == {"cxr_ok", "cxr_last"}
    (problem,) = found.problems
    line = str(problem)
    assert problem.row == 2 and problem.field == field and told in line and "\n" not in line
    assert line.startswith(f"{root / 'records.jsonl'}, row 2{f', id {problem.id}' if problem.id != '?' else ''}: ")
    with pytest.raises(BadInput, match="row 2"):
        found.demand()


def test_all_problems_are_collected(tmp_path: Path) -> None:
    found = read(folder(tmp_path, *(row for row, _, _ in FAULTS)))
    assert len(found.problems) >= len(FAULTS) - 2  # the two clashes with row 1 are lawful rows here
    with pytest.raises(BadInput, match=f"and {len(found.problems) - 1} more rows"):
        found.demand()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the form of the data cannot be told"):
        read(tmp_path)
    (tmp_path / "records.jsonl").write_text("\n\n")
    with pytest.raises(BadInput, match="no rows"):
        read(tmp_path)
    with pytest.raises(BadInput, match="max_questions=0"):
        read(tmp_path, max_questions=0)


def many(root: Path) -> Path:
    cells = [{"name": "cell", "box": [k, 0, k + 5, 5]} for k in range(0, 90, 6)]
    lungs = [{"name": "lung", "box": [k, 10, k + 5, 20]} for k in range(0, 12, 6)]
    return folder(root, record(objects=cells + lungs, qa=[]), record("cxr_2"))


def test_caps_are_counted_and_never_cut_an_answer(tmp_path: Path) -> None:
    whole = read(many(tmp_path), max_questions=1000, max_boxes=1000)
    assert not whole.told
    few = read(tmp_path, max_questions=5, max_boxes=4)
    assert few.told["names with more than max_boxes=4 boxes in one image"] == 1
    assert all(len(s.answer.boxes) <= 4 for s in few.samples)
    per_image = Counter(s.group for s in few.samples)
    assert max(per_image.values()) == 5
    assert len(few.samples) + few.told.total() == len(whole.samples)
    full = {s.id: s for s in whole.samples}
    assert all(full[s.id] == s for s in few.samples)
    assert read(tmp_path, max_questions=5, max_boxes=4) == few
    draws = {frozenset(s.id for s in read(tmp_path, seed=k, max_questions=5).samples) for k in range(5)}
    assert len(draws) > 1


@pytest.mark.parametrize(
    ("name", "group", "source"),
    [
        ("sts_STS_012_ct_z038", "sts_STS_012", "sts"),
        ("mbh_158019", "mbh_158", "mbh"),
        ("bccd_BloodImage_00005", "bccd_BloodImage_00005", "bccd"),
        ("vqarad_synpic43609", "vqarad_synpic43609", "vqarad"),
        ("plain", "plain", "plain"),
    ],
)
def test_groups_and_sources_come_from_the_id(name: str, group: str, source: str) -> None:
    assert boxes.parse_patient_group(name) == group and boxes.parse_origin(name) == source


@pytest.fixture(scope="module")
def real(shared: Path) -> Reading:
    return read(shared / "data" / "dev", max_questions=10_000, max_boxes=10_000)


def test_every_real_record_is_read(real: Reading, shared: Path) -> None:
    rows = [json.loads(line) for line in (shared / "data" / "dev" / "records.jsonl").read_text().splitlines()]
    samples = real.demand()
    kinds = Counter(s.task for s in samples)
    assert {s.images[0].path for s in samples} == {row["image"] for row in rows}
    assert kinds[Task.ROC] == sum(len(row["objects"]) for row in rows)
    assert kinds[Task.QA] == sum(len(row["qa"]) for row in rows)
    assert kinds[Task.VG] == sum(len({o["name"] for o in row["objects"]}) for row in rows)
    by_image = {row["image"]: row for row in rows}
    for s in samples:
        row = by_image[s.images[0].path]
        if s.task is Task.ROC:
            x1, y1, x2, y2 = s.question.boxes[0].to_json()
            pixels = [x1 * row["width"], y1 * row["height"], x2 * row["width"], y2 * row["height"]]
            assert {"name": s.answer.text, "box": [round(v) for v in pixels]} in row["objects"]
    modalities = {s.modality for s in samples}
    assert len(modalities) == 9 and Modality.MICROSCOPY in modalities


def test_real_patients_stay_together(real: Reading) -> None:
    samples = split_samples(real.samples, 0.1, 0.2, seed=0)
    splits: dict[str, set[str | None]] = {}
    for s in samples:
        patient = {"sts": s.images[0].path[:18], "mbh": s.images[0].path[:14]}.get(s.source, s.images[0].path)
        splits.setdefault(patient, set()).add(s.split)
    assert all(len(v) == 1 for v in splits.values())
    assert len([p for p in splits if "sts_STS" in p]) < 30 < len({s.images for s in samples if s.source == "sts"})
    for name in {s.source for s in samples}:
        assert {s.split for s in samples if s.source == name} == {"train", "validation", "test"}
    assert len(count_samples(samples).rows) == 3 * (9 + 1)


def test_real_boxes_survive_the_family_codec(real: Reading) -> None:
    family = make_codec("qwen2-vl")
    for s in real.samples:
        back = family.decode(family.encode(s.answer)).answer
        assert back.text == s.answer.text
        assert all(iou(a, b) > 0.85 for a, b in zip(s.answer.boxes, back.boxes, strict=True))
