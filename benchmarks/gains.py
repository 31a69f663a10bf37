"""What selection or reflection gained, over several seeds: means of finished runs, 95 % intervals over the seeds.

    python -m benchmarks.gains RUN RUN ...                      every choice of candidates beside the first beam
    python -m benchmarks.gains RUN RUN ... --against RUN ...    first beams of these runs beside those, seed by seed

A RUN is a folder under runs/. Intervals are Student's, of the mean difference of pairs (a run, a seed); they tell of
seeds, which draw the phantoms, the split and all weights anew, where a run's own intervals tell of its test images.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Row, add_outputs, show

from clinkd.pipeline.runs import open_run
from clinkd.records import BadInput, Task
from clinkd.reporting.compare import compare_paired_values
from clinkd.scoring.measure import FACTS
from clinkd.scoring.metrics import PRIMARY_METRIC

FIRST = "first beam"


def choices(run: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Task, metric and row of a finished run: its score."""
    found: dict[str, dict[str, dict[str, Any]]] = open_run(run).scores()["selection"]
    return found


def row(what: str, ours: Sequence[float], theirs: Sequence[float], rival: str) -> Row:
    found = compare_paired_values(ours, theirs)
    interval = "no interval" if found.interval is None else "[{:+.1f}, {:+.1f}]".format(*found.interval)
    told = f"{what}: {found.mean:+.1f} {interval} over {found.pairs} seeds"
    return Row(told, statistics.fmean(ours), statistics.fmean(theirs), rival, "x100")


def rows(runs: Sequence[Path], against: Sequence[Path]) -> list[Row]:
    ours, theirs = [choices(r) for r in runs], [choices(r) for r in against]
    made = []
    for task in Task:
        for metric in (PRIMARY_METRIC[task], FACTS):
            of = [run[task.value][metric] for run in ours if metric in run.get(task.value, {})]
            if len(of) != len(ours) or any(line[FIRST]["score"] is None for line in of):
                continue
            firsts = [line[FIRST]["score"] for line in of]
            if against:
                others = [run[task.value][metric][FIRST]["score"] for run in theirs]
                made.append(row(f"{task.value} {metric}", firsts, others, "without"))
                continue
            for name in of[0]:
                if name != FIRST:
                    made.append(row(f"{task.value} {metric}, {name}", [x[name]["score"] for x in of], firsts, FIRST))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--against", nargs="+", type=Path, default=[], help="as many runs, in the order of their seeds")
    add_outputs(parser)
    args = parser.parse_args()
    try:
        if args.against and len(args.against) != len(args.runs):
            raise BadInput(f"--against: {len(args.against)} runs for {len(args.runs)}; give one for each")
        show(rows(args.runs, args.against), args)
    except BadInput as error:
        parser.exit(2, f"gains: {error}\n")


if __name__ == "__main__":
    main()
