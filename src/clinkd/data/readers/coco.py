"""Read COCO detection files: each object becomes a box with a name. What our own writer adds to an image is read too.

    {"images": [{"id", "file_name", "width", "height"}], "categories": [{"id", "name", "supercategory"}],
     "annotations": [{"id", "image_id", "category_id", "bbox": [x, y, width, height], "segmentation", "iscrowd"}]}

A bbox is in pixels of the upright image. An annotation without a bbox gets the box around its polygons or around its
run-length mask. Its "label_text" (MS-CXR) is what is said of the box; its "reader", "annotator" or "rad_id" drew it. An
image may have the keys "modality", "group" or "patient", and "split". Our writer adds "source" and "side", under
"clinkd". Other keys are counted.

Images lie beside the file, or where COCO's own tree and Roboflow's exports have them (`trees`); a name of the file, or
of its folder below the given one, may tell the split.

A row is one image. Rows are numbered from 1 in the order of `images`. An error in an annotation is named
`annotations[17].bbox`, counted from 0, and the whole image is left out. Annotations that belong to no image, and
categories that cannot be used, are rows of their own, numbered from 1 in the order of their list. The whole file is
held in memory (about six times its size), because COCO puts the boxes of an image anywhere in the file.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from clinkd.data.grids import Size
from clinkd.data.modality import read_modality
from clinkd.data.readers.annotated import (
    Annotated,
    find_split_group,
    make_samples,
    parse_group,
    put_on_border,
    require_four_numbers,
    resolve_modality,
)
from clinkd.data.readers.box_layout import FourNumbers
from clinkd.data.readers.boxes import READER_KEYS, SIDES, find_reader, parse_choice
from clinkd.data.readers.names import require_class_name
from clinkd.data.readers.rows import (
    FieldError,
    RowResult,
    SourceRow,
    convert_rows,
    load_json_file,
    make_error_result,
    read_head,
    require_words,
    shorten_value,
)
from clinkd.data.readers.shapes import extent
from clinkd.data.readers.source import LABEL_FOLDERS, Source
from clinkd.data.readers.split_words import SPLIT_WORDS, find_split_of_path
from clinkd.data.readers.trees import TreeImages
from clinkd.records import BadInput, Box, ImageRef, Modality, Sample, Split

PARTS = ("images", "annotations", "categories")
COCO_EXTRA_KEY = "clinkd"  # key of what our writer adds to an image
LABEL_FILES = ("annotations/*.json", "*/*.json", "*/annotations/*.json")
OTHER_FILES = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")  # of COCO, on the same images
KEYS_OF_IMAGES = {
    "id", "file_name", "width", "height", "modality", "group", "patient", "split", COCO_EXTRA_KEY,
    "license", "date_captured", "coco_url", "flickr_url",
}  # fmt: skip
KEYS_OF_ANNOTATIONS = {
    "id", "image_id", "category_id", "bbox", "segmentation", "iscrowd", "keypoints", "num_keypoints", "area",
    "label_text", *READER_KEYS,
}  # fmt: skip
EDGE_PIXELS = 1  # a box less than this beyond the border was rounded, or drawn along it


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Read a file, or the COCO files of a folder (see `files`). Raises BadInput where a file is not COCO."""
    reader = _CocoReader(source, notes)
    for file in files(source.path, notes):
        yield from reader.read(file)
    reader.count_unused_categories()


def files(path: Path, notes: Counter[str]) -> list[Path]:
    """The COCO files of a folder: those in its `annotations`, else its own, else those one folder below; or the file.

    Where COCO's `instances_*` stand, its other files about the same images (`captions_*` and so on) are left out, which
    `notes` tells.
    """
    if not path.is_dir():
        return [path]
    for folder in (path / "annotations", path):
        if json_files := sorted(folder.glob("*.json")):
            break
    else:
        json_files = [f for f in sorted(path.glob("*/*.json")) + sorted(path.glob("*/*/*.json")) if is_file(f)]
    if not json_files:
        raise BadInput(f"{path}: no .json file of COCO there or below; give the COCO file, and --images")
    if any(f.name.startswith("instances_") for f in json_files):
        others = [f for f in json_files if f.name.startswith(OTHER_FILES)]
        json_files = [f for f in json_files if f not in others]
        for file in others:
            notes[f"file {file.name} is left out, because instances_* has the boxes; give it by name to read it"] += 1
    return json_files


def is_row(row: Mapping[str, Any]) -> bool:
    """Whether a row of JSON is a whole file of COCO."""
    return isinstance(row.get("annotations"), list) and "images" in row


def is_file(file: Path, encoding: str = "utf-8") -> bool:
    """Whether the beginning of a JSON file has a key of COCO."""
    head = read_head(file, encoding)
    return head.startswith("{") and any(f'"{key}"' in head for key in PARTS)


@dataclass(frozen=True, slots=True)
class CocoNames:
    """The image paths and the category names of all COCO files of a source, by id; "" for an id with several.

    `splits`: of each image path, those without an annotation, too. `annotated`: each path with the category of each of
    its annotations.
    """

    images: Mapping[str, str]
    categories: Mapping[str, str]
    splits: Mapping[str, Split | None]
    annotated: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, source: Source) -> Self:
        """Raises BadInput where a file is not COCO."""
        images: dict[str, str] = {}
        categories: dict[str, str] = {}
        splits: dict[str, Split | None] = {}
        annotated: set[tuple[str, str]] = set()
        tree = TreeImages(source, Counter())
        for file in files(source.path, Counter()):
            data = _CocoFile(file, source)
            for image in data.images:
                if isinstance(image, dict) and (key := _normalize_id(image.get("id"))) is not None:
                    path = tree.locate(file, str(image.get("file_name")))
                    images[key] = path if images.get(key, path) == path else ""
                    splits[path] = SPLIT_WORDS.get(str(image.get("split")).lower(), data.split)
                    known = (data.category_of(a) for a in data.annotations_of(image))
                    annotated |= {(path, category.name) for category in known if category}
            for key, entry in data.categories.items():
                if key is not None:
                    categories[key] = entry.name if categories.get(key, entry.name) == entry.name else ""
        return cls(images, categories, splits, frozenset(annotated))

    def image(self, key: Any) -> str:
        """The path of an image. Raises FieldError for an id that no image has."""
        return _look_up_id(self.images, key, "image_id", "image")

    def category(self, key: Any) -> str:
        """The name of a category. Raises FieldError for an id that none has."""
        return _look_up_id(self.categories, key, "category_id", "category")


def _look_up_id(names: Mapping[str, str], key: Any, field: str, what: str) -> str:
    name = names.get(_normalize_id(key) or "")
    if name is None:
        why = f"no {what} of the data has this id; leave the row out, or give the data it is about"
        raise FieldError(field, key, why)
    if not name:
        raise FieldError(
            field, key, f"the id of more than one {what} in the data's files; give the one file it is about"
        )
    return name


# ---- the file -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Annotation:
    """An annotation and its place in the file."""

    field: str  # annotations[17]
    value: dict[str, Any]

    def error(self, key: str, why: str) -> FieldError:
        """The error of one value. The reason names the id by which the user's own tool finds the annotation."""
        why = f"{why} (annotation id {shorten_value(self.value.get('id', '?'))})"
        return FieldError(f"{self.field}.{key}", self.value.get(key), why)


class _Category(NamedTuple):
    name: str
    modality: Modality | None  # if the supercategory is one


class _CocoFile:
    """A whole COCO file, indexed by ids. `problems` are the errors that belong to no image.

    Raises BadInput where it is not JSON (naming the byte) or not COCO.
    """

    def __init__(self, file: Path, source: Source) -> None:
        value = load_json_file(file, source.encoding)
        if not isinstance(value, dict) or not all(isinstance(value.get(p), list) for p in PARTS):
            form = f"an object with {', '.join(map(str, value)) or 'nothing'}" if isinstance(value, dict) else "a list"
            why = f"not a COCO detection file, which has the lists {', '.join(PARTS)}; it is {shorten_value(form)}"
            raise BadInput(f"{file}: {why}")
        if not value["images"]:
            raise BadInput(f"{file}: the list images is empty")
        below = file.parent.relative_to(source.path).parts if source.path.is_dir() else ()
        self.file, top = file, source.path if source.path.is_dir() else file.parent
        self.split = source.split or find_split_of_path(file, top)
        self.name = "/".join([*(part for part in below if part not in LABEL_FOLDERS), file.stem])
        self.images: list[Any] = value["images"]
        self.image_ids, self.annotation_ids = _count_ids(value["images"]), _count_ids(value["annotations"])
        self.problems: list[RowResult] = []
        self.supercategories: set[str] = set()
        self.categories: dict[str | None, _Category] = dict(self._read_categories(value["categories"]))
        self.annotations: dict[str | None, list[_Annotation]] = defaultdict(list)  # by image
        self._group_annotations(value["annotations"])
        self.has_corners = self._detect_corner_boxes()

    def rows(self) -> Iterator[SourceRow | RowResult]:
        for number, image in enumerate(self.images, start=1):
            if isinstance(image, dict):
                raw = {"image": image, "annotations": [a.value for a in self.annotations_of(image)]}
                yield SourceRow(self.file, number, image, raw)
            else:
                fault = FieldError(f"images[{number - 1}]", image, "an object is wanted")
                yield make_error_result(self.file, number, fault, image)

    def annotations_of(self, image: dict[str, Any]) -> list[_Annotation]:
        return self.annotations.get(_normalize_id(image.get("id")), [])

    def category_of(self, annotation: _Annotation) -> _Category | None:
        return self.categories.get(_normalize_id(annotation.value.get("category_id")))

    def name_of(self, annotation: _Annotation) -> str:
        """The name of the category. Raises FieldError where it has none that can be used."""
        category = self.category_of(annotation)
        if category is None:
            raise annotation.error("category_id", "no usable category has this id; see categories")
        return category.name

    def _read_categories(self, categories: list[Any]) -> Iterator[tuple[str, _Category]]:
        """Yield the categories with their ids; store the errors of those that cannot be used."""
        ids = _count_ids(categories)
        for k, category in enumerate(categories):
            field = f"categories[{k}]"
            try:
                if not isinstance(category, dict):
                    raise FieldError(field, category, "an object is wanted")
                key = _normalize_id(category.get("id"))
                if key is None:
                    raise FieldError(f"{field}.id", category.get("id"), "no id; a whole number or a text is wanted")
                if ids[key] > 1:
                    raise FieldError(f"{field}.id", key, "the id of several categories; give each one of its own")
                name = require_words(category.get("name"), f"{field}.name")
                kind = str(category.get("supercategory", ""))
                self.supercategories |= {kind} - {name}
                yield key, _Category(name, _parse_supercategory(kind))
            except FieldError as fault:
                self.problems.append(make_error_result(self.file, k + 1, fault, category, category))

    def _group_annotations(self, annotations: list[Any]) -> None:
        """Store the annotations by image, and the errors of those that belong to no image of the file."""
        for k, annotation in enumerate(annotations):
            field = f"annotations[{k}]"
            fault = FieldError(field, annotation, "an object is wanted")
            if isinstance(annotation, dict):
                key = _normalize_id(annotation.get("image_id"))
                if key is not None and key in self.image_ids:
                    self.annotations[key].append(_Annotation(field, annotation))
                    continue
                why = "no image has this id; add the image, or remove the annotation"
                fault = FieldError(f"{field}.image_id", annotation.get("image_id"), why)
            self.problems.append(make_error_result(self.file, k + 1, fault, annotation, annotation))

    def _detect_corner_boxes(self) -> bool:
        """Whether every bbox can be read as [x1, y1, x2, y2], and some bbox as nothing else.

        Then a bbox that can be read both ways cannot be trusted either.
        """
        only_as_corners = False
        for image in self.images:
            if not isinstance(image, dict) or not all(type(image.get(k)) is int for k in ("width", "height")):
                continue
            size = Size(image["width"], image["height"])
            for annotation in self.annotations_of(image):
                box = annotation.value.get("bbox")
                if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
                    continue
                if not _can_be_corners(box, size):
                    return False
                only_as_corners = only_as_corners or _exceeds_image(box, size)
        return only_as_corners


def _normalize_id(value: Any) -> str | None:
    """An id as text, so that 7 and "7" are the same. None if it is neither a whole number nor a text."""
    text = str(value).strip() if type(value) in (int, str) else ""
    return text or None


def _count_ids(objects: list[Any]) -> Counter[str | None]:
    """How many objects have each id."""
    return Counter(_normalize_id(o.get("id")) for o in objects if isinstance(o, dict))


def _can_be_corners(box: Sequence[float], size: Size) -> bool:
    x1, y1, x2, y2 = box
    return 0 <= x1 < x2 <= size.width and 0 <= y1 < y2 <= size.height


def _exceeds_image(box: Sequence[float], size: Size) -> bool:
    """Whether [x, y, width, height] exceeds the image at the right or at the bottom."""
    x, y, w, h = box
    return x + w >= size.width + EDGE_PIXELS or y + h >= size.height + EDGE_PIXELS


# ---- an image -------------------------------------------------------------------------------------------------------


class _CocoReader:
    """Reads the files of a source. An image may have only one entry in all files together."""

    def __init__(self, source: Source, notes: Counter[str]) -> None:
        self.source, self.notes = source, notes
        self.images = TreeImages(source, notes)
        self.first_places: dict[str, str] = {}  # of images, by path
        self.supercategories: set[str] = set()  # that are categories, too
        self.annotated: set[str] = set()  # names of categories

    def read(self, file: Path) -> Iterator[RowResult]:
        data = _CocoFile(file, self.source)
        self.supercategories |= data.supercategories & {category.name for category in data.categories.values()}
        annotations = itertools.chain.from_iterable(data.annotations.values())
        self.annotated |= {category.name for a in annotations if (category := data.category_of(a)) is not None}
        yield from data.problems
        yield from convert_rows(data.rows(), partial(self._convert_image, data))

    def count_unused_categories(self) -> None:
        """Note categories without annotations that are the kind of others, as Roboflow writes one of each project."""
        for name in self.supercategories - self.annotated:
            self.notes[f"category {name!r} is the kind of others and has no annotation, so nothing is asked of it"] += 1

    def _convert_image(self, data: _CocoFile, row: SourceRow) -> list[Sample]:
        value = row.value
        key = _normalize_id(value.get("id"))
        if key is None:
            raise FieldError("id", value.get("id"), "no id; a whole number or a text is wanted")
        if (count := data.image_ids[key]) > 1:
            why = f"the id of {count} images, so whose annotations are whose? give each image one of its own"
            raise FieldError("id", key, why)
        image, size = self._parse_image(value, data.file)
        place = f"row {row.number} of {data.name}{data.file.suffix}"
        first_place = self.first_places.setdefault(image.path, place)
        if first_place != place:
            raise FieldError("file_name", image.path, f"already used by {first_place}; give each image one entry")
        image_notes = Counter(f"keys {key!r} of images, which are not used" for key in value.keys() - KEYS_OF_IMAGES)
        annotations = data.annotations_of(value)
        names_and_boxes = [
            (require_class_name(name, "category.name", self.source.class_names), box)
            for name, box in (_parse_annotation(annotation, size, data, image_notes) for annotation in annotations)
        ]
        objects = tuple((name, box) for name, box in names_and_boxes if box is not None)
        pairs = list(zip(annotations, names_and_boxes, strict=True))
        sentences = [(name, box, text) for a, (name, box) in pairs if box is not None for text in _parse_sentences(a)]
        if not objects:  # no question is made, so nothing more must be known about the image
            self.notes.update(image_notes + Counter({"images without a box, of which nothing is asked": 1}))
            return []
        stated = _merge_writer_values(value)
        record = Annotated(
            id=require_words(f"{data.name}-{key}", "id"),
            image=image,
            modality=_find_modality(stated, annotations, data, self.source),
            objects=objects,
            group=self._find_group(stated, image),
            origin=require_words(stated["source"], "source") if stated.get("source") else data.file.stem,
            side=parse_choice(stated, "side", SIDES) or self.source.side or "patient",
            split=_parse_split(stated.get("split"), None if self.source.split else data.split) or data.split,
            sentences=tuple(sentences),
            readers=tuple(find_reader(a.value, a.field) for a, (_, box) in pairs if box is not None),
            incomplete=frozenset(name for name, box in names_and_boxes if box is None),
        )
        samples = make_samples(record, self.source, image_notes)
        self.notes.update(image_notes)
        return samples

    def _find_group(self, stated: dict[str, Any], image: ImageRef) -> str:
        for key in ("group", "patient"):
            group = stated.get(key)
            if group is not None:
                return parse_group(group, key)
        return find_split_group(self.source, image.path, self.images.resolver.header(image.path))

    def _parse_image(self, value: dict[str, Any], file: Path) -> tuple[ImageRef, Size]:
        """The image and its size: the true size if the image was opened, else the size that the file states."""
        require_words(value.get("file_name"), "file_name")  # no file of samples can hold a broken encoding
        image = self.images.find(file, value["file_name"], "file_name")
        for field, actual in (("width", image.width), ("height", image.height)):
            stated = value.get(field)
            if stated is None and self.source.open_images:
                continue
            if type(stated) is not int or stated < 1:
                raise FieldError(field, stated, "a number of pixels is wanted; fill it in, or let the images be opened")
            if actual not in (None, stated):
                turned_note = " once it is turned upright, as its EXIF says" if image.orientation != 1 else ""
                why = f"the image has {actual} pixels{turned_note}; correct it, and the boxes with it"
                raise FieldError(field, stated, why)
        size = Size(image.width or value["width"], image.height or value["height"])
        return replace(image, width=size.width, height=size.height), size


def _merge_writer_values(image: dict[str, Any]) -> dict[str, Any]:
    """The keys of an image, with the values that our writer stored in their place."""
    writer_values = image.get(COCO_EXTRA_KEY)
    if writer_values is None:
        return image
    if not isinstance(writer_values, dict):
        raise FieldError(COCO_EXTRA_KEY, writer_values, "an object is wanted, as the writer leaves it")
    return image | {key: value for key, value in writer_values.items() if value is not None}


def _find_modality(
    stated: dict[str, Any], annotations: Sequence[_Annotation], data: _CocoFile, source: Source
) -> Modality:
    """The modality that the image states, else its objects' supercategories, else the source."""
    if stated.get("modality") is not None:
        return resolve_modality(stated["modality"], source)
    categories = map(data.category_of, annotations)
    modalities = {c.modality for c in categories if c is not None and c.modality is not None}
    if len(modalities) > 1:
        why = "supercategories of several modalities in one image; give it a modality"
        raise FieldError("modality", sorted(modalities), why)
    return modalities.pop() if modalities else resolve_modality(None, source)


def _parse_supercategory(kind: str) -> Modality | None:
    try:
        modality = read_modality(kind)
    except BadInput:
        return None  # such as "organ" or "animal"
    return modality if modality is not Modality.OTHER else None  # "other" may mean anything


def _parse_split(split: Any, told: Split | None) -> Split | None:
    """The split that an image states. Raises FieldError if the path of its file tells another."""
    if split is None:
        return None
    if not isinstance(split, str) or split.lower() not in SPLIT_WORDS:
        raise FieldError("split", split, "one of train, validation, test is wanted")
    if told not in (None, SPLIT_WORDS[split.lower()]):
        raise FieldError("split", split, f"the name of the file, or of its folder, says {told}; correct one of them")
    return SPLIT_WORDS[split.lower()]


# ---- an annotation --------------------------------------------------------------------------------------------------


def _parse_annotation(
    annotation: _Annotation, size: Size, data: _CocoFile, image_notes: Counter[str]
) -> tuple[str, Box | None]:
    """Name and box of an annotation. A crowd has no box, because it is not a single object."""
    value = annotation.value
    key = _normalize_id(value.get("id"))
    if value.get("id") is not None and (key is None or data.annotation_ids[key] > 1):
        why = "no usable id" if key is None else f"the id of {data.annotation_ids[key]} annotations"
        raise FieldError(f"{annotation.field}.id", value["id"], f"{why}; give each a number of its own")
    if value.get("iscrowd", 0) not in (0, 1):
        raise annotation.error("iscrowd", "0 or 1 is wanted")
    name = data.name_of(annotation)
    if value.get("iscrowd"):
        image_notes["crowds (iscrowd), which are no single object"] += 1
        return name, None
    segmentation = value.get("segmentation")
    if value.get("bbox") in (None, []):
        if not segmentation:
            raise annotation.error("bbox", "no box and no segmentation; give one of them")
        corners = _compute_extent(segmentation, f"{annotation.field}.segmentation", size)
        return name, _to_fraction_box(corners, annotation, "segmentation", size, image_notes)
    image_notes.update(f"keys {key!r} of annotations, which are not used" for key in value.keys() - KEYS_OF_ANNOTATIONS)
    for key in ("segmentation", "keypoints"):
        if value.get(key):
            image_notes[f"{key} of which the box alone is kept"] += 1
    return name, _to_fraction_box(
        _parse_bbox(annotation, size, data.has_corners), annotation, "bbox", size, image_notes
    )


def _parse_sentences(annotation: _Annotation) -> list[str]:
    """What is said of the box: a text or a list of texts (MS-CXR, https://physionet.org/content/ms-cxr)."""
    stated = annotation.value.get("label_text")
    texts = stated if isinstance(stated, list) else [] if stated is None else [stated]
    return [require_words(text, f"{annotation.field}.label_text") for text in texts]


def _parse_bbox(annotation: _Annotation, size: Size, corners: bool) -> FourNumbers:
    try:
        x, y, w, h = bbox = require_four_numbers(annotation.value["bbox"], "bbox", "[x, y, width, height] in pixels")
    except FieldError as fault:
        raise annotation.error("bbox", fault.why) from None
    swap = "COCO has [x, y, width, height]: write x2 - x1 and y2 - y1 in their place"
    if corners:
        why = f"every bbox of the file can be [x1, y1, x2, y2], and some can be nothing else; {swap}"
        raise annotation.error("bbox", why)
    if w <= 0 or h <= 0:
        raise annotation.error("bbox", "width or height is not above 0; mend or remove the annotation")
    if x + w <= 1 and y + h <= 1 and any(v != int(v) for v in bbox):
        why = "fractions of the image where COCO has pixels; multiply by width and height"
        raise annotation.error("bbox", why)
    if _exceeds_image(bbox, size) and _can_be_corners(bbox, size):
        raise annotation.error("bbox", f"{_describe_outside(size)}; it looks like [x1, y1, x2, y2], but {swap}")
    return x, y, x + w, y + h


def _describe_outside(size: Size) -> str:
    return f"outside the image of {size.width}x{size.height} pixels"


def _to_fraction_box(
    corners: FourNumbers, annotation: _Annotation, key: str, size: Size, image_notes: Counter[str]
) -> Box:
    """Corners in pixels as a Box, put on the border where they are less than a pixel beyond it."""
    if not max(-corners[0], -corners[1], corners[2] - size.width, corners[3] - size.height) < EDGE_PIXELS:
        raise annotation.error(key, f"{_describe_outside(size)}; mend or remove the annotation")
    x1, y1, x2, y2 = put_on_border(corners, (size.width, size.height), (EDGE_PIXELS, EDGE_PIXELS), image_notes)
    if not (x1 < x2 and y1 < y2):
        raise annotation.error(key, "without area; mend or remove the annotation")
    return Box(x1 / size.width, y1 / size.height, x2 / size.width, y2 / size.height)


# ---- segmentations --------------------------------------------------------------------------------------------------


def _compute_extent(segmentation: Any, field: str, size: Size) -> FourNumbers:
    """The box around polygons or a run-length mask."""
    if isinstance(segmentation, dict):
        return _compute_run_length_extent(segmentation, field, size)
    if not isinstance(segmentation, list) or not all(_is_polygon(p) for p in segmentation):
        why = "polygons [[x, y, x, y, x, y, ...]] or a run-length mask {size, counts} are wanted"
        raise FieldError(field, segmentation, why)
    return extent([point for p in segmentation for point in zip(p[0::2], p[1::2], strict=True)])


def _is_polygon(value: Any) -> bool:
    if not isinstance(value, list) or len(value) < 6 or len(value) % 2:
        return False
    return all(type(v) in (int, float) and abs(v) < math.inf for v in value)


def _compute_run_length_extent(segmentation: dict[str, Any], field: str, size: Size) -> FourNumbers:
    """The extent of a mask in runs down its columns, background first (pycocotools `maskApi.c`)."""
    if segmentation.get("size") != [size.height, size.width]:
        why = f"[{size.height}, {size.width}], that of the image, is wanted"
        raise FieldError(f"{field}.size", segmentation.get("size"), why)
    stated = segmentation.get("counts")
    try:
        counts = unpack_run_lengths(stated) if isinstance(stated, str) else stated
    except ValueError as error:
        raise FieldError(f"{field}.counts", stated, f"not a run-length text ({error}); write the mask anew") from None
    if not isinstance(counts, list) or not all(type(c) is int and c >= 0 for c in counts):
        raise FieldError(f"{field}.counts", stated, "whole numbers, none below 0, or their packed text are wanted")
    if sum(counts) != size.width * size.height:
        why = f"the runs add up to {sum(counts):,} pixels where the image has {size.width * size.height:,}"
        raise FieldError(f"{field}.counts", stated, f"{why}; write the mask anew")
    ends = list(itertools.accumulate(counts))
    runs = [(start, end) for start, end in zip(ends[0::2], ends[1::2], strict=False) if end > start]
    if not runs:
        raise FieldError(f"{field}.counts", stated, "a mask without a pixel; mend or remove the annotation")
    height = size.height
    first, last = runs[0][0] // height, (runs[-1][1] - 1) // height
    if any(start // height != (end - 1) // height for start, end in runs):  # over the end of a column
        return first, 0, last + 1, height
    return first, min(s % height for s, _ in runs), last + 1, max((e - 1) % height for _, e in runs) + 1


def unpack_run_lengths(text: str) -> list[int]:
    """Unpack the run-length text of pycocotools. Raises ValueError where the text is none.

    A character holds six bits, counted from "0"; low bits come first. From the third run on, the text holds the
    difference to the run two places before.
    """
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
