"""The last stage: predictions to scores, tables and the page; and the page anew, of what was scored. Without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from clinkd.config import RunConfig
from clinkd.correction.summary import reflection_tables
from clinkd.pipeline.correcting import CORRECTIONS, EFFECT
from clinkd.pipeline.graph import StageContext, stage_record, trace_lineage
from clinkd.pipeline.prepared import (
    SCORED,
    read_data_source,
    read_identifying_texts,
    read_predictions,
    read_scores,
    read_split,
)
from clinkd.pipeline.runs import REPORT, SCORES, Run
from clinkd.records import BadInput, Correction, Prediction, Sample, Table
from clinkd.remote import PlainPage
from clinkd.reporting.browse import MOST, AnsweredSample, choose_evenly
from clinkd.reporting.figures import Curve
from clinkd.reporting.gallery import CorrectedAnswer, choose_gallery, choose_rewritten, judge_answer
from clinkd.reporting.report import RunSummary, ShownAnswers, write_report, write_shared
from clinkd.reporting.tables import BY_SOURCE, RetestResult, effect_table, read_table, table_json, tabulate
from clinkd.scoring.baselines import IMAGES_SHUFFLED, image_blind_baselines
from clinkd.scoring.captions import CaptionScorer
from clinkd.scoring.metrics import Rules
from clinkd.scoring.score import score_predictions
from clinkd.settings import Knob, Knobs, panel
from clinkd.storage import JsonLines, read_json, write_json, write_lines

TABLES, EACH = "tables.json", "answers.jsonl"
SHARED = "report-shared.html"
_TRAINED = {"teacher": "Teacher", "distill": "Distillation", "tune": "Plain tuning", "reflect": "Reflection, round"}
_LINES = {"loss": "loss", "ce": "cross-entropy", "kl": "KL"}  # by their names in the log


def write(work: StageContext, config: RunConfig, captions: CaptionScorer | None = None) -> None:
    """scores.jsonl, table.json, table.md, table.csv and report.html of a run, from its chosen predictions; and what
    the page is made of, so that it can be made again without scoring. `captions`: counts captions, if not one of its
    own."""
    prepared = work.inputs["prepare"]
    _, lexicon = read_data_source(prepared)
    train, test = read_split(prepared, "train"), read_split(prepared, "test")
    predictions = read_predictions(work.inputs["select"])
    judged = score_predictions(test, predictions, _twins(work, train, test), lexicon, config.evaluate, captions)
    scores, gains = judged.scores(), judged.gains()
    tables = tabulate(scores, gains)
    if len({s.source for s in test}) > 1:
        tables.append(replace(judged.by_source(), key=BY_SOURCE))
    figures, rules = judged.each(), Rules(config.evaluate.iou, lexicon)
    answered = {p.id: p for p in predictions}
    each = (
        {
            "id": s.id,
            "right": judge_answer(s, answered[s.id], rules),
            "figures": {k: round(v, 4) for k, v in figures.get(s.id, {}).items()},
        }
        for s in test
    )
    write_lines(work.folder / EACH, each)
    write_lines(work.folder / SCORED, (s.to_json() for s in scores))
    write_json(work.folder / TABLES, [asdict(t) for t in tables])
    write_json(work.folder / SCORES, table_json(scores, {}, gains))
    _Scored(work.folder, {**trace_lineage(work.inputs), **work.inputs}, config, train).write(work.folder / REPORT)


def report(run: Run, out: Path | None = None, share: bool = False) -> Path:
    """The page of a finished run anew, at `out` or in the run's folder; `share`: one without pixels and words.

    Raises BadInput where the run is not finished, or was scored before this could be done.
    """
    folder = run.stage("score")
    missing = [name for name in (EACH, SCORED, TABLES) if not (folder / name).is_file()]
    if missing:
        raise BadInput(f"{folder / missing[0]}: missing; `{run.command}` scores the run anew")
    finished = {s.name: s.folder for s in run.status() if s.state == "done" and s.name != "score"}
    train = read_split(finished["prepare"], "train")
    made = _Scored(folder, finished, run.config, train)
    path = out or run.folder / (SHARED if share else REPORT)
    if share:
        made.share(path)
    else:
        made.write(path.resolve())  # of the run's folder: what the link there points at
    return path


@dataclass(frozen=True)
class _Scored:
    """What a page is made of: the folder of the scores, the stages that led to it, and the config."""

    folder: Path
    stages: Mapping[str, Path]
    config: RunConfig
    train: Sequence[Sample]

    def write(self, path: Path) -> None:
        """The page for those who may see the images."""
        root, lexicon = read_data_source(self.stages["prepare"])
        answered = self._answered()
        count, reviewed = self.config.evaluate.gallery, self._reviewed()
        rewritten = reviewed.examples(count)
        on_page = choose_evenly(answered, MOST)
        samples = [a.sample for a in on_page]
        # a page is carried about: what the files of these samples say of a person is not shown on it
        shown = PlainPage(read_identifying_texts(root, [*samples, *(r.sample for r in rewritten)]))
        summary = RunSummary(
            name=self.config.name,
            tables=[_sourced(t, shown) for t in self._tables()],
            scores=read_scores(self.folder),
            setup=[(k.name, _spell(k.value), _spell(k.paper)) for k in self._knobs()],
            reflection=reviewed.tables(),
            wall_seconds=self._seconds(),
            curves=trainings(self.stages),
        )
        answers = ShownAnswers(
            image_root=root,
            answered=answered,
            gallery=choose_gallery(samples, [a.prediction for a in on_page], count),
            rewritten=rewritten,
            rules=Rules(self.config.evaluate.iou, lexicon),
            shown=shown,
        )
        write_report(path, summary, answers)

    def share(self, path: Path) -> None:
        """The page for everybody: figures alone."""
        reviewed = self._reviewed()
        corrections = [replace(c, by=_known(c.by), rejected=c.rejected and "refused") for c in reviewed.corrections]
        summary = RunSummary(
            tables=[_unnamed(t) for t in self._tables()],
            scores=[replace(s, why=s.why and _bare(s.why)) for s in read_scores(self.folder)],
            setup=[(k.name, _figure(k), _spell(k.paper)) for k in self._knobs()],
            reflection=replace(reviewed, corrections=corrections).tables(),
            wall_seconds=self._seconds(),
            curves=trainings(self.stages),
        )
        write_shared(path, summary, self._answered())

    def _answered(self) -> list[AnsweredSample]:
        """Every question of the test split, in its order."""
        answers = {p.id: p for p in read_predictions(self.stages["select"])}
        told = {r["id"]: r for r in JsonLines(self.folder / EACH).read()}
        samples = read_split(self.stages["prepare"], "test")
        return [
            AnsweredSample(number, s, answers[s.id], told[s.id]["right"], told[s.id]["figures"])
            for number, s in enumerate(samples, start=1)
        ]

    def _tables(self) -> list[Table]:
        return [read_table(value) for value in read_json(self.folder / TABLES)]

    def _reviewed(self) -> ReflectionResults:
        return ReflectionResults.of(self.stages, self.train)

    def _knobs(self) -> list[Knob]:
        return [k for k in panel(self.config) if not isinstance(k.value, Knobs)]

    def _seconds(self) -> dict[str, float]:
        return {name: stage_record(folder)["seconds"] for name, folder in self.stages.items()}


# ---- what a page for everybody leaves out ---------------------------------------------------------------------------


def _bare(note: str) -> str:
    """What this program says, without paths and what stands in quotes."""
    return re.sub(r"\S*[/\\]\S*|'[^']*'|\"[^\"]*\"", "…", note)


def _unnamed(table: Table) -> Table:
    """Data sets go by numbers."""
    notes = tuple(map(_bare, table.notes))
    numbers: dict[str, str] = {}
    return _sourced(replace(table, notes=notes), lambda name: numbers.setdefault(name, f"source {len(numbers) + 1}"))


def _sourced(table: Table, shown: Callable[[str], str]) -> Table:
    """A table by source with the names of the sources as they may be shown; another one as it is."""
    if table.key != BY_SOURCE:
        return table
    return replace(table, rows=tuple((row[0], shown(row[1]), *row[2:]) for row in table.rows))


def _known(by: str) -> str:
    """Who corrected, where that is no name that somebody gave."""
    return by if by in ("", "offline", "human") else "a model"


def _figure(knob: Knob) -> str:
    """The value of a knob where it is a number or one of the words that it can be; a path, name or address is not."""
    value = knob.value
    if value is None or isinstance(value, bool | int | float):
        return _spell(value)
    words = [str(v) for v in (value if isinstance(value, tuple | list) else (value,))]
    choices = set(re.split(r"\W+", knob.wants)) if "|" in knob.wants else set()
    numbers = all(re.fullmatch(r"-?[\d.]+(e-?\d+)?", w) for w in words)
    return _spell(value) if numbers or all(set(re.split(r"\W+", w)) <= choices for w in words) else "(given)"


# ---- trainings ------------------------------------------------------------------------------------------------------


def trainings(stages: Mapping[str, Path]) -> list[Curve]:
    """The logs of teacher, distillation and reflection: the loss, and the parts it is made of where it has several."""
    found = []
    for stage, folder in stages.items():
        for log in sorted(folder.glob("fit-*/log.jsonl")):
            kind = log.parent.name.removeprefix("fit-")
            if kind not in _TRAINED:
                continue
            number = stage.rpartition("-")[2] if kind == "reflect" else ""
            series = _series(JsonLines(log).read())
            if series:
                found.append(Curve(f"{_TRAINED[kind]} {number}".strip(), series))
    return found


def _series(lines: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Each figure by step; of a step that was done again after a stop, the last."""
    by_step = {line["step"]: line for line in lines if "step" in line}
    names = [n for n in _LINES if any(n in line for line in by_step.values())]
    if "kl" not in names:
        names = [n for n in names if n == "loss"]  # else the cross-entropy is all there is to it
    return {
        _LINES[n]: [(float(step), float(by_step[step][n])) for step in sorted(by_step) if n in by_step[step]]
        for n in names
    }


# ---- corrections ----------------------------------------------------------------------------------------------------


def _twins(work: StageContext, train: Sequence[Sample], test: Sequence[Sample]) -> dict[str, list[Prediction]]:
    """Of the test questions at hand: a small run in a trial was asked others with shuffled images."""
    twins = image_blind_baselines(train, test)
    if "shuffle" in work.inputs:
        known = {s.id for s in test}
        twins[IMAGES_SHUFFLED] = [p for p in read_predictions(work.inputs["shuffle"]) if p.id in known]
    return {twin: rows for twin, rows in twins.items() if rows}


@dataclass(frozen=True, slots=True)
class ReflectionResults:
    """What the rounds of reflection left: their corrections, and the answers to the same questions after a round."""

    samples: Sequence[Sample]
    corrections: Sequence[Correction]
    again: Sequence[RetestResult]

    @classmethod
    def of(cls, stages: Mapping[str, Path], train: Sequence[Sample]) -> Self:
        """Of the training questions at hand: a small run in a trial scores with few of them."""
        known = {s.id for s in train}
        corrections: list[Correction] = []
        again: list[RetestResult] = []
        for name, folder in stages.items():
            if not name.startswith("reflect-"):
                continue
            corrections += [Correction.from_json(r) for r in JsonLines(folder / CORRECTIONS).read()]
            if (folder / EFFECT).is_file():
                number = int(name.removeprefix("reflect-"))
                again += [RetestResult.from_json({**r, "round": number}) for r in JsonLines(folder / EFFECT).read()]
        return cls(train, [c for c in corrections if c.id in known], [a for a in again if a.id in known])

    def tables(self) -> list[Table]:
        effect = [effect_table(self.again)] if self.again else []
        return [*reflection_tables(self.corrections, self.samples), *effect]

    def examples(self, count: int) -> list[CorrectedAnswer]:
        return choose_rewritten(self.samples, self.corrections, self.again, count)


def _spell(value: object) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
