"""The nouns everybody uses (samples, boxes, predictions, corrections, scores, tables) and their JSON form.

Boxes are fractions of width and height, origin top left, everywhere inside the program; pixels, thousandths and
`<box>` text exist only in the codecs and readers of `clinkd.data`. Text that speaks of boxes is a `BoxedText`: the
words with a `[box]` mark at each place where a box stands, and the boxes in the order of the marks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, Self, get_args

BOX_MARK = "[box]"


class BadInput(ValueError):
    """Something the user gave is wrong: one line that names the row, knob or path, the value, and the way out."""


class Task(StrEnum):
    """The four tasks of Med-GRIT (paper, section Experiments) and plain question answering (VQA-RAD, SLAKE)."""

    VG = "VG"  # visual grounding: name -> box
    ROC = "ROC"  # referring object classification: box -> name
    RC = "RC"  # referring captioning: box -> sentence
    MIA = "MIA"  # medical image analysis: image -> sentences
    QA = "QA"  # free question -> short or open answer, no boxes


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
Side = Literal["image", "patient"]  # whose left: the picture's, or the patient's
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in fractions of the image: 0 <= x1 < x2 <= 1 (to the right), 0 <= y1 < y2 <= 1 (downwards)."""

    x1: float
    y1: float
    x2: float
    y2: float

    def __post_init__(self) -> None:
        if not (0 <= self.x1 < self.x2 <= 1 and 0 <= self.y1 < self.y2 <= 1):  # also refuses NaN
            raise BadInput(
                f"box ({self.x1:g}, {self.y1:g}, {self.x2:g}, {self.y2:g}) is empty or outside the image: "
                "fractions with 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 are wanted"
            )

    @property
    def width(self) -> float:
        return self.x2 - self.x1

    @property
    def height(self) -> float:
        return self.y2 - self.y1

    @property
    def area(self) -> float:
        return self.width * self.height

    @property
    def centre(self) -> tuple[float, float]:
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2."""
        return self.x1, self.y1, self.x2, self.y2

    def to_json(self) -> list[float]:
        return [round(v, 6) for v in self.corners]

    @classmethod
    def from_json(cls, value: list[float]) -> Self:
        return cls(*(float(v) for v in value))


@dataclass(frozen=True, slots=True)
class BoxedText:
    """Words with a `[box]` mark at the place of each box, and the boxes in that order.

    Raises BadInput where the number of marks and the number of boxes differ.
    """

    text: str
    boxes: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        marks = self.text.count(BOX_MARK)
        if marks != len(self.boxes):
            raise BadInput(f"{marks} {BOX_MARK} marks but {len(self.boxes)} boxes in {self.text!r}")

    @property
    def words(self) -> str:
        """The text without its box marks, white space folded: what a sentence embedding or a CLIP may see."""
        return " ".join(self.text.replace(BOX_MARK, " ").split())

    def to_json(self) -> Any:
        return {"text": self.text, "boxes": [b.to_json() for b in self.boxes]} if self.boxes else self.text

    @classmethod
    def from_json(cls, value: Any) -> Self:
        if isinstance(value, str):
            return cls(value)
        return cls(value["text"], tuple(Box.from_json(b) for b in value["boxes"]))


@dataclass(frozen=True, slots=True)
class Fact:
    """What a sentence states of one named structure; None where it does not say. `count` is of the whole image."""

    name: str
    size: str | None = None
    side: str | None = None
    brightness: str | None = None
    count: int | None = None

    @property
    def tuples(self) -> frozenset[tuple[str, ...]]:
        """Attribute tuples in the manner of SPICE: (name), (name, attribute, value); the count stands on its own."""
        stated = {(self.name, k, v) for k in ("size", "side", "brightness") if (v := getattr(self, k)) is not None}
        number = {("image", "count", str(self.count))} if self.count is not None else set()
        return frozenset({(self.name,)} | stated | number)

    def to_json(self) -> dict[str, Any]:
        keys = ("name", "size", "side", "brightness", "count")
        return {k: v for k in keys if (v := getattr(self, k)) is not None}


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image lies (relative to its data root) and its size in pixels after orientation is applied.

    `path#3` is the third frame of a file with several. The size is None where the image was not looked at yet.
    `orientation` is the EXIF tag that is applied on opening (1: as stored; 5 to 8 swap width and height). `window` is
    how the values of a DICOM become grey, where another than its own first one was chosen (see
    `clinkd.data.images.dicom`).
    """

    path: str
    width: int | None = None
    height: int | None = None
    orientation: int = 1
    window: str | None = None

    def to_json(self) -> dict[str, Any]:
        made: dict[str, Any] = {"path": self.path, "width": self.width, "height": self.height}
        if self.orientation != 1:
            made["orientation"] = self.orientation
        if self.window is not None:
            made["window"] = self.window
        return made


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its true answer. `task` says how the answer is judged."""

    task: Task
    question: BoxedText
    answer: BoxedText

    def to_json(self) -> dict[str, Any]:
        return {"task": self.task.value, "question": self.question.to_json(), "answer": self.answer.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(Task(value["task"]), BoxedText.from_json(value["question"]), BoxedText.from_json(value["answer"]))


@dataclass(frozen=True, slots=True)
class Sample:
    """One item to learn from or to be asked: images, a conversation, and where it comes from.

    The last turn is the one that is answered and judged; earlier turns are context. `group` is the unit that may not
    be torn between splits (patient, else image). `names` are the structures the last turn is about, `facts` what its
    truth states, both empty where the data do not say. `side` says whose left the words mean.
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

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "images": [i.to_json() for i in self.images],
            "modality": self.modality.value,
            "turns": [t.to_json() for t in self.turns],
            "group": self.group,
            "source": self.source,
            "names": list(self.names),
            "facts": [f.to_json() for f in self.facts],
            "side": self.side,
            "split": self.split,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(
            id=value["id"],
            images=tuple(ImageRef(**i) for i in value["images"]),
            modality=Modality(value["modality"]),
            turns=tuple(Turn.from_json(t) for t in value["turns"]),
            group=value["group"],
            source=value.get("source", ""),
            names=tuple(value.get("names", ())),
            facts=tuple(Fact(**f) for f in value.get("facts", ())),
            side=value.get("side", "patient"),
            split=value.get("split"),
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """One generated answer. `raw` is what the model wrote, `answer` what the codec read in it.

    `logprob` is the mean log-probability a token (natural log); `scores` maps a scorer's name to its value, higher is
    better; `unread` lists box spellings that could not be read; `truncated` says the length limit cut it.
    """

    raw: str
    answer: BoxedText
    logprob: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    truncated: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "raw": self.raw,
            "answer": self.answer.to_json(),
            "logprob": self.logprob,
            "scores": self.scores,
            "unread": list(self.unread),
            "truncated": self.truncated,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(
            raw=value["raw"],
            answer=BoxedText.from_json(value["answer"]),
            logprob=value.get("logprob"),
            scores=dict(value.get("scores", {})),
            unread=tuple(value.get("unread", ())),
            truncated=value.get("truncated", False),
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """All candidates for one sample, in the order they were generated, and which of them is the answer."""

    id: str  # of the Sample
    candidates: tuple[Candidate, ...]
    chosen: int = 0
    by: str = ""  # who answered: a checkpoint's identity, a file, a blind twin

    @property
    def answer(self) -> Candidate:
        return self.candidates[self.chosen]

    def to_json(self) -> dict[str, Any]:
        candidates = [c.to_json() for c in self.candidates]
        return {"id": self.id, "chosen": self.chosen, "by": self.by, "candidates": candidates}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        candidates = tuple(Candidate.from_json(c) for c in value["candidates"])
        return cls(id=value["id"], candidates=candidates, chosen=value["chosen"], by=value.get("by", ""))


@dataclass(frozen=True, slots=True)
class Correction:
    """What became of one reviewed answer: found right (`after` is None), corrected, or its correction rejected."""

    id: str  # of the Sample
    round: int  # from 1
    before: BoxedText  # the model's answer
    truth: BoxedText
    similarity: float  # of the box-stripped texts, 0..1
    reasons: tuple[str, ...] = ()  # why it counts as wrong: similarity, box, laterality, negation, count
    after: BoxedText | None = None
    by: str = ""  # corrector: "offline", a model's name, "human"
    rejected: str | None = None  # why the rewritten text was refused; the truth stays

    @property
    def wrong(self) -> bool:
        return bool(self.reasons)

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "round": self.round,
            "before": self.before.to_json(),
            "truth": self.truth.to_json(),
            "similarity": round(self.similarity, 4),
            "reasons": list(self.reasons),
            "after": self.after.to_json() if self.after else None,
            "by": self.by,
            "rejected": self.rejected,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(
            id=value["id"],
            round=value["round"],
            before=BoxedText.from_json(value["before"]),
            truth=BoxedText.from_json(value["truth"]),
            similarity=value["similarity"],
            reasons=tuple(value["reasons"]),
            after=BoxedText.from_json(value["after"]) if value["after"] is not None else None,
            by=value["by"],
            rejected=value["rejected"],
        )


@dataclass(frozen=True, slots=True)
class Score:
    """One figure, x100. `value` is None, with `why`, where it could not be computed: unscored is not zero.

    `row` is who answered: "model"; another choice among its candidates ("first beam", "random", "agreement", "oracle",
    "by clip": the scorer's, as if always trusted); or a blind twin ("other image", "median box", "constant", "question
    only", "images shuffled"). `modality` None means the mean over non-empty modalities.
    """

    row: str
    task: Task
    metric: str
    modality: Modality | None
    value: float | None
    count: int  # items it rests on
    why: str | None = None
    interval: tuple[float, float] | None = None  # 95 %, bootstrap by image

    def to_json(self) -> dict[str, Any]:
        return {
            "row": self.row,
            "task": self.task.value,
            "metric": self.metric,
            "modality": self.modality.value if self.modality else None,
            "value": self.value,
            "count": self.count,
            "why": self.why,
            "interval": list(self.interval) if self.interval else None,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(
            row=value["row"],
            task=Task(value["task"]),
            metric=value["metric"],
            modality=Modality(value["modality"]) if value["modality"] else None,
            value=value["value"],
            count=value["count"],
            why=value["why"],
            interval=tuple(value["interval"]) if value["interval"] else None,
        )


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells ready to print. A cell is text; numbers are formatted by whoever made the table."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
