"""What `clinkd export` writes: the type of the weights, the checks, LoRA for peft, and the licence of the base."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
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
from clinkd.config import LoraConfig, ModelConfig, TeacherConfig, TinyConfig
from clinkd.model.additions import ADDITIONS, read_additions, write_adapter, write_additions
from clinkd.model.exported.licence import RESTRICTED, read_licence
from clinkd.model.folders import ADAPTER, read_weight_type
from clinkd.model.vlm import VisionLanguageModel, load, load_foreign, new_tiny
from clinkd.pipeline.runs import open_run
from clinkd.records import BadInput, ImageRef
from clinkd.settings import change_knobs
from clinkd.storage import MANIFEST, Manifest, digest_file, write_json
from clinkd.workflows.export import _demand_additions, _describe_licence, _find_base, _pass_licences_on

TINY = TinyConfig(
    hidden=48, layers=1, heads=2, mlp=64, vision_hidden=32, vision_layers=1, vision_heads=2, vocabulary=400,
    patch=14, image_pixels=56, init_std=0.2,  # so large that rounding changes answers
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


@pytest.fixture(scope="module")
def bf16_run(runs: Path) -> Path:
    """A run `bf16` on the same base, which keeps it in bfloat16 and rounds what it learned."""
    knobs = [
        f"model.base={runs.parent / 'twin'}", *RUN, "model.dtype=bf16", "distill.fit.precision=bf16", "reflect=null",
        "distill.fit.learning_rate=0.05",
    ]  # fmt: skip
    knobs = [knob for knob in knobs if not knob.startswith("reflect.")]
    words = (word for knob in knobs for word in ("--set", knob))
    assert main(["run", "demo", "--runs", str(runs), "--name", "bf16", *words]) == 0
    return runs


def export(capsys: pytest.CaptureFixture[str], runs: Path, *words: str, name: str = "lora") -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["export", "--runs", str(runs), "--run", name, *words])
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
    assert "in bfloat16, loaded by transformers' own Qwen2-VL" in out and "Weights were rounded to bfloat16" in out
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
    assert 0 < checks["against_float32"]["largest_difference"] < 0.5 and checks["adapter"]["rank"] == 5
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
    assert read_weight_type(tmp_path / "out") == dtype and ("rounded to" in out) == (dtype == "float16")
    checks = json.loads((tmp_path / "out" / "export.json").read_text())
    drift = checks["against_float32"]["largest_difference"]
    assert drift == 0 if dtype == "float32" else 0 < drift < 0.1
    assert checks["adapter"] is None and not (tmp_path / "out" / "adapter").exists()


def test_a_run_that_keeps_bfloat16_is_compared_with_its_own_weights_in_float32(
    bf16_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = export(capsys, bf16_run, str(tmp_path / "out"), "--adapter", name="bf16")
    assert status == 0, err
    assert "No weight was rounded: the run keeps them in bfloat16" in out and "trained" not in out
    checks = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (checks["dtype"], checks["kept"]) == ("bfloat16", "bfloat16")
    assert checks["against_float32"]["largest_difference"] == 0, "nothing was rounded"
    adapter = checks["adapter"]
    assert adapter["largest_difference"] <= 1e-5 * adapter["largest_logit"]
    assert adapter["against_model"]["largest_difference"] > 1e-3
    assert "The run rounded that sum to bfloat16" in (tmp_path / "out" / "README.md").read_text()
    status, _, err = export(capsys, bf16_run, str(tmp_path / "wide"), "--dtype", "float32", name="bf16")
    assert status == 0, err
    kept = load_file(bf16_run / "bf16" / "stages" / "distill" / "model" / "model.safetensors")
    written = load_file(tmp_path / "wide" / "model.safetensors")
    assert all(weight.dtype == torch.bfloat16 and weight.float().equal(written[n]) for n, weight in kept.items())
    for folder, dtype in (("out", torch.bfloat16), ("wide", torch.float32)):
        assert load_foreign(tmp_path / folder, no_image).dtype == dtype


def test_a_folder_of_ours_is_loaded_in_the_type_that_was_written(tmp_path: Path) -> None:
    model = fresh(positions="tied")
    for dtype, loaded in (("bfloat16", "bfloat16"), ("float16", "float32")):
        model.round_weights(getattr(torch, dtype))
        model.save(tmp_path / dtype)
        assert load_foreign(tmp_path / dtype, no_image).dtype == getattr(torch, loaded)


def test_a_failed_check_leaves_no_folder(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def round_coarsely(model: VisionLanguageModel, dtype: torch.dtype) -> None:
        for weight in model.network.parameters():
            weight.data = (weight.data * 4).round() / 4

    monkeypatch.setattr(VisionLanguageModel, "round_weights", round_coarsely)
    status, _, err = export(capsys, runs, str(tmp_path / "out"), "--max-drift", "0")
    assert status == 2 and "--max-drift=0: rounding to bfloat16 changes" in err and "give --dtype float32" in err
    status, _, err = export(capsys, runs, str(tmp_path / "out"), "--max-drift", "nan")
    assert status == 2 and "--max-drift=nan: a percentage from 0 to 100 is wanted" in err
    assert not list(tmp_path.iterdir())


def test_a_weight_too_large_for_the_type_is_named() -> None:
    model = fresh()
    with torch.no_grad():
        model.network.model.language_model.norm.weight[0] = 1e5
    with pytest.raises(BadInput, match=r"float16: holds no number as large as some of model\.language_model\.norm"):
        model.round_weights(torch.float16)


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Path:
    """The run in a folder of its own."""
    shutil.copytree(runs.parent, tmp_path / "home", symlinks=True)
    return tmp_path / "home" / "runs"


def test_what_no_adapter_holds_is_told(copy: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("distill", "reflect-1"):  # as a version left them that kept no additions apart
        stage = (copy / "lora" / "stages" / name).resolve()
        (stage / "model" / ADDITIONS).unlink()
        listed = {n: digest for n, digest in Manifest.read(stage).items() if not n.endswith(ADDITIONS)}
        (stage / MANIFEST).write_bytes(Manifest.encode(listed))
    assert export(capsys, copy, str(tmp_path / "out"))[0] == 0  # all else is as it was
    status, _, err = export(capsys, copy, str(tmp_path / "adapted"), "--adapter")
    assert status == 2 and "was trained by a version that kept no additions apart; remove" in err
    assert f"{(copy / 'lora' / 'stages' / 'distill').resolve()} and " in err and not (tmp_path / "adapted").exists()

    run, base = open_run(copy / "lora"), runs_base(copy)
    model = fresh()
    model.additions = {"model.layer": (torch.ones(1, 2), torch.ones(2, 1))}
    _demand_additions(run, model, "reflect-1", base)
    reflect = run.config.reflect
    assert reflect
    whole = change_knobs(run.config, reflect=change_knobs(reflect, fit=change_knobs(reflect.fit, lora=None)))
    for told, given in {
        "this run has no pretrained base": (run, model, "reflect-1", None),
        f"its base is no longer at {tmp_path}/gone": (run, model, "reflect-1", tmp_path / "gone"),
        "positions=tied, layout=sections are not the base's own": (run, fresh(positions="tied"), "reflect-1", base),
        "with reflect.fit.lora=null all weights were trained": (replace(run, config=whole), model, "reflect-1", base),
        f"this run trained nothing: its model is {base}": (run, model, "base", base),
    }.items():
        with pytest.raises(BadInput, match=re.escape(told) + ".*leave it out"):
            _demand_additions(*given)


def runs_base(copy: Path) -> Path:
    base = _find_base(open_run(copy / "lora"), "reflect-1")
    assert base and base.name == "twin"
    return base


def test_a_teacher_has_a_base_and_a_licence_of_its_own(copy: Path, tmp_path: Path) -> None:
    run, base = open_run(copy / "lora"), runs_base(copy)
    teachers = tmp_path / "large"
    teachers.mkdir()
    (teachers / "README.md").write_text("---\nlicense: other\nlicense_name: qwen-research\n---\n")
    (teachers / "LICENSE.txt").write_text("Other terms")
    fit = change_knobs(run.config.distill.fit, lora=None) if run.config.distill else None
    taught = replace(run, config=change_knobs(run.config, teacher=TeacherConfig(base=teachers, fit=fit)))
    (tmp_path / "draft").mkdir()
    head, section = _pass_licences_on(taught, "reflect-1", base, tmp_path / "draft")
    assert head == ['base_model: "twin"', 'license: "gemma"']
    words = "\n".join(section)
    assert "The teacher's base, `large`, says that it is under `qwen-research`" in words
    assert RESTRICTED["gemma"] in words and RESTRICTED["qwen-research"] in words
    texts = {path.name: path.read_text() for path in (tmp_path / "draft").iterdir()}
    assert texts == {"LICENSE.txt": "Terms", "teacher-LICENSE.txt": "Other terms"} and "`teacher-LICENSE.txt`" in words
    assert _find_base(taught, "teacher") == teachers
    with pytest.raises(BadInput, match=r"with teacher\.fit\.lora=null all weights were trained"):
        _demand_additions(taught, fresh(), "teacher", teachers)


def test_without_its_base_a_run_is_exported_in_a_given_type(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pointer = (copy / "lora" / "stages" / "base" / "base.json").resolve()
    content = json.loads(pointer.read_text())
    write_json(pointer, {**content, "folder": str(tmp_path / "gone")})
    listed = Manifest.read(pointer.parent)
    (pointer.parent / MANIFEST).write_bytes(Manifest.encode({**listed, "base.json": digest_file(pointer)}))
    status, _, err = export(capsys, copy, str(tmp_path / "out"))
    assert status == 2 and f"{tmp_path / 'gone'}: there are no weights there whose type" in err and "--dtype" in err
    assert export(capsys, copy, str(tmp_path / "out"), "--dtype", "float32")[0] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The folder of the base, `gone`, was not there any more when this was written, so its licence is not" in card


def test_stacked_additions_are_their_sum(tmp_path: Path) -> None:
    """A rank more, a layer that only one of them has, and a scale that is not 1."""
    model = fresh()
    plain = {name: weight.clone() for name, weight in model.network.state_dict().items()}
    model.additions = {}
    for seed, lora in enumerate((LoraConfig(rank=2, alpha=3), LoraConfig(rank=3, alpha=5, parts=("text", "merger")))):
        model.adapt(lora, seed)
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.merge()
    assert model.additions
    write_additions(model.additions, tmp_path)
    kept = read_additions(tmp_path)
    assert kept and {len(down) for name, (down, _) in kept.items() if "merger" in name} == {3}
    assert {len(down) for name, (down, _) in kept.items() if "merger" not in name} == {5}
    assert write_adapter(kept, tmp_path, "base") == 5
    for name, weight in model.network.state_dict().items():
        down, up = kept.get(
            name.removesuffix(".weight"), (torch.zeros(0, weight.shape[-1]), torch.zeros(len(weight), 0))
        )
        added = (up @ down).reshape(weight.shape) if weight.ndim == 2 else torch.zeros(())
        assert torch.allclose(plain[name] + added, weight, atol=1e-5), name
    model.adapt(LoraConfig(rank=2), 2)
    model.additions = None  # as after a training of all weights
    model.merge()
    assert model.additions is None


def test_the_type_is_that_of_most_numbers(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(9).bfloat16(), "b": torch.zeros(8)}, tmp_path / "model.safetensors")
    assert read_weight_type(tmp_path) == "bfloat16"
    save_file({"a": torch.zeros(99, dtype=torch.int8)}, tmp_path / "more.safetensors")
    assert read_weight_type(tmp_path) is None and read_weight_type(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("head", "name", "restricted"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0", False),
        (GEMMA, "gemma", True),
        ("---\nlicense: other\nlicense_name: qwen-research\nlicense_link: LICENSE\n---\n", "qwen-research", True),
        ("---\nlicense: other\nlicense_name: health-ai-developer-foundations\n---\n",
         "health-ai-developer-foundations", True),
        ("---\nlicense: other\n---\n", "", False),
        ("---\ntags: [a]\n---\nlicense: mit\n", "", False),
        ("license: mit\n", "", False),
        ("---\nlicense: [mit\n---\n", "", False),
        ('---\nlicense: "a\\e[31m"\n---\n', "", False),
        ("", "", False),
    ],
)  # fmt: skip
def test_a_licence_is_read_and_never_guessed(tmp_path: Path, head: str, name: str, restricted: bool) -> None:
    (tmp_path / "README.md").write_text(head)
    for file in ("LICENSE", "Notice.txt", "USE_POLICY.md", "licensed.py", "model.safetensors"):
        (tmp_path / file).write_text("x")
    licence = read_licence(tmp_path)
    assert licence.name == name and bool(licence.restriction) == restricted
    assert {path.name for path in licence.files} == {"LICENSE", "Notice.txt", "USE_POLICY.md"}
    lines, section = _describe_licence(tmp_path, licence)
    assert bool(lines) == bool(licence.fields) and ("names no licence: look it up" in section[0]) == (name == "")
    assert yaml.safe_load("\n".join(lines)) == (dict(licence.fields) or None)


def test_a_licence_comes_from_no_other_folder(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "base" / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInput, match="leads out of the folder"):
        read_licence(tmp_path / "base")
