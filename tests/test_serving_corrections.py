"""A person decides on a run's corrections over the API, and the next run trains on what was decided."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from clinkd.cli import main
from clinkd.correction.correctors import HUMAN, OfflineCorrector, ReplayCorrector, correct, replay_corrections
from clinkd.language.facts import Lexicon
from clinkd.pipeline.runs import open_run
from clinkd.records import BadInput, Box, BoxedText, Correction, Modality, Sample, Task, Turn
from clinkd.serving.app import create
from clinkd.storage import JsonLines
from clinkd.workflows.review import FILE, Review
from serving import Server, json_of, serving


@pytest.fixture(scope="module")
def run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one's own, to decide on."""
    runs = tmp_path_factory.mktemp("runs") / "runs"
    shutil.copytree(small_run.parent, runs, symlinks=True)
    return runs / "small"


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    with serving(run) as found:
        yield found


def listed(server: Server, **query: object) -> dict[str, object]:
    return json_of(server.client.get("/v1/corrections", params=query))


def put(server: Server, item: dict[str, object], verdict: str, **more: object) -> dict[str, object]:
    decision = {"id": item["id"], "round": item["round"], "verdict": verdict, **more}
    return json_of(server.client.put("/v1/corrections", json=decision))


def test_wrong_answers_stand_there_with_picture_truth_and_rewrite(server, run):
    found = listed(server, limit=100)
    kept = [Correction.from_json(r) for r in JsonLines(run / "stages" / "reflect-1" / "corrections.jsonl").read()]
    wrong = [c for c in kept if c.wrong]
    assert found["rounds"] == [1, 2] and found["total"] == found["open"] == len(wrong) > 10
    for item, c in zip(found["items"], wrong, strict=True):
        assert item["id"] == c.id and item["truth"]["text"] == c.truth.text and item["reasons"] == list(c.reasons)
        assert item["after"]["text"] == c.after.text and item["by"] == "offline" and item["decision"] is None
    first = found["items"][0]
    picture = server.client.get("/v1/corrections/image", params={"id": first["id"], "round": 1})
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).size == (first["image"]["width"], first["image"]["height"])
    pages = [listed(server, limit=4, offset=n)["items"] for n in range(0, len(wrong), 4)]
    assert [i for page in pages for i in page] == found["items"]


def test_what_is_decided_is_written_at_once_and_can_be_taken_back(server, run):
    accepted, edited, rejected, undone = listed(server)["items"][:4]
    assert not (run / FILE).exists()
    put(server, accepted, "accept")
    new = {"text": "Look, here[box].", "boxes": [[0.1, 0.2, 0.3, 0.4]]}
    told = put(server, edited, "edit", **new)
    assert told["decision"] == {"verdict": "edit", "after": new}
    put(server, rejected, "reject")
    put(server, undone, "reject")
    assert put(server, undone, "undo")["decision"] is None
    lines = {c.id: c for r in JsonLines(run / FILE).read() for c in [Correction.from_json(r)]}
    assert set(lines) == {accepted["id"], edited["id"], rejected["id"]}
    assert all(c.by == HUMAN and c.round == 1 for c in lines.values())
    assert lines[accepted["id"]].after.text == accepted["after"]["text"]
    assert lines[edited["id"]].after == BoxedText(new["text"], (Box(*new["boxes"][0]),))
    assert lines[rejected["id"]].after is None and "person" in lines[rejected["id"]].rejected
    decided, still_open = listed(server, state="decided"), listed(server, state="open")
    assert [i["decision"]["verdict"] for i in decided["items"]] == ["accept", "edit", "reject"]
    assert decided["decided"] == 3 and still_open["total"] == still_open["open"] == listed(server)["total"] - 3
    again = Review(open_run(run))  # a server that is started anew knows them
    assert [r.verdict for r in again.list_answers(1) if r.decided] == ["accept", "edit", "reject"]
    put(server, accepted, "reject")
    put(server, accepted, "accept")  # the latest counts
    assert {json.loads(line)["id"] for line in (run / FILE).read_text().splitlines()} == set(lines)


def test_two_servers_and_an_editor_lose_no_decision(server: Server, run: Path) -> None:
    """What another server or a person decided meanwhile stays, and is told where it is decided otherwise here."""
    (run / FILE).unlink(missing_ok=True)
    first, second = server, TestClient(create(replace(server.served, review=Review(open_run(run)))))
    items = listed(first)["items"]
    names = [i["id"] for i in items[:6]]

    def put_second(item: dict[str, object], verdict: str, **more: object) -> Any:
        return second.put("/v1/corrections", json={"id": item["id"], "round": 1, "verdict": verdict, **more})

    put(first, items[0], "reject")
    put(first, items[1], "reject")
    assert put_second(items[2], "reject").status_code == 200
    with (run / FILE).open("a") as file:  # an editor, which also writes a remark
        line = json.loads((run / FILE).read_text().splitlines()[0])
        file.write(json.dumps(line | {"id": names[3], "remark": "the left one"}) + "\n")
    put(first, items[4], "accept")
    lines = {line["id"]: line for line in JsonLines(run / FILE).read()}
    assert lines.keys() == set(names[:5]) and lines[names[3]]["remark"] == "the left one"

    told = put_second(items[0], "accept")  # it has not shown what the first server wrote
    assert told.status_code == 409 and told.json()["error"]["code"] == "conflict"
    assert f"{names[0]}, round 1: meanwhile it was decided: reject; decide once more" in told.json()["error"]["message"]
    assert Review(open_run(run)).get_answer(names[0], 1).verdict == "reject"
    assert put_second(items[1], "reject").status_code == 200  # the same decision is none of two
    assert put_second(items[0], "accept").status_code == 200  # told, and overruled
    told = put_second(items[4], "undo")
    assert told.status_code == 409 and "meanwhile it was decided: accept (" in told.json()["error"]["message"]

    # two windows of one server: what each shows counts
    assert put_second(items[5], "reject", seen=None).status_code == 200
    assert put_second(items[5], "accept", seen=None).status_code == 409
    edited = {"text": "Look, here[box].", "boxes": [[0.1, 0.2, 0.3, 0.4]]}
    assert put_second(items[5], "edit", **edited, seen={"verdict": "reject", "after": None}).status_code == 200
    assert put_second(items[5], "undo", seen={"verdict": "reject", "after": None}).status_code == 409
    assert put_second(items[5], "undo", seen={"verdict": "edit", "after": edited}).json()["decision"] is None
    told = put_second(items[5], "accept", seen={"verdict": "edit", "after": edited})
    assert told.status_code == 409 and "the decision was taken back" in told.json()["error"]["message"]
    assert [i["id"] for i in listed(first, state="decided")["items"]] == [i["id"] for i in items[:5]]


def test_decisions_of_many_threads_all_stand_in_the_file(run: Path) -> None:
    (run / FILE).unlink(missing_ok=True)
    reviews = [Review(open_run(run)) for _ in range(2)]
    names = [r.correction.id for r in reviews[0].list_answers(1)][:12]
    reviews[1].get_answer(names[0], 1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: reviews[n % 2].decide(names[n], 1, "reject"), range(len(names))))
    assert sorted(line["id"] for line in JsonLines(run / FILE).read()) == sorted(names)
    (run / FILE).unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda text: text + '{"id": "half', "not a file of corrections"),
        (lambda text: text + text, "1 of its lines decide what another line decides"),
        (lambda text: text + "[]\n", "not a file of corrections"),
    ],
)
def test_a_file_that_an_editor_broke_is_left_alone(run: Path, spoil: Callable[[str], str], says: str) -> None:
    (run / FILE).unlink(missing_ok=True)
    review = Review(open_run(run))
    names = [r.correction.id for r in review.list_answers(1)]
    review.decide(names[0], 1, "reject")
    broken = spoil((run / FILE).read_text())
    (run / FILE).write_text(broken)
    for act in (lambda: review.decide(names[1], 1, "reject"), lambda: review.list_answers(1)):
        with pytest.raises(BadInput, match=says):
            act()
    assert (run / FILE).read_text() == broken
    (run / FILE).unlink()


def test_correct_writes_over_no_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / FILE).write_text("decided\n")
    with pytest.raises(BadInput, match="small/.*not a file of corrections"):
        Review(open_run(run))
    assert main(["correct", "small", "--runs", str(run.parent), "--out", str(run / FILE)]) != 0
    assert f"{FILE}: is there already; choose another name" in capsys.readouterr().err
    assert (run / FILE).read_text() == "decided\n"
    (run / FILE).unlink()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"verdict": "edit"}, "the new text is missing"),
        ({"verdict": "accept", "text": "x"}, "takes no text"),
        ({"verdict": "edit", "text": "At [box]."}, "1 [box] marks but 0 boxes"),
        ({"verdict": "edit", "text": "At [box].", "boxes": [[0.5, 0, 0.25, 1]]}, "empty or outside"),
        ({"verdict": "edit", "text": "<b>x</b>"}, "markup"),
        ({"verdict": "edit", "text": "a\u0007"}, "control"),
        ({"verdict": "edit", "text": "  "}, "the text is empty"),
        ({"verdict": "perhaps"}, "verdict"),
        ({"verdict": "reject", "id": "nobody"}, "no wrong answer of that sample"),
        ({"verdict": "reject", "round": 7}, "no wrong answer of that sample"),
    ],
)  # fmt: skip
def test_a_bad_decision_is_refused_and_changes_nothing(server, run, more, says):
    item = listed(server)["items"][5]
    before = (run / FILE).read_bytes() if (run / FILE).exists() else None
    told = server.client.put("/v1/corrections", json={"id": item["id"], "round": 1, **more})
    assert told.status_code == 400 and says in told.json()["error"]["message"]
    assert ((run / FILE).read_bytes() if (run / FILE).exists() else None) == before
    assert server.client.get("/v1/corrections", params={"round": 9}).status_code == 400


def test_the_next_run_trains_on_what_a_person_decided(server, run, monkeypatch):
    items = [i for i in listed(server, limit=100)["items"] if i["truth"]["boxes"]][-3:]
    box = [[0.125, 0.25, 0.375, 0.5]]
    put(server, items[0], "edit", text=items[0]["truth"]["text"], boxes=box * len(items[0]["truth"]["boxes"]))
    put(server, items[1], "accept")
    put(server, items[2], "reject")
    monkeypatch.chdir(run.parent)
    words = listed(server)["command"].split()
    assert words[:2] == ["clinkd", "run"]
    assert main(words[1:]) == 0
    folder = run.parent / "small-corrected" / "stages"
    first = {c["id"]: c for c in map(json.loads, (folder / "reflect-1" / "corrections.jsonl").read_text().splitlines())}
    edited, accepted, rejected = (first[i["id"]] for i in items)
    # the person's box is the truth now: it is what the answer was held against, and what is trained on
    assert edited["truth"]["boxes"] == box and edited["after"]["boxes"] == box and edited["by"] == HUMAN
    assert accepted["by"] == HUMAN and accepted["after"] == items[1]["after"]
    assert rejected["after"] is None and "person" in rejected["rejected"]
    others = [c for c in first.values() if c["reasons"] and c["by"] not in (HUMAN, "replay")]
    assert others and all(c["by"] == "offline" and c["after"] for c in others)
    record = json.loads((folder / "reflect-1" / "stage.json").read_text())
    assert record["recorded"]["overruled_truths"] >= 1
    second = [json.loads(x) for x in (folder / "reflect-2" / "corrections.jsonl").read_text().splitlines()]
    assert all(c["truth"]["boxes"] == box for c in second if c["id"] == items[0]["id"])  # in later rounds, too


def test_the_printed_command_names_files_that_are_there_and_no_folder_of_the_machine(run, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for place in (run.parent, elsewhere, run.parent.parent):
        monkeypatch.chdir(place)
        words = Review(open_run(run)).command.split()
        assert ".." not in " ".join(words)
        if place == elsewhere:
            monkeypatch.chdir(run.parent)  # as the page says
        assert Path(words[2]).is_file() and str(run) not in " ".join(words)
        runs = Path(words[words.index("--runs") + 1]) if "--runs" in words else Path("runs")
        assert runs.resolve() == run.parent.resolve()
        assert Path(words[-1].partition("=")[2]).parent.resolve() == run.resolve()


# ---- the file, without a server -------------------------------------------------------------------------------------

LEXICON = Lexicon(("liver", "spleen"))


def sample(name: str, text: str, *boxes: Box) -> Sample:
    turn = Turn(Task.VG, BoxedText("Where?"), BoxedText(text, boxes))
    return Sample(name, (), Modality.CT, (turn,), name, names=("liver",))


def wrong(one: Sample, **more: object) -> Correction:
    made = Correction(one.id, 1, BoxedText("no"), one.answer, 0.1, ("similarity",))
    return replace(made, **more)


def test_a_person_overrules_the_truth_and_nobody_else_does(tmp_path):
    here, there = Box(0, 0, 0.5, 0.5), Box(0.5, 0.5, 1, 1)
    samples = [sample(n, "The liver[box].", here) for n in ("moved", "said", "model", "other")]
    moved = wrong(samples[0], after=BoxedText("The liver[box].", (there,)), by=HUMAN)
    said = wrong(samples[1], after=BoxedText("Here is the liver[box].", (here,)), by=HUMAN)
    model = wrong(samples[2], after=BoxedText("The liver[box].", (there,)), by="a model")
    file = tmp_path / "c.jsonl"
    file.write_text("".join(json.dumps(c.to_json()) + "\n" for c in (moved, said, model)))
    replay = ReplayCorrector(file)
    taught = replay.apply_human_answers(samples, LEXICON)
    assert taught[0].answer.boxes == (there,) and taught[0].id == "moved"
    assert taught[1:] == samples[1:]
    found = replay_corrections(replay, [wrong(s) for s in taught], taught, LEXICON)
    assert [c.after is not None for c in found] == [True, True, False, False]
    assert found[2].rejected and found[3].rejected is None
    rest = correct(found, taught, OfflineCorrector(0), LEXICON)
    assert [c.by for c in rest] == [HUMAN, HUMAN, "a model", "offline"]
    bad = wrong(samples[0], after=BoxedText("<script>", ()), by=HUMAN)
    file.write_text(json.dumps(bad.to_json()) + "\n")
    with pytest.raises(BadInput, match="the person's answer to 'moved': markup"):
        ReplayCorrector(file).apply_human_answers(samples, LEXICON)


def test_a_file_of_something_else_is_told_and_left(run):
    own = run / FILE
    kept = own.read_bytes() if own.exists() else b""
    own.write_text('{"id": "x"}\n')
    with pytest.raises(BadInput, match="not a file of corrections"):
        Review(open_run(run))
    assert own.read_text() == '{"id": "x"}\n'
    own.write_bytes(kept)
    assert os.path.getsize(own) == len(kept)
