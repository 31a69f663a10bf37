"""The learned image-blind baseline: a forest of random trees, fitted to known questions and answers without a pixel.

It sees what stands in the question and in the record of the image: the words, the modality, the place and size of the
first given box, and the size of the image in pixels as the data state it. The forest is a learned measure of nearness
(Lin and Jeon 2006; for boxes a quantile regression forest, Meinshausen 2006): the more leaves a known question shares
with the asked one, the more it weighs, and the answer is the one that agrees best with the weighted known answers.
Shapes: N known questions, M asked ones, C columns, T targets, L nodes of all trees, V facts or words, U different known
answers, K nearest known questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinkd.boxes import corners, iou_of_corners
from clinkd.language.words import normalise
from clinkd.records import BOX_MARK, OPTION_LETTERS, Box, BoxedText, Modality, Sample, Task

MOST_KNOWN = 3000  # known questions of a task that the forest is fitted to, picked evenly
LEAST_KNOWN = 40  # with fewer, a forest learns nothing that a look-up does not find
# Settled on the training and validation splits of real images (477, LOG.md): small leaves for names and texts, larger
# ones for boxes, whose usual place is a mean over many.
_TREES, _COLUMN_SHARE, _LEAST_IN_LEAF, _LEAST_BOXES_IN_LEAF = 40, 0.4, 2, 8
_MOST_WORDS = 256  # the commonest words of known questions
_MOST_TARGETS = 16  # more facts, words or names than this are projected at random (Joly et al. 2014)
_NEAREST = 256  # most known answers that vote on a box
_ASKED_AT_ONCE = 1024

Numbers = NDArray[np.float64]


class LearnedBaseline:
    """A forest fitted to the known questions of one task.

    `gist` is what of an answer is compared: names, facts or words. No answer comes from the asked question's own group.
    """

    def __init__(self, known: Sequence[Sample], gist: Callable[[Sample], frozenset[str]]) -> None:
        from sklearn.ensemble import ExtraTreesRegressor  # here: it takes a second to load

        self._known = known
        self._words = _find_common_words(known)
        self._group_code = {g: i for i, g in enumerate(dict.fromkeys(s.group for s in known))}
        self._groups_N = np.array([self._group_code[s.group] for s in known])
        self._boxed = known[0].task is Task.VG
        self._gists = [gist(s) for s in known]
        targets_NT = _make_box_targets(known) if self._boxed else _make_gist_targets(self._gists)
        in_leaf = _LEAST_BOXES_IN_LEAF if self._boxed else _LEAST_IN_LEAF
        self._forest = ExtraTreesRegressor(_TREES, min_samples_leaf=in_leaf, max_features=_COLUMN_SHARE, random_state=0)
        self._forest.fit(self._make_columns(known), targets_NT)
        self._leaf_starts = np.cumsum([0, *(tree.tree_.node_count for tree in self._forest.estimators_)])
        self._shares_NL = self._find_leaves(known)
        sizes_L = np.asarray(self._shares_NL.sum(0)).ravel()
        self._shares_NL = self._shares_NL.multiply(1 / np.maximum(sizes_L, 1)).tocsr()

    def answer(self, asked: Sequence[Sample]) -> list[BoxedText | None]:
        """The answer to each question; None where all that is near is of its own group."""
        chooser = _BoxChooser(self._known) if self._boxed else _TextChooser(self._known, self._gists)
        answers: list[BoxedText | None] = []
        different, place_M = self._find_different(asked)
        for start in range(0, len(different), _ASKED_AT_ONCE):
            part = [asked[i] for i in different[start : start + _ASKED_AT_ONCE]]
            answers += chooser.choose(part, self._weigh(part))
        return [answers[place] for place in place_M]

    def _find_different(self, asked: Sequence[Sample]) -> tuple[list[int], list[int]]:
        """Questions of which no two are alike in all that is used, and for each question which of these it is like."""
        columns_MC = self._make_columns(asked)
        place_by_key: dict[object, int] = {}
        different: list[int] = []
        place_M: list[int] = []
        for i, sample in enumerate(asked):
            key = columns_MC[i].tobytes(), self._group_code.get(sample.group), sample.turns[-1].options
            if key not in place_by_key:
                place_by_key[key] = len(different)
                different.append(i)
            place_M.append(place_by_key[key])
        return different, place_M

    def _weigh(self, asked: Sequence[Sample]) -> Any:
        """[M, N] sparse: the weight of each known question, in sum 1 for each asked one; 0 within its own group."""
        weights = (self._find_leaves(asked) @ self._shares_NL.T).tocsr()
        weights.sort_indices()
        group_M = np.array([self._group_code.get(s.group, -1) for s in asked])
        asked_of_entry = np.repeat(np.arange(len(asked)), np.diff(weights.indptr))
        weights.data[self._groups_N[weights.indices] == group_M[asked_of_entry]] = 0
        sums = np.asarray(weights.sum(1)).ravel()
        return weights.multiply(1 / np.maximum(sums, 1e-12)[:, None]).tocsr()

    def _find_leaves(self, samples: Sequence[Sample]) -> Any:
        """[M, L] sparse: 1 for the leaf of each tree in which a question ends."""
        from scipy import sparse

        leaves = self._forest.apply(self._make_columns(samples)) + self._leaf_starts[:-1]
        starts = np.arange(len(samples) + 1) * _TREES
        shape = (len(samples), int(self._leaf_starts[-1]))
        return sparse.csr_array((np.ones(leaves.size), leaves.ravel(), starts), shape=shape)

    def _make_columns(self, samples: Sequence[Sample]) -> NDArray[np.float32]:
        """[M, C] what is known of each question without its image."""
        words_MW = np.zeros((len(samples), len(self._words)), dtype=np.float32)
        for row, sample in enumerate(samples):
            words_MW[row, [self._words[w] for w in _list_words(sample) if w in self._words]] = 1
        modality_MK = np.array([[s.modality is m for m in Modality] for s in samples], dtype=np.float32)
        return np.hstack([np.array([_describe_place(s) for s in samples], dtype=np.float32), modality_MK, words_MW])


class _TextChooser:
    """Chooses the known answer with the largest expected F1 against weighted answers; for names, the likeliest."""

    def __init__(self, known: Sequence[Sample], gists: Sequence[frozenset[str]]) -> None:
        unique = sorted(set(gists), key=sorted)
        self._code = {g: i for i, g in enumerate(unique)}
        place = {v: i for i, v in enumerate(sorted(set().union(*gists)))}
        self._known = known
        self._gist_N = np.array([self._code[g] for g in gists])
        self._truth_NV, self._answers_UV = make_indicator(gists, place), make_indicator(unique, place)
        self._sizes_U = np.array([len(g) for g in unique], dtype=np.float64)

    def choose(self, asked: Sequence[Sample], weights: Any) -> list[BoxedText | None]:
        """The answer for each row of [M, N] weights, in the wording of the heaviest question that was so answered."""
        expected_MV = (weights @ self._truth_NV).tocsr()
        both_MU = (expected_MV @ self._answers_UV.T).toarray()
        sizes_MU = self._sizes_U[None] + np.asarray(expected_MV.sum(1)).reshape(-1, 1)
        quality_MU = 2 * both_MU / np.maximum(sizes_MU, 1e-9)
        answers: list[BoxedText | None] = []
        for row, (sample, quality_U) in enumerate(zip(asked, quality_MU.round(9), strict=True)):
            places, heaviness = _take_heaviest(weights, row)
            if not len(places):
                answers.append(None)
            elif options := sample.turns[-1].options:
                answers.append(self._choose_option(options, quality_U, places, heaviness))
            else:
                # only what somebody of another group answered: the others have no weight
                best = max(set(self._gist_N[places].tolist()), key=lambda u: (quality_U[u], -u))
                answers.append(self._known[int(places[self._gist_N[places] == best][0])].answer)
        return answers

    def _choose_option(
        self, options: Sequence[str], quality_U: Numbers, places: NDArray[np.intp], heaviness: Numbers
    ) -> BoxedText:
        """The option that agrees best with the known answers; of options that were never the answer, the one whose
        letter is the commonest."""
        letters: Counter[str] = Counter()
        for place, weight in zip(places.tolist(), heaviness.tolist(), strict=True):
            letters[self._known[place].turns[-1].letter] += weight
        codes = [self._code.get(frozenset({normalise(o)})) for o in options]
        quality = [0.0 if code is None else float(quality_U[code]) for code in codes]
        offered = [i for i, option in enumerate(options) if option]
        best = max(offered, key=lambda i: (quality[i], round(letters[OPTION_LETTERS[i]], 9), -i))
        return BoxedText(options[best])


class _BoxChooser:
    """Chooses the likeliest number of boxes, and for each of them, from left to right, the likeliest place."""

    def __init__(self, known: Sequence[Sample]) -> None:
        self._corners = [corners(_sort_boxes(s.answer.boxes)) for s in known]

    def choose(self, asked: Sequence[Sample], weights: Any) -> list[BoxedText | None]:
        """The boxes for each row of [M, N] weights."""
        nearest = (_take_heaviest(weights, row, _NEAREST) for row in range(len(asked)))
        return [self._choose_boxes(*of_row) if len(of_row[0]) else None for of_row in nearest]

    def _choose_boxes(self, places: NDArray[np.intp], heaviness: Numbers) -> BoxedText:
        numbers = np.array([len(self._corners[place]) for place in places])
        votes = np.bincount(numbers, heaviness).round(9)
        number = int(votes.argmax())
        weights_K = heaviness[numbers == number]
        boxes_K = [self._corners[place] for place in places[numbers == number]]
        boxes = tuple(_find_likeliest_box(np.array([b[at] for b in boxes_K]), weights_K) for at in range(number))
        return BoxedText(" ".join([BOX_MARK] * number), boxes)


def _find_likeliest_box(boxes_K4: Numbers, weights_K: Numbers) -> Box:
    """Of the known boxes and their median, the one that finds most of the known ones at IoU 0.5 and overlaps most."""
    order_K4 = boxes_K4.argsort(axis=0)
    reached_K4 = weights_K[order_K4].cumsum(0)
    middle_4 = (reached_K4 < reached_K4[-1] / 2).sum(0)
    median_4 = np.take_along_axis(boxes_K4, np.take_along_axis(order_K4, middle_4[None], 0), 0)
    candidates_C4 = np.vstack([boxes_K4, median_4])
    if not (median_4[0, :2] < median_4[0, 2:]).all():
        candidates_C4 = boxes_K4  # corners of different boxes need not make one
    overlaps_CK = iou_of_corners(candidates_C4, boxes_K4)
    found_C = ((overlaps_CK >= 0.5) + overlaps_CK) @ weights_K
    return Box(*candidates_C4[int(found_C.round(9).argmax())].tolist())


def _take_heaviest(weights: Any, row: int, most: int | None = None) -> tuple[NDArray[np.intp], Numbers]:
    """The known questions with weight in a row, the heaviest first, and their weights."""
    entries = slice(weights.indptr[row], weights.indptr[row + 1])
    places, heaviness = weights.indices[entries], weights.data[entries]
    order = np.lexsort((places, -heaviness.round(9)))[:most]
    order = order[heaviness[order] > 0]
    return places[order], heaviness[order]


def _describe_place(sample: Sample) -> list[float]:
    """Number of given boxes; corners, sides, area and aspect of the first (0 without one); sides and aspect of the
    image in pixels as the data state them (0 where they do not)."""
    boxes, image = sample.question.boxes, sample.images[0] if sample.images else None
    x1, y1, x2, y2 = boxes[0].corners if boxes else (0.0, 0.0, 0.0, 0.0)
    width, height = x2 - x1, y2 - y1
    sides = float(image.width or 0) if image else 0.0, float(image.height or 0) if image else 0.0
    aspects = [a / b if b else 0.0 for a, b in ((width, height), sides)]
    return [len(boxes), x1, y1, x2, y2, (x1 + x2) / 2, (y1 + y2) / 2, width, height, width * height, *sides, *aspects]


def _list_words(sample: Sample) -> frozenset[str]:
    """The words of a question; of VG also each name that it asks for, as a whole."""
    names = {f"name: {normalise(n)}" for n in sample.names} if sample.task is Task.VG else set()
    words = [w for turn in sample.turns for w in normalise(turn.question.words).split()]
    return frozenset(words) | names


def _find_common_words(known: Sequence[Sample]) -> dict[str, int]:
    counts = Counter(w for s in known for w in _list_words(s))
    common = sorted(counts, key=lambda w: (-counts[w], w))[:_MOST_WORDS]
    return {w: i for i, w in enumerate(common)}


def _sort_boxes(boxes: Sequence[Box]) -> list[Box]:
    return sorted(boxes, key=lambda b: (b.x1, b.y1))


def _make_box_targets(known: Sequence[Sample]) -> Numbers:
    """[N, 5] the corners of the first box from the left (0 without one), and the number of boxes as a small step."""
    targets = np.zeros((len(known), 5))
    for row, sample in enumerate(known):
        if boxes := _sort_boxes(sample.answer.boxes):
            targets[row] = *boxes[0].corners, 0.2 * len(boxes)
    return targets


def _make_gist_targets(gists: Sequence[frozenset[str]]) -> Numbers:
    """[N, T] which facts or words an answer has; many are projected at random, which keeps distances on average."""
    present = sorted(set().union(*gists))
    truth_NV = make_indicator(gists, {v: i for i, v in enumerate(present)})
    if len(present) <= _MOST_TARGETS:
        return np.asarray(truth_NV.toarray(), dtype=np.float64)
    projection_VT = np.random.default_rng(0).standard_normal((len(present), _MOST_TARGETS))
    return np.asarray(truth_NV @ projection_VT, dtype=np.float64)


def make_indicator(sets: Sequence[frozenset[str]], place: Mapping[str, int]) -> Any:
    """A sparse matrix [sets, places], 1 for each member of a set that has a place."""
    from scipy import sparse  # here: evaluation starts without it

    members = [(row, place[m]) for row, of in enumerate(sets) for m in of if m in place]
    rows, columns = np.array(members, dtype=np.intp).reshape(-1, 2).T
    ones = np.ones(len(members), dtype=np.float32)
    return sparse.csr_array((ones, (rows, columns)), shape=(len(sets), max(1, len(place))))
