"""Answers, wherever they come from, scored by the papers' scripts and strictly, side by side. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clinkd.config import EvaluateConfig
from clinkd.pipeline.prepared import EVALUATION, PREDICTIONS, SAMPLES, SCORED, read_identifying_texts
from clinkd.pipeline.runs import REPORT, SCORES
from clinkd.records import BadInput, Modality, Prediction, Score, Table, Task
from clinkd.remote import Scrubber
from clinkd.reporting import strict
from clinkd.reporting.gallery import choose_gallery
from clinkd.reporting.report import RunSummary, ShownAnswers, write_report
from clinkd.reporting.tables import table_json, tabulate
from clinkd.scoring import official
from clinkd.scoring.baselines import image_blind_baselines
from clinkd.scoring.captions import CaptionScorer
from clinkd.scoring.metrics import Rules
from clinkd.scoring.official import ReleasedAnswer
from clinkd.scoring.outcome import MODES, Mode, Outcome
from clinkd.scoring.score import Gain, score_predictions, spell_interval
from clinkd.storage import write_json, write_lines
from clinkd.workflows.answer import ASKED, Answers, sha256_of


@dataclass(frozen=True)
class Evaluation:
    """The scores of some answers: an outcome for each mode and task, and all strict scores behind them."""

    answers: Answers
    outcomes: Sequence[Outcome]
    scores: Sequence[Score] = ()
    gains: Sequence[Gain] = ()
    strict_tables: Sequence[Table] = ()

    def to_json(self) -> dict[str, Any]:
        """The outcome itself where there is one alone; else by mode, then by task."""
        about = {"system": self.answers.system, "test_set": self.answers.test_set, "told": dict(self.answers.told)}
        if len(self.outcomes) == 1:
            return {**self.outcomes[0].to_json(), **about}
        by_mode: dict[str, Any] = {m: {} for m in MODES if any(o.mode == m for o in self.outcomes)}
        for outcome in self.outcomes:
            by_mode[outcome.mode][outcome.task.value] = outcome.to_json()
        return {**by_mode, **about}

    def tables(self) -> list[Table]:
        """Each task as the scripts score it above the same answers scored strictly; then by modality."""
        ordered = sorted(self.outcomes, key=lambda o: (list(Task).index(o.task), MODES.index(o.mode)))
        return [_overall(self.answers, ordered), _by_modality(ordered)]


# ---- scores ---------------------------------------------------------------------------------------------------------


def evaluate(
    answers: Answers,
    modes: Sequence[Mode] = MODES,
    config: EvaluateConfig | None = None,
    captions: CaptionScorer | None = None,
) -> Evaluation:
    """Score answers in one mode or both. What cannot be computed has a reason in its place. `captions`: counts
    captions, if not one of its own."""
    config = config or EvaluateConfig()
    with CaptionScorer.opened(captions) as scorer:
        twins = image_blind_baselines(answers.train, answers.samples)
        found: list[Outcome] = []
        if "official" in modes:
            found += _officially(answers, twins, config.replicates, scorer)
        if "strict" not in modes:
            return Evaluation(answers, found)
        judged = score_predictions(answers.samples, answers.predictions, twins, answers.lexicon, config, scorer)
    scores, gains = judged.scores(), judged.gains()
    tables = tabulate(scores, gains)
    if len({s.source for s in answers.samples}) > 1:
        tables.append(judged.by_source())
    found += strict.outcomes(judged, scores, answers.predictions)
    return Evaluation(answers, found, scores, gains, tables)


def _officially(
    answers: Answers, twins: Mapping[str, Sequence[Prediction]], replicates: int, scorer: CaptionScorer
) -> list[Outcome]:
    tasks = {s.id: s.task for s in answers.samples}
    chosen = {p.id: p.answer for p in answers.predictions}
    found = []
    for task in (t for t in Task if t in tasks.values()):
        own = [i for i, t in tasks.items() if t is task]
        blind: dict[str, float] = {}
        for twin, said in twins.items():
            rows = [_said(answers.rows[p.id], p) for p in said if tasks[p.id] is task]
            score = official.score_of(rows, task, scorer) if rows else None
            blind |= {} if score is None else {twin: score}
        outcome = official.evaluate([answers.rows[i] for i in own], task, replicates, scorer)
        cut = sum(chosen[i].truncated for i in own)
        empty = sum(not official.clean_released_answer(answers.rows[i].response) for i in own)
        found.append(replace(outcome, blind_by=blind, truncated=cut, empty=empty))
    return found


def _said(row: ReleasedAnswer, prediction: Prediction) -> ReleasedAnswer:
    """A row of the same question, answered otherwise."""
    return replace(row, response=official.as_released_text(prediction.answer))


# ---- on the screen --------------------------------------------------------------------------------------------------

_TITLES = {"official": "the papers' scripts", "strict": "strict"}


def _overall(answers: Answers, outcomes: Sequence[Outcome]) -> Table:
    columns = (
        *("", "scored by", "metric", "answers", "score", "95 %", "best blind twin", "above it"),
        *("no box read", "cut", "empty"),
    )
    rows, notes = [], []
    for o in outcomes:
        best = max(o.blind_by.items(), key=lambda kv: kv[1], default=None)
        blind = f"{best[1]:.1f} ({best[0]})" if best else "-"
        above = "-" if best is None or o.score is None else f"{o.score - best[1]:+.1f}"
        flaws = (str(o.unparsed) if o.task is Task.VG else "-", str(o.truncated), str(o.empty))
        score = "not computed" if o.score is None else f"{o.score:.1f}"
        rows.append(
            (
                o.task.value,
                _TITLES[o.mode],
                o.metric,
                f"{o.answers:,}",
                score,
                spell_interval(o.interval),
                blind,
                above,
                *flaws,
            )
        )
        notes += [f"{o.task.value} {o.metric} not computed: {o.why}"] if o.score is None else []
    notes += [f"{count:,} {what}" for what, count in answers.told.items()]
    notes.append(
        "x100, mean over modalities with questions; intervals: bootstrap by image. A blind twin answers without the "
        "image: what is not above the best of them was not seen in it."
    )
    return Table(f"{answers.system} on {answers.test_set}", columns, tuple(rows), tuple(notes))


def _by_modality(outcomes: Sequence[Outcome]) -> Table:
    names = list(dict.fromkeys("xray" if m == "x" else m for o in outcomes for m in o.by_modality))
    known = [m.value for m in Modality]
    names.sort(key=lambda m: known.index(m) if m in known else len(known))
    rows = []
    for o in outcomes:
        shares = {("xray" if m == "x" else m): share for m, share in o.by_modality.items()}
        cells = (shares[m].score if m in shares else None for m in names)
        rows.append((o.task.value, _TITLES[o.mode], *("-" if c is None else f"{c:.1f}" for c in cells)))
    return Table("by modality", ("", "scored by", *names), tuple(rows))


# ---- files ----------------------------------------------------------------------------------------------------------


def write(found: Evaluation, folder: Path) -> None:
    """A folder with all that was asked, answered and scored, its tables, and a page to look at."""
    answers = found.answers
    write_lines(folder / SAMPLES, (s.to_json() for s in answers.samples))
    write_lines(folder / PREDICTIONS, (p.to_json() for p in answers.predictions))
    write_lines(folder / SCORED, (s.to_json() for s in found.scores))
    by_scripts = {o.task.value: o.to_json() for o in found.outcomes if o.mode == "official"}
    strictly = table_json(found.scores, {}, found.gains) if found.scores else {"mode": "official"}
    write_json(folder / SCORES, {**strictly, "official": by_scripts})
    gallery = [] if answers.root is None else choose_gallery(answers.samples, answers.predictions, 24)
    root = answers.root or Path()
    summary = RunSummary(
        name=answers.system,
        tables=[*found.tables(), *found.strict_tables],
        scores=found.scores,
        setup=[(name, str(value), "") for name, value in answers.source.items()],
        wall_seconds={},
    )
    shown = Scrubber(read_identifying_texts(root, [s for s, _ in gallery]) if gallery else ()).plain
    rules = Rules(EvaluateConfig().iou, answers.lexicon)
    on_page = ShownAnswers(image_root=root, gallery=gallery, rules=rules, shown=shown)
    write_report(folder / REPORT, summary, on_page)
    write_json(folder / EVALUATION, _record(found))  # last: a folder with it is whole


def _record(found: Evaluation) -> dict[str, Any]:
    answers = found.answers
    return {
        "system": answers.system,
        "test_set": {
            "name": answers.test_set,
            "sha256": sha256_of(answers.samples),
            "samples": len(answers.samples),
        },
        "modes": [m for m in MODES if any(o.mode == m for o in found.outcomes)],
        "tasks": [t.value for t in Task if any(o.task is t for o in found.outcomes)],
        "source": dict(answers.source),
        "told": dict(answers.told),
    }


def may_write(folder: Path) -> None:
    """Raises BadInput where `folder` holds something else than an evaluation, whole or under way."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _ours(folder))):
        raise BadInput(f"--out {folder}: exists and is no evaluation (no {EVALUATION}); choose a new folder")


def _ours(folder: Path) -> bool:
    return (folder / EVALUATION).is_file() or (folder / ASKED).is_file()
