"""Write samples to files: ShareGPT for LLaMA-Factory, COCO for detectors, and our own samples.jsonl.

Each writer writes a temporary file and renames it when it is whole. So after a crash or a refused sample, the old file
is still there. The samples may be a stream.
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
from clinkd.records import RESERVED, BadInput, Box, BoxedText, ImageRef, Sample, Task
from clinkd.storage import replacing, write_json

DATASET_INFO = "dataset_info.json"
NO_SPLIT = "all"  # name of the file of samples without a split

_FRAME = re.compile(r"#\d+$")
_LATERALITY_NOTE = "images whose DICOM header told where the patient's left is, which"


def _encode_json(value: Any, sample: Sample) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError as error:  # text with half a character
        raise BadInput(f"sample {sample.id!r}: cannot be written as JSON ({error}); mend its text") from None


def _select_fields(sample: Sample, *keys: str) -> dict[str, Any]:
    record = sample.to_json()
    return {key: record[key] for key in keys}


# ---- samples.jsonl --------------------------------------------------------------------------------------------------


def write_jsonl(samples: Iterable[Sample], file: Path) -> int:
    """Write one `Sample.to_json` a line and return their number. Coordinates are rounded to 1e-6 of the image."""
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
    """Write one file for each split (train.json, ..., all.json without a split) and the dataset_info.json for them.

    LLaMA-Factory loads these files. `boxes` names the codec of the boxes in the text. If it counts pixels of the
    resized image, `min_pixels` and `max_pixels` are the limits of that resize. LLaMA-Factory joins image paths to its
    `media_dir`: set that to the folder in which the paths of the samples begin, or give this folder as `root` to write
    absolute paths.

    The key "clinkd" holds what a conversation does not, so that reading the files gives the same samples. The counter
    states, by reason, what differs from the samples or will differ in LLaMA-Factory. Raises BadInput with the id of the
    sample for words that read as an image mark or a box, for an empty text, and for boxes in pixels of an image of
    unknown size. Raises BadInput if the folder is not empty.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise BadInput(f"{folder}: not empty; give a new folder, lest old files be taken for a part of the new data")
    writer = _ShareGptWriter(make_codec(boxes), root, min_pixels, max_pixels)
    files: dict[str, IO[bytes]] = {}
    with contextlib.ExitStack() as open_files:
        for sample in samples:
            name = sample.split or NO_SPLIT
            row = _encode_json(writer.make_row(sample), sample)
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
    """Turns samples into rows of ShareGPT."""

    def __init__(self, codec: Codec, root: Path | None, min_pixels: int, max_pixels: int) -> None:
        self.codec, self.root = codec, root
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        self.notes: Counter[str] = Counter()

    def make_row(self, sample: Sample) -> dict[str, Any]:
        messages = []
        for number, turn in enumerate(sample.turns, start=1):
            question = self._encode_text(turn.question, sample, f"question {number}")
            marks = "<image>" * len(sample.images) if number == 1 else ""
            messages.append({"from": "human", "value": marks + question})
            messages.append({"from": "gpt", "value": self._encode_text(turn.answer, sample, f"answer {number}")})
        extra: dict[str, Any] = {"modality": sample.modality, "tasks": [turn.task for turn in sample.turns]}
        if any(turn.options for turn in sample.turns):
            extra["options"] = [turn.options for turn in sample.turns]
        if any(turn.closed is not None for turn in sample.turns):
            extra["closed"] = [turn.closed for turn in sample.turns]
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
        if image.laterality is not None:
            self.notes[f"{_LATERALITY_NOTE} a conversation does not hold"] += 1
        return image.path if self.root is None else (self.root.resolve() / image.path).as_posix()

    def _encode_text(self, text: BoxedText, sample: Sample, field: str) -> str:
        """Spell out the boxes of a text, and decode it again: an export that reads as another text is an error."""
        stripped = text.text.strip()
        if stripped != text.text:
            self.notes["texts without the white space that was around them"] += 1
            text = replace(text, text=stripped)
        if not stripped:
            raise BadInput(f"sample {sample.id!r}: {field} is empty; fill it in, or leave the sample out")
        if mark := RESERVED.search(stripped):
            why = f"holds {mark.group()}, which would be read as a mark; write it otherwise"
            raise BadInput(f"sample {sample.id!r}: {field} {why}")
        try:
            size = self._compute_resized_size(sample.images[-1]) if self.codec.needs_size else None
            encoded = self.codec.encode(text, size)
            decoded = self.codec.decode(encoded, size)
        except BadInput as error:
            raise BadInput(f"sample {sample.id!r}: {field}: {error}") from None
        if decoded.unparsed_boxes or decoded.answer.text != stripped or len(decoded.answer.boxes) != len(text.boxes):
            why = f"words that read as a box or a mark of {self.codec.name}; write them otherwise"
            raise BadInput(f"sample {sample.id!r}: {field} {stripped[:60]!r} holds {why}")
        return encoded

    def _compute_resized_size(self, image: ImageRef) -> grids.Size:
        if image.width is None or image.height is None:
            raise BadInput(f"the size of {image.path} is unknown, and {self.codec.name} needs it; open the images")
        return grids.smart_resize(image.width, image.height, grids.FACTOR, self.min_pixels, self.max_pixels)


# ---- COCO -----------------------------------------------------------------------------------------------------------


def write_coco(samples: Iterable[Sample], file: Path) -> Counter[str]:
    """Write boxes and names as a COCO detection file: those of VG answers and of ROC questions, each one once.

    A box is [x, y, width, height] in pixels of the upright image, the last one of a sample. A category is a name as it
    is spelled. "clinkd" in an image holds what COCO does not: modality, group, source, side and split. The counter
    states, by reason, which turns COCO cannot hold. Raises BadInput with the id of the sample for an image of unknown
    size, and for an image that two samples describe differently. Raises BadInput if there is no box at all.
    """
    coco = _CocoWriter()
    with replacing(file) as out:
        out.write(b'{"annotations": [')
        for sample in samples:
            for annotation in coco.iterate_annotations(sample):
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
    """The images, the categories and the boxes that were written so far."""

    def __init__(self) -> None:
        self.images: dict[str, dict[str, Any]] = {}
        self.categories: dict[str, int] = {}
        self.written: set[tuple[int, int, Box]] = set()
        self.notes: Counter[str] = Counter()

    def iterate_annotations(self, sample: Sample) -> Iterator[dict[str, Any]]:
        """Yield the annotations of a sample that were not written before."""
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
            if image.laterality is not None:
                self.notes[f"{_LATERALITY_NOTE} COCO does not hold"] += 1
        elif earlier != entry:
            raise BadInput(
                f"sample {sample.id!r}: says of {image.path} {entry[COCO_EXTRA_KEY]}, and an earlier sample "
                f"{earlier[COCO_EXTRA_KEY]}; write one file a split and source"
            )
        return entry


def _name_boxes(sample: Sample, boxes: tuple[Box, ...]) -> list[tuple[str, Box]]:
    """Each box with its name; empty if the sample does not state which name it has."""
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
    """Start and length in pixels, whole numbers if they are whole up to rounding, never beyond the border."""
    start, end = (_round_pixels(v * pixels) for v in (low, high))
    length = _round_pixels(end - start)
    while start + length > pixels:
        length = math.nextafter(length, 0)
    return start, length


def _round_pixels(value: float) -> float:
    return round(value, 4) if round(value, 4) > 0 else value
