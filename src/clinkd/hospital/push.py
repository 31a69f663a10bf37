"""Send the answers of `clinkd ask` to an archive as DICOM objects, each once: reports, segmentations on request."""

from __future__ import annotations

import contextlib
import fcntl
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from clinkd.data.dicom_objects import WARNINGS, CodeMap, Model, Region, ReportedAnswer, write_report, write_segmentation
from clinkd.data.images import locate
from clinkd.data.images.limits import ON_DISK
from clinkd.data.images.upload import PLACE
from clinkd.data.readers.rows import RowResult, table_rows, use_cell
from clinkd.pacs import ArchiveUnreachable, read_instance_header
from clinkd.records import BadInput, Box
from clinkd.storage import JsonLines, progress, sha256_file, write_atomic
from clinkd.version import __version__

_WANTED = ("image", "sha256", "question", "answer", "boxes", "box_names", "warnings", "model", "error")
_NEXT_WARNING = re.compile(rf"; (?=(?:{'|'.join(WARNINGS)}): )")


class Storing(Protocol):
    """The part of an archive that takes objects."""

    def store(self, content: bytes) -> None: ...


@dataclass(frozen=True)
class PushPlan:
    """The answers to send, and how. `destination`: the name of the archive in the journal."""

    answers: Path
    images: Path
    destination: str
    segment: bool = False
    code_map: CodeMap | None = None

    @property
    def journal(self) -> Path:
        """What was stored where, beside the answers."""
        return self.answers.with_name(f"{self.answers.name}.pushed.jsonl")


@dataclass
class PushResult:
    """Objects that were sent, and that the journal had; answers; and one line for each answer that was not sent."""

    rows: int = 0
    sent: int = 0
    before: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ObjectFolder:
    """An archive that is a folder: a file for each object, by its UID."""

    folder: Path

    def store(self, content: bytes) -> None:
        write_atomic(self.folder / f"{read_instance_header(content).instance}.dcm", content)


class Nowhere:
    """An archive that keeps nothing: objects are made, to see that they can be."""

    def store(self, content: bytes) -> None:
        pass


def push(plan: PushPlan, archive: Storing) -> PushResult:
    """Store the objects of all answers. What the journal has is not sent again, and has the same UID if it is.

    A row with an error, of a plain picture, or of an image that was changed since is one of the problems, and so is
    what the archive refuses. Raises BadInput where the answers cannot be read, and ArchiveUnreachable.
    """
    rows = list(_read_rows(plan.answers))
    if not rows:
        raise BadInput(f"{plan.answers}: holds no answer")
    result = PushResult(len(rows))
    with _PushJournal(plan) as journal, progress(len(rows), "push", "answers") as advance:
        for name, row in rows:
            try:
                for content in _make_objects(row, plan, journal.answered):
                    journal.store_once(content, archive, result)
            except ArchiveUnreachable:
                raise
            except BadInput as error:
                result.problems.append(f"row {name}: {error}")
            advance(1)
    return result


class _PushJournal:
    """What was stored, and when the answers were given: at the last change of their file, as it was first seen."""

    def __init__(self, plan: PushPlan) -> None:
        self.plan, self.lines = plan, JsonLines(plan.journal)

    def __enter__(self) -> _PushJournal:
        self._lock = self.plan.answers.open("rb")
        if self.plan.destination:
            with contextlib.suppress(OSError):  # not where there are no locks
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self._lock.close()
                    told = "another process sends these answers; wait for it, or end it"
                    raise BadInput(f"{self.plan.answers}: {told}") from None
        records = list(self.lines.read())
        self.stored = {record["uid"] for record in records if record.get("to") == self.plan.destination}
        digest = sha256_file(self.plan.answers)
        seen = next((record["answered"] for record in records if record.get("answers") == digest), None)
        self.answered = datetime.fromtimestamp(self.plan.answers.stat().st_mtime).replace(microsecond=0)
        if seen is not None:
            self.answered = datetime.fromisoformat(seen)
        elif self.plan.destination:
            self.lines.append({"answers": digest, "answered": self.answered.isoformat()})
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()
        self.lines.close()

    def store_once(self, content: bytes, archive: Storing, result: PushResult) -> None:
        """Store an object that is not there yet, and then write it down."""
        uid = read_instance_header(content).instance
        if uid in self.stored:
            result.before += 1
            return
        archive.store(content)
        self.stored.add(uid)
        result.sent += 1
        if self.plan.destination:
            self.lines.append({"to": self.plan.destination, "uid": uid})


def _make_objects(row: Mapping[str, Any], plan: PushPlan, answered: datetime) -> Iterator[bytes]:
    if error := str(row["error"]):
        raise BadInput(f"has no answer: {error}")
    image = str(row["image"])
    path, frame = locate(plan.images, image, f"image {image}")
    if not path.is_file():
        raise BadInput(f"image {image}: no such file in {plan.images}; give the folder that the questions were about")
    if sha256_file(path) != row["sha256"]:
        raise BadInput(f"image {image}: was changed since the question was asked; ask again")
    told = _read_answer(row, frame, answered)
    content = path.read_bytes()
    try:
        yield write_report(content, told, plan.code_map, ON_DISK)
        if plan.segment and told.regions:
            yield write_segmentation(content, told, plan.code_map, ON_DISK)
    except BadInput as error:
        raise BadInput(f"image {image}: {str(error).removeprefix(f'{PLACE}: ')}") from None


# ---- the answers ----------------------------------------------------------------------------------------------------


def _read_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and cells of each row. Raises BadInput where columns of `clinkd ask` are missing."""
    if not file.is_file():
        raise BadInput(f"{file}: no such file; give the answers of `clinkd ask FOLDER --out answers.csv`")
    for row in table_rows(file):
        if isinstance(row, RowResult):
            raise BadInput(f"{file}: row {row.row} cannot be read ({row.problem and row.problem.why}); ask again")
        cells = {key: use_cell("" if value is None else value, key) for key, value in row.value.items()}
        if missing := [column for column in _WANTED if column not in cells]:
            raise BadInput(f"{file}: has no column {missing[0]}; give what this version of `clinkd ask` wrote")
        yield str(cells.get("id") or row.number), cells


def _read_answer(row: Mapping[str, Any], frame: int | None, answered: datetime) -> ReportedAnswer:
    boxes = [Box(*(float(f"{x:g}") for x in corners)) for corners in _split(row["boxes"], _read_corners)]
    names = _split(row["box_names"], str.strip)
    if len(names) != len(boxes):
        raise BadInput(f"{len(boxes)} boxes have {len(names)} names; ask again")
    regions = [Region(box, name, "model") for box, name in zip(boxes, names, strict=True)]
    name, _, digest = str(row["model"]).rpartition("@")
    model = Model(name, f"{__version__}+{digest}")
    return ReportedAnswer(
        str(row["question"]),
        str(row["answer"]),
        regions,
        model,
        frame,
        _read_confidence(row.get("confidence")),
        _read_warnings(row["warnings"]),
        answered,
    )


def _split(cell: Any, read: Any) -> list[Any]:
    """The parts of a cell; of JSON they are parts already."""
    if isinstance(cell, list):
        return cell
    return [read(part) for part in str(cell).split(";")] if str(cell) else []


def _read_corners(text: str) -> list[float]:
    try:
        corners = [float(number) for number in text.split()]
    except ValueError:
        corners = []
    if len(corners) != 4:
        raise BadInput(f"boxes = {text.strip()}: four fractions are wanted")
    return corners


def _read_confidence(cell: Any) -> float | None:
    """None where the answers have no such column, as those of older versions, or it is empty."""
    if cell in (None, ""):
        return None
    try:
        return float(cell)
    except ValueError:
        raise BadInput(f"confidence = {cell}: a probability from 0 to 1 is wanted") from None


def _read_warnings(cell: Any) -> list[tuple[str, str]]:
    if isinstance(cell, list):
        return [(warning["kind"], warning["message"]) for warning in cell]
    parts = [part.partition(": ") for part in _NEXT_WARNING.split(str(cell))] if str(cell) else []
    return [(kind, message) for kind, _, message in parts]
