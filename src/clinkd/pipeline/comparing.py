"""Runs, or folders of evaluated answers, beside each other: in figures, and case by case. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from clinkd import evaluation, viewer
from clinkd.agreement import Lexicon
from clinkd.config import EvaluateConfig
from clinkd.evaluation import Comparison
from clinkd.pipeline.prepared import PREDICTIONS, about, read_predictions, read_split, told_by
from clinkd.pipeline.runs import RUN_RECORD, Run, find
from clinkd.records import BadInput, Prediction, Sample, Task
from clinkd.remote import PlainPage
from clinkd.storage import JsonLines, progress, read_json

EVALUATION, SAMPLES = "evaluation.json", "samples.jsonl"


@dataclass(frozen=True)
class Judgeable:
    """Answers and what they are judged by."""

    name: str
    samples: list[Sample]
    predictions: list[Prediction]
    lexicon: Lexicon
    iou: float

    @classmethod
    def of_run(cls, run: Run) -> Self:
        """The chosen answers of a run to its test split. Raises BadInput where the run is not finished."""
        prepared, selected = run.stage("prepare"), run.stage("select")
        lexicon, iou = about(prepared).lexicon, run.config.evaluate.iou
        return cls(run.folder.name, read_split(prepared, "test"), read_predictions(selected), lexicon, iou)

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """What `clinkd evaluate --out` wrote. Raises BadInput where one of its files is missing."""
        for name in (EVALUATION, SAMPLES, PREDICTIONS):
            if not (folder / name).is_file():
                raise BadInput(f"{folder / name}: missing; `clinkd evaluate ... --out {folder}` writes it")
        told = read_json(folder / EVALUATION)
        samples = [Sample.from_json(record) for record in JsonLines(folder / SAMPLES).read()]
        lexicon = Lexicon.from_json(told["lexicon"]) if "lexicon" in told else _names_of(samples)
        iou = told.get("iou", EvaluateConfig().iou)
        return cls(str(told.get("system") or folder.name), samples, read_predictions(folder), lexicon, iou)

    @classmethod
    def find(cls, wanted: str, runs: Path) -> Self:
        """The run of that name under `runs` or at that path, else the folder at that path."""
        folder = evaluated(wanted, runs)
        return cls.of_folder(folder) if folder else cls.of_run(find(wanted, runs))


def evaluated(wanted: str, runs: Path) -> Path | None:
    """The folder of `clinkd evaluate --out` at that path, unless a run goes by this name or path."""
    folder = Path(wanted).expanduser()
    is_run = any((f / RUN_RECORD).is_file() for f in (runs / wanted, folder))
    return folder if (folder / EVALUATION).is_file() and not is_run else None


def _names_of(samples: Sequence[Sample]) -> Lexicon:
    """The classes that the records name, and the truths of class questions."""
    said = {s.answer.words.rstrip(".") for s in samples if s.task is Task.ROC and not s.names}
    return Lexicon(tuple(sorted({n for s in samples for n in s.names} | said)))


def compare(ours: Sequence[str], against: Sequence[str], runs: Path) -> list[Comparison]:
    """The first of `ours` beside each other one of them; or, `against` others, each beside that of its place there:
    one pair over its images, several (seeds) by their figures.

    Raises BadInput where there is nothing to compare with, where the numbers differ, or the test questions of a pair.
    """
    if against and len(against) != len(ours):
        raise BadInput(
            f"--against: {len(against)} for {len(ours)} runs; give one for each, in the order of their seeds"
        )
    if not against and len(ours) < 2:
        raise BadInput(f"{ours[0]}: nothing to compare it with; give another run, or --against RUN")
    pairs = list(zip(ours, against, strict=True)) if against else [(ours[0], other) for other in ours[1:]]
    seeds, found = len(pairs) > 1 and bool(against), []
    with progress(len(pairs), "compare", "pairs") as advance:
        for one, other in pairs:
            found.append(_beside(Judgeable.find(one, runs), Judgeable.find(other, runs), intervals=not seeds))
            advance(1)
    return [evaluation.compare_seeds(found)] if seeds else found


def _beside(ours: Judgeable, theirs: Judgeable, intervals: bool) -> Comparison:
    _demand_same(ours, theirs)
    knobs = EvaluateConfig(iou=ours.iou) if intervals else EvaluateConfig(iou=ours.iou, replicates=0)
    names = (ours.name, theirs.name) if ours.name != theirs.name else (f"{ours.name} (1)", f"{theirs.name} (2)")
    mine, others = (names[0], ours.predictions), (names[1], theirs.predictions)
    return evaluation.compare_answers(ours.samples, mine, others, ours.lexicon, knobs)


def _demand_same(ours: Judgeable, theirs: Judgeable) -> None:
    """Raises BadInput where the two were not asked the same."""
    mine, others = ({s.id: (s.question, s.answer) for s in of.samples} for of in (ours, theirs))
    if mine != others:
        far = next((i for i in (*mine, *others) if mine.get(i) != others.get(i)), "")
        raise BadInput(
            f"{ours.name} and {theirs.name} were asked different test questions, such as {far!r}: compare runs of the "
            "same data and seed (phantoms and splits are drawn anew with each seed), several seeds with --against"
        )
    if ours.iou != theirs.iou:
        raise BadInput(
            f"evaluate.iou={ours.iou:g} of {ours.name} is {theirs.iou:g} in {theirs.name}: no fair comparison"
        )


# ---- case by case ---------------------------------------------------------------------------------------------------


def cases(answered: Mapping[str, Judgeable], root: Path) -> viewer.Html | None:
    """The same questions answered by each, over their images under `root` (the paper's Figure 4); None where fewer than
    two have answered, or not the same."""
    first, *others = answered.values()
    known = [{s.id: s for s in of.samples} for of in others]
    common = [s for s in first.samples if all(of.get(s.id) == s for of in known)]
    if not others or not common:
        return None
    said = {name: of.predictions for name, of in answered.items()}
    shown = PlainPage(told_by(root, common))
    return evaluation.side_by_side(said, common, root, lexicon=first.lexicon, iou=first.iou, shown=shown)
