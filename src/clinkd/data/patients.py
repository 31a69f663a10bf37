"""Patients: words that name nobody, and the patients whom only the names of image files tell."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence

_WORDS_FOR_NOBODY = (
    "anon anonym anonymous anonymized anonymised anonymisiert anonyme anonymise de deid deident deidentified identified"
    " unknown unbekannt inconnu undefined unspecified none null nil missing blank empty default dummy removed deleted"
    " redacted hidden masked private confidential not no available applicable given known patient patientid subject"
    " person name id phi 匿名 未知"
)
_NOBODY = frozenset(_WORDS_FOR_NOBODY.split())
# A number behind these words is no patient's.
_NO_PERSON = "site|cent(?:er|re)|hospital|fold|batch|part|set|train|test|val(?:id)?|class|label|grade|type|view"
_NO_FOLDER_OF_A_PERSON = rf"{_NO_PERSON}|im(?:a?ge?)?s?|slices?|frames?|chunk|shard"
_YEAR_OR_MONTH = re.compile(r"(?:19|20)\d\d(?:[_ -]\d\d?)?")
_TOKEN = r"[^/]*?\d[^/_ -]*"  # up to the first number, and on to the next separator
_FOLDERS = tuple(f"^{'[^/]+/' * depth}({_TOKEN})[^/]*/" for depth in range(5))
_FILES = (f"({_TOKEN})[_ -][^/]*$", f"({_TOKEN}[_ -]{_TOKEN})[_ -][^/]*$")  # of the file's own name
_MOST_IMAGES = 500  # of a patient, on average; what groups more is a kind of image, or a part of the collection


def names_nobody(text: str) -> bool:
    """Whether a patient's ID is empty or consists of words that stand for any patient, such as ANONYMOUS."""
    words = re.findall(r"[^\W_]+", text.casefold())
    return all(word in _NOBODY or re.fullmatch("x{2,}", word) for word in words)


def strip_frame(path: str) -> str:
    """The file of an image: `scan.dcm` for its third frame, `scan.dcm#3`. Each row of a Parquet file is an image."""
    stem, sign, number = path.rpartition("#")
    return stem if sign and number.isdecimal() and not stem.lower().endswith(".parquet") else path


def note_patients(groups: dict[str, str], group_flag: str | None) -> Iterator[tuple[str, int]]:
    """Yield a note, with the number of images, where all images are of one patient, or where their names part them.

    `groups` has the patient (or study, or the image itself) of each file, `group_flag` the expression of `--group`.
    """
    count = len(set(groups.values()))
    if count == 1 and len(groups) > 1:
        way_out = "empty it in your file; against a DICOM header, --group '.+' divides by file"
        way_out = way_out if group_flag is None else "change --group"
        what = "images are of one patient, as all in this source, and stay in one split"
        yield f"{what}; if they are not, {way_out}", len(groups)
    elif 1 < count == len(groups):
        yield from _note_shared_names(list(groups))


def _note_shared_names(paths: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield the note on paths that share a number which may be a patient's, with the coarsest expression that fits."""
    depth = max(path.count("/") for path in paths)
    for pattern in (*_FOLDERS[:depth], *_FILES):
        is_folder = pattern in _FOLDERS
        match_at = re.compile(pattern).match
        key_by_path = {p: m[1] for p in paths if (m := match_at(p, 0 if is_folder else p.rfind("/") + 1))}
        sizes = Counter(key_by_path.values())
        shared = {key: size for key, size in sizes.items() if size > 1}
        likely = {key: size for key, size in shared.items() if _may_be_person(key, is_folder)}
        count = sum(likely.values())
        coarse = len(key_by_path) > _MOST_IMAGES * len(sizes)
        if len(sizes) > 1 and 2 * count > sum(shared.values()) and not coarse and not _is_shelf(key_by_path):
            path, key = next((path, key) for path, key in key_by_path.items() if key in likely)
            flag = shlex.quote(pattern if len(key_by_path) == len(paths) else f"^(?:.*/)?{pattern}|.+")
            number = len(sizes) + len(paths) - len(key_by_path)
            why = "no patient is told, and one may be in several splits"
            way_out = f"if that part is the patient, give --group {flag} ({number} groups of {len(paths)} images)"
            yield f"images share a part of their names with others ({key} in {path}): {why}; {way_out}", count
            return


def _may_be_person(key: str, is_folder: bool) -> bool:
    words = _NO_FOLDER_OF_A_PERSON if is_folder else _NO_PERSON
    is_other = re.fullmatch(rf".*?(?<![^\W\d_])(?:{words})[_ -]*\d[^\W_]*", key, re.I)
    return not is_other and not _YEAR_OR_MONTH.fullmatch(key)


def _is_shelf(key_by_path: dict[str, str]) -> bool:
    """Whether a folder only sorts those below it by the beginning of their names, as p10/p10000032 does."""
    return all(f"/{key}/{key}" in f"/{path}" for path, key in key_by_path.items())
