"""The choice of the best image-blind baseline: made before the test, recorded, and used everywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clinkd.config import EvaluateConfig
from clinkd.language.facts import Lexicon
from clinkd.pipeline.cautions import caution_blind
from clinkd.records import BoxedText, Candidate, ImageRef, Modality, Prediction, Sample, Score, Task, Turn
from clinkd.reporting.tables import ScoreIndex, describe_scores, tabulate_scores
from clinkd.scoring.blind.baselines import CONSTANT, IMAGES_SHUFFLED, LEARNED, OTHER_IMAGE, QUESTION_ONLY
from clinkd.scoring.blind.choice import LEAST_OF_MODALITY, BlindChoice, BlindTrial, answer_blindly
from clinkd.scoring.measure import Rules
from clinkd.scoring.outcome import strict_outcomes
from clinkd.scoring.score import score_predictions

RULES = Rules(0.5, Lexicon((), (), (), ()))


def ask(name: str, question: str, answer: str, modality: Modality = Modality.CT) -> Sample:
    turn = Turn(Task.QA, BoxedText(question), BoxedText(answer))
    return Sample(name, (ImageRef("a.png", 8, 8),), modality, (turn,), name)


def trial(baseline: str, figure: float, questions: int = 10, modality: Modality = Modality.CT) -> BlindTrial:
    return BlindTrial(Task.QA, modality, baseline, figure, questions)


# "Heart?" is told by the question, as far as training knows; in the test it is not
TRAIN = [ask(f"t{i}", "Heart?", "yes") for i in range(4)] + [ask(f"n{i}", "Lung?", "no") for i in range(6)]
VALIDATION = [ask("v1", "Heart?", "yes"), ask("v2", "Lung?", "no")]
TEST = [ask("v1", "Heart?", "no"), ask("x2", "Lung?", "no"), ask("x3", "Heart?", "no")]


def score(train: list[Sample], validation: list[Sample], test: list[Sample]) -> list[Score]:
    baselines, choice = answer_blindly(train, validation, test, RULES)
    model = [Prediction(s.id, (Candidate("no", BoxedText("no")),)) for s in test]
    config = EvaluateConfig(replicates=0)
    scored = replace(score_predictions(test, model, baselines, RULES.lexicon, config), choice=choice)
    (outcome,) = strict_outcomes(scored, scored.scores())
    assert outcome.to_json()["blind_is"] == ScoreIndex(scored.scores()).best_baseline(Task.QA, outcome.metric)
    assert outcome.to_json()["blind_chosen_on"] == choice.chosen_on
    return scored.scores()


def test_the_best_is_chosen_on_validation_and_not_by_the_test() -> None:
    scores = score(TRAIN, VALIDATION, TEST)
    table = describe_scores(scores, {})["QA"]
    assert table["blind_by"][CONSTANT] == 100 > table["blind"] == table["blind_by"][QUESTION_ONLY]
    assert (table["blind_is"], table["blind_chosen_on"]) == (QUESTION_ONLY, "validation")
    assert {m["blind"] for m in table["by_modality"].values()} == {table["blind"]}
    assert [Score.from_json(s.to_json()) for s in scores] == scores
    overall = tabulate_scores(scores)[0]
    assert {row[0]: row[1] for row in overall.rows}["Best blind baseline"] == f"{table['blind']:.1f}"
    assert any("chosen on the validation split" in note for note in overall.notes)


def test_without_validation_the_choice_is_made_in_training_by_groups_and_without_training_on_the_test() -> None:
    table = describe_scores(score(TRAIN, [], TEST), {})["QA"]
    assert (table["blind_is"], table["blind_chosen_on"]) == (QUESTION_ONLY, "training")
    scores = score([], [], TEST)
    table = describe_scores(scores, {})["QA"]
    assert table["blind"] == max(table["blind_by"].values()) and table["blind_chosen_on"] == "test"
    assert any("chosen on the test answers themselves" in note for note in tabulate_scores(scores)[0].notes)


@pytest.mark.parametrize("validation", [VALIDATION, []])
def test_the_choice_and_what_is_answered_never_depend_on_the_truth_of_the_test(validation: list[Sample]) -> None:
    other = [replace(s, turns=(replace(s.turns[0], answer=BoxedText("a cyst")),)) for s in TEST]
    (before, choice), (after, same) = (answer_blindly(TRAIN, validation, test, RULES) for test in (TEST, other))
    assert choice == same and choice.trials
    assert before.pop(OTHER_IMAGE) != after.pop(OTHER_IMAGE)
    assert before == after and {p.id for rows in before.values() for p in rows} == {s.id for s in TEST}


def test_a_modality_chooses_for_itself_where_it_has_enough_questions() -> None:
    many = [trial(CONSTANT, 0.2, LEAST_OF_MODALITY), trial(LEARNED, 0.4, LEAST_OF_MODALITY)]
    few = [trial(CONSTANT, 0.9, 3, Modality.MR), trial(LEARNED, 0.1, 3, Modality.MR)]
    choice, all_there = BlindChoice("validation", (*many, *few)), (CONSTANT, LEARNED, IMAGES_SHUFFLED)
    picked = {m: choice.pick(Task.QA, m, all_there) for m in (Modality.CT, Modality.MR, None)}
    assert picked == {Modality.CT: LEARNED, Modality.MR: CONSTANT, None: CONSTANT}
    assert choice.pick(Task.QA, Modality.CT, (CONSTANT,)) == CONSTANT and choice.pick(Task.VG, None, all_there) is None
    assert BlindChoice.from_json(choice.to_json()) == choice


def test_folds_make_one_choice_and_count_by_their_questions() -> None:
    folds = [
        BlindChoice("validation", (trial(CONSTANT, 0.5, 30), trial(LEARNED, 0.4, 30))),
        BlindChoice("training", (trial(CONSTANT, 0.5, 10), trial(LEARNED, 0.9, 10))),
    ]
    pooled = BlindChoice.pooled(folds)
    assert pooled.chosen_on == "training" and pooled.pick(Task.QA, None, (CONSTANT, LEARNED)) == LEARNED
    assert [(t.figure, t.questions) for t in pooled.trials] == [(0.5, 40), (pytest.approx(0.525), 40)]


def test_a_model_that_is_no_better_with_its_own_images_is_told() -> None:
    figures = {"score": 40.0, "blind": 30.0, "blind_by": {CONSTANT: 30.0, IMAGES_SHUFFLED: 41.0}}
    assert caution_blind({"VG": figures}) and not caution_blind({"VG": {**figures, "blind_by": {CONSTANT: 30.0}}})
