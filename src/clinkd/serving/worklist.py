"""The routes of the worklist: entries, their images, and what a person decides about their answers."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Path, Query
from fastapi.responses import Response
from pydantic import Field

from clinkd.hospital.worklist import DecisionKind, EntryState, FoundRegion, Worklist, WorklistDecision
from clinkd.serving import schemas
from clinkd.serving.asking import make_box

CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"model": schemas.Failure, "description": "Another decision was taken meanwhile; the message says which"}
}
MISSING: dict[int | str, dict[str, Any]] = {404: {"model": schemas.Failure, "description": "There is no such thing"}}
_EntryId = Annotated[str, Path(max_length=64, description="of an entry")]


def describe_file(media_type: str) -> dict[int | str, dict[str, Any]]:
    """The description of a reply that is a file."""
    return {200: {"content": {media_type: {"schema": {"type": "string", "format": "binary"}}}}}


class RegionReply(schemas.ReplyModel):
    """A box in fractions of the image, and the name of what it shows, "" where unknown."""

    box: schemas.Corners
    name: str


class CautionReply(schemas.ReplyModel):
    """One thing that is not known about an answer, by its kind (see `WarningReply`) and in words."""

    kind: str
    message: str


class EntryAnswer(schemas.ReplyModel):
    """The answer of the model. `text` has a `[box]` mark at the place of each of `boxes`."""

    text: str
    boxes: list[RegionReply]
    warnings: list[CautionReply]
    confidence: float | None
    answered: str


class EntryDecision(schemas.ReplyModel):
    """A person's decision. `text` and `boxes`: the answer that is right, the model's where it was accepted."""

    kind: DecisionKind
    text: str
    boxes: list[RegionReply]
    note: str


class EntryReply(schemas.ReplyModel):
    """A question about a frame of an image that arrived. `why`: of a failure, or of what could not be sent yet."""

    id: str
    arrived: str
    study: str
    series: str
    instance: str
    frame: int
    modality: str
    body_part: str
    rule: str
    question: str
    state: EntryState
    answer: EntryAnswer | None
    decision: EntryDecision | None
    why: str
    revision: int


class WorklistPage(schemas.ReplyModel):
    """Entries in the order of their arrival. `counts`: by state, of all; `left_out`: what came since the start and no
    rule asks about, by modality; `after`: for the next page, null at the end."""

    entries: list[EntryReply]
    counts: dict[str, int]
    left_out: dict[str, int]
    after: str | None


class RegionRequest(schemas.RequestModel):
    box: schemas.Corners
    name: Annotated[str, Field(max_length=64)] = ""


class EntryDecisionRequest(schemas.RequestModel):
    """`revision`: of the entry that the person saw. `text` and `boxes` are the right answer: required for an edit,
    without effect where the model's answer is accepted, and allowed for a rejection. The text has a `[box]` mark for
    each box, or none. `undo` takes the decision back."""

    kind: DecisionKind | Literal["undo"]
    revision: Annotated[int, Field(ge=0)]
    text: Annotated[str, Field(max_length=4000)] = ""
    boxes: Annotated[list[RegionRequest], Field(max_length=256, default_factory=list)]
    note: Annotated[str, Field(max_length=4000)] = ""


def add_worklist(app: FastAPI, worklist: Worklist) -> None:
    """Add the routes to an app."""

    @app.get("/v1/worklist", tags=["worklist"])
    async def entries(
        state: EntryState | None = None,
        after: str | None = Query(None, max_length=64, description="the id of the last entry of the page before"),
        limit: int = Query(50, ge=1, le=500),
    ) -> WorklistPage:
        """What arrived, how far it is, and what a person decided."""
        listed = await asyncio.to_thread(worklist.list, state, after, limit)
        return WorklistPage(
            entries=[EntryReply.model_validate(entry) for entry in listed],
            counts=await asyncio.to_thread(worklist.counts),
            left_out=dict(worklist.left_out),
            after=listed[-1].id if len(listed) == limit else None,
        )

    @app.get("/v1/worklist/{id}", tags=["worklist"], responses=MISSING)
    async def entry(id: _EntryId) -> EntryReply:
        """One entry."""
        return EntryReply.model_validate(await asyncio.to_thread(worklist.get, id))

    @app.get(
        "/v1/worklist/{id}/image",
        tags=["worklist"],
        response_class=Response,
        responses={**MISSING, **describe_file("application/dicom")},
    )
    async def image(id: _EntryId) -> Response:
        """The DICOM file of an entry, as it arrived."""
        return Response(await asyncio.to_thread(worklist.image, id), media_type="application/dicom")

    @app.post("/v1/worklist/{id}/decision", tags=["worklist"], responses={**MISSING, **CONFLICT})
    async def decide(id: _EntryId, body: EntryDecisionRequest) -> EntryReply:
        """Accept, edit or reject an answer, or undo that until it is sent; it is on the disk when the reply comes.
        Refused with 409 where the entry changed since `revision`."""
        if body.kind == "undo":
            return EntryReply.model_validate(await asyncio.to_thread(worklist.undo, id, body.revision))
        boxes = tuple(FoundRegion(make_box(region.box), region.name) for region in body.boxes)
        decision = WorklistDecision(body.kind, body.text, boxes, body.note)
        decided = await asyncio.to_thread(worklist.decide, id, decision, body.revision)
        return EntryReply.model_validate(decided)
