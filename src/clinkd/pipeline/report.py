"""The last stage: from predictions to scores, tables and the page; the page again from stored scores. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from clinkd.config import RunConfig
from clinkd.correction.review import is_missed
from clinkd.correction.summary import count_changes, describe_review, passed_table, reflection_tables
from clinkd.pipeline.cautions import list_cautions
from clinkd.pipeline.correcting import CORRECTIONS, EFFECT
from clinkd.pipeline.damage import read_stage_json, read_stage_lines
from clinkd.pipeline.graph import StageContext, read_seconds, stage_record, trace_lineage
from clinkd.pipeline.pooling import collect_baselines
from clinkd.pipeline.prepared import (
    BLIND_CHOICE,
    NO_CONFIDENCE,
    SCORED,
    read_data_source,
    read_identifying_texts,
    read_likelihoods,
    read_predictions,
    read_scores,
    read_split,
)
from clinkd.pipeline.runs import REPORT, SCORES, Run
from clinkd.records import SPLITS, BadInput, Correction, Sample, Table
from clinkd.remote import PlainPage
from clinkd.reporting.browse import MOST, AnsweredSample, choose_evenly
from clinkd.reporting.figures import Curve
from clinkd.reporting.gallery import choose_gallery, choose_rewritten, judge_answer
from clinkd.reporting.report import RunSummary, ShownAnswers, write_report, write_shared
from clinkd.reporting.strict import StrictResults
from clinkd.reporting.tables import (
    SELECTION,
    RetestResult,
    charge_selection,
    describe_likelihoods,
    describe_scores,
    effect_table,
    read_table,
    tabulate_likelihoods,
)
from clinkd.scoring.captions import CaptionScorer
from clinkd.scoring.likelihood import average_likelihoods
from clinkd.scoring.measure import Rules
from clinkd.scoring.score import FIRST_BEAM, MODEL, is_choice, score_predictions
from clinkd.settings import Knob, panel
from clinkd.storage import write_json, write_lines

TABLES, ANSWERS = "tables.json", "answers.jsonl"
SHARED = "report-shared.html"
_TRAINED = {"teacher": "Teacher", "distill": "Distillation", "tune": "Plain tuning", "reflect": "Reflection, round"}
_LINES = {"loss": "loss", "ce": "cross-entropy", "kl": "KL"}  # by their names in the log


def write(work: StageContext, config: RunConfig, captions: CaptionScorer | None = None) -> None:
    """Write scores.jsonl, table.json, table.md, table.csv and report.html of a run, from its chosen predictions; and
    the data of the page, so that it can be made again without scoring.

    `captions` counts captions; without it the stage opens one of its own.
    """
    _, lexicon = read_data_source(work.inputs["prepare"])
    splits = {split: read_split(work.inputs["prepare"], split) for split in SPLITS}
    train, test, rules = splits["train"], splits["test"], Rules(config.evaluate.iou, lexicon)
    predictions = read_predictions(work.inputs["select"])
    baselines, choice = collect_baselines(work.inputs, splits, rules)
    scored = replace(score_predictions(test, predictions, baselines, lexicon, config.evaluate, captions), choice=choice)
    absences = stage_record(work.inputs["select"])["recorded"].get(NO_CONFIDENCE, {})
    strict = StrictResults.of(scored, predictions, baselines, lexicon, absences=absences)
    prediction_by_id = {p.id: p for p in predictions}
    answers = (
        {
            "id": s.id,
            "right": judge_answer(s, prediction_by_id[s.id], rules),
            "figures": {k: round(v, 4) for k, v in strict.by_sample.get(s.id, {}).items()},
        }
        for s in test
    )
    write_lines(work.folder / ANSWERS, answers)
    write_lines(work.folder / SCORED, (s.to_json() for s in strict.scores))
    write_json(work.folder / BLIND_CHOICE, choice.to_json())
    stages = {**trace_lineage(work.inputs), **work.inputs}
    seconds = _charge_choices(stages)
    tables = [charge_selection(t, seconds) if t.key == SELECTION and seconds else t for t in strict.tables]
    likelihoods = average_likelihoods(read_likelihoods(work.inputs))
    tables += [tabulate_likelihoods(likelihoods)] if likelihoods else []
    write_json(work.folder / TABLES, [asdict(t) for t in tables])
    described = describe_scores(strict.scores, {}, strict.gains)
    run = _ScoredRun(work.folder, stages, config, train)
    about: dict[str, Any] = {"figures": strict.figures, "cautions": list_cautions(stages, test, described)}
    about["selection_seconds"] = seconds
    about["reflection"] = run.read_reflection(lexicon.names).describe()
    if likelihoods:
        about["log_likelihood"] = describe_likelihoods(likelihoods)
    write_json(work.folder / SCORES, {**described, **about})
    run.write(work.folder / REPORT)


# what else a scorer that the stage `clip` has made scores by
_PARTS = {"clip": ("clip text", "clip crop"), "crop classifier": ("crop alone",)}


def _charge_choices(stages: Mapping[str, Path]) -> dict[str, float]:
    """The seconds of training and scoring that each way to choose a candidate has cost, by its row, on the validation
    and the test questions; empty for pooled folds, and for answers of an older version."""
    scoring = stage_record(stages["select"])["recorded"].get("scoring_seconds", {})
    if not scoring:
        return {}
    scorer = [*scoring][-1]  # of the run, after its rivals (steps.select)
    if scorer in _PARTS:
        trained = scoring[scorer] + stage_record(stages["clip"])["seconds"]
        scoring = {**scoring, **dict.fromkeys((scorer, *_PARTS[scorer]), trained)}
    costs = {name if is_choice(name) else f"by {name}": seconds for name, seconds in scoring.items()}
    costs |= {FIRST_BEAM: 0.0, MODEL: scoring[scorer]}
    return {row: round(seconds, 3) for row, seconds in costs.items() if row != "by first"}


def report(run: Run, out: Path | None = None, share: bool = False) -> Path:
    """Write the page of a finished run again, at `out` or in the run's folder; `share`: without pixels and words.

    Raises BadInput where the run is not finished, or was scored by a version that kept no data for the page.
    """
    folder = run.stage("score")
    run.demand_whole(with_models=False)
    missing = [name for name in (ANSWERS, SCORED, TABLES) if not (folder / name).is_file()]
    if missing:
        raise BadInput(f"{folder / missing[0]}: missing; `{run.command}` scores the run anew")
    stages = {s.name: s.folder for s in run.status() if s.state in ("done", "damaged") and s.name != "score"}
    scored = _ScoredRun(folder, stages, run.config, read_split(stages["prepare"], "train"))
    path = out or run.folder / (SHARED if share else REPORT)
    if share:
        scored.share(path)
    else:
        scored.write(path.resolve())  # of the run's folder: what the link there points at
    return path


@dataclass(frozen=True)
class _ScoredRun:
    """The sources of a page: the folder of the scores, the stages before it, the config, and the training split."""

    folder: Path
    stages: Mapping[str, Path]
    config: RunConfig
    train: Sequence[Sample]

    def write(self, path: Path) -> None:
        """Write the page for those who may see the images."""
        root, lexicon = read_data_source(self.stages["prepare"])
        answered, count = self._read_answers(), self.config.evaluate.gallery
        reflection = self.read_reflection(lexicon.names)
        rewritten = choose_rewritten(self.train, reflection.corrections, reflection.again, count)
        on_page = choose_evenly(answered, MOST)
        samples = [a.sample for a in on_page]
        # a page is carried about: what the files of these samples say of a person is not shown on it
        shown = PlainPage(read_identifying_texts(root, [*samples, *(r.sample for r in rewritten)]))
        summary = self._summarise(reflection, _spell_knob)
        summary = replace(summary, name=self.config.name)
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
        """Write the page for everybody: figures alone."""
        reflection = self.read_reflection(read_data_source(self.stages["prepare"]).lexicon.names)
        corrections = [
            replace(c, by=_hide_corrector(c.by), rejected=c.rejected and "refused") for c in reflection.corrections
        ]
        summary = self._summarise(replace(reflection, corrections=corrections), _spell_public_knob)
        tables = [replace(t, notes=tuple(map(_hide_paths, t.notes))) for t in summary.tables]
        scores = [replace(s, why=s.why and _hide_paths(s.why)) for s in summary.scores]
        write_shared(path, replace(summary, tables=tables, scores=scores), self._read_answers())

    def _summarise(self, reflection: ReflectionResults, spell_knob: Callable[[Knob], str]) -> RunSummary:
        knobs = [k for k in panel(self.config) if not k.is_group]
        scores, test = read_scores(self.folder), read_split(self.stages["prepare"], "test")
        return RunSummary(
            tables=[read_table(value) for value in read_stage_json(self.folder / TABLES)],
            scores=scores,
            setup=[(k.name, spell_knob(k), _spell(k.paper)) for k in knobs],
            reflection=reflection.tables(),
            wall_seconds=read_seconds(self.stages),
            folds=self.config.data.folds if self.config.fold_runs() else 0,
            curves=read_training_curves(self.stages),
            cautions=list_cautions(self.stages, test, describe_scores(scores, {})),
            figures=self._read_figures(),
        )

    def read_reflection(self, names: Sequence[str]) -> ReflectionResults:
        similarity = self.config.reflect.similarity if self.config.reflect else "offline"
        return ReflectionResults.of(self.stages, self.train, names, similarity)

    def _read_figures(self) -> Mapping[str, Any]:
        """The numbers of the figures; a run of an older version has none."""
        path = self.folder / SCORES
        figures: dict[str, Any] = read_stage_json(path).get("figures", {}) if path.is_file() else {}
        if "calibration" in figures:  # keys of an older version
            figures["token_probability"] = figures.pop("calibration")
            for values in (v for v in figures["token_probability"].values() if "bins" in v):
                values["mean_probability"] = values.pop("mean_confidence")
                for one in values["bins"]:
                    one["probability"] = one.pop("confidence")
        return figures

    def _read_answers(self) -> list[AnsweredSample]:
        """Every question of the test split, in its order."""
        predictions = {p.id: p for p in read_predictions(self.stages["select"])}
        verdicts = {line["id"]: line for line in read_stage_lines(self.folder / ANSWERS)}
        samples = read_split(self.stages["prepare"], "test")
        return [
            AnsweredSample(number, s, predictions[s.id], verdicts[s.id]["right"], verdicts[s.id]["figures"])
            for number, s in enumerate(samples, start=1)
        ]


# ---- what a page for everybody leaves out ---------------------------------------------------------------------------


def _hide_paths(note: str) -> str:
    """The words of this program, without paths and what stands in quotes."""
    return re.sub(r"\S*[/\\]\S*|'[^']*'|\"[^\"]*\"", "…", note)


def _hide_corrector(by: str) -> str:
    """Who corrected, where the name is one of ours; a name that somebody gave is hidden."""
    return by if by in ("", "offline", "human") else "a model"


def _spell_knob(knob: Knob) -> str:
    return _spell(knob.value)


def _spell_public_knob(knob: Knob) -> str:
    """The value of a knob where it is a number or one of the words that it can be; a path, name or address is not."""
    value = knob.value
    if value in (None, {}) or isinstance(value, bool | int | float):
        return _spell(value)
    words = [str(v) for v in (value if isinstance(value, tuple | list) else (value,))]
    choices = set(re.split(r"\W+", knob.wants)) if "|" in knob.wants else set()
    numbers = all(re.fullmatch(r"-?[\d.]+(e-?\d+)?", w) for w in words)
    return _spell(value) if numbers or all(set(re.split(r"\W+", w)) <= choices for w in words) else "(given)"


# ---- trainings ------------------------------------------------------------------------------------------------------


def read_training_curves(stages: Mapping[str, Path]) -> list[Curve]:
    """Read the logs of all trainings: the loss, and its parts where it has several."""
    curves = []
    for stage, folder in stages.items():
        for log in sorted(folder.glob("fit-*/log.jsonl")):
            kind, _, number = log.parent.name.removeprefix("fit-").partition("-")
            if kind not in _TRAINED:
                continue
            number = stage.partition("-")[2] if kind in ("teacher", "reflect") else number
            if series := _read_series(read_stage_lines(log)):
                curves.append(Curve(f"{_TRAINED[kind]} {number}".strip(), series))
    return curves


def _read_series(lines: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Read each figure by step. A step that was done again after a stop counts as the last time."""
    by_step = {line["step"]: line for line in lines if "step" in line}
    names = [n for n in _LINES if any(n in line for line in by_step.values())]
    if "kl" not in names:
        names = [n for n in names if n == "loss"]  # the cross-entropy alone is the loss
    return {
        _LINES[n]: [(float(step), float(by_step[step][n])) for step in sorted(by_step) if n in by_step[step]]
        for n in names
    }


# ---- corrections ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReflectionResults:
    """The results of the rounds of reflection: corrections, and the answers to the same questions after a round, right
    or wrong by `is_missed`. `names`: class names of the data. `similarity`: `reflect.similarity`."""

    samples: Sequence[Sample]
    corrections: Sequence[Correction]
    again: Sequence[RetestResult]
    names: Sequence[str]
    similarity: str

    @classmethod
    def of(cls, stages: Mapping[str, Path], train: Sequence[Sample], names: Sequence[str], similarity: str) -> Self:
        """Read the results for the training questions at hand: a small run in a trial scores with few of them."""
        ids = {s.id for s in train}
        corrections: list[Correction] = []
        again: list[RetestResult] = []
        for name, folder in stages.items():
            if not name.startswith("reflect-"):
                continue
            corrections += [Correction.from_json(r) for r in read_stage_lines(folder / CORRECTIONS)]
            if (folder / EFFECT).is_file():
                number = int(name.removeprefix("reflect-"))
                again += [RetestResult.from_json({**r, "round": number}) for r in read_stage_lines(folder / EFFECT)]
        corrections = [c for c in corrections if c.id in ids]
        reviewed = {(c.round, c.id): c for c in corrections}
        judged = [_judge_retest(a, reviewed[a.round, a.id], names) for a in again if a.id in ids]
        return cls(train, corrections, judged, names, similarity)

    def tables(self) -> list[Table]:
        passed = [passed_table(self.corrections, self.names, self.similarity)] if self.corrections else []
        effect = [effect_table(self.again)] if self.again else []
        return [*reflection_tables(self.corrections, self.samples), *passed, *effect]

    def describe(self) -> list[dict[str, Any]]:
        """For a program, an entry a round: `describe_review`, the similarity that counted, and under `rechecked` what
        became of the answers to questions asked again (`count_changes`), None where none was."""
        rounds: list[dict[str, Any]] = []
        for number in sorted({c.round for c in self.corrections}):
            again = [(a.before_wrong, a.after_wrong) for a in self.again if a.round == number]
            counts = describe_review([c for c in self.corrections if c.round == number], self.names)
            rounds.append({"round": number, "similarity": self.similarity, **counts})
            rounds[-1]["rechecked"] = count_changes(again) if again else None
        return rounds


def _judge_retest(again: RetestResult, reviewed: Correction, names: Sequence[str]) -> RetestResult:
    later = replace(reviewed, before=again.answer, reasons=("rule",) if again.after_wrong else ())
    before_wrong = again.before_wrong or is_missed(reviewed, names)
    return replace(again, before_wrong=before_wrong, after_wrong=is_missed(later, names))


def _spell(value: object) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
