"""Read the data of a run from the folder of `prepare` (images, class names, samples), and its answers and scores.
Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from clinkd.data.images import open_image
from clinkd.data.images.identifying import identifying_texts
from clinkd.language.facts import Lexicon
from clinkd.pipeline.damage import read_stage_json, read_stage_lines
from clinkd.records import BadInput, ImageRef, Prediction, Sample, Score, Split

DATA = "data.json"
PREDICTIONS, SCORED, OUTSIDE = "predictions.jsonl", "scores.jsonl", "outside_scores.jsonl"
LIKELIHOODS = "likelihoods.jsonl"  # of the true answers; of a cross-validation, beside its pooled predictions
BASELINES = "baselines.jsonl"  # beside the pooled predictions of a cross-validation
NO_CONFIDENCE = "no_confidence"  # in the record of `select`: by kind of question, why answers have none
BLIND_CHOICE = "blind_choice.json"  # of the best baseline; in `score`, and beside those baselines
EVALUATION, SAMPLES = "evaluation.json", "samples.jsonl"  # only in the folder of `clinkd evaluate --out`


class DataSource(NamedTuple):
    """The folder of the images, and the class names."""

    root: Path
    lexicon: Lexicon


def read_data_source(prepared: Path) -> DataSource:
    """The data source that a `prepare` stage recorded."""
    data = read_stage_json(prepared / DATA)
    return DataSource(prepared / data["root"], Lexicon.from_json(data["lexicon"]))


def read_data(prepared: Path) -> tuple[Callable[[ImageRef], Image.Image], Lexicon]:
    """A function that opens an image of the prepared data, and the class names."""
    root, lexicon = read_data_source(prepared)
    return partial(open_image, root), lexicon


def read_variants(prepared: Path) -> int:
    """The number of variants of a training image, itself among them."""
    return int(read_stage_json(prepared / DATA).get("variants", 1))


def read_split(prepared: Path, split: Split) -> list[Sample]:
    """The samples of one split; of training images without their variants.

    The test split is for answering, selecting and scoring only.
    """
    return [Sample.from_json(record) for record in read_stage_lines(prepared / f"{split}.jsonl")]


def read_images(prepared: Path, split: Split) -> list[ImageRef]:
    """The images of one split. Its questions are not read."""
    records = read_stage_lines(prepared / f"{split}.jsonl")
    return [ImageRef.from_json(image) for record in records for image in record["images"]]


def read_predictions(stage: Path, name: str = PREDICTIONS) -> list[Prediction]:
    """The answers of a stage."""
    return [Prediction.from_json(record) for record in read_stage_lines(stage / name)]


def read_scores(stage: Path) -> list[Score]:
    """The scores of a stage."""
    return [Score.from_json(record) for record in read_stage_lines(stage / SCORED)]


def read_likelihoods(stages: Mapping[str, Path]) -> list[dict[str, Any]]:
    """How likely the true answers are, a line a question, from the folders of a run's stages; empty where it was not
    asked (`evaluate.likelihood`)."""
    files = (stages[name] / LIKELIHOODS for name in ("likelihood", "select") if name in stages)
    return next((list(read_stage_lines(file)) for file in files if file.is_file()), [])


def read_identifying_texts(root: Path, samples: Iterable[Sample], lenient: bool = False) -> set[str]:
    """What the headers and paths of their images say about persons (`data.identifying_texts`).

    Raises BadInput where a file cannot be read; `lenient`: such a file is passed over.
    """
    texts: set[str] = set()
    for image in {i for s in samples for i in s.images}:
        try:
            texts |= identifying_texts(root, image)
        except BadInput:
            if not lenient:
                raise
    return texts
