"""The reader of VQA-Med: its four years, questions and answers in two files, and one fault for each bad line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clinkd.data.readers import detect_form, read_rows
from clinkd.data.readers.rows import RowResult
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, Modality, Sample


def write(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    return file


def picture(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 6)).save(file)


def read(path: Path, **knobs: Any) -> tuple[list[RowResult], Counter[str]]:
    told: Counter[str] = Counter()
    return list(read_rows(Source(path, modality=Modality.OTHER, **knobs), told)), told


def samples(results: list[RowResult]) -> list[Sample]:
    assert [str(r.problem) for r in results if r.problem] == []
    return [s for r in results for s in r.samples]


def test_2019_train_validation_and_test(tmp_path: Path) -> None:
    """Folders and lines as https://github.com/abachaa/VQA-Med-2019 unpacks them, the test set with its categories."""
    train, val = tmp_path / "ImageClef-2019-VQA-Med-Training", tmp_path / "ImageClef-2019-VQA-Med-Validation"
    test = tmp_path / "VQAMed2019Test"
    picture(train / "Train_images" / "synpic1.jpg", val / "Val_images" / "synpic2.jpg")
    picture(test / "VQAMed2019_Test_Images" / "synpic3.jpg")
    write(train / "All_QA_Pairs_train.txt", "synpic1|what plane is this?|axial", "synpic1|is this a ct scan?|yes")
    write(train / "QAPairsByCategory" / "C2_Plane_train.txt", "synpic1|what plane is this?|axial")
    write(train / "train_ImageIDs.txt", "synpic1")
    write(train / "readme.txt", "=====", "| Planes | 16 |")
    write(val / "All_QA_Pairs_val.txt", "synpic2|what organ is this?|breast")
    write(
        test / "VQAMed2019_Test_Questions_w_Ref_Answers.txt",
        "synpic3|organ|which organ system is shown?|heart and great vessels#lung, mediastinum, pleura",
    )
    assert detect_form(Source(tmp_path)) == "vqa-med"
    results, told = read(tmp_path)
    found = samples(results)
    assert [(s.question.text, s.answer.text, s.split, Path(s.images[0].path).name) for s in found] == [
        ("what plane is this?", "axial", "train", "synpic1.jpg"),
        ("is this a ct scan?", "yes", "train", "synpic1.jpg"),
        ("what organ is this?", "breast", "validation", "synpic2.jpg"),
        ("which organ system is shown?", "heart and great vessels", "test", "synpic3.jpg"),
    ]
    assert {s.images[0].width for s in found} == {9} and len({s.id for s in found}) == 4
    assert told["questions with several accepted answers, of which the first is learned"] == 1
    assert told["files of QAPairsByCategory, whose questions stand in All_QA_Pairs"] == 1
    (one,) = samples(read(train / "QAPairsByCategory", images=train / "Train_images")[0])
    assert one.answer.text == "axial" and one.images[0].path == "synpic1.jpg"


def test_2020_questions_and_answers_in_two_files(tmp_path: Path) -> None:
    """Lines as the test set of https://github.com/abachaa/VQA-Med-2020 has them; its README names QA_pairs.txt."""
    for split in ("Training", "Validation"):
        picture(tmp_path / split / "images" / "synpic1.jpg")
        write(tmp_path / split / "QA_pairs.txt", f"synpic1|is this {split}?|yes")
    test = tmp_path / "Test"
    picture(*(test / "images" / f"synpic{k}.jpg" for k in (1, 2)))
    questions = write(test / "VQAMed2020-Task1-VQAnswering-Test-Questions.txt", "synpic1|normal?", "synpic2|what?")
    answers = write(
        test / "VQAMed2020-Task1-VQAnswering-Test-ReferenceAnswers.txt", "synpic2|a cyst|cyst", "synpic1|no"
    )
    results, told = read(tmp_path)
    assert {(s.question.text, s.answer.text, s.split, s.images[0].path) for s in samples(results)} == {
        ("is this Training?", "yes", "train", "Training/images/synpic1.jpg"),
        ("is this Validation?", "yes", "validation", "Validation/images/synpic1.jpg"),
        ("normal?", "no", "test", "Test/images/synpic1.jpg"),
        ("what?", "a cyst", "test", "Test/images/synpic2.jpg"),
    }
    assert told["questions with several accepted answers, of which the first is learned"] == 1
    write(answers, "synpic1|no", "synpic1|yes", "synpic7|no", "synpic8")
    problems = [r.problem for r in read(test)[0] if r.problem]
    assert [(Path(p.file).name == answers.name, p.row, p.field) for p in problems] == [
        (True, 2, "image"), (True, 4, "row"), (False, 2, "answer"), (True, 3, "image"),
    ]  # fmt: skip
    questions.unlink()
    with pytest.raises(BadInput, match="questions in one file and their answers in one beside it"):
        read(test)


def test_2018_has_tabs(tmp_path: Path) -> None:
    """Cells as loaders of ImageCLEF 2018 read them (csv.reader with a tab: row[1] the image, row[2] the question)."""
    picture(tmp_path / "VQAMed2018Train-images" / "1750-1172-5-4-1.jpg")
    file = write(tmp_path / "VQAMed2018Train-QA.csv", "1\t1750-1172-5-4-1\twhat does ct show?\ta cyst, on the left")
    (sample,) = samples(read(file, form="vqa-med")[0])
    assert (sample.question.text, sample.answer.text, sample.split) == (
        "what does ct show?",
        "a cyst, on the left",
        "train",
    )
    assert sample.images[0].path == "VQAMed2018Train-images/1750-1172-5-4-1.jpg"


def test_a_bad_line_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.jpg")
    file = tmp_path / "qa.txt"
    file.write_bytes(b"\xef\xbb\xbfa|what?|x\r\n\r\na|what?\na||y\nb|what?|y\na|what?|caf\xe9\na|why?|\n")
    results, _ = read(file)
    assert [(r.row, r.problem and r.problem.field) for r in results] == [
        (1, None), (3, "row"), (4, "question"), (5, "image"), (6, "row"), (7, "answer"),
    ]  # fmt: skip
    assert results[1].problem is not None and "image|question|answer is wanted" in results[1].problem.why
    with pytest.raises(BadInput, match="no file with lines"):
        read(tmp_path / "images", form="vqa-med")
