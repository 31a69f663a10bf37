"""Boxes as DICOM segmentations, and both objects of every form of image before readers and judges."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from highdicom import seg, sr
from pydicom.sr.codedict import codes

from clinkd.data.dicom_objects import Model, Region, ReportedAnswer, write_report, write_segmentation
from clinkd.data.readers.dicom_annotations import make_box, read_annotations
from clinkd.records import BadInput, Box
from dicom_images import COLUMNS, FORMS, ROWS, make_image
from dicom_judges import find_errors, find_template_faults, needs_dciodvfy, needs_pixelmed
from structured_reports import read_report

BOXES = (Box(0.25, 0.5, 0.75, 1), Box(0.1, 0.1, 0.4, 0.4), Box(0.3, 0.2, 0.305, 0.9), Box(0.999, 0, 1, 0.001))
NAMES = ("liver", "left kidney", "subarachnoid haemorrhage", "")
SLICE = ("CT", "US film", "enhanced MR")  # one frame, several, and several whose places stand in groups
SOME_FORMS = [form if form in SLICE else pytest.param(form, marks=pytest.mark.slow) for form in FORMS]


def told_of(form: str) -> ReportedAnswer:
    """An answer with all that an object may state, about the last frame but one of several."""
    people = ("model", "person", "model", "model")
    regions = [Region(box, name, by) for box, name, by in zip(BOXES, NAMES, people, strict=True)]  # type: ignore[arg-type]
    frame = 3 if FORMS[form][2] > 1 else None
    doubts = [
        ("unknown_name", "not a name: x"),
        ("unseen_modality", "never saw this"),
        ("other_side", "the other side"),
    ]
    model = Model("demo/reflect", "0.1.0+0123456789abcdef")
    return ReportedAnswer("Where?", "Here.", regions, model, frame, 0.8, doubts, datetime(2026, 11, 30, 12))


def in_pixels(box: Box) -> list[tuple[int, int, int, int]]:
    return [(round(box.x1 * COLUMNS), round(box.y1 * ROWS), round(box.x2 * COLUMNS), round(box.y2 * ROWS))]


@pytest.mark.parametrize("form", SOME_FORMS)
def test_every_form_of_image_has_its_objects(form: str, tmp_path: Path) -> None:
    image, told = make_image(form), told_of(form)
    source = pydicom.dcmread(io.BytesIO(image))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmentation = seg.segread(io.BytesIO(write_segmentation(image, told)))
        report = sr.srread(io.BytesIO(write_report(image, told)))
    frame = [3] if FORMS[form][2] > 1 else None

    # references
    for ds in (segmentation, report):
        assert {e.value for e in ds.iterall() if e.keyword == "ReferencedSOPClassUID"} == {source.SOPClassUID}
        assert {e.value for e in ds.iterall() if e.keyword == "ReferencedSOPInstanceUID"} == {source.SOPInstanceUID}
        assert ds.StudyInstanceUID == source.StudyInstanceUID and ds.SeriesInstanceUID != source.SeriesInstanceUID
        assert ds.ContentQualification == "RESEARCH" and "research use only" in ds.SeriesDescription
    ((study, series, instance, _),) = report.get_evidence()
    assert (study, series, instance) == (source.StudyInstanceUID, source.SeriesInstanceUID, source.SOPInstanceUID)
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    for group in report.content.get_planar_roi_measurement_groups():
        (reference,) = group.roi.ContentSequence[0].ReferencedSOPSequence
        assert reference.get("ReferencedFrameNumber") == (frame and frame[0])
    assert segmentation.get("FrameOfReferenceUID") == source.get("FrameOfReferenceUID")
    if "FrameOfReferenceUID" in source:
        groups = (*segmentation.PerFrameFunctionalGroupsSequence, *segmentation.SharedFunctionalGroupsSequence)
        (place,) = {
            tuple(g.PlanePositionSequence[0].ImagePositionPatient) for g in groups if "PlanePositionSequence" in g
        }
        assert place == (-10, -20, 34 if frame else 30)

    # pixels, as highdicom finds them
    about = {"segment_numbers": [1, 2, 3, 4], "assert_missing_frames_are_empty": True, "ignore_spatial_locations": True}
    if frame:
        masks = segmentation.get_pixels_by_source_frame(source.SOPInstanceUID, frame, **about)
    else:
        masks = segmentation.get_pixels_by_source_instance([source.SOPInstanceUID], **about)
    assert masks.shape == (1, ROWS, COLUMNS, 4)
    for number, box in enumerate(BOXES):
        ((x1, y1, x2, y2),) = in_pixels(box)
        wanted = np.zeros((ROWS, COLUMNS), bool)
        wanted[min(y1, ROWS - 1) : max(y2, y1 + 1), min(x1, COLUMNS - 1) : max(x2, x1 + 1)] = True
        assert (masks[0, :, :, number] > 0).tolist() == wanted.tolist()

    # our own readers
    (tmp_path / "seg.dcm").write_bytes(write_segmentation(image, told))
    (tmp_path / "sr.dcm").write_bytes(write_report(image, told))
    known = frozenset([str(source.SOPInstanceUID)])
    for name, most in (("seg.dcm", 1.0), ("sr.dcm", 1e-4)):
        found = read_annotations(tmp_path / name, 0, known, Counter())
        assert {(f.instance, f.frame) for f in found} == {(str(source.SOPInstanceUID), 3 if frame else 1)}
        for read, box in zip([make_box(f, ROWS, COLUMNS) for f in found], BOXES, strict=True):
            ends = np.abs(np.subtract(read.corners, box.corners)) * (COLUMNS, ROWS, COLUMNS, ROWS)
            assert (ends <= most).all()
    assert [r.by for r in read_report(write_report(image, told), COLUMNS, ROWS).regions].count("person") == 1


def test_what_a_segment_states() -> None:
    ds = seg.segread(io.BytesIO(write_segmentation(make_image("CT"), told_of("CT"))))
    segments = [ds.get_segment_description(n) for n in (1, 2, 3, 4)]
    assert [s.segment_label for s in segments] == ["liver", "left kidney", "subarachnoid haemorrhage", "region"]
    assert [s.algorithm_type.value for s in segments] == ["AUTOMATIC", "MANUAL", "AUTOMATIC", "AUTOMATIC"]
    assert segments[0].segmented_property_type == codes.SCT.Liver
    assert [s.segmented_property_category.meaning for s in segments] == [
        "Anatomical Structure", "Anatomical Structure", "Morphologically Abnormal Structure",
        "Spatial and Relational Concept",
    ]  # fmt: skip
    assert segments[1].anatomic_regions[0].meaning == "Kidney" and not segments[3].anatomic_regions
    (about,) = segments[0].algorithm_identification
    assert (about.AlgorithmName, about.AlgorithmVersion) == ("demo/reflect", "0.1.0+0123456789abcdef")
    assert ds.SegmentationType == "BINARY" and "esearch use only" in ds.ContentDescription


def test_an_answer_without_a_box_has_no_segmentation() -> None:
    with pytest.raises(BadInput, match="no box, so there is nothing to segment"):
        write_segmentation(make_image("CT"), ReportedAnswer("q", "a", [], Model("m", "1")))


def test_lossy_sources_make_lossy_segmentations() -> None:
    lossy = {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": "10",
        "LossyImageCompressionMethod": "ISO_10918_1",
    }
    ds = pydicom.dcmread(io.BytesIO(write_segmentation(make_image("CR", **lossy), told_of("CR"))))
    assert {keyword: str(ds[keyword].value) for keyword in lossy} == lossy


# ---- judges ---------------------------------------------------------------------------------------------------------


@needs_dciodvfy
@pytest.mark.parametrize("form", SOME_FORMS)
def test_dciodvfy_finds_no_error(form: str, tmp_path: Path) -> None:
    image, told = make_image(form), told_of(form)
    for name, content in (("sr", write_report(image, told)), ("seg", write_segmentation(image, told))):
        (tmp_path / name).write_bytes(content)
        assert find_errors(tmp_path / name) == []


@needs_pixelmed
@pytest.mark.slow  # each starts a Java that reads its rules for seconds
@pytest.mark.parametrize("form", FORMS)
def test_the_report_validator_finds_no_fault(form: str, tmp_path: Path) -> None:
    (tmp_path / "sr").write_bytes(write_report(make_image(form), told_of(form)))
    warned = ("The question has a name that the model never learned", "The model never saw images of this modality")
    beside = (*warned, "The answer names the other side than the question")
    assert find_template_faults(tmp_path / "sr", *beside) == []
