"""Readers of medical question answering: VQA-RAD, SLAKE and LLaVA-Med-qa0.2k.

    VQA-RAD    {"qid", "image_name", "question", "answer", "phrase_type", ...}, a list (osf.io/89kps), or a file a split
    SLAKE      {"qid", "img_name", "question", "answer", "q_lang", "modality", ...}, train, validate and test.json
    others     {"image", "question", "answer"}, as VQA-RAD and PathVQA lie on Hugging Face, images saved as files
    LLaVA-Med  {"question_id", "image", "text", "gpt4_answer", "domain", "type"}, one object a line

The split is that of the row ("split", or VQA-RAD's phrase_type test_...), else of `Source.split`, else of the file's
name; VQA-RAD's other rows are train. VQA-RAD asks of the same images in train and in test. Its rows do not say how an
image was made: `Source.modality` does for all, a key "modality" for a row, `modalities.csv` (columns image and
modality) beside the file for each image. `Source.columns` maps image, question, answer, modality and id to other keys.
SLAKE's Chinese half is left out, and counted: answers are judged in English. Images may lie below the root in "imgs",
"VQA_RAD Image Folder" or "images", as the archives unpack.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from clinkd.data.readers.annotated import find_split_group
from clinkd.data.readers.boxes import resolve_modality
from clinkd.data.readers.conversations import SPLITS, files
from clinkd.data.readers.rows import (
    FieldError,
    RowResult,
    SourceRow,
    convert_rows,
    json_rows,
    make_error_result,
    require_words,
    sheet_rows,
)
from clinkd.data.readers.source import ImageResolver, Source
from clinkd.records import BadInput, BoxedText, Modality, Sample, Split, Task, Turn

FOLDERS = ("imgs", "VQA_RAD Image Folder", "images")
MODALITIES = "modalities.csv"
KEYS = {  # our name -> the keys that are looked for
    "image": ("image_name", "img_name", "image"), "question": ("question",), "answer": ("answer",),
    "modality": ("modality",), "id": ("qid", "id"),
}  # fmt: skip
# In the order in which LLaVA-Med's own evaluation takes the first of several (summarize_gpt_review.py, get_domain);
# of its 193 questions that makes 37, 38, 44, 34 and 40.
DOMAINS = {
    "chest_xray": Modality.XRAY,
    "mri": Modality.MR,
    "histology": Modality.MICROSCOPY,
    "gross": Modality.OTHER,
    "ct_scan": Modality.CT,
}
TYPES = {"conversation": Task.QA, "detailed_description": Task.MIA, "detail_description": Task.MIA, "detail": Task.MIA}


def form_of(row: dict[str, Any]) -> Literal["vqa", "llava-med-qa"] | None:
    """The form of a row; None if it has neither form."""
    if "gpt4_answer" in row:
        return "llava-med-qa"
    return "vqa" if {"question", "answer"} <= row.keys() and any(k in row for k in KEYS["image"]) else None


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Rows of a file, or of all JSON files of a folder. Raises BadInput where none is there, or a knob does not fit."""
    if source.task not in (None, Task.QA, Task.MIA):
        raise BadInput(f"--task {source.task}: these questions have no boxes; QA or MIA is wanted")
    if wrong := next((ours for ours in source.columns if ours not in KEYS), None):
        raise BadInput(f"--column {wrong}={source.columns[wrong]}: one of {', '.join(KEYS)} is wanted before the =")
    folder = source.path if source.path.is_dir() else source.path.parent
    images = next((f for f in FOLDERS if (source.root / f).is_dir()), None)
    state = _DatasetState(
        source, ImageResolver(source), images if source.images is None and not source.prefix else None, notes
    )
    if (folder / MODALITIES).is_file():
        yield from _read_modalities(folder / MODALITIES, state)
    for file in files(source.path):
        make = partial(_convert_row, vqa_file=_read_file_name(file), state=state)
        yield from convert_rows(json_rows(file, source.encoding), make)


class _DatasetState:
    """The state of the data set while its rows are read."""

    def __init__(self, source: Source, pictures: ImageResolver, folder: str | None, notes: Counter[str]) -> None:
        self.source, self.pictures, self.folder, self.notes = source, pictures, folder, notes
        self.modalities: dict[str, Modality] = {}  # by image, as rows name it
        self.ids: dict[str, str] = {}  # of samples -> the place where it was given

    def path(self, name: str) -> str:
        """An image as the root has it."""
        if self.folder is None or name.startswith(f"{self.folder}/"):
            return name
        return f"{self.folder}/{name}"

    def value(self, row: dict[str, Any], ours: str) -> tuple[str, Any]:
        """The key that holds one of our names, and its value."""
        keys = (self.source.columns[ours],) if ours in self.source.columns else KEYS[ours]
        key = next((k for k in keys if k in row), keys[0])
        return key, row.get(key)


@dataclass(frozen=True, slots=True)
class _VqaFile:
    """What the file's name states for all its rows."""

    name: str
    split: Split | None


def _read_file_name(file: Path) -> _VqaFile:
    name = "_".join(re.findall(r"[^\W_]+", file.stem.lower()))
    split = next((SPLITS[w] for w in re.sub(r"(train|test)set", r"\1", name).split("_") if w in SPLITS), None)
    return _VqaFile(name, split)


def _read_modalities(file: Path, state: _DatasetState) -> Iterator[RowResult]:
    """The modality of each image, from a sheet; only its faults come out as entries."""
    first_rows: dict[str, int] = {}
    for row in sheet_rows(file, state.source.encoding):
        if isinstance(row, RowResult):
            yield row
            continue
        if not {"image", "modality"} <= row.value.keys():
            raise BadInput(f"{file}: its columns are {', '.join(row.value)}; image and modality are wanted")
        try:
            image = require_words(row.value["image"], "image")
            modality = resolve_modality(row.value["modality"] or None, state.source)
            if state.modalities.setdefault(image, modality) is not modality:
                why = f"row {first_rows[image]} says {state.modalities[image].value} of {image}; correct one of them"
                raise FieldError("modality", row.value["modality"], why)
            first_rows.setdefault(image, row.number)
        except FieldError as fault:
            yield make_error_result(file, row.number, fault, row.raw, row.value)


@dataclass(frozen=True, slots=True)
class _VqaRow:
    """A question as its row has it, the image and the id with the keys they stand under."""

    turn: Turn
    image: tuple[str, str]
    id: tuple[str, Any]
    modality: Modality
    origin: str
    split: Split | None


def _convert_row(row: SourceRow, vqa_file: _VqaFile, state: _DatasetState) -> list[Sample]:
    value, form = row.value, state.source.form or form_of(row.value)
    if form == "llava-med-qa":
        return [_make_sample(row, _parse_llava_med(value, state), vqa_file, state)]
    language = value.get("q_lang")
    if language not in (None, "en"):
        state.notes[f"questions in {language if isinstance(language, str) else 'no known language'}, left out"] += 1
        return []
    return [_make_sample(row, _parse_question(value, vqa_file, state), vqa_file, state)]


def _parse_question(value: dict[str, Any], vqa_file: _VqaFile, state: _DatasetState) -> _VqaRow:
    image = _find_image_name(value, state)
    question_key, question = state.value(value, "question")
    answer_key, answer = state.value(value, "answer")
    if type(answer) in (int, float):
        state.notes["answers that are numbers, taken as text"] += 1
        answer = str(answer)
    question_text, answer_text = (
        BoxedText(require_words(question, question_key)),
        BoxedText(require_words(answer, answer_key)),
    )
    key, stated = state.value(value, "modality")
    listed_modality = state.modalities.get(image[1]) if stated in (None, "") else None
    return _VqaRow(
        turn=Turn(state.source.task or Task.QA, question_text, answer_text),
        image=image,
        id=state.value(value, "id"),
        modality=listed_modality or _find_modality(stated, key, state.source),
        origin="slake" if "img_name" in value else "vqarad" if "phrase_type" in value else vqa_file.name,
        split=_find_split(value, vqa_file, state.source),
    )


def _parse_llava_med(value: dict[str, Any], state: _DatasetState) -> _VqaRow:
    kind, raw_question = value.get("type"), value.get("text")
    if not isinstance(kind, str) or kind not in TYPES:
        raise FieldError("type", kind, f"one of {', '.join(TYPES)} is wanted")
    question = require_words(
        raw_question.replace("<image>", " ") if isinstance(raw_question, str) else raw_question, "text"
    )
    answer = require_words(value.get("gpt4_answer"), "gpt4_answer")
    return _VqaRow(
        turn=Turn(state.source.task or TYPES[kind], BoxedText(question), BoxedText(answer)),
        image=("image", require_words(value.get("image"), "image")),
        id=("question_id", value.get("question_id")),
        modality=_find_domain_modality(value, state),
        origin="llava_med_qa",
        split=state.source.split or "test",
    )


def _find_domain_modality(value: dict[str, Any], state: _DatasetState) -> Modality:
    domain = value.get("domain")
    if domain is None:
        return _find_modality(value.get("modality"), "domain", state.source)
    if not isinstance(domain, dict) or not all(isinstance(v, bool) for v in domain.values()):
        raise FieldError("domain", domain, "an object of true and false is wanted")
    if unknown := [k for k, v in domain.items() if v and k not in DOMAINS]:
        raise FieldError("domain", unknown[0], f"unknown; one of {', '.join(DOMAINS)} is wanted")
    modalities = [modality for k, modality in DOMAINS.items() if domain.get(k)]
    if not modalities:
        return _find_modality(None, "domain", state.source)
    if len(modalities) > 1:
        state.notes["questions on figures of two domains, taken as the first in LLaVA-Med's order"] += 1
    return modalities[0]


def _find_modality(stated: Any, field: str, source: Source) -> Modality:
    """The modality of the row, else the one of the source."""
    if stated in (None, "") and source.modality is None:
        why = f"the row does not say how its image was made; give one for all with --modality, or each in {MODALITIES}"
        raise FieldError(field, stated, f"{why} (columns image, modality) beside the file")
    return resolve_modality(stated, source)


def _find_image_name(value: dict[str, Any], state: _DatasetState) -> tuple[str, str]:
    """The key and the name of the image. Hugging Face's rows may hold the picture itself."""
    key, name = state.value(value, "image")
    if isinstance(name, dict):
        if isinstance(name.get("path"), str) and not name.get("bytes"):
            return key, require_words(name["path"], f"{key}.path")
        raise FieldError(key, "an object", "the row holds the picture itself; save it as a file, and give its path")
    return key, require_words(name, key)


def _find_split(value: dict[str, Any], vqa_file: _VqaFile, source: Source) -> Split | None:
    stated = value.get("split")
    if stated is not None:
        split = SPLITS.get(stated.casefold()) if isinstance(stated, str) else None
        if split is None:
            raise FieldError("split", stated, "train, validation or test is wanted")
        return split
    phrase = value.get("phrase_type")
    if isinstance(phrase, str) and phrase.startswith("test"):
        return "test"  # whatever is said of all: a test question must not be trained on
    return source.split or vqa_file.split or ("train" if isinstance(phrase, str) else None)


def _make_sample(row: SourceRow, question: _VqaRow, vqa_file: _VqaFile, state: _DatasetState) -> Sample:
    image_key, name = question.image
    ref = state.pictures.ref(state.path(name), image_key)
    id_key, stated_id = question.id
    if stated_id is not None and (type(stated_id) not in (int, str) or not str(stated_id).strip()):
        raise FieldError(id_key, stated_id, "text or a number is wanted")
    sample_id = (
        f"{vqa_file.name}-{str(stated_id).strip()}" if stated_id is not None else f"{vqa_file.name}-row{row.number}"
    )
    row_place = f"{row.file.name}, row {row.number}"
    if state.ids.setdefault(sample_id, row_place) != row_place:
        raise FieldError(id_key, stated_id, f"already used by {state.ids[sample_id]}; give each question its own")
    return Sample(
        id=sample_id,
        images=(ref,),
        modality=question.modality,
        turns=(question.turn,),
        group=find_split_group(state.source, ref.path),
        source=question.origin,
        side=state.source.side or "patient",
        split=question.split,
    )
