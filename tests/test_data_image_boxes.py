"""The boxes of Kvasir-SEG and SLAKE."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from clinkd.data.readers import forms
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, Modality, Task

ENTRY = {"height": 100, "width": 200, "bbox": [{"label": "polyp", "xmin": 38, "ymin": 5, "xmax": 130, "ymax": 88}]}


def read(path: Path):
    samples = forms.read_samples(Source(path, modality=Modality.CT), Counter())
    return {(s.images[0].path, s.names[0], s.answer.boxes[0].corners) for s in samples if s.task is Task.VG}


def kvasir(folder: Path, **change: object) -> Path:
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    for place in ("images", "masks"):
        Image.new("RGB", (200, 100)).save(folder / place / "cju0.jpg")
    (folder / "kavsir_bboxes.json").write_text(json.dumps({"cju0": ENTRY | change}))
    return folder


def test_kvasir_seg(tmp_path):
    """https://datasets.simula.no/kvasir-seg: the folder has masks, too, and the boxes are read."""
    assert read(kvasir(tmp_path)) == {("images/cju0.jpg", "polyp", (38 / 200, 5 / 100, 130 / 200, 88 / 100))}


@pytest.mark.parametrize(
    ("change", "words"),
    [({"width": 7}, "the image has 200 pixels"), ({"bbox": [{"label": "p", "xmin": 1}]}, "four numbers")],
)
def test_boxes_of_another_image_are_refused(tmp_path, change, words):
    with pytest.raises(BadInput, match=words):
        read(kvasir(tmp_path, **change))


def test_kvasir_seg_is_endoscopy_and_its_names_without_suffix_are_no_news(tmp_path):
    notes = Counter()
    samples = forms.read_samples(Source(kvasir(tmp_path)), notes)
    assert {s.modality for s in samples} == {Modality.ENDOSCOPY} and not notes


def test_slake(tmp_path):
    for n in (1, 10, 2):
        (tmp_path / "imgs" / f"xmlab{n}").mkdir(parents=True)
        Image.new("RGB", (200, 100)).save(tmp_path / "imgs" / f"xmlab{n}" / "source.jpg")
        (tmp_path / "imgs" / f"xmlab{n}" / "detection.json").write_text(json.dumps([{"Liver": [10, 20, 30, 40]}]))
    box = (10 / 200, 20 / 100, 40 / 200, 60 / 100)
    assert read(tmp_path / "imgs") == {(f"xmlab{n}/source.jpg", "Liver", box) for n in (1, 2, 10)}
    assert read(tmp_path) == {(f"imgs/xmlab{n}/source.jpg", "Liver", box) for n in (1, 2, 10)}
