"""Self-consistency as a scorer: the medoid against a plain one, ties, the record, and who may choose."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clinkd.boxes import iou
from clinkd.config import RunConfig
from clinkd.inference import Agreement, RandomScorer, Scorer, rerank
from clinkd.inference.confidence import OLDER, FittedConfidence, find_confidence, read_fits
from clinkd.language.facts import Lexicon
from clinkd.pipeline import plan
from clinkd.pipeline import steps as work
from clinkd.pipeline.graph import StageContext
from clinkd.pipeline.machine import Machine
from clinkd.records import Box, BoxedText, Candidate, ImageRef, Modality, Prediction, Sample, Task, Turn
from clinkd.settings import override
from clinkd.storage import JsonLines, write_json, write_lines


def box_at(x: float) -> BoxedText:
    return BoxedText("The kidney is at [box].", (Box(x, 0.1, x + 0.2, 0.4),))


def sample(id: str, task: Task = Task.VG, truth: BoxedText | None = None) -> Sample:
    turn = Turn(task, BoxedText("Where?"), truth or box_at(0.1))
    return Sample(id, (ImageRef(f"{id}.png", 8, 8),), Modality.CT, (turn,), group=id)


def said(id: str, *answers: BoxedText) -> Prediction:
    return Prediction(id, tuple(Candidate(a.text, a, -1.0) for a in answers))


def test_the_best_is_the_medoid() -> None:
    draw = random.Random(0)
    for _ in range(100):
        answers = [box_at(draw.uniform(0, 0.7)) for _ in range(5)]
        (scores,) = Agreement().scores([sample("a")], [said("a", *answers)])
        by_hand = [sum(iou(a.boxes[0], b.boxes[0]) for b in answers if b is not a) / 4 for a in answers]
        assert scores == pytest.approx(by_hand)


def test_two_of_three_that_agree_beat_the_first_beam_and_ties_keep_its_place() -> None:
    asked = {"a": sample("a"), "b": sample("b"), "c": sample("c")}
    two = [said("a", box_at(0.7), box_at(0.1), box_at(0.11)), said("b", box_at(0.7), box_at(0.1))]
    lone = said("c", box_at(0.5))
    chosen = rerank(asked, [*two, lone], Agreement(), list(Task))
    assert [p.chosen for p in chosen] == [1, 0, 0]
    assert [c.scores["agreement"] for c in chosen[2].candidates] == [1.0]


def test_answers_that_tie_by_symmetry_tie_to_the_last_bit() -> None:
    draw = random.Random(1)
    for _ in range(200):
        pair = [BoxedText(" ".join(draw.choices("abcdefg", k=draw.randrange(1, 9)))) for _ in range(2)]
        (scores,) = Agreement().scores([sample("a", Task.MIA)], [said("a", *pair, *reversed(pair))])
        assert len(set(scores)) == 1


def test_rivals_are_written_and_choose_nothing() -> None:
    found = [said(str(i), *(box_at(x / 10) for x in (0, 5, 1))) for i in range(60)]
    asked = {p.id: sample(p.id) for p in found}
    done = rerank(asked, found, Agreement(), ["VG"], [RandomScorer(3)])
    assert {frozenset(c.scores) for p in done for c in p.candidates} == {frozenset({"agreement", "random"})}
    alone = rerank(asked, found, Agreement(), ["VG"])
    assert [p.chosen for p in done] == [p.chosen for p in alone]
    die = rerank(asked, found, RandomScorer(3), ["VG"], [Agreement()])
    assert len({p.chosen for p in die}) == 3
    assert [[c.scores for c in p.candidates] for p in die] == [[c.scores for c in p.candidates] for p in done]


def test_the_record_alone_tells_the_choice() -> None:
    """Scores that differ below what is written down are a tie, here and for who reads the record later."""

    class Close(Scorer):
        name = "close"

        def scores(self, samples: list[Sample], predictions: list[Prediction]) -> list[list[float]]:
            return [[0.5, 0.5 + 1e-9] for _ in predictions]

    (done,) = rerank({"a": sample("a")}, [said("a", box_at(0.1), box_at(0.5))], Close(), ["VG"])
    assert done.chosen == 0 and done.candidates[0].scores == done.candidates[1].scores


def test_the_stage_needs_no_clip(tmp_path: Path) -> None:
    config = override(RunConfig(), ["select.scorer=agreement", "select.trust=validated"])
    assert "clip" not in {s.name for s in plan(config)}
    inputs = {name: tmp_path / name for name in ("prepare", "answer")}
    for folder in (*inputs.values(), tmp_path / "select"):
        folder.mkdir()
    write_json(inputs["prepare"] / "data.json", {"root": "", "lexicon": Lexicon(("kidney",)).to_json()})
    caption = BoxedText("a small kidney")
    asked = [sample("vg"), sample("mia", Task.MIA, caption)]
    better = said("vg", box_at(0.7), box_at(0.1), box_at(0.11))  # the agreed one is the true one
    worse = said("mia", caption, BoxedText("a large liver"), BoxedText("a large dark liver"))
    for split, name in (("validation", "validation.jsonl"), ("test", "predictions.jsonl")):
        write_lines(inputs["prepare"] / f"{split}.jsonl", (replace(s, split=split).to_json() for s in asked))
        write_lines(inputs["answer"] / name, (p.to_json() for p in (better, worse)))
    recorded: dict[str, object] = {}
    stage = StageContext(tmp_path / "select", inputs, 0, recorded.__setitem__)
    work.select(work.StageInputs(stage, Machine("cpu", 1)), config.select)
    assert recorded["reordered_tasks"] == ["VG"] and "disagreement" not in recorded  # answers of an older version
    assert recorded["no_confidence"] == {"VG": OLDER, "MIA or QA": OLDER}
    found = [Prediction.from_json(r) for r in JsonLines(tmp_path / "select" / "predictions.jsonl").read()]
    assert [p.chosen for p in found] == [1, 0]
    assert all(set(c.scores) == {"agreement", "random"} for p in found for c in p.candidates)
    supports = {"vg": [0.9, 0.5, 0.9], "mia": [0.5, 0.9, 0.9]}
    lines = ({"id": key, "supports": values} for key, values in supports.items())
    write_lines(inputs["answer"] / work.SUPPORTS["validation"], lines)
    work.select(work.StageInputs(stage, Machine("cpu", 1)), config.select)
    one = {"differing": 1, "differing_wrong": 0, "agreeing": 0, "agreeing_wrong": 0}
    assert recorded["disagreement"] == {"VG": one, "MIA": one}  # as chosen: the second of VG, the first of MIA
    fits = {"VG": FittedConfidence(1, 1), "MIA or QA": FittedConfidence(1, 1)}
    assert recorded["confidence"] == {kind: fit._asdict() for kind, fit in fits.items()}  # too few to tell
    assert recorded["no_confidence"] == {kind: fit.explain_absence() for kind, fit in fits.items()}


def test_test_answers_carry_the_confidence_that_is_told_of_them(tmp_path: Path) -> None:
    config = override(RunConfig(), ["select.scorer=first"])
    inputs = {name: tmp_path / name for name in ("prepare", "answer")}
    for folder in (*inputs.values(), tmp_path / "select"):
        folder.mkdir()
    write_json(inputs["prepare"] / "data.json", {"root": "", "lexicon": Lexicon(("kidney",)).to_json()})
    draw, of_test = random.Random(0), {}
    for split, name in (("validation", "validation.jsonl"), ("test", "predictions.jsonl")):
        supports = {f"{split}{n}": draw.random() for n in range(80)}  # what is supported is right, mostly
        right = {key: draw.random() < support for key, support in supports.items()}
        answers = [said(key, box_at(0.1 if right[key] else 0.7)) for key in supports]
        write_lines(inputs["prepare"] / f"{split}.jsonl", (replace(sample(k), split=split).to_json() for k in supports))
        write_lines(inputs["answer"] / name, (p.to_json() for p in answers))
        of_test = {p.id: (p, supports[p.id]) for p in answers}
        lines = ({"id": key, "supports": [support]} for key, support in supports.items())
        write_lines(inputs["answer"] / work.SUPPORTS[split], lines)
    recorded: dict[str, Any] = {}
    stage = StageContext(tmp_path / "select", inputs, 0, recorded.__setitem__)
    work.select(work.StageInputs(stage, Machine("cpu", 1)), config.select)
    found = [Prediction.from_json(r) for r in JsonLines(tmp_path / "select" / "predictions.jsonl").read()]
    fits = read_fits(recorded["confidence"])
    assert fits["VG"].weights and recorded["no_confidence"] == {}
    for p in found:  # as `clinkd ask` tells it
        assert 0 < (p.confidence or 0) < 1
        assert p.confidence == find_confidence(fits, BoxedText("Where?"), *of_test[p.id], "first")
    (inputs["answer"] / work.SUPPORTS["test"]).unlink()  # answers of an older version
    work.select(work.StageInputs(stage, Machine("cpu", 1)), config.select)
    found = [Prediction.from_json(r) for r in JsonLines(tmp_path / "select" / "predictions.jsonl").read()]
    assert {p.confidence for p in found} == {None} and recorded["no_confidence"] == {"VG": OLDER}
