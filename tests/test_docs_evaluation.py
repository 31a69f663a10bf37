"""docs/EVALUATION.md: its flags are the program's, its row is scored, and its JSON has the form that is printed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from clinkd.cli import _parser, main
from clinkd.data.modality import read_modality
from clinkd.data.readers.conversations import TESTS
from clinkd.records import PAPER_MODALITIES
from clinkd.scoring.reading.box_families import FAMILIES

TEXT = (Path(__file__).parent.parent / "docs" / "EVALUATION.md").read_text()
ROW, PRINTED = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, re.S))


def test_every_flag_that_is_named_exists() -> None:
    verbs = next(a for a in _parser()._actions if isinstance(a.choices, dict))
    verbs.choices["evaluate"].complete()
    evaluate, _, several = TEXT.partition("## Several systems")
    for text, known in ((evaluate, ["evaluate"]), (several, ["compare", "evaluate"])):
        flags = {f for verb in known for action in verbs.choices[verb]._actions for f in action.option_strings}
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= flags


def test_the_row_is_scored_and_printed_as_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps(ROW))
    assert main(["evaluate", "--predictions", str(file), "--task", "VG", "--mode", "official", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == list(PRINTED) and told["score"] == 100
    assert told["by_modality"]["ct"].keys() == PRINTED["by_modality"]["ct"].keys()
    assert main(["evaluate", "--predictions", str(file), "--task", "VG", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out))[:2] == ["official", "strict"]


def test_what_is_listed_is_all_there_is() -> None:
    (prefixes,) = re.findall(r"first `_` is the modality: `([a-z ]+)`", TEXT)
    assert [read_modality(p) for p in prefixes.split()] == list(PAPER_MODALITIES)
    assert {f"Test_{name.upper()}.json" for name in TESTS} <= set(re.findall(r"`(Test_\w+\.json)`", TEXT))
    assert [name for name in FAMILIES if f"`{name}`" not in TEXT and f"`{name.partition('-')[0]}`" not in TEXT] == []


def test_the_outside_scorer_that_is_shown_scores_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    (scorer,) = re.findall(r'--scorer "(.*?)"', TEXT)
    (tmp_path / "word_f1.py").write_text(script)
    command = scorer.replace("python word_f1.py", f"{sys.executable} {tmp_path / 'word_f1.py'}")
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({**ROW, "annotation": "A small cyst.", "response": "a large cyst."}))
    words = ("--task", "QA", "--replicates", "0", "--scorer", command)
    assert main(["evaluate", "--predictions", str(file), *words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["scorers"]["word F1"]["QA"]["score"] == pytest.approx(200 / 3)
