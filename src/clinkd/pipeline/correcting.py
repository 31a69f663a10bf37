"""Review and correct the answers of a run, as its config says."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from clinkd.config import ReflectConfig
from clinkd.correction.chat import ChatCorrector
from clinkd.correction.correctors import (
    Corrector,
    OfflineCorrector,
    ReplayCorrector,
    correct,
    needs_rewrite,
    replay_corrections,
)
from clinkd.correction.embedding import EmbeddingSimilarity
from clinkd.correction.review import choose_for_control, review
from clinkd.correction.similarity import LexicalSimilarity, Similarity
from clinkd.data.images import encode_picture, open_image
from clinkd.data.images.identifying import has_burnt_in_text, identifying_texts
from clinkd.pipeline.prepared import DataSource, read_data_source
from clinkd.records import BadInput, Correction, ImageRef, Modality, Prediction, Sample
from clinkd.remote import Chat, Journal, Scrubber, common_words, make_client
from clinkd.storage import progress

JOURNAL = "chat.sqlite"  # beside the runs
VECTORS = "embeddings.sqlite"
# in the folder of a reflect stage
ANSWERS = "answers.jsonl"
CORRECTIONS = "corrections.jsonl"
EFFECT = "effect.jsonl"  # reviewed questions, asked again after the training
FREE_OF_TEXT = (Modality.CT, Modality.MR, Modality.PET)  # images that rarely have a name burnt in


def demand_reflection(config: ReflectConfig) -> None:
    """Raises BadInput, before any work, if the embedding or the file to replay is missing, or the chat API may not be
    used."""
    if config.similarity == "embedding":
        from clinkd.clip import embedder

        embedder.require_embedder(config.embedder)
    if config.replay:
        ReplayCorrector(config.replay)
    if config.corrector == "chat":
        assert config.chat
        make_client(config.chat)


def replace_overruled_truths(prepared: Path, config: ReflectConfig, train: Sequence[Sample]) -> list[Sample]:
    """The training samples, with the answers of a person in the place of the truths that this person overruled."""
    if config.replay is None:
        return list(train)
    return ReplayCorrector(config.replay).apply_human_answers(train, read_data_source(prepared).lexicon)


@dataclass(frozen=True)
class CorrectionContext:
    """How answers of a run are reviewed and corrected. `runs`: the folder of all runs, which keeps what is paid for.
    `train`: the training samples, whose truths are what answers are compared with."""

    config: ReflectConfig
    prepared: Path
    runs: Path
    seed: int
    train: Sequence[Sample]
    device: str = "cpu"

    @cached_property
    def source(self) -> DataSource:
        return read_data_source(self.prepared)

    @cached_property
    def similarity(self) -> Similarity:
        """Raises BadInput if the embedding is missing."""
        references, folder = [s.answer.words for s in self.train], self.config.embedder
        if self.config.similarity == "offline":
            return LexicalSimilarity(references)
        from clinkd.clip.embedder import TextEmbedder

        embedder = TextEmbedder(folder, self.device)
        with progress(len(set(references)), "embed truths", "texts") as step:
            return EmbeddingSimilarity(embedder, references, self.runs / VECTORS, step)

    def review_answers(self, asked: Sequence[Sample], answers: Sequence[Prediction], round: int) -> list[Correction]:
        """The answers compared with their truths. An answer with a reason is to be rewritten, unless the file of
        corrections has a line for it."""
        reviewed = review(asked, answers, self.similarity, self.config, round)
        if self.config.rewrite != "wrong":
            reviewed = choose_for_control(reviewed, self.config.rewrite, self.seed)
        if self.config.replay is None or self.config.corrector == "replay":
            return reviewed
        return replay_corrections(ReplayCorrector(self.config.replay), reviewed, asked, self.source.lexicon)

    def correct_answers(self, asked: Sequence[Sample], reviewed: Sequence[Correction], title: str) -> list[Correction]:
        """Reviewed answers, the wrong ones corrected."""
        total = sum(map(needs_rewrite, reviewed))
        with self.open_corrector(asked) as corrector, progress(total, title, "answers") as step:
            return correct(reviewed, asked, corrector, self.source.lexicon, step)

    @contextmanager
    def open_corrector(self, asked: Sequence[Sample]) -> Iterator[Corrector]:
        """Raises BadInput if the journal is in use, no key is set, or pixels are asked for that must not leave."""
        config, chat, root = self.config, self.config.chat, self.source.root
        if config.corrector == "replay":
            assert config.replay
            yield ReplayCorrector(config.replay)
        elif config.corrector == "offline":
            yield OfflineCorrector(self.seed, Scrubber(common=_find_common_words(self.train)))
        else:
            assert chat
            if chat.pixels and (risk := risk_of_pixels(root, asked)):
                raise BadInput(f"reflect.chat.pixels=true: {risk}; set reflect.chat.pixels=false")
            encode_image = encode_png_images(root) if chat.pixels else None
            with Journal(chat.journal or self.runs / JOURNAL) as journal:
                scrubber = make_scrubbers(root, self.train)
                yield ChatCorrector(Chat(chat, journal), self.similarity, scrubber, chat.question, encode_image)


def make_scrubbers(root: Path, samples: Sequence[Sample]) -> Callable[[Sample], Scrubber]:
    """Scrubbers by what the files of a sample say, and by the words that texts of several patients share."""
    common = _find_common_words(samples)

    @cache
    def make_scrubber(images: tuple[ImageRef, ...]) -> Scrubber:
        return Scrubber({text for image in images for text in identifying_texts(root, image)}, common)

    return lambda sample: make_scrubber(sample.images)


def _find_common_words(samples: Sequence[Sample]) -> frozenset[str]:
    return common_words((s.group, text.words) for s in samples for t in s.turns for text in (t.question, t.answer))


def risk_of_pixels(root: Path, asked: Sequence[Sample]) -> str | None:
    """Why the images of these samples may show whose they are; None if nothing suggests it."""
    if risky := sorted({s.modality.value for s in asked if s.modality not in FREE_OF_TEXT}):
        return f"there are pictures of {', '.join(risky)}, which may show names; only CT, MR and PET may leave"
    number = sum(has_burnt_in_text(root, image) for image in {image for s in asked for image in s.images})
    return f"{number} DICOM files say that text is burnt into their pixels" if number else None


def encode_png_images(root: Path) -> Callable[[Sample], str]:
    """Images as PNG, made anew from their pixels, so that nothing of a header goes along."""

    def encode(sample: Sample) -> str:
        png = encode_picture(open_image(root, sample.images[0]))
        return f"data:image/png;base64,{base64.b64encode(png).decode()}"

    return encode
