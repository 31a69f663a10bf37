"""Distillation where few truths are known: hidden truths, crop views, averaged weights, own answers, smoothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clinkd.config import AnswerConfig, DistillConfig, FitConfig, ModelConfig, PhantomConfig, TeacherConfig, TinyConfig
from clinkd.data import phantoms
from clinkd.data.images import open_image
from clinkd.data.questions import MARGINS, show_boxes_only
from clinkd.data.split import sample_share
from clinkd.experiments import CLAIMS, demo, small
from clinkd.experiments.arms.distillation import POOL
from clinkd.experiments.rows import compute, trained_share
from clinkd.model.encode import group_by_images
from clinkd.model.vlm import VisionLanguageModel, load, new_tiny, spell_samples
from clinkd.objectives import NO_LABEL, CrossEntropy, Distillation, HiddenStateTargets, SmoothedCrossEntropy
from clinkd.pipeline import distilling, steps
from clinkd.pipeline.graph import StageContext
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.stages import plan
from clinkd.records import BadInput, Box, BoxedText, Candidate, Prediction, Sample
from clinkd.settings import change_knobs, override
from clinkd.storage import write_json, write_lines
from clinkd.training import (
    AveragedTeacher,
    FitRun,
    LiveTeacher,
    StoredTeacher,
    fit,
    identify_store,
    store_teacher,
)
from clinkd.training.checkpoint import checkpoints
from clinkd.training.step import LossModule
from clinkd.training.teachers import WeightAverage
from clinkd.workflows import ablate
from processes import run_together

TINY = TinyConfig(
    hidden=32, layers=1, heads=2, mlp=48, vision_hidden=32, vision_layers=1, vision_heads=2, vocabulary=400
)
ONCE = FitConfig(epochs=1, rows=4, questions=1)


class Bench:
    """Phantoms as a `prepare` stage leaves them, and two models of random weights, saved as base and teacher."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.prepared = folder, folder / "prepare"
        config = PhantomConfig(train_images=8, validation_images=1, test_images=1, structures=1, tasks=("VG", "ROC"))
        drawn = phantoms.write_phantoms(self.prepared, config, 0)
        self.samples = [s for s in drawn if s.split == "train"]
        self.open_image = partial(open_image, self.prepared)
        self.write(self.prepared, self.samples)
        write_json(self.prepared / steps.DATA, {"root": str(self.prepared), "lexicon": phantoms.LEXICON.to_json()})
        for name, seed in (("base", 0), ("teacher", 1)):
            self.model(seed).save(folder / name / steps.MODEL)

    def write(self, prepared: Path, samples: list[Sample]) -> None:
        write_lines(prepared / "train.jsonl", (s.to_json() for s in samples))

    def model(self, seed: int = 0, tiny: TinyConfig = TINY) -> VisionLanguageModel:
        config = ModelConfig(tiny=tiny)
        return new_tiny(config, spell_samples(self.samples, config), seed, self.open_image)

    def work(self, folder: Path, **inputs: Path) -> steps.StageInputs:
        """What a stage in `folder` works with; `inputs` in the place of the usual stages."""
        folder.mkdir(parents=True)
        names = {"prepare": self.prepared, "base": self.folder / "base", "teacher": self.folder / "teacher", **inputs}
        self.recorded: dict[str, Any] = {}
        context = StageContext(folder, names, 0, self.recorded.__setitem__)
        return steps.StageInputs(context, Machine("cpu", 1))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("distillation"))


def weights(model: VisionLanguageModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# ---- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_smoothing_is_that_of_torch_and_tokens_without_a_label_do_not_count(smoothing: float) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 8, requires_grad=True), torch.randn(13, 8, requires_grad=True)
    labels = torch.randint(13, (9,))
    labels[[2, 5]] = NO_LABEL
    loss = SmoothedCrossEntropy(smoothing, chunk=4)(hidden, weight, labels)
    ours = [loss.sum.detach(), *torch.autograd.grad(loss.sum, [hidden, weight])]
    exact = F.cross_entropy(
        hidden.double() @ weight.double().T, labels, ignore_index=NO_LABEL, label_smoothing=smoothing, reduction="sum"
    )
    for mine, theirs in zip(ours, [exact.detach(), *torch.autograd.grad(exact, [hidden, weight])], strict=True):
        assert torch.allclose(mine.double(), theirs.double(), atol=2e-5)
    assert loss.parts["ce"].item() == pytest.approx(exact.item(), rel=1e-5)


def test_a_token_without_a_label_has_the_kl_alone() -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(2, 8, requires_grad=True), torch.randn(13, 8)
    goal = HiddenStateTargets(torch.randn(2, 6), torch.randn(13, 6))
    loss = Distillation(0.5, 2.0)(hidden, weight, torch.tensor([NO_LABEL, NO_LABEL]), goal)
    alone = Distillation(float("inf"), 2.0)(hidden, weight, torch.tensor([3, 4]), goal)
    assert loss.parts["ce"] == 0 and loss.sum.item() == pytest.approx(alone.sum.item() * 0.5 / 1.5, rel=1e-5)
    (ours,), (theirs,) = (torch.autograd.grad(part.sum, [hidden]) for part in (loss, alone))
    assert torch.allclose(ours, theirs / 3, atol=1e-6)


def test_only_the_answers_that_are_labels_have_a_cross_entropy(bench: Bench) -> None:
    model, teacher = bench.model(), LiveTeacher(bench.model(1))
    batch = model.encode(group_by_images(bench.samples)[:3])
    own = {name for name, _ in batch.spans[::2]}
    parts = LossModule(model, Distillation(), teacher, unlabelled=own)(batch).parts
    labelled = [s for row in group_by_images(bench.samples)[:3] for s in row if s.id not in own]
    alone = model.encode(group_by_images(labelled))
    ce = CrossEntropy()(model.hidden_states(alone), model.head.weight_VH, alone.labels_N).parts["ce"]
    assert parts["ce"].item() == pytest.approx(ce.item(), rel=1e-4)
    assert parts["kl"] == LossModule(model, Distillation(), teacher)(batch).parts["kl"]


# ---- averaged weights -----------------------------------------------------------------------------------------------


def test_averaged_weights_are_those_by_hand_also_after_a_stop(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decay, config = 0.9, change_knobs(ONCE, checkpoint_seconds=0.0)
    walked: list[dict[str, Tensor]] = []

    def train() -> tuple[VisionLanguageModel, AveragedTeacher]:
        student, teacher = bench.model(), AveragedTeacher(bench.model(), decay)
        real = WeightAverage.step

        def watched(self: WeightAverage, closure: None = None) -> None:
            walked.append(weights(student))
            real(self, closure)

        with monkeypatch.context() as patch:
            patch.setattr(WeightAverage, "step", watched)
            fit(student, bench.samples, Distillation(), config, FitRun(tmp_path, 0, "x"), teacher)
        return student, teacher

    student, teacher = train()
    expected = weights(bench.model())
    for after in walked:
        expected = {n: decay * mean + (1 - decay) * after[n] for n, mean in expected.items()}
    average = weights(teacher.model)
    assert len(walked) == 2 and not same(average, weights(student))
    assert all(torch.allclose(average[n], expected[n], atol=1e-6) for n in expected)
    shutil.rmtree(checkpoints(tmp_path)[-1])
    again, goes_on = train()  # from the checkpoint of the step before
    assert len(walked) == 3 and same(weights(again), weights(student)) and same(weights(goes_on.model), average)


# ---- hidden truths --------------------------------------------------------------------------------------------------


def scramble(samples: list[Sample], share: float) -> list[Sample]:
    """The samples with other answers, of other lengths, where the truth is hidden."""
    known = {s.id for s in sample_share(samples, share, 0)}
    lies = [
        s.answered(BoxedText("[box] no such thing [box]", (Box(0, 0, 1, 1), Box(0, 0, 0.1, 0.1))), "") for s in samples
    ]
    return [s if s.id in known else lie for s, lie in zip(samples, lies, strict=True)]


def tell_truths(_: object, samples: list[Sample], *__: object, file: Path, **___: object) -> list[Prediction]:
    """In the place of a teacher: it answers with the truth that it can see, else with a word."""
    told = [s.answer if s.answer.text else BoxedText("nothing there") for s in samples]
    predictions = [Prediction(s.id, (Candidate(a.text, a),)) for s, a in zip(samples, told, strict=True)]
    write_lines(file, (p.to_json() for p in predictions))
    return predictions


@pytest.mark.parametrize("targets", [pytest.param("truth", marks=pytest.mark.slow), "pseudo"])
def test_hidden_truths_do_not_reach_the_student(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: Any
) -> None:
    monkeypatch.setattr("clinkd.pipeline.inputs.answer_samples", tell_truths)
    config = DistillConfig(labelled=0.34, targets=targets, fit=ONCE)
    teacher, ended = TeacherConfig(share=0.34), []
    known = len(sample_share(bench.samples, 0.34, 0))
    for name, samples in {"truths": bench.samples, "lies": scramble(bench.samples, 0.34)}.items():
        prepared = tmp_path / name / "prepare"
        prepared.mkdir(parents=True)
        shutil.copy(bench.prepared / steps.DATA, prepared)
        bench.write(prepared, samples)
        inputs = {"prepare": prepared}
        if targets == "pseudo":
            work = bench.work(tmp_path / name / "pseudo", **inputs)
            steps.pseudo(work, config, AnswerConfig(), teacher)
            inputs["pseudo"] = work.folder
        steps.distill(bench.work(tmp_path / name / "distill", **inputs), config, teacher)
        ended.append(weights(load(tmp_path / name / "distill" / steps.MODEL, bench.open_image)))
        assert bench.recorded["questions"] == known < len(bench.samples)
        images = known if targets == "truth" else len(bench.samples)
        assert bench.recorded["fit-distill"]["rows"] == images / len(bench.samples) * 8
    assert same(*ended)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["distill.labelled=0.1"], r"labelled=0.1 hides truths, but teacher.share=0.5 .* set teacher.share=0.1"),
        (["teacher.share=0.1", "distill.labelled=0.1", "reflect={}"], "reflection reads every truth: set reflect=null"),
        (["teacher=null", "distill={kd_weight: 0, labelled: 0.1}", "model.tiny.pretrain={}"], "the base learns from"),
        (["teacher.share=0.1", "distill.labelled=0.1", "select.scorer=clip"], "the tiny CLIP learns from every truth"),
        (
            ["teacher.share=0.1", "distill.labelled=0.1", "select.scorer=clip", "select.clip.eyes=true"],
            "the crop classifier learns from every truth: set select.scorer=first",
        ),
        (["distill.labelled=0.1", "distill.targets=mixed"], "mixed keeps truths that `labelled` hides"),
        (["distill.labelled=1"], "distill.labelled: 1 given, a number > 0 and < 1 or null wanted"),
        (["distill.smoothing=0.1"], "set kd_weight=0"),
        (["distill.on_policy=0.5", "distill.teacher_as=states"], "set teacher_as=live"),
        (["distill.on_policy=0.5", "distill.kd_weight=0"], "set kd_weight above 0"),
        (["distill.teacher_as=average", "distill.fit.lora={}"], "set fit.lora=null"),
        (["distill.teacher_as=average", "shard=true"], "an averaged teacher needs whole weights"),
        (["teacher.view=crop"], r"set distill.teacher_as=states \(or draws\)"),
        (["teacher.view=crop", "distill.targets=pseudo"], "shows the true boxes.* set distill.targets=truth"),
        (["teacher.size={}", "model.base=/x", "model.positions=native"], "teacher.size is of an embedded base"),
    ],
)  # fmt: skip
def test_knobs_that_would_read_hidden_truths_or_cannot_be_are_refused(given: list[str], says: str) -> None:
    base = override(small(), ["teacher.share=0.5", "model.tiny.pretrain.general={}"])
    with pytest.raises(BadInput, match=says):
        override(base, given)


# ---- teachers of another view or size -------------------------------------------------------------------------------


def test_a_crop_view_is_grey_outside_of_its_boxes_and_margins(bench: Bench) -> None:
    grounding, classifying = (next(s for s in bench.samples if s.task == task) for task in ("VG", "ROC"))
    for sample in (grounding, classifying):
        cropped = show_boxes_only(sample, seed=0)
        (shown,) = cropped.images[0].shown
        (box,) = (*sample.question.boxes, *sample.answer.boxes)
        assert (cropped.question, cropped.answer, cropped.id) == (sample.question, sample.answer, sample.id)
        for near, far, side in (
            (box.x1, shown.x1, box.width), (box.y1, shown.y1, box.height),
            (shown.x2, box.x2, box.width), (shown.y2, box.y2, box.height),
        ):  # fmt: skip
            assert MARGINS[0] - 1e-9 <= (near - far) / side <= MARGINS[1] or far == 0 or near == 1
        whole, part = (np.asarray(bench.open_image(s.images[0])) for s in (sample, cropped))
        height, width = whole.shape[:2]
        inside = np.zeros((height, width), dtype=bool)
        inside[
            int(shown.y1 * height) : int(np.ceil(shown.y2 * height)),
            int(shown.x1 * width) : int(np.ceil(shown.x2 * width)),
        ] = True
        assert whole.shape == part.shape and not inside.all()
        assert (part[inside] == whole[inside]).all() and (part[~inside] == 128).all()
    assert show_boxes_only(grounding, 0) == show_boxes_only(grounding, 0) != show_boxes_only(grounding, 1)
    blind = replace(grounding, turns=(replace(grounding.turns[-1], answer=BoxedText("no")),))
    assert show_boxes_only(blind, 0) == blind
    assert type(grounding).from_json(show_boxes_only(grounding, 0).to_json()).images[0].shown


def test_a_crop_teachers_targets_stand_at_the_students_tokens(bench: Bench, tmp_path: Path) -> None:
    teacher, student = bench.model(1).eval(), bench.model()
    samples = [s for s in bench.samples if s.task == "VG"][:3]
    cropped = [show_boxes_only(s, 0) for s in samples]
    identity = identify_store(
        "states", cropped, bench.folder / "teacher" / steps.MODEL, student, temperature=2.0, draws=1, seed=0
    )
    store_teacher(tmp_path / "store", teacher, cropped, identity, title="store", rows_a_pass=2)
    batch = student.encode([[s] for s in samples])
    targets = StoredTeacher(tmp_path / "store", identity).targets(batch)
    with torch.no_grad():
        seen = teacher.hidden_states(teacher.encode([[s] for s in cropped]))
        whole = teacher.hidden_states(batch)
    assert torch.allclose(targets.hidden_NG, seen, atol=1e-5) and not torch.allclose(seen, whole, atol=1e-3)


def test_a_larger_teacher_has_a_base_of_its_own() -> None:
    size = ["teacher.size={hidden: 64, heads: 4}"]
    ours, theirs = ({s.name: s for s in plan(override(small(), more))} for more in ([], size))
    assert ours["base"].identity == theirs["base"].identity and ours["teacher"].identity != theirs["teacher"].identity
    assert [need.name for need in theirs["teacher"].needs] == ["prepare", "base-teacher"]


@pytest.mark.slow
def test_a_larger_teacher_has_the_students_vocabulary(bench: Bench, tmp_path: Path) -> None:
    base = bench.work(tmp_path / "base-teacher")
    steps.base(base, ModelConfig(tiny=change_knobs(TINY, hidden=64, heads=4)))
    taught = bench.work(tmp_path / "teacher", **{"base-teacher": base.folder})
    steps.teacher(taught, TeacherConfig(fit=ONCE), "base-teacher")
    student = bench.work(tmp_path / "distill", teacher=taught.folder)
    steps.distill(student, DistillConfig(fit=ONCE), TeacherConfig())
    assert bench.recorded["fit-distill"]["steps"] == 2
    models = [load(folder / steps.MODEL, bench.open_image) for folder in (taught.folder, student.folder)]
    assert [m.head.weight_VH.shape[1] for m in models] == [64, 32]


# ---- the student's own answers --------------------------------------------------------------------------------------


def test_each_phase_trains_on_answers_drawn_from_the_student_as_it_is(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DistillConfig(on_policy=0.5, phases=2, fit=change_knobs(ONCE, epochs=2))
    work, seen = bench.work(tmp_path / "distill"), []
    real: Callable[..., None] = steps.StageInputs.fit

    def watched(self: steps.StageInputs, model: Any, samples: list[Sample], *rest: Any, **named: Any) -> None:
        seen.append((weights(model), {s.id for s in samples}, named["unlabelled"], named["schedule_part"]))
        real(self, model, samples, *rest, **named)

    monkeypatch.setattr(steps.StageInputs, "fit", watched)
    monkeypatch.setattr(distilling, "OWN_ANSWERS", change_knobs(distilling.OWN_ANSWERS, max_new_tokens=3))
    steps.distill(work, config, TeacherConfig())
    half = round(len(bench.samples) / 2)
    for phase, (_, ids, unlabelled, part) in enumerate(seen):
        own = steps.read_predictions(work.folder, f"own-{phase + 1}.jsonl")
        assert unlabelled == {f"{p.id}+own" for p in own} and len(own) == half and part == (phase, 2)
        assert unlabelled < ids and ids - unlabelled == {s.id for s in bench.samples} - {p.id for p in own}
    assert seen[0][2] != seen[1][2]
    assert same(seen[0][0], weights(bench.model())) and not same(seen[0][0], seen[1][0])
    assert [bench.recorded[f"fit-distill-{k}"]["steps"] for k in (1, 2)] == [2, 2]


def distill_in_phases(out: Path, bench: Path, shard: bool) -> None:
    """One process of those that distill the student of a `Bench` in two phases, tower and merger frozen."""
    torch.set_num_threads(1)
    distilling.OWN_ANSWERS = AnswerConfig(method="sampling", candidates=1, max_new_tokens=3)
    out.mkdir(exist_ok=True)
    stages = {name: bench / name for name in ("prepare", "base", "teacher")}
    work = steps.StageInputs(StageContext(out, stages, 0, lambda *_: None), Machine("cpu", 1, shard))
    fixed = change_knobs(ONCE, epochs=2, freeze=("vision", "merger"))
    steps.distill(work, DistillConfig(on_policy=0.5, phases=2, fit=fixed), TeacherConfig())


def test_weights_that_are_shared_out_go_through_phases_as_whole_ones(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distilling, "OWN_ANSWERS", distilling.OWN_ANSWERS)
    one, two, log = tmp_path / "one", tmp_path / "two", tmp_path / "log.txt"
    assert run_together(log, distill_in_phases, two, bench.folder, True) == [0, 0], log.read_text()[-3000:]
    distill_in_phases(one, bench.folder, False)
    found, wanted = (weights(load(folder / steps.MODEL, bench.open_image)) for folder in (two, one))
    moved = max((wanted[n] - p).abs().max() for n, p in weights(bench.model()).items())
    assert moved > 1e-4 and {p.name for p in two.iterdir()} == {p.name for p in one.iterdir()}
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0.05 * float(moved))


# ---- the arms -------------------------------------------------------------------------------------------------------


def test_forward_passes_are_those_by_hand() -> None:
    teacher = 3 * 0.5 * 2
    run = override(small(), ["teacher.share=0.5", "teacher.fit.epochs=2", "distill.fit.epochs=10"])
    assert compute(run) == teacher + 40
    assert compute(override(run, ["distill.teacher_as=states"])) == teacher + 30 + 1
    assert compute(override(run, ["distill.targets=pseudo", "distill.kd_weight=0"])) == teacher + 30 + 0.5
    assert compute(override(run, ["distill.on_policy=0.25"])) == teacher + 40 + 4 * 0.25
    assert compute(override(run, ["reflect={rounds: 2, review_share: 0.5}"])) == teacher + 40 + 2 * (3 + 0.5)


def test_finished_runs_are_charged_for_answers_and_for_larger_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, work = {"steps": 5, "samples": 40}, {"units": 20, "seconds": 1.0}
    recorded = {
        "base": {"parameters": 10}, "base-teacher": {"parameters": 30}, "teacher": {"fit-teacher": fit},
        "pseudo": {"answers": work}, "distill": {"fit-distill-1": fit, "fit-distill-2": fit, "own_answers_1": work},
        "reflect-1": {"answers": work, "rechecks": work, "fit-reflect": fit}, "answer": {"answers": work},
    }  # fmt: skip
    monkeypatch.setattr(ablate, "read_split", lambda folder, split: [None] * 20)
    monkeypatch.setattr(ablate, "stage_record", lambda folder: {"recorded": recorded[folder]})
    run: Any = SimpleNamespace(
        stage=lambda name: name, config=override(demo(), ["distill.targets=pseudo"]),
        status=lambda: [SimpleNamespace(name=name, folder=name) for name in recorded],
    )  # fmt: skip
    teacher, pseudo, distilled, own, reflected = 3 * 3 * 2, 3, 2 * (3 + 3) * 2, 1, 3 * 2 + 1
    assert ablate._count_work(run) == (15, teacher + pseudo + distilled + own + reflected)


def test_pseudo_labels_of_the_base_are_of_the_questions_new_to_the_teacher() -> None:
    base = override(small(), ["distill.targets=pseudo", "distill.pseudo_from=base"])
    made = [{s.name: s.identity for s in plan(override(base, [f"teacher.share={n}"]))} for n in (0.1, 0.2)]
    assert made[0]["base"] == made[1]["base"] and made[0]["pseudo"] != made[1]["pseudo"]
    same = override(base, ["teacher.share=0.1", "distill.temperature=4"])
    assert {s.name: s.identity for s in plan(same)}["pseudo"] == made[0]["pseudo"]


def test_arms_take_equal_steps_and_say_where_not() -> None:
    rows = {name: row.make(small()) for name, row in CLAIMS["distillation"].rows.items()}
    for name, run in rows.items():
        assert run.distill and run.reflect is None and run.model.tiny.pretrain and run.model.tiny.pretrain.general
        passes = run.distill.fit.epochs * trained_share(run.distill)
        assert name == "long-11" or passes == pytest.approx(8 / POOL, rel=1e-3)
    assert compute(rows["long-11"]) == pytest.approx(compute(rows["kd-11"]), rel=1e-3)
    stages = {name: {s.name: s.identity for s in plan(run)} for name, run in rows.items()}
    assert len({s["general"] for s in stages.values()}) == len({s["base"] for s in stages.values()}) == 1
    assert stages["kd-11"]["pseudo"] == stages["kd-hard"]["pseudo"] == stages["kd-policy"]["pseudo"]
