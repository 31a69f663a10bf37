"""Requests and replies as JSON. Boxes are [x1, y1, x2, y2], in fractions of width and height unless noted."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from clinkd.data.images import KINDS, medical_names
from clinkd.records import Box
from clinkd.serving.options import MOST_TOKENS, AnswerOptions

IMAGE_FORMATS = ", ".join(name for kind in reversed(KINDS) for name in kind.formats)


def _corners(value: Any) -> Any:
    return list(value.corners) if isinstance(value, Box) else value


Corners = Annotated[
    list[float], BeforeValidator(_corners), Field(min_length=4, max_length=4, description="x1, y1, x2, y2")
]
SidePixels = Annotated[int, BeforeValidator(lambda value: value or 0)]  # 0 if unknown
# bounded: on a long text without the rest, two open repetitions of the same letters take quadratic time
_DATA_URI = re.compile(r"^data:[\w.+-]{0,127}/?[\w.+-]{0,127};base64,")


def _is_data_uri(value: str) -> str:
    if not _DATA_URI.match(value):
        raise ValueError("not a data URI in base64 (data:image/png;base64,...); no other address is opened")
    return value


DataUri = Annotated[
    str,
    AfterValidator(_is_data_uri),
    Field(
        json_schema_extra={"pattern": _DATA_URI.pattern},
        description=f"data:image/png;base64,... (any of {IMAGE_FORMATS}); no other address is opened",
    ),
]
Frame = Annotated[int | None, Field(ge=1, description="of a file with several, from 1; the first by default")]
ValueType = Literal["int16", "uint16", "float32"]  # the smallest that holds all values of a frame
Window = Annotated[
    str | None,
    Field(
        max_length=64,
        description=f"how the values of a {medical_names()} become grey: auto, full, the file's n-th, centre/width, or "
        "a preset",
    ),
]


class RequestModel(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ReplyModel(BaseModel):
    """A reply or a part of one. `model_validate` also takes our record of these fields, a `Box` as its corners."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)


# -- errors -----------------------------------------------------------------------------------------------------------


class ErrorDetail(ReplyModel):
    message: str
    type: str
    code: str | None = None
    param: str | None = None


class Failure(ReplyModel):
    """An error in the form of OpenAI's API."""

    error: ErrorDetail


def failure_body(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    """The JSON of a `Failure`."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}


# -- answers ----------------------------------------------------------------------------------------------------------


class MarkedText(ReplyModel):
    """A `BoxedText`: a text with a `[box]` mark at the place of each box."""

    text: str
    boxes: list[Corners]


class PlacedBox(ReplyModel):
    """A box in fractions of the image and in its pixels."""

    box: Corners
    pixels: Corners


class NamedBox(PlacedBox):
    """A box of an answer. `span`: the place of its phrase in the text, in characters; null if it is not there."""

    phrase: str
    span: tuple[int, int] | None


class CandidateReply(MarkedText):
    """One candidate. `logprob`: mean a token (natural log); `weight`: its probability among the candidates;
    `likeness`: its similarity to the chosen candidate."""

    logprob: float | None
    weight: float
    likeness: float
    scores: dict[str, float]
    chosen: bool
    truncated: bool
    unread: list[str]


class ImageSize(ReplyModel):
    width: SidePixels
    height: SidePixels


WarningKind = Literal["no_box", "unknown_name", "unseen_modality", "other_side", "training_image"]


class WarningReply(ReplyModel):
    """One thing that is not known about an answer. `no_box`: none was given where one was asked for; `unknown_name`: a
    word of the question that never stood in the training data; `unseen_modality`: the file states a modality that the
    training data has none of; `other_side`: the answer names the other side than the question; `training_image`: the
    model learned from the file (told by `clinkd ask` and in a notebook; the server sees no files)."""

    kind: WarningKind
    message: str


class AnswerReply(ReplyModel):
    """The model's answer. `text` has a `[box]` mark at the place of each of `boxes`.

    `asked`: the boxes of the question as the model reads them, on the grid of its spelling. `support`: the mean
    similarity of the candidates to the chosen one, by weight, which on its own says nothing of right or wrong.
    `uncertain`: it is below 0.6, and the run's validation answers show what that means; `why` says in what the
    candidates differ, and how often such answers were wrong. `confidence`: the probability that it is right, fitted to
    the run's validation answers; null where that did not foretell other patients, the question is unlike those (an
    unknown name, an unseen modality), or options change how it is answered. `warnings`: what is not known about the
    answer; without any it may be wrong all the same. `reordered`: whether the scorer chose among the candidates, or
    only shows its scores. `ignored`: the parts of the request without effect.
    """

    text: str
    boxes: list[NamedBox]
    asked: list[PlacedBox]
    candidates: list[CandidateReply]
    support: float
    uncertain: bool
    why: str | None
    confidence: float | None
    warnings: list[WarningReply]
    reordered: bool
    image: ImageSize
    ignored: list[str]
    seconds: float
    notice: str


class Draft(MarkedText):
    """The best answer so far, which may still change."""


# -- OpenAI's chat completions ----------------------------------------------------------------------------------------


class ImageUrl(RequestModel):
    url: DataUri
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(RequestModel):
    type: Literal["text"]
    text: str


class ImagePart(RequestModel):
    type: Literal["image_url"]
    image_url: ImageUrl


class Message(RequestModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    name: str | None = None


class Extension(RequestModel, AnswerOptions):
    """Fields beyond OpenAI's API: `boxes` belong to the `[box]` marks in the user's texts, in order."""

    boxes: list[Corners] = []
    frame: Frame = None
    window: Window = None


class StreamOptions(RequestModel):
    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(RequestModel):
    """One image and a conversation about it. Sampling parameters have no effect, and the reply says so."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    n: Literal[1] | None = None
    clinkd: Extension = Extension()
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    user: str | None = None

    @property
    def options(self) -> AnswerOptions:
        """How to answer: by our own fields, or else OpenAI's, cut at the most tokens that we allow."""
        max_tokens = self.max_completion_tokens or self.max_tokens
        if max_tokens is None or self.clinkd.max_new_tokens is not None:
            return self.clinkd.options
        return AnswerOptions.model_validate(
            {**self.clinkd.options.model_dump(), "max_new_tokens": min(max_tokens, MOST_TOKENS)}
        )

    @property
    def ignored(self) -> list[str]:
        """Parameters of the request that have no effect."""
        names = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "user")
        ignored = [name for name in names if getattr(self, name) is not None]
        return ignored + ["system message"] * any(m.role in ("system", "developer") for m in self.messages)


class ChatMessage(ReplyModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(ReplyModel):
    index: int = 0
    message: ChatMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class Usage(ReplyModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatReply(ReplyModel):
    """`content` is the answer as the model wrote it, with boxes in its spelling; `clinkd` has them as numbers."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    clinkd: AnswerReply


class ModelEntry(ReplyModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "clinkd"


class ModelList(ReplyModel):
    object: Literal["list"] = "list"
    data: list[ModelEntry]


# -- grounding and referring ------------------------------------------------------------------------------------------


class ImageRequest(RequestModel):
    image: DataUri
    frame: Frame = None
    window: Window = None


class GroundRequest(ImageRequest, AnswerOptions):
    """Ask for the boxes of a structure."""

    phrase: Annotated[str, Field(min_length=1, max_length=500, description="what to look for, as `liver`")]


class ReferRequest(ImageRequest, AnswerOptions):
    """Ask for the name or a description of what a box shows."""

    boxes: Annotated[list[Corners], Field(min_length=1, max_length=32)]
    unit: Literal["fraction", "pixel"] = "fraction"
    task: Literal["what", "describe"] = "what"


class Grey(ReplyModel):
    """The values of a frame after the modality LUT: numbers of `type`, little-endian, row by row, in base64."""

    values: str
    type: ValueType
    inverted: bool
    low: float
    high: float


class OpenReply(ReplyModel):
    """`window`: centre and width of `picture`, null if it was made in another way. `windows`: those of the file.
    `hounsfield`: whether presets fit. `burned_in`: what the file says about text in its picture."""

    width: int
    height: int
    frames: int
    frame: int
    dicom: bool
    modality: str
    burned_in: str
    windows: list[str]
    hounsfield: bool
    window: tuple[float, float] | None
    picture: str
    grey: Grey | None


class FileHead(RequestModel):
    """`head`: the first bytes of a file of `size` bytes."""

    head: DataUri
    size: Annotated[int, Field(ge=1, le=1 << 40)]


class SeriesRequest(RequestModel):
    """Ask what files are. Of most DICOM files 128 kB are enough; of a picture, all bytes are needed."""

    files: Annotated[list[FileHead], Field(min_length=1, max_length=512)]


class VoxelLayout(ReplyModel):
    """How the voxels of a NIfTI lie in the file, behind its compression. `type` is numpy's, such as "<i2"; values are
    slope * stored + intercept. `shape`: x, y, z and volumes, the first the fastest. `axes`: of slices, rows and columns
    of the frames, the stored axis, and 1 where both count up, else -1."""

    offset: int
    type: str
    shape: list[int]
    slope: float
    intercept: float
    axes: list[tuple[int, int]]


class PixelLayout(ReplyModel):
    """Where the pixels of a DICOM begin, and the bits of each frame; null: they are compressed, in items."""

    offset: int
    frame_bits: int | None


class FrameGeometry(ReplyModel):
    """Where the frames of a file lie, in mm to the patient's left, back and head. `orientation`: the directions in
    which columns and rows count up; `spacing`: between rows, and between columns; `positions`: the middle of the first
    pixel of each frame. Each is empty where the file does not say it of all frames alike. `series`: a pseudonym, files
    with the same one belong together. `voxels`: null for all but a NIfTI; `pixels`: null for all but a DICOM."""

    orientation: list[float]
    spacing: list[float]
    positions: list[tuple[float, float, float]]
    series: str
    series_number: int | None
    instance_number: int | None
    voxels: VoxelLayout | None
    pixels: PixelLayout | None


class FileReply(FrameGeometry):
    kind: str
    width: int
    height: int
    frames: int
    modality: str


class FileRefusal(ReplyModel):
    """`why`: the file is no image, is damaged, or its first bytes do not tell enough."""

    why: str


class SeriesReply(ReplyModel):
    """One entry for each file, in the order of the request."""

    files: list[FileReply | FileRefusal]


class PlainText(RequestModel):
    text: Annotated[str, Field(max_length=4000)]


class DrawnRegion(RequestModel):
    box: Corners
    label: Annotated[str, Field(max_length=64)] = ""
    by: Literal["model", "person"]


class StatedWarning(RequestModel):
    """A warning of an answer, as its reply has it."""

    kind: WarningKind
    message: Annotated[str, Field(max_length=1000)]


class ReportRequest(RequestModel):
    """`confidence` and `warnings`: as the reply with the answer has them."""

    image: DataUri
    frame: Frame = None
    question: PlainText
    answer: PlainText
    regions: Annotated[list[DrawnRegion], Field(max_length=256)]
    confidence: Annotated[float | None, Field(ge=0, le=1)] = None
    warnings: Annotated[list[StatedWarning], Field(max_length=16)] = []


# -- the page ---------------------------------------------------------------------------------------------------------


class Health(ReplyModel):
    status: Literal["loading", "ready", "failed"]
    version: str


class AboutRun(ReplyModel):
    name: str
    report: bool
    rounds: list[int]


class Caps(ReplyModel):
    """The part of the `ServerLimits` that a page needs."""

    body_bytes: int
    pixels: int
    frames: int
    queue: int
    prompt_tokens: int
    batch_tokens: int
    seconds: float


class AboutReply(ReplyModel):
    """The facts about a server for its page. `questions`: by task, in the words of the training data; `worklist`:
    which of its answers go to an archive; null where there is none."""

    name: str
    version: str
    notice: str
    state: Literal["loading", "ready", "failed"]
    why: str | None
    run: AboutRun | None
    worklist: Literal["nothing", "accepted", "all"] | None
    names: list[str]
    questions: dict[str, str]
    modalities: list[str]
    presets: dict[str, tuple[float, float]]
    limits: Caps
    candidates: int
    selection: str


# -- corrections ------------------------------------------------------------------------------------------------------


class Decision(ReplyModel):
    verdict: Literal["accept", "edit", "reject"]
    after: MarkedText | None


class CorrectionReply(ReplyModel):
    """A wrong answer of the run, and its rewrite. `after`: the run's rewrite; `rejected`: why there is none.
    `decision`: a person's decision about it."""

    id: str
    round: int
    modality: str
    task: str
    question: MarkedText
    before: MarkedText
    truth: MarkedText
    after: MarkedText | None
    by: str
    reasons: list[str]
    rejected: str | None
    image: ImageSize
    decision: Decision | None


class CorrectionPage(ReplyModel):
    round: int
    rounds: list[int]
    total: int
    open: int
    decided: int
    file: str
    command: str
    items: list[CorrectionReply]


class DecideRequest(RequestModel):
    """`text` with `[box]` marks and `boxes` are required for an edit, and allowed for it alone. `seen`: the `decision`
    that the client shows, null for none."""

    id: Annotated[str, Field(max_length=500)]
    round: Annotated[int, Field(ge=1)]
    verdict: Literal["accept", "edit", "reject", "undo"]
    text: Annotated[str | None, Field(max_length=4000)] = None
    boxes: Annotated[list[Corners] | None, Field(max_length=256)] = None
    seen: Decision | None = None

    @field_validator("text")
    @classmethod
    def _words(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("the text is empty")
        return value


def place_box(box: Box, width: int, height: int) -> dict[str, Any]:
    """The fields of a `PlacedBox` in an image of `width` x `height` pixels."""
    return {"box": box, "pixels": [box.x1 * width, box.y1 * height, box.x2 * width, box.y2 * height]}
