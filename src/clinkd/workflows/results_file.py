"""The results of an ablation as a CSV file that lasts: a line a finished run, kept when the run is gone.

    row,seed,config,code,steps,passes,VG F1,...,first beam VG F1,...,blind VG F1,...

`config` identifies all that decides the run but its code: equal digits mean the same data, knobs and seed. `code`: the
version of the package and of its stages. Scores are x100; a cell is empty where a figure was not computed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clinkd.pipeline.stages import VERSIONS
from clinkd.records import BadInput
from clinkd.reporting.ablation import COLUMNS, FinishedRun
from clinkd.storage import locked, make_folder, write_atomic
from clinkd.version import __version__

_HEADS = ("row", "seed", "config", "code", "steps", "passes")
_KINDS = {"": "scores", "first beam ": "first_beam", "blind ": "blind"}
_SCORES = tuple(f"{kind}{column}" for kind in _KINDS for column in COLUMNS)


class ResultLine(NamedTuple):
    """A finished run, and what it is a run of."""

    config: str
    code: str
    run: FinishedRun


def identify_code() -> str:
    """The version of the package, and six digits for those of its stages."""
    return f"{__version__}+{hashlib.sha256(json.dumps(VERSIONS, sort_keys=True).encode()).hexdigest()[:6]}"


def read_results(file: Path) -> list[ResultLine]:
    """The lines of a results file; none where it does not exist. Raises BadInput naming the line that is none."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as text:
        lines = csv.DictReader(text)
        if missing := [head for head in _HEADS if head not in (lines.fieldnames or ())]:
            raise BadInput(f"{file}: no column {missing[0]}, so it is no results file of clinkd ablate; name another")
        if unknown := [head for head in lines.fieldnames or () if head not in (*_HEADS, *_SCORES)]:
            raise BadInput(f"{file}: column {unknown[0]} is none of a results file; leave it out")
        return [_read_line(file, lines.line_num, line) for line in lines]


def _read_line(file: Path, number: int, line: dict[str, str]) -> ResultLine:
    try:
        scores = {
            field: {c: float(line[f"{kind}{c}"]) for c in COLUMNS if line.get(f"{kind}{c}")}
            for kind, field in _KINDS.items()
        }
        run = FinishedRun(line["row"], int(line["seed"]), int(line["steps"]), float(line["passes"]), **scores)
        return ResultLine(line["config"], line["code"], run)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{file}, line {number}: {error}; correct it, or leave the line out") from None


def add_result(file: Path, added: ResultLine) -> None:
    """Add a line to a results file, which may not exist yet. Two processes may add to one file."""
    make_folder(file.parent)
    with locked(file.parent):
        write_atomic(file, _spell_lines([*read_results(file), added]))


def _spell_lines(lines: Sequence[ResultLine]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    heads = [h for h in _SCORES if any(_find_score(line.run, h) is not None for line in lines)]
    table.writerow([*_HEADS, *heads])
    for config, code, run in lines:
        scores = ("" if (v := _find_score(run, h)) is None else f"{v:.4f}" for h in heads)
        table.writerow([run.row, run.seed, config, code, run.steps, f"{run.passes:.4f}", *scores])
    return text.getvalue()


def _find_score(run: FinishedRun, head: str) -> float | None:
    kind = next(k for k in reversed(_KINDS) if head.startswith(k))
    scores: dict[str, float] = getattr(run, _KINDS[kind])
    return scores.get(head.removeprefix(kind))
