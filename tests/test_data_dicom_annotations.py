"""Segmentations and structured reports beside DICOM images: their boxes against the masks and corners written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from clinkd.data.dicom_objects import Model, Region, ReportedAnswer, write_report
from clinkd.data.readers import forms
from clinkd.data.readers.dicom_annotations import _list_points
from clinkd.data.readers.shapes import extent
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, Box, Task

ROWS, COLUMNS = 32, 48


def write_slices(folder: Path, count: int = 2) -> list[pydicom.Dataset]:
    series, slices = generate_uid(), []
    for number in range(count):
        ds = pydicom.Dataset()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", generate_uid()
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
            ds.SOPClassUID,
            ds.SOPInstanceUID,
        )
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = "7", "", "", ""
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = (
            generate_uid(entropy_srcs=["s"]),
            series,
            series,
        )
        ds.StudyID, ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.ReferringPhysicianName = "", "", "", "", ""
        ds.Modality, ds.InstanceNumber, ds.SeriesNumber = "CT", number + 1, 1
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 5.0 * number]
        ds.PixelSpacing, ds.SliceThickness = [1, 1], 5
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = ROWS, COLUMNS, 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.PixelData = np.random.default_rng(number).integers(0, 999, (ROWS, COLUMNS), np.uint16).tobytes()
        ds.save_as(folder / f"{number}.dcm", enforce_file_format=True)
        slices.append(ds)
    return slices


def write_segmentation(file: Path, slices: list[pydicom.Dataset], masks: np.ndarray, labels: list[str]) -> None:
    """`masks` [slices, rows, columns, segments]."""
    about = hd.AlgorithmIdentificationSequence("hand", codes.DCM.ArtificialIntelligence, "1")
    described = [
        SegmentDescription(n, label, codes.SCT.Tissue, codes.SCT.Liver, "MANUAL", about)
        for n, label in enumerate(labels, start=1)
    ]
    Segmentation(
        slices, masks, "BINARY", described, generate_uid(), 2, generate_uid(), 1, "x", "x", "1", "1"
    ).save_as(file)  # fmt: skip


def read(path: Path):
    notes: Counter[str] = Counter()
    samples = forms.read_samples(Source(path), notes)
    boxes = {
        (s.images[0].path, s.names[0]): [
            tuple(round(v * size, 3) for v, size in zip(b.corners, (COLUMNS, ROWS) * 2, strict=True))
            for b in s.answer.boxes
        ]
        for s in samples
        if s.task is Task.VG
    }
    return boxes, samples, notes


def test_segments_are_boxes_in_the_slices_they_were_drawn_on(tmp_path):
    slices = write_slices(tmp_path)
    masks = np.zeros((2, ROWS, COLUMNS, 2), np.uint8)
    masks[0, 4:10, 5:20, 0] = masks[1, 8:9, 2:40, 0] = 1
    masks[1, 20:30, 3:7, 1] = masks[1, 20:30, 30:34, 1] = 1
    write_segmentation(tmp_path / "seg.dcm", slices, masks, ["liver", "kidney"])
    boxes, samples, _ = read(tmp_path)
    assert boxes == {
        ("0.dcm", "liver"): [(5, 4, 20, 10)],
        ("1.dcm", "liver"): [(2, 8, 40, 9)],
        ("1.dcm", "kidney"): [(3, 20, 7, 30), (30, 20, 34, 30)],
    }
    assert len({s.group for s in samples}) == 1 and {s.modality.value for s in samples} == {"ct"}


def test_regions_of_our_own_report_come_back(tmp_path):
    write_slices(tmp_path, 1)
    region = Region(Box(0.25, 0.5, 0.5, 0.75), "liver", "person")
    report = write_report(
        (tmp_path / "0.dcm").read_bytes(), ReportedAnswer("Where?", "There.", [region], Model("m", "1"))
    )
    (tmp_path / "report.dcm").write_bytes(report)
    boxes, _, _ = read(tmp_path)
    assert boxes == {("0.dcm", "Liver"): [(12, 16, 24, 24)]}


def test_annotations_of_images_that_are_not_there_are_a_bad_row(tmp_path):
    slices = write_slices(tmp_path)
    write_segmentation(tmp_path / "seg.dcm", slices, np.ones((2, ROWS, COLUMNS, 1), np.uint8), ["liver"])
    (tmp_path / "1.dcm").unlink()
    with pytest.raises(BadInput, match=r"seg\.dcm: image = .*refers to 1 images that are not in the folder"):
        read(tmp_path)


def test_a_damaged_segmentation_is_a_bad_row(tmp_path):
    slices = write_slices(tmp_path)
    write_segmentation(tmp_path / "seg.dcm", slices, np.ones((2, ROWS, COLUMNS, 1), np.uint8), ["liver"])
    (tmp_path / "seg.dcm").write_bytes((tmp_path / "seg.dcm").read_bytes()[:-400])
    with pytest.raises(BadInput, match=r"seg\.dcm"):
        read(tmp_path)


@pytest.mark.parametrize("degrees", [0, 20, 45, 90])
def test_an_ellipse_has_the_extent_of_its_outline(degrees):
    turn, t = np.radians(degrees), np.linspace(0, 2 * np.pi, 100_000)
    x = 50 + 20 * np.cos(t) * np.cos(turn) - 8 * np.sin(t) * np.sin(turn)
    y = 40 + 20 * np.cos(t) * np.sin(turn) + 8 * np.sin(t) * np.cos(turn)
    ends = [v for n in (0, 50_000, 25_000, 75_000) for v in (x[n], y[n])]
    assert np.allclose(extent(_list_points("ELLIPSE", ends)), (x.min(), y.min(), x.max(), y.max()), atol=0.01)


def test_shapes_without_an_extent_have_no_points():
    assert _list_points("POINT", [1.0, 2.0]) is None and _list_points("MULTIPOINT", [1.0, 2.0, 3.0, 4.0]) is None
    assert extent(_list_points("CIRCLE", [10.0, 10.0, 13.0, 14.0])) == (5, 5, 15, 15)
