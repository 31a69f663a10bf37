"""The material of docs/TUTORIAL.md: twenty drawn chest X-rays as DICOM, and a sheet of German heads with mistakes.

    python docs/material.py FOLDER

Writes FOLDER/scans, FOLDER/tabelle.csv with five mistakes, and FOLDER/tabelle-richtig.csv, where they are mended.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

PIXELS = 256
HEAD = ("Bild", "Struktur", "links", "oben", "rechts", "unten", "Frage", "Antwort")
Corners = tuple[int, int, int, int]
Row = list[str]


def draw_chest(number: int) -> tuple[NDArray[np.uint16], dict[str, Corners]]:
    """Levels 0..4095 of a drawn chest, and the boxes of its parts in pixels. The patient's left is at the right."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:PIXELS, :PIXELS] / PIXELS
    shift_x, shift_y, scale = rng.uniform(-0.08, 0.08), rng.uniform(-0.08, 0.08), rng.uniform(0.8, 1.1)
    places = {
        "right lung": (-0.22, 0, 0.16, 0.31),
        "left lung": (0.22, 0, 0.14, 0.29),
        "heart": (0.07, 0.16, 0.12, 0.13),
    }
    if number % 2:
        places["nodule"] = (rng.choice([-0.22, 0.22]), rng.uniform(-0.15, 0.05), 0.045, 0.045)
    levels = 0.62 + 0.05 * np.cos(y * 60 + 8 * np.abs(x - 0.5)) + rng.standard_normal(x.shape) * 0.02
    boxes = {}
    for name, (dx, dy, half_width, half_height) in places.items():
        cx, cy, rx, ry = 0.5 + shift_x + dx * scale, 0.5 + shift_y + dy * scale, half_width * scale, half_height * scale
        inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
        levels[inside] += -0.4 if "lung" in name else 0.3
        rows, columns = np.nonzero(inside)
        boxes[name] = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    return (np.clip(levels, 0, 1) * 4095).astype(np.uint16), boxes


def write_dicom(path: Path, levels: NDArray[np.uint16], number: int) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = f"2.25.{1000 + number}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.Modality, image.PatientID, image.PatientName = "CR", f"PAT-{number:02d}", "Drawn^Nobody"
    image.Rows = image.Columns = PIXELS
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.ViewPosition, image.WindowCenter, image.WindowWidth = "PA", 2048, 4096
    image.PixelData = levels.tobytes()
    image.save_as(path, enforce_file_format=True)


def list_rows(image: str, boxes: dict[str, Corners]) -> list[Row]:
    """A row for each box, the first one with a question about the whole image."""
    rows = [[image, name, *map(str, corners), "", ""] for name, corners in boxes.items()]
    rows[0][-2:] = ["Is there a nodule?", "yes" if "nodule" in boxes else "no"]
    return rows


def plant_mistakes(rows: list[Row]) -> list[Row]:
    """The rows with five mistakes, each in another image: those that a hand makes in a spreadsheet."""
    wrong = [list(row) for row in rows]
    first = {row[0]: number for number, row in reversed([*enumerate(rows)])}
    wrong[first["scan02.dcm"]][4] += ",5"  # a decimal comma
    wrong[first["scan05.dcm"]][0] = "skan05.dcm"  # a slip of the keys
    wrong[first["scan08.dcm"]][1] = "left lung"  # the other side
    wrong[first["scan11.dcm"]][4] = "2560"  # a digit too many
    wrong[first["scan14.dcm"]][7] = ""  # a question without an answer
    return wrong


def write_sheet(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerows([HEAD, *rows])


def write_material(folder: Path) -> None:
    (folder / "scans").mkdir(parents=True)
    rows: list[Row] = []
    for number in range(20):
        levels, boxes = draw_chest(number)
        write_dicom(folder / "scans" / f"scan{number:02d}.dcm", levels, number)
        rows += list_rows(f"scan{number:02d}.dcm", boxes)
    write_sheet(folder / "tabelle.csv", plant_mistakes(rows))
    write_sheet(folder / "tabelle-richtig.csv", rows)


if __name__ == "__main__":
    write_material(Path(sys.argv[1]))
