"""Phantoms: eight kinds of medical image drawn by numpy, with named structures, boxes, questions and true answers.

Only its outline or stripes reveal the name of a structure. Box (place, size, aspect), brightness and count are drawn
first and do not depend on the name. Every shape is fitted to its box and covers about half of it. So neither modality,
place nor colour reveals a name (measured by `clinkd.data.checks.guessability`).

Legend: levels are brightness in 0..1 before the colours of a modality; `u, v` run from -1 to 1 over a box, `x, y` from
0 to 1 over the image (right, down); P is the number of pixels a side.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clinkd.config import PhantomConfig
from clinkd.data import questions
from clinkd.data.images import encode_picture
from clinkd.language.facts import Lexicon
from clinkd.records import PAPER_MODALITIES, SPLITS, BadInput, Box, Fact, ImageRef, Modality, Sample, Split
from clinkd.storage import make_folder, naming_full_disk

Size = Literal["small", "large"]
Place = Literal["left", "right"]
Brightness = Literal["dark", "bright"]
Levels = NDArray[np.float64]

MOST_STRUCTURES = 4  # more do not fit beside each other
LEAST_PIXELS = 48  # below this the shapes cannot be told apart
GAP = 0.03  # between two boxes, and from a box to the border of the image
OFF_CENTRE = 0.07  # least distance of the centre of a box from the middle line, so that left and right are clear
ALONE = 0.4  # share of images with one structure, where more are allowed
PITCH = 0.105  # from stripe to stripe, about this fraction of the image
REPEATS = 0.06  # share of later structures that repeat a name of the same image
LONGEST = {"small": (0.195, 0.255), "large": (0.355, 0.425)}  # longest side, fractions; a pixel of slack on both ends
ASPECT = (0.78, 1.0)  # shorter / longer side
CONTRAST = (0.42, 0.55)  # level of a structure above or below its surroundings
_NUMBER_WORDS = ("no", "one", "two", "three", "four")
_MODALITY_PHRASES = {
    Modality.CT: "A CT", Modality.MR: "An MR", Modality.XRAY: "An X-ray", Modality.PET: "A PET",
    Modality.ENDOSCOPY: "An endoscopy", Modality.DERMOSCOPY: "A dermoscopy", Modality.FUNDUS: "A fundus",
    Modality.ULTRASOUND: "An ultrasound", Modality.OTHER: "A general",
}  # fmt: skip


# --- shapes: signed distance to the edge in units of the box, negative inside. Each covers about half of its box, with
# blunt tips, so that its pixels reach the sides of the box.


def intersect_shapes(a: Levels, b: Levels) -> Levels:
    """The part that two shapes share."""
    return np.asarray(np.maximum(a, b))


def _ring(u: Levels, v: Levels, *_: float) -> Levels:
    return np.abs(np.hypot(u, v) - 0.795) - 0.205


def _triangle(u: Levels, v: Levels, *_: float) -> Levels:
    return intersect_shapes((2.12 * np.abs(u) - v - 1.12) / 5**0.5, np.abs(v) - 1)


def _cross(u: Levels, v: Levels, *_: float) -> Levels:
    u, v = np.abs(u), np.abs(v)
    return intersect_shapes(np.minimum(u, v) - 0.305, np.maximum(u, v) - 1)


def _crescent(u: Levels, v: Levels, *_: float) -> Levels:
    x = (u + 1) * 0.84 - 1  # the horns end at 0.72: the right side of the box cuts their tips
    return intersect_shapes(intersect_shapes(np.hypot(x, v) - 1, 0.73 - np.hypot(x - 0.5, v)), u - 1)


def _bars(u: Levels, v: Levels, half_width: float, half_height: float) -> Levels:
    """Stripes of one pitch in any box: a local pattern, which a small vision tower learns before any outline."""
    stripes = max(2, round(2 * half_height / PITCH))
    half = 0.52 / stripes  # half the thickness; the first and the last stripe lie on the border
    step = (2 - 2 * half) / (stripes - 1)
    nearest = np.clip(np.round((v + 1 - half) / step), 0, stripes - 1) * step + half - 1
    return intersect_shapes(np.abs(v - nearest) - half, np.abs(u) - 1)


def _columns(u: Levels, v: Levels, half_width: float, half_height: float) -> Levels:
    return _bars(v, u, half_height, half_width)


def _diamond(u: Levels, v: Levels, *_: float) -> Levels:
    u, v = np.abs(u), np.abs(v)
    return intersect_shapes((u + v - 1.03) * 0.71, np.maximum(u, v) - 1)


# Signed distance over a box (u, v). Its half sides, the last two arguments, are fractions of the image.
Shape = Callable[[Levels, Levels, float, float], Levels]

STRUCTURES: dict[Modality, dict[str, Shape]] = {
    Modality.CT: {"liver": _triangle, "kidney": _columns, "vertebra": _bars},
    Modality.MR: {"glioma": _ring, "ventricle": _columns, "cerebellum": _bars},
    Modality.XRAY: {"heart": _columns, "cavity": _ring, "atelectasis": _bars},
    Modality.PET: {"myocardium": _crescent, "lymphoma": _columns, "metastasis": _bars},
    Modality.ENDOSCOPY: {"polyp": _diamond, "ulcer": _columns, "fold": _bars},
    Modality.DERMOSCOPY: {"melanoma": _cross, "angioma": _columns, "nevus": _bars},
    Modality.FUNDUS: {"optic disc": _ring, "hard exudate": _columns, "hemorrhage": _bars},
    Modality.ULTRASOUND: {"gallbladder": _crescent, "thyroid": _columns, "gallstone": _bars},
}
NAMES = tuple(name for shapes in STRUCTURES.values() for name in shapes)
LEXICON = Lexicon(NAMES, get_args(Size), get_args(Place), get_args(Brightness))


@dataclass(frozen=True, slots=True)
class Structure:
    """One organ or lesion: the facts in the answers, and the tight box of its pixels."""

    name: str
    size: Size
    side: Place  # of the image
    brightness: Brightness  # compared with its surroundings
    box: Box


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """A drawn image, uint8 [P, P, 3], and its structures, from left to right."""

    image: NDArray[np.uint8]
    modality: Modality
    structures: tuple[Structure, ...]


def draw_phantom(
    rng: np.random.Generator, modality: Modality, structures: int = 2, pixels: int = 96, names: Sequence[str] = ()
) -> Drawing:
    """One image of 1..`structures` structures. `names` gives the names to take first; without it they are random.

    Raises BadInput where so many structures do not fit, or `pixels` are too few to tell the shapes apart.
    """
    return draw_world(rng, World(modality, _SCENES[modality], STRUCTURES[modality]), structures, pixels, names)


class World(NamedTuple):
    """What an image of a kind can hold: shapes by their names, in their surroundings."""

    modality: Modality
    scene: Scene
    shapes: Mapping[str, Shape]


def draw_world(
    rng: np.random.Generator, world: World, structures: int, pixels: int, names: Sequence[str] = ()
) -> Drawing:
    """As `draw_phantom`, of any world."""
    _check_settings(structures, pixels)
    scene = world.scene
    plans = _place_boxes(rng, scene.visible, _choose_count(rng, structures))
    levels = scene.paint(rng, pixels, *_make_grid(pixels))
    drawn = []
    for plan, name in zip(plans, _choose_names(rng, list(world.shapes), len(plans), names), strict=True):
        brightness: Brightness = "bright" if rng.random() < 0.5 else "dark"
        contrast = rng.uniform(*CONTRAST) * (1 if brightness == "bright" else -1)
        box = _draw_shape(levels, world.shapes[name], plan, contrast)
        side: Place = "left" if box.centre[0] < 0.5 else "right"
        drawn.append(Structure(name, plan.size, side, brightness, box))
    noisy = levels + rng.standard_normal(levels.shape) * scene.grain * (levels > 0)
    image = scene.colours[(np.clip(noisy, 0, 1) * 255).astype(np.uint8)]
    return Drawing(image, world.modality, tuple(sorted(drawn, key=lambda s: s.box.centre)))


def _choose_count(rng: np.random.Generator, most: int) -> int:
    return 1 if most == 1 or rng.random() < ALONE else int(rng.integers(2, most + 1))


def _check_settings(structures: int, pixels: int) -> None:
    if not 1 <= structures <= MOST_STRUCTURES:
        raise BadInput(f"data.phantoms.structures={structures}: 1..{MOST_STRUCTURES} fit in an image")
    if pixels < LEAST_PIXELS:
        raise BadInput(f"data.phantoms.image_pixels={pixels}: the shapes need {LEAST_PIXELS} pixels or more")


def _choose_names(rng: np.random.Generator, known: Sequence[str], count: int, order: Sequence[str]) -> list[str]:
    """`count` names in random order, distinct as long as they last, except for a few repeats."""
    order = order or [known[i] for i in rng.permutation(len(known))]
    names: list[str] = []
    while len(names) < count:
        unused = [n for n in order if n not in names]
        repeat = names and (not unused or rng.random() < REPEATS)
        names.append(names[rng.integers(len(names))] if repeat else unused[0])
    return [names[i] for i in rng.permutation(count)]


@dataclass(frozen=True, slots=True)
class _StructurePlacement:
    """Where to draw a structure: centre and half sides, fractions of the image."""

    size: Size
    x: float
    y: float
    half_width: float
    half_height: float


Visible = Callable[[Levels, Levels], NDArray[np.bool_]]  # which places (x, y) the field of the modality shows


def _place_boxes(rng: np.random.Generator, visible: Visible, count: int) -> list[_StructurePlacement]:
    """Places of `count` boxes: uniform over all that are visible, off the middle line and not near each other."""
    for _ in range(5000):
        sizes: list[Size] = ["small" if rng.random() < 0.5 else "large" for _ in range(count)]
        longest = np.array([rng.uniform(*LONGEST[s]) for s in sizes])
        shortest = longest * rng.uniform(*ASPECT, count)
        flat = rng.random(count) < 0.5
        half_C2 = np.stack([np.where(flat, longest, shortest), np.where(flat, shortest, longest)], 1) / 2
        for _ in range(8 if count < 3 else 2):  # the same sizes again: large ones rarely fit, and would become rare
            centre_TC2 = rng.uniform(half_C2 + GAP, 1 - half_C2 - GAP, (256, count, 2))
            fits_T = _find_fitting(centre_TC2, half_C2, visible)
            if fits_T.any():
                places = zip(sizes, centre_TC2[fits_T.argmax()].tolist(), half_C2.tolist(), strict=True)
                return [_StructurePlacement(size, *centre, *half_sides) for size, centre, half_sides in places]
    raise AssertionError(f"{count} structures found no room")


def _find_fitting(centre_TC2: Levels, half_C2: Levels, visible: Visible) -> NDArray[np.bool_]:
    """Which of T tries to place C boxes (centres, half sides) are valid: [T]."""
    fits_T = (np.abs(centre_TC2[..., 0] - 0.5) > OFF_CENTRE).all(1)
    for corner in itertools.product((-1, 1), repeat=2):  # enough, as the fields are convex
        corners = centre_TC2 + half_C2 * np.array(corner)
        fits_T &= visible(corners[..., 0], corners[..., 1]).all(1)
    for i, j in itertools.combinations(range(len(half_C2)), 2):
        between = np.abs(centre_TC2[:, i] - centre_TC2[:, j]) - half_C2[i] - half_C2[j]
        fits_T &= between.max(1) > GAP
    return np.asarray(fits_T)


def _draw_shape(levels: Levels, shape: Shape, plan: _StructurePlacement, contrast: float) -> Box:
    """Draw one shape into `levels` in place. Its box encloses all pixels that are at least half covered."""
    P = len(levels)
    left, u = _span_pixels(plan.x, plan.half_width, P)
    top, v = _span_pixels(plan.y, plan.half_height, P)
    half_side = min(plan.half_width, plan.half_height)
    distance = shape(u[None, :], v[:, None], plan.half_width, plan.half_height) * half_side * P  # in pixels
    cover = np.clip(0.5 - distance, 0, 1)
    levels[top : top + len(v), left : left + len(u)] += contrast * cover
    rows, columns = np.nonzero(cover >= 0.5)
    x1, y1 = left + int(columns.min()), top + int(rows.min())
    x2, y2 = left + int(columns.max()) + 1, top + int(rows.max()) + 1
    return Box(x1 / P, y1 / P, x2 / P, y2 / P)


def _span_pixels(centre: float, half_side: float, P: int) -> tuple[int, Levels]:
    """Along one axis: the first pixel that a structure may touch, and u or v from this pixel to the last one."""
    first, end = int((centre - half_side) * P) - 1, int((centre + half_side) * P) + 2
    return first, ((np.arange(first, end) + 0.5) / P - centre) / half_side


# --- scenes: the surroundings of the structures


@dataclass(frozen=True, slots=True)
class Scene:
    visible: Visible  # where structures may lie
    paint: Callable[[np.random.Generator, int, Levels, Levels], Levels]  # [P, P]; exactly 0 outside the field
    colours: NDArray[np.uint8]  # [256, 3], of a level
    grain: float  # standard deviation of the noise, in levels


def _measure_oval(x: Levels, y: Levels, rx: float, ry: float, power: float, cy: float = 0.5) -> Levels:
    """0 at the centre, 1 on the rim of a superellipse."""
    return (np.abs((x - 0.5) / rx) ** power + np.abs((y - cy) / ry) ** power) ** (1 / power)


@lru_cache(maxsize=8)
def _make_grid(P: int) -> tuple[Levels, Levels]:
    axis = (np.arange(P) + 0.5) / P
    x, y = np.meshgrid(axis, axis)
    return x, y


@lru_cache(maxsize=8)
def _make_wave_weights(P: int, knots: int) -> Levels:
    """Weights of the smooth interpolation from `knots` values to P, [P, knots]."""
    positions = np.linspace(0, knots - 1, P)
    weight = np.exp(-((positions[:, None] - np.arange(knots)[None]) ** 2) / 0.7)
    return np.asarray(weight / weight.sum(1, keepdims=True))


def make_clouds(rng: np.random.Generator, P: int, strength: float, knots: int = 6) -> Levels:
    """Slow unevenness of the background, zero on average."""
    waves = _make_wave_weights(P, knots)
    return strength * (waves @ rng.uniform(-1, 1, (knots, knots)) @ waves.T)


def draw_curves(rng: np.random.Generator, P: int, count: int, thickness: float, upright: bool) -> Levels:
    """Coverage 0..1 of thin bent lines across the whole image."""
    x, y = _make_grid(P)
    along, across = (y, x) if upright else (x, y)
    start, slope, bend = rng.uniform(0.05, 0.95, count), rng.uniform(-0.5, 0.5, count), rng.uniform(-0.8, 0.8, count)
    cover = np.zeros((P, P))
    for a, b, c in zip(start, slope, bend, strict=True):
        t = along - 0.5
        distance = np.abs(across - (a + b * t + c * t * t))
        np.maximum(cover, np.clip(1 - distance / thickness, 0, 1), out=cover)
    return cover


def make_colour_ramp(*stops: tuple[float, int, int, int]) -> NDArray[np.uint8]:
    """Colours [256, 3] of a level, linear between stops (level, red, green, blue)."""
    positions = np.linspace(0, 1, 256)
    levels = [s[0] for s in stops]
    return np.stack([np.interp(positions, levels, [s[c] for s in stops]) for c in (1, 2, 3)], 1).astype(np.uint8)


def _choose_base_level(rng: np.random.Generator) -> float:
    return float(rng.uniform(0.43, 0.51))


def _paint_ct(rng: np.random.Generator, P: int, x: Levels, y: Levels) -> Levels:
    rim = _measure_oval(x, y, 0.48, 0.44, 2.8, cy=0.47)
    levels = _choose_base_level(rng) + make_clouds(rng, P, 0.05)
    levels = np.where(rim > 0.93, levels + 0.17, levels)  # fat under the skin
    levels *= rim < 1
    table = np.abs(y - 0.94 + 0.25 * (x - 0.5) ** 2) < 0.012
    return np.where(table & (rim >= 1), 0.6, levels)


def _paint_mr(rng: np.random.Generator, P: int, x: Levels, y: Levels) -> Levels:
    rim = _measure_oval(x, y, 0.475, 0.49, 2.6)
    turn = np.arctan2(y - 0.5, x - 0.5)
    folds = np.cos(turn * 17 + rng.uniform(0, 6.3)) * np.clip((rim - 0.62) * 4, 0, 1)
    levels = _choose_base_level(rng) + make_clouds(rng, P, 0.05) + 0.06 * folds
    levels = levels - 0.10 * np.clip(1 - np.abs(x - 0.5 - rng.uniform(-0.01, 0.01)) / 0.012, 0, 1)  # midline
    levels = np.where(rim > 0.89, 0.06, levels)  # skull
    levels = np.where(rim > 0.945, 0.85, levels)  # scalp
    return np.asarray(levels * (rim < 1))


def _paint_xray(rng: np.random.Generator, P: int, x: Levels, y: Levels) -> Levels:
    levels = _choose_base_level(rng) + 0.04 + make_clouds(rng, P, 0.03)
    for centre in (0.27, 0.73):
        lung = np.hypot((x - centre) / 0.21, (y - 0.5) / 0.40)
        levels = levels - 0.13 * np.clip((1 - lung) * 4, 0, 1)
    bow = y + 0.35 * (np.abs(x - 0.5) - 0.25) ** 2 - 0.22 * np.abs(x - 0.5) + float(rng.uniform(0, 0.1))
    levels = levels + 0.07 * np.clip(np.cos(bow * 2 * np.pi * 8) * 1.6 - 0.6, 0, 1) * (np.abs(x - 0.5) > 0.07)  # ribs
    levels = levels + 0.07 * (np.abs(x - 0.5) < 0.05) * (0.7 + 0.3 * np.cos(y * 2 * np.pi * 11))  # spine
    return np.asarray(levels)


def _paint_pet(rng: np.random.Generator, P: int, x: Levels, y: Levels) -> Levels:
    rim = _measure_oval(x, y, 0.46, 0.485, 2.8)
    levels = _choose_base_level(rng) + make_clouds(rng, P, 0.08, knots=9)
    return np.asarray(levels * np.clip((1 - rim) * 9, 0, 1))


def _paint_endoscopy(rng: np.random.Generator, P: int, x: Levels, y: Levels) -> Levels:
    rim = _measure_oval(x, y, 0.49, 0.49, 5)
    levels = _choose_base_level(rng) + 0.05 + make_clouds(rng, P, 0.05)
    cx, cy = rng.uniform(0.35, 0.65, 2)
    lumen = np.hypot(x - cx, y - cy)
    levels = levels - 0.08 * np.exp(-((lumen / 0.16) ** 2)) + 0.025 * np.cos(lumen * 40) - 0.12 * rim**3
    levels = levels + 0.10 * draw_curves(rng, P, 3, 0.012, upright=False) * -1
    return np.asarray(levels * (rim < 1))


def _paint_dermoscopy(rng: np.random.Generator, P: int, x: Levels, y: Levels) -> Levels:
    levels = _choose_base_level(rng) + 0.05 + make_clouds(rng, P, 0.04)
    levels = levels - 0.18 * np.clip(np.hypot(x - 0.5, y - 0.5) - 0.42, 0, 1) * 3
    hairs = np.maximum(draw_curves(rng, P, 3, 0.010, upright=True), draw_curves(rng, P, 2, 0.010, upright=False))
    return np.asarray(levels - 0.18 * hairs)


def _paint_fundus(rng: np.random.Generator, P: int, x: Levels, y: Levels) -> Levels:
    rim = np.hypot(x - 0.5, y - 0.5) / 0.53
    levels = _choose_base_level(rng) + make_clouds(rng, P, 0.04) - 0.08 * rim**4
    hub = abs(rng.integers(2) - rng.uniform(0.02, 0.12))  # from one side vessels arch above and below the middle
    reach = np.abs(y - 0.5)
    for opening, thickness in ((0.9, 0.016), (1.6, 0.012), (2.9, 0.012)):
        bowl = np.abs(reach**2 * opening * 1.6 - np.abs(x - hub) * 0.35 * opening + rng.uniform(-0.01, 0.01))
        levels = levels - 0.10 * np.clip(1 - bowl / (thickness * 1.6), 0, 1)
    return np.asarray(levels * (rim < 1))


def _paint_ultrasound(rng: np.random.Generator, P: int, x: Levels, y: Levels) -> Levels:
    depth = np.hypot(x - 0.5, y + 0.25)
    speckle = make_clouds(rng, P, 0.18, knots=max(16, P // 4))
    levels = _choose_base_level(rng) + make_clouds(rng, P, 0.04) + speckle + 0.04 * np.cos(depth * 30)
    fan = (np.abs(x - 0.5) < 0.80 * (y + 0.25)) & (depth < 1.22) & (depth > 0.30)
    return np.asarray(np.clip(levels, 0.01, 1) * fan)


def show_everything(x: Levels, y: Levels) -> NDArray[np.bool_]:
    return np.ones(x.shape, bool)


def _show_fan(x: Levels, y: Levels) -> NDArray[np.bool_]:
    depth = np.hypot(x - 0.5, y + 0.25)
    return (np.abs(x - 0.5) < 0.80 * (y + 0.25) - 0.02) & (depth < 1.20) & (depth > 0.33)


_GREY = make_colour_ramp((0, 0, 0, 0), (1, 255, 255, 255))
_COLD_GREY = make_colour_ramp((0, 4, 8, 16), (1, 238, 246, 255))
_HOT = make_colour_ramp((0, 0, 0, 0), (0.35, 120, 8, 4), (0.65, 245, 120, 0), (1, 255, 255, 200))
_MUCOSA = make_colour_ramp((0, 0, 0, 0), (0.12, 60, 8, 10), (0.5, 205, 98, 92), (1, 255, 235, 225))
_SKIN = make_colour_ramp((0, 20, 10, 8), (0.25, 84, 52, 40), (0.55, 214, 164, 136), (1, 255, 246, 236))
_RETINA = make_colour_ramp((0, 0, 0, 0), (0.15, 70, 14, 4), (0.5, 214, 104, 28), (1, 255, 244, 150))
_SCENES: dict[Modality, Scene] = {
    Modality.CT: Scene(lambda x, y: _measure_oval(x, y, 0.445, 0.405, 2.8, cy=0.47) < 1, _paint_ct, _GREY, 0.025),
    Modality.MR: Scene(lambda x, y: _measure_oval(x, y, 0.42, 0.432, 2.6) < 1, _paint_mr, _GREY, 0.02),
    Modality.XRAY: Scene(show_everything, _paint_xray, _COLD_GREY, 0.02),
    Modality.PET: Scene(lambda x, y: _measure_oval(x, y, 0.43, 0.455, 2.8) < 1, _paint_pet, _HOT, 0.025),
    Modality.ENDOSCOPY: Scene(lambda x, y: _measure_oval(x, y, 0.475, 0.475, 5) < 1, _paint_endoscopy, _MUCOSA, 0.02),
    Modality.DERMOSCOPY: Scene(show_everything, _paint_dermoscopy, _SKIN, 0.02),
    Modality.FUNDUS: Scene(lambda x, y: np.hypot(x - 0.5, y - 0.5) < 0.51, _paint_fundus, _RETINA, 0.02),
    Modality.ULTRASOUND: Scene(_show_fan, _paint_ultrasound, _GREY, 0.05),
}


# --- words


def _write_caption(s: Structure) -> str:
    """The caption of a structure for the referring task."""
    return f"A {s.size} {s.brightness} {s.name} on the {s.side} side of the image."


def _write_summary(drawing: Drawing) -> str:
    """The analysis of a whole image: its kind, the count, then each structure from left to right."""
    count = len(drawing.structures)
    counted = f"{_NUMBER_WORDS[count]} structure{'s' if count > 1 else ''}"
    head = f"{_MODALITY_PHRASES[drawing.modality]} image with {counted}."
    sentences = [f"On the {s.side} there is a {s.size} {s.brightness} {s.name}." for s in drawing.structures]
    return " ".join([head, *sentences])


def make_phantom_samples(
    drawing: Drawing, image: ImageRef, image_id: str, split: Split, rng: random.Random
) -> list[Sample]:
    """All questions about a drawing: VG for each name, ROC and RC for each structure, one MIA."""

    sample = partial(
        Sample, images=(image,), modality=drawing.modality, group=image_id, source="phantom", side="image", split=split
    )
    structures = drawing.structures
    names = tuple(dict.fromkeys(s.name for s in structures))
    samples = []
    for number, name in enumerate(names, start=1):
        turn = questions.ask_where(name, [s.box for s in structures if s.name == name], rng)
        samples.append(sample(id=f"{image_id}-vg{number}", turns=(turn,), names=(name,)))
    for number, s in enumerate(structures, start=1):
        turn = questions.ask_what(s.box, s.name, rng)
        samples.append(sample(id=f"{image_id}-roc{number}", turns=(turn,), names=(s.name,)))
        turn = questions.ask_description(s.box, _write_caption(s), rng)
        facts = (Fact(s.name, s.size, s.side, s.brightness),)
        samples.append(sample(id=f"{image_id}-rc{number}", turns=(turn,), names=(s.name,), facts=facts))
    turn = questions.ask_overall(_write_summary(drawing), rng)
    all_facts = tuple(Fact(s.name, s.size, s.side, s.brightness, len(structures)) for s in structures)
    return [*samples, sample(id=f"{image_id}-mia", turns=(turn,), names=names, facts=all_facts)]


# --- files


Job = tuple[Split, range]  # numbers of images, counted within the split


def write_phantoms(
    folder: Path, config: PhantomConfig, seed: int, workers: int = 1, advance: Callable[[int], object] | None = None
) -> list[Sample]:
    """Draw the whole set into `folder`/images/*.png and return its samples; paths are relative to `folder`.

    An image depends only on seed, split and number: it is the same for any number of workers, and when another split
    grows. Modalities and orders of names alternate, so that each split is balanced. `advance` gets the number of newly
    finished images. Raises BadInput on an impossible knob or a full disk.
    """
    _check_settings(config.structures, config.image_pixels)
    make_folder(folder / "images")
    counts: dict[Split, int] = {
        "train": config.train_images, "validation": config.validation_images, "test": config.test_images
    }  # fmt: skip
    return draw_splits(partial(_draw_job, folder, config, seed), counts, workers, advance)


def draw_splits(
    draw: Callable[[Job], list[Sample]],
    counts: Mapping[Split, int],
    workers: int,
    advance: Callable[[int], object] | None = None,
) -> list[Sample]:
    """The samples of so many images a split, which `draw` draws in processes, a job at a time."""
    jobs: list[Job] = [
        (split, range(first, min(first + 64, total)))
        for split, total in counts.items()
        for first in range(0, total, 64)
    ]
    samples: list[Sample] = []
    for (_, numbers), drawn in zip(jobs, _draw_jobs(draw, jobs, workers), strict=True):
        samples.extend(drawn)
        if advance is not None:
            advance(len(numbers))
    return samples


def _draw_jobs(draw: Callable[[Job], list[Sample]], jobs: Sequence[Job], workers: int) -> Iterator[list[Sample]]:
    if min(workers, len(jobs) // 4) <= 1:  # starting processes takes longer than a few hundred images
        yield from map(draw, jobs)
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(draw, jobs)
        except BaseException:  # do not draw the rest first
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def write_drawing(folder: Path, image_id: str, drawing: Drawing) -> ImageRef:
    """Write a drawing as `folder`/images/ID.png. Raises BadInput on a full disk."""
    image = ImageRef(f"images/{image_id}.png", *drawing.image.shape[:2])
    with naming_full_disk(folder / image.path):
        (folder / image.path).write_bytes(encode_picture(Image.fromarray(drawing.image), compress_level=1))
    return image


def _draw_job(folder: Path, config: PhantomConfig, seed: int, job: Job) -> list[Sample]:
    """Draw the images of a job; returns their samples of the tasks in the config."""
    split, numbers = job
    samples: list[Sample] = []
    for number in numbers:
        modality = PAPER_MODALITIES[number % len(PAPER_MODALITIES)]
        orders = list(itertools.permutations(STRUCTURES[modality]))
        rng = np.random.default_rng([seed, SPLITS.index(split), number])
        names = orders[number // len(PAPER_MODALITIES) % len(orders)]
        drawing = draw_phantom(rng, modality, config.structures, config.image_pixels, names)
        image_id = f"{modality}_{split}_{number:05d}"
        image = write_drawing(folder, image_id, drawing)
        questions_rng = random.Random(int(rng.integers(2**62)))
        samples += make_phantom_samples(drawing, image, image_id, split, questions_rng)
    return [s for s in samples if s.task.value in config.tasks]
