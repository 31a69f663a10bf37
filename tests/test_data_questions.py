"""The sentences of the tasks: how they read, that they are true and drawn by seed; bare pairs, once each."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from clinkd.data import questions
from clinkd.data.questions import make_bare_pairs
from clinkd.data.readers.annotated import Annotated, make_samples
from clinkd.data.readers.source import Source
from clinkd.language.conflicts import conflicts, numbers, sides
from clinkd.language.negation import mentions
from clinkd.records import BOX_MARK, Box, BoxedText, ImageRef, Modality, Sample, Task, Turn

HERE, THERE = Box(0.1, 0.1, 0.3, 0.3), Box(0.5, 0.5, 0.9, 0.9)
NAMES = ("liver", "left lung", "lungs", "tumour of the 3rd ventricle", "LV", "optic disc")


def sample(tag: str, turn: Turn, name: str, image: str = "a.png") -> Sample:
    return Sample(f"{image}-{tag}", (ImageRef(image, 64, 64),), Modality.CT, (turn,), image, names=(name,))


def random_box(dice: random.Random) -> Box:
    x1, x2 = sorted(dice.sample(range(101), 2))
    y1, y2 = sorted(dice.sample(range(101), 2))
    return Box(x1 / 100, y1 / 100, x2 / 100, y2 / 100)


def all_sentences(name: str, box: Box) -> set[str]:
    return {questions.write_box_sentence(name, box, random.Random(seed)) for seed in range(60)}


# ---- how they read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "templates", [questions.WHERE, questions.WHAT, questions.DESCRIBE, questions.OVERALL, questions.SENTENCES]
)
def test_each_task_is_said_in_several_ways_that_differ(templates: tuple[str, ...]) -> None:
    assert len(templates) >= 4 and len({t.casefold() for t in templates}) == len(templates)


def reads_well(text: str) -> bool:
    one_end = re.fullmatch(r"[^.?]+[.?]", text.replace("3rd.", "3rd"))
    return bool(one_end) and text[0].isupper() and "  " not in text and not re.search(r"[{}]| [.,;?]|,\S", text)


@pytest.mark.parametrize("name", NAMES)
def test_every_sentence_reads_well(name: str) -> None:
    for seed in range(60):
        dice = random.Random(seed)
        boxes = [random_box(dice) for _ in range(1 + seed % 4)]
        where, what = questions.ask_where(name, boxes, dice), questions.ask_what(boxes[0], name, dice)
        told = questions.write_box_sentence(name, boxes[0], dice)
        described = questions.ask_description(boxes[0], told, dice)
        for text in (where.question.text, what.question.text, described.question.text, told):
            assert reads_well(text), text
        assert where.question.text.count(name) == told.count(name) == 1
        assert name not in what.question.text and name not in described.question.text, "the answer is in the question"
        assert [t.task for t in (where, what, described)] == [Task.VG, Task.ROC, Task.RC]
        assert what.question.boxes == described.question.boxes == (boxes[0],) and where.question.boxes == ()
        assert (what.answer, described.answer) == (BoxedText(name), BoxedText(told))


@pytest.mark.parametrize("count", range(1, 6))
def test_a_name_stands_next_to_its_first_box(count: int) -> None:
    dice = random.Random(count)
    boxes = tuple(random_box(dice) for _ in range(count))
    answer = questions.ask_where("liver", boxes, dice).answer
    assert answer.boxes == boxes and answer.text.startswith(f"Here is the liver{BOX_MARK}")
    assert answer.text.count(BOX_MARK) == count and answer.text.count(" and ") == min(count - 1, 1)


def test_two_boxes_are_joined_by_and() -> None:
    assert questions.ask_where("liver", [HERE, THERE], random.Random(0)).answer == BoxedText(
        "Here is the liver[box] and [box].", (HERE, THERE)
    )


# ---- that they are true ---------------------------------------------------------------------------------------------


def test_a_sentence_says_the_third_of_the_centre_and_a_near_share_of_the_area() -> None:
    spoken = {
        "a hundredth": (0, 0.01), "a few hundredths": (0.01, 0.035), "a twentieth": (0.03, 0.08),
        "a tenth": (0.05, 0.2), "a quarter": (0.15, 0.3), "a third of": (0.25, 0.45), "half": (0.4, 0.6),
        "most": (0.5, 0.9), "all": (0.8, 1),
    }  # fmt: skip
    dice = random.Random(1)
    heard: Counter[str] = Counter()
    large = [Box(k / 200, k / 100, 1 - k / 200, 1) for k in range(20)]
    for box in large + [random_box(dice) for _ in range(2000)]:
        told = questions.write_box_sentence("spleen", box, dice)
        (third,) = re.findall(r"(upper|middle|lower) third", told)
        low = ("upper", "middle", "lower").index(third) / 3
        assert low - 1e-9 <= box.centre[1] <= low + 1 / 3 + 1e-9
        (share,) = [k for k in spoken if f" {k}" in told]
        least, most = spoken[share]
        assert least <= box.area <= most, (told, box.area)
        heard[share] += 1
    assert set(heard) == set(spoken)


def test_a_sentence_states_no_count_and_no_side_but_the_name_s_own() -> None:
    dice = random.Random(2)
    for _ in range(300):
        box = random_box(dice)
        for told in all_sentences("left lung", box):
            assert numbers(told) == frozenset() and sides(told) == {"left"} and mentions(told, "left lung")
        for told in all_sentences("spleen", box):
            assert numbers(told) == sides(told) == frozenset()


def test_ways_to_say_one_thing_do_not_contradict_each_other() -> None:
    told = sorted(all_sentences("left lung", HERE))
    assert len(told) == len(questions.SENTENCES)
    assert all(conflicts(a, b) == () for a in told for b in told)


# ---- that they are drawn by seed ------------------------------------------------------------------------------------


def asked(seed: int, name: str = "a", **changes: object) -> list[Sample]:
    record = Annotated(name, ImageRef("a.png", 64, 64), Modality.CT, (("liver", HERE), ("spleen", THERE)))
    source = Source(Path("."), tasks=(Task.VG, Task.ROC, Task.RC), seed=seed, **changes)  # type: ignore[arg-type]
    return make_samples(record, source, Counter())


def test_the_same_seed_asks_the_same_and_others_ask_otherwise() -> None:
    assert asked(3) == asked(3)
    assert Counter(s.task for s in asked(3)) == {Task.VG: 2, Task.ROC: 2, Task.RC: 2}
    for task, templates in ((Task.VG, questions.WHERE), (Task.ROC, questions.WHAT), (Task.RC, questions.DESCRIBE)):
        said = Counter(s.question.text for seed in range(300) for s in asked(seed) if s.task is task)
        assert len(said) == len(templates) * (2 if task is Task.VG else 1)
        assert min(said.values()) > max(said.values()) / 3, "one way to ask is hardly used"
    told = {s.answer.text for seed in range(60) for s in asked(seed) if s.task is Task.RC}
    assert len(told) == 2 * len(questions.SENTENCES)
    assert len({tuple(s.question.text for s in asked(0, name)) for name in "abcdefgh"}) > 1, "all images ask alike"


# ---- bare pairs -----------------------------------------------------------------------------------------------------


def test_bare_pairs_hold_each_name_and_box_of_an_image_once() -> None:
    dice = random.Random(0)
    asked = [
        sample("vg", questions.ask_where("liver", [HERE, THERE], dice), "liver"),
        sample("vg again", questions.ask_where("liver", [HERE, THERE], dice), "liver"),
        sample("roc", questions.ask_what(HERE, "liver", dice), "liver"),
        sample("roc again", questions.ask_what(HERE, "liver", dice), "liver"),
        sample("rc", questions.ask_description(HERE, "A liver.", dice), "liver"),
        sample("mia", questions.ask_overall("One liver.", dice), "liver"),
        sample("vg", questions.ask_where("liver", [HERE, THERE], dice), "liver", "b.png"),
    ]
    pairs = make_bare_pairs(asked)
    assert [(s.task, s.images[0].path, s.question, s.answer) for s in pairs] == [
        (Task.VG, "a.png", BoxedText("the liver"), BoxedText("the liver[box] [box]", (HERE, THERE))),
        (Task.ROC, "a.png", BoxedText("[box]", (HERE,)), BoxedText("liver")),
        (Task.VG, "b.png", BoxedText("the liver"), BoxedText("the liver[box] [box]", (HERE, THERE))),
    ]
    assert len({s.id for s in pairs}) == 3 and not {s.id for s in pairs} & {s.id for s in asked}


def test_questions_without_a_name_of_their_own_make_pairs_where_their_answer_is_one() -> None:
    """As Med-GRIT's rows are: the name of a place is in its words, that of a box is the answer."""
    dice = random.Random(0)
    asked = [
        replace(sample("vg", questions.ask_where("liver", [HERE], dice), "liver"), names=()),
        replace(sample("roc", questions.ask_what(HERE, "liver", dice), "liver"), names=()),
    ]
    (pair,) = make_bare_pairs(asked)
    assert (pair.task, pair.answer, pair.names) == (Task.ROC, BoxedText("liver"), ("liver",))
