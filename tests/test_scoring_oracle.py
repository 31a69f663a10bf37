"""The oracle bounds every metric: no other choice among the candidates scores higher by it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from clinkd.config import EvaluateConfig
from clinkd.language.facts import Lexicon
from clinkd.records import Box, BoxedText, Candidate, Fact, ImageRef, Modality, Prediction, Sample, Task, Turn
from clinkd.scoring.measure import make_f1, make_ratio
from clinkd.scoring.metrics import BOXES, FLAWS, MEASURES, NAMES
from clinkd.scoring.oracle import choose_by_truth
from clinkd.scoring.score import score_predictions

NAMES_OF_DATA = ("left lung", "right lung", "liver", "cyst")
WORDS = (*NAMES_OF_DATA, "no liver", "small bright cyst in the left lung", "yes", "no", "a cyst, liver", "two cysts")
LOWER = {m.name for measure in MEASURES for m in measure.rows if m.better == "lower"}


def draw_text(rng: np.random.Generator, task: Task) -> BoxedText:
    if task is not Task.VG:
        return BoxedText(". ".join(rng.choice(WORDS, size=rng.integers(1, 4))))
    corners = rng.integers(0, 3, size=(rng.integers(0, 4), 2)) / 5
    boxes = tuple(Box(x, y, x + 0.3 + 0.2 * (x > 0.2), y + 0.3) for x, y in corners.tolist())
    return BoxedText(" ".join(["[box]"] * len(boxes)), boxes)


def draw_answers(seed: int, task: Task) -> tuple[list[Sample], list[Prediction]]:
    rng = np.random.default_rng(seed)
    samples, predictions = [], []
    for n in range(24):
        modality = (Modality.CT, Modality.MR)[n % 2]
        facts = (Fact("cyst", "small"),) if task in (Task.RC, Task.MIA) else ()
        turn = Turn(task, BoxedText("What?"), draw_text(rng, task))
        samples.append(Sample(f"s{n}", (ImageRef(f"{n}.png", 64, 64),), modality, (turn,), f"g{n}", facts=facts))
        candidates = tuple(
            Candidate(text.text, text, unread=("(1",) * int(rng.random() < 0.1))
            for text in [draw_text(rng, task) for _ in range(rng.integers(1, 5))]
        )
        predictions.append(Prediction(f"s{n}", candidates, int(rng.integers(len(candidates)))))
    return samples, predictions


@pytest.mark.parametrize("task", [Task.VG, Task.ROC, Task.RC, Task.QA])
def test_no_choice_is_above_the_oracle_by_any_metric(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clinkd.scoring.captions.CaptionScorer.counts", count_words)
    bounded = set()
    samples, predictions = draw_answers(1, task)
    scored = score_predictions(samples, predictions, {}, Lexicon(NAMES_OF_DATA), EvaluateConfig(replicates=0))
    values = {(s.row, s.metric, s.modality): s.value for s in scored.scores() if s.metric not in FLAWS.metrics}
    for (row, metric, modality), value in values.items():
        best = values["oracle", metric, modality]
        if value is not None and row != "oracle":
            assert best is not None, (metric, modality)
            assert best <= value + 1e-9 if metric in LOWER else best >= value - 1e-9, (metric, row, modality)
            bounded.add(metric)
    assert all(g.value is None or (g.value <= 1e-9 if g.metric in LOWER else g.value >= -1e-9)
               for g in scored.gains() if g.row == "oracle")  # fmt: skip
    expected = {m.name for measure in MEASURES if task in measure.tasks for m in measure.rows} - set(FLAWS.metrics)
    not_asked = {"SPICE", "Recall, small boxes", "Yes ratio", *(m for m in expected if m.startswith(("CHAIR", "POPE")))}
    assert bounded >= expected - not_asked - {"Choice accuracy", "No choice read"}


def count_words(scorer: object, captions: list[object]) -> np.ndarray:
    """Counts in the place of METEOR's and the others', without Java."""
    from clinkd.scoring.captions import COLUMNS

    rng = np.random.default_rng(len(captions))
    return np.column_stack([np.ones(len(captions)), rng.integers(1, 9, size=(len(captions), len(COLUMNS) - 1))])


def test_ratios_reach_the_maximum_over_all_choices() -> None:
    """Against every combination of candidates; the best candidate of each answer alone is below it."""
    columns = list(BOXES.columns)
    rng, alone_is_less = np.random.default_rng(3), 0
    for _ in range(8):
        counts = np.zeros((15, len(columns)))
        counts[:, 0], counts[:, 1] = 1, np.repeat(rng.integers(1, 5, size=5), 3)
        counts[:, 2] = rng.integers(0, 9, size=15)
        counts[:, 3] = np.minimum(counts[:, 1], np.floor(counts[:, 2] * rng.random(15)))
        candidates = {s: [3 * s, 3 * s + 1, 3 * s + 2] for s in range(5)}
        start = {s: 3 * s for s in range(5)}
        chosen = {
            metric: sorted(best.values())
            for part, best in choose_by_truth(BOXES, counts, candidates, dict.fromkeys(range(5)), [start])
            for metric in part.metrics
        }
        for metric, figure in (
            ("F1", make_f1("found", "truth boxes", "answered boxes")),
            ("Precision", make_ratio("found", "answered boxes")),
        ):

            def value(rows: list[int]) -> float:
                return float(figure(dict(zip(columns, counts[rows].sum(0), strict=True))))  # noqa: B023

            best = np.nanmax([value(list(rows)) for rows in product(*candidates.values())])
            assert value(chosen[metric]) == pytest.approx(best, abs=1e-9)
            alone = [max(rows, key=lambda r: np.nan_to_num(value([r]), nan=1.0)) for rows in candidates.values()]
            alone_is_less += value(alone) < best - 1e-9
    assert alone_is_less > 1


def test_metrics_of_one_choice_stand_together() -> None:
    counts = np.array([[1.0, 1, 0, 0, 0], [1, 0, 1, 0, 0]])
    [(measure, best)] = choose_by_truth(NAMES, counts, {7: [1, 0]}, {7: None}, [{7: 1}])
    assert measure.metrics == NAMES.metrics and best == {7: 0}
