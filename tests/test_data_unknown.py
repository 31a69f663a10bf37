"""A file or folder of no known form is named for what it looks like, with the way to a form that is read."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from clinkd.data.readers import Source, detect_form, read_rows
from clinkd.data.readers.unknown import WAYS, name_way, recognise
from clinkd.records import BadInput, Modality


def zipped(*names: str) -> bytes:
    with zipfile.ZipFile(data := io.BytesIO(), "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return data.getvalue()


def tarred(*names: str) -> bytes:
    with tarfile.open(fileobj=(data := io.BytesIO()), mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return data.getvalue()


def dicom(sop_class: str) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    dataset.save_as(data := io.BytesIO(), enforce_file_format=True)
    return data.getvalue()


def array() -> bytes:
    np.save(data := io.BytesIO(), np.zeros(2))
    return data.getvalue()


LABELME = {"version": "5", "shapes": [{"label": "x", "points": [[1, 2], [3, 4]]}], "imagePath": "a.png"}
GR = [{"StudyID": "1", "ImageID": "a.png", "findings": [{"sentence_en": "x", "boxes": [[0, 0, 0.5, 0.5]]}]}]
SLIDE = b"II*\0" + bytes(100) + b"Aperio Image Library v10.0.51"
FILES: dict[str, tuple[str, bytes | str]] = {  # the smallest file of each kind
    "c.xml": ("XML", "<ADAPTER/>"),
    "a.txt": ("YOLO labels", "0 0.5 0.5 0.25 0.25\n1 0.1 0.2 0.3 0.4\n"),
    "labelme.json": ("LabelMe JSON", json.dumps(LABELME, indent=2)),
    "labelme-line.json": ("LabelMe JSON", json.dumps(LABELME)),
    "via.json": ("VGG Image Annotator JSON", '{"_via_img_metadata": {}}'),
    "createml.json": ("CreateML JSON", '[{"image": "a.jpg", "annotations": [{"coordinates": {"x": 1}}]}]'),
    "gr.json": ("PadChest-GR JSON", json.dumps(GR)),
    "results.json": ("COCO results", '[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]'),
    "qupath.json": ("QuPath GeoJSON", '{"type": "FeatureCollection", "features": [{}]}'),
    "datumaro.json": ("Datumaro JSON", '{"dm_format_version": "1.0", "items": [], "categories": {}}'),
    "nnunet.json": ("dataset.json of nnU-Net or MSD", '{"labels": {"background": 0}, "numTraining": 3}'),
    "a.xls": ("old Excel (.xls)", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)),
    "a.doc": ("old Word (.doc)", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)),
    "a.docx": ("Word document", zipped("[Content_Types].xml", "word/document.xml")),
    "a.xlsb": ("binary Excel (.xlsb)", zipped("[Content_Types].xml", "xl/workbook.bin")),
    "sheet.bin": ("XLSX of another suffix", zipped("[Content_Types].xml", "xl/workbook.xml")),
    "a.ods": ("OpenDocument sheet", zipped("mimetype", "content.xml")),
    "a.pdf": ("PDF", b"%PDF-1.7\n"),
    "page.html": ("HTML", "<!DOCTYPE html><table></table>"),
    "a.arrow": ("Arrow file", b"ARROW1\0\0"),
    "a.db": ("SQLite database", b"SQLite format 3\0"),
    "a.tfrecord": ("TFRecord", bytes(16)),
    "a.pkl": ("pickle", b"\x80\x04\x95\x00."),
    "b.pkl": ("pickle", "(lp0\n."),
    "a.pt": ("PyTorch file", zipped("a/data.pkl", "a/version")),
    "a.npy": ("NumPy array", array()),
    "a.npz": ("NumPy array", zipped("x.npy")),
    "a.mat": ("MATLAB file", b"MATLAB 5.0 MAT-file"),
    "b.mat": ("MATLAB file", b"\x89HDF\r\n\x1a\n"),
    "a.h5": ("HDF5 file", b"\x89HDF\r\n\x1a\n"),
    "a.mha": ("MetaImage (MHA, MHD)", b"ObjectType = Image\nNDims = 3\nElementDataFile = LOCAL\n\0"),
    "a.mhd": ("MetaImage (MHA, MHD)", "ObjectType = Image\nNDims = 3\n"),
    "a.nrrd": ("NRRD", b"NRRD0004\n"),
    "a.svs": ("whole slide image", SLIDE),
    "slide.tif": ("whole slide image", SLIDE),
    "a.ndpi": ("whole slide image", b"II*\0" + bytes(20)),
    "a.mrxs": ("whole slide image", b"\xff\xd8\xff\0"),
    "a.tar": ("WebDataset (tar)", tarred("0001.jpg", "0001.json", "0002.jpg", "0002.json")),
    "b.tar": ("tar archive", tarred("images/0001.jpg", "masks/0001.jpg")),
    "a.zip": ("ZIP archive", zipped("a.png", "b.txt")),
    "a.tar.gz": ("compressed archive", gzip.compress(tarred("a"))),
    "a.7z": ("compressed archive", b"7z\xbc\xaf\x27\x1c"),
    "rt.dcm": ("DICOM RTSTRUCT", dicom("1.2.840.10008.5.1.4.1.1.481.3")),
    "pr.dcm": ("DICOM presentation state", dicom("1.2.840.10008.5.1.4.1.1.11.1")),
}  # fmt: skip


READ_BY_OTHERS = {"YOLO labels"}  # a lone file of them may still need a name


def write(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        data = FILES[name][1]
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_named_for_what_it_looks_like(tmp_path: Path, name: str) -> None:
    write(tmp_path, [name])
    kind = FILES[name][0]
    assert recognise(tmp_path / name) == kind
    if kind in READ_BY_OTHERS:
        return
    with pytest.raises(BadInput) as error:
        list(read_rows(Source(tmp_path / name), Counter()))
    assert f"looks like {kind}" in str(error.value) and str(error.value).endswith(WAYS[kind])
    assert "\n" not in str(error.value)


def test_every_way_is_tried() -> None:
    assert {kind for kind, _ in FILES.values()} == set(WAYS)


def test_a_folder_is_named_for_most_of_its_files(tmp_path: Path) -> None:
    write(tmp_path, ["a.pdf", "a.zip"])
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(BadInput, match="holds images, and no questions about them"):
        detect_form(Source(tmp_path))
    for name in ("1.json", "2.json"):
        (tmp_path / name).write_text(json.dumps(LABELME))
    with pytest.raises(BadInput, match="holds files that look like LabelMe JSON"):
        detect_form(Source(tmp_path))


def test_dicom_objects_that_are_no_images_are_left_out_and_named(tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    write(tmp_path, ["rt.dcm", "pr.dcm"])
    with pytest.raises(BadInput, match="holds files that look like DICOM"):
        list(read_rows(Source(tmp_path), Counter()))
    (tmp_path / "ct.dcm").write_bytes(Path(str(get_testdata_file("CT_small.dcm"))).read_bytes())
    notes: Counter[str] = Counter()
    (result,) = read_rows(Source(tmp_path), notes)
    assert result.images[0].path == "ct.dcm" and not result.problem
    assert [count for note, count in notes.items() if "no images, left out" in note] == [1, 1]


@pytest.mark.parametrize(("data", "kind"), [(b"PK\3\4", "ZIP"), (b"%PDF-1.7", "PDF"), (b"<html>", "HTML")])
def test_what_is_only_named_as_a_sheet_is_no_sheet(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(BadInput, match=f"looks like {kind}"):
        detect_form(Source(tmp_path / "a.csv"))
    (tmp_path / "a.csv").write_text("image,question,answer\n")
    assert detect_form(Source(tmp_path / "a.csv")) == "sheet"


def test_what_looks_like_nothing_has_no_name(tmp_path: Path) -> None:
    for data in (b"", b"\0\1\2", b"some words", b"{}", b"0 1 2", b"PK\x03\x04"):
        (tmp_path / "a.bin").write_bytes(data)
        assert recognise(tmp_path / "a.bin") in (None, "ZIP archive")
    assert recognise(tmp_path / "none") is None and name_way(tmp_path / "none") == ""


@pytest.mark.parametrize("row", [{"image": "a.png", "question": "q", "anwser": "a"}, {"mesages": []}])
def test_a_misspelt_key_is_named(tmp_path: Path, row: dict[str, object]) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    key = next(k for k in row if k in ("anwser", "mesages"))
    with pytest.raises(BadInput, match=f"did you mean (answer|messages) for its key '{key}'"):
        detect_form(Source(tmp_path / "a.jsonl"))


def test_data_in_the_folders_below_are_named(tmp_path: Path) -> None:
    """OmniMedVQA: Images/, and QA_information/Open-access/ACRIMA.json (https://huggingface.co/datasets/foreverbeliever/OmniMedVQA)."""
    (tmp_path / "Images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "Images" / "a.png")
    (questions := tmp_path / "QA_information" / "Open-access").mkdir(parents=True)
    row = {"image_path": "Images/a.png", "question": "What?", "gt_answer": "CT", "option_A": "CT", "option_B": "MR"}
    (questions / "ACRIMA.json").write_text(json.dumps([row]))
    with pytest.raises(BadInput) as refused:
        detect_form(Source(tmp_path))
    assert str(refused.value).endswith(f"; give {questions} (vqa), and --images {tmp_path}")
    rows = list(read_rows(Source(questions, images=tmp_path, modality=Modality.FUNDUS), Counter()))
    assert [len(row.samples) for row in rows] == [1]  # the advice is no dead end
