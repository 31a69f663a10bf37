"""Answers as harnesses write them, matched with the questions of known data.

    {"id", "response"}                                    any program; also prediction, predict, text, output, answer
    {"doc_id", "doc": {...}, "filtered_resps": [...]}     lmms-eval
    index, image_path, question, prediction               VLMEvalKit, as TSV or XLSX
    {"messages", "images", "response"}                    ms-swift infer
    {"prompt", "predict", "label"}                        LLaMA-Factory's generated_predictions.jsonl
    {"custom_id", "response": {"body": {"choices"}}}      batches of OpenAI and vLLM
    {"question_id", "prompt", "text"}                     LLaVA's answers.jsonl

Rows belong to questions by their id; else by image and question; else by their place, if there are as many rows as
questions and each row that tells its question has the one of its place. What fits nowhere is refused by its row.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from clinkd.boxes import iou
from clinkd.data.grids import MAX_PIXELS, MIN_PIXELS, Size, smart_resize
from clinkd.data.readers.rows import (
    FieldError,
    SourceRow,
    shorten_value,
)
from clinkd.records import BadInput, Box, Candidate, Prediction, Sample
from clinkd.scoring.box_families import choose_family, read_answer
from clinkd.scoring.final_answer import find_final_answer

COLUMNS = ("id", "response", "question", "image")  # what --column may name
TEXT_KEYS = ("response", "prediction", "predict", "filtered_resps", "resps", "text", "output", "model_output", "answer")
ID_KEYS = (
    "custom_id",
    "id",
    "question_id",
    "qid",
    "sample_id",
    "uid",
    "doc_id",
    "index",
)  # a batch has an id of its own
QUESTION_KEYS = ("question", "prompt", "query", "problem")
IMAGE_KEYS = ("image", "image_path", "img", "image_name", "images", "file_name")
RESIZED = "qwen2.5-vl"  # the family whose pixels are those of its own resized image


class AnswerRow(NamedTuple):
    """A row of answers: its text, and what it tells of its question ("" for what it does not tell)."""

    row: SourceRow
    text: str
    id: str
    question: str
    image: str
    truncated: bool


class HowToRead(NamedTuple):
    """How the answers of a file are written. `columns`: our name (id, response, question, image) -> the file's."""

    boxes: str = "qwen-vl"
    columns: Mapping[str, str] = {}
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS


def holds_answers(keys: Sequence[str], columns: Mapping[str, str]) -> bool:
    """Whether rows with these keys can be read here."""
    return columns.get("response") in keys or any(key in keys for key in TEXT_KEYS)


def read_row(row: SourceRow, columns: Mapping[str, str]) -> AnswerRow:
    """Raises FieldError where the row has no answer, or says that its request failed."""
    value = {**_flat(row.value.get("doc")), **row.value}
    key = columns.get("response") or next((k for k in TEXT_KEYS if value.get(k) is not None), TEXT_KEYS[0])
    if value.get("error"):
        raise FieldError("error", value["error"], "the request failed; ask again, or let --missing wrong count it")
    text, truncated = _read_text(value.get(key), key)
    return AnswerRow(
        row,
        text,
        _read_word(value, columns.get("id"), ID_KEYS),
        _read_question(value, columns.get("question")),
        _read_image(value, columns.get("image")),
        truncated,
    )


def _flat(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_text(value: Any, key: str) -> tuple[str, bool]:
    """The text of an answer, and whether a limit of length has cut it."""
    while isinstance(value, list) and value:  # lmms-eval has a list of lists, of which the first counts
        value = value[0]
    truncated = False
    if isinstance(value, dict):
        choices = _flat(value.get("body", value)).get("choices")
        if not isinstance(choices, list) or not choices:
            raise FieldError(key, value, "an object without choices; ask again, or let --missing wrong count it")
        choice = _flat(choices[0])
        truncated = choice.get("finish_reason") == "length"
        value = _flat(choice.get("message")).get("content", choice.get("text"))
    if not isinstance(value, str):
        raise FieldError(key, value, "text is wanted; name the field of the answers with --column response=FIELD")
    return value, truncated


def _read_word(value: Mapping[str, Any], named: str | None, keys: Sequence[str]) -> str:
    for key in (named,) if named else keys:
        if isinstance(found := value.get(key), str | int) and not isinstance(found, bool):
            return str(found).strip()
    return ""


def _read_question(value: Mapping[str, Any], named: str | None) -> str:
    asked = [m for m in value.get("messages") or () if isinstance(m, dict) and m.get("role") == "user"]
    if not named and asked and isinstance(asked[-1].get("content"), str):
        return str(asked[-1]["content"])
    return _read_word(value, named, QUESTION_KEYS)


def _read_image(value: Mapping[str, Any], named: str | None) -> str:
    for key in (named,) if named else IMAGE_KEYS:
        found = value.get(key)
        found = found[0] if isinstance(found, list) and found else found
        found = found.get("path") if isinstance(found, dict) else found
        if isinstance(found, str) and found.strip():
            return found.strip()
    return ""


# ---- matching -------------------------------------------------------------------------------------------------------


def match_rows(rows: Sequence[AnswerRow], samples: Sequence[Sample], notes: Counter[str]) -> dict[str, AnswerRow]:
    """The row of each question, by its id. Raises BadInput where rows do not belong to questions without doubt."""
    ids = {sample.id for sample in samples}
    if all(row.id in ids for row in rows):
        return _give(rows, [row.id for row in rows])
    by_content: dict[tuple[str, str], list[str]] = defaultdict(list)
    for sample in samples:
        by_content[_name(sample.images[-1].path), _fold(sample.question.words)].append(sample.id)
    found = [by_content.get((_name(row.image), _fold(row.question)), []) for row in rows]
    if all(len(hits) == 1 for hits in found):
        notes["answers matched by image and question, as their ids are none of the data's"] += len(rows)
        return _give(rows, [hits[0] for hits in found])
    in_place = len(rows) == len(samples) and all(
        not row.question or _fold(sample.question.words) in _fold(row.question)
        for row, sample in zip(rows, samples, strict=True)
    )
    if in_place and _count_up(rows):
        notes["answers matched by their place, as their ids are none of the data's"] += len(rows)
        return _give(rows, [sample.id for sample in samples])
    number, row = next((n, row) for n, row in enumerate(rows) if row.id not in ids)
    several = len(found[number]) > 1
    why = "is the image and question of several" if several else "is of none, by id or by image and question"
    raise BadInput(
        f"{row.row.file}, row {row.row.number}: id {row.id or '(none)'}, image {row.image or '(none)'}: {why}, and "
        f"{len(rows)} rows are not in the order of {len(samples)} questions; name the fields with --column id=FIELD"
    )


def _give(rows: Sequence[AnswerRow], ids: Sequence[str]) -> dict[str, AnswerRow]:
    answers: dict[str, AnswerRow] = {}
    for id, row in zip(ids, rows, strict=True):
        if id in answers:
            first = answers[id].row
            raise BadInput(
                f"{row.row.file}, row {row.row.number}: {id} is answered in row {first.number} of {first.file.name}, "
                "too; keep one of them"
            )
        answers[id] = row
    return answers


def _count_up(rows: Sequence[AnswerRow]) -> bool:
    """Whether the ids of rows are their places, or absent."""
    return any([row.id for row in rows] == [str(n + first) for n in range(len(rows))] for first in (0, 1)) or not any(
        row.id for row in rows
    )


def _name(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/").partition("#")[0]).stem.casefold()


def _fold(text: str) -> str:
    return "".join(c for c in text.casefold().replace("<image>", "") if c.isalnum())


# ---- reading --------------------------------------------------------------------------------------------------------


def make_predictions(
    answers: Mapping[str, AnswerRow], samples: Sequence[Sample], how: HowToRead, notes: Counter[str]
) -> dict[str, Prediction]:
    """The prediction of each answered question: its final answer, with boxes as `how` says that they are written.

    Raises BadInput where boxes are pixels and the size of an image is not known.
    """
    predictions = {}
    for sample in samples:
        if (row := answers.get(sample.id)) is None:
            continue
        final = find_final_answer(row.text)
        notes.update(f"answers of which {cut} was cut" for cut in set(final.cut))
        notes["answers that refuse to answer, which count as none"] += final.refused
        read = read_answer(final.text, how.boxes, size_for(sample, how))
        notes["boxes a little over the border, cut there"] += read.clipped
        notes["boxes that an answer repeats, which count once"] += read.repeated
        truncated = row.truncated or "reasoning that never ends" in final.cut
        candidate = Candidate(row.text, read.answer, unread=read.unread, truncated=truncated, box_scores=read.scores)
        predictions[sample.id] = Prediction(sample.id, (candidate,), by=row.row.file.name)
    return predictions


def size_for(sample: Sample, how: HowToRead) -> Size | None:
    """The pixels that the family's numbers refer to, None for other units."""
    if choose_family(how.boxes).unit is not None:
        return None
    image = sample.images[-1]
    if not image.width or not image.height:
        raise BadInput(f"--boxes {how.boxes}: pixels, and the size of {image.path} is not known; let images be opened")
    if how.boxes == RESIZED:
        return smart_resize(image.width, image.height, min_pixels=how.min_pixels, max_pixels=how.max_pixels)
    return Size(image.width, image.height)


_FRAMES = ("fractions", "percent", "thousandths", "pixels", "pixels-xywh", "fractions-xywh", "gemini", "paligemma")
_MOST_COMPARED = 300  # answers
_CLEARLY = 0.3  # mean overlap by another frame, and twice that by the declared one


def find_frame_doubts(
    answers: Mapping[str, AnswerRow], predictions: Mapping[str, Prediction], samples: Sequence[Sample], how: HowToRead
) -> list[str]:
    """Sentences that say so where boxes are read in no answer, or overlap the truth only if read in another frame.

    The truth is looked at for these words alone: no score depends on them.
    """
    asked = [s for s in samples if s.answer.boxes and s.id in answers][:_MOST_COMPARED]
    if not asked:
        return []
    doubts = []
    read = [predictions[s.id].answer.answer.boxes for s in asked]
    if not any(read):
        first = shorten_value(answers[asked[0].id].text)
        doubts.append(f"no box was read in any of {len(asked)} answers as --boxes {how.boxes}; the first is {first!r}")
    texts = [find_final_answer(answers[s.id].text).text for s in asked]
    overlaps = {name: _mean_overlap(asked, _read_as(texts, asked, how._replace(boxes=name))) for name in _FRAMES}
    declared, best = _mean_overlap(asked, read), max(_FRAMES, key=lambda name: overlaps[name])
    if overlaps[best] > max(_CLEARLY, 2 * declared):
        doubts.append(
            f"read as --boxes {how.boxes} the boxes overlap the truth by {declared:.0%}, read as {best} by "
            f"{overlaps[best]:.0%} (mean IoU of {len(asked)} answers): if the model writes them so, give --boxes {best}"
        )
    return doubts


def _read_as(texts: Sequence[str], samples: Sequence[Sample], how: HowToRead) -> list[Sequence[Box]]:
    """The boxes of each text; none where sizes are not known."""
    try:
        sizes = [size_for(sample, how) for sample in samples]
    except BadInput:
        return [()] * len(texts)
    return [read_answer(text, how.boxes, size).answer.boxes for text, size in zip(texts, sizes, strict=True)]


def _mean_overlap(samples: Sequence[Sample], boxes: Sequence[Sequence[Box]]) -> float:
    """The mean, over the true boxes, of the best IoU with a box of the answer."""
    overlaps = [
        max((iou(truth, box) for box in answered), default=0.0)
        for sample, answered in zip(samples, boxes, strict=True)
        for truth in sample.answer.boxes
    ]
    return sum(overlaps) / len(overlaps)
