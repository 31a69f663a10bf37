"""Conversations with an archive of DICOM images, by DICOMweb or by the DICOM network: find, fetch, store."""

from clinkd.pacs.archive import Archive, ArchiveUnreachable, SeriesReference, StudyQuery, TlsFiles
from clinkd.pacs.connect import connect
from clinkd.pacs.instance import InstanceHeader, is_uid, read_instance_header

__all__ = [
    "Archive",
    "ArchiveUnreachable",
    "InstanceHeader",
    "SeriesReference",
    "StudyQuery",
    "TlsFiles",
    "connect",
    "is_uid",
    "read_instance_header",
]
