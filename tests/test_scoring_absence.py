"""Questions about what is not there, in the manner of POPE, and structures that captions make up, of CHAIR."""

from __future__ import annotations

import pytest

from clinkd.config import EvaluateConfig
from clinkd.language.facts import Lexicon
from clinkd.records import Box, BoxedText, Candidate, Fact, ImageRef, Modality, Prediction, Sample, Task, Turn
from clinkd.scoring.captions import by_column
from clinkd.scoring.measure import Rules, SampleAnswer
from clinkd.scoring.measures.absence import ABSENCE, HALLUCINATION, find_structures, states_absence
from clinkd.scoring.score import score_predictions

LEXICON = Lexicon(("mass", "cyst", "liver", "lung", "left lung", "right lung"))
BOX = Box(0.1, 0.1, 0.3, 0.3)
HERE = BoxedText("Here is the mass [box].", (BOX,))
NOT_THERE = BoxedText("There is no mass in the image.")


def sample(
    task: Task,
    truth: BoxedText | str,
    *,
    question: str = "Where is the mass?",
    names: tuple[str, ...] = ("mass",),
    image: str = "1.png",
    facts: tuple[Fact, ...] = (),
) -> Sample:
    answer = BoxedText(truth) if isinstance(truth, str) else truth
    turn = Turn(task, BoxedText(question), answer)
    ref, id = ImageRef(image, 64, 64), f"{image}-{task}-{answer.text}"
    return Sample(id, (ref,), Modality.CT, (turn,), image, names=names, facts=facts)


def figures(samples: list[Sample], answers: list[BoxedText | str]) -> dict[str, float | None]:
    texts = [BoxedText(a) if isinstance(a, str) else a for a in answers]
    predictions = [Prediction(s.id, (Candidate(t.text, t),)) for s, t in zip(samples, texts, strict=True)]
    scores = score_predictions(samples, predictions, {}, LEXICON, EvaluateConfig(replicates=0)).scores()
    return {s.metric: s.value for s in scores if (s.row, s.modality) == ("model", None)}


# ---- where it is not ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "absent"),
    [
        ("There is no mass.", True),
        ("not seen", True),
        ("No", True),
        ("I cannot see a mass in the image.", True),
        ("I'm unable to locate a mass.", True),
        ("A cyst, but no mass.", True),
        ("The mass is absent.", True),
        ("[]", True),
        ('{"boxes": []}', True),
        ("Keine Masse zu sehen.", True),
        ("", False),
        ("I cannot see the image.", False),
        ("I'm sorry, I can't help with that.", False),
        ("It cannot be determined whether there is a mass.", False),
        ("It is unclear if there is no mass or a small one.", False),
        ("The mass is not on the left, it is on the right.", False),
        ("No effusion, but a mass in the liver.", False),
        ("The image shows a normal liver.", False),
        ("Die Masse ist links.", False),
    ],
)
def test_only_a_denial_says_that_it_is_not_there(text: str, absent: bool) -> None:
    assert states_absence(Candidate(text, BoxedText(text)), ("mass",)) is absent


def test_a_denial_beside_a_box_says_nothing() -> None:
    text = BoxedText("There is no mass [box]", (BOX,))
    assert not states_absence(Candidate("", text), ("mass",))
    assert not states_absence(Candidate("", NOT_THERE, unread=("(3, 4",)), ("mass",))


def test_absent_structures_are_judged_as_yes_and_no() -> None:
    asked = [sample(Task.VG, HERE, image=f"{n}.png") for n in range(4)]
    asked += [sample(Task.VG, NOT_THERE, image=f"{n}.png") for n in range(4, 10)]
    said = [HERE, HERE, HERE, "no mass is seen"]
    said += [HERE, "There is no mass.", "not there", "[]", "", "I cannot see the image."]
    found = figures(asked, said)
    assert found["Absence accuracy"] == 50 and found["False boxes where none is"] == pytest.approx(100 / 6)
    assert found["POPE accuracy"] == 60 and found["Yes ratio"] == 40
    assert (found["POPE precision"], found["POPE recall"], found["POPE F1"]) == (75, 75, 75)


def test_yes_and_no_of_plain_questions_have_the_same_figures() -> None:
    asked = [sample(Task.QA, truth, image=f"{n}.png") for n, truth in enumerate(("yes", "no", "no", "a large mass"))]
    found = figures(asked, ["Yes, there is.", "yes", "No.", "yes"])
    assert found["POPE accuracy"] == pytest.approx(200 / 3) and found["Yes ratio"] == pytest.approx(200 / 3)
    assert found["POPE precision"] == 50 and found["POPE recall"] == 100 and found["Absence accuracy"] == 50


def test_an_interval_holds_its_figure_where_each_image_asks_of_one_kind() -> None:
    asked = [sample(Task.VG, HERE if n % 2 else NOT_THERE, image=f"{n}.png") for n in range(20)]
    said = [BoxedText("[box]", (BOX,)) if n % 2 or n < 6 else BoxedText("not there") for n in range(20)]
    predictions = [Prediction(s.id, (Candidate(t.text, t),)) for s, t in zip(asked, said, strict=True)]
    scores = score_predictions(asked, predictions, {}, LEXICON, EvaluateConfig(replicates=20)).scores()
    for score in (s for s in scores if s.row == "model" and s.metric in ABSENCE.metrics):
        assert score.value is not None and score.interval is not None, score.metric
        low, high = score.interval
        assert low <= score.value <= high and high - low < 60, score.metric


def test_where_all_is_present_nothing_is_said_of_absence() -> None:
    asked = [sample(Task.VG, HERE), sample(Task.QA, "yes")]
    found = figures(asked, [HERE, "yes"])
    assert found["Recall"] == 100 and all(found.get(metric) is None for metric in ABSENCE.metrics)


# ---- what a caption makes up ----------------------------------------------------------------------------------------


def count_made_up(others: list[Sample], caption: str, truth: str = "An image.") -> dict[str, float]:
    item = sample(Task.MIA, truth, names=())
    rules = Rules(0.5, LEXICON, None, find_structures([*others, item], LEXICON))
    row = HALLUCINATION.count([SampleAnswer(item, Candidate(caption, BoxedText(caption)))], rules)[0]
    return {name: float(value) for name, value in by_column(HALLUCINATION.columns, row).items()}


@pytest.mark.parametrize(
    ("caption", "made_up"),
    [
        ("A liver with a mass.", 0),
        ("A liver with a cyst.", 1),
        ("A liver without a cyst.", 0),
        ("A cyst and another cyst in the right lung.", 2),
        ("The lung.", 0),  # the left one, said with less
        ("A normal image.", 0),
    ],
)
def test_a_structure_that_no_truth_of_the_image_names_is_made_up(caption: str, made_up: int) -> None:
    others = [
        sample(Task.VG, HERE),
        sample(Task.VG, "There is no cyst.", names=("cyst",)),
        sample(Task.ROC, "left lung", names=("left lung",)),
        sample(Task.QA, "yes", question="Is there a liver?", names=()),
        sample(Task.QA, "no", question="Is there a right lung?", names=()),
        sample(Task.VG, HERE, names=("cyst",), image="other.png"),
    ]
    counts = count_made_up(others, caption)
    assert counts["answers"] == 1 and counts["not in the image"] == made_up
    assert counts["captions with one"] == (made_up > 0) and counts["structures"] >= made_up


def test_without_named_structures_no_caption_is_judged() -> None:
    assert not any(count_made_up([], "A cyst.").values())
    assert count_made_up([], "A cyst.", "The liver is large.")["not in the image"] == 1
    facts = [sample(Task.RC, "It is dark.", names=(), facts=(Fact("cyst"),))]
    assert count_made_up(facts, "A cyst.")["not in the image"] == 0
