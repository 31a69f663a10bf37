"""Answers given without looking at the image: the figures that a model which does look has to beat.

They are made from the training split and the test question alone, but for "other image", which is the true answer of
another test image. They are meant to be strong: the question of a referring task shows a box, and its place and size
say much. Shapes: N training questions, M test questions, V facts or words, U different training answers.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from clinkd.agreement import iou_matrix, normalise
from clinkd.records import BOX_MARK, Box, BoxedText, Candidate, Modality, Prediction, Sample, Task

OTHER_IMAGE, MEDIAN_BOX, CONSTANT, QUESTION_ONLY = "other image", "median box", "constant", "question only"
TWINS = (OTHER_IMAGE, MEDIAN_BOX, CONSTANT, QUESTION_ONLY)

_POOL = 2000  # most training questions of a task and modality that are looked up, drawn evenly
_TRIALS = 250  # training questions on which the look-up picks its own settings
_VOCABULARY = 1500
_SAME_QUESTION = 30  # training questions with the same words from which their boxes alone are used

Matrix = NDArray[np.float32]
Kind = tuple[Task, Modality]
T = TypeVar("T")


def blind_twins(train: Sequence[Sample], test: Sequence[Sample]) -> dict[str, list[Prediction]]:
    """One list of predictions a twin, for the test samples to which it applies; deterministic.

    `Prediction.by` says where a twin fell back on something wider (another modality, all names).
    """
    pools: dict[Kind, list[Sample]] = defaultdict(list)
    for sample in train:
        pools[sample.task, sample.modality].append(sample)
    asked: dict[Kind, list[Sample]] = defaultdict(list)
    for sample in test:
        asked[sample.task, sample.modality].append(sample)
    found: dict[str, list[Prediction]] = {twin: [] for twin in TWINS}
    for kind, questions in asked.items():
        found[OTHER_IMAGE] += _other_image(questions)
        pool, note = pools.get(kind, []), ""
        if not pool:
            pool, note = [s for s in train if s.task is kind[0]], "; no training question of the modality: all taken"
        if not pool:
            continue
        if kind[0] is Task.VG:
            found[MEDIAN_BOX] += _by_name(questions, pool, MEDIAN_BOX, _median_boxes, note)
            found[CONSTANT] += [_says(s, _boxed(_median_boxes(pool)), CONSTANT + note) for s in questions]
            found[QUESTION_ONLY] += _by_name(questions, pool, QUESTION_ONLY, _likeliest_boxes, note)
        else:
            lookup = _Lookup(_evenly(pool, _POOL))
            found[CONSTANT] += [_says(s, lookup.constant(), CONSTANT + note) for s in questions]
            answers = lookup.answer(questions)
            found[QUESTION_ONLY] += [_says(s, a, QUESTION_ONLY + note) for s, a in zip(questions, answers, strict=True)]
    return {twin: rows for twin, rows in found.items() if rows}


def _says(sample: Sample, answer: BoxedText, by: str) -> Prediction:
    return Prediction(sample.id, (Candidate(answer.text, answer),), by=by)


# ---- the true answer of another image -------------------------------------------------------------------------------


def _other_image(questions: Sequence[Sample]) -> list[Prediction]:
    """Each gets the truth of a sample of another group, each truth given once where the groups' sizes allow it."""
    sizes = Counter(s.group for s in questions)
    if len(sizes) < 2:
        return []
    ring = sorted(questions, key=lambda s: (hashlib.sha256(s.group.encode()).digest(), s.id))
    step, n = max(sizes.values()), len(ring)
    found = []
    for i, sample in enumerate(ring):
        ahead = (ring[(i + step + j) % n] for j in range(n))
        other = next(o for o in ahead if o.group != sample.group)
        found.append(_says(sample, other.answer, OTHER_IMAGE))
    return found


# ---- boxes from a name ----------------------------------------------------------------------------------------------


def _by_name(
    questions: Sequence[Sample],
    pool: Sequence[Sample],
    twin: str,
    boxes: Callable[[Sequence[Sample]], tuple[Box, ...]],
    note: str,
) -> list[Prediction]:
    """`boxes` of the training samples with the same question, else the same names (which a VG question states)."""
    named: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
    worded: dict[str, list[Sample]] = defaultdict(list)
    for sample in pool:
        named[_names(sample)].append(sample)
        worded[normalise(sample.question.words)].append(sample)
    memory: dict[object, BoxedText] = {}
    found = []
    for sample in questions:
        words, names = normalise(sample.question.words), _names(sample)
        own: tuple[object, Sequence[Sample], str] = ("all", pool, "; name not in training: all names taken")
        if twin == QUESTION_ONLY and len(worded.get(words, ())) >= _SAME_QUESTION:
            own = (words, worded[words], "")
        elif names in named:
            own = (names, named[names], "")
        if own[0] not in memory:
            memory[own[0]] = _boxed(boxes(own[1]))
        found.append(_says(sample, memory[own[0]], twin + note + own[2]))
    return found


def _names(sample: Sample) -> tuple[str, ...]:
    return tuple(sorted(normalise(n) for n in sample.names)) or (normalise(sample.question.words),)


def _boxed(boxes: Sequence[Box]) -> BoxedText:
    return BoxedText(" ".join([BOX_MARK] * len(boxes)), tuple(boxes))


def _sets(samples: Sequence[Sample]) -> list[list[Box]]:
    """Answers with the commonest number of boxes, each from left to right."""
    number = Counter(len(s.answer.boxes) for s in samples).most_common(1)[0][0]
    return [sorted(s.answer.boxes, key=lambda b: (b.x1, b.y1)) for s in samples if len(s.answer.boxes) == number]


def _median_boxes(samples: Sequence[Sample]) -> tuple[Box, ...]:
    corners = np.array([[_corners(b) for b in boxes] for boxes in _sets(samples)])  # [S, boxes, 4]
    return tuple(Box.from_json(list(c)) for c in np.median(corners, axis=0)) if corners.size else ()


def _likeliest_boxes(samples: Sequence[Sample]) -> tuple[Box, ...]:
    """At each place the training box that finds most of the others at IoU 0.5: better than the median for recall."""
    found = []
    for place in zip(*_evenly(_sets(samples), 400), strict=True):
        overlap = iou_matrix(place, place)
        worth = (overlap >= 0.5).mean(1) + 1e-3 * overlap.mean(1)
        found.append(place[int(worth.argmax())])
    return tuple(found)


# ---- words from a question ------------------------------------------------------------------------------------------


class _Setting(NamedTuple):
    """Distance = box_weight * L1 of the corners + word_weight * (1 - likeness of the words); k nearest, with ties."""

    box_weight: float
    word_weight: float
    k: int


class _Lookup:
    """Training questions nearest to a question, and the training answer that agrees best with what those were answered.

    An answer is seen as a set: its class name, its facts where the data state them, else its words. Among all training
    answers the one with the largest expected F1 against the neighbours' sets is given (for class names: the majority).
    How far words and box count, and how many neighbours are asked, is picked on held-out training questions.
    """

    def __init__(self, pool: Sequence[Sample]) -> None:
        self._pool = pool
        gists = _gists(pool)
        common = [g for g, _ in Counter(g for gist in gists for g in sorted(gist)).most_common(_VOCABULARY)]
        self._place = {g: i for i, g in enumerate(common)}
        self._truth_NV = _indicator(gists, self._place)
        texts: dict[frozenset[str], Counter[BoxedText]] = defaultdict(Counter)
        for sample, gist in zip(pool, gists, strict=True):
            texts[gist][sample.answer] += 1
        self._answers = [counts.most_common(1)[0][0] for counts in texts.values()]
        self._answers_UV = _indicator(list(texts), self._place)
        self._words = {w: i for i, w in enumerate(sorted({w for s in pool for w in _words(s)}))}
        spread = np.array([0.5 + sum(w in words for words in map(_words, pool)) for w in self._words])
        self._rarity = np.log(1 + len(pool) / spread).astype(np.float32)
        self._words_NW = self._word_rows(pool)
        self._boxes_N4 = _box_rows(pool)
        self._setting = self._pick()

    def constant(self) -> BoxedText:
        """The answer that agrees best with all of the pool; for class names the commonest."""
        return self._answers[int(self._choice(self._truth_NV.mean(0, keepdims=True))[0])]

    def answer(self, questions: Sequence[Sample]) -> list[BoxedText]:
        near = self._near(questions, self._setting)
        return [self._answers[i] for i in self._choice(near @ self._truth_NV)]

    def _choice(self, expected_MV: Matrix) -> NDArray[np.intp]:
        """Index of the training answer with the largest expected F1 against sets of these expectations."""
        sizes = self._answers_UV.sum(1)[None] + expected_MV.sum(1, keepdims=True)
        worth_MU = 2 * (expected_MV @ self._answers_UV.T) / np.maximum(sizes, 1e-6)
        return np.asarray(worth_MU.argmax(1))

    def _pick(self) -> _Setting:
        weights = [(1.0, 0.0), (1.0, 0.2), (1.0, 10.0)] if _mostly_boxed(self._pool) else [(0.0, 1.0)]
        everyone = len(self._pool)
        settings = [_Setting(b, w, k) for b, w in weights for k in (1, 3, 8, 20, 60) if k < everyone]
        trials = _evenly(list(range(everyone)), _TRIALS)
        asked = [self._pool[i] for i in trials]
        best, best_worth = _Setting(*weights[0], everyone), -1.0
        truth_MV = self._truth_NV[trials]
        for setting in (best, *settings):
            near = self._near(asked, setting, held_out=True)
            given_MV = self._answers_UV[self._choice(near @ self._truth_NV)]
            f1 = 2 * (given_MV * truth_MV).sum(1) / np.maximum(given_MV.sum(1) + truth_MV.sum(1), 1e-6)
            if f1.mean() > best_worth + 1e-6:
                best, best_worth = setting, float(f1.mean())
        return best

    def _near(self, questions: Sequence[Sample], setting: _Setting, held_out: bool = False) -> Matrix:
        """[M, N] weights, summing to 1 a row: the k nearest and all as near as the last of them."""
        words_MW = self._word_rows(questions)
        both = (words_MW * self._rarity) @ self._words_NW.T
        total = (words_MW @ self._rarity)[:, None] + (self._words_NW @ self._rarity)[None] - both
        far = setting.word_weight * (1 - both / np.maximum(total, 1e-6))
        if setting.box_weight:
            boxes_M4 = _box_rows(questions)
            far = far + setting.box_weight * np.abs(boxes_M4[:, None] - self._boxes_N4[None]).sum(-1)
        if held_out:  # whoever shares an image or a patient would give the answer away
            groups = np.array([s.group for s in self._pool])
            own = np.array([s.group for s in questions])
            far = np.where(own[:, None] == groups[None], np.inf, far)
        k = min(setting.k, far.shape[1]) - 1
        last = np.partition(far, k, axis=1)[:, k : k + 1]
        near = (far <= last + 1e-6) & np.isfinite(far)
        return np.asarray(near / np.maximum(near.sum(1, keepdims=True), 1), dtype=np.float32)

    def _word_rows(self, samples: Sequence[Sample]) -> Matrix:
        return _indicator([_words(s) for s in samples], self._words)


def _gists(pool: Sequence[Sample]) -> list[frozenset[str]]:
    if pool[0].task in (Task.ROC, Task.QA):
        return [frozenset({normalise(s.answer.words)}) for s in pool]
    if all(s.facts for s in pool):
        return [frozenset("\t".join(t) for fact in s.facts for t in fact.tuples) for s in pool]
    return [frozenset(normalise(s.answer.words).split()) for s in pool]


def _words(sample: Sample) -> frozenset[str]:
    return frozenset(normalise(sample.question.words).split())


def _mostly_boxed(pool: Sequence[Sample]) -> bool:
    return sum(bool(s.question.boxes) for s in pool) * 2 > len(pool)


def _box_rows(samples: Iterable[Sample]) -> Matrix:
    """First box of each question; the whole image where it has none."""
    whole = (0.0, 0.0, 1.0, 1.0)
    rows = [_corners(s.question.boxes[0]) if s.question.boxes else whole for s in samples]
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def _corners(box: Box) -> tuple[float, float, float, float]:
    return box.x1, box.y1, box.x2, box.y2


def _indicator(sets: Sequence[frozenset[str]], place: dict[str, int]) -> Matrix:
    rows = np.zeros((len(sets), max(1, len(place))), dtype=np.float32)
    for row, members in zip(rows, sets, strict=True):
        row[[place[m] for m in members if m in place]] = 1
    return rows


def _evenly(values: Sequence[T], most: int) -> Sequence[T]:
    if len(values) <= most:
        return values
    return [values[int(i)] for i in np.linspace(0, len(values) - 1, most)]
