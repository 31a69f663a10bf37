"""What a DICOM file is, by its header, and what the status of an answer of the DICOM network means."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from enum import IntEnum
from typing import NamedTuple

from clinkd.pacs.archive import SeriesReference
from clinkd.records import BadInput, is_uid

_REASONS = {  # PS3.4, annexes B and C, and PS3.7, annex C; the first digits name a kind
    "A7": "it is out of resources",
    "A801": "it does not know the application entity title that is to receive",
    "A9": "the object does not match its class",
    "B0": "not all instances could be sent",
    "C": "it cannot process it",
    "FE": "it was cancelled",
    "0110": "a fault of the archive",
    "0117": "the instance has no valid UID",
    "0122": "it takes no objects of this class",
    "0124": "we are not authorised",
    "0211": "it does not offer this operation",
}


STORED_BEFORE = 0x0111  # the archive has the object already, and refuses to take it again: for a sender, success


class StoreStatus(IntEnum):
    """What is answered to C-STORE: PS3.4, table B.2-1."""

    SUCCESS = 0x0000
    NOT_ASKED = 0xB006  # "elements discarded", here all of them: a warning, at which a sender goes on
    OUT_OF_RESOURCES = 0xA700
    MISMATCH = 0xA900
    CANNOT_UNDERSTAND = 0xC000


class StoreRefusal(Exception):
    """An object is not kept: the status of the reply, and why, for whoever sent it."""

    def __init__(self, status: StoreStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class InstanceHeader(NamedTuple):
    """The UIDs of a DICOM file."""

    study: str
    series: str
    instance: str
    sop_class: str
    transfer_syntax: str


def read_instance_header(content: bytes) -> InstanceHeader:
    """The UIDs of a DICOM file. Raises BadInput where it is damaged or has none."""
    from pydicom import dcmread

    silence_libraries()
    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
    try:
        ds = dcmread(io.BytesIO(content), stop_before_pixels=True, specific_tags=list(names))
        uids = [str(ds[name].value) for name in names] + [str(ds.file_meta.TransferSyntaxUID)]
    except Exception as error:  # whatever pydicom meets in a damaged file; its message may quote the header
        raise BadInput(f"not a whole DICOM file ({type(error).__name__})") from None
    if not all(map(is_uid, uids)):
        raise BadInput("a DICOM file without valid UIDs")
    return InstanceHeader(*uids)


class ImageUnusable(BadInput):
    """An image came that is damaged, or another one; it would come so again."""


def check_instance(content: bytes, series: SeriesReference, instance: str) -> None:
    """Raises ImageUnusable for a file that is damaged, or not the instance of a series that was asked for."""
    try:
        header = read_instance_header(content)
    except BadInput as error:
        raise ImageUnusable(str(error)) from None
    if (header.study, header.series, header.instance) != (series.study, series.series, instance):
        raise ImageUnusable("the archive sent another image, which was left out")


def explain_status(status: int) -> str:
    """The status of an answer in words. The archive's own comment is not repeated: it may hold a name."""
    code = f"{status:04X}"
    reason = next((_REASONS[code[:n]] for n in (4, 2, 1) if code[:n] in _REASONS), "no reason that the standard names")
    return f"{reason} (status {code})"


def demand_extra() -> None:
    """Raises BadInput where a package of the extra `pacs` is missing; those that are there are silenced."""
    if missing := [name for name in ("pynetdicom", "dicomweb_client") if importlib.util.find_spec(name) is None]:
        raise BadInput(f"{' and '.join(missing)}: not installed: pip install 'clinkd[pacs]'")
    silence_libraries()


def silence_libraries() -> None:
    """These loggers and warnings would write queries, values and names, perhaps of a patient."""
    libraries = ("pydicom", "pynetdicom", "dicomweb_client", "urllib3", "retrying")
    warnings.filterwarnings("ignore", module=rf"({'|'.join(libraries)})\b")
    for name in libraries:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
