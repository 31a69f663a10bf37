"""Bare pairs: names and boxes of an image without sentences, once each."""

from __future__ import annotations

import random

from clinkd.data import bare_pairs, questions
from clinkd.records import Box, BoxedText, ImageRef, Modality, Sample, Task, Turn

HERE, THERE = Box(0.1, 0.1, 0.3, 0.3), Box(0.5, 0.5, 0.9, 0.9)


def sample(tag: str, turn: Turn, name: str, image: str = "a.png") -> Sample:
    return Sample(f"{image}-{tag}", (ImageRef(image, 64, 64),), Modality.CT, (turn,), image, names=(name,))


def test_a_name_stands_next_to_its_box():
    dice = random.Random(0)
    assert questions.where("liver", [HERE, THERE], dice).answer == BoxedText(
        "Here is the liver[box] and [box].", (HERE, THERE)
    )


def test_bare_pairs_hold_each_name_and_box_of_an_image_once():
    dice = random.Random(0)
    asked = [
        sample("vg", questions.where("liver", [HERE, THERE], dice), "liver"),
        sample("vg again", questions.where("liver", [HERE, THERE], dice), "liver"),
        sample("roc", questions.what(HERE, "liver", dice), "liver"),
        sample("roc again", questions.what(HERE, "liver", dice), "liver"),
        sample("rc", questions.describe(HERE, "A liver.", dice), "liver"),
        sample("mia", questions.overall("One liver.", dice), "liver"),
        sample("vg", questions.where("liver", [HERE, THERE], dice), "liver", "b.png"),
    ]
    pairs = bare_pairs(asked)
    assert [(s.task, s.images[0].path, s.question, s.answer) for s in pairs] == [
        (Task.VG, "a.png", BoxedText("the liver"), BoxedText("the liver[box] [box]", (HERE, THERE))),
        (Task.ROC, "a.png", BoxedText("[box]", (HERE,)), BoxedText("liver")),
        (Task.VG, "b.png", BoxedText("the liver"), BoxedText("the liver[box] [box]", (HERE, THERE))),
    ]
    assert len({s.id for s in pairs}) == 3 and not {s.id for s in pairs} & {s.id for s in asked}
