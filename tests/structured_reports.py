"""What a structured report of ClinKD says: the answer, its regions, and the frame that they lie in."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pydicom
from pydicom import Dataset

from clinkd.data.dicom_objects import Model, Region, ReportedAnswer, write_report
from clinkd.data.images.dicom import Dicom
from clinkd.data.images.limits import UPLOADS
from clinkd.records import BadInput, Box


@dataclass(frozen=True, slots=True)
class Report:
    """What a report says, of frame `frame` (from 1) of the image whose SOPInstanceUID is `instance`."""

    question: str
    answer: str
    regions: tuple[Region, ...]
    model: Model
    instance: str
    frame: int


def read_report(content: bytes, width: int, height: int) -> Report:
    """What a report of `write_report` says, its boxes as fractions of a frame of `width` x `height` pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = pydicom.dcmread(io.BytesIO(content))
    assert report.Modality == "SR"
    texts = {code_of(item): str(item.TextValue) for item in children(report, "TEXT")}
    regions, images = [], []
    for measured in children(report, "CONTAINER", "126010"):  # Imaging Measurements
        for group in children(measured, "CONTAINER", "125007"):  # Measurement Group
            images += [image_reference(item) for item in children(group, "IMAGE")]
            for rectangle in children(group, "SCOORD", "111030"):  # Image Region
                images += [image_reference(item) for item in children(rectangle, "IMAGE")]
                label = text_of(group, "112039").partition(":")[2].strip()  # Tracking Identifier
                by: Literal["model", "person"] = "model" if text_of(group, "111001") else "person"  # Algorithm Name
                regions.append(Region(box_of(rectangle, width, height), label, by))
    ((instance, frame),) = set(images)
    model = Model(text_of(report, "121013"), str(report.get("SoftwareVersions") or ""))  # Device Observer Name
    return Report(texts.get("question", ""), texts.get("answer", ""), tuple(regions), model, instance, frame)


def judged(content: bytes) -> str:
    """ "" where a report of a damaged source is written and read, or refused as it should be; else what is wrong."""
    told = ReportedAnswer("Where is it?", "Here.", (Region(Box(0, 0, 1, 1), "liver", "model"),), Model("tiny", "1"))
    try:
        report = write_report(content, told)
        facts = Dicom().describe(io.BytesIO(content), "x", limits=UPLOADS)
        if read_report(report, facts.width, facts.height).regions[0].label != "liver":
            return "another label"
    except BadInput as error:
        return "tells much" if "\n" in str(error) or len(str(error)) > 400 else ""
    except BaseException as error:
        return f"raises {type(error).__name__}: {error}"
    return ""


def children(item: Dataset, kind: str, code: str = "") -> Iterator[Dataset]:
    for child in item.get("ContentSequence") or []:
        if child.get("ValueType") == kind and (not code or code_of(child) == code):
            yield child


def code_of(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].get("CodeValue") or "")


def text_of(item: Dataset, code: str) -> str:
    return next((str(child.TextValue) for child in children(item, "TEXT", code)), "")


def image_reference(item: Dataset) -> tuple[str, int]:
    """SOPInstanceUID, and the number of the frame."""
    reference = item.ReferencedSOPSequence[0]
    return str(reference.ReferencedSOPInstanceUID), int(reference.get("ReferencedFrameNumber") or 1)


def box_of(rectangle: Dataset, width: int, height: int) -> Box:
    points = np.array(rectangle.GraphicData, np.float64).reshape(-1, 2)
    assert rectangle.GraphicType == "POLYLINE" and len(points) == 5 and (points[0] == points[-1]).all()
    (x1, y1), (x2, y2) = points.min(0) / (width, height), points.max(0) / (width, height)
    return Box(float(x1), float(y1), float(x2), float(y2))
