"""Files of answers against samples that are known: each finds its question, or is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clinkd.data.readers.coco import CocoNames
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, Box, BoxedText, Candidate, ImageRef, Modality, Prediction, Sample, Task, Turn
from clinkd.scoring.reading.results import EvaluationData, read_results
from clinkd.workflows.answer import read_test_set

COCO = {
    "images": [{"id": n, "file_name": f"im{n}.png", "width": 100, "height": 50, "split": "test"} for n in (1, 2)],
    "categories": [
        {"id": 5, "name": "left lung", "supercategory": "ct"},
        {"id": 6, "name": "heart", "supercategory": "ct"},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 5, "bbox": [10, 5, 20, 10]},
        {"id": 2, "image_id": 1, "category_id": 5, "bbox": [60, 5, 20, 10]},
        {"id": 3, "image_id": 2, "category_id": 6, "bbox": [10, 5, 20, 10]},
    ],
}


def written(folder: Path, value: Any, name: str = "results.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def asked(tmp_path: Path) -> EvaluationData:
    """Two grounding questions of a COCO file, as its reader makes them."""
    source = Source(written(tmp_path, COCO, "coco.json"), open_images=False, tasks=(Task.VG,))
    test = read_test_set(source)
    assert test.names is not None and test.names == CocoNames.of(source)
    return EvaluationData(test.samples, test.description, test.names)


def box(image: object, category: object, bbox: object, score: object = 0.9) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


def test_boxes_of_a_name_in_an_image_are_one_answer(tmp_path: Path, asked: EvaluationData) -> None:
    rows = [
        box(1, 5, [60, 5, 20, 10], 0.5),
        box("1", 5, [10, 5, 20, 10]),
        box(1, 5, [0, 0, 9, 9], 0.1),
        box(1, 6, [0, 0, 9, 9]),  # the heart is not asked for there
        box(2, 6, [90, 40, 20, 20]),
        box(2, 6, [200, 0, 5, 5]),
    ]
    found = read_results([written(tmp_path, rows)], asked, least=0.2)
    first, second = found.predictions
    assert [b.to_json() for b in first.answer.answer.boxes] == [[0.1, 0.1, 0.3, 0.3], [0.6, 0.1, 0.8, 0.3]]
    assert [b.to_json() for b in second.answer.answer.boxes] == [[0.9, 0.8, 1.0, 1.0]]  # cut at the border
    assert len(second.answer.unread) == 1 and sorted(found.notes.values()) == [1, 1]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (box(9, 5, [1, 1, 2, 2]), "row 1.*image_id = 9"),
        (box(1, 9, [1, 1, 2, 2]), "row 1.*category_id = 9"),
        (box(1, 5, [1, 1, 2]), "row 1.*bbox"),
        (box(1, 5, [1, 1, 2, 2], "high"), "row 1.*score"),
        ({"image_id": 1}, "none of which is known to hold answers"),
        ({"annotation": "x", "response": "y", "image": "z"}, "row 1: id .none., image z: is of none"),
        ([1], "row 1.*object"),
    ],
)
def test_a_row_that_answers_nothing_is_named(tmp_path: Path, asked: EvaluationData, row: Any, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        read_results([written(tmp_path, [row])], asked)


def test_a_question_without_an_answer_is_named_or_counts_as_wrong(tmp_path: Path, asked: EvaluationData) -> None:
    file = written(tmp_path, [box(1, 5, [10, 5, 20, 10])])
    with pytest.raises(BadInput, match="1 of 2 questions of the test split of coco.json have no answer, the first is"):
        read_results([file], asked)
    found = read_results([file], asked, "wrong")
    assert found.predictions[1].answer.answer.text == "" and sum(found.notes.values()) == 1


def sample(name: str, task: Task, path: str) -> Sample:
    turn = Turn(task, BoxedText("What is it?"), BoxedText("a cyst"))
    return Sample(name, (ImageRef(path, 10, 10),), Modality.CT, (turn,), path)


def test_captions_find_the_one_question_for_a_caption_of_their_image(tmp_path: Path) -> None:
    known = EvaluationData(
        [sample("a", Task.MIA, "x/one.png"), sample("b", Task.RC, "two.png"), sample("q", Task.QA, "two.png")], "d"
    )
    rows = [{"image_id": "one", "caption": "a [box] cyst"}, {"image_id": "two.png", "caption": "no"}]
    found = read_results([written(tmp_path, rows)], known, "wrong")
    assert [p.answer.answer.words for p in found.predictions] == ["a cyst", "no", ""]
    for wrong, named in ((rows * 2, "a is answered in another row"), ([{"image_id": 3, "caption": "x"}], "asks for no"),
                         ([{"image_id": "a", "caption": None}], "caption = null")):  # fmt: skip
        with pytest.raises(BadInput, match=named):
            read_results([written(tmp_path, wrong)], known)
    twice = EvaluationData([sample("a", Task.MIA, "one.png"), sample("b", Task.RC, "one.png")], "d")
    with pytest.raises(BadInput, match="asks 2 questions for a caption"):
        read_results([written(tmp_path, rows)], twice)


def test_predictions_of_a_run_keep_their_candidates(tmp_path: Path) -> None:
    known = EvaluationData([sample("a", Task.QA, "1.png"), sample("b", Task.QA, "2.png")], "the test split of mine")
    answer = BoxedText("at [box]", (Box(0.1, 0.1, 0.2, 0.2),))
    made = [Prediction(i, (Candidate("x", answer), Candidate("y", answer)), 1, "me") for i in "ba"]
    file = tmp_path / "predictions.jsonl"

    def write(rows: list[dict[str, Any]]) -> Path:
        file.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return file

    rows = [p.to_json() for p in made]
    assert read_results([write(rows)], known).predictions == made[::-1]
    for wrong, named in (
        ([*rows, rows[0]], "row 3, id b: id = b: b is answered in another row"),
        ([{**rows[0], "id": "c"}], "row 1, id c: id = c: the test split of mine has no such question"),
        ([{**rows[0], "chosen": 7}], "row 1, id b: candidates"),
        ([{"id": "a", "candidates": [{}]}], "row 1, id a: candidates"),
    ):
        with pytest.raises(BadInput, match=named):
            read_results([write(wrong)], known)
