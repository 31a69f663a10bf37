"""Image-blind baselines: answers made without the image. A model that uses the image must score higher.

They use only the training split and the test question, with two exceptions: "other image" is the true answer of another
test image, and "images shuffled" is a model's answer when it is shown another test image. Where there is no training
split, the other images of the test set replace it: what a baseline says of an image never depends on the truth of that
image's group. They are meant to be strong: the question of a referring task shows a box, and its place and size say
much; "learned" is a forest fitted to all that is known without the image (`learned.py`). Shapes: N known questions, M
test questions, V facts or words, U different known answers.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from clinkd.boxes import corners, iou_of_corners
from clinkd.language.words import normalise
from clinkd.records import BOX_MARK, Box, BoxedText, Candidate, Modality, Prediction, Sample, Task
from clinkd.scoring.blind.learned import LEAST_KNOWN, MOST_KNOWN, LearnedBaseline, make_indicator

OTHER_IMAGE, MEDIAN_BOX, CONSTANT, QUESTION_ONLY = "other image", "median box", "constant", "question only"
LEARNED, IMAGES_SHUFFLED = "learned", "images shuffled"
BASELINES = (OTHER_IMAGE, MEDIAN_BOX, CONSTANT, QUESTION_ONLY, LEARNED, IMAGES_SHUFFLED)

_POOL_SIZE = 2000  # most known questions of a task and modality, or of a name, that are used; picked evenly
_TRIALS = 250  # known questions on which the look-up chooses its settings
_LEAST_SAME_QUESTION = 30  # with so many known questions of the same words, only their boxes are used
_MOST_SETS = 400  # most answers that are searched for the likeliest box
_LEARNED_PARTS = 3  # of the groups, each answered by a forest of the others, where the questions are known ones
_QUESTIONS_AT_ONCE = 1024  # test questions that are looked up together

Matrix = NDArray[np.float32]
Kind = tuple[Task, Modality]
T = TypeVar("T")


def make_image_blind_baselines(train: Sequence[Sample], test: Sequence[Sample]) -> dict[str, list[Prediction]]:
    """One list of predictions for each baseline, for the test samples to which it applies; deterministic. "images
    shuffled" is not included: it needs a model (`shuffle_images`).

    Without training samples, each test sample is answered from test samples of other groups. `Prediction.by` says
    where a baseline used a wider set (another modality, all names).
    """
    return answer_by_other_images(test) | answer_from_questions(train, test)


def answer_by_other_images(test: Sequence[Sample]) -> dict[str, list[Prediction]]:
    """The baseline "other image"; empty where no question has one."""
    pairs = (pair for questions in group_by_kind(test).values() for pair in _pair_groups(questions))
    predictions = [_make_prediction(s, other.answer, OTHER_IMAGE) for s, other in pairs]
    return {OTHER_IMAGE: predictions} if predictions else {}


def answer_from_questions(train: Sequence[Sample], test: Sequence[Sample]) -> dict[str, list[Prediction]]:
    """The baselines that are made from known questions and answers, as `make_image_blind_baselines` tells."""
    known_by_kind, test_by_kind = group_by_kind(train or test), group_by_kind(test)
    predictions: dict[str, list[Prediction]] = {baseline: [] for baseline in BASELINES}
    for kind, questions in test_by_kind.items():
        pool, note = known_by_kind.get(kind, []), ""
        if len({s.group for s in pool}) < (1 if train else 2):
            pool, note = (
                [s for k, of in known_by_kind.items() if k[0] is kind[0] for s in of],
                _WIDER_POOL_NOTES[bool(train)],
            )
        if not pool:
            continue
        for baseline, answers in _answer_questions(kind[0], questions, pool, leave_out=not train):
            predictions[baseline] += [
                _make_prediction(s, g.answer, baseline + note + g.note)
                for s, g in zip(questions, answers, strict=True)
                if g is not None
            ]
    for task in dict.fromkeys(s.task for s in test):
        known, questions = ([s for s in of if s.task is task] for of in (train or test, test))
        predictions[LEARNED] += _answer_by_learning(known, questions, leave_out=not train)
    return {baseline: rows for baseline, rows in predictions.items() if rows}


def _answer_by_learning(known: Sequence[Sample], questions: Sequence[Sample], leave_out: bool) -> Iterator[Prediction]:
    """The answers of a forest to questions of one task; to known questions, of one that other groups were given to."""
    for part in range(_LEARNED_PARTS if leave_out else 1):
        pool, asked = known, questions
        if leave_out:
            pool = [s for s in known if _assign_part(s) != part]
            asked = [s for s in questions if _assign_part(s) == part]
        if len(pool) >= LEAST_KNOWN and asked:
            answers = LearnedBaseline(pick_evenly(pool, MOST_KNOWN), _extract_gist).answer(asked)
            yield from (_make_prediction(s, a, LEARNED) for s, a in zip(asked, answers, strict=True) if a is not None)


_WIDER_POOL_NOTES = {
    True: "; no training question of the modality: all taken",
    False: "; no other image of the modality: all taken",
}


class _BaselineAnswer(NamedTuple):
    answer: BoxedText
    note: str = ""


def _answer_questions(
    task: Task, questions: Sequence[Sample], pool: Sequence[Sample], leave_out: bool
) -> Iterator[tuple[str, list[_BaselineAnswer | None]]]:
    """Each baseline with its answer to each question, made from pool questions of other groups; None without any."""
    if task is Task.VG:
        pools = _AnswerPools(pool)
        yield MEDIAN_BOX, [pools.guess(s, "median", ("names",)) for s in questions]
        yield CONSTANT, [pools.guess(s, "median", ()) for s in questions]
        yield QUESTION_ONLY, [pools.guess(s, "likeliest", ("words", "names")) for s in questions]
    else:
        lookup = _Lookup(pick_evenly(pool, _POOL_SIZE), leave_out)
        yield CONSTANT, lookup.constant(questions)
        yield QUESTION_ONLY, lookup.answer(questions)


def group_by_kind(samples: Sequence[Sample]) -> dict[Kind, list[Sample]]:
    samples_by_kind: dict[Kind, list[Sample]] = defaultdict(list)
    for sample in samples:
        samples_by_kind[sample.task, sample.modality].append(sample)
    return samples_by_kind


def _make_prediction(sample: Sample, answer: BoxedText, by: str) -> Prediction:
    return Prediction(sample.id, (Candidate(answer.text, answer),), by=by)


# ---- another image --------------------------------------------------------------------------------------------------


def shuffle_images(test: Sequence[Sample]) -> list[Sample]:
    """Each question with an image of another group, of the same task and modality; questions without such an image are
    left out. A model's answers to these are the baseline "images shuffled"."""
    return [replace(s, images=other.images) for of in group_by_kind(test).values() for s, other in _pair_groups(of)]


def _pair_groups(questions: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """Pairs of each question with a sample of another group; each sample is used once where the sizes of the groups
    allow it. Empty where there is only one group."""
    sizes = Counter(s.group for s in questions)
    if len(sizes) < 2:
        return []
    ring = sorted(questions, key=lambda s: (hashlib.sha256(s.group.encode()).digest(), s.id))
    step, n = max(sizes.values()), len(ring)
    pairs = []
    for i, sample in enumerate(ring):
        ahead = (ring[(i + step + j) % n] for j in range(n))
        pairs.append((sample, next(o for o in ahead if o.group != sample.group)))
    return pairs


# ---- boxes from a name ----------------------------------------------------------------------------------------------

Choice = Literal["median", "likeliest"]
KeyKind = Literal["words", "names", "all"]


class _AnswerPools:
    """Known boxes: by the words of their question, by the names in it, and all together."""

    def __init__(self, pool: Sequence[Sample]) -> None:
        self._samples_by_key: dict[tuple[KeyKind, object], list[Sample]] = defaultdict(list)
        for sample in pool:
            for kind in get_args(KeyKind):
                self._samples_by_key[kind, _make_key(sample, kind)].append(sample)
        self._pools: dict[tuple[KeyKind, object], _AnswerPool] = {}

    def guess(self, sample: Sample, choice: Choice, by: Sequence[KeyKind]) -> _BaselineAnswer | None:
        """An answer from the same question if it is frequent, else from the same names (which a VG question states),
        else from all questions; always without the sample's own group."""
        for kind in (*by, "all"):
            key, min_count = (kind, _make_key(sample, kind)), _LEAST_SAME_QUESTION if kind == "words" else 1
            if (
                len(self._samples_by_key.get(key, ())) >= min_count
                and self._get_pool(key).others(sample.group) >= min_count
            ):
                boxes = self._get_pool(key).boxes(choice, sample.group)
                note = "; name not in training: all names taken" if kind == "all" and by else ""
                return _BaselineAnswer(BoxedText(" ".join([BOX_MARK] * len(boxes)), boxes), note)
        return None

    def _get_pool(self, key: tuple[KeyKind, object]) -> _AnswerPool:
        if key not in self._pools:
            self._pools[key] = _AnswerPool(self._samples_by_key[key])
        return self._pools[key]


def _make_key(sample: Sample, kind: KeyKind) -> object:
    if kind == "all":
        return None
    words = normalise(sample.question.words)
    return words if kind == "words" else tuple(sorted(normalise(n) for n in sample.names)) or (words,)


@dataclass(frozen=True)
class _BoxSets:
    """Answers with the same number of boxes; the boxes of each answer go from left to right."""

    corners: NDArray[np.float64]  # [boxes, S, 4]
    groups: NDArray[np.intp]  # [S]

    @cached_property
    def overlaps(self) -> list[NDArray[np.float64]]:
        """For each place [S, S] the IoU of the boxes of all answers there."""
        return [iou_of_corners(boxes_S4, boxes_S4) for boxes_S4 in self.corners]


class _AnswerPool:
    """Known answers with boxes; the answers of one group can be left out."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._sizes = Counter(s.group for s in samples)
        # picked before the answers are used, so that the choice of others' answers does not depend on the own answer
        kept = pick_evenly(samples, _POOL_SIZE)
        self._code = {g: i for i, g in enumerate(sorted({s.group for s in kept}))}
        self._sets_by_number: dict[Choice, dict[int, _BoxSets]] = {
            "median": _group_box_sets(kept, self._code),
            "likeliest": _group_box_sets(pick_evenly(kept, _MOST_SETS), self._code),
        }
        self._boxes_cache: dict[tuple[Choice, int], tuple[Box, ...]] = {}

    def others(self, group: str) -> int:
        """Number of questions of other groups."""
        return self._sizes.total() - self._sizes[group]

    def boxes(self, choice: Choice, group: str) -> tuple[Box, ...]:
        """The commonest number of boxes in answers of other groups, each box at its usual place. All groups that have
        no answer here get the same boxes."""
        code = self._code.get(group, -1)
        if (choice, code) not in self._boxes_cache:
            self._boxes_cache[choice, code] = self._compute_boxes(choice, code)
        return self._boxes_cache[choice, code]

    def _compute_boxes(self, choice: Choice, code: int) -> tuple[Box, ...]:
        sets_by_number = self._sets_by_number[choice]
        num_left = {n: int((sets.groups != code).sum()) for n, sets in sets_by_number.items()}
        number = max(num_left, key=lambda n: (num_left[n], -n))
        if not number or not num_left[number]:
            return ()
        sets = sets_by_number[number]
        kept = sets.groups != code
        if choice == "median":
            rows = [np.median(boxes_S4[kept], axis=0) for boxes_S4 in sets.corners]
        else:
            rows = [
                boxes_S4[kept][_find_likeliest(overlap[np.ix_(kept, kept)])]
                for boxes_S4, overlap in zip(sets.corners, sets.overlaps, strict=True)
            ]
        return tuple(Box(*row.tolist()) for row in rows)


def _find_likeliest(overlap: NDArray[np.float64]) -> int:
    """Index of the box that finds most of the others at IoU 0.5; its recall is better than that of the median."""
    return int(((overlap >= 0.5).mean(1) + 1e-3 * overlap.mean(1)).argmax())


def _group_box_sets(samples: Sequence[Sample], code: Mapping[str, int]) -> dict[int, _BoxSets]:
    samples_by_number: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        samples_by_number[len(sample.answer.boxes)].append(sample)
    box_sets = {}
    for number, of_number in samples_by_number.items():
        boxes_S = [corners(sorted(s.answer.boxes, key=lambda b: (b.x1, b.y1))) for s in of_number]
        groups_S = np.array([code[s.group] for s in of_number])
        box_sets[number] = _BoxSets(np.moveaxis(np.array(boxes_S), 1, 0), groups_S)
    return box_sets


# ---- words from a question ------------------------------------------------------------------------------------------


class _Setting(NamedTuple):
    """Distance = box_weight * L1 of the corners + word_weight * (1 - similarity of the words); k nearest, with ties."""

    box_weight: float
    word_weight: float
    k: int


class _Lookup:
    """Finds the known questions nearest to a question, and the known answer that agrees best with their answers.

    An answer is treated as a set (its gist): its class name, its facts where the data state them, else its words. The
    result is the known answer with the largest expected F1 against the neighbours' sets (for class names: the
    majority). The weights of words and box and the number of neighbours are chosen on held-out known questions. Where
    the questions to answer are known ones (`leave_out`), each half of the groups uses settings from the other half.

    Nothing is taken from the own group. The sums are of whole numbers, so that ties do not depend on other questions.
    """

    def __init__(self, pool: Sequence[Sample], leave_out: bool) -> None:
        self._pool = pool
        self._code = {g: i for i, g in enumerate(dict.fromkeys(s.group for s in pool))}
        self._groups_N = self._encode_groups(pool)
        gists = [_extract_gist(s) for s in pool]
        place = {g: i for i, g in enumerate(sorted(set().union(*gists)))}
        unique_gists = sorted(set(gists), key=sorted)
        code = {gist: i for i, gist in enumerate(unique_gists)}
        self._gist_N = np.array([code[gist] for gist in gists])  # which of the U answers it is
        self._truth_NV, self._answers_UV = make_indicator(gists, place), make_indicator(unique_gists, place)
        self._sizes_U = np.array([len(gist) for gist in unique_gists], dtype=np.float64)
        self._text_cache: dict[tuple[int, int], BoxedText] = {}
        self._words = {w: i for i, w in enumerate(sorted({w for s in pool for w in _words(s)}))}
        word_counts = Counter(w for s in pool for w in _words(s))
        self._rarity_W = np.log(1 + len(pool) / np.array([0.5 + word_counts[w] for w in self._words]))
        self._words_NW, self._boxes_N4 = self._make_word_rows(pool), _make_box_rows(pool)
        if leave_out:
            half = np.array([_assign_half(s) for s in pool])
            self._settings = [self._pick_setting(np.flatnonzero(half != h)) for h in (0, 1)]
        else:
            self._settings = [self._pick_setting(np.arange(len(pool)))] * 2

    def constant(self, questions: Sequence[Sample]) -> list[_BaselineAnswer | None]:
        """The answer that agrees best with the whole pool; for class names, the commonest."""
        group_M = self._encode_groups(questions)
        groups = np.unique(group_M)
        answers: dict[int, _BaselineAnswer | None] = {}
        for part in _split_places(groups):
            near = part[:, None] != self._groups_N
            answers |= dict(zip(part.tolist(), self._make_answers(near, part), strict=True))
        return [answers[g] for g in group_M.tolist()]

    def answer(self, questions: Sequence[Sample]) -> list[_BaselineAnswer | None]:
        """The answer that agrees best with the answers of the nearest questions."""
        answers: dict[int, _BaselineAnswer | None] = {}
        half = np.array([_assign_half(s) for s in questions])
        everyone = np.arange(len(self._pool))
        for h, setting in enumerate(self._settings):
            for part in _split_places(np.flatnonzero(half == h)):
                chunk = [questions[i] for i in part]
                guesses = self._make_answers(
                    _find_nearest(*self._measure_distances(chunk, everyone), setting), self._encode_groups(chunk)
                )
                answers |= dict(zip(part.tolist(), guesses, strict=True))
        return [answers[i] for i in range(len(questions))]

    def _make_answers(self, near_MN: NDArray[np.bool_], group_M: NDArray[np.intp]) -> list[_BaselineAnswer | None]:
        chosen = self._choose_answers(near_MN, group_M, np.arange(len(self._pool)))
        pairs = zip(chosen.tolist(), group_M.tolist(), strict=True)
        return [None if u < 0 else _BaselineAnswer(self._find_commonest_text(u, own_group)) for u, own_group in pairs]

    def _choose_answers(
        self, near_MN: NDArray[np.bool_], group_M: NDArray[np.intp], among: NDArray[np.intp]
    ) -> NDArray[np.intp]:
        """[M] the answer to a pool question in `among` with the largest expected F1 against the near answers; -1 where
        all are of the own group. `near_MN`: which questions of `among` are near."""
        expected_VM = self._truth_NV[among].T @ near_MN.T.astype(np.float32)
        both_UM = (self._answers_UV @ expected_VM).astype(np.float64)
        sizes_UM = self._sizes_U[:, None] * near_MN.sum(1) + expected_VM.sum(0)
        sole_U = self._find_sole_group(among)[:, None]
        quality_UM = np.where((sole_U == group_M) | (sole_U == _NOBODY), -1.0, 2 * both_UM / np.maximum(sizes_UM, 1e-6))
        chosen = quality_UM.argmax(0)
        return np.where(quality_UM.max(0) < 0, -1, chosen)

    def _find_sole_group(self, among: NDArray[np.intp]) -> NDArray[np.intp]:
        """[U] the only group that gave an answer; else _SEVERAL or _NOBODY."""
        low, high = np.full(len(self._sizes_U), len(self._code)), np.full(len(self._sizes_U), -1)
        np.minimum.at(low, self._gist_N[among], self._groups_N[among])
        np.maximum.at(high, self._gist_N[among], self._groups_N[among])
        return np.where(high < 0, _NOBODY, np.where(low == high, low, _SEVERAL))

    def _find_commonest_text(self, answer: int, own_group: int) -> BoxedText:
        """The commonest wording of an answer in other groups."""
        indices = np.flatnonzero(self._gist_N == answer).tolist()
        own_group = own_group if own_group in self._groups_N[indices] else _NOBODY
        if (answer, own_group) not in self._text_cache:
            text_counts = Counter(self._pool[i].answer for i in indices if self._groups_N[i] != own_group)
            most = max(text_counts.values())
            self._text_cache[answer, own_group] = min(
                (t for t, n in text_counts.items() if n == most), key=lambda t: t.text
            )
        return self._text_cache[answer, own_group]

    def _pick_setting(self, among: NDArray[np.intp]) -> _Setting:
        """The setting that answers these known questions best; each is held out with its group."""
        weights = [(1.0, 0.0), (1.0, 0.2), (1.0, 10.0)] if _mostly_boxed(self._pool) else [(0.0, 1.0)]
        settings = [_Setting(b, w, k) for k in (8, 3, 20, 1, 60) for b, w in weights if k < len(among)]
        settings.append(
            _Setting(*weights[0], len(self._pool))
        )  # all neighbours; last, because of equally good settings the first is taken
        best, best_quality = settings[0], -1.0
        if len(np.unique(self._groups_N[among])) < 2:
            return best
        trials = np.array(pick_evenly(among.tolist(), _TRIALS))
        distances, own_group = self._measure_distances([self._pool[i] for i in trials], among), self._groups_N[trials]
        for setting in settings:
            answers_of_trials = self._choose_answers(_find_nearest(*distances, setting), own_group, among)
            shared = np.asarray(self._answers_UV[answers_of_trials].multiply(self._truth_NV[trials]).sum(1)).ravel()
            sizes = self._sizes_U[answers_of_trials] + self._sizes_U[self._gist_N[trials]]
            quality = float((2 * shared / np.maximum(sizes, 1e-6)).mean())
            if quality > best_quality + 1e-6:
                best, best_quality = setting, quality
        return best

    def _measure_distances(self, questions: Sequence[Sample], among: NDArray[np.intp]) -> tuple[Matrix, Matrix]:
        """[M, N] distances of questions by words, 0..1, and by boxes; both are infinite within the own group."""
        words_MW, words_NW = self._make_word_rows(questions), self._words_NW[among]
        shared = (words_MW.multiply(self._rarity_W).tocsr() @ words_NW.T).toarray()
        total = (words_MW @ self._rarity_W)[:, None] + (words_NW @ self._rarity_W)[None] - shared
        own_group = self._encode_groups(questions)[:, None] == self._groups_N[among]
        boxes = np.abs(_make_box_rows(questions)[:, None] - self._boxes_N4[among][None]).sum(-1)
        return np.where(own_group, np.inf, 1 - shared / np.maximum(total, 1e-6)), np.where(own_group, np.inf, boxes)

    def _encode_groups(self, samples: Sequence[Sample]) -> NDArray[np.intp]:
        """The number of each sample's group; -1 for a group that the pool does not have."""
        return np.array([self._code.get(s.group, -1) for s in samples])

    def _make_word_rows(self, samples: Sequence[Sample]) -> Any:
        return make_indicator([_words(s) for s in samples], self._words)


_SEVERAL, _NOBODY = -2, -3


def _find_nearest(words_MN: Matrix, boxes_MN: Matrix, setting: _Setting) -> NDArray[np.bool_]:
    """[M, N] whether a question is among the k nearest of other groups, or as near as the last of these."""
    distances = setting.word_weight * words_MN if setting.word_weight else np.where(np.isinf(words_MN), np.inf, 0.0)
    distances = distances + setting.box_weight * boxes_MN if setting.box_weight else distances
    k = min(setting.k, distances.shape[1]) - 1
    last = np.partition(distances, k, axis=1)[:, k : k + 1]
    return (distances <= last + 1e-6) & np.isfinite(distances)


def _assign_half(sample: Sample) -> int:
    return hashlib.sha256(sample.group.encode()).digest()[0] & 1


def _assign_part(sample: Sample) -> int:
    return hashlib.sha256(sample.group.encode()).digest()[1] % _LEARNED_PARTS


def _split_places(places: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    return [places[start : start + _QUESTIONS_AT_ONCE] for start in range(0, len(places), _QUESTIONS_AT_ONCE)]


def _extract_gist(sample: Sample) -> frozenset[str]:
    if sample.task in (Task.ROC, Task.QA):
        return frozenset({normalise(sample.answer.words)})
    if sample.facts:
        return frozenset("\t".join(t) for fact in sample.facts for t in fact.tuples)
    return frozenset(normalise(sample.answer.words).split())


def _words(sample: Sample) -> frozenset[str]:
    return frozenset(normalise(sample.question.words).split())


def _mostly_boxed(pool: Sequence[Sample]) -> bool:
    return sum(bool(s.question.boxes) for s in pool) * 2 > len(pool)


def _make_box_rows(samples: Iterable[Sample]) -> Matrix:
    """The first box of each question; the whole image where it has none."""
    whole = Box(0.0, 0.0, 1.0, 1.0)
    return corners([s.question.boxes[0] if s.question.boxes else whole for s in samples]).astype(np.float32)


def pick_evenly(values: Sequence[T], most: int) -> Sequence[T]:
    if len(values) <= most:
        return values
    return [values[int(i)] for i in np.linspace(0, len(values) - 1, most)]
