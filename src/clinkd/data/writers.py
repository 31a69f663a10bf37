"""Samples to files: ShareGPT for LLaMA-Factory, COCO for detectors, and our own samples.jsonl.

All write into a file beside the final one and rename it when it is whole, so that a crash or a refused sample leaves
what was there before. Samples may be a stream.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import orjson

from clinkd.data import grids
from clinkd.data.codecs import Codec, make_codec
from clinkd.data.readers.coco import COCO_EXTRA_KEY
from clinkd.data.readers.conversations import CONVERSATION_EXTRA_KEY
from clinkd.data.readers.rows import RESERVED
from clinkd.records import BadInput, Box, BoxedText, ImageRef, Sample, Task
from clinkd.storage import replacing, write_json

DATASET_INFO = "dataset_info.json"
WHOLE = "all"  # name of the file of samples that are of no split

_FRAME = re.compile(r"#\d+$")


def _encode_json(value: Any, sample: Sample) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError as error:  # half a character
        raise BadInput(f"sample {sample.id!r}: cannot be written as JSON ({error}); mend its text") from None


def _select_fields(sample: Sample, *keys: str) -> dict[str, Any]:
    record = sample.to_json()
    return {key: record[key] for key in keys}


# ---- samples.jsonl --------------------------------------------------------------------------------------------------


def write_jsonl(samples: Iterable[Sample], file: Path) -> int:
    """One `Sample.to_json` a line; gives their number. Coordinates are rounded to 1e-6 of the image."""
    number = 0
    with replacing(file) as lines:
        for sample in samples:
            lines.write(_encode_json(sample.to_json(), sample) + b"\n")
            number += 1
    return number


# ---- ShareGPT -------------------------------------------------------------------------------------------------------


def write_sharegpt(
    samples: Iterable[Sample],
    folder: Path,
    boxes: str = "qwen2-vl",
    root: Path | None = None,
    min_pixels: int = grids.MIN_PIXELS,
    max_pixels: int = grids.MAX_PIXELS,
) -> Counter[str]:
    """A file a split (train.json, ..., all.json where there is none), and dataset_info.json, as LLaMA-Factory loads.

    `boxes` is the codec of boxes in the text; where it is pixels of the resized image, `min_pixels` and `max_pixels`
    are the limits of that resize. LLaMA-Factory joins image paths to its `media_dir`: set that to the folder that the
    paths of the samples start from, or give it here as `root`, and absolute paths are written.

    Under the key "clinkd" stands what a conversation does not hold, so that reading it back gives the same samples.
    The counter tells, by reason, what is not as in the samples, or will not be as here in LLaMA-Factory.
    Raises BadInput, naming the sample, for words that would be read as an image mark or a box, for an empty text, and
    for boxes in pixels of an image of unknown size; also where the folder holds files already.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise BadInput(f"{folder}: not empty; give a new folder, lest old files be taken for a part of the new data")
    writer = _ShareGptWriter(make_codec(boxes), root, min_pixels, max_pixels)
    files: dict[str, IO[bytes]] = {}
    with contextlib.ExitStack() as open_files:
        for sample in samples:
            name = sample.split or WHOLE
            row = _encode_json(writer.row(sample), sample)
            if name not in files:
                files[name] = open_files.enter_context(replacing(folder / f"{name}.json"))
                files[name].write(b"[\n" + row)
            else:
                files[name].write(b",\n" + row)
        if not files:
            raise BadInput(f"{folder}: no samples to write")
        for file in files.values():
            file.write(b"\n]\n")
    columns = {"messages": "conversations", "images": "images"}
    info = {
        f"{folder.resolve().name}_{name}": {"file_name": f"{name}.json", "formatting": "sharegpt", "columns": columns}
        for name in files
    }
    write_json(folder / DATASET_INFO, info)
    return writer.notes


class _ShareGptWriter:
    """Samples to rows of ShareGPT."""

    def __init__(self, codec: Codec, root: Path | None, min_pixels: int, max_pixels: int) -> None:
        self.codec, self.root = codec, root
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        self.notes: Counter[str] = Counter()

    def row(self, sample: Sample) -> dict[str, Any]:
        messages = []
        for number, turn in enumerate(sample.turns, start=1):
            question = self._encode_text(turn.question, sample, f"question {number}")
            marks = "<image>" * len(sample.images) if number == 1 else ""
            messages.append({"from": "human", "value": marks + question})
            messages.append({"from": "gpt", "value": self._encode_text(turn.answer, sample, f"answer {number}")})
        extra = {"modality": sample.modality, "tasks": [turn.task for turn in sample.turns]}
        extra |= _select_fields(sample, "group", "source", "names", "facts", "side", "split")
        return {
            "id": sample.id,
            "images": [self._write_path(image) for image in sample.images],
            "conversations": messages,
            CONVERSATION_EXTRA_KEY: extra | {"boxes": self.codec.name},
        }

    def _write_path(self, image: ImageRef) -> str:
        if _FRAME.search(image.path):
            self.notes["frames of a file, which LLaMA-Factory does not open"] += 1
        if image.orientation != 1:
            self.notes["images turned by their EXIF tag, which LLaMA-Factory does not turn: boxes will be off"] += 1
        if image.window is not None:
            self.notes["windows of DICOM images, which a conversation does not hold"] += 1
        return image.path if self.root is None else (self.root.resolve() / image.path).as_posix()

    def _encode_text(self, text: BoxedText, sample: Sample, field: str) -> str:
        """The text with its boxes written out; read back at once, because what reads as another text is no export."""
        bare = text.text.strip()
        if bare != text.text:
            self.notes["texts without the white space that was around them"] += 1
            text = replace(text, text=bare)
        if not bare:
            raise BadInput(f"sample {sample.id!r}: {field} is empty; fill it in, or leave the sample out")
        if mark := RESERVED.search(bare):
            why = f"holds {mark.group()}, which would be read as a mark; write it otherwise"
            raise BadInput(f"sample {sample.id!r}: {field} {why}")
        try:
            size = self._compute_resized_size(sample.images[-1]) if self.codec.needs_size else None
            written = self.codec.encode(text, size)
            read = self.codec.decode(written, size)
        except BadInput as error:
            raise BadInput(f"sample {sample.id!r}: {field}: {error}") from None
        if read.unread or read.answer.text != bare or len(read.answer.boxes) != len(text.boxes):
            why = f"words that read as a box or a mark of {self.codec.name}; write them otherwise"
            raise BadInput(f"sample {sample.id!r}: {field} {bare[:60]!r} holds {why}")
        return written

    def _compute_resized_size(self, image: ImageRef) -> grids.Size:
        if image.width is None or image.height is None:
            raise BadInput(f"the size of {image.path} is unknown, and {self.codec.name} needs it; open the images")
        return grids.smart_resize(image.width, image.height, grids.FACTOR, self.min_pixels, self.max_pixels)


# ---- COCO -----------------------------------------------------------------------------------------------------------


def write_coco(samples: Iterable[Sample], file: Path) -> Counter[str]:
    """Boxes and names as a COCO detection file: those of VG answers, and of ROC questions; each box and name once.

    Boxes are [x, y, width, height] in pixels of the upright image, of a sample's last image. A category is a name, as
    it is written. "clinkd" in an image holds what COCO does not: modality, group, source, side and split. The counter
    tells, by reason, which turns COCO cannot hold. Raises BadInput, naming the sample, for an image of unknown size, or
    of which two samples say different things, and where there is no box at all.
    """
    coco = _CocoWriter()
    with replacing(file) as out:
        out.write(b'{"annotations": [')
        for sample in samples:
            for annotation in coco.annotations(sample):
                out.write((b",\n" if annotation["id"] > 1 else b"\n") + _encode_json(annotation, sample))
        if not coco.images:
            raise BadInput(f"{file}: no boxes with names to write; COCO holds nothing else")
        out.write(b'\n],\n"images": ')
        out.write(orjson.dumps(list(coco.images.values())))
        out.write(b',\n"categories": ')
        out.write(orjson.dumps([{"id": k, "name": name} for name, k in coco.categories.items()]))
        out.write(b"}\n")
    return coco.notes


class _CocoWriter:
    """Images, categories and what was written so far."""

    def __init__(self) -> None:
        self.images: dict[str, dict[str, Any]] = {}
        self.categories: dict[str, int] = {}
        self.written: set[tuple[int, int, Box]] = set()
        self.notes: Counter[str] = Counter()

    def annotations(self, sample: Sample) -> Iterator[dict[str, Any]]:
        """The new ones of a sample."""
        for turn in sample.turns[:-1]:
            self.notes[f"{turn.task} turns before the last one, whose names are not kept"] += 1
        boxes = sample.answer.boxes if sample.task is Task.VG else sample.question.boxes
        if sample.task not in (Task.VG, Task.ROC):
            self.notes[f"{sample.task} questions, which COCO cannot hold"] += 1
        elif not (named := _name_boxes(sample, boxes)):
            self.notes[f"{sample.task} questions of which box is which name is not told"] += 1
        else:
            image = self._describe_image(sample)
            for name, box in named:
                if name not in self.categories:
                    _encode_json(name, sample)
                category = self.categories.setdefault(name, len(self.categories) + 1)
                key = (image["id"], category, box)
                if key not in self.written:
                    self.written.add(key)
                    yield _make_annotation(len(self.written), image, category, box)

    def _describe_image(self, sample: Sample) -> dict[str, Any]:
        image = sample.images[-1]
        if image.width is None or image.height is None:
            why = f"the size of {image.path} is unknown, and COCO needs it; open the images"
            raise BadInput(f"sample {sample.id!r}: {why}")
        earlier = self.images.get(image.path)
        entry = {
            "id": earlier["id"] if earlier else len(self.images) + 1,
            "file_name": image.path,
            "width": image.width,
            "height": image.height,
            COCO_EXTRA_KEY: _select_fields(sample, "modality", "group", "source", "side", "split"),
        }
        if earlier is None:
            _encode_json(entry, sample)
            self.images[image.path] = entry
            if image.orientation != 1:
                self.notes["images turned by their EXIF tag, which some readers of COCO do not turn"] += 1
        elif earlier != entry:
            raise BadInput(
                f"sample {sample.id!r}: says of {image.path} {entry[COCO_EXTRA_KEY]}, and an earlier sample "
                f"{earlier[COCO_EXTRA_KEY]}; write one file a split and source"
            )
        return entry


def _name_boxes(sample: Sample, boxes: tuple[Box, ...]) -> list[tuple[str, Box]]:
    """Each box with its name; nothing where the sample does not say it."""
    if sample.task is Task.ROC and len(sample.names) != 1:
        return [(sample.answer.words, box) for box in boxes]
    if len(sample.names) == 1:
        return [(sample.names[0], box) for box in boxes]
    return []


def _make_annotation(number: int, image: dict[str, Any], category: int, box: Box) -> dict[str, Any]:
    x, width = _fit_side(box.x1, box.x2, image["width"])
    y, height = _fit_side(box.y1, box.y2, image["height"])
    annotation = {"id": number, "image_id": image["id"], "category_id": category, "bbox": [x, y, width, height]}
    return annotation | {"area": width * height, "iscrowd": 0}


def _fit_side(low: float, high: float, pixels: int) -> tuple[float, float]:
    """Start and length in pixels, a whole number where it is one up to rounding, never beyond the border."""
    start, end = (_round_pixels(v * pixels) for v in (low, high))
    length = _round_pixels(end - start)
    while start + length > pixels:
        length = math.nextafter(length, 0)
    return start, length


def _round_pixels(value: float) -> float:
    return round(value, 4) if round(value, 4) > 0 else value
