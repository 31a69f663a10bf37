"""What is cut, changed or missing in the folder of a finished stage, and how to make it again. Imports no torch.

Names and sizes are compared at every look; a checksum where a file is read anyway: weights when they are loaded, JSON
when it is parsed. `clinkd runs verify` reads everything.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from clinkd.model.folders import read_header
from clinkd.records import BadInput
from clinkd.storage import DIFFERS, MANIFEST, FileDigest, Manifest, digest_file, find_change, parse_lines, read_json
from clinkd.version import spell_program

RUNS = Path("runs")
CONFIG = "config.yaml"
STAGE_FOLDER = re.compile(r"([a-z][a-z0-9-]*)-[0-9a-f]{12}")  # the name of a finished stage in the cache
RECORD = "stage.json"
POINTER = "base.json"  # names the folder of a pretrained base, which is not copied
UNTRAINED = "untrained.json"  # in the place of a CLIP, where no image had a caption to train it on
MODEL = "model"  # the folder of the weights
_CUT = "cut or broken: its size is not that of its header"
_IGNORED_FOLDER = "tensorboard"  # no stage and no page reads it
_REWRITTEN = re.compile(r".*\.html|table\.(md|csv)")  # `clinkd report` writes these of a finished stage again
_FILES_OF_OLDER_STAGES = {  # of a stage that recorded no sizes: what other stages and verbs read of it
    "prepare": ("data.json", "train.jsonl", "test.jsonl"),
    "answer": ("predictions.jsonl",),
    "select": ("predictions.jsonl",),
}
_MODEL_STAGES = ("tower", "base", "teacher", "distill", "reflect-", "clip")


class Damage(NamedTuple):
    """What is wrong, beginning with the path; and what to do, to be followed by the command that makes it again."""

    what: str
    remedy: str
    only_model: bool = False  # all but the model is whole: verbs that load no model can read the stage

    def describe(self, stage: str, command: str) -> str:
        """One line: the path, the stage, and the way out."""
        return f"{self.what}, so stage {stage} is damaged; {self.remedy.replace('{command}', command)}"


def name_runs(runs: Path) -> list[str]:
    """The words that name a folder of all runs, where it is not the usual one."""
    return [] if runs == RUNS else ["--runs", str(runs)]


def spell_run_command(run_folder: Path) -> str:
    """The command that goes on with the run in a folder, and makes its missing stages."""
    words = ["run", str(run_folder / CONFIG), *name_runs(run_folder.parent)]
    return f"{spell_program()} {shlex.join(words)}"


# ---- finding --------------------------------------------------------------------------------------------------------


def write_manifest(folder: Path) -> None:
    """Write size and checksum of every file of a stage that its readers need, just after its work has written them: the
    bytes are read from memory, where the system still has them."""
    Manifest.write(folder, [p for p in _list_needed(folder) if p != folder / MANIFEST])


def _list_needed(folder: Path) -> list[Path]:
    paths = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.parent.name != _IGNORED_FOLDER)
    return [p for p in paths if p.suffix != ".tmp" and not _REWRITTEN.fullmatch(p.name)]


def list_extra(folder: Path, record: Mapping[str, Any]) -> list[Path]:
    """Files in the folder of a whole stage that its work did not write; [] where it recorded none."""
    listed = _read_listed(folder, record)
    if listed is None:
        return []
    own = {folder / name for name in (*listed, RECORD, MANIFEST)}
    return [path for path in _list_needed(folder) if path not in own]


def find_damage(name: str, folder: Path, record: Mapping[str, Any] | None) -> Damage | None:
    """The first of `list_damages`, by sizes alone."""
    return next(list_damages(name, folder, record), None)


def list_damages(name: str, folder: Path, record: Mapping[str, Any] | None, contents: bool = False) -> Iterator[Damage]:
    """All damages in the finished folder of stage `name`, those of its model last; `record`: its `stage.json`, None if
    unreadable. With `contents`, every file that has a checksum is read.

    Of a stage of an older version, which recorded no checksums, sizes are compared; where it recorded no sizes, its
    files are looked for, and headers of weights are read.
    """
    remake = _spell_remake(folder)
    if record is None:
        yield Damage(f"{folder / RECORD}: missing or broken", remake)
        return
    try:
        listed = _read_listed(folder, record)
    except BadInput:
        yield Damage(f"{folder / MANIFEST}: missing or broken", remake)
        return
    changes = _list_unlisted(name, folder) if listed is None else _list_changes(folder, listed, contents)
    for path, wrong in changes:
        yield Damage(f"{path}: {wrong}", remake, path.relative_to(folder).parts[0] == MODEL)
    if damage := _find_lost_base(folder, remake, contents):
        yield damage


_Listed = Mapping[str, tuple[int, str | None]]  # size, and checksum where there is one, by name


def _read_listed(folder: Path, record: Mapping[str, Any]) -> _Listed | None:
    """What a stage recorded of its files; None where it recorded nothing. Raises BadInput for a damaged manifest."""
    files = record.get("files")
    if files == MANIFEST or (folder / MANIFEST).is_file():
        return {name: (digest.bytes, digest.sha256) for name, digest in Manifest.read(folder).items()}
    return {name: (size, None) for name, size in files.items()} if files is not None else None


def has_checksums(folder: Path) -> bool:
    """Whether a stage recorded checksums of its files; those of older versions did not."""
    return (folder / MANIFEST).is_file()


def _spell_remake(folder: Path) -> str:
    return f"remove {folder.resolve()}, then {{command}} makes the stage again"


def find_moved(link: Path, folder: Path, alone: bool) -> Damage | None:
    """The damage of a run that has its `link` to a finished stage, or a copy in its place, but not the stage. `alone`:
    the other stages of the run are there, so it was not moved."""
    if folder.is_dir() or not os.path.lexists(link) or (link.is_symlink() and link.readlink().name != folder.name):
        return None
    there = f"{link} leads there" if link.is_symlink() else f"{link} is a copy of it"
    what = f"{folder}: missing, but {there}"
    if alone:
        return Damage(what, "{command} makes the stage again")
    program, first = spell_program(), "" if link.is_symlink() else f"remove {link.parent}, which holds copies; then "
    bring = f"put the folder {folder.parent.name} of where the run was made into {folder.parent.parent}"
    carry = f"move the run as one file (`{program} runs pack` there, `{program} runs open` here)"
    moved = f"{what}: the run was moved without its stages"
    return Damage(moved, f"{first}{bring}, or {carry}, or {{command}} makes them again")


def _list_changes(folder: Path, listed: _Listed, contents: bool) -> Iterator[tuple[Path, str]]:
    for name, (size, sha256) in sorted(listed.items(), key=lambda item: item[0].startswith(f"{MODEL}/")):
        # the record is read at every look, so its content is compared, too
        if wrong := find_change(folder / name, size, sha256 if contents or name == RECORD else None):
            yield folder / name, wrong


def _list_unlisted(name: str, folder: Path) -> Iterator[tuple[Path, str]]:
    needed = [folder / file for file in _FILES_OF_OLDER_STAGES.get(name, ())]
    if name.startswith(_MODEL_STAGES) and not any((folder / file).is_file() for file in (POINTER, UNTRAINED)):
        needed.append(folder / MODEL / "config.json")
    yield from ((path, "missing") for path in needed if not path.is_file())
    yield from ((path, _CUT) for path in _list_cut_weights(folder))


def _list_cut_weights(folder: Path) -> Iterator[Path]:
    """The files of weights that are shorter or longer than their headers say, or have no header."""
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            read_header(path)
        except BadInput:
            yield path


def point_to(base: Path) -> dict[str, Any]:
    """The pretrained model in a folder for the pointer of a stage: the folder, and checksums of its weights, which were
    loaded just now."""
    weights = {p.relative_to(base).as_posix(): asdict(digest_file(p)) for p in sorted(base.rglob("*.safetensors"))}
    return {"folder": str(base.resolve()), "weights": weights}


def _find_lost_base(folder: Path, remake: str, contents: bool) -> Damage | None:
    """The damage where the pretrained model that a stage points to is gone or cut; with `contents`, or changed."""
    if not (folder / POINTER).is_file():
        return None
    try:
        pointer = read_json(folder / POINTER)
        base, weights = Path(pointer["folder"]), _WEIGHTS.validate_python(pointer.get("weights", {}))
    except (BadInput, KeyError, TypeError, AttributeError, ValueError):
        return Damage(f"{folder / POINTER}: broken", remake, True)
    bring_back = f"bring a whole copy back to {base}"
    if not base.is_dir():
        return Damage(f"{base}: the pretrained model is no longer there", bring_back, True)
    for name, digest in weights.items() if contents else ():  # none in stages of older versions
        if wrong := find_change(base / name, digest.bytes, digest.sha256):
            return Damage(f"{base / name}: {wrong}", bring_back, True)
    path = next(_list_cut_weights(base), None)
    return Damage(f"{path}: {_CUT}", bring_back, True) if path else None


_WEIGHTS = TypeAdapter(dict[str, FileDigest])


# ---- reading --------------------------------------------------------------------------------------------------------


def find_model(stage: Path) -> Path:
    """The folder with the files of a stage's model: its own, or that of the pretrained one that it points to."""
    pointer = stage / POINTER
    return Path(read_stage_json(pointer)["folder"]) if pointer.is_file() else stage / MODEL


def demand_whole_model(stage: Path) -> None:
    """Compare the files of a stage's model, or of the pretrained one that it points to, with their checksums, just
    before they are loaded: the bytes then come from memory. Raises BadInput, with the way out, for the first that
    differs."""
    if damage := _find_lost_base(stage, _spell_remake(stage), contents=True):
        raise _refuse(stage, damage)
    if not has_checksums(stage):
        return
    for name, digest in _read_manifest(stage).items():
        if name.startswith(f"{MODEL}/") and (wrong := find_change(stage / name, digest.bytes, digest.sha256)):
            raise refuse_damage(stage, f"{stage / name}: {wrong}")


def read_stage_json(path: Path) -> Any:
    """The value in a JSON file of a finished stage, compared with its checksum. A file elsewhere, or in a stage without
    checksums, is read as it is. Raises BadInput, with the way out, where it is missing or damaged."""
    content, stage = _read_whole(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        if stage is None:
            raise BadInput(f"{path}: not valid JSON ({error}); bring back a good copy") from None
        raise refuse_damage(stage, f"{path}: not valid JSON ({error})") from None


def read_stage_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines, as `read_stage_json`; none where the file does not exist."""
    if not path.is_file():
        return []
    content, stage = _read_whole(path)
    try:
        return list(parse_lines(io.BytesIO(content), path))
    except BadInput as error:
        if stage is None:
            raise
        raise refuse_damage(stage, str(error).rpartition("; ")[0]) from None


def _read_whole(path: Path) -> tuple[bytes, Path | None]:
    """The bytes of a file, and the finished stage that holds it, if one does."""
    stages = (folder for folder in path.parents if STAGE_FOLDER.fullmatch(folder.name))
    stage = next((folder for folder in stages if (folder / RECORD).is_file()), None)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise refuse_damage(stage, f"{path}: missing") if stage else BadInput(f"{path}: no such file") from None
    if stage is not None and has_checksums(stage):
        wanted = _read_manifest(stage).get(path.relative_to(stage).as_posix())
        if wanted is not None and digest_file(content) != wanted:
            raise refuse_damage(stage, f"{path}: {DIFFERS}")
    return content, stage


def _read_manifest(stage: Path) -> Mapping[str, Any]:
    try:
        return Manifest.read(stage)
    except BadInput:
        raise refuse_damage(stage, f"{stage / MANIFEST}: missing or broken") from None


def refuse_damage(stage: Path, what: str) -> BadInput:
    """The error for a damaged finished stage, with the command of a run that uses it."""
    return _refuse(stage, Damage(what, _spell_remake(stage)))


def _refuse(stage: Path, damage: Damage) -> BadInput:
    links = sorted(stage.parent.parent.glob("*/stages/*"))
    runs = [link.parent.parent for link in links if link.is_symlink() and link.readlink().name == stage.name]
    command = f"`{spell_run_command(runs[-1])}`" if runs else "the `clinkd run` that made it"
    match = STAGE_FOLDER.fullmatch(stage.name)
    return BadInput(damage.describe(match[1] if match else stage.name, command))
