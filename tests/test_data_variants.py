"""Variants of training images: pixels, boxes and words stay true together."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clinkd.config import PhantomConfig
from clinkd.data.images import encode_picture, open_image
from clinkd.data.images.variants import LEAST_KEPT, add_variants, change_box, change_pixels, change_sample
from clinkd.data.phantoms import write_phantoms
from clinkd.data.questions import make_bare_pairs
from clinkd.data.readers.forms import read_samples
from clinkd.data.readers.source import Source
from clinkd.data.split import sample_share
from clinkd.language.sides import find_side_contradiction
from clinkd.records import (
    BadInput,
    Box,
    BoxedText,
    Fact,
    ImageRef,
    Laterality,
    Modality,
    Sample,
    Side,
    Task,
    Turn,
    Variant,
)

MIRROR = Variant(mirrored=True)
LEFT, RIGHT = Box(0.05, 0.1, 0.45, 0.9), Box(0.55, 0.1, 0.95, 0.9)  # of the picture
REF = ImageRef("a.png", 64, 48)


def sample(
    question: str, answer: str, *boxes: Box, task: Task = Task.VG, side: Side = "patient", ref: ImageRef = REF,
    modality: Modality = Modality.XRAY, names: tuple[str, ...] = (), id: str = "a",
) -> Sample:  # fmt: skip
    asked, said = (boxes, ()) if "[box]" in question else ((), boxes)
    turn = Turn(task, BoxedText(question, asked), BoxedText(answer, said))
    return Sample(id, (ref,), modality, (turn,), "patient 1", names=names, side=side, split="train")


def where(name: str, *boxes: Box, **more: object) -> Sample:
    return sample(f"Where is the {name}?", f"Here is the {name}" + "[box]" * len(boxes), *boxes, names=(name,), **more)  # type: ignore[arg-type]


def ask_qa(question: str, answer: str, **more: object) -> Sample:
    return sample(question, answer, task=Task.QA, **more)  # type: ignore[arg-type]


def random_variant(dice: random.Random) -> Variant:
    """Any change, or none of a kind."""
    shift = (dice.randint(-6, 6), dice.randint(-5, 5)) if dice.random() < 0.5 else (0, 0)
    grey = (
        (dice.uniform(0.7, 1.4), dice.uniform(0.8, 1.2), dice.uniform(-0.1, 0.1)) if dice.random() < 0.5 else (1, 1, 0)
    )
    return Variant(dice.random() < 0.5, dice.random() < 0.5, shift, *grey)


# ---- pixels and boxes -----------------------------------------------------------------------------------------------


def test_a_box_stays_on_its_structure() -> None:
    dice, cut = random.Random(0), 0
    for _ in range(400):
        width, height = dice.randint(20, 64), dice.randint(20, 64)
        (x1, x2), (y1, y2) = (sorted(dice.sample(range(side + 1), 2)) for side in (width, height))
        pixels = np.full((height, width, 3), 40, np.uint8)
        pixels[y1:y2, x1:x2] = 200
        box, variant = Box(x1 / width, y1 / height, x2 / width, y2 / height), random_variant(dice)
        changed = np.asarray(change_pixels(Image.fromarray(pixels), variant))[..., 0]
        assert changed.shape == (height, width)
        moved = change_box(box, variant, ImageRef("", width, height))
        grey = change_pixels(Image.new("RGB", (1, 1), (200,) * 3), replace(variant, shift=(0, 0)))
        rows, columns = np.nonzero(changed == np.asarray(grey)[0, 0, 0])
        extent = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else (0, 0, 0, 0)
        area = (extent[2] - extent[0]) * (extent[3] - extent[1])
        if moved is None:
            cut += 1
            assert variant.shift != (0, 0) and area <= LEAST_KEPT * (x2 - x1) * (y2 - y1)
        else:
            corners = [v * side for v, side in zip(moved.corners, (width, height) * 2, strict=True)]
            assert corners == pytest.approx(extent)
    assert 5 < cut < 100


def test_twice_mirrored_and_upended_is_the_image_itself() -> None:
    dice = np.random.default_rng(0)
    picture = Image.fromarray(dice.integers(0, 256, (31, 47, 3), dtype=np.uint8))
    for variant in (MIRROR, Variant(upended=True), Variant(True, True)):
        once = change_pixels(picture, variant)
        assert once.tobytes() != picture.tobytes() and change_pixels(once, variant).tobytes() == picture.tobytes()
        moved = change_box(LEFT, variant, REF)
        assert moved is not None
        back = change_box(moved, variant, REF)
        assert back is not None and back.to_json() == LEFT.to_json()


def test_a_variant_is_applied_on_opening_and_leaves_the_file_alone(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(encode_picture(Image.fromarray(pixels)))
    plain, ref = ImageRef("a.png", 12, 8), ImageRef("a.png", 12, 8, variant=MIRROR)
    assert np.array_equal(np.asarray(open_image(tmp_path, ref)), pixels[:, ::-1])
    assert np.array_equal(np.asarray(open_image(tmp_path, plain)), pixels)
    assert ImageRef.from_json(ref.to_json()) == ref and "variant" not in plain.to_json()


def test_a_variant_in_a_file_of_samples_is_refused(tmp_path: Path) -> None:
    """Its boxes and words might not be those of the changed pixels."""
    changed = change_sample(where("liver", LEFT), MIRROR)
    assert changed is not None
    (tmp_path / "samples.jsonl").write_text(json.dumps(changed.to_json()))
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    with pytest.raises(BadInput, match=r"images\[0\].variant = .*data.variants\); leave it out"):
        read_samples(Source(tmp_path), Counter())


# ---- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["right", "left", None])
@pytest.mark.parametrize("side", ["patient", "image"])
def test_words_follow_a_mirror_and_agree_with_the_boxes(side: Side, left: str | None) -> None:
    """Whoever's left is meant, and wherever the header says that it is."""
    laterality = Laterality(left, "its header") if left else None  # type: ignore[arg-type]
    ref = replace(REF, laterality=laterality)
    at_right = (side == "patient") == (left != "left")  # the picture's half of what is called left, by the convention
    s = where("left lung", RIGHT if at_right else LEFT, side=side, ref=ref)
    if side == "image":
        s = where("left lung", LEFT, side=side, ref=ref)
    assert find_side_contradiction(s) is None
    mirrored = change_sample(s, MIRROR)
    assert mirrored is not None
    assert mirrored.names == ("right lung",) and mirrored.question.text == "Where is the right lung?"
    assert find_side_contradiction(mirrored) is None and mirrored.images[0].laterality == laterality
    unswapped = replace(s, turns=mirrored.turns[:0] + tuple(
        replace(t, question=u.question, answer=replace(t.answer, text=u.answer.text))
        for t, u in zip(mirrored.turns, s.turns, strict=True)
    ))  # fmt: skip
    assert find_side_contradiction(unswapped) is not None  # the test can fail
    twice = change_sample(mirrored, MIRROR)
    assert twice is not None and replace(twice, images=s.images, turns=()) == replace(s, turns=())
    assert [t.to_json() for t in twice.turns] == [t.to_json() for t in s.turns]


def test_options_facts_and_answers_follow_a_mirror() -> None:
    question = BoxedText("Where is it? A) left B) right C) both")
    turn = Turn(Task.QA, question, BoxedText("left"), ("left", "right", "both"))
    fact = Fact("left lung", side="left")
    s = Sample("a", (REF,), Modality.XRAY, (turn,), "g", names=("left lung",), facts=(fact,))
    mirrored = change_sample(s, MIRROR)
    assert mirrored is not None
    [told] = mirrored.turns
    assert told.question.text == "Where is it? A) right B) left C) both"
    assert (told.answer.text, told.options, told.letter) == ("right", ("right", "left", "both"), "A")
    assert mirrored.facts == (Fact("right lung", side="right"),)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Is the left ventricle enlarged?", "yes"),
        ("Where is the nodule?", "RUL"),
        ("Where is it?", "at 3 o'clock"),
        ("Is this situs inversus?", "no"),
        ("Is the trachea deviated to the L?", "no"),
        ("Which hand is that?", "左"),
    ],
)
def test_an_image_of_which_words_cannot_follow_is_changed_otherwise(question: str, answer: str) -> None:
    samples = [ask_qa(question, answer, id="b"), where("heart", LEFT)]
    varied = add_variants(samples, 8, 0)[2:]
    assert Counter(s.id.partition("+")[0] for s in varied) == {"a": 7, "b": 7}
    variants = {s.images[0].variant for s in varied}
    assert len(variants) == 7 and not any(v is None or v.mirrored or v.upended or v.shift != (0, 0) for v in variants)


def test_upside_down_is_only_what_has_no_up() -> None:
    def upended(s: Sample) -> bool:
        return any(v.upended for t in add_variants([s], 8, 0) if (v := t.images[0].variant))

    free = {m for m in Modality if upended(where("lesion", LEFT, modality=m))}
    assert free == {Modality.DERMOSCOPY, Modality.MICROSCOPY, Modality.ENDOSCOPY}
    for words in ("upper lesion", "lesion at the bottom", "obere Läsion", "lésion supérieure"):
        assert not upended(where(words, LEFT, modality=Modality.DERMOSCOPY))


def test_a_shift_cuts_boxes_and_is_not_made_where_words_tell_places_or_all_of_the_image() -> None:
    at_the_border = [where("polyp", Box(0, 0.4, 0.02, 0.5)), where("ulcer", LEFT, id="b")]
    asked = Counter(s.id.partition("+")[0] for s in add_variants(at_the_border, 30, 0))
    assert asked["b"] == 30 and 20 < asked["a"] < 30
    for other in (
        ask_qa("What is shown?", "a polyp"),
        where("lesion in the middle", LEFT),
        where("left one", LEFT, side="image"),
    ):
        varied = add_variants([where("ulcer", LEFT), replace(other, id="b")], 30, 0)
        assert len(varied) == 60 and all(v.shift == (0, 0) for s in varied if (v := s.images[0].variant))


def test_boxes_that_were_listed_from_the_left_still_are_and_others_keep_their_words() -> None:
    listed = change_sample(sample("Where are the lungs?", "Here are the lungs[box] and [box].", LEFT, RIGHT), MIRROR)
    named = change_sample(sample("Where?", "The left lung is at [box], the right one at [box].", RIGHT, LEFT), MIRROR)
    assert listed is not None and [b.x1 for b in listed.answer.boxes] == pytest.approx([0.05, 0.55])
    assert named is not None and named.answer.text == "The right lung is at [box], the left one at [box]."
    assert [b.x1 for b in named.answer.boxes] == pytest.approx([0.05, 0.55])


# ---- data sets ------------------------------------------------------------------------------------------------------


def test_variants_share_image_and_group_and_depend_on_the_seed_alone(tmp_path: Path) -> None:
    config = PhantomConfig(train_images=8, validation_images=1, test_images=1, image_pixels=48)
    samples = [s for s in write_phantoms(tmp_path, config, 0) if s.split == "train"]
    assert add_variants(samples, 1, 0) == samples
    varied = add_variants(samples, 8, 0)
    assert len({(i.path, i.variant) for s in add_variants(samples, 16, 0) for i in s.images}) == 16 * 8
    assert varied[: len(samples)] == samples and varied == add_variants(samples, 8, 0) != add_variants(samples, 8, 1)
    assert len(varied) == 8 * len(samples)  # phantoms are far from the border, and say sides: none is shifted
    by_id = {s.id: s for s in varied}
    assert len(by_id) == len(varied) and {s.group for s in varied} == {s.group for s in samples}
    assert by_id[f"{samples[0].id}+v1"].images[0].variant == MIRROR
    assert [s for s in varied if find_side_contradiction(s)] == []
    # the teacher's images with all of their variants, and no variant of another
    chosen = add_variants(sample_share(samples, 0.25, 0), 8, 0)
    paths = {s.images[0].path for s in chosen}
    assert len(paths) == 2 and chosen == [s for s in varied if s.images[0].path in paths]
    assert len(make_bare_pairs(varied)) == 8 * len(make_bare_pairs(samples))
