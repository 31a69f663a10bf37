"""Reader of VQA-Med, the questions of ImageCLEF 2018 to 2021: lines of text with bars between their parts.

    2019 to 2021  synpic100132|what plane is this?|axial               All_QA_Pairs_train.txt, ..._Val_QA_Pairs.txt
    2019, test    synpic54082|modality|is this a ct scan?|yes          VQAMed2019_Test_Questions_w_Ref_Answers.txt
    2020, test    synpic26840|is the mri normal? and, in another file, synpic26840|yes
    2018          1 <tab> 1750-1172-5-4-1 <tab> what does ct show? <tab> a cyst            VQAMed2018Train-QA.csv

An image is named without its suffix, and lies in a folder beside the file (`Train_images`). The split comes from the
name of the file. Of several accepted answers ("a|b" and "a#b") the first is learned, and the others are counted. The
categories of `QAPairsByCategory` repeat the questions of `All_QA_Pairs`, and are left out beside it. No row states a
modality: see `vqa`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from clinkd.data.readers.rows import FieldError, RowResult, SourceRow, make_error_result, normalize_encoding, read_head
from clinkd.data.readers.source import Source
from clinkd.data.readers.vqa import read_files
from clinkd.records import BadInput

CATEGORIES = ("modality", "plane", "organ", "abnormality")  # of 2019
BY_CATEGORY = "QAPairsByCategory"
SUFFIXES = (".txt", ".csv", ".tsv")
_NAME = re.compile(r"[\w.-]+")  # of an image: no sentence


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Rows of a file, or of all files of the form below a folder. Raises BadInput if there is none."""
    reader = _LineReader(source.encoding, notes)
    if source.path.is_file():
        return read_files(source, notes, [(source.path, reader.read(source.path))])
    files = [file for file in sorted(source.path.rglob("*")) if count_parts(file) > 1]
    if any("all_qa_pairs" in file.name.lower() for file in files):
        kept = [file for file in files if file.parent.name != BY_CATEGORY]
        if len(kept) < len(files):
            notes[f"files of {BY_CATEGORY}, whose questions stand in All_QA_Pairs"] += len(files) - len(kept)
        files = kept
    if not files:
        raise BadInput(f"{source.path}: no file with lines such as image|question|answer there; give its path")
    halves = [file for file in files if count_parts(file) == 2 or _holds_answers(file)]
    whole = [(file, reader.read(file)) for file in files if file not in halves]
    return read_files(source, notes, whole + [(q, reader.join(q, a)) for q, a in _pair_halves(halves)])


def _pair_halves(halves: list[Path]) -> Iterator[tuple[Path, Path]]:
    """The files of questions, each with the file of answers beside it."""
    for folder in dict.fromkeys(file.parent for file in halves):
        beside = sorted((file for file in halves if file.parent == folder), key=_holds_answers)
        if [_holds_answers(file) for file in beside] != [False, True]:
            names = ", ".join(file.name for file in beside)
            why = "lines of two parts are questions in one file and their answers in one beside it"
            raise BadInput(f"{folder}: {names}: {why}; put both there, and others elsewhere")
        yield beside[0], beside[1]


def _holds_answers(file: Path) -> bool:
    """Whether a file holds answers alone, by its name: several accepted ones look like a question and its answer."""
    name = file.stem.lower().replace("vqanswering", "")
    return "answer" in name and "question" not in name


def is_file(file: Path) -> bool:
    """Whether the first line of a text is of this form. A CSV may be a sheet, so `--form` is to say what it is."""
    return file.suffix.lower() == ".txt" and count_parts(file) > 1


def count_parts(file: Path) -> int:
    """The parts of the first line of a file that may be of this form; 0 if it is not."""
    if file.suffix.lower() not in SUFFIXES or not file.is_file():
        return 0
    parts = _split_line(read_head(file).partition("\n")[0])
    return len(parts) if len(parts) > 1 and _NAME.fullmatch(parts[0]) else 0


def _split_line(line: str) -> list[str]:
    """The parts of a line: the image, the question and the answers; or the image and one of these."""
    parts = [part.strip() for part in line.split("|")]
    cells = [cell.strip() for cell in line.split("\t")]
    if len(parts) == 1 and len(cells) == 4 and cells[0].isdecimal():
        return cells[1:]
    if len(parts) > 3 and parts[1].lower() in CATEGORIES:
        del parts[1]
    return parts


class _LineReader:
    """Makes rows of lines. `notes` counts the questions with other accepted answers than the one that is learned."""

    def __init__(self, encoding: str, notes: Counter[str]) -> None:
        encoding = normalize_encoding(encoding)
        self.encoding, self.notes = "utf-8-sig" if encoding == "utf-8" else encoding, notes

    def read(self, file: Path, wanted: str = "image|question|answer") -> Iterator[SourceRow | RowResult]:
        """Lines with an image, a question and its answers; or with those of `wanted`."""
        keys = wanted.split("|")
        with file.open(encoding=self.encoding, errors="surrogateescape") as lines:
            for number, line in enumerate(map(str.strip, lines), start=1):
                parts = _split_line(line)
                if not line.isascii() and any("\udc80" <= character <= "\udcff" for character in line):
                    fault = FieldError("row", line, f"not {self.encoding}; name the encoding with --encoding")
                    yield make_error_result(file, number, fault, line)
                elif line and len(parts) < len(keys):
                    fault = FieldError("row", line, f"{wanted} is wanted, with bars between")
                    yield make_error_result(file, number, fault, line)
                elif line:
                    value = dict(zip(keys, parts, strict=False))
                    if keys[-1] == "answer":
                        value["answer"] = self._choose_answer(parts[len(keys) - 1 :])
                    yield SourceRow(file, number, value, line)

    def join(self, file: Path, answer_file: Path) -> Iterator[SourceRow | RowResult]:
        """Lines with an image and a question, with the answers of another file."""
        answers: dict[str, SourceRow] = {}
        for row in self.read(answer_file, "image|answer"):
            if isinstance(row, RowResult):
                yield row
            elif answers.setdefault(row.value["image"], row) is not row:
                fault = FieldError("image", row.value["image"], "has an answer above; remove the wrong one")
                yield make_error_result(answer_file, row.number, fault, row.raw)
        for row in self.read(file, "image|question"):
            if isinstance(row, SourceRow) and (answer := answers.pop(row.value["image"], None)) is not None:
                row = replace(row, value=row.value | answer.value)
            yield row
        for row in answers.values():
            fault = FieldError("image", row.value["image"], f"no question of {file.name} is about it; add it")
            yield make_error_result(answer_file, row.number, fault, row.raw)

    def _choose_answer(self, answers: list[str]) -> str:
        """The first of several accepted answers."""
        accepted = [words.strip() for answer in answers for words in answer.split("#") if words.strip()]
        if len(accepted) > 1:
            self.notes["questions with several accepted answers, of which the first is learned"] += 1
        return accepted[0] if accepted else ""
