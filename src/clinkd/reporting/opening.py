"""The opening of a report: the result in a sentence, three pictures (right, near, wrong), and the headline table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clinkd.records import Score, Table, Task
from clinkd.reporting.browse import AnsweredSample, PageContent
from clinkd.reporting.gallery import answer_card
from clinkd.reporting.tables import MISSING, NOT_COMPUTED, ScoreIndex, as_cell
from clinkd.reporting.viewer import page
from clinkd.reporting.viewer.overlay import ANSWER, ASKED, TRUTH
from clinkd.reporting.viewer.shot import Html
from clinkd.scoring.metrics import PRIMARY_METRIC
from clinkd.scoring.score import MODEL, spell_interval

TASK_NAMES = {
    Task.VG: "finding a named structure, with a box",
    Task.ROC: "naming the structure in a box",
    Task.RC: "describing what is in a box",
    Task.MIA: "describing the whole image",
    Task.QA: "answering a free question",
}


def state_result(scores: Sequence[Score]) -> str:
    """The score of each task beside its best image-blind baseline, in one sentence; "" where nothing was scored."""
    score_index, parts = ScoreIndex(scores), []
    for task in Task:
        metric = PRIMARY_METRIC[task]
        value, blind = score_index.value(MODEL, task, metric), score_index.blind(task, metric)
        if value is None:
            continue
        parts.append(f"{TASK_NAMES[task]} ({task.value}) {value:.1f} ({'-' if blind is None else f'{blind:.1f}'})")
    heading = "Scores of 100, and in brackets the best baseline that answers without seeing the image"
    return f"{heading}: {'; '.join(parts)}." if parts else ""


def tabulate_headline(score_index: ScoreIndex) -> Table:
    """The main score of each task with its interval, the best image-blind baseline, and the number of questions."""
    rows = []
    for task, metric in score_index.columns():
        score, blind = score_index.get(MODEL, task, metric), score_index.blind(task, metric)
        value, interval = (score.value, score.interval) if score else (None, None)
        count = f"{score.count:,}" if score else MISSING
        cells = (as_cell(value, NOT_COMPUTED), spell_interval(interval), as_cell(blind), count)
        rows.append((f"{task.value} {metric}", *cells))
    return Table("The scores of 100", ("", "Score", "95 % interval", "Blind", "Questions"), tuple(rows))


def explain_tasks(tasks: Sequence[Task]) -> Html:
    """The abbreviations of the tasks in words; ROC is not the curve."""
    words = [
        f"{t.value}: {TASK_NAMES[t]}{' (not the curve of that name)' if t is Task.ROC else ''}"
        for t in Task
        if t in tasks
    ]
    return page.note(words)


def choose_three(answered: Sequence[AnsweredSample]) -> list[tuple[str, AnsweredSample]]:
    """The first right answer, the wrong answer that came nearest and the one farthest off, of three images.

    How near: by the mean of the figures of the answer. Questions with a box in the truth come first.
    """

    def nearness(item: AnsweredSample) -> float:
        return sum(item.figures.values()) / len(item.figures) if item.figures else 0.0

    boxed = [a for a in answered if a.sample.answer.boxes] or list(answered)
    right = [a for a in boxed if a.right]
    wrong = sorted((a for a in boxed if a.right is False), key=nearness)
    near = [a for a in reversed(wrong) if nearness(a) > 0]
    chosen: list[tuple[str, AnsweredSample]] = []
    for name, items in (("Right", right), ("Near", near), ("Wrong", wrong)):
        images = {a.sample.images for _, a in chosen}
        numbers = {a.number for _, a in chosen}
        left = [a for a in items if a.number not in numbers]
        item = next((a for a in left if a.sample.images not in images), None)
        if item is not None:
            chosen.append((name, item))
    return chosen


def show_three(browsed: PageContent, shown: Callable[[str], str]) -> list[Html]:
    """The three answers as cards with a legend of the lines; nothing where the page has no pictures.

    The cards hold these pictures; the data then do not.
    """
    cards, numbers = [], browsed.number_pictures()
    for name, item in choose_three(browsed.answered):
        image = item.sample.images[0]
        if image in numbers:
            number = numbers[image]
            card = answer_card(item.sample, item.prediction, item.right, browsed.pictures[image], number, shown)
            cards.append(card._replace(title=f"{name} · {card.title}", verdict=None))
            browsed.data["pictures"][number][0] = None
    if not cards:
        return []
    key = page.key((("truth", TRUTH), ("answer", ANSWER), ("asked about", ASKED)))
    return [key, page.gallery(cards, small=True)]
