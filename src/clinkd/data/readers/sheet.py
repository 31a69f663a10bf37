"""Reader of sheets: a CSV or XLSX and a folder of images. Each line is a question, a box or a caption.

    image, question, answer           a question about the image (QA); `[box]` in it stands for the box of the line
    image, name, box or x1 y1 x2 y2   a box: where is the name (VG, with all its boxes), what is here (ROC);
    or x y width height               its left, its top and its size
    ... and sentence                  a description of the box (RC)
    image, caption                    a description of the whole image (MIA)

A line may also state of its image: modality, patient, split, side, window (of a DICOM), frame (from 1); and its own id.
`Source.columns` maps these names to the sheet's names; other columns are found by their own names, whatever their case,
blanks and "_". Boxes are pixels of the upright image (right and bottom exclusive), unless `Source.boxes` is
"normalised" (fractions) or "qwen2-vl" (thousandths). What one line states of an image counts for its other lines, too.

A question asks for all boxes of a name, so no question asks where a name is if a line of it has an error. An error in
what a line states of its image, or in a box without a readable name, removes the whole image. A line that names no
image counts for the image above it. In a sheet without boxes each line counts alone.
"""

from __future__ import annotations

import difflib
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath

from clinkd.data import questions
from clinkd.data.images import medical_names, open_image, stays_inside
from clinkd.data.readers.annotated import Annotated, find_split_group, make_samples, parse_pixel_box, sample_questions
from clinkd.data.readers.boxes import resolve_modality
from clinkd.data.readers.columns import CORNERS, EXTENT, SHEET_COLUMNS, map_columns
from clinkd.data.readers.conversations import SPLITS, infer_task_from_boxes
from clinkd.data.readers.rows import (
    SHEETS,
    FieldError,
    Kind,
    RowResult,
    SourceRow,
    fold_plain_text,
    make_error_result,
    require_words,
    sheet_rows,
)
from clinkd.data.readers.source import ImageResolver, Source
from clinkd.records import BOX_MARK, BadInput, Box, BoxedText, ImageRef, Modality, Sample, Side, Task, Turn
from clinkd.storage import count_progress

FRAMES = {None: "pixels", "normalised": "fractions 0 to 1", "qwen2-vl": "thousandths 0 to 999"}  # units of boxes
_OF_IMAGES = ("image", "frame", "modality", "patient", "split", "side", "window")  # what a line states of its image
MANY = 1000  # with more names in a folder, or after more paths, no similar name is looked for
_FRAME = re.compile(r"[1-9]\d{0,8}(\.0+)?")
NO_FINDING = ("no finding", "no findings")  # the name of an image without a box, in public sheets
LEFT_OUT_NOTE = "lines left out because another line of their image is at fault"


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """The result of each line of the sheet (or of the only sheet in a folder), in their order.

    The first line of an image gets the questions about its boxes. Raises BadInput if there is no sheet, or if its
    columns do not make a question, a box or a caption.
    """
    if source.boxes not in FRAMES:
        raise BadInput(f"--boxes {source.boxes}: boxes of a sheet are pixels (leave it out), normalised or qwen2-vl")
    file = sheet_of(source.path)
    lines = list(sheet_rows(file, source.encoding, source.sheet))
    if not lines:
        raise BadInput(f"{file}: no lines below the head; give one an image, a box or a question")
    head = next((list(line.value) for line in lines if isinstance(line, SourceRow)), None)
    columns = map_columns(head, source.columns, file, notes) if head is not None else {}
    yield from _SheetReader(file, source, columns, notes).read_lines(lines)


def sheet_of(path: Path) -> Path:
    """The file, or the only sheet of a folder. Raises BadInput if the folder has none or several."""
    if not path.is_dir():
        return path
    sheets = sorted(p for p in path.iterdir() if p.suffix.lower() in SHEETS and not p.name.startswith((".", "~$")))
    if len(sheets) != 1:
        several = f"the sheets {', '.join(p.name for p in sheets)}" if sheets else f"no sheet ({', '.join(SHEETS)})"
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
    turn: Turn | None = None

    @property
    def mentions_box(self) -> bool:
        """Whether the question or the answer mentions the box."""
        return self.turn is not None and bool(self.turn.question.boxes or self.turn.answer.boxes)


Cells = dict[str, str]  # our name of a column -> the text in the line, "" if the sheet has no such column


class _SheetReader:
    """Reads the lines of one sheet, and groups them by image.

    Errors name a field by our name of its column; `_report` puts the sheet's own name in its place.
    """

    def __init__(self, file: Path, source: Source, columns: dict[str, str], notes: Counter[str]) -> None:
        self.file, self.source, self.columns, self.notes = file, source, columns, notes
        self.corners = EXTENT if "x" in columns else CORNERS  # of a box in four columns
        self.fields = {"box": ",".join(columns.get(c, c) for c in self.corners)} | columns
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

    def read_lines(self, lines: Iterable[SourceRow | RowResult]) -> Iterator[RowResult]:
        """The result of each line, in their order."""
        images: dict[str, list[_SheetLine]] = {}
        results: dict[int, RowResult] = {}
        image_above = ""
        for row in count_progress(lines, f"look at the lines of {self.file.name}", "lines"):
            if isinstance(row, RowResult):
                results[row.row] = row
                self._mark_doubtful(self._find_named_images(row.raw) or {image_above})
                continue
            cells = {ours: row.value[self.columns[ours]] if ours in self.columns else "" for ours in SHEET_COLUMNS}
            path = self._find_image_path(cells)
            image_above = path or image_above
            first_row = self.first_rows.setdefault(hash(tuple(row.value.values())), row.number)
            if path and first_row != row.number:  # lines below a merged cell may be of different images
                fault = FieldError("row", list(row.value.values()), f"the same as row {first_row}; remove one of them")
                results[row.number] = self._report(row, fault, "duplicate")
                continue
            try:
                line = self._parse_line(row, cells, path)
                images.setdefault(path, []).append(line)
            except FieldError as fault:
                self._mark_doubtful_line(cells, fault, image_above)
                results[row.number] = self._report(row, fault)
        path_of_row = {line.row.number: path for path, of_image in images.items() for line in of_image}
        for number in sorted(results.keys() | path_of_row.keys()):
            if number not in results:  # the samples of an image are made no earlier, to hold few
                path = path_of_row[number]
                results |= {result.row: result for result in self._convert_image(path, images.pop(path))}
            yield results.pop(number)

    def _report(self, row: SourceRow, fault: FieldError, kind: Kind = "row") -> RowResult:
        fault.field = self.fields.get(fault.field, fault.field)
        if fault.value == "" and isinstance(row.raw, dict):
            fault.value = row.raw.get(fault.field, "")  # a word for no value
        own_id, image = (row.value.get(self.columns.get(key, ""), "") for key in ("id", "image"))
        return make_error_result(row.file, row.number, fault, row.raw, {"id": own_id or image or "?"}, kind)

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
        return f"{path}#{int(float(frame))}" if path and _FRAME.fullmatch(frame) else path

    def _parse_line(self, row: SourceRow, cells: Cells, path: str) -> _SheetLine:
        image = self._open_ref(cells, path)
        box = self._parse_box(cells, image)
        words = {key: require_words(cells[key], key) for key in ("name", "sentence", "caption") if cells[key]}
        if box is None and words.get("name", "").casefold() in NO_FINDING:
            self.notes[f"lines that say {words.pop('name')!r} and have no box, of which nothing is asked"] += 1
        if "name" in words:
            words["name"] = self.source.spellings.unify(words["name"], self.notes)
        line = _SheetLine(row, image, cells["id"], box=box, turn=self._parse_turn(cells, box), **words)
        _check_box(line)
        self._check_words_for_no_value(line)
        if line.id and self.ids.setdefault(line.id, row.number) != row.number:
            raise FieldError("id", line.id, f"already used by row {self.ids[line.id]}; give each line its own")
        self._remember_image_values(cells, row.number, path)
        return line

    def _check_words_for_no_value(self, line: _SheetLine) -> None:
        """Raise FieldError for a line that asks nothing because a program wrote words for no value into its cells."""
        if line.turn is None and line.box is None and not line.caption and isinstance(line.row.raw, dict):
            for ours in ("question", "answer", "name", "caption"):
                if line.row.raw.get(self.columns.get(ours, "")) and not line.row.value[self.columns[ours]]:
                    raise FieldError(ours, "", "no value, as programs write it; fill it in, or remove the line")

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

    # ---- boxes

    def _parse_corners(self, cells: Cells) -> list[float]:
        """The four numbers of the line's box, none if it has no box."""
        if "box" not in self.columns:
            empty = [c for c in self.corners if not cells[c]]
            if 0 < len(empty) < 4:
                raise FieldError(empty[0], "", "empty, where other corners of the box are given; fill it in")
            numbers = [] if empty else [_parse_number(cells[c], c, cells[c]) for c in self.corners]
            if not numbers or self.corners is CORNERS:
                return numbers
            left, top, width, height = numbers
            for key, size in (("width", width), ("height", height)):
                if size <= 0:
                    raise FieldError(key, cells[key], f"the {key} of a box is above 0; correct it")
            return [left, top, round(left + width, 9), round(top + height, 9)]
        cell = cells["box"]
        texts = [t.strip() for t in re.sub(r"^\[(.*)\]$", r"\1", cell).split(",")] if cell else []
        if len(texts) not in (0, 4):
            raise FieldError("box", cell, "four numbers x1,y1,x2,y2 are wanted, with points for decimals")
        return [_parse_number(t, "box", cell) for t in texts]

    def _parse_box(self, cells: Cells, image: ImageRef) -> Box | None:
        corners = self._parse_corners(cells)
        if not corners:
            return None
        try:
            return self._make_box(corners, image)
        except FieldError as fault:
            x1, y1, x2, y2 = corners
            if x1 > x2 or y1 > y2:
                fault.why += "; left, top, width and height go into columns x, y, width, height"
            raise

    def _make_box(self, corners: list[float], image: ImageRef) -> Box:
        if self.source.boxes is None:
            return parse_pixel_box([int(v) if v == int(v) else v for v in corners], "box", image)
        scale = 1 if self.source.boxes == "normalised" else 1000
        if max(corners) > scale or (scale == 1000 and any(v != int(v) for v in corners)):
            why = f"not {FRAMES[self.source.boxes]}, which --boxes declares; correct one of them"
            raise FieldError("box", corners, why)
        try:
            x1, y1, x2, y2 = (v / scale for v in corners)
            return Box(x1, y1, x2, y2)
        except BadInput as error:
            raise FieldError("box", corners, str(error)) from None

    # ---- questions

    def _parse_turn(self, cells: Cells, box: Box | None) -> Turn | None:
        if not cells["question"] and not cells["answer"]:
            return None
        for ours, other in (("question", "answer"), ("answer", "question")):
            if not cells[ours]:
                raise FieldError(ours, "", f"empty, where the {other} is given; fill it in")
        question, answer = (_parse_boxed_text(ours, cells[ours], box) for ours in ("question", "answer"))
        task = self.source.task or infer_task_from_boxes(question, answer, Task.QA)
        if task is Task.VG and not answer.boxes:
            raise FieldError("answer", cells["answer"], f"no {BOX_MARK} in an answer of VG; add it, and the box")
        if task in (Task.ROC, Task.RC) and not question.boxes:
            why = f"no {BOX_MARK} in a question of {task}; add it, and the box"
            raise FieldError("question", cells["question"], why)
        return Turn(task, question, answer)

    # ---- images

    def _remember_image_values(self, cells: Cells, number: int, path: str) -> None:
        """Remember what the line states of its image. If two lines differ, the image is doubtful."""
        stated = {key: cells[key] for key in ("modality", "patient", "split", "side", "window")}
        if stated["modality"]:
            stated["modality"] = resolve_modality(stated["modality"], self.source).value
        if stated["split"]:
            stated["split"] = SPLITS.get(stated["split"].casefold(), "")
            if not stated["split"]:
                raise FieldError("split", cells["split"], "train, validation or test is wanted")
        stated["side"] = stated["side"].casefold()
        if stated["side"] not in ("", "image", "patient"):
            raise FieldError("side", cells["side"], "image or patient (whose left it is) is wanted")
        image_values = self.image_values.setdefault(path, {})
        if stated["window"] and "window" not in image_values and self.source.open_images:
            self._check_window(stated["window"], path)
        self.has_patients |= bool(stated["patient"])
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
        if not {path, _strip_frame(path)} & self.doubtful_images:
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
        side: Side = "image" if image_values.get("side", self.source.side) == "image" else "patient"
        record = Annotated(
            id=path,
            image=image,
            modality=self._find_modality(image_values.get("modality", ""), path),
            objects=self._collect_objects(lines),
            group=image_values.get("patient") or self._find_group(path),
            origin=self.file.stem.lower(),
            side=side,
            split=SPLITS.get(image_values.get("split", ""), self.source.split),
            incomplete=frozenset(self.doubtful_names.get(path, ())),
        )
        samples = {lines[0].row.number: make_samples(record, self.question_source, self.notes)}
        captions: set[str] = set()
        for line in lines:
            line_samples = samples.setdefault(line.row.number, [])
            line_samples += self._make_line_samples(line, record, line.caption not in captions)
            captions.add(line.caption)
            if line.turn is None and line.box is None and not line.caption:
                self.notes["lines that name an image and no question, box or caption"] += 1
        kept = sample_questions([s for part in samples.values() for s in part], self.source, self.notes)
        kept_ids = {s.id for s in kept}
        return {number: [s for s in part if s.id in kept_ids] for number, part in samples.items()}

    def _make_line_samples(self, line: _SheetLine, record: Annotated, is_new_caption: bool) -> Iterator[Sample]:
        """The samples of the line's own question, sentence and caption."""
        base = line.id or f"{record.id}-{line.row.number}"
        rng = random.Random(f"{self.source.seed}/{base}")
        names = (line.name,) if line.name else ()
        if line.turn is not None:
            bare = (line.turn.answer.words,) if line.turn.task is Task.ROC else ()
            yield record.make_sample(base, line.turn, names or bare)
        if line.box is not None and line.sentence:
            yield record.make_sample(f"{base}-rc", questions.ask_description(line.box, line.sentence, rng), names)
        if line.caption and is_new_caption:
            yield record.make_sample(f"{base}-mia", questions.ask_overall(line.caption, rng))

    def _collect_objects(self, lines: list[_SheetLine]) -> tuple[tuple[str, Box], ...]:
        """The boxes with names.

        A box that a question mentions counts only if its name has other lines: the answer on a name is complete.
        """
        unmentioned = [(line.name, line.box) for line in lines if line.box and line.name and not line.mentions_box]
        names = {name for name, _ in unmentioned}
        if len(unmentioned) > len(set(unmentioned)):
            self.notes["boxes given on more than one line, taken once"] += len(unmentioned) - len(set(unmentioned))
        pairs = dict.fromkeys((line.name, line.box) for line in lines if line.box and line.name in names)
        return tuple(pairs)

    def _find_modality(self, cell_text: str, path: str) -> Modality:
        if not cell_text and self.source.modality is None:
            facts = self.pictures.header(self.source.prefix + path)
            if facts is not None:
                return facts.modality
        return resolve_modality(cell_text, self.source)

    def _find_group(self, path: str) -> str:
        """The patient of an image if its lines name none."""
        if self.source.group is not None:
            return find_split_group(self.source, path)
        facts = self.pictures.header(self.source.prefix + path)
        if facts is not None and facts.patient:
            return facts.patient
        if self.has_patients:
            why = "empty, where other images have one: fill it in (merged cells down), or a split may tear a patient"
            raise FieldError("patient", "", why)
        return _strip_frame(path)


def _check_box(line: _SheetLine) -> None:
    """Raise FieldError if the line mentions a box and has none, or has a box and no word for it."""
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


def _strip_frame(path: str) -> str:
    return re.sub(r"#\d+$", "", path)


def _parse_number(text: str, field: str, cell: str) -> float:
    if re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", text):
        return float(text)
    if re.fullmatch(r"[+-]?[\d.]*,[\d.,]*", text):
        why = "a comma in a number: a decimal one is to be a point, one between thousands to be left out"
        raise FieldError(field, cell, why)
    raise FieldError(field, cell, "empty; four numbers are wanted" if not text else "not a number; correct it")


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
