"""A base in four bits (`model.quantize=nf4`): it equals the stock class in four bits, and LoRA stays beside it."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.test_families_stock import SHAPE, make_twin
from tests.test_model_memory import LORA, SAMPLES, additions_of, count_bytes, losses, picture
from torch import Tensor
from transformers import BitsAndBytesConfig

from clinkd.cli import main
from clinkd.config import AnswerConfig, FitConfig, LoraConfig, ModelConfig, RunConfig
from clinkd.experiments import laptop
from clinkd.model.encode import encode_prompts, group_by_images
from clinkd.model.families import FAMILIES, Family
from clinkd.model.families.qwen2_vl import QWEN2_VL
from clinkd.model.quantized import count_numbers, is_quantized
from clinkd.model.vlm import VisionLanguageModel, load, load_foreign
from clinkd.objectives import CrossEntropy, Distillation
from clinkd.pipeline import models
from clinkd.pipeline.damage import MODEL, POINTER, point_to
from clinkd.pipeline.graph import stage_record
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.stages import plan
from clinkd.records import BadInput
from clinkd.settings import change_knobs, override
from clinkd.storage import write_json
from clinkd.training import FitRun, LiveTeacher, fit
from clinkd.workflows.counted import NF4, count_teacher, fixed_bytes, list_trainings, read_weights
from clinkd.workflows.gpus import GpuCount, Gpus, _list_changes

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="the extra bitsandbytes is not installed"
)
TEXT = LoraConfig(rank=4, alpha=6)
ONCE = FitConfig(rows=2, lora=TEXT, learning_rate=1e-2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    make_twin(QWEN2_VL, folder)
    return folder


def knobs(family: Family, folder: Path, **more: Any) -> ModelConfig:
    own = {"positions": "native", "layout": family.layout, "boxes": family.boxes, "square": False}
    return ModelConfig.model_validate({"base": folder, "quantize": "nf4", **own, **more})


def opened(base: Path, **more: Any) -> VisionLanguageModel:
    model = load(base, picture, knobs(QWEN2_VL, base, **more)).eval()
    model.additions = {}
    return model


@torch.no_grad()
def hidden(model: VisionLanguageModel) -> Tensor:
    return model.hidden_states(model.encode(group_by_images(SAMPLES)))


# ---- loading ---------------------------------------------------------------------------------------------------------


@needs_bitsandbytes
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_logits_are_those_of_the_stock_class_in_four_bits(family: Family, tmp_path: Path) -> None:
    make_twin(family, tmp_path)
    model = load(tmp_path, picture, knobs(family, tmp_path)).eval()
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=["lm_head", *family.vision_modules],
    )  # fmt: skip
    stock = family.stock_class.from_pretrained(tmp_path, quantization_config=settings, dtype=torch.float32).eval()
    whole = family.stock_class.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for module in stock.modules():
        module.support_avx512bf16_for_cpu = False  # that kernel multiplies in bfloat16
    prompt = encode_prompts(SAMPLES[:1], model.text, model.images)
    ids_BS, mask_BS = prompt.whole()
    image_BS = ids_BS == model.text.image_token
    pixels_TD, grids_I3 = model.images.patches(SAMPLES[0].images)
    given = {"input_ids": ids_BS, "attention_mask": mask_BS, **family.pixel_inputs(image_BS, pixels_TD, grids_I3)}
    with torch.no_grad():
        ours, theirs, exact = (n(**given).logits for n in (model.network, stock, whole))
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(exact, theirs, atol=1e-2)
    names = {n for n, p in model.network.named_parameters() if is_quantized(p)}
    assert len(names) == 7 * SHAPE.layers and all("language_model.layers" in n for n in names)
    numbers = dict(whole.named_parameters())
    assert all(count_numbers(p) == numbers[n].numel() for n, p in model.network.named_parameters() if n in numbers)
    batch = model.encode(group_by_images(SAMPLES))
    counts = [m.operations(batch) for m in (model, load(tmp_path, picture, knobs(family, tmp_path, quantize="none")))]
    assert len({tuple((part, o.forward) for part, o in (count or {}).items()) for count in counts}) == 1


@needs_bitsandbytes
def test_a_base_in_four_bits_takes_the_bytes_that_are_counted(tmp_path: Path) -> None:
    make_twin(QWEN2_VL, tmp_path, change_knobs(SHAPE, hidden=256, mlp=256))
    for dtype in ("float32", "bf16"):
        model = opened(tmp_path, dtype=dtype)
        text = [p for p in model.network.parameters() if is_quantized(p)]
        states: list[Any] = [p.quant_state for p in text]  # type: ignore[attr-defined]
        scales = count_bytes(t for s in states for t in (s.absmax, s.state2.absmax))
        assert scales + count_bytes(text) == pytest.approx(NF4 * sum(map(count_numbers, text)), rel=1e-6)
        held = scales + count_bytes(model.parameters())
        shapes = read_weights(tmp_path)
        numbers = sum(map(count_numbers, model.parameters()))
        assert held == pytest.approx(fixed_bytes(shapes, knobs(QWEN2_VL, tmp_path, dtype=dtype)) * numbers, rel=1e-3)
        rest = {p.dtype for p in model.parameters() if not is_quantized(p)}
        assert rest == {torch.bfloat16 if dtype == "bf16" else torch.float32}
        (answers,) = model.generate(SAMPLES[:1], AnswerConfig(max_new_tokens=3))
        assert all(a.logprob is not None and a.logprob < 0 for a in answers)


@needs_bitsandbytes
def test_a_number_that_is_not_finite_is_found_though_four_bits_hide_it(base: Path, tmp_path: Path) -> None:
    make_twin(QWEN2_VL, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(n for n in weights if n.endswith("layers.1.mlp.up_proj.weight"))
    weights[name][3, 5] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"model\.safetensors: tensor .*up_proj\.weight holds NaN"):
        opened(tmp_path)


# ---- learning --------------------------------------------------------------------------------------------------------


def train(model: VisionLanguageModel, folder: Path, config: FitConfig = ONCE, **more: Any) -> None:
    fit(model, SAMPLES, Distillation(), config, FitRun(folder, 0, "x"), **more)


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_a_step_changes_additions_alone_and_they_stay_beside(base: Path, tmp_path: Path, dtype: Any) -> None:
    model = opened(base, dtype=dtype)
    teacher = LiveTeacher(model.with_additions(additions_of(model, TEXT)))
    before, plain = {n: p.clone() for n, p in model.named_parameters()}, hidden(model)
    config = change_knobs(ONCE, precision=dtype, recompute="blocks")
    train(model, tmp_path, config, teacher=teacher)
    after = {n.replace(".base_layer", ""): p for n, p in model.named_parameters()}
    assert all(torch.equal(after.pop(n), p) for n, p in before.items())
    assert after and all(".beside." in n and p.dtype == torch.float32 and not p.requires_grad for n, p in after.items())
    assert model.additions and {len(down_RH) for down_RH, _ in model.additions.values()} == {TEXT.rank}
    assert not torch.allclose(hidden(model).float(), plain.float(), atol=1e-3)


@needs_bitsandbytes
def test_what_is_saved_answers_exactly_as_what_was_trained_and_learns_on(base: Path, tmp_path: Path) -> None:
    pointer = {**point_to(base), "model": knobs(QWEN2_VL, base).model_dump(mode="json")}
    stages = [tmp_path / name for name in ("base", "distill", "reflect-1")]
    write_json(stages[0] / POINTER, pointer)
    for number, (previous, stage) in enumerate(itertools.pairwise(stages), 1):
        model = models.load_model(previous, picture).eval()
        teacher = LiveTeacher(model.with_additions(additions_of(model, TEXT))) if number == 1 else None
        objective = Distillation() if teacher else CrossEntropy()
        fit(model, SAMPLES, objective, ONCE, FitRun(stage, number, "x"), teacher=teacher)
        models.save_model(model, stage)
        assert {p.name for p in (stage / MODEL).iterdir()} == {"additions.safetensors"}
        again = models.load_model(stage, picture).eval()
        assert torch.equal(hidden(again), hidden(model))
        assert {len(down_RH) for down_RH, _ in (again.additions or {}).values()} == {number * TEXT.rank}
        assert again.generate(SAMPLES, AnswerConfig(max_new_tokens=4)) == model.generate(
            SAMPLES, AnswerConfig(max_new_tokens=4)
        )
    plain = models.load_model(stages[2], picture, torch.float32).eval()
    assert not plain.is_quantized and {p.dtype for p in plain.parameters()} == {torch.float32}
    assert torch.allclose(hidden(plain), hidden(model), atol=1e-4)
    plain.save(tmp_path / "plain", stock=True)
    assert torch.equal(hidden(load(tmp_path / "plain", picture, knobs(QWEN2_VL, base, quantize="none"))), hidden(plain))


@needs_bitsandbytes
def test_an_addition_beside_another_starts_at_nothing(base: Path) -> None:
    model = opened(base)
    model.put_additions(additions_of(model, TEXT))
    before = hidden(model)
    model.adapt(TEXT, 0)
    assert torch.equal(hidden(model), before)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * 7 * SHAPE.layers and all(".default." in n for n in learning)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_B.default" in n:
                p.normal_(std=0.05)
    both = hidden(model)
    model.merge()
    assert not torch.allclose(both, before, atol=1e-2) and torch.allclose(hidden(model), both, atol=1e-4)


@needs_bitsandbytes
def test_teacher_and_student_hold_one_copy(base: Path) -> None:
    student, apart = opened(base), opened(base)
    additions = additions_of(student, TEXT)
    teacher = student.with_additions(additions)
    own = count_bytes(t for pair in additions.values() for t in pair)
    alone = count_bytes(student.parameters())
    assert count_bytes([*student.parameters(), *teacher.parameters()]) == alone + own
    student.adapt(TEXT, 0)
    learned = count_bytes(p for p in student.parameters() if p.requires_grad)
    loaded = opened(base)  # as a round of reflection has it
    loaded.put_additions(additions)
    loaded.share_fixed_weights(student)
    assert count_bytes([*student.parameters(), *loaded.parameters()]) == alone + own + learned
    apart.adapt(TEXT, 0)
    (one, gradients), (other, wanted) = losses(student, teacher), losses(apart, loaded)
    assert torch.allclose(one, other, rtol=1e-6) and gradients.keys() == wanted.keys()
    assert all(torch.allclose(g, wanted[n], rtol=1e-4, atol=1e-7) for n, g in gradients.items())


# ---- a run -----------------------------------------------------------------------------------------------------------

RUN = [
    "data.phantoms.train_images=6", "data.phantoms.validation_images=2", "data.phantoms.test_images=2",
    'data.phantoms.tasks=["VG"]', "data.workers=1", "model.positions=native", "model.layout=sections",
    "model.boxes=qwen2-vl", "model.square=false", "model.max_image_tokens=16", "model.quantize=nf4",
    "distill.teacher_as=live", "reflect.rounds=1", "reflect.review_share=0.2", "reflect.recheck=0",
    "reflect.objective=distill", "select.scorer=first", "answer.max_new_tokens=4", "evaluate.shuffled=false",
    "evaluate.replicates=20", "threads=1",
    *(f"{kind}.fit.{knob}" for kind in ("teacher", "distill", "reflect")
      for knob in ("lora={rank: 2}", "optimizer=adamw", "min_steps=3", "epochs=0.1", "learning_rate=0.02")),
]  # fmt: skip


@needs_bitsandbytes
def test_a_run_keeps_additions_alone_and_its_export_is_their_sum(
    one_meteor: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "twin"
    make_twin(QWEN2_VL, folder, change_knobs(SHAPE, patch=14, image_pixels=56))
    words = [word for knob in (f"model.base={folder}", *RUN) for word in ("--set", knob)]
    place = ["--runs", str(tmp_path / "runs")]
    assert main(["run", "demo", *place, "--name", "four", *words]) == 0
    stages = tmp_path / "runs" / "four" / "stages"
    for name in ("teacher", "distill", "reflect-1"):
        assert [p.name for p in (stages / name / MODEL).iterdir()] == ["additions.safetensors"]
    parameters = stage_record(stages / "base")["recorded"]["parameters"]
    assert parameters == sum(
        p.numel() for p in load(folder, picture, knobs(QWEN2_VL, folder, quantize="none")).parameters()
    )
    image = next((tmp_path / "runs" / "four" / "examples").glob("example-*.png"))
    assert main(["ask", *place, "--run", "four", str(image), "Where is the liver in the image?"]) == 0
    assert main(["runs", "verify", *place, "four"]) == 0
    capsys.readouterr()
    out = tmp_path / "out"
    assert main(["export", *place, "--run", "four", "--adapter", str(out)]) == 0
    checks = json.loads((out / "export.json").read_text())
    assert (
        checks["kept"] == "nf4" and checks["adapter"]["rank"] == 4 and checks["written"]["largest_difference"] <= 1e-5
    )
    assert checks["adapter"]["largest_difference"] <= 1e-4 < checks["adapter"]["against_model"]["largest_difference"]
    assert "(model.quantize=nf4), not on the whole one: of its answers" in (out / "README.md").read_text()
    ours, theirs = models.load_model(stages / "reflect-1", picture).eval(), load_foreign(out, picture).eval()
    assert torch.allclose(hidden(ours), hidden(theirs), atol=1e-3)


# ---- counting --------------------------------------------------------------------------------------------------------


def test_four_bits_are_counted_and_proposed(base: Path) -> None:
    plain = override(laptop(base=base), ["distill.teacher_as=live", "reflect=null"])
    four = override(plain, ["model.quantize=nf4"])
    shapes = read_weights(base)
    sizes = [sum(math.prod(w.shape) for w in shapes if w.is_text_matrix is few) for few in (False, True)]
    assert 0.515 < NF4 < 0.516
    counted = GpuCount(four)
    answers = counted._count_answers(four)
    assert answers.parts["weights"] == pytest.approx(4 * sizes[0] + NF4 * sizes[1])
    (_, fit_knobs), *_ = list_trainings(four)
    parts = [c._count_training(c.config, "distill", fit_knobs, Gpus(1, 80.0)).parts for c in (GpuCount(plain), counted)]
    assert parts[0]["weights"] - parts[1]["weights"] == pytest.approx((4 - NF4) * sizes[1])
    assert parts[0] | {"weights": 0} == parts[1] | {"weights": 0}
    assert count_teacher(override(four, ["distill.on_policy=0.5"]), "distill", counted.bases[base].parts) == 0
    assert ["model.quantize=nf4"] in list(_list_changes(plain, Gpus(1, 1.0)))
    assert ["model.quantize=nf4"] not in list(_list_changes(four, Gpus(1, 1.0)))


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_had_with_four_bits_is_refused_in_a_line(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, four = laptop(base=base), "model.quantize=nf4"
    for settings, line in {
        ("distill.fit.lora=null",): r"cannot learn, and distill\.fit .* set distill\.fit\.lora=\{\}, or model\.quant",
        ("reflect.fit.lora.parts=[text, head]",): r"set reflect\.fit\.lora\.parts=\[text\], or model\.quantize=none",
        ("shard=true",): r"shard=true: weights in 4 bits are not shared out; set model\.quantize=none, or shard=false",
    }.items():
        with pytest.raises(BadInput, match=line):
            override(run, [four, *settings])
    with pytest.raises(BadInput, match=r"model\.quantize=nf4: a tiny model is float32; give model\.base"):
        plan(override(RunConfig(), [four, *(f"{kind}.fit.lora={{}}" for kind in ("teacher", "distill", "reflect"))]))
    (tmp_path / "adapter_config.json").write_text(
        f'{{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "{base}"}}'
    )
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(BadInput, match=r"model\.quantize=nf4: model\.base is an adapter; merge it first"):
        plan(override(run, [four, f"model.base={tmp_path}"]))
    assert [s.key for s in plan(run)] != [s.key for s in plan(override(run, [four]))]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = r"model\.quantize=nf4: bitsandbytes is not installed; pip install 'clinkd\[bitsandbytes\]', or set none"
    with pytest.raises(BadInput, match=missing):
        Machine.demand(override(run, [four]))
    with pytest.raises(BadInput, match=missing):
        opened(base)
    assert LORA.parts != ("text",)
