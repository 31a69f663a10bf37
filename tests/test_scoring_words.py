"""The words of answers, judged as a person would: options, yes and no, spellings, sides, and what is left open."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from clinkd.data.readers.choices import find_choice_keys, make_choice_turn
from clinkd.language.conflicts import conflicts
from clinkd.language.equality import answer_key, says_same
from clinkd.language.facts import Lexicon
from clinkd.language.languages import list_languages
from clinkd.language.negation import affirmed_names
from clinkd.language.spellings import get_spellings, read_spellings
from clinkd.language.verdicts import read_yes_no
from clinkd.records import (
    OPTION_LETTERS,
    BadInput,
    BoxedText,
    Candidate,
    ImageRef,
    Modality,
    Sample,
    Task,
    Turn,
)
from clinkd.scoring.choice_answers import read_choice
from clinkd.scoring.measure import Measure, Rules, SampleAnswer
from clinkd.scoring.metrics import ANSWERS, NAMES, is_right

OPTIONS = ("edema", "pneumonia", "a mass", "no finding")
RULES = Rules(0.5, Lexicon(("left kidney", "right kidney", "tumor", "melanoma", "nevus")))


def asked(turn: Turn, names: tuple[str, ...] = ()) -> Sample:
    return Sample("s", (ImageRef("a.png"),), Modality.CT, (turn,), "g", names=names)


def qa(truth: str, question: str = "What?", options: tuple[str, ...] = (), closed: bool | None = None) -> Sample:
    return asked(Turn(Task.QA, BoxedText(question), BoxedText(truth), options, closed))


def figures(pairs: Sequence[tuple[Sample, str]], measure: Measure = ANSWERS, rules: Rules = RULES) -> dict[str, float]:
    """The figures that can be computed, x100."""
    items = [SampleAnswer(sample, Candidate(text, BoxedText(text))) for sample, text in pairs]
    values = measure.figures(measure.count(items, rules).sum(axis=0))
    return {name: 100 * v for name, v in zip(measure.metrics, values.tolist(), strict=True) if not np.isnan(v)}


# ---- multiple choice ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        "B", "(B)", "[B]", "b", "b)", "(b)", "B.", "**B**", "\\boxed{B}", "Option B", "Answer: B", "Answer: **B**",
        "The correct answer is B.", "The correct option is (B).", "I choose B", "B is correct", "It is B.",
        "B. pneumonia", "B) Pneumonia.", "B: pneumonia", "B - pneumonia", "B\npneumonia", "(B) pneumonia",
        "B pneumonia", "The answer is B pneumonia.",
        "B.pneumonia", "Option B: pneumonia", "The answer is B) pneumonia", "pneumonia (B)", "B. This lobe is opaque.",
        "B. pneumonia, because the lobe is opaque", "pneumonia", "Pneumonia.", "This is pneumonia.",
        "The answer is pneumonia.", "Pneumonia. The lobe is opaque.", "Option A is incorrect. Option B is correct.",
        "The answer is B, not C.", "It's B", "I would go with B.", "The most likely diagnosis is B. pneumonia.",
        "It is not A. It is B.", "The lobe is opaque.\n\nB. pneumonia",
        "The correct option is B) Pneumonia.\n\nExplanation: A. edema would be diffuse. C. a mass is focal.",
    ],
)  # fmt: skip
def test_an_option_is_chosen_by_its_letter_or_its_words(answer: str) -> None:
    assert read_choice(answer, OPTIONS) == "B"


@pytest.mark.parametrize(
    "answer",
    [
        "", "B. edema", "edema (B)", "B. oedema", "B or C", "A, B", "B/C", "Both B and C", "E", "I am not sure.",
        "A large mass is seen", "A mass in the lung", "Hepatitis B.", "B edema", "B pneumonia C a mass",
        "I think it is not pneumonia",
        "A. edema B. pneumonia", "A. edema\nB. pneumonia\nC. a mass\nD. no finding", "consistent with pneumonia",
        "edema and pneumonia", "Not B", "The most likely diagnosis is B. edema.", "It is A large thing",
    ],
)  # fmt: skip
def test_no_option_is_chosen_by_contradictions_or_by_a_part_of_the_words(answer: str) -> None:
    assert read_choice(answer, OPTIONS) == ""


def test_words_of_options_that_look_like_letters() -> None:
    assert read_choice("A mass", OPTIONS) == read_choice("The answer is a mass", OPTIONS) == "C"
    assert read_choice("E. coli", ("E. coli", "S. aureus", "x", "y", "z")) == "A"
    assert read_choice("cysts", ("cyst", "cysts")) == "B" and read_choice("Cyst", ("cyst", "cysts")) == "A"
    closed = ("Yes", "No")
    said = [read_choice(a, closed, "Is there a mass?") for a in ("Yes, there is.", "B. No", "A. No", "no effusion")]
    assert said == ["A", "B", "", ""]


def test_a_permutation_of_the_options_permutes_the_letters() -> None:
    for order in itertools.permutations(OPTIONS):
        for letter, words in zip(OPTION_LETTERS, order, strict=False):
            sample = qa(words, options=order)
            rights = [letter, f"({letter})", f"{letter}. {words}", words, f"The answer is {letter}."]
            others = [w for w in order if w != words]
            wrongs = [*others, *(c for c in "ABCD" if c != letter), *(f"{letter}. {w}" for w in others)]
            assert figures([(sample, a) for a in rights])["Choice accuracy"] == 100
            assert figures([(sample, a) for a in wrongs])["Choice accuracy"] == 0


def test_choices_are_counted_beside_the_others() -> None:
    sample = qa("pneumonia", options=OPTIONS)
    found = figures([(sample, "B"), (sample, "C"), (sample, "B or C"), (qa("a cyst"), "cyst")])
    assert found["Choice accuracy"] == pytest.approx(100 / 3) and found["No choice read"] == pytest.approx(100 / 3)
    assert (found["Accuracy"], found["Open accuracy"]) == (50, 100) and "Closed accuracy" not in found


def test_a_truth_that_is_a_letter_is_a_choice_without_options() -> None:
    said = ["B", "B. pneumonia", "The correct answer is B.", "(B)", "**B**", "Answer: B"]
    assert figures([(qa("B"), a) for a in said])["Choice accuracy"] == 100
    assert figures([(qa("B"), a) for a in ("A", "pneumonia", "hepatitis B", "")])["Accuracy"] == 0
    listed = "Which?\nA. edema\nB. pneumonia"
    for truth in ("B", "B. pneumonia"):  # the options stand in the question
        assert figures([(qa(truth, listed), a) for a in ("pneumonia", "B", "(B) Pneumonia")])["Choice accuracy"] == 100
        assert figures([(qa(truth, listed), "B. edema")])["Choice accuracy"] == 0
    assert "Choice accuracy" not in figures([(qa("E. coli"), "E. coli")])


def test_a_perfect_letter_answerer_and_a_perfect_short_answerer() -> None:
    choices = [qa(words, options=OPTIONS) for words in OPTIONS]
    letters = [(s, s.turns[-1].letter) for s in choices]
    short = [qa(t) for t in ("yes", "no", "Right lower lobe", "2", "a mass in the left upper lobe", "MRI", "no mass")]
    for pairs in (letters, [(s, s.answer.text) for s in short + choices]):
        found = figures(pairs)
        assert {v for name, v in found.items() if not name.startswith("No ")} == {100}


# ---- closed and open ------------------------------------------------------------------------------------------------


def test_closed_and_open_are_what_the_data_say() -> None:
    told = [
        (qa("axial", closed=True), "Axial."), (qa("right", closed=True), "left"),
        (qa("yes", closed=False), "yes"), (qa("no"), "no"), (qa("liver"), "the liver"),
    ]  # fmt: skip
    found = figures(told)
    assert found["Closed accuracy"] == pytest.approx(200 / 3) and found["Open accuracy"] == 100
    assert found["Yes/no accuracy"] == 100 and found["Accuracy"] == 80
    assert is_right(*pair(told[0])) is True and is_right(*pair(told[1])) is False and is_right(*pair(told[4])) is None


def pair(told: tuple[Sample, str]) -> tuple[Sample, Candidate, Rules]:
    return told[0], Candidate(told[1], BoxedText(told[1])), RULES


@pytest.mark.parametrize(
    ("row", "closed"),
    [({"answer_type": "CLOSED"}, True), ({"answer_type": "OPEN"}, False), ({"A_Type": "closed "}, True),
     ({"closed": False}, False), ({"answer_type": "number"}, None), ({}, None)],
)  # fmt: skip
def test_readers_carry_whether_a_question_is_closed(row: dict[str, object], closed: bool | None) -> None:
    notes: Counter[str] = Counter()
    turn = make_choice_turn(
        Turn(Task.QA, BoxedText("Is it C?"), BoxedText("C")), row, find_choice_keys((*row,)), "answer", notes
    )
    assert (
        turn.closed is closed
        and Turn.from_json(turn.to_json()) == turn
        and ("closed" in turn.to_json()) == (closed is not None)
    )
    assert any("neither closed nor open" in note for note in notes) == (row == {"answer_type": "number"})


# ---- yes and no -----------------------------------------------------------------------------------------------------

MASS = "Is there a mass?"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Yes", "yes"), ("No.", "no"), ("No, the lung is clear.", "no"), ("Yes, there is a mass.", "yes"),
        ("Answer: no.", "no"), ("My answer to this question is no", "no"), ("Based on the image, yes.", "yes"),
        ("I think yes", "yes"), ("No there isn't", "no"), ("The image is dark. Yes.", "yes"),
        ("No evidence of a mass.", "no"), ("There is no mass.", "no"), ("In this image, there is no mass.", "no"),
        ("No masses are seen.", "no"), ("The mass is not visible.", "no"), ("There is a mass.", "yes"),
        ("There is no mass; there is an effusion.", "no"), ("There's no mass.", "no"), ("No - none", "no"),
        ("The X-ray does not show a mass.", "no"), ("The patient has no mass.", "no"), ("No (clear)", "no"),
        ("The image shows a mass.", None), ("I cannot see a mass.", None), ("A nodule (no mass)", None),
        ("The image shows a large mass in the right lung; no effusion.", None),
        ("I am sorry, I cannot help; no image was provided.", None), ("No evidence of effusion.", None),
        ("no effusion", None), ("A large mass with no calcification.", None), ("No mass in the left lung.", None),
        ("I cannot tell.", None), ("There may be a mass.", None), ("A mass cannot be excluded.", None),
        ("There is a possible mass.", None), ("There is no large mass.", None), ("yes or no", None),
        ("Yes and no", None), ("No. Yes.", None), ("", None), ("Not sure, no image", None),
    ],
)  # fmt: skip
def test_yes_and_no_by_the_answers_own_statement(answer: str, verdict: str | None) -> None:
    assert read_yes_no(answer, MASS) == verdict


@pytest.mark.parametrize(
    ("question", "answer", "verdict"),
    [
        ("Is the heart enlarged?", "The heart is not enlarged.", "no"),
        ("Is the heart enlarged?", "The heart is enlarged.", "yes"),
        ("Is the heart enlarged?", "The heart is normal.", None),
        ("Is there a pleural effusion?", "No effusion.", "no"),
        ("Is there a pleural effusion?", "No pleural thickening.", None),
        ("Is there a mass in the liver?", "There is no mass in the lung.", None),
        ("Is there a mass in the liver?", "There is a mass.", None),
        ("Is there a mass on the left?", "There is no mass on the right.", None),
        ("Is it a cyst or a mass?", "It is a mass", None),
        ("Is there no mass?", "There is no mass.", None),
        ("¿Hay una masa en el pulmón?", "no hay masa", "no"),
        ("Gibt es einen Erguss in der Lunge?", "Ja, einen Erguss", "yes"),
    ],
)
def test_a_statement_counts_if_it_is_about_what_was_asked(question: str, answer: str, verdict: str | None) -> None:
    assert read_yes_no(answer, question) == verdict


def test_no_verdict_depends_on_the_truth() -> None:
    answers = ["yes", "no", "Yes, a mass.", "no effusion", "si", "sí", "non", "nein", "There is no mass.", "ja", ""]
    questions = [MASS, "What?", "", "Gibt es einen Erguss?", "¿Hay una masa en el pulmón?"]
    for answer, question in itertools.product(answers, questions):
        assert read_yes_no(answer, question, "yes") == read_yes_no(answer, question, "no")
    for language in list_languages():
        for word, verdict in language.verdicts.items():
            assert read_yes_no(word, "", word) == verdict or word == "no"
    assert read_yes_no("no", "", "no") == "no"


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("Is the left lung smaller than the right lung?", {"The left lung is smaller than the right lung": "yes"}),
        ("Is the left lung smaller than the right lung?", {"The right lung is smaller than the left lung": None}),
        ("Is the left lung smaller than the right lung?", {"The left lung is not smaller than the right lung": "no"}),
        ("Is the left lung smaller than the right lung?", {"The right lung is not smaller than the left lung": None}),
        ("Is T1 brighter than T2?", {"T2 is brighter than T1": None, "T1 is brighter than T2": "yes"}),
        ("Is the mass left of the heart?", {"The heart is left of the mass": None}),
        ("Is there a mass?", {"No other mass": None, "There is no other mass.": None, "No mass": "no"}),
        ("Is there any other mass?", {"No other mass": "no"}),
        ("Is there evidence of a mass?", {"There is no evidence of a mass": "no"}),
    ],
)
def test_what_changes_places_with_another_is_no_answer(question: str, said: dict[str, str | None]) -> None:
    assert {answer: read_yes_no(answer, question) for answer in said} == said


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("hepatitis A", "hepatitis"), ("types A and B", "types and B"), ("left hand", "left"), ("AIDS", "aid"),
        ("fracture in left hand", "left fracture"), (".5 cm", "5 cm"), ("-5 HU", "5 HU"), ("<5 mm", ">5 mm"),
        ("≤ 3", "≥ 3"), ("<5 mm", "5 mm"), ("↑ uptake", "↓ uptake"), ("ER+", "ER-"), ("ER+", "ER"), ("3+", "3"),
        ("+", "-"), ("(+)", "(-)"), ("", "?"), ("", "+"), ("", "-"), ("?", "!"), ("2 mm", "2cm"),
    ],
)  # fmt: skip
def test_signs_and_letters_that_are_no_article_tell_answers_apart(one: str, other: str) -> None:
    assert not says_same(one, other) and not says_same(other, one)
    assert figures([(qa(other or "x"), one)])["Accuracy"] == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (".5 cm", "0.5 cm"), ("2cm", "2 cm"), ("<5mm", "less than 5 mm"), ("on the left-hand side", "left"),
        ("ER+", "ER positive"), ("-", "negative"), ("hepatitis A", "Hepatitis a."), ("?", "?"), ("L4-5", "L4 - 5"),
        ("a left-sided mass", "mass, left"), ("- mass", "mass"), ("5-10 mm", "5 - 10 mm"), ("↑", "increased"),
    ],
)  # fmt: skip
def test_signs_in_words_say_the_same(one: str, other: str) -> None:
    assert says_same(one, other) and says_same(other, one)


def test_a_truth_without_a_word_is_met_by_no_other_answer() -> None:
    told = [(asked(Turn(Task.ROC, BoxedText("What?"), BoxedText("??"))), a) for a in ("I do not know", "", "??")]
    assert [figures([one], NAMES)["Recall"] for one in told] == [0, 0, 100]


def test_an_empty_answer_says_nothing() -> None:
    assert not says_same("", "") and not says_same(" ", "\n")


def test_options_that_differ_by_a_sign_or_an_article() -> None:
    sizes = ("<5 mm", ">5 mm", "5 mm")
    assert [read_choice(a, sizes) for a in (*sizes, "more than 5mm")] == ["A", "B", "C", "B"]
    vitamins = ("vitamin A", "vitamin B")
    assert [read_choice(a, vitamins) for a in ("Vitamin", "vitamin a", "Vitamin B")] == ["", "A", "B"]


# ---- spellings ------------------------------------------------------------------------------------------------------


def test_every_listed_twin_is_equal_to_its_first_one_and_to_no_other() -> None:
    table = get_spellings()
    for listed in (table.twins, table.phrases):
        for word, first in listed.items():
            assert answer_key(f"a {word}") == answer_key(first.capitalize()) != ()
    firsts = sorted({*table.twins.values()})
    assert len({answer_key(first) for first in firsts}) == len(firsts)


@pytest.mark.parametrize(
    "same",
    [
        ("tumor", "tumour", "Tumours", "the tumors."), ("oedema", "edema"), ("haemorrhages", "hemorrhage"),
        ("oesophagus", "esophagus"), ("anaemia", "anemia"), ("leukaemia", "leukemia"), ("paediatric", "pediatric"),
        ("dilatation of the oesophagus", "dilatation of esophagus"), ("visualised", "visualized"), ("grey", "gray"),
        ("localisation", "localization"), ("gynaecomastia", "gynecomastia"), ("diarrhoea", "diarrhea"),
        ("vertebrae", "vertebra"), ("metastases", "metastasis"), ("diverticula", "diverticulum"), ("cysts", "a cyst"),
        ("two cysts", "2 cysts"), ("X-ray", "xray", "x ray", "X-rays"), ("CXR", "chest x-ray"), ("MRI", "MR"),
        ("left kidney", "kidney, left", "left-sided kidney", "the kidney on the left", "L kidney", "Lt. kidney",
         "lt kidney", "kidney (L)", "kidney on the left side", "This is the left kidney."),
        ("RUL", "right upper lobe", "upper right lobe", "rul"), ("right", "on the right", "R", "right side"),
        ("both lungs", "bilateral lungs", "left and right lungs", "lungs bilaterally"),
    ],
)  # fmt: skip
def test_what_a_person_reads_as_the_same(same: tuple[str, ...]) -> None:
    assert len({answer_key(text) for text in same}) == 1
    for truth, answer in itertools.permutations(same, 2):
        assert figures([(qa(truth), answer)])["Accuracy"] == 100


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("left kidney", "right kidney"), ("left kidney", "kidney"), ("L kidney", "R kidney"),
        ("both lungs", "left lung"),
        ("left kidney and liver", "kidney and left liver"), ("mass left of the kidney", "mass in the left kidney"),
        ("left kidney, right lung", "right kidney, left lung"), ("L4", "left 4"), ("L 4 vertebra", "left vertebra"),
        ("two cysts", "three cysts"), ("no mass", "mass"), ("large mass", "mass"), ("lung", "lung mass"),
        ("RLL", "RUL"), ("hyperplasia", "hypoplasia"), ("R/O mass", "right mass"), ("post RT", "post right"),
        ("L'aorte", "left aorte"), ("bronchus", "bronchitis"),
    ],
)  # fmt: skip
def test_what_a_person_reads_as_different(a: str, b: str) -> None:
    assert answer_key(a) != answer_key(b)
    assert figures([(qa(a), b)])["Accuracy"] == 0


def test_a_table_of_spellings_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "spellings.yaml"
    file.write_text("twins: [[a, b], [c, b]]\nfamilies: []\nphrases: []\nabbreviations: []\n")
    with pytest.raises(BadInput, match="'b' is no text, or stands in two lists"):
        read_spellings(file)
    file.write_text("twins: []\n")
    with pytest.raises(BadInput, match="phrases"):
        read_spellings(file)


# ---- classes --------------------------------------------------------------------------------------------------------


def roc(truth: str, answer: str, lexicon: tuple[str, ...] = RULES.lexicon.names) -> dict[str, float]:
    sample = asked(Turn(Task.ROC, BoxedText("What?"), BoxedText(truth)), (truth,))
    return figures([(sample, answer)], NAMES, Rules(0.5, Lexicon(lexicon)))


@pytest.mark.parametrize(
    ("truth", "answer", "recall"),
    [
        ("left kidney", "the kidney on the left", 100), ("left kidney", "L kidney", 100),
        ("left kidney", "This is the kidney, left.", 100), ("Kidney, left", "left-sided kidney", 100),
        ("left kidney", "right kidney", 0), ("left kidney", "R kidney", 0), ("left kidney", "kidney on the right", 0),
        ("left kidney", "left kidney and right kidney", 0), ("left kidney", "kidney", 0),
        ("tumor", "This is a tumour.", 100), ("tumour", "Tumors", 100), ("tumor", "no tumour", 0),
        ("No finding", "No finding.", 100), ("No finding", "tumor", 0),
        ("melanoma", "This is unlikely to be melanoma.", 0), ("melanoma", "melanoma rather than a nevus", 100),
        ("nevus", "Naevi; melanoma is less likely.", 100),
    ],
)  # fmt: skip
def test_a_class_in_another_spelling_is_a_hit_and_another_side_is_none(truth: str, answer: str, recall: int) -> None:
    assert roc(truth, answer)["Recall"] == recall


def test_an_abbreviated_side_is_a_swap() -> None:
    assert roc("left kidney", "R kidney")["Laterality swaps"] == 100
    assert roc("left kidney", "L kidney")["Laterality swaps"] == 0


def test_commas_and_full_stops_list_classes_alike() -> None:
    commas, stops = "opacity, consolidation, and pleural effusion", "Opacity. Consolidation. Pleural effusion."
    for truth, answer in itertools.product((commas, stops), repeat=2):
        assert roc(truth, answer, (commas, stops))["Recall"] == 100
        assert figures([(qa(truth), truth)])["Accuracy"] == 100
    for truth in (commas, stops):
        for answer in ("opacity, consolidation, and atelectasis", "Opacity. Consolidation. Atelectasis."):
            assert roc(truth, answer, (commas, stops, "atelectasis"))["Recall"] == 0


@pytest.mark.parametrize(
    ("text", "affirmed"),
    [
        ("This is unlikely to be melanoma.", ""), ("Melanoma is unlikely.", ""),
        ("Melanoma unlikely, nevus likely.", "n"),
        ("The lesion is not likely to be melanoma", ""), ("It is highly unlikely that this is a melanoma.", ""),
        ("nevus, less likely melanoma", "n"), ("Nevus is more likely than melanoma", "n"),
        ("Melanoma is less likely than nevus", "n"), ("a nevus rather than melanoma", "n"),
        ("Rule out melanoma", ""), ("Melanoma cannot be excluded.", ""), ("We cannot rule out melanoma", ""),
        ("melanoma has been ruled out", ""), ("Melanoma was excluded", ""), ("This excludes melanoma", ""),
        ("melanoma is no longer seen", ""), ("There is no longer a melanoma", ""), ("Nothing to suggest melanoma", ""),
        ("Nevus. The differential diagnosis includes melanoma.", "n"), ("Differential: melanoma, nevus", ""),
        ("low suspicion for melanoma", ""), ("The findings argue against melanoma", ""),
        ("suspicious for melanoma", "m"), ("likely melanoma", "m"), ("Possible melanoma", "m"),
        ("probably melanoma", "m"), ("consistent with melanoma", "m"), ("melanoma or nevus", "mn"),
    ],
)  # fmt: skip
def test_what_is_unlikely_or_left_open_is_not_affirmed(text: str, affirmed: str) -> None:
    assert "".join(name[0] for name in affirmed_names(text, ("melanoma", "nevus"))) == affirmed


def test_what_is_left_open_contradicts_nothing() -> None:
    assert conflicts("An effusion cannot be excluded.", "There is an effusion.") == ()
    assert conflicts("An effusion is unlikely.", "There is an effusion.") == ("negation",)
