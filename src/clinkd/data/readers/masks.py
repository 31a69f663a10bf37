"""Reader of SA-Med2D-20M: a folder of images and of masks, whose parts that hang together become boxes.

    images/{modality_sub}--{dataset}--{case}--{slice}.png                      ct_00--CAD_PE--001--x_0125.png
    masks/{modality_sub}--{dataset}--{case}--{slice}--{class}_{instance}.png   ct_00--CAD_PE--001--x_0125--0000_002.png
    SAMed2D_v1_class_mapping_id.json    {"CAD_PE": {"pulmonary_embolism": "0000"}, ...}
    SAMed2D_v1.json                     {"images/...": ["masks/...", ...], ...}

The numbers of classes count anew in each dataset, so the release maps them dataset by dataset; a flat map for all, and
maps from number to name, are read too. The map is one of `CLASS_FILES`, or `Source.classes`. Where `SAMed2D_v1.json`
is there, no mask it lists may be missing. Other folders of images and masks work alike: a mask is named after its
image, "--", and its class, which may be the name itself (`scan7--left_lung.png`).

A row is an image with all its masks, numbered in the order of names from 1; masks without an image follow as rows of
their own. A mask is one class: 0 and 1, or 0 and 255. Its parts by 8-connectivity are the boxes; parts below
`Source.specks` of the picture are left out beside a larger one, and counted. An empty mask says that its class is not
there, which exporters of all classes write for every slice: it is counted, and a fault only where an image has nothing
else. Left and right in names are the patient's, as in the sets the release is made of.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps
from scipy import ndimage

from clinkd.data.images import locate, open_at_frame
from clinkd.data.readers.annotated import Annotated, find_split_group, make_samples
from clinkd.data.readers.conversations import infer_modality_from_name
from clinkd.data.readers.rows import (
    FieldError,
    RowResult,
    SourceRow,
    convert_rows,
    load_json_file,
    make_error_result,
    require_words,
)
from clinkd.data.readers.source import ImageResolver, Source
from clinkd.records import BadInput, Box, ImageRef, Sample

CLASS_FILES = ("SAMed2D_v1_class_mapping_id.json", "class_map.json")
LIST_FILE = "SAMed2D_v1.json"
SPECK_SHARE = 0.0001  # of the picture's area: 26 pixels of 512x512; what resampling or a slipped brush leaves
SUFFIXES = (".png", ".bmp", ".gif", ".jpeg", ".jpg", ".tif", ".tiff", ".webp")

_CLASS = re.compile(r"([^_].*?)(?:_\d{3,})?")  # class, and the number of the instance
_EVERYWHERE = np.ones((3, 3), dtype=np.int8)  # neighbours by edge or corner


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Images of a folder. Raises BadInput where it has no images or no masks, or its maps cannot be read."""
    folder = _scan_folder(source, notes)
    make = partial(_convert_image, folder=folder, source=source, pictures=ImageResolver(source), notes=notes)
    return convert_rows(folder.rows(), make)


# ---- the folder -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _MaskFolder:
    """The files of a folder: stem of an image -> its files, and -> the ends of its masks' names (`0000_002.png`)."""

    path: Path
    images: dict[str, list[str]]
    masks: dict[str, list[str]]
    listed: dict[str, frozenset[str]]  # by `LIST_FILE`; empty where there is none
    classes: Classes
    speck_share: float

    def rows(self) -> Iterator[SourceRow | RowResult]:
        for number, stem in enumerate(sorted(self.images), start=1):
            image, name_ends = f"images/{min(self.images[stem])}", sorted(self.masks.get(stem, ()))
            value = {"id": stem, "image": image, "masks": [_make_mask_path(stem, name_end) for name_end in name_ends]}
            yield SourceRow(self.path, number, value, value)
        orphans = sorted(self.masks.keys() - self.images.keys())
        for number, stem in enumerate(orphans, start=len(self.images) + 1):
            masks = [_make_mask_path(stem, name_end) for name_end in sorted(self.masks[stem])]
            if stem:
                why = f"no image of this name for {len(masks)} masks ({masks[0]}); bring the image, or remove them"
                fault = FieldError("image", stem, why)
            else:
                why = f"{len(masks)} masks not named after image and class; IMAGE--CLASS_INSTANCE.png is wanted"
                fault = FieldError("mask", masks[0], why)
            yield make_error_result(self.path, number, fault, {"id": stem, "masks": masks}, {"id": stem or "?"})


def _make_mask_path(stem: str, name_end: str) -> str:
    return f"masks/{stem}--{name_end}" if stem else f"masks/{name_end}"


def _scan_folder(source: Source, notes: Counter[str]) -> _MaskFolder:
    if not source.path.is_dir():
        raise BadInput(f"{source.path}: not a folder; give the one that holds images/ and masks/")
    images: dict[str, list[str]] = defaultdict(list)
    masks: dict[str, list[str]] = defaultdict(list)
    for name in _list_image_files(source.root / "images", notes):
        images[os.path.splitext(name)[0]].append(name)
    for name in _list_image_files(source.path / "masks", notes):
        stem, _, name_end = name.rpartition("--")
        masks[stem].append(sys.intern(name_end))  # a few ends stand behind a hundred thousand stems
    classes = _load_classes(source)
    if not classes.by_dataset and any(
        _parse_class(name_end).isdecimal() for name_end in {e for name_ends in masks.values() for e in name_ends}
    ):
        raise BadInput(f"{source.path}: classes are numbers and no map names them; put {CLASS_FILES[0]} beside images/")
    listed = _load_mask_list(source.path / LIST_FILE)
    if missing := len(listed.keys() - images.keys()):
        notes[f"images that {LIST_FILE} lists and the folder has not"] += missing
    return _MaskFolder(source.path, images, masks, listed, classes, source.specks)


def _list_image_files(folder: Path, notes: Counter[str]) -> list[str]:
    """Names of the image files in a folder. Raises BadInput where there are none."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; SA-Med2D has images/ and masks/ side by side")
    names = []
    with os.scandir(folder) as directory:
        for entry in directory:
            if entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                names.append(entry.name)
            else:
                notes[f"entries of {folder.name}/ that are no image files"] += 1
    if not names:
        raise BadInput(f"{folder}: no image files there ({', '.join(SUFFIXES)})")
    return names


def _load_mask_list(file: Path) -> dict[str, frozenset[str]]:
    """Stem of an image -> file names of its masks, as the release lists them."""
    if not file.is_file():
        return {}
    value = load_json_file(file)
    good = isinstance(value, dict) and all(
        isinstance(v, list) and all(isinstance(m, str) for m in v) for v in value.values()
    )
    if not good:
        raise BadInput(f"{file}: not an object of image -> list of masks; bring back the release's, or remove it")
    return {Path(image).stem: frozenset(m.rpartition("/")[2] for m in masks) for image, masks in value.items()}


# ---- classes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Classes:
    """Names of classes. `by_dataset`: dataset ("" for all) -> number -> names (one is expected)."""

    file: Path | None = None
    by_dataset: Mapping[str, Mapping[int, tuple[str, ...]]] = field(default_factory=dict)

    def name(self, class_text: str, dataset: str, mask: str) -> str:
        """The name of the class in a mask's file name. Raises FieldError where the map does not tell."""
        if any(c.isalpha() for c in class_text):
            return require_words(class_text.replace("_", " "), "mask")
        if not class_text.isdecimal():
            raise FieldError("mask", mask, "neither the number nor the name of a class behind the last --; rename it")
        numbers = self.by_dataset.get(dataset, self.by_dataset.get(""))
        if numbers is None:
            raise FieldError("mask", mask, f"dataset {dataset} is not in {self.file}; add it with its classes")
        names = numbers.get(int(class_text), ())
        if len(names) != 1:
            why = f"has several names ({', '.join(names)})" if names else "is not there"
            place = f"{self.file}" + (f", dataset {dataset}" if dataset in self.by_dataset else "")
            raise FieldError("mask", mask, f"class {class_text} {why} in {place}; correct the map")
        return require_words(names[0].replace("_", " "), f"class {class_text}")


def _load_classes(source: Source) -> Classes:
    if source.classes is not None:
        file = source.classes if source.classes.is_file() else source.path / source.classes
    else:
        class_files = [source.path / name for name in CLASS_FILES if (source.path / name).is_file()]
        if not class_files:
            return Classes()
        if len(class_files) > 1:
            raise BadInput(f"{source.path}: has {' and '.join(CLASS_FILES)}; name the one to use with --classes")
        file = class_files[0]
    value = load_json_file(file)
    if not isinstance(value, dict) or not value:
        raise BadInput(
            f'{file}: not a map of classes; {{"liver": "0003"}} or {{"DATASET": {{"liver": "0003"}}}} is wanted'
        )
    if all(isinstance(v, dict) for v in value.values()):
        return Classes(
            file, {dataset: _index_class_numbers(part, f"{file}, {dataset}") for dataset, part in value.items()}
        )
    return Classes(file, {"": _index_class_numbers(value, str(file))})


def _index_class_numbers(part: Mapping[str, Any], place: str) -> dict[int, tuple[str, ...]]:
    """Number -> names, from a map of either direction."""
    numbers: dict[int, tuple[str, ...]] = {}
    if all(_is_class_number(v) for v in part.values()):
        pairs = [(int(number), name) for name, number in part.items()]
    elif all(_is_class_number(k) for k in part):
        pairs = [(int(number), name) for number, name in part.items()]
    else:
        odd = next((k, v) for k, v in part.items() if not _is_class_number(v))
        raise BadInput(f"{place}: {odd[0]!r}: {odd[1]!r} is neither name -> number nor number -> name, as others are")
    for number, name in pairs:
        if not isinstance(name, str) or not name.strip() or name.strip().isdecimal():
            raise BadInput(f"{place}: class {number} has the name {name!r}; a name is wanted")
        numbers[number] = (*numbers.get(number, ()), name)
    return numbers


def _is_class_number(value: Any) -> bool:
    return (type(value) is int and value >= 0) or (isinstance(value, str) and value.isascii() and value.isdecimal())


def _parse_class(name_end: str) -> str:
    """`0000_002.png` -> `0000`, `left_lung.png` -> `left_lung`."""
    match = _CLASS.fullmatch(name_end.rpartition(".")[0])
    return match.group(1) if match else ""


# ---- an image -------------------------------------------------------------------------------------------------------


def _convert_image(
    row: SourceRow, folder: _MaskFolder, source: Source, pictures: ImageResolver, notes: Counter[str]
) -> list[Sample]:
    stem = row.value["id"]
    require_words(stem, "image")  # a torn encoding, or the mark of a box
    if len(folder.images[stem]) > 1:
        raise FieldError("image", folder.images[stem], "several images of one name, so whose are the masks? keep one")
    image = pictures.ref(row.value["image"])
    parts = stem.split("--")
    is_sa_med2d_name = len(parts) >= 4  # modality, dataset, case (which may hold "--" itself), slice
    dataset = parts[1] if is_sa_med2d_name else ""
    image_notes: Counter[str] = Counter()
    record = Annotated(
        id=stem,
        image=image,
        modality=source.modality or infer_modality_from_name(parts[0] if is_sa_med2d_name else "", parts[0]),
        group=find_split_group(source, image.path) if source.group or not is_sa_med2d_name else "--".join(parts[1:-1]),
        objects=_find_objects(row.value, folder, dataset, image, image_notes),
        origin=dataset or source.path.resolve().name,
        side=source.side or "patient",
        split=source.split,
    )
    samples = make_samples(record, source, image_notes)
    notes.update(image_notes)
    return samples


def _find_objects(
    value: dict[str, Any], folder: _MaskFolder, dataset: str, image: ImageRef, image_notes: Counter[str]
) -> tuple[tuple[str, Box], ...]:
    stem, masks = value["id"], value["masks"]
    missing = sorted(folder.listed.get(stem, frozenset()) - {m.removeprefix("masks/") for m in masks})
    if missing:
        raise FieldError(
            "masks", missing[0], f"{len(missing)} masks that {LIST_FILE} lists are not in masks/; unpack them all"
        )
    if not masks:
        raise FieldError("masks", stem, "no mask of this image in masks/; bring it, or remove the image")
    objects = []
    for mask in masks:
        name = folder.classes.name(_parse_class(mask.removeprefix(f"masks/{stem}--")), dataset, mask)
        mask_regions = find_regions(_load_mask(folder.path, mask, image), folder.speck_share)
        objects += [(name, box) for box in mask_regions.boxes]
        if not mask_regions.boxes:
            image_notes["masks without a pixel, whose class is not there"] += 1
        if mask_regions.specks:
            image_notes[f"specks below {folder.speck_share:g} of the picture, beside a larger part"] += (
                mask_regions.specks
            )
    if not objects:
        raise FieldError("masks", masks[0], "no mask of this image has a pixel; mend them, or remove the image")
    return tuple(objects)


# ---- a mask ---------------------------------------------------------------------------------------------------------


class Regions(NamedTuple):
    """Boxes of the parts that hang together, in the order of their first pixels, and how many specks were left out."""

    boxes: tuple[Box, ...]
    specks: int


def find_regions(mask: NDArray[np.bool_], speck_share: float = SPECK_SHARE) -> Regions:
    """The 8-connected parts of `mask` [height, width], without those below `speck_share` of it; the largest stays.

    A box runs from the first to behind the last pixel of its part, so an area of whole pixels, in fractions.
    """
    height, width = mask.shape
    labels, count = ndimage.label(mask, structure=_EVERYWHERE)
    if not count:
        return Regions((), 0)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    kept = sizes >= speck_share * mask.size
    kept[int(np.argmax(sizes))] = True
    spans = [span for span, is_kept in zip(ndimage.find_objects(labels), kept, strict=True) if is_kept]
    boxes = (Box(x.start / width, y.start / height, x.stop / width, y.stop / height) for y, x in spans)
    return Regions(tuple(boxes), count - len(spans))


def _load_mask(root: Path, mask: str, image: ImageRef) -> NDArray[np.bool_]:
    """Where a mask is set, [height, width]. Raises FieldError where it is no mask of the image."""
    try:
        path, frame = locate(root, mask, mask)
        with open_at_frame(path, mask, frame) as (file, _, _):
            values = np.asarray(ImageOps.exif_transpose(file))  # of a palette its numbers, not its colours
    except BadInput as error:
        raise FieldError("mask", mask, str(error).removeprefix(f"{mask}: ")) from None
    height, width = values.shape[:2]
    if image.width is not None and (width, height) != (image.width, image.height):
        why = f"{width}x{height} pixels where the image has {image.width}x{image.height}; bring its own mask"
        raise FieldError("mask", mask, why)
    values = _reduce_to_grey(values, mask)
    inside = np.asarray(values != 0, dtype=np.bool_)
    if (values[inside] != 1).any() and (values[inside] != 255).any():
        distinct = np.unique(values)
        shown = ", ".join(f"{v:g}" for v in distinct[:6]) + (
            f", ... ({len(distinct)} in all)" if len(distinct) > 6 else ""
        )
        why = f"the values {shown}; one mask is one class, 0 and 1 or 0 and 255, stored without loss: write one a class"
        raise FieldError("mask", mask, why)
    return inside


def _reduce_to_grey(values: NDArray[Any], mask: str) -> NDArray[Any]:
    """Grey of an image whose colours are all alike and all opaque."""
    if values.ndim == 2:
        return values
    colours = values[..., : values.shape[-1] - 1] if values.shape[-1] in (2, 4) else values
    if values.shape[-1] in (2, 4) and (values[..., -1] != 255).any():
        raise FieldError("mask", mask, "parts of it are transparent; store the mask as grey, 0 and 255")
    if (colours != colours[..., :1]).any():
        raise FieldError("mask", mask, "it has colours, so several classes; write one mask a class, 0 and 255")
    return np.asarray(colours[..., 0])
