"""One HTML page that shows a finished run: scores, figures, pictures, corrections, set-up, and where the time went."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from clinkd import viewer
from clinkd.agreement import Lexicon, read_facts
from clinkd.data import open_image
from clinkd.evaluation.metrics import BOXES, FACTS, HEADLINE, NAMES, Item, Measure, Rules, particle
from clinkd.evaluation.score import MODEL
from clinkd.evaluation.tables import TITLES, Again, Board, paper_tables, to_csv, to_markdown
from clinkd.records import Box, Correction, Modality, Prediction, Sample, Score, Table, Task
from clinkd.storage import write_atomic
from clinkd.viewer import ANSWER, ASKED, LATER, TRUTH, Bar, Card, Html

NOTICE = "Research use only. Not a medical device; nothing here may inform a clinical decision."
_NO_WORDS = Lexicon(())
_LONG = 20  # rows of a table about the corrections that are shown at once


class Rewritten(NamedTuple):
    """A wrong answer of a review, what was made of it, and how its question was answered after the round."""

    sample: Sample
    correction: Correction
    again: Again | None = None


def write_report(
    path: Path,
    *,
    run_name: str,
    tables: Sequence[Table],
    scores: Sequence[Score],
    gallery: Sequence[tuple[Sample, Prediction]],
    image_root: Path,
    setup: Sequence[tuple[str, str, str]],
    wall_seconds: Mapping[str, float],
    reflection: Sequence[Table] = (),
    rewritten: Sequence[Rewritten] = (),
    lexicon: Lexicon = _NO_WORDS,
    iou: float = 0.5,
    shown: Callable[[str], str] = str,
) -> None:
    """Write the page, and beside it table.md and table.csv, each whole or not at all.

    `setup` rows are (knob, value, the paper's value); images lie under `image_root`. `reflection` are tables about the
    corrections, `rewritten` some of them. Every question, answer and truth on the page has passed through `shown`.
    Raises BadInput on an unreadable image or a full disk.
    """
    board = Board(scores)
    rules = Rules(iou, lexicon)

    def pictures(cards: Iterable[Card]) -> Html:
        return viewer.gallery([_through(shown, c) for c in cards])

    made = [viewer.table(t) for t in tables]
    sections = [viewer.section("Scores", [*made[:1], _charts(board), *made[1:]])]
    if gallery:
        colours = (("truth", TRUTH), ("answer", ANSWER), ("asked about", ASKED))
        cards = (_card(s, p, image_root, rules) for s, p in gallery)
        sections.append(viewer.section("Answers", [viewer.key(colours), pictures(cards)]))
    if reflection:
        parts = [part for t in reflection for part in _in_short(t)]
        if rewritten:
            lines = (("truth", TRUTH), ("before", ANSWER), ("after the round", LATER), ("asked about", ASKED))
            parts.append(
                viewer.paragraph("Before and after. ✓ and ✗ judge the answer after the round, where it is known.")
            )
            parts += [viewer.key(lines), pictures(_rewritten_card(r, image_root) for r in rewritten)]
        sections.append(viewer.section("Corrections", parts))
    knobs = Table("Every knob, beside the paper's value", ("Knob", "This run", "Paper"), tuple(setup))
    sections.append(viewer.section("Set-up", [viewer.table(knobs)]))
    if wall_seconds:
        sections.append(viewer.section("Time", [viewer.table(_times(wall_seconds))]))
    sections.append(viewer.section("The paper's figures", [viewer.table(t) for t in paper_tables()]))
    html = viewer.page(
        f"ClinKD run: {run_name}",
        sections,
        notice=NOTICE,
        lead="Every score stands beside answers given without seeing the image. What lies above the best of these "
        "was seen in the image; the rest was guessed from the question.",
        footer="Made by ClinKD. This page holds everything it shows: no network, no script.",
    )
    write_tables(path.parent, tables, scores)
    write_atomic(path, html)


def _in_short(table: Table) -> list[Html]:
    """A long table without the rows that belong to others, the whole one on demand."""
    if len(table.rows) <= _LONG:
        return [viewer.table(table)]
    short = replace(table, rows=tuple(r for r in table.rows if not r[0].startswith(" ")))
    return [viewer.table(short), viewer.folded("Every row", [viewer.table(replace(table, notes=()))])]


def write_tables(folder: Path, tables: Sequence[Table], scores: Sequence[Score]) -> None:
    """table.md for reading, table.csv with one line a score."""
    write_atomic(folder / "table.md", "\n".join(to_markdown(t) for t in tables) + f"\n{NOTICE}\n")
    write_atomic(folder / "table.csv", to_csv(scores))


def choose_gallery(
    samples: Sequence[Sample], predictions: Sequence[Prediction], count: int
) -> list[tuple[Sample, Prediction]]:
    """`count` questions with their answers, taking turns over tasks and modalities, each image once where that is
    enough. Which questions are shown does not depend on how they were answered."""
    answered = {p.id: p for p in predictions}
    piles: dict[tuple[Task, Modality], list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.id in answered:
            piles[sample.task, sample.modality].append(sample)
    tasks = [t for t in Task if any(k[0] is t for k in piles)]
    # Diagonally: the first row of pictures then shows other tasks and other modalities.
    order = sorted(piles, key=lambda k: ((list(Modality).index(k[1]) + tasks.index(k[0])) % len(Modality), k))
    chosen: list[Sample] = []
    seen: set[str] = set()
    while len(chosen) < count and any(piles.values()):
        for kind in order:
            if piles[kind] and len(chosen) < count:
                at = next((i for i, s in enumerate(piles[kind]) if s.group not in seen), 0)
                sample = piles[kind].pop(at)
                seen.add(sample.group)
                chosen.append(sample)
    return [(s, answered[s.id]) for s in chosen]


def choose_rewritten(
    samples: Sequence[Sample], corrections: Sequence[Correction], again: Sequence[Again], count: int
) -> list[Rewritten]:
    """`count` wrong answers, a quarter of them refused rewritings where there are so many, each time of the task,
    modality, reasons and round shown least so far. Those whose question was asked again come before others like them;
    how it was answered then does not matter."""
    known = {s.id: s for s in samples}
    later = {(a.round, a.id): a for a in again}
    wrong = [Rewritten(known[c.id], c, later.get((c.round, c.id))) for c in corrections if c.wrong]
    refused = [r for r in wrong if r.correction.rejected is not None]
    mended = [r for r in wrong if r.correction.after is not None]
    few = min(len(refused), max(count // 4, count - len(mended)))
    return [*_spread(mended, count - few), *_spread(refused, few)]


def _spread(wrong: Sequence[Rewritten], count: int) -> list[Rewritten]:
    piles: dict[tuple[object, ...], list[Rewritten]] = defaultdict(list)
    for r in sorted(wrong, key=lambda r: r.again is None):  # stable: else in the order of the review
        piles[r.sample.task, r.sample.modality, r.correction.reasons, r.correction.round].append(r)
    shown: Counter[tuple[int, object]] = Counter()
    chosen: list[Rewritten] = []
    while len(chosen) < count and piles:
        kind = min(piles, key=lambda k: (sum(shown[part] for part in enumerate(k)), -len(piles[k])))
        chosen.append(piles[kind].pop(0))
        shown.update(enumerate(kind))
        if not piles[kind]:
            del piles[kind]
    return chosen


# ---- figures --------------------------------------------------------------------------------------------------------


def _charts(board: Board) -> Html:
    overall = [
        Bar(f"{t.value} {m}", *_figures(board, t, m, None)) for t in Task for m in (HEADLINE[t], FACTS)
        if m in board.metrics(t)
    ]  # fmt: skip
    found = [viewer.bars("By task, mean over modalities (x100)", overall)] if overall else []
    for task in Task:
        metric = next((m for m in (HEADLINE[task], FACTS) if board.value(MODEL, task, m) is not None), None)
        if metric is not None:
            modalities = board.modalities(task, metric)
            rows = [Bar(TITLES[m], *_figures(board, task, metric, m)) for m in modalities]
            found.append(viewer.bars(f"{task.value}: {metric} by modality (x100)", rows))
    return Html(viewer.charts(found) + viewer.note(["Whiskers: 95 % intervals, bootstrap by image."]))


def _figures(
    board: Board, task: Task, metric: str, modality: Modality | None
) -> tuple[float | None, float | None, tuple[float, float] | None]:
    own, blind = board.get(MODEL, task, metric, modality), board.blind(task, metric, modality)
    return own.value if own else None, blind[1] if blind else None, own.interval if own else None


# ---- pictures -------------------------------------------------------------------------------------------------------


def _through(shown: Callable[[str], str], card: Card) -> Card:
    """The card with all that people or models wrote put through `shown`: the one way of such text onto the page."""
    lines = tuple((heading, shown(text)) for heading, text in card.lines)
    return card._replace(lines=lines, folded=tuple(shown(text) for text in card.folded))


def _rewritten_card(rewritten: Rewritten, root: Path) -> Card:
    sample, correction, again = rewritten
    before, truth, after = correction.before, correction.truth, again.answer if again else None
    marks = [
        *((b, "asked", ASKED) for b in sample.question.boxes),
        *((b, "truth", TRUTH) for b in truth.boxes),
        *((b, "before", ANSWER) for b in before.boxes),
        *((b, "after", LATER) for b in (after.boxes if after else ())),
    ]
    picture = _drawn(root, sample, marks)
    lines = [
        ("Question", sample.question.text),
        ("Answer before", before.text),
        ("Truth", truth.text),
        ("Found wrong by", f"{', '.join(correction.reasons)}; similarity of the words {correction.similarity:.2f}"),
    ]
    if correction.after is not None:
        lines += [("Rewritten", correction.after.text), ("Written by", correction.by)]
    else:
        lines += [("Refused, the truth stays", correction.rejected or ""), ("Written by", correction.by)]
    if after is not None:
        lines.append(("Answer after the round", after.text))
    alt = (
        f"{TITLES[sample.modality]} image with {len(truth.boxes)} true boxes, {len(before.boxes)} of the answer before"
    )
    alt += f" and {len(after.boxes)} of the answer after" if after is not None else ""
    title = f"Round {correction.round} · {sample.task.value} · {TITLES[sample.modality]}"
    return Card(picture, alt, title, tuple(lines), None if again is None else not again.after_wrong)


def _drawn(root: Path, sample: Sample, marks: Sequence[tuple[Box, str, str]]) -> Image.Image:
    image = open_image(root, sample.images[0])
    return viewer.overlay(image, [m[0] for m in marks], [m[1] for m in marks], [m[2] for m in marks])


def _card(sample: Sample, prediction: Prediction, root: Path, rules: Rules) -> Card:
    answer, truth = prediction.answer.answer, sample.answer
    marks = [
        *((b, "asked", ASKED) for b in sample.question.boxes),
        *((b, "truth", TRUTH) for b in truth.boxes),
        *((b, "answer", ANSWER) for b in answer.boxes),
    ]
    picture = _drawn(root, sample, marks)
    lines = [("Question", sample.question.text), ("Truth", truth.text), ("Answer", answer.text)]
    if prediction.answer.unread:
        lines.append(("Boxes that could not be read", ", ".join(prediction.answer.unread)))
    if prediction.answer.truncated:
        lines.append(("Note", "cut by the length limit"))
    alt = f"{TITLES[sample.modality]} image with {len(truth.boxes)} true and {len(answer.boxes)} answered boxes"
    title = f"{sample.task.value} · {TITLES[sample.modality]}"
    folded = tuple(
        f"{'chosen: ' if i == prediction.chosen else ''}{c.raw} ({_weights(c.logprob, c.scores)})"
        for i, c in enumerate(prediction.candidates)
    )
    return Card(picture, alt, title, tuple(lines), verdict(sample, prediction, rules), folded)


def _weights(logprob: float | None, scores: Mapping[str, float]) -> str:
    said = [] if logprob is None else [f"log-probability a token {logprob:.2f}"]
    return ", ".join([*said, *(f"{k} {v:.3f}" for k, v in scores.items())]) or "no scores"


def verdict(sample: Sample, prediction: Prediction, rules: Rules) -> bool | None:
    """Whether an answer is right under the strict measures: all boxes and no spare one, the class and no other, every
    stated fact, yes or no; None where no such judgement is possible (a caption of unstated facts)."""
    item = Item(sample, prediction.answer)
    if sample.task is Task.VG:
        return _whole(BOXES, item, rules, "F1")
    if sample.task is Task.ROC:
        return _whole(NAMES, item, rules, "Recall")
    answer, truth = item.answer.answer.words, sample.answer.words
    if sample.task is Task.QA and truth.lower() in ("yes", "no"):
        return particle(answer.lower()) == truth.lower()
    if sample.facts:
        stated = {t for f in sample.facts for t in f.tuples}
        return stated == {t for f in read_facts(answer, rules.lexicon) for t in f.tuples}
    return None


def _whole(measure: Measure, item: Item, rules: Rules, metric: str) -> bool:
    figure = measure.figures(measure.count([item], rules)[0])[measure.metrics.index(metric)]
    return bool(figure == 1 or figure != figure)  # NaN: no box is true, and none was answered


# ---- times -----------------------------------------------------------------------------------------------------------


def _times(wall_seconds: Mapping[str, float]) -> Table:
    total = sum(wall_seconds.values())
    rows = [(k, f"{v:.1f}", f"{100 * v / total:.0f}" if total else "-") for k, v in wall_seconds.items()]
    return Table("Wall-clock time by stage", ("Stage", "Seconds", "%"), (*rows, ("All", f"{total:.1f}", "100")))
