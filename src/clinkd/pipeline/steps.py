"""The code of each stage: a step reads the folders of the stages before it and fills its own folder."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from clinkd import distributed
from clinkd.clip.captions import captioned
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
from clinkd.correction.correctors import fed_back
from clinkd.correction.review import review
from clinkd.correction.summary import summary
from clinkd.data import phantoms
from clinkd.data.questions import make_bare_pairs
from clinkd.data.readers.forms import read_samples
from clinkd.data.readers.source import Source
from clinkd.data.split import sample_share, split_samples
from clinkd.inference import Agreement, ClipScorer, RandomScorer, Scorer, rerank
from clinkd.inference import answer as answer_samples
from clinkd.language.agreement import answer_accuracy
from clinkd.language.facts import Lexicon
from clinkd.model.vision import VisionPretrainer
from clinkd.model.vlm import VisionLanguageModel, load, new_tiny, texts_of
from clinkd.objectives import CrossEntropy, Distillation
from clinkd.pipeline.correcting import (
    ANSWERS,
    CORRECTIONS,
    EFFECT,
    CorrectionContext,
    replace_overruled_truths,
    review_and_correct,
    similarity_of,
)
from clinkd.pipeline.graph import StageContext
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.models import POINTER, load_model, scorer_of
from clinkd.pipeline.prepared import DATA, PREDICTIONS, read_data, read_images, read_predictions, read_split
from clinkd.records import SPLITS, BadInput, Correction, Prediction, Sample, Split
from clinkd.scoring.baselines import IMAGES_SHUFFLED, images_shuffled
from clinkd.storage import JsonLines, folder_bytes, progress, publish, read_json, write_json, write_lines
from clinkd.training import (
    FeatureCache,
    FitRun,
    LiveTeacher,
    StoredTeacher,
    Teacher,
    cache_features,
    finished,
    fit,
    identity_of,
    store,
)

SPOKEN: dict[Split, str] = {"validation": "validation.jsonl", "test": PREDICTIONS}  # files of answers by split
STORE = "stored-teacher"
GALLERY = "gallery"
SEEN = "seen"  # the model between the two halves of its pretraining


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


def base(work: StageContext, config: ModelConfig, machine: Machine) -> None:
    """Make the model before any training: random weights, or a check that pretrained weights load with the knobs."""
    stage_inputs = StageInputs(work, machine)
    if config.base is None:
        train = stage_inputs.samples("train")
        texts = texts_of(train, config)
        model = new_tiny(config, texts, work.seed, stage_inputs.open_image).to(stage_inputs.device)
        if config.tiny.pretrain:
            model = _pretrain(stage_inputs, model, make_bare_pairs(train), config.tiny.pretrain)
        distributed.on_main_process(lambda: model.save(work.folder / "model"))
        distributed.on_main_process(lambda: shutil.rmtree(work.folder / SEEN, ignore_errors=True))
        _drop_checkpoints(work.folder)
    else:
        model = load(config.base, stage_inputs.open_image, config)
        pointer = {"folder": str(config.base.resolve()), "model": config.model_dump(mode="json")}
        distributed.on_main_process(lambda: write_json(work.folder / POINTER, pointer))
    work.record("parameters", sum(p.numel() for p in model.parameters()))


def see(work: StageContext, machine: Machine) -> None:
    """Compute the features of every image of every split with the frozen vision tower."""
    stage_inputs = StageInputs(work, machine)
    refs = {ref for split in SPLITS for ref in read_images(work.inputs["prepare"], split)}
    model = stage_inputs.model("base")
    with _record_seconds(work, "images", len(refs)):
        num_bytes = cache_features(work.folder / GALLERY, model, refs, "see images")
    work.record("bytes", num_bytes)


def _pretrain(
    stage_inputs: StageInputs, model: VisionLanguageModel, pairs: Sequence[Sample], config: PretrainConfig
) -> VisionLanguageModel:
    """Pretrain the vision tower, then the whole model, on bare pairs. No sentence of the four tasks is used."""
    stage_inputs.work.record("bare_pairs", len(pairs))
    vision_folder, draft = stage_inputs.work.folder / SEEN, stage_inputs.work.folder / f".{SEEN}.part"
    if config.vision and pairs:
        if not vision_folder.is_dir():
            pretrainer = VisionPretrainer(model, [s.names[0] for s in pairs]).to(stage_inputs.device)
            _fit_and_record(stage_inputs, pretrainer, pairs, CrossEntropy(), config.vision, "see")

            def save_vision() -> None:
                shutil.rmtree(draft, ignore_errors=True)
                model.save(draft)
                publish(draft, vision_folder)

            distributed.on_main_process(save_vision)
            _drop_checkpoints(stage_inputs.work.folder)
        model = load(vision_folder, stage_inputs.open_image).to(stage_inputs.device)
    if config.pairs and pairs:
        _fit_and_record(stage_inputs, model, pairs, CrossEntropy(), config.pairs, "pairs")
    return model


def teacher(work: StageContext, config: TeacherConfig, machine: Machine) -> None:
    """Tune a copy of the base on a share of the training images, stratified by task and modality."""
    stage_inputs = StageInputs(work, machine)
    chosen = sample_share(stage_inputs.samples("train"), config.share, work.seed)
    work.record("questions", len(chosen))
    _train_and_save(stage_inputs, stage_inputs.model("base"), chosen, CrossEntropy(), config.fit, "teacher")


def pseudo(
    work: StageContext, config: DistillConfig, answers: AnswerConfig, teacher: TeacherConfig | None, machine: Machine
) -> None:
    """Let the teacher (or the untrained base) answer the training questions that the teacher was not trained on."""
    stage_inputs = StageInputs(work, machine)
    train = stage_inputs.samples("train")
    teacher_ids = {s.id for s in sample_share(train, teacher.share, work.seed)} if teacher else set()
    outside = [s for s in train if s.id not in teacher_ids]
    questions = (
        outside if config.targets == "pseudo" else _choose_share(outside, config.pseudo_share, work.seed, "pseudo")
    )
    file, model = work.folder / PREDICTIONS, stage_inputs.model(config.pseudo_from)
    with _record_seconds(work, "answers", len(questions)):
        answer_samples(
            model, questions, answers, file=file, by=config.pseudo_from, title="pseudo-labels", seed=work.seed
        )
    work.record("questions", len(questions))


def distill(work: StageContext, config: DistillConfig, machine: Machine) -> None:
    """Distill the teacher into a second copy of the base, over the whole training split."""
    stage_inputs = StageInputs(work, machine)
    train = stage_inputs.samples("train")
    if "pseudo" in work.inputs:
        pseudo_answers = {p.id: p.answer.answer for p in read_predictions(work.inputs["pseudo"])}
        empty = [i for i, text in pseudo_answers.items() if not text.text.strip()]
        train = [
            s.answered(pseudo_answers[s.id], "+pseudo") if s.id in pseudo_answers and s.id not in empty else s
            for s in train
        ]
        work.record("pseudo_labels", {"used": len(pseudo_answers) - len(empty), "empty": len(empty)})
    student = stage_inputs.model("base")
    if config.kd_weight > 0:
        kd_teacher = _open_teacher(stage_inputs, student, train, config)
        _train_and_save(
            stage_inputs,
            student,
            train,
            Distillation(config.kd_weight, config.temperature),
            config.fit,
            "distill",
            kd_teacher,
        )
        # Nobody reads these gigabytes again: a finished stage is never trained anew, and its variants are other stages.
        distributed.on_main_process(lambda: shutil.rmtree(work.folder / STORE, ignore_errors=True))
    else:
        _train_and_save(stage_inputs, student, train, CrossEntropy(), config.fit, "tune")


def _open_teacher(
    stage_inputs: StageInputs, student: VisionLanguageModel, samples: Sequence[Sample], config: DistillConfig
) -> Teacher:
    """A live teacher, or its stored outputs for all samples, which an earlier attempt may have written."""
    if config.teacher_as == "live":
        return LiveTeacher(stage_inputs.model("teacher"))
    folder, teacher_folder = stage_inputs.work.folder / STORE, stage_inputs.work.inputs["teacher"] / "model"
    identity = identity_of(
        config.teacher_as, samples, teacher_folder, student,
        temperature=config.temperature, draws=config.draws, seed=stage_inputs.work.seed,
    )  # fmt: skip

    def store_outputs() -> None:
        if not finished(folder):
            rows, model = config.fit.rows // config.fit.accumulate, stage_inputs.model("teacher")
            with _record_seconds(stage_inputs.work, "stored_samples", len(samples)):
                store(folder, model, samples, identity, title="store the teacher", rows_a_pass=rows)

    distributed.on_main_process(store_outputs)
    stage_inputs.work.record("stored_teacher", {"bytes": folder_bytes(folder)})
    return StoredTeacher(folder, identity)


def reflect(  # noqa: PLR0913
    work: StageContext, config: ReflectConfig, round: int, previous: str, answers: AnswerConfig,
    distill: DistillConfig | None, machine: Machine,
) -> None:  # fmt: skip
    """Do one round: answer training questions, rewrite the wrong answers from the truth, train on both."""
    stage_inputs = StageInputs(work, machine)
    model, untaught = stage_inputs.model(previous), stage_inputs.samples("train")
    train = replace_overruled_truths(stage_inputs.desk, config, untaught)
    work.record("overruled_truths", sum(a is not b for a, b in zip(untaught, train, strict=True)))
    questions = _choose_share(train, config.review_share, work.seed, f"round {round}")
    greedy = AnswerConfig(beams=1, candidates=1, max_new_tokens=answers.max_new_tokens, batch=answers.batch)
    file = work.folder / ANSWERS
    with _record_seconds(work, "answers", len(questions)):
        predictions = answer_samples(
            model, questions, greedy, file=file, by=previous, title=f"review {round}/{config.rounds}"
        )
    corrections_file = work.folder / CORRECTIONS

    def write_corrections() -> None:
        if corrections_file.is_file():  # an earlier attempt has written it
            return
        corrections = review_and_correct(stage_inputs.desk, config, train, questions, predictions, round)
        write_lines(corrections_file, (c.to_json() for c in corrections))
        table = summary(corrections, questions)
        write_json(work.folder / "summary.json", {"title": table.title, "columns": table.columns, "rows": table.rows})

    with _record_seconds(work, "corrections", len(questions)):
        distributed.on_main_process(write_corrections)
    corrections = [Correction.from_json(record) for record in JsonLines(corrections_file).read()]
    work.record("reviewed", {"asked": len(questions), "of": len(train), "wrong": sum(c.wrong for c in corrections)})
    feedback = fed_back(questions, corrections)
    kd_teacher = LiveTeacher(stage_inputs.model("teacher")) if config.objective == "distill" else None
    objective = Distillation(distill.kd_weight, distill.temperature) if kd_teacher and distill else CrossEntropy()
    schedule_part = (round - 1, config.rounds)
    _train_and_save(
        stage_inputs,
        model,
        [*train, *feedback],
        objective,
        config.fit,
        f"reflect {round}/{config.rounds}",
        kd_teacher,
        schedule_part,
    )
    if config.recheck:
        truths = [s.answer.words for s in train]
        _recheck_answers(
            stage_inputs,
            model.eval(),
            questions,
            corrections,
            config,
            greedy,
            truths,
            f"recheck {round}/{config.rounds}",
        )


def _recheck_answers(  # noqa: PLR0913
    stage_inputs: StageInputs, model: VisionLanguageModel, reviewed_samples: Sequence[Sample],
    corrections: Sequence[Correction], config: ReflectConfig, answers: AnswerConfig, truths: Sequence[str], title: str,
) -> None:  # fmt: skip
    """Answer some reviewed questions again, half of them wrong before, half right, and write what changed."""
    wrong_before = {c.id: c.wrong for c in corrections}
    questions: list[Sample] = []
    for wrong in (True, False):
        same_verdict = [s for s in reviewed_samples if wrong_before[s.id] == wrong]
        questions += (
            _choose_share(
                same_verdict, min(1.0, config.recheck / 2 / len(same_verdict)), stage_inputs.work.seed, "recheck"
            )
            if same_verdict
            else []
        )
    file = stage_inputs.work.folder / "rechecked.jsonl"
    with _record_seconds(stage_inputs.work, "rechecks", len(questions)):
        predictions = answer_samples(model, questions, answers, file=file, by=title, title=title)

    def write_effect() -> None:
        similarity = similarity_of(stage_inputs.desk, config, truths)
        corrections_now = {c.id: c for c in review(questions, predictions, similarity, config, 0)}
        records = (
            {
                "id": s.id, "task": s.task.value, "modality": s.modality.value, "before_wrong": wrong_before[s.id],
                "after_wrong": corrections_now[s.id].wrong, "answer": corrections_now[s.id].before.to_json(),
            }
            for s in questions
        )  # fmt: skip
        write_lines(stage_inputs.work.folder / EFFECT, records)

    distributed.on_main_process(write_effect)


def clip(work: StageContext, config: ClipConfig, machine: Machine) -> None:
    """Make the image-text model that scores candidates: load it, or train it on the training captions, and on boxes
    with their names and captions if it will see crops."""
    stage_inputs = StageInputs(work, machine)
    if config.base is not None:
        ImageTextModel.load(config.base, stage_inputs.open_image)
        write_json(work.folder / POINTER, {"folder": str(config.base.resolve())})
        return
    train = stage_inputs.samples("train")
    kinds = [kind for kind in captioned(train, config.grounding != "text", work.seed) if len(kind) > 1]
    if not kinds:
        raise BadInput("select.clip: fewer than two training images with a caption; give select.clip.base, or set "
                       "select.scorer=first")  # fmt: skip
    model = new_tiny_clip(stage_inputs.model("base").tokenizer, config, work.seed, stage_inputs.open_image)
    with _record_seconds(work, "pairs", round(config.epochs * len(kinds[0]))):
        loss = train_clip(model, kinds, config, work.seed)
    work.record("loss", loss)
    work.record("views", [len(kind) for kind in kinds])
    model.save(work.folder / "model")


def answer(work: StageContext, config: AnswerConfig, previous: str, machine: Machine) -> None:
    """Write the final model's candidates for the test questions, and for the validation questions `select` uses."""
    stage_inputs = StageInputs(work, machine)
    model = stage_inputs.model(previous)
    by = f"{previous}-{read_json(work.inputs[previous] / 'stage.json')['identity']}"
    questions = {split: stage_inputs.samples(split) for split in SPOKEN}
    with _record_seconds(work, "answers", sum(map(len, questions.values()))):
        for split, name in SPOKEN.items():
            answer_samples(
                model, questions[split], config, file=work.folder / name, by=by, title=f"answer {split}", seed=work.seed
            )


def select(work: StageContext, config: SelectConfig, machine: Machine) -> None:
    """Score every candidate, and choose the best one in the tasks for which the scorer is trusted.

    Cheap rival scorers write their scores too, so that the gain of the selection can be compared with theirs.
    """
    stage_inputs = StageInputs(work, machine)
    scorer, tasks = stage_inputs.scorer(config), list(config.tasks)
    rivals = [r for r in (Agreement(), RandomScorer(work.seed)) if r.name != scorer.name]

    def choose_answers(split: Split, task_names: Sequence[str]) -> tuple[dict[str, Sample], list[Prediction]]:
        samples = {s.id: s for s in stage_inputs.samples(split)}
        answers = read_predictions(work.inputs["answer"], SPOKEN[split])
        return samples, rerank(samples, answers, scorer, task_names, rivals)

    if config.trust == "validated" and config.scorer != "first":
        samples, predictions = choose_answers("validation", tasks)
        gain: dict[str, list[float]] = {}
        for p in predictions:
            s = samples[p.id]
            first, best = (
                answer_accuracy(c.answer, s.answer, s.facts, stage_inputs.lexicon) for c in (p.candidates[0], p.answer)
            )
            gain.setdefault(s.task, []).append(best - first)
        mean = {task: sum(g) / len(g) for task, g in gain.items()}
        tasks = [t for t in tasks if mean.get(t, 0) > 0]
        work.record("validation_gain", {t: round(100 * g, 2) for t, g in mean.items()})
    work.record("reordered_tasks", tasks)
    _, predictions = choose_answers("test", tasks)
    if isinstance(scorer, ClipScorer):
        counts = {"candidates": scorer.num_candidates, "too_long": scorer.num_too_long}
        work.record("clip_inputs", {**counts, "token_limit": scorer.model.towers.limit})
    write_lines(work.folder / PREDICTIONS, (p.to_json() for p in predictions))


def shuffle(work: StageContext, config: AnswerConfig, previous: str, machine: Machine) -> None:
    """Let the final model answer each test question with another image. This baseline does not see the image of the
    question, but knows all that the model has learnt."""
    stage_inputs = StageInputs(work, machine)
    questions, file = images_shuffled(stage_inputs.samples("test")), work.folder / PREDICTIONS
    if not questions:  # a single image
        return write_lines(file, [])
    model = stage_inputs.model(previous)
    with _record_seconds(work, "answers", len(questions)):
        answer_samples(model, questions, config, file=file, by=IMAGES_SHUFFLED, title="images shuffled", seed=work.seed)


def score(work: StageContext, whole: RunConfig) -> None:
    """Turn predictions into scores, tables and the report."""
    from clinkd.pipeline import report

    report.write(work, whole)


# -- shared by stages --------------------------------------------------------------------------------------------------


@contextmanager
def _record_seconds(work: StageContext, name: str, units: int) -> Iterator[None]:
    """Record the seconds that this attempt takes for a loop over `units` items."""
    start = time.monotonic()
    yield
    work.record(name, {"units": units, "seconds": round(time.monotonic() - start, 3)})


class StageInputs:
    """The data, the models and the machine that a stage works with."""

    def __init__(self, work: StageContext, machine: Machine) -> None:
        self.device, self.machine, self.work = torch.device(machine.ready()), machine, work
        self.open_image, self.lexicon = read_data(work.inputs["prepare"])
        self.gallery: FeatureCache | None = None

    @property
    def desk(self) -> CorrectionContext:
        work = self.work
        return CorrectionContext(work.inputs["prepare"], work.folder.parent.parent, work.seed, str(self.device))

    def samples(self, split: Split) -> list[Sample]:
        return read_split(self.work.inputs["prepare"], split)

    def model(self, stage: str) -> VisionLanguageModel:
        model = load_model(self.work.inputs[stage], self.open_image).to(self.device).eval()
        if "see" in self.work.inputs:
            features_folder = self.work.inputs["see"]
            self.gallery = self.gallery or FeatureCache(features_folder / GALLERY, model, owner=features_folder)
            self.gallery.serve(model)
        return model

    def scorer(self, config: SelectConfig) -> Scorer:
        return scorer_of(config, self.work.inputs.get("clip"), self.open_image, self.lexicon, self.work.seed)


def _train_and_save(  # noqa: PLR0913
    stage_inputs: StageInputs, model: VisionLanguageModel, samples: Sequence[Sample],
    objective: CrossEntropy | Distillation, config: FitConfig, title: str,
    teacher: Teacher | None = None, schedule_part: tuple[int, int] = (0, 1),
) -> None:  # fmt: skip
    _fit_and_record(stage_inputs, model, samples, objective, config, title, teacher, schedule_part)
    distributed.on_main_process(lambda: model.save(stage_inputs.work.folder / "model"))
    _drop_checkpoints(stage_inputs.work.folder)


def _fit_and_record(  # noqa: PLR0913
    stage_inputs: StageInputs, model: VisionLanguageModel | VisionPretrainer, samples: Sequence[Sample],
    objective: CrossEntropy | Distillation,
    config: FitConfig, title: str, teacher: Teacher | None = None, schedule_part: tuple[int, int] = (0, 1),
) -> None:  # fmt: skip
    folder = stage_inputs.work.folder / f"fit-{title.split()[0]}"
    fitted = fit(
        model, samples, objective, config,
        FitRun(
            folder, stage_inputs.work.seed, title, schedule_part,
            stage_inputs.machine.shard, stage_inputs.machine.trackers,
        ),
        teacher=teacher,
    )  # fmt: skip
    counts = {"steps": fitted.num_steps, "samples": fitted.num_samples, "loss": fitted.final_loss}
    stage_inputs.work.record(folder.name, {**counts, "rows": fitted.num_rows, "trained_parameters": fitted.num_trained})


def _drop_checkpoints(stage: Path) -> None:
    """Call this only after the model is saved: until then, a stopped training continues from its last checkpoint."""

    def drop() -> None:
        for pattern in ("step-*", ".step-*", "damaged-*"):
            for checkpoint in stage.glob(f"fit-*/{pattern}"):
                shutil.rmtree(checkpoint)

    distributed.on_main_process(drop)


def _choose_share(samples: Sequence[Sample], share: float, seed: int, purpose: str) -> list[Sample]:
    """A random share, chosen by a hash of seed and id, so that it does not depend on the order of the samples."""
    hash_rank = {s.id: hashlib.sha256(f"{seed} {purpose} {s.id}".encode()).digest() for s in samples}
    kept = set(sorted(hash_rank, key=lambda i: hash_rank[i])[: max(1, round(share * len(samples)))])
    return [s for s in samples if s.id in kept]
