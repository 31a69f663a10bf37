"""Exported folders in a process without clinkd: what is served is what was trained, token by token and bit by bit."""

from __future__ import annotations

import ast
import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.stock_generate import difference
from tests.test_families_stock import SHAPE, make_twin
from tests.test_model_positions import KNOBS, STOCK, run

from clinkd.config import AffinePositions, AnswerConfig, ModelConfig
from clinkd.model import vlm
from clinkd.model.encode import encode_prompts
from clinkd.model.exported import served
from clinkd.model.exported.served import double_positions, has_code, write_served
from clinkd.model.families import FAMILIES, Family
from clinkd.model.families.portable.networks import NATIVE, ClinkdRotaryEmbedding
from clinkd.model.positions import Affine, position_scheme
from clinkd.model.vlm import VisionLanguageModel
from clinkd.records import BadInput, Box, BoxedText, ImageRef, Modality, Sample, Task, Turn
from clinkd.settings import change_knobs
from clinkd.workflows.loading import describe_loading

DRAWN = np.random.default_rng(0)
PICTURES = {  # odd sides, grey, a strip
    "odd": Image.fromarray(DRAWN.integers(0, 255, (97, 131, 3), dtype=np.uint8)),
    "grey": Image.fromarray(DRAWN.integers(0, 255, (61, 80), dtype=np.uint8)),
    "strip": Image.fromarray(DRAWN.integers(0, 255, (21, 400, 3), dtype=np.uint8)),
}
BOXES = (Box(0.25, 0.125, 0.75, 0.5), Box(0, 0, 1, 1))
QWEN2, QWEN2_5, QWEN3, GEMMA = FAMILIES
SCALED = AffinePositions(stride=0.75, gap=1.5, resume="extent")
CASES: dict[str, tuple[Family | None, dict[str, Any]]] = {  # no family: the embedded tiny model
    "tiny": (None, {}),
    "doubled": (QWEN2, {"positions": "tied", "layout": "interleaved", "boxes": "digits"}),
    "strips": (QWEN2_5, {"positions": SCALED, "layout": "sections", "boxes": "qwen2.5-vl", "square": False}),
    "deep": (QWEN3, {"positions": "tied", "layout": "halves", "boxes": "qwen3-vl"}),
    "square": (QWEN2, {"positions": "native", "layout": "sections", "boxes": "qwen2-vl"}),
    "stock": (QWEN3, {"positions": "native", "layout": "interleaved", "boxes": "qwen3-vl", "square": False}),
    "gemma": (GEMMA, {"positions": "native", "layout": "sections", "boxes": "gemma3"}),  # square by itself
}
MARKS = {  # of a published Gemma's tokenizer_config.json
    "bos_token": "<bos>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}  # fmt: skip
ANSWERS = AnswerConfig(beams=1, candidates=1, max_new_tokens=8)
STRANGER = """
import json, sys
from pathlib import Path
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "clinkd":
            raise ImportError("no clinkd here")
sys.meta_path.insert(0, Wall())
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, pipeline
)

root, trust = Path(sys.argv[1]), {"trust_remote_code": True}
pictures = {p.stem: Image.open(p) for p in root.glob("*.png")}
torch.set_num_threads(1)

def answer(name, folder, ask):
    model = AutoModelForImageTextToText.from_pretrained(folder, **trust).eval()
    processor = AutoProcessor.from_pretrained(folder, **trust)
    said = {"config": type(AutoConfig.from_pretrained(folder, **trust)).__name__, "answers": []}
    for number, (names, turns) in enumerate(ask):
        chat = []
        for k, (question, reply, boxes) in enumerate(turns):
            size = pictures[names[-1]].size if names else (1, 1)
            corners = [(x1 * size[0], y1 * size[1], x2 * size[0], y2 * size[1]) for x1, y1, x2, y2 in boxes]
            text = {"type": "text", "text": processor.spell_boxes(question, corners, size)}
            images = [{"type": "image", "image": pictures[n]} for n in names] if k == 0 else []
            chat += [{"role": "user", "content": [*images, text]}, {"role": "assistant", "content": reply}]
        inputs = processor.apply_chat_template(
            chat[:-1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
        with torch.inference_mode():
            logits, tokens = model(**inputs).logits, model.generate(**inputs)[:, inputs["input_ids"].shape[1]:]
        given = {k: v for k, v in inputs.items()} | {"logits": logits, "tokens": tokens}
        save_file({k: v.contiguous() for k, v in given.items()}, root / f"{name}-{number}.safetensors")
        said["answers"].append(processor.post_process_image_text_to_text(tokens)[0])
    spelled = processor.spell_boxes("a [box], b [box].", [(10, 20, 30, 40), (0, 0, 97, 60)], (97, 61))
    said["boxes"] = processor.read_boxes(spelled, (97, 61))
    if name == "tiny":
        pipe = pipeline("image-text-to-text", model=str(folder), **trust)
        said["pipeline"] = pipe(chat[:-1], return_full_text=False)[0]["generated_text"]
    return said

def look(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    images = AutoImageProcessor.from_pretrained(folder, backend="pil")(pictures["odd"], return_tensors="pt")
    save_file({k: v.contiguous() for k, v in images.items()}, root / f"{folder.name}.safetensors")
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return {"prompt": prompt, "class": type(AutoModelForImageTextToText.from_pretrained(folder)).__name__}

def refuse(load):
    try:
        load()
    except ValueError as error:
        return "trust_remote_code=True" in str(error)

asked = json.loads((root / "asked.json").read_text())
cards = {}
for name, code in asked.pop("cards").items():
    exec(code, cards.setdefault(name, {}))
    given = {**cards[name]["inputs"], "tokens": cards[name]["tokens"]}
    save_file({k: v.contiguous() for k, v in given.items()}, root / f"card-{name}.safetensors")
card = cards["tiny"]
said = {name: answer(name, root / name, ask) for name, ask in asked.items()}
said |= {name: look(root / name) for name in ("stock", "gemma")}
said["card"] = [card["answer"], card["words"]]
said["refused"] = [
    refuse(lambda: auto.from_pretrained(root / name, trust_remote_code=False))
    for auto, name in ((AutoConfig, "tiny"), (AutoModelForImageTextToText, "deep"), (AutoProcessor, "square"),
                       (AutoImageProcessor, "square"))]
(root / "said.json").write_text(json.dumps(said))
"""


def ask(name: str, pictures: tuple[str, ...], *turns: tuple[str, str, tuple[Box, ...]]) -> Sample:
    refs = tuple(ImageRef(picture, *PICTURES[picture].size) for picture in pictures)
    spoken = tuple(Turn(Task.QA, BoxedText(question, boxes), BoxedText(reply)) for question, reply, boxes in turns)
    return Sample(name, refs, Modality.CT, spoken, name)


ASKED = [
    ask("odd", ("odd",), ("What is in the [box], and in the [box]?", "", BOXES)),
    ask("grey", ("grey",), ("What is it?", "An organ.", ()), ("Is it the [box]?", "", BOXES[:1])),
    ask("both", ("odd", "strip"), ("Which of them?", "", ())),
]


def make_model(folder: Path, family: Family | None, knobs: dict[str, Any]) -> VisionLanguageModel:
    def opened(ref: ImageRef) -> Image.Image:
        return PICTURES[ref.path].convert("RGB")

    words = [turn.question.text for sample in ASKED for turn in sample.turns]
    if family is None:
        return vlm.new_tiny(ModelConfig(tiny=change_knobs(SHAPE, layers=2)), words, 0, opened).eval()
    make_twin(family, folder / "twin")
    if family is GEMMA:
        settings = folder / "twin" / "tokenizer_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | MARKS))
    return vlm.load(folder / "twin", opened, ModelConfig(base=folder / "twin", **knobs)).eval()


WITH_CODE = [name for name in CASES if name not in ("stock", "gemma")]
Served = tuple[Path, dict[str, VisionLanguageModel], dict[str, Any]]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """All folders, the models they came of, and what a process without clinkd said of them."""
    root, models, asked = tmp_path_factory.mktemp("served"), dict[str, VisionLanguageModel](), dict[str, Any]()
    for name, (family, knobs) in CASES.items():
        models[name] = model = make_model(tmp_path_factory.mktemp(name), family, knobs)
        model.save(root / name, model.is_stock)
        if name == "doubled":
            double_positions(model.network.config, root / name)
        write_served(model, root / name, ANSWERS.max_new_tokens)
        if name in WITH_CODE:
            asked[name] = [
                [
                    [r.path for r in s.images],
                    [[t.question.text, t.answer.text, [b.corners for b in t.question.boxes]] for t in s.turns],
                ]
                for s in ASKED
            ]
    asked["cards"] = {}
    for name in ("tiny", "gemma"):
        code = "\n".join(describe_loading(models[name])).partition("```python\n")[2].partition("```")[0]
        code = code.replace("FOLDER", repr(str(root / name))).replace("scan.png", str(root / "odd.png"))
        asked["cards"][name] = code
    for name, picture in PICTURES.items():
        picture.save(root / f"{name}.png")
    (root / "asked.json").write_text(json.dumps(asked))
    place = {"HF_MODULES_CACHE": str(root / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | place
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, str(root)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return root, models, json.loads((root / "said.json").read_text())


@pytest.mark.parametrize("name", WITH_CODE)
def test_prompts_pixels_logits_and_answers_are_ours(serving: Served, name: str) -> None:
    root, models, said = serving
    model = models[name]
    for number, sample in enumerate(ASKED):
        theirs = load_file(root / f"{name}-{number}.safetensors")
        prompt = encode_prompts([sample], model.text, model.images)
        input_ids_BS, mask_BS = prompt.whole()
        assert torch.equal(theirs["input_ids"], input_ids_BS) and torch.equal(theirs["attention_mask"], mask_BS)
        pixels_TD, grids_I3 = model.images.patches(sample.images)
        assert torch.equal(theirs["pixel_values"], pixels_TD) and torch.equal(theirs["image_grid_thw"], grids_I3)
        images = model.family.pixel_inputs(input_ids_BS == model.text.image_token, pixels_TD, grids_I3)
        with torch.inference_mode():
            logits_BSV = model.network(input_ids=input_ids_BS, attention_mask=mask_BS, **images).logits
        assert torch.allclose(theirs["logits"], logits_BSV, atol=1e-5)
        [[ours]] = model.generate([sample], ANSWERS)
        tokens = [t for t in theirs["tokens"][0].tolist() if t not in (model.text.end, model.text.pad)]
        assert model.tokenizer.decode(tokens, skip_special_tokens=False) == ours.raw
        if model.codec.special_tokens and "<|" not in ours.raw:
            assert said[name]["answers"][number] == ours.raw
    if name == "tiny":
        assert said[name]["pipeline"] == said[name]["answers"][-1]


@pytest.mark.parametrize("name", WITH_CODE)
def test_boxes_are_spelled_and_read_by_our_codec(serving: Served, name: str) -> None:
    _, models, said = serving
    model = models[name]
    size = model.images.box_frame([ImageRef("x", 97, 61)])
    boxes = (Box(10 / 97, 20 / 61, 30 / 97, 40 / 61), Box(0, 0, 1, 60 / 61))
    ours = model.codec.decode(model.codec.encode(BoxedText("a [box], b [box].", boxes), size), size).answer
    corners = [[b.x1 * 97, b.y1 * 61, b.x2 * 97, b.y2 * 61] for b in ours.boxes]
    assert said[name]["boxes"] == [ours.text, corners] and len(corners) == 2


def test_a_stock_model_needs_no_code(serving: Served) -> None:
    root, models, said = serving
    model = models["stock"]
    assert not list((root / "stock").glob("*.py")) and said["stock"]["class"] == QWEN3.stock_class.__name__
    sample = ask("s", ("odd",), ("What?", "", ()))
    ours = model.tokenizer.decode(encode_prompts([sample], model.text, model.images).whole()[0][0])
    tall, wide = model.images.grid(sample.images[0])
    assert said["stock"]["prompt"].replace("<|image_pad|>", "<|image_pad|>" * tall * wide) == ours
    assert torch.equal(load_file(root / "stock.safetensors")["pixel_values"], model.images.patches(sample.images)[0])


def test_the_lines_of_the_card_are_enough(serving: Served) -> None:
    _, models, said = serving
    model = models["tiny"]
    [[ours]] = model.generate([ask("s", ("odd",), ("Where is the liver?", "", ()))], ANSWERS)
    assert said["card"] == [ours.raw, ours.answer.text]


def test_the_card_of_a_family_that_makes_squares_itself_is_enough(serving: Served) -> None:
    """No code, the stock classes alone, and the pixels of training."""
    root, models, said = serving
    model = models["gemma"]
    assert model.knobs.square and not list((root / "gemma").glob("*.py"))
    assert said["gemma"]["class"] == GEMMA.stock_class.__name__
    sample = ask("s", ("odd",), ("Where is the liver?", "", ()))
    theirs, prompt = load_file(root / "card-gemma.safetensors"), encode_prompts([sample], model.text, model.images)
    assert torch.equal(theirs["input_ids"], prompt.whole()[0])
    pixels_TD, grids_I3 = model.images.patches(sample.images)
    shown = GEMMA.pixel_inputs(theirs["input_ids"] == model.text.image_token, pixels_TD, grids_I3)
    assert torch.equal(theirs["pixel_values"], shown["pixel_values"])
    [[ours]] = model.generate([sample], ANSWERS)
    tokens = [t for t in theirs["tokens"][0].tolist() if t not in (model.text.end, model.text.pad)]
    assert model.tokenizer.decode(tokens, skip_special_tokens=False) == ours.raw
    card = "\n".join(describe_loading(model))
    assert "trust_remote_code" not in card and "grids.py" not in card and "needs torchvision" not in card
    assert "made square before" in "\n".join(describe_loading(models["tiny"]))  # the plugin takes the stock processor


def test_no_code_runs_without_the_word(serving: Served) -> None:
    assert serving[2]["refused"] == [True] * 4


@pytest.mark.parametrize("name", CASES)
def test_clinkd_loads_the_folder_as_it_was_trained(serving: Served, name: str) -> None:
    root, models, _ = serving
    model = models[name]
    assert difference(model, root / name, ASKED[:1]) == 0
    again = vlm.load_foreign(root / name, model.images.open_image).eval()
    assert again.knobs == model.knobs and again.text.chat == model.text.chat
    ours, theirs = (one.generate(ASKED[:2], ANSWERS) for one in (model, again))
    assert ours == theirs


def test_the_code_is_ours_but_for_its_imports_and_asks_for_nothing_else(serving: Served) -> None:
    source = Path(served.__file__).parents[2]
    for name in WITH_CODE:
        files = list((serving[0] / name).glob("*.py"))
        assert {"processing.py", "codecs.py", "grids.py"} <= {file.name for file in files}
        for file in files:
            ours = [path.read_text() for path in source.rglob(file.name)]
            assert re.sub(r"^from \.", "", file.read_text(), flags=re.M) in [
                served.LICENCE + re.sub(r"^from clinkd\.(?:\w+\.)*", "", text, flags=re.M) for text in ours
            ]
            for node in ast.walk(ast.parse(file.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
                tops = {name.partition(".")[0] for name in names}
                assert tops <= {*sys.stdlib_module_names, "torch", "transformers", "numpy"}, file


def test_how_answers_end_is_written(serving: Served) -> None:
    root, models, _ = serving
    for name, model in models.items():
        settings = json.loads((root / name / "generation_config.json").read_text())
        assert settings["eos_token_id"] == model.text.end and settings["pad_token_id"] == model.text.pad
        assert settings["suppress_tokens"] == model.suppressed_tokens and settings["max_new_tokens"] == 8


SCHEMES = [position_scheme(knobs.positions, NATIVE) for knobs in KNOBS]
SCHEMES += [Affine(1.0), Affine(3.0), Affine(0.5), Affine(0.25, 1.0, "extent"), Affine(0.5, 2.5, "extent")]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_scheme_knows_when_its_positions_are_whole(scheme: Any) -> None:
    places = torch.cat([run(scheme, grids) for grids in ([(3, 3), (4, 4)], [(4, 5), (5, 5), (6, 4)])], dim=1)
    for times in (1, 2):
        assert scheme.is_whole(times) == bool(((times * places) % 1 == 0).all())


@pytest.mark.parametrize("knobs", KNOBS, ids=lambda k: f"{k.positions.name}-{k.layout}")
def test_doubled_positions_give_the_same_angles_to_the_bit(knobs: ModelConfig, tmp_path: Path) -> None:
    config = QWEN2.configure(copy.deepcopy(STOCK), knobs)
    config.save_pretrained(tmp_path)
    scheme = position_scheme(knobs.positions, NATIVE)
    if scheme.is_whole(1) or not scheme.is_whole(2):
        with pytest.raises(BadInput, match="--positions doubled: positions are .*leave the option out"):
            double_positions(config, tmp_path)
        return
    double_positions(config, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    text = settings["text_config"]
    assert text["rope_step"] == text["rope_parameters"]["factor"] == 2
    assert (text["rope_parameters"]["rope_type"] == "linear") == (knobs.layout != "halves")
    written = type(config)(**settings)
    plain, doubled = (ClinkdRotaryEmbedding(c.text_config) for c in (config, written))
    assert torch.equal(doubled.inv_freq, plain.inv_freq / 2)
    places = [run(scheme, grids) for grids in ([(3, 3)], [(64, 64)], [(7, 9), (32, 33)])]
    for positions in (*places, *(place + 100_000 for place in places)):
        assert ((2 * positions) % 1 == 0).all()
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.zeros(1, dtype=dtype)
            assert all(map(torch.equal, plain(x, positions[:, None]), doubled(x, positions[:, None])))
    back = QWEN2.configure(settings, knobs).text_config  # the folder as a base of another run
    assert back.rope_step == 1 and back.rope_parameters == config.text_config.rope_parameters


def test_only_a_family_with_code_to_carry_has_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = make_model(tmp_path, None, {})
    assert has_code(model)
    monkeypatch.setattr(type(model.family), "carried_processors", lambda _: None)
    assert not has_code(model)
    model.save(tmp_path / "model")
    write_served(model, tmp_path / "model", 8)
    assert not list((tmp_path / "model").glob("*.py"))
