"""SPICE against the published example and the official scripts; and what is done where its program fails."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from clinkd.config import EvaluateConfig
from clinkd.language.facts import Lexicon
from clinkd.records import (
    BOX_MARK,
    Box,
    BoxedText,
    Candidate,
    ImageRef,
    Modality,
    Prediction,
    Sample,
    Score,
    Task,
    Turn,
)
from clinkd.reporting.tables import describe_scores
from clinkd.scoring import jars, official, spice
from clinkd.scoring.captions import COLUMNS, Caption, CaptionScorer, NotComputed
from clinkd.scoring.measures import texts
from clinkd.scoring.official import ReleasedAnswer, clean_released_answer
from clinkd.scoring.reading.released import read_lines
from clinkd.scoring.score import score_predictions

# ---- the real one ---------------------------------------------------------------------------------------------------

ODD = [
    Caption("", ("a large cyst on the left side of the liver",)),
    Caption("A small\r\u2028 cyst, on\x0bthe left side!", ("a large cyst on the left side of the liver",)),
    Caption("a small cyst on the left side", ("a large cyst on the left side of the liver",)),
    Caption("the right lung is bright", ("The right lung is bright.",)),
]
SLICE = 6  # of the published captions, each with five references
EVERY = 120  # of the official answers


def published(shared: Path) -> tuple[list[Caption], list[float]]:
    golden = shared / "data" / "golden"
    rows = [json.loads(line) for line in (golden / "coco_fakecap.jsonl").open()]
    scores = [json.loads(line) for line in (golden / "coco_fakecap_spice.jsonl").open()]
    assert [r["id"] for r in scores] == [r["id"] for r in rows]
    return [Caption(r["candidate"], tuple(r["references"])) for r in rows], [r["SPICE"] for r in scores]


def answered(shared: Path) -> list[ReleasedAnswer]:
    return read_lines(shared / "data" / "golden" / "official" / "mia.jsonl").rows


def official_scores(shared: Path) -> list[float]:
    lines = (shared / "data" / "golden" / "official" / "mia_spice_official.jsonl").open()
    return [json.loads(line)["SPICE"] for line in lines]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores known to nobody else."""
    return tmp_path_factory.mktemp("spice") / "scores.sqlite"


Count = Callable[[Sequence[Caption]], np.ndarray]


@contextlib.contextmanager
def real(cache: Path, store: Path) -> Iterator[Count]:
    """The SPICE that the user has installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLINKD_CACHE", str(cache))
        if reason := jars.find_problem():
            pytest.skip(f"SPICE: {reason}; `clinkd spice install` (make extras) fetches it")
        yield lambda captions: spice.spice_counts(captions, CaptionScorer(store))


@pytest.fixture
def installed(users_cache: Path, store: Path) -> Iterator[Count]:
    with real(users_cache, store) as count:
        yield count


@pytest.fixture(scope="module")
def sliced(users_cache: Path, store: Path, shared: Path) -> np.ndarray:
    """Some published captions, ODD, and some official answers, through one start of SPICE."""
    rows = answered(shared)[::EVERY]
    captions = [
        *published(shared)[0][:SLICE],
        *ODD,
        *(Caption(clean_released_answer(r.response), (r.annotation,)) for r in rows),
    ]
    with real(users_cache, store) as count:
        return count(captions)[:, 1]


def test_a_slice_of_the_published_example_and_of_the_official_answers(sliced: np.ndarray, shared: Path) -> None:
    assert sliced[:SLICE] == pytest.approx(published(shared)[1][:SLICE], abs=1e-9)
    assert sliced[SLICE + len(ODD) :] == pytest.approx(official_scores(shared)[::EVERY], abs=1e-9)


def test_odd_answers(sliced: np.ndarray) -> None:
    nothing, hostile, plain, perfect = sliced[SLICE : SLICE + len(ODD)]
    assert (nothing, perfect) == (0, 1) and 0 < plain < 1 and hostile == plain


def test_what_is_known_starts_spice_no_more(
    installed: Count, sliced: np.ndarray, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spice.Program, "run", None)
    assert installed(published(shared)[0][:SLICE])[:, 1] == pytest.approx(sliced[:SLICE], abs=0)


@pytest.mark.slow
def test_the_published_example_whole(installed: Count, shared: Path) -> None:
    captions, scores = published(shared)
    found = installed(captions)[:, 1]
    assert found == pytest.approx(scores, abs=1e-9) and found.mean() == pytest.approx(0.133, abs=5e-4)


@pytest.mark.slow
def test_official_answers_by_modality(installed: Count, shared: Path) -> None:
    rows = answered(shared)
    expected = json.loads((shared / "data/golden/official/expected.json").read_text())
    outcome = official.evaluate(rows, Task.RC, 0)
    by_modality = {m: (outcome.score(m) or 0) / 100 for m in outcome.totals}
    assert by_modality == pytest.approx(expected["rc_spice_by_modality"], abs=1e-8)
    assert outcome.score() == pytest.approx(100 * expected["rc_spice_mean_over_modalities"], abs=1e-6)
    each = installed([Caption(clean_released_answer(r.response), (r.annotation,)) for r in rows])[:, 1]
    assert each == pytest.approx(official_scores(shared), abs=1e-9)


@pytest.mark.slow
def test_a_sentence_without_memory_is_no_score(installed: Count, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spice, "free_memory_mb", lambda: 1100.0)
    long = Caption("the cyst is in the left lung and " * 40, ("a cyst in the lung",))
    with pytest.raises(spice.FailedPair, match=r"too little memory in a heap of 825 MB.*320, 5 words") as failed:
        installed([ODD[0], long])
    assert failed.value.place == 1


# ---- a program in its place -----------------------------------------------------------------------------------------

# As SPICE does: from asked.json to told.json. An answer's score is its number of words by ten; some words do harm.
PROGRAM = """#!{python}
import json, sys, time
asked, told = sys.argv[sys.argv.index("edu.anu.spice.SpiceScorer") + 1], sys.argv[sys.argv.index("-out") + 1]
rows = json.load(open(asked))
if "cannot-keep" in sys.argv:
    sys.exit(1)
open("{log}", "a").write(f"{{len(rows)}}\\n")
words = [w for r in rows for w in r["test"].split()]
if words.count("big") > 1 or "huge" in words:
    sys.exit(3)
if "slow" in words:
    time.sleep(30)
if "crash" in words:
    print("Error: broken\\n\\tat edu.anu.spice", file=sys.stderr)
    sys.exit(1)
scores = [{{"image_id": r["image_id"], "scores": {{"All": {{"f": len(r["test"].split()) / 10}}}}}} for r in rows]
open(told, "w").write("nonsense" if "nonsense" in words else json.dumps(scores[: -1 if "short" in words else None]))
"""


class Words(CaptionScorer):
    """Takes a text for its tokens."""

    def tokenized(self, captions: Sequence[Caption]) -> list[Caption]:
        return list(captions)


class Fake(NamedTuple):
    """A program in the place of SPICE: the file with the size of each batch that it was given, and that of scores."""

    log: Path
    kept: Path

    def counts(self, captions: Sequence[Caption]) -> np.ndarray:
        return spice.spice_counts(captions, Words(self.kept))

    @property
    def sizes(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split()]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    log, program = tmp_path / "log", tmp_path / "java"
    program.write_text(PROGRAM.format(python=sys.executable, log=log))
    program.chmod(0o755)
    monkeypatch.setattr(spice, "find_program", lambda: spice.Program(str(program), "x", 1000))
    return Fake(log, tmp_path / "scores.sqlite")


def pair(answer: str) -> Caption:
    return Caption(answer, ("truth",))


def test_each_answer_gets_its_own_score_and_equal_pairs_are_asked_once(fake: Fake) -> None:
    captions = [pair("a b c"), pair("a"), pair(""), pair("a b c"), Caption("a", ("another",))]
    assert fake.counts(captions).tolist() == [[1, 0.3], [1, 0.1], [1, 0], [1, 0.3], [1, 0.1]]
    assert fake.sizes == [4]
    assert fake.counts([*captions[::-1], pair("a b")])[:, 1].tolist() == [0.1, 0.3, 0, 0.1, 0.3, 0.2]
    assert fake.sizes == [4, 1]
    assert fake.counts([]).shape == (0, 2)


def test_pairs_that_fail_only_together_are_scored_apart(fake: Fake) -> None:
    assert fake.counts([pair(t) for t in ("big", "big a", "c", "d")])[:, 1].tolist() == [0.1, 0.2, 0.1, 0.1]
    assert fake.sizes[0] == 4 and len(fake.sizes) > 1


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("huge", r"found too little memory in a heap of 1000 MB"),
        ("slow", r"did not end within 1 s"),
        ("crash", r"ended with status 1 \(Error: broken\)"),
        ("nonsense", r"left no scores that can be read \(JSONDecodeError"),
        ("short", r"left no scores that can be read \(KeyError"),
    ],
)
def test_a_pair_that_fails_is_named_and_no_answer_is_scored(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, word: str, reason: str
) -> None:
    monkeypatch.setattr(spice, "START_SECONDS", 1.0 if word == "slow" else 60.0)
    monkeypatch.setattr(spice, "PATIENCE", 0.0)
    captions = [pair("a"), pair(f"b {word}"), pair("c d e"), pair("f g h i")]
    with pytest.raises(spice.FailedPair, match=rf"SPICE {reason}.*one pair alone \(texts of 2, 1 words\)") as failed:
        fake.counts(captions)
    assert failed.value.place == 1
    before = len(fake.sizes)
    known = spice.SpiceCache(fake.kept, jars.version()).size()
    assert fake.counts([captions[0], *captions[2:]])[:, 1].tolist() == [0.1, 0.3, 0.4]
    assert fake.sizes[before:] == [3 - known]  # what went well stays known


def test_a_program_that_cannot_start_is_a_reason(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spice, "find_program", lambda: spice.Program("/no/java", "x", 1000))
    with pytest.raises(NotComputed, match="SPICE did not start"):
        fake.counts([pair("a")])


def test_batches_hold_every_pair_once_the_long_ones_last_and_within_bounds() -> None:
    answers = ["a " * n for n in (40, 3, 200, 5, 7, 120, 300, 12)] + [f"a {n}" for n in range(3000)]
    captions = [Caption(a, (f"truth {n}",)) for n, a in enumerate(answers)]
    batches = list(spice._split_batches(captions))
    flat = [c for batch in batches for c in batch]
    assert sorted(flat) == sorted(captions) and len(batches) > 2
    costs = [spice.estimate_cpu_seconds(spice._texts(c)) for c in flat]
    assert costs == sorted(costs)
    assert all(len(b) == 1 or spice.estimate_cpu_seconds(spice._texts(*b)) <= spice.BATCH_SECONDS for b in batches)
    # a text that stands in many pairs counts once
    assert len(list(spice._split_batches([Caption(f"{n % 60}", (f"{n // 60}",)) for n in range(3600)]))) == 1


def test_texts_of_many_pairs_are_read_first_once_each(fake: Fake) -> None:
    captions = [Caption("a " * (k + 1), (f"truth {n}",)) for k in range(9) for n in range(7)]
    assert fake.counts(captions)[:, 1] == pytest.approx([(k + 1) / 10 for k in range(9) for _ in range(7)])
    assert fake.sizes == [8, 63]  # 16 texts in 8 pairs; then all pairs


def test_without_what_keeps_parses_the_scores_are_the_same(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spice, "_OPEN", ["cannot-keep"])
    captions = [Caption("a " * (k + 1), (f"truth {n}",)) for k in range(9) for n in range(7)]
    assert fake.counts(captions)[:, 1] == pytest.approx([(k + 1) / 10 for k in range(9) for _ in range(7)])
    assert fake.sizes == [8, 63]


@pytest.mark.parametrize(("free", "heap"), [(1200.0, 900), (4000.0, 3000), (64e3, 6000), (math.inf, 6000)])
def test_the_heap_goes_with_the_free_memory(monkeypatch: pytest.MonkeyPatch, free: float, heap: int) -> None:
    monkeypatch.setattr(spice, "free_memory_mb", lambda: free)
    assert spice._heap_mb() == heap
    monkeypatch.setattr(spice, "free_memory_mb", lambda: 900.0)
    with pytest.raises(NotComputed, match="SPICE needs 1067 MB of free memory, and 900 are"):
        spice._heap_mb()


def test_where_it_is_not_installed_the_command_is_named() -> None:
    with pytest.raises(NotComputed, match="SPICE: not installed; `clinkd spice install`"):
        spice.spice_counts([pair("a")], CaptionScorer())


# ---- what is kept ---------------------------------------------------------------------------------------------------


def test_many_may_write_at_once(tmp_path: Path) -> None:
    captions = [pair(f"text {n}") for n in range(200)]

    def work(part: Sequence[Caption]) -> None:
        for n in range(0, len(part), 10):
            some = part[n : n + 10]
            spice.SpiceCache(tmp_path / "x" / "scores", "v").write(some, [float(c.candidate.split()[1]) for c in some])

    threads = [threading.Thread(target=work, args=(captions[k : k + 80],)) for k in (0, 40, 80, 120)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert spice.SpiceCache(tmp_path / "x" / "scores", "v").read(captions) == {c: n for n, c in enumerate(captions)}
    assert spice.SpiceCache(tmp_path / "x" / "scores", "another").read(captions) == {}
    assert b"text 1" not in (tmp_path / "x" / "scores").read_bytes()


def test_a_torn_file_is_begun_anew_and_no_place_to_write_costs_time_alone(tmp_path: Path) -> None:
    store = spice.SpiceCache(tmp_path / "scores", "v")
    store.path.write_bytes(b"torn" * 500)
    assert store.read([pair("a")]) == {}
    store.write([pair("a")], [0.5])
    assert store.read([pair("a"), pair("b")]) == {pair("a"): 0.5} and store.size() == 1
    nowhere = spice.SpiceCache(store.path / "below a file", "v")
    nowhere.write([pair("a")], [0.5])
    assert nowhere.read([pair("a")]) == {} and nowhere.size() == 0


def test_a_pair_is_told_by_where_its_texts_begin() -> None:
    store = spice.SpiceCache(Path("x"), "v")
    assert len({store._key(Caption(*c)) for c in (("a", ("b", "c")), ("a", ("b c",)), ("a b", ("c",)))}) == 3


# ---- in the scores --------------------------------------------------------------------------------------------------

LEXICON = Lexicon(("liver", "cyst"), ("small", "large"), ("left", "right"), ("dark", "bright"))


def question(number: int, task: Task, truth: str, modality: Modality = Modality.CT) -> Sample:
    turn = Turn(task, BoxedText("?"), BoxedText(truth))
    return Sample(f"s{number}", (ImageRef(f"{number}.png", 8, 8),), modality, (turn,), f"g{number}", "set")


def says(sample: Sample, *answers: str) -> Prediction:
    return Prediction(sample.id, tuple(Candidate(a, BoxedText(a)) for a in answers))


def spoken(scores: Sequence[Score], task: Task = Task.RC) -> dict[tuple[str, Modality | None], float | None]:
    return {(s.row, s.modality): s.value for s in scores if (s.task, s.metric) == (task, "SPICE")}


@pytest.fixture
def by_words(monkeypatch: pytest.MonkeyPatch) -> list[Caption]:
    """SPICE as a tenth of an answer's number of words; returns what it was asked."""
    asked: list[Caption] = []

    def counts(captions: Sequence[Caption], _: CaptionScorer) -> np.ndarray:
        asked.extend(captions)
        return np.array([[1.0, len(c.candidate.split()) / 10] for c in captions])

    monkeypatch.setattr(texts, "spice_counts", counts)
    monkeypatch.setattr(CaptionScorer, "counts", lambda self, captions: np.ones((len(captions), len(COLUMNS))))
    return asked


def test_rc_has_its_headline_by_modality_and_beside_its_twins(by_words: list[Caption]) -> None:
    kinds = (Modality.CT, Modality.CT, Modality.PET)
    items = [question(n, Task.RC, "a cyst", kind) for n, kind in enumerate(kinds)]
    answers = [says(s, *texts) for s, texts in zip(items, (("a", "a b c"), ("a b",), ("a b c d",)), strict=True)]
    judged = score_predictions(
        items, answers, {"constant": [says(s, "a") for s in items]}, LEXICON, EvaluateConfig(replicates=50)
    )
    found = spoken(judged.scores())
    assert found["model", Modality.CT] == pytest.approx(15) and found["model", Modality.PET] == pytest.approx(40)
    assert found["model", None] == pytest.approx((15 + 40) / 2)  # the mean over modalities
    assert found["constant", None] == pytest.approx(10) and found["oracle", None] == pytest.approx((25 + 40) / 2)
    table = describe_scores(judged.scores(), {}, judged.gains())["RC"]
    assert table["score"] == pytest.approx(27.5) and table["blind"] == pytest.approx(10)
    of_pet = {"score": 40, "blind": 10, "interval": None, "answers": 1}
    assert table["by_modality"]["pet"] == of_pet
    assert judged.by_source().rows[0][:4] == ("RC", "set", "SPICE", "3")


def test_mia_has_it_where_it_is_asked_for(by_words: list[Caption]) -> None:
    items = [question(0, Task.RC, "a cyst"), question(1, Task.MIA, "a liver")]
    answers = [says(s, "a b") for s in items]
    scores = score_predictions(items, answers, {}, LEXICON, EvaluateConfig(replicates=0)).scores()
    assert spoken(scores, Task.MIA) == {} and [c.references for c in by_words] == [("a cyst",)]
    scores = score_predictions(items, answers, {}, LEXICON, EvaluateConfig(replicates=0, spice="all")).scores()
    assert spoken(scores, Task.MIA)["model", None] == spoken(scores)["model", None] == pytest.approx(20)


def test_the_average_is_there_where_all_four_are(by_words: list[Caption], monkeypatch: pytest.MonkeyPatch) -> None:
    items = [question(n, task, "a cyst") for n, task in enumerate((Task.VG, Task.ROC, Task.RC, Task.MIA))]
    boxed = BoxedText(f"a cyst {BOX_MARK}", (Box(0.1, 0.1, 0.3, 0.3),))
    items[0] = replace(items[0], turns=(Turn(Task.VG, BoxedText("?"), boxed),))
    answers = [Prediction("s0", (Candidate(boxed.text, boxed),)), *(says(s, "a cyst") for s in items[1:])]
    table = describe_scores(score_predictions(items, answers, {}, LEXICON, EvaluateConfig(replicates=0)).scores(), {})
    assert table["RC"]["score"] == pytest.approx(20) and "average_why" not in table
    assert table["average"] == pytest.approx((100 + 100 + 20 + table["MIA"]["score"]) / 4)
    monkeypatch.setattr(texts, "spice_counts", failing)
    table = describe_scores(score_predictions(items, answers, {}, LEXICON, EvaluateConfig(replicates=0)).scores(), {})
    assert table["RC"]["score"] is None and table["average"] is None


def failing(captions: Sequence[Caption], _: CaptionScorer) -> np.ndarray:
    raise spice.FailedPair(len(captions) // 2, "fails")


def test_a_pair_that_fails_is_named_by_its_sample_and_its_texts_are_not_told(
    by_words: list[Caption], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "spice_counts", failing)
    items = [question(n, Task.RC, f"truth {n}") for n in range(3)]
    scores = score_predictions(items, [says(s, "a") for s in items], {}, LEXICON, EvaluateConfig(replicates=0)).scores()
    told = {s.why for s in scores if s.metric == "SPICE"}
    assert all(s.value is None for s in scores if s.metric == "SPICE")
    assert len(told) == 1 and re.fullmatch(r"s1: SPICE fails; nothing is scored.*", told.pop() or "")
    monkeypatch.setattr(official, "spice_counts", failing)
    rows = [ReleasedAnswer(str(n), "ct_1.png", "truth", "answer") for n in range(3)]
    assert (official.evaluate(rows, Task.RC).why or "").startswith("prediction 1: SPICE fails")


def test_official_means_are_of_cleaned_answers_by_modality(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        official, "spice_counts", lambda captions, _: np.array([[1.0, len(c.candidate) / 10] for c in captions])
    )
    rows = [ReleasedAnswer("1", f"{m}_1.png", "t", r) for m, r in (("ct", "abc.<|im_end|>x"), ("ct", ""), ("x", "ab"))]
    outcome = official.evaluate(rows, Task.RC, 0)
    assert [outcome.score(m) for m in ("ct", "x")] == pytest.approx([20, 20])


def test_known_scores_of_others_are_left_alone(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLINKD_CACHE", str(tmp_path / "cache"))
    fake.counts([pair("a")])
    assert spice.SpiceCache(fake.kept, jars.version()).size() == 1 and not spice.scores_file().exists()
    spice.spice_counts([pair("a")], Words())
    assert spice.scores_file() == tmp_path / "cache" / "spice" / "scores.sqlite" and fake.sizes == [1, 1]
    assert spice.SpiceCache(spice.scores_file(), jars.version()).size() == 1
