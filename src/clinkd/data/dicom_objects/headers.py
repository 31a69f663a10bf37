"""What all objects have: UIDs, dates, the model as the device that made them, and the notice."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from highdicom import ContentQualificationValues
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom import Dataset

from clinkd.data.dicom_objects.answer import SCHEME, Identity, ReportedAnswer
from clinkd.data.dicom_objects.codes import clean_line
from clinkd.data.dicom_objects.source import SourceFrame


def identify(told: ReportedAnswer, frame: SourceFrame) -> Identity:
    """The UIDs of an answer about a frame."""
    image = frame.evidence
    study, series, instance = image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID
    return Identity.of(told, str(study), str(series), (str(instance), frame.number))


def describe_object(told: ReportedAnswer, identity: Identity, modality: str) -> dict[str, Any]:
    """The arguments that every object of highdicom takes."""
    moment = (told.answered or datetime.now()).replace(microsecond=0)
    return {
        "series_instance_uid": identity.series_uid(modality),
        "series_number": 1,
        "series_description": "ClinKD, research use only",
        "sop_instance_uid": identity.instance_uid(modality),
        "instance_number": identity.instance_number(modality),
        "content_date": moment.date(),
        "content_time": moment.time(),
        "manufacturer": "ClinKD",
        "manufacturer_model_name": clean_line(told.model.name) or "unknown",
        "software_versions": clean_line(told.model.version) or "unknown",
        "content_qualification": ContentQualificationValues.RESEARCH,
        "coding_schemes": [CodingSchemeIdentificationItem(SCHEME, name="ClinKD", version="1")],
        "specific_character_set": "ISO_IR 192",
    }


def finish_object(ds: Dataset, frame: SourceFrame) -> None:
    """Undo what highdicom could not be told: the class of the image, and the moment of making, which would make a
    repeat another file."""
    frame.restore_class(ds)
    ds.InstanceCreationDate, ds.InstanceCreationTime = ds.ContentDate, ds.ContentTime
    for equipment in ds.ContributingEquipmentSequence:
        equipment.ContributionDateTime = f"{ds.ContentDate:%Y%m%d}{ds.ContentTime:%H%M%S}"


def name_region(number: int, label: str) -> str:
    """A tracking identifier."""
    return f"{number}: {label}".strip()
