"""Answers of any harness and model: final answers, boxes of every family, and rows matched with their questions."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import openpyxl
import pytest

from clinkd.cli import main
from clinkd.data.grids import Size
from clinkd.data.readers.rows import FieldError, SourceRow
from clinkd.records import BadInput, Box, BoxedText, ImageRef, Modality, Sample, Task, Turn
from clinkd.scoring.final_answer import find_final_answer
from clinkd.scoring.reading.answer_files import (
    AnswerRow,
    HowToRead,
    LostAnswer,
    find_frame_doubts,
    find_text_key,
    make_predictions,
    match_rows,
    read_row,
)
from clinkd.scoring.reading.box_families import FAMILIES, OVER, read_answer
from clinkd.scoring.reading.results import EvaluationData, read_results

SPELLINGS = Path(__file__).parents[2] / "shared" / "cases" / "evaluation" / "box_spellings.json"
BOX = Box(0.1, 0.2, 0.4, 0.5)
SIZE = Size(640, 480)

# ---- boxes ----------------------------------------------------------------------------------------------------------


def spell(box: Box, family: str) -> list[float]:
    """The four numbers of a box in a family, by the definition of its unit and order."""
    known = FAMILIES[family]
    width, height = (SIZE.width, SIZE.height) if known.unit is None else (known.unit, known.unit)
    x1, y1, x2, y2 = (v * n for v, n in zip(box.corners, (width, height) * 2, strict=True))
    if known.order == "xywh":
        return [x1, y1, x2 - x1, y2 - y1]
    if known.order == "cxcywh":
        return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
    return [y1, x1, y2, x2] if known.order == "yxyx" else [x1, y1, x2, y2]


NOTATIONS = (
    "The liver is at [{0}, {1}, {2}, {3}].", "liver [[{0},{1},{2},{3}]]", "<box>({0},{1}),({2},{3})</box>",
    "<|box_start|>({0}, {1}), ({2}, {3})<|box_end|>", "[[{0}, {1}], [{2}, {3}]]", "（{0}，{1}），（{2}，{3}）",
    '```json\n[{{"bbox_2d": [{0}, {1}, {2}, {3}], "label": "liver"}}]\n```', '{{"box": [{0}, {1}, {2}, {3}]}}',
    "<bbox>{0} {1} {2} {3}</bbox>", "$\\boxed{{[{0}, {1}, {2}, {3}]}}$",
)  # fmt: skip


@pytest.mark.parametrize("family", [name for name, known in FAMILIES.items() if not known.offset])
def test_every_notation_is_read_in_the_declared_frame(family):
    rng = np.random.default_rng(0)
    for notation in NOTATIONS:
        x1, x2 = sorted(rng.uniform(0, 1, 2))
        y1, y2 = sorted(rng.uniform(0, 1, 2))
        box = Box(x1, y1, x2, y2)
        numbers = [round(v, 4) for v in spell(box, family)]
        read = read_answer(notation.format(*numbers), family, SIZE)
        assert len(read.answer.boxes) == 1 and not read.unread, (notation, numbers, read)
        assert np.allclose(read.answer.boxes[0].corners, box.corners, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("<loc0205><loc0102><loc0512><loc0410> liver", "paligemma"),
        ("liver<loc_99><loc_199><loc_399><loc_499>", "florence-2"),
        ("<obj> Liver <box><x10><y20><x39><y49></box></obj>", "maira-2"),
        ("<p>liver</p>{<10><20><40><50>}", "minigpt-v2"),
        ("<|LOC_BEGIN|><|LOC_100|><|LOC_200|><|LOC_400|><|LOC_500|><|LOC_END|>", "ernie-vl"),
        ("<phrase>liver</phrase><object><patch_index_0195><patch_index_0525></object>", "kosmos-2"),
        ('{"x1": 100, "x2": 400, "y1": 200, "y2": 500}', "thousandths"),
        ('{"x": 100, "y": 200, "width": 300, "height": 300}', "thousandths"),
        ('{"objects": [{"x_min": 0.1, "y_min": 0.2, "x_max": 0.4, "y_max": 0.5}]}', "moondream"),
        ("Top-left: (100, 200), bottom-right: (400, 500)", "thousandths"),
        ("x from 100 to 400, y from 200 to 500", "thousandths"),
        ("[[100,200],[400,200],[400,500],[100,500]]", "thousandths"),
        ("[10%, 20%, 40%, 50%]", "thousandths"),
    ],
)
def test_tokens_and_named_numbers_say_themselves_what_they_are(text, family):
    [box] = read_answer(text, family).answer.boxes
    assert np.allclose(box.corners, BOX.corners, atol=0.025)  # a patch of Kosmos-2 is 1/32


@pytest.mark.parametrize(
    "text",
    [
        "Two nodules, at (100,200) and (400,500).", '<points x1="10" y1="20" x2="40" y2="50">liver</points>',
        "start_box='(100,200)'", '{"point_2d": [250, 350], "label": "liver"}', "<box>(0,0),(1,000,1,000)</box>",
        "[0.1, 0.2, 0.4, 0.5]", "[100, 200, 400, 5, 6]", "[2, 311, 99999, 98]",
    ],
)  # fmt: skip
def test_what_is_no_box_of_the_frame_is_left_unread(text):
    read = read_answer(text, "thousandths")
    assert not read.answer.boxes and read.unread


def test_a_box_a_little_over_the_border_is_cut_and_one_far_over_is_unread():
    read = read_answer("<box>(100,200),(1001,1003)</box>", "qwen-vl")
    assert read.answer.boxes == (Box(0.1, 0.2, 1, 1),) and read.clipped == 1
    assert read_answer(f"[100, 200, {1001 + 1000 * OVER:.0f}, 900]", "qwen-vl").unread


def test_a_box_that_is_said_twice_counts_once():
    read = read_answer("It is at [100,200,400,500]. Answer: [100,200,400,500] and [0,0,50,50]", "thousandths")
    assert read.answer.boxes == (BOX, Box(0, 0, 0.05, 0.05)) and read.repeated == 1


def test_words_around_boxes_stay():
    answer = read_answer('[{"bbox_2d": [100, 200, 400, 500], "label": "liver segment 4, 5"}]', "qwen3-vl").answer
    assert answer == BoxedText("liver segment 4, 5[box]", (BOX,))
    assert read_answer("There is no liver in this image (see 3, 4).", "qwen3-vl").answer.boxes == ()


@pytest.mark.skipif(not SPELLINGS.is_file(), reason="the examples of spellings are not there")
def test_all_spellings_of_the_examples_are_read_or_named():
    families = {
        "gemini": "gemini", "deepseek": "deepseek-vl2", "shikra": "shikra", "chexagent": "chexagent", "ovis": "ovis",
        "paligemma": "paligemma", "kosmos": "kosmos-2", "minigpt": "minigpt-v2", "rad-dino": "maira-2",
        "m3d": "fractions", "moondream": "moondream", "molmo": "percent",
    }  # fmt: skip
    for name, text in json.loads(SPELLINGS.read_text())["forms"].items():
        family = next((f for start, f in families.items() if name.startswith(start)), "thousandths")
        read = read_answer(find_final_answer(text).text, family)
        if any(word in name for word in ("point", "ui-tars", "prose", "none", "thousands sep")) and "gpt" not in name:
            assert not read.answer.boxes, name
        else:
            assert len(read.answer.boxes) == 1, (name, read)
            assert np.allclose(read.answer.boxes[0].corners, BOX.corners, atol=0.025), name


# ---- final answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("<think>No, or yes?</think>\nNo", "No"), ("◁think▷spleen?◁/think▷liver", "liver"),
        ("a?</think>liver", "liver"), ("liver</s></s>", "liver"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>liver<|return|>", "liver"),
        ("<think>never ends", ""), ("The correct answer is B.", "B."), ("**Answer:** B", "B"),
        ("The final answer is: $\\boxed{\\text{No}}$", "No"), ("<think>a</think><answer>[1, 2]</answer>", "[1, 2]"),
        ("Yes. Yes. Yes. Yes.", "Yes."), ("assistant\nliver<|im_end|>\n<|im_start|>user", "liver"),
        ("### Findings\nThe **liver** is `large`, 2*3*4.", "Findings\nThe liver is large, 2*3*4."),
        ("I cannot see a mass in the image.", "I cannot see a mass in the image."),
        ("I cannot provide a diagnosis, but it is a mass.", "I cannot provide a diagnosis, but it is a mass."),
        ("Yes. I cannot give a diagnosis.", "Yes. I cannot give a diagnosis."),
        ("<|start_header_id|>assistant<|end_header_id|>\n\nliver<|eot_id|>", "liver"), ("[/INST] liver </s>", "liver"),
        ("ASSISTANT: liver", "liver"), ("<pad>liver<pad>", "liver"), ("**Final Answer**\nB", "B"),
        ("Why.\n## Answer\nliver", "liver"), ("[THINK]x[/THINK]liver", "liver"), ('{"answer": "liver"}', "liver"),
        ("<unused94>thought\nx<unused95>liver", "liver"), ("<CONCLUSION> liver </CONCLUSION>", "liver"),
        ("x</think>liver<think>y", "liver"),
        ("<|begin_of_box|>Yes<|end_of_box|>", "Yes"), ("x</think>liver</answer>", "liver"),
        ("<answer><|begin_of_box|>[1, 2]<|end_of_box|></answer>", "[1, 2]"), ("<output>liver</output>", "liver"),
        ("<think>yes? <answer>liver</answer>", "liver"), ("<think>in <answer></answer> tags", ""),
        ('a<|channel|>final <|constrain|>json<|message|>{"Answer": ["liver", "lung"]}', "liver, lung"),
        ("analysisThe user asks.assistantfinalliver", "liver"), ("analysisThe user asks", ""),
        ("Analysis: liver", "Analysis: liver"), ("<|channel>thought\nx<channel|>liver", "liver"),
        ('{"Final Answer": 3}', "3"), ('{"reasoning": "x", "response": "liver"}', "liver"),
        ("Here is my thought process: x.\nHere is my response: liver", "liver"), ("why\n#### liver", "liver"),
        ("Yes. The answer is based on its shape.", "Yes. The answer is based on its shape."),
        ("\ufeffliver\u200b", "liver"), ("```\nliver\n```", "liver"), ('"liver"', "liver"), ("1. liver", "liver"),
        ("1. liver 2. lung", "1. liver 2. lung"), ("Why.\n**Final answer: liver**", "liver"), ("a. b. a. b.", "a. b."),
        ("yes\nyes", "yes"), ("Output: liver", "liver"), ("### Response:\nliver", "liver"),
        ("liver\nHuman: no?", "liver"), ("&lt;think&gt;x&lt;/think&gt;liver &amp; lung", "liver & lung"),
    ],
)  # fmt: skip
def test_the_final_answer_is_what_remains(raw, text):
    final = find_final_answer(raw)
    assert final.text == text and not final.refused


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nNo?<|im_end|>\n<|im_start|>assistant\n",
        "[INST] No? [/INST]",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nNo?<|eot_id|><|start_header_id|>assistant"
        "<|end_header_id|>\n\n", "<bos><start_of_turn>user\nNo?<end_of_turn>\n<start_of_turn>model\n",
        "USER: No? ASSISTANT: ", "system\nS\nuser\nNo?\nassistant\n", "<|user|>\nNo?<|end|>\n<|assistant|>\n",
    ],
)  # fmt: skip
def test_a_prompt_before_the_answer_is_none_of_it(prompt):
    assert find_final_answer(f"{prompt}<think>no</think>liver").text == "liver"


@pytest.mark.parametrize(
    "raw",
    ["I'm sorry, but I can't assist with that.", "No image was provided.", "I am unable to view images.",
     "As an AI, I cannot provide a diagnosis.", "Please upload the image.", "Unable to view the image.",
     "I apologize, but I cannot analyze medical images.", "I don't have access to the image.", "The image is missing.",
     "As a language model, I can't see images. Could you describe it?", "I can't interpret scans; consult a doctor.",
     "I cannot provide a diagnosis. However, please consult a doctor.", "The image did not load."],
)  # fmt: skip
def test_a_refusal_is_no_answer(raw):
    final = find_final_answer(raw)
    assert final.refused and final.text == ""


# ---- files ----------------------------------------------------------------------------------------------------------

BOXES = [Box(0.1 + n / 50, 0.2, 0.4, 0.5 + n / 40) for n in range(6)]


def sample(n: int) -> Sample:
    question, answer = BoxedText("Where is the liver?"), BoxedText("There[box].", (BOXES[n],))
    image = ImageRef(f"images/ct_{n}.png", 640, 480)
    return Sample(f"s{n}", (image,), Modality.CT, (Turn(Task.VG, question, answer),), f"p{n}", split="test")


SAMPLES = [sample(n) for n in range(6)]
TEXTS = [f"<box>({1000 * b.x1:.0f},{1000 * b.y1:.0f}),({1000 * b.x2:.0f},{1000 * b.y2:.0f})</box>" for b in BOXES]
ASKED = {"image": "/data/ct_{n}.jpg", "question": "<image>\nWhere is the liver?"}
FORMS = {
    "id": lambda n, text: {"id": f"s{n}", "response": text},
    "LLaVA": lambda n, text: {"question_id": f"s{n}", "prompt": "Where is the liver?", "text": text},
    "lmms-eval of today": lambda n, text: {
        "doc_id": f"s{n}", "input": "<image>Where is the liver?", "target": "", "filtered_resps": [text, "spare"],
    },
    "MedEvalKit": lambda n, text: {
        "answer": "the truth", "question": "Where is the liver?", "prompt": "Where is the liver?\nBe short.",
        "response": text, "correct": False, "answer_type": "OPEN",
    },
    "OpenAI's responses": lambda n, text: {
        "custom_id": f"s{n}", "error": None, "response": {"body": {"status": "completed", "output": [
            {"type": "reasoning", "summary": []},
            {"type": "message", "content": [{"type": "output_text", "text": text}]},
        ]}},
    },
    "Anthropic": lambda n, text: {
        "custom_id": f"s{n}", "result": {"type": "succeeded", "message": {"content": [{"type": "text", "text": text}]}},
    },
    "Gemini": lambda n, text: {
        "key": f"s{n}", "response": {"candidates": [{"content": {"parts": [
            {"text": "hm", "thought": True}, {"text": text}]}, "finishReason": "STOP"}]},
    },
    "lmms-eval": lambda n, text: {
        "doc_id": n, "doc": {"image": f"ct_{n}.png", "question": "Where is the liver?"}, "target": "",
        "resps": [[text]], "filtered_resps": [text],
    },
    "ms-swift": lambda n, text: {
        "response": text, "messages": [{"role": "user", "content": "<image>Where is the liver?"}],
        "images": [{"bytes": None, "path": f"x/ct_{n}.png"}],
    },
    "LLaMA-Factory": lambda n, text: {"prompt": "user\nWhere is the liver?\nassistant\n", "predict": text, "label": ""},
    "OpenAI": lambda n, text: {
        "id": f"batch_{n}", "custom_id": f"s{n}", "error": None,
        "response": {"body": {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}},
    },
    "VLMEvalKit": lambda n, text: {"index": n, "image_path": f"ct_{n}.png", "question": "Where is the liver?",
                                   "prediction": text},
}  # fmt: skip


def rows_of(form: str, order: list[int]):
    rows = [SourceRow(Path("answers.jsonl"), k, FORMS[form](n, TEXTS[n]), None) for k, n in enumerate(order, start=1)]
    key = find_text_key(rows, {}, Counter())
    return [read_row(row, {}, key) for row in rows]


@pytest.mark.parametrize("form", FORMS)
def test_answers_of_every_harness_find_their_questions(form):
    order = list(range(6)) if form in ("LLaMA-Factory", "MedEvalKit") else [3, 1, 5, 0, 2, 4]
    notes: Counter[str] = Counter()
    predictions = make_predictions(match_rows(rows_of(form, order), SAMPLES, notes), SAMPLES, HowToRead(), notes)
    for n, asked in enumerate(SAMPLES):
        assert np.allclose(predictions[asked.id].answer.answer.boxes[0].corners, BOXES[n].corners, atol=1e-3)


def test_rows_in_another_order_without_ids_are_refused():
    other = replace(SAMPLES[1], turns=(Turn(Task.QA, BoxedText("What is it?"), BoxedText("A.")),))
    with pytest.raises(BadInput, match="row 1: id .none."):
        match_rows(rows_of("LLaMA-Factory", list(range(6))), [SAMPLES[0], other, *SAMPLES[2:]], Counter())
    with pytest.raises(BadInput, match="row 1"):
        match_rows(rows_of("LLaMA-Factory", [0, 1]), SAMPLES, Counter())


def test_a_box_amid_a_question_is_no_other_question():
    asked = BoxedText("What does the region [box] show?", (BOX,))
    samples = [replace(s, turns=(Turn(Task.ROC, asked, BoxedText("liver")),)) for s in SAMPLES]
    told = "What does the region <box>(100,200),(400,500)</box> show?"
    row = SourceRow(Path("a.tsv"), 1, {}, None)
    numbered = [AnswerRow(row, "liver", str(n), told, "", False) for n in range(len(samples))]
    assert list(match_rows(numbered, samples, Counter())) == [s.id for s in samples]
    notes = Counter()
    match_rows([row._replace(id=s.id) for row, s in zip(numbered, samples, strict=True)], samples, notes)
    assert not +notes


def test_the_row_that_finds_no_question_is_named_with_the_way_out():
    rows = [AnswerRow(SourceRow(Path("a.tsv"), n, {}, None), "x", str(n), s.question.text, s.images[0].path, False)
            for n, s in enumerate(SAMPLES, start=2)]  # fmt: skip
    rows[1] = rows[1]._replace(question="What else?")
    with pytest.raises(BadInput, match=r"row 3: id 3.*ids? of .*samples.jsonl.*--column id=FIELD"):
        match_rows(rows, SAMPLES, Counter())


def test_a_question_that_is_answered_twice_is_refused():
    with pytest.raises(BadInput, match="s1 is answered in row 1"):
        match_rows(rows_of("id", [1, 1]), SAMPLES, Counter())


def match_values(values: list[dict[str, object]], samples: list[Sample], notes: Counter[str]) -> dict[str, str]:
    rows = [SourceRow(Path("a.jsonl"), n, value, None) for n, value in enumerate(values, start=1)]
    return {id: row.text for id, row in match_rows([read_row(r, {}, "response") for r in rows], samples, notes).items()}


def test_ids_are_found_in_any_field_and_as_numbers_before_rows_count_by_their_place():
    numbered = [replace(one, id=f"00{n}") for n, one in enumerate(SAMPLES)]
    order = [3, 1, 5, 0, 2, 4]
    for spelled in (int, float, str):
        found = match_values([{"id": spelled(n), "response": f"{n}"} for n in order], numbered, Counter())
        assert found == {f"00{n}": f"{n}" for n in range(6)}
    notes: Counter[str] = Counter()
    found = match_values([{"id": k, "which": f"s{n}", "response": f"{n}"} for k, n in enumerate(order)], SAMPLES, notes)
    assert found == {f"s{n}": f"{n}" for n in range(6)}
    assert notes["answers matched by their field 'which', which holds ids of the data"] == 6


def test_a_row_that_tells_the_question_of_another_id_is_refused():
    other = replace(SAMPLES[1], turns=(Turn(Task.QA, BoxedText("What is it?"), BoxedText("A.")),))
    rows = [{"id": "s0", "question": "What is it?", "response": "x"}, {"id": "s1", "response": "y"}]
    with pytest.raises(BadInput, match="row 1: id s0 is another question of the data"):
        match_values(rows, [SAMPLES[0], other], Counter())


@pytest.mark.parametrize(
    "reply", [{"text": "liver"}, [{"text": "liver", "finish_reason": "stop"}], {"content": "liver"}]
)
def test_an_answer_in_an_object_of_its_own_is_read(reply):
    assert read_row(SourceRow(Path("a.jsonl"), 1, {"outputs": reply}, None), {}, "outputs").text == "liver"


def test_packed_files_are_refused_and_lists_under_other_keys_read(tmp_path):
    data = EvaluationData(SAMPLES, "the data")
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"id": f"s{n}", "response": TEXTS[n]} for n in range(6)]}))
    assert len(read_results([tmp_path / "a.json"], data).predictions) == 6
    with pytest.raises(BadInput, match="unpack it first"):
        read_results([tmp_path / "a.jsonl.gz"], data)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"id": "s0", "response": None, "answer": "the truth"}, "null; ask again"),
        ({"id": "s0", "response": {"body": {}}}, "a reply without an answer"),
        ({"custom_id": "s0", "error": {"code": 500}, "response": None}, "the request failed"),
        ({"custom_id": "s0", "response": {"status_code": 400, "body": {"error": {"code": 3}}}}, "a reply without"),
        ({"id": "s0", "filtered_resps": [["-1.5", "False"], ["-2.5", "True"]]}, "log-likelihoods of choices"),
        ({"id": "s0", "response": True}, "text is wanted"),
        ({"id": "s0", "response": []}, "null; ask again"),
        ({"index": "s0", "prediction": "Failed to obtain answer via API."}, "the request failed"),
    ],
)
def test_a_row_without_an_answer_is_named(value, words):
    row = SourceRow(Path("a.jsonl"), 1, value, None)
    with pytest.raises(FieldError) as error:
        read_row(row, {}, find_text_key([row], {}, Counter()))
    assert words in error.value.why


def test_a_reply_that_is_no_plain_text_is_read_as_what_it_says():
    def read(message, reason="stop"):
        choices = [{"message": message, "finish_reason": reason}, {"message": message}]
        return read_row(
            SourceRow(Path("a.jsonl"), 1, {"response": {"body": {"choices": choices}}}, None), {}, "response"
        )

    assert read({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}).text == "ab"
    assert find_final_answer(read({"content": None, "refusal": "I can't help with that."}).text).refused
    thought = read({"content": None, "reasoning_content": "hm"}, "length")
    assert (thought.text, thought.truncated, thought.spare) == ("", True, 1)
    with pytest.raises(LostAnswer, match="null"):
        read({"content": None})


def test_the_field_of_the_answers_is_one_for_a_file_and_told_where_it_may_be_another(tmp_path):
    def read(rows, missing="refuse"):
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_results([tmp_path / "a.jsonl"], EvaluationData(SAMPLES[:2], "it"), missing)

    truth = TEXTS[0]
    assert any(
        "'answer', which many" in note for note in read([{"id": f"s{n}", "answer": truth} for n in (0, 1)]).notes
    )
    both = [{"id": f"s{n}", "output": "", "text": truth} for n in (0, 1)]
    assert any("'text', not from output; --column response=" in note for note in read(both).notes)
    rows = [{"id": "s0", "response": truth, "answer": truth}, {"id": "s1", "response": None, "answer": TEXTS[1]}]
    with pytest.raises(BadInput, match="row 2, id s1: response = null"):
        read(rows)
    found = read(rows, "wrong")
    assert (
        not found.predictions[1].answer.answer.boxes
        and found.notes["rows whose request failed, or whose answer is null"]
    )


def test_rows_in_one_object_and_numbers_are_read_and_another_question_is_told(tmp_path):
    rows = [{"doc_id": f"s{n}", "input": "What else?", "filtered_resps": [n]} for n in (0, 1)]
    (tmp_path / "task.json").write_text(json.dumps({"args": {}, "logs": rows}, indent=1))
    found = read_results([tmp_path / "task.json"], EvaluationData(SAMPLES[:2], "it"))
    assert [p.answer.raw for p in found.predictions] == ["0", "1"]
    assert found.notes["answers whose row tells another question than the data have under its id"] == 2


def test_the_truth_changes_no_box_and_another_frame_is_told():
    """The doubt looks at the truth; the boxes that are scored do not."""
    answers = match_rows(rows_of("id", list(range(6))), SAMPLES, Counter())
    turned = [
        replace(s, turns=(replace(s.turns[0], answer=BoxedText("[box]", (Box(0.9, 0.9, 1, 1),))),)) for s in SAMPLES
    ]
    right, wrong = (make_predictions(answers, s, HowToRead(), Counter()) for s in (SAMPLES, turned))
    assert right == wrong and not list(find_frame_doubts(right, SAMPLES, HowToRead()))
    declared = HowToRead("percent")
    unread = make_predictions(answers, SAMPLES, declared, Counter())
    doubts = list(find_frame_doubts(unread, SAMPLES, declared))
    assert "no box was read in any of 6 answers as --boxes percent" in doubts[0]
    assert (
        "read as thousandths (as qwen-vl" in doubts[1]
        and "by 100%" in doubts[1]
        and doubts[1].endswith("give --boxes thousandths")
    )


def test_the_command_reads_sheets_and_column_names_and_joins_files(tmp_path, capsys):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(s.to_json()) + "\n" for s in SAMPLES))
    book = openpyxl.Workbook()
    for row in [("nr", "said"), *((f"s{n}", TEXTS[n]) for n in range(3))]:
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    (tmp_path / "b.tsv").write_text("nr\tsaid\n" + "".join(f"s{n}\t{TEXTS[n]}\n" for n in (3, 4, 5)))
    words = ["evaluate", "--predictions", str(tmp_path / "a.xlsx"), str(tmp_path / "b.tsv"), "--data",
             str(tmp_path / "data.jsonl"), "--no-images", "--column", "id=nr", "--column", "response=said",
             "--mode", "strict", "--replicates", "0", "--json"]  # fmt: skip
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["strict"]["VG"]["score"] == 100 if "strict" in found else found["score"] == 100


def test_a_group_that_imported_data_would_not_use_is_refused(tmp_path, capsys):
    (tmp_path / "dataset.json").write_text('{"clinkd": "0", "root": "."}')
    (tmp_path / "answers.jsonl").write_text('{"id": "s0", "response": "x"}')
    words = ["evaluate", "--predictions", str(tmp_path / "answers.jsonl"), "--data", str(tmp_path)]
    assert main([*words, "--group", "patient"]) != 0
    assert "clinkd data import" in capsys.readouterr().err


def test_answers_without_a_truth_are_sent_to_data(tmp_path, capsys):
    (tmp_path / "batch.jsonl").write_text('{"key": "s0", "response": {"candidates": []}}')
    assert main(["evaluate", "--predictions", str(tmp_path / "batch.jsonl"), "--task", "VG"]) != 0
    assert "need --data" in capsys.readouterr().err
