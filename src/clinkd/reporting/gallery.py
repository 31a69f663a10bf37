"""Which answers and corrections are shown as pictures, and as what; whether an answer is right."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clinkd.data.images import open_image
from clinkd.language.facts import Lexicon, read_facts
from clinkd.records import Correction, Modality, Prediction, Sample, Task
from clinkd.reporting import viewer
from clinkd.reporting.tables import TITLES, RetestResult
from clinkd.reporting.viewer.page import Card, CardText
from clinkd.reporting.viewer.shot import DrawnBox
from clinkd.scoring.metrics import BOXES, NAMES, PRIMARY_METRIC, Measure, Rules, SampleAnswer, particle

_SIDE = 320  # pixels of a picture beside a correction
PLAIN_RULES = Rules(0.5, Lexicon(()))  # where data have no words of their own


class CorrectedAnswer(NamedTuple):
    """A wrong answer of a review, what was made of it, and how its question was answered after the round."""

    sample: Sample
    correction: Correction
    again: RetestResult | None = None


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
    samples: Sequence[Sample], corrections: Sequence[Correction], again: Sequence[RetestResult], count: int
) -> list[CorrectedAnswer]:
    """`count` wrong answers, a quarter of them refused rewritings where there are so many, each time of the task,
    modality, reasons and round shown least so far. Those whose question was asked again come before others like them;
    how it was answered then does not matter."""
    known = {s.id: s for s in samples}
    later = {(a.round, a.id): a for a in again}
    wrong = [CorrectedAnswer(known[c.id], c, later.get((c.round, c.id))) for c in corrections if c.wrong]
    refused = [r for r in wrong if r.correction.rejected is not None]
    mended = [r for r in wrong if r.correction.after is not None]
    few = min(len(refused), max(count // 4, count - len(mended)))
    return [*_spread(mended, count - few), *_spread(refused, few)]


def _spread(wrong: Sequence[CorrectedAnswer], count: int) -> list[CorrectedAnswer]:
    piles: dict[tuple[object, ...], list[CorrectedAnswer]] = defaultdict(list)
    for r in sorted(wrong, key=lambda r: r.again is None):  # stable: else in the order of the review
        piles[r.sample.task, r.sample.modality, r.correction.reasons, r.correction.round].append(r)
    shown: Counter[tuple[int, object]] = Counter()
    chosen: list[CorrectedAnswer] = []
    while len(chosen) < count and piles:
        kind = min(piles, key=lambda k: (sum(shown[part] for part in enumerate(k)), -len(piles[k])))
        chosen.append(piles[kind].pop(0))
        shown.update(enumerate(kind))
        if not piles[kind]:
            del piles[kind]
    return chosen


# ---- as cards --------------------------------------------------------------------------------------------------------


def answer_card(
    sample: Sample, prediction: Prediction, right: bool | None, picture: viewer.Picture, number: int | None,
    shown: Callable[[str], str],
) -> Card:  # fmt: skip
    """A question with its answer, its truth and all candidates. All that people or models wrote passes `shown`."""
    answer, truth = prediction.answer.answer, sample.answer
    lines = [
        CardText("Question", shown(sample.question.text), "asked"),
        CardText("Truth", shown(truth.text), "truth"),
        CardText("Answer", shown(answer.text), "answer"),
    ]
    if prediction.answer.unread:
        lines.append(CardText("Boxes that could not be read", ", ".join(map(shown, prediction.answer.unread))))
    if prediction.answer.truncated:
        lines.append(CardText("Note", "cut by the length limit"))
    folded = tuple(
        f"{'chosen: ' if i == prediction.chosen else ''}{shown(c.raw)} ({_weights(c.logprob, c.scores, shown)})"
        for i, c in enumerate(prediction.candidates)
    )
    alt = f"{TITLES[sample.modality]} image with {len(truth.boxes)} true and {len(answer.boxes)} answered boxes"
    marks = boxes_of(sample, prediction)
    title = f"{sample.task.value} · {TITLES[sample.modality]}"
    return Card(picture, alt, title, tuple(lines), right, folded, marks=marks, number=number)


def boxes_of(sample: Sample, prediction: Prediction) -> tuple[DrawnBox, ...]:
    """What was asked about, the truth, and the answer."""
    kinds = (("asked", sample.question), ("truth", sample.answer), ("answer", prediction.answer.answer))
    return tuple(DrawnBox(box, kind) for kind, text in kinds for box in text.boxes)


def _weights(logprob: float | None, scores: Mapping[str, float], shown: Callable[[str], str]) -> str:
    said = [] if logprob is None else [f"log-probability a token {logprob:.2f}"]
    return ", ".join([*said, *(f"{shown(k)} {v:.3f}" for k, v in scores.items())]) or "no scores"


def rewritten_card(rewritten: CorrectedAnswer, root: Path, shown: Callable[[str], str]) -> Card:
    """A wrong answer before, its rewriting, and the answer after the round. Raises BadInput on an unreadable image."""
    sample, correction, again = rewritten
    before, truth, after = correction.before, correction.truth, again.answer if again else None
    kinds = (("asked", sample.question), ("truth", truth), ("answer", before), ("later", after))
    marks = tuple(DrawnBox(box, kind) for kind, text in kinds if text for box in text.boxes)
    lines = [
        CardText("Question", sample.question.text, "asked"),
        CardText("Answer before", before.text, "answer"),
        CardText("Truth", truth.text, "truth"),
        CardText(
            "Found wrong by", f"{', '.join(correction.reasons)}; similarity of the words {correction.similarity:.2f}"
        ),
    ]
    if correction.after is not None:
        lines.append(CardText("Rewritten", correction.after.text, "truth"))
    else:
        lines.append(CardText("Refused, the truth stays", correction.rejected or ""))
    lines.append(CardText("Written by", correction.by))
    if after is not None:
        lines.append(CardText("Answer after the round", after.text, "later"))
    alt = (
        f"{TITLES[sample.modality]} image with {len(truth.boxes)} true boxes, {len(before.boxes)} of the answer before"
    )
    alt += f" and {len(after.boxes)} of the answer after" if after is not None else ""
    picture = viewer.thumbnail(open_image(root, sample.images[0]), _SIDE)
    title = f"Round {correction.round} · {sample.task.value} · {TITLES[sample.modality]}"
    said = tuple(line._replace(text=shown(line.text)) for line in lines)
    return Card(picture, alt, title, said, None if again is None else not again.after_wrong, marks=marks)


def verdict(sample: Sample, prediction: Prediction, rules: Rules) -> bool | None:
    """Whether an answer is right under the strict measures: all boxes and no spare one, the class and no other, every
    stated fact, yes or no; None where no such judgement is possible (a caption of unstated facts)."""
    item = SampleAnswer(sample, prediction.answer)
    if sample.task is Task.VG:
        return _whole(BOXES, item, rules)
    if sample.task is Task.ROC:
        return _whole(NAMES, item, rules)
    answer, truth = item.answer.answer.words, sample.answer.words
    if sample.task is Task.QA and truth.lower() in ("yes", "no"):
        return particle(answer.lower()) == truth.lower()
    if sample.facts:
        stated = {t for f in sample.facts for t in f.tuples}
        return stated == {t for f in read_facts(answer, rules.lexicon) for t in f.tuples}
    return None


def _whole(measure: Measure, item: SampleAnswer, rules: Rules) -> bool:
    """The primary metric of the answer is 1."""
    (figure,) = measure.figure(PRIMARY_METRIC[item.sample.task], measure.count([item], rules))
    return bool(figure == 1 or figure != figure)  # NaN: no box is true, and none was answered
