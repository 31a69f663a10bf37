"""Which answers count as wrong, and the counts shown of them."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from clinkd.config import ReflectConfig
from clinkd.correction.review import choose_for_control, is_missed, review
from clinkd.correction.similarity import LexicalSimilarity
from clinkd.correction.summary import count_changes, describe_review, passed_table, reflection_tables, summary
from clinkd.records import BadInput, Box, BoxedText, Candidate, Correction, Modality, Prediction, Sample, Task, Turn

PAPER = ReflectConfig(box_iou=0, conflicts=False)


class Fixed:
    """The same similarity for every pair."""

    name = "fixed"

    def __init__(self, value: float) -> None:
        self.value = value

    def similar(self, a: Sequence[str], b: Sequence[str]) -> list[float]:
        return [self.value for _ in a]


def sample(id: str, text: str, boxes: tuple[Box, ...] = (), task: Task = Task.VG) -> Sample:
    turn = Turn(task, BoxedText("What is it?"), BoxedText(text, boxes))
    return Sample(id, (), Modality.CT, (turn,), group=id)


def answer(id: str, text: str, boxes: tuple[Box, ...] = ()) -> Prediction:
    worse = Candidate("", BoxedText("something else"))
    return Prediction(id, (worse, Candidate(text, BoxedText(text, boxes))), chosen=1)


HERE, NEAR, FAR = Box(0.1, 0.1, 0.5, 0.5), Box(0.12, 0.1, 0.5, 0.5), Box(0.6, 0.6, 0.9, 0.9)


@pytest.mark.parametrize(
    ("text", "boxes", "similar", "reasons"),
    [
        ("The left lung is at [box].", (HERE,), 1.0, ()),
        ("The left lung is at [box].", (NEAR,), 0.8, ()),
        ("The left lung is at [box].", (HERE,), 0.79, ("similarity",)),
        ("The left lung is at [box].", (FAR,), 0.9, ("box",)),
        ("The left lung is there.", (), 0.9, ("box",)),
        ("The right lung is at [box].", (HERE,), 0.98, ("laterality",)),
        ("The left lung is not at [box].", (HERE,), 0.9, ("negation",)),
        ("Two structures, one the left lung at [box].", (FAR,), 0.1, ("similarity", "box")),
        ("The left lung is at [box] or [box].", (FAR, NEAR), 0.9, ()),
    ],
)
def test_three_tests_each_recorded(text: str, boxes: tuple[Box, ...], similar: float, reasons: tuple[str, ...]) -> None:
    one = sample("a", "The left lung is at [box].", (HERE,))
    (found,) = review([one], [answer("a", text, boxes)], Fixed(similar), ReflectConfig(), 2)
    assert found.reasons == reasons
    assert found.wrong is bool(reasons)
    assert (found.id, found.round, found.before.text, found.truth, found.similarity, found.after) == (
        *("a", 2, text, one.answer, similar),
        None,
    )


def test_the_papers_rule_looks_at_similarity_alone() -> None:
    draw, one = random.Random(0), sample("a", "The left lung is at [box].", (HERE,))
    texts = ["The right lung is not at [box].", "Three livers at [box]", "The left lung is at [box]."]
    for text, box, value in itertools.product(texts, (HERE, FAR), (0.0, 0.7999, 0.8, 1.0, draw.random())):
        (found,) = review([one], [answer("a", text, (box,))], Fixed(value), PAPER, 1)
        assert found.reasons == (("similarity",) if value < 0.8 else ())


def test_every_truth_box_needs_a_partner_of_its_own() -> None:
    one = sample("a", "The lungs are at [box] and [box].", (HERE, NEAR))
    text = "The lungs are at [box] and [box]."
    for boxes, reasons in (((HERE, FAR), ("box",)), ((NEAR, HERE), ())):
        assert review([one], [answer("a", text, boxes)], Fixed(1), ReflectConfig(), 1)[0].reasons == reasons


def test_perfect_answers_are_never_wrong() -> None:
    words = ["left", "right", "no", "not", "two", "kidney", "one", "both", "bright", "5 mm", "[box]", ",", ".", "yes"]
    draw = random.Random(1)
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(500)]
    samples = [sample(str(i), t, (HERE,) * t.count("[box]")) for i, t in enumerate(texts)]
    perfect = [answer(s.id, s.answer.text, s.answer.boxes) for s in samples]
    found = review(samples, perfect, LexicalSimilarity(texts), ReflectConfig(), 1)
    assert len(found) == len(samples)
    assert not any(c.wrong for c in found)
    assert {c.similarity for c in found} == {1.0}


def test_only_answered_samples_are_reviewed_in_their_order() -> None:
    samples = [sample(i, "kidney", task=Task.ROC) for i in "abcd"]
    found = review(samples, [answer("c", "liver"), answer("a", "kidney")], LexicalSimilarity(["kidney"]), PAPER, 1)
    assert [(c.id, c.wrong) for c in found] == [("a", False), ("c", True)]


def test_answers_of_unknown_or_repeated_samples_are_refused() -> None:
    with pytest.raises(BadInput, match="'x'"):
        review([sample("a", "kidney")], [answer("x", "kidney")], Fixed(1), PAPER, 1)
    with pytest.raises(BadInput, match="two predictions"):
        review([sample("a", "kidney")], [answer("a", "kidney")] * 2, Fixed(1), PAPER, 1)


def test_summary_counts_what_was_reviewed() -> None:
    samples = [
        sample("a", "The left lung is at [box].", (HERE,)),
        replace(sample("b", "left lung", task=Task.ROC), modality=Modality.PET),
        replace(sample("c", "left lung", task=Task.ROC), modality=Modality.PET),
    ]
    answers = [answer("a", "The left lung is at [box].", (FAR,)), answer("b", "right lung"), answer("c", "left lung")]
    found = review(samples, answers, LexicalSimilarity(["left lung"]), ReflectConfig(), 1)
    found[0] = replace(found[0], after=samples[0].answer, by="x")
    found[1] = replace(found[1], by="x", rejected="boxes differ")
    table = summary(found, samples)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(r["task"], r["modality"]) for r in rows] == [("VG", "ct"), ("ROC", "pet"), ("all", "all")]
    assert (rows[0]["reviewed"], rows[0]["wrong"], rows[0]["box"], rows[0]["corrected"]) == ("1", "1", "1", "1")
    assert (rows[1]["reviewed"], rows[1]["wrong"], rows[1]["laterality"], rows[1]["rejected"]) == ("2", "1", "1", "1")
    for column in table.columns[3:]:
        assert int(rows[2][column]) == int(rows[0][column]) + int(rows[1][column])


def found(id: str, *reasons: str, by: str = "", rejected: str | None = None, round: int = 1) -> Correction:
    text = BoxedText("x")
    return Correction(id, round, text, text, 0.5, reasons, text if by and rejected is None else None, by, rejected)


FOUND = [
    found("a"),
    found("b", "similarity", by="offline"),
    found("c", "similarity", "box", by="human"),
    found("d", "box", by="gpt", rejected="boxes differ: 1 given, 2 in the truth"),
    found("e", "laterality", "count", by="gpt", rejected="boxes differ: 3 given, 1 in the truth"),
    found("f", "negation", by="gpt", rejected="length 90 characters against 12 of the truth"),
    found("g", "count"),
    found("h", "box", by="offline", round=2),
]
ASKED = [replace(sample(i, "kidney", task=t), modality=m) for i, t, m in zip(
    "abcdefgh", [Task.VG] * 4 + [Task.ROC] * 4, [Modality.CT, Modality.PET] * 4, strict=True)]  # fmt: skip


def test_what_one_test_alone_found() -> None:
    by_test, _, reviewed = reflection_tables(FOUND, ASKED)
    rows = {r[0].strip(): r[1:] for r in by_test.rows}
    assert by_test.columns[1:4] == ("Round 1: found", "% of wrong", "Alone")
    assert rows["Words: similarity"] == ("2", "33.3", "1", "0", "0.0", "0")
    assert rows["Boxes: IoU"] == ("2", "33.3", "1", "1", "100.0", "1")
    # side and count are parts of one test: together they found it alone, neither of them did
    assert rows["Contradictions"][:3] == ("3", "50.0", "3")
    assert (rows["laterality"][:3], rows["count"][:3]) == (("1", "16.7", "0"), ("2", "33.3", "1"))
    assert "round 2: 1 of 1 answers were wrong" in by_test.notes[0]
    lines = {r[0]: dict(zip(reviewed.columns, r, strict=True)) for r in reviewed.rows[:6]}
    assert list(lines) == ["Round 1, VG", "  ct", "  pet", "Round 1, ROC"]
    assert (lines["Round 1, VG"]["Reviewed"], lines["Round 1, VG"]["% wrong"]) == ("4", "75.0")
    assert lines["Round 1, VG"]["Box"] == "2 (1)"
    assert reviewed.rows[-1][0] == "  pet" and reviewed.rows[-2][0] == "Round 2, ROC"


def test_who_rewrote_and_why_it_was_refused() -> None:
    rows = reflection_tables(FOUND, ASKED)[1].rows
    assert rows == (
        ("Wrong answers", "6", "1"),
        ("Rewritten by offline", "1", "1"),
        ("Rewritten by human", "1", "0"),
        ("Refused: the truth stays", "3", "0"),
        ("  boxes differ (gpt)", "2", "0"),
        ("  length … characters against … of the truth (gpt)", "1", "0"),
        ("Left as they were", "1", "0"),
    )


def test_what_similarity_alone_lets_pass_is_counted_by_kind() -> None:
    """Whatever the rule of the round: here the paper's, which calls every answer of 0.8 right."""
    truth, names = "The left lung is at [box].", ("left lung", "right lung", "liver")
    told = [("The left lung is at [box].", FAR), ("The right lung is at [box].", HERE), ("The liver is at [box].", FAR)]
    told += [("The left lung is not at [box].", HERE), (truth, NEAR)]
    samples = [sample(str(i), truth, (HERE,)) for i in range(5)]
    answers = [answer(str(i), text, (box,)) for i, (text, box) in enumerate(told)]
    kinds = {"box": 2, "name": 2, "laterality": 1, "negation": 1, "count": 0}
    for similarity, passed in ((0.8, {"answers": 5, "wrong": 4, **kinds}), (0.7, dict.fromkeys(kinds, 0))):
        found = review(samples, answers, Fixed(similarity), PAPER, 1)
        counts = describe_review(found, names)
        assert counts["wrong"] == (0 if similarity == 0.8 else 5)
        assert counts["passed"] == {"answers": 0, "wrong": 0, **passed}
        assert [is_missed(c, names) for c in found] == [similarity < 0.8 or i < 4 for i in range(5)]
        table = passed_table(found, names, "offline")
        assert [r[1] for r in table.rows] == [str(n) for n in counts["passed"].values()]
        assert "was not computed" in table.notes[0] and "not" not in passed_table(found, names, "embedding").notes[0]


def test_a_round_for_a_program_has_its_refusals_by_reason_and_what_a_control_drew() -> None:
    counts = describe_review([c for c in FOUND if c.round == 1], ())
    assert counts["refused"] == {"boxes differ": 2, "length … characters against … of the truth": 1}
    assert [counts[k] for k in ("reviewed", "wrong", "to_rewrite", "rewritten")] == [7, 6, 6, 2]
    drawn = choose_for_control([found(i) if i < "c" else found(i, "box") for i in "abcd"], "random", 0)
    assert [describe_review(drawn, ())[k] for k in ("wrong", "to_rewrite")] == [2, 2]
    _, outcomes, _ = reflection_tables(drawn, ASKED)
    assert outcomes.rows[0] == ("Answers drawn, wrong or right", "2") and "drawn" in outcomes.title


def test_answers_asked_again_are_mended_or_broken() -> None:
    pairs = [(True, False), (True, True), (True, True), (False, True), (False, False)]
    assert count_changes(pairs) == {"wrong": 3, "mended": 1, "right": 2, "broken": 1}


def test_nothing_reviewed_makes_no_table() -> None:
    assert reflection_tables([], ASKED) == []
