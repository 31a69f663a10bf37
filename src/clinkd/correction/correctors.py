"""Who rewrites a wrong answer, and what becomes of the rewrite: verified, fed back or refused."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from clinkd.agreement import Lexicon
from clinkd.correction.phrasing import rephrasings
from clinkd.correction.verify import verify
from clinkd.records import BadInput, BoxedText, Correction, Sample


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One proposal for the answer of a sample, and who made it ("offline", a model's name, "human")."""

    answer: BoxedText
    by: str


class Corrector(Protocol):
    """Rewrites a wrong answer so that it says what the truth says. Its proposals are verified by code, not here."""

    @property
    def name(self) -> str: ...

    def rewrite(self, sample: Sample, wrong: Correction) -> list[Rewrite]:
        """Proposals, best first; none where it has nothing to offer. `wrong.before` is the model's answer."""
        ...


@dataclass(frozen=True, slots=True)
class OfflineCorrector:
    """Rewrites from the truth in varied phrasing, by rules; no network. The same for the same seed, sample and round.

    The last proposal is the truth itself, so that every wrong answer is corrected whatever the truth looks like.
    """

    seed: int
    name: str = "offline"

    def rewrite(self, sample: Sample, wrong: Correction) -> list[Rewrite]:
        truth = sample.answer
        draw = random.Random(f"{self.seed}/{sample.id}/{wrong.round}")  # a text seed is hashed the same in any process
        texts = [BoxedText(t, truth.boxes) for t in rephrasings(truth.text, sample.task, draw)]
        return [Rewrite(t, self.name) for t in (*texts, truth)]


def correct(
    corrections: Iterable[Correction], samples: Sequence[Sample], corrector: Corrector, lexicon: Lexicon
) -> list[Correction]:
    """The reviewed answers, in order, the wrong ones now with `after` and `by`, or with `rejected` and no `after`.

    The first proposal that `verify` lets pass is taken; where none does, the objection to the first is recorded and the
    truth stays as it is. Answers found right, and those corrected or rejected before, pass through untouched.

    Raises BadInput for a correction whose sample is not among `samples`.
    """
    known = {s.id: s for s in samples}
    return [_corrected(c, _find(known, c), corrector, lexicon) for c in corrections]


def _corrected(wrong: Correction, sample: Sample, corrector: Corrector, lexicon: Lexicon) -> Correction:
    if not wrong.wrong or wrong.after is not None or wrong.rejected is not None:
        return wrong
    objection = None
    for proposal in corrector.rewrite(sample, wrong):
        refused = verify(sample, proposal.answer, lexicon)
        if refused is None:
            return replace(wrong, after=proposal.answer, by=proposal.by)
        objection = objection or refused
    return replace(wrong, by=corrector.name, rejected=objection or "no rewrite was offered")


def fed_back(samples: Sequence[Sample], corrections: Iterable[Correction]) -> list[Sample]:
    """The corrected pairs as samples of their own ("...+r1" for round 1), to train on beside the originals."""
    known = {s.id: s for s in samples}
    return [_find(known, c).answered(c.after, f"+r{c.round}") for c in corrections if c.after is not None]


def _find(known: dict[str, Sample], correction: Correction) -> Sample:
    if correction.id not in known:
        raise BadInput(f"correction {correction.id!r} belongs to no sample at hand: give the file they came from")
    return known[correction.id]
