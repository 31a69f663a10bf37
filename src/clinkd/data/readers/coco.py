"""Reader of COCO: objects of a detection file as boxes, with what our own writer adds to an image.

    {"images": [{"id", "file_name", "width", "height"}], "categories": [{"id", "name", "supercategory"}],
     "annotations": [{"id", "image_id", "category_id", "bbox": [x, y, width, height], "segmentation", "iscrowd"}]}

Boxes are pixels of the upright image, their width and height given. Where an annotation has no bbox, the extent of its
polygons or of its run-length mask is taken. An image may carry "modality", "group" or "patient", and "split"; under
"clinkd", as our writer leaves it, also "source" and "side". Other keys are passed over.

A row is an image, numbered by its place in `images` from 1; a fault of one of its annotations is named
`annotations[17].bbox`, counted from 0, and leaves the image out whole. Annotations that belong to no image, and
categories that cannot be used, are rows of their own, numbered by their place in their list from 1. The file is held in
memory whole (some six times its size), because COCO puts the boxes of an image anywhere in it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, get_args

from clinkd.data.grids import Size
from clinkd.data.modality import read_modality
from clinkd.data.readers.annotated import Annotated, four_numbers, grouped, make_samples
from clinkd.data.readers.boxes import choice, modality_of
from clinkd.data.readers.conversations import SPLITS
from clinkd.data.readers.rows import FieldError, RowResult, SourceRow, entries, faulty, short, whole_json, words
from clinkd.data.readers.source import Pictures, Source
from clinkd.records import BadInput, Box, ImageRef, Modality, Sample, Side, Split

PARTS = ("images", "annotations", "categories")
OURS = "clinkd"  # key of what our writer adds to an image
EDGE_PIXELS = 0.01  # beyond the border by so much is rounding: COCO files are written with two decimals

Corners = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels, right and bottom exclusive


def read(source: Source, told: Counter[str]) -> Iterator[RowResult]:
    """Images of a file, or of the JSON files in a folder or its `annotations`. Raises BadInput on what is not COCO."""
    pictures = Pictures(source)
    used: dict[str, str] = {}
    return itertools.chain.from_iterable(_entries(file, source, pictures, used, told) for file in files(source.path))


def files(path: Path) -> list[Path]:
    """The COCO files of a folder, or the file itself."""
    if not path.is_dir():
        return [path]
    for folder in (path / "annotations", path):
        if found := sorted(folder.glob("*.json")):
            return found
    raise BadInput(f"{path}: no .json file there or in its annotations folder; give the COCO file, and --images")


@dataclass(frozen=True, slots=True)
class Names:
    """What the ids of COCO files stand for, in all files of a source: paths of images and names of categories."""

    images: Mapping[str, str]
    categories: Mapping[str, str]

    @classmethod
    def of(cls, source: Source) -> Self:
        """Raises BadInput where a file is not COCO."""
        images: dict[str, str] = {}
        categories: dict[str, str] = {}
        for file in files(source.path):
            data = _load(file, source.encoding)
            for image in data.images:
                if isinstance(image, dict) and (key := _key(image.get("id"))) is not None:
                    images[key] = str(image.get("file_name")).strip().removeprefix(source.prefix)
            categories |= {key: known.name for key, known in data.categories.items() if key is not None}
        return cls(images, categories)

    def image(self, key: Any) -> str:
        """The path of an image. Raises Fault for an id that no image has."""
        return _found(self.images, key, "image_id", "image")

    def category(self, key: Any) -> str:
        """The name of a category. Raises Fault for an id that none has."""
        return _found(self.categories, key, "category_id", "category")


def _found(known: Mapping[str, str], key: Any, field: str, what: str) -> str:
    found = known.get(_key(key) or "")
    if found is None:
        raise FieldError(
            field, key, f"no {what} of the data has this id; leave the row out, or give the data it is about"
        )
    return found


def _entries(
    file: Path, source: Source, pictures: Pictures, used: dict[str, str], told: Counter[str]
) -> Iterator[RowResult]:
    data = _load(file, source.encoding)
    yield from data.problems
    make = partial(_samples, data=data, source=source, pictures=pictures, used=used, told=told)
    yield from entries(data.rows(), make)


# ---- the file -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Marked:
    """An annotation and how a person finds it."""

    field: str  # annotations[17]
    value: dict[str, Any]

    def fault(self, key: str, why: str) -> FieldError:
        """One of its values at fault, the reason with the id by which its own tool finds it."""
        why = f"{why} (annotation id {short(self.value.get('id', '?'))})"
        return FieldError(f"{self.field}.{key}", self.value.get(key), why)


class _Category(NamedTuple):
    name: str
    modality: Modality | None  # where its supercategory is one


@dataclass(frozen=True)
class _Data:
    """A COCO file, indexed by ids. `problems` stand for what has no image to be listed with."""

    file: Path
    split: Split | None
    images: list[Any]
    annotations: dict[str | None, list[_Marked]]
    categories: dict[str | None, _Category]
    image_ids: Counter[str | None]
    annotation_ids: Counter[str | None]
    corners: bool  # see `_all_corners`
    problems: tuple[RowResult, ...]

    def rows(self) -> Iterator[SourceRow | RowResult]:
        for number, image in enumerate(self.images, start=1):
            if isinstance(image, dict):
                marked = self.annotations.get(_key(image.get("id")), [])
                yield SourceRow(self.file, number, image, {"image": image, "annotations": [m.value for m in marked]})
            else:
                yield faulty(
                    self.file, number, FieldError(f"images[{number - 1}]", image, "an object is wanted"), image
                )


def _load(file: Path, encoding: str) -> _Data:
    """A COCO file read whole. Raises BadInput where it is no JSON (with the byte), or not COCO."""
    value = whole_json(file, encoding)
    if not isinstance(value, dict) or not all(isinstance(value.get(p), list) for p in PARTS):
        have = f"an object with {', '.join(map(str, value)) or 'nothing'}" if isinstance(value, dict) else "a list"
        lists = ", ".join(PARTS)
        raise BadInput(f"{file}: not a COCO detection file, which has the lists {lists}; it is {short(have)}")
    if not value["images"]:
        raise BadInput(f"{file}: the list images is empty")
    categories, problems = _categories(file, value["categories"])
    ids = _ids(value["images"])
    by_image, strays = _by_image(file, value["annotations"], ids.keys() - {None})
    parts = re.split(r"[^a-z]+", file.stem.lower())
    return _Data(
        file=file,
        split=next((SPLITS[w] for w in parts if w in SPLITS), None),
        images=value["images"],
        annotations=by_image,
        categories=categories,
        image_ids=ids,
        annotation_ids=_ids(value["annotations"]),
        corners=_all_corners(value["images"], by_image),
        problems=(*problems, *strays),
    )


def _key(value: Any) -> str | None:
    """An id that can be looked up, 7 and "7" being one; None for what is neither a whole number nor a text."""
    text = str(value).strip() if type(value) in (int, str) else ""
    return text or None


def _ids(objects: list[Any]) -> Counter[str | None]:
    """How often each id is given."""
    return Counter(_key(o.get("id")) for o in objects if isinstance(o, dict))


def _categories(file: Path, categories: list[Any]) -> tuple[dict[str | None, _Category], list[RowResult]]:
    """The categories by id, and those that cannot be used."""
    found: dict[str | None, _Category] = {}
    problems = []
    ids = _ids(categories)
    for k, category in enumerate(categories):
        try:
            if not isinstance(category, dict):
                raise FieldError(f"categories[{k}]", category, "an object is wanted")
            key = _key(category.get("id"))
            if key is None:
                raise FieldError(f"categories[{k}].id", category.get("id"), "no id; a whole number or a text is wanted")
            if ids[key] > 1:
                raise FieldError(f"categories[{k}].id", key, "the id of several categories; give each one of its own")
            name = words(category.get("name"), f"categories[{k}].name")
            found[key] = _Category(name, _as_modality(str(category.get("supercategory", ""))))
        except FieldError as fault:
            problems.append(faulty(file, k + 1, fault, category, category))
    return found, problems


def _by_image(
    file: Path, annotations: list[Any], known: Set[str | None]
) -> tuple[dict[str | None, list[_Marked]], list[RowResult]]:
    """Annotations by image id, and those that belong to no image of the file."""
    found: dict[str | None, list[_Marked]] = defaultdict(list)
    strays = []
    for k, annotation in enumerate(annotations):
        field = f"annotations[{k}]"
        if not isinstance(annotation, dict):
            strays.append(faulty(file, k + 1, FieldError(field, annotation, "an object is wanted"), annotation))
        elif (key := _key(annotation.get("image_id"))) in known:
            found[key].append(_Marked(field, annotation))
        else:
            why = "no image has this id; add the image, or remove the annotation"
            fault = FieldError(f"{field}.image_id", annotation.get("image_id"), why)
            strays.append(faulty(file, k + 1, fault, annotation, annotation))
    return found, strays


def _all_corners(images: list[Any], by_image: dict[str | None, list[_Marked]]) -> bool:
    """Whether the bbox of every annotation can be read as [x1, y1, x2, y2], and some as nothing else.

    Then those that could be read both ways are not to be trusted either.
    """
    only_so = False
    for image in images:
        if not isinstance(image, dict) or not all(type(image.get(k)) is int for k in ("width", "height")):
            continue
        size = Size(image["width"], image["height"])
        for marked in by_image.get(_key(image.get("id")), ()):
            box = marked.value.get("bbox")
            if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
                continue
            if not _like_corners(box, size):
                return False
            only_so = only_so or _beyond(box, size)
    return only_so


def _like_corners(box: Sequence[float], size: Size) -> bool:
    x1, y1, x2, y2 = box
    return 0 <= x1 < x2 <= size.width and 0 <= y1 < y2 <= size.height


def _beyond(box: Sequence[float], size: Size) -> bool:
    """Whether [x, y, width, height] leads out of the image at the right or below."""
    x, y, w, h = box
    return x + w > size.width + EDGE_PIXELS or y + h > size.height + EDGE_PIXELS


# ---- an image -------------------------------------------------------------------------------------------------------


def _samples(
    row: SourceRow, data: _Data, source: Source, pictures: Pictures, used: dict[str, str], told: Counter[str]
) -> list[Sample]:
    value = row.value
    key = _key(value.get("id"))
    if key is None:
        raise FieldError("id", value.get("id"), "no id; a whole number or a text is wanted")
    if data.image_ids[key] > 1:
        why = f"the id of {data.image_ids[key]} images, so whose annotations are whose? give each image one of its own"
        raise FieldError("id", key, why)
    image = _image(value, source, pictures)
    place = f"row {row.number} of {data.file.name}"
    if used.setdefault(image.path, place) != place:
        raise FieldError("file_name", image.path, f"already used by {used[image.path]}; give each image one entry")
    assert image.width is not None and image.height is not None
    size = Size(image.width, image.height)
    changed: Counter[str] = Counter()
    marked = data.annotations.get(key, [])
    crowds = frozenset(_name(m, data) for m in marked if m.value.get("iscrowd") == 1)
    objects = tuple(found for m in marked if (found := _object(m, size, data, changed)) is not None)
    if not objects:  # nothing is asked, so nothing more need be known of it
        told.update(changed + Counter({"images without a box, of which nothing is asked": 1}))
        return []
    record = Annotated(
        id=words(f"{data.file.stem}-{key}", "id"),
        image=image,
        modality=_modality(value, marked, data, source),
        objects=objects,
        group=_group(value, source, image),
        origin=words(_said(value, "source"), "source") if _said(value, "source") else data.file.stem,
        side=_side(value, source),
        split=_split(value) or source.split or data.split,
        incomplete=crowds,
    )
    samples = make_samples(record, source, changed)
    told.update(changed)
    return samples


def _image(value: dict[str, Any], source: Source, pictures: Pictures) -> ImageRef:
    """The image and its size: its own where it was opened, else what the file says."""
    words(value.get("file_name"), "file_name")  # a torn encoding, which no file of samples could hold
    image = pictures.ref(value["file_name"], "file_name")
    for field in ("width", "height"):
        given = value.get(field)
        if given is None and source.open_images:
            continue
        if type(given) is not int or given < 1:
            raise FieldError(field, given, "a number of pixels is wanted; fill it in, or let the images be opened")
    if image.width is None or image.height is None:
        return ImageRef(image.path, value["width"], value["height"])
    for field, found in (("width", image.width), ("height", image.height)):
        if value.get(field) not in (None, found):
            turned = " once it is turned upright, as its EXIF says" if image.orientation != 1 else ""
            why = f"the image has {found} pixels{turned}; correct it, and the boxes with it"
            raise FieldError(field, value[field], why)
    return image


def _said(value: dict[str, Any], key: str) -> Any:
    """What our writer, else the image itself, says under a key; None where neither does."""
    ours = value.get(OURS)
    if ours is not None and not isinstance(ours, dict):
        raise FieldError(OURS, ours, "an object is wanted, as the writer leaves it")
    found = (ours or {}).get(key)
    return value.get(key) if found is None else found


def _modality(value: dict[str, Any], marked: Sequence[_Marked], data: _Data, source: Source) -> Modality:
    """That of the image, else of the supercategories of its objects, else of the source."""
    if (said := _said(value, "modality")) is not None:
        return modality_of(said, source)
    known = [data.categories.get(_key(m.value.get("category_id"))) for m in marked]
    found = {c.modality for c in known if c is not None and c.modality is not None}
    if len(found) > 1:
        raise FieldError(
            "modality", sorted(found), "supercategories of several modalities in one image; give it a modality"
        )
    return found.pop() if found else modality_of(None, source)


def _as_modality(kind: str) -> Modality | None:
    try:
        found = read_modality(kind)
    except BadInput:
        return None  # "organ", "animal"
    return found if found is not Modality.OTHER else None  # "other" is said of anything


def _group(value: dict[str, Any], source: Source, image: ImageRef) -> str:
    for key in ("group", "patient"):
        said = _said(value, key)
        if said is not None:
            return words(str(said) if type(said) is int else said, key)
    return grouped(source, image.path)


def _side(value: dict[str, Any], source: Source) -> Side:
    side: Side | None = choice({"side": _said(value, "side")}, "side", get_args(Side))
    return side or source.side or "patient"


def _split(value: dict[str, Any]) -> Split | None:
    said = _said(value, "split")
    if said is None:
        return None
    if not isinstance(said, str) or said.lower() not in SPLITS:
        raise FieldError("split", said, "one of train, validation, test is wanted")
    return SPLITS[said.lower()]


# ---- an annotation --------------------------------------------------------------------------------------------------


def _object(marked: _Marked, size: Size, data: _Data, changed: Counter[str]) -> tuple[str, Box] | None:
    """Name and box of an annotation; None for a crowd, which is no object of its own."""
    value = marked.value
    key = _key(value.get("id"))
    if value.get("id") is not None and (key is None or data.annotation_ids[key] > 1):
        why = "no usable id" if key is None else f"the id of {data.annotation_ids[key]} annotations"
        raise FieldError(f"{marked.field}.id", value["id"], f"{why}; give each a number of its own")
    if value.get("iscrowd", 0) not in (0, 1):
        raise marked.fault("iscrowd", "0 or 1 is wanted")
    if value.get("iscrowd"):
        changed["crowds (iscrowd), which are no single object"] += 1
        return None
    name = _name(marked, data)
    shape = value.get("segmentation")
    if value.get("bbox") in (None, []):
        if not shape:
            raise marked.fault("bbox", "no box and no segmentation; give one of them")
        extent = _extent(shape, f"{marked.field}.segmentation", size)
        return name, _fractions(extent, marked, "segmentation", size, changed)
    for key in ("segmentation", "keypoints"):
        if value.get(key):
            changed[f"{key} of which the box alone is kept"] += 1
    return name, _fractions(_bbox(marked, size, data.corners), marked, "bbox", size, changed)


def _name(marked: _Marked, data: _Data) -> str:
    category = data.categories.get(_key(marked.value.get("category_id")))
    if category is None:
        raise marked.fault("category_id", "no usable category has this id; see categories")
    return category.name


def _bbox(marked: _Marked, size: Size, corners: bool) -> Corners:
    try:
        bbox = four_numbers(marked.value["bbox"], "bbox", "[x, y, width, height] in pixels")
    except FieldError as fault:
        raise marked.fault("bbox", fault.why) from None
    x, y, w, h = bbox
    swap = "COCO has [x, y, width, height]: write x2 - x1 and y2 - y1 in their place"
    if corners:
        why = f"every bbox of the file can be [x1, y1, x2, y2], and some can be nothing else; {swap}"
        raise marked.fault("bbox", why)
    if w <= 0 or h <= 0:
        raise marked.fault("bbox", "width or height is not above 0; mend or remove the annotation")
    if x + w <= 1 and y + h <= 1 and any(v != int(v) for v in bbox):
        why = "fractions of the image where COCO has pixels; multiply by width and height"
        raise marked.fault("bbox", why)
    if _beyond(bbox, size) and _like_corners(bbox, size):
        raise marked.fault("bbox", f"{_outside(size)}; it looks like [x1, y1, x2, y2], but {swap}")
    return x, y, x + w, y + h


def _outside(size: Size) -> str:
    return f"outside the image of {size.width}x{size.height} pixels"


def _fractions(corners: Corners, marked: _Marked, key: str, size: Size, changed: Counter[str]) -> Box:
    """Corners in pixels as a Box. What lies beyond the border by a rounding is put on it."""
    x1, y1, x2, y2 = corners
    over = max(-x1, -y1, x2 - size.width, y2 - size.height)
    if not over <= EDGE_PIXELS:
        raise marked.fault(key, f"{_outside(size)}; mend or remove the annotation")
    if over > 1e-6:
        changed[f"boxes up to {EDGE_PIXELS} pixels beyond the border, put on it"] += 1
    x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, size.width), min(y2, size.height)
    if not (x1 < x2 and y1 < y2):
        raise marked.fault(key, "without area; mend or remove the annotation")
    return Box(x1 / size.width, y1 / size.height, x2 / size.width, y2 / size.height)


# ---- segmentations --------------------------------------------------------------------------------------------------


def _extent(shape: Any, field: str, size: Size) -> Corners:
    """The box around polygons or a run-length mask."""
    if isinstance(shape, dict):
        return _run_length(shape, field, size)
    if not isinstance(shape, list) or not all(_is_polygon(p) for p in shape):
        raise FieldError(
            field, shape, "polygons [[x, y, x, y, x, y, ...]] or a run-length mask {size, counts} are wanted"
        )
    xs, ys = [x for p in shape for x in p[0::2]], [y for p in shape for y in p[1::2]]
    return min(xs), min(ys), max(xs), max(ys)


def _is_polygon(value: Any) -> bool:
    if not isinstance(value, list) or len(value) < 6 or len(value) % 2:
        return False
    return all(type(v) in (int, float) and abs(v) < math.inf for v in value)


def _run_length(shape: dict[str, Any], field: str, size: Size) -> Corners:
    """The extent of a mask in runs down its columns, background first (pycocotools `maskApi.c`)."""
    if shape.get("size") != [size.height, size.width]:
        why = f"[{size.height}, {size.width}], that of the image, is wanted"
        raise FieldError(f"{field}.size", shape.get("size"), why)
    given = shape.get("counts")
    try:
        counts = unpacked(given) if isinstance(given, str) else given
    except ValueError as error:
        raise FieldError(f"{field}.counts", given, f"not a run-length text ({error}); write the mask anew") from None
    if not isinstance(counts, list) or not all(type(c) is int and c >= 0 for c in counts):
        raise FieldError(f"{field}.counts", given, "whole numbers, none below 0, or their packed text are wanted")
    if sum(counts) != size.width * size.height:
        why = f"the runs add up to {sum(counts):,} pixels where the image has {size.width * size.height:,}"
        raise FieldError(f"{field}.counts", given, f"{why}; write the mask anew")
    ends = list(itertools.accumulate(counts))
    runs = [(start, end) for start, end in zip(ends[0::2], ends[1::2], strict=False) if end > start]
    if not runs:
        raise FieldError(f"{field}.counts", given, "a mask without a pixel; mend or remove the annotation")
    height = size.height
    first, last = runs[0][0] // height, (runs[-1][1] - 1) // height
    if any(start // height != (end - 1) // height for start, end in runs):  # over the end of a column
        return first, 0, last + 1, height
    return first, min(s % height for s, _ in runs), last + 1, max((e - 1) % height for _, e in runs) + 1


def unpacked(text: str) -> list[int]:
    """Runs of pycocotools' text: six bits a character from "0" on, low bits first, from the third run on as the
    difference to the run two before. Raises ValueError where it is not such a text."""
    counts: list[int] = []
    value = bits = 0
    for place, character in enumerate(text):
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"{character!r} at place {place}")
        value |= (code & 31) << bits
        bits += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << bits
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = bits = 0
    if bits:
        raise ValueError("it ends inside a number")
    return counts
