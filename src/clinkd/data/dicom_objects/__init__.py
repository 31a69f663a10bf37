"""Answers as DICOM objects: structured reports, and segmentations of their boxes as rectangles."""

from clinkd.data.dicom_objects.answer import NOTICE, SCHEME, WARNINGS, Model, Region, ReportedAnswer
from clinkd.data.dicom_objects.codes import STARTER, CodedName, CodeMap, read_code_map
from clinkd.data.dicom_objects.report import write_report
from clinkd.data.dicom_objects.segmentation import write_segmentation

__all__ = [
    "NOTICE",
    "SCHEME",
    "STARTER",
    "WARNINGS",
    "CodeMap",
    "CodedName",
    "Model",
    "Region",
    "ReportedAnswer",
    "read_code_map",
    "write_report",
    "write_segmentation",
]
