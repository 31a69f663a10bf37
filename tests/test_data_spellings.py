"""Names that differ in case, white space and underscores alone are one name, and this is told."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from clinkd.data.checks.check import Checks, Findings, check, quarantine
from clinkd.data.importing import import_data
from clinkd.data.readers.forms import read_samples
from clinkd.data.readers.source import Source, fold_name
from clinkd.records import Modality, Sample, Task

SPELLINGS = ("Left Lung", "left lung", "left_lung ", "LEFT  LUNG")


def write_records(root: Path, *names: str) -> Source:
    """One image with a box for each name."""
    root.mkdir(parents=True)
    objects = [{"name": name, "box": [10 * n, 5, 10 * n + 8, 20]} for n, name in enumerate(names)]
    record = {"id": root.name, "image": f"{root.name}.png", "modality": "fundus", "objects": objects}
    (root / "records.jsonl").write_text(json.dumps(record) + "\n")
    Image.new("L", (100, 40), 7).save(root / f"{root.name}.png")
    return Source(root)


def names_of(samples: list[Sample]) -> set[str]:
    return {name for sample in samples for name in sample.names}


def test_spellings_of_a_name_are_one_and_told(tmp_path: Path) -> None:
    findings = check(write_records(tmp_path / "a", *SPELLINGS, "polyp"), Checks(workers=1))
    assert {c.name: len(c.box_N4) for c in findings.classes} == {"Left Lung": 4, "polyp": 1}
    for name in ("left lung", "left_lung", "LEFT LUNG"):
        assert findings.notes[f"names spelled {name!r}, taken for 'Left Lung'"] == 1
    samples = read_samples(write_records(tmp_path / "b", *SPELLINGS), Counter())
    assert names_of(samples) == {"Left Lung"}
    (where,) = [s for s in samples if s.task is Task.VG]  # one question, whose answer has all boxes
    assert len(where.answer.boxes) == 4 and "Left Lung" in where.question.text + where.answer.text
    assert {s.answer.text for s in samples if s.task is Task.ROC} == {"Left Lung"}


@pytest.mark.parametrize("form", ["sheet", "coco"])
def test_each_form_with_names_takes_them_so(tmp_path: Path, form: str) -> None:
    write_records(tmp_path / "a", "x")
    if form == "sheet":
        rows = [f"a.png,{name},{10 * n},5,{10 * n + 8},20,fundus" for n, name in enumerate(SPELLINGS)]
        file = tmp_path / "a/boxes.csv"
        file.write_text("\n".join(["image,name,x1,y1,x2,y2,modality", *rows]))
    else:
        file = tmp_path / "a/instances.json"
        boxes = [{"id": n, "image_id": 1, "category_id": n, "bbox": [10 * n, 5, 8, 15]} for n in range(4)]
        coco = {"images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 40}], "annotations": boxes,
                "categories": [{"id": n, "name": name} for n, name in enumerate(SPELLINGS)]}  # fmt: skip
        file.write_text(json.dumps(coco))
    samples = read_samples(Source(file, modality=Modality.FUNDUS), Counter())
    assert names_of(samples) == {"Left Lung"} and len(samples) == 5


def test_sources_of_an_import_share_their_spellings_also_when_read_again(tmp_path: Path) -> None:
    sources = [write_records(tmp_path / "a", "Lung"), write_records(tmp_path / "b", "lung", "LUNG")]
    findings = import_data(sources, tmp_path / "out", Checks(workers=1), None)
    written = [Sample.from_json(json.loads(line)) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert names_of(written) == {"Lung"} and findings.notes["names spelled 'LUNG', taken for 'Lung'"] == 1
    again = Findings(bad=findings.bad)
    quarantine(sources, again, tmp_path / "bad.jsonl")
    assert again.quarantined == 0


def test_texts_that_others_wrote_stay_and_their_spellings_are_told(tmp_path: Path) -> None:
    sources = [write_records(tmp_path / "a", "Lung"), write_records(tmp_path / "b", "lung")]
    for number, source in enumerate(sources):
        import_data([source], tmp_path / f"set{number}", Checks(workers=1), None)
    sets = [Source(tmp_path / f"set{number}") for number in range(2)]
    findings = import_data(sets, tmp_path / "out", Checks(workers=1), None)
    (note,) = [note for note in findings.notes if note.startswith("names spelled in several ways")]
    assert "'Lung' (2), 'lung' (2)" in note and findings.notes[note] == 4


def test_names_are_compared_by_what_they_share() -> None:
    assert fold_name(" Left__LUNG\t") == fold_name("left lung") == "left lung"
    assert fold_name("Gef\u00e4\u00df") == fold_name("GEFA\u0308SS") and fold_name("t1") != fold_name("t 1")
