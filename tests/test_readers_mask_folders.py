"""Folders of images and masks: every layout by its names, values by their classes, and volumes slice by slice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.test_data_dicom import write
from tests.test_data_nifti import STORED, affine_of, store

from clinkd.data.readers import RowResult, detect_form, read_rows
from clinkd.data.readers.mask_pairs import is_mask, pair_masks
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, Modality, Task

HEIGHT, WIDTH = 16, 32
Boxes = dict[str, dict[str, list[tuple[int, ...]]]]  # image -> name -> boxes in pixels


def spot(*corners: tuple[int, int, int, int, int]) -> NDArray[np.uint8]:
    """A mask with a value in each box (x1, y1, x2, y2)."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for x1, y1, x2, y2, value in corners:
        mask[y1:y2, x1:x2] = value
    return mask


IMAGE, MASK = spot((0, 0, 9, 9, 90)), spot((8, 5, 20, 10, 255))


def save(root: Path, **files: NDArray[Any]) -> Path:
    for name, values in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(root / name)
    return root


def read(root: Path, **knobs: Any) -> tuple[list[RowResult], Counter[str]]:
    told: Counter[str] = Counter()
    return list(read_rows(Source(root, **{"modality": Modality.MR} | knobs), told)), told


def boxes(rows: list[RowResult], size: tuple[int, int] = (WIDTH, HEIGHT)) -> Boxes:
    found: Boxes = {}
    for sample in (s for row in rows for s in row.samples if s.task is Task.VG):
        corners = [tuple(round(v * n) for v, n in zip(b.corners, size * 2, strict=True)) for b in sample.answer.boxes]
        found.setdefault(sample.images[0].path, {})[sample.names[0]] = corners
    return found


# ---- which mask belongs to which image ------------------------------------------------------------------------------

LAYOUTS = {
    "Kvasir-SEG (datasets.simula.no/kvasir-seg)": {"images/a.png": ["masks/a.png"], "images/b.png": ["masks/b.png"]},
    "ISIC 2018, task 1 (challenge.isic-archive.com/data)": {
        "ISIC2018_Task1-2_Training_Input/ISIC_0000000.png": [
            "ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png"
        ],
    },
    "ISIC 2018, task 2": {
        "ISIC_0000013.png": ["ISIC_0000013_attribute_globules.png", "ISIC_0000013_attribute_pigment_network.png"],
    },
    "IDRiD (ieee-dataport.org, idrid)": {
        "1. Original Images/a. Training Set/IDRiD_01.jpg": [
            "2. All Segmentation Groundtruths/a. Training Set/1. Microaneurysms/IDRiD_01_MA.tif",
            "2. All Segmentation Groundtruths/a. Training Set/5. Optic Disc/IDRiD_01_OD.tif",
        ],
    },
    "ISIC in one folder": {"ISIC_0000000.png": ["ISIC_0000000_segmentation.png"]},
    "BUSI (scholar.cu.edu.eg/?q=afahmy/pages/dataset)": {
        "benign/benign (1).png": ["benign/benign (1)_mask.png", "benign/benign (1)_mask_1.png"],
        "malignant/malignant (1).png": ["malignant/malignant (1)_mask.png"],
    },
    "CVC-ClinicDB (polyp.grand-challenge.org/CVCClinicDB)": {"PNG/Original/1.png": ["PNG/Ground Truth/1.png"]},
    "hyphens and dots": {"a-1.png": ["a-1-mask.png"], "b.2.png": ["b.2_seg.png"]},
    "lesions": {"p/IMD002_Dermoscopic_Image/IMD002.bmp": ["p/IMD002_lesion/IMD002_lesion.bmp"]},
    "names that continue each other": {"images/a.png": ["masks/a_mask.png"], "images/a_1.png": ["masks/a_1_mask.png"]},
    "equal names": {"train/images/a.png": ["train/masks/a.png"], "test/images/a.png": ["test/masks/a.png"]},
    "nnU-Net 2 (MIC-DKFZ/nnUNet, documentation/dataset_format.md)": {
        "imagesTr/p1_0000.png": ["labelsTr/p1.png"], "imagesTr/p1_2_0000.png": ["labelsTr/p1_2.png"],
    },
    "MSD (medicaldecathlon.com)": {"imagesTr/la_003.nii.gz": ["labelsTr/la_003.nii.gz"]},
    "BTCV": {"img/img0001.nii.gz": ["label/label0001.nii.gz"]},
    "LiTS": {"volume-0.nii": ["segmentation-0.nii"], "volume-10.nii": ["segmentation-10.nii"]},
    "KiTS": {"case_00000/imaging.nii.gz": ["case_00000/segmentation.nii.gz"]},
    "ACDC": {"p1/p1_frame01.nii.gz": ["p1/p1_frame01_gt.nii.gz"]},
    "TotalSegmentator (wasserth/TotalSegmentator)": {
        "s1/ct.nii.gz": ["s1/segmentations/liver.nii.gz", "s1/segmentations/lung_left.nii.gz"],
        "s2/ct.nii.gz": ["s2/segmentations/liver.nii.gz"],
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_each_mask_finds_its_image_by_names_alone(layout: dict[str, list[str]]) -> None:
    masks = [mask for masks_of_image in layout.values() for mask in masks_of_image]
    assert all(map(is_mask, masks)) and not any(map(is_mask, layout))
    pairs, orphans = pair_masks(sorted(layout), sorted(masks))
    assert not orphans
    assert {p.image: [mask for mask, _ in p.masks] for p in pairs} == {k: sorted(v) for k, v in layout.items()}


def test_classes_and_splits_stand_in_names() -> None:
    images = ["a.tif", "s/ct.nii.gz", "validation/images/x.png"]
    masks = ["a_optic_disc.tif", "a_mask_2.tif", "s/segmentations/lung_left.nii.gz", "validation/masks/left_lung/x.png"]
    pairs, _ = pair_masks(images, masks)
    assert [[text for _, text in p.masks] for p in pairs] == [["optic disc", ""], ["lung left"], ["left lung"]]
    assert [p.splits for p in pairs] == [set(), set(), {"validation"}]
    _, orphans = pair_masks(["a/x.png", "b/x.png"], ["masks/x.png", "masks/y.png"])
    assert "2 images of its name (a/x.png, b/x.png)" in orphans[0][1] and "no image of its name" in orphans[1][1]


# ---- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        {"images/a.png": IMAGE, "masks/a.png": MASK},
        {"images/ISIC_1.png": IMAGE, "masks/ISIC_1_segmentation.png": MASK},
        {"imagesTr/p1_0000.png": IMAGE, "labelsTr/p1.png": MASK // 255},
        {"images/a.jpg": IMAGE, "masks/a.jpg": MASK},
    ],
    ids=lambda files: next(iter(files)),
)
def test_the_box_is_that_of_the_mask(tmp_path: Path, files: dict[str, NDArray[Any]]) -> None:
    save(tmp_path, **files)
    assert detect_form(Source(tmp_path)) == "masks"
    rows, told = read(tmp_path, names="polyp")
    assert boxes(rows) == {min(files): {"polyp": [(8, 5, 20, 10)]}}
    assert told == ({"JPEG masks, whose values are divided at 128": 1} if "images/a.jpg" in files else {})


def test_folders_without_masks_and_those_of_sa_med2d_are_told_apart(tmp_path: Path) -> None:
    save(tmp_path / "one", **{"a.png": IMAGE, "label.png": IMAGE})
    with pytest.raises(BadInput, match="holds images, and no questions about them"):
        detect_form(Source(tmp_path / "one"))
    save(tmp_path / "two", **{"images/ct_00--K--c--x.png": IMAGE, "masks/ct_00--K--c--x--0001_000.png": MASK})
    assert detect_form(Source(tmp_path / "two")) == "sa-med2d"
    save(tmp_path / "three", **{"images/a.png": IMAGE, "masks/left_lung/a.png": MASK})
    assert detect_form(Source(tmp_path / "three")) == "masks"
    save(tmp_path / "four", **{"s1/scan.png": IMAGE, "s1/segmentations/liver.png": MASK})
    assert detect_form(Source(tmp_path / "four")) == "masks"
    assert boxes(read(tmp_path / "four")[0]) == {"s1/scan.png": {"liver": [(8, 5, 20, 10)]}}


def test_images_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    save(tmp_path, **{"pictures/a.png": IMAGE, "theirs/a_segmentation.png": MASK})
    rows, _ = read(tmp_path / "theirs", form="masks", images=tmp_path / "pictures", names="polyp")
    assert boxes(rows) == {"a.png": {"polyp": [(8, 5, 20, 10)]}}


def test_values_are_classes_by_their_names(tmp_path: Path) -> None:
    labels = spot((1, 2, 5, 6, 1), (8, 5, 20, 10, 2), (10, 6, 12, 8, 3))
    palette = Image.fromarray(labels, mode="P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    save(tmp_path, **{"images/a.png": IMAGE, "masks/a.png": labels})
    (tmp_path / "names.json").write_text(json.dumps({"liver": 1, "tumour": 2, "vessel": 3}))
    wanted = {"liver": [(1, 2, 5, 6)], "tumour": [(8, 5, 20, 10)], "vessel": [(10, 6, 12, 8)]}
    assert boxes(read(tmp_path, names="names.json")[0]) == {"images/a.png": wanted}
    palette.save(tmp_path / "masks" / "a.png")
    assert boxes(read(tmp_path, names=tmp_path / "names.json")[0]) == {"images/a.png": wanted}
    (tmp_path / "names.txt").write_text("background\nliver\ntumour\nvessel\n")
    assert boxes(read(tmp_path, names="names.txt")[0]) == {"images/a.png": wanted}
    regions = {"labels": {"background": 0, "whole": [2, 3], "core": [3], "ignore": 1}, "channel_names": {"0": "CT"}}
    (tmp_path / "dataset.json").write_text(json.dumps(regions))
    rows, told = read(tmp_path, modality=None)
    roc = [s for s in rows[0].samples if s.task is Task.ROC]
    assert {s.names[0] for s in roc} == {"whole", "core"} and rows[0].samples[0].modality is Modality.CT
    assert not boxes(rows) and told["names of which not all boxes are known, so that where they are is not asked"] == 2


FAULTS = {
    "no name of a value": ({"masks/a.png": spot((1, 1, 5, 5, 7))}, "1=polyp,2=ulcer", "the value 7 is not there in"),
    "several values": (
        {"masks/a.png": spot((1, 1, 5, 5, 1), (9, 9, 12, 12, 2))},
        "polyp",
        "the values 0, 1, 2 and one",
    ),
    "another size": ({"masks/a.png": MASK.T}, "polyp", "16x32 pixels where the image has 32x16"),
    "grey JPEG": ({"masks/a.jpg": spot((0, 0, 32, 8, 120))}, "polyp", "JPEG does not keep the values"),
    "no mask": ({"masks/b.png": MASK, "images/b.png": IMAGE}, "polyp", "no mask is named after this image"),
    "no image": ({"masks/a.png": MASK, "masks/c.png": MASK}, "polyp", "no image of its name"),
    "two kinds": ({"masks/a.png": MASK, "gt/a.png": MASK}, "polyp", "without a class from the folders gt, masks"),
    "a side alone": ({"masks/left/a.png": MASK}, None, "its name says left, but not of what"),
}


@pytest.mark.parametrize(("files", "names", "told"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_mask_is_named(tmp_path: Path, files: dict[str, NDArray[Any]], names: str | None, told: str) -> None:
    rows, _ = read(save(tmp_path, **{"images/a.png": IMAGE} | files), names=names, form="masks")
    (problem,) = [row.problem for row in rows if row.problem]
    assert told in problem.why


def test_what_cannot_be_told_is_refused_with_the_way_out(tmp_path: Path) -> None:
    save(tmp_path, **{"images/a.png": IMAGE, "masks/a.png": MASK})
    with pytest.raises(BadInput, match="--names polyp, or --names FILE"):
        read(tmp_path)
    (tmp_path / "names.txt").write_text("liver\ntumour\n")
    with pytest.raises(BadInput, match="0, which is liver then, and the background in masks.*1,liver"):
        read(tmp_path, names="names.txt")
    problem = read(tmp_path, names="polyp", modality=None)[0][0].problem
    assert problem is not None and "--modality" in problem.why
    (tmp_path / "masks" / "a.png").rename(tmp_path / "masks" / "other.png")
    with pytest.raises(BadInput, match="none is named after an image"):
        read(tmp_path, names="polyp")


def test_a_mask_of_all_and_an_empty_mask_are_told(tmp_path: Path) -> None:
    files = {"a": np.full_like(MASK, 255), "b": 255 - MASK, "c": np.zeros_like(MASK)}
    save(tmp_path, **{f"images/{k}.png": IMAGE for k in files}, **{f"masks/{k}.png": v for k, v in files.items()})
    rows, told = read(tmp_path, names="polyp")
    assert not any(row.problem for row in rows) and not rows[2].samples
    assert told == {
        "masks of which a part reaches all four borders: is the background marked, or all of the image?": 2,
        "images whose masks are empty, of which nothing is asked": 1,
    }
    _, told = read(tmp_path, names="0=skin,255=mole")
    assert told["masks in which 0, usually the background, is 'skin'"] == 2


def test_splits_of_folders_are_kept_and_contradictions_refused(tmp_path: Path) -> None:
    save(tmp_path, **{"train/images/a.png": IMAGE, "train/masks/a.png": MASK})
    assert {s.split for r in read(tmp_path, names="polyp")[0] for s in r.samples} == {None}, "one split is no split"
    save(tmp_path, **{"test/images/b.png": IMAGE, "test/masks/b.png": MASK, "val/images/c.png": IMAGE})
    rows, told = read(tmp_path, names="polyp")
    assert {(s.images[0].path[:5], s.split) for r in rows for s in r.samples} == {("train", "train"), ("test/", "test")}
    assert told == {"images of the validation split, which has no masks": 1}
    save(tmp_path, **{"test/masks/c.png": MASK})
    problem = next(row.problem for row in read(tmp_path, names="polyp")[0] if row.problem)
    assert problem.why == "folders say test and validation; move one of them"


def test_one_channel_of_several_is_chosen(tmp_path: Path) -> None:
    save(tmp_path, **{"imagesTr/p_0000.png": IMAGE, "imagesTr/p_0001.png": IMAGE, "labelsTr/p.png": MASK // 255})
    about = {"channel_names": {"0": "CT", "1": "T2w"}, "labels": {"background": 0, "lesion": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(BadInput, match=r"0000 \(CT\), 0001 \(T2w\); choose one with --channel"):
        read(tmp_path)
    for channel in ("1", "0001", "t2W"):
        rows, told = read(tmp_path, channel=channel, modality=None)
        assert boxes(rows) == {"imagesTr/p_0001.png": {"lesion": [(8, 5, 20, 10)]}}
        assert rows[0].samples[0].modality is Modality.MR
        assert told == {f"images of other channels than --channel {channel}": 1}


def test_a_dicom_tells_modality_and_patient_and_a_description_is_counted(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write(tmp_path / "images" / "a.dcm", IMAGE, Modality="CT", PatientID="7", Rows=HEIGHT, Columns=WIDTH)
    save(tmp_path, **{"masks/a.png": MASK})
    about = {"labels": {"background": 0, "liver": 255}, "numTraining": 3, "licence": "free", "name": "x"}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    rows, told = read(tmp_path, form="masks", modality=None)
    assert boxes(rows) == {"images/a.dcm": {"liver": [(8, 5, 20, 10)]}}
    assert {(s.modality, s.group == "images/a.dcm") for s in rows[0].samples} == {(Modality.CT, False)}
    assert told == {
        "keys of dataset.json that are not used (licence, name)": 2,
        "cases that dataset.json counts (numTraining) and the folder has not": 2,
    }


# ---- volumes --------------------------------------------------------------------------------------------------------

LABELS = {"background": 0, "liver": 1, "left kidney": 2}


def labelled() -> NDArray[np.uint8]:
    """x to the right, y to the front, z to the head: the liver is on the right, the left kidney on the left."""
    labels = np.zeros((12, 10, 6), np.uint8)
    labels[7:11, 3:8, 1:4] = 1
    labels[8:10, 4:6, 4] = 1
    labels[1:3, 1:4, 2:5] = 2
    labels[1:4, 1:4, 4] = 2
    return labels


def volume_folder(root: Path, ornt: Any = None, labels: NDArray[Any] | None = None, **about: Any) -> Path:
    scan = np.random.default_rng(1).integers(-900, 900, (12, 10, 6)).astype(np.int16)
    for folder, values in (("imagesTr", scan), ("labelsTr", labelled() if labels is None else labels)):
        (root / folder).mkdir(parents=True)
        store(root / folder / "p1.nii.gz", values, affine_of((0.8, 0.8, 2.5)), ornt)
    msd = {"modality": {"0": "CT"}, "labels": {str(v): k for k, v in LABELS.items()}}
    (root / "dataset.json").write_text(json.dumps(msd | about))
    return root


def test_boxes_of_slices_are_those_that_nibabel_gives_in_any_order_of_storage(tmp_path: Path) -> None:
    wanted: Boxes = {}
    scan = nibabel.as_closest_canonical(nibabel.load(volume_folder(tmp_path / "ras") / "labelsTr" / "p1.nii.gz"))
    for value in (1, 2):
        inside = np.asarray(scan.dataobj) == value
        z = int(inside.sum(axis=(0, 1)).argmax())
        for other, of_value in (("liver", 1), ("left kidney", 2)):
            if (xs := np.flatnonzero((np.asarray(scan.dataobj)[..., z] == of_value).any(axis=1))).size:
                ys = np.flatnonzero((np.asarray(scan.dataobj)[..., z] == of_value).any(axis=0))
                corners = (11 - xs[-1], 9 - ys[-1], 12 - xs[0], 10 - ys[0])
                wanted.setdefault(f"imagesTr/p1.nii.gz#{z + 1}", {})[other] = [tuple(map(int, corners))]
    for number, ornt in enumerate(STORED[5::12]):
        rows, told = read(volume_folder(tmp_path / str(number), ornt), modality=None)
        assert boxes(rows, (12, 10)) == wanted and not told
        assert {(s.modality, s.side, s.group) for s in rows[0].samples} == {
            (Modality.CT, "patient", "imagesTr/p1.nii.gz")
        }
    assert wanted["imagesTr/p1.nii.gz#2"]["liver"][0][2] < 6 < wanted["imagesTr/p1.nii.gz#5"]["left kidney"][0][0]


def test_the_knob_chooses_slices(tmp_path: Path) -> None:
    root = volume_folder(tmp_path)
    numbers = {
        slices: [int(p.rpartition("#")[2]) for p in boxes(read(root, slices=slices)[0])]
        for slices in ("largest", "labelled", "every:2")
    }
    assert numbers == {"largest": [2, 5], "labelled": [2, 3, 4, 5], "every:2": [2, 4]}
    with pytest.raises(BadInput, match="--slices some"):
        read(root, slices="some")


def test_masks_elsewhere_in_space_are_refused(tmp_path: Path) -> None:
    root, labels = volume_folder(tmp_path), tmp_path / "labelsTr" / "p1.nii.gz"
    moved = affine_of((0.8, 0.8, 2.5))
    moved[0, 3] += 5
    cases = {
        "corner 5 mm away": (labelled(), moved),
        "10x12x6 voxels where the volume has 12x10x6": (labelled().transpose(1, 0, 2), affine_of((0.8, 0.8, 2.5))),
        "no whole numbers": (labelled() * np.float32(0.3), affine_of((0.8, 0.8, 2.5))),
        "the value 9 is not there": (labelled() * 9, affine_of((0.8, 0.8, 2.5))),
    }
    for told, (values, affine) in cases.items():
        store(labels, values, affine)
        (row,), _ = read(root)
        assert row.problem is not None and told in row.problem.why
    labels.write_bytes(labels.read_bytes()[:-30])
    (row,), _ = read(root)
    assert row.problem is not None and "gzip stream is cut" in row.problem.why
    store(labels, labelled().astype(np.float32), affine_of((0.8, 0.8, 2.5)))
    assert len(boxes(read(root)[0])) == 2, "whole numbers may be stored as real ones"


def test_a_volume_of_several_channels_wants_one(tmp_path: Path) -> None:
    root = volume_folder(tmp_path, modality={"0": "FLAIR", "1": "T1w"})
    scan = np.zeros((12, 10, 6, 2), np.int16)
    store(root / "imagesTr" / "p1.nii.gz", scan, affine_of((0.8, 0.8, 2.5)))
    (row,), _ = read(root, modality=None)
    assert row.problem is not None and "0 (FLAIR), 1 (T1w); choose one with --channel" in row.problem.why
    rows, _ = read(root, modality=None, channel="T1w")
    assert list(boxes(rows)) == ["imagesTr/p1.nii.gz#8", "imagesTr/p1.nii.gz#11"], "6 slices of the first come before"


def test_sides_need_an_orientation(tmp_path: Path) -> None:
    root = volume_folder(tmp_path)
    for folder in ("imagesTr", "labelsTr"):
        scan = nibabel.load(root / folder / "p1.nii.gz")
        plain = nibabel.Nifti1Image(np.asarray(scan.dataobj), None)
        plain.set_sform(None, 0)
        plain.set_qform(None, 0)
        nibabel.save(plain, root / folder / "p1.nii.gz")
    (row,), _ = read(root)
    assert row.problem is not None and "no orientation" in row.problem.why and "left kidney" in row.problem.why
    rows, told = read(root, names="1=liver,2=kidney")
    assert boxes(rows) and told["volumes without orientation, taken as stored (sform and qform codes 0)"] == 1
