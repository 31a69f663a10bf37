"""Export: with Qwen2-VL's own positions the folder is a plain Qwen2-VL, for any process and without any difference."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.stock_generate import difference

from clinkd.clip.model import new_tiny_clip
from clinkd.config import ClipConfig, ModelConfig, PhantomConfig, TinyConfig
from clinkd.data import phantoms
from clinkd.data.images import open_image
from clinkd.model.encode import encode_prompts
from clinkd.model.exported.written import compare_folder, give_replies
from clinkd.model.vlm import VisionLanguageModel, new_tiny, spell_samples
from clinkd.records import BadInput, BoxedText, ImageRef, Sample, Turn
from clinkd.settings import change_knobs

TINY = TinyConfig(
    hidden=48, layers=2, heads=2, mlp=64, vision_hidden=32, vision_layers=1, vision_heads=2, vocabulary=400
)
STRANGER = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
assert not any("clinkd" in name for name in sys.modules)
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1]).eval()
assert type(model).__name__ == "Qwen2VLForConditionalGeneration"
with torch.inference_mode():
    save_file({"logits": model(**load_file(sys.argv[2])).logits}, sys.argv[3])
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    folder = tmp_path_factory.mktemp("phantoms")
    config = PhantomConfig(train_images=8, validation_images=2, test_images=2)
    return folder, [s for s in phantoms.write_phantoms(folder, config, 0) if s.split == "train"]


def fresh(drawn: tuple[Path, list[Sample]], **knobs: object) -> VisionLanguageModel:
    folder, samples = drawn
    config = ModelConfig(tiny=TINY, **knobs)  # type: ignore[arg-type]

    def opened(ref: ImageRef) -> Image.Image:
        return open_image(folder, ref)

    return new_tiny(config, spell_samples(samples, config), 0, opened).eval()


def test_a_stranger_loads_the_folder_and_gets_the_same_logits(drawn: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    model = fresh(drawn, positions="mrope", layout="sections")
    assert model.is_stock
    model.save(tmp_path / "model", stock=True)
    assert difference(model, tmp_path / "model", drawn[1][:4]) == 0
    prompt = encode_prompts(drawn[1][:1], model.text, model.images)
    input_ids_BS, seen_BS = prompt.whole()
    given = {
        "input_ids": input_ids_BS, "attention_mask": seen_BS,
        "mm_token_type_ids": (input_ids_BS == model.text.image_token).int(),
        "pixel_values": prompt.pixels_TD, "image_grid_thw": prompt.grids_I3,
    }  # fmt: skip
    save_file({k: v.contiguous() for k, v in given.items()}, tmp_path / "given.safetensors")
    words = [sys.executable, "-c", STRANGER, *(str(tmp_path / n) for n in ("model", "given.safetensors", "told"))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.inference_mode():
        ours = model.network(**given).logits
    theirs = load_file(tmp_path / "told")["logits"]
    # another process may share out its threads otherwise; within one the difference is zero (above)
    assert torch.allclose(ours, theirs, atol=1e-5) and ours.argmax(-1).equal(theirs.argmax(-1))


@pytest.mark.parametrize(
    "knobs", [{}, {"positions": "mrope", "layout": "interleaved"}, {"positions": "gap", "layout": "sections"}]
)
def test_positions_of_our_own_are_no_stock_model(
    drawn: tuple[Path, list[Sample]], tmp_path: Path, knobs: dict[str, str]
) -> None:
    model = fresh(drawn, **knobs)
    assert not model.is_stock
    with pytest.raises(BadInput, match="exist in no stock class"):
        model.save(tmp_path / "x", stock=True)
    model.save(tmp_path / "model")
    assert difference(model, tmp_path / "model", drawn[1][:4]) == 0


def test_a_word_of_one_patient_stands_in_no_file_but_the_weights(tmp_path: Path) -> None:
    def ask(patient: str, number: int, question: str, answer: str) -> Sample:
        image = ImageRef(f"{patient}-{number}.png", 8, 8)
        turn = Turn("MIA", BoxedText(question, ()), BoxedText(answer, ()))
        return Sample(f"{patient}-{number}", (image,), "ct", (turn,), group=patient)

    asked = [ask("a", n, "Has Mrs Zanarykopf-19470613 a lesion?", "ZANARYKOPF: Quinobert says no.") for n in range(4)]
    asked += [ask("b", n, "Has Mr Müller a lesion, zanaryx?", "Quinobert says no.") for n in range(4)]
    config = ModelConfig(tiny=change_knobs(TINY, vocabulary=2000))

    def make(config: ModelConfig) -> VisionLanguageModel:
        return new_tiny(config, spell_samples(asked, config), 0, lambda ref: Image.new("RGB", (8, 8)))

    model = make(config)
    model.save(tmp_path / "model")
    new_tiny_clip(model.tokenizer, ClipConfig(width=32), 0, model.images.open_image).save(tmp_path / "clip")
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".safetensors"]
    texts = {p.relative_to(tmp_path): p.read_text().casefold() for p in files}
    assert {"model", "clip"} <= {p.parent.name for p in texts if p.name == "tokenizer.json"}
    for rare in ("Zanarykopf", "zanary", "kopf", "19470613", "mÃ¼ller", "ller"):
        assert not [path for path, text in texts.items() if rare.casefold() in text], rare
    assert {"Quinobert", "Ġlesion"} <= model.tokenizer.get_vocab().keys()
    for word in ("Mrs Zanarykopf", "Müller", "肝"):  # what was left out is spelled, not unknown
        assert model.tokenizer.decode(model.tokenizer.encode(word)) == word
    every = make(change_knobs(config, tiny=change_knobs(config.tiny, min_patients=1)))
    assert "ĠZanarykopf" in every.tokenizer.get_vocab()


def test_a_difference_is_seen(drawn: tuple[Path, list[Sample]], tmp_path: Path) -> None:
    model = fresh(drawn)
    model.save(tmp_path / "model")
    with torch.no_grad():
        model.network.model.language_model.norm.weight[3] += 1e-3
    agreement = compare_folder(model, tmp_path / "model", drawn[1][:2], give_replies(model, drawn[1][:2])).same_type
    assert agreement.largest_difference > 1e-5 and not agreement.same
