"""Bases as people have them: LoRA adapters, slow tokenizers, pickles turned by the command told, other ropes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clinkd.config import ModelConfig, RunConfig, TinyConfig
from clinkd.language.facts import Lexicon
from clinkd.model.folders import ADAPTER, LOW_RANK
from clinkd.model.vlm import VisionLanguageModel, load, load_foreign, new_tiny
from clinkd.pipeline import pretraining, stages
from clinkd.pipeline.graph import StageContext
from clinkd.pipeline.inputs import StageInputs
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.models import load_model
from clinkd.pipeline.prepared import DATA
from clinkd.records import SPLITS, BadInput, ImageRef
from clinkd.settings import change_knobs
from clinkd.storage import write_json
from clinkd.workflows.forecast import count_least

TINY = TinyConfig(
    hidden=48, layers=1, heads=2, mlp=64, vision_hidden=32, vision_layers=1, vision_heads=2, vocabulary=300
)
TEXT = "the liver<|im_end|> is here <|image_pad|>"
LAYERS = ["q_proj", "down_proj", "visual.blocks.0.attn.qkv"]
TEXT_NAME, VISION_NAME = "base_model.model.model.language_model.", "base_model.model.model.visual."


def no_image(ref: ImageRef) -> Image.Image:
    return Image.new("RGB", (64, 64))


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock") / "base"
    knobs = ModelConfig(tiny=TINY, positions="native", layout="sections", boxes="qwen2-vl")
    new_tiny(knobs, ["the liver is here"], 0, no_image).save(folder, stock=True)
    return folder


@pytest.fixture
def base(stock: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stock, tmp_path / "base")


def train(base: Path, folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """Write an adapter with random numbers by peft; the weights that peft merges from it."""
    torch.manual_seed(1)
    network = load_foreign(base, no_image).network
    config = {"r": 4, "lora_alpha": 6, "target_modules": LAYERS, "init_lora_weights": False, **settings}
    adapted = peft.get_peft_model(network, peft.LoraConfig(**config))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return {name: weight.clone() for name, weight in adapted.merge_and_unload().state_dict().items()}


def differences(model: VisionLanguageModel, weights: dict[str, torch.Tensor]) -> dict[str, float]:
    own = model.network.state_dict()
    assert own.keys() == weights.keys()
    return {name: float((own[name] - weight).abs().max()) for name, weight in weights.items()}


def rename(folder: Path) -> None:
    """As transformers named layers when most adapters were trained."""
    weights = load_file(folder / LOW_RANK)
    old = {
        n.replace(TEXT_NAME, "base_model.model.model.").replace(VISION_NAME, "base_model.model.visual."): w
        for n, w in weights.items()
    }
    assert len(old) == 6 and not old.keys() & weights.keys()
    save_file(old, folder / LOW_RANK)


@pytest.mark.parametrize(
    ("settings", "change"), [({}, lambda folder: None), ({"use_rslora": True}, rename)], ids=["as it is", "other names"]
)
def test_an_adapter_is_merged_as_peft_does(
    base: Path, tmp_path: Path, settings: dict[str, Any], change: Callable[[Path], None]
) -> None:
    merged = train(base, tmp_path / "adapter", **settings)
    change(tmp_path / "adapter")
    plain, model = load_foreign(base, no_image), load_foreign(tmp_path / "adapter", no_image)
    assert max(differences(model, merged).values()) < 1e-6
    changed = {name for name, most in differences(plain, merged).items() if most > 1e-4}
    assert len(changed) == 3 and {name for name, most in differences(model, plain.network.state_dict()).items() if most}
    assert model.tokenizer(TEXT)["input_ids"] == plain.tokenizer(TEXT)["input_ids"]


def test_the_stage_base_keeps_what_was_merged_and_follows_both_folders(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, prepared, stage = (tmp_path / name for name in ("adapter", "prepare", "stage"))
    merged, recorded = train(base, folder), dict[str, Any]()
    for place in (prepared, stage):
        place.mkdir()
    write_json(prepared / DATA, {"root": "", "lexicon": Lexicon(()).to_json()})
    for split in SPLITS:
        (prepared / f"{split}.jsonl").touch()
    config = ModelConfig(base=folder, positions="native", layout="sections", max_image_tokens=9)
    context = StageContext(stage, {"prepare": prepared}, 0, recorded.__setitem__)
    pretraining.base(StageInputs(context, Machine("cpu", 1)), config)
    assert f"base: {folder} is an adapter of {base}, and merged" in capsys.readouterr().err
    known = stages._identify_model(config)
    (folder / ADAPTER).write_text((folder / ADAPTER).read_text() + " ")
    assert stages._identify_model(config) != known
    known = stages._identify_model(config)
    (base / "config.json").write_text((base / "config.json").read_text() + " ")
    assert stages._identify_model(config) != known
    assert count_least(RunConfig(model=config)) == count_least(RunConfig(model=change_knobs(config, base=base)))
    shutil.rmtree(base)
    model = load_model(stage, no_image)
    assert max(differences(model, merged).values()) < 1e-6 and recorded["adapter_of"] == str(base)
    assert model.images.geometry.most_pixels == 9 * model.images.geometry.factor**2


def adapter_setting(**more: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        settings = json.loads((folder / ADAPTER).read_text())
        (folder / ADAPTER).write_text(json.dumps({**settings, **more}))

    return apply


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / LOW_RANK)
        change(weights)
        save_file(weights, folder / LOW_RANK)

    return apply


A = TEXT_NAME + "layers.0.self_attn.q_proj.lora_A.weight"
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "base of a hub": (adapter_setting(base_model_name_or_path="Qwen/Qwen2-VL-2B"), "base 'Qwen/Qwen2-VL-2B', which is"),
    "no base": (adapter_setting(base_model_name_or_path=None), "an adapter of the base '', which is no folder here"),
    "another method": (adapter_setting(peft_type="IA3"), "peft_type='IA3': only plain LoRA is merged here"),
    "DoRA": (adapter_setting(use_dora=True), "use_dora=True: only plain LoRA"),
    "ranks by layer": (adapter_setting(rank_pattern={"q_proj": 2}), "rank_pattern={'q_proj': 2}: only plain LoRA"),
    "whole modules": (adapter_setting(modules_to_save=["lm_head"]), "modules_to_save=['lm_head']: only plain"),
    "biases": (adapter_setting(bias="all"), "bias='all': only plain LoRA"),
    "a changed base": (adapter_setting(init_lora_weights="pissa"), "init_lora_weights='pissa': only plain LoRA"),
    "what is not known yet": (adapter_setting(use_more=1), "use_more=1: only plain LoRA"),
    "no rank": (adapter_setting(r=None), "r=None, lora_alpha=6: two numbers are wanted"),
    "another rank": (adapter_setting(r=3), f"{LOW_RANK}: base_model.model.model.language_model.layers.0"),
    "half": (tensors(lambda w: w.pop(A)), "there is only lora_A or lora_B"),
    "a bias": (tensors(lambda w: w.update({"base_model.model.x.bias": torch.ones(2)})), "x.bias [2] is no LoRA"),
    "NaN": (tensors(lambda w: w[A].fill_(float("nan"))), "holds NaN or infinite numbers"),
    "a layer of another model": (
        tensors(lambda w: w.update({n.replace("layers.0.self", "layers.7.self"): w.pop(n) for n in list(w)})),
        "layers.7.self_attn.q_proj is no linear layer of the base",
    ),
    "another width": (tensors(lambda w: w.update({A: torch.ones(4, 5)})), "q_proj is of other sizes in the base"),
    "pickle": (lambda folder: (folder / LOW_RANK).rename(folder / "adapter_model.bin"), "model.bin is a pickle, which"),
    "cut": (lambda folder: (folder / LOW_RANK).write_bytes(b"cut"), f"{LOW_RANK}: its weights are cut or broken"),
}  # fmt: skip


@pytest.fixture(scope="module")
def adapter(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    train(stock, folder)
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plain_adapter_is_refused_in_a_line(case: str, adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    change, told = REFUSED[case]
    change(folder)
    with pytest.raises(BadInput) as error:
        load_foreign(folder, no_image)
    assert told in str(error.value) and "\n" not in str(error.value) and str(folder) in str(error.value)


def test_a_head_that_is_the_input_table_is_not_merged(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "adapter", target_modules=["lm_head"])
    with pytest.raises(BadInput, match="changes the head, which is one with the input table in its base"):
        load_foreign(tmp_path / "adapter", no_image)


def test_a_slow_tokenizer_gives_the_same_tokens(base: Path) -> None:
    ids = load_foreign(base, no_image).tokenizer(TEXT)["input_ids"]
    fast = json.loads((base / "tokenizer.json").read_text())
    (base / "tokenizer.json").unlink()
    merges = [m if isinstance(m, str) else " ".join(m) for m in fast["model"]["merges"]]
    (base / "vocab.json").write_text(json.dumps(fast["model"]["vocab"]))
    (base / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    settings = json.loads((base / "tokenizer_config.json").read_text())
    added = {str(t.pop("id")): t for t in fast["added_tokens"]}
    settings |= {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_foreign(base, no_image).tokenizer(TEXT)["input_ids"] == ids


def test_the_command_told_turns_pickles_into_safetensors(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = load_file(base / "model.safetensors")
    names = sorted(weights)
    for number, part in enumerate((names[:9], names[9:]), start=1):
        torch.save({name: weights[name] for name in part}, base / f"pytorch_model-{number}.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(BadInput) as error:
        load_foreign(base, no_image)
    (code,) = re.findall(r'python -c "(.*)"$', str(error.value))
    monkeypatch.chdir(base)
    exec(code, {})
    again = load_file(base / "model.safetensors")
    assert again.keys() == weights.keys() and all(torch.equal(again[n], w) for n, w in weights.items())
    load_foreign(base, no_image)


@pytest.mark.parametrize(("kind", "key"), [("yarn", "rope_scaling"), ("linear", "rope_parameters")])
def test_a_base_of_another_rope_is_refused_by_name(base: Path, kind: str, key: str) -> None:
    config = json.loads((base / "config.json").read_text())
    rope = config["text_config"].pop("rope_parameters")
    config["text_config"][key] = {**rope, "rope_type": kind, "type": kind, "factor": 4.0}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=f"rope_type '{kind}' is not supported"):
        load(base, no_image, ModelConfig(base=base))
