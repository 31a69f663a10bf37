"""The last stage: predictions to scores, tables and the page. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from clinkd import evaluation
from clinkd.config import Knobs, RunConfig, panel
from clinkd.correction import reflection_tables
from clinkd.evaluation import Again, Rewritten
from clinkd.pipeline.correcting import CORRECTIONS, EFFECT
from clinkd.pipeline.graph import Work, stage_record
from clinkd.pipeline.prepared import about, read_split, told_by
from clinkd.records import Correction, Prediction, Sample, Table
from clinkd.remote import Scrubber
from clinkd.storage import JsonLines, write_json, write_lines


def write(work: Work, config: RunConfig) -> None:
    """scores.jsonl, table.json, table.md, table.csv and report.html of a run, from its chosen predictions."""

    prepared = work.inputs["prepare"]
    root, lexicon = about(prepared)
    train, test = read_split(prepared, "train"), read_split(prepared, "test")
    predictions = [Prediction.from_json(r) for r in JsonLines(work.inputs["select"] / "predictions.jsonl").read()]
    judged = evaluation.judge(test, predictions, evaluation.blind_twins(train, test), lexicon, config.evaluate)
    scores, gains = judged.scores(), judged.gains()
    tables = evaluation.tabulate(scores, gains)
    if len({s.source for s in test}) > 1:
        tables.append(judged.by_source())
    reviewed = Reviewed.of(work, train)
    gallery = evaluation.choose_gallery(test, predictions, config.evaluate.gallery)
    rewritten = reviewed.examples(config.evaluate.gallery)
    write_lines(work.folder / "scores.jsonl", (s.to_json() for s in scores))
    write_json(work.folder / "table.json", evaluation.table_json(scores, {}, gains))
    evaluation.write_report(
        work.folder / "report.html",
        run_name=config.name,
        tables=tables,
        scores=scores,
        gallery=gallery,
        image_root=root,
        setup=[(k.name, _spell(k.value), _spell(k.paper)) for k in panel(config) if not isinstance(k.value, Knobs)],
        reflection=reviewed.tables(),
        rewritten=rewritten,
        wall_seconds={name: stage_record(folder)["seconds"] for name, folder in work.inputs.items()},
        lexicon=lexicon,
        iou=config.evaluate.iou,
        # a page is carried about: what the files of these samples say of a person is not shown on it
        shown=Scrubber(told_by(root, [*(s for s, _ in gallery), *(r.sample for r in rewritten)])).plain,
    )


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What the rounds of reflection left: their corrections, and the answers to the same questions after a round."""

    samples: Sequence[Sample]
    corrections: Sequence[Correction]
    again: Sequence[Again]

    @classmethod
    def of(cls, work: Work, train: Sequence[Sample]) -> Self:
        """Of the training questions at hand: a small run in a trial scores with few of them."""
        known = {s.id for s in train}
        corrections: list[Correction] = []
        again: list[Again] = []
        for name, folder in work.inputs.items():
            if not name.startswith("reflect-"):
                continue
            corrections += [Correction.from_json(r) for r in JsonLines(folder / CORRECTIONS).read()]
            if (folder / EFFECT).is_file():
                number = int(name.removeprefix("reflect-"))
                again += [Again.from_json(number, r) for r in JsonLines(folder / EFFECT).read()]
        return cls(train, [c for c in corrections if c.id in known], [a for a in again if a.id in known])

    def tables(self) -> list[Table]:
        effect = [evaluation.effect_table(self.again)] if self.again else []
        return [*reflection_tables(self.corrections, self.samples), *effect]

    def examples(self, count: int) -> list[Rewritten]:
        return evaluation.choose_rewritten(self.samples, self.corrections, self.again, count)


def _spell(value: object) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
