"""Turn grey values into 8 bits through a window, for every kind of file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clinkd.records import BadInput
from clinkd.spelling import suggest

Values = NDArray[Any]  # one frame, or the levels that may occur in it

# Centre and width in HU. Lung, bone, brain, liver and soft tissue are the defaults of the OHIF viewer. The others are
# customary and differ by some ten HU between books: give numbers where your book differs.
PRESETS = {
    "lung": (-600, 1500),
    "mediastinum": (40, 400),
    "bone": (480, 2500),
    "brain": (40, 80),
    "stroke": (40, 40),
    "subdural": (75, 215),
    "abdomen": (60, 400),
    "liver": (90, 150),
    "soft-tissue": (40, 400),
}


class Refusal(BadInput):
    """A BadInput without the place of the error, which the caller adds."""


class GreyCurve(Protocol):
    """Maps rescaled values to 0 (black) .. 1 (white)."""

    @property
    def linear(self) -> tuple[float, float] | None:
        """Centre and width of clip((v - (centre - width / 2)) / width, 0, 1); None for any other curve."""

    def __call__(self, values: Values) -> Values: ...


@dataclass(frozen=True, slots=True)
class Window:
    """Centre and width, and the curve of grey between the ends (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""

    centre: float
    width: float
    function: str = "LINEAR_EXACT"

    def __str__(self) -> str:
        return f"{self.centre:g}/{self.width:g}"

    @property
    def _exact(self) -> tuple[float, float]:
        """Centre and width in the sense of LINEAR_EXACT."""
        return (self.centre - 0.5, self.width - 1) if self.function == "LINEAR" else (self.centre, self.width)

    @property
    def linear(self) -> tuple[float, float] | None:
        return self._exact if self.function != "SIGMOID" and self._exact[1] > 0 else None

    @property
    def usable(self) -> bool:
        return self.width >= 1 if self.function == "LINEAR" else self.width > 0

    def __call__(self, values: Values) -> Values:
        if self.function == "SIGMOID":  # 1 / (1 + exp(-4 (x - c) / w)), in a form that cannot overflow
            return (1 + np.tanh(2 * (values - self.centre) / self.width)) / 2
        centre, width = self._exact
        if width == 0:
            return (values > centre).astype(float)
        return np.clip((values - centre) / width + 0.5, 0, 1)


@dataclass(frozen=True, slots=True)
class Ramp:
    """From the least value (black) to the greatest (white); all black where the span is 0."""

    low: float
    span: float

    @property
    def linear(self) -> tuple[float, float] | None:
        return (self.low + self.span / 2, self.span) if self.span > 0 else None

    def __call__(self, values: Values) -> Values:
        return np.clip((values - self.low) / self.span, 0, 1) if self.span > 0 else np.zeros(values.shape)


def parse_window(window: str, hounsfield: bool) -> Window:
    """The window of a preset, or of centre/width. Raises Refusal for another text, or a preset without HU values."""
    if window in PRESETS:
        if not hounsfield:
            way_out = "give centre/width in its own units, or leave it out"
            raise Refusal(f"window {window!r} is for CT in Hounsfield units, which this file is not; {way_out}")
        return Window(*PRESETS[window])
    pair = re.fullmatch(r"([-+]?\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)", window)
    if pair is None or float(pair[2]) == 0 or not all(np.isfinite([float(g) for g in pair.groups()])):
        legal = f"auto, full, a number from 1, centre/width such as -600/1500, or one of {', '.join(PRESETS)}"
        raise Refusal(f"window {window!r} is not known; give {legal}{suggest(window, ('auto', 'full', *PRESETS))}")
    return Window(float(pair[1]), float(pair[2]))


@dataclass(frozen=True, slots=True)
class GreyFrame:
    """A frame after the modality LUT. Grey depends on the value alone, so each value is converted once."""

    levels: Values  # rescaled: each value that may occur, or the frame itself
    indices: Values | None  # of the value of each pixel in `levels`; None where `levels` is the frame itself
    counted: Values  # which of `levels` are finite, occur, and are no padding
    inverted: bool  # MONOCHROME1: the least value is white

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest of the counted values."""
        used = self.levels[self.counted]
        return (float(used.min()), float(used.max())) if used.size else (0.0, 0.0)

    def to_8_bit(self, grey: GreyCurve) -> NDArray[np.uint8]:
        """The frame as 8-bit grey."""
        fractions = np.nan_to_num(grey(self.levels), nan=0.0)
        fractions = 1 - fractions if self.inverted else fractions
        return self._spread_to_pixels((fractions * 255).round().astype(np.uint8))

    def to_values(self) -> NDArray[Any]:
        """The values in the smallest type that holds them, int16, uint16 or float32, which has NaN as its least number:
        a picture shows both alike."""
        for kind in (np.int16, np.uint16):
            with np.errstate(invalid="ignore"):
                whole = self.levels.astype(kind)
            if (whole == self.levels).all():
                return self._spread_to_pixels(whole)
        most = float(np.finfo(np.float32).max)
        finite = np.nan_to_num(self.levels, nan=-most, posinf=most, neginf=-most)
        return self._spread_to_pixels(np.clip(finite, -most, most).astype(np.float32))

    def _spread_to_pixels(self, values: NDArray[Any]) -> NDArray[Any]:
        return values if self.indices is None else values[self.indices]
