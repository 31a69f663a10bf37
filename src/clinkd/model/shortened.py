"""Short copies of a deep base: a block of each kind, and more of each kind in turn.

Blocks of a kind take equal time and memory, so that both grow evenly with their number. What copies take therefore
tells what the base takes, without a step of the whole base.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors.torch import save_file

from clinkd.config import ModelConfig
from clinkd.model.families import read_family
from clinkd.model.folders import INDEX, opened_folder

BLOCK = re.compile(r"(?<=\.)(?:layers|blocks)\.(\d+)(?=\.)")
TOWER = re.compile(r"(?:^|\.)(?:visual|vision_tower)\.")
# a merger of its own for each block of the tower whose features the text gets, too, in the order of these blocks
DEEP_MERGER = re.compile(r"(?<=\.deepstack_merger_list\.)(\d+)(?=\.)")
DEEP = "deepstack_visual_indexes"


@dataclass(frozen=True)
class BlockKind:
    """A kind of blocks of a part ("text", "vision"), and where they are in it."""

    part: str
    name: str
    places: tuple[int, ...]


def list_block_kinds(knobs: ModelConfig) -> list[BlockKind]:
    """The kinds of blocks of the base of `knobs`. Raises BadInput where the folder is none of any family."""
    assert knobs.base
    family, config = read_family(knobs.base, knobs)
    return [
        BlockKind(part, name, tuple(place for place, own in enumerate(names) if own == name))
        for part, names in family.list_blocks(config).items()
        for name in Counter(names)
    ]


def shorten(knobs: ModelConfig, numbers: Mapping[BlockKind, int], folder: Path) -> None:
    """Write the base of `knobs` (of an adapter its base) with so many blocks of each kind, the first ones.

    Only weights that stay are read. Raises BadInput as `opened_folder`.
    """
    assert knobs.base
    family, config = read_family(knobs.base, knobs)
    kept = {
        part: sorted(p for kind, number in numbers.items() if kind.part == part for p in kind.places[:number])
        for part in ("text", "vision")
    }
    deep = [place for kind in numbers if kind.name == DEEP for place in kind.places]
    mergers = [number for number, place in enumerate(deep) if place in kept["vision"]]
    folder.mkdir(parents=True)
    family.keep_blocks(config, kept).save_pretrained(folder)
    with opened_folder(knobs.base, "a vision-language model", adapters=True) as opened:
        weights = opened.pick_weights(partial(_rename, kept={**kept, "mergers": mergers}))
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        for path in opened.path.iterdir():
            if path.suffix != ".safetensors" and path.name != "config.json" and not path.name.endswith(INDEX):
                shutil.copyfile(path, folder / path.name)


def _rename(name: str, kept: Mapping[str, Sequence[int]]) -> str | None:
    """A weight's name in the copy; None where its block is left out."""
    part = "vision" if TOWER.search(name) else "text"
    new_name: str | None = name
    for pattern, places in ((BLOCK, kept[part]), (DEEP_MERGER, kept["mergers"])):
        new_name = new_name and _renumber(new_name, pattern, places)
    return new_name


def _renumber(name: str, pattern: re.Pattern[str], places: Sequence[int]) -> str | None:
    """The name with its number among `places`; None where it is not among them, as it is if it has no number."""
    match = pattern.search(name)
    if match is None:
        return name
    if int(match[1]) not in places:
        return None
    return f"{name[: match.start(1)]}{places.index(int(match[1]))}{name[match.end(1) :]}"
