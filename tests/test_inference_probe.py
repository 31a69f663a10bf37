"""The frozen-feature probe: what it reads from features alone, and that it is never taken for an image-blind row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clinkd import pipeline
from clinkd.clip import crops
from clinkd.config import EvaluateConfig
from clinkd.experiments import EXPERIMENTS
from clinkd.inference.probe import GRID, Cells, answer_by_probe, find_likeliest_box, look_at
from clinkd.language.facts import Lexicon
from clinkd.model.eyes import CHANNELS, EyesNetwork
from clinkd.model.eyes import network as eyes_network
from clinkd.pipeline import graph, plan, steps
from clinkd.pipeline.graph import StageContext
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.pooling import collect_baselines, pool_answers
from clinkd.pipeline.prepared import DATA, PREDICTIONS, read_predictions
from clinkd.pipeline.runs import score_table
from clinkd.records import (
    BOX_MARK,
    BadInput,
    Box,
    BoxedText,
    Candidate,
    ImageRef,
    Modality,
    Prediction,
    Sample,
    Task,
    Turn,
)
from clinkd.records import SPLITS as SPLIT_NAMES
from clinkd.reporting.strict import StrictResults
from clinkd.reporting.tables import ScoreIndex, describe_scores
from clinkd.scoring.blind.baselines import CONSTANT
from clinkd.scoring.measure import Rules
from clinkd.scoring.score import PROBE, score_predictions
from clinkd.settings import override
from clinkd.storage import write_json, write_lines

NAMES = ("liver", "kidney")


def place(n: int) -> Box:
    left, top = np.random.default_rng(n).integers(0, 9, 2).tolist()
    return Box(left / GRID, top / GRID, (left + 5) / GRID, (top + 6) / GRID)


def look(image: ImageRef) -> Cells:
    """Channel 0 is bright in the box, 1 or 2 tells the name there; the rest is noise."""
    n, box = int(image.path), place(int(image.path))
    cells = np.random.default_rng([1, n]).normal(0, 0.2, (GRID, GRID, 6))
    rows, columns = (slice(round(a * GRID), round(b * GRID)) for a, b in ((box.y1, box.y2), (box.x1, box.x2)))
    cells[rows, columns, [0]] += 1
    cells[rows, columns, 1 + n % 2] += 1
    return cells.reshape(GRID * GRID, 6).astype(np.float16)


def ask(task: Task, n: int) -> Sample:
    name, box = NAMES[n % 2], place(n)
    turns = {
        Task.VG: Turn(task, BoxedText(f"Where is the {name}?"), BoxedText(BOX_MARK, (box,))),
        Task.ROC: Turn(task, BoxedText(f"What is {BOX_MARK}?", (box,)), BoxedText(name)),
        Task.QA: Turn(task, BoxedText("Is there a kidney?"), BoxedText("yes" if n % 2 else "no"), closed=True),
        Task.RC: Turn(task, BoxedText(f"Describe {BOX_MARK}.", (box,)), BoxedText(f"a {name}")),
    }
    return Sample(f"{task}-{n}", (ImageRef(str(n)),), Modality.CT, (turns[task],), str(n), names=(name,))


SPLITS = [
    [ask(t, n) for n in range(*ends) for t in (Task.VG, Task.ROC, Task.QA, Task.RC)]
    for ends in ((0, 30), (30, 36), (36, 46))
]


@pytest.fixture(scope="module")
def answers() -> dict[str, Prediction]:
    return {p.id: p for p in answer_by_probe(*SPLITS, look)}


def test_names_boxes_and_closed_answers_are_read_from_features(answers: dict[str, Prediction]) -> None:
    asked = {s.id: s for s in SPLITS[2] if s.task is not Task.RC}
    assert answers.keys() == asked.keys()  # no caption: that takes a language model
    right = {
        t: [answers[i].answer.answer == s.answer for i, s in asked.items() if s.task is t] for t in (Task.ROC, Task.QA)
    }
    assert all(np.mean(r) > 0.9 for r in right.values())
    for sample in (s for s in asked.values() if s.task is Task.VG):
        (found,) = answers[sample.id].answer.answer.boxes
        np.testing.assert_allclose(found.corners, sample.answer.boxes[0].corners, atol=1.01 / GRID)


def test_the_truth_of_a_test_question_has_no_part(answers: dict[str, Prediction]) -> None:
    blank = [s.answered(BoxedText("?"), "") for s in SPLITS[2]]
    assert {p.id: p for p in answer_by_probe(SPLITS[0], SPLITS[1], blank, look)} == answers


def test_without_validation_or_of_an_unknown_modality_it_still_answers() -> None:
    other = Sample("new", (ImageRef("3"),), Modality.MR, ask(Task.VG, 3).turns, "3")
    (said,) = answer_by_probe([ask(Task.VG, 0)], [], [other], look)
    assert said.answer.answer.boxes == (Box(0, 0, 1, 1),)
    (said,) = answer_by_probe([ask(Task.ROC, 0)], [], [ask(Task.ROC, 1)], look)
    assert said.answer.answer == BoxedText("liver")  # all that it knows


def test_the_likeliest_box_is_the_best_of_all_by_expected_overlap() -> None:
    inside = np.zeros((GRID, GRID))
    inside[4:9, 3:12] = 1
    assert find_likeliest_box(inside.ravel()).corners == (3 / GRID, 4 / GRID, 12 / GRID, 9 / GRID)
    assert find_likeliest_box(np.full(GRID * GRID, 0.3)) == Box(0, 0, 1, 1)


def test_a_picture_becomes_cells() -> None:
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, 48:] = 200
    cells = look_at(EyesNetwork.from_wheel(), Image.fromarray(picture)).reshape(GRID, GRID, -1)
    assert cells.shape[-1] == sum(CHANNELS) and cells.dtype == np.float16
    assert np.abs(cells[8, 2] - cells[8, 13]).mean() > 3 * np.abs(cells[5, 2] - cells[10, 2]).mean()


def test_it_stands_beside_the_model_and_is_never_blind(answers: dict[str, Prediction]) -> None:
    test = [s for s in SPLITS[2] if s.task in (Task.VG, Task.ROC)]
    model = [
        Prediction(s.id, (Candidate("", BoxedText("liver") if s.task is Task.ROC else BoxedText("")),)) for s in test
    ]
    rows = {CONSTANT: [m for m in model if m.id.startswith("ROC")], PROBE: [answers[s.id] for s in test]}
    scored = score_predictions(test, model, rows, Lexicon(NAMES, (), (), ()), EvaluateConfig(replicates=50))
    strict = StrictResults.of(scored, model, rows, Lexicon(NAMES, (), (), ()), choices=False)
    index = ScoreIndex(strict.scores)
    assert index.baselines() == (CONSTANT,) and index.best_baseline(Task.VG, "F1") is None
    table = {row[0]: row for row in strict.tables[0].rows}
    assert table["Frozen-feature probe"][1] == "100.0" and table["  Model above it"][1].startswith("-100")
    described = describe_scores(strict.scores, {}, strict.gains)
    probe = described["probe"]["ROC"][described["ROC"]["metric"]]
    assert probe["score"] > 90 and probe["interval"] and probe["answers"] == 10
    assert probe["model_above"] < 0 and probe["model_above_interval"][1] < 0
    (note,) = (n for n in score_table(described, "").notes if n.startswith("VG: the frozen-feature probe"))
    assert "has 100.0; the model minus that is -100.0" in note
    assert PROBE not in described["ROC"]["blind_by"] and PROBE not in str(described["selection"])


def test_the_stage_is_there_where_it_is_asked_for_and_changes_no_other() -> None:
    plain, probed = (
        {s.name: s for s in plan(override(EXPERIMENTS["demo"](), [f"evaluate.probe={on}"]))} for on in ("false", "true")
    )
    assert probed.keys() - plain.keys() == {"probe"}
    assert {n for n in plain if plain[n].identity != probed[n].identity} == {"score"}
    default = {s.name: s.identity for s in plan(EXPERIMENTS["demo"]())}
    assert default == {n: s.identity for n, s in plain.items()}


def test_folds_pool_its_answers_and_the_best_baseline_is_chosen_without_it(tmp_path: Path) -> None:
    folds = []
    for n in (1, 2):
        splits = [[ask(Task.ROC, k + 100 * n) for k in range(*ends)] for ends in ((0, 6), (6, 8), (8, 10))]
        folds.append({name: f"{name}-{n}" for name in ("prepare", "select", "probe")})
        prepare, *answered = (tmp_path / folder for folder in folds[-1].values())
        for folder in (prepare, *answered):
            folder.mkdir()
        write_json(prepare / DATA, {"root": "", "lexicon": Lexicon(NAMES, (), (), ()).to_json()})
        for split, samples in zip(SPLIT_NAMES, splits, strict=True):
            write_lines(prepare / f"{split}.jsonl", (s.to_json() for s in samples))
        said = [Prediction(s.id, (Candidate("", s.answer),), by=PROBE).to_json() for s in splits[2]]
        for folder in answered:
            write_lines(folder / PREDICTIONS, said)
        write_json(answered[0] / "stage.json", {"recorded": {}})
    pooled = tmp_path / "pooled"
    pooled.mkdir()
    pool_answers(StageContext(pooled, {}, 0, lambda *_: None), folds)
    rows, choice = collect_baselines({"select": pooled}, {}, Rules(0.5, Lexicon(NAMES, (), (), ())))
    assert [p.id for p in rows[PROBE]] == ["ROC-108", "ROC-109", "ROC-208", "ROC-209"]
    assert choice.trials and PROBE not in {t.baseline for t in choice.trials}


def test_the_stage_answers_the_test_split_from_the_files_of_its_run(tmp_path: Path) -> None:
    prepare, out = tmp_path / "prepare", tmp_path / "probe"
    prepare.mkdir()
    out.mkdir()
    write_json(prepare / DATA, {"root": "", "lexicon": Lexicon(NAMES, (), (), ()).to_json()})
    for n, split in enumerate(SPLIT_NAMES):
        Image.fromarray(np.full((32, 32, 3), 40 * n, np.uint8)).save(prepare / f"{n}.png")
        asked = replace(ask(Task.ROC, 0), id=split, images=(ImageRef(f"{n}.png"),))
        write_lines(prepare / f"{split}.jsonl", [asked.to_json()])
    recorded: dict[str, dict[str, float]] = {}
    context = StageContext(out, {"prepare": prepare}, 0, recorded.__setitem__)
    steps.probe(steps.StageInputs(context, Machine.of(override(EXPERIMENTS["demo"](), ["device=cpu"]))))
    (said,) = read_predictions(out)
    assert (said.id, said.by, said.answer.answer.text) == ("test", PROBE, "liver")
    assert recorded["images"]["units"] == len(SPLIT_NAMES)


@pytest.mark.parametrize(
    ("knob", "settings"),
    [
        ("model.tiny.eyes", ["model.vision_features=cached", "model.tiny.pretrain.vision=null"]),
        ("evaluate.probe", []),
        ("select.clip.eyes", ["select.scorer=clip"]),
    ],
)
def test_a_missing_package_is_told_before_any_work_and_only_to_who_needs_it(
    knob: str, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: object) -> None:
        raise InterruptedError  # the work begins

    for module in (eyes_network, crops):
        monkeypatch.setattr(module, "is_installed", lambda: False)
    monkeypatch.setattr(pipeline, "begin_run", begin)
    tuned = ["teacher=null", "distill=null"]
    config = override(EXPERIMENTS["small"](), [*tuned, *settings, f"{knob}=true"])
    with pytest.raises(BadInput, match=rf"{knob}=true: .*clinkd\[eyes\].*set {knob}=false"):
        pipeline.run(config, tmp_path)
    for stage in plan(config):  # carried here from another machine
        (tmp_path / graph.CACHE / stage.key).mkdir(parents=True)
    with pytest.raises(InterruptedError):
        pipeline.run(config, tmp_path)
