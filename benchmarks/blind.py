"""What can be scored without the image: each image-blind baseline on the validation and test splits of a data set.

python -m benchmarks.blind --data mydata      # an imported data set with its splits
python -m benchmarks.blind                    # the phantoms of the demo, seed 0
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from benchmarks.report import Row, add_outputs, show

from clinkd.data.phantoms import write_phantoms
from clinkd.data.readers.source import Source
from clinkd.experiments import demo
from clinkd.records import SPLITS, Sample, Table, Task
from clinkd.reporting.tables import to_markdown
from clinkd.scoring.blind.baselines import BASELINES
from clinkd.scoring.blind.choice import BlindTrial, answer_blindly, try_baselines
from clinkd.scoring.measure import Rules
from clinkd.workflows.answer import lexicon_of, read_test_set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data set that `clinkd data import` has made (phantoms)")
    parser.add_argument("--iou", type=float, default=0.5, help="from which a box is found (0.5)")
    add_outputs(parser)
    args = parser.parse_args()
    train, validation, test = _read_splits(args.data)
    rules = Rules(args.iou, lexicon_of([*train, *test]))
    started = time.process_time()
    answers, choice = answer_blindly(train, validation, test, rules)
    seconds = time.process_time() - started
    on_test = try_baselines(test, answers, rules)
    tasks = [t for t in Task if any(trial.task is t for trial in on_test)]
    lines = [
        (name, *(_spell(trials, task, name) for task in tasks for trials in (choice.trials, on_test)))
        for name in BASELINES
        if name in answers
    ]
    best = [choice.pick(task, None, BASELINES) or "-" for task in tasks]
    heads = ("", *(f"{task.value}, {split}" for task in tasks for split in (choice.chosen_on, "test")))
    chosen = ", ".join(f"{task.value} {name}" for task, name in zip(tasks, best, strict=True))
    notes = (
        f"x100, mean over modalities: VG F1, ROC recall, QA accuracy; of RC and MIA the F1 of words. Chosen: {chosen}.",
        f"{len(train):,} known questions, {len(test):,} asked, {seconds:.1f} CPU seconds for all.",
    )
    if not args.json:
        print(to_markdown(Table("Without the image", heads, tuple(lines), notes)))
    named = [(task, name, _find_figures(on_test, task, name), rival) for task, rival in zip(tasks, best, strict=True)
             for name in BASELINES]  # fmt: skip
    rows = [
        Row(f"{task.value} on the test split, {name}", figure, _find_figures(on_test, task, rival), rival, "x100")
        for task, name, figure, rival in named
        if not np.isnan(figure)
    ]
    show(rows, args)


def _read_splits(data: Path | None) -> Sequence[Sequence[Sample]]:
    """The questions of training, validation and test."""
    if data is not None:
        test_set = read_test_set(Source(data))
        return test_set.train, test_set.validation, test_set.samples
    with tempfile.TemporaryDirectory() as folder:
        samples = write_phantoms(Path(folder), demo().data.phantoms, 0, 2, lambda *_: None)
    return [[s for s in samples if s.split == split] for split in SPLITS]


def _find_figures(trials: Sequence[BlindTrial], task: Task, baseline: str) -> float:
    """The mean over modalities, x100; NaN where the baseline has no answers."""
    figures = [t.figure for t in trials if (t.task, t.baseline) == (task, baseline)]
    return 100 * float(np.mean(figures)) if figures else float("nan")


def _spell(trials: Sequence[BlindTrial], task: Task, baseline: str) -> str:
    figure = _find_figures(trials, task, baseline)
    return "-" if np.isnan(figure) else f"{figure:.1f}"


if __name__ == "__main__":
    main()
