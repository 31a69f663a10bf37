"""The training loop and its objectives: against fp64 autograd, separate rows, and a run that was killed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

from clinkd.config import AnswerConfig, FitConfig, ModelConfig, PhantomConfig, TinyConfig
from clinkd.data import phantoms
from clinkd.data.images import open_image
from clinkd.data.questions import make_bare_pairs
from clinkd.language.facts import Lexicon
from clinkd.model.encode import group_by_images
from clinkd.model.flops import training_operations
from clinkd.model.vision import VisionPretrainer
from clinkd.model.vlm import VisionLanguageModel, load, new_tiny, spell_samples
from clinkd.objectives import CrossEntropy, Distillation, HiddenStateTargets
from clinkd.pipeline.graph import StageContext
from clinkd.pipeline.inputs import StageInputs
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.prepared import DATA
from clinkd.records import BadInput, Box, BoxedText, Candidate, ImageRef, Modality, Sample, Task, Turn
from clinkd.storage import write_json
from clinkd.training import FitRun, LiveTeacher, fit
from clinkd.training.micro_batches import count_threads
from clinkd.training.step import LossModule, TrainStep

TINY = TinyConfig(
    hidden=48, layers=2, heads=2, mlp=64, vision_hidden=32, vision_layers=1, vision_heads=2, vocabulary=400
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    folder = tmp_path_factory.mktemp("phantoms")
    config = PhantomConfig(train_images=24, validation_images=2, test_images=2)
    return folder, [s for s in phantoms.write_phantoms(folder, config, 0) if s.split == "train"]


def fresh(drawn: tuple[Path, list[Sample]], **knobs: object) -> VisionLanguageModel:
    folder, samples = drawn
    config = ModelConfig(tiny=TINY, **knobs)

    def opened(ref: ImageRef) -> Image.Image:
        return open_image(folder, ref)

    return new_tiny(config, spell_samples(samples, config), 0, opened)


def test_a_minimum_of_steps_holds_however_few_the_rows(drawn, tmp_path):
    config = FitConfig(epochs=1, rows=8, min_steps=5)
    assert [config.count_steps(rows) for rows in (1, 24, 40, 41)] == [5, 5, 5, 6]
    fitted = fit(fresh(drawn), drawn[1], CrossEntropy(), config, FitRun(tmp_path, 0, "x"))
    assert (fitted.num_rows, fitted.num_steps) == (24, 5)


def test_kl_of_a_model_with_itself_is_zero_and_the_parts_add_up():
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(7, 8), torch.randn(11, 8), torch.randint(11, (7,))
    ce = CrossEntropy()(hidden, weight, labels)
    same = Distillation(0.5, 2.0)(hidden, weight, labels, HiddenStateTargets(hidden, weight))
    assert same.parts["kl"].abs() < 1e-5
    assert same.sum == pytest.approx((ce.sum / 1.5).item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_equals_the_formula_in_fp64(temperature):
    torch.manual_seed(1)
    hidden, weight = torch.randn(9, 8, requires_grad=True), torch.randn(13, 8, requires_grad=True)
    teacher, head, labels = torch.randn(9, 6), torch.randn(13, 6), torch.randint(13, (9,))
    loss = Distillation(0.5, temperature)(hidden, weight, labels, HiddenStateTargets(teacher, head))
    loss.sum.backward()
    h, w = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    logits = h @ w.T
    p_teacher = (teacher.double() @ head.double().T / temperature).softmax(-1)
    ce = -logits.softmax(-1)[torch.arange(9), labels].log().sum()
    kl = (p_teacher * (p_teacher.log() - (logits / temperature).softmax(-1).log())).sum()
    theirs = (ce + 0.5 * temperature**2 * kl) / 1.5
    theirs.backward()
    assert loss.sum.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert torch.allclose(hidden.grad.double(), h.grad, atol=1e-5) and torch.allclose(
        weight.grad.double(), w.grad, atol=1e-5
    )


def test_unequal_vocabularies_are_refused():
    with pytest.raises(BadInput, match="11 vocabulary entries, the teacher 12"):
        Distillation()(
            torch.randn(2, 4),
            torch.randn(11, 4),
            torch.tensor([0, 1]),
            HiddenStateTargets(torch.randn(2, 4), torch.randn(12, 4)),
        )


SCHEMES = [
    {"positions": "tied", "layout": "halves"},
    {"positions": "mrope", "layout": "sections"},
    {"positions": "gap", "layout": "sections"},
    {"positions": "sequential", "layout": "sections"},
    {"positions": {"kind": "mrope", "spatial_reset": True}, "layout": "interleaved"},
]


@pytest.mark.parametrize("knobs", SCHEMES, ids=str)
def test_shared_prefix_rows_have_the_gradients_of_separate_rows(drawn, knobs):
    model = fresh(drawn, **knobs)
    row = group_by_images(drawn[1])[0]

    def gradients(rows: list[list[Sample]]) -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        batch = model.encode(rows)
        loss = CrossEntropy()(model.hidden_states(batch), model.head.weight_VH, batch.labels_N)
        loss.sum.backward()
        return loss.sum.item(), {n: p.grad.clone() for n, p in model.named_parameters()}

    together, separate = gradients([row]), gradients([[s] for s in row])
    assert len(row) > 2 and together[0] == pytest.approx(separate[0], rel=1e-5)
    for name, gradient in separate[1].items():
        scale = gradient.abs().max().clamp(min=1e-3)
        assert ((together[1][name] - gradient).abs().max() / scale) < 1e-3, name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_run_ends_with_the_bits_of_one_that_was_not(drawn, tmp_path, optimizer, monkeypatch):
    config = FitConfig(epochs=2, rows=8, questions=2, optimizer=optimizer, checkpoint_seconds=0)
    whole = fresh(drawn)
    fit(whole, drawn[1], CrossEntropy(), config, FitRun(tmp_path / "whole", 3, "whole"))

    class Stop(Exception):
        pass

    parts = fresh(drawn)
    saves = []

    def save_then_stop(*arguments: object) -> None:
        real(*arguments)
        saves.append(arguments[1])
        if len(saves) in (2, 4):
            raise Stop

    import sys

    loop = sys.modules["clinkd.training.fit"]
    real = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", save_then_stop)
    for _ in range(2):
        with pytest.raises(Stop):
            fit(parts, drawn[1], CrossEntropy(), config, FitRun(tmp_path / "parts", 3, "parts"))
        parts = fresh(drawn)  # what a new process starts from
    fit(parts, drawn[1], CrossEntropy(), config, FitRun(tmp_path / "parts", 3, "parts"))
    assert saves == [1, 2, 3, 4, 5, 6]
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_damaged_checkpoint_is_set_aside(drawn, tmp_path):
    config = FitConfig(epochs=2, rows=8, checkpoint_seconds=0)
    whole = fresh(drawn)
    fit(whole, drawn[1], CrossEntropy(), config, FitRun(tmp_path, 3, "whole"))
    newest = sorted(tmp_path.glob("step-*"))[-1]
    weights = newest / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    again = fresh(drawn)
    fit(again, drawn[1], CrossEntropy(), config, FitRun(tmp_path, 3, "again"))
    assert (tmp_path / f"damaged-{newest.name}").is_dir()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_split_windows_equal_the_whole_window(drawn, tmp_path):
    def trained(accumulate: int) -> VisionLanguageModel:
        model = fresh(drawn)
        config = FitConfig(epochs=1, rows=8, accumulate=accumulate, warmup=0.3)
        fit(model, drawn[1], CrossEntropy(), config, FitRun(tmp_path / str(accumulate), 0, "x"))
        return model

    for a, b in zip(trained(1).parameters(), trained(4).parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-3)  # Adam divides rounding noise by its own size at the first steps


def test_micro_batches_hold_rows_of_like_length(drawn):
    model = fresh(drawn)
    config = FitConfig(rows=8, accumulate=4)
    loss, accelerator = LossModule(model, CrossEntropy(), None), Accelerator(cpu=True)
    step = TrainStep(loss, config, accelerator, False)
    window = [row[: 1 + k % 4] for k, row in enumerate(group_by_images(drawn[1])[:8])]
    parts = step.deal(window)
    assert [len(p) for p in parts] == [2, 2, 2, 2]
    assert sorted(map(str, (r for p in parts for r in p))) == sorted(map(str, window))
    padded = [
        sum(model.encode(batch).input_ids_BS.numel() for batch in deal)
        for deal in (parts, [window[k::4] for k in range(4)])
    ]
    assert padded[0] <= padded[1] and len({len(r) for r in parts[0]}) == 1
    packed = TrainStep(loss, config.model_copy(update={"pack": 300}), accelerator, False)
    assert packed.deal(window) == [window[k : k + 2] for k in range(0, 8, 2)]


@pytest.mark.parametrize("objective", [CrossEntropy(), Distillation()], ids=["ce", "kd"])
def test_lanes_have_the_gradients_of_one_batch_and_the_same_bits_every_time(drawn, tmp_path, objective):
    threads = torch.get_num_threads()

    def losses(number: int, name: str) -> tuple[list[float], VisionLanguageModel]:
        torch.set_num_threads(number)
        model, tutor = fresh(drawn), LiveTeacher(fresh(drawn))
        assert count_threads(model, 24) == number
        config = FitConfig(epochs=2, rows=24, optimizer="muon", learning_rate=1e-4, muon_learning_rate=1e-3)
        fit(model, drawn[1], objective, config, FitRun(tmp_path / name, 0, "x"), teacher=tutor)
        assert torch.get_num_threads() == number
        found = [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        return found, model

    try:
        one, two, again = losses(1, "one"), losses(2, "two"), losses(2, "again")
    finally:
        torch.set_num_threads(threads)
    assert one[0] == pytest.approx(two[0], abs=1e-4)
    for a, b in zip(one[1].parameters(), two[1].parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-3)
    assert all(torch.equal(a, b) for a, b in zip(two[1].parameters(), again[1].parameters(), strict=True))


def test_a_large_model_or_a_small_window_has_one_lane(drawn):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert count_threads(fresh(drawn), 23) == 1 and count_threads(fresh(drawn), 1000) == 2
        with torch.device("meta"):
            assert count_threads(torch.nn.Linear(5000, 5000), 1000) == 1
        assert count_threads(torch.nn.Linear(5000, 5000), 1000) == 1
    finally:
        torch.set_num_threads(threads)


def grounded(name: str, *boxes: Box) -> Sample:
    ref = ImageRef("x.png", 64, 64)
    turn = Turn(Task.VG, BoxedText(name), BoxedText("[box]" * len(boxes), boxes))
    return Sample(f"x-{name}", (ref,), Modality.CT, (turn,), "x", names=(name,))


def test_the_tower_is_asked_for_what_lies_under_each_image_token(drawn, monkeypatch):
    model = fresh(drawn)
    sight = VisionPretrainer(model, ["kidney", "liver"])
    monkeypatch.setattr(model.images, "pixels", lambda ref: np.zeros((64, 64, 3), np.uint8))
    # 4 x 4 tokens: the liver covers the upper left one and a sliver of the next, the kidney half of the last
    liver, kidney = Box(0.0, 0.0, 0.27, 0.25), Box(0.875, 0.75, 1.0, 1.0)
    row = [grounded("liver", liver), grounded("kidney", kidney)]
    glance = sight.encode([row, row[:1]])
    asked = list(zip(glance.token_N.tolist(), glance.question_N.tolist(), glance.labels_N.tolist(), strict=True))
    found = {(t, q): label - sight.first[q] for t, q, label in asked}
    assert len(found) == len(asked) == 2 * 16 * 3 + 3 * 4 and glance.num_samples == 3
    assert {t: found[t, 0] for t in range(32)} == {t: {0: 1, 15: 0, 16: 1}.get(t, 2) for t in range(32)}
    assert [found[15, q] for q in (1, 2, 3, 4)] == [14, 12, 15, 15]
    assert [found[0, q] for q in (1, 2, 3, 4)] == [0, 0, 4, 4]
    assert (1, 1) not in found and [found[6, q] for q in (5, 6)] == [3, 5]
    assert sight.hidden_states(glance).shape == (len(asked), 48)
    pointed = Turn(Task.ROC, BoxedText("[box]", (liver,)), BoxedText("liver"))  # asked for by its box only
    only = sight.encode([[replace(row[0], turns=(pointed,))]])
    assert only.labels_N.tolist() == sight.encode([row[:1]]).labels_N.tolist()
    with pytest.raises(BadInput, match="nothing can be frozen"):
        sight.freeze(("vision",))
    with pytest.raises(BadInput, match="name no structure"):
        VisionPretrainer(model, [])


def test_the_tower_learns_through_fit_and_stays_the_models_own(drawn, tmp_path):
    model = fresh(drawn)
    where = [s for s in make_bare_pairs(drawn[1]) if s.task is Task.VG]
    sight = VisionPretrainer(model, [s.names[0] for s in where])
    batch = sight.encode(group_by_images(where))

    def loss() -> float:
        with torch.no_grad():
            return (CrossEntropy()(sight(batch), sight.head.weight_VH, batch.labels_N).sum / len(batch.labels_N)).item()

    before, tower = loss(), model.network.model.visual.patch_embed.proj.weight.clone()
    fit(sight, where, CrossEntropy(), FitConfig(epochs=40, rows=8, max_tokens=1), FitRun(tmp_path, 0, "see"))
    assert loss() < before / 2
    assert not torch.equal(tower, model.network.model.visual.patch_embed.proj.weight)


def test_distillation_leaves_the_teacher_alone_and_freezing_holds(drawn, tmp_path):
    teacher, student = fresh(drawn), fresh(drawn)
    before = [p.clone() for p in teacher.parameters()]
    vision = student.network.model.visual.patch_embed.proj.weight.clone()
    config = FitConfig(epochs=1, rows=8, freeze=("vision",))
    fit(student, drawn[1], Distillation(), config, FitRun(tmp_path, 0, "kd"), teacher=LiveTeacher(teacher))
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert torch.equal(vision, student.network.model.visual.patch_embed.proj.weight)
    with pytest.raises(BadInput, match="needs a teacher"):
        fit(student, drawn[1], Distillation(), config, FitRun(tmp_path, 0, "kd"))


TIED = "head and input embeddings are one table in this model, so"


@pytest.mark.parametrize(
    ("parts", "more"),
    [(["head"], "the input embeddings are fixed, too"), (["text", "merger"], "the head is fixed, too"),
     (["text", "head"], None), (["vision"], None)],
)  # fmt: skip
def test_a_head_that_is_the_input_table_is_told_where_one_is_frozen(drawn, tmp_path, capsys, parts, more):
    model, config = fresh(drawn), FitConfig(epochs=0.01, rows=8, freeze=parts)
    table, hidden = model.network.get_input_embeddings().weight.clone(), model.blocks[-1].mlp.up_proj.weight.clone()
    write_json(tmp_path / DATA, {"root": "", "lexicon": Lexicon(()).to_json()})
    context = StageContext(tmp_path, {"prepare": tmp_path}, 0, lambda key, value: None)
    StageInputs(context, Machine("cpu", 1)).fit(model, drawn[1], config, "teacher")
    said = capsys.readouterr().err
    assert (f"teacher: freeze={parts}: {TIED} {more}\n" in said) if more else (TIED not in said)
    assert torch.equal(table, model.network.get_input_embeddings().weight) == bool({"text", "head"} & {*parts})
    assert torch.equal(hidden, model.blocks[-1].mlp.up_proj.weight) == ("text" in parts)
    model.network.lm_head.weight = torch.nn.Parameter(table.clone())
    assert model.explain_freeze(parts) is None


def test_a_training_in_which_nothing_would_learn_is_refused(drawn, tmp_path):
    config = FitConfig(epochs=1, rows=8, freeze=("vision", "merger", "text"))  # the head is one table with the text
    with pytest.raises(BadInput, match=r"freeze=\['vision', 'merger', 'text'\]: nothing of this model would learn"):
        fit(fresh(drawn), drawn[1], CrossEntropy(), config, FitRun(tmp_path, 0, "plain"))


def test_a_model_saves_and_loads_exactly(drawn, tmp_path):
    model = fresh(drawn)
    model.save(tmp_path)
    back = load(tmp_path, model.images.open_image)
    batch = model.encode(group_by_images(drawn[1])[:2])
    with torch.no_grad():
        assert torch.equal(model.hidden_states(batch), back.hidden_states(batch))
    shutil.rmtree(tmp_path)
    with pytest.raises(BadInput, match=r"no config\.json"):
        load(tmp_path, model.images.open_image)


def test_the_log_tells_speed_and_memory(drawn, tmp_path):
    model = fresh(drawn)
    fit(model, drawn[1], CrossEntropy(), FitConfig(epochs=1, rows=4), FitRun(tmp_path, 0, "x"))
    first = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert first["tokens_per_second"] == pytest.approx(first["tokens"] / first["seconds"], rel=0.2)
    assert 50 < first["peak_memory_mb"] < 1e5
    assert 0 < first["mfu"] < 1


@pytest.mark.parametrize("objective", [CrossEntropy(), Distillation()], ids=["ce", "kd"])
def test_a_network_whose_operations_are_not_known_trains_without_mfu(drawn, tmp_path, objective, capfd):
    model, teacher = fresh(drawn), LiveTeacher(fresh(drawn))
    (model if isinstance(objective, CrossEntropy) else teacher.model).network.model.visual.config.model_type = "other"
    config = FitConfig(epochs=1, rows=4)
    fit(model, drawn[1], objective, config, FitRun(tmp_path, 0, "x"), teacher=teacher)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and all("mfu" not in line and line["tokens_per_second"] > 0 for line in lines)
    assert "answer_tokens_per_s" in (shown := capfd.readouterr().err) and "mfu" not in shown


def test_a_speed_above_the_peak_is_not_shown(drawn, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("clinkd.training.log.peak_flops", lambda *_: 1.0)
    fit(fresh(drawn), drawn[1], CrossEntropy(), FitConfig(epochs=1, rows=4), FitRun(tmp_path, 0, "x"))
    assert "loss" in (text := (tmp_path / "log.jsonl").read_text()) and "mfu" not in text
    assert "mfu" not in capfd.readouterr().err


def test_a_peak_that_cannot_be_measured_stops_nothing(drawn, tmp_path, monkeypatch):
    def full(*_: object) -> float:
        raise torch.OutOfMemoryError("no room for a matrix")

    monkeypatch.setattr("clinkd.training.log.peak_flops", full)
    fit(fresh(drawn), drawn[1], CrossEntropy(), FitConfig(epochs=1, rows=4), FitRun(tmp_path, 0, "x"))
    assert "loss" in (text := (tmp_path / "log.jsonl").read_text()) and "mfu" not in text


def test_a_tracker_of_accelerate_gets_the_figures(drawn, tmp_path, monkeypatch):
    told: list[tuple[str, object]] = []

    class Notes(GeneralTracker):
        name = "notes"
        requires_logging_directory = False

        def __init__(self, run_name: str, **_: object) -> None:
            super().__init__()
            told.append(("begun", run_name))

        @property
        def tracker(self) -> Notes:
            return self

        def store_init_configuration(self, values: dict[str, str]) -> None:
            told.append(("knobs", values))

        def log(self, values: dict[str, float], step: int | None = None, **_: object) -> None:
            told.append(("figures", (step, values)))

        def finish(self) -> None:
            told.append(("ended", None))

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "notes", Notes)
    config = FitConfig(epochs=2, rows=4)
    fit(fresh(drawn), drawn[1], CrossEntropy(), config, FitRun(tmp_path, 7, "x", trackers=["notes"]))
    assert [what for what, _ in told[:2]] == ["begun", "knobs"] and told[-1] == ("ended", None)
    knobs, figures = told[1][1], [value for what, value in told if what == "figures"]
    assert knobs["seed"] == "7" and knobs["rows"] == "4"
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [step for step, _ in figures] == [line["step"] for line in lines]
    assert figures[-1][1]["loss"] == pytest.approx(lines[-1]["loss"], abs=1e-5)


def test_a_board_that_cannot_write_does_not_stop_a_training(drawn, tmp_path, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    fit(fresh(drawn), drawn[1], CrossEntropy(), FitConfig(epochs=1, rows=4), FitRun(tmp_path, 0, "x"))
    told = [line for line in capsys.readouterr().err.splitlines() if "TensorBoard" in line]
    assert len(told) == 1 and "log.jsonl has the figures" in told[0]
    assert (tmp_path / "log.jsonl").read_text().count("step") > 1


@pytest.mark.parametrize(
    ("spoilt", "told"),
    [
        ("weight", "weight network.*norm.weight holds NaN or infinite numbers before the first step"),
        ("pixels", "at step 1; the pixels of an image hold NaN or infinite numbers, among samples [^ ]"),
        ("teacher", "at step 1; the teacher's targets are not finite; train it anew"),
        ("forward", "at step 1; weights and inputs are finite and no step was taken, so it is not the learning rate"),
        ("later", "at step 2; lower fit.learning_rate"),
    ],
)
def test_a_loss_that_is_not_finite_is_explained(drawn, tmp_path, monkeypatch, spoilt, told):
    model, teacher = fresh(drawn), None
    if spoilt == "weight":
        model.network.model.language_model.norm.weight.data[3] = float("nan")
    if spoilt == "pixels":
        patches = model.images.patches
        monkeypatch.setattr(model.images, "patches", lambda refs: (patches(refs)[0] * float("inf"), patches(refs)[1]))
    if spoilt == "teacher":
        teacher = LiveTeacher(fresh(drawn))
        teacher.model.network.lm_head.weight.data[:] = float("inf")
    if spoilt in ("forward", "later"):
        hidden, update, steps = model.hidden_states, TrainStep.update, []
        bad = 1 if spoilt == "forward" else 2
        monkeypatch.setattr(TrainStep, "update", lambda *given: steps.append(0) or update(*given))
        monkeypatch.setattr(model, "hidden_states", lambda *given: hidden(*given) * (len(steps) < bad or float("nan")))
    objective = Distillation() if teacher else CrossEntropy()
    with pytest.raises(BadInput, match=told):
        fit(model, drawn[1][:8], objective, FitConfig(epochs=3, rows=4), FitRun(tmp_path, 0, "x"), teacher)


def test_a_teacher_counts_what_it_does(drawn):
    model, teacher = fresh(drawn), LiveTeacher(fresh(drawn))
    batch = model.encode(group_by_images(drawn[1])[:2])
    parts = {name: part.forward for name, part in teacher.model.operations(batch).items()}
    assert teacher.operations(batch, vision=True) == sum(parts.values())
    assert teacher.operations(batch, vision=False) == parts["text"] + parts["head"]
    assert training_operations(model.operations(batch)) > 2.5 * sum(parts.values())


def test_two_windows_of_one_image_are_two_rows_and_two_pictures(drawn):
    samples = drawn[1]
    shown = {"lung": 40, "bone": 200}

    def opened(ref: ImageRef) -> Image.Image:
        return Image.new("RGB", (64, 64), (shown[ref.window or "lung"],) * 3)

    config = ModelConfig(tiny=TINY)
    model = new_tiny(config, spell_samples(samples, config), 0, opened)
    pair = [replace(samples[0], id=w, images=(replace(samples[0].images[0], window=w),)) for w in shown]
    rows = group_by_images(pair)
    assert [[s.id for s in row] for row in rows] == [["lung"], ["bone"]]
    halves = model.encode(rows).pixels_TD.chunk(2)
    assert not torch.equal(*halves)


@pytest.mark.parametrize("knobs", SCHEMES, ids=str)
def test_packed_rows_do_not_see_each_other(drawn, knobs):
    model = fresh(drawn, square=False, **knobs)
    rows = [row[: 1 + k % 3] for k, row in enumerate(group_by_images(drawn[1])[:7])]
    model.images.limit_tokens(rows[2][0].images[0], 9)  # images of several sizes
    model.images.limit_tokens(rows[4][0].images[0], 4)

    def learned(line_tokens: int) -> tuple[torch.Tensor, list[torch.Tensor], tuple[int, ...]]:
        model.line_tokens = line_tokens
        model.zero_grad()
        batch = model.encode(rows)
        hidden = model.hidden_states(batch)
        loss = CrossEntropy()(hidden, model.head.weight_VH, batch.labels_N)
        loss.sum.backward()
        assert [i for i, _ in batch.spans] == [s.id for row in rows for s in row]
        gradients = [p.grad.clone() for p in model.parameters()]
        return torch.cat([hidden.detach(), batch.labels_N[:, None]], 1), gradients, tuple(batch.input_ids_BS.shape)

    alone, packed = learned(0), learned(200)
    assert alone[2][0] == 7 and packed[2][0] < 5 and packed[2][1] <= 200
    assert torch.allclose(packed[0], alone[0], atol=2e-5)
    for ours, theirs in zip(packed[1], alone[1], strict=True):
        assert (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-3) < 1e-3
    assert learned(1)[2][0] == 7  # a row longer than a line has one for itself


def test_one_vision_pass_serves_teacher_and_student(drawn, monkeypatch):
    student, teacher = fresh(drawn), LiveTeacher(fresh(drawn))
    with torch.no_grad():
        for p in teacher.model.network.model.language_model.parameters():
            p.add_(0.01)
    batch = student.encode(group_by_images(drawn[1])[:4])
    objective, passes = Distillation(), []
    towers = [m.network.model.visual for m in (student, teacher.model)]
    for tower in towers:
        tower.register_forward_hook(lambda *_: passes.append(1))

    def step() -> tuple[float, list[torch.Tensor]]:
        student.zero_grad()
        loss = LossModule(student, objective, teacher)(batch)
        loss.sum.backward()
        return loss.sum.item(), [p.grad.clone() for p in student.parameters() if p.requires_grad]

    student.network.model.language_model.requires_grad_(True)
    assert not teacher.shares_vision_with(student)  # a tower that learns is not shared
    student.freeze(["vision", "merger"])
    assert teacher.shares_vision_with(student)
    one = step()
    assert len(passes) == 1
    monkeypatch.setattr(LiveTeacher, "shares_vision_with", lambda *_: False)
    two = step()
    assert len(passes) == 1 + 2 and one[0] == two[0]
    assert all(torch.equal(a, b) for a, b in zip(one[1], two[1], strict=True))
    monkeypatch.undo()
    with torch.no_grad():
        next(iter(towers[1].parameters())).add_(1)
    assert not teacher.shares_vision_with(student)


def test_candidates_stand_best_first_where_beams_say_the_same(drawn, monkeypatch):
    model = fresh(drawn)
    beams = iter([Candidate(said, BoxedText(said), p) for said, p in (("left", -1.0), ("right", -2.0), ("left", -3.0))])
    monkeypatch.setattr(model, "_read", lambda *_: next(beams))
    [found] = model.generate(drawn[1][:1], AnswerConfig(beams=3, candidates=3, max_new_tokens=2))
    assert [(c.raw, c.logprob) for c in found] == [("left", -1.0), ("right", -2.0)]
