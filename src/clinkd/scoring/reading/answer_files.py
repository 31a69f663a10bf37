"""Answers as harnesses write them, matched with the questions of known data.

    {"id", "response"}                                    any program; also prediction, predict, text, output, answer
    {"doc_id", "doc" or "input", "filtered_resps"}        lmms-eval, old and new; also in one object, under "logs"
    index, image_path, question, prediction               VLMEvalKit, as TSV or XLSX
    {"question", "answer", "response"}                    MedEvalKit's results.json, where "answer" is the truth
    {"messages", "images", "response"}                    ms-swift infer
    {"prompt", "predict", "label"}                        LLaMA-Factory's generated_predictions.jsonl
    {"custom_id", "response": {"body": {"choices"}}}      batches of OpenAI (chat, completions, responses) and vLLM
    {"custom_id", "result"}, {"key", "response"}          batches of Anthropic and Gemini
    {"question_id", "prompt", "text"}                     LLaVA's answers.jsonl

Rows belong to questions by their id; else by image and question; else by their place, if there are as many rows as
questions and each row that tells its question has the one of its place. What fits nowhere is refused by its row.

What an answer says at last, and its boxes, are read here for all sources of answers (`read_candidate`).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from clinkd.boxes import iou
from clinkd.data.grids import MAX_PIXELS, MIN_PIXELS, Size, smart_resize
from clinkd.data.readers.rows import FieldError, SourceRow, shorten_value, use_cell
from clinkd.records import BOX_MARK, BadInput, Box, Candidate, ImageRef, Prediction, Sample, Task
from clinkd.scoring.final_answer import ends_whole, find_final_answer
from clinkd.scoring.reading.box_families import FAMILIES, choose_family, read_answer

COLUMNS = ("id", "response", "question", "image")  # what --column may name
TEXT_KEYS = (  # "answer" is the last, as many harnesses keep the truth there
    *("response", "prediction", "predict", "filtered_resps", "resps", "result", "text", "output", "model_output"),
    *(
        "pred",
        "model_answer",
        "model_response",
        "generated_text",
        "generated_answer",
        "completion",
        "generation",
        "outputs",
    ),
    "answer",
)
_TRUTH_KEY = "answer"
ID_KEYS = (  # a batch has an id of its own
    *("custom_id", "key", "id", "question_id", "qid", "sample_id", "request_id", "uid", "uuid", "doc_id"),
    *("index", "idx", "data_id", "case_id", "question_idx"),
)
# what VLMEvalKit and others write in the place of an answer, where a request failed
_FAILED = re.compile(
    r"\s*(?:Failed to obtain answer via API|\*\*ERROR\*\*|API (?:call )?(?:error|failed)\b).{0,200}", re.I | re.S
)
QUESTION_KEYS = ("question", "prompt", "input", "query", "problem")
IMAGE_KEYS = ("image", "image_path", "img", "image_name", "img_name", "images", "file_name")
RESIZED = "qwen2.5-vl"  # the family whose pixels are those of its own resized image


class AnswerRow(NamedTuple):
    """A row of answers: its text, and what it tells of its question ("" for what it does not tell). `spare`: further
    samples of the answer, which do not count."""

    row: SourceRow
    text: str
    id: str
    question: str
    image: str
    truncated: bool
    spare: int = 0


class HowToRead(NamedTuple):
    """How the answers of a file are written. `columns`: our name (id, response, question, image) -> the file's;
    `flag`: with which the family of `boxes` is declared."""

    boxes: str = "qwen-vl"
    columns: Mapping[str, str] = {}
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS
    flag: str = "--boxes"


class LostAnswer(FieldError):
    """A request that failed, or an answer that is null: the question has no answer."""


def find_text_key(rows: Sequence[SourceRow], columns: Mapping[str, str], notes: Counter[str]) -> str | None:
    """The field that holds the answers of a file, one for all its rows; None where none is known to."""
    keys = {key for row in rows for key in row.value}
    if named := columns.get("response"):
        return named if named in keys else None
    known = [key for key in TEXT_KEYS if key in keys]
    if not known:
        return None
    others = [key for key in known[1:] if key not in (_TRUTH_KEY, "resps")]
    if known[0] == _TRUTH_KEY:
        notes["answers read from their field 'answer', which many programs keep for the truth"] += len(rows)
    elif others:
        why = f"not from {', '.join(others)}; --column response=FIELD names another"
        notes[f"answers read from their field {known[0]!r}, {why}"] += len(rows)
    return known[0]


def read_row(row: SourceRow, columns: Mapping[str, str], key: str) -> AnswerRow:
    """The answer in the field `key`. Raises FieldError where it is none, LostAnswer where the request failed."""
    value = {**_flat(row.value.get("doc")), **row.value}
    if failed := value.get("error"):
        raise LostAnswer("error", failed, "the request failed; ask again, or let --missing wrong count it")
    text, truncated, spare = _read_text(use_cell(row.value.get(key), key), key)
    return AnswerRow(
        row,
        text,
        _read_word(value, columns.get("id"), ID_KEYS),
        _read_question(value, columns.get("question")),
        _read_image(value, columns.get("image")),
        truncated,
        spare,
    )


def _flat(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_text(value: Any, key: str) -> tuple[str, bool, int]:
    """The text of an answer, whether a limit of length has cut it, and how many more samples there are."""
    spare = 0
    while isinstance(value, list) and value:  # lmms-eval has a list of lists, of which the first counts
        if len(value) == 2 and str(value[1]) in ("True", "False"):
            why = "log-likelihoods of choices and no text; evaluate with generated answers"
            raise FieldError(key, value, why)
        spare, value = spare + len(value) - 1, value[0]
    truncated = False
    if isinstance(value, dict):
        value, truncated, more = _read_reply(value, key)
        spare += more
    if isinstance(value, str) and says_failure(value):
        raise LostAnswer(key, value, "the request failed; ask again, or let --missing wrong count it")
    if value is None or value == []:
        raise LostAnswer(key, value, "null; ask again, let --missing wrong count it, or name it: --column response=")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise FieldError(key, value, "text is wanted; name the field of the answers with --column response=FIELD")
    return value, truncated, spare


def says_failure(text: str) -> bool:
    """Whether a program wrote the failure of its request in the place of an answer."""
    return bool(_FAILED.fullmatch(text))


def _read_reply(value: dict[str, Any], key: str) -> tuple[Any, bool, int]:
    """The text of a reply of an API, whether it was cut, and how many more samples it has."""
    body = _flat(value.get("body") or value)
    for listed in ("choices", "candidates"):  # of OpenAI and vLLM; of Gemini
        if isinstance(several := body.get(listed), list) and several:
            first = _flat(several[0])
            message = _flat(first.get("message") or first.get("content")) or first
            text = _join_parts(message.get("content", message.get("parts", message.get("text"))))
            reason = str(first.get("finish_reason") or first.get("finishReason")).lower()
            cut = reason in ("length", "max_tokens")
            if text is None:  # a model that declines, or that thought until its limit
                text = message.get("refusal") or ("" if cut or message.get("reasoning_content") else None)
            return text, cut, len(several) - 1
    if isinstance(items := body.get("output"), list):  # OpenAI's responses
        parts = [item for item in items if _flat(item).get("type") == "message"]
        texts = [_join_parts(part.get("content")) or "" for part in parts]
        return "".join(texts), body.get("status") == "incomplete", 0
    message = _flat(body.get("message")) or body
    for part in ("content", "text", "generated_text"):  # the first of Anthropic
        if part in message:
            cut = (message.get("stop_reason") or body.get("finish_reason")) in ("max_tokens", "length")
            return _join_parts(message[part]), cut, 0
    why = "a reply without an answer; ask again, or let --missing wrong count it"
    raise LostAnswer(key, body.get("error") or value, why)


def _join_parts(content: Any) -> Any:
    """The text of a message, which may have several parts; thoughts are none of it."""
    if not isinstance(content, list):
        return content
    parts = [_flat(part) for part in content]
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in parts if not part.get("thought"))


def _read_word(value: Mapping[str, Any], named: str | None, keys: Sequence[str]) -> str:
    for key in (named,) if named else keys:
        found = value.get(key)
        if isinstance(found, float) and found.is_integer():  # as sheets have numbers
            found = int(found)
        if isinstance(found, str | int | float) and not isinstance(found, bool):
            return str(found).strip()
    return ""


def _read_question(value: Mapping[str, Any], named: str | None) -> str:
    messages = value.get("messages")
    asked = [m for m in messages if _flat(m).get("role") == "user"] if isinstance(messages, list) else []
    if not named and asked and isinstance(text := _join_parts(asked[-1].get("content")), str):
        return text
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
        _refuse_other_questions(rows, samples, notes)
        return _give(rows, [row.id for row in rows])
    by_content: dict[tuple[str, str], list[str]] = defaultdict(list)
    for sample in samples:
        by_content[_name(sample.images[-1].path), _fold(sample.question.words)].append(sample.id)
    found = [by_content.get((_name(row.image), _fold(row.question)), []) for row in rows]
    if all(len(hits) == 1 for hits in found):
        notes["answers matched by image and question, as their ids are none of the data's"] += len(rows)
        return _give(rows, [hits[0] for hits in found])
    if (by_field := _find_ids(rows, ids, notes)) is not None:
        return _give(rows, by_field)
    in_place = len(rows) == len(samples) and all(map(_may_ask, rows, samples))
    if in_place and _count_up(rows):
        notes["answers matched by their place, as their ids are none of the data's"] += len(rows)
        return _give(rows, [sample.id for sample in samples])
    lost = [(n, row) for n, row in enumerate(rows) if row.id not in ids]
    number, row = next(((n, row) for n, row in lost if len(found[n]) != 1), lost[0])
    several = len(found[number]) > 1
    why = "is the image and question of several" if several else "is of none, by id or by image and question"
    raise BadInput(
        f"{row.row.file}, row {row.row.number}: id {row.id or '(none)'}, image {row.image or '(none)'}: {why}, and "
        f"{len(rows)} rows are not in the order of {len(samples)} questions; give each row the id "
        "of its question, as samples.jsonl of --data has it, and name its field if need be: --column id=FIELD"
    )


def _find_ids(rows: Sequence[AnswerRow], ids: Set[str], notes: Counter[str]) -> list[str] | None:
    """The ids of the data that stand in another field of each row, or whose zeros in front a sheet has lost."""
    short = {id.lstrip("0"): id for id in ids if id.isdigit()}
    if len(short) == len(ids) and all(row.id.lstrip("0") in short for row in rows):
        notes["answers whose id lacks zeros in front"] += sum(row.id not in ids for row in rows)
        return [short[row.id.lstrip("0")] for row in rows]
    for key in rows[0].row.value:
        values = [_read_word(row.row.value, key, ()) for row in rows]
        if ids >= {*values} and len({*values}) == len(rows):
            notes[f"answers matched by their field {key!r}, which holds ids of the data"] += len(rows)
            return values
    return None


def _refuse_other_questions(rows: Sequence[AnswerRow], samples: Sequence[Sample], notes: Counter[str]) -> None:
    """Raises BadInput where a row tells the question of another sample: its id is a place, and no id of the data."""
    by_id = {sample.id: sample for sample in samples}
    known = {_fold(sample.question.words) for sample in samples}
    for row in rows:
        if not _may_ask(row, by_id[row.id]):
            notes["answers whose row tells another question than the data have under its id"] += 1
            if _fold(row.question) in known:
                raise BadInput(
                    f"{row.row.file}, row {row.row.number}: id {row.id} is another question of the data than the one "
                    f"that the row tells, {shorten_value(row.question)!r}; name the fields with --column id=FIELD"
                )


def _may_ask(row: AnswerRow, sample: Sample) -> bool:
    """Whether the question that the row tells, if any, holds the text of the sample's, around its boxes in any
    spelling."""
    told, start = _fold(row.question), 0
    for part in map(_fold, sample.question.text.split(BOX_MARK) if told else ()):
        if (start := told.find(part, start)) < 0:
            return False
        start += len(part)
    return True


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


def read_candidate(
    raw: str, task: Task, how: HowToRead, size: Size | None, notes: Counter[str], truncated: bool = False
) -> Candidate:
    """The one reader of answers: what `raw` says at last, with the boxes that the declared family has in it.

    `size`: see `size_for`. Only answers to VG have boxes without marks; in others plain numbers stay words.
    """
    final = find_final_answer(raw)
    notes.update(f"answers of which {cut} was cut" for cut in set(final.cut))
    notes["answers that refuse to answer, which count as none"] += final.refused
    read = read_answer(final.text, how.boxes, size, marked_only=task is not Task.VG)
    notes["boxes a little over the border, cut there"] += read.clipped
    notes["boxes that an answer repeats, which count once"] += read.repeated
    notes["boxes whose corners do not begin at the upper left, taken as they lie"] += read.turned
    truncated = truncated or "reasoning that never ends" in final.cut
    return Candidate(raw, read.answer, unread=read.unread, truncated=truncated, box_scores=read.scores)


def find_cut_answers(texts: Sequence[str], notes: Counter[str]) -> list[bool]:
    """Whether a length limit has cut each raw answer: it lacks the token at the end that most of them have."""
    whole = [ends_whole(text) for text in texts]
    if sum(whole) * 2 <= len(whole):
        return [False] * len(whole)
    notes["answers without an end token where most have one, taken as cut"] += len(whole) - sum(whole)
    return [not end for end in whole]


def make_predictions(
    answers: Mapping[str, AnswerRow], samples: Sequence[Sample], how: HowToRead, notes: Counter[str]
) -> dict[str, Prediction]:
    """The prediction of each answered question: its final answer, with boxes as `how` says that they are written.

    Raises BadInput where boxes are pixels and the size of an image is not known.
    """
    choose_family(how.boxes, how.flag)
    predictions = {}
    asked = [(sample, answers[sample.id]) for sample in samples if sample.id in answers]
    for (sample, row), cut in zip(asked, find_cut_answers([row.text for _, row in asked], notes), strict=True):
        notes["further samples of answers, of which the first counts"] += row.spare
        size = size_for(sample.images[-1], how)
        candidate = read_candidate(row.text, sample.task, how, size, notes, row.truncated or cut)
        predictions[sample.id] = Prediction(sample.id, (candidate,), by=row.row.file.name)
    return predictions


def size_for(image: ImageRef, how: HowToRead) -> Size | None:
    """The pixels that the family's numbers refer to, None for other units."""
    if choose_family(how.boxes, how.flag).unit is not None:
        return None
    if not image.width or not image.height:
        raise BadInput(
            f"{how.flag} {how.boxes}: pixels, and the size of {image.path} is not known; let images be opened "
            "(--images FOLDER), or give width and height in each row"
        )
    if how.boxes == RESIZED:
        return smart_resize(image.width, image.height, min_pixels=how.min_pixels, max_pixels=how.max_pixels)
    return Size(image.width, image.height)


# the first family of each unit and order, and the one whose pixels are others
_FRAMES = (*{(known.unit, known.order): name for name, known in reversed([*FAMILIES.items()])}.values(), RESIZED)
_MOST_COMPARED = 300  # answers
_CLEARLY = 0.3  # mean overlap by another frame, and twice that by the declared one
_HARDLY = 0.05  # mean overlap by the declared frame


def find_frame_doubts(
    predictions: Mapping[str, Prediction], samples: Sequence[Sample], how: HowToRead
) -> Iterator[str]:
    """Sentences that say so where boxes are read in no answer, or overlap the truth only if read in another frame.

    The truth is looked at for these words alone: no score depends on them.
    """
    asked = [s for s in samples if s.task is Task.VG and s.answer.boxes and s.id in predictions][:_MOST_COMPARED]
    raws = [predictions[s.id].answer.raw for s in asked]
    read = [predictions[s.id].answer.answer.boxes for s in asked]
    texts = [find_final_answer(raw).text for raw in raws]
    if not any(texts):
        return
    if not any(read):
        first = shorten_value(next(filter(None, texts)))
        yield f"no box was read in any of {len(asked)} answers as {how.flag} {how.boxes}; the first is {first!r}"
    declared = _mean_overlap(asked, read)
    if 2 * declared >= 1:
        return
    overlaps = {name: _mean_overlap(asked, _read_as(texts, asked, how._replace(boxes=name))) for name in _FRAMES}
    best = max(_FRAMES, key=lambda name: overlaps[name])
    as_declared = f"read as {how.flag} {how.boxes} the boxes overlap the truth by {declared:.0%}"
    if overlaps[best] > max(_CLEARLY, 2 * declared):
        alike = [
            n for n, known in FAMILIES.items() if known == FAMILIES[best] and RESIZED not in (n, best) and n != best
        ]
        named = f"{best} (as {', '.join(alike[:3])})" if alike else best
        yield (
            f"{as_declared}, read as {named} by {overlaps[best]:.0%} (mean IoU of {len(asked)} answers): if the model "
            f"writes them so, give {how.flag} {best}"
        )
    elif any(read) and declared < _HARDLY and not all(s.images[-1].width for s in asked):
        yield (
            f"{as_declared} (mean IoU of {len(asked)} answers): if the model writes pixels, give {how.flag} pixels or "
            f"{how.flag} {RESIZED}, with --images FOLDER or width and height in each row"
        )


def _read_as(texts: Sequence[str], samples: Sequence[Sample], how: HowToRead) -> list[Sequence[Box]]:
    """The boxes of each text; none where sizes are not known."""
    try:
        sizes = [size_for(sample.images[-1], how) for sample in samples]
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
