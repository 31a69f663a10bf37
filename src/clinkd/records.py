"""The nouns everybody uses (samples, boxes, predictions, corrections, scores, tables) and their JSON form.

Boxes are fractions of width and height, origin top left, everywhere inside the program; pixels, thousandths and
`<box>` text exist only in the codecs and readers of `clinkd.data`. Text that speaks of boxes is a `BoxedText`: the
words with a `[box]` mark at each place where a box stands, and the boxes in the order of the marks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, get_args

from clinkd.boxed_text import BOX_MARK as BOX_MARK
from clinkd.boxed_text import BadInput as BadInput
from clinkd.boxed_text import Box as Box
from clinkd.boxed_text import BoxedText as BoxedText

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
# Marks around the images and turns of a conversation, of any family. No text of data and no question may hold one: the
# tokenizer would take it for the mark itself. (Marks around boxes are read by the codecs.)
RESERVED = re.compile(
    r"</?img>|<image>|<video>|<audio>|<\|(?:im|vision|image|video)_\w+\|>|<\|endoftext\|>"
    r"|<(?:start|end)_of_(?:turn|image)>|<image_soft_token>"
)


def is_uid(text: str) -> bool:
    """Whether a text is a DICOM UID, and so safe as the name of a file."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


class Record:
    """A noun that files hold as JSON: an object of its fields, in order, unless its class writes another form."""

    __slots__: tuple[str, ...] = ()

    def to_json(self) -> Any:
        """The record as plain values, for `json.dumps`."""
        return {name: _plain(getattr(self, name)) for name in type(self).__slots__}

    def _leave_out_empty(self, *names: str) -> dict[str, Any]:
        """`to_json` without those of the named fields, newer than the others, that are empty or None."""
        return {name: v for name, v in Record.to_json(self).items() if name not in names or v not in ([], None)}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The record of a value that `to_json` returned. Keys without a field are left out.

        Raises BadInput with the place of the first value that is missing or wrong, such as `turns.0.question`.
        """
        return read_json(cls, value)


def read_json(kind: type[T], value: Any) -> T:
    """The record, box or text of a value that its `to_json` returned. Raises BadInput as `Record.from_json`."""
    from pydantic import ValidationError

    hashable: Any = kind  # mypy does not know that a class can be hashed
    try:
        record: T = _adapter(hashable).validate_python(value)
    except ValidationError as error:
        raise BadInput(_first_error(error)) from None
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, Record | Box | BoxedText):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value.value if isinstance(value, StrEnum) else value


@cache
def _adapter(record: type[Any]) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # only now: `clinkd --help` needs the classes, but reads no record

    return TypeAdapter(record)


def _first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    what = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
    return f"{place}: {what}" if place else what


class Task(StrEnum):
    """The four tasks of Med-GRIT (paper, section Experiments) and plain question answering (VQA-RAD, SLAKE)."""

    VG = "VG"  # visual grounding: name -> box
    ROC = "ROC"  # referring object classification: box -> name
    RC = "RC"  # referring captioning: box -> sentence
    MIA = "MIA"  # medical image analysis: image -> sentences
    QA = "QA"  # free question -> short or open answer, no boxes


SPELLED_OUT = {  # each task for who reads its letters for the first time
    Task.VG: "visual grounding: finding a named structure, with a box; right where the boxes overlap by half (IoU .5)",
    Task.ROC: "referring object classification: naming the structure in a box; not the curve",
    Task.RC: "referring captioning: describing in a sentence what is in a box",
    Task.MIA: "medical image analysis: describing the whole image",
    Task.QA: "question answering: free questions",
}


class Modality(StrEnum):
    """How the image was made. The first eight are the columns of the paper's Tables 3 and 4."""

    CT = "ct"
    MR = "mr"
    XRAY = "xray"
    PET = "pet"
    ENDOSCOPY = "endoscopy"
    DERMOSCOPY = "dermoscopy"
    FUNDUS = "fundus"
    ULTRASOUND = "ultrasound"
    MICROSCOPY = "microscopy"
    OTHER = "other"


PAPER_MODALITIES = tuple(Modality)[:8]
Side = Literal["image", "patient"]  # whose left "left" is: the image's, or the patient's
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
OPTION_LETTERS = "ABCDEFGHIJ"  # of the options of multiple choice
Number = int | float  # a 1 that was read stays 1, not 1.0


@dataclass(frozen=True, slots=True)
class Fact(Record):
    """What a sentence states about one named structure; None if it does not say. `count` is for the whole image."""

    name: str
    size: str | None = None
    side: str | None = None
    brightness: str | None = None
    count: int | None = None

    @property
    def tuples(self) -> frozenset[tuple[str, ...]]:
        """Attribute tuples as in SPICE: (name), (name, attribute, value); the count is a tuple of its own."""
        stated = {(self.name, k, v) for k in ("size", "side", "brightness") if (v := getattr(self, k)) is not None}
        number = {("image", "count", str(self.count))} if self.count is not None else set()
        return frozenset({(self.name,)} | stated | number)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class Laterality(Record):
    """Where the patient's left lies in a picture, and the fields of the image's header that say so.

    `left` is the half of the picture: "right" in a standard axial, coronal or frontal view; "none" where left and right
    are not side by side (sagittal, lateral, one breast); "unknown" where the fields tell no plane or contradict.
    """

    left: Literal["left", "right", "none", "unknown"]
    rule: str


@dataclass(frozen=True, slots=True)
class Variant(Record):
    """How a training image is changed on opening: mirrored, turned upside down, then shifted by (right, down) whole
    pixels over black; a value v of 0..1 becomes `gain` v^`gamma` + `level`."""

    mirrored: bool = False
    upended: bool = False
    shift: tuple[int, int] = (0, 0)
    gamma: Number = 1
    gain: Number = 1
    level: Number = 0


@dataclass(frozen=True, slots=True)
class ImageRef(Record):
    """The path of an image (relative to its data root) and its size in pixels after orientation is applied.

    `path#3` is the third frame of a file with several. The size is None if the image was not opened yet. `orientation`
    is the EXIF tag that is applied on opening (1: as stored; 5 to 8 swap width and height). `window` is how the values
    of a DICOM become grey, if another window than its own first one was chosen (see `clinkd.data.images.dicom`).
    `laterality` is None where the file does not tell it: then the modality's convention holds. `variant` is the change
    that makes another training image of the same file. With `shown` only these boxes have the pixels of the picture,
    and the rest is grey.
    """

    path: str
    width: int | None = None
    height: int | None = None
    orientation: int = 1
    window: str | None = None
    laterality: Laterality | None = None
    shown: tuple[Box, ...] = ()
    variant: Variant | None = None

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = {"path": self.path, "width": self.width, "height": self.height}
        if self.orientation != 1:
            values["orientation"] = self.orientation
        if self.window is not None:
            values["window"] = self.window
        if self.laterality is not None:
            values["laterality"] = self.laterality.to_json()
        if self.shown:
            values["shown"] = _plain(self.shown)
        if self.variant is not None:
            values["variant"] = self.variant.to_json()
        return values


def list_possible_tasks(question: BoxedText, answer: BoxedText) -> tuple[Task, ...]:
    """The tasks that a free question with this answer may belong to."""
    return (Task.ROC, Task.RC) if question.boxes else (Task.VG,) if answer.boxes else (Task.MIA, Task.QA)


def name_kind(question: BoxedText, answer: BoxedText) -> str:
    """A kind of question: all that is known of the task of a free one. The key of what is fitted to it."""
    return " or ".join(list_possible_tasks(question, answer))


@dataclass(frozen=True, slots=True)
class Turn(Record):
    """One question and its true answer. `task` decides how the answer is scored.

    `options` are the words of a multiple-choice question's options, in the order of their letters ("" for a letter that
    is left out); the question shows them, and the answer is one of them. `closed` is whether the data call the question
    closed (VQA-RAD, SLAKE), None if they do not say.
    """

    task: Task
    question: BoxedText
    answer: BoxedText
    options: tuple[str, ...] = ()
    closed: bool | None = None

    @property
    def letter(self) -> str:
        """The letter of the true option, "" without options."""
        return OPTION_LETTERS[self.options.index(self.answer.text)] if self.answer.text in self.options else ""

    def to_json(self) -> dict[str, Any]:
        return self._leave_out_empty("options", "closed")


@dataclass(frozen=True, slots=True)
class Sample(Record):
    """One item to learn from or to ask: images, a conversation, and its source.

    The last turn is answered and scored; earlier turns are context. `group` is the unit that stays in one split
    (patient, else image). `names` are the structures of the last turn, `facts` what its truth states; both are empty if
    the data do not say. `side` says whose left the words mean.
    """

    id: str
    images: tuple[ImageRef, ...]
    modality: Modality
    turns: tuple[Turn, ...]
    group: str
    source: str = ""
    names: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    side: Side = "patient"
    split: Split | None = None

    @property
    def task(self) -> Task:
        return self.turns[-1].task

    @property
    def question(self) -> BoxedText:
        return self.turns[-1].question

    @property
    def answer(self) -> BoxedText:
        return self.turns[-1].answer

    def answered(self, answer: BoxedText, suffix: str) -> Sample:
        """The same item with another answer (a pseudo-label or a correction), its id marked by `suffix`."""
        last = replace(self.turns[-1], answer=answer)
        return replace(self, id=f"{self.id}{suffix}", turns=(*self.turns[:-1], last), facts=())


@dataclass(frozen=True, slots=True)
class Candidate(Record):
    """One generated answer. `raw` is the text of the model, `answer` what the codec read in it.

    `logprob` is the mean log-probability a token (natural log); `scores` maps a scorer's name to its value, higher is
    better; `unread` lists box spellings that could not be read; `truncated` says the length limit cut it. `box_scores`
    are the model's own, one for each box of `answer` and on its own scale; empty where it states none.
    """

    raw: str
    answer: BoxedText
    logprob: Number | None = None
    scores: dict[str, Number] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    truncated: bool = False
    box_scores: tuple[Number, ...] = ()

    def __post_init__(self) -> None:
        if self.box_scores and len(self.box_scores) != len(self.answer.boxes):
            raise BadInput(f"{len(self.box_scores)} box_scores but {len(self.answer.boxes)} boxes")

    def to_json(self) -> dict[str, Any]:
        return self._leave_out_empty("box_scores")


@dataclass(frozen=True, slots=True)
class Prediction(Record):
    """All candidates for one sample, in the order they were generated, and which of them is the answer."""

    id: str  # of the Sample
    candidates: tuple[Candidate, ...]
    chosen: int = 0
    by: str = ""  # who answered: a checkpoint's identity, a file, an image-blind baseline
    confidence: Number | None = None  # the fitted probability that the answer is right; None where none is told

    @property
    def answer(self) -> Candidate:
        return self.candidates[self.chosen]

    def to_json(self) -> dict[str, Any]:
        told = {} if self.confidence is None else {"confidence": self.confidence}
        return {"id": self.id, "chosen": self.chosen, "by": self.by, **told, "candidates": _plain(self.candidates)}


@dataclass(frozen=True, slots=True)
class Correction(Record):
    """One reviewed answer: right (`after` is None), corrected, or with a rejected correction.

    `drawn` is None where the wrong answers are rewritten; in a control, which rewrites others, whether this one is.
    """

    id: str  # of the Sample
    round: int  # from 1
    before: BoxedText  # the model's answer
    truth: BoxedText
    similarity: Number  # of the box-stripped texts, 0..1
    reasons: tuple[str, ...] = ()  # why it counts as wrong: similarity, box, laterality, negation, count
    after: BoxedText | None = None
    by: str = ""  # corrector: "offline", a model's name, "human"
    rejected: str | None = None  # why the new text was refused; the truth stays
    drawn: bool | None = None

    @property
    def wrong(self) -> bool:
        return bool(self.reasons)

    @property
    def to_rewrite(self) -> bool:
        """Whether the answer is one of those that are rewritten: the wrong ones, or those that a control drew."""
        return self.wrong if self.drawn is None else self.drawn

    def to_json(self) -> dict[str, Any]:
        return {**self._leave_out_empty("drawn"), "similarity": round(self.similarity, 4)}


@dataclass(frozen=True, slots=True)
class Score(Record):
    """One figure, x100. `value` is None, with `why`, if it could not be computed: unscored is not zero.

    `row` is who answered: "model"; another choice among its candidates ("first beam", "random", "agreement", "oracle",
    "by clip": the scorer's, as if always trusted); the "frozen-feature probe", which sees the
    image; or an image-blind baseline ("other image", "median box", "constant", "question only", "learned", "images
    shuffled"). `modality` None means the mean over non-empty modalities.
    `chosen_on`: of the best baseline of a task and modality, the questions by which it was chosen; None for every other
    row, and where the best is taken on the test answers themselves.
    """

    row: str
    task: Task
    metric: str
    modality: Modality | None
    value: Number | None
    count: int  # of items
    why: str | None = None  # there is no value, or no interval
    interval: tuple[Number, Number] | None = None  # 95 %, over patients or images
    chosen_on: Literal["validation", "training"] | None = None

    def to_json(self) -> dict[str, Any]:
        return self._leave_out_empty("chosen_on")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells ready to print. A cell is text: who makes the table formats its numbers.

    `key` is for programs that look for the table ("" if none does); the title is for people.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    key: str = ""
