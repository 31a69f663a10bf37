"""Answers in the papers' form: what each deserves strictly beside what the scripts give it, and no row lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clinkd import cli
from clinkd.config import EvaluateConfig
from clinkd.data.codecs import make_codec
from clinkd.records import BadInput, Modality, Task
from clinkd.scoring import released
from clinkd.scoring.outcome import Mode, Outcome
from clinkd.workflows import answer as answering
from clinkd.workflows import evaluate as evaluating

BOX = "<box>(100,100),(300,300)</box>"
FEW = EvaluateConfig(replicates=20)


def row(response: str, truth: str = BOX, **other: Any) -> dict[str, Any]:
    base = {"id": 1, "image": "ct_00--set--1.png", "question": "Where is the liver?"}
    return {**base, "annotation": truth, "response": response, **other}


def written(folder: Path, *rows: Any) -> Path:
    """Rows as JSON lines; text stands as it is."""
    path = folder / "answers.jsonl"
    lines = (r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def scored(folder: Path, task: Task, *rows: dict[str, Any], boxes: str = "qwen-vl") -> dict[Mode, Outcome]:
    numbered = [{**r, "id": n, "image": r["image"].replace("1.png", f"{n}.png")} for n, r in enumerate(rows)]
    answers = answering.read_released(written(folder, *numbered), task, boxes, ("official", "strict"), None)
    return {o.mode: o for o in evaluating.evaluate(answers, config=FEW).outcomes}


def strict_hits(outcome: Outcome) -> tuple[int, int]:
    return outcome.hits["ct"], outcome.totals["ct"]


# ---- probes ---------------------------------------------------------------------------------------------------------

SPRAYED = "".join(
    f"<box>({x},{y}),({x + w},{y + w})</box>"
    for w in (100, 200, 300, 400) for x in range(0, 1000 - w, 25) for y in range(0, 1000 - w, 25)
)  # fmt: skip


@pytest.mark.parametrize(
    ("response", "official", "strict"),
    [
        (BOX, 1, 1),
        ("<box>(300,300),(100,100)</box>", 0, 1),
        ("[100, 100, 300, 300]", 0, 1),
        ("(100, 100), (300, 300)", 0, 1),
        ("<|box_start|>(100,100),(300,300)<|box_end|><|im_end|>", 1, 1),
        (f"It is here.\n\n{BOX}\n\nThat is all.", 0, 1),  # the scripts keep what stands between two newlines: nothing
        (f"The box:\n{BOX}\nThat is all.", 1, 1),
        ("I cannot see it.", 0, 0),
        ("<box>(100,100),(300,200)</box>", 0, 1),  # IoU 0.5: more is asked there, so much here
    ],
)
def test_a_box_counts_as_the_box_it_means(tmp_path: Path, response: str, official: int, strict: int) -> None:
    found = scored(tmp_path, Task.VG, row(response))
    assert strict_hits(found["official"]) == (official, 1)
    assert strict_hits(found["strict"]) == (strict, 1)
    assert found["strict"].unparsed == ("[" not in response and "(" not in response)


def test_sprayed_boxes_find_all_for_the_scripts_and_cost_precision_here(tmp_path: Path) -> None:
    assert SPRAYED.count("<box>") > 3000
    found = scored(tmp_path, Task.VG, *[row(SPRAYED) for _ in range(3)])
    assert found["official"].score() == 100
    strict = {found["strict"].metric: found["strict"].score(), **found["strict"].parts()}
    assert strict["Precision"] < 0.1 and strict["F1"] < 0.1


def test_one_box_for_two_truths_is_one_hit(tmp_path: Path) -> None:
    found = scored(tmp_path, Task.VG, row(BOX, BOX * 2))
    assert strict_hits(found["official"]) == (2, 2) and strict_hits(found["strict"]) == (1, 2)


@pytest.mark.parametrize(
    ("response", "official", "strict"),
    [
        ("Liver", 1, 1),
        ("This is the liver.<|im_end|>\n", 1, 1),
        ("This is not the liver", 1, 0),
        ("liver, spleen, kidney", 1, 0),
        ("deliverance", 1, 0),
        ("This is\r\nthe\u2028liver", 1, 1),
        ("This is the liver.\n\nIt is large.\n\nNo more.", 0, 1),
        ("", 0, 0),
    ],
)
def test_a_class_counts_where_it_alone_is_affirmed(tmp_path: Path, response: str, official: int, strict: int) -> None:
    others = [row("no", "spleen."), row("no", "Kidney")]
    found = scored(tmp_path, Task.ROC, row(response, "Liver"), *others)
    assert strict_hits(found["official"]) == (official, 3)
    assert strict_hits(found["strict"]) == (strict, 3)


def test_a_full_stop_of_the_truth_is_demanded_by_the_scripts_alone(tmp_path: Path) -> None:
    found = scored(tmp_path, Task.ROC, row("liver", "liver."))
    assert strict_hits(found["official"]) == (0, 1) and strict_hits(found["strict"]) == (1, 1)


@pytest.mark.usefixtures("one_meteor")
def test_captions_keep_every_paragraph_and_no_line_is_shifted(tmp_path: Path) -> None:
    truth = "The liver is large and bright."
    hostile = "The liver\r is large\u2028 and\x0b bright."
    paragraphs = "The liver is\n\nlarge and\n\nbright."
    rows = [row(truth, truth), row(hostile, truth, image="mr_1.png"), row(paragraphs, truth, image="pet_1.png")]
    found = scored(tmp_path, Task.MIA, *rows)
    assert [found["strict"].score(m) for m in ("ct", "mr", "pet")] == pytest.approx([100.0] * 3)
    ct, mr, pet = (found["official"].score(m) for m in ("ct", "mr", "pet"))
    assert ct == mr == pytest.approx(100)
    assert pet is not None and pet < 70  # "" is all that the scripts keep
    parts = list(found["official"].parts())
    assert parts == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"]


# ---- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ('{"id": 7, "image": ', "row 2.*not JSON"),
        ({**row("x", id=7), "response": None}, "row 2, id 7: response = null: text is wanted"),
        ({k: v for k, v in row("x", id=7).items() if k != "annotation"}, "row 2, id 7: annotation = null: absent"),
        (row("x", "  ", id=7), "row 2, id 7: annotation.*nothing to judge by"),
        (row("x", id=7, image=""), "row 2, id 7: image.*empty"),
        ([1, 2], "row 2.*object"),
        (row("x", "<box>(100,100),(100,200)</box>", id=7), "row 2, id 7: annotation.*--boxes qwen-vl"),
    ],
)
def test_a_bad_row_is_named_or_set_aside_but_never_skipped(tmp_path: Path, bad: Any, named: str) -> None:
    file, aside = written(tmp_path, row(BOX), bad, row("x", id=3)), tmp_path / "aside.jsonl"
    with pytest.raises(BadInput, match=named):
        answering.read_released(file, Task.VG, "qwen-vl", ("strict",), None)
    answers = answering.read_released(file, Task.VG, "qwen-vl", ("strict",), aside)
    assert len(answers.samples) == 2 and 1 in answers.notes.values()
    (kept,) = [json.loads(line) for line in aside.open()]
    assert kept["row"] == 2 and kept["raw"]


def test_a_file_with_nothing_to_score_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no row of it can be used"):
        answering.read_released(written(tmp_path, {"id": 1}), Task.VG, "qwen-vl", ("strict",), tmp_path / "aside")
    with pytest.raises(BadInput, match="no such file"):
        released.read_lines(tmp_path / "none.jsonl")
    with pytest.raises(BadInput, match="--boxes qwen2.5-vl: pixels"):
        answering.read_released(written(tmp_path, row(BOX)), Task.VG, "qwen2.5-vl", ("strict",), None)


def test_the_groups_of_rows_are_a_field_or_found_in_the_image_and_widen_the_intervals(tmp_path: Path) -> None:
    rows = [
        row(BOX if n % 4 < 2 else "no", id=n, image=f"ct_p{n // 4 % 8}--{n}.png", patient=n % 4 + 1) for n in range(32)
    ]
    file = written(tmp_path, *rows)

    def widths(group: str | None) -> list[float]:
        answers = answering.read_released(file, Task.VG, "qwen-vl", ("official", "strict"), None, group)
        outcomes = evaluating.evaluate(answers, config=FEW).outcomes
        return [o.interval[1] - o.interval[0] for o in outcomes if o.interval]

    by_image, by_field, by_name = widths(None), widths("patient"), widths("ct_(p[0-9])")
    assert len(by_image) == 2 and all(a > 1.5 * b for a, b in zip(by_field, by_image, strict=True))
    assert all(a < b for a, b in zip(by_name, by_field, strict=True))
    answers = answering.read_released(file, Task.VG, "qwen-vl", ("strict",), None, "patient")
    assert {s.group for s in answers.samples} == {"1", "2", "3", "4"}


@pytest.mark.parametrize(
    ("group", "named"),
    [
        ("patient", "row 2, id 2: patient"),
        ("nowhere", "row 1, id 1: image.*--group nowhere finds no patient"),
        ("(", r"--group \(: no field of the rows, and not a regular expression"),
    ],
)
def test_a_row_without_its_group_is_named(tmp_path: Path, group: str, named: str) -> None:
    file = written(tmp_path, row(BOX, patient="a"), row(BOX, id=2))
    with pytest.raises(BadInput, match=named):
        answering.read_released(file, Task.VG, "qwen-vl", ("strict",), None, group)


def test_a_json_list_reads_as_lines_do(tmp_path: Path) -> None:
    rows = [row(BOX), row("no", id=2)]
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    assert released.read_lines(tmp_path / "list.json").rows == released.read_lines(written(tmp_path, *rows)).rows


def test_the_declared_frame_decides_and_not_the_truth(tmp_path: Path) -> None:
    fractions = row("[0.1, 0.1, 0.3, 0.3]", "[0.1, 0.1, 0.3, 0.3]")
    assert strict_hits(scored(tmp_path, Task.VG, fractions, boxes="normalised")["strict"]) == (1, 1)
    found = scored(tmp_path, Task.VG, row("[0.1, 0.1, 0.3, 0.3]"))["strict"]
    assert strict_hits(found) == (0, 1) and found.unparsed == 1


def test_what_was_taken_for_something_is_counted(tmp_path: Path) -> None:
    rows = [row(f"{BOX}<|im_end|>"), row(f"{BOX}<|im_end|>", id=2), row(BOX, id=2, image="heat_1.png"), row("x", id=1)]
    rows += [row(f"{BOX}<|im_end|>\n", id=n) for n in (5, 6)]
    lines = released.read_lines(written(tmp_path, *rows))
    found = released.read_questions(lines, Task.VG, make_codec("qwen-vl"), "file")
    assert [p.answer.truncated for p in found.predictions] == [False, False, True, True, False, False]
    assert found.samples[2].modality is Modality.OTHER and len({s.id for s in found.samples}) == 6
    told = {what.partition(",")[0].partition(" of the")[0]: n for what, n in found.told.items()}
    assert told["answers without an end token where most have one"] == 2 and told["answers"] == 1
    assert found.told["rows with id, image and question of another row; each is counted"] == 2


# ---- the command ----------------------------------------------------------------------------------------------------


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = cli.main(["evaluate", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_json_of_one_mode_is_the_outcome(tmp_path: Path, capsys: pytest.CaptureFixture[str], shared: Path) -> None:
    golden = shared / "data/golden/official"
    expected = json.loads((golden / "expected.json").read_text())["vg_hits_total_by_modality"]
    status, out, _ = call(capsys, "--predictions", golden / "vg.jsonl", "--task", "vg", "--mode", "official", "--json")
    told = json.loads(out)
    assert status == 0 and {m: [s["hits"], s["total"]] for m, s in told["by_modality"].items()} == expected
    assert (
        told["interval"][0] < told["score"] < told["interval"][1]
        and told["unparsed"] > 0
        and told["blind"] < told["score"]
    )


def test_few_images_are_told_before_anybody_concludes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(BOX, id=n, image=f"ct_{n}.png") for n in range(10)]
    for number, cautions in ((9, ["9 test images: no conclusion"]), (10, [])):
        file = written(tmp_path, *rows[:number])
        words = ("--predictions", file, "--task", "VG", "--mode", "official", "--replicates", 0)
        assert [line for line in call(capsys, *words)[1].splitlines() if "conclusion" in line] == [
            f"caution  {line}" for line in cautions
        ]
        assert json.loads(call(capsys, *words, "--json")[1])["cautions"] == cautions


def test_a_folder_holds_all_that_was_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = written(tmp_path, row(BOX), row("no", id=2, image="ct_2.png")), tmp_path / "out"
    words = ("--predictions", file, "--task", "VG", "--replicates", 20, "--out", out)
    status, said, _ = call(capsys, *words, "--as", "mine")
    assert status == 0 and "the papers' scripts" in said and "best blind baseline" in said
    about = json.loads((out / "evaluation.json").read_text())
    assert about["iou"] == 0.5 and about["lexicon"]["names"] is not None  # what a comparison scores with
    assert about["system"] == "mine" and about["modes"] == ["official", "strict"] and about["tasks"] == ["VG"]
    for name in ("samples.jsonl", "predictions.jsonl", "scores.jsonl"):
        assert (out / name).read_text().count("\n") >= 2
    assert json.loads((out / "table.json").read_text())["official"]["VG"]["score"] == 50
    assert (
        "<html" in (out / "report.html").read_text() and (out / "table.md").is_file() and (out / "table.csv").is_file()
    )
    assert call(capsys, *words)[0] == 0  # again, over its own
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    status, _, err = call(capsys, *words[:-1], tmp_path / "other")
    assert status == 2 and "is no evaluation" in err


def test_what_is_missing_is_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, row(BOX))
    for words, named in (
        ((), "whose answers?"),
        (("--predictions", file), "--task"),
        (("--predictions", file, "--task", "XX"), "--task XX"),
        (("--predictions", file, "--task", "VG", "--replicates", -1), "--replicates -1"),
        (("--predictions", file, "--task", "VG", "--quarantine", file), "--quarantine"),
    ):
        status, out, err = call(capsys, *words)
        assert status == 2 and out == "" and named in err and err.count("\n") == 1


def test_scoring_starts_without_torch() -> None:
    code = (
        "import sys, clinkd.scoring, clinkd.workflows.evaluate, clinkd.workflows.answer\n"
        "heavy = {'torch', 'transformers', 'scipy', 'openai', 'pycocoevalcap'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
