"""Reword a truth by small grammar rules that move and join its phrases but keep every content word."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from clinkd.records import BOX_MARK, Task

_PLACE = r"(?:on|in|at|near|within)\b[^,;]*"
_THING = r"(?:(?!\b(?:is|are|was|were|has|have|shows?|with|and|not|\w+ing)\b|[,;:]).)+?"
_FORMS: dict[str, tuple[str, ...]] = {
    rf"(?P<thing>(?:the|a|an)\s{_THING}) (?:is|are) (?:located |seen |found |visible )?(?P<place>{_PLACE})": (
        "You can find {thing} {place}", "{thing} can be seen {place}", "The image shows {thing} {place}",
    ),
    rf"(?P<thing>(?:a|an)\s{_THING}) (?P<place>{_PLACE})": (
        "There is {thing} {place}", "{place} there is {thing}", "{place}, {thing} is seen",
        "{thing} can be seen {place}",
    ),
    rf"(?P<place>{_PLACE}) there is (?P<thing>{_THING})": (
        "There is {thing} {place}", "{thing} is {place}", "{place} lies {thing}", "{place}, {thing} can be seen",
    ),
    rf"there is (?P<thing>{_THING}) (?P<place>{_PLACE})": (
        "{place} there is {thing}", "{thing} is seen {place}", "You can see {thing} {place}",
    ),
    r"here (?:is|are) (?P<thing>[^,;]+)": (
        "The image shows {thing}", "You can see {thing}", "This is {thing}", "Seen here: {thing}",
    ),
    r"(?:a|an|the|this) (?P<kind>[\w -]+? (?:image|scan|picture)) (?:with|shows) (?P<thing>[^,;]+)": (
        "The {kind} shows {thing}", "This {kind} contains {thing}", "The {kind} displays {thing}",
    ),
}  # fmt: skip
_RULES = [(re.compile(f"^{pattern}$", re.IGNORECASE), forms) for pattern, forms in _FORMS.items()]
_LEAD_INS = ("In this image, {}", "Here, {}", "As can be seen, {}", "What is shown here: {}")
_POINTS_BACK = re.compile(r"(?:it|its|they|their|this|these|those|that|both|the other|another|here|there|one)\b", re.I)
_ARTICLE = re.compile(r"(?:the|a|an|no|both|this|these|one|two|three|its)\b|\d", re.I)


def rephrasings(text: str, task: Task, rng: random.Random) -> list[str]:
    """Different wordings of a truth, in random order; box marks stay in their order. May be empty.

    A short answer stays short ("kidney" -> "It is the kidney."). Each sentence of a known form is reworded by a rule;
    the sentences after the first are shuffled if none refers to another. Wordings with a lead-in come last.
    """
    text = text.strip()
    if not text:
        return []
    short = not text.endswith((".", "!", "?")) or len(text.split()) == 1
    if short and len(text.split()) <= 5 and BOX_MARK not in text:
        wordings = list(_short_forms(text.rstrip("."), task))
        rng.shuffle(wordings)
    else:
        wordings = [_reword_text(text, rng) for _ in range(4)]
        lead_ins = [form.format(_lower_first(text)) for form in _LEAD_INS]
        rng.shuffle(lead_ins)
        wordings += lead_ins
    return [f for f in dict.fromkeys(wordings) if f != text]


def _short_forms(name: str, task: Task) -> Iterator[str]:
    if task is Task.QA:
        yield f"The answer is {_lower_first(name)}."
        yield f"{_upper_first(name)}."
        yield f"Answer: {_lower_first(name)}."
        return
    plain = " ".join(_lower_first(w) for w in name.split())
    the = plain if _ARTICLE.match(plain) else f"the {plain}"
    several = plain.endswith("s") and not plain.endswith(("ss", "us", "is", "as"))
    yield f"{_upper_first(the)}."
    yield f"{'These are' if several else 'It is'} {the}."
    yield f"This shows {the}."


def _reword_text(text: str, rng: random.Random) -> str:
    sentences = [s for s in re.split(r"(?<=[.!?])\s+", text) if s]
    if len(sentences) > 2 and BOX_MARK not in text and not any(_POINTS_BACK.match(s) for s in sentences[1:]):
        rest = sentences[1:]
        rng.shuffle(rest)
        sentences = [sentences[0], *rest]
    return " ".join(_reword_sentence(s, rng) for s in sentences)


def _reword_sentence(sentence: str, rng: random.Random) -> str:
    body = sentence.rstrip(".")
    for pattern, forms in _RULES:
        if match := pattern.match(body):
            parts = {k: _lower_first(v.strip()) for k, v in match.groupdict().items()}
            usable = [f for f in forms if not (body.count(BOX_MARK) > 1 and f.startswith("{place}"))]
            return _upper_first(rng.choice(usable).format(**parts)) + "."
    return sentence


def _lower_first(text: str) -> str:
    """Lower the first letter of an ordinary word; "CT", "T2" and "X-ray" stay."""
    first = re.match(r"\w+(?:-\w+)?", text)
    ordinary = first and (first[0] == "A" or (len(first[0]) > 1 and first[0][1:].islower() and "-" not in first[0]))
    return text[0].lower() + text[1:] if ordinary else text


def _upper_first(text: str) -> str:
    return text[0].upper() + text[1:]
