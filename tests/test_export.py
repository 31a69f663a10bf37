"""What `clinkd export` writes: the type of the weights, the checks, LoRA for peft, and the licence of the base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration

from clinkd.cli import main
from clinkd.config import LoraConfig, ModelConfig, TinyConfig
from clinkd.model import adapters
from clinkd.model.additions import ADDITIONS, read_additions, write_adapter
from clinkd.model.folders import ADAPTER, LOW_RANK, read_weight_type
from clinkd.model.licence import RESTRICTED, read_licence
from clinkd.model.vlm import VisionLanguageModel, load, load_foreign, new_tiny
from clinkd.records import BadInput, ImageRef

TINY = TinyConfig(
    hidden=48, layers=1, heads=2, mlp=64, vision_hidden=32, vision_layers=1, vision_heads=2, vocabulary=400,
    patch=14, image_pixels=56,
)  # fmt: skip
RUN = [
    "data.phantoms.train_images=6", "data.phantoms.validation_images=2", "data.phantoms.test_images=2",
    'data.phantoms.tasks=["VG"]', "data.workers=1", "model.positions=native", "model.layout=sections",
    "model.boxes=qwen2-vl", "model.square=false", "model.max_image_tokens=16", "distill.fit.optimizer=adamw",
    "reflect.fit.optimizer=adamw", "teacher=null", "distill.kd_weight=0", "distill.fit.min_steps=3",
    "distill.fit.lora={rank: 2}", "reflect.rounds=1", "reflect.fit.min_steps=3",
    "reflect.fit.lora={rank: 3, parts: [text, vision]}", "reflect.review_share=0.2", "reflect.recheck=0",
    "select.scorer=first", "answer.max_new_tokens=4", "evaluate.shuffled=false", "evaluate.replicates=20", "threads=1",
]  # fmt: skip
GEMMA = "---\nlicense: gemma\ntags: [a]\n---\n# A model\nlicense: mit\n"


def no_image(ref: ImageRef) -> Image.Image:
    return Image.new("RGB", (64, 64))


def fresh(**knobs: Any) -> VisionLanguageModel:
    config = ModelConfig(**{"tiny": TINY, "positions": "native", "layout": "sections", "boxes": "qwen2-vl", **knobs})
    return new_tiny(config, ["where is the liver", "the liver is here", "kidney lung heart tumor"], 0, no_image)


@pytest.fixture(scope="module")
def runs(one_meteor: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run `lora` whose stages both trained low-rank additions, on a base of bfloat16."""
    home = tmp_path_factory.mktemp("export")
    base = fresh()
    base.round_weights(torch.bfloat16)
    base.save(home / "twin", stock=True)
    (home / "twin" / "README.md").write_text(GEMMA)
    (home / "twin" / "LICENSE.txt").write_text("Terms")
    words = (word for knob in (f"model.base={home / 'twin'}", *RUN) for word in ("--set", knob))
    assert main(["run", "demo", "--runs", str(home / "runs"), "--name", "lora", *words]) == 0
    return home / "runs"


def export(capsys: pytest.CaptureFixture[str], runs: Path, *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["export", "--runs", str(runs), "--run", "lora", *words])
    return status, *capsys.readouterr()


def merged(folder: Path, adapter: Path | None = None) -> dict[str, torch.Tensor]:
    """The weights that strangers get in float32, by peft where there is an adapter."""
    network = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        network = peft.PeftModel.from_pretrained(network, str(adapter)).merge_and_unload()
    return {name: weight.clone() for name, weight in network.state_dict().items()}


def test_a_model_is_written_in_the_type_of_its_base_with_its_adapter(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = export(capsys, runs, str(tmp_path / "out"), "--adapter")
    assert status == 0, err
    assert "in bfloat16, loaded by transformers' own Qwen2-VL" in out and "Rounding to bfloat16 left" in out
    model, kept = tmp_path / "out", runs / "lora" / "stages" / "reflect-1" / "model"
    assert (
        read_weight_type(model) == "bfloat16" and json.loads((model / "config.json").read_text())["dtype"] == "bfloat16"
    )
    ours, written = (load_file(folder / "model.safetensors") for folder in (kept, model))
    assert ours.keys() == written.keys() and all(w.bfloat16().equal(written[n]) for n, w in ours.items())
    ours = load(kept, no_image).network.state_dict()

    # ranks of both stages in one adapter; vision learned in the second alone, and is filled up
    settings = json.loads((model / "adapter" / ADAPTER).read_text())
    assert (settings["r"], settings["lora_alpha"], settings["base_model_name_or_path"]) == (5, 5, "twin")
    whole = merged(runs.parent / "twin", model / "adapter")
    assert max(float((whole[name] - weight).abs().max()) for name, weight in ours.items()) < 1e-6
    plain = merged(runs.parent / "twin")
    changed = {n.rpartition(".layers.")[0] or n.rpartition(".blocks.")[0] for n in ours if not plain[n].equal(whole[n])}
    assert changed == {"model.language_model", "model.visual"}

    # clinkd reads it, too, once the base is named by its place
    settings["base_model_name_or_path"] = str(runs.parent / "twin")
    (model / "adapter" / ADAPTER).write_text(json.dumps(settings))
    again = load_foreign(model / "adapter", no_image).network.state_dict()
    assert all(torch.allclose(again[name], weight, atol=1e-6) for name, weight in ours.items())

    checks = json.loads((model / "export.json").read_text())
    assert checks["stage"] == "reflect-1" and checks["written"]["largest_difference"] <= 1e-5
    assert 0 < checks["against_float32"]["largest_difference"] < 0.1 and checks["adapter"]["rank"] == 5
    assert checks["adapter"]["largest_difference"] <= 1e-5
    number = checks["written"]["questions"]
    assert number == checks["written"]["equal_answers"] < 20
    card = (model / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "gemma" and head["base_model"] == "twin" and "## Licence" in card
    assert RESTRICTED["gemma"] in card and (model / "LICENSE.txt").read_text() == "Terms" and "`LICENSE.txt`" in card
    assert f"answers to {number} validation questions (the validation split has no 20)" in card
    assert str(runs) not in card and str(runs.parent) not in (model / "export.json").read_text()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_type_on_request(dtype: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = export(capsys, runs, str(tmp_path / "out"), "--dtype", dtype, "--max-drift", "100")
    assert status == 0, err
    assert read_weight_type(tmp_path / "out") == dtype and ("Rounding" in out) == (dtype == "float16")
    checks = json.loads((tmp_path / "out" / "export.json").read_text())
    drift = checks["against_float32"]["largest_difference"]
    assert drift <= 1e-5 if dtype == "float32" else 0 < drift < 0.05
    assert checks["adapter"] is None and not (tmp_path / "out" / "adapter").exists()


def change_weights(runs: Path) -> None:
    """So large that bfloat16 changes answers."""
    path = runs / "lora" / "stages" / "reflect-1" / "model" / "model.safetensors"
    weights = load_file(path)
    weights["model.language_model.norm.weight"] *= 1e3
    save_file(weights, path, {"format": "pt"})
