"""The method as a graph: plan a run, run it, see how far it is, and why a stage runs again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from clinkd import distributed
from clinkd.config import RunConfig
from clinkd.pipeline.cautions import caution_bases
from clinkd.pipeline.damage import RUNS
from clinkd.pipeline.graph import CACHE, Stage, execute
from clinkd.pipeline.machine import Machine, share_rows
from clinkd.pipeline.pace import estimate_left, spell_left
from clinkd.pipeline.runs import RUN_RECORD, Run, begin_run, finish_run, open_run
from clinkd.pipeline.stages import plan

__all__ = [
    "cautions",
    "correcting",
    "damage",
    "graph",
    "machine",
    "models",
    "pace",
    "plan",
    "pooling",
    "prepared",
    "report",
    "run",
    "runs",
    "stages",
    "steps",
]


def run(config: RunConfig, runs: Path = RUNS, replace: bool = False) -> Run:
    """Do every stage that is not done yet of the run in `runs/NAME`, and return the finished run; of a
    cross-validation, first those of the folds' runs in `runs/NAME-fold-1` and so on.

    Several processes may share the work (`torchrun --nproc-per-node N -m clinkd run ...`); rows that they cannot share
    evenly are changed to the nearest number, and a line says so.

    Raises BadInput if the folder holds another config and `replace` is false, on a full disk, and on bad data.
    """
    Machine.demand(config)
    config, lines = share_rows(config, distributed.size())
    lines += [f"caution  {line}" for line in caution_bases(config)]  # each process: a refusal ends them all
    if distributed.is_main():
        print(*(f"{line}\n" for line in lines), sep="", end="", file=sys.stderr, flush=True)
    return _run(config, runs, replace)


def _run(config: RunConfig, runs: Path, replace: bool) -> Run:
    from clinkd.pipeline import correcting

    if config.reflect:
        correcting.demand_reflection(config.reflect)
    stages, data = plan(config), config.data
    folder, folds = runs / config.name, config.fold_runs()
    _demand_wheels(config, plan(folds[0]) if folds else stages, runs / CACHE)
    distributed.on_main_process(lambda: begin_run(config, stages, runs, replace))
    for fold in folds:
        _run(fold, runs, replace)
        distributed.on_main_process((folder / RUN_RECORD).touch)  # of the runs here, this one stays the newest
    part = f"fold {data.fold} of {data.folds}" if data.fold else f"{data.folds} folds pooled" if data.folds else ""

    def spell_rest(number: int) -> str:
        left = spell_left(estimate_left(stages, number, runs / CACHE))
        return f"{left} of this fold" if left and data.fold else left

    execute(stages, folder, part, spell_rest)
    finished_run = open_run(folder)
    distributed.on_main_process(lambda: finish_run(finished_run))
    return finished_run


def _demand_wheels(config: RunConfig, stages: Sequence[Stage], cache: Path) -> None:
    """Raises BadInput, before any work, if a stage that is not done yet needs a package that is not installed. What is
    done needs none, so a run that was carried to another machine is as finished there."""
    ahead = {stage.name for stage in stages if not (cache / stage.key).is_dir()}
    needed = {"eyes": "model.tiny.eyes", "probe": "evaluate.probe"}
    if config.select.clip.eyes and "clip" in ahead:
        from clinkd.clip.crops import demand_wheels

        demand_wheels()
    for knob in (needed[name] for name in needed if name in ahead):
        from clinkd.model.eyes.network import demand_wheel

        demand_wheel(knob)
