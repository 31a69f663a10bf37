"""Which stage learns from variants of training images, and which looks at the data's own images and questions alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from clinkd.config import ClipConfig, DataConfig, DistillConfig, PhantomConfig, ReflectConfig, RunConfig, TeacherConfig
from clinkd.data.questions import drop_added
from clinkd.pipeline import steps
from clinkd.pipeline.graph import StageContext
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.pooling import collect_baselines
from clinkd.pipeline.prepared import read_data, read_split, read_variants
from clinkd.pipeline.stages import identify_config
from clinkd.records import SPLITS, Candidate, Prediction, Sample
from clinkd.scoring.measure import Rules
from clinkd.settings import override

TRAIN = 16


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a run with four variants an image, and questions for what is absent."""
    folder = tmp_path_factory.mktemp("run") / "prepare"
    folder.mkdir()
    phantoms = PhantomConfig(
        train_images=TRAIN, validation_images=8, test_images=8, image_pixels=48, tasks=("VG", "ROC")
    )
    config = DataConfig(phantoms=phantoms, variants=4, absent=0.5, workers=1)
    recorded: dict[str, Any] = {}
    steps.prepare(StageContext(folder, {}, 0, recorded.__setitem__), config)
    assert recorded["train"]["images"] == TRAIN and recorded["absent"] > 0
    return folder


@pytest.fixture
def trained(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Sample]]:
    """What a stage trains on and what it asks; its model does neither."""
    seen: dict[str, list[Sample]] = {}

    def fit(self: object, model: object, samples: Sequence[Sample], *_: object, **__: object) -> None:
        seen["trained"] = list(samples)

    def answer(self: object, model: object, questions: Sequence[Sample], *_: object) -> list[Prediction]:
        seen["asked"] = list(questions)
        return [Prediction(s.id, (Candidate("no", s.answer),)) for s in questions]

    for name, stub in {"fit": fit, "answer": answer, "model": lambda *_: None, "save": lambda *_: None}.items():
        monkeypatch.setattr(steps.StageInputs, name, stub)
    return seen


def stage(prepared: Path, folder: Path) -> steps.StageInputs:
    context = StageContext(folder, {"prepare": prepared}, 0, lambda key, value: None)
    return steps.StageInputs(context, Machine("cpu", 1))


def paths(samples: Sequence[Sample]) -> set[str]:
    return {image.path for s in samples for image in s.images}


def variants(samples: Sequence[Sample]) -> int:
    return len({(image.path, image.variant) for s in samples for image in s.images})


def test_files_hold_no_variant_and_only_training_asks_for_what_is_absent(prepared: Path) -> None:
    splits = {split: read_split(prepared, split) for split in SPLITS}
    assert read_variants(prepared) == 4
    assert all(image.variant is None for part in splits.values() for s in part for image in s.images)
    assert [len(part) - len(drop_added(part)) > 0 for part in splits.values()] == [True, False, False]
    # image-blind baselines know the data alone: absent questions and variants are not more patients
    rules = Rules(0.5, read_data(prepared)[1])
    own = {**splits, "train": drop_added(splits["train"])}
    stages = {"select": prepared}
    assert collect_baselines(stages, splits, rules) == collect_baselines(stages, own, rules)


def test_the_teacher_has_whole_images_with_all_their_variants(
    prepared: Path, tmp_path: Path, trained: dict[str, list[Sample]]
) -> None:
    steps.teacher(stage(prepared, tmp_path), TeacherConfig(share=0.25), "base")
    assert len(paths(trained["trained"])) == TRAIN / 4 and variants(trained["trained"]) == TRAIN


def test_distillation_learns_from_variants_of_pseudo_labels_too(
    prepared: Path, tmp_path: Path, trained: dict[str, list[Sample]]
) -> None:
    work = stage(prepared, tmp_path)
    steps.distill(work, DistillConfig(kd_weight=0), None)
    whole = trained["trained"]
    assert variants(whole) == 4 * TRAIN and len(whole) == 4 * len(work.samples("train"))
    pseudo = tmp_path / "pseudo"
    pseudo.mkdir()
    first = work.samples("train")[0]
    said = Prediction(first.id, (Candidate("left", type(first.answer)("on the left")),))
    steps.write_lines(pseudo / steps.PREDICTIONS, [said.to_json()])
    work.inputs = {**work.inputs, "pseudo": pseudo}
    steps.distill(work, DistillConfig(kd_weight=0, targets="pseudo"), None)
    told = {s.id: s.answer.text for s in trained["trained"] if "+pseudo" in s.id}
    assert told == {f"{first.id}+pseudo{v}": f"on the {side}" for v, side in {
        "": "left", "+v1": "right", "+v2": "left", "+v3": "left",
    }.items()}  # fmt: skip


def test_reflection_reviews_the_images_themselves_and_trains_on_variants(
    prepared: Path, tmp_path: Path, trained: dict[str, list[Sample]]
) -> None:
    config = ReflectConfig(review_share=0.5, recheck=0)
    steps.reflect(stage(prepared, tmp_path), config, 1, "distill", RunConfig().answer, None)
    assert all(image.variant is None for s in trained["asked"] for image in s.images)
    assert variants(trained["trained"]) == 4 * TRAIN


def test_a_clip_sees_variants(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views: list[Any] = []
    monkeypatch.setattr(steps.StageInputs, "model", lambda *_: type("Base", (), {"tokenizer": None}))
    monkeypatch.setattr(steps, "new_tiny_clip", lambda *_: type("Clip", (), {"save": lambda *_: None})())
    monkeypatch.setattr(steps, "train_clip", lambda model, kinds, *_: views.extend(kinds))
    steps.clip(stage(prepared, tmp_path), ClipConfig())
    assert len({view.image for view, _ in views[0]}) == 4 * TRAIN


def test_runs_of_the_knobs_are_told_apart_and_those_without_stay_what_they_are() -> None:
    plain = RunConfig()
    assert identify_config(override(plain, ["data.variants=1", "data.absent=0"])) == identify_config(plain)
    changed = [override(plain, [knob]) for knob in ("data.variants=2", "data.absent=0.1")]
    assert len({identify_config(c) for c in (plain, *changed)}) == 3
