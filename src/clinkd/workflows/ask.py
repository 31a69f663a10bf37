"""Ask the model of a finished run, or a model in a folder, about images: one question or many at once."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from clinkd.config import AnswerConfig, RunConfig
from clinkd.data.grids import Size
from clinkd.data.images import encode_picture, locate, open_image, read_medical_facts
from clinkd.inference import Scorer
from clinkd.inference.confidence import find_confidence, read_fits
from clinkd.inference.disagreement import explain_disagreement
from clinkd.inference.rerank import rerank_batch
from clinkd.inference.self_consistency import SelfConsistency, self_consistency
from clinkd.model.generate import PartialHypotheses, run_to_end
from clinkd.model.vlm import VisionLanguageModel, load_foreign
from clinkd.pipeline.graph import stage_record
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.models import load_model, make_scorer
from clinkd.pipeline.prepared import read_data_source
from clinkd.pipeline.runs import Run
from clinkd.records import (
    BOX_MARK,
    RESERVED,
    BadInput,
    Box,
    BoxedText,
    ImageRef,
    Modality,
    Prediction,
    Sample,
    Task,
    Turn,
    list_possible_tasks,
)
from clinkd.reporting.viewer.overlay import draw_answer
from clinkd.storage import first_free, write_atomic
from clinkd.workflows.answer_warnings import AnswerWarning, TrainingKnowledge, find_warnings

UNLIKE_VALIDATION = {"unknown_name", "unseen_modality", "training_image"}  # warnings where counts of it tell nothing


@dataclass(frozen=True)
class Question:
    """Images as the model is to see them, and a conversation whose last answer is wanted.

    `modality`: as the file of the image states it; `file`: where that lies, if it does. The model sees neither.
    """

    pictures: tuple[Image.Image, ...]
    turns: tuple[Turn, ...]
    modality: Modality = Modality.OTHER
    file: Path | None = None

    @classmethod
    def of(
        cls, picture: Image.Image, text: BoxedText, modality: Modality = Modality.OTHER, file: Path | None = None
    ) -> Question:
        """One question about one image."""
        return cls((picture,), (Turn(Task.QA, text, BoxedText("")),), modality, file)

    @property
    def text(self) -> BoxedText:
        return self.turns[-1].question


class Answer(NamedTuple):
    """A prediction, how far its candidates agree, and whether the run's scorer took part in the choice.

    `prompt_tokens`: of the prompt with its images; `answer_tokens`: of the answer with its end mark; `warnings`: what
    is not known about the answer; `uncertain`: in what the candidates differ and what this means, only where the run's
    validation answers show that it means something; `confidence`: the probability that it is right, None
    where a fit to validation answers has not earned trust, or question or way of answering are not as in validation.
    """

    prediction: Prediction
    self_consistency: SelfConsistency
    reordered: bool
    prompt_tokens: int
    answer_tokens: int
    warnings: tuple[AnswerWarning, ...] = ()
    uncertain: str | None = None
    confidence: float | None = None


# The best beginnings of answers so far, by the number of the question; computed on request, since few steps are shown.
Drafts = Callable[[], Mapping[int, BoxedText]]


class _BatchPictures(dict[str, Image.Image]):
    """The images of the current batch, by `ImageRef.path`."""

    def open(self, ref: ImageRef) -> Image.Image:
        return self[ref.path]


@dataclass
class Answerer:
    """A model, and what chooses among its candidates. It forgets the images when a batch is answered."""

    name: str
    config: RunConfig
    model: VisionLanguageModel
    pictures: _BatchPictures
    names: tuple[str, ...] = ()
    scorer: Scorer | None = None
    recorded: Mapping[str, Any] = field(default_factory=dict)  # by the run's `select`
    knowledge: TrainingKnowledge | None = None  # None: nothing is known of the training data
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def of_run(cls, run: Run) -> Answerer:
        """A finished run's final model, and its choice. Raises BadInput if the run is not that far."""
        shown, config, last = _BatchPictures(), run.config, run.last_trained
        device = Machine.of(config).ready()
        model = load_model(run.stage(last), shown.open).to(device).eval()
        source = read_data_source(run.stage("prepare"))
        lexicon, knowledge = source.lexicon, TrainingKnowledge.of_run(run.stage("prepare"), source)
        answerer = cls(f"{run.folder.name}/{last}", config, model, shown, lexicon.names, knowledge=knowledge)
        answerer.recorded = stage_record(run.stage("select"))["recorded"]
        if config.select.scorer in ("clip", "agreement"):
            clip = run.stage("clip") if config.select.scorer == "clip" else None
            answerer.scorer = make_scorer(config.select, clip, shown.open, lexicon, config.seed, answerer.recorded)
        return answerer

    @classmethod
    def of_folder(cls, folder: Path) -> Answerer:
        """A model that `clinkd export` wrote, or a stock one; its first beam is the answer.

        Raises BadInput if the folder is no such model.
        """
        shown, config = _BatchPictures(), RunConfig()
        model = load_foreign(folder, shown.open)
        return cls(folder.name, config, model.to(Machine.of(config).ready()).eval(), shown)

    def read(self, text: str, picture: Image.Image | None = None) -> BoxedText:
        """A question about an image as people type it, its boxes spelled as the model spells them.

        Raises BadInput as `demand_words`, and for what looks like a box of another spelling.
        """
        demand_words(text)
        size = self._box_frame(picture)
        question = self.model.codec.decode(text, size)
        if question.unparsed_boxes:
            example = self.model.codec.encode(BoxedText(BOX_MARK, (Box(0.25, 0.25, 0.5, 0.5),)), size)
            raise BadInput(
                f"the question holds {question.unparsed_boxes[0]!r}, no box as this model spells them, "
                f"for example {example}"
            )
        return question.answer

    def count_prompt_tokens(self, question: Question) -> int:
        """Tokens before the answer: the images, the conversation, and the marks around them."""
        refs = tuple(ImageRef("picture", *picture.size) for picture in question.pictures)
        sample = Sample("count", refs, Modality.OTHER, question.turns, group="count", side="image")
        return self.model.count_prompt_tokens([sample])[0]

    def as_seen(self, text: BoxedText, picture: Image.Image | None = None) -> BoxedText:
        """A text about an image as the model gets it: its boxes on the grid of the model's spelling."""
        size = self._box_frame(picture)
        return self.model.codec.decode(self.model.codec.encode(text, size), size).answer

    def _box_frame(self, picture: Image.Image | None) -> Size | None:
        return self.model.text.box_frame((ImageRef("picture", *picture.size),) if picture else ())

    def stream_answers(self, questions: Sequence[Question], how: AnswerConfig) -> Generator[Drafts, None, list[Answer]]:
        """Answers to a batch, a token a step; the last step returns them all. Closed early, it computes no more.

        An answer does not depend on the other questions. Raises BadInput for an image that cannot be opened.
        """
        samples = [self._make_sample(question) for question in questions]
        try:
            candidates = yield from self._decode(samples, how)
            predictions = [
                Prediction(s.id, tuple(group), by=self.name) for s, group in zip(samples, candidates, strict=True)
            ]
            answers = self._choose_answers(samples, predictions)
            as_validated = how.model_copy(update={"batch": self.config.answer.batch}) == self.config.answer
            return [self._add_warnings(q, a, as_validated) for q, a in zip(questions, answers, strict=True)]
        finally:
            self.pictures.clear()
            self.model.images.forget()

    def answers(self, questions: Sequence[Question], how: AnswerConfig | None = None) -> list[Answer]:
        """Answers to a batch; without `how`, as the run answers. Threads are answered one after another."""
        with self.lock:
            return run_to_end(self.stream_answers(questions, how or self.config.answer))

    def _decode(self, samples: Sequence[Sample], how: AnswerConfig) -> Generator[Drafts, None, list[Any]]:
        writing = self.model.decode_stream(samples, how, self.config.seed)
        while True:
            try:
                leading: PartialHypotheses = next(writing)
            except StopIteration as done:
                return list(done.value)
            yield partial(self.model.read_partial_answers, leading, samples)

    def _make_sample(self, question: Question) -> Sample:
        """The question as a sample. Its id is a hash of what is asked: sampling depends on the id alone."""
        refs = []
        for picture in question.pictures:
            path = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
            self.pictures[path] = picture
            refs.append(ImageRef(path, picture.width, picture.height))
        content = repr([r.path for r in refs] + [t.to_json() for t in question.turns])
        identity = hashlib.sha256(content.encode(errors="backslashreplace")).hexdigest()
        return Sample(identity, tuple(refs), Modality.OTHER, question.turns, group=identity, side="image")

    def _choose_answers(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[Answer]:
        trusted = [
            self.scorer is not None and trusts(self.recorded, s.question, p.candidates[0].answer)
            for s, p in zip(samples, predictions, strict=True)
        ]
        if self.scorer is not None:
            # as the run chose: if its validation did not trust the scorer, scores are shown but do not decide
            scored = rerank_batch(samples, predictions, self.scorer, [Task.QA])
            predictions = [p if trust else replace(p, chosen=0) for p, trust in zip(scored, trusted, strict=True)]
        answers = []
        prompt_lengths = self.model.count_prompt_tokens(samples)
        answer_lengths = iter(self.model.count_answer_tokens([c for p in predictions for c in p.candidates]))
        for prediction, trust, prompt_length in zip(predictions, trusted, prompt_lengths, strict=True):
            lengths = [next(answer_lengths) for _ in prediction.candidates]
            consistency = self_consistency(prediction, lengths, self.names)
            answers.append(Answer(prediction, consistency, trust, prompt_length, lengths[prediction.chosen]))
        return answers

    def _add_warnings(self, question: Question, answer: Answer, as_validated: bool) -> Answer:
        """`as_validated`: whether it was answered in the way in which the run answered its validation questions."""
        text, differs = answer.prediction.answer.answer, answer.self_consistency.why
        meaning = explain_disagreement(self.recorded.get("disagreement", {}), list_possible_tasks(question.text, text))
        warnings = find_warnings(question.text, text, question.modality, self.knowledge, question.file)
        answer = answer._replace(warnings=warnings, uncertain=f"{differs}; {meaning}" if differs and meaning else None)
        if not as_validated or {w.kind for w in warnings} & UNLIKE_VALIDATION:
            return answer
        fits, support = read_fits(self.recorded.get("confidence", {})), answer.self_consistency.value
        scorer = self.scorer.name if self.scorer else ""
        return answer._replace(confidence=find_confidence(fits, question.text, answer.prediction, support, scorer))


@dataclass(frozen=True)
class AskResult:
    """The answer to one question, the image with its boxes drawn, why the answer is uncertain, if it is, what is
    not known about it, and the calibrated probability that it is right, where there is one."""

    prediction: Prediction
    overlay: Path
    uncertain: str | None = None
    warnings: tuple[AnswerWarning, ...] = ()
    size: tuple[int, int] | None = None  # of the image, in pixels
    confidence: float | None = None


def ask(run: Run, image: Path, question: str, overlay: Path | None = None) -> AskResult:
    """The candidates for one question, scored and chosen as the run does it; question, answer and boxes are drawn on
    `overlay`, by default a new file here."""
    out = overlay or first_free(f"{image.stem}-answer", suffix=".png")
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise BadInput(f"--out {out}: the boxes are drawn on a .png or .jpg")
    demand_words(question)  # before a model is loaded
    picture = open_image(image.parent, image.name)
    answerer = Answerer.of_run(run)
    modality = read_stated_modality(image.parent, image.name)
    file, _ = locate(image.parent, image.name, f"image {image.name}")
    asked = Question.of(picture, answerer.read(question, picture), modality, file)
    [answer] = answerer.answers([asked])
    drawn = draw_answer(picture, asked.text, answer.prediction.answer.answer)
    write_atomic(out, encode_picture(drawn, "PNG" if out.suffix.lower() == ".png" else "JPEG"))
    return AskResult(answer.prediction, out, answer.uncertain, answer.warnings, picture.size, answer.confidence)


def read_stated_modality(root: Path, name: str) -> Modality:
    """The modality that the header of an image states; `OTHER` if it states none, as plain pictures do."""
    facts = read_medical_facts(root, name, f"image {name}")
    return (facts and facts.modality) or Modality.OTHER


def demand_words(question: str) -> None:
    """Raises BadInput for an empty question, and for a mark of images and turns: data with one are refused, too."""
    if not question.strip():
        raise BadInput('the question is empty: ask something, as "Where is the kidney?"')
    if mark := RESERVED.search(question):
        raise BadInput(
            f"the question holds {mark.group()}, a mark that is kept for images and turns; remove it, or write it "
            "otherwise"
        )


def trusts(recorded: Mapping[str, Any], question: BoxedText, answer: BoxedText) -> bool:
    """Whether a run trusts its scorer for a free question with this first answer. The question may belong to several
    tasks; the scorer must be trusted in each of them that the run had questions of. `recorded`: by its `select`."""
    possible = list_possible_tasks(question, answer)
    tasks = recorded["reordered_tasks"]
    validated = recorded.get("validation_gain", tasks)
    return any(t in validated for t in possible) and all(t in tasks for t in possible if t in validated)
