"""Every family with its own positions equals its stock class: rows, beams, additions, folders, prompts, image tokens.

The twins have random weights and are built from the stock configuration; what their folders hold is what a stock class,
a tokenizer and an image processor save.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.stock_generate import difference, end_here_and_there, generate_stock
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clinkd.config import NAMED_POSITIONS, AnswerConfig, LoraConfig, ModelConfig, TinyConfig
from clinkd.model import tiny
from clinkd.model.encode import ImageEncoder, encode_prompts
from clinkd.model.families import FAMILIES, Family, native_knobs
from clinkd.model.folders import opened_folder
from clinkd.model.positions import Sequential
from clinkd.model.vlm import VisionLanguageModel, load
from clinkd.records import BadInput, BoxedText, ImageRef, Modality, Sample, Task, Turn
from clinkd.training.feature_cache import FeatureCache, cache_features

SHAPE = TinyConfig(
    hidden=48, layers=3, heads=2, mlp=64, vision_hidden=32, vision_layers=3, vision_heads=2, vocabulary=300,
    image_pixels=96, init_std=0.3,
)  # fmt: skip
PICTURES = {
    ImageRef(f"{k}.png", *size): Image.fromarray(
        np.random.default_rng(k).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    )
    for k, size in enumerate([(96, 96), (160, 48), (48, 112)])
}
WIDE, STRIP, TALL = PICTURES
BEAMS = AnswerConfig(beams=3, candidates=3, max_new_tokens=6)
# As published with the weights: the pixels of an image, and the side of a patch.
RELEASED = {
    "Qwen2-VL": (3136, 12845056, 14), "Qwen2.5-VL": (3136, 12845056, 14), "Qwen3-VL": (65536, 16777216, 16),
}  # fmt: skip
# The chat templates as they are published, for turns of user and assistant without tools and videos.
SYSTEM = (
    "{% if loop.first and message.role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
)
TURNS = (
    "{%% for message in messages %%}%s<|im_start|>{{ message.role }}\n{%% for part in message.content %%}"
    "{%% if part.type == 'image' %%}<|vision_start|><|image_pad|><|vision_end|>{%% else %%}{{ part.text }}{%% endif %%}"
    "{%% endfor %%}<|im_end|>\n{%% endfor %%}{%% if add_generation_prompt %%}<|im_start|>assistant\n{%% endif %%}"
)
# Of Gemma 3, as it stands in several public copies of its release (its processor puts the tokens for <start_of_image>).
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%}
"""
TEMPLATES = {
    "Qwen2-VL": TURNS % SYSTEM, "Qwen2.5-VL": TURNS % SYSTEM, "Qwen3-VL": TURNS % "", "Gemma 3": GEMMA,
}  # fmt: skip


def ask(name: str, images: tuple[ImageRef, ...], *turns: tuple[str, str]) -> Sample:
    spoken = tuple(Turn(Task.QA, BoxedText(question), BoxedText(answer)) for question, answer in turns)
    return Sample(name, images, Modality.CT, spoken, name)


ASKED = [
    ask("a", (WIDE,), ("What is seen?", "An organ.")),
    ask("b", (WIDE,), ("What is seen?", "An organ."), ("Which of them?", "The liver, on the left.")),
    ask("c", (STRIP, TALL), ("Is there a difference?", "No.")),
    ask("d", (), ("What is a liver?", "An organ in the belly.")),
]
ROWS = [ASKED[:2], ASKED[2:3], ASKED[3:]]


WORDS = tuple(t.text for s in ASKED for turn in s.turns for t in (turn.question, turn.answer))


def make_twin(family: Family, folder: Path, shape: TinyConfig = SHAPE) -> Any:
    """A network of the stock class with random weights; `folder` gets it with tokenizer and image processor."""
    tokenizer = tiny.train_tokenizer([*WORDS, *family.chat.words] * 2, shape.vocabulary, family.special_tokens)
    tokenizer.pad_token = family.chat.pad
    torch.manual_seed(0)
    stock = family.stock_class(family.stock_class.config_class(**family.tiny_settings(shape, tokenizer))).eval()
    with torch.no_grad():
        for name, weight in stock.named_parameters():  # as it starts, Gemma 3 sees nothing and repeats the last token
            if weight.dim() == 2 and not weight.any():
                weight.normal_(std=shape.init_std)
            elif "post_" in name and not weight.any():
                weight.normal_(mean=4)
    processor = family.tiny_processor(shape)
    if not family.geometry(processor).square:
        processor.size = {"shortest_edge": 32**2, "longest_edge": 112**2}
    for part in (stock, tokenizer, processor):
        part.save_pretrained(folder)
    return stock


# The family of the embedded model is tried by all tests of the model beside these.
TWINS = [pytest.param(f, id=f.name, marks=[pytest.mark.slow] if f is FAMILIES[0] else []) for f in FAMILIES]


@pytest.fixture(scope="module", params=TWINS)
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("twin")
    return folder, make_twin(request.param, folder)


@pytest.fixture
def model(twin: tuple[Path, Any]) -> VisionLanguageModel:
    return load(twin[0], PICTURES.__getitem__, native_knobs(twin[0])).eval()


def predict(stock: Any, model: VisionLanguageModel, sample: Sample) -> Tensor:
    """Logits [N, V] of the stock class at the tokens before each answer token, from the file's pixels, alone."""
    turns = model.text.segments([sample])[0]
    grids = [model.images.grid(ref) for ref in sample.images]
    ids, places = model.text.prefix(grids), []
    for question, answer in turns:
        places += range(len(ids) + len(question) - 1, len(ids) + len(question) + len(answer) - 1)
        ids = [*ids, *question, *answer]
    ids_BS = torch.tensor([ids])
    seen = {}
    if sample.images:
        seen = dict(model.processor(images=[PICTURES[ref] for ref in sample.images], return_tensors="pt"))
        marks = "mm_token_type_ids" if "image_grid_thw" in seen else "token_type_ids"
        seen = {name: seen[name] for name in ("pixel_values", "image_grid_thw") if name in seen}
        seen[marks] = (ids_BS == model.text.image_token).int()
    with torch.inference_mode():
        logits_NV: Tensor = stock(input_ids=ids_BS, **seen).logits[0, places]
    return logits_NV


def demand_equal(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize(
    ("rows", "line_tokens"), [(ROWS, 0), (ROWS, 1000), (ROWS[2:], 0)], ids=["padded", "packed", "text only"]
)
def test_rows_equal_the_stock_class(
    twin: tuple[Path, Any], model: VisionLanguageModel, rows: list[list[Sample]], line_tokens: int
) -> None:
    """Rows of several questions about the same images, padded or packed into one line."""
    model.line_tokens = line_tokens
    batch = model.encode(rows)
    assert len(batch.input_ids_BS) == (1 if line_tokens else len(rows))
    with torch.inference_mode():
        ours = model.network.lm_head(model.hidden_states(batch)).split([tokens for _, tokens in batch.spans])
    samples = {s.id: s for row in rows for s in row}
    for (name, _), logits_NV in zip(batch.spans, ours, strict=True):
        demand_equal(logits_NV, predict(twin[1], model, samples[name]))


def test_beams_equal_the_stock_class_also_from_stored_features(
    twin: tuple[Path, Any], model: VisionLanguageModel, tmp_path: Path
) -> None:
    end_here_and_there(model, ASKED, 6)
    theirs = generate_stock(model, ASKED, BEAMS, twin[1])
    ours = model.generate(ASKED, BEAMS)
    assert len({c.truncated for answers in ours for c in answers}) == 2
    for mine, stock in zip(ours, theirs, strict=True):
        best = {c.raw: c.logprob for c in reversed(stock)}
        assert {c.raw: c.logprob for c in mine} == pytest.approx(best, abs=1e-5)
    cache_features(tmp_path, model, PICTURES, "features")
    pixels_TD, grids_I3 = model.images.patches([*PICTURES][:1])
    assert model.family.feature_width(model.network.config) == model.tower(pixels_TD, grids_I3)[0].shape[1]
    FeatureCache(tmp_path, model).serve(model)
    model.images.forget()
    model.images.open_image = None  # type: ignore[assignment]  # none is opened
    assert [[c.raw for c in one] for one in model.generate(ASKED, BEAMS)] == [[c.raw for c in one] for one in ours]


def test_additions_are_merged_and_the_stock_class_takes_them(
    twin: tuple[Path, Any], model: VisionLanguageModel, tmp_path: Path
) -> None:
    parts = (*(["merger"] if model.family.native != Sequential() else []), "vision", "text")
    model.adapt(LoraConfig.model_validate({"rank": 2, "parts": parts}), 0)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
        batch = model.encode(ROWS)
        added = model.hidden_states(batch)
        model.merge()
        demand_equal(model.hidden_states(batch), added)
    assert model.is_stock
    model.save(tmp_path, stock=True)
    assert difference(model, tmp_path, ASKED) == 0
    with opened_folder(tmp_path, "a model") as opened:
        stock = opened.network(model.family.stock_class)[0].eval()
    changed = predict(stock, model, ASKED[1])
    assert not torch.allclose(changed, predict(twin[1], model, ASKED[1]), atol=1e-2)
    logits_NV = model.network.lm_head(added).split([n for _, n in batch.spans])[1]
    demand_equal(logits_NV, changed)


@pytest.mark.parametrize("twin", [t for t in TWINS if t.values[0].native != Sequential()], indirect=True)
@pytest.mark.parametrize("layout", ["halves", pytest.param("interleaved", marks=pytest.mark.slow)])
def test_tied_positions_are_saved_and_decoded(twin: tuple[Path, Any], layout: Any, tmp_path: Path) -> None:
    knobs = ModelConfig(base=twin[0], positions=NAMED_POSITIONS["tied"], layout=layout)
    model = load(twin[0], PICTURES.__getitem__, knobs).eval()
    end_here_and_there(model, ASKED, 6)
    ours, theirs = model.generate(ASKED, BEAMS), generate_stock(model, ASKED, BEAMS)  # of our network
    for mine, other in zip(ours, theirs, strict=True):
        assert {c.raw: c.logprob for c in mine} == pytest.approx({c.raw: c.logprob for c in reversed(other)}, abs=1e-5)
    assert not model.is_stock
    with pytest.raises(BadInput, match="exist in no stock class"):
        model.save(tmp_path, stock=True)
    model.save(tmp_path)
    assert native_knobs(tmp_path) is None and difference(model, tmp_path, ASKED) == 0
    again = load(tmp_path, PICTURES.__getitem__)
    assert again.family is model.family and again.knobs == model.knobs
    with opened_folder(tmp_path, "a model") as opened, pytest.raises(BadInput, match="positions of its own"):
        opened.network(model.family.stock_class)


def test_a_teacher_with_the_same_tower_takes_its_features(model: VisionLanguageModel) -> None:
    """Frozen by their names, tower and merger have no weight that learns."""
    teacher = copy.deepcopy(model)
    assert not model.shares_vision_with(teacher.visual)
    for one in (model, teacher):
        one.freeze(("vision", "merger"))
        assert not any(p.requires_grad for p in one.visual.parameters())
    assert model.shares_vision_with(teacher.visual)
    batch = model.encode(ROWS)
    with torch.inference_mode():
        assert torch.equal(teacher.hidden_states(batch, model.vision_features(batch)), model.hidden_states(batch))


def test_operations_are_those_that_torch_counts(model: VisionLanguageModel) -> None:
    batch = model.encode(ROWS)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.network.lm_head(model.hidden_states(batch))
    parts = model.operations(batch)
    assert parts and sum(part.forward for part in parts.values()) == counter.get_total_flops()


def test_prompts_equal_the_stock_chat_template(model: VisionLanguageModel) -> None:
    for sample in ASKED:
        image_parts: list[dict[str, str]] = [{"type": "image"}] * len(sample.images)
        messages: list[dict[str, Any]] = []
        for number, turn in enumerate(sample.turns):
            question = [*(image_parts if number == 0 else []), {"type": "text", "text": turn.question.text}]
            messages += [{"role": "user", "content": question}]
            messages += [{"role": "assistant", "content": [{"type": "text", "text": turn.answer.text}]}]
        prompt = model.tokenizer.apply_chat_template(
            messages[:-1], chat_template=TEMPLATES[model.family.name], add_generation_prompt=True, tokenize=False,
            bos_token=model.family.chat.first,
        )  # fmt: skip
        chat = model.family.chat
        shown = chat.image_start.strip() if chat.first else chat.image_token
        for tall, wide in [model.images.grid(ref) for ref in sample.images]:
            tokens = "<|place|>" * tall * wide
            marked = chat.image_start + tokens + chat.image_end if chat.first else tokens
            prompt = prompt.replace(shown, marked.replace(shown, "<|shown|>"), 1)
        prompt = prompt.replace("<|place|>", chat.image_token).replace("<|shown|>", shown)
        ours = encode_prompts([sample], model.text, model.images).whole()[0][0]
        assert model.tokenizer.decode(ours) == prompt


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name in RELEASED], ids=lambda family: family.name)
def test_images_have_as_many_tokens_as_the_stock_processor_makes(family: Family) -> None:
    least, most, patch = RELEASED[family.name]
    processor = family.processor_class(min_pixels=least, max_pixels=most, patch_size=patch)
    sides = [(28, 5600), (30, 5800), (100, 5000), (1, 200), (7, 7), (64, 64), (333, 1000), (1024, 768), (3000, 2000)]
    sides += [(6000, 5990), (512, 512), (2048, 2500), (45, 46), (13, 1999), (800, 801), (4100, 33), (97, 8111)]
    sides += [(5001, 5001), (224, 224)]
    sizes = [size for a, b in sides for size in ((a, b), (b, a)) if max(a, b) <= 200 * min(a, b)]
    assert len(sizes) >= 38
    for limit, (width, height) in itertools.product((None, 256), sizes):
        if limit:
            family.limit_image_tokens(processor, limit)
        images = ImageEncoder(family, processor, PICTURES.__getitem__, square=False)
        tall, wide = images.grid(ImageRef("x", width, height))
        assert tall * wide * processor.merge_size**2 == processor.get_number_of_image_patches(height, width)
