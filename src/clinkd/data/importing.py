"""Any number of sources to one data set: checked, on one side, split by patient or image, whole or not at all."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from clinkd.data import sides
from clinkd.data.checks.check import Checker, Checks, Findings, count_progress, quarantine
from clinkd.data.dataset import ABOUT, SAMPLES, read_about
from clinkd.data.images import open_image
from clinkd.data.readers import forms
from clinkd.data.readers.rows import RowError, RowResult, shorten_value
from clinkd.data.readers.source import Source
from clinkd.data.split import Group, assign_splits
from clinkd.records import BadInput, ImageRef, Sample, Side, Split
from clinkd.storage import new_folder, replacing, sha256_file, write_json
from clinkd.version import __version__


@dataclass(frozen=True, slots=True)
class Division:
    """Shares of the groups held for validation and test. `anew` forgets the splits that the files gave."""

    validation: float = 0.1
    test: float = 0.2
    seed: int = 0
    anew: bool = False


class NotClean(BadInput):
    """There are bad rows, and no file was named to put them in."""

    def __init__(self, found: Findings) -> None:
        rows = f"{found.bad_rows} of {found.rows} rows are bad"
        super().__init__(f"{rows}: mend them, or set them aside with --quarantine FILE; nothing was written")
        self.found = found


def import_data(  # noqa: PLR0913
    sources: Sequence[Source],
    out: Path,
    checks: Checks,
    division: Division | None = None,
    quarantine_file: Path | None = None,
    side: Side | None = None,
    copy: bool = False,
) -> Findings:
    """Read, check, divide (None leaves the splits as they are) and write `out`/samples.jsonl with its dataset.json.

    `side`: to whose left all words are turned; sources that differ are refused without it. Images stay where they are
    unless `copy`: then they go to `out`/images as PNG, without their headers. Raises NotClean where rows are bad and
    there is no `quarantine_file`; BadInput where `out` holds something, or a source cannot be read.
    """
    out = _resolve_path(out)
    if quarantine_file is not None and _resolve_path(quarantine_file).is_relative_to(out):
        raise BadInput(f"--quarantine {quarantine_file}: inside the new data set; put it beside")
    paths = [_resolve_path(s.path) for s in sources]
    if twice := next((p for p in paths if paths.count(p) > 1), None):
        raise BadInput(f"{twice}: given twice; give each source once")
    with new_folder(out) as draft:
        with_forms = [replace(s, form=s.form or forms.detect_form(s)) for s in sources]
        return _write_data_set(with_forms, draft, out, checks, division, quarantine_file, side, copy)


def _resolve_path(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        raise BadInput(f"{path}: a loop of links; give the folder itself") from None


def _write_data_set(  # noqa: PLR0913
    sources: Sequence[Source],
    draft: Path,
    out: Path,
    checks: Checks,
    division: Division | None,
    quarantine_file: Path | None,
    side: Side | None,
    copy: bool,
) -> Findings:
    roots = [_resolve_path(s.root) for s in sources]
    root = Path(os.path.commonpath(roots))
    checker = Checker(checks, root if all(s.open_images for s in sources) else None)
    spool = draft / "read.jsonl"
    convert_sides = _SideConverter(side)
    files: dict[str, int] = {}
    with spool.open("wb") as lines:
        for number, (source, source_root) in enumerate(zip(sources, roots, strict=True), start=1):
            folder = source_root.relative_to(root).as_posix()
            id_prefix = f"{number}:" if len(sources) > 1 and source.form != "samples" else ""
            for entry in count_progress(
                forms.read_rows(source, checker.found.told), f"read {source.path.name}", "rows"
            ):
                converted = convert_sides(_prefix_row(entry, "" if folder == "." else f"{folder}/", id_prefix))
                # Found here, so no reader will report it again.
                if converted.problem is not None and entry.problem is None:
                    checker.found.between[converted.file, converted.row] = converted.problem
                if division is not None and division.anew:
                    converted = replace(converted, samples=tuple(replace(s, split=None) for s in converted.samples))
                if checker.see(converted) is None:
                    assign_splits = files.setdefault(converted.file, len(files)), converted.row
                    lines.writelines(_encode_line(sample, assign_splits) for sample in converted.samples)
    found = checker.close()
    if found.bad and (quarantine_file is None or any(p.row == 0 for p in found.bad)):
        raise NotClean(found)
    if quarantine_file is not None:
        quarantine(sources, found, quarantine_file)
    bad = {(files[file], row) for file, row in found.between if file in files}
    keep = "split" in checks.allow
    placed = _write_samples(_Spool(spool, bad), draft, root, found, division, copy, keep)
    spool.unlink()
    about = {
        "root": "." if copy else os.path.relpath(root, out.resolve()) if _lies_near(root, out) else str(root),
        "side": convert_sides.side,
        "sources": [_describe_source(s) for s in sources],
        "rows": found.rows,
        "samples": found.samples,
        "quarantined": found.quarantined,
        "left_out": dict(found.told),
        "joined_groups": [list(pair) for pair in found.joined],
        "split": asdict(division) if division else None,
        "groups": dict(placed),
        "clinkd": __version__,
    }
    write_json(draft / ABOUT, about)
    return found


def _lies_near(root: Path, out: Path) -> bool:
    """Whether the images lie beside the data set or in it, so that both may be moved together."""
    return out.resolve().parent.is_relative_to(root) or root.is_relative_to(out.resolve())


def _encode_line(sample: Sample, place: tuple[int, int]) -> bytes:
    return orjson.dumps(sample.to_json() | {"at": place}, option=orjson.OPT_APPEND_NEWLINE)


def _prefix_row(entry: RowResult, path_prefix: str, id_prefix: str) -> RowResult:
    """The entry with image paths from the common root, and ids of its source: two sheets may number rows alike."""
    if not path_prefix and not id_prefix:
        return entry
    moved = tuple(
        replace(s, id=id_prefix + s.id, images=tuple(replace(i, path=path_prefix + i.path) for i in s.images))
        for s in entry.samples
    )
    return replace(entry, samples=moved)


class _SideConverter:
    """Words on the side that is wanted; without one, all must be on the side of the first."""

    def __init__(self, wanted: Side | None) -> None:
        self.wanted = wanted
        self.side = wanted

    def __call__(self, entry: RowResult) -> RowResult:
        for sample in entry.samples:
            self.side = self.side or sample.side
            if sample.side == self.side:
                continue
            if self.wanted is None:
                raise BadInput(
                    f"{entry.file}, row {entry.row}: left and right are the {sample.side}'s here and the {self.side}'s "
                    "in the rows before; give --turn-to patient or --turn-to image to convert"
                )
            try:
                turned = tuple(sides.convert_side(s, self.wanted) for s in entry.samples)
            except BadInput as error:
                problem = RowError(
                    entry.file, entry.row, shorten_value(sample.id), "side", sample.side, str(error), "side"
                )
                return replace(entry, samples=(), problem=problem)
            return replace(entry, samples=turned)
        return entry


@dataclass(frozen=True)
class _Spool:
    """Samples as they were read, and the places of rows that turned out bad."""

    file: Path
    bad: set[tuple[int, int]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self.file.open("rb") as lines:
            for line in lines:
                record = orjson.loads(line)
                if tuple(record.pop("at")) not in self.bad:
                    yield record


def _write_samples(  # noqa: PLR0913
    spool: _Spool, draft: Path, root: Path, findings: Findings, division: Division | None, copy: bool, keep: bool
) -> Counter[str]:
    """The rows that stayed good, with their splits, into samples.jsonl; the number of groups in each split.

    `keep`: a split that a file gave is kept row by row, also where it tears a group.
    """
    leader = _find_leaders(findings.joined)
    groups: dict[str, Group] = {}
    kept: set[str] = set()
    for record in spool:
        group = leader.get(record["group"], record["group"])
        kept.add(group)
        groups.setdefault(group, Group(record["source"], record["split"]))
    placed = assign_splits(groups, division.validation, division.test, division.seed) if division else {}
    findings.turns.clear()
    findings.samples = 0
    store = _Copies(root, draft) if copy else None
    with (draft / SAMPLES).open("wb") as lines:
        for record in count_progress(spool, "write samples", "samples"):
            group = record["group"] = leader.get(record["group"], record["group"])
            if division is not None:
                record["split"] = (record["split"] if keep else None) or placed[group]
            if store is not None:
                record["images"] = [store(ImageRef.from_json(i)).to_json() for i in record["images"]]
            lines.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
            findings.samples += 1
            for turn in record["turns"]:
                findings.count(record["split"], record["modality"], turn["task"])
    if not findings.samples:
        raise BadInput(f"no sample is left of {findings.rows} rows; clinkd data check says why")
    where: Mapping[str, Split | None] = placed if division else {g: group.split for g, group in groups.items()}
    findings.groups = Counter(where[g] or "-" for g in kept)
    return findings.groups


def _find_leaders(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Group -> the first of all groups that it is joined with."""
    leader: dict[str, str] = {}

    def find(group: str) -> str:
        while leader.setdefault(group, group) != group:
            group = leader[group]
        return group

    for one, two in pairs:
        leader[find(two)] = find(one)
    return {group: find(group) for group in leader}


class _Copies:
    """Images into the data set's own folder, each once."""

    def __init__(self, root: Path, draft: Path) -> None:
        self.root, self.draft = root, draft
        self._copied: dict[tuple[str, str | None], ImageRef] = {}
        self._taken: set[str] = set()

    def __call__(self, image: ImageRef) -> ImageRef:
        key = image.path, image.window
        if key not in self._copied:
            self._copied[key] = self._copy_image(image)
        return self._copied[key]

    def _copy_image(self, image: ImageRef) -> ImageRef:
        """The upright picture as PNG: pixels alone, since headers of any form may hold names."""
        shown = f"{image.path} {image.window}" if image.window else image.path
        plain = re.sub("[^A-Za-z0-9._/-]", "_", shown)
        name = self._choose_name(f"images/{plain if plain.lower().endswith('.png') else f'{plain}.png'}")
        target = self.draft / name
        target.parent.mkdir(parents=True, exist_ok=True)
        open_image(self.root, image).save(target)
        return ImageRef(name, image.width, image.height)

    def _choose_name(self, name: str) -> str:
        """The name, or one beside it where another image has it already."""
        stem, dot, suffix = name.rpartition(".")
        candidate, number = name, 1
        while candidate.casefold() in self._taken:
            number += 1
            candidate = f"{stem}_{number}{dot}{suffix}"
        self._taken.add(candidate.casefold())
        return candidate


def _describe_source(source: Source) -> dict[str, Any]:
    """A source as dataset.json keeps it."""
    return {
        "path": str(source.path.resolve()),
        "form": source.form,
        "side": source.side,
        "sha256": sha256_file(source.path) if source.path.is_file() else None,
    }


def split_again(folder: Path, division: Division) -> Counter[str]:
    """Divide an imported data set again, whatever its splits were, and record it. The number of groups in each split.

    Raises BadInput where `folder` holds no data set, or the dataset.json of another program.
    """
    file = folder / SAMPLES
    if not file.is_file():
        raise BadInput(f"{folder}: no {SAMPLES} there; make one with clinkd data import")
    about = read_about(folder)
    if about is None and (folder / ABOUT).exists():
        raise BadInput(f"{folder / ABOUT}: of another program, and would be overwritten; move it away")
    groups: dict[str, Group] = {}
    for record in _iterate_records(file):
        groups.setdefault(record["group"], Group(record["source"], None))
    placed = assign_splits(groups, division.validation, division.test, division.seed)
    with replacing(file) as lines:
        for record in _iterate_records(file):
            record["split"] = placed[record["group"]]
            lines.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
    counts = Counter[str](placed[g] for g in groups)
    write_json(folder / ABOUT, {**(about or {"root": "."}), "split": asdict(division), "groups": dict(counts)})
    return counts


def _iterate_records(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record: dict[str, Any] = orjson.loads(line)
                record["group"], record["source"], record["split"]
            except (orjson.JSONDecodeError, KeyError, TypeError) as error:
                raise BadInput(f"{file}, line {number}: no sample ({error}); clinkd data check says more") from None
            yield record
