"""Answers in the papers' form: what each deserves strictly beside what the scripts give it, and no row lost."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from clinkd import cli
from clinkd.config import EvaluateConfig
from clinkd.language.facts import Lexicon
from clinkd.records import BadInput, Modality, Task
from clinkd.scoring.outcome import Mode, Outcome
from clinkd.scoring.reading import released
from clinkd.scoring.reading.answer_files import HowToRead
from clinkd.scoring.score import MODEL
from clinkd.workflows import answer as answering
from clinkd.workflows import evaluate as evaluating
from clinkd.workflows.answer import Answers, ReleasedFiles

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


def released_files(
    file: Path, task: Task = Task.VG, boxes: str = "qwen-vl", truth: str = "qwen-vl", **more: Any
) -> ReleasedFiles:
    return ReleasedFiles({task: file}, HowToRead(truth, flag="--truth-boxes"), HowToRead(boxes), **more)


def scored(
    folder: Path, task: Task, *rows: dict[str, Any], boxes: str = "qwen-vl", truth: str = "qwen-vl"
) -> dict[Mode, Outcome]:
    numbered = [{**r, "id": n, "image": r["image"].replace("1.png", f"{n}.png")} for n, r in enumerate(rows)]
    given = released_files(written(folder, *numbered), task, boxes, truth)
    answers = answering.read_released(given)
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
    assert parts == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L"]
    assert "CIDEr" in found["official"].not_computed  # one truth in each modality


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
        (row("", id=7, error="timeout"), "row 2, id 7: error = timeout: the request failed"),
        (row("Failed to obtain answer via API.", id=7), "row 2, id 7: response.*the request failed"),
        (row("x", "<box>(100,100),(100,200)</box>", id=7), "row 2, id 7: annotation.*--truth-boxes qwen-vl"),
    ],
)
def test_a_bad_row_is_named_or_set_aside_but_never_skipped(tmp_path: Path, bad: Any, named: str) -> None:
    file, aside = written(tmp_path, row(BOX), bad, row("x", id=3)), tmp_path / "aside.jsonl"
    with pytest.raises(BadInput, match=named):
        answering.read_released(released_files(file), ("strict",))
    answers = answering.read_released(released_files(file, quarantine=aside), ("strict",))
    assert len(answers.samples) == 2 and 1 in answers.notes.values()
    (kept,) = [json.loads(line) for line in aside.open()]
    assert kept["row"] == 2 and kept["raw"]


def test_a_file_with_nothing_to_score_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no row of it can be used"):
        answering.read_released(
            released_files(written(tmp_path, {"id": 1}), quarantine=tmp_path / "aside"), ("strict",)
        )
    with pytest.raises(BadInput, match="no such file"):
        released.read_lines(tmp_path / "none.jsonl")
    with pytest.raises(BadInput, match="--boxes qwen2.5-vl: pixels"):
        answering.read_released(released_files(written(tmp_path, row(BOX)), boxes="qwen2.5-vl"), ("strict",))


def test_the_groups_of_rows_are_a_field_or_found_in_the_image_and_widen_the_intervals(tmp_path: Path) -> None:
    rows = [
        row(BOX if n % 4 < 2 else "no", id=n, image=f"ct_p{n // 4 % 8}--{n}.png", patient=n % 4 + 1) for n in range(32)
    ]
    file = written(tmp_path, *rows)

    def widths(group: str | None) -> list[float]:
        answers = answering.read_released(released_files(file, group=group))
        outcomes = evaluating.evaluate(answers, config=FEW).outcomes
        return [o.interval[1] - o.interval[0] for o in outcomes if o.interval]

    by_image, by_field, by_name = widths(None), widths("patient"), widths("ct_(p[0-9])")
    assert len(by_image) == 2 and all(a > 1.5 * b for a, b in zip(by_field, by_image, strict=True))
    assert all(a < b for a, b in zip(by_name, by_field, strict=True))
    answers = answering.read_released(released_files(file, group="patient"), ("strict",))
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
        answering.read_released(released_files(file, group=group), ("strict",))


def test_a_json_list_reads_as_lines_do(tmp_path: Path) -> None:
    rows = [row(BOX), row("no", id=2)]
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    assert released.read_lines(tmp_path / "list.json").rows == released.read_lines(written(tmp_path, *rows)).rows


def test_the_declared_frame_decides_and_not_the_truth(tmp_path: Path) -> None:
    fractions = row("[0.1, 0.1, 0.3, 0.3]", "[0.1, 0.1, 0.3, 0.3]")
    assert strict_hits(scored(tmp_path, Task.VG, fractions, boxes="normalised", truth="normalised")["strict"]) == (1, 1)
    found = scored(tmp_path, Task.VG, row("[0.1, 0.1, 0.3, 0.3]"))["strict"]
    assert strict_hits(found) == (0, 1) and found.unparsed == 1


def test_what_was_taken_for_something_is_counted(tmp_path: Path) -> None:
    rows = [row(f"{BOX}<|im_end|>"), row(f"{BOX}<|im_end|>", id=2), row(BOX, id=2, image="heat_1.png"), row("x", id=1)]
    rows += [row(f"{BOX}<|im_end|>\n", id=n) for n in (5, 6)]
    lines = released.read_lines(written(tmp_path, *rows))
    found = released.read_questions(lines, Task.VG, HowToRead(), HowToRead())
    assert [p.answer.truncated for p in found.predictions] == [False, False, True, True, False, False]
    assert found.samples[2].modality is Modality.OTHER and len({s.id for s in found.samples}) == 6
    told = {what.partition(",")[0].partition(" of the")[0]: n for what, n in found.notes.items()}
    assert told["answers without an end token where most have one"] == 2 and told["answers"] == 1
    assert found.notes["rows with id, image and question of another row; each is counted"] == 2


# ---- the one reader -------------------------------------------------------------------------------------------------

FIELD = Path(__file__).parents[2] / "shared" / "cases" / "evaluation" / "field"
READ = [  # file, task, declared family, score, words of a caution
    *((f"perfect_reasoner_{t.lower()}{cut}", t, None, 100, "") for t in ("VG", "ROC", "QA") for cut in ("", "_cut")),
    ("think_vg", "VG", None, 100, ""), ("think_qa", "QA", None, 75, ""), ("xml_think_variants", "ROC", None, 100, ""),
    ("refuses_truth_no", "QA", None, 0, ""), ("repeated_box", "VG", None, 100, ""),
    ("points_as_box", "VG", None, 0, "no box was read in any of 3"), ("overshoot_1001", "VG", None, 100, ""),
    ("deepseek_99999", "VG", None, 0, "no box was read in any of 6"),
    ("empty_counts", "VG", None, 0, "give --boxes fractions"), ("normalised_undeclared", "VG", "normalised", 100, ""),
    ("norm_answer_thousandth_truth", "VG", "fractions", 100, ""), ("gemini", "VG", "gemini", 100, ""),
    ("gemini", "VG", None, 0, "as gemini, medgemma, gemma3) by 100%"), ("paligemma", "VG", "paligemma", 100, ""),
    ("paligemma", "VG", None, 0, "give --boxes paligemma"), ("qwen25", "VG", None, 0, "--boxes pixels or"),
    ("pixels_undeclared", "VG", None, 0, "--boxes pixels or"),
]  # fmt: skip


@pytest.mark.skipif(not FIELD.is_dir(), reason="the examples of the field are not there")
@pytest.mark.parametrize(("name", "task", "family", "score", "caution"), READ)
def test_answers_of_the_field_are_read_as_they_are_meant(
    name: str, task: str, family: str | None, score: float, caution: str
) -> None:
    answers = answering.read_released(
        released_files(FIELD / f"{name}.jsonl", Task(task), family or "qwen-vl"), ("strict",)
    )
    [outcome] = evaluating.evaluate(answers, ("strict",), EvaluateConfig(replicates=0)).outcomes
    assert outcome.score() == score and outcome.empty == (20 if "refuses" in name else 0)
    assert caution in " ".join(answers.doubts) and bool(answers.doubts) == bool(caution)


def test_truths_and_answers_have_each_their_own_frame(tmp_path: Path) -> None:
    rows = [row("[0.1, 0.1, 0.3, 0.3]"), row('[{"box_2d": [100, 100, 300, 300]}]'), row("[50, 25, 150, 75]")]
    for given, family in zip(rows, ("fractions", "gemini", "pixels"), strict=True):
        sized = {**given, "width": 500, "height": 250}
        assert strict_hits(scored(tmp_path, Task.VG, sized, boxes=family)["strict"]) == (1, 1)
    truth = row("[0.1, 0.1, 0.3, 0.3]", "[50, 25, 150, 75]", width=500, height=250)
    assert strict_hits(scored(tmp_path, Task.VG, truth, boxes="fractions", truth="pixels")["strict"]) == (1, 1)


def test_sizes_come_from_the_rows_or_the_images_or_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = row("[50, 25, 150, 75]", image="ct_1.png")
    file = written(tmp_path, given)
    words = (
        "--predictions",
        file,
        "--task",
        "VG",
        "--boxes",
        "pixels",
        "--mode",
        "strict",
        "--replicates",
        0,
        "--json",
    )
    status, _, err = call(capsys, *words)
    assert status == 2 and "size of ct_1.png is not known" in err and "--images FOLDER" in err
    status, _, err = call(capsys, *words, "--images", tmp_path)
    assert status == 2 and "row 1, id 1: image = ct_1.png: no such file" in err
    PIL.Image.new("L", (500, 250)).save(tmp_path / "ct_1.png")
    status, out, _ = call(capsys, *words, "--images", tmp_path)
    assert status == 0 and json.loads(out)["score"] == 100
    status, out, err = call(
        capsys, "--predictions", written(tmp_path, {**given, "image": "D:\\x\\ct_1.png"}), *words[2:],
        "--images", tmp_path, "--prefix", "D:\\x\\",
    )  # fmt: skip
    assert status == 0 and list(json.loads(out)["by_modality"]) == ["ct"]
    status, _, err = call(capsys, "--predictions", written(tmp_path, {**given, "width": "500"}), *words[2:])
    assert status == 2 and "width = 500: pixels of the image are wanted" in err


def test_a_question_keeps_its_words_and_a_region_its_box(tmp_path: Path) -> None:
    asked = [row("x", "y", question="Which of [1, 2, 3, 4] is it?"), row("x", "y", question="What is at [1, 2, 3, 4]?")]
    for task, text in ((Task.QA, "Which of [1, 2, 3, 4] is it?"), (Task.ROC, "Which of [box] is it?")):
        answers = answering.read_released(released_files(written(tmp_path, asked[0]), task), ("strict",))
        assert answers.samples[0].question.text == text


# ---- several files --------------------------------------------------------------------------------------------------


def files_of_tasks(folder: Path) -> dict[Task, Path]:
    rows = {
        Task.VG: [row(BOX), row("no", id=2)],
        Task.ROC: [row("liver", "liver"), row("liver", "spleen", id=2)],
        Task.RC: [row("The liver is dark.", "The liver is dark.")],
        Task.MIA: [row("The liver is dark.", "The liver is dark."), row("A spleen.", "The liver is dark.", id=2)],
    }
    for task, its_rows in rows.items():
        (folder / f"Test_{task}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in its_rows))
    return {task: folder / f"Test_{task}.jsonl" for task in rows}


def test_files_of_several_tasks_are_one_system_and_score_as_each_alone(tmp_path: Path) -> None:
    files = {task: file for task, file in files_of_tasks(tmp_path).items() if task not in (Task.RC, Task.MIA)}
    together = evaluating.evaluate(answering.read_released(ReleasedFiles(files), system="mine"), config=FEW)
    assert together.answers.system == "mine" and len({s.id for s in together.answers.samples}) == 4
    assert together.averages == {}
    for task, file in files.items():
        alone = evaluating.evaluate(answering.read_released(ReleasedFiles({task: file})), config=FEW)
        assert [o for o in together.outcomes if o.task is task] == alone.outcomes


def test_the_average_is_that_of_the_four_tasks() -> None:
    outcomes = [
        Outcome("strict", task, "m", {}, {(MODEL, "m", None): value})
        for task, value in zip((Task.VG, Task.ROC, Task.RC, Task.MIA), (10.0, 20.0, 30.0, 60.0), strict=True)
    ]
    none = Answers("mine", "test", {}, (), (), {}, Lexicon(()))
    whole = evaluating.Evaluation(none, outcomes)
    assert whole.to_json()["average"] == {"strict": 30} and whole.tables()[0].rows[-1][:5] == (
        "average", "strict", "mean of the four", "-", "30.0"
    )  # fmt: skip
    assert "average" not in evaluating.Evaluation(none, outcomes[:3]).to_json()
    without = [replace(outcomes[0], figures={}, why="no Java"), *outcomes[1:]]
    assert evaluating.Evaluation(none, without).to_json()["average"] == {"strict": None}


def test_files_and_tasks_belong_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vg, roc, *_ = files_of_tasks(tmp_path).values()
    more = ("--mode", "strict", "--replicates", 0, "--json")
    status, out, err = call(capsys, "--predictions", vg, roc, *more)
    assert status == 0 and list(json.loads(out)["strict"]) == ["VG", "ROC"]
    assert "Test_ROC.jsonl: taken as answers to ROC, as its name says" in err
    for words, named in (
        (("--predictions", vg, roc, "--task", "VG"), "--task VG: one for each file"),
        (("--predictions", vg, "--task", "VG", "ROC"), "--task VG ROC: one for each file"),
        (("--predictions", vg, roc, "--task", "VG", "VG"), "--task VG: of two files"),
        (("--predictions", vg, "--task", "VG", "--column", "id=nr"), "--column: rows in the papers' form"),
        (("--predictions", vg, "--data", vg, "--task", "VG", "ROC"), "--data has its own tasks"),
        (("--predictions", vg, "--task", "VG", "--box-form", "xywh"), "--box-form: is for --data"),
        (("--predictions", vg, "--task", "VG", "--missing", "wrong"), "--missing: is for --data"),
    ):
        status, out, err = call(capsys, *words, *more)
        assert status == 2 and named in err and err.count("\n") == 1


def test_bad_rows_of_all_files_are_set_aside_in_one(tmp_path: Path) -> None:
    files = {task: file for task, file in files_of_tasks(tmp_path).items() if task in (Task.VG, Task.ROC)}
    for file in files.values():
        file.write_text(file.read_text() + "{}\n")
    answers = answering.read_released(ReleasedFiles(files, quarantine=tmp_path / "aside"), ("strict",))
    assert answers.notes["bad rows, set aside"] == 2 and len((tmp_path / "aside").read_text().splitlines()) == 2


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
        "heavy = {'torch', 'transformers', 'scipy', 'sklearn', 'pycocotools', 'openai', 'pycocoevalcap'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
