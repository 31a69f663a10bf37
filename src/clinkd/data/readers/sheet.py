"""Reader of sheets: a CSV or XLSX and a folder of images. Each line is a question, a box or a caption.

    image, question, answer           a question about the image (QA); `[box]` in it stands for the box of the line
    image, name, box or x1 y1 x2 y2   a box: where is the name (VG, with all its boxes), what is here (ROC);
    or x y width height               its left, its top and its size
    ... and sentence                  a description of the box (RC)
    image, caption                    a description of the whole image (MIA)
    image, label                      what the image shows (QA)

    reader                            who drew the box, where several read an image (see `agreement`)

A line may also state of its image: modality, patient, split, side, window (of a DICOM), frame (from 1); and its own id.
`Source.columns` maps these names to the sheet's names; other columns are found by their own names, whatever their case,
blanks and "_". Sheets of well-known data sets are read as they are published (`published`). What the numbers of a box
mean is in `sheet_boxes`. What one line states of an image counts for its other lines, too.

A question asks for all boxes of a name, so no question asks where a name is if a line of it has an error. An error in
what a line states of its image, or in a box without a readable name, removes the whole image. A line that names no
image counts for the image above it. In a sheet without boxes each line counts alone.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath

from clinkd.data import questions
from clinkd.data.images import medical_names, open_image, stays_inside
from clinkd.data.patients import names_nobody, strip_frame
from clinkd.data.readers.annotated import Annotated, find_split_group, make_samples, resolve_modality, sample_questions
from clinkd.data.readers.choices import make_choice_turn
from clinkd.data.readers.columns import (
    CORNERS,
    EXTENT,
    SHEET_COLUMNS,
    find_choice_columns,
    find_size_columns,
    map_columns,
)
from clinkd.data.readers.conversations import infer_task_from_boxes
from clinkd.data.readers.names import is_number, require_class_name
from clinkd.data.readers.published import NO_FINDING, PublishedCells, find_published
from clinkd.data.readers.rows import (
    SHEET_SUFFIXES,
    FieldError,
    Kind,
    RowResult,
    SourceRow,
    fold_plain_text,
    make_error_result,
    require_words,
    sheet_rows,
    use_cell,
)
from clinkd.data.readers.sheet_boxes import Cells, SheetBoxes, check_box_flags
from clinkd.data.readers.source import ImageResolver, Source
from clinkd.data.readers.split_words import SPLIT_WORDS, parse_split
from clinkd.language.negation import denies
from clinkd.records import BOX_MARK, BadInput, Box, BoxedText, ImageRef, Modality, Sample, Side, Task, Turn
from clinkd.spelling import suggest
from clinkd.storage import count_progress

_OF_IMAGES = ("image", "frame", "modality", "patient", "split", "side", "window")  # what a line states of its image
_NUMBERS = (*CORNERS, *EXTENT, "frame")  # not as a spreadsheet shows them, but as it stores them
MANY = 1000  # with more names in a folder, or after more paths, no similar name is looked for
_FRAME = re.compile(r"[1-9]\d{0,8}(\.0+)?")
REPEATED_NOTE = "lines of a published sheet that repeat an earlier one, taken once"
LEFT_OUT_NOTE = "lines left out because another line of their image is at fault"


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """The result of each line of the sheet (or of the only sheet in a folder), in their order.

    The first line of an image gets the questions about its boxes. Raises BadInput if there is no sheet, or if its
    columns do not make a question, a box or a caption.
    """
    check_box_flags(source)
    file = sheet_of(source.path)
    lines = list(sheet_rows(file, source.encoding, source.sheet, notes))
    if not lines:
        raise BadInput(f"{file}: no lines below the head; give one an image, a box or a question")
    head = next((list(line.value) for line in lines if isinstance(line, SourceRow)), [])
    yield from _SheetReader(file, source, head, notes).read_lines(lines)


def sheet_of(path: Path) -> Path:
    """The file, or the only sheet of a folder. Raises BadInput if the folder has none or several."""
    if not path.is_dir():
        return path
    sheets = sorted(
        p for p in path.iterdir() if p.suffix.lower() in SHEET_SUFFIXES and not p.name.startswith((".", "~$"))
    )
    if len(sheets) != 1:
        several = (
            f"the sheets {', '.join(p.name for p in sheets)}" if sheets else f"no sheet ({', '.join(SHEET_SUFFIXES)})"
        )
        raise BadInput(f"{path}: has {several}; give the path of one")
    return sheets[0]


# ---- lines ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _SheetLine:
    """A checked line."""

    row: SourceRow
    image: ImageRef
    id: str = ""
    name: str = ""
    box: Box | None = None
    sentence: str = ""
    caption: str = ""
    label: str = ""
    turn: Turn | None = None
    reader: str = ""

    @property
    def mentions_box(self) -> bool:
        """Whether the question or the answer mentions the box."""
        return self.turn is not None and bool(self.turn.question.boxes or self.turn.answer.boxes)


class _SheetReader:
    """Reads the lines of one sheet, and groups them by image.

    Errors name a field by our name of its column; `_report` puts the sheet's own name in its place.
    """

    def __init__(self, file: Path, source: Source, head: list[str], notes: Counter[str]) -> None:
        self.file, self.source, self.notes = file, source, notes
        self.published = find_published(head)
        self.published_cells = PublishedCells(self.published, file, source, notes) if self.published else None
        self.columns = columns = self._map_columns(head)
        self.choice_keys = find_choice_columns(head, columns)
        self.size_columns = find_size_columns(head, columns)
        self.boxes = SheetBoxes(file, source, columns, notes, self.published.box_form if self.published else None)
        self.fields = {"box": ",".join(columns.get(c, c) for c in self.boxes.corners)} | columns
        self.pictures = ImageResolver(source, notes)
        self.similar_path = _PathSuggester(source.root)
        self.has_boxes = not columns.keys().isdisjoint({"box", "x1", "x"})
        tasks = tuple(t for t in source.tasks if t is not Task.RC or "sentence" not in columns)
        self.question_source = replace(source, tasks=tasks)
        self.first_rows: dict[int, int] = {}  # a hash of the cells of a line -> the first row that has them
        self.ids: dict[str, int] = {}
        self.image_values: dict[str, dict[str, tuple[str, int]]] = {}  # image -> key -> value, and its row
        self.doubtful_images: set[str] = set()  # images of which an error leaves open what belongs to them
        self.doubtful_names: dict[str, set[str]] = {}  # image -> names of which not all boxes can be read
        self.has_patients = False  # whether any line names one
        self.names: set[str] = set()  # of boxes
        self.without_finding: set[str] = set()  # images of which a line says that there is no finding

    def _map_columns(self, head: list[str]) -> dict[str, str]:
        published = self.published
        if published is not None:
            self.notes[f"sheet read as {published.title}, by the names of its columns"] += 1
        mapping = {**(published.columns if published else {}), **self.source.columns}
        used = [column for column in head if published and column.casefold() in published.one_hot]
        return map_columns(head, mapping, self.file, self.notes, used) if head else {}

    def read_lines(self, lines: Sequence[SourceRow | RowResult]) -> Iterator[RowResult]:
        """The result of each line, in their order."""
        self.boxes.choose_form(self._iterate_box_cells(lines))
        images: dict[str, list[_SheetLine]] = {}
        results: dict[int, RowResult] = {}
        image_above = ""
        for row in count_progress(lines, f"look at the lines of {self.file.name}", "lines"):
            if isinstance(row, RowResult):
                results[row.row] = row
                self._mark_doubtful(self._find_named_images(row.raw) or {image_above})
                continue
            cells = self._name_cells(row)
            try:
                parts = self.published_cells.translate(cells, row.value) if self.published_cells else [cells]
            except FieldError as fault:
                self._mark_doubtful({self._find_image_path(cells)})
                results[row.number] = self._report(row, fault)
                continue
            path = self._find_image_path(parts[0])
            image_above = path or image_above
            first_row = self.first_rows.setdefault(hash(tuple(row.value.values())), row.number)
            if path and first_row != row.number:  # lines below a merged cell may be of different images
                results[row.number] = self._report_repeated(row, first_row)
                continue
            try:
                parsed = [self._parse_line(row, part, path) for part in parts]
                images.setdefault(path, []).extend(parsed)
            except FieldError as fault:
                for part in parts:
                    self._mark_doubtful_line(part, fault, image_above)
                results[row.number] = self._report(row, fault)
        path_of_row = {line.row.number: path for path, of_image in images.items() for line in of_image}
        for number in sorted(results.keys() | path_of_row.keys()):
            if number not in results:  # the samples of an image are made no earlier, to hold few
                path = path_of_row[number]
                results |= {result.row: result for result in self._convert_image(path, images.pop(path))}
            yield results.pop(number)

    def _iterate_box_cells(self, lines: Iterable[SourceRow | RowResult]) -> Iterator[tuple[Cells, ImageRef]]:
        """The cells and the image of each line that has a box column and an image that opens."""
        for row in lines:
            if isinstance(row, SourceRow) and (cells := self._name_cells(row))["box"]:
                with contextlib.suppress(FieldError):
                    yield cells, self.pictures.ref(self.source.prefix + self._find_image_path(cells))

    def _name_cells(self, row: SourceRow) -> Cells:
        return {ours: row.value[self.columns[ours]] if ours in self.columns else "" for ours in SHEET_COLUMNS}

    def _report_repeated(self, row: SourceRow, first_row: int) -> RowResult:
        if self.published:  # RSNA repeats the class of an image for each of its boxes
            self.notes[REPEATED_NOTE] += 1
            return RowResult(str(row.file), row.number, raw=row.raw)
        fault = FieldError("row", list(row.value.values()), f"the same as row {first_row}; remove one of them")
        return self._report(row, fault, "duplicate")

    def _report(self, row: SourceRow, fault: FieldError, kind: Kind = "row") -> RowResult:
        fault.field = self.fields.get(fault.field, fault.field)
        if fault.value == "" and isinstance(row.raw, dict):
            fault.value = row.raw.get(fault.field, "")  # a word for no value
        own_id, image = (row.value.get(self.columns.get(key, ""), "") for key in ("id", "image"))
        return make_error_result(row.file, row.number, fault, row.raw, {"id": own_id or image or "?"}, kind, image)

    def _mark_doubtful_line(self, cells: Cells, fault: FieldError, image: str) -> None:
        """Mark what an error in a line leaves open: the boxes of its name; everything, if that is not known."""
        of_a_box = [cells[c] for c in ("name", "sentence", "box", *CORNERS, *EXTENT) if cells[c]]
        if (
            not cells["image"]
            or fault.field in _OF_IMAGES
            or (of_a_box and (fault.field == "name" or not cells["name"]))
        ):
            self._mark_doubtful({image})
        elif of_a_box:
            self.doubtful_names.setdefault(image, set()).add(" ".join(cells["name"].split()))

    def _mark_doubtful(self, paths: set[str]) -> None:
        if self.has_boxes:
            self.doubtful_images |= paths

    def _find_named_images(self, cells: object) -> set[str]:
        """The images that the cells of an unreadable line seem to name."""
        paths = {self._normalize_path(c) for c in cells if c} if isinstance(cells, list) else set()
        return {p for p in paths if stays_inside(p) and os.path.isfile(self.source.root / p)}

    def _normalize_path(self, cell: str) -> str:
        return str(PurePosixPath(self.pictures.relative(cell))) if cell else ""

    def _find_image_path(self, cells: Cells) -> str:
        """The image of a line, in the spelling that all its lines share."""
        path, frame = self._normalize_path(cells["image"]), cells["frame"]
        path = f"{path}#{int(float(frame))}" if path and _FRAME.fullmatch(frame) else path
        try:  # lines that spell a path differently (sub\\a.png, sub/a) are of one image
            return self.pictures.ref(self.source.prefix + path).path
        except FieldError:
            return path

    def _parse_line(self, row: SourceRow, cells: Cells, path: str) -> _SheetLine:
        cells = {ours: use_cell(cell, ours, ours in _NUMBERS) for ours, cell in cells.items()}
        image = self._open_ref(cells, path)
        box = self.boxes.parse(cells, image)
        if box is not None:
            self._check_size(row, image)
        texts = ("sentence", "caption", "label", "reader")
        words = {key: require_words(cells[key], key) for key in texts if cells[key]}
        if cells["name"]:
            words["name"] = require_class_name(cells["name"], "name", self.source.class_names)
        if box is None and words.get("name", "").casefold() in NO_FINDING:
            self.notes[f"lines that say {words.pop('name')!r} and have no box, of which nothing is asked"] += 1
            self.without_finding.add(path)
        if "name" in words:
            words["name"] = self.source.spellings.unify(words["name"], self.notes)
        if box is not None and "name" in words:
            self.names.add(words["name"])
        line = _SheetLine(row, image, cells["id"], box=box, turn=self._parse_turn(row, cells, box), **words)
        _check_box(line)
        self._check_words_for_no_value(line)
        if line.id and self.ids.setdefault(line.id, row.number) != row.number:
            raise FieldError("id", line.id, f"already used by row {self.ids[line.id]}; give each line its own")
        self._remember_image_values(cells, row.number, path)
        return line

    def _check_words_for_no_value(self, line: _SheetLine) -> None:
        """Raise FieldError for a line that asks nothing because a program wrote words for no value into its cells."""
        if (
            line.turn is None
            and line.box is None
            and not (line.caption or line.label)
            and isinstance(line.row.raw, dict)
        ):
            for ours in ("question", "answer", "name", "caption", "label"):
                if line.row.raw.get(self.columns.get(ours, "")) and not line.row.value[self.columns[ours]]:
                    raise FieldError(ours, "", "no value, as programs write it; fill it in, or remove the line")

    def _check_size(self, row: SourceRow, image: ImageRef) -> None:
        """Raise FieldError if the line states another size of its image: then its box is in other pixels."""
        if self.source.boxes is not None:
            return
        for key, actual in (("width", image.width), ("height", image.height)):
            column = self.size_columns.get(key, "")
            stated = str(use_cell(row.value.get(column, ""), column, as_number=True)).removesuffix(".0")
            if actual is not None and stated.isdecimal() and int(stated) != actual:
                way_out = f"bring the image that was annotated (if this is no {key} of the image, rename the column)"
                raise FieldError(column, stated, f"the image has {actual} pixels; {way_out}")

    def _open_ref(self, cells: Cells, path: str) -> ImageRef:
        if not path:
            raise FieldError("image", "", "empty; name the image on each line (fill merged cells down)")
        if cells["frame"] and not _FRAME.fullmatch(cells["frame"]):
            raise FieldError("frame", cells["frame"], "the number of a frame, from 1, is wanted")
        try:
            return self.pictures.ref(self.source.prefix + path)
        except FieldError as fault:
            is_missing = "no such file" in fault.why and "give --" not in fault.why
            similar_path = self.similar_path(path) if is_missing else None
            hint = f"; did you mean {similar_path}?" if similar_path else ""
            raise FieldError("image", cells["image"], fault.why + hint) from None

    # ---- questions

    def _parse_turn(self, row: SourceRow, cells: Cells, box: Box | None) -> Turn | None:
        if self.choice_keys.letter and cells["question"] and not cells["answer"]:
            cells["answer"] = use_cell(row.value[self.choice_keys.letter], self.choice_keys.letter)
        if not cells["question"] and not cells["answer"]:
            return None
        for ours, other in (("question", "answer"), ("answer", "question")):
            if not cells[ours]:
                raise FieldError(ours, "", f"empty, where the {other} is given; fill it in")
        question, answer = (_parse_boxed_text(ours, cells[ours], box) for ours in ("question", "answer"))
        task = self.source.task or infer_task_from_boxes(question, answer, Task.QA)
        if task is Task.VG and not answer.boxes and not denies(answer.text):
            raise FieldError("answer", cells["answer"], f"no {BOX_MARK} in an answer of VG; add it, and the box")
        if task in (Task.ROC, Task.RC) and not question.boxes:
            why = f"no {BOX_MARK} in a question of {task}; add it, and the box"
            raise FieldError("question", cells["question"], why)
        return make_choice_turn(Turn(task, question, answer), row.value, self.choice_keys, "answer", self.notes)

    # ---- images

    def _remember_image_values(self, cells: Cells, number: int, path: str) -> None:
        """Remember what the line states of its image. If two lines differ, the image is doubtful."""
        stated = {key: cells[key] for key in ("modality", "patient", "split", "side", "window")}
        if stated["modality"]:
            stated["modality"] = resolve_modality(stated["modality"], self.source).value
        if stated["split"]:
            stated["split"] = parse_split(stated["split"])
        stated["side"] = stated["side"].casefold()
        if stated["side"] not in ("", "image", "patient"):
            why = f"image or patient (whose left it is) is wanted{suggest(cells['side'], ('image', 'patient'))}"
            raise FieldError("side", cells["side"], why)
        image_values = self.image_values.setdefault(path, {})
        if stated["window"] and "window" not in image_values and self.source.open_images:
            self._check_window(stated["window"], path)
        self.has_patients |= not names_nobody(stated["patient"])
        for key, value in stated.items():
            if value and image_values.setdefault(key, (value, number))[0] != value:
                self.doubtful_images.add(path)
                other, row = image_values[key]
                raise FieldError(key, value, f"row {row} says {other} of the same image; correct one of them")

    def _check_window(self, window: str, path: str) -> None:
        """Raise FieldError if the picture cannot be made with the window: only making it once can tell."""
        try:
            if self.pictures.header(self.source.prefix + path) is None:
                why = f"the image is no {medical_names()}, which alone has windows; empty it"
                raise FieldError("window", window, why)
            open_image(self.source.root, ImageRef(path, window=window))
        except BadInput as error:
            raise FieldError("window", window, str(error).removeprefix(f"image {path}: ")) from None

    def _convert_image(self, path: str, lines: list[_SheetLine]) -> Iterator[RowResult]:
        """The results of the lines of an image."""
        samples: dict[int, list[Sample]] | None = None
        if not {path, strip_frame(path)} & self.doubtful_images:
            try:
                samples = self._make_image_samples(path, lines)
            except FieldError as fault:
                yield self._report(lines[0].row, fault)
                lines = lines[1:]
        for row in (line.row for line in lines):
            if samples is None:
                self.notes[LEFT_OUT_NOTE] += 1
                yield RowResult(str(row.file), row.number, raw=row.raw, left_out=LEFT_OUT_NOTE)
            else:
                yield RowResult(str(row.file), row.number, tuple(samples[row.number]), raw=row.raw)

    def _make_image_samples(self, path: str, lines: list[_SheetLine]) -> dict[int, list[Sample]]:
        """The samples of an image, by the row of their line."""
        image_values = {key: value for key, (value, _) in self.image_values[path].items()}
        image = replace(lines[0].image, window=image_values["window"]) if "window" in image_values else lines[0].image
        objects, readers = self._collect_objects(lines)
        side: Side = "image" if image_values.get("side", self.source.side) == "image" else "patient"
        record = Annotated(
            id=path,
            image=image,
            modality=self._find_modality(image_values.get("modality", ""), path),
            objects=objects,
            readers=readers,
            panel=frozenset(line.reader for line in lines if line.reader),
            group=self._find_group(path, image_values.get("patient", "")),
            origin=self.file.stem.lower(),
            side=side,
            split=SPLIT_WORDS.get(image_values.get("split", ""), self.source.split),
            incomplete=frozenset(self.doubtful_names.get(path, ())),
        )
        samples = {lines[0].row.number: make_samples(record, self.question_source, self.notes)}
        if self.source.ask_absent and path in self.without_finding:
            samples[lines[0].row.number] += self._ask_absent(record)
        told = {("caption", ""), ("label", "")}
        for line in lines:
            new = {("caption", line.caption), ("label", line.label)} - told
            samples.setdefault(line.row.number, []).extend(self._make_line_samples(line, record, dict(new)))
            told |= new
            if (
                path not in self.without_finding
                and line.turn is None
                and line.box is None
                and not (line.caption or line.label)
            ):
                self.notes["lines that name an image and no question, box or caption"] += 1
        kept = sample_questions([s for part in samples.values() for s in part], self.source, self.notes)
        kept_ids = {s.id for s in kept}
        return {number: [s for s in part if s.id in kept_ids] for number, part in samples.items()}

    def _ask_absent(self, record: Annotated) -> Iterator[Sample]:
        """A question where a structure is that other images of the sheet have, and this one has not."""
        if record.objects or record.incomplete or not self.names:
            return
        rng = random.Random(f"{self.source.seed}/{record.id}")
        name = rng.choice(sorted(self.names))
        self.notes["images without a finding, of which it is asked where one is"] += 1
        yield record.make_sample(f"{record.id}-absent", questions.ask_absent(name, rng), (name,))

    def _make_line_samples(self, line: _SheetLine, record: Annotated, new: dict[str, str]) -> Iterator[Sample]:
        """The samples of the line's own question and sentence, and of the caption and the label that are `new`."""
        base = line.id or f"{record.id}-{line.row.number}"
        rng = random.Random(f"{self.source.seed}/{base}")
        names = (line.name,) if line.name else ()
        if line.turn is not None:
            bare = (line.turn.answer.words,) if line.turn.task is Task.ROC else ()
            yield record.make_sample(base, line.turn, names or bare)
        if line.box is not None and line.sentence:
            yield record.make_sample(f"{base}-rc", questions.ask_description(line.box, line.sentence, rng), names)
        if "caption" in new:
            yield record.make_sample(f"{base}-mia", questions.ask_overall(line.caption, rng))
        if "label" in new:
            yield record.make_sample(f"{base}-label", questions.ask_label(line.label, rng))

    def _collect_objects(self, lines: list[_SheetLine]) -> tuple[tuple[tuple[str, Box], ...], tuple[str, ...]]:
        """The boxes with names, and who drew each.

        A box that a question mentions counts only if its name has other lines: the answer on a name is complete.
        """
        named = [(line.name, line.box, line.reader, line.mentions_box) for line in lines if line.box and line.name]
        unmentioned = [(name, box, reader) for name, box, reader, is_mentioned in named if not is_mentioned]
        names = {name for name, _, _ in unmentioned}
        if len(unmentioned) > len(set(unmentioned)):
            self.notes["boxes given on more than one line, taken once"] += len(unmentioned) - len(set(unmentioned))
        drawn = dict.fromkeys((name, box, reader) for name, box, reader, _ in named if name in names)
        return tuple((name, box) for name, box, _ in drawn), tuple(reader for _, _, reader in drawn)

    def _find_modality(self, cell_text: str, path: str) -> Modality:
        facts = self.pictures.header(self.source.prefix + path)
        if not cell_text and self.source.modality is None:
            if facts is not None and facts.modality is not None:
                return facts.modality
            if self.published and self.published.modality:
                return self.published.modality
        modality = resolve_modality(cell_text, self.source)
        if cell_text and facts is not None and facts.modality not in (None, modality):
            self.notes[f"images are {facts.modality} by their header and {modality} in the sheet, which is taken"] += 1
        return modality

    def _find_group(self, path: str, patient: str) -> str:
        """The patient whom the lines of an image name, else the unit that is found without them.

        A word for nobody, such as "unknown", is a group of its own only beside true patients.
        """
        if patient and names_nobody(patient):
            together = "kept together as one" if self.has_patients else "taken as if it were empty"
            self.notes[f"images have the patient {patient!r}, which names nobody; {together}"] += 1
        if patient and (self.has_patients or not names_nobody(patient)):
            return patient
        facts = None if self.source.group else self.pictures.header(self.source.prefix + path)
        if self.has_patients and not self.source.group and not (facts and facts.patient):
            why = "empty, where other images have one: fill it in (merged cells down), or a split may tear a patient"
            raise FieldError("patient", "", why)
        return find_split_group(self.source, path, facts)


def _check_box(line: _SheetLine) -> None:
    """Raise FieldError if the line mentions a box and has none, or has a box and no word for it."""
    if is_number(line.label):
        raise FieldError("label", line.label, "a number, and no word for what the image shows; write the word")
    if line.box is None and line.sentence:
        raise FieldError("sentence", line.sentence, "a sentence on a box, and no box; give it, or use a caption")
    if line.box is None and line.name and line.turn is None:
        why = f"no box for {line.name!r}; give it, or empty the name where the image does not show any"
        raise FieldError("box", "", why)
    if line.box is not None and not (line.name or line.sentence or line.mentions_box):
        way_out = "say in a column `name` (--column name=HEAD) what is in it: where it is and what it is are asked then"
        mark = f"write {BOX_MARK} for the box in question or answer, and that alone is asked"
        raise FieldError("name", "", f"the box has no name; {way_out}. Or {mark}")


def _parse_boxed_text(field: str, text: str, box: Box | None) -> BoxedText:
    marks = text.count(BOX_MARK)
    if marks > 1:
        raise FieldError(field, text, f"{marks} {BOX_MARK} marks, and a line has one box; keep one of them")
    if marks and box is None:
        raise FieldError(field, text, f"{BOX_MARK} in the text, and no box on the line; give it")
    return BoxedText(fold_plain_text(text, field), (box,) * marks if box else ())


class _PathSuggester:
    """Suggests a file for a missing path: one with a similar name in its folder or in the root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.compared = 0
        self._cached_names = cache(self._list_names)

    def __call__(self, relative: str) -> str | None:
        wanted = PurePosixPath(relative.split("#")[0].replace("\\", "/"))
        for folder in dict.fromkeys((wanted.parent, PurePosixPath("."))):
            names = self._cached_names(folder)
            key = wanted.name.casefold()
            file_name = names.get(key) or names.get(PurePosixPath(key).stem) or names.get(_drop_leading_zeros(key))
            if file_name is None and len(names) < MANY and self.compared < MANY:  # each comparison takes 10 ms
                self.compared += 1
                close_names = difflib.get_close_matches(key, names, n=1, cutoff=0.8)
                file_name = names[close_names[0]] if close_names else None
            if file_name is not None:
                return str(folder / file_name)
        return None

    def _list_names(self, folder: PurePosixPath) -> dict[str, str]:
        """The names in a folder, by their case-folded names and stems, with the zeros before numbers and without."""
        directory = self.root / folder
        inside = stays_inside(str(folder)) and directory.is_dir()
        names = sorted(p.name for p in directory.iterdir()) if inside else []
        stems = {PurePosixPath(n).stem.casefold(): n for n in reversed(names)}
        spellings = stems | {n.casefold(): n for n in names}
        return {_drop_leading_zeros(spelling): name for spelling, name in spellings.items()} | spellings


def _drop_leading_zeros(name: str) -> str:
    """scan5.dcm for scan05.dcm: a program that made the sheet may have taken its numbers for numbers."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", name)
