"""The results of an ablation as a CSV file that lasts: a line a finished run, kept when the run is gone.

    base,row,seed,fold,config,knobs,code,steps,passes,VG F1,...,first beam VG F1,...,blind VG F1,...,ct VG F1,...

`base`: the run that the row changes (`small`, `demo`, `real`). `fold`: of a cross-validation, whose folds are runs of
their own; else empty. `config` identifies all that decides the run but its code: equal digits mean the same data, knobs
and seed. `knobs`: digits of the knobs of the base and of the row, without seed, fold and the place of the data, so that
the lines of one experiment are known without the data. `code`: the version of the package and of its stages. Scores are
x100, log-likelihoods of the truth in nats; a cell is empty where a figure was not computed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clinkd.config import RunConfig
from clinkd.pipeline.stages import VERSIONS
from clinkd.records import BadInput
from clinkd.reporting.ablation import BY_MODALITY, COLUMNS, FinishedRun
from clinkd.settings import without_defaults
from clinkd.storage import locked, make_folder, write_atomic
from clinkd.version import __version__

_HEADS = ("base", "row", "seed", "fold", "config", "knobs", "code", "steps", "passes")
_ADDED = ("base", "fold", "knobs")  # files of an older version lack them
_KINDS = {"": "scores", "first beam ": "first_beam", "blind ": "blind"}
# each column of scores, with the field of a run and the column there
_SCORES = {f"{kind}{column}": (field, column) for kind, field in _KINDS.items() for column in COLUMNS} | {
    column: ("by_modality", column) for column in BY_MODALITY
}


class ResultLine(NamedTuple):
    """A finished run, and what it is a run of. `base` and `knobs` are empty in lines of an older version."""

    config: str
    code: str
    run: FinishedRun
    base: str = ""
    knobs: str = ""


def identify_code() -> str:
    """The version of the package, and six digits for those of its stages."""
    return f"{__version__}+{hashlib.sha256(json.dumps(VERSIONS, sort_keys=True).encode()).hexdigest()[:6]}"


def identify_knobs(base: RunConfig, row: RunConfig) -> str:
    """Six digits for the knobs of the base and six for those of a row, joined by "-"; seed, fold, name and the place of
    the data do not count."""
    return "-".join(_hash_knobs(config) for config in (base, row))


def _hash_knobs(config: RunConfig) -> str:
    tree = without_defaults(config.identity(), RunConfig)
    tree["data"] = {name: value for name, value in tree.get("data", {}).items() if name not in ("path", "fold")}
    essence = {name: value for name, value in tree.items() if name not in ("name", "seed")}
    return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()[:6]


def read_results(file: Path) -> list[ResultLine]:
    """The lines of a results file; none where it does not exist. Raises BadInput naming the line that is none."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as text:
        lines = csv.DictReader(text)
        if missing := [h for h in _HEADS if h not in _ADDED and h not in (lines.fieldnames or ())]:
            raise BadInput(f"{file}: no column {missing[0]}, so it is no results file of clinkd ablate; name another")
        if unknown := [head for head in lines.fieldnames or () if head not in (*_HEADS, *_SCORES)]:
            raise BadInput(f"{file}: column {unknown[0]} is none of a results file; leave it out")
        return [_read_line(file, lines.line_num, line) for line in lines]


def _read_line(file: Path, number: int, line: dict[str, str]) -> ResultLine:
    try:
        scores: dict[str, dict[str, float]] = {field: {} for field, _ in _SCORES.values()}
        for head, (field, column) in _SCORES.items():
            if line.get(head):
                scores[field][column] = float(line[head])
        fold = int(line.get("fold") or 0)
        steps, passes = int(line["steps"]), float(line["passes"])
        run = FinishedRun(line["row"], int(line["seed"]), steps, passes, **scores, fold=fold)
        return ResultLine(line["config"], line["code"], run, line.get("base") or "", line.get("knobs") or "")
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
    for config, code, run, base, knobs in lines:
        scores = ("" if (v := _find_score(run, h)) is None else f"{v:.4f}" for h in heads)
        about = (base, run.row, run.seed, run.fold or "", config, knobs, code, run.steps, f"{run.passes:.4f}")
        table.writerow([*about, *scores])
    return text.getvalue()


def _find_score(run: FinishedRun, head: str) -> float | None:
    field, column = _SCORES[head]
    scores: dict[str, float] = getattr(run, field)
    return scores.get(column)
