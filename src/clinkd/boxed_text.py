"""Boxes, text that speaks of boxes, and the error for wrong input: the nouns that an exported model's code has, too.

Imports nothing but the standard library, as transformers runs no file of a folder that names a package not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

BOX_MARK = "[box]"
_SCHEMAS = "pydantic_core.core_schema"  # needed only where records are read


class BadInput(ValueError):
    """Wrong input of the user: one line that names the row, knob or path, the value, and the way out."""


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

    def to_json(self) -> list[float]:
        return [round(v, 6) for v in self.corners]

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> Any:
        """In files a box is the list of its corners."""
        schemas = import_module(_SCHEMAS)
        corners = schemas.tuple_schema([schemas.float_schema()] * 4)
        return schemas.no_info_after_validator_function(lambda corners: cls(*corners), corners)

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


@dataclass(frozen=True, slots=True)
class BoxedText:
    """Words with a `[box]` mark at the place of each box, and the boxes in that order.

    Raises BadInput if the numbers of marks and boxes differ.
    """

    text: str
    boxes: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        marks = self.text.count(BOX_MARK)
        if marks != len(self.boxes):
            raise BadInput(f"{marks} {BOX_MARK} marks but {len(self.boxes)} boxes in {self.text!r}")

    def to_json(self) -> Any:
        return {"text": self.text, "boxes": [box.to_json() for box in self.boxes]} if self.boxes else self.text

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: Any) -> Any:
        """In files a text without boxes is a string."""
        schemas = import_module(_SCHEMAS)
        boxes = handler.generate_schema(tuple[Box, ...])
        text = schemas.typed_dict_field(schemas.str_schema())
        both = schemas.typed_dict_schema({"text": text, "boxes": schemas.typed_dict_field(boxes)})
        return schemas.no_info_wrap_validator_function(
            lambda value, read: cls(value) if isinstance(value, str) else cls(**read(value)), both
        )

    @property
    def words(self) -> str:
        """The text without its box marks, white space folded: what a sentence embedding or a CLIP may see."""
        return " ".join(self.text.replace(BOX_MARK, " ").split())
