"""Name what a file of no known form looks like, and the way to a form that is read.

A file is known by its first bytes, its keys or its suffix. Nothing is unpacked or opened by a library: a pickle may run
any program. A new row of `WAYS` is all that a new name needs, beside the mark in one of the tables below.
"""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_HEAD = 1 << 16
_TO_MASKS = "write its structures as masks (a PNG or NIfTI beside each image) and give that folder"
_TO_SHEET = "write a sheet with a line a box (image, name, x1, y1, x2, y2), and give that"
_TO_COCO = "export it as COCO there, and give that"
_TO_ROWS = "save its rows as CSV or JSON lines and its pictures as files, and give the rows"
_TO_PNG = "save its pictures as PNG, and write a sheet about them"
_UNPACK = "unpack it, and give the folder"
WAYS = {
    "XML": _TO_SHEET,
    "YOLO labels": f"give the folder that holds data.yaml, images and labels; or {_TO_SHEET}",
    "LabelMe JSON": "convert it to COCO (labelme2coco), and give that",
    "VGG Image Annotator JSON": _TO_COCO,
    "Datumaro JSON": _TO_COCO,
    "CreateML JSON": f"its boxes are centres and sizes: {_TO_SHEET}",
    "QuPath GeoJSON": _TO_SHEET,
    "PadChest-GR JSON": "write a sheet of its findings (image, name, box, sentence), given with --boxes normalised",
    "COCO results": "they are answers of a model: `clinkd evaluate` scores them; as data, give the annotation file",
    "dataset.json of nnU-Net or MSD": "give its folder; where it is not read, " + _TO_MASKS,
    "old Excel (.xls)": "save it as XLSX or CSV; if it is an XLSX with a password, save it without one",
    "old Word (.doc)": "copy its table into a sheet, saved as XLSX or CSV",
    "Word document": "copy its table into a sheet, saved as XLSX or CSV",
    "PDF": "copy its table into a sheet, saved as XLSX or CSV",
    "HTML": "open it in a spreadsheet program, and save its table as XLSX or CSV",
    "OpenDocument sheet": "save it as XLSX or CSV",
    "binary Excel (.xlsb)": "save it as XLSX or CSV",
    "XLSX of another suffix": "rename it to end in .xlsx",
    "Arrow file": _TO_ROWS,
    "SQLite database": _TO_ROWS,
    "TFRecord": _TO_ROWS,
    "pickle": "it is not opened, as it may run any program. If you trust who made it: " + _TO_ROWS,
    "PyTorch file": "it is not opened, as it may run any program. If you trust who made it: " + _TO_ROWS,
    "NumPy array": _TO_PNG,
    "MATLAB file": _TO_PNG,
    "HDF5 file": _TO_PNG,
    "MetaImage (MHA, MHD)": "convert it to NIfTI (SimpleITK reads and writes both), or save slices as PNG",
    "NRRD": "convert it to NIfTI (SimpleITK reads and writes both), or save slices as PNG",
    "whole slide image": "cut tiles of it with OpenSlide, save them as PNG, and write a sheet about them",
    "WebDataset (tar)": f"unpack it (tar -xf), and {_TO_ROWS}",
    "tar archive": _UNPACK,
    "ZIP archive": _UNPACK,
    "compressed archive": _UNPACK,
    "DICOM RTSTRUCT": _TO_MASKS,
    "DICOM presentation state": "it says how other images are shown: leave it out, and give those",
}
_BESIDE_IMAGES = ("PDF", "Word document", "old Word (.doc)", "HTML", "ZIP archive", "tar archive", "compressed archive")
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"ARROW1", "Arrow file"), (0, b"SQLite format 3\0", "SQLite database"),
    (0, b"%PDF", "PDF"), (0, b"\x93NUMPY", "NumPy array"), (0, b"MATLAB 5.0", "MATLAB file"), (0, b"NRRD0", "NRRD"),
    (257, b"ustar", "tar archive"),
    (0, b"7z\xbc\xaf", "compressed archive"), (0, b"Rar!", "compressed archive"),
    (0, b"BZh", "compressed archive"), (0, b"\xfd7zXZ", "compressed archive"), (0, b"(\xb5/\xfd", "compressed archive"),
    (0, b"\x89HDF", "HDF5 file"),
)  # fmt: skip
_SUFFIXES = {  # where the bytes do not tell
    **dict.fromkeys((".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif"), "whole slide image"),
    **dict.fromkeys((".pkl", ".pickle", ".pck"), "pickle"), **dict.fromkeys((".tfrecord", ".tfrecords"), "TFRecord"),
    **dict.fromkeys((".pt", ".pth"), "PyTorch file"), ".xls": "old Excel (.xls)", ".doc": "old Word (.doc)",
    **dict.fromkeys((".mha", ".mhd"), "MetaImage (MHA, MHD)"), ".gz": "compressed archive",
    ".nrrd": "NRRD", ".nhdr": "NRRD", ".mat": "MATLAB file", ".tar": "tar archive",
}  # fmt: skip
_KEYS: tuple[tuple[set[str], str], ...] = (  # of JSON; the first set that is all there names it
    ({"shapes", "imagePath"}, "LabelMe JSON"), ({"_via_img_metadata"}, "VGG Image Annotator JSON"),
    ({"findings", "sentence_en"}, "PadChest-GR JSON"), ({"dm_format_version"}, "Datumaro JSON"),
    ({"categories", "items", "info"}, "Datumaro JSON"), ({"annotations", "coordinates"}, "CreateML JSON"),
    ({"FeatureCollection", "features"}, "QuPath GeoJSON"), ({"image_id", "bbox", "score"}, "COCO results"),
    ({"labels", "numTraining"}, "dataset.json of nnU-Net or MSD"), ({"shape_attributes"}, "VGG Image Annotator JSON"),
)  # fmt: skip
_ZIPPED: tuple[tuple[str, str], ...] = (  # the beginning of a member's name
    ("xl/workbook.bin", "binary Excel (.xlsb)"), ("xl/", "XLSX of another suffix"), ("word/", "Word document"),
)  # fmt: skip
_YOLO_LINE = re.compile(r"\d+(?:\s+-?\d*\.?\d+(?:[eE]-?\d+)?){4,}\s*")
_DICOM_CLASSES = {  # SOP classes, PS3.4, table B.5-1
    "1.2.840.10008.5.1.4.1.1.481.3": "DICOM RTSTRUCT", "1.2.840.10008.5.1.4.1.1.11.": "DICOM presentation state",
}  # fmt: skip


def name_way(path: Path, files: Sequence[Path] = (), has_images: bool = False) -> str:
    """What a file, or most named ones of the `files` of a folder, look like, with the way out; "" if nothing tells."""
    names = Counter(name for file in files or [path] if (name := recognise(file)))
    for name in _BESIDE_IMAGES if has_images else ():
        del names[name]
    if not names:
        return ""
    name = names.most_common(1)[0][0]
    which = f"holds files that look like {name}" if files else f"looks like {name}"
    return f"{path}: {which}, which is not read as it is; {WAYS[name]}"


def recognise(file: Path) -> str | None:
    """The name of what a file looks like, one of `WAYS`. None if nothing tells, or the file cannot be opened."""
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError:
        return None
    suffix = file.suffix.lower()
    if (magic := next((name for at, mark, name in _MAGIC if head[at : at + len(mark)] == mark), None)) is not None:
        if magic == "tar archive" and _holds_samples(file):
            return "WebDataset (tar)"
        return "MATLAB file" if suffix == ".mat" else magic
    if head[:4] == b"\xd0\xcf\x11\xe0":
        return "old Word (.doc)" if suffix == ".doc" else "old Excel (.xls)"
    if head[:4] == b"PK\x03\x04":
        return _recognise_zip(file)
    if head[:2] == b"\x1f\x8b":
        return None if file.name.lower().endswith(".nii.gz") else "compressed archive"
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "pickle"
    if head[128:132] == b"DICM":
        return _recognise_dicom(head)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") and b"Aperio" in head:
        return "whole slide image"
    if b"\0" in head:
        return _SUFFIXES.get(suffix)
    return _recognise_text(head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")) or _SUFFIXES.get(suffix)


def _recognise_text(head: str) -> str | None:
    if head.startswith("<"):
        if re.match(r"<!doctype html|<html|<table", head, re.I):
            return "HTML"
        return "XML"
    if head.startswith(("{", "[")):
        keys = set(re.findall(r'"(\w+)"\s*:', head)) | set(re.findall(r'"type"\s*:\s*"(FeatureCollection)"', head))
        return next((name for marks, name in _KEYS if marks <= keys), None)
    if re.match(r"(ObjectType|NDims) *=", head):
        return "MetaImage (MHA, MHD)"
    lines = head.splitlines()[:3]
    return "YOLO labels" if lines and all(_YOLO_LINE.fullmatch(line) for line in lines) else None


def _recognise_zip(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return "ZIP archive"
    if any(name.endswith("data.pkl") for name in names):
        return "PyTorch file"
    if names and all(name.endswith(".npy") for name in names):
        return "NumPy array"
    if "content.xml" in names and "mimetype" in names:
        return "OpenDocument sheet"
    return next((kind for start, kind in _ZIPPED if any(n.startswith(start) for n in names)), "ZIP archive")


def _holds_samples(file: Path) -> bool:
    """Whether the first members of a tar belong together by their names, as a.png and a.json do."""
    stems: dict[str, set[str]] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for _, member in zip(range(20), archive, strict=False):
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                stems.setdefault(f"{folder}/{stem}", set()).add(suffix)
    except (tarfile.TarError, OSError, ValueError):
        return False
    return any(len(suffixes) > 1 for suffixes in stems.values())


def _recognise_dicom(head: bytes) -> str | None:
    _, _, element = head[:4096].partition(b"\x02\0\x02\0UI")  # MediaStorageSOPClassUID: its length, then the UID
    uid = element[2 : 2 + int.from_bytes(element[:2], "little")].decode("latin-1")
    return next((name for start, name in _DICOM_CLASSES.items() if uid.startswith(start)), None)
