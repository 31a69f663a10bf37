"""Import sources into one data set: checked, with one meaning of left and right, split by patient or image.

The data set is written whole or not at all.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import orjson

from clinkd.data.checks.check import Checker, Checks, Findings, quarantine
from clinkd.data.dataset import ABOUT, SAMPLES, read_about
from clinkd.data.images import encode_picture, open_image
from clinkd.data.readers import forms
from clinkd.data.readers.rows import RowError, RowResult, shorten_value
from clinkd.data.readers.source import Source, Spellings
from clinkd.data.readers.split_words import find_split_in_name, find_split_of_path
from clinkd.data.split import Group, assign_splits
from clinkd.language import sides
from clinkd.records import SPLITS, BadInput, ImageRef, Sample, Side, Split, Task
from clinkd.storage import count_progress, make_folder, new_folder, replacing, sha256_file, write_json
from clinkd.version import __version__


@dataclass(frozen=True, slots=True)
class Division:
    """The shares of the groups for validation and test. `anew`: the splits that the files state are not used."""

    validation: float = 0.1
    test: float = 0.2
    seed: int = 0
    anew: bool = False

    def assign(self, groups: Mapping[str, Group]) -> dict[str, Split]:
        """A split for every group, as `assign_splits`."""
        return assign_splits(groups, self.validation, self.test, self.seed)


class NotClean(BadInput):
    """Some rows are bad, and the user named no file for them."""

    def __init__(self, findings: Findings) -> None:
        rows = f"{findings.bad_rows} of {findings.rows} rows are bad"
        super().__init__(f"{rows}: mend them, or set them aside with --quarantine FILE; nothing was written")
        self.findings = findings


def import_data(  # noqa: PLR0913
    sources: Sequence[Source],
    out: Path,
    checks: Checks,
    division: Division | None = None,
    quarantine_file: Path | None = None,
    side: Side | None = None,
    copy: bool = False,
) -> Findings:
    """Read and check the sources, split them, and write `out`/samples.jsonl and `out`/dataset.json.

    `division` None: the samples keep the splits that they have. `side`: left and right in all words are converted to
    this side; without it, sources of different sides are an error. `copy`: the images are copied to `out`/images as
    PNG, without their headers; otherwise they stay where they are. Raises NotClean if rows are bad and there is no
    `quarantine_file`. Raises BadInput if `out` is not empty or a source cannot be read.
    """
    out = _resolve_path(out)
    if quarantine_file is not None and _resolve_path(quarantine_file).is_relative_to(out):
        raise BadInput(f"--quarantine {quarantine_file}: inside the new data set; put it beside")
    paths = [_resolve_path(s.path) for s in sources]
    if repeated := next((p for p in paths if paths.count(p) > 1), None):
        raise BadInput(f"{repeated}: given twice; give each source once")
    with new_folder(out) as draft:
        spellings = Spellings()
        sources = [replace(forms.with_form(s), spellings=spellings) for s in sources]
        root = Path(os.path.commonpath([_resolve_path(s.root) for s in sources]))
        checker = Checker(checks, root if all(s.open_images for s in sources) else None)
        told = _take_told_splits(sources, checker.findings.notes)
        sources = [replace(s, split=s.split or split) for s, split in zip(sources, told, strict=True)]
        is_divided_anew = division is not None and division.anew
        refused = [None if is_divided_anew or s.form == "samples" else t for s, t in zip(sources, told, strict=True)]
        converter, folders = _SideConverter(side), _FolderSplits(checker.findings.notes, ignored=is_divided_anew)
        spool = draft / "read.jsonl"
        _spool_good_rows(_read_results(sources, refused, root, converter, checker.findings, folders), checker, spool)
        findings = checker.close()
        folders.note()
        if findings.bad and (quarantine_file is None or any(p.row == 0 for p in findings.bad)):
            raise NotClean(findings)
        if quarantine_file is not None:
            quarantine(sources, findings, quarantine_file)
        copies = _ImageCopies(root, draft) if copy else None
        read_spool = partial(_read_spool, spool, findings, forget_splits=folders.tell_nothing)
        _write_samples(read_spool, draft, findings, division, copies, keep_splits="split" in checks.allow)
        spool.unlink()
        _require_samples(findings, sources)
        about = {
            "root": "." if copy else os.path.relpath(root, out) if _lies_near(root, out) else str(root),
            "side": converter.side,
            "sources": [_describe_source(s) for s in sources],
            "rows": findings.rows,
            "samples": findings.samples,
            "quarantined": findings.quarantined,
            "left_out": dict(findings.notes),
            "joined_groups": [list(pair) for pair in findings.joined],
            "split": asdict(division) if division else None,
            "groups": dict(findings.groups),
            "clinkd": __version__,
        }
        write_json(draft / ABOUT, about)
        return findings


def _require_samples(findings: Findings, sources: Sequence[Source]) -> None:
    if not findings.samples:
        below = next(filter(None, (forms.find_data_below(s.path) for s in sources)), "")
        way_out = below or "a row wants a question with its answer, or a name with its box; clinkd data check says more"
        raise BadInput(f"no question and no box is left of {findings.rows} rows; {way_out}")


def _resolve_path(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        raise BadInput(f"{path}: a loop of links; give the folder itself") from None


def _read_results(
    sources: Sequence[Source],
    told: Sequence[Split | None],
    root: Path,
    converter: _SideConverter,
    findings: Findings,
    folders: _FolderSplits,
) -> Iterator[RowResult]:
    """Yield the rows of all sources with one meaning of left and right, and image paths from the common root.

    With several sources, each id begins with the number of its source, because two sheets may number rows alike.
    `told`: for each source the split that its name tells, which no row may contradict.
    """
    for number, (source, split) in enumerate(zip(sources, told, strict=True), start=1):
        folder = _resolve_path(source.root).relative_to(root).as_posix()
        id_prefix = f"{number}:" if len(sources) > 1 else ""
        prefix = _RowPrefixes(source, "" if folder == "." else f"{folder}/", id_prefix)
        for result in count_progress(forms.read_rows(source, findings.notes), f"read {source.path.name}", "rows"):
            if source.form != "samples":
                given = source.split if split is None else None
                result = _refuse_other_split(_put_in_split(result, given, findings.notes), split)
            converted = converter.convert(prefix.add(folders.add(result)))
            if converted.problem is not None and result.problem is None:
                findings.between[converted.file, converted.row] = converted.problem  # no reader will report it again
            yield converted


def _take_told_splits(sources: Sequence[Source], notes: Counter[str]) -> list[Split | None]:
    """For each source the split that its name tells, as train.csv and test.csv do, or train/ and test/.

    Names are believed where they tell several splits: one sheet called test may be anything, which is noted. A folder
    that holds all sources tells nothing of one of them. Raises BadInput if the names of a file and its folder differ.
    """
    paths = [_resolve_path(s.path) for s in sources]
    common = Path(os.path.commonpath([p.parent for p in paths]))
    told = [find_split_of_path(p, common) if s.split is None else None for s, p in zip(sources, paths, strict=True)]
    believed = len({*told, *(s.split for s in sources)} - {None}) > 1
    for source, path, split in zip(sources, paths, told, strict=True):
        if split and believed:
            name = os.path.relpath(path, path.parent.parent)
            notes[f"source is of the {split} split, as its name {name} says; --anew divides all data anew"] += 1
        elif source.split is None and (ignored := _find_ignored_split(source.form, path)):
            what = "sheet" if source.form == "sheet" else "file"
            notes[f"{what} is divided, though its name says {ignored}; --all-in {ignored} keeps all of it there"] += 1
    return told if believed else [None] * len(told)


def _find_ignored_split(form: str | None, path: Path) -> Split | None:
    """The split that the name of a single file tells, or of the folder around it, and that its reader does not take."""
    if form not in ("sheet", "coco") or not path.is_file():
        return None
    by_name = find_split_in_name(path.stem)
    if by_name is not None:
        return by_name if form == "sheet" else None
    return find_split_in_name(path.parent.name)


def _put_in_split(result: RowResult, given: Split | None, notes: Counter[str]) -> RowResult:
    """The row in the split that the user gave, which decides for all rows, whatever they say."""
    other = next((s.split for s in result.samples if given is not None and s.split not in (None, given)), None)
    if other is None:
        return result
    notes[f"rows say {other}, and are of the {given} split, as --all-in says"] += 1
    return replace(result, samples=tuple(replace(s, split=given) for s in result.samples))


def _refuse_other_split(result: RowResult, told: Split | None) -> RowResult:
    """The row, or its error if a sample of it states another split than the name of its source tells."""
    other = next((s for s in result.samples if told is not None and s.split not in (None, told)), None)
    if other is None:
        return result
    why = f"the name of the source says {told}; correct one of them, or --anew divides all data anew"
    problem = RowError(result.file, result.row, shorten_value(other.id), "split", str(other.split), why)
    return replace(result, samples=(), problem=problem)


class _FolderSplits:
    """Gives rows without a split the one that the folder of their image tells (test/a.png).

    What rows or sources state goes first. Folders are believed as names of sources are: where there are several splits.
    `ignored`: rows get no split, and lose what they state.
    """

    def __init__(self, notes: Counter[str], ignored: bool) -> None:
        self.notes, self.ignored = notes, ignored
        self.told: Counter[Split] = Counter()
        self.is_stated = False
        self._cached_split = cache(_find_split_of_folder)

    def add(self, result: RowResult) -> RowResult:
        if self.ignored:
            return replace(result, samples=tuple(replace(s, split=None) for s in result.samples))
        told = {self._cached_split(i.path.rpartition("/")[0]) for s in result.samples for i in s.images}
        split = told.pop() if len(told) == 1 else None
        stated = next((s.split for s in result.samples if s.split is not None), None)
        self.is_stated |= stated is not None
        if split is None or stated is not None:
            if split not in (None, stated):
                self.notes[f"rows are of the {stated} split, though the folder of their image is called {split}"] += 1
            return result
        self.told[split] += 1
        return replace(result, samples=tuple(replace(s, split=split) for s in result.samples))

    @property
    def tell_nothing(self) -> bool:
        """Whether one split alone was told, and by folders alone: they may all be called train."""
        return len(self.told) == 1 and not self.is_stated

    def note(self) -> None:
        for split, rows in self.told.items() if not self.tell_nothing else ():
            why = "as the folder of their image says; --anew divides all data anew"
            self.notes[f"rows are of the {split} split, {why}"] += rows


def _find_split_of_folder(folder: str) -> Split | None:
    """The split that the names in the path of a folder tell, None if they tell several."""
    told = {find_split_in_name(name) for name in folder.split("/")} - {None}
    return told.pop() if len(told) == 1 else None


def _lies_near(root: Path, out: Path) -> bool:
    """Whether the images are beside the data set or inside it, so that both can be moved together."""
    return out.parent.is_relative_to(root) or root.is_relative_to(out)


def _encode_line(record: dict[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


class _RowPrefixes:
    """Puts the folder of a source before the paths of its images, and its number before its ids.

    A group that is an image gets the folder, too, because two hospitals may both have a 0001.png. Patients keep theirs.
    """

    def __init__(self, source: Source, path: str, number: str) -> None:
        self.source, self.path, self.number = source, path, number
        self._cached_is_file = cache(lambda name: (source.root / name).is_file())

    def add(self, result: RowResult) -> RowResult:
        if not self.path and not self.number:
            return result
        samples = tuple(
            replace(s, id=self.number + s.id, images=self._place(s.images), group=self._place_group(s))
            for s in result.samples
        )
        return replace(result, samples=samples, images=self._place(result.images))

    def _place(self, images: Sequence[ImageRef]) -> tuple[ImageRef, ...]:
        return tuple(replace(image, path=self.path + image.path) for image in images)

    def _place_group(self, sample: Sample) -> str:
        own = {name for image in sample.images for name in (image.path, re.sub(r"#\d+$", "", image.path))}
        if self.source.form == "boxes":  # an image without a patient is named by its id
            own.add(sample.id.rpartition("-")[0])
        is_image = sample.group in own or (self.source.group is None and self._cached_is_file(sample.group))
        return self.path + sample.group if is_image else sample.group


class _SideConverter:
    """Converts words to the side `wanted`. Without it, all rows must have the side of the first one."""

    def __init__(self, wanted: Side | None) -> None:
        self.wanted = wanted
        self.side = wanted

    def convert(self, result: RowResult) -> RowResult:
        for sample in result.samples:
            self.side = self.side or sample.side
            if sample.side != self.side and self.wanted is None:
                raise BadInput(
                    f"{result.file}, row {result.row}: left and right are the {sample.side}'s here and the "
                    f"{self.side}'s in the rows before; give --turn-to patient or --turn-to image to convert"
                )
        if self.wanted is None:
            return result
        try:
            return replace(result, samples=tuple(sides.convert_side(s, self.wanted) for s in result.samples))
        except BadInput as error:
            sample = next(s for s in result.samples if s.side != self.wanted)
            name = shorten_value(sample.id)
            problem = RowError(
                result.file, result.row, name, "side", sample.side, str(error), "side", _name_image(sample)
            )
            return replace(result, samples=(), problem=problem)


def _name_image(sample: Sample) -> str:
    return shorten_value(sample.images[-1].path)


def _spool_good_rows(results: Iterable[RowResult], checker: Checker, spool: Path) -> None:
    """Store the samples of each row in which the checker finds no error so far."""
    with spool.open("wb") as lines:
        for result in results:
            if checker.check_row(result) is None:
                place = hash((result.file, result.row))
                lines.writelines(_encode_line(sample.to_json() | {"at": place}) for sample in result.samples)


def _read_spool(spool: Path, findings: Findings, forget_splits: bool) -> Iterator[dict[str, Any]]:
    """The stored samples without those of rows in which the checker found an error later.

    `forget_splits`: the samples have none.
    """
    bad_places = {hash(place) for place in findings.between}
    change: dict[str, Any] = {"split": None} if forget_splits else {}
    return (record | change for record in _iterate_records(spool) if record.pop("at") not in bad_places)


def _write_samples(
    read_spool: Callable[[], Iterator[dict[str, Any]]],
    draft: Path,
    findings: Findings,
    division: Division | None,
    copies: _ImageCopies | None,
    keep_splits: bool,
) -> None:
    """Write the good rows with their splits to samples.jsonl; count their samples and groups; delete the spool.

    `keep_splits`: each row keeps the split that its file states, even if this divides a group.
    """
    leader = _find_leaders(findings.joined)
    groups: dict[str, Group] = {}
    for record in read_spool():
        group = leader.get(record["group"], record["group"])
        one = Group(record["source"], record["split"], record["modality"])
        groups[group] = groups.get(group, one).merge(one)
    splits: Mapping[str, Split | None]
    splits = division.assign(groups) if division else {name: group.split for name, group in groups.items()}
    findings.turns.clear()
    findings.samples = 0
    with (draft / SAMPLES).open("wb") as lines:
        for record in count_progress(read_spool(), "write samples", "samples"):
            group = record["group"] = leader.get(record["group"], record["group"])
            if division is not None:
                record["split"] = (record["split"] if keep_splits else None) or splits[group]
            if copies is not None:
                record["images"] = [copies.copy(ImageRef.from_json(i)).to_json() for i in record["images"]]
            lines.write(_encode_line(record))
            findings.samples += 1
            for turn in record["turns"]:
                findings.count_question(record["split"], record["modality"], turn["task"])
    findings.groups = Counter(splits[name] or "-" for name in groups)
    if division is not None:
        _note_splits(groups, findings)


def _note_splits(groups: Mapping[str, Group], findings: Findings) -> None:
    """Note how many groups keep the split that the files tell, and which of the splits that a run needs is empty."""
    kept = sum(group.split is not None for group in groups.values())
    if kept:
        findings.notes["groups keep the split that the files tell; --anew divides all anew"] += kept
    for split in SPLITS:
        if split not in findings.groups:
            way_out = "--anew divides all data anew" if kept else "give more images, or of more patients"
            findings.notes[f"split has no question ({split}), and a run needs one in each: {way_out}"] += 1


def _find_leaders(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """For each joined group, the first by name of those that it is joined with, whatever the order of the pairs."""
    leader: dict[str, str] = {}

    def find_leader(group: str) -> str:
        while leader.setdefault(group, group) != group:
            group = leader[group]
        return group

    for one, two in pairs:
        first, second = sorted((find_leader(one), find_leader(two)))
        leader[second] = first
    return {group: find_leader(group) for group in leader}


class _ImageCopies:
    """Copies each image once into the folder of the data set."""

    def __init__(self, root: Path, draft: Path) -> None:
        self.root, self.draft = root, draft
        self._copied: dict[tuple[str, str | None], ImageRef] = {}
        self._taken: set[str] = set()

    def copy(self, image: ImageRef) -> ImageRef:
        """Save the upright picture as PNG, without its header, because a header may hold names of persons."""
        key = image.path, image.window
        if key not in self._copied:
            shown = f"{image.path} {image.window}" if image.window else image.path
            plain = re.sub("[^A-Za-z0-9._/-]", "_", shown)
            name = self._choose_name(f"images/{plain if plain.lower().endswith('.png') else f'{plain}.png'}")
            target = self.draft / name
            make_folder(target.parent)
            target.write_bytes(encode_picture(open_image(self.root, image)))
            self._copied[key] = ImageRef(name, image.width, image.height, laterality=image.laterality)
        return self._copied[key]

    def _choose_name(self, name: str) -> str:
        """The name, or the name with a number if another image has it already."""
        stem, dot, suffix = name.rpartition(".")
        candidate, number = name, 1
        while candidate.casefold() in self._taken:
            number += 1
            candidate = f"{stem}_{number}{dot}{suffix}"
        self._taken.add(candidate.casefold())
        return candidate


def _describe_source(source: Source) -> dict[str, Any]:
    """The source as dataset.json describes it. `marks_all`: what no question names is not in the image."""
    every_name = Task.ROC in source.tasks or source.form == "samples"  # VG leaves out names with many boxes
    return {
        "path": str(source.path.resolve()),
        "form": source.form,
        "side": source.side,
        "sha256": sha256_file(source.path) if source.path.is_file() else None,
        "marks_all": forms.marks_everything(source) and every_name and source.max_questions is None,
    }


def split_again(folder: Path, division: Division) -> Counter[str]:
    """Split an imported data set anew and record it. Returns the number of groups in each split.

    The old splits do not count. Raises BadInput if `folder` has no data set or has the dataset.json of another program.
    """
    file = folder / SAMPLES
    if not file.is_file():
        raise BadInput(f"{folder}: no {SAMPLES} there; make one with clinkd data import")
    about = read_about(folder)
    if about is None and (folder / ABOUT).exists():
        raise BadInput(f"{folder / ABOUT}: of another program, and would be overwritten; move it away")
    groups: dict[str, Group] = {}
    for record in _iterate_records(file):
        one = Group(record["source"], None, record["modality"])
        groups[record["group"]] = groups.get(record["group"], one).merge(one)
    splits = division.assign(groups)
    with replacing(file) as lines:
        for record in _iterate_records(file):
            record["split"] = splits[record["group"]]
            lines.write(_encode_line(record))
    counts = Counter[str](splits[name] for name in groups)
    write_json(folder / ABOUT, {**(about or {"root": "."}), "split": asdict(division), "groups": dict(counts)})
    return counts


def _iterate_records(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record: dict[str, Any] = orjson.loads(line)
                record["group"], record["source"], record["split"], record["modality"]
            except (orjson.JSONDecodeError, KeyError, TypeError) as error:
                raise BadInput(f"{file}, line {number}: no sample ({error}); clinkd data check says more") from None
            yield record
