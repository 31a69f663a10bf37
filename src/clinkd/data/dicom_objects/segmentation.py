"""The boxes of an answer as a DICOM segmentation: a segment for each, filled as a rectangle (PS3.3 A.51)."""

from __future__ import annotations

import copy
import io
from typing import Any

import highdicom
import numpy as np
import pydicom
from highdicom import seg
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes

from clinkd.data.dicom_objects.answer import Identity, Region, ReportedAnswer, derive_uid
from clinkd.data.dicom_objects.codes import CodeMap, clean_line, read_code_map
from clinkd.data.dicom_objects.headers import describe_object, finish_object, identify, name_region
from clinkd.data.dicom_objects.source import SourceFrame, open_source
from clinkd.data.images.grey import Refusal
from clinkd.data.images.limits import UPLOADS, FileLimits
from clinkd.records import Box

# The classes that highdicom is told: with a place in the patient, and without. It makes no segmentation of one frame of
# several, and none of several frames without such a place; here a frame is always an image of its own.
_PLACED, _UNPLACED = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"
_CATEGORIES = {
    "structures": codes.SCT.AnatomicalStructure,
    "findings": codes.SCT.MorphologicallyAbnormalStructure,
    None: codes.SCT.SpatialAndRelationalConcept,  # of a name that no class map has, all that is known
}


def write_segmentation(
    source: bytes, told: ReportedAnswer, code_map: CodeMap | None = None, limits: FileLimits = UPLOADS
) -> bytes:
    """A binary segmentation of the boxes of an answer about one frame of the DICOM `source`, as large as the frame.

    A box becomes the pixels whose centres lie in it, at least one. The place in the patient is that of the frame; where
    its header has none (CR, DX, US, photographs, a tile of a slide) only the reference to image and frame says it.
    Raises BadInput as `open_source`, and where the answer has no box.
    """
    with open_source(source, told.frame, limits) as frame:
        if not told.regions:
            raise Refusal("the answer has no box, so there is nothing to segment")
        identity = identify(told, frame)
        described = [
            _describe_segment(n, region, told, identity, code_map or read_code_map())
            for n, region in enumerate(told.regions, start=1)
        ]
        masks = np.stack([_fill_box(region.box, frame) for region in told.regions], axis=-1)
        ds = seg.Segmentation(
            source_images=[_make_source(frame)],
            pixel_array=masks[np.newaxis],
            segmentation_type=seg.SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            device_serial_number=clean_line(told.model.version) or "unknown",
            content_label="BOXES",
            content_description="Boxes as rectangles. Research use only, not for diagnosis.",
            **describe_object(told, identity, "SEG"),
        )
        _finish_references(ds, frame, identity)
        content = io.BytesIO()
        pydicom.dcmwrite(content, ds, enforce_file_format=True)
        return content.getvalue()


def _make_source(frame: SourceFrame) -> Dataset:
    """The frame as an image of its own, as highdicom takes it."""
    image = copy.deepcopy(frame.evidence)
    image.update(frame.geometry)
    image.SOPClassUID = _PLACED if frame.geometry else _UNPLACED
    image.Rows, image.Columns, image.Modality = frame.rows, frame.columns, "OT"
    return image


def _describe_segment(
    number: int, region: Region, told: ReportedAnswer, identity: Identity, code_map: CodeMap
) -> seg.SegmentDescription:
    label = clean_line(region.label)
    coded = code_map.find(label or "region")
    by_model = region.by == "model"
    name, version = (clean_line(text) or "unknown" for text in (told.model.name, told.model.version))
    return seg.SegmentDescription(
        number,
        label or "region",
        _CATEGORIES[coded.group],
        coded.code,
        seg.SegmentAlgorithmTypeValues.AUTOMATIC if by_model else seg.SegmentAlgorithmTypeValues.MANUAL,
        highdicom.AlgorithmIdentificationSequence(name, codes.DCM.ArtificialIntelligence, version)
        if by_model
        else None,
        tracking_uid=identity.tracking_uid(number),
        tracking_id=clean_line(name_region(number, label)),
        anatomic_regions=[coded.site] if coded.site else None,
    )


def _fill_box(box: Box, frame: SourceFrame) -> NDArray[np.uint8]:
    """A mask of the frame with the box filled."""
    mask = np.zeros((frame.rows, frame.columns), np.uint8)
    rows, columns = _round_ends(box.y1, box.y2, frame.rows), _round_ends(box.x1, box.x2, frame.columns)
    mask[rows, columns] = 1
    return mask


def _round_ends(low: float, high: float, pixels: int) -> slice:
    first = min(round(low * pixels), pixels - 1)
    return slice(first, max(round(high * pixels), first + 1))


def _finish_references(ds: Any, frame: SourceFrame, identity: Identity) -> None:
    """Name the frame where a segment refers to it, and derive the UID that highdicom draws."""
    finish_object(ds, frame)
    uid = derive_uid("dimensions", identity)
    for item in (*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
    if not frame.geometry:
        ds.PatientOrientation = None  # type 2 where there is no place
    for groups in (*ds.SharedFunctionalGroupsSequence, *ds.PerFrameFunctionalGroupsSequence):
        for derivation in groups.get("DerivationImageSequence", []) if frame.referred else []:
            for reference in derivation.SourceImageSequence:
                reference.ReferencedFrameNumber = frame.number
