"""The frozen-feature probe: linear fits on the features of frozen eyes. It sees the image and has no language model.

It says how much of a task can be read from the features alone: a chain of models that does not reach it loses what its
eyes see. All is fitted to the training split; the penalties are chosen on the validation split.
Shapes: N questions, K cells of an image (row by row), C channels, D numbers of a cell, Q columns, S answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from clinkd.boxes import corners, iou_of_corners
from clinkd.language.words import normalise
from clinkd.model.eyes import CELL, EyesNetwork, Whitening, look
from clinkd.records import BOX_MARK, Box, BoxedText, Candidate, ImageRef, Modality, Prediction, Sample, Task
from clinkd.scoring.score import PROBE

GRID = 16  # cells a side
SIDE = GRID * CELL  # pixels to which an image is resampled
# Settled by cross-validation within the training split of real images (477; LOG.md).
NUMBERS = 128  # of a cell, for boxes: the first principal components of its channels, whitened
LEAST_OF_NAME, MOST_NAMES = 3, 16  # a name asked so often gets weights of its own, so many at most in a modality
# Penalties; the first is taken where no validation question is there to choose by.
RIDGES = (10.0, 3.0, 30.0, 100.0)  # of boxes, in images
PENALTIES = (0.03, 0.003, 0.3)  # C of the logistic regressions
_PLACE_WEIGHT, _MOST_WORDS, _TINY = 10.0, 256, 1e-6
_ITERATIONS = 60  # of a logistic regression
_FINE = 2 * GRID  # places of the edges of a found box

Numbers = NDArray[np.floating[Any]]
Cells = NDArray[np.float16]  # [K, C]


def look_at(network: EyesNetwork, picture: Image.Image) -> Cells:
    """The channels of stages 2 to 6 in each of GRID x GRID cells of a picture."""
    channels_YXC = look(network, np.asarray(picture.convert("RGB").resize((SIDE, SIDE))))
    return np.asarray(channels_YXC.flatten(0, 1).half().numpy())


def answer_by_probe(
    train: Sequence[Sample], validation: Sequence[Sample], test: Sequence[Sample], look: Callable[[ImageRef], Cells]
) -> list[Prediction]:
    """The probe's answers to the test questions of VG, ROC and QA; captions need a language model.

    `look` gives the cells of an image, and is called once for each. A question of VG gets one box. Of several images
    the first counts. A task without training questions gets no answers.
    """
    splits = [[s for s in split if s.task in _PROBES and s.images] for split in (train, validation, test)]
    cells = {ref: look(ref) for ref in dict.fromkeys(s.images[0] for split in splits for s in split)}
    answers: dict[str, BoxedText] = {}
    for task, fit in _PROBES.items():
        known, kept, asked = ([s for s in split if s.task is task] for split in splits)
        if known and asked:
            answers |= {s.id: a for s, a in zip(asked, fit(known, kept, cells).answer(asked), strict=True)}
    return [Prediction(s.id, (Candidate(a.text, a),), by=PROBE) for s in test if (a := answers.get(s.id))]


def _mean_over_modalities(samples: Sequence[Sample], values: Sequence[float]) -> float:
    """As scores are; 0 without samples."""
    by_modality: dict[Modality, list[float]] = {}
    for sample, value in zip(samples, values, strict=True):
        by_modality.setdefault(sample.modality, []).append(value)
    return sum(sum(v) / len(v) for v in by_modality.values()) / max(1, len(by_modality))


class _Probe(Protocol):
    def answer(self, asked: Sequence[Sample]) -> list[BoxedText]: ...


def _cover(box: Box) -> Numbers:
    """[K] the share of each cell that is in a box."""
    starts, size = np.arange(GRID) / GRID, 1 / GRID
    sides = [
        np.clip(np.minimum(end, starts + size) - np.maximum(start, starts), 0, None) / size
        for start, end in ((box.y1, box.y2), (box.x1, box.x2))
    ]
    covered: Numbers = np.outer(*sides).ravel()
    return covered


# ---- names and answers ----------------------------------------------------------------------------------------------


class TextProbe:
    """Logistic regression over the known answers of a task: from the means of the cells in the box and of all others,
    the place of the box, the modality, and for QA the words of the question. A modality gets only its own answers."""

    def __init__(self, known: Sequence[Sample], validation: Sequence[Sample], cells: Mapping[ImageRef, Cells]) -> None:
        import warnings

        from sklearn.dummy import DummyClassifier  # here: they take a second to load
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        self._cells, self._seen = cells, {(s.modality, _answer(s)) for s in known}
        commonest = Counter((_answer(s), s.answer) for s in known).most_common()
        self._wording = {answer: text for (answer, text), _ in reversed(commonest)}
        counts = Counter(w for s in known if s.task is Task.QA for w in {*normalise(s.question.words).split()})
        self._words = [word for word, _ in counts.most_common(_MOST_WORDS)]
        self._scaler = StandardScaler().fit(self._describe(known))
        answers = [_answer(s) for s in known]
        models: list[Any] = [LogisticRegression(C=c, max_iter=_ITERATIONS) for c in PENALTIES]
        if len(set(answers)) == 1:
            models = [DummyClassifier()]
        elif not validation:
            models = models[:1]
        columns = self._make_columns(known)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a stop before the end is a penalty of its own
            fitted = [m.fit(columns, answers) for m in models]
        self._model = max(fitted, key=lambda m: self._measure(m, validation))

    def answer(self, asked: Sequence[Sample]) -> list[BoxedText]:
        """An answer to each question, in its commonest wording."""
        return [self._wording.get(a) or BoxedText(a) for a in self._choose(self._model, asked)]

    def _measure(self, model: Any, samples: Sequence[Sample]) -> float:
        right = [normalise(a) == _answer(s) for a, s in zip(self._choose(model, samples), samples, strict=True)]
        return _mean_over_modalities(samples, right)

    def _choose(self, model: Any, asked: Sequence[Sample]) -> list[str]:
        if not asked:
            return []
        chosen = []
        place = {answer: n for n, answer in enumerate(model.classes_)}
        for sample, share_S in zip(asked, model.predict_proba(self._make_columns(asked)), strict=True):
            options = {normalise(o): o for o in sample.turns[-1].options if o}
            allowed = [a for a in place if a in options] if options else self._list_of_modality(sample.modality, place)
            best = max(allowed, key=lambda a: share_S[place[a]], default=next(iter(options), ""))
            chosen.append(options.get(best, best))
        return chosen

    def _list_of_modality(self, modality: Modality, answers: Iterable[str]) -> list[str]:
        return [a for a in answers if (modality, a) in self._seen] or list(answers)

    def _make_columns(self, samples: Sequence[Sample]) -> Numbers:
        """[N, Q]"""
        place_N = np.array([_describe_place(s) for s in samples]) * _PLACE_WEIGHT
        words_N = [{*normalise(s.question.words).split()} for s in samples]
        word_NW = np.array([[w in words for w in self._words] for words in words_N], dtype=float)
        return np.hstack([self._scaler.transform(self._describe(samples)), place_N, word_NW])

    def _describe(self, samples: Sequence[Sample]) -> Numbers:
        """[N, 2C] the means of the cells in the box and outside it; without a box, of all cells twice."""
        rows = []
        for sample in samples:
            cells_KC = self._cells[sample.images[0]].astype(np.float32)
            boxes = sample.question.boxes[:1]
            inside_K = _cover(boxes[0]) if boxes else np.ones(len(cells_KC))
            outside_K = 1 - inside_K if boxes and inside_K.min() < 1 else np.ones(len(cells_KC))
            rows.append(np.concatenate([w @ cells_KC / max(w.sum(), _TINY) for w in (inside_K, outside_K)]))
        return np.array(rows)


def _answer(sample: Sample) -> str:
    return normalise(sample.answer.words)


def _describe_place(sample: Sample) -> list[float]:
    """Corners, sides, area and aspect of the box (of the whole image without one), and the modality."""
    box = sample.question.boxes[0] if sample.question.boxes else Box(0, 0, 1, 1)
    sizes = [box.width, box.height, box.area, min(box.width / box.height, 4)]
    return [*box.corners, *sizes, *(float(sample.modality is m) for m in Modality)]


# ---- boxes ----------------------------------------------------------------------------------------------------------


class _Weights(NamedTuple):
    """Of one modality: shared by all names, and those of a name on top."""

    shared_Q: Numbers
    by_name: Mapping[str, Numbers]


class BoxProbe:
    """Ridge regression by cell: how much of the cell is in a box of the named structure; then the box with the largest
    expected IoU with these shares. Columns of a cell: its whitened numbers and its place."""

    def __init__(self, known: Sequence[Sample], validation: Sequence[Sample], cells: Mapping[ImageRef, Cells]) -> None:
        self._cells = cells
        pictures = (torch.from_numpy(cells[image]) for image in dict.fromkeys(s.images[0] for s in known))
        self._whitening = Whitening.fit(pictures, NUMBERS)
        fits = {
            m: _RidgeSums([s for s in known if s.modality is m], self._make_columns)
            for m in {s.modality for s in known}
        }
        trials = (
            {m: sums.solve(ridge) for m, sums in fits.items()} for ridge in (RIDGES if validation else RIDGES[:1])
        )
        self._weights = max(trials, key=lambda weights: self._measure(weights, validation))

    def answer(self, asked: Sequence[Sample]) -> list[BoxedText]:
        """One box for each question."""
        return [BoxedText(BOX_MARK, (self._find(self._weights, s),)) for s in asked]

    def _measure(self, weights: Mapping[Modality, _Weights], samples: Sequence[Sample]) -> float:
        """Found boxes (IoU 0.5) and mean overlaps together."""
        boxed = [s for s in samples if s.answer.boxes]
        overlaps = (iou_of_corners(corners([self._find(weights, s)]), corners(s.answer.boxes)).max() for s in boxed)
        return _mean_over_modalities(boxed, [float((o >= 0.5) + o) for o in overlaps])

    def _find(self, weights: Mapping[Modality, _Weights], sample: Sample) -> Box:
        if sample.modality not in weights:
            return Box(0, 0, 1, 1)  # nothing is known of its pictures
        shared_Q, by_name = weights[sample.modality]
        return find_likeliest_box(self._make_columns(sample) @ (shared_Q + by_name.get(_name(sample), 0)))

    def _make_columns(self, sample: Sample) -> Numbers:
        """[K, Q]"""
        numbers_KD = self._whitening.apply(torch.from_numpy(self._cells[sample.images[0]]))
        return np.hstack([numbers_KD.numpy(), _PLACES_KQ])


class _RidgeSums:
    """The normal equations of one modality, which every penalty shares: a block for all names and one for each name."""

    def __init__(self, samples: Sequence[Sample], make_columns: Callable[[Sample], Numbers]) -> None:
        counts = Counter(map(_name, samples))
        self._names = [name for name, n in counts.most_common(MOST_NAMES) if n >= LEAST_OF_NAME]
        self._width = make_columns(samples[0]).shape[1]
        size = self._width * (1 + len(self._names))
        self._gram_QQ, self._sums_Q = np.zeros((size, size)), np.zeros(size)
        for sample in samples:
            columns_KQ = make_columns(sample)
            inside_K = np.max([_cover(b) for b in sample.answer.boxes] or [np.zeros(len(columns_KQ))], axis=0)
            gram, sums = columns_KQ.T @ columns_KQ, columns_KQ.T @ inside_K
            blocks = [self._block(0), *([self._block(n)] if (n := self._number(sample)) else [])]
            for rows in blocks:
                self._sums_Q[rows] += sums
                for columns in blocks:
                    self._gram_QQ[rows, columns] += gram

    def solve(self, ridge: float) -> _Weights:
        penalty = ridge * GRID * GRID * np.eye(len(self._sums_Q))
        weights_Q: Numbers = np.linalg.solve(self._gram_QQ + penalty, self._sums_Q)
        by_name = {name: weights_Q[self._block(n)] for n, name in enumerate(self._names, start=1)}
        return _Weights(weights_Q[self._block(0)], by_name)

    def _number(self, sample: Sample) -> int:
        name = _name(sample)
        return self._names.index(name) + 1 if name in self._names else 0

    def _block(self, number: int) -> slice:
        return slice(number * self._width, (number + 1) * self._width)


def _name(sample: Sample) -> str:
    return "|".join(sorted(map(normalise, sample.names))) or normalise(sample.question.words)


def _make_places() -> Numbers:
    """[K, 8] powers of the centre of each cell up to the third, -2..2, and 1."""
    y_K, x_K = (np.indices((GRID, GRID)).reshape(2, -1) + 0.5) / GRID
    powers = [x_K, y_K, x_K**2, y_K**2, x_K * y_K, x_K**3, y_K**3]
    return np.column_stack([*(4 * p - 2 for p in powers), np.ones(GRID * GRID)])


_PLACES_KQ = _make_places()
_EDGES_E2 = np.array([(i, j) for i in range(_FINE) for j in range(i + 1, _FINE + 1)])  # the two edges on one axis


def find_likeliest_box(inside_K: Numbers) -> Box:
    """The box with the largest expected IoU, where each cell is in the structure by its share (0..1, else clipped):
    the sum inside over the area and the sum outside. Edges lie on half cells."""
    shares = torch.from_numpy(inside_K.reshape(1, 1, GRID, GRID))
    fine_YX = F.interpolate(shares, (_FINE, _FINE), mode="bilinear")[0, 0].clamp(0, 1).numpy()
    sums = np.zeros((_FINE + 1, _FINE + 1))
    sums[1:, 1:] = fine_YX.cumsum(0).cumsum(1)
    start, end = _EDGES_E2.T
    by_row = sums[end] - sums[start]
    inside = by_row[:, end] - by_row[:, start]
    area = np.outer(end - start, end - start)
    rows, columns = np.unravel_index(np.argmax(inside / (area + sums[-1, -1] - inside)), area.shape)
    return Box(*(float(v) / _FINE for v in (start[columns], start[rows], end[columns], end[rows])))


_PROBES: Mapping[Task, Callable[[Sequence[Sample], Sequence[Sample], Mapping[ImageRef, Cells]], _Probe]] = {
    Task.VG: BoxProbe, Task.ROC: TextProbe, Task.QA: TextProbe,
}  # fmt: skip
