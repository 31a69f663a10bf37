"""Answers as DICOM Structured Reports: TID 1500 with a rectangle for each region (PS3.16 A, PS3.3 C.18.6)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from clinkd.data.dicom_objects.answer import NOTICE, SCHEME, WARNINGS, Model, Region, ReportedAnswer, derive_uid
from clinkd.data.dicom_objects.codes import CodeMap, clean_text, read_code_map
from clinkd.data.dicom_objects.headers import describe_object, finish_object, identify, name_region
from clinkd.data.dicom_objects.source import WHOLE_SLIDE, SourceFrame, open_source
from clinkd.data.images.grey import Refusal
from clinkd.data.images.limits import UPLOADS, FileLimits
from clinkd.records import Box

Group = sr.MeasurementsAndQualitativeEvaluations | sr.PlanarROIMeasurementsAndQualitativeEvaluations

_STAND_IN = "1.2.840.10008.5.1.4.1.1.7.2"  # a multi-frame secondary capture
_CONFIDENCE = Code("confidence", SCHEME, "Calibrated probability that the answer is right")
_SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}


def write_report(
    source: bytes, told: ReportedAnswer, code_map: CodeMap | None = None, limits: FileLimits = UPLOADS
) -> bytes:
    """A Comprehensive SR of an answer about one frame of the DICOM `source`.

    Corners are float32 pixels of the frame, (0, 0) is the top left corner of the top left pixel (PS3.3 C.18.6.1.2).
    Patient and study are copied from the source; elements with values that the standard forbids stay empty. No pixels
    are decoded or copied. The report is partial and unverified, and says that it is for research. Without a `code_map`,
    names have the codes of the starter map. Raises BadInput as `open_source`, and where a box is too small for float32.
    """
    with open_source(source, told.frame, limits) as frame:
        report = io.BytesIO()
        ds = _Report(told, frame, code_map or read_code_map()).build()
        pydicom.dcmwrite(report, ds, enforce_file_format=True)
        return report.getvalue()


class _Report:
    """A report in the making."""

    def __init__(self, told: ReportedAnswer, frame: SourceFrame, code_map: CodeMap) -> None:
        self.told, self.frame, self.code_map = told, frame, code_map
        self.model = Model(clean_text(told.model.name) or "unknown", clean_text(told.model.version) or "unknown")
        self.identity = identify(told, frame)

    def build(self) -> Dataset:
        groups: list[Group] = [self.make_group(n, region) for n, region in enumerate(self.told.regions, start=1)]
        if not groups or self.told.confidence is not None or self.told.warnings:
            groups.append(self.make_answer_group())
        content = sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=_describe_device(self.model)),
            procedure_reported=codes.SCT.ImagingProcedure,
            imaging_measurements=groups,
            title=codes.DCM.ImagingMeasurementReport,
        )
        texts = (
            (Code("question", SCHEME, "Question asked"), self.told.question),
            (Code("answer", SCHEME, "Answer given"), self.told.answer),
            (codes.DCM.Comment, NOTICE),
        )
        content[0].ContentSequence.extend(
            _make_text(name, plain) for name, text in texts if (plain := clean_text(text))
        )
        self.frame.evidence.SOPClassUID, source_class = _STAND_IN, self.frame.evidence.SOPClassUID
        report = sr.ComprehensiveSR(
            evidence=[self.frame.evidence],
            content=content[0],
            **describe_object(self.told, self.identity, "SR"),
        )
        self.frame.evidence.SOPClassUID = source_class
        finish_object(report, self.frame)
        return report

    def make_group(self, number: int, region: Region) -> Group:
        """TID 1410 of a region."""
        image = sr.SourceImageForRegion(_STAND_IN, self.frame.evidence.SOPInstanceUID, self.frame.referred)
        rectangle = sr.ImageRegion(sr.GraphicTypeValues.POLYLINE, _make_polyline(region.box, self.frame), image)
        if self.frame.evidence.SOPClassUID == WHOLE_SLIDE:  # else they would be pixels of the slide, not of its tile
            rectangle.PixelOriginInterpretation = "FRAME"
            image.ReferencedSOPSequence[0].ReferencedFrameNumber = self.frame.number
        label = " ".join(clean_text(region.label).split())
        coded = self.code_map.find(label) if label else None
        group = sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(self.identity.tracking_uid(number), name_region(number, label)),
            referenced_region=rectangle,
            finding_type=coded.code if coded else None,
            finding_sites=[sr.FindingSite(coded.site, coded.side and _SIDES[coded.side])]
            if coded and coded.site
            else None,
            algorithm_id=self.describe_algorithm() if region.by == "model" else None,
            geometric_purpose=codes.SCT.BoundedBy,
        )
        if region.by == "person":
            group[0].ContentSequence.extend(_describe_person())
        return group

    def make_answer_group(self) -> Group:
        """TID 1501 of the whole image: how sure the answer is, and its warnings. They do not stand beside a region, as
        viewers take a number there for the rectangle's own. A report without regions needs this group at least."""
        confidence = self.told.confidence
        group = sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(self.identity.tracking_uid(0), "0: the answer"),
            algorithm_id=self.describe_algorithm(),
            source_images=[
                sr.SourceImageForMeasurementGroup(_STAND_IN, self.frame.evidence.SOPInstanceUID, self.frame.referred)
            ],
            measurements=None
            if confidence is None
            else [sr.Measurement(_CONFIDENCE, round(confidence, 4), codes.UCUM.NoUnits)],
        )
        for kind, message in self.told.warnings:
            name = Code(kind, SCHEME, WARNINGS[kind])
            group[0].ContentSequence.append(_make_text(name, clean_text(message) or WARNINGS[kind]))
        return group

    def describe_algorithm(self) -> Any:
        return sr.AlgorithmIdentification(self.model.name, self.model.version)


def _make_polyline(box: Box, frame: SourceFrame) -> Any:
    """The rectangle as a closed polyline: five (column, row) pairs of float32."""
    x1, x2 = (np.float32(x * frame.columns) for x in (box.x1, box.x2))
    y1, y2 = (np.float32(y * frame.rows) for y in (box.y1, box.y2))
    if x1 == x2 or y1 == y2:
        raise Refusal(f"a box of {frame.columns}x{frame.rows} pixels is too small to be written; draw a larger one")
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)], np.float32)


def _make_text(name: Code, text: str) -> Any:
    return sr.TextContentItem(name, text, sr.RelationshipTypeValues.CONTAINS)


def _describe_device(model: Model) -> sr.ObserverContext:
    """TID 1004. A model always has the same UID."""
    uid = derive_uid("device", model.name, model.version)
    about = sr.DeviceObserverIdentifyingAttributes(uid=uid, name=model.name, manufacturer_name="ClinKD")
    return sr.ObserverContext(sr.CodedConcept.from_code(codes.DCM.Device), about)


def _describe_person() -> sr.ObserverContext:
    """TID 1003, without a name: nobody asks who drew a box."""
    about = sr.PersonObserverIdentifyingAttributes(name="Reader^Anonymous")
    return sr.ObserverContext(sr.CodedConcept.from_code(codes.DCM.Person), about)
