"""Choose answers and corrections to show as cards, build the cards, and decide whether an answer is right."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clinkd.data.images import open_image
from clinkd.language.facts import Lexicon, read_facts
from clinkd.records import Correction, Modality, Prediction, Sample, Task
from clinkd.reporting.tables import SCORERS, TITLES, RetestResult
from clinkd.reporting.viewer.page import Card, CardText
from clinkd.reporting.viewer.shot import DrawnBox, Picture, thumbnail
from clinkd.scoring.measure import Rules, SampleAnswer
from clinkd.scoring.metrics import BOXES, NAMES, PRIMARY_METRIC, is_right

_SIDE = 320  # pixels of a picture beside a correction
PLAIN_RULES = Rules(0.5, Lexicon(()))  # where the data name no classes


class CorrectedAnswer(NamedTuple):
    """A wrong answer of a review, its correction, and the answer to the same question after the round."""

    sample: Sample
    correction: Correction
    again: RetestResult | None = None


def choose_gallery(
    samples: Sequence[Sample], predictions: Sequence[Prediction], count: int
) -> list[tuple[Sample, Prediction]]:
    """Choose `count` questions with their answers, in turns over tasks and modalities, each image once where that is
    enough. The choice does not depend on the answers."""
    answered = {p.id: p for p in predictions}
    piles: dict[tuple[Task, Modality], list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.id in answered:
            piles[sample.task, sample.modality].append(sample)
    tasks = [t for t in Task if any(k[0] is t for k in piles)]
    # Diagonally: the first row of pictures then shows other tasks and other modalities.
    order = sorted(piles, key=lambda k: ((list(Modality).index(k[1]) + tasks.index(k[0])) % len(Modality), k))
    chosen: list[Sample] = []
    shown_groups: set[str] = set()
    while len(chosen) < count and any(piles.values()):
        for kind in order:
            if piles[kind] and len(chosen) < count:
                position = next((i for i, s in enumerate(piles[kind]) if s.group not in shown_groups), 0)
                sample = piles[kind].pop(position)
                shown_groups.add(sample.group)
                chosen.append(sample)
    return [(s, answered[s.id]) for s in chosen]


def choose_rewritten(
    samples: Sequence[Sample], corrections: Sequence[Correction], again: Sequence[RetestResult], count: int
) -> list[CorrectedAnswer]:
    """Choose `count` rewritten answers; a quarter of them are refused rewritings, where there are so many. Each next
    one has the task, modality, reasons and round shown least. Questions asked again come first, whatever the later
    answer is."""
    sample_by_id = {s.id: s for s in samples}
    retest_by_key = {(a.round, a.id): a for a in again}
    wrong = [CorrectedAnswer(sample_by_id[c.id], c, retest_by_key.get((c.round, c.id))) for c in corrections]
    refused = [r for r in wrong if r.correction.rejected is not None]
    rewritten = [r for r in wrong if r.correction.after is not None]
    refused_count = min(len(refused), max(count // 4, count - len(rewritten)))
    return [*_choose_evenly(rewritten, count - refused_count), *_choose_evenly(refused, refused_count)]


def _choose_evenly(wrong: Sequence[CorrectedAnswer], count: int) -> list[CorrectedAnswer]:
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
    sample: Sample, prediction: Prediction, right: bool | None, picture: Picture, number: int | None,
    shown: Callable[[str], str],
) -> Card:  # fmt: skip
    """A question with its answer, its truth and all candidates. Every text of people or models passes `shown`."""
    answer, truth = prediction.answer.answer, sample.answer
    card_texts = [
        CardText("Question", shown(sample.question.text), "asked"),
        CardText("Truth", shown(truth.text), "truth"),
        CardText("Answer", shown(answer.text), "answer"),
    ]
    if prediction.confidence is not None:
        card_texts.append(CardText("Confidence", f"{100 * prediction.confidence:.0f} %"))
    if prediction.answer.unread:
        card_texts.append(CardText("Boxes that could not be read", ", ".join(map(shown, prediction.answer.unread))))
    if prediction.answer.truncated:
        card_texts.append(CardText("Note", "cut by the length limit"))
    candidate_lines = tuple(
        f"{'chosen: ' if i == prediction.chosen else ''}{shown(c.raw)} ({_spell_scores(c.logprob, c.scores, shown)})"
        for i, c in enumerate(prediction.candidates)
    )
    alt = f"{TITLES[sample.modality]} image with {len(truth.boxes)} true and {len(answer.boxes)} answered boxes"
    marks = list_answer_boxes(sample, prediction)
    title = f"{sample.task.value} · {TITLES[sample.modality]}"
    return Card(picture, alt, title, tuple(card_texts), right, candidate_lines, marks=marks, number=number)


def list_answer_boxes(sample: Sample, prediction: Prediction) -> tuple[DrawnBox, ...]:
    """The boxes of the question, the truth, and the answer."""
    kinds = (("asked", sample.question), ("truth", sample.answer), ("answer", prediction.answer.answer))
    return tuple(DrawnBox(box, kind) for kind, text in kinds for box in text.boxes)


def _spell_scores(logprob: float | None, scores: Mapping[str, float], shown: Callable[[str], str]) -> str:
    parts = [] if logprob is None else [f"how likely the model finds it {logprob:.2f} (0 is best)"]
    return ", ".join([*parts, *(f"{SCORERS.get(k) or shown(k)} {v:.3f}" for k, v in scores.items())]) or "no scores"


def rewritten_card(rewritten: CorrectedAnswer, root: Path, shown: Callable[[str], str]) -> Card:
    """A wrong answer before, its rewriting, and the answer after the round. Raises BadInput on an unreadable image."""
    sample, correction, again = rewritten
    before, truth, after = correction.before, correction.truth, again.answer if again else None
    kinds = (("asked", sample.question), ("truth", truth), ("answer", before), ("later", after))
    marks = tuple(DrawnBox(box, kind) for kind, text in kinds if text for box in text.boxes)
    reasons = f"{', '.join(correction.reasons)}; similarity of the words {correction.similarity:.2f}"
    refused = CardText("Refused, the truth stays", correction.rejected or "")
    card_texts = [
        CardText("Question", sample.question.text, "asked"),
        CardText("Answer before", before.text, "answer"),
        CardText("Truth", truth.text, "truth"),
        CardText("Found wrong by", reasons),
        CardText("Rewritten", correction.after.text, "truth") if correction.after else refused,
        CardText("Written by", correction.by),
        *([CardText("Answer after the round", after.text, "later")] if after else []),
    ]
    alt = (
        f"{TITLES[sample.modality]} image with {len(truth.boxes)} true boxes, {len(before.boxes)} of the answer before"
    )
    alt += f" and {len(after.boxes)} of the answer after" if after else ""
    picture = thumbnail(open_image(root, sample.images[0]), _SIDE)
    title = f"Round {correction.round} · {sample.task.value} · {TITLES[sample.modality]}"
    shown_texts = tuple(card_text._replace(text=shown(card_text.text)) for card_text in card_texts)
    return Card(picture, alt, title, shown_texts, None if again is None else not again.after_wrong, marks=marks)


def judge_answer(sample: Sample, prediction: Prediction, rules: Rules) -> bool | None:
    """Whether an answer is right under the strict measures: all boxes and no spare one, the class and no other, every
    stated fact, the option, yes or no; None where no such judgement is possible (a caption of unstated facts)."""
    if measure := {Task.VG: BOXES, Task.ROC: NAMES}.get(sample.task):
        counts = measure.count([SampleAnswer(sample, prediction.answer)], rules)
        (figure,) = measure.figure(PRIMARY_METRIC[sample.task], counts)
        return bool(figure == 1 or figure != figure)  # NaN: no box is true, and none was answered
    if sample.task is Task.QA and (right := is_right(sample, prediction.answer, rules)) is not None:
        return right
    if sample.facts:
        stated = {t for f in sample.facts for t in f.tuples}
        return stated == {t for f in read_facts(prediction.answer.answer.words, rules.lexicon) for t in f.tuples}
    return None
