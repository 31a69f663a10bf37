"""The routes: OpenAI's API and our own, the page, and the corrections. Only decisions on corrections are written to
disk, and nothing is fetched from anywhere."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import orjson
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from clinkd.data.images import KINDS, PRESETS, encode_picture
from clinkd.hospital.worklist import MissingEntry, Worklist
from clinkd.records import BadInput, BoxedText, Modality
from clinkd.serving import chat, schemas
from clinkd.serving.asking import WORDINGS, RequestHandler, decode_data_uri, make_box, read_question
from clinkd.serving.engine import AnswerRequest, ModelUnavailable
from clinkd.serving.limits import NOTICE, DeadlineExceeded, QueueFull, TimeLimit
from clinkd.serving.worklist import CONFLICT, MISSING, add_worklist, describe_file
from clinkd.version import __version__
from clinkd.workflows.review import DecisionConflict, Last, Review, ReviewedAnswer, Shown

PAGE = Path(__file__).parent / "page"
PAGE_SECONDS = 0.3  # to show a page that waits, before the import of torch blocks everything
_MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_PAGE_TEXTS = {
    b"{{accept}}": ",".join(entry for kind in reversed(KINDS) for entry in kind.accept),
    b"{{formats}}": schemas.IMAGE_FORMATS,
}
_REPORT_CSP = "frame-ancestors 'none'"  # the report has its own, stricter policy
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Failure, "description": what}
    for status, what in {
        400: "The request is wrong: one line says what",
        401: "The token is missing or wrong",
        403: "Asked by a page of another origin",
        413: "The body is larger than is allowed",
        429: "The queue is full; Retry-After says when to come again",
        500: "A fault of the program",
        503: "There is no model to ask, or too much is being uploaded",
        504: "No answer in time",
    }.items()
}
T = TypeVar("T")


class Missing(Exception):
    """There is no such thing."""


_STATUSES: dict[type[Exception], tuple[int, str]] = {  # with the code in the reply
    DecisionConflict: (409, "conflict"),
    MissingEntry: (404, "missing"),
    BadInput: (400, "invalid"),
    Missing: (404, "missing"),
    QueueFull: (429, "full"),
    ModelUnavailable: (503, "no_model"),
    DeadlineExceeded: (504, "late"),
}


@dataclass(frozen=True)
class Served:
    """What a server shows: a model by its name, the report and corrections if the model is a run's, and the worklist
    if it listens to an archive."""

    name: str
    handler: RequestHandler
    report: Path | None = None
    review: Review | None = None
    worklist: Worklist | None = None


def create(served: Served) -> FastAPI:
    """All routes, without the check of the token (see `access`). Starting the app starts the engine."""

    @asynccontextmanager
    async def run_engine(_: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(start_engine())
        yield
        await starting
        handler.engine.stop()
        await asyncio.to_thread(handler.decoders.close)

    async def start_engine() -> None:
        await asyncio.sleep(PAGE_SECONDS)
        handler.engine.start()
        await asyncio.to_thread(handler.decoders.warm)

    handler = served.handler
    app = FastAPI(
        title="ClinKD",
        version=__version__,
        summary="Ask a vision-language model about a medical image, with boxes in and out.",
        description=f"{NOTICE} Boxes are [x1, y1, x2, y2], fractions of width and height, origin top left.",
        docs_url=None,  # these pages load scripts from other servers
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the Host that the client sent
        lifespan=run_engine,
        responses=_FAILURES,
    )
    app.router.route_class = _JsonRoute
    _add_error_handlers(app)
    _add_page(app, served)
    _add_images(app, served)
    _add_model(app, served)
    _add_openai(app, served)
    if served.review is not None:
        _add_corrections(app, served.review)
    if served.worklist is not None:
        add_worklist(app, served.worklist)
    return app


class _JsonRequest(Request):
    async def json(self) -> Any:
        return orjson.loads(await self.body())


class _JsonRoute(APIRoute):
    """Reads bodies by orjson: the parser of Python lets half a surrogate pair pass, which no reply can repeat."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return handle_json


# -- errors -----------------------------------------------------------------------------------------------------------


def _add_error_handlers(app: FastAPI) -> None:
    async def reply(_: Request, error: Exception) -> Response:
        status, body, headers = _describe_error(error)
        return JSONResponse(body, status, headers)

    for kind in (*_STATUSES, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, reply)


def _describe_error(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers for an error. A fault of the program is reported without its words."""
    param, headers = None, dict[str, str]()
    if isinstance(error, RequestValidationError):
        status, code = 400, "invalid"
        why, param = _describe_invalid(error)
    elif isinstance(error, HTTPException):
        status, code, why, headers = error.status_code, "invalid", str(error.detail), dict(error.headers or {})
    else:
        status, code = next((v for kind, v in _STATUSES.items() if isinstance(error, kind)), (500, "fault"))
        why = "a fault of the program" if status == 500 else str(error)
    if isinstance(error, QueueFull | ModelUnavailable):
        headers = {"retry-after": str(error.seconds)}
    return status, schemas.failure_body(status, why, code, param), headers


def _describe_invalid(error: RequestValidationError) -> tuple[str, str | None]:
    """The error in a body, without the value, and its place; if a part may be of several types, the deepest error."""
    deepest = max(error.errors(), key=lambda e: len(e["loc"]))
    place = ".".join(str(part) for part in deepest["loc"] if part != "body" and "[" not in str(part))[:200]
    what = deepest["msg"].removeprefix("Value error, ")[:200]
    return (f"{place}: {what}", place) if place else (what, None)


# -- the page ---------------------------------------------------------------------------------------------------------


def _add_page(app: FastAPI, served: Served) -> None:
    handler = served.handler
    files = {path.name: path.read_bytes() for path in sorted(PAGE.iterdir()) if path.suffix in _MEDIA_TYPES}
    for name, text in _PAGE_TEXTS.items():
        files["index.html"] = files["index.html"].replace(name, text.encode())

    def file(name: str) -> Response:
        if name not in files:
            raise Missing("no such file")
        return Response(files[name], media_type=_MEDIA_TYPES[Path(name).suffix])

    @app.get("/healthz", tags=["page"])
    async def healthz() -> schemas.Health:
        """Whether the model is ready. The only route without a token."""
        return schemas.Health(status=handler.engine.state, version=__version__)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return file("index.html")

    @app.get("/assets/{name}", include_in_schema=False)
    async def assets(name: str) -> Response:
        return file(name)

    @app.get("/report", include_in_schema=False)
    async def report() -> Response:
        if served.report is None or not served.report.is_file():
            raise Missing("no report: the run is not finished, or a model is served without its run")
        return FileResponse(served.report, media_type="text/html", headers={"content-security-policy": _REPORT_CSP})

    @app.get("/v1/about", tags=["page"])
    async def about() -> schemas.AboutReply:
        """The model, its run and the limits of this server."""
        answerer, run = handler.engine.answerer, None
        if served.review is not None:
            has_report = served.report is not None
            run = schemas.AboutRun(name=served.name, report=has_report, rounds=served.review.rounds)
        return schemas.AboutReply(
            name=served.name,
            version=__version__,
            notice=NOTICE,
            state=handler.engine.state,
            why=handler.engine.why,
            run=run,
            worklist=served.worklist.sends if served.worklist else None,
            names=list(answerer.names) if answerer else [],
            questions=WORDINGS,
            modalities=[m.value for m in Modality],
            presets={name: (float(centre), float(width)) for name, (centre, width) in PRESETS.items()},
            limits=schemas.Caps.model_validate(handler.limits),
            candidates=answerer.config.answer.candidates if answerer else 0,
            selection=answerer.config.select.scorer if answerer and answerer.scorer else "first",
        )


# -- images -----------------------------------------------------------------------------------------------------------


def _add_images(app: FastAPI, served: Served) -> None:
    handler = served.handler

    @app.post("/v1/open", tags=["images"])
    async def open(request: Request, body: schemas.ImageRequest) -> schemas.OpenReply:
        """One frame of an image as the model sees it, and the values to show it through another window."""
        opened = await attend(
            request, handler, lambda _: handler.picture(body.image, body.frame, body.window, grey=True)
        )
        about, grey = dict(opened.about), None
        if opened.grey is not None:
            scale = {name: about.pop(name) for name in ("type", "inverted", "low", "high")}
            grey = schemas.Grey(values=base64.b64encode(opened.grey).decode(), **scale)
        picture = await asyncio.to_thread(encode_picture, opened.picture, compress_level=1)
        uri = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        return schemas.OpenReply(**about, picture=uri, grey=grey)

    @app.post(
        "/v1/values",
        tags=["images"],
        response_class=Response,
        responses=describe_file("application/octet-stream"),
        openapi_extra={"requestBody": describe_file("application/octet-stream")[200]},
    )
    async def values(
        request: Request, frame: Annotated[list[int], Query(default_factory=lambda: [1], max_length=64)]
    ) -> Response:
        """The grey values of frames of a DICOM, of which the body is the file or an excerpt of it: one frame behind the
        other, little-endian numbers of the type that the header X-Value-Type names (int16, uint16 or float32)."""
        content = await request.body()
        kind, packed = await attend(request, handler, lambda _: handler.decoders.values(content, frame))
        return Response(packed, media_type="application/octet-stream", headers={"x-value-type": kind})

    @app.post("/v1/series", tags=["images"])
    async def series(request: Request, body: schemas.SeriesRequest) -> schemas.SeriesReply:
        """What files are, and where their frames lie in the patient, by their first bytes: what a stack is made of."""
        return await attend(request, handler, lambda _: handler.describe_files(body.files))


# -- the model --------------------------------------------------------------------------------------------------------


def _add_model(app: FastAPI, served: Served) -> None:
    handler = served.handler

    @app.post("/v1/ground", tags=["questions"])
    async def ground(request: Request, body: schemas.GroundRequest) -> schemas.AnswerReply:
        """The boxes of a structure."""

        async def answer(limit: TimeLimit) -> schemas.AnswerReply:
            picture = await handler.picture(body.image, body.frame, body.window)
            read = partial(read_question, picture, WORDINGS["where"].replace("{name}", body.phrase), ())
            return (await handler.answer(picture, AnswerRequest(read, body.options), limit)).reply

        return await attend(request, handler, answer)

    @app.post("/v1/refer", tags=["questions"])
    async def refer(request: Request, body: schemas.ReferRequest) -> schemas.AnswerReply:
        """The name or a description of what a box shows."""

        async def answer(limit: TimeLimit) -> schemas.AnswerReply:
            picture = await handler.picture(body.image, body.frame, body.window)
            size = picture.picture.size if body.unit == "pixel" else None
            boxes = [make_box(corners, size) for corners in body.boxes]
            marks = " ".join(["[box]"] * len(boxes))
            read = partial(read_question, picture, WORDINGS[body.task].replace("[box]", marks), boxes)
            return (await handler.answer(picture, AnswerRequest(read, body.options), limit)).reply

        return await attend(request, handler, answer)

    @app.post("/v1/sr", tags=["images"], response_class=Response, responses=describe_file("application/dicom"))
    async def sr(request: Request, body: schemas.ReportRequest) -> Response:
        """Boxes and texts about a DICOM as a structured report (TID 1500), marked unverified and partial."""
        regions = [{"box": list(make_box(r.box).corners), "label": r.label, "by": r.by} for r in body.regions]
        fields = {"frame": body.frame, "regions": regions, "question": body.question.text, "answer": body.answer.text}
        known = {"confidence": body.confidence, "warnings": [(w.kind, w.message) for w in body.warnings]}
        write = partial(handler.decoders.report, decode_data_uri(body.image), **fields, **known)
        report = await attend(request, handler, lambda _: write(model=served.name, version=__version__))
        headers = {"content-disposition": 'attachment; filename="report.dcm"'}
        return Response(report, media_type="application/dicom", headers=headers)


async def attend(request: Request, handler: RequestHandler, work: Callable[[TimeLimit], Coroutine[Any, Any, T]]) -> T:
    """The result of `work`, which is cancelled if the client disconnects or its time is over."""

    async def wait_for_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    limit = TimeLimit(handler.limits.seconds)
    working, leaving = asyncio.create_task(work(limit)), asyncio.create_task(wait_for_disconnect())
    try:
        await asyncio.wait((working, leaving), timeout=limit.left, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise DeadlineExceeded("who asked has left") if leaving.done() else limit.error()
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


# -- OpenAI's API -----------------------------------------------------------------------------------------------------


def _add_openai(app: FastAPI, served: Served) -> None:
    handler, started = served.handler, int(time.time())

    @app.get("/v1/models", tags=["openai"])
    async def models() -> schemas.ModelList:
        """The one model of this server."""
        return schemas.ModelList(object="list", data=[schemas.ModelEntry(id=served.name, created=started)])

    @app.post(
        "/v1/chat/completions",
        tags=["openai"],
        response_model=schemas.ChatReply,
        responses={**MISSING, 200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def completions(request: Request, body: schemas.ChatRequest) -> Any:
        """A conversation about one image, given as a data URI. With `stream`, server-sent events."""
        if body.model != served.name:
            raise Missing(f"no model of that name; {served.name} is served")
        conversation = chat.Conversation(body, handler.limits)

        async def answer(limit: TimeLimit) -> schemas.ChatReply | StreamingResponse:
            picture = await handler.picture(conversation.image, body.clinkd.frame, body.clinkd.window)
            if not body.stream:
                return await chat.complete_chat(handler, conversation, picture, limit)
            events = await chat.stream_chat(
                handler, conversation, picture, limit, lambda error: _describe_error(error)[1]
            )
            return StreamingResponse(events, media_type="text/event-stream")

        return await attend(request, handler, answer)


# -- corrections ------------------------------------------------------------------------------------------------------


def _add_corrections(app: FastAPI, review: Review) -> None:
    @app.get("/v1/corrections", tags=["corrections"])
    async def corrections(
        round: int = Query(1, ge=1, le=1000),
        state: Literal["open", "decided", "all"] = "all",
        offset: int = Query(0, ge=0, le=10**9),
        limit: int = Query(20, ge=1, le=100),
    ) -> schemas.CorrectionPage:
        """The wrong answers of a round, with their rewrites and a person's decisions."""
        by_state = {"all": await asyncio.to_thread(review.list_answers, round)}
        by_state["open"] = [r for r in by_state["all"] if r.decided is None]
        by_state["decided"] = [r for r in by_state["all"] if r.decided is not None]
        total, num_open, num_decided = (len(by_state[name]) for name in (state, "open", "decided"))
        return schemas.CorrectionPage(
            round=round, rounds=review.rounds, total=total, open=num_open, decided=num_decided,
            file=review.file.name, command=review.command,
            items=[_make_correction_reply(r) for r in by_state[state][offset : offset + limit]],
        )  # fmt: skip

    @app.get(
        "/v1/corrections/image", tags=["corrections"], response_class=Response, responses=describe_file("image/png")
    )
    async def image(id: str = Query(max_length=500), round: int = Query(1, ge=1, le=1000)) -> Response:
        """The picture of a question."""
        picture = await asyncio.to_thread(review.picture, id, round)
        return Response(await asyncio.to_thread(encode_picture, picture, compress_level=1), media_type="image/png")

    @app.put("/v1/corrections", tags=["corrections"], responses=CONFLICT)
    async def decide(body: schemas.DecideRequest) -> schemas.CorrectionReply:
        """Accept, edit or reject a rewrite, or undo that. The decision is written to the file at once.

        With `seen`, the decision that the client shows (null: none), it is refused with 409 where another one stands in
        the file meanwhile, by another window, server or editor. Without `seen`, where one stands there that this server
        has not shown.
        """
        after = None
        if body.text is not None or body.boxes is not None:
            after = BoxedText(body.text or "", tuple(make_box(c) for c in body.boxes or ()))
        seen: Shown | Last = "last"
        if "seen" in body.model_fields_set:
            seen = (body.seen.verdict, _read_text(body.seen.after)) if body.seen else None
        act = review.undo if body.verdict == "undo" else partial(review.decide, verdict=body.verdict, after=after)
        return _make_correction_reply(await asyncio.to_thread(act, body.id, body.round, seen=seen))


def _read_text(marked: schemas.MarkedText | None) -> BoxedText | None:
    return BoxedText(marked.text, tuple(make_box(corners) for corners in marked.boxes)) if marked else None


def _make_correction_reply(reviewed: ReviewedAnswer) -> schemas.CorrectionReply:
    correction, sample, decided = reviewed.correction, reviewed.sample, reviewed.decided
    names = ("id", "round", "before", "truth", "after", "by", "reasons", "rejected")
    return schemas.CorrectionReply.model_validate(
        {
            **{name: getattr(correction, name) for name in names},
            "modality": sample.modality.value,
            "task": sample.task.value,
            "question": sample.question,
            "image": sample.images[0],
            "decision": {"verdict": reviewed.verdict, "after": decided.after} if decided else None,
        }
    )
