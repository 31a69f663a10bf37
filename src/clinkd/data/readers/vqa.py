"""Readers of medical question answering: VQA-RAD, SLAKE and LLaVA-Med-qa0.2k.

    VQA-RAD    {"qid", "image_name", "question", "answer", "phrase_type", ...}, a list (osf.io/89kps), or a file a split
    SLAKE      {"qid", "img_name", "question", "answer", "q_lang", "modality", ...}, train, validate and test.json
    others     {"image", "question", "answer"}, as VQA-RAD and PathVQA lie on Hugging Face, images saved as files
    LLaVA-Med  {"question_id", "image", "text", "gpt4_answer", "domain", "type"}, one object a line

The split comes from the row ("split", or VQA-RAD's phrase_type test_...), else from `Source.split`, else from the name
of the file; other rows of VQA-RAD are train. VQA-RAD asks about the same images in train and in test. Its rows do not
state a modality: give it with `Source.modality` for all, with the key "modality" for a row, or with `modalities.csv`
(columns image and modality) beside the file for each image. `Source.columns` maps image, question, answer, modality and
id to other keys. SLAKE's Chinese questions are left out and counted, because answers are judged in English. Images may
lie below the root in "imgs", "VQA_RAD Image Folder" or "images", where the archives unpack them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from clinkd.data.readers.annotated import find_split_group
from clinkd.data.readers.boxes import resolve_modality
from clinkd.data.readers.conversations import SPLITS, files
from clinkd.data.readers.rows import (
    FieldError,
    RowResult,
    SourceRow,
    convert_rows,
    json_rows,
    require_words,
    sheet_rows,
    use_cell,
)
from clinkd.data.readers.source import ImageResolver, Source
from clinkd.records import BadInput, BoxedText, Modality, Sample, Split, Task, Turn
from clinkd.spelling import suggest

FOLDERS = ("imgs", "VQA_RAD Image Folder", "images")
MODALITIES = "modalities.csv"
KEYS = {  # our name -> the keys that are looked for
    "image": ("image_name", "img_name", "image"), "question": ("question",), "answer": ("answer",),
    "modality": ("modality",), "id": ("qid", "id"),
}  # fmt: skip
LLAVA_MED_KEYS = {"image": ("image",), "question": ("text",), "answer": ("gpt4_answer",), "id": ("question_id",)}
# Of several domains LLaVA-Med's own evaluation takes the first in this order (summarize_gpt_review.py, get_domain):
# 37, 38, 44, 34 and 40 of its 193 questions.
DOMAINS = {
    "chest_xray": Modality.XRAY,
    "mri": Modality.MR,
    "histology": Modality.MICROSCOPY,
    "gross": Modality.OTHER,
    "ct_scan": Modality.CT,
}
TYPES = {"conversation": Task.QA, "detailed_description": Task.MIA, "detail_description": Task.MIA, "detail": Task.MIA}


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Rows of a file, or of all JSON files of a folder. Raises BadInput if there is none, or if a knob does not fit."""
    if source.task not in (None, Task.QA, Task.MIA):
        raise BadInput(f"--task {source.task}: these questions have no boxes; QA or MIA is wanted")
    if unknown := next((ours for ours in source.columns if ours not in KEYS), None):
        raise BadInput(f"--column {unknown}={source.columns[unknown]}: one of {', '.join(KEYS)} is wanted before the =")
    folder = source.path if source.path.is_dir() else source.path.parent
    reader = _VqaReader(source, notes)
    if (folder / MODALITIES).is_file():
        yield from reader.read_modalities(folder / MODALITIES)
    for file in files(source.path):
        yield from reader.read_file(file)


class _VqaReader:
    """Reads the files of a data set."""

    def __init__(self, source: Source, notes: Counter[str]) -> None:
        self.source, self.notes = source, notes
        self.is_llava_med = source.form == "llava-med-qa"
        self.keys = KEYS | LLAVA_MED_KEYS if self.is_llava_med else KEYS | {k: (v,) for k, v in source.columns.items()}
        self.pictures = ImageResolver(source, notes)
        self.folder = ""  # of the images, relative to the root
        if source.images is None and not source.prefix:
            self.folder = next((f"{name}/" for name in FOLDERS if (source.root / name).is_dir()), "")
        self.modalities: dict[str, Modality] = {}  # by the image name in rows
        self.first_places: dict[str, str] = {}  # id of a sample -> the place of its row

    def read_modalities(self, file: Path) -> Iterator[RowResult]:
        """Read the modality of each image from a sheet. Only rows with errors are returned."""
        first_rows: dict[str, int] = {}

        def remember_modality(row: SourceRow) -> tuple[()]:
            if not {"image", "modality"} <= row.value.keys():
                raise BadInput(f"{file}: its columns are {', '.join(row.value)}; image and modality are wanted")
            image = require_words(use_cell(row.value["image"], "image"), "image")
            modality = resolve_modality(use_cell(row.value["modality"], "modality") or None, self.source)
            if self.modalities.setdefault(image, modality) is not modality:
                why = f"row {first_rows[image]} says {self.modalities[image].value} of {image}; correct one of them"
                raise FieldError("modality", row.value["modality"], why)
            first_rows.setdefault(image, row.number)
            return ()

        results = convert_rows(sheet_rows(file, self.source.encoding), remember_modality)
        return (result for result in results if result.problem is not None)

    def read_file(self, file: Path) -> Iterator[RowResult]:
        name = "_".join(re.findall(r"[^\W_]+", file.stem.lower()))
        split = next((SPLITS[w] for w in re.sub(r"(train|test)set", r"\1", name).split("_") if w in SPLITS), None)
        make = partial(self._convert_row, file_name=name, file_split=split)
        return convert_rows(json_rows(file, self.source.encoding), make)

    def _get_value(self, row: dict[str, Any], ours: str) -> tuple[str, Any]:
        """The key of the row that has one of our names, and its value."""
        key = next((k for k in self.keys[ours] if k in row), self.keys[ours][0])
        return key, row.get(key)

    def _convert_row(self, row: SourceRow, file_name: str, file_split: Split | None) -> list[Sample]:
        value = row.value
        language = value.get("q_lang")
        if language not in (None, "en"):
            self.notes[f"questions in {language if isinstance(language, str) else 'no known language'}, left out"] += 1
            return []
        image_key, image_name = self._find_image_name(value)
        turn = Turn(self._find_task(value), *self._parse_texts(value))
        modality = self._find_modality(value, image_name)
        split = self._find_split(value, file_split)
        path = image_name if image_name.startswith(self.folder) else f"{self.folder}{image_name}"
        image = self.pictures.ref(path, image_key)
        id_key, stated_id = self._get_value(value, "id")
        if stated_id is not None and (type(stated_id) not in (int, str) or not str(stated_id).strip()):
            raise FieldError(id_key, stated_id, "text or a number is wanted")
        sample_id = f"{file_name}-row{row.number}" if stated_id is None else f"{file_name}-{str(stated_id).strip()}"
        place = f"{row.file.name}, row {row.number}"
        if self.first_places.setdefault(sample_id, place) != place:
            why = f"already used by {self.first_places[sample_id]}; give each question its own"
            raise FieldError(id_key, stated_id, why)
        group, side = find_split_group(self.source, image.path), self.source.side or "patient"
        origin = "slake" if "img_name" in value else "vqarad" if "phrase_type" in value else file_name
        origin = "llava_med_qa" if self.is_llava_med else origin
        return [Sample(sample_id, (image,), modality, (turn,), group, origin, (), (), side, split)]

    def _find_image_name(self, value: dict[str, Any]) -> tuple[str, str]:
        """The key and the name of the image. Rows of Hugging Face may have the picture itself instead."""
        key, name = self._get_value(value, "image")
        if isinstance(name, dict):
            if isinstance(name.get("path"), str) and not name.get("bytes"):
                return key, require_words(name["path"], f"{key}.path")
            raise FieldError(key, "an object", "the row holds the picture itself; save it as a file, and give its path")
        return key, require_words(name, key)

    def _find_task(self, value: dict[str, Any]) -> Task:
        if not self.is_llava_med:
            return self.source.task or Task.QA
        kind = value.get("type")
        if not isinstance(kind, str) or kind not in TYPES:
            raise FieldError("type", kind, f"one of {', '.join(TYPES)} is wanted")
        return self.source.task or TYPES[kind]

    def _parse_texts(self, value: dict[str, Any]) -> tuple[BoxedText, BoxedText]:
        """The question and the answer."""
        question_key, question = self._get_value(value, "question")
        answer_key, answer = self._get_value(value, "answer")
        if self.is_llava_med and isinstance(question, str):
            question = question.replace("<image>", " ")
        if type(answer) in (int, float):
            self.notes["answers that are numbers, taken as text"] += 1
            answer = str(answer)
        return BoxedText(require_words(question, question_key)), BoxedText(require_words(answer, answer_key))

    def _find_modality(self, value: dict[str, Any], image_name: str) -> Modality:
        """The modality that the row states, or `modalities.csv`, or else the source."""
        if self.is_llava_med and value.get("domain") is not None:
            modalities = _parse_domain(value["domain"])
            if len(modalities) > 1:
                self.notes["questions on figures of two domains, taken as the first in LLaVA-Med's order"] += 1
            if modalities:
                return modalities[0]
        key, stated = self._get_value(value, "modality")
        if stated in (None, "") and image_name in self.modalities:
            return self.modalities[image_name]
        if stated in (None, "") and self.source.modality is None:
            why = "the row does not say how its image was made; give one for all with --modality, or each in"
            field = "domain" if self.is_llava_med else key
            raise FieldError(field, stated, f"{why} {MODALITIES} (columns image, modality) beside the file")
        return resolve_modality(stated, self.source)

    def _find_split(self, value: dict[str, Any], file_split: Split | None) -> Split | None:
        if self.is_llava_med:
            return self.source.split or "test"
        stated = value.get("split")
        if stated is not None:
            split = SPLITS.get(stated.casefold()) if isinstance(stated, str) else None
            if split is None:
                hint = suggest(stated, SPLITS) if isinstance(stated, str) else ""
                raise FieldError("split", stated, f"train, validation or test is wanted{hint}")
            return split
        phrase = value.get("phrase_type")
        if isinstance(phrase, str) and phrase.startswith("test"):
            return "test"  # whatever the source says: a test question must not be trained on
        return self.source.split or file_split or ("train" if isinstance(phrase, str) else None)


def _parse_domain(domain: Any) -> list[Modality]:
    """The modalities of a figure of LLaVA-Med, in the order of DOMAINS."""
    if not isinstance(domain, dict) or not all(isinstance(v, bool) for v in domain.values()):
        raise FieldError("domain", domain, "an object of true and false is wanted")
    if unknown := [k for k, v in domain.items() if v and k not in DOMAINS]:
        raise FieldError("domain", unknown[0], f"unknown; one of {', '.join(DOMAINS)} is wanted")
    return [modality for k, modality in DOMAINS.items() if domain.get(k)]
