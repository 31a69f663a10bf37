"""Images that are not kept for ever: nothing that waits, or teaches, is removed, over any order of events."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from arrivals import ScriptedDesk, encode, make_image
from clinkd.hospital.listen import Listening
from clinkd.hospital.rules import read_rules
from clinkd.hospital.worklist import (
    IMAGES,
    ArrivedImage,
    FoundRegion,
    ModelAnswer,
    RuledQuestion,
    Worklist,
    WorklistDecision,
    WorklistEntry,
    WorklistLimits,
)
from clinkd.records import BadInput, Box
from test_hospital_listen import until

DAYS, DAY = 30.0, 86400.0
SETTLED = ("sent", "rejected", "failed")
LIMITS = WorklistLimits(undo_seconds=3600, keep_days=DAYS)
HEART = FoundRegion(Box(0.25, 0.25, 0.5, 0.75), "heart")
ANSWER = ModelAnswer("The heart[box].", (HEART,))
DECISIONS = (
    WorklistDecision("accepted"), WorklistDecision("rejected"), WorklistDecision("rejected", "There is none."),
    WorklistDecision("edited", "Here[box].", (HEART,)),
)  # fmt: skip


class Clock:
    """The time of a worklist."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1.8e9
        monkeypatch.setattr("clinkd.hospital.worklist.time.time", lambda: self.now)

    def pass_days(self, days: float) -> None:
        self.now += days * DAY


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def worklist(tmp_path: Path, clock: Clock) -> Iterator[Worklist]:
    made = Worklist(tmp_path / "work", "one", LIMITS)
    yield made
    made.close()


def arrive(worklist: Worklist, number: int = 1, question: str = "Where is the heart?") -> list[str]:
    facts = ArrivedImage("1.2.1", "1.2.2", f"1.2.3.{number}", "CT")
    return worklist.add_image(bytes(100 + number), facts, [RuledQuestion("ct", question)])


def settle(worklist: Worklist, clock: Clock, number: int, decision: WorklistDecision) -> str:
    [id] = arrive(worklist, number)
    worklist.set_answer(id, ANSWER)
    worklist.decide(id, decision, 1)
    clock.pass_days(0.1)
    while taken := worklist.take_unsent():
        worklist.set_sent(taken.id)
    return id


def is_there(worklist: Worklist, instance: str) -> bool:
    return (worklist.folder / IMAGES / f"{instance}.dcm").exists()


def test_images_of_what_is_settled_are_removed_and_not_asked_about_again(worklist, clock):
    ids = [settle(worklist, clock, number, decision) for number, decision in enumerate(DECISIONS, 1)]
    [waiting] = arrive(worklist, 9)
    clock.pass_days(DAYS - 1)
    assert worklist.remove_settled() == 0
    clock.pass_days(1)
    assert worklist.remove_settled() == 2 and worklist.remove_settled() == 0
    there = [is_there(worklist, worklist.get(id).instance) for id in [*ids, waiting]]
    assert there == [False, False, True, True, True]  # sent, rejected; taught twice; waits
    assert arrive(worklist, 1) == [] and not is_there(worklist, "1.2.3.1") and worklist.knows("1.2.3.1")
    assert [worklist.get(id).state for id in ids] == ["sent", "rejected", "rejected", "sent"]
    assert worklist.get(ids[0]).answer == ANSWER
    with pytest.raises(BadInput, match="its image is not kept any more"):
        worklist.decide(ids[1], DECISIONS[0], worklist.get(ids[1]).revision)


def test_without_a_limit_all_stays_and_another_question_brings_the_image_back(worklist, clock):
    settle(worklist, clock, 1, DECISIONS[0])
    clock.pass_days(1000)
    worklist.limits = WorklistLimits()
    assert worklist.remove_settled() == 0
    worklist.limits = LIMITS
    assert worklist.remove_settled() == 1
    assert len(arrive(worklist, 1, "What is wrong?")) == 1 and is_there(worklist, "1.2.3.1")
    assert worklist.remove_settled() == 0


def test_room_is_counted_by_what_is_there(worklist, clock):
    settle(worklist, clock, 1, DECISIONS[0])
    worklist.limits = WorklistLimits(bytes=150, keep_days=DAYS)
    with pytest.raises(Exception, match="150 bytes"):
        arrive(worklist, 2)
    clock.pass_days(DAYS + 1)
    worklist.remove_settled()
    assert len(arrive(worklist, 2)) == 1


def test_a_listener_removes_by_itself(tmp_path, clock):
    (tmp_path / "rules.yaml").write_text("ct:\n  questions: Where is the heart?\n")
    worklist = Worklist(tmp_path / "work", "one", WorklistLimits(keep_days=DAYS))
    running = Listening(worklist, read_rules(tmp_path / "rules.yaml"))
    running.take(encode(make_image(1, PatientComments="BROKEN")))
    [entry] = worklist.list()
    assert worklist.fail(entry.id, "broken")
    clock.pass_days(DAYS + 1)
    running.start(ScriptedDesk())
    until(lambda: running.counts["removed"] == 1)
    running.stop()
    assert not is_there(worklist, entry.instance)
    worklist.close()


# ---- any order of events ---------------------------------------------------------------------------------------------


class RandomEvents:
    """Lets things happen to a worklist, and knows what must still be there. `settled`: since when, by entry."""

    def __init__(self, worklist: Worklist, clock: Clock, seed: int) -> None:
        self.worklist, self.clock, self.rng = worklist, clock, random.Random(seed)
        self.settled: dict[str, float] = {}
        self.removed = 0

    def step(self) -> None:
        events = {
            self.arrive: 4,
            self.answer: 4,
            self.decide: 6,
            self.send: 3,
            self.age: 4,
            self.remove: 3,
            self.restart: 1,
        }
        self.rng.choices(list(events), list(events.values()))[0]()
        self.note()
        self.check()

    def note(self) -> None:
        for entry in self.entries():
            if entry.state in SETTLED:
                self.settled.setdefault(entry.id, self.clock.now)
            else:
                self.settled.pop(entry.id, None)

    def entries(self) -> list[WorklistEntry]:
        return self.worklist.list(limit=500)

    def arrive(self) -> None:
        number, question = self.rng.randrange(1, 40), self.rng.choice(["Where is the heart?"] * 5 + ["What is wrong?"])
        id = self.worklist._make_id(f"1.2.3.{number}", 1, question)
        known = id in {entry.id for entry in self.entries()}
        assert arrive(self.worklist, number, question) == ([] if known else [id])

    def answer(self) -> None:
        if entry := self.worklist.next_waiting():
            if self.rng.random() < 0.2:
                self.worklist.fail(entry.id, "broken")
            else:
                self.worklist.set_answer(entry.id, ANSWER)

    def decide(self) -> None:
        able = [e for e in self.entries() if e.state in ("answered", "accepted", "rejected")]
        if not able:
            return
        entry = self.rng.choice(able)
        decision = self.rng.choice([None, *DECISIONS])
        try:
            if decision is None:
                self.worklist.undo(entry.id, entry.revision)
            else:
                self.worklist.decide(entry.id, decision, entry.revision)
            self.settled.pop(entry.id, None)
        except BadInput:
            assert not is_there(self.worklist, entry.instance) or (decision is None and entry.decision is None)

    def send(self) -> None:
        if entry := self.worklist.take_unsent(undecided=self.rng.random() < 0.3):
            assert self.worklist.image(entry.id)
            if self.rng.random() < 0.7:
                self.worklist.set_sent(entry.id)
            else:
                self.worklist.put_off(entry.id, "no connection", 60)

    def age(self) -> None:
        self.clock.pass_days(self.rng.choice([0.1, 5, 20, 40]))

    def restart(self) -> None:
        self.worklist.close()
        self.worklist = Worklist(self.worklist.folder, self.rng.choice(["one", "one", "two"]), LIMITS)

    def remove(self) -> None:
        entries = self.entries()
        before = {e.instance for e in entries if is_there(self.worklist, e.instance)}
        assert self.worklist.remove_settled() == len(before - self.there())
        for instance in before:
            about = [e for e in entries if e.instance == instance]
            old = all(self.clock.now - self.settled.get(e.id, self.clock.now) > (DAYS + 0.1) * DAY for e in about)
            young = any(self.clock.now - self.settled.get(e.id, self.clock.now) < DAYS * DAY for e in about)
            teaches = any(e.decision and e.decision.teaches for e in about)
            assert not (old and not teaches) or not is_there(self.worklist, instance)
            assert not (young or teaches) or is_there(self.worklist, instance)
        assert [e.id for e in self.entries()] == [e.id for e in entries]
        self.removed += len(before - self.there())

    def there(self) -> set[str]:
        return {path.stem for path in (self.worklist.folder / IMAGES).iterdir()}

    def check(self) -> None:
        there = self.there()
        for entry in self.entries():
            if entry.state not in SETTLED or (entry.decision and entry.decision.teaches):
                assert entry.instance in there, entry
        assert self.worklist._bytes == sum(p.stat().st_size for p in (self.worklist.folder / IMAGES).iterdir())


@pytest.mark.parametrize(("seeds", "steps"), [(1, 200), pytest.param(40, 400, marks=pytest.mark.slow)])
def test_nothing_that_waits_is_lost_and_nothing_that_is_needed_is_removed(tmp_path, clock, seeds, steps):
    for seed in range(seeds):
        events = RandomEvents(Worklist(tmp_path / str(seed), "one", LIMITS), clock, seed)
        for _ in range(steps):
            events.step()
        events.worklist.close()
        assert events.removed > steps / 50
