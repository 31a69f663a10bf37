"""What only Gemma 3 has: masks of images and windows, one square for all images, newlines that join, boxes by rows."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.stock_generate import difference, generate_stock
from tests.test_families_stock import ASKED, GEMMA, PICTURES, ROWS, TALL, WIDE, ask, demand_equal, make_twin, predict
from transformers import Gemma3Processor
from transformers.models.gemma3.modeling_gemma3 import create_masks_for_vision_model, get_block_sequence_ids_for_mask

from clinkd import cli
from clinkd.config import NAMED_POSITIONS, AnswerConfig, LoraConfig, ModelConfig
from clinkd.data.grids import Size
from clinkd.model.encode import ImageEncoder, encode_prompts
from clinkd.model.families import load_folder, native_knobs
from clinkd.model.families.gemma3 import GEMMA3, make_masks
from clinkd.model.folders import opened_folder
from clinkd.model.vlm import VisionLanguageModel, load
from clinkd.pipeline.cautions import caution_base
from clinkd.records import BadInput, Box, BoxedText, ImageRef
from clinkd.reporting.box_sheet import ModelView

TOKENS, WINDOW = 36, 8  # of an image and of a window of the twin: an image is longer than a window
GREEDY = AnswerConfig(beams=1, candidates=1, max_new_tokens=12)
CAUSAL = {"token_type_ids": None}  # the stock class does not know the images then
# Settings at the top of a published folder of 4B that a newer one writes otherwise.
PUBLISHED = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("twin")
    return folder, make_twin(GEMMA3, folder)


@pytest.fixture
def model(twin: tuple[Path, Any]) -> VisionLanguageModel:
    return load(twin[0], PICTURES.__getitem__, native_knobs(twin[0])).eval()


def change(folder: Path, to: Path, **settings: dict[str, Any]) -> Path:
    """A copy of a folder with other settings in its files of JSON, each named as the file is."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    for name, changes in settings.items():
        file = to / f"{name}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return to


def test_masks_are_those_of_the_stock_class(twin: tuple[Path, Any]) -> None:
    """Of one whole row, with images longer and shorter than a window, and text around them."""
    image_BS = torch.zeros(1, 60, dtype=torch.bool)
    for start, end in ((3, 20), (22, 26), (40, 57)):
        image_BS[:, start:end] = True
    config = twin[1].config.text_config
    ones_BS, running_BS = torch.ones(1, 60), torch.arange(60)[None]
    blocks_BS = get_block_sequence_ids_for_mask(image_BS.int())
    theirs = create_masks_for_vision_model(config, torch.zeros(1, 60, 4), ones_BS, None, running_BS, blocks_BS)
    causal_B1SS = torch.ones(1, 1, 60, 60, dtype=torch.bool).tril()
    for mask in (causal_B1SS, ones_BS):
        ours = make_masks(image_BS, mask, running_BS, WINDOW)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[kind], theirs[kind]) for kind in theirs)
    assert config.sliding_window == WINDOW and ours["full_attention"].sum() > causal_B1SS.sum()


def test_a_step_of_decoding_has_the_last_rows_of_the_whole_mask() -> None:
    """Whatever padding stands before a row and between its parts."""
    running_BS, image_BS = torch.arange(30)[None], torch.zeros(1, 30, dtype=torch.bool)
    image_BS[:, 4:12] = True
    whole = make_masks(image_BS, torch.ones(1, 30), running_BS, WINDOW)
    padded_BK = torch.tensor([[0, 0, *[1] * 14, 0, 0, 0, *[1] * 16]])
    for new in (1, 5, 16):
        step = make_masks(image_BS[:, -new:], padded_BK, running_BS[:, -new:], WINDOW)
        for kind, mask_B1SK in step.items():
            assert torch.equal(mask_B1SK[..., padded_BK[0].bool()], whole[kind][:, :, -new:])
            assert not mask_B1SK[..., ~padded_BK[0].bool()].any()


def test_both_directions_and_windows_matter(twin: tuple[Path, Any], model: VisionLanguageModel) -> None:
    """Else the tests against the stock class would show nothing."""
    prompt = encode_prompts(ASKED[2:3], model.text, model.images)
    ids_BS = prompt.whole()[0]
    shown = GEMMA3.pixel_inputs(ids_BS == model.text.image_token, prompt.pixels_TD, prompt.grids_I3)
    batch, config = model.encode(ROWS), model.network.config.text_config
    with torch.inference_mode():
        right, causal = (twin[1](input_ids=ids_BS, **{**shown, **other}).logits for other in ({}, CAUSAL))
        assert (right - causal).abs().max() > 0.01
        within = model.hidden_states(batch)
        config.sliding_window = 1000
        assert (model.hidden_states(batch) - within).abs().max() > 0.01


def test_greedy_answers_equal_the_stock_class(twin: tuple[Path, Any], model: VisionLanguageModel) -> None:
    ours, theirs = model.generate(ASKED, GREEDY), generate_stock(model, ASKED, GREEDY, twin[1])
    assert [one.raw for (one,) in ours] == [one.raw for (one,) in theirs]
    assert len({one.raw for (one,) in ours}) > 2 and all(len(set(one.raw)) > 2 for (one,) in ours)
    swapped = model.generate([ask("a", (TALL,), ("What is seen?", "An organ."))], GREEDY)
    assert swapped[0][0].logprob != pytest.approx(ours[0][0].logprob, abs=1e-3)


def test_a_folder_of_ours_comes_back(model: VisionLanguageModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    assert native_knobs(tmp_path) is None and difference(model, tmp_path, ASKED) == 0
    again = load(tmp_path, PICTURES.__getitem__).eval()
    assert again.family is GEMMA3 and again.knobs == model.knobs and again.is_stock
    assert again.images.geometry == model.images.geometry
    assert [[c.raw for c in one] for one in again.generate(ASKED, GREEDY)] == [
        [c.raw for c in one] for one in model.generate(ASKED, GREEDY)
    ]


def test_a_published_folder_has_older_names_and_settings(twin: tuple[Path, Any], tmp_path: Path) -> None:
    """As on the hub: weights without `model.`, a `vision_model` in the tower, windows by a pattern, no patch size."""
    folder, stock = twin
    settings = json.loads((folder / "config.json").read_text())
    text = {k: v for k, v in settings["text_config"].items() if k not in ("rope_parameters", "layer_types")}
    text |= {**PUBLISHED, "sliding_window_pattern": 2}
    base = change(folder, tmp_path / "hub", config={"text_config": text})
    processor = json.loads((base / "preprocessor_config.json").read_text())
    kept = {k: v for k, v in processor.items() if k not in ("patch_size", "merge_size")}
    (base / "preprocessor_config.json").write_text(json.dumps(kept))
    names = {"model.language_model.": "language_model.model.", "model.vision_tower.": "vision_tower.vision_model."}
    names["model.multi_modal"] = "multi_modal"
    weights = load_file(folder / "model.safetensors")
    for old, new in names.items():
        weights = {k.replace(old, new): v for k, v in weights.items()}
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    model = load(base, PICTURES.__getitem__, native_knobs(base)).eval()
    ours = model.network.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in stock.state_dict().items())
    with torch.inference_mode():
        logits_NV = model.network.lm_head(model.hidden_states(model.encode([ASKED[2:3]])))
    demand_equal(logits_NV, predict(stock, model, ASKED[2]))


def test_tokens_and_pixels_are_those_of_the_stock_processor(model: VisionLanguageModel) -> None:
    """Newlines of neighbouring marks are one token in this vocabulary, as in the released one."""
    model.tokenizer.add_tokens(["\n" * n for n in range(2, 6)])
    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    for name, mark in marks.items():
        setattr(model.tokenizer, name, mark)
        setattr(model.tokenizer, f"{name}_id", model.tokenizer.convert_tokens_to_ids(mark))
    model.tokenizer.bos_token = "<bos>"
    templates = itertools.product((GEMMA, GEMMA3.chat.jinja()), ASKED)  # the published one, and what exports hold
    for template, sample in templates:
        stock = Gemma3Processor(model.processor, model.tokenizer, chat_template=template, image_seq_length=TOKENS)
        parts: list[dict[str, Any]] = [{"type": "image", "image": PICTURES[ref]} for ref in sample.images]
        messages = []
        for turn in sample.turns:
            question = [*parts, {"type": "text", "text": turn.question.text}]
            answer = [{"type": "text", "text": turn.answer.text}]
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            parts = []
        theirs = stock.apply_chat_template(
            messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        prompt = encode_prompts([sample], model.text, model.images)
        ids_BS = prompt.whole()[0]
        assert ids_BS.tolist() == theirs["input_ids"].tolist()
        if sample.images:
            marked = (ids_BS == model.text.image_token).int()
            assert theirs["token_type_ids"].tolist() == marked.tolist()
            given = GEMMA3.pixel_inputs(marked, prompt.pixels_TD, prompt.grids_I3)
            assert torch.equal(given["pixel_values"], theirs["pixel_values"])


def test_every_image_has_as_many_tokens(model: VisionLanguageModel) -> None:
    sides = [(28, 5600), (30, 580), (10, 500), (1, 200), (7, 7), (64, 64), (333, 1000), (1024, 768), (300, 200)]
    sides += [(600, 599), (512, 512), (204, 250), (45, 46), (13, 1999), (80, 81), (410, 33), (97, 811), (16, 4000)]
    sides += [(501, 501), (224, 224), (896, 896), (2, 3)]
    sizes = sorted({size for a, b in sides for size in ((a, b), (b, a))})
    pictures = [Image.new("RGB", size) for size in sizes]
    pixels_ICYX = model.processor(images=pictures, return_tensors="pt")["pixel_values"]
    assert len(sizes) >= 38 and pixels_ICYX.shape == (len(sizes), 3, 96, 96)
    for square, size in itertools.product((False, True), sizes):
        images = ImageEncoder(GEMMA3, model.processor, PICTURES.__getitem__, square)
        assert images.resampled_size(ImageRef("x", *size)) == Size(96, 96)
        assert images.grid(ImageRef("x", *size)) == (6, 6)


def test_the_sheet_of_boxes_shows_the_square(twin: tuple[Path, Any]) -> None:
    view = ModelView.from_config(ModelConfig(base=twin[0], square=False))
    assert view.resize(Size(300, 40)) == Size(96, 96)
    assert view.respell(Box(0.25, 0.5, 0.75, 1), Size(300, 40)) == (
        '{"box_2d": [500, 250, 1000, 750]}', Box(0.25, 0.5, 0.75, 1)
    )  # fmt: skip


def test_every_part_gets_a_gradient_and_can_be_frozen(model: VisionLanguageModel) -> None:
    model.hidden_states(model.encode(ROWS)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.visual.parameters() if p.dim() > 1)
    model.zero_grad()
    model.hidden_states(model.encode(ROWS[2:])).sum().backward()  # text alone: a dummy image, by every module
    assert all(p.grad is not None and not p.grad.any() for p in model.visual.parameters())
    model.freeze(["vision"])
    learning = {name for name, p in model.network.named_parameters() if p.requires_grad}
    assert not any("vision_tower" in name for name in learning) and any("multi_modal" in name for name in learning)
    with pytest.raises(BadInput, match=r"fit\.lora\.parts: merger .* has no linear layer"):
        model.adapt(LoraConfig(parts=("text", "merger")), 0)


def test_what_cannot_be_had_is_refused_by_name(
    twin: tuple[Path, Any], model: VisionLanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = twin[0]
    for name in NAMED_POSITIONS.keys() - {"native"}:
        knobs = ModelConfig(base=folder, positions=NAMED_POSITIONS[name], layout="sections")
        with opened_folder(folder, "a model") as opened, pytest.raises(BadInput, match=f"model.positions={name}: "):
            load_folder(opened, knobs, torch.float32)
        with pytest.raises(BadInput, match=r"set model\.positions=native"):
            caution_base(knobs)  # before any work
    assert cli.main(["plan", "demo", "--set", f"model.base={folder}", "--set", "model.positions=tied"]) == 2
    assert "set model.positions=native" in capsys.readouterr().err
    with pytest.raises(BadInput, match=r"model\.layout=halves: .* set model\.layout=sections"):
        caution_base(ModelConfig(base=folder, positions=NAMED_POSITIONS["native"]))
    own = {"positions": NAMED_POSITIONS["native"], "layout": "sections", "boxes": "gemma3"}
    assert caution_base(ModelConfig.model_validate({"base": folder, **own})) == []
    with pytest.raises(BadInput, match=r"model\.max_image_tokens=35: Gemma 3 makes 36 tokens"):
        load(folder, PICTURES.__getitem__, ModelConfig.model_validate({"base": folder, "max_image_tokens": 35, **own}))
    with pytest.raises(BadInput, match=r"0\.png: Gemma 3 makes as many tokens .* set fit\.overlong=drop"):
        model.images.limit_tokens(WIDE, 4)
    crops = change(folder, tmp_path / "crops", preprocessor_config={"do_pan_and_scan": True})
    other = change(folder, tmp_path / "other", preprocessor_config={"size": {"height": 64, "width": 64}})
    text = change(folder, tmp_path / "text", config={"model_type": "gemma3_text"})
    for base, reason in ((crops, "do_pan_and_scan: crops"), (other, "takes 96 x 96 pixels"), (text, "reads no images")):
        with pytest.raises(BadInput, match=reason):
            load(base, PICTURES.__getitem__, native_knobs(base))


def test_boxes_are_read_as_the_released_weights_write_them(model: VisionLanguageModel) -> None:
    said = 'Final Answer:\n```json\n[{"box_2d": [500, 250, 1000, 750.5], "label": "right clavicle"}]\n```'
    decoded = model.codec.decode(said)
    assert decoded.answer == BoxedText("Final Answer:\nright clavicle[box]", (Box(0.25, 0.5, 0.7505, 1),))
    assert model.codec.name == "gemma3" and not decoded.unparsed_boxes
    assert np.allclose(model.processor.image_mean, 0.5)
