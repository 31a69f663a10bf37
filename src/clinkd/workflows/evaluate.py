"""Answers, wherever they come from, scored by the papers' scripts and strictly, side by side. Imports no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clinkd.config import EvaluateConfig
from clinkd.pipeline.cautions import caution_few_groups, count_groups
from clinkd.pipeline.prepared import EVALUATION, PREDICTIONS, SAMPLES, SCORED, read_identifying_texts
from clinkd.pipeline.runs import REPORT, SCORES
from clinkd.records import BadInput, Modality, Prediction, Score, Table, Task
from clinkd.remote import Scrubber
from clinkd.reporting.gallery import choose_gallery
from clinkd.reporting.report import RunSummary, ShownAnswers, write_report
from clinkd.reporting.tables import MISSING, NOT_COMPUTED, as_cell, describe_scores, format_signed, tabulate_scores
from clinkd.scoring import official
from clinkd.scoring.baselines import make_image_blind_baselines
from clinkd.scoring.captions import CaptionScorer
from clinkd.scoring.measure import Rules
from clinkd.scoring.official import ReleasedAnswer
from clinkd.scoring.outcome import MODES, Mode, Outcome, strict_outcomes
from clinkd.scoring.score import Gain, score_predictions, spell_interval
from clinkd.storage import write_json, write_lines
from clinkd.workflows.answer import ASKED, Answers, hash_samples


@dataclass(frozen=True)
class Evaluation:
    """The scores of some answers: an outcome for each mode and task, and all strict scores that they come from."""

    answers: Answers
    outcomes: Sequence[Outcome]
    scores: Sequence[Score] = ()
    gains: Sequence[Gain] = ()
    strict_tables: Sequence[Table] = ()
    iou: float = EvaluateConfig().iou

    @property
    def cautions(self) -> list[str]:
        """What a reader must know before the scores, a sentence each."""
        return [*self.answers.doubts, *caution_few_groups(self.answers.samples)]

    def to_json(self) -> dict[str, Any]:
        """The outcome itself where there is only one; else by mode, then by task."""
        about = {"system": self.answers.system, "test_set": self.answers.test_set, "told": dict(self.answers.notes)}
        about["cautions"] = self.cautions
        if len(self.outcomes) == 1:
            return {**self.outcomes[0].to_json(), **about}
        by_mode: dict[str, Any] = {m: {} for m in MODES if any(o.mode == m for o in self.outcomes)}
        for outcome in self.outcomes:
            by_mode[outcome.mode][outcome.task.value] = outcome.to_json()
        return {**by_mode, **about}

    def tables(self) -> list[Table]:
        """Each task as the scripts score it above the same answers scored strictly; then by modality."""
        ordered = sorted(self.outcomes, key=lambda o: (list(Task).index(o.task), MODES.index(o.mode)))
        return [_tabulate_overall(self.answers, ordered), _tabulate_modalities(ordered)]


# ---- scores ---------------------------------------------------------------------------------------------------------


def evaluate(
    answers: Answers,
    modes: Sequence[Mode] = MODES,
    config: EvaluateConfig | None = None,
    captions: CaptionScorer | None = None,
) -> Evaluation:
    """Score answers in one mode or both. What cannot be computed has a reason in its place. `captions`: the scorer of
    captions; without it the function starts its own."""
    config = config or EvaluateConfig()
    with CaptionScorer.opened(captions) as scorer:
        baselines = make_image_blind_baselines(answers.train, answers.samples)
        outcomes = _score_by_scripts(answers, baselines, config.replicates, scorer) if "official" in modes else []
        if "strict" not in modes:
            return Evaluation(answers, outcomes)
        scored = score_predictions(answers.samples, answers.predictions, baselines, answers.lexicon, config, scorer)
    scores, gains = scored.scores(), scored.gains()
    tables = tabulate_scores(scores, gains)
    if len({s.source for s in answers.samples}) > 1:
        tables.append(scored.by_source())
    outcomes += strict_outcomes(scored, scores, answers.predictions)
    return Evaluation(answers, outcomes, scores, gains, tables, config.iou)


def _score_by_scripts(
    answers: Answers, baselines: Mapping[str, Sequence[Prediction]], replicates: int, scorer: CaptionScorer
) -> list[Outcome]:
    tasks = {s.id: s.task for s in answers.samples}
    outcomes = []
    for task in (t for t in Task if t in tasks.values()):
        rows = [answers.rows[id] for id in tasks if tasks[id] is task]
        blind_rows: dict[str, list[ReleasedAnswer]] = defaultdict(list)  # the same questions, answered otherwise
        for name, predictions in baselines.items():
            for p in predictions:
                if tasks[p.id] is task:
                    response = official.as_released_text(p.answer)
                    blind_rows[name].append(replace(answers.rows[p.id], response=response))
        outcome = official.evaluate(rows, task, replicates, scorer, blind_rows)
        truncated = sum(p.answer.truncated for p in answers.predictions if tasks[p.id] is task)
        empty = sum(not official.clean_released_answer(row.response) for row in rows)
        outcomes.append(replace(outcome, truncated=truncated, empty=empty))
    return outcomes


# ---- on the screen --------------------------------------------------------------------------------------------------

_TITLES = {"official": "the papers' scripts", "strict": "strict"}


def _tabulate_overall(answers: Answers, outcomes: Sequence[Outcome]) -> Table:
    columns = (
        *("", "scored by", "metric", "answers", "score", "95 %", "best blind baseline", "above it"),
        *("no box read", "cut", "empty"),
    )
    rows, notes = [], []
    for o in outcomes:
        score, blind_by = o.score(), o.blind_by
        best = max(blind_by, key=blind_by.__getitem__, default=None)
        rows.append(
            (
                *(o.task.value, _TITLES[o.mode], o.metric, f"{o.answers:,}"),
                *(as_cell(score, NOT_COMPUTED), spell_interval(o.interval)),
                MISSING if best is None else f"{blind_by[best]:.1f} ({best})",
                format_signed(None if best is None or score is None else score - blind_by[best]),
                *(str(o.unparsed) if o.task is Task.VG else MISSING, str(o.truncated), str(o.empty)),
            )
        )
        notes += [f"{o.task.value} {o.metric} not computed: {o.why}"] if score is None else []
    notes += [f"{count:,} {what}" for what, count in answers.notes.items()]
    number, noun = count_groups(answers.samples)
    notes.append(
        f"x100, mean over modalities with questions; 95 % intervals over {number:,} {noun}. A blind "
        "baseline answers without the image: what is not above the best of them was not seen in it."
    )
    return Table(f"{answers.system} on {answers.test_set}", columns, tuple(rows), tuple(notes))


def _tabulate_modalities(outcomes: Sequence[Outcome]) -> Table:
    scores = [{"xray" if m == "x" else m: o.score(m) for m in o.totals} for o in outcomes]
    rank = {m.value: i for i, m in enumerate(Modality)}
    names = dict.fromkeys(m for scores_of_outcome in scores for m in scores_of_outcome)
    columns = sorted(names, key=lambda m: rank.get(m, len(rank)))
    rows = [
        (o.task.value, _TITLES[o.mode], *(as_cell(scores_of_outcome.get(m)) for m in columns))
        for o, scores_of_outcome in zip(outcomes, scores, strict=True)
    ]
    return Table("by modality", ("", "scored by", *columns), tuple(rows))


# ---- files ----------------------------------------------------------------------------------------------------------


def write(evaluation: Evaluation, folder: Path) -> None:
    """Write a folder with the questions, answers and scores, the tables, and a page to look at."""
    answers = evaluation.answers
    write_lines(folder / SAMPLES, (s.to_json() for s in answers.samples))
    write_lines(folder / PREDICTIONS, (p.to_json() for p in answers.predictions))
    write_lines(folder / SCORED, (s.to_json() for s in evaluation.scores))
    official_outcomes = {o.task.value: o.to_json() for o in evaluation.outcomes if o.mode == "official"}
    strict_table = (
        describe_scores(evaluation.scores, {}, evaluation.gains) if evaluation.scores else {"mode": "official"}
    )
    write_json(folder / SCORES, {**strict_table, "official": official_outcomes, "cautions": evaluation.cautions})
    gallery = [] if answers.root is None else choose_gallery(answers.samples, answers.predictions, 24)
    root = answers.root or Path()
    summary = RunSummary(
        name=answers.system,
        tables=[*evaluation.tables(), *evaluation.strict_tables],
        scores=evaluation.scores,
        setup=[(name, str(value), "") for name, value in answers.source.items()],
        wall_seconds={},
        cautions=evaluation.cautions,
    )
    shown = Scrubber(read_identifying_texts(root, [s for s, _ in gallery]) if gallery else ()).plain
    rules = Rules(evaluation.iou, answers.lexicon)
    on_page = ShownAnswers(image_root=root, gallery=gallery, rules=rules, shown=shown)
    write_report(folder / REPORT, summary, on_page)
    write_json(folder / EVALUATION, _describe_evaluation(evaluation))  # last: a folder with it is whole


def _describe_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    answers = evaluation.answers
    return {
        "system": answers.system,
        "test_set": {
            "name": answers.test_set,
            "sha256": hash_samples(answers.samples),
            "samples": len(answers.samples),
        },
        "modes": [m for m in MODES if any(o.mode == m for o in evaluation.outcomes)],
        "tasks": [t.value for t in Task if any(o.task is t for o in evaluation.outcomes)],
        "source": dict(answers.source),
        "told": dict(answers.notes),
        "iou": evaluation.iou,
        "lexicon": answers.lexicon.to_json(),
    }


def may_write(folder: Path) -> None:
    """Raises BadInput where `folder` holds something else than an evaluation, finished or not."""
    is_evaluation = any((folder / name).is_file() for name in (EVALUATION, ASKED))
    if folder.exists() and not is_evaluation and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"--out {folder}: exists and is no evaluation (no {EVALUATION}); choose a new folder")
