"""The log-likelihood of the truth: equal to the training loss and to the whole softmax, token by token, by kind."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from clinkd.config import ModelConfig, TinyConfig
from clinkd.data.codecs import SPELLINGS, make_codec
from clinkd.data.grids import Size
from clinkd.inference.likelihood import find_token_kinds, measure_likelihoods
from clinkd.model.encode import group_by_images
from clinkd.model.vlm import VisionLanguageModel, new_tiny, spell_samples
from clinkd.objectives import CrossEntropy, compute_log_probs
from clinkd.records import Box, BoxedText, ImageRef, Modality, Sample, Task, Turn
from clinkd.reporting.tables import describe_likelihoods, tabulate_likelihoods
from clinkd.scoring.likelihood import LogLikelihood, average_likelihoods
from clinkd.storage import JsonLines

TINY = TinyConfig(
    hidden=48, layers=1, heads=2, mlp=32, vision_hidden=32, vision_layers=1, vision_heads=2, vocabulary=300,
    min_patients=1,
)  # fmt: skip
BOX, OTHER = Box(0.25, 0.5, 0.75, 1.0), Box(0.0, 0.1, 0.4, 0.6)
IMAGES = [ImageRef(f"{n}.png", 64, 64) for n in range(3)]
ABOUT = "Left kidney and two livers, 2 of 3."


def ask(number: int, task: Task, question: BoxedText, answer: BoxedText, *before: Turn) -> Sample:
    image, modality = IMAGES[number % 3], (Modality.CT, Modality.MR)[number % 2]
    names = ("liver", "left kidney")
    return Sample(f"s{number}", (image,), modality, (*before, Turn(task, question, answer)), image.path, names=names)


SAMPLES = [
    ask(0, Task.VG, BoxedText("Where is the liver?"), BoxedText("[box]", (BOX,))),
    ask(3, Task.VG, BoxedText("Where are they?"), BoxedText("liver [box], left kidney [box]", (BOX, OTHER))),
    ask(1, Task.ROC, BoxedText("What is in [box]?", (BOX,)), BoxedText("the liver")),
    ask(2, Task.MIA, BoxedText("Describe."), BoxedText(ABOUT)),
]
TALK = ask(5, Task.ROC, BoxedText("And its name?"), BoxedText("liver"), SAMPLES[0].turns[0])


def fresh(**knobs: object) -> VisionLanguageModel:
    config = ModelConfig(tiny=TINY, **knobs)
    grey = Image.new("RGB", (64, 64), (90, 90, 90))
    return new_tiny(config, spell_samples(SAMPLES, config), 0, lambda ref: grey).eval()


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return fresh()


def measure(model: VisionLanguageModel, samples: list[Sample], file: Path, batch: int = 3) -> list[dict]:
    measure_likelihoods(model, samples, file=file, batch=batch, title="likelihood")
    return [*JsonLines(file).read()]


def test_sums_are_minus_the_training_loss_and_the_log_of_the_whole_softmax(model, tmp_path):
    lines = {line["id"]: line for line in measure(model, [*SAMPLES, TALK], tmp_path / "l.jsonl")}
    assert lines.keys() == {"s0", "s1", "s2", "s3", "s5"}
    with torch.inference_mode():
        batch = model.encode(group_by_images(SAMPLES))
        hidden_NH = model.hidden_states(batch)
        loss = CrossEntropy()(hidden_NH, model.head.weight_VH, batch.labels_N)
        whole = sum(sum(lines[s.id]["log_probability"].values()) for s in SAMPLES)
        assert whole == pytest.approx(-float(loss.sum), rel=1e-5)
        assert sum(sum(lines[s.id]["tokens"].values()) for s in SAMPLES) == loss.tokens
        for sample in (*SAMPLES, TALK):  # each alone, by the logits of every entry
            alone = model.encode([[sample]])
            log_p_NV = (model.hidden_states(alone) @ model.head.weight_VH.T).double().log_softmax(1)
            each = log_p_NV.gather(1, alone.labels_N[:, None])[:, 0].tolist()
            kinds = find_token_kinds(model, sample)
            for kind, total in lines[sample.id]["log_probability"].items():
                expected = sum(v for v, of in zip(each[-len(kinds) :], kinds, strict=True) if of == kind)
                assert total == pytest.approx(expected, rel=1e-4)
    assert len(find_token_kinds(model, TALK)) < len(each)  # the box of the turn before is context


def test_log_probs_do_not_depend_on_the_chunk_and_none_are_none():
    torch.manual_seed(0)
    hidden_NH, weight_VH, labels_N = torch.randn(7, 5), torch.randn(11, 5), torch.arange(7)
    whole = compute_log_probs(hidden_NH, weight_VH, labels_N)
    assert torch.allclose(whole, (hidden_NH @ weight_VH.T).log_softmax(1)[torch.arange(7), labels_N], atol=1e-6)
    assert torch.allclose(whole, compute_log_probs(hidden_NH, weight_VH, labels_N, chunk=2), atol=1e-6)
    assert compute_log_probs(hidden_NH[:0], weight_VH, labels_N[:0]).shape == (0,)
    assert compute_log_probs(hidden_NH.bfloat16(), weight_VH.bfloat16(), labels_N).dtype == torch.float32


@pytest.mark.parametrize("boxes", ["locations", "digits", "qwen2-vl", "qwen2.5-vl"])
def test_each_token_is_of_one_kind(boxes: str):
    model = fresh(boxes=boxes)
    by_sample = [find_token_kinds(model, sample) for sample in SAMPLES]
    ids = [turns[-1][1] for turns in model.text.segments(SAMPLES)]
    assert [len(kinds) for kinds in by_sample] == [len(tokens) for tokens in ids]

    def words(number: int, kind: str) -> str:
        pairs = zip(ids[number], by_sample[number], strict=True)
        return model.tokenizer.decode([token for token, of in pairs if of == kind])

    inside = {"locations": "<x_04><y_08><x_12><y_15>", "digits": "04081215", "qwen2-vl": "250,500),(750,999",
              "qwen2.5-vl": "16,32),(48,64"}[boxes]  # fmt: skip
    assert words(0, "box") == inside and "box" not in by_sample[2] + by_sample[3]  # "2 of 3" is no box
    assert by_sample[1].count("box") > by_sample[0].count("box") and words(0, "name") == ""
    assert words(1, "name").replace(" ", "") == "liverleftkidney"
    assert words(2, "name").strip() == "liver" and words(2, "rest").replace(" ", "").startswith("the")
    assert words(3, "name").replace(" ", "") == "Leftkidneylivers"  # however it is written


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_places_of_coordinates_hold_them_and_no_mark(name: str):
    codec = make_codec(name, 20 if name in ("digits", "locations") else 1000)
    text = BoxedText("2 of [box] and [box]3", (BOX, OTHER))
    encoded, places = codec.encode_with_places(text, Size(56, 28))
    assert encoded == codec.encode(text, Size(56, 28)) and len(places) == 2
    for (start, end), box in zip(places, text.boxes, strict=True):
        whole = codec.encode(BoxedText("[box]", (box,)), Size(56, 28))
        inside = encoded[start:end]
        assert inside in whole and inside[0].isdigit() and inside[-1].isdigit() and "box" not in inside
        assert not any(c.isdigit() for c in whole.replace("box_2d", "").replace(inside, ""))


def test_what_is_there_is_kept_and_goes_on(model, tmp_path):
    file = tmp_path / "l.jsonl"
    first = measure(model, SAMPLES[:2], file)
    file.write_text(file.read_text().replace(str(first[0]["log_probability"]["box"]), "-1.5"))
    lines = measure(model, SAMPLES, file, batch=1)
    assert [line["id"] for line in lines][:2] == ["s0", "s3"] and len(lines) == 4
    assert lines[0]["log_probability"]["box"] == -1.5
    assert measure(model, SAMPLES, file) == lines


def test_the_mean_is_over_tokens_then_questions_then_modalities():
    def line(modality: str, total: float, tokens: int) -> dict:
        return {"id": "x", "task": "VG", "modality": modality, "log_probability": {"box": total, "rest": -1.0},
                "tokens": {"box": tokens, "rest": 1}}  # fmt: skip

    lines = [line("ct", -4.0, 4), line("ct", -4.0, 8), line("mr", -12.0, 4)]
    lines.append({"id": "y", "task": "ROC", "modality": "ct", "log_probability": {"rest": -2.0}, "tokens": {"rest": 2}})
    found = average_likelihoods(lines)
    assert found == {
        (Task.VG, "box"): LogLikelihood((-0.75 - 3.0) / 2, 3, 16),
        (Task.VG, "rest"): LogLikelihood(-1.0, 3, 3),
        (Task.ROC, "rest"): LogLikelihood(-1.0, 1, 2),  # a kind without tokens is left out, and no zero
    }
    assert tabulate_likelihoods(found).rows[0] == ("VG", "box", "-1.875", "3", "16")
    assert describe_likelihoods(found)["ROC"] == {"rest": {"mean": -1.0, "questions": 1, "tokens": 2}}
    assert math.isclose(math.log(0.5), -0.693, abs_tol=1e-3)  # as the note says
