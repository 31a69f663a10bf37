"""What is not known about an answer: questions and answers as people type them, and the knowledge of a run's data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from clinkd.inference.self_consistency import self_consistency
from clinkd.language.facts import Lexicon
from clinkd.pipeline.prepared import DataSource, read_data_source, read_split
from clinkd.pipeline.runs import open_run
from clinkd.records import BOX_MARK, Box, BoxedText, Candidate, Modality, Prediction
from clinkd.workflows.answer_warnings import AnswerWarning, TrainingKnowledge, find_warnings
from clinkd.workflows.ask import Answer, Answerer, Question, ask

BOX = Box(0.1, 0.1, 0.4, 0.4)
WORDS = ("where", "is", "the", "left", "right", "lung", "kidney", "liver", "in", "image", "a", "small", "bright")
KNOWLEDGE = TrainingKnowledge(frozenset(WORDS), frozenset({Modality.CT}), ("left lung", "kidney", "liver"))


def kinds(question: str, answer: str, modality: Modality = Modality.CT, *boxes: Box) -> list[str]:
    given = BoxedText(answer + BOX_MARK * len(boxes), boxes)
    return [w.kind for w in find_warnings(BoxedText(question), given, modality, KNOWLEDGE)]


@pytest.mark.parametrize("question", [
    "Where is the liver?", "Where's the liver?", "Can you locate the liver?", "Please point out the liver.",
    "In which place does the image show the liver?", "show me the liver", "Mark the kidney.", "Liver: where is it?",
    "Could you please outline the left lung?", "Find the liver.",
])  # fmt: skip
def test_a_question_for_a_place_wants_a_box(question: str) -> None:
    assert kinds(question, "It is the liver.") == ["no_box"]
    assert kinds(question, "Here", Modality.CT, BOX) == []
    for denial in ("There is no liver.", "Not there.", "No.", "It is not visible."):
        assert kinds(question, denial) == []


@pytest.mark.parametrize("question", [
    "What does this image show?", "Is the liver small?", "What is in the region where the liver lies?",
    "Show me whether the liver is bright.", "Please describe the whole image.", "Which structure do you see?",
])  # fmt: skip
def test_other_questions_want_none(question: str) -> None:
    assert kinds(question, "The liver.") == []


def test_a_question_with_a_box_wants_none() -> None:
    question = BoxedText(f"Where in the image is {BOX_MARK}?", (BOX,))
    assert find_warnings(question, BoxedText("The liver."), Modality.CT, KNOWLEDGE) == ()


@pytest.mark.parametrize(("question", "message"), [
    ("Is there a kidny?", "kidny (nearest: kidney)"),
    ("Please describe the linke Lunge.", "linke lunge (nearest: left lung)"),
    ("Is there a fracture?", "fracture"),
])  # fmt: skip
def test_a_name_that_never_stood_in_training_is_named_with_the_nearest_ones(question: str, message: str) -> None:
    [warning] = find_warnings(BoxedText(question), BoxedText("x"), Modality.CT, KNOWLEDGE)
    assert warning == AnswerWarning("unknown_name", f"not a name this model learned: {message}")


@pytest.mark.parametrize("question", [
    "Are there any livers?", "How many kidneys, 2 or three?", "Is the LIVER big?", "Which side is it, left or right?",
])  # fmt: skip
def test_plurals_numbers_and_words_without_a_finding_are_no_names(question: str) -> None:
    assert kinds(question, "x") == []


def test_a_modality_is_unseen_only_where_file_and_training_data_state_theirs() -> None:
    question, answer = BoxedText("Is there a liver?"), BoxedText("Yes.")
    [warning] = find_warnings(question, answer, Modality.MR, KNOWLEDGE)
    assert warning == AnswerWarning("unseen_modality", "never saw this modality: mr (trained on: ct)")
    assert kinds(question.text, "Yes.", Modality.OTHER) == kinds(question.text, "Yes.", Modality.CT) == []
    unstated = KNOWLEDGE._replace(modalities=frozenset({Modality.CT, Modality.OTHER}))
    assert find_warnings(question, answer, Modality.MR, unstated) == ()


@pytest.mark.parametrize(("question", "answer", "other"), [
    ("What is in the left lung?", "The right lung.", True),
    ("Is the kidney on the left?", "It is on the right side of the image.", True),
    ("Is the kidney on the left?", "No, it is on the right.", False),
    ("Is the kidney on the left?", "On the left.", False),
    ("Is it left or right?", "Right.", False),
    ("What is right of the left lung?", "The left lung.", False),
    ("What is next to the left lung?", "The right lung.", False),
    ("Is the left side of the image bright?", "The patient's right lung is bright.", False),
    ("Is the left lung small?", "The right atrium is.", False),
    ("What is in the left lung?", "A small structure.", False),
    ("Is the left lung bright?", "Both are, the left and the right one.", False),
])  # fmt: skip
def test_the_other_side(question: str, answer: str, other: bool) -> None:
    assert ("other_side" in kinds(question, answer)) is other


def test_without_the_training_data_names_and_modality_are_not_judged() -> None:
    warnings = find_warnings(BoxedText("Where is the left kidny?"), BoxedText("Right."), Modality.MR, None)
    assert [w.kind for w in warnings] == ["no_box", "other_side"]


def test_names_of_the_test_split_are_not_learned(tmp_path: Path) -> None:
    turn = {
        "task": "VG",
        "question": "Where is it?",
        "answer": {"text": f"The lungs{BOX_MARK}", "boxes": [[0, 0, 1, 1]]},
    }
    line = {"turns": [turn], "modality": "ct", "names": ["Left lungs"], "facts": [{"name": "a cyst"}]}
    line["images"] = [{"path": "a/scan.dcm#3"}, {"path": "no#1.png"}]
    (tmp_path / "train.jsonl").write_text(json.dumps(line) + "\n")
    source = DataSource(tmp_path / "data", Lexicon(("left lung", "cyst", "spleen")))
    knowledge = TrainingKnowledge.of_run(tmp_path, source)
    assert knowledge.names == ("left lung", "cyst") and knowledge.modalities == {Modality.CT}
    assert knowledge.words == {"where", "is", "it", "the", "lung", "left", "a", "cyst"}
    learned = [name for name in ("a/scan.dcm", "no#1.png", "b/scan.dcm", "../data/a/scan.dcm") if
               knowledge.holds_image(tmp_path / "data" / name)]  # fmt: skip
    assert learned == ["a/scan.dcm", "no#1.png", "../data/a/scan.dcm"]
    assert not knowledge.holds_image(tmp_path / "a" / "scan.dcm")
    question, answer = BoxedText("Is it there?"), BoxedText("no")
    [warning] = find_warnings(question, answer, Modality.CT, knowledge, tmp_path / "data" / "a" / "scan.dcm")
    assert warning.kind == "training_image"


def test_a_run_knows_its_data_and_an_answer_carries_its_warnings(small_run: Path) -> None:
    run = open_run(small_run)
    answerer = Answerer.of_run(run)
    prepared = run.stage("prepare")
    assert answerer.knowledge == TrainingKnowledge.of_run(prepared, read_data_source(prepared))
    for sample in read_split(prepared, "train"):
        found = find_warnings(sample.question, sample.answer, sample.modality, answerer.knowledge)
        assert found == (), (sample.question, sample.answer)
    picture = Image.new("RGB", (64, 64))
    asked = Question.of(picture, BoxedText("Is there a zygoma?"), Modality.MICROSCOPY)
    [answer] = answerer.answers([asked])
    assert [w.kind for w in answer.warnings][:2] == ["unknown_name", "unseen_modality"]
    assert "zygoma" in answer.warnings[0].message


def test_a_file_that_states_its_modality_is_asked_about_with_it(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Untrained:
        """Knows MR alone, and answers nothing."""

        @classmethod
        def of_run(cls, run: object) -> Untrained:
            return cls()

        def read(self, text: str, picture: object) -> BoxedText:
            return BoxedText(text)

        def answers(self, questions: list[Question]) -> list[Answer]:
            prediction = Prediction("q", (Candidate("", BoxedText("")),))
            knowledge = KNOWLEDGE._replace(modalities=frozenset({Modality.MR}))
            warnings = find_warnings(questions[0].text, BoxedText(""), questions[0].modality, knowledge)
            return [Answer(prediction, self_consistency(prediction, [1]), False, 1, 1, warnings)]

    monkeypatch.setattr("clinkd.workflows.ask.Answerer", Untrained)
    film = Path(get_testdata_file("CT_small.dcm", download=False))
    result = ask(open_run(small_run), film, "Is there a liver?", tmp_path / "out.png")
    assert [w.message for w in result.warnings] == ["never saw this modality: ct (trained on: mr)"]
    Image.new("RGB", (64, 64)).save(tmp_path / "plain.png")
    assert ask(open_run(small_run), tmp_path / "plain.png", "Is there a liver?", tmp_path / "out.png").warnings == ()
