"""Check whether a data set can be learned from: read every row, compare it with the others, open every image once.

The rows are a stream. Only a few bytes of each are kept, so that 270,000 rows are checked in little memory.
"""

from __future__ import annotations

import itertools
import json
import re
import zlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from clinkd.data.checks.guessability import compute_median_hits
from clinkd.data.checks.lengths import TokenEstimator
from clinkd.data.checks.near import Look, examine_images
from clinkd.data.checks.similar import find_similar_pairs
from clinkd.data.readers import forms
from clinkd.data.readers.rows import Kind, RowError, RowResult, shorten_value
from clinkd.data.readers.source import Source, fold_name
from clinkd.language import sides
from clinkd.language.foreign import explain_foreign_words
from clinkd.records import BadInput, ImageRef, Modality, Sample, Split, Task
from clinkd.spelling import suggest
from clinkd.storage import count_progress, progress, replacing

Problem = tuple[Kind, str, Any, str]  # kind, field, value and reason
_ONE_SIDE = "it must be on one side: --anew divides anew, --allow split takes it as it is"
QUARANTINE = "quarantine"  # every line of a quarantine file has this word
EXAMPLES = 2  # of each task and modality
FEW_BOXES = 30  # with fewer boxes in a file, their frame is not checked
CORNER = 0.105  # if all boxes of a file lie in this part of the image, they are in hundredths or in fractions
_FEW = 3  # rows with the same problem that are shown one by one
_VARYING = re.compile(r"'[^']*'|\b\d[\d.,]*|; did you mean [^?]*\?")  # in the reasons of rows with the same fault
_MOST_RUNS = 8  # of neighbouring rows, in one line
_NUMBER = re.compile(r"0*(\d+)(?:\.0*)?")  # of a patient
LENGTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # tokens: upper ends of the bins


@dataclass(frozen=True)
class Checks:
    """What is checked beside the rows themselves. `allow`: kinds of problems that are warnings, not bad rows."""

    max_length: int | None = None
    tokens: TokenEstimator = field(default_factory=TokenEstimator)
    allow: frozenset[Kind] = frozenset()
    workers: int = 2

    def __post_init__(self) -> None:
        legal = [kind for kind in get_args(Kind) if kind != "row"]  # a row that cannot be read is always bad
        if unknown := sorted(self.allow - set(legal)):
            raise BadInput(f"--allow {unknown[0]}: one of {', '.join(legal)} is wanted{suggest(unknown[0], legal)}")
        if self.workers < 1:
            raise BadInput(f"--workers {self.workers}: 1 or more are wanted")


@dataclass(frozen=True)
class ClassBoxes:
    """All different boxes of a class, [N, 4] in fractions: x1, y1, x2, y2."""

    modality: Modality
    name: str
    box_N4: NDArray[np.float64]

    @property
    def guessed(self) -> float:
        """Share 0..1 of the boxes that the median of the others meets at IoU >= 0.5, so without the image."""
        return compute_median_hits(self.box_N4)


@dataclass
class Findings:
    """The result of a check. `rows` counts good and bad rows, `told` what was left out or changed, by reason."""

    rows: int = 0
    samples: int = 0
    images: int = 0
    root: Path | None = None  # folder in which images were opened; None: they were not
    bad: list[RowError] = field(default_factory=list)
    warnings: list[RowError] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    turns: Counter[tuple[str, Modality, Task]] = field(default_factory=Counter)  # by split ("-" without one)
    groups: Counter[str] = field(default_factory=Counter)  # groups by split
    classes: list[ClassBoxes] = field(default_factory=list)
    lengths: list[int] = field(default_factory=lambda: [0] * (len(LENGTHS) + 1))  # by LENGTHS; the last one: longer
    longest: int = 0
    counted: str = ""
    examples: list[Sample] = field(default_factory=list)  # a few of each task and modality, always the same ones
    quarantined: int = 0
    joined: list[tuple[str, str]] = field(default_factory=list)  # groups of images that look the same
    between: dict[tuple[str, int], RowError] = field(default_factory=dict)  # by file and row; each row alone is good

    @property
    def clean(self) -> bool:
        return not self.bad

    @property
    def bad_rows(self) -> int:
        return len({(p.file, p.row) for p in self.bad})

    def by_task_and_modality(self) -> dict[str, dict[str, int]]:
        """Questions of the good rows."""
        counts = {t: {m: sum(self.turns[s, m, t] for s in self.splits) for m in Modality} for t in Task}
        return {t.value: {m.value: n for m, n in by.items() if n} for t, by in counts.items() if any(by.values())}

    @property
    def splits(self) -> list[str]:
        return [s for s in ("train", "validation", "test", "-") if any(key[0] == s for key in self.turns)]

    def count_question(self, split: Split | None, modality: str, task: str) -> None:
        """Count a question."""
        self.turns[split or "-", Modality(modality), Task(task)] += 1

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "bad": [p.to_json() for p in self.bad],
            "quarantined": self.quarantined,
            "by_task_and_modality": self.by_task_and_modality(),
            "samples": self.samples,
            "images": self.images,
            "images_opened": self.root is not None,
            "warnings": [p.to_json() for p in self.warnings],
            "left_out": dict(self.notes),
            "splits": {s: {"groups": self.groups[s], "questions": self._count_questions(s)} for s in self.splits},
            "tokens": {
                "how": self.counted,
                "longest": self.longest,
                "up_to": {str(end): int(n) for end, n in zip((*LENGTHS, "more"), self.lengths, strict=True) if n},
            },
            "guessed_without_looking": [
                {"modality": c.modality.value, "name": c.name, "boxes": len(c.box_N4), "share": round(c.guessed, 4)}
                for c in self.classes
            ],
        }

    def _count_questions(self, split: str) -> int:
        return sum(n for key, n in self.turns.items() if key[0] == split)


class Checker:
    """Checks rows one by one, then reports. `root`: the folder of the images; None: they are not opened."""

    def __init__(self, checks: Checks, root: Path | None) -> None:
        self.checks = checks
        self.findings = Findings(root=root, counted=checks.tokens.how)
        self._files: dict[str, int] = {}
        self._row_file, self._row = array("I"), array("I")  # of each entry, a row with samples or images
        self._ids: dict[int, int] = {}  # hash -> entry
        self._turns: dict[int, int] = {}
        self._groups: dict[str, int] = {}
        self._group_split: list[Split | None] = []  # of the first entry of a group
        self._group_entry = array("I")
        self._images: dict[int, int] = {}  # hash of the path -> number of the image
        self._image_split: list[Split | None] = []
        self._image_group, self._image_entry = array("I"), array("I")
        self._refs: list[ImageRef] = []  # of each image, if images are opened
        self._image_id: list[str] = []  # id of the first sample of each of them
        self._uses = array("I")  # entry, image, entry, image ..., if images are opened
        self._class_numbers: dict[tuple[Modality, str], int] = {}
        self._spellings: dict[str, Counter[str]] = {}  # of names, by what they have in common
        self._boxes, self._box_owners = array("d"), array("I")  # x1, y1, x2, y2 ...; class, image, file ...
        self._examples: dict[tuple[Task, Modality], list[tuple[int, Sample]]] = {}
        self._rejected: set[int] = set()  # entries that turned bad when their images were opened

    def check_row(self, result: RowResult) -> RowError | None:
        """Check one row; store and return its problem. Problems between images are found by `close`."""
        findings = self.findings
        findings.rows += 1
        problem = result.problem or self._check_against_earlier(result)
        if problem is not None:
            if result.problem is None:
                findings.between[problem.file, problem.row] = problem
            findings.bad.append(problem)
            return problem
        for sample in result.samples:
            self._count_sample(sample)
        return None

    def _record_problem(self, problem: RowError) -> bool:
        """Store a problem. Returns whether it makes a row bad."""
        allowed = problem.kind in self.checks.allow
        (self.findings.warnings if allowed else self.findings.bad).append(problem)
        return not allowed

    def _check_against_earlier(self, result: RowResult) -> RowError | None:
        """The first problem between a row and the rows before it."""
        entry = len(self._row)
        file = self._files.setdefault(result.file, len(self._files))
        ids: list[int] = []
        turn_keys: list[int] = []
        for sample in result.samples:
            for kind, where, value, why in self._find_problems(sample, ids, turn_keys):
                name, shown = shorten_value(sample.id), shorten_value(value)
                path = shorten_value(sample.images[-1].path)
                problem = RowError(result.file, result.row, name, where, shown, why, kind, path)
                if kind not in self.checks.allow:
                    return problem
                self.findings.warnings.append(problem)
        if not result.samples and not result.images:
            return None
        self._row_file.append(file)
        self._row.append(result.row)
        self._ids.update(dict.fromkeys(ids, entry))
        self._turns.update(dict.fromkeys(turn_keys, entry))
        for sample in result.samples:
            self._store_images(sample.group, sample.split, sample.images, entry, sample.id)
        if result.images:
            self._store_images(result.group, None, result.images, entry, result.images[0].path)
        return None

    def _find_problems(self, sample: Sample, ids: list[int], turn_keys: list[int]) -> Iterator[Problem]:
        """Yield all problems between a sample and what came before; add its keys to those of the row."""
        key = hash(sample.id)
        if key in self._ids or key in ids:
            yield (
                "duplicate",
                "id",
                sample.id,
                f"already used {self._name_place(self._ids.get(key))}; give each its own",
            )
        ids.append(key)
        image = sample.images[-1].path
        for turn in sample.turns:
            key = hash((image, turn.question, turn.answer))
            if key in self._turns or key in turn_keys:
                place = self._name_place(self._turns.get(key))
                why = f"the same question and answer of this image stand {place}; remove one"
                yield "duplicate", "question", turn.question.text, why
            turn_keys.append(key)
            for name, text in (("question", turn.question), ("answer", turn.answer)):
                if not text.text.strip():
                    yield "row", name, text.text, "empty; fill it in, or remove the turn"
        yield from self._find_split_conflicts(sample)
        if (contradiction := sides.find_side_contradiction(sample)) is not None:
            yield "side", "answer", sample.answer.text, contradiction
        length = self.checks.tokens(sample)
        self.findings.lengths[bisect_left(LENGTHS, length)] += 1
        self.findings.longest = max(self.findings.longest, length)
        if self.checks.max_length is not None and length > self.checks.max_length:
            limit = f"max_length={self.checks.max_length} tokens ({self.checks.tokens.how})"
            yield "length", "tokens", length, f"more than {limit}; raise it, or split the row"

    def _find_split_conflicts(self, sample: Sample) -> Iterator[Problem]:
        """Yield groups and images that are in two splits, and images that are in two groups."""
        here = f"in {sample.split or 'no split'} here; {_ONE_SIDE}"
        group = self._groups.get(sample.group)
        if group is not None and self._group_split[group] != sample.split:
            earlier = f"{self._group_split[group] or 'no split'} {self._name_place(self._group_entry[group])}"
            yield "split", "group", sample.group, f"the group is in {earlier} and {here}"
        for ref in sample.images:
            image = self._images.get(hash(ref.path))
            if image is None:
                continue
            place = self._name_place(self._image_entry[image])
            if self._image_split[image] != sample.split:
                why = f"the image is in {self._image_split[image] or 'no split'} {place} and {here}"
                yield "split", "image", ref.path, why
            elif self._image_group[image] != group:
                why = f"the image belongs to {self._name_group(image)} {place}; an image has one patient"
                yield "split", "group", sample.group, why

    def _name_place(self, entry: int | None) -> str:
        if entry is None:
            return "earlier in this row"
        of = f" of {Path(self._name_file(entry)).name}" if len(self._files) > 1 else ""
        return f"in row {self._row[entry]}{of}"

    def _name_file(self, entry: int) -> str:
        return next(itertools.islice(self._files, self._row_file[entry], None))

    def _name_group(self, image: int) -> str:
        return next(itertools.islice(self._groups, self._image_group[image], None))

    def _store_images(
        self, group_name: str, split: Split | None, images: Sequence[ImageRef], entry: int, sample_id: str
    ) -> None:
        group = self._groups.setdefault(group_name, len(self._groups))
        if group == len(self._group_entry):
            self._group_split.append(split)
            self._group_entry.append(entry)
        for image in images:
            number = self._number_image(image)
            if number == len(self._image_entry):
                self._image_split.append(split)
                self._image_group.append(group)
                self._image_entry.append(entry)
                if image.laterality is not None:
                    self.findings.notes[sides.describe_laterality(image.laterality)] += 1
                if self.findings.root is not None:
                    self._refs.append(image)
                    self._image_id.append(sample_id)
            if self.findings.root is not None:
                self._uses.extend((entry, number))

    def _number_image(self, image: ImageRef) -> int:
        """The number of a picture. A DICOM with another window is another picture, but the same image for splits."""
        new = len(self._image_entry)
        number = self._images.setdefault(hash(image.path), new)
        if image.window is None:
            return number
        return self._images.setdefault(hash((image.path, image.window)), new if number != new else number)

    def _count_sample(self, sample: Sample) -> None:
        self.findings.samples += 1
        self.findings.notes.update(explain_foreign_words(sample))
        self._keep_example(sample)
        for name in sample.names:
            self._spellings.setdefault(fold_name(name), Counter())[name] += 1
        for turn in sample.turns:
            self.findings.count_question(sample.split, sample.modality, turn.task)
        boxes = sample.answer.boxes if sample.task is Task.VG else sample.question.boxes
        if not boxes:
            return
        name = sample.names[0] if len(sample.names) == 1 else ""
        kind = self._class_numbers.setdefault((sample.modality, name), len(self._class_numbers))
        image = self._images[hash(sample.images[-1].path)]
        for box in boxes:
            self._boxes.extend(box.corners)
            self._box_owners.extend((kind, image, self._row_file[-1]))

    def _keep_example(self, sample: Sample) -> None:
        """Keep the samples whose ids have the smallest checksums."""
        kept = self._examples.setdefault((sample.task, sample.modality), [])
        checksum = zlib.crc32(sample.id.encode())
        if len(kept) == EXAMPLES and checksum >= kept[-1][0]:
            return
        kept.append((checksum, sample))
        kept.sort(key=lambda e: e[0])
        del kept[EXAMPLES:]

    # ---- after the last row -----------------------------------------------------------------------------------------

    def close(self) -> Findings:
        """Open and compare the images, unless they are to stay closed, and finish the findings."""
        findings = self.findings
        findings.images = len(self._image_entry)
        self._check_box_frames()
        self._join_respelled_patients()
        for spellings in self._spellings.values():
            if len(spellings) > 1:  # in texts that were written elsewhere, which stay as they are
                counts = ", ".join(f"{name!r} ({count})" for name, count in spellings.most_common())
                findings.notes[f"names spelled in several ways, {counts}; make them one"] += spellings.total()
        if findings.root is not None:
            self._compare_images(self._open_images(findings.root) if self._refs else ())
        findings.groups.update(split or "-" for split in self._group_split)
        findings.classes = self._collect_classes()
        findings.examples = [sample for kept in self._examples.values() for _, sample in kept]
        findings.bad.sort(key=lambda p: (self._files.get(p.file, -1), p.row))
        return findings

    def _read_boxes(self) -> tuple[NDArray[np.float64], ...]:
        """Of every box: its corners [N, 4], and the numbers of its class, image and file [N]."""
        owners_N3 = np.frombuffer(self._box_owners, np.uint32).reshape(-1, 3)
        return np.frombuffer(self._boxes, np.float64).reshape(-1, 4), *owners_N3.T

    def _check_box_frames(self) -> None:
        """If all boxes of a file lie in one corner, their frame is not the declared one."""
        box_N4, _, _, file_N = self._read_boxes()
        for name, number in self._files.items():
            in_file_N4 = box_N4[file_N == number]
            if len(in_file_N4) >= FEW_BOXES and in_file_N4.max() <= CORNER:
                value = f"largest coordinate {in_file_N4.max():.4g} of the image in {len(in_file_N4)} boxes"
                why = "all boxes lie in the upper left tenth of their images: they are hundredths, fractions or pixels "
                why += "of another size; name their frame with --boxes, or scale them"
                self._record_problem(RowError(name, 0, "?", "boxes", value, why, "frame"))

    def _join_respelled_patients(self) -> None:
        """Join patients whose numbers differ in zeros alone (7, 7.0, 007), as spreadsheets change them."""
        first_spelling: dict[str, str] = {}
        for name, group in self._groups.items():
            if (number := _NUMBER.fullmatch(name)) is None:
                continue
            earlier = first_spelling.setdefault(number[1], name)
            split, earlier_split = self._group_split[group], self._group_split[self._groups[earlier]]
            if split != earlier_split:
                place = self._name_place(self._group_entry[self._groups[earlier]])
                why = f"the same number as {earlier!r}, which is in {earlier_split or 'no split'} {place}; {_ONE_SIDE}"
                entry = self._group_entry[group]
                problem = RowError(self._name_file(entry), self._row[entry], "?", "patient", name, why, "split")
                if self._record_problem(problem):
                    self.findings.between[problem.file, problem.row] = problem
            elif earlier != name:
                self.findings.joined.append((earlier, name))
                self.findings.notes[f"patient {name!r} is taken for {earlier!r}, the same number"] += 1

    def _open_images(self, root: Path) -> Iterator[Look]:
        """Yield a Look for each image, and reject the rows of those that cannot be used."""
        with progress(len(self._refs), "open images", "images") as advance:
            for number, look in enumerate(examine_images(root, self._refs, self.checks.workers)):
                if look.why is not None:
                    self._reject_rows(number, look.why, "row")
                elif look.flat:
                    self.findings.notes["images of one colour all over, or nearly; not compared with others"] += 1
                yield look
                advance()

    def _compare_images(self, looks: Iterable[Look]) -> None:
        splits = [split or "" for split in self._image_split]
        for first, second in find_similar_pairs(looks, self._image_group, splits):
            split, entry = self._image_split[first], self._image_entry[second]
            same = f"looks the same as {self._refs[first].path} {self._name_place(self._image_entry[first])}"
            if split != self._image_split[second]:
                why = f"{same}, which is in {split or 'no split'}; keep one of them"
                self._reject_rows(second, why, "near-duplicate")
            else:
                self.findings.joined.append((self._name_group(first), self._name_group(second)))
                why = f"{same}, of another patient or image; splits keep the two together"
                self.findings.warnings.append(self._make_problem(entry, second, why, "near-duplicate"))

    def _reject_rows(self, image: int, why: str, kind: Kind) -> None:
        """All rows that use an image have this problem."""
        for entry in self._list_entries(image):
            if entry in self._rejected:
                continue
            problem = self._make_problem(entry, image, why, kind)
            if self._record_problem(problem):
                self._rejected.add(entry)
                self.findings.between[problem.file, problem.row] = problem

    def _list_entries(self, image: int) -> list[int]:
        """The entries, rows, that use an image."""
        entry_U, start_N = self._uses_by_image
        return sorted(set(entry_U[start_N[image] : start_N[image + 1]].tolist()))

    @cached_property
    def _uses_by_image(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The entries of all uses, sorted by image, and where those of each image begin."""
        entry_U, image_U = np.frombuffer(self._uses, np.uint32).reshape(-1, 2).T
        order = np.argsort(image_U, kind="stable")
        return entry_U[order], np.searchsorted(image_U[order], np.arange(len(self._refs) + 1))

    def _make_problem(self, entry: int, image: int, why: str, kind: Kind) -> RowError:
        name, path = shorten_value(self._image_id[image]), shorten_value(self._refs[image].path)
        return RowError(self._name_file(entry), self._row[entry], name, "image", path, why, kind, path)

    def _collect_classes(self) -> list[ClassBoxes]:
        """The boxes of each class. A box that is in a question and in an answer counts once."""
        if not self._boxes:
            return []
        box_N4, kind_N, image_N, _ = self._read_boxes()
        row_N6 = np.column_stack([np.round(box_N4, 6), image_N, kind_N])
        order = np.lexsort(row_N6.T)  # three times as fast as np.unique, which no interrupt ends
        new = np.append(True, (np.diff(row_N6[order], axis=0) != 0).any(1))
        first = np.sort(order[new])
        box_N4, kind_N = box_N4[first], kind_N[first]
        boxes_by_class = [
            ClassBoxes(m, name or "(several or no names)", box_N4[kind_N == k])
            for (m, name), k in self._class_numbers.items()
        ]
        return sorted(boxes_by_class, key=lambda c: (list(Modality).index(c.modality), -len(c.box_N4), c.name))


def check(source: Source, checks: Checks) -> Findings:
    """Read and check one source whole. Raises BadInput where it cannot be read at all."""
    source = forms.with_form(source)
    checker = Checker(checks, source.root if source.open_images else None)
    for result in count_progress(forms.read_rows(source, checker.findings.notes), "read rows", "rows"):
        checker.check_row(result)
    return checker.close()


def group_problems(problems: Sequence[RowError]) -> list[list[RowError]]:
    """The problems in their order; those of many rows with the same fault, whatever the value, are one group.

    Rows of a file go together before rows of several files, of which each may have one, as YOLO has them.
    """
    in_files: dict[tuple[str, ...], list[RowError]] = {}
    for problem in problems:
        reason = problem.why.replace(problem.value, "") if problem.value else problem.why
        field, reason = (_VARYING.sub("", text) for text in (problem.field, reason))
        in_files.setdefault((problem.file, field, reason, problem.kind), []).append(problem)
    across: dict[tuple[str, ...], list[RowError]] = {}
    for (file, *fault), group in in_files.items():
        across.setdefault((file if len(group) > _FEW else "", *fault), []).extend(group)
    parts = [part for group in across.values() for part in ([group] if len(group) > _FEW else [[p] for p in group])]
    order = {id(problem): place for place, problem in enumerate(problems)}
    return sorted(parts, key=lambda group: order[id(group[0])])


def summarise_problems(problems: Sequence[RowError], most: int) -> Iterator[str]:
    """Yield the problems as text: one line for many rows with the same one, at most so many lines, and then the number
    of the others by kind."""
    groups = group_problems(problems)
    for group in groups[:most]:
        first = group[0]
        if len({problem.file for problem in group}) > 1:
            yield f"{spell_rows(group)}, the first {first}"
        else:
            rows = f"{first.file}, rows {spell_rows(group)}, the first{first.describe()}"
            yield str(first) if len(group) == 1 else rows
    if rest := [problem for group in groups[most:] for problem in group]:
        kinds: Mapping[str, int] = Counter(p.kind for p in rest)
        yield f"and {len(rest)} more ({', '.join(f'{n} {k}' for k, n in kinds.items())})"


def spell_rows(group: Sequence[RowError]) -> str:
    """The rows of a group as text: 7, or 3 to 9, 12 (8 rows), or 8 rows of 5 files."""
    if (files := len({problem.file for problem in group})) > 1:
        return f"{len(group)} rows of {files} files"
    rows = sorted({problem.row for problem in group})
    return f"{_spell_runs(rows)} ({len(rows)} rows)" if len(rows) > 1 else str(rows[0])


def _spell_runs(rows: Sequence[int]) -> str:
    """Sorted numbers of rows as text: 3 to 9, 12."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and row == runs[-1][1] + 1:
            runs[-1][1] = row
        else:
            runs.append([row, row])
    spelled = [str(first) if first == last else f"{first} to {last}" for first, last in runs]
    return ", ".join(spelled[:_MOST_RUNS]) + (" ..." if len(spelled) > _MOST_RUNS else "")


def quarantine(sources: Sequence[Source], findings: Findings, file: Path) -> None:
    """Write every bad row to `file` and count them: one JSON object a line, with the row as it was and the reason.

    Good rows that were left out because of a bad one are written too. The sources are read again, so that no row must
    be kept in memory. They are not changed.
    """
    findings.quarantined = 0
    results = (r for source in (sources if findings.bad else ()) for r in forms.read_rows(source, Counter()))
    with replacing(file) as lines:
        for result in results:
            problem = result.problem or findings.between.get((result.file, result.row))
            if problem is None and not result.left_out:
                continue
            left_out = {"file": result.file, "row": result.row, "reason": result.left_out}
            details = problem.to_json() if problem else left_out
            line = json.dumps({"clinkd": QUARANTINE, **details, "raw": result.raw}, ensure_ascii=False, default=str)
            lines.write(f"{line}\n".encode(errors="backslashreplace"))
            findings.quarantined += 1
