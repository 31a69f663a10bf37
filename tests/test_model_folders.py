"""Folders with models from anywhere: no code of theirs runs, nothing outside is read or fetched, faults are named."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from clinkd.clip.model import ImageTextModel, new_tiny_clip
from clinkd.config import AnswerConfig, ClipConfig, ModelConfig, TinyConfig
from clinkd.model import folders
from clinkd.model.folders import opened_folder, read_shapes
from clinkd.model.vlm import VisionLanguageModel, load_foreign, new_tiny
from clinkd.records import BadInput, BoxedText, ImageRef, Modality, Sample, Task, Turn

TINY = TinyConfig(
    hidden=48, layers=1, heads=2, mlp=64, vision_hidden=32, vision_layers=1, vision_heads=2, vocabulary=300
)
SAMPLE = Sample(
    "s", (ImageRef("a.png", 64, 64),), Modality.CT, (Turn(Task.QA, BoxedText("Where is it?"), BoxedText("?")),), "g"
)  # fmt: skip
CODE = "import pathlib\npathlib.Path({!r}).touch()\nclass Evil: pass\nEvilTok = EvilConf = EvilModel = Evil\n"
Change = Callable[[Path], object]


def no_image(ref: ImageRef) -> Image.Image:
    return Image.new("RGB", (64, 64))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    new_tiny(ModelConfig(tiny=TINY), ["the liver is here"], 0, no_image).save(folder)
    return folder


@pytest.fixture(scope="module")
def answers(exported: Path) -> list[str]:
    return answer(load_foreign(exported, no_image))


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "model")


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody says yes, and there is no network."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked a person, or reached for a network")

    monkeypatch.setattr("builtins.input", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class Program:
    """What, pickled, makes a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def answer(model: VisionLanguageModel) -> list[str]:
    return [c.raw for c in model.eval().generate([SAMPLE], AnswerConfig(beams=1, candidates=1, max_new_tokens=4))[0]]


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    """Change what a file of JSON holds."""

    def apply(folder: Path) -> None:
        path = folder / name
        settings = json.loads(path.read_text()) if path.exists() else {}
        change(settings)
        path.write_text(json.dumps(settings))

    return apply


def setting(name: str, **more: Any) -> Change:
    return edit(name, lambda settings: settings.update(more))


def nested(part: str, **more: Any) -> Change:
    return edit("config.json", lambda settings: settings[part].update(more))


def mark_of(folder: Path) -> Path:
    return folder.parent / "ran"


def write_pickle(*names: str) -> Change:
    return lambda folder: [(folder / n).write_bytes(pickle.dumps(Program(mark_of(folder)))) for n in names]


def write(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def program(name: str) -> Change:
    def apply(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(CODE.format(str(mark_of(folder))))

    return apply


def drop(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def index(target: str) -> Change:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        write_pickle("shard.bin")(folder)
        map_ = {"lm_head.weight": target.replace("HERE", str(folder.parent))}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": map_}))

    return apply


def link_outside(name: str) -> Change:
    def apply(folder: Path) -> None:
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return apply


def pipe(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def pack(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.qweight"] = weights.pop("model.layers.0.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil(value: float) -> Change:
    def apply(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.0.mlp.up_proj.weight"][1, 2] = value
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return apply


AUTO = {"AutoConfig": "evil.EvilConf", "AutoModel": "evil.EvilModel", "AutoModelForCausalLM": "evil.EvilModel"}
TEMPLATE = "{{ cycler.__init__.__globals__.os.mkdir('MARK') }}"
IGNORED: dict[str, list[Change]] = {
    "model's code": [program("evil.py"), setting("config.json", auto_map=AUTO)],
    "model's code, nested": [program("evil.py"), nested("text_config", auto_map=AUTO)],
    "tokenizer's code": [
        program("evil.py"),
        setting("tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.EvilTok"]}, tokenizer_class="EvilTok"),
    ],
    "tokenizer's code, old form": [
        program("evil.py"),
        setting("tokenizer_config.json", auto_map=["evil.EvilTok", None], tokenizer_class="EvilTok"),
    ],
    "tokenizer's code of a hub": [
        setting(
            "tokenizer_config.json",
            auto_map={"AutoTokenizer": [None, "attacker/repo--evil.EvilTok"]},
            tokenizer_class="EvilTok",
        )
    ],
    "processor's code": [
        program("evil.py"),
        setting(
            "preprocessor_config.json",
            auto_map={"AutoImageProcessor": "evil.EvilTok", "AutoProcessor": "evil.EvilTok"},
            image_processor_type="EvilTok",
        ),
    ],
    "processor's code, new form": [
        program("evil.py"),
        setting("processor_config.json", auto_map={"AutoProcessor": "evil.EvilTok"}, processor_class="EvilTok"),
    ],
    "pickles beside": [write_pickle("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt")],
    "kernels": [
        setting("config.json", attn_implementation="attacker/kernel", _attn_implementation="attacker/kernel"),
        nested("text_config", _attn_implementation="attacker/kernel", attn_implementation="attacker/kernel@main"),
        nested("vision_config", _attn_implementation={"": "attacker/kernel"}, experts_implementation="attacker/k"),
        setting("config.json", experts_implementation="attacker/k", _experts_implementation_internal="attacker/k"),
        setting("config.json", use_kernels=True, kernel_config={"RMSNorm": "attacker/k"}),
    ],
    "generation": [
        program("custom_generate/generate.py"),
        setting("generation_config.json", custom_generate=".", max_length=10**12, num_beams=10**6),
    ],
    "templates": [
        lambda folder: (folder / "chat_template.jinja").write_text(TEMPLATE.replace("MARK", str(mark_of(folder)))),
        setting("tokenizer_config.json", chat_template="{{ lipsum.__globals__['os'].getcwd() }}"),
    ],
    "files elsewhere": [
        setting("tokenizer_config.json", vocab_file="/etc/passwd", tokenizer_file="/etc/passwd", name_or_path="a/b"),
        setting("config.json", _name_or_path="attacker/evil"),
    ],
    "catastrophic regex": [
        edit(
            "tokenizer.json",
            lambda t: t.update(normalizer={"type": "Replace", "pattern": {"Regex": "(z+)+$"}, "content": "b"}),
        )
    ],
}
REFUSED: dict[str, tuple[list[Change], str]] = {
    "pickle": ([drop("model.safetensors"), write_pickle("pytorch_model.bin")], "pytorch_model.bin is a pickle"),
    "no weights": ([drop("model.safetensors")], "no weights there"),
    "pickle by another name": ([write_pickle("model.safetensors")], "model.safetensors: its weights are cut or broken"),
    "index of a pickle": ([index("shard.bin")], "index.json: names 'shard.bin', and only safetensors are read"),
    "index to above": ([index("../outside.safetensors")], "index.json: names '../outside.safetensors', which is not a"),
    "index to anywhere": ([index("HERE/outside.safetensors")], "outside.safetensors', which is not a file of the"),
    "index of nothing": ([index("more.safetensors")], "index.json: names 'more.safetensors', which is not there"),
    "index of no map": ([setting("model.safetensors.index.json", weight_map=[])], "index.json: holds no weight_map"),
    "linked weights": ([link_outside("model.safetensors")], "model/model.safetensors: leads out of the folder"),
    "linked configuration": ([link_outside("config.json")], "model/config.json: leads out of the folder"),
    "linked vocabulary": ([link_outside("tokenizer.json")], "model/tokenizer.json: leads out of the folder"),
    "pipe": ([pipe], "model.safetensors: is no plain file"),
    "adapter": (
        [setting("adapter_config.json", base_model_name_or_path="attacker/evil", peft_type="LORA")],
        "adapter_config.json: an adapter of the base 'attacker/evil', which is no folder here; fetch that base",
    ),
    "pickles": (
        [drop("model.safetensors"), write_pickle("optimizer.pt", "pytorch_model-1.bin", "pytorch_model-2.bin")],
        "pytorch_model-1.bin is a pickle, as are 1 more files, which can run any program when it is opened, and is not "
        "read; in that folder, turn the weights into model.safetensors: python -c \"import torch, safetensors.torch as "
        "s; w = [torch.load(f, map_location='cpu', weights_only=True) for f in ['pytorch_model-1.bin', "
        "'pytorch_model-2.bin']]; s.save_file(",
    ),
    "AWQ": ([setting("config.json", quantization_config={"quant_method": "awq", "bits": 4})], "weights (awq) are not"),
    "FP8": ([setting("config.json", quantization_config={"quant_method": "fp8"})], "weights (fp8) are not read; take"),
    "GPTQ without its settings": ([pack], "model.safetensors: holds weights of GPTQ or AWQ; take the release in full"),
    "quantized": (
        [setting("config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})],
        "config.json: quantization_config: quantized weights (bitsandbytes) are not read; take the release in full",
    ),
    "quantized part": ([nested("text_config", quantization_config={"bits": 4})], "(of an unnamed method) are not read"),
    "wide": ([nested("text_config", hidden_size=10**7)], "config.json: text_config.hidden_size=10000000 is more than"),
    "vocabulary": ([nested("text_config", vocab_size=10**8)], "text_config.vocab_size=100000000 is more than"),
    "layers": ([nested("text_config", num_hidden_layers=10**9)], "text_config.num_hidden_layers=1000000000 is more"),
    "vision layers": ([nested("vision_config", depth=10**9)], "vision_config.depth=1000000000 is more"),
    "ratio": ([nested("vision_config", mlp_ratio=10**9)], "vision_config.mlp_ratio=1000000000 is more"),
    "words for numbers": ([nested("text_config", hidden_size="wide")], "cannot be read as a vision-language model"),
    "zero": ([nested("vision_config", patch_size=0)], "cannot be read as a vision-language model"),
    "negative": ([nested("text_config", num_attention_heads=-2)], "cannot be read as a vision-language model"),
    "no text": ([setting("config.json", text_config=[])], "cannot be read as a vision-language model"),
    "half a configuration": ([write("config.json", '{"model_type":"clinkd"')], "config.json is not JSON"),
    "a list": ([write("config.json", "[]")], "config.json: holds no JSON object"),
    "deep": ([write("config.json", "[" * 100_000)], "config.json is not JSON"),
    "not text": ([write("config.json", b"\xff\xfe{}")], "config.json is not JSON"),
    "cut": ([cut], "model.safetensors: its weights are cut or broken"),
    "header": ([write("model.safetensors", (1 << 62).to_bytes(8, "little") + b"{}")], "its weights are cut or broken"),
    "empty": ([write("model.safetensors", b"")], "its weights are cut or broken"),
    "tokenizer cut": ([write("tokenizer.json", '{"version": "1.0", ')], "tokenizer.json is not JSON"),
    "tokenizer of nothing": ([write("tokenizer.json", "{}")], "cannot be read as a vision-language model"),
    "tokenizer of another kind": ([write("tokenizer.json", "[1]")], "tokenizer.json: holds no JSON object"),
    "no tokenizer": ([drop("tokenizer.json"), drop("tokenizer_config.json")], "model: no tokenizer there; copy tokeni"),
    "no tokenizer but its settings": ([drop("tokenizer.json")], "model: no tokenizer there; copy tokenizer.json and"),
    "half a slow tokenizer": (
        [drop("tokenizer.json"), write("merges.txt", "#version: 0.2\n")],
        "model: no tokenizer.json there, and merges.txt cannot be read without it",
    ),
    "no processor": ([drop("preprocessor_config.json")], "cannot be read as a vision-language model"),
    "processor a list": ([write("preprocessor_config.json", "[]")], "preprocessor_config.json: holds no JSON object"),
    "resampled by nothing": (
        [setting("preprocessor_config.json", resample=None)], "preprocessor_config.json: resample is None; one of",
    ),
    "resampled by nobody": ([setting("preprocessor_config.json", resample=17)], "resample is 17; one of Pillow's"),
    "patches of nothing": ([setting("preprocessor_config.json", patch_size=0)], "cannot be read as a vision-language"),
    "patches of another size": ([setting("preprocessor_config.json", patch_size=4)], "cannot be read as a vision-lang"),
    "merged otherwise": ([setting("preprocessor_config.json", merge_size=1)], "cannot be read as a vision-language"),
    "pictures without end": (
        [setting("preprocessor_config.json", size={"longest_edge": 10**14, "shortest_edge": 10**14})],
        "preprocessor_config.json: size.longest_edge=100000000000000 is more than",
    ),
    "another image token": ([setting("config.json", image_token_id=3)], "cannot be read as a vision-language model"),
    "a length in words": ([setting("tokenizer_config.json", model_max_length="x")], "cannot be read as a vision-lang"),
    "no spread": ([setting("preprocessor_config.json", image_std=[0, 0, 0])], "a blank picture gives no finite num"),
    "no unit": ([nested("text_config", rms_norm_eps=float("nan"))], "a blank picture gives no finite numbers"),
    "NaN": ([spoil(float("nan"))], "model.safetensors: tensor model.layers.0.mlp.up_proj.weight holds"),
    "infinite": ([spoil(float("-inf"))], "mlp.up_proj.weight holds NaN or infinite numbers"),
}  # fmt: skip


@pytest.mark.parametrize("cases", [list(IGNORED), *(pytest.param([c], marks=pytest.mark.slow) for c in IGNORED)])
def test_what_would_run_or_lead_away_is_ignored(cases: list[str], folder: Path, answers: list[str]) -> None:
    for change in chain.from_iterable(IGNORED[case] for case in cases):
        change(folder)
    assert answer(load_foreign(folder, no_image)) == answers
    assert not mark_of(folder).exists()


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_in_a_line(case: str, folder: Path) -> None:
    changes, told = REFUSED[case]
    for change in changes:
        change(folder)
    with pytest.raises(BadInput) as error:
        load_foreign(folder, no_image)
    line = str(error.value)
    assert told in line and str(folder) in line and "\n" not in line and "/clinkd-" not in line
    assert not mark_of(folder).exists()


def test_a_pattern_without_end_ends_a_question_only(folder: Path) -> None:
    for change in IGNORED["catastrophic regex"]:
        change(folder)
    model = load_foreign(folder, no_image)
    with pytest.raises(BadInput, match="the tokenizer gives a text up .Onig: Regex search error.* takes without end"):
        model.text.ids(["z" * 40 + "!"])


def test_a_snapshot_in_a_cache_of_the_hub_is_read(exported: Path, tmp_path: Path, answers: list[str]) -> None:
    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/0123"
    shutil.copytree(exported, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert answer(load_foreign(snapshot, no_image)) == answers
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(exported / "config.json")
    with pytest.raises(BadInput, match="leads out of the folder"):
        load_foreign(snapshot, no_image)


def test_what_is_saved_again_names_nothing_of_the_gate(exported: Path, tmp_path: Path) -> None:
    load_foreign(exported, no_image).save(tmp_path / "again")
    assert {p.name for p in (tmp_path / "again").iterdir()} == {p.name for p in exported.iterdir()}
    assert not [p.name for p in (tmp_path / "again").glob("*.json*") if "/clinkd-" in p.read_text()]


def test_headers_are_read_only_inside_the_folder(folder: Path) -> None:
    assert read_shapes(folder)["model.norm.weight"] == (48,)
    link_outside("model.safetensors")(folder)
    with pytest.raises(BadInput, match="leads out of the folder"):
        read_shapes(folder)


CLIP_CASES = ("tokenizer's code", "tokenizer's code of a hub", "processor's code", "model's code", "pickles beside")
CLIP_REFUSED = ("pickle by another name", "linked weights", "index to above", "quantized", "a list", "cut")


@pytest.fixture(scope="module")
def clip(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with opened_folder(exported, "a model") as opened:
        tokenizer = opened.tokenizer()
    folder = tmp_path_factory.mktemp("clip") / "model"
    new_tiny_clip(tokenizer, ClipConfig(width=16), 0, no_image).save(folder)
    return folder


@pytest.mark.parametrize("case", [*CLIP_CASES, *CLIP_REFUSED])
def test_an_image_text_model_goes_through_the_gate(case: str, clip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip, tmp_path / "model")
    changes, told = REFUSED[case] if case in REFUSED else (IGNORED[case], "")
    for change in changes:
        change(folder)
    if told:
        with pytest.raises(BadInput) as error:
            ImageTextModel.load(folder, no_image)
        assert told in str(error.value)
    else:
        ImageTextModel.load(folder, no_image)
    assert not mark_of(folder).exists()


def test_an_adapter_of_an_image_text_model_is_not_merged(clip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip, tmp_path / "model")
    setting("adapter_config.json", base_model_name_or_path=str(clip), peft_type="LORA")(folder)
    with pytest.raises(BadInput, match=r"adapter_config.json: an adapter is not read; merge it into its base"):
        ImageTextModel.load(folder, no_image)


SENTENCE: dict[str, tuple[list[Change], str]] = {
    "a module of the folder": ([program("evil.py"), write("modules.json", '[{"type": "evil.Evil", "path": ""}]')],
                               "modules.json: module 'evil.Evil' is not read"),
    "any module": ([write("modules.json", '[{"type": "sentence_transformers.x.Router", "path": ""}]')], "is not read"),
    "a path to above": ([write("modules.json", json.dumps(
        [{"type": "sentence_transformers.models.Transformer", "path": "../x"}]))], "'../x' leads out of the folder"),
    "no list": ([write("modules.json", "{}")], "modules.json: holds no list of modules"),
    "cut": ([write("modules.json", json.dumps([{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}])),
             lambda folder: (folder / "2_Dense").mkdir(), write("2_Dense/model.safetensors", b"cut")],
            "2_Dense/model.safetensors: its weights are cut or broken"),
}  # fmt: skip


@pytest.mark.parametrize("case", SENTENCE)
def test_modules_of_a_sentence_encoder_are_checked(case: str, tmp_path: Path) -> None:
    changes, told = SENTENCE[case]
    for change in changes:
        change(tmp_path)
    with pytest.raises(BadInput) as error, opened_folder(tmp_path, "a sentence encoder"):
        pass
    assert told in str(error.value)


def test_settings_of_an_open_clip_folder_name_no_hub(tmp_path: Path) -> None:
    path = tmp_path / folders.OPEN_CLIP
    path.write_text(json.dumps({"model_cfg": {"vision_cfg": {"timm_model_name": "hf-hub:attacker/evil"}}}))
    with pytest.raises(BadInput, match="names 'hf-hub:attacker/evil', and nothing is fetched"):
        ImageTextModel.load(tmp_path, no_image)


def test_ctrl_c_is_no_fault_of_a_folder(exported: Path) -> None:
    with pytest.raises(KeyboardInterrupt), opened_folder(exported, "a model"):
        raise KeyboardInterrupt
