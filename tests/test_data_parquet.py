"""Parquet files with pictures inside, and ImageFolder: rows, pictures and boxes against what pyarrow wrote."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from clinkd.data.checks.check import Checks
from clinkd.data.dataset import SAMPLES
from clinkd.data.images import open_image, read_image_size
from clinkd.data.importing import Division, import_data
from clinkd.data.readers import forms
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, Modality, Task


def picture(seed: int, width: int = 40, height: int = 30) -> tuple[np.ndarray, bytes]:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return pixels, stream.getvalue()


def write_questions(file: Path, seeds: list[int], rows_a_group: int = 2) -> Path:
    """As VQA-RAD lies on Hugging Face (flaviagiammarino/vqa-rad): image {bytes, path}, question, answer."""
    rows = [
        {"image": {"bytes": picture(s)[1], "path": None}, "question": f"What is number {n}?", "answer": f"It is {n}."}
        for n, s in enumerate(seeds)
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), file, row_group_size=rows_a_group)
    return file


def read(path: Path, **knobs):
    notes: Counter[str] = Counter()
    return forms.read_samples(Source(path, modality=Modality.XRAY, **knobs), notes), notes


def test_pictures_of_all_row_groups_are_those_that_were_written(tmp_path):
    write_questions(tmp_path / "train-00000-of-00001.parquet", [1, 2, 3, 4, 5])
    samples, _ = read(tmp_path)
    assert [s.split for s in samples] == ["train"] * 5 and {s.task for s in samples} == {Task.QA}
    for n, sample in enumerate(samples):
        assert sample.question.text == f"What is number {n}?" and sample.answer.text == f"It is {n}."
        assert (sample.images[0].width, sample.images[0].height) == (40, 30)
        assert np.array_equal(np.asarray(open_image(tmp_path, sample.images[0])), picture(n + 1)[0])


def test_a_picture_beside_each_of_its_questions_is_one_image(tmp_path):
    samples, _ = read(write_questions(tmp_path / "x.parquet", [7, 7, 8, 7]))
    assert [s.images[0].path for s in samples] == ["x.parquet#1", "x.parquet#1", "x.parquet#3", "x.parquet#1"]
    assert [s.group for s in samples] == [s.images[0].path for s in samples]


def test_import_copies_the_pictures_out(tmp_path):
    file = write_questions(tmp_path / "x.parquet", [1, 2, 3])
    import_data([Source(file, modality=Modality.CT)], tmp_path / "set", Checks(), Division(), copy=True)
    lines = [json.loads(line) for line in (tmp_path / "set" / SAMPLES).read_text().splitlines()]
    for n, line in enumerate(lines, start=1):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "set" / line["images"][0]["path"])), picture(n)[0])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"one": b"a", "two": b"b", "question": "q", "answer": "a"}], "several columns of bytes (one, two)"),
        ([{"images": [{"bytes": b"a"}], "question": "q", "answer": "a"}], "column images holds lists of pictures"),
        ([{"image": {"bytes": None, "path": None}, "question": "q", "answer": "a"}], "image = null: empty or not text"),
        ([{"image": b"no picture", "question": "q", "answer": "a"}], "image = x.parquet#1: not an image"),
        ([{"image": picture(1)[1], "question": float("nan"), "answer": "a"}], "question = null: empty or not text"),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path, rows, words):
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    with pytest.raises(BadInput) as error:
        read(tmp_path / "x.parquet", form="vqa")
    assert words in str(error.value)


def test_a_damaged_file_is_one_line(tmp_path):
    file = write_questions(tmp_path / "x.parquet", [1])
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(BadInput, match=r"x\.parquet: cannot be read"):
        read(file)


@pytest.mark.parametrize(("frame", "words"), [("", "give one, as x.parquet#1"), ("#4", "row 4 of 3")])
def test_a_row_that_is_not_there_is_named(tmp_path, frame, words):
    write_questions(tmp_path / "x.parquet", [1, 2, 3])
    with pytest.raises(BadInput, match=words):
        read_image_size(tmp_path, f"x.parquet{frame}", "scan")


def write_folder(folder: Path) -> None:
    """The layout of the documentation: https://huggingface.co/docs/datasets/image_dataset."""
    rows = {
        "train": {
            "file_name": "0001.png",
            "objects": {"bbox": [[4, 6, 10, 12], [20, 3, 5, 5]], "categories": ["a", "b"]},
        },
        "test": {"file_name": "0001.png", "text": "An axial slice.", "license": "CC0"},
    }
    for number, (split, row) in enumerate(rows.items()):
        (folder / split).mkdir(parents=True)
        (folder / split / "0001.png").write_bytes(picture(number)[1])
        (folder / split / "metadata.jsonl").write_text(json.dumps(row) + "\n")


def test_an_image_folder_has_texts_boxes_and_splits(tmp_path):
    write_folder(tmp_path)
    samples, notes = read(tmp_path)
    assert Counter((s.task, s.split) for s in samples) == {
        (Task.VG, "train"): 2, (Task.ROC, "train"): 2, (Task.MIA, "test"): 1
    }  # fmt: skip
    boxes = {s.names[0]: s.answer.boxes[0].corners for s in samples if s.task is Task.VG}
    assert boxes == {"a": (4 / 40, 6 / 30, 14 / 40, 18 / 30), "b": (20 / 40, 3 / 30, 25 / 40, 8 / 30)}
    assert notes == {"keys 'license', which are not used": 1}
    assert [s.answer.text for s in samples if s.task is Task.MIA] == ["An axial slice."]


@pytest.mark.parametrize(
    "objects",
    [{"bbox": [[1, 2, 3, 4]], "categories": [3]}, {"bbox": [[1, 2, 3, 4]], "categories": []}, {"bbox": 3}, [1]],
)
def test_objects_of_another_form_are_a_bad_row(tmp_path, objects):
    write_folder(tmp_path)
    (tmp_path / "train" / "metadata.jsonl").write_text(json.dumps({"file_name": "0001.png", "objects": objects}))
    with pytest.raises(BadInput, match="objects"):
        read(tmp_path)


def test_boxes_beside_pictures_in_parquet_are_an_image_folder(tmp_path):
    """Detection sets as https://huggingface.co/docs/datasets/object_detection shows them: image, objects."""
    objects = {"bbox": [[4.0, 6.0, 10.0, 12.0]], "category": ["a"]}
    rows = [{"image": dict(zip(("path", "bytes"), ("1.png", picture(1)[1]), strict=True)), "objects": objects}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    samples, _ = read(tmp_path / "x.parquet")
    assert {s.answer.boxes[0].corners for s in samples if s.task is Task.VG} == {(4 / 40, 6 / 30, 14 / 40, 18 / 30)}


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    file = write_questions(tmp_path / "x.parquet", [1])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(BadInput, match=r"pip install 'clinkd\[parquet\]'"):
        read(file)
