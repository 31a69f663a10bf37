"""Questions about what is not there, in the manner of POPE, and structures that captions make up, of CHAIR."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clinkd.config import EvaluateConfig
from clinkd.language.facts import Lexicon
from clinkd.records import Box, BoxedText, Candidate, Fact, ImageRef, Modality, Prediction, Sample, Task, Turn
from clinkd.scoring.captions import CaptionScorer, NotComputed, by_column
from clinkd.scoring.measure import Rules, SampleAnswer
from clinkd.scoring.measures.absence import ABSENCE, HALLUCINATION, find_structures, states_absence
from clinkd.scoring.score import score_by_measures, score_predictions

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
        ("The mass is not absent.", False),
        ("I don't think there is no mass.", False),
        ("Not applicable", False),
        ("A non-contrast CT", False),
        ("A non-contrast CT without a mass", True),
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


@pytest.mark.parametrize("an_image", [1, 2, 1.5])  # questions: of one kind in each image, of both, of both or one
def test_intervals_of_pope_hold_the_figures_however_questions_lie_in_images(an_image: float) -> None:
    truths = ["yes" if n % 2 else "no" for n in range(60)]
    said = [{"yes": "no", "no": "yes"}[t] if n % 7 == 0 else t for n, t in enumerate(truths)]
    samples = [
        replace(sample(Task.QA, t, question="Is there a mass?", image=f"{int(n / an_image)}.png"), id=str(n))
        for n, t in enumerate(truths)
    ]
    samples += [replace(samples[1], id=f"x{n}", modality=Modality.XRAY) for n in range(2)]  # nothing absent in X-ray
    predictions = [
        Prediction(s.id, (Candidate(a, BoxedText(a)),)) for s, a in zip(samples, [*said, "no", "no"], strict=True)
    ]
    scored = score_by_measures([ABSENCE], samples, predictions, {}, Rules(0.5, LEXICON), 20)
    found = {s.metric: s for s in scored.scores() if (s.row, s.modality) == ("model", None)}
    for metric in ("POPE precision", "POPE F1", "Yes ratio"):
        (low, high), value = found[metric].interval or (0, 0), found[metric].value or 0
        assert low < value < high and high - low < 35
    key = ("model", "POPE precision", Modality.CT)
    (of_ct,) = (s for s in scored.scores() if (s.row, s.metric, s.modality) == key)
    assert found["POPE precision"].interval == pytest.approx(of_ct.interval)  # X-ray has no such figure


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


def test_scores_of_captions_say_how_much_they_make_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def lack_java(*_: object) -> None:
        raise NotComputed("no Java")

    monkeypatch.setattr(CaptionScorer, "counts", lack_java)
    monkeypatch.setattr(CaptionScorer, "cider", lack_java)
    asked = [sample(Task.VG, HERE), sample(Task.MIA, "An image.", names=())]
    found = figures(asked, [HERE, "A mass and a cyst."])
    assert found["CHAIR-s"] == 100 and found["CHAIR-i"] == 50
