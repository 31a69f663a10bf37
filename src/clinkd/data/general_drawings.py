"""Drawings of plain things with their names and boxes: what a general model has seen before it meets medicine.

Other shapes, other surroundings, other colours and other names than those of the phantoms, and no medical word. Shapes
lie as those of the phantoms do: any shape, size and brightness at any place. See `clinkd.data.phantoms` for the legend.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from clinkd.config import GeneralConfig
from clinkd.data import questions
from clinkd.data.phantoms import (
    Job,
    Levels,
    Scene,
    Shape,
    World,
    draw_curves,
    draw_splits,
    draw_world,
    intersect_shapes,
    make_clouds,
    make_colour_ramp,
    make_phantom_samples,
    show_everything,
    write_drawing,
)
from clinkd.records import Box, Modality, Sample
from clinkd.storage import make_folder

LETTERS = string.ascii_lowercase

# ---- shapes: signed distance over the box, negative inside; each touches the four sides of its box ------------------


def _frame(u: Levels, v: Levels, *_: float) -> Levels:
    edge = np.maximum(np.abs(u), np.abs(v))
    return np.abs(edge - 0.84) - 0.16


def _star(u: Levels, v: Levels, *_: float) -> Levels:
    """Four points, one on each side."""
    return intersect_shapes(np.sqrt(np.abs(u)) + np.sqrt(np.abs(v)) - 1.16, np.maximum(np.abs(u), np.abs(v)) - 1) * 0.5


def _arrow(u: Levels, v: Levels, *_: float) -> Levels:
    head = intersect_shapes((np.abs(u) - v - 1) * 0.71, v)
    shaft = intersect_shapes(np.abs(u) - 0.3, np.abs(v) - 1)
    return np.minimum(head, shaft)


def _corner(u: Levels, v: Levels, *_: float) -> Levels:
    return intersect_shapes(np.minimum(u + 0.45, 0.45 - v), np.maximum(np.abs(u), np.abs(v)) - 1)


def _gate(u: Levels, v: Levels, *_: float) -> Levels:
    return intersect_shapes(np.minimum(0.5 - np.abs(u), v + 0.5), np.maximum(np.abs(u), np.abs(v)) - 1)


def _hourglass(u: Levels, v: Levels, *_: float) -> Levels:
    return intersect_shapes(np.abs(u) - np.abs(v) - 0.05, np.maximum(np.abs(u), np.abs(v)) - 1) * 0.71


def _dots(u: Levels, v: Levels, *_: float) -> Levels:
    return np.hypot(np.abs(np.abs(u) - 0.5), np.abs(np.abs(v) - 0.5)) - 0.5


def _chequers(u: Levels, v: Levels, *_: float) -> Levels:
    """Three by three squares, the corners and the middle filled."""
    third = 2 / 3
    du, dv = ((np.clip(np.round(w / third), -1, 1)) for w in (u, v))
    inside = np.maximum(np.abs(u - du * third), np.abs(v - dv * third)) - third / 2
    filled = np.where((du + dv) % 2 == 0, inside, -inside)
    return intersect_shapes(filled, np.maximum(np.abs(u), np.abs(v)) - 1)


def _join_halves(left: Shape, right: Shape) -> Shape:
    """The left half of one shape beside the right half of another."""

    def joined(u: Levels, v: Levels, half_width: float, half_height: float) -> Levels:
        sides = np.broadcast_arrays(u < 0, left(u, v, half_width, half_height), right(u, v, half_width, half_height))
        return np.where(*sides)

    return joined


_PLAIN: dict[str, Shape] = {
    "frame": _frame, "star": _star, "arrow": _arrow, "corner": _corner, "gate": _gate, "hourglass": _hourglass,
    "dots": _dots, "chequers": _chequers,
}  # fmt: skip
_BEGINNINGS = ("bro", "spu", "kla", "dri", "flo", "gna", "twi", "ple")  # of invented words, for the left half
_ENDS = ("mek", "zin", "dap", "lub", "wog", "tif", "ruv", "sob")  # for the right half
SHAPES: dict[str, Shape] = _PLAIN | {
    f"{_BEGINNINGS[i]}{_ENDS[j]}": _join_halves(left, right)
    for i, left in enumerate(_PLAIN.values())
    for j, right in enumerate(_PLAIN.values())
    if i != j
}

# ---- surroundings ---------------------------------------------------------------------------------------------------


def _paint_sky(rng: np.random.Generator, P: int, x: Levels, y: Levels) -> Levels:
    return rng.uniform(0.4, 0.5) + rng.uniform(-0.15, 0.15) * (y - 0.5) + make_clouds(rng, P, 0.08)


def _paint_bricks(rng: np.random.Generator, P: int, x: Levels, y: Levels) -> Levels:
    rows = rng.integers(5, 9)
    row = np.floor(y * rows)
    joints = ((y * rows) % 1 < 0.14) | ((x * rows / 2 + row / 2) % 1 < 0.07)
    return np.asarray(rng.uniform(0.44, 0.52) - 0.1 * joints + make_clouds(rng, P, 0.04))


def _paint_wood(rng: np.random.Generator, P: int, x: Levels, y: Levels) -> Levels:
    grain = np.cos(2 * np.pi * (y * rng.uniform(6, 12) + 0.4 * np.sin(2 * np.pi * x * rng.uniform(0.5, 1.5))))
    return np.asarray(rng.uniform(0.43, 0.51) + 0.05 * grain + make_clouds(rng, P, 0.04))


def _paint_grass(rng: np.random.Generator, P: int, x: Levels, y: Levels) -> Levels:
    blades = draw_curves(rng, P, 8, 0.012, upright=True)
    return np.asarray(rng.uniform(0.42, 0.5) + 0.1 * blades + make_clouds(rng, P, 0.12, knots=max(12, P // 6)))


_SCENES = tuple(
    Scene(show_everything, paint, make_colour_ramp(*ramp), grain)
    for paint, ramp, grain in (
        (_paint_sky, ((0, 10, 20, 60), (0.5, 110, 160, 220), (1, 250, 252, 255)), 0.02),
        (_paint_bricks, ((0, 30, 10, 8), (0.5, 170, 90, 70), (1, 250, 225, 205)), 0.03),
        (_paint_wood, ((0, 25, 15, 5), (0.5, 165, 120, 70), (1, 250, 235, 200)), 0.02),
        (_paint_grass, ((0, 5, 25, 5), (0.5, 95, 150, 70), (1, 235, 250, 205)), 0.03),
        (_paint_sky, ((0, 0, 0, 0), (1, 255, 255, 255)), 0.03),  # as a photograph without colours
        (_paint_wood, ((0, 0, 0, 0), (1, 255, 255, 255)), 0.04),
    )
)


def write_drawings(
    folder: Path, config: GeneralConfig, workers: int = 1, advance: Callable[[int], object] | None = None
) -> list[Sample]:
    """Draw the set into `folder`/images/*.png; its samples are as those of the phantoms.
    The same for any number of workers. Raises BadInput on an impossible knob or a full disk."""
    make_folder(folder / "images")
    return draw_splits(partial(_draw_job, folder, config), {"train": config.images}, workers, advance)


def _draw_job(folder: Path, config: GeneralConfig, job: Job) -> list[Sample]:
    split, numbers = job
    samples: list[Sample] = []
    for number in numbers:
        rng = np.random.default_rng([config.seed, number])
        world = World(Modality.OTHER, _SCENES[number % len(_SCENES)], SHAPES)
        drawing = draw_world(rng, world, config.structures, config.image_pixels)
        image_id = f"general_{number:05d}"
        image = write_drawing(folder, image_id, drawing)
        questions_rng = random.Random(int(rng.integers(2**62)))
        samples += make_phantom_samples(drawing, image, image_id, split, questions_rng)
        if len(drawing.structures) == 1:
            samples.append(_ask_by_invented_word(samples[-1], drawing.structures[0].box, questions_rng))
    return samples


def _ask_by_invented_word(sample: Sample, box: Box, rng: random.Random) -> Sample:
    """Ask for the only thing of an image by a word that stands nowhere else.

    No tokenizer learns it, so its letters are trained, which spell the names that the base is to meet later; and a name
    that was never heard asks for what is there.
    """
    word = "".join(rng.choice(LETTERS) for _ in range(rng.randint(4, 10)))
    turn = questions.ask_where(word, [box], rng)
    return replace(sample, id=f"{sample.images[0].path}-word", turns=(turn,), names=(word,), facts=())
