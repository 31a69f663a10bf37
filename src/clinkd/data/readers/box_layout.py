"""What the four numbers of a box mean, where a file does not say it, and how they become corners in pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clinkd.records import BadInput

BoxForm = Literal["xyxy", "xywh", "cxcywh"]
FourNumbers = tuple[float, float, float, float]

NUMBERS: dict[BoxForm, str] = {  # the four numbers of each form
    "xyxy": "[x1, y1, x2, y2]",
    "xywh": "[x, y, width, height]",
    "cxcywh": "[centre x, centre y, width, height]",
}


@dataclass(frozen=True, slots=True)
class BoxLayout:
    """The meaning of four numbers. Raises BadInput for one-based centres, which nobody counts in pixels.

    `one_based`: pixels are counted from 1, and a box holds its right column and its bottom row (Pascal VOC, Matlab).
    `y_up`: y is measured from the lower border; of two corners either may be the lower one (a head may call it bottom),
    and x, y, width, height start at the lower left corner.
    """

    form: BoxForm = "xyxy"
    one_based: bool = False
    y_up: bool = False

    def __post_init__(self) -> None:
        if self.one_based and self.form == "cxcywh":
            raise BadInput(
                "--one-based with --box-form cxcywh: a centre is not counted in pixels; leave one of them out"
            )

    def to_corners(self, numbers: FourNumbers, height: float) -> FourNumbers:
        """Left, top, right, bottom from the upper left; right and bottom exclusive. `height` is the image's.

        The unit is that of the numbers: pixels, or fractions with a height of 1.
        """
        a, b, c, d = numbers
        if self.form == "xyxy":
            low, high = sorted((b, d)) if self.y_up else (b, d)
            x1, y1, x2, y2 = a - self.one_based, low - self.one_based, c, high
        elif self.form == "xywh":
            x1, y1 = a - self.one_based, b - self.one_based
            x2, y2 = _add(x1, c), _add(y1, d)
        else:
            x1, y1, x2, y2 = _add(a, -c / 2), _add(b, -d / 2), _add(a, c / 2), _add(b, d / 2)
        return (x1, _add(height, -y2), x2, _add(height, -y1)) if self.y_up else (x1, y1, x2, y2)


CORNER_BOXES, SIZED_BOXES = BoxLayout(), BoxLayout("xywh")


def _add(a: float, b: float) -> float:
    """The sum, without what binary fractions add to decimal ones: 0.1 + 0.2 is 0.3."""
    return round(a + b, 9)


def clip_to_border(corners: FourNumbers, width: float, height: float, pixel: tuple[float, float]) -> FourNumbers:
    """The corners, where they are less than a pixel over the border put on it. `pixel` is the size of one."""
    x1, y1, x2, y2 = corners
    return (
        0 if -pixel[0] < x1 < 0 else x1,
        0 if -pixel[1] < y1 < 0 else y1,
        width if width < x2 < width + pixel[0] else x2,
        height if height < y2 < height + pixel[1] else y2,
    )


def lies_inside(corners: FourNumbers, width: float, height: float) -> bool:
    """Whether the corners are a box with an area inside the image."""
    x1, y1, x2, y2 = corners
    return 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
