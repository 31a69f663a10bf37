"""Pool the folds of a cross-validation: their test splits, answers, baselines, times and cautions. Imports no torch."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from clinkd.config import EvaluateConfig
from clinkd.data.questions import drop_added
from clinkd.pipeline.cautions import caution_undertrained
from clinkd.pipeline.damage import read_stage_json, read_stage_lines
from clinkd.pipeline.graph import StageContext, stage_record
from clinkd.pipeline.prepared import (
    BASELINES,
    BLIND_CHOICE,
    DATA,
    LIKELIHOODS,
    NO_CONFIDENCE,
    PREDICTIONS,
    read_data_source,
    read_likelihoods,
    read_predictions,
    read_split,
)
from clinkd.records import SPLITS, Prediction, Sample, Split
from clinkd.scoring.blind.baselines import IMAGES_SHUFFLED
from clinkd.scoring.blind.choice import BlindChoice, answer_blindly
from clinkd.scoring.measure import Rules
from clinkd.scoring.score import PROBE
from clinkd.storage import write_json, write_lines

FoldStages = Mapping[str, Path]  # the folders of a finished fold's stages, by name


def pool_splits(work: StageContext, folds: Sequence[Mapping[str, str]]) -> None:
    """Write the test splits of all folds as one, and record times and cautions.

    The other splits are empty: what one fold was trained on, another was tested on.
    """
    stages = _open_folds(work, folds)
    test = [s for fold in stages for s in read_split(fold["prepare"], "test")]
    assert len({s.id for s in test}) == len(test), "a question is in the test split of one fold alone"
    for split in SPLITS:
        write_lines(work.folder / f"{split}.jsonl", (s.to_json() for s in test if split == "test"))
    shutil.copyfile(stages[0]["prepare"] / DATA, work.folder / DATA)  # the same in all: images and names of all data
    work.record("test", {"questions": len(test), "images": len({i.path for s in test for i in s.images})})
    seconds = Counter[str]()
    for fold in stages:
        seconds.update({name: stage_record(folder)["seconds"] for name, folder in fold.items()})
    work.record("fold_seconds", dict(seconds))
    work.record("cautions", caution_undertrained(stages))


def pool_answers(work: StageContext, folds: Sequence[Mapping[str, str]]) -> None:
    """Write the chosen answers of all folds as one, and those of baselines and probe, each from its own fold's
    splits; the best baseline is chosen by the trials of all folds."""
    stages = _open_folds(work, folds)
    predictions = chain.from_iterable(read_predictions(fold["select"]) for fold in stages)
    write_lines(work.folder / PREDICTIONS, (p.to_json() for p in predictions))
    if likelihoods := [line for fold in stages for line in read_likelihoods(fold)]:
        write_lines(work.folder / LIKELIHOODS, likelihoods)
    work.record(NO_CONFIDENCE, _pool_absences(stages))
    choices = []

    def answer_folds() -> Iterator[dict[str, Any]]:
        for fold in stages:
            rules = Rules(EvaluateConfig().iou, read_data_source(fold["prepare"]).lexicon)
            baselines, choice = collect_baselines(fold, {s: read_split(fold["prepare"], s) for s in SPLITS}, rules)
            choices.append(choice)
            for name, answers in baselines.items():
                yield from ({"baseline": name, "prediction": prediction.to_json()} for prediction in answers)

    write_lines(work.folder / BASELINES, answer_folds())
    write_json(work.folder / BLIND_CHOICE, BlindChoice.pooled(choices).to_json())


def _pool_absences(folds: Sequence[FoldStages]) -> dict[str, str]:
    """By kind of question, why answers have no confidence, fold by fold."""
    pooled: dict[str, list[str]] = {}
    for number, fold in enumerate(folds, start=1):
        for kind, why in stage_record(fold["select"])["recorded"].get(NO_CONFIDENCE, {}).items():
            pooled.setdefault(kind, []).append(f"in fold {number}, {why}")
    return {kind: "; ".join(reasons) for kind, reasons in pooled.items()}


def _open_folds(work: StageContext, folds: Sequence[Mapping[str, str]]) -> list[FoldStages]:
    return [{name: work.folder.parent / key for name, key in fold.items()} for fold in folds]


def collect_baselines(
    stages: Mapping[str, Path], splits: Mapping[Split, Sequence[Sample]], rules: Rules
) -> tuple[dict[str, list[Prediction]], BlindChoice]:
    """The answers of the image-blind baselines and of the probe to the test questions at hand, and the choice of the
    best baseline: a small run in a trial was asked others with shuffled images. Of pooled folds, what was pooled."""
    if (path := stages["select"] / BASELINES).is_file():
        pooled: dict[str, list[Prediction]] = {}
        for line in read_stage_lines(path):
            pooled.setdefault(line["baseline"], []).append(Prediction.from_json(line["prediction"]))
        return pooled, BlindChoice.from_json(read_stage_json(stages["select"] / BLIND_CHOICE))
    train, test = drop_added(splits["train"]), splits["test"]
    baselines, choice = answer_blindly(train, splits["validation"], test, rules)
    if "shuffle" in stages:
        ids = {s.id for s in test}
        baselines[IMAGES_SHUFFLED] = [p for p in read_predictions(stages["shuffle"]) if p.id in ids]
    if "probe" in stages:
        ids = {s.id for s in test}
        baselines[PROBE] = [p for p in read_predictions(stages["probe"]) if p.id in ids]
    return {name: predictions for name, predictions in baselines.items() if predictions}, choice
