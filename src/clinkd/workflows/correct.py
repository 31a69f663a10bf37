"""Correct the answers of one of a run's rounds once more, or tell what would leave this machine for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clinkd.config import ReflectConfig
from clinkd.correction.chat import ChatCorrector
from clinkd.correction.correctors import Wrong, to_do
from clinkd.correction.similarity import Similarity
from clinkd.correction.summary import summary
from clinkd.pipeline.correcting import (
    ANSWERS,
    CorrectionContext,
    correct_reviewed,
    corrector_of,
    pick_answers,
    replace_overruled_truths,
    similarity_of,
)
from clinkd.pipeline.graph import draft_of
from clinkd.pipeline.prepared import read_split
from clinkd.pipeline.runs import Run
from clinkd.records import BadInput, Correction, Prediction, Sample, Table
from clinkd.remote import NANO, spelled
from clinkd.settings import override
from clinkd.storage import JsonLines, write_lines


@dataclass(frozen=True)
class CorrectionFile:
    """Corrections of a round that were made apart from the run, in a file, and counted."""

    file: Path
    table: Table


@dataclass(frozen=True)
class OutgoingPreview:
    """What would leave this machine for the corrections of a round.

    `bodies`: JSON of each call, as its bytes; answers that say the same are one call, and what is paid for already is
    none. `wrong`: answers to correct. In US dollars: `most`, what the calls may cost, and `spent`, what is spent or set
    aside in the journal.
    """

    bodies: tuple[bytes, ...]
    wrong: int
    most: float
    spent: float


def correct_round(run: Run, round: int, settings: Sequence[str], out: Path | None) -> CorrectionFile | OutgoingPreview:
    """Review and correct the answers of a round once more, under `settings`; or what would leave for it (`out` None).

    The answers are those that the run's model gave in that round, which may still be under way.
    Raises BadInput for a run without reflection, a round it does not have, and one whose answers are not there yet.
    """
    config = override(run.config, settings)
    if run.config.reflect is None or config.reflect is None:
        raise BadInput(f"{run.folder}: a run without reflection; give one with `reflect`")
    if not 1 <= round <= run.config.reflect.rounds:
        raise BadInput(f"--round {round}: the run has rounds 1 to {run.config.reflect.rounds}")
    stage = next(s.folder for s in run.status() if s.name == f"reflect-{round}")
    file = next((f / ANSWERS for f in (stage, draft_of(stage)) if (f / ANSWERS).is_file()), None)
    if file is None:
        raise BadInput(f"{run.folder}: round {round} has no answers yet; `{run.command}` makes them")
    desk = CorrectionContext(run.stage("prepare"), run.folder.parent, config.seed)
    train = replace_overruled_truths(desk, config.reflect, read_split(desk.prepared, "train"))
    answers = [Prediction.from_json(record) for record in JsonLines(file).read()]
    answered = {p.id for p in answers}
    asked = [s for s in train if s.id in answered]
    similarity = similarity_of(desk, config.reflect, [s.answer.words for s in train])
    found = pick_answers(desk, config.reflect, asked, answers, similarity, round)
    if out is None:
        return _leaving(desk, config.reflect, train, asked, found, similarity)
    made = correct_reviewed(desk, config.reflect, train, asked, found, similarity, f"correct {round}")
    write_lines(out, (c.to_json() for c in made))
    return CorrectionFile(out, summary(made, asked))


def _leaving(
    desk: CorrectionContext, config: ReflectConfig, train: Sequence[Sample], asked: Sequence[Sample],
    found: Sequence[Correction], similarity: Similarity,
) -> OutgoingPreview:  # fmt: skip
    known = {s.id: s for s in asked}
    wrong = [Wrong(known[c.id], c) for c in found if to_do(c)]
    with corrector_of(desk, config, train, asked, similarity) as corrector:
        if not isinstance(corrector, ChatCorrector):
            raise BadInput(f"reflect.corrector={config.corrector}: nothing would leave this machine")
        bodies: list[Mapping[str, Any]] = corrector.bodies(wrong)
        unpaid = corrector.chat.unpaid(bodies)
        most = sum(corrector.chat.most(body) for body in unpaid)
        ledger = corrector.chat.journal.ledger()
    return OutgoingPreview(tuple(map(spelled, unpaid)), len(wrong), most / NANO, ledger.dollars)
