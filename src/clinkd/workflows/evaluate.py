"""Answers, wherever they come from, scored by the papers' scripts and strictly, side by side. Imports no torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from clinkd.config import EvaluateConfig
from clinkd.pipeline.cautions import caution_few_groups, count_groups
from clinkd.pipeline.prepared import (
    BLIND_CHOICE,
    EVALUATION,
    OUTSIDE,
    PREDICTIONS,
    SAMPLES,
    SCORED,
    read_identifying_texts,
)
from clinkd.pipeline.runs import REPORT, SCORES
from clinkd.records import BadInput, ImageRef, Modality, Prediction, Sample, Table, Task
from clinkd.remote import PlainPage
from clinkd.reporting.browse import MOST, AnsweredSample, choose_evenly
from clinkd.reporting.gallery import choose_gallery, judge_answer
from clinkd.reporting.report import RunSummary, ShownAnswers, write_report
from clinkd.reporting.strict import StrictResults
from clinkd.reporting.tables import (
    AVERAGED,
    MISSING,
    NOT_COMPUTED,
    as_cell,
    describe_blind,
    describe_metrics,
    describe_scores,
    format_signed,
    mean_of_all,
    tabulate_outside,
)
from clinkd.scoring import official
from clinkd.scoring.blind.choice import answer_blindly
from clinkd.scoring.captions import CaptionScorer
from clinkd.scoring.detection import Detection, measure_detection
from clinkd.scoring.measure import Rules
from clinkd.scoring.official import ReleasedAnswer
from clinkd.scoring.outcome import MODES, Mode, Outcome, strict_outcomes
from clinkd.scoring.outside import TASKS, OutsideScorer, make_outside_measure
from clinkd.scoring.score import ScoredAnswers, score_by_measures, score_predictions, spell_interval
from clinkd.storage import write_json, write_lines
from clinkd.workflows.answer import ASKED, Answers, hash_samples


@dataclass(frozen=True)
class Evaluation:
    """The scores of some answers: an outcome for each mode and task, and what mode strict says, if that was asked.
    `outside`: by outside scorer and sample the score of the model's answer, as the program gave it."""

    answers: Answers
    outcomes: Sequence[Outcome]
    strict: StrictResults = field(default_factory=StrictResults)
    detection: Detection | None = None
    outside: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    iou: float = EvaluateConfig().iou

    @property
    def cautions(self) -> list[str]:
        """What a reader must know before the scores, a sentence each."""
        return [*self.answers.doubts, *caution_few_groups(self.answers.samples)]

    @property
    def averages(self) -> dict[Mode, float | None]:
        """The mean of the paper's four tasks, as in its Table 1, by mode; None where one is not computed, and nothing
        where one is not asked."""
        scores = {(o.mode, o.task): o.score() for o in self.outcomes}
        modes = [m for m in MODES if all((m, task) in scores for task in AVERAGED)]
        return {m: mean_of_all([scores[m, task] for task in AVERAGED]) for m in modes}

    def to_json(self) -> dict[str, Any]:
        """The outcome itself where there is only one; else by mode, then by task."""
        about = {"system": self.answers.system, "test_set": self.answers.test_set, "told": dict(self.answers.notes)}
        about["cautions"] = self.cautions
        about |= {"detection": self.detection.to_json()} if self.detection else {}
        if self.outside:
            about["scorers"] = describe_metrics(self.strict.scores, tuple(self.outside))
        if len(self.outcomes) == 1:
            return {**self.outcomes[0].to_json(), **about}
        by_mode: dict[str, Any] = {m: {} for m in MODES if any(o.mode == m for o in self.outcomes)}
        for outcome in self.outcomes:
            by_mode[outcome.mode][outcome.task.value] = outcome.to_json()
        return {**by_mode, **({"average": self.averages} if self.averages else {}), **about}

    def tables(self) -> list[Table]:
        """Each task as the scripts score it above the same answers scored strictly; then by modality."""
        ordered = sorted(self.outcomes, key=lambda o: (list(Task).index(o.task), MODES.index(o.mode)))
        overall = _tabulate_overall(self.answers, ordered, self.averages)
        if self.detection and self.detection.why:
            why = f"VG average precision (mAP) and FROC not computed: {self.detection.why}"
            overall = replace(overall, notes=(why, *overall.notes))
        detection = self.detection.tables() if self.detection else []
        outside = [tabulate_outside(self.strict.scores, tuple(self.outside))] if self.outside else []
        return [overall, _tabulate_modalities(ordered), *detection, *outside]


# ---- scores ---------------------------------------------------------------------------------------------------------


def evaluate(
    answers: Answers,
    modes: Sequence[Mode] = MODES,
    config: EvaluateConfig | None = None,
    captions: CaptionScorer | None = None,
    outside: Sequence[OutsideScorer] = (),
) -> Evaluation:
    """Score answers in one mode or both. What cannot be computed has a reason in its place. `captions`: the scorer of
    captions; without it the function starts its own. `outside`: programs that score them, too, in mode strict.

    Raises BadInput where one of these programs fails.
    """
    config = config or EvaluateConfig()
    with CaptionScorer.opened(captions) as scorer:
        rules = Rules(config.iou, answers.lexicon)
        baselines, choice = answer_blindly(answers.train, answers.validation, answers.samples, rules)
        scored_outside = _score_outside(answers, baselines, config, outside)  # first: what fails here ends it all
        scored = None  # before the scripts' scores: it counts much while METEOR counts the captions of both
        if "strict" in modes:
            scored = score_predictions(answers.samples, answers.predictions, baselines, answers.lexicon, config, scorer)
        outcomes = _score_by_scripts(answers, baselines, config.replicates, scorer) if "official" in modes else []
        outcomes = [replace(o, choice=choice) for o in outcomes]
    if scored is None:
        return Evaluation(answers, outcomes)
    scored = replace(scored, choice=choice, rows=(*scored.rows, *scored_outside.rows))
    choices = any(len(p.candidates) > 1 for p in answers.predictions)
    strict = StrictResults.of(scored, answers.predictions, baselines, answers.lexicon, choices)
    by_sample = scored_outside.each()
    return Evaluation(
        answers=answers,
        outcomes=[*outcomes, *strict_outcomes(scored, strict.scores)],
        strict=strict,
        detection=measure_detection(answers.samples, answers.predictions, config.iou, answers.output),
        outside={s.name: {id: figures[s.name] for id, figures in by_sample.items()} for s in outside},
        iou=config.iou,
    )


def _score_outside(
    answers: Answers,
    baselines: Mapping[str, Sequence[Prediction]],
    config: EvaluateConfig,
    outside: Sequence[OutsideScorer],
) -> ScoredAnswers:
    if outside and not any(s.task in TASKS for s in answers.samples):
        raise BadInput(f"--scorer {outside[0].name}: a scorer reads words, and every question asks for boxes (VG)")
    chosen = [make_outside_measure(scorer) for scorer in outside]
    rules = Rules(config.iou, answers.lexicon)
    return score_by_measures(chosen, answers.samples, answers.predictions, baselines, rules, config.replicates)


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


def _tabulate_overall(answers: Answers, outcomes: Sequence[Outcome], averages: Mapping[Mode, float | None]) -> Table:
    columns = (
        *("", "scored by", "metric", "answers", "score", "95 %", "best blind baseline", "above it"),
        *("no box read", "cut", "empty"),
    )
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for o in outcomes:
        score, blind_by, best = o.score(), o.blind_by, o.best_baseline
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
        notes += [
            f"{o.task.value} {metric} not computed ({_TITLES[o.mode]}): {why}" for metric, why in o.not_computed.items()
        ]
    for mode, average in averages.items():
        cells = "average", _TITLES[mode], "mean of the four", MISSING, as_cell(average, NOT_COMPUTED)
        rows.append((*cells, *(MISSING,) * (len(columns) - len(cells))))
    notes += [f"{count:,} {what}" for what, count in answers.notes.items()]
    number, noun = count_groups(answers.samples)
    notes.append(f"x100, mean over modalities with questions; 95 % intervals over {number:,} {noun}.")
    notes += describe_blind({o.choice.chosen_on for o in outcomes if o.blind_by})
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


_WITHOUT_SCRIPT = 24  # answers that a page shows where its script does not run

# ---- files ----------------------------------------------------------------------------------------------------------


def write(evaluation: Evaluation, folder: Path, images: Path | None = None) -> None:
    """Write a folder with the questions, answers and scores, the tables, and a page to look at.

    `images`: where pictures are looked for that the answers or data only name, by their path or by their file name; a
    picture that is not there is told on the page.
    """
    answers = evaluation.answers
    write_lines(folder / SAMPLES, (s.to_json() for s in answers.samples))
    write_lines(folder / PREDICTIONS, (p.to_json() for p in answers.predictions))
    write_lines(folder / SCORED, (s.to_json() for s in evaluation.strict.scores))
    write_json(folder / BLIND_CHOICE, evaluation.outcomes[0].choice.to_json())
    if evaluation.outside:
        rows = ({"scorer": n, "id": id, "score": v} for n, of in evaluation.outside.items() for id, v in of.items())
        write_lines(folder / OUTSIDE, rows)
    else:
        (folder / OUTSIDE).unlink(missing_ok=True)  # of an earlier evaluation
    official_outcomes = {o.task.value: o.to_json() for o in evaluation.outcomes if o.mode == "official"}
    strict_table = (
        describe_scores(evaluation.strict.scores, {}, evaluation.strict.gains)
        if evaluation.strict.scores
        else {"mode": "official"}
    )
    detection = {"detection": evaluation.detection.to_json()} if evaluation.detection else {}
    about = {"official": official_outcomes, "figures": evaluation.strict.figures, "cautions": evaluation.cautions}
    write_json(folder / SCORES, {**strict_table, **detection, **about})
    _write_page(folder / REPORT, evaluation, images)
    write_json(folder / EVALUATION, _describe_evaluation(evaluation))  # last: a folder with it is whole


def _write_page(path: Path, evaluation: Evaluation, images: Path | None) -> None:
    answers, rules = evaluation.answers, Rules(evaluation.iou, evaluation.answers.lexicon)
    samples = list(answers.samples)
    if answers.root is None and images is not None:
        samples = find_pictures(images, samples)
    root = answers.root or images
    answered = [
        AnsweredSample(number, s, p, None, evaluation.strict.by_sample.get(s.id, {}))
        for number, (s, p) in enumerate(zip(samples, answers.predictions, strict=True), start=1)
    ]
    on_page = [a._replace(right=judge_answer(a.sample, a.prediction, rules)) for a in choose_evenly(answered, MOST)]
    judged = {a.number: a for a in on_page}
    answered = [judged.get(a.number, a) for a in answered]  # the others are counted on the page, and not shown
    # what the file of a picture says of a person is not shown on the page; a file that is not there says nothing
    texts = read_identifying_texts(root, [a.sample for a in on_page], lenient=True) if root is not None else ()
    shown = PlainPage(texts)
    summary = RunSummary(
        name=f"{answers.system} on {answers.test_set}",
        tables=[*evaluation.tables(), *evaluation.strict.tables],
        scores=evaluation.strict.scores,
        figures=evaluation.strict.figures,
        origin=_tabulate_origin(evaluation),
        cautions=evaluation.cautions,
    )
    gallery = choose_gallery([a.sample for a in on_page], [a.prediction for a in on_page], _WITHOUT_SCRIPT)
    write_report(
        path,
        summary,
        ShownAnswers(image_root=root, lenient=True, answered=answered, gallery=gallery, rules=rules, shown=shown),
    )


def find_pictures(folder: Path, samples: Sequence[Sample]) -> list[Sample]:
    """The samples with the paths of their images in `folder`: as they are named, else the one file of that name below
    it. An image that is not found, or whose name several files have, keeps its path."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        by_name[path.name].append(path.relative_to(folder).as_posix())

    def find(image: ImageRef) -> ImageRef:
        paths = by_name[PurePosixPath(image.path.replace("\\", "/")).name]
        exact = [path for path in paths if path == image.path]
        return replace(image, path=(exact or paths)[0]) if exact or len(paths) == 1 else image

    return [replace(s, images=tuple(map(find, s.images))) for s in samples]


def _tabulate_origin(evaluation: Evaluation) -> list[Table]:
    """Who answered what; and what was cut, refused, unread or left out in reading the answers, a row each."""
    answers = evaluation.answers
    source = [(name, str(value)) for name, value in answers.source.items()]
    asked = Counter(s.task for s in answers.samples)
    flaws = {
        "answers cut by a limit of length": sum(p.answer.truncated for p in answers.predictions),
        "answers with a box that could not be read": sum(bool(p.answer.unread) for p in answers.predictions),
        "answers without a word": sum(not p.answer.answer.text.strip() for p in answers.predictions),
        "answers without a box where one was asked for": sum(
            bool(s.answer.boxes) and not p.answer.answer.boxes and s.task is Task.VG
            for s, p in zip(answers.samples, answers.predictions, strict=True)
        ),
    }
    rows = [("system", answers.system), ("test set", answers.test_set), *source]
    rows.append(("questions", ", ".join(f"{count:,} {task.value}" for task, count in sorted(asked.items()))))
    counted = [(what, f"{count:,}") for what, count in {**answers.notes, **flaws}.items() if count]
    return [
        Table("Who answered what", ("", ""), tuple(rows)),
        Table("How the answers were read", ("", "Count"), tuple(counted or [("every answer was read whole", MISSING)])),
    ]


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
