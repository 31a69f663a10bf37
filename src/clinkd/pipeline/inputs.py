"""What the code of a stage works with: its context, the data, the models and the machine."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager

import torch

from clinkd import distributed
from clinkd.config import AnswerConfig, FitConfig, ModelConfig, ReflectConfig, SelectConfig
from clinkd.data.images.variants import add_variants
from clinkd.inference import Scorer
from clinkd.inference import answer as answer_samples
from clinkd.model.additions import read_additions
from clinkd.model.eyes import Eyes
from clinkd.model.folders import opened_folder
from clinkd.model.vision import VisionPretrainer
from clinkd.model.vlm import VisionLanguageModel, load, new_tiny, spell_samples
from clinkd.objectives import CrossEntropy, Objective
from clinkd.pipeline.correcting import CorrectionContext
from clinkd.pipeline.damage import MODEL, demand_whole_model
from clinkd.pipeline.graph import StageContext
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.models import load_model, make_scorer, save_model
from clinkd.pipeline.prepared import read_data, read_images, read_split, read_variants
from clinkd.records import SPLITS, ImageRef, Prediction, Sample, Split
from clinkd.training import CellCache, FeatureCache, FitRun, LiveTeacher, Teacher, fit

FEATURES = "gallery"
REOPENED = "reopened"  # a model between two trainings


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

    def model(self, stage: str, cached: bool = True) -> VisionLanguageModel:
        """The model of a stage before; `cached`: with the features of the run's tower, if they are cached."""
        return self._make_ready(load_model(self.inputs[stage], self.open_image).eval(), cached)

    def reopen(self, model: VisionLanguageModel) -> VisionLanguageModel:
        """A trained model, to be asked or trained again in each process. Where they shared its weights out, it is read
        anew: only the main process has put it together, and FSDP takes no module twice."""
        if not self.machine.shard or distributed.size() == 1:
            return model
        folder = self.folder / REOPENED

        def save() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            model.save(folder)

        distributed.on_main_process(save)
        whole = load(folder, self.open_image).eval()
        whole.additions = model.additions
        distributed.wait_for_all()
        distributed.on_main_process(lambda: shutil.rmtree(folder))
        return self._make_ready(whole, cached=True)

    def _make_ready(self, model: VisionLanguageModel, cached: bool) -> VisionLanguageModel:
        self._serve_cells(model)
        if cached and "see" in self.inputs:
            features_folder = self.inputs["see"]
            self.feature_cache = self.feature_cache or FeatureCache(
                features_folder / FEATURES, model, owner=features_folder
            )
            self.feature_cache.serve(model)
            if not self.machine.shard:
                model.put_vision_aside()
        return model.to(self.device)

    def live_teacher(self, student: VisionLanguageModel, config: FitConfig) -> LiveTeacher:
        """The teacher beside this student, to be trained once as `config` says.

        Where LoRA made both of one base, it is what was added, on the weights of the student, which keep still until
        that is merged at the end.
        """
        demand_whole_model(self.inputs["teacher"])
        additions = read_additions(self.inputs["teacher"] / MODEL)
        if config.lora and student.additions == {} and additions:
            return LiveTeacher(student.with_additions(additions))
        return LiveTeacher(self.model("teacher"))

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
        """Train a model in place, and record what was done. Without an `objective`, by cross-entropy.

        What stays fixed beside the parts that `config.freeze` names is told on stderr.
        """
        if note := isinstance(model, VisionLanguageModel) and model.explain_freeze(config.freeze):
            distributed.on_main_process(lambda: print(f"{title}: {note}", file=sys.stderr, flush=True))
        folder, machine = self.folder / f"fit-{title.split()[0]}", self.machine
        run = FitRun(folder, self.seed, title, schedule_part, machine.shard, machine.trackers, unlabelled)
        fitted = fit(model, samples, objective or CrossEntropy(), config, run, teacher=teacher)
        counts = {"steps": fitted.num_steps, "samples": fitted.num_samples, "loss": fitted.final_loss}
        counts["falling"] = fitted.falling
        self.record(folder.name, {**counts, "rows": fitted.num_rows, "trained_parameters": fitted.num_trained})

    def save(self, model: VisionLanguageModel) -> None:
        """Save the model of the stage. From then on its trainings need no checkpoint."""
        distributed.on_main_process(lambda: save_model(model, self.folder))
        self.drop_checkpoints()

    def drop_checkpoints(self) -> None:
        """Call this only after a model is saved: until then, a stopped training continues from its last checkpoint."""

        def drop() -> None:
            for pattern in ("step-*", ".step-*", "damaged-*"):
                for checkpoint in self.folder.glob(f"fit-*/{pattern}"):
                    shutil.rmtree(checkpoint)

        distributed.on_main_process(drop)


@contextmanager
def record_seconds(work: StageContext | StageInputs, name: str, units: int) -> Iterator[None]:
    """Record the seconds that this attempt takes for a loop over `units` items."""
    start = time.monotonic()
    yield
    work.record(name, {"units": units, "seconds": round(time.monotonic() - start, 3)})


def choose_share(samples: Sequence[Sample], share: float, seed: int, purpose: str) -> list[Sample]:
    """A random share, chosen by a hash of seed and id, so that it does not depend on the order of the samples."""
    hash_rank = {s.id: hashlib.sha256(f"{seed} {purpose} {s.id}".encode()).digest() for s in samples}
    kept = set(sorted(hash_rank, key=hash_rank.__getitem__)[: max(1, round(share * len(samples)))])
    return [s for s in samples if s.id in kept]
