"""The stages of the teacher, its pseudo-labels and the student. What they teach: docs/DISTILLATION.md."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

from clinkd import distributed
from clinkd.config import AnswerConfig, DistillConfig, SpecialistConfig, TeacherConfig
from clinkd.data.questions import show_boxes_only
from clinkd.data.split import sample_share
from clinkd.model.vlm import VisionLanguageModel
from clinkd.objectives import CrossEntropy, Distillation, SmoothedCrossEntropy
from clinkd.pipeline.damage import find_model
from clinkd.pipeline.inputs import StageInputs, choose_share, record_seconds
from clinkd.pipeline.prepared import PREDICTIONS, read_predictions
from clinkd.records import BadInput, BoxedText, Sample
from clinkd.storage import folder_bytes
from clinkd.training import (
    AveragedTeacher,
    LiveTeacher,
    StoredTeacher,
    Teacher,
    identify_store,
    is_store_full,
    match_student,
    store_teacher,
)

STORE = "stored-teacher"
Specialists = Mapping[str, SpecialistConfig]  # several teachers by name, in the order in which they are asked
NO_SPECIALISTS: Specialists = {}
OWN_ANSWERS = AnswerConfig(method="sampling", candidates=1)  # from all of the distribution, as in GKD


def teacher(
    work: StageInputs, config: TeacherConfig, base: str, stage: str = "teacher", teachers: Specialists = NO_SPECIALISTS
) -> None:
    """Tune a copy of the model of the stage `base` on a share of the training images, stratified by task and modality;
    one of several `teachers` on its own questions about them. With `view=crop` it sees only the boxes."""
    train = work.samples("train")
    own = {s.id for s in assign_questions(train, teachers)[stage]}
    chosen = [s for s in sample_share(train, config.share, work.seed) if s.id in own]
    if not chosen:
        raise BadInput(
            f"{_name_knob(stage)}: none of its {len(own)} training questions is in teacher.share={config.share:g}; "
            "raise that, or give it a model that is used as it is (base, and tune=false)"
        )
    work.record("questions", len(chosen))
    model = work.model(base)
    work.fit(model, _show_teacher(work.vary(chosen), config, work.seed), config.fit, stage.replace("-", " "))
    work.save(model)


def assign_questions(samples: Sequence[Sample], teachers: Specialists) -> dict[str, list[Sample]]:
    """The questions of each teacher, by the name of its stage; without several, all are those of the only one.

    Raises BadInput for questions that none of them teaches, and for a teacher without any.
    """
    if not teachers:
        return {"teacher": [*samples]}
    taught: dict[str, list[Sample]] = {f"teacher-{name}": [] for name in teachers}
    untaught: list[Sample] = []
    for sample in samples:
        name = next((name for name, specialist in teachers.items() if specialist.teaches(sample)), None)
        (taught[f"teacher-{name}"] if name else untaught).append(sample)
    if untaught:
        first = untaught[0]
        raise BadInput(
            f"teachers: {len(untaught)} of {len(samples)} training questions have none, the first is {first.id} "
            f"({first.modality}, {first.task}); add its modality or task to one, or a last teacher of all others: "
            "--set teachers.rest={}"
        )
    if idle := [name for name, own in taught.items() if not own]:
        raise BadInput(
            f"{_name_knob(idle[0])}: none of the {len(samples)} training questions is left for it; take it out, or "
            "look at its modalities, its tasks and the teachers before it"
        )
    return taught


def _name_knob(teacher: str) -> str:
    """The name of the knobs of a teacher's stage."""
    return teacher.replace("-", "s.", 1)


def _find_stage(work: StageInputs, teacher: str) -> str:
    """The stage with the model of a teacher: its own, or that of its base where it is not tuned."""
    return next(stage for stage in (teacher, f"base-{teacher}", "base-teacher") if stage in work.inputs)


def _has_own_tower(name: str, config: TeacherConfig | None, teachers: Specialists) -> bool:
    """Whether a teacher is made of another pretrained model than the student, so that cached features are not its."""
    specialist = teachers.get(name.removeprefix("teacher-"))
    return bool((config and config.base) or (specialist and specialist.base))


def _show_teacher(samples: Sequence[Sample], config: TeacherConfig | None, seed: int) -> list[Sample]:
    """The samples as the teacher sees them."""
    cropped = config is not None and config.view == "crop"
    return [show_boxes_only(s, seed) for s in samples] if cropped else [*samples]


def pseudo(
    work: StageInputs, config: DistillConfig, answers: AnswerConfig, teacher: TeacherConfig | None,
    teachers: Specialists = NO_SPECIALISTS,
) -> None:  # fmt: skip
    """Let the teacher of each (or the untrained base) answer the training questions whose truths are hidden; if none
    are, those that the teachers were not trained on."""
    train = work.samples("train")
    share = config.labelled or (teacher.share if teacher else None)
    labelled_ids = {s.id for s in sample_share(train, share, work.seed)} if share else set()
    questions = [s for s in train if s.id not in labelled_ids]
    if config.labelled:
        questions = [s.answered(BoxedText(""), "") for s in questions]  # nothing can read a truth that is not there
    if config.targets != "pseudo":
        questions = choose_share(questions, config.pseudo_share, work.seed, "pseudo")
    by_teacher = config.pseudo_from == "teacher"
    with record_seconds(work, "answers", len(questions)):
        for author, own in (assign_questions(questions, teachers) if by_teacher else {"base": questions}).items():
            own_tower = by_teacher and _has_own_tower(author, teacher, teachers)
            model = work.model(_find_stage(work, author), cached=not own_tower)
            title = f"pseudo-labels {author.partition('-')[2]}".strip()
            work.answer(model, own, answers, PREDICTIONS, author, title)
    work.record("questions", len(questions))


def distill(
    work: StageInputs, config: DistillConfig, teacher: TeacherConfig | None, teachers: Specialists = NO_SPECIALISTS
) -> None:
    """Distill the teacher, or each of several on its own questions, into a second copy of the base, over the whole
    training split, or what is labelled of it."""
    train, student = work.vary(_label_samples(work, config)), work.model("base")
    if config.kd_weight > 0:
        objective = Distillation(config.kd_weight, config.temperature)
        shown = _show_teacher(train, teacher, work.seed)
        kd_teacher = _open_teacher(work, student, shown, config, teacher, teachers)
        if config.on_policy:
            student = _fit_on_policy(work, student, train, config, objective, kd_teacher)
        else:
            work.fit(student, train, config.fit, "distill", objective=objective, teacher=kd_teacher)
    else:
        plain = SmoothedCrossEntropy(config.smoothing) if config.smoothing else CrossEntropy()
        work.fit(student, train, config.fit, "tune", objective=plain)
    work.save(student)

    def drop_stores() -> None:
        for store in work.folder.glob(f"{STORE}*"):
            shutil.rmtree(store, ignore_errors=True)

    # Nobody reads these gigabytes again: a finished stage is never trained anew, and its variants are other stages.
    distributed.on_main_process(drop_stores)


def _label_samples(work: StageInputs, config: DistillConfig) -> list[Sample]:
    """The training samples with the answers to learn from: truths, and pseudo-labels where the run has them. A sample
    whose truth is hidden, and that has no pseudo-label or an empty one, is left out."""
    train = work.samples("train")
    known = sample_share(train, config.labelled, work.seed) if config.labelled else train
    work.record("questions", len(known))
    if "pseudo" not in work.inputs:
        return known
    pseudo_answers = {p.id: p.answer.answer for p in read_predictions(work.inputs["pseudo"])}
    usable = {i: answer for i, answer in pseudo_answers.items() if answer.text.strip()}
    work.record("pseudo_labels", {"used": len(usable), "empty": len(pseudo_answers) - len(usable)})
    known_ids = {s.id for s in known}
    return [
        s.answered(usable[s.id], "+pseudo") if s.id in usable else s
        for s in train
        if s.id in usable or s.id in known_ids
    ]


def _fit_on_policy(
    work: StageInputs, student: VisionLanguageModel, train: Sequence[Sample], config: DistillConfig,
    objective: Distillation, kd_teacher: Teacher,
) -> VisionLanguageModel:  # fmt: skip
    """The student, trained in phases. At the start of each, answers to another share of the questions are sampled from
    it; in the place of the labels they get the teacher's KL alone (GKD, Agarwal et al. 2024)."""
    for phase in range(config.phases):
        student = work.reopen(student) if phase else student
        number = f"{phase + 1}/{config.phases}"
        asked = choose_share(train, config.on_policy, work.seed, f"on-policy {phase}")
        file, title = f"own-{phase + 1}.jsonl", f"own answers {number}"
        with record_seconds(work, f"own_answers_{phase + 1}", len(asked)):
            predictions = work.answer(student.eval(), asked, OWN_ANSWERS, file, "student", title)
        own = {p.id: p.answer.answer for p in predictions}
        samples = [s.answered(own[s.id], "+own") if s.id in own else s for s in train]
        work.fit(
            student, samples, config.phase_fit, f"distill-{phase + 1} {number}", objective=objective,
            teacher=kd_teacher, schedule_part=(phase, config.phases), unlabelled={f"{i}+own" for i in own},
        )  # fmt: skip
    return student


def load_teacher(
    work: StageInputs, student: VisionLanguageModel, live: Sequence[str] = (), cached: bool = True,
    name: str = "teacher",
) -> VisionLanguageModel:  # fmt: skip
    """The teacher, as `match_student` makes it; `live`: as there; `cached`: as `StageInputs.model`."""
    model = work.model(_find_stage(work, name), cached)
    match_student(model, student, live, _name_knob(name) if "-" in name else "the teacher")
    return model


def _open_teacher(
    work: StageInputs, student: VisionLanguageModel, samples: Sequence[Sample], config: DistillConfig,
    teacher: TeacherConfig | None, teachers: Specialists,
) -> Teacher:  # fmt: skip
    """A live teacher, the student's average, or the stored outputs of the teachers for all samples (as they see them),
    which an earlier attempt may have written."""
    if config.teacher_as == "average":
        return AveragedTeacher(work.model("base"), config.decay)
    if config.teacher_as == "live":
        # of one base, it may be what LoRA added, on the student's weights; but they are merged after each phase
        if config.on_policy or (teacher and teacher.base):
            return LiveTeacher(load_teacher(work, student, live=["distill.teacher_as=states"]))
        return work.live_teacher(student, config.fit)
    stored = [
        _store_outputs(work, student, own, config, name, not _has_own_tower(name, teacher, teachers))
        for name, own in assign_questions(samples, teachers).items()
    ]
    work.record("stored_teacher", {"bytes": sum(folder_bytes(one.folder) for one in stored)})
    return StoredTeacher.join(stored)


def _store_outputs(
    work: StageInputs, student: VisionLanguageModel, samples: Sequence[Sample], config: DistillConfig, name: str,
    cached: bool,
) -> StoredTeacher:  # fmt: skip
    """What a teacher has to say to its samples, stored unless an earlier attempt has done it; `cached`: as
    `load_teacher`."""
    assert config.teacher_as in ("states", "draws")
    folder, part = work.folder / name.replace("teacher", STORE, 1), name.partition("-")[2]
    identity = identify_store(
        config.teacher_as, samples, find_model(work.inputs[_find_stage(work, name)]), student,
        temperature=config.temperature, draws=config.draws, seed=work.seed,
    )  # fmt: skip

    def store() -> None:
        if not is_store_full(folder):
            rows = max(1, config.fit.rows // (config.fit.accumulate * distributed.size()))
            model, title = load_teacher(work, student, cached=cached, name=name), f"store the teacher {part}".strip()
            with record_seconds(work, "-".join(["stored_samples", *([part] if part else [])]), len(samples)):
                store_teacher(folder, model, samples, identity, title=title, rows_a_pass=rows)

    distributed.on_main_process(store)
    return StoredTeacher(folder, identity)
