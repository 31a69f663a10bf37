"""The code of each stage: a step reads the folders of the stages before it and fills its own folder.

Those that make the base are in `pretraining.py`, those of teacher and student in `distilling.py`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from clinkd import distributed
from clinkd.clip.captions import make_captioned_views
from clinkd.clip.crops import MOST_CROPS, train_crops
from clinkd.clip.model import ImageTextModel, new_tiny_clip, train_clip
from clinkd.config import AnswerConfig, ClipConfig, DataConfig, DistillConfig, ReflectConfig, RunConfig, SelectConfig
from clinkd.correction.correctors import make_corrected_samples
from clinkd.correction.review import is_missed, review
from clinkd.correction.summary import count_changes, describe_review, summary
from clinkd.data import phantoms
from clinkd.data.questions import ask_absent_names
from clinkd.data.readers.forms import marks_everything, read_samples
from clinkd.data.readers.source import Source
from clinkd.data.split import split_fold, split_samples
from clinkd.inference import Agreement, ClipScorer, CropScorer, RandomScorer, TimedScorer, measure_likelihoods, rerank
from clinkd.inference.confidence import FittedConfidence, explain_absences, find_confidence, fit_confidences
from clinkd.inference.disagreement import count_disagreement
from clinkd.inference.probe import Cells, answer_by_probe, look_at
from clinkd.inference.self_consistency import measure_supports
from clinkd.language.agreement import answer_accuracy
from clinkd.language.facts import Lexicon
from clinkd.model.eyes import EyesNetwork
from clinkd.model.vlm import VisionLanguageModel
from clinkd.objectives import CrossEntropy, Distillation
from clinkd.pipeline.correcting import ANSWERS, CORRECTIONS, EFFECT, replace_overruled_truths
from clinkd.pipeline.damage import MODEL, POINTER, UNTRAINED, point_to, read_stage_lines
from clinkd.pipeline.distilling import distill, load_teacher, pseudo, teacher
from clinkd.pipeline.graph import StageContext, stage_record
from clinkd.pipeline.inputs import StageInputs, choose_share, record_seconds
from clinkd.pipeline.models import CROP_WEIGHTS
from clinkd.pipeline.pooling import pool_answers, pool_splits
from clinkd.pipeline.prepared import DATA, LIKELIHOODS, NO_CONFIDENCE, PREDICTIONS, read_predictions
from clinkd.pipeline.pretraining import WHITENED, base, eyes, general, see, tower
from clinkd.records import SPLITS, BadInput, Correction, ImageRef, Prediction, Sample, Split
from clinkd.scoring.blind.baselines import IMAGES_SHUFFLED, shuffle_images
from clinkd.scoring.likelihood import average_likelihoods
from clinkd.storage import JsonLines, progress, write_json, write_lines
from clinkd.training import LiveTeacher

# every stage, and what else `clinkd plan --measure` needs of them
__all__ = [
    "WHITENED", "StageInputs",
    "answer", "base", "clip", "distill", "eyes", "general", "likelihood", "pool_answers", "pool_splits", "prepare",
    "probe", "pseudo", "reflect", "score", "see", "select", "shuffle", "teacher", "tower",
]  # fmt: skip

ANSWER_FILES: dict[Split, str] = {"validation": "validation.jsonl", "test": PREDICTIONS}
SUPPORTS: dict[Split, str] = {"validation": "validation-supports.jsonl", "test": "test-supports.jsonl"}


def prepare(work: StageContext, config: DataConfig) -> None:
    """Draw phantoms, or read the given data and split it by group; one file of samples a split, that of training with
    questions for absent structures. Variants of training images are no samples here: trainings make them."""
    left_out = Counter[str]()
    drawn: Mapping[str, Collection[str]] = {}
    marked = True  # every structure of every image
    if config.path is None:
        total = config.phantoms.train_images + config.phantoms.validation_images + config.phantoms.test_images
        with record_seconds(work, "draw", total), progress(total, "draw phantoms", "images") as advance:
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


def reflect(
    work: StageInputs, config: ReflectConfig, round: int, previous: str, answers: AnswerConfig,
    distill: DistillConfig | None,
) -> None:  # fmt: skip
    """Do one round: answer training questions, rewrite the wrong answers from the truth, train on both."""
    model, untaught = work.model(previous), work.samples("train")
    train = replace_overruled_truths(work.inputs["prepare"], config, untaught)
    work.record("overruled_truths", sum(a is not b for a, b in zip(untaught, train, strict=True)))
    questions = choose_share(train, config.review_share, work.seed, f"round {round}")
    number = f"{round}/{config.rounds}"
    with record_seconds(work, "answers", len(questions)):
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

    with record_seconds(work, "corrections", len(questions)):
        distributed.on_main_process(write_corrections)
    corrections = [Correction.from_json(record) for record in JsonLines(corrections_file).read()]
    counts = describe_review(corrections, work.lexicon.names)
    work.record("reviewed", {"asked": len(questions), "of": len(train), **counts})
    kd_teacher = None
    if config.objective == "distill":
        kd_teacher = LiveTeacher(load_teacher(work, model, live=["reflect.objective=ce"]))
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
        model = work.reopen(model)
        rechecked, title = _choose_rechecked(questions, corrections, config.recheck, work.seed), f"recheck {number}"
        with record_seconds(work, "rechecks", len(rechecked)):
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
            chosen += choose_share(alike, min(1.0, number / 2 / len(alike)), seed, "recheck")
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
    with record_seconds(work, "pairs", round(config.epochs * len(kinds[0]))):
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
    with record_seconds(work, "crops", len(chosen)):
        model, loss = train_crops(chosen, EyesNetwork.from_wheel(), work.open_image, work.seed)
    work.record("crops_of", len(named))
    work.record("loss", loss)
    model.save(work.folder / MODEL)


def answer(work: StageInputs, config: AnswerConfig, previous: str) -> None:
    """Write the final model's candidates for the test questions, and for the validation questions `select` uses."""
    model = work.model(previous)
    author = f"{previous}-{stage_record(work.inputs[previous])['identity']}"
    questions = {split: work.samples(split) for split in ANSWER_FILES}
    with record_seconds(work, "answers", sum(map(len, questions.values()))):
        for split, file in ANSWER_FILES.items():
            answers = work.answer(model, questions[split], config, file, author, f"answer {split}")
            _write_supports(work, model, answers, SUPPORTS[split])


def _write_supports(work: StageInputs, model: VisionLanguageModel, answers: Sequence[Prediction], file: str) -> None:
    """Write how far the candidates of each answer agree with each of them, for `select`, which has no tokenizer."""
    names = work.lexicon.names
    records = (
        {"id": p.id, "supports": measure_supports(p, model.count_answer_tokens(p.candidates), names)} for p in answers
    )
    distributed.on_main_process(lambda: write_lines(work.folder / file, records))


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
    fits = _record_disagreement(work, samples, chosen, scorer.name)
    asked, predictions = choose_answers("test", tasks)
    supports = _read_supports(work, "test", predictions)
    predictions = [
        replace(p, confidence=find_confidence(fits, asked[p.id].question, p, supports[p.id], scorer.name))
        if p.id in supports else p
        for p in predictions
    ]  # fmt: skip
    work.record(NO_CONFIDENCE, explain_absences(asked, predictions, fits))
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


def _record_disagreement(
    work: StageInputs, samples: Mapping[str, Sample], predictions: Sequence[Prediction], scorer: str
) -> dict[str, FittedConfidence]:
    """Record by task whether validation answers whose candidates disagree are wrong more often, and by kind of question
    how likely they are right; the fits of that."""
    supports = _read_supports(work, "validation", predictions)
    if not supports:
        return {}
    counts = count_disagreement(samples, predictions, supports, work.lexicon.names)
    work.record("disagreement", {task: of_task._asdict() for task, of_task in counts.items()})
    fits = fit_confidences(samples, predictions, supports, work.lexicon.names, scorer)
    work.record("confidence", {kind: fit._asdict() for kind, fit in fits.items()})
    return fits


def _read_supports(work: StageInputs, split: Split, predictions: Sequence[Prediction]) -> dict[str, float]:
    """By id, how far the candidates agree with the chosen one; empty with answers of an older version."""
    file = work.inputs["answer"] / SUPPORTS[split]
    if not file.is_file():
        return {}
    supports = {record["id"]: record["supports"] for record in read_stage_lines(file)}
    return {p.id: supports[p.id][p.chosen] for p in predictions}


def shuffle(work: StageInputs, config: AnswerConfig, previous: str) -> None:
    """Let the final model answer each test question with another image. This baseline does not see the image of the
    question, but knows all that the model has learnt."""
    questions = shuffle_images(work.samples("test"))
    if not questions:  # a single image
        return write_lines(work.folder / PREDICTIONS, [])
    model = work.model(previous)
    with record_seconds(work, "answers", len(questions)):
        work.answer(model, questions, config, PREDICTIONS, IMAGES_SHUFFLED, "images shuffled")


def likelihood(work: StageInputs, batch: int, previous: str) -> None:
    """Look up how likely the true answers to the test questions are under the final model, by kind of token."""
    questions, model, file = work.samples("test"), work.model(previous), work.folder / LIKELIHOODS
    with record_seconds(work, "likelihoods", len(questions)):
        measure_likelihoods(model, questions, file=file, batch=batch, title="likelihood of the truth")
    means = average_likelihoods(JsonLines(file).read())
    work.record("log_likelihood", {f"{task} {kind}": round(found.mean, 4) for (task, kind), found in means.items()})


def probe(work: StageInputs) -> None:
    """Answer the test questions from frozen image features by linear fits, to stand beside the model's answers."""
    network = EyesNetwork.from_wheel()
    train, validation, test = (work.samples(split) for split in SPLITS)
    num_images = len({i for samples in (train, validation, test) for s in samples for i in s.images[:1]})
    with record_seconds(work, "images", num_images), progress(num_images, "probe", "images") as advance:

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
