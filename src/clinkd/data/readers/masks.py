"""Read SA-Med2D-20M: a folder of images and of masks. Each connected part of a mask becomes a box.

    images/{modality_sub}--{dataset}--{case}--{slice}.png                      ct_00--CAD_PE--001--x_0125.png
    masks/{modality_sub}--{dataset}--{case}--{slice}--{class}_{instance}.png   ct_00--CAD_PE--001--x_0125--0000_002.png
    SAMed2D_v1_class_mapping_id.json    {"CAD_PE": {"pulmonary_embolism": "0000"}, ...}
    SAMed2D_v1.json                     {"images/...": ["masks/...", ...], ...}

Each dataset numbers its classes anew, so the release has a map of numbers and names for each dataset. One map for all
datasets, and maps from number to name, are read too. The map is one of `CLASS_FILES`, or `Source.names`. If the
folder has `SAMed2D_v1.json`, every mask it lists must be there. Other folders of images and masks work alike: a mask is
named after its image, "--", and its class, which may be the name itself (`scan7--left_lung.png`).

A row is one image with all its masks, numbered from 1 in the order of names. Masks without an image follow as rows of
their own. A mask is one class: its values are 0 and 1, or 0 and 255. Each part of it, connected by edges or corners,
becomes a box. Parts below `Source.specks` of the picture (0.0001 is 26 pixels of 512x512: what resampling or a slipped
brush leaves) are left out beside a larger part, and counted. An empty mask means that its class is not in the image:
exporters write one for every class. It is counted, and is an error only if the image has no other mask. Left and right
in names are the patient's, as in the sets that the release is made of.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps
from scipy import ndimage

from clinkd.data.images import locate, open_at_frame
from clinkd.data.readers.annotated import annotate, find_split_group, make_samples
from clinkd.data.readers.conversations import infer_modality_from_name
from clinkd.data.readers.mask_pairs import PICTURES
from clinkd.data.readers.names import Names, load_names
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

_CLASS_AND_INSTANCE = re.compile(r"([^_].*?)(?:_\d{3,})?")  # class and, if any, the number of the instance
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.int8)  # neighbours by edge or corner


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Read a folder. Raises BadInput where it has no images or no masks, or where its maps cannot be read."""
    folder = _MaskFolder(source, notes)
    make = partial(_convert_image, folder=folder, images=ImageResolver(source), notes=notes)
    return convert_rows(folder.rows(), make)


# ---- the folder -----------------------------------------------------------------------------------------------------


class _MaskFolder:
    """The files of a folder, by the stem of the image. Of the masks, the ends of their names (`0000_002.png`)."""

    def __init__(self, source: Source, notes: Counter[str]) -> None:
        if not source.path.is_dir():
            raise BadInput(f"{source.path}: not a folder; give the one that holds images/ and masks/")
        self.source = source
        self.images: dict[str, list[str]] = defaultdict(list)
        self.masks: dict[str, list[str]] = defaultdict(list)
        for name in _list_image_files(source.root / "images", notes):
            self.images[os.path.splitext(name)[0]].append(name)
        for name in _list_image_files(source.path / "masks", notes):
            stem, _, name_end = name.rpartition("--")
            self.masks[stem].append(sys.intern(name_end))  # a hundred thousand stems share a few ends
        self.classes = _load_class_names(source)
        all_name_ends = {name_end for name_ends in self.masks.values() for name_end in name_ends}
        if self.classes is None and any(_parse_class(name_end).isdecimal() for name_end in all_name_ends):
            why = f"classes are numbers and no map names them; put {CLASS_FILES[0]} beside images/"
            raise BadInput(f"{source.path}: {why}")
        self.listed = _load_mask_list(source.path / LIST_FILE)
        if missing := len(self.listed.keys() - self.images.keys()):
            notes[f"images that {LIST_FILE} lists and the folder has not"] += missing

    def rows(self) -> Iterator[SourceRow | RowResult]:
        path = self.source.path
        for number, stem in enumerate(sorted(self.images), start=1):
            value = {"id": stem, "image": f"images/{min(self.images[stem])}", "masks": self._list_masks(stem)}
            yield SourceRow(path, number, value, value)
        orphans = sorted(self.masks.keys() - self.images.keys())
        for number, stem in enumerate(orphans, start=len(self.images) + 1):
            masks = self._list_masks(stem)
            if stem:
                why = f"no image of this name for {len(masks)} masks ({masks[0]}); bring the image, or remove them"
                fault = FieldError("image", stem, why)
            else:
                why = f"{len(masks)} masks not named after image and class; IMAGE--CLASS_INSTANCE.png is wanted"
                fault = FieldError("mask", masks[0], why)
            yield make_error_result(path, number, fault, {"id": stem, "masks": masks}, {"id": stem or "?"})

    def _list_masks(self, stem: str) -> list[str]:
        prefix = f"masks/{stem}--" if stem else "masks/"
        return [prefix + name_end for name_end in sorted(self.masks.get(stem, ()))]


def _list_image_files(folder: Path, notes: Counter[str]) -> list[str]:
    """Names of the image files in a folder. Raises BadInput where there are none."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; SA-Med2D has images/ and masks/ side by side")
    names = []
    with os.scandir(folder) as directory:
        for entry in directory:
            if entry.name.lower().endswith(PICTURES) and entry.is_file():
                names.append(entry.name)
            else:
                notes[f"entries of {folder.name}/ that are no image files"] += 1
    if not names:
        raise BadInput(f"{folder}: no image files there ({', '.join(PICTURES)})")
    return names


def _load_mask_list(file: Path) -> dict[str, frozenset[str]]:
    """The file names of the masks that the release lists, by the stem of their image; empty without the list."""
    if not file.is_file():
        return {}
    value = load_json_file(file)
    if not isinstance(value, dict) or not all(map(_is_list_of_texts, value.values())):
        raise BadInput(f"{file}: not an object of image -> list of masks; bring back the release's, or remove it")
    return {Path(image).stem: frozenset(m.rpartition("/")[2] for m in masks) for image, masks in value.items()}


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(member, str) for member in value)


# ---- classes --------------------------------------------------------------------------------------------------------


def _load_class_names(source: Source) -> Names | None:
    """The map of the user, else that of the folder. Raises BadInput where the folder has two."""
    if source.class_names is not None:
        return source.class_names
    class_files = [name for name in CLASS_FILES if (source.path / name).is_file()]
    if len(class_files) > 1:
        raise BadInput(f"{source.path}: has {' and '.join(CLASS_FILES)}; name the one to use with --names")
    names = load_names(class_files[0], source.path) if class_files else None
    if names is not None and names.counted:
        raise BadInput(f"{names.place}: not a map of classes; bring back the release's, or name another with --names")
    return names


def _name_class(class_text: str, names: Names | None, dataset: str, mask: str) -> str:
    """The name of the class in a mask's file name. Raises FieldError where the map does not have it."""
    if names is not None and names.only:
        return names.only
    if any(c.isalpha() for c in class_text):
        return require_words(class_text.replace("_", " "), "mask")
    if not class_text.isdecimal() or names is None:
        raise FieldError("mask", mask, "neither the number nor the name of a class behind the last --; rename it")
    return names.find(class_text, "mask", mask, dataset)


def _parse_class(name_end: str) -> str:
    """`0000_002.png` -> `0000`, `left_lung.png` -> `left_lung`."""
    match = _CLASS_AND_INSTANCE.fullmatch(name_end.rpartition(".")[0])
    return match.group(1) if match else ""


# ---- an image -------------------------------------------------------------------------------------------------------


def _convert_image(row: SourceRow, folder: _MaskFolder, images: ImageResolver, notes: Counter[str]) -> list[Sample]:
    source, stem = folder.source, row.value["id"]
    require_words(stem, "image")  # refuses a broken encoding and the mark of a box
    if len(folder.images[stem]) > 1:
        raise FieldError("image", folder.images[stem], "several images of one name, so whose are the masks? keep one")
    image = images.ref(row.value["image"])
    parts = stem.split("--")
    is_sa_med2d_name = len(parts) >= 4  # modality, dataset, case (which may hold "--" itself), slice
    dataset = parts[1] if is_sa_med2d_name else ""
    image_notes: Counter[str] = Counter()
    modality = source.modality or infer_modality_from_name(parts[0] if is_sa_med2d_name else "", parts[0])
    group = "--".join(parts[1:-1]) if is_sa_med2d_name and not source.group else None
    group = group or find_split_group(source, image.path, images.header(row.value["image"]))
    objects = _find_objects(row.value, folder, dataset, image, image_notes)
    record = annotate(source, image, objects, modality=modality, group=group)
    record = replace(record, id=stem, origin=dataset or record.origin)
    samples = make_samples(record, source, image_notes)
    notes.update(image_notes)
    return samples


def _find_objects(
    value: dict[str, Any], folder: _MaskFolder, dataset: str, image: ImageRef, image_notes: Counter[str]
) -> tuple[tuple[str, Box], ...]:
    stem, masks = value["id"], value["masks"]
    missing = sorted(folder.listed.get(stem, frozenset()) - {m.removeprefix("masks/") for m in masks})
    if missing:
        why = f"{len(missing)} masks that {LIST_FILE} lists are not in masks/; unpack them all"
        raise FieldError("masks", missing[0], why)
    if not masks:
        raise FieldError("masks", stem, "no mask of this image in masks/; bring it, or remove the image")
    objects = []
    for mask in masks:
        name = _name_class(_parse_class(mask.removeprefix(f"masks/{stem}--")), folder.classes, dataset, mask)
        regions = find_regions(_load_mask(folder.source.path, mask, image), folder.source.min_area)
        objects += [(name, box) for box in regions.boxes]
        if not regions.boxes:
            image_notes["masks without a pixel, whose class is not there"] += 1
        note_regions(regions, folder.source.min_area, image_notes)
    if not objects:
        raise FieldError("masks", masks[0], "no mask of this image has a pixel; mend them, or remove the image")
    return tuple(objects)


# ---- a mask ---------------------------------------------------------------------------------------------------------


class Regions(NamedTuple):
    """Boxes of the connected parts, in the order of their first pixels, and the number of specks left out."""

    boxes: tuple[Box, ...]
    specks: int


def note_regions(regions: Regions, speck_share: float, notes: Counter[str]) -> None:
    """Count what a reader of masks should be told of: specks left out, and a box of the whole image."""
    if regions.specks:
        notes[f"specks below {speck_share:g} of the picture, beside a larger part"] += regions.specks
    if Box(0, 0, 1, 1) in regions.boxes:
        notes["masks of which a part reaches all four borders: is the background marked, or all of the image?"] += 1


def find_regions(mask: NDArray[np.bool_], speck_share: float) -> Regions:
    """The parts of `mask` [height, width], connected by edges or corners. The largest part always stays.

    Other parts below `speck_share` of the picture are left out. A box is in fractions; it begins at the first pixel of
    its part and ends behind the last one.
    """
    height, width = mask.shape
    labels, count = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
    if not count:
        return Regions((), 0)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    kept = sizes >= speck_share * mask.size
    kept[int(np.argmax(sizes))] = True
    spans = [span for span, is_kept in zip(ndimage.find_objects(labels), kept, strict=True) if is_kept]
    boxes = (Box(x.start / width, y.start / height, x.stop / width, y.stop / height) for y, x in spans)
    return Regions(tuple(boxes), count - len(spans))


def _load_mask(root: Path, mask: str, image: ImageRef) -> NDArray[np.bool_]:
    """The pixels that a mask sets, [height, width]. Raises FieldError where it is no mask of the image."""
    values = read_mask_values(root, mask, image)
    inside = np.asarray(values != 0, dtype=np.bool_)
    if (values[inside] != 1).any() and (values[inside] != 255).any():
        why = f"the values {list_values(values)}; one mask is one class, 0 and 1 or 0 and 255, stored without loss"
        raise FieldError("mask", mask, f"{why}: write one a class")
    return inside


def list_values(values: NDArray[Any]) -> str:
    """The values of a mask for a message: "0, 1, 2"."""
    distinct = np.unique(values)
    shown = ", ".join(f"{v:g}" for v in distinct[:6])
    return shown + (f", ... ({len(distinct)} in all)" if len(distinct) > 6 else "")


def read_mask_values(root: Path, mask: str, image: ImageRef) -> NDArray[Any]:
    """The values of a mask, [height, width]: of a palette its numbers, not its colours.

    Raises FieldError where it cannot be opened, has colours, or another size than the image.
    """
    try:
        path, frame = locate(root, mask, mask)
        with open_at_frame(path, mask, frame) as (file, _, _):
            upright = ImageOps.exif_transpose(file)
            values = np.asarray(upright.convert("L") if file.format == "JPEG" else upright)
    except BadInput as error:
        raise FieldError("mask", mask, str(error).removeprefix(f"{mask}: ")) from None
    height, width = values.shape[:2]
    if image.width is not None and (width, height) != (image.width, image.height):
        why = f"{width}x{height} pixels where the image has {image.width}x{image.height}; bring its own mask"
        raise FieldError("mask", mask, why)
    return _reduce_to_grey(values, mask)


def _reduce_to_grey(values: NDArray[Any], mask: str) -> NDArray[Any]:
    """The grey values of an image. Raises FieldError where it has colours or transparent pixels."""
    if values.ndim == 2:
        return values
    has_alpha = values.shape[-1] in (2, 4)
    if has_alpha and (values[..., -1] != 255).any():
        raise FieldError("mask", mask, "parts of it are transparent; store the mask as grey, 0 and 255")
    colours = values[..., :-1] if has_alpha else values
    if (colours != colours[..., :1]).any():
        raise FieldError("mask", mask, "it has colours, so several classes; write one mask a class, 0 and 255")
    return np.asarray(colours[..., 0])
