"""The split that a word of a row tells, or the names of files and folders."""

from __future__ import annotations

import re
from pathlib import Path

from clinkd.data.readers.rows import FieldError
from clinkd.records import BadInput, Split
from clinkd.spelling import suggest

SPLIT_WORDS: dict[str, Split] = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validate": "validation",
    "validation": "validation", "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip


def parse_split(stated: object) -> Split:
    """The split that a row states. Raises FieldError if the word is none."""
    split = SPLIT_WORDS.get(stated.casefold()) if isinstance(stated, str) else None
    if split is None:
        hint = suggest(stated, SPLIT_WORDS) if isinstance(stated, str) else ""
        raise FieldError("split", stated, f"train, validation or test is wanted{hint}")
    return split


def find_split_in_name(stem: str) -> Split | None:
    """The split that a word of a file's name states, None if words state several."""
    words = re.sub(r"(train|valid|val|test)(?:data)?set", r"\1", stem.lower())
    splits = {SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", words) if word in SPLIT_WORDS}
    return splits.pop() if len(splits) == 1 else None


def find_split_of_path(path: Path, root: Path | None = None) -> Split | None:
    """The split that the name of a file or folder tells, or the folders between it and `root` (by default only the one
    around it). Raises BadInput if two of these names tell different splits.
    """
    told: dict[Split, str] = {}
    for name in (*path.relative_to(root or path.parent.parent).parts[:-1], path.stem):
        if (split := find_split_in_name(name)) is not None:
            told.setdefault(split, name)
    if len(told) > 1:
        (first, one), (second, other), *_ = told.items()
        raise BadInput(f"{path}: {one!r} says {first}, and {other!r} says {second}; rename one of them")
    return next(iter(told), None)
