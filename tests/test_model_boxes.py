"""Boxes in pixels of the image as the model sees it, from samples to tokens and back."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from clinkd.config import AnswerConfig, FitConfig, ModelConfig, RunConfig, TinyConfig
from clinkd.data.grids import Size
from clinkd.model.encode import group_by_images, template_identity
from clinkd.model.vlm import VisionLanguageModel, load, new_tiny, spell_samples
from clinkd.objectives import CrossEntropy
from clinkd.records import BadInput, Box, BoxedText, ImageRef, Modality, Sample, Task, Turn
from clinkd.serving.asking import read_text as spelled_question
from clinkd.training import FitRun, fit
from clinkd.training.lengths import rows_within
from clinkd.workflows.ask import Answerer, _BatchPictures

TINY = TinyConfig(
    hidden=48,
    layers=2,
    heads=2,
    mlp=64,
    vision_hidden=32,
    vision_layers=1,
    vision_heads=2,
    vocabulary=300,
    min_patients=1,  # each image is a group
)
BOX = Box(0.25, 0.5, 0.75, 1.0)
REFS = (ImageRef("wide.png", 160, 40), ImageRef("tall.png", 40, 160), ImageRef("square.png", 64, 64))
FRAMES = (Size(128, 32), Size(32, 128), Size(64, 64))  # as resampled, where they keep their shape
PIXELS = ("(32,16),(96,32)", "(8,64),(24,128)", "(16,32),(48,64)")


def asked(ref: ImageRef, *more: ImageRef) -> Sample:
    where = Turn(Task.VG, BoxedText("Where is the liver?"), BoxedText("at [box].", (BOX,)))
    what = Turn(Task.ROC, BoxedText("What is in [box]?", (BOX,)), BoxedText("the liver"))
    return Sample(ref.path, (*more, ref), Modality.CT, (where, what), ref.path, names=("liver",))


SAMPLES = [asked(ref) for ref in REFS]


def fresh(**knobs: object) -> VisionLanguageModel:
    config = ModelConfig(tiny=TINY, **{"boxes": "qwen2.5-vl", "square": False, **knobs})
    greys = {ref: np.full((ref.height, ref.width, 3), 60 + 60 * n, np.uint8) for n, ref in enumerate(REFS)}
    return new_tiny(config, spell_samples(SAMPLES, config), 0, lambda ref: Image.fromarray(greys[ref]))


def spelled(model: VisionLanguageModel, sample: Sample) -> list[str]:
    """The coordinates in a sample's row, in their order."""
    [line] = model.encode([[sample]]).input_ids_BS.tolist()
    return re.findall(r"<\|box_start\|>(.*?)<\|box_end\|>", model.tokenizer.decode(line))


def test_a_box_is_spelled_in_pixels_of_the_resampled_image_and_read_back():
    model = fresh()
    for sample, frame, pixels in zip(SAMPLES, FRAMES, PIXELS, strict=True):
        assert model.images.resampled_size(sample.images[0]) == frame == model.images.box_frame(sample.images)
        assert spelled(model, sample) == [pixels, pixels]
        answer = model.text.segments([sample])[0][0][1]
        assert model._read(answer, None, frame).answer == sample.turns[0].answer
    assert spelled(fresh(square=True), SAMPLES[0]) == ["(16,32),(48,64)"] * 2  # stretched to a square of its area
    limited = fresh()
    limited.images.limit_tokens(REFS[0], 4)
    assert (
        limited.images.resampled_size(REFS[0]) == Size(64, 16)
        and spelled(limited, SAMPLES[0]) == ["(16,8),(48,16)"] * 2
    )


def test_the_pixels_are_those_of_the_last_of_several_images():
    model = fresh()
    assert spelled(model, asked(REFS[1], REFS[0])) == [PIXELS[1]] * 2
    assert spelled(model, replace(SAMPLES[0], images=())) == ["(4,8),(12,16)"] * 2  # of the blank image it looks at
    unknown = replace(SAMPLES[0], images=(ImageRef("x.png"),))
    with pytest.raises(BadInput, match=r"x\.png: its size is not known"):
        model.text.segments([unknown])
    with pytest.raises(BadInput, match=r"x\.png: .*200 to 1"):
        model.text.segments([replace(SAMPLES[0], images=(ImageRef("x.png", 4000, 2),))])


@pytest.mark.parametrize("line_tokens", [0, 200])
def test_rows_of_several_images_keep_each_its_own_frame(line_tokens):
    model = fresh()
    model.line_tokens = line_tokens
    batch = model.encode(group_by_images(SAMPLES))
    text = model.tokenizer.decode(batch.labels_N.tolist())
    assert re.findall(r"<\|box_start\|>(.*?)<\|box_end\|>", text) == list(PIXELS)
    assert [name for name, _ in batch.spans] == [s.id for s in SAMPLES]


def test_an_image_that_shrinks_takes_its_boxes_along(tmp_path):
    model = fresh(positions="mrope")  # tied ones find no place for a strip of one row
    [length, *_] = [sum(len(q) + len(a) for q, a in turns) for turns in model.text.segments(SAMPLES)]
    front = len(model.text.prefix([model.images.grid(REFS[0])]))
    config = FitConfig(max_tokens=front + length - 8, overlong="shrink")
    rows = rows_within(model, SAMPLES, config, tmp_path, "x")
    assert [r[0].id for r in rows] == [s.id for s in SAMPLES] and model.images.resampled_size(REFS[0]).width < 128
    frame, box = model.images.resampled_size(REFS[0]), BOX
    wanted = f"({int(box.x1 * frame.width + 0.5)},{int(box.y1 * frame.height + 0.5)})"
    assert spelled(model, SAMPLES[0])[0].startswith(wanted)


@pytest.mark.parametrize("method", ["beams", "sampling"])
def test_it_learns_and_answers_with_the_right_boxes(tmp_path, method):
    model = fresh()
    one = [replace(s, turns=s.turns[:1]) for s in SAMPLES]
    config = FitConfig(epochs=60, rows=3, learning_rate=5e-3)
    fit(model, one, CrossEntropy(), config, FitRun(tmp_path, 0, "x"))
    temperature = {"temperature": 0.05, "candidates": 2} if method == "sampling" else {"beams": 3, "candidates": 3}
    how = AnswerConfig(method=method, max_new_tokens=24, **temperature)
    writing, drafts = model.decode_stream(one, how), {}
    try:
        while True:
            drafts |= model.read_partial_answers(next(writing), one)
    except StopIteration as end:
        answers = end.value
    for number, (sample, pixels) in enumerate(zip(one, PIXELS, strict=True)):
        assert pixels in answers[number][0].raw
        assert answers[number][0].answer == sample.turns[0].answer and not answers[number][0].unread
        assert drafts[number].boxes == sample.answer.boxes
    model.save(tmp_path / "saved")
    back = load(tmp_path / "saved", model.images.open_image)
    assert back.knobs.boxes == "qwen2.5-vl"
    assert [c[0].answer for c in back.generate(one, how)] == [c[0].answer for c in answers]


def test_a_typed_question_is_read_in_pixels_of_its_picture():
    answerer = Answerer("x", RunConfig(), fresh(), _BatchPictures())
    wide, tall = (Image.new("RGB", (ref.width, ref.height)) for ref in REFS[:2])
    text = answerer.read(f"What is in <|box_start|>{PIXELS[0]}<|box_end|>?", wide)
    assert text == BoxedText("What is in [box]?", (BOX,))
    assert answerer.as_seen(text, wide) == text and spelled_question(answerer, "[box]?", [BOX], tall).boxes == (BOX,)
    with pytest.raises(BadInput, match=r"for example <\|box_start\|>\(8,32\),\(16,64\)<"):
        answerer.read(f"What is in <|box_start|>{PIXELS[0]}<|box_end|>?", tall)


def test_a_stored_teacher_must_cut_images_alike_where_boxes_are_pixels():
    same, square = fresh(), fresh(square=True)
    assert template_identity(same.text) == template_identity(fresh().text) != template_identity(square.text)
    assert template_identity(fresh(boxes="qwen2-vl").text)["step"] == 1 / 1000


@pytest.mark.parametrize("boxes", get_args(ModelConfig.model_fields["boxes"].annotation))
def test_every_spelling_that_a_model_may_have_comes_back_from_its_tokens(boxes):
    model = fresh(boxes=boxes)
    for sample, frame in zip(SAMPLES, FRAMES, strict=True):
        answer = model.text.segments([sample])[0][0][1]
        read = model._read(answer, None, frame)
        assert not read.unread and read.answer.text == sample.turns[0].answer.text and not read.truncated
        step = 1.001 * max(model.codec.steps(frame))  # the grid of qwen2-vl ends a step before the border
        assert max(abs(a - b) for a, b in zip(read.answer.boxes[0].to_json(), BOX.to_json(), strict=True)) <= step
