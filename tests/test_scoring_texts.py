"""CIDEr, chrF and mBMR of single answers: against pycocoevalcap and sacrebleu, and what a mean over answers is for."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.cider.cider_scorer import CiderScorer

from clinkd.config import EvaluateConfig
from clinkd.language.facts import Lexicon
from clinkd.records import BoxedText, Candidate, ImageRef, Modality, Prediction, Sample, Task, Turn
from clinkd.scoring import captions
from clinkd.scoring.captions import COLUMNS, Caption, CaptionScorer, NotComputed, by_column, compute_answer_mbmr
from clinkd.scoring.measure import SAME_TRUTHS
from clinkd.scoring.measures.texts import CHRF
from clinkd.scoring.ngrams import compute_cider, count_characters
from clinkd.scoring.official import ReleasedAnswer
from clinkd.scoring.official import evaluate as evaluate_by_scripts
from clinkd.scoring.score import score_predictions

PAIRS = [  # answer, truth, BLEU-1 to -4 added up, and chrF, by sacrebleu 2.6.0
    ("a small cyst on the left side", "a large cyst on the left side of the liver", 192.593624775, 53.410864734),
    ("the liver", "the liver", 400, 100),
    ("the spleen", "the liver", 200, 17.480926519),
    ("no lesion is seen", "there is no visible lesion only a vessel", 57.528159076, 20.302554269),
    ("", "an empty answer", 0, 0),
    ("cyst", "a cyst of the kidney", 7.326255555, 20.089653581),
    ("dark dark dark", "a dark spot in a dark field", 46.611255402, 20.112763749),
    ("ü naïve über", "Ü naïve über", 234.465935215, 85.906084656),
]
CORPUS_CHRF = 34.714922954


def count_bleu(pairs: list[Caption]) -> captions.Sums:
    """The counts of BLEU alone: METEOR and ROUGE-L are 0."""
    rows = np.zeros((len(pairs), len(COLUMNS)))
    counts = np.array([captions._count_bleu_and_rouge(c) for c in pairs])
    rows[:, : counts.shape[1]] = counts
    return {**by_column(COLUMNS, rows), "rouge": np.zeros(len(pairs))}


def chrf(*pairs: tuple[str, str]) -> float:
    return 100 * float(CHRF.figure("chrF", np.append(len(pairs), count_characters(pairs).sum(0)).astype(float)))


def draw_texts(count: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(["a", "ab", "abc", "cyst", "lung"], k=rng.randint(0, 7))) for _ in range(count)]


def test_bleu_of_one_answer_is_that_of_sacrebleu() -> None:
    found = 600 * compute_answer_mbmr(count_bleu([Caption(a, (t,)) for a, t, *_ in PAIRS]))
    assert found == pytest.approx([bleu for *_, bleu, _ in PAIRS], abs=1e-8)


def test_chrf_is_that_of_sacrebleu() -> None:
    assert [chrf((a, t)) for a, t, *_ in PAIRS] == pytest.approx([score for *_, score in PAIRS], abs=1e-8)
    assert chrf(*((a, t) for a, t, *_ in PAIRS)) == pytest.approx(CORPUS_CHRF, abs=1e-8)


def test_drawn_texts_score_as_in_sacrebleu() -> None:
    metrics = pytest.importorskip("sacrebleu.metrics", reason="sacrebleu is not installed")
    texts = draw_texts(200)
    pairs = list(zip(texts[:100], texts[100:], strict=True))
    bleu = [metrics.BLEU(tokenize="none", max_ngram_order=n, effective_order=True) for n in (1, 2, 3, 4)]
    expected = [sum(b.sentence_score(a, [t]).score for b in bleu) for a, t in pairs]
    assert 600 * compute_answer_mbmr(count_bleu([Caption(a, (t,)) for a, t in pairs])) == pytest.approx(expected)
    assert [chrf(p) for p in pairs] == pytest.approx([metrics.CHRF().sentence_score(a, [t]).score for a, t in pairs])


def test_characters_are_counted_as_one_pair_at_a_time_in_any_script() -> None:
    """By plain strings; among other pairs, and with letters of every size and without a partner."""
    dice = random.Random(3)
    texts = ["", "a", "ab", *("".join(dice.choices("ab \u4e2d\U0001f600\ud800\n", k=9)) for _ in range(60))]
    pairs = [(dice.choice(texts), dice.choice(texts)) for _ in range(120)]
    for pair, counts in zip(pairs, count_characters(pairs).tolist(), strict=True):
        expected = []
        for n in range(1, 7):
            plain = ("".join(text.split()) for text in pair)
            ours, theirs = (Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in plain)
            expected += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
        assert counts == expected
    assert count_characters([]).shape == (0, 18)


def test_cider_is_the_same_in_every_process() -> None:
    """To the last digit, whatever the order of a set of strings is there."""
    code = (
        "from clinkd.scoring.ngrams import compute_cider as c; t = 'abcdefghijklmnop'; p = [(' '.join(t[i:] + t[:i]), "
        "[' '.join(t[i // 2 :])]) for i in range(12)]; print(repr(c(p, [r for _, r in p])))"
    )
    told = [
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
        for seed in "12"
    ]
    assert told[0].stdout == told[1].stdout != b""


def test_cider_is_that_of_pycocoevalcap() -> None:
    texts = draw_texts(160)
    pairs = [(a, (t, other)) for a, t, other in zip(texts[:50], texts[50:100], texts[100:150], strict=True)]
    scorer = CiderScorer()
    for answer, references in pairs:
        scorer += (answer, list(references))
    assert compute_cider(pairs, [references for _, references in pairs]) == pytest.approx(
        scorer.compute_score()[1], rel=1e-12, abs=1e-12
    )


def test_the_weights_of_cider_are_those_of_the_truths_however_many_answers_there_are() -> None:
    truths = [("the liver is bright",), ("a dark cyst of the lung",), ("the left lung",)]
    pairs = [("the liver is dark", truths[0]), ("a cyst of the lung", truths[1]), ("the lung", truths[2])]
    alone = compute_cider(pairs, truths)
    assert alone is not None and min(alone) > 0
    assert compute_cider([*pairs[::-1], *pairs], truths) == alone[::-1] + alone


def caption(number: int, truth: str, task: Task = Task.MIA) -> Sample:
    turn = Turn(task, BoxedText("What is there?"), BoxedText(truth))
    return Sample(f"q{number}", (ImageRef(f"{number}.png", 8, 8),), Modality.CT, (turn,), group=f"{number}")


def says(sample: Sample, text: str) -> Prediction:
    return Prediction(sample.id, (Candidate(text, BoxedText(text)),))


@pytest.fixture
def scorer(scorer: CaptionScorer, monkeypatch: pytest.MonkeyPatch) -> CaptionScorer:
    """The one METEOR, without a start of the tokenizer: the texts here are plain words."""
    monkeypatch.setattr(captions, "_tokenize", lambda texts: [text.lower().strip(".") for text in texts])
    return scorer


class NoJava(CaptionScorer):
    """Words as they stand, and no METEOR."""

    def tokenized(self, captions):
        return list(captions)

    def counts(self, captions):
        raise NotComputed("no Java")


def strict(samples: list[Sample], answers: list[str], scorer: CaptionScorer) -> dict[tuple[Task, str], object]:
    """By task and metric the mean over modalities, or the reason why there is none."""
    config, rows = EvaluateConfig(replicates=0), [says(s, a) for s, a in zip(samples, answers, strict=True)]
    scores = score_predictions(samples, rows, {}, Lexicon(()), config, scorer).scores()
    return {
        (s.task, s.metric): s.why if s.value is None else s.value
        for s in scores
        if s.row == "model" and s.modality is None
    }


def test_one_truth_has_no_cider_and_other_tasks_do_not_help() -> None:
    liver, lung = "the liver is large and bright", "a small dark lung on the left"
    samples = [caption(0, liver), caption(1, liver), caption(2, lung, Task.RC), caption(3, liver, Task.RC)]
    found = strict(samples, [liver, liver, lung, liver], NoJava())
    assert found[Task.MIA, "CIDEr"] == SAME_TRUTHS
    assert found[Task.RC, "CIDEr"] == pytest.approx(1000)
    assert found[Task.MIA, "chrF"] == found[Task.RC, "chrF"] == 100


def test_the_scripts_print_no_cider_where_a_modality_has_one_truth(scorer: CaptionScorer) -> None:
    def rows(*truths: str) -> list[ReleasedAnswer]:
        names = ("ct_0.png", "ct_1.png", "mr_0.png")
        return [ReleasedAnswer(n, n, t, t) for n, t in zip(names, truths, strict=False)]

    both = evaluate_by_scripts(rows("a large liver here", "the left lung is dark"), Task.MIA, 0, scorer)
    assert both.parts()["CIDEr"] == pytest.approx(1000) and not both.not_computed
    some = evaluate_by_scripts(
        rows("a large liver here", "the left lung is dark", "the spleen is small"), Task.MIA, 0, scorer
    )
    assert "CIDEr" in some.parts("ct") and "CIDEr" not in some.parts("mr") and "CIDEr" not in some.parts()
    assert SAME_TRUTHS in some.not_computed["CIDEr"] and some.to_json()["not_computed"]


def test_one_wrong_word_in_thirty_captions_moves_the_mean_no_further_than_its_answer(scorer: CaptionScorer) -> None:
    truths = [f"there is a small dark cyst in the left lung of case {n}" for n in range(30)]
    samples = [caption(n, t) for n, t in enumerate(truths)]
    perfect = strict(samples, truths, scorer)
    assert perfect[Task.MIA, "mBMR"] == perfect[Task.MIA, "METEOR"] == 100
    found = strict(samples, [truths[0].replace("dark", "bright"), *truths[1:]], scorer)
    assert found[Task.MIA, "METEOR"] < 80  # of the corpus: no perfect caption counts as a chunk, and this one's do
    assert found[Task.MIA, "mBMR (corpus)"] < 97
    assert 98.5 < found[Task.MIA, "mBMR"] < 100


def test_a_perfect_answer_of_one_word_scores_100(scorer: CaptionScorer) -> None:
    found = strict([caption(0, "liver"), caption(1, "Left lung.")], ["liver", "left lung"], scorer)
    assert found[Task.MIA, "mBMR"] == pytest.approx(100)


def test_a_short_perfect_row_of_the_field_scores_100(shared: Path, scorer: CaptionScorer) -> None:
    from clinkd.workflows import answer as answering
    from clinkd.workflows import evaluate as evaluating

    for name, computed in (("cider_single", False), ("cider_two", True)):
        file = shared / "cases" / "evaluation" / "field" / f"{name}.jsonl"
        if not file.is_file():
            pytest.skip("the cases are not here")
        answers = answering.read_released(answering.ReleasedFiles({Task.MIA: file}))
        for outcome in evaluating.evaluate(answers, captions=scorer).outcomes:
            assert outcome.score() == pytest.approx(100)
            assert ("CIDEr" in outcome.parts()) is computed is ("CIDEr" not in outcome.not_computed)
