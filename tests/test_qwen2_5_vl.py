"""Only Qwen2.5-VL has windows in its tower, boxes in pixels, and folders with flat names, as they are published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.test_families_stock import ASKED, PICTURES, SHAPE, STRIP, make_twin, predict

from clinkd.config import ModelConfig
from clinkd.data.grids import Size
from clinkd.model.families import native_knobs
from clinkd.model.families.qwen2_5_vl import QWEN2_5_VL
from clinkd.model.vlm import load
from clinkd.records import Box, BoxedText


def test_a_published_folder_has_flat_names_and_settings(tmp_path: Path) -> None:
    """As on the hub: the text's settings at the top, its rope type `mrope`, and weights without `language_model`."""
    stock = make_twin(QWEN2_5_VL, tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    text = {k: v for k, v in settings.pop("text_config").items() if k not in ("model_type", "layer_types")}
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    settings["vision_config"]["model_type"] = "qwen2_5_vl"
    path.write_text(json.dumps({**text, **settings}))
    weights = load_file(tmp_path / "model.safetensors")
    flat = {
        k.replace("model.visual.", "visual.").replace("model.language_model.", "model."): v for k, v in weights.items()
    }
    save_file(flat, tmp_path / "model.safetensors", {"format": "pt"})
    model = load(tmp_path, PICTURES.__getitem__, native_knobs(tmp_path)).eval()
    ours = model.network.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in stock.state_dict().items())
    assert model.is_stock and model.text.chat.system
    with torch.inference_mode():
        logits_NV = model.network.lm_head(model.hidden_states(model.encode([ASKED[2:3]])))
    assert torch.allclose(logits_NV, predict(stock, model, ASKED[2]), rtol=0, atol=1e-5 * float(logits_NV.abs().max()))


def test_a_stock_folder_spells_boxes_in_pixels_of_the_image_as_the_tower_sees_it(tmp_path: Path) -> None:
    make_twin(QWEN2_5_VL, tmp_path)
    model = load(tmp_path, PICTURES.__getitem__, native_knobs(tmp_path))
    size = model.text.box_frame((STRIP,))
    assert model.codec.name == "qwen2.5-vl" and size == Size(160, 48)
    box = Box(0.25, 0.5, 0.75, 1.0)
    assert model.codec.encode(BoxedText("[box]", (box,)), size) == "<|box_start|>(40,24),(120,48)<|box_end|>"
    said = '```json\n[{"bbox_2d": [40, 24, 120, 48], "label": "liver"}]\n```'
    assert model.codec.decode(said, size).answer.boxes == (box,)


@pytest.mark.parametrize("grid", [(8, 8), (2, 2), (10, 26), (2, 30)])
def test_a_windowed_block_attends_within_windows_of_four_tokens_a_side(grid: tuple[int, int]) -> None:
    tokenizer_size = 300
    settings = QWEN2_5_VL.tiny_settings(SHAPE, _Words(tokenizer_size))  # type: ignore[arg-type]
    visual = QWEN2_5_VL.build(settings, ModelConfig(base=Path("."), positions="native", layout="sections")).model.visual
    tall, wide = grid
    pairs = sum(
        (row // 8 == other_row // 8) and (column // 8 == other_column // 8)
        for row in range(tall) for other_row in range(tall) for column in range(wide) for other_column in range(wide)
    )  # fmt: skip
    windowed, full = 2, 1
    wanted = 4 * SHAPE.vision_hidden * (windowed * pairs + full * (tall * wide) ** 2)
    assert QWEN2_5_VL.vision_attention(visual, torch.tensor([[1, *grid]])) == wanted


class _Words:
    """As much of a tokenizer as a stock configuration needs."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def convert_tokens_to_ids(self, token: str) -> int:
        return 0
