"""The readers of VQA-RAD, SLAKE and LLaVA-Med-qa0.2k: what their rows become, and one fault for each bad row."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clinkd.data.readers import detect_form, vqa
from clinkd.data.readers.rows import RowResult
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, Modality, Sample, Task

Row = dict[str, Any]


def rad(number: int = 1, **changes: Any) -> Row:
    """A row as the list of osf.io/89kps has it."""
    row = {
        "qid": number, "phrase_type": "freeform", "qid_linked_id": "03f451ca-de62-4617-9679-e836026a7642",
        "image_case_url": "https://medpix.nlm.nih.gov/case?id=1", "image_name": "synpic1.jpg", "image_organ": "HEAD",
        "evaluation": "not evaluated", "question": "Are regions of the brain infarcted?", "question_rephrase": "NULL",
        "question_relation": "NULL", "question_frame": "NULL", "question_type": "PRES", "answer": "Yes",
        "answer_type": "CLOSED",
    }  # fmt: skip
    return row | changes


def slake(number: int = 0, **changes: Any) -> Row:
    row = {
        "img_id": 1, "img_name": "xmlab1/source.jpg", "question": "What modality is used to take this image?",
        "answer": "MRI", "q_lang": "en", "location": "Abdomen", "modality": "MRI", "answer_type": "OPEN",
        "base_type": "vqa", "content_type": "Modality", "triple": ["vhead", "_", "_"], "qid": number,
    }  # fmt: skip
    return row | changes


def domain(*true: str) -> dict[str, bool]:
    return {k: k in true for k in ("chest_xray", "mri", "ct_scan", "histology", "gross")}


def llava(number: int = 0, **changes: Any) -> Row:
    row = {
        "question_id": number, "image": "1_F1.jpg", "pair_id": "1_F1", "text": "What is shown?\n<image>",
        "gpt4_answer": "A chest radiograph.", "fig_caption": "Chest.", "in_text_mention": [],
        "domain": domain("chest_xray"), "type": "conversation", "fig_label": "Fig. 1",
    }  # fmt: skip
    return row | changes


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20)).save(path)


def write(file: Path, rows: Sequence[Row], lines: bool = False) -> Path:
    file.write_text("\n".join(json.dumps(r) for r in rows) if lines else json.dumps(rows))
    return file


def read(path: Path, form: str = "vqa", **knobs: Any) -> tuple[list[RowResult], Counter[str]]:
    told: Counter[str] = Counter()
    return list(vqa.read(Source(path, form, **knobs), told)), told


def unused(row: Row, number: int, used: list[str]) -> dict[str, int]:
    """What is told of the keys of rows that are all alike."""
    return {f"keys {key!r}, which are not used": number for key, value in row.items() if key not in used and value}


def samples(entries: Sequence[RowResult]) -> list[Sample]:
    return [s for e in entries for s in e.samples]


def test_vqa_rad(tmp_path: Path) -> None:
    for name in ("synpic1.jpg", "synpic2.jpg"):
        picture(tmp_path / "VQA_RAD Image Folder" / name)
    rows = [
        rad(1), rad(2, phrase_type="test_freeform", answer="2.5 cm\t", question=" How  large? "),
        rad(3, phrase_type="test_para", answer=4), rad("4", phrase_type="para", image_name="synpic2.jpg"),
        rad(5, modality="CT", answer=0.5),
    ]  # fmt: skip
    file = write(tmp_path / "VQA_RAD Dataset Public.json", rows)
    entries, told = read(file, modality=Modality.MR)
    assert [e.row for e in entries] == [1, 2, 3, 4, 5] and not any(e.problem for e in entries)
    found = samples(entries)
    assert [s.split for s in found] == ["train", "test", "test", "train", "train"]
    assert [s.id for s in found] == [f"vqa_rad_dataset_public-{k}" for k in range(1, 6)]
    assert [(s.question.text, s.answer.text) for s in found[1:3]] == [
        ("How large?", "2.5 cm"),
        (rad()["question"], "4"),
    ]
    assert [s.modality for s in found] == [Modality.MR] * 4 + [Modality.CT]
    used = ["qid", "phrase_type", "image_name", "question", "answer", "answer_type"]
    assert told == {"answers that are numbers, taken as text": 2} | unused(rad(), 5, used)
    assert found[3].images[0].path == found[3].group == "VQA_RAD Image Folder/synpic2.jpg"
    for s in found:
        assert (s.task, s.source, s.images[0].width, s.images[0].height) == (Task.QA, "vqarad", 40, 20)
        assert s.turns[0].closed is True
        assert Sample.from_json(s.to_json()) == s
    assert [s.split for s in samples(read(file, modality=Modality.MR, split="validation")[0])] == [
        "validation", "test", "test", "validation", "validation",
    ]  # fmt: skip


def test_the_modality_of_each_image_can_be_given_beside_the_file(tmp_path: Path) -> None:
    rows = [rad(k, image_name=f"synpic{k}.jpg") for k in range(1, 5)] + [rad(5, modality="pet")]
    file = write(tmp_path / "set.json", rows)
    sheet = "image,modality\nsynpic1.jpg,CT\nsynpic2.jpg,MRI\nsynpic3.jpg,thermography\nsynpic1.jpg,MRI\n"
    (tmp_path / "modalities.csv").write_text(sheet)
    entries, _ = read(file, open_images=False)
    assert [s.modality for s in samples(entries)] == [Modality.CT, Modality.MR, Modality.PET]
    problems = [(Path(e.file).name, e.problem.row, e.problem.field, e.problem.why) for e in entries if e.problem]
    assert [p[:3] for p in problems] == [
        ("modalities.csv", 4, "modality"), ("modalities.csv", 5, "modality"),
        ("set.json", 3, "modality"), ("set.json", 4, "modality"),
    ]  # fmt: skip
    assert "row 2 says ct of synpic1.jpg" in problems[1][3] and "modalities.csv" in problems[2][3]
    entries, _ = read(file, open_images=False, modality=Modality.OTHER)
    assert [s.modality.value for s in samples(entries)] == ["ct", "mr", "other", "other", "pet"]
    (tmp_path / "modalities.csv").write_text("picture,modality\nsynpic1.jpg,CT\n")
    with pytest.raises(BadInput, match="image and modality are wanted"):
        read(file, open_images=False)


def test_slake(tmp_path: Path) -> None:
    picture(tmp_path / "imgs" / "xmlab1" / "source.jpg")
    write(tmp_path / "train.json", [slake(0), slake(1, q_lang="zh", question="图像是什么？", answer="肝")])
    write(tmp_path / "validate.json", [slake(2, modality="X-Ray"), slake(3, modality="CT")])
    write(tmp_path / "test.json", [slake(4)])
    entries, told = read(tmp_path)
    found = samples(entries)
    assert len(entries) == 5 and not any(e.problem for e in entries)
    assert {s.turns[0].closed for s in found} == {False}
    used = ["qid", "img_name", "question", "answer", "q_lang", "modality", "answer_type"]
    assert told == {"questions in zh, left out": 1} | unused(slake(), 4, used)
    assert {s.id: s.split for s in found} == {
        "train-0": "train", "validate-2": "validation", "validate-3": "validation", "test-4": "test",
    }  # fmt: skip
    assert {s.id: s.modality.value for s in found} == {
        "train-0": "mr", "validate-2": "xray", "validate-3": "ct", "test-4": "mr",
    }  # fmt: skip
    assert {s.images[0].path for s in found} == {"imgs/xmlab1/source.jpg"} and {s.source for s in found} == {"slake"}
    (one,) = samples(read(tmp_path / "test.json", images=tmp_path / "imgs", group=r"xmlab(\d+)", side="image")[0])
    assert (one.images[0].path, one.group, one.side) == ("xmlab1/source.jpg", "1", "image")


def test_rows_of_hugging_face_and_other_keys(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "1.png")
    rows = [
        {"image": "1.png", "question": "What?", "answer": "x"},
        {"image": {"path": "images/1.png"}, "question": "Why?", "answer": "y", "split": "val"},
    ]
    found = samples(read(write(tmp_path / "part.json", rows), modality=Modality.CT)[0])
    assert [(s.id, s.split, s.images[0].path) for s in found] == [
        ("part-row1", None, "images/1.png"), ("part-row2", "validation", "images/1.png"),
    ]  # fmt: skip
    own = [{"pic": "1.png", "q": "What?", "a": "x", "kind": "us", "nr": 7}]
    file = write(tmp_path / "testset.jsonl", own, lines=True)
    keys = {"image": "pic", "question": "q", "answer": "a", "modality": "kind", "id": "nr"}
    (s,) = samples(read(file, columns=keys)[0])
    assert (s.id, s.split, s.question.text, s.answer.text, s.modality.value) == (
        "testset-7", "test", "What?", "x", "ultrasound",
    )  # fmt: skip


def test_llava_med(tmp_path: Path) -> None:
    picture(tmp_path / "1_F1.jpg")
    rows = [
        llava(0), llava(1, type="detailed_description", text="<image>\nDescribe it.", domain=domain("mri")),
        llava(2, domain=domain("histology", "gross")), llava(3, domain=domain("ct_scan", "chest_xray")),
        llava(4, domain=domain("gross")), llava(5, domain=domain("ct_scan")), llava(6, domain=domain("histology")),
    ]  # fmt: skip
    file = write(tmp_path / "qa.jsonl", rows, lines=True)
    entries, told = read(file, form="llava-med-qa")
    found = samples(entries)
    assert [s.modality.value for s in found] == ["xray", "mr", "microscopy", "xray", "other", "ct", "microscopy"]
    used = ["question_id", "image", "text", "gpt4_answer", "domain", "type"]
    first = "questions on figures of two domains, taken as the first in LLaVA-Med's order"
    assert told == {first: 2} | unused(llava(), 7, used)
    assert [(s.task, s.question.text) for s in found[:2]] == [(Task.QA, "What is shown?"), (Task.MIA, "Describe it.")]
    assert {(s.split, s.source, s.group) for s in found} == {("test", "llava_med_qa", "1_F1.jpg")}
    assert [s.id for s in found] == [f"qa-{k}" for k in range(7)]


def test_the_domain_is_that_of_llava_meds_own_evaluation(tmp_path: Path) -> None:
    def oracle(row: Row) -> str | None:  # as get_domain of summarize_gpt_review.py does
        return next((d for d in ("chest_xray", "mri", "histology", "gross", "ct_scan") if row["domain"][d]), None)

    spelled = {"chest_xray": "xray", "mri": "mr", "histology": "microscopy", "gross": "other", "ct_scan": "ct"}
    dice = random.Random(0)
    rows = [llava(k, domain={d: dice.random() < 0.4 for d in domain()}) for k in range(200)]
    entries, _ = read(write(tmp_path / "qa.jsonl", rows, lines=True), "llava-med-qa", open_images=False)
    assert len(entries) == len(rows)
    for row, entry in zip(rows, entries, strict=True):
        truth = oracle(row)
        assert [s.modality.value for s in entry.samples] == ([spelled[truth]] if truth else [])
        assert (entry.problem is None) == (truth is not None)


def test_path_vqa(tmp_path: Path) -> None:
    """Rows as the pickles of https://github.com/UCSD-AI4H/PathVQA hold them (loader: image, question, answer), as JSON.

    Images lie in images/train, images/val and images/test, and are named without a suffix.
    """
    for split in ("train", "val", "test"):
        picture(tmp_path / "images" / split / f"{split}_0001.jpg")
        (tmp_path / "qas" / split).mkdir(parents=True)
        row = {"image": f"{split}_0001", "question": "What is seen?", "answer": "no"}
        write(tmp_path / f"{split}_qa.json", [row])
        file = write(tmp_path / "qas" / split / "qa.json", [row])
        (sample,) = samples(read(file, images=tmp_path / "images", modality=Modality.MICROSCOPY)[0])
        assert sample.images[0].path == f"{split}/{split}_0001.jpg"
        assert sample.split == {"val": "validation"}.get(split, split)
    found = samples(read(tmp_path, modality=Modality.MICROSCOPY)[0])
    assert {s.images[0].path: s.split for s in found} == {
        "images/train/train_0001.jpg": "train", "images/val/val_0001.jpg": "validation",
        "images/test/test_0001.jpg": "test",
    }  # fmt: skip


def test_an_image_in_two_folders_is_not_chosen(tmp_path: Path) -> None:
    for folder in ("train", "test"):
        picture(tmp_path / folder / "1.png")
    row = {"image": "1.png", "question": "What?", "answer": "x", "modality": "ct"}
    (entry,) = read(write(tmp_path / "qa.json", [row]))[0]
    assert entry.problem is not None and "there are test/1.png and train/1.png" in entry.problem.why


FAULTS = [
    (rad(9, answer=""), "answer", "empty"),
    (rad(9, answer=None), "answer", "empty"),
    (rad(9, answer=True), "answer", "not text"),
    (rad(9, answer=["yes"]), "answer", "not text"),
    (rad(9, question="  "), "question", "empty"),
    (rad(9, question="What is [box]?"), "question", "kept for"),
    (rad(9, question="half \ud83d"), "question", "half a character"),
    (rad(9, image_name=""), "image_name", "empty"),
    (rad(9, image_name="none.jpg"), "image_name", "no such file"),
    (rad(9, image_name="../synpic1.jpg"), "image_name", "leads out"),
    ({"question": "What?", "answer": "x", "modality": "ct"}, "image_name", "empty"),
    ({"image": {"bytes": "iVBOR", "path": None}, "question": "What?", "answer": "x"}, "image", "save it as a file"),
    ({"image": {"bytes": "iVBOR", "path": "a.png"}, "question": "What?", "answer": "x"}, "image", "save it as a file"),
    (rad(9, modality="thermography"), "modality", "unknown"),
    (rad(9, modality=3), "modality", "not text"),
    (rad(9, modality=None), "modality", "--modality"),
    (rad(9), "modality", "modalities.csv"),
    (rad(9, split="holdout"), "split", "train, validation or test"),
    (rad(7), "qid", "already used by vqa.json, row 1"),
    (rad(9, qid=[1]), "qid", "text or a number"),
    (rad(9, qid=" "), "qid", "text or a number"),
    (llava(9, text=None), "text", "empty"),
    (llava(9, text="<image>"), "text", "empty"),
    (llava(9, gpt4_answer=""), "gpt4_answer", "empty"),
    (llava(9, image=None), "image", "empty"),
    (llava(9, type="complex"), "type", "conversation"),
    (llava(9, domain=domain()), "domain", "--modality"),
    (llava(9, domain=None), "domain", "--modality"),
    (llava(9, domain="mri"), "domain", "an object"),
    (llava(9, domain={"mri": "yes"}), "domain", "an object"),
    (llava(9, domain={"pet_scan": True}), "domain", "unknown"),
    (llava(9, question_id=1.5), "question_id", "text or a number"),
]


@pytest.mark.parametrize(("row", "field", "why"), FAULTS, ids=[f"{k}-{f[1]}" for k, f in enumerate(FAULTS)])
def test_a_faulty_row_is_named_and_the_rest_is_read(tmp_path: Path, row: Row, field: str, why: str) -> None:
    for name in ("synpic1.jpg", "1_F1.jpg"):
        picture(tmp_path / "images" / name)
    if "image_name" in row and field != "modality":
        row = row | {"modality": "ct"}
    form, good = ("llava-med-qa", llava) if "gpt4_answer" in row else ("vqa", rad)
    rows = [good(7, modality="ct"), row, good(8, modality="ct")]
    entries, _ = read(write(tmp_path / "vqa.json", rows), form)
    assert [e.row for e in entries] == [1, 2, 3]
    (problem,) = (e.problem for e in entries if e.problem)
    assert (problem.row, problem.field) == (2, field) and why in problem.why and "\n" not in str(problem)
    assert [s.id for s in samples(entries)] == ["vqa-7", "vqa-8"]


def test_ids_are_unique_over_the_files_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "test.json", [slake(0)])
    write(tmp_path / "test.jsonl", [slake(0), slake(1)], lines=True)
    entries, _ = read(tmp_path, open_images=False)
    assert [s.id for s in samples(entries)] == ["test-0", "test-1"]
    (problem,) = (e.problem for e in entries if e.problem)
    assert Path(problem.file).name == "test.jsonl" and "already used by test.json, row 1" in problem.why


def test_knobs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no \.json"):
        read(tmp_path)
    file = write(tmp_path / "test.json", [slake(0)])
    with pytest.raises(BadInput, match="--task VG"):
        read(file, task=Task.VG)
    with pytest.raises(BadInput, match="--column picture=x"):
        read(file, columns={"picture": "x"})
    with pytest.raises(BadInput, match="no such file"):
        read(tmp_path / "none.json")
    assert [s.task for s in samples(read(file, task=Task.MIA, open_images=False)[0])] == [Task.MIA]


@pytest.mark.parametrize(("row", "form"), [(rad(), "vqa"), (slake(), "vqa"), (llava(), "llava-med-qa")])
def test_the_form_is_told_by_a_row(tmp_path: Path, row: Row, form: str) -> None:
    assert detect_form(Source(write(tmp_path / "a.json", [row]))) == form
