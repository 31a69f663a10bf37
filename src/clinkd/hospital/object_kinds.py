"""What a DICOM object that arrived is, by its header alone."""

from __future__ import annotations

import io
from typing import NamedTuple

from clinkd.data.images import kind_of
from clinkd.data.images.dicom_header import open_header
from clinkd.data.images.limits import UPLOADS
from clinkd.hospital.worklist import ArrivedImage
from clinkd.pacs import StoreRefusal, StoreStatus
from clinkd.records import BadInput, is_uid

PLACE = "the image"
_FIELDS = ("SOPInstanceUID", "SOPClassUID", "BodyPartExamined")  # in no order but that the last of the header is last
_LEVELS = ("Study", "Series", "SOP")


class ObjectKind(NamedTuple):
    """What a DICOM object is, by the first elements of its header. `image`: by its class; `decodable`: whether pixels
    that are compressed so are read."""

    modality: str
    body_part: str
    image: bool
    decodable: bool


def read_kind(content: bytes) -> ObjectKind:
    """Raises BadInput for what is no readable DICOM, and StoreRefusal where its own UIDs are not those under which it
    was sent."""
    from pydicom.uid import UID

    stream = io.BytesIO(content)
    if not kind_of(stream).reportable:
        raise BadInput(f"{PLACE}: not a DICOM")
    with open_header(stream, PLACE, UPLOADS, also=_FIELDS, until=_FIELDS[-1]) as header:
        ds, decodable = header.ds, header.decodable
        sent = [str(ds.file_meta.get(f"MediaStorage{name}") or "") for name in _FIELDS[:2]]
        stated = [str(ds.get(name) or "") for name in _FIELDS[:2]]
        modality, body_part = _read_term(ds.get("Modality")), _read_term(ds.get("BodyPartExamined"))
    if not all(map(is_uid, stated)):
        raise BadInput(f"{PLACE}: its own UID, or that of its class, is missing or not valid")
    if any(name and name != own for name, own in zip(sent, stated, strict=True)):
        raise StoreRefusal(StoreStatus.MISMATCH, "its UIDs are not those of the request")
    return ObjectKind(modality, body_part, "Image" in UID(stated[1]).keyword, decodable)


def read_arrival(content: bytes, kind: ObjectKind) -> ArrivedImage:
    """The facts of a DICOM image of this kind, from its header alone. Raises BadInput for what is no readable one."""
    with open_header(io.BytesIO(content), PLACE, UPLOADS, also=_FIELDS) as header:
        study, series, instance = [str(header.ds.get(f"{level}InstanceUID") or "") for level in _LEVELS]
        frames = header.frames
    if not all(map(is_uid, (study, series, instance))):
        raise BadInput(f"{PLACE}: the UID of its study, its series or itself is missing or not valid")
    return ArrivedImage(study, series, instance, kind.modality, kind.body_part, frames)


def _read_term(value: object) -> str:
    """A word of the header if it has the form of one (VR CS), otherwise ""; no free text passes."""
    word = str(value or "").strip().upper()
    return word if len(word) <= 16 and word.isascii() and word.replace("_", "").replace(" ", "").isalnum() else ""
