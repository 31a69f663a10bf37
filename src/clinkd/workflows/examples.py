"""A few images of a run's test split with a question each, to be asked at once. Imports no torch."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clinkd.data.images import encode_picture, open_image
from clinkd.pipeline.prepared import read_data_source, read_split
from clinkd.pipeline.runs import EXAMPLES, Run
from clinkd.records import Sample, Task
from clinkd.storage import make_folder, publish, read_cell, write_atomic, write_csv

SHEET = "sheet.csv"  # as `clinkd data import` reads one
COUNT = 3
_COLUMNS = ("image", "modality", "side", "question", "answer", "x1", "y1", "x2", "y2")


@dataclass(frozen=True, slots=True)
class ExampleQuestion:
    """An image file and a question about it."""

    image: Path
    question: str


def write_examples(run: Run) -> list[ExampleQuestion]:
    """The examples in the run's folder, which are written there if they are missing.

    Raises BadInput where the images of the run cannot be opened any more.
    """
    folder = run.folder / EXAMPLES
    if not folder.is_dir():
        prepared = run.stage("prepare")
        draft = folder.with_name(f".{EXAMPLES}")
        make_folder(draft)
        _write_sheet(draft, _choose(read_split(prepared, "test")), read_data_source(prepared).root)
        publish(draft, folder)
    with (folder / SHEET).open(encoding="utf-8", newline="") as sheet:
        return [ExampleQuestion(folder / row["image"], read_cell(row["question"])) for row in csv.DictReader(sheet)]


def _choose(samples: Sequence[Sample]) -> list[Sample]:
    """Questions that can be typed as they are, each about another image; one of each task first."""
    plain = [s for s in samples if len(s.images) == len(s.turns) == 1 and not s.question.boxes]
    plain = [s for s in plain if len(s.answer.boxes) <= 1]
    firsts = [s for task in Task for s in [s for s in plain if s.task is task][:1]]
    by_image = {s.images[0]: s for s in reversed([*firsts, *plain])}
    return sorted(by_image.values(), key=[*firsts, *plain].index)[:COUNT]


def _write_sheet(folder: Path, samples: Sequence[Sample], root: Path) -> None:
    with (folder / SHEET).open("w", encoding="utf-8", newline="") as sheet:
        rows = _write_rows(folder, samples, root)
        write_csv(sheet, [_COLUMNS, *([row.get(name, "") for name in _COLUMNS] for row in rows)])


def _write_rows(folder: Path, samples: Sequence[Sample], root: Path) -> Iterator[dict[str, object]]:
    for number, sample in enumerate(samples, start=1):
        picture = open_image(root, sample.images[0])
        name = f"example-{number}.png"  # not the name of its file, which may be a patient's
        write_atomic(folder / name, encode_picture(picture))
        texts = {"question": sample.question.text, "answer": sample.answer.text}
        row: dict[str, object] = {"image": name, "modality": sample.modality.value, "side": sample.side, **texts}
        for box in sample.answer.boxes:
            width, height = picture.size
            row |= {"x1": box.x1 * width, "y1": box.y1 * height, "x2": box.x2 * width, "y2": box.y2 * height}
        yield row
