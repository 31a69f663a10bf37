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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from clinkd.data import questions
from clinkd.data.images import open_image, stays_inside
from clinkd.data.readers.annotated import Annotated, ask, draw, grouped, pixel_box
from clinkd.data.readers.boxes import modality_of
from clinkd.data.readers.conversations import BARE_WORDS, SPLITS
from clinkd.data.readers.rows import Entry, Fault, Row, faulty, sheet_rows, words
from clinkd.data.readers.source import Pictures, Source
from clinkd.records import BOX_MARK, BadInput, Box, BoxedText, ImageRef, Modality, Sample, Side, Task, Turn

CORNERS = ("x1", "y1", "x2", "y2")
OURS = (
    "image", "modality", "patient", "question", "answer", "name", *CORNERS, "box", "split", "id", "side", "window",
    "frame", "sentence", "caption",
)  # fmt: skip
SUFFIXES = (".csv", ".tsv", ".xlsx", ".xlsm")
FRAMES = {None: "pixels", "normalised": "fractions 0 to 1", "qwen2-vl": "thousandths 0 to 999"}  # what boxes are in
MANY = 1000  # names in a folder, and paths, beyond which no likeness is looked for
_FRAME = re.compile(r"[1-9]\d{0,8}(\.0+)?")
LEFT = "lines left out because another line of their image is at fault"


def read(source: Source, told: Counter[str]) -> Iterator[Entry]:
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
    first = next((line for line in lines if isinstance(line, Row)), None)
    if first is None:
        yield from (line for line in lines if isinstance(line, Entry))
        return
    columns = columns_of(list(first.value), source.columns, file, told)
    yield from _Reader(file, source, columns, told).entries(lines)


def sheet_of(path: Path) -> Path:
    """The file, or the one sheet of a folder. Raises BadInput where there are none or several."""
    if not path.is_dir():
        return path
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith((".", "~$")))
    if len(found) != 1:
        several = f"the sheets {', '.join(p.name for p in found)}" if found else f"no sheet ({', '.join(SUFFIXES)})"
        raise BadInput(f"{path}: has {several}; give the path of one")
    return found[0]


# ---- columns --------------------------------------------------------------------------------------------------------


def columns_of(head: list[str], given: Mapping[str, str], file: Path, told: Counter[str]) -> dict[str, str]:
    """Our name -> the sheet's, of what is used. Raises BadInput where the sheet cannot be understood by its head."""
    there = f"{file}: its columns are {', '.join(head)}"
    columns = {ours: _mapped(ours, theirs, head, there) for ours, theirs in given.items()}
    for column in head:
        ours = next((o for o in OURS if _bare(o) == _bare(column)), None)
        if ours is None or ours in given or column in columns.values():
            continue
        if ours in columns:
            raise BadInput(f"{there}; {columns[ours]!r} and {column!r} both mean {ours}: say which with --columns")
        columns[ours] = column
    boxes = _checked(columns, there)
    if not boxes:  # "name" may well be that of the patient
        left = {"name", "sentence"} - given.keys()
        columns = {ours: theirs for ours, theirs in columns.items() if ours not in left}
    if not ({"question", "caption"} & columns.keys() or (boxes and {"name", "sentence"} & columns.keys())):
        wanted = "question and answer, name and box (or x1, y1, x2, y2), or caption"
        raise BadInput(f"{there}; nothing to ask: {wanted} is wanted, as --columns caption=COLUMN")
    for column in head:
        if column not in columns.values():
            told[f"column {column!r} is not used"] += 1
    return columns


def _checked(columns: dict[str, str], there: str) -> bool:
    """Whether the columns hold boxes. Raises BadInput where columns that belong together are not."""
    if "image" not in columns:
        raise BadInput(f"{there}; none is the image: name it, as --columns image=COLUMN")
    for together in (("question", "answer"), CORNERS):
        given = [c for c in together if c in columns]
        missing = next((c for c in together if c not in columns), None)
        if given and missing:
            raise BadInput(f"{there}; {', '.join(given)} without {missing}: name it, as --columns {missing}=COLUMN")
    if "x1" in columns and "box" in columns:
        raise BadInput(f"{there}; boxes stand both in {columns['box']} and in {columns['x1']} ...: rename one of them")
    return "x1" in columns or "box" in columns


def _mapped(ours: str, theirs: str, head: list[str], there: str) -> str:
    if ours not in OURS:
        raise BadInput(f"--columns {ours}={theirs}: one of {', '.join(OURS)} is wanted before the =")
    if theirs in head:
        return theirs
    alike = [c for c in head if _bare(c) == _bare(theirs)]
    if len(alike) != 1:
        raise BadInput(f"{there}; there is no {theirs!r}: correct --columns {ours}={theirs}")
    return alike[0]


def _bare(name: str) -> str:
    return re.sub(r"[\s_]+", "", name.casefold())


# ---- lines ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Line:
    """A checked line."""

    place: int  # among the lines, from 0
    row: Row
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
        return _speaks_of_a_box(self.turn)


def _speaks_of_a_box(turn: Turn | None) -> bool:
    return turn is not None and bool(turn.question.boxes or turn.answer.boxes)


class _Reader:
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

    def entries(self, lines: Iterable[Row | Entry]) -> Iterator[Entry]:
        images: dict[str, list[_Line]] = {}
        made: dict[int, Entry] = {}
        above = ""
        for place, row in enumerate(lines):
            if isinstance(row, Entry):
                made[place] = row
                self._doubt(self._named(row.raw) or {above})
                continue
            first = self.cells.setdefault(tuple(row.value.values()), row.number)
            path = self._path(row)
            above = path or above
            if first != row.number:
                made[place] = self._duplicate(row, first)
                continue
            try:
                line = self._line(place, row, path)
                images.setdefault(path, []).append(line)
            except Fault as fault:
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

    def _path(self, row: Row) -> str:
        """The image of a line, as all lines of it spell it."""
        path, frame = self._normal(self._cell(row, "image")), self._cell(row, "frame")
        return f"{path}#{int(float(frame))}" if path and _FRAME.fullmatch(frame) else path

    def _duplicate(self, row: Row, first: int) -> Entry:
        fault = Fault("row", list(row.value.values()), f"the same as row {first}; remove one of them")
        entry = faulty(row.file, row.number, fault, row.raw, row.value)
        assert entry.problem is not None
        return replace(entry, problem=replace(entry.problem, kind="duplicate"))

    def _cell(self, row: Row, ours: str) -> str:
        return str(row.value[self.columns[ours]]) if ours in self.columns else ""

    def _column(self, ours: str) -> str:
        return self.columns.get(ours, ours)

    def _line(self, place: int, row: Row, path: str) -> _Line:
        image = self._ref(row, path)
        box = self._box(row, image)
        name, sentence, caption = (self._words(row, key) for key in ("name", "sentence", "caption"))
        turn = self._turn(row, box)
        if box is None and sentence:
            raise Fault(
                self._column("sentence"), sentence, "a sentence on a box, and no box; give it, or use a caption"
            )
        if box is None and name and turn is None:
            why = f"no box for {name!r}; give it, or empty the name where the image does not show any"
            raise Fault(self._box_field(), "", why)
        if box is not None and not (name or sentence or _speaks_of_a_box(turn)):
            way_out = f"fill it in, or write {BOX_MARK} for the box in the question or the answer"
            raise Fault(self._column("name"), "", f"the box has no name; {way_out}")
        given = self._cell(row, "id")
        if given and self.ids.setdefault(given, row.number) != row.number:
            raise Fault(self._column("id"), given, f"already used by row {self.ids[given]}; give each line its own")
        self._of_image(row, path)
        return _Line(place, row, image, given, name, box, sentence, caption, turn)

    def _ref(self, row: Row, path: str) -> ImageRef:
        column, frame = self._column("image"), self._cell(row, "frame")
        if not path:
            raise Fault(column, "", "empty; name the image on each line (fill merged cells down)")
        if frame and not _FRAME.fullmatch(frame):
            raise Fault(self._column("frame"), frame, "the number of a frame, from 1, is wanted")
        try:
            return self.pictures.ref(self.source.prefix + path, column)
        except Fault as fault:
            near = self.near(path) if "no such file" in fault.why else None
            hint = f"; did you mean {near}?" if near else ""
            raise Fault(column, self._cell(row, "image"), fault.why + hint) from None

    def _words(self, row: Row, ours: str) -> str:
        text = self._cell(row, ours)
        return words(text, self._column(ours)) if text else ""

    # ---- boxes

    def _box_field(self) -> str:
        return self.columns["box"] if "box" in self.columns else ",".join(self._column(c) for c in CORNERS)

    def _box(self, row: Row, image: ImageRef) -> Box | None:
        if "box" in self.columns:
            cell = self._cell(row, "box")
            texts = [t.strip() for t in re.sub(r"^\[(.*)\]$", r"\1", cell).split(",")] if cell else []
            if cell and len(texts) != 4:
                raise Fault(self.columns["box"], cell, "four numbers x1,y1,x2,y2 are wanted, with points for decimals")
            corners = [_number(t, self.columns["box"], cell) for t in texts]
        else:
            cells = {c: self._cell(row, c) for c in CORNERS}
            empty = [self._column(c) for c in CORNERS if not cells[c]]
            if 0 < len(empty) < 4:
                raise Fault(empty[0], "", "empty, where other corners of the box are given; fill it in")
            corners = [] if empty else [_number(t, self._column(c), t) for c, t in cells.items()]
        if not corners:
            return None
        field = self._box_field()
        if self.source.boxes is None:
            return pixel_box([int(v) if v == int(v) else v for v in corners], field, image)
        scale = 1 if self.source.boxes == "normalised" else 1000
        if max(corners) > scale or (scale == 1000 and any(v != int(v) for v in corners)):
            raise Fault(field, corners, f"not {FRAMES[self.source.boxes]}, which --boxes declares; correct one of them")
        try:
            x1, y1, x2, y2 = (v / scale for v in corners)
            return Box(x1, y1, x2, y2)
        except BadInput as error:
            raise Fault(field, corners, str(error)) from None

    # ---- questions

    def _turn(self, row: Row, box: Box | None) -> Turn | None:
        asked, answer = self._cell(row, "question"), self._cell(row, "answer")
        if not asked and not answer:
            return None
        for ours, text, other in (("question", asked, "answer"), ("answer", answer, "question")):
            if not text:
                raise Fault(self._column(ours), "", f"empty, where the {other} is given; fill it in")
        question, truth = (self._boxed(ours, text, box) for ours, text in (("question", asked), ("answer", answer)))
        task = self.source.task or _told_by_boxes(question, truth)
        if task is Task.VG and not truth.boxes:
            raise Fault(self._column("answer"), answer, f"no {BOX_MARK} in an answer of VG; add it, and the box")
        if task in (Task.ROC, Task.RC) and not question.boxes:
            raise Fault(self._column("question"), asked, f"no {BOX_MARK} in a question of {task}; add it, and the box")
        return Turn(task, question, truth)

    def _boxed(self, ours: str, text: str, box: Box | None) -> BoxedText:
        marks = text.count(BOX_MARK)
        if marks > 1:
            raise Fault(self._column(ours), text, f"{marks} {BOX_MARK} marks, and a line has one box; keep one of them")
        if marks and box is None:
            raise Fault(self._column(ours), text, f"{BOX_MARK} in the text, and no box on the line; give it")
        return BoxedText(" ".join(text.split()), (box,) * marks if box else ())

    # ---- images

    def _of_image(self, row: Row, path: str) -> None:
        """What the line says of its image, remembered; two lines that differ leave the image in doubt."""
        new = {key: self._cell(row, key) for key in ("modality", "patient", "split", "side", "window")}
        if new["modality"]:
            new["modality"] = modality_of(new["modality"], self.source).value
        if new["split"]:
            new["split"] = SPLITS.get(new["split"].casefold(), "")
            if not new["split"]:
                raise Fault(self._column("split"), self._cell(row, "split"), "train, validation or test is wanted")
        new["side"] = new["side"].casefold()
        if new["side"] not in ("", "image", "patient"):
            raise Fault(self._column("side"), self._cell(row, "side"), "image or patient (whose left it is) is wanted")
        said = self.said.setdefault(path, {})
        if new["window"] and "window" not in said and self.source.open_images:
            self._check_window(new["window"], path)
        for key, value in new.items():
            if value and said.setdefault(key, (value, row.number))[0] != value:
                self.doubtful.add(path)
                other, number = said[key]
                raise Fault(
                    self._column(key), value, f"row {number} says {other} of the same image; correct one of them"
                )

    def _check_window(self, window: str, path: str) -> None:
        """Whether the picture can be made with it, which its values and tables alone tell: so it is made once."""
        try:
            if self.pictures.dicom(self.source.prefix + path) is None:
                raise Fault(self._column("window"), window, "the image is no DICOM, which alone has windows; empty it")
            open_image(self.source.root, ImageRef(path, window=window))
        except BadInput as error:
            raise Fault(self._column("window"), window, str(error).removeprefix(f"image {path}: ")) from None

    def _image(self, path: str, lines: list[_Line]) -> dict[int, Entry]:
        """What becomes of the lines of an image."""
        made = {line.place: Entry(str(line.row.file), line.row.number) for line in lines}
        if path in self.doubtful or _file_of(path) in self.doubtful:
            self.told[LEFT] += len(lines)
            return made
        try:
            samples = self._samples(path, lines)
        except Fault as fault:
            first = lines[0].row
            self.told[LEFT] += len(lines) - 1
            return made | {lines[0].place: faulty(first.file, first.number, fault, first.raw, first.value)}
        return made | {
            place: replace(made[place], samples=tuple(s for _, s in own))
            for place, own in itertools.groupby(samples, key=lambda s: s[0])
        }

    def _samples(self, path: str, lines: list[_Line]) -> list[tuple[int, Sample]]:
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
        found = [(lines[0].place, s) for s in ask(record, self.asking, self.told)]
        captions: set[str] = set()
        for line in lines:
            found += [(line.place, s) for s in self._own(line, record, line.caption not in captions)]
            captions.add(line.caption)
            if line.turn is None and line.box is None and not line.caption:
                self.told["lines that name an image and no question, box or caption"] += 1
        kept = {s.id for s in draw([s for _, s in found], self.source.max_questions, self.source.seed)}
        if len(kept) < len(found):
            self.told[f"questions beyond max_questions={self.source.max_questions} an image"] += len(found) - len(kept)
        return sorted(((place, s) for place, s in found if s.id in kept), key=lambda s: s[0])

    def _own(self, line: _Line, record: Annotated, new: bool) -> Iterator[Sample]:
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

    def _objects(self, lines: list[_Line]) -> tuple[tuple[str, Box], ...]:
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
            facts = self.pictures.dicom(self.source.prefix + path)
            if facts is not None:
                return facts.modality
        try:
            return modality_of(given, self.source)
        except Fault as fault:
            raise Fault(self._column("modality"), fault.value, fault.why) from None

    def _group(self, path: str) -> str:
        """The patient of an image whose lines do not tell."""
        if self.source.group is not None:
            return grouped(self.source, path)
        facts = self.pictures.dicom(self.source.prefix + path)
        if facts is not None and facts.patient:
            return facts.patient
        if "patient" in self.columns:
            self.told["images without a patient, each a group of its own"] += 1
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
        raise Fault(field, cell, why)
    raise Fault(field, cell, "empty; four numbers are wanted" if not text else "not a number; correct it")


def _told_by_boxes(question: BoxedText, answer: BoxedText) -> Task:
    if answer.boxes:
        return Task.VG
    if question.boxes:
        bare = len(answer.text.split()) <= BARE_WORDS and answer.text[-1] not in ".!?"
        return Task.ROC if bare else Task.RC
    return Task.QA


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
