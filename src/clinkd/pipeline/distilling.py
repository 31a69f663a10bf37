"""The stages of the teacher, its pseudo-labels and the student. What they teach: docs/DISTILLATION.md."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from clinkd import distributed
from clinkd.config import AnswerConfig, DistillConfig, TeacherConfig
from clinkd.data.questions import show_boxes_only
from clinkd.data.split import sample_share
from clinkd.model.vlm import VisionLanguageModel
from clinkd.objectives import CrossEntropy, Distillation, SmoothedCrossEntropy
from clinkd.pipeline.damage import MODEL
from clinkd.pipeline.inputs import StageInputs, choose_share, record_seconds
from clinkd.pipeline.prepared import PREDICTIONS, read_predictions
from clinkd.records import BoxedText, Sample
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
OWN_ANSWERS = AnswerConfig(method="sampling", candidates=1)  # from all of the distribution, as in GKD


def teacher(work: StageInputs, config: TeacherConfig, base: str) -> None:
    """Tune a copy of the model of the stage `base` on a share of the training images, stratified by task and modality.
    With `view=crop` it sees only the boxes."""
    chosen = sample_share(work.samples("train"), config.share, work.seed)
    work.record("questions", len(chosen))
    model = work.model(base)
    work.fit(model, _show_teacher(work.vary(chosen), config, work.seed), config.fit, "teacher")
    work.save(model)


def _show_teacher(samples: Sequence[Sample], config: TeacherConfig | None, seed: int) -> list[Sample]:
    """The samples as the teacher sees them."""
    cropped = config is not None and config.view == "crop"
    return [show_boxes_only(s, seed) for s in samples] if cropped else [*samples]


def pseudo(work: StageInputs, config: DistillConfig, answers: AnswerConfig, teacher: TeacherConfig | None) -> None:
    """Let the teacher (or the untrained base) answer the training questions whose truths are hidden; if none are, those
    that the teacher was not trained on."""
    train = work.samples("train")
    share = config.labelled or (teacher.share if teacher else None)
    labelled_ids = {s.id for s in sample_share(train, share, work.seed)} if share else set()
    questions = [s for s in train if s.id not in labelled_ids]
    if config.labelled:
        questions = [s.answered(BoxedText(""), "") for s in questions]  # nothing can read a truth that is not there
    if config.targets != "pseudo":
        questions = choose_share(questions, config.pseudo_share, work.seed, "pseudo")
    author, own_tower = config.pseudo_from, bool(teacher and teacher.base)
    model = work.model(author, cached=not (author == "teacher" and own_tower))
    with record_seconds(work, "answers", len(questions)):
        work.answer(model, questions, answers, PREDICTIONS, author, "pseudo-labels")
    work.record("questions", len(questions))


def distill(work: StageInputs, config: DistillConfig, teacher: TeacherConfig | None) -> None:
    """Distill the teacher into a second copy of the base, over the whole training split, or what is labelled of it."""
    train, student = work.vary(_label_samples(work, config)), work.model("base")
    if config.kd_weight > 0:
        objective = Distillation(config.kd_weight, config.temperature)
        kd_teacher = _open_teacher(work, student, _show_teacher(train, teacher, work.seed), config, teacher)
        if config.on_policy:
            student = _fit_on_policy(work, student, train, config, objective, kd_teacher)
        else:
            work.fit(student, train, config.fit, "distill", objective=objective, teacher=kd_teacher)
    else:
        plain = SmoothedCrossEntropy(config.smoothing) if config.smoothing else CrossEntropy()
        work.fit(student, train, config.fit, "tune", objective=plain)
    work.save(student)
    # Nobody reads these gigabytes again: a finished stage is never trained anew, and its variants are other stages.
    distributed.on_main_process(lambda: shutil.rmtree(work.folder / STORE, ignore_errors=True))


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
    work: StageInputs, student: VisionLanguageModel, live: Sequence[str] = (), cached: bool = True
) -> VisionLanguageModel:
    """The tuned teacher, as `match_student` makes it; `live`: as there; `cached`: as `StageInputs.model`."""
    model = work.model("teacher", cached)
    match_student(model, student, live)
    return model


def _open_teacher(
    work: StageInputs, student: VisionLanguageModel, samples: Sequence[Sample], config: DistillConfig,
    teacher: TeacherConfig | None,
) -> Teacher:  # fmt: skip
    """A live teacher, the student's average, or the stored outputs of the teacher for all samples (as it sees them),
    which an earlier attempt may have written."""
    if config.teacher_as == "average":
        return AveragedTeacher(work.model("base"), config.decay)
    if config.teacher_as == "live":
        # of one base, it may be what LoRA added, on the student's weights; but they are merged after each phase
        if config.on_policy or (teacher and teacher.base):
            return LiveTeacher(load_teacher(work, student, live=["distill.teacher_as=states"]))
        return work.live_teacher(student, config.fit)
    folder, teacher_folder = work.folder / STORE, work.inputs["teacher"] / MODEL
    identity = identify_store(
        config.teacher_as, samples, teacher_folder, student,
        temperature=config.temperature, draws=config.draws, seed=work.seed,
    )  # fmt: skip

    def store_outputs() -> None:
        if not is_store_full(folder):
            rows = max(1, config.fit.rows // (config.fit.accumulate * distributed.size()))
            model = load_teacher(work, student, cached=not (teacher and teacher.base))
            with record_seconds(work, "stored_samples", len(samples)):
                store_teacher(folder, model, samples, identity, title="store the teacher", rows_a_pass=rows)

    distributed.on_main_process(store_outputs)
    work.record("stored_teacher", {"bytes": folder_bytes(folder)})
    return StoredTeacher(folder, identity)
