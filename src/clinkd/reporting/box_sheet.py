"""Boxes beside each other as the file has them and as a model will see them: "are my boxes right?"."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

from clinkd.config import ModelConfig
from clinkd.data.codecs import SPELLINGS, Codec, make_codec
from clinkd.data.grids import MAX_PIXELS, MIN_PIXELS, Size, smart_resize, square_resize
from clinkd.data.images import open_image
from clinkd.records import BOX_MARK, BadInput, Box, BoxedText, ImageRef, Sample
from clinkd.reporting.viewer.overlay import ANSWER, TRUTH, draw_boxes, write_below
from clinkd.settings import read_older_tree
from clinkd.storage import read_json

_MERGE, _PATCH = 2, 14  # patches a side of an image token, and pixels a side of a patch, where a folder has no others
_SIDE, _GAP, _COLUMNS = 320, 8, 3  # pixels of a picture, pixels between pictures, samples in a row


@dataclass(frozen=True)
class ModelView:
    """How a model sees images and boxes: resampled to `least` to `most` pixels, sides multiples of `factor`."""

    codec: Codec
    factor: int
    least: int
    most: int
    square: bool

    @classmethod
    def from_config(cls, config: ModelConfig) -> ModelView:
        """The view of the tiny model, or of the one in the folder `config.base`, stock or trained by ClinKD.

        Raises BadInput if the folder lacks config.json or preprocessor_config.json, or its boxes have no known
        spelling.
        """
        if config.base is None:
            area = config.tiny.image_pixels**2
            codec = make_codec(config.boxes, config.box_bins)
            return cls(codec, config.tiny.merge * config.tiny.patch, area, area, config.square)
        base = config.base
        settings, processor = (_read_settings(base, f"{n}.json") for n in ("config", "preprocessor_config"))
        if scheme := settings.get("scheme"):  # one of ours says how it was trained
            config = ModelConfig.model_validate({**read_older_tree(scheme, ModelConfig, []), "base": base})
            codec = make_codec(config.boxes, config.box_bins)
        else:
            codec = make_codec(_name_spelling(base, settings))
        size = processor.get("size") or {}
        if side := size.get("height"):  # one square for all images
            return cls(codec, side, side**2, side**2, True)
        factor = processor.get("patch_size", _PATCH) * processor.get("merge_size", _MERGE)
        most = size.get("longest_edge") or processor.get("max_pixels") or MAX_PIXELS
        least = size.get("shortest_edge") or processor.get("min_pixels") or MIN_PIXELS
        most = min(most, config.max_image_tokens * factor**2)
        return cls(codec, factor, min(least, most), most, config.square)

    def resize(self, image: Size) -> Size:
        """The size in pixels to which an image is resampled. Raises BadInput for one much longer than wide."""
        resize = square_resize if self.square else smart_resize
        return resize(*image, self.factor, self.least, self.most)

    def respell(self, box: Box, image: Size) -> tuple[str, Box]:
        """A box in the spelling of the model, and the box that is read from it."""
        size = self.resize(image)
        spelled = self.codec.encode(BoxedText(BOX_MARK, (box,)), size)
        return spelled, self.codec.decode(spelled, size).answer.boxes[0]


def _read_settings(folder: Path, name: str) -> Mapping[str, Any]:
    file = folder / name
    if not file.is_file():
        raise BadInput(f"--base {folder}: no {name} there; a folder of a model in Hugging Face layout is wanted")
    settings = read_json(file)
    if not isinstance(settings, dict):
        raise BadInput(f"{file}: an object is wanted; copy the file there again")
    return settings


def _name_spelling(folder: Path, settings: Mapping[str, Any]) -> str:
    """How the family of a folder spells boxes: qwen2_5_vl as "qwen2.5-vl"."""
    kind = str(settings.get("model_type"))
    name = re.sub(r"(?<=\d)_(?=\d)", ".", kind).replace("_", "-")
    if name not in SPELLINGS:
        legal = ", ".join(SPELLINGS[:-2])
        raise BadInput(f"--base {folder}: model_type is {kind!r}, whose boxes are not known; {legal} are")
    return name


@dataclass(frozen=True)
class SeenBox:
    """A box of a sample beside what a model reads of it. `difference`: of any edge, in pixels of the file's image."""

    sample: Sample
    file: Box
    model: Box
    spelled: str
    size: Size
    difference: float

    @property
    def image(self) -> ImageRef:
        return self.sample.images[-1]

    @property
    def name(self) -> str:
        return ", ".join(self.sample.names) or self.sample.question.words

    @property
    def pixels(self) -> str:
        """The file's box in pixels of its upright image: left, top, right, bottom."""
        edges = zip(self.file.corners, (*self.size, *self.size), strict=True)
        return " ".join(f"{round(fraction * side, 2):g}" for fraction, side in edges)


def choose_boxes(samples: Sequence[Sample], count: int, seed: int) -> list[tuple[Sample, Box]]:
    """Boxes of different images, drawn by the seed: of each modality in turn, and within it of each task and source."""
    kinds: dict[str, dict[tuple[str, str], list[tuple[Sample, Box]]]] = {}
    for sample in sorted(samples, key=lambda s: hashlib.sha256(f"{seed} {s.id}".encode()).digest()):
        boxes = sample.answer.boxes or sample.question.boxes
        if boxes and sample.images:
            of_modality = kinds.setdefault(sample.modality, {})
            of_modality.setdefault((sample.task, sample.source), []).append((sample, boxes[0]))
    by_image: dict[str, tuple[Sample, Box]] = {}
    for sample, box in _take_in_turn([_take_in_turn([kinds[m][k] for k in sorted(kinds[m])]) for m in sorted(kinds)]):
        by_image.setdefault(sample.images[-1].path, (sample, box))
    return list(by_image.values())[:count]


def _take_in_turn(lists: Sequence[Sequence[tuple[Sample, Box]]]) -> list[tuple[Sample, Box]]:
    """The first of each list, then the second of each, and so on."""
    return [found for found in chain.from_iterable(zip_longest(*lists)) if found]


def draw_box_sheet(
    chosen: Sequence[tuple[Sample, Box]], root: Path, view: ModelView
) -> tuple[Image.Image, list[SeenBox]]:
    """One picture of all boxes, three in a row: left the file's box on its image, right the box that the model reads,
    on the image that it sees. Raises BadInput if an image does not open."""
    seen, cells = [], []
    for sample, box in chosen:
        picture = open_image(root, sample.images[-1])
        size = Size(*picture.size)
        spelled, model = view.respell(box, size)
        edges = zip(box.corners, model.corners, (*size, *size), strict=True)
        difference = max(abs(ours - theirs) * side for ours, theirs, side in edges)
        seen.append(SeenBox(sample, box, model, spelled, size, difference))
        cells.append(_draw_cell(picture, seen[-1], view.resize(size)))
    return _paste_cells(cells), seen


def _draw_cell(picture: Image.Image, seen: SeenBox, resized: Size) -> Image.Image:
    resampled = picture.resize(resized, Image.Resampling.BICUBIC)
    pair = Image.new("RGB", (2 * _SIDE + _GAP, _SIDE), "white")
    pair.paste(draw_boxes(picture, [seen.file], [seen.name], [TRUTH], _SIDE))
    pair.paste(draw_boxes(resampled, [seen.model], [], [ANSWER], _SIDE), (_SIDE + _GAP, 0))
    return write_below(pair, list(_list_captions(seen, resized)))


def _list_captions(seen: SeenBox, resized: Size) -> Iterator[str]:
    yield f"{seen.name}: {seen.image.path}"
    yield f"file: {seen.pixels} of {seen.size.width}x{seen.size.height} pixels"
    yield f"model: {seen.spelled} on {resized.width}x{resized.height}; differs by {seen.difference:.1f} px"


def _paste_cells(cells: Sequence[Image.Image]) -> Image.Image:
    width, height = (max(cell.size[axis] for cell in cells) + _GAP for axis in (0, 1))
    columns = min(_COLUMNS, len(cells))
    sheet = Image.new("RGB", (columns * width - _GAP, -(-len(cells) // columns) * height - _GAP), "white")
    for place, cell in enumerate(cells):
        sheet.paste(cell, (place % columns * width, place // columns * height))
    return sheet
