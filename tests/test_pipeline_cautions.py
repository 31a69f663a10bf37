"""What is told before the scores: trainings that were too short, and a test split that is too small."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clinkd.config import RunConfig
from clinkd.experiments import demo, laptop, modern, paper
from clinkd.pipeline import run
from clinkd.pipeline.cautions import caution_base, caution_few_groups, list_cautions, read_cautions
from clinkd.records import BadInput, BoxedText, ImageRef, Modality, Sample, Task, Turn
from clinkd.reporting.report import RunSummary, write_shared
from clinkd.settings import override
from clinkd.training.fit import is_falling


def samples(groups: int, images: int = 2) -> list[Sample]:
    """One question an image."""
    turn = Turn(Task.ROC, BoxedText("What?"), BoxedText("liver"))
    return [
        Sample(f"{k}-{n}", (ImageRef(f"{k}-{n}.png", 9, 9),), Modality.CT, (turn,), f"p{k}", "s")
        for k in range(groups)
        for n in range(images)
    ]


def stage(folder: Path, recorded: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "stage.json").write_text(json.dumps({"recorded": recorded}))
    return folder


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_falls_or_has_settled(seed: int) -> None:
    noise = random.Random(seed)
    line = [6 - 0.05 * k + noise.gauss(0, 0.1) for k in range(60)]
    settled = [0.5 + 5 * math.exp(-k / 8) + noise.gauss(0, 0.02) for k in range(120)]
    restless = [0.6 + noise.gauss(0, 0.1) for _ in range(80)]
    assert (is_falling(line), is_falling(settled), is_falling(restless)) == (True, False, False)
    assert is_falling(line[:40]) and is_falling(settled[:12])
    assert is_falling([3.0]) and is_falling([1.0, 2.0, 3.0, 4.0]), "too few steps to have settled"


def test_a_training_that_still_falls_is_named_with_the_knobs_that_lengthen_it(tmp_path: Path) -> None:
    counts = {"steps": 4, "loss": 3.0, "falling": True}
    stages = {
        "prepare": stage(tmp_path / "p", {"train": {"questions": 9}}),
        "base": stage(tmp_path / "b", {"parameters": 7, "fit-see": counts, "fit-pairs": {**counts, "falling": False}}),
        "distill": stage(tmp_path / "d", {"fit-tune": {"steps": 4, "loss": 3.0}}),  # of an older version
        "reflect-2": stage(tmp_path / "r", {"fit-reflect": counts}),
    }
    scores = {"VG": {"score": 40.0, "blind": 40.0}, "ROC": {"score": 41.0, "blind": 40.0}, "RC": {"score": None}}
    assert list_cautions(stages, samples(10), scores) == [
        "VG: not above blind, so nothing shows that it looks at the image",
        "undertrained: stage base's loss still falls after 4 steps; more model.tiny.pretrain.vision.epochs or "
        "model.tiny.pretrain.vision.min_steps",
        "undertrained: stage reflect-2's loss still falls after 4 steps; more reflect.fit.epochs or "
        "reflect.fit.min_steps",
    ]


def test_under_ten_test_patients_there_is_no_conclusion(tmp_path: Path) -> None:
    assert caution_few_groups(samples(10)) == []
    assert caution_few_groups(samples(9)) == ["9 test patients: no conclusion"]
    assert caution_few_groups(samples(1)) == ["1 test patient: no conclusion"]
    assert caution_few_groups(samples(3, images=1)) == ["3 test images: no conclusion"]


QWEN2_VL_2B = {
    "model_type": "qwen2_vl", "hidden_size": 1536, "num_attention_heads": 12, "num_hidden_layers": 28,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}  # fmt: skip


def test_a_base_that_gets_other_positions_than_its_own_is_told_as_a_run_begins(tmp_path: Path) -> None:
    def told(config: RunConfig) -> list[str]:
        return caution_base(override(config, [f"model.base={tmp_path}"]).model)

    assert told(paper()) == [], "no folder yet"
    (tmp_path / "config.json").write_text(json.dumps(QWEN2_VL_2B))
    assert told(laptop()) == [] and caution_base(demo().model) == []
    positions, layout = told(paper())
    assert positions.startswith("model.positions=tied in the place of") and "+3.3 [+0.6, +6.0]" in positions
    assert layout == (
        "model.layout=halves in the place of the base's own (sections): 63 of 64 rotary frequencies move, by which its "
        "text knows the order of words, and 24 of 64 take another axis of an image"
    )
    (other,) = told(override(laptop(), ["model.positions=sequential"]))
    assert "sequential" in other and "not tested" in other and "3.3" not in other
    (turned,) = told(override(laptop(), ["model.layout=interleaved"]))
    assert ": 0 of 64 rotary frequencies move" in turned
    assert len(told(modern())) == 2, "of another family: layout and boxes"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    assert told(modern()) == []
    (tmp_path / "config.json").write_text(json.dumps({**QWEN2_VL_2B, "rope_scaling": None, "text_config": 3}))
    assert told(paper())[1].endswith("(sections)")
    (spelled,) = told(override(laptop(), ["model.boxes=digits"]))
    assert spelled == "model.boxes=digits in the place of what the base was taught (qwen2-vl)"
    (tmp_path / "config.json").write_text("{}")
    assert told(paper()) == []


def test_what_a_pretrained_teacher_gets_is_told_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("base", "teacher"):
        (tmp_path / name).mkdir()
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(QWEN2_VL_2B))
    folders = [f"model.base={tmp_path / 'base'}", f"teacher.base={tmp_path / 'teacher'}", "model.positions=sequential"]
    config = override(laptop(), [*folders, f"data.path={tmp_path}"])
    (tmp_path / "records.jsonl").write_text("{}\n")
    with pytest.raises(BadInput, match=r"^model\.base="):
        run(config, tmp_path / "runs")
    err = capsys.readouterr().err
    assert "caution  teacher.base: model.positions=sequential in the place of the base's own" in err


def test_the_base_of_an_adapter_is_told_of_too(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
    (base / "config.json").write_text(json.dumps(QWEN2_VL_2B))
    lora = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(lora))
    save_file({"x": torch.zeros(1)}, adapter / "adapter_model.safetensors")
    cautions = caution_base(override(paper(), [f"model.base={adapter}"]).model)
    assert [line.split()[0] for line in cautions] == ["model.positions=tied", "model.layout=halves"]


def test_screen_and_page_say_it(tmp_path: Path) -> None:
    scores = {"cautions": ["1 test patient: no conclusion"]}
    assert read_cautions(scores) == ["caution  1 test patient: no conclusion"]
    assert read_cautions({}) == [], "scores of an older version"
    summary = RunSummary(tables=[], scores=[], setup=[], wall_seconds={}, cautions=scores["cautions"])
    write_shared(tmp_path / "page.html", summary, [])
    assert "Caution: 1 test patient: no conclusion." in (tmp_path / "page.html").read_text()
