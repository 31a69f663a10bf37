"""Readers of conversations: golden readings of each form, and one line for each fault of a row."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clinkd.data.readers import conversations
from clinkd.data.readers.forms import detect_form, read_rows
from clinkd.data.readers.rows import RowResult
from clinkd.data.readers.source import Source
from clinkd.data.writers import write_sharegpt
from clinkd.records import BadInput, Box, BoxedText, Modality, Sample, Task

STEM = "ct_00--AbdomenCT1K--Case_00001--z_0012"
PNG = f"images/{STEM}.png"


def write(path: Path, rows: list[Any], name: str = "train.json") -> Path:
    file = path / name
    lines = [json.dumps(row).encode() for row in rows]
    file.write_bytes(b"\n".join(lines) if name.endswith("l") else b"[" + b",\n".join(lines) + b"]")
    return file


def read(file: Path, told: Counter[str] | None = None, form: str = "sharegpt", **said: Any) -> list[RowResult]:
    source = Source(file, form=form, **({"open_images": False} | said))  # type: ignore[arg-type]
    return list(conversations.read(source, Counter() if told is None else told))


def good(file: Path, told: Counter[str] | None = None, form: str = "sharegpt", **said: Any) -> list[Sample]:
    found = read(file, told, form, **said)
    assert [str(e.problem) for e in found if e.problem] == []
    return [s for e in found for s in e.samples]


# ---- golden readings ------------------------------------------------------------------------------------------------

GRIT = {
    "id": STEM,
    "conversations": [
        [
            f"<img>{PNG}</img>\nWhere is the <ref>left hip</ref> located?",
            "<ref>Left hip</ref><box>(100,200),(300,400)</box>.",
        ],
        ["What is at <box>(0,0),(500,1000)</box>?", "liver"],
        ["Can you describe <box>(0,0),(500,500)</box>?", "This is the liver, seen in a slice."],
        ["What does the image show?", "An abdomen.\nTwo organs."],
    ],
}


def test_med_grit_training_conversations(tmp_path: Path) -> None:
    samples = good(write(tmp_path, [GRIT]), form="med-grit")
    assert [s.task for s in samples] == [Task.VG, Task.ROC, Task.RC, Task.MIA]
    assert [s.id for s in samples] == [f"{STEM}-train-1-{k}" for k in (1, 2, 3, 4)]
    assert [s.names for s in samples] == [("left hip", "Left hip"), ("liver",), (), ()]
    where, what, _, overall = samples
    assert where.question == BoxedText("Where is the left hip located?")
    assert where.answer == BoxedText("Left hip[box].", (Box(0.1, 0.2, 0.3, 0.4),))
    assert what.question == BoxedText("What is at [box]?", (Box(0, 0, 0.5, 1),))
    assert overall.answer == BoxedText("An abdomen.\nTwo organs.")
    for s in samples:
        assert s.images[0].path == PNG and (s.images[0].width, s.split) == (None, "train")
        assert (s.modality, s.group, s.source) == (Modality.CT, "AbdomenCT1K--Case_00001", "AbdomenCT1K")
    (kept,) = good(tmp_path / "train.json", form="med-grit", conversation="keep")
    assert kept.turns == tuple(s.turns[0] for s in samples) and kept.id == f"{STEM}-train-1" and kept.names == ()


TESTS = [
    ("Test_VG.json", Task.VG, "Where is it?", "<box>(1,2),(3,4)</box>"),
    ("Test_RO.json", Task.ROC, "What is <box>(1,2),(3,4)</box>?", "The liver, as a whole sentence."),
    ("Test_GC.json", Task.RC, "Describe <box>(1,2),(3,4)</box>", "liver"),
    ("Test_MII.json", Task.MIA, "What is <box>(1,2),(3,4)</box> doing here?", "It is at <box>(1,2),(3,4)</box>"),
    ("Test_MII.jsonl", Task.MIA, "What is it?", "liver"),
]


@pytest.mark.parametrize(("name", "task", "question", "answer"), TESTS, ids=[t[0] for t in TESTS])
def test_med_grit_test_files_name_their_task(tmp_path: Path, name: str, task: Task, question: str, answer: str) -> None:
    rows = [{"id": "a", "conversations": [[f"Picture 1: <img>{PNG}</img>\n{question}", answer]]}] * 2
    first, second = good(write(tmp_path, rows, name), form="med-grit")
    assert (first.task, first.split) == (task, "test") and first.id != second.id
    (told,) = {s.task for s in good(tmp_path / name, form="med-grit", task=Task.QA, split="validation")}
    assert told is Task.QA


def test_a_later_question_may_name_the_same_image_again(tmp_path: Path) -> None:
    told: Counter[str] = Counter()
    mark = f"<img>{PNG}</img>\n"
    row = {"conversations": [[mark + "Is it CT?", "yes"], [mark + "Is it MR?", "no"]]}
    samples = good(write(tmp_path, [row]), told)
    assert [s.question.text for s in samples] == ["Is it CT?", "Is it MR?"]
    assert told == {"marks of an image that an earlier question of the row named already": 1}


def pair(question: str, answer: str, ask: str = "human", say: str = "gpt") -> list[dict[str, str]]:
    return [{"from": ask, "value": question}, {"from": say, "value": answer}]


def talk(question: str = "Is it?", answer: str = "yes", **changes: Any) -> dict[str, Any]:
    """A row of LLaVA's form."""
    return {
        "id": "x",
        "image": "a.png",
        "modality": "ct",
        "conversations": pair(f"<image>\n{question}", answer),
    } | changes


def swift(question: str, answer: str, objects: Any, **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "<image>" + question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": ["a.png"], "modality": "ct", "objects": objects} | changes


FIFTH = (Box(0.1, 0.2, 0.3, 0.4),)
GOLDEN: list[tuple[str, dict[str, Any], dict[str, Any], tuple[str, BoxedText, BoxedText, tuple[str, ...]]]] = [
    (
        "qwen-vl",
        {
            "conversations": pair(
                "Picture 1: <img>a.png</img>\nFind <ref>it</ref>",
                "<ref>it</ref><box>(100, 200),(300, 400)</box>",
                "user",
                "assistant",
            ),
            "modality": "ct",
        },
        {},
        ("VG", BoxedText("Find it"), BoxedText("it[box]", FIFTH), ("it",)),
    ),
    (
        "qwen2-vl",
        talk("Where?", "<|object_ref_start|>it<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>"),
        {},
        ("VG", BoxedText("Where?"), BoxedText("it[box]", FIFTH), ("it",)),
    ),
    ("llava", talk("Is it?", "yes"), {}, ("QA", BoxedText("Is it?"), BoxedText("yes"), ())),
    (
        "llava, image behind",
        talk(conversations=pair("Is it?\n<image>", "yes")),
        {},
        ("QA", BoxedText("Is it?"), BoxedText("yes"), ()),
    ),
    ("image a list", talk(image=["a.png"]), {}, ("QA", BoxedText("Is it?"), BoxedText("yes"), ())),
    (
        "several boxes",
        talk("Where?", "<box>(100,200),(300,400)</box> and <box>(100,200),(300,400)</box>"),
        {},
        ("VG", BoxedText("Where?"), BoxedText("[box] and [box]", FIFTH * 2), ()),
    ),
    ("other blanks", talk(" Is\n it?", "\n yes "), {}, ("QA", BoxedText("Is\n it?"), BoxedText("yes"), ())),
    (
        "qwen3-vl",
        talk("Where?", 'It is {"bbox_2d": [100, 200, 300, 400]}'),
        {"boxes": "qwen3-vl"},
        ("VG", BoxedText("Where?"), BoxedText("It is [box]", FIFTH), ()),
    ),
    (
        "normalised",
        talk("What is [0.1,0.2,0.3,0.4]?", "lung"),
        {"boxes": "normalised"},
        ("ROC", BoxedText("What is [box]?", FIFTH), BoxedText("lung"), ("lung",)),
    ),
    (
        "ms-swift real",
        swift("Find <ref-object>", "It is <bbox>.", {"ref": ["lung"], "bbox": [[10, 10, 30, 20]]}),
        {"open_images": True},
        ("VG", BoxedText("Find lung"), BoxedText("It is [box].", FIFTH), ("lung",)),
    ),
    (
        "ms-swift norm1",
        swift(
            "What is <bbox>?", "<ref-object>", {"ref": ["lung"], "bbox": [[0.1, 0.2, 0.3, 0.4]], "bbox_type": "norm1"}
        ),
        {},
        ("ROC", BoxedText("What is [box]?", FIFTH), BoxedText("lung"), ("lung",)),
    ),
    (
        "ms-swift in marks",
        swift(
            "Find <|object_ref_start|><ref-object><|object_ref_end|>",
            "<|box_start|><bbox><|box_end|>",
            {"ref": ["lung"], "bbox": [[0.1, 0.2, 0.3, 0.4]], "bbox_type": "norm1", "image_id": [0]},
        ),
        {},
        ("VG", BoxedText("Find lung"), BoxedText("[box]", FIFTH), ("lung",)),
    ),
    ("ms-swift without objects", swift("Is it?", "yes", None), {}, ("QA", BoxedText("Is it?"), BoxedText("yes"), ())),
    (
        "parts of OpenAI",
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Is it?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
            ],
            "modality": "ct",
        },
        {},
        ("QA", BoxedText("Is it?"), BoxedText("yes"), ()),
    ),
    (
        "parts with image_url",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "a.png"}},
                        {"type": "text", "text": "Is it?"},
                    ],
                },
                {"role": "assistant", "content": "yes"},
            ],
            "modality": "ct",
        },
        {},
        ("QA", BoxedText("Is it?"), BoxedText("yes"), ()),
    ),
    (
        "parts and a list",
        {
            "images": ["a.png"],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it?"}]},
                {"role": "assistant", "content": "yes"},
            ],
            "modality": "ct",
        },
        {},
        ("QA", BoxedText("Is it?"), BoxedText("yes"), ()),
    ),
]


@pytest.mark.parametrize(("name", "row", "said", "wanted"), GOLDEN, ids=[g[0] for g in GOLDEN])
def test_each_spelling_gives_the_same_sample(
    tmp_path: Path, name: str, row: dict[str, Any], said: dict[str, Any], wanted: Any
) -> None:
    Image.new("L", (100, 50)).save(tmp_path / "a.png")
    (sample,) = good(write(tmp_path, [row]), form="swift" if "swift" in name else "sharegpt", **said)
    assert (sample.task, sample.question, sample.answer, sample.names) == wanted
    assert (sample.images[0].path, sample.modality, sample.group) == ("a.png", Modality.CT, "a.png")


def test_pixels_of_the_resized_image_are_read_with_its_size(tmp_path: Path) -> None:
    Image.new("L", (1000, 500)).save(tmp_path / "a.png")  # resized to 1008 x 504
    row = talk("Where?", "<|box_start|>(0,252),(504,504)<|box_end|>")
    (sample,) = good(write(tmp_path, [row, talk()]), boxes="qwen2.5-vl", open_images=True)[:1]
    assert sample.answer == BoxedText("[box]", (Box(0, 0.5, 0.5, 1),))
    small, plain = good(tmp_path / "train.json", boxes="qwen2.5-vl", open_images=True, max_pixels=504 * 1008 * 4)
    assert small.answer == sample.answer and plain.answer.text == "yes"
    shrunk = write(tmp_path, [talk("Where?", "<|box_start|>(0,126),(252,252)<|box_end|>")])
    (sample,) = good(shrunk, boxes="qwen2.5-vl", open_images=True, max_pixels=504 * 252)
    assert sample.answer == BoxedText("[box]", (Box(0, 0.5, 0.5, 1),))


def test_what_a_sample_does_not_keep_is_counted(tmp_path: Path) -> None:
    told: Counter[str] = Counter()
    rows = [
        talk(system="Be brief.", tools="none"),
        talk(conversations=[{"from": "system", "value": "Be brief."}, *pair("<image>Is it?", "yes")]),
        talk(conversations=pair("Is it?<image>", "yes")),
        swift("Is it?", "yes", None)
        | {"messages": [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "yes"}]},
    ]
    assert {s.question.text for s in good(write(tmp_path, rows), told)} == {"Is it?"}
    assert told == {
        "system prompts, which a sample does not keep": 2,
        "keys 'tools', which are not used": 1,
        "images moved from behind the question to its front": 1,
        "images without a mark in the text, taken as before the question (as ms-swift does)": 1,
    }


def test_what_is_said_of_the_source_counts(tmp_path: Path) -> None:
    row = talk(modality=None, image="root/p7/b.png")
    said = {"prefix": "root/", "group": r"(p\d+)/", "modality": Modality.MR, "side": "image", "split": "test"}
    (sample,) = good(write(tmp_path, [row], "Some-data.jsonl"), **said)
    assert (sample.images[0].path, sample.group, sample.modality) == ("p7/b.png", "p7", Modality.MR)
    assert (sample.side, sample.split, sample.source, sample.id) == ("image", "test", "some-data", "x-some-data-1")


def test_a_folder_gives_the_rows_of_all_its_files(tmp_path: Path) -> None:
    for name in ("train.json", "my_val.jsonl", "Test_VG.json", "dataset_info.json"):
        write(tmp_path, [talk("Where?", "<box>(1,2),(3,4)</box>")], name)
    (tmp_path / "notes.txt").write_text("none")
    found = {s.id: s.split for s in good(tmp_path)}
    assert found == {"x-train-1": "train", "x-my_val-1": "validation", "x-test_vg-1": "test"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no \.json, \.jsonl, \.parquet file"):
        read(tmp_path / "empty")


# ---- faults ---------------------------------------------------------------------------------------------------------


def box(text: str) -> dict[str, Any]:
    return talk("Where is it?", text)


def grit(*turns: Any) -> dict[str, Any]:
    return {"id": "x", "conversations": list(turns)}


def role(*who: str) -> dict[str, Any]:
    return talk(conversations=[{"from": w, "value": "<image>Is it?" if k == 0 else "so"} for k, w in enumerate(who)])


def parts(*given: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(given)}, {"role": "assistant", "content": "yes"}]}


def norm(changes: dict[str, Any]) -> dict[str, Any]:
    return swift("<ref-object>", "<bbox>", NORM | changes)


NORM = {"ref": ["lung"], "bbox": [[0.1, 0.2, 0.3, 0.4]], "bbox_type": "norm1"}
ASKED = f"<img>{PNG}</img>Where?"
FAULTS: list[tuple[str, Any, str, str]] = [
    # what a row is
    ("no conversations", {"id": "x"}, "conversations", "no conversations and no messages"),
    ("both", talk(messages=[]), "messages", "the row has conversations, too"),
    ("conversations no list", talk(conversations="hello"), "conversations", "a list is wanted"),
    ("no turns", talk(conversations=[]), "conversations", "empty"),
    ("id empty", talk(id=""), "id", "text or a number"),
    ("id a list", talk(id=["x"]), "id", "text or a number"),
    ("id torn", talk(id="x\ud83d"), "id", "half a character"),
    ("ours no object", talk(clinkd=3), "clinkd", "write the data anew"),
    ("ours without tasks", talk(clinkd={}), "clinkd", "write the data anew"),
    ("ours of another length", talk(clinkd={"tasks": ["QA", "QA"]}), "clinkd.tasks", "1 turns and 2 tasks"),
    ("ours of an unknown task", talk(clinkd={"tasks": ["XX"]}), "clinkd.tasks", "one of VG"),
    ("ours of an unknown codec", talk(clinkd={"tasks": ["QA"], "boxes": "x"}), "clinkd.boxes", "one of"),
    ("ours half", talk(clinkd={"tasks": ["QA"], "modality": "ct"}), "clinkd.side", "one of image, patient"),
    # who speaks
    ("two questions", role("human", "human"), "conversations[1]", "must alternate"),
    ("answer first", role("gpt", "human"), "conversations[0]", "must alternate"),
    ("two answers", role("human", "gpt", "gpt"), "conversations[2]", "must alternate"),
    ("no answer", role("human", "gpt", "human"), "conversations[2]", "the last question has no answer"),
    ("unknown speaker", role("human", "tool"), "conversations[1]", "who speaks?"),
    ("no speaker", talk(conversations=[{"value": "<image>Is it?"}]), "conversations[0]", "who speaks?"),
    (
        "turn no object",
        talk(conversations=[{"from": "human", "value": "<image>a"}, "yes"]),
        "conversations[1]",
        "an object",
    ),
    ("pair of three", grit(["a", "b", "c"]), "conversations[0]", "[question, answer]"),
    ("pair no list", grit([ASKED, "no"], "b"), "conversations[1]", "[question, answer]"),
    # what is said
    ("answer empty", talk(answer=" \n"), "conversations[1]", "empty or not text"),
    ("answer null", grit([ASKED, None]), "conversations[0][1]", "empty or not text"),
    ("question a number", grit([3, "yes"]), "conversations[0][0]", "empty or not text"),
    ("question only image", talk(""), "question 1", "empty but for marks"),
    ("answer only marks", box("<ref></ref>"), "answer 1", "empty but for marks"),
    ("half a character", talk(answer="so \ud83d so"), "conversations[1]", "half a character"),
    ("odd part", parts({"type": "video", "video": "a.mp4"}), "messages[0]", "a part of type text"),
    ("part a text", parts("Is it?"), "messages[0]", "a part of type text"),
    (
        "image in the web",
        parts({"type": "image_url", "image_url": {"url": "http://x/a.png"}}),
        "messages[0]",
        "path of a file",
    ),
    (
        "image in the row",
        parts({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}),
        "messages[0]",
        "path of a file",
    ),
    ("mark of a turn", talk("Is it?<|im_end|>"), "conversations", "<|im_end|>: a mark"),
    ("mark of a video", talk("<video>Is it?"), "conversations", "<video>: a mark"),
    # images
    ("no image", {"id": "x", "conversations": pair("Is it?", "yes")}, "image", "names no image"),
    ("img torn", grit([f"<img>{PNG} Where?", "there"]), "image", "its <img> mark is torn"),
    ("image unmarked", talk(conversations=pair("Is it?", "yes")), "images", "0 <image> marks for 1 images"),
    ("two marks", talk("<image>Is it?"), "images", "2 <image> marks for 1 images"),
    ("mark without image", {"conversations": pair("<image>Is it?", "yes")}, "images", "1 <image> marks for 0"),
    ("image twice", talk(images=["a.png"]), "images", "the row has image, too"),
    ("text and list", talk(conversations=pair("<img>a.png</img>Is it?", "yes")), "images", "both in the text"),
    ("both marks", grit([ASKED + "<image>", "there"]), "conversations", "<image>: a mark"),
    ("inside", talk(conversations=pair("Is <image> it?", "yes")), "conversations[0]", "inside a sentence"),
    (
        "between",
        talk(images=["a", "b"], image=None, conversations=pair("<image>or<image>?", "a")),
        "conversations[0]",
        "inside",
    ),
    (
        "later",
        talk(conversations=[*pair("Is it?", "no"), *pair("<image>Now?", "yes")]),
        "conversations[1]",
        "after the first",
    ),
    (
        "later another",
        grit([ASKED, "<box>(1,2),(3,4)</box>"], ["<img>b.png</img>And?", "no"]),
        "conversations[1]",
        "after the first",
    ),
    ("in the answer", talk(answer="see <image>"), "conversations", "<image>: a mark"),
    ("img in the answer", grit([ASKED, f"see <img>{PNG}</img>"]), "conversations", "<img>: a mark"),
    ("path empty", talk(image=" "), "image", "empty or not text"),
    ("path a number", talk(image=3), "image", "empty or not text"),
    ("path an object", talk(image=None, images=[{"path": "a.png"}]), "image", "empty or not text"),
    ("path out", talk(image="../a.png"), "image", "leads out"),
    ("path absolute", talk(image="/a.png"), "image", "--prefix"),
    ("images no list", talk(image=None, images="a.png"), "images", "a list is wanted"),
    ("modality unknown", talk(modality="thermography"), "modality", "thermography"),
    (
        "prefix unknown",
        grit(["<img>images/zz_00--A--B--C.png</img>Where?", "there"]),
        "modality",
        "does not begin with",
    ),
    # boxes
    ("beyond", box("<box>(1,2),(3,1001)</box>"), "answer 1", "beyond the grid of 1000"),
    ("fractions", box("<box>(0.1,0.2),(0.3,0.4)</box>"), "answer 1", "fractions 0..1"),
    ("decimals", box("<box>(10.5,20),(30,40)</box>"), "answer 1", "decimals"),
    ("swapped x", box("<box>(5,2),(3,4)</box>"), "answer 1", "x2 <= x1 (3 <= 5)"),
    ("swapped y", box("<box>(1,5),(3,4)</box>"), "answer 1", "y2 <= y1"),
    ("no area", box("<box>(1,2),(1,4)</box>"), "answer 1", "x2 <= x1"),
    ("negative", box("<box>(-1,2),(3,4)</box>"), "answer 1", "negative"),
    ("three numbers", box("<box>(1,2),(3)</box>"), "answer 1", "four numbers"),
    ("no end", box("<box>(1,2),(3,4)"), "answer 1", "no closing mark"),
    ("no start", box("(1,2),(3,4)</box>"), "answer 1", "mark"),
    ("bare", box("at (1,2),(3,4)"), "answer 1", "without its marks"),
    ("a list", box("at [1, 2, 3, 4]"), "answer 1", "without its marks"),
    ("empty mark", box("<box></box>"), "answer 1", "four numbers"),
    ("literal mark", box("at [box]"), "answer 1", "kept for the places of boxes"),
    ("literal in question", talk("What is [box]?"), "question 1", "kept for the places of boxes"),
    ("two families", box("<box>(1,2),(3,4)</box><|box_start|>(1,2),(3,4)<|box_end|>"), "answer 1", "qwen-vl"),
    # objects of ms-swift
    ("objects a list", swift("a", "b", [NORM]), "objects", "an object with ref and bbox"),
    ("bbox no list", swift("a", "<bbox>", NORM | {"bbox": 3}), "objects.bbox", "a list is wanted"),
    ("more marks", swift("<ref-object>", "<bbox><bbox>", NORM), "answer 1", "more <bbox> marks than the 1"),
    ("more names", swift("<ref-object><ref-object>", "<bbox>", NORM), "question 1", "more <ref-object> marks"),
    ("box unused", swift("<ref-object>", "there", NORM), "objects.bbox", "1 are given and 0 marks"),
    ("name unused", swift("Where?", "<bbox>", NORM), "objects.ref", "1 are given and 0 marks"),
    ("bbox type", swift("a", "<bbox>", NORM | {"bbox_type": "norm1000"}), "objects.bbox_type", "norm1 (fractions)"),
    ("beyond 1", norm({"bbox": [[0, 0, 1.2, 1]]}), "objects.bbox[0]", "beyond 1"),
    ("swapped", norm({"bbox": [[0.5, 0, 0.2, 1]]}), "objects.bbox[0]", "empty or outside"),
    ("not finite", norm({"bbox": [[float("nan"), 0, 1, 1]]}), "objects.bbox[0]", "four numbers"),
    ("infinite", norm({"bbox": [[0, 0, float("inf"), 1]]}), "objects.bbox[0]", "four numbers"),
    ("two numbers", norm({"bbox": [[0, 1]]}), "objects.bbox[0]", "four numbers"),
    ("texts", norm({"bbox": [["0", "0", "1", "1"]]}), "objects.bbox[0]", "four numbers"),
    ("name empty", norm({"ref": [""]}), "objects.ref[0]", "empty or not text"),
    ("other image", norm({"image_id": [1]}), "objects.image_id", "the last image"),
    (
        "first of two",
        swift("<image><ref-object>", "<bbox>", NORM, images=["a", "b"]),
        "objects.image_id",
        "the last image",
    ),
    ("image_id no list", norm({"image_id": 0}), "objects.image_id", "a list"),
    ("pixels unknown", norm({"bbox_type": "real"}), "objects.bbox[0]", "the size of the image"),
    ("box written out", swift("<ref-object>", "<bbox> (1,2),(3,4)", NORM), "answer 1", "a box written out"),
    ("mark torn", swift("<ref-object>", "<bbox><|box_end|><|box_start|>", NORM), "answer 1", "a box written out"),
    ("literal", swift("<ref-object>", "<bbox> [box]", NORM), "answer 1", "[box]: a box written out"),
]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(("row", "field", "told"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_faulty_row_is_left_out_whole_and_named(tmp_path: Path, row: Any, field: str, told: str, name: str) -> None:
    first, fault, last = read(write(tmp_path, [talk(), row, talk(id="last")], name), form="med-grit")
    assert [len(e.samples) for e in (first, fault, last)] == [1, 0, 1]
    assert fault.problem is not None and (fault.row, fault.problem.row) == (2, 2)
    line = str(fault.problem)
    assert fault.problem.field == field and told in line and "\n" not in line
    named = f", id {row['id']}" if "id" in row and field != "id" else ""
    assert line.startswith(f"{tmp_path / name}, row 2{named}")
    assert json.loads(fault.raw) == row or "nan" in repr(row)


def test_the_table_has_as_many_kinds_as_is_promised(tmp_path: Path) -> None:
    assert len({(field, told) for _, _, field, told in FAULTS}) >= 60 and len({f[0] for f in FAULTS}) == len(FAULTS)
    found = read(write(tmp_path, [f[1] for f in FAULTS]), form="med-grit")
    assert [e.row for e in found if e.problem] == list(range(1, len(FAULTS) + 1))


@pytest.mark.parametrize("answer", ["Not there.", "absent", "None", "There is no lung.", "The lung is not visible."])
def test_an_answer_of_visual_grounding_may_say_that_it_is_not_there(tmp_path: Path, answer: str) -> None:
    (entry,) = read(write(tmp_path, [grit([f"<img>{PNG}</img>Where?", answer])], "Test_VG.json"), form="med-grit")
    assert entry.problem is None and entry.samples[0].task is Task.VG and entry.samples[0].answer.boxes == ()


def test_unused_keys_of_messages_and_objects_are_counted(tmp_path: Path) -> None:
    told: Counter[str] = Counter()
    row = swift("<bbox>Is it?", "yes", {"bbox": [[0.1, 0.1, 0.9, 0.9]], "bbox_type": "norm1"})
    row["objects"]["score"], row["messages"][0]["weight"], row["empty"] = [0.5], 1, []
    (sample,) = good(write(tmp_path, [row]), told)
    assert {key: told[key] for key in told if "not used" in key} == {
        "keys 'objects.score', which are not used": 1, "keys 'messages.weight', which are not used": 1,
    }  # fmt: skip
    write_sharegpt([sample], tmp_path / "own")
    (own,) = json.loads((tmp_path / "own" / "train.json").read_text())
    own["clinkd"]["reader"] = "B"
    told.clear()
    assert good(write(tmp_path, [own]), told) == [sample] and told == {"keys 'clinkd.reader', which are not used": 1}
    stored = sample.to_json()
    stored["turns"][0]["question"]["confidence"] = 0.5
    (tmp_path / "samples.jsonl").write_text(json.dumps(stored))
    told.clear()
    list(read_rows(Source(tmp_path / "samples.jsonl", "samples", open_images=False), told))
    assert told == {"keys 'turns.question.confidence', which are not used": 1}


TASK_FAULTS = [
    ("Test_VG.json", ["Where?", "there"], "answer 1", "no box in an answer of visual grounding"),
    ("Test_RO.json", ["What?", "lung"], "question 1", "no box in a question of ROC"),
    ("Test_GC.json", ["What?", "lung"], "question 1", "no box in a question of RC"),
]


@pytest.mark.parametrize(("name", "turn", "field", "told"), TASK_FAULTS)
def test_a_test_file_of_a_task_needs_its_boxes(
    tmp_path: Path, name: str, turn: list[str], field: str, told: str
) -> None:
    (entry,) = read(write(tmp_path, [grit([f"<img>{PNG}</img>{turn[0]}", turn[1]])], name), form="med-grit")
    assert entry.problem is not None and entry.problem.field == field and told in entry.problem.why


OPENED: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    (talk(image="none.png"), {}, "image", "no such file"),
    (talk(image="train.json"), {}, "image", "not an image"),
    (swift("<ref-object>", "<bbox>", {"ref": ["a"], "bbox": [[0, 0, 101, 50]]}), {}, "objects.bbox[0]", "100x50"),
    (
        swift("<ref-object>", "<bbox>", {"ref": ["a"], "bbox": [[0.1, 0.1, 0.5, 0.5]]}),
        {},
        "objects.bbox[0]",
        "fractions",
    ),
    (box("<|box_start|>(0,0),(900,20)<|box_end|>"), {"boxes": "qwen2.5-vl"}, "answer 1", "beyond the resized image"),
    (box("<|box_start|>(0,0),(9,9)<|box_end|>") | {"image": "slim.png"}, {"boxes": "qwen2.5-vl"}, "image", "200 to 1"),
    (box("<box>(0,0),(9,9)</box>"), {"boxes": "qwen2-vl"}, "answer 1", "--boxes qwen-vl"),
    (box("<box>(0,0),(9,9)</box>"), {"boxes": "qwen2.5-vl", "open_images": False}, "answer 1", "the size of the image"),
    (talk(), {"group": r"p\d"}, "image", "finds no patient"),
    (talk(clinkd={"tasks": ["QA"], "boxes": "qwen3-vl"}), {"boxes": "qwen-vl"}, "clinkd.boxes", "leave that away"),
]


@pytest.mark.parametrize(("row", "said", "field", "told"), OPENED, ids=[o[3] for o in OPENED])
def test_faults_between_a_row_and_its_image_or_its_source(
    tmp_path: Path, row: dict[str, Any], said: dict[str, Any], field: str, told: str
) -> None:
    Image.new("L", (100, 50)).save(tmp_path / "a.png")
    Image.new("L", (402, 2)).save(tmp_path / "slim.png")
    (entry,) = read(write(tmp_path, [row]), **({"open_images": True} | said))
    assert entry.problem is not None and entry.problem.field == field and told in entry.problem.why


def test_a_torn_file_delivers_what_is_whole(tmp_path: Path) -> None:
    file = write(tmp_path, [talk(id=f"r{k}") for k in range(9)])
    file.write_bytes(file.read_bytes()[:-60])
    found = read(file)
    assert len(found) == 9 and [len(e.samples) for e in found] == [1] * 8 + [0]
    assert found[-1].problem is not None and "the last good row is 8 (id r7)" in found[-1].problem.why


def test_a_slow_reader_is_noticed(tmp_path: Path) -> None:
    """A Med-GRIT row took 50 us on the machine it was written on; this catches a tenfold loss only."""
    import time

    rows = [
        grit([f"<img>{PNG}</img>\nWhere?", f"The <ref>hip</ref><box>({k % 500},2),(999,{k % 900 + 9})</box>."])
        for k in range(4000)
    ]
    file = write(tmp_path, rows)
    start = time.process_time()
    assert len(good(file, form="med-grit")) == 4000
    assert time.process_time() - start < 4000 * 500e-6


def test_a_key_that_a_public_file_misspells_is_read_and_told(tmp_path: Path) -> None:
    row = {"id": "1", "image": "a.png", "conversatons": [{"from": "human", "value": "<image>\nWhat?"},
           {"from": "gpt", "value": "A lung."}]}  # fmt: skip
    told = Counter[str]()
    [sample] = good(file := write(tmp_path, [row]), told, modality=Modality.CT)
    assert (sample.question.text, sample.answer.text) == ("What?", "A lung.") and detect_form(
        Source(file)
    ) == "sharegpt"
    assert told == {"rows with 'conversatons', read as 'conversations'": 1}
