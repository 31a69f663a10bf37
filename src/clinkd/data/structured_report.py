"""Answers as DICOM Structured Reports: TID 1500 with a rectangle for each region (PS3.16 A, PS3.3 C.18.6)."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pydicom
from highdicom import UID, ContentQualificationValues, sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from pydicom.valuerep import validate_value

from clinkd.data.images import kind_of
from clinkd.data.images.dicom_header import open_header
from clinkd.data.images.grey import Refusal
from clinkd.data.images.kind import choose_frame
from clinkd.data.images.limits import UPLOADS, FileLimits
from clinkd.data.images.upload import PLACE
from clinkd.records import BadInput, Box

Group = sr.MeasurementsAndQualitativeEvaluations | sr.PlanarROIMeasurementsAndQualitativeEvaluations

NOTICE = "Research use only. Not for diagnosis or treatment. Made by a program and not verified."
SCHEME = "99CLINKD"  # our private codes (PS3.16 8.2: a designator that begins with 99 is private)

# Structures whose names equal those of SNOMED CT codes in PS3.16, which pydicom lists.
_STRUCTURES = frozenset(
    [
        "abdomen", "adrenal gland", "aorta", "bladder", "bone", "brain", "breast", "cardiomegaly", "chest", "clavicle",
        "colon", "cyst", "diaphragm", "duodenum", "esophagus", "eye", "femur", "gallbladder", "head", "heart",
        "hepatic vein", "inferior vena cava", "kidney", "left atrium", "left ventricle", "lesion", "liver", "lung",
        "mandible", "mass", "mediastinum", "neoplasm", "nodule", "pancreas", "pelvis", "pleural effusion",
        "portal vein", "prostate", "rectum", "rib", "right atrium", "right ventricle", "skin", "small intestine",
        "spinal cord", "spine", "spleen", "sternum", "stomach", "thoracic aorta", "thyroid", "trachea", "uterus",
        "vertebra",
    ]
)  # fmt: skip

_UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_REQUIRED = (  # of the patient and the study: type 2, so they are empty where unknown
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_OPTIONAL = ("IssuerOfPatientID", "StudyDescription", "PatientAge", "PatientSize", "PatientWeight")
_STAND_IN = "1.2.840.10008.5.1.4.1.1.7.2"  # a multi-frame secondary capture
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"


@dataclass(frozen=True, slots=True)
class Region:
    """A box in an answer. `label` names the finding ("" where unknown); `by` drew the box."""

    box: Box
    label: str
    by: Literal["model", "person"]


@dataclass(frozen=True, slots=True)
class Model:
    """The model that gave the answer."""

    name: str
    version: str


def write_report(  # noqa: PLR0913
    source: bytes,
    frame: int | None,
    question: str,
    answer: str,
    regions: Sequence[Region],
    model: Model,
    limits: FileLimits = UPLOADS,
) -> bytes:
    """A Comprehensive SR of an answer about one frame (by default the first) of the DICOM `source`.

    Corners are float32 pixels of the frame, (0, 0) is the top left corner of the top left pixel (PS3.3 C.18.6.1.2).
    Patient and study are copied from the source; elements with values that the standard forbids stay empty. No pixels
    are decoded or copied. The report is partial and unverified, and says that it is for research. Raises BadInput where
    the source is no readable DICOM image, lacks a UID that a reference needs, or has no such frame, and where a box is
    too small for float32.
    """
    model = Model(_clean_text(model.name), _clean_text(model.version))
    stream = io.BytesIO(source)
    if not kind_of(stream).reportable:
        raise BadInput(f"{PLACE}: not a DICOM, so no structured report can refer to it; give the DICOM file itself")
    keywords = (*_UIDS, *_REQUIRED, *_OPTIONAL, "SpecificCharacterSet")
    with open_header(stream, PLACE, limits, also=keywords) as header:
        number = choose_frame(1 if frame is None else frame, header.frames, stream, PLACE)
        frames = [number] if header.frames > 1 else None
        source_frame = _SourceFrame(_copy_evidence(header.ds), frames, header.columns, header.rows)
        groups = [_make_group(n, region, source_frame, model) for n, region in enumerate(regions, start=1)]
        groups = groups or [_make_image_group(source_frame, model)]
        report = io.BytesIO()
        pydicom.dcmwrite(report, _build_report(question, answer, groups, source_frame, model), enforce_file_format=True)
        return report.getvalue()


# ---- the source -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _SourceFrame:
    """The frame of all regions."""

    evidence: Dataset
    frames: list[int] | None  # the number of the frame; None where the image has one only
    columns: int
    rows: int


def _copy_evidence(ds: Dataset) -> Dataset:
    """The elements of the source that a report repeats, empty where the standard forbids their value."""
    evidence = Dataset()
    for keyword in _UIDS:
        uid = str(ds.get(keyword) or ds.file_meta.get(f"MediaStorage{keyword}") or "").strip()
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)+", uid) or len(uid) > 64:
            raise Refusal(f"its {keyword} is missing or not valid, so no report can refer to it; mend the header")
        setattr(evidence, keyword, uid)
    for keyword in (*_REQUIRED, *_OPTIONAL):
        value = _read_valid_text(ds, keyword)
        if value or keyword in _REQUIRED:
            setattr(evidence, keyword, value)
    return evidence


def _read_valid_text(ds: Dataset, keyword: str) -> str:
    """The text of an element, "" where it is missing, has several values, or breaks the rules of its VR."""
    try:
        vr, value = dictionary_VR(keyword), str(ds[keyword].value).strip()
        legal = ds[keyword].VM == 1 and (keyword != "PatientSex" or value in ("M", "F", "O"))
        validate_value(vr, value, pydicom.config.RAISE)
        if vr == "DA":
            datetime.strptime(value, "%Y%m%d")
    except Exception:  # absent, broken, or impossible to decode
        return ""
    return value if legal and "\\" not in value and value.isprintable() else ""


# ---- writing --------------------------------------------------------------------------------------------------------


def _make_polyline(box: Box, frame: _SourceFrame) -> Any:
    """The rectangle as a closed polyline: five (column, row) pairs of float32."""
    x1, x2 = (np.float32(x * frame.columns) for x in (box.x1, box.x2))
    y1, y2 = (np.float32(y * frame.rows) for y in (box.y1, box.y2))
    if x1 == x2 or y1 == y2:
        raise Refusal(f"a box of {frame.columns}x{frame.rows} pixels is too small to be written; draw a larger one")
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)], np.float32)


def _make_group(number: int, region: Region, frame: _SourceFrame, model: Model) -> Group:
    """TID 1410 of a region."""
    # The class of the image is set at the end, as highdicom refuses unknown classes, such as retired ones.
    image = sr.SourceImageForRegion(_STAND_IN, frame.evidence.SOPInstanceUID, frame.frames)
    rectangle = sr.ImageRegion(sr.GraphicTypeValues.POLYLINE, _make_polyline(region.box, frame), image)
    if frame.evidence.SOPClassUID == _WHOLE_SLIDE:  # otherwise they would be pixels of the whole slide, not of its tile
        rectangle.PixelOriginInterpretation = "FRAME"
        image.ReferencedSOPSequence[0].ReferencedFrameNumber = (frame.frames or [1])[0]
    label = " ".join(_clean_text(region.label).split())
    group = sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(identifier=f"{number}: {label}".strip()),
        referenced_region=rectangle,
        finding_type=_code_finding(label) if label else None,
        algorithm_id=_describe_algorithm(model) if region.by == "model" else None,
    )
    if region.by == "person":
        group[0].ContentSequence.extend(_describe_person())
    return group


def _make_image_group(frame: _SourceFrame, model: Model) -> Group:
    """TID 1501 of the whole image: a report needs at least one group."""
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(identifier="0: the image"),
        algorithm_id=_describe_algorithm(model),
        source_images=[sr.SourceImageForMeasurementGroup(_STAND_IN, frame.evidence.SOPInstanceUID, frame.frames)],
    )


def _build_report(question: str, answer: str, groups: list[Group], frame: _SourceFrame, model: Model) -> Dataset:
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=_describe_device(model)),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    texts = (
        (Code("question", SCHEME, "Question asked"), question),
        (Code("answer", SCHEME, "Answer given"), answer),
        (codes.DCM.Comment, NOTICE),
    )
    for name, text in texts:
        if plain := _clean_text(text):
            contains = sr.RelationshipTypeValues.CONTAINS
            content[0].ContentSequence.append(sr.TextContentItem(name, plain, contains))
    source_class = frame.evidence.SOPClassUID
    frame.evidence.SOPClassUID = _STAND_IN
    report = sr.ComprehensiveSR(
        evidence=[frame.evidence],
        content=content[0],
        series_instance_uid=UID(),
        series_number=1,
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer="ClinKD",
        manufacturer_model_name=_clean_line(model.name) or None,
        software_versions=_clean_line(model.version) or None,
        series_description="ClinKD, research use only",
        content_qualification=ContentQualificationValues.RESEARCH,
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name="ClinKD", version="1")],
        specific_character_set="ISO_IR 192",
    )
    for element in report.iterall():
        if element.keyword == "ReferencedSOPClassUID":
            element.value = source_class
    return report


def _code_finding(label: str) -> Any:
    """The code of a structure: SNOMED CT for a known name, otherwise a private code made from the label."""
    name = re.sub(r"^(the|an?) ", "", " ".join(label.lower().split()))
    if name in _STRUCTURES:
        return getattr(codes.SCT, name.title().replace(" ", ""))
    return Code(hashlib.blake2b(name.encode(), digest_size=8).hexdigest(), SCHEME, _clean_line(label))


def _describe_algorithm(model: Model) -> Any:
    return sr.AlgorithmIdentification(name=model.name or "unknown", version=model.version or "unknown")


def _describe_device(model: Model) -> sr.ObserverContext:
    """TID 1004. A model always has the same UID."""
    identity, name = generate_uid(entropy_srcs=["clinkd", model.name, model.version]), model.name or "unknown"
    about = sr.DeviceObserverIdentifyingAttributes(uid=identity, name=name, manufacturer_name="ClinKD")
    return sr.ObserverContext(sr.CodedConcept.from_code(codes.DCM.Device), about)


def _describe_person() -> sr.ObserverContext:
    """TID 1003, without a name: nobody asks who drew a box."""
    about = sr.PersonObserverIdentifyingAttributes(name="Reader^Anonymous")
    return sr.ObserverContext(sr.CodedConcept.from_code(codes.DCM.Person), about)


def _clean_text(text: str) -> str:
    """Text that an element may hold: valid Unicode, no control characters except ends of lines."""
    whole = text.encode("utf-8", "replace").decode().replace("\r\n", "\n")
    return "".join(c if c.isprintable() or c == "\n" else " " for c in whole).strip()


def _clean_line(text: str) -> str:
    """Text for the VR LO: one line of at most 64 characters."""
    return " ".join(_clean_text(text).replace("\\", "/").split())[:64].strip()
