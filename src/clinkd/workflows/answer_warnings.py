"""What is not known about an answer: no box where one was asked for, a name or a modality that the model never learned,
the other side. An answer without warnings may be wrong all the same."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from clinkd.data import questions
from clinkd.language.conflicts import DESCRIBING
from clinkd.language.negation import carries_finding, denies
from clinkd.language.sides import names_other_side
from clinkd.language.words import NUMBERS, normalise, singular
from clinkd.pipeline.damage import read_stage_lines
from clinkd.pipeline.prepared import DataSource
from clinkd.records import BoxedText, Modality

Kind = Literal["no_box", "unknown_name", "unseen_modality", "other_side", "training_image"]

_COMMAND = (
    r"(?:show|mark|locate|locali[sz]e|find|point|outline|highlight|circle|box|draw|indicate|segment|delineate)"
    r"(?! (?:me |us |out )?(?:that|whether|if|how|why|what|which)\b)"
)
_ASKS_FOR_A_BOX = re.compile(
    r"\bwheres\b|\bwhere (?:is|are|was|were|does|do|can|could|in|on|exactly)\b"
    r"|\b(?:in|at) (?:which|what) (?:place|location)\b|\b(?:locate|locali[sz]e|point out)\b"
    rf"|^(?:(?:please|can|could|would|will|you|now|and) )*{_COMMAND}\b"
)
_TEMPLATES = questions.WHERE + questions.WHAT + questions.DESCRIBE + questions.OVERALL
_QUESTION_WORDS = {  # beside the words without a finding
    *normalise(" ".join(_TEMPLATES)).split(),
    *("points", "localise", "localize", "mark", "outline", "highlight", "circle", "draw", "indicate", "segment"),
    *("tell", "call", "called", "me", "us", "my", "our", "your", "their", "his", "her", "why", "whose", "whom"),
    *("long", "far", "many", "much", "did", "shall", "must", "mean", "means", "think", "left", "right", "possible"),
    *("exactly", "now", "still", "most", "more", "less", "between", "into", "onto", "up", "down", "off", "whether"),
    *("mm", "cm"),
}  # fmt: skip
_NUMBER_OF_FRAME = re.compile(r"#\d+$")
_NEAREST = 2  # names that are named beside an unknown one
_SPELLED_ALIKE = 0.5  # of difflib's ratio


class AnswerWarning(NamedTuple):
    """One thing that is not known about an answer, by its kind and in words."""

    kind: Kind
    message: str


class TrainingKnowledge(NamedTuple):
    """What stood in the training data of a run: words in the singular, modalities, the class names it learned, and
    the files of its images, below `root`."""

    words: frozenset[str]
    modalities: frozenset[Modality]
    names: tuple[str, ...]
    images: frozenset[str] = frozenset()
    root: Path = Path()

    @classmethod
    def of_run(cls, prepared: Path, source: DataSource) -> Self:
        """Read the training samples that a `prepare` stage wrote; each text is parted into words once."""
        texts, modalities, images = set[str](), set[str](), set[str]()
        for record in read_stage_lines(prepared / "train.jsonl"):
            texts.update(_list_texts(record))
            modalities.add(record["modality"])
            images.update(_NUMBER_OF_FRAME.sub("", image["path"]) for image in record["images"])
        words = frozenset(singular(word) for text in texts for word in normalise(text).split())
        names = tuple(n for n in source.lexicon.names if words.issuperset(map(singular, normalise(n).split())))
        return cls(words, frozenset(map(Modality, modalities)), names, frozenset(images), source.root.resolve())

    def holds_image(self, file: Path) -> bool:
        """Whether the model learned from this file, or from frames of it. A copy elsewhere is not known."""
        path = file.resolve()
        return path.is_relative_to(self.root) and path.relative_to(self.root).as_posix() in self.images


def find_warnings(
    question: BoxedText, answer: BoxedText, modality: Modality, knowledge: TrainingKnowledge | None,
    file: Path | None = None,
) -> tuple[AnswerWarning, ...]:  # fmt: skip
    """The warnings of an answer. `modality`: as the image file states it, else OTHER; `file`: of the image; without
    `knowledge` of the training data nothing is said of names, modalities and files."""
    warnings = []
    if _asks_for_a_box(question) and not answer.boxes and not denies(answer.words):
        warnings.append(AnswerWarning("no_box", "no box given, though the question asks for a place"))
    if knowledge:
        warnings += [_warn_of_name(name, knowledge.names) for name in _find_unknown_names(question, knowledge.words)]
        # training data that leaves a modality open may hold this one
        if modality is not Modality.OTHER and not {modality, Modality.OTHER} & knowledge.modalities:
            warnings.append(_warn_of_modality(modality, knowledge.modalities))
        if file and knowledge.holds_image(file):
            message = "the model learned from this image, so its answer shows nothing about new ones"
            warnings.append(AnswerWarning("training_image", message))
    if names_other_side(question.words, answer.words):
        warnings.append(AnswerWarning("other_side", "the answer names the other side than the question"))
    return tuple(warnings)


def _asks_for_a_box(question: BoxedText) -> bool:
    return not question.boxes and bool(_ASKS_FOR_A_BOX.search(normalise(question.text)))


def _find_unknown_names(question: BoxedText, words: frozenset[str]) -> Iterator[str]:
    """Neighbouring words of a question that never stood in training, as one name each."""
    for unknown, group in groupby(normalise(question.text).split(), key=lambda word: _is_unknown(word, words)):
        if unknown:
            yield " ".join(group)


def _is_unknown(word: str, words: frozenset[str]) -> bool:
    if singular(word) in words or not carries_finding(word) or any(map(str.isdigit, word)):
        return False
    return word not in _QUESTION_WORDS and word not in DESCRIBING and word not in NUMBERS


def _warn_of_name(name: str, learned: tuple[str, ...]) -> AnswerWarning:
    by_spelling = {learned_name.casefold(): learned_name for learned_name in learned}
    near = difflib.get_close_matches(name, by_spelling, _NEAREST, _SPELLED_ALIKE)
    nearest = f" (nearest: {', '.join(by_spelling[n] for n in near)})" if near else ""
    return AnswerWarning("unknown_name", f"not a name this model learned: {name}{nearest}")


def _warn_of_modality(modality: Modality, seen: frozenset[Modality]) -> AnswerWarning:
    trained = ", ".join(sorted(m.value for m in seen))
    return AnswerWarning("unseen_modality", f"never saw this modality: {modality.value} (trained on: {trained})")


def _list_texts(record: dict[str, Any]) -> Iterator[str]:
    """Questions, answers and names of a sample as it is stored."""
    for turn in record["turns"]:
        for text in (turn["question"], turn["answer"]):
            yield text if isinstance(text, str) else text["text"]
    yield from record.get("names", ())
    yield from (fact["name"] for fact in record.get("facts", ()))
