"""The CLIP family: each kind of folder scores as its own library does, texts and boxes are cut as told."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from clinkd.clip.model import LEAST_PIXELS, LOWEST, Captioned, ImageTextModel, View, crop_box, train_clip
from clinkd.clip.towers import read_towers
from clinkd.config import ClipConfig
from clinkd.inference import ClipScorer, rerank
from clinkd.records import BadInput, Box, BoxedText, Candidate, ImageRef, Modality, Prediction, Sample, Task, Turn

WORDS = [
    *("a", "the", "small", "large", "dark", "bright", "liver", "kidney", "lung", "heart", "left", "right", "of"),
    *("in", "image", "with", "two", "one", "on", "and", "there", "is"),
    *".,!?",
]
SIDE = 32
LIMIT = 16
TEXTS = ["a small liver", "the large dark kidney .", "heart", "Two lung on the left . One on the right !"]
needs_open_clip = pytest.mark.skipif(
    find_spec("open_clip") is None, reason="the extra open-clip is not installed: pip install '.[open-clip]'"
)


def words(start: str | None, end: str, pad: str, lower: bool = True) -> PreTrainedTokenizerFast:
    """A word tokenizer with marks of start and end."""
    marks = [m for m in dict.fromkeys((pad, end, start, "<unk>")) if m]
    made = Tokenizer(models.WordLevel({w: n for n, w in enumerate([*marks, *WORDS])}, unk_token="<unk>"))
    if lower:
        made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ids = {m: made.token_to_id(m) for m in (start, end) if m}
    made.post_processor = processors.TemplateProcessing(
        single=" ".join(m for m in (start, "$A", end) if m), special_tokens=list(ids.items())
    )
    named = {"bos_token": start} if start else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end, pad_token=pad, unk_token="<unk>", **named)


PART: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
SEEN = {"image_size": SIDE, "patch_size": 8}


def clip_folder(folder: Path) -> Path:
    tokenizer = words("<start>", "<end>", "<end>")
    end = tokenizer.eos_token_id
    read = {"vocab_size": len(tokenizer), "max_position_embeddings": LIMIT, "eos_token_id": end, "pad_token_id": end}
    torch.manual_seed(0)
    config = CLIPConfig(text_config={**PART, **read}, vision_config={**PART, **SEEN}, projection_dim=24)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    return folder


def siglip_folder(folder: Path) -> Path:
    """As SigLIP 2 of fixed resolution comes: a pad that is not the end, and a tokenizer that keeps upper case."""
    tokenizer = words(None, "<eos>", "<pad>", lower=False)
    read = {"vocab_size": len(tokenizer), "max_position_embeddings": LIMIT, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(1)
    config = SiglipConfig(text_config={**PART, **read}, vision_config={**PART, **SEEN})
    SiglipModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def open_clip_folder(folder: Path, tower: str = "own") -> Path:
    """As open_clip lays out a model: with its own text tower, or, as BiomedCLIP, a BERT that a hub would name."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    text: dict[str, Any] = {"context_length": LIMIT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    if tower == "bert":
        tokenizer = words("[CLS]", "[SEP]", "[PAD]")
        tokenizer.save_pretrained(folder)
        bert = BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        bert.architectures = [BertModel.__name__]
        bert.save_pretrained(folder)
        text = {
            "hf_model_name": "nowhere/PubMedBERT", "hf_tokenizer_name": "nowhere/PubMedBERT", "context_length": LIMIT,
            "hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler",
        }  # fmt: skip
    vision = {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    here = json.loads(json.dumps(config))
    if tower == "bert":
        here["model_cfg"]["text_cfg"] |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
    torch.manual_seed(2)
    kind = open_clip.CustomTextCLIP if tower == "bert" else open_clip.CLIP
    network = kind(**here["model_cfg"])
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {"clip": clip_folder, "siglip": siglip_folder}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: make(tmp_path_factory.mktemp(kind)) for kind, make in MAKERS.items()}


def picture(number: int, width: int = 60, height: int = 40) -> Image.Image:
    dots = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(dots).resize((width, height), Image.Resampling.BILINEAR)


def opened(image: ImageRef) -> Image.Image:
    return picture(int(image.path))


IMAGES = [ImageRef("1"), ImageRef("2")]
PAIRS = [(View(image), text) for image in IMAGES for text in TEXTS]


def theirs(kind: str, folder: Path) -> list[list[float]]:
    """The library's own forward: its processor's pixels, its tokenizer's ids, cosines out of its own logits."""
    pictures = [picture(1), picture(2)]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.inference_mode():
        if kind == "clip":
            network = CLIPModel.from_pretrained(folder).eval()
            pixels = CLIPImageProcessorPil.from_pretrained(folder)(images=pictures, return_tensors="pt")
            ids = tokenizer(TEXTS, padding=True, return_tensors="pt")
            logits = network(input_ids=ids.input_ids, attention_mask=ids.attention_mask, **pixels).logits_per_image
            return (logits / network.logit_scale.exp()).tolist()
        siglip = SiglipModel.from_pretrained(folder).eval()
        pixels = SiglipImageProcessorPil.from_pretrained(folder)(images=pictures, return_tensors="pt")
        lower = [t.lower() for t in TEXTS]
        ids = tokenizer(lower, padding="max_length", max_length=LIMIT, return_tensors="pt").input_ids
        logits = siglip(input_ids=ids, **pixels).logits_per_image
        return ((logits - siglip.logit_bias) / siglip.logit_scale.exp()).tolist()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_scores_are_those_of_the_library(kind: str, folders: dict[str, Path]) -> None:
    found = ImageTextModel.load(folders[kind], opened).score(PAIRS)
    assert found == pytest.approx(np.ravel(theirs(kind, folders[kind])).tolist(), abs=1e-5)
    assert np.std(found) > 1e-3  # an oracle of constants would agree with anything


@needs_open_clip
@pytest.mark.parametrize("tower", ["own", "bert"])
def test_scores_are_those_of_open_clip_and_nothing_is_fetched(
    tower: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    folder = open_clip_folder(tmp_path / "model", tower)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr("socket.socket.connect", refuse)
    found = ImageTextModel.load(folder, opened).score(PAIRS)
    local = tmp_path / "local"
    shutil.copytree(folder, local)
    config = json.loads((local / "open_clip_config.json").read_text())
    if tower == "bert":
        config["model_cfg"]["text_cfg"]["hf_model_name"] = str(local)
        (local / "open_clip_config.json").write_text(json.dumps(config))
    network, transform = open_clip.create_model_from_pretrained(f"local-dir:{local}")
    tokens = open_clip.get_tokenizer(f"local-dir:{local}")(TEXTS)
    with torch.inference_mode():
        image, text, _ = network.eval()(torch.stack([transform(picture(n)) for n in (1, 2)]), tokens)
    assert found == pytest.approx((image @ text.T).flatten().tolist(), abs=1e-5)
    assert np.std(found) > 1e-3


@needs_open_clip
def test_lengths_of_open_clip_are_those_of_its_tokens(tmp_path: Path) -> None:
    for tower in ("own", "bert"):
        towers = ImageTextModel.load(open_clip_folder(tmp_path / tower, tower), opened).towers
        ids = towers.tokenizer(TEXTS)  # type: ignore[attr-defined]
        padding = 0
        assert towers.lengths(TEXTS) == [int((line != padding).sum()) for line in ids]


@needs_open_clip
@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_text_tower_that_would_be_fetched_is_refused_by_the_name_of_its_file(missing: str, tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path, "bert")
    (folder / missing).unlink()
    with pytest.raises(BadInput, match=f"{missing} is missing: .*nowhere/PubMedBERT, and nothing is fetched"):
        ImageTextModel.load(folder, opened)


@needs_open_clip
def test_open_clip_weights_of_another_shape_or_number_are_refused(tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path)
    weights = load_file(folder / "open_clip_model.safetensors")
    for broken in ({k: v for k, v in weights.items() if k != "ln_final.bias"}, {**weights, "more": torch.zeros(1)}):
        save_file(broken, folder / "open_clip_model.safetensors")
        with pytest.raises(BadInput, match="not an open_clip model that can be read: .*(ln_final.bias|more)"):
            ImageTextModel.load(folder, opened)


@pytest.mark.skipif(find_spec("open_clip") is not None, reason="the extra open-clip is installed")
def test_without_the_extra_its_layout_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"text_cfg": {}}}')
    save_file({"a": torch.zeros(1)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(BadInput, match=r"pip install -c constraints.txt '\.\[open-clip\]'"):
        ImageTextModel.load(tmp_path, opened)


def test_siglip_reads_upper_case_as_lower_and_fills_up_without_a_mask(folders: dict[str, Path]) -> None:
    model = ImageTextModel.load(folders["siglip"], opened)
    a, b = model.score([(View(IMAGES[0]), "A Small LIVER"), (View(IMAGES[0]), "a small liver")])
    assert a == b


def test_halves_are_read_as_whole_numbers(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["clip"], tmp_path / "half")
    CLIPModel.from_pretrained(folders["clip"]).half().save_pretrained(tmp_path / "half")
    whole = ImageTextModel.load(folders["clip"], opened).score(PAIRS)
    assert ImageTextModel.load(tmp_path / "half", opened).score(PAIRS) == pytest.approx(whole, abs=5e-3)


# -- folders that are refused ------------------------------------------------------------------------------------------


def test_a_folder_is_known_by_its_files_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no config.json there that names a model_type"):
        ImageTextModel.load(tmp_path, opened)
    (tmp_path / "config.json").write_text('{"model_type": "siglip2"}')
    with pytest.raises(BadInput, match="names a 'siglip2'.*those of fixed resolution are read"):
        ImageTextModel.load(tmp_path, opened)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="config.json is not JSON"):
        ImageTextModel.load(tmp_path, opened)
    shutil.copytree(folders["siglip"], tmp_path / "a-clip-by-name")
    assert type(ImageTextModel.load(tmp_path / "a-clip-by-name", opened).towers).__name__ == "SiglipTowers"


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_weights_that_are_missing_or_too_many_or_torn_are_refused(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders[kind], folder)
    weights = load_file(folder / "model.safetensors")
    first = min(k for k in weights if k.endswith("weight"))
    fewer = {k: v for k, v in weights.items() if k != first}
    file = folder / "model.safetensors"
    for broken, told in ((fewer, f"missing weights: {first}"), ({**weights, "more": torch.zeros(1)}, "unexpected")):
        save_file(broken, file, {"format": "pt"})
        with pytest.raises(BadInput, match=told):
            ImageTextModel.load(folder, opened)
    save_file({**weights, "text_model.embeddings.position_ids": torch.arange(LIMIT)[None]}, file, {"format": "pt"})
    ImageTextModel.load(folder, opened)  # as openai/clip-vit-base-patch32 comes
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(BadInput, match=f"{file}: its weights are cut or broken"):
        ImageTextModel.load(folder, opened)


def test_a_pickle_is_refused_and_the_way_out_leads_out(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["clip"], folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="pytorch_model.bin is a pickle, which can run any program") as told:
        ImageTextModel.load(folder, opened)
    command = re.search(r'python -c "(.+)"$', str(told.value))
    assert command
    subprocess.run([sys.executable, "-c", command[1]], cwd=folder, check=True)
    ours = ImageTextModel.load(folder, opened).score(PAIRS)
    assert ours == ImageTextModel.load(folders["clip"], opened).score(PAIRS)
    shutil.rmtree(folder)
    shutil.copytree(folders["clip"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(BadInput, match="no weights there; model.safetensors is wanted"):
        ImageTextModel.load(folder, opened)


def test_a_processor_of_another_size_is_found_at_once(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["siglip"], folder)
    SiglipImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(folder)
    with pytest.raises(BadInput, match="does not take what its own processor"):
        ImageTextModel.load(folder, opened)


# -- texts beyond the limit --------------------------------------------------------------------------------------------


def long_texts() -> list[str]:
    dice = random.Random(5)
    made = []
    for _ in range(120):
        lengths = [dice.choice((1, 3, 6, 9, 14, 25)) for _ in range(dice.randint(1, 5))]
        made.append(" ".join(" ".join(dice.choices(WORDS[:-4], k=n)) + dice.choice(".!?") for n in lengths))
    return made


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_split_keeps_every_word_in_pieces_that_fit(kind: str, folders: dict[str, Path]) -> None:
    model = ImageTextModel.load(folders[kind], opened, "split")
    some_long = 0
    for text in long_texts():
        pieces = model.pieces(text)
        assert " ".join(pieces) == text and not any(model.too_long(pieces))
        some_long += len(pieces) > 1
        # the mean over what is shown, not over something else
        one = model.score([(View(IMAGES[0]), text)])[0]
        assert one == pytest.approx(np.mean(model.score([(View(IMAGES[0]), p) for p in pieces])), abs=1e-5)
    assert some_long > 30


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_truncate_keeps_the_whole_sentences_from_the_start_that_fit(kind: str, folders: dict[str, Path]) -> None:
    model = ImageTextModel.load(folders[kind], opened, "truncate")
    cut_words = cut_sentences = 0
    for text in long_texts():
        (kept,) = model.pieces(text)
        assert text.startswith(kept) and not model.too_long([kept])[0]
        rest = text[len(kept) :].split()
        if kept[-1] in ".!?":  # whole sentences: the next one would not have fitted
            following = re.match(r"[^.!?]+[.!?]", text[len(kept) :])
            assert following is None or model.too_long([kept + following[0]])[0]
            cut_sentences += bool(rest)
        else:  # a first sentence that is too long alone, cut before the word that would not have fitted
            assert not any(mark in kept for mark in ".!?") and model.too_long([f"{kept} {rest[0]}"])[0]
            cut_words += 1
        shown = View(IMAGES[0])
        assert model.score([(shown, text)]) == pytest.approx(model.score([(shown, kept)]), abs=1e-6)
    assert cut_words > 10 and cut_sentences > 10


@pytest.mark.parametrize("overlong", ["split", "truncate"])
def test_no_words_score_lowest_and_an_endless_one_is_cut(overlong: Any, folders: dict[str, Path]) -> None:
    model = ImageTextModel.load(folders["clip"], opened, overlong)
    assert model.score([(View(IMAGES[0]), ""), (View(IMAGES[0]), "  ")]) == [LOWEST, LOWEST]
    endless = "liver." * 40  # for the tokenizer many tokens, for us one word
    assert model.too_long([endless]) == [True]
    assert -1 <= model.score([(View(IMAGES[0]), endless)])[0] <= 1
    assert model.score([]) == []


# -- boxes -------------------------------------------------------------------------------------------------------------


def test_a_crop_holds_its_box_with_a_margin_and_stays_inside() -> None:
    dice = np.random.default_rng(3)
    whole = Image.fromarray((np.arange(80 * 50) % 65536).reshape(50, 80).astype(np.uint16))
    for _ in range(300):
        x1, x2 = sorted(dice.uniform(0, 1, 2))
        y1, y2 = sorted(dice.uniform(0, 1, 2))
        at = np.asarray(crop_box(whole, Box(x1, y1, x2, y2))).astype(int)
        first, last = int(at.min()), int(at.max())
        left, top, right, bottom = first % 80, first // 80, last % 80 + 1, last // 80 + 1
        assert at.shape == (bottom - top, right - left)  # nothing beyond the picture was made up
        assert left <= x1 * 80 and right >= x2 * 80 and top <= y1 * 50 and bottom >= y2 * 50
        assert right - left <= (x2 - x1) * 80 * 1.3 + 2 + LEAST_PIXELS


@pytest.mark.parametrize("box", [Box(0, 0, 1e-6, 1e-6), Box(1 - 1e-6, 0.5, 1, 0.5 + 1e-6), Box(0.5, 0, 0.5001, 1)])
def test_a_box_of_nothing_shows_a_few_pixels(box: Box, folders: dict[str, Path]) -> None:
    assert min(crop_box(picture(1), box).size) >= LEAST_PIXELS
    assert min(crop_box(picture(1, 2, 3), box).size) >= 1  # a picture smaller than that
    model = ImageTextModel.load(folders["clip"], opened)
    assert -1 <= model.score([(View(IMAGES[0], box), "liver")])[0] <= 1


def test_the_whole_image_is_shown_where_there_is_no_box() -> None:
    assert np.array_equal(crop_box(picture(1), None), picture(1))
    assert crop_box(picture(1), Box(0, 0, 1, 1)).size == picture(1).size


# -- what is shown of a candidate --------------------------------------------------------------------------------------

LEFT, RIGHT = Box(0.1, 0.2, 0.4, 0.6), Box(0.5, 0.2, 0.9, 0.6)


def sample(task: Task, question: BoxedText) -> Sample:
    turn = Turn(task, question, BoxedText("never shown"))
    return Sample("s", (IMAGES[0],), Modality.CT, (turn,), "g", names=("never", "shown"))


class Eye:
    """A stand-in for a CLIP that notes what it is shown; its scores are told apart by a table."""

    def __init__(self, scores: dict[tuple[Box | None, str], float]) -> None:
        self.known, self.seen = scores, list[tuple[Box | None, str]]()

    def score(self, shown: Sequence[tuple[View, str]]) -> list[float]:
        assert all(view.image == IMAGES[0] for view, _ in shown)
        self.seen += [(view.box, text) for view, text in shown]
        return [self.known.get((view.box, text), 0.0) for view, text in shown]

    def too_long(self, texts: Sequence[str]) -> list[bool]:
        return ["long" in text for text in texts]


def chosen(
    grounding: Any, asked: Sample, answers: Sequence[BoxedText], scores: dict[tuple[Box | None, str], float]
) -> tuple[Prediction, Eye]:
    eye = Eye(scores)
    scorer = ClipScorer(eye, grounding, ["liver", "kidney", "never"])  # type: ignore[arg-type]
    candidates = tuple(Candidate(a.text, a) for a in answers)
    return rerank({"s": asked}, [Prediction("s", candidates)], scorer, [asked.task])[0], eye


WHERE = sample(Task.VG, BoxedText("Where is the liver?"))
AT = [BoxedText("Here it is [box].", (LEFT,)), BoxedText("Here it is [box].", (RIGHT,)), BoxedText("I do not know.")]


def test_text_shows_the_whole_image_and_a_tie_keeps_the_beams() -> None:
    found, eye = chosen("text", WHERE, AT[:2], {})
    assert set(eye.seen) == {(None, "Here it is .")} and found.chosen == 0
    assert [c.scores for c in found.candidates] == [{"clip": 0.0}, {"clip": 0.0}]


def test_crop_shows_each_candidates_own_box_with_the_name_asked_for() -> None:
    found, eye = chosen("crop", WHERE, AT, {(RIGHT, "liver"): 0.4, (LEFT, "liver"): -0.9})
    assert eye.seen == [(LEFT, "liver"), (RIGHT, "liver")] and found.chosen == 1
    assert [c.scores for c in found.candidates] == [
        {"clip": -0.9, "clip crop": -0.9}, {"clip": 0.4, "clip crop": 0.4}, {"clip": -1.0, "clip crop": -1.0},
    ]  # fmt: skip


def test_crop_of_several_boxes_is_their_mean_and_an_unnamed_question_takes_the_answers_words() -> None:
    two = BoxedText("Both [box] [box]", (LEFT, RIGHT))
    unnamed = sample(Task.VG, BoxedText("Where is it?"))
    found, eye = chosen("crop", unnamed, [two], {(LEFT, "Both"): 0.5, (RIGHT, "Both"): 0.1})
    assert eye.seen == [(LEFT, "Both"), (RIGHT, "Both")]
    assert found.candidates[0].scores["clip"] == pytest.approx(0.3)


@pytest.mark.parametrize("task", [Task.ROC, Task.RC])
def test_a_question_with_a_box_shows_its_crop_with_the_candidates_words(task: Task) -> None:
    asked = sample(task, BoxedText("What is at [box], a liver?", (RIGHT,)))
    answers = [BoxedText("heart"), BoxedText("the kidney")]
    found, eye = chosen("crop", asked, answers, {(RIGHT, "the kidney"): 0.2})
    assert eye.seen == [(RIGHT, "heart"), (RIGHT, "the kidney")] and found.chosen == 1


@pytest.mark.parametrize("grounding", ["crop", "both"])
@pytest.mark.parametrize("task", [Task.MIA, Task.QA])
def test_questions_without_boxes_keep_the_whole_image(task: Task, grounding: str) -> None:
    asked = sample(task, BoxedText("What does the image show, a liver?"))
    answers = [BoxedText("a liver"), BoxedText("a kidney at [box]", (LEFT,))]  # the second: a slip of the model
    found, eye = chosen(grounding, asked, answers, {(None, "a kidney at"): 0.3})
    assert eye.seen == [(None, "a liver"), (None, "a kidney at")] and found.chosen == 1
    assert found.candidates[1].scores == {"clip": 0.3, "clip text": 0.3}


def test_a_free_question_that_the_first_beam_answers_with_a_box_asks_for_one() -> None:
    asked = sample(Task.QA, BoxedText("Where is the liver?"))
    _, eye = chosen("crop", asked, AT[:2], {})
    assert eye.seen == [(LEFT, "liver"), (RIGHT, "liver")]


def test_both_is_the_mean_of_its_parts_and_no_box_is_still_the_lowest() -> None:
    known = {(None, AT[2].words): 1.0, (LEFT, "liver"): -0.95, (None, AT[0].words): -0.8, (RIGHT, "liver"): -0.99}
    found, _ = chosen("both", WHERE, AT, known)
    assert found.chosen == 0
    assert found.candidates[0].scores == {"clip": -0.875, "clip text": -0.8, "clip crop": -0.95}
    assert found.candidates[2].scores == {"clip": -1.0, "clip text": 1.0, "clip crop": -1.0}


@pytest.mark.parametrize("grounding", ["text", "crop", "both"])
@pytest.mark.parametrize("task", list(Task))
def test_the_truth_is_never_looked_at(task: Task, grounding: str) -> None:
    boxed = task in (Task.ROC, Task.RC)
    question = BoxedText("What is at [box]?", (LEFT,)) if boxed else BoxedText("Where is the liver?")
    seen = []
    for truth, names in ((BoxedText("kidney [box]", (RIGHT,)), ("kidney",)), (BoxedText("heart"), ("heart",))):
        turns = (Turn(task, question, truth),)
        asked = Sample("s", (IMAGES[0],), Modality.CT, turns, "g", names=names)
        found, eye = chosen(grounding, asked, AT, {(LEFT, "liver"): 0.5})
        seen.append((eye.seen, found))
    assert seen[0] == seen[1]


def test_candidates_with_a_text_too_long_are_counted() -> None:
    eye = Eye({})
    scorer = ClipScorer(eye, "text", [])  # type: ignore[arg-type]
    said = Prediction("s", tuple(Candidate(t, BoxedText(t)) for t in ("short", "a long one", "a long one")))
    scorer.scores([WHERE, WHERE], [said, said])
    assert (scorer.num_candidates, scorer.num_too_long) == (6, 4)


# -- the tiny one ------------------------------------------------------------------------------------------------------


def test_a_tiny_clip_taught_crops_tells_names_by_them(tmp_path: Path) -> None:
    """Two colours, one to each half of the image, so that the whole image says nothing of the name."""

    def painted(image: ImageRef) -> Image.Image:
        dots = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
        red_left = int(image.path) % 2
        dots[:, : SIDE // 2, 0 if red_left else 2] = 255
        dots[:, SIDE // 2 :, 2 if red_left else 0] = 255
        return Image.fromarray(dots)

    halves = (Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1))
    names = {(odd, side): "liver" if odd == 1 - side else "kidney" for odd in (0, 1) for side in (0, 1)}
    folder = clip_folder(tmp_path / "new")
    towers = read_towers(folder, "clip")
    towers.processor = CLIPImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    model = ImageTextModel(towers, painted)
    whole: list[Captioned] = [(View(ImageRef(str(n))), ["a liver and a kidney"]) for n in range(20)]
    crops: list[Captioned] = [
        (View(ImageRef(str(n)), halves[side]), [names[n % 2, side]]) for n in range(20) for side in (0, 1)
    ]
    train_clip(model, [whole, crops], ClipConfig(epochs=12, rows=8, learning_rate=3e-3), seed=0)
    for odd in (0, 1):
        for side in (0, 1):
            view = View(ImageRef(str(100 + odd)), halves[side])
            liver, kidney = model.score([(view, "liver"), (view, "kidney")])
            assert (liver > kidney) == (names[odd, side] == "liver")
    model.save(tmp_path / "kept")
    pair = [(View(ImageRef("100"), halves[0]), "liver")]
    assert ImageTextModel.load(tmp_path / "kept", painted).score(pair) == pytest.approx(model.score(pair), abs=1e-6)


def test_a_tiny_clip_is_taught_the_pixels_it_is_later_shown(tmp_path: Path) -> None:
    from clinkd.clip.model import _read_view_bytes

    towers = read_towers(clip_folder(tmp_path / "new"), "clip")
    towers.processor = CLIPImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    model = ImageTextModel(towers, opened)
    views = [View(IMAGES[0]), View(IMAGES[0], LEFT), View(IMAGES[1], RIGHT)]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (towers.processor.image_mean, towers.processor.image_std))
    assert torch.allclose((_read_view_bytes(model, views) / 255 - mean) / std, model.pixels(views), atol=1e-5)
