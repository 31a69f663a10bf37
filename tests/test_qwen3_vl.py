"""What only Qwen3-VL has: features of several depths, interleaved pairs, a head width of its own, no system turn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.test_families_stock import ASKED, PICTURES, ROWS, SHAPE, WIDE, make_twin

from clinkd.config import AnswerConfig
from clinkd.model.families import native_knobs
from clinkd.model.families.qwen3_vl import QWEN3_VL
from clinkd.model.vlm import VisionLanguageModel, load
from clinkd.records import Box, BoxedText


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, VisionLanguageModel]:
    folder = tmp_path_factory.mktemp("twin")
    stock = make_twin(QWEN3_VL, folder)
    return stock, load(folder, PICTURES.__getitem__, native_knobs(folder)).eval()


def test_pairs_and_angles_are_the_stock_ones_to_the_bit(twin: tuple[Any, VisionLanguageModel]) -> None:
    stock, model = twin
    config = model.network.config.text_config
    assert config.head_dim == 2 * config.hidden_size // config.num_attention_heads
    positions_3BS = torch.randint(0, 4000, (3, 2, 50), generator=torch.Generator().manual_seed(0))
    x_BSH = torch.zeros(2, 50, config.hidden_size)
    theirs = stock.model.language_model.rotary_emb(x_BSH, positions_3BS)
    ours = model.network.model.language_model.rotary_emb(x_BSH, positions_3BS.float())
    assert all(map(torch.equal, ours, theirs)) and ours[0].shape == (2, 50, config.head_dim)


def test_an_image_has_features_of_every_depth_side_by_side(twin: tuple[Any, VisionLanguageModel]) -> None:
    stock, model = twin
    pixels_TD, grids_I3 = model.images.patches([WIDE])
    with torch.inference_mode():
        [features_FH] = model.tower(pixels_TD, grids_I3)
        output = stock.model.visual(pixels_TD, grid_thw=grids_I3)
    depths = [output.pooler_output, *output.deepstack_features]
    assert len(depths) == 3 and torch.equal(features_FH, torch.cat(depths, dim=1))


def test_one_pass_of_the_tower_serves_the_whole_decoding(twin: tuple[Any, VisionLanguageModel]) -> None:
    _, model = twin
    passes: list[int] = []
    hook = model.visual.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    model.generate(ASKED, AnswerConfig(beams=2, candidates=2, max_new_tokens=3))
    hook.remove()
    assert passes == [sum(grid.prod() for grid in model.images.patches(list(PICTURES))[1])]


def test_every_depth_gets_a_gradient(twin: tuple[Any, VisionLanguageModel]) -> None:
    _, model = twin
    model.hidden_states(model.encode(ROWS)).square().sum().backward()
    weights = {name: p.grad for name, p in model.visual.named_parameters()}
    model.zero_grad()
    assert not [name for name, gradient in weights.items() if gradient is None or not gradient.abs().sum()]
    model.hidden_states(model.encode(ROWS[2:])).sum().backward()  # text alone: a dummy image, by every module
    assert all(p.grad is not None and not p.grad.any() for p in model.visual.parameters())
    model.zero_grad()


def test_prompts_have_no_system_turn_and_boxes_are_thousandths(twin: tuple[Any, VisionLanguageModel]) -> None:
    _, model = twin
    assert model.text.chat.opening == "<|im_start|>user\n" and model.images.geometry.patch == SHAPE.patch
    boxed = BoxedText("[box]", (Box(0.25, 0.5, 0.75, 1.0),))
    assert model.codec.encode(boxed) == '{"bbox_2d": [250, 500, 750, 1000]}'
    assert [*model.processor.image_mean] == [0.5, 0.5, 0.5]
