"""What each stage does, from the folders of the stages before it to its own."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from clinkd import data, distributed
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
from clinkd.correction import fed_back, review, summary
from clinkd.data import phantoms
from clinkd.inference import Agreement, ClipScorer, RandomScorer, Scorer, rerank
from clinkd.inference import answer as answer_samples
from clinkd.language.agreement import answer_accuracy
from clinkd.language.facts import Lexicon
from clinkd.model.vision import VisionPretrainer
from clinkd.model.vlm import VisionLanguageModel, load, new_tiny, texts_of
from clinkd.objectives import CrossEntropy, Distillation
from clinkd.pipeline.correcting import ANSWERS, CORRECTIONS, EFFECT, CorrectionContext, reviewed, similarity_of, taught
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

SPOKEN: dict[Split, str] = {"validation": "validation.jsonl", "test": PREDICTIONS}  # files of answers
STORE = "stored-teacher"
GALLERY = "gallery"
SEEN = "seen"  # the model between the two halves of its pretraining


# -- stages -----------------------------------------------------------------------------------------------------------


def prepare(work: StageContext, config: DataConfig) -> None:
    """Draw phantoms, or read the given data and split it by group; one file of samples a split."""
    left_out = Counter[str]()
    if config.path is None:
        total = config.phantoms.train_images + config.phantoms.validation_images + config.phantoms.test_images
        with _loop(work, "draw", total), progress(total, "draw phantoms", "images") as advance:
            samples = phantoms.write(work.folder, config.phantoms, work.seed, config.workers, advance)
        root, lexicon = Path(), phantoms.LEXICON
    else:
        source = data.Source(
            config.path, max_questions=config.max_questions, max_boxes=config.max_boxes, seed=work.seed
        )
        found = data.read_samples(source, left_out)
        samples = data.split_samples(found, config.validation_share, config.test_share, work.seed)
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
    """The model before any training: random weights, or a check that the pretrained ones load with the scheme."""
    here = StageInputs(work, machine)
    if config.base is None:
        train = here.samples("train")
        texts = texts_of(train, config)
        model = new_tiny(config, texts, work.seed, here.open_image).to(here.device)
        if config.tiny.pretrain:
            model = _pretrained(here, model, data.bare_pairs(train), config.tiny.pretrain)
        distributed.on_main_process(lambda: model.save(work.folder / "model"))
        distributed.on_main_process(lambda: shutil.rmtree(work.folder / SEEN, ignore_errors=True))
        _drop_checkpoints(work.folder)
    else:
        model = load(config.base, here.open_image, config)
        at = {"folder": str(config.base.resolve()), "model": config.model_dump(mode="json")}
        distributed.on_main_process(lambda: write_json(work.folder / POINTER, at))
    work.record("parameters", sum(p.numel() for p in model.parameters()))


def see(work: StageContext, machine: Machine) -> None:
    """What the frozen tower makes of every image of every split."""
    here = StageInputs(work, machine)
    refs = {ref for split in SPLITS for ref in read_images(work.inputs["prepare"], split)}
    model = here.model("base")
    with _loop(work, "images", len(refs)):
        taken = cache_features(work.folder / GALLERY, model, refs, "see images")
    work.record("bytes", taken)


def _pretrained(
    here: StageInputs, model: VisionLanguageModel, pairs: Sequence[Sample], config: PretrainConfig
) -> VisionLanguageModel:
    """First the tower, then the whole model on bare pairs; no sentence of the four tasks is seen."""
    here.work.record("bare_pairs", len(pairs))
    seen, draft = here.work.folder / SEEN, here.work.folder / f".{SEEN}.part"
    if config.vision and pairs:
        if not seen.is_dir():
            sight = VisionPretrainer(model, [s.names[0] for s in pairs]).to(here.device)
            _fit(here, sight, pairs, CrossEntropy(), config.vision, "see")

            def keep() -> None:
                shutil.rmtree(draft, ignore_errors=True)
                model.save(draft)
                publish(draft, seen)

            distributed.on_main_process(keep)
            _drop_checkpoints(here.work.folder)
        model = load(seen, here.open_image).to(here.device)
    if config.pairs and pairs:
        _fit(here, model, pairs, CrossEntropy(), config.pairs, "pairs")
    return model


def teacher(work: StageContext, config: TeacherConfig, machine: Machine) -> None:
    """A copy tuned on a share of the training images, stratified by task and modality."""
    here = StageInputs(work, machine)
    drawn = data.draw_share(here.samples("train"), config.share, work.seed)
    work.record("questions", len(drawn))
    _train(here, here.model("base"), drawn, CrossEntropy(), config.fit, "teacher")


def pseudo(
    work: StageContext, config: DistillConfig, answers: AnswerConfig, teacher: TeacherConfig | None, machine: Machine
) -> None:
    """Answers of the teacher (or the untrained base) to training questions outside the teacher's own draw."""
    here = StageInputs(work, machine)
    train = here.samples("train")
    own = {s.id for s in data.draw_share(train, teacher.share, work.seed)} if teacher else set()
    outside = [s for s in train if s.id not in own]
    asked = outside if config.targets == "pseudo" else _share(outside, config.pseudo_share, work.seed, "pseudo")
    file, model = work.folder / PREDICTIONS, here.model(config.pseudo_from)
    with _loop(work, "answers", len(asked)):
        answer_samples(model, asked, answers, file=file, by=config.pseudo_from, title="pseudo-labels", seed=work.seed)
    work.record("questions", len(asked))


def distill(work: StageContext, config: DistillConfig, machine: Machine) -> None:
    """The teacher into a second copy of the base, over the whole training split."""
    here = StageInputs(work, machine)
    train = here.samples("train")
    if "pseudo" in work.inputs:
        said = {p.id: p.answer.answer for p in read_predictions(work.inputs["pseudo"])}
        empty = [i for i, text in said.items() if not text.text.strip()]
        train = [s.answered(said[s.id], "+pseudo") if s.id in said and s.id not in empty else s for s in train]
        work.record("pseudo_labels", {"used": len(said) - len(empty), "empty": len(empty)})
    student = here.model("base")
    if config.kd_weight > 0:
        tutor = _tutor(here, student, train, config)
        _train(here, student, train, Distillation(config.kd_weight, config.temperature), config.fit, "distill", tutor)
        # Gigabytes that nobody reads again: a finished stage is never trained anew, and its variants are other stages.
        distributed.on_main_process(lambda: shutil.rmtree(work.folder / STORE, ignore_errors=True))
    else:
        _train(here, student, train, CrossEntropy(), config.fit, "tune")


def _tutor(
    here: StageInputs, student: VisionLanguageModel, samples: Sequence[Sample], config: DistillConfig
) -> Teacher:
    """The teacher beside the student, or what it thinks of all samples, which an attempt before may have written."""
    if config.teacher_as == "live":
        return LiveTeacher(here.model("teacher"))
    folder, by = here.work.folder / STORE, here.work.inputs["teacher"] / "model"
    identity = identity_of(
        config.teacher_as, samples, by, student,
        temperature=config.temperature, draws=config.draws, seed=here.work.seed,
    )  # fmt: skip

    def keep() -> None:
        if not finished(folder):
            rows, model = config.fit.rows // config.fit.accumulate, here.model("teacher")
            with _loop(here.work, "stored_samples", len(samples)):
                store(folder, model, samples, identity, title="store the teacher", rows_a_pass=rows)

    distributed.on_main_process(keep)
    here.work.record("stored_teacher", {"bytes": folder_bytes(folder)})
    return StoredTeacher(folder, identity)


def reflect(
    work: StageContext, config: ReflectConfig, round: int, previous: str, answers: AnswerConfig,
    distill: DistillConfig | None, machine: Machine,
) -> None:  # fmt: skip
    """One round: answer training questions, rewrite the wrong answers from the truth, train on both."""
    here = StageInputs(work, machine)
    model, given = here.model(previous), here.samples("train")
    train = taught(here.desk, config, given)
    work.record("overruled_truths", sum(a is not b for a, b in zip(given, train, strict=True)))
    asked = _share(train, config.review_share, work.seed, f"round {round}")
    greedy = AnswerConfig(beams=1, candidates=1, max_new_tokens=answers.max_new_tokens, batch=answers.batch)
    file = work.folder / ANSWERS
    with _loop(work, "answers", len(asked)):
        found = answer_samples(model, asked, greedy, file=file, by=previous, title=f"review {round}/{config.rounds}")
    kept = work.folder / CORRECTIONS

    def keep() -> None:
        if kept.is_file():  # an attempt before this one was done with it
            return
        corrections = reviewed(here.desk, config, train, asked, found, round)
        write_lines(kept, (c.to_json() for c in corrections))
        table = summary(corrections, asked)
        write_json(work.folder / "summary.json", {"title": table.title, "columns": table.columns, "rows": table.rows})

    with _loop(work, "corrections", len(asked)):
        distributed.on_main_process(keep)
    corrections = [Correction.from_json(record) for record in JsonLines(kept).read()]
    work.record("reviewed", {"asked": len(asked), "of": len(train), "wrong": sum(c.wrong for c in corrections)})
    fresh = fed_back(asked, corrections)
    tutor = LiveTeacher(here.model("teacher")) if config.objective == "distill" else None
    objective = Distillation(distill.kd_weight, distill.temperature) if tutor and distill else CrossEntropy()
    lap = (round - 1, config.rounds)
    _train(here, model, [*train, *fresh], objective, config.fit, f"reflect {round}/{config.rounds}", tutor, lap)
    if config.recheck:
        truths = [s.answer.words for s in train]
        _recheck(here, model.eval(), asked, corrections, config, greedy, truths, f"recheck {round}/{config.rounds}")


def _recheck(
    here: StageInputs, model: VisionLanguageModel, asked: Sequence[Sample], corrections: Sequence[Correction],
    config: ReflectConfig, answers: AnswerConfig, truths: Sequence[str], title: str,
) -> None:  # fmt: skip
    """Ask some of the reviewed questions again: what came of answers that were wrong, and of those that were right."""
    was = {c.id: c.wrong for c in corrections}
    drawn: list[Sample] = []
    for wrong in (True, False):
        kind = [s for s in asked if was[s.id] == wrong]
        drawn += _share(kind, min(1.0, config.recheck / 2 / len(kind)), here.work.seed, "recheck") if kind else []
    file = here.work.folder / "rechecked.jsonl"
    with _loop(here.work, "rechecks", len(drawn)):
        found = answer_samples(model, drawn, answers, file=file, by=title, title=title)

    def keep() -> None:
        similarity = similarity_of(here.desk, config, truths)
        now = {c.id: c for c in review(drawn, found, similarity, config, 0)}
        lines = (
            {
                "id": s.id, "task": s.task.value, "modality": s.modality.value, "before_wrong": was[s.id],
                "after_wrong": now[s.id].wrong, "answer": now[s.id].before.to_json(),
            }
            for s in drawn
        )  # fmt: skip
        write_lines(here.work.folder / EFFECT, lines)

    distributed.on_main_process(keep)


def clip(work: StageContext, config: ClipConfig, machine: Machine) -> None:
    """The image-text model that scores candidates: given, or trained on training captions, and on boxes with their
    names and captions, where it is to be shown crops."""
    here = StageInputs(work, machine)
    if config.base is not None:
        ImageTextModel.load(config.base, here.open_image)
        write_json(work.folder / POINTER, {"folder": str(config.base.resolve())})
        return
    train = here.samples("train")
    kinds = [kind for kind in captioned(train, config.grounding != "text", work.seed) if len(kind) > 1]
    if not kinds:
        raise BadInput("select.clip: fewer than two training images with a caption; give select.clip.base, or set "
                       "select.scorer=first")  # fmt: skip
    model = new_tiny_clip(here.model("base").tokenizer, config, work.seed, here.open_image)
    with _loop(work, "pairs", round(config.epochs * len(kinds[0]))):
        loss = train_clip(model, kinds, config, work.seed)
    work.record("loss", loss)
    work.record("views", [len(kind) for kind in kinds])
    model.save(work.folder / "model")


def answer(work: StageContext, config: AnswerConfig, previous: str, machine: Machine) -> None:
    """The final model's candidates for the test questions, and for those of validation, on which `select` decides."""
    here = StageInputs(work, machine)
    model = here.model(previous)
    by = f"{previous}-{read_json(work.inputs[previous] / 'stage.json')['identity']}"
    asked = {split: here.samples(split) for split in SPOKEN}
    with _loop(work, "answers", sum(map(len, asked.values()))):
        for split, name in SPOKEN.items():
            answer_samples(
                model, asked[split], config, file=work.folder / name, by=by, title=f"answer {split}", seed=work.seed
            )


def select(work: StageContext, config: SelectConfig, machine: Machine) -> None:
    """Every candidate scored, the best one chosen where the scorer may be trusted with the task.

    Rivals that cost nothing write their scores beside the scorer's: what selection gained is told against them.
    """
    here = StageInputs(work, machine)
    scorer, tasks = here.scorer(config), list(config.tasks)
    rivals = [r for r in (Agreement(), RandomScorer(work.seed)) if r.name != scorer.name]

    def chosen(split: Split, among: Sequence[str]) -> tuple[dict[str, Sample], list[Prediction]]:
        samples = {s.id: s for s in here.samples(split)}
        found = read_predictions(work.inputs["answer"], SPOKEN[split])
        return samples, rerank(samples, found, scorer, among, rivals)

    if config.trust == "validated" and config.scorer != "first":
        samples, predictions = chosen("validation", tasks)
        gain: dict[str, list[float]] = {}
        for p in predictions:
            s = samples[p.id]
            first, best = (
                answer_accuracy(c.answer, s.answer, s.facts, here.lexicon) for c in (p.candidates[0], p.answer)
            )
            gain.setdefault(s.task, []).append(best - first)
        mean = {task: sum(g) / len(g) for task, g in gain.items()}
        tasks = [t for t in tasks if mean.get(t, 0) > 0]
        work.record("validation_gain", {t: round(100 * g, 2) for t, g in mean.items()})
    work.record("reordered_tasks", tasks)
    _, predictions = chosen("test", tasks)
    if isinstance(scorer, ClipScorer):
        shown = {"candidates": scorer.num_candidates, "too_long": scorer.num_too_long}
        work.record("clip_inputs", {**shown, "token_limit": scorer.model.towers.limit})
    write_lines(work.folder / PREDICTIONS, (p.to_json() for p in predictions))


def shuffle(work: StageContext, config: AnswerConfig, previous: str, machine: Machine) -> None:
    """What the final model says to the test questions when it is shown another image: a twin that sees nothing of what
    it is asked about, and knows all that the model has learnt."""
    here = StageInputs(work, machine)
    asked, file = images_shuffled(here.samples("test")), work.folder / PREDICTIONS
    if not asked:  # a single image
        return write_lines(file, [])
    model = here.model(previous)
    with _loop(work, "answers", len(asked)):
        answer_samples(model, asked, config, file=file, by=IMAGES_SHUFFLED, title="images shuffled", seed=work.seed)


def score(work: StageContext, whole: RunConfig) -> None:
    """Predictions to scores, tables and the report."""
    from clinkd.pipeline import report

    report.write(work, whole)


# -- what they share --------------------------------------------------------------------------------------------------


@contextmanager
def _loop(work: StageContext, name: str, units: int) -> Iterator[None]:
    """Record how long this attempt took over so many units of what a stage does again and again."""
    start = time.monotonic()
    yield
    work.record(name, {"units": units, "seconds": round(time.monotonic() - start, 3)})


class StageInputs:
    """Data, models and the machine, as a stage finds them."""

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
            seen = self.work.inputs["see"]
            self.gallery = self.gallery or FeatureCache(seen / GALLERY, model, owner=seen)
            self.gallery.serve(model)
        return model

    def scorer(self, config: SelectConfig) -> Scorer:
        return scorer_of(config, self.work.inputs.get("clip"), self.open_image, self.lexicon, self.work.seed)


def _train(
    here: StageInputs, model: VisionLanguageModel, samples: Sequence[Sample], objective: CrossEntropy | Distillation,
    config: FitConfig, title: str, teacher: Teacher | None = None, lap: tuple[int, int] = (0, 1),
) -> None:  # fmt: skip
    _fit(here, model, samples, objective, config, title, teacher, lap)
    distributed.on_main_process(lambda: model.save(here.work.folder / "model"))
    _drop_checkpoints(here.work.folder)


def _fit(
    here: StageInputs, model: VisionLanguageModel | VisionPretrainer, samples: Sequence[Sample],
    objective: CrossEntropy | Distillation,
    config: FitConfig, title: str, teacher: Teacher | None = None, lap: tuple[int, int] = (0, 1),
) -> None:  # fmt: skip
    folder = here.work.folder / f"fit-{title.split()[0]}"
    fitted = fit(
        model, samples, objective, config,
        FitRun(folder, here.work.seed, title, lap, here.machine.shard, here.machine.trackers), teacher=teacher,
    )  # fmt: skip
    done = {"steps": fitted.num_steps, "samples": fitted.num_samples, "loss": fitted.final_loss}
    here.work.record(folder.name, {**done, "rows": fitted.num_rows, "trained_parameters": fitted.num_trained})


def _drop_checkpoints(stage: Path) -> None:
    """Called once what they led to is saved: a stop in between goes on from the last one."""

    def drop() -> None:
        for pattern in ("step-*", ".step-*", "damaged-*"):
            for checkpoint in stage.glob(f"fit-*/{pattern}"):
                shutil.rmtree(checkpoint)

    distributed.on_main_process(drop)


def _share(samples: Sequence[Sample], share: float, seed: int, what: str) -> list[Sample]:
    """A recorded random share: by a hash of seed and id, so that it does not depend on the order of samples."""
    lot = {s.id: hashlib.sha256(f"{seed} {what} {s.id}".encode()).digest() for s in samples}
    kept = set(sorted(lot, key=lambda i: lot[i])[: max(1, round(share * len(samples)))])
    return [s for s in samples if s.id in kept]
