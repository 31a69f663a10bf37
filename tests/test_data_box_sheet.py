"""`clinkd data boxes`: the file's boxes beside those that a model will see."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clinkd.cli import main
from clinkd.config import ModelConfig, TinyConfig
from clinkd.data.grids import Size
from clinkd.records import BadInput, Box, BoxedText, ImageRef, Modality, Sample, Task, Turn
from clinkd.reporting.box_sheet import ModelView, choose_boxes, draw_box_sheet
from clinkd.reporting.viewer.overlay import ANSWER, TRUTH


def sample(number: int, modality: Modality = Modality.CT, task: Task = Task.VG, side: int = 8) -> Sample:
    box = Box(number / 100, 0.1, number / 100 + 0.3, 0.5)
    question, answer = BoxedText("Where is it?"), BoxedText("[box]", (box,))
    turn = (
        Turn(task, question, answer) if task is Task.VG else Turn(task, BoxedText("What is [box]?", (box,)), question)
    )
    image = ImageRef(f"{modality}{number}.png", side, side)
    return Sample(f"{modality}-{task}-{number}", (image,), modality, (turn,), "g", names=("mass",))


def write_base(folder: Path, settings: dict[str, object], processor: dict[str, object]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture
def boxes_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images of 64 x 32 in a COCO file, a box each: 10,4 - 42,28."""
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        Image.effect_noise((64, 32), 60 + number).save(tmp_path / f"{number}.png")
    images = [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 32} for n in range(4)]
    annotations = [{"id": n, "image_id": n, "category_id": 1, "bbox": [10, 4, 32, 24]} for n in range(4)]
    file = tmp_path / "coco.json"
    file.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "mass"}]})
    )
    return file


@pytest.mark.parametrize("size", [(512, 512), (640, 480), (2048, 300), (40, 61)])
def test_a_view_resamples_as_the_model_does(size: tuple[int, int], tmp_path: Path) -> None:
    from clinkd.model.encode import ImageEncoder
    from clinkd.model.families import TINY

    def resampled(processor: object, square: bool) -> Size:
        encoder = ImageEncoder(TINY, processor, lambda ref: Image.new("RGB", size), square)
        return encoder.resampled_size(ImageRef("a.png", *size))

    for square in (True, False):
        config = ModelConfig(square=square, tiny=TinyConfig(image_pixels=96))
        view = ModelView.from_config(config)
        assert view.resize(Size(*size)) == resampled(TINY.tiny_processor(config.tiny), square)
    for settings in (
        {"min_pixels": 3136, "max_pixels": 12845056},
        {"size": {"shortest_edge": 50176, "longest_edge": 1e5}},
    ):
        settings = {**settings, "patch_size": 14, "merge_size": 2}
        base = write_base(tmp_path / "base", {"model_type": "qwen2_vl"}, settings)
        config = ModelConfig(base=base, boxes="qwen2-vl", square=False, max_image_tokens=256)
        processor = TINY.processor_class(**settings)
        TINY.limit_image_tokens(processor, config.max_image_tokens)
        assert ModelView.from_config(config).resize(Size(*size)) == resampled(processor, False)


@pytest.mark.parametrize(
    ("settings", "spelled"),
    [
        ({"model_type": "qwen2_vl"}, "<|box_start|>(250,250),(500,750)<|box_end|>"),
        ({"model_type": "qwen2_5_vl"}, "<|box_start|>(28,28),(56,84)<|box_end|>"),
        ({"model_type": "qwen3_vl"}, '{"bbox_2d": [250, 250, 500, 750]}'),
        ({"model_type": "gemma3"}, '{"box_2d": [250, 250, 750, 500]}'),
        ({"model_type": "clinkd", "scheme": {"boxes": "digits", "box_bins": 100}}, "<|box_start|>25255075"),
    ],
)
def test_a_base_spells_boxes_as_its_family_does(settings: dict[str, object], spelled: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", settings, {"patch_size": 14, "merge_size": 2, "min_pixels": 112 * 112})
    view = ModelView.from_config(ModelConfig(base=base, boxes="qwen2-vl"))
    text, box = view.respell(Box(0.25, 0.25, 0.5, 0.75), Size(112, 112))
    assert text == spelled and box.corners == pytest.approx((0.25, 0.25, 0.5, 0.75), abs=0.01)


def test_boxes_are_spread_over_modalities_tasks_and_images_and_drawn_by_the_seed() -> None:
    samples = [sample(n) for n in range(30)] + [sample(n, task=Task.ROC) for n in range(30)]
    samples += [sample(n, Modality.MR) for n in range(2)]
    chosen = choose_boxes(samples, 9, 0)
    kinds = Counter((s.modality, s.task) for s, _ in chosen)
    assert kinds == {(Modality.MR, Task.VG): 2, (Modality.CT, Task.VG): 3, (Modality.CT, Task.ROC): 4}
    assert len({s.images for s, _ in chosen}) == 9
    assert choose_boxes(samples[::-1], 9, 0) == chosen != choose_boxes(samples, 9, 1)
    assert len(choose_boxes(samples[:1], 9, 0)) == 1


def test_the_picture_has_the_files_box_left_and_the_models_right(tmp_path: Path) -> None:
    one = sample(10, side=64)
    Image.new("RGB", (64, 64)).save(tmp_path / one.images[0].path)
    view = ModelView.from_config(ModelConfig(box_bins=4))  # coarse: a box moves by up to an eighth of a side
    sheet, (seen,) = draw_box_sheet(choose_boxes([one], 9, 0), tmp_path, view)
    truth, read = find_pixels(sheet, TRUTH), find_pixels(sheet, ANSWER)
    assert truth.max() < 328 <= read.min()
    assert abs(truth.min() - 0.1 * 320) < 2 and abs(read.min() - 328 - seen.model.x1 * 320) < 2
    moved = [abs(a - b) for a, b in zip(seen.file.corners, seen.model.corners, strict=True)]
    assert seen.difference == pytest.approx(64 * max(moved))
    assert 1 < seen.difference <= 8 and seen.pixels == "6.4 6.4 25.6 32"


def find_pixels(sheet: Image.Image, colour: str) -> np.ndarray:
    """x of the pixels of a colour in the pictures, without the captions below."""
    wanted = np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)
    return np.nonzero((np.asarray(sheet)[:320] == wanted).all(-1))[1]


def test_the_verb_draws_prints_and_asks(boxes_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "boxes", str(boxes_set), "--modality", "ct", "--count", "3"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    pattern = r"box      mass, \d\.png: 10 4 42 28 of 64x32 pixels; as <x_\d\d><y_\d\d><x_\d\d><y_\d\d> 0\.\d px off"
    assert sum(bool(re.fullmatch(pattern, line)) for line in lines) == 3, out
    assert re.search(r"^largest  0\.\d px between", out, re.M) and lines[-1].endswith("are my boxes right?")
    with Image.open("boxes.png") as picture:
        assert picture.width > 3 * 640
    first = Path("boxes.png").read_bytes()
    assert main(["data", "boxes", str(boxes_set), "--modality", "ct", "--count", "3"]) == 0  # its own picture
    assert Path("boxes.png").read_bytes() == first


def test_what_cannot_be_drawn_is_refused(boxes_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.png").write_bytes(b"mine")
    Path("empty").mkdir()
    odd = write_base(Path("odd"), {"model_type": "llava"}, {})
    for words, why in (
        (["--out", "mine.png"], "--out mine.png: is there already"),
        (["--count", "0"], "--count: 1 or more"),
        (["--no-images"], "--no-images: boxes are drawn on images"),
        (["--base", "empty"], "--base empty: no config.json there"),
        (["--base", str(odd)], "--base odd: model_type is 'llava', whose boxes are not known"),
        (["--ask", "none"], "no box in its 0 samples"),
    ):
        assert main(["data", "boxes", str(boxes_set), "--modality", "ct", *words]) != 0
        assert why in capsys.readouterr().err, words
    assert not Path("boxes.png").exists()
    with pytest.raises(BadInput, match="sides of more than 200 to 1"):
        ModelView.from_config(ModelConfig(square=False)).resize(Size(3000, 2))
