"""Phantoms: what they promise of boxes, words and splits, and that shapes tell the names while nothing else does."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clinkd.boxes import iou
from clinkd.config import PhantomConfig
from clinkd.data import phantoms
from clinkd.data.checks import guessability
from clinkd.data.images import open_image
from clinkd.language.facts import read_facts
from clinkd.records import PAPER_MODALITIES, BadInput, Box, Modality, Sample, Task


class Set(NamedTuple):
    folder: Path
    samples: list[Sample]
    told: list[int]  # what `advance` was told


CONFIG = PhantomConfig(train_images=960, validation_images=80, test_images=160)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Set:
    folder, told = tmp_path_factory.mktemp("phantoms"), list[int]()
    return Set(folder, phantoms.write_phantoms(folder, CONFIG, seed=11, advance=told.append), told)


@pytest.fixture(scope="module")
def drawings() -> list[phantoms.Drawing]:
    return [
        phantoms.draw_phantom(np.random.default_rng([7, k]), PAPER_MODALITIES[k % 8], structures=1 + k % 4)
        for k in range(320)
    ]


def test_there_are_three_names_of_each_modality_and_all_differ() -> None:
    assert tuple(phantoms.STRUCTURES) == PAPER_MODALITIES
    assert {len(shapes) for shapes in phantoms.STRUCTURES.values()} == {3}
    assert len(set(phantoms.NAMES)) == 24 == len(phantoms.LEXICON.names)
    for shapes in phantoms.STRUCTURES.values():
        assert len(set(shapes.values())) == 3, "names of one modality share a shape"


def test_every_shape_fills_half_its_box_and_touches_all_sides() -> None:
    axis = np.linspace(-1, 1, 501)
    for shape in {s for shapes in phantoms.STRUCTURES.values() for s in shapes.values()}:
        inside: NDArray[np.bool_] = np.less_equal(shape(axis[None, :], axis[:, None], 0.15, 0.15), 0)
        assert inside.mean() == pytest.approx(0.52, abs=0.02), shape
        for across in (inside.any(0), inside.any(1)):
            assert across[:4].any() and across[-4:].any(), shape


def test_boxes_keep_their_promises(drawings: list[phantoms.Drawing]) -> None:
    for drawing in drawings:
        assert drawing.image.shape == (96, 96, 3) and drawing.image.dtype == np.uint8
        xs = [s.box.centre[0] for s in drawing.structures]
        assert xs == sorted(xs)
        for k, s in enumerate(drawing.structures):
            longest, least = max(s.box.width, s.box.height), min(s.box.width, s.box.height)
            low, high = {"small": (0.18, 0.27), "large": (0.34, 0.44)}[s.size]
            assert low <= longest <= high and least >= 0.10
            assert abs(s.box.centre[0] - 0.5) > 0.06 and s.side == ("left" if s.box.centre[0] < 0.5 else "right")
            assert all(iou(s.box, other.box) == 0 for other in drawing.structures[k + 1 :])


@pytest.mark.parametrize("modality", PAPER_MODALITIES)
def test_boxes_are_the_extent_of_what_was_drawn_and_within_the_field(modality: Modality) -> None:
    """Against the same image without its structures: what differs is the structures."""
    scene = phantoms._SCENES[modality]
    for k in range(30):
        rng = np.random.default_rng([3, k])
        plan = phantoms._place_boxes(rng, scene.visible, 1)[0]
        before = scene.paint(rng, 96, *phantoms._make_grid(96))
        after = before.copy()
        box = phantoms._draw_shape(after, list(phantoms.STRUCTURES[modality].values())[k % 3], plan, 0.3)
        changed = np.abs(after - before) >= 0.15  # at least half covered
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert box == Box(columns[0] / 96, rows[0] / 96, (columns[-1] + 1) / 96, (rows[-1] + 1) / 96)
        assert (before[changed] > 0).all(), "drawn outside the visible field"
        asked = plan.half_width * 2, plan.half_height * 2
        assert (box.width, box.height) == pytest.approx(asked, abs=2.5 / 96)


def test_brightness_is_plain(drawings: list[phantoms.Drawing]) -> None:
    """The pixels of a box that differ most from its surroundings lie on the side that the word says."""
    right = total = 0
    for drawing in drawings:
        grey = drawing.image.astype(float).mean(2)
        for s in drawing.structures:
            x1, y1, x2, y2 = (round(v * 96) for v in (s.box.x1, s.box.y1, s.box.x2, s.box.y2))
            inside = grey[y1:y2, x1:x2]
            high, low = np.percentile(inside, 95), np.percentile(inside, 5)
            rim = np.concatenate([grey[y1 - 1, x1:x2], grey[y2, x1:x2], grey[y1:y2, x1 - 1], grey[y1:y2, x2]])
            brighter = high - np.median(rim) > np.median(rim) - low
            right, total = right + (brighter == (s.brightness == "bright")), total + 1
    assert right / total > 0.97


def _look(drawing: phantoms.Drawing, box: Box) -> NDArray[np.float64]:
    """The box as a tiny model sees it: the image at 64x64, one grey level, mean 0, contrast 1, [16 x 16]."""
    small = Image.fromarray(drawing.image).convert("L").resize((64, 64), Image.Resampling.BICUBIC)
    corners = tuple(v * 64 for v in (box.x1, box.y1, box.x2, box.y2))
    resized = small.resize((16, 16), Image.Resampling.BILINEAR, box=corners)  # type: ignore[arg-type]
    look = np.asarray(resized).astype(np.float64).ravel()
    look = look - look.mean()
    return np.asarray(look / np.linalg.norm(look))


def test_shapes_are_legible_at_64_pixels(drawings: list[phantoms.Drawing]) -> None:
    """The nearest of three ideal shapes, dark or bright, names nearly every structure: names can be seen."""
    fine = (np.arange(128) + 0.5) / 64 - 1
    right = total = 0
    for drawing in drawings:
        for s in drawing.structures:
            ideals = {}
            for name, shape in phantoms.STRUCTURES[drawing.modality].items():
                inside = shape(fine[None, :], fine[:, None], s.box.width / 2, s.box.height / 2) <= 0
                ideal = inside.astype(float).reshape(16, 8, 16, 8).mean((1, 3)).ravel()
                ideals[name] = (ideal - ideal.mean()) / np.linalg.norm(ideal - ideal.mean())
            look = _look(drawing, s.box)
            guess = max(ideals, key=lambda name: abs(float(look @ ideals[name])))
            right, total = right + (guess == s.name), total + 1
    assert right / total > 0.97


def test_no_class_can_be_guessed_blindly(drawn: Set) -> None:
    found = guessability.measure_guessability(guessability.find_sightings(drawn.samples, drawn.folder))
    assert {g.name for g in found.classes} == set(phantoms.NAMES)
    assert found.highest <= 0.40, found.table()
    assert np.mean(list(found.hard.values())) <= 0.40
    table = found.table()
    assert len(table.rows) == 24 and all(float(row[-1]) <= 40 for row in table.rows)


@pytest.mark.parametrize("leak", ["colour", "place", "modality", "box"])
def test_guessability_sees_a_leak(leak: str) -> None:
    rng = np.random.default_rng(0)
    seen = []
    for k in range(300):
        number = k % 3
        x, y = rng.uniform(0, 0.7, 2)
        box = (
            Box(0.3 * number, 0.3, 0.3 * number + 0.2, 0.5) if leak in ("place", "box") else Box(x, y, x + 0.2, y + 0.2)
        )
        colour = (0.3 * number, 0.5, 0.5) if leak == "colour" else tuple(rng.random(3))
        modality = PAPER_MODALITIES[number] if leak == "modality" else Modality.CT
        seen.append(guessability.Sighting(str(k), modality, "abc"[number], box, colour))
    found = guessability.measure_guessability(seen)
    if leak in ("colour", "place"):
        assert found.hard[Modality.CT] > 0.95
    for guess in found.classes:
        figure = {
            "colour": guess.colour, "place": guess.place, "modality": guess.modality_alone, "box": guess.box
        }[leak]  # fmt: skip
        assert figure > 0.95
        assert guess.highest >= figure


def test_the_set_is_balanced_and_split_by_image(drawn: Set) -> None:
    images: dict[str, set[str]] = {}
    for s in drawn.samples:
        assert s.split and s.group == Path(s.images[0].path).stem and s.side == "image"
        images.setdefault(s.split, set()).add(s.images[0].path)
    assert {k: len(v) for k, v in images.items()} == {"train": 960, "validation": 80, "test": 160}
    assert len(set.union(*images.values())) == 1200 == sum(drawn.told)
    for split, paths in images.items():
        per_modality = Counter(s.modality for s in drawn.samples if s.split == split and s.task is Task.MIA)
        assert set(per_modality.values()) == {len(paths) // 8}
    assert len({s.id for s in drawn.samples}) == len(drawn.samples)
    for path in list(images["test"])[:5]:
        assert open_image(drawn.folder, path).size == (96, 96)


def test_boxes_of_the_set_are_small_enough(drawn: Set) -> None:
    areas = [s.question.boxes[0].area for s in drawn.samples if s.task is Task.ROC]
    assert np.median(areas) <= 0.10


def test_attributes_do_not_depend_on_names(drawn: Set) -> None:
    """Chi-squared of every attribute against the name, over all classes of a modality: none stands out."""
    for kind in ("size", "side", "brightness"):
        statistic = freedom = 0.0
        for modality in PAPER_MODALITIES:
            told = [s.facts[0] for s in drawn.samples if s.task is Task.RC and s.modality is modality]
            cells = Counter((f.name, getattr(f, kind)) for f in told)
            names, values = {c[0] for c in cells}, {c[1] for c in cells}
            assert len(names) == 3 and len(values) == 2
            for name in names:
                for value in values:
                    expected = sum(cells[name, v] for v in values) * sum(cells[n, value] for n in names) / len(told)
                    statistic += (cells[name, value] - expected) ** 2 / expected
            freedom += 2
        assert statistic < freedom + 3.5 * (2 * freedom) ** 0.5, kind


def test_words_say_what_the_facts_say(drawn: Set) -> None:
    by_image: dict[str, list[Sample]] = {}
    for s in drawn.samples:
        by_image.setdefault(s.group, []).append(s)
    twins = 0
    for items in by_image.values():
        kinds = Counter(s.task for s in items)
        mia = next(s for s in items if s.task is Task.MIA)
        count = kinds[Task.RC]
        assert count == len(mia.facts) and kinds[Task.MIA] == 1
        assert kinds[Task.ROC] == count
        assert {f.count for f in mia.facts} == {count}
        assert kinds[Task.VG] == len(set(mia.names))
        for s in items:
            if s.task in (Task.RC, Task.MIA):
                read = {f.tuples for f in read_facts(s.answer.text, phantoms.LEXICON)}
                assert read == {f.tuples for f in s.facts}
            if s.task is Task.VG:
                boxes = [o.question.boxes[0] for o in items if o.task is Task.RC and o.names == s.names]
                assert sorted(boxes, key=lambda b: b.centre) == list(s.answer.boxes) and s.names[0] in s.question.text
                twins += len(boxes) > 1
            else:
                assert not any(name in s.question.text for name in phantoms.NAMES)
            assert len(s.turns) == 1 and s.answer.text
    assert twins > 5
    phrasings = {task: {s.question.words for s in drawn.samples if s.task is task} for task in (Task.RC, Task.MIA)}
    assert all(3 <= len(v) <= 5 for v in phrasings.values())


def test_drawing_is_a_function_of_seed_split_and_number(drawn: Set, tmp_path: Path) -> None:
    small = CONFIG.model_copy(update={"train_images": 24, "validation_images": 8, "test_images": 8})
    again = phantoms.write_phantoms(tmp_path / "a", small, seed=11)
    known = {s.id: s for s in drawn.samples}
    assert [known[s.id] for s in again] == again
    for s in again:
        path = s.images[0].path
        assert (tmp_path / "a" / path).read_bytes() == (drawn.folder / path).read_bytes()
    other = phantoms.write_phantoms(tmp_path / "b", small, seed=12)
    assert [s.id for s in other] != [s.id for s in again] or other != again


def test_processes_change_nothing(tmp_path: Path) -> None:
    config = PhantomConfig(train_images=520, validation_images=1, test_images=1)
    told: list[int] = []
    parallel = phantoms.write_phantoms(tmp_path / "two", config, seed=5, workers=2, advance=told.append)
    alone = phantoms.write_phantoms(tmp_path / "one", config, seed=5, workers=1)
    assert parallel == alone and sum(told) == 522
    for path in {s.images[0].path for s in alone[::40]}:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


@pytest.mark.parametrize(("knob", "value"), [("structures", 5), ("structures", 0), ("image_pixels", 32)])
def test_impossible_knobs_are_named(tmp_path: Path, knob: str, value: int) -> None:
    config = CONFIG.model_copy(update={knob: value})
    with pytest.raises(BadInput, match=f"data.phantoms.{knob}={value}"):
        phantoms.write_phantoms(tmp_path, config, seed=0)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("modality", PAPER_MODALITIES)
def test_as_many_structures_as_allowed_fit(modality: Modality) -> None:
    most = phantoms.MOST_STRUCTURES
    counts = Counter(
        len(phantoms.draw_phantom(np.random.default_rng([9, n]), modality, most).structures) for n in range(60)
    )
    assert set(counts) == set(range(1, most + 1))


def test_a_drawing_cannot_be_changed_by_accident(drawings: list[phantoms.Drawing]) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        drawings[0].structures[0].name = "other"  # type: ignore[misc]
