"""What is not there: questions about absent structures, and structures that a caption makes up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter

from clinkd.language.facts import Lexicon
from clinkd.language.languages import find_language, list_languages, read_verdict
from clinkd.language.negation import affirmed_names, denies, mentioned_names
from clinkd.language.verdicts import read_yes_no
from clinkd.language.words import normalise
from clinkd.records import Candidate, Sample, Task
from clinkd.scoring.captions import Counts
from clinkd.scoring.final_answer import find_final_answer
from clinkd.scoring.measure import (
    NOTHING_SAID,
    Measure,
    Metric,
    Ratio,
    Rules,
    SampleAnswer,
    make_f1,
    make_ratio,
    stack_counts,
)

# ---- questions about what is there or not ---------------------------------------------------------------------------

_EMPTY_LIST = re.compile(r"""(?:```(?:json)?)?\s*(?:\{\s*["'][\w ]+["']\s*:\s*)?\[\s*\]\s*\}?\s*(?:```)?\s*""")
_UNDECIDED = re.compile(
    r"\b(?:can\s?not|can['’]t|could\s+not|unable\s+to|not\s+able\s+to|(?:not|im)\s?possible\s+to)\s+(?:\w+\s+){0,2}"
    r"(?:determine|tell|say|assess|confirm|know|decide|conclude|judge|evaluate|exclude|rule\s+out|be\s+"
    r"(?:determined|assessed|confirmed|excluded|evaluated|judged|ruled\s+out))\b"
    r"|\b(?:not\s+(?:sure|certain|clear\s+(?:if|whether))|unclear|uncertain|unsure|no\s+idea)\b|\b(?:don['’]t|do\s+not)\s+know\b",
    re.I,
)

_UNSEEN = re.compile(
    r"\b(?:(?:am|is|was|are|were|['’]m)\s+)?(?:unable|not\s+able|fail(?:s|ed)?)\s+to\s+"
    r"(?:find|see|locate|identify|detect|visuali[sz]e|discern|spot)\b"
    r"(?!\s+(?:the|an|any|your|this)\s+(?:image|picture|file|scan)s?\b)",
    re.I,
)


def states_absence(answer: Candidate, names: Iterable[str]) -> bool:
    """Whether an answer to "where is it?" says that it is not there: it draws nothing, and it denies without affirming
    one of the names. An empty JSON list denies, too. Silence, a refusal and "cannot be determined" say nothing."""
    text = answer.answer.words
    if answer.answer.boxes or answer.unread or not text:
        return False
    if _EMPTY_LIST.fullmatch(text):
        return True
    if _UNDECIDED.search(text) or find_final_answer(text).refused:
        return False
    language = find_language(text)
    if language and language is not list_languages()[0]:  # which deny by sentences, not by words
        return denies(text) or bool(language.phrases and language.phrases.denying.search(text.lower()))
    text = _UNSEEN.sub(" cannot find", text)
    return denies(text) and not affirmed_names(text, names)


_ABSENCE_COLUMNS = ("answers", "present", "absent", "said yes", "yes to present", "no to absent")


def _count_absence(items: Sequence[SampleAnswer], rules: Rules) -> Counts:
    """Nothing is judged of a task that asks about nothing absent: all its right answers are yes."""
    truths = [_is_present(item.sample) for item in items]
    tasks = {item.sample.task for item, present in zip(items, truths, strict=True) if present is False}
    rows: list[Mapping[str, float]] = []
    for item, present in zip(items, truths, strict=True):
        if present is None or item.sample.task not in tasks:
            rows.append({})
            continue
        said = _says_present(item)
        rows.append(
            {
                "answers": 1,
                "present": present,
                "absent": not present,
                "said yes": said is True,
                "yes to present": present and said is True,
                "no to absent": not present and said is False,
            }
        )
    return stack_counts(_ABSENCE_COLUMNS, rows)


def _is_present(sample: Sample) -> bool | None:
    """Whether the right answer is yes; None for a question of another kind."""
    if sample.task is Task.VG:
        return bool(sample.answer.boxes)
    verdict = read_verdict(normalise(sample.answer.words))
    return verdict == "yes" if verdict else None


def _says_present(item: SampleAnswer) -> bool | None:
    """A box is a yes. None where the answer says neither."""
    if item.sample.task is Task.VG:
        if item.answer.answer.boxes or item.answer.unread:
            return True
        return False if states_absence(item.answer, item.sample.names) else None
    verdict = read_yes_no(item.answer.answer.words, item.sample.question.words, item.sample.answer.words)
    return verdict == "yes" if verdict else None


def _of_both_kinds(figure: Ratio) -> Ratio:
    """A figure that says something only where present and absent structures are asked about."""
    return replace(figure, applies=lambda s: (s["present"] > 0) & (s["absent"] > 0))


# As POPE (Li et al. 2023, "Evaluating object hallucination in large vision-language models"), in which yes is the
# positive answer. An answer that says neither is wrong, and no yes.
ABSENCE = Measure(
    (Task.VG, Task.QA),
    _ABSENCE_COLUMNS,
    _count_absence,
    (
        Metric("POPE accuracy", Ratio(lambda s: s["yes to present"] + s["no to absent"], itemgetter("answers"))),
        Metric("POPE precision", _of_both_kinds(make_ratio("yes to present", "said yes")), missing=NOTHING_SAID),
        Metric("POPE recall", make_ratio("yes to present", "present")),
        Metric(
            "POPE F1",
            _of_both_kinds(make_f1("yes to present", "present", "said yes")),
        ),
        Metric("Yes ratio", _of_both_kinds(make_ratio("said yes", "answers")), better="lower"),
        Metric("Absence accuracy", make_ratio("no to absent", "absent")),
    ),
)


# ---- structures that a caption makes up -----------------------------------------------------------------------------

_CHAIR_COLUMNS = ("answers", "structures", "not in the image", "captions with one")
Structures = Mapping[str, frozenset[str]]  # by the path of an image, those that its truths name


def find_structures(samples: Sequence[Sample], lexicon: Lexicon) -> Structures:
    """The structures that the truths of each image name: names and facts of its samples, the names that its true
    answers affirm, and those that a question names which has a box, or yes, as its answer. Only for images with a
    caption."""
    paths = {image.path for s in samples if s.task in HALLUCINATION.tasks for image in s.images}
    held: dict[str, set[str]] = {}
    for sample in samples:
        images = [image.path for image in sample.images if image.path in paths]
        names = _list_structures(sample, lexicon) if images else ()
        for path in images if names else ():
            held.setdefault(path, set()).update(names)
    return {path: frozenset(names) for path, names in held.items()}


def _list_structures(sample: Sample, lexicon: Lexicon) -> set[str]:
    names = {fact.name for fact in sample.facts} | set(affirmed_names(sample.answer.words, lexicon.names))
    present = _is_present(sample) if sample.task in ABSENCE.tasks else None
    if present:
        names |= {*mentioned_names(sample.question.words, lexicon.names)}
    if present or (present is None and sample.task is not Task.QA):
        names |= {*sample.names}
    return names


def _count_made_up(items: Sequence[SampleAnswer], rules: Rules) -> Counts:
    """Captions of images whose truths name no structure are not judged."""
    rows: list[Mapping[str, float]] = []
    for item in items:
        held = set().union(*(rules.structures.get(image.path, ()) for image in item.sample.images))
        affirmed = affirmed_names(item.answer.answer.words, rules.lexicon.names) if held else ()
        made_up = sum(not _holds(held, name) for name in affirmed)
        row = {"answers": 1, "structures": len(affirmed), "not in the image": made_up, "captions with one": made_up > 0}
        rows.append(row if held else {})
    return stack_counts(_CHAIR_COLUMNS, rows)


def _holds(held: Iterable[str], name: str) -> bool:
    """Whether a name is that of a held structure, with more or fewer words: "lung" is "left lung" said with less, and
    a lung whose side no truth tells may be the left one."""
    words = set(normalise(name).split())
    return any(words <= other or other <= words for other in (set(normalise(h).split()) for h in held))


# CHAIR (Rohrbach et al. 2018, "Object hallucination in image captioning"); a structure counts once a caption.
HALLUCINATION = Measure(
    (Task.RC, Task.MIA),
    _CHAIR_COLUMNS,
    _count_made_up,
    (
        Metric("CHAIR-s", make_ratio("captions with one", "answers"), better="lower"),
        Metric("CHAIR-i", make_ratio("not in the image", "structures"), better="lower", missing=NOTHING_SAID),
    ),
)
