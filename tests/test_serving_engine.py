"""The queue before the model: batches, bounds, deadlines, those who leave; and the processes that open files."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from benchmarks.patience import Deadline, patience
from PIL import Image

from arrivals import encode, make_image
from clinkd.config import AnswerConfig
from clinkd.data.worker import WorkerLost
from clinkd.hospital.listen import ModelBusy
from clinkd.hospital.worklist import WorklistEntry
from clinkd.pipeline.runs import open_run
from clinkd.records import BadInput, BoxedText
from clinkd.serving.decoding import TURN, Decoders
from clinkd.serving.engine import AnswerRequest, AnswerResult, Engine, ModelUnavailable
from clinkd.serving.fair import CLIENT, FairShare
from clinkd.serving.limits import DeadlineExceeded, QueueFull, TimeLimit
from clinkd.serving.listening import ServedDesk
from clinkd.serving.options import MOST_BEAMS, AnswerOptions
from clinkd.workflows.ask import Answerer, Question
from serving import LIMITS, Server, json_of, picture, serving, uri

ARRIVED = WorklistEntry("id", "", "1.2.1", "1.2.2", "1.2.3.1", 1, "CT", "", "ct", "Where is the heart?", "waiting")


class Held(Answerer):
    """The model of a run, which begins a batch only when it is let, and notes what it is given."""

    def hold(self) -> None:
        self.gate, self.batches, self.steps, self.configs = threading.Event(), [], [], []

    def stream_answers(self, questions, config):
        self.configs.append(config)
        self.batches.append([q.text.text for q in questions])
        self.gate.wait(patience(30))
        self.steps.append(0)
        writing = super().stream_answers(questions, config)
        while True:
            try:
                drafts = next(writing)
            except StopIteration as done:
                return done.value
            self.steps[-1] += 1
            yield drafts


@pytest.fixture(scope="module")
def opened(small_run: Path) -> Held:
    found = Answerer.of_run(open_run(small_run))
    return Held(**vars(found))


@pytest.fixture
def engine(opened: Held, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr("clinkd.serving.engine._LEAST_TURN", float("inf"))  # a batch that is held gives no way
    opened.hold()
    made = Engine(lambda: opened, replace(LIMITS, batch=3, queue=5))
    made.start()
    yield made
    opened.gate.set()
    made.stop()


def question(text: str, **options: int) -> AnswerRequest:
    return AnswerRequest(lambda _: Question.of(picture(), BoxedText(text)), AnswerOptions(**options))


async def answered(engine: Engine, asked: AnswerRequest, seconds: float | None = None) -> str:
    """The answer's text, or what was raised."""
    try:
        async for told in engine.ask(asked, TimeLimit(seconds or patience(30))):
            if isinstance(told, AnswerResult):
                return told.answer.prediction.answer.raw
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError


async def until(condition) -> None:
    end = Deadline(20)
    while not condition():
        assert not end.passed()
        await asyncio.sleep(0.005)


def test_those_who_wait_are_answered_together_in_order(engine, opened):
    async def ask() -> list[str]:
        tasks = []
        for n in range(5):
            tasks.append(
                asyncio.create_task(answered(engine, question(f"q{n}", **({"max_new_tokens": 9} if n == 2 else {}))))
            )
            if n == 0:  # it is alone, and the others come while it is answered
                await until(lambda: opened.batches)
        await until(lambda: engine.waiting == 4)
        opened.gate.set()
        return await asyncio.gather(*tasks)

    found = asyncio.run(ask())
    assert not [text for text in found if "Error" in text]
    assert opened.batches == [["q0"], ["q1", "q3", "q4"], ["q2"]]  # the same options a batch


def test_who_had_less_of_the_models_time_is_answered_first(engine, opened):
    async def ask(address: str, *texts: str) -> list[asyncio.Task[str]]:
        CLIENT.set(address)
        return [asyncio.create_task(answered(engine, question(text))) for text in texts]

    async def ask_all() -> None:
        first = await ask("many", "first")
        await until(lambda: opened.batches)
        many = await ask("many", "m1", "m2", "m3")
        await until(lambda: engine.waiting == 3)
        few = await ask("few", "f1")
        await until(lambda: engine.waiting == 4)
        engine._share.spend("many", 1.0)
        opened.gate.set()
        await asyncio.gather(*first, *many, *few)

    asyncio.run(ask_all())
    assert [text for batch in opened.batches for text in batch] == ["first", "f1", "m1", "m2", "m3"]


def test_a_batch_that_takes_long_gives_way_to_another_client_and_is_answered_later(engine, opened, monkeypatch):
    monkeypatch.setattr("clinkd.serving.engine._LEAST_TURN", 0.0)

    async def ask_both() -> list[str]:
        CLIENT.set("long")
        long = asyncio.create_task(answered(engine, question("long")))
        await until(lambda: opened.batches)
        CLIENT.set("short")
        short = asyncio.create_task(answered(engine, question("short")))
        await until(lambda: engine.waiting == 1)
        opened.gate.set()
        return await asyncio.gather(long, short)

    assert not [text for text in asyncio.run(ask_both()) if "Error" in text]
    assert opened.batches == [["long"], ["short"], ["long"]]


def test_one_address_leaves_a_quarter_of_a_queue_where_others_ask():
    share, full = FairShare(), QueueFull(1)
    share.demand_room("a", ["a"] * 7, 8, full)
    with pytest.raises(QueueFull):
        share.demand_room("b", ["a"] * 8, 8, full)  # now it is known that b asks, too
    with pytest.raises(QueueFull):
        share.demand_room("a", ["a"] * 6, 8, full)
    share.demand_room("b", ["a"] * 6, 8, full)
    for number in range(2000):
        share.spend(str(number), 1)
    assert len(share.spent()) <= 1000


def test_more_than_the_queue_holds_are_refused_with_a_time(engine, opened):
    async def ask() -> list[str]:
        first = asyncio.create_task(answered(engine, question("first")))
        await until(lambda: opened.batches)
        waiting = [asyncio.create_task(answered(engine, question(f"q{n}"))) for n in range(5)]
        await until(lambda: engine.waiting == 5)
        with pytest.raises(QueueFull) as full:
            engine.demand_room()
        assert full.value.seconds >= 1
        told = await answered(engine, question("too many"))
        opened.gate.set()
        await asyncio.gather(first, *waiting)
        return [told, await answered(engine, question("later"))]

    told, later = asyncio.run(ask())
    assert told.startswith("QueueFull: ") and not later.startswith("QueueFull")
    assert "too many" not in str(opened.batches)


def test_who_is_late_or_gone_is_not_answered_and_makes_room(engine, opened):
    async def ask() -> tuple[str, ...]:
        first = asyncio.create_task(answered(engine, question("first")))
        await until(lambda: opened.batches)
        late = asyncio.create_task(answered(engine, question("late"), 0.05))
        gone = asyncio.create_task(answered(engine, question("gone")))
        await until(lambda: engine.waiting == 2)
        told = await late
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        stays = asyncio.create_task(answered(engine, question("stays")))
        opened.gate.set()
        return told, await first, await stays

    late, *others = asyncio.run(ask())
    assert late == "DeadlineExceeded: no answer within 0.05 s" and not any("Error" in text for text in others)
    assert opened.batches == [["first"], ["stays"]]


def test_a_batch_that_nobody_waits_for_is_given_up(engine, opened):
    async def ask() -> int:
        leaving = asyncio.create_task(answered(engine, question("x", max_new_tokens=90)))
        await until(lambda: opened.batches)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        opened.gate.set()
        await answered(engine, question("y", max_new_tokens=90))
        return opened.steps[0]

    # the model was never asked for the first, or asked for a step or two
    assert asyncio.run(ask()) <= 2 < opened.steps[-1]


def test_one_bad_question_does_not_cost_the_others_theirs(engine, opened):
    def misspelled(_: Answerer) -> Question:  # found out only when the batch is encoded
        return Question.of(picture(), BoxedText("<box>(1,2),(3,4)</box>"))

    def bad(_: Answerer) -> Question:
        raise BadInput("this one is bad")

    def broken(_: Answerer) -> Question:
        raise RuntimeError("patient Zqxwvogel")

    async def ask() -> list[str]:
        first = asyncio.create_task(answered(engine, question("first")))
        await until(lambda: opened.batches)
        kinds = [
            question("good"),
            AnswerRequest(misspelled),
            AnswerRequest(bad),
            AnswerRequest(broken),
            question("fine"),
        ]
        tasks = [asyncio.create_task(answered(engine, q)) for q in kinds]
        await until(lambda: engine.waiting == 5)
        opened.gate.set()
        return [await first, *await asyncio.gather(*tasks)]

    _, good, told, bad_told, broken_told, fine = asyncio.run(ask())
    assert "Error" not in good + fine
    assert told.startswith("BadInput") and "\n" not in told
    assert bad_told == "BadInput: this one is bad" and broken_told == "RuntimeError: a fault of the program"


def test_a_question_beyond_the_limit_of_tokens_is_refused_before_it_is_paid_for(engine, opened):
    opened.gate.set()
    [length] = opened.model.count_prompt_tokens([opened._make_sample(Question.of(picture(), BoxedText("What?")))])
    assert opened.count_prompt_tokens(Question.of(picture(), BoxedText("What?"))) == length
    engine.limits = replace(LIMITS, prompt_tokens=length, batch_tokens=8 * (length + 20))
    told = asyncio.run(answered(engine, question("What is this?")))
    assert told.startswith("BadInput: ") and f"more than {length:,}" in told and "--prompt-tokens" in told
    for options in ({"beams": 8, "max_new_tokens": 21}, {"beams": 1, "max_new_tokens": 512}):
        told = asyncio.run(answered(engine, question("What?", **options)))
        assert told.startswith("BadInput: ") and f"more than {8 * (length + 20):,}" in told and "max_new_tokens" in told
    assert opened.batches == []
    assert "Error" not in asyncio.run(answered(engine, question("What?", beams=8, max_new_tokens=20)))


def test_a_large_question_is_not_joined_with_others(engine, opened):
    """What does not fit into the batch of the first is the first of the next one."""
    small = opened.count_prompt_tokens(Question.of(picture(), BoxedText("q1")))
    large = opened.count_prompt_tokens(Question.of(picture(), BoxedText("q2" + " a b" * 200)))
    engine.limits = replace(engine.limits, batch_tokens=1 * (large + 5) + 2 * (small + 5))

    async def ask() -> list[str]:
        first = asyncio.create_task(answered(engine, question("first", beams=1, max_new_tokens=5)))
        await until(lambda: opened.batches)
        texts = ["q1", "q2" + " a b" * 200, "q3", "q4"]
        tasks = [asyncio.create_task(answered(engine, question(x, beams=1, max_new_tokens=5))) for x in texts]
        await until(lambda: engine.waiting == 4)
        opened.gate.set()
        return [await first, *await asyncio.gather(*tasks)]

    assert 3 * (small + 5) < large + 5 < engine.limits.batch_tokens < 2 * (large + 5)
    assert not [text for text in asyncio.run(ask()) if "Error" in text]
    assert [[text[:2] for text in batch] for batch in opened.batches] == [["fi"], ["q1", "q3"], ["q2"], ["q4"]]


def test_a_model_that_cannot_be_opened_is_told_to_all(capfd):
    def fails() -> Answerer:
        time.sleep(0.05)
        raise OSError("/secret/place")

    engine = Engine(fails, replace(LIMITS, batch=2, queue=2))
    engine.start()

    async def ask() -> list[str]:
        early = await answered(engine, question("early"))
        await until(lambda: engine.state == "failed")
        return [early, await answered(engine, question("after"))]

    for told in asyncio.run(ask()):
        assert told.startswith("ModelUnavailable: the model could not be opened (OSError, ") and "secret" not in told
    assert "secret" not in capfd.readouterr().err


def test_a_stop_is_told_to_those_who_wait(engine, opened):
    async def ask() -> list[str]:
        first = asyncio.create_task(answered(engine, question("first")))
        await until(lambda: opened.batches)
        waits = asyncio.create_task(answered(engine, question("waits")))
        await until(lambda: engine.waiting == 1)
        engine.stop()
        opened.gate.set()
        return [await first, await waits, await answered(engine, question("after"))]

    first, *others = asyncio.run(ask())
    assert "Error" not in first and all(o.startswith("ModelUnavailable: the server stops") for o in others)


def test_a_stop_is_told_to_those_who_are_answered_too_long(engine, opened, monkeypatch):
    monkeypatch.setattr("clinkd.serving.engine.FINISH_SECONDS", 0.0)

    async def ask() -> list[str]:
        tasks = [asyncio.create_task(answered(engine, question(text, max_new_tokens=90))) for text in "ab"]
        await until(lambda: opened.batches)
        engine.stop()
        await asyncio.sleep(0.01)
        opened.gate.set()
        return await asyncio.gather(*tasks)

    assert all(told == "ModelUnavailable: the server stops" for told in asyncio.run(ask()))


def test_what_an_archive_sent_waits_for_the_model_however_long_it_loads(opened, monkeypatch):
    monkeypatch.setattr("clinkd.serving.listening.ANSWER_SECONDS", 0.01)
    loaded, opens = threading.Event(), threading.Event()

    def load() -> Answerer:
        opens.set()
        assert loaded.wait(patience(30))
        return opened

    engine = Engine(load, LIMITS)
    desk, image = ServedDesk(engine, ("run", "v1")), encode(make_image(1, 64))
    desk._wait(desk.handler.open_picture(image, 1))  # the next time is short
    opened.hold()
    opened.gate.set()
    engine.start()
    try:
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(desk.answer, ARRIVED, image)
            assert opens.wait(patience(20)) and not wait([answer], 0.3).done
            monkeypatch.undo()
            loaded.set()
            assert answer.result(patience(30)).model == "run"
    finally:
        engine.stop()
        desk.close()


def test_a_stop_is_told_to_an_archive_while_the_model_loads():
    loaded = threading.Event()
    engine = Engine(lambda: loaded.wait(patience(30)), LIMITS)  # type: ignore[arg-type,return-value]
    desk, image = ServedDesk(engine, ("run", "v1")), encode(make_image(1, 64))
    desk._wait(desk.handler.open_picture(image, 1))  # the next time is short
    engine.start()
    threading.Timer(0.5, engine.stop).start()
    with pytest.raises(ModelBusy):
        desk.answer(ARRIVED, image)
    loaded.set()
    desk.close()


def test_errors_have_their_own_names():
    assert not issubclass(DeadlineExceeded, (QueueFull, ModelUnavailable, BadInput))


# ---- over a socket --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(small_run: Path, opened: Held) -> Iterator[Server]:
    opened.hold()
    with serving(small_run, opened=opened, batch=1, queue=2) as started:
        yield started
        opened.gate.set()


@pytest.fixture
def hurried_server(small_run: Path, opened: Held) -> Iterator[Server]:
    """A server that is soon too late, but not before five questions have been sent."""
    opened.hold()
    with serving(small_run, opened=opened, batch=1, queue=2, seconds=patience(3)) as started:
        yield started
        opened.gate.set()


def test_a_crowded_server_says_when_to_come_again_and_a_slow_one_that_it_is_late(hurried_server, opened):
    server = hurried_server
    opened.hold()
    body = {"image": uri(picture()), "phrase": "liver"}
    chat = {"model": "small", "stream": True, "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": body["image"]}}, {"type": "text", "text": "What?"}]}]}  # fmt: skip

    async def crowd() -> tuple[list[httpx2.Response], httpx2.Response, httpx2.Response]:
        async with httpx2.AsyncClient(
            base_url=server.url, headers=server.client.headers, timeout=patience(30)
        ) as client:
            first = asyncio.create_task(client.post("/v1/ground", json=body))
            await until(lambda: opened.batches)
            two = [asyncio.create_task(client.post("/v1/ground", json=body)) for _ in range(2)]
            await until(lambda: server.engine.waiting == 2)
            refused = await client.post("/v1/ground", json=body)
            streamed = await client.post("/v1/chat/completions", json=chat)
            late = await asyncio.gather(first, *two)
            return late, refused, streamed

    late, *refused = asyncio.run(crowd())
    for told in refused:
        assert json_of(told, 429)["error"]["type"] == "rate_limit_error"
        assert int(told.headers["retry-after"]) >= 1
    assert [json_of(r, 504)["error"]["code"] for r in late] == ["late"] * 3
    opened.gate.set()
    server.ask("/v1/ground", **body)


def test_who_hangs_up_is_forgotten(server, opened):
    opened.hold()
    body = {"image": uri(picture()), "phrase": "liver"}

    async def leave() -> None:
        async with httpx2.AsyncClient(
            base_url=server.url, headers=server.client.headers, timeout=patience(30)
        ) as client:
            first = asyncio.create_task(client.post("/v1/ground", json=body))
            await until(lambda: opened.batches)
            waits = asyncio.create_task(client.post("/v1/ground", json={**body, "phrase": "gone"}))
            await until(lambda: server.engine.waiting == 1)
            for task in (first, waits):
                task.cancel()
            await asyncio.gather(first, waits, return_exceptions=True)

    asyncio.run(leave())
    time.sleep(0.3)
    opened.gate.set()
    server.ask("/v1/ground", **body)
    assert all("gone" not in text for batch in opened.batches for text in batch)


def test_the_limit_of_time_holds_for_the_opening_of_the_image_as_well(server, monkeypatch):
    async def never(*_: object) -> None:
        await asyncio.sleep(patience(60))

    handler = server.served.handler
    monkeypatch.setattr(handler.decoders, "open", never)
    monkeypatch.setattr(handler, "limits", replace(handler.limits, seconds=0.2))
    for path, more in (("/v1/open", {}), ("/v1/ground", {"phrase": "liver"}), ("/v1/refer", {"boxes": [[0, 0, 1, 1]]})):
        reply = server.post(path, image=uri(picture()), **more)
        assert json_of(reply, 504)["error"]["code"] == "late", path


def test_an_image_whose_client_has_left_is_not_opened(server, opened, monkeypatch):
    """Neither what waits for a decoder, nor what one has begun."""
    opened.hold()
    opened.gate.set()
    decoders, begun, stop = server.served.handler.decoders, [], threading.Event()
    [decoder] = decoders._decoders

    def begin(request: object, content: bytes) -> None:
        begun.append(content)
        stop.wait(patience(30))
        raise WorkerLost

    killed = [lambda: stop.set()]
    monkeypatch.setattr(type(decoder), "__call__", lambda self, *given: begin(*given))
    monkeypatch.setattr(type(decoder), "kill", lambda self: killed.pop()())

    async def leave() -> None:
        async with httpx2.AsyncClient(base_url=server.url, headers=server.client.headers) as client:
            bodies = [{"image": uri(picture(seed=n)), "phrase": "liver"} for n in range(3)]
            tasks = [asyncio.create_task(client.post("/v1/ground", json=body)) for body in bodies]
            await until(lambda: begun and len(decoders._waiting) == 2)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: not killed and not decoders._waiting)

    asyncio.run(leave())
    assert len(begun) == 1
    monkeypatch.undo()
    server.ask("/v1/ground", image=uri(picture()), phrase="liver")
    assert len(opened.batches) == 1


def test_who_had_less_time_of_the_decoders_gets_the_next_one(monkeypatch):
    decoders, order = Decoders(LIMITS), []
    [decoder] = decoders._decoders
    monkeypatch.setattr(type(decoder), "__call__", lambda self, request, content: order.append(content) or ({}, []))

    async def run_all() -> None:
        jobs = []
        for address, content in (("many", b"0"), ("many", b"1"), ("many", b"2"), ("few", b"3")):
            CLIENT.set(address)
            jobs.append(asyncio.create_task(decoders._run_job({}, content)))
        await asyncio.gather(*jobs)

    decoders._share.spend("many", 1.0)
    asyncio.run(run_all())
    assert order == [b"0", b"3", b"1", b"2"]


def test_a_client_that_leaves_while_it_waits_takes_no_decoder_along(monkeypatch):
    decoders, order = Decoders(LIMITS), []
    [decoder] = decoders._decoders
    monkeypatch.setattr(type(decoder), "__call__", lambda self, request, content: order.append(content) or ({}, []))

    async def leave() -> None:
        [taken] = decoders._idle
        decoders._idle.clear()
        gone, late = (asyncio.create_task(decoders._run_job({}, content)) for content in (b"gone", b"late"))
        await asyncio.sleep(0)
        gone.cancel()
        decoders._hand_out(taken)  # before the one that left has noticed
        late.cancel()
        await asyncio.gather(gone, late, return_exceptions=True)
        await decoders._run_job({}, b"next")
        assert decoders._idle == [decoder] and not decoders._waiting

    asyncio.run(asyncio.wait_for(leave(), patience(10)))
    assert order == [b"next"]


def test_too_many_images_are_refused_with_a_time(server, opened, monkeypatch):
    opened.hold()
    opened.gate.set()
    handler, body = server.served.handler, {"image": uri(picture()), "phrase": "liver"}
    monkeypatch.setattr(handler.decoders, "_queue", 0)
    reply = server.post("/v1/ground", **body)
    assert json_of(reply, 429)["error"]["code"] == "full" and reply.headers["retry-after"] == "1"
    monkeypatch.undo()
    monkeypatch.setattr(handler, "limits", replace(handler.limits, held_pixels=96 * 96 - 1))
    assert "pixels" in json_of(server.post("/v1/ground", **body), 429)["error"]["message"]
    monkeypatch.undo()
    server.ask("/v1/ground", **body)
    asyncio.run(until(lambda: handler._held_pixels == 0))


# ---- options of a request --------------------------------------------------------------------------------------------


OTHER = {"beams": 5, "candidates": 2, "max_new_tokens": 7}  # than the run has; an option without a value here fails


def completion(**extension: object) -> dict[str, object]:
    parts = [{"type": "image_url", "image_url": {"url": uri(picture())}}, {"type": "text", "text": "What is this?"}]
    return {"model": "small", "messages": [{"role": "user", "content": parts}], "clinkd": extension}


@pytest.mark.parametrize("name", AnswerOptions.model_fields)
def test_each_option_reaches_the_models_config_from_every_route_that_asks(server, opened, name):
    opened.hold()
    opened.gate.set()
    body = {"image": uri(picture()), name: OTHER[name]}
    for path, sent in (
        ("/v1/chat/completions", completion(**{name: OTHER[name]})),
        ("/v1/ground", {**body, "phrase": "liver"}),
        ("/v1/refer", {**body, "boxes": [[0, 0, 1, 1]]}),
        ("/v1/ground", {"image": body["image"], "phrase": "liver"}),
    ):
        server.ask(path, **sent)
    assert getattr(opened.config.answer, name) != OTHER[name]
    assert [getattr(c, name) for c in opened.configs] == [*[OTHER[name]] * 3, getattr(opened.config.answer, name)]
    others = set(type(opened.config.answer).model_fields) - {name, "candidates"}
    assert all(getattr(c, n) == getattr(opened.config.answer, n) for c in opened.configs for n in others)


def test_the_beams_of_a_request_are_its_candidates(server, opened):
    opened.hold()
    opened.gate.set()
    counts = []
    for extension in ({"beams": 1}, {"beams": 2}, {}, {"beams": MOST_BEAMS}, {"beams": MOST_BEAMS, "candidates": 2}):
        counts.append(len(server.ask("/v1/chat/completions", **completion(**extension))["clinkd"]["candidates"]))
    assert counts[:3] == [1, 2, 3] and counts[3] > 3 and counts[4] == 2
    assert [(c.beams, c.candidates) for c in opened.configs] == [(1, 1), (2, 2), (3, 3), (8, 8), (8, 2)]


@pytest.mark.parametrize(("extension", "says"), [
    ({"beams": 0}, "clinkd.beams: Input should be greater than or equal to 1"),
    ({"beams": MOST_BEAMS + 1}, f"clinkd.beams: Input should be less than or equal to {MOST_BEAMS}"),
    ({"candidates": MOST_BEAMS + 1}, f"clinkd.candidates: Input should be less than or equal to {MOST_BEAMS}"),
    ({"max_new_tokens": 513}, "clinkd.max_new_tokens: Input should be less than or equal to 512"),
    ({"beams": 2, "candidates": 3}, "answer.candidates=3 is more than answer.beams=2"),
    ({"candidates": 4}, "answer.candidates=4 is more than answer.beams=3"),
    ({"beam": 2}, "clinkd.beam: Extra inputs are not permitted"),
])  # fmt: skip
def test_options_beyond_a_limit_or_against_each_other_are_refused(server, opened, extension, says):
    opened.hold()
    opened.gate.set()
    reply = server.post("/v1/chat/completions", **completion(**extension))
    assert json_of(reply, 400)["error"]["message"].startswith(says)
    assert opened.configs == []


def test_openais_number_of_tokens_is_an_option_and_no_more_than_the_most(server, opened):
    opened.hold()
    opened.gate.set()
    for numbers in ({"max_tokens": 3}, {"max_tokens": 3, "max_completion_tokens": 4}, {"max_tokens": 10**6}):
        server.ask("/v1/chat/completions", **completion(), **numbers)
    server.ask("/v1/chat/completions", **completion(max_new_tokens=5), max_tokens=3)
    assert [c.max_new_tokens for c in opened.configs] == [3, 4, 512, 5]


def test_beams_are_refused_by_a_model_that_answers_otherwise():
    sampling = AnswerConfig(method="sampling", candidates=5)
    assert AnswerOptions(candidates=2).change(sampling).candidates == 2
    with pytest.raises(BadInput, match="beams=3: this model answers by sampling"):
        AnswerOptions(beams=3).change(sampling)


# ---- processes that open files --------------------------------------------------------------------------------------


def png(side: int = 8) -> bytes:
    return base64.b64decode(uri(picture(side, side)).partition(",")[2])


def test_a_lost_decoder_loses_one_file_and_no_more():
    decoders = Decoders(LIMITS)

    async def open_all() -> None:
        first = await decoders.open(png(), None, None)
        assert first.picture.size == (8, 8) and first.picture.tobytes() == picture(8, 8).tobytes()
        [process] = decoders._idle
        os.kill(process.process.pid, signal.SIGKILL)
        process.process.join()
        with pytest.raises(BadInput, match="could not be decoded"):
            await decoders.open(png(), None, None)
        assert (await decoders.open(png(), None, None)).picture.size == (8, 8)

    try:
        asyncio.run(open_all())
    finally:
        decoders.close()


def test_decoders_may_take_so_much_memory_and_time_and_write_nothing():
    seconds = patience(5)
    decoders = Decoders(replace(LIMITS, pixels=40_000_000, decoder_bytes=700 << 20, decoder_seconds=seconds))

    async def limits_of() -> dict[str, str]:
        await decoders.open(png(), None, None)
        [process] = decoders._idle
        lines = Path(f"/proc/{process.process.pid}/limits").read_text().splitlines()
        return {line[:25].strip(): line[26:47].strip() for line in lines}

    try:
        found = asyncio.run(limits_of())
        assert found["Max address space"] == str(700 << 20) and found["Max file size"] == "0"
        assert found["Max core file size"] == "0" and seconds <= int(found["Max cpu time"]) <= seconds + 25
        assert resource.getrlimit(resource.RLIMIT_AS)[0] != 700 << 20  # ours is left alone

        async def too_much() -> None:
            with pytest.raises(BadInput, match="(?i)memory|decoded"):
                await decoders.open(clear(), None, None)
            assert (await decoders.open(png(), None, None)).picture.size == (8, 8)

        asyncio.run(too_much())
    finally:
        decoders.close()


def clear() -> bytes:
    """Few bytes that become a picture within the cap of pixels, and several of them beyond that of memory."""
    made = io.BytesIO()
    Image.new("RGBA", (6300, 6300)).save(made, "PNG")
    return made.getvalue()


def test_a_decoder_serves_its_turn_and_is_replaced():
    decoders = Decoders(LIMITS)

    async def pids() -> set[int]:
        found = set()
        for _ in range(2):
            await decoders.open(png(), None, None)
            [process] = decoders._idle
            process.files = TURN - 1
            found.add(process.process.pid)
            await decoders.open(png(), None, None)
        return found

    try:
        assert len(asyncio.run(pids())) == 2
    finally:
        decoders.close()
