"""The worklist: one entry an image, frame, question and model; each change on the disk; decisions by revision."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arrivals import filling_disk
from clinkd.hospital.worklist import (
    FILE,
    STATES,
    AnswerCaution,
    ArrivedImage,
    FoundRegion,
    MissingEntry,
    ModelAnswer,
    RuledQuestion,
    Worklist,
    WorklistDecision,
    WorklistFull,
    WorklistLimits,
    WorklistUnwritable,
)
from clinkd.records import BadInput, Box, BoxedText
from clinkd.workflows.review import DecisionConflict

FACTS = ArrivedImage("1.2.1", "1.2.2", "1.2.3", "CT", "CHEST", 1)
ASKED = [RuledQuestion("chest", "Where is the heart?"), RuledQuestion("chest", "What is wrong?")]
LEFT = FoundRegion(Box(0.125, 0.25, 0.5, 0.75), "heart")
ANSWER = ModelAnswer("The heart[box].", (LEFT,), (AnswerCaution("no_box", "none"),), 0.75)
ACCEPTED = WorklistDecision("accepted")


@pytest.fixture
def worklist(tmp_path: Path) -> Iterator[Worklist]:
    made = Worklist(tmp_path / "work", "model-1")
    yield made
    made.close()


def reopen(worklist: Worklist, model: str = "model-1", limits: WorklistLimits | None = None) -> Worklist:
    worklist.close()
    return Worklist(worklist.folder, model, limits)


def answered(worklist: Worklist) -> str:
    """An image with one question, and its answer."""
    [id] = worklist.add_image(b"image", FACTS, ASKED[:1])
    assert worklist.set_answer(id, ANSWER)
    return id


def test_what_arrived_is_there_when_the_list_is_opened_again(worklist):
    ids = worklist.add_image(b"image", FACTS, ASKED)
    assert stat.S_IMODE((worklist.folder / FILE).stat().st_mode) == 0o600
    worklist = reopen(worklist)
    first, second = worklist.list()
    assert [first.id, second.id] == ids and first.question == ASKED[0].question and second.state == "waiting"
    assert (first.study, first.series, first.instance, first.frame) == ("1.2.1", "1.2.2", "1.2.3", 1)
    assert (first.modality, first.body_part, first.rule) == ("CT", "CHEST", "chest")
    assert worklist.image(ids[1]) == b"image" and worklist.counts() == {s: 2 * (s == "waiting") for s in STATES}
    worklist.close()


def test_the_same_image_is_one_entry_and_another_model_asks_anew(worklist):
    ids = worklist.add_image(b"image", FACTS, ASKED[:1])
    worklist.set_answer(ids[0], ANSWER)
    assert worklist.add_image(b"other", FACTS, ASKED[:1]) == [] and worklist.image(ids[0]) == b"image"
    assert len(worklist.add_image(b"image", FACTS, ASKED)) == 1  # the second question is new
    assert len(worklist.add_image(b"image", FACTS, [RuledQuestion("chest", ASKED[0].question, 2)])) == 1
    worklist = reopen(worklist, "model-2")
    assert len(worklist.add_image(b"image", FACTS, ASKED)) == 1  # the second question waited, and is taken over
    assert worklist.get(ids[0]).answer == ANSWER
    worklist.close()


def test_an_answer_is_kept_once(worklist):
    id = answered(worklist)
    assert not worklist.set_answer(id, ModelAnswer("another")) and not worklist.fail(id, "late")
    assert worklist.get(id).answer == ANSWER and worklist.get(id).revision == 1 and worklist.next_waiting() is None


def test_the_longest_wait_is_answered_first_and_a_failure_says_why(worklist):
    first, second = worklist.add_image(b"image", FACTS, ASKED)
    assert worklist.next_waiting().id == first and worklist.next_waiting(skip=[first]).id == second
    assert worklist.fail(first, "no pixels")
    assert worklist.get(first).state == "failed" and worklist.get(first).why == "no pixels"
    assert worklist.next_waiting().id == second


def test_pages_go_on_behind_an_entry(worklist):
    ids = [worklist.add_image(b"image", ArrivedImage("1.2", "1.2", f"1.2.{n}"), ASKED[:1])[0] for n in range(1, 8)]
    worklist.set_answer(ids[3], ANSWER)
    pages, after = [], None
    while page := worklist.list("waiting", after, 2):
        pages += [entry.id for entry in page]
        after = page[-1].id
    assert pages == [id for id in ids if id != ids[3]]
    assert [e.id for e in worklist.list("answered")] == [ids[3]]


def test_a_decision_is_taken_by_who_saw_the_entry_as_it_is(worklist):
    id = answered(worklist)
    edited = WorklistDecision("edited", "Here[box].", (LEFT,), "too large")
    assert worklist.decide(id, edited, 1).state == "accepted" and worklist.get(id).decision == edited
    with pytest.raises(DecisionConflict, match=r"it was edited \(revision 2, accepted\); decide once more"):
        worklist.decide(id, WorklistDecision("rejected"), 1)
    assert worklist.decide(id, WorklistDecision("rejected"), 2).state == "rejected"
    accepted = worklist.decide(id, ACCEPTED, 3)
    assert accepted.decision.text == ANSWER.text and accepted.decision.boxes == ANSWER.boxes
    assert reopen(worklist).get(id) == accepted


@pytest.mark.parametrize(
    ("decision", "why"),
    [
        (WorklistDecision("edited"), "the new text is missing"),
        (WorklistDecision("edited", "", (LEFT,)), "the text is empty"),
        (WorklistDecision("rejected", "two[box][box]", (LEFT,)), r"2 \[box\] marks but 1 boxes"),
    ],
)
def test_a_decision_that_nobody_can_learn_from_is_refused(worklist, decision, why):
    id = answered(worklist)
    with pytest.raises(BadInput, match=why):
        worklist.decide(id, decision, 1)
    assert worklist.get(id).state == "answered"


def test_what_waits_and_what_is_being_sent_takes_no_decision(worklist):
    id = answered(worklist)
    [other] = worklist.add_image(b"image", FACTS, ASKED[1:])
    with pytest.raises(BadInput, match="waiting takes no decision"):
        worklist.decide(other, ACCEPTED, 0)
    worklist.decide(id, ACCEPTED, 1)
    taken = worklist.take_unsent()
    with pytest.raises(BadInput, match="unsent takes no decision"):
        worklist.decide(id, WorklistDecision("rejected"), taken.revision)


def test_only_what_was_accepted_is_sent_once(worklist):
    id = answered(worklist)
    assert worklist.take_unsent() is None
    worklist.decide(id, ACCEPTED, 1)
    assert worklist.take_unsent().id == id and worklist.get(id).state == "unsent"
    worklist = reopen(worklist)  # killed before it was there
    assert worklist.take_unsent().id == id
    assert worklist.put_off(id, "no connection", 3600) and worklist.take_unsent() is None
    assert worklist.get(id).why == "no connection"
    assert worklist.put_off(id, "no connection", 0) and worklist.take_unsent().id == id
    assert worklist.set_sent(id) and not worklist.set_sent(id) and worklist.take_unsent() is None
    assert worklist.get(id).state == "sent" and worklist.get(id).why == ""


def test_a_rejected_answer_is_never_sent(worklist):
    id = answered(worklist)
    worklist.decide(id, WorklistDecision("rejected", "No heart here."), 1)
    assert worklist.take_unsent() is None and worklist.take_unsent(undecided=True) is None
    assert [e.id for e in worklist.list_decided("rejected")] == [id] and not list(worklist.list_decided("edited"))


def test_a_decision_waits_to_be_sent_and_is_taken_back_until_then(worklist):
    id = answered(worklist)
    worklist = reopen(worklist, limits=WorklistLimits(undo_seconds=3600))
    revision = worklist.decide(id, ACCEPTED, 1).revision
    assert worklist.take_unsent() is None
    with pytest.raises(DecisionConflict):
        worklist.undo(id, 1)
    undone = worklist.undo(id, revision)
    assert undone.state == "answered" and undone.decision is None
    with pytest.raises(BadInput, match="no decision"):
        worklist.undo(id, undone.revision)
    assert worklist.take_unsent(undecided=True).id == id
    with pytest.raises(BadInput, match="unsent takes no decision"):
        worklist.undo(id, worklist.get(id).revision)


def test_where_all_is_sent_nobody_need_decide(worklist):
    id = answered(worklist)
    assert worklist.take_unsent(undecided=True).id == id


def test_marks_are_set_where_a_text_has_none():
    assert WorklistDecision("edited", "the heart", (LEFT,)).right_answer == BoxedText("the heart [box]", (LEFT.box,))
    assert WorklistDecision("rejected").right_answer is None


def test_an_image_whose_questions_were_not_written_is_sent_again(worklist):
    worklist.add_image(b"image", FACTS, ASKED)
    images = worklist.folder / "images"
    (images / "1.2.3.dcm").rename(images / "1.2.3.draft")  # a kill behind the commit
    (images / "1.2.4.draft").write_bytes(b"other")  # and one before it
    worklist = reopen(worklist)
    assert [path.name for path in images.iterdir()] == ["1.2.3.dcm"] and worklist._bytes == len(b"image")
    assert worklist.image(worklist.list()[0].id) == b"image"
    worklist.close()


def test_it_takes_no_more_than_its_limits(worklist):
    worklist.add_image(b"image", FACTS, ASKED)
    worklist = reopen(worklist, limits=WorklistLimits(waiting=2))
    with pytest.raises(WorklistFull, match="2 questions wait"):
        worklist.add_image(b"image", ArrivedImage("1.2", "1.2", "1.4"), ASKED[:1])
    worklist = reopen(worklist, limits=WorklistLimits(bytes=9))
    with pytest.raises(WorklistFull, match="9 bytes"):
        worklist.add_image(b"image", ArrivedImage("1.2", "1.2", "1.4"), ASKED[:1])
    assert len(worklist.list()) == 2 and len(list((worklist.folder / "images").iterdir())) == 1
    worklist.close()


@pytest.mark.parametrize("instance", ["", "../1", "1." + "2" * 70, "1.2/3", "name"])
def test_an_image_has_a_name_that_is_a_uid(worklist, instance):
    with pytest.raises(BadInput, match="SOPInstanceUID"):
        worklist.add_image(b"image", ArrivedImage("1.2", "1.2", instance), ASKED)
    with pytest.raises(MissingEntry, match="no entry"):
        worklist.get("none")


def test_another_process_may_not_have_it_open(worklist):
    code = f"from clinkd.hospital.worklist import Worklist; Worklist({str(worklist.folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "another process listens with it" in done.stderr


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / FILE).write_bytes(b"no database at all, but long enough to look like one" * 40)
    with pytest.raises(BadInput, match="not a worklist, or damaged"):
        Worklist(tmp_path)


def test_a_file_of_another_version_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / FILE) as base:
        base.execute("create table entries (number integer primary key, id text, state text)")
    base.close()
    with pytest.raises(BadInput, match="of another version of ClinKD; move it away"):
        Worklist(tmp_path)


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be made or written \(.*\); give another --folder"):
        Worklist(tmp_path / place)


def test_a_change_that_the_disk_refuses_is_not_done_at_all(worklist):
    with filling_disk(worklist) as fill:
        fill()
        with pytest.raises(WorklistUnwritable, match="no room left to write"):
            worklist.add_image(b"image", FACTS, ASKED)
    assert worklist.list() == [] and not list((worklist.folder / "images").iterdir())
    assert len(worklist.add_image(b"image", FACTS, ASKED)) == 2


@pytest.mark.parametrize("removed", [True, False])
def test_what_would_be_lost_is_not_taken_where_the_folder_is_moved_or_removed(worklist, removed):
    """The open file would take it, but nobody would find it there."""
    if removed:
        shutil.rmtree(worklist.folder)
    else:
        worklist.folder.rename(worklist.folder.with_name("elsewhere"))
    with pytest.raises(WorklistUnwritable, match="moved or removed while it is listened with"):
        worklist.add_image(b"image", FACTS, ASKED)
    assert not worklist.folder.exists()


def test_another_model_is_asked_what_still_waits_and_answers_stay_those_of_the_first(worklist):
    kept = answered(worklist)
    old, _ = worklist.add_image(b"image", FACTS, [ASKED[1], RuledQuestion("chest", ASKED[1].question, 2)])
    worklist = reopen(worklist, "model-2")
    waiting = worklist.list("waiting")
    assert len(waiting) == 2 and old not in {entry.id for entry in waiting}
    assert worklist.add_image(b"image", FACTS, ASKED[1:]) == []  # it waits already
    assert worklist.knows(FACTS.instance)
    worklist = reopen(worklist, "model-1")
    assert old in {entry.id for entry in worklist.list("waiting")} and worklist.get(kept).answer == ANSWER
    worklist.close()


def test_an_archive_is_asked_again_for_images_of_which_another_model_was_asked(worklist):
    answered(worklist)
    assert worklist.knows(FACTS.instance)
    worklist = reopen(worklist, "model-2")
    assert not worklist.knows(FACTS.instance)
    worklist.close()


def test_what_was_on_its_way_undecided_waits_for_a_person_where_only_accepted_answers_are_sent(worklist):
    id = answered(worklist)
    taken = worklist.take_unsent(undecided=True)
    assert worklist.put_off(id, "no connection", 3600)
    worklist = reopen(worklist)
    assert taken.id == id and worklist.take_unsent() is None and worklist.get(id).state == "answered"
    worklist.decide(id, ACCEPTED, worklist.get(id).revision)
    assert worklist.take_unsent().id == id
    worklist.close()


def test_a_clock_that_goes_back_holds_nothing_up(worklist, monkeypatch):
    id = answered(worklist)
    worklist.limits = WorklistLimits(undo_seconds=30)
    worklist.decide(id, ACCEPTED, 1)
    now = time.time()
    assert worklist.take_unsent() is None
    monkeypatch.setattr("clinkd.hospital.worklist.time.time", lambda: now - 86400)
    assert worklist.take_unsent().id == id
