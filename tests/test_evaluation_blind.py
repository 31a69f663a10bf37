"""The image-blind twins: that they are blind, fair to the data, and as strong as a guess can be."""

from __future__ import annotations

import random

import pytest

from clinkd.evaluation.blind import CONSTANT, MEDIAN_BOX, OTHER_IMAGE, QUESTION_ONLY, blind_twins
from clinkd.records import Box, BoxedText, Fact, ImageRef, Modality, Prediction, Sample, Task, Turn


def sample(
    name: str,
    task: Task,
    question: BoxedText | str,
    answer: BoxedText | str,
    *,
    group: str = "",
    names: tuple[str, ...] = (),
    facts: tuple[Fact, ...] = (),
    modality: Modality = Modality.CT,
) -> Sample:
    turn = Turn(task, *(BoxedText(t) if isinstance(t, str) else t for t in (question, answer)))
    return Sample(name, (ImageRef("a.png", 64, 64),), modality, (turn,), group or name, "", names, facts)


def square(x: float, y: float, side: float = 0.2) -> Box:
    return Box(x, y, x + side, y + side)


def answers(rows: list[Prediction]) -> dict[str, BoxedText]:
    return {p.id: p.answer.answer for p in rows}


def where(name: str, box: Box, at: str) -> Sample:
    return sample(at, Task.VG, f"Where is the {name}?", BoxedText("[box]", (box,)), names=(name,))


def test_other_image_gives_each_truth_once_and_never_to_its_own_image() -> None:
    test = [sample(f"{g}{i}", Task.ROC, "What?", f"{g}{i}", group=g) for g in "abcdef" for i in range(2)]
    found = answers(blind_twins([], test)[OTHER_IMAGE])
    assert all(answer.text[0] != own[0] for own, answer in found.items())
    assert sorted(a.text for a in found.values()) == sorted(s.id for s in test)
    assert found == answers(blind_twins([], list(reversed(test)))[OTHER_IMAGE])


def test_a_single_image_has_no_other() -> None:
    test = [sample(f"s{i}", Task.ROC, "What?", "liver", group="one") for i in range(3)]
    assert OTHER_IMAGE not in blind_twins([], test)


def test_nothing_but_other_image_depends_on_the_test_truth() -> None:
    dice = random.Random(0)
    train = [sample(f"t{i}", Task.ROC, BoxedText("What is at [box]?", (square(dice.random() / 2, 0.1),)),
                    dice.choice(["liver", "cyst"])) for i in range(40)]  # fmt: skip
    test = [sample("x", Task.ROC, BoxedText("What is at [box]?", (square(0.1, 0.1),)), "liver")]
    other = [sample("x", Task.ROC, test[0].question, "something else", names=("lung",))]
    for twin in (CONSTANT, QUESTION_ONLY):
        assert answers(blind_twins(train, test)[twin]) == answers(blind_twins(train, other)[twin])


def test_median_box_is_of_the_class_and_says_when_it_is_not() -> None:
    train = [where("liver", square(x, 0.1), f"l{x}") for x in (0.1, 0.2, 0.5)]
    train += [where("cyst", square(x, 0.7), f"c{x}") for x in (0.1, 0.2, 0.3)]
    test = [where("liver", square(0, 0), "x"), where("lung", square(0, 0), "y")]
    rows = {p.id: p for p in blind_twins(train, test)[MEDIAN_BOX]}
    assert rows["x"].answer.answer.boxes[0].to_json() == pytest.approx([0.2, 0.1, 0.4, 0.3])
    assert rows["x"].by == MEDIAN_BOX and "not in training" in rows["y"].by


def test_the_likeliest_box_beats_the_median_where_places_are_two() -> None:
    train = [where("liver", square(0.05, 0.1), f"a{i}") for i in range(6)]
    train += [where("liver", square(0.7, 0.1), f"b{i}") for i in range(5)]
    train += [where("liver", square(0.4, 0.6), "c")]
    found = blind_twins(train, [where("liver", square(0, 0), "x")])
    assert answers(found[QUESTION_ONLY])["x"].boxes == (square(0.05, 0.1),)
    assert answers(found[MEDIAN_BOX])["x"].boxes != (square(0.05, 0.1),)


def test_two_boxes_are_answered_where_two_are_usual() -> None:
    pair = (square(0.1, 0.1), square(0.6, 0.1))
    train = [sample(f"t{i}", Task.VG, "Where are the lungs?", BoxedText("[box] [box]", pair), names=("lungs",))
             for i in range(3)]  # fmt: skip
    found = blind_twins(train, [where("lungs", square(0, 0), "x")])
    assert all(answers(found[t])["x"].boxes == pair for t in (MEDIAN_BOX, CONSTANT, QUESTION_ONLY))


def test_question_only_reads_the_class_off_the_place_of_the_box() -> None:
    dice = random.Random(1)

    def item(i: int, train: bool) -> Sample:
        left = dice.random() < 0.4
        box = square(dice.uniform(0.0, 0.25) if left else dice.uniform(0.5, 0.75), dice.uniform(0, 0.7))
        words = dice.choice(("What is at [box]?", "Name the structure in [box]."))
        return sample(f"{train}{i}", Task.ROC, BoxedText(words, (box,)), "liver" if left else "spleen")

    train, test = [item(i, True) for i in range(120)], [item(i, False) for i in range(40)]
    found = blind_twins(train, test)
    by_place, constant = answers(found[QUESTION_ONLY]), answers(found[CONSTANT])
    assert all(by_place[s.id] == s.answer for s in test)
    assert {a.text for a in constant.values()} == {"spleen"}


def test_question_only_knows_side_and_size_of_a_caption_from_its_box() -> None:
    dice = random.Random(2)

    def item(i: int) -> Sample:
        side, size = dice.choice(("left", "right")), dice.choice(("small", "large"))
        width = 0.1 if size == "small" else 0.3
        box = square(dice.uniform(0, 0.15) + (0.5 if side == "right" else 0), dice.uniform(0, 0.6), width)
        text = f"A {size} {(shade := dice.choice(('dark', 'bright')))} cyst on the {side}."
        question = BoxedText("Describe [box].", (box,))
        return sample(f"s{i}", Task.RC, question, text, facts=(Fact("cyst", size, side, shade),))

    train, test = [item(i) for i in range(200)], [item(1000 + i) for i in range(30)]
    found = answers(blind_twins(train, test)[QUESTION_ONLY])
    known = [s.facts[0].side in found[s.id].text and s.facts[0].size in found[s.id].text for s in test]
    assert sum(known) >= 28


def test_question_only_answers_as_the_same_question_was_answered() -> None:
    train = [sample(f"a{i}", Task.QA, "Is there a fracture?", "no") for i in range(5)]
    train += [sample(f"b{i}", Task.QA, "Is the heart seen?", "yes") for i in range(9)]
    test = [sample("x", Task.QA, "Is there a fracture?", "yes")]
    found = blind_twins(train, test)
    assert answers(found[QUESTION_ONLY])["x"].text == "no"
    assert answers(found[CONSTANT])["x"].text == "yes"


def test_a_modality_without_training_falls_back_and_says_so() -> None:
    train = [sample("a", Task.QA, "Which organ?", "liver")]
    test = [sample("x", Task.QA, "Which organ?", "liver", modality=Modality.PET)]
    row = blind_twins(train, test)[CONSTANT][0]
    assert row.answer.answer.text == "liver" and "no training question of the modality" in row.by
