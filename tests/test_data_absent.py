"""Training questions for what an image does not show: which are asked, and that their answers are true."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from clinkd.cli import main
from clinkd.config import PhantomConfig
from clinkd.data.phantoms import write_phantoms
from clinkd.data.questions import ask_absent_names, ask_where, drop_added, make_bare_pairs
from clinkd.data.readers.forms import marks_everything, read_samples
from clinkd.data.readers.source import Source
from clinkd.language.facts import Lexicon
from clinkd.records import Box, BoxedText, Candidate, ImageRef, Modality, Sample, Task, Turn
from clinkd.scoring.measure import Rules, SampleAnswer
from clinkd.scoring.measures.absence import ABSENCE

BOX = Box(0.1, 0.1, 0.5, 0.5)


def shows(image: str, *names: str, source: str = "a", modality: Modality = Modality.CT) -> list[Sample]:
    """The questions where each of the names is."""
    turns = [ask_where(name, [BOX], random.Random(0)) for name in names]
    ref = ImageRef(image, 64, 64)
    return [
        Sample(f"{image}-vg{n}", (ref,), modality, (turn,), image, source, (name,), split="train")
        for n, (turn, name) in enumerate(zip(turns, names, strict=True), start=1)
    ]


def test_only_what_is_not_there_is_asked_as_often_as_the_share_says(tmp_path: Path) -> None:
    config = PhantomConfig(train_images=64, validation_images=1, test_images=1, image_pixels=48, tasks=("VG", "MIA"))
    samples = [s for s in write_phantoms(tmp_path, config, 0) if s.split == "train"]
    assert ask_absent_names(samples, 0, 0) == []
    added = ask_absent_names(samples, 0.25, 0)
    assert added == ask_absent_names(samples, 0.25, 0) != ask_absent_names(samples, 0.25, 1)
    shown = {s.images[0].path: set(s.names) for s in samples if s.task is Task.MIA}
    assert all(s.names[0] not in shown[s.images[0].path] for s in added)
    where, absent = (Counter((s.modality, s.names[0]) for s in part if s.task is Task.VG) for part in (samples, added))
    assert len(where) == 24 and all(abs(absent[k] - where[k] / 4) < 1 for k in where)
    assert max(Counter(s.images for s in added).values()) == 1  # spread over images
    assert (
        len({s.id for s in [*samples, *added]}) == len(samples) + len(added)
        and drop_added([*samples, *added]) == samples
    )
    assert all(s.group == s.id.partition("-")[0] for s in added) and make_bare_pairs(added) == []


def test_no_name_of_another_collection_or_kind_or_that_may_be_there_is_asked() -> None:
    samples = [
        *shows("1", "left lung", "nodule"), *shows("2", "lungs"), *shows("3", "mass"), *shows("4", "cyst", source="b"),
        *shows("5", "polyp", modality=Modality.ENDOSCOPY), *shows("6", "fracture"),
    ]  # fmt: skip
    told = Turn(Task.QA, BoxedText("Is there a mass?"), BoxedText("yes"))
    samples.append(Sample("6-qa", samples[-1].images, Modality.CT, (told,), "6", "a"))
    unmarked = replace(samples[-1], id="7-qa", images=(ImageRef("7", 64, 64),), group="7")  # nobody drew a box there
    added = ask_absent_names([*samples, unmarked], 10, 0, drawn={"3": {"nodule"}})
    asked = {image: {s.names[0] for s in added if s.images[0].path == image} for image in "1234567"}
    assert asked == {
        "1": {"mass", "fracture"},  # not "lungs", of which "left lung" is one
        "2": {"nodule", "mass", "fracture"},
        "3": {"left lung", "lungs", "fracture"},  # a box of "nodule" is drawn, which no question asks for
        "4": set(), "5": set(), "6": {"left lung", "lungs", "nodule"}, "7": set(),
    }  # fmt: skip


def test_the_taught_answer_is_right_by_the_strict_measure() -> None:
    samples = [*shows("1", "polyp"), *shows("2", "ulcer")]
    added = ask_absent_names(samples, 1, 0)
    assert [s.answer.text for s in added] == ["There is no ulcer in the image.", "There is no polyp in the image."]
    asked = [*samples, *added]
    rules = Rules(0.5, Lexicon(("polyp", "ulcer")))

    def accuracy(answers: list[BoxedText]) -> float:
        items = [SampleAnswer(s, Candidate(a.text, a)) for s, a in zip(asked, answers, strict=True)]
        return float(ABSENCE.figure("POPE accuracy", ABSENCE.count(items, rules).sum(0)))

    assert accuracy([s.answer for s in asked]) == 1
    assert accuracy([samples[0].answer] * 4) == 0.5


@pytest.mark.parametrize("imported", [False, True])
def test_the_form_of_the_data_says_whether_everything_is_marked(tmp_path: Path, imported: bool) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    row = {"id": "1", "image": "a.png", "modality": "ct", "objects": [{"name": "liver", "box": [1, 1, 30, 30]}] * 1}
    row["objects"] += [{"name": "cell", "box": [n, 40, n + 5, 50]} for n in range(0, 50, 10)]
    boxes, sheet = tmp_path / "records.jsonl", tmp_path / "sheet.csv"
    boxes.write_text(json.dumps(row))
    sheet.write_text("image,modality,name,x1,y1,x2,y2\na.png,ct,liver,1,1,30,30\n")
    for file, more, marked in ((boxes, [], True), (boxes, ["--ask", "VG"], False), (sheet, [], False)):
        source = Source(file)
        if imported:
            out = tmp_path / f"set{len(list(tmp_path.iterdir()))}"
            command = ["data", "import", str(file), "--out", str(out), "--workers", "1", *more]
            assert main([*command, "--validation", "0", "--test", "0"]) == 0
            source = Source(out)
        elif more:
            continue
        read_samples(source, Counter())
        assert marks_everything(source) == marked
        if not imported and marked:  # five are more than are asked for, and still there
            assert source.drawn.by_image == {"a.png": {"liver", "cell"}}
