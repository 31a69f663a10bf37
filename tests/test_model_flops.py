"""Counted operations equal those that torch's own counter finds."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clinkd.config import LoraConfig, ModelConfig, PhantomConfig, TinyConfig
from clinkd.data import phantoms
from clinkd.data.images import open_image
from clinkd.model.encode import Batch, group_by_images
from clinkd.model.families import TINY as FAMILY
from clinkd.model.flops import count_linear, peak_flops, published, training_operations
from clinkd.model.vlm import VisionLanguageModel, new_tiny, spell_samples
from clinkd.objectives import CrossEntropy, Distillation
from clinkd.records import Sample
from clinkd.training import LiveTeacher

CONFIG = ModelConfig(tiny=TinyConfig(layers=2, vision_layers=3))
Drawn = tuple[VisionLanguageModel, list[Sample]]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    folder = tmp_path_factory.mktemp("phantoms")
    config = PhantomConfig(train_images=4, validation_images=1, test_images=1)
    return folder, [s for s in phantoms.write_phantoms(folder, config, 0) if s.split == "train"]


@pytest.fixture(params=["tied", "untied", "grouped heads"])
def model(drawn, request) -> VisionLanguageModel:
    folder, samples = drawn
    made = new_tiny(CONFIG, spell_samples(samples, CONFIG), 0, lambda ref: open_image(folder, ref))
    stock = FAMILY.tiny_settings(CONFIG.tiny, made.tokenizer)
    stock["tie_word_embeddings"] = stock["text_config"]["tie_word_embeddings"] = request.param == "tied"
    if request.param == "grouped heads":
        stock["text_config"]["num_key_value_heads"] = 1
    made.network = FAMILY.build(stock, CONFIG)
    made.network.config.system_turn = False
    return made


def batch_of(model: VisionLanguageModel, samples: list[Sample], packed: bool = False) -> Batch:
    model.line_tokens = 1000 if packed else 0
    rows = group_by_images(samples)
    several = [[replace(s, id=s.id + "+", images=(*s.images, rows[0][0].images[0])) for s in rows[1][:2]]]
    smaller = rows[2][0].images[0]
    model.images.limit_tokens(smaller, 4)
    return model.encode([*rows, *several])


@pytest.mark.parametrize("packed", [False, True])
def test_a_forward_has_the_operations_that_torch_counts(model, drawn, packed):
    batch = batch_of(model, drawn[1], packed)
    assert len({tuple(g) for g in batch.grids_I3.tolist()}) == 2, "grids differ"
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        hidden_NH = model.hidden_states(batch)
        model.network.lm_head(hidden_NH)
    counted = counter.get_flop_counts()
    mine = {name: part.forward for name, part in model.operations(batch).items()}
    assert sum(mine.values()) == counter.get_total_flops()
    whole = {name: sum(ops.values()) for name, ops in counted.items()}
    assert mine["vision"] + mine["merger"] == whole["Qwen2VisionTransformerPretrainedModel"]
    assert mine["merger"] == whole["Qwen2VisionTransformerPretrainedModel.merger"]
    assert mine["text"] == whole["ClinkdModel.language_model"] and mine["head"] == whole["Linear"]


def head_gradient(model: VisionLanguageModel, batch: Batch) -> int:
    """Operations of the gradient of the head's weight: as many as its forward."""
    weight_VH = model.head.weight_VH
    return 2 * len(batch.labels_N) * weight_VH.numel() * weight_VH.requires_grad


WAYS = {
    "all": ((), None),
    "vision frozen": (("vision", "merger"), None),
    "head and tower frozen": (("vision", "head"), None),
    "additions": (("vision", "merger"), LoraConfig(rank=4)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_backward_has_the_operations_that_torch_counts(model, drawn, way):
    frozen, lora = WAYS[way]
    model.freeze(frozen)
    if lora:
        model.adapt(lora, 0)
    batch = batch_of(model, drawn[1])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hidden_NH = model.hidden_states(batch)
        head = model.head
        CrossEntropy()(hidden_NH, head.weight_VH, batch.labels_N, added=head.added(hidden_NH)).sum.backward()
    parts = model.operations(batch)
    unseen = head_gradient(model, batch)  # the loss adds it up in place, by addmm_, which torch's counter passes over
    if lora:  # nothing learns before the first products, so none of them needs its input's gradient
        first = model.network.model.language_model.layers[0].self_attn
        readers = [m for p in (first.q_proj, first.k_proj, first.v_proj) for m in (p.base_layer, p.lora_A)]
        unseen += sum(count_linear(m, batch.input_ids_BS.numel(), False).forward for m in readers)
    assert training_operations(parts) == counter.get_total_flops() + unseen


@pytest.mark.parametrize("shared", [True, False])
def test_a_step_beside_a_teacher_has_the_operations_that_torch_counts(model, drawn, shared):
    teacher = LiveTeacher(copy.deepcopy(model))
    model.freeze(("vision", "merger"))
    batch = batch_of(model, drawn[1])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        seen = model.vision_features(batch)
        goal = teacher.targets(batch, seen if shared else None)
        hidden_NH = model.hidden_states(batch, seen)
        Distillation(0.5, 2.0)(hidden_NH, model.head.weight_VH, batch.labels_N, goal).sum.backward()
    unseen = head_gradient(model, batch)  # added up in place, as above
    mine, beside = training_operations(model.operations(batch)), teacher.operations(batch, vision=not shared)
    assert mine + beside == counter.get_total_flops() + unseen


def test_measuring_a_peak_leaves_chance_as_it_was():
    before = torch.get_rng_state()
    peak_flops(torch.device("cpu"), torch.float32)
    assert torch.equal(before, torch.get_rng_state())


def test_blind_batches_have_no_vision(model, drawn):
    batch = model.encode([[replace(s, images=())] for s in drawn[1][:3]])
    parts = model.operations(batch)
    assert parts["vision"] == parts["merger"] == (0, 0) and parts["text"].forward > 0


def test_a_tower_that_is_not_known_has_no_count(model, drawn):
    batch = batch_of(model, drawn[1])
    model.network.model.visual.config.model_type = "other"
    assert model.operations(batch) is None and training_operations(None) is None
    assert LiveTeacher(model).operations(batch, vision=True) is None


def test_a_peak_is_measured_where_none_is_known():
    assert peak_flops(torch.device("cpu"), torch.float32) > 1e8


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA A10G", 70e12), ("Tesla T4", 65e12),
        ("Tesla V100-PCIE-32GB", 112e12), ("Tesla V100-SXM2-32GB", 125e12), ("NVIDIA H800 PCIe", 756e12),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA T400 4GB", None), ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)  # fmt: skip
def test_a_peak_is_that_of_the_very_gpu(name, peak):
    assert published(name) == peak
