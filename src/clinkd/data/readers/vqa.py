"""Readers of medical question answering: VQA-RAD, SLAKE, PathVQA, OmniMedVQA and LLaVA-Med-qa0.2k.

    VQA-RAD    {"qid", "image_name", "question", "answer", "phrase_type", ...}, a list (osf.io/89kps), or a file a split
    SLAKE      {"qid", "img_name", "question", "answer", "q_lang", "modality", ...}, train, validate and test.json
    PathVQA    {"image": "train_0422", "question", "answer"}, as its pickles hold them, written as JSON
    OmniMedVQA {"question_id", "image_path", "question", "option_A", ..., "gt_answer", "modality_type"}
    others     {"image", "question", "answer"}, as VQA-RAD and PathVQA lie on Hugging Face: Parquet files with the
               pictures inside, or JSON with images saved as files
    LLaVA-Med  {"question_id", "image", "text", "gpt4_answer", "domain", "type"}, one object a line

The split comes from the row ("split", or VQA-RAD's phrase_type test_...), else from `Source.split`, else from the name
of the file; other rows of VQA-RAD are train. VQA-RAD asks about the same images in train and in test. Its rows do not
state a modality: give it with `Source.modality` for all, with the key "modality" for a row, or with `modalities.csv`
(columns image and modality) beside the file for each image. `Source.columns` maps image, question, answer, modality and
id to other keys. SLAKE's Chinese questions are left out and counted, because answers are judged in English. Options
make a question a multiple choice (see `choices`); other keys are counted. Images may lie below the root in "imgs",
"VQA_RAD Image Folder" or "images", where the archives unpack them, or in a folder beside the file or its folder that is
named for a split or for images.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from clinkd.data.readers.annotated import find_split_group, resolve_modality
from clinkd.data.readers.choices import find_choice_keys, make_choice_turn
from clinkd.data.readers.record_files import list_record_files, record_rows
from clinkd.data.readers.rows import (
    FieldError,
    RowResult,
    SourceRow,
    convert_rows,
    count_unused_keys,
    require_answer,
    require_words,
    sheet_rows,
    use_cell,
)
from clinkd.data.readers.source import ImageResolver, Source
from clinkd.data.readers.split_words import SPLIT_WORDS, find_split_in_name, parse_split
from clinkd.records import BadInput, BoxedText, ImageRef, Modality, Sample, Split, Task, Turn

FOLDERS = ("imgs", "VQA_RAD Image Folder", "images")
MODALITIES = "modalities.csv"
KEYS = {  # our name -> the keys that are looked for
    "image": ("image_name", "img_name", "image", "image_path", "file_name"), "question": ("question",),
    "answer": ("answer", "gt_answer"), "modality": ("modality", "modality_type"), "id": ("qid", "id", "question_id"),
}  # fmt: skip
OTHER_KEYS = {"q_lang", "split", "phrase_type"}
LLAVA_MED_OTHER_KEYS = {"domain", "type"}
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


def is_row(row: dict[str, Any]) -> bool:
    """Whether a row is a question with its answer."""
    return "question" in row and ("answer" in row or "gt_answer" in row or bool(find_choice_keys(tuple(row)).letter))


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Rows of a file, or of all JSON files of a folder. Raises BadInput if there is none, or if a knob does not fit."""
    files = list_record_files(source.path)
    return read_files(source, notes, ((file, record_rows(file, source.encoding)) for file in files))


def read_files(
    source: Source, notes: Counter[str], rows_of_files: Iterable[tuple[Path, Iterable[SourceRow | RowResult]]]
) -> Iterator[RowResult]:
    """The results of rows with the keys of this form. Raises BadInput if a knob does not fit."""
    if source.task not in (None, Task.QA, Task.MIA):
        raise BadInput(f"--task {source.task}: these questions have no boxes; QA or MIA is wanted")
    if unknown := next((ours for ours in source.columns if ours not in KEYS), None):
        raise BadInput(f"--column {unknown}={source.columns[unknown]}: one of {', '.join(KEYS)} is wanted before the =")
    folder = source.path if source.path.is_dir() else source.path.parent
    reader = _VqaReader(source, notes)
    if (folder / MODALITIES).is_file():
        yield from reader.read_modalities(folder / MODALITIES)
    for file, rows in rows_of_files:
        yield from reader.read_file(file, rows)


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
        self.folders_of_names: dict[str, Path] = {}
        self.image_folders: list[list[str]] = []  # of the file, the nearest first
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

    def read_file(self, file: Path, rows: Iterable[SourceRow | RowResult]) -> Iterator[RowResult]:
        """The results of the rows of a file, whose name or whose folder's name may state their split."""
        name = "_".join(re.findall(r"[^\W_]+", file.stem.lower()))
        split = find_split_in_name(name)
        split = split or SPLIT_WORDS.get(file.parent.name.lower())
        if split is None and self.source.path in file.parent.parents:  # a name outside the source may be anything
            split = find_split_in_name(file.parent.name)
        if self.folders_of_names.setdefault(name, file.parent) != file.parent:  # train/QA_pairs.txt, val/QA_pairs.txt
            name = f"{file.parent.name.lower()}_{name}"
        self.image_folders = self._list_image_folders(file)
        return convert_rows(rows, partial(self._convert_row, file_name=name, file_split=split))

    def _list_image_folders(self, file: Path) -> list[list[str]]:
        """Folders that may hold a file's images, relative to the root: beside it, beside its folder, in the root."""
        root = self.source.root
        bases = [p for p in (file.parent, file.parent.parent) if p.is_relative_to(root)] + [root / self.folder]
        return [
            [p.relative_to(root).as_posix() for p in sorted(base.iterdir()) if p.is_dir() and _may_hold_images(p.name)]
            for base in bases
            if base.is_dir()
        ]

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
        turn = self._parse_turn(value)
        modality = self._find_modality(value, image_name)
        split = self._find_split(value, file_split)
        image = self._find_image(image_name, image_key)
        id_key, stated_id = self._get_value(value, "id")
        if stated_id is not None and (type(stated_id) not in (int, str) or not str(stated_id).strip()):
            raise FieldError(id_key, stated_id, "text or a number is wanted")
        sample_id = f"{file_name}-row{row.number}" if stated_id is None else f"{file_name}-{str(stated_id).strip()}"
        place = f"{row.file.name}, row {row.number}"
        if self.first_places.setdefault(sample_id, place) != place:
            why = f"already used by {self.first_places[sample_id]}; give each question its own"
            raise FieldError(id_key, stated_id, why)
        self._count_unused_keys(value)
        facts = self.pictures.header(self.source.prefix + image.path)
        group, side = find_split_group(self.source, image.path, facts), self.source.side or "patient"
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

    def _find_image(self, name: str, key: str) -> ImageRef:
        """The image where the row says, or else the only one of its name in the nearest folders of images."""
        try:
            is_whole = name.replace("\\", "/").startswith(self.folder)
            return self.pictures.ref(name if is_whole else f"{self.folder}{name}", key)
        except FieldError as fault:
            if "no such file" not in fault.why:
                raise
            for folders in self.image_folders:
                found = [image for folder in folders if (image := self._try_image(f"{folder}/{name}")) is not None]
                if len(found) > 1:
                    fault.why = f"there are {' and '.join(image.path for image in found)}; give its path"
                    break
                if found:
                    return found[0]
            raise

    def _try_image(self, path: str) -> ImageRef | None:
        try:
            return self.pictures.ref(path)
        except FieldError:
            return None

    def _count_unused_keys(self, value: dict[str, Any]) -> None:
        used = {self._get_value(value, ours)[0] for ours in KEYS} | find_choice_keys(tuple(value)).used | OTHER_KEYS
        count_unused_keys(value, used | LLAVA_MED_OTHER_KEYS if self.is_llava_med else used, self.notes)

    def _find_task(self, value: dict[str, Any]) -> Task:
        if not self.is_llava_med:
            return self.source.task or Task.QA
        kind = value.get("type")
        if not isinstance(kind, str) or kind not in TYPES:
            raise FieldError("type", kind, f"one of {', '.join(TYPES)} is wanted")
        return self.source.task or TYPES[kind]

    def _parse_turn(self, value: dict[str, Any]) -> Turn:
        question_key, question = self._get_value(value, "question")
        answer_key, answer = self._get_value(value, "answer")
        choice = find_choice_keys(tuple(value))
        if answer is None and choice.letter:
            answer_key, answer = choice.letter, value[choice.letter]
        if self.is_llava_med and isinstance(question, str):
            question = question.replace("<image>", " ")
        question = BoxedText(require_words(question, question_key))
        turn = Turn(self._find_task(value), question, BoxedText(require_answer(answer, answer_key, self.notes)))
        return make_choice_turn(turn, value, choice, answer_key, self.notes)

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
            return parse_split(stated)
        phrase = value.get("phrase_type")
        if isinstance(phrase, str) and phrase.startswith("test"):
            return "test"  # whatever the source says: a test question must not be trained on
        return self.source.split or file_split or ("train" if isinstance(phrase, str) else None)


def _may_hold_images(folder: str) -> bool:
    return folder.lower() in SPLIT_WORDS or "image" in folder.lower()


def _parse_domain(domain: Any) -> list[Modality]:
    """The modalities of a figure of LLaVA-Med, in the order of DOMAINS."""
    if not isinstance(domain, dict) or not all(isinstance(v, bool) for v in domain.values()):
        raise FieldError("domain", domain, "an object of true and false is wanted")
    if unknown := [k for k, v in domain.items() if v and k not in DOMAINS]:
        raise FieldError("domain", unknown[0], f"unknown; one of {', '.join(DOMAINS)} is wanted")
    return [modality for k, modality in DOMAINS.items() if domain.get(k)]
