"""One HTML page that shows a finished run: scores, figures, pictures, corrections, set-up, and where the time went."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from clinkd import viewer
from clinkd.agreement import Lexicon, read_facts
from clinkd.data import open_image
from clinkd.evaluation.metrics import BOXES, FACTS, HEADLINE, NAMES, Item, Measure, Rules, particle
from clinkd.evaluation.score import MODEL
from clinkd.evaluation.tables import TITLES, Board, paper_tables, to_csv, to_markdown
from clinkd.records import Correction, Modality, Prediction, Sample, Score, Table, Task
from clinkd.storage import write_atomic
from clinkd.viewer import ANSWER, ASKED, TRUTH, Bar, Card, Html

NOTICE = "Research use only. Not a medical device; nothing here may inform a clinical decision."
_NO_WORDS = Lexicon(())


def write_report(
    path: Path,
    *,
    run_name: str,
    tables: Sequence[Table],
    scores: Sequence[Score],
    gallery: Sequence[tuple[Sample, Prediction]],
    image_root: Path,
    setup: Sequence[tuple[str, str, str]],
    corrections: Sequence[Correction],
    wall_seconds: Mapping[str, float],
    lexicon: Lexicon = _NO_WORDS,
    iou: float = 0.5,
) -> None:
    """Write the page, and beside it table.md and table.csv, each whole or not at all.

    `setup` rows are (knob, value, the paper's value); images lie under `image_root`. Raises BadInput on an unreadable
    image or a full disk.
    """
    board = Board(scores)
    rules = Rules(iou, lexicon)
    shown = [viewer.table(t) for t in tables]
    sections = [viewer.section("Scores", [*shown[:1], _charts(board), *shown[1:]])]
    if gallery:
        colours = (("truth", TRUTH, False), ("answer", ANSWER, True), ("asked about", ASKED, False))
        cards = [_card(s, p, image_root, rules) for s, p in gallery]
        sections.append(viewer.section("Answers", [viewer.key(colours), viewer.gallery(cards)]))
    if corrections:
        sections.append(viewer.section("Corrections", _corrections(corrections)))
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


def _card(sample: Sample, prediction: Prediction, root: Path, rules: Rules) -> Card:
    answer, truth = prediction.answer.answer, sample.answer
    marks = [
        *((b, "asked", ASKED) for b in sample.question.boxes),
        *((b, "truth", TRUTH) for b in truth.boxes),
        *((b, "answer", ANSWER) for b in answer.boxes),
    ]
    image = open_image(root, sample.images[0])
    picture = viewer.overlay(image, [m[0] for m in marks], [m[1] for m in marks], [m[2] for m in marks])
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
    return bool(measure.figures(measure.count([item], rules)[0])[measure.metrics.index(metric)] == 1)


# ---- corrections, times ---------------------------------------------------------------------------------------------


def _corrections(corrections: Sequence[Correction]) -> list[Html]:
    rounds = sorted({c.round for c in corrections})
    rows = []
    for number in rounds:
        own = [c for c in corrections if c.round == number]
        wrong = [c for c in own if c.wrong]
        why = Counter(r for c in wrong for r in c.reasons)
        said = ", ".join(f"{r} {n}" for r, n in why.most_common()) or "-"
        rewritten, refused = sum(c.after is not None for c in own), sum(c.rejected is not None for c in own)
        rows.append((str(number), str(len(own)), str(len(wrong)), str(rewritten), str(refused), said))
    columns = ("Round", "Reviewed", "Wrong", "Rewritten", "Refused", "Found by")
    notes = ("Refused: the rewritten text did not keep the truth's boxes or meaning; the truth stays as it is.",)
    parts = [viewer.table(Table("What became of the reviewed answers", columns, tuple(rows), notes))]
    shown = [c for number in rounds for c in _varied([c for c in corrections if c.round == number and c.after], 6)]
    if shown:
        lines = tuple(
            (str(c.round), c.before.text, c.truth.text, c.after.text if c.after else "", ", ".join(c.reasons), c.by)
            for c in shown
        )
        heads = ("Round", "Answer", "Truth", "Rewritten", "Because of", "By")
        parts.append(viewer.table(Table("Examples", heads, lines)))
    return parts


def _varied(corrections: Sequence[Correction], count: int) -> list[Correction]:
    """Some of each reason rather than the first ones."""
    seen: Counter[tuple[str, ...]] = Counter()
    ranked: list[tuple[int, int, Correction]] = []
    for c in corrections:
        ranked.append((seen[c.reasons], len(ranked), c))
        seen[c.reasons] += 1
    return [c for _, _, c in sorted(ranked, key=lambda r: r[:2])[:count]]


def _times(wall_seconds: Mapping[str, float]) -> Table:
    total = sum(wall_seconds.values())
    rows = [(k, f"{v:.1f}", f"{100 * v / total:.0f}" if total else "-") for k, v in wall_seconds.items()]
    return Table("Wall-clock time by stage", ("Stage", "Seconds", "%"), (*rows, ("All", f"{total:.1f}", "100")))
