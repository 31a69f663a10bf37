"""Arms of a claim: which rotary pairs stand for which axis, under the tied and under stock positions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import get_args

from clinkd.config import NAMED_POSITIONS, Layout, RunConfig
from clinkd.experiments.arms.positions import place_image
from clinkd.experiments.rows import AblationRow
from clinkd.settings import override

_PLAIN = "sections"  # as Qwen2-VL has them
_TITLES = {"tied": "Tied", "stock": "Stock"}


def lay_out(name: str, positions: str, layout: Layout, config: RunConfig | None = None) -> RunConfig:
    """Plain tuning with a layout of the rotary pairs; `positions`: a named setting."""
    return override(place_image(name, NAMED_POSITIONS[positions], config), [f"model.layout={layout}"])


def _list_rows() -> dict[str, AblationRow]:
    rows = {}
    for place, positions in (("stock", "mrope"), ("tied", "tied")):
        for layout in sorted(get_args(Layout), reverse=True):
            name = f"{place}-{layout}"
            against = None if layout == _PLAIN else f"{place}-{_PLAIN}"
            make = partial(lay_out, name, positions, layout)
            rows[name] = AblationRow(f"{_TITLES[place]}, {layout}", f"layout {layout}", make, against)
    return rows


ROWS: Mapping[str, AblationRow] = _list_rows()
