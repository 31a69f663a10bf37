"""The code of each stage: a step reads the folders of the stages before it and fills its own folder."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from clinkd import distributed
from clinkd.clip.captions import make_captioned_views
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
from clinkd.correction.review import review
from clinkd.correction.summary import summary
from clinkd.data import phantoms
from clinkd.data.general_drawings import write_drawings
from clinkd.data.questions import make_bare_pairs
from clinkd.data.readers.forms import read_samples
from clinkd.data.readers.source import Source
from clinkd.data.split import sample_share, split_fold, split_samples
from clinkd.inference import (
    Agreement,
    ClipScorer,
    RandomScorer,
    Scorer,
    count_disagreement,
    measure_supports,
    rerank,
)
from clinkd.inference import answer as answer_samples
from clinkd.inference.probe import Cells, answer_by_probe, look_at
from clinkd.language.agreement import answer_accuracy
from clinkd.language.facts import Lexicon
from clinkd.model.eyes import EyesNetwork
from clinkd.model.vision import VisionPretrainer
from clinkd.model.vlm import VisionLanguageModel, load, new_tiny, spell_samples
from clinkd.objectives import CrossEntropy, Distillation
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
from clinkd.pipeline.models import load_model, make_scorer
from clinkd.pipeline.prepared import DATA, PREDICTIONS, read_data, read_images, read_predictions, read_split
from clinkd.records import SPLITS, BadInput, Correction, ImageRef, Prediction, Sample, Split
from clinkd.scoring.blind.baselines import IMAGES_SHUFFLED, shuffle_images
from clinkd.storage import JsonLines, folder_bytes, progress, publish, write_json, write_lines
from clinkd.training import (
    FeatureCache,
    FitRun,
    LiveTeacher,
    StoredTeacher,
    Teacher,
    cache_features,
    fit,
    identify_store,
    is_store_full,
    store_teacher,
)

ANSWER_FILES: dict[Split, str] = {"validation": "validation.jsonl", "test": PREDICTIONS}
STORE = "stored-teacher"
FEATURES = "gallery"
SUPPORTS = "validation-supports.jsonl"  # of the candidates for the validation questions
DRAWINGS = "drawn"
PRETRAINED_VISION = "seen"  # the model between the two halves of its pretraining


# -- stages -----------------------------------------------------------------------------------------------------------


def prepare(work: StageContext, config: DataConfig) -> None:
    """Draw phantoms, or read the given data and split it by group; one file of samples a split."""
    left_out = Counter[str]()
    if config.path is None:
        total = config.phantoms.train_images + config.phantoms.validation_images + config.phantoms.test_images
        with _record_seconds(work, "draw", total), progress(total, "draw phantoms", "images") as advance:
            samples = phantoms.write_phantoms(work.folder, config.phantoms, work.seed, config.workers, advance)
        root, lexicon = Path(), phantoms.LEXICON
    else:
        source = Source(config.path, max_questions=config.max_questions, max_boxes=config.max_boxes, seed=work.seed)
        all_samples = read_samples(source, left_out)
        if config.folds:
            samples = split_fold(all_samples, config.fold, config.folds, config.validation_share, work.seed)
        else:
            samples = split_samples(all_samples, config.validation_share, config.test_share, work.seed)
        root = source.root.resolve()
        lexicon = Lexicon(tuple(sorted({n for s in samples for n in s.names})), (), (), ())
    for split in SPLITS:
        part = [s for s in samples if s.split == split]
        if not part:
            raise BadInput(
                f"data: no image falls into the {split} split; give more data or a larger data.{split}_share"
            )
        write_lines(work.folder / f"{split}.jsonl", (s.to_json() for s in part))
        work.record(split, {"questions": len(part), "images": len({i.path for s in part for i in s.images})})
    if left_out:
        work.record("left_out", dict(left_out))
    write_json(work.folder / DATA, {"root": str(root), "lexicon": lexicon.to_json()})


def base(work: StageInputs, config: ModelConfig) -> None:
    """Make the model before any training: random weights, or a check that pretrained weights load with the knobs."""
    if "general" in work.inputs:
        model = load(work.inputs["general"] / MODEL, work.open_image, config)  # with the positions of this run
        work.save(model)
    elif config.base is None:
        train = work.samples("train")
        model = new_tiny(config, spell_samples(train, config), work.seed, work.open_image).to(work.device)
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
    model = new_tiny(config, spell_samples(train, config), work.seed, work.open_image).to(work.device)
    work.save(_pretrain(work, model, make_bare_pairs(train), pretrain))
    for part in (DRAWINGS, PRETRAINED_VISION):
        distributed.on_main_process(partial(shutil.rmtree, work.folder / part, ignore_errors=True))


def see(work: StageInputs) -> None:
    """Compute the features of every image of every split with the frozen vision tower."""
    refs = {ref for split in SPLITS for ref in read_images(work.inputs["prepare"], split)}
    model = work.model("base")
    with _record_seconds(work, "images", len(refs)):
        num_bytes = cache_features(work.folder / FEATURES, model, refs, "see images")
    work.record("bytes", num_bytes)


def _pretrain(
    work: StageInputs, model: VisionLanguageModel, pairs: Sequence[Sample], config: PretrainConfig
) -> VisionLanguageModel:
    """Pretrain the vision tower, then the whole model, on bare pairs. No sentence of the four tasks is used."""
    work.record("bare_pairs", len(pairs))
    vision_folder, draft = work.folder / PRETRAINED_VISION, work.folder / f".{PRETRAINED_VISION}.part"
    if config.vision and pairs:
        if not vision_folder.is_dir():
            pretrainer = VisionPretrainer(model, [s.names[0] for s in pairs]).to(work.device)
            work.fit(pretrainer, pairs, config.vision, "see")

            def save_vision() -> None:
                shutil.rmtree(draft, ignore_errors=True)
                model.save(draft)
                publish(draft, vision_folder)

            distributed.on_main_process(save_vision)
            work.drop_checkpoints()
        model = load(vision_folder, work.open_image).to(work.device)
    if config.pairs and pairs:
        work.fit(model, pairs, config.pairs, "pairs")
    return model


def teacher(work: StageInputs, config: TeacherConfig) -> None:
    """Tune a copy of the base on a share of the training images, stratified by task and modality."""
    chosen = sample_share(work.samples("train"), config.share, work.seed)
    work.record("questions", len(chosen))
    model = work.model("base")
    work.fit(model, chosen, config.fit, "teacher")
    work.save(model)


def pseudo(work: StageInputs, config: DistillConfig, answers: AnswerConfig, teacher: TeacherConfig | None) -> None:
    """Let the teacher (or the untrained base) answer the training questions that the teacher was not trained on."""
    train = work.samples("train")
    teacher_ids = {s.id for s in sample_share(train, teacher.share, work.seed)} if teacher else set()
    questions = [s for s in train if s.id not in teacher_ids]
    if config.targets != "pseudo":
        questions = _choose_share(questions, config.pseudo_share, work.seed, "pseudo")
    model, author = work.model(config.pseudo_from), config.pseudo_from
    with _record_seconds(work, "answers", len(questions)):
        work.answer(model, questions, answers, PREDICTIONS, author, "pseudo-labels")
    work.record("questions", len(questions))


def distill(work: StageInputs, config: DistillConfig) -> None:
    """Distill the teacher into a second copy of the base, over the whole training split."""
    train = work.samples("train")
    if "pseudo" in work.inputs:
        pseudo_answers = {p.id: p.answer.answer for p in read_predictions(work.inputs["pseudo"])}
        empty = [i for i, text in pseudo_answers.items() if not text.text.strip()]
        train = [
            s.answered(pseudo_answers[s.id], "+pseudo") if s.id in pseudo_answers and s.id not in empty else s
            for s in train
        ]
        work.record("pseudo_labels", {"used": len(pseudo_answers) - len(empty), "empty": len(empty)})
    student = work.model("base")
    if config.kd_weight > 0:
        objective = Distillation(config.kd_weight, config.temperature)
        kd_teacher = _open_teacher(work, student, train, config)
        work.fit(student, train, config.fit, "distill", objective=objective, teacher=kd_teacher)
    else:
        work.fit(student, train, config.fit, "tune")
    work.save(student)
    # Nobody reads these gigabytes again: a finished stage is never trained anew, and its variants are other stages.
    distributed.on_main_process(lambda: shutil.rmtree(work.folder / STORE, ignore_errors=True))


def _open_teacher(
    work: StageInputs, student: VisionLanguageModel, samples: Sequence[Sample], config: DistillConfig
) -> Teacher:
    """A live teacher, or its stored outputs for all samples, which an earlier attempt may have written."""
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
    work.record("reviewed", {"asked": len(questions), "of": len(train), "wrong": sum(c.wrong for c in corrections)})
    kd_teacher = LiveTeacher(work.model("teacher")) if config.objective == "distill" else None
    work.fit(
        model,
        [*train, *make_corrected_samples(questions, corrections)],
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
    wrong_before = {c.id: c.wrong for c in corrections}
    now = {c.id: c for c in review(rechecked, predictions, similarity, config, 0)}
    records = (
        {
            "id": s.id, "task": s.task.value, "modality": s.modality.value, "before_wrong": wrong_before[s.id],
            "after_wrong": now[s.id].wrong, "answer": now[s.id].before.to_json(),
        }
        for s in rechecked
    )  # fmt: skip
    write_lines(work.folder / EFFECT, records)


def clip(work: StageInputs, config: ClipConfig) -> None:
    """Make the image-text model that scores candidates: load it, or train it on the training captions, and on boxes
    with their names and captions if it will see crops. Without two images with a caption there is none, as a caution
    says."""
    if config.base is not None:
        ImageTextModel.load(config.base, work.open_image)
        write_json(work.folder / POINTER, point_to(config.base))
        return
    kinds = make_captioned_views(work.samples("train"), config.grounding != "text", work.seed)
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
    rivals = [r for r in (Agreement(), RandomScorer(work.seed)) if r.name != scorer.name]

    def choose_answers(split: Split, task_names: Sequence[str]) -> tuple[dict[str, Sample], list[Prediction]]:
        samples = {s.id: s for s in work.samples(split)}
        answers = read_predictions(work.inputs["answer"], ANSWER_FILES[split])
        return samples, rerank(samples, answers, scorer, task_names, rivals)

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
    if isinstance(scorer, ClipScorer):
        counts = {"candidates": scorer.num_candidates, "too_long": scorer.num_too_long}
        work.record("clip_inputs", {**counts, "token_limit": scorer.model.towers.limit})
    write_lines(work.folder / PREDICTIONS, (p.to_json() for p in predictions))


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


def probe(work: StageInputs) -> None:
    """Answer the test questions from frozen image features by linear fits, to stand beside the model's answers."""
    eyes = EyesNetwork.from_wheel()
    train, validation, test = (work.samples(split) for split in SPLITS)
    num_images = len({i for samples in (train, validation, test) for s in samples for i in s.images[:1]})
    with _record_seconds(work, "images", num_images), progress(num_images, "probe", "images") as advance:

        def look(image: ImageRef) -> Cells:
            cells = look_at(eyes, work.open_image(image))
            advance(1)
            return cells

        predictions = answer_by_probe(train, validation, test, look)
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

    def correction_context(self, config: ReflectConfig, train: Sequence[Sample]) -> CorrectionContext:
        runs = self.folder.parent.parent
        return CorrectionContext(config, self.inputs["prepare"], runs, self.seed, train, str(self.device))

    def samples(self, split: Split) -> list[Sample]:
        return read_split(self.inputs["prepare"], split)

    def model(self, stage: str) -> VisionLanguageModel:
        model = load_model(self.inputs[stage], self.open_image).to(self.device).eval()
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
        objective: CrossEntropy | Distillation | None = None, teacher: Teacher | None = None,
        schedule_part: tuple[int, int] = (0, 1),
    ) -> None:  # fmt: skip
        """Train a model in place, and record what was done. Without an `objective`, by cross-entropy."""
        folder, machine = self.folder / f"fit-{title.split()[0]}", self.machine
        run = FitRun(folder, self.seed, title, schedule_part, machine.shard, machine.trackers)
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
