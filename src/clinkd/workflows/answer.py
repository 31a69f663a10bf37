"""The answers of an evaluation: from files, a run, a model's folder, or a chat API. Imports torch only if a model
answers on this machine."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from clinkd.config import ChatConfig, RunConfig
from clinkd.data import images
from clinkd.data.codecs import make_codec
from clinkd.data.readers.coco import CocoNames
from clinkd.data.readers.forms import read_samples, with_form
from clinkd.data.readers.source import ImageResolver, Source
from clinkd.language.facts import Lexicon
from clinkd.language.words import normalise
from clinkd.pipeline.correcting import JOURNAL, encode_png_images, make_scrubbers, risk_of_pixels
from clinkd.pipeline.graph import stage_record
from clinkd.pipeline.runs import Run
from clinkd.records import BadInput, Modality, Prediction, Sample, Split, Task
from clinkd.remote import Chat, Journal
from clinkd.scoring.detection import DetectorOutput
from clinkd.scoring.official import ReleasedAnswer, as_released_text
from clinkd.scoring.outcome import MODES, Mode
from clinkd.scoring.reading import released
from clinkd.scoring.reading.answer_files import HowToRead, find_frame_doubts
from clinkd.scoring.reading.box_families import choose_family
from clinkd.scoring.reading.results import EvaluationData, Missing, read_results
from clinkd.settings import override
from clinkd.storage import read_json, sha256_file, write_json
from clinkd.workflows.correct import OutgoingPreview

ASKED = "asked.json"  # in an evaluation's folder: whose answers it holds, and to which questions
_NAMES_TOLD = 5
_PAPER_CODEC = make_codec("qwen-vl")  # what the papers' scripts read


@dataclass(frozen=True)
class Answers:
    """A system's answers to a test set. `rows`: by sample, what the papers' scripts read. `told`: counts of what was
    left out, changed or assumed. `train`: what image-blind baselines may learn from. `root`: of the images."""

    system: str
    test_set: str
    source: Mapping[str, Any]
    samples: Sequence[Sample]
    predictions: Sequence[Prediction]
    rows: Mapping[str, ReleasedAnswer]
    lexicon: Lexicon
    train: Sequence[Sample] = ()
    root: Path | None = None
    notes: Counter[str] = field(default_factory=Counter)
    validation: Sequence[Sample] = ()  # on which the best of the image-blind baselines is chosen
    doubts: Sequence[str] = ()  # sentences on boxes that may be written otherwise than declared
    output: DetectorOutput = field(default_factory=DetectorOutput)  # boxes of COCO results as they stand


@dataclass(frozen=True)
class TestSet:
    """The questions of a split, the samples to learn from, and counts of what was left out in reading them."""

    name: str
    split: Split | Literal["all"]
    samples: Sequence[Sample]
    train: Sequence[Sample]
    root: Path
    pictured: bool  # its images were opened, so they exist
    names: CocoNames | None
    notes: Counter[str]
    validation: Sequence[Sample] = ()  # on which the best of the image-blind baselines is chosen

    __test__ = False  # no test, whatever its name says to pytest

    @property
    def description(self) -> str:
        """In words."""
        return self.name if self.split == "all" else f"the {self.split} split of {self.name}"

    def answered(self, system: str, source: Mapping[str, Any], predictions: Sequence[Prediction]) -> Answers:
        """Answers to these questions."""
        rows = rows_of(self.samples, predictions)
        lexicon = lexicon_of([*self.samples, *self.train])
        root = self.root if self.pictured else None
        return Answers(
            system, self.description, source, self.samples, predictions, rows, lexicon, self.train, root, self.notes,
            self.validation,
        )  # fmt: skip


def rows_of(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict[str, ReleasedAnswer]:
    """By sample, the answers as lines of the papers' files; one prediction for each sample, in its order."""
    return {s.id: _as_row(s, p) for s, p in zip(samples, predictions, strict=True)}


def collect_run_answers(
    system: str, test_set: str, samples: Sequence[Sample], predictions: Sequence[Prediction], lexicon: Lexicon,
    train: Sequence[Sample],
) -> Answers:  # fmt: skip
    """Answers that a run gave to its own test questions."""
    by_id = {p.id: p for p in predictions}
    ordered = [by_id[s.id] for s in samples]
    return Answers(system, test_set, {"kind": "run"}, samples, ordered, rows_of(samples, ordered), lexicon, train)


def lexicon_of(samples: Sequence[Sample]) -> Lexicon:
    """The words with which samples name and describe their structures."""
    facts = [f for s in samples for f in s.facts]
    names = {n for s in samples for n in s.names} | {f.name for f in facts}
    words = ({v for f in facts if (v := getattr(f, kind)) is not None} for kind in ("size", "side", "brightness"))
    return Lexicon(tuple(sorted(names)), *(tuple(sorted(values)) for values in words))


def hash_samples(samples: Sequence[Sample]) -> str:
    """A hash of all fields of the questions and truths, in their order."""
    content = "".join(json.dumps(s.to_json(), sort_keys=True) for s in samples)
    return hashlib.sha256(content.encode(errors="backslashreplace")).hexdigest()


def _as_row(sample: Sample, prediction: Prediction) -> ReleasedAnswer:
    """A sample as a line of the papers' files, with their spelling of boxes; intervals are over its group."""
    prefix = "x" if sample.modality is Modality.XRAY else sample.modality.value
    image = f"{prefix}_{sample.group.replace('/', '--')}"
    try:
        truth = _PAPER_CODEC.encode(sample.answer)
    except BadInput:  # words that hold a box written out
        truth = sample.answer.words
    return ReleasedAnswer(sample.id, image, truth, as_released_text(prediction.answer))


# ---- answers from files ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReleasedFiles:
    """Files in the papers' form, one a task, that are one system.

    `truth` and `how`: how truths and answers write boxes. `images`: the folder of the images, where their sizes are
    needed or pictures wanted. `group`: see `released.read_lines`. `quarantine`: where bad rows are set aside.
    `prefix`: cut from the front of each image path.
    """

    files: Mapping[Task, Path]
    truth: HowToRead = field(default_factory=partial(HowToRead, flag="--truth-boxes"))
    how: HowToRead = field(default_factory=HowToRead)
    images: Path | None = None
    group: str | None = None
    quarantine: Path | None = None
    prefix: str = ""

    @property
    def sized_images(self) -> Path | None:
        """The folder of the images, where boxes are pixels: then each image must be there."""
        in_pixels = [choose_family(how.boxes, how.flag).unit is None for how in (self.truth, self.how)]
        return self.images if any(in_pixels) else None

    def _source(self, file: Path) -> Source:
        return Source(file, images=self.images, prefix=self.prefix.replace("\\", "/"))

    def read_lines(self, strictly: bool) -> dict[Task, released.ReleasedLines]:
        """The rows of each file, without those that cannot be used. Raises BadInput with the first of these, unless
        they are set aside."""
        lines = {}
        for task, file in self.files.items():
            resolver = ImageResolver(self._source(file)) if self.sized_images else None
            lines[task] = released.read_lines(file, resolver, self.group)
            if strictly:
                faults = released.find_unreadable_truths(lines[task], task, self.truth)
                lines[task] = lines[task].without(faults)
            if self.quarantine is None:
                lines[task].demand()
            elif not lines[task].good:
                raise BadInput(f"{file}: no row of it can be used, the first fault is {lines[task].bad[0][0]}")
        return lines


def read_released(given: ReleasedFiles, modes: Sequence[Mode] = MODES, system: str | None = None) -> Answers:
    """Answers in the papers' form. Raises BadInput with the first row that cannot be used, unless they are set aside,
    and where sizes of images are needed and not known."""
    lines = given.read_lines(strictly="strict" in modes)
    if bad := [row for part in lines.values() for row in part.bad]:
        assert given.quarantine
        released.set_aside(bad, given.quarantine)
    parts = [
        released.read_questions(part, task, given.truth, given.how, f"{task} " if len(lines) > 1 else "")
        for task, part in lines.items()
    ]
    read = released.ReleasedQuestions(
        [s for part in parts for s in part.samples],
        [p for part in parts for p in part.predictions],
        sum((part.notes for part in parts), Counter({"bad rows, set aside": len(bad)})),
        tuple(doubt for part in parts for doubt in part.doubts),
    )
    rows = (row for part in lines.values() for row in part.rows)
    by_id = {s.id: row for s, row in zip(read.samples, rows, strict=True)}
    first, names = next(iter(given.files.values())), ", ".join(file.name for file in given.files.values())
    source = {"kind": "released", "file": names, "truth_boxes": given.truth.boxes, "boxes": given.how.boxes}
    return Answers(
        system or first.stem, names, source, read.samples, read.predictions, by_id, read.lexicon,
        root=given.sized_images, notes=read.notes, doubts=read.doubts,
    )  # fmt: skip


def read_test_set(source: Source, split: Split | Literal["all"] = "test") -> TestSet:
    """The questions of a split of data in any form. Raises BadInput for a bad row, and for an empty split."""
    told: Counter[str] = Counter()
    source = with_form(source)
    samples = read_samples(source, told)
    questions = [s for s in samples if split in ("all", s.split)]
    if not questions:
        splits = ", ".join(sorted({s.split or "none" for s in samples}))
        raise BadInput(
            f"{source.path}: no question is in the {split} split (splits: {splits}); give --split all, or import the "
            "data first, which divides it"
        )
    train = [s for s in samples if s.split == "train"] if split in ("test", "validation") else []
    names = CocoNames.of(source) if source.form == "coco" else None
    validation = [s for s in samples if s.split == "validation"] if split == "test" else []
    return TestSet(source.path.name, split, questions, train, source.root, source.open_images, names, told, validation)


def read_answers(
    files: Sequence[Path], test: TestSet, missing: Missing, least: float, how: HowToRead, system: str | None
) -> Answers:
    """Answers to a test set from files: predictions of a run, COCO results, or what any harness writes."""
    splits = test.names.splits if test.names else {}
    in_split = frozenset(path for path, split in splits.items() if test.split in ("all", split))
    asked = frozenset(s.images[0].path for s in test.samples)
    data = EvaluationData(test.samples, test.description, test.names, in_split | asked)
    results = read_results(files, data, missing, least, how)
    test = replace(test, notes=test.notes + results.notes)
    names = ", ".join(file.name for file in files)
    answered = test.answered(system or files[0].stem, {"kind": "predictions", "file": names}, results.predictions)
    return replace(answered, doubts=results.doubts, output=results.output)


# ---- a model on this machine ----------------------------------------------------------------------------------------


def answer_with_run(run: Run, test: TestSet, settings: Sequence[str], out: Path, system: str | None) -> Answers:
    """A run's final model answers, and the answers are chosen as the run chooses them.

    Answers are kept in the folder `out` as they come; the same call goes on from there. What the run never learned of,
    and images that it learned from, are told. Raises BadInput if the images of the test set were not opened.
    """
    from clinkd.inference import rerank
    from clinkd.pipeline.models import load_model, make_scorer
    from clinkd.pipeline.prepared import read_data_source, read_split

    prepared = run.stage("prepare")
    source_of_run = read_data_source(prepared)
    learned = LearnedData(source_of_run.root, *(read_split(prepared, split) for split in ("train", "validation")))
    test = replace(test, notes=test.notes + learned.note_new(test))
    config = override(run.config, settings)
    last, open_image = run.last_trained, partial(images.open_image, test.root)
    identity = str(read_json(run.stage(last) / "stage.json")["identity"])
    predictions = _answer_here(load_model(run.stage(last), open_image), identity, config, test, out)
    doubts = learned.find_doubts(test)
    if config.select.scorer != "first":
        clip = run.stage("clip") if config.select.scorer == "clip" else None
        names = {*source_of_run.lexicon.names, *lexicon_of(test.samples).names}  # of crops, also of new structures
        lexicon = replace(source_of_run.lexicon, names=tuple(sorted(names)))
        recorded = stage_record(run.stage("select"))["recorded"]
        scorer = make_scorer(config.select, clip, open_image, lexicon, config.seed, recorded)
        predictions = rerank({s.id: s for s in test.samples}, predictions, scorer, recorded["reordered_tasks"])
        doubts += tell_unread(scorer)
    source = {"kind": "run", "run": run.folder.name, "stage": last, "identity": identity}
    answers = test.answered(system or run.folder.name, source, predictions)
    return replace(answers, doubts=doubts)


def tell_unread(scorer: object) -> list[str]:
    """A sentence if a crop classifier could not read a word of some answers."""
    from clinkd.inference import CropScorer

    if not isinstance(scorer, CropScorer) or not scorer.unread:
        return []
    return [
        f"{len(scorer.unread)} answers keep the first beam: the crop classifier cannot read their words, for example "
        f"{next(iter(scorer.unread.values()))!r}, which no training box is called: pip install 'clinkd[eyes]' brings "
        "what reads them"
    ]


@dataclass(frozen=True)
class LearnedData:
    """What a run has learned from: the samples that it was trained on and chosen by, and the folder of their images."""

    root: Path
    train: Sequence[Sample]
    validation: Sequence[Sample]

    def note_new(self, test: TestSet) -> Counter[str]:
        """Counts of questions about what the run never learned of, and of what image-blind baselines know."""
        notes = Counter[str]()
        names = {normalise(name) for s in self.train for name in s.names}
        new = [{name for name in s.names if normalise(name) not in names} for s in test.samples]
        if unknown := sorted(set().union(*new)):
            shown = ", ".join(unknown[:_NAMES_TOLD]) + (", ..." if len(unknown) > _NAMES_TOLD else "")
            notes[f"questions about structures that the run never learned: {shown}"] = sum(map(bool, new))
        for what, values in (("modality", "modality"), ("task", "task")):
            known = {getattr(s, values) for s in self.train}
            for value, count in Counter(getattr(s, values) for s in test.samples).items():
                notes[f"questions of a {what} that the run never learned: {value}"] += 0 if value in known else count
        if test.train:
            notes[f"training questions of {test.name}, from which the image-blind baselines learn"] = len(test.train)
        else:
            own = (
                "questions, each answered blindly from those of other patients or images, as there is no training split"
            )
            notes[own] = len(test.samples)
        return +notes

    def find_doubts(self, test: TestSet) -> list[str]:
        """A sentence if the run has learned from images of the test set, by the bytes of their files."""
        images = _locate_files(test.root, test.samples)
        sizes = {file.stat().st_size for file in images}
        known = [f for f in _locate_files(self.root, [*self.train, *self.validation]) if f.stat().st_size in sizes]
        hashes = {sha256_file(file) for file in known}
        seen = sum(sha256_file(file) in hashes for file in images) if hashes else 0
        if not seen:
            return []
        return [
            f"{seen} of {len(images)} image files are among those that the run was trained on or chosen by: its scores "
            "there say nothing of new images"
        ]


def _locate_files(root: Path, samples: Sequence[Sample]) -> list[Path]:
    """The files of all images that are there, each once."""
    names = {image.path for s in samples for image in s.images}
    return sorted({file for name in names if (file := images.locate(root, name, name)[0]).is_file()})


def answer_with_model(folder: Path, test: TestSet, settings: Sequence[str], out: Path, system: str | None) -> Answers:
    """A model in a folder answers: an exported one, or a stock one. Answers are kept as by `answer_with_run`."""
    from clinkd.model.vlm import load_foreign

    config = override(RunConfig(), settings)
    model = load_foreign(folder, partial(images.open_image, test.root))
    predictions = _answer_here(model, _hash_files(folder), config, test, out)
    return test.answered(system or folder.name, {"kind": "model", "folder": folder.name}, predictions)


def _hash_files(folder: Path) -> str:
    """A hash of names, sizes and times of a model's files: enough to tell whether it is still the same."""
    files = sorted(p for p in folder.iterdir() if p.is_file())
    lines = "".join(f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}\n" for p in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _answer_here(model: Any, identity: str, config: RunConfig, test: TestSet, out: Path) -> list[Prediction]:
    from clinkd.inference import answer
    from clinkd.pipeline.machine import Machine

    if not test.pictured:
        raise BadInput(
            "--no-images: a model answers from the images; leave it out, and name their folder with --images"
        )
    device, knobs = Machine.of(config).ready(), config.answer.model_dump(mode="json", exclude={"batch"})
    claim_folder(out, {"model": identity, "test_set": hash_samples(test.samples), "answer": knobs, "seed": config.seed})
    predictions: list[Prediction] = answer(
        model.to(device).eval(), test.samples, config.answer, file=out / "answers.jsonl", by=identity,
        title="answer", seed=config.seed,
    )  # fmt: skip
    return predictions


def claim_folder(out: Path, asked: dict[str, Any]) -> None:
    """Write down whose answers the folder holds. Raises BadInput if it holds those of another model or question."""
    file = out / ASKED
    if file.is_file() and (stored := read_json(file)) != asked:
        other = next((k for k in asked if stored.get(k) != asked[k]), "asked")
        raise BadInput(f"--out {out}: holds answers of another {other}; choose a new folder")
    write_json(file, asked)


# ---- a model behind an API ------------------------------------------------------------------------------------------

Pixels = Literal["safe", "all"]


def ask_endpoint(config: ChatConfig, test: TestSet, runs: Path, pixels: Pixels | None, system: str | None) -> Answers:
    """A model behind a chat API answers. Every reply is in the journal, and none is paid for twice."""
    told: Counter[str] = Counter()
    with _hosted(config, test, runs, pixels) as hosted:
        predictions = hosted.answer(test.samples, told)
    name = config.model or ""
    told["questions that were asked without their image: an image-blind baseline of the model"] += (
        0 if pixels else len(predictions)
    )
    source = {"kind": "endpoint", "model": name, "pixels": pixels or "none"}
    answered = replace(test, notes=test.notes + told).answered(
        system or (name if pixels else f"{name}, blind"), source, predictions
    )
    doubts = find_frame_doubts({p.id: p for p in predictions}, test.samples, HowToRead())
    return replace(answered, doubts=tuple(doubts))


def preview_outgoing(config: ChatConfig, test: TestSet, runs: Path, pixels: Pixels | None) -> OutgoingPreview:
    """What would leave this machine, and what it may cost."""
    with _hosted(config, test, runs, pixels) as hosted:
        bodies = (body for s in test.samples if (body := hosted.body(s)) is not None)
        return OutgoingPreview.of(hosted.chat, bodies, len(test.samples))


@contextmanager
def _hosted(config: ChatConfig, test: TestSet, runs: Path, pixels: Pixels | None) -> Iterator[Any]:
    from clinkd.inference.hosted import Hosted

    if pixels == "safe" and (risk := risk_of_pixels(test.root, test.samples)):
        raise BadInput(f"--pixels: {risk}; leave it away, or say --pixels all where that is no harm to anybody")
    encode_image = encode_png_images(test.root) if pixels else None
    try:
        with Journal(config.journal or runs / JOURNAL) as journal:
            yield Hosted(Chat(config, journal), make_scrubbers(test.root, [*test.samples, *test.train]), encode_image)
    except BadInput as error:  # flags in the place of knobs
        message = str(error).replace("reflect.chat.base_url", "--endpoint").replace("reflect.chat.budget", "--budget")
        raise type(error)(message) from None
