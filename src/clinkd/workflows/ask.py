"""Ask a model about images, one question or many at once: of a finished run, or of a folder that holds one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from clinkd.config import AnswerConfig, RunConfig
from clinkd.data.grids import Size
from clinkd.data.images import open_image
from clinkd.inference import Scorer, judged
from clinkd.inference.self_consistency import SelfConsistency, self_consistency
from clinkd.model.generate import PartialHypotheses, finished
from clinkd.model.vlm import VisionLanguageModel, load_foreign
from clinkd.pipeline.graph import stage_record
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.models import load_model, scorer_of
from clinkd.pipeline.prepared import read_data_source
from clinkd.pipeline.runs import Run
from clinkd.records import (
    BOX_MARK,
    BadInput,
    Box,
    BoxedText,
    ImageRef,
    Modality,
    Prediction,
    Sample,
    Task,
    Turn,
)
from clinkd.reporting.viewer.overlay import draw_boxes


@dataclass(frozen=True)
class Question:
    """What is asked: pictures as the model is to see them, and a conversation whose last answer is wanted."""

    pictures: tuple[Image.Image, ...]
    turns: tuple[Turn, ...]

    @classmethod
    def of(cls, picture: Image.Image, text: BoxedText) -> Question:
        """One question about one picture. Raises BadInput for an empty one."""
        return cls((picture,), (Turn(Task.QA, text, BoxedText("")),))

    @property
    def text(self) -> BoxedText:
        return self.turns[-1].question


class Answer(NamedTuple):
    """A prediction, how far its candidates agree, and whether the run's scorer had a say in the choice.

    `asked_tokens`: of the prompt, pictures and all; `said_tokens`: of the answer, its end mark among them.
    """

    prediction: Prediction
    self_consistency: SelfConsistency
    reordered: bool
    asked_tokens: int
    said_tokens: int


# What leads while it is written, by the number of the question; read when it is asked for, since few steps are shown.
Drafts = Callable[[], Mapping[int, BoxedText]]


class _BatchPictures(dict[str, Image.Image]):
    """The pictures of the batch at hand, by what `ImageRef.path` says."""

    def open(self, ref: ImageRef) -> Image.Image:
        return self[ref.path]


@dataclass
class Answerer:
    """A model with what chooses among its candidates. Of the pictures nothing is kept when a batch is answered."""

    name: str
    config: RunConfig
    model: VisionLanguageModel
    shown: _BatchPictures
    names: tuple[str, ...] = ()
    scorer: Scorer | None = None
    recorded: Mapping[str, Any] = field(default_factory=dict)  # what the run's `select` kept

    @classmethod
    def of_run(cls, run: Run) -> Answerer:
        """A finished run's final model, and its choice. Raises BadInput where the run is not that far."""
        shown, config, last = _BatchPictures(), run.config, run.last_trained
        device = Machine.of(config).ready()
        model = load_model(run.stage(last), shown.open).to(device).eval()
        lexicon = read_data_source(run.stage("prepare")).lexicon
        made = cls(f"{run.folder.name}/{last}", config, model, shown, lexicon.names)
        if config.select.scorer in ("clip", "agreement"):
            clip = run.stage("clip") if config.select.scorer == "clip" else None
            made.scorer = scorer_of(config.select, clip, shown.open, lexicon, config.seed)
            made.recorded = stage_record(run.stage("select"))["recorded"]
        return made

    @classmethod
    def of_folder(cls, folder: Path) -> Answerer:
        """A model that `clinkd export` wrote, or a stock one; its first beam is the answer.

        Raises BadInput where the folder is no such model.
        """
        shown, config = _BatchPictures(), RunConfig()
        model = load_foreign(folder, shown.open)
        return cls(folder.name, config, model.to(Machine.of(config).ready()).eval(), shown)

    def read(self, text: str, picture: Image.Image | None = None) -> BoxedText:
        """A question about a picture as people type it, boxes spelled as the model spells them.

        Raises BadInput for an empty one, and for what looks like a box of another spelling.
        """
        _demand_words(text)
        size = self._box_frame(picture)
        asked = self.model.codec.decode(text, size)
        if asked.unread:
            example = self.model.codec.encode(BoxedText(BOX_MARK, (Box(0.25, 0.25, 0.5, 0.5),)), size)
            raise BadInput(
                f"the question holds {asked.unread[0]!r}, no box as this model spells them, for example {example}"
            )
        return asked.answer

    def as_seen(self, text: BoxedText, picture: Image.Image | None = None) -> BoxedText:
        """A text about a picture as the model gets it: its boxes on the grid of the model's spelling."""
        size = self._box_frame(picture)
        return self.model.codec.decode(self.model.codec.encode(text, size), size).answer

    def _box_frame(self, picture: Image.Image | None) -> Size | None:
        return self.model.text.box_frame((ImageRef("picture", *picture.size),) if picture else ())

    def answering(self, questions: Sequence[Question], how: AnswerConfig) -> Generator[Drafts, None, list[Answer]]:
        """Answers to a batch, a token a step; the last step gives them all. Closed early, the rest is never computed.

        An answer does not depend on the questions beside it. Raises BadInput for a picture that cannot be seen.
        """
        samples = [self._sample(question) for question in questions]
        try:
            made = yield from self._written(samples, how)
            predictions = [
                Prediction(s.id, tuple(candidates), by=self.name) for s, candidates in zip(samples, made, strict=True)
            ]
            return self._chosen(samples, predictions)
        finally:
            self.shown.clear()
            self.model.images.forget()

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers to a batch, as the run answers."""
        return finished(self.answering(questions, self.config.answer))

    def _written(self, samples: Sequence[Sample], how: AnswerConfig) -> Generator[Drafts, None, list[Any]]:
        writing = self.model.decode_stream(samples, how, self.config.seed)
        while True:
            try:
                leading: PartialHypotheses = next(writing)
            except StopIteration as done:
                return list(done.value)
            yield partial(self.model.drafts, leading, samples)

    def _sample(self, question: Question) -> Sample:
        """The question as the house knows it. Its id says what is asked: draws depend on it, and on nothing else."""
        refs = []
        for picture in question.pictures:
            path = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
            self.shown[path] = picture
            refs.append(ImageRef(path, picture.width, picture.height))
        said = repr([r.path for r in refs] + [t.to_json() for t in question.turns])
        own = hashlib.sha256(said.encode(errors="backslashreplace")).hexdigest()
        return Sample(own, tuple(refs), Modality.OTHER, question.turns, group=own, side="image")

    def _chosen(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[Answer]:
        trusted = [
            self.scorer is not None and trusts(self.recorded, s.question, p.candidates[0].answer)
            for s, p in zip(samples, predictions, strict=True)
        ]
        if self.scorer is not None:
            # as the run chose: where its validation did not trust the scorer, scores are shown but do not decide
            scored = judged(samples, predictions, self.scorer, [Task.QA])
            predictions = [p if trust else replace(p, chosen=0) for p, trust in zip(scored, trusted, strict=True)]
        return [self._told(*found) for found in zip(samples, predictions, trusted, strict=True)]

    def _told(self, sample: Sample, prediction: Prediction, trusted: bool) -> Answer:
        lengths = [self.model.length(c) for c in prediction.candidates]
        asked, said = self.model.prompt_length(sample), lengths[prediction.chosen]
        return Answer(prediction, self_consistency(prediction, lengths, self.names), trusted, asked, said)


@dataclass(frozen=True)
class AskResult:
    """The answer to one question, the PNG on which its boxes are drawn, and why the answer is uncertain, if it is."""

    prediction: Prediction
    overlay: Path
    uncertain: str | None = None


def ask(run: Run, image: Path, question: str, overlay: Path | None = None) -> AskResult:
    """The candidates for one question, scored and chosen as the run chooses; boxes drawn on a PNG at `overlay`."""
    out = overlay or Path(f"{image.stem}-answer.png")
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise BadInput(f"--out {out}: the boxes are drawn on a .png or .jpg")
    _demand_words(question)  # before a model is loaded
    picture = open_image(image.parent, image.name)
    answerer = Answerer.of_run(run)
    [found] = answerer.answers([Question.of(picture, answerer.read(question, picture))])
    chosen = found.prediction.answer.answer
    drawn = draw_boxes(picture, chosen.boxes, [str(n) for n in range(1, len(chosen.boxes) + 1)])
    drawn.save(out)
    return AskResult(found.prediction, out, found.self_consistency.why)


def _demand_words(question: str) -> None:
    if not question.strip():
        raise BadInput('the question is empty: ask something, as "Where is the kidney?"')


def trusts(recorded: Mapping[str, Any], question: BoxedText, answer: BoxedText) -> bool:
    """Whether a run reorders answers to all tasks that a free question with this first answer may be of, among those
    it had questions of; `recorded` is what its `select` kept."""
    alike = (Task.ROC, Task.RC) if question.boxes else (Task.VG,) if answer.boxes else (Task.MIA, Task.QA)
    tasks = recorded["reordered_tasks"]
    met = recorded.get("validation_gain", tasks)
    return any(t in met for t in alike) and all(t in tasks for t in alike if t in met)
