"""Reader of sheets: a CSV or XLSX and a folder of images, a line a question, a box or a caption.

    image, question, answer           a question of the image (QA); `[box]` in it stands for the box of the line
    image, name, box or x1 y1 x2 y2   a box: where is the name (VG, with all its boxes), what is here (ROC)
    ... and sentence                  what is to be said of the box (RC)
    image, caption                    what is to be said of the whole image (MIA)

And of the image: modality, patient, split, side, window (of a DICOM), frame (from 1); of the line: id. `Source.columns`
maps these names to the sheet's own; one that is not mapped is found under its own name, case, blanks and "_" aside.
Boxes are pixels of the upright image (right and bottom exclusive), unless `Source.boxes` says "normalised" (fractions)
or "qwen2-vl" (thousandths). What one line says of an image counts for its other lines, too.

A name is asked for with all its boxes, so in a sheet with boxes one line at fault takes its image out whole. A line
that does not tell its image is held to belong to the image above it. In a sheet without boxes each line stands alone.
"""

from __future__ import annotations

import difflib
import itertools
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from clinkd.data import questions
from clinkd.data.images import medical_names, open_image, stays_inside
from clinkd.data.readers.annotated import Annotated, grouped, make_samples, pixel_box, sample_questions
from clinkd.data.readers.boxes import modality_of
from clinkd.data.readers.columns import CORNERS, columns_of
from clinkd.data.readers.conversations import SPLITS, told_by_boxes
from clinkd.data.readers.rows import SHEETS, FieldError, RowResult, SourceRow, faulty, plain, sheet_rows, words
from clinkd.data.readers.source import Pictures, Source
from clinkd.records import BOX_MARK, BadInput, Box, BoxedText, ImageRef, Modality, Sample, Side, Task, Turn

FRAMES = {None: "pixels", "normalised": "fractions 0 to 1", "qwen2-vl": "thousandths 0 to 999"}  # what boxes are in
MANY = 1000  # names in a folder, and paths, beyond which no likeness is looked for
_FRAME = re.compile(r"[1-9]\d{0,8}(\.0+)?")
LEFT = "lines left out because another line of their image is at fault"


def read(source: Source, told: Counter[str]) -> Iterator[RowResult]:
    """Every line of the sheet (or of the only sheet in a folder), in its order.

    What is asked of the boxes of an image stands with its first line. Raises BadInput where there is no sheet, or its
    columns do not make a question, a box or a caption.
    """
    if source.boxes not in FRAMES:
        raise BadInput(f"--boxes {source.boxes}: boxes of a sheet are pixels (leave it out), normalised or qwen2-vl")
    file = sheet_of(source.path)
    lines = list(sheet_rows(file, source.encoding, source.sheet))
    if not lines:
        raise BadInput(f"{file}: no lines below the head; give one an image, a box or a question")
    first = next((line for line in lines if isinstance(line, SourceRow)), None)
    if first is None:
        yield from (line for line in lines if isinstance(line, RowResult))
        return
    columns = columns_of(list(first.value), source.columns, file, told)
    yield from _SheetReader(file, source, columns, told).entries(lines)


def sheet_of(path: Path) -> Path:
    """The file, or the one sheet of a folder. Raises BadInput where there are none or several."""
    if not path.is_dir():
        return path
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in SHEETS and not p.name.startswith((".", "~$")))
    if len(found) != 1:
        several = f"the sheets {', '.join(p.name for p in found)}" if found else f"no sheet ({', '.join(SHEETS)})"
        raise BadInput(f"{path}: has {several}; give the path of one")
    return found[0]


# ---- lines ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _SheetLine:
    """A checked line."""

    place: int  # among the lines, from 0
    row: SourceRow
    image: ImageRef
    id: str = ""
    name: str = ""
    box: Box | None = None
    sentence: str = ""
    caption: str = ""
    turn: Turn | None = None

    @property
    def marked(self) -> bool:
        """Whether the box is spoken of in the question or the answer."""
        return self.turn is not None and bool(self.turn.question.boxes or self.turn.answer.boxes)


class _SheetReader:
    """The lines of one sheet, together by image."""

    def __init__(self, file: Path, source: Source, columns: dict[str, str], told: Counter[str]) -> None:
        self.file, self.source, self.columns, self.told = file, source, columns, told
        self.pictures = Pictures(source)
        self.near = _Near(source.root)
        self.boxed = "box" in columns or "x1" in columns
        ways = tuple(t for t in source.ask if t is not Task.RC or "sentence" not in columns)
        self.asking = replace(source, ask=ways)
        self.cells: dict[tuple[str, ...], int] = {}  # the row each line stands on first
        self.ids: dict[str, int] = {}
        self.said: dict[str, dict[str, tuple[str, int]]] = {}  # image -> what lines say of it, and which row says so
        self.doubtful: set[str] = set()  # images that a line at fault speaks of
        self.patients_told = False  # by any line

    def entries(self, lines: Iterable[SourceRow | RowResult]) -> Iterator[RowResult]:
        images: dict[str, list[_SheetLine]] = {}
        made: dict[int, RowResult] = {}
        above = ""
        for place, row in enumerate(lines):
            if isinstance(row, RowResult):
                made[place] = row
                self._doubt(self._named(row.raw) or {above})
                continue
            first = self.cells.setdefault(tuple(row.value.values()), row.number)
            path = self._path(row)
            above = path or above
            if first != row.number:
                fault = FieldError("row", list(row.value.values()), f"the same as row {first}; remove one of them")
                made[place] = faulty(row.file, row.number, fault, row.raw, row.value, "duplicate")
                continue
            try:
                line = self._line(place, row, path)
                images.setdefault(path, []).append(line)
            except FieldError as fault:
                made[place] = faulty(row.file, row.number, fault, row.raw, row.value)
                self._doubt({above})
        for path, members in images.items():
            made |= self._image(path, members)
        yield from (made[place] for place in sorted(made))

    def _doubt(self, paths: set[str]) -> None:
        if self.boxed:
            self.doubtful |= paths

    def _named(self, cells: object) -> set[str]:
        """The images that a line which could not be read seems to name."""
        paths = {self._normal(c) for c in cells if c} if isinstance(cells, list) else set()
        return {p for p in paths if stays_inside(p) and _is_file(self.source.root / p)}

    def _normal(self, cell: str) -> str:
        return str(PurePosixPath(self.pictures.relative(cell))) if cell else ""

    def _path(self, row: SourceRow) -> str:
        """The image of a line, as all lines of it spell it."""
        path, frame = self._normal(self._cell(row, "image")), self._cell(row, "frame")
        return f"{path}#{int(float(frame))}" if path and _FRAME.fullmatch(frame) else path

    def _cell(self, row: SourceRow, ours: str) -> str:
        return str(row.value[self.columns[ours]]) if ours in self.columns else ""

    def _column(self, ours: str) -> str:
        return self.columns.get(ours, ours)

    def _line(self, place: int, row: SourceRow, path: str) -> _SheetLine:
        image = self._ref(row, path)
        box = self._box(row, image)
        name, sentence, caption = (self._words(row, key) for key in ("name", "sentence", "caption"))
        turn = self._turn(row, box)
        given = self._cell(row, "id")
        line = _SheetLine(place, row, image, given, name, box, sentence, caption, turn)
        self._check_box(line)
        if given and self.ids.setdefault(given, row.number) != row.number:
            raise FieldError(
                self._column("id"), given, f"already used by row {self.ids[given]}; give each line its own"
            )
        self._of_image(row, path)
        return line

    def _check_box(self, line: _SheetLine) -> None:
        """Raise Fault where a box is missing that the line speaks of, or a word for its box."""
        if line.box is None and line.sentence:
            why = "a sentence on a box, and no box; give it, or use a caption"
            raise FieldError(self._column("sentence"), line.sentence, why)
        if line.box is None and line.name and line.turn is None:
            why = f"no box for {line.name!r}; give it, or empty the name where the image does not show any"
            raise FieldError(self._box_field(), "", why)
        if line.box is not None and not (line.name or line.sentence or line.marked):
            way_out = f"fill it in, or write {BOX_MARK} for the box in the question or the answer"
            raise FieldError(self._column("name"), "", f"the box has no name; {way_out}")

    def _ref(self, row: SourceRow, path: str) -> ImageRef:
        column, frame = self._column("image"), self._cell(row, "frame")
        if not path:
            raise FieldError(column, "", "empty; name the image on each line (fill merged cells down)")
        if frame and not _FRAME.fullmatch(frame):
            raise FieldError(self._column("frame"), frame, "the number of a frame, from 1, is wanted")
        try:
            return self.pictures.ref(self.source.prefix + path, column)
        except FieldError as fault:
            near = self.near(path) if "no such file" in fault.why else None
            hint = f"; did you mean {near}?" if near else ""
            raise FieldError(column, self._cell(row, "image"), fault.why + hint) from None

    def _words(self, row: SourceRow, ours: str) -> str:
        text = self._cell(row, ours)
        return words(text, self._column(ours)) if text else ""

    # ---- boxes

    def _box_field(self) -> str:
        return self.columns["box"] if "box" in self.columns else ",".join(self._column(c) for c in CORNERS)

    def _corners(self, row: SourceRow) -> list[float]:
        """The four numbers of the line's box, none where it has no box."""
        if "box" not in self.columns:
            cells = [(self._column(c), self._cell(row, c)) for c in CORNERS]
            empty = [column for column, text in cells if not text]
            if 0 < len(empty) < 4:
                raise FieldError(empty[0], "", "empty, where other corners of the box are given; fill it in")
            return [] if empty else [_number(text, column, text) for column, text in cells]
        column, cell = self.columns["box"], self._cell(row, "box")
        texts = [t.strip() for t in re.sub(r"^\[(.*)\]$", r"\1", cell).split(",")] if cell else []
        if len(texts) not in (0, 4):
            raise FieldError(column, cell, "four numbers x1,y1,x2,y2 are wanted, with points for decimals")
        return [_number(t, column, cell) for t in texts]

    def _box(self, row: SourceRow, image: ImageRef) -> Box | None:
        corners = self._corners(row)
        if not corners:
            return None
        field = self._box_field()
        if self.source.boxes is None:
            return pixel_box([int(v) if v == int(v) else v for v in corners], field, image)
        scale = 1 if self.source.boxes == "normalised" else 1000
        if max(corners) > scale or (scale == 1000 and any(v != int(v) for v in corners)):
            raise FieldError(
                field, corners, f"not {FRAMES[self.source.boxes]}, which --boxes declares; correct one of them"
            )
        try:
            x1, y1, x2, y2 = (v / scale for v in corners)
            return Box(x1, y1, x2, y2)
        except BadInput as error:
            raise FieldError(field, corners, str(error)) from None

    # ---- questions

    def _turn(self, row: SourceRow, box: Box | None) -> Turn | None:
        asked, answer = self._cell(row, "question"), self._cell(row, "answer")
        if not asked and not answer:
            return None
        for ours, text, other in (("question", asked, "answer"), ("answer", answer, "question")):
            if not text:
                raise FieldError(self._column(ours), "", f"empty, where the {other} is given; fill it in")
        question, truth = (self._boxed(ours, text, box) for ours, text in (("question", asked), ("answer", answer)))
        task = self.source.task or told_by_boxes(question, truth, Task.QA)
        if task is Task.VG and not truth.boxes:
            raise FieldError(self._column("answer"), answer, f"no {BOX_MARK} in an answer of VG; add it, and the box")
        if task in (Task.ROC, Task.RC) and not question.boxes:
            raise FieldError(
                self._column("question"), asked, f"no {BOX_MARK} in a question of {task}; add it, and the box"
            )
        return Turn(task, question, truth)

    def _boxed(self, ours: str, text: str, box: Box | None) -> BoxedText:
        marks = text.count(BOX_MARK)
        if marks > 1:
            raise FieldError(
                self._column(ours), text, f"{marks} {BOX_MARK} marks, and a line has one box; keep one of them"
            )
        if marks and box is None:
            raise FieldError(self._column(ours), text, f"{BOX_MARK} in the text, and no box on the line; give it")
        return BoxedText(plain(text, self._column(ours)), (box,) * marks if box else ())

    # ---- images

    def _of_image(self, row: SourceRow, path: str) -> None:
        """What the line says of its image, remembered; two lines that differ leave the image in doubt."""
        new = {key: self._cell(row, key) for key in ("modality", "patient", "split", "side", "window")}
        if new["modality"]:
            new["modality"] = modality_of(new["modality"], self.source).value
        if new["split"]:
            new["split"] = SPLITS.get(new["split"].casefold(), "")
            if not new["split"]:
                raise FieldError(self._column("split"), self._cell(row, "split"), "train, validation or test is wanted")
        new["side"] = new["side"].casefold()
        if new["side"] not in ("", "image", "patient"):
            raise FieldError(
                self._column("side"), self._cell(row, "side"), "image or patient (whose left it is) is wanted"
            )
        said = self.said.setdefault(path, {})
        if new["window"] and "window" not in said and self.source.open_images:
            self._check_window(new["window"], path)
        self.patients_told |= bool(new["patient"])
        for key, value in new.items():
            if value and said.setdefault(key, (value, row.number))[0] != value:
                self.doubtful.add(path)
                other, number = said[key]
                raise FieldError(
                    self._column(key), value, f"row {number} says {other} of the same image; correct one of them"
                )

    def _check_window(self, window: str, path: str) -> None:
        """Whether the picture can be made with it, which its values and tables alone tell: so it is made once."""
        try:
            if self.pictures.header(self.source.prefix + path) is None:
                why = f"the image is no {medical_names()}, which alone has windows; empty it"
                raise FieldError(self._column("window"), window, why)
            open_image(self.source.root, ImageRef(path, window=window))
        except BadInput as error:
            raise FieldError(self._column("window"), window, str(error).removeprefix(f"image {path}: ")) from None

    def _image(self, path: str, lines: list[_SheetLine]) -> dict[int, RowResult]:
        """What becomes of the lines of an image."""
        made = {line.place: RowResult(str(line.row.file), line.row.number, raw=line.row.raw) for line in lines}
        if path in self.doubtful or _file_of(path) in self.doubtful:
            self.told[LEFT] += len(lines)
            return {place: replace(entry, left_out=LEFT) for place, entry in made.items()}
        try:
            samples = self._samples(path, lines)
        except FieldError as fault:
            first = lines[0].row
            if len(lines) > 1:
                self.told[LEFT] += len(lines) - 1
            rest = {place: replace(entry, left_out=LEFT) for place, entry in made.items()}
            return rest | {lines[0].place: faulty(first.file, first.number, fault, first.raw, first.value)}
        return made | {
            place: replace(made[place], samples=tuple(s for _, s in own))
            for place, own in itertools.groupby(samples, key=lambda s: s[0])
        }

    def _samples(self, path: str, lines: list[_SheetLine]) -> list[tuple[int, Sample]]:
        """The samples of an image, each with the place of its line."""
        said = {key: value for key, (value, _) in self.said[path].items()}
        image = replace(lines[0].image, window=said["window"]) if "window" in said else lines[0].image
        side: Side = "image" if said.get("side", self.source.side) == "image" else "patient"
        record = Annotated(
            id=path,
            image=image,
            modality=self._modality(said.get("modality", ""), path),
            objects=self._objects(lines),
            group=said.get("patient") or self._group(path),
            origin=self.file.stem.lower(),
            side=side,
            split=SPLITS.get(said.get("split", ""), self.source.split),
        )
        found = [(lines[0].place, s) for s in make_samples(record, self.asking, self.told)]
        captions: set[str] = set()
        for line in lines:
            found += [(line.place, s) for s in self._own(line, record, line.caption not in captions)]
            captions.add(line.caption)
            if line.turn is None and line.box is None and not line.caption:
                self.told["lines that name an image and no question, box or caption"] += 1
        kept = {s.id for s in sample_questions([s for _, s in found], self.source.max_questions, self.source.seed)}
        if len(kept) < len(found):
            self.told[f"questions beyond max_questions={self.source.max_questions} an image"] += len(found) - len(kept)
        return sorted(((place, s) for place, s in found if s.id in kept), key=lambda s: s[0])

    def _own(self, line: _SheetLine, record: Annotated, new: bool) -> Iterator[Sample]:
        """What a line asks in its own words."""
        base = line.id or f"{record.id}-{line.row.number}"
        dice = random.Random(f"{self.source.seed}/{base}")
        names = (line.name,) if line.name else ()
        turns: list[tuple[str, Turn, tuple[str, ...]]] = []
        if line.turn is not None:
            bare = (line.turn.answer.words,) if line.turn.task is Task.ROC else ()
            turns.append((base, line.turn, names or bare))
        if line.box is not None and line.sentence:
            turns.append((f"{base}-rc", questions.describe(line.box, line.sentence, dice), names))
        if line.caption and new:
            turns.append((f"{base}-mia", questions.overall(line.caption, dice), ()))
        for name, turn, about in turns:
            yield Sample(
                name, (record.image,), record.modality, (turn,), record.group, record.origin, about,
                side=record.side, split=record.split,
            )  # fmt: skip

    def _objects(self, lines: list[_SheetLine]) -> tuple[tuple[str, Box], ...]:
        """The boxes with names. One that a question speaks of counts where its name has other lines, lest an answer
        on that name be incomplete; else the line asks for it in its own words alone."""
        alone = [(line.name, line.box) for line in lines if line.box and line.name and not line.marked]
        names = {name for name, _ in alone}
        if len(alone) > len(set(alone)):
            self.told["boxes given on more than one line, taken once"] += len(alone) - len(set(alone))
        found = dict.fromkeys((line.name, line.box) for line in lines if line.box and line.name in names)
        return tuple(found)

    def _modality(self, given: str, path: str) -> Modality:
        if not given and self.source.modality is None:
            facts = self.pictures.header(self.source.prefix + path)
            if facts is not None:
                return facts.modality
        try:
            return modality_of(given, self.source)
        except FieldError as fault:
            raise FieldError(self._column("modality"), fault.value, fault.why) from None

    def _group(self, path: str) -> str:
        """The patient of an image whose lines do not tell."""
        if self.source.group is not None:
            return grouped(self.source, path)
        facts = self.pictures.header(self.source.prefix + path)
        if facts is not None and facts.patient:
            return facts.patient
        if self.patients_told:
            why = "empty, where other images have one: fill it in (merged cells down), or a split may tear a patient"
            raise FieldError(self._column("patient"), "", why)
        return _file_of(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a cell too long for a path
        return False


def _file_of(path: str) -> str:
    return re.sub(r"#\d+$", "", path)


def _number(text: str, field: str, cell: str) -> float:
    if re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", text):
        return float(text)
    if re.fullmatch(r"[+-]?[\d.]*,[\d.,]*", text):
        why = "a comma in a number: a decimal one is to be a point, one between thousands to be left out"
        raise FieldError(field, cell, why)
    raise FieldError(field, cell, "empty; four numbers are wanted" if not text else "not a number; correct it")


class _Near:
    """The file that a path which is not there may mean: of its folder or the root, alike but for case and ending."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: dict[PurePosixPath, dict[str, str]] = {}
        self.compared = 0

    def __call__(self, relative: str) -> str | None:
        wanted = PurePosixPath(relative.split("#")[0].replace("\\", "/"))
        for folder in dict.fromkeys((wanted.parent, PurePosixPath("."))):
            names = self._names(folder)
            key = wanted.name.casefold()
            found = names.get(key) or names.get(PurePosixPath(key).stem)
            if found is None and len(names) < MANY and self.compared < MANY:  # each comparison takes 10 ms
                self.compared += 1
                close = difflib.get_close_matches(key, names, n=1, cutoff=0.8)
                found = names[close[0]] if close else None
            if found is not None:
                return str(folder / found)
        return None

    def _names(self, folder: PurePosixPath) -> dict[str, str]:
        """Names and stems in a folder, case folded, to names."""
        if folder not in self.folders:
            place = self.root / folder
            inside = stays_inside(str(folder)) and place.is_dir()
            names = sorted(p.name for p in place.iterdir()) if inside else []
            stems = {PurePosixPath(n).stem.casefold(): n for n in reversed(names)}
            self.folders[folder] = stems | {n.casefold(): n for n in names}
        return self.folders[folder]
