"""The only room that knows the order of things: plan a run, run it, see how far it is, and why a stage runs again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clinkd import crew
from clinkd.config import RunConfig
from clinkd.pipeline.estimate import Estimate, Forecast, Least, least
from clinkd.pipeline.graph import Outlook, Stage, StageStatus, Work, execute, outlook
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.runs import (
    RUNS,
    Asked,
    Corrected,
    Exported,
    Leaving,
    Run,
    begin,
    find,
    finish,
    known,
    open_run,
    table,
)

if TYPE_CHECKING:
    from clinkd.pipeline.ablation import Ablation

__all__ = [
    "RUNS",
    "Asked",
    "Corrected",
    "Estimate",
    "Exported",
    "Forecast",
    "Least",
    "Leaving",
    "Outlook",
    "Run",
    "Stage",
    "StageStatus",
    "Work",
    "ablate",
    "ask",
    "correct",
    "execute",
    "export",
    "find",
    "forecast",
    "known",
    "least",
    "open_run",
    "outlook",
    "plan",
    "report",
    "run",
    "table",
]


def plan(config: RunConfig) -> list[Stage]:
    """The stages of a run, each after what it needs; the last one holds the table and the report."""
    from clinkd.pipeline.stages import plan as stages

    return stages(config)


def run(config: RunConfig, runs: Path = RUNS, replace: bool = False) -> Run:
    """Do what is not done yet of a run in `runs/NAME`, and return it finished.

    Several processes (`torchrun --nproc-per-node N -m clinkd run ...`) do it together.

    Raises BadInput where the folder holds another config and `replace` is not given, on a full disk, and on bad data.
    """
    from clinkd.pipeline import correcting

    Machine.demand(config)
    if config.reflect:
        correcting.demand(config.reflect)
    stages = plan(config)
    folder = runs / config.name
    crew.alone(lambda: begin(config, stages, runs, replace))
    execute(stages, folder)
    done = open_run(folder)
    crew.alone(lambda: finish(done))
    return done


def ablate(
    base: RunConfig, rows: Sequence[str], sweeps: Sequence[str], seeds: Sequence[int], runs: Path = RUNS,
    workers: int = 1, say: Callable[[str], object] = print,
) -> Ablation:  # fmt: skip
    """Make the runs of an ablation under `runs`, and tell what each change did; `say` is told of each run that ends.

    Raises BadInput, before any work, for an unknown row and for what no row can be made of.
    """
    from clinkd.pipeline.ablation import Plan
    from clinkd.pipeline.ablation import ablate as make

    return make(Plan.of(base, rows, sweeps, seeds), runs, workers, say)


def forecast(config: RunConfig, runs: Path = RUNS) -> Forecast:
    """What each stage of a run under `runs` will take, from a run in small, in a process of its own.

    Raises BadInput where that one fails.
    """
    from clinkd.pipeline.estimate import forecast as measured

    return measured(config, [look.status for look in outlook(plan(config), runs)], runs)


def export(run: Run, out: Path) -> Exported:
    """Write the run's final model, with its processor and a card, to a new folder, and load it again to compare.

    Raises BadInput for a run that is not finished, and where `out` holds something.
    """
    from clinkd.pipeline.exporting import export as write

    return write(run, out)


def ask(run: Run, image: Path, question: str, overlay: Path | None = None) -> Asked:
    """Ask the run's final model about one image; the boxes of the answer are drawn on a PNG at `overlay`.

    Raises BadInput for a run that is not finished and for a file that is no image.
    """
    from clinkd.pipeline.asking import ask as answer

    return answer(run, image, question, overlay)


def correct(run: Run, round: int, settings: Sequence[str], out: Path | None) -> Corrected | Leaving:
    """Correct the answers of one of the run's rounds once more, into the file `out`; without it, tell what would leave.

    `settings` are knobs as `--set` takes them. Raises BadInput where the answers are not there yet.
    """
    from clinkd.pipeline.correcting import recorrect

    return recorrect(run, round, settings, out)


def report(run: Run, out: Path | None = None, share: bool = False) -> Path:
    """Write the page of a finished run again, without scoring, and return where it is; `share`: one to be mailed,
    without pixels and without a word that people or models wrote.

    Raises BadInput for a run that is not finished.
    """
    from clinkd.pipeline.reporting import report as write

    return write(run, out, share)
