"""Conversations with an archive of DICOM images, by DICOMweb or by the DICOM network: find, fetch, store."""

from clinkd.pacs.limits import ReceiverLimits
from clinkd.pacs.receiver import AllowedPeer, Receiver, ReceiverAddress, StoreRefusal

__all__ = [
    "AllowedPeer",
    "Receiver",
    "ReceiverAddress",
    "ReceiverLimits",
    "StoreRefusal",
]
