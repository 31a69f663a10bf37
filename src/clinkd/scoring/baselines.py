"""Answers given without looking at the image: the figures that a model which does look has to beat.

They are made from the training split and the test question alone, but for "other image", which is the true answer of
another test image, and "images shuffled", which a model gives when it is shown another test image. Where there is no
training split, the other images of the test set stand for it: whatever a twin says of an image does not depend on the
truth of that image's group. They are meant to be strong: the question of a referring task shows a box, and its place
and size say much. Shapes: N known questions, M test questions, V facts or words, U different known answers.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from clinkd.boxes import corners, iou_of_corners
from clinkd.language.words import normalise
from clinkd.records import BOX_MARK, Box, BoxedText, Candidate, Modality, Prediction, Sample, Task

OTHER_IMAGE, MEDIAN_BOX, CONSTANT, QUESTION_ONLY = "other image", "median box", "constant", "question only"
IMAGES_SHUFFLED = "images shuffled"
BASELINES = (OTHER_IMAGE, MEDIAN_BOX, CONSTANT, QUESTION_ONLY, IMAGES_SHUFFLED)

_POOL = 2000  # most known questions of a task and modality, or of a name, that are looked up, drawn evenly
_TRIALS = 250  # known questions on which the look-up picks its own settings
_SAME_QUESTION = 30  # known questions with the same words from which their boxes alone are used
_SETS = 400  # most answers among which the likeliest box is sought
_ROWS = 1024  # test questions looked up together

Matrix = NDArray[np.float32]
Kind = tuple[Task, Modality]
T = TypeVar("T")


def image_blind_baselines(train: Sequence[Sample], test: Sequence[Sample]) -> dict[str, list[Prediction]]:
    """One list of predictions a twin, for the test samples to which it applies; deterministic. "images shuffled" is no
    part of it: it takes a model (`images_shuffled`).

    Without training samples each test sample is answered from those of other groups. `Prediction.by` says where a twin
    fell back on something wider (another modality, all names).
    """
    known, asked = _by_kind(train or test), _by_kind(test)
    found: dict[str, list[Prediction]] = {twin: [] for twin in BASELINES}
    for kind, questions in asked.items():
        found[OTHER_IMAGE] += [_says(s, other.answer, OTHER_IMAGE) for s, other in _partners(questions)]
        pool, note = known.get(kind, []), ""
        if len({s.group for s in pool}) < (1 if train else 2):
            pool, note = [s for k, of in known.items() if k[0] is kind[0] for s in of], _WIDER[bool(train)]
        if not pool:
            continue
        for twin, answers in _guesses(kind[0], questions, pool, leave_out=not train):
            found[twin] += [_says(s, g.answer, twin + note + g.note) for s, g in zip(questions, answers, strict=True)
                            if g is not None]  # fmt: skip
    return {twin: rows for twin, rows in found.items() if rows}


_WIDER = {
    True: "; no training question of the modality: all taken",
    False: "; no other image of the modality: all taken",
}


class _BaselineAnswer(NamedTuple):
    answer: BoxedText
    note: str = ""


def _guesses(
    task: Task, questions: Sequence[Sample], pool: Sequence[Sample], leave_out: bool
) -> Iterator[tuple[str, list[_BaselineAnswer | None]]]:
    """Each twin with its guess at each question from the questions of other groups in the pool; None without any."""
    if task is Task.VG:
        shelves = _Shelves(pool)
        yield MEDIAN_BOX, [shelves.guess(s, "median", ("names",)) for s in questions]
        yield CONSTANT, [shelves.guess(s, "median", ()) for s in questions]
        yield QUESTION_ONLY, [shelves.guess(s, "likeliest", ("words", "names")) for s in questions]
    else:
        lookup = _Lookup(_evenly(pool, _POOL), leave_out)
        yield CONSTANT, lookup.constant(questions)
        yield QUESTION_ONLY, lookup.answer(questions)


def _by_kind(samples: Sequence[Sample]) -> dict[Kind, list[Sample]]:
    found: dict[Kind, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[sample.task, sample.modality].append(sample)
    return found


def _says(sample: Sample, answer: BoxedText, by: str) -> Prediction:
    return Prediction(sample.id, (Candidate(answer.text, answer),), by=by)


# ---- another image --------------------------------------------------------------------------------------------------


def images_shuffled(test: Sequence[Sample]) -> list[Sample]:
    """Each question with the image of another group's question of the same task and modality; those without one are
    left out. What a model answers to these is the twin "images shuffled"."""
    return [replace(s, images=other.images) for of in _by_kind(test).values() for s, other in _partners(of)]


def _partners(questions: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """Each with a sample of another group, each of these taken once where the groups' sizes allow it; none where there
    is one group only."""
    sizes = Counter(s.group for s in questions)
    if len(sizes) < 2:
        return []
    ring = sorted(questions, key=lambda s: (hashlib.sha256(s.group.encode()).digest(), s.id))
    step, n = max(sizes.values()), len(ring)
    found = []
    for i, sample in enumerate(ring):
        ahead = (ring[(i + step + j) % n] for j in range(n))
        found.append((sample, next(o for o in ahead if o.group != sample.group)))
    return found


# ---- boxes from a name ----------------------------------------------------------------------------------------------

Choice = Literal["median", "likeliest"]


class _Shelves:
    """Known boxes by the words of their question, by the names it is about, and all together."""

    def __init__(self, pool: Sequence[Sample]) -> None:
        self._kept: dict[tuple[str, object], list[Sample]] = defaultdict(list)
        for sample in pool:
            for key in (("words", _key(sample, "words")), ("names", _key(sample, "names")), ("all", None)):
                self._kept[key].append(sample)
        self._made: dict[tuple[str, object], _Shelf] = {}

    def guess(self, sample: Sample, choice: Choice, by: Sequence[Literal["words", "names"]]) -> _BaselineAnswer | None:
        """From the same question, if it was asked often, else from the same names (which a VG question states), else
        from all; of other groups than the sample's."""
        for how in by:
            key, least = (how, _key(sample, how)), _SAME_QUESTION if how == "words" else 1
            if len(self._kept.get(key, ())) >= least and self._shelf(key).others(sample.group) >= least:
                return _BaselineAnswer(_boxed(self._shelf(key).boxes(choice, sample.group)))
        whole = self._shelf(("all", None))
        if not whole.others(sample.group):
            return None
        note = "; name not in training: all names taken" if by else ""
        return _BaselineAnswer(_boxed(whole.boxes(choice, sample.group)), note)

    def _shelf(self, key: tuple[str, object]) -> _Shelf:
        if key not in self._made:
            self._made[key] = _Shelf.of(self._kept[key])
        return self._made[key]


def _key(sample: Sample, how: Literal["words", "names"]) -> object:
    words = normalise(sample.question.words)
    return words if how == "words" else tuple(sorted(normalise(n) for n in sample.names)) or (words,)


def _boxed(boxes: Sequence[Box]) -> BoxedText:
    return BoxedText(" ".join([BOX_MARK] * len(boxes)), tuple(boxes))


@dataclass(frozen=True, slots=True)
class _Sets:
    """Answers with the same number of boxes, each from left to right."""

    corners: NDArray[np.float64]  # [S, boxes, 4]
    groups: NDArray[np.intp]  # [S]


@dataclass(frozen=True, slots=True)
class _Shelf:
    """Known answers with boxes, of which those of one group may be left out."""

    sizes: Counter[str]  # of all questions, by group
    code: Mapping[str, int]  # of the groups among those below
    median: Mapping[int, _Sets]  # by number of boxes
    likeliest: Mapping[int, _Sets]
    memory: dict[tuple[Choice, int], tuple[Box, ...]] = field(default_factory=dict)
    overlaps: dict[int, list[NDArray[np.float64]]] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> _Shelf:
        # drawn before their answers are looked at: which of others' answers are used says nothing of one's own
        kept = _evenly(samples, _POOL)
        code = {g: i for i, g in enumerate(sorted({s.group for s in kept}))}
        return cls(Counter(s.group for s in samples), code, _sets(kept, code), _sets(_evenly(kept, _SETS), code))

    def others(self, group: str) -> int:
        """Questions of other groups."""
        return self.sizes.total() - self.sizes[group]

    def boxes(self, choice: Choice, group: str) -> tuple[Box, ...]:
        """The commonest number of boxes in answers of other groups, each at its usual place; the same for all groups
        that have no answer here."""
        code = self.code.get(group, -1)
        if (choice, code) not in self.memory:
            self.memory[choice, code] = self._boxes(choice, code)
        return self.memory[choice, code]

    def _boxes(self, choice: Choice, code: int) -> tuple[Box, ...]:
        by_number = self.median if choice == "median" else self.likeliest
        left = {n: int((of.groups != code).sum()) for n, of in by_number.items()}
        number = max(left, key=lambda n: (left[n], -n))
        if not number or not left[number]:
            return ()
        kept = by_number[number].groups != code
        places = np.moveaxis(by_number[number].corners, 1, 0)  # [boxes, S, 4]
        if choice == "median":
            return tuple(_as_box(np.median(place[kept], axis=0)) for place in places)
        if number not in self.overlaps:
            self.overlaps[number] = [iou_of_corners(place, place) for place in places]
        return tuple(
            _as_box(place[kept][_likeliest(overlap[np.ix_(kept, kept)])])
            for place, overlap in zip(places, self.overlaps[number], strict=True)
        )


def _likeliest(overlap: NDArray[np.float64]) -> int:
    """The box that finds most of the others at IoU 0.5: better than the median for recall."""
    return int(((overlap >= 0.5).mean(1) + 1e-3 * overlap.mean(1)).argmax())


def _sets(samples: Sequence[Sample], code: Mapping[str, int]) -> dict[int, _Sets]:
    piles: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        piles[len(sample.answer.boxes)].append(sample)
    return {
        n: _Sets(
            np.array([corners(sorted(s.answer.boxes, key=lambda b: (b.x1, b.y1))) for s in of]),
            np.array([code[s.group] for s in of]),
        )
        for n, of in piles.items()
    }


def _as_box(row_4: NDArray[np.float64]) -> Box:
    return Box.from_json(row_4.tolist())


# ---- words from a question ------------------------------------------------------------------------------------------


class _Setting(NamedTuple):
    """Distance = box_weight * L1 of the corners + word_weight * (1 - likeness of the words); k nearest, with ties."""

    box_weight: float
    word_weight: float
    k: int


class _Lookup:
    """Known questions nearest to a question, and the known answer that agrees best with what those were answered.

    An answer is seen as a set: its class name, its facts where the data state them, else its words. Among all known
    answers the one with the largest expected F1 against the neighbours' sets is given (for class names: the majority).
    How far words and box count, and how many neighbours are asked, is picked on held-out known questions: where those
    to come are known ones themselves (`leave_out`), for each half of the groups on the other half.

    Nothing is taken from the own group. Whole numbers are summed up, so that a tie is one whoever else is there.
    """

    def __init__(self, pool: Sequence[Sample], leave_out: bool) -> None:
        self._pool = pool
        self._code = {g: i for i, g in enumerate(dict.fromkeys(s.group for s in pool))}
        self._groups_N = self._coded(pool)
        gists = [_gist(s) for s in pool]
        place = {g: i for i, g in enumerate(sorted(set().union(*gists)))}
        known = sorted(set(gists), key=sorted)
        code = {gist: i for i, gist in enumerate(known)}
        self._gist_N = np.array([code[gist] for gist in gists])  # which of the U answers
        self._truth_NV, self._answers_UV = _indicator(gists, place), _indicator(known, place)
        self._sizes_U = np.array([len(gist) for gist in known], dtype=np.float64)
        self._spoken: dict[tuple[int, int], BoxedText] = {}
        self._words = {w: i for i, w in enumerate(sorted({w for s in pool for w in _words(s)}))}
        spread = Counter(w for s in pool for w in _words(s))
        self._rarity_W = np.log(1 + len(pool) / np.array([0.5 + spread[w] for w in self._words]))
        self._words_NW, self._boxes_N4 = self._word_rows(pool), _box_rows(pool)
        if leave_out:
            half = np.array([_half(s) for s in pool])
            self._settings = [self._pick(np.flatnonzero(half != h)) for h in (0, 1)]
        else:
            self._settings = [self._pick(np.arange(len(pool)))] * 2

    def constant(self, questions: Sequence[Sample]) -> list[_BaselineAnswer | None]:
        """The answer that agrees best with all of the pool; for class names the commonest."""
        own_M = self._coded(questions)
        groups = np.unique(own_M)
        found: dict[int, _BaselineAnswer | None] = {}
        for part in _parts(groups):
            near = part[:, None] != self._groups_N
            found |= dict(zip(part.tolist(), self._guesses(near, part), strict=True))
        return [found[g] for g in own_M.tolist()]

    def answer(self, questions: Sequence[Sample]) -> list[_BaselineAnswer | None]:
        """The answer that agrees best with those of the nearest questions."""
        found: dict[int, _BaselineAnswer | None] = {}
        half = np.array([_half(s) for s in questions])
        everyone = np.arange(len(self._pool))
        for h, setting in enumerate(self._settings):
            for part in _parts(np.flatnonzero(half == h)):
                asked = [questions[i] for i in part]
                guesses = self._guesses(_near(*self._far(asked, everyone), setting), self._coded(asked))
                found |= dict(zip(part.tolist(), guesses, strict=True))
        return [found[i] for i in range(len(questions))]

    def _guesses(self, near_MN: NDArray[np.bool_], own_M: NDArray[np.intp]) -> list[_BaselineAnswer | None]:
        chosen = self._choice(near_MN, own_M, np.arange(len(self._pool)))
        pairs = zip(chosen.tolist(), own_M.tolist(), strict=True)
        return [None if u < 0 else _BaselineAnswer(self._text(u, own)) for u, own in pairs]

    def _choice(self, near_MN: NDArray[np.bool_], own_M: NDArray[np.intp], among: NDArray[np.intp]) -> NDArray[np.intp]:
        """Of the answers to `among`, which [N] near ones are of, the one with the largest expected F1 against those;
        -1 where all of them are of the own group."""
        expected_VM = self._truth_NV[among].T @ near_MN.T.astype(np.float32)
        both_UM = (self._answers_UV @ expected_VM).astype(np.float64)
        sizes_UM = self._sizes_U[:, None] * near_MN.sum(1) + expected_VM.sum(0)
        sole_U = self._sole(among)[:, None]
        worth_UM = np.where((sole_U == own_M) | (sole_U == _NOBODY), -1.0, 2 * both_UM / np.maximum(sizes_UM, 1e-6))
        chosen = worth_UM.argmax(0)
        return np.where(worth_UM.max(0) < 0, -1, chosen)

    def _sole(self, among: NDArray[np.intp]) -> NDArray[np.intp]:
        """[U] the group that alone gave an answer; else _SEVERAL or _NOBODY."""
        low, high = np.full(len(self._sizes_U), len(self._code)), np.full(len(self._sizes_U), -1)
        np.minimum.at(low, self._gist_N[among], self._groups_N[among])
        np.maximum.at(high, self._gist_N[among], self._groups_N[among])
        return np.where(high < 0, _NOBODY, np.where(low == high, low, _SEVERAL))

    def _text(self, answer: int, own: int) -> BoxedText:
        """How other groups most often put an answer."""
        givers = np.flatnonzero(self._gist_N == answer).tolist()
        own = own if own in self._groups_N[givers] else _NOBODY
        if (answer, own) not in self._spoken:
            said = Counter(self._pool[i].answer for i in givers if self._groups_N[i] != own)
            most = max(said.values())
            self._spoken[answer, own] = min((t for t, n in said.items() if n == most), key=lambda t: t.text)
        return self._spoken[answer, own]

    def _pick(self, among: NDArray[np.intp]) -> _Setting:
        """The setting that answers best among these known questions, each held out with its group."""
        weights = [(1.0, 0.0), (1.0, 0.2), (1.0, 10.0)] if _mostly_boxed(self._pool) else [(0.0, 1.0)]
        settings = [_Setting(b, w, k) for k in (8, 3, 20, 1, 60) for b, w in weights if k < len(among)]
        settings.append(_Setting(*weights[0], len(self._pool)))  # all of them; last, since the first of equals is taken
        best, best_worth = settings[0], -1.0
        if len(np.unique(self._groups_N[among])) < 2:
            return best
        trials = np.array(_evenly(among.tolist(), _TRIALS))
        far, own = self._far([self._pool[i] for i in trials], among), self._groups_N[trials]
        for setting in settings:
            given = self._choice(_near(*far, setting), own, among)
            both = np.asarray(self._answers_UV[given].multiply(self._truth_NV[trials]).sum(1)).ravel()
            sizes = self._sizes_U[given] + self._sizes_U[self._gist_N[trials]]
            worth = float((2 * both / np.maximum(sizes, 1e-6)).mean())
            if worth > best_worth + 1e-6:
                best, best_worth = setting, worth
        return best

    def _far(self, questions: Sequence[Sample], among: NDArray[np.intp]) -> tuple[Matrix, Matrix]:
        """[M, N] how far questions are by words, 0..1, and by boxes; infinite, in both, from those of their group."""
        words_MW, words_NW = self._word_rows(questions), self._words_NW[among]
        both = (words_MW.multiply(self._rarity_W).tocsr() @ words_NW.T).toarray()
        total = (words_MW @ self._rarity_W)[:, None] + (words_NW @ self._rarity_W)[None] - both
        own = self._coded(questions)[:, None] == self._groups_N[among]
        boxes = np.abs(_box_rows(questions)[:, None] - self._boxes_N4[among][None]).sum(-1)
        return np.where(own, np.inf, 1 - both / np.maximum(total, 1e-6)), np.where(own, np.inf, boxes)

    def _coded(self, samples: Sequence[Sample]) -> NDArray[np.intp]:
        """The number of each one's group; -1 for groups that are not known."""
        return np.array([self._code.get(s.group, -1) for s in samples])

    def _word_rows(self, samples: Sequence[Sample]) -> Any:
        return _indicator([_words(s) for s in samples], self._words)


_SEVERAL, _NOBODY = -2, -3


def _near(words_MN: Matrix, boxes_MN: Matrix, setting: _Setting) -> NDArray[np.bool_]:
    """[M, N] the k nearest of other groups, and all as near as the last of them."""
    far = setting.word_weight * words_MN if setting.word_weight else np.where(np.isinf(words_MN), np.inf, 0.0)
    far = far + setting.box_weight * boxes_MN if setting.box_weight else far
    k = min(setting.k, far.shape[1]) - 1
    last = np.partition(far, k, axis=1)[:, k : k + 1]
    return (far <= last + 1e-6) & np.isfinite(far)


def _half(sample: Sample) -> int:
    return hashlib.sha256(sample.group.encode()).digest()[0] & 1


def _parts(places: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    return [places[start : start + _ROWS] for start in range(0, len(places), _ROWS)]


def _gist(sample: Sample) -> frozenset[str]:
    if sample.task in (Task.ROC, Task.QA):
        return frozenset({normalise(sample.answer.words)})
    if sample.facts:
        return frozenset("\t".join(t) for fact in sample.facts for t in fact.tuples)
    return frozenset(normalise(sample.answer.words).split())


def _words(sample: Sample) -> frozenset[str]:
    return frozenset(normalise(sample.question.words).split())


def _mostly_boxed(pool: Sequence[Sample]) -> bool:
    return sum(bool(s.question.boxes) for s in pool) * 2 > len(pool)


def _box_rows(samples: Iterable[Sample]) -> Matrix:
    """First box of each question; the whole image where it has none."""
    whole = Box(0.0, 0.0, 1.0, 1.0)
    return corners([s.question.boxes[0] if s.question.boxes else whole for s in samples]).astype(np.float32)


def _indicator(sets: Sequence[frozenset[str]], place: Mapping[str, int]) -> Any:
    """A sparse matrix [sets, places], 1 for each member of a set that has a place."""
    from scipy import sparse  # here: evaluation starts without it

    members = [(row, place[m]) for row, of in enumerate(sets) for m in of if m in place]
    rows, columns = np.array(members, dtype=np.intp).reshape(-1, 2).T
    ones = np.ones(len(members), dtype=np.float32)
    return sparse.csr_array((ones, (rows, columns)), shape=(len(sets), max(1, len(place))))


def _evenly(values: Sequence[T], most: int) -> Sequence[T]:
    if len(values) <= most:
        return values
    return [values[int(i)] for i in np.linspace(0, len(values) - 1, most)]
