"""The image that an object refers to: its frame, and the elements of its header that the object repeats."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.valuerep import validate_value

from clinkd.data.images import kind_of
from clinkd.data.images.dicom_header import Header, open_header, read_numbers
from clinkd.data.images.grey import Refusal
from clinkd.data.images.kind import choose_frame
from clinkd.data.images.limits import FileLimits
from clinkd.data.images.upload import PLACE, open_upload
from clinkd.records import BadInput, is_uid

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_REQUIRED = (  # of the patient and the study: type 2, so they are empty where unknown
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_OPTIONAL = (  # the last ones of the image: a segmentation of it repeats them
    "IssuerOfPatientID", "StudyDescription", "PatientAge", "PatientSize", "PatientWeight",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip
_GEOMETRY = {  # of a frame: how many numbers, and the functional group that holds them in an enhanced image
    "ImagePositionPatient": (3, "PlanePositionSequence"),
    "ImageOrientationPatient": (6, "PlaneOrientationSequence"),
    "PixelSpacing": (2, "PixelMeasuresSequence"),
    "SliceThickness": (1, "PixelMeasuresSequence"),
}
_READ = (*_UIDS, *_REQUIRED, *_OPTIONAL, *_GEOMETRY, "SpecificCharacterSet", "FrameOfReferenceUID")


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """A frame of an image. `evidence`: elements of its header that objects repeat; `geometry`: where it lies in the
    patient, empty where its header does not say."""

    evidence: Dataset
    geometry: Dataset
    number: int
    frames: int  # of the whole image
    columns: int
    rows: int

    @property
    def referred(self) -> list[int] | None:
        """The number of the frame as a reference has it: None where the image has one only."""
        return [self.number] if self.frames > 1 else None

    def restore_class(self, ds: Dataset) -> None:
        """Put the class of the image into all references. highdicom refuses unknown classes, such as retired ones, so
        objects are made with a stand-in."""
        for element in ds.iterall():
            if element.keyword == "ReferencedSOPClassUID":
                element.value = self.evidence.SOPClassUID


@contextlib.contextmanager
def open_source(source: bytes, frame: int | None, limits: FileLimits) -> Iterator[SourceFrame]:
    """A frame (by default the first) of a DICOM. No pixel is decoded. Whatever fails inside becomes BadInput.

    Raises BadInput where `source` is no readable DICOM image, lacks a UID that a reference needs, or has no such frame.
    """
    stream = open_upload(source)
    if not kind_of(stream).reportable:
        raise BadInput(f"{PLACE}: not a DICOM, so no DICOM object can refer to it; give the DICOM file itself")
    with open_header(stream, PLACE, limits, also=_READ) as header:
        number = choose_frame(1 if frame is None else frame, header.frames, stream, PLACE)
        evidence = _copy_evidence(header.ds)
        geometry = _read_geometry(header, number - 1) if evidence.SOPClassUID != WHOLE_SLIDE else Dataset()
        yield SourceFrame(evidence, geometry, number, header.frames, header.columns, header.rows)


def _copy_evidence(ds: Dataset) -> Dataset:
    """The elements of the source that an object repeats, empty where the standard forbids their value."""
    evidence = Dataset()
    for keyword in _UIDS:
        uid = str(ds.get(keyword) or ds.file_meta.get(f"MediaStorage{keyword}") or "").strip()
        if not is_uid(uid):
            raise Refusal(f"its {keyword} is missing or not valid, so no object can refer to it; mend the header")
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


def _read_geometry(header: Header, index: int) -> Dataset:
    """Place, direction and spacing of a frame in its frame of reference, all or none of it."""
    geometry = Dataset()
    uid = str(header.ds.get("FrameOfReferenceUID") or "").strip()
    for keyword, (count, group) in _GEOMETRY.items():
        numbers = next(
            (found for place in _list_places(header.ds, index, group) if (found := read_numbers(place, keyword))), []
        )
        if len(numbers) != count or not is_uid(uid):
            return Dataset()
        setattr(geometry, keyword, numbers if count > 1 else numbers[0])
    geometry.FrameOfReferenceUID = uid
    return geometry


def _list_places(ds: Dataset, index: int, group: str) -> Iterator[Any]:
    """Where an element may stand: in a group of the frame, in one of all frames, or at the top."""
    for sequence, position in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        items = ds.get(sequence) or []
        if position < len(items) and (inner := items[position].get(group)):
            yield inner[0]
    yield ds
