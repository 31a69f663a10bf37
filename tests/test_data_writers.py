"""Writers and the reader of samples.jsonl: round trips by property, refusals by table, COCO against pycocotools."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clinkd.data import grids
from clinkd.data.codecs import make_codec
from clinkd.data.readers import conversations, samples
from clinkd.data.readers.rows import RowResult
from clinkd.data.readers.source import Source
from clinkd.data.writers import write_coco, write_jsonl, write_sharegpt
from clinkd.records import BadInput, Box, BoxedText, Fact, ImageRef, Modality, Sample, Task, Turn

CODECS = ("qwen2-vl", "qwen-vl", "qwen2.5-vl", "qwen3-vl", "normalised", "locations")
SIZES = {"a.png": (640, 480), "d/b é.png": (33, 70), "c.png": (1500, 900)}
WORDS = (
    "left lung", "größe", "日本語 😀", 'a "quoted" word', "a\nb", "\\n", "|", "||", "<b>", "a < b > c", "\u2028",
    "100 %",
    "(left)", "[sic]", "3, 4", "{x}", "</s>", "&amp;", "\t", "<|x|>", "1.5 (0.3)", "(1)", "null", "- ", "'",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "d").mkdir()
    for path, size in SIZES.items():
        Image.new("L", size).save(folder / path)
    return folder


def random_box(dice: random.Random) -> Box:
    """At least 0.05 wide and high: many steps of every codec, also on the smallest image; often at the border."""
    edges = [dice.choice((0.0, 1.0, dice.random(), dice.random())) for _ in range(4)]
    (x1, x2), (y1, y2) = sorted(edges[:2]), sorted(edges[2:])
    return Box(x1, y1, x2, y2) if min(x2 - x1, y2 - y1) > 0.05 else random_box(dice)


def random_text(dice: random.Random, boxes: int) -> BoxedText:
    pieces = [" ".join(dice.choices(WORDS, k=dice.randint(1, 3))) for _ in range(boxes + 1)]
    return BoxedText("[box]".join(pieces).strip() or "x", tuple(random_box(dice) for _ in range(boxes)))


def random_sample(dice: random.Random, number: int) -> Sample:
    turns = []
    for _ in range(dice.choice((1, 1, 2, 3))):
        task = dice.choice(tuple(Task))
        question = random_text(dice, dice.randint(1, 2) if task in (Task.ROC, Task.RC) else 0)
        answer = random_text(dice, dice.randint(1, 3) if task is Task.VG else 0)
        turns.append(Turn(task, question, answer))
    path = dice.choice(tuple(SIZES))
    facts = [Fact(dice.choice(WORDS[:3]), side=dice.choice((None, "left")), count=dice.choice((None, 2)))]
    return Sample(
        id=f"{dice.choice(WORDS[:4])}-{number}",
        images=tuple(ImageRef(p, *SIZES[p]) for p in ("a.png", path)[dice.choice((0, 1, 1)) :]),
        modality=dice.choice(tuple(Modality)),
        turns=tuple(turns),
        group=dice.choice(WORDS[:5]),
        source=dice.choice(("", "x", "é")),
        names=tuple(dice.sample(WORDS[:4], dice.randint(0, 2))),
        facts=tuple(facts[: dice.randint(0, 1)]),
        side=dice.choice(("image", "patient")),
        split=dice.choice((None, "train", "validation", "test")),
    )


def random_samples(seed: int, count: int = 120) -> list[Sample]:
    dice = random.Random(seed)
    return [random_sample(dice, k) for k in range(count)]


def good(entries: Iterator[RowResult]) -> list[Sample]:
    found = list(entries)
    assert [str(e.problem) for e in found if e.problem] == []
    return [s for e in found for s in e.samples]


def without_boxes(sample: Sample) -> Sample:
    zero = Box(0, 0, 1, 1)

    def bare(text: BoxedText) -> BoxedText:
        return BoxedText(text.text, (zero,) * len(text.boxes))

    turns = tuple(Turn(t.task, bare(t.question), bare(t.answer)) for t in sample.turns)
    return replace(sample, turns=turns)


def boxes_of(sample: Sample) -> list[Box]:
    return [b for t in sample.turns for text in (t.question, t.answer) for b in text.boxes]


# ---- ShareGPT -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
def test_sharegpt_comes_back_as_it_went(tmp_path: Path, root: Path, name: str) -> None:
    before = random_samples(3)
    told = write_sharegpt(iter(before), tmp_path / "out", name)
    assert not told
    for said in (
        {},
        {"boxes": name, "conversation": "split", "side": "image", "split": "test", "modality": Modality.PET},
    ):
        source = Source(tmp_path / "out", form="sharegpt", images=root, **said)  # type: ignore[arg-type]
        after = {s.id: s for s in good(conversations.read(source, Counter()))}
        assert len(after) == len(before)
        worst = 0.0
        for sample in before:
            back = after[sample.id]
            assert without_boxes(back) == without_boxes(sample)
            for box, other in zip(boxes_of(sample), boxes_of(back), strict=True):
                image = sample.images[-1]
                assert image.width and image.height
                size = grids.smart_resize(image.width, image.height) if name == "qwen2.5-vl" else None
                steps = make_codec(name).steps(size) * 2
                for v, w, step in zip(box.to_json(), other.to_json(), steps, strict=True):
                    early = name in ("qwen2-vl", "qwen-vl") and v > 1 - step  # that grid ends a step before the border
                    assert abs(v - w) <= step * (1 if early else 0.5) + 2e-6
                    worst = max(worst, abs(v - w))
        assert worst > 0  # the boxes did go through the grid


def test_sharegpt_is_what_llama_factory_loads(tmp_path: Path, root: Path) -> None:
    """The checks of LLaMA-Factory's loader and ShareGPT converter (data/README.md, data/converter.py), done here."""
    made = random_samples(4)
    folder = tmp_path / "med"
    write_sharegpt(made, folder)
    info = json.loads((folder / "dataset_info.json").read_text())
    assert set(info) == {"med_train", "med_validation", "med_test", "med_all"}
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [*(i["file_name"] for i in info.values()), "dataset_info.json"]
    )
    ids = []
    for entry in info.values():
        assert entry["formatting"] == "sharegpt" and entry["columns"] == {
            "messages": "conversations",
            "images": "images",
        }
        for row in json.loads((folder / entry["file_name"]).read_text()):
            messages, images = row[entry["columns"]["messages"]], row[entry["columns"]["images"]]
            assert [m["from"] for m in messages] == ["human", "gpt"] * (len(messages) // 2)
            assert sum(m["value"].count("<image>") for m in messages) == len(images)
            assert all((root / path).is_file() for path in images)  # media_dir is set to the root
            ids.append((row["id"], entry["file_name"]))
    assert sorted(ids) == sorted((s.id, f"{s.split or 'all'}.json") for s in made)


def test_absolute_paths_need_no_media_dir(tmp_path: Path, root: Path) -> None:
    made = random_samples(5, 10)
    write_sharegpt(made, tmp_path / "out", root=root)
    rows = [r for f in (tmp_path / "out").glob("*.json") if f.stem != "dataset_info" for r in json.loads(f.read_text())]
    assert all(Path(p).is_absolute() and Path(p).is_file() for r in rows for p in r["images"])
    source = Source(tmp_path / "out", images=root, prefix=f"{root.resolve()}/")
    assert {s.id: s.images for s in good(conversations.read(source, Counter()))} == {s.id: s.images for s in made}


def sample(question: Any = "Where is it?", answer: Any = "There.", **changes: Any) -> Sample:
    asked, said = (t if isinstance(t, BoxedText) else BoxedText(t) for t in (question, answer))
    task = Task.VG if said.boxes else Task.ROC if asked.boxes else Task.QA
    plain = Sample("s1", (ImageRef("a.png", 640, 480),), Modality.CT, (Turn(task, asked, said),), "g", "x", ("lung",))
    return replace(plain, **changes)


HALF = (Box(0, 0, 0.5, 0.5),)
REFUSED: list[tuple[Sample, str, str]] = [
    (sample("See <image>"), "qwen2-vl", "holds <image>"),
    (sample(answer="See <image>"), "qwen2-vl", "answer 1 holds <image>"),
    (sample("<img>a.png</img> so"), "qwen2-vl", "holds <img>"),
    (sample("<video>"), "qwen2-vl", "holds <video>"),
    (sample("a<|im_end|>b"), "qwen2-vl", "holds <|im_end|>"),
    (sample("a<|image_pad|>b"), "qwen2-vl", "holds <|image_pad|>"),
    (sample("a <ref>lung</ref>"), "qwen-vl", "read as a box or a mark of qwen-vl"),
    (sample("a <|object_ref_start|>lung<|object_ref_end|>"), "qwen2-vl", "read as a box or a mark"),
    (sample("at <box>(1,2),(3,4)</box>"), "qwen2-vl", "a box written out"),
    (sample("at (1,2),(3,4)"), "qwen2-vl", "read as a box"),
    (sample("at [0.1,0.2,0.3,0.4]"), "normalised", "a box written out"),
    (sample("at <|box_start|>"), "qwen2-vl", "a box written out"),
    (sample('at {"bbox_2d": [1, 2, 3, 4]}'), "qwen3-vl", "a box written out"),
    (sample(" "), "qwen2-vl", "question 1 is empty"),
    (sample(answer=""), "qwen2-vl", "answer 1 is empty"),
    (sample("half \ud83d of it"), "qwen2-vl", "cannot be written as JSON"),
    (sample(BoxedText("[box]?", HALF), images=(ImageRef("a.png"),)), "qwen2.5-vl", "size of a.png is unknown"),
    (sample(BoxedText("[box]?", HALF), images=(ImageRef("a.png", 4000, 2),)), "qwen2.5-vl", "200 to 1"),
]


@pytest.mark.parametrize(("bad", "name", "told"), REFUSED, ids=[r[2] for r in REFUSED])
def test_what_would_read_as_something_else_is_refused(tmp_path: Path, bad: Sample, name: str, told: str) -> None:
    with pytest.raises(BadInput) as error:
        write_sharegpt([sample(id="s0"), bad], tmp_path / "out", name)
    assert told in str(error.value) and "sample 's1'" in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "out").iterdir())  # neither half a file, nor one beside it


def test_sharegpt_tells_what_is_not_as_in_the_samples(tmp_path: Path) -> None:
    made = [
        sample(" Is it?\n", id="s0"),
        sample(images=(ImageRef("a.tif#2", 10, 10),)),
        sample(id="s2", images=(ImageRef("a.png", 10, 10, orientation=6), ImageRef("b", 10, 10, window="lung"))),
    ]
    assert write_sharegpt(made, tmp_path / "out") == {
        "texts without the white space that was around them": 1,
        "frames of a file, which LLaMA-Factory does not open": 1,
        "images turned by their EXIF tag, which LLaMA-Factory does not turn: boxes will be off": 1,
        "windows of DICOM images, which a conversation does not hold": 1,
    }


def test_sharegpt_does_not_mix_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("[]")
    with pytest.raises(BadInput, match="not empty"):
        write_sharegpt([sample()], tmp_path)
    with pytest.raises(BadInput, match="no samples"):
        write_sharegpt([], tmp_path / "out")
    with pytest.raises(BadInput, match="one of"):
        write_sharegpt([sample()], tmp_path / "out", "qwen9")


# ---- samples.jsonl --------------------------------------------------------------------------------------------------


def test_samples_come_back_as_they_went(tmp_path: Path, root: Path) -> None:
    before = random_samples(6)
    assert write_jsonl(iter(before), tmp_path / "samples.jsonl") == len(before)
    told: Counter[str] = Counter()
    after = good(samples.read(Source(tmp_path, images=root), told))
    assert not told and [without_boxes(s) for s in after] == [without_boxes(s) for s in before]
    for sample, back in zip(before, after, strict=True):
        for box, other in zip(boxes_of(sample), boxes_of(back), strict=True):
            assert all(abs(v - w) <= 5.1e-7 for v, w in zip(astuple(box), astuple(other), strict=True))
    write_jsonl(after, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "samples.jsonl").read_bytes()
    assert good(samples.read(Source(tmp_path / "again.jsonl", open_images=False), told)) == after
    lines = (tmp_path / "samples.jsonl").read_text("utf-8").split("\n")[:-1]
    assert [Sample.from_json(json.loads(line)) for line in lines] == after


def astuple(box: Box) -> tuple[float, ...]:
    return box.x1, box.y1, box.x2, box.y2


def test_images_are_looked_for_where_they_are_said_to_be(tmp_path: Path, root: Path) -> None:
    folder = tmp_path / "set"
    write_jsonl([sample(images=(ImageRef("a.png"),))], folder / "samples.jsonl")

    def size(**said: Any) -> int | None:
        (found,) = good(samples.read(Source(folder, **said), Counter()))
        return found.images[0].width

    def tell(value: Any) -> None:
        (folder / "dataset.json").write_text(json.dumps(value))

    assert size(images=root) == 640 and size(open_images=False) is None
    Image.new("L", (7, 9)).save(folder / "a.png")
    assert size() == 7
    tell({"root": str(root)})
    assert size() == 640 and size(images=folder) == 7
    tell({"root": "inner"})
    (folder / "inner").mkdir()
    Image.new("L", (5, 5)).save(folder / "inner" / "a.png")
    assert size() == 5
    for ours in ({"clinkd": "0.1.0", "sources": []}, {"root": 1, "split": None, "groups": {}}):
        tell(ours)
        with pytest.raises(BadInput, match="no root there"):
            size()
    (folder / "dataset.json").write_text('{"root": ')
    with pytest.raises(BadInput, match="not valid JSON"):
        size()
    tell({"other": 1})
    assert size() == 7  # somebody else's: nothing is said of our images
    tell({"root": "nowhere"})
    with pytest.raises(BadInput, match=r"nowhere: no such folder.*--images"):
        size()
    with pytest.raises(BadInput, match="no such file"):
        list(samples.read(Source(tmp_path), Counter()))


def changed(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Put `value` at a place as "turns.0.task"; "gone" takes it away."""
    *parents, last = path.split(".")

    def change(row: dict[str, Any]) -> None:
        place: Any = row
        for key in parents:
            place = place[int(key)] if key.isdigit() else place[key]
        if value == "gone":
            del place[last]
        else:
            place[int(last) if last.isdigit() else last] = value

    return change


FAULTS: list[tuple[str, Any, str, str]] = [
    ("id", "gone", "id", "empty or not text"),
    ("id", 3, "id", "empty or not text"),
    ("id", "s0", "id", "already used by row 1"),
    ("id", "x\ud83d", "id", "half a character"),
    ("images", "gone", "images", "absent"),
    ("images", [], "images", "one image or more"),
    ("images", {}, "images", "a list"),
    ("images.0", "a.png", "images[0]", "an object"),
    ("images.0.path", "gone", "images[0].path", "empty or not text"),
    ("images.0.path", "../a.png", "images[0].path", "leads out"),
    ("images.0.path", "none.png", "images[0].path", "no such file"),
    ("images.0.width", 100, "images[0].width", "the image has 640 pixels"),
    ("images.0.height", 100, "images[0].height", "the image has 480 pixels"),
    ("images.0.width", "640", "images[0].width", "a number of pixels"),
    ("images.0.height", -1, "images[0].height", "a number of pixels"),
    ("images.0.orientation", 9, "images[0].orientation", "1 to 8"),
    ("images.0.orientation", 6, "images[0].orientation", "the image has 1 now"),
    ("images.0.window", 3, "images[0].window", "empty or not text"),
    ("modality", "gone", "modality", "one of ct"),
    ("modality", "X-ray", "modality", "one of ct"),
    ("modality", [], "modality", "one of ct"),
    ("turns", "gone", "turns", "absent"),
    ("turns", [], "turns", "one turn or more"),
    ("turns.0", 3, "turns[0]", "an object"),
    ("turns.0.task", "vg", "turns[0].task", "one of VG"),
    ("turns.0.question", "", "turns[0].question", "empty or not text"),
    ("turns.0.question", "at [box]", "turns[0].question", "1 [box] marks but 0 boxes"),
    ("turns.0.answer", "gone", "turns[0].answer", "empty or not text"),
    ("turns.0.answer", {"text": "x", "boxes": [[0, 0, 1, 1]]}, "turns[0].answer", "0 [box] marks but 1 boxes"),
    ("turns.0.answer", {"text": "[box]"}, "turns[0].answer.boxes", "a list of boxes"),
    ("turns.0.answer", {"text": "[box]", "boxes": [[0, 0, 1.1, 1]]}, "turns[0].answer.boxes[0]", "outside"),
    ("turns.0.answer", {"text": "[box]", "boxes": [[0.5, 0, 0.1, 1]]}, "turns[0].answer.boxes[0]", "empty"),
    (
        "turns.0.answer",
        {"text": "[box]", "boxes": [[0, 0, float("nan"), 1]]},
        "turns[0].answer.boxes[0]",
        "four numbers",
    ),
    ("turns.0.answer", {"text": "[box]", "boxes": [[0, 0, 1]]}, "turns[0].answer.boxes[0]", "four numbers"),
    ("turns.0.answer", {"text": "[box]", "boxes": [[0, 0, True, 1]]}, "turns[0].answer.boxes[0]", "four numbers"),
    ("group", "gone", "group", "empty or not text"),
    ("source", 3, "source", "not text"),
    ("names", "lung", "names", "a list"),
    ("names", [3], "names[0]", "empty or not text"),
    ("facts", [{"side": "left"}], "facts[0].name", "empty or not text"),
    ("facts", [{"name": "lung", "colour": "red"}], "facts[0].colour", "a fact has"),
    ("facts", [{"name": "lung", "count": "2"}], "facts[0].count", "a number"),
    ("facts", [{"name": "lung", "side": 3}], "facts[0].side", "text"),
    ("side", "left", "side", "one of image, patient"),
    ("split", "dev", "split", "one of train"),
]


@pytest.mark.parametrize(("path", "value", "field", "told"), FAULTS, ids=[f"{k}-{f[0]}" for k, f in enumerate(FAULTS)])
def test_a_faulty_sample_is_named(tmp_path: Path, root: Path, path: str, value: Any, field: str, told: str) -> None:
    row = sample().to_json()
    changed(path, value)(row)
    rows = [sample(id="s0").to_json(), row, sample(id="s2").to_json()]
    (tmp_path / "samples.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    first, fault, last = samples.read(Source(tmp_path, images=root), Counter())
    assert [len(e.samples) for e in (first, fault, last)] == [1, 0, 1]
    assert fault.problem is not None and fault.problem.row == 2
    assert fault.problem.field == field and told in fault.problem.why and "\n" not in str(fault.problem)


def test_keys_that_are_not_kept_are_told(tmp_path: Path, root: Path) -> None:
    row = sample().to_json() | {"extra": 1}
    row["images"][0]["depth"] = 3
    row["turns"][0]["hint"] = "x"
    (tmp_path / "samples.jsonl").write_text(json.dumps(row))
    told: Counter[str] = Counter()
    assert good(samples.read(Source(tmp_path, images=root, split="test"), told)) == [sample(split="test")]
    assert {key.split("'")[1] for key in told} == {"extra", "images.depth", "turns.hint"}


# ---- COCO -----------------------------------------------------------------------------------------------------------


def coco_samples(seed: int) -> list[Sample]:
    """Of each image one split and group, so that it may be written; VG about one name, ROC with it as the answer."""
    dice = random.Random(seed)
    made = []
    for sample in random_samples(seed, 200):
        turns = [t for t in sample.turns if t.task in (Task.VG, Task.ROC)] or sample.turns
        name = dice.choice(WORDS[:4])
        last = turns[-1] if turns[-1].task is not Task.ROC else replace(turns[-1], answer=BoxedText(name))
        same = {
            "modality": Modality.CT,
            "group": sample.images[-1].path,
            "source": "x",
            "side": "image",
            "split": "train",
        }
        made.append(replace(sample, turns=(*turns[:-1], last), names=(name,), **same))  # type: ignore[arg-type]
    return made + made[:50]


def far(some: tuple[float, ...], others: tuple[float, ...]) -> float:
    return max(abs(a - b) for a, b in zip(some, others, strict=True))


def expected(made: list[Sample]) -> set[tuple[str, str, Box]]:
    found = set()
    for s in made:
        boxes = {Task.VG: s.answer.boxes, Task.ROC: s.question.boxes}.get(s.task, ())
        found |= {(s.images[-1].path, s.names[0], box) for box in boxes}
    return found


def test_coco_holds_every_box_once_as_pycocotools_reads_it(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    made = coco_samples(7)
    told = write_coco(iter(made), tmp_path / "boxes.json")
    with contextlib.redirect_stdout(io.StringIO()):
        read = COCO(str(tmp_path / "boxes.json"))
    wanted = expected(made)
    assert len(wanted) > 60 and len(read.anns) == len(wanted)
    left = set(wanted)
    for entry in read.anns.values():
        image, name = read.imgs[entry["image_id"]], read.cats[entry["category_id"]]["name"]
        x, y, width, height = entry["bbox"]
        assert x >= 0 and y >= 0 and x + width <= image["width"] and y + height <= image["height"]
        assert entry["area"] == width * height and entry["iscrowd"] == 0
        corners = (
            x / image["width"],
            y / image["height"],
            (x + width) / image["width"],
            (y + height) / image["height"],
        )
        near = {
            w
            for w in left
            if w[:2] == (image["file_name"], name) and far(corners, astuple(w[2])) * max(SIZES[w[0]]) < 1e-3
        }
        assert len(near) == 1
        left -= near
        assert (image["width"], image["height"]) == SIZES[image["file_name"]]
        assert image["clinkd"] == {
            "modality": "ct", "group": image["file_name"], "source": "x", "side": "image", "split": "train",
        }  # fmt: skip
    assert not left
    lost = Counter(f"{s.task} questions, which COCO cannot hold" for s in made if s.task not in (Task.VG, Task.ROC))
    lost.update(f"{t.task} turns before the last one, whose names are not kept" for s in made for t in s.turns[:-1])
    assert told == lost and lost.total() > 0


def test_coco_tells_questions_without_a_name(tmp_path: Path) -> None:
    vg = sample(answer=BoxedText("[box]", HALF))
    made = [vg, replace(vg, id="s2", names=()), replace(vg, id="s3", names=("a", "b"))]
    roc = sample(BoxedText("[box]?", HALF), "the liver", names=())
    assert write_coco([*made, roc], tmp_path / "a.json") == {"VG questions of which box is which name is not told": 2}
    found = json.loads((tmp_path / "a.json").read_text())
    assert [c["name"] for c in found["categories"]] == ["lung", "the liver"] and len(found["annotations"]) == 2


VG = sample(answer=BoxedText("[box]", HALF))
COCO_REFUSED = [
    ([VG, replace(VG, images=(ImageRef("a.png"),))], "size of a.png is unknown"),
    ([VG, replace(VG, split="test")], "says of a.png"),
    ([VG, replace(VG, group="other")], "says of a.png"),
    ([VG, replace(VG, images=(ImageRef("a.png", 10, 10),))], "says of a.png"),
    ([VG, replace(VG, names=("half \ud83d",))], "cannot be written as JSON"),
]


@pytest.mark.parametrize(("made", "told"), COCO_REFUSED)
def test_coco_refuses_by_the_name_of_the_sample(tmp_path: Path, made: list[Sample], told: str) -> None:
    with pytest.raises(BadInput, match=r"^sample 's1'") as error:
        write_coco(made, tmp_path / "a.json")
    assert told in str(error.value) and not list(tmp_path.iterdir())


def test_coco_without_boxes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no boxes"):
        write_coco([sample()], tmp_path / "a.json")


# ---- all writers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", [write_jsonl, write_coco], ids=["jsonl", "coco"])
def test_what_was_there_stays_until_the_new_is_whole(tmp_path: Path, writer: Callable[..., Any]) -> None:
    file = tmp_path / "deep" / "a.json"
    writer([VG], file)
    before = file.read_bytes()

    def torn() -> Iterator[Sample]:
        yield VG
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer(torn(), file)
    assert file.read_bytes() == before and [p.name for p in file.parent.iterdir()] == ["a.json"]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("clinkd.storage.os.fsync", full)
    for write in (write_jsonl, write_coco, write_sharegpt):
        with pytest.raises(BadInput, match="no room left"):
            write([VG], tmp_path / "out" / write.__name__)  # type: ignore[operator]
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_writing_takes_no_more_memory_for_more_samples(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        write_jsonl((replace(VG, id=str(k)) for k in range(count)), tmp_path / f"{count}.jsonl")
        write_sharegpt((replace(VG, id=str(k)) for k in range(count)), tmp_path / f"{count}")
        write_coco((replace(VG, id=str(k)) for k in range(count)), tmp_path / f"{count}.json")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)
    assert peak(4000) < 200_000 < (tmp_path / "4000.jsonl").stat().st_size
