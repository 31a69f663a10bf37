"""The code of each stage: a step reads the folders of the stages before it and fills its own folder."""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from clinkd import distributed
from clinkd.clip.captions import make_captioned_views
from clinkd.clip.crops import MOST_CROPS, train_crops
from clinkd.clip.model import ImageTextModel, new_tiny_clip, train_clip
from clinkd.config import (
    AnswerConfig,
    ClipConfig,
    DataConfig,
    DistillConfig,
    FitConfig,
    ModelConfig,
    PretrainConfig,
    ReflectConfig,
    RunConfig,
    SelectConfig,
    TeacherConfig,
)
from clinkd.correction.correctors import make_corrected_samples
from clinkd.correction.review import is_missed, review
from clinkd.correction.summary import count_changes, describe_review, summary
from clinkd.data import phantoms
from clinkd.data.general_drawings import SHAPES, write_drawings
from clinkd.data.images.variants import add_variants
from clinkd.data.questions import ask_absent_names, make_bare_pairs, show_boxes_only
from clinkd.data.readers.forms import marks_everything, read_samples
from clinkd.data.readers.source import Source
from clinkd.data.split import sample_share, split_fold, split_samples
from clinkd.inference import (
    Agreement,
    ClipScorer,
    CropScorer,
    RandomScorer,
    Scorer,
    TimedScorer,
    measure_likelihoods,
    rerank,
)
from clinkd.inference import answer as answer_samples
from clinkd.inference.disagreement import count_disagreement
from clinkd.inference.probe import Cells, answer_by_probe, look_at
from clinkd.inference.self_consistency import measure_supports
from clinkd.language.agreement import answer_accuracy
from clinkd.language.facts import Lexicon
from clinkd.model.eyes import Eyes, EyesNetwork, Whitening, find_license, look, look_in_parallel
from clinkd.model.folders import opened_folder
from clinkd.model.vision import VisionPretrainer
from clinkd.model.vlm import VisionLanguageModel, load, new_tiny, spell_samples, tiny_images
from clinkd.objectives import CrossEntropy, Distillation, Objective, SmoothedCrossEntropy
from clinkd.pipeline.correcting import (
    ANSWERS,
    CORRECTIONS,
    EFFECT,
    CorrectionContext,
    replace_overruled_truths,
)
from clinkd.pipeline.damage import MODEL, POINTER, UNTRAINED, point_to, read_stage_lines
from clinkd.pipeline.graph import StageContext, stage_record
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.models import CROP_WEIGHTS, load_model, make_scorer
from clinkd.pipeline.prepared import (
    DATA,
    LIKELIHOODS,
    PREDICTIONS,
    read_data,
    read_images,
    read_predictions,
    read_split,
    read_variants,
)
from clinkd.records import SPLITS, BadInput, BoxedText, Correction, ImageRef, Prediction, Sample, Split
from clinkd.scoring.blind.baselines import IMAGES_SHUFFLED, shuffle_images
from clinkd.scoring.likelihood import average_likelihoods
from clinkd.storage import JsonLines, folder_bytes, progress, publish, write_json, write_lines
from clinkd.training import (
    AveragedTeacher,
    CellCache,
    FeatureCache,
    FitRun,
    LiveTeacher,
    StoredTeacher,
    Teacher,
    cache_cells,
    cache_features,
    fit,
    identify_store,
    is_store_full,
    store_teacher,
)

ANSWER_FILES: dict[Split, str] = {"validation": "validation.jsonl", "test": PREDICTIONS}
STORE = "stored-teacher"
FEATURES = "gallery"
WHITENED = 256  # most training images, spread over all, whose features decide the whitening
SUPPORTS = "validation-supports.jsonl"  # of the candidates for the validation questions
DRAWINGS = "drawn"
OWN_ANSWERS = AnswerConfig(method="sampling", candidates=1)  # from all of the distribution, as in GKD
PRETRAINED_VISION = "seen"  # the model between the two halves of its pretraining


# -- stages -----------------------------------------------------------------------------------------------------------


def prepare(work: StageContext, config: DataConfig) -> None:
    """Draw phantoms, or read the given data and split it by group; one file of samples a split, that of training with
    questions for absent structures. Variants of training images are no samples here: trainings make them."""
    left_out = Counter[str]()
    drawn: Mapping[str, Collection[str]] = {}
    marked = True  # every structure of every image
    if config.path is None:
        total = config.phantoms.train_images + config.phantoms.validation_images + config.phantoms.test_images
        with _record_seconds(work, "draw", total), progress(total, "draw phantoms", "images") as advance:
            samples = phantoms.write_phantoms(work.folder, config.phantoms, work.seed, config.workers, advance)
        root, lexicon = Path(), phantoms.LEXICON
    else:
        source = Source(config.path, max_questions=config.max_questions, max_boxes=config.max_boxes, seed=work.seed)
        all_samples = read_samples(source, left_out)
        drawn, marked = source.drawn.by_image, marks_everything(source)
        if config.folds:
            samples = split_fold(all_samples, config.fold, config.folds, config.validation_share, work.seed)
        else:
            samples = split_samples(all_samples, config.validation_share, config.test_share, work.seed)
        root = source.root.resolve()
        lexicon = Lexicon(tuple(sorted({n for s in samples for n in s.names})), (), (), ())
    absent = _ask_absent(work, config, samples, drawn) if marked else []
    if config.absent and not marked:
        left_out[f"data.absent={config.absent:g}: no absent structure is asked for, as the data may not mark all"] = 1
    for split in SPLITS:
        part = [s for s in (*samples, *absent) if s.split == split]
        if not part:
            raise BadInput(
                f"data: no image falls into the {split} split; give more data or a larger data.{split}_share"
            )
        write_lines(work.folder / f"{split}.jsonl", (s.to_json() for s in part))
        work.record(split, {"questions": len(part), "images": len({i.path for s in part for i in s.images})})
    if left_out:
        work.record("left_out", dict(left_out))
    variants = {"variants": config.variants} if config.variants > 1 else {}
    write_json(work.folder / DATA, {"root": str(root), "lexicon": lexicon.to_json(), **variants})


def _ask_absent(
    work: StageContext, config: DataConfig, samples: Sequence[Sample], drawn: Mapping[str, Collection[str]]
) -> list[Sample]:
    """Training questions for structures that are not there; their number is recorded."""
    absent = ask_absent_names([s for s in samples if s.split == "train"], config.absent, work.seed, drawn)
    if config.absent:
        work.record("absent", len(absent))
    return absent


def base(work: StageInputs, config: ModelConfig) -> None:
    """Make the model before any training: random weights, or a check that pretrained weights load with the knobs."""
    if general_stage := next((name for name in work.inputs if name.startswith("general")), None):
        model = load(work.inputs[general_stage] / MODEL, work.open_image, config)  # with the positions of this run
        work.save(model)
    elif "tower" in work.inputs:
        model, pairs = work.model("tower"), make_bare_pairs(work.vary(work.samples("train")))
        if config.tiny.pretrain and config.tiny.pretrain.pairs and pairs:
            work.fit(model, pairs, config.tiny.pretrain.pairs, "pairs")
        work.save(model)
    elif config.base is None:
        train = work.vary(work.samples("train"))
        model = work.new_model(train, config)
        if config.tiny.pretrain:
            model = _pretrain(work, model, make_bare_pairs(train), config.tiny.pretrain)
        work.save(model)
        distributed.on_main_process(lambda: shutil.rmtree(work.folder / PRETRAINED_VISION, ignore_errors=True))
    else:
        model = load(config.base, work.open_image, config, foreign=True)
        folder, knobs = config.base, config.model_dump(mode="json")
        distributed.on_main_process(lambda: write_json(work.folder / POINTER, {**point_to(folder), "model": knobs}))
    work.record("parameters", sum(p.numel() for p in model.parameters()))


def general(context: StageContext, config: ModelConfig, workers: int, hardware: Machine) -> None:
    """A base that knows images but no medicine, from drawings of plain things."""
    pretrain, drawn = config.tiny.pretrain, context.folder / DRAWINGS
    assert pretrain and pretrain.general
    total = pretrain.general.images

    def draw() -> None:
        assert pretrain and pretrain.general
        with _record_seconds(context, "draw", total), progress(total, "draw plain things", "images") as advance:
            samples = write_drawings(drawn, pretrain.general, workers, advance)
        write_lines(drawn / "train.jsonl", (s.to_json() for s in samples))
        write_json(drawn / DATA, {"root": "", "lexicon": Lexicon(()).to_json()})

    distributed.on_main_process(draw)
    work = StageInputs(replace(context, inputs={"prepare": drawn}), hardware)
    train = work.samples("train")
    model = work.new_model(train, config)
    named, invented = (make_bare_pairs([s for s in train if (s.names[0] in SHAPES) is kind]) for kind in (True, False))
    work.save(_pretrain(work, model, named, pretrain, invented))
    for part in (DRAWINGS, PRETRAINED_VISION):
        distributed.on_main_process(partial(shutil.rmtree, work.folder / part, ignore_errors=True))


def eyes(work: StageInputs, config: ModelConfig) -> None:
    """Fit the whitening of frozen image features on training images, then compute the cells of every image."""
    network, images = EyesNetwork.from_wheel(), tiny_images(config, work.open_image)
    train = sorted(read_images(work.inputs["prepare"], "train"), key=str)
    number = min(WHITENED, len(train))
    chosen = [train[k * len(train) // number] for k in range(number)]
    with _record_seconds(work, "whitened", len(chosen)), progress(len(chosen), "whiten", "images") as advance:

        def see_channels(ref: ImageRef) -> torch.Tensor:
            advance(1)
            return look(network, images.picture(ref)).flatten(0, 1)

        whitening = Whitening.fit(look_in_parallel(see_channels, chosen), images.geometry.values)
    images.eyes = Eyes(network, whitening, find_license())
    images.eyes.save(work.folder)
    refs = work.list_images()
    with _record_seconds(work, "images", len(refs)):
        work.record("bytes", cache_cells(work.folder / FEATURES, images, refs, "look at images"))


def tower(work: StageInputs, config: ModelConfig) -> None:
    """Make the tiny model and pretrain its vision tower, which is then fixed: `see` computes its features once."""
    train = work.vary(work.samples("train"))
    model, pairs = work.new_model(train, config), make_bare_pairs(train)
    work.record("bare_pairs", len(pairs))
    if config.tiny.pretrain and config.tiny.pretrain.vision and pairs:
        _pretrain_vision(work, model, pairs, config.tiny.pretrain.vision)
    work.save(model)


def see(work: StageInputs) -> None:
    """Compute the features of every image of every split, and of every variant, with the frozen vision tower."""
    refs = work.list_images()
    model = work.model("tower" if "tower" in work.inputs else "base")
    with _record_seconds(work, "images", len(refs)):
        num_bytes = cache_features(work.folder / FEATURES, model, refs, "see images")
    work.record("bytes", num_bytes)


def _pretrain(
    work: StageInputs, model: VisionLanguageModel, pairs: Sequence[Sample], config: PretrainConfig,
    more: Sequence[Sample] = (),
) -> VisionLanguageModel:  # fmt: skip
    """Pretrain the vision tower, then the whole model, on bare pairs. No sentence of the four tasks is used.

    `more`: pairs for the whole model alone, whose names are no classes of the tower.
    """
    work.record("bare_pairs", len(pairs))
    vision_folder, draft = work.folder / PRETRAINED_VISION, work.folder / f".{PRETRAINED_VISION}.part"
    if config.vision and pairs:
        if not vision_folder.is_dir():
            _pretrain_vision(work, model, pairs, config.vision)

            def save_vision() -> None:
                shutil.rmtree(draft, ignore_errors=True)
                model.save(draft)
                publish(draft, vision_folder)

            distributed.on_main_process(save_vision)
            work.drop_checkpoints()
        model = load(vision_folder, work.open_image).to(work.device)
    if config.pairs and pairs:
        work.fit(model, [*pairs, *more], config.pairs, "pairs")
    return model


def _pretrain_vision(work: StageInputs, model: VisionLanguageModel, pairs: Sequence[Sample], config: FitConfig) -> None:
    pretrainer = VisionPretrainer(model, [s.names[0] for s in pairs]).to(work.device)
    work.fit(pretrainer, pairs, config, "see")
    pretrainer.return_codes(model)


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
        questions = _choose_share(questions, config.pseudo_share, work.seed, "pseudo")
    model, author = work.model(config.pseudo_from), config.pseudo_from
    with _record_seconds(work, "answers", len(questions)):
        work.answer(model, questions, answers, PREDICTIONS, author, "pseudo-labels")
    work.record("questions", len(questions))


def distill(work: StageInputs, config: DistillConfig, teacher: TeacherConfig | None) -> None:
    """Distill the teacher into a second copy of the base, over the whole training split, or what is labelled of it."""
    train, student = work.vary(_label_samples(work, config)), work.model("base")
    if config.kd_weight > 0:
        objective = Distillation(config.kd_weight, config.temperature)
        kd_teacher = _open_teacher(work, student, _show_teacher(train, teacher, work.seed), config)
        if config.on_policy:
            _fit_on_policy(work, student, train, config, objective, kd_teacher)
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
) -> None:  # fmt: skip
    """Train in phases. At the start of each, answers to another share of the questions are sampled from the student; in
    the place of the labels they get the teacher's KL alone (GKD, Agarwal et al. 2024)."""
    for phase in range(config.phases):
        number = f"{phase + 1}/{config.phases}"
        asked = _choose_share(train, config.on_policy, work.seed, f"on-policy {phase}")
        file, title = f"own-{phase + 1}.jsonl", f"own answers {number}"
        with _record_seconds(work, f"own_answers_{phase + 1}", len(asked)):
            predictions = work.answer(student.eval(), asked, OWN_ANSWERS, file, "student", title)
        own = {p.id: p.answer.answer for p in predictions}
        samples = [s.answered(own[s.id], "+own") if s.id in own else s for s in train]
        work.fit(
            student, samples, config.phase_fit, f"distill-{phase + 1} {number}", objective=objective,
            teacher=kd_teacher, schedule_part=(phase, config.phases), unlabelled={f"{i}+own" for i in own},
        )  # fmt: skip


def _open_teacher(
    work: StageInputs, student: VisionLanguageModel, samples: Sequence[Sample], config: DistillConfig
) -> Teacher:
    """A live teacher, the student's average, or the stored outputs of the teacher for all samples (as it sees them),
    which an earlier attempt may have written."""
    if config.teacher_as == "average":
        return AveragedTeacher(work.model("base"), config.decay)
    if config.teacher_as == "live":
        return LiveTeacher(work.model("teacher"))
    folder, teacher_folder = work.folder / STORE, work.inputs["teacher"] / MODEL
    identity = identify_store(
        config.teacher_as, samples, teacher_folder, student,
        temperature=config.temperature, draws=config.draws, seed=work.seed,
    )  # fmt: skip

    def store_outputs() -> None:
        if not is_store_full(folder):
            rows, model = config.fit.rows // config.fit.accumulate, work.model("teacher")
            with _record_seconds(work, "stored_samples", len(samples)):
                store_teacher(folder, model, samples, identity, title="store the teacher", rows_a_pass=rows)

    distributed.on_main_process(store_outputs)
    work.record("stored_teacher", {"bytes": folder_bytes(folder)})
    return StoredTeacher(folder, identity)


def reflect(
    work: StageInputs, config: ReflectConfig, round: int, previous: str, answers: AnswerConfig,
    distill: DistillConfig | None,
) -> None:  # fmt: skip
    """Do one round: answer training questions, rewrite the wrong answers from the truth, train on both."""
    model, untaught = work.model(previous), work.samples("train")
    train = replace_overruled_truths(work.inputs["prepare"], config, untaught)
    work.record("overruled_truths", sum(a is not b for a, b in zip(untaught, train, strict=True)))
    questions = _choose_share(train, config.review_share, work.seed, f"round {round}")
    number = f"{round}/{config.rounds}"
    with _record_seconds(work, "answers", len(questions)):
        predictions = work.answer(model, questions, answers.first, ANSWERS, previous, f"review {number}")
    corrections_file = work.folder / CORRECTIONS

    def write_corrections() -> None:
        if corrections_file.is_file():  # an earlier attempt has written it
            return
        context = work.correction_context(config, train)
        reviewed = context.review_answers(questions, predictions, round)
        corrections = context.correct_answers(questions, reviewed, f"correct {number}")
        table = summary(corrections, questions)
        write_json(work.folder / "summary.json", {"title": table.title, "columns": table.columns, "rows": table.rows})
        write_lines(corrections_file, (c.to_json() for c in corrections))  # the last, as it says that all is written

    with _record_seconds(work, "corrections", len(questions)):
        distributed.on_main_process(write_corrections)
    corrections = [Correction.from_json(record) for record in JsonLines(corrections_file).read()]
    counts = describe_review(corrections, work.lexicon.names)
    work.record("reviewed", {"asked": len(questions), "of": len(train), **counts})
    kd_teacher = LiveTeacher(work.model("teacher")) if config.objective == "distill" else None
    work.fit(
        model,
        work.vary([*train, *make_corrected_samples(questions, corrections)]),
        config.fit,
        f"reflect {number}",
        objective=Distillation(distill.kd_weight, distill.temperature) if kd_teacher and distill else CrossEntropy(),
        teacher=kd_teacher,
        schedule_part=(round - 1, config.rounds),
    )
    work.save(model)
    if config.recheck:
        rechecked, title = _choose_rechecked(questions, corrections, config.recheck, work.seed), f"recheck {number}"
        with _record_seconds(work, "rechecks", len(rechecked)):
            predictions = work.answer(model.eval(), rechecked, answers.first, "rechecked.jsonl", title, title)
        distributed.on_main_process(lambda: _write_effect(work, config, train, rechecked, predictions, corrections))


def _choose_rechecked(
    questions: Sequence[Sample], corrections: Sequence[Correction], number: int, seed: int
) -> list[Sample]:
    """As many reviewed questions, half of them answered wrong before, half right."""
    chosen: list[Sample] = []
    for wrong in (True, False):
        ids = {c.id for c in corrections if c.wrong == wrong}
        if alike := [s for s in questions if s.id in ids]:
            chosen += _choose_share(alike, min(1.0, number / 2 / len(alike)), seed, "recheck")
    return chosen


def _write_effect(
    work: StageInputs, config: ReflectConfig, train: Sequence[Sample], rechecked: Sequence[Sample],
    predictions: Sequence[Prediction], corrections: Sequence[Correction],
) -> None:  # fmt: skip
    """Write what became of the answers to the rechecked questions."""
    similarity = work.correction_context(config, train).similarity
    reviewed = {c.id: c for c in corrections}
    now = {c.id: c for c in review(rechecked, predictions, similarity, config, 0)}
    records = (
        {
            "id": s.id, "task": s.task.value, "modality": s.modality.value, "before_wrong": reviewed[s.id].wrong,
            "after_wrong": now[s.id].wrong, "answer": now[s.id].before.to_json(),
        }
        for s in rechecked
    )  # fmt: skip
    write_lines(work.folder / EFFECT, records)
    names = work.lexicon.names
    work.record("rechecked", count_changes((is_missed(reviewed[i], names), is_missed(now[i], names)) for i in now))


def clip(work: StageInputs, config: ClipConfig) -> None:
    """Make the image-text model that scores candidates: load it, or train it on the training captions, and on boxes
    with their names and captions if it will see crops. Without two images with a caption there is none, as a caution
    says. With `config.eyes`, train the crop classifier in its place."""
    if config.eyes:
        return _train_crop_classifier(work)
    if config.base is not None:
        ImageTextModel.load(config.base, work.open_image)
        write_json(work.folder / POINTER, point_to(config.base))
        return
    kinds = make_captioned_views(work.vary(work.samples("train")), config.grounding != "text", work.seed)
    kinds = [kind for kind in kinds if len(kind) > 1]
    if not kinds:
        reason = "fewer than two training images have a caption or named boxes, so no CLIP was trained"
        way_out = "data with a column of names (or captions) trains one, select.clip.base=PATH brings one"
        work.record("cautions", [f"{reason}: the first candidate is the answer; {way_out}"])
        return write_json(work.folder / UNTRAINED, {"reason": reason})
    model = new_tiny_clip(work.model("base").tokenizer, config, work.seed, work.open_image)
    with _record_seconds(work, "pairs", round(config.epochs * len(kinds[0]))):
        loss = train_clip(model, kinds, config, work.seed)
    work.record("loss", loss)
    work.record("views", [len(kind) for kind in kinds])
    model.save(work.folder / MODEL)


def _train_crop_classifier(work: StageInputs) -> None:
    """Train on the training boxes with their names, and on boxes that miss every structure."""
    _, named, _ = make_captioned_views(work.samples("train"), crops=True, seed=work.seed)
    if not named:
        reason = "no training image has a box with a name, so no crop classifier was trained"
        work.record("cautions", [f"{reason}: the first candidate is the answer; bring data with names of boxes"])
        return write_json(work.folder / UNTRAINED, {"reason": reason})
    chosen = random.Random(f"{work.seed} crops").sample(named, min(MOST_CROPS, len(named)))
    with _record_seconds(work, "crops", len(chosen)):
        model, loss = train_crops(chosen, EyesNetwork.from_wheel(), work.open_image, work.seed)
    work.record("crops_of", len(named))
    work.record("loss", loss)
    model.save(work.folder / MODEL)


def answer(work: StageInputs, config: AnswerConfig, previous: str) -> None:
    """Write the final model's candidates for the test questions, and for the validation questions `select` uses."""
    model = work.model(previous)
    author = f"{previous}-{stage_record(work.inputs[previous])['identity']}"
    questions = {split: work.samples(split) for split in ANSWER_FILES}
    with _record_seconds(work, "answers", sum(map(len, questions.values()))):
        for split, file in ANSWER_FILES.items():
            answers = work.answer(model, questions[split], config, file, author, f"answer {split}")
            if split == "validation":
                _write_supports(work, model, answers)


def _write_supports(work: StageInputs, model: VisionLanguageModel, answers: Sequence[Prediction]) -> None:
    """Write how far the candidates of each answer agree with each of them, for `select`, which has no tokenizer."""
    names = work.lexicon.names
    records = (
        {"id": p.id, "supports": measure_supports(p, model.count_answer_tokens(p.candidates), names)} for p in answers
    )
    distributed.on_main_process(lambda: write_lines(work.folder / SUPPORTS, records))


def select(work: StageInputs, config: SelectConfig) -> None:
    """Score every candidate, and choose the best one in the tasks for which the scorer is trusted.

    Cheap rival scorers write their scores too, so that the gain of the selection can be compared with theirs.
    """
    scorer, tasks = work.scorer(config), list(config.tasks)
    rivals = [TimedScorer(r) for r in (Agreement(), RandomScorer(work.seed)) if r.name != scorer.name]
    timed = TimedScorer(scorer)

    def choose_answers(split: Split, task_names: Sequence[str]) -> tuple[dict[str, Sample], list[Prediction]]:
        samples = {s.id: s for s in work.samples(split)}
        answers = read_predictions(work.inputs["answer"], ANSWER_FILES[split])
        return samples, rerank(samples, answers, timed, task_names, rivals)

    if isinstance(scorer, CropScorer):
        _fit_crop_weights(work, scorer)
    samples, validation = choose_answers("validation", tasks)
    if config.trust == "validated" and config.scorer != "first":
        gain: dict[str, list[float]] = {}
        for p in validation:
            s = samples[p.id]
            first, best = (
                answer_accuracy(c.answer, s.answer, s.facts, work.lexicon) for c in (p.candidates[0], p.answer)
            )
            gain.setdefault(s.task, []).append(best - first)
        mean = {task: sum(g) / len(g) for task, g in gain.items()}
        tasks = [t for t in tasks if mean.get(t, 0) > 0]
        work.record("validation_gain", {t: round(100 * g, 2) for t, g in mean.items()})
    work.record("reordered_tasks", tasks)
    chosen = [p if samples[p.id].task in tasks else replace(p, chosen=0) for p in validation]
    _record_disagreement(work, samples, chosen)
    _, predictions = choose_answers("test", tasks)
    work.record("scoring_seconds", {s.name: round(s.seconds, 3) for s in (*rivals, timed)})
    if isinstance(scorer, ClipScorer):
        counts = {"candidates": scorer.num_candidates, "too_long": scorer.num_too_long}
        work.record("clip_inputs", {**counts, "token_limit": scorer.model.towers.limit})
    write_lines(work.folder / PREDICTIONS, (p.to_json() for p in predictions))


def _fit_crop_weights(work: StageInputs, scorer: CropScorer) -> None:
    """Choose on the validation answers how much the model's own log-probability counts beside the crops."""
    samples = {s.id: s for s in work.samples("validation")}
    answers = read_predictions(work.inputs["answer"], ANSWER_FILES["validation"])
    fitted = scorer.fit_weights([samples[p.id] for p in answers], answers, work.lexicon)
    work.record(CROP_WEIGHTS, {kind: asdict(choice) for kind, choice in fitted.items()})


def _record_disagreement(work: StageInputs, samples: Mapping[str, Sample], predictions: Sequence[Prediction]) -> None:
    """Record by task whether validation answers whose candidates disagree are wrong more often."""
    file = work.inputs["answer"] / SUPPORTS
    if not file.is_file():  # answers of an older version
        return
    supports = {record["id"]: record["supports"] for record in read_stage_lines(file)}
    chosen = {p.id: supports[p.id][p.chosen] for p in predictions}
    counts = count_disagreement(samples, predictions, chosen, work.lexicon.names)
    work.record("disagreement", {task: count._asdict() for task, count in counts.items()})


def shuffle(work: StageInputs, config: AnswerConfig, previous: str) -> None:
    """Let the final model answer each test question with another image. This baseline does not see the image of the
    question, but knows all that the model has learnt."""
    questions = shuffle_images(work.samples("test"))
    if not questions:  # a single image
        return write_lines(work.folder / PREDICTIONS, [])
    model = work.model(previous)
    with _record_seconds(work, "answers", len(questions)):
        work.answer(model, questions, config, PREDICTIONS, IMAGES_SHUFFLED, "images shuffled")


def likelihood(work: StageInputs, batch: int, previous: str) -> None:
    """Look up how likely the true answers to the test questions are under the final model, by kind of token."""
    questions, model, file = work.samples("test"), work.model(previous), work.folder / LIKELIHOODS
    with _record_seconds(work, "likelihoods", len(questions)):
        measure_likelihoods(model, questions, file=file, batch=batch, title="likelihood of the truth")
    means = average_likelihoods(JsonLines(file).read())
    work.record("log_likelihood", {f"{task} {kind}": round(found.mean, 4) for (task, kind), found in means.items()})


def probe(work: StageInputs) -> None:
    """Answer the test questions from frozen image features by linear fits, to stand beside the model's answers."""
    network = EyesNetwork.from_wheel()
    train, validation, test = (work.samples(split) for split in SPLITS)
    num_images = len({i for samples in (train, validation, test) for s in samples for i in s.images[:1]})
    with _record_seconds(work, "images", num_images), progress(num_images, "probe", "images") as advance:

        def see_cells(image: ImageRef) -> Cells:
            cells = look_at(network, work.open_image(image))
            advance(1)
            return cells

        predictions = answer_by_probe(train, validation, test, see_cells)
    write_lines(work.folder / PREDICTIONS, (p.to_json() for p in predictions))


def score(work: StageContext, whole: RunConfig) -> None:
    """Turn predictions into scores, tables and the report."""
    from clinkd.pipeline import report

    report.write(work, whole)


# -- cross-validation -------------------------------------------------------------------------------------------------


def pool_splits(work: StageContext, folds: Sequence[Mapping[str, str]]) -> None:
    """Join the test splits of finished folds; `folds`: the folder names of the stages of each.

    The other splits stay empty: what one fold was trained on, another was tested on.
    """
    from clinkd.pipeline import pooling

    pooling.pool_splits(work, folds)


def pool_answers(work: StageContext, folds: Sequence[Mapping[str, str]]) -> None:
    """Join the chosen answers of finished folds, and the image-blind baselines' answers from each fold's own splits."""
    from clinkd.pipeline import pooling

    pooling.pool_answers(work, folds)


# -- shared by stages --------------------------------------------------------------------------------------------------


class StageInputs:
    """What a stage works with: its context (`StageContext`), the data, the models and the machine."""

    def __init__(self, context: StageContext, machine: Machine) -> None:
        self.folder, self.inputs, self.seed, self.record = context.folder, context.inputs, context.seed, context.record
        self.device, self.machine = torch.device(machine.ready()), machine
        self.open_image, self.lexicon = read_data(self.inputs["prepare"])
        self.feature_cache: FeatureCache | None = None
        self.cell_cache: CellCache | None = None

    def correction_context(self, config: ReflectConfig, train: Sequence[Sample]) -> CorrectionContext:
        runs = self.folder.parent.parent
        return CorrectionContext(config, self.inputs["prepare"], runs, self.seed, train, str(self.device))

    def samples(self, split: Split) -> list[Sample]:
        return read_split(self.inputs["prepare"], split)

    def vary(self, samples: Sequence[Sample]) -> list[Sample]:
        """Training samples with those of the variants of their images. Questions that are answered, counted or
        corrected have none: their answers would be those of one patient several times."""
        return add_variants(samples, read_variants(self.inputs["prepare"]), self.seed)

    def list_images(self) -> set[ImageRef]:
        """Every image of every split, and every variant."""
        refs = {ref for split in SPLITS for ref in read_images(self.inputs["prepare"], split)}
        return refs | {ref for s in self.vary(self.samples("train")) for ref in s.images}

    def new_model(self, train: Sequence[Sample], config: ModelConfig) -> VisionLanguageModel:
        """A tiny model before any training, with the eyes of the run if it has any."""
        eyes = None
        if "eyes" in self.inputs:
            with opened_folder(self.inputs["eyes"], "eyes") as opened:
                eyes = Eyes.load(opened)
        model = new_tiny(config, spell_samples(train, config), self.seed, self.open_image, eyes)
        self._serve_cells(model)
        return model.to(self.device)

    def _serve_cells(self, model: VisionLanguageModel) -> None:
        if "eyes" in self.inputs:
            folder = self.inputs["eyes"]
            self.cell_cache = self.cell_cache or CellCache(folder / FEATURES, model.images, owner=folder)
            self.cell_cache.serve(model.images)

    def model(self, stage: str) -> VisionLanguageModel:
        model = load_model(self.inputs[stage], self.open_image).to(self.device).eval()
        self._serve_cells(model)
        if "see" in self.inputs:
            features_folder = self.inputs["see"]
            self.feature_cache = self.feature_cache or FeatureCache(
                features_folder / FEATURES, model, owner=features_folder
            )
            self.feature_cache.serve(model)
        return model

    def scorer(self, config: SelectConfig) -> Scorer:
        return make_scorer(config, self.inputs.get("clip"), self.open_image, self.lexicon, self.seed)

    def answer(
        self, model: VisionLanguageModel, questions: Sequence[Sample], config: AnswerConfig, file: str, author: str,
        title: str,
    ) -> list[Prediction]:  # fmt: skip
        """Answers to the questions, kept in a file of the stage as they come."""
        place = self.folder / file
        return answer_samples(model, questions, config, file=place, by=author, title=title, seed=self.seed)

    def fit(  # noqa: PLR0913
        self, model: VisionLanguageModel | VisionPretrainer, samples: Sequence[Sample], config: FitConfig, title: str,
        objective: Objective | None = None, teacher: Teacher | None = None, schedule_part: tuple[int, int] = (0, 1),
        unlabelled: Set[str] = frozenset(),
    ) -> None:  # fmt: skip
        """Train a model in place, and record what was done. Without an `objective`, by cross-entropy."""
        folder, machine = self.folder / f"fit-{title.split()[0]}", self.machine
        run = FitRun(folder, self.seed, title, schedule_part, machine.shard, machine.trackers, unlabelled)
        fitted = fit(model, samples, objective or CrossEntropy(), config, run, teacher=teacher)
        counts = {"steps": fitted.num_steps, "samples": fitted.num_samples, "loss": fitted.final_loss}
        counts["falling"] = fitted.falling
        self.record(folder.name, {**counts, "rows": fitted.num_rows, "trained_parameters": fitted.num_trained})

    def save(self, model: VisionLanguageModel) -> None:
        """Save the model of the stage. From then on its trainings need no checkpoint."""
        distributed.on_main_process(lambda: model.save(self.folder / MODEL))
        self.drop_checkpoints()

    def drop_checkpoints(self) -> None:
        """Call this only after a model is saved: until then, a stopped training continues from its last checkpoint."""

        def drop() -> None:
            for pattern in ("step-*", ".step-*", "damaged-*"):
                for checkpoint in self.folder.glob(f"fit-*/{pattern}"):
                    shutil.rmtree(checkpoint)

        distributed.on_main_process(drop)


@contextmanager
def _record_seconds(work: StageContext | StageInputs, name: str, units: int) -> Iterator[None]:
    """Record the seconds that this attempt takes for a loop over `units` items."""
    start = time.monotonic()
    yield
    work.record(name, {"units": units, "seconds": round(time.monotonic() - start, 3)})


def _choose_share(samples: Sequence[Sample], share: float, seed: int, purpose: str) -> list[Sample]:
    """A random share, chosen by a hash of seed and id, so that it does not depend on the order of the samples."""
    hash_rank = {s.id: hashlib.sha256(f"{seed} {purpose} {s.id}".encode()).digest() for s in samples}
    kept = set(sorted(hash_rank, key=hash_rank.__getitem__)[: max(1, round(share * len(samples)))])
    return [s for s in samples if s.id in kept]
