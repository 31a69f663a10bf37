"""Whose left: contradictions of words and boxes, conversion between frames."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from clinkd.data.readers.columns import SHEET_COLUMNS
from clinkd.data.readers.forms import read_samples
from clinkd.data.readers.source import Source
from clinkd.language.conflicts import conflicts, sides
from clinkd.language.languages import list_languages, read_languages
from clinkd.language.sides import convert_side, find_side_contradiction, names_other_side
from clinkd.records import BadInput, Box, BoxedText, Fact, ImageRef, Modality, Sample, Side, Task, Turn

LEFT, RIGHT, MIDDLE = Box(0.05, 0.1, 0.45, 0.9), Box(0.55, 0.1, 0.95, 0.9), Box(0.3, 0.1, 0.8, 0.9)  # of the picture


SIDES: tuple[Side, ...] = ("patient", "image")


def sample(
    task: Task,
    question: str,
    answer: str,
    *boxes: Box,
    side: Side = "patient",
    modality: Modality = Modality.XRAY,
    names: tuple[str, ...] = (),
    facts: tuple[Fact, ...] = (),
) -> Sample:
    asked, said = (boxes, ()) if "[box]" in question else ((), boxes)
    turn = Turn(task, BoxedText(question, asked), BoxedText(answer, said))
    return Sample("a1", (ImageRef("a.png", 512, 512),), modality, (turn,), "g", "", names, facts, side)


def vg(answer: str, *boxes: Box, side: Side = "patient", modality: Modality = Modality.XRAY) -> Sample:
    return sample(Task.VG, "Where is it?", answer + "[box]" * len(boxes), *boxes, side=side, modality=modality)


def roc(answer: str, box: Box, *, side: Side = "patient", modality: Modality = Modality.XRAY) -> Sample:
    return sample(Task.ROC, "What is [box]?", answer, box, side=side, modality=modality)


def qa(question: str, answer: str, side: Side = "patient", modality: Modality = Modality.CT) -> Sample:
    return sample(Task.QA, question, answer, side=side, modality=modality)


# ---- contradiction --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", ["left lung", "Left lung.", "the LEFT hemidiaphragm", "It is the left-sided effusion"]
)
@pytest.mark.parametrize("modality", [Modality.CT, Modality.MR, Modality.XRAY, Modality.PET])
def test_a_word_on_the_wrong_half_is_told(answer: str, modality: Modality) -> None:
    frames: tuple[tuple[Side, Side, Box, Box], ...] = (
        ("patient", "image", RIGHT, LEFT),
        ("image", "patient", LEFT, RIGHT),
    )
    for side, other, good, bad in frames:
        for make in (roc, vg):
            assert find_side_contradiction(make(answer, good, side=side, modality=modality)) is None
            assert find_side_contradiction(make(answer, MIDDLE, side=side, modality=modality)) is None
            found = find_side_contradiction(make(answer, bad, side=side, modality=modality))
            assert found and "\n" not in found
            assert re.search(rf"'left' in .*{bad.x1:.2f} to {bad.x2:.2f}.*side={side}.*--side {other}", found, re.I)


def test_all_boxes_must_contradict_and_lie_beyond_the_margin() -> None:
    assert (
        find_side_contradiction(vg("left kidneys", LEFT, LEFT))
        and find_side_contradiction(vg("left kidneys", LEFT, RIGHT)) is None
    )
    assert find_side_contradiction(roc("left lung", Box(0.3, 0, 0.49, 1))) is not None  # centre 0.395
    assert find_side_contradiction(roc("left lung", Box(0.3, 0, 0.51, 1))) is None  # centre 0.405


def test_names_tell_where_the_answer_is_silent() -> None:
    bare = sample(Task.VG, "Where is it?", "[box]", LEFT, names=("left lung",))
    assert (
        find_side_contradiction(bare)
        and find_side_contradiction(replace(bare, names=("left lung", "right lung"))) is None
    )
    assert find_side_contradiction(replace(bare, names=())) is None


def test_the_question_is_held_to_the_box_too() -> None:
    asked = partial(sample, Task.VG, "Where is the right lung?")
    assert find_side_contradiction(asked("The left lung[box].", RIGHT)), "where only the answer fits the box"
    assert find_side_contradiction(asked("It is here[box].", RIGHT, names=("lung",)))
    assert find_side_contradiction(asked("The right lung[box].", LEFT)) is None
    both = sample(Task.VG, "Is the nodule in the right or the left lung?", "Left[box]", RIGHT)
    assert find_side_contradiction(both) is None


def test_a_stated_frame_outweighs_the_declared_one() -> None:
    for side in SIDES:
        for text, good in (
            ("nodule on the left of the image", LEFT),
            ("nodule on the left side of this picture", LEFT),
            ("nodule in the image's left half", LEFT),
            ("nodule in the patient's left lung", RIGHT),
            ("nodule on the left side of the body", RIGHT),
        ):
            bad = RIGHT if good is LEFT else LEFT
            assert find_side_contradiction(roc(text, good, side=side)) is None
            found = find_side_contradiction(roc(text, bad, side=side))
            assert found and "--side" not in found and "correct the word or the box" in found
    assert find_side_contradiction(roc("the left lung, on the right of the image", RIGHT)) is None
    assert find_side_contradiction(roc("the left lung, on the right of the image", LEFT)) is not None


@pytest.mark.parametrize(
    "text",
    [
        "lung", "bilateral opacities", "both lungs", "the left and the right lung", "not the left lung",
        "left ventricle", "left atrium", "left lobe of the liver", "right-sided aortic arch", "left lateral decubitus",
        "the tumour left of the heart", "mass adjacent to the left kidney", "mediastinal shift to the left",
        "left knee", "left breast", "optic disc of the left eye", "fluid left in situ", "L lung", "left lung, OD",
        "on the left in the image", "the lesion left to the midline", "left sagittal view", "left lung on lateral film",
    ],
)  # fmt: skip
def test_doubt_is_no_contradiction(text: str) -> None:
    for box in (LEFT, RIGHT):
        assert find_side_contradiction(roc(text, box)) is None and find_side_contradiction(vg(text, box)) is None


@pytest.mark.parametrize(
    "modality", [Modality.ENDOSCOPY, Modality.ULTRASOUND, Modality.DERMOSCOPY, Modality.MICROSCOPY, Modality.OTHER]
)
def test_modalities_without_a_rule_are_judged_by_the_picture_only(modality: Modality) -> None:
    assert find_side_contradiction(roc("left polyp", LEFT, modality=modality)) is None
    assert find_side_contradiction(roc("left polyp", RIGHT, modality=modality)) is None
    assert find_side_contradiction(roc("left polyp", LEFT, side="image", modality=modality)) is None
    assert find_side_contradiction(roc("left polyp", RIGHT, side="image", modality=modality)) is not None


@pytest.mark.parametrize(
    ("answer", "names", "told"),
    [
        ("This is the left lung, in the upper third of the picture.", ("left lung",), True),
        ("A mass is seen in the left lung.", ("lung",), True),
        ("A mass is seen in the left lung.", (), False),  # of what is the box?
        ("A mass with fluid in the left pleura.", ("mass",), False),  # the fluid's side
        ("The left lung. It reaches the right diaphragm.", ("left lung",), False),
    ],
)
def test_sentences_are_judged_where_the_side_is_that_of_the_named_structure(
    answer: str, names: tuple[str, ...], told: bool
) -> None:
    found = find_side_contradiction(sample(Task.RC, "Describe [box].", answer, LEFT, names=names))
    assert bool(found) is told
    assert find_side_contradiction(sample(Task.RC, "Describe [box].", answer, RIGHT, names=names)) is None


def test_an_answer_is_in_the_frame_of_its_question() -> None:
    asked = sample(Task.ROC, "On which side of the image is [box]?", "left", LEFT)
    assert find_side_contradiction(asked) is None


def test_every_turn_is_looked_at() -> None:
    bad, good = roc("left lung", LEFT), roc("left lung", RIGHT)
    assert find_side_contradiction(replace(bad, turns=(*bad.turns, *good.turns)))


def test_real_boxes_raise_no_false_alarm(shared: Path) -> None:
    samples = read_samples(Source(shared / "data" / "dev", form="boxes"), Counter())
    assert [s.id for s in samples if find_side_contradiction(s)] == []
    sided = [s for s in samples if s.names and re.search("left|right", s.names[0])]
    caught = [s for s in sided if find_side_contradiction(replace(s, side="image"))]  # declared wrongly, on purpose
    assert len(sided) > 300 and len(caught) / len(sided) > 0.98
    for s in samples:
        try:
            other = convert_side(s, "image")
        except BadInput as error:
            assert re.search(r"abbreviation|the question names a frame|a view without", str(error))
        else:
            assert convert_side(other, "patient") == s
            assert find_side_contradiction(other) is None


# ---- conversion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("left lung", "right lung"),
        ("Left lung, RIGHT kidney, right-sided mass", "Right lung, LEFT kidney, left-sided mass"),
        ("leftmost, rightward, left_lung, lower-left", "rightmost, leftward, right_lung, lower-right"),
        ("bilateral; both lungs; contralateral", "bilateral; both lungs; contralateral"),
        ("left lateral ventricle", "right lateral ventricle"),
        ("left ventricle and left lung", "left ventricle and right lung"),
        ("left and right atria, left main bronchus", "left and right atria, right main bronchus"),
        ("right lobe of the liver, right hepatic vein", "right lobe of the liver, right hepatic vein"),
        ("right coronary artery, left anterior descending", "right coronary artery, left anterior descending"),
        ("left-handed, dextrocardia, levoscoliosis, situs inversus, LV", None),
        ("right sided aortic arch, left lateral decubitus, left anterior oblique", None),
        ("left-to-right shunt", None),
        ("a mass at a right angle to it, left in situ", None),
        ("left lung, on the right of the image", "right lung, on the right of the image"),
        ("left lung, on the image's right side", "right lung, on the image's right side"),
        ("the patient's left lung", None),
        ("the left side of the body", None),
        ("copyright, brightness, cleft", None),
        ("L4 vertebra, 1.5 L of fluid, L-spine, 5 mg/L", None),
    ],
)
def test_words_change_their_frame_and_names_do_not(text: str, other: str | None) -> None:
    for question, answer in (("What is it?", "{}"), ("Is it {}?", "Yes")):
        before = qa(question.format(text), answer.format(text))
        after = convert_side(before, "image")
        assert after.side == "image" and after.answer.text == answer.format(other or text)
        assert after.question.text == question.format(other or text)
        assert convert_side(after, "patient") == before
        assert convert_side(before, "patient") is before


def test_names_facts_and_every_turn_are_converted_and_boxes_are_not() -> None:
    facts = (Fact("left lung", "large", "left", "dark", 2), Fact("liver"))
    before = replace(vg("left lung", RIGHT), names=("left lung",), facts=facts)
    before = replace(before, turns=(*qa("Is the left lung clear?", "No").turns, *before.turns))
    after = convert_side(before, "image")
    assert after.names == ("right lung",) and after.answer == BoxedText("right lung[box]", (RIGHT,))
    assert after.facts == (Fact("right lung", "large", "right", "dark", 2), Fact("liver"))
    assert after.turns[0].question.text == "Is the right lung clear?"
    assert find_side_contradiction(before) is None and find_side_contradiction(after) is None
    assert convert_side(after, "patient") == before


@pytest.mark.parametrize(
    ("question", "answer", "modality", "why"),
    [
        ("Where?", "left polyp", Modality.ENDOSCOPY, "'left' in 'left polyp': endoscopy has no rule"),
        ("Where?", "left edge", Modality.DERMOSCOPY, "dermoscopy has no rule"),
        ("Where?", "left kidney", Modality.ULTRASOUND, "ultrasound has no rule"),
        ("Where?", "left eye", Modality.FUNDUS, "fundus has no rule"),
        ("Where?", "left cell", Modality.MICROSCOPY, "microscopy has no rule"),
        ("Where?", "left thing", Modality.OTHER, "other has no rule"),
        ("Is the R kidney normal?", "No", Modality.CT, "'R' in .*an abbreviation; write left or right in full"),
        ("Where?", "RUL", Modality.XRAY, "'RUL' in .*an abbreviation"),
        ("Where?", "lt. lung", Modality.XRAY, "an abbreviation"),
        ("Which eye?", "OS", Modality.MR, "an abbreviation"),
        ("Where?", "lobus dexter", Modality.CT, "Latin"),
        ("Where?", "左肺", Modality.CT, "not English"),
        ("Where?", "right below the diaphragm", Modality.CT, "'right below' in .*a side, or just there"),
        ("Where?", "on the left in the image", Modality.CT, "whose left"),
        ("Where?", "left lung of the patient", Modality.CT, "whose left"),
        ("Which side of the image is it on?", "Left side", Modality.XRAY, "the question names a frame"),
        ("What is on the patient's left side?", "a left mass", Modality.XRAY, "the question names a frame"),
        ("Is this sagittal?", "left frontal lobe", Modality.MR, "'sagittal' in .*a view without left and right"),
        ("Where?", "lEFT lung", Modality.CT, "capitals within the word"),
    ],
)
def test_a_conversion_that_would_be_a_guess_is_refused(
    question: str, answer: str, modality: Modality, why: str
) -> None:
    with pytest.raises(BadInput, match=why) as raised:
        convert_side(qa(question, answer, modality=modality), "image")
    assert str(raised.value).startswith("sample a1: ") and "\n" not in str(raised.value)


@pytest.mark.parametrize("modality", list(Modality))
def test_without_side_words_only_the_declaration_changes(modality: Modality) -> None:
    before = qa("Is there a polyp?", "yes, bilateral", modality=modality)
    assert convert_side(before, "image") == replace(before, side="image")


# ---- German and French ----------------------------------------------------------------------------------------------

TURNED = [  # the text and the text of the other frame; None: it stays
    ("die linke Lunge", "die rechte Lunge"),
    ("in der linken Niere", "in der rechten Niere"),
    ("rechter Unterlappen, LINKES Lungenfeld", "linker Unterlappen, RECHTES Lungenfeld"),
    ("Erguss links, linksseitige Rundherde", "Erguss rechts, rechtsseitige Rundherde"),
    ("beidseits, bilaterale Infiltrate", None),
    ("linker Ventrikel, rechter Vorhof, linke Niere", "linker Ventrikel, rechter Vorhof, rechte Niere"),
    ("Linksherzkatheter, rechter Leberlappen, Rechtsschenkelblock, Linkshänder", None),
    ("im rechten Winkel", None),
    ("linke Bildhälfte, links des Bildes", None),
    ("vom Betrachter aus links", None),
    ("rechte Seite des Patienten", None),
    ("le poumon gauche", "le poumon droit"),
    ("la base gauche", "la base droite"),
    ("à gauche", "à droite"),
    ("Droite", "REFUSED gender"),
    ("lobe supérieur droit", "lobe supérieur gauche"),
    ("les deux poumons, bilatéral", None),
    ("ventricule gauche, lobe hépatique droit, oreillette droite", None),
    ("à un angle droit", None),
    ("à gauche de l'image, côté droit de l’image", None),
    ("côté gauche du patient", None),
    ("linkstemporale Blutung", "REFUSED a word of its own"),
    ("re. Niere", "REFUSED links or rechts in full"),
    ("links im Bild", "REFUSED whose left"),
    ("linke Niere, sagittale Schicht", "REFUSED without left and right"),
    ("poumon G", "REFUSED gauche or droit in full"),
    ("à gauche sur l'image", "REFUSED whose left"),
    ("Where is the Erguss links?", "Where is the Erguss rechts?"),
    ("cliché de profil, poumon gauche", "REFUSED without left and right"),
]


@pytest.mark.parametrize(("text", "other"), TURNED)
def test_sides_of_german_and_french_are_turned_or_refused(text: str, other: str | None) -> None:
    before = qa("?", text)
    if other and other.startswith("REFUSED "):
        with pytest.raises(BadInput, match=other.removeprefix("REFUSED ")):
            convert_side(before, "image")
        return
    after = convert_side(before, "image")
    assert after.answer.text == (other or text) and convert_side(after, "patient") == before


def test_a_word_that_two_languages_share_is_not_left_behind() -> None:
    before = replace(qa("Where is the Verdichtung links?", "Here"), names=("Verdichtung links",))
    with pytest.raises(BadInput, match="'links' in 'Where is the .* German within English are not turned"):
        convert_side(before, "image")
    assert convert_side(replace(before, names=("mass",)), "image").turns == before.turns  # "links" are connections


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("linke Lunge", "rechte Lunge"),
        ("ein Erguss links", "ein Erguss rechts"),
        ("linksseitiger Rundherd", "rechtsseitiger Rundherd"),
        ("le poumon gauche", "le poumon droit"),
        ("un nodule à gauche", "un nodule à droite"),
        ("opacités gauches", "opacités droites"),
    ],
)
def test_sides_of_german_and_french_are_compared_with_boxes(left: str, right: str) -> None:
    for text, good, bad in ((left, RIGHT, LEFT), (right, LEFT, RIGHT)):
        for make in (roc, vg):
            assert find_side_contradiction(make(text, good)) is None
            assert find_side_contradiction(make(text, MIDDLE)) is None
            assert find_side_contradiction(make(text, bad))
            assert find_side_contradiction(make(text, good, side="image"))
    named = sample(Task.VG, "Where is it?", "[box]", LEFT, names=(left,))
    assert find_side_contradiction(named) and find_side_contradiction(replace(named, names=(right,))) is None
    asked = sample(Task.VG, f"Where is the {left}?", "[box]", LEFT)  # a phrasing of ours, a name of theirs
    assert find_side_contradiction(asked)
    assert conflicts(left, right) == ("laterality",) and sides(f"{left}, {right}") == {"left", "right"}
    assert names_other_side(left, right) and not names_other_side(left, left)


@pytest.mark.parametrize(
    "text",
    [
        "kein Erguss links", "linke und rechte Lunge", "linker Ventrikel", "links neben dem Herzen", "links der Aorta",
        "linkes Knie", "linke Hand", "linke Brust", "links im Bild", "sagittal, linke Niere", "nach links verlagert",
        "beidseits", "pas de lésion à gauche", "ventricule gauche", "à gauche du cœur", "genou gauche",
        "les poumons gauche et droit", "à gauche sur l'image", "dévié vers la gauche", "sein gauche", "muscle droit",
    ],
)  # fmt: skip
def test_doubt_in_german_and_french_is_no_contradiction(text: str) -> None:
    for box in (LEFT, RIGHT):
        assert find_side_contradiction(roc(text, box)) is None and find_side_contradiction(vg(text, box)) is None


def test_a_language_is_added_by_a_section_of_the_table(tmp_path: Path) -> None:
    table = tmp_path / "languages.yaml"
    table.write_text("Finnish:\n  sides: [[vasen, oikea]]\n  common: [ja|on]\n  yes: [kyllä]\n  no: [ei]\n")
    (finnish,) = read_languages(table)
    assert finnish.halves == {"vasen": "left", "oikea": "right"} and finnish.verdicts == {"kyllä": "yes", "ei": "no"}
    assert finnish.phrases is None and finnish.side_word.findall("Vasen keuhko, oikea_munuainen") == ["Vasen", "oikea"]
    for wrong in ("sides: [[vasen]]", "Sides: []", "common: ['(']"):
        table.write_text(f"Finnish:\n  yes: []\n  no: []\n  common: []\n  sides: []\n  {wrong}\n")
        with pytest.raises(BadInput, match=r"languages.yaml, section Finnish: .*correct it"):
            read_languages(table)


def test_the_packaged_table_pairs_every_side_once_and_knows_no_word_twice_in_a_language() -> None:
    for language in list_languages():
        for pair in language.pairs:
            assert language.halves[pair[0]] == "left" and language.halves[pair[1]] == "right", language.name
        assert not language.halves.keys() & language.verdicts.keys() and language.shared <= language.halves.keys()
        assert all(head == head.casefold() for heads in language.heads.values() for head in heads.split())
        assert language.heads.keys() <= set(SHEET_COLUMNS)


# ---- any words ------------------------------------------------------------------------------------------------------

WORDS = (
    "left right Left RIGHT left-sided right-hand side lung kidney of the image picture patient's patient body in on ,"
    " . and or both not bilateral ventricle lobe liver angle at a is no behind situ now below main leftmost viewer's R"
)


JUST_THERE = re.compile(r"\b(?:left|right)\s+(?:angle|at|behind|below|in|now)\b", re.I)  # and not a side


def mirrored(before: Sample) -> Sample | None:
    """The sample of the picture mirrored left to right; None where its words are sides only one way round."""

    def text(value: BoxedText) -> BoxedText:
        words = re.sub("left|right", lambda m: "right" if m[0].lower() == "left" else "left", value.text, flags=re.I)
        return BoxedText(words, tuple(Box(1 - b.x2, b.y1, 1 - b.x1, b.y2) for b in value.boxes))

    names = tuple(text(BoxedText(name)).text for name in before.names)
    turns = tuple(replace(t, question=text(t.question), answer=text(t.answer)) for t in before.turns)
    odd = any(JUST_THERE.search(t.question.text) or JUST_THERE.search(t.answer.text) for t in before.turns)
    return None if odd else replace(before, names=names, turns=turns)


def test_whatever_the_words_each_change_is_undone_by_itself_and_never_changes_the_verdict() -> None:
    dice = random.Random(5)
    seen: Counter[str] = Counter()
    for _ in range(8000):
        question, answer = (" ".join(dice.choices(WORDS.split(), k=dice.randint(1, 8))) for _ in "qa")
        task = dice.choice((Task.VG, Task.ROC, Task.RC))
        texts = (question, answer + "[box]") if task is Task.VG else (question + "[box]", answer)
        before = sample(
            task, *texts, Box(0, 0, 0.3, 1), side=dice.choice(SIDES), names=(dice.choice(("lung", "left lung")),)
        )
        verdict = bool(find_side_contradiction(before))
        seen[f"contradiction {verdict}"] += 1
        try:
            after = convert_side(before, "image" if before.side == "patient" else "patient")
            assert convert_side(after, before.side) == before and bool(find_side_contradiction(after)) is verdict
            seen["converted"] += 1
        except BadInput:
            seen["not converted"] += 1
        other = mirrored(before)
        if other is not None:
            assert bool(find_side_contradiction(other)) is verdict
        seen["not mirrored" if other is None else "mirrored"] += 1
    assert len(seen) == 6 and min(seen.values()) > 300
