"""What an object states: an answer about one frame of an image, who gave it, and what is not known about it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Self

from clinkd.records import BadInput, Box

NOTICE = "Research use only. Not for diagnosis or treatment. Made by a program and not verified."
SCHEME = "99CLINKD"  # our private codes (PS3.16 8.2: a designator that begins with 99 is private)

WARNINGS = {  # kinds of warnings, and their meanings as codes
    "no_box": "No box given, though the question asks for a place",
    "unknown_name": "The question has a name that the model never learned",
    "unseen_modality": "The model never saw images of this modality",
    "other_side": "The answer names the other side than the question",
    "training_image": "The model learned from this image",
}


@dataclass(frozen=True, slots=True)
class Region:
    """A box in an answer. `label` names the finding ("" where unknown); `by` drew the box."""

    box: Box
    label: str
    by: Literal["model", "person"]


@dataclass(frozen=True, slots=True)
class Model:
    """The model that gave the answer. `version` tells it from every other one of that name: a hash is best."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class ReportedAnswer:
    """An answer about one frame, counted from 1 (None: the first).

    `confidence`: the calibrated probability that the answer is right, where there is one; `warnings`: kind and message
    of each, see `WARNINGS`; `answered`: when the answer was given, by default now.
    """

    question: str
    answer: str
    regions: Sequence[Region]
    model: Model
    frame: int | None = None
    confidence: float | None = None
    warnings: Sequence[tuple[str, str]] = ()
    answered: datetime | None = None

    def __post_init__(self) -> None:
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            raise BadInput(f"confidence = {self.confidence}: a probability from 0 to 1 is wanted")
        if unknown := next((kind for kind, _ in self.warnings if kind not in WARNINGS), None):
            raise BadInput(f"warning = {unknown}: the kinds are {', '.join(WARNINGS)}")


def derive_uid(*parts: object) -> str:
    """A UID made from parts by UUID5 (PS3.5 B.2): the same parts give the same UID."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, repr(('clinkd', *parts))).int}"


@dataclass(frozen=True, slots=True)
class Identity:
    """The UIDs of what an answer about an image becomes. Study, image, frame, model, question and all that is said
    decide them, so that an object that is made again is the same object, and an edited answer is another one."""

    study: str
    series: str  # of the image
    model: Model
    said: str

    @classmethod
    def of(cls, told: ReportedAnswer, study: str, series: str, frame: tuple[str, int]) -> Self:
        regions = [(region.box.corners, region.label, region.by) for region in told.regions]
        warnings = [tuple(warning) for warning in told.warnings]
        said = repr((frame, told.question, told.answer, regions, told.confidence, warnings))
        return cls(study, series, told.model, said)

    def series_uid(self, modality: str) -> str:
        """One series for all answers of a model about a series of images."""
        return derive_uid(modality, self.study, self.series, self.model)

    def instance_uid(self, modality: str) -> str:
        return derive_uid(modality, self.study, self.series, self.model, self.said)

    def tracking_uid(self, number: int) -> str:
        """Of a region, the same in each object; 0: of the answer as a whole."""
        return derive_uid("region", self.study, self.series, self.model, self.said, number)

    def instance_number(self, modality: str) -> int:
        """A number that two answers of a series hardly share."""
        return 1 + int(self.instance_uid(modality).removeprefix("2.25.")) % 999_999_999
