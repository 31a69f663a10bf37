"""Sources to one data set: checked, split by group, recorded, written whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.data import get_testdata_file

from clinkd.cli import _parser, main
from clinkd.cli.data import source_of
from clinkd.config import DataConfig, RunConfig
from clinkd.data.checks.check import Checks
from clinkd.data.images import open_image
from clinkd.data.importing import Division, NotClean, import_data, split_again
from clinkd.data.readers.forms import read_samples
from clinkd.data.readers.source import Source
from clinkd.pipeline import plan
from clinkd.records import BadInput, Modality, Sample, Task
from clinkd.version import spell_program

CHECKS = Checks(workers=1)


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC).save(path)


def records(root: Path, count: int = 12, first: int = 0, **changes: Any) -> Path:
    """A folder of records.jsonl: two images a patient."""
    lines = []
    for number in range(first, first + count):
        picture(root / f"images/{number}.png", number)
        row = {
            "id": f"set_{number}", "image": f"images/{number}.png", "modality": "CT", "group": f"p{number // 2}",
            "objects": [{"name": "left kidney", "box": [60, 10, 90, 30]}],
            "qa": [{"question": "Is there a mass?", "answer": "no"}],
        } | changes  # fmt: skip
        lines.append(json.dumps(row))
    (root / "records.jsonl").write_text("\n".join(lines) + "\n")
    return root


def about(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "dataset.json").read_text()))


def stored_samples(folder: Path) -> list[Sample]:
    return [Sample.from_json(json.loads(line)) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_german_sides_are_checked_and_turned_and_spanish_ones_are_told(tmp_path: Path) -> None:
    told = [{"question": "Wo liegt die Zyste?", "answer": "in der linken Niere"}]
    german = Source(records(tmp_path / "a", 2, objects=[{"name": "linke Niere", "box": [60, 10, 90, 30]}], qa=told))
    import_data([german], tmp_path / "out", CHECKS, side="image")
    samples = stored_samples(tmp_path / "out")
    texts = {text.words for s in samples for turn in s.turns for text in (turn.question, turn.answer)}
    assert {s.side for s in samples} == {"image"} and {s.names for s in samples if s.names} == {("rechte Niere",)}
    assert "in der rechten Niere" in texts and not any("linke" in text for text in texts)
    with pytest.raises(NotClean) as raised:
        import_data([replace(german, side="image")], tmp_path / "no", CHECKS)
    assert {p.kind for p in raised.value.findings.bad} == {"side"}

    said = [{"question": "¿Hay una masa en el pulmón izquierdo?", "answer": "sí"}]
    spanish = Source(records(tmp_path / "b", 2, objects=[], qa=said))
    import_data([spanish], tmp_path / "told", CHECKS)
    (note, count), *others = ((n, c) for n, c in about(tmp_path / "told")["left_out"].items() if "sides" in n)
    assert (note.split(":")[0], count, others) == ("samples in Spanish", 2, [])


def test_one_source_becomes_a_data_set(tmp_path: Path) -> None:
    source, out = Source(records(tmp_path / "a")), tmp_path / "out"
    found = import_data([source], out, CHECKS, Division(0.2, 0.2))
    assert found.clean and found.samples == 36
    samples = stored_samples(out)
    plain = read_samples(source, found.notes)
    assert [s.id for s in samples] == [s.id for s in plain]
    split_of: dict[str, set[str | None]] = {}
    for sample in samples:
        split_of.setdefault(sample.group, set()).add(sample.split)
    assert all(len(s) == 1 for s in split_of.values()) and len(split_of) == 6
    assert {s for part in split_of.values() for s in part} == {"train", "validation", "test"}
    told = about(out)
    assert told["split"] == {"validation": 0.2, "test": 0.2, "seed": 0, "anew": False}
    assert told["side"] == "patient" and told["samples"] == 36 and sum(told["groups"].values()) == 6
    assert told["sources"][0]["form"] == "boxes"
    again = import_data([source], tmp_path / "again", CHECKS, Division(0.2, 0.2))
    assert again.samples == 36
    assert (tmp_path / "again/samples.jsonl").read_bytes() == (out / "samples.jsonl").read_bytes()
    for sample in (samples[0], samples[-1]):
        assert open_image(Source(out).root, sample.images[0]).size == (96, 64)
    assert not list(tmp_path.glob(".*"))


def test_a_run_takes_the_data_set(tmp_path: Path) -> None:
    import_data([Source(records(tmp_path / "a"))], tmp_path / "out", CHECKS, Division(0.2, 0.2))
    config = RunConfig(name="x", data=DataConfig(path=tmp_path / "out"))
    first = plan(config)[0]
    assert plan(config)[0].identity == first.identity
    picture(tmp_path / "a/images/3.png", 99)
    assert plan(config)[0].identity != first.identity  # another image, another data set
    found = read_samples(Source(tmp_path / "out"), Counter())
    assert len(found) == 36 and {s.split for s in found} == {"train", "validation", "test"}


def test_two_sources_are_joined_below_one_root(tmp_path: Path) -> None:
    sources = [Source(records(tmp_path / "a", 6)), Source(records(tmp_path / "b", 6, first=6))]
    found = import_data(sources, tmp_path / "out", CHECKS, None)
    assert found.samples == 36 and found.groups == {"-": 6}
    paths = {s.images[0].path for s in stored_samples(tmp_path / "out")}
    assert paths == {f"a/images/{n}.png" for n in range(6)} | {f"b/images/{n}.png" for n in range(6, 12)}
    root = Source(tmp_path / "out").root.resolve()
    assert root == tmp_path and all((root / p).is_file() for p in paths)
    assert {s.split for s in stored_samples(tmp_path / "out")} == {None}


def test_bad_rows_stop_everything_unless_set_aside(tmp_path: Path) -> None:
    root = records(tmp_path / "a")
    lines = (root / "records.jsonl").read_text().splitlines()
    lines[3] = lines[3].replace('"CT"', '"thermo"')
    (root / "records.jsonl").write_text("\n".join(lines) + "\n")
    (root / "images/5.png").write_bytes((root / "images/5.png").read_bytes()[:200])
    with pytest.raises(NotClean, match="2 of 12 rows are bad") as caught:
        import_data([Source(root)], tmp_path / "out", CHECKS)
    assert [p.row for p in caught.value.findings.bad] == [4, 6]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]  # nothing is left of it
    found = import_data([Source(root)], tmp_path / "out", CHECKS, Division(), tmp_path / "aside.jsonl")
    aside = [json.loads(line) for line in (tmp_path / "aside.jsonl").read_text().splitlines()]
    assert [line["row"] for line in aside] == [4, 6] and all(line["reason"] for line in aside)
    assert found.quarantined == 2 and found.samples == 30 == len(stored_samples(tmp_path / "out"))
    assert sum(n for by in found.by_task_and_modality().values() for n in by.values()) == 30
    assert {s.id[:6] for s in stored_samples(tmp_path / "out")}.isdisjoint({"set_3-", "set_5-"})


def test_sides_are_not_mixed_and_can_be_turned(tmp_path: Path) -> None:
    patient = Source(records(tmp_path / "a", 6))
    image = Source(
        records(tmp_path / "b", 6, first=6, objects=[{"name": "right kidney", "box": [60, 10, 90, 30]}]), side="image"
    )
    with pytest.raises(BadInput, match="records.jsonl, row 1: left and right are the image's here and the patient's"):
        import_data([patient, image], tmp_path / "out", CHECKS)
    import_data([patient, image], tmp_path / "out", CHECKS, side="patient")
    samples = stored_samples(tmp_path / "out")
    assert {s.side for s in samples} == {"patient"} and about(tmp_path / "out")["side"] == "patient"
    assert {s.names for s in samples if s.names} == {("left kidney",)}
    other = Source(
        records(
            tmp_path / "c", 4, first=20, modality="endoscopy", objects=[{"name": "left wall", "box": [6, 1, 9, 3]}]
        ),
        side="image",
    )
    with pytest.raises(NotClean) as caught:
        import_data([other], tmp_path / "no", CHECKS, side="patient")
    assert {p.kind for p in caught.value.findings.bad} == {"side"} and len(caught.value.findings.bad) == 4


def test_images_that_look_the_same_stay_together(tmp_path: Path) -> None:
    root = records(tmp_path / "a", 40)
    for first, second in ((0, 39), (39, 20), (4, 11)):
        Image.open(root / f"images/{first}.png").save(root / f"images/{second}.png")
    import_data([Source(root)], tmp_path / "out", CHECKS, Division(0.3, 0.3))
    groups = {s.images[0].path: (s.group, s.split) for s in stored_samples(tmp_path / "out")}
    assert groups["images/0.png"] == groups["images/39.png"] == groups["images/20.png"]
    assert groups["images/4.png"] == groups["images/11.png"] != groups["images/0.png"]
    assert len({g for g, _ in groups.values()}) == 20 - 3


def test_splits_given_by_the_files_are_kept_or_forgotten(tmp_path: Path) -> None:
    root = records(tmp_path / "a", 40, split="train")
    import_data([Source(root)], tmp_path / "kept", CHECKS, Division(0.2, 0.2))
    kept = {s.split for s in stored_samples(tmp_path / "kept")}
    assert kept == {"train", "validation"}  # nothing was given for validation: a part of train is put aside
    import_data([Source(root)], tmp_path / "anew", CHECKS, Division(0.2, 0.2, anew=True))
    assert {s.split for s in stored_samples(tmp_path / "anew")} == {"train", "validation", "test"}


def test_splits_that_names_of_files_and_folders_tell_are_taken_where_there_are_several(tmp_path: Path) -> None:
    folders = [records(tmp_path / name, 4, 10 * n) for n, name in enumerate(("train", "valid", "test"))]
    findings = import_data([Source(f) for f in folders], tmp_path / "a", CHECKS, Division(0.3, 0.3))
    found = {(s.images[0].path.partition("/")[0], s.split) for s in stored_samples(tmp_path / "a")}
    assert found == {("train", "train"), ("valid", "validation"), ("test", "test")}
    assert any("of the validation split, as its name" in note for note in findings.notes)
    import_data([Source(f) for f in folders], tmp_path / "b", CHECKS, Division(0.3, 0.3, anew=True))
    assert len({s.split for s in stored_samples(tmp_path / "b") if s.images[0].path.startswith("train")}) > 1
    for name, number in (("train", 1), ("test", 2)):
        lines = "".join(f"valid/images/{number}{n}.png,Is it?,yes,ct\n" for n in range(2))
        (tmp_path / f"{name}.csv").write_text(f"image,question,answer,modality\n{lines}")
    sheets = [Source(tmp_path / f"{name}.csv") for name in ("train", "test")]
    records(tmp_path / "valid", 20, 10)
    import_data(sheets, tmp_path / "c", CHECKS, Division(0, 0))
    assert {(s.source, s.split) for s in stored_samples(tmp_path / "c")} == {("train", "train"), ("test", "test")}
    findings = import_data(sheets[1:], tmp_path / "d", CHECKS, Division(0, 0))
    assert {s.split for s in stored_samples(tmp_path / "d")} == {"train"}
    assert "sheet is divided, though its name says test; --all-in test keeps all of it there" in findings.notes


def test_kept_splits_and_an_empty_one_are_told(tmp_path: Path) -> None:
    """ISIC 2018 as many have it: a folder for training, one for validation, and none for the test."""
    for folder in ("train", "valid"):
        (tmp_path / folder).mkdir()
    sources = [Source(records(tmp_path / "train")), Source(records(tmp_path / "valid", 3, first=40))]
    notes = import_data(sources, tmp_path / "out", Checks(workers=1), Division()).notes
    assert notes["groups keep the split that the files tell; --anew divides all anew"] == 8
    assert notes["split has no question (test), and a run needs one in each: --anew divides all data anew"] == 1
    notes = import_data(sources, tmp_path / "anew", Checks(workers=1), Division(anew=True)).notes
    assert not any("keep the split" in note or "no question" in note for note in notes)


def test_images_alone_name_the_sheet_beside_them(tmp_path: Path) -> None:
    """VinDr-CXR of PhysioNet: train/*.dicom, and annotations/annotations_train.csv, of which the folder is given."""
    (tmp_path / "vindr" / "train").mkdir(parents=True)
    shutil.copy(get_testdata_file("CT_small.dcm", download=False), tmp_path / "vindr" / "train" / "a.dicom")
    sheet = tmp_path / "vindr" / "annotations" / "train.csv"
    sheet.parent.mkdir()
    sheet.write_text("image_id,class_name,rad_id,x_min,y_min,x_max,y_max\na,Nodule,R1,1,2,30,40\n")
    with pytest.raises(BadInput, match=f"no box is left of 1 rows; give {sheet} .sheet., and --images"):
        import_data([Source(tmp_path / "vindr")], tmp_path / "out", CHECKS, Division())


@pytest.mark.parametrize("form", ["sheet", "coco", "boxes", "vqa"])
def test_folders_of_images_tell_the_split_where_there_are_several(tmp_path: Path, form: str) -> None:
    names = [f"{folder}/{n}.png" for folder in ("train", "test") for n in range(4)]
    for number, name in enumerate(names):
        picture(tmp_path / name, number)
    images = [{"id": k, "file_name": name, "width": 96, "height": 64} for k, name in enumerate(names)]
    marks = [{"id": k, "image_id": k, "category_id": 1, "bbox": [1, 2, 30, 40]} for k in range(len(names))]
    objects = [{"name": "cyst", "box": [1, 2, 30, 40]}]
    texts = {
        "sheet": "image,label\n" + "".join(f"{name},cyst {name[0]}\n" for name in names),
        "coco": json.dumps({"images": images, "annotations": marks, "categories": [{"id": 1, "name": "cyst"}]}),
        "boxes": "".join(json.dumps({"id": n, "image": n, "objects": objects}) + "\n" for n in names),
        "vqa": json.dumps([{"image": name, "question": "What is it?", "answer": "a cyst"} for name in names]),
    }
    file = tmp_path / {"sheet": "a.csv", "boxes": "records.jsonl"}.get(form, "a.json")
    file.write_text(texts[form])
    source = Source(file, modality=Modality.CT)
    findings = import_data([source], tmp_path / "out", CHECKS, Division(0, 0.5))
    assert {(s.images[0].path[:-6], s.split) for s in stored_samples(tmp_path / "out")} == {
        ("train", "train"), ("test", "test")
    }  # fmt: skip
    told = {note: n for note, n in findings.notes.items() if "the folder of their image says" in note}
    assert sorted(told.values()) == [4, 4] and any("of the test split" in note for note in told)
    import_data([source], tmp_path / "anew", CHECKS, Division(0, 0.5, anew=True))
    assert len({s.split for s in stored_samples(tmp_path / "anew") if s.images[0].path.startswith("train")}) > 1


@pytest.mark.parametrize("form", ["sheet", "boxes"])
def test_the_split_of_all_rows_goes_before_what_rows_say(tmp_path: Path, form: str) -> None:
    root = records(tmp_path / "a", 4, split="test")
    if form == "sheet":
        root /= "a.csv"
        root.write_text("image,split,label\n" + "".join(f"images/{n}.png,test,cyst\n" for n in range(4)))
    source = Source(root, modality=Modality.CT, split="train")
    findings = import_data([source], tmp_path / "out", CHECKS, Division(0, 0))
    assert {s.split for s in stored_samples(tmp_path / "out")} == {"train"}
    assert findings.notes["rows say test, and are of the train split, as --all-in says"] == 4


def test_spellings_of_a_path_are_one_image_and_stay_in_their_source(tmp_path: Path) -> None:
    for number, folder in enumerate("ab"):
        picture(tmp_path / folder / "sub/1.png", number)
        lines = "".join(f"{name},Q{k}?,yes\n" for k, name in enumerate(("sub/1", "sub\\1.png", "./sub/1.png")))
        (tmp_path / folder / "s.csv").write_text(f"image,question,answer\n{lines}")
    sources = [Source(tmp_path / folder / "s.csv", modality=Modality.CT) for folder in "ab"]
    import_data(sources, tmp_path / "out", CHECKS, Division(0, 0))
    counts = Counter(s.group for s in stored_samples(tmp_path / "out"))
    assert counts == {"a/sub/1.png": 3, "b/sub/1.png": 3}


def test_paths_of_windows_below_a_folder_of_images_are_found(tmp_path: Path) -> None:
    picture(tmp_path / "images/1.png", 1)
    (tmp_path / "a.json").write_text(json.dumps([{"image": "images\\1.png", "question": "Is it?", "answer": "yes"}]))
    (sample,) = read_samples(Source(tmp_path / "a.json", modality=Modality.CT), Counter())
    assert sample.images[0].path == sample.group == "images/1.png"


@pytest.mark.parametrize(("one", "other"), [("trainset", "testset"), ("TrainDataset", "my_TestDataset_2")])
def test_names_such_as_trainset_tell_the_split(tmp_path: Path, one: str, other: str) -> None:
    for number, name in enumerate((one, other)):
        picture(tmp_path / f"{number}.png", number)
        (tmp_path / f"{name}.csv").write_text(f"image,label\n{number}.png,cyst\n")
    sources = [Source(tmp_path / f"{name}.csv", modality=Modality.CT) for name in (one, other)]
    import_data(sources, tmp_path / "out", CHECKS, Division(0, 0))
    assert [s.split for s in stored_samples(tmp_path / "out")] == ["train", "test"]


def test_folders_that_are_all_called_train_tell_nothing(tmp_path: Path) -> None:
    for number in range(8):
        picture(tmp_path / f"train/{number}.png", number)
    file = tmp_path / "a.csv"
    file.write_text("image,label\n" + "".join(f"train/{n}.png,cyst\n" for n in range(8)))
    import_data([Source(file, modality=Modality.CT)], tmp_path / "out", CHECKS, Division(0, 0.5))
    assert {s.split for s in stored_samples(tmp_path / "out")} == {"train", "test"}


def test_splitting_again_is_recorded(tmp_path: Path) -> None:
    import_data([Source(records(tmp_path / "a", 40))], tmp_path / "out", CHECKS, None)
    counts = split_again(tmp_path / "out", Division(0.1, 0.5, seed=3))
    assert sum(counts.values()) == 20 and counts["test"] > counts["validation"] > 0
    assert about(tmp_path / "out")["split"]["seed"] == 3 and about(tmp_path / "out")["groups"] == dict(counts)
    samples = stored_samples(tmp_path / "out")
    assert len(samples) == 120
    split_again(tmp_path / "out", Division(0.1, 0.1, seed=4))
    assert stored_samples(tmp_path / "out") != samples
    with pytest.raises(BadInput, match="no samples.jsonl"):
        split_again(tmp_path / "a", Division())


def test_copies_make_a_set_that_can_be_carried_away(tmp_path: Path) -> None:
    root = records(tmp_path / "a", 6)
    Image.open(root / "images/1.png").transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(root / "images/0.png.bmp")
    text = (root / "records.jsonl").read_text().replace("images/1.png", "images/0.png.bmp")
    (root / "records.jsonl").write_text(text)
    (root / "images/1.png").rename(root / "images/0.png.bmp.png")  # the name that the copy of the other would take
    text = text.replace("images/2.png", "images/0.png.bmp.png")
    (root / "records.jsonl").write_text(text)
    before = {s.id: np.asarray(open_image(root, s.images[0])) for s in read_samples(Source(root), Counter())}
    notes = PngInfo()
    notes.add_text("PatientName", "Canary")
    Image.open(root / "images/3.png").save(root / "images/3.png", pnginfo=notes)
    import_data([Source(root)], tmp_path / "out", CHECKS, None, copy=True)
    (tmp_path / "out").rename(tmp_path / "moved")
    (tmp_path / "a").rename(tmp_path / "gone")
    samples = stored_samples(tmp_path / "moved")
    assert len({s.images[0].path for s in samples}) == 6
    for sample in samples:  # none took the place of another
        assert np.array_equal(before[sample.id], np.asarray(open_image(tmp_path / "moved", sample.images[0])))
    assert all(b"Canary" not in p.read_bytes() for p in (tmp_path / "moved").rglob("*.*"))
    assert read_samples(Source(tmp_path / "moved"), Counter())


def test_what_a_conversion_refuses_is_in_the_quarantine(tmp_path: Path) -> None:
    objects = [{"name": "left wall", "box": [6, 1, 9, 3]}]
    root = records(tmp_path / "a", 4)
    lines = (root / "records.jsonl").read_text().splitlines()
    other = json.loads(lines[1]) | {"modality": "endoscopy", "objects": objects, "side": "image"}
    (root / "records.jsonl").write_text("\n".join([lines[0], json.dumps(other), *lines[2:]]) + "\n")
    for allow in (frozenset(), frozenset({"side"})):  # a row that cannot be turned is not let through
        aside, out = tmp_path / f"q{len(allow)}.jsonl", tmp_path / f"out{len(allow)}"
        found = import_data([Source(root)], out, Checks(allow=allow, workers=1), None, aside, side="patient")  # type: ignore[arg-type]
        assert found.quarantined == 1 and json.loads(aside.read_text())["row"] == 2
        assert len({s.images for s in stored_samples(out)}) == 3


def test_a_doubtful_frame_is_not_laundered_by_a_quarantine(tmp_path: Path) -> None:
    objects = [{"name": f"cell {k}", "box": [k % 5, k % 3, k % 5 + 4, k % 3 + 3]} for k in range(40)]
    root = records(tmp_path / "a", 1, objects=objects)
    with pytest.raises(NotClean):
        import_data([Source(root, max_boxes=100)], tmp_path / "out", CHECKS, None, tmp_path / "q.jsonl")
    allowed = Checks(allow=frozenset({"frame"}), workers=1)
    assert import_data([Source(root, max_boxes=100)], tmp_path / "out", allowed, None).samples


def test_an_allowed_split_is_taken_row_by_row(tmp_path: Path) -> None:
    root = records(tmp_path / "a", 8, split="train")
    lines = (root / "records.jsonl").read_text().splitlines()
    lines[1] = lines[1].replace('"train"', '"test"')
    (root / "records.jsonl").write_text("\n".join(lines) + "\n")
    import_data([Source(root)], tmp_path / "out", Checks(allow=frozenset({"split"}), workers=1), Division())
    assert {s.split for s in stored_samples(tmp_path / "out") if s.images[0].path == "images/1.png"} == {"test"}
    assert {s.split for s in stored_samples(tmp_path / "out") if s.images[0].path == "images/0.png"} == {"train"}


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        records(tmp_path / name, 4)
    sources = [Source(tmp_path / "a"), Source(tmp_path / "b")]
    checks = Checks(allow=frozenset({"near-duplicate"}), workers=1)
    import_data(sources, tmp_path / "out", checks, None)
    assert len({s.id for s in stored_samples(tmp_path / "out")}) == 24
    with pytest.raises(BadInput, match="given twice"):
        import_data([sources[0], sources[0]], tmp_path / "twice", checks)


def test_other_drafts_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part/x").write_text("mine")
    import_data([Source(records(tmp_path / "a", 4))], tmp_path / "out", CHECKS, None)
    assert (tmp_path / ".out.part/x").read_text() == "mine"


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    root = records(tmp_path / "a", 6)
    with pytest.raises(BadInput, match="exists and is not empty"):
        import_data([Source(root)], root, CHECKS)
    with pytest.raises(BadInput, match="below 1"):
        import_data([Source(root)], tmp_path / "out", CHECKS, Division(0.6, 0.5))
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadInput, match="inside the new data set"):
        import_data([Source(root)], tmp_path / "out", CHECKS, None, tmp_path / "out/q.jsonl")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for wrong in (Source(root, images=tmp_path / "loop"), Source(tmp_path / "loop")):
        with pytest.raises(BadInput, match="loop"):
            import_data([wrong], tmp_path / "out", CHECKS)


TALK = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A lung."}]
ROWS = [{"id": "1", "image": "a.png", "conversations": TALK}]
FOREIGN = {  # dataset.json of other programs, and data in a file of that name
    "nnU-Net": json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "numTraining": 1}),
    "MSD": json.dumps({"modality": {"0": "CT"}, "training": [{"image": "./a.nii.gz"}], "test": []}, indent=1),
    "MONAI, its own root": json.dumps({"root": "/data/elsewhere", "training": [{"image": "a.nii.gz", "fold": 0}]}),
    "rows": json.dumps(ROWS, indent=1),
    "a row a line": "".join(json.dumps({**ROWS[0], "id": str(n), "root": "x"}) + "\n" for n in range(2)),
    "no JSON": "{'root': 1",
    "not ours to read": '{"root": nobody knows',
    "bytes": "\ufeff{}",
}  # fmt: skip


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_a_dataset_json_of_another_program_says_nothing_of_ours(tmp_path: Path, text: str) -> None:
    picture(tmp_path / "a.png", 1)
    (tmp_path / "dataset.json").write_text(text)
    (tmp_path / "sheet.csv").write_text("image,question,answer,modality\na.png,What is it?,A lung,CT\n")
    source = Source(tmp_path / "sheet.csv")
    assert source.root == tmp_path
    assert [s.images[0].width for s in read_samples(source, Counter())] == [96]
    import_data([source], tmp_path / "out", CHECKS)
    assert (tmp_path / "dataset.json").read_text() == text


@pytest.mark.parametrize("kind", ["rows", "a row a line"])
def test_data_in_a_file_of_that_name_is_read(tmp_path: Path, kind: str) -> None:
    picture(tmp_path / "a.png", 1)
    (tmp_path / "dataset.json").write_text(FOREIGN[kind])
    for path in (tmp_path / "dataset.json", tmp_path):
        samples = read_samples(Source(path, modality=Modality.CT), Counter())
        assert {s.answer.text for s in samples} == {"A lung."} and {s.images[0].width for s in samples} == {96}


def test_dividing_anew_does_not_write_over_another_programs_file(tmp_path: Path) -> None:
    import_data([Source(records(tmp_path / "a"))], tmp_path / "out", CHECKS, None)
    before = (tmp_path / "out/samples.jsonl").read_bytes()
    (tmp_path / "out/dataset.json").write_text(FOREIGN["nnU-Net"])
    with pytest.raises(BadInput, match="dataset.json: of another program"):
        split_again(tmp_path / "out", Division())
    assert (tmp_path / "out/dataset.json").read_text() == FOREIGN["nnU-Net"]
    assert (tmp_path / "out/samples.jsonl").read_bytes() == before
    (tmp_path / "out/dataset.json").unlink()
    split_again(tmp_path / "out", Division())
    assert about(tmp_path / "out").keys() == {"root", "split", "groups"}
    assert Source(tmp_path / "out").root == tmp_path / "out"


def test_small_folders_with_a_dataset_json_are_read(shared: Path) -> None:
    cases = shared / "cases" / "data"
    if not cases.is_dir():
        pytest.skip(f"no cases at {cases}")
    for name in ("05_dataset_json/dataset.json", "05_nnunet/sheet.csv"):
        assert len(read_samples(Source(cases / name, modality=Modality.CT), Counter())) == 1


# ---- the door -------------------------------------------------------------------------------------------------------


def test_import_split_and_export_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = records(tmp_path / "a")
    out = tmp_path / "out"
    words = ["data", "import", str(root), "--out", str(out), "--page", str(tmp_path / "page.html"), "--workers", "1"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "36 samples of 12 images" in told and f"next     {spell_program()} data boxes " in told
    assert "data:image/" in (tmp_path / "page.html").read_text()
    assert main(["data", "split", str(out), "--test", "0.4"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^groups   train \d+, validation \d+, test \d+$", told, re.M) and "starts anew" in told
    for kind, name in (("sharegpt", "s"), ("coco", "c.json"), ("jsonl", "j.jsonl")):
        assert main(["data", "export", str(out), "--to", kind, "--out", str(tmp_path / name)]) == 0
        assert "36 samples" in capsys.readouterr().out
    assert (tmp_path / "s/dataset_info.json").is_file()
    assert main(["data", "import", str(root), "--out", str(out)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    page = tmp_path / "again.html"  # a kill may have come after the data and before its page
    assert main(["data", "import", str(root), "--out", str(out), "--page", str(page), "--workers", "1"]) == 2
    check = capsys.readouterr().err.rpartition("`")[0].partition("clinkd data ")[2]
    assert main(["data", *check.split()]) == 0 and page.is_file()


GIVEN: dict[str, tuple[list[str], Any]] = {  # field of a source: words that set it, and what they set it to
    "form": (["--form", "coco"], "coco"),
    "images": (["--images", "scans"], Path("scans")),
    "prefix": (["--prefix", "a/"], "a/"),
    "open_images": (["--no-images"], False),
    "boxes": (["--boxes", "qwen2.5-vl"], "qwen2.5-vl"),
    "box_form": (["--box-form", "xywh"], "xywh"),
    "one_based": (["--one-based"], True),
    "y_up": (["--y-up"], True),
    "min_pixels": (["--min-pixels", "7"], 7),
    "max_pixels": (["--max-pixels", "9000"], 9000),
    "side": (["--side", "image"], "image"),
    "modality": (["--modality", "MRI"], Modality.MR),
    "modalities": (["--modality-map", "CCTA=ct"], {"ccta": Modality.CT}),
    "task": (["--task", "roc"], Task.ROC),
    "split": (["--all-in", "test"], "test"),
    "group": (["--group", "p(.)"], "p(.)"),
    "columns": (["--column", "question=Frage", "--column", "answer=a=b"], {"question": "Frage", "answer": "a=b"}),
    "sheet": (["--sheet", "two"], "two"),
    "names": (["--names", "names.json"], Path("names.json")),
    "channel": (["--channel", "T1w"], "T1w"),
    "slices": (["--slices", "every:3"], "every:3"),
    "min_area": (["--specks", "0.5"], 0.5),
    "encoding": (["--encoding", "UTF16"], "utf-16"),
    "conversation": (["--turns", "keep"], "keep"),
    "tasks": (["--ask", "vg,RC"], (Task.VG, Task.RC)),
    "ask_absent": (["--ask-absent"], True),
    "max_questions": (["--max-questions", "3"], 3),
    "max_boxes": (["--max-boxes", "5"], 5),
    "readers": (["--readers", "vote"], "vote"),
    "window": (["--window", "lung"], "lung"),
    "seed": (["--seed", "6"], 6),
}


def test_every_field_of_a_source_has_a_flag_and_only_it_is_changed_by_it(tmp_path: Path) -> None:
    def source(*words: str) -> Source:
        return source_of(_parser().parse_args(["data", "check", str(tmp_path), *words]), tmp_path)

    assert source() == Source(tmp_path)
    assert list(GIVEN) == [f.name for f in fields(Source) if f.name not in ("path", "spellings", "drawn")]
    for name, (words, value) in GIVEN.items():
        assert source(*words) == replace(Source(tmp_path), **{name: value}) != Source(tmp_path)
    assert source("--ask", "none").tasks == () and source("--task", "").task is None


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--form", "nonsense"], "--form nonsense"),
        (["--boxes", "nonsense"], "--boxes nonsense: "),
        (["--column", "question"], "OURS=THEIRS"),
        (["--task", "XY"], "--task XY"),
        (["--ask", "VG,XY"], "--ask XY"),
        (["--encoding", "utf-99"], "--encoding utf-99"),
        (["--modality", "thermo"], "--modality thermo: "),
        (["--max-length", "0"], "--max-length 0"),
        (["--allow", "nothing"], "--allow nothing"),
        (["--tokenizer", "nowhere"], "tokenizer.json"),
        (["--max-boxes", "0"], "max_boxes=0"),
        (["--group", "("], "not a regular expression"),
    ],
)
def test_wrong_flags_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    assert main(["data", "check", str(records(tmp_path / "a", 2)), *flags]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert told in lines[-1] and lines[-1].startswith("clinkd: ")
