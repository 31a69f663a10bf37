"""Rewrite wrong answers, verify the rewrites, and make samples of those that pass."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import orjson

from clinkd.correction.phrasing import rephrasings
from clinkd.correction.verify import presentable, verify
from clinkd.language.facts import Lexicon
from clinkd.records import BadInput, BoxedText, Correction, Sample
from clinkd.remote import Scrubber

HUMAN = "human"  # instead of a corrector's name


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One proposal for the answer of a sample, and who made it ("offline", a model's name, "human")."""

    answer: BoxedText
    by: str


class Wrong(NamedTuple):
    """A sample and its reviewed answer, which is wrong: `answer.before` is the model's text."""

    sample: Sample
    answer: Correction


class RewriteProposals(NamedTuple):
    """Proposals for one wrong answer, best first; if there are none, `why`."""

    proposals: tuple[Rewrite, ...]
    why: str = "no rewrite was offered"


class Corrector(Protocol):
    """Rewrites wrong answers so that they say what the truth says. Other code verifies its proposals."""

    @property
    def name(self) -> str: ...

    def rewrite(self, wrong: Sequence[Wrong]) -> Iterator[RewriteProposals]:
        """Proposals for each answer, in order, as they become ready."""
        ...


@dataclass(frozen=True, slots=True)
class OfflineCorrector:
    """Rewrites the truth in varied phrasing by rules, without a network; equal for equal seed, sample and round.

    What `scrubber` hides in the truth is not reworded: a name in small letters would no longer be found as one. The
    last proposal is the truth itself, so that every wrong answer is corrected whatever the truth looks like.
    """

    seed: int
    scrubber: Scrubber = field(default_factory=Scrubber)
    name: str = "offline"

    def rewrite(self, wrong: Sequence[Wrong]) -> Iterator[RewriteProposals]:
        for sample, answer in wrong:
            truth = sample.answer
            draw = random.Random(f"{self.seed}/{sample.id}/{answer.round}")  # a text seed is the same in any process
            masked = self.scrubber.masked()
            texts = rephrasings(masked.hide(truth.text), sample.task, draw)
            proposals = [*(BoxedText(masked.show(text), truth.boxes) for text in texts), truth]
            yield RewriteProposals(tuple(Rewrite(proposal, self.name) for proposal in proposals))


class ReplayCorrector:
    """Rewrites from a file of corrections, which a run or `clinkd correct --out` wrote and a person may have edited.

    A line belongs to a wrong answer of the same sample and round. Its `after` is the proposal, by whom its `by` says
    ("human" is kept); a line without one offers nothing.

    Raises BadInput, naming the line, for one that is no correction, or two of one answer.
    """

    name = "replay"

    def __init__(self, path: Path) -> None:
        self._lines: dict[tuple[str, int], Correction] = {}
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
            if key in self._lines:
                raise BadInput(
                    f"reflect.replay={path}, line {number}: sample {record.id!r} of round {record.round} stands twice; "
                    "keep one line"
                )
            self._lines[key] = record

    def knows(self, correction: Correction) -> bool:
        """Whether the file has a line for this answer."""
        return (correction.id, correction.round) in self._lines

    def apply_human_answers(self, samples: Sequence[Sample], lexicon: Lexicon) -> list[Sample]:
        """The samples with a person's answer instead of the truth where the two differ: the person knows better.

        What keeps the truth's meaning is a rewrite and changes no sample. Raises BadInput for a person's answer that
        is empty or holds markup.
        """
        human_answers = {c.id: c.after for _, c in sorted(self._lines.items()) if c.by == HUMAN and c.after is not None}
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
            correction = self._lines.get((sample.id, answer.round))
            if correction is None:
                yield RewriteProposals((), "the file has no line for it")
            elif correction.after is None:
                yield RewriteProposals((), correction.rejected or "its line has no rewrite")
            else:
                yield RewriteProposals((Rewrite(correction.after, correction.by or self.name),))


def correct(
    corrections: Iterable[Correction],
    samples: Sequence[Sample],
    corrector: Corrector,
    lexicon: Lexicon,
    step: Callable[[int], None] = lambda n: None,
) -> list[Correction]:
    """The reviewed answers, in order; the wrong ones get `after` and `by`, or `rejected` and no `after`.

    The first proposal that passes `verify` is taken; if none passes, the objection to the first is recorded and the
    truth stays as it is. Right answers, and those corrected or rejected before, stay as they are. `step` is called for
    each wrong answer that is done.

    Raises BadInput for a correction whose sample is not among `samples`, and the errors of the corrector.
    """
    samples_by_id = {s.id: s for s in samples}
    results = list(corrections)
    positions = [n for n, c in enumerate(results) if needs_rewrite(c)]
    wrong = [Wrong(_sample_of(samples_by_id, results[n]), results[n]) for n in positions]
    for position, (sample, answer), rewritten in zip(positions, wrong, corrector.rewrite(wrong), strict=True):
        results[position] = _apply_first_valid(sample, answer, rewritten, corrector.name, lexicon)
        step(1)
    return results


def replay_corrections(
    file: ReplayCorrector, corrections: Sequence[Correction], samples: Sequence[Sample], lexicon: Lexicon
) -> list[Correction]:
    """The reviewed answers, in order; those with a line in the file are corrected."""
    results = iter(correct([c for c in corrections if file.knows(c)], samples, file, lexicon))
    return [next(results) if file.knows(c) else c for c in corrections]


def needs_rewrite(correction: Correction) -> bool:
    """Whether an answer is to be rewritten and neither corrected nor rejected yet."""
    return correction.to_rewrite and correction.after is None and correction.rejected is None


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


def make_corrected_samples(samples: Sequence[Sample], corrections: Iterable[Correction]) -> list[Sample]:
    """The corrected pairs as new samples ("...+r1" for round 1), to train on beside the originals."""
    samples_by_id = {s.id: s for s in samples}
    return [_sample_of(samples_by_id, c).answered(c.after, f"+r{c.round}") for c in corrections if c.after is not None]


def _sample_of(samples_by_id: dict[str, Sample], correction: Correction) -> Sample:
    if correction.id not in samples_by_id:
        raise BadInput(f"correction {correction.id!r} belongs to no sample at hand: give the file they came from")
    return samples_by_id[correction.id]
