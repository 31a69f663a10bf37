"""A pretrained teacher of another size: stock folders of one tokenizer, their heads filled up differently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.test_distillation import ONCE, Bench
from tests.test_families_stock import SHAPE, WORDS
from torch import Tensor

from clinkd.config import NAMED_POSITIONS, DistillConfig, ModelConfig, TeacherConfig, TinyConfig
from clinkd.experiments import laptop
from clinkd.model import tiny
from clinkd.model.families.qwen2_vl import QWEN2_VL
from clinkd.model.vlm import VisionLanguageModel, load
from clinkd.pipeline import steps
from clinkd.pipeline.stages import plan
from clinkd.records import BadInput
from clinkd.settings import change_knobs, override
from clinkd.training import LiveTeacher, match_student

LIVE = ("distill.teacher_as=states",)
SMALL, LARGE = 8, 24  # rows of the heads beyond the tokenizer


def write_base(folder: Path, shape: TinyConfig, filled: int, words: tuple[str, ...] = WORDS) -> Path:
    """A stock folder with random weights, whose tables have `filled` more rows than the tokenizer has entries."""
    tokenizer = tiny.train_tokenizer([*words, *QWEN2_VL.chat.words] * 2, shape.vocabulary, ())
    settings = QWEN2_VL.tiny_settings(shape, tokenizer)
    settings["text_config"]["vocab_size"] += filled
    torch.manual_seed(filled)
    stock = QWEN2_VL.stock_class(QWEN2_VL.stock_class.config_class(**settings))
    for part in (stock, tokenizer, QWEN2_VL.tiny_processor(shape)):
        part.save_pretrained(folder)
    return folder


def knobs(folder: Path) -> ModelConfig:
    return ModelConfig(base=folder, positions=NAMED_POSITIONS["native"], layout="sections", boxes="qwen2-vl")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    home = Bench(tmp_path_factory.mktemp("teachers"))
    write_base(home.folder / "small", SHAPE, SMALL)
    write_base(home.folder / "large", change_knobs(SHAPE, hidden=96, layers=4), LARGE)
    return home


def models(bench: Bench, *names: str) -> list[VisionLanguageModel]:
    return [load(bench.folder / name, bench.open_image, knobs(bench.folder / name)).eval() for name in names]


def test_the_rows_of_no_token_are_cut_from_the_teachers_head(bench: Bench) -> None:
    student, teacher, whole = models(bench, "small", "large", "large")
    match_student(teacher, student, LIVE)
    batch = student.encode([[s] for s in bench.samples[:2]])
    targets, uncut = (LiveTeacher(m).targets(batch) for m in (teacher, whole))
    logits, wanted = (t.hidden_NG @ t.weight_VG.T for t in (targets, uncut))
    assert logits.shape[1] == len(student.head.weight_VH) == len(student.tokenizer) + SMALL
    assert torch.equal(logits, wanted[:, : logits.shape[1]]), "the tokens' own logits stay"
    match_student(student, whole, LIVE)
    assert len(student.head.weight_VH) == logits.shape[1], "the smaller head stays as it is"


def test_a_teacher_of_another_tokenizer_or_grid_is_refused_by_what_differs(bench: Bench, tmp_path: Path) -> None:
    (student,) = models(bench, "small")
    other = write_base(tmp_path / "words", SHAPE, SMALL, ("no", "word", "in", "common"))
    finer = write_base(tmp_path / "finer", change_knobs(SHAPE, image_pixels=128), SMALL)
    with pytest.raises(BadInput, match=r"the teacher: its vocabulary is not that of the student"):
        match_student(load(other, bench.open_image, knobs(other)), student)
    teacher = load(finer, bench.open_image, knobs(finer))
    with pytest.raises(BadInput, match=r"its image processor is not .*, or set distill\.teacher_as=states"):
        match_student(teacher, student, LIVE)
    match_student(teacher, student)


def test_a_teacher_that_does_not_fit_is_refused_before_it_is_trained(bench: Bench, tmp_path: Path) -> None:
    other = write_base(tmp_path / "words", SHAPE, SMALL, ("no", "word", "in", "common"))
    finer = write_base(tmp_path / "finer", change_knobs(SHAPE, image_pixels=128), SMALL)
    base = bench.work(tmp_path / "base")
    steps.base(base, knobs(bench.folder / "small"))

    def make(name: str, folder: Path, live: tuple[str, ...] = ()) -> None:
        steps.base(bench.work(tmp_path / name, base=base.folder), knobs(folder), "base", live)

    with pytest.raises(BadInput, match=r"teacher\.base=.*words: its vocabulary is not that of the student"):
        make("1", other)
    with pytest.raises(BadInput, match=r"its image processor is .*, or set reflect\.objective=ce$"):
        make("2", finer, ("reflect.objective=ce",))
    make("3", finer)
    make("4", bench.folder / "large")
    assert bench.recorded["parameters"] == sum(p.numel() for p in models(bench, "large")[0].parameters())


@pytest.mark.parametrize("kept_as", ["live", "states", "draws"])
def test_a_larger_pretrained_teacher_is_tuned_and_distilled(bench: Bench, tmp_path: Path, kept_as: Any) -> None:
    config = TeacherConfig(base=bench.folder / "large", share=0.5, fit=ONCE)
    base, theirs = (bench.work(tmp_path / name) for name in ("base", "base-teacher"))
    steps.base(base, knobs(bench.folder / "small"))
    steps.base(theirs, knobs(bench.folder / "large"))
    taught = bench.work(tmp_path / "teacher", **{"base-teacher": theirs.folder})
    steps.teacher(taught, config, "base-teacher")
    student = bench.work(tmp_path / "distill", base=base.folder, teacher=taught.folder)
    steps.distill(student, DistillConfig(fit=ONCE, teacher_as=kept_as, draws=8), config)
    made = [load(folder / steps.MODEL, bench.open_image) for folder in (taught.folder, student.folder)]
    heads: list[Tensor] = [m.head.weight_VH for m in made]
    assert [h.shape[1] for h in heads] == [96, 48]
    assert [len(h) - len(made[0].tokenizer) for h in heads] == [LARGE, SMALL], "the saved models stay whole"


def test_such_a_teacher_sees_by_its_own_tower(bench: Bench) -> None:
    folders = [f"data.path={bench.folder}", f"model.base={bench.folder / 'small'}"]
    theirs = f"teacher.base={bench.folder / 'large'}"
    config = override(laptop(), folders)
    (bench.folder / "records.jsonl").write_text("{}\n")
    ours, others = ({s.name: s for s in plan(c)} for c in (config, override(config, [theirs])))
    assert [need.name for need in ours["teacher"].needs] == ["prepare", "base", "see"]
    assert [need.name for need in others["teacher"].needs] == ["prepare", "base-teacher"]
    assert [need.name for need in others["base-teacher"].needs] == ["prepare", "base"]
    assert {"see", "teacher"} <= {need.name for need in others["distill"].needs}
    with pytest.raises(BadInput, match=r"not cached: set distill\.teacher_as=states"):
        override(config, [theirs, "distill.teacher_as=live"])
    with pytest.raises(BadInput, match=r"give model\.base"):
        override(laptop(), [theirs, "model.vision_features=live"])
    with pytest.raises(BadInput, match=r"^teacher\.base=.*nowhere: no config\.json there"):
        plan(override(config, [f"teacher.base={bench.folder / 'nowhere'}"]))


def test_the_settings_that_end_a_live_teacher() -> None:
    live = override(laptop(), ["model.vision_features=live", "distill.teacher_as=live"])
    assert live.no_live_teacher[:1] == ("distill.teacher_as=states",)
    drawn = override(live, ["distill.on_policy=0.5"]).no_live_teacher
    assert drawn[:2] == ("distill.on_policy=0", "distill.teacher_as=states")
    assert override(live, ["distill.kd_weight=0", "reflect.objective=ce"]).no_live_teacher == ()
    assert override(live, ["distill.kd_weight=0", "reflect.objective=distill"]).no_live_teacher == (
        "reflect.objective=ce",
    )
