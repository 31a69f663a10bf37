"""Whole sentences of the tasks: several ways to ask each question, one way to answer it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from clinkd.records import Box, BoxedText, Task, Turn

WHERE = (
    "Where is the {name} in the image?",
    "Can you locate the {name}?",
    "Please point out the {name}.",
    "In which place does the image show the {name}?",
)
WHAT = (
    "What is at [box]?",
    "Which structure do you see at [box]?",
    "Please name the structure at [box].",
    "What does the region [box] show?",
)
DESCRIBE = (
    "Can you describe the content within the [box]?",
    "Please describe the region [box].",
    "What can you say about [box]?",
    "How does [box] look?",
)
OVERALL = (
    "What can you interpret from the overall image?",
    "Please describe the whole image.",
    "What does this image show?",
    "Can you give a summary of the image?",
)


def where(name: str, boxes: Sequence[Box], dice: random.Random) -> Turn:
    """Visual grounding: every box of `name`, in the order given."""
    answer = f"The {name} is at {_listed(['[box]'] * len(boxes))}."
    return Turn(Task.VG, BoxedText(dice.choice(WHERE).format(name=name)), BoxedText(answer, tuple(boxes)))


def what(box: Box, name: str, dice: random.Random) -> Turn:
    """Referring object classification: the bare name, as Med-GRIT answers it."""
    return Turn(Task.ROC, BoxedText(dice.choice(WHAT), (box,)), BoxedText(name))


def describe(box: Box, sentence: str, dice: random.Random) -> Turn:
    """Referring captioning: one sentence about the box."""
    return Turn(Task.RC, BoxedText(dice.choice(DESCRIBE), (box,)), BoxedText(sentence))


def overall(text: str, dice: random.Random) -> Turn:
    """Medical image analysis: a few sentences about the whole image."""
    return Turn(Task.MIA, BoxedText(dice.choice(OVERALL)), BoxedText(text))


def _listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
