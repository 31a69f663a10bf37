"""Multiple choice: the options stand in the question, the answer is one of them in words, and nothing is guessed."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clinkd.data.checks.check import Checks
from clinkd.data.importing import import_data
from clinkd.data.readers import read_rows
from clinkd.data.readers.choices import NO_CHOICE, find_choice_keys
from clinkd.data.readers.rows import RowResult
from clinkd.data.readers.source import Source
from clinkd.data.writers import write_sharegpt
from clinkd.language.sides import convert_side
from clinkd.records import Modality, Sample, Turn
from clinkd.workflows.batch import read_question_sheet

Row = dict[str, Any]
COLOURS = {"A": "Green", "B": "Red", "C": "Light blue", "D": "Yellow"}
ASKED = "Which colour?\nA. Green\nB. Red\nC. Light blue\nD. Yellow"


def read(path: Path, **knobs: Any) -> tuple[list[RowResult], Counter[str]]:
    told: Counter[str] = Counter()
    knobs = {"modality": Modality.OTHER, "open_images": False} | knobs
    return list(read_rows(Source(path, **knobs), told)), told


def write_json(folder: Path, *rows: Row, name: str = "data.json") -> Path:
    (folder / name).write_text(json.dumps(rows))
    return folder / name


def write_sheet(folder: Path, *rows: Row, name: str = "sheet.csv") -> Path:
    with (folder / name).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def turn_of(results: list[RowResult]) -> Turn:
    assert [str(r.problem) for r in results if r.problem] == []
    return results[0].samples[0].turns[0]


SPELLINGS = [
    {f"option_{letter}": words for letter, words in COLOURS.items()},
    {f"Option {letter}": words for letter, words in COLOURS.items()},
    {f"Choice {letter}": f"{letter}:{words}" for letter, words in COLOURS.items()},
    {f"choice_{letter.lower()}": f" {letter}. {words} " for letter, words in COLOURS.items()},
    {f"opt{letter}": f"({letter}) {words}" for letter, words in COLOURS.items()},
    COLOURS,
    {f"option{k}": words for k, words in enumerate(COLOURS.values(), start=1)},
    {f"option_{k}": words for k, words in enumerate(COLOURS.values())},
    {f"Antwort {letter}": words for letter, words in COLOURS.items()},
    {"options": str(list(COLOURS.values()))},
    {"options": str(COLOURS)},
    {"choices": "A. Green B. Red C. Light blue D. Yellow"},
    {"Options": "(A) Green; (B) Red; (C) Light blue; (D) Yellow"},
    {"options": "A: Green, B: Red, C: Light blue, D: Yellow"},
]
LISTS: list[Row] = [
    {"options": list(COLOURS.values())},
    {"choices": COLOURS},
    {"options": [{"letter": letter, "content": words} for letter, words in COLOURS.items()]},
    {"options": [{"label": letter, "text": words} for letter, words in COLOURS.items()]},
    {"options": [f"{letter}. {words}" for letter, words in COLOURS.items()]},
]
ANSWERS = ["C", "c", "(C)", "C.", "Light blue", "light  blue.", "C: Light blue", "C. Light blue", "option_C"]


@pytest.mark.parametrize("options", SPELLINGS, ids=lambda row: next(iter(row)))
def test_each_spelling_of_the_options_in_sheets_and_json(tmp_path: Path, options: Row) -> None:
    row = {"image": "a.png", "question": "Which colour?", "answer": "C"} | options
    for file in (write_sheet(tmp_path, row), write_json(tmp_path, row)):
        results, told = read(file)
        turn = turn_of(results)
        assert (turn.question.text, turn.answer.text, turn.letter) == (ASKED, "Light blue", "C")
        assert turn.options == tuple(COLOURS.values()) and not told


@pytest.mark.parametrize("options", LISTS)
@pytest.mark.parametrize("answer", ["C", "Light blue"])
def test_each_list_of_options_in_json(tmp_path: Path, options: Row, answer: str) -> None:
    row = {"image": "a.png", "question": "Which colour?", "answer": answer} | options
    assert turn_of(read(write_json(tmp_path, row))[0]).to_json() == {
        "task": "QA", "question": ASKED, "answer": "Light blue", "options": list(COLOURS.values()),
    }  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS)
def test_each_spelling_of_the_answer(tmp_path: Path, answer: str) -> None:
    row = {"image": "a.png", "question": "Which colour?", **SPELLINGS[0], "answer": answer}
    turn = turn_of(read(write_sheet(tmp_path, row))[0])
    assert (turn.answer.text, turn.letter) == ("Light blue", "C")


def test_a_letter_may_have_no_option(tmp_path: Path) -> None:
    row = {"image": "a.png", "question": "Which?", "option_A": "x", "option_B": "y", "option_C": "", "option_D": "z"}
    turn = turn_of(read(write_sheet(tmp_path, row | {"answer": "D"}))[0])
    assert (turn.question.text, turn.answer.text, turn.letter) == ("Which?\nA. x\nB. y\nD. z", "z", "D")
    turn = turn_of(read(write_json(tmp_path, row | {"option_C": None, "option_D": None, "answer": "y"}))[0])
    assert turn.options == ("x", "y")


def test_words_that_only_look_like_letters_stay(tmp_path: Path) -> None:
    row = {"image": "a.png", "question": "Which germ?", "answer": "C. difficile"}
    germs = {"option_A": "E. coli", "option_B": "none", "option_C": "C. difficile"}
    turn = turn_of(read(write_json(tmp_path, row | germs))[0])
    assert turn.answer.text == "C. difficile" and turn.options[2] == "C. difficile"
    mixed = {"option_A": "A: Green", "option_B": "B) Red", "option_C": "C. difficile", "option_D": "blue"}
    assert turn_of(read(write_json(tmp_path, row | mixed))[0]).options == ("Green", "Red", "C. difficile", "blue")
    results, told = read(write_json(tmp_path, row | {"question": "Vitamin A or C?", "answer": "C"}))
    assert turn_of(results).answer.text == "C" and turn_of(results).options == ()
    assert told == {"answers of one letter, taken as they are: no options stand beside them": 1}
    letters = {"options": ["A", "B", "C"], "question": "Which hepatitis?", "answer": "B"}
    assert turn_of(read(write_json(tmp_path, row | letters))[0]).letter == "B"


def test_a_question_that_has_its_options_gets_no_second_ones(tmp_path: Path) -> None:
    row = {"image": "a.png", "question": "Which? A: Green B: Red", "options": ["Green", "Red"], "answer": "B"}
    assert turn_of(read(write_json(tmp_path, row))[0]).question.text == "Which? A: Green B: Red"


BASE = {"image": "a.png", "question": "Which?", "option_A": "x", "option_B": "y"}
FAULTS: list[tuple[Row, str, str]] = [
    (BASE | {"answer": "C"}, "answer", "none of the options (A. x; B. y)"),
    (BASE | {"answer": "z"}, "answer", "none of the options"),
    (BASE | {"answer": "A: y"}, "answer", "none of the options"),
    (BASE | {"answer": "A, B"}, "answer", "none of the options"),
    (BASE | {"option_A": "", "option_B": "", "answer": "B"}, "answer", "the row has no options"),
    (BASE | {"option_B": "", "answer": "x"}, "option_A", "the only option"),
    (BASE | {"answer": "x", "Answer_label": "B"}, "Answer_label", "not the option that the answer 'x' is"),
    (BASE | {"answer": "", "Answer_label": ""}, "answer", "empty"),
    (BASE | {"option_A": "B", "option_B": "A", "answer": "A"}, "answer", "may be a letter or the words"),
    (BASE | {"option_A": "<image>", "answer": "y"}, "option_A", "mark of models"),
]
JSON_FAULTS: list[tuple[Row, str, str]] = [
    ({"options": "Green or red", "answer": "A"}, "options", "in the order of the letters"),
    ({"options": "[1, 2", "answer": "A"}, "options", "mend it"),
    ({"options": {"first": "x", "second": "y"}, "answer": "x"}, "options", "by their letters"),
    ({"options": ["x", ["y"]], "answer": "x"}, "options[1]", "not text"),
    ({"options": list("abcdefghijk"), "answer": "k"}, "options", "at most 10"),
    ({"options": ["x", "y"], "answer_idx": 1}, "answer_idx", "none of the options"),
    ({"options": ["x", "y"], "answer": "A", "answer_idx": 7}, "answer_idx", "not the option"),
]


@pytest.mark.parametrize(("row", "field", "why"), FAULTS)
def test_a_choice_that_cannot_be_read_is_a_bad_row(tmp_path: Path, row: Row, field: str, why: str) -> None:
    for file in (write_sheet(tmp_path, row), write_json(tmp_path, row)):
        (result,) = read(file, form=None if file.suffix == ".csv" else "vqa")[0]
        assert result.problem is not None and result.problem.field == field and why in result.problem.why


@pytest.mark.parametrize(("options", "field", "why"), JSON_FAULTS)
def test_options_of_another_kind_are_bad_rows(tmp_path: Path, options: Row, field: str, why: str) -> None:
    (result,) = read(write_json(tmp_path, {"image": "a.png", "question": "Which?"} | options), form="vqa")[0]
    assert result.problem is not None and result.problem.field == field and why in result.problem.why


def test_a_number_for_the_letter_needs_the_words(tmp_path: Path) -> None:
    row = {"image": "a.png", "question": "Which?", "options": ["x", "y", "z"], "answer": "y"}
    for number in (1, 2):  # counted from 0, and from 1
        assert turn_of(read(write_json(tmp_path, row | {"answer_idx": number}))[0]).letter == "B"


def test_columns_that_are_no_options() -> None:
    for head in (["x1", "y1"], ["a"], ["A", "C"], ["answer_1", "answer_2"], ["optional", "choice"], ["option_A"]):
        assert find_choice_keys(tuple(head)) == NO_CHOICE


V1 = {"Figure_path": "a.png", "Question": "Which colour?", "Anwser": "Light blue"}
V1_NOW = {"Figure_path": "a.png", "Question": "Which colour?", "Answer": "Light blue"}
V2 = {"index": "1", "Figure_path": "a.png", "Caption": "A cell.", "Question": "Which colour?"}
CHOICES = {f"Choice {letter}": f" {letter}:{words} " for letter, words in COLOURS.items()}


@pytest.mark.parametrize(
    ("row", "captions"),
    [
        (V1 | CHOICES | {"Anwser_label": "C"}, 0),
        (V1 | CHOICES | {"Anwser": " C:Light blue ", "Anwser_label": "C"}, 0),
        (V1_NOW | CHOICES | {"Answer_label": "C"}, 0),
        (V2 | CHOICES | {"Answer": "C", "split": "test"}, 1),
    ],
)  # fmt: skip
def test_pmc_vqa(tmp_path: Path, row: Row, captions: int) -> None:
    """Columns as https://huggingface.co/datasets/xmcmic/PMC-VQA names them (train.csv, and train_2.csv with captions).

    The authors' own loader (xiaoman-zhang/PMC-VQA, PMC_QA_Dataset.py) reads the column "Anwser".
    """
    results, _ = read(write_sheet(tmp_path, row))
    assert len(results[0].samples) == 1 + captions
    turn = turn_of(results)
    assert (turn.question.text, turn.answer.text, turn.letter) == (ASKED, "Light blue", "C")
    assert results[0].samples[0].split == ("test" if captions else None)


OMNI = {
    "dataset": "ACRIMA", "question_id": "ACRIMA_0000", "question_type": "Modality Recognition",
    "question": "What imaging technique?", "gt_answer": "Fundus imaging", "image_path": "Images/ACRIMA/Im002.png",
    "option_A": "PET scan", "option_B": "Fundus imaging", "option_C": "CT", "modality_type": "Fundus Photography",
}  # fmt: skip


def test_omni_med_vqa(tmp_path: Path) -> None:
    """Keys as https://huggingface.co/datasets/foreverbeliever/OmniMedVQA has them, which name no split."""
    picture = tmp_path / "Images" / "ACRIMA" / "Im002.png"
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(picture)
    second = OMNI | {"question_id": "ACRIMA_0001", "modality": "Fundus Photography", "option_C": None}
    del second["modality_type"]
    file = write_json(tmp_path, OMNI, second, name="ACRIMA.json")
    results, told = read(file, modality=None, open_images=True)
    samples = [s for r in results for s in r.samples]
    assert [s.answer.text for s in samples] == ["Fundus imaging"] * 2 and samples[0].turns[0].letter == "B"
    assert [len(s.turns[0].options) for s in samples] == [3, 2]
    assert {(s.modality, s.images[0].width, s.split) for s in samples} == {(Modality.FUNDUS, 8, None)}
    assert [s.id for s in samples] == ["acrima-ACRIMA_0000", "acrima-ACRIMA_0001"]
    assert told == {"keys 'dataset', which are not used": 2, "keys 'question_type', which are not used": 2}
    (tmp_path / "QA_information" / "Open-access").mkdir(parents=True)
    deep = write_json(tmp_path / "QA_information" / "Open-access", OMNI)
    (result,) = read(deep, modality=None, open_images=True)[0]
    assert result.problem is not None and f"in {tmp_path}: give --images {tmp_path}" in result.problem.why
    assert turn_of(read(deep, modality=None, images=tmp_path)[0]) == samples[0].turns[0]
    sheet = write_sheet(tmp_path, OMNI)
    assert turn_of(read(sheet, modality=None)[0]) == samples[0].turns[0]


def test_options_go_through_an_import_an_export_and_back(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "Which lung?", "options": ["left lung", "right lung"], "answer": "B"}
    row |= {"answer_type": "CLOSED"}
    source = Source(write_json(tmp_path, row), modality=Modality.CT)
    import_data([source], tmp_path / "set", Checks())
    stored = [json.loads(line) for line in (tmp_path / "set" / "samples.jsonl").read_text().splitlines()]
    assert stored[0]["turns"][0]["options"] == ["left lung", "right lung"]
    (result,) = read(tmp_path / "set", open_images=True)[0]
    (sample,) = result.samples
    assert sample.turns[0].letter == "B" and Sample.from_json(sample.to_json()) == sample == Sample.from_json(stored[0])
    write_sharegpt([sample], tmp_path / "sharegpt")
    (again,) = read(tmp_path / "sharegpt" / f"{sample.split or 'all'}.json")[0]
    assert again.samples[0].turns == sample.turns
    turned = convert_side(sample, "image").turns[0]
    assert (turned.answer.text, turned.letter, turned.options) == ("left lung", "B", ("right lung", "left lung"))
    assert turned.question.text == "Which lung?\nA. right lung\nB. left lung"
    stored[0]["turns"][0]["options"] = ["a cyst"]
    (tmp_path / "samples.jsonl").write_text(json.dumps(stored[0]))
    (bad,) = read(tmp_path / "samples.jsonl", form="samples")[0]
    assert bad.problem is not None and bad.problem.field == "turns[0].options"


def test_a_conversation_of_one_question_tells_whether_it_is_closed(tmp_path: Path) -> None:
    ask, answer = {"from": "human", "value": "<image>Is it?"}, {"from": "gpt", "value": "Yes"}
    talks = [[ask, answer], [ask, answer, {"from": "human", "value": "Is it?"}, answer]]
    rows = [{"id": f"{len(t)}", "image": "a.png", "conversations": t, "answer_type": "CLOSED"} for t in talks]
    results, told = read(write_json(tmp_path, *rows), form="sharegpt")
    assert [{s.turns[0].closed for s in result.samples} for result in results] == [{True}, {None}]
    assert told == {"keys 'answer_type', which are not used": 1}


def test_a_letter_of_a_conversation_is_told(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "<image>Which? A. x B. y"}, {"from": "gpt", "value": "B"}]
    results, told = read(write_json(tmp_path, {"image": "a.png", "conversations": talk}))
    assert turn_of(results).question.text == "Which? A. x B. y" and turn_of(results).answer.text == "B"
    assert told == {"answers of one letter, taken as they are: no options stand beside them": 1}


def test_a_sheet_of_questions_to_ask_has_its_options(tmp_path: Path) -> None:
    row = {"image": "a.png", "question": "Which colour?", **SPELLINGS[2]}
    rows = [
        row,
        row | {f"Choice {letter}": "" for letter in "ABC"},
        row | {f"Choice {letter}": "" for letter in COLOURS},
    ]
    asked = list(read_question_sheet(write_sheet(tmp_path, *rows)).read())
    assert [(q.question, bool(q.error)) for q in asked] == [
        (ASKED, False), ("Which colour?", True), ("Which colour?", False),
    ]  # fmt: skip


def test_options_of_a_record_of_boxes(tmp_path: Path) -> None:
    qa = {"question": "Which?", "answer": "B", "options": ["x", "y"], "note": "?"}
    record = {"id": "1", "image": "a.png", "modality": "ct", "qa": [qa]}
    (tmp_path / "records.jsonl").write_text(json.dumps(record))
    results, told = read(tmp_path)
    assert turn_of(results).answer.text == "y" and told == {"keys 'qa.note', which are not used": 1}
