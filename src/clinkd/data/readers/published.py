"""Public data sets whose sheets are read as they are published: what their columns, codes and file names mean.

A sheet is known by the names of its columns alone. Names of findings stay as their publisher spells them.

    NIH ChestX-ray14   https://nihcc.app.box.com/v/ChestXray-NIHCC
    RSNA Pneumonia     https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data
    VinDr-CXR          https://physionet.org/content/vindr-cxr/ (SpineXR: vindr-spinexr, Mammo: vindr-mammo)
    DeepLesion         https://nihcc.app.box.com/v/DeepLesion
    ISIC, HAM10000     https://challenge.isic-archive.com/data/
    Kvasir-VQA         https://datasets.simula.no/kvasir-vqa/
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from clinkd.data.images import is_named_as_image, stays_inside
from clinkd.data.readers.box_layout import BoxForm
from clinkd.data.readers.columns import EXTENT, fold_head
from clinkd.data.readers.record_files import walk_files
from clinkd.data.readers.rows import FieldError
from clinkd.data.readers.source import Source
from clinkd.records import Modality, Split

NO_FINDING = ("no finding", "no findings", "no lung opacity")  # names of an image without a box, in small letters
_XMIN = {"x1": "xmin", "y1": "ymin", "x2": "xmax", "y2": "ymax"}
_SKIN = {
    "mel": "melanoma", "nv": "melanocytic nevus", "bcc": "basal cell carcinoma", "ak": "actinic keratosis",
    "akiec": "actinic keratosis", "bkl": "benign keratosis", "df": "dermatofibroma", "vasc": "vascular lesion",
    "scc": "squamous cell carcinoma", "unk": "",
}  # fmt: skip
_LESIONS = {
    "1": "bone lesion", "2": "abdomen lesion", "3": "mediastinum lesion", "4": "liver lesion", "5": "lung lesion",
    "6": "kidney lesion", "7": "soft tissue lesion", "8": "pelvis lesion", "-1": "lesion",
}  # fmt: skip
_NIH_LISTS: dict[str, Split] = {"train_val_list.txt": "train", "test_list.txt": "test"}


@dataclass(frozen=True)
class PublishedSheet:
    """How the sheet of one data set is read."""

    title: str
    columns: Mapping[str, str]  # our name -> the publisher's; all must be there for the sheet to be this one
    modality: Modality | None = None
    words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # our name -> code -> word
    one_hot: Mapping[str, str] = field(default_factory=dict)  # column of 0 and 1, in small letters -> its label
    between: str = ""  # what stands between the names in a cell; "[" for a list of Python
    patient: str = ""  # finds the patient in the name of the image: 13118 in 00013118_008.png
    lists: Mapping[str, Split] = field(default_factory=dict)  # files beside the sheet, a name of an image a line
    box_form: BoxForm | None = None  # of a single column
    telling: Sequence[str] = ()  # more columns that must be there


PUBLISHED = (
    PublishedSheet(
        "NIH ChestX-ray14's list of boxes",
        {"image": "Image Index", "name": "Finding Label", "x": "Bbox [x", "y": "y", "width": "w", "height": "h]"},
        Modality.XRAY, {"name": {"Infiltrate": "Infiltration"}}, patient=r"0*(\d+)_\d+", lists=_NIH_LISTS,
    ),
    PublishedSheet(
        "NIH ChestX-ray14's list of labels",
        {"image": "Image Index", "label": "Finding Labels", "patient": "Patient ID"},
        Modality.XRAY, between="|", lists=_NIH_LISTS,
    ),
    PublishedSheet(
        "RSNA Pneumonia's boxes",
        {"image": "patientId", "patient": "patientId", "name": "Target"} | {column: column for column in EXTENT},
        Modality.XRAY, {"name": {"0": "No lung opacity", "1": "Lung opacity"}},
    ),
    PublishedSheet(
        "RSNA Pneumonia's classes", {"image": "patientId", "patient": "patientId", "label": "class"}, Modality.XRAY,
    ),
    PublishedSheet(
        "VinDr-SpineXR's annotations",
        {"image": "image_id", "patient": "study_id", "name": "lesion_type", "reader": "rad_id", **_XMIN},
        Modality.XRAY,
    ),
    PublishedSheet(
        "VinDr-Mammo's annotations of findings",
        {"image": "image_id", "patient": "study_id", "name": "finding_categories", "split": "split", **_XMIN},
        Modality.OTHER, between="[",
    ),
    PublishedSheet(
        "VinDr-CXR's annotations", {"image": "image_id", "name": "class_name", "reader": "rad_id", **_XMIN},
        Modality.XRAY,
    ),
    PublishedSheet("annotations laid out as VinDr-CXR's", {"image": "image_id", "name": "class_name", **_XMIN}),
    PublishedSheet(
        "DeepLesion's DL_info", {"image": "File_name", "patient": "Patient_index", "box": "Bounding_boxes",
        "name": "Coarse_lesion_type", "split": "Train_Val_Test"},
        Modality.CT, {"name": _LESIONS, "split": {"1": "train", "2": "validation", "3": "test"}}, box_form="xyxy",
    ),
    PublishedSheet(
        "ISIC's ground truth", {"image": "image", "label": "MEL"}, Modality.DERMOSCOPY, one_hot=_SKIN,
        telling=["NV", "BCC", "BKL", "DF", "VASC"],
    ),
    PublishedSheet(
        "HAM10000's metadata", {"image": "image_id", "label": "dx", "patient": "lesion_id"}, Modality.DERMOSCOPY,
        {"label": _SKIN},
    ),
    PublishedSheet(
        "ISIC 2020's ground truth", {"image": "image_name", "label": "diagnosis", "patient": "patient_id"},
        Modality.DERMOSCOPY, {"label": {"unknown": ""}}, telling=["benign_malignant"],
    ),
    PublishedSheet("the ISIC Archive's metadata", {"image": "isic_id", "label": "diagnosis"}, Modality.DERMOSCOPY),
    PublishedSheet("the ISIC Archive's metadata", {"image": "isic_id", "label": "diagnosis_3"}, Modality.DERMOSCOPY),
    PublishedSheet(
        "Kvasir-VQA's metadata", {"image": "img_id", "question": "question", "answer": "answer"}, Modality.ENDOSCOPY,
        telling=["source"],
    ),
    PublishedSheet(
        "Kvasir-VQA-x1's questions", {"image": "img_id", "question": "question", "answer": "answer"},
        Modality.ENDOSCOPY, telling=["complexity"],
    ),
)  # fmt: skip


def find_published(head: Sequence[str]) -> PublishedSheet | None:
    """The published sheet that has these columns, whatever their case, blanks and "_"."""
    folded = {fold_head(column) for column in head}
    wanted = ((sheet, {fold_head(c) for c in (*sheet.columns.values(), *sheet.telling)}) for sheet in PUBLISHED)
    return next((sheet for sheet, columns in wanted if columns <= folded), None)


class PublishedCells:
    """Puts the cells of a published sheet's lines into our words."""

    def __init__(self, sheet: PublishedSheet, file: Path, source: Source, notes: Counter[str]) -> None:
        self.sheet, self.file, self.source, self.notes = sheet, file, source, notes

    def translate(self, cells: dict[str, str], line: Mapping[str, str]) -> list[dict[str, str]]:
        """The cells of a line by our names of columns, once for each name of its box.

        Raises FieldError for a code that the publisher does not have, and for a name of several images.
        """
        own = self.source.columns  # what the user maps is no code of the publisher's
        cells = {ours: text if ours in own else self._find_word(ours, text) for ours, text in cells.items()}
        if self.sheet.one_hot and "label" not in own:
            cells["label"] = ", ".join(filter(None, self._list_one_hot(line)))
        if self.sheet.between == "|":
            cells["label"] = cells["label"].replace("|", ", ")
        cells["split"] = cells["split"] or self._listed_splits.get(cells["image"], "")
        if self.sheet.patient and "patient" not in own and (found := re.match(self.sheet.patient, cells["image"])):
            cells["patient"] = found[1]
        cells["image"] = self._find_image(cells["image"])
        if self.sheet.between == "[" and (names := re.findall(r"['\"]([^'\"]+)['\"]", cells["name"])):
            return [{**cells, "name": name} for name in names]
        return [cells]

    def _find_word(self, ours: str, text: str) -> str:
        words = self.sheet.words.get(ours, {})
        word = words.get(text.removesuffix(".0"), words.get(text.casefold(), text))
        if text and words and re.fullmatch(r"-?\d+(\.\d+)?", word):
            raise FieldError(ours, text, f"one of the codes {', '.join(words)} is wanted")
        return word

    def _list_one_hot(self, line: Mapping[str, str]) -> Iterator[str]:
        for head, cell in line.items():
            if head.casefold() in self.sheet.one_hot:
                if cell not in ("0", "0.0", "1", "1.0"):
                    raise FieldError(head, cell, "0 or 1 is wanted")
                yield self.sheet.one_hot[head.casefold()] if float(cell) else ""

    def _find_image(self, name: str) -> str:
        """The path of an image, of which the sheet has the name alone: below the root exactly one file has it."""
        if not name or (stays_inside(name) and os.path.isfile(self.source.root / name)):
            return name
        joined = "/".join(name.rsplit("_", 1))  # DeepLesion: folder_slice.png
        path = self._paths.get(name, self._paths.get(joined))
        if path == "":
            way_out = "give the folder of the right ones with --images"
            raise FieldError("image", name, f"several files below {self.source.root} have this name; {way_out}")
        if path is None:
            return name
        self.notes["lines whose image was found by its name alone, in the folders below"] += 1
        return self.source.prefix + path

    @cached_property
    def _paths(self) -> dict[str, str]:
        """Paths of image files below the root by name, by stem and by folder/name; "" where several have it."""
        paths: dict[str, str] = {}
        for path in map(Path, filter(is_named_as_image, walk_files(self.source.root))):
            for key in {path.name, path.stem, f"{path.parent.name}/{path.name}"}:
                paths[key] = "" if key in paths else path.as_posix()
        return paths

    @cached_property
    def _listed_splits(self) -> dict[str, Split]:
        files = ((self.file.with_name(name), split) for name, split in self.sheet.lists.items())
        return {name: split for file, split in files if file.is_file() for name in file.read_text().split()}
