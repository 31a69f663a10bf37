"""NIfTI volumes: the same anatomy is the same picture in any order of storage, and hostile headers fill no memory."""

from __future__ import annotations

import gzip
import io
import itertools
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray

from clinkd.data.images import is_named_as_image, kind_of, nifti, open_image, read_image_size
from clinkd.data.images.identifying import identifying_texts
from clinkd.data.images.nifti import read_volume_header
from clinkd.data.images.upload import decode_frame
from clinkd.data.readers import detect_form, read_rows
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, ImageRef, Laterality, Modality

SHAPE = (6, 5, 4)  # x to the right, y to the front, z to the head
STORED = [
    np.array([*zip(order, signs, strict=True)])
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]

AXIAL = Laterality("right", "the affine")


def anatomy() -> NDArray[np.int16]:
    """A CT in which no two slices, rows or columns are alike."""
    return np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)


def affine_of(spacing: tuple[float, ...] = (1, 1, 1)) -> NDArray[np.float64]:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -40, 7, 100
    return affine


def store(
    file: Path, values: NDArray[Any], affine: NDArray[Any], ornt: NDArray[Any] | None = None, kind: Any = None
) -> Path:
    """Save RAS values in another order of axes: the affine says where they point."""
    if ornt is not None:
        ras = np.array([[0, 1], [1, 1], [2, 1]])
        turn = ornt_transform(ras, ornt)
        affine = affine @ inv_ornt_aff(turn, values.shape[:3])
        values = apply_orientation(values, turn)
    nibabel.save((kind or nibabel.Nifti1Image)(values, affine), file)
    return file


def picture(root: Path, name: str, window: str | None = None) -> NDArray[np.uint8]:
    return np.asarray(open_image(root, ImageRef(name, window=window)))[..., 0]


def expected(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    return (np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255).round().astype(np.uint8)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 0.7, 5), (1, 6, 1), (4, 0.5, 0.5)], ids=str)
def test_the_same_anatomy_is_the_same_picture_in_any_order(tmp_path: Path, spacing: tuple[float, ...]) -> None:
    values, affine = anatomy(), affine_of(spacing)
    planes = {
        "axial": [values[::-1, ::-1, k].T for k in range(4)],
        "coronal": [values[::-1, k, ::-1].T for k in range(5)],
        "sagittal": [values[k, ::-1, ::-1].T for k in range(6)],
    }
    plane = {(1, 6, 1): "coronal", (4, 0.5, 0.5): "sagittal"}.get(spacing, "axial")
    for number, ornt in enumerate(STORED[len(plane) % 4 :: 4] if spacing != (1, 1, 1) else STORED):
        store(tmp_path / f"{number}.nii", values, affine, ornt)
        k = number % len(planes[plane])
        shown = picture(tmp_path, f"{number}.nii#{k + 1}", "0/2000")
        assert (shown == expected(planes[plane][k], -1000, 1000)).all(), (plane, ornt, k)
    with pytest.raises(BadInput, match=f"frame {len(planes[plane]) + 1} of {len(planes[plane])}"):
        picture(tmp_path, f"0.nii#{len(planes[plane]) + 1}")


def test_an_independent_reading_with_nibabel_agrees(tmp_path: Path) -> None:
    """nibabel's closest canonical image of an oblique scan with slope, in both versions, compressed and not."""
    values, affine = anatomy(), affine_of((0.8, 0.8, 3))
    turn = np.deg2rad(20)
    affine[:3, :3] = (
        np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]) @ affine[:3, :3]
    )
    for name, kind in (
        ("a.nii", nibabel.Nifti1Image),
        ("b.nii.gz", nibabel.Nifti1Image),
        ("c.nii.gz", nibabel.Nifti2Image),
    ):
        scan = kind(values[::-1], affine @ np.diag([-1, 1, 1, 1]))
        scan.header.set_slope_inter(0.5, -3)
        nibabel.save(scan, tmp_path / name)
        ras = nibabel.as_closest_canonical(nibabel.load(tmp_path / name)).get_fdata()
        assert kind_of(tmp_path / name).name == "NIfTI" and is_named_as_image(name)
        assert read_image_size(tmp_path, f"{name}#2", "x") == ImageRef(f"{name}#2", 6, 5, laterality=AXIAL)
        for k in range(4):
            low, high = np.percentile(ras, (0.5, 99.5))
            assert (picture(tmp_path, f"{name}#{k + 1}") == expected(ras[::-1, ::-1, k].T, low, high)).all()
            flat = ras[::-1, ::-1, k].T
            assert (picture(tmp_path, f"{name}#{k + 1}", "full") == expected(flat, flat.min(), flat.max())).all()


def test_presets_are_for_values_that_may_be_hounsfield_units(tmp_path: Path) -> None:
    store(tmp_path / "ct.nii", anatomy(), affine_of())
    store(tmp_path / "mr.nii", np.abs(anatomy()), affine_of())
    lung = expected(anatomy()[::-1, ::-1, 1].T, -600 - 750, -600 + 750)
    assert (picture(tmp_path, "ct.nii#2", "lung") == lung).all()
    with pytest.raises(BadInput, match="mr.nii#2: window 'lung' is for CT .* least value is 7"):
        picture(tmp_path, "mr.nii#2", "lung")
    for window, told in (("1", "hold no windows"), ("lungs", "is not known")):
        with pytest.raises(BadInput, match=told):
            read_image_size(tmp_path, "ct.nii#2", "x", window)


def test_four_dimensions_follow_one_another_and_nan_is_black(tmp_path: Path) -> None:
    values = np.stack([anatomy(), 2 * anatomy()], axis=-1).astype(np.float32)
    values[0, 0, 0, 1] = np.nan
    store(tmp_path / "a.nii.gz", values, affine_of())
    assert read_volume_header(tmp_path / "a.nii.gz", "x").volumes == 2
    second = picture(tmp_path, "a.nii.gz#5", "0/4000")
    assert second[-1, -1] == 0
    assert (second == expected(np.nan_to_num(values[::-1, ::-1, 0, 1].T, nan=-9e9), -2000, 2000)).all()
    with pytest.raises(BadInput, match="frame 9 of 8"):
        picture(tmp_path, "a.nii.gz#9")


def test_slices_of_one_file_inflate_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path / "a.nii.gz", anatomy(), affine_of())
    loads: list[str] = []
    load = nifti._load_volume
    monkeypatch.setattr(nifti, "_load_volume", lambda *args: loads.append("once") or load(*args))
    first = [picture(tmp_path, f"a.nii.gz#{k}") for k in (1, 2, 3, 4)]
    assert loads == ["once"]
    store(tmp_path / "a.nii.gz", anatomy()[:, ::-1], affine_of())
    assert not (picture(tmp_path, "a.nii.gz#1") == first[0]).all(), "a file that changed is read again"


def damage(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def test_hostile_files_are_refused_in_a_line(tmp_path: Path) -> None:
    good = store(tmp_path / "good.nii", anatomy(), affine_of()).read_bytes()
    second = store(tmp_path / "second.nii", anatomy(), affine_of(), kind=nibabel.Nifti2Image).read_bytes()
    nan = np.full(4, np.nan, np.float32).tobytes()
    zipped = gzip.compress(good)
    cases = {
        "cut": (good[:-1], "where its header asks for"),
        "cut in the header": (good[:200], "cut: 200 bytes"),
        "magic": (damage(good, 344, b"XYZ"), "not NIfTI"),
        "pair": (damage(good, 344, b"ni1"), ".img file"),
        "dims": (damage(good, 42, b"\xff\x7f" * 3), "bytes in all"),
        "dims of 2^31": (damage(second, 24, (1 << 31).to_bytes(8, "little") * 3), "bytes in all"),
        "negative": (damage(good, 42, b"\xff\xff"), "which no volume has"),
        "no dimension": (damage(good, 40, b"\0\0"), "which no volume has"),
        "five": (damage(good, 40, b"\x05\0\x06\0\x05\0\x02\0\x01\0\x02\0"), "5 dimensions"),
        "type": (damage(good, 70, b"\x80\0"), "of the type"),
        "unknown type": (damage(good, 70, b"\x33\x33"), "header cannot be read"),
        "offset": (damage(good, 108, np.float32(1e9 * 2).tobytes()), "begin at byte"),
        "NaN affine": (damage(good, 280, nan * 3), "its affine"),
        "flat affine": (damage(good, 280, b"\0" * 16), "its affine"),
        "gzip cut": (zipped[: len(zipped) // 2], "gzip stream is cut"),
        "gzip check": (damage(zipped, len(zipped) - 8, b"ABCD"), "gzip stream is cut or damaged"),
        "bomb": (gzip.compress(b"\0" * (32 << 20)), "not NIfTI"),
        "text": (b"image,name\n" * 99, "not NIfTI"),
    }  # fmt: skip
    for name, (content, told) in cases.items():
        file = tmp_path / f"{name}.nii{'.gz' if content[:2] == zipped[:2] else ''}"
        file.write_bytes(content)
        with pytest.raises(BadInput, match=told) as error:
            picture(tmp_path, f"{file.name}#1")
        assert f"image {file.name}#1: " in str(error.value) and "\n" not in str(error.value), name


def test_an_upload_is_known_by_its_bytes(tmp_path: Path) -> None:
    content = store(tmp_path / "a.nii", anatomy(), affine_of()).read_bytes()
    shown = decode_frame(content, 2, "lung")
    assert (shown.facts.frames, shown.number, shown.hounsfield, shown.picture.size) == (4, 2, True, (6, 5))
    with pytest.raises(BadInput, match="inflate it first"):
        decode_frame(gzip.compress(content), 2)
    assert kind_of(io.BytesIO(gzip.compress(b"something else"))).name == "picture"
    (tmp_path / "empty.nii").write_bytes(b"")
    assert kind_of(tmp_path / "empty.nii").name == kind_of(tmp_path / "none.nii").name == "picture"


def test_texts_of_a_header_are_scrubbed(tmp_path: Path) -> None:
    scan = nibabel.Nifti1Image(anatomy(), affine_of())
    scan.header["descrip"] = b"Kanarienvogel Zqxw"
    scan.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, b'{"PatientName": "Meier^Ada"}'))
    nibabel.save(scan, tmp_path / "a.nii.gz")
    assert {"Kanarienvogel Zqxw", "Meier^Ada"} <= identifying_texts(tmp_path, ImageRef("a.nii.gz#1"))


def test_without_nibabel_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path / "a.nii", anatomy(), affine_of())
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(BadInput, match=r"pip install 'clinkd\[volumes\]'"):
        picture(tmp_path, "a.nii#1")


def test_a_folder_is_checked_slice_by_slice_and_a_sheet_asks_of_slices(tmp_path: Path) -> None:
    store(tmp_path / "a.nii.gz", anatomy(), affine_of())
    assert detect_form(Source(tmp_path)) == "dicom"
    (row,) = read_rows(Source(tmp_path), Counter())
    assert [i.path for i in row.images] == [f"a.nii.gz#{k}" for k in (1, 2, 3, 4)] and row.group == "a.nii.gz"
    (tmp_path / "s.csv").write_text("image,question,answer\na.nii.gz#1,Is it?,yes\na.nii.gz#2,Is it?,no\n")
    rows = list(read_rows(Source(tmp_path / "s.csv"), Counter()))
    assert all(r.problem and "--modality" in r.problem.why for r in rows), "the header does not tell the modality"
    rows = list(read_rows(Source(tmp_path / "s.csv", modality=Modality.CT, window="lung"), Counter()))
    assert {s.group for r in rows for s in r.samples} == {"a.nii.gz"}
    assert rows[0].samples[0].images == (ImageRef("a.nii.gz#1", 6, 5, window="lung", laterality=AXIAL),)
