"""Answers to known samples: predictions as runs write them, COCO results, and answers as any harness writes them
(`answer_files`), matched with their questions.

    {"id", "chosen", "by", "candidates"}                 predictions.jsonl
    {"image_id", "category_id", "bbox", "score"}         COCO boxes: [x, y, width, height] in pixels
    {"image_id", "caption"}                              COCO captions

An answer without its question is refused, and so is a question without an answer, unless it is to count as wrong.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeVar

from clinkd.data.readers.annotated import require_four_numbers
from clinkd.data.readers.coco import CocoNames
from clinkd.data.readers.rows import (
    FieldError,
    RowResult,
    SourceRow,
    load_json_file,
    make_error_result,
    read_head,
    table_rows,
)
from clinkd.records import BOX_MARK, BadInput, Box, BoxedText, Candidate, ImageRef, Prediction, Sample, Task
from clinkd.scoring.detection import DetectorBox, DetectorOutput
from clinkd.scoring.reading.answer_files import (
    TEXT_KEYS,
    AnswerRow,
    HowToRead,
    LostAnswer,
    find_frame_doubts,
    find_text_key,
    make_predictions,
    match_rows,
    read_row,
)

Missing = Literal["refuse", "wrong"]
CAPTIONED = (Task.MIA, Task.RC)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """The questions: their samples, a description of them, and the ids of a COCO file, where the data is one."""

    samples: Sequence[Sample]
    what: str  # "the test split of mydata"
    names: CocoNames | None = None
    images: frozenset[str] = frozenset()  # paths of all images of the split, of those without a question, too


class MatchedPredictions(NamedTuple):
    """A prediction for each sample, in their order, and notes on the reading, counted.

    `doubts`: sentences on boxes that may be written otherwise than declared. `output`: COCO boxes as they stand
    in the file, those that no question asks for included.
    """

    predictions: list[Prediction]
    notes: Counter[str]
    doubts: Sequence[str] = ()
    output: DetectorOutput = DetectorOutput()


def read_results(
    files: Sequence[Path],
    data: EvaluationData,
    missing: Missing = "refuse",
    least: float = 0.0,
    how: HowToRead | None = None,
) -> MatchedPredictions:
    """The answers in files, of which each answers a part of the questions; boxes of COCO results with a score below
    `least` are left out. `how`: how answers are written that are neither.

    Raises BadInput naming the row that answers no question, or a question that another row answers, and the first
    question without an answer unless `missing` is "wrong".
    """
    how, file = how or HowToRead(), files[0]
    rows = [row for part in files for row in _list_rows(part)]
    notes: Counter[str] = Counter()
    doubts: Sequence[str] = ()
    detected: list[DetectorBox] = []
    keys = rows[0].value.keys()
    if "candidates" in keys:
        answers = _read_each(rows, "id", partial(_read_prediction, data, {s.id for s in data.samples}))
    elif "bbox" in keys and not how.columns and "response" not in keys:
        answers = _read_boxes(rows, data, least, notes, detected)
    elif "caption" in keys and not how.columns and "response" not in keys:
        answers = _read_each(rows, "image_id", partial(_read_caption, data, _group_by_image(data.samples)))
    else:
        matched = match_rows(_read_answer_rows(rows, missing, how, notes), data.samples, notes)
        answers = make_predictions(matched, data.samples, how, notes)
        doubts = tuple(find_frame_doubts(answers, data.samples, how))
    unanswered = [s for s in data.samples if s.id not in answers]
    if unanswered and missing == "refuse":
        raise BadInput(
            f"{file}: {len(unanswered)} of {len(data.samples)} questions of {data.what} have no answer, the first is "
            f"{unanswered[0].id!r}; answer them, or let --missing wrong count them as wrong"
        )
    notes["questions without an answer, which count as wrong"] += len(unanswered)
    empty = Candidate("", BoxedText(""))
    return MatchedPredictions(
        [answers.get(s.id) or Prediction(s.id, (empty,), by=file.name) for s in data.samples],
        +notes,
        doubts,
        DetectorOutput(data.images, detected),
    )


_WRAPPERS = (
    "logs",
    "results",
    "predictions",
    "answers",
    "outputs",
    "data",
    "samples",
    "responses",
)  # keys of a list of rows in one object


def _list_rows(file: Path) -> list[SourceRow]:
    """The rows of a file; of the list in it where it is one object, as lmms-eval once wrote. Raises BadInput."""
    if file.suffix.lower() in (".gz", ".zip", ".bz2", ".xz", ".zst"):
        raise BadInput(f"{file}: compressed; unpack it first")
    if file.suffix.lower() == ".json" and file.is_file() and read_head(file).startswith("{"):
        with contextlib.suppress(BadInput):  # it may be lines of JSON
            whole = load_json_file(file)
            if listed := next((whole[key] for key in _WRAPPERS if isinstance(whole.get(key), list)), None):
                return [_require_row(file, number, value) for number, value in enumerate(listed, start=1)]
    rows = []
    for row in table_rows(file):
        if isinstance(row, RowResult):
            raise BadInput(str(row.problem))
        rows.append(row)
    return rows


def _require_row(file: Path, number: int, value: Any) -> SourceRow:
    return SourceRow(file, number, value if isinstance(value, dict) else {TEXT_KEYS[0]: value}, value)


def _read_row(row: SourceRow, read: Callable[[dict[str, Any]], T]) -> T:
    """The result of `read`, whose FieldError becomes a BadInput that names file, row and field."""
    try:
        return read(row.value)
    except FieldError as fault:
        raise BadInput(str(make_error_result(row.file, row.number, fault, None, row.value).problem)) from None


def _read_answer_rows(
    rows: Sequence[SourceRow], missing: Missing, how: HowToRead, notes: Counter[str]
) -> list[AnswerRow]:
    """Each row with its answer; those whose request failed are left out if `missing` is "wrong"."""
    by_file: dict[Path, list[SourceRow]] = defaultdict(list)
    for row in rows:
        by_file[row.file].append(row)
    answers: list[AnswerRow] = []
    for file, its_rows in by_file.items():
        if (key := find_text_key(its_rows, how.columns, notes)) is None:
            known = ", ".join(TEXT_KEYS)
            raise BadInput(
                f"{file}: its fields are {', '.join(its_rows[0].value)}, none of which is known to hold answers "
                f"({known}): name it with --column response=FIELD; or give predictions of a run (candidates) or COCO "
                "results (bbox, or caption)"
            )
        for row in its_rows:
            try:
                answers.append(read_row(row, how.columns, key))
            except FieldError as fault:
                if missing == "refuse" or not isinstance(fault, LostAnswer):
                    problem = make_error_result(row.file, row.number, fault, None, row.value).problem
                    raise BadInput(str(problem)) from None
                notes["rows whose request failed, or whose answer is null"] += 1
    return answers


def _read_each(
    rows: Iterable[SourceRow], key: str, read: Callable[[dict[str, Any]], Prediction]
) -> dict[str, Prediction]:
    """The prediction of each row, by its id; `key` is the field that identifies the question."""
    answers: dict[str, Prediction] = {}

    def add(value: dict[str, Any]) -> None:
        prediction = read(value)
        if prediction.id in answers:
            raise FieldError(key, value.get(key), f"{prediction.id} is answered in another row, too; keep one of them")
        answers[prediction.id] = prediction

    for row in rows:
        _read_row(row, add)
    return answers


# ---- predictions as runs write them ---------------------------------------------------------------------------------


def _read_prediction(data: EvaluationData, ids: Set[str], value: dict[str, Any]) -> Prediction:
    try:
        prediction = Prediction.from_json(value)
        prediction.answer  # noqa: B018 - one of the candidates is chosen
    except (ValueError, IndexError) as error:
        raise FieldError("candidates", value.get("candidates"), f"no prediction ({error}); write it anew") from None
    if prediction.id not in ids:
        raise FieldError(
            "id", prediction.id, f"{data.what} has no such question; leave it out, or choose another --split"
        )
    return prediction


# ---- COCO results ---------------------------------------------------------------------------------------------------


def _read_boxes(
    rows: Sequence[SourceRow], data: EvaluationData, least: float, notes: Counter[str], detected: list[DetectorBox]
) -> dict[str, Prediction]:
    """One answer for each name in each image: its boxes, best first. `detected` gets the boxes of the images of the
    split, without those of a name that is annotated there and not asked for."""
    if data.names is None:
        raise BadInput("boxes of COCO results speak of ids: give the COCO annotation file as --data")
    names = data.names
    samples = {(s.images[0].path, s.names[0]): s for s in data.samples if s.task is Task.VG and len(s.names) == 1}
    boxes: dict[str, list[tuple[float | None, Box | None]]] = defaultdict(list)

    def read(value: dict[str, Any]) -> None:
        image, name = names.image(value.get("image_id")), names.category(value.get("category_id"))
        score = value.get("score")
        if score is not None and (type(score) not in (int, float) or not -1e9 < score < 1e9):
            raise FieldError("score", score, "a number is wanted")
        corners = require_four_numbers(value.get("bbox"), "bbox", "[x, y, width, height] in pixels")
        sample = samples.get((image, name))
        too_low = score is not None and score < least
        if image in data.images and (sample or (image, name) not in names.annotated) and not too_low:
            detected.append(DetectorBox(image, name, score, corners))
        if sample is None:
            notes["boxes of names that are not asked for in their image"] += 1
        elif too_low:
            boxes[sample.id] += []
            notes[f"boxes with a score below {least:g}, left out"] += 1
        else:
            boxes[sample.id].append((score, _clip_box(corners, sample.images[0])))

    for row in rows:
        _read_row(row, read)
    return {id: _make_boxed_prediction(id, scored, rows[0].file.name) for id, scored in boxes.items()}


def _clip_box(corners: tuple[float, float, float, float], image: ImageRef) -> Box | None:
    """A box in pixels, without the part beyond the border; None where nothing is left."""
    assert image.width and image.height
    x, y, w, h = corners
    x1, y1 = max(x, 0) / image.width, max(y, 0) / image.height
    x2, y2 = min(x + w, image.width) / image.width, min(y + h, image.height) / image.height
    return Box(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _make_boxed_prediction(id: str, scored: Sequence[tuple[float | None, Box | None]], by: str) -> Prediction:
    ranked = sorted(scored, key=lambda score_and_box: -(score_and_box[0] or 0.0))
    kept = [(score, box) for score, box in ranked if box is not None]
    boxes, scores = tuple(box for _, box in kept), tuple(score for score, _ in kept if score is not None)
    unread = ("a box outside the image",) * (len(ranked) - len(kept))
    answer = BoxedText(" ".join([BOX_MARK] * len(boxes)), boxes)
    box_scores = scores if len(scores) == len(boxes) else ()
    return Prediction(id, (Candidate(answer.text, answer, unread=unread, box_scores=box_scores),), by=by)


def _read_caption(data: EvaluationData, ids_by_image: Mapping[str, Sequence[str]], value: dict[str, Any]) -> Prediction:
    """The answer to the only question for a caption of an image."""
    image, caption = value.get("image_id"), value.get("caption")
    if not isinstance(caption, str):
        raise FieldError("caption", caption, "text is wanted")
    path = data.names.images.get(str(image)) if data.names else None
    ids = ids_by_image.get(path or str(image), ())
    if len(ids) != 1:
        many = f"{data.what} asks {len(ids)} questions for a caption of this image; give predictions by their id"
        none = f"{data.what} asks for no caption of such an image; leave it out, or choose another --split"
        raise FieldError("image_id", image, many if ids else none)
    text = BoxedText(caption.replace(BOX_MARK, " "))
    return Prediction(ids[0], (Candidate(caption, text),), by="COCO results")


def _group_by_image(samples: Iterable[Sample]) -> Mapping[str, Sequence[str]]:
    """Ids of the samples that ask for a caption, by each name of their image: the sample's id, the path, the file name
    with and without its suffix."""
    ids_by_image: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        if sample.task in CAPTIONED:
            path = PurePosixPath(sample.images[0].path)
            for name in {sample.id, str(path), path.name, path.stem}:
                ids_by_image[name].append(sample.id)
    return ids_by_image
