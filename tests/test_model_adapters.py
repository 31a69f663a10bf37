"""LoRA, recomputed blocks and bfloat16 products: what they leave alone, and what they must equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clinkd.config import FitConfig, LoraConfig, ModelConfig, PhantomConfig, TinyConfig
from clinkd.data import phantoms
from clinkd.data.images import open_image
from clinkd.model.encode import group_by_images
from clinkd.model.vlm import VisionLanguageModel, new_tiny, spell_samples
from clinkd.objectives import CrossEntropy, Distillation
from clinkd.records import BadInput, ImageRef, Sample
from clinkd.training import FitRun, LiveTeacher, fit

TINY = TinyConfig(
    hidden=48, layers=2, heads=2, mlp=64, vision_hidden=32, vision_layers=1, vision_heads=2, vocabulary=400
)
Drawn = tuple[Path, list[Sample]]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    folder = tmp_path_factory.mktemp("phantoms")
    config = PhantomConfig(train_images=16, validation_images=2, test_images=2)
    return folder, [s for s in phantoms.write_phantoms(folder, config, 0) if s.split == "train"]


def fresh(drawn: Drawn) -> VisionLanguageModel:
    folder, samples = drawn
    config = ModelConfig(tiny=TINY)

    def opened(ref: ImageRef) -> Image.Image:
        return open_image(folder, ref)

    return new_tiny(config, spell_samples(samples, config), 0, opened)


def untied(model: VisionLanguageModel) -> VisionLanguageModel:
    """With a head of its own, as the larger Qwen2-VL have it."""
    model.network.lm_head.weight = torch.nn.Parameter(model.network.lm_head.weight.detach().clone())
    model.network.config.tie_word_embeddings = model.network.config.text_config.tie_word_embeddings = False
    return model


def learn(model: VisionLanguageModel, drawn: Drawn, folder: Path, **knobs: Any) -> None:
    config = FitConfig(epochs=2, rows=8, optimizer="adamw", learning_rate=1e-2, checkpoint_seconds=0, **knobs)
    fit(model, drawn[1], CrossEntropy(), config, FitRun(folder, 0, "x"))


def weights(model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("parts", [("text",), ("text", "head"), ("vision", "merger")])
def test_only_additions_learn_and_are_merged(drawn: Drawn, tmp_path: Path, parts: tuple[Any, ...]) -> None:
    model = untied(fresh(drawn))
    before = weights(model)
    learn(model, drawn, tmp_path, lora=LoraConfig(rank=4, parts=parts))
    after = weights(model)
    assert after.keys() == before.keys()  # a plain model again
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    names = {"text": "language_model.layers", "head": "lm_head", "vision": "visual.blocks", "merger": "visual.merger"}
    assert changed and all(any(names[p] in n for p in parts) for n in changed)
    assert all(any(names[p] in n for n in changed) for p in parts)
    for name in changed:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-4) <= 4, name


def test_an_addition_starts_at_nothing_and_merges_to_the_same(drawn: Drawn) -> None:
    model = untied(fresh(drawn))
    batch = model.encode(group_by_images(drawn[1])[:3])
    with torch.no_grad():
        plain = model.hidden_states(batch)
        model.adapt(LoraConfig(rank=4, parts=("text", "head")), 0)
        assert torch.equal(model.hidden_states(batch), plain)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
        adapted = model.hidden_states(batch)
        added = model.head.added(adapted)
        assert added is not None
        logits = adapted @ model.head.weight_VH.T + added.low_NR @ added.up_VR.T
        model.merge()
        assert not torch.allclose(adapted, plain, atol=1e-2)
        assert torch.allclose(model.hidden_states(batch), adapted, atol=1e-5)
        assert model.head.lora is None
        assert torch.allclose(model.hidden_states(batch) @ model.head.weight_VH.T, logits, atol=1e-4)


def test_the_heads_addition_has_the_gradients_of_autograd(drawn: Drawn) -> None:
    model = untied(fresh(drawn))
    model.adapt(LoraConfig(rank=4, parts=("head",)), 0)
    factors = [p for p in model.parameters() if p.requires_grad]
    assert len(factors) == 2
    with torch.no_grad():
        factors[1].normal_(std=0.1)
    batch = model.encode(group_by_images(drawn[1])[:3])
    hidden = model.hidden_states(batch)
    ours = CrossEntropy()(hidden, model.head.weight_VH, batch.labels_N, added=model.head.added(hidden)).sum
    theirs = F.cross_entropy(model.network.lm_head(hidden), batch.labels_N, reduction="sum")
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for mine, true in zip(torch.autograd.grad(ours, factors), torch.autograd.grad(theirs, factors), strict=True):
        assert torch.allclose(mine, true, rtol=1e-3, atol=1e-5)


def test_a_head_that_is_the_input_table_is_refused(drawn: Drawn) -> None:
    model = fresh(drawn)
    with pytest.raises(BadInput, match="leave head out"):
        model.adapt(LoraConfig(parts=("head",)), 0)


def test_a_stopped_run_of_additions_goes_on(drawn: Drawn, tmp_path: Path) -> None:
    whole, parts = fresh(drawn), fresh(drawn)
    lora = LoraConfig(rank=4)
    learn(whole, drawn, tmp_path / "whole", lora=lora)

    class Stop(CrossEntropy):
        def __call__(self, *inputs: Any) -> Any:
            if len(list((tmp_path / "parts").glob("step-*"))) >= 2:
                raise KeyboardInterrupt
            return super().__call__(*inputs)

        def __repr__(self) -> str:
            return repr(CrossEntropy())  # the same course, as far as a checkpoint can tell

    config = FitConfig(epochs=2, rows=8, learning_rate=1e-2, checkpoint_seconds=0, lora=lora)
    with pytest.raises(KeyboardInterrupt):
        fit(parts, drawn[1], Stop(), config, FitRun(tmp_path / "parts", 0, "x"))
    again = fresh(drawn)
    learn(again, drawn, tmp_path / "parts", lora=lora)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name


def test_recomputed_blocks_have_the_same_gradients(drawn: Drawn) -> None:
    model = fresh(drawn).train()
    batch = model.encode(group_by_images(drawn[1])[:3])

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        CrossEntropy()(model.hidden_states(batch), model.head.weight_VH, batch.labels_N).sum.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    calls = []
    block = model.network.model.language_model.layers[0]
    block.self_attn.register_forward_hook(lambda *_: calls.append(1))
    model.recompute_blocks(True)
    again = gradients()
    assert len(calls) == 2  # once more in the backward
    assert len(plain) == len(again) and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, again, strict=True))
    model.recompute_blocks(False)
    gradients()
    assert len(calls) == 3


def test_bfloat16_products_learn_what_float32_learns(drawn: Drawn, tmp_path: Path) -> None:
    teacher = LiveTeacher(fresh(drawn))
    samples = [s for rows in group_by_images(drawn[1])[:3] for s in rows]  # where bfloat16 is emulated, it is slow
    losses = {}
    for precision in ("float32", "bf16"):
        model = fresh(drawn)
        config = FitConfig(epochs=2, rows=3, learning_rate=3e-3, precision=precision)
        folder = tmp_path / precision
        losses[precision] = fit(
            model, samples, Distillation(), config, FitRun(folder, 0, "x"), teacher=teacher
        ).final_loss
        assert all(p.dtype == torch.float32 for p in model.parameters())
    assert losses["bf16"] != losses["float32"] and losses["bf16"] == pytest.approx(losses["float32"], rel=0.03)
