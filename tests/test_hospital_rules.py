"""Rules: which questions are asked of which images, and what is wrong with a file of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from clinkd.cli import main
from clinkd.hospital.rules import EXAMPLE, ask_by_rules, read_rules
from clinkd.hospital.worklist import ArrivedImage, RuledQuestion
from clinkd.records import BadInput


def read(folder: Path, text: str) -> dict:
    (folder / "rules.yaml").write_text(text)
    return read_rules(folder / "rules.yaml")


def image(modality: str, body_part: str = "", frames: int = 1) -> ArrivedImage:
    return ArrivedImage("1.2", "1.3", "1.4", modality, body_part, frames)


def test_the_example_asks_by_modality_and_body_part(tmp_path):
    rules = read(tmp_path, EXAMPLE)
    assert list(rules) == ["chest-ct", "x-ray", "ultrasound"]
    assert ask_by_rules(rules, image("CT", "chest")) == [RuledQuestion("chest-ct", "Where is the heart?", 1)]
    assert ask_by_rules(rules, image("DX")) == [RuledQuestion("x-ray", "What does this image show?", 1)]
    assert ask_by_rules(rules, image("CT")) == ask_by_rules(rules, image("CT", "HEAD")) == []
    assert [q.frame for q in ask_by_rules(rules, image("US", frames=9))] == [5]


def test_the_command_and_the_docs_show_rules_that_are_read(tmp_path, capsys):
    assert main(["pacs", "listen", "--example-rules"]) == 0
    assert capsys.readouterr().out == EXAMPLE
    docs = (Path(__file__).parents[1] / "docs" / "PACS.md").read_text()
    [shown] = [block for block in re.findall(r"^```yaml\n(.*?)^```", docs, re.M | re.S) if "questions:" in block]
    assert shown == EXAMPLE
    assert main(["pacs", "listen"]) == 2 and "--example-rules" in capsys.readouterr().err


def test_every_rule_that_fits_asks_and_no_question_twice(tmp_path):
    rules = read(
        tmp_path,
        "any: {questions: ['a?', 'b?'], frames: all}\nct: {modality: ct, questions: ['b?', 'c?'], frames: first}\n",
    )
    asked = [(q.rule, q.question, q.frame) for q in ask_by_rules(rules, image("CT", frames=2))]
    assert asked == [("any", "a?", 1), ("any", "b?", 1), ("any", "a?", 2), ("any", "b?", 2), ("ct", "c?", 1)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "1 to 200 rules are wanted"),
        ("- a", "1 to 200 rules are wanted"),
        ("a: {modality: CT}", "a: its questions are missing"),
        ("a: {modalty: CT, questions: ['b?']}", "a: modalty: no such knob; did you mean modality?"),
        ("a: {modality: MRI, questions: ['b?']}", "MRI is no modality of DICOM images; did you mean MR?"),
        ("a: {questions: []}", "a text or a list of texts is wanted"),
        ("a: {questions: [1]}", "a text or a list of texts is wanted"),
        ("a: {questions: ['is [box] a liver?']}", "cannot be asked"),
        ("a: {questions: ['<image> what?']}", "cannot be asked"),
        ("a: {questions: ['b?'], frames: last}", "a: frames"),
        ("a/b: {questions: ['b?']}", "is no name of a rule"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, why):
    with pytest.raises(BadInput) as error:
        read(tmp_path, text)
    assert why in str(error.value) and str(error.value).startswith(f"--rules {tmp_path / 'rules.yaml'}: ")


def test_a_missing_file_names_the_way_to_one(tmp_path):
    with pytest.raises(BadInput, match="--example-rules"):
        read_rules(tmp_path / "none.yaml")
