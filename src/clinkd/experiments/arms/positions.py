"""Arms of a claim: the tied positions taken apart, from scratch and from a base that was trained with stock positions.

All have plain tuning, one layout, the square resample and as many steps. Only `model.positions` differs, and with
`-general` the base. What each arm does to an image is a row of docs/POSITIONS.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from clinkd.config import (
    NAMED_POSITIONS,
    AffinePositions,
    FitConfig,
    Positions,
    PretrainConfig,
    RunConfig,
)
from clinkd.experiments.arms.parts import plain
from clinkd.experiments.recipes import demo
from clinkd.experiments.rows import AblationRow, start_from_drawings
from clinkd.records import BadInput
from clinkd.settings import change_knobs

GENERAL = "-general"  # ends the names of the arms whose base was trained with stock positions
GENERAL_IMAGES = 3000  # drawings that this base learns from
GENERAL_EPOCHS = 6.0  # passes over them, of the whole model


def place_image(name: str, positions: Positions, config: RunConfig | None = None) -> RunConfig:
    """Plain tuning with these positions; all else is the run's."""
    tuned = plain(config or demo())
    return change_knobs(tuned, name=name, model=change_knobs(tuned.model, positions=positions, square=True))


def start_from_general(name: str, positions: Positions, config: RunConfig | None = None) -> RunConfig:
    """The same from a base that knows drawings of plain things, and learned them with stock positions (`mrope`).

    Its stage depends neither on the positions nor on the seed of a run, so all rows and seeds share one.
    Raises BadInput where the run brings pretrained weights: these are such a base already.
    """
    run = place_image(name, positions, config)
    if run.model.base is not None:
        raise BadInput(
            f"{name}: model.base={run.model.base} is a base with positions of its own already; leave out the rows that "
            f"end in {GENERAL} (--rows)"
        )
    known = run.model.tiny.pretrain or PretrainConfig()
    pairs = known.pairs or change_knobs(known.vision or FitConfig(), epochs=GENERAL_EPOCHS)
    return start_from_drawings(run, GENERAL_IMAGES, pairs)


_ARMS: Mapping[str, tuple[str, str, Positions]] = {  # title, the change from stock positions, and the setting
    "stock": ("Stock", "M-RoPE", NAMED_POSITIONS["mrope"]),
    "sequential": ("Sequential", "one index for every token", NAMED_POSITIONS["sequential"]),
    "stride": (
        "Stride alone", "two steps a patch, the text right behind", AffinePositions(stride=2, gap=1, resume="extent")
    ),
    "narrow": (
        "Half a step", "half a step a patch, the text right behind", AffinePositions(stride=0.5, gap=1, resume="extent")
    ),
    "gap": ("Gap alone", "equal gaps, one step a patch", AffinePositions(stride=1, gap="equal", resume="tokens")),
    "released": ("Released code", "gaps of two positions", NAMED_POSITIONS["gap"]),
    "tied": ("Tied", "both: equal gaps and two steps a patch", NAMED_POSITIONS["tied"]),
}  # fmt: skip


def _list_rows() -> dict[str, AblationRow]:
    """Each arm twice: from scratch, and from the general base."""
    rows = {}
    for ending, words, make in (("", "", place_image), (GENERAL, ", general base", start_from_general)):
        for name, (title, change, positions) in _ARMS.items():
            against = None if name == "stock" else f"stock{ending}"
            make_row = partial(make, f"{name}{ending}", positions)
            rows[f"{name}{ending}"] = AblationRow(f"{title}{words}", change, make_row, against)
    return rows


ROWS: Mapping[str, AblationRow] = _list_rows()
