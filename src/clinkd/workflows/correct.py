"""Correct the answers of a round of a run once more, or show what would leave this machine for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clinkd.correction.chat import ChatCorrector
from clinkd.correction.correctors import Wrong, needs_rewrite
from clinkd.correction.summary import summary
from clinkd.pipeline.correcting import ANSWERS, CorrectionContext, replace_overruled_truths
from clinkd.pipeline.graph import draft_of
from clinkd.pipeline.prepared import read_predictions, read_split
from clinkd.pipeline.runs import Run
from clinkd.records import BadInput, Correction, Sample, Table
from clinkd.remote import NANO, Chat, encode_body
from clinkd.settings import override
from clinkd.storage import write_lines


@dataclass(frozen=True)
class CorrectionFile:
    """Corrections of a round that were made apart from the run, and their counts."""

    file: Path
    table: Table


@dataclass(frozen=True)
class OutgoingPreview:
    """What would leave this machine for the corrections of a round.

    `bodies`: JSON of each call, as its bytes; equal answers are one call, and what is paid for already is none.
    `wrong`: answers to correct. In US dollars: `most`, what the calls may cost, and `spent`, what is spent or set aside
    in the journal.
    """

    bodies: tuple[bytes, ...]
    wrong: int
    most: float
    spent: float

    @classmethod
    def of(cls, chat: Chat, bodies: Iterable[Mapping[str, Any]], wrong: int) -> OutgoingPreview:
        """Of the calls with these bodies."""
        unpaid = chat.unpaid_bodies(list(bodies))
        most = sum(map(chat.maximum_cost, unpaid)) / NANO
        return cls(tuple(map(encode_body, unpaid)), wrong, most, chat.journal.ledger().dollars)


def correct_round(run: Run, round: int, settings: Sequence[str], out: Path | None) -> CorrectionFile | OutgoingPreview:
    """Review and correct the answers of a round once more, with `settings`; if `out` is None, show what would leave.

    The answers are those of the run's model in that round, which may be unfinished.
    Raises BadInput for a run without reflection, a round that it does not have, and one without answers yet.
    """
    run.demand_one_model()
    config = override(run.config, settings)
    if run.config.reflect is None or config.reflect is None:
        raise BadInput(f"{run.folder}: a run without reflection; give one with `reflect`")
    if not 1 <= round <= run.config.reflect.rounds:
        raise BadInput(f"--round {round}: the run has rounds 1 to {run.config.reflect.rounds}")
    round_status = next(s for s in run.status() if s.name == f"reflect-{round}")
    stage = run.stage(round_status.name) if round_status.damage else round_status.folder
    file = next((f / ANSWERS for f in (stage, draft_of(stage)) if (f / ANSWERS).is_file()), None)
    if file is None:
        raise BadInput(f"{run.folder}: round {round} has no answers yet; `{run.command}` makes them")
    prepared = run.stage("prepare")
    train = replace_overruled_truths(prepared, config.reflect, read_split(prepared, "train"))
    context = CorrectionContext(config.reflect, prepared, run.folder.parent, config.seed, train)
    answers = read_predictions(file.parent, ANSWERS)
    answered_ids = {p.id for p in answers}
    asked = [s for s in train if s.id in answered_ids]
    reviewed = context.review_answers(asked, answers, round)
    if out is None:
        return _preview_calls(context, asked, reviewed)
    corrected = context.correct_answers(asked, reviewed, f"correct {round}")
    write_lines(out, (c.to_json() for c in corrected))
    return CorrectionFile(out, summary(corrected, asked))


def _preview_calls(
    context: CorrectionContext, asked: Sequence[Sample], reviewed: Sequence[Correction]
) -> OutgoingPreview:
    samples = {s.id: s for s in asked}
    wrong = [Wrong(samples[c.id], c) for c in reviewed if needs_rewrite(c)]
    with context.open_corrector(asked) as corrector:
        if not isinstance(corrector, ChatCorrector):
            raise BadInput(f"reflect.corrector={context.config.corrector}: nothing would leave this machine")
        return OutgoingPreview.of(corrector.chat, corrector.bodies(wrong), len(wrong))
