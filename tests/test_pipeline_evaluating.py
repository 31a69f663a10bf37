"""Whoever answers, a file, a model's folder or a chat API: what was asked, what left, what goes on, what is scored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.responses import JSONResponse
from PIL import Image

from chat_api import Call, ChatApi, completion, serving
from clinkd.cli import main
from clinkd.config import ModelConfig
from clinkd.data.codecs import make_codec
from clinkd.data.images import open_image
from clinkd.data.readers.source import Source
from clinkd.model.vlm import new_tiny, spell_samples
from clinkd.workflows.answer import read_test_set

PEOPLE = "Zqxwvogel_Kanarina_770"
CANARIES = ("zqxwvogel", "kanarina", "2021-03-04")
QWEN = make_codec("qwen-vl")


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    """Eight CT pictures of four patients, each with a box and a question that names somebody."""
    folder = tmp_path / "ward"
    (folder / PEOPLE).mkdir(parents=True)
    lines = []
    for n in range(8):
        name = f"{PEOPLE}/slice{n}.png"
        pixels = np.random.default_rng(n).integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        qa = [{"question": f"What did Dr. Zqxwvogel see on 2021-03-04 in slice {n}?", "answer": "a cyst"}]
        objects = [{"name": "kidney", "box": [4, 4, 14 + n, 20]}]
        row = {"id": f"s{n}", "image": name, "modality": "CT", "width": 32, "height": 32, "objects": objects, "qa": qa}
        lines.append({**row, "group": f"p{n // 2}", "split": "train" if n < 4 else "test"})
    (folder / "records.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


@pytest.fixture
def api() -> Iterator[ChatApi]:
    with serving(ChatApi(script=lambda call: "The kidney is at [125, 125, 560, 625].")) as found:
        yield found


def hosted(api: ChatApi, ward: Path, *more: object) -> list[str]:
    words = ["evaluate", "--endpoint", api.url, "--model", "m", "--data", ward, "--runs", ward.parent / "runs"]
    prices = ["--input-price", 2.5, "--output-price", 10, "--budget", 1, "--concurrency", 1]
    return [*map(str, words), *map(str, prices), "--ask", "VG", "--replicates", "10", *map(str, more)]


def scores(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def test_a_model_behind_an_api_is_asked_once_scrubbed_and_scored(
    ward: Path, api: ChatApi, capfd: pytest.CaptureFixture[str]
) -> None:
    out = ward.parent / "out"
    assert main(hosted(api, ward, "--dry-run")) == 0
    dry = capfd.readouterr()
    assert api.calls == [] and "calls, " in dry.err and "US dollars" in dry.err and "asked blindly" in dry.err

    assert main(hosted(api, ward, "--out", out, "--json")) == 0
    done = capfd.readouterr()
    assert {c.raw.decode() for c in api.calls} == set(dry.out.splitlines()) and api.repeats == 0
    told = json.loads(done.out)
    assert told["strict"]["VG"]["by_modality"]["ct"]["hits"] == 4  # another spelling, the box it means
    assert told["official"]["VG"]["by_modality"]["ct"] == {"hits": 4, "total": 4, "score": 100.0}
    assert any("without their image" in what for what in told["told"]) and told["system"] == "m, blind"
    sent = "".join(c.raw.decode() for c in api.calls).lower()
    assert [c for c in CANARIES if c in sent] == [] and "image_url" not in sent and "a cyst" not in sent
    page = (out / "report.html").read_text().lower()
    assert [c for c in CANARIES if c in page] == []

    before = len(api.calls)
    assert main(hosted(api, ward, "--out", out, "--json")) == 0  # all replies are in the journal
    assert len(api.calls) == before and json.loads(capfd.readouterr().out) == told


def test_a_stopped_api_is_gone_on_with_and_nothing_is_paid_twice(
    ward: Path, api: ChatApi, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(call: Call) -> Any:
        return "yes" if call.number < 3 else JSONResponse({"error": {"code": "insufficient_quota"}}, 429)

    api.script = refuse
    assert main(hosted(api, ward, "--mode", "strict", "--json")) == 2
    assert "insufficient_quota" in capsys.readouterr().err
    answered = [c.raw for c in api.calls[:3]]
    api.script = lambda call: completion(["It is at <box>(125,"], None, "length")
    assert main(hosted(api, ward, "--mode", "strict", "--json")) == 0
    told = scores(capsys)
    assert not set(answered) & {c.raw for c in api.calls[4:]}
    assert told["strict"]["VG"]["unparsed"] == 4 and sum(told["strict"][t]["truncated"] for t in ("VG", "QA")) >= 3


def test_pixels_leave_by_name_alone(ward: Path, api: ChatApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(hosted(api, ward, "--pixels", "--mode", "strict", "--json")) == 0
    (content,) = {type(c.body["messages"][1]["content"]) for c in api.calls}
    assert content is list and api.calls[0].body["messages"][1]["content"][1]["image_url"]["url"].startswith(
        "data:image/png"
    )
    assert "told" in scores(capsys)
    records = (ward / "records.jsonl").read_text()
    (ward / "records.jsonl").write_text(records.replace('"CT"', '"ultrasound"'))
    before = len(api.calls)
    assert main(hosted(api, ward, "--pixels")) == 2
    told = capsys.readouterr().err
    assert "--pixels: there are pictures of ultrasound" in told and "--pixels all" in told and len(api.calls) == before
    assert main(hosted(api, ward, "--pixels", "all", "--mode", "strict", "--json")) == 0
    assert "names included" in capsys.readouterr().err
    assert len(api.calls) == before  # the same bytes: they were sent and paid for above


def test_a_budget_and_an_address_are_named_by_their_flags(
    ward: Path, api: ChatApi, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag, value, named in (
        ("--budget", "0.00001", "--budget: "),
        ("--endpoint", "ftp://x", "--endpoint: an address"),
        ("--max-tokens", "0", "--max-tokens 0"),
    ):
        words = hosted(api, ward)
        words[words.index(flag) + 1 if flag in words else len(words) :] = (
            [value, *words[words.index(flag) + 2 :]] if flag in words else [flag, value]
        )
        assert main(words) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert named in said and "reflect.chat" not in said, said
    assert api.calls == []


def test_a_models_folder_answers_and_goes_on(ward: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = read_test_set(Source(ward))
    config = ModelConfig.model_validate({"tiny": {"hidden": 48, "layers": 1, "heads": 2, "pretrain": None}})
    opened = partial(open_image, ward)
    folder, out = ward.parent / "model", ward.parent / "out"
    new_tiny(config, spell_samples(test.samples, config), 0, opened).save(folder)
    words = ["evaluate", "--model", folder, "--data", ward, "--out", out, "--replicates", 10, "--json", "--as", "tiny"]
    words += ["--set", "answer.max_new_tokens=4", "--set", "answer.beams=1", "--set", "answer.candidates=1"]
    said = [str(w) for w in words]
    assert main(said) == 0
    first = scores(capsys)
    assert (
        first["system"] == "tiny"
        and first["strict"]["VG"]["answers"] == 4
        and "image" in str(first["strict"]["VG"]["blind_by"])
    )
    answers = (out / "answers.jsonl").read_text().splitlines(keepends=True)
    assert len(answers) == 12
    (out / "answers.jsonl").write_text("".join(answers[:5]) + answers[5][:20])  # as a kill leaves it
    assert main(said) == 0
    assert scores(capsys) == first
    ids = [[json.loads(line)["id"] for line in lines] for lines in ((out / "answers.jsonl").open(), answers)]
    assert sorted(ids[0]) == sorted(ids[1])
    assert main([*said, "--set", "answer.max_new_tokens=5"]) == 2
    assert "holds answers of another answer" in capsys.readouterr().err

    file = out / "predictions.jsonl"
    assert main(["evaluate", "--predictions", str(file), "--data", str(ward), "--replicates", "10", "--json"]) == 0
    again = scores(capsys)
    assert again["strict"] == first["strict"] and again["official"] == first["official"]


def test_what_is_asked_for_must_be_plain(ward: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = str(ward)
    for words, named in (
        (["--model", "x"], "give --data"),
        (["--model", "x", "--run", "y"], "--run and --model"),
        (["--model", "x", "--data", here], "give --out DIR"),
        (["--predictions", "x", "--data", here, "--quarantine", "y"], "--quarantine is for"),
        (["--predictions", "x", "--data", here, "--split", "validation"], "--split all"),
        (["--predictions", "x", "--data", here, "--dry-run"], "--dry-run"),
        (["--endpoint", "http://x", "--data", here], "--model NAME"),
        (["--endpoint", "http://x", "--model", "m", "--data", here], "--input-price"),
        (
            ["--endpoint", "http://x", "--model", "m", "--data", here, "--input-price", "1", "--output-price", "1"],
            "--budget",
        ),
        (["--model", here, "--data", here, "--out", here + "2"], "config.json"),
    ):
        assert main(["evaluate", *words]) == 2
        told = capsys.readouterr()
        assert named in told.err and told.out == "" and told.err.count("\n") == 1, told.err
