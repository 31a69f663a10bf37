"""Names of classes, from the files in which data sets keep them, or from the command line (`Source.names`).

{"liver": 1, "tumour": 2}    JSON or YAML, name -> number, or number -> name
{"KiTS": {"kidney": 1}}      the same for each of several data sets, as in SA-Med2D-20M
{"labels": {...}}            dataset.json of nnU-Net (version 1 or 2, also with regions) or of MSD
names: [polyp, ulcer]        data.yaml of YOLO; numbered from 0
1,liver                      text or CSV, a number and a name a line; or a name a line, numbered from 0
polyp   1=liver,2=tumour     on the command line: the name of all that is marked, or names of numbers
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clinkd.data.readers.rows import FieldError, load_json_file, require_words
from clinkd.records import BadInput

WANTED = "--names FILE (JSON, YAML, CSV or text with numbers and names; nnU-Net's dataset.json, YOLO's data.yaml)"
_SUFFIXES = (".json", ".yaml", ".yml", ".txt", ".csv", ".tsv", ".names")
_NUMBER = re.compile(r"([-+]?)0*(\d+)(?:\.0*)?")
_BACKGROUND = {"background", "bg", "unlabelled", "unlabeled", "clear label"}
_Part = Mapping[str, tuple[str, ...]]  # code of a class -> its names


@dataclass(frozen=True, slots=True)
class Names:
    """`by_dataset`: data set ("" for all) -> code -> names. A code has several only where regions overlap.

    `only` is the one name that was given without a number. `counted`: the numbers are places in a list.
    """

    place: str  # the file or the flag, for messages
    by_dataset: Mapping[str, _Part]
    only: str = ""
    counted: bool = False
    regions: bool = False

    def find(self, code: object, field: str, value: object, dataset: str = "") -> str:
        """The name of a class. Raises FieldError with `field` and `value` where it has none, or several."""
        if self.only:
            return self.only
        part = self.by_dataset.get(dataset, self.by_dataset.get(""))
        if part is None:
            raise FieldError(field, value, f"dataset {dataset} is not in {self.place}; add it with its classes")
        names = part.get(fold_code(code), ())
        if len(names) != 1:
            why = f"has several names ({', '.join(names)})" if names else "is not there"
            place = self.place + (f", dataset {dataset}" if dataset in self.by_dataset else "")
            raise FieldError(field, value, f"class {code} {why} in {place}; correct the map")
        return require_words(names[0].replace("_", " "), f"class {code}")

    def of_value(self, value: int) -> tuple[str, ...]:
        """The names of a value in a mask; several only for regions that overlap, none where the value is not there."""
        return tuple(name.replace("_", " ") for name in self.by_dataset.get("", {}).get(str(value), ()))

    @property
    def single(self) -> str:
        """The name of all that is marked, where there is but one beside the background; else ""."""
        names = {name for part in self.by_dataset.values() for names in part.values() for name in names}
        named = [name for name in names if not is_background(name)]
        return self.only or (named[0].replace("_", " ") if len(named) == 1 else "")


def is_number(text: object) -> bool:
    """Whether a class is a whole number and so no name: 2, "-1", "0003", "1.0"."""
    is_numeric = isinstance(text, int | float) and not isinstance(text, bool)
    return (isinstance(text, str) or is_numeric) and _NUMBER.fullmatch(str(text).strip()) is not None


def is_background(name: str) -> bool:
    """Whether a name means what is marked as nothing."""
    return " ".join(name.replace("_", " ").split()).casefold() in _BACKGROUND


def fold_code(code: object) -> str:
    """A number as maps are searched for it: "0003", 3 and "3.0" are the same."""
    match = _NUMBER.fullmatch(str(code).strip())
    return match[1].replace("+", "") + match[2] if match else str(code).strip()


def require_class_name(value: Any, field: str, names: Names | None) -> str:
    """The name of a class in words. A number is looked up in `names`.

    Raises FieldError for a number without `names`, or one that they do not have.
    """
    if not is_number(value):
        return require_words(value, field)
    if names is None:
        raise FieldError(field, value, f"a number, and no name of a class; say what numbers mean with {WANTED}")
    return names.find(value, field, value)


def load_names(names: Path | str, folder: Path) -> Names:
    """Read the file (also below `folder`), or the names themselves. Raises BadInput with the place of the fault."""
    file = next((f for f in (Path(names), folder / names) if os.path.isfile(f)), None)  # False for a name too long
    if file is None:
        if Path(names).suffix.lower() in _SUFFIXES:
            raise BadInput(f"{names}: no such file; check the path of the names")
        return _parse_flag(str(names))
    if file.suffix.lower() == ".json":
        value = load_json_file(file)
    elif file.suffix.lower() in (".yaml", ".yml"):
        value = load_yaml(file)
    else:
        value = _read_lines(file)
    if isinstance(value, dict):
        value = next((value[k] for k in ("labels", "names") if isinstance(value.get(k), dict | list)), value)
    return _make_names(str(file), value)


def load_yaml(file: Path) -> Any:
    """The value of a YAML file, the keys of an object as text. Raises BadInput if it is none."""
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{file}: not YAML ({' '.join(str(error).split())}); mend it") from None
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else value


def _read_lines(file: Path) -> Any:
    """A list of names, or a dict of numbers and names, by what each line holds."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise BadInput(f"{file}: not a text in UTF-8; save it so") from None
    pairs = [re.split(r"\s*[,;\t|=:]\s*", line, maxsplit=1) for line in lines if line and not line.startswith("#")]
    if any(len(pair) == 2 for pair in pairs) and not any(map(is_number, pairs[0])):
        pairs = pairs[1:]  # below the heads of the columns
    if all(len(pair) == 1 for pair in pairs):
        return [name for (name,) in pairs]
    if bad := next((pair for pair in pairs if len(pair) != 2), None):
        raise BadInput(f"{file}: {bad[0]!r} is no number and name, as other lines are; correct it")
    return _pair_up(str(file), pairs)


def _parse_flag(text: str) -> Names:
    pairs = [entry.split("=", 1) for entry in text.split(",")]
    if len(pairs) == 1 and len(pairs[0]) == 1 and text.strip() and not is_number(text):
        return Names("--names", {}, only=require_words(text, "--names").replace("_", " "))
    if any(len(pair) != 2 for pair in pairs):
        raise BadInput(f"--names {text}: a file, one name, or numbers and names as 1=liver,2=tumour are wanted")
    return _make_names("--names", _pair_up("--names", pairs))


def _pair_up(place: str, pairs: Iterable[list[str]]) -> dict[str, str]:
    value: dict[str, str] = {}
    for key, name in pairs:
        if key in value:
            raise BadInput(f"{place}: {key!r} stands twice; keep one")
        value[key] = name
    return value


def _make_names(place: str, value: Any) -> Names:
    if isinstance(value, list) and value:
        return Names(place, {"": _collect_names(enumerate(value), place)}, counted=True)
    if not isinstance(value, dict) or not value:
        wanted = '{"liver": "0003"} or {"DATASET": {"liver": "0003"}}'
        raise BadInput(f"{place}: not a map of classes; {wanted} is wanted")
    by_dataset = value if all(isinstance(v, dict) for v in value.values()) else {"": value}
    places = {dataset: f"{place}, {dataset}" if dataset else place for dataset in by_dataset}
    regions = any(isinstance(v, list) for part in by_dataset.values() for v in part.values())
    indexed = {dataset: _index_codes(part, places[dataset]) for dataset, part in by_dataset.items()}
    return Names(place, indexed, regions=regions)


def _index_codes(part: Mapping[str, Any], place: str) -> dict[str, tuple[str, ...]]:
    """Code -> names, from a map of names to numbers (or lists of them, for regions), or of numbers to names."""
    pairs: list[tuple[object, object]]
    if all(_is_number_or_region(v) for v in part.values()):
        pairs = [(code, name) for name, value in part.items() for code in _list_codes(value)]
    elif all(map(is_number, part)):
        pairs = list(part.items())
    else:
        key, value = next((k, v) for k, v in part.items() if not _is_number_or_region(v))
        raise BadInput(f"{place}: {key!r}: {value!r} is neither name -> number nor number -> name, as others are")
    return _collect_names(pairs, place)


def _collect_names(pairs: Iterable[tuple[object, object]], place: str) -> dict[str, tuple[str, ...]]:
    codes: dict[str, tuple[str, ...]] = {}
    for code, name in pairs:
        if not isinstance(name, str) or not name.strip() or is_number(name):
            raise BadInput(f"{place}: class {code} has the name {name!r}; a name is wanted")
        key = fold_code(code)
        codes[key] = (*codes.get(key, ()), name)
    return codes


def _is_number_or_region(value: Any) -> bool:
    return all(map(is_number, value)) if isinstance(value, list) and value else is_number(value)


def _list_codes(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
