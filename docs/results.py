"""Write docs/RESULTS.md: the tables of every file in docs/results, as `clinkd ablate --minutes 0` prints them.

python -m docs.results
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from clinkd.experiments import CLAIMS, ROWS, Claim
from clinkd.records import BadInput
from clinkd.reporting.ablation import AblationGrid, ablation_tables
from clinkd.reporting.tables import to_markdown
from clinkd.workflows.results_file import ResultLine, read_results

FOLDER = Path(__file__).parent / "results"
PAGE = FOLDER.parent / "RESULTS.md"
NOTE = "<!-- Written by `python -m docs.results` from docs/results; add runs there, do not change this page. -->"


def write_page(folder: Path = FOLDER) -> str:
    """The page. Raises BadInput naming a file that holds no results, or a row that its claim does not have."""
    return "\n".join(_write_lines(sorted(folder.glob("*.csv")))).rstrip() + "\n"


def _write_lines(files: Sequence[Path]) -> Iterator[str]:
    yield f"# Results\n\n{NOTE}\n"
    yield "What [ablations](ABLATION.md) found. A line of a file in `docs/results` is a finished run; a test makes the"
    yield "tables from these files. A row short of runs says so. What it means is told in [LOG.md](../LOG.md).\n"
    if not files:
        yield "No file is there yet."
    for file in files:
        lines = read_results(file)
        for base in dict.fromkeys(line.base for line in lines):  # an older version did not write it
            name = base or file.stem.partition("-")[0]
            yield from _write_section(file, name, [line for line in lines if line.base == base])


def _write_section(file: Path, base: str, lines: Sequence[ResultLine]) -> Iterator[str]:
    name = file.stem.rpartition("-")[2]
    claim: Claim | None = CLAIMS.get(name)
    rows = claim.rows if claim else ROWS
    if unknown := [line.run.row for line in lines if line.run.row not in rows]:
        known = f"claim {name}" if claim else "an ablation without a claim"
        raise BadInput(
            f"{file}: row {unknown[0]} is none of {known}; name the file after its claim, as small-parts.csv"
        )
    kept = choose_lines(lines)
    seeds, folds = (sorted({getattr(line.run, part) for line in kept}) for part in ("seed", "fold"))
    yield f"## `{base}`: {claim.question if claim else 'the rows of Table 2'}\n"
    data = f" --set data.path=FOLDER --set data.folds={folds[-1]}" if folds[-1] else ""
    of_claim = f" --claim {name}" if claim else f" --rows {','.join(dict.fromkeys(line.run.row for line in kept))}"
    given = f"{of_claim} --seeds {','.join(map(str, seeds))}"
    yield f"`clinkd ablate {base}{data}{given} --results docs/results/{file.name}`\n"
    yield f"{len(kept)} runs; code {', '.join(dict.fromkeys(line.code for line in kept))}.{_tell_others(lines, kept)}\n"
    grid = AblationGrid(rows, [line.run for line in kept], claim=claim)
    yield from map(to_markdown, ablation_tables(grid, {"Rows": tuple(rows)}))


def choose_lines(lines: Sequence[ResultLine]) -> list[ResultLine]:
    """Of each row and unit the last line. Lines of other knobs than the newest of the base, or of the row, are left
    out: they are of another experiment."""
    base = lines[-1].knobs.partition("-")[0]
    same = [line for line in lines if line.knobs.partition("-")[0] == base]
    newest = {line.run.row: line.knobs for line in same}
    kept = {(line.run.row, line.run.unit): line for line in same if line.knobs == newest[line.run.row]}
    return [*kept.values()]


def _tell_others(lines: Sequence[ResultLine], kept: Sequence[ResultLine]) -> str:
    others = len(lines) - len(kept)
    return f" {others} older lines of other knobs, or of runs made again, are left out." if others else ""


if __name__ == "__main__":
    PAGE.write_text(write_page())
