"""Find what is cut or missing in the folder of a finished stage, by names, sizes and headers of its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clinkd.model.folders import read_header
from clinkd.records import BadInput
from clinkd.storage import read_json

POINTER = "base.json"  # names the folder of a pretrained base, which is not copied
UNTRAINED = "untrained.json"  # in the place of a CLIP, where no image had a caption to train it on
_MODEL = "model"  # the folder of the weights
_CUT = "cut or broken: its size is not that of its header"
_IGNORED_FOLDER = "tensorboard"  # no stage and no page reads it
_REWRITTEN = ".html"  # `clinkd report` writes the page of a finished stage again
_FILES_OF_OLDER_STAGES = {  # of a stage that recorded no sizes: what other stages and verbs read of it
    "prepare": ("data.json", "train.jsonl", "test.jsonl"),
    "answer": ("predictions.jsonl",),
    "select": ("predictions.jsonl",),
}
_MODEL_STAGES = ("base", "teacher", "distill", "reflect-", "clip")


class Damage(NamedTuple):
    """What is wrong, beginning with the path; and what to do, to be followed by the command that makes it again."""

    what: str
    remedy: str
    only_model: bool = False  # all but the model is whole: verbs that load no model can read the stage

    def describe(self, stage: str, command: str) -> str:
        """One line: the path, the stage, and the way out."""
        return f"{self.what}, so stage {stage} is damaged; {self.remedy.format(command=command)}"


def list_sizes(folder: Path) -> dict[str, int]:
    """The size in bytes of every file in the folder of a stage that its readers need, by its path in the folder."""
    paths = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.parent.name != _IGNORED_FOLDER)
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in paths if p.suffix not in (_REWRITTEN, ".tmp")}


def find_damage(name: str, folder: Path, record: Mapping[str, Any] | None) -> Damage | None:
    """The first damage in the finished folder of stage `name`; `record`: its `stage.json`, None if unreadable.

    A stage of an older version recorded no sizes: its files are looked for, and headers of weights are read.
    """
    remake = f"remove {folder.resolve()}, then {{command}} makes the stage again"
    if record is None:
        return Damage(f"{folder / 'stage.json'}: missing or broken", remake)
    sizes = record.get("files")
    path, wrong = (_find_wrong_size(folder, sizes) if sizes is not None else _find_missing_file(name, folder)) or (
        None,
        "",
    )
    if path is None and sizes is None and (path := _find_cut_weights(folder)):
        wrong = _CUT
    if path is not None:
        return Damage(f"{path}: {wrong}", remake, path.relative_to(folder).parts[0] == _MODEL)
    return _find_lost_base(folder, remake)


def find_moved(link: Path, folder: Path) -> Damage | None:
    """The damage of a run whose `link` to a finished stage leads nowhere: it was moved without its stages."""
    if folder.is_dir() or not link.is_symlink() or link.readlink().name != folder.name:
        return None
    remedy = f"put the folder {folder.parent.name} of where the run was made into {folder.parent.parent}"
    return Damage(f"{folder}: missing, but {link} leads there", f"{remedy}, or {{command}} makes the stage again")


def _find_wrong_size(folder: Path, sizes: Mapping[str, int]) -> tuple[Path, str] | None:
    for name, wanted in sorted(sizes.items(), key=lambda item: item[0].startswith(f"{_MODEL}/")):  # the model last
        path = folder / name
        if not path.is_file():
            return path, "missing"
        if (size := path.stat().st_size) != wanted:
            return path, f"{size:,} bytes instead of {wanted:,}"
    return None


def _find_missing_file(name: str, folder: Path) -> tuple[Path, str] | None:
    needed = [folder / file for file in _FILES_OF_OLDER_STAGES.get(name, ())]
    if name.startswith(_MODEL_STAGES) and not any((folder / file).is_file() for file in (POINTER, UNTRAINED)):
        needed.append(folder / _MODEL / "config.json")
    return next(((path, "missing") for path in needed if not path.is_file()), None)


def _find_cut_weights(folder: Path) -> Path | None:
    """The first file of weights that is shorter or longer than its header says, or has no header."""
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            read_header(path)
        except BadInput:
            return path
    return None


def _find_lost_base(folder: Path, remake: str) -> Damage | None:
    """The damage where the pretrained model that a stage points to is gone or cut."""
    if not (folder / POINTER).is_file():
        return None
    try:
        base = Path(read_json(folder / POINTER)["folder"])
    except (BadInput, KeyError, TypeError):
        return Damage(f"{folder / POINTER}: broken", remake, True)
    bring_back = f"bring a whole copy back to {base}"
    if not base.is_dir():
        return Damage(f"{base}: the pretrained model is no longer there", bring_back, True)
    path = _find_cut_weights(base)
    return Damage(f"{path}: {_CUT}", bring_back, True) if path else None
