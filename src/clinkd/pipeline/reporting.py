"""The last stage: predictions to scores, tables and the page. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from clinkd import evaluation
from clinkd.agreement import Lexicon
from clinkd.config import Knobs, RunConfig, panel
from clinkd.pipeline.graph import Work, stage_record
from clinkd.records import Correction, Prediction, Sample
from clinkd.storage import JsonLines, read_json, write_json, write_lines


def write(work: Work, config: RunConfig) -> None:
    """scores.jsonl, table.json, table.md, table.csv and report.html of a run, from its chosen predictions."""

    prepared = work.inputs["prepare"]
    about = read_json(prepared / "data.json")
    lexicon = Lexicon.from_json(about["lexicon"])
    train, test = _samples(prepared / "train.jsonl"), _samples(prepared / "test.jsonl")
    predictions = [Prediction.from_json(r) for r in JsonLines(work.inputs["select"] / "predictions.jsonl").read()]
    judged = evaluation.judge(test, predictions, evaluation.blind_twins(train, test), lexicon, config.evaluate)
    scores, gains = judged.scores(), judged.gains()
    tables = evaluation.tabulate(scores, gains)
    if len({s.source for s in test}) > 1:
        tables.append(judged.by_source())
    reflected = [folder for name, folder in work.inputs.items() if name.startswith("reflect-")]
    corrections = [
        Correction.from_json(r) for folder in reflected for r in JsonLines(folder / "corrections.jsonl").read()
    ]
    write_lines(work.folder / "scores.jsonl", (s.to_json() for s in scores))
    write_json(work.folder / "table.json", evaluation.table_json(scores, {}, gains))
    evaluation.write_report(
        work.folder / "report.html",
        run_name=config.name,
        tables=tables,
        scores=scores,
        gallery=evaluation.choose_gallery(test, predictions, config.evaluate.gallery),
        image_root=prepared / about["root"],
        setup=[(k.name, _spell(k.value), _spell(k.paper)) for k in panel(config) if not isinstance(k.value, Knobs)],
        corrections=corrections,
        wall_seconds={name: stage_record(folder)["seconds"] for name, folder in work.inputs.items()},
        lexicon=lexicon,
        iou=config.evaluate.iou,
    )


def _spell(value: object) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _samples(path: Path) -> list[Sample]:
    return [Sample.from_json(record) for record in JsonLines(path).read()]
