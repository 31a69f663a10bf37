"""Answers to samples that are known: predictions as runs write them, and COCO results, matched with their questions.

    {"id", "chosen", "by", "candidates"}                 predictions.jsonl
    {"image_id", "category_id", "bbox", "score"}         COCO boxes: [x, y, width, height] in pixels
    {"image_id", "caption"}                              COCO captions

An answer to nothing that was asked is refused, and so is a question without an answer, unless it is to count as wrong.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeVar

from clinkd.data.readers.annotated import require_four_numbers
from clinkd.data.readers.coco import CocoNames
from clinkd.data.readers.rows import FieldError, RowResult, SourceRow, json_rows, make_error_result
from clinkd.records import BOX_MARK, BadInput, Box, BoxedText, Candidate, ImageRef, Prediction, Sample, Task

Missing = Literal["refuse", "wrong"]
CAPTIONED = (Task.MIA, Task.RC)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """What was asked: samples, where they come from in words, and the ids of a COCO file, where the data is one."""

    samples: Sequence[Sample]
    what: str  # "the test split of mydata"
    names: CocoNames | None = None


class MatchedPredictions(NamedTuple):
    """A prediction for each sample, in their order, and what was counted on the way."""

    predictions: list[Prediction]
    told: Counter[str]


def read_results(
    file: Path, asked: EvaluationData, missing: Missing = "refuse", least: float = 0.0
) -> MatchedPredictions:
    """The answers in a file; boxes of COCO results with a score below `least` are left out.

    Raises BadInput naming the row that answers nothing that was asked, or is answered twice, and the first question
    without an answer unless `missing` is "wrong".
    """
    rows = [_good(row) for row in json_rows(file)]
    told: Counter[str] = Counter()
    keys = rows[0].value.keys()
    if "candidates" in keys:
        answers = _predictions(rows, asked)
    elif "bbox" in keys:
        answers = _boxes(rows, asked, least, told)
    elif "caption" in keys:
        answers = _captions(rows, asked)
    elif {"annotation", "response"} <= keys:
        raise BadInput(f"{file}: answers in the papers' form bring their truth along; leave --data away, give --task")
    else:
        raise BadInput(f"{file}: neither predictions of a run (candidates) nor COCO results (bbox, or caption)")
    left = [s for s in asked.samples if s.id not in answers]
    if left and missing == "refuse":
        raise BadInput(
            f"{file}: {len(left)} of {len(asked.samples)} questions of {asked.what} have no answer, the first is "
            f"{left[0].id!r}; answer them, or let --missing wrong count them as wrong"
        )
    told["questions without an answer, which count as wrong"] += len(left)
    empty = Candidate("", BoxedText(""))
    return MatchedPredictions(
        [answers.get(s.id) or Prediction(s.id, (empty,), by=file.name) for s in asked.samples], +told
    )


def _good(row: SourceRow | RowResult) -> SourceRow:
    if isinstance(row, RowResult):
        raise BadInput(str(row.problem))
    return row


def _read(row: SourceRow, make: Callable[[dict[str, Any]], T]) -> T:
    """What `make` reads in a row, whose faults name file, row and field."""
    try:
        return make(row.value)
    except FieldError as fault:
        raise BadInput(str(make_error_result(row.file, row.number, fault, None, row.value).problem)) from None


def _once(answers: dict[str, Prediction], row: SourceRow, key: str, prediction: Prediction) -> None:
    if prediction.id in answers:
        fault = FieldError(
            key, row.value.get(key), f"{prediction.id} is answered in another row, too; keep one of them"
        )
        raise BadInput(str(make_error_result(row.file, row.number, fault, None, row.value).problem))
    answers[prediction.id] = prediction


# ---- predictions as runs write them ---------------------------------------------------------------------------------


def _predictions(rows: Iterable[SourceRow], asked: EvaluationData) -> dict[str, Prediction]:
    known = {s.id for s in asked.samples}

    def read(value: dict[str, Any]) -> Prediction:
        try:
            made = Prediction.from_json(value)
            made.answer  # noqa: B018 - one of the candidates is chosen
        except (ValueError, IndexError) as error:
            raise FieldError("candidates", value.get("candidates"), f"no prediction ({error}); write it anew") from None
        if made.id not in known:
            raise FieldError(
                "id", made.id, f"{asked.what} has no such question; leave it out, or choose another --split"
            )
        return made

    answers: dict[str, Prediction] = {}
    for row in rows:
        _once(answers, row, "id", _read(row, read))
    return answers


# ---- COCO results ---------------------------------------------------------------------------------------------------


def _boxes(rows: Iterable[SourceRow], asked: EvaluationData, least: float, told: Counter[str]) -> dict[str, Prediction]:
    """The boxes of each name in each image, best first, as one answer."""
    if asked.names is None:
        raise BadInput("boxes of COCO results speak of ids: give the COCO annotation file as --data")
    names = asked.names
    grounding = {(s.images[0].path, s.names[0]): s for s in asked.samples if s.task is Task.VG and len(s.names) == 1}
    found: dict[str, list[tuple[float, Box | None]]] = defaultdict(list)
    file = "COCO results"

    def read(value: dict[str, Any]) -> tuple[Sample | None, float, Box | None]:
        image, name = names.image(value.get("image_id")), names.category(value.get("category_id"))
        score = value.get("score", 1.0)
        if type(score) not in (int, float) or not -1e9 < score < 1e9:
            raise FieldError("score", score, "a number is wanted")
        corners = require_four_numbers(value.get("bbox"), "bbox", "[x, y, width, height] in pixels")
        sample = grounding.get((image, name))
        return sample, float(score), None if sample is None else _clipped(corners, sample.images[0])

    for row in rows:
        file = row.file.name
        sample, score, box = _read(row, read)
        if sample is None:
            told["boxes of names that are not asked for in their image"] += 1
        elif score < least:
            found[sample.id] += []
            told[f"boxes with a score below {least:g}, left out"] += 1
        else:
            found[sample.id].append((score, box))
    return {name: _boxed(name, several, file) for name, several in found.items()}


def _clipped(corners: tuple[float, float, float, float], image: ImageRef) -> Box | None:
    """A box in pixels, what lies beyond the border cut off; None where nothing is left."""
    assert image.width and image.height
    x, y, w, h = corners
    x1, y1 = max(x, 0) / image.width, max(y, 0) / image.height
    x2, y2 = min(x + w, image.width) / image.width, min(y + h, image.height) / image.height
    return Box(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _boxed(name: str, several: Sequence[tuple[float, Box | None]], by: str) -> Prediction:
    ranked = sorted(several, key=lambda sb: -sb[0])
    boxes = tuple(box for _, box in ranked if box is not None)
    unread = tuple("a box outside the image" for _, box in ranked if box is None)
    answer = BoxedText(" ".join([BOX_MARK] * len(boxes)), boxes)
    return Prediction(name, (Candidate(answer.text, answer, unread=unread),), by=by)


def _captions(rows: Iterable[SourceRow], asked: EvaluationData) -> dict[str, Prediction]:
    """The one question for a caption of each image, which goes by its id, its path, its name, or the id of COCO."""
    known = _captioned(asked.samples)
    answers: dict[str, Prediction] = {}

    def read(value: dict[str, Any]) -> Prediction:
        image, said = value.get("image_id"), value.get("caption")
        if not isinstance(said, str):
            raise FieldError("caption", said, "text is wanted")
        own = asked.names.images.get(str(image)) if asked.names else None
        samples = known.get(own or str(image), ())
        if len(samples) != 1:
            many = (
                f"{asked.what} asks {len(samples)} questions for a caption of this image; give predictions by their id"
            )
            none = f"{asked.what} asks for no caption of such an image; leave it out, or choose another --split"
            raise FieldError("image_id", image, many if samples else none)
        text = BoxedText(said.replace(BOX_MARK, " "))
        return Prediction(samples[0], (Candidate(said, text),), by="COCO results")

    for row in rows:
        _once(answers, row, "image_id", _read(row, read))
    return answers


def _captioned(samples: Iterable[Sample]) -> Mapping[str, Sequence[str]]:
    """Ids of samples that want a caption, by all that their image goes by."""
    found: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        if sample.task in CAPTIONED:
            path = PurePosixPath(sample.images[0].path)
            for name in {sample.id, str(path), path.name, path.stem}:
                found[name].append(sample.id)
    return found
