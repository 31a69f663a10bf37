"""DICOM segmentations and structured reports, as names and boxes in the images that they refer to.

A segment (PS3.3 A.51) becomes a box for each connected part of it in an image, under its label. A region of a report
(SCOORD, PS3.3 C.18.6: corners in pixels, (0, 0) is the corner of the first pixel) becomes the box around it, under the
finding of its group (TID 1410 and 1411, PS3.16) or else the group's tracking identifier. Images are known by their SOP
instance UIDs, never by file names.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clinkd.data.images.dicom_header import open_header
from clinkd.data.readers.masks import find_regions
from clinkd.data.readers.rows import FieldError
from clinkd.data.readers.shapes import Points, extent
from clinkd.records import BadInput, Box

if TYPE_CHECKING:
    from pydicom import Dataset

_SEGMENTATIONS = {"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"}  # Segmentation, Label Map
_REPORTS = "1.2.840.10008.5.1.4.1.1.88."  # all storage classes of structured reports begin so
_FINDINGS = {"121071", "111059"}  # Finding, Single Image Finding
_TRACKING_IDENTIFIER = "112039"


class DicomIdentity(NamedTuple):
    """What a file is, and under which UID others refer to it; from its first bytes."""

    sop_class: str
    instance: str

    @property
    def annotates(self) -> bool:
        """Whether it is a segmentation or a structured report."""
        return self.sop_class in _SEGMENTATIONS or self.sop_class.startswith(_REPORTS)


class DicomBox(NamedTuple):
    """A named box in a frame (from 1) of an image. `rows` and `columns`: the size of the image, 0 where not stated."""

    instance: str
    frame: int
    name: str
    corners: tuple[float, float, float, float]  # x1, y1, x2, y2; pixels, or fractions where the size is stated
    rows: int = 0
    columns: int = 0


def identify(path: Path) -> DicomIdentity:
    """The class and the UID in the file meta information, "" where there is none."""
    from pydicom.filereader import read_file_meta_info

    try:
        meta = read_file_meta_info(path)
    except Exception:  # a file without a preamble, or a damaged one; as an image it is read or refused
        return DicomIdentity("", "")
    return DicomIdentity(str(meta.get("MediaStorageSOPClassUID", "")), str(meta.get("MediaStorageSOPInstanceUID", "")))


def read_annotations(path: Path, speck_share: float, known: frozenset[str], notes: Counter[str]) -> list[DicomBox]:
    """The boxes of a segmentation or a report. `known`: the UIDs of the images that there are.

    Raises FieldError where the file cannot be read, or refers to an image that is not there.
    """
    identity = identify(path)
    try:
        if identity.sop_class in _SEGMENTATIONS:
            with open_header(path, path.name):  # checks the sizes
                pass
            found = list(_read_segmentation(path, speck_share, known, notes))
        else:
            found = list(_read_report(path, notes))
    except (BadInput, FieldError) as error:
        raise error if isinstance(error, FieldError) else FieldError("file", path.name, str(error)) from None
    except Exception as error:  # of a library, whose message may quote the header
        why = f"its content cannot be read ({type(error).__name__}); export it anew, or leave it out"
        raise FieldError("file", path.name, why) from None
    _demand_images({annotation.instance for annotation in found}, known)
    return found


def _demand_images(wanted: Iterable[str], known: frozenset[str]) -> None:
    if missing := sorted(set(wanted) - known):
        why = f"refers to {len(missing)} images that are not in the folder; bring them, or leave this file out"
        raise FieldError("image", missing[0], why)


# ---- segmentations --------------------------------------------------------------------------------------------------


def _read_segmentation(
    path: Path, speck_share: float, known: frozenset[str], notes: Counter[str]
) -> Iterator[DicomBox]:
    from highdicom import seg

    segmentation = seg.segread(path)
    numbers = list(segmentation.segment_numbers)
    names = [str(segmentation.get_segment_description(n).segment_label) for n in numbers]
    for instance, frame in _list_source_frames(segmentation):
        _demand_images([instance], known)
        about: dict[str, Any] = {"segment_numbers": numbers, "ignore_spatial_locations": True}
        about["assert_missing_frames_are_empty"] = True  # a frame without a pixel of a segment may be left out
        if frame is None:
            pixels = segmentation.get_pixels_by_source_instance([instance], **about)
        else:
            pixels = segmentation.get_pixels_by_source_frame(instance, [frame], **about)
        for n, name in enumerate(names):
            mask = pixels[0, :, :, n] >= 0.5
            boxes, specks = find_regions(mask, speck_share)
            if specks:
                notes[f"specks below {speck_share:g} of the picture, beside a larger part"] += specks
            for box in boxes:
                yield DicomBox(instance, frame or 1, name, box.corners, *mask.shape)


def _list_source_frames(segmentation: Dataset) -> list[tuple[str, int | None]]:
    """The images that segments were drawn on, and the frames of those with several.

    Raises FieldError where frames name none.
    """
    sources: dict[tuple[str, int | None], None] = {}
    shared = segmentation.get("SharedFunctionalGroupsSequence", [])
    for groups in [*segmentation.PerFrameFunctionalGroupsSequence, *shared]:
        for derivation in groups.get("DerivationImageSequence", []):
            for source in derivation.get("SourceImageSequence", []):
                frames = source.get("ReferencedFrameNumber")
                for frame in frames if isinstance(frames, Sequence) else [frames]:
                    sources[str(source.ReferencedSOPInstanceUID), frame and int(frame)] = None
    if not sources:
        why = "its frames do not name the images that they were drawn on, and positions alone are not compared"
        raise FieldError("DerivationImageSequence", None, why)
    return list(sources)


# ---- structured reports ---------------------------------------------------------------------------------------------


def _read_report(path: Path, notes: Counter[str]) -> Iterator[DicomBox]:
    import pydicom

    report = pydicom.dcmread(path, stop_before_pixels=True)
    yield from _walk_items(report.get("ContentSequence", []), notes)


def _walk_items(items: Sequence[Dataset], notes: Counter[str]) -> Iterator[DicomBox]:
    name = _find_name(items)
    for item in items:
        kind = item.get("ValueType")
        inner = item.get("ContentSequence", [])
        if kind == "SCOORD":
            image = next((i for i in inner if i.get("ValueType") == "IMAGE"), None)
            points = _list_points(str(item.get("GraphicType")), [float(v) for v in item.get("GraphicData", [])])
            if image is None or points is None or not name:
                notes["regions of reports without an extent, an image or a name"] += 1
                continue
            reference = image.ReferencedSOPSequence[0]
            frames = reference.get("ReferencedFrameNumber", 1)
            for frame in frames if isinstance(frames, Sequence) else [frames]:
                yield DicomBox(str(reference.ReferencedSOPInstanceUID), int(frame), name, extent(points))
        elif kind == "SCOORD3D":
            notes["regions of reports in the patient's coordinates, which are not used"] += 1
        else:
            yield from _walk_items(inner, notes)


def _find_name(items: Sequence[Dataset]) -> str:
    """The finding of a group, or else its tracking identifier; "" where it has neither."""
    tracking = ""
    for item in items:
        concept = item.get("ConceptNameCodeSequence", [])
        code = str(concept[0].get("CodeValue", "")) if concept else ""
        if code in _FINDINGS and item.get("ConceptCodeSequence"):
            return str(item.ConceptCodeSequence[0].get("CodeMeaning", ""))
        if code == _TRACKING_IDENTIFIER:
            tracking = str(item.get("TextValue", ""))
    return tracking


def _list_points(kind: str, data: Sequence[float]) -> Points | None:
    """The points around a region, None where it has no extent (a single point)."""
    points = list(zip(data[::2], data[1::2], strict=True))
    if kind == "CIRCLE":
        (x, y), on_it = points
        radius = math.dist((x, y), on_it)
        return [(x - radius, y - radius), (x + radius, y + radius)]
    if kind == "ELLIPSE":  # the ends of both axes: its extent is half of each axis, added as squares
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = points
        x, y = (ax + bx) / 2, (ay + by) / 2
        width, height = math.hypot(ax - bx, cx - dx) / 2, math.hypot(ay - by, cy - dy) / 2
        return [(x - width, y - height), (x + width, y + height)]
    return points if kind in ("POLYLINE", "POLYGON", "MULTIPOINT") and len(points) > 2 else None


def make_box(annotation: DicomBox, rows: int, columns: int) -> Box:
    """The box in fractions of an image of this size. Raises FieldError where the annotation is of another size."""
    if annotation.rows:
        if (annotation.rows, annotation.columns) != (rows, columns):
            sizes = f"{annotation.columns}x{annotation.rows} on an image of {columns}x{rows}"
            raise FieldError("segment", annotation.name, f"a mask of {sizes} pixels; bring the image it was drawn on")
        return Box(*annotation.corners)
    x1, y1, x2, y2 = annotation.corners
    try:
        return Box(x1 / columns, y1 / rows, x2 / columns, y2 / rows)
    except BadInput as error:
        raise FieldError("region", annotation.name, str(error)) from None
