"""One HTML page that shows a finished run, or the answers of any system: scores, every answer, figures; of a run also
corrections, trainings, knobs, and the time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clinkd.records import Modality, Prediction, Sample, Score, Table, Task
from clinkd.reporting import figures
from clinkd.reporting.browse import AnsweredSample, PageContent, select_for_page, select_without_text
from clinkd.reporting.columns import explain_columns
from clinkd.reporting.figures import Curve
from clinkd.reporting.gallery import PLAIN_RULES, CorrectedAnswer, answer_card, judge_answer, rewritten_card
from clinkd.reporting.opening import explain_tasks, show_three, state_result, tabulate_headline
from clinkd.reporting.printed import paper_tables
from clinkd.reporting.tables import BY_MODALITY, BY_SOURCE, OUTSIDE, SCORES, TITLES, ScoreIndex, to_csv, to_markdown
from clinkd.reporting.viewer import page
from clinkd.reporting.viewer.browse import Choices, Key, render_browser
from clinkd.reporting.viewer.overlay import ANSWER, ASKED, LATER, TRUTH
from clinkd.reporting.viewer.shot import Html
from clinkd.scoring.measure import Rules
from clinkd.storage import write_atomic

_LONG = 20  # rows of a table about the corrections that are shown at once
_FIRST = 3  # corrections that are shown at once
_FOLDS = (
    "Cross-validation of {} folds: each question was answered by the model of the fold that never saw its patient (or "
    "image). These answers were pooled and scored once. Trainings and corrections are on the pages of the folds."
)
_VERDICTS = (("", "all"), ("wrong", "wrong"), ("right", "right"), ("open", "not judged"))
_ORDERS = (("", "worst first"), ("best", "best first"), ("given", "in order"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """The content of a page about a run, without its answers. `setup` rows: knob, value, the paper's value.
    `reflection`: tables about the corrections. `cautions`: what a reader must know before the scores. `folds`: of a
    cross-validation, whose answers are pooled here; 0 for another run. `figures`: the numbers of the figures, as
    `scoring.plotted` gives them. `origin`: of answers that no run gave, tables that say where they come from and how
    they were read; they stand in the place of knobs and time, and `name` is the page's whole title."""

    tables: Sequence[Table]
    scores: Sequence[Score]
    setup: Sequence[tuple[str, str, str]] = ()
    wall_seconds: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    origin: Sequence[Table] = ()
    reflection: Sequence[Table] = ()
    curves: Sequence[Curve] = ()
    cautions: Sequence[str] = ()
    name: str = ""
    folds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownAnswers:
    """The answers on a page; their images lie under `image_root`, if that is known. `lenient`: an image that cannot be
    opened is told on the page.

    The reader can look through `answered`, or through the `gallery` where there are none. A page without its
    script shows the cards of the gallery. `rewritten`: some of the corrections. Every text passes `shown`.
    """

    image_root: Path | None
    lenient: bool = False
    answered: Sequence[AnsweredSample] = ()
    gallery: Sequence[tuple[Sample, Prediction]] = ()
    rewritten: Sequence[CorrectedAnswer] = ()
    rules: Rules = PLAIN_RULES
    shown: Callable[[str], str] = str

    def browsed(self) -> PageContent:
        """The part of the answers that the page shows. Raises BadInput on an unreadable image."""
        items = self.answered or [
            AnsweredSample(i, s, p, judge_answer(s, p, self.rules), {})
            for i, (s, p) in enumerate(self.gallery, start=1)
        ]
        return select_for_page(items, self.image_root, self.shown, lenient=self.lenient)

    def corrections(self) -> list[Html]:
        """The rewritten answers as cards, before and after. Raises BadInput on an unreadable image."""
        if not self.rewritten or self.image_root is None:
            return []
        lines = (("truth", TRUTH), ("before", ANSWER), ("after the round", LATER), ("asked about", ASKED))
        words = "Before and after. ✓ and ✗ judge the answer after the round, where it is known."
        cards = [rewritten_card(r, self.image_root, self.shown) for r in self.rewritten]
        first, others = page.gallery(cards[:_FIRST], small=True), cards[_FIRST:]
        more = [page.folded(f"{len(others)} more corrections", [page.gallery(others)])] if others else []
        return [page.paragraph(words), page.key(lines), first, *more]


def write_report(path: Path, summary: RunSummary, answers: ShownAnswers) -> None:
    """Write the page, and beside it table.md and table.csv, each whole or not at all.

    Raises BadInput on an unreadable image or a full disk.
    """
    summary = _rename_data(summary, answers.shown, answers.shown)
    browsed = answers.browsed()
    three = show_three(browsed, answers.shown)
    cards = _build_gallery_cards([s.id for s, _ in answers.gallery], browsed, answers.shown)
    title = summary.name if summary.origin else f"ClinKD run: {summary.name}"
    html = _build_page(title, summary, browsed, cards, answers.corrections(), three)
    write_tables(path.parent, summary.tables, summary.scores)
    write_atomic(path, html)


def write_shared(path: Path, summary: RunSummary, answered: Sequence[AnsweredSample]) -> None:
    """Write a page that can be mailed: without a pixel, the name of the run, or a word that people or models wrote.

    Sources and classes go by numbers; other tables, charts and set-up are shown as they are given. Raises BadInput on a
    full disk.
    """
    summary = _rename_data(summary, _number_names("source"), _number_names("class"))
    write_atomic(path, _build_page("ClinKD run", summary, select_without_text(answered), Html(""), []))


def _rename_data(summary: RunSummary, source: Callable[[str], str], label: Callable[[str], str]) -> RunSummary:
    """The summary with other names for sources and classes, which are words of the data."""
    tables = [
        replace(t, rows=tuple((row[0], source(row[1]), *row[2:]) for row in t.rows)) if t.key == BY_SOURCE else t
        for t in summary.tables
    ]
    return replace(summary, tables=tables, figures=figures.rename_classes(summary.figures, label))


def _number_names(noun: str) -> Callable[[str], str]:
    """Names are replaced by the noun and the order in which they come."""
    numbers: dict[str, str] = {}
    return lambda name: numbers.setdefault(name, f"{noun} {len(numbers) + 1}")


def _build_page(
    title: str,
    summary: RunSummary,
    browsed: PageContent,
    cards: Html,
    rewritten: Sequence[Html],
    three: Sequence[Html] = (),
) -> str:
    score_index = ScoreIndex(summary.scores)
    sections = _build_opening(summary, score_index, three)
    sections.append(page.section("Scores", _show_scores(summary, score_index, browsed)))
    if browsed.answered:
        sections.append(page.section("Answers", [_build_answer_browser(browsed, cards)], anchor="answers"))
    if drawn := figures.draw_figures(summary.figures):
        sections.append(page.section("Figures", drawn))
    if summary.scores:
        sections.append(page.section("Averages by kind of data", [figures.draw_averages(score_index)]))
    if corrections := [*_show_reflection(summary.reflection), *rewritten]:
        sections.append(page.section("Corrections", corrections))
    if summary.curves:
        sections.append(page.section("Training", [figures.draw_training_curves(summary.curves)]))
    if summary.origin:
        sections.append(page.section("Where the answers come from", list(map(page.table, summary.origin))))
    else:
        knobs = Table("Every knob, beside the paper's value", ("Knob", "This run", "Paper"), tuple(summary.setup))
        sections.append(page.section("Set-up", [page.folded(f"All {len(summary.setup)} knobs", [_show_table(knobs)])]))
    if summary.wall_seconds:
        sections.append(page.section("Time", [_show_table(_tabulate_times(summary.wall_seconds))]))
    printed = [page.framed([_fold_table(t) for t in paper_tables()])]
    sections.append(page.section("The paper's figures", printed))
    return page.document(
        title,
        sections,
        footer="Made by ClinKD. This page holds everything it shows, and asks no network for anything.",
        data=browsed.data if browsed.answered else None,
    )


def _build_opening(summary: RunSummary, score_index: ScoreIndex, three: Sequence[Html]) -> list[Html]:
    """What the first screen holds: the result in a sentence, three pictures, the headline table; cautions before them.
    Nothing where there is none of these."""
    result = state_result(summary.scores)
    first, *others = [page.paragraph(f"Caution: {text}.") for text in summary.cautions] or [Html("")]
    cautions = [first, *([page.folded(f"{len(others)} more cautions", others)] if others else [])]
    table: list[Html] = []
    if summary.scores:
        table = [_show_table(tabulate_headline(score_index)), explain_tasks([s.task for s in summary.scores])]
    if not (result or summary.cautions or three):
        return []
    shown = [page.side_by_side(three, table)] if three and table else [*three, *table]
    folds = [page.paragraph(_FOLDS.format(summary.folds))] if summary.folds else []
    return [page.section("Result", [page.paragraph(result), *folds, *cautions, *shown])]


def _show_scores(summary: RunSummary, score_index: ScoreIndex, browsed: PageContent) -> list[Html]:
    """Task by modality, open; all other tables and the charts folded."""
    if not summary.scores:
        return [_fold_table(t) for t in summary.tables]
    question_counts = Counter((item.sample.task, item.sample.modality) for item in browsed.answered)
    lead = (
        "Every score stands beside answers given without seeing the image. A model that is not above the best of these "
        "has not shown that it used the image."
    )
    grid = figures.draw_score_grid(score_index, question_counts)  # it holds what the left-out tables do
    tables = [_fold_table(t) for t in summary.tables if t.key not in (BY_MODALITY, OUTSIDE)]
    charts = page.folded("The scores as charts", [figures.draw_score_charts(score_index)])
    return [page.paragraph(lead, soft=True), grid, charts, *tables]


def _show_reflection(tables: Sequence[Table]) -> list[Html]:
    """The first table about the corrections, open; the others folded."""
    first = [part for t in tables[:1] for part in _shorten_table(t)]
    return [*first, *(page.folded(t.title, _shorten_table(t)) for t in tables[1:])]


def _show_table(table: Table) -> Html:
    """A table with what its columns say."""
    return page.table(table, explain_columns(table.columns))


def _fold_table(table: Table) -> Html:
    beams = any(row[0].startswith("First beam") for row in table.rows)
    by_row = f": every baseline{', the first beam, the best candidate' if beams else ''}" if table.key == SCORES else ""
    return page.folded(table.title + by_row, [_show_table(table)])


def _build_answer_browser(browsed: PageContent, cards: Html) -> Html:
    """Filters over the answers on the page, and the cards that a page without its script shows."""
    samples = [item.sample for item in browsed.answered]
    metrics = dict.fromkeys(name for entry in browsed.data["samples"] for name in entry["f"])
    sources = browsed.data["sources"]
    tasks = ((t.value, t.value) for t in Task if any(s.task is t for s in samples))
    modalities = ((m.value, TITLES[m]) for m in Modality if any(s.modality is m for s in samples))
    filters = [
        Choices("task", "Task", _add_all_option(tasks)),
        Choices("modality", "Modality", _add_all_option(modalities)),
        Choices("verdict", "Verdict", _VERDICTS),
        Choices("by", "Score", [("", "task's own"), *((name, name) for name in metrics)]),
        Choices("order", "Order", _ORDERS),
    ]
    if len(sources) > 1:
        named = ((str(i), name or "not named") for i, name in enumerate(sources))
        filters.insert(3, Choices("source", "Source", _add_all_option(named)))
    keys = (Key("truth", TRUTH, "truth"), Key("answer", ANSWER, "answer"), Key("asked", ASKED, "asked about"))
    has_words = any("q" in entry for entry in browsed.data["samples"])
    search = "Words in question, truth or answer" if has_words else ""
    return Html(page.note(browsed.notes) + render_browser(filters, keys, cards, search))


def _add_all_option(options: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [("", "all"), *options]


def _build_gallery_cards(ids: Sequence[str], browsed: PageContent, shown: Callable[[str], str]) -> Html:
    """Cards of the gallery answers on the page. The first card of an image holds its picture; the data then do not."""
    item_by_id = {item.sample.id: item for item in browsed.answered}
    picture_numbers = browsed.number_pictures()
    cards = []
    for item in (item_by_id[i] for i in ids if i in item_by_id):
        image = item.sample.images[0]
        if image not in picture_numbers:
            continue  # it could not be opened
        number = picture_numbers[image]
        if browsed.data["pictures"][number][0] is None:
            continue  # the page would hold it twice
        browsed.data["pictures"][number][0] = None
        cards.append(answer_card(item.sample, item.prediction, item.right, browsed.pictures[image], number, shown))
    return page.gallery(cards)


def _shorten_table(table: Table) -> list[Html]:
    """A long table without its sub-rows, and the whole table on demand."""
    if len(table.rows) <= _LONG:
        return [_show_table(table)]
    short = replace(table, rows=tuple(r for r in table.rows if not r[0].startswith(" ")))
    return [_show_table(short), page.folded("Every row", [_show_table(replace(table, notes=()))])]


def write_tables(folder: Path, tables: Sequence[Table], scores: Sequence[Score]) -> None:
    """table.md for reading, table.csv with one line a score."""
    write_atomic(folder / "table.md", "\n".join(to_markdown(t) for t in tables) + f"\n{page.NOTICE}\n")
    write_atomic(folder / "table.csv", to_csv(scores))


def _tabulate_times(wall_seconds: Mapping[str, float]) -> Table:
    total = sum(wall_seconds.values())
    rows = [(k, f"{v:.1f}", f"{100 * v / total:.0f}" if total else "-") for k, v in wall_seconds.items()]
    return Table("Wall-clock time by stage", ("Stage", "Seconds", "% of all"), (*rows, ("All", f"{total:.1f}", "100")))
