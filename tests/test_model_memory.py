"""Weights take no more bytes than they must: fixed ones in bfloat16, one copy of what teacher and student share, and no
tower where its features are on the disk."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.test_families_stock import make_twin
from torch import Tensor, nn

from clinkd.config import AnswerConfig, FitConfig, LoraConfig, ModelConfig, TinyConfig
from clinkd.experiments import demo, laptop
from clinkd.model.additions import read_additions, write_additions
from clinkd.model.encode import group_by_images
from clinkd.model.families import FAMILIES, Family, native_knobs
from clinkd.model.vlm import VisionLanguageModel, load, new_tiny
from clinkd.objectives import Distillation
from clinkd.pipeline.stages import plan
from clinkd.records import BadInput, BoxedText, ImageRef, Modality, Sample, Task, Turn
from clinkd.settings import change_knobs, override
from clinkd.storage import sha256_file
from clinkd.training import AveragedTeacher, FitRun, LiveTeacher, fit
from clinkd.training.feature_cache import FeatureCache, cache_features
from clinkd.training.step import LossModule

TINY = TinyConfig(
    hidden=48, layers=2, heads=2, mlp=64, vision_hidden=32, vision_layers=2, vision_heads=2, vocabulary=300
)
LORA = LoraConfig(rank=4, alpha=6, parts=("text", "vision"))  # a scale that is no power of two
KNOBS: dict[str, Any] = {"positions": "native", "layout": "sections", "boxes": "digits"}
SAMPLES = [
    Sample(
        str(k), (ImageRef(f"{k}.png", 64, 64),), Modality.CT,
        (Turn(Task.QA, BoxedText("Where is the liver?"), BoxedText("It is " + "here " * (k + 1))),), str(k),
    )
    for k in range(4)
]  # fmt: skip


def picture(ref: ImageRef) -> Image.Image:
    return Image.new("RGB", (64, 64), (40 * int(ref.path[0]), 90, 200))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock folder of bfloat16 weights, head and input table in one."""
    folder = tmp_path_factory.mktemp("stock") / "base"
    model = new_tiny(ModelConfig(tiny=TINY, **KNOBS), ["Where is the liver? It is here"] * 2, 0, picture)
    model.network.to(torch.bfloat16)
    model.save(folder, stock=True)
    return folder


def opened(base: Path, dtype: str = "bf16") -> VisionLanguageModel:
    return load(base, picture, ModelConfig.model_validate({"base": base, "dtype": dtype, **KNOBS})).eval()


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, those that share their memory once."""
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


def file_bytes(base: Path) -> int:
    return sum(t.nbytes for t in load_file(base / "model.safetensors").values())


def additions_of(model: VisionLanguageModel, config: LoraConfig, seed: int = 3) -> dict[str, tuple[Tensor, Tensor]]:
    """Random additions to what LoRA adds to."""
    torch.manual_seed(seed)
    prefixes = tuple(name for part in config.parts for name in model.family.parts[part])
    modules = model.network.named_modules()
    shapes = {
        n: (m.out_features, m.in_features) for n, m in modules if isinstance(m, nn.Linear) and n.startswith(prefixes)
    }
    return {n: (torch.randn(config.rank, h) * 0.1, torch.randn(v, config.rank) * 0.1) for n, (v, h) in shapes.items()}


def merged(model: VisionLanguageModel, additions: dict[str, tuple[Tensor, Tensor]]) -> VisionLanguageModel:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, (down_RH, up_VR) in additions.items():
            twin.network.get_submodule(name).weight += up_VR @ down_RH
    return twin


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_a_base_in_bf16_takes_the_bytes_of_its_file_and_its_frequencies_stay_exact(base):
    half, whole = opened(base), opened(base, "float32")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert count_bytes(half.parameters()) == file_bytes(base) == count_bytes(whole.parameters()) / 2
    assert half.network.lm_head.weight is half.network.get_input_embeddings().weight
    exact = dict(whole.network.named_buffers())
    assert exact and all(
        torch.equal(b, exact[n]) and b.dtype == exact[n].dtype for n, b in half.network.named_buffers()
    )
    for name, weight in half.named_parameters():
        assert torch.equal(weight.float(), dict(whole.named_parameters())[name])
    (answers,) = half.generate(SAMPLES[:1], AnswerConfig(max_new_tokens=3))
    assert len(answers) == 3 and all(a.logprob is not None and a.logprob < 0 for a in answers)


def test_a_change_of_loaded_weights_never_reaches_the_file(base):
    before, model = sha256_file(base / "model.safetensors"), opened(base)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    assert sha256_file(base / "model.safetensors") == before


def test_weights_that_are_not_finite_missing_or_left_over_are_refused_in_bf16_too(base, tmp_path):
    weights = load_file(base / "model.safetensors")
    name = next(n for n in weights if n.endswith("down_proj.weight"))

    def spoilt(changed: dict[str, Tensor]) -> Path:
        for path in base.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
        return tmp_path

    broken = weights[name].clone()
    broken[0, 0] = float("nan")
    for changed, told in (
        (weights | {name: broken}, rf"{name} holds NaN"),
        ({n: t for n, t in weights.items() if n != name}, "missing keys"),
        (weights | {"more": broken.clone().zero_()}, "unexpected keys"),
    ):
        with pytest.raises(BadInput, match=told):
            opened(spoilt(changed))


def test_only_a_pretrained_base_whose_products_are_bf16_is_bf16():
    with pytest.raises(BadInput, match="a tiny model is float32; give model.base"):
        bf16 = [f"{name}.precision=bf16" for name in demo().fits()]
        plan(override(demo(), ["model.dtype=bf16", *bf16]))
    with pytest.raises(BadInput, match=r"teacher.fit.precision=float32 needs weights in float32; set teacher.fit"):
        override(laptop(base=Path("x")), ["model.dtype=bf16"])
    kinds = ("teacher", "distill", "reflect")
    done = override(laptop(base=Path("x")), ["model.dtype=bf16", *(f"{k}.fit.precision=bf16" for k in kinds)])
    assert done.model.dtype == "bf16"


# ---- training --------------------------------------------------------------------------------------------------------


def test_lora_trains_float32_beside_fixed_bf16_and_is_merged_in_float32(base, tmp_path):
    model, plain = opened(base), dict(opened(base).network.named_parameters())
    config = FitConfig(rows=2, epochs=2, lora=LORA, precision="bf16", learning_rate=1e-2)
    with model.prepared_for(config, 0):
        kinds = {(p.requires_grad, p.dtype) for p in model.parameters()}
        assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
        fixed = [p for p in model.parameters() if not p.requires_grad]
        assert count_bytes(fixed) == file_bytes(base)
    model = opened(base)
    model.additions = {}
    fit(model, SAMPLES, Distillation(), config, FitRun(tmp_path, 0, "x"), LiveTeacher(opened(base)))
    assert model.additions and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    changed = 0
    for name, weight in model.network.named_parameters():
        before = plain[name]
        if pair := model.additions.get(name.removesuffix(".weight")):
            exact = before.float() + pair[1] @ pair[0]
            changed += not torch.equal(before, weight)
            assert torch.allclose(weight.float(), exact, rtol=2**-8, atol=1e-6)  # half of the last bit, and rounding
        else:
            assert torch.equal(weight, before)
    assert changed
    model.save(tmp_path / "saved")
    write_additions(model.additions, tmp_path / "saved")
    again, kept = load(tmp_path / "saved", picture), read_additions(tmp_path / "saved")
    assert kept and all(
        torch.equal(a, b) for n, pair in kept.items() for a, b in zip(pair, model.additions[n], strict=True)
    )
    assert all(
        torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(again.parameters(), model.parameters(), strict=True)
    )


def test_parts_that_learn_are_float32_as_long_as_they_do(base, tmp_path):
    model, before = opened(base), dict(opened(base).named_parameters())
    config = FitConfig(rows=2, freeze=("vision", "merger"), precision="bf16", learning_rate=1e-2)
    teacher = AveragedTeacher(opened(base), 0.5)
    with model.prepared_for(config, 0):
        for name, p in model.named_parameters():
            assert p.dtype == (torch.bfloat16 if "visual" in name else torch.float32)
    fit(model, SAMPLES, Distillation(), config, FitRun(tmp_path, 0, "x"), teacher)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {torch.equal(p, before[n]) for n, p in model.named_parameters() if "visual" in n} == {True}
    assert not torch.equal(model.head.weight_VH, before["network.model.language_model.embed_tokens.weight"])
    fixed = [p for n, p in model.named_parameters() if "visual" in n]
    both = count_bytes([*model.visual.parameters(), *teacher.model.visual.parameters()])
    assert both == count_bytes(fixed)  # the average has no tower of its own
    means = {n: p.dtype for n, p in teacher.model.named_parameters() if "visual" not in n}
    assert {*means.values()} == {torch.float32}


# ---- teacher and student ---------------------------------------------------------------------------------------------


def losses(model: VisionLanguageModel, teacher: VisionLanguageModel) -> tuple[Tensor, dict[str, Tensor]]:
    loss = LossModule(model, Distillation(), LiveTeacher(teacher))
    total = loss(model.encode(group_by_images(SAMPLES))).sum
    total.backward()
    return total.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [("text",), ("text", "vision", "merger", "head")])
def test_a_teacher_of_lora_is_additions_on_the_weights_of_its_student(base, parts):
    lora = change_knobs(LORA, parts=parts)
    student, other = opened(base, "float32"), opened(base, "float32")
    for model in (student, other):
        if "head" in parts:  # a head of its own
            model.network.lm_head.weight = nn.Parameter(model.network.lm_head.weight.detach() * 1.5)
            model.network.config.tie_word_embeddings = False
    additions = additions_of(student, lora)
    teacher = student.with_additions(additions)
    own = count_bytes(t for pair in additions.values() for t in pair)
    alone = count_bytes(student.parameters())
    head = student.head.weight_VH.nbytes if "head" in parts else 0
    head_additions = sum(t.nbytes for t in additions.get("lm_head", ()))
    assert count_bytes([*student.parameters(), *teacher.parameters()]) == alone + own + head - head_additions
    copied = merged(other, additions)
    for model in (student, other):
        model.adapt(lora, 0)
        for n, p in model.named_parameters():
            if "lora_B" in n:
                nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(len(n)))
    (shared_loss, shared), (copied_loss, apart) = losses(student, teacher), losses(other, copied)
    assert torch.allclose(shared_loss, copied_loss, rtol=1e-6, atol=0) and shared.keys() == apart.keys()
    for name, gradient in shared.items():
        assert torch.allclose(gradient, apart[name], rtol=1e-4, atol=1e-6 * float(apart[name].abs().max())), name


def test_equal_fixed_weights_of_two_models_become_one_and_no_bit_changes(base, tmp_path):
    def train(folder: Path, shares: bool) -> tuple[VisionLanguageModel, VisionLanguageModel]:
        student, plain = opened(base), opened(base)
        teacher = merged(plain, additions_of(plain, LoraConfig(rank=2)))
        if not shares:
            teacher.share_fixed_weights = lambda other: None  # type: ignore[method-assign]
        config = FitConfig(rows=2, freeze=("vision", "merger"), precision="bf16", learning_rate=1e-2)
        fit(student, SAMPLES, Distillation(), config, FitRun(folder, 0, "x"), LiveTeacher(teacher))
        return student, teacher

    (student, teacher), (student_2, teacher_2) = train(tmp_path / "a", True), train(tmp_path / "b", False)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), student_2.parameters(), strict=True))
    tower = count_bytes(student.visual.parameters())
    assert count_bytes([*student.parameters(), *teacher.parameters()]) == 2 * file_bytes(base) - tower
    assert count_bytes([*student_2.parameters(), *teacher_2.parameters()]) == 2 * file_bytes(base)


# ---- stored features -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_tower_is_held_where_its_features_are_on_the_disk(family: Family, tmp_path):
    make_twin(family, tmp_path / "stock")
    load(tmp_path / "stock", picture, native_knobs(tmp_path / "stock")).save(tmp_path / "m")
    whole, model = load(tmp_path / "m", picture).eval(), load(tmp_path / "m", picture).eval()
    cache_features(tmp_path / "features", whole, [s.images[0] for s in SAMPLES[:3]], "see")
    cache = FeatureCache(tmp_path / "features", model)
    for one in (whole, model):
        cache.serve(one)
        one.freeze(["vision", "merger"])
    model.put_vision_aside()
    model.freeze(["vision", "merger"])  # as each training does
    tower = count_bytes(whole.visual.parameters())
    assert tower and count_bytes(model.parameters()) == count_bytes(whole.parameters()) - tower
    batches = [one.encode(group_by_images(SAMPLES[:3])) for one in (whole, model)]
    assert torch.equal(whole.hidden_states(batches[0]), model.hidden_states(batches[1]))
    assert whole.operations(batches[0]) == model.operations(batches[1])
    short = AnswerConfig(max_new_tokens=4)
    assert whole.generate(SAMPLES[:3], short) == model.generate(SAMPLES[:3], short)
    twin = model.with_additions(additions_of(model, LoraConfig(rank=2)))
    assert twin.shares_vision_with(model.visual) and whole.shares_vision_with(model.visual)
    with pytest.raises(
        BadInput, match="an image has no stored features of its size, and the vision tower is not loaded"
    ):
        model.generate(SAMPLES[3:], short)
    model.save(tmp_path / "again")
    assert count_bytes(model.parameters()) == count_bytes(whole.parameters()) - tower
    assert sha256_file(tmp_path / "again" / "model.safetensors") == sha256_file(tmp_path / "m" / "model.safetensors")
