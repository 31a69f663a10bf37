"""The image-blind baselines: that they are blind, fair to the data, and as strong as a guess can be."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from clinkd.records import Box, BoxedText, Fact, ImageRef, Modality, Prediction, Sample, Task, Turn
from clinkd.scoring.blind.baselines import (
    BASELINES,
    CONSTANT,
    IMAGES_SHUFFLED,
    LEARNED,
    MEDIAN_BOX,
    OTHER_IMAGE,
    QUESTION_ONLY,
    make_image_blind_baselines,
    shuffle_images,
)


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
    found = answers(make_image_blind_baselines([], test)[OTHER_IMAGE])
    assert all(answer.text[0] != own[0] for own, answer in found.items())
    assert sorted(a.text for a in found.values()) == sorted(s.id for s in test)
    assert found == answers(make_image_blind_baselines([], list(reversed(test)))[OTHER_IMAGE])


def test_a_single_image_has_no_other() -> None:
    test = [sample(f"s{i}", Task.ROC, "What?", "liver", group="one") for i in range(3)]
    assert OTHER_IMAGE not in make_image_blind_baselines([], test)


def test_nothing_but_other_image_depends_on_the_test_truth() -> None:
    dice = random.Random(0)
    train = [sample(f"t{i}", Task.ROC, BoxedText("What is at [box]?", (square(dice.random() / 2, 0.1),)),
                    dice.choice(["liver", "cyst"])) for i in range(40)]  # fmt: skip
    test = [sample("x", Task.ROC, BoxedText("What is at [box]?", (square(0.1, 0.1),)), "liver")]
    other = [sample("x", Task.ROC, test[0].question, "something else", names=("lung",))]
    for baseline in (CONSTANT, QUESTION_ONLY):
        assert answers(make_image_blind_baselines(train, test)[baseline]) == answers(
            make_image_blind_baselines(train, other)[baseline]
        )


def test_median_box_is_of_the_class_and_says_when_it_is_not() -> None:
    train = [where("liver", square(x, 0.1), f"l{x}") for x in (0.1, 0.2, 0.5)]
    train += [where("cyst", square(x, 0.7), f"c{x}") for x in (0.1, 0.2, 0.3)]
    test = [where("liver", square(0, 0), "x"), where("lung", square(0, 0), "y")]
    rows = {p.id: p for p in make_image_blind_baselines(train, test)[MEDIAN_BOX]}
    assert rows["x"].answer.answer.boxes[0].to_json() == pytest.approx([0.2, 0.1, 0.4, 0.3])
    assert rows["x"].by == MEDIAN_BOX and "not in training" in rows["y"].by


def test_the_likeliest_box_beats_the_median_where_places_are_two() -> None:
    train = [where("liver", square(0.05, 0.1), f"a{i}") for i in range(6)]
    train += [where("liver", square(0.7, 0.1), f"b{i}") for i in range(5)]
    train += [where("liver", square(0.4, 0.6), "c")]
    found = make_image_blind_baselines(train, [where("liver", square(0, 0), "x")])
    assert answers(found[QUESTION_ONLY])["x"].boxes == (square(0.05, 0.1),)
    assert answers(found[MEDIAN_BOX])["x"].boxes != (square(0.05, 0.1),)


def test_two_boxes_are_answered_where_two_are_usual() -> None:
    pair = (square(0.1, 0.1), square(0.6, 0.1))
    train = [sample(f"t{i}", Task.VG, "Where are the lungs?", BoxedText("[box] [box]", pair), names=("lungs",))
             for i in range(3)]  # fmt: skip
    found = make_image_blind_baselines(train, [where("lungs", square(0, 0), "x")])
    assert all(answers(found[t])["x"].boxes == pair for t in (MEDIAN_BOX, CONSTANT, QUESTION_ONLY))


def test_question_only_reads_the_class_off_the_place_of_the_box() -> None:
    dice = random.Random(1)

    def item(i: int, train: bool) -> Sample:
        left = dice.random() < 0.4
        box = square(dice.uniform(0.0, 0.25) if left else dice.uniform(0.5, 0.75), dice.uniform(0, 0.7))
        words = dice.choice(("What is at [box]?", "Name the structure in [box]."))
        return sample(f"{train}{i}", Task.ROC, BoxedText(words, (box,)), "liver" if left else "spleen")

    train, test = [item(i, True) for i in range(120)], [item(i, False) for i in range(40)]
    found = make_image_blind_baselines(train, test)
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
    found = answers(make_image_blind_baselines(train, test)[QUESTION_ONLY])
    known = [s.facts[0].side in found[s.id].text and s.facts[0].size in found[s.id].text for s in test]
    assert sum(known) >= 28


def test_question_only_answers_as_the_same_question_was_answered() -> None:
    train = [sample(f"a{i}", Task.QA, "Is there a fracture?", "no") for i in range(5)]
    train += [sample(f"b{i}", Task.QA, "Is the heart seen?", "yes") for i in range(9)]
    test = [sample("x", Task.QA, "Is there a fracture?", "yes")]
    found = make_image_blind_baselines(train, test)
    assert answers(found[QUESTION_ONLY])["x"].text == "no"
    assert answers(found[CONSTANT])["x"].text == "yes"


def test_a_modality_without_training_falls_back_and_says_so() -> None:
    train = [sample("a", Task.QA, "Which organ?", "liver")]
    test = [sample("x", Task.QA, "Which organ?", "liver", modality=Modality.PET)]
    row = make_image_blind_baselines(train, test)[CONSTANT][0]
    assert row.answer.answer.text == "liver" and "no training question of the modality" in row.by


# ---- without a training split ---------------------------------------------------------------------------------------


def question(task: Task, i: int, dice: random.Random, group: str, modality: Modality = Modality.CT) -> Sample:
    """A question of any task with a truth that has nothing to do with it."""
    box, name = square(dice.uniform(0, 0.7), dice.uniform(0, 0.7)), dice.choice(["liver", "cyst"])
    size, side = dice.choice(["small", "large"]), dice.choice(["left", "right"])
    text = f"A {size} {name} on the {side}."
    asked: dict[Task, BoxedText | str] = {
        Task.VG: f"Where is the {name}?", Task.ROC: BoxedText("What is at [box]?", (box,)),
        Task.RC: BoxedText("Describe [box].", (box,)), Task.MIA: "Describe the image.", Task.QA: "Is it there?",
    }  # fmt: skip
    boxes = tuple(square(dice.uniform(0, 0.7), dice.uniform(0, 0.7)) for _ in range(dice.choice([1, 1, 2])))
    truth: dict[Task, BoxedText | str] = {
        Task.VG: BoxedText(" ".join(["[box]"] * len(boxes)), boxes), Task.ROC: name, Task.RC: text, Task.MIA: text,
        Task.QA: dice.choice(["yes", "no", "maybe", "left"]),
    }  # fmt: skip
    facts = (Fact(name, size, side),) if task in (Task.RC, Task.MIA) and dice.random() < 0.5 else ()
    names = (name,) if task is Task.VG else ()
    name = f"{group}-{task}-{i}-{modality}"
    return sample(name, task, asked[task], truth[task], group=group, names=names, facts=facts, modality=modality)


def test_without_training_nobody_is_answered_from_the_own_group() -> None:
    """Other truths for a whole group change no answer to it, whichever the baseline; answers to other groups change."""
    dice = random.Random(5)
    test = [
        question(task, i, dice, f"g{g}", dice.choice([Modality.CT, Modality.PET]))
        for g in range(10) for i in range(2) for task in Task
    ]  # fmt: skip
    before = {baseline: answers(rows) for baseline, rows in make_image_blind_baselines([], test).items()}
    assert before.keys() == set(BASELINES) - {IMAGES_SHUFFLED, LEARNED} and all(len(a) for a in before.values())
    elsewhere = 0
    for group in sorted({s.group for s in test}):
        other = {s.id: question(s.task, 0, dice, group) for s in test if s.group == group}
        changed = [
            replace(s, turns=(replace(s.turns[0], answer=other[s.id].answer),), facts=other[s.id].facts)
            if s.id in other else s for s in test
        ]  # fmt: skip
        after = {baseline: answers(rows) for baseline, rows in make_image_blind_baselines([], changed).items()}
        for baseline, found in before.items():
            assert {i: found[i] for i in other if i in found} == {i: after[baseline][i] for i in other if i in found}, (
                baseline
            )
            elsewhere += sum(after[baseline][i] != answer for i, answer in found.items() if i not in other)
    assert elsewhere > 50


def test_without_training_the_median_is_of_the_class_in_other_images() -> None:
    test = [where("liver", square(x, 0.1), f"l{i}") for i, x in enumerate((0.1, 0.2, 0.3, 0.6))]
    test += [where("cyst", square(x, 0.7), f"c{i}") for i, x in enumerate((0.1, 0.5))]
    found = make_image_blind_baselines([], test)
    lefts = {i: a.boxes[0].x1 for i, a in answers(found[MEDIAN_BOX]).items()}
    assert lefts == pytest.approx({"l0": 0.3, "l1": 0.3, "l2": 0.2, "l3": 0.2, "c0": 0.5, "c1": 0.1})
    every = {i: a.boxes[0].x1 for i, a in answers(found[CONSTANT]).items()}
    assert every["l3"] == pytest.approx(0.2) and every["c1"] == pytest.approx(0.2)


def test_without_training_the_constant_is_the_commonest_of_the_others() -> None:
    test = [sample(f"a{i}", Task.QA, "Which?", "liver") for i in range(3)]
    test += [sample(f"b{i}", Task.QA, "Which?", "cyst") for i in range(3)]
    found = answers(make_image_blind_baselines([], test)[CONSTANT])
    # three of each: for one's own kind two others are left
    assert {found[f"a{i}"].text for i in range(3)} == {"cyst"} and {found[f"b{i}"].text for i in range(3)} == {"liver"}


def test_without_training_question_only_looks_questions_up() -> None:
    test = [sample(f"{word}{i}", Task.QA, f"Is there a {word}?", said)
            for word, said in (("fracture", "no"), ("heart", "yes")) for i in range(8)]  # fmt: skip
    found = answers(make_image_blind_baselines([], test)[QUESTION_ONLY])
    assert all(found[s.id].text == s.answer.text for s in test)


def test_a_lone_image_of_a_modality_is_answered_from_others_and_a_lone_image_from_none() -> None:
    test = [sample("x", Task.QA, "Which organ?", "liver", modality=Modality.PET)]
    assert make_image_blind_baselines([], test) == {}
    row, _ = make_image_blind_baselines([], [*test, sample("a", Task.QA, "Which organ?", "lung")])[CONSTANT]
    assert row.answer.answer.text == "lung" and "no other image of the modality" in row.by


# ---- learned --------------------------------------------------------------------------------------------------------


def wide_or_tall(i: int, dice: random.Random) -> Sample:
    """A name that is told by the form of its box alone, wherever and however large that is."""
    long, short, wide = dice.uniform(0.08, 0.14), dice.uniform(0.02, 0.06), dice.random() < 0.5
    width, height = (long, short) if wide else (short, long)
    x, y = dice.uniform(0, 1 - width), dice.uniform(0, 1 - height)
    modality = dice.choice([Modality.CT, Modality.MR])
    question = BoxedText("What is at [box]?", (Box(x, y, x + width, y + height),))
    return sample(f"s{i}", Task.ROC, question, "rib" if wide else "spine", modality=modality)


def test_a_forest_learns_what_a_look_up_does_not_find() -> None:
    dice = random.Random(3)
    train, test = [wide_or_tall(i, dice) for i in range(150)], [wide_or_tall(1000 + i, dice) for i in range(60)]
    found = make_image_blind_baselines(train, test)
    right = {name: sum(answers(rows)[s.id] == s.answer for s in test) for name, rows in found.items()}
    assert right[LEARNED] >= 55 > right[QUESTION_ONLY]
    assert found == make_image_blind_baselines(train, test)


def test_a_forest_says_boxes_by_the_name_and_only_options_that_are_there() -> None:
    dice = random.Random(4)
    pair = (square(0.1, 0.1), square(0.6, 0.1))
    train = [where("liver", square(dice.uniform(0.1, 0.14), 0.5), f"l{i}") for i in range(30)]
    train += [sample(f"r{i}", Task.VG, "Where are the lungs?", BoxedText("[box] [box]", pair), names=("lungs",))
              for i in range(30)]  # fmt: skip
    test = [where("liver", square(0, 0), "x"), replace(train[-1], id="y", group="y")]
    found = answers(make_image_blind_baselines(train, test)[LEARNED])
    assert found["y"].boxes == pair and found["x"].boxes[0].to_json() == pytest.approx([0.12, 0.5, 0.32, 0.7], abs=0.03)

    def choice(name: str, right: str, *options: str) -> Sample:
        item = sample(name, Task.QA, f"Which? A: {options[0]} B: {options[1]}", right)
        return replace(item, turns=(replace(item.turns[0], options=options),))

    train = [choice(f"t{i}", ("cyst", "stone")[i % 2], "cyst", "stone") for i in range(45)]
    known, unknown = choice("k", "mass", "mass", "stone"), choice("u", "mass", "mass", "scar")
    found = answers(make_image_blind_baselines(train, [known, unknown])[LEARNED])
    assert found["k"].text == "stone"  # said before, as the mass was not
    assert found["u"].text == "mass"  # none was said before: "A" was right more often


def test_a_forest_never_answers_from_the_own_group() -> None:
    """Other truths for a whole group change no answer to it, and other truths of test questions none at all."""
    dice = random.Random(7)
    tasks = (Task.VG, Task.RC)
    known = [question(task, i, dice, f"g{g}") for g in range(12) for i in range(6) for task in tasks]
    before = answers(make_image_blind_baselines([], known)[LEARNED])
    elsewhere = 0
    for group in ("g1",):
        other = {s.id: question(s.task, 0, dice, group) for s in known if s.group == group}
        changed = [
            replace(s, turns=(replace(s.turns[0], answer=other[s.id].answer),), facts=other[s.id].facts)
            if s.id in other else s for s in known
        ]  # fmt: skip
        after = answers(make_image_blind_baselines([], changed)[LEARNED])
        assert after.keys() == before.keys() == {s.id for s in known}
        assert all(after[i] == before[i] for i in other)
        elsewhere += sum(after[i] != before[i] for i in before if i not in other)
    assert elsewhere
    same_group = [replace(s, id=f"x{s.id}", group="g1") for s in known if s.group == "g1"]
    alone = [s for s in known if s.group != "g1"]
    apart = answers(make_image_blind_baselines(known, same_group)[LEARNED])
    assert all(a.text in {s.answer.text for s in alone} for a in apart.values())


# ---- with another image ---------------------------------------------------------------------------------------------


def test_shuffled_images_are_of_another_group_of_the_same_task_and_modality() -> None:
    dice = random.Random(6)
    test = [
        replace(question(task, i, dice, f"g{g}", kind), images=(ImageRef(f"{kind}-g{g}.png", 64, 64),))
        for kind in (Modality.CT, Modality.PET) for g in range(6) for i in range(2) for task in (Task.VG, Task.RC)
    ]  # fmt: skip
    found = {s.id: s for s in shuffle_images(test)}
    assert found.keys() == {s.id for s in test}
    taken: Counter[str] = Counter()
    for own in test:
        (image,) = found[own.id].images
        assert replace(found[own.id], images=own.images) == own  # nothing else is another
        assert image.path.startswith(own.modality) and image.path != own.images[0].path
        taken[f"{own.task} {image.path}"] += 1
    assert set(taken.values()) == {2}  # each image stands in for as many as it has
    assert shuffle_images(test[:4]) == []  # one image
