"""Ask a finished run's model many questions in one start. Answers are kept in a journal as they come."""

from __future__ import annotations

import filecmp
import hashlib
import io
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from clinkd.data.images import encode_picture, is_named_as_image, kind_of, locate, open_image
from clinkd.data.readers.choices import ask_with_options
from clinkd.data.readers.dicom_folder import list_sheet_lines
from clinkd.data.readers.rows import ROW_FILES, FieldError, RowResult, table_rows, use_cell
from clinkd.language.phrases import find_phrases
from clinkd.pipeline.runs import Run
from clinkd.records import BOX_MARK, BadInput, Box, Modality
from clinkd.reporting.viewer.overlay import draw_answer
from clinkd.storage import JsonLines, demand_empty, progress, read_json, replacing, sha256_file, write_atomic, write_csv
from clinkd.workflows.ask import Answer, Answerer, Question, read_stated_modality

COLUMNS = (
    "id", "image", "sha256", "sop_instance_uid", "question", "answer", "boxes", "boxes_pixels", "box_names",
    "candidates", "uncertain", "confidence", "warnings", "model", "error",
)  # fmt: skip
BATCH_PIXELS = 1 << 26  # of all images that wait for their answers


# ---- the questions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BatchQuestion:
    """One question as its list has it; or why it cannot be asked."""

    id: str
    image: str  # relative to the folder of images
    question: str
    error: str = ""


@dataclass(frozen=True)
class QuestionList:
    """Questions in a fixed order. `read` begins anew at each call; `identity` is a hash of them."""

    root: Path  # of the images
    identity: str
    read: Callable[[], Iterator[BatchQuestion]]


def read_question_sheet(file: Path, root: Path | None = None) -> QuestionList:
    """The rows of a sheet or a JSON file with columns image, question and perhaps id; the number of the row is the
    default id. Images lie in `root`, by default the folder of the file. Raises BadInput if a column is missing."""
    if file.suffix.lower() not in ROW_FILES:
        raise BadInput(f"{file}: a sheet of questions is wanted ({', '.join(ROW_FILES)})")
    if not file.is_file():
        raise BadInput(f"{file}: no such file; give a sheet with the columns image and question")
    root = root or file.parent
    return QuestionList(root, f"{sha256_file(file)} {root.resolve()}", partial(_read_rows, file))


def _read_rows(file: Path) -> Iterator[BatchQuestion]:
    first = True
    for row in table_rows(file):
        if isinstance(row, RowResult):
            yield BatchQuestion(str(row.row), "", "", row.problem.why if row.problem else "cannot be read")
            continue
        cells = {k.strip().casefold(): "" if v is None else v for k, v in row.value.items()}
        if first and (missing := [c for c in ("image", "question") if c not in cells]):
            columns = ", ".join(row.value)
            raise BadInput(f"{file}: its columns are {columns}; {' and '.join(missing)} is missing: rename a column")
        first = False
        image = question = ""
        try:
            image, question, name = (str(use_cell(cells.get(k, ""), k)).strip() for k in ("image", "question", "id"))
            question = ask_with_options(question, row.value)
        except FieldError as fault:
            yield BatchQuestion(str(row.number), image, question, f"{fault.field} = {fault.value}: {fault.why}")
            continue
        yield BatchQuestion(name or str(row.number), image, question, "" if image else "the row names no image")


def ask_about_folder(folder: Path, questions: Sequence[str], besides: Sequence[Path] = ()) -> QuestionList:
    """The same questions about each image below a folder, each frame for itself. Files that are no images by their
    name and content are left out, and so is what lies at or below the paths `besides`."""
    if not all(question.strip() for question in questions):
        raise BadInput('--question: it is empty; ask something, as "Where is the kidney?"')
    left_out = [path.resolve() for path in besides]
    lines: list[tuple[str, str]] = []
    for line in list_sheet_lines(folder):
        name, problem = line["image"], line.get("problem", "")
        path = (folder / name).resolve()
        if any(path.is_relative_to(other) for other in left_out) or Path(name).name.startswith("."):
            continue
        if not problem or is_named_as_image(name):
            lines.append((name, problem))
    if not lines:
        raise BadInput(f"{folder}: no image is there; give the folder that holds them")
    content = repr((str(folder.resolve()), lines, list(questions)))
    identity = hashlib.sha256(content.encode(errors="backslashreplace")).hexdigest()

    def read() -> Iterator[BatchQuestion]:
        pairs = ((image, problem, question) for image, problem in lines for question in questions)
        for number, (image, problem, question) in enumerate(pairs, start=1):
            yield BatchQuestion(str(number), image, question, problem)

    return QuestionList(folder, identity, read)


# ---- the answers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BatchResult:
    """How many questions a file holds answers to, and how many of its rows have an error instead."""

    rows: int
    errors: int


def ask_many(run: Run, questions: QuestionList, out: Path, pictures: Path | None = None) -> BatchResult:
    """Answer all questions as the run answers, in their order, and write them to `out`, a .csv or .jsonl; with
    `pictures`, also a PNG of each answer there. What is wrong with one question is the error of its row.

    Answers are kept in a journal beside `out`; the same call goes on from there. Raises BadInput if the journal is of
    another run or of other questions.
    """
    if out.suffix.lower() not in (".csv", ".jsonl"):
        raise BadInput(f"--out {out}: answers are written as .csv or .jsonl")
    total = sum(1 for _ in questions.read())
    if not total:
        raise BadInput("there is no question; give the sheet a row with an image and a question")
    journal = journal_of(out)
    if out.exists() and sum(1 for _ in JsonLines(journal).read()) <= total:
        raise BadInput(f"--out {out}: is there already; choose another name")
    if pictures is not None and not journal.exists():
        demand_empty(pictures)
    asked = _identify(run, questions, pictures)
    done, model = _open_journal(journal, asked), spell_model(run, asked["model"])
    with JsonLines(journal) as lines, progress(total, "ask", "answers", done=done) as advance:
        if done < total:
            answerer = Answerer.of_run(run)
            for batch in _make_batches(answerer, questions, done):
                _fill_answers(answerer, [row for row in batch if row.question is not None])
                for number, row in enumerate(batch, start=done + 1):
                    if pictures is not None:
                        _draw_row(row, number, pictures)
                    lines.append(_make_record(row, answerer.names, model))
                done += len(batch)
                advance(len(batch))
    errors = _write_answers(journal, out)
    journal.unlink()
    return BatchResult(total, errors)


def journal_of(out: Path) -> Path:
    """Where answers are kept until all are there."""
    return out.with_name(f"{out.name}.journal.jsonl")


def spell_model(run: Run, identities: Sequence[str]) -> str:
    """Who answers: run, last training, and a hash of the stages that decide, as "demo/round-2@0123456789abcdef"."""
    digest = hashlib.sha256(" ".join(identities).encode()).hexdigest()
    return f"{run.folder.name}/{run.last_trained}@{digest[:16]}"


def _identify(run: Run, questions: QuestionList, pictures: Path | None) -> dict[str, Any]:
    """What the answers depend on."""
    names = [run.last_trained, *(str(s["name"]) for s in run.stages if s["name"] == "select")]
    return {
        "run": run.folder.name,
        "model": [str(read_json(run.stage(name) / "stage.json")["identity"]) for name in names],
        "answer": run.config.answer.model_dump(mode="json", exclude={"batch"}),
        "questions": questions.identity,
        "pictures": pictures and str(pictures.resolve()),
    }


def _open_journal(journal: Path, asked: Mapping[str, Any]) -> int:
    """The number of answers in the journal; a new one begins with what is asked."""
    with JsonLines(journal) as lines:
        records = lines.read()
        begun = next(records, None)
        if begun is None:
            lines.append({"asked": asked})
            return 0
        kept = begun.get("asked", {})
        if differs := next((key for key in asked if kept.get(key) != asked[key]), None):
            words = {"run": "run", "model": "model", "questions": "list of questions"}.get(differs, f"--{differs}")
            raise BadInput(
                f"{journal}: holds answers of another {words}; choose another --out, or remove it to begin anew"
            )
        return sum(1 for _ in records)


@dataclass(frozen=True)
class OpenedImage:
    """An image, and what tells its file from all others."""

    picture: Image.Image
    file: Path
    sha256: str
    instance_uid: str
    modality: Modality

    @classmethod
    def of_file(cls, root: Path, name: str) -> OpenedImage:
        """Raises BadInput where it cannot be opened."""
        place = f"image {name}"
        picture = open_image(root, name)
        path, _ = locate(root, name, place)
        instance_uid = kind_of(path).instance_uid(path, place)
        return cls(picture, path, sha256_file(path), instance_uid, read_stated_modality(root, name))


@dataclass
class _BatchRow:
    """A question with its image; `error` says why it gets no answer."""

    asked: BatchQuestion
    image: OpenedImage | None = None
    question: Question | None = None
    answer: Answer | None = None
    error: str = ""


@dataclass
class _BatchImages:
    """The images of one batch, each opened once."""

    root: Path
    opened: dict[str, OpenedImage | BadInput] = field(default_factory=dict)
    pixels: int = 0

    def open(self, name: str) -> OpenedImage:
        if name not in self.opened:
            try:
                image = self.opened[name] = OpenedImage.of_file(self.root, name)
                self.pixels += image.picture.width * image.picture.height
            except BadInput as error:
                self.opened[name] = error
        image_or_error = self.opened[name]
        if isinstance(image_or_error, BadInput):
            raise image_or_error
        return image_or_error


def _make_batches(answerer: Answerer, questions: QuestionList, done: int) -> Iterator[list[_BatchRow]]:
    batch: list[_BatchRow] = []
    images = _BatchImages(questions.root)
    for asked in islice(questions.read(), done, None):
        batch.append(_prepare_row(answerer, asked, images))
        if len(batch) == answerer.config.answer.batch or images.pixels >= BATCH_PIXELS:
            yield batch
            batch, images = [], _BatchImages(questions.root)
    if batch:
        yield batch


def _prepare_row(answerer: Answerer, asked: BatchQuestion, images: _BatchImages) -> _BatchRow:
    row = _BatchRow(asked, error=asked.error)
    if not row.error:
        try:
            row.image = images.open(asked.image)
            text = answerer.read(asked.question, row.image.picture)
            row.question = Question.of(row.image.picture, text, row.image.modality, row.image.file)
        except BadInput as error:
            row.error = str(error).removeprefix(f"image {asked.image}: ")
    return row


def _fill_answers(answerer: Answerer, rows: Sequence[_BatchRow]) -> None:
    """Answer the questions together; if that is refused, each alone, to find the one that is at fault."""
    questions = [row.question for row in rows if row.question is not None]
    if not questions:
        return
    try:
        for row, answer in zip(rows, answerer.answers(questions), strict=True):
            row.answer = answer
    except BadInput as error:
        if len(rows) == 1:
            rows[0].error = str(error)
            return
        for row in rows:
            _fill_answers(answerer, [row])


# ---- the files ------------------------------------------------------------------------------------------------------


def _draw_row(row: _BatchRow, number: int, pictures: Path) -> None:
    if row.image and row.question and row.answer:
        name = re.sub(r"[^\w.-]+", "_", row.asked.id)[:60]
        drawn = draw_answer(row.image.picture, row.question.text, row.answer.prediction.answer.answer)
        write_atomic(pictures / f"{number:05d}-{name}.png", encode_picture(drawn))


def _make_record(row: _BatchRow, names: Sequence[str], model: str) -> dict[str, Any]:
    asked = row.asked
    record: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    record |= {"id": asked.id, "image": asked.image, "question": asked.question, "error": row.error}
    record |= {"boxes": [], "boxes_pixels": [], "box_names": [], "candidates": [], "warnings": []}
    if row.image is not None:
        record |= {"sha256": row.image.sha256, "sop_instance_uid": row.image.instance_uid}
    if row.image is None or row.question is None or row.answer is None:
        return record
    prediction = row.answer.prediction
    answer, size = prediction.answer.answer, row.image.picture.size
    return record | {
        "answer": answer.text,
        "boxes": [box.to_json() for box in answer.boxes],
        "boxes_pixels": [to_pixels(box, size) for box in answer.boxes],
        "box_names": [phrase.words for phrase in find_phrases(answer, row.question.text.text, names)],
        "candidates": [
            {"answer": c.answer.to_json(), "logprob": c.logprob, "scores": c.scores, "chosen": n == prediction.chosen}
            for n, c in enumerate(prediction.candidates)
        ],
        "uncertain": row.answer.uncertain or "",
        "confidence": "" if row.answer.confidence is None else row.answer.confidence,
        "warnings": [warning._asdict() for warning in row.answer.warnings],
        "model": model,
    }


def to_pixels(box: Box, size: tuple[int, int]) -> list[int]:
    """Left, top, right and bottom in pixels of the upright image, right and bottom exclusive."""
    return [round(fraction * side) for fraction, side in zip(box.corners, (*size, *size), strict=True)]


def _write_answers(journal: Path, out: Path) -> int:
    """Write the journal's answers to `out`, and return the number of errors. They may be there: a kill may have come
    before the journal was removed."""
    with replacing(out) as file:
        if out.suffix.lower() == ".jsonl":
            with journal.open("rb") as source:
                source.readline()
                shutil.copyfileobj(source, file)
        else:
            # with a mark at its begin, by which Excel knows UTF-8
            text = io.TextIOWrapper(file, "utf-8-sig", errors="backslashreplace", newline="")
            write_csv(text, [COLUMNS])
            write_csv(text, map(_spell_record, _read_answers(journal)))
            text.detach()
        file.flush()
        if out.exists() and not filecmp.cmp(file.name, out, shallow=False):
            raise BadInput(f"--out {out}: is there already; choose another name (the answers are kept in {journal})")
    return sum(bool(record["error"]) for record in _read_answers(journal))


def _read_answers(journal: Path) -> Iterator[dict[str, Any]]:
    return islice(JsonLines(journal).read(), 1, None)


def _spell_record(record: dict[str, Any]) -> list[str]:
    cells = record | {
        "boxes": "; ".join(map(_spell_numbers, record["boxes"])),
        "boxes_pixels": "; ".join(map(_spell_numbers, record["boxes_pixels"])),
        "candidates": " | ".join(_spell_answer(candidate["answer"]) for candidate in record["candidates"]),
        "box_names": "; ".join(name.replace(";", ",") for name in record["box_names"]),
        "warnings": "; ".join(f"{w['kind']}: {w['message']}" for w in record["warnings"]),
    }
    return [str(cells[column]) for column in COLUMNS]


def _spell_answer(answer: str | dict[str, Any]) -> str:
    """A text with the fractions of each box at its place."""
    if isinstance(answer, str):
        return answer
    text = str(answer["text"])
    for box in answer["boxes"]:
        text = text.replace(BOX_MARK, f"[{_spell_numbers(box)}]", 1)
    return text


def _spell_numbers(numbers: Iterable[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)
