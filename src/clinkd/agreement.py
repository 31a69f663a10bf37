"""Do two answers agree: boxes by IoU, words, negation, sides, counts, and the facts a sentence states.

Everything here is exact and small: no model, no list of diseases. Texts may hold `[box]` marks; they are passed over.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from clinkd.records import BOX_MARK, Box, BoxedText, Fact

# ---- boxes ----------------------------------------------------------------------------------------------------------


def iou_matrix(truth: Sequence[Box], predicted: Sequence[Box]) -> NDArray[np.float64]:
    """Intersection over union of every pair, [len(truth), len(predicted)], 0..1; exactly 1 for equal boxes."""
    return iou_of_corners(corners(truth), corners(predicted))


def iou_of_corners(truth_T4: NDArray[np.float64], predicted_P4: NDArray[np.float64]) -> NDArray[np.float64]:
    """`iou_matrix` of rows x1, y1, x2, y2, one of each pair at least not empty."""
    a, b = truth_T4[:, None], predicted_P4[None, :]  # [T,1,4], [1,P,4]
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])  # [T,P,2]
    both = np.prod(np.clip(high - low, 0, None), axis=-1)
    union = np.prod(a[..., 2:] - a[..., :2], axis=-1) + np.prod(b[..., 2:] - b[..., :2], axis=-1) - both
    return cast(NDArray[np.float64], both / union)  # a Box is never empty, so the union is positive


def corners(boxes: Sequence[Box]) -> NDArray[np.float64]:
    """[N, 4] x1, y1, x2, y2 of each."""
    return np.array([(b.x1, b.y1, b.x2, b.y2) for b in boxes], dtype=np.float64).reshape(-1, 4)


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0..1."""
    return float(iou_matrix([a], [b])[0, 0])


def match_boxes(truth: Sequence[Box], predicted: Sequence[Box], iou: float) -> list[tuple[int, int]]:
    """Pairs (truth index, predicted index), each box used once: as many pairs of IoU >= `iou` as there can be,
    and among those matchings the one of largest summed IoU. Ordered by truth index. `iou` 0 pairs touching boxes only.
    """
    return match_overlaps(iou_matrix(truth, predicted), iou)


def match_overlaps(overlap: NDArray[np.float64], iou: float) -> list[tuple[int, int]]:
    """`match_boxes` where the IoU of every pair, [T, P], is at hand."""
    fits = (overlap >= iou) & (overlap > 0)
    rows, columns = np.flatnonzero(fits.any(axis=1)), np.flatnonzero(fits.any(axis=0))
    if len(rows) == 0:
        return []
    if len(rows) == 1:
        return [(int(rows[0]), int(np.argmax(np.where(fits[rows[0]], overlap[rows[0]], -1))))]
    more_than_any_sum = 1.0 + min(len(rows), len(columns))  # so one more pair always outweighs better overlap
    worth = np.where(fits, more_than_any_sum + overlap, 0.0)[np.ix_(rows, columns)]
    return [(int(rows[r]), int(columns[c])) for r, c in _assign(worth) if worth[r, c] > 0]


def _assign(worth: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """The (row, column) pairs of the one-to-one assignment of greatest summed worth, ordered by row."""
    from scipy.optimize import linear_sum_assignment  # here: what matches no boxes starts without it

    return zip(*linear_sum_assignment(worth, maximize=True), strict=True)


# ---- words ----------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"\d+(?:\.\d+)+|[^\W_]+|,")
_SENTENCE_END = re.compile(r"[;!?\n\r\u2028\u2029]+|\.(?!\d)|(?<!\d)\.")
_APOSTROPHE = re.compile(r"(?<=\w)['\u2019\u02bc](?=\w)")


@lru_cache(maxsize=65536)
def _sentences(text: str) -> tuple[tuple[str, ...], ...]:
    """Sentences as lower-case words, commas (and colons) kept as ",": what all reading below starts from."""
    plain = unicodedata.normalize("NFKC", text.replace(BOX_MARK, " ")).casefold().replace(":", ",")
    plain = _APOSTROPHE.sub("", plain)  # isn't -> isnt, patient's -> patients
    found = (tuple(_WORD.findall(s)) for s in _SENTENCE_END.split(plain))
    return tuple(s for s in found if any(w != "," for w in s))


@lru_cache(maxsize=65536)
def normalise(text: str) -> str:
    """Case folded, NFKC, box marks and punctuation gone (a decimal point stays), words one space apart."""
    return " ".join(w for s in _sentences(text) for w in s if w != ",")


@lru_cache(maxsize=65536)
def _singular(word: str) -> str:
    """A crude singular, the same for both numbers of a regular noun; used on both sides of a comparison only."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if len(word) > 4 and word.endswith("ae"):
        return word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


@lru_cache(maxsize=65536)
def _key(name: str) -> tuple[str, ...]:
    return tuple(_singular(w) for w in normalise(name).split())


@lru_cache(maxsize=256)
def _index(names: tuple[str, ...]) -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """First word -> the names that begin with it, longest first."""
    index: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for name in names:
        if key := _key(name):
            index.setdefault(key[0], []).append((key, name))
    for keys in index.values():
        keys.sort(key=lambda kn: -len(kn[0]))
    return index


def _spans(words: Sequence[str], names: tuple[str, ...]) -> Iterator[tuple[int, int, str]]:
    """(start, end, name) of every name in the words, the longest first at each place, never overlapping."""
    index, singular, at = _index(names), [_singular(w) for w in words], 0
    while at < len(words):
        hit = next(((k, n) for k, n in index.get(singular[at], ()) if tuple(singular[at : at + len(k)]) == k), None)
        if hit:
            yield at, at + len(hit[0]), hit[1]
        at += len(hit[0]) if hit else 1


def mentions(text: str, name: str) -> bool:
    """The name stands in the text, at word boundaries, case and a regular plural aside; negated or not."""
    return bool(named(text, (name,)))


def named(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """The names a text mentions, negated or not, once each, in order of appearance; of nested names only the longest
    counts, so that "left lung" does not name "lung"."""
    names = tuple(names)
    return tuple(dict.fromkeys(n for clause in _clauses(text) for _, _, n in _spans(clause.words, names)))


def listed(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """As `named`, but only the names that the text affirms somewhere."""
    names = tuple(names)
    spans = (
        name for clause in _clauses(text) for _, end, name in _spans(clause.words, names) if not clause.negated[end - 1]
    )
    return tuple(dict.fromkeys(spans))


def affirms(text: str, name: str) -> bool:
    """The text states the name at least once without negating it in the same clause ("not the X" does not)."""
    return bool(listed(text, (name,)))


# ---- negation -------------------------------------------------------------------------------------------------------
# In the manner of NegEx (Chapman 2001): a trigger, a direction, and a scope that ends with the clause.

_NEGATORS = {
    *("no", "not", "without", "never", "neither", "nor", "cannot", "lack", "lacks", "lacking", "excluding", "denies"),
    *("isnt", "arent", "wasnt", "werent", "doesnt", "dont", "didnt", "cant", "couldnt", "hasnt", "havent", "none"),
}
_NEGATOR_PAIRS = {("absence", "of"), ("free", "of"), ("negative", "for"), ("rather", "than"), ("instead", "of")}
_NOT_NEGATORS = {("not", "only"), ("no", "doubt"), ("without", "doubt"), ("not", "just"), ("not", "merely")}
_PERCEIVED = {
    *("seen", "visible", "present", "found", "identified", "detected", "visualized", "visualised", "observed"),
    *("evident", "noted", "demonstrated", "shown", "depicted", "there", "apparent", "appreciated"),
}
_ABSENT = {"absent", "missing", "nonexistent"}
_AUXILIARY = {"be", "been", "being", "clearly", "well", "yet", "definitely", "to", "currently"}
_TURNS = {"but", "however", "although", "though", "whereas", "while", "yet", "except", "because", "which"}
_PLACES = {"in", "on", "at", "within", "along", "near", "around", "under", "above", "below", "over", "inside", "beside"}
_DETERMINERS = {"the", "a", "an", "this", "that", "these", "those", "there", "it", "its", "they"}
_VERBS = {
    *("is", "are", "was", "were", "has", "have", "had", "be", "been", "being", "can", "shows", "show", "lies", "lie"),
    *("sits", "appears", "appear", "contains", "contain", "seems", "measures", "occupies", "exists", "do", "does"),
    *("reveals", "displays", "depicts", "demonstrates", "could", "would", "may", "might", "will", "should", "looks"),
}
_SIDE_WORDS = {
    "left": frozenset({"left"}),
    "right": frozenset({"right"}),
    **{w: frozenset({"left"}) for w in ("leftmost", "leftward", "leftwards", "lefthand")},
    **{w: frozenset({"right"}) for w in ("rightmost", "rightward", "rightwards", "righthand")},
    **{w: frozenset({"left", "right"}) for w in ("bilateral", "bilaterally")},
}
_GENERIC = {"structure", "organ", "object", "finding", "region", "area", "abnormality", "item", "instance", "thing"}
_UNSAID = {  # words that carry no finding: agreement on them, or their negation, means nothing
    *_NEGATORS, *_PERCEIVED, *_ABSENT, *_AUXILIARY, *_TURNS, *_PLACES, *_DETERMINERS, *_VERBS, *_GENERIC, ",",
    *("and", "or", "of", "to", "for", "from", "by", "with", "as", "any", "some", "all", "other", "another", "both"),
    *("here", "also", "only", "just", "i", "we", "you", "one", "ones", "each", "every", "very", "than", "then", "so"),
    *("evidence", "sign", "absence", "free", "negative", "image", "picture", "scan", "slice", "view", "photo", "box"),
    *("side", "half", "part", "portion", "located", "location", "positioned", "situated", "side", "sided", "hand"),
    *("what", "where", "find", "see", "finds", "sees", "look", "looking", "answer", "yes", "if", "who", "when"),
    *("rather", "instead", "patient", "patients", "given", "marked", "indicated", "question", "single", "out"),
}  # fmt: skip


DESCRIBING = (  # adjectives that two structures of one image may well exchange without changing sides
    *("small", "large", "big", "little", "tiny", "huge", "medium", "bright", "dark", "light", "dim", "round", "oval"),
)


@dataclass(frozen=True, slots=True)
class _Clause:
    words: tuple[str, ...]  # without commas
    negated: tuple[bool, ...]
    sentence: int


def _says(word: str) -> bool:
    return word not in _UNSAID and _singular(word) not in _UNSAID


def _split(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Clauses of a sentence. A comma or an "and" parts two clauses only where a new subject with its verb follows,
    so that "no mass, nodule or effusion is seen" stays whole and "no mass, the liver is large" does not."""
    start, after_head = 0, words[0] in {"yes", "no"} and len(words) > 1 and words[1] == ","
    for at, word in enumerate(words):
        rest = words[at + 1 :]
        if after_head and at == 1:
            yield words[:1]
            start = 2
        elif not _turns(word, rest) or all(w == "," for w in words[start:at]):
            continue
        else:
            yield words[start:at]
            start = at + 1
    if any(w != "," for w in words[start:]):
        yield words[start:]


def _turns(word: str, rest: tuple[str, ...]) -> bool:
    """A clause ends at this word: "but", or "," or "and" before "the liver is large ..."."""
    if word not in {",", "and"} or not rest or rest[0] not in _DETERMINERS | _PLACES:
        return word in _TURNS
    stop = rest.index(",") if "," in rest else len(rest)
    return any(w in _VERBS for w in rest[:stop])


@lru_cache(maxsize=65536)
def _clauses(text: str) -> tuple[_Clause, ...]:
    found = []
    for number, sentence in enumerate(_sentences(text)):
        for part in _split(sentence):
            words = tuple(w for w in part if w != ",")
            found.append(_Clause(words, _negated(words), number))
    return tuple(found)


def _negated(words: tuple[str, ...]) -> tuple[bool, ...]:
    """Which words of a clause are denied."""
    denied = [False] * len(words)
    for at, word in enumerate(words):
        pair = words[at : at + 2]
        if word == "non" and at + 1 < len(words):
            denied[at + 1] = True
        elif word in _ABSENT or (words[at:] == ("none",)):
            _deny_before(words, denied, at) if any(_says(w) for w in words[:at]) else _deny_after(words, denied, at + 1)
        elif pair in _NEGATOR_PAIRS:
            _deny_after(words, denied, at + 2)
        elif pair in (("ruled", "out"), ("is", "excluded"), ("are", "excluded")):
            _deny_before(words, denied, at)
        elif word in _NEGATORS and pair not in _NOT_NEGATORS:
            ahead = next((w for w in words[at + 1 :] if w not in _AUXILIARY), "")
            mute = not any(_says(w) for w in words[at + 1 :])  # "the mass: no", "the mass is not at [box]"
            if (mute or (ahead in _PERCEIVED and word != "no")) and any(_says(w) for w in words[:at]):
                _deny_before(words, denied, at)  # "the mass is not seen in the liver" denies the mass, not the liver
            else:
                _deny_after(words, denied, at + 1)
    return tuple(denied)


def _deny_after(words: tuple[str, ...], denied: list[bool], start: int) -> None:
    said = False
    for at in range(start, len(words)):
        if said and words[at] in _PLACES:
            return  # "no mass in the liver" leaves the liver standing; "it is not in the liver" does not
        denied[at] = True
        said = said or _says(words[at]) or words[at] == "one"  # "no one is in the room"


def _deny_before(words: tuple[str, ...], denied: list[bool], stop: int) -> None:
    place, said = False, False
    for at in range(stop):
        if words[at] in _PLACES:
            place, said = True, False
        elif place and said and words[at] in _DETERMINERS:
            place = False
        said = said or (place and _says(words[at]))
        denied[at] = denied[at] or not place


def denied(text: str) -> frozenset[str]:
    """The content words a text denies, singular."""
    return frozenset(w for w, said in _polarity(text).items() if True in said)


def verdict(text: str) -> str:
    """The word "yes" or "no" where a text opens with it as an answer ("No, ...", "The answer is no."), else empty."""
    for clause in _clauses(text)[:1]:
        words = clause.words
        for opening in (("the", "answer", "is"), ("answer", "is"), ("the", "answer"), ("answer",)):
            words = words[len(opening) :] if words[: len(opening)] == opening else words
        if words in (("yes",), ("no",)):
            return words[0]
    return ""


def carries_meaning(word: str) -> bool:
    """A normalised word that an answer can be right or wrong by; not "the", "is", "seen", "image"."""
    return _says(word) or word in _NEGATORS or word in _NUMBERS or word in {"yes", "both"}


# ---- sides and counts -----------------------------------------------------------------------------------------------

_NUMBERS = {
    **{"single": 1, "solitary": 1, "one": 1, "two": 2, "pair": 2, "couple": 2, "three": 3, "four": 4, "five": 5},
    **{"six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12},
}
_UNITS = {
    *("mm", "cm", "m", "ml", "cc", "kg", "g", "mg", "hu", "tesla", "t", "weeks", "week", "days", "day", "years"),
    *("year", "months", "month", "hours", "percent", "pixels", "px", "degrees", "oclock", "x", "by", "and", "hz"),
}
_RANKED = {"grade", "stage", "level", "type", "zone", "segment", "series", "figure", "phase", "t", "l", "c", "s", "v"}
_POINTING = {"the", "this", "that", "other", "another", "each", "every", "no", "any", "left", "right", "t", "which"}


@lru_cache(maxsize=65536)
def sides(text: str) -> frozenset[str]:
    """The sides a text states without denying them: of "left" and "right"; bilateral, or "both lungs", is both."""
    return frozenset().union(*(_clause_sides(c.words, c.negated) for c in _clauses(text)))


def _clause_sides(words: Sequence[str], negated: Sequence[bool]) -> frozenset[str]:
    stated: set[str] = set()
    for at, (word, denied) in enumerate(zip(words, negated, strict=True)):
        if denied:
            continue
        after = words[at + 1] if at + 1 < len(words) else ""
        if word in _SIDE_WORDS:
            stated |= _SIDE_WORDS[word]
        elif word == "both" and (after == "sides" or (after.endswith("s") and _says(after))):
            stated |= {"left", "right"}
    return frozenset(stated)


@dataclass(frozen=True, slots=True)
class _Count:
    number: int
    head: str  # the counted noun, singular; "" where it is left out
    firm: bool  # said as a number, not as "both"


@lru_cache(maxsize=65536)
def _counts(text: str) -> tuple[_Count, ...]:
    found = []
    for clause in _clauses(text):
        words = clause.words
        for at, word in enumerate(words):
            before, after = words[at - 1] if at else "", words[at + 1] if at + 1 < len(words) else ""
            if word == "both":
                found.append(_Count(2, _head(words[at + 1 :]), False))
            elif clause.negated[at]:
                continue
            elif word in _NUMBERS:
                noun = _head(words[at + 1 :])
                pronoun = word == "one" and (
                    (not noun and len(words) > 1 and before != "is") or before in _POINTING | {"in", "on"}
                )
                if not pronoun:
                    found.append(_Count(_NUMBERS[word], noun, True))
            elif word.isdecimal() and len(word) <= 2 and after not in _UNITS and before not in _RANKED:
                found.append(_Count(int(word), _head(words[at + 1 :]), True))
    return tuple(found)


def _head(words: Sequence[str]) -> str:
    """The noun that words after a number lead to: "small bright structures on ..." -> structure."""
    head = ""
    for word in words[1:] if words[:1] in (("of",), ["of"]) else words:
        noun = _singular(word)
        if noun in _GENERIC:
            return noun
        if not _says(word) or word in _SIDE_WORDS or word in _NUMBERS:
            break
        head = noun
    return head


def numbers(text: str) -> frozenset[int]:
    """The counts a text states ("two structures", "a single lesion", "3"); measurements and "T2" are not counts."""
    return frozenset(c.number for c in _counts(text) if c.firm)


# ---- conflicts ------------------------------------------------------------------------------------------------------


def conflicts(answer: str, truth: str) -> tuple[str, ...]:
    """Where two texts contradict each other: a subset of ("laterality", "negation", "count"), in that order.

    Silence is no contradiction: a text that states no side conflicts with none. Symmetric in its arguments.
    """
    if normalise(answer) == normalise(truth):
        return ()
    found = (("laterality", _sides_clash), ("negation", _negation_clash), ("count", _counts_clash))
    return tuple(name for name, clash in found if clash(answer, truth))


def _sides_clash(a: str, b: str) -> bool:
    sides_a, sides_b = sides(a), sides(b)
    if sides_a and sides_b and sides_a != sides_b:
        return True
    bound_a, bound_b = _bound_sides(a), _bound_sides(b)  # "a kidney on the left, a liver on the right", swapped
    return any(not bound_a[w] & bound_b[w] for w in bound_a.keys() & bound_b.keys())


@lru_cache(maxsize=65536)
def _bound_sides(text: str) -> dict[str, frozenset[str]]:
    """Content word -> the sides stated in its clauses, finer where each part around an "and" states just one."""
    bound: dict[str, frozenset[str]] = {}
    for sentence in _sentences(text):
        for clause in _split(sentence):
            parts = list(_parts(clause))
            if any(len(_clause_sides(p, _negated(p))) != 1 for p in parts):
                parts = [tuple(w for w in clause if w != ",")]
            for part in parts:
                stated = _clause_sides(part, _negated(part))
                for word in part:
                    if stated and _says(word) and not (word in _SIDE_WORDS or word in _NUMBERS or word in DESCRIBING):
                        bound[_singular(word)] = bound.get(_singular(word), frozenset()) | stated
    return bound


def _parts(clause: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The pieces of a clause around its commas and "and"s; a piece that names nothing stays with its follower."""
    piece: list[str] = []
    for word in clause:
        if word in {",", "and"} and any(_says(w) and w not in _SIDE_WORDS for w in piece):
            yield tuple(piece)
            piece = []
        elif word != ",":
            piece.append(word)
    if piece:
        yield tuple(piece)


def _negation_clash(a: str, b: str) -> bool:
    said_a, said_b = _polarity(a), _polarity(b)
    if any(len(said_a[w]) == len(said_b[w]) == 1 and said_a[w] != said_b[w] for w in said_a.keys() & said_b.keys()):
        return True
    return bool(verdict(a) and verdict(b) and verdict(a) != verdict(b))


@lru_cache(maxsize=65536)
def _polarity(text: str) -> dict[str, frozenset[bool]]:
    """Content word -> whether it is denied, both values where it is and is not."""
    said: dict[str, frozenset[bool]] = {}
    for clause in _clauses(text):
        for word, denied in zip(clause.words, clause.negated, strict=True):
            if _says(word):
                said[_singular(word)] = said.get(_singular(word), frozenset()) | {denied}
    return said


def _counts_clash(a: str, b: str) -> bool:
    counts_a, counts_b = _counts(a), _counts(b)
    for head in {c.head for c in counts_a} & {c.head for c in counts_b} - {""}:
        if not {c.number for c in counts_a if c.head == head} & {c.number for c in counts_b if c.head == head}:
            return True
    all_a, all_b = ([c.number for c in found if c.firm or not c.head] for found in (counts_a, counts_b))
    if not all_a or not all_b or set(all_a) & set(all_b):
        return False
    return sum(all_a) not in all_b and sum(all_b) not in all_a  # "one kidney and one liver" are two structures


# ---- facts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The words a data set describes its structures with. Names may nest ("lung", "left lung"): the longest wins."""

    names: tuple[str, ...]
    sizes: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()
    brightness: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {k: list(getattr(self, k)) for k in ("names", "sizes", "sides", "brightness")}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(**{k: tuple(value.get(k, ())) for k in ("names", "sizes", "sides", "brightness")})


@dataclass(frozen=True, slots=True)
class _Mark:
    """A name or an attribute found in a sentence; `start` and `end` count its words."""

    start: int
    end: int
    kind: str  # name, size, side, brightness
    value: str


def read_facts(text: str, lexicon: Lexicon) -> tuple[Fact, ...]:
    """What a text states of the lexicon's names, in order of mention; negated mentions state nothing.

    A clause with one name gives it all attributes of the clause. Where names share a clause, attributes that run up to
    a name are its own ("a small bright kidney and a dark liver"), a side before the first name holds for all that state
    no other ("on the left a kidney and a liver"), what follows "are" holds for all, and other words go to the name
    before them. "It is ..." goes on about the name before. Two mentions are two facts where their attributes differ.
    """
    count = next((c.number for c in _counts(text) if c.head in _GENERIC), None)
    facts: list[Fact] = []
    for words, negated in _whole_sentences(text):
        marks = _marks(words, negated, lexicon)
        if any(m.kind == "name" for m in marks):
            for fact, again in _read_sentence(words, marks):
                _add(facts, fact, again)
        elif facts and words[0] in {"it", "they", "this"}:
            for mark in marks:
                facts[-1] = _with(facts[-1], mark)
    return tuple(dict.fromkeys(replace(f, count=count) for f in facts))


def _whole_sentences(text: str) -> Iterator[tuple[tuple[str, ...], tuple[bool, ...]]]:
    """Clauses joined again into sentences, now with their negation known and a "," between clauses."""
    joined: dict[int, tuple[list[str], list[bool]]] = {}
    for clause in _clauses(text):
        words, negated = joined.setdefault(clause.sentence, ([], []))
        if words:
            words.append(",")
            negated.append(False)
        words += clause.words
        negated += clause.negated
    for words, negated in joined.values():
        yield tuple(words), tuple(negated)


def _marks(words: tuple[str, ...], negated: tuple[bool, ...], lexicon: Lexicon) -> list[_Mark]:
    names = list(_spans(words, lexicon.names))
    taken = {i for start, end, _ in names for i in range(start, end)}  # the "left" of "left lung" is no attribute
    marks = [_Mark(start, end, "name", name) for start, end, name in names if not negated[end - 1]]
    for kind, values in (("size", lexicon.sizes), ("side", lexicon.sides), ("brightness", lexicon.brightness)):
        for start, end, value in _spans(words, values):
            if not taken & set(range(start, end)) and not negated[start]:
                marks.append(_Mark(start, end, kind, value))
    return sorted(marks, key=lambda m: m.start)


def _read_sentence(words: tuple[str, ...], marks: list[_Mark]) -> Iterator[tuple[Fact, bool]]:
    """(fact, whether the text speaks of it again: "the kidney" after "a kidney") for each name of one sentence."""
    names = [m for m in marks if m.kind == "name"]
    owned: dict[int, list[_Mark]] = {n.start: [] for n in names}
    loose: list[_Mark] = []
    following: _Mark | None = None
    for mark in reversed(marks):  # attributes that run up to a name, with nothing but "and" between, are its own
        if mark.kind == "name":
            following = mark
        elif following and set(words[mark.end : following.start]) <= _inside(words, marks, mark.end, following.start):
            owned[following.start].insert(0, mark)
        else:
            following = None
            loose.insert(0, mark)
    for mark in sorted(loose, key=lambda m: m.start < names[0].start):  # what opens the sentence fills what is left
        for name in _owners(words, names, mark):
            if all(m.kind != mark.kind for m in owned[name.start]):
                owned[name.start].append(mark)
    for name in names:
        fact = Fact(name.value)
        for mark in owned[name.start]:
            fact = _with(fact, mark)
        before = words[: min([m.start for m in owned[name.start] if m.end <= name.start] + [name.start])]
        yield fact, bool(before) and before[-1] in {"the", "this", "that", "its"}


def _inside(words: tuple[str, ...], marks: list[_Mark], start: int, end: int) -> set[str]:
    """Words that may stand between an attribute and the name it belongs to: other attributes, "and", "very"."""
    others = {w for m in marks if m.kind != "name" and start <= m.start < end for w in words[m.start : m.end]}
    return others | {"and", "very", "rather", "quite"}


def _owners(words: tuple[str, ...], names: list[_Mark], mark: _Mark) -> list[_Mark]:
    """The names that an attribute standing apart from them is said of."""
    before, after = [n for n in names if n.end <= mark.start], [n for n in names if n.start >= mark.end]
    if not before:
        return names if mark.kind == "side" else after[:1]
    if after:  # between two names: after a "," or "and" it opens the next part ("... and on the right a liver")
        gap = words[before[-1].end : mark.start]
        opened = {",", "and", "with"} & set(gap) and not set(words[mark.end : after[0].start]) & {",", "and"}
        if opened and mark.kind == "side":
            return after[:1]
    if {"are", "were"} & set(words[before[-1].end : mark.start]):
        return before
    return before[-1:]


def _with(fact: Fact, mark: _Mark) -> Fact:
    if getattr(fact, mark.kind) is not None:
        return fact
    return Fact(**{**fact.to_json(), mark.kind: mark.value})


def _add(facts: list[Fact], fact: Fact, again: bool) -> None:
    """Append, or merge with an earlier fact of the same name that it repeats or completes."""
    kinds = ("size", "side", "brightness")
    for at in reversed(range(len(facts))):
        old = facts[at]
        if old.name != fact.name:
            continue
        pairs = [(getattr(old, k), getattr(fact, k)) for k in kinds]
        bare = not any(a for a, _ in pairs) or not any(b for _, b in pairs)
        if (again or bare) and all(a is None or b is None or a == b for a, b in pairs):
            facts[at] = replace(old, **{k: a or b for k, (a, b) in zip(kinds, pairs, strict=True)})
            return
    facts.append(fact)


def closeness(answer: BoxedText, truth: BoxedText, facts: Sequence[Fact], lexicon: Lexicon) -> float:
    """How near an answer comes to its truth, 0..1, without a language tool: what a choice on validation may look at.

    Where the truth has boxes, the share of boxes met one to one at IoU 0.5; where it states facts, the F1 of their
    tuples; else 1 for equal normalised words.
    """
    if truth.boxes:
        return len(match_boxes(truth.boxes, answer.boxes, 0.5)) / max(len(truth.boxes), len(answer.boxes))
    if facts:
        wanted = {t for f in facts for t in f.tuples}
        said = {t for f in read_facts(answer.text, lexicon) for t in f.tuples}
        return 2 * len(wanted & said) / (len(wanted) + len(said))
    return float(normalise(answer.text) == normalise(truth.text))


def alike(a: BoxedText, b: BoxedText) -> float:
    """How much two answers say the same, 0..1, without a truth; symmetric, and 1 for an answer and itself.

    Where either has boxes, these alone count: the largest summed IoU of boxes paired one to one, over the number of
    boxes of the answer that has more, so that a spare box counts against it. Else the F1 of normalised words, each as
    often as it stands; their order is not looked at. Two answers without words are alike.
    """
    if a.boxes or b.boxes:
        overlap = iou_matrix(a.boxes, b.boxes)
        wide = overlap if len(a.boxes) <= len(b.boxes) else overlap.T
        # not `match_boxes`: it prefers many pairs that barely touch to one good pair
        met = sum(float(wide[pair]) for pair in _assign(wide))
        return met / max(len(a.boxes), len(b.boxes))
    said_a, said_b = (Counter(normalise(t.text).split()) for t in (a, b))
    total = said_a.total() + said_b.total()
    return 2 * (said_a & said_b).total() / total if total else 1.0
