"""How often a class can be guessed without the image: from its usual box, its modality, its place, or one colour.

If classes can be guessed, a data set teaches a model to guess. Each guess leaves out the sample that is judged, and the
guess by nearest neighbours its whole image. Legend: N sightings of one modality, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clinkd.data.images import open_image
from clinkd.records import BadInput, Box, Modality, Sample, Table, Task

NEIGHBOURS = 25
IOU = 0.5


@dataclass(frozen=True, slots=True)
class Sighting:
    """One structure with its box: all that a guesser without the image knows, and the name to guess."""

    image: str
    modality: Modality
    name: str
    box: Box
    colour: tuple[float, float, float]  # mean over the box, each channel 0..1


@dataclass(frozen=True, slots=True)
class ClassGuessability:
    """How often one class is guessed right without the image, as shares 0..1.

    `box`: the median box of the other sightings meets the true box at IoU >= 0.5. The other shares: a random name is
    the right one. The name is drawn from the modality (`modality_alone`), or from the nearest sightings by box
    (`place`) or by colour (`colour`).
    """

    modality: Modality
    name: str
    count: int
    box: float
    modality_alone: float
    place: float
    colour: float

    @property
    def shares(self) -> tuple[float, ...]:
        return self.box, self.modality_alone, self.place, self.colour

    @property
    def highest(self) -> float:
        return max(self.shares)


@dataclass(frozen=True, slots=True)
class Guessability:
    """`classes`: one a class. `hard`: by modality, the better share that a vote by place or colour gets right."""

    classes: tuple[ClassGuessability, ...]
    hard: dict[Modality, float]

    @property
    def highest(self) -> float:
        return max(g.highest for g in self.classes)

    def table(self) -> Table:
        """The shares in per cent, one row for each class."""
        rows = tuple(
            (c.modality.value, c.name, str(c.count), *(f"{100 * share:.1f}" for share in (*c.shares, c.highest)))
            for c in self.classes
        )
        hard = ", ".join(f"{m} {100 * v:.1f}" for m, v in self.hard.items())
        notes = (
            f"Chance in per cent to be right without looking; highest {100 * self.highest:.1f}.",
            f"Majority vote of {NEIGHBOURS} neighbours, the better of place and colour, a whole modality: {hard}.",
        )
        columns = ("modality", "class", "boxes", "median box", "modality alone", "and place", "and colour", "highest")
        return Table("Blind guessability", columns, rows, notes)


def find_sightings(samples: Iterable[Sample], root: Path) -> list[Sighting]:
    """The box, name and mean colour of every ROC sample. Raises BadInput as `open_image`."""
    sightings, path, pixels = [], None, np.zeros((0, 0, 3), np.uint8)
    for sample in samples:
        if sample.task is Task.ROC:
            if sample.images[0].path != path:
                path = sample.images[0].path
                pixels = np.asarray(open_image(root, sample.images[0]))
            box = sample.question.boxes[0]
            sightings.append(Sighting(path, sample.modality, sample.answer.text, box, compute_mean_colour(pixels, box)))
    return sightings


def compute_mean_colour(pixels: NDArray[np.uint8], box: Box) -> tuple[float, float, float]:
    """The mean red, green and blue, 0..1, of an image [H, W, 3] inside a box."""
    height, width = pixels.shape[:2]
    left, top = int(box.x1 * width), int(box.y1 * height)
    part = pixels[top : max(top + 1, round(box.y2 * height)), left : max(left + 1, round(box.x2 * width))]
    red, green, blue = part.reshape(-1, 3).mean(0) / 255
    return float(red), float(green), float(blue)


def measure_guessability(sightings: Sequence[Sighting]) -> Guessability:
    """The shares of every class. Raises BadInput without any sighting."""
    if not sightings:
        raise BadInput("blind guessability: no box with a name among the samples; give data with boxes")
    classes, hard = [], {}
    for modality in sorted({s.modality for s in sightings}, key=list(Modality).index):
        of_modality = [s for s in sightings if s.modality is modality]
        names = sorted({s.name for s in of_modality})
        label_N = np.array([names.index(s.name) for s in of_modality])
        _, image_N = np.unique([s.image for s in of_modality], return_inverse=True)
        box_N4 = np.array([(s.box.x1, s.box.y1, s.box.x2, s.box.y2) for s in of_modality])
        colour_N3 = np.array([s.colour for s in of_modality])
        votes = [_vote_on_names(feature, label_N, image_N, len(names)) for feature in (box_N4, colour_N3)]
        right = [(v.argmax(1) == label_N).mean() for v in votes]
        hard[modality] = float(max(right))
        for number, name in enumerate(names):
            in_class_N = label_N == number
            place, colour = (float(v[in_class_N, number].mean()) for v in votes)
            box = compute_median_hits(box_N4[in_class_N])
            classes.append(
                ClassGuessability(modality, name, int(in_class_N.sum()), box, float(in_class_N.mean()), place, colour)
            )
    return Guessability(tuple(classes), hard)


def _vote_on_names(
    feature: NDArray[np.float64], label_N: NDArray[np.int64], image_N: NDArray[np.int64], names: int
) -> NDArray[np.float64]:
    """The share of each name among the nearest sightings in other images, [N, names]. Features have equal spread."""
    scaled = (feature - feature.mean(0)) / np.maximum(feature.std(0), 1e-9)
    distance_NN = ((scaled[:, None] - scaled[None]) ** 2).sum(-1)
    distance_NN[image_N[:, None] == image_N[None]] = np.inf
    near_NK = np.argsort(distance_NN, axis=1, kind="stable")[:, :NEIGHBOURS]
    finite_NK = np.isfinite(np.take_along_axis(distance_NN, near_NK, 1))
    one_hot = np.eye(names)[label_N[near_NK]] * finite_NK[..., None]
    return np.asarray(one_hot.sum(1) / np.maximum(finite_NK.sum(1, keepdims=True), 1))


def compute_median_hits(box_N4: NDArray[np.float64]) -> float:
    """Share of the boxes that the median of the others meets at IoU >= 0.5; 0 for a single box."""
    count = len(box_N4)
    if count < 2:
        return 0.0
    ordered = np.sort(box_N4, axis=0)
    rank = np.argsort(np.argsort(box_N4, axis=0, kind="stable"), axis=0)
    middle = [np.take_along_axis(ordered, k + (rank <= k), axis=0) for k in ((count - 2) // 2, (count - 1) // 2)]
    median = (middle[0] + middle[1]) / 2  # of the other boxes: each box skips its own rank
    low, high = np.maximum(median[:, :2], box_N4[:, :2]), np.minimum(median[:, 2:], box_N4[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    area = [np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (median, box_N4)]
    return float((shared >= IOU * (area[0] + area[1] - shared)).mean())
