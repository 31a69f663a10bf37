"""The check of data: what is wrong between rows, what opening the images shows, and what is told of good rows."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clinkd.boxes import iou_matrix
from clinkd.cli import main
from clinkd.data.checks import near
from clinkd.data.checks.check import Checks, Findings, check, group_problems, quarantine, summarise_problems
from clinkd.data.checks.guessability import compute_median_hits
from clinkd.data.checks.lengths import TokenCounter, TokenEstimator
from clinkd.data.checks.near import Look, examine_images
from clinkd.data.checks.similar import BITS, Pair, find_similar_pairs
from clinkd.data.readers.rows import RowError
from clinkd.data.readers.source import Source
from clinkd.language.foreign import explain_foreign_words
from clinkd.language.sides import convert_side
from clinkd.pipeline.cautions import caution_languages
from clinkd.records import BadInput, Box, BoxedText, ImageRef, Modality, Sample, Task, Turn
from clinkd.reporting import survey


def picture(path: Path, seed: int, size: tuple[int, int] = (96, 64)) -> Path:
    """A smooth random picture: two seeds look different to a perceptual hash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"set_{number}", "image": f"images/{number}.png", "modality": "CT",
        "objects": [{"name": "liver", "box": [10 + number, 10, 40 + number, 30]}],
        "qa": [{"question": "Is there a mass?", "answer": "no"}],
    } | changes  # fmt: skip


def folder(root: Path, *rows: dict[str, Any]) -> Path:
    for number, entry in enumerate(rows):
        path = root / entry["image"]
        if not path.exists():
            picture(path, number)
    (root / "records.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    return root


def checked(path: Path, checks: Checks | None = None, **source: Any) -> Findings:
    return check(Source(path, **source), checks or Checks(workers=1))


def test_good_data_is_clean_and_counted(tmp_path: Path) -> None:
    found = checked(folder(tmp_path, *(row(n) for n in range(8))))
    assert found.clean and (found.rows, found.samples, found.images) == (8, 24, 8)
    assert found.by_task_and_modality() == {"VG": {"ct": 8}, "ROC": {"ct": 8}, "QA": {"ct": 8}}
    (liver,) = found.classes
    assert (liver.name, len(liver.box_N4)) == ("liver", 8)  # asked for and asked about: one box
    assert sum(found.lengths) == 24 and 0 < found.longest < 60
    assert found.root == tmp_path and found.groups == {"-": 8}
    assert {s.task for s in found.examples} == {Task.VG, Task.ROC, Task.QA}
    assert checked(tmp_path).to_json() == found.to_json()


def damaged(path: Path) -> None:
    data = picture(path, 3).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_bad_rows_are_named_with_reasons(tmp_path: Path) -> None:
    rows = [row(n) for n in range(9)]
    rows[1]["qa"] *= 2
    rows[2]["group"], rows[2]["split"] = "patient-a", "train"
    rows[3]["group"], rows[3]["split"] = "patient-a", "test"
    rows[5]["objects"] = [{"name": "liver", "box": [90, 10, 400, 30]}]
    rows[6]["modality"] = "thermography"
    root = folder(tmp_path, *rows)
    damaged(root / "images/4.png")
    (root / "images/7.png").write_bytes(b"")
    (root / "images/8.png").unlink()
    found = checked(root)
    told = {p.row: p for p in found.bad}
    expected = {
        2: ("question", "duplicate", "the same question and answer"),
        4: ("group", "split", "in train in row 3"),
        5: ("image", "row", "cannot be read"),
        6: ("objects[0].box", "row", "outside the image"),
        7: ("modality", "row", "thermography"),
        8: ("image", "row", "empty"),
        9: ("image", "row", "no such file"),
    }
    assert set(told) == set(expected) and len(found.bad) == len(expected)
    for number, (field, kind, why) in expected.items():
        assert (told[number].field, told[number].kind) == (field, kind) and why in told[number].why, told[number]
        assert "\n" not in str(told[number]) and told[number].file.endswith("records.jsonl")
    quarantine([Source(root)], found, tmp_path / "aside.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "aside.jsonl").read_text().splitlines()]
    assert found.quarantined == len(lines) == 7 and {line["row"] for line in lines} == set(expected)
    assert all(json.loads(line["raw"]) == rows[line["row"] - 1] for line in lines)  # the row as it was
    assert json.loads((root / "records.jsonl").read_text().splitlines()[5]) == rows[5]  # the source is left as it is


def test_kinds_can_be_allowed_and_are_still_told(tmp_path: Path) -> None:
    rows = [row(n) for n in range(3)]
    rows[1]["qa"] *= 2
    root = folder(tmp_path, *rows)
    assert not checked(root).clean
    found = checked(root, Checks(allow=frozenset({"duplicate"}), workers=1))
    assert found.clean and [p.kind for p in found.warnings] == ["duplicate"]
    for kind in ("nonsense", "row"):  # what cannot be read cannot be let through
        with pytest.raises(BadInput, match=f"--allow {kind}"):
            Checks(allow=frozenset({kind}))  # type: ignore[arg-type]
    rows[1]["split"], rows[1]["group"], rows[2]["split"], rows[2]["group"] = "train", "p", "test", "p"
    rows[2]["qa"] = [{"question": "Is there a mass?", "answer": "no " * 300}]
    found = checked(folder(tmp_path, *rows), Checks(100, allow=frozenset({"duplicate", "split"}), workers=1))
    assert [(p.row, p.kind) for p in found.bad] == [(3, "length")]  # an allowed fault does not hide another


def test_boxes_in_another_frame_are_suspected(tmp_path: Path) -> None:
    boxes = [{"name": f"cell {k}", "box": [k % 5, k % 3, k % 5 + 4, k % 3 + 3]} for k in range(40)]
    found = checked(folder(tmp_path, row(0, objects=boxes)), max_boxes=100)
    (problem,) = found.bad
    assert problem.kind == "frame" and problem.row == 0 and "upper left tenth" in problem.why
    boxes[7]["box"] = [20, 20, 90, 60]
    assert checked(folder(tmp_path, row(0, objects=boxes)), max_boxes=100).clean


def test_the_length_limit_names_rows(tmp_path: Path) -> None:
    rows = [row(0), row(1, qa=[{"question": "Is there a mass?", "answer": "no " * 300}])]
    root = folder(tmp_path, *rows)
    found = checked(root, Checks(max_length=100, workers=1))
    (problem,) = found.bad
    assert (problem.row, problem.kind, problem.field) == (2, "length", "tokens") and "max_length=100" in problem.why
    assert checked(root, Checks(max_length=1000, workers=1)).clean


def test_tokens_are_counted_with_a_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"no": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    words.save(str(tmp_path / "tokenizer.json"))
    sample = Sample(
        "a", (ImageRef("a.png", 56, 84),), Modality.CT, (Turn(Task.QA, BoxedText("no no no"), BoxedText("no")),), "a"
    )
    marks = 10 + 2 + 2 * 3  # around question and answer, around the image, the image itself
    assert TokenCounter(tmp_path)(sample) == 4 + marks
    assert TokenEstimator()(sample) == 3 + marks  # ten bytes
    with pytest.raises(BadInput, match="no readable tokenizer.json"):
        TokenCounter(tmp_path / "none")


# ---- images that look the same --------------------------------------------------------------------------------------


def test_copies_are_found_whatever_size_and_compression(tmp_path: Path) -> None:
    first = Image.open(picture(tmp_path / "a.png", 1))
    picture(tmp_path / "b.png", 2)
    first.resize((200, 133), Image.Resampling.LANCZOS).save(tmp_path / "c.jpg", quality=60)
    Image.fromarray((np.asarray(first) * 0.8 + 20).astype(np.uint8)).save(tmp_path / "d.png")
    Image.new("RGB", (20, 20), (9, 9, 9)).save(tmp_path / "e.png")
    Image.new("RGB", (30, 20), (99, 9, 9)).save(tmp_path / "f.png")
    looks = list(
        examine_images(tmp_path, [ImageRef(f"{n}") for n in ("a.png", "b.png", "c.jpg", "d.png", "e.png", "f.png")], 1)
    )
    assert find_similar_pairs(looks, range(6), [0] * 6) == [Pair(0, 2), Pair(0, 3)]
    assert find_similar_pairs(looks, [0, 1, 0, 0, 2, 3], [0] * 6) == []  # of one patient
    assert [look.flat for look in looks] == [False, False, False, False, True, True]


def test_pairs_join_all_that_are_close_and_cross_every_split() -> None:
    dice = random.Random(0)
    hashes = [dice.getrandbits(64) for _ in range(60)]
    for _ in range(60):
        mask = sum(1 << bit for bit in dice.sample(range(64), dice.randint(0, 6)))
        hashes.append(dice.choice(hashes) ^ mask)
    splits = [dice.randrange(2) for _ in hashes]
    found = find_similar_pairs([Look(None, h, bytes(range(256))) for h in hashes], range(120), splits)
    close = [(i, j) for j in range(120) for i in range(j) if (hashes[i] ^ hashes[j]).bit_count() <= BITS]
    assert set(found) <= set(close) and len(close) > 20

    def joined(pairs: Iterable[tuple[int, int]]) -> list[int]:
        leader = list(range(120))
        for i, j in pairs:
            old, new = leader[j], leader[i]
            leader = [new if k == old else k for k in leader]
        return [leader.index(k) for k in leader]

    assert joined(found) == joined(close)
    torn = {j for i, j in close if splits[i] != splits[j]}
    assert {j for i, j in found if splits[i] != splits[j]} == torn


def test_a_thousand_copies_are_a_thousand_pairs() -> None:
    looks = [Look(None, 7 << 40, bytes(range(256)))] * 1000
    assert find_similar_pairs(looks, range(1000), [0] * 1000) == [Pair(0, k) for k in range(1, 1000)]


def test_a_decoder_that_dies_is_the_fault_of_one_image(tmp_path: Path) -> None:
    names = [picture(tmp_path / f"{n}.png", n).name for n in range(3)]
    (tmp_path / "bad.dcm").write_bytes(b"")
    refs = [ImageRef(n) for n in names] + [ImageRef("bad.dcm")]
    with pytest.MonkeyPatch.context() as patch:  # a process that ends in the middle, as a crash of C code is
        patch.setattr(near, "_JOB", 2)  # a sound job and a broken one; the broken one is lost for its own image alone
        patch.setattr(near, "look_in_worker", dies_of_dicom)
        looks = list(examine_images(tmp_path, refs, 2))
    assert [look.why is None for look in looks] == [True] * 3 + [False]
    assert looks[-1].why is not None and "crashed" in looks[-1].why


def dies_of_dicom(request: tuple[str, dict[str, Any]], content: bytes) -> tuple[Any, list[bytes]]:
    if request[1]["path"].endswith(".dcm"):
        os._exit(3)
    return (None, hash(request[1]["path"]) % 2**63, False), [bytes(256)]


def test_workers_and_one_process_see_the_same(tmp_path: Path) -> None:
    refs = [ImageRef(picture(tmp_path / f"{n}.png", n).name) for n in range(60)]
    damaged(tmp_path / "7.png")
    assert list(examine_images(tmp_path, refs, 2)) == list(examine_images(tmp_path, refs, 1))


def test_near_duplicates_across_a_split_are_bad_and_else_told(tmp_path: Path) -> None:
    rows = [row(n, split="train" if n < 2 else "test") for n in range(4)]
    root = folder(tmp_path, *rows)
    Image.open(root / "images/0.png").save(root / "images/3.png")
    found = checked(root)
    (problem,) = found.bad
    assert (problem.row, problem.kind) == (4, "near-duplicate") and "images/0.png" in problem.why
    for entry in rows:
        del entry["split"]
    found = checked(folder(tmp_path, *rows))
    assert found.clean and [p.kind for p in found.warnings] == ["near-duplicate"]
    assert found.joined == [("set_0", "set_3")]


def test_the_median_of_the_others_equals_the_plain_way() -> None:
    dice = np.random.default_rng(0)
    for count in (1, 2, 3, 4, 7, 20, 21):
        corner = dice.uniform(0.1, 0.4, (count, 2))
        boxes = np.concatenate([corner, corner + dice.uniform(0.1, 0.5, (count, 2))], axis=1)
        boxes[count // 2] = boxes[0]
        hits = 0
        for i in range(count if count > 1 else 0):
            median = np.median(np.delete(boxes, i, 0), axis=0)
            hits += bool(iou_matrix([Box(*boxes[i])], [Box(*median)])[0, 0] >= 0.5)
        assert compute_median_hits(boxes) == pytest.approx(hits / count)


def test_outputs_never_replace_what_is_not_theirs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "set", row(0), row(1, modality="thermography"))
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    for flag in ("--quarantine", "--page"):
        for victim in ("records.jsonl", "images/0.png", "images"):
            assert main(["data", "check", str(root), flag, str(root / victim)]) == 2
            assert flag in capsys.readouterr().err.splitlines()[-1]
    for kind in ("jsonl", "coco"):
        assert main(["data", "export", str(root), "--to", kind, "--out", str(root / "records.jsonl")]) == 2
    assert main(["data", "show", str(root), "set_0-vg1", "--out", str(root / "images/0.png")]) == 2
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    page, aside = tmp_path / "p.html", tmp_path / "q.jsonl"
    for _ in range(2):  # its own are replaced
        assert main(["data", "check", str(root), "--page", str(page), "--quarantine", str(aside)]) == 2
        assert main(["data", "show", str(root), "set_0-vg1", "--out", str(tmp_path / "x.png")]) == 0
    assert len(aside.read_text().splitlines()) == 1
    assert main(["data", "check", str(root), "--page", str(page), "--quarantine", str(page)]) == 2


def test_torn_bytes_are_set_aside_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"id": f"r{k}", "image": f"{k}.png", "modality": "CT", "qa": [{"question": "caf\xe9?", "answer": "no"}]}
        for k in (0, 1)
    ]
    folder(tmp_path, *rows)
    text = json.dumps(rows, ensure_ascii=False).encode().replace(b"caf\xc3\xa9", b"caf\xe9", 1)
    (tmp_path / "records.jsonl").rename(tmp_path / "old")
    (tmp_path / "records.json").write_bytes(text)
    aside = tmp_path / "q.jsonl"
    words = ["data", "check", str(tmp_path / "records.json"), "--form", "boxes", "--json", "--quarantine", str(aside)]
    assert main(words) == 2
    (problem,) = json.loads(capsys.readouterr().out)["bad"]
    assert problem["row"] == 1 and "0xe9" in problem["reason"]
    assert json.loads(aside.read_text())["row"] == 1


def test_a_file_that_cannot_be_read_is_told_to_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content, told in (
        ("none.json", None, "no such file"),
        ("empty.json", "", "empty"),
        ("bad.json", '[{"a": 1, "a": 2}]', "twice"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        assert main(["data", "check", str(tmp_path / name), "--json"]) == 2
        said = capsys.readouterr()
        (problem,) = json.loads(said.out)["bad"]
        assert told in problem["reason"] and told in said.err.splitlines()[-1]


# ---- the door -------------------------------------------------------------------------------------------------------


def test_the_program_form_and_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "good", row(0), row(1))
    assert main(["data", "check", str(root), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["bad"], told["quarantined"]) == (2, [], 0)
    assert told["by_task_and_modality"] == {"VG": {"ct": 2}, "ROC": {"ct": 2}, "QA": {"ct": 2}}
    root = folder(tmp_path / "bad", row(0), row(1, modality="thermography"))
    aside = tmp_path / "aside.jsonl"
    assert main(["data", "check", str(root), "--json", "--quarantine", str(aside)]) != 0
    told = json.loads(capsys.readouterr().out)
    (problem,) = told["bad"]
    assert {"file", "row", "field", "value", "reason"} <= set(problem)
    assert (problem["row"], problem["field"], told["quarantined"]) == (2, "modality", 1)
    assert main(["data", "check", str(root)]) != 0
    assert "row 2, id set_1: modality" in capsys.readouterr().out


def test_the_page_shows_counts_maps_faults_and_pictures(tmp_path: Path) -> None:
    rows = [row(n) for n in range(5)]
    rows[3]["modality"] = "<b>thermo</b>"
    found = checked(folder(tmp_path, *rows))
    survey.write_survey_page(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for words in ("5 rows, 12 samples", "ct, 4 boxes: where", "ct, 4 boxes: size", "Median box of each class", "liver"):
        assert words in page, words
    assert "&lt;b&gt;thermo&lt;/b&gt;" in page and "<b>thermo" not in page
    assert page.count("data:image/") == len(found.examples) == 6
    assert Counter(page)["\0"] == 0


def test_real_images_are_clean(shared: Path) -> None:
    found = check(Source(shared / "data" / "dev"), Checks(workers=2))
    assert (found.rows, found.images) == (477, 477)
    assert found.to_json()["images_opened"]
    assert {p.kind for p in found.bad} <= {"duplicate", "side"}, found.bad


def test_rows_with_the_same_problem_are_one_line() -> None:
    def problem(row: int, why: str, file: str = "a.csv") -> RowError:
        return RowError(file, row, f"i{row}", "question", "x", why)

    rows = [*range(2, 8), 9, 11, 12]
    problems = [problem(row, "not utf-8") for row in rows] + [problem(13, "empty"), problem(14, "empty")]
    lines = list(summarise_problems(problems, 20))
    assert lines[0] == "a.csv, rows 2 to 7, 9, 11 to 12 (9 rows), the first, id i2: question = x: not utf-8"
    assert lines[1:] == [str(p) for p in problems[-2:]]  # few rows are shown one by one
    assert list(summarise_problems(problems, 1)) == [lines[0], "and 2 more (2 row)"]
    scattered = list(summarise_problems([problem(row, "empty") for row in range(0, 60, 2)], 20))
    assert len(scattered) == 1 and "rows 0, 2, 4, 6, 8, 10, 12, 14 ... (30 rows)" in scattered[0]
    words = [problem(row, f"modality 'm{row}' is unknown; did you mean mr{row}?; give one of ct, mr") for row in rows]
    assert len(list(summarise_problems(words, 20))) == 1, "the words of the rows differ, and their fault does not"
    assert len(group_problems([*words, problem(40, "modality 'x' is unknown; give one of ct, mr", "b.csv")])) == 2


def test_one_fault_of_many_files_is_one_line() -> None:
    """YOLO has a file an image: a missing modality stands in each of them."""
    problems = [RowError(f"{n}.txt", 1, f"i{n}", "modality", "null", "not told") for n in range(6)]
    whole = [RowError("a.csv", row, "x", "modality", "null", "not told") for row in range(2, 7)]
    first, second = summarise_problems([*problems, *whole], 20)
    assert first == "6 rows of 6 files, the first 0.txt, row 1, id i0: modality = null: not told"
    assert second.startswith("a.csv, rows 2 to 6 (5 rows), the first, id x")
    assert len(list(summarise_problems(problems[:3], 20))) == 3  # few are shown one by one


def test_a_bad_row_is_named_by_its_image(tmp_path: Path) -> None:
    """In each line, on the page once for alike rows, and row by row for programs and in the quarantine."""
    for k in range(6):
        Image.fromarray(np.full((30, 40), 40 * k, np.uint8)).save(tmp_path / f"{k}.png")
    lines = [f"q{k},{k}.png,thermo{k},Question {k}?,yes" for k in range(6)]
    (tmp_path / "a.csv").write_text("\n".join(["id,image,modality,question,answer", *lines]) + "\n")
    source = Source(tmp_path / "a.csv")
    found = check(source, Checks(workers=1))
    assert (
        [p.image for p in found.bad] == [f"{k}.png" for k in range(6)] == [p["image"] for p in found.to_json()["bad"]]
    )
    assert ", row 2, id q0: modality = thermo0: " in str(found.bad[0]) and str(found.bad[0]).endswith(" (image 0.png)")
    (line,) = summarise_problems(found.bad, 20)
    assert "rows 2 to 7 (6 rows), the first, id q0: modality = thermo0: " in line and line.endswith(" (image 0.png)")
    survey.write_survey_page(found, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "2 to 7 (6 rows)" in page and "0.png" in page and "thermo3" not in page
    quarantine([source], found, tmp_path / "bad.jsonl")
    kept = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [(row["row"], row["image"]) for row in kept] == [(k + 2, f"{k}.png") for k in range(6)]


FOREIGN = [
    ("the left lung", "yes", []),
    ("the links between vessels", "no", []),
    ("die linke Lunge", "Erguss", []),
    ("le poumon gauche", "oui", []),
    ("links", "ja, deutlich", []),
    ("¿Hay un nódulo en el pulmón izquierdo?", "sí", ["Spanish"]),
    ("polmone sinistro", "rim esquerdo", ["Italian", "Portuguese"]),
    ("Где левое лёгкое?", "слева", ["CYRILLIC letters"]),
    ("左肺在哪里?", "β-amyloid", ["CJK letters"]),
    ("Wo ist die rechte Lunge und left kidney?", "links", ["English within German"]),
]


@pytest.mark.parametrize(("question", "answer", "languages"), FOREIGN)
def test_sides_in_a_language_that_no_check_reads_are_told(question: str, answer: str, languages: list[str]) -> None:
    turn = Turn(Task.QA, BoxedText(question), BoxedText(answer))
    sample = Sample("a", (ImageRef("a.png", 9, 9),), Modality.CT, (turn,), "a")
    told = list(explain_foreign_words(sample))
    assert told == [
        f"samples in {name}: sides are not checked in this language, and not turned by --turn-to" for name in languages
    ]
    assert caution_languages([sample, sample]) == [
        f"sides are not checked in {name}: 2 test samples" for name in languages
    ]
    if languages:
        with pytest.raises(BadInput, match="are not turned; write one of English, German, French|not English"):
            convert_side(sample, "image")
