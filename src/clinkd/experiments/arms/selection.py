"""Arms of a claim: which candidate is the answer. All choose among the same answers of the same model."""

from __future__ import annotations

from collections.abc import Mapping

from clinkd.config import RunConfig
from clinkd.experiments.recipes import demo
from clinkd.experiments.rows import AblationRow
from clinkd.settings import override


def _choose(base: RunConfig | None, name: str, *knobs: str) -> RunConfig:
    """The run with other knobs of `select`; of a run with one candidate an answer, with three beams."""
    base = base or demo()
    if base.answer.candidates == 1:
        base = override(base, ["answer.beams=3", "answer.candidates=3"])
    return override(base, [f"name={name}", *(f"select.{knob}" for knob in knobs)])


def first(base: RunConfig | None = None) -> RunConfig:
    """The first beam: of the candidates the one with the highest log-probability a token."""
    return _choose(base, "first", "scorer=first")


def random(base: RunConfig | None = None) -> RunConfig:
    """Control: any candidate."""
    return _choose(base, "random", "scorer=random", "trust=always")


def agreement(base: RunConfig | None = None) -> RunConfig:
    """The candidate that is most like the others; no image, no training."""
    return _choose(base, "agreement", "scorer=agreement", "trust=always")


def text(base: RunConfig | None = None) -> RunConfig:
    """The paper's rule: an image-text model, the whole image against the words, always trusted."""
    return _choose(base, "text", "scorer=clip", "trust=always", "clip.eyes=false", "clip.grounding=text")


def crops(base: RunConfig | None = None) -> RunConfig:
    """The crop of the box against its name, in the tasks where that gained on the validation split."""
    return _choose(base, "crops", "scorer=clip", "trust=validated", "clip.grounding=crop")


def crops_always(base: RunConfig | None = None) -> RunConfig:
    """The crop of the box against its name, in every task."""
    return _choose(base, "crops-always", "scorer=clip", "trust=always", "clip.grounding=crop")


ROWS: Mapping[str, AblationRow] = {
    "first": AblationRow("First beam", "the highest log-probability a token", first, None),
    "random": AblationRow("Random", "any candidate", random, "first"),
    "agreement": AblationRow("Agreement", "the candidate most like the others", agreement, "first"),
    "text": AblationRow("CLIP, text", "the paper's rule: whole image and words, always", text, "first"),
    "crops": AblationRow("CLIP, crops", "the box's crop and its name, where validated", crops, "first"),
    "crops-always": AblationRow("CLIP, crops, always", "the same in every task", crops_always, "first"),
}
