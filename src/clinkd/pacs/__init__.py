"""Conversations with an archive of DICOM images, by DICOMweb or by the DICOM network: find, fetch, store, receive."""

from clinkd.pacs.addresses import AllowedPeer, ReceiverAddress
from clinkd.pacs.archive import Archive, ArchiveUnreachable, SeriesIncomplete, SeriesReference, StudyQuery, TlsFiles
from clinkd.pacs.connect import connect
from clinkd.pacs.instance import InstanceHeader, StoreRefusal, StoreStatus, read_instance_header
from clinkd.pacs.limits import ReceiverLimits
from clinkd.pacs.receiver import Receiver

__all__ = [
    "AllowedPeer",
    "Archive",
    "ArchiveUnreachable",
    "InstanceHeader",
    "Receiver",
    "ReceiverAddress",
    "ReceiverLimits",
    "SeriesIncomplete",
    "SeriesReference",
    "StoreRefusal",
    "StoreStatus",
    "StudyQuery",
    "TlsFiles",
    "connect",
    "read_instance_header",
]
