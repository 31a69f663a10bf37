"""Several teachers, each of its own modalities or tasks: who teaches what, the loss, the stages, a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.test_distillation import ONCE, Bench, same, weights
from tests.test_families_stock import SHAPE
from tests.test_teachers_pretrained import SMALL, knobs, write_base
from torch import Tensor

from clinkd.cli import main
from clinkd.config import DistillConfig, RunConfig, SpecialistConfig, TeacherConfig, TinyConfig
from clinkd.data.split import sample_share
from clinkd.experiments import demo, laptop
from clinkd.experiments.rows import distilled, unreflected
from clinkd.model.vlm import VisionLanguageModel, load
from clinkd.objectives import Distillation
from clinkd.pipeline import distilling, plan, run, steps
from clinkd.pipeline.distilling import assign_questions
from clinkd.pipeline.prepared import read_split
from clinkd.pipeline.report import read_training_curves
from clinkd.records import BadInput, Modality, Sample
from clinkd.settings import change_knobs, override, recipe_text
from clinkd.settings import load as load_knobs
from clinkd.training import StoredTeacher, identify_store, store_teacher
from clinkd.workflows.ablate import _weigh_teacher
from clinkd.workflows.counted import list_trainings

BY_TASK = {"vg": SpecialistConfig(task=("VG",)), "rest": SpecialistConfig()}
STORED = ["distill.teacher_as=states", "reflect=null"]
WORDS = "teachers={xray: {modality: XRAY}, rest: {}}"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("several"))


# ---- the knobs ------------------------------------------------------------------------------------------------------


def test_teachers_are_set_by_name_and_printed_and_read_again(tmp_path: Path) -> None:
    config = override(demo(), [*STORED, WORDS, "teachers.vg.task=VG", "teachers.xray.modality=MR,ct"])
    assert [*config.teachers] == ["xray", "rest", "vg"]
    assert config.teachers["xray"] == SpecialistConfig(modality=("mr", "ct"))
    assert config.teachers["vg"].task == ("VG",) and config.teachers["vg"].tune
    path = tmp_path / "run.yaml"
    path.write_text(recipe_text(config))
    again = load_knobs(path, RunConfig)
    assert again == config and [*again.teachers] == [*config.teachers]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["teachers.xray.taks=VG"], r"teachers\.xray\.taks: no such knob; did you mean teachers\.xray\.task\?"),
        (["teachers.xray.modality=[xrays]"], r"teachers\.xray\.modality: xrays given, a list of ct | mr"),
        (["teachers.xray=3"], r"teachers\.xray: 3 given, a group of knobs wanted"),
        (["teachers=3"], r"teachers: 3 given, groups of knobs by name wanted"),
        (["teachers.xray.base.x=3"], r"teachers\.xray\.base is a single knob"),
        (["teachers.X-Y={}"], r"teachers\.X-Y: a name of small letters and digits is wanted"),
        (["teachers.xray.base=/x"], r"teachers\.xray\.base is of a pretrained base: give model\.base"),
        (["teachers.xray.tune=false"], r"teachers\.xray\.tune=false needs a model: give teachers\.xray\.base"),
        (["distill.teacher_as=live"], r"not held in memory .* set distill\.teacher_as=states"),
        (["distill.teacher_as=average"], r"teachers: nobody asks them"),
        (["distill.kd_weight=0"], r"teachers: nobody asks them"),
        (["reflect={objective: distill}"], r"asks one teacher, live: set reflect\.objective=ce"),
    ],
)
def test_teachers_that_cannot_be_are_refused(given: list[str], says: str) -> None:
    config = override(demo(), [*STORED, WORDS])
    with pytest.raises(BadInput, match=says):
        override(config, given)


def test_rows_of_an_ablation_keep_the_teachers_or_have_none() -> None:
    config = override(demo(), [*STORED, WORDS, "reflect={}"])
    assert distilled(config).teachers == config.teachers
    rounds = unreflected(config).reflect
    assert rounds and rounds.objective == "ce"


# ---- who teaches what -----------------------------------------------------------------------------------------------


def test_each_question_has_the_first_teacher_that_has_its_modality_and_task(bench: Bench) -> None:
    modalities = list(Modality)
    samples = [replace(s, modality=modalities[k % 3]) for k, s in enumerate(bench.samples)]
    teachers = {
        "ct": SpecialistConfig(modality=("ct",)),
        "vg": SpecialistConfig(task=("VG",), modality=("ct", "mr")),
        "rest": SpecialistConfig(),
    }
    taught = assign_questions(samples, teachers)
    assert sorted(s.id for own in taught.values() for s in own) == sorted(s.id for s in samples)
    assert all(s.modality == "ct" for s in taught["teacher-ct"])
    assert all(s.modality == "mr" and s.task == "VG" for s in taught["teacher-vg"])
    assert not [s for s in taught["teacher-rest"] if s.modality == "ct" or (s.modality, s.task) == ("mr", "VG")]
    assert assign_questions(samples, {}) == {"teacher": samples}


def test_questions_without_a_teacher_and_teachers_without_a_question_are_refused(bench: Bench, tmp_path: Path) -> None:
    left = [s for s in bench.samples if s.task != "VG"]
    says = rf"teachers: {len(left)} of {len(bench.samples)} training questions have none, the first is {left[0].id} \("
    alone = {"vg": BY_TASK["vg"]}
    with pytest.raises(BadInput, match=says):
        assign_questions(bench.samples, alone)
    with pytest.raises(BadInput, match=r"teachers\.late: none of the \d+ training questions is left for it"):
        assign_questions(bench.samples, {**BY_TASK, "late": SpecialistConfig(task=("VG",))})
    with pytest.raises(BadInput, match=says):  # before anything is trained
        steps.teacher(bench.work(tmp_path / "vg"), TeacherConfig(fit=ONCE), "base", "teacher-vg", alone)
    bench.write(tmp_path, make_rare(bench.samples, 0.01))
    (tmp_path / steps.DATA).write_bytes((bench.prepared / steps.DATA).read_bytes())
    work = bench.work(tmp_path / "pet", prepare=tmp_path)
    few = TeacherConfig(fit=ONCE, share=0.01)
    with pytest.raises(BadInput, match=r"teachers\.pet: none of its \d+ training questions is in teacher\.share=0\.01"):
        steps.teacher(
            work, few, "base", "teacher-pet", {"pet": SpecialistConfig(modality=("pet",)), "rest": SpecialistConfig()}
        )


def make_rare(samples: list[Sample], share: float) -> list[Sample]:
    """The samples, those of one image of another modality, and that image not in the share."""
    for rare in samples:
        changed = [replace(s, modality=Modality.PET) if s.images == rare.images else s for s in samples]
        if all(s.images != rare.images for s in sample_share(changed, share, 0)):
            return changed
    raise AssertionError("every image is in the share")


# ---- the loss -------------------------------------------------------------------------------------------------------


def store(bench: Bench, folder: Path, model: VisionLanguageModel, samples: list[Sample], kind: Any) -> StoredTeacher:
    model.save(folder / "model")
    identity = identify_store(kind, samples, folder / "model", bench.model(), temperature=2.0, draws=8, seed=0)
    store_teacher(folder / "store", model.eval(), samples, identity, title="store", rows_a_pass=2)
    return StoredTeacher(folder / "store", identity)


def loss_and_gradients(student: VisionLanguageModel, teacher: StoredTeacher, rows: list[list[Sample]]) -> list[Tensor]:
    batch = student.encode(rows)
    targets = teacher.targets(batch)
    loss = Distillation(0.5, 2.0)(student.hidden_states(batch), student.head.weight_VH, batch.labels_N, targets)
    return [loss.sum.detach(), *torch.autograd.grad(loss.sum, [*student.parameters()])]


@pytest.mark.parametrize("kind", ["states", "draws"])
def test_the_loss_of_each_row_is_that_by_its_teacher_alone(bench: Bench, tmp_path: Path, kind: Any) -> None:
    wide: TinyConfig = change_knobs(bench.model().knobs.tiny, hidden=48, layers=1, heads=2, mlp=48)
    wide = change_knobs(wide, vision_hidden=32, vision_layers=1, vision_heads=2, vocabulary=400)
    own = assign_questions(bench.samples, BY_TASK)
    models = {"teacher-vg": bench.model(1), "teacher-rest": bench.model(2, wide)}
    alone, again = (
        {name: store(bench, tmp_path / place / name, models[name], own[name], kind) for name in own}
        for place in ("alone", "joined")
    )
    joined, student = StoredTeacher.join([*again.values()]), bench.model()
    mixed, by_hand = [[s for part in own.values() for s in part[:2]]], list[list[Tensor]]()
    for name, part in own.items():
        for sample in part[:2]:
            ours, theirs = (loss_and_gradients(student, t, [[sample]]) for t in (joined, alone[name]))
            by_hand.append(theirs)
            for one, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    rows = [[s] for s in mixed[0]]
    for one, parts in zip(loss_and_gradients(student, joined, rows), zip(*by_hand, strict=True), strict=True):
        torch.testing.assert_close(one, torch.stack(parts).sum(0), rtol=1e-4, atol=1e-4)


def test_equal_heads_stand_once_and_those_of_other_rows_are_refused(bench: Bench, tmp_path: Path) -> None:
    own = assign_questions(bench.samples, BY_TASK)
    first, second, third = (
        store(bench, tmp_path / name, bench.model(seed), part, "states")
        for name, seed, part in (
            ("a", 1, own["teacher-vg"]), ("b", 1, own["teacher-rest"][:2]), ("c", 2, own["teacher-rest"][2:])
        )
    )  # fmt: skip
    third.head_VG = third.head_VG[:-1] if third.head_VG is not None else None
    joined = StoredTeacher.join([first, second])
    assert joined.head_VG is not None and joined.head_VG.shape[1] == 32
    with pytest.raises(BadInput, match=r"c/store: this teacher has \d+ vocabulary entries"):
        StoredTeacher.join([joined, third])


# ---- the stages -----------------------------------------------------------------------------------------------------


def stages(config: RunConfig) -> dict[str, str]:
    return {s.name: s.identity for s in plan(config)}


def changed(one: Mapping[str, str], other: Mapping[str, str]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def test_a_change_of_one_teacher_changes_it_and_the_student_alone(tmp_path: Path) -> None:
    for name in ("small", "large", "other"):
        write_base(tmp_path / name, SHAPE if name == "small" else change_knobs(SHAPE, hidden=96), SMALL)
    (tmp_path / "records.jsonl").write_text("{}\n")
    given = [f"data.path={tmp_path}", f"model.base={tmp_path / 'small'}", *STORED]
    ct = f"ct: {{modality: [ct], base: {tmp_path / 'large'}}}"
    config = override(laptop(), [*given, f"teachers={{{ct}, mr: {{modality: [mr]}}, rest: {{}}}}"])
    first = stages(config)
    later = {"distill", "answer", "select", "shuffle", "score"}
    assert {"teacher-ct", "base-teacher-ct", "teacher-mr", "teacher-rest"} < first.keys() and "teacher" not in first
    needs = {s.name: [n.name for n in s.needs] for s in plan(config)}
    assert needs["teacher-ct"] == ["prepare", "base-teacher-ct"]
    assert needs["teacher-mr"] == ["prepare", "base", "see"]
    assert {"teacher-ct", "teacher-mr", "teacher-rest"} <= {*needs["distill"]}

    def moved(*settings: str) -> set[str]:
        return changed(first, stages(override(config, settings)))

    assert moved(f"teachers.ct.base={tmp_path / 'other'}") == {"base-teacher-ct", "teacher-ct", *later}
    assert moved("teachers.ct.modality=[ct, pet]") == {"teacher-ct", "teacher-rest", *later}
    assert moved("teachers.mr.task=[VG]") == {"teacher-mr", "teacher-rest", *later}
    assert moved("teachers.ct.tune=false") == {"teacher-ct", *later}
    assert moved("teacher.fit.epochs=9") == {"teacher-ct", "teacher-mr", "teacher-rest", *later}
    in_order = override(config, [f"teachers={{mr: {{modality: [mr]}}, {ct}, rest: {{}}}}"])
    assert stages(in_order) == first, "the order of teachers that share no question does not count"
    trained = [name for name, _ in list_trainings(override(config, ["teachers.ct.tune=false"]))]
    assert trained == ["teacher-mr", "teacher-rest", "distill"]
    with pytest.raises(BadInput, match=r"^teachers\.ct\.base=.*nowhere: no config\.json there"):
        plan(override(config, [f"teachers.ct.base={tmp_path / 'nowhere'}"]))


def test_a_plan_names_the_teachers_and_does_not_measure_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["plan", "demo", "--runs", str(tmp_path), *(w for s in [*STORED, WORDS] for w in ("--set", s))]
    assert main(given) == 0
    assert {"teacher-xray", "teacher-rest"} <= {*capsys.readouterr().out.split()}
    assert main([*given, "--measure"]) == 2
    assert "of one of `teachers`; plan without it" in capsys.readouterr().err


def test_a_pass_of_each_teacher_is_weighed_by_its_own_base() -> None:
    recorded = {"base": {"parameters": 10}, "base-teacher-ct": {"parameters": 30}}
    weights = [_weigh_teacher(recorded, name) for name in ("teacher-ct", "teacher-rest", "teacher")]
    assert weights == [3.0, 1.0, 1.0]


def test_without_several_teachers_stages_are_as_they_were() -> None:
    assert stages(override(demo(), [*STORED, WORDS, "teachers={}"])) == stages(override(demo(), STORED))


def test_a_teacher_of_another_tokenizer_is_named(bench: Bench, tmp_path: Path) -> None:
    write_base(tmp_path / "small", SHAPE, SMALL)
    other = write_base(tmp_path / "words", SHAPE, SMALL, ("no", "word", "in", "common"))
    base = bench.work(tmp_path / "base")
    steps.base(base, knobs(tmp_path / "small"))
    theirs = bench.work(tmp_path / "base-teacher-ct", base=base.folder)
    with pytest.raises(BadInput, match=r"^teachers\.ct\.base=.*words: its vocabulary is not that of the student"):
        steps.base(theirs, knobs(other), "base", knob="teachers.ct.base")


def test_a_tuned_folder_is_used_as_it_is_beside_a_tuned_copy(bench: Bench, tmp_path: Path) -> None:
    write_base(tmp_path / "small", SHAPE, SMALL)
    base = bench.work(tmp_path / "base")
    steps.base(base, knobs(tmp_path / "small"))
    tuned = bench.work(tmp_path / "elsewhere", base=base.folder)
    steps.teacher(tuned, TeacherConfig(share=1, fit=ONCE), "base")
    folder = tuned.folder / steps.MODEL
    teachers = {"vg": SpecialistConfig(task=("VG",), base=folder, tune=False), "rest": SpecialistConfig()}
    theirs = bench.work(tmp_path / "base-teacher-vg", base=base.folder)
    steps.base(theirs, knobs(folder), "base", knob="teachers.vg.base")
    taught = bench.work(tmp_path / "teacher-rest", base=base.folder)
    steps.teacher(taught, TeacherConfig(share=1, fit=ONCE), "base", "teacher-rest", teachers)
    own = [s for s in bench.samples if s.task != "VG"]
    assert bench.recorded["questions"] == len(own)
    ends = {}
    for name, stage in {"tuned": tuned.folder, "pointed": theirs.folder}.items():
        inputs = {"base": base.folder, "base-teacher-vg": stage, "teacher-rest": taught.folder}
        student = bench.work(tmp_path / name, **inputs)
        steps.distill(student, DistillConfig(fit=ONCE, teacher_as="states"), TeacherConfig(), teachers)
        assert not [*student.folder.glob("stored-teacher*")]
        assert bench.recorded["stored_samples-vg"]["units"] == len(bench.samples) - len(own)
        ends[name] = weights(load(student.folder / steps.MODEL, bench.open_image))
    assert same(ends["tuned"], ends["pointed"])


# ---- a run ----------------------------------------------------------------------------------------------------------

FEW = [
    "data.phantoms.train_images=24", "data.phantoms.validation_images=4", "data.phantoms.test_images=8",
    "data.workers=0", "teacher.share=0.5", "teacher.fit.epochs=1", "distill.fit.epochs=1", "select.scorer=first",
    "data.phantoms.tasks=[VG, ROC]", "answer.max_new_tokens=8", "evaluate.replicates=0", "model.tiny.pretrain=null",
    "distill.targets=mixed", "model.tiny.hidden=48", "model.tiny.layers=1", "model.tiny.heads=2", "threads=1",
    "evaluate.shuffled=false", *STORED, "teachers={vg: {task: [VG]}, rest: {}}",
]  # fmt: skip


@pytest.mark.slow
def test_a_run_that_was_stopped_between_teachers_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = override(demo(), FEW)
    made = {"whole": run(config, tmp_path / "whole")}
    real_fit, real_store, done = steps.StageInputs.fit, distilling.store_teacher, list[str]()

    def fit(self: Any, model: Any, samples: Any, knobs: Any, title: str, **named: Any) -> None:
        done.append(title)
        if title == "teacher rest" and done.count(title) == 1:
            raise KeyboardInterrupt
        real_fit(self, model, samples, knobs, title, **named)

    def stored(*given: Any, title: str, **named: Any) -> None:
        done.append(title)
        if title == "store the teacher rest" and done.count(title) == 1:
            raise KeyboardInterrupt
        real_store(*given, title=title, **named)

    monkeypatch.setattr(steps.StageInputs, "fit", fit)
    monkeypatch.setattr(distilling, "store_teacher", stored)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "stopped")
    capsys.readouterr()
    made["stopped"] = run(config, tmp_path / "stopped")
    assert done == [
        "teacher vg", "teacher rest", "teacher rest", "store the teacher vg", "store the teacher rest",
        "store the teacher rest", "distill",
    ]  # fmt: skip
    told = capsys.readouterr().err
    assert "teacher-vg: done before" in told and "distill: going on where it stopped" in told
    for stage in ("teacher-vg", "teacher-rest", "pseudo", "distill", "score"):
        assert (made["stopped"].stage(stage) / "stage.json").is_file()
    for stage in ("teacher-vg", "teacher-rest", "distill"):
        whole, stopped = (
            weights(load(r.stage(stage) / steps.MODEL, lambda ref: pytest.fail(str(ref)))) for r in made.values()
        )
        assert same(whole, stopped), stage
    pseudo = steps.read_predictions(made["whole"].stage("pseudo"))
    tasks = {s.id: s.task for s in read_split(made["whole"].stage("prepare"), "train")}
    assert {p.by: {tasks[q.id] for q in pseudo if q.by == p.by} for p in pseudo} == {
        "teacher-vg": {"VG"}, "teacher-rest": {"ROC"},
    }  # fmt: skip
    curves = read_training_curves({s.name: s.folder for s in made["stopped"].status()})
    assert [c.title for c in curves] == ["Teacher vg", "Teacher rest", "Distillation"]
    page = (made["stopped"].folder / "report.html").read_text()
    assert "teachers.vg.task" in page and "Teacher rest" in page
