"""Who rewrites wrong answers, and what becomes of the rewrites: verified, fed back or refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import orjson

from clinkd.correction.phrasing import rephrasings
from clinkd.correction.verify import presentable, verify
from clinkd.language.facts import Lexicon
from clinkd.records import BadInput, BoxedText, Correction, Sample

HUMAN = "human"  # in the place of a corrector's name


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One proposal for the answer of a sample, and who made it ("offline", a model's name, "human")."""

    answer: BoxedText
    by: str


class Wrong(NamedTuple):
    """A sample and its reviewed answer, which is wrong: `answer.before` is what the model said."""

    sample: Sample
    answer: Correction


class RewriteProposals(NamedTuple):
    """Proposals for one wrong answer, best first; where there are none, `why`."""

    proposals: tuple[Rewrite, ...]
    why: str = "no rewrite was offered"


class Corrector(Protocol):
    """Rewrites wrong answers so that they say what the truth says. Its proposals are verified by code, not here."""

    @property
    def name(self) -> str: ...

    def rewrite(self, wrong: Sequence[Wrong]) -> Iterator[RewriteProposals]:
        """One for each, in order, as they become ready."""
        ...


@dataclass(frozen=True, slots=True)
class OfflineCorrector:
    """Rewrites from the truth in varied phrasing, by rules; no network. The same for the same seed, sample and round.

    The last proposal is the truth itself, so that every wrong answer is corrected whatever the truth looks like.
    """

    seed: int
    name: str = "offline"

    def rewrite(self, wrong: Sequence[Wrong]) -> Iterator[RewriteProposals]:
        for sample, answer in wrong:
            truth = sample.answer
            draw = random.Random(f"{self.seed}/{sample.id}/{answer.round}")  # a text seed is the same in any process
            texts = [BoxedText(t, truth.boxes) for t in rephrasings(truth.text, sample.task, draw)]
            yield RewriteProposals(tuple(Rewrite(t, self.name) for t in (*texts, truth)))


class ReplayCorrector:
    """What a file of corrections says, as a run or `clinkd correct --out` wrote it and a person may have edited it.

    A line belongs to a wrong answer of the same sample and round. Its `after` is the proposal, by whom its `by` says
    ("human" is kept); a line without one offers nothing.

    Raises BadInput, naming the line, for one that is no correction, or two of one answer.
    """

    name = "replay"

    def __init__(self, path: Path) -> None:
        self._kept: dict[tuple[str, int], Correction] = {}
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise BadInput(f"reflect.replay={path}: {error.strerror}; corrections.jsonl of a run is wanted") from None
        except UnicodeDecodeError as error:
            raise BadInput(f"reflect.replay={path}: not a text file in UTF-8 (byte {error.start})") from None
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                record = Correction.from_json(orjson.loads(line))
            except ValueError as error:
                raise BadInput(f"reflect.replay={path}, line {number}: not a correction ({error})") from None
            key = (record.id, record.round)
            if key in self._kept:
                raise BadInput(
                    f"reflect.replay={path}, line {number}: sample {record.id!r} of round {record.round} stands twice; "
                    "keep one line"
                )
            self._kept[key] = record

    def knows(self, correction: Correction) -> bool:
        """Whether the file has a line for it."""
        return (correction.id, correction.round) in self._kept

    def taught(self, samples: Sequence[Sample], lexicon: Lexicon) -> list[Sample]:
        """The samples, those with another answer that a person says differ from their truth: that person knows better.

        What keeps the truth's meaning is a rewrite and changes no sample. Raises BadInput for a person's answer that
        is empty or holds markup.
        """
        human_answers = {c.id: c.after for _, c in sorted(self._kept.items()) if c.by == HUMAN and c.after is not None}
        updated = []
        for sample in samples:
            answer = human_answers.get(sample.id)
            if answer is not None:
                if fault := presentable(sample.answer, answer):
                    raise BadInput(f"reflect.replay: the person's answer to {sample.id!r}: {fault}")
                if verify(sample, answer, lexicon) is not None:
                    sample = replace(sample.answered(answer, ""), names=())
            updated.append(sample)
        return updated

    def rewrite(self, wrong: Sequence[Wrong]) -> Iterator[RewriteProposals]:
        for sample, answer in wrong:
            kept = self._kept.get((sample.id, answer.round))
            if kept is None:
                yield RewriteProposals((), "the file has no line for it")
            elif kept.after is None:
                yield RewriteProposals((), kept.rejected or "its line has no rewrite")
            else:
                yield RewriteProposals((Rewrite(kept.after, kept.by or self.name),))


def correct(
    corrections: Iterable[Correction],
    samples: Sequence[Sample],
    corrector: Corrector,
    lexicon: Lexicon,
    step: Callable[[int], None] = lambda n: None,
) -> list[Correction]:
    """The reviewed answers, in order, the wrong ones now with `after` and `by`, or with `rejected` and no `after`.

    The first proposal that `verify` lets pass is taken; where none does, the objection to the first is recorded and the
    truth stays as it is. Answers found right, and those corrected or rejected before, pass through untouched. `step` is
    told of each wrong answer that is dealt with.

    Raises BadInput for a correction whose sample is not among `samples`, and what the corrector raises.
    """
    samples_by_id = {s.id: s for s in samples}
    results = list(corrections)
    positions = [n for n, c in enumerate(results) if to_do(c)]
    wrong = [Wrong(_sample_of(samples_by_id, results[n]), results[n]) for n in positions]
    for position, (sample, answer), rewritten in zip(positions, wrong, corrector.rewrite(wrong), strict=True):
        results[position] = _apply_first_valid(sample, answer, rewritten, corrector.name, lexicon)
        step(1)
    return results


def first_from(
    file: ReplayCorrector, corrections: Sequence[Correction], samples: Sequence[Sample], lexicon: Lexicon
) -> list[Correction]:
    """The reviewed answers, in order, with those dealt with that the file has a line for."""
    results = iter(correct([c for c in corrections if file.knows(c)], samples, file, lexicon))
    return [next(results) if file.knows(c) else c for c in corrections]


def to_do(correction: Correction) -> bool:
    """Whether an answer is wrong, and nobody has dealt with it yet."""
    return correction.wrong and correction.after is None and correction.rejected is None


def _apply_first_valid(
    sample: Sample, wrong: Correction, rewritten: RewriteProposals, by: str, lexicon: Lexicon
) -> Correction:
    objection = None
    for proposal in rewritten.proposals:
        refused = verify(sample, proposal.answer, lexicon)
        if refused is None:
            return replace(wrong, after=proposal.answer, by=proposal.by)
        objection, by = (objection, by) if objection else (refused, proposal.by)
    return replace(wrong, by=by, rejected=objection or rewritten.why)


def fed_back(samples: Sequence[Sample], corrections: Iterable[Correction]) -> list[Sample]:
    """The corrected pairs as samples of their own ("...+r1" for round 1), to train on beside the originals."""
    samples_by_id = {s.id: s for s in samples}
    return [_sample_of(samples_by_id, c).answered(c.after, f"+r{c.round}") for c in corrections if c.after is not None]


def _sample_of(samples_by_id: dict[str, Sample], correction: Correction) -> Sample:
    if correction.id not in samples_by_id:
        raise BadInput(f"correction {correction.id!r} belongs to no sample at hand: give the file they came from")
    return samples_by_id[correction.id]
