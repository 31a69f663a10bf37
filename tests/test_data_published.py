"""Sheets of public data sets as they are published: small made-up files with the heads, codes and paths of each."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clinkd.cli import main
from clinkd.data.dataset import SAMPLES
from clinkd.data.questions import make_bare_pairs
from clinkd.data.readers import published, sheet
from clinkd.data.readers.rows import RowResult
from clinkd.data.readers.source import Source
from clinkd.language.negation import affirmed_names
from clinkd.records import BadInput, Modality, Sample, Task

SIZE = (100, 80)


def write(root: Path, name: str, text: str, images: str) -> Path:
    for image in images.split():
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", SIZE).save(root / image)
    (root / name).write_text(text)
    return root / name


def read(file: Path, **knobs: Any) -> tuple[list[RowResult], Counter[str]]:
    notes: Counter[str] = Counter()
    return list(sheet.read(Source(file, **knobs), notes)), notes


def good(rows: list[RowResult]) -> list[Sample]:
    assert not [str(row.problem) for row in rows if row.problem]
    return [s for row in rows for s in row.samples]


def boxes(samples: list[Sample]) -> set[tuple[str, str, tuple[float, ...]]]:
    """Image, name, and left, top, right and bottom in pixels of every box that is asked for by name."""
    return {
        (s.images[0].path, s.names[0], tuple(round(v * n, 2) for v, n in zip(b.corners, SIZE * 2, strict=True)))
        for s in samples
        if s.task is Task.VG
        for b in s.answer.boxes
    }


def labels(samples: list[Sample]) -> dict[str, str]:
    return {s.images[0].path: s.answer.text for s in samples if s.task is Task.QA}


NIH_BOXES = """\
Image Index,Finding Label,Bbox [x,y,w,h],,,
00013118_008.png,Atelectasis,25.0847,47.019,46.7797,19.1864,,,
00014716_007.png,Infiltrate,60.5,1.25,30,70,,,
"""


def test_nih_boxes(tmp_path: Path) -> None:
    """https://nihcc.app.box.com/v/ChestXray-NIHCC, BBox_List_2017.csv: its head holds commas, and three empty ends."""
    file = write(tmp_path, "BBox_List_2017.csv", NIH_BOXES, "00013118_008.png images_003/images/00014716_007.png")
    (tmp_path / "train_val_list.txt").write_text("00013118_008.png\n")
    (tmp_path / "test_list.txt").write_text("00014716_007.png\n00000003_000.png\n")
    rows, notes = read(file)
    cells = list(csv.reader(NIH_BOXES.splitlines()))[1:]
    wanted = [[float(v) for v in row[2:6]] for row in cells]
    assert {(b[0].rpartition("/")[2], b[2]) for b in boxes(good(rows))} == {
        (row[0], tuple(round(v, 2) for v in (x, y, x + w, y + h)))
        for row, (x, y, w, h) in zip(cells, wanted, strict=True)
    }
    assert {s.names[0] for s in good(rows)} == {"Atelectasis", "Infiltration"}
    assert {(s.group, s.split, s.modality) for s in good(rows)} == {
        ("13118", "train", Modality.XRAY), ("14716", "test", Modality.XRAY),
    }  # fmt: skip
    assert notes["sheet read as NIH ChestX-ray14's list of boxes, by the names of its columns"] == 1
    assert notes["lines whose image was found by its name alone, in the folders below"] == 1


def test_nih_labels(tmp_path: Path) -> None:
    """Data_Entry_2017.csv of the same place; its head holds commas, too, and ends in an empty column."""
    head = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    text = head + (
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
        "00000001_000.png,Cardiomegaly|Emphysema,0,1,58,M,PA,2682,2749,0.143,0.143,\n"
        "00000002_000.png,No Finding,0,2,81,M,PA,2500,2048,0.171,0.171,\n"
    )
    rows, notes = read(write(tmp_path, "Data_Entry_2017.csv", text, "00000001_000.png 00000002_000.png"))
    assert labels(good(rows)) == {"00000001_000.png": "Cardiomegaly, Emphysema", "00000002_000.png": "No Finding"}
    assert [s.group for s in good(rows)] == ["1", "2"] and notes["column 'View Position' is not used"] == 1


def test_rsna_boxes_and_classes(tmp_path: Path) -> None:
    """https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data: no suffixes, Target 0 without a box."""
    text = "patientId,x,y,width,height,Target\n000,,,,,0\n111,64,15,21,37,1\n111,5,17,25,39,1\n"
    images = "stage_2_train_images/000.png stage_2_train_images/111.png"
    rows, notes = read(write(tmp_path, "stage_2_train_labels.csv", text, images))
    assert boxes(good(rows)) == {
        (images.split()[1], "Lung opacity", (64, 15, 85, 52)), (images.split()[1], "Lung opacity", (5, 17, 30, 56)),
    }  # fmt: skip
    assert notes["lines that say 'No lung opacity' and have no box, of which nothing is asked"] == 1
    text = "patientId,class\n000,No Lung Opacity / Not Normal\n111,Lung Opacity\n111,Lung Opacity\n"
    rows, notes = read(write(tmp_path, "stage_2_detailed_class_info.csv", text, ""))
    assert list(labels(good(rows)).values()) == ["No Lung Opacity / Not Normal", "Lung Opacity"]
    assert notes[sheet.REPEATED_NOTE] == 1
    file = write(tmp_path, "x.csv", "patientId,x,y,width,height,Target\n111,64,15,21,37,2\n", "")
    assert "one of the codes 0, 1" in str(read(file)[0][0].problem)


def test_vindr_cxr(tmp_path: Path) -> None:
    """https://physionet.org/content/vindr-cxr/: annotations_train.csv, and train.csv of the competition made of it."""
    for head, rest in (("rad_id,class_name", "R10,{}"), ("class_name,class_id,rad_id", "{},3,R10")):
        lines = [
            ("0a", "Nodule/Mass", "10.5,20,40,60.25"),
            ("1b", "No finding", ",,,"),
            ("0a", "Nodule/Mass", "60,1,90,9"),
        ]
        text = f"image_id,{head},x_min,y_min,x_max,y_max\n"
        text += "".join(f"{image},{rest.format(name)},{numbers}\n" for image, name, numbers in lines)
        rows, notes = read(write(tmp_path, "train.csv", text, "train/0a.png train/1b.png"))
        assert boxes(good(rows)) == {
            ("train/0a.png", "Nodule/Mass", (10.5, 20, 40, 60.25)), ("train/0a.png", "Nodule/Mass", (60, 1, 90, 9)),
        }  # fmt: skip
        assert {s.modality for s in good(rows)} == {Modality.XRAY}
        assert notes["lines that say 'No finding' and have no box, of which nothing is asked"] == 1
        assert not any("name an image and no question" in note for note in notes)  # told once


def test_a_sheet_laid_out_as_vindrs_says_no_modality(tmp_path: Path) -> None:
    text = "image_id,class_name,x_min,y_min,x_max,y_max\na,cyst,1,2,30,40\n"
    file = write(tmp_path, "train.csv", text, "a.png")
    (row,) = read(file)[0]
    assert row.problem is not None and row.problem.field == "modality"
    assert boxes(good(read(file, modality=Modality.CT)[0])) == {("a.png", "cyst", (1, 2, 30, 40))}


def test_vindr_mammo_and_spine(tmp_path: Path) -> None:
    """https://www.physionet.org/content/vindr-mammo/ and vindr-spinexr/: a cell may hold several categories."""
    text = (
        "study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,breast_density,"
        "finding_categories,finding_birads,xmin,ymin,xmax,ymax,split\n"
        "s1,e1,i1,L,CC,80,100,BI-RADS 4,DENSITY C,\"['Suspicious Calcification', 'Mass']\","
        "BI-RADS 4,1,2,30,40,training\n"
        "s1,e1,i2,L,MLO,80,100,BI-RADS 1,DENSITY C,['No Finding'],,,,,,training\n"
        "s2,e2,i3,R,CC,80,100,BI-RADS 3,DENSITY C,['Mass'],BI-RADS 3,5,6,50,60,test\n"
    )
    images = "images/s1/i1.png images/s1/i2.png images/s2/i3.png"
    rows, _ = read(write(tmp_path, "finding_annotations.csv", text, images))
    assert boxes(good(rows)) == {
        ("images/s1/i1.png", "Suspicious Calcification", (1, 2, 30, 40)), ("images/s1/i1.png", "Mass", (1, 2, 30, 40)),
        ("images/s2/i3.png", "Mass", (5, 6, 50, 60)),
    }  # fmt: skip
    assert {(s.group, s.split, s.modality) for s in good(rows)} == {
        ("s1", "train", Modality.OTHER), ("s2", "test", Modality.OTHER),
    }  # fmt: skip
    text = "study_id,series_id,image_id,rad_id,lesion_type,xmin,ymin,xmax,ymax\ns1,e1,i1,R1,Osteophytes,1,2,30,40\n"
    (vg, _) = good(read(write(tmp_path, "train.csv", text, ""))[0])
    assert (vg.names, vg.group, vg.modality) == (("Osteophytes",), "s1", Modality.XRAY)


def test_deeplesion(tmp_path: Path) -> None:
    """https://nihcc.app.box.com/v/DeepLesion, DL_info.csv: names join folder and slice, types and splits are codes."""
    text = (
        "File_name,Patient_index,Study_index,Series_ID,Key_slice_index,Measurement_coordinates,Bounding_boxes,"
        "Lesion_diameters_Pixel_,Normalized_lesion_location,Coarse_lesion_type,Possibly_noisy,Slice_range,Spacing_mm_px_,"
        "Image_size,DICOM_windows,Patient_gender,Patient_age,Train_Val_Test\n"
        '000001_01_01_109.png,1,1,1,109,"33, 90, 41, 10","26.169, 9.0204, 41.252, 61.977","14.6, 9.6","0.4, 0.6",3,0,'
        '"103, 115","0.4, 0.4, 5","100, 80","-175, 275",F,62,3\n'
        '000002_01_01_162.png,2,1,1,162,"33, 90, 41, 10","-0.3, 9, 41, 61","14.6, 9.6","0.4, 0.6",-1,0,'
        '"103, 115","0.4, 0.4, 5","100, 80","-175, 275",F,62,2\n'
    )
    images = "Images_png/000001_01_01/109.png Images_png/000001_01_01/162.png Images_png/000002_01_01/162.png"
    rows, notes = read(write(tmp_path, "DL_info.csv", text, images))
    first, _, second = images.split()
    assert boxes(good(rows)) == {
        (first, "mediastinum lesion", (26.17, 9.02, 41.25, 61.98)), (second, "lesion", (0, 9, 41, 61)),
    }  # fmt: skip
    assert {(s.group, s.split, s.modality) for s in good(rows)} == {
        ("1", "test", Modality.CT), ("2", "validation", Modality.CT),
    }  # fmt: skip
    assert notes["boxes less than a pixel over the border of the image, put on it"] == 1


SKIN = [
    ("image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\na,0.0,1.0,0.0,0.0,0.0,0.0,0.0\nb,0.0,0.0,0.0,1.0,0.0,0.0,0.0\n",
     {"a.jpg": "melanocytic nevus", "b.jpg": "actinic keratosis"}),
    ("image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\na,0,0,0,0,0,0,0,1,0\nb,0,0,0,0,0,0,0,0,1\n",
     {"a.jpg": "squamous cell carcinoma"}),
    ("lesion_id,image_id,dx,dx_type,age,sex,localization\nH1,a,bkl,histo,80.0,male,scalp\nH1,b,df,histo,80.0,male,scalp\n",
     {"a.jpg": "benign keratosis", "b.jpg": "dermatofibroma"}),
    ("image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target\n"
     "a,IP_1,male,45.0,head/neck,unknown,benign,0\nb,IP_2,male,45.0,head/neck,nevus,benign,0\n", {"b.jpg": "nevus"}),
    ("isic_id,attribution,diagnosis,sex\na,Anonymous,melanoma,male\nb,Anonymous,nevus,male\n",
     {"a.jpg": "melanoma", "b.jpg": "nevus"}),
    ("isic_id,diagnosis_1,diagnosis_2,diagnosis_3\na,Benign,Benign melanocytic proliferations,Nevus\n",
     {"a.jpg": "Nevus"}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), SKIN)
def test_isic(tmp_path: Path, text: str, wanted: dict[str, str]) -> None:
    """https://challenge.isic-archive.com/data/: one column a class, or one column of diagnoses."""
    rows, notes = read(write(tmp_path, "metadata.csv", text, "a.jpg b.jpg"))
    assert labels(good(rows)) == wanted and {s.modality for s in good(rows)} == {Modality.DERMOSCOPY}
    assert not [note for note in notes if "'NV'" in note]
    if text.startswith("lesion_id"):
        assert {s.group for s in good(rows)} == {"H1"}


def test_a_class_column_of_something_else_is_named(tmp_path: Path) -> None:
    text = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\na,0.2,0.8,0,0,0,0,0\n"
    (row,) = read(write(tmp_path, "predictions.csv", text, "a.jpg"))[0]
    assert row.problem is not None and (row.problem.field, row.problem.value) == ("MEL", "0.2")


def test_kvasir_vqa(tmp_path: Path) -> None:
    """https://datasets.simula.no/kvasir-vqa/: metadata.csv beside images/ of img_id.jpg, as its page saves them."""
    text = "source,question,answer,img_id\nPolyps,How many polyps are there?,1,ck0\nPolyps,Is it easy?,yes,ck0\n"
    rows, _ = read(write(tmp_path, "metadata.csv", text, "images/ck0.jpg"))
    assert [(s.images[0].path, s.question.text, s.answer.text) for s in good(rows)] == [
        ("images/ck0.jpg", "How many polyps are there?", "1"), ("images/ck0.jpg", "Is it easy?", "yes"),
    ]  # fmt: skip
    assert {s.modality for s in good(rows)} == {Modality.ENDOSCOPY}


def test_a_name_that_two_files_have_is_not_guessed(tmp_path: Path) -> None:
    text = "source,question,answer,img_id\nPolyps,Is it easy?,yes,ck0\n"
    (row,) = read(write(tmp_path, "metadata.csv", text, "images/ck0.jpg old/ck0.jpg"))[0]
    assert row.problem is not None and (row.problem.field, row.problem.value) == ("img_id", "ck0")
    assert "several files" in row.problem.why


def test_the_users_columns_and_prefix_come_before_the_publishers(tmp_path: Path) -> None:
    text = "patientId,x,y,width,height,Target,kind\n000,64,15,21,37,1,opacity\n"
    file = write(tmp_path, "labels.csv", text, "images/000.png")
    assert boxes(good(read(file, columns={"name": "kind"})[0])) == {("images/000.png", "opacity", (64, 15, 85, 52))}
    assert boxes(good(read(file, prefix="images/")[0])) == {("images/000.png", "Lung opacity", (64, 15, 85, 52))}
    with pytest.raises(BadInput, match="--box-form xyxy, and the heads 'x', 'y', 'width', 'height' say xywh"):
        read(file, box_form="xyxy")


def test_what_the_user_maps_is_no_code(tmp_path: Path) -> None:
    text = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC,kind,who\na,0,1,0,0,0,0,0,blue nevus,P7\n"
    (sample,) = good(read(write(tmp_path, "x.csv", text, "a.jpg"), columns={"label": "kind", "patient": "who"})[0])
    assert (sample.answer.text, sample.group) == ("blue nevus", "P7")


def test_each_published_sheet_is_known_by_its_own_heads() -> None:
    for known in published.PUBLISHED:
        found = published.find_published([*known.columns.values(), *known.telling, "more"])
        assert found is known
    assert published.find_published(["image", "question", "answer", "source"]) is None


def test_a_column_of_labels_is_asked_for_where_nothing_else_is(tmp_path: Path) -> None:
    file = write(tmp_path, "sheet.csv", "image,label\na.png,melanoma\nb.png,1\n", "a.png b.png")
    rows, _ = read(file, modality=Modality.CT)
    (sample,) = rows[0].samples
    assert (sample.task, sample.answer.text) == (Task.QA, "melanoma") and rows[1].problem
    assert "a number, and no word" in rows[1].problem.why
    file.write_text("image,question,answer,label\na.png,Is it?,yes,1\n")
    rows, notes = read(file, modality=Modality.CT)
    assert len(good(rows)) == 1 and "column 'label' is not used" in " ".join(notes)


def test_nih_is_imported_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, "BBox_List_2017.csv", NIH_BOXES, "images/00013118_008.png images/00014716_007.png")
    assert main(["data", "import", str(file), "--out", str(tmp_path / "out"), "--no-split"]) == 0
    assert "sheet read as NIH ChestX-ray14's list of boxes" in capsys.readouterr().out
    assert len((tmp_path / "out" / SAMPLES).read_text().splitlines()) == 4


def test_images_without_a_finding_are_asked_for_one_on_request(tmp_path: Path) -> None:
    """One reader's "No finding" beside another's box asks nothing: the image shows something."""
    boxed = ["a,R1,cyst,1,2,30,40", "c,R2,mass,1,2,9,9"]
    empty = [f"{reader},No finding,,,," for reader in ("b,R1", "b,R2", "c,R1")]
    text = "\n".join(["image_id,rad_id,class_name,x_min,y_min,x_max,y_max", *boxed, *empty])
    file = write(tmp_path, "train.csv", text, "a.png b.png c.png")
    assert not [s for s in good(read(file)[0]) if not (s.question.boxes or s.answer.boxes)]
    rows, notes = read(file, ask_absent=True)
    (absent,) = (s for s in good(rows) if not (s.question.boxes or s.answer.boxes))
    assert (absent.task, absent.images[0].path) == (Task.VG, "b.png") and absent.names[0] in ("cyst", "mass")
    assert (
        absent.names[0] in absent.question.text and absent.answer.text == f"There is no {absent.names[0]} in the image."
    )
    assert notes["images without a finding, of which it is asked where one is"] == 1
    assert make_bare_pairs([absent]) == [], "a name without a box would teach that names need none"
    assert affirmed_names(absent.answer.text, absent.names) == ()
