"""Who compares and who corrects, as a config says; and corrections of a run's answers apart from the run."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clinkd.config import ChatConfig, ReflectConfig
from clinkd.correction.chat import ChatCorrector
from clinkd.correction.correctors import Corrector, OfflineCorrector, ReplayCorrector, correct, first_from, to_do
from clinkd.correction.embedding import EmbeddingSimilarity
from clinkd.correction.review import at_random, review
from clinkd.correction.similarity import LexicalSimilarity, Similarity
from clinkd.data.images import open_image
from clinkd.data.images.identifying import has_burnt_in_text
from clinkd.pipeline.prepared import read_data_source, read_identifying_texts
from clinkd.records import BadInput, Correction, ImageRef, Modality, Prediction, Sample
from clinkd.remote import Chat, Journal, Scrubber, client, common_words
from clinkd.storage import progress

JOURNAL = "chat.sqlite"  # beside the runs
VECTORS = "embeddings.sqlite"
# in the folder of a reflect stage
ANSWERS = "answers.jsonl"
CORRECTIONS = "corrections.jsonl"
EFFECT = "effect.jsonl"  # questions of its review, asked again after its training
FREE_OF_TEXT = (Modality.CT, Modality.MR, Modality.PET)  # in whose pictures names are not burnt in as a rule


@dataclass(frozen=True)
class CorrectionContext:
    """What corrections are made with: prepared data, and the folder of all runs, where what is paid for is kept."""

    prepared: Path
    runs: Path
    seed: int
    device: str = "cpu"


def demand_reflection(config: ReflectConfig) -> None:
    """Raises BadInput, before any work, where the embedding or the file to replay is not there, or the chat API may not
    be used."""
    if config.similarity == "embedding":
        from clinkd.clip import embedder

        embedder.demand(config.embedder)
    if config.replay:
        ReplayCorrector(config.replay)
    if config.corrector == "chat":
        assert config.chat
        client(config.chat)


def review_and_correct(
    desk: CorrectionContext, config: ReflectConfig, train: Sequence[Sample], asked: Sequence[Sample],
    answers: Sequence[Prediction], round: int,
) -> list[Correction]:  # fmt: skip
    """The answers compared with their truths, the wrong ones corrected, or as many others."""
    similarity = similarity_of(desk, config, [s.answer.words for s in train])
    found = pick_answers(desk, config, asked, answers, similarity, round)
    return correct_reviewed(desk, config, train, asked, found, similarity, f"correct {round}/{config.rounds}")


def pick_answers(
    desk: CorrectionContext, config: ReflectConfig, asked: Sequence[Sample], answers: Sequence[Prediction],
    similarity: Similarity,
    round: int,
) -> list[Correction]:  # fmt: skip
    """The answers reviewed; those with a reason are to be rewritten, but for those that a file has a line for."""
    found = review(asked, answers, similarity, config, round)
    found = at_random(found, desk.seed) if config.rewrite == "random" else found
    if config.replay is None or config.corrector == "replay":
        return found
    return first_from(ReplayCorrector(config.replay), found, asked, read_data_source(desk.prepared).lexicon)


def replace_overruled_truths(desk: CorrectionContext, config: ReflectConfig, train: Sequence[Sample]) -> list[Sample]:
    """The training samples, with the answers of a person in the place of those truths that the person overruled."""
    if config.replay is None:
        return list(train)
    return ReplayCorrector(config.replay).taught(train, read_data_source(desk.prepared).lexicon)


def correct_reviewed(  # noqa: PLR0913
    desk: CorrectionContext, config: ReflectConfig, train: Sequence[Sample], asked: Sequence[Sample],
    found: Sequence[Correction], similarity: Similarity, title: str,
) -> list[Correction]:  # fmt: skip
    """Reviewed answers, with those corrected that are wrong."""
    total = sum(map(to_do, found))
    with corrector_of(desk, config, train, asked, similarity) as corrector, progress(total, title, "answers") as step:
        return correct(found, asked, corrector, read_data_source(desk.prepared).lexicon, step)


def similarity_of(desk: CorrectionContext, config: ReflectConfig, references: Sequence[str]) -> Similarity:
    """Raises BadInput where the embedding is not there."""
    if config.similarity == "offline":
        return LexicalSimilarity(references)
    from clinkd.clip.embedder import TextEmbedder

    embedder = TextEmbedder(config.embedder, desk.device)
    with progress(len(set(references)), "embed truths", "texts") as step:
        return EmbeddingSimilarity(embedder, references, desk.runs / VECTORS, step)


@contextmanager
def corrector_of(
    desk: CorrectionContext,
    config: ReflectConfig,
    train: Sequence[Sample],
    asked: Sequence[Sample],
    similarity: Similarity,
) -> Iterator[Corrector]:
    """Raises BadInput where the journal is in use, no key is set, or pixels are asked for that must not leave."""
    if config.corrector == "replay":
        assert config.replay
        yield ReplayCorrector(config.replay)
    elif config.corrector == "offline":
        yield OfflineCorrector(desk.seed)
    else:
        assert config.chat
        picture = _pictures(read_data_source(desk.prepared).root, config.chat, asked)
        with Journal(config.chat.journal or desk.runs / JOURNAL) as journal:
            chat, scrubber = Chat(config.chat, journal), make_scrubbers(read_data_source(desk.prepared).root, train)
            yield ChatCorrector(chat, similarity, scrubber, config.chat.question, picture)


def make_scrubbers(root: Path, known: Sequence[Sample]) -> Callable[[Sample], Scrubber]:
    """By what the files of a sample say, and by the words that more than one patient's texts share, among `known`."""
    texts = ((s.group, text.words) for s in known for t in s.turns for text in (t.question, t.answer))
    common = common_words(texts)
    made: dict[tuple[ImageRef, ...], Scrubber] = {}

    def of(sample: Sample) -> Scrubber:
        if sample.images not in made:
            made[sample.images] = Scrubber(read_identifying_texts(root, [sample]), common)
        return made[sample.images]

    return of


def _pictures(root: Path, config: ChatConfig, asked: Sequence[Sample]) -> Callable[[Sample], str] | None:
    if not config.pixels:
        return None
    if risk := risk_of_pixels(root, asked):
        raise BadInput(f"reflect.chat.pixels=true: {risk}; set reflect.chat.pixels=false")
    return encode_png_images(root)


def risk_of_pixels(root: Path, asked: Sequence[Sample]) -> str | None:
    """Why the pictures of these samples may show whom they are of; None where nothing speaks for it."""
    if risky := sorted({s.modality.value for s in asked if s.modality not in FREE_OF_TEXT}):
        return f"there are pictures of {', '.join(risky)}, which may show names; only CT, MR and PET may leave"
    images = {image for s in asked for image in s.images}
    told = sum(has_burnt_in_text(root, image) for image in images)
    return f"{told} DICOM files say that text is burnt into their pixels" if told else None


def encode_png_images(root: Path) -> Callable[[Sample], str]:
    """Pictures as PNG, made anew from their pixels, so that nothing of a header goes along."""

    def of(sample: Sample) -> str:
        made = io.BytesIO()
        open_image(root, sample.images[0]).save(made, "PNG")
        return "data:image/png;base64," + base64.b64encode(made.getvalue()).decode()

    return of
