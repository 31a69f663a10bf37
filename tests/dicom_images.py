"""Small DICOM images of every form that objects refer to: single frames, films, enhanced images, tiles, photographs."""

from __future__ import annotations

import io

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

ROWS, COLUMNS = 32, 48
FORMS = {  # class, modality, frames, whether colour, where its place in the patient stands
    "CT": ("1.2.840.10008.5.1.4.1.1.2", "CT", 1, False, "header"),
    "MR": ("1.2.840.10008.5.1.4.1.1.4", "MR", 1, False, "header"),
    "PET": ("1.2.840.10008.5.1.4.1.1.128", "PT", 1, False, "header"),
    "CR": ("1.2.840.10008.5.1.4.1.1.1", "CR", 1, False, ""),
    "DX": ("1.2.840.10008.5.1.4.1.1.1.1", "DX", 1, False, ""),
    "US": ("1.2.840.10008.5.1.4.1.1.6.1", "US", 1, True, ""),
    "US film": ("1.2.840.10008.5.1.4.1.1.3.1", "US", 4, True, ""),
    "photograph": ("1.2.840.10008.5.1.4.1.1.77.1.4", "XC", 1, True, ""),
    "enhanced CT": ("1.2.840.10008.5.1.4.1.1.2.1", "CT", 4, False, "groups"),
    "enhanced MR": ("1.2.840.10008.5.1.4.1.1.4.1", "MR", 4, False, "groups"),
    "slide": ("1.2.840.10008.5.1.4.1.1.77.1.6", "SM", 4, True, ""),
}


def make_image(
    form: str,
    seed: int = 0,
    mark: tuple[int, int, int, int] | None = None,
    pictures: NDArray[np.uint8] | None = None,
    **elements: str,
) -> bytes:
    """An image of a form, with a bright `mark` (left, top, right, bottom in pixels) in each frame, or `pictures`, as
    many as it has frames: [frames, rows, columns, 3].

    Those of one seed are of one patient, study and frame of reference.
    """
    sop_class, modality, frames, colour, place = FORMS[form]
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = UID(sop_class)
    ds.SOPInstanceUID = generate_uid(entropy_srcs=[form, "image", str(seed)])
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.StudyInstanceUID = generate_uid(entropy_srcs=["study", str(seed)])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[form, "series", str(seed)])
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = f"P{seed}", "Doe^Jane", "19700101", "F"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20260102", "101500", "1", f"A{seed}"
    ds.ReferringPhysicianName, ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "", modality, 1, 1
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = ROWS, COLUMNS, 8, 8, 7, 0
    ds.SamplesPerPixel, ds.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        ds.PlanarConfiguration = 0
    if FORMS[form][2] > 1:
        ds.NumberOfFrames = frames
    if place:
        ds.FrameOfReferenceUID = generate_uid(entropy_srcs=["place", str(seed)])
        _place(ds, frames, place)
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    shape = (frames, ROWS, COLUMNS, 3 if colour else 1)
    pixels = np.random.default_rng(seed).integers(0, 100 if mark else 256, shape, np.uint8)
    if pictures is not None:
        pixels = pictures if colour else pictures.mean(-1, keepdims=True).astype(np.uint8)
        ds.Rows, ds.Columns = pictures.shape[1:3]
    if mark:
        left, top, right, bottom = mark
        pixels[:, top:bottom, left:right] = 255
    ds.PixelData = pixels.tobytes()
    content = io.BytesIO()
    pydicom.dcmwrite(content, ds, enforce_file_format=True)
    return content.getvalue()


def _place(ds: Dataset, frames: int, where: str) -> None:
    position, orientation, spacing = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    spacing.PixelSpacing, spacing.SliceThickness = [0.5, 0.5], 2.0
    if where == "header":
        position.ImagePositionPatient = [-10, -20, 30]
        for part in (position, orientation, spacing):
            ds.update(part)
        return
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [spacing]
    ds.SharedFunctionalGroupsSequence, per_frame = [shared], []
    for number in range(frames):
        position, groups = Dataset(), Dataset()
        position.ImagePositionPatient = [-10, -20, 30 + 2.0 * number]
        groups.PlanePositionSequence = [position]
        per_frame.append(groups)
    ds.PerFrameFunctionalGroupsSequence = per_frame
